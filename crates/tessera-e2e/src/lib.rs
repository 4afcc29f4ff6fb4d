//! What the tests across processes and clusters share with `./up`.

pub mod harness;
pub mod mixed;
pub mod product;
pub mod stage;
pub mod storm;
