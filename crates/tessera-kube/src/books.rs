//! The one task that owns the world.
//!
//! Watch events and commands come in, an immutable [`View`] goes out by pointer swap; readers never wait. Since a
//! single task applies everything, "check that it still fits, then book it" is one step and two requests cannot
//! be given the same share.
//!
//! What is booked is a function of API objects, plus *assumptions*: what this process decided and has not yet
//! seen confirmed. They carry a lease, so that a crash or a lost answer anywhere frees them.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use tessera_engine::{AssumeError, Assumption, Snapshot, Vendors, World};
use tessera_types::{Allocation, ContainerRole, Keyword, NodeName, PodId, PodUid};
use tessera_wire::{NodeView, PodView, keys};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::agents::{Agents, NOT_READY};
use crate::heartbeat::{Heartbeats, Turn};
use crate::objects::{Kind, QuotaView, Trimmed};
use crate::watch::Change;

/// Events that may wait for the task.
const INPUTS: usize = 1024;
const COMMANDS: usize = 256;
/// Events applied before a new view is published.
const BATCH: usize = 256;
/// How often assumptions are looked at.
const EXPIRY: Duration = Duration::from_secs(1);
/// How often the books are recomputed from nothing and compared.
const AUDIT: Duration = Duration::from_secs(10);

/// One event for the task.
#[derive(Debug)]
pub enum Input {
    /// Of a pod.
    Pod(Change<PodView>),
    /// Of a node.
    Node(Change<NodeView>),
    /// Of a quota.
    Quota(Change<QuotaView>),
}

/// What an answer is based on.
#[derive(Debug, Clone)]
pub struct View {
    /// Cards, bookings, quotas.
    pub snapshot: Snapshot,
    /// Nodes where our own agent serves: nobody there needs a node lock.
    pub own_agents: Arc<HashSet<NodeName>>,
    /// How often capacity came free so far; a later number may fit what an earlier one refused.
    pub freed: u64,
    /// Objects that could not be read, by `kind namespace/name`.
    pub problems: Arc<BTreeMap<String, String>>,
    /// Assumptions that ended because nothing confirmed them.
    pub expired: u64,
    /// What the last comparison with a fresh computation found; 0 is right.
    pub differences: u64,
}

enum Command {
    Assume {
        wanted: Box<Wanted>,
        lease: Duration,
        reply: oneshot::Sender<Result<(), AssumeError>>,
    },
    Forget {
        pod: PodUid,
        reply: oneshot::Sender<()>,
    },
    Raise {
        pod: Box<PodView>,
        lease: Duration,
        reply: oneshot::Sender<Result<(), AssumeError>>,
    },
}

/// A decision to be booked.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Whose.
    pub pod: PodId,
    /// The roles of the pod's containers, in order.
    pub roles: Vec<ContainerRole>,
    /// Where.
    pub node: NodeName,
    /// Which cards.
    pub allocation: Arc<Allocation>,
    /// The pod's priority.
    pub priority: i32,
    /// What the demand says for the pod's neighbours on a card.
    pub facts: BTreeMap<Keyword, BTreeMap<String, String>>,
    /// When it was decided, Unix seconds by this machine's wall clock: kube-scheduler, which tells in the same
    /// clock when an attempt failed, runs beside us.
    pub decided_at: i64,
}

/// The task has ended; the process is about to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the scheduler is shutting down")]
pub struct Closed;

/// Access to the books. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Books {
    view: Arc<ArcSwap<View>>,
    commands: mpsc::Sender<Command>,
    synced: watch::Receiver<bool>,
    freed: watch::Receiver<u64>,
    problems: watch::Receiver<Arc<BTreeMap<String, String>>>,
    resizes: watch::Receiver<Arc<BTreeMap<PodUid, PodId>>>,
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Assume { .. } => "Assume",
            Self::Forget { .. } => "Forget",
            Self::Raise { .. } => "Raise",
        })
    }
}

