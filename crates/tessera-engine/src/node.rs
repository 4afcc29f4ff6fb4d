//! A node as a decision sees it: its registered cards, what is in use of each, and whose bookings that is.
//!
//! Immutable once published. A change makes a new [`NodeState`] with a new version; decisions that were remembered
//! for the old one die with it, so nothing has to be invalidated.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use tessera_types::{Card, CardUsage, Demand, Keyword, NodeName, Placement};

use crate::booking::{Booking, effects};
use crate::decide::Outcome;
use crate::order;
use crate::shape::Shape;

/// How many decisions a node remembers. Pods come in waves of few shapes.
const REMEMBERED: usize = 4;

/// A hardware instance that exists, or will, on a card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The profile's name.
    pub profile: Arc<str>,
    /// Where it lies.
    pub placement: Placement,
}

/// What is in use of one card.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CardUse {
    /// Slots, memory, compute.
    pub usage: CardUsage,
    /// Instances, one entry for each booking that holds it.
    pub instances: Vec<Held>,
    /// How many bookings make it impossible to tell what is free.
    pub closed_by: u32,
}

/// A card and what is in use of it, as a class's hook sees it: the usage may include what the pod under decision has
/// been given already.
#[derive(Debug, Clone, Copy)]
pub struct CardView<'a> {
    /// Position among the node's cards.
    pub position: usize,
    /// The card.
    pub card: &'a Card,
    /// What is in use.
    pub usage: CardUsage,
    /// Instances that no one else may touch.
    pub instances: &'a [Held],
    /// Instances of this pod's own init containers. A later container may take exactly such an instance again, since
    /// the one before has ended by then, but none that overlaps it otherwise.
    pub reusable: &'a [Held],
}

/// One class on one node.
#[derive(Debug, Clone, PartialEq)]
pub struct ClassOnNode {
    /// Which.
    pub class: Keyword,
    /// Its cards.
    pub cards: Range<usize>,
    /// Why no new work is taken, as a clause.
    pub closed: Option<String>,
    /// The part of that which the node's own text says.
    pub(crate) closed_by_node: Option<String>,
    /// What the class remembers of the node.
    pub facts: BTreeMap<String, String>,
}

/// A pod that room is being made for on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nomination {
    /// What it asks for.
    pub demand: Demand,
}

/// What changes only with the Node object.
#[derive(Debug, PartialEq)]
pub(crate) struct NodeFacts {
    pub(crate) name: NodeName,
    /// All classes' cards, class by class in keyword order, registration order inside.
    pub(crate) cards: Vec<Card>,
    /// Same positions: offered by its class.
    pub(crate) served: Vec<bool>,
    /// Same positions: kept free by an administrator.
    pub(crate) cordoned: Vec<bool>,
    pub(crate) classes: Vec<ClassOnNode>,
    /// CPU that pods may have, milli-cores, if the node says so.
    pub(crate) cpu: Option<u32>,
    /// Extended resources that the node offers and no class manages, in order of names.
    pub(crate) others: Vec<Box<str>>,
}

/// A node with its cards, their usage and the bookings on it.
#[derive(Debug)]
pub struct NodeState {
    pub(crate) facts: Arc<NodeFacts>,
    pub(crate) version: u64,
    pub(crate) usage: Vec<CardUse>,
    /// Ordered by pod uid.
    pub(crate) bookings: Vec<Arc<Booking>>,
    /// Highest priority first, then by pod uid.
    nominations: Vec<Arc<Nomination>>,
    /// CPU that pods on the node ask for, milli-cores, pods without cards too.
    pub(crate) cpu_used: u64,
    /// All cards together: what there is, what is in use.
    sums: (CardUsage, CardUsage),
    memory: Mutex<Vec<(Arc<Shape>, Outcome)>>,
}

impl Clone for NodeState {
    fn clone(&self) -> Self {
        Self {
            facts: Arc::clone(&self.facts),
            version: self.version,
            usage: self.usage.clone(),
            bookings: self.bookings.clone(),
            nominations: self.nominations.clone(),
            cpu_used: self.cpu_used,
            sums: self.sums,
            memory: Mutex::default(),
        }
    }
}

