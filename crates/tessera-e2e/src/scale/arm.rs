//! One arm: its cluster, its scheduler, and what is done with them.

use std::collections::{BTreeMap, HashMap};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::stream::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::Client;
use kube::api::{Api, ListParams, PostParams};
use serde_json::json;
use tessera_testcluster::{AuditEvent, AuditMark, Cluster, Component, Progress, SchedulerConfig};
use tokio::task::JoinSet;

use super::objects::{self, CLIENTS, SCHEDULER, pod};
use super::watch::Watcher;
use super::{Arm, Outcome, ScaleArgs, Wave};
use crate::processes::{self, Service};

/// A wave may take so long.
const PATIENCE: Duration = Duration::from_secs(900);
/// The node that all pods of the burst ask for.
const ONE_NODE: &str = "one-node";

struct Stand<'a> {
    cluster: &'a Cluster,
    client: Client,
    service: Option<Service>,
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")
        .context("looking for a free port")?
        .local_addr()?
        .port())
}

/// kube-scheduler as the chart runs it, without limits on its own requests in any arm.
fn scheduler_config(arm: Arm, port: u16) -> String {
    let managed: Vec<_> = ["gpu", "gpumem", "gpumem-percentage", "gpucores", "priority"]
        .iter()
        .map(|name| json!({ "name": format!("nvidia.com/{name}"), "ignoredByScheduler": true }))
        .collect();
    let mut config = json!({
        "apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration",
        "podInitialBackoffSeconds": 1, "podMaxBackoffSeconds": 1, "percentageOfNodesToScore": 100,
        "clientConnection": { "qps": 100_000, "burst": 100_000 },
        "profiles": [{ "schedulerName": SCHEDULER }],
    });
    if arm != Arm::Plain {
        config["extenders"] = json!([{
            "urlPrefix": format!("http://127.0.0.1:{port}"), "filterVerb": "filter", "bindVerb": "bind",
            "preemptVerb": "preempt", "nodeCacheCapable": arm == Arm::Names, "weight": 1, "httpTimeout": "30s",
            "managedResources": managed,
        }]);
    }
    config.to_string()
}

/// Measures one arm on a cluster of its own, which is gone afterwards.
///
/// # Errors
/// The cluster does not start, or a wave does not come to its end.
pub async fn run(arm: Arm, args: &ScaleArgs, tessera: &Path, progress: &Progress) -> Result<Outcome> {
    progress.step(format!("{}: starting a cluster", arm.label()));
    let (extender, metrics) = (free_port()?, free_port()?);
    let cluster = Cluster::builder()
        .without_node()
        .scheduler(SchedulerConfig::Yaml(scheduler_config(arm, extender)))
        // Nodes are ready from the start, and stay so however busy this machine is. In a large cluster the other
        // controllers have a machine of their own.
        .args(
            Component::Apiserver,
            ["--disable-admission-plugins=TaintNodesByCondition"],
        )
        .args(
            Component::ControllerManager,
            ["--controllers=serviceaccount-controller"],
        )
        .progress(Progress::silent())
        .start()
        .await
        .context("starting the cluster")?;
    let outcome = measure(arm, &cluster, args, tessera, (extender, metrics), progress).await;
    cluster.stop().await.context("stopping the cluster")?;
    outcome.with_context(|| format!("measuring {}", arm.label()))
}

