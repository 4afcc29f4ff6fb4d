//! A real one-node cluster with the product installed as a user installs it, and the few verbs that scenarios need.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use kube::api::{Api, DeleteParams, ListParams, LogParams, PostParams};
use serde_json::{Value, json};
use tessera_testcluster::{Cluster, Progress};

use crate::product::{self, Artefacts};

/// The annotation that says what a pod was given.
pub const ALLOCATED: &str = "hami.io/vgpu-devices-allocated";

/// A cluster and a client for it.
pub struct Stage {
    /// The cluster.
    pub cluster: Cluster,
    /// Connected as administrator.
    pub client: kube::Client,
}

impl std::fmt::Debug for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stage")
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

/// How a stage is made.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Description of the simulated machine, as YAML; `None` uses the real driver.
    pub cards: Option<String>,
    /// Where the cluster lives; `None` = a folder that vanishes with it.
    pub state: Option<PathBuf>,
    /// Stays up when the process ends.
    pub detached: bool,
    /// More values for the chart.
    pub values: Value,
    /// Pods the node takes.
    pub max_pods: u32,
}

impl Stage {
    /// Starts the cluster, loads the images, installs the chart, and waits until all of it serves.
    ///
    /// # Errors
    /// The first step that failed.
    pub async fn start(plan: &Plan, artefacts: &Artefacts, progress: &Progress) -> Result<Self> {
        let mut builder = Cluster::builder()
            .node_labels([("gpu".to_owned(), "on".to_owned())])
            .kubelet_config(json!({ "maxPods": plan.max_pods }))
            .progress(progress.clone());
        for path in product::NODE_PATHS {
            builder = builder.private_path(path);
        }
        if let Some(state) = &plan.state {
            builder = builder.state_dir(state);
        }
        if plan.detached {
            builder = builder.detached();
        }
        let cluster = builder.start().await.context("starting the cluster")?;
        let client = cluster.kube().await.context("connecting to the cluster")?;
        let stage = Self { cluster, client };
        stage.install(plan, artefacts, progress).await?;
        Ok(stage)
    }

    /// Loads the images and installs or updates the chart.
    ///
    /// # Errors
    /// The first step that failed.
    pub async fn install(&self, plan: &Plan, artefacts: &Artefacts, progress: &Progress) -> Result<()> {
        progress.step("Building and loading the images, about 10 s (3 min the first time)");
        product::load_images(&self.cluster, artefacts, progress).await?;
        progress.step("Installing the chart charts/tessera");
        let mut values = product::values(plan.cards.as_deref())?;
        merge(&mut values, &plan.values);
        let file = self.cluster.state_dir().join("values.json");
        std::fs::write(&file, serde_json::to_vec_pretty(&values)?)
            .with_context(|| format!("writing {}", file.display()))?;
        product::install_chart(self.cluster.binaries().helm(), &self.cluster.kubeconfig(), &file)?;
        progress.step("Waiting for scheduler and node agent, about 10 s");
        self.ready(plan.cards.as_deref()).await
    }

