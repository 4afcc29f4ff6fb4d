//! What the kubelet says about pods and ids: its checkpoint and its own API.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tessera_kubelet::checkpoint::{Checkpoint, FILE_NAME};
use tessera_kubelet::podresources::{self, Holding};
use tracing::{info, warn};

use crate::answer;
use crate::book::{KubeletView, Truth};
use crate::desk::chain;

/// Patience with the kubelet's own API. On a busy machine its answer takes a
/// while, and it is worth it.
const PATIENT: Duration = Duration::from_secs(2);
/// The same after it did not answer, while the kubelet waits for us.
const BRISK: Duration = Duration::from_millis(200);

/// Which version of the checkpoint was read. It is replaced by rename.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    changed: (i64, i64),
    bytes: u64,
}

/// The kubelet's two records of one resource.
#[derive(Debug)]
pub struct Witness {
    plugin_dir: PathBuf,
    socket: PathBuf,
    resource: String,
    read: Mutex<Option<(Stamp, Arc<[Truth]>)>>,
    silent: AtomicBool,
}

impl Witness {
    /// The records below these paths. Nothing is opened yet.
    #[must_use]
    pub fn new(plugin_dir: PathBuf, socket: PathBuf, resource: String) -> Self {
        Self {
            plugin_dir,
            socket,
            resource,
            read: Mutex::new(None),
            silent: AtomicBool::new(false),
        }
    }

    /// Who holds what by the checkpoint; `None` when there is none. A file that
    /// did not change is not parsed again.
    ///
    /// # Errors
    /// When the file cannot be read or does not parse.
    pub fn checkpoint(&self) -> Result<Option<Arc<[Truth]>>, String> {
        let stamp = std::fs::metadata(self.plugin_dir.join(FILE_NAME))
            .ok()
            .map(|meta| Stamp {
                inode: meta.ino(),
                changed: (meta.mtime(), meta.mtime_nsec()),
                bytes: meta.len(),
            });
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some((known, truth)), Some(stamp)) = (&*read, stamp)
            && *known == stamp
        {
            return Ok(Some(Arc::clone(truth)));
        }
        // The stamp is older than the text, so a change in between is seen
        // next time.
        let checkpoint = Checkpoint::read(&self.plugin_dir).map_err(|error| chain(&error))?;
        let truth = checkpoint.map(|checkpoint| self.truth(&checkpoint));
        *read = stamp.zip(truth.clone());
        Ok(truth)
    }

    fn truth(&self, checkpoint: &Checkpoint) -> Arc<[Truth]> {
        checkpoint
            .of_resource(&self.resource)
            .filter_map(|entry| {
                let response = entry.response.as_ref();
                Some(Truth {
                    grant: response.and_then(answer::grant_in),
                    ids: entry.device_ids.clone(),
                    cards: response.map(answer::cards_in).unwrap_or_default(),
                    limited: response.is_some_and(answer::mounts_grant),
                    uid: tessera_types::PodUid::new(&entry.pod_uid).ok()?,
                    container: entry.container.clone(),
                })
            })
            .collect()
    }

    /// The checkpoint, or nothing when it cannot be used, which is told.
    #[must_use]
    pub fn held(&self) -> Option<Arc<[Truth]>> {
        self.checkpoint().unwrap_or_else(|error| {
            warn!(%error, "Cannot use the kubelet's checkpoint.");
            None
        })
    }

    /// Both records, for the moment in which the kubelet asks for a preference.
    pub async fn view(&self) -> KubeletView {
        let patience = if self.silent.load(Ordering::Relaxed) {
            BRISK
        } else {
            PATIENT
        };
        let pods = match podresources::pods(&self.socket, &self.resource, patience).await {
            Ok(pods) => {
                if self.silent.swap(false, Ordering::Relaxed) {
                    info!("The kubelet says again which pods it knows.");
                }
                Some(pods.into_iter().map(|pod| (pod.namespace, pod.name)).collect())
            }
            Err(error) => {
                if !self.silent.swap(true, Ordering::Relaxed) {
                    warn!(socket = %self.socket.display(), error = %chain(&error),
                        "The kubelet does not say which pods it knows; owners are found by their cards and order.");
                }
                None
            }
        };
        KubeletView {
            held: self.held(),
            pods,
        }
    }

    /// Who holds which ids by the kubelet's API: names without uids, no init
    /// containers, and not which grant.
    pub async fn holder(&self, ids: &BTreeSet<String>) -> Option<Holding> {
        match podresources::holders(&self.socket, &self.resource, PATIENT).await {
            Ok(holders) => holders.into_iter().find(|holder| holder.device_ids == *ids),
            Err(error) => {
                warn!(error = %chain(&error), "The kubelet does not say who holds the ids.");
                None
            }
        }
    }
}
