//! How a node is scored for a request.

use crate::fragment::Fragmentation;
use crate::model::{Cards, Node, Request};

/// A packing policy. Higher scores win, then the smaller rank of the node.
#[derive(Debug, Clone, PartialEq)]
pub enum Policy {
    /// Fragmentation gradient descent, with the published whole-number score.
    Fgd,
    /// The least CPU and cards left.
    BestFit,
    /// Fragmentation gradient, with prices for scarce models and for CPU, and a packing term.
    Tessera(TesseraWeights),
}

/// Weights of the terms of [`Policy::Tessera`].
#[derive(Debug, Clone, PartialEq)]
pub struct TesseraWeights {
    /// Milli of fragmentation that one point of the packing term is worth.
    pub packing: f64,
    /// What one milli of a card is worth that is left without the CPU it would need.
    pub stranded: f64,
    /// CPU that one milli of a card needs, milli-cores; learned, see `Workload::cpu_per_milli`.
    pub cpu_per_milli: f64,
    /// Price of one milli of each model, by index of the model; learned, see [`TesseraWeights::price`].
    pub prices: Vec<f64>,
    /// Fragmentation is rounded to this many milli before terms are added; 0 for not at all.
    pub step: f64,
}

impl Default for TesseraWeights {
    fn default() -> Self {
        Self {
            packing: 100.0,
            stranded: 0.0,
            cpu_per_milli: 0.0,
            prices: Vec::new(),
            step: 0.0,
        }
    }
}

impl TesseraWeights {
    /// The price of one milli of a model from the pressure of pods that ask for it by name: `factor` times the
    /// pressure, at most `most`.
    #[must_use]
    pub fn price(pressure: f64, factor: f64, most: f64) -> f64 {
        (pressure * factor).min(most)
    }
}

/// The terms of one score; their sum is the score.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Terms {
    /// Fragmentation that the placement takes away, milli.
    pub fragmentation: f64,
    /// Packing: what is left on the node, negative.
    pub packing: f64,
    /// Idle milli that lose the CPU they need, negative when the placement adds some.
    pub stranded: f64,
    /// Price of the model, negative.
    pub model: f64,
}

impl Terms {
    /// The score.
    #[must_use]
    pub fn sum(&self) -> f64 {
        self.fragmentation + self.packing + self.stranded + self.model
    }
}

/// CPU that counts as a whole node in the packing terms, milli-cores.
const FULL_CPU: f64 = 128_000.0;
/// Cards that count as a whole node in the packing terms, milli.
const FULL_CARDS: f64 = 8_000.0;

/// A node before and after a placement.
pub(crate) struct Change<'a> {
    pub(crate) node: &'a Node,
    pub(crate) request: &'a Request,
    pub(crate) cpu: u32,
    pub(crate) cards: &'a Cards,
    pub(crate) before: f64,
    pub(crate) cpu_after: u32,
    pub(crate) after: &'a Cards,
}

impl Policy {
    /// Whether the card of a share is chosen by score; else the fullest card that fits.
    pub(crate) fn tries_every_card(&self) -> bool {
        !matches!(self, Self::BestFit)
    }

    /// Whether scores are stretched over the feasible nodes before they are compared.
    pub(crate) fn rescales(&self) -> bool {
        matches!(self, Self::BestFit)
    }

    pub(crate) fn score(&self, fragmentation: &Fragmentation, change: &Change<'_>) -> f64 {
        match self {
            Self::Fgd => {
                let after = fragmentation.of(change.node.model, change.cpu_after, change.after);
                ((1.0 / (1.0 + (-(change.before - after) / 1000.0).exp())) * 100.0).trunc()
            }
            Self::BestFit => (100.0 * (1.0 - left(change))).trunc(),
            Self::Tessera(weights) => weights.terms(fragmentation, change).sum(),
        }
    }
}

/// Half the CPU left and half the cards left, each as a part of a full node.
fn left(change: &Change<'_>) -> f64 {
    let cards = f64::from(change.after.iter().sum::<u32>());
    0.5 * f64::from(change.cpu_after) / FULL_CPU + 0.5 * cards / FULL_CARDS
}

impl TesseraWeights {
    pub(crate) fn terms(&self, fragmentation: &Fragmentation, change: &Change<'_>) -> Terms {
        let model = change.node.model;
        let gain = change.before - fragmentation.of(model, change.cpu_after, change.after);
        let price = self.prices.get(usize::from(model)).copied().unwrap_or(0.0);
        Terms {
            fragmentation: if self.step > 0.0 {
                (gain / self.step).floor() * self.step
            } else {
                gain
            },
            packing: -self.packing * left(change),
            stranded: self.stranded
                * (self.idle_without_cpu(change.cpu, change.cards)
                    - self.idle_without_cpu(change.cpu_after, change.after)),
            model: -price * f64::from(change.request.demand()),
        }
    }

    /// Milli of cards for which a node's CPU does not suffice.
    fn idle_without_cpu(&self, cpu: u32, cards: &Cards) -> f64 {
        if self.cpu_per_milli <= 0.0 {
            return 0.0;
        }
        let idle = f64::from(cards.iter().sum::<u32>());
        (idle - f64::from(cpu) / self.cpu_per_milli).max(0.0)
    }
}
