//! The agent with a real kubelet, a real runtime and a real API server; only
//! the driver is simulated, and the test is the scheduler.

#![expect(clippy::unwrap_used, reason = "the set-up of a test may end it")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, DeleteParams, LogParams, PostParams};
use serde_json::json;
use tessera_agent::kube::KubeCluster;
use tessera_agent::{AgentArgs, serve};
use tessera_kube::events;
use tessera_kube::watch::Freshness;
use tessera_testcluster::{Cluster, Component, Progress, SchedulerConfig, available, image, wait};
use tessera_wire::keys;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

#[path = "support/driver.rs"]
mod driver;
use driver::{library, machine};

const DEADLINE: Duration = Duration::from_secs(120);
const RESOURCE: &str = "nvidia.com/gpu";

/// What a program in the container finds.
const PROGRAM: &str = r#"
import ctypes, json, os
from ctypes import byref
out = {"dev": sorted(n for n in os.listdir("/dev") if n.startswith("nvidia"))}
out["grant_writable"] = os.access("/run/tessera/grant/grant", os.W_OK)
cuda = ctypes.CDLL("libcuda.so.1")
out["init"] = cuda.cuInit(0)
device, context = ctypes.c_int(), ctypes.c_void_p()
count, free, total = ctypes.c_int(), ctypes.c_size_t(), ctypes.c_size_t()
out["get"] = cuda.cuDeviceGet(byref(device), 0)
cuda.cuDeviceGetCount(byref(count))
out["count"] = count.value
out["create"] = cuda.cuCtxCreate_v2(byref(context), 0, device)
out["info"] = cuda.cuMemGetInfo_v2(byref(free), byref(total))
out["total_mib"] = total.value >> 20
pointer = ctypes.c_uint64()
size = ctypes.c_size_t(2000 << 20)
out["first"] = cuda.cuMemAlloc_v2(byref(pointer), size)
out["second"] = cuda.cuMemAlloc_v2(byref(pointer), size)
print(json.dumps(out), flush=True)
"#;

#[derive(Debug, Parser)]
struct Command {
    #[command(flatten)]
    agent: AgentArgs,
}

struct Agent {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Agent {
    fn start(cluster: &Cluster, client: &kube::Client, driver: &Path) -> Self {
        let own = cluster.state_dir().join("agent");
        let at = |flag: &str, path: PathBuf| format!("--{flag}={}", path.display());
        let kubelet = cluster.kubelet_dir();
        let arguments = [
            "agent".to_owned(),
            format!("--node-name={}", cluster.node_name()),
            at("node-config-file", own.join("config.json")),
            at("nvidia-driver-root", driver.to_owned()),
            at("driver-root-ctr-path", driver.to_owned()),
            at("kubelet-socket", kubelet.join("device-plugins/kubelet.sock")),
            at("pod-resources-socket", kubelet.join("pod-resources/kubelet.sock")),
            at("grants-dir", own.join("grants")),
            at("hook-path", own.join("hook")),
            at("library", library()),
            "--device-list-strategy=direct".to_owned(),
            "--listen=".to_owned(),
        ];
        let settings = Command::try_parse_from(arguments).unwrap().agent.settings().unwrap();
        let stop = CancellationToken::new();
        let (recorder, writer) = events::record(client.clone(), "tessera-agent".into(), stop.clone());
        tokio::spawn(writer);
        let api = KubeCluster::new(client.clone(), settings.node.clone(), recorder);
        let (sender, changes) = mpsc::channel(256);
        let freshness = Freshness::default();
        tokio::spawn({
            let (api, freshness, stop) = (api.clone(), freshness.clone(), stop.clone());
            async move { api.follow(sender, freshness, stop).await }
        });
        let task = tokio::spawn(serve(settings, api, changes, Arc::new(freshness), stop.clone()));
        Self { stop, task }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

fn pod(name: &str, node: &str, card: &str, mib: u64) -> Pod {
    let text = format!("{card},NVIDIA,{mib},30:;");
    serde_json::from_value(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "annotations": {
                keys::VGPU_NODE: node,
                keys::NVIDIA_ALLOCATED: text,
                keys::BIND_PHASE: "allocating",
                keys::BIND_TIME: "1705054796",
                keys::TESSERA_SCHEDULER: "test",
            },
        },
        "spec": {
            "nodeName": node,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "main",
                "image": "tessera.dev/agent-test:1",
                "imagePullPolicy": "Never",
                "command": ["python3", "-c", PROGRAM],
                "resources": {"limits": {RESOURCE: "1"}},
            }],
        },
    }))
    .unwrap()
}

