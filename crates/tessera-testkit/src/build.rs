//! Cards, nodes and pods in one line each.
//!
//! ```
//! use tessera_testkit::build::{card, node, pod};
//!
//! let node = node("n1").cards(&[card("GPU-a").memory(16384).card()]).view();
//! let pod = pod("ns", "p").container("c", &[("nvidia.com/gpu", 1), ("nvidia.com/gpumem", 3000)]).view();
//! assert_eq!(pod.containers.len(), 1);
//! assert!(node.annotations.contains_key("hami.io/node-nvidia-register"));
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use tessera_types::{Card, CardId, CardMode, Cores, Extras, Keyword, Mib, MigProfile, Placement};
use tessera_wire::{NodeView, PodView, keys, register};

/// A MIG profile in short: name, MiB, percent, slices, places as (start, size).
pub type ProfileText<'a> = (&'a str, u64, u32, u32, &'a [(u32, u32)]);

/// Builds a card. Unless told otherwise: an idle, healthy NVIDIA A10 with 10 slots, 8192 MiB and 100 percent.
#[derive(Debug, Clone)]
pub struct CardBuilder(Card);

/// A card of this id.
///
/// # Panics
/// The id is empty or holds a separator.
#[must_use]
#[expect(clippy::expect_used, reason = "a test's own mistake")]
pub fn card(id: &str) -> CardBuilder {
    CardBuilder(Card {
        id: CardId::new(id).expect("a usable card id"),
        class: Keyword::new(keys::NVIDIA_KEYWORD).expect("a usable keyword"),
        index: 0,
        slots: 10,
        memory: Mib::new(8192),
        cores: Cores::new(100),
        extra: Extras::NONE,
        model: Arc::from("NVIDIA A10"),
        numa: 0,
        mode: CardMode::new("hami-core"),
        healthy: true,
        mig_profiles: Vec::new(),
        link_scores: BTreeMap::new(),
        twin: None,
        custom: BTreeMap::new(),
    })
}

impl CardBuilder {
    /// Position on the node.
    #[must_use]
    pub fn index(mut self, index: u32) -> Self {
        self.0.index = index;
        self
    }

    /// Slots.
    #[must_use]
    pub fn slots(mut self, slots: u32) -> Self {
        self.0.slots = slots;
        self
    }

    /// MiB.
    #[must_use]
    pub fn memory(mut self, mib: u64) -> Self {
        self.0.memory = Mib::new(mib);
        self
    }

    /// Percent.
    #[must_use]
    pub fn cores(mut self, percent: u32) -> Self {
        self.0.cores = Cores::new(percent);
        self
    }

    /// Model name.
    #[must_use]
    pub fn model(mut self, model: &str) -> Self {
        self.0.model = Arc::from(model);
        self
    }

    /// NUMA node.
    #[must_use]
    pub fn numa(mut self, numa: i32) -> Self {
        self.0.numa = numa;
        self
    }

    /// Not working.
    #[must_use]
    pub fn broken(mut self) -> Self {
        self.0.healthy = false;
        self
    }

    /// In MIG mode with these profiles.
    #[must_use]
    pub fn mig(mut self, profiles: &[ProfileText<'_>]) -> Self {
        self.0.mode = CardMode::new("mig");
        self.0.mig_profiles = profiles
            .iter()
            .map(|(name, memory, cores, slices, places)| MigProfile {
                name: (*name).to_owned(),
                memory: Mib::new(*memory),
                cores: Cores::new(*cores),
                slices: *slices,
                placements: places
                    .iter()
                    .map(|(start, size)| Placement {
                        start: *start,
                        size: *size,
                    })
                    .collect(),
            })
            .collect();
        self
    }

    /// Link score to a peer.
    ///
    /// # Panics
    /// The peer's id is not usable.
    #[must_use]
    #[expect(clippy::expect_used, reason = "a test's own mistake")]
    pub fn link(mut self, peer: &str, score: i64) -> Self {
        self.0
            .link_scores
            .insert(CardId::new(peer).expect("a usable card id"), score);
        self
    }

    /// The card.
    #[must_use]
    pub fn card(self) -> Card {
        self.0
    }
}

/// Builds a node.
#[derive(Debug, Clone)]
pub struct NodeBuilder {
    name: String,
    annotations: BTreeMap<String, String>,
    counts: BTreeMap<String, i64>,
}

/// A node of this name without cards.
#[must_use]
pub fn node(name: &str) -> NodeBuilder {
    NodeBuilder {
        name: name.to_owned(),
        annotations: BTreeMap::new(),
        counts: BTreeMap::new(),
    }
}

impl NodeBuilder {
    /// Registers NVIDIA cards the way a device plugin does, link scores and allocatable count included.
    #[must_use]
    pub fn cards(mut self, cards: &[Card]) -> Self {
        self.annotations
            .insert(keys::NVIDIA_REGISTER.to_owned(), register::print_json(cards));
        if cards.iter().any(|card| !card.link_scores.is_empty()) {
            self.annotations
                .insert(keys::NVIDIA_SCORE.to_owned(), register::print_scores(cards));
        }
        self.counts.insert(
            "nvidia.com/gpu".to_owned(),
            cards.iter().map(|card| i64::from(card.slots)).sum(),
        );
        self
    }

