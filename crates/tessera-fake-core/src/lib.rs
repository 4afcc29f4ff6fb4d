//! The simulated machine behind the simulated driver libraries.
//!
//! Every process that loads one of the simulated libraries maps the same file
//! (`<driver root>/dev/nvidiactl`) and works on it with atomics alone: no lock is
//! taken across processes, so a stopped or killed client can neither stop nor
//! corrupt the others. What a process held is given back when it dies; whoever
//! looks at the machine next does the work.
//!
//! The crate knows nothing of CUDA or NVML: it keeps cards, memory, processes,
//! work, faults and events, and the libraries translate.
#![allow(unsafe_code, reason = "the state is a shared mapping; reasons stand at each block")]

mod checkpoint;
mod clock;
mod elf;
mod fault;
mod flaw;
pub mod install;
mod layout;
mod ledger;
mod limits;
mod machine;
pub mod mig;
pub mod model;
mod presets;
mod process;
mod uuid;
mod work;

pub use checkpoint::{Call, CheckpointError, CheckpointState};
pub use clock::{SAMPLE_NS, real_us};
pub use fault::{Fault, FaultError, Odd, XidEvent};
pub use flaw::Flaw;
pub use layout::{
    CardDesc, CardState, LAYOUT_VERSION, MAX_CARDS, MAX_INSTANCES, MAX_PROFILES, MAX_SLOTS, Pool, ProfileDesc, UNIT,
};
pub use ledger::Full;
pub use limits::{LimitError, Limits, UNLIMITED};
pub use machine::{Machine, OpenError};
pub use process::{AttachError, Process, ProcessView};
pub use uuid::{format_uuid, name_uuid, parse_uuid};
pub use work::Sample;

/// Environment variable, read by the simulated libraries only, that names the driver root
/// for tests without mounts.
pub const ROOT_VARIABLE: &str = "TESSERA_SIM_ROOT";
