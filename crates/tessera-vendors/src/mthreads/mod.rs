//! Moore Threads: cards shared by sGPU slices, which the vendor's runtime and kernel module hold.
//!
//! The vendor's plugin advertises the compute (16 core groups a card) and the memory (units of 512 MiB) of all sliced
//! cards of a node as two pools, and reads which card to use from one annotation of the pod. That annotation names the
//! cards of one container, so all containers of a pod have to be on the same card.

mod admit;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tessera_engine::{
    Admit, AdmitSettings, AnnotationKeys, CardView, ContainerEdit, FitContext, HealthSource, LockKind, NodeProblem,
    NodeState, RequestError, ResourceNames, Rules, Take, Unified, Vendor, Want, WriteContext,
};
use tessera_types::{
    Allocation, Ask, Card, CardUsage, ClassAllocation, Cores, Demand, Keyword, MemoryAsk, Mib, Reason, ReasonKind,
    Selection,
};
use tessera_wire::config::{self, DeviceConfig};
use tessera_wire::{ContainerView, NodeView, PodView, device_text};

use crate::Options;
use crate::amounts;
use crate::pool::{self, Pool};
use crate::texts::SelectionKeys;

/// What the maker's runtime reads; the container's own value would win over the plugin's.
const RESERVED_ENV: [&str; 3] = [
    "MTHREADS_VISIBLE_DEVICES",
    "MTHREADS_QOS_MEMORY_LIMIT",
    "MTHREADS_QOS_COMPUTING_POWER_WEIGHT",
];

/// The keyword.
pub const KEYWORD: &str = "Mthreads";
/// Pod annotation: devices handed out.
pub const ALLOCATED: &str = "hami.io/mthreads-vgpu-devices-allocated";
/// Pod annotation: indices of the cards, which the vendor's plugin reads.
pub const INDEX: &str = "mthreads.com/gpu-index";
/// Pod annotation: the node that the cards were chosen on.
pub const NODE: &str = "mthreads.com/predicate-node";
/// Pod annotation: when they were chosen, Unix nanoseconds. The plugin tells pods of one node apart by it.
pub const TIME: &str = "mthreads.com/predicate-time";
/// Pod annotation: how many cards, set at admission for more than one.
pub const COUNT: &str = "mthreads.com/request-gpu-num";
/// The vendor's own resource of whole cards, which are no part of the pools.
pub const WHOLE_CARDS: &str = "mthreads.com/gpu";

/// Core groups of a card.
const GROUPS: u32 = 16;
/// Slots that a card registers.
const SLOTS: u32 = 100;
/// Slices that the kernel module makes of a card.
const SLICES_MAX: u32 = 16;
/// MiB of a memory unit.
const UNIT: u32 = 512;
/// Memory units of a card, where neither the configuration nor a node says otherwise.
const UNITS_OF_A_CARD: u64 = 96;
/// GiB that the vendor's runtime rounds a limit up to; half a GiB before the first.
const TIERS_GIB: [u64; 9] = [1, 2, 4, 8, 16, 32, 48, 64, 80];

const SELECTION: SelectionKeys<'_> = SelectionKeys {
    use_models: "",
    avoid_models: "",
    use_ids: "mthreads.ai/use-gpuuuid",
    avoid_ids: "mthreads.ai/nouse-gpuuuid",
    numa_bind: tessera_wire::keys::NUMA_BIND,
};

/// The Moore Threads class with the cluster's names and sizes.
#[derive(Debug, Clone)]
pub struct Mthreads {
    keyword: Keyword,
    names: ResourceNames,
    keys: AnnotationKeys,
    model: Arc<str>,
    /// Memory units of a card as configured, by kind of card; empty if the configuration says nothing.
    configured: BTreeSet<u64>,
}

/// The class, if the configuration names it.
#[must_use]
pub fn classes(config: &DeviceConfig, _options: &Options) -> Vec<Arc<dyn Vendor>> {
    config
        .mthreads
        .iter()
        .map(|settings| Arc::new(Mthreads::new(settings)) as Arc<dyn Vendor>)
        .collect()
}

