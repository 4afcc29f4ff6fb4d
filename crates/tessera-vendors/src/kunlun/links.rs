//! Which cards of a board are linked, and which set of the free ones to take.

/// Cards of a board.
const BOARD: u32 = 8;
/// Cards of a wing.
const WING: u32 = 4;

/// Links between the wings: card `n` of the left to card `n` of the right.
const PAIRS: [[u32; 2]; 4] = [[0, 4], [1, 5], [2, 6], [3, 7]];

/// Four cards over both wings that are linked in a ring.
const SQUARES: [[u32; 4]; 6] = [
    [0, 1, 4, 5],
    [2, 3, 6, 7],
    [0, 2, 4, 6],
    [1, 3, 5, 7],
    [0, 3, 4, 7],
    [1, 2, 5, 6],
];

/// One board with its free cards.
struct Board {
    /// Index of its first card.
    base: u32,
    /// Free cards, 0 to 7, ascending.
    free: Vec<u32>,
}

impl Board {
    fn wing(&self, right: bool) -> &[u32] {
        let split = self.free.partition_point(|card| *card < WING);
        let (left, rest) = self.free.split_at(split);
        if right { rest } else { left }
    }

    fn has(&self, card: u32) -> bool {
        self.free.contains(&card)
    }

    fn all(&self, cards: &[u32]) -> bool {
        cards.iter().all(|card| self.has(*card))
    }

    fn square(&self) -> Option<[u32; 4]> {
        let whole = || SQUARES.into_iter().filter(|square| self.all(square));
        if self.free.len() == 6 {
            // Leave a linked pair behind if possible.
            let rest_linked = |square: &[u32; 4]| {
                let rest: Vec<u32> = self
                    .free
                    .iter()
                    .copied()
                    .filter(|card| !square.contains(card))
                    .collect();
                matches!(rest.as_slice(), [a, b] if linked(*a, *b))
            };
            return whole().find(rest_linked).or_else(|| whole().next_back());
        }
        whole().next()
    }
}

fn linked(a: u32, b: u32) -> bool {
    (a < WING) == (b < WING) || PAIRS.iter().any(|pair| pair.contains(&a) && pair.contains(&b))
}

/// The counts that a linked set exists for.
pub(super) const COUNTS: [u32; 4] = [1, 2, 4, 8];

/// Which `count` of the free cards (indexes, ascending) to take: from the wing that is left the least useful by it;
/// else linked cards of both wings of a board. `None` if no linked set is free.
pub(super) fn linked_set(free: &[u32], count: u32) -> Option<Vec<u32>> {
    let mut boards: Vec<Board> = Vec::new();
    for index in free {
        let (base, card) = (index - index % BOARD, index % BOARD);
        match boards.last_mut() {
            Some(board) if board.base == base => board.free.push(card),
            _ => boards.push(Board { base, free: vec![card] }),
        }
    }
    let on = |board: &Board, cards: &[u32]| Some(cards.iter().map(|card| board.base + card).collect());
    let sizes: &[usize] = match count {
        1 => &[1, 3, 2, 4],
        2 => &[2, 3, 4],
        4 => &[4],
        8 => {
            let board = boards.iter().find(|board| board.free.len() == 8)?;
            return on(board, &board.free);
        }
        _ => return None,
    };
    let wanted = usize::try_from(count).ok()?;
    for size in sizes {
        for board in &boards {
            for right in [false, true] {
                let wing = board.wing(right);
                if wing.len() == *size {
                    return on(board, wing.get(..wanted)?);
                }
            }
        }
    }
    for board in &boards {
        let across: Option<Vec<u32>> = match count {
            2 => PAIRS.into_iter().find(|pair| board.all(pair)).map(|pair| pair.to_vec()),
            4 => board.square().map(|square| square.to_vec()),
            _ => None,
        };
        if let Some(cards) = across {
            return on(board, &cards);
        }
    }
    None
}

/// How broken up the use of the boards is: a wing that is full counts 0, one with a single card 2, any other 1, over
/// the boards of `used`. No use at all is 1.
pub(super) fn broken(used: &[u32]) -> i32 {
    if used.is_empty() {
        return 1;
    }
    let mut boards: Vec<u32> = used.iter().map(|index| index / BOARD).collect();
    boards.sort_unstable();
    boards.dedup();
    let wing = |board: u32, right: bool| {
        let cards = used
            .iter()
            .filter(|index| *index / BOARD == board && (*index % BOARD >= WING) == right)
            .count();
        match cards {
            4 => 0,
            1 => 2,
            _ => 1,
        }
    };
    boards
        .iter()
        .map(|board| wing(*board, false) + wing(*board, true))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_is_taken_where_it_breaks_the_least() {
        assert_eq!(linked_set(&[0, 1, 2, 5], 1), Some(vec![5]), "a lone card first");
        assert_eq!(linked_set(&[0, 1, 4, 5, 6], 1), Some(vec![4]), "then of three");
        assert_eq!(linked_set(&[0, 1, 2, 3, 4, 5], 1), Some(vec![4]), "then of two");
        assert_eq!(linked_set(&[0, 1, 2, 3, 4, 5, 6, 7], 1), Some(vec![0]));
        assert_eq!(linked_set(&[], 1), None);
    }

    #[test]
    fn pairs_and_fours_are_linked() {
        assert_eq!(linked_set(&[0, 5], 2), None, "different wings, no link");
        assert_eq!(linked_set(&[1, 5], 2), Some(vec![1, 5]));
        assert_eq!(linked_set(&[0, 1, 4, 6], 4), None);
        assert_eq!(linked_set(&[0, 2, 4, 6], 4), Some(vec![0, 2, 4, 6]));
        assert_eq!(
            linked_set(&[0, 1, 2, 4, 5, 6], 4),
            Some(vec![0, 1, 4, 5]),
            "2 and 6 stay, and are linked"
        );
        assert_eq!(linked_set(&[0, 1, 2, 3, 4, 5, 6, 7], 3), None);
    }

    #[test]
    fn boards_of_eight_are_kept_apart() {
        assert_eq!(linked_set(&[7, 9], 2), None, "two boards");
        assert_eq!(linked_set(&[7, 9, 13], 2), Some(vec![9, 13]));
        let second: Vec<u32> = (8..16).collect();
        let mut free = vec![0, 1];
        free.extend(&second);
        assert_eq!(linked_set(&free, 8), Some(second));
    }

    #[test]
    fn filling_a_wing_mends_the_board() {
        assert_eq!((broken(&[]), broken(&[0]), broken(&[0, 1])), (1, 3, 2));
        assert_eq!((broken(&[0, 1, 2, 3]), broken(&[0, 1, 2, 3, 4, 5, 6, 7])), (1, 0));
    }
}
