//! A cluster of one node, as the scheduler sees it, with the whole way of a pod: admission, decision, booking, what is
//! written, and what is read back.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use tessera_engine::{
    Assumption, Candidates, Defaults, Engine, NodeChange, NodeFit, Vendors, World, WriteContext, admission, text,
};
use tessera_types::{Demand, PodUid, WHOLE_CARD_CORES};
use tessera_vendors::Options;
use tessera_wire::config::DeviceConfig;
use tessera_wire::{NodeView, PodView, Quantity};

use super::table::{CONFIG, Limits, Row};

pub(crate) const NODE: &str = "n1";

pub(crate) fn vendors() -> Arc<Vendors> {
    let config = DeviceConfig::from_yaml(CONFIG).unwrap();
    tessera_vendors::from_config_with(&config, &Options::default())
}

/// Why a pod was not placed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum No {
    /// By admission.
    Denied(String),
    /// For people, and HAMi's text.
    Refused { human: String, hami: String },
    /// Between decision and booking.
    Lost(String),
}

impl No {
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::Denied(text) | Self::Lost(text) | Self::Refused { human: text, .. } => text,
        }
    }
}

pub(crate) struct Cluster {
    pub(crate) engine: Engine,
    pub(crate) world: World,
    row: &'static Row,
    /// The objects as the API server has them.
    pub(crate) pods: BTreeMap<String, Value>,
}

pub(crate) fn node_object(row: &Row, annotations: &Value) -> Value {
    let amounts = (row.node)().1;
    json!({"metadata": {"name": NODE, "annotations": annotations},
        "status": {"capacity": amounts, "allocatable": amounts}})
}

impl Cluster {
    pub(crate) fn new(row: &'static Row) -> Self {
        let annotations = (row.node)().0;
        let mut cluster = Self::without_node(row);
        let change = cluster.set_node(&annotations);
        assert!(change.problems.is_empty(), "{}: {:?}", row.title, change.problems);
        let snapshot = cluster.world.snapshot();
        let node = snapshot.node(NODE).unwrap();
        assert_eq!(node.cards().len(), row.cards, "{}", row.title);
        assert!((0..row.cards).all(|at| node.is_healthy(at)), "{}", row.title);
        cluster
    }

    pub(crate) fn without_node(row: &'static Row) -> Self {
        let vendors = vendors();
        Self {
            world: World::new(Arc::clone(&vendors)),
            engine: Engine::new(vendors, Defaults::default()),
            row,
            pods: BTreeMap::new(),
        }
    }

    pub(crate) fn set_node(&mut self, annotations: &Value) -> NodeChange {
        let node = node_object(self.row, annotations);
        self.world.set_node(&NodeView::from_json(&node).unwrap())
    }

    pub(crate) fn pod(&self, name: &str, limits: Limits) -> Value {
        self.pod_of(name, &[], &[limits])
    }

    /// Init containers with the word `Always` are sidecars.
    pub(crate) fn pod_of(&self, name: &str, init: &[(Limits, bool)], app: &[Limits]) -> Value {
        let resources = |limits: Limits| {
            let map: serde_json::Map<String, Value> = limits
                .iter()
                .map(|(key, value)| ((*key).to_owned(), json!(value)))
                .collect();
            json!({"limits": map, "requests": map})
        };
        let init: Vec<Value> = init
            .iter()
            .enumerate()
            .map(|(at, (limits, sidecar))| {
                let mut container = json!({"name": format!("init-{at}"), "resources": resources(limits)});
                if *sidecar {
                    container["restartPolicy"] = json!("Always");
                }
                container
            })
            .collect();
        let app: Vec<Value> = app
            .iter()
            .enumerate()
            .map(|(at, limits)| json!({"name": format!("app-{at}"), "resources": resources(limits)}))
            .collect();
        let annotations: BTreeMap<&str, &str> = self.row.annotations.iter().copied().collect();
        json!({"metadata": {"name": name, "namespace": "ns", "uid": format!("uid-{name}"), "annotations": annotations},
            "spec": {"initContainers": init, "containers": app}})
    }

    pub(crate) fn review(&self, pod: &Value) -> Result<Value, No> {
        let settings = admission::Settings::default();
        match admission::review(pod, "ns", &settings, &self.engine, &self.world.snapshot()) {
            admission::Verdict::Deny { text, .. } => Err(No::Denied(text)),
            admission::Verdict::Allow { patch, .. } => {
                let mut pod = pod.clone();
                let patch: json_patch::Patch = serde_json::from_value(serde_json::to_value(&patch).unwrap()).unwrap();
                json_patch::patch(&mut pod, &patch).unwrap();
                Ok(pod)
            }
        }
    }

    pub(crate) fn demand(&self, pod: &Value) -> Demand {
        self.engine.demand(&PodView::from_json(pod).unwrap()).unwrap()
    }