/// The limit that the runtime sets for `memory`: the next of its tiers, or as it is above the last.
fn tier(memory: Mib) -> Mib {
    std::iter::once(512)
        .chain(TIERS_GIB.map(|gib| gib * 1024))
        .find(|tier| *tier >= memory.get())
        .map_or(memory, Mib::new)
}

impl Mthreads {
    /// With the `mthreads` section of the device configuration; a name left out is the chart's.
    ///
    /// # Panics
    /// Never: the keyword is a constant without separators.
    #[must_use]
    pub fn new(settings: &config::Mthreads) -> Self {
        Self {
            keyword: Keyword::new(KEYWORD).expect("a constant without separators"),
            model: Arc::from(KEYWORD),
            names: ResourceNames {
                count: amounts::name_or(&settings.resource_count_name, "mthreads.com/vgpu"),
                memory: amounts::name_or(&settings.resource_memory_name, "mthreads.com/sgpu-memory"),
                cores: amounts::name_or(&settings.resource_core_name, "mthreads.com/sgpu-core"),
                memory_factor: amounts::factor(settings.memory_factor, UNIT),
                ..ResourceNames::default()
            },
            keys: AnnotationKeys {
                allocated: Some(ALLOCATED.to_owned()),
                extra: [INDEX, NODE, TIME].map(str::to_owned).to_vec(),
                user: SELECTION.all().map(str::to_owned).collect(),
                ..AnnotationKeys::default()
            },
            configured: settings
                .memory_per_card
                .iter()
                .filter_map(|units| u64::try_from(*units).ok().filter(|units| *units > 0))
                .collect(),
        }
    }

    fn pool(&self) -> Pool<'_> {
        Pool {
            class: &self.keyword,
            names: &self.names,
            id_word: "mthreads",
            model: &self.model,
            cores_of_a_card: u64::from(GROUPS),
            slots: SLOTS,
        }
    }

    /// The indices of the last container's cards, joined by commas.
    fn index(class: &ClassAllocation) -> Option<String> {
        let shares = class.iter().rev().find(|shares| !shares.is_empty())?;
        let indices: Vec<String> = shares
            .iter()
            .filter_map(|share| pool::index_of(&share.card))
            .map(|index| index.to_string())
            .collect();
        Some(indices.join(","))
    }

    /// Nanoseconds of the moment of a decision. Two pods of one second would carry the same stamp; the part below the
    /// second comes from the pod's uid, so that they do not.
    fn stamp(demand: &Demand, now_seconds: i64) -> i64 {
        const SECOND: i64 = 1_000_000_000;
        let mixed = demand
            .pod
            .uid
            .as_str()
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
        let below = i64::try_from(mixed % 1_000_000_000).unwrap_or(0);
        now_seconds.saturating_mul(SECOND).saturating_add(below)
    }
}

impl Vendor for Mthreads {
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

    /// Nobody on the node would take a lock away again.
    fn node_lock(&self) -> LockKind {
        LockKind::None
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
        &RESERVED_ENV
    }

    fn decode_node(&self, node: &NodeView) -> Result<Vec<Card>, NodeProblem> {
        self.pool().cards(node)
    }

    fn disagreement(&self, card: &Card) -> Option<String> {
        let units = card.memory.get() / self.names.factor();
        if self.configured.is_empty() || self.configured.contains(&units) {
            return None;
        }
        let listed: Vec<String> = self.configured.iter().map(u64::to_string).collect();
        Some(format!(
            "the node has cards of {units} memory units, and `memoryPerCard` of the device configuration lists {}; add {units} there",
            listed.join(", ")
        ))
    }

