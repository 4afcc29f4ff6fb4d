//! A small cluster, as the scheduler sees it, with the whole way of a pod: admission, decision, booking, what is
//! written, and what is read back.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use serde_json::{Value, json};
use tessera_engine::{
    Assumption, Candidates, Decision, Defaults, Engine, NodeChange, NodeFit, Vendor, Vendors, World, WriteContext,
    admission, text,
};
use tessera_types::{CardUsage, Demand, EXTRA_AMOUNTS, Keyword, NodeRefusal, PodUid, WHOLE_CARD_CORES};
use tessera_vendors::Options;
use tessera_wire::config::DeviceConfig;
use tessera_wire::{NodeView, PodView, Quantity};

use super::table::{CONFIG, Limits, Picture, Row};

pub(crate) const NODE: &str = "n1";

/// All classes of the table.
pub(crate) fn vendors() -> Arc<Vendors> {
    static ALL: LazyLock<Arc<Vendors>> = LazyLock::new(|| {
        let config = DeviceConfig::from_yaml(CONFIG).unwrap();
        tessera_vendors::from_config_with(&config, &Options::default())
    });
    Arc::clone(&ALL)
}

/// Why a pod was not placed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum No {
    /// By admission.
    Denied(String),
    /// By the only node.
    Refused(Box<Refusal>),
    /// Between decision and booking.
    Lost(String),
}

/// A node's refusal, and how it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) refusal: NodeRefusal,
    pub(crate) human: String,
    pub(crate) hami: String,
    pub(crate) event: String,
}

impl No {
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::Denied(text) | Self::Lost(text) => text,
            Self::Refused(refusal) => &refusal.human,
        }
    }

    /// The node's refusal; admission and booking did not stand in the way.
    #[track_caller]
    pub(crate) fn refusal(self) -> Refusal {
        match self {
            Self::Refused(refusal) => *refusal,
            other => panic!("not by the decision: {other:?}"),
        }
    }
}

pub(crate) struct Cluster {
    pub(crate) engine: Engine,
    pub(crate) world: World,
    pub(crate) row: &'static Row,
    /// The objects as the API server has them.
    pub(crate) pods: BTreeMap<String, Value>,
    /// What the cards held at the last look: a card that became smaller may be over its size, but nothing may be added.
    last: RefCell<BTreeMap<(String, String), CardUsage>>,
}

/// The Node object.
pub(crate) fn node_object(name: &str, (annotations, amounts): &Picture) -> Value {
    json!({"metadata": {"name": name, "annotations": annotations},
        "status": {"capacity": amounts, "allocatable": amounts}})
}

/// The view of a pod.
pub(crate) fn view(pod: &Value) -> PodView {
    PodView::from_json(pod).unwrap()
}

/// Sets an amount of the first container, in limits and requests.
pub(crate) fn set_amount(pod: &mut Value, name: &str, amount: &str) {
    for member in ["limits", "requests"] {
        pod["spec"]["containers"][0]["resources"][member][name] = json!(amount);
    }
}

/// Sets annotations.
pub(crate) fn annotate(pod: &mut Value, annotations: &[(&str, &str)]) {
    for (key, value) in annotations {
        pod["metadata"]["annotations"][*key] = json!(value);
    }
}

