//! Units of Intel cards: which of them share silicon, how strong their walls are, and which of them go together.

use tessera_engine::{Candidate, FitContext, NodeState};
use tessera_types::{Card, CardId, CardOrder, ContainerRole};
use tessera_wire::config::IntelIsolation;

/// The mode of a whole card.
pub(super) const CARD: &str = "card";
/// The mode of one tile of a card.
pub(super) const TILE: &str = "tile";
/// The mode of a virtual function.
pub(super) const VF: &str = "vf";
/// What a link between two tiles of one card is worth: more than any number of ports.
const SAME_CARD: i64 = 1000;
/// Up to so many candidates all sets are looked at.
const ALL_SETS: usize = 12;
/// The most rounds of exchanging single members.
const ROUNDS: usize = 64;

fn note<'a>(card: &'a Card, name: &str) -> Option<&'a str> {
    card.custom
        .get(name)
        .map(String::as_str)
        .filter(|text| !text.is_empty())
}

/// The kernel driver that serves the unit.
pub(super) fn driver(card: &Card) -> Option<&str> {
    note(card, "driver")
}

/// Whether both are parts of one piece of silicon, so that a use of one takes from the other: a card and its tiles, a
/// physical function and its virtual ones. Two tiles, or two virtual functions, are apart.
pub(super) fn overlap(one: &Card, other: &Card) -> bool {
    let part_of = |part: &Card, whole: &Card| {
        note(part, "card").is_some_and(|card| card == whole.id.as_str())
            || (part.mode.as_str() == VF
                && whole.mode.as_str() != VF
                && note(part, "pf").is_some_and(|pf| note(whole, "bdf") == Some(pf)))
    };
    one.id != other.id && (part_of(one, other) || part_of(other, one))
}

/// Whether both are tiles of one card.
fn siblings(one: &Card, other: &Card) -> bool {
    one.id != other.id && note(one, "card").is_some() && note(one, "card") == note(other, "card")
}

/// Whether something else on `card`'s silicon is held by a booking of the node.
///
/// Bookings also count by id alone: a card may have been given away whole before its node began to register tiles.
pub(super) fn held_elsewhere(card: &Card, node: &NodeState) -> bool {
    let by_use = node
        .cards()
        .iter()
        .zip(node.usage())
        .any(|(other, used)| used.usage.slots > 0 && overlap(card, other));
    by_use || held_under_another_id(card, node)
}

fn held_under_another_id(card: &Card, node: &NodeState) -> bool {
    if card.mode.as_str() == VF {
        return false;
    }
    let whole = note(card, "card");
    let tiles = format!("{}/t", card.id);
    node.bookings().iter().any(|booking| {
        booking
            .usage()
            .map(|(card, ..)| card)
            .any(|id: &CardId| whole == Some(id.as_str()) || id.as_str().starts_with(&tiles))
    })
}

/// Whether an earlier container of the pod that still runs holds something else on `card`'s silicon.
pub(super) fn held_by_pod(card: &Card, ctx: &FitContext<'_>) -> bool {
    ctx.earlier
        .iter()
        .filter(|earlier| earlier.role != ContainerRole::Init)
        .filter_map(|earlier| ctx.node.cards().get(earlier.position))
        .any(|other| overlap(card, other))
}

/// Whether a sibling tile is in use.
pub(super) fn sibling_in_use(card: &Card, node: &NodeState) -> bool {
    node.cards()
        .iter()
        .zip(node.usage())
        .any(|(other, used)| used.usage.slots > 0 && siblings(card, other))
}

/// The wall that a unit has for its memory.
pub(super) fn wall(card: &Card) -> IntelIsolation {
    match note(card, "enf") {
        Some("D" | "H") => IntelIsolation::Hard,
        Some("S") => IntelIsolation::Soft,
        _ if card.mode.as_str() == VF => IntelIsolation::Hard,
        _ => IntelIsolation::None,
    }
}

/// Candidates that may serve one request together, in the order of examination.
#[derive(Debug)]
pub(super) struct Group {
    /// Their kind.
    mode: String,
    /// Indices into the candidates.
    members: Vec<usize>,
}

