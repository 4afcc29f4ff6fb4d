//! The scheduler side as a service: what kube-scheduler's extender client and the API server's admission ask.
//!
//! Handlers translate and nothing else: a body becomes a typed question, the engine decides on one immutable
//! view, the answer becomes a body. What a decision is based on, and what is booked, lives in
//! [`tessera_kube::books`]; how requests are judged lives in `tessera-engine`.

mod admit;
mod app;
mod args;
mod bind;
mod certificate;
mod filter;
mod metrics;
mod preempt;
mod resizes;
mod routes;
mod run;
#[cfg(test)]
mod tests;
mod troubles;
mod wake;

pub use app::{App, Cluster, Parts, Settings};
pub use args::{ArgsError, FilterMode, LogFormat, SchedulerArgs, WriteAt};
pub use routes::{Guard, Routes, router};
pub use run::{init_logs, keep, run, run_behind, run_until};
pub use tessera_http::Kept;

/// The version of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
