//! The words of Tessera.
//!
//! Everything that more than one crate must agree on: what a card is, what a container asks for, what it was
//! given, and why it was refused. Nothing here reads a file, a clock, the environment or a cluster, and nothing
//! here knows how these values are spelled on the wire (that is `tessera-wire`).

mod allocation;
mod amount;
mod card;
mod extra;
mod id;
mod policy;
mod reason;
mod request;
mod rule;
mod small;
mod usage;

pub use allocation::{Allocation, ClassAllocation, MigReservation, MigRuntime, Share};
pub use amount::{Cores, Mib, WHOLE_CARD_CORES};
pub use card::{Card, CardMode, MigProfile, Placement};
pub use extra::{EXTRA_AMOUNTS, Extras};
pub use id::{CardId, IdError, Keyword, NodeName, PodId, PodUid};
pub use policy::{CardOrder, CardPolicy, NodePolicy, Weights, WeightsError};
pub use reason::{Dimension, NodeRefusal, Reason, ReasonKind};
pub use request::{Ask, ContainerDemand, ContainerRole, Demand, MemoryAsk, Selection};
pub use rule::{CardRule, RULE_BYTES_MAX, RULE_DEPTH_MAX, RuleError};
pub use small::SmallMap;
pub use usage::{CardUsage, PodUsage, effective_usage};
