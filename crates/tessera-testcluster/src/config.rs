//! The files and command lines of every component.
//!
//! All are derived from the state and the binaries alone, so a process that
//! attaches to a cluster can start any component again just as it was.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::binaries::Binaries;
use crate::component::Component;
use crate::error::{Error, IoContext};
use crate::image;
use crate::pki::User;
use crate::process::write_atomic;
use crate::state::State;

/// How kube-scheduler is run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SchedulerConfig {
    /// With its own defaults.
    #[default]
    Default,
    /// With this `KubeSchedulerConfiguration`, as YAML or JSON. The path of
    /// the kubeconfig is filled in, and leader election is off unless the
    /// text says something else.
    Yaml(String),
    /// Like [`SchedulerConfig::Yaml`], read from a file once.
    File(PathBuf),
    /// Not at all: pods stay pending, or something else binds them.
    Off,
}

/// A command to start one component.
#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) env: BTreeMap<&'static str, String>,
}

/// Makes all folders of the state and writes every file.
pub(crate) fn write_all(state: &State, binaries: &Binaries, scheduler: &SchedulerConfig) -> Result<(), Error> {
    for name in [
        "pki",
        "log",
        "run",
        "etcd",
        "containerd/lib",
        "cni/conf",
        "cni/cache",
        "tmp",
    ] {
        let dir = state.dir.join(name);
        fs::create_dir_all(&dir).at("create folder", &dir)?;
    }
    for (from, _) in state.binds() {
        fs::create_dir_all(&from).at("create folder", &from)?;
    }
    let addresses = state.addresses();
    state.pki().create(
        &state.node_name,
        addresses.node(),
        addresses.api_service(),
        &state.api_url(),
        &state.dir,
    )?;
    write_json(&state.dir.join("audit-policy.json"), &audit_policy())?;
    write_scheduler(state, scheduler)?;
    if state.node {
        let toml = containerd(state, binaries);
        write_atomic(&state.dir.join("containerd/config.toml"), toml.as_bytes(), 0o644)?;
        write_json(&state.dir.join("cni/conf/10-tessera.conflist"), &cni(state))?;
        write_json(&state.dir.join("kubelet-config.json"), &kubelet(state, binaries))?;
        write_json(&state.dir.join("kube-proxy-config.json"), &kube_proxy(state))?;
        let script = node_script(state, binaries);
        write_atomic(&state.dir.join("node.sh"), script.as_bytes(), 0o755)?;
    }
    Ok(())
}

fn write_json(path: &Path, value: &Value) -> Result<(), Error> {
    write_atomic(path, format!("{value:#}\n").as_bytes(), 0o644)
}

/// Writes the scheduler's configuration; a broken one is refused here and not
/// by a scheduler that ends at once.
pub(crate) fn write_scheduler(state: &State, config: &SchedulerConfig) -> Result<(), Error> {
    let text = match config {
        SchedulerConfig::Default | SchedulerConfig::Off => String::from("{}"),
        SchedulerConfig::Yaml(text) => text.clone(),
        SchedulerConfig::File(path) => fs::read_to_string(path).at("read", path)?,
    };
    let value = scheduler(&text, &state.kubeconfig(User::Scheduler))?;
    write_json(&state.dir.join("scheduler-config.json"), &value)
}

fn scheduler(text: &str, kubeconfig: &Path) -> Result<Value, Error> {
    let wrong = |reason: String| Error::Config {
        what: "scheduler configuration",
        reason,
    };
    let mut value: Value = serde_saphyr::from_str(text).map_err(|e| wrong(e.to_string()))?;
    let fields = value
        .as_object_mut()
        .ok_or_else(|| wrong("a mapping is expected".to_owned()))?;
    let mut default = |key: &str, v: Value| {
        fields.entry(key).or_insert(v);
    };
    default("apiVersion", json!("kubescheduler.config.k8s.io/v1"));
    default("kind", json!("KubeSchedulerConfiguration"));
    default("leaderElection", json!({"leaderElect": false}));
    merge(&mut value, &json!({"clientConnection": {"kubeconfig": kubeconfig}}));
    Ok(value)
}

