//! The verdict: words that the agent changes while a container runs. Read-only inside the container.
//!
//! The page is mapped once and written in place, so each word stands for itself; a reader needs no lock and no copy.
//! A fresh page, all zero but for its head, means: gate open, nothing measured yet.

use crate::{
    MAX_CARDS,
    sync::{AtomicU32, AtomicU64, Ordering},
};

/// First eight bytes of a verdict: `TSRVERDI`.
pub const VERDICT_MAGIC: u64 = u64::from_le_bytes(*b"TSRVERDI");
/// Layout that this crate reads and writes.
pub const VERDICT_VERSION: u32 = 1;
/// Bit of [`VerdictCard::gate`]: launches wait.
pub const GATE_CLOSED: u32 = 1;
/// Bit of [`VerdictCard::gate`]: the first launch of a process that had nothing on the card is told to the agent.
pub const GATE_RING: u32 = 1 << 1;
/// Bit of [`VerdictCard::gate`]: at most two launches of one process on the card at a time, because somebody more
/// important may come.
pub const GATE_BRIEF: u32 = 1 << 2;
/// Predicted work of one process on the card at a time, in nanoseconds, where the agent says nothing else.
pub const MOST_NS: u64 = 2_000_000;
/// An agent that was not heard for so long is taken for dead.
pub const SILENCE_NS: u64 = 1_000_000_000;
/// Size of the file in bytes: [`Verdict`] rounded up to a page.
#[cfg(not(loom))]
pub const VERDICT_SIZE: usize = size_of::<Verdict>().next_multiple_of(4096);
/// Not a file under the model checker.
#[cfg(loom)]
pub const VERDICT_SIZE: usize = 4096;

/// The page.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Verdict {
    magic: AtomicU64,
    version: AtomicU32,
    size: AtomicU32,
    grant_generation: AtomicU64,
    heartbeat_ns: AtomicU64,
    reserved: [AtomicU64; 4],
    cards: [VerdictCard; MAX_CARDS],
}

/// The words of one card, one cache line. Its index is the card's position in the grant.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct VerdictCard {
    /// 0: launches run. With [`GATE_CLOSED`] they wait (futex) for a change of this word; with [`GATE_RING`] and without
    /// it they run, and a process that had nothing on the card rings before it begins; [`GATE_BRIEF`] keeps them few.
    pub gate: AtomicU32,
    /// Number of the present turn.
    pub turn: AtomicU32,
    /// Device time allowed so far, cumulative, in nanoseconds.
    pub allowed_ns: AtomicU64,
    /// When the present turn is expected to end, in nanoseconds of the monotonic clock.
    pub turn_end_ns: AtomicU64,
    /// What the driver holds for this container beyond its account, in bytes.
    pub overhead_bytes: AtomicU64,
    /// Most predicted work of one process on the card at a time, in nanoseconds; 0 means [`MOST_NS`].
    pub most_ns: AtomicU64,
    /// Whose rings at the doorbell count here, one bit for each place; see [`RingPage`](crate::RingPage).
    pub heed: AtomicU64,
    /// Rings of the card's doorbell that the agent has taken into account in its gates.
    pub answered: AtomicU32,
    /// Place of this container at the doorbell, plus one; 0 for one that may not ring.
    pub ring_place: AtomicU32,
    reserved: AtomicU64,
}

impl Verdict {
    /// The verdict in a mapping, or nothing when the head is not that of a verdict of this layout.
    ///
    /// # Safety
    /// - `page` is aligned to 64 and points to [`VERDICT_SIZE`] readable bytes that stay mapped for `'a`.
    /// - Other processes change the bytes only by atomic stores.
    #[cfg(not(loom))]
    #[must_use]
    #[expect(unsafe_code, reason = "turns a mapping into the page that it holds")]
    pub unsafe fn from_ptr<'a>(page: *const u8) -> Option<&'a Self> {
        if page.is_null() {
            return None;
        }
        // SAFETY: aligned, readable and long enough by the caller's promise; every bit pattern is a valid value.
        let verdict = unsafe { &*page.cast::<Self>() };
        let known = verdict.magic.load(Ordering::Acquire) == VERDICT_MAGIC
            && verdict.version.load(Ordering::Relaxed) == VERDICT_VERSION;
        known.then_some(verdict)
    }

    /// The bytes of a fresh verdict for a grant of this generation.
    #[cfg(all(feature = "fs", not(loom)))]
    pub(crate) fn fresh(grant_generation: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(VERDICT_SIZE);
        bytes.extend_from_slice(&VERDICT_MAGIC.to_le_bytes());
        bytes.extend_from_slice(&VERDICT_VERSION.to_le_bytes());
        bytes.extend_from_slice(&u32::try_from(VERDICT_SIZE).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend_from_slice(&grant_generation.to_le_bytes());
        bytes.resize(VERDICT_SIZE, 0);
        bytes
    }

    /// Generation of the grant that is now in force; a reader that knows another one reads the grant again.
    #[must_use]
    pub fn grant_generation(&self) -> u64 {
        self.grant_generation.load(Ordering::Acquire)
    }

    /// When the agent last looked, in nanoseconds of the monotonic clock; 0 before the first time.
    #[must_use]
    pub fn heartbeat_ns(&self) -> u64 {
        self.heartbeat_ns.load(Ordering::Acquire)
    }

    /// Says that the agent is alive.
    pub fn beat(&self, now_ns: u64) {
        self.heartbeat_ns.store(now_ns, Ordering::Release);
    }

    /// Whether the agent was heard lately.
    #[must_use]
    pub fn is_heard(&self, now_ns: u64) -> bool {
        let heard = self.heartbeat_ns();
        heard != 0 && now_ns.saturating_sub(heard) <= SILENCE_NS
    }

    /// The words of a card; nothing beyond the last.
    #[must_use]
    pub fn card(&self, index: usize) -> Option<&VerdictCard> {
        self.cards.get(index)
    }

    /// Byte offset of the word behind [`Verdict::grant_generation`].
    #[cfg(all(feature = "fs", not(loom)))]
    pub(crate) const GRANT_GENERATION_AT: u64 = 16;
}

#[cfg(not(loom))]
const _: () = {
    assert!(size_of::<VerdictCard>() == 64);
    assert!(size_of::<Verdict>() == 64 + 64 * MAX_CARDS);
    assert!(core::mem::offset_of!(Verdict, grant_generation) == 16);
    assert!(core::mem::offset_of!(Verdict, cards) == 64);
};
