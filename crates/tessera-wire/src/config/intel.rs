//! The `intel` and `gaudi` sections. HAMi has neither, so a file of HAMi's leaves both classes off.

use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::pod::nullable;

/// What is handed out of a card that has several tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IntelUnit {
    /// Virtual functions where a card has them, else whole cards.
    Auto,
    /// Whole cards.
    #[default]
    Card,
    /// Each tile by itself.
    Tile,
}

/// What keeps a share within its limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IntelWall {
    /// The kernel's device-memory controller.
    Dmem,
    /// A virtual function of the card.
    Sriov,
    /// A library in the container.
    Shim,
}

/// How strong a wall a pod demands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IntelIsolation {
    /// Counting is enough.
    #[default]
    None,
    /// A library in the container at least.
    Soft,
    /// Kernel or hardware.
    Hard,
}

/// Which links below `/dev/dri/by-path` a container gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IntelByPath {
    /// Those of its cards.
    #[default]
    Single,
    /// The folder.
    All,
    /// None.
    None,
}

/// `intel.health`: when a card counts as broken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct IntelHealth {
    /// `auto`, or `xpumd` for Intel's own daemon.
    pub source: String,
    /// Degrees Celsius, any sensor.
    pub temp_limit: u32,
    /// Degrees Celsius of the chip.
    pub gpu_temp_limit: u32,
    /// Degrees Celsius of the memory.
    pub memory_temp_limit: u32,
    /// How often it is looked at, such as `5s`.
    pub period: String,
}

impl Default for IntelHealth {
    fn default() -> Self {
        Self {
            source: "auto".to_owned(),
            temp_limit: 105,
            gpu_temp_limit: 105,
            memory_temp_limit: 105,
            period: "5s".to_owned(),
        }
    }
}

/// `intel.integratedMemory`: how much host memory an integrated card is counted with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct IntelIntegratedMemory {
    /// Percent of the host's memory.
    pub share: u32,
    /// At most so many MiB; 0 is no limit.
    #[serde(rename = "maxMiB")]
    pub max_mib: u64,
}

impl Default for IntelIntegratedMemory {
    fn default() -> Self {
        Self { share: 50, max_mib: 0 }
    }
}

/// One entry of `intel.sriov.profiles`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct IntelSriovProfile {
    /// Models by PCI id, such as `0xe211`.
    pub pci_ids: Vec<String>,
    /// Virtual functions of a card.
    pub count: u32,
    /// Memory of each.
    #[serde(rename = "memoryMiB")]
    pub memory_mib: u64,
    /// Time slice of each.
    pub execution_quantum_ms: u32,
    /// How long a running program may hold up the next.
    pub preempt_timeout_us: u32,
}

/// `intel.sriov`: whether virtual functions are made, and which.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct IntelSriov {
    /// The node agent makes them; otherwise it uses those that exist.
    pub manage: bool,
    /// How, by model.
    pub profiles: Vec<IntelSriovProfile>,
}

/// `intel`. An empty name switches the resource off, an empty count name the whole class.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Intel {
    /// Resource: number of units (cards, tiles or virtual functions).
    #[serde(deserialize_with = "nullable")]
    pub resource_count_name: String,
    /// Resource: memory of each unit.
    #[serde(deserialize_with = "nullable")]
    pub resource_memory_name: String,
    /// Resource: percent of each unit's memory.
    #[serde(deserialize_with = "nullable")]
    pub resource_memory_percentage_name: String,
    /// Resource: percent of each unit's compute.
    #[serde(deserialize_with = "nullable")]
    pub resource_core_name: String,
    /// Resource: sight of all cards of the node, without using any.
    #[serde(deserialize_with = "nullable")]
    pub resource_monitor_name: String,
    /// The names of Intel's own plugin are understood.
    pub aliases: bool,
    /// MiB of a request that names no memory; 0 is the whole unit.
    #[serde(deserialize_with = "nullable")]
    pub default_memory: u32,
    /// Percent of a request that names no compute.
    #[serde(deserialize_with = "nullable")]
    pub default_cores: u32,
    /// Units of a request that names memory or compute only; 0 is none.
    #[serde(rename = "defaultGPUNum", deserialize_with = "nullable")]
    pub default_gpu_num: u32,
    /// MiB that one unit of the memory resource stands for; 0 is 1.
    #[serde(deserialize_with = "nullable")]
    pub memory_factor: u32,
    /// Slots of a card.
    pub device_split_count: u32,
    /// Registered memory in proportion to the card's.
    pub device_memory_scaling: f64,
    /// What is handed out.
    pub unit: IntelUnit,
    /// Which walls may be used, the preferred first.
    pub enforcement: Vec<IntelWall>,
    /// What a pod demands that does not say.
    pub default_isolation: IntelIsolation,
    /// Links given to containers.
    pub by_path: IntelByPath,
    /// Only these models, by PCI id; empty is all.
    #[serde(rename = "allowIDs", deserialize_with = "nullable")]
    pub allow_ids: Vec<String>,
    /// Not these models, by PCI id.
    #[serde(rename = "denyIDs", deserialize_with = "nullable")]
    pub deny_ids: Vec<String>,
    /// The monitoring resource is offered.
    pub monitoring: bool,
    /// When a card counts as broken.
    pub health: IntelHealth,
    /// Memory of integrated cards.
    pub integrated_memory: IntelIntegratedMemory,
    /// Virtual functions.
    pub sriov: IntelSriov,
}

