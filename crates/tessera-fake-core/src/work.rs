//! Work on cards: when it runs, and how busy that makes card and process.
//!
//! A card is one queue in time. A launch that takes the SMs `s` of `S` for a time `d` occupies
//! `d * s / S` of the queue, so small kernels of different streams overlap while a full card
//! serves one kernel after the other, whoever launched it.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use crate::clock::SAMPLE_NS;
use crate::fault::Odd;
use crate::flaw::Flaw;
use crate::layout::{RING, State};
use crate::machine::Machine;
use crate::process::Process;

/// How busy one process kept one card in one sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Pid as the caller sees it.
    pub pid: u32,
    /// End of the sample, wall clock in microseconds.
    pub stamp_us: u64,
    /// Percent of the sample.
    pub percent: u32,
}

fn pack(bucket: u64, busy: u64) -> u64 {
    (bucket << 32) | busy.min(u64::from(u32::MAX))
}

fn busy(word: u64, bucket: u64) -> u64 {
    if word >> 32 == bucket & 0xffff_ffff {
        word & 0xffff_ffff
    } else {
        0
    }
}

/// Adds the span to the samples that it crosses.
fn spread(ring: &[AtomicU64; RING], start: u64, end: u64) {
    let mut from = start;
    // A span longer than the ring keeps only what a reader can still see.
    let last = end.min(start + SAMPLE_NS * (RING as u64 - 8));
    while from < last {
        let bucket = from / SAMPLE_NS;
        let to = last.min((bucket + 1) * SAMPLE_NS);
        #[allow(clippy::cast_possible_truncation, reason = "a remainder of a small number")]
        let word = &ring[(bucket % RING as u64) as usize];
        let mut seen = word.load(SeqCst);
        while let Err(now) = word.compare_exchange_weak(
            seen,
            pack(bucket & 0xffff_ffff, busy(seen, bucket) + (to - from)),
            SeqCst,
            SeqCst,
        ) {
            seen = now;
        }
        from = to;
    }
}

fn percent(ring: &[AtomicU64; RING], first: u64, last: u64) -> u32 {
    let mut sum = 0;
    for bucket in first..=last {
        #[allow(clippy::cast_possible_truncation, reason = "a remainder of a small number")]
        let word = ring[(bucket % RING as u64) as usize].load(SeqCst);
        sum += busy(word, bucket);
    }
    let span = SAMPLE_NS * (last + 1 - first);
    u32::try_from((sum * 100 + span / 2) / span).unwrap_or(100).min(100)
}

impl State {
    fn occupy(&self, card: usize, not_before: u64, share_ns: u64) -> u64 {
        let queue = &self.cards[card].busy_until;
        let mut seen = queue.load(SeqCst);
        loop {
            let start = seen.max(not_before);
            match queue.compare_exchange_weak(seen, start + share_ns, SeqCst, SeqCst) {
                Ok(_) => return start,
                Err(now) => seen = now,
            }
        }
    }
}

impl State {
    /// Takes what a dead process still had planned out of its card's future, so that its queue
    /// does not outlive it. Work that others planned behind it keeps its time.
    pub(crate) fn cancel(&self, slot: usize, card: usize) {
        let now = self.now_ns() / SAMPLE_NS;
        let mut left = 0;
        for bucket in now + 1..now + RING as u64 {
            #[allow(clippy::cast_possible_truncation, reason = "a remainder of a small number")]
            let at = (bucket % RING as u64) as usize;
            // Taken out by exactly one of several helpers.
            let planned = busy(self.slots[slot].cards[card].ring[at].swap(0, SeqCst), bucket);
            if planned > 0 {
                left += planned;
                let word = &self.cards[card].ring[at];
                word.fetch_update(SeqCst, SeqCst, |seen| {
                    Some(pack(bucket & 0xffff_ffff, busy(seen, bucket).saturating_sub(planned)))
                })
                .ok();
            }
        }
        if left > 0 {
            self.cards[card]
                .busy_until
                .fetch_update(SeqCst, SeqCst, |until| Some(until.saturating_sub(left)))
                .ok();
        }
    }
}

