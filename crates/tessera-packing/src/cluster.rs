//! What is left of every node, and the choice of node and cards.

use std::collections::HashMap;

use crate::fragment::Fragmentation;
use crate::market::{Learner, Left, Market, Pool, Terms, Weights};
use crate::model::{Cards, MAX_CARDS, ModelSet, Models, Node, Placement, Request, WHOLE};
use crate::policy::{Before, CardChoice, Change, HAMI_SLOTS, Policy};

/// A placement was given back that the cluster does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("node {node} does not hold what is released; release each placement once, with the request it was made for")]
pub struct NotHeld {
    /// Index of the node.
    pub node: usize,
}

/// One node: as a whole, and what is left.
#[derive(Debug, Clone)]
struct Place {
    node: Node,
    /// Index in the list of the caller.
    row: usize,
    cpu: u32,
    cards: Cards,
    /// Pods on each card.
    slots: [u8; MAX_CARDS],
    before: Before,
    /// Grows with every change; 0 is never a version.
    version: u64,
}

/// Requests with one kind get one score on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Kind {
    cpu: u32,
    count: u8,
    milli: u32,
    models: ModelSet,
    /// 0 where memory only decides whether the pod fits.
    memory: u32,
}

/// A score that holds as long as the node's version is the same.
#[derive(Debug, Clone, Copy)]
struct Cached {
    version: u64,
    score: f64,
    cards: u8,
}

/// Score of a node that the request does not fit on.
const UNFIT: f64 = f64::NEG_INFINITY;

/// Nodes with what is left of them, under one policy.
#[derive(Debug, Clone)]
pub struct Cluster {
    policy: Policy,
    fragmentation: Fragmentation,
    learner: Learner,
    market: Market,
    /// In order of rank.
    places: Vec<Place>,
    /// Memory left, MiB; apart from `places` because every decision walks over all of it.
    memory: Vec<u32>,
    /// Place of each row.
    by_row: Vec<usize>,
    cache: HashMap<Kind, Vec<Cached>>,
    used: u64,
}

impl Cluster {
    /// An empty cluster. `fragmentation` is what [`Policy::Fgd`] goes by and what is measured; other policies are not
    /// told of it. `rank` gives for each node its place when scores are equal, the smallest first; nodes
    /// without a rank come last, in their order.
    #[must_use]
    pub fn new(nodes: &[Node], rank: &[u32], fragmentation: Fragmentation, policy: Policy) -> Self {
        let mut order: Vec<usize> = (0..nodes.len()).collect();
        order.sort_by_key(|row| (rank.get(*row).copied().unwrap_or(u32::MAX), *row));
        let mut by_row = vec![0; nodes.len()];
        let mut places = Vec::with_capacity(nodes.len());
        for row in order {
            let node = nodes[row].clone();
            let mut cards = Cards::default();
            cards
                .iter_mut()
                .take(usize::from(node.cards))
                .for_each(|card| *card = WHOLE);
            by_row[row] = places.len();
            places.push(Place {
                row,
                cpu: node.cpu,
                cards,
                slots: [0; MAX_CARDS],
                before: Before {
                    fragmentation: fragmentation.of(node.model, node.cpu, &cards),
                    ..Before::default()
                },
                version: 1,
                node,
            });
        }
        let weights = match policy {
            Policy::Tessera(weights) => weights,
            _ => Weights::default(),
        };
        Self {
            learner: Learner::new(weights),
            market: Market::new(weights),
            memory: places.iter().map(|place| place.node.memory).collect(),
            policy,
            fragmentation,
            places,
            by_row,
            cache: HashMap::new(),
            used: 0,
        }
    }

    /// Milli of cards that are taken.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Fragmentation of all nodes, milli.
    #[must_use]
    pub fn fragmentation(&self) -> f64 {
        self.by_row
            .iter()
            .map(|place| self.places[*place].before.fragmentation)
            .sum()
    }

    /// Fragmentation of one node, milli; 0 for a node that does not exist.
    #[must_use]
    pub fn fragmentation_of(&self, row: usize) -> f64 {
        self.place(row).map_or(0.0, |place| place.before.fragmentation)
    }

    /// What is left of a node: CPU, memory, cards.
    #[must_use]
    pub fn left(&self, row: usize) -> Option<(u32, u32, Cards)> {
        let index = *self.by_row.get(row)?;
        let place = &self.places[index];
        Some((place.cpu, self.memory[index], place.cards))
    }

    fn place(&self, row: usize) -> Option<&Place> {
        self.by_row.get(row).map(|index| &self.places[*index])
    }

