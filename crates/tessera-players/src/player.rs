//! A player at work: it serves the kubelet, keeps its heart beating, and answers `Allocate`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use tessera_kubelet::proto::deviceplugin_v1beta1::ContainerAllocateResponse;
use tessera_kubelet::{Plugin, PluginDevice, PreferredRequest, Refusal, ServeConfig, ServeError, StreamState, serve};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use crate::api::{ApiError, Server};
use crate::machine::{Card, Machine};
use crate::part::Source;
use crate::pick::{self, annotation};
use crate::promise::{self, Share};
use crate::quirk;
use crate::template::{UnknownWord, Words, fill};

/// What the player does wrong on purpose.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mischief {
    /// Answers `Allocate` so much later.
    pub late: Option<Duration>,
    /// Handles every `Allocate` twice, as after an answer that got lost.
    pub twice: bool,
    /// Stops serving and beating after so long, and stays.
    pub dead_after: Option<Duration>,
    /// Writes the register as an older release did.
    pub old: bool,
    /// Hands out other cards than promised.
    pub wrong: bool,
}

/// Where a player plays.
#[derive(Debug, Clone)]
pub struct Setting {
    /// The kubelet's device plugin folder.
    pub plugin_dir: PathBuf,
    /// Between two heartbeats.
    pub beat: Duration,
    /// What it does wrong.
    pub mischief: Mischief,
}

/// Why a player cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum PlayError {
    /// Its texts are broken.
    #[error(transparent)]
    Text(#[from] UnknownWord),
    /// The kubelet cannot be served.
    #[error("serving {resource}")]
    Serve {
        /// The resource.
        resource: String,
        /// Why.
        source: ServeError,
    },
}

/// One maker's plugin on one node.
#[derive(Debug)]
pub struct Player {
    machine: Machine,
    server: Server,
    mischief: Mischief,
    /// Calls answered so far; one at a time, as a plugin's own mutex does.
    served: Mutex<Served>,
}

/// What a plugin remembers of the pods it has answered for.
#[derive(Debug, Default)]
struct Served {
    /// Devices handed out, by pod and resource, call by call.
    calls: HashMap<(String, String), Vec<u64>>,
    /// Resources answered for a pod that needs an answer for each of several.
    answered: HashMap<String, BTreeSet<String>>,
}

/// A refusal with the pod it is about, if one was found.
struct No {
    pod: Option<Box<Pod>>,
    text: String,
}

impl No {
    fn of(pod: &Pod, text: impl std::fmt::Display) -> Self {
        Self {
            pod: Some(Box::new(pod.clone())),
            text: text.to_string(),
        }
    }
}

impl From<ApiError> for No {
    fn from(error: ApiError) -> Self {
        Self {
            pod: None,
            text: error.to_string(),
        }
    }
}

fn uid(pod: &Pod) -> String {
    pod.metadata.uid.clone().unwrap_or_default()
}

/// A pod's container is to get these cards; what is written then.
struct Answer<'m> {
    pod: Option<Pod>,
    held: Vec<(&'m Card, Share)>,
    words: Words,
    annotations: BTreeMap<String, String>,
    /// All of the pod's containers have been served.
    done: bool,
}

impl Player {
    /// A player with these cards.
    #[must_use]
    pub fn new(machine: Machine, server: Server, mischief: Mischief) -> Self {
        Self {
            machine,
            server,
            mischief,
            served: Mutex::default(),
        }
    }

    /// Writes on the node what the plugin writes at each beat.
    ///
    /// # Errors
    /// The API server's, as text.
    pub async fn beat(&self) -> Result<(), String> {
        let now = jiff::Zoned::now();
        let dots = now.strftime("%Y.%m.%d %H:%M:%S").to_string();
        let dashes = now.strftime("%Y-%m-%d %H:%M:%S").to_string();
        let go = now.strftime("%Y-%m-%d %H:%M:%S.%f %z %Z").to_string();
        let annotations = self
            .machine
            .node_annotations(self.mischief.old, &dots, &dashes, &go)
            .map_err(|error| error.to_string())?;
        let mut labels = BTreeMap::new();
        for card in &self.machine.cards {
            for (key, text) in &self.machine.part.node_labels {
                labels.insert(key, fill(text, &card.words).map_err(|error| error.to_string())?);
            }
        }
        let metadata = json!({ "annotations": annotations, "labels": labels });
        self.server
            .patch_node(metadata)
            .await
            .map_err(|error| error.to_string())
    }