impl NodeState {
    pub(crate) fn new(facts: Arc<NodeFacts>, mut bookings: Vec<Arc<Booking>>, version: u64) -> Self {
        bookings.sort_by(|a, b| a.pod.uid.cmp(&b.pod.uid));
        let usage = recount(&facts, &bookings);
        let mut node = Self {
            facts,
            version,
            usage,
            bookings,
            nominations: Vec::new(),
            cpu_used: 0,
            sums: Default::default(),
            memory: Mutex::default(),
        };
        node.renew();
        node
    }

    /// A node whose usage is given, not booked.
    pub(crate) fn with_usage(facts: Arc<NodeFacts>, usage: Vec<CardUse>) -> Self {
        let mut node = Self::new(facts, Vec::new(), 0);
        node.usage = usage;
        node.renew();
        node
    }

    /// The node's name.
    #[must_use]
    pub fn name(&self) -> &NodeName {
        &self.facts.name
    }

    /// Grows with every change of the node, and is never used twice in one process.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// All cards, class by class in keyword order, registration order inside.
    #[must_use]
    pub fn cards(&self) -> &[Card] {
        &self.facts.cards
    }

    /// What is in use, in the order of [`NodeState::cards`].
    #[must_use]
    pub fn usage(&self) -> &[CardUse] {
        &self.usage
    }

    /// Whether an administrator keeps new work off the card at this position.
    #[must_use]
    pub fn is_cordoned(&self, position: usize) -> bool {
        self.facts.cordoned.get(position).copied().unwrap_or(false)
    }

    /// Whether the card at this position can take work: it works, and what is on it is known.
    #[must_use]
    pub fn is_healthy(&self, position: usize) -> bool {
        self.facts.cards.get(position).is_some_and(|card| card.healthy)
            && self.usage.get(position).is_some_and(|used| used.closed_by == 0)
    }

    /// The classes that the node registers.
    #[must_use]
    pub fn classes(&self) -> &[ClassOnNode] {
        &self.facts.classes
    }

    /// One class on this node.
    #[must_use]
    pub fn class(&self, class: &Keyword) -> Option<&ClassOnNode> {
        self.facts.classes.iter().find(|on_node| on_node.class == *class)
    }

    /// The bookings on this node, ordered by pod uid.
    #[must_use]
    pub fn bookings(&self) -> &[Arc<Booking>] {
        &self.bookings
    }

    /// Pods that room is being made for here, highest priority first.
    #[must_use]
    pub fn nominations(&self) -> &[Arc<Nomination>] {
        &self.nominations
    }

    pub(crate) fn set_nominations(&mut self, mut nominations: Vec<Arc<Nomination>>) {
        nominations.sort_by(|a, b| (b.demand.priority, &a.demand.pod.uid).cmp(&(a.demand.priority, &b.demand.pod.uid)));
        self.nominations = nominations;
    }

    /// The bookings that hold a part of the card at this position.
    pub fn tenants(&self, position: usize) -> impl Iterator<Item = &Booking> {
        let card = self.facts.cards.get(position);
        self.bookings.iter().map(|booking| &**booking).filter(move |booking| {
            let holds = |card: &Card| {
                booking
                    .usage()
                    .any(|(id, class, _)| *id == card.id && *class == card.class)
            };
            card.is_some_and(holds)
        })
    }

    /// The node's fill before any decision: ten times the sum of the used fractions of slots, compute and memory over
    /// all its cards; 0 if any of the three has no total.
    #[must_use]
    pub fn base_score(&self) -> f32 {
        let (total, used) = self.sums;
        order::fill(total, used)
    }

    /// The node's fill with `added` on top, of the amounts that have a total.
    pub(crate) fn fill_with(&self, added: CardUsage) -> f32 {
        let (total, used) = self.sums;
        order::known_fill(total, used.plus(added))
    }

    /// The node without the bookings of `uids`.
    #[must_use]
    pub(crate) fn without(&self, drop: impl Fn(&Booking) -> bool) -> Self {
        let left = self.bookings.iter().filter(|booking| !drop(booking)).cloned().collect();
        let mut node = Self::new(Arc::clone(&self.facts), left, self.version);
        node.cpu_used = self.cpu_used;
        node
    }

