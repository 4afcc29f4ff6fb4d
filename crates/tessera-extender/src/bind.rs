//! Bind: writes what was decided and binds, in one write where a Binding can carry it all.
//!
//! Everything may be asked twice and may fail at any line: each write carries the pod's uid, an answer that got
//! lost is found out by reading the pod, and what was assumed is given back only when it is known that the pod
//! is not bound.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tessera_engine::{AssumeError, LockKind, NodeState, Snapshot, WriteContext, text};
use tessera_kube::books::Wanted;
use tessera_kube::writes::{bind_pod, bind_pod_with, patch_pod, read_pod};
use tessera_kube::{ApiError, ApiErrorKind};
use tessera_types::{Allocation, Demand, Keyword, NodeName, PodId, PodUid};
use tessera_wire::extender::{BindArgs, BindResult};
use tessera_wire::keys::{self, events};
use tessera_wire::node_lock::LockOwner;
use tessera_wire::{PodPhase, PodView, patch};
use tokio::time::Instant;

use crate::app::{App, Promise, now};
use crate::filter::{TRIES, with_removed};

/// The API server has not answered for this long: a bind fails at once, with that reason.
const LOST: Duration = Duration::from_secs(60);
/// How often a gang member tries a node lock that another holds.
const LOCK_RETRY: Duration = Duration::from_millis(100);

impl App {
    /// Answers `POST /bind`.
    pub async fn bind(&self, body: &[u8]) -> BindResult {
        let args = match BindArgs::read(body) {
            Ok(args) => args,
            Err(error) => {
                return BindResult {
                    error: error.to_string(),
                };
            }
        };
        match self.bind_args(&args).await {
            Ok(()) => BindResult::default(),
            Err(error) => {
                tracing::warn!(pod = %format_args!("{}/{}", args.pod_namespace, args.pod_name), node = %args.node, error = %error, "Could not bind the pod.");
                if let Ok(uid) = PodUid::new(&args.pod_uid) {
                    let pod = PodId {
                        namespace: args.pod_namespace,
                        name: args.pod_name,
                        uid,
                    };
                    self.tell(&pod, true, events::BINDING_FAILED, &error);
                }
                BindResult { error }
            }
        }
    }

    async fn bind_args(&self, args: &BindArgs) -> Result<(), String> {
        let node = NodeName::new(&args.node).map_err(|error| error.to_string())?;
        let uid = PodUid::new(&args.pod_uid).map_err(|error| error.to_string())?;
        self.gate().await?;
        if let Some(lost) = self.reach.borrow().lost_for().filter(|lost| *lost >= LOST) {
            return Err(format!(
                "the API server has not answered for {} s, so nothing can be bound; kube-scheduler tries again by itself",
                lost.as_secs()
            ));
        }
        let promise = self
            .promises()
            .get(&uid)
            .filter(|promise| promise.node == node && promise.until > Instant::now())
            .cloned();
        let promise = match promise {
            Some(promise) => promise,
            None => {
                let pod = self.read(args).await?;
                match self.choose(&pod, &uid, node).await? {
                    Some(promise) => promise,
                    None => return Ok(()),
                }
            }
        };
        let outcome = self.carry_out(&promise).await;
        self.settle(&promise, outcome).await
    }

    async fn read(&self, args: &BindArgs) -> Result<PodView, String> {
        match read_pod(&self.cluster.client, &args.pod_namespace, &args.pod_name).await {
            Ok(Some(pod)) if pod.id.uid.as_str() == args.pod_uid => Ok(pod),
            Ok(found) => {
                if let Ok(uid) = PodUid::new(&args.pod_uid) {
                    self.drop_promise(&uid).await;
                }
                let what = if found.is_some() {
                    "was replaced by another of its name"
                } else {
                    "does not exist"
                };
                Err(format!("pod {}/{} {what}", args.pod_namespace, args.pod_name))
            }
            Err(error) => Err(told(&error)),
        }
    }