    /// Answers one container's request for devices of `resource`.
    ///
    /// # Errors
    /// A refusal; the pod's phase says so, and its lock is given back.
    pub async fn answer(&self, resource: &str, ids: &[String]) -> Result<ContainerAllocateResponse, Refusal> {
        if let Some(late) = self.mischief.late {
            tokio::time::sleep(late).await;
        }
        let mut served = self.served.lock().await;
        let first = self.handle(&mut served, resource, ids).await;
        let outcome = match (first, self.mischief.twice) {
            // The second time may fail: the first answer is what the kubelet got.
            (Ok(answer), true) => Ok(self.handle(&mut served, resource, ids).await.unwrap_or(answer)),
            (outcome, _) => outcome,
        };
        match outcome {
            Ok(answer) => Ok(answer),
            Err(no) => {
                if let Some(pod) = &no.pod {
                    self.give_up(pod).await;
                }
                tracing::warn!(%resource, error = %no.text, "Refused an Allocate.");
                Err(Refusal {
                    retryable: false,
                    message: no.text,
                })
            }
        }
    }

    async fn give_up(&self, pod: &Pod) {
        let allocate = &self.machine.part.allocate;
        if allocate.phase {
            let failed = BTreeMap::from([("hami.io/bind-phase".to_owned(), "failed".to_owned())]);
            if let Err(error) = self.server.annotate(pod, &failed).await {
                tracing::warn!(%error, "Could not write the phase.");
            }
        }
        if let Some(lock) = &allocate.lock
            && let Err(error) = self.server.unlock(lock, pod).await
        {
            tracing::warn!(%error, "Could not give back the lock.");
        }
    }

    async fn handle(
        &self,
        served: &mut Served,
        resource: &str,
        ids: &[String],
    ) -> Result<ContainerAllocateResponse, No> {
        let mut answer = match self.machine.part.allocate.from {
            Source::Text => self.read_text(ids).await?,
            Source::Ids => self.read_ids(resource, ids)?,
            Source::Shares => self.read_shares(served, resource, ids).await?,
            Source::Indexes | Source::Units => self.read_numbers(served, resource, ids).await?,
            Source::Containers => self.read_containers(ids).await?,
            Source::Profile => self.read_profile(served, resource).await?,
        };
        if self.mischief.wrong {
            self.swap(&mut answer.held);
        }
        self.finish(answer, resource, ids).await
    }

