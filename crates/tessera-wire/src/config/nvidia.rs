//! The `nvidia` section.

use serde::{Deserialize, Deserializer, Serialize};

use super::ConfigError;
use crate::mig::{MigAllow, check_allowlist};
use crate::pod::nullable;

/// How compute limits hold in the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CorePolicy {
    /// As the library in the container decides.
    #[default]
    Default,
    /// Always.
    Force,
    /// Never.
    Disable,
}

impl CorePolicy {
    /// The value of `GPU_CORE_UTILIZATION_POLICY`; `None` for the default, which sets nothing.
    #[must_use]
    pub const fn env_value(self) -> Option<&'static str> {
        match self {
            Self::Default => None,
            Self::Force => Some("force"),
            Self::Disable => Some("disable"),
        }
    }
}

fn core_policy<'de, D: Deserializer<'de>>(deserializer: D) -> Result<CorePolicy, D::Error> {
    let text: String = nullable(deserializer)?;
    match text.as_str() {
        "" | "default" => Ok(CorePolicy::Default),
        "force" => Ok(CorePolicy::Force),
        "disable" => Ok(CorePolicy::Disable),
        other => Err(serde::de::Error::unknown_variant(
            other,
            &["default", "force", "disable"],
        )),
    }
}

/// Names, defaults and scaling of the NVIDIA class. `Default` is what HAMi's chart renders, except that no profile
/// allow-list is given. An empty name switches the resource off, an empty count name the whole class.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Nvidia {
    /// Resource: number of cards.
    #[serde(deserialize_with = "nullable")]
    pub resource_count_name: String,
    /// Resource: MiB of each card.
    #[serde(deserialize_with = "nullable")]
    pub resource_memory_name: String,
    /// Resource: percent of each card's memory.
    #[serde(deserialize_with = "nullable")]
    pub resource_memory_percentage_name: String,
    /// Resource: percent of each card's compute.
    #[serde(deserialize_with = "nullable")]
    pub resource_core_name: String,
    /// Resource: task priority.
    #[serde(deserialize_with = "nullable")]
    pub resource_priority_name: String,
    /// Hide cards from containers that ask for none.
    #[serde(deserialize_with = "nullable")]
    pub overwrite_env: bool,
    /// MiB of a request that names no memory; 0 is the whole card.
    #[serde(deserialize_with = "nullable")]
    pub default_memory: i32,
    /// Percent of a request that names no compute.
    #[serde(deserialize_with = "nullable")]
    pub default_cores: i32,
    /// Cards of a request that names memory or compute only; 0 is none.
    #[serde(rename = "defaultGPUNum", deserialize_with = "nullable")]
    pub default_gpu_num: i32,
    /// MiB that one unit of the memory resource stands for; 0 is 1.
    #[serde(deserialize_with = "nullable")]
    pub memory_factor: i32,
    /// Slots of a card.
    pub device_split_count: u32,
    /// Registered memory in proportion to the card's.
    pub device_memory_scaling: f64,
    /// Registered compute in proportion to the card's.
    pub device_core_scaling: f64,
    /// MiB of a card whose driver does not tell; 0 is none.
    #[serde(deserialize_with = "nullable")]
    pub pre_configured_device_memory: i64,
    /// Tell kubelet the NUMA node of each device.
    #[serde(deserialize_with = "nullable")]
    pub enable_numa_topology: bool,
    /// Log level of the library in the container.
    #[serde(deserialize_with = "nullable")]
    pub lib_cuda_log_level: String,
    /// How compute limits hold.
    #[serde(deserialize_with = "core_policy")]
    pub gpu_core_policy: CorePolicy,
    /// Runtime class given to pods that have none; empty is none.
    #[serde(deserialize_with = "nullable")]
    pub runtime_class_name: String,
    /// No compute limits in containers.
    #[serde(alias = "disablecorelimit", deserialize_with = "nullable")]
    pub disable_core_limit: bool,
    /// Profiles that may be made, by model.
    #[serde(deserialize_with = "nullable")]
    pub mig_profile_allowlist: Vec<MigAllow>,
    /// HAMi 2.9's fixed geometries. Read and put aside: placements come from the driver.
    #[serde(rename = "knownMigGeometries", skip_serializing, deserialize_with = "present")]
    pub known_mig_geometries: bool,
}

