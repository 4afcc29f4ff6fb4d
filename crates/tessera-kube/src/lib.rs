//! The edge to the Kubernetes API server; the only product crate that holds its client.
//!
//! Reading: [`watch`] follows pods, nodes and quotas, [`books`] is the one task that owns the decision engine's
//! world and publishes an immutable view of it. Writing: [`writes`] has the few writes a scheduled pod costs,
//! [`events`] what is told to people, [`lock`] the node lock for plugins of other makers, [`lease`] who leads.
//! Nothing here decides where a pod goes.

mod agents;
pub mod api;
pub mod books;
pub mod events;
mod heartbeat;
pub mod lease;
pub mod list;
pub mod lock;
pub mod objects;
pub mod reach;
#[cfg(any(test, feature = "script"))]
pub mod script;
pub mod watch;
pub mod webhooks;
pub mod writes;

pub use api::{ApiError, ApiErrorKind, ClientSettings, ConnectError, connect};
pub use kube::Client;
