//! A part on a real node: the kubelet's sockets and the API server.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use tessera_kubelet::proto::deviceplugin_v1beta1 as wire;
use tessera_kubelet::{DeviceHealth, Plugin, PluginDevice, PreferredRequest, Refusal, ServeConfig, StreamState};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::answer::{Given, Served, answer};
use crate::play::{Choose, Part};
use crate::texts::Card;

/// HAMi's node lock.
const LOCK: &str = "hami.io/mutex.lock";
const DSMLU_LOCK: &str = "cambricon.com/dsmlu.lock";
const BIND_PHASE: &str = "hami.io/bind-phase";
const BIND_TIME: &str = "hami.io/bind-time";
const NODE: &str = "hami.io/vgpu-node";
/// How often makers' plugins write their heartbeat.
const HEARTBEAT: Duration = Duration::from_secs(30);
const HEARTBEAT_AFTER_ERROR: Duration = Duration::from_secs(5);

/// Where a part is played.
#[derive(Clone)]
pub struct Place {
    /// The node's name.
    pub node: String,
    /// The kubelet's device plugin folder.
    pub plugin_dir: PathBuf,
    /// The API server.
    pub client: kube::Client,
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Place")
            .field("node", &self.node)
            .field("plugin_dir", &self.plugin_dir)
            .finish_non_exhaustive()
    }
}

/// Plays `part` until `stop`.
///
/// # Errors
/// The kubelet's folder cannot be used.
pub async fn run(part: Part, place: Place, stop: CancellationToken) -> Result<()> {
    let cards = part.cards(&place.node);
    let stop = stop.child_token();
    if part.misbehave.dead_after_s > 0 {
        let (dead, after) = (stop.clone(), Duration::from_secs(part.misbehave.dead_after_s));
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            dead.cancel();
        });
    }
    let player = Arc::new(Player {
        part,
        place,
        cards,
        served: Mutex::default(),
    });
    let mut parts = tokio::task::JoinSet::new();
    parts.spawn({
        let (player, stop) = (Arc::clone(&player), stop.clone());
        async move {
            player.heartbeat(&stop).await;
            Ok(())
        }
    });
    for resource in &player.part.play.resources {
        let name = player.part.named(&resource.name);
        let ids = player.part.ids(resource, &player.place.node);
        let stem = name.replace(['/', '.'], "-");
        let times = if player.part.misbehave.twice { 2 } else { 1 };
        for time in 0..times {
            let config = ServeConfig {
                plugin_dir: player.place.plugin_dir.clone(),
                kubelet_socket: player.place.plugin_dir.join("kubelet.sock"),
                resource: name.clone(),
                socket_stem: format!("player-{stem}-{time}"),
            };
            let plugin = Arc::new(Counter {
                devices: watch::channel(
                    ids.iter()
                        .map(|id| PluginDevice {
                            id: id.clone(),
                            health: DeviceHealth::Healthy,
                            numa: None,
                        })
                        .collect(),
                )
                .0,
                player: Arc::clone(&player),
            });
            let stop = stop.clone();
            parts.spawn(async move {
                let (state, _) = watch::channel(StreamState::NoKubelet);
                let resource = config.resource.clone();
                tessera_kubelet::serve(config, plugin, state, stop)
                    .await
                    .with_context(|| format!("serving {resource}"))
            });
        }
    }
    while let Some(ended) = parts.join_next().await {
        ended.context("a part of the player panicked")??;
    }
    Ok(())
}

/// One resource of a player.
struct Counter {
    devices: watch::Sender<Arc<[PluginDevice]>>,
    player: Arc<Player>,
}

impl Plugin for Counter {
    fn devices(&self) -> watch::Receiver<Arc<[PluginDevice]>> {
        self.devices.subscribe()
    }

    async fn preferred(&self, _: Vec<PreferredRequest>) -> Vec<Vec<String>> {
        Vec::new()
    }

    async fn allocate(&self, requests: Vec<Vec<String>>) -> Result<Vec<wire::ContainerAllocateResponse>, Refusal> {
        self.player.allocate(&requests).await.map_err(|error| {
            warn!(
                vendor = self.player.part.vendor,
                error = format!("{error:#}"),
                "Refused an allocation."
            );
            Refusal {
                retryable: false,
                message: format!("{error:#}"),
            }
        })
    }

    async fn pre_start(&self, _: Vec<String>) -> Result<(), Refusal> {
        Ok(())
    }
}

