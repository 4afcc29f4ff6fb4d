//! The device classes. Each module is one class behind [`tessera_engine::Vendor`]; the engine knows none by name.

use std::sync::Arc;

use tessera_engine::{Vendor, Vendors};
use tessera_wire::config::DeviceConfig;

pub mod nvidia;

/// The classes that a configuration switches on.
#[must_use]
pub fn from_config(config: &DeviceConfig) -> Arc<Vendors> {
    let mut vendors: Vec<Arc<dyn Vendor>> = Vec::new();
    if let Some(nvidia) = &config.nvidia {
        vendors.push(Arc::new(nvidia::Nvidia::new(nvidia)));
    }
    Arc::new(Vendors::new(vendors))
}
