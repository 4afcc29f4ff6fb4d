//! Starting, steering and stopping one cluster.

mod builder;
mod probe;

use std::fs::OpenOptions;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Node, ServiceAccount};
use kube::api::Api;
use kube::config::{KubeConfigOptions, Kubeconfig};
use rustix::process::Signal;

use crate::audit::AuditLog;
use crate::binaries::Binaries;
use crate::component::Component;
use crate::config::{self, SchedulerConfig};
use crate::error::{Error, IoContext, KubeContext};
use crate::host;
use crate::image::{self, Image};
use crate::leftovers::Leftovers;
use crate::pki::User;
use crate::process::{ProcessId, log_tail, poll_until, run};
use crate::progress::Progress;
use crate::registry::Registry;
use crate::state::State;
use crate::teardown;
use crate::wait::await_condition;

pub use builder::ClusterBuilder;

/// Deadline for a component to answer, on a machine busy with other work.
const READY: Duration = Duration::from_secs(120);
/// The API server ends its watches and takes several seconds for it.
const TERMINATE: Duration = Duration::from_secs(90);
const KILL: Duration = Duration::from_secs(20);

/// A running cluster.
///
/// Dropping it stops the cluster as well as it can and logs what failed; a
/// test calls [`Cluster::stop`] to be told. A detached cluster stays.
#[derive(Debug)]
pub struct Cluster {
    inner: Arc<Inner>,
    /// Whether this value ends the cluster when it goes.
    owned: bool,
}

#[derive(Debug)]
struct Inner {
    state: State,
    binaries: Binaries,
    progress: Progress,
    /// Children of this process, kept to take their exit status.
    children: Mutex<Vec<Child>>,
}

impl Inner {
    fn reap(&self) {
        self.children
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain_mut(|child| !matches!(child.try_wait(), Ok(Some(_)) | Err(_)));
    }

    fn spawn(&self, component: Component) -> Result<(), Error> {
        let state = &self.state;
        let launch = config::launch(state, &self.binaries, component);
        let procs = state.branch().daemons_file().ok_or_else(|| Error::StateDir {
            path: state.dir.clone(),
            reason: "its cgroup is gone".to_owned(),
        })?;
        let log_path = state.log(component);
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log_path)
            .at("open", &log_path)?;
        let errors = log.try_clone().at("open", &log_path)?;

        let mut command = Command::new("sh");
        command
            // Into the cluster's cgroup before anything can be forked, and
            // into a session of its own, safe from the terminal's signals.
            // Each program replaces the one before, so the pid stays.
            .args(["-c", "echo $$ > \"$1\" && shift && exec setsid \"$@\"", "sh"])
            .arg(procs);
        if component.on_node() {
            let holder = state.alive(Component::Namespace).ok_or_else(|| Error::Died {
                component: Component::Namespace,
                tail: log_tail(&state.log(Component::Namespace)),
            })?;
            command
                .arg("nsenter")
                .arg(format!("--mount=/proc/{}/ns/mnt", holder.pid))
                .arg("--");
        }
        let child = command
            .arg(&launch.program)
            .args(&launch.args)
            .env_clear()
            .envs(&launch.env)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .map_err(|source| Error::Spawn {
                program: component.to_string(),
                source,
            })?;
        let pid = i32::try_from(child.id()).unwrap_or(i32::MAX);
        let id = ProcessId::of(pid);
        self.children.lock().unwrap_or_else(PoisonError::into_inner).push(child);
        if let Some(id) = id {
            state.record(component, &id)?;
        }
        tracing::debug!(%component, pid, "Started component.");
        Ok(())
    }

    fn end(&self, component: Component, signal: Signal, deadline: Duration) -> Result<(), Error> {
        let Some(id) = self.state.alive(component) else {
            return Ok(());
        };
        id.signal(signal);
        let dead = id.wait_dead(Instant::now() + deadline);
        self.reap();
        if dead {
            return Ok(());
        }
        Err(Error::Timeout {
            what: format!("end of {component}"),
            deadline,
            hint: String::new(),
        })
    }

    /// Starts the holder of the mount namespace unless it is there. It is
    /// ready when its script has become the program that waits.
    fn start_namespace(&self) -> Result<(), Error> {
        let component = Component::Namespace;
        if self.state.alive(component).is_none() {
            let registry = Registry::open()?;
            for (_, point) in self.state.binds() {
                registry.ensure_mount_point(&point)?;
            }
            drop(registry);
            self.spawn(component)?;
        }
        let mut ready = false;
        poll_until(READY, || match self.state.alive(component) {
            None => true,
            Some(id) => {
                ready = std::fs::read_to_string(format!("/proc/{}/comm", id.pid))
                    .is_ok_and(|name| name.trim_end() == "pause");
                ready
            }
        });
        if ready {
            return Ok(());
        }
        Err(Error::Died {
            component,
            tail: log_tail(&self.state.log(component)),
        })
    }

    fn network_up(&self) -> Result<(), Error> {
        let state = &self.state;
        let (table, port) = (state.table(), state.ports.apiserver);
        state.addresses().up(&table, &state.dir, port)
    }

    fn import(&self, image: &Image) -> Result<(), Error> {
        run(Command::new(self.binaries.ctr())
            .arg("--address")
            .arg(self.state.containerd_socket())
            .args(["--namespace", "k8s.io", "images", "import"])
            .arg(&image.archive))
        .map(drop)
    }
}

