//! Scores of the policies that pack a cluster, and what they go by: CPU of nodes, classes of pods, prices.
//!
//! What is learned is part of the snapshot and has a number. A shape carries it, so that scores of one number are never
//! compared with those of another, and what was remembered under an old number is not found under a new one.

use std::collections::HashMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use tessera_packing::{Learner, Left, Loss, Market, ModelSet, Models, Pool, Request, Terms, WHOLE, Weights, fgd_score};
use tessera_types::{CardUsage, Demand, MemoryAsk, Mib, NodeName, NodePolicy, PodUid};
use tessera_wire::PodView;

use crate::node::NodeState;
use crate::snapshot::NodeTable;

/// What a score under a policy that packs is made of. The unit is a thousandth of a card; higher is better.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ScoreTerms {
    /// Under `fgd`: the published whole-number score, and the fragmentation that the placement takes away.
    Fgd {
        /// 0 to 100; 50 changes nothing.
        score: f64,
        /// Fragmentation before less fragmentation after.
        gain: f64,
    },
    /// Under `tessera`.
    Tessera(Terms),
}

impl ScoreTerms {
    /// The score.
    #[must_use]
    pub fn sum(self) -> f64 {
        match self {
            Self::Fgd { score, .. } => score,
            Self::Tessera(terms) => terms.sum(),
        }
    }
}

impl fmt::Display for ScoreTerms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fgd { score, gain } => write!(f, "fgd {score:.0} (fragmentation {gain:+.1})"),
            Self::Tessera(terms) => write!(
                f,
                "fragmentation {:+.1}, balance {:+.1}, packing {:+.1}, model {:+.1}",
                terms.fragmentation, terms.balance, terms.packing, terms.model
            ),
        }
    }
}

/// What is known of the cluster's pods at one moment.
#[derive(Debug, Default)]
pub(crate) struct Packed {
    /// Never the same for two that differ.
    number: u64,
    market: Market,
    models: Models,
}

/// [`Packed`], for one pod. Two are equal if they give equal scores.
#[derive(Debug, Clone)]
pub(crate) struct Packing {
    packed: Arc<Packed>,
    policy: NodePolicy,
    cpu: u32,
}

impl PartialEq for Packing {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Packing {}

impl Hash for Packing {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

impl Packing {
    pub(crate) fn new(packed: Arc<Packed>, policy: NodePolicy, cpu: u32) -> Self {
        Self { packed, policy, cpu }
    }

    fn key(&self) -> (u64, NodePolicy, u32) {
        (self.packed.number, self.policy, self.cpu)
    }

