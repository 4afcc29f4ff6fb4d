//! Fitting one pod on one node.
//!
//! Containers are placed in the order in which they run. A sidecar stays on its cards for all that follow; an init
//! container is tried beside the sidecars before it and then gives its cards back; app containers add up. So the
//! node can hold the pod at every moment of its life, and what the pod occupies is the largest of these moments.

use std::collections::BTreeMap;
use std::sync::Arc;

use tessera_types::{
    Allocation, Ask, Card, CardOrder, CardUsage, ContainerRole, Cores, Dimension, Extras, Mib, MigReservation,
    NodeRefusal, Reason, ReasonKind, Share, WHOLE_CARD_CORES,
};

use crate::node::{CardView, Held, NodeState};
use crate::order::{self, Rank};
use crate::pack::ScoreTerms;
use crate::quota::Room;
use crate::shape::Shape;
use crate::vendor::{Candidate, Earlier, FitContext, Rules, Take, Vendor, Vendors, Want};

/// A pod's place on a node.
#[derive(Debug, Clone, PartialEq)]
pub struct Placed {
    /// Which cards, container by container.
    pub allocation: Arc<Allocation>,
    /// The node's score: its fill before this pod, plus what the classes add.
    pub score: f64,
    /// Its fill with this pod; decides between equal scores.
    pub score_after: f32,
    /// What the score is made of, under a policy that packs.
    pub terms: Option<ScoreTerms>,
}

/// A card given to a container, before and after rounding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// Position among the node's cards.
    pub position: usize,
    /// Memory asked for on this card.
    pub asked_memory: Mib,
    /// Compute asked for.
    pub asked_cores: Cores,
    /// What it really gives.
    pub take: Take,
}

/// What the pod under decision has on one card so far.
#[derive(Debug, Clone, Copy, Default)]
struct PodOnCard {
    sidecars: CardUsage,
    init_peak: CardUsage,
    apps: CardUsage,
}

impl PodOnCard {
    fn with(mut self, role: ContainerRole, amount: CardUsage) -> Self {
        match role {
            ContainerRole::Init => self.init_peak = self.init_peak.max(self.sidecars.plus(amount)),
            ContainerRole::Sidecar => self.sidecars = self.sidecars.plus(amount),
            ContainerRole::App => self.apps = self.apps.plus(amount),
        }
        self
    }

    fn effective(self) -> CardUsage {
        self.init_peak.max(self.sidecars.plus(self.apps))
    }
}

/// Buffers of one decision, reused from node to node.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    running: Vec<CardUsage>,
    ranks: Vec<Rank>,
    pod: Vec<PodOnCard>,
    /// What the container under test has been given on each card, not yet in `pod`.
    container: Vec<CardUsage>,
    instances: Vec<Vec<Held>>,
    reusable: Vec<Vec<Held>>,
    earlier: Vec<Earlier>,
    given: Vec<Given>,
}

impl Scratch {
    fn load(&mut self, node: &NodeState) {
        let cards = node.cards();
        self.running.clear();
        self.running.extend(node.usage().iter().map(|used| used.usage));
        self.pod.clear();
        self.pod.resize(cards.len(), PodOnCard::default());
        self.container.clear();
        self.container.resize(cards.len(), CardUsage::default());
        self.earlier.clear();
        self.instances.clear();
        self.reusable.clear();
        if cards.iter().any(|card| !card.mig_profiles.is_empty()) {
            self.instances
                .extend(node.usage().iter().map(|used| used.instances.clone()));
            self.reusable.resize(cards.len(), Vec::new());
        }
    }
}

