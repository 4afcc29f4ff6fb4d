//! The device classes. Each module is one class behind [`tessera_engine::Vendor`]; the engine knows none by name.

use std::sync::Arc;

use tessera_engine::{Vendor, Vendors};
use tessera_wire::config::DeviceConfig;

pub mod amd;
mod amounts;
pub mod ascend;
pub mod awsneuron;
pub mod biren;
pub mod cambricon;
pub mod enflame;
pub mod gaudi;
pub mod hygon;
pub mod iluvatar;
pub mod intel;
mod known;
pub mod kunlun;
pub mod metax;
pub mod mthreads;
mod nodes;
pub mod nvidia;
mod pool;
mod texts;
pub mod vastai;

pub use known::not_enabled;

/// The classes that a configuration names, each module in one line. Classes with the same keyword: the first stays.
#[must_use]
pub fn classes(config: &DeviceConfig, options: &Options) -> Vec<Arc<dyn Vendor>> {
    let mut classes: Vec<Arc<dyn Vendor>> = Vec::new();
    classes.extend(ascend::classes(config, options));
    classes.extend(awsneuron::classes(config, options));
    classes.extend(nvidia::classes(config, options));
    classes.extend(amd::classes(config, options));
    classes.extend(gaudi::classes(config, options));
    classes.extend(intel::classes(config, options));
    classes.extend(cambricon::classes(config, options));
    classes.extend(hygon::classes(config, options));
    classes.extend(mthreads::classes(config, options));
    classes.extend(enflame::classes(config, options));
    classes.extend(iluvatar::classes(config, options));
    classes.extend(kunlun::classes(config, options));
    classes.extend(biren::classes(config, options));
    classes.extend(metax::classes(config, options));
    classes.extend(vastai::classes(config, options));
    // REGISTER HERE: one line a module, in alphabetical order.
    classes
}

/// What the command line says about classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Ascend's classes are on.
    pub ascend: bool,
    /// Iluvatar's classes are on.
    pub iluvatar: bool,
}

impl Default for Options {
    /// A class that the configuration names is meant to be used.
    fn default() -> Self {
        Self {
            ascend: true,
            iluvatar: true,
        }
    }
}

/// All classes that a configuration switches on.
#[must_use]
pub fn from_config(config: &DeviceConfig) -> Arc<Vendors> {
    from_config_with(config, &Options::default())
}

/// The classes that a configuration and the command line switch on.
#[must_use]
pub fn from_config_with(config: &DeviceConfig, options: &Options) -> Arc<Vendors> {
    Arc::new(Vendors::new(classes(config, options)))
}
