//! The per-node overrides, `config.json`.

use std::fmt;

use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::file::read;
use super::{ConfigError, Nvidia};

/// What one node changes. Later entries of the same node are applied over earlier ones.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct NodeConfig {
    /// Mode that the node's cards are registered with.
    pub operating_mode: Option<String>,
    /// Slots of a card.
    pub device_split_count: Option<u32>,
    /// Registered memory in proportion to the card's.
    pub device_memory_scaling: Option<f64>,
    /// Registered compute in proportion to the card's.
    pub device_core_scaling: Option<f64>,
    /// MiB of a card whose driver does not tell.
    pub pre_configured_device_memory: Option<i64>,
    /// Log level of the library in the container.
    pub lib_cuda_log_level: Option<String>,
    /// Tell kubelet the NUMA node of each device.
    pub enable_numa_topology: bool,
    /// Cards not registered, by id.
    pub filter_uuids: Vec<String>,
    /// Cards not registered, by index.
    pub filter_indexes: Vec<u32>,
    /// Kubelet's choice of cards counts.
    pub enable_get_preferred_allocation: bool,
}

/// The file: entries by node name. Keys are matched without regard to case.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct NodeConfigFile {
    entries: Vec<(String, NodeConfig)>,
}

const TOP_KEYS: &[&str] = &["nodeconfig"];
const ENTRY_KEYS: &[&str] = &[
    "name",
    "operatingmode",
    "devicesplitcount",
    "devicememoryscaling",
    "devicecorescaling",
    "preconfigureddevicememory",
    "libcudaloglevel",
    "enablenumatopology",
    "migstrategy",
    "filterdevices",
    "enablegetpreferredallocation",
];
const FILTER_KEYS: &[&str] = &["uuid", "index"];

struct TopVisitor;

impl<'de> Visitor<'de> for TopVisitor {
    type Value = Vec<Entry>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map with `nodeconfig`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            match key.to_ascii_lowercase().as_str() {
                "nodeconfig" => entries = map.next_value::<Option<Vec<Entry>>>()?.unwrap_or_default(),
                _ => return Err(A::Error::unknown_field(&key, TOP_KEYS)),
            }
        }
        Ok(entries)
    }
}

struct Top(Vec<Entry>);

impl<'de> Deserialize<'de> for Top {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(TopVisitor).map(Self)
    }
}

struct Entry(String, NodeConfig);

struct EntryVisitor;

impl<'de> Visitor<'de> for EntryVisitor {
    type Value = Entry;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map with `name` and what the node changes")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entry, A::Error> {
        let mut name = String::new();
        let mut config = NodeConfig::default();
        while let Some(key) = map.next_key::<String>()? {
            match key.to_ascii_lowercase().as_str() {
                "name" => name = map.next_value()?,
                "operatingmode" => config.operating_mode = text(map.next_value()?),
                "devicesplitcount" => {
                    config.device_split_count = map.next_value::<Option<u32>>()?.filter(|count| *count > 0);
                }
                "devicememoryscaling" => config.device_memory_scaling = scaling(map.next_value()?)?,
                "devicecorescaling" => config.device_core_scaling = scaling(map.next_value()?)?,
                "preconfigureddevicememory" => {
                    let memory = map.next_value::<Option<i64>>()?.filter(|memory| *memory != 0);
                    if memory.is_some_and(|memory| memory < 0) {
                        return Err(A::Error::custom(
                            "`preconfigureddevicememory` must be a number of MiB, 0 for none",
                        ));
                    }
                    config.pre_configured_device_memory = memory;
                }
                "libcudaloglevel" => config.lib_cuda_log_level = text(map.next_value()?),
                "enablenumatopology" => {
                    config.enable_numa_topology = map.next_value::<Option<bool>>()?.unwrap_or(false)
                }
                "migstrategy" => {
                    map.next_value::<IgnoredAny>()?;
                }
                "filterdevices" => {
                    if let Some(Filter(uuids, indexes)) = map.next_value()? {
                        config.filter_uuids = uuids;
                        config.filter_indexes = indexes;
                    }
                }
                "enablegetpreferredallocation" => {
                    config.enable_get_preferred_allocation = map.next_value::<Option<bool>>()?.unwrap_or(false);
                }
                _ => return Err(A::Error::unknown_field(&key, ENTRY_KEYS)),
            }
        }
        Ok(Entry(name, config))
    }
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EntryVisitor)
    }
}

struct Filter(Vec<String>, Vec<u32>);

struct FilterVisitor;

