//! Huawei Ascend: one class for each configured chip.
//!
//! An NPU is shared in one of two ways. In template mode the driver cuts a hardware vNPU of a fixed size out of it, so
//! a request is rounded up to the smallest template that holds it (above the largest, to the whole NPU) and takes that
//! template's AI cores and AI CPUs too. A soft slice (pod annotation) takes what is written, and a preloaded library
//! holds it. An idle NPU takes either; the two never meet on one NPU.
//!
//! Several NPUs come from few rings. On the chip with two NPUs a module they come as whole modules.

mod admit;
mod chip;
mod place;
mod request;
mod texts;

use std::collections::BTreeMap;
use std::sync::Arc;

use tessera_engine::{
    Admit, AdmitSettings, AllocationProblem, AnnotationKeys, Candidate, CardView, ContainerEdit, FitContext, Given,
    HealthSource, NodeProblem, NodeState, RequestError, ResourceNames, Rules, Take, Vendor, Want, WriteContext,
    comma_list, go_bool,
};
use tessera_types::{
    Allocation, Ask, Card, CardMode, CardUsage, ClassAllocation, ContainerRole, Cores, Demand, Dimension, Extras,
    Keyword, MigReservation, NodePolicy, Reason, ReasonKind, Selection, WHOLE_CARD_CORES,
};
use tessera_wire::{ContainerView, NodeView, PodView, config, keys};

use crate::{Options, nodes};
pub use chip::known_chips;
use chip::{Chip, MODE_KEY, MODE_SOFT, NODE_SOFT_KEY};

/// How NPUs of a node that serves soft slices are marked.
const CARD_SOFT: &str = MODE_SOFT;
/// How NPUs are marked that only the driver can divide.
const CARD_TEMPLATES: &str = "vnpu";
/// What a node's score gains if all its NPUs lie in one ring.
const RING_SCORE: f64 = 10.0;
/// Environment variables that say what a container gets of an NPU.
const RESERVED_ENV: [&str; 5] = [
    admit::ENV_VISIBLE,
    "ASCEND_VNPU_SPECS",
    "ASCEND_RUNTIME_OPTIONS",
    "NPU_MEM_QUOTA",
    "NPU_PRIORITY",
];

/// One chip.
#[derive(Debug, Clone)]
pub struct Ascend {
    chip: Chip,
}

/// A class for each chip of the configuration.
pub(crate) fn classes(config: &config::DeviceConfig, options: &Options) -> Vec<Arc<dyn Vendor>> {
    let Some(settings) = config.vnpus.as_ref().filter(|_| options.ascend) else {
        return Vec::new();
    };
    Ascend::all(settings)
        .into_iter()
        .map(|class| Arc::new(class) as Arc<dyn Vendor>)
        .collect()
}

impl Ascend {
    /// The classes of the `vnpus` section. A chip whose keyword cannot be one is left out; the configuration's own
    /// check refuses it.
    #[must_use]
    pub fn all(settings: &config::Ascend) -> Vec<Self> {
        let counts: Vec<String> = settings
            .configs
            .iter()
            .map(|chip| chip.resource_name.clone())
            .filter(|name| !name.is_empty())
            .collect();
        settings
            .configs
            .iter()
            .filter_map(|chip| Chip::new(chip, settings.hami_vnpu_core, &counts))
            .map(|chip| Self { chip })
            .collect()
    }

    /// What a share of `memory` on an NPU of this chip takes of the amounts in [`Vendor::extra_names`], in template
    /// mode or as a soft slice.
    #[must_use]
    pub fn cost(&self, memory: tessera_types::Mib, soft: bool) -> Extras {
        if soft {
            chip::soft_cost()
        } else {
            self.chip.cost(self.chip.size(memory))
        }
    }

    /// Marks a registered NPU with what its node can do with it, and counts what it has.
    fn complete(&self, card: &mut Card, soft: bool) {
        card.mode = CardMode::new(if soft { CARD_SOFT } else { CARD_TEMPLATES });
        card.extra = self.chip.totals(u64::from(card.cores.get()), card.slots, soft);
        // Registered are AI cores, or 100 where the plugin serves soft slices. A share of compute is percent.
        card.cores = WHOLE_CARD_CORES;
    }

    fn is_soft(selection: &Selection) -> bool {
        selection
            .extra
            .iter()
            .any(|(name, value)| name == MODE_KEY && value == MODE_SOFT)
    }

