//! The seam between the engine and a device class.
//!
//! A class is data first ([`ResourceNames`], [`AnnotationKeys`], [`Rules`]) and code only where it differs. The
//! engine asks every class the same questions in the same order and never names one. All methods are pure.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::sync::Arc;

use tessera_types::{
    Allocation, Ask, Card, CardId, CardPolicy, CardUsage, ClassAllocation, ContainerRole, Cores, Demand, Dimension,
    Extras, Keyword, Mib, MigReservation, NodeName, NodePolicy, Placement, Reason, ReasonKind, Selection,
    WHOLE_CARD_CORES,
};
use tessera_wire::{ContainerView, NodeView, PodView, Quantity, device_text};

use crate::edit::{Admit, AdmitSettings, ContainerEdit};
use crate::error::{AllocationProblem, NodeProblem, RequestError};
use crate::fit::Given;
use crate::node::{CardView, NodeState};
use crate::quota;
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
    /// A quota on memory with a unit (`8Gi`) means bytes, not so many units.
    pub memory_suffix_is_bytes: bool,
    /// Compute is booked in units of which each model has another number, so that no quota counts it.
    pub cores_by_model: bool,
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

    /// What a quota's limit on the memory resource is, in the resource's unit, rounded down.
    #[must_use]
    pub fn memory_limit(&self, quantity: &Quantity) -> u64 {
        let limit = quota::whole(quantity);
        let has_unit = quantity.as_str().ends_with(|c: char| c.is_ascii_alphabetic());
        if self.memory_suffix_is_bytes && has_unit {
            (limit >> 20) / self.factor()
        } else {
            limit
        }
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

/// A container's request by the names that are common to all classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unified {
    /// Cards, at least 1.
    pub count: u64,
    /// Memory of each, rounded up; `None` is all of it.
    pub memory_mib: Option<u64>,
    /// Compute of each in percent, 1 to 100; `None` says nothing.
    pub cores: Option<u64>,
}

/// How it is known that a node still serves a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HealthSource {
    /// The handshake annotation, and the count resource in the node's allocatable.
    HandshakeAndAllocatable,
    /// The handshake annotation alone.
    Handshake,
    /// The count resource in the node's allocatable is positive.
    Allocatable,
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
    /// A key of the class's own whose value is the bare moment of locking (RFC 3339), without an owner. Who holds it
    /// cannot be told, so it is released only by whoever wrote the value.
    Timed {
        /// The annotation.
        key: String,
        /// After how many seconds it counts as free.
        lapses_seconds: u32,
    },
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
    /// All the compute of a card (100 of 100) is given on an unused card only.
    pub whole_alone: bool,
    /// A claim on no compute at all is refused where all compute is promised.
    pub exhausted: bool,
    /// The reason against a card that does not work.
    pub unhealthy: ReasonKind,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            cordon: true,
            quota: true,
            topology: true,
            mutex: true,
            numa: true,
            whole_alone: true,
            exhausted: true,
            unhealthy: ReasonKind::Unhealthy,
        }
    }
}

/// What one container wants of each card.
#[derive(Debug, Clone, Copy)]
pub struct Want<'a> {
    /// The ask as parsed.
    pub ask: &'a Ask,
    /// How many cards on this node.
    pub count: u32,
    /// The pod's constraints for the class.
    pub selection: &'a Selection,
    /// Memory on the card under test, resolved.
    pub memory: Mib,
    /// Compute on the card under test, resolved and at most a whole card.
    pub cores: Cores,
    /// What it names of the amounts that the class counts besides.
    pub extra: Extras,
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
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Take {
    /// Memory held.
    pub memory: Mib,
    /// Compute held.
    pub cores: Cores,
    /// What it holds of the amounts that the class counts besides.
    pub extra: Extras,
    /// The instance, for a card that is cut into such.
    pub instance: Option<Instance>,
}

impl Take {
    /// What was asked for, unrounded.
    #[must_use]
    pub fn as_wanted(want: &Want<'_>) -> Self {
        Self {
            memory: want.memory,
            cores: want.cores,
            extra: want.extra,
            instance: None,
        }
    }