/// Runs blocking work off the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => Err(Error::Config {
                what: "runtime",
                reason: error.to_string(),
            }),
        },
    }
}

impl Cluster {
    /// Starts with the defaults: a fresh state folder, one node `node-1`,
    /// everything stopped at the end.
    pub fn builder() -> ClusterBuilder {
        ClusterBuilder::default()
    }

    /// The cluster that runs in a state folder, from whichever process it was
    /// started; `None` when none does. Some of its components may be dead:
    /// [`Cluster::repair`] starts those again.
    ///
    /// # Errors
    /// When the folder cannot be read, or the binaries are gone.
    pub async fn attach(state_dir: impl AsRef<Path>) -> Result<Option<Self>, Error> {
        let dir = state_dir.as_ref().to_path_buf();
        blocking(move || {
            let Ok(dir) = dir.canonicalize() else {
                return Ok(None);
            };
            let Some(state) = State::load(&dir)? else {
                return Ok(None);
            };
            if !builder::is_prepared(&state) || !teardown::is_running(&state) {
                return Ok(None);
            }
            Ok(Some(Self {
                owned: false,
                inner: Arc::new(Inner {
                    state,
                    binaries: Binaries::ensure(&Progress::silent())?,
                    progress: Progress::silent(),
                    children: Mutex::default(),
                }),
            }))
        })
        .await
    }

    /// Stops and removes whatever is in a state folder: a running cluster, or
    /// the half of one that an interrupted start left. An empty or missing
    /// folder is no error.
    ///
    /// # Errors
    /// When something could not be removed; it is named in the error.
    pub async fn destroy(state_dir: impl AsRef<Path>) -> Result<(), Error> {
        let dir = state_dir.as_ref().to_path_buf();
        blocking(move || {
            let Ok(dir) = dir.canonicalize() else {
                return Ok(());
            };
            match State::load(&dir)? {
                Some(state) => {
                    host::require_root()?;
                    teardown::destroy(&state)
                }
                None => Ok(()),
            }
        })
        .await
    }