    /// Memory and compute are of all cards together. A count alone is whole cards, as admission writes it out.
    fn parse(&self, container: &ContainerView, _pod: &PodView) -> Result<Option<Ask>, RequestError> {
        let names = &self.names;
        let Some(count) = amounts::count(container, names.count.as_deref())? else {
            return Ok(None);
        };
        let memory = amounts::memory(container, names.memory.as_deref(), names.factor())?.unwrap_or(Mib::ZERO);
        let next = "write a number of core groups; a card has 16";
        let groups = amounts::compute(container, names.cores.as_deref(), next)?;
        let each = match groups {
            None if memory == Mib::ZERO => GROUPS,
            None | Some(0) => 0,
            Some(groups) if groups < count => {
                return Err(RequestError::resource(
                    &container.name,
                    names.cores.as_deref().unwrap_or_default(),
                    format!("{groups} core groups cannot be parted between {count} cards"),
                    format!("write at least {count}; the number is of all cards together"),
                ));
            }
            Some(groups) => groups / count,
        };
        Ok(Some(Ask {
            class: self.keyword.clone(),
            count,
            memory: if memory == Mib::ZERO {
                MemoryAsk::Whole
            } else {
                MemoryAsk::Mib(Mib::new(memory.get() / u64::from(count)))
            },
            percent_beside: None,
            cores: Cores::new(each),
            extra: Vec::new(),
        }))
    }

    fn selection(&self, pod: &PodView) -> Result<Selection, RequestError> {
        Ok(SELECTION.read(pod))
    }

    /// All containers of a pod on one card, since the pod can name the cards of one container only; and the memory
    /// that the runtime really sets as limit.
    fn check(&self, card: CardView<'_>, want: &Want<'_>, ctx: &FitContext<'_>) -> Result<Take, Reason> {
        let elsewhere = ctx.earlier.iter().any(|earlier| {
            earlier.position != card.position
                && ctx
                    .node
                    .cards()
                    .get(earlier.position)
                    .is_some_and(|other| other.class == self.keyword)
        });
        if elsewhere {
            return Err(Reason::of(ReasonKind::ClassRule, Some(card.card.id.clone())));
        }
        Ok(Take {
            memory: tier(want.memory).min(card.card.memory).max(want.memory),
            ..Take::as_wanted(want)
        })
    }

    /// The kernel module makes so many slices of a card and no more.
    fn joins(
        &self,
        card: CardView<'_>,
        added: CardUsage,
        _facts: &BTreeMap<String, String>,
        _node: &NodeState,
    ) -> Result<(), ReasonKind> {
        if card.usage.slots.saturating_add(added.slots) > SLICES_MAX {
            return Err(ReasonKind::SlotsExhausted);
        }
        Ok(())
    }

    /// Memory and core groups are totals of the container's cards, groups sixteenths of a card.
    fn translate(&self, request: &Unified) -> Option<Vec<(String, u64)>> {
        let names = &self.names;
        let mut own = vec![(names.count.clone()?, request.count)];
        if let Some(mib) = request.memory_mib {
            let total = mib.div_ceil(names.factor()).saturating_mul(request.count);
            own.push((names.memory.clone()?, total));
        }
        if let Some(percent) = request.cores {
            let groups = (percent * 16).div_ceil(100).saturating_mul(request.count);
            own.push((names.cores.clone()?, groups));
        }
        Some(own)
    }

    fn annotations(&self, allocation: &Allocation, demand: &Demand, at: &WriteContext<'_>) -> BTreeMap<String, String> {
        let mut annotations = BTreeMap::new();
        let Some(class) = allocation.classes.get(&self.keyword) else {
            return annotations;
        };
        annotations.insert(ALLOCATED.to_owned(), device_text::print(class));
        if let Some(index) = Self::index(class) {
            annotations.insert(INDEX.to_owned(), index);
            annotations.insert(NODE.to_owned(), at.node.to_string());
            annotations.insert(TIME.to_owned(), Self::stamp(demand, at.now_seconds).to_string());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runtime_rounds_up_to_its_tiers() {
        for (asked, limit) in [
            (1, 512),
            (512, 512),
            (513, 1024),
            (17_066, 32_768),
            (49_152, 49_152),
            (90_000, 90_000),
        ] {
            assert_eq!(tier(Mib::new(asked)), Mib::new(limit));
        }
    }
}
