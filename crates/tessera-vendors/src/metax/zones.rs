//! Which cards lie together: groups of directly linked cards ("link zones").
//!
//! A zone is a number above 0; a card of zone 0 has no direct link. All indices are positions in a list of fitting
//! cards in the order of examination.

use std::collections::BTreeMap;

/// What one pair of linked cards is worth.
const PAIR: i64 = 10;
/// How much the pairs that the pod gets outweigh those that it breaks.
const GAIN: i64 = 10;

fn pairs(cards: usize) -> i64 {
    let cards = i64::try_from(cards).unwrap_or(i64::MAX);
    cards.saturating_mul(cards - 1) / 2
}

fn linked(zones: impl Iterator<Item = u32>) -> i64 {
    let mut sizes: BTreeMap<u32, usize> = BTreeMap::new();
    for zone in zones.filter(|zone| *zone > 0) {
        *sizes.entry(zone).or_default() += 1;
    }
    PAIR * sizes.into_values().map(pairs).sum::<i64>()
}

/// How well the `chosen` cards suit the links of a node whose unused cards were `chosen` and `left` together: ten times
/// the linked pairs gained, less the pairs lost for others.
pub(super) fn score(chosen: &[u32], left: &[u32]) -> i64 {
    let gained = linked(chosen.iter().copied());
    let kept = linked(left.iter().copied());
    let before = linked(chosen.iter().chain(left).copied());
    GAIN * gained - (before - gained - kept)
}

/// The fitting cards by zone, zones in the order of their first card.
fn groups(zones: &[u32]) -> Vec<(u32, Vec<usize>)> {
    let mut groups: Vec<(u32, Vec<usize>)> = Vec::new();
    for (at, zone) in zones.iter().enumerate() {
        match groups.iter_mut().find(|(known, _)| known == zone) {
            Some((_, members)) => members.push(at),
            None => groups.push((*zone, vec![at])),
        }
    }
    groups
}

/// `count` cards without regard to what is left of other zones: one card without links if one card is wanted, else the
/// smallest zone that holds all, else zone by zone, the smallest first, and cards without links last.
pub(super) fn smallest_first(zones: &[u32], count: usize) -> Vec<usize> {
    let (loose, mut linked): (Vec<_>, Vec<_>) = groups(zones).into_iter().partition(|(zone, _)| *zone == 0);
    let loose: Vec<usize> = loose.into_iter().flat_map(|(_, members)| members).collect();
    if let (1, Some(first)) = (count, loose.first()) {
        return vec![*first];
    }
    // Stable: of equally large zones the one that was examined first.
    linked.sort_by_key(|(_, members)| members.len());
    if let Some((_, members)) = linked.iter().find(|(_, members)| members.len() >= count) {
        return members.iter().take(count).copied().collect();
    }
    linked
        .into_iter()
        .flat_map(|(_, members)| members)
        .chain(loose)
        .take(count)
        .collect()
}

/// The `count` cards with the highest [`score`]; `unused` is how many unused cards each zone of the node has, those that
/// do not fit included. Of equal sets, the one with more cards of zones examined first.
pub(super) fn best(zones: &[u32], unused: &BTreeMap<u32, usize>, count: usize) -> Vec<usize> {
    let groups = groups(zones);
    // best[n]: the best value of n cards of the groups so far, and how many of each group.
    let mut best: Vec<Option<(i64, Vec<usize>)>> = vec![None; count + 1];
    if let Some(none) = best.first_mut() {
        *none = Some((0, Vec::new()));
    }
    for (zone, members) in &groups {
        let total = unused.get(zone).copied().unwrap_or(0).max(members.len());
        let value = |taken: usize| match zone {
            0 => 0,
            _ => (GAIN + 1) * pairs(taken) + pairs(total - taken),
        };
        let mut next: Vec<Option<(i64, Vec<usize>)>> = vec![None; count + 1];
        for (had, state) in best.iter().enumerate() {
            let Some((sum, takes)) = state else { continue };
            for taken in 0..=members.len().min(count - had) {
                let value = sum + value(taken);
                let Some(place) = next.get_mut(had + taken) else {
                    continue;
                };
                // Of equal values the later one here has taken more of the earlier zones.
                if place.as_ref().is_none_or(|(old, _)| value >= *old) {
                    let mut takes = takes.clone();
                    takes.push(taken);
                    *place = Some((value, takes));
                }
            }
        }
        best = next;
    }
    let Some(Some((_, takes))) = best.pop() else {
        return Vec::new();
    };
    let mut chosen: Vec<usize> = groups
        .iter()
        .zip(takes)
        .flat_map(|((_, members), taken)| members.iter().take(taken).copied())
        .collect();
    chosen.sort_unstable();
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_score_weighs_pairs_gained_against_pairs_broken() {
        assert_eq!(score(&[1, 1], &[1, 1]), 60);
        assert_eq!(score(&[1, 1], &[]), 100);
        assert_eq!(score(&[1, 2], &[1, 2]), -20);
        assert_eq!(score(&[0, 0], &[1, 1]), 0);
    }

    #[test]
    fn the_best_set_has_the_highest_score_of_all_sets() {
        let zones = [2, 1, 0, 2, 3, 1, 2, 3, 3, 0];
        let unused: BTreeMap<u32, usize> = [(0, 2), (1, 3), (2, 3), (3, 4)].into();
        // Zones 1 and 3 have one unused card each that does not fit.
        let worth = |chosen: &[usize]| {
            let taken: Vec<u32> = chosen.iter().map(|at| zones[*at]).collect();
            let mut left: Vec<u32> = (0..zones.len())
                .filter(|at| !chosen.contains(at))
                .map(|at| zones[at])
                .collect();
            left.extend([1, 3]);
            score(&taken, &left)
        };
        for count in 1..=zones.len() {
            let mine = best(&zones, &unused, count);
            assert_eq!(mine.len(), count);
            let highest = (0_u32..1 << zones.len())
                .filter(|set| set.count_ones() as usize == count)
                .map(|set| (0..zones.len()).filter(|at| set >> at & 1 == 1).collect::<Vec<_>>())
                .map(|set| worth(&set))
                .max();
            assert_eq!(Some(worth(&mine)), highest, "{count} cards: {mine:?}");
        }
    }

    #[test]
    fn zones_are_used_up_from_the_smallest() {
        let zones = [0, 2, 2, 2, 1, 1];
        assert_eq!(smallest_first(&zones, 1), [0]);
        assert_eq!(smallest_first(&zones, 2), [4, 5]);
        assert_eq!(smallest_first(&zones, 3), [1, 2, 3]);
        assert_eq!(smallest_first(&zones, 4), [4, 5, 1, 2]);
        assert_eq!(smallest_first(&zones, 6), [4, 5, 1, 2, 3, 0]);
        assert_eq!(smallest_first(&[2, 1, 2, 1], 1), [0]);
    }
}