    /// Chooses cards on the node for a pod that nothing is promised to: in filter mode `all`, after a restart, or
    /// for a caller that never asked filter. `None` if there is nothing left to do.
    async fn choose(&self, pod: &PodView, uid: &PodUid, node: NodeName) -> Result<Option<Arc<Promise>>, String> {
        match pod.node_name.as_deref() {
            Some(bound) if bound == node.as_str() => return Ok(None),
            Some(bound) => return Err(format!("pod {} is already bound to node {bound}", pod.id)),
            None => {}
        }
        let demand = self.engine.demand(pod).map_err(|error| error.to_string())?;
        if demand.is_empty() {
            bind_pod(&self.cluster.client, &pod.id, node.as_str())
                .await
                .map_err(|error| error.to_string())?;
            return Ok(None);
        }
        let gang = pod.pod_group.is_some();
        let lease = self.settings.assume_time;
        let mut lost = None;
        for _ in 0..TRIES {
            let view = self.books.view();
            let placed = self
                .engine
                .place_on(&view.snapshot, &demand, &node)
                .map_err(|refusal| format!("node {node} cannot take the pod any more: {}", text::node(&refusal)))?;
            let at = now();
            let wanted = Wanted {
                pod: pod.id.clone(),
                roles: pod.roles(),
                node: node.clone(),
                allocation: Arc::clone(&placed.allocation),
                priority: pod.priority,
                facts: demand.facts.clone(),
                decided_at: at,
            };
            match self
                .books
                .assume(wanted, lease)
                .await
                .map_err(|closed| closed.to_string())?
            {
                Err(AssumeError::AlreadyBound(bound)) if bound == node => return Ok(None),
                Err(error @ AssumeError::AlreadyBound(_)) => return Err(error.to_string()),
                // Lost to a request that came between; if nothing fits any more, the next round says so.
                Err(error) => lost = Some(error),
                Ok(()) => {
                    let new = self.written(&view.snapshot, &node, &placed.allocation, &demand, at);
                    debug_assert_eq!(*uid, pod.id.uid);
                    return Ok(Some(self.promise(Promise {
                        stale: self.stale_keys(&pod.annotations, &new),
                        demand,
                        node,
                        allocation: Arc::clone(&placed.allocation),
                        at,
                        written: false,
                        gang,
                        until: Instant::now() + lease,
                    })));
                }
            }
        }
        let why = lost.map_or_else(String::new, |error| format!(": {error}"));
        Err(format!(
            "other pods took the cards of node {node} while this one was being placed{why}"
        ))
    }

    async fn carry_out(&self, promise: &Promise) -> Result<(), ApiError> {
        let pod = &promise.demand.pod;
        let locks = self.locks(promise);
        let owner = LockOwner {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
        };
        let mut taken: Vec<(&Lock, Option<String>)> = Vec::new();
        let outcome = async {
            for lock in &locks {
                taken.push((lock, self.lock(promise, lock, &owner).await?));
            }
            let mut values = patch::phase(keys::PHASE_ALLOCATING, Some(now()));
            values.insert(keys::TESSERA_SCHEDULER.to_owned(), crate::VERSION.to_owned());
            if !promise.written {
                let view = self.books.view();
                values.extend(self.written(
                    &view.snapshot,
                    &promise.node,
                    &promise.allocation,
                    &promise.demand,
                    promise.at,
                ));
            }
            let stale: &[String] = if promise.written { &[] } else { &promise.stale };
            let (client, node) = (&self.cluster.client, promise.node.as_str());
            let patch = patch::allocation(&values);
            // A Binding removes nothing.
            if stale.is_empty() && self.cluster.binds_in_one_write().await {
                return bind_pod_with(client, pod, node, patch).await;
            }
            patch_pod(client, pod, with_removed(patch, stale)).await?;
            bind_pod(client, pod, node).await
        }
        .await;
        let outcome = match outcome {
            // The answer was lost, or the pod was bound before: ask.
            Err(error) if matches!(error.kind(), ApiErrorKind::NoAnswer | ApiErrorKind::Conflict) => {
                match read_pod(&self.cluster.client, &pod.namespace, &pod.name).await {
                    Ok(Some(found))
                        if found.id.uid == pod.uid && found.node_name.as_deref() == Some(promise.node.as_str()) =>
                    {
                        Ok(())
                    }
                    Ok(_) => Err(ApiError::refused(format!("binding pod {pod}"), error.to_string())),
                    Err(_) => Err(error),
                }
            }
            other => other,
        };
        if outcome.is_err() {
            for (lock, value) in taken {
                let (locks, node) = (&self.cluster.locks, promise.node.as_str());
                let released = match value {
                    Some(value) => locks.release_timed(node, lock.key(), &value).await,
                    None => locks.release(node, lock.key(), &owner).await,
                };
                if let Err(error) = released {
                    tracing::warn!(node = %promise.node, error = %error, "Could not give back a node lock; it lapses by itself.");
                }
            }
        }
        outcome
    }