    /// The terms for a pod that takes `added` of the node's cards, in their order. Cards that it takes nothing of
    /// count if they are of the same class; what cannot take work counts as used up.
    pub(crate) fn terms(&self, node: &NodeState, added: impl Iterator<Item = CardUsage>) -> ScoreTerms {
        let added: Vec<CardUsage> = added.collect();
        let taken = |at: usize| added.get(at).is_some_and(|usage| usage.slots > 0);
        let Some(first) = node.cards().iter().enumerate().find(|(at, _)| taken(*at)) else {
            return ScoreTerms::Tessera(Terms::default());
        };
        let first = first.1;
        let model = index_of(&self.packed.models, &first.model);
        let (mut before, mut after) = (Vec::new(), Vec::new());
        let (mut count, mut demand) = (0_u8, 0_u32);
        for (at, card) in node
            .cards()
            .iter()
            .enumerate()
            .filter(|(_, card)| card.class == first.class)
        {
            let usage = node.usage().get(at).map_or_else(CardUsage::default, |used| used.usage);
            let open = node.is_healthy(at) && !node.is_cordoned(at);
            let left = if open { left_of(card, usage) } else { 0 };
            let then = added.get(at).map_or(usage, |more| usage.plus(*more));
            let then = if open { left_of(card, then) } else { 0 };
            if taken(at) {
                count = count.saturating_add(1);
                demand += left.saturating_sub(then);
            }
            before.push(left);
            after.push(then);
        }
        let cpu = node.cpu_left().unwrap_or(u32::MAX);
        let cpu_after = if node.cpu_left().is_some() {
            cpu.saturating_sub(self.cpu)
        } else {
            cpu
        };
        let at = |cpu, cards| Left { model, cpu, cards };
        let market = &self.packed.market;
        if self.policy == NodePolicy::Fgd {
            let typical = market.typical();
            let gain = typical.of(model, cpu, &before) - typical.of(model, cpu_after, &after);
            return ScoreTerms::Fgd {
                score: fgd_score(gain),
                gain,
            };
        }
        let request = Request {
            cpu: self.cpu,
            memory: 0,
            count,
            milli: demand / u32::from(count.max(1)),
            models: ModelSet::ANY,
        };
        let loss: Loss = market.loss(at(cpu, &before));
        ScoreTerms::Tessera(market.terms(&request, loss, at(cpu_after, &after)))
    }
}

/// What is left of a card in milli: of memory or compute, whichever is less, and nothing without a free slot.
fn left_of(card: &tessera_types::Card, usage: CardUsage) -> u32 {
    if usage.slots >= card.slots {
        return 0;
    }
    let part = |used: u64, all: u64| {
        if all == 0 {
            return WHOLE;
        }
        let left = u128::from(all.saturating_sub(used)) * u128::from(WHOLE) / u128::from(all);
        u32::try_from(left).unwrap_or(WHOLE)
    };
    let memory = part(usage.memory.get(), card.memory.get());
    let cores = part(u64::from(usage.cores.get()), u64::from(card.cores.get()));
    memory.min(cores)
}

/// The index of a model; names past the limit share the last one.
fn index_of(models: &Models, name: &str) -> u8 {
    let known = models.iter().find(|(known, _)| *known == name);
    known.map_or(LAST_MODEL, |(_, index)| index)
}

const LAST_MODEL: u8 = 31;

/// Where a pod's CPU counts.
#[derive(Debug, Clone, Copy)]
struct PodCpu {
    milli: u32,
    /// Number of the node.
    node: Option<u32>,
    bound: bool,
}

/// What a Pod event did.
pub(crate) struct Seen {
    /// It was not known before.
    pub(crate) first: bool,
    /// Nodes whose CPU in use may be another.
    pub(crate) changed: [Option<NodeName>; 2],
}

/// CPU of all pods, and what was learned from them. Pods are told apart by a hash of their uid: there may be many, and
/// nothing but scores rests on this.
#[derive(Debug)]
pub(crate) struct Packer {
    pods: HashMap<u64, PodCpu>,
    names: Vec<NodeName>,
    numbers: HashMap<NodeName, u32>,
    used: Vec<u64>,
    learner: Learner,
    packed: Arc<Packed>,
}

impl Default for Packer {
    fn default() -> Self {
        let weights = Weights::default();
        Self {
            pods: HashMap::new(),
            names: Vec::new(),
            numbers: HashMap::new(),
            used: Vec::new(),
            learner: Learner::new(weights),
            packed: Arc::new(Packed {
                market: Market::new(weights),
                ..Packed::default()
            }),
        }
    }
}

fn key(uid: &PodUid) -> u64 {
    let mut hasher = DefaultHasher::new();
    uid.hash(&mut hasher);
    hasher.finish()
}

impl Packer {
    pub(crate) fn packed(&self) -> Arc<Packed> {
        Arc::clone(&self.packed)
    }

    /// Goes by what another world has learned.
    pub(crate) fn adopt(&mut self, packed: &Arc<Packed>) {
        self.packed = Arc::clone(packed);
    }

    pub(crate) fn cpu_used(&self, node: &NodeName) -> u64 {
        let number = self
            .numbers
            .get(node)
            .copied()
            .and_then(|number| usize::try_from(number).ok());
        number.and_then(|number| self.used.get(number)).copied().unwrap_or(0)
    }

    fn number(&mut self, node: &NodeName) -> Option<u32> {
        if let Some(number) = self.numbers.get(node) {
            return Some(*number);
        }
        let number = u32::try_from(self.names.len()).ok()?;
        self.names.push(node.clone());
        self.used.push(0);
        self.numbers.insert(node.clone(), number);
        Some(number)
    }

    /// Takes a Pod as it is now.
    pub(crate) fn see(&mut self, pod: &PodView) -> Seen {
        if pod.phase.is_terminal() {
            let changed = self.end(&pod.id.uid);
            return Seen { first: false, changed };
        }
        let key = key(&pod.id.uid);
        let bound = pod.node_name.as_deref().and_then(|name| NodeName::new(name).ok());
        let known = self.pods.get(&key).copied();
        let node = match &bound {
            Some(name) => self.number(name),
            None => known.and_then(|known| known.node),
        };
        let now = PodCpu {
            milli: pod.cpu_milli(),
            node,
            bound: bound.is_some(),
        };
        Seen {
            first: known.is_none(),
            changed: self.put(key, Some(now)),
        }
    }

