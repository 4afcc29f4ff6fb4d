//! The storm: many pods at once on one node, with random deletes and kills of everything that is ours, and then
//! the questions that matter: did any pod fail by our doing, did any container see another's card or limit, and
//! do the bookings equal the API's objects at the end.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, LogParams};
use serde_json::{Value, json};
use tessera_testcluster::Component;

use crate::product;
use crate::stage::{ALLOCATED, Stage, annotation, bound, phase, wait_for};

/// What one round does.
#[derive(Debug, Clone, Copy)]
pub struct Round {
    /// Pods created at once.
    pub pods: u32,
    /// Decides sizes, deletes and kills.
    pub seed: u64,
    /// Whether the kubelet is killed too.
    pub kill_kubelet: bool,
    /// Whether the agent's whole container is killed at times, not only the agent in it.
    pub kill_containers: bool,
}

/// What one round saw.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    /// Pods that ran and agreed with their annotation.
    pub agreed: u32,
    /// Pods deleted on the way.
    pub deleted: u32,
    /// Kills of our processes and of the kubelet.
    pub kills: u32,
    /// Pods that the kubelet refused because it was itself just killed (or the agent's whole container was): it admits
    /// the pods it finds before any device plugin can register.
    pub unasked: u32,
    /// When nobody could be asked, for a reason outside of us.
    away: Vec<(Timestamp, Timestamp)>,
    /// From the first creation to the end of the last pod.
    pub took: Duration,
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} pods ran with their own cards and limits, {} deleted on the way, {} refused by a kubelet that was just killed, {} kills, {:.0} s; bookings equal the API's objects",
            self.agreed,
            self.deleted,
            self.unasked,
            self.kills,
            self.took.as_secs_f32()
        )
    }
}

/// A small generator with a printed seed: the same storm again on any machine.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    /// Starts from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// A number below `bound` (0 if `bound` is 0).
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        if bound == 0 { 0 } else { self.0 % bound }
    }
}

/// A pod that checks its own share and ends, or stays with `hold`.
#[must_use]
pub fn probe_pod(name: &str, asks: &[Value], hold: bool, labels: &Value) -> Value {
    let containers: Vec<Value> = asks
        .iter()
        .enumerate()
        .map(|(position, limits)| {
            let asks_nothing = limits.as_object().is_none_or(serde_json::Map::is_empty);
            let command = match (asks_nothing, hold) {
                // No driver is there to ask; none may be there.
                (true, false) => vec!["/bin/sh", "-c", "test ! -e /dev/nvidiactl || exit 3"],
                (true, true) => vec![
                    "/bin/sh",
                    "-c",
                    "test ! -e /dev/nvidiactl || exit 3; exec sleep infinity",
                ],
                (false, false) => vec!["/opt/sample/share-probe"],
                (false, true) => vec!["/opt/sample/share-probe", "--hold"],
            };
            json!({
                "name": format!("c{position}"),
                "image": product::SAMPLE_IMAGE,
                "imagePullPolicy": "Never",
                "command": command,
                "env": [
                    { "name": "POSITION", "value": position.to_string() },
                    { "name": "ALLOCATED", "valueFrom": { "fieldRef": {
                        "fieldPath": format!("metadata.annotations['{ALLOCATED}']") } } },
                ],
                "resources": { "limits": quantities(limits) },
            })
        })
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "labels": labels },
        "spec": { "restartPolicy": "OnFailure", "terminationGracePeriodSeconds": 1, "containers": containers },
    })
}

/// Quantities are texts in a typed pod.
fn quantities(limits: &Value) -> Value {
    let text = |value: &Value| {
        value
            .as_str()
            .map_or_else(|| json!(value.to_string()), |text| json!(text))
    };
    limits
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| (name.clone(), text(value)))
        .collect()
}

/// One of the eight sizes that a storm mixes.
fn mixed_asks(dice: &mut Dice) -> Vec<Value> {
    match dice.below(8) {
        0 => vec![json!({ "nvidia.com/gpu": 1, "nvidia.com/gpumem": 1000 })],
        1 => vec![json!({ "nvidia.com/gpu": 1, "nvidia.com/gpumem": 3000, "nvidia.com/gpucores": 10 })],
        2 => vec![json!({ "nvidia.com/gpu": 2, "nvidia.com/gpumem": 2000 })],
        3 => vec![json!({ "nvidia.com/gpu": 1, "nvidia.com/gpumem-percentage": 25 })],
        4 => vec![json!({ "nvidia.com/gpu": 4, "nvidia.com/gpumem": 512, "nvidia.com/gpucores": 5 })],
        5 => vec![
            json!({ "nvidia.com/gpu": 1, "nvidia.com/gpumem": 700 }),
            json!({ "nvidia.com/gpu": 1, "nvidia.com/gpumem": 1700 }),
        ],
        6 => vec![json!({ "nvidia.com/gpu": 1, "nvidia.com/gpumem": 8000 })],
        _ => vec![json!({}), json!({ "nvidia.com/gpu": 1, "nvidia.com/gpumem": 1200 })],
    }
}

