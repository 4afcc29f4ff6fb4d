//! Cases for tests.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test file uses a part; helpers of tests"
)]

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use tessera_engine::Vendors;
use tessera_simulator::{Case, ClassArgs};

pub fn vendors() -> Arc<Vendors> {
    ClassArgs::default().load().unwrap()
}

/// A part of the published data: every `each`th node, the first `pods` pods.
pub fn openb(trace: &str, each: usize, pods: usize) -> (String, String) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/openb");
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let nodes = read("openb_node_list_gpu_node.csv");
    let (head, lines) = nodes.split_once('\n').unwrap();
    let lines: Vec<&str> = lines.lines().step_by(each).collect();
    let nodes = format!("{head}\n{}\n", lines.join("\n"));
    let list: Vec<String> = read(&format!("openb_pod_list_{trace}.csv"))
        .lines()
        .take(pods + 1)
        .map(str::to_owned)
        .collect();
    (nodes, list.join("\n") + "\n")
}

pub fn case(nodes: &str, pods: &str) -> Case {
    Case::from_openb(("nodes.csv", nodes), ("pods.csv", pods), &vendors()).unwrap()
}

/// A node as the API server gives it. `cards`: id and link scores by peer.
pub fn node(name: &str, cards: &[&str], links: &Value) -> Value {
    let register: Vec<Value> = cards
        .iter()
        .enumerate()
        .map(|(index, id)| {
            json!({"id": id, "index": index, "count": 10, "devmem": 16000, "devcore": 100, "type": "NVIDIA-A100",
                "numa": 0, "mode": "hami-core", "health": true})
        })
        .collect();
    let mut annotations = json!({"hami.io/node-nvidia-register": Value::from(register).to_string(),
        "example.com/secret": "hunter2"});
    if !links.is_null() {
        annotations["hami.io/node-nvidia-score"] = json!(links.to_string());
    }
    json!({"metadata": {"name": name, "annotations": annotations, "labels": {"pool": "a", "owner": "somebody"}},
        "status": {"allocatable": {"cpu": "32", "memory": "128Gi", "nvidia.com/gpu": (10 * cards.len()).to_string()}}})
}

/// A pod of a ReplicaSet as the API server gives it; on `node`, with `memory` MiB of each card of `cards`.
pub fn pod(name: &str, node: &str, cards: &[&str], memory: u32) -> Value {
    let shares: Vec<String> = cards.iter().map(|card| format!("{card},NVIDIA,{memory},0")).collect();
    let text = format!("{}:;", shares.join(":"));
    json!({"metadata": {"name": name, "namespace": "team-blue", "uid": format!("uid-{name}"),
            "creationTimestamp": "2026-11-01T10:00:00Z",
            "ownerReferences": [{"kind": "ReplicaSet", "name": "rs", "controller": true}],
            "annotations": {"hami.io/vgpu-node": node, "hami.io/vgpu-time": "1", "hami.io/bind-phase": "success",
                "hami.io/vgpu-devices-allocated": text, "hami.io/vgpu-devices-to-allocate": ";"}},
        "spec": {"nodeName": node, "containers": [{"name": "main", "args": ["--password=hunter2"],
            "env": [{"name": "TOKEN", "value": "hunter2"}],
            "resources": {"limits": {"nvidia.com/gpu": cards.len().to_string(), "nvidia.com/gpumem": memory.to_string()},
                "requests": {"cpu": "1", "memory": "1Gi"}}}]},
        "status": {"phase": "Running"}})
}
