//! Renderings of reasons: HAMi's texts, a sentence that a person acts on, an event, a metric label.

use std::collections::BTreeMap;

use tessera_types::{CardId, Demand, Dimension, NodeName, NodeRefusal, Reason, ReasonKind};
use tessera_wire::keys;

use crate::decide::Decision;

/// The longest event text; Kubernetes cuts at 1024 bytes.
pub const EVENT_BYTES_MAX: usize = 1024;
/// How many nodes an event describes one by one.
const NODES_IN_EVENT: usize = 4;

/// HAMi's text for a node in `FailedNodes`: `1/8 CardInsufficientMemory, 2/8 CardTypeMismatch`, or one word.
#[must_use]
pub fn hami_node(refusal: &NodeRefusal) -> String {
    match refusal {
        NodeRefusal::Cards { cards, reasons, .. } => {
            if let Some(alone) = reasons
                .iter()
                .find(|reason| matches!(reason.kind, ReasonKind::TooFewCards | ReasonKind::ClassAbsent))
            {
                return alone.kind.token().to_owned();
            }
            let mut parts: Vec<String> = counts(reasons)
                .into_iter()
                .map(|(token, count)| format!("{count}/{cards} {token}"))
                .collect();
            parts.sort();
            parts.join(", ")
        }
        _ => "node unregistered".to_owned(),
    }
}

/// How often each of HAMi's words applies.
fn counts(reasons: &[Reason]) -> BTreeMap<&'static str, u32> {
    let mut counts = BTreeMap::new();
    let said = |reason: &&Reason| reason.count > 0 || reason.kind == ReasonKind::TooFewFit;
    for reason in reasons.iter().filter(said) {
        let count: &mut u32 = counts.entry(reason.kind.token()).or_default();
        *count = count.saturating_add(reason.count);
    }
    counts
}

/// HAMi's message when nothing fits. Only reasons of the counted form are broken down.
#[must_use]
pub fn hami_failed_event(decision: &Decision) -> String {
    let mut by_token: BTreeMap<&'static str, Vec<&NodeName>> = BTreeMap::new();
    for (node, refusal) in &decision.refused {
        if let NodeRefusal::Cards { reasons, .. } = &**refusal {
            for token in counts(reasons).into_keys() {
                if token != ReasonKind::TooFewCards.token() && token != ReasonKind::ClassAbsent.token() {
                    by_token.entry(token).or_default().push(node);
                }
            }
        }
    }
    let mut text = format!("no available node, {} nodes do not meet", decision.refused.len());
    for (token, mut nodes) in by_token {
        nodes.sort();
        let names: Vec<&str> = nodes.iter().map(|node| node.as_str()).collect();
        text.push_str(&format!(", {} nodes {token}({})", nodes.len(), names.join(",")));
    }
    bounded(text)
}

/// HAMi's message when a node was found.
#[must_use]
pub fn hami_success_event(decision: &Decision) -> String {
    let winner = decision.winner().map_or("", |fit| fit.node.as_str());
    let scores: Vec<String> = decision
        .fits
        .iter()
        .map(|fit| format!("{}:{:.2}", fit.node, fit.score))
        .collect();
    bounded(format!(
        "find fit node({winner}), {} nodes not fit, {} nodes fit({})",
        decision.refused.len(),
        decision.fits.len(),
        scores.join(",")
    ))
}

