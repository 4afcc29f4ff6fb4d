//! Cambricon MLU: cards shared by dynamic sMLU instances, which driver and firmware hold.
//!
//! The vendor's plugin advertises the compute and the memory of all cards of a node as two pools and makes the instance
//! that the pod's profile text names: card, percent, memory units. It serves one pod of a node at a time, found by the
//! profile text, and takes away the class's own node lock when that pod is done.

mod admit;

use std::collections::BTreeMap;
use std::sync::Arc;

use tessera_engine::{
    Admit, AdmitSettings, AnnotationKeys, CardView, ContainerEdit, FitContext, HealthSource, LockKind, NodeProblem,
    RequestError, ResourceNames, Rules, Vendor, Want, WriteContext, common_accepts,
};
use tessera_types::{
    Allocation, Ask, Card, ClassAllocation, Cores, Demand, Keyword, MemoryAsk, Mib, ReasonKind, Selection,
    WHOLE_CARD_CORES,
};
use tessera_wire::config::{self, DeviceConfig};
use tessera_wire::{ContainerView, NodeView, PodView, device_text};

use crate::Options;
use crate::amounts;
use crate::pool::{self, Pool};
use crate::texts::SelectionKeys;

/// The keyword.
pub const KEYWORD: &str = "MLU";
/// Pod annotation: devices, as for other classes; nobody consumes it.
pub const TO_ALLOCATE: &str = "hami.io/cambricon-mlu-devices-to-allocate";
/// Pod annotation: devices handed out.
pub const ALLOCATED: &str = "hami.io/cambricon-mlu-devices-allocated";
/// Pod annotation: the instance that the plugin makes, `<card>_<percent>_<units>`.
pub const PROFILE: &str = "CAMBRICON_DSMLU_PROFILE";
/// Pod annotation: whether the plugin has made it. The spelling is the plugin's.
pub const ASSIGNED: &str = "CAMBRICON_DSMLU_ASSIGHED";
/// The same in HAMi's spelling since 2.7.1, which no public plugin reads.
pub const ASSIGNED_HAMI: &str = "CAMBRICON_DSMLU_ASSIGNED";
/// Pod annotation: the instance that the plugin made.
pub const INSTANCE: &str = "CAMBRICON_DSMLU_PROFILE_INSTANCE";
/// Node annotation: the lock between bind and the plugin's last answer, a bare time.
pub const NODE_LOCK: &str = "cambricon.com/dsmlu.lock";

/// How long a lock lasts that the plugin does not take away.
const LOCK_SECONDS: u32 = 120;
/// Compute units that the plugin advertises a card.
const UNITS_OF_A_CARD: u64 = 100;
/// Slots of a card; more than anybody needs.
const SLOTS: u32 = 100;
/// MiB of a memory unit.
const UNIT: u32 = 256;

const SELECTION: SelectionKeys<'_> = SelectionKeys {
    use_models: "cambricon.com/use-mlutype",
    avoid_models: "cambricon.com/nouse-mlutype",
    use_ids: "cambricon.com/use-gpuuuid",
    avoid_ids: "cambricon.com/nouse-gpuuuid",
    numa_bind: tessera_wire::keys::NUMA_BIND,
};

/// The Cambricon class with the cluster's names.
#[derive(Debug, Clone)]
pub struct Cambricon {
    keyword: Keyword,
    names: ResourceNames,
    keys: AnnotationKeys,
    model: Arc<str>,
}

/// The class, if the configuration names it.
#[must_use]
pub fn classes(config: &DeviceConfig, _options: &Options) -> Vec<Arc<dyn Vendor>> {
    config
        .cambricon
        .iter()
        .map(|settings| Arc::new(Cambricon::new(settings)) as Arc<dyn Vendor>)
        .collect()
}

/// The model that the plugin puts into its resource names when told to (`cambricon.com/mlu370.smlu.vcore`), else the
/// keyword.
fn model_of(cores: Option<&str>) -> Arc<str> {
    let middle = cores
        .and_then(|name| name.split_once('/'))
        .and_then(|(_, rest)| rest.strip_suffix(".smlu.vcore"));
    match middle {
        Some(model) if !model.eq_ignore_ascii_case(KEYWORD) => Arc::from(model.to_uppercase()),
        _ => Arc::from(KEYWORD),
    }
}

