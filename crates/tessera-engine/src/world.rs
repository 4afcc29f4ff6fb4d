//! The one mutable owner of what is known: watch events go in, snapshots come out.
//!
//! Bookings are a pure function of API objects, plus what this process has decided and not yet seen confirmed (each
//! such entry has a lease). Nothing is stored elsewhere, so a restart reads the same truth again, and an event that
//! comes twice or late changes nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use tessera_types::{Allocation, CardUsage, ContainerRole, Keyword, NodeName, PodId, PodUid, Reason, SmallMap};
use tessera_wire::{NodeView, PodView, Quantity, keys};

use crate::booking::{Booking, BookingState};
use crate::decide::demand_of;
use crate::error::{AllocationProblem, NodeProblem};
use crate::holding::Holding;
use crate::index::Index;
use crate::node::{NodeFacts, NodeState, Nomination, recount};
use crate::observe::{derive, facts, input_hash, no_facts};
use crate::pack::Packer;
use crate::quota::{self, Quotas};
use crate::snapshot::{BookingTable, NodeTable, Snapshot};
use crate::vendor::Vendors;
use crate::verify;

/// How long an allocation written on a pod that is not bound holds its cards, counted from when it was first seen.
const UNBOUND_LEASE_SECONDS: i64 = 120;
/// How long room that was made for a pod is kept for it, counted from when its nomination was first seen.
const NOMINATION_SECONDS: i64 = 60;

/// What a Node event did.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct NodeChange {
    /// Anything a decision depends on is different.
    pub changed: bool,
    /// Pods that waited might fit now.
    pub frees: bool,
    /// Classes that the node names but cannot be used for.
    pub problems: Vec<(Keyword, NodeProblem)>,
}

/// What a Pod event did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodChange {
    /// A booking was made or changed.
    pub booked: bool,
    /// A booking ended or became smaller: pods that waited might fit now.
    pub frees: bool,
    /// What is wrong with the pod's annotations.
    pub problems: Vec<PodProblem>,
}

/// What is wrong with an allocation written on a pod.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PodProblem {
    /// The pod runs on another node than the one its allocation is for. It books nothing.
    #[error("the allocation is for node {annotated}, the pod is bound to {bound}; nothing is booked")]
    BoundElsewhere {
        /// Node of the allocation.
        annotated: String,
        /// Node of the pod.
        bound: String,
    },
    /// The pod asks for no device. Its allocation was not written by a scheduler and books nothing.
    #[error("the pod asks for no device but carries an allocation; nothing is booked")]
    Forged,
    /// The allocation cannot be read; the cards it might name are closed for new work.
    #[error("{0}; the cards it might name take no new work")]
    Unreadable(#[from] AllocationProblem),
}

/// Why a decision can no longer be booked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AssumeError {
    /// The pod is bound already.
    #[error("the pod is bound to {0} already")]
    AlreadyBound(NodeName),
    /// The pod is bound to no node, or holds nothing there.
    #[error("the pod holds no cards (any more)")]
    NotBound,
    /// The node is gone or registers no cards.
    #[error("node {0} registers no cards any more")]
    NodeGone(NodeName),
    /// The node takes no new work for a class.
    #[error("node {node} takes no new {class} work: {cause}")]
    ClassClosed {
        /// The node.
        node: NodeName,
        /// The class.
        class: Keyword,
        /// Why.
        cause: String,
    },
    /// A card is gone.
    #[error("card {0} is gone")]
    CardGone(tessera_types::CardId),
    /// A card, or the namespace's quota, has been taken in the meantime.
    #[error("{}", crate::text::reason(.0))]
    Taken(Reason),
}

/// A decision to be booked before it is written.
#[derive(Debug, Clone)]
pub struct Assumption<'a> {
    /// Whose.
    pub pod: &'a PodId,
    /// The roles of the pod's containers, in order.
    pub roles: &'a [ContainerRole],
    /// Where.
    pub node: &'a NodeName,
    /// Which cards.
    pub allocation: Arc<Allocation>,
    /// The pod's priority.
    pub priority: i32,
    /// What the demand says for the pod's neighbours.
    pub facts: &'a BTreeMap<Keyword, BTreeMap<String, String>>,
    /// Seconds since 1970.
    pub now: i64,
    /// When it is void unless confirmed.
    pub expires_at: i64,
}

