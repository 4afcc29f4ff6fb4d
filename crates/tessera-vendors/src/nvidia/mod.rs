//! NVIDIA: cards shared through the preloaded library, and cards cut into MIG instances.
//!
//! Two modes on one class: a card's registered mode says which it is. A shared card follows the engine's common
//! checks; a MIG card adds the placement of an instance ([`mig`]), whose memory and compute replace those asked for.

mod admit;
pub mod mig;
mod request;

use std::collections::BTreeMap;
use std::sync::Arc;

use tessera_engine::{
    Admit, AdmitSettings, AllocationProblem, AnnotationKeys, CardView, ContainerEdit, FitContext, HealthSource,
    NodeProblem, RequestError, ResourceNames, Take, Vendor, Want, WriteContext, comma_list, go_bool,
};
use tessera_types::{
    Allocation, Ask, Card, CardId, ClassAllocation, Demand, Keyword, MigReservation, Reason, Selection,
};
use tessera_wire::{ContainerView, NodeView, PodView, config, device_text, keys, mig as wire_mig, register};

use crate::Options;
use crate::amounts::name;

/// The NVIDIA class with the cluster's settings.
#[derive(Debug, Clone)]
pub struct Nvidia {
    keyword: Keyword,
    names: ResourceNames,
    keys: AnnotationKeys,
    settings: config::Nvidia,
}

/// The class, if the configuration has its section.
pub(crate) fn classes(config: &config::DeviceConfig, _: &Options) -> Vec<Arc<dyn Vendor>> {
    let class = |settings| -> Arc<dyn Vendor> { Arc::new(Nvidia::new(settings)) };
    config.nvidia.as_ref().map(class).into_iter().collect()
}

impl Nvidia {
    /// With the `nvidia` section of the device configuration.
    ///
    /// # Panics
    /// Never: the keyword is a constant without separators.
    #[must_use]
    pub fn new(settings: &config::Nvidia) -> Self {
        let names = ResourceNames {
            count: name(&settings.resource_count_name),
            memory: name(&settings.resource_memory_name),
            memory_percent: name(&settings.resource_memory_percentage_name),
            cores: name(&settings.resource_core_name),
            priority: name(&settings.resource_priority_name),
            memory_factor: u32::try_from(settings.memory_factor).unwrap_or(1).max(1),
            ..ResourceNames::default()
        };
        let keys = AnnotationKeys {
            register: Some(keys::NVIDIA_REGISTER.to_owned()),
            handshake: Some(keys::NVIDIA_HANDSHAKE.to_owned()),
            scores: Some(keys::NVIDIA_SCORE.to_owned()),
            to_allocate: Some(keys::NVIDIA_TO_ALLOCATE.to_owned()),
            allocated: Some(keys::NVIDIA_ALLOCATED.to_owned()),
            extra: vec![keys::MIG_ALLOCATIONS.to_owned()],
            user: [
                keys::USE_GPU_TYPE,
                keys::NOUSE_GPU_TYPE,
                keys::USE_GPU_UUID,
                keys::NOUSE_GPU_UUID,
                keys::NUMA_BIND,
                keys::VGPU_MODE,
            ]
            .map(str::to_owned)
            .to_vec(),
        };
        Self {
            keyword: Keyword::new(keys::NVIDIA_KEYWORD).expect("a constant without separators"),
            names,
            keys,
            settings: settings.clone(),
        }
    }

    /// The settings.
    #[must_use]
    pub fn settings(&self) -> &config::Nvidia {
        &self.settings
    }
}

impl Vendor for Nvidia {
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

    fn decode_node(&self, node: &NodeView) -> Result<Vec<Card>, NodeProblem> {
        let text = node.annotations.get(keys::NVIDIA_REGISTER).ok_or(NodeProblem::Absent)?;
        let key = || keys::NVIDIA_REGISTER.to_owned();
        let mut cards = register::parse_json(text, &self.keyword).map_err(|error| NodeProblem::Unreadable {
            key: key(),
            fault: error.to_string(),
        })?;
        if cards.is_empty() {
            return Err(NodeProblem::Empty { key: key() });
        }
        if let Some(text) = node.annotations.get(keys::NVIDIA_SCORE) {
            let scores = register::parse_scores(text).map_err(|error| NodeProblem::Unreadable {
                key: keys::NVIDIA_SCORE.to_owned(),
                fault: error.to_string(),
            })?;
            register::join_scores(&mut cards, &scores);
        }
        Ok(cards)
    }

