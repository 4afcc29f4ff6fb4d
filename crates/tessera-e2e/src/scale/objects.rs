//! The objects of a large cluster: nodes that nobody runs, their leases, and pods that ask for a share.

use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::stream::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Node, ServiceAccount};
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

/// Requests on the way at once while objects are made.
pub(super) const CLIENTS: usize = 16;
/// The name under which pods ask to be scheduled.
pub(super) const SCHEDULER: &str = "scale-scheduler";
/// How often a kubelet renews its lease.
const LEASE: Duration = Duration::from_secs(10);

/// The name of a node.
pub(super) fn node_name(number: u32) -> String {
    format!("node-{number:05}")
}

/// The register of a node with `cards` cards of `slots` slots each.
fn register(node: &str, cards: u32, slots: u32) -> String {
    let list: Vec<Value> = (0..cards)
        .map(|card| {
            json!({ "id": format!("GPU-{node}-{card}"), "index": card, "count": slots, "devmem": 40_960, "devcore": 100,
                "type": "NVIDIA-A100-SXM4-40GB", "numa": card / 4, "mode": "hami-core", "health": true })
        })
        .collect();
    Value::Array(list).to_string()
}

/// Makes a ready node with `cards` cards, served by our own agent as far as the scheduler can see.
///
/// The amounts of all resources are on the node, so that kube-scheduler alone can count the same pods.
pub(super) async fn create_node(client: &Client, name: &str, cards: u32, slots: u32) -> Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let node: Node = serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name }, "annotations": {
            "hami.io/node-nvidia-register": register(name, cards, slots), "tessera.dev/agent": "scale" } },
    }))?;
    nodes.create(&PostParams::default(), &node).await?;
    let amounts = json!({ "cpu": "64", "memory": "512Gi", "pods": "250", "nvidia.com/gpu": (cards * slots).to_string(),
        "nvidia.com/gpumem": (cards * 40_960).to_string(), "nvidia.com/gpucores": (cards * 100).to_string() });
    let now = jiff::Timestamp::now().to_string();
    let status = json!({ "status": { "capacity": amounts, "allocatable": amounts, "conditions": [
        { "type": "Ready", "status": "True", "reason": "Scale", "message": "", "lastHeartbeatTime": now,
          "lastTransitionTime": now }] } });
    nodes
        .patch_status(name, &PatchParams::default(), &Patch::Merge(&status))
        .await?;
    Ok(())
}

/// Makes `count` nodes and a lease for each.
pub(super) async fn create_nodes(client: &Client, count: u32, cards: u32) -> Result<()> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
    futures::stream::iter(0..count)
        .map(|number| {
            let leases = leases.clone();
            async move {
                let name = node_name(number);
                create_node(client, &name, cards, 10).await?;
                let lease: Lease = serde_json::from_value(json!({
                    "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": { "name": name },
                    "spec": { "holderIdentity": name, "leaseDurationSeconds": 40 } }))?;
                leases.create(&PostParams::default(), &lease).await?;
                Ok::<_, anyhow::Error>(())
            }
        })
        .buffer_unordered(CLIENTS)
        .try_collect::<Vec<()>>()
        .await
        .context("creating nodes")?;
    Ok(())
}

/// Renews the leases of `count` nodes as their kubelets would, evenly spread over time, for ever.
pub(super) async fn renew_leases(client: Client, count: u32) {
    let leases: Api<Lease> = Api::namespaced(client, "kube-node-lease");
    let mut tick = tokio::time::interval(LEASE / count.max(1));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    for number in (0..count).cycle() {
        tick.tick().await;
        let renewed = json!({ "spec": { "renewTime": format!("{:.6}", jiff::Timestamp::now()) } });
        // A renewal that fails is a renewal that did not happen; nobody ends a node for it here.
        drop(
            leases
                .patch(&node_name(number), &PatchParams::default(), &Patch::Merge(&renewed))
                .await,
        );
    }
}

/// Makes a namespace in which pods may be made at once.
pub(super) async fn create_namespace(client: &Client, name: &str) -> Result<()> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let object = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
    namespaces
        .create(&PostParams::default(), &serde_json::from_value(object)?)
        .await
        .with_context(|| format!("creating namespace {name}"))?;
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), name);
    crate::stage::wait_for("the default service account", Duration::from_secs(60), async || {
        Ok(accounts.get_opt("default").await?.is_some())
    })
    .await
}

/// A pod that asks for a tenth of a card; on `node`, if one is named.
pub(super) fn pod(name: &str, node: Option<&str>) -> Value {
    let limits = json!({ "cpu": "100m", "memory": "64Mi", "nvidia.com/gpu": "1", "nvidia.com/gpumem": "2000",
        "nvidia.com/gpucores": "5" });
    let selector = node.map(|node| json!({ "kubernetes.io/hostname": node }));
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
        "spec": { "schedulerName": SCHEDULER, "automountServiceAccountToken": false, "nodeSelector": selector,
            "containers": [{ "name": "main", "image": "none", "resources": { "limits": limits } }] },
    })
}
