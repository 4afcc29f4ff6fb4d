//! Which dies a container gets.

use tessera_wire::config::VastaiPacking;

/// `count` units out of those that fit, which stand in the order of examination: `cards` is the card of each die, `None`
/// for a unit that is a card by itself. Indices, ascending; at least `count` are there.
pub(super) fn choose(cards: &[Option<&str>], count: usize, packing: VastaiPacking) -> Vec<usize> {
    let mut groups: Vec<(Option<&str>, Vec<usize>)> = Vec::new();
    for (at, card) in cards.iter().enumerate() {
        match groups.iter_mut().find(|(known, _)| known.is_some() && known == card) {
            Some((_, members)) => members.push(at),
            None => groups.push((*card, vec![at])),
        }
    }
    let mut groups: Vec<Vec<usize>> = groups.into_iter().map(|(_, members)| members).collect();
    let mut chosen: Vec<usize> = Vec::new();
    while chosen.len() < count && !groups.is_empty() {
        let left = count - chosen.len();
        let sizes = || groups.iter().map(Vec::len).enumerate();
        let holds_all = match packing {
            // The first of equal ones, so the order of examination decides.
            VastaiPacking::BestFit => sizes().filter(|(_, size)| *size >= left).min_by_key(|(_, size)| *size),
            VastaiPacking::Hami => None,
        };
        let largest = || sizes().rev().max_by_key(|(_, size)| *size);
        let Some((at, _)) = holds_all.or_else(largest) else {
            break;
        };
        chosen.extend(groups.remove(at).into_iter().take(left));
    }
    chosen.sort_unstable();
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dies_come_from_the_card_that_they_fill_best() {
        let cards = ["b", "b", "b", "b", "a", "a", "c"].map(Some);
        let best = |count| choose(&cards, count, VastaiPacking::BestFit);
        assert_eq!(best(1), [6]);
        assert_eq!(best(2), [4, 5]);
        assert_eq!(best(3), [0, 1, 2]);
        // No card holds five: the largest, and the one that holds the rest best.
        assert_eq!(best(5), [0, 1, 2, 3, 6]);
        assert_eq!(best(7), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(choose(&cards, 2, VastaiPacking::Hami), [0, 1]);
    }

    #[test]
    fn equal_cards_are_taken_in_the_order_of_examination() {
        let cards = ["b", "b", "a", "a"].map(Some);
        assert_eq!(choose(&cards, 2, VastaiPacking::BestFit), [0, 1]);
        assert_eq!(choose(&cards, 3, VastaiPacking::BestFit), [0, 1, 2]);
        assert_eq!(choose(&cards, 2, VastaiPacking::Hami), [0, 1]);
    }

    #[test]
    fn units_that_are_cards_are_each_their_own() {
        assert_eq!(
            choose(&[None, Some("a"), Some("a"), None], 2, VastaiPacking::BestFit),
            [1, 2]
        );
        assert_eq!(
            choose(&[None, Some("a"), Some("a"), None], 1, VastaiPacking::BestFit),
            [0]
        );
    }
}
