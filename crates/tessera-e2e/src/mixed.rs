//! Pods of several makers on one node: what each asks for, what its containers must find, and what the node may hold.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, DeleteParams, ListParams, LogParams};
use serde_json::{Value, json};

use crate::product;
use crate::stage::{ALLOCATED, Stage, annotation, bound, phase, wait_for};
use crate::storm::{Dice, Whom, failed, kill_ours, metrics_page};

/// The node of the mixed suites: our agent's cards and those of five players.
pub const CARDS: &str = "cards:
  - {model: A100-SXM4-40GB, count: 4}
  - {vendor: ascend, model: 910B3, count: 4}
  - {vendor: hygon, model: K100_AI, count: 4}
  - {vendor: metax, model: MXC500, count: 4}
  - {vendor: intel, model: Arc-Pro-B60, count: 4}
  - {vendor: cambricon, model: MLU370-X8, count: 4}
";

/// A class on the mixed node.
#[derive(Debug, Clone, Copy)]
pub struct Maker {
    /// Name for people and in pods' names.
    pub name: &'static str,
    /// A small share.
    pub ask: &'static [(&'static str, &'static str)],
    /// Annotation of the pod that says what it was given.
    pub allocated: &'static str,
    /// Variable of the container that says what it got: cards by id, or by index.
    pub shows: &'static str,
    /// Node lock that a pod of this maker takes.
    pub lock: Option<&'static str>,
}

/// The makers with a player on the mixed node.
pub const MAKERS: &[Maker] = &[
    Maker {
        name: "ascend",
        ask: &[
            ("huawei.com/Ascend910B3", "1"),
            ("huawei.com/Ascend910B3-memory", "16000"),
        ],
        allocated: "hami.io/Ascend910B3-devices-allocated",
        shows: "ASCEND_VISIBLE_DEVICES",
        lock: Some("hami.io/mutex.lock"),
    },
    Maker {
        name: "hygon",
        ask: &[
            ("hygon.com/dcunum", "1"),
            ("hygon.com/dcumem", "6000"),
            ("hygon.com/dcucores", "10"),
        ],
        allocated: "hami.io/dcu-devices-allocated",
        shows: "SIMULATED_CARDS",
        lock: Some("hami.io/mutex.lock"),
    },
    Maker {
        name: "metax",
        ask: &[
            ("metax-tech.com/sgpu", "1"),
            ("metax-tech.com/vcore", "10"),
            ("metax-tech.com/vmemory", "6"),
        ],
        allocated: "hami.io/metax-sgpu-devices-allocated",
        shows: "SIMULATED_CARDS",
        lock: Some("hami.io/mutex.lock"),
    },
    Maker {
        name: "intel",
        ask: &[
            ("intel.com/gpu", "1"),
            ("intel.com/gpumem", "2400"),
            ("intel.com/gpucores", "10"),
        ],
        allocated: "hami.io/intel-gpu-devices-allocated",
        shows: "SIMULATED_CARDS",
        lock: None,
    },
    Maker {
        name: "cambricon",
        ask: &[
            ("cambricon.com/vmlu", "1"),
            ("cambricon.com/mlu.smlu.vmemory", "9"),
            ("cambricon.com/mlu.smlu.vcore", "10"),
        ],
        allocated: "hami.io/cambricon-mlu-devices-allocated",
        shows: "SIMULATED_CARDS",
        lock: Some("cambricon.com/dsmlu.lock"),
    },
];

/// A container that prints its variables as one JSON object and stays, or ends.
#[must_use]
pub fn container(name: &str, asks: &[(&str, &str)], hold: bool) -> Value {
    let limits: BTreeMap<&str, &str> = asks.iter().copied().collect();
    let then = if hold { "; import time; time.sleep(86400)" } else { "" };
    json!({
        "name": name,
        "image": product::SAMPLE_IMAGE,
        "imagePullPolicy": "Never",
        "command": ["python3", "-c", format!("import os, json; print(json.dumps(dict(os.environ)), flush=True){then}")],
        "resources": { "limits": limits },
    })
}

