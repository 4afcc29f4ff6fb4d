//! Scores and orders of cards and nodes.
//!
//! Scores are single precision and added in a fixed sequence, since HAMi's are, and a tie there must be a tie here.

use std::cmp::Ordering;

use tessera_types::{Ask, Card, CardOrder, CardPolicy, CardUsage, Mib, NodePolicy, Weights};

/// What one term of a score is worth.
const TERM: f32 = 10.0;

#[expect(clippy::cast_precision_loss, reason = "scores are single precision by definition")]
fn ratio(part: u64, whole: u64) -> f32 {
    part as f32 / whole as f32
}

/// The score of a card for a container whose asks of the card's class are `asks`: ten times the weighted sum of the
/// fractions of slots, compute and memory that would be in use. 0 if the card lacks one of the three.
///
/// An ask counts once, however many cards it wants.
#[must_use]
pub fn card_score<'a>(card: &Card, usage: CardUsage, asks: impl IntoIterator<Item = &'a Ask>, weights: Weights) -> f32 {
    if lacks_one(card) {
        return 0.0;
    }
    known_score(card, usage, asks, weights)
}

/// Whether the card lacks slots, compute or memory.
fn lacks_one(card: &Card) -> bool {
    card.slots == 0 || card.cores.get() == 0 || card.memory == Mib::ZERO
}

fn known_score<'a>(card: &Card, usage: CardUsage, asks: impl IntoIterator<Item = &'a Ask>, weights: Weights) -> f32 {
    let (mut slots, mut cores, mut memory) = (u64::from(usage.slots), u64::from(usage.cores.get()), usage.memory.get());
    for ask in asks {
        slots += 1;
        cores += u64::from(ask.cores.get());
        let wanted = match ask.percent_beside {
            Some(percent) if percent > 0 => card.memory.percent(percent),
            _ => ask.memory.on(card.memory),
        };
        memory = memory.saturating_add(wanted.get());
    }
    #[expect(clippy::cast_precision_loss, reason = "weights are small integers")]
    let (slot_weight, core_weight, memory_weight) = (weights.slot as f32, weights.core as f32, weights.memory as f32);
    TERM * (slot_weight * ratio(slots, u64::from(card.slots))
        + core_weight * ratio(cores, u64::from(card.cores.get()))
        + memory_weight * ratio(memory, card.memory.get()))
}

/// [`card_score`], or the slots in use where the card lacks one of the three: such cards are still told apart.
pub(crate) fn card_order(card: &Card, usage: CardUsage, ask: &Ask, weights: Weights) -> f32 {
    if lacks_one(card) {
        #[expect(clippy::cast_precision_loss, reason = "slots are few")]
        let slots = usage.slots as f32;
        return slots;
    }
    known_score(card, usage, [ask], weights)
}

/// The fill of a node with `added` on top: ten times the sum of the used fractions of slots, compute and memory over
/// all cards. 0 if any of the three has no total.
pub fn node_score<'a>(cards: impl Iterator<Item = (&'a Card, CardUsage)>, added: CardUsage) -> f32 {
    let mut total = CardUsage::default();
    let mut used = added;
    for (card, usage) in cards {
        total = total.plus(CardUsage {
            slots: card.slots,
            memory: card.memory,
            cores: card.cores,
            extra: card.extra,
        });
        used = used.plus(usage);
    }
    fill(total, used)
}

/// Ten times the sum of the used fractions; 0 if any of the three has no total.
pub(crate) fn fill(total: CardUsage, used: CardUsage) -> f32 {
    if total.slots == 0 || total.cores.get() == 0 || total.memory == Mib::ZERO {
        return 0.0;
    }
    TERM * (ratio(u64::from(used.slots), u64::from(total.slots))
        + ratio(u64::from(used.cores.get()), u64::from(total.cores.get()))
        + ratio(used.memory.get(), total.memory.get()))
}

/// As [`fill`], of what has a total: decides between nodes that score the same, such as nodes whose cards register no
/// memory.
pub(crate) fn known_fill(total: CardUsage, used: CardUsage) -> f32 {
    let all = fill(total, used);
    if all != 0.0 {
        return all;
    }
    let known = |part: u64, whole: u64| if whole == 0 { 0.0 } else { ratio(part, whole) };
    TERM * (known(u64::from(used.slots), u64::from(total.slots))
        + known(u64::from(used.cores.get()), u64::from(total.cores.get()))
        + known(used.memory.get(), total.memory.get()))
}

/// What orders a card among its class's cards of one node.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rank {
    /// [`card_score`].
    pub score: f32,
    /// NUMA node.
    pub numa: i32,
    /// Slots in use.
    pub slots_used: u32,
    /// Index that the node registered.
    pub index: u32,
    /// Position in registration order.
    pub position: usize,
}

/// Sorts into the order of examination.
///
/// A full tie is decided by registration order, the last first; for a chain of keys by the highest index before that.
pub fn sort(ranks: &mut [Rank], policy: &CardPolicy, numa_bind: bool) {
    // Registration order differs for all cards, so no two ranks compare equal.
    ranks.sort_unstable_by(|a, b| examined_first(a, b, policy, numa_bind));
}

fn examined_first(a: &Rank, b: &Rank, policy: &CardPolicy, numa_bind: bool) -> Ordering {
    let fuller = || b.score.total_cmp(&a.score);
    let emptier = || a.score.total_cmp(&b.score);
    let numa_down = || b.numa.cmp(&a.numa);
    let last_registered = || b.position.cmp(&a.position);
    if policy.is_chain() {
        let mut sorts = policy
            .keys()
            .iter()
            .filter(|key| matches!(key, CardOrder::Binpack | CardOrder::Spread | CardOrder::Numa))
            .peekable();
        let mut order = Ordering::Equal;
        if numa_bind {
            order = numa_down();
        }
        if sorts.peek().is_none() {
            order = order.then_with(emptier);
        }
        for key in sorts {
            order = order.then_with(|| match key {
                CardOrder::Binpack => fuller(),
                CardOrder::Numa => numa_down(),
                _ => emptier(),
            });
        }
        return order.then_with(|| b.index.cmp(&a.index)).then_with(last_registered);
    }
    match policy.keys().first() {
        Some(CardOrder::Mutex) => a
            .slots_used
            .cmp(&b.slots_used)
            .then_with(numa_down)
            .then_with(last_registered),
        Some(CardOrder::Binpack) if numa_bind => a.numa.cmp(&b.numa).then_with(fuller).then_with(last_registered),
        Some(CardOrder::Binpack) => fuller().then_with(numa_down).then_with(last_registered),
        _ if numa_bind => numa_down().then_with(emptier).then_with(last_registered),
        _ => emptier().then_with(numa_down).then_with(last_registered),
    }
}

/// Which of two nodes wins: the lower score under spread, else the higher one; `Greater` if `a` wins.
#[must_use]
pub fn better_node(policy: NodePolicy, a: f64, b: f64) -> Ordering {
    if policy.least_wins() {
        b.total_cmp(&a)
    } else {
        a.total_cmp(&b)
    }
}

/// The winner of named scores; equal scores are decided by the lower name. `None` of nothing.
#[must_use]
pub fn best_node<'a>(policy: NodePolicy, scores: impl IntoIterator<Item = (&'a str, f64)>) -> Option<&'a str> {
    scores
        .into_iter()
        .max_by(|a, b| better_node(policy, a.1, b.1).then_with(|| b.0.cmp(a.0)))
        .map(|(name, _)| name)
}
