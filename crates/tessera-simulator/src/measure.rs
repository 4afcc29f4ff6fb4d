//! What is in use of nodes, and what of the rest pods cannot use.

use tessera_engine::NodeState;
use tessera_packing::{Fragmentation, Models, WHOLE};
use tessera_types::{Card, CardUsage};

use crate::case::model_name;

/// Cards of one node, thousandths of a card each.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Measured {
    /// All cards that can be used.
    pub(crate) all: f64,
    /// Promised: memory or compute, whichever is more.
    pub(crate) used: f64,
    /// Of the rest, what a typical pod is expected not to be able to use.
    pub(crate) lost: f64,
}

impl Measured {
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            all: self.all + other.all,
            used: self.used + other.used,
            lost: self.lost + other.lost,
        }
    }
}

/// How much of a card is promised, in thousandths.
pub(crate) fn used_milli(card: &Card, usage: CardUsage) -> u32 {
    let part = |used: u64, all: u64| {
        if all == 0 {
            return 0;
        }
        u32::try_from(u128::from(used) * u128::from(WHOLE) / u128::from(all)).unwrap_or(WHOLE)
    };
    let memory = part(usage.memory.get(), card.memory.get());
    let cores = part(u64::from(usage.cores.get()), u64::from(card.cores.get()));
    memory.max(cores).min(WHOLE)
}

/// Measures a node with `cpu` milli-cores left against typical pods. Cards that are broken or cordoned do not count.
pub(crate) fn measure(node: &NodeState, cpu: u32, models: &Models, typical: &Fragmentation) -> Measured {
    let mut measured = Measured::default();
    let mut left: Vec<u32> = Vec::with_capacity(node.cards().len());
    let mut first = 0;
    while let Some(card) = node.cards().get(first) {
        let same = |other: &Card| other.class == card.class && other.model == card.model;
        left.clear();
        let mut end = first;
        while let Some(other) = node.cards().get(end).filter(|other| same(other)) {
            if node.is_healthy(end) && !node.is_cordoned(end) {
                let usage = node.usage().get(end).map_or_else(CardUsage::default, |used| used.usage);
                let used = used_milli(other, usage);
                measured.all += f64::from(WHOLE);
                measured.used += f64::from(used);
                left.push(WHOLE - used);
            }
            end += 1;
        }
        let model = models
            .iter()
            .find(|(name, _)| *name == model_name(card))
            .map_or(31, |(_, index)| index);
        measured.lost += typical.of(model, cpu, &left);
        first = end;
    }
    measured
}