    fn class_cards<'a>(&self, node: &'a NodeState) -> &'a [Card] {
        node.class(&self.chip.keyword)
            .and_then(|on_node| node.cards().get(on_node.cards.clone()))
            .unwrap_or_default()
    }

    /// What a container would take of an NPU: the memory asked for, or the template that holds it.
    fn take(&self, card: &Card, want: &Want<'_>) -> Take {
        if Self::is_soft(want.selection) {
            return Take {
                memory: want.memory,
                cores: want.cores,
                extra: chip::soft_cost(),
                ..Take::default()
            };
        }
        let size = self.chip.size(want.memory);
        let memory = match size {
            chip::Size::Template(template) => template.memory,
            chip::Size::Whole => card.memory,
        };
        Take {
            memory,
            cores: Cores::ZERO,
            extra: self.chip.cost(size),
            ..Take::default()
        }
    }
}

impl Vendor for Ascend {
    fn keyword(&self) -> &Keyword {
        &self.chip.keyword
    }

    fn names(&self) -> &ResourceNames {
        &self.chip.names
    }

    fn keys(&self) -> &AnnotationKeys {
        &self.chip.keys
    }

    fn health(&self) -> HealthSource {
        HealthSource::HandshakeAndAllocatable
    }

    fn extra_names(&self) -> &[&str] {
        &chip::EXTRA_NAMES
    }

    fn reserved_env(&self) -> &[&str] {
        &RESERVED_ENV
    }

    fn rules(&self) -> Rules {
        Rules {
            topology: false,
            // The switch orders the NPUs and no more: plugins register no NUMA node.
            numa: false,
            ..Rules::default()
        }
    }

    fn decode_node(&self, node: &NodeView) -> Result<Vec<Card>, NodeProblem> {
        let register = self.chip.keys.register.as_deref().unwrap_or_default();
        let mut cards = nodes::registered(node, register, &self.chip.keyword)?;
        let soft = node
            .annotation(NODE_SOFT_KEY)
            .map_or(self.chip.soft_by_default, |text| text == "true");
        for card in &mut cards {
            self.complete(card, soft);
        }
        Ok(cards)
    }

    fn serves(&self, card: &Card) -> bool {
        *card.model == *self.chip.keyword.as_str()
    }

    fn disagreement(&self, card: &Card) -> Option<String> {
        if !self.serves(card) {
            return Some(format!(
                "the node registers it as `{}` under the annotation of {}",
                card.model, self.chip.keyword
            ));
        }
        let table = self.chip.allocatable;
        if card.memory != table {
            return Some(format!(
                "the node registers {} of memory, the scheduler's table for {} says {table}; give the plugin and the \
                 scheduler the same device configuration",
                card.memory, self.chip.keyword
            ));
        }
        self.chip.other_ai_cores(card.extra).map(|registered| {
            format!(
                "the node registers {registered} AI cores, the scheduler's table for {} says {}; give the plugin and \
                 the scheduler the same device configuration",
                self.chip.keyword,
                self.chip.ai_cores()
            )
        })
    }

    fn parse(&self, container: &ContainerView, pod: &PodView) -> Result<Option<Ask>, RequestError> {
        request::parse(&self.chip, container, pod)
    }

    fn selection(&self, pod: &PodView) -> Result<Selection, RequestError> {
        let mut selection = Selection {
            use_ids: comma_list(pod.annotation(&self.chip.use_key)),
            avoid_ids: comma_list(pod.annotation(&self.chip.avoid_key)),
            numa_bind: pod.annotation(keys::NUMA_BIND).and_then(go_bool).unwrap_or(false),
            ..Selection::default()
        };
        if request::is_soft(pod) {
            selection.extra.push((MODE_KEY.to_owned(), MODE_SOFT.to_owned()));
        }
        Ok(selection)
    }

    fn refuse_node(&self, want: &Want<'_>, ctx: &FitContext<'_>) -> Option<Reason> {
        let serves = |card: &Card| card.mode.as_str() == CARD_SOFT;
        (Self::is_soft(want.selection) && !self.class_cards(ctx.node).iter().any(serves))
            .then(|| Reason::of(ReasonKind::ModeMismatch, None))
    }

    fn accepts(&self, card: CardView<'_>, want: &Want<'_>, _ctx: &FitContext<'_>) -> Result<(), ReasonKind> {
        if chip::modes_clash(card.usage.extra, self.take(card.card, want).extra) {
            return Err(ReasonKind::ModeMismatch);
        }
        Ok(())
    }

    /// The template's size. The plugin finds an NPU's size by its id alone, the last entry of the pod counting, so two
    /// containers that run at the same time may share an NPU only with the same size: otherwise both would get the
    /// last one's.
    fn check(&self, card: CardView<'_>, want: &Want<'_>, ctx: &FitContext<'_>) -> Result<Take, Reason> {
        let take = self.take(card.card, want);
        let differs = ctx.earlier.iter().any(|earlier| {
            earlier.role != ContainerRole::Init && earlier.position == card.position && earlier.take != take
        });
        if differs {
            let id = Some(card.card.id.clone());
            let clause = "already held in another size by another container of the pod";
            return Err(Reason::of(ReasonKind::ClassRule, id).because(clause));
        }
        Ok(take)
    }