impl Default for Intel {
    fn default() -> Self {
        Self {
            resource_count_name: "intel.com/gpu".to_owned(),
            resource_memory_name: "intel.com/gpumem".to_owned(),
            resource_memory_percentage_name: "intel.com/gpumem-percentage".to_owned(),
            resource_core_name: "intel.com/gpucores".to_owned(),
            resource_monitor_name: "intel.com/gpu-monitoring".to_owned(),
            aliases: true,
            default_memory: 0,
            default_cores: 0,
            default_gpu_num: 1,
            memory_factor: 1,
            device_split_count: 10,
            device_memory_scaling: 1.0,
            unit: IntelUnit::default(),
            enforcement: vec![IntelWall::Shim],
            default_isolation: IntelIsolation::default(),
            by_path: IntelByPath::default(),
            allow_ids: Vec::new(),
            deny_ids: Vec::new(),
            monitoring: true,
            health: IntelHealth::default(),
            integrated_memory: IntelIntegratedMemory::default(),
            sriov: IntelSriov::default(),
        }
    }
}

impl Intel {
    /// Checks what the types cannot. `file` is the text for finding the line.
    pub(super) fn check(&self, file: &str) -> Result<(), ConfigError> {
        let at = |key: &str, text: String| Err(ConfigError::at_key(file, Some("intel"), key, text));
        for (key, value, most) in [
            ("defaultCores", self.default_cores, 100),
            ("defaultGPUNum", self.default_gpu_num, 1024),
        ] {
            if value > most {
                return at(key, format!("`{key}` is {value}; write a number of 0 to {most}"));
            }
        }
        if !(1..=10_000).contains(&self.device_split_count) {
            let value = self.device_split_count;
            return at(
                "deviceSplitCount",
                format!("`deviceSplitCount` is {value}; write a number of 1 to 10000"),
            );
        }
        if !(self.device_memory_scaling > 0.0 && self.device_memory_scaling <= 1000.0) {
            let value = self.device_memory_scaling;
            return at(
                "deviceMemoryScaling",
                format!("`deviceMemoryScaling` is {value}; write a number above 0, 1 for no scaling, at most 1000"),
            );
        }
        Ok(())
    }
}

/// `gaudi.health`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct GaudiHealth {
    /// How often cards are looked at, such as `10s`.
    pub period: String,
}

impl Default for GaudiHealth {
    fn default() -> Self {
        Self {
            period: "10s".to_owned(),
        }
    }
}

/// `gaudi`: whole cards only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Gaudi {
    /// Resource: number of cards.
    #[serde(deserialize_with = "nullable")]
    pub resource_count_name: String,
    /// When a card counts as broken.
    pub health: GaudiHealth,
    /// Containers get the network description of their cards.
    pub network_mounts: bool,
    /// Several cards that are not joined directly are refused instead of merely avoided.
    pub strict_topology: bool,
}

impl Default for Gaudi {
    fn default() -> Self {
        Self {
            resource_count_name: "habana.ai/gaudi".to_owned(),
            health: GaudiHealth::default(),
            network_mounts: true,
            strict_topology: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::DeviceConfig;
    use super::*;

    #[test]
    fn a_full_section_reads_and_the_rest_has_the_defaults() {
        let text = "
intel:
  resourceCountName: intel.com/gpu
  unit: auto
  enforcement: [dmem, sriov, shim]
  defaultIsolation: soft
  byPath: all
  allowIDs: ['0xe211']
  health: {source: auto, tempLimit: 100, period: 5s}
  integratedMemory: {share: 25, maxMiB: 8192}
  sriov:
    manage: true
    profiles: [{pciIds: ['0xe211'], count: 2, memoryMiB: 8192, executionQuantumMs: 16, preemptTimeoutUs: 16000}]
gaudi:
  networkMounts: false
";
        let config = DeviceConfig::from_yaml(text).unwrap();
        let intel = config.intel.unwrap();
        assert_eq!(
            (intel.unit, intel.default_isolation),
            (IntelUnit::Auto, IntelIsolation::Soft)
        );
        assert_eq!(intel.enforcement, [IntelWall::Dmem, IntelWall::Sriov, IntelWall::Shim]);
        assert_eq!(
            (intel.integrated_memory.max_mib, intel.sriov.profiles[0].memory_mib),
            (8192, 8192)
        );
        assert_eq!((intel.health.temp_limit, intel.health.gpu_temp_limit), (100, 105));
        assert_eq!(intel.resource_memory_name, "intel.com/gpumem");
        let gaudi = config.gaudi.unwrap();
        assert_eq!(gaudi.resource_count_name, "habana.ai/gaudi");
        assert!(!gaudi.network_mounts);
        assert!(DeviceConfig::from_yaml("nvidia: {}").unwrap().intel.is_none());
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_its_key() {
        for (key, value) in [
            ("defaultCores", "150"),
            ("deviceSplitCount", "0"),
            ("deviceMemoryScaling", "-1"),
            ("unit", "slice"),
            ("defaultIsolation", "strong"),
            ("splitCount", "3"),
        ] {
            let text = format!("intel:\n  resourceCountName: intel.com/gpu\n  {key}: {value}\n");
            let error = DeviceConfig::from_yaml(&text).unwrap_err().to_string();
            assert!(error.contains(key) || error.contains(value), "{key}: {error}");
            assert!(error.contains('3'), "{key} names its line: {error}");
        }
    }
}