impl<'de> Visitor<'de> for FilterVisitor {
    type Value = Filter;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map with `uuid` and `index`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Filter, A::Error> {
        let mut filter = Filter(Vec::new(), Vec::new());
        while let Some(key) = map.next_key::<String>()? {
            match key.to_ascii_lowercase().as_str() {
                "uuid" => filter.0 = map.next_value::<Option<_>>()?.unwrap_or_default(),
                "index" => filter.1 = map.next_value::<Option<_>>()?.unwrap_or_default(),
                _ => return Err(A::Error::unknown_field(&key, FILTER_KEYS)),
            }
        }
        Ok(filter)
    }
}

impl<'de> Deserialize<'de> for Filter {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FilterVisitor)
    }
}

fn text(value: Option<String>) -> Option<String> {
    value.filter(|text| !text.is_empty())
}

fn scaling<E: serde::de::Error>(value: Option<f64>) -> Result<Option<f64>, E> {
    match value.filter(|value| *value != 0.0) {
        Some(value) if !(value > 0.0 && value <= 1000.0) => Err(E::custom(format!(
            "a scaling of {value} is not above 0 and at most 1000"
        ))),
        value => Ok(value),
    }
}

impl NodeConfig {
    fn apply(&mut self, later: &Self) {
        fn take<T: Clone>(place: &mut Option<T>, later: &Option<T>) {
            if later.is_some() {
                place.clone_from(later);
            }
        }
        take(&mut self.operating_mode, &later.operating_mode);
        take(&mut self.device_split_count, &later.device_split_count);
        take(&mut self.device_memory_scaling, &later.device_memory_scaling);
        take(&mut self.device_core_scaling, &later.device_core_scaling);
        take(
            &mut self.pre_configured_device_memory,
            &later.pre_configured_device_memory,
        );
        take(&mut self.lib_cuda_log_level, &later.lib_cuda_log_level);
        self.enable_numa_topology |= later.enable_numa_topology;
        if !later.filter_uuids.is_empty() || !later.filter_indexes.is_empty() {
            self.filter_uuids.clone_from(&later.filter_uuids);
            self.filter_indexes.clone_from(&later.filter_indexes);
        }
        self.enable_get_preferred_allocation = later.enable_get_preferred_allocation;
    }

    /// The global section with this node's changes. Zero, false and empty change nothing.
    #[must_use]
    pub fn over(&self, global: &Nvidia) -> Nvidia {
        Nvidia {
            device_split_count: self.device_split_count.unwrap_or(global.device_split_count),
            device_memory_scaling: self.device_memory_scaling.unwrap_or(global.device_memory_scaling),
            device_core_scaling: self.device_core_scaling.unwrap_or(global.device_core_scaling),
            pre_configured_device_memory: self
                .pre_configured_device_memory
                .unwrap_or(global.pre_configured_device_memory),
            lib_cuda_log_level: self
                .lib_cuda_log_level
                .clone()
                .unwrap_or_else(|| global.lib_cuda_log_level.clone()),
            enable_numa_topology: self.enable_numa_topology || global.enable_numa_topology,
            ..global.clone()
        }
    }

    /// The mode, `hami-core` if the node names none.
    #[must_use]
    pub fn mode(&self) -> &str {
        self.operating_mode.as_deref().unwrap_or("hami-core")
    }

    /// Whether a card is kept out of the register.
    #[must_use]
    pub fn filters(&self, uuid: &str, index: u32) -> bool {
        self.filter_uuids.iter().any(|filtered| filtered == uuid) || self.filter_indexes.contains(&index)
    }
}

impl NodeConfigFile {
    /// Reads the file, JSON or YAML.
    ///
    /// # Errors
    /// An unknown key, a value of the wrong type or out of its range; with line, column and what to write.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let Top(entries) = match serde_json::from_str(text) {
            Ok(top) => top,
            Err(strict) => {
                let lenient: Result<Top, ConfigError> = read(text);
                match lenient {
                    // Well-formed JSON of the wrong types: YAML would read "4" as a number, the reference does not.
                    Ok(_) if strict.is_data() => return Err(ConfigError::json(&strict)),
                    read => read?,
                }
            }
        };
        Ok(Self {
            entries: entries.into_iter().map(|Entry(name, config)| (name, config)).collect(),
        })
    }

    /// What the node of this name changes: all its entries, in order. Names are compared exactly.
    #[must_use]
    pub fn for_node(&self, name: &str) -> NodeConfig {
        let mut config = NodeConfig::default();
        for (_, entry) in self.entries.iter().filter(|(node, _)| node == name) {
            config.apply(entry);
        }
        config
    }
}
