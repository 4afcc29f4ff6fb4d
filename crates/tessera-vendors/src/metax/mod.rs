//! MetaX: whole cards with link topology, and cards shared as sGPUs under a QoS policy.
//!
//! A node's plugin runs in one of the two modes. Of whole cards it tells only how many there are and chooses them
//! itself, so our choice there is the node; of shared cards it publishes each one, and takes our choice.

mod company;
mod register;
mod request;
mod sgpu;
mod whole;
mod zones;

use std::sync::Arc;

use tessera_engine::Vendor;
use tessera_wire::config::{DeviceConfig, Metax};

use crate::{Options, amounts};

pub use sgpu::MetaxSgpu;
pub use whole::MetaxGpu;

/// Resource that a node's plugin advertises for whole cards, and for shares: which is there tells its mode.
#[derive(Debug, Clone, Default)]
struct Modes {
    whole: Option<String>,
    shared: Option<String>,
}

impl Modes {
    fn new(settings: &Metax) -> Self {
        Self {
            whole: amounts::name(&settings.resource_count_name),
            shared: amounts::name(&settings.resource_vcount_name),
        }
    }
}

/// The classes that the section `metax` names a count resource for.
pub(crate) fn classes(config: &DeviceConfig, _: &Options) -> Vec<Arc<dyn Vendor>> {
    let mut classes: Vec<Arc<dyn Vendor>> = Vec::new();
    if let Some(settings) = &config.metax {
        if !settings.resource_count_name.is_empty() {
            classes.push(Arc::new(MetaxGpu::new(settings)));
        }
        if !settings.resource_vcount_name.is_empty() {
            classes.push(Arc::new(MetaxSgpu::new(settings)));
        }
    }
    classes
}
