//! The processes of a cluster.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One process of the cluster, by its role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Component {
    /// The API server's store.
    Etcd,
    /// `kube-apiserver`.
    Apiserver,
    /// `kube-controller-manager`.
    ControllerManager,
    /// `kube-scheduler`.
    Scheduler,
    /// Holder of the node's mount namespace. It does nothing and lives as long
    /// as the cluster.
    Namespace,
    /// `containerd`. The containers' own processes outlive it.
    Containerd,
    /// `kubelet`.
    Kubelet,
    /// `kube-proxy`.
    KubeProxy,
}

impl Component {
    /// All of them, in the order in which they start.
    pub const ALL: [Self; 8] = [
        Self::Etcd,
        Self::Apiserver,
        Self::ControllerManager,
        Self::Scheduler,
        Self::Namespace,
        Self::Containerd,
        Self::Kubelet,
        Self::KubeProxy,
    ];

    pub(crate) const fn file_name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Apiserver => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
            Self::Namespace => "namespace",
            Self::Containerd => "containerd",
            Self::Kubelet => "kubelet",
            Self::KubeProxy => "kube-proxy",
        }
    }

    /// Runs where the node's own mounts are seen.
    pub(crate) const fn on_node(self) -> bool {
        matches!(self, Self::Containerd | Self::Kubelet | Self::KubeProxy)
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.file_name())
    }
}