    /// The pod that is not bound is promised a node, or none any more.
    pub(crate) fn promise(&mut self, uid: &PodUid, node: Option<&NodeName>) -> [Option<NodeName>; 2] {
        let key = key(uid);
        match self.pods.get(&key).copied() {
            Some(known) if !known.bound => {
                let node = node.and_then(|name| self.number(name));
                self.put(key, Some(PodCpu { node, ..known }))
            }
            _ => [None, None],
        }
    }

    /// The pod is gone.
    pub(crate) fn end(&mut self, uid: &PodUid) -> [Option<NodeName>; 2] {
        self.put(key(uid), None)
    }

    fn put(&mut self, key: u64, new: Option<PodCpu>) -> [Option<NodeName>; 2] {
        let old = match new {
            Some(new) => self.pods.insert(key, new),
            None => self.pods.remove(&key),
        };
        let at =
            |pod: Option<PodCpu>| pod.and_then(|pod| Some((usize::try_from(pod.node?).ok()?, u64::from(pod.milli))));
        let (old, new) = (at(old), at(new));
        if old == new {
            return [None, None];
        }
        if let Some((node, milli)) = old
            && let Some(used) = self.used.get_mut(node)
        {
            *used = used.saturating_sub(milli);
        }
        if let Some((node, milli)) = new
            && let Some(used) = self.used.get_mut(node)
        {
            *used += milli;
        }
        [old, new].map(|place| self.names.get(place?.0).cloned())
    }

    /// Learns from the request of a pod that is seen for the first time. Returns whether scores change by it.
    pub(crate) fn count(&mut self, demand: &Demand, nodes: &NodeTable) -> bool {
        let request = request(demand, &self.packed.models, nodes);
        if !self.learner.see(&request) {
            return false;
        }
        let mut models = self.packed.models.clone();
        let mut pools = [Pool::default(); Models::MOST];
        for node in nodes.iter() {
            for (at, card) in node.cards().iter().enumerate() {
                let model = models.intern(&card.model).unwrap_or(LAST_MODEL);
                let usage = node.usage().get(at).map_or_else(CardUsage::default, |used| used.usage);
                if let Some(pool) = pools.get_mut(usize::from(model)) {
                    pool.all += f64::from(WHOLE);
                    pool.idle += f64::from(left_of(card, usage));
                }
            }
        }
        self.packed = Arc::new(Packed {
            number: self.packed.number + 1,
            market: self.learner.learn(&pools),
            models,
        });
        true
    }
}

/// A demand in the words of the policies: how many cards, and the largest part of one.
fn request(demand: &Demand, models: &Models, nodes: &NodeTable) -> Request {
    let asks = || demand.containers.iter().flat_map(|container| &container.asks);
    let count: u32 = asks().map(|ask| ask.count).sum();
    let size = asks()
        .find_map(|ask| {
            nodes
                .iter()
                .flat_map(|node| node.cards())
                .find(|card| card.class == ask.class)
        })
        .map_or(Mib::ZERO, |card| card.memory);
    let part = |ask: &tessera_types::Ask| {
        let memory = match ask.memory {
            MemoryAsk::Whole => WHOLE,
            MemoryAsk::Percent(percent) => percent.saturating_mul(WHOLE / 100),
            MemoryAsk::Mib(_) if size == Mib::ZERO => 0,
            MemoryAsk::Mib(amount) => {
                u32::try_from(u128::from(amount.get()) * u128::from(WHOLE) / u128::from(size.get())).unwrap_or(WHOLE)
            }
        };
        memory.max(ask.cores.get().saturating_mul(WHOLE / 100)).clamp(1, WHOLE)
    };
    let named = |name: &str, list: &[String]| {
        let name = name.to_lowercase();
        list.iter().any(|part| name.contains(&part.to_lowercase()))
    };
    let mut allowed = ModelSet::ANY;
    for (_, selection) in &demand.selections {
        let (wanted, avoided) = (selection.use_models.as_deref(), selection.avoid_models.as_deref());
        if wanted.is_some() || avoided.is_some() {
            let fits = models.iter().filter(|(name, _)| {
                wanted.is_none_or(|list| named(name, list)) && !avoided.is_some_and(|list| named(name, list))
            });
            allowed = ModelSet::of(fits.map(|(_, index)| index));
        }
    }
    Request {
        cpu: demand.cpu_milli,
        memory: 0,
        count: u8::try_from(count).unwrap_or(u8::MAX),
        milli: asks().map(part).max().unwrap_or(0),
        models: allowed,
    }
}
