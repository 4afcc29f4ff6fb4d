//! One replay: pods come and leave, and the engine that the scheduler calls decides where they go.
//!
//! What kube-scheduler does before and after is played here: it offers only nodes with CPU and memory to spare, and it
//! places pods without cards.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use tessera_engine::{Assumption, Candidates, Defaults, Engine, NodeFit, NodeState, Snapshot, World, WriteContext};
use tessera_packing::{Cluster, Fragmentation, Node, Placement, Policy, WHOLE, Weights};
use tessera_types::{CardPolicy, NodePolicy, PodUid};
use tessera_wire::{NodeView, PodView};

use crate::case::{Case, Source, model_name};
use crate::format::memory_mib;
use crate::measure::{Measured, measure, used_milli};

/// Slots of each card of a trace under [`PolicyName::Hami`]: its default.
const HAMI_SLOTS: u32 = 10;
/// Under the others: more than pods can fill.
const SLOTS: u32 = 100;
/// CPU that counts as a whole node under [`PolicyName::Bestfit`], milli-cores.
const FULL_CPU: f64 = 128_000.0;
/// Cards that count as a whole node there, milli.
const FULL_CARDS: f64 = 8_000.0;
/// How long a decision is held until it is seen on the pod, in seconds; here it is seen at once.
const LEASE: i64 = 60;

/// A policy by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PolicyName {
    /// The node policy `tessera`
    Tessera,
    /// The node policy `fgd`
    Fgd,
    /// The node where the least CPU and cards are left, as published
    Bestfit,
    /// HAMi's defaults: node policy `binpack`, card policy `spread`, any of equal nodes; ten slots for each card of a trace
    Hami,
    /// Node policy and card policy `binpack`
    Binpack,
    /// Node policy and card policy `spread`
    Spread,
}

impl PolicyName {
    /// As it is written.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tessera => "tessera",
            Self::Fgd => "fgd",
            Self::Bestfit => "bestfit",
            Self::Hami => "hami",
            Self::Binpack => "binpack",
            Self::Spread => "spread",
        }
    }

    pub(crate) fn defaults(self) -> Defaults {
        let (node_policy, card_policy) = match self {
            Self::Tessera => (NodePolicy::Tessera, "binpack"),
            Self::Fgd => (NodePolicy::Fgd, "binpack"),
            Self::Bestfit | Self::Binpack => (NodePolicy::Binpack, "binpack"),
            Self::Hami => (NodePolicy::Binpack, "spread"),
            Self::Spread => (NodePolicy::Spread, "spread"),
        };
        Defaults {
            node_policy,
            card_policy: Some(CardPolicy::parse(card_policy).0),
        }
    }

    fn slots(self) -> u32 {
        if self == Self::Hami { HAMI_SLOTS } else { SLOTS }
    }

    /// What places pods without cards under [`PlainPods::Policy`]. HAMi leaves them to kube-scheduler.
    fn packing(self) -> Option<Policy> {
        match self {
            Self::Tessera => Some(Policy::Tessera(Weights::default())),
            Self::Fgd => Some(Policy::Fgd),
            Self::Bestfit => Some(Policy::BestFit),
            Self::Hami | Self::Binpack | Self::Spread => None,
        }
    }
}

/// Who places pods without cards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PlainPods {
    /// The policy, where it can, as in the published experiment
    Policy,
    /// kube-scheduler, by the least allocated CPU and memory, as in a cluster
    Kube,
}

/// What a pod that came holds.
#[derive(Debug, Clone)]
struct Held {
    row: usize,
    pod: usize,
    cards: u8,
    /// As the API server has it.
    view: PodView,
}

/// A cluster that pods come to and leave.
#[derive(Debug)]
pub struct Replayer<'a> {
    case: &'a Case,
    policy: PolicyName,
    engine: Engine,
    world: World,
    /// By row.
    names: Vec<String>,
    rows: HashMap<String, usize>,
    /// Rows in the order of names, which decides between equal nodes.
    order: Vec<usize>,
    /// CPU and memory left, by row.
    room: Vec<(u32, u32)>,
    held: HashMap<u64, Held>,
    mirror: Option<Cluster>,
    typical: Fragmentation,
    measured: Vec<Measured>,
    now: i64,
}