async fn measure(
    arm: Arm,
    cluster: &Cluster,
    args: &ScaleArgs,
    tessera: &Path,
    (extender, metrics): (u16, u16),
    progress: &Progress,
) -> Result<Outcome> {
    let client = cluster.kube().await?;
    progress.step(format!("{}: creating {} nodes", arm.label(), args.nodes));
    objects::create_nodes(&client, args.nodes, args.cards).await?;
    let mut background = JoinSet::new();
    if !args.no_leases {
        background.spawn(objects::renew_leases(client.clone(), args.nodes));
    }
    let mut stand = Stand {
        cluster,
        client,
        service: None,
    };
    if arm != Arm::Plain {
        stand.serve(tessera, extender, metrics).await?;
    }
    stand.warm().await?;
    let mut outcome = Outcome {
        arm,
        waves: Vec::new(),
        burst: None,
        restarts: Vec::new(),
        rss_kib: None,
    };
    for (at, pods) in args.pods.iter().enumerate() {
        let count = if arm == Arm::Objects {
            args.whole_pods.min(*pods)
        } else {
            *pods
        };
        progress.step(format!("{}: {count} pods", arm.label()));
        outcome
            .waves
            .push(stand.wave(&format!("wave-{at}"), count, None).await?);
    }
    if args.burst > 0 && arm != Arm::Objects {
        progress.step(format!("{}: {} pods to one node", arm.label(), args.burst));
        let slots = args.burst.div_ceil(args.cards.max(1)).max(10);
        objects::create_node(&stand.client, ONE_NODE, args.cards, slots).await?;
        outcome.burst = Some(stand.wave("burst", args.burst, Some(ONE_NODE)).await?);
    }
    if arm == Arm::Names {
        for kill in 0..args.kills {
            progress.step(format!("{}: kill {}", arm.label(), kill + 1));
            outcome.restarts.push(stand.kill(kill, metrics).await?);
        }
    }
    if let Some(service) = &stand.service {
        outcome.rss_kib = Some(processes::used_by_tree(service.pid())?.rss_kib);
    }
    Ok(outcome)
}