/// A difference between what is counted and what the bookings add up to. There should never be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BookingDifference {
    /// A card's usage.
    #[error("card {card} on {node}: counted {counted:?}, booked {booked:?}")]
    Card {
        /// Node.
        node: NodeName,
        /// Card.
        card: tessera_types::CardId,
        /// As counted.
        counted: CardUsage,
        /// As booked.
        booked: CardUsage,
    },
    /// Hardware instances or closures of a card.
    #[error("card {card} on {node}: instances or closures differ from the bookings")]
    Instances {
        /// Node.
        node: NodeName,
        /// Card.
        card: tessera_types::CardId,
    },
    /// A pod's booking is known in one place only.
    #[error("pod {0} is booked in one table only")]
    Pod(PodUid),
    /// A namespace's usage.
    #[error("quota usage of namespaces differs from the bookings")]
    Quota,
}

static NO_MORE: More = More {
    written_at: None,
    deadline: None,
    assumed: None,
    nominated: None,
    nomination_over: None,
    void: None,
    raised: None,
};

impl std::ops::Deref for Record {
    type Target = More;

    fn deref(&self) -> &More {
        self.more.as_deref().unwrap_or(&NO_MORE)
    }
}

impl std::ops::DerefMut for Record {
    fn deref_mut(&mut self) -> &mut More {
        self.more.get_or_insert_default()
    }
}

#[derive(Debug, Clone, PartialEq)]
struct Assumed {
    booking: Arc<Booking>,
    at: i64,
    expires_at: i64,
}

/// What is known of a pod. Of nearly all pods that is a booking of a pod that is bound, and nothing else.
#[derive(Debug, Clone, Default)]
struct Record {
    /// From the annotations.
    derived: Option<Arc<Booking>>,
    more: Option<Box<More>>,
}

/// What is known of a pod until it is bound.
#[derive(Debug, Clone, Default, PartialEq)]
struct More {
    /// `hami.io/vgpu-time` beside the booking, of a pod that is not bound.
    written_at: Option<String>,
    /// When an unbound derived booking ends.
    deadline: Option<i64>,
    /// From this process.
    assumed: Option<Assumed>,
    /// Node that room is being made on, with the end of the nomination once that is known.
    nominated: Option<(NodeName, Arc<Nomination>, Option<i64>)>,
    /// A nomination that has ended must not begin again by an update.
    nomination_over: Option<NodeName>,
    /// The `hami.io/vgpu-time` of an allocation that must not count again while the pod is unbound.
    void: Option<Option<String>>,
    /// Of a bound pod: what its allocation is about to become, if that is more.
    raised: Option<Assumed>,
}

#[derive(Debug, Clone, Default)]
struct NodeInput {
    hash: u64,
    problems: Vec<(Keyword, NodeProblem)>,
    /// Classes closed from outside, with the cause.
    closed: BTreeMap<Keyword, String>,
}

/// All that is known. See the module.
#[derive(Debug)]
pub struct World {
    vendors: Arc<Vendors>,
    nodes: NodeTable,
    inputs: HashMap<NodeName, NodeInput>,
    bookings: BookingTable,
    quotas: Arc<Quotas>,
    /// Of a pod without a record the booking says all: it is bound. See [`World::open`].
    records: HashMap<PodUid, Record>,
    leases: BTreeSet<(i64, PodUid)>,
    /// Unbound bookings whose lease starts with the next [`World::expire`].
    undated: BTreeSet<PodUid>,
    unbound_lease: i64,
    /// By node, also of nodes that are not known (yet).
    nominations: BTreeMap<NodeName, BTreeMap<PodUid, Arc<Nomination>>>,
    version: u64,
    index: Arc<Index>,
    packer: Packer,
}

impl World {
    /// Knows nothing yet.
    #[must_use]
    pub fn new(vendors: Arc<Vendors>) -> Self {
        Self {
            vendors,
            nodes: NodeTable::default(),
            inputs: HashMap::new(),
            bookings: BookingTable::default(),
            quotas: Arc::default(),
            records: HashMap::new(),
            leases: BTreeSet::new(),
            undated: BTreeSet::new(),
            unbound_lease: UNBOUND_LEASE_SECONDS,
            nominations: BTreeMap::new(),
            version: 0,
            index: Arc::default(),
            packer: Packer::default(),
        }
    }

    /// The device classes.
    #[must_use]
    pub fn vendors(&self) -> &Arc<Vendors> {
        &self.vendors
    }