/// Fits the pod of `shape` on `node`.
pub(crate) fn fit_pod(
    vendors: &Vendors,
    node: &NodeState,
    shape: &Shape,
    scratch: &mut Scratch,
) -> Result<Placed, NodeRefusal> {
    scratch.load(node);
    let containers = &shape.content.containers;
    let mut allocation = Allocation::default();
    if let Some(class) = &shape.content.unknown {
        let reasons = vec![Reason::of(ReasonKind::ClassAbsent, None)];
        return Err(NodeRefusal::Cards {
            class: class.clone(),
            cards: 0,
            container: 0,
            reasons,
        });
    }
    for (at, container) in containers.iter().enumerate() {
        let number = u32::try_from(at).unwrap_or(u32::MAX);
        for (vendor_at, ask) in &container.asks {
            let Some(vendor) = vendors.at(*vendor_at) else { continue };
            let fit = ContainerFit {
                vendor,
                rules: vendor.rules(),
                node,
                shape,
                ask,
                role: container.role,
                room: shape.room(*vendor_at),
                selection: shape.selection(*vendor_at),
                facts: shape.facts(*vendor_at),
            };
            fit.run(None, scratch, number)?;
            let class = allocation.classes.or_default(&ask.class);
            class.resize(containers.len(), Vec::new());
            for (device, given) in scratch.given.iter().enumerate() {
                let card = &node.cards()[given.position];
                class[at].push(Share {
                    card: card.id.clone(),
                    class: vendor.written_as(card),
                    memory: given.take.memory,
                    cores: given.take.cores,
                    extra: given.take.extra,
                });
                if let Some(instance) = &given.take.instance {
                    allocation.mig.push(MigReservation {
                        container: number,
                        device: u32::try_from(device).unwrap_or(u32::MAX),
                        card: card.id.clone(),
                        profile: instance.profile.as_ref().to_owned(),
                        placement: instance.placement,
                        runtime: None,
                    });
                }
            }
            settle(scratch, number, container.role);
        }
    }
    let terms = shape.content.packing.as_ref().map(|packing| {
        let added = scratch.pod.iter().map(|on_card| on_card.effective());
        packing.terms(node, added)
    });
    let mut score = terms.map_or_else(|| f64::from(node.base_score()), ScoreTerms::sum);
    for (class, placed) in &allocation.classes {
        if let Some(at) = vendors.position(class)
            && let Some(vendor) = vendors.at(at)
        {
            score += vendor.node_score(placed, shape.selection(at), node, shape.content.node_policy);
        }
    }
    let taken = |at: usize| scratch.earlier.iter().any(|earlier| earlier.position == at);
    let added = scratch
        .pod
        .iter()
        .enumerate()
        .filter(|(at, _)| taken(*at))
        .fold(CardUsage::default(), |sum, (_, on_card)| sum.plus(on_card.effective()));
    // The published rules know no second score: equal nodes are told apart by a fixed order, which itself packs.
    let score_after = match terms {
        Some(ScoreTerms::Fgd { .. }) => 0.0,
        _ => node.fill_with(added),
    };
    Ok(Placed {
        allocation: Arc::new(allocation),
        score,
        score_after,
        terms,
    })
}

/// Books what the container under test was given, as far as later containers meet it.
fn settle(scratch: &mut Scratch, container: u32, role: ContainerRole) {
    for given in &scratch.given {
        let at = given.position;
        scratch.earlier.push(Earlier {
            container,
            role,
            position: at,
            take: given.take.clone(),
        });
        if role != ContainerRole::Init {
            scratch.running[at] = scratch.running[at].plus(given.take.usage());
        }
        if let Some(instance) = &given.take.instance {
            let held = Held {
                profile: Arc::clone(&instance.profile),
                placement: instance.placement,
            };
            let list = if role == ContainerRole::Init {
                &mut scratch.reusable
            } else {
                &mut scratch.instances
            };
            if let Some(list) = list.get_mut(at)
                && !list.contains(&held)
            {
                list.push(held);
            }
        }
    }
    for (on_card, amount) in scratch.pod.iter_mut().zip(&mut scratch.container) {
        // Whatever is given takes a slot.
        if amount.slots != 0 {
            *on_card = on_card.with(role, *amount);
            *amount = CardUsage::default();
        }
    }
}

