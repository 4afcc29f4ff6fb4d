//! The API server behind [`Cluster`]: two watches (pods of the own node, the
//! own node) and a few patches.

use std::collections::BTreeMap;
use std::time::Duration;

use kube::api::{ListParams, Patch, PatchParams};
use tessera_kube::events::{About, Note, Recorder};
use tessera_kube::lock::NodeLocks;
use tessera_kube::objects::Trimmed;
use tessera_kube::watch::{Change, Freshness, follow};
use tessera_kube::{ApiErrorKind, Client};
use tessera_types::{PodId, PodUid};
use tessera_wire::node_lock::LockOwner;
use tessera_wire::{NodeView, PodView, keys, patch};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::cluster::{Cluster, ClusterChange, PodNote, WriteError};

/// HAMi's default; we only release.
const LOCK_TIMEOUT: Duration = Duration::from_secs(300);

/// Longest wait for one request.
const REQUEST: Duration = Duration::from_secs(10);

/// The client.
#[derive(Clone)]
pub struct KubeCluster {
    client: Client,
    node: String,
    locks: std::sync::Arc<NodeLocks>,
    events: Recorder,
}

impl std::fmt::Debug for KubeCluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KubeCluster")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

impl KubeCluster {
    /// Wraps a client. `events` takes what is told about pods.
    #[must_use]
    pub fn new(client: Client, node: String, events: Recorder) -> Self {
        let locks = std::sync::Arc::new(NodeLocks::new(client.clone(), LOCK_TIMEOUT));
        Self {
            client,
            node,
            locks,
            events,
        }
    }

    /// Follows the node and its pods into `changes` until `stop`.
    pub async fn follow(&self, changes: mpsc::Sender<ClusterChange>, freshness: Freshness, stop: CancellationToken) {
        let (raw, mut received) = mpsc::channel(256);
        let (of_node, named) = (
            format!("spec.nodeName={}", self.node),
            format!("metadata.name={}", self.node),
        );
        let pods = follow::<PodView, _>(
            self.client.clone(),
            Some(&of_node),
            None,
            raw.clone(),
            Raw::Pod,
            freshness,
            stop.clone(),
        );
        let node = follow::<NodeView, _>(
            self.client.clone(),
            Some(&named),
            None,
            raw,
            Raw::Node,
            Freshness::default(),
            stop,
        );
        let sort = async {
            let mut listed: Option<Vec<PodView>> = None;
            while let Some(change) = received.recv().await {
                let Some(change) = translate(change, &mut listed) else {
                    continue;
                };
                if changes.send(change).await.is_err() {
                    return;
                }
            }
        };
        tokio::join!(pods, node, sort);
    }
}

enum Raw {
    Pod(Change<PodView>),
    Node(Change<NodeView>),
}

/// Turns a watch's words into ours; a list is collected until it is complete.
fn translate(change: Raw, listed: &mut Option<Vec<PodView>>) -> Option<ClusterChange> {
    match change {
        Raw::Pod(Change::Restarted) => {
            *listed = Some(Vec::new());
            None
        }
        Raw::Pod(Change::Listed(pod)) => {
            if let Some(pod) = readable(*pod)
                && let Some(listed) = listed
            {
                listed.push(pod);
            }
            None
        }
        Raw::Pod(Change::Complete) => listed.take().map(ClusterChange::Pods),
        Raw::Pod(Change::Applied(pod)) => readable(*pod).map(|pod| ClusterChange::Pod(Box::new(pod))),
        Raw::Pod(Change::Gone(pod)) => PodUid::new(pod.uid()).ok().map(ClusterChange::PodGone),
        Raw::Node(Change::Listed(node) | Change::Applied(node)) => match node.view {
            Ok(node) => Some(ClusterChange::Node(node.annotations)),
            Err(error) => {
                warn!(%error, "Our node object does not parse.");
                None
            }
        },
        Raw::Node(Change::Restarted | Change::Complete | Change::Gone(_)) => None,
    }
}

fn readable(pod: Trimmed<PodView>) -> Option<PodView> {
    match pod.view {
        Ok(pod) => Some(pod),
        Err(error) => {
            warn!(%error, "A pod of this node does not parse, leaving it out.");
            None
        }
    }
}

impl From<tessera_kube::ApiError> for WriteError {
    fn from(error: tessera_kube::ApiError) -> Self {
        Self {
            gone: matches!(error.kind(), ApiErrorKind::NotFound | ApiErrorKind::Conflict),
            message: tessera_kube::api::chain(&error),
        }
    }
}

impl Cluster for KubeCluster {
    async fn annotate_pod(
        &self,
        pod: &PodId,
        annotations: &BTreeMap<String, Option<String>>,
    ) -> Result<(), WriteError> {
        tessera_kube::writes::patch_pod(&self.client, pod, patch::annotations(annotations)).await?;
        Ok(())
    }

    async fn list_pods(&self) -> Result<Vec<PodView>, String> {
        let api: kube::Api<Trimmed<PodView>> = kube::Api::all(self.client.clone());
        let params = ListParams::default().fields(&format!("spec.nodeName={}", self.node));
        match tokio::time::timeout(REQUEST, api.list(&params)).await {
            Ok(Ok(list)) => Ok(list.items.into_iter().filter_map(readable).collect()),
            Ok(Err(error)) => Err(format!("listing pods: {}", tessera_kube::api::chain(&error))),
            Err(_) => Err("listing pods: no answer".to_owned()),
        }
    }

    async fn annotate_node(&self, annotations: &BTreeMap<String, Option<String>>) -> Result<(), WriteError> {
        let api: kube::Api<k8s_openapi::api::core::v1::Node> = kube::Api::all(self.client.clone());
        let body = patch::annotations(annotations);
        let params = PatchParams::default();
        let body = Patch::Merge(&body);
        let request = api.patch_metadata(&self.node, &params, &body);
        match tokio::time::timeout(REQUEST, request).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(WriteError {
                message: format!("annotating node {}: {}", self.node, tessera_kube::api::chain(&error)),
                gone: false,
            }),
            Err(_) => Err(WriteError {
                message: format!("annotating node {}: no answer", self.node),
                gone: false,
            }),
        }
    }

    async fn release_lock(&self, pod: &PodId) -> Result<(), WriteError> {
        let me = LockOwner {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
        };
        self.locks.release(&self.node, keys::NODE_LOCK, &me).await?;
        Ok(())
    }

    fn tell(&self, note: PodNote) {
        self.events.tell(Note {
            about: About::Pod(note.pod),
            warning: true,
            reason: note.reason,
            message: note.message,
        });
    }
}
