//! Whole cards.

use std::collections::BTreeMap;
use std::sync::Arc;

use tessera_engine::{
    Admit, AdmitSettings, AnnotationKeys, Candidate, CardView, ContainerEdit, FitContext, Given, HealthSource,
    LockKind, NodeProblem, NodeState, RequestError, ResourceNames, Rules, Vendor, Want, WriteContext,
};
use tessera_types::{
    Allocation, Ask, Card, CardId, CardMode, ClassAllocation, Cores, Demand, Extras, Keyword, MemoryAsk, Mib,
    NodePolicy, Reason, ReasonKind, Selection, WHOLE_CARD_CORES,
};
use tessera_wire::config::{Kunlun, KunlunTopology};
use tessera_wire::{ContainerView, NodeView, PodView, device_text};

use super::{WHOLE, links};
use crate::{amounts, nodes};

/// Pod annotation: what was given, container by container.
const ALLOCATED: &str = "hami.io/kunlun-allocated";
/// Pod annotation that the vendor's plugin reads: indexes of the cards.
const DEVICE_IDX: &str = "BAIDU_COM_DEVICE_IDX";
/// Slots as HAMi registers them; only one is ever used.
const SLOTS: u32 = 100;

/// The class of whole cards.
#[derive(Debug, Clone)]
pub struct KunlunWhole {
    keyword: Keyword,
    names: ResourceNames,
    keys: AnnotationKeys,
    memory: Mib,
    topology: KunlunTopology,
}

impl KunlunWhole {
    /// With the `kunlun` section of the device configuration.
    ///
    /// # Panics
    /// Never: the keywords are constants without separators.
    #[must_use]
    pub fn new(section: &Kunlun) -> Self {
        Self {
            keyword: Keyword::new(WHOLE).expect("a constant without separators"),
            names: ResourceNames {
                count: amounts::name(&section.resource_count_name),
                memory_factor: 1,
                ..ResourceNames::default()
            },
            keys: AnnotationKeys {
                allocated: Some(ALLOCATED.to_owned()),
                extra: vec![DEVICE_IDX.to_owned()],
                user: super::user_keys(),
                ..AnnotationKeys::default()
            },
            memory: Mib::new(super::card_memory(section)),
            topology: section.topology,
        }
    }

    fn count(&self) -> Option<&str> {
        self.names.count.as_deref()
    }
}

/// The index of a card from its id, `<node>-kunlun-<index>`.
fn index_of(id: &CardId) -> Option<u32> {
    let (_, index) = id.as_str().rsplit_once("-kunlun-")?;
    index.parse().ok()
}

impl Vendor for KunlunWhole {
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

    /// The node says how many cards it has and nothing else; the second half lies on the second NUMA node.
    fn decode_node(&self, node: &NodeView) -> Result<Vec<Card>, NodeProblem> {
        let count = nodes::capacity(node, self.count()).ok_or(NodeProblem::Absent)?;
        (0..count)
            .map(|index| {
                let id = format!("{}-{WHOLE}-{index}", node.name);
                Ok(Card {
                    id: CardId::new(id).map_err(|error| nodes::bad_capacity(self.count(), &error))?,
                    class: self.keyword.clone(),
                    index,
                    slots: SLOTS,
                    memory: self.memory,
                    cores: WHOLE_CARD_CORES,
                    model: Arc::from(WHOLE),
                    numa: i32::from(index >= count / 2),
                    mode: CardMode::new(""),
                    healthy: true,
                    mig_profiles: Vec::new(),
                    link_scores: BTreeMap::new(),
                    custom: BTreeMap::new(),
                    extra: Extras::NONE,
                    twin: super::twin(index),
                })
            })
            .collect()
    }

