//! The configuration files that HAMi's chart renders and its users edit.
//!
//! A key that nobody knows, or a value of the wrong type, is refused with its line and column and with the key that was
//! probably meant. Every key that the charts of HAMi 2.9 and 2.10 render is known; those without a meaning here are
//! reported by [`DeviceConfig::warnings`]. A key that is left out has the value that the chart gives it, so that no
//! missing key stops a process.

mod amd;
mod ascend;
mod error;
mod file;
mod intel;
mod node;
mod nvidia;
mod sections;
#[cfg(test)]
mod tests;

pub use amd::Amd;
pub use error::ConfigError;
pub use file::DeviceConfig;
pub use intel::{
    Gaudi, GaudiHealth, Intel, IntelByPath, IntelHealth, IntelIntegratedMemory, IntelIsolation, IntelSriov,
    IntelSriovProfile, IntelUnit, IntelWall,
};
pub use node::{NodeConfig, NodeConfigFile};
pub use nvidia::{CorePolicy, Nvidia};
pub use sections::{
    Ascend, AscendChip, AscendTemplate, AwsNeuron, Biren, CountMemoryCore, Enflame, EnflameMemoryUnit, Iluvatar,
    Kunlun, KunlunTopology, Metax, Mthreads, NeuronTopology, Vastai, VastaiPacking,
};