impl Books {
    /// The newest view.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// Whether all kinds have been listed once.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        *self.synced.borrow()
    }

    /// Waits until all kinds have been listed once.
    ///
    /// # Errors
    /// The task has ended.
    pub async fn wait_synced(&self) -> Result<(), Closed> {
        self.synced
            .clone()
            .wait_for(|synced| *synced)
            .await
            .map(drop)
            .map_err(|_| Closed)
    }

    /// Changes whenever capacity comes free.
    #[must_use]
    pub fn freed(&self) -> watch::Receiver<u64> {
        self.freed.clone()
    }

    /// Changes whenever [`View::problems`] does.
    #[must_use]
    pub fn problems(&self) -> watch::Receiver<Arc<BTreeMap<String, String>>> {
        self.problems.clone()
    }

    /// Pods whose live resize has a next step; changes whenever they do.
    #[must_use]
    pub fn resizes(&self) -> watch::Receiver<Arc<BTreeMap<PodUid, PodId>>> {
        self.resizes.clone()
    }

    /// Books for `lease` what a bound pod is about to have, if that fits: `raised` is the pod as it will read.
    ///
    /// # Errors
    /// The outer error: the task has ended. The inner: it does not fit.
    pub async fn raise(&self, raised: Box<PodView>, lease: Duration) -> Result<Result<(), AssumeError>, Closed> {
        let (reply, answer) = oneshot::channel();
        let pod = raised;
        self.commands
            .send(Command::Raise { pod, lease, reply })
            .await
            .map_err(|_| Closed)?;
        answer.await.map_err(|_| Closed)
    }

    /// Books it for `lease` if it still fits. What the pod held before is replaced.
    ///
    /// # Errors
    /// The outer error: the task has ended. The inner: it does not fit any more.
    pub async fn assume(&self, wanted: Wanted, lease: Duration) -> Result<Result<(), AssumeError>, Closed> {
        let (reply, answer) = oneshot::channel();
        let wanted = Box::new(wanted);
        self.commands
            .send(Command::Assume { wanted, lease, reply })
            .await
            .map_err(|_| Closed)?;
        answer.await.map_err(|_| Closed)
    }

    /// Gives back what was assumed for the pod. What the API server's objects say stays booked.
    pub async fn forget(&self, pod: PodUid) {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(Command::Forget { pod, reply }).await.is_ok() {
            // An error means that the task has ended, and all assumptions with it.
            let _ended = answer.await;
        }
    }
}

/// Seconds since 1970 that only move forward: read once, then counted by the monotonic clock.
#[derive(Debug, Clone, Copy)]
pub struct SteadyClock {
    epoch: i64,
    start: Instant,
}

impl Default for SteadyClock {
    fn default() -> Self {
        Self {
            epoch: Timestamp::now().as_second(),
            start: Instant::now(),
        }
    }
}

impl SteadyClock {
    /// Now.
    #[must_use]
    pub fn now(&self) -> i64 {
        self.epoch
            .saturating_add(i64::try_from(self.start.elapsed().as_secs()).unwrap_or(i64::MAX))
    }
}

/// Opens the books: access, the channel for events, and the task.
pub fn open(
    vendors: Arc<Vendors>,
    clock: SteadyClock,
    stop: CancellationToken,
) -> (Books, mpsc::Sender<Input>, impl Future<Output = ()> + Send) {
    let (inputs, input_receiver) = mpsc::channel(INPUTS);
    let (commands, command_receiver) = mpsc::channel(COMMANDS);
    let (synced_sender, synced) = watch::channel(false);
    let (freed_sender, freed) = watch::channel(0);
    let (problems_sender, problems) = watch::channel(Arc::default());
    let (resizes_sender, resizes) = watch::channel(Arc::default());
    let world = World::new(vendors);
    let view = Arc::new(ArcSwap::from_pointee(View {
        snapshot: world.snapshot(),
        own_agents: Arc::default(),
        freed: 0,
        problems: Arc::default(),
        expired: 0,
        differences: 0,
    }));
    let keeper = Keeper {
        world,
        clock,
        view: Arc::clone(&view),
        synced: synced_sender,
        freed_sender,
        problems_sender,
        resizes: resizes_sender,
        freed: 0,
        pods: Listing::default(),
        nodes: Listing::default(),
        quotas: Listing::default(),
        heartbeats: Heartbeats::default(),
        agents: Agents::default(),
        own_agents: Arc::default(),
        problems: Arc::default(),
        expired: 0,
        differences: 0,
    };
    let books = Books {
        view,
        commands,
        synced,
        freed,
        problems,
        resizes,
    };
    (books, inputs, keeper.run(input_receiver, command_receiver, stop))
}

/// Which objects of a kind are known, and which of them a list in progress has named.
#[derive(Debug)]
struct Listing<K> {
    known: HashSet<K>,
    named: Option<HashSet<K>>,
    complete: bool,
}