    /// Sets an annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Sets capacity and allocatable of a resource.
    #[must_use]
    pub fn count(mut self, resource: &str, number: i64) -> Self {
        self.counts.insert(resource.to_owned(), number);
        self
    }

    /// The Node object.
    #[must_use]
    pub fn json(&self) -> Value {
        let counts: Map<String, Value> = self
            .counts
            .iter()
            .map(|(name, number)| (name.clone(), json!(number.to_string())))
            .collect();
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": self.name, "annotations": self.annotations},
            "status": {"capacity": counts, "allocatable": counts},
        })
    }

    /// The node as our crates see it.
    ///
    /// # Panics
    /// The name is empty.
    #[must_use]
    #[expect(clippy::expect_used, reason = "a test's own mistake")]
    pub fn view(&self) -> NodeView {
        NodeView::from_json(&self.json()).expect("a readable node")
    }
}

/// Builds a pod.
#[derive(Debug, Clone)]
pub struct PodBuilder(Value);

/// A pod without containers, with the uid `<name>-uid`.
#[must_use]
pub fn pod(namespace: &str, name: &str) -> PodBuilder {
    PodBuilder(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "uid": format!("{name}-uid"), "annotations": {}, "labels": {}},
        "spec": {"containers": [], "initContainers": []},
        "status": {"phase": "Pending"},
    }))
}

impl PodBuilder {
    fn push(mut self, list: &str, name: &str, limits: &[(&str, i64)], restart: Option<&str>) -> Self {
        let limits: Map<String, Value> = limits
            .iter()
            .map(|(resource, number)| ((*resource).to_owned(), json!(number.to_string())))
            .collect();
        let mut container = json!({"name": name, "resources": {"limits": limits}});
        if let Some(policy) = restart {
            container["restartPolicy"] = json!(policy);
        }
        if let Some(containers) = self.0["spec"][list].as_array_mut() {
            containers.push(container);
        }
        self
    }

    /// Adds an app container with these limits.
    #[must_use]
    pub fn container(self, name: &str, limits: &[(&str, i64)]) -> Self {
        self.push("containers", name, limits, None)
    }

    /// Adds an init container with these limits.
    #[must_use]
    pub fn init(self, name: &str, limits: &[(&str, i64)]) -> Self {
        self.push("initContainers", name, limits, None)
    }

    /// Adds a sidecar with these limits.
    #[must_use]
    pub fn sidecar(self, name: &str, limits: &[(&str, i64)]) -> Self {
        self.push("initContainers", name, limits, Some("Always"))
    }

    /// Sets an annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.0["metadata"]["annotations"][key] = json!(value);
        self
    }

    /// Sets any member by its path, such as `/spec/nodeName`. A path whose parent is absent sets nothing.
    #[must_use]
    pub fn set(mut self, path: &str, value: Value) -> Self {
        if let Some((parent, member)) = path.rsplit_once('/')
            && let Some(parent) = self.0.pointer_mut(parent)
        {
            parent[member] = value;
        }
        self
    }

    /// The Pod object.
    #[must_use]
    pub fn json(&self) -> Value {
        self.0.clone()
    }

    /// The pod as our crates see it.
    ///
    /// # Panics
    /// A member was set to something that no pod has.
    #[must_use]
    #[expect(clippy::expect_used, reason = "a test's own mistake")]
    pub fn view(&self) -> PodView {
        PodView::from_json(&self.0).expect("a readable pod")
    }
}