impl Process {
    /// Plans one piece of work and returns when it ends.
    ///
    /// `ready_ns` is when its stream is free, `duration_ns` how long it runs on `sms` SMs of a
    /// card (or instance) that has `sms_total`.
    pub fn run(&self, card: usize, ready_ns: u64, duration_ns: u64, sms: u32, sms_total: u32, blocks: u64) -> u64 {
        let state = self.machine().state();
        let now = state.now_ns().max(self.lead().load(SeqCst));
        let total = u64::from(sms_total.max(1));
        let used = u64::from(sms).clamp(1, total);
        let share =
            u64::try_from(u128::from(duration_ns) * u128::from(used) / u128::from(total)).unwrap_or(duration_ns);
        let start = state.occupy(card, ready_ns.max(now), share);
        let mine = &state.slots[self.slot()].cards[card];
        if mine.parked.load(SeqCst) != 0 {
            self.machine().note_flaw(Flaw::WorkWhileParked);
        }
        if share > 0 {
            spread(&state.cards[card].ring, start, start + share);
            spread(&mine.ring, start, start + share);
        }
        state.cards[card].work_ns.fetch_add(share, SeqCst);
        mine.work_ns.fetch_add(share, SeqCst);
        mine.launches.fetch_add(1, SeqCst);
        mine.blocks.fetch_add(blocks, SeqCst);
        start + duration_ns
    }
}

impl Machine {
    /// Percent of the last second in which the card worked, in whole samples.
    #[must_use]
    pub fn card_percent(&self, card: usize) -> u32 {
        let last = (self.now_ns() / SAMPLE_NS).saturating_sub(1);
        percent(&self.state().cards[card].ring, last.saturating_sub(5), last)
    }

    /// Finished samples of every process of the card that end after `since_us`, newest first a
    /// process, without those in which it did nothing.
    #[must_use]
    pub fn samples(&self, card: usize, since_us: u64) -> Vec<Sample> {
        let now = self.now_ns();
        // Stamps are wall time; a machine with a time of its own has its own wall.
        let offset = if self.keeps_wall_time() {
            crate::clock::real_us()
        } else {
            now / 1000
        };
        let last = (now / SAMPLE_NS).saturating_sub(1);
        let mut out = Vec::new();
        for view in self.processes(card) {
            let ring = &self.state().slots[view.slot].cards[card].ring;
            for bucket in (last.saturating_sub(RING as u64 / 2)..=last).rev() {
                let age_us = (now - ((bucket + 1) * SAMPLE_NS).min(now)) / 1000;
                let mut stamp_us = offset.saturating_sub(age_us);
                if self.odd().contains(Odd::TIME_BACK) {
                    // Every second one is behind the one before it.
                    stamp_us = stamp_us.saturating_sub((bucket % 2) * SAMPLE_NS * 3 / 1000);
                }
                if stamp_us <= since_us {
                    break;
                }
                let percent = percent(ring, bucket, bucket);
                if percent > 0 {
                    out.push(Sample {
                        pid: view.pid,
                        stamp_us,
                        percent,
                    });
                }
            }
        }
        out
    }

    /// Whether its time is the system's.
    fn keeps_wall_time(&self) -> bool {
        self.state().clock_mode.load(SeqCst) == crate::clock::WALL
    }

    /// Time of the machine in nanoseconds.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        self.state().now_ns()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_split_over_its_samples() {
        let ring: [AtomicU64; RING] = std::array::from_fn(|_| AtomicU64::new(0));
        let start = SAMPLE_NS * 10 + SAMPLE_NS / 2;
        spread(&ring, start, start + SAMPLE_NS);
        assert_eq!(percent(&ring, 10, 10), 50);
        assert_eq!(percent(&ring, 11, 11), 50);
        assert_eq!(percent(&ring, 10, 11), 50);
        assert_eq!(percent(&ring, 12, 12), 0);
    }

    #[test]
    fn an_old_sample_is_not_counted_again() {
        let ring: [AtomicU64; RING] = std::array::from_fn(|_| AtomicU64::new(0));
        spread(&ring, 0, SAMPLE_NS);
        assert_eq!(percent(&ring, RING as u64, RING as u64), 0);
    }
}