/// One reason as a clause: `card GPU-a has 1200 MiB free of 3000 MiB wanted`.
#[must_use]
pub fn reason(reason: &Reason) -> String {
    let card = reason
        .card
        .as_ref()
        .map_or_else(|| "the node".to_owned(), |card| format!("card {card}"));
    match (reason.kind, reason.wanted, reason.free) {
        (ReasonKind::QuotaShort, Some((dimension, wanted)), Some(free)) => format!(
            "the namespace's quota leaves {} of the {} wanted",
            amount(dimension, reason.what.as_deref(), free),
            amount(dimension, reason.what.as_deref(), wanted)
        ),
        (ReasonKind::TooFewCards, Some((_, wanted)), Some(free)) => {
            format!("the node has {free} cards of the {wanted} wanted")
        }
        (ReasonKind::TooFewFit, Some((_, wanted)), Some(free)) => {
            format!("only {free} of the {wanted} cards wanted fit")
        }
        (ReasonKind::SlotsExhausted, _, _) => format!("{card} has no free slot"),
        (ReasonKind::NumaMismatch, _, _) if reason.what.is_some() => {
            reason.what.as_deref().unwrap_or_default().to_owned()
        }
        (ReasonKind::NumaMismatch, _, _) => "the cards that fit lie on different NUMA nodes".to_owned(),
        (_, Some((dimension, wanted)), Some(free)) => {
            format!(
                "{card} has {} free of {} wanted",
                amount(dimension, reason.what.as_deref(), free),
                amount(dimension, reason.what.as_deref(), wanted)
            )
        }
        (ReasonKind::ClassRule | ReasonKind::ModeMismatch, None, _) if reason.what.is_some() => {
            format!("{card} {}", reason.what.as_deref().unwrap_or_default())
        }
        (kind, _, _) => format!("{card} {}", verdict(kind)),
    }
}

fn amount(dimension: Dimension, what: Option<&str>, number: u64) -> String {
    match dimension {
        Dimension::MemoryMib => format!("{number} MiB"),
        Dimension::CoresPercent => format!("{number} % compute"),
        Dimension::Slots => format!("{number} slots"),
        Dimension::Cards => format!("{number} cards"),
        Dimension::Other => match what {
            Some(what) => format!("{number} {what}"),
            None => number.to_string(),
        },
    }
}

fn verdict(kind: ReasonKind) -> &'static str {
    match kind {
        ReasonKind::Unhealthy | ReasonKind::UnhealthyCard => "does not work",
        ReasonKind::IsolationShort => "has no wall of the kind wanted between containers",
        ReasonKind::PartitionConflict => "shares its hardware with a part that is in use",
        ReasonKind::QosMismatch => "is shared under another policy of service",
        ReasonKind::AppClassMismatch => "is shared by another class of application",
        ReasonKind::Cordoned => "is cordoned by an administrator",
        ReasonKind::RuleMismatch => "is not accepted by the pod's rule",
        ReasonKind::ModelMismatch => "is of a model the pod does not accept",
        ReasonKind::ModeMismatch | ReasonKind::CardMode => "is divided in a mode the pod does not accept",
        ReasonKind::IdMismatch => "is not among the ids the pod accepts",
        ReasonKind::SlotsExhausted => "has no free slot",
        ReasonKind::ComputeExhausted => "has all its compute promised",
        ReasonKind::MemoryShort => "is short of memory",
        ReasonKind::CoresShort => "is short of compute",
        ReasonKind::AmountShort => "is short of what its class counts",
        ReasonKind::NumaMismatch => "lies on another NUMA node",
        ReasonKind::ExclusiveConflict => "is wanted alone and is in use",
        ReasonKind::ClassRule => "is refused by a rule of its class",
        ReasonKind::NoPlacement => "has no room for a hardware instance of the size",
        ReasonKind::QuotaShort => "would exceed the namespace's quota",
        _ => "does not fit",
    }
}

/// A node's refusal as a clause without the node's name, cards of one kind together:
/// `2 of 3 cards short of memory (12000 MiB wanted, at most 8000 MiB free, on GPU-a)`.
#[must_use]
pub fn node(refusal: &NodeRefusal) -> String {
    let (cards, reasons) = match refusal {
        NodeRefusal::Unregistered => return "no cards are registered".to_owned(),
        NodeRefusal::ClassClosed { class, cause } => return format!("no new {class} work is taken: {cause}"),
        NodeRefusal::Cards { cards, reasons, .. } => (*cards, reasons),
        _ => return "not usable".to_owned(),
    };
    let mut kinds: Vec<ReasonKind> = Vec::new();
    for reason in reasons {
        if !kinds.contains(&reason.kind) {
            kinds.push(reason.kind);
        }
    }
    let clause = |kind| match (kind, refusal) {
        (ReasonKind::TooFewCards, NodeRefusal::Cards { class, cards: 0, .. }) => {
            format!("the node has no {class} card")
        }
        _ => group(kind, cards, reasons),
    };
    let clauses: Vec<String> = kinds.into_iter().map(clause).collect();
    clauses.join(", ")
}

