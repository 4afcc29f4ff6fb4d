//! The `amd` section: HAMi's three names, and what it leaves to its plugin's constants.

use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::pod::nullable;

/// `amd`. HAMi's file has the three names only.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Amd {
    /// Resource: number of cards.
    #[serde(deserialize_with = "nullable")]
    pub resource_count_name: String,
    /// Resource: MiB of each card.
    #[serde(deserialize_with = "nullable")]
    pub resource_memory_name: String,
    /// Resource: percent of each card's compute units.
    #[serde(deserialize_with = "nullable")]
    pub resource_core_name: String,
    /// Slots of a card.
    pub device_split_count: u32,
    /// Registered memory in proportion to the card's.
    pub device_memory_scaling: f64,
    /// MiB of a request that names no memory; 0 is the whole card.
    #[serde(deserialize_with = "nullable")]
    pub default_memory: u32,
    /// Percent of a request that names memory and no compute; 0 claims none.
    #[serde(deserialize_with = "nullable")]
    pub default_cores: u32,
    /// Cards of a request that names memory or compute only; 0 is none.
    #[serde(rename = "defaultGPUNum", deserialize_with = "nullable")]
    pub default_gpu_num: u32,
    /// Compute partitions: `keep` leaves them as they are.
    #[serde(deserialize_with = "nullable")]
    pub partition: String,
    /// Step of compute units: `auto` follows the chip.
    #[serde(deserialize_with = "nullable")]
    pub cu_granularity: String,
    /// MiB that one unit of the memory resource stands for; 0 is 1.
    #[serde(deserialize_with = "nullable")]
    pub memory_factor: u32,
}

impl Default for Amd {
    fn default() -> Self {
        Self {
            resource_count_name: "amd.com/gpu".to_owned(),
            resource_memory_name: "amd.com/gpumem".to_owned(),
            resource_core_name: "amd.com/gpucores".to_owned(),
            device_split_count: 10,
            device_memory_scaling: 1.0,
            default_memory: 0,
            default_cores: 0,
            default_gpu_num: 1,
            partition: "keep".to_owned(),
            cu_granularity: "auto".to_owned(),
            memory_factor: 1,
        }
    }
}

impl Amd {
    /// Checks what the types cannot. `file` is the text for finding the line.
    pub(super) fn check(&self, file: &str) -> Result<(), ConfigError> {
        for (key, value, most) in [
            ("defaultCores", self.default_cores, 100),
            ("defaultGPUNum", self.default_gpu_num, 1024),
        ] {
            if value > most {
                let text = format!("`{key}` is {value}; write a number of 0 to {most}");
                return Err(ConfigError::at_key(file, Some("amd"), key, text));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::DeviceConfig;
    use super::*;

    #[test]
    fn hamis_three_names_are_a_whole_section() {
        let text = "amd:\n  resourceCountName: amd.com/gpu\n  resourceMemoryName: amd.com/gpumem\n  resourceCoreName: amd.com/gpucores\n";
        assert_eq!(DeviceConfig::from_yaml(text).unwrap().amd, Some(Amd::default()));
        let error = DeviceConfig::from_yaml("amd:\n  defaultCores: 101\n")
            .unwrap_err()
            .to_string();
        assert!(error.contains("defaultCores"), "{error}");
    }
}