    pub(crate) fn decide(&self, demand: &Demand) -> Result<NodeFit, No> {
        assert!(!demand.is_empty(), "{}: the pod asks for nothing", self.row.title);
        let decision = self.engine.decide(&self.world.snapshot(), demand, Candidates::All);
        match decision.winner() {
            Some(winner) => Ok(winner.clone()),
            None => {
                let refusal = &decision.refused[0].1;
                Err(No::Refused {
                    human: text::node(refusal),
                    hami: text::hami_node(refusal),
                })
            }
        }
    }

    /// Books a decision and lets the API server have what is written: the pod is bound then.
    pub(crate) fn carry_out(&mut self, mut pod: Value, demand: &Demand, fit: &NodeFit) -> Result<(), No> {
        let view = PodView::from_json(&pod).unwrap();
        self.world
            .assume(&Assumption {
                pod: &view.id,
                roles: &view.roles(),
                node: &fit.node,
                allocation: Arc::clone(&fit.allocation),
                priority: 0,
                facts: &demand.facts,
                now: 0,
                expires_at: 90,
            })
            .map_err(|error| No::Lost(error.to_string()))?;
        self.check();
        let snapshot = self.world.snapshot();
        let assumed = snapshot.node(NODE).unwrap();
        let written = self.engine.annotations(
            &fit.allocation,
            demand,
            &WriteContext {
                node: &fit.node,
                now_seconds: 5,
                cards: assumed.cards(),
            },
        );
        for (key, value) in written {
            pod["metadata"]["annotations"][key] = json!(value);
        }
        pod["spec"]["nodeName"] = json!(NODE);
        self.set_pod(&pod);
        let snapshot = self.world.snapshot();
        let read = snapshot.node(NODE).unwrap();
        let usage = |of: &[tessera_engine::CardUse]| of.iter().map(|card| card.usage).collect::<Vec<_>>();
        assert_eq!(
            usage(assumed.usage()),
            usage(read.usage()),
            "{}: what is written books something else than what was decided",
            self.row.title
        );
        self.pods.insert(view.id.name.clone(), pod);
        Ok(())
    }

    /// The whole way of a pod.
    pub(crate) fn place(&mut self, pod: &Value) -> Result<(), No> {
        let pod = self.review(pod)?;
        let demand = self.demand(&pod);
        let fit = self.decide(&demand)?;
        self.carry_out(pod, &demand, &fit)
    }

    pub(crate) fn set_pod(&mut self, pod: &Value) {
        let change = self.world.set_pod(&PodView::from_json(pod).unwrap());
        assert_eq!(change.problems, [], "{}", self.row.title);
        self.check();
    }

    pub(crate) fn remove(&mut self, name: &str) {
        self.pods.remove(name);
        self.world.remove_pod(&PodUid::new(format!("uid-{name}")).unwrap());
        self.check();
    }

    /// Cards that the pod holds.
    pub(crate) fn cards_of(&self, name: &str) -> Vec<String> {
        let snapshot = self.world.snapshot();
        let uid = PodUid::new(format!("uid-{name}")).unwrap();
        let booking = snapshot
            .booking(&uid)
            .unwrap_or_else(|| panic!("{}: {name} holds nothing", self.row.title));
        booking.usage.0.iter().map(|(card, _)| card.to_string()).collect()
    }

    pub(crate) fn ids(&self) -> Vec<String> {
        let snapshot = self.world.snapshot();
        snapshot
            .node(NODE)
            .unwrap()
            .cards()
            .iter()
            .map(|card| card.id.to_string())
            .collect()
    }

    pub(crate) fn in_use(&self) -> usize {
        let snapshot = self.world.snapshot();
        snapshot
            .node(NODE)
            .unwrap()
            .usage()
            .iter()
            .filter(|card| card.usage.slots > 0)
            .count()
    }

    pub(crate) fn set_quota(&mut self, hard: &[(String, String)]) {
        let hard: BTreeMap<String, Quantity> = hard
            .iter()
            .map(|(name, amount)| (format!("limits.{name}"), Quantity::parse(amount).unwrap()))
            .collect();
        self.world.set_quota("ns", "quota", &hard);
    }

    /// The books add up, and no card is over its size in any dimension.
    pub(crate) fn check(&self) {
        assert_eq!(self.world.audit(), [], "{}", self.row.title);
        let snapshot = self.world.snapshot();
        let Some(node) = snapshot.node(NODE) else { return };
        for (card, used) in node.cards().iter().zip(node.usage()) {
            let (title, used) = (self.row.title, used.usage);
            assert!(used.slots <= card.slots, "{title}: slots of {}: {used:?}", card.id);
            assert!(used.memory <= card.memory, "{title}: memory of {}: {used:?}", card.id);
            assert!(
                used.cores <= card.cores.max(WHOLE_CARD_CORES),
                "{title}: compute of {}: {used:?}",
                card.id
            );
            assert_eq!(used.extra.exceeds(card.extra), None, "{title}: {}: {used:?}", card.id);
        }
    }
}
