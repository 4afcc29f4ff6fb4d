//! How long the extender takes at the size of a real cluster: 1,000 nodes of 8 cards, 2,000 pods booked.
//!
//! Starts a real API server, fills it with Node and Pod objects, runs `tessera scheduler` against it, and asks
//! `/filter` (and `/prioritize` with `--mode all`) over HTTP on loopback as kube-scheduler does: names only, one
//! kept-alive connection, one pod after the other. Prints one JSON object.

#![expect(clippy::print_stdout, reason = "its output is its purpose")]

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use futures::stream::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tessera_e2e::interrupt::{Ended, until_signal};
use tessera_e2e::processes::{Service, used_by_tree};
use tessera_e2e::product::{Artefacts, Profile};
use tessera_testcluster::{Cluster, Progress, SchedulerConfig};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

struct Arguments {
    nodes: u32,
    cards: u32,
    pods: u32,
    calls: u32,
    mode: String,
}

impl Arguments {
    fn read() -> Result<Self> {
        let mut read = Self {
            nodes: 1000,
            cards: 8,
            pods: 2000,
            calls: 2000,
            mode: "one".to_owned(),
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let value = words.next().with_context(|| format!("{word} needs a value"))?;
            let number = || {
                value
                    .parse::<u32>()
                    .with_context(|| format!("{word} {value}: not a number"))
            };
            match word.as_str() {
                "--nodes" => read.nodes = number()?,
                "--cards" => read.cards = number()?,
                "--pods" => read.pods = number()?,
                "--calls" => read.calls = number()?,
                "--mode" => read.mode = value,
                _ => bail!("unknown option {word}; there are --nodes, --cards, --pods, --calls, --mode one|all"),
            }
        }
        Ok(read)
    }
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    match until_signal(run()).await? {
        Ended::Done(()) => Ok(ExitCode::SUCCESS),
        Ended::Interrupted(code) => Ok(code),
    }
}

async fn run() -> Result<()> {
    let arguments = Arguments::read()?;
    let artefacts = Artefacts::find(Profile::Release)?;
    let cluster = Cluster::builder()
        .without_node()
        .scheduler(SchedulerConfig::Off)
        .progress(Progress::silent())
        .start()
        .await?;
    let outcome = measure(&cluster, &artefacts, &arguments).await;
    cluster.stop().await?;
    println!("{}", serde_json::to_string_pretty(&outcome?)?);
    Ok(())
}

fn register(node: u32, cards: u32) -> String {
    let list: Vec<Value> = (0..cards)
        .map(|card| {
            json!({ "id": format!("GPU-{node:05}-{card}"), "index": card, "count": 10, "devmem": 40_960, "devcore": 100,
                "type": "NVIDIA-A100-SXM4-40GB", "numa": card / 4, "mode": "hami-core", "health": true })
        })
        .collect();
    Value::Array(list).to_string()
}

async fn fill(client: &kube::Client, a: &Arguments) -> Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    futures::stream::iter(0..a.nodes)
        .map(|n| {
            let nodes = nodes.clone();
            async move {
                let name = format!("node-{n:05}");
                let node: Node = serde_json::from_value(json!({ "metadata": { "name": name, "annotations": {
                    "hami.io/node-nvidia-register": register(n, a.cards), "tessera.dev/agent": "bench" } } }))?;
                nodes.create(&PostParams::default(), &node).await?;
                let slots = (a.cards * 10).to_string();
                let status = json!({ "status": { "capacity": { "nvidia.com/gpu": slots }, "allocatable": { "nvidia.com/gpu": slots } } });
                nodes.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await?;
                Ok::<_, anyhow::Error>(())
            }
        })
        .buffer_unordered(16)
        .try_collect::<Vec<_>>()
        .await
        .context("creating nodes")?;
    futures::stream::iter(0..a.pods)
        .map(|n| {
            let pods = pods.clone();
            async move {
                let (node, card) = (n % a.nodes, (n / a.nodes) % a.cards);
                let text = format!("GPU-{node:05}-{card},NVIDIA,4000,10:;");
                let mut pod = pod(&format!("booked-{n}"), 4000);
                pod["spec"]["nodeName"] = json!(format!("node-{node:05}"));
                pod["metadata"]["annotations"] = json!({
                    "hami.io/vgpu-node": format!("node-{node:05}"), "hami.io/vgpu-time": "1700000000",
                    "hami.io/vgpu-devices-allocated": text, "hami.io/vgpu-devices-to-allocate": text });
                let pod: Pod = serde_json::from_value(pod)?;
                pods.create(&PostParams::default(), &pod).await?;
                Ok::<_, anyhow::Error>(())
            }
        })
        .buffer_unordered(16)
        .try_collect::<Vec<_>>()
        .await
        .context("creating pods")?;
    Ok(())
}

