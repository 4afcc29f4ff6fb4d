//! Players: other makers' device plugins, played.
//!
//! A player registers cards that do not exist, keeps its heartbeat, reads what
//! the scheduler wrote on a pod when the kubelet asks it to allocate, answers as
//! that maker's plugin does, and gives its node lock back. Nothing of the
//! product knows that it is one. What a maker's plugin does is data
//! (`plays/<vendor>.yaml`); what several have in common is code:
//!
//! - [`play`]: the data, and what a user asks to be played.
//! - [`texts`]: what is written on the node.
//! - [`answer`]: which cards an allocation is, from the pod's annotations. Pure.
//! - [`stage`]: the kubelet and the API server.

pub mod answer;
pub mod play;
pub mod stage;
pub mod texts;
