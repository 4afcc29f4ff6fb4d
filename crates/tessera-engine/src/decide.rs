//! The decision: which nodes can hold a pod, with which cards, and which node wins.
//!
//! One function serves the scheduler, the simulator and `why`. The same snapshot and demand give the same answer on
//! any machine and in any order of candidates.

use std::collections::BTreeMap;
use std::sync::Arc;

use tessera_types::{
    Allocation, Ask, CardOrder, CardPolicy, CardRule, ContainerDemand, ContainerRole, Demand, NodeName, NodePolicy,
    NodeRefusal, PodUid, Selection, Weights,
};
use tessera_wire::{NameList, NodeView, PodView, keys};

use crate::booking::{Booking, BookingState};
use crate::error::RequestError;
use crate::fit::{ContainerFit, Given, Placed, Scratch, TrialCard, fit_one, fit_pod};
use crate::holding::Holding;
use crate::node::{CardUse, ClassOnNode, NodeFacts, NodeState, Nomination};
use crate::order;
use crate::pack::ScoreTerms;
use crate::quota::Room;
use crate::shape::{self, Shape};
use crate::snapshot::Snapshot;
use crate::vendor::{Earlier, Vendors, WriteContext};
use crate::world::World;

/// A node's answer to a shape.
pub(crate) type Outcome = Result<Arc<Placed>, Arc<NodeRefusal>>;

/// What holds where a pod does not say otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Defaults {
    /// Which node wins.
    pub node_policy: NodePolicy,
    /// How cards are ordered. `None`: as goes with the node policy, see [`Defaults::cards`].
    pub card_policy: Option<CardPolicy>,
}

impl Defaults {
    /// How cards are ordered under a node policy. One that packs fills the fullest card first, the others the emptiest.
    #[must_use]
    pub fn cards(&self, node_policy: NodePolicy) -> CardPolicy {
        let order = if node_policy.packs() {
            CardOrder::Binpack
        } else {
            CardOrder::Spread
        };
        self.card_policy.clone().unwrap_or_else(|| CardPolicy::single(order))
    }
}

/// Which nodes are asked.
#[derive(Debug, Clone, Copy)]
pub enum Candidates<'a> {
    /// All of the snapshot.
    All,
    /// These; a name that the snapshot does not know is refused as unregistered.
    Names(&'a [String]),
    /// As [`Candidates::Names`], as they are read from a question.
    Listed(&'a NameList),
}

/// A node that can hold the pod.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeFit {
    /// Which.
    pub node: NodeName,
    /// Its score, with what the classes add. Under binpack and spread the fill before this pod, larger is fuller; under
    /// a policy that packs, what the placement is worth.
    pub score: f64,
    /// With which cards.
    pub allocation: Arc<Allocation>,
    /// Its fill with this pod; decides between equal scores.
    pub score_after: f32,
    /// What the score is made of, under a policy that packs.
    pub terms: Option<ScoreTerms>,
}

impl NodeFit {
    pub(crate) fn new(node: &NodeState, placed: &Placed) -> Self {
        Self {
            node: node.name().clone(),
            score: placed.score,
            allocation: Arc::clone(&placed.allocation),
            score_after: placed.score_after,
            terms: placed.terms,
        }
    }
}

/// The answer for all candidates, in their order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Decision {
    /// Nodes that can hold the pod.
    pub fits: Vec<NodeFit>,
    /// Nodes that cannot, and why.
    pub refused: Vec<(NodeName, Arc<NodeRefusal>)>,
    /// Which of `fits` wins.
    pub best: Option<usize>,
}

impl Decision {
    /// The winner.
    #[must_use]
    pub fn winner(&self) -> Option<&NodeFit> {
        self.fits.get(self.best?)
    }
}

/// The rules that decisions are made by. Holds no state of the cluster.
#[derive(Debug, Clone)]
pub struct Engine {
    vendors: Arc<Vendors>,
    defaults: Defaults,
}

impl Engine {
    /// Decides for these classes.
    #[must_use]
    pub fn new(vendors: Arc<Vendors>, defaults: Defaults) -> Self {
        Self { vendors, defaults }
    }

    /// The classes.
    #[must_use]
    pub fn vendors(&self) -> &Arc<Vendors> {
        &self.vendors
    }

    /// What holds where a pod does not say otherwise.
    #[must_use]
    pub fn defaults(&self) -> &Defaults {
        &self.defaults
    }

    /// What a pod asks for. Empty ([`Demand::is_empty`]) if it asks no class for anything: such a pod is none of ours.
    ///
    /// A policy text that names nothing known falls back as HAMi does (`binpack` for nodes, `spread` for cards);
    /// admission warns of it.
    ///
    /// # Errors
    /// The first field that cannot be served as written.
    pub fn demand(&self, pod: &PodView) -> Result<Demand, RequestError> {
        demand_of(&self.vendors, pod)
    }

