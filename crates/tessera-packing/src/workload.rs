//! What arrives typically: the classes that fragmentation is measured against.

use std::collections::BTreeMap;

use crate::model::{ModelSet, Models, Request};

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
}