    /// Hands out the card after the promised one.
    fn swap<'m>(&'m self, held: &mut [(&'m Card, Share)]) {
        for (card, share) in held {
            if let Some(other) = self
                .machine
                .cards
                .get((card.index + 1) % self.machine.cards.len().max(1))
            {
                *card = other;
                share.card.clone_from(&other.id);
            }
        }
    }

    async fn finish(
        &self,
        mut answer: Answer<'_>,
        resource: &str,
        ids: &[String],
    ) -> Result<ContainerAllocateResponse, No> {
        let part = &self.machine.part;
        let mut response = ContainerAllocateResponse::default();
        let refuse = |text: String| No {
            pod: answer.pod.clone().map(Box::new),
            text,
        };
        for variable in &part.allocate.env {
            if variable.resource.as_ref().is_some_and(|only| only != resource) {
                continue;
            }
            let mut parts = Vec::new();
            for (position, (card, share)) in answer.held.iter().enumerate() {
                let template = match (&variable.each, &variable.first) {
                    (Some(each), _) => each,
                    (None, Some(first)) if position == 0 => first,
                    _ => continue,
                };
                let mut words = card.words.clone();
                words.extend(answer.words.clone());
                words.insert("mib".to_owned(), share.mib.to_string());
                words.insert("percent".to_owned(), share.percent.to_string());
                words.insert("position".to_owned(), position.to_string());
                words.insert("asked".to_owned(), ids.len().to_string());
                if part.allocate.from == Source::Units {
                    words.insert("unit".to_owned(), share.percent.to_string());
                }
                parts.push(fill(template, &words).map_err(|error| refuse(error.to_string()))?);
            }
            parts.dedup_by(|a, b| part.allocate.from == Source::Units && a == b);
            response.envs.insert(variable.name.clone(), parts.join(&variable.join));
        }
        if let (Some(quirk), Some(pod)) = (part.allocate.quirk, &answer.pod) {
            let others = self.server.on_node().await?;
            let more = quirk::more(quirk, pod, &answer.held, &others).map_err(refuse)?;
            response.envs.extend(more.env);
            answer.annotations.extend(more.annotations);
        }
        let Some(pod) = answer.pod else { return Ok(response) };
        if answer.done && part.allocate.phase {
            answer
                .annotations
                .insert("hami.io/bind-phase".to_owned(), "success".to_owned());
        }
        if answer.done
            && let Some(waiting) = &part.allocate.waiting
        {
            answer.annotations.insert(waiting.key.clone(), waiting.to.clone());
        }
        if !answer.annotations.is_empty() {
            self.server
                .annotate(&pod, &answer.annotations)
                .await
                .map_err(|error| No::of(&pod, error))?;
        }
        if answer.done
            && let Some(lock) = &part.allocate.lock
        {
            self.server
                .unlock(lock, &pod)
                .await
                .map_err(|error| No::of(&pod, error))?;
        }
        Ok(response)
    }

    /// The pod that the lock names, else the pods that wait for this plugin, the oldest first.
    async fn candidates(&self) -> Result<Vec<Pod>, No> {
        let allocate = &self.machine.part.allocate;
        if let Some(lock) = allocate.lock.as_ref().filter(|_| allocate.waiting.is_none()) {
            let held = self.server.node_annotations().await?.remove(lock);
            if let Some((namespace, name)) = held.as_deref().and_then(pick::owner) {
                let pod = self.server.pod(namespace, name).await?.ok_or_else(|| No {
                    pod: None,
                    text: format!("the node's lock names pod {namespace}/{name}, which does not exist"),
                })?;
                return Ok(vec![pod]);
            }
        }
        let mut pods = self.server.pending().await?;
        pods.retain(|pod| match &allocate.waiting {
            Some(waiting) => annotation(pod, &waiting.key) == Some(waiting.from.as_str()),
            None => pick::between_bind_and_start(pod, &self.machine.node),
        });
        if let Some(moment) = &allocate.moment {
            pick::oldest_first(&mut pods, moment);
        }
        Ok(pods)
    }

    fn nobody() -> No {
        No {
            pod: None,
            text: "no pod waits for this plugin on the node".to_owned(),
        }
    }

    fn cards<'m>(&'m self, pod: &Pod, shares: Vec<Share>) -> Result<Vec<(&'m Card, Share)>, No> {
        shares
            .into_iter()
            .map(|share| match self.machine.card(&share.card) {
                Some(card) => Ok((card, share)),
                None => Err(No::of(pod, format!("unknown uuid: {}", share.card))),
            })
            .collect()
    }

