//! What a pod asks for, parsed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{CardPolicy, CardRule, Cores, Keyword, Mib, NodePolicy, PodId, Weights};

/// How much memory of each card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryAsk {
    /// So many MiB.
    Mib(Mib),
    /// So many percent of the card's registered memory, 1 to 100.
    Percent(u32),
    /// All of it.
    Whole,
}

impl MemoryAsk {
    /// The amount on a card of `total`.
    #[must_use]
    pub fn on(self, total: Mib) -> Mib {
        match self {
            Self::Mib(amount) => amount,
            Self::Percent(percent) => total.percent(percent),
            Self::Whole => total,
        }
    }
}

/// What one container asks of one class: `count` different cards, and so much of each.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ask {
    /// The class.
    pub class: Keyword,
    /// How many cards (or instances), at least 1.
    pub count: u32,
    /// Memory of each.
    pub memory: MemoryAsk,
    /// A percentage given beside an amount in MiB. It does not change the amount, only HAMi's card score.
    pub percent_beside: Option<u32>,
    /// Compute of each. May exceed 100 as written; fitting takes at most a whole card.
    pub cores: Cores,
    /// Further amounts of each card, by the class's own name. Those that the class counts are added and compared like
    /// memory; the others are for the class alone.
    pub extra: Vec<(String, u64)>,
}

/// When a container runs, relative to the others of its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ContainerRole {
    /// Runs to its end before the next starts.
    Init,
    /// An init container that goes on running beside all that follow it.
    Sidecar,
    /// Runs with the other app containers.
    App,
}

/// What one container asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerDemand {
    /// The container's name.
    pub name: String,
    /// When it runs.
    pub role: ContainerRole,
    /// At most one ask a class; empty for a container without devices.
    pub asks: Vec<Ask>,
}

/// Which cards a pod accepts, for one class. Lists are as the user meant them: trimmed entries.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Selection {
    /// The model must match one of these; `None` = no constraint, an empty list matches nothing.
    pub use_models: Option<Vec<String>>,
    /// The model must match none of these.
    pub avoid_models: Option<Vec<String>>,
    /// The id must be one of these.
    pub use_ids: Option<Vec<String>>,
    /// The id must be none of these.
    pub avoid_ids: Option<Vec<String>>,
    /// All cards of one container on one NUMA node.
    pub numa_bind: bool,
    /// The modes accepted, as written; a card's mode must be contained in it.
    pub modes: Option<String>,
    /// Further switches of the class, by name.
    pub extra: Vec<(String, String)>,
}

/// What one pod asks for: its containers in order, init containers first, and how to choose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Demand {
    /// Whose.
    pub pod: PodId,
    /// The pod's priority. It never makes a pod fit; it says whose nomination counts against whom.
    #[serde(default)]
    pub priority: i32,
    /// In spec order: init containers (sidecars among them), then app containers.
    pub containers: Vec<ContainerDemand>,
    /// Constraint per class that is asked for, in keyword order.
    pub selections: Vec<(Keyword, Selection)>,
    /// What classes asked for want to know of the pod when others share its cards.
    #[serde(default)]
    pub facts: BTreeMap<Keyword, BTreeMap<String, String>>,
    /// Which cards the pod accepts, whatever their class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<CardRule>,
    /// CPU that the pod asks for, milli-cores. It decides nothing but scores; whether it fits is kube-scheduler's.
    #[serde(default)]
    pub cpu_milli: u32,
    /// The pod's own node policy, if it names one.
    pub node_policy: Option<NodePolicy>,
    /// The pod's own card policy, if it names one.
    pub card_policy: Option<CardPolicy>,
    /// The pod's own score weights.
    pub weights: Weights,
}

impl Demand {
    /// Whether any container asks for any device.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.containers.iter().all(|container| container.asks.is_empty())
    }

    /// The classes asked for, each once, in keyword order.
    #[must_use]
    pub fn classes(&self) -> Vec<Keyword> {
        let mut classes: Vec<Keyword> = self
            .containers
            .iter()
            .flat_map(|c| c.asks.iter().map(|ask| ask.class.clone()))
            .collect();
        classes.sort();
        classes.dedup();
        classes
    }

    /// The constraint for `class`; none if the pod states none.
    #[must_use]
    pub fn selection(&self, class: &Keyword) -> Option<&Selection> {
        self.selections
            .iter()
            .find(|(keyword, _)| keyword == class)
            .map(|(_, selection)| selection)
    }
}
