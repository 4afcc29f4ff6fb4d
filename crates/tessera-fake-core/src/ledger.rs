//! Exact accounting of device memory without a lock.
//!
//! A pool's word holds the units in use *and* who changed it last under which operation
//! number. A change is announced in the slot (`pend`), becomes real in one compare-and-swap on
//! the pool, and is then copied into the slot's `entry`. If the process dies between the last
//! two steps, whoever touches the pool next finishes the copy before its own change, so the sum
//! of the entries always equals the pool, at whichever instruction a process is killed.
//!
//! Giving back a dead process's memory is one more such change, made in the dead process's
//! name; several helpers may do it at once because they all announce the same operation.

use std::sync::atomic::Ordering::SeqCst;

use crate::layout::{Pool, State, UNIT};

/// The pool has no room for the change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

const TAG: u32 = (1 << 20) - 1;

fn join(high: u32, low: u32) -> u64 {
    (u64::from(high) << 32) | u64::from(low)
}

#[allow(clippy::cast_possible_truncation, reason = "the two halves of the word")]
fn split(word: u64) -> (u32, u32) {
    ((word >> 32) as u32, word as u32)
}

/// Units that `bytes` take, rounded up; nothing when it is more than any card has.
pub(crate) fn units(bytes: u64) -> Option<u32> {
    u32::try_from(bytes.div_ceil(UNIT)).ok().filter(|u| *u < 1 << 31)
}

impl State {
    /// Finishes the change that made the pool's word, and returns the word.
    fn settle(&self, word: usize) -> u64 {
        let card = word / crate::layout::POOLS_PER_CARD;
        loop {
            let seen = self.pools[word].load(SeqCst);
            let (_, who) = split(seen);
            let slot = &self.slots[(who >> 20) as usize % crate::layout::MAX_SLOTS].cards[card];
            let (delta, number) = split(slot.pend.load(SeqCst));
            let entry = slot.entry.load(SeqCst);
            if self.pools[word].load(SeqCst) != seen {
                continue;
            }
            let (held, last) = split(entry);
            if number & TAG == who & TAG && last.wrapping_add(1) == number {
                // Failing means that somebody else finished it.
                slot.entry
                    .compare_exchange(entry, join(held.wrapping_add(delta), number), SeqCst, SeqCst)
                    .ok();
            }
            return seen;
        }
    }

    fn publish(&self, word: usize, seen: u64, slot: usize, number: u32, used: u32) -> bool {
        let who = (u32::try_from(slot).unwrap_or(0) << 20) | (number & TAG);
        let done = self.pools[word]
            .compare_exchange(seen, join(used, who), SeqCst, SeqCst)
            .is_ok();
        if done {
            self.settle(word);
        }
        done
    }

    /// Adds units to a slot and its pool, never above `capacity` units.
    pub(crate) fn charge(&self, slot: usize, pool: Pool, add: u32, capacity: u32) -> Result<(), Full> {
        let word = pool.word();
        let mine = &self.slots[slot].cards[pool.card];
        loop {
            let seen = self.settle(word);
            let (used, _) = split(seen);
            let total = used.checked_add(add).filter(|t| *t <= capacity);
            let Some(total) = total else { return Err(Full) };
            let (_, last) = split(mine.entry.load(SeqCst));
            let number = last.wrapping_add(1);
            mine.pend.store(join(add, number), SeqCst);
            if self.publish(word, seen, slot, number, total) {
                return Ok(());
            }
        }
    }

    /// Takes units from a slot and its pool; at most what the slot holds.
    pub(crate) fn discharge(&self, slot: usize, pool: Pool, take: u32) {
        let word = pool.word();
        let mine = &self.slots[slot].cards[pool.card];
        loop {
            let seen = self.settle(word);
            let (held, last) = split(mine.entry.load(SeqCst));
            let take = take.min(held);
            if take == 0 {
                return;
            }
            let (used, _) = split(seen);
            let number = last.wrapping_add(1);
            mine.pend.store(join(0u32.wrapping_sub(take), number), SeqCst);
            if self.publish(word, seen, slot, number, used.wrapping_sub(take)) {
                return;
            }
        }
    }

    /// Gives back what a dead slot holds on one card. `dead` is asked again before every step;
    /// it is false once the slot has a new owner.
    pub(crate) fn reclaim(&self, slot: usize, card: usize, dead: &dyn Fn() -> bool) {
        let theirs = &self.slots[slot].cards[card];
        loop {
            let word = (theirs.pool.load(SeqCst) as usize)
                .min(card * crate::layout::POOLS_PER_CARD + crate::layout::MAX_INSTANCES)
                .max(card * crate::layout::POOLS_PER_CARD);
            let seen = self.settle(word);
            let pend = theirs.pend.load(SeqCst);
            let (held, last) = split(theirs.entry.load(SeqCst));
            if held == 0 || !dead() {
                return;
            }
            let number = last.wrapping_add(1);
            let wanted = join(0u32.wrapping_sub(held), number);
            if pend != wanted && theirs.pend.compare_exchange(pend, wanted, SeqCst, SeqCst).is_err() {
                continue;
            }
            let (used, _) = split(seen);
            self.publish(word, seen, slot, number, used.wrapping_sub(held));
        }
    }