    /// CPU that no pod asks for, milli-cores; `None` if the node does not say what it has.
    #[must_use]
    pub fn cpu_left(&self) -> Option<u32> {
        let all = self.facts.cpu?;
        Some(all.saturating_sub(u32::try_from(self.cpu_used).unwrap_or(u32::MAX)))
    }

    pub(crate) fn set_cpu_used(&mut self, milli: u64) {
        self.cpu_used = milli;
        self.renew();
    }

    pub(crate) fn put(&mut self, booking: Arc<Booking>) {
        let place = self
            .bookings
            .binary_search_by(|other| other.pod.uid.cmp(&booking.pod.uid));
        for effect in effects(&booking, &self.facts.cards) {
            let Some(used) = self.usage.get_mut(effect.card) else {
                continue;
            };
            used.usage = used.usage.plus(effect.usage);
            used.instances.extend(effect.instances);
            used.closed_by += u32::from(effect.closes);
        }
        match place {
            Ok(at) | Err(at) => self.bookings.insert(at, booking),
        }
        self.renew();
    }

    pub(crate) fn take(&mut self, uid: &tessera_types::PodUid) -> Option<Arc<Booking>> {
        let at = self.bookings.binary_search_by(|other| other.pod.uid.cmp(uid)).ok()?;
        let booking = self.bookings.remove(at);
        for effect in effects(&booking, &self.facts.cards) {
            let Some(used) = self.usage.get_mut(effect.card) else {
                continue;
            };
            used.usage = used.usage.minus(effect.usage);
            for held in effect.instances {
                if let Some(at) = used.instances.iter().position(|other| *other == held) {
                    used.instances.remove(at);
                }
            }
            used.closed_by = used.closed_by.saturating_sub(u32::from(effect.closes));
        }
        self.renew();
        Some(booking)
    }

    pub(crate) fn set_facts(&mut self, facts: Arc<NodeFacts>) {
        self.usage = recount(&facts, &self.bookings);
        self.facts = facts;
        self.renew();
    }

    /// The outcome for a shape of this content. `shape` becomes the one that was remembered, so that comparing it with
    /// what other nodes remember of the same wave of pods takes no look at the content.
    pub(crate) fn remembered(&self, shape: &mut Arc<Shape>) -> Option<Outcome> {
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let (known, outcome) = memory.iter().find(|(known, _)| Shape::same(known, shape))?;
        if !Arc::ptr_eq(known, shape) {
            *shape = Arc::clone(known);
        }
        Some(outcome.clone())
    }

    /// The outcome for a shape of this content, which is not remembered any longer: an index keeps what it needs of it.
    pub(crate) fn give_up(&self, shape: &Arc<Shape>) -> Option<Outcome> {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let at = memory.iter().position(|(known, _)| Shape::same(known, shape))?;
        let (_, outcome) = memory.swap_remove(at);
        if memory.is_empty() {
            *memory = Vec::new();
        }
        Some(outcome)
    }

    pub(crate) fn remember(&self, shape: &Arc<Shape>, outcome: &Outcome) {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        if memory.len() >= REMEMBERED {
            drop(memory.remove(0));
        }
        memory.push((Arc::clone(shape), outcome.clone()));
    }

    /// After any change: adds up, and forgets the outcomes of before.
    fn renew(&mut self) {
        let total = |sum: CardUsage, card: &Card| {
            sum.plus(CardUsage {
                slots: card.slots,
                memory: card.memory,
                cores: card.cores,
                extra: card.extra,
            })
        };
        self.sums = (
            self.facts.cards.iter().fold(CardUsage::default(), total),
            self.usage
                .iter()
                .fold(CardUsage::default(), |sum, used| sum.plus(used.usage)),
        );
        *self.memory.get_mut().unwrap_or_else(PoisonError::into_inner) = Vec::new();
    }
}

/// The usage that `bookings` make of the cards, from nothing.
pub(crate) fn recount(facts: &NodeFacts, bookings: &[Arc<Booking>]) -> Vec<CardUse> {
    let mut usage = vec![CardUse::default(); facts.cards.len()];
    for effect in bookings.iter().flat_map(|booking| effects(booking, &facts.cards)) {
        let Some(used) = usage.get_mut(effect.card) else {
            continue;
        };
        used.usage = used.usage.plus(effect.usage);
        used.instances.extend(effect.instances);
        used.closed_by += u32::from(effect.closes);
    }
    usage
}