/// Whether a key stands in the file, whatever its value.
pub(super) fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    serde::de::IgnoredAny::deserialize(deserializer).map(|_| true)
}

impl Default for Nvidia {
    fn default() -> Self {
        Self {
            resource_count_name: "nvidia.com/gpu".to_owned(),
            resource_memory_name: "nvidia.com/gpumem".to_owned(),
            resource_memory_percentage_name: "nvidia.com/gpumem-percentage".to_owned(),
            resource_core_name: "nvidia.com/gpucores".to_owned(),
            resource_priority_name: "nvidia.com/priority".to_owned(),
            overwrite_env: false,
            default_memory: 0,
            default_cores: 0,
            default_gpu_num: 1,
            memory_factor: 1,
            device_split_count: 10,
            device_memory_scaling: 1.0,
            device_core_scaling: 1.0,
            pre_configured_device_memory: 0,
            enable_numa_topology: false,
            lib_cuda_log_level: "1".to_owned(),
            gpu_core_policy: CorePolicy::Default,
            runtime_class_name: String::new(),
            disable_core_limit: false,
            mig_profile_allowlist: Vec::new(),
            known_mig_geometries: false,
        }
    }
}

/// The most slots of a card.
const SPLIT_MAX: u32 = 10_000;
/// The largest scaling.
const SCALING_MAX: f64 = 1000.0;

impl Nvidia {
    /// MiB that one unit of the memory resource stands for, at least 1.
    #[must_use]
    pub fn factor(&self) -> u32 {
        u32::try_from(self.memory_factor).unwrap_or(0).max(1)
    }

    /// Whether the class is switched on.
    #[must_use]
    pub fn is_active(&self) -> bool {
        !self.resource_count_name.is_empty()
    }

    /// All resource names that are switched on: count, memory, percentage, cores, priority.
    pub fn resource_names(&self) -> impl Iterator<Item = &str> {
        [
            &self.resource_count_name,
            &self.resource_memory_name,
            &self.resource_memory_percentage_name,
            &self.resource_core_name,
            &self.resource_priority_name,
        ]
        .into_iter()
        .map(String::as_str)
        .filter(|name| !name.is_empty())
    }

    /// Checks what the types cannot. `file` is the text for finding the line.
    pub(super) fn check(&self, file: &str) -> Result<(), ConfigError> {
        let at = |key: &str, text: String| Err(ConfigError::at_key(file, Some("nvidia"), key, text));
        for (key, value, most) in [
            ("defaultMemory", self.default_memory, i32::MAX),
            ("defaultCores", self.default_cores, 100),
            ("defaultGPUNum", self.default_gpu_num, 1024),
            ("memoryFactor", self.memory_factor, i32::MAX),
        ] {
            if !(0..=most).contains(&value) {
                return at(key, format!("`{key}` is {value}; write a number of 0 to {most}"));
            }
        }
        if self.pre_configured_device_memory < 0 {
            let value = self.pre_configured_device_memory;
            return at(
                "preConfiguredDeviceMemory",
                format!("`preConfiguredDeviceMemory` is {value}; write a number of MiB, 0 for none"),
            );
        }
        if !(1..=SPLIT_MAX).contains(&self.device_split_count) {
            let value = self.device_split_count;
            return at(
                "deviceSplitCount",
                format!("`deviceSplitCount` is {value}; write a number of 1 to {SPLIT_MAX}"),
            );
        }
        for (key, value) in [
            ("deviceMemoryScaling", self.device_memory_scaling),
            ("deviceCoreScaling", self.device_core_scaling),
        ] {
            if !(value > 0.0 && value <= SCALING_MAX) {
                return at(
                    key,
                    format!("`{key}` is {value}; write a number above 0, 1 for no scaling, at most {SCALING_MAX}"),
                );
            }
        }
        let mut seen: Vec<&str> = Vec::new();
        for name in self.resource_names() {
            if seen.contains(&name) {
                return Err(ConfigError::at_key(
                    file,
                    None,
                    "nvidia",
                    format!("resource name `{name}` is given to two resources; each needs its own"),
                ));
            }
            seen.push(name);
        }
        if let Err(error) = check_allowlist(&self.mig_profile_allowlist) {
            return at("migProfileAllowlist", error.to_string());
        }
        Ok(())
    }
}
