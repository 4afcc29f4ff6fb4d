//! Decides which cards a pod gets.
//!
//! [`World`] takes watch events and owns the bookings; [`Snapshot`] is an immutable picture of it; [`Engine`] answers
//! questions about a snapshot; [`Vendor`] is the seam to a device class. Everything here is pure: no clock, no
//! environment, no I/O, no randomness, and no device class by name. The same input gives the same answer anywhere.

pub mod admission;
mod booking;
mod decide;
mod edit;
mod error;
mod fit;
mod holding;
mod index;
mod node;
mod observe;
pub mod order;
mod pack;
mod preempt;
mod quota;
pub mod resize;
mod shape;
mod snapshot;
pub mod text;
pub mod topology;
mod unified;
mod vendor;
mod verify;
mod world;

pub use booking::{Booking, BookingState, Closure};
pub use decide::{Candidates, Decision, Defaults, Engine, NodeFit};
pub use edit::{Admit, AdmitSettings, ContainerEdit, EnvEdit};
pub use error::{AllocationProblem, NodeProblem, RequestError};
pub use fit::{Given, Placed, TrialCard};
pub use node::{CardUse, CardView, ClassOnNode, Held, NodeState, Nomination};
pub use pack::ScoreTerms;
pub use preempt::Preemptor;
pub use quota::{QuotaState, Quotas, Room};
pub use snapshot::Snapshot;
pub use vendor::{
    AnnotationKeys, Candidate, Earlier, FitContext, HealthSource, Instance, LockKind, ResourceNames, Rules, Take,
    Unified, Vendor, Vendors, Want, WriteContext, comma_list, common_accepts, common_conclusion, device_texts, go_bool,
    read_device_text,
};
pub use world::{AssumeError, Assumption, BookingDifference, NodeChange, PodChange, PodProblem, World};
