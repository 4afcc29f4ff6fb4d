//! AMD Instinct and Radeon: cards shared by memory and compute units.
//!
//! A card registers how many compute units it has, and those are what is booked, written and freed; a user asks in
//! percent. HAMi's plugin turns the number into a set of units of its own choice, and holds the memory by a library in
//! the container.

mod request;

use std::collections::BTreeMap;
use std::sync::Arc;

use tessera_engine::{
    Admit, AdmitSettings, AnnotationKeys, CardView, ContainerEdit, FitContext, HealthSource, NodeProblem, NodeState,
    RequestError, ResourceNames, Rules, Take, Vendor, Want, WriteContext,
};
use tessera_types::{
    Allocation, Ask, Card, CardUsage, ClassAllocation, ContainerRole, Cores, Demand, Keyword, Mib, Reason, ReasonKind,
    Selection,
};
use tessera_wire::config::{self, DeviceConfig};
use tessera_wire::{ContainerView, NodeView, PodView, device_text};

use crate::texts::SelectionKeys;
use crate::{Options, amounts, nodes};

/// The class's keyword.
pub const KEYWORD: &str = "AMD";
/// Node: the list of cards.
pub const REGISTER: &str = "hami.io/node-amd-register";
/// Pod: what is to be handed out.
pub const TO_ALLOCATE: &str = "hami.io/amd-devices-to-allocate";
/// Pod: what was given.
pub const ALLOCATED: &str = "hami.io/amd-devices-allocated";
/// Pod: which compute units the plugin chose.
pub const UNITS_ALLOCATED: &str = "hami.io/amd-cu-allocated";

const NUMA_BIND: &str = "amd.com/numa-bind";
const SELECTION: SelectionKeys<'_> = SelectionKeys {
    use_models: "amd.com/use-gputype",
    avoid_models: "amd.com/nouse-gputype",
    use_ids: "amd.com/use-gpu-uuid",
    avoid_ids: "amd.com/nouse-gpu-uuid",
    numa_bind: NUMA_BIND,
};

/// The AMD class with the cluster's settings.
#[derive(Debug, Clone)]
pub struct Amd {
    keyword: Keyword,
    names: ResourceNames,
    keys: AnnotationKeys,
    settings: config::Amd,
}

/// The class, if the configuration has its section.
pub(crate) fn classes(config: &DeviceConfig, _options: &Options) -> Vec<Arc<dyn Vendor>> {
    config
        .amd
        .iter()
        .filter(|settings| !settings.resource_count_name.is_empty())
        .map(|settings| Arc::new(Amd::new(settings)) as Arc<dyn Vendor>)
        .collect()
}

impl Amd {
    /// With the `amd` section of the device configuration.
    ///
    /// # Panics
    /// Never: the keyword is a constant without separators.
    #[must_use]
    pub fn new(settings: &config::Amd) -> Self {
        Self {
            keyword: Keyword::new(KEYWORD).expect("a constant without separators"),
            names: ResourceNames {
                count: amounts::name(&settings.resource_count_name),
                memory: amounts::name(&settings.resource_memory_name),
                cores: amounts::name(&settings.resource_core_name),
                memory_factor: settings.memory_factor.max(1),
                cores_by_model: true,
                ..ResourceNames::default()
            },
            keys: AnnotationKeys {
                register: Some(REGISTER.to_owned()),
                to_allocate: Some(TO_ALLOCATE.to_owned()),
                allocated: Some(ALLOCATED.to_owned()),
                extra: vec![UNITS_ALLOCATED.to_owned()],
                user: SELECTION.all().map(str::to_owned).collect(),
                ..AnnotationKeys::default()
            },
            settings: settings.clone(),
        }
    }

    /// How many compute units can only be told apart together: on Radeon chips they come in pairs.
    fn step(&self, card: &Card) -> u32 {
        let told = match self.settings.cu_granularity.parse::<u32>() {
            Ok(step) => Some(step),
            Err(_) => card.custom.get("cuStep").and_then(|step| step.parse().ok()),
        };
        let model = card.model.to_ascii_lowercase();
        let radeon = model.contains("radeon") && !model.contains("instinct");
        told.unwrap_or(if radeon { 2 } else { 1 }).max(1)
    }
}

/// The compute units that `percent` of a card are: rounded down, then up to whole steps; at least one step, at most all.
/// A card that registers none has none for anybody.
fn units(total: u32, percent: u32, step: u32) -> u32 {
    if percent == 0 {
        return 0;
    }
    let part = u64::from(total) * u64::from(percent.min(100)) / 100;
    let part = u32::try_from(part).unwrap_or(u32::MAX).max(1);
    part.checked_next_multiple_of(step).unwrap_or(part).min(total.max(1))
}