    fn joins(
        &self,
        card: CardView<'_>,
        added: CardUsage,
        _facts: &BTreeMap<String, String>,
        _node: &NodeState,
    ) -> Result<(), ReasonKind> {
        if chip::modes_clash(card.usage.extra, added.extra) {
            return Err(ReasonKind::ModeMismatch);
        }
        Ok(())
    }

    fn gathers(&self, want: &Want<'_>, ctx: &FitContext<'_>) -> bool {
        if self.chip.modules {
            return true;
        }
        let rings = || {
            self.class_cards(ctx.node)
                .iter()
                .all(|card| place::ring(card).is_some())
        };
        self.chip.rings && want.ask.count > 1 && rings()
    }

    fn choose(&self, fitting: &[Candidate<'_>], want: &Want<'_>, ctx: &FitContext<'_>) -> Option<Vec<usize>> {
        let count = usize::try_from(want.ask.count).unwrap_or(usize::MAX);
        if self.chip.modules {
            return place::by_module(&self.chip, fitting, count, ctx);
        }
        place::by_ring(fitting, count)
    }

    /// Of NPUs that come as modules only whole modules count.
    fn conclude(
        &self,
        found: &[Given],
        _gathered: bool,
        want: &Want<'_>,
        ctx: &FitContext<'_>,
        reasons: &mut Vec<Reason>,
    ) {
        if found.is_empty() {
            return;
        }
        let usable = if self.chip.modules && want.ask.count > 1 {
            let cards = ctx.node.cards();
            let whole = place::in_whole_modules(found.iter().filter_map(|given| cards.get(given.position)));
            // An odd number cannot be given however many modules are whole.
            whole.min(usize::try_from(want.ask.count - 1).unwrap_or(whole) & !1)
        } else {
            found.len()
        };
        let mut reason = Reason::short(
            ReasonKind::TooFewFit,
            None,
            Dimension::Cards,
            u64::from(want.ask.count),
            u64::try_from(usable).unwrap_or(u64::MAX),
        );
        reason.count = u32::try_from(usable).unwrap_or(u32::MAX);
        reasons.push(reason);
    }

    /// Ten if each container's NPUs lie in one ring, averaged over the containers. Where the lowest score wins, it
    /// counts the other way round: whole rings are better under every policy.
    fn node_score(
        &self,
        placed: &ClassAllocation,
        _selection: &Selection,
        node: &NodeState,
        policy: NodePolicy,
    ) -> f64 {
        if !self.chip.rings {
            return 0.0;
        }
        let cards = self.class_cards(node);
        let ring = |share: &tessera_types::Share| cards.iter().find(|card| card.id == share.card).and_then(place::ring);
        let (mut sum, mut containers) = (0.0, 0.0);
        for shares in placed.iter().filter(|shares| !shares.is_empty()) {
            let mut sizes: BTreeMap<i64, f64> = BTreeMap::new();
            let mut all = 0.0;
            for share in shares {
                let Some(ring) = ring(share) else { return 0.0 };
                *sizes.entry(ring).or_default() += 1.0;
                all += 1.0;
            }
            sum += sizes.values().copied().fold(0.0, f64::max) / all;
            containers += 1.0;
        }
        if containers == 0.0 {
            return 0.0;
        }
        let score = RING_SCORE * sum / containers;
        match policy {
            NodePolicy::Spread => -score,
            NodePolicy::Binpack | NodePolicy::Fgd | NodePolicy::Tessera => score,
        }
    }

    fn annotations(&self, allocation: &Allocation, demand: &Demand, at: &WriteContext<'_>) -> BTreeMap<String, String> {
        let Some(class) = allocation.classes.get(&self.chip.keyword) else {
            return BTreeMap::new();
        };
        let soft = demand.selection(&self.chip.keyword).is_some_and(Self::is_soft);
        texts::print(&self.chip, class, soft, at.now_seconds)
    }

    fn read_allocation(
        &self,
        annotations: &BTreeMap<String, String>,
    ) -> Result<Option<(ClassAllocation, Vec<MigReservation>)>, AllocationProblem> {
        Ok(texts::read(&self.chip, annotations)?.map(|class| (class, Vec::new())))
    }

    fn admit(
        &self,
        container: &mut ContainerEdit<'_>,
        pod: &PodView,
        _settings: &AdmitSettings,
    ) -> Result<Admit, RequestError> {
        admit::admit(&self.chip, container, pod)
    }
}