fn group(kind: ReasonKind, cards: u32, reasons: &[Reason]) -> String {
    let of_kind = || reasons.iter().filter(|reason| reason.kind == kind);
    let count: u32 = of_kind().map(|reason| reason.count.max(1)).fold(0, u32::saturating_add);
    let Some(nearest) = of_kind().rev().max_by_key(|reason| reason.free) else {
        return String::new();
    };
    match kind {
        ReasonKind::TooFewCards | ReasonKind::TooFewFit | ReasonKind::NumaMismatch | ReasonKind::QuotaShort => {
            reason(nearest)
        }
        ReasonKind::ClassAbsent => "no such device class".to_owned(),
        _ => {
            let what = match kind {
                ReasonKind::MemoryShort => "short of memory",
                ReasonKind::CoresShort => "short of compute",
                ReasonKind::AmountShort => "short",
                ReasonKind::ClassRule | ReasonKind::ModeMismatch if nearest.what.is_some() => {
                    nearest.what.as_deref().unwrap_or_default()
                }
                ReasonKind::SlotsExhausted => "without a free slot",
                ReasonKind::ComputeExhausted => "with all compute promised",
                ReasonKind::Unhealthy | ReasonKind::UnhealthyCard => "not working",
                ReasonKind::IsolationShort => "without the isolation wanted",
                ReasonKind::PartitionConflict => "whose hardware is in use in another division",
                ReasonKind::QosMismatch => "shared under another policy of service",
                ReasonKind::AppClassMismatch => "shared by another class of application",
                ReasonKind::Cordoned => "cordoned",
                ReasonKind::ModelMismatch => "of a model not accepted",
                ReasonKind::RuleMismatch => "not accepted by the pod's rule",
                ReasonKind::ModeMismatch | ReasonKind::CardMode => "in a mode not accepted",
                ReasonKind::IdMismatch => "not among the ids accepted",
                ReasonKind::ExclusiveConflict => "in use but wanted alone",
                ReasonKind::NoPlacement => "without room for an instance of the size",
                _ => "refused by a rule of the class",
            };
            let mut text = format!("{count} of {cards} cards {what}");
            if let (Some((dimension, wanted)), Some(free)) = (nearest.wanted, nearest.free)
                && dimension != Dimension::Slots
            {
                let named = nearest.what.as_deref();
                let (wanted, free) = (amount(dimension, named, wanted), amount(dimension, named, free));
                text.push_str(&format!(" ({wanted} wanted, at most {free} free"));
                if let Some(card) = &nearest.card {
                    text.push_str(&format!(", on {card}"));
                }
                text.push(')');
            }
            text
        }
    }
}

/// What would let the pod in, computed from the node that comes nearest.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Remedy {
    /// How much is missing, to compare nodes; smaller is nearer.
    missing: u64,
    text: String,
}

/// The most that could be asked for in `dimension` on a node where reasons of `kind` stand in the way: with cards
/// still missing beside those that fit, the free amount of the last one needed.
fn attainable(reasons: &[Reason], kind: ReasonKind, count: u32) -> Option<&Reason> {
    let fitting = reasons
        .iter()
        .filter(|r| r.kind == ReasonKind::TooFewFit)
        .map(|r| r.count)
        .max()
        .unwrap_or(0);
    let mut short: Vec<&Reason> = reasons.iter().filter(|reason| reason.kind == kind).collect();
    short.sort_by_key(|reason| std::cmp::Reverse(reason.free));
    let needed = usize::try_from(count.saturating_sub(fitting).max(1)).unwrap_or(usize::MAX);
    short
        .get(needed - 1)
        .copied()
        .filter(|reason| reason.free.is_some_and(|free| free > 0))
}

