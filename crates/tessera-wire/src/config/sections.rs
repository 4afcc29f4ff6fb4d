//! The sections of the other classes: names and numbers, as their plugins and charts know them.

use std::fmt;

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::pod::nullable;

/// Count, memory and compute names (`cambricon`, `hygon`, `amd`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct CountMemoryCore {
    /// Resource: number of cards.
    #[serde(deserialize_with = "nullable")]
    pub resource_count_name: String,
    /// Resource: memory.
    #[serde(deserialize_with = "nullable")]
    pub resource_memory_name: String,
    /// Resource: compute.
    #[serde(deserialize_with = "nullable")]
    pub resource_core_name: String,
    /// MiB that one unit of memory stands for; 0 is the class's own unit.
    #[serde(deserialize_with = "nullable")]
    pub memory_factor: i32,
}

/// `biren`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Biren {
    /// Resource: number of cards.
    #[serde(deserialize_with = "nullable")]
    pub resource_count_name: String,
    /// Resources: number of hardware instances, each a half or a quarter of a card. The name says which, as the device
    /// plugin's does: `birentech.com/1-2-gpu`, `birentech.com/1-4-gpu`.
    #[serde(deserialize_with = "nullable")]
    pub instance_resources: Vec<String>,
}

/// `vastai`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Vastai {
    /// Resource: number of cards or dies, whichever the node registers.
    #[serde(deserialize_with = "nullable")]
    pub resource_count_name: String,
    /// From which cards dies are taken.
    #[serde(deserialize_with = "nullable")]
    pub packing: VastaiPacking,
}

/// From which cards dies are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VastaiPacking {
    /// The card with the fewest free dies that holds all of them, so that other cards stay whole.
    #[default]
    BestFit,
    /// The card with the most free dies.
    Hami,
}

/// `mthreads`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Mthreads {
    /// Resource: number of cards.
    #[serde(deserialize_with = "nullable")]
    pub resource_count_name: String,
    /// Resource: memory.
    #[serde(deserialize_with = "nullable")]
    pub resource_memory_name: String,
    /// Resource: compute.
    #[serde(deserialize_with = "nullable")]
    pub resource_core_name: String,
    /// MiB that one unit of memory stands for; 0 is the class's own unit.
    #[serde(deserialize_with = "nullable")]
    pub memory_factor: i32,
    /// Memory units of one card, by kind of card.
    #[serde(deserialize_with = "one_or_many")]
    pub memory_per_card: Vec<i64>,
}

/// `metax`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Metax {
    /// Resource: number of whole cards.
    #[serde(deserialize_with = "nullable")]
    pub resource_count_name: String,
    /// Resource: number of shares.
    #[serde(rename = "resourceVCountName", deserialize_with = "nullable")]
    pub resource_vcount_name: String,
    /// Resource: memory of a share.
    #[serde(rename = "resourceVMemoryName", deserialize_with = "nullable")]
    pub resource_vmemory_name: String,
    /// Resource: compute of a share.
    #[serde(rename = "resourceVCoreName", deserialize_with = "nullable")]
    pub resource_vcore_name: String,
    /// Shares follow the links between cards.
    #[serde(deserialize_with = "nullable")]
    pub sgpu_topology_aware: bool,
}

/// `enflame`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Enflame {
    /// Resource: number of whole cards.
    #[serde(rename = "resourceNameGCU", deserialize_with = "nullable")]
    pub resource_name_gcu: String,
    /// Resource: number of shares.
    #[serde(rename = "resourceNameDRSGCU", deserialize_with = "nullable")]
    pub resource_name_drs_gcu: String,
    /// Resource: memory of a share.
    #[serde(rename = "resourceNameGCUMemory", deserialize_with = "nullable")]
    pub resource_name_gcu_memory: String,
    /// Resource: compute of a share.
    #[serde(rename = "resourceNameGCUCore", deserialize_with = "nullable")]
    pub resource_name_gcu_core: String,
    /// Resource: number of shares, in HAMi 2.9.
    #[serde(rename = "resourceNameVGCU", deserialize_with = "nullable")]
    pub resource_name_vgcu: String,
    /// Resource: percent of a card, in HAMi 2.9.
    #[serde(rename = "resourceNameVGCUPercentage", deserialize_with = "nullable")]
    pub resource_name_vgcu_percentage: String,
    /// What a number of `enflame.com/gcu-memory` counts.
    #[serde(rename = "memoryUnit", deserialize_with = "nullable")]
    pub memory_unit: EnflameMemoryUnit,
}

/// What one unit of a partition's memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum EnflameMemoryUnit {
    /// GiB up to twice the memory of a card, MiB above, as HAMi guesses.
    #[default]
    #[serde(rename = "auto")]
    Auto,
    /// GiB.
    GiB,
    /// MiB.
    MiB,
}

/// `kunlun`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Kunlun {
    /// Resource: number of whole cards.
    #[serde(deserialize_with = "nullable")]
    pub resource_count_name: String,
    /// Resource: number of shares.
    #[serde(rename = "resourceVCountName", deserialize_with = "nullable")]
    pub resource_vcount_name: String,
    /// Resource: memory of a share.
    #[serde(rename = "resourceVMemoryName", deserialize_with = "nullable")]
    pub resource_vmemory_name: String,
    /// MiB of a card; 0 is that of a P800.
    #[serde(rename = "cardMemoryMiB", deserialize_with = "nullable")]
    pub card_memory_mib: u32,
    /// MiB of the shares that a card can be split into, one size a card; empty is those of a P800.
    #[serde(deserialize_with = "nullable")]
    pub shares: Vec<u32>,
    /// Which cards are linked.
    #[serde(deserialize_with = "nullable")]
    pub topology: KunlunTopology,
}

