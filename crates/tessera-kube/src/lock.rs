//! The node lock, for nodes where a device plugin of another maker serves.
//!
//! Such a plugin learns which pod it serves from the lock on its node, so the lock must be there before the
//! Binding and the plugin takes it away. Our own agent proves the pod through the kubelet and needs none; this
//! module is then never called. The rules (what counts as held, when it may be taken over) are
//! [`tessera_wire::node_lock`]'s.

use std::time::Duration;

use jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tessera_wire::NodeView;
use tessera_wire::node_lock::{self, LockOwner, LockStep, NodeLock, OwnerState, Release, TimedStep};

use crate::api::{ApiError, ApiErrorKind, REQUEST_TIME, timed};
use crate::objects::Trimmed;
use crate::writes::read_pod;

/// Tries before a contended resource version is given up.
const TRIES: u32 = 5;

/// Takes and releases one annotation on nodes.
#[derive(Debug, Clone)]
pub struct NodeLocks {
    client: NodeApi,
    /// A lock older than this may be taken over, seconds.
    timeout_seconds: i64,
}

#[derive(Clone)]
struct NodeApi(Client);

impl std::fmt::Debug for NodeApi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NodeApi")
    }
}

impl NodeLocks {
    /// How old a lock may get before it is taken over, in seconds.
    #[must_use]
    pub fn timeout_seconds(&self) -> i64 {
        self.timeout_seconds
    }

    /// Locks lapse after `timeout`.
    #[must_use]
    pub fn new(client: Client, timeout: Duration) -> Self {
        Self {
            client: NodeApi(client),
            timeout_seconds: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        }
    }

    /// Takes the lock `key` of `node` for the pod; success if the pod has it already.
    ///
    /// `free` is asked after the node was read and before it is written. What it sees is therefore not older than the
    /// lock that the write replaces: a lock taken in between makes the write fail, and the node is read again.
    ///
    /// # Errors
    /// A live pod holds it, `free` refuses, or the server does not answer.
    pub async fn acquire<F>(&self, node: &str, key: &str, me: &LockOwner, free: impl Fn() -> F) -> Result<(), ApiError>
    where
        F: Future<Output = Result<(), ApiError>>,
    {
        let doing = || format!("locking node {node}");
        for attempt in 0..TRIES {
            backoff(attempt).await;
            let (current, version) = self.read(node, key).await?;
            let now = Timestamp::now().as_second();
            let mut step = node_lock::decide(current.as_deref(), me, now, self.timeout_seconds, None);
            if let LockStep::AskOwner(owner) = &step {
                let state = match read_pod(&self.client.0, &owner.namespace, &owner.name).await? {
                    Some(_) => OwnerState::Alive,
                    None => OwnerState::Gone,
                };
                step = node_lock::decide(current.as_deref(), me, now, self.timeout_seconds, Some(state));
            }
            match step {
                LockStep::Mine => return Ok(()),
                LockStep::Contended | LockStep::AskOwner(_) => {
                    return Err(ApiError::refused(
                        doing(),
                        node_lock::contention_text(node, self.timeout_seconds),
                    ));
                }
                LockStep::TakeOver(why) => {
                    tracing::info!(node, why = %why, "Take over a node lock nobody needs any more.");
                }
                LockStep::Set => {}
            }
            free().await?;
            let lock = NodeLock {
                at: now,
                owner: Some(me.clone()),
            };
            match self.write(node, key, &version, Value::String(lock.to_string())).await {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == ApiErrorKind::Conflict => {}
                Err(error) => return Err(error),
            }
        }
        Err(ApiError::refused(doing(), "the node changed at every try"))
    }

