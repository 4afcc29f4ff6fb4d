//! How a node is scored for a request.

use crate::fragment::Fragmentation;
use crate::market::{FULL_CARDS, FULL_CPU, Left, Loss, Market, Weights};
use crate::model::{Cards, Node, Request};

/// A packing policy. Higher scores win, then the smaller rank of the node.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Policy {
    /// Fragmentation gradient descent, with the published whole-number score.
    Fgd,
    /// The least CPU and cards left.
    BestFit,
    /// A model of HAMi's default policies: the node whose cards are used most, and on it the card that is used least.
    /// Pods without cards go where kube-scheduler's `LeastAllocated` puts them. Not HAMi's own code.
    Hami,
    /// Ours: fragmentation gradient, balance of CPU and cards, packing, prices for scarce models. It learns from the
    /// requests that it sees.
    Tessera(Weights),
}

/// Pods that may share one card in [`Policy::Hami`].
pub(crate) const HAMI_SLOTS: u8 = 10;

/// A node before and after a placement.
pub(crate) struct Change<'a> {
    pub(crate) node: &'a Node,
    pub(crate) request: &'a Request,
    pub(crate) before: Before,
    pub(crate) cards: &'a Cards,
    /// Pods on the node's cards, a pod on two cards twice.
    pub(crate) slots: u32,
    pub(crate) cpu_after: u32,
    pub(crate) memory_after: u32,
    pub(crate) after: &'a Cards,
}

/// What a node loses as it is.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Before {
    pub(crate) fragmentation: f64,
    pub(crate) loss: Loss,
}

/// How the card of a share is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CardChoice {
    /// By score, each card tried.
    Scored,
    /// The fullest that fits.
    Fullest,
    /// The one used least that has a slot left.
    Emptiest,
}

impl Policy {
    pub(crate) fn card_choice(self) -> CardChoice {
        match self {
            Self::Fgd => CardChoice::Scored,
            Self::BestFit | Self::Tessera(_) => CardChoice::Fullest,
            Self::Hami => CardChoice::Emptiest,
        }
    }

    /// Whether scores are stretched over the feasible nodes before they are compared.
    pub(crate) fn rescales(self) -> bool {
        self == Self::BestFit
    }

    /// Whether the request's memory is part of its score.
    pub(crate) fn scores_memory(self, request: &Request) -> bool {
        self == Self::Hami && request.count == 0
    }

    pub(crate) fn score(self, fragmentation: &Fragmentation, market: &Market, change: &Change<'_>) -> f64 {
        match self {
            Self::Fgd => {
                let after = fragmentation.of(change.node.model, change.cpu_after, change.after);
                fgd_score(change.before.fragmentation - after)
            }
            Self::BestFit => (100.0 * (1.0 - left(change))).trunc(),
            Self::Hami => hami(change),
            Self::Tessera(_) => market.terms(change.request, change.before.loss, change.left()).sum(),
        }
    }
}

/// The published whole-number score of a placement that takes away `gain` milli of fragmentation.
#[must_use]
pub fn fgd_score(gain: f64) -> f64 {
    ((1.0 / (1.0 + (-gain / 1000.0).exp())) * 100.0).trunc()
}

impl Change<'_> {
    pub(crate) fn left(&self) -> Left<'_> {
        Left {
            model: self.node.model,
            cpu: self.cpu_after,
            cards: self.after,
        }
    }
}

/// Half the CPU left and half the cards left, each as a part of a full node.
fn left(change: &Change<'_>) -> f64 {
    let cards = f64::from(change.after.iter().sum::<u32>());
    0.5 * f64::from(change.cpu_after) / FULL_CPU + 0.5 * cards / FULL_CARDS
}

/// Ten times the used parts of slots, compute and memory of the node's cards as they are; a share takes the same part
/// of compute and of memory.
fn hami(change: &Change<'_>) -> f64 {
    if change.request.count == 0 {
        let part = |left: u32, all: u32| (f64::from(left) * 100.0 / f64::from(all.max(1))).trunc();
        let cpu = part(change.cpu_after, change.node.cpu);
        let memory = part(change.memory_after, change.node.memory);
        return (f64::midpoint(cpu, memory)).trunc();
    }
    let cards = f64::from(change.node.cards.max(1));
    let used = 1.0 - f64::from(change.cards.iter().sum::<u32>()) / (1000.0 * cards);
    10.0 * (f64::from(change.slots) / (f64::from(HAMI_SLOTS) * cards) + 2.0 * used)
}