/// Runs one round in `namespace`, which must exist and be empty.
///
/// # Errors
/// The first thing that a user would call broken.
pub async fn round(stage: &Stage, namespace: &str, round: Round) -> Result<Seen> {
    let seen = weather(stage, namespace, round).await;
    if let Some(folder) = std::env::var_os("TESSERA_STORM_LOGS") {
        keep_logs(stage, Path::new(&folder));
    }
    seen.with_context(|| format!("seed {}, {} pods", round.seed, round.pods))
}

/// Copies what the node's parts said to `folder`: the cluster's own folder goes with the cluster.
fn keep_logs(stage: &Stage, folder: &Path) {
    let mut sources = vec![
        stage.cluster.state_dir().join("log"),
        stage.cluster.kubelet_dir().join("device-plugins"),
    ];
    if let Some(root) = stage.cluster.node_root() {
        sources.push(root.join("var/log/pods"));
        sources.push(root.join("run/tessera/grants"));
    }
    drop(std::fs::create_dir_all(folder));
    // Best effort: the find itself is told in any case.
    drop(
        std::process::Command::new("cp")
            .args(["--recursive", "--dereference", "--parents"])
            .args(sources)
            .arg(folder)
            .stderr(std::process::Stdio::null())
            .status(),
    );
}

async fn weather(stage: &Stage, namespace: &str, round: Round) -> Result<Seen> {
    let mut dice = Dice::new(round.seed);
    let mut seen = Seen::default();
    let start = Instant::now();
    let mut waiting: BTreeMap<String, bool> = BTreeMap::new();
    for number in 0..round.pods {
        let name = format!("storm-{number}");
        let asks = mixed_asks(&mut dice);
        stage
            .create(namespace, &probe_pod(&name, &asks, false, &json!({ "storm": "pod" })))
            .await
            .with_context(|| format!("creating {name}"))?;
        waiting.insert(name, false);
    }
    let deadline = Instant::now() + Duration::from_secs(60 + 4 * u64::from(round.pods));
    let mut next_blow = Instant::now() + Duration::from_secs(2);
    loop {
        let pods = stage
            .pods(namespace)
            .list(&ListParams::default())
            .await
            .context("listing the storm's pods")?;
        let mut open = 0_u32;
        for pod in &pods.items {
            let name = pod.metadata.name.clone().unwrap_or_default();
            match phase(pod) {
                "Succeeded" if disagreed(pod) => failed(stage, namespace, pod).await?,
                "Succeeded" => {
                    if waiting.insert(name, true) == Some(false) {
                        seen.agreed += 1;
                    }
                }
                "Failed" if ran_well(pod) && !seen.away.is_empty() => {
                    if waiting.insert(name, true) == Some(false) {
                        seen.unasked += 1;
                    }
                }
                "Failed" if nobody_to_ask(pod) => match refusal(stage, namespace, pod).await? {
                    Some(time) if seen.away_at(time) => {
                        if waiting.insert(name, true) == Some(false) {
                            seen.unasked += 1;
                        }
                    }
                    Some(_) => failed(stage, namespace, pod).await?,
                    // Its word is on the way.
                    None => open += 1,
                },
                // Told to stop, a container may end with any code.
                "Failed" if pod.metadata.deletion_timestamp.is_some() && !refused(pod) => open += 1,
                "Failed" => failed(stage, namespace, pod).await?,
                _ if disagreed(pod) => failed(stage, namespace, pod).await?,
                _ => open += 1,
            }
        }
        never_over(&pods.items, stage).await?;
        if open == 0 {
            break;
        }
        ensure!(
            Instant::now() < deadline,
            "{open} of {} pods did not end in time, for example {:?}",
            round.pods,
            pods.items
                .iter()
                .find(|p| phase(p) == "Pending")
                .map(|p| (&p.metadata.name, &p.status))
        );
        if Instant::now() >= next_blow {
            next_blow = Instant::now() + Duration::from_millis(2000 + dice.below(3000));
            blow(stage, namespace, &pods.items, &mut dice, round, &mut seen, &mut waiting).await?;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    seen.took = start.elapsed();
    bookings_equal_objects(stage).await?;
    stage
        .pods(namespace)
        .delete_collection(&DeleteParams::default().grace_period(0), &ListParams::default())
        .await?;
    no_grant_is_left(stage).await?;
    Ok(seen)
}

/// A grant goes a minute after its pod. (None of another namespace may hold one meanwhile.) Doorbells are of cards.
///
/// # Errors
/// Which grants and records are still there long after.
async fn no_grant_is_left(stage: &Stage) -> Result<()> {
    let root = stage
        .cluster
        .node_root()
        .context("the node is dead")?
        .join("run/tessera/grants");
    let mut left = Vec::new();
    wait_for(
        "grants of ended pods to be removed",
        Duration::from_secs(120),
        async || {
            left.clear();
            for folder in [root.clone(), root.join("records")] {
                let entries = std::fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))?;
                let names = entries
                    .flatten()
                    .map(|entry| entry.file_name().to_string_lossy().into_owned());
                left.extend(names.filter(|name| name != "records" && name != "rings"));
            }
            Ok(left.is_empty())
        },
    )
    .await
    .with_context(|| format!("grants of pods that are gone: {left:?}"))
}