/// What the plugin consumes. It looks up the container at the position of an entry among the app containers alone, and
/// ends if there is none; so where init containers shift the positions beyond that, empty entries are left out. The
/// order, which is what it goes by, stays.
fn consumable(class: &ClassAllocation, roles: &[ContainerRole]) -> ClassAllocation {
    let apps = roles.iter().filter(|role| **role == ContainerRole::App).count();
    let beyond = class
        .iter()
        .enumerate()
        .any(|(position, shares)| position >= apps && !shares.is_empty());
    if !beyond || apps == 0 {
        return class.clone();
    }
    class.iter().filter(|shares| !shares.is_empty()).cloned().collect()
}

impl Vendor for Amd {
    fn keyword(&self) -> &Keyword {
        &self.keyword
    }

    fn names(&self) -> &ResourceNames {
        &self.names
    }

    fn keys(&self) -> &AnnotationKeys {
        &self.keys
    }

    /// kubelet lowers the allocatable number for broken cards, the capacity it leaves.
    fn health(&self) -> HealthSource {
        HealthSource::Allocatable
    }

    /// A card has no fixed number of compute units that would make it whole.
    fn rules(&self) -> Rules {
        Rules {
            topology: false,
            whole_alone: false,
            ..Rules::default()
        }
    }

    fn decode_node(&self, node: &NodeView) -> Result<Vec<Card>, NodeProblem> {
        nodes::registered(node, REGISTER, &self.keyword)
    }

    /// What the plugin holds a container to.
    fn reserved_env(&self) -> &[&str] {
        &["HSA_CU_MASK", "HIP_DEVICE_MEMORY_LIMIT"]
    }

    fn parse(&self, container: &ContainerView, _pod: &PodView) -> Result<Option<Ask>, RequestError> {
        request::parse(self, container)
    }

    fn selection(&self, pod: &PodView) -> Result<Selection, RequestError> {
        Ok(SELECTION.read(pod))
    }

    fn resolve(&self, card: &Card, ask: &Ask) -> (Mib, Cores) {
        let units = units(card.cores.get(), ask.cores.get(), self.step(card));
        (ask.memory.on(card.memory), Cores::new(units))
    }

    /// HAMi's plugin keeps the units of a pod's init containers until the pod ends, so what comes later in the pod has
    /// to fit beside them.
    fn check(&self, card: CardView<'_>, want: &Want<'_>, ctx: &FitContext<'_>) -> Result<Take, Reason> {
        let kept = ctx
            .earlier
            .iter()
            .filter(|earlier| earlier.role == ContainerRole::Init && earlier.position == card.position)
            .fold(Cores::ZERO, |sum, earlier| sum.saturating_add(earlier.take.cores));
        let free = card.card.cores.saturating_sub(card.usage.cores.saturating_add(kept));
        if kept > Cores::ZERO && (want.cores > free || want.cores == Cores::ZERO) {
            let (wanted, free) = (u64::from(want.cores.get()), u64::from(free.get()));
            let id = Some(card.card.id.clone());
            return Err(Reason::short_of(
                ReasonKind::CoresShort,
                id,
                "compute units",
                wanted,
                free,
            ));
        }
        Ok(Take::as_wanted(want))
    }

    /// HAMi's plugin gives a container without a claim all units of the card, and fails if any is taken. So such a
    /// container goes first on a card, or beside others like it.
    fn joins(
        &self,
        card: CardView<'_>,
        added: CardUsage,
        _facts: &BTreeMap<String, String>,
        _node: &NodeState,
    ) -> Result<(), ReasonKind> {
        if added.cores == Cores::ZERO && card.usage.cores > Cores::ZERO {
            return Err(ReasonKind::CoresShort);
        }
        Ok(())
    }

    /// The plugin and its users know the model there.
    fn written_as(&self, card: &Card) -> Keyword {
        Keyword::new(&card.model).unwrap_or_else(|_| self.keyword.clone())
    }

    fn annotations(
        &self,
        allocation: &Allocation,
        demand: &Demand,
        _at: &WriteContext<'_>,
    ) -> BTreeMap<String, String> {
        let Some(class) = allocation.classes.get(&self.keyword) else {
            return BTreeMap::new();
        };
        let roles: Vec<ContainerRole> = demand.containers.iter().map(|container| container.role).collect();
        BTreeMap::from([
            (TO_ALLOCATE.to_owned(), device_text::print(&consumable(class, &roles))),
            (ALLOCATED.to_owned(), device_text::print(class)),
        ])
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_become_whole_steps_of_units() {
        assert_eq!([25, 33, 100].map(|percent| units(304, percent, 1)), [76, 100, 304]);
        assert_eq!((units(8, 1, 1), units(0, 25, 1), units(304, 0, 1)), (1, 1, 0));
        // Pairs: rounded up, and never more than there are.
        assert_eq!(
            (units(60, 5, 2), units(60, 1, 2), units(60, 99, 2), units(5, 90, 2)),
            (4, 2, 60, 4)
        );
    }
}