/// How the cards of a Kunlunxin node are linked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum KunlunTopology {
    /// As the node says, which today is always a board of eight.
    #[default]
    #[serde(rename = "auto")]
    Auto,
    /// Boards of eight cards in two wings.
    #[serde(rename = "p800-8")]
    P8008,
    /// Not at all: any cards will do.
    #[serde(rename = "none")]
    None,
}

/// `awsneuron`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct AwsNeuron {
    /// Resource: number of devices.
    #[serde(deserialize_with = "nullable")]
    pub resource_count_name: String,
    /// Resource: number of cores.
    #[serde(deserialize_with = "nullable")]
    pub resource_core_name: String,
    /// Which devices are given together.
    #[serde(deserialize_with = "nullable")]
    pub topology: NeuronTopology,
}

/// How several Neuron devices are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NeuronTopology {
    /// Linked ones, by the node's instance type.
    #[default]
    Auto,
    /// Any.
    Off,
}

/// One chip of `iluvatars`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Iluvatar {
    /// The chip as its driver names it.
    #[serde(deserialize_with = "nullable")]
    pub chip_name: String,
    /// The keyword of the class.
    #[serde(deserialize_with = "nullable")]
    pub common_word: String,
    /// Resource: number of cards.
    #[serde(deserialize_with = "nullable")]
    pub resource_count_name: String,
    /// Resource: memory.
    #[serde(deserialize_with = "nullable")]
    pub resource_memory_name: String,
    /// Resource: compute.
    #[serde(deserialize_with = "nullable")]
    pub resource_core_name: String,
    /// MiB that one unit of memory stands for; 0 is the class's own unit.
    #[serde(deserialize_with = "nullable")]
    pub memory_factor: i32,
}

/// One template of an Ascend chip.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct AscendTemplate {
    /// Its name, such as `vir04`.
    pub name: String,
    /// MiB.
    pub memory: i64,
    /// AI cores.
    #[serde(deserialize_with = "nullable")]
    pub ai_core: i32,
    /// AI CPUs.
    #[serde(rename = "aiCPU", deserialize_with = "nullable")]
    pub ai_cpu: i32,
}

/// One chip of `vnpus`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct AscendChip {
    /// The chip as its driver names it.
    #[serde(deserialize_with = "nullable")]
    pub chip_name: String,
    /// The keyword of the class.
    #[serde(deserialize_with = "nullable")]
    pub common_word: String,
    /// Resource: number of cards.
    #[serde(deserialize_with = "nullable")]
    pub resource_name: String,
    /// Resource: memory.
    #[serde(deserialize_with = "nullable")]
    pub resource_memory_name: String,
    /// Resource: compute.
    #[serde(deserialize_with = "nullable")]
    pub resource_core_name: String,
    /// MiB that may be promised.
    #[serde(deserialize_with = "nullable")]
    pub memory_allocatable: i64,
    /// MiB of the card.
    #[serde(deserialize_with = "nullable")]
    pub memory_capacity: i64,
    /// MiB that one unit of memory stands for; 0 is 1.
    #[serde(deserialize_with = "nullable")]
    pub memory_factor: i32,
    /// AI cores of the card.
    #[serde(deserialize_with = "nullable")]
    pub ai_core: i32,
    /// AI CPUs of the card.
    #[serde(rename = "aiCPU", deserialize_with = "nullable")]
    pub ai_cpu: i32,
    /// Runtime class given to pods that have none.
    #[serde(deserialize_with = "nullable")]
    pub runtime_class_name: String,
    /// Hide cards from containers that ask for none.
    #[serde(deserialize_with = "nullable")]
    pub overwrite_env: bool,
    /// Cards are asked for in groups.
    #[serde(deserialize_with = "nullable")]
    pub super_pod: bool,
    /// Templates that the chip can be cut into.
    #[serde(deserialize_with = "nullable")]
    pub templates: Vec<AscendTemplate>,
}

/// `vnpus`: `{hamiVnpuCore, configs}` in HAMi 2.10, the bare list of chips before.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ascend {
    /// Shares are held by HAMi's library instead of templates.
    pub hami_vnpu_core: bool,
    /// The chips.
    pub configs: Vec<AscendChip>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct AscendMap {
    #[serde(deserialize_with = "nullable")]
    hami_vnpu_core: bool,
    #[serde(deserialize_with = "nullable")]
    configs: Vec<AscendChip>,
}

struct AscendVisitor;

impl<'de> Visitor<'de> for AscendVisitor {
    type Value = Ascend;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of chips, or a map with `configs`")
    }

    fn visit_unit<E>(self) -> Result<Ascend, E> {
        Ok(Ascend::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Ascend, A::Error> {
        Ok(Ascend {
            hami_vnpu_core: false,
            configs: Vec::deserialize(SeqAccessDeserializer::new(list))?,
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Ascend, A::Error> {
        let AscendMap {
            hami_vnpu_core,
            configs,
        } = AscendMap::deserialize(MapAccessDeserializer::new(map))?;
        Ok(Ascend {
            hami_vnpu_core,
            configs,
        })
    }
}

impl<'de> Deserialize<'de> for Ascend {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AscendVisitor)
    }
}

struct OneOrMany;

impl<'de> Visitor<'de> for OneOrMany {
    type Value = Vec<i64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number or a list of numbers")
    }

    fn visit_unit<E>(self) -> Result<Vec<i64>, E> {
        Ok(Vec::new())
    }

    fn visit_i64<E>(self, number: i64) -> Result<Vec<i64>, E> {
        Ok(vec![number])
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Vec<i64>, E> {
        i64::try_from(number).map(|number| vec![number]).map_err(E::custom)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Vec<i64>, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(list))
    }
}

fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<i64>, D::Error> {
    deserializer.deserialize_any(OneOrMany)
}