    /// One slot and the amounts.
    #[must_use]
    pub fn usage(&self) -> CardUsage {
        CardUsage {
            slots: 1,
            memory: self.memory,
            cores: self.cores,
            extra: self.extra,
        }
    }
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
    /// What this pod has been given so far on the node, of all classes, in order.
    pub earlier: &'a [Earlier],
}

/// A card given before to the pod under decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Earlier {
    /// Position of the container in the pod.
    pub container: u32,
    /// When that container runs.
    pub role: ContainerRole,
    /// The card, position on the node.
    pub position: usize,
    /// What was given of it.
    pub take: Take,
}

/// Where and when an allocation is written.
#[derive(Debug, Clone, Copy)]
pub struct WriteContext<'a> {
    /// The node.
    pub node: &'a NodeName,
    /// Seconds since 1970.
    pub now_seconds: i64,
    /// The node's cards; empty if the node is not known any more.
    pub cards: &'a [Card],
}

impl WriteContext<'_> {
    /// The card of this id.
    #[must_use]
    pub fn card(&self, id: &CardId) -> Option<&Card> {
        self.cards.iter().find(|card| card.id == *id)
    }
}

/// One device class. Every question has an answer from data; a class overrides what differs.
///
/// The order of the questions for one card: health, cordon, [`Vendor::accepts`], NUMA, ids, slots, mutex,
/// [`Vendor::resolve`], quota, memory, compute, exclusivity, further amounts, [`Vendor::check`], [`Vendor::joins`]. The first that fails is
/// the reason. What `check` rounds up is compared again in every dimension.
pub trait Vendor: Send + Sync + Debug {
    /// The class's fixed text.
    fn keyword(&self) -> &Keyword;

    /// Its resource names.
    fn names(&self) -> &ResourceNames;

    /// Its annotation keys.
    fn keys(&self) -> &AnnotationKeys;

    /// How its presence on a node is known.
    fn health(&self) -> HealthSource;

    /// Whether our own node agent serves the class, so that no foreign plugin has to be kept in step on its nodes.
    fn own_agent(&self) -> bool {
        false
    }

    /// Which node lock its foreign plugin needs.
    fn node_lock(&self) -> LockKind {
        LockKind::Shared
    }

