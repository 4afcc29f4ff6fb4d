//! A real one-node Kubernetes as child processes: etcd, API server,
//! controller manager, scheduler, containerd and kubelet.
//!
//! `cargo xtask up` gives it to users, and end-to-end tests start one each.
//! Nothing of it is simulated, so what holds here holds on a cluster.
//!
//! # How the node sits on the machine
//!
//! - **Network.** The node shares the machine's network. A bridge of its own
//!   carries the node's address `10.234.<n>.1`, on which the API server
//!   listens. Pods get addresses of `10.234.<n>.0/24` that the machine reaches
//!   directly; the service address of the API server works in every pod. Other
//!   services need [`ClusterBuilder::kube_proxy`]. Webhooks and extenders may
//!   be at `127.0.0.1`.
//! - **Mounts.** containerd and kubelet run in a mount namespace of their own.
//!   There `/var/lib/kubelet`, `/etc/cdi`, `/var/run/cdi`, `/run/containerd`
//!   and the logs are folders of the state folder, so that unchanged charts
//!   find the usual paths while the machine's own stay untouched. The kubelet
//!   serves device plugins at the fixed path
//!   `/var/lib/kubelet/device-plugins`, whatever its root folder is: pods name
//!   that path, and a process on the machine takes the same socket at
//!   [`Cluster::kubelet_dir`]. What the node mounts itself (`tmpfs` volumes)
//!   is seen through [`Cluster::node_root`], and goes with the namespace.
//! - **Processes.** All are in one cgroup branch of the cluster's own, so that
//!   [`Cluster::stop`] finds every one of them.
//!
//! # Example
//! ```no_run
//! # async fn example() -> Result<(), tessera_testcluster::Error> {
//! use tessera_testcluster::{Cluster, Component, Progress, image};
//!
//! let cluster = Cluster::builder().node_name("node-1").start().await?;
//! let image = image::Builder::debian("tessera.dev/test:1").build(&Progress::silent())?;
//! cluster.load_image(&image).await?;
//! let client = cluster.kube().await?;
//! // ... create pods that name `tessera.dev/test:1` ...
//! cluster.restart(Component::Kubelet).await?;
//! cluster.stop().await
//! # }
//! ```
//!
//! It needs root, and installs small packages (`runc`, `iproute2`, `nftables`)
//! with `apt-get` when they are missing.

mod audit;
mod binaries;
mod build;
mod cgroup;
mod cluster;
mod component;
mod config;
mod error;
mod host;
pub mod image;
mod leftovers;
mod mounts;
mod network;
mod paths;
mod pki;
mod process;
mod progress;
mod registry;
mod state;
mod teardown;
pub mod wait;

pub use audit::{AuditEvent, AuditLog, AuditMark, AuditObject, AuditStatus, AuditUser};
pub use binaries::{BIN_DIR_VARIABLE, Binaries, available};
pub use cluster::{Cluster, ClusterBuilder};
pub use component::Component;
pub use config::SchedulerConfig;
pub use error::Error;
pub use leftovers::Leftovers;
pub use paths::Cache;
pub use progress::{Event, Progress};

/// Lower-case hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