/// Candidates by kind, and by NUMA node where `numa` holds; groups in order of their first member.
fn groups(fitting: &[Candidate<'_>], numa: bool) -> Vec<Group> {
    let mut found: Vec<(i32, Group)> = Vec::new();
    for (at, candidate) in fitting.iter().enumerate() {
        let node = if numa { candidate.card.numa } else { 0 };
        let mode = candidate.card.mode.as_str();
        match found
            .iter_mut()
            .find(|(other, group)| *other == node && group.mode == mode)
        {
            Some((_, group)) => group.members.push(at),
            None => found.push((
                node,
                Group {
                    mode: mode.to_owned(),
                    members: vec![at],
                },
            )),
        }
    }
    found.into_iter().map(|(_, group)| group).collect()
}

/// What decides among units that fit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish {
    /// How many.
    pub(super) count: usize,
    /// All the memory of each is wanted.
    pub(super) whole: bool,
    /// All on one NUMA node.
    pub(super) numa: bool,
    /// The best linked ones.
    pub(super) linked: bool,
    /// Each must have a link to another one.
    pub(super) must_link: bool,
}

/// The units for a request, as indices into `fitting`: of one kind, virtual functions before cards (the smallest
/// first) unless a whole card is wanted. `None` if no kind has enough, or not enough that are linked.
pub(super) fn choose(fitting: &[Candidate<'_>], wish: Wish) -> Option<Vec<usize>> {
    let mut best: Option<((u8, i64), Vec<usize>)> = None;
    for group in groups(fitting, wish.numa) {
        let mut members = group.members;
        if members.len() < wish.count {
            continue;
        }
        let vf = group.mode == VF;
        if vf {
            members.sort_by_key(|at| fitting[*at].card.memory);
        }
        let rank = u8::from(vf == wish.whole);
        let (value, picked) = if wish.linked && wish.count > 1 {
            let cards: Vec<&Card> = members.iter().map(|at| fitting[*at].card).collect();
            let Some(set) = best_linked(&links(&cards), wish.count, wish.must_link) else {
                continue;
            };
            (set.value, set.members.into_iter().map(|at| members[at]).collect())
        } else {
            members.truncate(wish.count);
            (0, members)
        };
        let key = (rank, -value);
        if best.as_ref().is_none_or(|(least, _)| key < *least) {
            best = Some((key, picked));
        }
    }
    best.map(|(_, picked)| picked)
}

/// The largest number of candidates of one kind, and which candidates are of other kinds.
pub(super) fn largest_kind(fitting: &[Candidate<'_>]) -> (usize, Vec<usize>) {
    let groups = groups(fitting, false);
    // `max_by_key` keeps the last of equal ones; the first examined is meant.
    let Some(largest) = groups.iter().rev().max_by_key(|group| group.members.len()) else {
        return (0, Vec::new());
    };
    let others = (0..fitting.len()).filter(|at| !largest.members.contains(at)).collect();
    (largest.members.len(), others)
}

/// Whether candidates of the node differ in kind, or their sizes decide.
pub(super) fn kinds_matter<'a>(cards: impl Iterator<Item = &'a Card>) -> bool {
    let mut first: Option<&str> = None;
    for card in cards {
        let mode = card.mode.as_str();
        if mode == VF || first.is_some_and(|first| first != mode) {
            return true;
        }
        first = Some(mode);
    }
    false
}

/// Whether the policy asks for well linked units.
pub(super) fn wants_links(ctx: &FitContext<'_>) -> bool {
    ctx.policy.has(CardOrder::TopologyAware)
}

/// The links between cards, row by row. A link that only one side tells of counts; one that both tell of counts once.
pub fn links(cards: &[&Card]) -> Vec<Vec<i64>> {
    let one_way = |from: &Card, to: &Card| from.link_scores.get(&to.id).copied().unwrap_or(0);
    cards
        .iter()
        .map(|from| {
            cards
                .iter()
                .map(|to| match () {
                    () if from.id == to.id => 0,
                    () if siblings(from, to) => SAME_CARD,
                    () => one_way(from, to).max(one_way(to, from)).max(0),
                })
                .collect()
        })
        .collect()
}

/// A set of units and the sum of the links inside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkedSet {
    /// Rows of the table, ascending.
    pub members: Vec<usize>,
    /// Sum of the links between members.
    pub value: i64,
}

/// Sums of a set: links inside, and links from it to what stays free.
fn sums(table: &[Vec<i64>], members: &[usize]) -> (i64, i64) {
    let (mut inside, mut cut) = (0_i64, 0_i64);
    for (nth, at) in members.iter().enumerate() {
        for (other, link) in table[*at].iter().enumerate() {
            if members[..nth].contains(&other) {
                inside = inside.saturating_add(*link);
            } else if !members.contains(&other) {
                cut = cut.saturating_add(*link);
            }
        }
    }
    (inside, cut)
}

