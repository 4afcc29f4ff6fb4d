//! An API server of one node in memory, and pods to put on it.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tessera_agent::cluster::{Cluster, ClusterChange, PodNote, WriteError};
use tessera_kubelet::fake::{FakeContainer, FakePod};
use tessera_types::PodId;
use tessera_wire::{PodView, keys};
use tokio::sync::{mpsc, watch};

pub const NODE: &str = "n1";
pub const RESOURCE: &str = "nvidia.com/gpu";
pub const A: &str = "GPU-aaaaaaaa-0000-0000-0000-000000000001";
pub const B: &str = "GPU-aaaaaaaa-0000-0000-0000-000000000002";
/// Long enough for a loaded machine; nothing waits for it in vain.
pub const DEADLINE: Duration = Duration::from_secs(20);

#[derive(Default)]
struct State {
    pods: BTreeMap<String, Value>,
    node: BTreeMap<String, String>,
    notes: Vec<PodNote>,
    writes: Vec<String>,
    failures: u32,
    lists: u32,
    silent: bool,
}

/// The API server. Clones are the same.
#[derive(Clone)]
pub struct Api {
    state: Arc<Mutex<State>>,
    sender: mpsc::Sender<ClusterChange>,
    changed: Arc<watch::Sender<u64>>,
}

impl Api {
    /// An empty server and the changes it tells. The first list is sent.
    pub fn new() -> (Self, mpsc::Receiver<ClusterChange>) {
        let (sender, receiver) = mpsc::channel(1024);
        let api = Self {
            state: Arc::default(),
            sender,
            changed: Arc::new(watch::channel(0).0),
        };
        api.relist();
        (api, receiver)
    }

    /// The same objects told to another agent, as after its restart.
    pub fn reconnect(&self) -> (Self, mpsc::Receiver<ClusterChange>) {
        let (sender, receiver) = mpsc::channel(1024);
        let api = Self { sender, ..self.clone() };
        api.relist();
        (api, receiver)
    }

    /// The watch tells nothing more, or tells again; requests are answered.
    pub fn silence(&self, silent: bool) {
        self.look(|state| state.silent = silent);
    }

    /// How often the pods were asked for.
    pub fn lists(&self) -> u32 {
        self.look(|state| state.lists)
    }

    /// Marks the pod as being deleted and tells it.
    pub fn begin_deletion(&self, pod: &Pod) {
        let view = self.look(|state| {
            let value = state.pods.get_mut(&pod.uid()).expect("the test's own object");
            value["metadata"]["deletionTimestamp"] = json!("2026-11-25T00:00:00Z");
            PodView::from_json(value).expect("the test's own object")
        });
        self.send(ClusterChange::Pod(Box::new(view)));
    }

    /// Tells the whole list anew.
    pub fn relist(&self) {
        let (pods, node) = self.look(|state| {
            let pods = state
                .pods
                .values()
                .map(|pod| PodView::from_json(pod).expect("the test's own object"))
                .collect();
            (pods, state.node.clone())
        });
        self.send(ClusterChange::Node(node));
        self.send(ClusterChange::Pods(pods));
    }

    fn look<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn send(&self, change: ClusterChange) {
        if self.look(|state| state.silent) {
            return;
        }
        // A closed channel is an agent that was killed.
        let _closed = self.sender.try_send(change);
        self.changed.send_modify(|count| *count += 1);
    }

    /// Creates or replaces a pod and tells it.
    pub fn put(&self, pod: &Pod) {
        let value = pod.value();
        let view = PodView::from_json(&value).expect("the test's own object");
        self.look(|state| state.pods.insert(pod.uid(), value));
        self.send(ClusterChange::Pod(Box::new(view)));
    }

    pub fn set_phase(&self, pod: &Pod, phase: &str) {
        let view = self.look(|state| {
            let value = state.pods.get_mut(&pod.uid()).expect("the test's own object");
            value["status"]["phase"] = json!(phase);
            PodView::from_json(value).expect("the test's own object")
        });
        self.send(ClusterChange::Pod(Box::new(view)));
    }

    pub fn delete(&self, pod: &Pod) {
        let value = self
            .look(|state| state.pods.remove(&pod.uid()))
            .expect("the test's own object");
        self.send(ClusterChange::PodGone(
            PodView::from_json(&value).expect("the test's own object").id.uid,
        ));
    }

    pub fn set_node(&self, key: &str, text: Option<&str>) {
        let node = self.look(|state| {
            match text {
                Some(text) => state.node.insert(key.to_owned(), text.to_owned()),
                None => state.node.remove(key),
            };
            state.node.clone()
        });
        self.send(ClusterChange::Node(node));
    }

    pub fn node(&self) -> BTreeMap<String, String> {
        self.look(|state| state.node.clone())
    }

    pub fn annotations(&self, pod: &Pod) -> BTreeMap<String, String> {
        self.look(|state| {
            serde_json::from_value(state.pods[&pod.uid()]["metadata"]["annotations"].clone())
                .expect("the test's own object")
        })
    }

    /// Writes so far, `pod default/p`, `node`, `lock default/p`.
    pub fn writes(&self) -> Vec<String> {
        self.look(|state| state.writes.clone())
    }

    pub fn notes(&self) -> Vec<PodNote> {
        self.look(|state| state.notes.clone())
    }

    /// Lets the next `count` writes fail.
    pub fn fail(&self, count: u32) {
        self.look(|state| state.failures = count);
    }

    /// Waits until `wanted` holds.
    pub async fn until(&self, what: &str, mut wanted: impl FnMut(&Self) -> bool) {
        let mut changed = self.changed.subscribe();
        let wait = async {
            while !wanted(self) {
                changed.changed().await.expect("the test's own object");
            }
        };
        assert!(tokio::time::timeout(DEADLINE, wait).await.is_ok(), "never: {what}");
    }

