//! What all handlers share.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tessera_engine::{Engine, admission};
use tessera_http::Health;
use tessera_kube::Client;
use tessera_kube::books::Books;
use tessera_kube::events::{About, Note, Recorder};
use tessera_kube::lease::{Sight, Sighting};
use tessera_kube::lock::NodeLocks;
use tessera_kube::reach::Reach;
use tessera_kube::writes::binding_carries_labels;
use tessera_types::{Allocation, Demand, NodeName, PodId, PodUid};
use tokio::sync::{OnceCell, watch};
use tokio::time::Instant;

use crate::args::{FilterMode, WriteAt};
use crate::metrics::Metrics;
use crate::wake::Waiting;

/// How the service behaves.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How many nodes filter answers.
    pub filter_mode: FilterMode,
    /// When the allocation is written.
    pub write_at: WriteAt,
    /// How long cards stay promised between filter and bind.
    pub assume_time: Duration,
    /// How long a request waits for the first picture of the cluster.
    pub sync_wait: Duration,
    /// How long a gang member waits for a node lock.
    pub lock_retry: Duration,
    /// How pods are admitted.
    pub admit: admission::Settings,
}

/// What the service is made of.
#[derive(Debug)]
pub struct Parts {
    /// Decides.
    pub engine: Engine,
    /// Remembers.
    pub books: Books,
    /// Writes.
    pub cluster: Cluster,
    /// Tells people.
    pub recorder: Recorder,
    /// Tells probes.
    pub health: Health,
    /// Whether the API server answers.
    pub reach: watch::Receiver<Reach>,
    /// The kube-scheduler's lease, if several replicas run.
    pub sighting: Option<Sighting>,
}

/// The API server.
pub struct Cluster {
    /// The client.
    pub client: Client,
    /// Node locks for plugins of other makers.
    pub locks: NodeLocks,
    carries_labels: OnceCell<bool>,
}

impl Cluster {
    /// The API server behind `client`. A lock that is older than `lock_timeout` is nobody's.
    #[must_use]
    pub fn new(client: Client, lock_timeout: Duration) -> Self {
        Self {
            locks: NodeLocks::new(client.clone(), lock_timeout),
            client,
            carries_labels: OnceCell::new(),
        }
    }

    /// Whether a Binding can carry all that a placed pod is given. Asked of the server once; `false` until it answers.
    pub(crate) async fn binds_in_one_write(&self) -> bool {
        let ask = || binding_carries_labels(&self.client);
        match self.carries_labels.get_or_try_init(ask).await {
            Ok(carries) => *carries,
            Err(error) => {
                tracing::debug!(error = %error, "Binding in two writes.");
                false
            }
        }
    }
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cluster")
    }
}

/// The service.
#[derive(Debug)]
pub struct App {
    pub(crate) engine: Engine,
    pub(crate) books: Books,
    pub(crate) cluster: Cluster,
    pub(crate) recorder: Recorder,
    pub(crate) health: Health,
    pub(crate) reach: watch::Receiver<Reach>,
    pub(crate) sighting: Option<Sighting>,
    pub(crate) settings: Settings,
    pub(crate) metrics: Metrics,
    pub(crate) waiting: Waiting,
    promises: Mutex<HashMap<PodUid, Arc<Promise>>>,
}

/// What filter decided and bind will carry out.
#[derive(Debug)]
pub(crate) struct Promise {
    pub(crate) demand: Demand,
    pub(crate) node: NodeName,
    pub(crate) allocation: Arc<Allocation>,
    /// When it was decided, Unix seconds.
    pub(crate) at: i64,
    /// Annotations to be removed: an earlier attempt's that this one does not write.
    pub(crate) stale: Vec<String>,
    /// The annotations are on the pod already.
    pub(crate) written: bool,
    /// A gang waits on it.
    pub(crate) gang: bool,
    pub(crate) until: Instant,
}

/// Promises kept before the lapsed ones are swept out.
const PROMISES_SWEEP: usize = 1024;

impl App {
    /// Puts the parts together.
    #[must_use]
    pub fn new(parts: Parts, settings: Settings) -> Arc<Self> {
        Arc::new(Self {
            engine: parts.engine,
            books: parts.books,
            cluster: parts.cluster,
            recorder: parts.recorder,
            health: parts.health,
            reach: parts.reach,
            sighting: parts.sighting,
            settings,
            metrics: Metrics::default(),
            waiting: Waiting::default(),
            promises: Mutex::default(),
        })
    }

    /// Waits for the first picture of the cluster, and makes sure that scheduling is ours to do.
    ///
    /// # Errors
    /// The text for the caller.
    pub(crate) async fn gate(&self) -> Result<(), String> {
        if !self.books.is_synced() {
            match tokio::time::timeout(self.settings.sync_wait, self.books.wait_synced()).await {
                Ok(Ok(())) => {}
                Ok(Err(closed)) => return Err(closed.to_string()),
                Err(_) => {
                    return Err(
                        "the scheduler has not yet read pods, nodes and quotas from the API server; \
                                see /readyz on its metrics port"
                            .to_owned(),
                    );
                }
            }
        }
        let Some(sighting) = &self.sighting else { return Ok(()) };
        match sighting.look().await {
            Ok(Sight::Ours | Sight::Nobody) => Ok(()),
            Ok(Sight::Other(holder)) => Err(format!(
                "this replica does not schedule, the kube-scheduler of `{holder}` leads"
            )),
            // The books still hold; binding will fail by itself if the server stays away.
            Err(error) => {
                tracing::debug!(error = %error, "Cannot see who leads, going on.");
                Ok(())
            }
        }
    }

    pub(crate) fn promises(&self) -> MutexGuard<'_, HashMap<PodUid, Arc<Promise>>> {
        self.promises.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers a promise until it is kept, replaced or lapsed.
    pub(crate) fn promise(&self, promise: Promise) -> Arc<Promise> {
        let promise = Arc::new(promise);
        let mut promises = self.promises();
        if promises.len() >= PROMISES_SWEEP && promises.len().is_power_of_two() {
            let now = Instant::now();
            promises.retain(|_, promise| promise.until > now);
        }
        promises.insert(promise.demand.pod.uid.clone(), Arc::clone(&promise));
        promise
    }

    pub(crate) fn tell(&self, pod: &PodId, warning: bool, reason: &'static str, message: impl Into<String>) {
        self.recorder.tell(Note {
            about: About::Pod(pod.clone()),
            warning,
            reason,
            message: message.into(),
        });
    }

    /// Annotation keys of an earlier allocation that a new one does not write.
    pub(crate) fn stale_keys(&self, has: &BTreeMap<String, String>, new: &BTreeMap<String, String>) -> Vec<String> {
        has.keys()
            .filter(|key| {
                !new.contains_key(*key)
                    && self
                        .engine
                        .vendors()
                        .iter()
                        .any(|vendor| vendor.keys().allocation().any(|ours| ours == *key))
            })
            .cloned()
            .collect()
    }
}

/// The wall clock, Unix seconds: what is written on pods.
pub(crate) fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}
