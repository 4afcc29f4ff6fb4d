//! What arrives typically: the classes that fragmentation is measured against, and the prices learned from them.

use std::collections::BTreeMap;

use crate::model::{ModelSet, Models, Node, Request};

/// A class of requests that are alike but for memory.
#[derive(Debug, Clone, PartialEq)]
pub struct TypicalClass {
    /// CPU, milli-cores.
    pub cpu: u32,
    /// Milli of each card.
    pub milli: u32,
    /// Number of cards.
    pub count: u8,
    /// Models that will do.
    pub models: ModelSet,
    /// Share of this class among the typical ones, 0 to 1.
    pub weight: f64,
}

/// Counts of requests seen, by class.
#[derive(Debug, Clone, Default)]
pub struct Workload {
    /// Key: CPU, milli, cards, models as written.
    counts: BTreeMap<(u32, u32, u8, String), u64>,
    total: u64,
}

impl Workload {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts one request. `spec` is the models as written (joined by `|`), which tells classes apart.
    pub fn see(&mut self, request: &Request, spec: &str) {
        let (milli, spec) = if request.count == 0 {
            (0, "")
        } else {
            (request.milli, spec)
        };
        *self
            .counts
            .entry((request.cpu, milli, request.count, spec.to_owned()))
            .or_default() += 1;
        self.total += 1;
    }

    /// The most frequent classes that together cover 95 % of what was seen, most frequent first.
    #[must_use]
    pub fn typical(&self, models: &Models) -> Vec<TypicalClass> {
        let mut order: Vec<_> = self.counts.iter().collect();
        order.sort_by(|(a, seen_a), (b, seen_b)| {
            let (key_a, key_b) = ((a.0, a.1, a.2, &a.3), (b.0, b.1, b.2, &b.3));
            seen_b.cmp(seen_a).then(key_b.cmp(&key_a))
        });
        let mut covered = 0;
        let enough = order
            .iter()
            .position(|(_, seen)| {
                covered += **seen;
                covered * 100 >= self.total * 95
            })
            .map_or(order.len(), |last| last + 1);
        order.truncate(enough);
        // In two steps, first of all seen and then of the prefix: the published scores depend on the last bit.
        let all = order.iter().map(|(_, seen)| **seen).sum::<u64>() as f64;
        order
            .into_iter()
            .map(|((cpu, milli, count, spec), seen)| TypicalClass {
                cpu: *cpu,
                milli: *milli,
                count: *count,
                models: models.set(spec),
                weight: (*seen as f64 / self.total as f64) / (all / self.total as f64),
            })
            .collect()
    }

    /// CPU that comes with one milli of a card, on average over the pods that ask for cards; 0 when none was seen.
    #[must_use]
    pub fn cpu_per_milli(&self) -> f64 {
        let (mut cpu, mut milli) = (0.0, 0.0);
        for ((each, part, count, _), seen) in &self.counts {
            if *count > 0 {
                cpu += f64::from(*each) * *seen as f64;
                milli += f64::from(*part) * f64::from(*count) * *seen as f64;
            }
        }
        if milli > 0.0 { cpu / milli } else { 0.0 }
    }

    /// For each model: the milli that pods ask for by name, over the milli there are, if as much arrived as the
    /// cluster holds. A pod that names several models counts on each by its capacity.
    #[must_use]
    pub fn named_pressure(&self, models: &Models, nodes: &[Node]) -> Vec<f64> {
        let mut capacity = [0.0; Models::MOST];
        for node in nodes {
            if let Some(place) = capacity.get_mut(usize::from(node.model)) {
                *place += f64::from(node.cards) * f64::from(crate::WHOLE);
            }
        }
        let whole: f64 = capacity.iter().sum();
        let mut named = [0.0; Models::MOST];
        let mut demand = 0.0;
        for ((_, milli, count, spec), seen) in &self.counts {
            let asked = f64::from(*milli) * f64::from(*count) * *seen as f64;
            demand += asked;
            if *count == 0 || spec.is_empty() {
                continue;
            }
            let set = models.set(spec);
            let chosen = |index: usize| u8::try_from(index).is_ok_and(|index| set.has(index));
            let room: f64 = capacity
                .iter()
                .enumerate()
                .filter(|(index, _)| chosen(*index))
                .map(|(_, milli)| milli)
                .sum();
            for (index, place) in named.iter_mut().enumerate() {
                if chosen(index) && room > 0.0 {
                    *place += asked * capacity.get(index).copied().unwrap_or(0.0) / room;
                }
            }
        }
        named
            .iter()
            .zip(capacity)
            .map(|(named, capacity)| {
                if capacity > 0.0 && demand > 0.0 {
                    named / demand * whole / capacity
                } else {
                    0.0
                }
            })
            .collect()
    }
}