fn allocatable(node: Option<&Node>) -> Option<String> {
    let status = node?.status.as_ref()?;
    Some(status.allocatable.as_ref()?.get(RESOURCE)?.0.clone())
}

async fn await_cards(client: &kube::Client, cluster: &Cluster) {
    let nodes: Api<Node> = Api::all(client.clone());
    let twenty = |node: Option<&Node>| allocatable(node).as_deref() == Some("20");
    wait::await_condition(&nodes, cluster.node_name(), "20 slots", twenty, DEADLINE)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_kubelet_starts_containers_with_their_limits() {
    if let Err(reason) = available() {
        println!("skipped: {reason}");
        return;
    }
    let Some(driver) = machine("a_real_kubelet_starts_containers_with_their_limits") else {
        return;
    };
    let cluster = Cluster::builder()
        .scheduler(SchedulerConfig::Off)
        .start()
        .await
        .unwrap();
    let image =
        tokio::task::spawn_blocking(|| image::Builder::debian("tessera.dev/agent-test:1").build(&Progress::silent()));
    let image = image.await.unwrap().unwrap();
    cluster.load_image(&image).await.unwrap();
    let client = cluster.kube().await.unwrap();
    let agent = Agent::start(&cluster, &client, &driver);
    await_cards(&client, &cluster).await;
    let nodes: Api<Node> = Api::all(client.clone());
    let published = |node: Option<&Node>| {
        node.and_then(|node| node.metadata.annotations.as_ref())
            .is_some_and(|annotations| annotations.contains_key(keys::NVIDIA_REGISTER))
    };
    let node = wait::await_condition(&nodes, cluster.node_name(), "published", published, DEADLINE)
        .await
        .unwrap()
        .unwrap();
    let register = node.metadata.annotations.unwrap()[keys::NVIDIA_REGISTER].clone();
    let cards: serde_json::Value = serde_json::from_str(&register).unwrap();
    let card = cards[1]["id"].as_str().unwrap();
    let mark = cluster.audit().mark();

    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    pods.create(&PostParams::default(), &pod("one", cluster.node_name(), card, 3000))
        .await
        .unwrap();
    let done = wait::pod_phase("Succeeded");
    wait::await_condition(&pods, "one", "the program ending", done, DEADLINE)
        .await
        .unwrap();
    let log = pods.logs("one", &LogParams::default()).await.unwrap();
    let found: serde_json::Value = serde_json::from_str(log.trim()).unwrap();
    assert_eq!(
        found,
        json!({
            "dev": ["nvidia-uvm", "nvidia1", "nvidiactl"],
            "grant_writable": false,
            "init": 0, "get": 0, "count": 1, "create": 0, "info": 0,
            "total_mib": 3000, "first": 0, "second": 2,
        })
    );
    let ours = cluster
        .audit()
        .count_since(mark, |event| {
            event.is_write()
                && event
                    .object_ref
                    .as_ref()
                    .is_some_and(|object| object.resource == "pods")
                && !event.user.username.starts_with("system:")
        })
        .unwrap();
    assert_eq!(
        ours, 1,
        "the pod was created by the test and written by nobody else of ours"
    );

    // A kubelet that comes back finds the plugin again, and an agent that comes
    // back serves on.
    cluster.restart(Component::Kubelet).await.unwrap();
    await_cards(&client, &cluster).await;
    agent.stop().await;
    let agent = Agent::start(&cluster, &client, &driver);
    await_cards(&client, &cluster).await;
    pods.create(&PostParams::default(), &pod("two", cluster.node_name(), card, 1000))
        .await
        .unwrap();
    let done = wait::pod_phase("Succeeded");
    wait::await_condition(&pods, "two", "the program ending", done, DEADLINE)
        .await
        .unwrap();
    let log = pods.logs("two", &LogParams::default()).await.unwrap();
    let found: serde_json::Value = serde_json::from_str(log.trim()).unwrap();
    assert_eq!(
        (found["total_mib"].as_u64(), found["first"].as_u64()),
        (Some(1000), Some(2))
    );
    for name in ["one", "two"] {
        pods.delete(name, &DeleteParams::default()).await.unwrap();
    }
    agent.stop().await;
    cluster.stop().await.unwrap();
}
