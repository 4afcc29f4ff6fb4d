//! One chip as a table: its sizes, its templates, and what each of them takes of an NPU.

use tessera_engine::{AnnotationKeys, ResourceNames};
use tessera_types::{Extras, Keyword, Mib};
use tessera_wire::config::{AscendChip, AscendTemplate};
use tessera_wire::keys;

use crate::amounts::name;

/// Pod annotation: how the pod's part of an NPU is held.
pub(super) const MODE_KEY: &str = "huawei.com/vnpu-mode";
/// The one value of [`MODE_KEY`] with a meaning: a soft slice, held by a preloaded library.
pub(super) const MODE_SOFT: &str = "hami-core";
/// Node annotation: whether the node's plugin serves soft slices.
pub(super) const NODE_SOFT_KEY: &str = "hami-vnpu-core";
/// Pod annotation: when the NPUs were chosen, Unix seconds.
pub(super) const TIME_KEY: &str = "predicate-time";
/// The keyword of the chip whose NPUs come two on a module.
const MODULE_CHIP: &str = "Ascend910C";
/// What the keywords of chips with rings begin with.
const RING_CHIPS: &str = "Ascend910";

/// Names of the further amounts of an NPU, by position.
pub(super) const EXTRA_NAMES: [&str; 4] = ["AI cores", "AI CPUs", "vNPUs", "soft slices"];
const AI_CORES: usize = 0;
const AI_CPUS: usize = 1;
const HARDWARE: usize = 2;
const SOFT: usize = 3;
/// An amount that the table does not know and that limits nothing.
const UNKNOWN: u64 = Extras::MOST - 1;

/// A piece that the driver can cut out of an NPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Template {
    pub(super) name: String,
    pub(super) memory: Mib,
    ai_cores: u64,
    ai_cpus: u64,
}

/// What a request in template mode gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Size<'a> {
    /// A hardware vNPU.
    Template(&'a Template),
    /// The whole NPU.
    Whole,
}

/// One chip.
#[derive(Debug, Clone)]
pub(super) struct Chip {
    pub(super) keyword: Keyword,
    pub(super) names: ResourceNames,
    pub(super) keys: AnnotationKeys,
    /// Pod annotation: the list of NPUs that the plugin reads.
    pub(super) list_key: String,
    /// Pod annotations: NPUs accepted and not accepted.
    pub(super) use_key: String,
    pub(super) avoid_key: String,
    /// What a whole NPU offers.
    pub(super) allocatable: Mib,
    /// What it has: a request between the two is a whole NPU.
    pub(super) capacity: Mib,
    ai_cores: u64,
    ai_cpus: u64,
    /// By memory, ascending.
    templates: Vec<Template>,
    pub(super) runtime_class: Option<String>,
    /// Containers without an NPU get an empty list of NPUs.
    pub(super) hides: bool,
    /// Both NPUs of a module go to one container.
    pub(super) super_pod: bool,
    /// NPUs come two on a module.
    pub(super) modules: bool,
    /// NPUs lie in rings.
    pub(super) rings: bool,
    /// Nodes that say nothing serve soft slices.
    pub(super) soft_by_default: bool,
    /// Count resources of all configured chips.
    pub(super) all_counts: Vec<String>,
}

fn number(value: i32) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

fn mib(value: i64) -> Mib {
    Mib::new(u64::try_from(value).unwrap_or(0))
}

impl From<&AscendTemplate> for Template {
    fn from(template: &AscendTemplate) -> Self {
        Self {
            name: template.name.clone(),
            memory: mib(template.memory),
            ai_cores: number(template.ai_core),
            ai_cpus: number(template.ai_cpu),
        }
    }
}