    /// Learns from a request, once for each pod and before its decision. Only [`Policy::Tessera`] does.
    pub fn see(&mut self, request: &Request) {
        if !matches!(self.policy, Policy::Tessera(_)) || !self.learner.see(request) {
            return;
        }
        let mut pools = [Pool::default(); Models::MOST];
        for place in &self.places {
            if let Some(pool) = pools.get_mut(usize::from(place.node.model)) {
                pool.all += f64::from(place.node.cards) * f64::from(WHOLE);
                pool.idle += f64::from(place.cards.iter().sum::<u32>());
            }
        }
        self.market = self.learner.learn(&pools);
        for place in &mut self.places {
            place.before.loss = self.market.loss(place.left());
            place.version += 1;
        }
    }

    /// Node and cards for `request`, or `None` when it fits nowhere. Changes nothing but the cache of scores.
    pub fn decide(&mut self, request: &Request) -> Option<Placement> {
        let kind = Kind {
            cpu: request.cpu,
            count: request.count,
            milli: request.milli,
            models: request.models,
            memory: if self.policy.scores_memory(request) {
                request.memory
            } else {
                0
            },
        };
        let blank = Cached {
            version: 0,
            score: UNFIT,
            cards: 0,
        };
        let cached = self.cache.entry(kind).or_insert_with(|| vec![blank; self.places.len()]);
        let rescales = self.policy.rescales();
        let mut best: Option<usize> = None;
        let (mut top, mut low) = (UNFIT, f64::INFINITY);
        for (index, (entry, place)) in cached.iter_mut().zip(&self.places).enumerate() {
            if entry.version != place.version {
                let (score, cards) = score_place(
                    self.policy,
                    &self.fragmentation,
                    &self.market,
                    place,
                    self.memory[index],
                    request,
                );
                *entry = Cached {
                    version: place.version,
                    score,
                    cards,
                };
            }
            if entry.score > top && self.memory[index] >= request.memory {
                top = entry.score;
                best = Some(index);
            }
            if rescales && entry.score > UNFIT && self.memory[index] >= request.memory {
                low = low.min(entry.score);
            }
        }
        if rescales && top > low {
            // Whole-number division: several raw scores can meet at one stretched score, and rank decides again.
            let stretch = |score: f64| ((score - low) * 100.0 / (top - low)).trunc();
            best = (0..cached.len()).find(|index| {
                cached[*index].score > UNFIT
                    && self.memory[*index] >= request.memory
                    && stretch(cached[*index].score) >= 100.0
            });
        }
        best.map(|index| Placement {
            node: self.places[index].row,
            cards: cached[index].cards,
        })
    }

    /// The terms of the score that `request` has at `placement`; `None` when it does not fit there or the policy has
    /// no terms.
    #[must_use]
    pub fn explain(&self, request: &Request, placement: Placement) -> Option<Terms> {
        if !matches!(self.policy, Policy::Tessera(_)) {
            return None;
        }
        let place = self.place(placement.node)?;
        let cards = taken(place, request, placement.cards)?;
        let after = Left {
            model: place.node.model,
            cpu: place.cpu.checked_sub(request.cpu)?,
            cards: &cards,
        };
        Some(self.market.terms(request, place.before.loss, after))
    }

    /// Takes what `placement` says; `false`, and nothing changes, when it does not fit.
    pub fn take(&mut self, request: &Request, placement: Placement) -> bool {
        let Some(index) = self.by_row.get(placement.node).copied() else {
            return false;
        };
        let Some(memory) = self.memory[index].checked_sub(request.memory) else {
            return false;
        };
        let place = &mut self.places[index];
        let Some(after) = taken(place, request, placement.cards) else {
            return false;
        };
        place.cards = after;
        place.cpu -= request.cpu;
        for (card, slots) in place.slots.iter_mut().enumerate() {
            *slots = slots.saturating_add(u8::from(placement.takes(card)));
        }
        place.renew(self.policy, &self.fragmentation, &self.market);
        self.memory[index] = memory;
        self.used += u64::from(request.demand());
        true
    }

