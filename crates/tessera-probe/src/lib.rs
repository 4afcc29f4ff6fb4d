//! What cards a node has, how they are linked, and whether they are well.
//!
//! - [`root`]: where a driver's files are, on a plain host or under a driver
//!   container's root.
//! - [`nvml`]: the vendor library as a table of function pointers. A symbol
//!   that is missing is a capability that is missing, not an error.
//! - [`card`]: the facts about one card, as plain data.
//! - [`topology`]: pair scores.
//! - [`health`]: which driver events matter, and the way back to healthy.
//! - [`monitor`]: the one thread that talks to the driver. Driver calls may
//!   block for seconds, so nobody else makes them.

pub mod card;
pub mod health;
pub mod monitor;
pub mod nvml;
pub mod root;
pub mod topology;

pub use card::{CardFacts, CardStatus, MigMode, MigPlacement, MigProfile};
pub use health::{CardHealth, XidClass, XidPolicy};
pub use monitor::{Counters, DriverState, Inventory, Monitor, MonitorConfig};
pub use nvml::{Nvml, NvmlError};
pub use root::DriverRoot;
pub use topology::PairScores;
