//! What the agent asks of the API server, as data. The client is in
//! [`crate::kube`].

use std::collections::BTreeMap;
use std::future::Future;

use tessera_types::{PodId, PodUid};
use tessera_wire::PodView;

/// A pod of this node, or the node itself, as the API server tells it.
#[derive(Debug)]
pub enum ClusterChange {
    /// All pods of the node, after a start or a gap.
    Pods(Vec<PodView>),
    /// A pod is new or different.
    Pod(Box<PodView>),
    /// A pod is gone, or left the node.
    PodGone(PodUid),
    /// The node's annotations.
    Node(BTreeMap<String, String>),
}

/// Something to tell about a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodNote {
    /// About which pod.
    pub pod: PodId,
    /// One word for machines.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// A write that did not happen.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct WriteError {
    /// For people.
    pub message: String,
    /// The object is gone: the write has no more point.
    pub gone: bool,
}

/// What is asked of the server, one request at a time.
pub trait Cluster: Send + Sync + 'static {
    /// Merges annotations into a pod; `None` removes one. Never touches another
    /// pod of the same name.
    fn annotate_pod(
        &self,
        pod: &PodId,
        annotations: &BTreeMap<String, Option<String>>,
    ) -> impl Future<Output = Result<(), WriteError>> + Send;

    /// The pods of the own node as the server has them now.
    fn list_pods(&self) -> impl Future<Output = Result<Vec<PodView>, String>> + Send;

    /// Merges annotations into the own node.
    fn annotate_node(
        &self,
        annotations: &BTreeMap<String, Option<String>>,
    ) -> impl Future<Output = Result<(), WriteError>> + Send;

    /// Releases HAMi's node lock if this pod holds it.
    fn release_lock(&self, pod: &PodId) -> impl Future<Output = Result<(), WriteError>> + Send;

    /// Tells people. Never waits.
    fn tell(&self, note: PodNote);
}
