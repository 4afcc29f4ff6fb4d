//! A cluster on which moves are tried and taken back.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use serde::Serialize;
use tessera_engine::{Candidates, Engine, NodeFit, NodeState, Snapshot, Vendors, World, WriteContext};
use tessera_packing::{Fragmentation, Models, WHOLE};
use tessera_types::{Allocation, Demand, PodUid};
use tessera_wire::PodView;

use crate::case::{Case, is_allocation};
use crate::format::{Dump, DumpNode, DumpPod, memory_mib, room};
use crate::measure::measure;
use crate::replay::PolicyName;

/// Cards whose link scores reach this hang together by more than a bus.
const LINKED: i64 = 100;

/// What is free.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Free {
    /// Cards that nobody uses.
    pub cards: usize,
    /// Sets of linked cards that nobody uses.
    pub groups: usize,
    /// Nodes whose cards nobody uses.
    pub nodes: usize,
    /// Idle cards that a typical pod is expected not to be able to use, in cards.
    pub fragmented: f64,
    /// Cards of free groups and of free nodes, for comparing.
    #[serde(skip)]
    pub(super) together: usize,
}

impl Free {
    /// What it is worth, in cards.
    pub(super) fn value(&self) -> f64 {
        let count = |count: usize| u32::try_from(count).map_or(f64::MAX, f64::from);
        count(self.cards) + 0.5 * count(self.together) - self.fragmented
    }
}

/// One pod made again elsewhere.
#[derive(Debug, Clone, Serialize)]
pub struct Move {
    /// Namespace and name.
    pub pod: String,
    /// Tells the pod apart.
    pub uid: String,
    /// The node that it leaves.
    pub from: String,
    /// The cards that it leaves.
    pub from_cards: Vec<String>,
    /// The node that it goes to.
    pub to: String,
    /// The cards that it gets.
    pub to_cards: Vec<String>,
    /// Whether the scheduler would choose this node without being told, once the node that the pod leaves is cordoned.
    pub by_itself: bool,
    /// The shares that it gets.
    #[serde(skip)]
    pub allocation: Arc<Allocation>,
}

/// A pod on a node.
#[derive(Debug)]
struct Tenant {
    dumped: DumpPod,
    view: PodView,
    demand: Demand,
    cpu: u32,
    memory: u32,
}

/// What takes a move back.
#[derive(Debug)]
pub(super) struct Undo {
    uid: PodUid,
    view: PodView,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Estate {
    engine: Engine,
    world: World,
    nodes: BTreeMap<String, DumpNode>,
    room: HashMap<String, (u32, u32)>,
    tenants: BTreeMap<PodUid, Tenant>,
    models: Models,
    typical: Fragmentation,
    /// What is free on each node, kept in step with every move.
    free: BTreeMap<String, Free>,
}

impl Estate {
    pub(super) fn new(dump: &Dump, vendors: &Arc<Vendors>, policy: PolicyName) -> Result<Self> {
        let case = Case::from_dump(dump, vendors)?;
        let engine = Engine::new(Arc::clone(vendors), policy.defaults());
        let mut estate = Self {
            world: World::new(Arc::clone(vendors)),
            nodes: BTreeMap::new(),
            room: HashMap::new(),
            tenants: BTreeMap::new(),
            typical: Fragmentation::new(case.workload.typical(&case.models)),
            models: case.models,
            free: BTreeMap::new(),
            engine,
        };
        for node in &dump.nodes {
            let view = node.view()?;
            estate.world.set_node(&view);
            estate.room.insert(node.name.clone(), room(&view));
            estate.nodes.insert(node.name.clone(), node.clone());
        }
        for pod in &dump.pods {
            let view = pod.view()?;
            estate.world.set_pod(&view);
            let (cpu, memory) = (view.cpu_milli(), memory_mib(&view));
            if let Some(node) = &pod.node {
                take(&mut estate.room, node, cpu, memory);
            }
            let demand = estate.engine.demand(&view)?;
            if estate.world.snapshot().booking(&view.id.uid).is_some() {
                estate.tenants.insert(
                    view.id.uid.clone(),
                    Tenant {
                        dumped: pod.clone(),
                        view,
                        demand,
                        cpu,
                        memory,
                    },
                );
            }
        }
        let names: Vec<String> = estate.nodes.keys().cloned().collect();
        estate.count(names.iter().map(String::as_str));
        Ok(estate)
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        self.world.snapshot()
    }