    /// Gives the lock back if the pod holds it.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn release(&self, node: &str, key: &str, me: &LockOwner) -> Result<(), ApiError> {
        for attempt in 0..TRIES {
            backoff(attempt).await;
            let (current, version) = self.read(node, key).await?;
            match node_lock::release(current.as_deref(), me) {
                Release::Nothing | Release::NotMine => return Ok(()),
                Release::Remove => {}
            }
            match self.write(node, key, &version, Value::Null).await {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == ApiErrorKind::Conflict => {}
                Err(error) => return Err(error),
            }
        }
        Err(ApiError::refused(
            format!("unlocking node {node}"),
            "the node changed at every try",
        ))
    }

    /// Takes the lock `key` of `node`, whose value is the bare moment of locking and lapses after `lapses_seconds`.
    /// Answers the value, which [`NodeLocks::release_timed`] needs: the text itself does not say whose it is.
    ///
    /// # Errors
    /// Somebody holds it, or the server does not answer.
    pub async fn acquire_timed(&self, node: &str, key: &str, lapses_seconds: u32) -> Result<String, ApiError> {
        let doing = || format!("locking node {node}");
        let lapses = i64::from(lapses_seconds);
        for attempt in 0..TRIES {
            backoff(attempt).await;
            let (current, version) = self.read(node, key).await?;
            let now = Timestamp::now().as_second();
            match node_lock::decide_timed(current.as_deref(), now, lapses) {
                TimedStep::Held => return Err(ApiError::refused(doing(), node_lock::held_text(node, lapses))),
                TimedStep::TakeOver(why) => {
                    tracing::info!(node, why = %why, "Take over a node lock nobody needs any more.");
                }
                TimedStep::Set => {}
            }
            let value = NodeLock { at: now, owner: None }.to_string();
            match self.write(node, key, &version, Value::String(value.clone())).await {
                Ok(()) => return Ok(value),
                Err(error) if error.kind() == ApiErrorKind::Conflict => {}
                Err(error) => return Err(error),
            }
        }
        Err(ApiError::refused(doing(), "the node changed at every try"))
    }

    /// Gives back a lock of [`NodeLocks::acquire_timed`]. Another value is another's lock and stays.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn release_timed(&self, node: &str, key: &str, value: &str) -> Result<(), ApiError> {
        for attempt in 0..TRIES {
            backoff(attempt).await;
            let (current, version) = self.read(node, key).await?;
            if current.as_deref() != Some(value) {
                return Ok(());
            }
            match self.write(node, key, &version, Value::Null).await {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == ApiErrorKind::Conflict => {}
                Err(error) => return Err(error),
            }
        }
        Err(ApiError::refused(
            format!("unlocking node {node}"),
            "the node changed at every try",
        ))
    }

    async fn read(&self, node: &str, key: &str) -> Result<(Option<String>, String), ApiError> {
        let api: Api<Trimmed<NodeView>> = Api::all(self.client.0.clone());
        let doing = || format!("reading node {node}");
        let found = timed(doing, REQUEST_TIME, api.get(node)).await?;
        let version = found.version().to_owned();
        let view = found.view.map_err(|why| ApiError::refused(doing(), why))?;
        Ok((view.annotations.get(key).cloned(), version))
    }

    async fn write(&self, node: &str, key: &str, version: &str, value: Value) -> Result<(), ApiError> {
        let api: Api<k8s_openapi::api::core::v1::Node> = Api::all(self.client.0.clone());
        let patch = json!({"metadata": {"resourceVersion": version, "annotations": {key: value}}});
        let (params, patch) = (PatchParams::default(), Patch::Merge(&patch));
        let request = api.patch_metadata(node, &params, &patch);
        timed(|| format!("writing the lock of node {node}"), REQUEST_TIME, request)
            .await
            .map(drop)
    }
}