    /// What of the cluster of a state folder is still on this machine.
    pub fn leftovers(state_dir: impl AsRef<Path>) -> Leftovers {
        let dir = state_dir.as_ref();
        let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_path_buf());
        Leftovers::of(&dir)
    }

    /// Stops everything and removes every trace, the state folder included.
    /// Pods are asked to end and killed after two seconds.
    ///
    /// # Errors
    /// When something could not be removed; it is named in the error.
    pub async fn stop(mut self) -> Result<(), Error> {
        self.owned = false;
        let inner = Arc::clone(&self.inner);
        blocking(move || {
            let result = teardown::destroy(&inner.state);
            inner.reap();
            result
        })
        .await
    }

    /// Leaves the cluster running when this value goes. Such a cluster counts
    /// as abandoned once this process ends, unless it was started
    /// [detached](ClusterBuilder::detached).
    pub fn leave_running(mut self) {
        self.owned = false;
    }

    /// Brings a fresh or a half-dead cluster to readiness: every step that is
    /// done already is skipped.
    async fn bring_up(&self) -> Result<(), Error> {
        let inner = &self.inner;
        let state = &inner.state;
        let step = |text: &str| inner.progress.step(text);

        step("Starting the control plane");
        let shared = Arc::clone(inner);
        blocking(move || {
            shared.state.branch().create()?;
            shared.network_up()
        })
        .await?;
        self.spawn_if_dead(Component::Etcd)?;
        if state.node {
            let shared = Arc::clone(inner);
            blocking(move || shared.start_namespace()).await?;
            self.spawn_if_dead(Component::Containerd)?;
        }
        self.wait_ready(Component::Etcd).await?;
        self.spawn_if_dead(Component::Apiserver)?;
        if state.node {
            self.wait_ready(Component::Containerd).await?;
            let shared = Arc::clone(inner);
            blocking(move || {
                let pause = image::pause(&shared.binaries, &shared.progress)?;
                shared.import(&pause)
            })
            .await?;
        }
        self.wait_ready(Component::Apiserver).await?;
        step("Starting the controllers and the node");
        let rest: Vec<Component> = state
            .components()
            .into_iter()
            .filter(|c| {
                !matches!(
                    c,
                    Component::Etcd | Component::Apiserver | Component::Namespace | Component::Containerd
                )
            })
            .collect();
        for component in &rest {
            self.spawn_if_dead(*component)?;
        }
        for component in &rest {
            self.wait_ready(*component).await?;
        }
        self.wait_usable().await
    }

    fn spawn_if_dead(&self, component: Component) -> Result<(), Error> {
        if self.inner.state.alive(component).is_some() {
            return Ok(());
        }
        self.inner.spawn(component)
    }

    /// Pods can be created and the node takes them.
    async fn wait_usable(&self) -> Result<(), Error> {
        let client = self.kube().await?;
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
        await_condition(
            &accounts,
            "default",
            "creation of the default service account",
            |account: Option<&ServiceAccount>| account.is_some(),
            READY,
        )
        .await
        .map_err(|e| self.with_log(e, Component::ControllerManager))?;
        if !self.inner.state.node {
            return Ok(());
        }
        let name = self.node_name();
        await_condition(
            &Api::<Node>::all(client),
            name,
            &format!("node {name} becoming ready"),
            |node: Option<&Node>| node.is_some_and(node_is_ready),
            READY,
        )
        .await
        .map_err(|e| self.with_log(e, Component::Kubelet))
        .map(drop)
    }

    fn with_log(&self, error: Error, component: Component) -> Error {
        match error {
            Error::Timeout { what, deadline, .. } => Error::Timeout {
                what,
                deadline,
                hint: probe::hint(&self.inner.state, component),
            },
            other => other,
        }
    }

    async fn wait_ready(&self, component: Component) -> Result<(), Error> {
        let client = match component {
            Component::Apiserver => Some(self.kube().await?),
            _ => None,
        };
        probe::wait_ready(&self.inner.state, component, client.as_ref(), READY).await
    }

    /// Starts the components that are dead and waits until all are ready.
    ///
    /// # Errors
    /// As for [`ClusterBuilder::start`].
    pub async fn repair(&self) -> Result<(), Error> {
        self.bring_up().await
    }

    /// Components that should run and do not.
    pub fn dead_components(&self) -> Vec<Component> {
        let state = &self.inner.state;
        state
            .components()
            .into_iter()
            .filter(|c| state.alive(*c).is_none())
            .collect()
    }

    /// Kills a component with SIGKILL and waits until it is gone. A dead one
    /// is no error.
    ///
    /// # Errors
    /// [`Error::Timeout`] when the kernel does not let go of it.
    pub async fn kill(&self, component: Component) -> Result<(), Error> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.end(component, Signal::KILL, KILL)).await
    }

    /// Asks a component to end (SIGTERM) and waits until it has, which takes
    /// the API server several seconds.
    ///
    /// # Errors
    /// [`Error::Timeout`] when it does not end.
    pub async fn terminate(&self, component: Component) -> Result<(), Error> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.end(component, Signal::TERM, TERMINATE)).await
    }

    /// Starts a dead component as it was and waits until it is ready.
    ///
    /// # Errors
    /// [`Error::Died`] or [`Error::Timeout`] with the end of its log;
    /// [`Error::Config`] when the cluster has no such component.
    pub async fn start_component(&self, component: Component) -> Result<(), Error> {
        if !self.inner.state.components().contains(&component) {
            return Err(Error::Config {
                what: "component",
                reason: format!("this cluster runs no {component}"),
            });
        }
        if component == Component::Namespace {
            let inner = Arc::clone(&self.inner);
            return blocking(move || inner.start_namespace()).await;
        }
        self.spawn_if_dead(component)?;
        self.wait_ready(component).await
    }

    /// Kills a component with SIGKILL, starts it again and waits until it is ready.
    ///
    /// # Errors
    /// As for [`Cluster::kill`] and [`Cluster::start_component`].
    pub async fn restart(&self, component: Component) -> Result<(), Error> {
        self.kill(component).await?;
        self.start_component(component).await
    }

    /// Gives kube-scheduler another configuration and starts it with that.
    ///
    /// # Errors
    /// [`Error::Config`] when the text is no configuration, [`Error::Died`]
    /// when the scheduler refuses it.
    pub async fn set_scheduler(&self, config: SchedulerConfig) -> Result<(), Error> {
        if config == SchedulerConfig::Off {
            return self.kill(Component::Scheduler).await;
        }
        config::write_scheduler(&self.inner.state, &config)?;
        self.restart(Component::Scheduler).await
    }

    /// Pid of a component; `None` when it is dead.
    pub fn pid(&self, component: Component) -> Option<i32> {
        self.inner.state.alive(component).map(|id| id.pid)
    }

    /// Brings an image into the node, where pods name it by [`Image::name`]
    /// with the pull policy `Never` or `IfNotPresent`.
    ///
    /// # Errors
    /// When the archive cannot be imported.
    pub async fn load_image(&self, image: &Image) -> Result<(), Error> {
        let inner = Arc::clone(&self.inner);
        let image = image.clone();
        blocking(move || inner.import(&image)).await
    }

    /// A client with all rights.
    ///
    /// # Errors
    /// When the kubeconfig cannot be read.
    pub async fn kube(&self) -> Result<kube::Client, Error> {
        let path = self.kubeconfig();
        let file = Kubeconfig::read_from(&path).asking("read the admin's kubeconfig")?;
        let mut config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
            .await
            .asking("read the admin's kubeconfig")?;
        // The API server is on this machine; a proxy cannot reach it.
        config.proxy_url = None;
        kube::Client::try_from(config).asking("make a client")
    }

    /// Kubeconfig file of a user with all rights.
    pub fn kubeconfig(&self) -> PathBuf {
        self.inner.state.kubeconfig(User::Admin)
    }

    /// URL of the API server: `https://10.234.<n>.1:<port>`.
    pub fn api_url(&self) -> String {
        self.inner.state.api_url()
    }

    /// Address of the node; it is an address of this machine.
    pub fn node_ip(&self) -> Ipv4Addr {
        self.inner.state.addresses().node()
    }

    /// Name of the node object.
    pub fn node_name(&self) -> &str {
        &self.inner.state.node_name
    }

    /// Folder of everything that this cluster keeps.
    pub fn state_dir(&self) -> &Path {
        &self.inner.state.dir
    }

    /// The programs that it runs, and `kubectl` and `helm` of the same version.
    pub fn binaries(&self) -> &Binaries {
        &self.inner.binaries
    }

    /// What the node has at `/var/lib/kubelet`: `device-plugins`,
    /// `plugins_registry`, `pod-resources`, `pods`. Sockets in it may be used
    /// from either side.
    pub fn kubelet_dir(&self) -> PathBuf {
        self.inner.state.dir.join("kubelet")
    }

    /// What the node has at `/var/run/cdi`.
    pub fn cdi_dir(&self) -> PathBuf {
        self.inner.state.dir.join("cdi/run")
    }

    /// Host side of a [private path](ClusterBuilder::private_path).
    pub fn private_dir(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        let below_root = path.strip_prefix("/").unwrap_or(path);
        self.inner.state.dir.join("private").join(below_root)
    }

    /// Socket of containerd, for `ctr --address` and CRI clients.
    pub fn containerd_socket(&self) -> PathBuf {
        self.inner.state.containerd_socket()
    }

    /// The file system as the node sees it, with its own mounts; `None` when
    /// the holder of its namespace is dead.
    pub fn node_root(&self) -> Option<PathBuf> {
        self.pid(Component::Namespace)
            .map(|pid| PathBuf::from(format!("/proc/{pid}/root")))
    }

    /// Log file of a component, kept across its restarts.
    pub fn log(&self, component: Component) -> PathBuf {
        self.inner.state.log(component)
    }

    /// The API server's record of all requests.
    pub fn audit(&self) -> AuditLog {
        AuditLog::new(self.inner.state.audit_log())
    }
}

fn node_is_ready(node: &Node) -> bool {
    node.status
        .as_ref()
        .and_then(|s| s.conditions.as_ref())
        .is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        if let Err(error) = teardown::destroy(&self.inner.state) {
            tracing::error!(%error, "Cluster was not removed.");
        }
        self.inner.reap();
    }
}