/// One random blow: deletes a pod, or kills one of our processes or the kubelet.
async fn blow(
    stage: &Stage,
    namespace: &str,
    pods: &[Pod],
    dice: &mut Dice,
    round: Round,
    seen: &mut Seen,
    waiting: &mut BTreeMap<String, bool>,
) -> Result<()> {
    match dice.below(4) {
        0 | 1 => {
            let open: Vec<&Pod> = pods
                .iter()
                .filter(|p| matches!(phase(p), "Pending" | "Running"))
                .collect();
            let at = usize::try_from(dice.below(open.len() as u64)).unwrap_or(0);
            if let Some(name) = open.get(at).and_then(|p| p.metadata.name.clone()) {
                stage
                    .pods(namespace)
                    .delete(&name, &DeleteParams::default())
                    .await
                    .map(drop)
                    .or_else(gone_is_fine)?;
                waiting.remove(&name);
                seen.deleted += 1;
            }
        }
        2 if round.kill_kubelet => {
            let from = Timestamp::now();
            stage
                .cluster
                .restart(Component::Kubelet)
                .await
                .context("killing and restarting the kubelet")?;
            seen.away(from, BACK);
            seen.kills += 1;
        }
        _ => {
            let name = if dice.below(2) == 0 { "scheduler" } else { "agent" };
            let whom = if round.kill_containers && dice.below(4) == 0 {
                Whom::Container
            } else {
                Whom::Worker
            };
            if whom == Whom::Container && name == "agent" {
                seen.away(Timestamp::now(), BACK_OFF);
            }
            seen.kills += kill_ours(stage, name, whom).await?;
        }
    }
    Ok(())
}

/// A pod that ended by itself meanwhile needs no deletion.
fn gone_is_fine(error: kube::Error) -> Result<()> {
    match error {
        kube::Error::Api(status) if status.code == 404 => Ok(()),
        error => Err(error.into()),
    }
}

/// Which of a part's processes are killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whom {
    /// The one that works. Another starts it again.
    Worker,
    /// All of them, as when the container is killed; the kubelet starts it again, after pauses that grow.
    Container,
}

/// Kills (SIGKILL) processes `tessera <subcommand>` of this cluster; how many there were. Another cluster on the
/// same machine is left alone.
///
/// # Errors
/// `/proc` or the product's pods cannot be read.
pub async fn kill_ours(stage: &Stage, subcommand: &str, whom: Whom) -> Result<u32> {
    let pods = stage
        .pods(product::NAMESPACE)
        .list(&ListParams::default())
        .await
        .context("listing the product's own pods")?;
    let uids: Vec<String> = pods.items.into_iter().filter_map(|pod| pod.metadata.uid).collect();
    let mut killed = 0;
    for entry in std::fs::read_dir("/proc").context("reading /proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let Ok(command) = std::fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        let mut words = command.split(|byte| *byte == 0);
        let program = words.next().unwrap_or_default();
        if !program.ends_with(b"/tessera") || words.next() != Some(subcommand.as_bytes()) {
            continue;
        }
        // The systemd driver writes a pod's uid with underscores.
        let group = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        if !uids
            .iter()
            .any(|uid| group.contains(uid.as_str()) || group.contains(&uid.replace('-', "_")))
        {
            continue;
        }
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        let works = environment.split(|byte| *byte == 0).any(|pair| pair == WORKER);
        if whom == Whom::Worker && !works {
            continue;
        }
        let status = std::process::Command::new("kill")
            .args(["-9", &pid.to_string()])
            .status();
        if status.is_ok_and(|status| status.success()) {
            killed += 1;
        }
    }
    Ok(killed)
}