impl Chip {
    /// `None` if the keyword cannot be one: the configuration's check says so.
    pub(super) fn new(settings: &AscendChip, soft_by_default: bool, all_counts: &[String]) -> Option<Self> {
        let keyword = Keyword::new(&settings.common_word).ok()?;
        let word = settings.common_word.as_str();
        let list_key = format!("huawei.com/{word}");
        let use_key = format!("{}use-{word}-uuid", keys::HAMI_PREFIX);
        let avoid_key = format!("{}no-use-{word}-uuid", keys::HAMI_PREFIX);
        let of_word = |head: &str, tail: &str| Some(format!("{}{head}{word}{tail}", keys::HAMI_PREFIX));
        let mut templates: Vec<Template> = settings.templates.iter().map(Into::into).collect();
        templates.sort_by_key(|template| template.memory);
        Some(Self {
            names: ResourceNames {
                count: name(&settings.resource_name),
                memory: name(&settings.resource_memory_name),
                cores: name(&settings.resource_core_name),
                memory_factor: u32::try_from(settings.memory_factor).unwrap_or(1).max(1),
                ..ResourceNames::default()
            },
            keys: AnnotationKeys {
                register: of_word("node-register-", ""),
                handshake: of_word("node-handshake-", ""),
                to_allocate: of_word("", "-devices-to-allocate"),
                allocated: of_word("", "-devices-allocated"),
                extra: vec![list_key.clone(), TIME_KEY.to_owned()],
                user: vec![
                    use_key.clone(),
                    avoid_key.clone(),
                    MODE_KEY.to_owned(),
                    keys::NUMA_BIND.to_owned(),
                ],
                ..AnnotationKeys::default()
            },
            list_key,
            use_key,
            avoid_key,
            allocatable: mib(settings.memory_allocatable),
            capacity: mib(settings.memory_capacity).max(mib(settings.memory_allocatable)),
            ai_cores: number(settings.ai_core),
            ai_cpus: number(settings.ai_cpu),
            templates,
            runtime_class: name(&settings.runtime_class_name),
            hides: settings.overwrite_env,
            super_pod: settings.super_pod && word == MODULE_CHIP,
            modules: word == MODULE_CHIP,
            rings: word.starts_with(RING_CHIPS),
            soft_by_default,
            all_counts: all_counts.to_vec(),
            keyword,
        })
    }

    /// The smallest template of at least `memory`, else the whole NPU.
    pub(super) fn size(&self, memory: Mib) -> Size<'_> {
        self.templates
            .iter()
            .find(|template| template.memory >= memory)
            .map_or(Size::Whole, Size::Template)
    }

    /// The memory of a size.
    pub(super) fn memory(&self, size: Size<'_>) -> Mib {
        match size {
            Size::Template(template) => template.memory,
            Size::Whole => self.allocatable,
        }
    }

    /// `memory` in the unit of the memory resource, so that reading it again gives the same size; `None` if no whole
    /// number of units does.
    pub(super) fn in_units(&self, size: Size<'_>) -> Option<i64> {
        let (memory, factor) = (self.memory(size), self.names.factor());
        [memory.get() / factor, memory.get().div_ceil(factor)]
            .into_iter()
            .filter(|units| *units > 0)
            .find(|units| {
                let read = Mib::new(units.saturating_mul(factor));
                self.size(read) == size && read <= memory
            })
            .and_then(|units| i64::try_from(units).ok())
    }

    /// What the NPU has of the further amounts. `ai_cores` as registered, 100 where the register counts percent.
    pub(super) fn totals(&self, ai_cores: u64, slots: u32, soft: bool) -> Extras {
        let known = |amount: u64| if amount == 0 { UNKNOWN } else { amount };
        let ai_cores = if ai_cores == 100 { self.ai_cores } else { ai_cores };
        let slots = u64::from(slots);
        Extras::NONE
            .with(AI_CORES, known(ai_cores))
            .with(AI_CPUS, known(self.ai_cpus))
            .with(HARDWARE, slots)
            .with(SOFT, if soft { slots } else { 0 })
    }

    /// What a size takes of the further amounts.
    pub(super) fn cost(&self, size: Size<'_>) -> Extras {
        let (ai_cores, ai_cpus) = match size {
            Size::Template(template) => (template.ai_cores, template.ai_cpus),
            Size::Whole => (self.ai_cores, self.ai_cpus),
        };
        Extras::NONE
            .with(AI_CORES, ai_cores)
            .with(AI_CPUS, ai_cpus)
            .with(HARDWARE, 1)
    }

    /// Registered AI cores, if they are neither the table's nor percent.
    pub(super) fn other_ai_cores(&self, totals: Extras) -> Option<u64> {
        let registered = totals.get(AI_CORES);
        (self.ai_cores > 0 && registered != self.ai_cores).then_some(registered)
    }

    /// AI cores of the whole NPU; 0 if the table does not know.
    pub(super) fn ai_cores(&self) -> u64 {
        self.ai_cores
    }
}

