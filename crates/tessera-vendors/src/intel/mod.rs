//! Intel GPUs: whole cards, tiles of cards, and virtual functions.
//!
//! A node registers *units*. Units may share silicon (a card and its tiles, a physical function and its virtual ones)
//! and are then one budget ([`units`]). How well a share is walled off differs from unit to unit, so a pod may demand a
//! wall and is kept off units without one.

mod request;
pub mod units;

use std::collections::BTreeMap;
use std::sync::Arc;

use tessera_engine::{
    Admit, AdmitSettings, AnnotationKeys, Candidate, CardView, ContainerEdit, FitContext, Given, HealthSource,
    LockKind, NodeProblem, NodeState, RequestError, ResourceNames, Take, Vendor, Want, WriteContext, common_accepts,
    device_texts, go_bool,
};
use tessera_types::{
    Allocation, Ask, Card, CardMode, CardUsage, ClassAllocation, Cores, Demand, Dimension, Keyword, MemoryAsk, Mib,
    NodePolicy, Reason, ReasonKind, Selection, WHOLE_CARD_CORES,
};
use tessera_wire::config::{self, DeviceConfig, IntelIsolation};
use tessera_wire::{ContainerView, NodeView, PodView, register};

use crate::texts::SelectionKeys;
use crate::{Options, amounts, nodes};

/// The class's keyword.
pub const KEYWORD: &str = "IntelGPU";
/// Node: the list of units.
pub const REGISTER: &str = "hami.io/node-intel-gpu-register";
/// Pod: what is to be handed out.
pub const TO_ALLOCATE: &str = "hami.io/intel-gpu-devices-to-allocate";
/// Pod: what was given.
pub const ALLOCATED: &str = "hami.io/intel-gpu-devices-allocated";
/// Pod: which kind of unit each device is, and how it is walled off.
pub const PLACEMENT: &str = "hami.io/intel-gpu-placement";

const NUMA_BIND: &str = "intel.com/numa-bind";
const SELECTION: SelectionKeys<'_> = SelectionKeys {
    use_models: "intel.com/use-gputype",
    avoid_models: "intel.com/nouse-gputype",
    use_ids: "intel.com/use-gpuuuid",
    avoid_ids: "intel.com/nouse-gpuuuid",
    numa_bind: NUMA_BIND,
};
const GPU_DRIVER: &str = "intel.com/gpu-driver";
const GPU_UNIT: &str = "intel.com/gpu-unit";
const ISOLATION: &str = "intel.com/isolation";
const XELINK: &str = "intel.com/xelink";
const RENDER_ALIAS: &str = "intel.com/render-alias";

/// What a unit with a wall nobody asked for costs its node.
const WALL_COST: f64 = 0.1;

/// The Intel GPU class with the cluster's settings.
#[derive(Debug, Clone)]
pub struct IntelGpu {
    keyword: Keyword,
    names: ResourceNames,
    keys: AnnotationKeys,
    settings: config::Intel,
}

/// The class, if the configuration has its section.
pub(crate) fn classes(config: &DeviceConfig, _options: &Options) -> Vec<Arc<dyn Vendor>> {
    config
        .intel
        .iter()
        .filter(|settings| !settings.resource_count_name.is_empty())
        .map(|settings| Arc::new(IntelGpu::new(settings)) as Arc<dyn Vendor>)
        .collect()
}

impl IntelGpu {
    /// With the `intel` section of the device configuration.
    ///
    /// # Panics
    /// Never: the keyword is a constant without separators.
    #[must_use]
    pub fn new(settings: &config::Intel) -> Self {
        Self {
            keyword: Keyword::new(KEYWORD).expect("a constant without separators"),
            names: ResourceNames {
                count: amounts::name(&settings.resource_count_name),
                memory: amounts::name(&settings.resource_memory_name),
                memory_percent: amounts::name(&settings.resource_memory_percentage_name),
                cores: amounts::name(&settings.resource_core_name),
                memory_factor: settings.memory_factor.max(1),
                ..ResourceNames::default()
            },
            keys: AnnotationKeys {
                register: Some(REGISTER.to_owned()),
                to_allocate: Some(TO_ALLOCATE.to_owned()),
                allocated: Some(ALLOCATED.to_owned()),
                extra: vec![PLACEMENT.to_owned()],
                user: SELECTION
                    .all()
                    .chain([GPU_DRIVER, GPU_UNIT, ISOLATION, XELINK, RENDER_ALIAS])
                    .map(str::to_owned)
                    .collect(),
                ..AnnotationKeys::default()
            },
            settings: settings.clone(),
        }
    }

    /// The wall that the selection demands.
    fn demanded(&self, selection: &Selection) -> IntelIsolation {
        match switch(selection, ISOLATION) {
            Some("hard") => IntelIsolation::Hard,
            Some("soft") => IntelIsolation::Soft,
            Some(_) => IntelIsolation::None,
            None => self.settings.default_isolation,
        }
    }