    /// Units in use of a pool.
    pub(crate) fn pool_units(&self, pool: Pool) -> u32 {
        split(self.settle(pool.word())).0
    }

    /// Units that a slot holds on a card.
    pub(crate) fn slot_units(&self, slot: usize, card: usize) -> u32 {
        let theirs = &self.slots[slot].cards[card];
        let word = theirs.pool.load(SeqCst) as usize;
        if word / crate::layout::POOLS_PER_CARD == card {
            self.settle(word);
        }
        split(theirs.entry.load(SeqCst)).0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use proptest::prelude::*;

    use crate::layout::{MAX_CARDS, POOLS_PER_CARD};

    struct Board(*mut State);
    // SAFETY: the state is atomics.
    unsafe impl Send for Board {}
    // SAFETY: as above.
    unsafe impl Sync for Board {}

    impl Board {
        fn new() -> Self {
            let layout = std::alloc::Layout::new::<State>();
            // SAFETY: zero is a valid state; zeroed pages are only backed when touched.
            let board = Self(unsafe { std::alloc::alloc_zeroed(layout) }.cast());
            for slot in 0..16 {
                for card in 0..MAX_CARDS {
                    board.state().slots[slot].cards[card]
                        .pool
                        .store(u32::try_from(card * POOLS_PER_CARD).unwrap(), SeqCst);
                }
            }
            board
        }

        fn state(&self) -> &State {
            // SAFETY: allocated above and never freed before the end.
            unsafe { &*self.0 }
        }

        fn sum(&self, card: usize) -> u32 {
            (0..16).map(|s| self.state().slot_units(s, card)).sum()
        }
    }

    impl Drop for Board {
        fn drop(&mut self) {
            // SAFETY: allocated with this layout.
            unsafe { std::alloc::dealloc(self.0.cast(), std::alloc::Layout::new::<State>()) };
        }
    }

    /// The steps of a charge, up to where the process dies.
    fn die_in_charge(state: &State, slot: usize, pool: Pool, add: u32, after: u32) {
        let mine = &state.slots[slot].cards[pool.card];
        let seen = state.settle(pool.word());
        let (used, _) = split(seen);
        let number = split(mine.entry.load(SeqCst)).1.wrapping_add(1);
        if after >= 1 {
            mine.pend.store(join(add, number), SeqCst);
        }
        if after >= 2 {
            let who = (u32::try_from(slot).unwrap() << 20) | (number & TAG);
            state.pools[pool.word()].store(join(used + add, who), SeqCst);
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Charge(usize, u32),
        Discharge(usize, u32),
        Die(usize, u32, u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..4usize, 1..500u32).prop_map(|(s, u)| Step::Charge(s, u)),
            (0..4usize, 1..500u32).prop_map(|(s, u)| Step::Discharge(s, u)),
            (0..4usize, 1..500u32, 0..3u32).prop_map(|(s, u, a)| Step::Die(s, u, a)),
        ]
    }

    proptest! {
        #[test]
        fn whoever_dies_wherever_the_sum_is_the_pool(steps in prop::collection::vec(step(), 1..60)) {
            let board = Board::new();
            let state = board.state();
            let pool = Pool::whole(1);
            let mut held = [0u32; 4];
            for step in steps {
                match step {
                    Step::Charge(slot, units) => {
                        let fits = held.iter().sum::<u32>() + units <= 1000;
                        prop_assert_eq!(state.charge(slot, pool, units, 1000).is_ok(), fits);
                        if fits {
                            held[slot] += units;
                        }
                    }
                    Step::Discharge(slot, units) => {
                        state.discharge(slot, pool, units);
                        held[slot] = held[slot].saturating_sub(units);
                    }
                    Step::Die(slot, units, after) => {
                        if held.iter().sum::<u32>() + units > 1000 {
                            continue;
                        }
                        die_in_charge(state, slot, pool, units, after);
                        state.reclaim(slot, 1, &|| true);
                        held[slot] = 0;
                    }
                }
                prop_assert_eq!(state.pool_units(pool), held.iter().sum::<u32>());
                prop_assert_eq!(board.sum(1), held.iter().sum::<u32>());
            }
        }
    }

    #[test]
    fn many_reapers_give_back_once() {
        let board = Arc::new(Board::new());
        let pool = Pool::whole(0);
        for _ in 0..200 {
            board.state().charge(3, pool, 100, 1000).unwrap();
            let threads: Vec<_> = (4..8)
                .map(|slot| {
                    let board = Arc::clone(&board);
                    std::thread::spawn(move || {
                        board.state().reclaim(3, 0, &|| true);
                        board.state().charge(slot, pool, 7, 1000).unwrap();
                        board.state().discharge(slot, pool, 7);
                    })
                })
                .collect();
            for thread in threads {
                thread.join().unwrap();
            }
            assert_eq!(board.state().pool_units(pool), 0);
            assert_eq!(board.sum(0), 0);
        }
    }
}
