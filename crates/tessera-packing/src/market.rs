//! What is learned from the requests seen so far, and what it makes a placement worth.

use std::collections::BTreeMap;

use crate::fragment::Fragmentation;
use crate::model::{ModelSet, Models, Request};
use crate::workload::TypicalClass;

/// Requests after which something is learned for the first time.
const FIRST: u64 = 12;
/// Next time, there must be this many requests for each one before, in hundredths.
const GROWTH: u64 = 125;
/// From so many requests on, all counts are halved: what came long ago fades.
const FADES: u64 = 1 << 15;
/// Classes are typical until they cover this part of the requests, in hundredths.
const COVERED: u64 = 95;
/// A model counts as idle to at least this part: the price of one that is used up stays finite.
const LEAST_IDLE: f64 = 0.02;
/// CPU that counts as a whole node in the packing term, milli-cores.
pub(crate) const FULL_CPU: f64 = 128_000.0;
/// Cards that count as a whole node in the packing term, milli.
pub(crate) const FULL_CARDS: f64 = 8_000.0;

/// Weights of the terms of a score. The unit of every term is the milli of a card.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weights {
    /// Of the fragmentation that the placement takes away.
    pub fragmentation: f64,
    /// Of cards that are left without the CPU that pods bring along for them.
    pub stranded: f64,
    /// Of CPU that is left without the cards that pods use with it.
    pub surplus: f64,
    /// Of a full node's CPU that is left, where the request asks for cards.
    pub cpu: f64,
    /// Of a full node's cards that are left.
    pub cards: f64,
    /// Price of a milli of a model when as much of it is asked for by name as there is.
    pub price: f64,
    /// The highest price.
    pub dearest: f64,
}

impl Default for Weights {
    fn default() -> Self {
        Self {
            fragmentation: 0.4,
            stranded: 0.5,
            surplus: 0.5,
            cpu: 40.0,
            cards: 68.0,
            price: 1.5,
            dearest: 1.5,
        }
    }
}

/// The terms of one score; their sum is the score. Milli of cards each.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Terms {
    /// Fragmentation that the placement takes away.
    pub fragmentation: f64,
    /// Balance of CPU and cards: what the placement saves from being left without the other.
    pub balance: f64,
    /// What is left on the node; the less, the better.
    pub packing: f64,
    /// Price of the model for those who do not need it.
    pub model: f64,
}

impl Terms {
    /// The score.
    #[must_use]
    pub fn sum(&self) -> f64 {
        self.fragmentation + self.balance + self.packing + self.model
    }
}

/// What is left of a node.
#[derive(Debug, Clone, Copy)]
pub struct Left<'a> {
    /// Model of its cards, as an index of [`Models`].
    pub model: u8,
    /// CPU, milli-cores. As much as can be where it is not known.
    pub cpu: u32,
    /// Each card, milli.
    pub cards: &'a [u32],
}

/// All cards of one model.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pool {
    /// Milli that there are.
    pub all: f64,
    /// Milli that are free.
    pub idle: f64,
}

/// What placements are worth, as far as it is known. Does not change; learning makes a new one.
#[derive(Debug, Clone, Default)]
pub struct Market {
    weights: Weights,
    typical: Fragmentation,
    /// CPU that comes with one milli of a card, milli-cores.
    cpu_per_milli: f64,
    /// Of one milli of each model.
    prices: Vec<f64>,
}

impl Market {
    /// Nothing is learned: placements differ by packing alone.
    #[must_use]
    pub fn new(weights: Weights) -> Self {
        Self {
            weights,
            ..Self::default()
        }
    }

    /// The classes that fragmentation is measured against.
    #[must_use]
    pub fn typical(&self) -> &Fragmentation {
        &self.typical
    }

    /// Price of one milli of a model, in milli.
    #[must_use]
    pub fn price(&self, model: u8) -> f64 {
        self.prices.get(usize::from(model)).copied().unwrap_or(0.0)
    }

    /// CPU that comes with one milli of a card, milli-cores.
    #[must_use]
    pub fn cpu_per_milli(&self) -> f64 {
        self.cpu_per_milli
    }

    /// Weighted fragmentation and imbalance of a node: what its cards lose in expectation, milli.
    #[must_use]
    pub fn loss(&self, left: Left<'_>) -> Loss {
        let idle = left.cards.iter().sum::<u32>();
        let fragmentation = if idle == 0 || self.weights.fragmentation == 0.0 {
            0.0
        } else {
            self.weights.fragmentation * self.typical.of(left.model, left.cpu, left.cards)
        };
        let mut imbalance = 0.0;
        if self.cpu_per_milli > 0.0 {
            let short = f64::from(idle) - f64::from(left.cpu) / self.cpu_per_milli;
            imbalance = if short > 0.0 {
                self.weights.stranded * short
            } else {
                self.weights.surplus * -short
            };
        }
        Loss {
            fragmentation,
            imbalance,
        }
    }

    /// The terms for `request` on a node that loses `before` now and has `after` left with it.
    #[must_use]
    pub fn terms(&self, request: &Request, before: Loss, after: Left<'_>) -> Terms {
        let then = self.loss(after);
        let cpu = f64::from(after.cpu).min(FULL_CPU) / FULL_CPU;
        let cards = f64::from(after.cards.iter().sum::<u32>()) / FULL_CARDS;
        let cpu_weight = if request.count > 0 { self.weights.cpu } else { 0.0 };
        Terms {
            fragmentation: before.fragmentation - then.fragmentation,
            balance: before.imbalance - then.imbalance,
            packing: -cpu_weight * cpu - self.weights.cards * cards,
            model: -self.price(after.model) * f64::from(request.demand()),
        }
    }
}

