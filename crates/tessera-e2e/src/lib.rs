//! What the tests across processes and clusters share with `./up`.

pub mod harness;
pub mod mixed_storm;
pub mod product;
pub mod stage;
pub mod storm;