    /// Waits until scheduler, agent and players serve and the node counts the cards: those of `cards`, or the real ones.
    ///
    /// # Errors
    /// What is not ready in time.
    pub async fn ready(&self, cards: Option<&str>) -> Result<()> {
        let deployments: Api<Deployment> = Api::namespaced(self.client.clone(), product::NAMESPACE);
        let daemons: Api<DaemonSet> = Api::namespaced(self.client.clone(), product::NAMESPACE);
        let nodes: Api<Node> = Api::all(self.client.clone());
        wait_for("the scheduler", Duration::from_secs(120), async || {
            let all = deployments.list(&ListParams::default()).await?;
            let ready = |d: &Deployment| d.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0) >= 1;
            Ok(!all.items.is_empty() && all.items.iter().all(ready))
        })
        .await?;
        wait_for("the node agent", Duration::from_secs(120), async || {
            let all = daemons.list(&ListParams::default()).await?;
            let ready = |d: &DaemonSet| {
                d.status
                    .as_ref()
                    .is_some_and(|s| s.number_ready > 0 && s.number_ready == s.desired_number_scheduled)
            };
            Ok(!all.items.is_empty() && all.items.iter().all(ready))
        })
        .await?;
        let mut wanted: Vec<String> = Vec::new();
        if product::agent_serves(cards)? {
            wanted.push("nvidia.com/gpu".to_owned());
        }
        let played = cards.map(|cards| product::played(cards, "any")).transpose()?;
        wanted.extend(played.into_iter().flatten().map(|(_, resource, _)| resource));
        wait_for("the node's cards", Duration::from_secs(60), async || {
            let all = nodes.list(&ListParams::default()).await?;
            Ok(all.items.iter().any(|node| {
                let allocatable = node.status.as_ref().and_then(|s| s.allocatable.as_ref());
                let has = |name: &String| {
                    allocatable
                        .and_then(|a| a.get(name))
                        .is_some_and(|quantity| quantity.0 != "0")
                };
                wanted.iter().all(has)
            }))
        })
        .await
    }

    /// How much of each resource the live pods of the cluster ask for.
    ///
    /// # Errors
    /// The API server's.
    pub async fn held(&self) -> Result<BTreeMap<String, u64>> {
        let pods: Api<Pod> = Api::all(self.client.clone());
        let mut held = BTreeMap::new();
        for pod in pods.list(&ListParams::default()).await?.items {
            if !bound(&pod) || matches!(phase(&pod), "Succeeded" | "Failed") {
                continue;
            }
            let containers = pod.spec.into_iter().flat_map(|spec| spec.containers);
            let limits = containers.filter_map(|container| container.resources?.limits);
            for (name, quantity) in limits.flatten() {
                *held.entry(name).or_default() += quantity.0.parse::<u64>().unwrap_or(0);
            }
        }
        Ok(held)
    }

    /// Pods of `namespace`.
    #[must_use]
    pub fn pods(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Runs kubectl; its output, or its complaint as the error.
    ///
    /// # Errors
    /// What kubectl printed.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        let output = Command::new(self.cluster.binaries().kubectl())
            .current_dir(product::root())
            .env("KUBECONFIG", self.cluster.kubeconfig())
            .args(args)
            .output()
            .context("starting kubectl")?;
        if !output.status.success() {
            bail!(
                "kubectl {}: {}",
                args.join(" "),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Creates a pod.
    ///
    /// # Errors
    /// The API server's refusal, with the webhook's text in it.
    pub async fn create(&self, namespace: &str, pod: &Value) -> Result<Pod> {
        let pod: Pod = serde_json::from_value(pod.clone()).context("reading the pod of the test")?;
        Ok(self.pods(namespace).create(&PostParams::default(), &pod).await?)
    }

    /// Deletes a pod at once, without waiting.
    ///
    /// # Errors
    /// The API server's refusal; a pod that is gone already is none.
    pub async fn delete(&self, namespace: &str, name: &str) -> Result<()> {
        match self
            .pods(namespace)
            .delete(name, &DeleteParams::default().grace_period(0))
            .await
        {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until `good` holds for the pod.
    ///
    /// # Errors
    /// The pod's state when the time was over.
    pub async fn pod_until(
        &self,
        namespace: &str,
        name: &str,
        what: &str,
        deadline: Duration,
        good: impl Fn(&Pod) -> bool,
    ) -> Result<Pod> {
        let pods = self.pods(namespace);
        let start = Instant::now();
        loop {
            let pod = pods.get(name).await.with_context(|| format!("reading pod {name}"))?;
            if good(&pod) {
                return Ok(pod);
            }
            if start.elapsed() > deadline {
                let events = self.events(namespace, name).await.unwrap_or_default();
                bail!(
                    "pod {name} was not {what} after {} s; status {}; events {events:?}",
                    deadline.as_secs(),
                    serde_json::to_string(&pod.status).unwrap_or_default()
                );
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until the pod runs.
    ///
    /// # Errors
    /// The pod's state when the time was over.
    pub async fn running(&self, namespace: &str, name: &str) -> Result<Pod> {
        self.pod_until(namespace, name, "Running", Duration::from_secs(60), |pod| {
            phase(pod) == "Running"
        })
        .await
    }

    /// The first JSON object that the pod printed, waited for.
    ///
    /// # Errors
    /// The pod's log when the time was over.
    pub async fn printed(&self, namespace: &str, name: &str) -> Result<Value> {
        let pods = self.pods(namespace);
        let start = Instant::now();
        loop {
            let log = pods.logs(name, &LogParams::default()).await.unwrap_or_default();
            if let Some(value) = log.lines().find_map(|line| serde_json::from_str::<Value>(line).ok()) {
                return Ok(value);
            }
            ensure!(
                start.elapsed() < Duration::from_secs(60),
                "pod {name} printed no JSON: {log}"
            );
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Texts of the pod's events as `(reason, note, count)`.
    ///
    /// # Errors
    /// The API server's.
    pub async fn events(&self, namespace: &str, name: &str) -> Result<Vec<(String, String, i32)>> {
        let events: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        let list = events
            .list(&ListParams::default().fields(&format!("involvedObject.name={name}")))
            .await?;
        Ok(list
            .items
            .into_iter()
            .map(|e| {
                (
                    e.reason.unwrap_or_default(),
                    e.message.unwrap_or_default(),
                    e.count.unwrap_or(1),
                )
            })
            .collect())
    }
}

/// The pod's phase, empty if it has none yet.
#[must_use]
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

/// The value of an annotation.
#[must_use]
pub fn annotation<'p>(pod: &'p Pod, key: &str) -> Option<&'p str> {
    pod.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// Whether the pod has been bound to a node.
#[must_use]
pub fn bound(pod: &Pod) -> bool {
    pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some())
}

/// Asks again until `done`; says what it waited for when the time is over.
///
/// # Errors
/// An error of the question, or the end of the time.
pub async fn wait_for(what: &str, deadline: Duration, mut done: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    loop {
        if done().await.with_context(|| format!("waiting for {what}"))? {
            return Ok(());
        }
        ensure!(
            start.elapsed() < deadline,
            "{what}: not ready after {} s",
            deadline.as_secs()
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Lays `over` over `base`, objects member by member.
pub fn merge(base: &mut Value, over: &Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (_, Value::Null) => {}
        (base, over) => *base = over.clone(),
    }
}
