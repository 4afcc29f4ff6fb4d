//! The time of one `/filter` over HTTP and JSON, at the size of a large cluster.
//!
//! `filter_cost [nodes] [pods] [calls]`: 5,000 nodes of 8 cards with 100,000 pods and 2,000 calls unless said otherwise.
//! The books are filled by the events that a watch would bring; the service listens on loopback as it always does. One
//! caller asks over one kept-alive connection with the names of all nodes, as kube-scheduler does, pods of eight shapes
//! in turn. What is chosen stays booked, so one node changes between two calls. Prints one JSON object.

#![expect(clippy::print_stdout, reason = "its output is its purpose")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tessera_engine::{Defaults, Engine, admission};
use tessera_extender::{App, Cluster, FilterMode, Guard, Parts, Routes, Settings, WriteAt, router};
use tessera_http::{Health, Limits, Listener, serve};
use tessera_kube::books::{self, Input, SteadyClock};
use tessera_kube::events::Recorder;
use tessera_kube::objects::{Kind, Trimmed};
use tessera_kube::reach::Reach;
use tessera_kube::script::{self, Reply};
use tessera_kube::watch::Change;
use tessera_wire::config::DeviceConfig;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

const CARDS: usize = 8;

fn node_name(number: usize) -> String {
    format!("node-{number:05}")
}

fn node(number: usize) -> Value {
    let cards: Vec<Value> = (0..CARDS)
        .map(|card| {
            json!({"id": format!("GPU-{number:05}-{card}"), "index": card, "count": 10, "devmem": 81_920, "devcore": 100,
                "type": "NVIDIA-H100", "numa": card / 4, "mode": "hami-core", "health": true})
        })
        .collect();
    json!({"metadata": {"name": node_name(number), "annotations": {
        "hami.io/node-nvidia-register": Value::from(cards).to_string(), "tessera.dev/agent": "cost"}}})
}

fn pod(name: &str, memory: usize) -> Value {
    let limits = json!({"nvidia.com/gpu": "1", "nvidia.com/gpumem": memory.to_string(), "nvidia.com/gpucores": "5"});
    json!({"metadata": {"name": name, "namespace": "default", "uid": name},
        "spec": {"containers": [{"name": "main", "image": "image", "resources": {"limits": limits}}]}})
}

fn booked(number: usize, nodes: usize) -> Value {
    let (on, card) = (number % nodes, (number / nodes) % CARDS);
    let memory = 1000 + number % 7;
    let text = format!("GPU-{on:05}-{card},NVIDIA,{memory},5:;");
    let mut pod = pod(&format!("booked-{number}"), memory);
    pod["spec"]["nodeName"] = json!(node_name(on));
    pod["metadata"]["annotations"] = json!({"hami.io/vgpu-node": node_name(on), "hami.io/vgpu-time": "1700000000",
        "hami.io/vgpu-devices-allocated": text, "hami.io/vgpu-devices-to-allocate": text});
    pod
}

fn listed<V: Kind>(object: Value) -> Result<Change<V>> {
    let trimmed: Trimmed<V> = serde_json::from_value(object)?;
    Ok(Change::Listed(Box::new(trimmed)))
}