/// Marks the service among its processes.
const WORKER: &[u8] = b"TESSERA_WORKER=1";

/// Whether a container of the pod saw other cards or limits than its annotation promises. A start that the kubelet's
/// death interrupted is no such thing: the kubelet starts that container again.
fn disagreed(pod: &Pod) -> bool {
    let statuses = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
    statuses
        .flat_map(|s| [&s.state, &s.last_state])
        .filter_map(|state| state.as_ref()?.terminated.as_ref())
        .any(|ended| ended.exit_code == DISAGREES)
}

/// Exit code of `share-probe` for a share that is not the promised one.
const DISAGREES: i32 = 3;

/// How long after its start a kubelet may still refuse pods for want of a plugin.
const BACK: Duration = Duration::from_secs(30);
/// The same for a container that the kubelet starts again after a pause.
const BACK_OFF: Duration = Duration::from_secs(330);

impl Seen {
    fn away(&mut self, from: Timestamp, back: Duration) {
        self.away.push((from, Timestamp::now() + back));
    }

    /// Whether a refusal at `time` was one while nobody could be asked. The kubelet writes whole seconds.
    fn away_at(&self, time: Timestamp) -> bool {
        let second = Duration::from_secs(1);
        self.away
            .iter()
            .any(|(from, until)| *from <= time + second && time <= *until)
    }
}

/// When the kubelet said that it refuses the pod. (A restarted kubelet may refuse one that runs already.)
async fn refusal(stage: &Stage, namespace: &str, pod: &Pod) -> Result<Option<Timestamp>> {
    use k8s_openapi::api::core::v1::Event;
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let events: kube::Api<Event> = kube::Api::namespaced(stage.client.clone(), namespace);
    let of_pod = ListParams::default().fields(&format!("involvedObject.uid={uid},reason=UnexpectedAdmissionError"));
    let times = events.list(&of_pod).await?.items.into_iter().filter_map(|event| {
        let last = event.last_timestamp.map(|time| time.0);
        last.or(event.event_time.map(|time| time.0))
    });
    Ok(times.max())
}

/// Whether the kubelet refused the pod because nobody was there to ask. A refusal by the agent is never such a one.
fn nobody_to_ask(pod: &Pod) -> bool {
    const DEAD: [&str; 7] = [
        "no healthy devices present",
        "previously allocated devices are no longer healthy",
        "cannot allocate unregistered device",
        "Requested number of devices unavailable",
        "requested number of devices unavailable",
        "code = Unavailable",
        "code = Canceled",
    ];
    let message = pod.status.as_ref().and_then(|status| status.message.as_deref());
    refused(pod)
        && DEAD
            .iter()
            .any(|dead| message.is_some_and(|message| message.contains(dead)))
}

/// Whether every container came to its good end. Such a pod is `Failed` only if a restarted kubelet refused it while its
/// containers already ran; the phase stays, the reason is written over.
fn ran_well(pod: &Pod) -> bool {
    let statuses = pod
        .status
        .as_ref()
        .and_then(|status| status.container_statuses.as_deref());
    statuses.is_some_and(|statuses| {
        !statuses.is_empty()
            && statuses.iter().all(|status| {
                let ended = status.state.as_ref().and_then(|state| state.terminated.as_ref());
                ended.is_some_and(|ended| ended.exit_code == 0)
            })
    })
}

/// Whether the pod was never admitted.
fn refused(pod: &Pod) -> bool {
    pod.status.as_ref().and_then(|status| status.reason.as_deref()) == Some("UnexpectedAdmissionError")
}