/// A pod of such containers.
#[must_use]
pub fn pod(name: &str, annotations: &Value, init: &[Value], app: &[Value]) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "annotations": annotations, "labels": { "mixed": "pod" } },
        "spec": { "restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "initContainers": init, "containers": app },
    })
}

/// Card ids of a device text, container by container.
#[must_use]
pub fn promised(text: &str) -> Vec<Vec<String>> {
    let cards = |entry: &str| {
        let devices = entry.split(':').filter(|device| device.contains(','));
        devices
            .filter_map(|device| Some(device.split(',').next()?.to_owned()))
            .collect()
    };
    let mut entries: Vec<Vec<String>> = text.split(';').map(cards).collect();
    entries.pop();
    entries
}

/// Indexes of cards as their register counts them, by id.
async fn index_by_id(stage: &Stage) -> Result<BTreeMap<String, String>> {
    let nodes: Api<Node> = Api::all(stage.client.clone());
    let mut indexes = BTreeMap::new();
    for node in nodes.list(&ListParams::default()).await?.items {
        let text = node
            .metadata
            .annotations
            .and_then(|all| all.get("hami.io/node-register-Ascend910B3").cloned());
        let cards: Vec<Value> = serde_json::from_str(&text.unwrap_or_default()).unwrap_or_default();
        for card in cards {
            let index = card["index"].as_u64().unwrap_or(0).to_string();
            indexes.insert(card["id"].as_str().unwrap_or_default().to_owned(), index);
        }
    }
    Ok(indexes)
}

/// What the container printed holds the cards that the pod's annotation promises it.
///
/// # Errors
/// The cards that differ.
pub async fn agrees(stage: &Stage, maker: &Maker, pod: &Pod, position: usize, printed: &Value) -> Result<()> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let text = annotation(pod, maker.allocated).with_context(|| format!("pod {name} has no {}", maker.allocated))?;
    let cards = promised(text);
    let indexes = index_by_id(stage).await?;
    let mut want: Vec<String> = cards
        .get(position)
        .into_iter()
        .flatten()
        .map(|id| indexes.get(id).filter(|_| maker.name == "ascend").unwrap_or(id).clone())
        .collect();
    ensure!(
        !want.is_empty(),
        "{name}: `{text}` promises container {position} nothing"
    );
    let mut got: Vec<String> = printed[maker.shows]
        .as_str()
        .unwrap_or_default()
        .split(',')
        .map(str::to_owned)
        .collect();
    want.sort();
    got.sort();
    ensure!(
        got == want,
        "{name}: promised {want:?} by `{text}`, container {position} got {got:?}"
    );
    Ok(())
}

/// No card of any maker is promised more memory, compute or shares than it has, by the pods of the API server.
///
/// # Errors
/// The card that is over its size.
pub async fn never_over(stage: &Stage) -> Result<()> {
    // Memory of a card as the cards file says, and compute in percent (an Ascend card counts its own units).
    let sizes = [
        ("hami.io/vgpu-devices-allocated", 40_960_u64, 100),
        ("hami.io/Ascend910B3-devices-allocated", 65_536, u64::MAX),
        ("hami.io/dcu-devices-allocated", 65_520, 100),
        ("hami.io/metax-sgpu-devices-allocated", 65_536, 100),
        ("hami.io/intel-gpu-devices-allocated", 24_480, 100),
        ("hami.io/cambricon-mlu-devices-allocated", 24_576, 100),
    ];
    let pods: Api<Pod> = Api::all(stage.client.clone());
    let live = pods.list(&ListParams::default()).await?;
    for (key, memory, cores) in sizes {
        let mut sums: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        for pod in live
            .items
            .iter()
            .filter(|pod| bound(pod) && !matches!(phase(pod), "Succeeded" | "Failed"))
        {
            for device in annotation(pod, key).unwrap_or_default().split([';', ':']) {
                if let [card, _, mib, percent, ..] = device.split(',').collect::<Vec<_>>()[..] {
                    let sum = sums.entry(card.to_owned()).or_default();
                    sum.0 += mib.parse::<u64>().unwrap_or(0);
                    sum.1 += percent.parse::<u64>().unwrap_or(0);
                }
            }
        }
        for (card, (mib, percent)) in sums {
            ensure!(
                mib <= memory && percent <= cores,
                "{key}: card {card} is booked with {mib} of {memory} MiB and {percent} of {cores} %"
            );
        }
    }
    Ok(())
}