impl<K> Default for Listing<K> {
    fn default() -> Self {
        Self {
            known: HashSet::new(),
            named: None,
            complete: false,
        }
    }
}

impl<K: Clone + Eq + std::hash::Hash> Listing<K> {
    fn restart(&mut self) {
        self.named = Some(HashSet::new());
    }

    fn see(&mut self, key: &K) {
        if let Some(named) = &mut self.named {
            named.insert(key.clone());
        }
        self.known.insert(key.clone());
    }

    fn drop(&mut self, key: &K) {
        self.known.remove(key);
        if let Some(named) = &mut self.named {
            named.remove(key);
        }
    }

    /// The list is complete: what it did not name is gone.
    fn finish(&mut self) -> Vec<K> {
        self.complete = true;
        let Some(named) = self.named.take() else {
            return Vec::new();
        };
        let gone: Vec<K> = self.known.iter().filter(|key| !named.contains(key)).cloned().collect();
        for key in &gone {
            self.known.remove(key);
        }
        gone
    }
}

struct Keeper {
    world: World,
    clock: SteadyClock,
    view: Arc<ArcSwap<View>>,
    synced: watch::Sender<bool>,
    freed_sender: watch::Sender<u64>,
    problems_sender: watch::Sender<Arc<BTreeMap<String, String>>>,
    resizes: watch::Sender<Arc<BTreeMap<PodUid, PodId>>>,
    freed: u64,
    pods: Listing<PodUid>,
    nodes: Listing<String>,
    quotas: Listing<(String, String)>,
    heartbeats: Heartbeats,
    agents: Agents,
    own_agents: Arc<HashSet<NodeName>>,
    problems: Arc<BTreeMap<String, String>>,
    expired: u64,
    differences: u64,
}