    fn parse(&self, container: &ContainerView, pod: &PodView) -> Result<Option<Ask>, RequestError> {
        let Some(count) = amounts::count(container, self.count())? else {
            return Ok(None);
        };
        let name = self.count().unwrap_or_default();
        if self.topology != KunlunTopology::None && !links::COUNTS.contains(&count) {
            return Err(RequestError::resource(
                &container.name,
                name,
                format!("{count} cards are never linked with each other"),
                "ask for 1, 2, 4 or 8",
            ));
        }
        // The plugin reads one list of indexes from the pod, so a second container would get the first one's cards.
        let others = |other: &&ContainerView| {
            other.name != container.name && matches!(amounts::count(other, Some(name)), Ok(Some(_)))
        };
        if let Some(other) = pod.containers.iter().find(others) {
            return Err(RequestError::resource(
                &container.name,
                name,
                format!(
                    "container `{}` asks for whole cards too, and the plugin can tell only one container its cards",
                    other.name
                ),
                "ask for whole cards in one container of the pod",
            ));
        }
        Ok(Some(Ask {
            class: self.keyword.clone(),
            count,
            memory: MemoryAsk::Whole,
            percent_beside: None,
            cores: Cores::ZERO,
            extra: Vec::new(),
        }))
    }

    fn selection(&self, pod: &PodView) -> Result<Selection, RequestError> {
        Ok(super::selection(pod))
    }

    fn accepts(&self, card: CardView<'_>, want: &Want<'_>, _ctx: &FitContext<'_>) -> Result<(), ReasonKind> {
        if super::accepts_id(card, want.selection) && card.usage.slots > 0 {
            return Err(ReasonKind::ExclusiveConflict);
        }
        Ok(())
    }

    fn resolve(&self, card: &Card, _ask: &Ask) -> (Mib, Cores) {
        (card.memory, card.cores)
    }

    fn gathers(&self, _want: &Want<'_>, _ctx: &FitContext<'_>) -> bool {
        true
    }

    fn choose(&self, fitting: &[Candidate<'_>], want: &Want<'_>, _ctx: &FitContext<'_>) -> Option<Vec<usize>> {
        super::choose(self.topology, fitting, want.ask.count)
    }

    fn conclude(
        &self,
        _found: &[Given],
        _gathered: bool,
        _want: &Want<'_>,
        _ctx: &FitContext<'_>,
        reasons: &mut Vec<Reason>,
    ) {
        super::conclude(reasons, false);
    }

    /// What the placement does to the wings of the node: mending is worth more than keeping, keeping more than breaking.
    fn node_score(
        &self,
        placed: &ClassAllocation,
        _selection: &Selection,
        node: &NodeState,
        _policy: NodePolicy,
    ) -> f64 {
        let Some(on_node) = node.class(&self.keyword) else {
            return 0.0;
        };
        let index = |at: usize| node.cards().get(at).map(|card| card.index);
        let mut used: Vec<u32> = on_node
            .cards
            .clone()
            .filter(|at| node.usage().get(*at).is_some_and(|used| used.usage.slots > 0))
            .filter_map(index)
            .collect();
        let before = links::broken(&used);
        for share in placed.iter().flatten() {
            let at = on_node
                .cards
                .clone()
                .find(|at| node.cards().get(*at).is_some_and(|card| card.id == share.card));
            used.extend(at.and_then(index).filter(|index| !used.contains(index)));
        }
        match links::broken(&used) - before {
            ..=-1 => 3000.0,
            0 => 2000.0,
            2 => 0.0,
            _ => 1000.0,
        }
    }

    fn annotations(
        &self,
        allocation: &Allocation,
        _demand: &Demand,
        _at: &WriteContext<'_>,
    ) -> BTreeMap<String, String> {
        let mut annotations = BTreeMap::new();
        let Some(class) = allocation.classes.get(&self.keyword) else {
            return annotations;
        };
        annotations.insert(ALLOCATED.to_owned(), device_text::print(class));
        let mut users = class.iter().filter(|shares| !shares.is_empty());
        // The list cannot say whose cards it names, so it is written for one container only.
        if let (Some(shares), None) = (users.next(), users.next()) {
            let indexes: Vec<String> = shares
                .iter()
                .filter_map(|share| index_of(&share.card))
                .map(|index| index.to_string())
                .collect();
            annotations.insert(DEVICE_IDX.to_owned(), indexes.join(","));
        }
        annotations
    }

    fn admit(
        &self,
        container: &mut ContainerEdit<'_>,
        _pod: &PodView,
        _settings: &AdmitSettings,
    ) -> Result<Admit, RequestError> {
        Ok(Admit {
            uses_device: amounts::count(container.view(), self.count())?.is_some(),
            ..Admit::default()
        })
    }
}
