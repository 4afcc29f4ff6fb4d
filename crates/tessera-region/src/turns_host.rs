//! The agent's side of shared time: gates out, reports in.

use core::mem::MaybeUninit;
use std::{fs::File, os::unix::fs::FileExt as _, path::Path, sync::atomic::Ordering};

use crate::{
    CardGrant, MAX_SLOTS, TURNS_SIZE, TurnFigures, TurnReports, TurnRow, VERDICT_SIZE, Verdict, VerdictCard,
    fs::GrantDir,
    swap_host::{Mapping, SwapHostError},
    turns::{BELL_AT, USED_AT},
};

/// Size of the head and of a row in bytes.
const ROW_SIZE: usize = size_of::<TurnRow>();

/// Why the pages of a container are not to be had.
pub type TurnsHostError = SwapHostError;

/// The pages of one container.
///
/// The reports are read as a file, not through a mapping: a tenant could make the file shorter, and a mapping would then
/// end the agent. The mapping only gives the system an address to wait on.
pub struct TurnsHost {
    verdict: Mapping,
    reports: File,
    bell: Mapping,
}

impl core::fmt::Debug for TurnsHost {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("TurnsHost").finish_non_exhaustive()
    }
}

// SAFETY: the verdict is atomics in shared memory, the bell is never read through its mapping, and mappings are given
// back once.
#[expect(unsafe_code, reason = "mappings may go from thread to thread")]
unsafe impl Send for TurnsHost {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "the page is atomics")]
unsafe impl Sync for TurnsHost {}

/// What the head of the reports says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TurnsHead {
    /// Value of the bell.
    pub bell: u32,
    used: [u64; MAX_SLOTS / 64],
}

impl TurnsHead {
    /// Places of the account whose process ever said something.
    pub fn slots(&self) -> impl Iterator<Item = usize> + '_ {
        let bit = |word: u64, n: usize| word.wrapping_shr(u32::try_from(n).unwrap_or_default()) & 1 == 1;
        self.used.iter().enumerate().flat_map(move |(at, word)| {
            (0..64)
                .filter(move |n| bit(*word, *n))
                .map(move |n| at.saturating_mul(64).saturating_add(n))
        })
    }
}

impl TurnsHost {
    /// Opens the pages of a grant.
    ///
    /// # Errors
    /// [`TurnsHostError`]: no such pages, or not of this version.
    #[expect(unsafe_code, reason = "looks at a mapping")]
    pub fn open(dir: &GrantDir) -> Result<Self, TurnsHostError> {
        let no_page = |path: &Path| TurnsHostError::NoPage(path.to_path_buf());
        let verdict = Mapping::of(&dir.verdict_file(), VERDICT_SIZE)?;
        // SAFETY: a fresh mapping of the full size, aligned to a page.
        if unsafe { Verdict::from_ptr(verdict.page()) }.is_none() {
            return Err(no_page(&dir.verdict_file()));
        }
        let path = dir.turns_file();
        let bell = Mapping::of(&path, ROW_SIZE)?;
        let reports = File::open(&path).map_err(|source| TurnsHostError::Io {
            path: path.clone(),
            source,
        })?;
        let mut head = [0; 12];
        if reports.read_exact_at(&mut head, 0).is_err() || head != TurnReports::fresh_head() {
            return Err(no_page(&path));
        }
        Ok(Self { verdict, reports, bell })
    }

    #[expect(unsafe_code, reason = "looks at a mapping")]
    fn verdict(&self) -> Option<&Verdict> {
        // SAFETY: mapped as long as this lives. The head was checked; the agent alone can write it.
        unsafe { Verdict::from_ptr(self.verdict.page()) }
    }

    /// Says that the agent is alive.
    pub fn beat(&self, now_ns: u64) {
        if let Some(verdict) = self.verdict() {
            verdict.beat(now_ns);
        }
    }