    /// Decides. What the demand's own pod holds already is taken as free.
    ///
    /// A demand that asks for nothing fits every known node with an empty allocation; callers pass such a pod on
    /// without asking.
    #[must_use]
    pub fn decide(&self, snapshot: &Snapshot, demand: &Demand, candidates: Candidates<'_>) -> Decision {
        let mut question = Question::new(self, snapshot, demand);
        let mut decision = Decision::default();
        let add = |decision: &mut Decision, node: &NodeState, outcome: Outcome| match outcome {
            Ok(placed) => decision.fits.push(NodeFit::new(node, &placed)),
            Err(refusal) => decision.refused.push((node.name().clone(), refusal)),
        };
        let unknown = Arc::new(NodeRefusal::Unregistered);
        let mut named = |decision: &mut Decision, name: &str| match snapshot.node(name) {
            Some(node) => add(decision, node, question.ask(node)),
            None => {
                if let Ok(name) = NodeName::new(name) {
                    decision.refused.push((name, Arc::clone(&unknown)));
                }
            }
        };
        match candidates {
            Candidates::All => {
                for node in snapshot.nodes() {
                    add(&mut decision, node, question.ask(node));
                }
            }
            Candidates::Names(names) => {
                for name in names {
                    named(&mut decision, name);
                }
            }
            Candidates::Listed(names) => {
                for name in names.iter() {
                    named(&mut decision, name);
                }
            }
        }
        let policy = question.shape.content.node_policy;
        decision.best = best(&decision.fits, policy);
        decision
    }

    /// The winner of [`Engine::decide`] alone. What was found for earlier pods of the same shape is used again, so that
    /// the cost is that of the nodes that changed since; a decision about which nodes refuse, and why, costs all nodes.
    #[must_use]
    pub fn choose(&self, snapshot: &Snapshot, demand: &Demand, candidates: Candidates<'_>) -> Option<NodeFit> {
        let mut question = Question::new(self, snapshot, demand);
        if let Ok(winner) = snapshot.index().winner(&mut question, candidates) {
            return winner;
        }
        let mut decision = self.decide(snapshot, demand, candidates);
        decision.best.map(|at| decision.fits.swap_remove(at))
    }

    /// Decides for one node.
    ///
    /// # Errors
    /// Why the node cannot hold the pod.
    pub fn place_on(
        &self,
        snapshot: &Snapshot,
        demand: &Demand,
        node: &NodeName,
    ) -> Result<Arc<Placed>, Arc<NodeRefusal>> {
        let mut question = Question::new(self, snapshot, demand);
        match snapshot.node(node.as_str()) {
            Some(node) => question.ask(node),
            None => Err(Arc::new(NodeRefusal::Unregistered)),
        }
    }

    /// Decides on nodes given as objects, which the snapshot need not know, without remembering anything.
    ///
    /// `live`: what pods hold now on nodes of the same names counts; without it all cards are taken as free. Quotas
    /// count only with `live`.
    #[must_use]
    pub fn simulate(&self, nodes: &[NodeView], demand: &Demand, live: Option<&Snapshot>) -> Decision {
        let mut world = World::new(Arc::clone(&self.vendors));
        for node in nodes {
            world.set_node(node);
        }
        if let Some(live) = live {
            world.adopt(live, nodes.iter().map(|node| &node.name));
        }
        self.decide(&world.snapshot(), demand, Candidates::All)
    }

    /// All that is written on a pod when it is given `allocation`: node, time, device texts of each class,
    /// reserved instances. Annotations only; the label of the node's name is the patch's business.
    #[must_use]
    pub fn annotations(
        &self,
        allocation: &Allocation,
        demand: &Demand,
        at: &WriteContext<'_>,
    ) -> BTreeMap<String, String> {
        let mut annotations = BTreeMap::new();
        annotations.insert(keys::VGPU_NODE.to_owned(), at.node.to_string());
        annotations.insert(keys::VGPU_TIME.to_owned(), at.now_seconds.to_string());
        for class in allocation.classes.keys() {
            if let Some(vendor) = self.vendors.get(class) {
                annotations.extend(vendor.annotations(allocation, demand, at));
            }
        }
        annotations
    }

    /// Runs the checks of one ask over cards given by hand. `order`: positions in the order of examination; without it
    /// the policy decides.
    ///
    /// # Errors
    /// Why the cards do not suffice.
    pub fn fit_cards(
        &self,
        cards: &[TrialCard],
        order: Option<&[usize]>,
        ask: &Ask,
        selection: &Selection,
        policy: Option<&CardPolicy>,
        room: Option<Room>,
    ) -> Result<Vec<Given>, NodeRefusal> {
        self.fit_cards_after(cards, order, ask, selection, policy, room, &[])
    }

