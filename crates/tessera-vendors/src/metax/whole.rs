//! Whole cards: the node's plugin chooses which, so a card here is one of a number, and the node is what counts.

use std::collections::BTreeMap;

use tessera_engine::{
    Admit, AdmitSettings, AnnotationKeys, ContainerEdit, FitContext, HealthSource, LockKind, NodeProblem, NodeState,
    RequestError, ResourceNames, Rules, Vendor, Want,
};
use tessera_types::{
    Ask, Card, ClassAllocation, ContainerRole, Dimension, Keyword, NodePolicy, Reason, ReasonKind, Selection,
};
use tessera_wire::{ContainerView, NodeView, PodView, config};

use super::{Modes, register, request};
use crate::amounts;

/// Node annotation: how much the links of the node suffer when so many cards go, by number of cards.
const LOSSES: &str = "metax-tech.com/gpu.topology.losses";
/// Node annotation: how well so many free cards are linked, by number of cards.
const SCORES: &str = "metax-tech.com/gpu.topology.scores";
/// Of the node's facts: how many of its cards work, where the node says so.
const WORKING: &str = "working";
/// What losses and scores are counted down from.
const MOST: f64 = 2000.0;

/// MetaX cards given whole.
#[derive(Debug, Clone)]
pub struct MetaxGpu {
    pub(super) keyword: Keyword,
    pub(super) names: ResourceNames,
    keys: AnnotationKeys,
    modes: Modes,
}

impl MetaxGpu {
    /// With the `metax` section of the device configuration.
    ///
    /// # Panics
    /// Never: the keyword is a constant without separators.
    #[must_use]
    pub fn new(settings: &config::Metax) -> Self {
        let keys = AnnotationKeys {
            to_allocate: Some("hami.io/metax-gpu-devices-to-allocate".to_owned()),
            allocated: Some("hami.io/metax-gpu-devices-allocated".to_owned()),
            ..AnnotationKeys::default()
        };
        Self {
            keyword: Keyword::new("Metax-GPU").expect("a constant without separators"),
            names: ResourceNames {
                count: amounts::name(&settings.resource_count_name),
                ..ResourceNames::default()
            },
            keys,
            modes: Modes::new(settings),
        }
    }
}

impl Vendor for MetaxGpu {
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
        HealthSource::Capacity
    }

    fn node_lock(&self) -> LockKind {
        LockKind::None
    }

    fn rules(&self) -> Rules {
        Rules {
            topology: false,
            numa: false,
            ..Rules::default()
        }
    }

    fn decode_node(&self, node: &NodeView) -> Result<Vec<Card>, NodeProblem> {
        let Some(resource) = self.names.count.as_deref() else {
            return Err(NodeProblem::Absent);
        };
        let cards = register::whole(node, resource, &self.keyword)?;
        if let Some(shared) = self.modes.shared.as_deref()
            && node.capacity_count(shared) > 0
        {
            // The same cards twice: which mode is left over cannot be told.
            return Err(NodeProblem::Capacity {
                resource: resource.to_owned(),
                fault: format!("the node has `{shared}` too, and its plugin serves one of the two at a time"),
            });
        }
        Ok(cards)
    }

    /// The vendor's guide has the two tables as labels, its plugin as annotations.
    fn node_facts(&self, node: &NodeView) -> BTreeMap<String, String> {
        let count = self.names.count.as_deref().unwrap_or_default();
        let working = node
            .allocatable
            .get(count)
            .map(|_| node.allocatable_count(count).to_string());
        [LOSSES, SCORES]
            .into_iter()
            .map(|key| (key, node.annotations.get(key).or_else(|| node.labels.get(key)).cloned()))
            .chain([(WORKING, working)])
            .filter_map(|(key, text)| Some((key.to_owned(), text?)))
            .collect()
    }

    /// A broken card leaves the node's allocatable, and nobody but the plugin knows which it is: no more cards are
    /// given than work.
    fn refuse_node(&self, want: &Want<'_>, ctx: &FitContext<'_>) -> Option<Reason> {
        let class = ctx.node.class(&self.keyword)?;
        let working: u64 = class.facts.get(WORKING)?.parse().unwrap_or(0);
        let used = |at: &usize| {
            let others = ctx.node.usage().get(*at).is_some_and(|used| used.usage.slots > 0);
            let mut earlier = ctx.earlier.iter().filter(|earlier| earlier.role != ContainerRole::Init);
            others || earlier.any(|earlier| earlier.position == *at)
        };
        let count = |cards: usize| u64::try_from(cards).unwrap_or(u64::MAX);
        let used = count(class.cards.clone().filter(used).count());
        let broken = count(class.cards.len()).saturating_sub(working);
        if broken == 0 || used.saturating_add(u64::from(want.count)) <= working {
            return None;
        }
        let (wanted, free) = (u64::from(want.count), working.saturating_sub(used));
        let mut reason = Reason::short(ReasonKind::Unhealthy, None, Dimension::Cards, wanted, free);
        reason.count = u32::try_from(broken).unwrap_or(u32::MAX);
        Some(reason)
    }

    fn parse(&self, container: &ContainerView, _pod: &PodView) -> Result<Option<Ask>, RequestError> {
        request::whole(self, container)
    }

    fn selection(&self, _pod: &PodView) -> Result<Selection, RequestError> {
        Ok(Selection::default())
    }

    /// From the node's tables. A node that has a table but no entry for the number, or a table that cannot be read,
    /// counts as the worst.
    fn node_score(
        &self,
        placed: &ClassAllocation,
        _selection: &Selection,
        node: &NodeState,
        policy: NodePolicy,
    ) -> f64 {
        let cards: usize = placed.iter().map(Vec::len).sum();
        let (key, worst) = match policy {
            NodePolicy::Binpack | NodePolicy::Fgd | NodePolicy::Tessera => (LOSSES, 0.0),
            NodePolicy::Spread => (SCORES, MOST),
        };
        let Some(text) = node.class(&self.keyword).and_then(|class| class.facts.get(key)) else {
            return 0.0;
        };
        let table: BTreeMap<String, f64> = serde_json::from_str(text).unwrap_or_default();
        table.get(&cards.to_string()).map_or(worst, |entry| MOST - entry)
    }

    fn admit(
        &self,
        container: &mut ContainerEdit<'_>,
        pod: &PodView,
        _settings: &AdmitSettings,
    ) -> Result<Admit, RequestError> {
        let mut admit = Admit::default();
        let Some(count) = self.names.count.as_deref() else {
            return Ok(admit);
        };
        if !container.has_limit(count) && !container.has_request(count) {
            return Ok(admit);
        }
        admit.uses_device = true;
        let name = &container.view().name;
        if let Some(shared) = self
            .modes
            .shared
            .as_deref()
            .filter(|shared| container.has_limit(shared))
        {
            return Err(RequestError::resource(
                name,
                count,
                format!("`{shared}` is asked for in the same container, and a node gives whole cards or shares"),
                format!("keep one of the two; `{shared}` without a compute share gives whole cards as well"),
            ));
        }
        for key in super::sgpu::ID_KEYS {
            if pod.annotations.contains_key(key) {
                admit.warnings.push(format!(
                    "annotation `{key}` has no effect on `{count}`: the node's plugin chooses whole cards"
                ));
            }
        }
        Ok(admit)
    }
}