    /// Whether the pod may be moved.
    pub(super) fn moves(&self, uid: &PodUid) -> bool {
        self.tenants.get(uid).is_some_and(|tenant| {
            tenant.dumped.stays.is_none() && tenant.view.node_name.is_some() && !tenant.demand.is_empty()
        })
    }

    /// Cards that the pod asks for, thousandths, roughly: what is large is placed first.
    pub(super) fn size(&self, uid: &PodUid) -> u64 {
        let booking = self.world.snapshot();
        let Some(booking) = booking.booking(uid) else { return 0 };
        booking.usage().map(|(_, _, usage)| usage.memory.get()).sum()
    }

    /// Pods with cards that stay, by reason.
    pub(super) fn stay(&self) -> BTreeMap<String, Vec<String>> {
        let mut stay: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for tenant in self.tenants.values() {
            if let Some(reason) = &tenant.dumped.stays {
                let name = format!("{}/{}", tenant.dumped.namespace, tenant.dumped.name);
                stay.entry(reason.clone()).or_default().push(name);
            }
        }
        stay.values_mut().for_each(|pods| pods.sort());
        stay
    }

    /// Where the pod would go, on a node other than its own: first to cards that are in use anyway. And whether the
    /// scheduler would choose that by itself.
    fn place(&self, tenant: &Tenant) -> Option<(NodeFit, bool)> {
        let snapshot = self.world.snapshot();
        let from = tenant.view.node_name.as_deref()?;
        let fits = |node: &DumpNode| {
            let room = self.room.get(&node.name).copied().unwrap_or_default();
            node.name != from && room.0 >= tenant.cpu && room.1 >= tenant.memory && tenant.dumped.may_be_on(node)
        };
        let names: Vec<String> = self
            .nodes
            .values()
            .filter(|node| fits(node))
            .map(|node| node.name.clone())
            .collect();
        let mut all = self.engine.decide(&snapshot, &tenant.demand, Candidates::Names(&names));
        let own = all.best.map(|best| all.fits.swap_remove(best))?;
        let in_use = |fit: &NodeFit| {
            let node = snapshot.node(fit.node.as_str());
            let shares = || fit.allocation.shares();
            node.is_some_and(|node| shares().all(|(_, share)| is_used(node, share.card.as_str())))
        };
        if in_use(&own) {
            return Some((own, true));
        }
        let gentle: Vec<String> = all
            .fits
            .iter()
            .filter(|fit| in_use(fit))
            .map(|fit| fit.node.to_string())
            .collect();
        if gentle.is_empty() {
            return Some((own, true));
        }
        let mut gentle = self
            .engine
            .decide(&snapshot, &tenant.demand, Candidates::Names(&gentle));
        let best = gentle.best?;
        Some((gentle.fits.swap_remove(best), false))
    }

    /// Moves the pod; `None`, and nothing changes, if it fits nowhere else.
    pub(super) fn try_move(&mut self, uid: &PodUid) -> Result<Option<(Move, Undo)>> {
        let Some(tenant) = self.tenants.get(uid) else {
            return Ok(None);
        };
        let Some((fit, by_itself)) = self.place(tenant) else {
            return Ok(None);
        };
        let mut view = tenant.view.clone();
        let from = view.node_name.clone().context("a pod that is on no node")?;
        view.annotations
            .retain(|key, _| !is_allocation(self.engine.vendors(), key));
        let snapshot = self.world.snapshot();
        let at = WriteContext {
            node: &fit.node,
            now_seconds: 0,
            cards: snapshot
                .node(fit.node.as_str())
                .map(NodeState::cards)
                .unwrap_or_default(),
        };
        view.annotations
            .extend(self.engine.annotations(&fit.allocation, &tenant.demand, &at));
        view.node_name = Some(fit.node.to_string());
        let from_cards = snapshot
            .booking(uid)
            .map(|booking| booking.usage().map(|(card, ..)| card.to_string()).collect());
        drop(snapshot);
        let mut to_cards: Vec<String> = fit
            .allocation
            .shares()
            .map(|(_, share)| share.card.to_string())
            .collect();
        to_cards.dedup();
        let one = Move {
            pod: format!("{}/{}", tenant.dumped.namespace, tenant.dumped.name),
            uid: uid.to_string(),
            from,
            from_cards: from_cards.unwrap_or_default(),
            to: fit.node.to_string(),
            to_cards,
            by_itself,
            allocation: fit.allocation,
        };
        let undo = Undo {
            uid: uid.clone(),
            view: self.set(uid, view)?,
        };
        Ok(Some((one, undo)))
    }