    /// Gives back what [`Cluster::take`] took.
    ///
    /// # Errors
    /// [`NotHeld`], and nothing changes, when the node would have more left than it has.
    pub fn release(&mut self, request: &Request, placement: Placement) -> Result<(), NotHeld> {
        let error = NotHeld { node: placement.node };
        let index = self.by_row.get(placement.node).copied().ok_or(error)?;
        let place = &mut self.places[index];
        let memory = self.memory[index].saturating_add(request.memory);
        let cpu = place.cpu.saturating_add(request.cpu);
        let mut cards = place.cards;
        for (card, left) in cards.iter_mut().enumerate() {
            if placement.takes(card) {
                *left = left.saturating_add(request.milli);
                if *left > WHOLE || card >= usize::from(place.node.cards) {
                    return Err(error);
                }
            }
        }
        if memory > place.node.memory
            || cpu > place.node.cpu
            || placement.cards.count_ones() != u32::from(request.count)
        {
            return Err(error);
        }
        place.cards = cards;
        place.cpu = cpu;
        for (card, slots) in place.slots.iter_mut().enumerate() {
            *slots = slots.saturating_sub(u8::from(placement.takes(card)));
        }
        place.renew(self.policy, &self.fragmentation, &self.market);
        self.memory[index] = memory;
        self.used = self.used.saturating_sub(u64::from(request.demand()));
        Ok(())
    }
}

/// Cards of `place` after `request` took those of `mask`; `None` when it does not fit.
fn taken(place: &Place, request: &Request, mask: u8) -> Option<Cards> {
    if mask.count_ones() != u32::from(request.count)
        || place.cpu < request.cpu
        || (request.count > 0 && !request.models.has(place.node.model))
    {
        return None;
    }
    let mut cards = place.cards;
    for (card, left) in cards.iter_mut().enumerate() {
        if mask >> card & 1 == 1 {
            *left = left.checked_sub(request.milli)?;
        }
    }
    Some(cards)
}

impl Place {
    fn left(&self) -> Left<'_> {
        Left {
            model: self.node.model,
            cpu: self.cpu,
            cards: &self.cards,
        }
    }

    /// After a change of what is left.
    fn renew(&mut self, policy: Policy, fragmentation: &Fragmentation, market: &Market) {
        self.before.fragmentation = fragmentation.of(self.node.model, self.cpu, &self.cards);
        if matches!(policy, Policy::Tessera(_)) {
            self.before.loss = market.loss(self.left());
        }
        self.version += 1;
    }
}

/// The best score of `request` on `place`, and the cards that reach it.
fn score_place(
    policy: Policy,
    fragmentation: &Fragmentation,
    market: &Market,
    place: &Place,
    memory: u32,
    request: &Request,
) -> (f64, u8) {
    let Some(cpu_after) = place.cpu.checked_sub(request.cpu) else {
        return (UNFIT, 0);
    };
    let scored = |mask: u8| {
        let Some(after) = taken(place, request, mask) else {
            return (UNFIT, 0);
        };
        let change = Change {
            node: &place.node,
            request,
            before: place.before,
            cards: &place.cards,
            slots: place.slots.iter().map(|slots| u32::from(*slots)).sum(),
            cpu_after,
            memory_after: memory.saturating_sub(request.memory),
            after: &after,
        };
        (policy.score(fragmentation, market, &change), mask)
    };
    if request.is_share() {
        return match policy.card_choice() {
            CardChoice::Fullest => scored(fullest(&place.cards, request.milli)),
            CardChoice::Emptiest => scored(emptiest(place, request.milli)),
            CardChoice::Scored => {
                let mut best = (UNFIT, 0);
                for (card, left) in place.cards.iter().enumerate() {
                    // Cards with the same remainder have the same score, and the first one keeps it.
                    if *left < request.milli || place.cards[..card].contains(left) {
                        continue;
                    }
                    let tried = scored(1 << card);
                    if tried.0 > best.0 {
                        best = tried;
                    }
                }
                best
            }
        };
    }
    let free = place
        .cards
        .iter()
        .enumerate()
        .filter(|(_, left)| **left >= request.milli);
    let mask = free
        .take(usize::from(request.count))
        .fold(0, |mask, (card, _)| mask | (1_u8 << card));
    scored(mask)
}

/// The card with the smallest remainder that holds `milli`, as a mask; 0 when none does.
fn fullest(cards: &Cards, milli: u32) -> u8 {
    let fitting = cards.iter().enumerate().filter(|(_, left)| **left >= milli);
    fitting.min_by_key(|(_, left)| **left).map_or(0, |(card, _)| 1 << card)
}

/// The card with the least use of slots, compute and memory that holds `milli`, as a mask; the last one of equals.
fn emptiest(place: &Place, milli: u32) -> u8 {
    let fitting = place.cards.iter().zip(&place.slots).enumerate();
    let fitting = fitting.filter(|(_, (left, slots))| **left >= milli && **slots < HAMI_SLOTS);
    // A slot is a tenth of the card's slots; a milli counts as compute and as memory.
    let least = fitting.min_by_key(|(card, (left, slots))| {
        let used = i64::from(**slots) * 100 - 2 * i64::from(**left);
        (used, std::cmp::Reverse(*card))
    });
    least.map_or(0, |(card, _)| 1 << card)
}
