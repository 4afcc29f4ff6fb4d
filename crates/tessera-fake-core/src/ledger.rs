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

#[allow(clippy::cast_possible_truncation)] // the two halves of the word
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
                let _ = slot.entry.compare_exchange(
                    entry,
                    join(held.wrapping_add(delta), number),
                    SeqCst,
                    SeqCst,
                );
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
    pub(crate) fn charge(
        &self,
        slot: usize,
        pool: Pool,
        add: u32,
        capacity: u32,
    ) -> Result<(), Full> {
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
            mine.pend
                .store(join(0u32.wrapping_sub(take), number), SeqCst);
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
            if pend != wanted
                && theirs
                    .pend
                    .compare_exchange(pend, wanted, SeqCst, SeqCst)
                    .is_err()
            {
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
