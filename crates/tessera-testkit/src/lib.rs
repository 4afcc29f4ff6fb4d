//! What tests of several crates share: builders of cards, nodes and pods, and the runner of the conformance cases.
//!
//! Nothing here is a double of our own code. The builders make values, the runner asks the real crates.

pub mod build;
pub mod conformance;
