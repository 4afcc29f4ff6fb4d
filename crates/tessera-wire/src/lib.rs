//! Every text that Tessera shares with something else: annotations, registers, HTTP bodies, configuration.
//!
//! Each module owns one text and does two things with it, reading and writing, so that printing and then parsing
//! gives back the value. Nothing here decides anything about cards, and nothing here reads a file, a clock or the
//! environment: time comes in as an argument. Names that exist only on the wire (`gpumem`, `nums`, 101 for "not
//! given") stay inside this crate.
//!
//! What comes from outside is bounded: cards of a register, entries of a device text and the length of a quantity
//! have a limit beside their parser. The size of a body is the HTTP server's business.

pub mod admission;
pub mod config;
pub mod device_text;
pub mod extender;
pub mod failure;
pub mod handshake;
pub mod keys;
pub mod mig;
pub mod nearest;
pub mod node_lock;
pub mod patch;
pub mod pending;
pub mod register;
pub mod resize;
pub mod time;

mod names;
mod node;
mod pod;
mod quantity;

pub use names::NameList;
pub use node::{NodeError, NodeView};
pub use pod::{ContainerView, EnvValue, PodError, PodPhase, PodView};
pub use quantity::{Quantity, QuantityError, Whole};