struct Player {
    part: Part,
    place: Place,
    cards: Vec<Card>,
    /// Calls that were answered, by uid. Plugins serve one at a time.
    served: Mutex<BTreeMap<String, u32>>,
}

impl Player {
    async fn heartbeat(&self, stop: &CancellationToken) {
        let nodes: Api<Node> = Api::all(self.place.client.clone());
        loop {
            let annotations = self.part.node_annotations(&self.place.node, Timestamp::now());
            let mut pause = HEARTBEAT;
            if !annotations.is_empty() {
                let patch = json!({ "metadata": { "annotations": annotations } });
                for _ in 0..if self.part.misbehave.twice { 2 } else { 1 } {
                    let written = nodes
                        .patch(&self.place.node, &PatchParams::default(), &Patch::Merge(&patch))
                        .await;
                    if let Err(error) = written {
                        warn!(vendor = self.part.vendor, %error, "Could not write the register.");
                        pause = HEARTBEAT_AFTER_ERROR;
                    }
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn allocate(&self, requests: &[Vec<String>]) -> Result<Vec<wire::ContainerAllocateResponse>> {
        let mut served = self.served.lock().await;
        tokio::time::sleep(Duration::from_secs(self.part.misbehave.late_s)).await;
        let Some(pod) = self.pod(requests).await? else {
            let answered =
                answer(&self.part, &self.cards, &BTreeMap::new(), 0, requests).map_err(anyhow::Error::msg)?;
            return Ok(responses(&answered.containers));
        };
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let calls = served.get(&uid).copied().unwrap_or(0);
        let annotations = pod.metadata.annotations.clone().unwrap_or_default();
        match answer(&self.part, &self.cards, &annotations, calls, requests) {
            Ok(outcome) => {
                *served.entry(uid).or_default() += 1;
                self.finish(&pod, &outcome).await?;
                info!(vendor = self.part.vendor, pod = name(&pod), "Allocated.");
                Ok(responses(&outcome.containers))
            }
            Err(problem) => {
                self.fail(&pod).await?;
                bail!("pod {}: {problem}", name(&pod))
            }
        }
    }

    /// The pod that is asked for, found as this maker's plugin does; `None` if it does not care.
    async fn pod(&self, requests: &[Vec<String>]) -> Result<Option<Pod>> {
        let has = |pod: &Pod, key: &str| annotation(pod, key).is_some();
        let since = |pod: &Pod, key: &str| annotation(pod, key).and_then(|text| text.parse::<i128>().ok());
        let pod = match &self.part.play.choose {
            Choose::Ids => return Ok(None),
            Choose::ToAllocate { key, lock } => {
                if let Some(owner) = self.lock_owner().await?.filter(|_| *lock) {
                    let (namespace, name) = owner;
                    let pods: Api<Pod> = Api::namespaced(self.place.client.clone(), &namespace);
                    return Ok(Some(pods.get(&name).await.with_context(|| {
                        format!("reading pod {namespace}/{name}, which holds the node lock")
                    })?));
                }
                let key = self.part.named(key);
                let waits = |pod: &&Pod| {
                    has(pod, BIND_TIME)
                        && matches!(annotation(pod, BIND_PHASE), Some("allocating" | "success"))
                        && annotation(pod, NODE) == Some(self.place.node.as_str())
                        && annotation(pod, &key).is_some_and(|text| text.contains(','))
                };
                self.pending().await?.iter().find(waits).cloned()
            }
            Choose::DeviceJson { key, since: time, .. } => {
                let mut waiting = self.pending().await?;
                waiting.retain(|pod| has(pod, key) && annotation(pod, BIND_PHASE) != Some("failed"));
                waiting.sort_by_key(|pod| (annotation(pod, BIND_PHASE) == Some("success"), since(pod, time)));
                waiting.into_iter().next()
            }
            Choose::Dsmlu { .. } => {
                let mut waiting = self.pending().await?;
                waiting.retain(|pod| annotation(pod, "CAMBRICON_DSMLU_ASSIGHED") == Some("false"));
                if waiting.len() > 1 {
                    bail!("{} pods wait for a profile; one can be served", waiting.len());
                }
                waiting.into_iter().next()
            }
            Choose::Gcushare { key, since: time } => {
                let slices = requests.first().map_or(0, Vec::len) as u64;
                let mut waiting = self.pending().await?;
                waiting.retain(|pod| {
                    let containers: BTreeMap<String, Value> = annotation(pod, key)
                        .and_then(|text| serde_json::from_str(text).ok())
                        .unwrap_or_default();
                    containers.values().any(|container| {
                        container["allocated"] != json!(true) && container["request"].as_u64() == Some(slices)
                    })
                });
                waiting.sort_by_key(|pod| since(pod, time));
                waiting.into_iter().next()
            }
        };
        pod.map(Some).context("no pod on this node waits for an allocation")
    }

    async fn pending(&self) -> Result<Vec<Pod>> {
        let pods: Api<Pod> = Api::all(self.place.client.clone());
        let here = ListParams::default().fields(&format!("spec.nodeName={},status.phase=Pending", self.place.node));
        Ok(pods.list(&here).await.context("listing the node's pods")?.items)
    }

    async fn node(&self) -> Result<Node> {
        let nodes: Api<Node> = Api::all(self.place.client.clone());
        nodes.get(&self.place.node).await.context("reading the node")
    }

    /// Namespace and name of the pod that holds the node lock.
    async fn lock_owner(&self) -> Result<Option<(String, String)>> {
        let annotations = self.node().await?.metadata.annotations.unwrap_or_default();
        let lock = annotations.get(LOCK).map(|text| text.split(',').collect::<Vec<_>>());
        Ok(match lock.as_deref() {
            Some([_, namespace, name]) => Some(((*namespace).to_owned(), (*name).to_owned())),
            _ => None,
        })
    }

    async fn finish(&self, pod: &Pod, outcome: &Served) -> Result<()> {
        let mut annotations: BTreeMap<String, String> = outcome.annotations.clone();
        let (phase, lock) = match &self.part.play.choose {
            Choose::ToAllocate { lock, .. } | Choose::DeviceJson { lock, .. } => (true, lock.then_some(LOCK)),
            Choose::Dsmlu { .. } => (false, Some(DSMLU_LOCK)),
            Choose::Gcushare { .. } | Choose::Ids => (false, None),
        };
        if outcome.done && phase {
            annotations.insert(BIND_PHASE.into(), "success".into());
        }
        if !annotations.is_empty() {
            self.annotate(pod, &json!(annotations)).await?;
        }
        if outcome.done
            && let Some(lock) = lock
        {
            self.unlock(pod, lock).await?;
        }
        Ok(())
    }

    async fn fail(&self, pod: &Pod) -> Result<()> {
        if let Choose::ToAllocate { lock, .. } | Choose::DeviceJson { lock, .. } = &self.part.play.choose {
            self.annotate(pod, &json!({ BIND_PHASE: "failed" })).await?;
            if *lock {
                self.unlock(pod, LOCK).await?;
            }
        }
        Ok(())
    }

    async fn annotate(&self, pod: &Pod, annotations: &Value) -> Result<()> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let pods: Api<Pod> = Api::namespaced(self.place.client.clone(), namespace);
        let patch = json!({ "metadata": { "annotations": annotations } });
        pods.patch(name, &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .with_context(|| format!("writing on pod {namespace}/{name}"))?;
        Ok(())
    }

    /// Takes the lock away if it is this pod's. Cambricon's names nobody.
    async fn unlock(&self, pod: &Pod, lock: &str) -> Result<()> {
        if lock == LOCK {
            let owner = self.lock_owner().await?;
            let own = (
                pod.metadata.namespace.clone().unwrap_or_default(),
                pod.metadata.name.clone().unwrap_or_default(),
            );
            if owner.is_some_and(|owner| owner != own) {
                return Ok(());
            }
        }
        let nodes: Api<Node> = Api::all(self.place.client.clone());
        let patch = json!({ "metadata": { "annotations": { lock: null } } });
        nodes
            .patch(&self.place.node, &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .context("releasing the node lock")?;
        Ok(())
    }
}

fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

fn name(pod: &Pod) -> String {
    let part = |text: &Option<String>| text.clone().unwrap_or_default();
    format!("{}/{}", part(&pod.metadata.namespace), part(&pod.metadata.name))
}

fn responses(containers: &[Given]) -> Vec<wire::ContainerAllocateResponse> {
    containers
        .iter()
        .map(|given| wire::ContainerAllocateResponse {
            envs: given.env.clone().into_iter().collect(),
            // There is no such hardware: each device file is the null device.
            devices: given
                .devices
                .iter()
                .map(|path| wire::DeviceSpec {
                    container_path: path.clone(),
                    host_path: "/dev/null".into(),
                    permissions: "rw".into(),
                })
                .collect(),
            ..Default::default()
        })
        .collect()
}
