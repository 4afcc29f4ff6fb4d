//! The seam between the engine and a device class.
//!
//! A class is data first ([`ResourceNames`], [`AnnotationKeys`], [`Rules`]) and code only where it differs. The
//! engine asks every class the same questions in the same order and never names one. All methods are pure.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use tessera_types::{
    Allocation, Ask, Card, CardPolicy, ClassAllocation, ContainerRole, Cores, Demand, Keyword, Mib, MigReservation,
    NodePolicy, Placement, Reason, ReasonKind, Selection, WHOLE_CARD_CORES,
};
use tessera_wire::{ContainerView, NodeView, PodView};

use crate::edit::{Admit, AdmitSettings, ContainerEdit};
use crate::error::{AllocationProblem, NodeProblem, RequestError};
use crate::node::{CardView, NodeState};
use crate::topology;

/// The resource names of a class. An absent name is not served.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResourceNames {
    /// How many cards.
    pub count: Option<String>,
    /// Memory of each card, in MiB times [`ResourceNames::memory_factor`].
    pub memory: Option<String>,
    /// Memory of each card in percent.
    pub memory_percent: Option<String>,
    /// Compute of each card in percent.
    pub cores: Option<String>,
    /// Priority of the task.
    pub priority: Option<String>,
    /// What one unit of the memory resource is, in MiB; at least 1. A quota on memory is in the same unit.
    pub memory_factor: u32,
    /// Further names that belong to the class.
    pub others: Vec<String>,
}

impl ResourceNames {
    /// All names of the class: those that make a pod this scheduler's business.
    pub fn managed(&self) -> impl Iterator<Item = &str> {
        [
            &self.count,
            &self.memory,
            &self.memory_percent,
            &self.cores,
            &self.priority,
        ]
        .into_iter()
        .flatten()
        .chain(&self.others)
        .map(String::as_str)
    }

    /// The memory unit in MiB, never 0.
    #[must_use]
    pub fn factor(&self) -> u64 {
        u64::from(self.memory_factor.max(1))
    }
}

/// The annotation keys of a class, on nodes and on pods. An absent key is not used.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AnnotationKeys {
    /// Node: the list of cards.
    pub register: Option<String>,
    /// Node: the handshake that HAMi's scheduler and plugins keep.
    pub handshake: Option<String>,
    /// Node: link scores between cards.
    pub scores: Option<String>,
    /// Pod: the device text that a plugin consumes.
    pub to_allocate: Option<String>,
    /// Pod: the device text that stays.
    pub allocated: Option<String>,
    /// Pod: further keys that carry an allocation (hardware instances).
    pub extra: Vec<String>,
    /// Pod: keys a user may write.
    pub user: Vec<String>,
}

impl AnnotationKeys {
    /// The keys that only a scheduler or a plugin may write on a pod.
    pub fn allocation(&self) -> impl Iterator<Item = &str> {
        [&self.to_allocate, &self.allocated]
            .into_iter()
            .flatten()
            .chain(&self.extra)
            .map(String::as_str)
    }
}

/// How it is known that a node still serves a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HealthSource {
    /// The handshake annotation, and the count resource in the node's allocatable.
    HandshakeAndAllocatable,
    /// The handshake annotation alone.
    Handshake,
    /// The count resource in the node's capacity is positive.
    Capacity,
    /// The register annotation is there.
    AnnotationPresent,
    /// Nothing is watched.
    Always,
}

/// Which mark on a node keeps other pods out between bind and allocate, when a foreign plugin serves the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LockKind {
    /// None.
    None,
    /// The one that most classes share.
    Shared,
    /// A key of the class's own.
    Own(String),
}

/// Which of the engine's common checks apply to a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Cards that an administrator cordoned are refused.
    pub cordon: bool,
    /// Each card is checked against the namespace's quota.
    pub quota: bool,
    /// `topology-aware` chooses the best linked of all fitting cards.
    pub topology: bool,
    /// `mutex` admits unused cards only.
    pub mutex: bool,
    /// The numa-bind switch keeps the cards of a container on one NUMA node.
    pub numa: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            cordon: true,
            quota: true,
            topology: true,
            mutex: true,
            numa: true,
        }
    }
}

/// What one container wants of each card.
#[derive(Debug, Clone, Copy)]
pub struct Want<'a> {
    /// The ask as parsed.
    pub ask: &'a Ask,
    /// The pod's constraints for the class.
    pub selection: &'a Selection,
    /// Memory on the card under test, resolved.
    pub memory: Mib,
    /// Compute on the card under test, resolved and at most a whole card.
    pub cores: Cores,
}

/// A hardware instance that a card is cut for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// The profile's name.
    pub profile: Arc<str>,
    /// Where it lies.
    pub placement: Placement,
}

/// What a container really takes of a card: the ask after rounding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Take {
    /// Memory held.
    pub memory: Mib,
    /// Compute held.
    pub cores: Cores,
    /// The instance, for a card that is cut into such.
    pub instance: Option<Instance>,
}