/// What the scheduler's metrics say is booked equals what the API's objects say, for every card of every maker.
///
/// # Errors
/// Both sides, if they still differ after 20 s.
pub async fn bookings_equal_objects(stage: &Stage) -> Result<()> {
    let (mut truth, mut booked) = (BTreeMap::new(), BTreeMap::new());
    let keys = MAKERS.iter().map(|maker| maker.allocated).chain([ALLOCATED]);
    let keys: Vec<&str> = keys.collect();
    let what = "bookings to equal the API's objects";
    wait_for(what, Duration::from_secs(20), async || {
        truth.clear();
        let pods: Api<Pod> = Api::all(stage.client.clone());
        for pod in pods.list(&ListParams::default()).await?.items {
            if !bound(&pod) || matches!(phase(&pod), "Succeeded" | "Failed") {
                continue;
            }
            for device in keys
                .iter()
                .flat_map(|key| annotation(&pod, key).unwrap_or_default().split([';', ':']))
            {
                if let [card, _, mib, ..] = device.split(',').collect::<Vec<_>>()[..] {
                    *truth.entry(card.to_owned()).or_default() += mib.parse::<u64>().unwrap_or(0) << 20;
                }
            }
        }
        booked = allocated_bytes(&metrics_page(9395).await.unwrap_or_default());
        Ok(booked == truth)
    })
    .await
    .with_context(|| format!("booked: {booked:?}; by the objects: {truth:?}"))
}

/// Bytes by card of a metrics page, cards with nothing left out.
fn allocated_bytes(page: &str) -> BTreeMap<String, u64> {
    let lines = page
        .lines()
        .filter(|line| line.starts_with("hami_gpu_memory_allocated_bytes{"));
    lines
        .filter_map(|line| {
            let card = line.split("device_uuid=\"").nth(1)?.split('"').next()?;
            let value: f64 = line.rsplit(' ').next()?.parse().ok()?;
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a byte count below 2^53"
            )]
            let bytes = value as u64;
            (bytes > 0).then(|| (card.to_owned(), bytes))
        })
        .collect()
}

/// Kills (SIGKILL) the player of one maker of this cluster; its parent starts it again.
///
/// # Errors
/// `/proc` or the pods cannot be read.
pub async fn kill_player(stage: &Stage, vendor: &str) -> Result<u32> {
    let pods = stage.pods(product::NAMESPACE).list(&ListParams::default()).await?;
    let uids: Vec<String> = pods.items.into_iter().filter_map(|pod| pod.metadata.uid).collect();
    let mut killed = 0;
    for entry in std::fs::read_dir("/proc").context("reading /proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let command = std::fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<&str> = command.split('\0').collect();
        let plays = words.windows(2).any(|pair| pair == ["--vendor", vendor]);
        if !words
            .first()
            .is_some_and(|program| program.ends_with("/tessera-player"))
            || !plays
        {
            continue;
        }
        let group = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        if !uids
            .iter()
            .any(|uid| group.contains(uid.as_str()) || group.contains(&uid.replace('-', "_")))
        {
            continue;
        }
        let status = std::process::Command::new("kill")
            .args(["-9", &pid.to_string()])
            .status();
        killed += u32::from(status.is_ok_and(|status| status.success()));
    }
    Ok(killed)
}