/// One ask of one container on one node.
pub(crate) struct ContainerFit<'a> {
    pub(crate) vendor: &'a dyn Vendor,
    /// The class's own answer, asked once.
    pub(crate) rules: Rules,
    pub(crate) node: &'a NodeState,
    pub(crate) shape: &'a Shape,
    pub(crate) ask: &'a Ask,
    pub(crate) role: ContainerRole,
    pub(crate) room: Option<Room>,
    pub(crate) selection: &'a tessera_types::Selection,
    /// What the class wants to know of the pod.
    pub(crate) facts: &'a BTreeMap<String, String>,
}

impl ContainerFit<'_> {
    /// Leaves the chosen cards in `scratch.given` and their sums in `scratch.container`.
    ///
    /// `order` are positions in the order of examination; without it the policy decides.
    pub(crate) fn run(
        &self,
        order: Option<&[usize]>,
        scratch: &mut Scratch,
        container: u32,
    ) -> Result<(), NodeRefusal> {
        scratch.given.clear();
        let class = self.ask.class.clone();
        let refuse = |cards: usize, reasons: Vec<Reason>| {
            let cards = u32::try_from(cards).unwrap_or(u32::MAX);
            NodeRefusal::Cards {
                class: self.ask.class.clone(),
                cards,
                container,
                reasons,
            }
        };
        if self.node.classes().is_empty() {
            return Err(NodeRefusal::Unregistered);
        }
        let Some(on_node) = self.node.class(&class) else {
            return Err(refuse(0, vec![self.too_few(self.ask.count, 0)]));
        };
        if let Some(cause) = &on_node.closed {
            return Err(NodeRefusal::ClassClosed {
                class,
                cause: cause.clone(),
            });
        }
        let cards = self.node.cards();
        let offered = on_node.cards.clone().filter(|at| self.node.facts.served[*at]).count();
        let wanted = self.vendor.count_on(self.ask, &cards[on_node.cards.clone()]);
        let count = usize::try_from(wanted).unwrap_or(usize::MAX);
        // A trial in a given order is of the checks alone: the cards named are all there are.
        if count > offered && order.is_none() {
            let repeats = on_node
                .cards
                .clone()
                .any(|at| self.vendor.repeats(&cards[at], self.selection));
            if !repeats {
                return Err(refuse(offered, vec![self.too_few(wanted, offered)]));
            }
        }

        scratch.ranks.clear();
        match order {
            Some(order) => scratch
                .ranks
                .extend(order.iter().map(|at| self.rank(*at, 0.0, scratch.running[*at]))),
            None => {
                for at in on_node.cards.clone().filter(|at| self.node.facts.served[*at]) {
                    let usage = scratch.running[at];
                    let score = order::card_order(&cards[at], usage, self.ask, self.shape.content.weights);
                    scratch.ranks.push(self.rank(at, score, usage));
                }
                order::sort(
                    &mut scratch.ranks,
                    &self.shape.content.card_policy,
                    self.selection.numa_bind,
                );
            }
        }
        let ranks = std::mem::take(&mut scratch.ranks);
        let outcome = self.examine(&ranks, wanted, container, scratch);
        scratch.ranks = ranks;
        outcome.map_err(|reasons| {
            scratch.given.clear();
            scratch.container.fill(CardUsage::default());
            refuse(offered, reasons)
        })
    }

    fn too_few(&self, wanted: u32, offered: usize) -> Reason {
        Reason::short(
            ReasonKind::TooFewCards,
            None,
            Dimension::Cards,
            u64::from(wanted),
            u64::try_from(offered).unwrap_or(u64::MAX),
        )
    }

    fn rank(&self, at: usize, score: f32, usage: CardUsage) -> Rank {
        let card = &self.node.cards()[at];
        Rank {
            score,
            numa: card.numa,
            slots_used: usage.slots,
            index: card.index,
            position: at,
        }
    }

    /// Walks the cards in order. On success the chosen are in `scratch.given`.
    fn examine(&self, ranks: &[Rank], wanted: u32, container: u32, scratch: &mut Scratch) -> Result<(), Vec<Reason>> {
        let earlier = std::mem::take(&mut scratch.earlier);
        let ctx = FitContext {
            node: self.node,
            policy: &self.shape.content.card_policy,
            role: self.role,
            earlier: &earlier,
        };
        let mut reasons = Vec::new();
        let done = self.walk(ranks, wanted, container, &ctx, scratch, &mut reasons);
        scratch.earlier = earlier;
        if done { Ok(()) } else { Err(reasons) }
    }

    fn walk(
        &self,
        ranks: &[Rank],
        wanted: u32,
        container: u32,
        ctx: &FitContext<'_>,
        scratch: &mut Scratch,
        reasons: &mut Vec<Reason>,
    ) -> bool {
        let cards = self.node.cards();
        let count = usize::try_from(wanted).unwrap_or(usize::MAX);
        let numa_bind = self.selection.numa_bind && self.rules.numa;
        let mut numa = -1_i32;
        let mut gathers = None;
        let extra = counted(self.vendor, self.ask);
        for rank in ranks {
            let at = rank.position;
            let card = &cards[at];
            let (memory, cores) = self.vendor.resolve(card, self.ask);
            let want = Want {
                ask: self.ask,
                count: wanted,
                selection: self.selection,
                memory,
                cores,
                extra,
            };
            if gathers.is_none() {
                if let Some(reason) = self.vendor.refuse_node(&want, ctx) {
                    reasons.push(reason);
                    return false;
                }
                gathers = Some(self.vendor.gathers(&want, ctx));
            }
            let gather = gathers == Some(true);
            let mut first_look = true;
            loop {
                match self.card(
                    at,
                    container,
                    &want,
                    ctx,
                    scratch,
                    first_look && numa_bind,
                    &mut numa,
                    gather,
                    reasons,
                ) {
                    Ok(take) => {
                        scratch.container[at] = scratch.container[at].plus(take.usage());
                        if let (Some(instance), Some(list)) = (&take.instance, scratch.instances.get_mut(at)) {
                            // Visible to the next look at this card; `settle` or the end of the walk puts it right.
                            list.push(Held {
                                profile: Arc::clone(&instance.profile),
                                placement: instance.placement,
                            });
                        }
                        scratch.given.push(Given {
                            position: at,
                            asked_memory: memory,
                            asked_cores: cores,
                            take,
                        });
                    }
                    Err(reason) => {
                        reasons.push(reason);
                        break;
                    }
                }
                if !gather && scratch.given.len() == count {
                    self.withdraw_instances(scratch);
                    return true;
                }
                if !self.vendor.repeats(card, self.selection) {
                    break;
                }
                first_look = false;
            }
        }
        self.withdraw_instances(scratch);
        let gathered = gathers == Some(true);
        if gathered && scratch.given.len() >= count && self.choose(wanted, cards, ctx, scratch) {
            return true;
        }
        let want = self.want(wanted, scratch, ranks, cards);
        self.vendor.conclude(&scratch.given, gathered, &want, ctx, reasons);
        false
    }

    /// Takes the container's own instances off the working list again; `settle` books those that stay.
    fn withdraw_instances(&self, scratch: &mut Scratch) {
        for given in scratch.given.iter().rev().filter(|given| given.take.instance.is_some()) {
            if let Some(list) = scratch.instances.get_mut(given.position) {
                list.pop();
            }
        }
    }

    /// The ask with the amounts on the first card found, else on the first examined.
    fn want<'w>(&'w self, count: u32, scratch: &Scratch, ranks: &[Rank], cards: &[Card]) -> Want<'w> {
        let first = scratch
            .given
            .first()
            .map(|given| (given.asked_memory, given.asked_cores));
        let (memory, cores) = first
            .or_else(|| Some(self.vendor.resolve(cards.get(ranks.first()?.position)?, self.ask)))
            .unwrap_or_default();
        Want {
            ask: self.ask,
            count,
            selection: self.selection,
            memory,
            cores,
            extra: counted(self.vendor, self.ask),
        }
    }

    fn choose(&self, wanted: u32, cards: &[Card], ctx: &FitContext<'_>, scratch: &mut Scratch) -> bool {
        let candidates: Vec<Candidate<'_>> = scratch
            .given
            .iter()
            .map(|given| Candidate {
                position: given.position,
                card: &cards[given.position],
                take: given.take.clone(),
            })
            .collect();
        let count = usize::try_from(wanted).unwrap_or(usize::MAX);
        let want = self.want(wanted, scratch, &[], cards);
        let Some(members) = self
            .vendor
            .choose(&candidates, &want, ctx)
            .filter(|members| members.len() == count)
        else {
            return false;
        };
        let chosen: Vec<Given> = members
            .iter()
            .filter_map(|at| scratch.given.get(*at).cloned())
            .collect();
        if chosen.len() != count {
            return false;
        }
        scratch.container.fill(CardUsage::default());
        for given in &chosen {
            let sum = &mut scratch.container[given.position];
            *sum = sum.plus(given.take.usage());
        }
        scratch.given = chosen;
        true
    }

    /// All checks of one card, in their fixed order.
    #[expect(clippy::too_many_arguments, reason = "one step of the walk, which owns all of these")]
    fn card(
        &self,
        at: usize,
        container: u32,
        want: &Want<'_>,
        ctx: &FitContext<'_>,
        scratch: &mut Scratch,
        numa_bind: bool,
        numa: &mut i32,
        gather: bool,
        reasons: &mut Vec<Reason>,
    ) -> Result<Take, Reason> {
        let card = &self.node.cards()[at];
        let rules = &self.rules;
        let of = |kind| Reason::of(kind, Some(card.id.clone()));
        let short = |kind, dimension, wanted: u64, free: u64| {
            Reason::short(kind, Some(card.id.clone()), dimension, wanted, free)
        };
        if !self.node.is_healthy(at) {
            return Err(of(rules.unhealthy));
        }
        if rules.cordon && self.node.is_cordoned(at) {
            return Err(of(ReasonKind::Cordoned));
        }
        let used = scratch.running[at];
        {
            let view = view(card, at, used, scratch);
            self.vendor.accepts(view, want, ctx).map_err(of)?;
        }
        if let Some(rule) = &self.shape.content.rule
            && !rule.accepts(card)
        {
            return Err(of(ReasonKind::RuleMismatch));
        }
        if numa_bind && !gather && card.numa != *numa {
            // The cards of the NUMA node before were not enough: start again with this one's.
            if !scratch.given.is_empty() {
                let mut reason = Reason::of(ReasonKind::NumaMismatch, None);
                reason.count = u32::try_from(scratch.given.len()).unwrap_or(u32::MAX);
                reasons.push(reason);
                self.withdraw_instances(scratch);
                scratch.given.clear();
                scratch.container.fill(CardUsage::default());
            }
            *numa = card.numa;
        }
        if let Some(ids) = &self.selection.use_ids
            && !ids.iter().any(|id| id == card.id.as_str())
        {
            return Err(of(ReasonKind::IdMismatch));
        }
        if let Some(ids) = &self.selection.avoid_ids
            && ids.iter().any(|id| id == card.id.as_str())
        {
            return Err(of(ReasonKind::IdMismatch));
        }
        // Amounts that this container already took of the same card (instances) count for slots and memory.
        let mine = scratch.container[at];
        let slots = used.slots.saturating_add(mine.slots);
        if slots >= card.slots {
            return Err(short(ReasonKind::SlotsExhausted, Dimension::Slots, 1, 0));
        }
        if rules.mutex && ctx.policy.has(CardOrder::Mutex) && used.slots > 0 {
            return Err(of(ReasonKind::ExclusiveConflict));
        }
        if card.twin.is_some() && self.twin_in_use(card, container, ctx, scratch) {
            return Err(of(ReasonKind::ExclusiveConflict));
        }
        if rules.quota {
            self.quota(scratch, at, want.memory, want.cores)?;
        }
        let memory_used = used.memory.saturating_add(mine.memory);
        self.memory(card, memory_used, want.memory)?;
        // Compute of the container's own instances is rounded up one by one and is not held against it.
        let cores_used = if card.mig_profiles.is_empty() {
            used.cores.saturating_add(mine.cores)
        } else {
            used.cores
        };
        cores(card, cores_used, want.cores)?;
        if rules.whole_alone && card.cores == WHOLE_CARD_CORES && want.cores == WHOLE_CARD_CORES && used.slots > 0 {
            return Err(of(ReasonKind::ExclusiveConflict));
        }
        if rules.exhausted && card.cores != Cores::ZERO && cores_used == card.cores && want.cores == Cores::ZERO {
            return Err(of(ReasonKind::ComputeExhausted));
        }
        let extra_used = used.extra.plus(mine.extra);
        self.extra(card, extra_used, want.extra)?;
        let take = self.vendor.check(view(card, at, used, scratch), want, ctx)?;
        // Rounding up must neither break the quota nor the card.
        if (take.memory, take.cores) != (want.memory, want.cores) {
            if rules.quota {
                self.quota(scratch, at, take.memory, take.cores)?;
            }
            self.memory(card, memory_used, take.memory)?;
            if take.instance.is_none() {
                cores(card, cores_used, take.cores)?;
            }
        }
        if take.extra != want.extra {
            self.extra(card, extra_used, take.extra)?;
        }
        let with_own = view(card, at, used.plus(mine), scratch);
        self.vendor
            .joins(with_own, take.usage(), self.facts, self.node)
            .map_err(of)?;
        Ok(take)
    }

    /// Whether another class's view of the same hardware is in use, by others or by what runs of this pod.
    fn twin_in_use(&self, card: &Card, container: u32, ctx: &FitContext<'_>, scratch: &Scratch) -> bool {
        let cards = self.node.cards();
        let is_twin = |other: &Card| other.class != card.class && other.twin == card.twin;
        cards
            .iter()
            .zip(&scratch.running)
            .any(|(other, running)| running.slots > 0 && is_twin(other))
            || ctx
                .earlier
                .iter()
                .any(|earlier| earlier.container == container && is_twin(&cards[earlier.position]))
    }

    fn memory(&self, card: &Card, used: Mib, wanted: Mib) -> Result<(), Reason> {
        if used.checked_add(wanted).is_some_and(|sum| sum <= card.memory) {
            return Ok(());
        }
        let free = card.memory.saturating_sub(used);
        let card = Some(card.id.clone());
        Err(Reason::short(
            ReasonKind::MemoryShort,
            card,
            Dimension::MemoryMib,
            wanted.get(),
            free.get(),
        ))
    }

    fn extra(&self, card: &Card, used: Extras, wanted: Extras) -> Result<(), Reason> {
        match used.plus(wanted).exceeds(card.extra) {
            None => Ok(()),
            Some(at) => Err(extra_short(self.vendor, card, at, wanted, used)),
        }
    }

    /// The namespace's quota with one more card of `memory` and `cores` at `at`. Counted is what the pod occupies at
    /// its greediest moment, as it will be charged.
    fn quota(&self, scratch: &Scratch, at: usize, memory: Mib, cores: Cores) -> Result<(), Reason> {
        let Some(room) = self.room else { return Ok(()) };
        let Some(on_node) = self.node.class(&self.ask.class) else {
            return Ok(());
        };
        let mut sum = CardUsage::default();
        for position in on_node.cards.clone() {
            let mut amount = scratch.container[position];
            if position == at {
                amount = amount.plus(CardUsage {
                    slots: 1,
                    memory,
                    cores,
                    extra: Extras::NONE,
                });
            }
            sum = sum.plus(scratch.pod[position].with(self.role, amount).effective());
        }
        let card = || Some(self.node.cards()[at].id.clone());
        let over = |sum: u64, room: i64| i128::from(sum) > i128::from(room);
        if let Some(room) = room.memory
            && over(sum.memory.get(), room)
        {
            let (wanted, free) = (sum.memory.get(), u64::try_from(room).unwrap_or(0));
            return Err(Reason::short(
                ReasonKind::QuotaShort,
                card(),
                Dimension::MemoryMib,
                wanted,
                free,
            ));
        }
        if let Some(room) = room.cores
            && over(u64::from(sum.cores.get()), room)
        {
            let (wanted, free) = (u64::from(sum.cores.get()), u64::try_from(room).unwrap_or(0));
            return Err(Reason::short(
                ReasonKind::QuotaShort,
                card(),
                Dimension::CoresPercent,
                wanted,
                free,
            ));
        }
        Ok(())
    }
}

