//! The whole agent in this process: driver, kubelet, API server and health page
//! are the outside.

#![expect(clippy::unwrap_used, reason = "the set-up of a test may end it")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use tessera_agent::{AgentArgs, ApiHealth, serve};
use tessera_kubelet::fake::FakeKubelet;
use tessera_wire::keys;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio_util::sync::CancellationToken;

#[path = "support/driver.rs"]
mod driver;
mod support;
use driver::{drive, machine};
use support::{Api, DEADLINE, Pod, RESOURCE};

struct Alive;

impl ApiHealth for Alive {
    fn age(&self) -> Option<Duration> {
        Some(Duration::ZERO)
    }
}

#[derive(Debug, Parser)]
struct Command {
    #[command(flatten)]
    agent: AgentArgs,
}

struct Node {
    root: tempfile::TempDir,
    port: u16,
}

impl Node {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("libvgpu.so"), "library").unwrap();
        // Free a moment ago; nothing else takes such ports here.
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        Self { root, port }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn plugin_dir(&self) -> PathBuf {
        self.path("kubelet/device-plugins")
    }

    fn arguments(&self, driver: &Path, more: &[&str]) -> AgentArgs {
        let at = |flag: &str, path: PathBuf| format!("--{flag}={}", path.display());
        let mut arguments = vec![
            "agent".to_owned(),
            "--node-name=n1".to_owned(),
            at("node-config-file", self.path("config.json")),
            at("nvidia-driver-root", driver.to_owned()),
            at("driver-root-ctr-path", driver.to_owned()),
            at("kubelet-socket", self.plugin_dir().join("kubelet.sock")),
            at("pod-resources-socket", self.path("kubelet/pod-resources/kubelet.sock")),
            at("grants-dir", self.path("grants")),
            at("hook-path", self.path("hook")),
            at("library", self.path("libvgpu.so")),
            at("cdi-dir", self.path("cdi")),
            at("sysfs", self.path("sys")),
            format!("--listen=127.0.0.1:{}", self.port),
        ];
        arguments.extend(more.iter().map(|one| (*one).to_owned()));
        Command::try_parse_from(arguments).unwrap().agent
    }

    fn start(&self, driver: &Path, more: &[&str]) -> (Api, Agent) {
        let settings = self.arguments(driver, more).settings().unwrap();
        let (api, changes) = Api::new();
        let stop = CancellationToken::new();
        let task = tokio::spawn(serve(settings, api.clone(), changes, Arc::new(Alive), stop.clone()));
        (api, Agent { stop, task })
    }

    /// Status and body of a page.
    async fn page(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        let status = text.split(' ').nth(1)?.parse().ok()?;
        let body = text.split_once("\r\n\r\n")?.1.to_owned();
        Some((status, body))
    }

    async fn page_until(&self, path: &str, wanted: impl Fn(u16, &str) -> bool) -> String {
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        let wait = async {
            loop {
                tick.tick().await;
                if let Some((status, body)) = self.page(path).await
                    && wanted(status, &body)
                {
                    return body;
                }
            }
        };
        match tokio::time::timeout(DEADLINE, wait).await {
            Ok(body) => body,
            Err(_) => panic!("{path} is {:?}", self.page(path).await),
        }
    }
}