impl Cambricon {
    /// With the `cambricon` section of the device configuration; a name left out is the chart's.
    ///
    /// # Panics
    /// Never: the keyword is a constant without separators.
    #[must_use]
    pub fn new(settings: &config::CountMemoryCore) -> Self {
        let names = ResourceNames {
            count: amounts::name_or(&settings.resource_count_name, "cambricon.com/vmlu"),
            memory: amounts::name_or(&settings.resource_memory_name, "cambricon.com/mlu.smlu.vmemory"),
            cores: amounts::name_or(&settings.resource_core_name, "cambricon.com/mlu.smlu.vcore"),
            memory_factor: amounts::factor(settings.memory_factor, UNIT),
            ..ResourceNames::default()
        };
        Self {
            keyword: Keyword::new(KEYWORD).expect("a constant without separators"),
            model: model_of(names.cores.as_deref()),
            names,
            keys: AnnotationKeys {
                to_allocate: Some(TO_ALLOCATE.to_owned()),
                allocated: Some(ALLOCATED.to_owned()),
                extra: [PROFILE, ASSIGNED, ASSIGNED_HAMI, INSTANCE].map(str::to_owned).to_vec(),
                user: SELECTION.all().map(str::to_owned).collect(),
                ..AnnotationKeys::default()
            },
        }
    }

    fn pool(&self) -> Pool<'_> {
        Pool {
            class: &self.keyword,
            names: &self.names,
            id_word: "cambricon-mlu",
            model: &self.model,
            cores_of_a_card: UNITS_OF_A_CARD,
            slots: SLOTS,
        }
    }

    /// The text from which the plugin makes the instance: of the first card of the first container that has one, since
    /// it makes one a pod.
    fn profile(&self, class: &ClassAllocation) -> Option<String> {
        let share = class.iter().flatten().next()?;
        let index = pool::index_of(&share.card)?;
        let units = share.memory.get() / self.names.factor();
        Some(format!("{index}_{}_{units}", share.cores.get()))
    }
}

impl Vendor for Cambricon {
    fn keyword(&self) -> &Keyword {
        &self.keyword
    }

    fn names(&self) -> &ResourceNames {
        &self.names
    }

    fn keys(&self) -> &AnnotationKeys {
        &self.keys
    }

    /// The pools in the node's capacity, which decoding reads, are all there is to see.
    fn health(&self) -> HealthSource {
        HealthSource::Always
    }

    fn node_lock(&self) -> LockKind {
        LockKind::Timed {
            key: NODE_LOCK.to_owned(),
            lapses_seconds: LOCK_SECONDS,
        }
    }

    /// Neither NUMA nodes nor links of the cards are known.
    fn rules(&self) -> Rules {
        Rules {
            numa: false,
            topology: false,
            ..Rules::default()
        }
    }

    fn reserved_env(&self) -> &[&str] {
        &["CAMBRICON_VISIBLE_DEVICES", "VIRTUAL_DEVICES"]
    }

    /// Without `--min-dsmlu-unit` the plugin advertises 100 memory units a card, whatever the card's size: percent, not
    /// MiB. No card has 100 units of 256 MiB, so that is told by the number.
    fn decode_node(&self, node: &NodeView) -> Result<Vec<Card>, NodeProblem> {
        let pool = self.pool();
        let (cores, memory) = pool.read(node)?;
        if cores == memory && self.names.factor() == u64::from(UNIT) {
            return Err(NodeProblem::Capacity {
                resource: self.names.memory.clone().unwrap_or_default(),
                fault: format!(
                    "{memory} units for {cores} units of compute are percent of a card, not units of {UNIT} MiB; start \
                     the device plugin with --min-dsmlu-unit={UNIT}"
                ),
            });
        }
        pool.cards(node)
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
            "write a percentage of the card's compute, 1 to 100",
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

    /// A list of models says nothing about a card whose model is not known.
    fn accepts(&self, card: CardView<'_>, want: &Want<'_>, _ctx: &FitContext<'_>) -> Result<(), ReasonKind> {
        if &*card.card.model == KEYWORD {
            return Ok(());
        }
        common_accepts(card.card, want.selection)
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
        let text = device_text::print(class);
        annotations.insert(TO_ALLOCATE.to_owned(), text.clone());
        annotations.insert(ALLOCATED.to_owned(), text);
        if let Some(profile) = self.profile(class) {
            annotations.insert(PROFILE.to_owned(), profile);
            annotations.insert(ASSIGNED.to_owned(), "false".to_owned());
            annotations.insert(ASSIGNED_HAMI.to_owned(), "false".to_owned());
        }
        annotations
    }

    fn admit(
        &self,
        container: &mut ContainerEdit<'_>,
        pod: &PodView,
        settings: &AdmitSettings,
    ) -> Result<Admit, RequestError> {
        admit::admit(self, container, pod, settings)
    }
}
