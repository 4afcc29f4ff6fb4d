//! The agent's side of shared time: gates out, reports in.

use std::{path::Path, sync::atomic::Ordering};

use crate::{
    CardGrant, TURNS_SIZE, TurnFigures, TurnReports, VERDICT_SIZE, Verdict, VerdictCard,
    fs::GrantDir,
    swap_host::{Mapping, SwapHostError},
};

/// Why the pages of a container are not to be had.
pub type TurnsHostError = SwapHostError;

/// The pages of one container, mapped.
pub struct TurnsHost {
    verdict: Mapping,
    reports: Mapping,
}

impl core::fmt::Debug for TurnsHost {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("TurnsHost").finish_non_exhaustive()
    }
}

// SAFETY: the pages are atomics in shared memory, and the mappings are given back once.
#[expect(unsafe_code, reason = "mappings may go from thread to thread")]
unsafe impl Send for TurnsHost {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "the pages are atomics")]
unsafe impl Sync for TurnsHost {}

impl TurnsHost {
    /// Maps the pages of a grant.
    ///
    /// # Errors
    /// [`TurnsHostError`]: no such pages, or not of this version.
    #[expect(unsafe_code, reason = "looks at a mapping")]
    pub fn open(dir: &GrantDir) -> Result<Self, TurnsHostError> {
        let no_page = |path: &Path| TurnsHostError::NoPage(path.to_path_buf());
        let verdict = Mapping::of(&dir.verdict_file(), VERDICT_SIZE)?;
        let reports = Mapping::of(&dir.turns_file(), TURNS_SIZE)?;
        // SAFETY: fresh mappings of the full size, aligned to a page.
        if unsafe { Verdict::from_ptr(verdict.page()) }.is_none() {
            return Err(no_page(&dir.verdict_file()));
        }
        // SAFETY: as above.
        if unsafe { TurnReports::from_ptr(reports.page()) }.is_none() {
            return Err(no_page(&dir.turns_file()));
        }
        Ok(Self { verdict, reports })
    }

    #[expect(unsafe_code, reason = "looks at a mapping")]
    fn verdict(&self) -> Option<&Verdict> {
        // SAFETY: mapped as long as this lives. The head was checked; the agent alone can write it.
        unsafe { Verdict::from_ptr(self.verdict.page()) }
    }

    #[expect(unsafe_code, reason = "looks at a mapping")]
    fn reports(&self) -> Option<&TurnReports> {
        // SAFETY: mapped as long as this lives. A tenant that breaks the head loses its turns.
        unsafe { TurnReports::from_ptr(self.reports.page()) }
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

    /// The word that is rung, and its value.
    #[must_use]
    pub fn bell(&self) -> Option<(*const u32, u32)> {
        let bell = self.reports()?.bell();
        Some((bell.as_ptr().cast_const(), bell.load(Ordering::Acquire)))
    }

    /// What each process of the container says of a card that it uses: its place in the account, and its figures.
    /// Processes that say nothing are left out.
    pub fn figures(&self, card: usize) -> impl Iterator<Item = (usize, TurnFigures)> + '_ {
        let rows = self.reports().map_or(0, TurnReports::rows_used);
        (0..rows).filter_map(move |slot| {
            let figures = self.reports()?.row(slot)?.read(card);
            (figures != TurnFigures::default()).then_some((slot, figures))
        })
    }
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