    /// The amounts that the class counts besides slots, memory and compute, at most
    /// [`EXTRA_AMOUNTS`](tessera_types::EXTRA_AMOUNTS): the position in this list is the position in [`Extras`]. The
    /// names are those of [`Ask::extra`], and people read them in reasons ("AI CPUs").
    fn extra_names(&self) -> &[&str] {
        &[]
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

    /// Where what the node says of a card contradicts what the class knows of it, as a clause. Such a card takes no new
    /// work, and the clause is reported.
    fn disagreement(&self, card: &Card) -> Option<String> {
        let _ = card;
        None
    }

    /// Environment variables through which the class's driver or plugin is told what a container may use. A container
    /// with devices may not set them itself.
    fn reserved_env(&self) -> &[&str] {
        &[]
    }

    /// What `container` asks of the class; `None` if nothing. Asked only of a container that names one of
    /// [`Vendor::names`].
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

    /// How many of the class's `cards` the ask means on a node that has these; as asked by default.
    fn count_on(&self, ask: &Ask, cards: &[Card]) -> u32 {
        let _ = cards;
        ask.count
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
        Ok(Take::as_wanted(want))
    }

    /// Whether `added` may join what is on the card, by rules that no sum can say (modes and policies that exclude
    /// each other). Asked in fitting, after all other checks, and again when the decision is booked, so that two
    /// decisions made at the same time cannot break it. `card.usage` is what others hold, and in fitting also what the
    /// pod's earlier containers do; `facts` are the pod's own, those of the others are in [`NodeState::tenants`].
    ///
    /// # Errors
    /// The kind of reason against the card.
    fn joins(
        &self,
        card: CardView<'_>,
        added: CardUsage,
        facts: &BTreeMap<String, String>,
        node: &NodeState,
    ) -> Result<(), ReasonKind> {
        let _ = (card, added, facts, node);
        Ok(())
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
        let count = usize::try_from(want.count).unwrap_or(usize::MAX);
        if !self.gathers(want, ctx) {
            return (fitting.len() >= count).then(|| (0..count).collect());
        }
        if self.rules().numa && want.selection.numa_bind {
            return topology::best_set_on_one_numa_node(fitting, count);
        }
        if count == 1 {
            let in_use = |at: usize| ctx.node.usage().get(at).is_some_and(|used| used.usage.slots > 0);
            return topology::best_single(fitting, in_use).map(|at| vec![at]);
        }
        topology::best_set(fitting, count).map(|best| best.members)
    }

    /// What is said beside the cards' own reasons when the cards found do not suffice: too few, or none of their sets
    /// pleases [`Vendor::choose`] although all fitting ones were gathered.
    fn conclude(
        &self,
        found: &[Given],
        gathered: bool,
        want: &Want<'_>,
        ctx: &FitContext<'_>,
        reasons: &mut Vec<Reason>,
    ) {
        let _ = ctx;
        let numa_bind = want.selection.numa_bind && self.rules().numa;
        common_conclusion(found.len(), gathered && numa_bind, want.count, reasons);
    }

    /// What the class adds to a node's score; 0 by default. `policy` is the node policy in force.
    fn node_score(&self, placed: &ClassAllocation, selection: &Selection, node: &NodeState, policy: NodePolicy) -> f64 {
        let _ = (placed, selection, node, policy);
        0.0
    }

    /// The word that stands for the class in a share of this card; plugins read it. The keyword by default.
    fn written_as(&self, card: &Card) -> Keyword {
        card.class.clone()
    }

    /// What is written on the pod for this class. Empty if the allocation has nothing of the class. By default the
    /// device text under the keys to allocate and allocated.
    fn annotations(&self, allocation: &Allocation, demand: &Demand, at: &WriteContext<'_>) -> BTreeMap<String, String> {
        let _ = (demand, at);
        device_texts(self.keyword(), self.keys(), allocation)
    }

    /// What a pod's annotations say it was given. `None` if they say nothing about the class. By default what the
    /// device text under the key allocated says.
    ///
    /// # Errors
    /// The text cannot be read.
    fn read_allocation(
        &self,
        annotations: &BTreeMap<String, String>,
    ) -> Result<Option<(ClassAllocation, Vec<MigReservation>)>, AllocationProblem> {
        read_device_text(self.keys(), annotations)
    }

    /// What the class wants remembered of a pod for its own rules about neighbours on a card; nothing by default.
    fn pod_facts(&self, pod: &PodView) -> BTreeMap<String, String> {
        let _ = pod;
        BTreeMap::new()
    }

    /// A request by the common names in the class's own; `None` if the class cannot say it. By default one resource
    /// for each, memory rounded up to the class's unit.
    fn translate(&self, request: &Unified) -> Option<Vec<(String, u64)>> {
        let names = self.names();
        let mut own = vec![(names.count.clone()?, request.count)];
        if let Some(mib) = request.memory_mib {
            own.push((names.memory.clone()?, mib.div_ceil(names.factor())));
        }
        if let Some(cores) = request.cores {
            own.push((names.cores.clone()?, cores));
        }
        Some(own)
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

/// The reason beside the cards' own that most classes share: so many fit, but not enough of them.
pub fn common_conclusion(found: usize, numa_split: bool, wanted: u32, reasons: &mut Vec<Reason>) {
    let found_u32 = u32::try_from(found).unwrap_or(u32::MAX);
    if numa_split && found_u32 >= wanted {
        let mut reason = Reason::of(ReasonKind::NumaMismatch, None);
        reason.count = found_u32;
        reasons.push(reason);
    }
    if found > 0 {
        let mut reason = Reason::short(
            ReasonKind::TooFewFit,
            None,
            Dimension::Cards,
            u64::from(wanted),
            u64::from(found_u32),
        );
        reason.count = found_u32;
        reasons.push(reason);
    }
}

/// The device text of a class's shares, under each of the two keys that the class has.
#[must_use]
pub fn device_texts(class: &Keyword, keys: &AnnotationKeys, allocation: &Allocation) -> BTreeMap<String, String> {
    let Some(shares) = allocation.classes.get(class) else {
        return BTreeMap::new();
    };
    let text = device_text::print(shares);
    [&keys.to_allocate, &keys.allocated]
        .into_iter()
        .flatten()
        .map(|key| (key.clone(), text.clone()))
        .collect()
}

/// What the device text that stays says; `None` without one.
///
/// # Errors
/// The text cannot be read.
pub fn read_device_text(
    keys: &AnnotationKeys,
    annotations: &BTreeMap<String, String>,
) -> Result<Option<(ClassAllocation, Vec<MigReservation>)>, AllocationProblem> {
    let Some((key, text)) = keys
        .allocated
        .as_ref()
        .and_then(|key| annotations.get(key).map(|text| (key, text)))
    else {
        return Ok(None);
    };
    match device_text::parse(text) {
        Ok(class) => Ok(Some((class, Vec::new()))),
        Err(error) => Err(AllocationProblem {
            key: key.clone(),
            fault: error.to_string(),
            text: text.clone(),
        }),
    }
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
pub struct Vendors {
    /// In keyword order.
    all: Vec<Arc<dyn Vendor>>,
    /// Who has a resource name, so that a pod costs what it asks for and not what could be asked.
    by_resource: HashMap<String, Vec<usize>>,
}

impl Vendors {
    /// Sorted by keyword; of two with the same keyword the first stays.
    #[must_use]
    pub fn new(mut vendors: Vec<Arc<dyn Vendor>>) -> Self {
        vendors.sort_by(|a, b| a.keyword().cmp(b.keyword()));
        vendors.dedup_by(|later, earlier| later.keyword() == earlier.keyword());
        let mut by_resource: HashMap<String, Vec<usize>> = HashMap::new();
        for (at, vendor) in vendors.iter().enumerate() {
            for name in vendor.names().managed() {
                let having = by_resource.entry(name.to_owned()).or_default();
                if having.last() != Some(&at) {
                    having.push(at);
                }
            }
        }
        Self {
            all: vendors,
            by_resource,
        }
    }

    /// The classes of which the container names a resource, in keyword order: nobody else can have been asked.
    pub(crate) fn named_by(&self, container: &ContainerView) -> impl Iterator<Item = &Arc<dyn Vendor>> {
        let names = container.limits.keys().chain(container.requests.keys());
        let mut named: Vec<usize> = names
            .filter_map(|name| self.by_resource.get(name))
            .flatten()
            .copied()
            .collect();
        named.sort_unstable();
        named.dedup();
        named.into_iter().filter_map(|at| self.all.get(at))
    }

    /// In keyword order.
    pub fn iter(&self) -> std::slice::Iter<'_, Arc<dyn Vendor>> {
        self.all.iter()
    }

    /// The class of this keyword.
    #[must_use]
    pub fn get(&self, keyword: &Keyword) -> Option<&dyn Vendor> {
        self.position(keyword).map(|at| &*self.all[at])
    }

    /// Where the class stands in [`Vendors::iter`].
    #[must_use]
    pub fn position(&self, keyword: &Keyword) -> Option<usize> {
        self.all.binary_search_by(|vendor| vendor.keyword().cmp(keyword)).ok()
    }

    /// The class at a position of [`Vendors::iter`].
    #[must_use]
    pub fn at(&self, position: usize) -> Option<&dyn Vendor> {
        self.all.get(position).map(|vendor| &**vendor)
    }

    /// Whether `name` is a resource of any class.
    #[must_use]
    pub fn manages(&self, name: &str) -> bool {
        self.by_resource.contains_key(name)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}

impl<'a> IntoIterator for &'a Vendors {
    type Item = &'a Arc<dyn Vendor>;
    type IntoIter = std::slice::Iter<'a, Arc<dyn Vendor>>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}