/// The text of a node lock, `None` if nobody holds it.
///
/// # Errors
/// The API server's, or no node.
pub async fn lock(stage: &Stage, key: &str) -> Result<Option<String>> {
    let nodes: Api<Node> = Api::all(stage.client.clone());
    let list = nodes.list(&ListParams::default()).await?;
    let Some(node) = list.items.first() else {
        bail!("the cluster has no node")
    };
    Ok(node.metadata.annotations.as_ref().and_then(|all| all.get(key).cloned()))
}

/// The first JSON object that a container printed, waited for.
///
/// # Errors
/// The container's log when the time was over.
pub async fn printed(stage: &Stage, namespace: &str, name: &str, container: &str) -> Result<Value> {
    let pods = stage.pods(namespace);
    let params = LogParams {
        container: Some(container.to_owned()),
        ..LogParams::default()
    };
    let start = Instant::now();
    loop {
        let log = pods.logs(name, &params).await.unwrap_or_default();
        if let Some(value) = log.lines().find_map(|line| serde_json::from_str(line).ok()) {
            return Ok(value);
        }
        ensure!(
            start.elapsed() < Duration::from_secs(60),
            "{name}/{container} printed no JSON: {log}"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Deletes the pods of this module, and waits until they are gone.
///
/// # Errors
/// The API server's, or pods that stay.
pub async fn gone(stage: &Stage, namespace: &str) -> Result<()> {
    let (pods, all) = (stage.pods(namespace), ListParams::default().labels("mixed=pod"));
    pods.delete_collection(&DeleteParams::default().grace_period(0), &all)
        .await?;
    wait_for("the pods to be gone", Duration::from_secs(60), async || {
        Ok(pods.list(&all).await?.items.is_empty())
    })
    .await
}

/// What a storm saw.
#[derive(Debug, Default, Clone, Copy)]
pub struct Seen {
    /// Pods that ran; those of makers with a lock had the cards of their annotation.
    pub ran: u32,
    /// Pods deleted on the way.
    pub deleted: u32,
    /// Pods that the kubelet refused just after a plugin was killed.
    pub refused: u32,
    /// Processes killed.
    pub kills: u32,
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} pods of all makers ran, {} deleted on the way, {} refused by a kubelet whose plugin was just killed, {} kills; bookings equal the API's objects, no card over its size",
            self.ran, self.deleted, self.refused, self.kills
        )
    }
}

/// How long after a kill the kubelet may refuse a pod for want of a plugin, or for a lock that the dead one held.
const BACK: Duration = Duration::from_secs(10);

/// A storm over all makers, a fifth of the pods with containers of two, with random deletes and kills of scheduler, agent
/// and players. `namespace` is empty.
///
/// # Errors
/// The first thing that a user would call broken, with the seed.
pub async fn storm(stage: &Stage, namespace: &str, pods: u32, seed: u64) -> Result<Seen> {
    weather(stage, namespace, pods, seed)
        .await
        .with_context(|| format!("seed {seed}, {pods} pods"))
}