    fn write(&self, what: String) -> Result<(), WriteError> {
        self.look(|state| {
            state.writes.push(what);
            if state.failures > 0 {
                state.failures -= 1;
                return Err(WriteError {
                    message: "api down".into(),
                    gone: false,
                });
            }
            Ok(())
        })
    }
}

fn merge(into: &mut BTreeMap<String, String>, patch: &BTreeMap<String, Option<String>>) {
    for (key, value) in patch {
        match value {
            Some(value) => into.insert(key.clone(), value.clone()),
            None => into.remove(key),
        };
    }
}

impl Cluster for Api {
    async fn annotate_pod(
        &self,
        pod: &PodId,
        annotations: &BTreeMap<String, Option<String>>,
    ) -> Result<(), WriteError> {
        self.write(format!("pod {pod}"))?;
        let view = self.look(|state| {
            let value = state.pods.get_mut(pod.uid.as_str())?;
            let mut found: BTreeMap<String, String> =
                serde_json::from_value(value["metadata"]["annotations"].clone()).expect("the test's own object");
            merge(&mut found, annotations);
            value["metadata"]["annotations"] = json!(found);
            Some(PodView::from_json(value).expect("the test's own object"))
        });
        match view {
            Some(view) => {
                self.send(ClusterChange::Pod(Box::new(view)));
                Ok(())
            }
            None => Err(WriteError {
                message: "not found".into(),
                gone: true,
            }),
        }
    }

    async fn list_pods(&self) -> Result<Vec<PodView>, String> {
        Ok(self.look(|state| {
            state.lists += 1;
            state
                .pods
                .values()
                .map(|pod| PodView::from_json(pod).expect("the test's own object"))
                .collect()
        }))
    }

    async fn annotate_node(&self, annotations: &BTreeMap<String, Option<String>>) -> Result<(), WriteError> {
        self.write("node".into())?;
        let node = self.look(|state| {
            merge(&mut state.node, annotations);
            state.node.clone()
        });
        self.send(ClusterChange::Node(node));
        Ok(())
    }

    async fn release_lock(&self, pod: &PodId) -> Result<(), WriteError> {
        self.write(format!("lock {pod}"))?;
        let node = self.look(|state| {
            let mine = format!(",{},{}", pod.namespace, pod.name);
            if state
                .node
                .get(keys::NODE_LOCK)
                .is_some_and(|text| text.ends_with(&mine))
            {
                state.node.remove(keys::NODE_LOCK);
            }
            state.node.clone()
        });
        self.send(ClusterChange::Node(node));
        Ok(())
    }

    fn tell(&self, note: PodNote) {
        self.look(|state| state.notes.push(note));
        self.changed.send_modify(|count| *count += 1);
    }
}

/// `(card, MiB, cores)` of one container.
pub type Shares = Vec<(String, u64, u32)>;

/// A pod with shares of cards: `(container, init, shares)`.
#[derive(Clone)]
pub struct Pod {
    pub name: String,
    pub containers: Vec<(String, bool, Shares)>,
    pub own: bool,
    pub env: Vec<(String, String)>,
}

impl Pod {
    pub fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            containers: Vec::new(),
            own: true,
            env: Vec::new(),
        }
    }

    pub fn container(mut self, name: &str, shares: &[(&str, u64, u32)]) -> Self {
        self.containers.push((name.into(), false, owned(shares)));
        self
    }

    pub fn init(mut self, name: &str, shares: &[(&str, u64, u32)]) -> Self {
        self.containers.push((name.into(), true, owned(shares)));
        self
    }

    pub fn hami(mut self) -> Self {
        self.own = false;
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    pub fn uid(&self) -> String {
        format!("uid-{}", self.name)
    }

    fn text(&self) -> String {
        self.containers
            .iter()
            .map(|(_, _, shares)| {
                let mut entry: String = shares
                    .iter()
                    .map(|(card, mib, cores)| format!("{card},NVIDIA,{mib},{cores}:"))
                    .collect();
                entry.push(';');
                entry
            })
            .collect()
    }

    fn value(&self) -> Value {
        let containers = |init: bool| {
            let env: Vec<_> = self
                .env
                .iter()
                .map(|(name, value)| json!({"name": name, "value": value}))
                .collect();
            self.containers
                .iter()
                .filter(|(_, is_init, _)| *is_init == init)
                .map(|(name, _, _)| json!({"name": name, "env": env}))
                .collect::<Vec<_>>()
        };
        let mut annotations = json!({
            keys::VGPU_NODE: NODE,
            keys::BIND_PHASE: "allocating",
            keys::BIND_TIME: "1705054796",
            keys::NVIDIA_ALLOCATED: self.text(),
            keys::NVIDIA_TO_ALLOCATE: self.text(),
        });
        if self.own {
            annotations[keys::TESSERA_SCHEDULER] = json!("0.0.0");
        }
        json!({
            "metadata": {"namespace": "default", "name": self.name, "uid": self.uid(), "annotations": annotations},
            "spec": {"nodeName": NODE, "initContainers": containers(true), "containers": containers(false)},
            "status": {"phase": "Pending"},
        })
    }

    pub fn for_kubelet(&self) -> FakePod {
        FakePod {
            uid: self.uid(),
            namespace: "default".into(),
            name: self.name.clone(),
            containers: self
                .containers
                .iter()
                .map(|(name, init, shares)| FakeContainer {
                    name: name.clone(),
                    init: *init,
                    devices: shares.len(),
                })
                .collect(),
        }
    }
}

fn owned(shares: &[(&str, u64, u32)]) -> Shares {
    shares
        .iter()
        .map(|(card, mib, cores)| ((*card).to_owned(), *mib, *cores))
        .collect()
}