/// What a soft slice takes of the further amounts.
pub(super) fn soft_cost() -> Extras {
    Extras::NONE.with(SOFT, 1)
}

/// Whether one of the two is a hardware vNPU (or a whole NPU) and the other a soft slice: they cannot share an NPU.
pub(super) fn modes_clash(used: Extras, added: Extras) -> bool {
    (used.get(HARDWARE) > 0 && added.get(SOFT) > 0) || (used.get(SOFT) > 0 && added.get(HARDWARE) > 0)
}

fn chip(names: (&str, &str), memory: (i64, i64), ai: (i32, i32), templates: &[(&str, i64, i32, i32)]) -> AscendChip {
    let resource = format!("huawei.com/{}", names.1);
    AscendChip {
        chip_name: names.0.to_owned(),
        common_word: names.1.to_owned(),
        resource_memory_name: format!("{resource}-memory"),
        resource_core_name: format!("{resource}-core"),
        resource_name: resource,
        memory_allocatable: memory.0,
        memory_capacity: memory.1,
        memory_factor: 1,
        ai_core: ai.0,
        ai_cpu: ai.1,
        templates: templates
            .iter()
            .map(|(name, memory, ai_core, ai_cpu)| AscendTemplate {
                name: (*name).to_owned(),
                memory: *memory,
                ai_core: *ai_core,
                ai_cpu: *ai_cpu,
            })
            .collect(),
        ..AscendChip::default()
    }
}

/// The chips as HAMi's chart lists them.
#[must_use]
pub fn known_chips() -> Vec<AscendChip> {
    let b3 = [("vir05_1c_16g", 16384, 5, 1), ("vir10_3c_32g", 32768, 10, 3)];
    vec![
        chip(
            ("910A", "Ascend910A"),
            (32768, 32768),
            (30, 0),
            &[
                ("vir02", 2184, 2, 0),
                ("vir04", 4369, 4, 0),
                ("vir08", 8738, 8, 0),
                ("vir16", 17476, 16, 0),
            ],
        ),
        chip(
            ("910B2", "Ascend910B2"),
            (65536, 65536),
            (24, 6),
            &[
                ("vir03_1c_8g", 8192, 3, 1),
                ("vir06_1c_16g", 16384, 6, 1),
                ("vir12_3c_32g", 32768, 12, 3),
            ],
        ),
        chip(("910B3", "Ascend910B3"), (65536, 65536), (20, 7), &b3),
        chip(("910B4-1", "Ascend910B4-1"), (65536, 65536), (20, 7), &b3),
        chip(
            ("910B4", "Ascend910B4"),
            (32768, 32768),
            (20, 7),
            &[("vir05_1c_8g", 8192, 5, 1), ("vir10_3c_16g", 16384, 10, 3)],
        ),
        chip(
            ("310P3", "Ascend310P"),
            (21527, 24576),
            (8, 7),
            &[("vir01", 3072, 1, 1), ("vir02", 6144, 2, 2), ("vir04", 12288, 4, 4)],
        ),
        AscendChip {
            memory_factor: 0,
            super_pod: true,
            ..chip(("Ascend910", "Ascend910C"), (65536, 65536), (20, 7), &b3)
        },
    ]
}