impl Cluster {
    /// With the row's node, which is free.
    pub(crate) fn new(row: &'static Row) -> Self {
        let mut cluster = Self::without_node(row);
        cluster.add_node(NODE);
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
            last: RefCell::default(),
        }
    }

    /// A further node, as the row has it.
    pub(crate) fn add_node(&mut self, name: &str) {
        let change = self.set_object(&node_object(name, &(self.row.node)()));
        assert_eq!(change.problems, [], "{}", self.row.title);
    }

    pub(crate) fn set_object(&mut self, node: &Value) -> NodeChange {
        let change = self.world.set_node(&NodeView::from_json(node).unwrap());
        self.check();
        change
    }

    /// The node looks like this now.
    pub(crate) fn set_node(&mut self, picture: &Picture) -> NodeChange {
        self.set_object(&node_object(NODE, picture))
    }

    /// The row's class.
    pub(crate) fn class(&self) -> &dyn Vendor {
        let keyword = Keyword::new(self.row.class).unwrap();
        self.engine.vendors().get(&keyword).unwrap()
    }

    pub(crate) fn pod(&self, name: &str, limits: Limits) -> Value {
        self.pod_of(name, &[], &[limits])
    }

    /// Init containers with the word `true` are sidecars.
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
        self.engine.demand(&view(pod)).unwrap()
    }

    pub(crate) fn decision(&self, demand: &Demand, candidates: Candidates<'_>) -> Decision {
        assert!(!demand.is_empty(), "{}: the pod asks for nothing", self.row.title);
        self.engine.decide(&self.world.snapshot(), demand, candidates)
    }

    pub(crate) fn decide(&self, demand: &Demand) -> Result<NodeFit, No> {
        let decision = self.decision(demand, Candidates::All);
        match decision.winner() {
            Some(winner) => Ok(winner.clone()),
            None => {
                let refusal = &decision.refused[0].1;
                Err(No::Refused(Box::new(Refusal {
                    refusal: (**refusal).clone(),
                    human: text::node(refusal),
                    hami: text::hami_node(refusal),
                    event: text::event(&decision, demand),
                })))
            }
        }
    }

    pub(crate) fn assume(&mut self, pod: &Value, demand: &Demand, fit: &NodeFit, priority: i32) -> Result<(), No> {
        let view = view(pod);
        self.world
            .assume(&Assumption {
                pod: &view.id,
                roles: &view.roles(),
                node: &fit.node,
                allocation: Arc::clone(&fit.allocation),
                priority,
                facts: &demand.facts,
                now: 0,
                expires_at: 90,
            })
            .map_err(|error| No::Lost(error.to_string()))?;
        self.check();
        Ok(())
    }

    /// The pod with what the decision writes on it, not bound.
    pub(crate) fn written(&self, mut pod: Value, demand: &Demand, fit: &NodeFit) -> Value {
        let snapshot = self.world.snapshot();
        let context = WriteContext {
            node: &fit.node,
            now_seconds: 5,
            cards: snapshot.node(fit.node.as_str()).unwrap().cards(),
        };
        for (key, value) in self.engine.annotations(&fit.allocation, demand, &context) {
            pod["metadata"]["annotations"][key] = json!(value);
        }
        pod
    }

    fn usage(&self, node: &str) -> Vec<CardUsage> {
        let snapshot = self.world.snapshot();
        let node = snapshot.node(node).unwrap();
        node.usage().iter().map(|card| card.usage).collect()
    }

    /// Books a decision and lets the API server have what is written: the pod is bound then.
    pub(crate) fn carry_out(&mut self, pod: Value, demand: &Demand, fit: &NodeFit) -> Result<(), No> {
        let node = fit.node.as_str();
        let priority = demand.priority;
        self.assume(&pod, demand, fit, priority)?;
        let assumed = self.usage(node);
        let mut pod = self.written(pod, demand, fit);
        pod["spec"]["nodeName"] = json!(node);
        self.set_pod(&pod);
        assert_eq!(
            assumed,
            self.usage(node),
            "{}: what is written books something else than what was decided",
            self.row.title
        );
        let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
        self.pods.insert(name, pod);
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
        let change = self.world.set_pod(&view(pod));
        assert_eq!(change.problems, [], "{}", self.row.title);
        self.check();
    }

    pub(crate) fn remove(&mut self, name: &str) {
        self.pods.remove(name);
        self.world.remove_pod(&uid(name));
        self.check();
    }

    /// A new process that sees the same objects, the pods in the reverse order and before the node.
    pub(crate) fn restarted(&self, picture: &Picture) -> Self {
        let mut after = Self::without_node(self.row);
        for pod in self.pods.values().rev() {
            after.world.set_pod(&view(pod));
        }
        after.pods.clone_from(&self.pods);
        after
            .world
            .set_node(&NodeView::from_json(&node_object(NODE, picture)).unwrap());
        after.last.replace(self.last.borrow().clone());
        after.check();
        after
    }

    /// Cards that the pod holds, by id.
    pub(crate) fn cards_of(&self, name: &str) -> Vec<String> {
        let snapshot = self.world.snapshot();
        let booking = snapshot
            .booking(&uid(name))
            .unwrap_or_else(|| panic!("{}: {name} holds nothing", self.row.title));
        booking.usage().map(|(card, ..)| card.to_string()).collect()
    }

    /// What the pod holds, of all cards together.
    pub(crate) fn held_by(&self, name: &str) -> CardUsage {
        let snapshot = self.world.snapshot();
        let usage = snapshot.booking(&uid(name)).unwrap().usage();
        usage.fold(CardUsage::default(), |sum, (.., used)| sum.plus(used))
    }

    /// Whether the pod holds anything.
    pub(crate) fn holds(&self, name: &str) -> bool {
        self.world.snapshot().booking(&uid(name)).is_some()
    }

    pub(crate) fn ids(&self) -> Vec<String> {
        let snapshot = self.world.snapshot();
        let node = snapshot.node(NODE).unwrap();
        node.cards().iter().map(|card| card.id.to_string()).collect()
    }

    /// Usage of the cards that the node has, in order.
    pub(crate) fn books(&self) -> Vec<tessera_engine::CardUse> {
        let snapshot = self.world.snapshot();
        snapshot
            .node(NODE)
            .map(|node| node.usage().to_vec())
            .unwrap_or_default()
    }

    /// How many cards are in use.
    pub(crate) fn in_use(&self) -> usize {
        self.books().iter().filter(|card| card.usage.slots > 0).count()
    }

    pub(crate) fn set_quota(&mut self, hard: &[(String, String)]) {
        let hard: BTreeMap<String, Quantity> = hard
            .iter()
            .map(|(name, amount)| (format!("limits.{name}"), Quantity::parse(amount).unwrap()))
            .collect();
        self.world.set_quota("ns", "quota", &hard);
    }

    /// What quotas count as used.
    pub(crate) fn charged(&self) -> u64 {
        self.world
            .snapshot()
            .quotas()
            .iter()
            .map(|(_, _, state)| state.used)
            .sum()
    }

    /// The books add up, and nothing was added to a card beyond its size in any dimension.
    pub(crate) fn check(&self) {
        let title = self.row.title;
        assert_eq!(self.world.audit(), [], "{title}");
        let snapshot = self.world.snapshot();
        let mut now = BTreeMap::new();
        for node in snapshot.nodes() {
            for (card, used) in node.cards().iter().zip(node.usage()) {
                let used = used.usage;
                let key = (node.name().to_string(), card.id.to_string());
                let last = self.last.borrow().get(&key).copied();
                now.insert(key, used);
                // A card that is seen for the first time, or again, may have become smaller in the meantime.
                let Some(last) = last else { continue };
                let within = |used: u64, size: u64, last: u64| used <= size || used <= last;
                let id = &card.id;
                let [slots, memory, cores] = [
                    (used.slots.into(), card.slots.into(), last.slots.into()),
                    (used.memory.get(), card.memory.get(), last.memory.get()),
                    (
                        used.cores.get().into(),
                        card.cores.max(WHOLE_CARD_CORES).get().into(),
                        last.cores.get().into(),
                    ),
                ]
                .map(|(used, size, last)| within(used, size, last));
                assert!(slots, "{title}: slots of {id}: {used:?} of {}", card.slots);
                assert!(memory, "{title}: memory of {id}: {used:?} of {}", card.memory);
                assert!(cores, "{title}: compute of {id}: {used:?} of {:?}", card.cores);
                for at in 0..EXTRA_AMOUNTS {
                    let [used, size, last] = [used.extra, card.extra, last.extra].map(|of| of.get(at));
                    assert!(
                        within(used, size, last),
                        "{title}: amount {at} of {id}: {used} of {size}"
                    );
                }
            }
        }
        self.last.replace(now);
    }
}

/// The uid of the pod of this name.
pub(crate) fn uid(name: &str) -> PodUid {
    PodUid::new(format!("uid-{name}")).unwrap()
}