/// What `ask` names of the amounts that the class counts.
pub(crate) fn counted(vendor: &dyn Vendor, ask: &Ask) -> Extras {
    if ask.extra.is_empty() {
        return Extras::NONE;
    }
    let names = vendor.extra_names();
    ask.extra.iter().fold(Extras::NONE, |sum, (name, amount)| {
        match names.iter().position(|known| known == name) {
            Some(at) => sum.plus(Extras::NONE.with(at, *amount)),
            None => sum,
        }
    })
}

pub(crate) fn extra_short(vendor: &dyn Vendor, card: &Card, at: usize, wanted: Extras, used: Extras) -> Reason {
    let what = vendor.extra_names().get(at).copied().unwrap_or("units");
    let free = card.extra.minus(used).get(at);
    Reason::short_of(
        ReasonKind::AmountShort,
        Some(card.id.clone()),
        what,
        wanted.get(at),
        free,
    )
}

fn cores(card: &Card, used: Cores, wanted: Cores) -> Result<(), Reason> {
    if used.saturating_add(wanted) <= card.cores {
        return Ok(());
    }
    Err(Reason::short(
        ReasonKind::CoresShort,
        Some(card.id.clone()),
        Dimension::CoresPercent,
        u64::from(wanted.get()),
        u64::from(card.cores.saturating_sub(used).get()),
    ))
}