impl Keeper {
    async fn run(
        mut self,
        mut inputs: mpsc::Receiver<Input>,
        mut commands: mpsc::Receiver<Command>,
        stop: CancellationToken,
    ) {
        let mut batch = Vec::with_capacity(BATCH);
        let mut expiry = tokio::time::interval(EXPIRY);
        let mut audit = tokio::time::interval(AUDIT);
        expiry.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        audit.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            // Commands first: a request is waiting for each of them.
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                command = commands.recv() => match command {
                    None => return,
                    Some(command) => self.obey(command),
                },
                count = inputs.recv_many(&mut batch, BATCH) => {
                    if count == 0 {
                        return;
                    }
                    for input in batch.drain(..) {
                        self.apply(input);
                    }
                    self.publish();
                }
                _ = expiry.tick() => self.expire(),
                _ = audit.tick() => self.audit(),
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Assume { wanted, lease, reply } => {
                let seconds = i64::try_from(lease.as_secs()).unwrap_or(i64::MAX);
                let outcome = self.world.assume(&Assumption {
                    pod: &wanted.pod,
                    roles: &wanted.roles,
                    node: &wanted.node,
                    allocation: Arc::clone(&wanted.allocation),
                    priority: wanted.priority,
                    facts: &wanted.facts,
                    now: wanted.decided_at,
                    expires_at: self.clock.now().saturating_add(seconds),
                });
                if outcome.is_ok() {
                    self.publish();
                }
                // Nobody listens any more: the request was given up, and its lease ends it.
                let _given_up = reply.send(outcome);
            }
            Command::Raise { pod, lease, reply } => {
                let now = self.clock.now();
                let seconds = i64::try_from(lease.as_secs()).unwrap_or(i64::MAX);
                let outcome = self.world.raise(&pod, now, now.saturating_add(seconds));
                if outcome.is_ok() {
                    self.publish();
                }
                let _given_up = reply.send(outcome);
            }
            Command::Forget { pod, reply } => {
                if self.world.forget(&pod) {
                    self.freed += 1;
                    self.publish();
                }
                let _given_up = reply.send(());
            }
        }
    }

    fn apply(&mut self, input: Input) {
        match input {
            Input::Pod(change) => self.apply_pod(change),
            Input::Node(change) => self.apply_node(change),
            Input::Quota(change) => self.apply_quota(change),
        }
        if self.pods.complete && self.nodes.complete && self.quotas.complete && !*self.synced.borrow() {
            // Readers must find the whole picture when they are told that it is whole.
            self.publish();
            self.synced.send_replace(true);
            tracing::info!(
                nodes = self.nodes.known.len(),
                pods = self.pods.known.len(),
                bookings = self.world.snapshot().booking_count(),
                "Know the cluster."
            );
        }
    }

    fn apply_pod(&mut self, change: Change<PodView>) {
        match change {
            Change::Restarted => self.pods.restart(),
            Change::Listed(object) | Change::Applied(object) => {
                let Ok(uid) = PodUid::new(object.uid()) else { return };
                // The same text as the booking's, of which there are as many as pods.
                let uid = match &object.view {
                    Ok(pod) if pod.id.uid == uid => pod.id.uid.clone(),
                    _ => uid,
                };
                self.pods.see(&uid);
                self.note_problem(&object);
                if let Ok(pod) = &object.view {
                    if let Some(node) = self.agents.see(pod) {
                        self.judge_agent(&node);
                    }
                    self.note_resize(&uid, tessera_engine::resize::pending(pod).then_some(&pod.id));
                    let change = self.world.set_pod(pod);
                    self.freed += u64::from(change.frees);
                    let trouble = (!change.problems.is_empty()).then(|| {
                        change
                            .problems
                            .iter()
                            .map(ToString::to_string)
                            .collect::<Vec<_>>()
                            .join("; ")
                    });
                    self.set_problem(format!("pod {}", object.display_name()), trouble);
                }
            }
            Change::Gone(object) => {
                let Ok(uid) = PodUid::new(object.uid()) else { return };
                self.pods.drop(&uid);
                self.set_problem(format!("pod {}", object.display_name()), None);
                self.remove_pod(&uid);
            }
            Change::Complete => {
                for uid in self.pods.finish() {
                    self.remove_pod(&uid);
                }
            }
        }
    }

    fn apply_node(&mut self, change: Change<NodeView>) {
        match change {
            Change::Restarted => self.nodes.restart(),
            Change::Listed(object) | Change::Applied(object) => {
                self.nodes.see(&object.name().to_owned());
                self.note_problem(&object);
                if let Ok(node) = &object.view {
                    let change = self.world.set_node(node);
                    self.freed += u64::from(change.frees);
                    let trouble = (!change.problems.is_empty()).then(|| {
                        let each = change
                            .problems
                            .iter()
                            .map(|(class, problem)| format!("{class}: {problem}"));
                        each.collect::<Vec<_>>().join("; ")
                    });
                    self.set_problem(format!("node {}", object.display_name()), trouble);
                    let own_agent = node.annotations.contains_key(keys::TESSERA_AGENT);
                    self.set_agent(&node.name, own_agent);
                    let now = self.clock.now();
                    let vendors = Arc::clone(self.world.vendors());
                    let turns = self.heartbeats.see(&vendors, node, own_agent, now);
                    self.take_turns(turns);
                    self.judge_agent(&node.name);
                }
            }
            Change::Gone(object) => {
                self.nodes.drop(&object.name().to_owned());
                self.remove_node(object.name());
            }
            Change::Complete => {
                for name in self.nodes.finish() {
                    self.remove_node(&name);
                }
            }
        }
    }

    fn remove_node(&mut self, name: &str) {
        self.set_problem(format!("node {name}"), None);
        self.world.remove_node(name);
        if let Ok(name) = NodeName::new(name) {
            self.set_agent(&name, false);
            self.heartbeats.forget(&name);
            self.agents.drop_node(&name);
        }
    }

    /// Notes whether a pod's live resize has a next step.
    fn note_resize(&self, uid: &PodUid, pod: Option<&PodId>) {
        self.resizes.send_if_modified(|known| match pod {
            // Told again at each of its events, so that a step that failed is tried again with a newer version.
            Some(pod) => {
                Arc::make_mut(known).insert(uid.clone(), pod.clone());
                true
            }
            None => known.contains_key(uid) && Arc::make_mut(known).remove(uid).is_some(),
        });
    }

    fn remove_pod(&mut self, uid: &PodUid) {
        self.note_resize(uid, None);
        self.freed += u64::from(self.world.remove_pod(uid));
        if let Some(node) = self.agents.drop_pod(uid) {
            self.judge_agent(&node);
        }
    }

    /// Closes the classes that our agent serves on a node while it is down there.
    fn judge_agent(&mut self, node: &NodeName) {
        let Some(down) = self.agents.turned(node, self.own_agents.contains(node)) else {
            return;
        };
        let turns = self
            .world
            .vendors()
            .iter()
            .filter(|vendor| vendor.own_agent())
            .map(|vendor| Turn {
                node: node.clone(),
                class: vendor.keyword().clone(),
                cause: down.then(|| NOT_READY.to_owned()),
            })
            .collect();
        self.take_turns(turns);
    }

    /// Closes what went silent and opens what spoke again. Returns whether anything changed.
    fn take_turns(&mut self, turns: Vec<Turn>) -> bool {
        let mut changed = false;
        for Turn { node, class, cause } in turns {
            match &cause {
                Some(cause) => tracing::warn!(%node, %class, %cause, "No new work goes to the class on this node."),
                None => tracing::info!(%node, %class, "The class on this node takes work again."),
            }
            self.freed += u64::from(cause.is_none());
            changed |= self.world.set_class_closed(node.as_str(), &class, cause);
        }
        changed
    }

    fn apply_quota(&mut self, change: Change<QuotaView>) {
        match change {
            Change::Restarted => self.quotas.restart(),
            Change::Listed(object) | Change::Applied(object) => {
                self.note_problem(&object);
                if let Ok(quota) = &object.view {
                    self.quotas.see(&(quota.namespace.clone(), quota.name.clone()));
                    self.freed += u64::from(self.world.set_quota(&quota.namespace, &quota.name, &quota.hard));
                }
            }
            Change::Gone(object) => {
                if let Ok(quota) = &object.view {
                    self.quotas.drop(&(quota.namespace.clone(), quota.name.clone()));
                    self.freed += u64::from(self.world.remove_quota(&quota.namespace, &quota.name));
                }
            }
            Change::Complete => {
                for (namespace, name) in self.quotas.finish() {
                    self.freed += u64::from(self.world.remove_quota(&namespace, &name));
                }
            }
        }
    }

    fn set_agent(&mut self, node: &NodeName, serves: bool) {
        if self.own_agents.contains(node) != serves {
            let agents = Arc::make_mut(&mut self.own_agents);
            if serves {
                agents.insert(node.clone());
            } else {
                agents.remove(node);
            }
        }
    }

    /// An object that cannot be read at all.
    fn note_problem<V: Kind>(&mut self, object: &Trimmed<V>) {
        if let Err(why) = &object.view {
            self.set_problem(
                format!("{} {}", V::KIND.to_lowercase(), object.display_name()),
                Some(why.clone()),
            );
        }
    }

    fn set_problem(&mut self, name: String, why: Option<String>) {
        match why {
            Some(why) if self.problems.get(&name) != Some(&why) => {
                tracing::warn!(object = %name, error = %why, "An object cannot be used as it is; correct or remove what is named. Everything else goes on.");
                Arc::make_mut(&mut self.problems).insert(name, why);
            }
            None if self.problems.contains_key(&name) => {
                tracing::info!(object = %name, "The object can be used again.");
                Arc::make_mut(&mut self.problems).remove(&name);
            }
            _ => {}
        }
    }

    fn expire(&mut self) {
        let now = self.clock.now();
        let turns = self.heartbeats.tick(now);
        let turned = self.take_turns(turns);
        let expired = self.world.expire(now);
        if expired.is_empty() {
            if turned {
                self.publish();
            }
            return;
        }
        for pod in &expired {
            tracing::warn!(uid = %pod, "Nothing confirmed what was promised to the pod, so it is free again.");
        }
        let count = u64::try_from(expired.len()).unwrap_or(u64::MAX);
        self.expired = self.expired.saturating_add(count);
        self.freed += 1;
        self.publish();
    }

    fn audit(&mut self) {
        let differences = self.world.audit();
        let count = u64::try_from(differences.len()).unwrap_or(u64::MAX);
        if count > 0 {
            tracing::error!(differences = ?differences, "The books differ from what the objects say; taking the objects' word.");
            self.world.recount();
            self.freed += 1;
        }
        if count != self.differences {
            self.differences = count;
            self.publish();
        }
    }

    fn publish(&self) {
        self.view.store(Arc::new(View {
            snapshot: self.world.snapshot(),
            own_agents: Arc::clone(&self.own_agents),
            freed: self.freed,
            problems: Arc::clone(&self.problems),
            expired: self.expired,
            differences: self.differences,
        }));
        self.freed_sender.send_if_modified(|freed| {
            let changed = *freed != self.freed;
            *freed = self.freed;
            changed
        });
        self.problems_sender.send_if_modified(|problems| {
            let changed = !Arc::ptr_eq(problems, &self.problems);
            *problems = Arc::clone(&self.problems);
            changed
        });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tessera_wire::config::DeviceConfig;

    use super::*;

    struct Desk {
        books: Books,
        inputs: mpsc::Sender<Input>,
    }

    impl Desk {
        fn open() -> Self {
            let config = DeviceConfig::from_yaml("nvidia: {}\nvastai: {resourceCountName: vastaitech.com/va}").unwrap();
            let vendors = tessera_vendors::from_config(&config);
            let (books, inputs, keeper) = open(vendors, SteadyClock::default(), CancellationToken::new());
            tokio::spawn(keeper);
            Self { books, inputs }
        }

        async fn node(&self, agent: bool) {
            let card = |id: &str, kind: &str| {
                json!([{"id": id, "count": 4, "devmem": 1000, "devcore": 100, "type": kind, "health": true}])
                    .to_string()
            };
            let mut node = json!({"metadata": {"name": "n", "uid": "n", "annotations": {
                "hami.io/node-nvidia-register": card("a", "NVIDIA"), "hami.io/node-va-register": card("b", "Vastai")}}});
            if agent {
                node["metadata"]["annotations"][keys::TESSERA_AGENT] = json!("1");
            }
            let object = Box::new(serde_json::from_value(node).unwrap());
            self.inputs.send(Input::Node(Change::Applied(object))).await.unwrap();
        }

        async fn agent(&self, ready: bool) {
            let object = Box::new(serde_json::from_value(agent_pod(ready)).unwrap());
            self.inputs.send(Input::Pod(Change::Applied(object))).await.unwrap();
        }

        /// The causes for which classes are closed, once they are as expected; else what they stayed at.
        async fn closed(&self, expected: &[(&str, bool)]) {
            let seen = || {
                let view = self.books.view();
                let node = view.snapshot.node("n").cloned();
                let classes = node.iter().flat_map(|node| node.classes().to_vec()).collect::<Vec<_>>();
                classes
                    .iter()
                    .map(|class| (class.class.to_string(), class.closed.is_some()))
                    .collect::<Vec<_>>()
            };
            let wanted: Vec<(String, bool)> = expected
                .iter()
                .map(|(class, closed)| ((*class).to_owned(), *closed))
                .collect();
            for _ in 0..10_000 {
                if seen() == wanted {
                    return;
                }
                tokio::task::yield_now().await;
            }
            assert_eq!(seen(), wanted);
        }
    }

    fn agent_pod(ready: bool) -> Value {
        let ready = if ready { "True" } else { "False" };
        json!({"metadata": {"name": "agent", "namespace": "t", "uid": "agent", "labels": {"tessera.dev/component": "agent"}},
            "spec": {"nodeName": "n", "containers": [{"name": "agent"}]},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}})
    }

    #[tokio::test]
    async fn a_class_of_our_agent_is_closed_while_the_agents_pod_is_not_ready() {
        let desk = Desk::open();
        desk.node(true).await;
        desk.closed(&[("NVIDIA", false), ("Vastai", false)]).await;
        desk.agent(false).await;
        desk.closed(&[("NVIDIA", true), ("Vastai", false)]).await;
        let freed = desk.books.view().freed;
        desk.agent(true).await;
        desk.closed(&[("NVIDIA", false), ("Vastai", false)]).await;
        assert!(desk.books.view().freed > freed, "waiting pods are woken");
        let gone = Box::new(serde_json::from_value(agent_pod(true)).unwrap());
        desk.inputs.send(Input::Pod(Change::Gone(gone))).await.unwrap();
        desk.closed(&[("NVIDIA", true), ("Vastai", false)]).await;
        // A foreign plugin takes the node over.
        desk.node(false).await;
        desk.closed(&[("NVIDIA", false), ("Vastai", false)]).await;
    }

    #[tokio::test]
    async fn an_agent_seen_before_its_node_counts_when_the_node_comes() {
        let desk = Desk::open();
        desk.agent(false).await;
        desk.node(true).await;
        desk.closed(&[("NVIDIA", true), ("Vastai", false)]).await;
    }
}