async fn fill(inputs: &mpsc::Sender<Input>, nodes: usize, pods: usize) -> Result<()> {
    inputs.send(Input::Node(Change::Restarted)).await?;
    for number in 0..nodes {
        inputs.send(Input::Node(listed(node(number))?)).await?;
    }
    inputs.send(Input::Node(Change::Complete)).await?;
    inputs.send(Input::Pod(Change::Restarted)).await?;
    for number in 0..pods {
        inputs.send(Input::Pod(listed(booked(number, nodes))?)).await?;
    }
    inputs.send(Input::Pod(Change::Complete)).await?;
    inputs.send(Input::Quota(Change::Restarted)).await?;
    inputs.send(Input::Quota(Change::Complete)).await?;
    Ok(())
}

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |otherwise: usize| -> Result<usize> {
        arguments.next().map_or(Ok(otherwise), |text| {
            text.parse().with_context(|| format!("{text}: not a number"))
        })
    };
    let (nodes, pods, calls) = (number(5000)?, number(100_000)?, number(2000)?);
    let mut config = DeviceConfig::default();
    config.nvidia.get_or_insert_default();
    let vendors = tessera_vendors::from_config(&config);
    let stop = CancellationToken::new();
    let (books, inputs, keeper) = books::open(Arc::clone(&vendors), SteadyClock::default(), stop.clone());
    tokio::spawn(keeper);
    fill(&inputs, nodes, pods).await?;
    books.wait_synced().await?;
    // Filter writes nothing, so nobody is asked.
    let (client, _log) = script::client(|_| Reply::Lost);
    let (recorder, _notes) = Recorder::channel(64);
    let (_reach, reach) = watch::channel(Reach {
        since: tokio::time::Instant::now(),
        state: Ok(()),
    });
    let app = App::new(
        Parts {
            engine: Engine::new(vendors, Defaults::default()),
            books,
            cluster: Cluster::new(client, Duration::from_secs(300)),
            recorder,
            health: Health::default(),
            reach,
            sighting: None,
        },
        Settings {
            filter_mode: FilterMode::One,
            write_at: WriteAt::Bind,
            assume_time: Duration::from_secs(600),
            sync_wait: Duration::ZERO,
            lock_retry: Duration::ZERO,
            admit: admission::Settings::default(),
        },
    );
    let listener = Listener::bind("127.0.0.1:0", "extender", "--http_bind").await?;
    let address = listener.address();
    let routes = router(&app, Routes::All(Guard::Near));
    let serving = tokio::spawn(serve(listener, None, routes, Limits::default(), stop.clone()));
    let times = tokio::task::spawn_blocking(move || ask(address, nodes, calls)).await??;
    stop.cancel();
    serving.await?;
    let at = |percent: usize| {
        let index = times.len().saturating_sub(1) * percent / 100;
        times.get(index).map_or(0, Duration::as_micros)
    };
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let memory = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    let figures = json!({"nodes": nodes, "cards": nodes * CARDS, "pods": pods, "calls": calls, "p50_us": at(50),
        "p99_us": at(99), "max_us": at(100), "rss_mib": memory.map(|kib| kib / 1024)});
    println!("{figures}");
    Ok(())
}

fn ask(address: SocketAddr, nodes: usize, calls: usize) -> Result<Vec<Duration>> {
    let socket = TcpStream::connect(address).context("connecting")?;
    socket.set_nodelay(true)?;
    let mut socket = BufReader::new(socket);
    let names: Vec<String> = (0..nodes).map(node_name).collect();
    let mut times = Vec::with_capacity(calls);
    for number in 0..calls {
        let pod = pod(&format!("new-{number}"), 2000 + 100 * (number % 8));
        let body = json!({"Pod": pod, "Nodes": null, "NodeNames": names}).to_string();
        let head = format!(
            "POST /filter HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let request = [head.as_bytes(), body.as_bytes()].concat();
        let begun = Instant::now();
        socket.get_mut().write_all(&request)?;
        let mut line = String::new();
        let mut length = 0;
        loop {
            line.clear();
            socket.read_line(&mut line)?;
            let field = line.trim().to_ascii_lowercase();
            if field.is_empty() {
                break;
            }
            if let Some(value) = field.strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
        }
        let mut answer = vec![0; length];
        socket.read_exact(&mut answer)?;
        times.push(begun.elapsed());
        let answer: Value = serde_json::from_slice(&answer)?;
        ensure!(
            answer["NodeNames"].as_array().is_some_and(|names| names.len() == 1),
            "no node was chosen: {answer}"
        );
    }
    times.sort();
    Ok(times)
}