    fn wish(&self, want: &Want<'_>, ctx: &FitContext<'_>) -> units::Wish {
        let must_link = switch(want.selection, XELINK).is_some();
        units::Wish {
            count: usize::try_from(want.ask.count).unwrap_or(usize::MAX),
            whole: matches!(want.ask.memory, MemoryAsk::Whole | MemoryAsk::Percent(100)),
            numa: want.selection.numa_bind,
            linked: must_link || units::wants_links(ctx),
            must_link,
        }
    }
}

/// A switch of the class in a selection.
fn switch<'a>(selection: &'a Selection, name: &str) -> Option<&'a str> {
    selection
        .extra
        .iter()
        .find(|(key, _)| key == name)
        .map(|(_, value)| value.as_str())
}

fn listed(selection: &Selection, name: &str, word: &str) -> bool {
    switch(selection, name).is_none_or(|list| list.split(',').any(|entry| entry == word))
}

/// Whether a share is less than its unit, so that a wall matters.
fn is_part(card: &Card, memory: Mib, cores: Cores) -> bool {
    memory < card.memory || (cores > Cores::ZERO && cores < WHOLE_CARD_CORES)
}

/// Text as a JSON string without anything that would need escaping.
fn quoted(text: &str) -> String {
    let plain: String = text
        .chars()
        .filter(|c| !c.is_control() && !matches!(c, '"' | '\\'))
        .collect();
    format!("\"{plain}\"")
}

fn placement(class: &ClassAllocation, at: &WriteContext<'_>) -> String {
    let mut entries = Vec::new();
    for (container, shares) in class.iter().enumerate() {
        for (device, share) in shares.iter().enumerate() {
            let mut entry = format!(
                "{{\"containerIndex\":{container},\"deviceIndex\":{device},\"uuid\":{}",
                quoted(share.card.as_str())
            );
            if let Some(card) = at.card(&share.card) {
                entry.push_str(&format!(",\"unit\":{}", quoted(card.mode.as_str())));
                for (member, name) in [("driver", "driver"), ("bdf", "bdf"), ("level", "enf")] {
                    if let Some(text) = card.custom.get(name) {
                        entry.push_str(&format!(",\"{member}\":{}", quoted(text)));
                    }
                }
            }
            entry.push('}');
            entries.push(entry);
        }
    }
    format!("[{}]", entries.join(","))
}

impl Vendor for IntelGpu {
    fn keyword(&self) -> &Keyword {
        &self.keyword
    }

    fn names(&self) -> &ResourceNames {
        &self.names
    }

    fn keys(&self) -> &AnnotationKeys {
        &self.keys
    }

    fn health(&self) -> HealthSource {
        HealthSource::Allocatable
    }

    /// The node agent tells containers apart by the ids that kubelet hands out.
    fn node_lock(&self) -> LockKind {
        LockKind::None
    }

    fn decode_node(&self, node: &NodeView) -> Result<Vec<Card>, NodeProblem> {
        let mut cards = nodes::registered(node, REGISTER, &self.keyword)?;
        for card in &mut cards {
            if card.mode.as_str().is_empty() {
                card.mode = CardMode::new(units::CARD);
            }
            if card.mode.as_str() == units::VF {
                // Its memory and its time slice are fixed: nobody can have a part of it.
                card.slots = card.slots.min(1);
            }
            if let Some(links) = card.custom.get("links") {
                // The scores' own form, for the one card.
                let id = quoted(card.id.as_str());
                let scores = format!("[{{\"uuid\":{id},\"score\":{links}}}]");
                let scores = register::parse_scores(&scores).map_err(|error| NodeProblem::Unreadable {
                    key: REGISTER.to_owned(),
                    fault: format!("links of {}: {error}", card.id),
                })?;
                register::join_scores(std::slice::from_mut(card), &scores);
            }
        }
        Ok(cards)
    }

    fn parse(&self, container: &ContainerView, _pod: &PodView) -> Result<Option<Ask>, RequestError> {
        request::parse(self, container)
    }

    fn selection(&self, pod: &PodView) -> Result<Selection, RequestError> {
        let on = |key: &str| pod.annotation(key).and_then(go_bool).unwrap_or(false);
        let mut extra = Vec::new();
        for (key, list) in [(GPU_DRIVER, request::drivers(pod)?), (GPU_UNIT, request::kinds(pod)?)] {
            if let Some(list) = list {
                extra.push((key.to_owned(), list.join(",")));
            }
        }
        if let Some(isolation) = request::isolation(pod)? {
            let word = match isolation {
                IntelIsolation::None => "none",
                IntelIsolation::Soft => "soft",
                IntelIsolation::Hard => "hard",
            };
            extra.push((ISOLATION.to_owned(), word.to_owned()));
        }
        if on(XELINK) {
            extra.push((XELINK.to_owned(), "true".to_owned()));
        }
        Ok(Selection {
            extra,
            ..SELECTION.read(pod)
        })
    }

    fn accepts(&self, card: CardView<'_>, want: &Want<'_>, _ctx: &FitContext<'_>) -> Result<(), ReasonKind> {
        common_accepts(card.card, want.selection)?;
        if !listed(want.selection, GPU_DRIVER, units::driver(card.card).unwrap_or_default()) {
            return Err(ReasonKind::ModelMismatch);
        }
        if !listed(want.selection, GPU_UNIT, card.card.mode.as_str()) {
            return Err(ReasonKind::ModeMismatch);
        }
        Ok(())
    }

