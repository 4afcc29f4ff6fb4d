//! The few requests that a plugin sends to the API server.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};

/// A request that failed.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {source}")]
pub struct ApiError {
    doing: String,
    source: Box<kube::Error>,
}

fn failed(doing: String) -> impl FnOnce(kube::Error) -> ApiError {
    move |source| ApiError {
        doing,
        source: Box::new(source),
    }
}

/// The API server as the plugin on one node sees it.
#[derive(Clone)]
pub struct Server {
    client: Client,
    node: String,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// For the plugin on `node`.
    #[must_use]
    pub fn new(client: Client, node: &str) -> Self {
        Self {
            client,
            node: node.to_owned(),
        }
    }

    /// The node's annotations.
    ///
    /// # Errors
    /// The server's.
    pub async fn node_annotations(&self) -> Result<BTreeMap<String, String>, ApiError> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let node = nodes
            .get(&self.node)
            .await
            .map_err(failed(format!("reading node {}", self.node)))?;
        Ok(node.metadata.annotations.unwrap_or_default())
    }

    /// Merges `metadata` into the node's.
    ///
    /// # Errors
    /// The server's.
    pub async fn patch_node(&self, metadata: Value) -> Result<(), ApiError> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let patch = json!({ "metadata": metadata });
        nodes
            .patch_metadata(&self.node, &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .map(drop)
            .map_err(failed(format!("annotating node {}", self.node)))
    }

    /// A pod; `None` if there is none of that name.
    ///
    /// # Errors
    /// The server's.
    pub async fn pod(&self, namespace: &str, name: &str) -> Result<Option<Pod>, ApiError> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        pods.get_opt(name)
            .await
            .map_err(failed(format!("reading pod {namespace}/{name}")))
    }

    /// Pods of the node.
    ///
    /// # Errors
    /// The server's.
    pub async fn on_node(&self) -> Result<Vec<Pod>, ApiError> {
        let pods: Api<Pod> = Api::all(self.client.clone());
        let params = ListParams::default().fields(&format!("spec.nodeName={}", self.node));
        let list = pods
            .list(&params)
            .await
            .map_err(failed(format!("listing the pods of node {}", self.node)))?;
        Ok(list.items)
    }

    /// Pods that are pending on the node.
    ///
    /// # Errors
    /// The server's.
    pub async fn pending(&self) -> Result<Vec<Pod>, ApiError> {
        let pending = |pod: &Pod| pod.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Pending");
        Ok(self.on_node().await?.into_iter().filter(pending).collect())
    }

    /// Merges annotations into a pod's.
    ///
    /// # Errors
    /// The server's, also when another pod has the name by now.
    pub async fn annotate(&self, pod: &Pod, annotations: &BTreeMap<String, String>) -> Result<(), ApiError> {
        let name = pod.metadata.name.clone().unwrap_or_default();
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        let patch = json!({ "metadata": { "uid": pod.metadata.uid, "annotations": annotations } });
        pods.patch_metadata(&name, &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .map(drop)
            .map_err(failed(format!("annotating pod {namespace}/{name}")))
    }

    /// Takes the lock `key` off the node: one that names no owner, or that names `pod`.
    ///
    /// # Errors
    /// The server's.
    pub async fn unlock(&self, key: &str, pod: &Pod) -> Result<(), ApiError> {
        let held = self.node_annotations().await?.remove(key);
        let Some(text) = held else { return Ok(()) };
        let owner: Vec<&str> = text.split(',').skip(1).collect();
        let mine = [
            pod.metadata.namespace.as_deref().unwrap_or_default(),
            pod.metadata.name.as_deref().unwrap_or_default(),
        ];
        if !owner.is_empty() && owner != mine {
            return Ok(());
        }
        self.patch_node(json!({ "annotations": { key: null } })).await
    }
}