    /// Generation of the grant that is in force.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.verdict().map_or(0, Verdict::grant_generation)
    }

    /// The words of a card, by its place in the grant.
    #[must_use]
    pub fn card(&self, card: usize) -> Option<&VerdictCard> {
        self.verdict()?.card(card)
    }

    /// Puts a gate in force and wakes who waits at it.
    #[expect(unsafe_code, reason = "wakes waiters")]
    pub fn set_gate(&self, card: usize, gate: u32) {
        let Some(words) = self.card(card) else { return };
        if words.gate.swap(gate, Ordering::AcqRel) != gate {
            words.turn.fetch_add(1, Ordering::Relaxed);
            // SAFETY: the word lies in a live mapping; waking has no other effect.
            unsafe { libc::syscall(libc::SYS_futex, words.gate.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
        }
    }

    /// Whether one of these cards has a gate.
    #[must_use]
    pub fn wanted(cards: &[CardGrant]) -> bool {
        cards.iter().any(CardGrant::is_gated)
    }

    /// What the head says; nothing when the tenant broke its file.
    #[must_use]
    pub fn head(&self) -> Option<TurnsHead> {
        let mut bytes = [0; USED_AT + MAX_SLOTS / 8];
        self.reports.read_exact_at(&mut bytes, 0).ok()?;
        let bell = u32::from_le_bytes(*bytes.get(BELL_AT..)?.first_chunk()?);
        let mut used = [0; MAX_SLOTS / 64];
        for (word, bytes) in used.iter_mut().zip(bytes.get(USED_AT..)?.chunks_exact(8)) {
            *word = u64::from_le_bytes(*bytes.first_chunk()?);
        }
        Some(TurnsHead { bell, used })
    }

    /// Address of the bell, to wait on.
    #[must_use]
    pub fn bell(&self) -> *const u32 {
        self.bell.page().wrapping_add(BELL_AT).cast_const().cast()
    }

    /// What the process at a place of the account says of a card, by its place in the grant.
    #[must_use]
    #[expect(unsafe_code, reason = "reads a row as it lies in the file")]
    pub fn figures(&self, slot: usize, card: usize) -> Option<TurnFigures> {
        let at = ROW_SIZE.checked_mul(slot.checked_add(1)?)?;
        if at >= TURNS_SIZE {
            return None;
        }
        let mut row = MaybeUninit::<TurnRow>::zeroed();
        // SAFETY: the bytes of the row, all initialised to zero.
        let bytes = unsafe { core::slice::from_raw_parts_mut(row.as_mut_ptr().cast::<u8>(), ROW_SIZE) };
        self.reports.read_exact_at(bytes, u64::try_from(at).ok()?).ok()?;
        // SAFETY: initialised, and every bit pattern is valid.
        Some(unsafe { row.assume_init_ref() }.read(card))
    }
}

/// Begins the reports of a container anew, in place: whoever waits on the bell goes on doing so. The tenant's processes
/// are gone.
///
/// # Errors
/// The system's.
pub(crate) fn clear(file: &File) -> std::io::Result<()> {
    // A row at a time, and only those that were used, so that the file stays sparse.
    let size = u64::try_from(TURNS_SIZE).unwrap_or(u64::MAX);
    if file.metadata()?.len() != size {
        file.set_len(size)?;
    }
    let mut head = [0; ROW_SIZE];
    file.read_exact_at(&mut head, 0)?;
    let zeros = [0; ROW_SIZE];
    for slot in 0..MAX_SLOTS {
        let byte = head.get(USED_AT.saturating_add(slot / 8)).copied().unwrap_or(0);
        if byte >> (slot % 8) & 1 == 1 {
            let at = ROW_SIZE.saturating_mul(slot.saturating_add(1));
            file.write_all_at(&zeros, u64::try_from(at).unwrap_or(u64::MAX))?;
        }
    }
    let mut fresh = [0; ROW_SIZE];
    let known = TurnReports::fresh_head();
    fresh.iter_mut().zip(known).for_each(|(place, byte)| *place = byte);
    file.write_all_at(&fresh, 0)
}

/// Sleeps until one of the bells no longer has its value, for at most so long. May return early.
///
/// At most 128 bells are watched; a system without a wait for several words sleeps for at most 2 ms instead.
#[expect(unsafe_code, reason = "waits for words that others change")]
pub fn wait_for_bells(bells: &[(*const u32, u32)], most_ns: u64) {
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Waiter {
        value: u64,
        address: u64,
        flags: u32,
        reserved: u32,
    }
    const SIZE_U32: u32 = 2;
    const MOST: usize = 128;
    let until = crate::swap_host::monotonic_ns().saturating_add(most_ns);
    let time = |ns: u64| libc::timespec {
        tv_sec: i64::try_from(ns / 1_000_000_000).unwrap_or_default(),
        tv_nsec: i64::try_from(ns % 1_000_000_000).unwrap_or_default(),
    };
    let none = Waiter {
        value: 0,
        address: 0,
        flags: 0,
        reserved: 0,
    };
    let mut waiters = [none; MOST];
    let mut count: u32 = 0;
    for (place, (bell, value)) in waiters.iter_mut().zip(bells) {
        *place = Waiter {
            value: u64::from(*value),
            address: u64::try_from(bell.expose_provenance()).unwrap_or_default(),
            flags: SIZE_U32,
            reserved: 0,
        };
        count = count.saturating_add(1);
    }
    let absolute = time(until);
    if count > 0 {
        // SAFETY: words in live mappings, a valid absolute time.
        let result = unsafe {
            libc::syscall(
                libc::SYS_futex_waitv,
                waiters.as_ptr(),
                count,
                0,
                &raw const absolute,
                libc::CLOCK_MONOTONIC,
            )
        };
        let error = std::io::Error::last_os_error().raw_os_error();
        if result >= 0 || matches!(error, Some(libc::EAGAIN | libc::ETIMEDOUT | libc::EINTR)) {
            return;
        }
    }
    let nap = time(if count == 0 { most_ns } else { most_ns.min(2_000_000) });
    // SAFETY: a valid time; no place for the rest.
    unsafe { libc::nanosleep(&raw const nap, core::ptr::null_mut()) };
}