fn view<'a>(card: &'a Card, at: usize, usage: CardUsage, scratch: &'a Scratch) -> CardView<'a> {
    CardView {
        position: at,
        card,
        usage,
        instances: scratch.instances.get(at).map_or(&[], Vec::as_slice),
        reusable: scratch.reusable.get(at).map_or(&[], Vec::as_slice),
    }
}

/// A card for [`fit_one`]: what is registered and what is in use.
#[derive(Debug, Clone)]
pub struct TrialCard {
    /// The card.
    pub card: Card,
    /// In use.
    pub usage: CardUsage,
    /// Instances in use.
    pub instances: Vec<Held>,
    /// Kept free by an administrator.
    pub cordoned: bool,
}

/// Runs the loaded checks for one ask over the node's cards in the given order. For trials and explanations.
pub(crate) fn fit_one(
    fit: &ContainerFit<'_>,
    order: Option<&[usize]>,
    earlier: &[Earlier],
) -> Result<Vec<Given>, NodeRefusal> {
    let mut scratch = Scratch::default();
    scratch.load(fit.node);
    scratch.earlier.extend_from_slice(earlier);
    let container = earlier.iter().map(|earlier| earlier.container.saturating_add(1)).max();
    fit.run(order, &mut scratch, container.unwrap_or(0))?;
    Ok(scratch.given)
}