    /// How long an allocation written on a pod that is not bound holds its cards. 120 seconds unless set; longer than
    /// any gang waits, if a foreign scheduler writes at filter.
    pub fn set_unbound_lease(&mut self, seconds: i64) {
        self.unbound_lease = seconds.max(1);
    }

    /// The picture as it is now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            vendors: Arc::clone(&self.vendors),
            nodes: self.nodes.clone(),
            bookings: self.bookings.clone(),
            quotas: Arc::clone(&self.quotas),
            version: self.version,
            index: Arc::clone(&self.index),
            packed: self.packer.packed(),
        }
    }

    /// Takes a Node as it is now. A text that cannot be read closes the node for that class only; an unchanged node
    /// costs a hash.
    pub fn set_node(&mut self, node: &NodeView) -> NodeChange {
        let hash = input_hash(node);
        let input = self.inputs.entry(node.name.clone()).or_default();
        if input.hash == hash && self.nodes.get(node.name.as_str()).is_some() {
            return NodeChange {
                problems: input.problems.clone(),
                ..NodeChange::default()
            };
        }
        let (facts, problems) = facts(&self.vendors, node, &input.closed);
        input.hash = hash;
        input.problems.clone_from(&problems);
        let changed = self.put_facts(facts);
        NodeChange {
            changed,
            frees: changed,
            problems,
        }
    }

    /// Closes a class on a node for new work, or opens it again: the agent is gone, the handshake is stale. What runs
    /// there stays booked. Returns whether anything changed.
    pub fn set_class_closed(&mut self, node: &str, class: &Keyword, cause: Option<String>) -> bool {
        let Some(state) = self.nodes.get(node) else {
            return false;
        };
        let name = state.name().clone();
        let input = self.inputs.entry(name.clone()).or_default();
        let old = match &cause {
            Some(cause) => input.closed.insert(class.clone(), cause.clone()),
            None => input.closed.remove(class),
        };
        if old == cause || state.class(class).is_none() {
            return false;
        }
        let facts = &state.facts;
        let mut classes = facts.classes.clone();
        for on_node in classes.iter_mut().filter(|on_node| on_node.class == *class) {
            on_node.closed = cause.clone().or_else(|| on_node.closed_by_node.clone());
        }
        let facts = NodeFacts {
            name,
            cards: facts.cards.clone(),
            served: facts.served.clone(),
            cordoned: facts.cordoned.clone(),
            classes,
            cpu: facts.cpu,
            others: facts.others.clone(),
        };
        self.put_facts(facts)
    }

    /// The Node is gone. Pods on it stay booked until they are gone too.
    pub fn remove_node(&mut self, name: &str) {
        let Some(node) = self.nodes.get(name) else { return };
        let name = node.name().clone();
        self.inputs.remove(&name);
        if node.bookings.is_empty() {
            self.nodes.remove(name.as_str());
            self.version += 1;
        } else {
            self.put_facts(no_facts(name));
        }
    }

    fn put_facts(&mut self, facts: NodeFacts) -> bool {
        let name = facts.name.clone();
        match self.nodes.get(name.as_str()) {
            Some(node) if *node.facts == facts => return false,
            Some(_) => {
                self.version += 1;
                let version = self.version;
                if let Some(node) = self.nodes.get_mut(name.as_str()) {
                    node.set_facts(Arc::new(facts));
                    node.version = version;
                }
            }
            None => {
                self.version += 1;
                self.nodes
                    .insert(NodeState::new(Arc::new(facts), Vec::new(), self.version));
                self.show_nominations(&name, self.version);
                self.show_cpu(&name);
            }
        }
        true
    }

    /// Takes a Pod as it is now. See [`BookingState`] for what counts; a pod that has ended, or is bound to another
    /// node than its allocation names, books nothing from this call on. One being deleted books until it is gone.
    pub fn set_pod(&mut self, pod: &PodView) -> PodChange {
        let uid = &pod.id.uid;
        self.see_host(pod);
        let (mut derived, problems) = derive(&self.vendors, pod);
        if let Some(booking) = &mut derived
            && let Some(node) = self.nodes.get(booking.node.as_str())
        {
            booking.node = node.name().clone();
            booking.held.share_ids(node.cards());
        }
        self.open(uid);
        let known = self.records.contains_key(uid);
        let nominated = self.nomination(pod);
        if derived.is_none() && nominated.is_none() && !known {
            return PodChange {
                problems,
                ..PodChange::default()
            };
        }
        let bound = pod.node_name.is_some();
        // Tells attempts apart, of which a bound pod has no more.
        let written_at = pod.annotations.get(keys::VGPU_TIME).filter(|_| !bound).cloned();
        let record = self.records.entry(uid.clone()).or_default();
        let ended = pod.phase.is_terminal() || (!bound && pod.deleting);
        // Written by now, or pointless.
        if record.raised.as_ref().is_some_and(|raised| {
            derived.as_ref().is_none_or(|derived| {
                derived.node != raised.booking.node || derived.shares().eq(raised.booking.shares())
            })
        }) {
            record.raised = None;
        }
        if ended || bound {
            // Bound: from here on the annotations say what it holds, or it was bound by someone else.
            record.assumed = None;
            record.void = None;
        } else if let Some(assumed) = &record.assumed
            && pod.scheduled_false_since.is_some_and(|since| since > assumed.at)
        {
            record.assumed = None;
        }
        let voided = !bound && record.void.as_ref().is_some_and(|void| *void == written_at);
        let derived = derived.filter(|_| !voided);
        let fresh = match (&derived, &record.derived) {
            (Some(new), Some(old)) => new.node != old.node || written_at != record.written_at,
            (Some(_), None) => true,
            (None, _) => false,
        };
        let unbound = derived
            .as_ref()
            .is_some_and(|booking| booking.state == BookingState::Unbound);
        if !unbound {
            record.deadline = None;
        } else if fresh {
            record.deadline = None;
            self.undated.insert(uid.clone());
        }
        record.written_at = written_at;
        record.derived = match (derived, record.derived.take()) {
            (Some(new), Some(old)) if new == *old => Some(old),
            (new, _) => new.map(Arc::new),
        };
        self.nominate(uid, nominated);
        let (booked, frees) = self.settle(uid);
        if ended {
            // Nothing of it can come back.
            self.records.remove(uid);
            self.undated.remove(uid);
        } else {
            self.close(uid);
        }
        PodChange {
            booked,
            frees,
            problems,
        }
    }

    /// The pod is gone. Returns whether it held anything.
    pub fn remove_pod(&mut self, uid: &PodUid) -> bool {
        let changed = self.packer.end(uid);
        self.show_changed_cpu(changed);
        self.open(uid);
        let Some(record) = self.records.get_mut(uid) else {
            return false;
        };
        record.derived = None;
        record.assumed = None;
        record.raised = None;
        self.nominate(uid, None);
        let (_, frees) = self.settle(uid);
        self.records.remove(uid);
        self.undated.remove(uid);
        frees
    }

    /// Books a decision until it is seen on the pod or its lease ends. An earlier assumption for the pod is replaced.
    ///
    /// Everything is checked again on the current state, so a decision made on an older snapshot cannot overbook.
    ///
    /// # Errors
    /// The decision does not hold any more; nothing is booked, and an earlier assumption stays.
    pub fn assume(&mut self, assumption: &Assumption<'_>) -> Result<(), AssumeError> {
        let uid = &assumption.pod.uid;
        let booking = Booking {
            pod: assumption.pod.clone(),
            node: assumption.node.clone(),
            held: Holding::new(&assumption.allocation, assumption.roles, false),
            state: BookingState::Assumed,
            priority: assumption.priority,
            since: Some(assumption.now),
            deleting: false,
            closures: Box::default(),
            facts: assumption.facts.clone(),
        };
        if let Some(bound) = self.bookings.get(uid)
            && bound.state == BookingState::Bound
        {
            return Err(AssumeError::AlreadyBound(bound.node.clone()));
        }
        verify::holds(&self.vendors, &self.nodes, &self.bookings, &self.quotas, &booking)?;
        let record = self.records.entry(uid.clone()).or_default();
        // What an earlier attempt wrote on the pod is void, whatever becomes of this one.
        if record.derived.take().is_some() {
            record.void = Some(record.written_at.clone());
            record.deadline = None;
        }
        record.assumed = Some(Assumed {
            booking: Arc::new(booking),
            at: assumption.now,
            expires_at: assumption.expires_at,
        });
        self.leases.insert((assumption.expires_at, uid.clone()));
        self.nominate(uid, None);
        self.settle(uid);
        Ok(())
    }

    /// Books a larger share for a pod that is bound, before it is written on the pod: `raised` is the pod as it will
    /// read. Ends when it reads so, with [`World::forget`], or with its lease.
    ///
    /// # Errors
    /// The cards or the quota have no room; nothing changes then.
    pub fn raise(&mut self, raised: &PodView, now: i64, expires_at: i64) -> Result<(), AssumeError> {
        let uid = &raised.id.uid;
        let (booking, _) = derive(&self.vendors, raised);
        let bound = self.bookings.get(uid).filter(|own| own.state == BookingState::Bound);
        let (Some(mut booking), Some(_)) = (booking, bound) else {
            return Err(AssumeError::NotBound);
        };
        verify::holds(&self.vendors, &self.nodes, &self.bookings, &self.quotas, &booking)?;
        if let Some(node) = self.nodes.get(booking.node.as_str()) {
            booking.node = node.name().clone();
            booking.held.share_ids(node.cards());
        }
        self.open(uid);
        let Some(record) = self.records.get_mut(uid) else {
            return Ok(());
        };
        record.raised = Some(Assumed {
            booking: Arc::new(booking),
            at: now,
            expires_at,
        });
        self.leases.insert((expires_at, uid.clone()));
        self.settle(uid);
        Ok(())
    }

    /// Lengthens the lease of an assumption, for example when the Binding was accepted but the watch is late. Returns
    /// whether there is one.
    pub fn extend(&mut self, uid: &PodUid, expires_at: i64) -> bool {
        let Some(assumed) = self.records.get_mut(uid).and_then(|record| record.assumed.as_mut()) else {
            return false;
        };
        assumed.expires_at = assumed.expires_at.max(expires_at);
        self.leases.insert((assumed.expires_at, uid.clone()));
        true
    }

    /// Drops what was decided for a pod that is not bound: an assumption, and an allocation that an earlier attempt
    /// wrote on it. A bound pod keeps its booking. Returns whether anything was freed.
    pub fn forget(&mut self, uid: &PodUid) -> bool {
        let Some(record) = self.records.get_mut(uid) else {
            return false;
        };
        record.assumed = None;
        record.raised = None;
        if record
            .derived
            .as_ref()
            .is_some_and(|booking| booking.state != BookingState::Bound)
        {
            record.derived = None;
            record.void = Some(record.written_at.clone());
            record.deadline = None;
        }
        let freed = self.settle(uid).1;
        self.close(uid);
        freed
    }

    /// Ends all leases up to `now`. Returns whose bookings ended with theirs.
    pub fn expire(&mut self, now: i64) -> Vec<PodUid> {
        for uid in std::mem::take(&mut self.undated) {
            let Some(record) = self.records.get_mut(&uid) else {
                continue;
            };
            if let Some((_, _, end @ None)) = &mut record.nominated {
                let until = now.saturating_add(NOMINATION_SECONDS);
                *end = Some(until);
                self.leases.insert((until, uid.clone()));
            }
            let unbound = record
                .derived
                .as_ref()
                .is_some_and(|booking| booking.state == BookingState::Unbound);
            if unbound && record.deadline.is_none() {
                let deadline = now.saturating_add(self.unbound_lease);
                record.deadline = Some(deadline);
                self.leases.insert((deadline, uid));
            }
        }
        let mut ended = Vec::new();
        while let Some((at, uid)) = self.leases.first().cloned() {
            if at > now {
                break;
            }
            self.leases.remove(&(at, uid.clone()));
            let Some(record) = self.records.get_mut(&uid) else {
                continue;
            };
            if record.assumed.as_ref().is_some_and(|assumed| assumed.expires_at <= now) {
                record.assumed = None;
            }
            if record.raised.as_ref().is_some_and(|raised| raised.expires_at <= now) {
                record.raised = None;
            }
            let unbound = record
                .derived
                .as_ref()
                .is_some_and(|booking| booking.state == BookingState::Unbound);
            if unbound && record.deadline.is_some_and(|deadline| deadline <= now) {
                record.derived = None;
                record.deadline = None;
                record.void = Some(record.written_at.clone());
            }
            let over = record
                .nominated
                .as_ref()
                .filter(|(_, _, end)| end.is_some_and(|end| end <= now));
            if let Some((node, _, _)) = over {
                record.nomination_over = Some(node.clone());
                self.nominate(&uid, None);
            }
            if self.settle(&uid).1 {
                ended.push(uid.clone());
            }
            self.close(&uid);
        }
        ended
    }

    /// When the next lease ends; `None` if none runs. An unbound booking whose lease has not started gives `Some(0)`.
    #[must_use]
    pub fn next_expiry(&self) -> Option<i64> {
        if !self.undated.is_empty() {
            return Some(0);
        }
        self.leases.first().map(|(at, _)| *at)
    }

    /// Takes one `ResourceQuota`'s `spec.hard`. Returns whether anything changed.
    pub fn set_quota(&mut self, namespace: &str, object: &str, hard: &BTreeMap<String, Quantity>) -> bool {
        let vendors = Arc::clone(&self.vendors);
        let counted = |name: &str, quantity: &Quantity| {
            vendors.iter().map(|vendor| vendor.names()).find_map(|names| {
                if names.memory.as_deref() == Some(name) {
                    Some(names.memory_limit(quantity))
                } else {
                    (names.cores.as_deref() == Some(name)).then(|| quota::whole(quantity))
                }
            })
        };
        let changed = Arc::make_mut(&mut self.quotas).set_counted(namespace, object, hard, counted);
        self.version += u64::from(changed);
        changed
    }

    /// A `ResourceQuota` is gone. Returns whether it had limited anything.
    pub fn remove_quota(&mut self, namespace: &str, object: &str) -> bool {
        let changed = Arc::make_mut(&mut self.quotas).remove(namespace, object);
        self.version += u64::from(changed);
        changed
    }

    /// Adds everything up again and compares. Empty when all is well.
    #[must_use]
    pub fn audit(&self) -> Vec<BookingDifference> {
        let mut differences = Vec::new();
        let mut quotas = self.quotas.limits_only();
        let mut on_nodes = 0_usize;
        for node in self.nodes.iter() {
            on_nodes += node.bookings.len();
            let booked = recount(&node.facts, &node.bookings);
            for ((card, counted), booked) in node.cards().iter().zip(node.usage()).zip(&booked) {
                if counted.usage != booked.usage {
                    differences.push(BookingDifference::Card {
                        node: node.name().clone(),
                        card: card.id.clone(),
                        counted: counted.usage,
                        booked: booked.usage,
                    });
                }
                let same = counted.instances.len() == booked.instances.len()
                    && counted.instances.iter().all(|held| booked.instances.contains(held))
                    && counted.closed_by == booked.closed_by;
                if !same {
                    differences.push(BookingDifference::Instances {
                        node: node.name().clone(),
                        card: card.id.clone(),
                    });
                }
            }
            for booking in &node.bookings {
                let uid = &booking.pod.uid;
                if !self.bookings.get(uid).is_some_and(|other| Arc::ptr_eq(other, booking)) {
                    differences.push(BookingDifference::Pod(uid.clone()));
                }
            }
        }
        if on_nodes != self.bookings.len() {
            let lost = self.bookings.iter().filter(|booking| {
                !self
                    .nodes
                    .get(booking.node.as_str())
                    .is_some_and(|node| node.bookings.iter().any(|other| Arc::ptr_eq(other, booking)))
            });
            differences.extend(lost.map(|booking| BookingDifference::Pod(booking.pod.uid.clone())));
        }
        for booking in self.bookings.iter() {
            charge(&self.vendors, &mut quotas, booking, true);
        }
        if quotas != *self.quotas {
            differences.push(BookingDifference::Quota);
        }
        differences
    }

    /// Counts everything anew from the bookings. For the case that [`World::audit`] finds something.
    pub fn recount(&mut self) {
        let mut by_node: BTreeMap<NodeName, Vec<Arc<Booking>>> = BTreeMap::new();
        let mut quotas = self.quotas.limits_only();
        for booking in self.bookings.iter() {
            by_node
                .entry(booking.node.clone())
                .or_default()
                .push(Arc::clone(booking));
            charge(&self.vendors, &mut quotas, booking, true);
        }
        self.quotas = Arc::new(quotas);
        let mut facts: BTreeMap<NodeName, Arc<NodeFacts>> = self
            .nodes
            .iter()
            .map(|node| (node.name().clone(), Arc::clone(&node.facts)))
            .collect();
        for name in by_node.keys() {
            facts
                .entry(name.clone())
                .or_insert_with(|| Arc::new(no_facts(name.clone())));
        }
        for (name, facts) in facts {
            self.version += 1;
            let bookings = by_node.remove(&name).unwrap_or_default();
            self.nodes.insert(NodeState::new(facts, bookings, self.version));
            self.show_nominations(&name, self.version);
            self.show_cpu(&name);
        }
    }

    /// Takes over what `live` has booked on these nodes, and its quotas.
    pub(crate) fn adopt<'a>(&mut self, live: &Snapshot, nodes: impl Iterator<Item = &'a NodeName>) {
        let names: BTreeSet<&NodeName> = nodes.collect();
        self.quotas = Arc::new(live.quotas.limits_only());
        self.packer.adopt(&live.packed);
        for booking in live.bookings.iter() {
            if names.contains(&booking.node) {
                let record = self.records.entry(booking.pod.uid.clone()).or_default();
                record.derived = Some(Arc::clone(booking));
                self.settle(&booking.pod.uid);
            } else {
                charge(&self.vendors, Arc::make_mut(&mut self.quotas), booking, true);
            }
        }
    }

    /// What a pod's `status.nominatedNodeName` reserves: the node and the demand.
    fn nomination(&self, pod: &PodView) -> Option<(NodeName, Arc<Nomination>)> {
        if pod.node_name.is_some() || pod.deleting || pod.phase.is_terminal() {
            return None;
        }
        let node = NodeName::new(pod.nominated_node.as_deref()?).ok()?;
        let demand = demand_of(&self.vendors, pod).ok()?;
        (!demand.is_empty()).then(|| (node, Arc::new(Nomination { demand })))
    }

    /// Makes the nodes say which nomination the pod has.
    fn nominate(&mut self, uid: &PodUid, new: Option<(NodeName, Arc<Nomination>)>) {
        let Some(record) = self.records.get_mut(uid) else {
            return;
        };
        // What is booked for the pod is reserved already.
        let waiting = record.assumed.is_none();
        let new = new.filter(|(node, _)| waiting && record.nomination_over.as_ref() != Some(node));
        let old = record.nominated.take();
        let same = matches!((&old, &new), (Some((a, x, _)), Some((b, y))) if a == b && x == y);
        if same {
            record.nominated = old;
            return;
        }
        if let Some((node, nomination)) = &new {
            record.nominated = Some((node.clone(), Arc::clone(nomination), None));
            self.undated.insert(uid.clone());
        }
        if old.is_none() && new.is_none() {
            return;
        }
        self.version += 1;
        let version = self.version;
        if let Some((node, ..)) = old
            && let Some(on_node) = self.nominations.get_mut(&node)
        {
            on_node.remove(uid);
            if on_node.is_empty() {
                self.nominations.remove(&node);
            }
            self.show_nominations(&node, version);
        }
        if let Some((node, nomination)) = new {
            self.nominations
                .entry(node.clone())
                .or_default()
                .insert(uid.clone(), nomination);
            self.show_nominations(&node, version);
        }
    }

    fn show_nominations(&mut self, name: &NodeName, version: u64) {
        let nominations = self.nominations.get(name).map(|all| all.values().cloned().collect());
        if let Some(node) = self.nodes.get_mut(name.as_str()) {
            node.set_nominations(nominations.unwrap_or_default());
            node.version = version;
        }
    }

    /// Counts the pod's CPU where it runs, and learns from its request when it is seen for the first time.
    fn see_host(&mut self, pod: &PodView) {
        let seen = self.packer.see(pod);
        self.show_changed_cpu(seen.changed);
        if !seen.first {
            return;
        }
        let Ok(demand) = demand_of(&self.vendors, pod) else {
            return;
        };
        if self.packer.count(&demand, &self.nodes) {
            // Remembered scores go by what was known when they were made.
            self.version += 1;
        }
    }

    fn show_changed_cpu(&mut self, changed: [Option<NodeName>; 2]) {
        for name in changed.into_iter().flatten() {
            self.version += 1;
            self.show_cpu(&name);
        }
    }

    fn show_cpu(&mut self, name: &NodeName) {
        let used = self.packer.cpu_used(name);
        if self.nodes.get(name.as_str()).is_none_or(|node| node.cpu_used == used) {
            return;
        }
        let version = self.version;
        if let Some(node) = self.nodes.get_mut(name.as_str()) {
            node.set_cpu_used(used);
            node.version = version;
        }
    }

    /// Makes the record of a pod that is to change, if the pod has but a booking.
    fn open(&mut self, uid: &PodUid) {
        if !self.records.contains_key(uid)
            && let Some(booking) = self.bookings.get(uid)
        {
            let record = Record {
                derived: Some(Arc::clone(booking)),
                more: None,
            };
            self.records.insert(uid.clone(), record);
        }
    }

    /// A record that says nothing beyond the booking of a bound pod is not kept.
    fn close(&mut self, uid: &PodUid) {
        let Some(record) = self.records.get_mut(uid) else {
            return;
        };
        if record.more.as_deref() == Some(&NO_MORE) {
            record.more = None;
        }
        let bound = |booking: &Arc<Booking>| booking.state == BookingState::Bound;
        if record.more.is_none() && record.derived.as_ref().is_none_or(bound) {
            self.records.remove(uid);
        }
    }

    /// Pods that anything is remembered of. After a gap in the watch, those that a new list lacks are to be removed.
    pub fn known_pods(&self) -> impl Iterator<Item = &PodUid> {
        let bound = self.bookings.iter().map(|booking| &booking.pod.uid);
        let bound = bound.filter(|uid| !self.records.contains_key(*uid));
        self.records.keys().chain(bound)
    }

    /// Nodes that were set and not removed. After a gap in the watch, those that a new list lacks are to be removed.
    pub fn known_nodes(&self) -> impl Iterator<Item = &NodeName> {
        self.inputs.keys()
    }

    /// Makes the tables say what the record says. Returns (booked or changed, freed).
    fn settle(&mut self, uid: &PodUid) -> (bool, bool) {
        let new = self
            .records
            .get(uid)
            .and_then(|record| match (&record.derived, &record.assumed) {
                (Some(derived), _) if derived.state == BookingState::Bound => {
                    let raised = record.raised.as_ref().map(|raised| &raised.booking);
                    Some(Arc::clone(raised.unwrap_or(derived)))
                }
                (_, Some(assumed)) => Some(Arc::clone(&assumed.booking)),
                (derived, None) => derived.clone(),
            });
        let old = self.bookings.get(uid).cloned();
        match (&old, &new) {
            (None, None) => return (false, false),
            (Some(old), Some(new)) if Arc::ptr_eq(old, new) => return (false, false),
            _ => {}
        }
        self.version += 1;
        let version = self.version;
        if let Some(old) = &old {
            self.bookings.remove(uid);
            charge(&self.vendors, Arc::make_mut(&mut self.quotas), old, false);
            let mut empty = false;
            if let Some(node) = self.nodes.get_mut(old.node.as_str()) {
                node.take(uid);
                node.version = version;
                empty = node.bookings.is_empty() && node.facts.cards.is_empty();
            }
            let known = self.inputs.contains_key(&old.node);
            if empty && !known && new.as_ref().is_none_or(|new| new.node != old.node) {
                self.nodes.remove(old.node.as_str());
            }
        }
        if let Some(new) = &new {
            self.bookings.insert(Arc::clone(new));
            charge(&self.vendors, Arc::make_mut(&mut self.quotas), new, true);
            match self.nodes.get_mut(new.node.as_str()) {
                Some(node) => {
                    node.put(Arc::clone(new));
                    node.version = version;
                }
                None => {
                    let facts = Arc::new(no_facts(new.node.clone()));
                    self.nodes.insert(NodeState::new(facts, vec![Arc::clone(new)], version));
                }
            }
        }
        let changed = self.packer.promise(uid, new.as_ref().map(|booking| &booking.node));
        self.show_changed_cpu(changed);
        let frees = match (&old, &new) {
            (Some(_), None) => true,
            (Some(old), Some(new)) => old.node != new.node || !old.usage().eq(new.usage()) || !old.closures.is_empty(),
            (None, _) => false,
        };
        (new.is_some(), frees)
    }
}

/// Adds or removes a booking's amounts in the quota usage of its namespace.
fn charge(vendors: &Vendors, quotas: &mut Quotas, booking: &Booking, add: bool) {
    for (class, sum) in by_class(booking) {
        let Some(vendor) = vendors.get(class) else { continue };
        let namespace = booking.pod.namespace.as_str();
        if add {
            quotas.charge(namespace, vendor.names(), sum.memory, sum.cores);
        } else {
            quotas.release(namespace, vendor.names(), sum.memory, sum.cores);
        }
    }
}

/// The usage of a pod, summed by class.
pub(crate) fn by_class(booking: &Booking) -> SmallMap<&Keyword, CardUsage> {
    let mut sums = SmallMap::default();
    for (_, class, amount) in booking.usage() {
        let sum: &mut CardUsage = sums.or_default(&class);
        *sum = sum.plus(amount);
    }
    sums
}
