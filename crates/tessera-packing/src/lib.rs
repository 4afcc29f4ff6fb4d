//! Packing policies for shared cards, and the replay that measures them.
//!
//! A [`Cluster`] holds what is left on every node, and [`Cluster::decide`] answers which node and cards a request gets
//! under a [`Policy`]. [`replay::run`] feeds a whole sequence of arrivals to it. Nothing here reads a file or a clock.
//!
//! Units everywhere: CPU in milli-cores, memory in MiB, cards in milli (1000 is one whole card).

mod cluster;
mod fragment;
mod market;
mod model;
pub mod openb;
mod policy;
pub mod replay;
mod workload;

pub use cluster::{Cluster, NotHeld};
pub use fragment::Fragmentation;
pub use market::{Learner, Left, Loss, Market, Pool, Terms, Weights};
pub use model::{Cards, MAX_CARDS, ModelSet, Models, Node, Placement, Request, TooMany, WHOLE};
pub use policy::{Policy, fgd_score};
pub use workload::{TypicalClass, Workload};
