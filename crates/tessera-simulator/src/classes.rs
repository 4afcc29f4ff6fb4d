//! The device classes that a command decides with.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use tessera_engine::Vendors;
use tessera_wire::config::{DeviceConfig, Nvidia};

/// The option of all three commands.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ClassArgs {
    /// device-config.yaml of the scheduler: resource names and defaults; NVIDIA's defaults if not given
    #[arg(long = "device-config-file", value_name = "FILE")]
    pub device_config: Option<PathBuf>,
}

impl ClassArgs {
    /// Reads the file.
    ///
    /// # Errors
    /// It cannot be read or is no configuration.
    pub fn load(&self) -> Result<Arc<Vendors>> {
        let config = match &self.device_config {
            None => DeviceConfig {
                nvidia: Some(Nvidia::default()),
                ..DeviceConfig::default()
            },
            Some(path) => {
                let shown = path.display();
                let text = std::fs::read_to_string(path).with_context(|| {
                    format!("cannot read the device configuration `{shown}` (--device-config-file)")
                })?;
                DeviceConfig::from_yaml(&text)
                    .with_context(|| format!("in the device configuration `{shown}` (--device-config-file)"))?
            }
        };
        Ok(tessera_vendors::from_config(&config))
    }
}