    pub(super) fn undo(&mut self, undo: Undo) -> Result<()> {
        self.set(&undo.uid, undo.view).map(drop)
    }

    /// Puts the pod where `view` says, and gives how it was.
    fn set(&mut self, uid: &PodUid, view: PodView) -> Result<PodView> {
        let tenant = self.tenants.get_mut(uid).context("a pod that is not there")?;
        let old = std::mem::replace(&mut tenant.view, view);
        if let Some(room) = old.node_name.as_ref().and_then(|node| self.room.get_mut(node)) {
            *room = (room.0.saturating_add(tenant.cpu), room.1.saturating_add(tenant.memory));
        }
        if let Some(node) = &tenant.view.node_name {
            take(&mut self.room, node, tenant.cpu, tenant.memory);
        }
        self.world.set_pod(&tenant.view);
        let to = tenant.view.node_name.clone();
        self.count(to.as_deref().into_iter().chain(old.node_name.as_deref()));
        Ok(old)
    }

    /// Looks at nodes anew.
    fn count<'a>(&mut self, nodes: impl Iterator<Item = &'a str>) {
        let snapshot = self.world.snapshot();
        for name in nodes {
            if let Some(node) = snapshot.node(name) {
                let free = self.free_on(node);
                self.free.insert(name.to_owned(), free);
            }
        }
    }

    pub(super) fn free(&self) -> Free {
        self.free.values().fold(Free::default(), |sum, node| Free {
            cards: sum.cards + node.cards,
            groups: sum.groups + node.groups,
            nodes: sum.nodes + node.nodes,
            fragmented: sum.fragmented + node.fragmented,
            together: sum.together + node.together,
        })
    }

    fn free_on(&self, node: &NodeState) -> Free {
        let usable = |at: &usize| node.is_healthy(*at) && !node.is_cordoned(*at);
        let unused = |at: &usize| usable(at) && node.usage().get(*at).is_some_and(|used| used.usage.slots == 0);
        let all = node.cards().len();
        let cards = (0..all).filter(unused).count();
        let whole = all > 0 && cards == all;
        let groups = groups(node).into_iter().filter(|group| group.iter().all(unused));
        let groups: Vec<usize> = groups.map(|group| group.len()).collect();
        let cpu = self.room.get(node.name().as_str()).map_or(0, |room| room.0);
        Free {
            cards,
            groups: groups.len(),
            nodes: usize::from(whole),
            fragmented: measure(node, cpu, &self.models, &self.typical).lost / f64::from(WHOLE),
            together: if whole { all } else { 0 } + groups.iter().sum::<usize>(),
        }
    }
}

fn is_used(node: &NodeState, card: &str) -> bool {
    let at = node.cards().iter().position(|known| known.id.as_str() == card);
    at.and_then(|at| node.usage().get(at))
        .is_some_and(|used| used.usage.slots > 0)
}

fn take(room: &mut HashMap<String, (u32, u32)>, node: &str, cpu: u32, memory: u32) {
    if let Some(room) = room.get_mut(node) {
        *room = (room.0.saturating_sub(cpu), room.1.saturating_sub(memory));
    }
}

/// Sets of two or more cards of a node that hang together by fast links, by position.
pub(super) fn groups(node: &NodeState) -> Vec<Vec<usize>> {
    let cards = node.cards();
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut seen = vec![false; cards.len()];
    for first in 0..cards.len() {
        if std::mem::replace(&mut seen[first], true) {
            continue;
        }
        let mut group = vec![first];
        let mut next = 0;
        while let Some(at) = group.get(next).copied() {
            next += 1;
            for (other, card) in cards.iter().enumerate() {
                let score = cards[at].link_scores.get(&card.id).copied().unwrap_or(0);
                if score >= LINKED && !std::mem::replace(&mut seen[other], true) {
                    group.push(other);
                }
            }
        }
        if group.len() > 1 {
            group.sort_unstable();
            groups.push(group);
        }
    }
    groups
}