/// A card that passed all checks.
#[derive(Debug, Clone)]
pub struct Candidate<'a> {
    /// Position among the node's cards. A card that may be given several times stands in the list several times.
    pub position: usize,
    /// The card.
    pub card: &'a Card,
    /// What it would give.
    pub take: Take,
}

/// What a hook may look at besides the card.
#[derive(Debug, Clone, Copy)]
pub struct FitContext<'a> {
    /// The node with all its bookings.
    pub node: &'a NodeState,
    /// The card policy in force.
    pub policy: &'a CardPolicy,
    /// When the container under test runs.
    pub role: ContainerRole,
    /// Cards (positions on the node) given to earlier containers of this pod, with the role of each.
    pub earlier: &'a [(ContainerRole, usize)],
}

/// One device class. Every question has an answer from data; a class overrides what differs.
///
/// The order of the questions for one card: health, cordon, [`Vendor::accepts`], NUMA, ids, slots, mutex,
/// [`Vendor::resolve`], quota, memory, compute, exclusivity, [`Vendor::check`]. The first that fails is the reason.
pub trait Vendor: Send + Sync + Debug {
    /// The class's fixed text.
    fn keyword(&self) -> &Keyword;

    /// Its resource names.
    fn names(&self) -> &ResourceNames;

    /// Its annotation keys.
    fn keys(&self) -> &AnnotationKeys;

    /// How its presence on a node is known.
    fn health(&self) -> HealthSource;

    /// Which node lock its foreign plugin needs.
    fn node_lock(&self) -> LockKind {
        LockKind::Shared
    }

    /// Which common checks apply.
    fn rules(&self) -> Rules {
        Rules::default()
    }

    /// The class's cards on `node`, in registration order.
    ///
    /// # Errors
    /// [`NodeProblem::Absent`] if the node says nothing about the class; anything else closes the node for it.
    fn decode_node(&self, node: &NodeView) -> Result<Vec<Card>, NodeProblem>;

    /// What [`FitContext::node`] should remember of the node for the class's own rules; nothing by default.
    fn node_facts(&self, node: &NodeView) -> BTreeMap<String, String> {
        let _ = node;
        BTreeMap::new()
    }

    /// Whether a registered card is one the class hands out. A card it does not is kept for usage, but not offered.
    fn serves(&self, card: &Card) -> bool {
        let _ = card;
        true
    }

    /// What `container` asks of the class; `None` if nothing.
    ///
    /// # Errors
    /// The request cannot mean anything; says field, fault and next step.
    fn parse(&self, container: &ContainerView, pod: &PodView) -> Result<Option<Ask>, RequestError>;

    /// Which cards the pod accepts.
    ///
    /// # Errors
    /// A constraint cannot be read.
    fn selection(&self, pod: &PodView) -> Result<Selection, RequestError>;

    /// A reason against the whole node; asked once for each ask.
    fn refuse_node(&self, want: &Want<'_>, ctx: &FitContext<'_>) -> Option<Reason> {
        let _ = (want, ctx);
        None
    }

    /// Whether model and mode of the card are acceptable.
    ///
    /// # Errors
    /// The kind of reason against the card.
    fn accepts(&self, card: CardView<'_>, want: &Want<'_>, ctx: &FitContext<'_>) -> Result<(), ReasonKind> {
        let _ = ctx;
        common_accepts(card.card, want.selection)
    }

    /// Memory and compute that the ask means on this card.
    fn resolve(&self, card: &Card, ask: &Ask) -> (Mib, Cores) {
        (ask.memory.on(card.memory), ask.cores.min(WHOLE_CARD_CORES))
    }

    /// The last check of a card, and the rounding to what it really gives.
    ///
    /// # Errors
    /// The reason against the card.
    fn check(&self, card: CardView<'_>, want: &Want<'_>, ctx: &FitContext<'_>) -> Result<Take, Reason> {
        let _ = (card, ctx);
        Ok(Take {
            memory: want.memory,
            cores: want.cores,
            instance: None,
        })
    }

    /// Whether one container may get several devices of this card (hardware instances).
    fn repeats(&self, card: &Card, selection: &Selection) -> bool {
        let _ = (card, selection);
        false
    }

    /// Whether all fitting cards are wanted for [`Vendor::choose`], instead of the first that suffice.
    fn gathers(&self, want: &Want<'_>, ctx: &FitContext<'_>) -> bool {
        let _ = want;
        self.rules().topology && ctx.policy.has(tessera_types::CardOrder::TopologyAware)
    }