async fn weather(stage: &Stage, namespace: &str, number: u32, seed: u64) -> Result<Seen> {
    let mut dice = Dice::new(seed);
    let mut seen = Seen::default();
    // The makers of a pod's containers; none is NVIDIA.
    let mut of: BTreeMap<String, Vec<Option<&Maker>>> = BTreeMap::new();
    for at in 0..number {
        let two = dice.below(5) == 0;
        let mut makers = vec![pick(&mut dice, MAKERS.len() + 1).and_then(|at| MAKERS.get(at))];
        let other = pick(&mut dice, MAKERS.len() + 1).and_then(|at| MAKERS.get(at));
        // Two containers with cards of one maker are not every maker's to serve.
        let name = |maker: &Option<&Maker>| maker.map(|maker| maker.name);
        if two && makers.iter().all(|first| name(first) != name(&other)) {
            makers.push(other);
        }
        let nvidia: &[(&str, &str)] = &[("nvidia.com/gpu", "1"), ("nvidia.com/gpumem", "2000")];
        let asks = makers.iter().map(|maker| maker.map_or(nvidia, |maker| maker.ask));
        let containers = asks
            .enumerate()
            .map(|(at, ask)| container(&format!("c{at}"), ask, false));
        let name = format!("storm-{at}");
        let body = pod(&name, &json!({}), &[], &containers.collect::<Vec<Value>>());
        stage
            .create(namespace, &body)
            .await
            .with_context(|| format!("creating {name}"))?;
        of.insert(name, makers);
    }
    let deadline = Instant::now() + Duration::from_secs(120 + 4 * u64::from(number));
    let all = ListParams::default().labels("mixed=pod");
    let mut next_blow = Instant::now() + Duration::from_secs(2);
    let mut killed: Option<Instant> = None;
    loop {
        let list = stage.pods(namespace).list(&all).await?.items;
        never_over(stage).await?;
        let mut open = 0_u32;
        for pod in list.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
            let name = pod.metadata.name.clone().unwrap_or_default();
            match phase(pod) {
                "Succeeded" => {
                    // A plugin without a lock serves by order: which pod asks is its guess.
                    for (at, maker) in of.get(&name).into_iter().flatten().enumerate() {
                        if let Some(maker) = maker.filter(|maker| maker.lock.is_some()) {
                            let printed = printed(stage, namespace, &name, &format!("c{at}")).await?;
                            agrees(stage, maker, pod, at, &printed).await?;
                        }
                    }
                    seen.ran += 1;
                    stage.delete(namespace, &name).await?;
                }
                "Failed" if unasked(pod) && killed.is_some_and(|at| at.elapsed() < BACK) => {
                    seen.refused += 1;
                    stage.delete(namespace, &name).await?;
                }
                "Failed" => failed(stage, namespace, pod).await?,
                _ => open += 1,
            }
        }
        if open == 0 {
            break;
        }
        if Instant::now() > deadline {
            let waits = list.iter().find(|pod| phase(pod) == "Pending");
            bail!(
                "{open} pods did not end in time, for example {:?}",
                waits.map(|pod| (&pod.metadata.name, &pod.status))
            );
        }
        if Instant::now() >= next_blow {
            next_blow = Instant::now() + Duration::from_millis(3000 + dice.below(3000));
            let kills = blow(stage, namespace, &list, &mut dice, &mut seen).await?;
            if kills > 0 {
                killed = Some(Instant::now());
            }
            seen.kills += kills;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    bookings_equal_objects(stage).await?;
    gone(stage, namespace).await?;
    Ok(seen)
}

fn pick(dice: &mut Dice, of: usize) -> Option<usize> {
    usize::try_from(dice.below(of as u64)).ok()
}

/// Deletes a pod, or kills one of our processes or a player. How many were killed.
async fn blow(stage: &Stage, namespace: &str, pods: &[Pod], dice: &mut Dice, seen: &mut Seen) -> Result<u32> {
    match dice.below(4) {
        0 => kill_ours(stage, "scheduler", Whom::Worker).await,
        1 => kill_ours(stage, "agent", Whom::Worker).await,
        2 => match pick(dice, MAKERS.len()).and_then(|at| MAKERS.get(at)) {
            Some(maker) => kill_player(stage, maker.name).await,
            None => Ok(0),
        },
        _ => {
            let victim = pick(dice, pods.len()).and_then(|at| pods.get(at));
            if let Some(name) = victim.and_then(|pod| pod.metadata.name.as_deref()) {
                stage.delete(namespace, name).await?;
                seen.deleted += 1;
            }
            Ok(0)
        }
    }
}

/// Whether the kubelet refused the pod without, or by, its plugin.
fn unasked(pod: &Pod) -> bool {
    pod.status.as_ref().and_then(|status| status.reason.as_deref()) == Some("UnexpectedAdmissionError")
}
