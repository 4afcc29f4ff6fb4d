//! Whole cards.

use std::collections::BTreeMap;
use std::sync::Arc;

use tessera_engine::{
    Admit, AdmitSettings, AnnotationKeys, CardView, ContainerEdit, FitContext, HealthSource, LockKind, NodeProblem,
    RequestError, ResourceNames, Rules, Vendor, Want,
};
use tessera_types::{
    Ask, Card, CardId, CardMode, Extras, Keyword, MemoryAsk, Mib, ReasonKind, Selection, WHOLE_CARD_CORES,
};
use tessera_wire::config::Enflame;
use tessera_wire::{ContainerView, NodeView, PodView};

use super::WHOLE;
use crate::{amounts, nodes};

const TO_ALLOCATE: &str = "hami.io/enflame-gcu-devices-to-allocate";
const ALLOCATED: &str = "hami.io/enflame-gcu-devices-allocated";
/// The node does not tell the memory of whole cards; HAMi writes this number.
const MEMORY: Mib = Mib::new(100);

/// The class of whole cards.
#[derive(Debug, Clone)]
pub struct EnflameWhole {
    keyword: Keyword,
    names: ResourceNames,
    keys: AnnotationKeys,
}

impl EnflameWhole {
    /// With the `enflame` section of the device configuration.
    ///
    /// # Panics
    /// Never: the keyword is a constant without separators.
    #[must_use]
    pub fn new(section: &Enflame) -> Self {
        Self {
            keyword: Keyword::new(WHOLE).expect("a constant without separators"),
            names: ResourceNames {
                count: amounts::name(&section.resource_name_gcu),
                memory_factor: 1,
                ..ResourceNames::default()
            },
            keys: AnnotationKeys {
                to_allocate: Some(TO_ALLOCATE.to_owned()),
                allocated: Some(ALLOCATED.to_owned()),
                ..AnnotationKeys::default()
            },
        }
    }

    fn count(&self) -> Option<&str> {
        self.names.count.as_deref()
    }
}

impl Vendor for EnflameWhole {
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

    fn reserved_env(&self) -> &[&str] {
        &super::RESERVED_ENV
    }

    fn decode_node(&self, node: &NodeView) -> Result<Vec<Card>, NodeProblem> {
        let count = nodes::capacity(node, self.count()).ok_or(NodeProblem::Absent)?;
        (0..count)
            .map(|index| {
                let id = format!("{}-{WHOLE}-{index}", node.name);
                Ok(Card {
                    id: CardId::new(id).map_err(|error| nodes::bad_capacity(self.count(), &error))?,
                    class: self.keyword.clone(),
                    index,
                    slots: 1,
                    memory: MEMORY,
                    cores: WHOLE_CARD_CORES,
                    model: Arc::from(WHOLE),
                    numa: 0,
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

    fn parse(&self, container: &ContainerView, _pod: &PodView) -> Result<Option<Ask>, RequestError> {
        Ok(amounts::count(container, self.count())?.map(|count| Ask {
            class: self.keyword.clone(),
            count,
            memory: MemoryAsk::Whole,
            percent_beside: None,
            cores: WHOLE_CARD_CORES,
            extra: Vec::new(),
        }))
    }

    fn selection(&self, _pod: &PodView) -> Result<Selection, RequestError> {
        Ok(Selection::default())
    }

    fn accepts(&self, card: CardView<'_>, _want: &Want<'_>, _ctx: &FitContext<'_>) -> Result<(), ReasonKind> {
        if card.usage.slots > 0 {
            return Err(ReasonKind::ExclusiveConflict);
        }
        Ok(())
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
