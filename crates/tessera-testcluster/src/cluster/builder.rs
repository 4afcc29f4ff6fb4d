//! What a cluster shall be like, and its preparation.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::{Cluster, Inner, blocking};
use crate::binaries::Binaries;
use crate::component::Component;
use crate::config::{self, SchedulerConfig};
use crate::error::{Error, IoContext};
use crate::host;
use crate::network;
use crate::process::ProcessId;
use crate::progress::Progress;
use crate::registry::Registry;
use crate::state::{Ports, State};
use crate::teardown;

/// Folder for the state folders of tests.
const TEST_CLUSTERS: &str = "/var/lib/tessera";
/// A unix socket's path has at most 107 bytes, and the node puts its own
/// folders and names behind the state folder.
const DIR_BYTES_MAX: usize = 50;
/// Written when all files of the state are in place.
const PREPARED: &str = "prepared";

/// The settings of a cluster that is to be started.
#[derive(Clone, Debug)]
pub struct ClusterBuilder {
    dir: Option<PathBuf>,
    node_name: String,
    node_labels: Vec<(String, String)>,
    node: bool,
    scheduler: SchedulerConfig,
    kube_proxy: bool,
    detached: bool,
    private_paths: Vec<PathBuf>,
    extra_args: Vec<(Component, String)>,
    kubelet_config: serde_json::Value,
    binaries: Option<Binaries>,
    progress: Progress,
}

impl Default for ClusterBuilder {
    fn default() -> Self {
        Self {
            dir: None,
            node_name: "node-1".to_owned(),
            node_labels: Vec::new(),
            node: true,
            scheduler: SchedulerConfig::Default,
            kube_proxy: false,
            detached: false,
            private_paths: Vec::new(),
            extra_args: Vec::new(),
            kubelet_config: serde_json::json!({}),
            binaries: None,
            progress: Progress::silent(),
        }
    }
}

impl ClusterBuilder {
    /// Keeps everything in this folder, which must be new, empty or of a dead
    /// cluster, and have a short path. It is removed when the cluster stops.
    /// Default: a fresh folder in `/var/lib/tessera`.
    #[must_use]
    pub fn state_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// Name of the node. Default: `node-1`.
    #[must_use]
    pub fn node_name(mut self, name: impl Into<String>) -> Self {
        self.node_name = name.into();
        self
    }

    /// Labels that the node registers with. The API server lets a node set no
    /// label of `kubernetes.io` but a few.
    #[must_use]
    pub fn node_labels<K: Into<String>, V: Into<String>>(mut self, labels: impl IntoIterator<Item = (K, V)>) -> Self {
        self.node_labels
            .extend(labels.into_iter().map(|(k, v)| (k.into(), v.into())));
        self
    }

    /// Control plane only: no containerd, no kubelet, no pods that run.
    #[must_use]
    pub fn without_node(mut self) -> Self {
        self.node = false;
        self
    }

    /// How kube-scheduler runs.
    #[must_use]
    pub fn scheduler(mut self, config: SchedulerConfig) -> Self {
        self.scheduler = config;
        self
    }

    /// Runs kube-proxy, so that every service works in pods and on the
    /// machine. Only one cluster of a machine can. Default: off.
    #[must_use]
    pub fn kube_proxy(mut self, on: bool) -> Self {
        self.kube_proxy = on;
        self
    }

    /// Gives the node an empty folder of its own at this absolute path, in
    /// place of the machine's: for host paths that pods write to. Its host
    /// side is [`Cluster::private_dir`].
    #[must_use]
    pub fn private_path(mut self, path: impl Into<PathBuf>) -> Self {
        self.private_paths.push(path.into());
        self
    }

    /// More flags for a component.
    #[must_use]
    pub fn args<S: Into<String>>(mut self, component: Component, args: impl IntoIterator<Item = S>) -> Self {
        self.extra_args.extend(args.into_iter().map(|a| (component, a.into())));
        self
    }

    /// Fields that are put over the kubelet's configuration, object by object.
    #[must_use]
    pub fn kubelet_config(mut self, patch: serde_json::Value) -> Self {
        self.kubelet_config = patch;
        self
    }

    /// Lets the cluster outlive this process, for `up`. It ends with
    /// [`Cluster::stop`] or [`Cluster::destroy`].
    #[must_use]
    pub fn detached(mut self) -> Self {
        self.detached = true;
        self
    }

    /// Programs to run. Default: [`Binaries::ensure`].
    #[must_use]
    pub fn binaries(mut self, binaries: Binaries) -> Self {
        self.binaries = Some(binaries);
        self
    }

    /// Where the steps are told.
    #[must_use]
    pub fn progress(mut self, progress: Progress) -> Self {
        self.progress = progress;
        self
    }

    /// Starts everything and waits until pods can be created and the node is
    /// ready. A start that fails leaves nothing behind.
    ///
    /// # Errors
    /// [`Error::NotRoot`], [`Error::MissingProgram`]; [`Error::AlreadyRunning`]
    /// and [`Error::StateDir`] for the folder; [`Error::Died`] and
    /// [`Error::Timeout`] with the end of the log.
    pub async fn start(self) -> Result<Cluster, Error> {
        let detached = self.detached;
        let cluster = blocking(move || self.prepare()).await?;
        match cluster.bring_up().await {
            Ok(()) => {
                let mut cluster = cluster;
                cluster.owned = !detached;
                Ok(cluster)
            }
            Err(error) => {
                // The first error is the one to tell.
                if let Err(second) = cluster.stop().await {
                    tracing::error!(error = %second, "Cluster was not removed.");
                }
                Err(error)
            }
        }
    }