    async fn settle(&self, promise: &Promise, outcome: Result<(), ApiError>) -> Result<(), String> {
        let pod = &promise.demand.pod;
        match outcome {
            Ok(()) => {
                self.promises().remove(&pod.uid);
                tracing::info!(pod = %pod, uid = %pod.uid, node = %promise.node, "Bound pod.");
                let message = format!("Successfully binding node [{}] to {pod}", promise.node);
                self.tell(pod, false, events::BINDING_SUCCEED, message);
                Ok(())
            }
            Err(error) => {
                self.promises().remove(&pod.uid);
                // Without an answer the pod may be bound: its cards stay promised until the lease ends or the
                // watch tells.
                if error.kind() != ApiErrorKind::NoAnswer {
                    self.books.forget(pod.uid.clone()).await;
                }
                Err(told(&error))
            }
        }
    }

    pub(crate) async fn drop_promise(&self, uid: &PodUid) {
        self.promises().remove(uid);
        self.books.forget(uid.clone()).await;
    }

    /// What a placed pod is given as annotations.
    pub(crate) fn written(
        &self,
        snapshot: &Snapshot,
        node: &NodeName,
        allocation: &Allocation,
        demand: &Demand,
        at: i64,
    ) -> BTreeMap<String, String> {
        let cards = snapshot.node(node.as_str()).map_or(&[][..], NodeState::cards);
        let context = WriteContext {
            node,
            now_seconds: at,
            cards,
        };
        self.engine.annotations(allocation, demand, &context)
    }

    /// The node locks to take, in order; none for a class that our own agent serves on the node.
    fn locks(&self, promise: &Promise) -> Vec<Lock> {
        let own_node = self.books.view().own_agents.contains(&promise.node);
        let mut locks: Vec<Lock> = Vec::new();
        for class in promise.demand.classes() {
            if let Some(lock) = self.lock_of(&class, own_node)
                && !locks.iter().any(|other| other.key() == lock.key())
            {
                locks.push(lock);
            }
        }
        locks
    }

    fn lock_of(&self, class: &Keyword, own_node: bool) -> Option<Lock> {
        let vendor = self.engine.vendors().get(class)?;
        if own_node && vendor.own_agent() {
            return None;
        }
        match vendor.node_lock() {
            LockKind::Shared => Some(Lock::Owned(keys::NODE_LOCK.to_owned())),
            LockKind::Own(key) => Some(Lock::Owned(key)),
            LockKind::Timed { key, lapses_seconds } => Some(Lock::Timed(key, lapses_seconds)),
            LockKind::None => None,
        }
    }

