//! `device-config.yaml` as a whole.

use serde::{Deserialize, Serialize};

use super::nvidia::present;
use super::{
    Amd, Ascend, AwsNeuron, Biren, ConfigError, CountMemoryCore, Enflame, Gaudi, Iluvatar, Intel, Kunlun, Metax,
    Mthreads, Nvidia, Vastai,
};

/// The largest file read.
pub(super) const FILE_BYTES_MAX: usize = 1 << 20;

/// `device-config.yaml`. A section that is left out switches its class off.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeviceConfig {
    /// NVIDIA.
    pub nvidia: Option<Nvidia>,
    /// MetaX.
    pub metax: Option<Metax>,
    /// Hygon.
    pub hygon: Option<CountMemoryCore>,
    /// Cambricon.
    pub cambricon: Option<CountMemoryCore>,
    /// Moore Threads.
    pub mthreads: Option<Mthreads>,
    /// Iluvatar, chip by chip.
    pub iluvatars: Option<Vec<Iluvatar>>,
    /// Enflame.
    pub enflame: Option<Enflame>,
    /// Kunlun.
    pub kunlun: Option<Kunlun>,
    /// AWS Neuron.
    pub awsneuron: Option<AwsNeuron>,
    /// AMD.
    pub amd: Option<Amd>,
    /// Vastai.
    pub vastai: Option<Vastai>,
    /// Biren.
    pub biren: Option<Biren>,
    /// Intel GPUs.
    pub intel: Option<Intel>,
    /// Intel Gaudi.
    pub gaudi: Option<Gaudi>,
    /// Ascend, chip by chip.
    pub vnpus: Option<Ascend>,
    /// The form of Iluvatar before it became a list. Read and put aside.
    #[serde(rename = "iluvatar", skip_serializing, deserialize_with = "present")]
    pub old_iluvatar: bool,
    /// What of the file has no effect, for the log.
    #[serde(skip)]
    pub warnings: Vec<String>,
}

/// Reads YAML (or JSON, which is YAML) with a limit on its size.
pub(super) fn read<'de, T: Deserialize<'de>>(text: &'de str) -> Result<T, ConfigError> {
    if text.len() > FILE_BYTES_MAX {
        return Err(ConfigError::of(format!(
            "the file is larger than {FILE_BYTES_MAX} bytes"
        )));
    }
    serde_saphyr::from_str(text).map_err(|error| ConfigError::from(error).with_line_of(text))
}

impl DeviceConfig {
    /// Reads the file.
    ///
    /// # Errors
    /// An unknown key, a value of the wrong type or out of its range, a key that stands twice, no section at all. The
    /// error names line, column and what to write.
    pub fn from_yaml(text: &str) -> Result<Self, ConfigError> {
        if text
            .lines()
            .all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'))
        {
            return Err(ConfigError::of(
                "the file is empty; it needs at least one section such as `nvidia:`",
            ));
        }
        let mut config: Self = read(text)?;
        if let Some(nvidia) = &config.nvidia {
            nvidia.check(text)?;
            if nvidia.known_mig_geometries {
                config.warnings.push(
                    "nvidia.knownMigGeometries has no effect: sizes and places of instances come from the driver; \
                     use migProfileAllowlist to limit the profiles"
                        .to_owned(),
                );
            }
        }
        if let Some(intel) = &config.intel {
            intel.check(text)?;
        }
        if let Some(amd) = &config.amd {
            amd.check(text)?;
        }
        if let Some(ascend) = &config.vnpus {
            ascend.check(text)?;
        }
        if config.old_iluvatar {
            config
                .warnings
                .push("iluvatar has no effect: write a list named iluvatars".to_owned());
        }
        let bare = Self {
            warnings: Vec::new(),
            old_iluvatar: false,
            ..config.clone()
        };
        if bare == Self::default() {
            return Err(ConfigError::of(
                "no section names a device class; at least one such as `nvidia:` is needed",
            ));
        }
        Ok(config)
    }
}