    async fn read_text(&self, ids: &[String]) -> Result<Answer<'_>, No> {
        let allocate = &self.machine.part.allocate;
        let keys = self.keys(&allocate.key);
        let mut refusal = None;
        for pod in self.candidates().await? {
            let Some((key, text)) = keys
                .iter()
                .find_map(|key| Some((key, annotation(&pod, key).filter(|text| text.contains(','))?)))
            else {
                continue;
            };
            let entries = promise::entries(text).map_err(|error| No::of(&pod, error))?;
            let shares = entries.into_iter().find(|entry| !entry.is_empty()).unwrap_or_default();
            if shares.len() != ids.len() {
                refusal = refusal.or(Some(No::of(
                    &pod,
                    format!(
                        "device number not matched: annotation has {}, request has {}",
                        shares.len(),
                        ids.len()
                    ),
                )));
                continue;
            }
            let held = self.cards(&pod, shares)?;
            let rest = promise::without_first(text);
            return Ok(Answer {
                held,
                done: !rest.contains(','),
                annotations: BTreeMap::from([(key.clone(), rest)]),
                words: Words::new(),
                pod: Some(pod),
            });
        }
        Err(refusal.unwrap_or_else(Self::nobody))
    }

    /// The keys that a template stands for, one for each kind of card.
    fn keys(&self, template: &str) -> BTreeSet<String> {
        let cards = self.machine.cards.iter();
        cards.filter_map(|card| fill(template, &card.words).ok()).collect()
    }

    fn read_ids(&self, resource: &str, ids: &[String]) -> Result<Answer<'_>, No> {
        let held = ids
            .iter()
            .map(|id| {
                let card = self.machine.card_of_device(resource, id).ok_or_else(|| No {
                    pod: None,
                    text: format!("unknown device {id}"),
                })?;
                let share = Share {
                    card: card.id.clone(),
                    mib: 0,
                    percent: 100,
                };
                Ok((card, share))
            })
            .collect::<Result<_, No>>()?;
        Ok(Answer {
            pod: None,
            held,
            words: Words::new(),
            annotations: BTreeMap::new(),
            done: false,
        })
    }

    /// How many of the pod's containers that ask for `resource` have been served, and what the next one asks for.
    fn next(&self, served: &Served, pod: &Pod, resource: &str) -> (usize, Option<u64>, u64) {
        let asks: Vec<u64> = pick::containers(pod)
            .map(|container| pick::asks(container, resource))
            .filter(|asked| *asked > 0)
            .collect();
        let before = served.calls.get(&(uid(pod), resource.to_owned()));
        let number = before.map_or(0, Vec::len);
        (
            number,
            asks.get(number).copied(),
            before.map_or(0, |calls| calls.iter().sum()),
        )
    }

    /// Whether every container has been served, for every resource of this plugin.
    fn all_served(&self, served: &Served, pod: &Pod) -> bool {
        let names = self.machine.devices().unwrap_or_default();
        names.iter().all(|(name, _)| self.next(served, pod, name).1.is_none())
    }

    async fn read_shares(&self, served: &mut Served, resource: &str, ids: &[String]) -> Result<Answer<'_>, No> {
        let key = &self.machine.part.allocate.key;
        for pod in self.candidates().await? {
            let (number, asked, _) = self.next(served, &pod, resource);
            let Some(text) = annotation(&pod, key).filter(|_| asked == Some(ids.len() as u64)) else {
                continue;
            };
            let all = promise::shares(text).map_err(|error| No::of(&pod, error))?;
            let Some(shares) = all.into_iter().filter(|entry| !entry.is_empty()).nth(number) else {
                return Err(No::of(&pod, format!("{key} has no entry for container {number}")));
            };
            let held = self.cards(&pod, shares)?;
            note(served, &pod, resource, ids);
            return Ok(Answer {
                held,
                done: self.all_served(served, &pod),
                annotations: BTreeMap::new(),
                words: Words::new(),
                pod: Some(pod),
            });
        }
        Err(Self::nobody())
    }

    async fn read_numbers(&self, served: &mut Served, resource: &str, ids: &[String]) -> Result<Answer<'_>, No> {
        let allocate = &self.machine.part.allocate;
        for pod in self.candidates().await? {
            let (_, asked, before) = self.next(served, &pod, resource);
            let Some(text) = annotation(&pod, &allocate.key).filter(|_| asked == Some(ids.len() as u64)) else {
                continue;
            };
            let mut numbers = promise::numbers(text).map_err(|error| No::of(&pod, error))?;
            if allocate.from == Source::Units {
                let skip = usize::try_from(before).unwrap_or(usize::MAX);
                numbers = numbers.into_iter().skip(skip).take(ids.len()).collect();
            }
            let mut held = Vec::new();
            for number in numbers {
                let per_card = self.units_of_a_card(resource);
                let at = usize::try_from(number / per_card).unwrap_or(usize::MAX);
                let card = self
                    .machine
                    .cards
                    .get(at)
                    .ok_or_else(|| No::of(&pod, format!("there is no card for number {number}")))?;
                let share = Share {
                    card: card.id.clone(),
                    mib: 0,
                    percent: number,
                };
                held.push((card, share));
            }
            note(served, &pod, resource, ids);
            return Ok(Answer {
                held,
                done: self.all_served(served, &pod),
                annotations: BTreeMap::new(),
                words: Words::new(),
                pod: Some(pod),
            });
        }
        Err(Self::nobody())
    }

    /// Units are counted through the cards for resources that are parts of a card.
    fn units_of_a_card(&self, resource: &str) -> u64 {
        let part = &self.machine.part;
        let known = part.resources.iter().find(|known| known.name == resource);
        match (part.allocate.from, known, self.machine.cards.first()) {
            (Source::Units, Some(known), Some(card)) if known.id.contains("$slot") => fill(&known.number, &card.words)
                .ok()
                .and_then(|text| text.parse().ok())
                .filter(|number| *number > 0)
                .unwrap_or(1),
            _ => 1,
        }
    }

    async fn read_containers(&self, ids: &[String]) -> Result<Answer<'_>, No> {
        let key = &self.machine.part.allocate.key;
        for pod in self.candidates().await? {
            let Some(text) = annotation(&pod, key) else { continue };
            let mut all = promise::containers(text).map_err(|error| No::of(&pod, error))?;
            let asked = json!(ids.len());
            let waits = |entry: &&mut Value| entry["allocated"] == json!(false) && entry["request"] == asked;
            let Some(entry) = all.values_mut().find(waits) else {
                continue;
            };
            let instance = format!("{}-{}", uid(&pod), entry["profileID"].as_str().unwrap_or_default());
            entry["allocated"] = json!(true);
            entry["instanceUUID"] = json!(instance);
            let index = annotation(&pod, "enflame.com/gcu-assigned-index").unwrap_or_default();
            let at: usize = index
                .parse()
                .map_err(|_| No::of(&pod, format!("`{index}` is no card number")))?;
            let card = self
                .machine
                .cards
                .get(at)
                .ok_or_else(|| No::of(&pod, format!("there is no card {at}")))?;
            let share = Share {
                card: card.id.clone(),
                mib: 0,
                percent: ids.len() as u64,
            };
            let done = all.values().all(|entry| entry["allocated"] == json!(true));
            let text = serde_json::to_string(&all).map_err(|error| No::of(&pod, error))?;
            return Ok(Answer {
                held: vec![(card, share)],
                done,
                annotations: BTreeMap::from([(key.clone(), text)]),
                words: Words::from([("instance".to_owned(), instance)]),
                pod: Some(pod),
            });
        }
        Err(Self::nobody())
    }

    /// One profile serves the pod; the kubelet asks for each of the pod's resources, and is answered the same.
    async fn read_profile(&self, served: &mut Served, resource: &str) -> Result<Answer<'_>, No> {
        let key = &self.machine.part.allocate.key;
        let names: Vec<String> = self
            .machine
            .devices()
            .unwrap_or_default()
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        let asks = |pod: &Pod, name: &str| pick::containers(pod).any(|container| pick::asks(container, name) > 0);
        let mut pods = self.candidates().await?;
        pods.retain(|pod| names.iter().any(|name| asks(pod, name)));
        let pod = match pods.len() {
            0 => return Err(Self::nobody()),
            1 => pods.remove(0),
            many => {
                return Err(No {
                    pod: None,
                    text: format!("{many} pods wait for this plugin on the node, it can serve one at a time"),
                });
            }
        };
        let text = annotation(&pod, key).ok_or_else(|| No::of(&pod, format!("the pod has no annotation {key}")))?;
        let (number, percent, units) = promise::profile(text).map_err(|error| No::of(&pod, error))?;
        let card = usize::try_from(number)
            .ok()
            .and_then(|at| self.machine.cards.get(at))
            .ok_or_else(|| No::of(&pod, format!("there is no slot {number}")))?;
        let share = Share {
            card: card.id.clone(),
            mib: units * 256,
            percent,
        };
        let answered = served.answered.entry(uid(&pod)).or_default();
        answered.insert(resource.to_owned());
        let done = names
            .iter()
            .filter(|name| asks(&pod, name))
            .all(|name| answered.contains(name));
        let mut annotations = BTreeMap::new();
        if done {
            let instance = format!("1_{}_{number}_1", 256 + number);
            annotations.insert("CAMBRICON_DSMLU_PROFILE_INSTANCE".to_owned(), instance);
        }
        Ok(Answer {
            held: vec![(card, share)],
            done,
            annotations,
            words: Words::new(),
            pod: Some(pod),
        })
    }
}