    /// A registered model must name the vendor, as it does when a plugin of this class registered it.
    fn serves(&self, card: &Card) -> bool {
        card.model
            .to_ascii_lowercase()
            .contains(&self.keyword.as_str().to_ascii_lowercase())
    }

    fn parse(&self, container: &ContainerView, _pod: &PodView) -> Result<Option<Ask>, RequestError> {
        request::parse(self, container)
    }

    fn selection(&self, pod: &PodView) -> Result<Selection, RequestError> {
        let text = |key: &str| pod.annotations.get(key).map(String::as_str);
        Ok(Selection {
            use_models: comma_list(text(keys::USE_GPU_TYPE)),
            avoid_models: comma_list(text(keys::NOUSE_GPU_TYPE)),
            use_ids: comma_list(text(keys::USE_GPU_UUID)),
            avoid_ids: comma_list(text(keys::NOUSE_GPU_UUID)),
            numa_bind: text(keys::NUMA_BIND).and_then(go_bool).unwrap_or(false),
            modes: text(keys::VGPU_MODE).map(str::to_owned),
            extra: Vec::new(),
        })
    }

    fn check(&self, card: CardView<'_>, want: &Want<'_>, _ctx: &FitContext<'_>) -> Result<Take, Reason> {
        if card.card.mode.is_mig() {
            return mig::place(card, want.memory);
        }
        Ok(Take::as_wanted(want))
    }

    fn own_agent(&self) -> bool {
        true
    }

    fn reserved_env(&self) -> &[&str] {
        &[keys::ENV_VISIBLE_DEVICES, keys::ENV_DISABLE_CONTROL]
    }

    fn repeats(&self, card: &Card, selection: &Selection) -> bool {
        card.mode.is_mig()
            && selection
                .modes
                .as_deref()
                .is_none_or(|modes| modes.contains(card.mode.as_str()))
    }

    fn annotations(&self, allocation: &Allocation, _: &Demand, _: &WriteContext<'_>) -> BTreeMap<String, String> {
        let mut annotations = BTreeMap::new();
        let Some(class) = allocation.classes.get(&self.keyword) else {
            return annotations;
        };
        let text = device_text::print(class);
        annotations.insert(keys::NVIDIA_TO_ALLOCATE.to_owned(), text.clone());
        annotations.insert(keys::NVIDIA_ALLOCATED.to_owned(), text);
        let own = |card: &CardId| class.iter().flatten().any(|share| share.card == *card);
        let reserved: Vec<MigReservation> = allocation.mig.iter().filter(|one| own(&one.card)).cloned().collect();
        if let Some(text) = wire_mig::print_reservations(&reserved) {
            annotations.insert(keys::MIG_ALLOCATIONS.to_owned(), text);
        }
        annotations
    }

    fn read_allocation(
        &self,
        annotations: &BTreeMap<String, String>,
    ) -> Result<Option<(ClassAllocation, Vec<MigReservation>)>, AllocationProblem> {
        let Some(text) = annotations.get(keys::NVIDIA_ALLOCATED) else {
            return Ok(None);
        };
        let class = device_text::parse(text).map_err(|error| AllocationProblem {
            key: keys::NVIDIA_ALLOCATED.to_owned(),
            fault: error.to_string(),
            text: text.clone(),
        })?;
        // Reservations that cannot be read count as absent: a MIG card with a share and no instance is closed then.
        let mig = annotations
            .get(keys::MIG_ALLOCATIONS)
            .and_then(|text| wire_mig::parse_reservations(text).ok())
            .unwrap_or_default();
        Ok(Some((class, mig)))
    }

    fn admit(
        &self,
        container: &mut ContainerEdit<'_>,
        pod: &PodView,
        _settings: &AdmitSettings,
    ) -> Result<Admit, RequestError> {
        admit::admit(self, container, pod)
    }
}
