//! Which of the fitting NPUs a container gets: from few rings, from whole modules.

use std::collections::BTreeMap;

use tessera_engine::{Candidate, FitContext};
use tessera_types::Card;

use super::chip::Chip;

/// Register member: the ring of an NPU.
const RING: &str = "NetworkID";
/// Register member: the module of an NPU, if its plugin tells it.
const MODULE: &str = "ModuleID";

/// The ring of an NPU, if it is registered.
pub(super) fn ring(card: &Card) -> Option<i64> {
    card.custom.get(RING)?.parse().ok()
}

/// The module of an NPU. Plugins that do not tell it register positions, two a module.
fn module(card: &Card) -> i64 {
    card.custom
        .get(MODULE)
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| i64::from(card.index / 2))
}

/// `count` NPUs from as few rings as can be, and from rings that are broken already: the smallest ring that holds what
/// is left to give; if none does, all of the largest. Of equal rings the lowest. All or one of the fitting NPUs are
/// taken as examined.
pub(super) fn by_ring(fitting: &[Candidate<'_>], count: usize) -> Option<Vec<usize>> {
    if fitting.len() < count {
        return None;
    }
    if fitting.len() == count || count <= 1 {
        return Some((0..count).collect());
    }
    let mut rings: BTreeMap<i64, Vec<usize>> = BTreeMap::new();
    for (at, candidate) in fitting.iter().enumerate() {
        rings.entry(ring(candidate.card)?).or_default().push(at);
    }
    let mut chosen: Vec<usize> = Vec::with_capacity(count);
    while chosen.len() < count {
        let left = count - chosen.len();
        let holds = rings
            .iter()
            .filter(|(_, members)| members.len() >= left)
            .min_by_key(|(id, members)| (members.len(), **id));
        let best = holds.or_else(|| {
            rings
                .iter()
                .min_by_key(|(id, members)| (usize::MAX - members.len(), **id))
        });
        let id = *best?.0;
        chosen.extend(rings.remove(&id)?.into_iter().take(left));
    }
    Some(chosen)
}

/// Modules both of whose NPUs are among `cards`, lowest first: positions in the given order.
fn whole_modules<'a>(cards: impl Iterator<Item = &'a Card>) -> Vec<Vec<usize>> {
    let mut modules: BTreeMap<i64, Vec<usize>> = BTreeMap::new();
    for (at, card) in cards.enumerate() {
        modules.entry(module(card)).or_default().push(at);
    }
    modules.into_values().filter(|members| members.len() == 2).collect()
}

/// How many NPUs the whole modules among `cards` have.
pub(super) fn in_whole_modules<'a>(cards: impl Iterator<Item = &'a Card>) -> usize {
    whole_modules(cards).len() * 2
}

/// `count` NPUs of whole modules, the lowest first. A single NPU (alone, or the odd one where the chip allows it)
/// comes from a module that is broken already, if there is one.
pub(super) fn by_module(
    chip: &Chip,
    fitting: &[Candidate<'_>],
    count: usize,
    ctx: &FitContext<'_>,
) -> Option<Vec<usize>> {
    let odd = count % 2;
    if odd == 1 && count > 1 && chip.super_pod {
        return None;
    }
    let mut chosen: Vec<usize> = whole_modules(fitting.iter().map(|candidate| candidate.card))
        .into_iter()
        .take(count / 2)
        .flatten()
        .collect();
    if chosen.len() + odd < count {
        return None;
    }
    if odd == 1 {
        let left = || (0..fitting.len()).filter(|at| !chosen.contains(at));
        let single = left()
            .find(|at| is_broken(fitting, *at, ctx))
            .or_else(|| left().next())?;
        chosen.push(single);
    }
    Some(chosen)
}

/// Whether the module of a candidate cannot be given whole any more: one of its NPUs is in use or does not fit.
fn is_broken(fitting: &[Candidate<'_>], at: usize, ctx: &FitContext<'_>) -> bool {
    let Some(candidate) = fitting.get(at) else {
        return false;
    };
    let id = module(candidate.card);
    let members: Vec<&Candidate<'_>> = fitting.iter().filter(|other| module(other.card) == id).collect();
    members.len() < 2 || members.iter().any(|member| is_used(member.position, ctx))
}

/// In use by others, or given to an earlier container of the pod.
fn is_used(position: usize, ctx: &FitContext<'_>) -> bool {
    ctx.node.usage().get(position).is_some_and(|used| used.usage.slots > 0)
        || ctx.earlier.iter().any(|earlier| earlier.position == position)
}