impl Stand<'_> {
    async fn serve(&mut self, tessera: &Path, extender: u16, metrics: u16) -> Result<()> {
        let mut command = Command::new(tessera);
        command
            .arg("scheduler")
            .arg(format!("--kubeconfig={}", self.cluster.kubeconfig().display()))
            .arg(format!("--http_bind=127.0.0.1:{extender}"))
            .arg(format!("--metrics-bind-address=127.0.0.1:{metrics}"))
            .arg(format!("--scheduler-name={SCHEDULER}"));
        let log = self.cluster.state_dir().join("tessera.log");
        self.service = Some(Service::start(&mut command, &log)?);
        self.ready(metrics).await
    }

    async fn ready(&mut self, metrics: u16) -> Result<()> {
        let log = self.cluster.state_dir().join("tessera.log");
        let end = Instant::now() + Duration::from_secs(60);
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        while !ready(metrics).await {
            tick.tick().await;
            if let Some(service) = &mut self.service {
                let said = || std::fs::read_to_string(&log).unwrap_or_default();
                ensure!(service.is_running()?, "the extender ended: {}", said());
                ensure!(Instant::now() < end, "the extender is not ready after 60 s: {}", said());
            }
        }
        Ok(())
    }

    /// One pod is placed before anything is measured: kube-scheduler has read all nodes then.
    async fn warm(&self) -> Result<()> {
        self.wave("warm", 1, None).await.map(drop)
    }

    async fn create(&self, namespace: &str, count: u32, node: Option<&str>) -> Result<HashMap<String, Instant>> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let sent = futures::stream::iter(0..count)
            .map(|number| {
                let pods = pods.clone();
                async move {
                    let name = format!("pod-{number:05}");
                    let object: Pod = serde_json::from_value(pod(&name, node))?;
                    let sent = Instant::now();
                    pods.create(&PostParams::default(), &object).await?;
                    Ok::<_, anyhow::Error>((name, sent))
                }
            })
            .buffer_unordered(CLIENTS)
            .try_collect::<Vec<_>>()
            .await
            .context("creating pods")?;
        Ok(sent.into_iter().collect())
    }

    /// Creates pods and waits until all are bound.
    async fn wave(&self, namespace: &str, count: u32, node: Option<&str>) -> Result<Wave> {
        objects::create_namespace(&self.client, namespace).await?;
        let watcher = Watcher::start(&self.client, namespace).await?;
        let mark = self.cluster.audit().mark();
        let before = self.cpu()?;
        let begun = Instant::now();
        let sent = self.create(namespace, count, node).await?;
        let creating = begun.elapsed();
        watcher.wait(count as usize, PATIENCE).await?;
        let took = begun.elapsed();
        let after = self.cpu()?;
        let bound = watcher.bound();
        let mut times: Vec<Duration> = sent
            .iter()
            .filter_map(|(name, sent)| Some(bound.get(name)?.saturating_duration_since(*sent)))
            .collect();
        times.sort();
        let mut wave = Wave {
            pods: count,
            took,
            creating,
            times,
            cpu_ms: after
                .into_iter()
                .map(|(name, ms)| {
                    let before = before.get(&name).copied().unwrap_or(0);
                    (name, ms.saturating_sub(before))
                })
                .collect(),
            ..Wave::default()
        };
        self.count(mark, namespace, &mut wave)?;
        let events: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        for event in events.list(&ListParams::default()).await? {
            if event.type_.as_deref() == Some("Warning") {
                *wave.warnings.entry(event.reason.unwrap_or_default()).or_default() += 1;
            }
        }
        Ok(wave)
    }

    fn count(&self, mark: AuditMark, namespace: &str, wave: &mut Wave) -> Result<()> {
        for event in self.cluster.audit().since(mark)? {
            let Some(object) = event.object_ref.as_ref().filter(|_| event.is_write()) else {
                continue;
            };
            if object.resource == "nodes" {
                wave.node_writes += 1;
            } else if object.namespace == namespace {
                match (object.resource.as_str(), object.subresource.as_str()) {
                    ("events", _) => wave.events += 1,
                    ("pods", "") if event.verb == "create" => {}
                    // Said by the harness in the place of kubelets.
                    ("pods", "status") if !of_kube_scheduler(&event) => {}
                    ("pods", _) => *wave.writes.entry(who_and_what(&event)).or_default() += 1,
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// CPU time of everything that takes part, milliseconds since its start.
    fn cpu(&self) -> Result<BTreeMap<String, u64>> {
        let mut all = BTreeMap::from([("this harness".to_owned(), processes::used(std::process::id())?.cpu_ms)]);
        for component in [
            Component::Etcd,
            Component::Apiserver,
            Component::ControllerManager,
            Component::Scheduler,
        ] {
            if let Some(pid) = self.cluster.pid(component).and_then(|pid| u32::try_from(pid).ok()) {
                all.insert(component.to_string(), processes::used(pid)?.cpu_ms);
            }
        }
        if let Some(service) = &self.service {
            all.insert("tessera".to_owned(), processes::used_by_tree(service.pid())?.cpu_ms);
        }
        Ok(all)
    }

    /// Kills the process that serves, creates a pod at once, and waits for its binding.
    async fn kill(&mut self, number: u32, metrics: u16) -> Result<Duration> {
        let namespace = format!("kill-{number}");
        objects::create_namespace(&self.client, &namespace).await?;
        let watcher = Watcher::start(&self.client, &namespace).await?;
        let worker = self.service.as_ref().context("no extender runs")?.worker()?;
        let pid = i32::try_from(worker)
            .ok()
            .and_then(rustix::process::Pid::from_raw)
            .context("a pid out of range")?;
        let begun = Instant::now();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).context("killing the scheduler")?;
        self.create(&namespace, 1, None).await?;
        watcher.wait(1, Duration::from_secs(60)).await?;
        let took = watcher
            .bound()
            .into_values()
            .next()
            .map_or(begun.elapsed(), |at| at.saturating_duration_since(begun));
        self.ready(metrics).await?;
        Ok(took)
    }
}

fn of_kube_scheduler(event: &AuditEvent) -> bool {
    event.user_agent.starts_with("kube-scheduler")
}

fn who_and_what(event: &AuditEvent) -> String {
    let who = if of_kube_scheduler(event) {
        "kube-scheduler"
    } else {
        "tessera"
    };
    match event.response_status.as_ref().map_or(0, |status| status.code) {
        code @ 400.. => format!("{who} {}: {code}", event.what()),
        _ => format!("{who} {}", event.what()),
    }
}

/// Whether the service on this port says that it is ready.
async fn ready(port: u16) -> bool {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let ask = async {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
        stream
            .write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            .await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        std::io::Result::Ok(answer.starts_with("HTTP/1.1 200"))
    };
    ask.await.unwrap_or(false)
}