fn pod(name: &str, mib: u32) -> Value {
    json!({ "metadata": { "name": name, "namespace": "default", "uid": name },
        "spec": { "containers": [{ "name": "main", "image": "x", "resources": { "limits": {
            "nvidia.com/gpu": "1", "nvidia.com/gpumem": mib.to_string(), "nvidia.com/gpucores": "10" } } }] } })
}

async fn measure(cluster: &Cluster, artefacts: &Artefacts, a: &Arguments) -> Result<Value> {
    let client = cluster.kube().await?;
    fill(&client, a).await?;
    let port = 19_390;
    let config = cluster.state_dir().join("device-config.yaml");
    std::fs::write(&config, include_str!("scheduler-bench.device-config.yaml"))?;
    let mut command = Command::new(&artefacts.tessera);
    command
        .args([
            "scheduler",
            "--scheduler-name",
            "hami-scheduler",
            "--metrics-bind-address",
            "127.0.0.1:19395",
        ])
        .args(["--http_bind", &format!("127.0.0.1:{port}"), "--filter-mode", &a.mode])
        .arg("--device-config-file")
        .arg(&config)
        .env("KUBECONFIG", cluster.kubeconfig());
    let mut service = Service::start(&mut command, &cluster.state_dir().join("scheduler.log"))?;
    ask(&mut service, port, a).await
}

async fn ask(service: &mut Service, port: u16, a: &Arguments) -> Result<Value> {
    let start = Instant::now();
    let mut connection = loop {
        if let Ok(mut connection) = Connection::open(port).await
            && connection.get("/readyz").await.is_ok_and(|(status, _)| status == 200)
        {
            break connection;
        }
        ensure!(
            start.elapsed() < Duration::from_secs(60),
            "the scheduler was not ready in 60 s"
        );
        ensure!(service.is_running()?, "the scheduler ended; see its log");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let ready = start.elapsed();
    let names: Vec<String> = (0..a.nodes).map(|n| format!("node-{n:05}")).collect();
    let mut times = Vec::new();
    for n in 0..a.calls {
        let pod = pod(&format!("new-{n}"), 1000 + (n % 8) * 500);
        let body = json!({ "Pod": pod, "Nodes": null, "NodeNames": names }).to_string();
        let begun = Instant::now();
        let (status, answer) = connection.post("/filter", &body).await?;
        if a.mode == "all" {
            connection.post("/prioritize", &body).await?;
        }
        times.push(begun.elapsed());
        ensure!(status == 200, "filter answered {status}: {answer}");
        if n == 0 {
            let answer: Value = serde_json::from_str(&answer)?;
            ensure!(
                answer["NodeNames"].as_array().is_some_and(|n| !n.is_empty()),
                "filter found no node: {answer}"
            );
        }
    }
    times.sort();
    let at = |share: f64| {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a small index"
        )]
        let index = ((times.len() as f64 - 1.0) * share) as usize;
        times.get(index).map_or(0.0, |t| t.as_secs_f64() * 1e3)
    };
    Ok(json!({
        "nodes": a.nodes, "cards_per_node": a.cards, "pods_booked": a.pods, "calls": a.calls, "mode": a.mode,
        "ready_ms": ready.as_secs_f64() * 1e3,
        "p50_ms": at(0.5), "p99_ms": at(0.99), "max_ms": at(1.0),
        "rss_mib": used_by_tree(service.pid())?.rss_kib / 1024,
    }))
}

/// One kept-alive HTTP/1.1 connection.
struct Connection(BufReader<TcpStream>);

impl Connection {
    async fn open(port: u16) -> Result<Self> {
        let socket = TcpStream::connect(("127.0.0.1", port)).await?;
        socket.set_nodelay(true)?;
        Ok(Self(BufReader::new(socket)))
    }

    async fn get(&mut self, path: &str) -> Result<(u16, String)> {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
            .await
    }

    async fn post(&mut self, path: &str, body: &str) -> Result<(u16, String)> {
        self.send(&format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ))
        .await
    }

    async fn send(&mut self, request: &str) -> Result<(u16, String)> {
        self.0.get_mut().write_all(request.as_bytes()).await?;
        let mut line = String::new();
        self.0.read_line(&mut line).await?;
        let status = line
            .split(' ')
            .nth(1)
            .and_then(|s| s.parse().ok())
            .with_context(|| format!("no status in {line:?}"))?;
        let mut length = 0;
        loop {
            line.clear();
            self.0.read_line(&mut line).await?;
            if line.trim().is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse()?;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).await?;
        Ok((status, String::from_utf8(body)?))
    }
}
