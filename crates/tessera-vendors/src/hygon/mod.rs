//! Hygon DCU: cards shared by compute units and memory, which Hygon's user space and driver hold.
//!
//! A share needs both memory and compute: compute that is left out is the whole card's, so that memory alone keeps the
//! card for itself. The plugin of these nodes registers the older string form and is told its pod by the node lock
//! that most classes share.

mod admit;

use std::sync::Arc;

use tessera_engine::{
    Admit, AdmitSettings, AnnotationKeys, CardView, ContainerEdit, FitContext, HealthSource, NodeProblem, RequestError,
    ResourceNames, Rules, Vendor, Want, common_accepts,
};
use tessera_types::{Ask, Card, Cores, Keyword, MemoryAsk, Mib, ReasonKind, Selection, WHOLE_CARD_CORES};
use tessera_wire::config::{self, DeviceConfig};
use tessera_wire::{ContainerView, NodeView, PodView, register};

use crate::Options;
use crate::texts::SelectionKeys;
use crate::{amounts, nodes};

/// The keyword.
pub const KEYWORD: &str = "DCU";
/// Node annotation: the cards.
pub const REGISTER: &str = "hami.io/node-dcu-register";
/// Node annotation: the handshake.
pub const HANDSHAKE: &str = "hami.io/node-handshake-dcu";
/// Pod annotation: devices to hand out.
pub const TO_ALLOCATE: &str = "hami.io/dcu-devices-to-allocate";
/// Pod annotation: devices handed out.
pub const ALLOCATED: &str = "hami.io/dcu-devices-allocated";

const SELECTION: SelectionKeys<'_> = SelectionKeys {
    use_models: "hygon.com/use-dcutype",
    avoid_models: "hygon.com/nouse-dcutype",
    use_ids: "hygon.com/use-gpuuuid",
    avoid_ids: "hygon.com/nouse-gpuuuid",
    numa_bind: tessera_wire::keys::NUMA_BIND,
};

/// The Hygon class with the cluster's names.
#[derive(Debug, Clone)]
pub struct Hygon {
    keyword: Keyword,
    names: ResourceNames,
    keys: AnnotationKeys,
}

/// The class, if the configuration names it.
#[must_use]
pub fn classes(config: &DeviceConfig, _options: &Options) -> Vec<Arc<dyn Vendor>> {
    config
        .hygon
        .iter()
        .map(|settings| Arc::new(Hygon::new(settings)) as Arc<dyn Vendor>)
        .collect()
}

impl Hygon {
    /// With the `hygon` section of the device configuration; a name left out is the chart's.
    ///
    /// # Panics
    /// Never: the keyword is a constant without separators.
    #[must_use]
    pub fn new(settings: &config::CountMemoryCore) -> Self {
        Self {
            keyword: Keyword::new(KEYWORD).expect("a constant without separators"),
            names: ResourceNames {
                count: amounts::name_or(&settings.resource_count_name, "hygon.com/dcunum"),
                memory: amounts::name_or(&settings.resource_memory_name, "hygon.com/dcumem"),
                cores: amounts::name_or(&settings.resource_core_name, "hygon.com/dcucores"),
                memory_factor: amounts::factor(settings.memory_factor, 1),
                ..ResourceNames::default()
            },
            keys: AnnotationKeys {
                register: Some(REGISTER.to_owned()),
                handshake: Some(HANDSHAKE.to_owned()),
                to_allocate: Some(TO_ALLOCATE.to_owned()),
                allocated: Some(ALLOCATED.to_owned()),
                user: SELECTION.all().map(str::to_owned).collect(),
                ..AnnotationKeys::default()
            },
        }
    }
}

/// An entry `=DCU-K100` names exactly this model; without the sign it is found anywhere in the model's name.
fn split_exact(list: Option<&[String]>) -> (Vec<&str>, Vec<String>) {
    let (mut exact, mut part) = (Vec::new(), Vec::new());
    for entry in list.unwrap_or_default() {
        match entry.strip_prefix('=') {
            Some(model) => exact.push(model.trim()),
            None => part.push(entry.clone()),
        }
    }
    (exact, part)
}

impl Vendor for Hygon {
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
        HealthSource::HandshakeAndAllocatable
    }

    /// The plugin registers NUMA node 0 and no links for every card.
    fn rules(&self) -> Rules {
        Rules {
            numa: false,
            topology: false,
            ..Rules::default()
        }
    }

    fn decode_node(&self, node: &NodeView) -> Result<Vec<Card>, NodeProblem> {
        nodes::parsed(node, REGISTER, |text| register::parse_legacy(text, &self.keyword))
    }

    /// A registered model begins with the keyword, also that of a chip which the plugin does not know.
    fn serves(&self, card: &Card) -> bool {
        card.model.to_ascii_lowercase().contains("dcu")
    }

    fn parse(&self, container: &ContainerView, _pod: &PodView) -> Result<Option<Ask>, RequestError> {
        let names = &self.names;
        let Some(count) = amounts::count(container, names.count.as_deref())? else {
            return Ok(None);
        };
        let memory = amounts::memory(container, names.memory.as_deref(), names.factor())?.unwrap_or(Mib::ZERO);
        let cores = amounts::compute(
            container,
            names.cores.as_deref(),
            "write a percentage of the card's compute units, 0 to 100",
        )?;
        Ok(Some(Ask {
            class: self.keyword.clone(),
            count,
            memory: if memory == Mib::ZERO {
                MemoryAsk::Whole
            } else {
                MemoryAsk::Mib(memory)
            },
            percent_beside: None,
            cores: cores.map_or(WHOLE_CARD_CORES, Cores::new),
            extra: Vec::new(),
        }))
    }

    fn selection(&self, pod: &PodView) -> Result<Selection, RequestError> {
        Ok(SELECTION.read(pod))
    }

    fn accepts(&self, card: CardView<'_>, want: &Want<'_>, _ctx: &FitContext<'_>) -> Result<(), ReasonKind> {
        let selection = want.selection;
        let lists = [&selection.use_models, &selection.avoid_models];
        let has_exact = |list: &Option<Vec<String>>| list.iter().flatten().any(|entry| entry.starts_with('='));
        if !lists.into_iter().any(has_exact) {
            return common_accepts(card.card, selection);
        }
        let named = |list: &Option<Vec<String>>| {
            let (exact, part) = split_exact(list.as_deref());
            let model = &*card.card.model;
            exact.iter().any(|entry| entry.eq_ignore_ascii_case(model))
                || part
                    .iter()
                    .any(|entry| !entry.is_empty() && model.to_lowercase().contains(&entry.to_lowercase()))
        };
        let used = selection.use_models.is_none() || named(&selection.use_models);
        if used && !named(&selection.avoid_models) {
            Ok(())
        } else {
            Err(ReasonKind::ModelMismatch)
        }
    }

    fn admit(
        &self,
        container: &mut ContainerEdit<'_>,
        _pod: &PodView,
        _settings: &AdmitSettings,
    ) -> Result<Admit, RequestError> {
        admit::admit(&self.names, container)
    }
}