fn remedy(decision: &Decision, demand: &Demand) -> String {
    let mut best: Option<Remedy> = None;
    let mut kinds: BTreeMap<ReasonKind, usize> = BTreeMap::new();
    let (mut unregistered, mut closed, mut not_offered) = (false, false, false);
    for (name, refusal) in &decision.refused {
        let NodeRefusal::Cards {
            class,
            container,
            reasons,
            ..
        } = &**refusal
        else {
            match &**refusal {
                NodeRefusal::ClassClosed { .. } => closed = true,
                _ => unregistered = true,
            }
            continue;
        };
        for reason in reasons {
            *kinds.entry(reason.kind).or_default() += 1;
            not_offered |= reason.kind == ReasonKind::ModeMismatch && reason.what.is_some();
        }
        let ask = usize::try_from(*container)
            .ok()
            .and_then(|at| demand.containers.get(at))
            .and_then(|container| container.asks.iter().find(|ask| ask.class == *class));
        let count = ask.map_or(1, |ask| ask.count);
        for kind in [ReasonKind::MemoryShort, ReasonKind::CoresShort, ReasonKind::AmountShort] {
            let Some(reason) = attainable(reasons, kind, count) else {
                continue;
            };
            let (Some((dimension, wanted)), Some(free)) = (reason.wanted, reason.free) else {
                continue;
            };
            let missing = wanted.saturating_sub(free);
            if best.as_ref().is_some_and(|best| best.missing <= missing) {
                continue;
            }
            let card = reason.card.as_ref().map_or("a card", CardId::as_str);
            let text = format!(
                "Ask for at most {}, or free {} on {card} of {name}.",
                amount(dimension, reason.what.as_deref(), free),
                amount(dimension, reason.what.as_deref(), missing)
            );
            best = Some(Remedy { missing, text });
        }
    }
    if let Some(best) = best {
        return best.text;
    }
    let has = |kind: ReasonKind| kinds.contains_key(&kind);
    let text = if has(ReasonKind::QuotaShort) {
        "Raise the namespace's ResourceQuota, or end pods of the namespace."
    } else if has(ReasonKind::MemoryShort)
        || has(ReasonKind::CoresShort)
        || has(ReasonKind::AmountShort)
        || has(ReasonKind::ComputeExhausted)
    {
        "Wait for pods on these cards to end, or add a node."
    } else if has(ReasonKind::SlotsExhausted) {
        "Wait for a pod on these cards to end, or raise the number of slots a card is divided into."
    } else if has(ReasonKind::ExclusiveConflict) {
        "Wait for an unused card, or ask for less than a whole one."
    } else if has(ReasonKind::NoPlacement) {
        "Ask for a smaller instance, or wait for instances to be released."
    } else if let (true, Some(rule)) = (has(ReasonKind::RuleMismatch), &demand.rule) {
        return format!(
            "The pod accepts only cards with `{}`; change its annotation `{}`, or add a node with such a card.",
            cut(rule.as_str(), 300),
            keys::TESSERA_CARD_RULE
        );
    } else if not_offered {
        "Ask for a size that the cards offer."
    } else if has(ReasonKind::ModelMismatch)
        || has(ReasonKind::CardMode)
        || has(ReasonKind::ModeMismatch)
        || has(ReasonKind::IdMismatch)
    {
        return accepted(demand, &has);
    } else if has(ReasonKind::NumaMismatch) || has(ReasonKind::TooFewFit) || has(ReasonKind::TooFewCards) {
        "Ask for fewer cards, or add a node with more."
    } else if has(ReasonKind::Cordoned) {
        return format!("Take a card out of the node's annotation `{}`.", keys::DEVICE_CORDON);
    } else if has(ReasonKind::Unhealthy) || has(ReasonKind::UnhealthyCard) || closed {
        "Look at the node agent's log on these nodes."
    } else if unregistered {
        "Check that the node agent runs on a node with cards."
    } else {
        ""
    };
    text.to_owned()
}

/// What the pod's own annotations accept and exclude, where that stands in its way.
fn accepted(demand: &Demand, has: &impl Fn(ReasonKind) -> bool) -> String {
    let mode = has(ReasonKind::CardMode) || has(ReasonKind::ModeMismatch);
    let (mut only, mut never) = (Vec::new(), Vec::new());
    for (_, selection) in &demand.selections {
        for (kind, word, accept, exclude) in [
            (
                has(ReasonKind::ModelMismatch),
                "models",
                &selection.use_models,
                &selection.avoid_models,
            ),
            (
                has(ReasonKind::IdMismatch),
                "ids",
                &selection.use_ids,
                &selection.avoid_ids,
            ),
        ] {
            for (list, parts) in [(accept, &mut only), (exclude, &mut never)] {
                if let Some(list) = list.as_ref().filter(|_| kind) {
                    parts.push(format!("{word} {}", list.join(", ")));
                }
            }
        }
        if let Some(modes) = selection.modes.as_ref().filter(|_| mode) {
            only.push(format!("mode {modes}"));
        }
    }
    let told = match (only.is_empty(), never.is_empty()) {
        (false, false) => format!("accepts only {} and excludes {}", only.join(", "), never.join(", ")),
        (false, true) => format!("accepts only {}", only.join(", ")),
        (true, false) => format!("excludes {}", never.join(", ")),
        (true, true) => "does not accept these cards".to_owned(),
    };
    format!(
        "The pod {}; change its annotations, or add a node with such a card.",
        cut(&told, 300)
    )
}