struct Agent {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Agent {
    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_driver_the_page_says_so_and_the_kubelet_keeps_its_capacity() {
    let node = Node::new();
    let kubelet = FakeKubelet::start(&node.path("kubelet")).unwrap();
    let (_api, agent) = node.start(&node.path("driver"), &[]);
    let problems = node
        .page_until("/readyz", |status, body| {
            status == 503 && body.contains("install the driver")
        })
        .await;
    assert!(problems.contains("kubelet: not registered"), "{problems}");
    assert_eq!(node.page("/healthz").await.unwrap().0, 200);
    let metrics = node.page("/metrics").await.unwrap().1;
    assert!(metrics.contains("tessera_agent_kubelet_stream_up 0"), "{metrics}");
    assert_eq!(kubelet.registrations(), 0);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_named() {
    let node = Node::new();
    let _taken = TcpListener::bind(("127.0.0.1", node.port)).await.unwrap();
    let (_api, agent) = node.start(&node.path("driver"), &[]);
    let error = format!("{:#}", agent.task.await.unwrap().unwrap_err());
    assert!(
        error.contains(&node.port.to_string()) && error.contains("--listen"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_driver_s_cards_are_served_published_and_withdrawn_when_sick() {
    let name = "the_driver_s_cards_are_served_published_and_withdrawn_when_sick";
    let Some(root) = machine(name) else { return };
    let node = Node::new();
    let kubelet = FakeKubelet::start(&node.path("kubelet")).unwrap();
    let (api, agent) = node.start(&root, &["--device-list-strategy=direct"]);
    let list = kubelet
        .await_devices(RESOURCE, DEADLINE, |list| list.len() == 20)
        .await
        .unwrap();
    node.page_until("/readyz", |status, _| status == 200).await;
    api.until("published", |api| api.node().contains_key(keys::NVIDIA_REGISTER))
        .await;
    let text = api.node()[keys::NVIDIA_REGISTER].clone();
    assert!(
        text.contains(r#""devmem":40960,"devcore":100,"type":"NVIDIA A100-SXM4-40GB""#),
        "{text}"
    );

    let card = list[10].id.rsplit_once('-').unwrap().0.to_owned();
    let pod = Pod::new("p").container("c", &[(&card, 3000, 30)]);
    api.put(&pod);
    kubelet.admit(RESOURCE, &pod.for_kubelet()).await.unwrap();
    kubelet.start_container(RESOURCE, &pod.uid(), "c").await.unwrap();
    let response = kubelet.records()[0].response.clone();
    let mounts: Vec<&str> = response
        .mounts
        .iter()
        .map(|mount| mount.container_path.as_str())
        .collect();
    for wanted in [
        "/dev/nvidiactl",
        "/dev/nvidia1",
        "/usr/lib64/libcuda.so.1",
        "/usr/lib64/libnvidia-ml.so.1",
    ] {
        assert!(mounts.contains(&wanted), "{wanted} is not in {mounts:?}");
    }
    assert!(!mounts.contains(&"/dev/nvidia0"));

    drive(&root, "fault", &["lost", "1"]);
    kubelet
        .await_devices(RESOURCE, DEADLINE, |list| {
            list.iter().filter(|device| device.health == "Unhealthy").count() == 10
        })
        .await
        .unwrap();
    api.until("published as sick", |api| api.node()[keys::NVIDIA_REGISTER] != text)
        .await;
    drive(&root, "reset", &[]);
    kubelet
        .await_devices(RESOURCE, DEADLINE, |list| {
            list.len() == 20 && list.iter().all(|device| device.health == "Healthy")
        })
        .await
        .unwrap();
    api.until("published as well", |api| api.node()[keys::NVIDIA_REGISTER] == text)
        .await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_plugin_on_the_resource_is_named_and_outlived() {
    let Some(root) = machine("another_plugin_on_the_resource_is_named_and_outlived") else {
        return;
    };
    let node = Node::new();
    let kubelet = FakeKubelet::start(&node.path("kubelet")).unwrap();
    let path = node.plugin_dir().join("nvidia-gpu.sock");
    let other = UnixListener::bind(&path).unwrap();
    let (api, agent) = node.start(&root, &[]);
    api.until("published", |api| api.node().contains_key(keys::NVIDIA_REGISTER))
        .await;
    assert_eq!(kubelet.registrations(), 0);
    node.page_until("/readyz", |status, body| {
        status == 503 && body.contains("not registered")
    })
    .await;
    drop(other);
    kubelet
        .await_devices(RESOURCE, DEADLINE, |list| list.len() == 20)
        .await
        .unwrap();
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cdi_containers_get_names_that_the_file_defines() {
    let Some(root) = machine("cdi_containers_get_names_that_the_file_defines") else {
        return;
    };
    let node = Node::new();
    let kubelet = FakeKubelet::start(&node.path("kubelet")).unwrap();
    let (api, agent) = node.start(&root, &["--device-list-strategy=cdi-cri"]);
    let list = kubelet
        .await_devices(RESOURCE, DEADLINE, |list| list.len() == 20)
        .await
        .unwrap();
    let card = list[0].id.rsplit_once('-').unwrap().0.to_owned();
    let pod = Pod::new("p").container("c", &[(&card, 3000, 0)]);
    api.put(&pod);
    kubelet.admit(RESOURCE, &pod.for_kubelet()).await.unwrap();
    let response = kubelet.records()[0].response.clone();
    assert_eq!(
        response.cdi_devices[0].name,
        format!("k8s.device-plugin.nvidia.com/gpu={card}")
    );
    assert!(
        response
            .mounts
            .iter()
            .all(|mount| !mount.container_path.starts_with("/dev"))
    );
    let file = node.path("cdi/k8s.device-plugin.nvidia.com-gpu.json");
    let spec: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    assert_eq!(spec["devices"][0]["name"], card);
    agent.stop().await;
}
