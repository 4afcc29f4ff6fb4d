//! What a policy would do, and which moves would help: `tessera simulate`, `tessera dump`, `tessera plan`.
//!
//! Nothing here changes a cluster. Decisions are those of `tessera-engine`, by the same call that the scheduler makes:
//! a trace becomes nodes with registered cards and pods with limits, and goes through the same doors.

pub mod case;
mod classes;
mod dump;
pub mod format;
mod mask;
mod measure;
mod picture;
pub mod plan;
mod replay;
mod simulate;

pub use case::Case;
pub use classes::ClassArgs;
pub use dump::{DumpArgs, collect, dump, mask};
pub use plan::{PlanArgs, plan};
pub use replay::{PlainPods, PolicyName, Replayer};
pub use simulate::{Event, Order, Plan, Replay, Seeds, SimulateArgs, replay, simulate};