async fn backoff(attempt: u32) {
    if attempt > 0 {
        tokio::time::sleep(Duration::from_millis(100) * 2_u32.pow(attempt - 1)).await;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::script::{self, Reply};

    fn me() -> LockOwner {
        LockOwner {
            namespace: "ns".to_owned(),
            name: "me".to_owned(),
        }
    }

    /// Acquires against a node with this lock; what the node was patched with, or the error.
    async fn acquire(lock: Option<String>, owner_lives: bool, conflicts: usize) -> Result<Vec<Value>, String> {
        let left = std::sync::atomic::AtomicUsize::new(conflicts);
        let (client, log) = script::client(move |sent| match sent.method.as_str() {
            "GET" if sent.path.contains("/nodes/") => {
                let annotations = lock
                    .as_ref()
                    .map_or_else(|| json!({}), |lock| json!({"hami.io/mutex.lock": lock}));
                Reply::Object(json!({"metadata": {"name": "n", "resourceVersion": "5", "annotations": annotations}}))
            }
            "GET" if owner_lives => {
                Reply::Object(json!({"metadata": {"name": "other", "namespace": "ns", "uid": "u"}, "spec": {}}))
            }
            "GET" => Reply::Refuse(404, "NotFound"),
            _ => {
                use std::sync::atomic::Ordering::SeqCst;
                if left.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok() {
                    Reply::Refuse(409, "Conflict")
                } else {
                    Reply::Object(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}}))
                }
            }
        });
        let locks = NodeLocks::new(client, Duration::from_secs(300));
        locks
            .acquire("n", "hami.io/mutex.lock", &me(), async || Ok(()))
            .await
            .map_err(|error| error.to_string())?;
        Ok(log.writes().into_iter().map(|sent| sent.body).collect())
    }

    fn lock_of(name: &str, age: i64) -> String {
        let at = Timestamp::now().as_second() - age;
        NodeLock {
            at,
            owner: Some(LockOwner {
                namespace: "ns".to_owned(),
                name: name.to_owned(),
            }),
        }
        .to_string()
    }

    #[tokio::test(start_paused = true)]
    async fn the_lock_is_written_against_the_version_that_was_read() {
        let writes = acquire(None, false, 2).await.unwrap();
        assert_eq!(writes.len(), 3, "two conflicts, then success");
        let metadata = &writes[2]["metadata"];
        assert_eq!(metadata["resourceVersion"], "5");
        assert!(
            metadata["annotations"]["hami.io/mutex.lock"]
                .as_str()
                .unwrap()
                .ends_with(",ns,me")
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_live_owner_keeps_it_and_a_dead_one_does_not() {
        let error = acquire(Some(lock_of("other", 10)), true, 0).await.unwrap_err();
        assert!(
            error.contains("node n has been locked within 5m0s: node lock contention"),
            "{error}"
        );
        assert_eq!(acquire(Some(lock_of("other", 10)), false, 0).await.unwrap().len(), 1);
        assert_eq!(acquire(Some(lock_of("other", 301)), true, 0).await.unwrap().len(), 1);
        assert_eq!(acquire(Some("nonsense,,,".to_owned()), true, 0).await.unwrap().len(), 1);
        assert_eq!(
            acquire(Some(lock_of("me", 10)), true, 0).await.unwrap().len(),
            0,
            "it is ours already"
        );
    }

    /// A node whose lock of a vendor's own is `lock`; the writes, and how it ended.
    async fn timed(lock: Option<String>, release: Option<&str>) -> (Vec<Value>, Result<(), String>) {
        let (client, log) = script::client(move |sent| match sent.method.as_str() {
            "GET" => {
                let annotations = lock
                    .as_ref()
                    .map_or_else(|| json!({}), |lock| json!({"v.example/lock": lock}));
                Reply::Object(json!({"metadata": {"name": "n", "resourceVersion": "5", "annotations": annotations}}))
            }
            _ => Reply::Object(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}})),
        });
        let locks = NodeLocks::new(client, Duration::from_secs(300));
        let outcome = match release {
            Some(value) => locks.release_timed("n", "v.example/lock", value).await,
            None => locks.acquire_timed("n", "v.example/lock", 120).await.map(drop),
        };
        let writes = log.writes().into_iter().map(|sent| sent.body).collect();
        (writes, outcome.map_err(|error| error.to_string()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_bare_moment_is_taken_when_it_has_lapsed_and_given_back_by_its_writer_only() {
        let at = |age: i64| {
            let at = Timestamp::now().as_second() - age;
            Some(NodeLock { at, owner: None }.to_string())
        };
        for free in [None, at(130), Some("garbage".to_owned())] {
            let (writes, outcome) = timed(free, None).await;
            assert_eq!(outcome, Ok(()));
            let metadata = &writes[0]["metadata"];
            assert_eq!(metadata["resourceVersion"], "5", "only over what was read");
            let text = metadata["annotations"]["v.example/lock"].as_str().unwrap();
            assert_eq!(NodeLock::parse(text).unwrap().owner, None);
        }
        let (writes, outcome) = timed(at(30), None).await;
        assert!(
            outcome
                .unwrap_err()
                .ends_with("node n has been locked within 2 minutes")
        );
        assert!(writes.is_empty());

        let mine = at(5);
        let (writes, outcome) = timed(mine.clone(), mine.as_deref()).await;
        assert_eq!((writes.len(), outcome), (1, Ok(())));
        let (writes, outcome) = timed(at(1), mine.as_deref()).await;
        assert_eq!((writes.len(), outcome), (0, Ok(())), "another's lock stays");
    }
}
