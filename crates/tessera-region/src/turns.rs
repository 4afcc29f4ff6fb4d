//! What the processes of a container say of their work on cards whose time is shared.
//!
//! One page a process, so that it can be given to the driver as pinned memory: the card itself writes there how far it
//! has come. Work is told in *lanes*, one for each stream, as predicted nanoseconds: `launched_ns` grows with each
//! launch, `done_ns` is written by the card behind it, in the order of the stream. What lies between is on the card.
//!
//! Every word is the tenant's and may hold anything. [`TurnRow::read`] clamps it; a wrong figure costs the tenant its
//! own turns and nobody else more than the longest wait for a drain.

use crate::{
    MAX_CARDS, MAX_SLOTS,
    sync::{AtomicU32, AtomicU64, Ordering},
};

/// First eight bytes of the page: `TSRTURNS`.
pub const TURNS_MAGIC: u64 = u64::from_le_bytes(*b"TSRTURNS");
/// Layout that this crate reads and writes.
pub const TURNS_VERSION: u32 = 1;
/// Name of the page beside the account.
pub const TURNS_FILE: &str = "turns";
/// Size of the file in bytes. Sparse: a row is backed by memory once it is written.
pub const TURNS_SIZE: usize = size_of::<TurnReports>();
/// Streams of one process that can have work on cards at a time without sharing a lane.
pub const LANES: usize = 118;
/// A lane is marked, so that the card says when it is there, after so much predicted work at the latest.
pub const MARK_NS: u64 = 200_000;

/// Places of the words that the agent reads from the file.
pub(crate) const BELL_AT: usize = 12;
pub(crate) const USED_AT: usize = 16;

/// Most work that is believed of one process, in nanoseconds: a minute.
const PENDING_MOST_NS: u64 = 60_000_000_000;

/// The file: a head and one row for each place of the account.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct TurnReports {
    magic: AtomicU64,
    version: AtomicU32,
    /// Rises when a process begins to wait or to work: the word that the agent sleeps on.
    bell: AtomicU32,
    /// One bit for each row that was ever used.
    used: [AtomicU64; MAX_SLOTS / 64],
    reserved: [AtomicU64; 510 - MAX_SLOTS / 64],
    rows: [TurnRow; MAX_SLOTS],
}

/// What one process says.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct TurnRow {
    reserved: [AtomicU64; 8],
    /// For each card when a thread of the process was last known to wait, on the monotonic clock; 0 when none waits.
    asked_ns: [AtomicU64; MAX_CARDS],
    lanes: [Lane; LANES],
}

/// Work of one stream.
#[derive(Debug)]
#[repr(C, align(32))]
pub struct Lane {
    /// Predicted work that was ever launched, in nanoseconds.
    pub launched_ns: AtomicU64,
    /// Of that, what is done; written by the card.
    pub done_ns: AtomicU64,
    /// Up to where the card was asked to write: what was launched behind it is at most [`MARK_NS`] or a little more, and
    /// nobody will say when it is done.
    pub marked_ns: AtomicU64,
    /// The card by its place in the grant, plus one; 0 for a lane that was never used.
    pub card: AtomicU32,
    reserved: AtomicU32,
}

const _: () = {
    assert!(size_of::<Lane>() == 32);
    assert!(size_of::<TurnRow>() == 4096);
    assert!(core::mem::offset_of!(TurnReports, bell) == BELL_AT);
    assert!(core::mem::offset_of!(TurnReports, used) == USED_AT);
    assert!(core::mem::offset_of!(TurnReports, rows) == 4096);
    assert!(core::mem::offset_of!(TurnRow, lanes) == 64 + 8 * MAX_CARDS);
};

/// What one process says of one card, as it was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TurnFigures {
    /// Sum of what its lanes ever launched, modulo 2^64: only a change means something.
    pub launched_ns: u64,
    /// Predicted work on the card, in nanoseconds, at most a minute.
    pub pending_ns: u64,
    /// The part of it that the card will say to be done.
    pub marked_ns: u64,
    /// When a thread last said that it waits, on the monotonic clock; 0 when none does.
    pub asked_ns: u64,
}

impl TurnReports {
    /// The page in a mapping, or nothing when the head is not that of this layout.
    ///
    /// # Safety
    /// - `page` is null, or aligned to 4096 and points to [`TURNS_SIZE`] readable and writable bytes that stay mapped
    ///   for `'a`.
    /// - Others change the bytes only by atomic operations.
    #[must_use]
    #[expect(unsafe_code, reason = "turns a mapping into the page that it holds")]
    pub unsafe fn from_ptr<'a>(page: *mut u8) -> Option<&'a Self> {
        if page.is_null() {
            return None;
        }
        // SAFETY: aligned, mapped and long enough by the caller's promise; every bit pattern is a valid value.
        let reports = unsafe { &*page.cast::<Self>() };
        let known = reports.magic.load(Ordering::Acquire) == TURNS_MAGIC
            && reports.version.load(Ordering::Relaxed) == TURNS_VERSION;
        known.then_some(reports)
    }

    /// The first bytes of a fresh page; the rest is zero.
    #[must_use]
    pub fn fresh_head() -> [u8; 12] {
        let mut head = [0; 12];
        let bytes = TURNS_MAGIC.to_le_bytes().into_iter().chain(TURNS_VERSION.to_le_bytes());
        head.iter_mut().zip(bytes).for_each(|(place, byte)| *place = byte);
        head
    }

    /// The word that the agent sleeps on.
    #[must_use]
    pub fn bell(&self) -> &AtomicU32 {
        &self.bell
    }