/// The event for a pod that no node can take: what is short where, and what to do. One sentence a node for the nearest
/// nodes, a count for the rest; at most [`EVENT_BYTES_MAX`] bytes.
#[must_use]
pub fn event(decision: &Decision, demand: &Demand) -> String {
    let total = decision.refused.len() + decision.fits.len();
    let remedy = remedy(decision, demand);
    let mut refused: Vec<(&NodeName, &NodeRefusal)> = decision
        .refused
        .iter()
        .map(|(name, refusal)| (name, &**refusal))
        .collect();
    refused.sort_by_key(|(name, refusal)| (distance(refusal), *name));
    let mut text = format!("{}/{total} nodes can take this pod", decision.fits.len());
    // The remedy must not be cut off.
    let room = EVENT_BYTES_MAX.saturating_sub(remedy.len() + 64);
    let mut told = 0;
    for (name, refusal) in refused.iter().take(NODES_IN_EVENT) {
        let clause = format!("{} {name}: {}", if told == 0 { ":" } else { ";" }, node(refusal));
        if text.len() + clause.len() > room {
            break;
        }
        text.push_str(&clause);
        told += 1;
    }
    if let Some(rest) = refused.len().checked_sub(told).filter(|rest| *rest > 0) {
        let mut labels: BTreeMap<&'static str, usize> = BTreeMap::new();
        for (_, refusal) in refused.iter().skip(told) {
            *labels.entry(label(refusal)).or_default() += 1;
        }
        let parts: Vec<String> = labels.iter().map(|(label, count)| format!("{count} {label}")).collect();
        let clause = format!("; and {rest} more ({})", parts.join(", "));
        text.push_str(cut(&clause, room.saturating_sub(text.len())));
    }
    text.push('.');
    if !remedy.is_empty() {
        text.push(' ');
        text.push_str(&remedy);
    }
    bounded(text)
}

/// How far a node is from taking the pod; smaller is nearer.
fn distance(refusal: &NodeRefusal) -> u64 {
    match refusal {
        NodeRefusal::Cards { reasons, .. } => reasons
            .iter()
            .filter(|reason| matches!(reason.kind, ReasonKind::MemoryShort | ReasonKind::CoresShort))
            .filter_map(|reason| Some(reason.wanted?.1.saturating_sub(reason.free?)))
            .min()
            .unwrap_or(u64::MAX - 2),
        NodeRefusal::ClassClosed { .. } => u64::MAX - 1,
        _ => u64::MAX,
    }
}

/// The reason that most cards of the node share, as a metric label; of equal ones the first by name.
#[must_use]
pub fn label(refusal: &NodeRefusal) -> &'static str {
    match refusal {
        NodeRefusal::Unregistered => "unregistered",
        NodeRefusal::ClassClosed { .. } => "class-closed",
        NodeRefusal::Cards { reasons, .. } => {
            let mut counts: BTreeMap<&'static str, u32> = BTreeMap::new();
            for reason in reasons.iter().filter(|reason| reason.kind != ReasonKind::TooFewFit) {
                let count = counts.entry(reason.kind.label()).or_default();
                *count = count.saturating_add(reason.count);
            }
            let most = counts.iter().max_by(|a, b| a.1.cmp(b.1).then_with(|| b.0.cmp(a.0)));
            most.map_or(ReasonKind::TooFewFit.label(), |(label, _)| label)
        }
        _ => "other",
    }
}

fn cut(text: &str, bytes: usize) -> &str {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn bounded(text: String) -> String {
    if text.len() <= EVENT_BYTES_MAX {
        text
    } else {
        format!("{}…", cut(&text, EVENT_BYTES_MAX - '…'.len_utf8()))
    }
}