/// What makes a set better: more inside, less cut off, examined earlier.
fn key(table: &[Vec<i64>], members: &[usize]) -> (std::cmp::Reverse<i64>, i64, Vec<usize>) {
    let (inside, cut) = sums(table, members);
    let mut order = members.to_vec();
    order.sort_unstable();
    (std::cmp::Reverse(inside), cut, order)
}

fn all_linked(table: &[Vec<i64>], members: &[usize]) -> bool {
    members
        .iter()
        .all(|at| members.iter().any(|other| table[*at][*other] > 0))
}

/// Chooses `count` rows of a symmetric table of links: the largest sum inside; of equal ones that which cuts the
/// fewest links to what stays free; then the first in order. With `must_link` each member has a link to another.
///
/// Small tables are searched in full; larger ones by growing a set from every start and exchanging single members.
#[must_use]
pub fn best_linked(table: &[Vec<i64>], count: usize, must_link: bool) -> Option<LinkedSet> {
    let n = table.len();
    if count == 0 || n < count {
        return None;
    }
    let must_link = must_link && count > 1;
    let mut best = None;
    let mut offer = |members: &[usize]| {
        if must_link && !all_linked(table, members) {
            return;
        }
        let key = key(table, members);
        if best.as_ref().is_none_or(|least| key < *least) {
            best = Some(key);
        }
    };
    if n <= ALL_SETS {
        for mask in 0_u32..1 << n {
            if mask.count_ones() as usize == count {
                let members: Vec<usize> = (0..n).filter(|at| mask & (1 << at) != 0).collect();
                offer(&members);
            }
        }
    } else {
        for start in 0..n {
            offer(&grow(table, start, count));
        }
    }
    best.map(|(value, _, members)| LinkedSet {
        members,
        value: value.0,
    })
}

fn grow(table: &[Vec<i64>], start: usize, count: usize) -> Vec<usize> {
    let n = table.len();
    let mut members = vec![start];
    let with = |members: &[usize], at: usize| {
        let mut more = members.to_vec();
        more.push(at);
        more
    };
    while members.len() < count {
        let next = (0..n)
            .filter(|at| !members.contains(at))
            .min_by_key(|at| key(table, &with(&members, *at)));
        let Some(next) = next else { break };
        members.push(next);
    }
    for _ in 0..ROUNDS {
        let now = key(table, &members);
        let mut better: Option<Vec<usize>> = None;
        let mut least = now.clone();
        for out in 0..members.len() {
            for at in (0..n).filter(|at| !members.contains(at)) {
                let mut other = members.clone();
                other[out] = at;
                let key = key(table, &other);
                if key < least {
                    least = key;
                    better = Some(other);
                }
            }
        }
        match better {
            Some(other) => members = other,
            None => break,
        }
    }
    members
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(n: usize, links: &[(usize, usize, i64)]) -> Vec<Vec<i64>> {
        let mut table = vec![vec![0; n]; n];
        for (a, b, link) in links {
            table[*a][*b] = *link;
            table[*b][*a] = *link;
        }
        table
    }

    #[test]
    fn of_equal_sets_the_one_that_leaves_more_links_whole_is_taken() {
        let four = table(4, &[(0, 1, 4), (0, 2, 4), (2, 3, 4)]);
        assert_eq!(best_linked(&four, 2, false).unwrap().members, [0, 1]);
        let chain = table(4, &[(0, 1, 4), (1, 2, 4), (2, 3, 4)]);
        // The middle pair would leave both ends alone.
        assert_eq!(best_linked(&chain, 2, false).unwrap().members, [0, 1]);
        assert_eq!(best_linked(&table(2, &[]), 2, true), None);
        assert_eq!(best_linked(&four, 3, true).unwrap().members, [0, 1, 2]);
    }

    #[test]
    fn large_nodes_are_searched_without_listing_all_sets() {
        let mut pairs = Vec::new();
        for ring in 0..4 {
            for a in 0..4 {
                for b in a + 1..4 {
                    pairs.push((ring * 4 + a, ring * 4 + b, if ring == 2 { 9 } else { 8 }));
                }
            }
        }
        let sixteen = table(16, &pairs);
        let best = best_linked(&sixteen, 4, true).unwrap();
        assert_eq!((best.members, best.value), (vec![8, 9, 10, 11], 54));
    }
}