fn note(served: &mut Served, pod: &Pod, resource: &str, ids: &[String]) {
    let calls = served.calls.entry((uid(pod), resource.to_owned())).or_default();
    calls.push(ids.len() as u64);
}

/// One resource of a player, as the kubelet sees it.
#[derive(Debug)]
struct Stand {
    player: Arc<Player>,
    resource: String,
    devices: watch::Sender<Arc<[PluginDevice]>>,
}

impl Plugin for Stand {
    fn devices(&self) -> watch::Receiver<Arc<[PluginDevice]>> {
        self.devices.subscribe()
    }

    async fn preferred(&self, requests: Vec<PreferredRequest>) -> Vec<Vec<String>> {
        requests.into_iter().map(|_| Vec::new()).collect()
    }

    async fn allocate(&self, requests: Vec<Vec<String>>) -> Result<Vec<ContainerAllocateResponse>, Refusal> {
        let mut answers = Vec::with_capacity(requests.len());
        for ids in requests {
            answers.push(self.player.answer(&self.resource, &ids).await?);
        }
        Ok(answers)
    }

    async fn pre_start(&self, _ids: Vec<String>) -> Result<(), Refusal> {
        Ok(())
    }
}

/// Plays until `cancel`.
///
/// # Errors
/// Another plugin owns one of the resources.
pub async fn play(player: Arc<Player>, setting: &Setting, cancel: CancellationToken) -> Result<(), PlayError> {
    let dead = cancel.child_token();
    let mut stands = tokio::task::JoinSet::new();
    for (number, (resource, devices)) in player.machine.devices()?.into_iter().enumerate() {
        let stand = Arc::new(Stand {
            player: Arc::clone(&player),
            resource: resource.clone(),
            devices: watch::channel(devices.into()).0,
        });
        let config = ServeConfig {
            plugin_dir: setting.plugin_dir.clone(),
            kubelet_socket: setting.plugin_dir.join("kubelet.sock"),
            resource: resource.clone(),
            socket_stem: format!("player-{}-{number}", player.machine.part.vendor),
        };
        let (cancel, state) = (dead.clone(), watch::channel(StreamState::NoKubelet).0);
        stands.spawn(async move {
            serve(config, stand, state, cancel)
                .await
                .map_err(|source| PlayError::Serve { resource, source })
        });
    }
    let end = setting
        .mischief
        .dead_after
        .map(|after| tokio::time::Instant::now() + after);
    let mut beat = tokio::time::interval(setting.beat);
    let mut retry = false;
    loop {
        tokio::select! {
            () = cancel.cancelled() => break,
            () = async { match end { Some(end) => tokio::time::sleep_until(end).await, None => std::future::pending().await } }, if !dead.is_cancelled() => {
                tracing::info!(vendor = %player.machine.part.vendor, "Plays dead.");
                dead.cancel();
            }
            _ = beat.tick(), if !dead.is_cancelled() => {
                if let Err(error) = player.beat().await {
                    tracing::warn!(%error, "The heartbeat did not get through.");
                    retry = true;
                }
            }
            () = tokio::time::sleep(Duration::from_secs(1)), if retry && !dead.is_cancelled() => {
                retry = player.beat().await.is_err();
            }
            Some(ended) = stands.join_next() => match ended {
                Ok(Err(error)) => return Err(error),
                _ if dead.is_cancelled() => {}
                _ => break,
            }
        }
    }
    dead.cancel();
    while stands.join_next().await.is_some() {}
    Ok(())
}
