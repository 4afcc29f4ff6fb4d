//! A demand without its owner: all that a node's answer depends on besides the node itself.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use tessera_types::{Ask, CardPolicy, CardRule, ContainerRole, Demand, Keyword, NodePolicy, Selection, Weights};

use crate::decide::Defaults;
use crate::pack::{Packed, Packing};
use crate::quota::Room;
use crate::vendor::Vendors;

/// One container of a shape: when it runs, and what it asks of which class (position in [`Vendors`]).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ShapeContainer {
    pub(crate) role: ContainerRole,
    pub(crate) asks: Vec<(usize, Ask)>,
}

/// The content of a shape; two demands with equal content get equal answers from equal nodes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Content {
    pub(crate) containers: Vec<ShapeContainer>,
    /// By position in [`Vendors`], only classes asked for.
    pub(crate) selections: Vec<(usize, Selection)>,
    /// What classes asked for want to know of the pod, by position in [`Vendors`].
    pub(crate) facts: Vec<(usize, BTreeMap<String, String>)>,
    /// What the namespace's quota leaves, by position in [`Vendors`]; only classes with a limit.
    pub(crate) rooms: Vec<(usize, Room)>,
    /// An ask of a class that does not exist.
    pub(crate) unknown: Option<Keyword>,
    /// The pod's own rule. Remembered answers are by shape and version of a node, so a card is asked again only when
    /// something on its node has changed.
    pub(crate) rule: Option<CardRule>,
    pub(crate) node_policy: NodePolicy,
    /// Under a policy that packs: what placements are worth.
    pub(crate) packing: Option<Packing>,
    pub(crate) card_policy: CardPolicy,
    pub(crate) weights: Weights,
}

/// A shape with its hash.
#[derive(Debug)]
pub(crate) struct Shape {
    hash: u64,
    pub(crate) content: Content,
}

static NO_SELECTION: Selection = Selection {
    use_models: None,
    avoid_models: None,
    use_ids: None,
    avoid_ids: None,
    numa_bind: false,
    modes: None,
    extra: Vec::new(),
};

static NO_FACTS: BTreeMap<String, String> = BTreeMap::new();

impl Shape {
    pub(crate) fn new(content: Content) -> Arc<Self> {
        // `DefaultHasher::new` has fixed keys, and the hash only shortens comparing: equality decides.
        let mut hasher = DefaultHasher::new();
        content.hash(&mut hasher);
        Arc::new(Self {
            hash: hasher.finish(),
            content,
        })
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    pub(crate) fn same(one: &Arc<Self>, other: &Arc<Self>) -> bool {
        Arc::ptr_eq(one, other) || (one.hash == other.hash && one.content == other.content)
    }

    pub(crate) fn selection(&self, vendor: usize) -> &Selection {
        self.content
            .selections
            .iter()
            .find(|(at, _)| *at == vendor)
            .map_or(&NO_SELECTION, |(_, selection)| selection)
    }

    pub(crate) fn facts(&self, vendor: usize) -> &BTreeMap<String, String> {
        self.content
            .facts
            .iter()
            .find(|(at, _)| *at == vendor)
            .map_or(&NO_FACTS, |(_, facts)| facts)
    }

    pub(crate) fn room(&self, vendor: usize) -> Option<Room> {
        self.content
            .rooms
            .iter()
            .find(|(at, _)| *at == vendor)
            .map(|(_, room)| *room)
    }
}

/// Compiles a demand. `room` answers what the namespace's quota leaves for a class, `None` without a limit.
pub(crate) fn compile(
    vendors: &Vendors,
    demand: &Demand,
    defaults: &Defaults,
    packed: &Arc<Packed>,
    room: impl Fn(usize) -> Option<Room>,
) -> Arc<Shape> {
    let mut unknown = None;
    let mut used = vec![false; vendors.iter().len()];
    let containers = demand
        .containers
        .iter()
        .map(|container| {
            let mut asks = Vec::with_capacity(container.asks.len());
            for ask in container.asks.iter().filter(|ask| ask.count > 0) {
                match vendors.position(&ask.class) {
                    Some(at) => {
                        used[at] = true;
                        asks.push((at, ask.clone()));
                    }
                    None => unknown = unknown.take().or_else(|| Some(ask.class.clone())),
                }
            }
            asks.sort_by_key(|(at, _)| *at);
            ShapeContainer {
                role: container.role,
                asks,
            }
        })
        .collect();
    let asked = || used.iter().enumerate().filter(|(_, used)| **used).map(|(at, _)| at);
    let selections = asked()
        .filter_map(|at| {
            let keyword = vendors.at(at)?.keyword();
            demand.selection(keyword).map(|selection| (at, selection.clone()))
        })
        .collect();
    let facts = asked()
        .filter_map(|at| {
            demand
                .facts
                .get(vendors.at(at)?.keyword())
                .map(|facts| (at, facts.clone()))
        })
        .collect();
    let rooms = asked().filter_map(|at| room(at).map(|room| (at, room))).collect();
    let node_policy = demand.node_policy.unwrap_or(defaults.node_policy);
    Shape::new(Content {
        containers,
        selections,
        facts,
        rooms,
        unknown,
        rule: demand.rule.clone(),
        node_policy,
        packing: node_policy
            .packs()
            .then(|| Packing::new(Arc::clone(packed), node_policy, demand.cpu_milli)),
        card_policy: demand
            .card_policy
            .clone()
            .unwrap_or_else(|| defaults.cards(node_policy)),
        weights: demand.weights,
    })
}
