//! The writes that a scheduled pod costs.
//!
//! Each one carries the pod's uid, so that it can only ever touch the pod that was decided about and not a new
//! one of the same name.

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tessera_types::PodId;
use tessera_wire::PodView;

use crate::api::{ApiError, REQUEST_TIME, timed};
use crate::objects::Trimmed;

/// Merges `patch` into the pod.
///
/// # Errors
/// The pod is gone or another of that name took its place ([`crate::ApiErrorKind::Conflict`]), or the server does not
/// answer.
pub async fn patch_pod(client: &Client, pod: &PodId, mut patch: Value) -> Result<(), ApiError> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
    if let Some(metadata) = patch
        .as_object_mut()
        .map(|root| root.entry("metadata").or_insert_with(|| json!({})))
        && let Some(metadata) = metadata.as_object_mut()
    {
        // The uid cannot be changed: the server refuses the patch if it differs.
        metadata.insert("uid".to_owned(), Value::String(pod.uid.to_string()));
    }
    // The answer is the whole pod; only its metadata is asked for.
    let (params, patch) = (PatchParams::default(), Patch::Merge(&patch));
    let request = api.patch_metadata(&pod.name, &params, &patch);
    timed(|| format!("annotating pod {pod}"), REQUEST_TIME, request)
        .await
        .map(drop)
}

/// Binds the pod to the node.
///
/// # Errors
/// The pod is gone, is bound already, or the server does not answer (then it may be bound all the same).
pub async fn bind_pod(client: &Client, pod: &PodId, node: &str) -> Result<(), ApiError> {
    bind_pod_with(client, pod, node, json!({})).await
}

/// Binds the pod to the node and merges the annotations and labels of `patch`, which removes nothing, in the same write.
/// Labels only where [`binding_carries_labels`]; annotations are taken by every API server.
///
/// # Errors
/// As [`bind_pod`].
pub async fn bind_pod_with(client: &Client, pod: &PodId, node: &str, mut patch: Value) -> Result<(), ApiError> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
    let mut metadata = json!({"name": pod.name, "namespace": pod.namespace, "uid": pod.uid.as_str()});
    for part in ["annotations", "labels"] {
        if let Some(values) = patch.pointer_mut(&format!("/metadata/{part}")) {
            metadata[part] = values.take();
        }
    }
    let body = json!({
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": metadata,
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    });
    let params = PostParams::default();
    let request = api.create_subresource::<Value, Value>("binding", &pod.name, &params, &body);
    timed(|| format!("binding pod {pod} to node {node}"), REQUEST_TIME, request)
        .await
        .map(drop)
}

/// Whether the API server puts the labels of a Binding on the pod: by default since Kubernetes 1.35.
///
/// # Errors
/// The server does not answer, or says no version.
pub async fn binding_carries_labels(client: &Client) -> Result<bool, ApiError> {
    let doing = || "asking the API server's version".to_owned();
    let version = timed(doing, REQUEST_TIME, client.apiserver_version()).await?;
    // Some vendors write `35+`.
    let number = |text: &str| {
        text.trim_end_matches(|sign: char| !sign.is_ascii_digit())
            .parse::<u32>()
    };
    match (number(&version.major), number(&version.minor)) {
        (Ok(major), Ok(minor)) => Ok((major, minor) >= (1, 35)),
        _ => Err(ApiError::refused(
            doing(),
            format!("`{}.{}` is no version", version.major, version.minor),
        )),
    }
}

/// The pod as the server has it now; `None` if there is none of that name.
///
/// # Errors
/// The server does not answer, or the pod cannot be read.
pub async fn read_pod(client: &Client, namespace: &str, name: &str) -> Result<Option<PodView>, ApiError> {
    let api: Api<Trimmed<PodView>> = Api::namespaced(client.clone(), namespace);
    let doing = || format!("reading pod {namespace}/{name}");
    match timed(doing, REQUEST_TIME, api.get_opt(name)).await? {
        None => Ok(None),
        Some(found) => found.view.map(Some).map_err(|why| ApiError::refused(doing(), why)),
    }
}