    /// Refuses while the lock would send a plugin to the wrong pod, because it names one pod only and the first plugin
    /// that answers gives it back:
    ///
    /// - Another pod with cards of several makers that share the lock waits on the node for the rest of its plugins.
    ///   The kubelet asks all of them before it tells that the pod has started.
    /// - This pod has cards of several such makers, and another pod of one of them is still pending there. Without the
    ///   lock some plugins take the oldest of these, even one that they have served, however long it has waited.
    async fn all_served(&self, promise: &Promise, key: &str) -> Result<(), ApiError> {
        let view = self.books.view();
        let own_node = view.own_agents.contains(&promise.node);
        let shares_lock = |class: &&Keyword| self.lock_of(class, own_node).is_some_and(|lock| lock.key() == key);
        let own = promise.demand.classes();
        let own: BTreeSet<&Keyword> = own.iter().filter(shares_lock).collect();
        let bookings = view
            .snapshot
            .node(promise.node.as_str())
            .map_or(&[][..], NodeState::bookings);
        for other in bookings {
            let theirs: BTreeSet<&Keyword> = other.classes().filter(shares_lock).collect();
            let (half, amid) = (theirs.len() > 1, own.len() > 1 && !own.is_disjoint(&theirs));
            if other.pod.uid == promise.demand.pod.uid || !(half || amid) {
                continue;
            }
            let Some(pod) = read_pod(&self.cluster.client, &other.pod.namespace, &other.pod.name).await? else {
                continue;
            };
            let bound_at = pod
                .annotation(keys::BIND_TIME)
                .and_then(|text| text.parse::<i64>().ok());
            let recent = bound_at.is_some_and(|at| now().saturating_sub(at) < self.cluster.locks.timeout_seconds());
            let pending = pod.id.uid == other.pod.uid
                && pod.node_name.as_deref() == Some(promise.node.as_str())
                && pod.phase == PodPhase::Pending;
            let why = if half && pending && recent && pod.started_at.is_none() {
                "has cards of several makers, and not all of their plugins have answered yet"
            } else if amid && pending {
                "has not started yet, and a pod with cards of several makers is bound only while nobody else waits for their plugins"
            } else {
                continue;
            };
            return Err(ApiError::refused(
                format!("locking node {}", promise.node),
                format!("pod {} {why}", pod.id),
            ));
        }
        Ok(())
    }

    /// Takes one lock. Answers its value if that is all that says whose it is.
    async fn lock(&self, promise: &Promise, lock: &Lock, owner: &LockOwner) -> Result<Option<String>, ApiError> {
        let patience = if promise.gang {
            self.settings.lock_retry
        } else {
            Duration::ZERO
        };
        let end = Instant::now() + patience;
        let (locks, node) = (&self.cluster.locks, promise.node.as_str());
        loop {
            let taken = match lock {
                Lock::Owned(key) => {
                    let free = || self.all_served(promise, key);
                    locks.acquire(node, key, owner, free).await.map(|()| None)
                }
                Lock::Timed(key, lapses) => locks.acquire_timed(node, key, *lapses).await.map(Some),
            };
            match taken {
                Err(error) if error.kind() == ApiErrorKind::Refused && Instant::now() + LOCK_RETRY < end => {
                    tokio::time::sleep(LOCK_RETRY).await;
                }
                other => return other,
            }
        }
    }
}

/// A lock to take on the node.
#[derive(Debug)]
enum Lock {
    /// Its value names the pod.
    Owned(String),
    /// Its value is a bare moment; lapses after so many seconds.
    Timed(String, u32),
}

impl Lock {
    fn key(&self) -> &str {
        match self {
            Self::Owned(key) | Self::Timed(key, _) => key,
        }
    }
}

/// An error for kube-scheduler, which shows it in its log and tries again.
fn told(error: &ApiError) -> String {
    match error.kind() {
        ApiErrorKind::NoAnswer => format!("{error}; kube-scheduler tries again by itself"),
        _ => error.to_string(),
    }
}
