//! What a cluster writes down about itself before it makes anything, so that
//! another process can find it, and can clean up after an interrupted start.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::cgroup::Branch;
use crate::component::Component;
use crate::error::{Error, IoContext};
use crate::network::Addresses;
use crate::pki::{Pki, User};
use crate::process::{ProcessId, write_atomic};

/// Ports of one cluster. All are on the node's address or on 127.0.0.1.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Ports {
    pub(crate) etcd: u16,
    pub(crate) etcd_peer: u16,
    pub(crate) apiserver: u16,
    pub(crate) controller_manager: u16,
    pub(crate) scheduler: u16,
    pub(crate) kubelet: u16,
    pub(crate) kubelet_healthz: u16,
    pub(crate) proxy_healthz: u16,
    pub(crate) proxy_metrics: u16,
}

impl Ports {
    /// Free ports for the cluster with this number, below the range that the
    /// kernel gives to outgoing connections and below the node ports of
    /// services. Each number has a range of its own to look in, so clusters
    /// that start at the same time do not take each other's.
    pub(crate) fn free(number: u8) -> Result<Self, Error> {
        const FIRST: u16 = 20_000;
        const RANGE: u16 = 49;
        let first = FIRST + RANGE * u16::from(number);
        let mut candidates = first..first + RANGE;
        let mut port = || {
            candidates
                // All addresses, since the API server is on the node's own.
                .find(|p| TcpListener::bind(("0.0.0.0", *p)).is_ok())
                .ok_or_else(|| Error::Config {
                    what: "ports",
                    reason: format!("too few of {first} to {} are free", first + RANGE - 1),
                })
        };
        Ok(Self {
            etcd: port()?,
            etcd_peer: port()?,
            apiserver: port()?,
            controller_manager: port()?,
            scheduler: port()?,
            kubelet: port()?,
            kubelet_healthz: port()?,
            proxy_healthz: port()?,
            proxy_metrics: port()?,
        })
    }
}

/// The file `cluster.json` of a state folder.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) dir: PathBuf,
    pub(crate) number: u8,
    pub(crate) ports: Ports,
    pub(crate) node_name: String,
    pub(crate) node_labels: Vec<(String, String)>,
    pub(crate) node: bool,
    pub(crate) scheduler: bool,
    pub(crate) kube_proxy: bool,
    pub(crate) detached: bool,
    pub(crate) private_paths: Vec<PathBuf>,
    pub(crate) extra_args: Vec<(Component, String)>,
    pub(crate) kubelet_config: serde_json::Value,
    /// The process that started it.
    pub(crate) owner: Option<ProcessId>,
}

impl State {
    pub(crate) fn addresses(&self) -> Addresses {
        Addresses { number: self.number }
    }

    pub(crate) fn api_url(&self) -> String {
        format!("https://{}:{}", self.addresses().node(), self.ports.apiserver)
    }

    pub(crate) fn branch(&self) -> Branch {
        branch_of(&self.dir)
    }

    pub(crate) fn table(&self) -> String {
        unit_name(&self.dir)
    }

    pub(crate) fn pki(&self) -> Pki {
        Pki::at(self.dir.join("pki"))
    }

    pub(crate) fn kubeconfig(&self, user: User) -> PathBuf {
        self.dir.join(format!("{}.kubeconfig", user.file_name()))
    }

    pub(crate) fn log(&self, component: Component) -> PathBuf {
        self.dir.join("log").join(format!("{}.log", component.file_name()))
    }

    pub(crate) fn containerd_socket(&self) -> PathBuf {
        self.dir.join("containerd/containerd.sock")
    }

    pub(crate) fn audit_log(&self) -> PathBuf {
        self.dir.join("log/audit.log")
    }

    /// Host folder and where the node sees it.
    pub(crate) fn binds(&self) -> Vec<(PathBuf, PathBuf)> {
        let mut binds: Vec<(PathBuf, PathBuf)> = [
            ("kubelet", "/var/lib/kubelet"),
            ("cdi/etc", "/etc/cdi"),
            ("cdi/run", "/var/run/cdi"),
            ("containerd/run", "/run/containerd"),
            ("cni/cache", "/var/lib/cni"),
            ("log/pods", "/var/log/pods"),
            ("log/containers", "/var/log/containers"),
        ]
        .into_iter()
        .map(|(from, to)| (self.dir.join(from), PathBuf::from(to)))
        .collect();
        for path in &self.private_paths {
            let below_root = path.strip_prefix("/").unwrap_or(path);
            binds.push((self.dir.join("private").join(below_root), path.clone()));
        }
        binds
    }

    pub(crate) fn components(&self) -> Vec<Component> {
        Component::ALL
            .into_iter()
            .filter(|c| match c {
                Component::Etcd | Component::Apiserver | Component::ControllerManager => true,
                Component::Scheduler => self.scheduler,
                Component::Namespace | Component::Containerd | Component::Kubelet => self.node,
                Component::KubeProxy => self.node && self.kube_proxy,
            })
            .collect()
    }

    fn pid_file(&self, component: Component) -> PathBuf {
        self.dir.join("run").join(format!("{}.json", component.file_name()))
    }

    /// The process last started for a component, dead or alive.
    pub(crate) fn recorded(&self, component: Component) -> Option<ProcessId> {
        let text = fs::read(self.pid_file(component)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    pub(crate) fn record(&self, component: Component, id: &ProcessId) -> Result<(), Error> {
        let text = serde_json::to_vec(id).unwrap_or_default();
        write_atomic(&self.pid_file(component), &text, 0o600)
    }

    pub(crate) fn alive(&self, component: Component) -> Option<ProcessId> {
        self.recorded(component).filter(ProcessId::is_alive)
    }

    pub(crate) fn save(&self) -> Result<(), Error> {
        let text = serde_json::to_vec_pretty(self).unwrap_or_default();
        write_atomic(&self.dir.join("cluster.json"), &text, 0o600)
    }

    /// The state kept in a folder; `None` when there is no cluster in it.
    pub(crate) fn load(dir: &Path) -> Result<Option<Self>, Error> {
        let path = dir.join("cluster.json");
        match fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).at("read", &path),
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|e| Error::StateDir {
                path: dir.to_path_buf(),
                reason: format!("its cluster.json is not readable: {e}"),
            }),
        }
    }
}

/// Name of everything on the machine that belongs to the cluster of a folder:
/// its cgroup branch and its network table.
pub(crate) fn unit_name(dir: &Path) -> String {
    let hash = Sha256::digest(dir.as_os_str().as_encoded_bytes());
    format!("tessera-{}", crate::hex(hash.get(..4).unwrap_or_default()))
}

pub(crate) fn branch_of(dir: &Path) -> Branch {
    Branch::new(unit_name(dir))
}