    /// [`Engine::fit_cards`] for a pod whose earlier containers were given something already. The cards' usage is
    /// taken as it is: what `earlier` holds of them is expected to be in it.
    ///
    /// # Errors
    /// Why the cards do not suffice.
    #[expect(
        clippy::too_many_arguments,
        reason = "a trial spells out all that a decision reads from a snapshot"
    )]
    pub fn fit_cards_after(
        &self,
        cards: &[TrialCard],
        order: Option<&[usize]>,
        ask: &Ask,
        selection: &Selection,
        policy: Option<&CardPolicy>,
        room: Option<Room>,
        earlier: &[Earlier],
    ) -> Result<Vec<Given>, NodeRefusal> {
        let Some(vendor) = self.vendors.get(&ask.class) else {
            return Err(NodeRefusal::Unregistered);
        };
        let facts = NodeFacts {
            name: NodeName::new("trial").map_err(|_| NodeRefusal::Unregistered)?,
            cards: cards.iter().map(|trial| trial.card.clone()).collect(),
            served: vec![true; cards.len()],
            cordoned: cards.iter().map(|trial| trial.cordoned).collect(),
            classes: vec![ClassOnNode {
                class: ask.class.clone(),
                cards: 0..cards.len(),
                closed: None,
                closed_by_node: None,
                facts: BTreeMap::new(),
            }],
            cpu: None,
            others: Vec::new(),
        };
        let usage = cards
            .iter()
            .map(|trial| CardUse {
                usage: trial.usage,
                instances: trial.instances.clone(),
                closed_by: 0,
            })
            .collect();
        let node = NodeState::with_usage(Arc::new(facts), usage);
        let content = shape::Content {
            containers: Vec::new(),
            selections: Vec::new(),
            facts: Vec::new(),
            rooms: Vec::new(),
            unknown: None,
            rule: None,
            node_policy: self.defaults.node_policy,
            packing: None,
            card_policy: policy
                .cloned()
                .unwrap_or_else(|| self.defaults.cards(self.defaults.node_policy)),
            weights: Weights::default(),
        };
        let shape = Shape::new(content);
        let fit = ContainerFit {
            vendor,
            rules: vendor.rules(),
            node: &node,
            shape: &shape,
            ask,
            role: ContainerRole::App,
            room,
            selection,
            facts: &BTreeMap::new(),
        };
        fit_one(&fit, order, earlier)
    }

    /// What the demand's namespace may still take of each class, with what its own pod holds given back.
    fn room(&self, snapshot: &Snapshot, demand: &Demand, own: Option<&Booking>, vendor_at: usize) -> Option<Room> {
        let vendor = self.vendors.at(vendor_at)?;
        let mut room = snapshot.quotas.room(&demand.pod.namespace, vendor.names())?;
        for (_, class, usage) in own.into_iter().flat_map(Booking::usage) {
            if class == vendor.keyword() {
                let memory = i64::try_from(usage.memory.get()).unwrap_or(i64::MAX);
                room.memory = room.memory.map(|left| left.saturating_add(memory));
                room.cores = room.cores.map(|left| left.saturating_add(i64::from(usage.cores.get())));
            }
        }
        Some(room)
    }

    pub(crate) fn shape(&self, snapshot: &Snapshot, demand: &Demand, own: Option<&Booking>) -> Arc<Shape> {
        shape::compile(&self.vendors, demand, &self.defaults, &snapshot.packed, |at| {
            self.room(snapshot, demand, own, at)
        })
    }
}

/// [`Engine::demand`].
pub(crate) fn demand_of(vendors: &Vendors, pod: &PodView) -> Result<Demand, RequestError> {
    let mut containers = Vec::with_capacity(pod.containers.len());
    for container in &pod.containers {
        let mut asks = Vec::new();
        for vendor in vendors.named_by(container) {
            asks.extend(vendor.parse(container, pod)?);
        }
        containers.push(ContainerDemand {
            name: container.name.clone(),
            role: container.role,
            asks,
        });
    }
    let mut demand = Demand {
        pod: pod.id.clone(),
        priority: pod.priority,
        containers,
        selections: Vec::new(),
        facts: BTreeMap::new(),
        rule: None,
        cpu_milli: pod.cpu_milli(),
        node_policy: None,
        card_policy: None,
        weights: Weights::default(),
    };
    if demand.is_empty() {
        return Ok(demand);
    }
    for class in demand.classes() {
        if let Some(vendor) = vendors.get(&class) {
            let selection = vendor.selection(pod)?;
            if selection != Selection::default() {
                demand.selections.push((class.clone(), selection));
            }
            let facts = vendor.pod_facts(pod);
            if !facts.is_empty() {
                demand.facts.insert(class, facts);
            }
        }
    }
    let text = |key: &str| pod.annotations.get(key).map(String::as_str);
    demand.rule = text(keys::TESSERA_CARD_RULE)
        .map(CardRule::parse)
        .transpose()
        .map_err(|error| RequestError::rule(keys::TESSERA_CARD_RULE, &error))?;
    demand.node_policy = text(keys::NODE_POLICY).map(|text| NodePolicy::parse(text).unwrap_or_default());
    demand.card_policy = text(keys::GPU_POLICY)
        .filter(|text| !text.trim().is_empty())
        .map(|text| CardPolicy::parse(text).0);
    if let Some(text) = text(keys::SCORING_WEIGHTS) {
        demand.weights = Weights::parse(text).map_err(|error| RequestError::weights(keys::SCORING_WEIGHTS, &error))?;
    }
    Ok(demand)
}

