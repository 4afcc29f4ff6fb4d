//! What the tests across processes and clusters share with `./up`.

pub mod harness;
pub mod interrupt;
pub mod load;
pub mod mixed;
pub mod processes;
pub mod product;
pub mod scale;
pub mod stage;
pub mod storm;