impl<'a> Replayer<'a> {
    /// An empty cluster. `ranks`: by row, the place of a node among equal ones.
    ///
    /// # Errors
    /// A node cannot be read.
    pub fn new(case: &'a Case, policy: PolicyName, plain: PlainPods, ranks: &[u32]) -> Result<Self> {
        let mut world = World::new(Arc::clone(&case.vendors));
        let mut names = Vec::with_capacity(case.nodes.len());
        for (row, node) in case.nodes.iter().enumerate() {
            // Equal nodes are told apart by name, so the name is the rank.
            let name = match ranks.get(row) {
                Some(rank) => format!("n{rank:06}"),
                None => format!("without-rank{row:06}"),
            };
            world.set_node(&node.view(&name, policy.slots())?);
            names.push(name);
        }
        let mut order: Vec<usize> = (0..names.len()).collect();
        order.sort_by(|a, b| names.get(*a).cmp(&names.get(*b)));
        let typical = Fragmentation::new(case.workload.typical(&case.models));
        let packing = policy.packing().filter(|_| plain == PlainPods::Policy);
        let mut replayer = Self {
            case,
            policy,
            engine: Engine::new(Arc::clone(&case.vendors), policy.defaults()),
            world,
            rows: names.iter().cloned().zip(0..).collect(),
            names,
            order,
            room: case.nodes.iter().map(|node| (node.cpu, node.memory)).collect(),
            held: HashMap::new(),
            mirror: packing.and_then(|packing| mirror(case, ranks, &typical, packing)),
            typical,
            measured: vec![Measured::default(); case.nodes.len()],
            now: 0,
        };
        let snapshot = replayer.world.snapshot();
        for row in 0..replayer.names.len() {
            replayer.measure(&snapshot, row);
        }
        Ok(replayer)
    }

    fn measure(&mut self, snapshot: &Snapshot, row: usize) {
        let node = self.names.get(row).and_then(|name| snapshot.node(name));
        let cpu = self.room.get(row).map_or(0, |room| room.0);
        if let (Some(node), Some(measured)) = (node, self.measured.get_mut(row)) {
            *measured = measure(node, cpu, &self.case.models, &self.typical);
        }
    }

    /// All nodes together.
    #[must_use]
    pub(crate) fn total(&self) -> Measured {
        self.measured
            .iter()
            .fold(Measured::default(), |sum, node| sum.plus(*node))
    }

    /// The world as it is.
    #[must_use]
    pub fn world(&self) -> &World {
        &self.world
    }

    /// The nodes as the API server would have them.
    ///
    /// # Errors
    /// A node cannot be read.
    pub fn nodes(&self) -> Result<Vec<NodeView>> {
        let nodes = self.case.nodes.iter().zip(&self.names);
        nodes.map(|(node, name)| node.view(name, self.policy.slots())).collect()
    }

    /// The pods that found a place and have not left, as the API server would have them.
    pub fn pods(&self) -> impl Iterator<Item = &PodView> {
        self.held.values().map(|held| &held.view)
    }

