//! Enflame: whole cards (`GCU`), and hardware partitions of a card in slices (`Enflame`).
//!
//! The profiles of partitions come from the node. Compute is counted in whole slices: the percent of a slice is rounded
//! up as HAMi writes it, and a card has that times its slices, so that all slices of a card can be given.

mod profile;
mod sliced;
mod whole;

use std::sync::Arc;

use tessera_engine::Vendor;
use tessera_wire::config::DeviceConfig;

pub use sliced::EnflameSliced;
pub use whole::EnflameWhole;

use crate::Options;

/// The keyword of partitions.
pub const SLICED: &str = "Enflame";
/// The keyword of whole cards.
pub const WHOLE: &str = "GCU";

/// What the maker's runtime reads; the container's own value would win over the plugin's.
const RESERVED_ENV: [&str; 2] = ["ENFLAME_VISIBLE_DEVICES", "TOPS_VISIBLE_DEVICES"];

/// Both classes.
pub(crate) fn classes(config: &DeviceConfig, _options: &Options) -> Vec<Arc<dyn Vendor>> {
    config.enflame.as_ref().map_or_else(Vec::new, |section| {
        vec![
            Arc::new(EnflameSliced::new(section)) as Arc<dyn Vendor>,
            Arc::new(EnflameWhole::new(section)),
        ]
    })
}

/// The name of a physical card, the same for both classes.
fn twin(index: u32) -> Option<Arc<str>> {
    Some(Arc::from(format!("enflame-{index}")))
}