    /// A virtual function is held whole, and its compute is fixed by its time slice.
    fn resolve(&self, card: &Card, ask: &Ask) -> (Mib, Cores) {
        let memory = ask.memory.on(card.memory);
        if card.mode.as_str() == units::VF {
            return (memory.max(card.memory), Cores::ZERO);
        }
        (memory, ask.cores.min(WHOLE_CARD_CORES))
    }

    fn check(&self, card: CardView<'_>, want: &Want<'_>, ctx: &FitContext<'_>) -> Result<Take, Reason> {
        let of = |kind| Reason::of(kind, Some(card.card.id.clone()));
        let alone = ctx.policy.has(tessera_types::CardOrder::Mutex);
        if alone && units::sibling_in_use(card.card, ctx.node) {
            return Err(of(ReasonKind::ExclusiveConflict));
        }
        if is_part(card.card, want.memory, want.cores) && units::wall(card.card) < self.demanded(want.selection) {
            return Err(of(ReasonKind::IsolationShort));
        }
        if units::held_by_pod(card.card, ctx) {
            return Err(of(ReasonKind::PartitionConflict));
        }
        Ok(Take::as_wanted(want))
    }

    fn joins(
        &self,
        card: CardView<'_>,
        _added: CardUsage,
        _facts: &BTreeMap<String, String>,
        node: &NodeState,
    ) -> Result<(), ReasonKind> {
        if units::held_elsewhere(card.card, node) {
            return Err(ReasonKind::PartitionConflict);
        }
        Ok(())
    }

    fn gathers(&self, want: &Want<'_>, ctx: &FitContext<'_>) -> bool {
        let of_class = ctx.node.class(&self.keyword).map(|on_node| on_node.cards.clone());
        let cards = of_class
            .and_then(|range| ctx.node.cards().get(range))
            .unwrap_or_default();
        self.wish(want, ctx).linked || units::kinds_matter(cards.iter())
    }

    fn choose(&self, fitting: &[Candidate<'_>], want: &Want<'_>, ctx: &FitContext<'_>) -> Option<Vec<usize>> {
        units::choose(fitting, self.wish(want, ctx))
    }

    /// Where units of several kinds fit, those of the kind that comes nearest are told from the others.
    fn conclude(
        &self,
        found: &[Given],
        gathered: bool,
        want: &Want<'_>,
        ctx: &FitContext<'_>,
        reasons: &mut Vec<Reason>,
    ) {
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let fitting: Vec<Candidate<'_>> = found
            .iter()
            .filter_map(|given| {
                Some(Candidate {
                    position: given.position,
                    card: ctx.node.cards().get(given.position)?,
                    take: given.take.clone(),
                })
            })
            .collect();
        let (most, others) = units::largest_kind(&fitting);
        let count = usize::try_from(want.ask.count).unwrap_or(usize::MAX);
        if gathered && most >= count {
            let mut reason = Reason::of(ReasonKind::NumaMismatch, None);
            reason.count = number(found.len());
            reasons.push(reason);
        }
        if most == 0 {
            return;
        }
        for at in others {
            let id = fitting.get(at).map(|candidate| candidate.card.id.clone());
            reasons.push(Reason::of(ReasonKind::ModeMismatch, id));
        }
        let mut reason = Reason::short(
            ReasonKind::TooFewFit,
            None,
            Dimension::Cards,
            u64::from(want.ask.count),
            u64::try_from(most).unwrap_or(u64::MAX),
        );
        reason.count = number(most);
        reasons.push(reason);
    }

    /// Units with a stronger wall than is needed are kept for those who ask for it, whichever way nodes are ordered.
    fn node_score(&self, placed: &ClassAllocation, selection: &Selection, node: &NodeState, policy: NodePolicy) -> f64 {
        let demanded = self.demanded(selection);
        let mut cost = 0.0;
        for share in placed.iter().flatten() {
            let Some(card) = node.cards().iter().find(|card| card.id == share.card) else {
                continue;
            };
            let needed = if is_part(card, share.memory, share.cores) {
                demanded
            } else {
                IntelIsolation::None
            };
            if units::wall(card) > needed {
                cost += WALL_COST;
            }
        }
        match policy {
            NodePolicy::Binpack | NodePolicy::Fgd | NodePolicy::Tessera => -cost,
            NodePolicy::Spread => cost,
        }
    }

    fn annotations(
        &self,
        allocation: &Allocation,
        _demand: &Demand,
        at: &WriteContext<'_>,
    ) -> BTreeMap<String, String> {
        let mut annotations = device_texts(&self.keyword, &self.keys, allocation);
        if let Some(class) = allocation.classes.get(&self.keyword) {
            annotations.insert(PLACEMENT.to_owned(), placement(class, at));
        }
        annotations
    }

    fn admit(
        &self,
        container: &mut ContainerEdit<'_>,
        pod: &PodView,
        _settings: &AdmitSettings,
    ) -> Result<Admit, RequestError> {
        request::admit(self, container, pod)
    }
}