/// One demand, put to nodes of one snapshot.
pub(crate) struct Question<'a> {
    engine: &'a Engine,
    snapshot: &'a Snapshot,
    own: Option<&'a Booking>,
    uid: PodUid,
    priority: i32,
    pub(crate) shape: Arc<Shape>,
    scratch: Scratch,
}

impl<'a> Question<'a> {
    pub(crate) fn new(engine: &'a Engine, snapshot: &'a Snapshot, demand: &Demand) -> Self {
        let own = snapshot.booking(&demand.pod.uid);
        let shape = engine.shape(snapshot, demand, own);
        let uid = demand.pod.uid.clone();
        Self {
            engine,
            snapshot,
            own,
            uid,
            priority: demand.priority,
            shape,
            scratch: Scratch::default(),
        }
    }

    pub(crate) fn snapshot(&self) -> &'a Snapshot {
        self.snapshot
    }

    /// Where the demand's own pod holds something.
    pub(crate) fn own_node(&self) -> Option<NodeName> {
        self.own.map(|own| own.node.clone())
    }

    pub(crate) fn ask(&mut self, node: &NodeState) -> Outcome {
        let nominated: Vec<&Nomination> = node
            .nominations()
            .iter()
            .map(|nomination| &**nomination)
            .filter(|n| n.demand.priority >= self.priority && n.demand.pod.uid != self.uid)
            .collect();
        let is_here = self.own.is_some_and(|own| own.node == *node.name());
        if is_here || !nominated.is_empty() {
            let mut left = node.without(|booking| booking.pod.uid == self.uid);
            for booking in self.reserved(&left, &nominated) {
                left.put(booking);
            }
            return self.fit(&left);
        }
        if let Some(outcome) = node.remembered(&mut self.shape) {
            return outcome;
        }
        let outcome = self.fit(node);
        node.remember(&self.shape, &outcome);
        outcome
    }

    pub(crate) fn fit(&mut self, node: &NodeState) -> Outcome {
        fit_pod(&self.engine.vendors, node, &self.shape, &mut self.scratch)
            .map(Arc::new)
            .map_err(Arc::new)
    }

    /// What pods that others made room for will take once those others are gone.
    fn reserved(&mut self, node: &NodeState, nominated: &[&Nomination]) -> Vec<Arc<Booking>> {
        let mut later = node.without(|booking| booking.deleting);
        let mut reserved = Vec::new();
        for nomination in nominated {
            let demand = &nomination.demand;
            let shape = self.engine.shape(self.snapshot, demand, None);
            let Ok(placed) = fit_pod(&self.engine.vendors, &later, &shape, &mut self.scratch) else {
                continue;
            };
            let roles: Vec<ContainerRole> = demand.containers.iter().map(|container| container.role).collect();
            let booking = Arc::new(Booking {
                pod: demand.pod.clone(),
                node: node.name().clone(),
                held: Holding::new(&placed.allocation, &roles, false),
                state: BookingState::Assumed,
                priority: demand.priority,
                since: None,
                deleting: false,
                closures: Box::default(),
                facts: demand.facts.clone(),
            });
            later.put(Arc::clone(&booking));
            reserved.push(booking);
        }
        reserved
    }
}

/// The winner: by score, then by fill with the pod, then the lower name.
fn best(fits: &[NodeFit], policy: NodePolicy) -> Option<usize> {
    let order = |a: &NodeFit, b: &NodeFit| {
        order::better_node(policy, a.score, b.score)
            .then_with(|| order::better_node(policy, f64::from(a.score_after), f64::from(b.score_after)))
            .then_with(|| b.node.cmp(&a.node))
    };
    fits.iter()
        .enumerate()
        .max_by(|(_, a), (_, b)| order(a, b))
        .map(|(at, _)| at)
}