/// What a node's idle cards lose, milli, weighted.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Loss {
    /// To typical requests that do not fit.
    pub fragmentation: f64,
    /// To a lack of CPU, and CPU to a lack of cards.
    pub imbalance: f64,
}

/// Counts of requests; gives a new [`Market`] when enough came since the last one. It knows no more than what came.
#[derive(Debug, Clone)]
pub struct Learner {
    weights: Weights,
    /// Key: CPU, milli, cards, models.
    counts: BTreeMap<(u32, u32, u8, ModelSet), u64>,
    seen: u64,
    next: u64,
}

impl Learner {
    /// Has seen nothing.
    #[must_use]
    pub fn new(weights: Weights) -> Self {
        Self {
            weights,
            counts: BTreeMap::new(),
            seen: 0,
            next: FIRST,
        }
    }

    /// Counts one request, once for each pod. Returns whether it is time to learn.
    pub fn see(&mut self, request: &Request) -> bool {
        let key = if request.count == 0 {
            (request.cpu, 0, 0, ModelSet::ANY)
        } else {
            (request.cpu, request.milli, request.count, request.models)
        };
        *self.counts.entry(key).or_default() += 1;
        self.seen += 1;
        if self.seen >= FADES {
            self.counts.values_mut().for_each(|count| *count /= 2);
            self.counts.retain(|_, count| *count > 0);
            self.seen = self.counts.values().sum();
            self.next = self.next.min(self.seen * GROWTH / 100);
        }
        self.seen >= self.next
    }

    /// What the requests so far say. `pools`: the cards of each model, by the model's index.
    #[must_use]
    pub fn learn(&mut self, pools: &[Pool]) -> Market {
        self.next = (self.seen * GROWTH / 100).max(self.seen + 1);
        Market {
            weights: self.weights,
            typical: Fragmentation::new(self.typical()),
            cpu_per_milli: self.cpu_per_milli(),
            prices: self.prices(pools),
        }
    }

    /// The most frequent classes that cover [`COVERED`] of what was seen.
    fn typical(&self) -> Vec<TypicalClass> {
        let mut order: Vec<_> = self.counts.iter().collect();
        order.sort_by(|(a, seen_a), (b, seen_b)| seen_b.cmp(seen_a).then(b.cmp(a)));
        let mut covered = 0;
        let kept = order.iter().position(|(_, seen)| {
            covered += **seen;
            covered * 100 >= self.seen * COVERED
        });
        order.truncate(kept.map_or(order.len(), |last| last + 1));
        let all = order.iter().map(|(_, seen)| **seen).sum::<u64>() as f64;
        order
            .into_iter()
            .map(|((cpu, milli, count, models), seen)| TypicalClass {
                cpu: *cpu,
                milli: *milli,
                count: *count,
                models: *models,
                weight: *seen as f64 / all,
            })
            .collect()
    }

    /// CPU that comes with one milli of a card, on average over the pods that ask for cards; 0 when none was seen.
    fn cpu_per_milli(&self) -> f64 {
        let (mut cpu, mut cards) = (0.0, 0.0);
        for ((each, milli, count, _), seen) in &self.counts {
            if *count > 0 {
                cpu += f64::from(*each) * *seen as f64;
                cards += f64::from(*milli) * f64::from(*count) * *seen as f64;
            }
        }
        if cards > 0.0 { cpu / cards } else { 0.0 }
    }

    /// A model is dear when much of it is asked for by name and little of it is idle. A pod that names several models
    /// counts on each by its size.
    fn prices(&self, pools: &[Pool]) -> Vec<f64> {
        let pools = pools.get(..Models::MOST).unwrap_or(pools);
        let all: f64 = pools.iter().map(|pool| pool.all).sum();
        let idle: f64 = pools.iter().map(|pool| pool.idle).sum();
        let mut named = vec![0.0; pools.len()];
        let mut demand = 0.0;
        for ((_, milli, count, models), seen) in &self.counts {
            let asked = f64::from(*milli) * f64::from(*count) * *seen as f64;
            demand += asked;
            if *count == 0 || *models == ModelSet::ANY {
                continue;
            }
            let chosen = (0_u8..).map(|index| models.has(index));
            let chosen: Vec<bool> = chosen.take(pools.len()).collect();
            let room: f64 = pools
                .iter()
                .zip(&chosen)
                .filter(|(_, chosen)| **chosen)
                .map(|(pool, _)| pool.all)
                .sum();
            for ((named, pool), chosen) in named.iter_mut().zip(pools).zip(chosen) {
                if chosen && room > 0.0 {
                    *named += asked * pool.all / room;
                }
            }
        }
        named
            .iter()
            .zip(pools)
            .map(|(named, pool)| {
                if pool.all <= 0.0 || demand <= 0.0 {
                    return 0.0;
                }
                let pressure = named / demand * all / pool.all;
                let scarcity = idle / all / (pool.idle / pool.all).max(LEAST_IDLE);
                (self.weights.price * pressure * scarcity).min(self.weights.dearest)
            })
            .collect()
    }
}