    /// The pod of this row comes, as the arrival of this number. Returns whether it found a place.
    ///
    /// # Errors
    /// The parts of the program disagree about what is free, which must not be.
    pub fn arrive(&mut self, arrival: u64, pod: usize) -> Result<bool> {
        self.now += 1;
        self.world.expire(self.now);
        let case = self.case;
        let case_pod = case
            .pods
            .get(pod)
            .with_context(|| format!("there is no pod in row {pod}"))?;
        let mut view = case_pod.view.clone();
        view.id.uid = PodUid::new(format!("{arrival}"))?;
        view.id.name = format!("{}-{arrival}", view.id.name);
        self.world.set_pod(&view);
        if let Some(mirror) = &mut self.mirror {
            mirror.see(&case_pod.request);
        }
        let demand = self.engine.demand(&view)?;
        let (row, cards) = if demand.is_empty() {
            match case_pod.here.or_else(|| self.place_plain(pod)) {
                Some(row) => (row, 0),
                None => return Ok(self.refuse(&view)),
            }
        } else {
            let snapshot = self.world.snapshot();
            let Some(fit) = self.choose(&snapshot, &demand, pod) else {
                drop(snapshot);
                return Ok(self.refuse(&view));
            };
            let row = *self
                .rows
                .get(fit.node.as_str())
                .context("the engine chose an unknown node")?;
            let cards = mask_of(&snapshot, &fit);
            let at = WriteContext {
                node: &fit.node,
                now_seconds: self.now,
                cards: snapshot
                    .node(fit.node.as_str())
                    .map(NodeState::cards)
                    .unwrap_or_default(),
            };
            view.annotations
                .extend(self.engine.annotations(&fit.allocation, &demand, &at));
            drop(snapshot);
            let roles = view.roles();
            self.world.assume(&Assumption {
                pod: &view.id,
                roles: &roles,
                node: &fit.node,
                allocation: Arc::clone(&fit.allocation),
                priority: view.priority,
                facts: &demand.facts,
                now: self.now,
                expires_at: self.now + LEASE,
            })?;
            (row, cards)
        };
        if let Some(mirror) = &mut self.mirror {
            let taken = mirror.take(&case_pod.request, Placement { node: row, cards });
            ensure!(
                taken,
                "the engine gave pod {} what the packing model has not free",
                view.id.name
            );
        }
        view.node_name = self.names.get(row).cloned();
        self.world.set_pod(&view);
        let (cpu, memory) = (view.cpu_milli(), memory_mib(&view));
        if let Some(room) = self.room.get_mut(row) {
            *room = (room.0.saturating_sub(cpu), room.1.saturating_sub(memory));
        }
        let snapshot = self.world.snapshot();
        self.measure(&snapshot, row);
        drop(snapshot);
        self.held.insert(arrival, Held { row, pod, cards, view });
        Ok(true)
    }

    /// A pod that fits nowhere does not wait.
    fn refuse(&mut self, view: &PodView) -> bool {
        self.world.remove_pod(&view.id.uid);
        false
    }

    /// The arrival of this number leaves, if it found a place.
    ///
    /// # Errors
    /// The parts of the program disagree about what it held, which must not be.
    pub fn leave(&mut self, arrival: u64) -> Result<()> {
        let Some(held) = self.held.remove(&arrival) else {
            return Ok(());
        };
        self.world.remove_pod(&held.view.id.uid);
        let pod = self.case.pods.get(held.pod).context("a pod that is not in the case")?;
        if let Some(mirror) = &mut self.mirror {
            mirror.release(
                &pod.request,
                Placement {
                    node: held.row,
                    cards: held.cards,
                },
            )?;
        }
        let node = self
            .case
            .nodes
            .get(held.row)
            .context("a node that is not in the case")?;
        if let Some(room) = self.room.get_mut(held.row) {
            let (cpu, memory) = (pod.view.cpu_milli(), memory_mib(&pod.view));
            *room = (
                room.0.saturating_add(cpu).min(node.cpu),
                room.1.saturating_add(memory).min(node.memory),
            );
        }
        let snapshot = self.world.snapshot();
        self.measure(&snapshot, held.row);
        Ok(())
    }

    /// Whether kube-scheduler would offer the node.
    fn offers(&self, row: usize, pod: usize) -> bool {
        let (Some(pod), Some(room)) = (self.case.pods.get(pod), self.room.get(row)) else {
            return false;
        };
        let dumped = || match (&pod.dumped, self.case.nodes.get(row).map(|node| &node.source)) {
            (Some(pod), Some(Source::Dump(node, _))) => pod.may_be_on(node),
            _ => true,
        };
        room.0 >= pod.request.cpu && room.1 >= pod.request.memory && dumped()
    }