    /// Begins the row of a new process: what a dead one said there is forgotten.
    #[must_use]
    pub fn use_row(&self, slot: usize) -> Option<&TurnRow> {
        let row = self.rows.get(slot)?;
        for lane in &row.lanes {
            if lane.card.load(Ordering::Relaxed) != 0 {
                lane.card.store(0, Ordering::Relaxed);
                lane.launched_ns.store(0, Ordering::Relaxed);
                lane.marked_ns.store(0, Ordering::Relaxed);
                lane.done_ns.store(0, Ordering::Relaxed);
            }
        }
        for asked in &row.asked_ns {
            if asked.load(Ordering::Relaxed) != 0 {
                asked.store(0, Ordering::Relaxed);
            }
        }
        let bit = u32::try_from(slot % 64).unwrap_or_default();
        self.used
            .get(slot / 64)?
            .fetch_or(1_u64.wrapping_shl(bit), Ordering::AcqRel);
        Some(row)
    }
}

impl TurnRow {
    /// The lanes.
    #[must_use]
    pub fn lanes(&self) -> &[Lane; LANES] {
        &self.lanes
    }

    /// Says that a thread waits for a card, or with 0 that none does.
    pub fn ask(&self, card: usize, now_ns: u64) {
        if let Some(word) = self.asked_ns.get(card) {
            word.store(now_ns, Ordering::Release);
        }
    }

    /// What the process says of a card.
    #[must_use]
    pub fn read(&self, card: usize) -> TurnFigures {
        let Some(asked) = self.asked_ns.get(card) else {
            return TurnFigures::default();
        };
        let mut figures = TurnFigures {
            asked_ns: asked.load(Ordering::Acquire),
            ..TurnFigures::default()
        };
        let number = u32::try_from(card).unwrap_or(u32::MAX).saturating_add(1);
        for lane in &self.lanes {
            let of = lane.card.load(Ordering::Acquire);
            // Lanes are taken in order.
            if of == 0 {
                break;
            }
            if of == number {
                let (launched, pending) = lane.read();
                let add = |sum: u64, more: u64| sum.saturating_add(more).min(PENDING_MOST_NS);
                figures.launched_ns = figures.launched_ns.wrapping_add(launched);
                figures.pending_ns = add(figures.pending_ns, pending);
                figures.marked_ns = add(figures.marked_ns, lane.marked_pending_ns());
            }
        }
        figures
    }
}

impl Lane {
    /// What was ever launched, and what of it is on the card.
    #[must_use]
    pub fn read(&self) -> (u64, u64) {
        // In this order: what is launched between the two loads is seen as pending, never as done too early.
        let done = self.done_ns.load(Ordering::Acquire);
        let launched = self.launched_ns.load(Ordering::Acquire);
        (launched, launched.saturating_sub(done))
    }

    /// What is on the card and will be said to be done.
    #[must_use]
    pub fn marked_pending_ns(&self) -> u64 {
        let done = self.done_ns.load(Ordering::Acquire);
        self.marked_ns.load(Ordering::Acquire).saturating_sub(done)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
mod tests {
    use std::alloc::{Layout, alloc_zeroed, dealloc};

    use super::*;

    #[expect(unsafe_code, reason = "a page of its own")]
    fn with_page(check: impl FnOnce(&TurnReports)) {
        let layout = Layout::new::<TurnReports>();
        // SAFETY: allocated zeroed with the layout of the page, filled with its head, freed once.
        unsafe {
            let page = alloc_zeroed(layout);
            assert!(TurnReports::from_ptr(page).is_none(), "zeros are no page");
            let head = TurnReports::fresh_head();
            page.copy_from_nonoverlapping(head.as_ptr(), head.len());
            check(TurnReports::from_ptr(page).unwrap());
            dealloc(page, layout);
        }
    }

    #[test]
    fn a_row_sums_the_lanes_of_a_card() {
        with_page(|page| {
            let row = page.use_row(3).unwrap();
            assert_eq!(page.used[0].load(Ordering::Relaxed), 1 << 3);
            for (lane, (card, launched, done)) in row.lanes.iter().zip([(1, 500, 100), (2, 70, 0), (1, 30, 30)]) {
                lane.card.store(card, Ordering::Relaxed);
                lane.launched_ns.store(launched, Ordering::Relaxed);
                lane.marked_ns.store(launched / 2, Ordering::Relaxed);
                lane.done_ns.store(done, Ordering::Relaxed);
            }
            row.ask(1, 9);
            let (first, second) = (row.read(0), row.read(1));
            assert_eq!((first.launched_ns, first.pending_ns, first.asked_ns), (530, 400, 0));
            assert_eq!((first.marked_ns, second.marked_ns), (150, 35));
            assert_eq!((second.launched_ns, second.pending_ns, second.asked_ns), (70, 70, 9));
            assert_eq!(page.use_row(3).unwrap().read(0), TurnFigures::default());
        });
    }

    #[test]
    fn nothing_that_a_tenant_writes_is_more_than_wrong() {
        with_page(|page| {
            let row = page.use_row(0).unwrap();
            for lane in &row.lanes {
                lane.card.store(1, Ordering::Relaxed);
                lane.launched_ns.store(u64::MAX, Ordering::Relaxed);
            }
            assert_eq!(row.read(0).pending_ns, PENDING_MOST_NS);
            for lane in &row.lanes {
                lane.done_ns.store(u64::MAX, Ordering::Relaxed);
                lane.launched_ns.store(1, Ordering::Relaxed);
            }
            assert_eq!(row.read(0).pending_ns, 0);
            assert_eq!(row.read(usize::MAX), TurnFigures::default());
            assert!(page.use_row(MAX_SLOTS).is_none());
        });
    }
}