/// Puts `patch` over `base`: objects field by field, anything else as a whole.
fn merge(base: &mut Value, patch: &Value) {
    match (base, patch) {
        (Value::Object(base), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, patch) => *base = patch.clone(),
    }
}

fn audit_policy() -> Value {
    json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [{"level": "Metadata"}],
    })
}

fn containerd(state: &State, binaries: &Binaries) -> String {
    let dir = state.dir.join("containerd");
    let dir = dir.display();
    let conf = state.dir.join("cni/conf");
    format!(
        "version = 3
root = '{dir}/lib'
state = '{dir}/run'
disabled_plugins = ['io.containerd.nri.v1.nri', 'io.containerd.internal.v1.opt']

[grpc]
  address = '{socket}'

[ttrpc]
  address = '{dir}/ttrpc.sock'

[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = '{pause}'

[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  tolerate_missing_hugetlb_controller = true
  netns_mounts_under_state_dir = true
  enable_cdi = true
  cdi_spec_dirs = ['/etc/cdi', '/var/run/cdi']

  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ['{bin}']
    conf_dir = '{conf}'

  [plugins.'io.containerd.cri.v1.runtime'.containerd]
    default_runtime_name = 'runc'

    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
      runtime_type = 'io.containerd.runc.v2'

      [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
        SystemdCgroup = false
",
        socket = state.containerd_socket().display(),
        pause = image::PAUSE,
        bin = binaries.cni_dir().display(),
        conf = conf.display(),
    )
}

fn cni(state: &State) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "tessera",
        "plugins": [{
            "type": "ptp",
            "ipam": {
                "type": "host-local",
                "dataDir": state.dir.join("cni/addresses"),
                "ranges": [[{
                    "subnet": state.addresses().pods(),
                    "gateway": state.addresses().node(),
                }]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }],
    })
}

fn kubelet(state: &State, binaries: &Binaries) -> Value {
    let pki = state.pki();
    let (cert, key) = pki.server();
    let mut config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": state.addresses().node(),
        "port": state.ports.kubelet,
        "readOnlyPort": 0,
        "healthzBindAddress": "127.0.0.1",
        "healthzPort": state.ports.kubelet_healthz,
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": pki.ca_cert()},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": cert,
        "tlsPrivateKeyFile": key,
        "containerRuntimeEndpoint": format!("unix://{}", state.containerd_socket().display()),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": state.branch().kubelet_root(),
        "enforceNodeAllocatable": ["pods"],
        "failSwapOn": false,
        "makeIPTablesUtilChains": false,
        "localStorageCapacityIsolation": true,
        // A developer's disk is often nearly full; pods must not be evicted for it.
        "evictionHard": {
            "memory.available": "50Mi",
            "nodefs.available": "0%",
            "nodefs.inodesFree": "0%",
            "imagefs.available": "0%",
        },
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
    });
    if binaries.kubernetes_minor() >= 31 {
        // Newer kubelets refuse version 1 of cgroups unless told otherwise.
        merge(&mut config, &json!({"failCgroupV1": false}));
    }
    if !Path::new("/etc/resolv.conf").exists() {
        merge(&mut config, &json!({"resolvConf": ""}));
    }
    merge(&mut config, &state.kubelet_config);
    config
}

fn kube_proxy(state: &State) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": state.kubeconfig(User::KubeProxy)},
        "hostnameOverride": state.node_name,
        "clusterCIDR": state.addresses().pods(),
        "healthzBindAddress": format!("127.0.0.1:{}", state.ports.proxy_healthz),
        "metricsBindAddress": format!("127.0.0.1:{}", state.ports.proxy_metrics),
        // The machine's own limits stay as they are.
        "conntrack": {"maxPerCore": 0, "min": 0,
            "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    })
}

/// Runs first in the node's mount namespace. Mounts made by the kubelet must
/// reach containers, so everything is shared there; and nothing reaches the
/// machine, because the namespace was made private before.
fn node_script(state: &State, binaries: &Binaries) -> String {
    let mut script = String::from("set -e\nmount --make-rshared /\n");
    for (from, to) in state.binds() {
        script.push_str(&format!(
            "mount --bind {} {}\n",
            quote(&from.to_string_lossy()),
            quote(&to.to_string_lossy())
        ));
    }
    script.push_str(&format!("exec {}\n", quote(&binaries.pause().to_string_lossy())));
    script
}

fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// The command line of a component.
pub(crate) fn launch(state: &State, binaries: &Binaries, component: Component) -> Launch {
    let addresses = state.addresses();
    let ports = &state.ports;
    let pki = state.pki();
    let path = |p: &Path| p.display().to_string();
    let (server_cert, server_key) = pki.server();
    let (client_cert, client_key) = pki.client();
    let (account_public, account_key) = pki.service_account();
    let ca = path(&pki.ca_cert());
    let mut env = BTreeMap::new();
    let flag = |name: &str, value: String| format!("--{name}={value}");
    let (program, mut args) = match component {
        Component::Etcd => {
            let client = format!("https://127.0.0.1:{}", ports.etcd);
            let peer = format!("https://127.0.0.1:{}", ports.etcd_peer);
            let mut args = vec![
                flag("name", "tessera".to_owned()),
                flag("data-dir", path(&state.dir.join("etcd/data"))),
                // A cluster that dies with the machine need not wait for its disk.
                "--unsafe-no-fsync".to_owned(),
                flag("listen-client-urls", client.clone()),
                flag("advertise-client-urls", client),
                flag("listen-peer-urls", peer.clone()),
                flag("initial-advertise-peer-urls", peer.clone()),
                flag("initial-cluster", format!("tessera={peer}")),
                flag("log-level", "warn".to_owned()),
            ];
            for prefix in ["", "peer-"] {
                args.extend([
                    flag(&format!("{prefix}cert-file"), path(&server_cert)),
                    flag(&format!("{prefix}key-file"), path(&server_key)),
                    flag(&format!("{prefix}trusted-ca-file"), ca.clone()),
                    format!("--{prefix}client-cert-auth"),
                ]);
            }
            (binaries.etcd(), args)
        }
        Component::Apiserver => (
            binaries.kube_apiserver(),
            vec![
                flag("etcd-servers", format!("https://127.0.0.1:{}", ports.etcd)),
                flag("etcd-cafile", ca.clone()),
                flag("etcd-certfile", path(&client_cert)),
                flag("etcd-keyfile", path(&client_key)),
                flag("bind-address", addresses.node().to_string()),
                flag("advertise-address", addresses.node().to_string()),
                flag("secure-port", ports.apiserver.to_string()),
                flag("tls-cert-file", path(&server_cert)),
                flag("tls-private-key-file", path(&server_key)),
                flag("client-ca-file", ca.clone()),
                flag("token-auth-file", path(&pki.tokens())),
                flag("authorization-mode", "Node,RBAC".to_owned()),
                flag("enable-admission-plugins", "NodeRestriction".to_owned()),
                flag("allow-privileged", "true".to_owned()),
                flag("service-account-issuer", "https://kubernetes.default.svc".to_owned()),
                flag("service-account-key-file", path(&account_public)),
                flag("service-account-signing-key-file", path(&account_key)),
                flag("service-cluster-ip-range", addresses.services()),
                flag("kubelet-client-certificate", path(&client_cert)),
                flag("kubelet-client-key", path(&client_key)),
                flag("kubelet-certificate-authority", ca.clone()),
                flag("kubelet-preferred-address-types", "InternalIP".to_owned()),
                // Webhooks behind a Service are called at their pod, with or
                // without kube-proxy.
                flag("enable-aggregator-routing", "true".to_owned()),
                // Without it, the end of the server waits a whole minute for
                // watches that nobody tells to end.
                flag("shutdown-watch-termination-grace-period", "1s".to_owned()),
                flag("audit-policy-file", path(&state.dir.join("audit-policy.json"))),
                flag("audit-log-path", path(&state.audit_log())),
                // In MB: a rotated log would lose what a mark was set for.
                flag("audit-log-maxsize", "100000".to_owned()),
                // A request is answered after its record is written, so a
                // count taken afterwards is complete.
                flag("audit-log-mode", "blocking".to_owned()),
            ],
        ),
        Component::ControllerManager => (
            binaries.kube_controller_manager(),
            vec![
                flag("kubeconfig", path(&state.kubeconfig(User::ControllerManager))),
                flag("bind-address", "127.0.0.1".to_owned()),
                flag("secure-port", ports.controller_manager.to_string()),
                flag("cert-dir", path(&state.dir.join("tmp"))),
                flag("leader-elect", "false".to_owned()),
                flag("use-service-account-credentials", "true".to_owned()),
                flag("root-ca-file", ca.clone()),
                flag("service-account-private-key-file", path(&account_key)),
                flag("cluster-signing-cert-file", ca.clone()),
                flag("cluster-signing-key-file", path(&pki.ca_key())),
            ],
        ),
        Component::Scheduler => (
            binaries.kube_scheduler(),
            vec![
                flag("config", path(&state.dir.join("scheduler-config.json"))),
                flag("bind-address", "127.0.0.1".to_owned()),
                flag("secure-port", ports.scheduler.to_string()),
                flag("cert-dir", path(&state.dir.join("tmp"))),
            ],
        ),
        Component::Namespace => (
            Path::new("unshare"),
            vec![
                "--mount".to_owned(),
                "--propagation".to_owned(),
                "private".to_owned(),
                "sh".to_owned(),
                path(&state.dir.join("node.sh")),
            ],
        ),
        Component::Containerd => {
            // Only image pulls leave the machine.
            for name in ["HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"] {
                if let Ok(value) = std::env::var(name) {
                    env.insert(name, value);
                }
            }
            (
                binaries.containerd(),
                vec!["--config".to_owned(), path(&state.dir.join("containerd/config.toml"))],
            )
        }
        Component::Kubelet => {
            let mut args = vec![
                flag("config", path(&state.dir.join("kubelet-config.json"))),
                flag("kubeconfig", path(&state.kubeconfig(User::Kubelet))),
                flag("root-dir", "/var/lib/kubelet".to_owned()),
                flag("hostname-override", state.node_name.clone()),
                flag("node-ip", addresses.node().to_string()),
            ];
            if !state.node_labels.is_empty() {
                let labels: Vec<String> = state.node_labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
                args.push(flag("node-labels", labels.join(",")));
            }
            (binaries.kubelet(), args)
        }
        Component::KubeProxy => (
            binaries.kube_proxy(),
            vec![flag("config", path(&state.dir.join("kube-proxy-config.json")))],
        ),
    };
    args.extend(
        state
            .extra_args
            .iter()
            .filter(|(c, _)| *c == component)
            .map(|(_, arg)| arg.clone()),
    );

    // A bare environment: proxies and locales of the caller change nothing.
    let beside = binaries.containerd().parent().map(path).unwrap_or_default();
    env.insert(
        "PATH",
        format!("{beside}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    );
    env.insert("HOME", "/root".to_owned());
    env.insert("TMPDIR", path(&state.dir.join("tmp")));
    Launch {
        program: program.to_path_buf(),
        args,
        env,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scheduler_configuration_is_completed_and_its_own_choices_are_kept() {
        let text = "
apiVersion: kubescheduler.config.k8s.io/v1
kind: KubeSchedulerConfiguration
leaderElection: {leaderElect: true}
clientConnection: {qps: 100, kubeconfig: /elsewhere}
extenders:
  - urlPrefix: https://127.0.0.1:9443
    filterVerb: filter
";
        let value = scheduler(text, Path::new("/state/scheduler.kubeconfig")).unwrap();
        assert_eq!(value["leaderElection"]["leaderElect"], true);
        assert_eq!(value["clientConnection"]["qps"], 100);
        assert_eq!(value["clientConnection"]["kubeconfig"], "/state/scheduler.kubeconfig");
        assert_eq!(value["extenders"][0]["filterVerb"], "filter");

        let value = scheduler("{}", Path::new("/k")).unwrap();
        assert_eq!(value["kind"], "KubeSchedulerConfiguration");
        assert_eq!(value["leaderElection"]["leaderElect"], false);
        assert!(scheduler("- a list", Path::new("/k")).is_err());
    }

    #[test]
    fn a_quote_in_a_path_does_not_end_the_word() {
        let said = std::process::Command::new("sh")
            .args(["-c", &format!("printf %s {}", quote("it's $HOME"))])
            .output()
            .unwrap();
        assert_eq!(said.stdout, b"it's $HOME");
    }
}