    fn prepare(self) -> Result<Cluster, Error> {
        host::require_root()?;
        self.check()?;
        teardown::sweep();
        host::ensure(host::NODE_TOOLS, &self.progress)?;
        let binaries = match self.binaries.clone() {
            Some(binaries) => binaries,
            None => Binaries::ensure(&self.progress)?,
        };
        let dir = self.make_dir()?;
        let number = Registry::open()?.claim(&dir, self.detached)?;
        let state = State {
            number,
            ports: Ports::free(number)?,
            node_name: self.node_name,
            node_labels: self.node_labels,
            node: self.node,
            scheduler: self.scheduler != SchedulerConfig::Off,
            kube_proxy: self.kube_proxy,
            detached: self.detached,
            private_paths: self.private_paths,
            extra_args: self.extra_args,
            kubelet_config: self.kubelet_config,
            owner: ProcessId::current(),
            dir,
        };
        state.save()?;
        // From here on, dropping the value removes what was made.
        let cluster = Cluster {
            owned: true,
            inner: Arc::new(Inner {
                state,
                binaries,
                progress: self.progress,
                children: Mutex::default(),
            }),
        };
        let inner = &cluster.inner;
        config::write_all(&inner.state, &inner.binaries, &self.scheduler)?;
        let marker = inner.state.dir.join(PREPARED);
        fs::write(&marker, "").at("write", &marker)?;
        Ok(cluster)
    }

    fn check(&self) -> Result<(), Error> {
        if let Some(path) = self.private_paths.iter().find(|p| !p.is_absolute()) {
            return Err(Error::Config {
                what: "private path",
                reason: format!("`{}` is not absolute", path.display()),
            });
        }
        if self.kube_proxy && network::table_exists("ip", network::KUBE_PROXY_TABLE) {
            return Err(Error::Config {
                what: "kube-proxy",
                reason: "another one runs on this machine; stop its cluster first".to_owned(),
            });
        }
        Ok(())
    }

    fn make_dir(&self) -> Result<PathBuf, Error> {
        let Some(wanted) = &self.dir else {
            fs::create_dir_all(TEST_CLUSTERS).at("create folder", TEST_CLUSTERS)?;
            return tempfile::Builder::new()
                .prefix("c-")
                .tempdir_in(TEST_CLUSTERS)
                .at("create folder in", TEST_CLUSTERS)
                .map(tempfile::TempDir::keep);
        };
        fs::create_dir_all(wanted).at("create folder", wanted)?;
        let dir = wanted.canonicalize().at("resolve", wanted)?;
        check_dir(&dir)?;
        match State::load(&dir)? {
            Some(old) if is_prepared(&old) && teardown::is_running(&old) => {
                return Err(Error::AlreadyRunning(dir));
            }
            Some(old) => {
                teardown::destroy(&old)?;
                fs::create_dir_all(&dir).at("create folder", &dir)?;
            }
            None => {
                let mut entries = fs::read_dir(&dir).at("read folder", &dir)?;
                if entries.next().is_some() {
                    return Err(Error::StateDir {
                        path: dir,
                        reason: "it holds other files; name a new or empty folder".to_owned(),
                    });
                }
            }
        }
        Ok(dir)
    }
}

/// Whether an interrupted start came as far as having all files written.
pub(super) fn is_prepared(state: &State) -> bool {
    state.dir.join(PREPARED).exists()
}

fn check_dir(dir: &Path) -> Result<(), Error> {
    let refuse = |reason: String| Error::StateDir {
        path: dir.to_path_buf(),
        reason,
    };
    let text = dir.to_str().ok_or_else(|| refuse("the path is not UTF-8".to_owned()))?;
    if text.len() > DIR_BYTES_MAX {
        return Err(refuse(format!(
            "the path is longer than {DIR_BYTES_MAX} bytes, too long for the sockets in it"
        )));
    }
    // The path goes into TOML, flags with lists and shell words.
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '-' | '_' | '.');
    if !text.chars().all(plain) {
        return Err(refuse(
            "the path has characters other than letters, digits, `-`, `_` and `.`".to_owned(),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_with_other_files_is_never_taken() {
        let dir = tempfile::tempdir_in("/tmp").unwrap();
        fs::write(dir.path().join("precious"), "data").unwrap();
        let error = Cluster::builder().state_dir(dir.path()).make_dir().unwrap_err();
        assert!(matches!(error, Error::StateDir { .. }), "{error}");
        assert!(dir.path().join("precious").exists());
    }

    #[test]
    fn paths_that_would_break_sockets_or_files_are_refused() {
        assert!(check_dir(Path::new("/var/lib/tessera-up")).is_ok());
        assert!(check_dir(Path::new("/home/a b/state")).is_err());
        assert!(check_dir(Path::new("/home/a'b/state")).is_err());
        let long = format!("/{}", "x".repeat(DIR_BYTES_MAX));
        assert!(check_dir(Path::new(&long)).is_err());
    }
}