/// A pod of a storm may only fail by being deleted; anything else is the storm's find.
///
/// # Errors
/// Always: with what is known of the failed pod.
pub async fn failed(stage: &Stage, namespace: &str, pod: &Pod) -> Result<()> {
    let name = pod.metadata.name.clone().unwrap_or_default();
    let status = pod.status.clone().unwrap_or_default();
    let log = stage
        .pods(namespace)
        .logs(&name, &LogParams::default())
        .await
        .unwrap_or_default();
    let events = stage.events(namespace, &name).await.unwrap_or_default();
    anyhow::bail!(
        "pod {name} failed: reason {:?}, message {:?}, containers {}, events {events:?}, annotation {:?}, log {log}",
        status.reason,
        status.message,
        serde_json::to_string(&status.container_statuses).unwrap_or_default(),
        annotation(pod, ALLOCATED)
    )
}

/// Sums of memory and slots per card over live bound pods never pass the card.
async fn never_over(pods: &[Pod], stage: &Stage) -> Result<()> {
    let mut memory: BTreeMap<String, u64> = BTreeMap::new();
    for pod in pods
        .iter()
        .filter(|p| bound(p) && !matches!(phase(p), "Succeeded" | "Failed"))
    {
        for device in annotation(pod, ALLOCATED).unwrap_or_default().split([';', ':']) {
            let fields: Vec<&str> = device.split(',').collect();
            if let [card, _, mib, ..] = fields[..] {
                *memory.entry(card.to_owned()).or_default() += mib.parse::<u64>().unwrap_or(0);
            }
        }
    }
    if memory.is_empty() {
        return Ok(());
    }
    let sizes = card_sizes(stage).await?;
    for (card, used) in memory {
        let size = sizes.get(&card).copied().unwrap_or(0);
        ensure!(used <= size, "card {card} of {size} MiB is booked with {used} MiB");
    }
    Ok(())
}

/// MiB by card, from the node's register.
async fn card_sizes(stage: &Stage) -> Result<BTreeMap<String, u64>> {
    use k8s_openapi::api::core::v1::Node;
    let nodes: kube::Api<Node> = kube::Api::all(stage.client.clone());
    let mut sizes = BTreeMap::new();
    for node in nodes.list(&ListParams::default()).await?.items {
        let text = node
            .metadata
            .annotations
            .and_then(|a| a.get("hami.io/node-nvidia-register").cloned());
        let cards: Vec<Value> = serde_json::from_str(&text.unwrap_or_default()).unwrap_or_default();
        for card in cards {
            if let (Some(id), Some(memory)) = (card["id"].as_str(), card["devmem"].as_u64()) {
                sizes.insert(id.to_owned(), memory);
            }
        }
    }
    Ok(sizes)
}

/// What the scheduler says is booked equals what the API's objects say, for every card.
///
/// # Errors
/// The card that differs.
pub async fn bookings_equal_objects(stage: &Stage) -> Result<()> {
    wait_for(
        "bookings to equal the API's objects",
        // The scheduler may just have been killed.
        Duration::from_secs(60),
        async || {
            let mut truth: BTreeMap<String, u64> = card_sizes(stage).await?.into_keys().map(|card| (card, 0)).collect();
            let pods: kube::Api<Pod> = kube::Api::all(stage.client.clone());
            for pod in pods.list(&ListParams::default()).await?.items {
                if !bound(&pod) || matches!(phase(&pod), "Succeeded" | "Failed") {
                    continue;
                }
                for device in annotation(&pod, ALLOCATED).unwrap_or_default().split([';', ':']) {
                    let fields: Vec<&str> = device.split(',').collect();
                    if let [card, _, mib, ..] = fields[..] {
                        *truth.entry(card.to_owned()).or_default() += mib.parse::<u64>().unwrap_or(0) << 20;
                    }
                }
            }
            Ok(booked().await.is_some_and(|booked| booked == truth))
        },
    )
    .await
}

/// Bytes by card that the scheduler's metrics page says are allocated.
async fn booked() -> Option<BTreeMap<String, u64>> {
    let page = metrics_page(9395).await?;
    let mut booked = BTreeMap::new();
    for line in page
        .lines()
        .filter(|line| line.starts_with("hami_gpu_memory_allocated_bytes{"))
    {
        let card = line.split("device_uuid=\"").nth(1)?.split('"').next()?.to_owned();
        let value: f64 = line.rsplit(' ').next()?.parse().ok()?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a byte count below 2^53"
        )]
        booked.insert(card, value as u64);
    }
    Some(booked)
}

/// The metrics page on a local port; `None` while nobody answers.
pub async fn metrics_page(port: u16) -> Option<String> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut socket = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    socket
        .write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")
        .await
        .ok()?;
    let mut page = String::new();
    socket.read_to_string(&mut page).await.ok()?;
    Some(page)
}
