//! The kubelet's edges as a node agent needs them.
//!
//! - [`plugin`]: a device plugin server over a unix socket that registers with
//!   the kubelet and stays registered across kubelet restarts.
//! - [`relay`]: the same with the work done in another process, whose death the
//!   kubelet does not notice.
//! - [`checkpoint`]: the kubelet's own record of which container holds which
//!   device ids, read only.
//! - [`podresources`]: the same question asked over the kubelet's API.
//! - [`socket`]: names, identity and liveness of unix socket files.
//!
//! Nothing here knows cards, pods' annotations or vendors: ids are opaque text.

pub mod checkpoint;
#[cfg(feature = "fake-kubelet")]
pub mod fake;
pub mod plugin;
pub mod podresources;
pub mod proto;
pub mod relay;
pub mod socket;

pub use plugin::{
    DeviceHealth, Plugin, PluginDevice, PreferredRequest, Refusal, ServeConfig, ServeError, StreamState, serve,
};
