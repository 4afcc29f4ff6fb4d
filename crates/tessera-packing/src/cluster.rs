//! What is left of every node, and the choice of node and cards.

use std::collections::HashMap;

use crate::fragment::Fragmentation;
use crate::model::{Cards, ModelSet, Node, Placement, Request, WHOLE};
use crate::policy::{Change, Policy, Terms};

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
    fragmentation: f64,
    /// Grows with every change; 0 is never a version.
    version: u64,
}

/// Requests with one kind get one score on a node. Memory is not part of it: it only decides whether the pod fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Kind {
    cpu: u32,
    count: u8,
    milli: u32,
    models: ModelSet,
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
    /// An empty cluster. `rank` gives for each node its place when scores are equal, the smallest first; nodes
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
                fragmentation: fragmentation.of(node.model, node.cpu, &cards),
                version: 1,
                node,
            });
        }
        Self {
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
        self.by_row.iter().map(|place| self.places[*place].fragmentation).sum()
    }

    /// Fragmentation of one node, milli; 0 for a node that does not exist.
    #[must_use]
    pub fn fragmentation_of(&self, row: usize) -> f64 {
        self.place(row).map_or(0.0, |place| place.fragmentation)
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

    /// Node and cards for `request`, or `None` when it fits nowhere. Changes nothing but the cache of scores.
    pub fn decide(&mut self, request: &Request) -> Option<Placement> {
        let kind = Kind {
            cpu: request.cpu,
            count: request.count,
            milli: request.milli,
            models: request.models,
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
                let (score, cards) = score_place(&self.policy, &self.fragmentation, place, request);
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
        let Policy::Tessera(weights) = &self.policy else {
            return None;
        };
        let place = self.place(placement.node)?;
        let after = taken(place, request, placement.cards)?;
        Some(weights.terms(
            &self.fragmentation,
            &change(place, request, place.cpu - request.cpu, &after),
        ))
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
        place.fragmentation = self.fragmentation.of(place.node.model, place.cpu, &place.cards);
        place.version += 1;
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
        place.fragmentation = self.fragmentation.of(place.node.model, cpu, &cards);
        place.version += 1;
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

fn change<'a>(place: &'a Place, request: &'a Request, cpu_after: u32, after: &'a Cards) -> Change<'a> {
    Change {
        node: &place.node,
        request,
        cpu: place.cpu,
        cards: &place.cards,
        before: place.fragmentation,
        cpu_after,
        after,
    }
}

/// The best score of `request` on `place`, and the cards that reach it.
fn score_place(policy: &Policy, fragmentation: &Fragmentation, place: &Place, request: &Request) -> (f64, u8) {
    let Some(cpu_after) = place.cpu.checked_sub(request.cpu) else {
        return (UNFIT, 0);
    };
    let scored = |mask: u8| {
        taken(place, request, mask).map_or(UNFIT, |after| {
            policy.score(fragmentation, &change(place, request, cpu_after, &after))
        })
    };
    if request.is_share() {
        if !policy.tries_every_card() {
            return match fullest(&place.cards, request.milli) {
                Some(mask) => (scored(mask), mask),
                None => (UNFIT, 0),
            };
        }
        let mut best = (UNFIT, 0);
        for (card, left) in place.cards.iter().enumerate() {
            // Cards with the same remainder have the same score, and the first one keeps it.
            if *left < request.milli || place.cards[..card].contains(left) {
                continue;
            }
            let score = scored(1 << card);
            if score > best.0 {
                best = (score, 1 << card);
            }
        }
        return best;
    }
    let free = place
        .cards
        .iter()
        .enumerate()
        .filter(|(_, left)| **left >= request.milli);
    let mask = free
        .take(usize::from(request.count))
        .fold(0, |mask, (card, _)| mask | (1_u8 << card));
    (scored(mask), mask)
}

/// The card with the smallest remainder that holds `milli`, as a mask.
fn fullest(cards: &Cards, milli: u32) -> Option<u8> {
    let fitting = cards.iter().enumerate().filter(|(_, left)| **left >= milli);
    fitting.min_by_key(|(_, left)| **left).map(|(card, _)| 1 << card)
}