    fn choose(&self, snapshot: &Snapshot, demand: &tessera_types::Demand, pod: usize) -> Option<NodeFit> {
        let offered = (0..self.names.len()).filter(|row| self.offers(*row, pod));
        let names: Vec<String> = offered.filter_map(|row| self.names.get(row).cloned()).collect();
        let candidates = Candidates::Names(&names);
        let request = self.case.pods.get(pod)?.request;
        let bestfit = |fit: &NodeFit| {
            let row = self.rows.get(fit.node.as_str()).copied();
            let measured = row.and_then(|row| self.measured.get(row)).copied().unwrap_or_default();
            let cpu = row.and_then(|row| self.room.get(row)).map_or(0, |room| room.0);
            let cpu = f64::from(cpu.saturating_sub(request.cpu));
            let cards = measured.all - measured.used - f64::from(request.demand());
            (100.0 * (1.0 - 0.5 * cpu / FULL_CPU - 0.5 * cards / FULL_CARDS)).trunc()
        };
        // The published rule stretches scores over the nodes and rounds down; only the highest stays the highest.
        let worth: &dyn Fn(&NodeFit) -> f64 = match self.policy {
            PolicyName::Bestfit => &bestfit,
            // HAMi takes any of equal nodes; the engine would take the one that is fuller with the pod.
            PolicyName::Hami => &|fit| fit.score,
            _ => return self.engine.choose(snapshot, demand, candidates),
        };
        let mut fits = self.engine.decide(snapshot, demand, candidates).fits;
        let better = |a: &NodeFit, b: &NodeFit| worth(a).total_cmp(&worth(b)).then_with(|| b.node.cmp(&a.node));
        let best = fits.iter().enumerate().max_by(|(_, a), (_, b)| better(a, b))?.0;
        Some(fits.swap_remove(best))
    }

    fn place_plain(&mut self, pod: usize) -> Option<usize> {
        if let Some(mirror) = &mut self.mirror {
            return mirror
                .decide(&self.case.pods.get(pod)?.request)
                .map(|placement| placement.node);
        }
        let request = self.case.pods.get(pod)?.request;
        let score = |row: usize| {
            let (node, room) = (self.case.nodes.get(row)?, self.room.get(row)?);
            let part = |left: u32, all: u32| u64::from(left) * 100 / u64::from(all.max(1));
            Some(u64::midpoint(
                part(room.0.saturating_sub(request.cpu), node.cpu),
                part(room.1.saturating_sub(request.memory), node.memory),
            ))
        };
        let mut best: Option<(u64, usize)> = None;
        for row in self.order.iter().copied().filter(|row| self.offers(*row, pod)) {
            if let Some(score) = score(row)
                && best.is_none_or(|(other, _)| score > other)
            {
                best = Some((score, row));
            }
        }
        best.map(|(_, row)| row)
    }

    /// Cards of each model, and how much of them is promised in percent.
    pub(crate) fn models(&self) -> Vec<ModelUse> {
        let snapshot = self.world.snapshot();
        let mut models: Vec<ModelUse> = Vec::new();
        for node in snapshot.nodes() {
            for (card, used) in node.cards().iter().zip(node.usage()) {
                let name = model_name(card);
                let at = models.iter().position(|model| model.model == name).unwrap_or_else(|| {
                    models.push(ModelUse {
                        model: name.to_owned(),
                        cards: 0,
                        allocated_percent: 0.0,
                    });
                    models.len() - 1
                });
                if let Some(model) = models.get_mut(at) {
                    model.cards += 1;
                    model.allocated_percent += f64::from(used_milli(card, used.usage)) * 100.0 / f64::from(WHOLE);
                }
            }
        }
        for model in &mut models {
            model.allocated_percent /= f64::from(model.cards.max(1));
        }
        models.sort_by(|a, b| b.cards.cmp(&a.cards).then_with(|| a.model.cmp(&b.model)));
        models
    }
}

/// Cards of one model.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub(crate) struct ModelUse {
    pub(crate) model: String,
    pub(crate) cards: u32,
    /// Percent of these cards that is promised.
    pub(crate) allocated_percent: f64,
}

/// The packing model beside the world, for a trace.
fn mirror(case: &Case, ranks: &[u32], typical: &Fragmentation, packing: Policy) -> Option<Cluster> {
    let nodes = case.nodes.iter().map(|node| match &node.source {
        Source::Trace(node, _) => Some(node.clone()),
        Source::Dump(..) => None,
    });
    let nodes: Vec<Node> = nodes.collect::<Option<_>>()?;
    Some(Cluster::new(&nodes, ranks, typical.clone(), packing))
}

/// One bit for each card of the node that the pod takes; for nodes of up to eight cards.
fn mask_of(snapshot: &Snapshot, fit: &NodeFit) -> u8 {
    let cards = snapshot
        .node(fit.node.as_str())
        .map(NodeState::cards)
        .unwrap_or_default();
    fit.allocation.shares().fold(0, |mask, (_, share)| {
        let at = cards.iter().position(|card| card.id == share.card);
        mask | at.and_then(|at| 1_u8.checked_shl(u32::try_from(at).ok()?)).unwrap_or(0)
    })
}