    /// Which of the fitting cards (in order of examination, at least as many as asked for): indices into `fitting`.
    /// `None` refuses the node.
    fn choose(&self, fitting: &[Candidate<'_>], want: &Want<'_>, ctx: &FitContext<'_>) -> Option<Vec<usize>> {
        let count = usize::try_from(want.ask.count).unwrap_or(usize::MAX);
        if !self.gathers(want, ctx) {
            return (fitting.len() >= count).then(|| (0..count).collect());
        }
        if self.rules().numa && want.selection.numa_bind {
            return topology::best_set_on_one_numa_node(fitting, count);
        }
        topology::best_set(fitting, count).map(|best| best.members)
    }

    /// What the class adds to a node's score; 0 by default. `policy` is the node policy in force.
    fn node_score(&self, placed: &ClassAllocation, node: &NodeState, policy: NodePolicy) -> f64 {
        let _ = (placed, node, policy);
        0.0
    }

    /// What is written on the pod for this class. Empty if the allocation has nothing of the class.
    fn annotations(&self, allocation: &Allocation, demand: &Demand) -> BTreeMap<String, String>;

    /// What a pod's annotations say it was given. `None` if they say nothing about the class.
    ///
    /// # Errors
    /// The text cannot be read.
    fn read_allocation(
        &self,
        annotations: &BTreeMap<String, String>,
    ) -> Result<Option<(ClassAllocation, Vec<MigReservation>)>, AllocationProblem>;

    /// What the class wants remembered of a pod for its own rules about neighbours on a card; nothing by default.
    fn pod_facts(&self, pod: &PodView) -> BTreeMap<String, String> {
        let _ = pod;
        BTreeMap::new()
    }

    /// Changes one container at admission.
    ///
    /// # Errors
    /// The request is refused.
    fn admit(
        &self,
        container: &mut ContainerEdit<'_>,
        pod: &PodView,
        settings: &AdmitSettings,
    ) -> Result<Admit, RequestError>;
}

/// The rule for model and mode that most classes share: model lists match case-insensitively anywhere in the model's
/// name, an empty entry matches nothing; the accepted modes, if stated, must contain the card's mode.
///
/// # Errors
/// [`ReasonKind::ModelMismatch`] or [`ReasonKind::CardMode`].
pub fn common_accepts(card: &Card, selection: &Selection) -> Result<(), ReasonKind> {
    if selection.use_models.is_some() || selection.avoid_models.is_some() {
        let model = card.model.to_lowercase();
        let any = |list: &[String]| {
            list.iter()
                .any(|entry| !entry.is_empty() && model.contains(&entry.to_lowercase()))
        };
        if selection.use_models.as_deref().is_some_and(|list| !any(list)) {
            return Err(ReasonKind::ModelMismatch);
        }
        if selection.avoid_models.as_deref().is_some_and(any) {
            return Err(ReasonKind::ModelMismatch);
        }
    }
    match &selection.modes {
        Some(modes) if !modes.contains(card.mode.as_str()) => Err(ReasonKind::CardMode),
        _ => Ok(()),
    }
}

/// Splits a user's comma list: trimmed entries; a blank text is no list. Entries that are blank stay as empty texts,
/// which match nothing.
#[must_use]
pub fn comma_list(text: Option<&str>) -> Option<Vec<String>> {
    let text = text?;
    if text.trim().is_empty() {
        return None;
    }
    Some(text.split(',').map(|entry| entry.trim().to_owned()).collect())
}

/// Reads a boolean as Go's `strconv.ParseBool` does; anything else is `None`.
#[must_use]
pub fn go_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// All classes, in keyword order.
#[derive(Debug, Clone, Default)]
pub struct Vendors(Vec<Arc<dyn Vendor>>);

impl Vendors {
    /// Sorted by keyword; of two with the same keyword the first stays.
    #[must_use]
    pub fn new(mut vendors: Vec<Arc<dyn Vendor>>) -> Self {
        vendors.sort_by(|a, b| a.keyword().cmp(b.keyword()));
        vendors.dedup_by(|later, earlier| later.keyword() == earlier.keyword());
        Self(vendors)
    }

    /// In keyword order.
    pub fn iter(&self) -> std::slice::Iter<'_, Arc<dyn Vendor>> {
        self.0.iter()
    }

    /// The class of this keyword.
    #[must_use]
    pub fn get(&self, keyword: &Keyword) -> Option<&dyn Vendor> {
        self.position(keyword).map(|at| &*self.0[at])
    }

    /// Where the class stands in [`Vendors::iter`].
    #[must_use]
    pub fn position(&self, keyword: &Keyword) -> Option<usize> {
        self.0.iter().position(|vendor| vendor.keyword() == keyword)
    }

    /// The class at a position of [`Vendors::iter`].
    #[must_use]
    pub fn at(&self, position: usize) -> Option<&dyn Vendor> {
        self.0.get(position).map(|vendor| &**vendor)
    }

    /// Whether `name` is a resource of any class.
    #[must_use]
    pub fn manages(&self, name: &str) -> bool {
        self.iter()
            .any(|vendor| vendor.names().managed().any(|managed| managed == name))
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'a> IntoIterator for &'a Vendors {
    type Item = &'a Arc<dyn Vendor>;
    type IntoIter = std::slice::Iter<'a, Arc<dyn Vendor>>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}
