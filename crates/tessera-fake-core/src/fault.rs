//! Faults and events that a test or a person injects.

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use crate::layout::{MAX_EVENTS, MAX_FAULTS};
use crate::machine::Machine;

/// What a rule does to the calls of one entry point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Entry point, exactly as exported.
    pub name: String,
    /// First call that is struck, counted from 1 over all processes.
    pub nth: u64,
    /// How many calls are struck.
    pub times: u64,
    /// Return code of a struck call; 0 only delays it.
    pub code: i32,
    /// Delay of a struck call in microseconds.
    pub delay_us: u64,
}

/// Why a rule was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultError {
    /// Too many rules stand already.
    #[error("{MAX_FAULTS} fault rules stand already; `tessera-simdriver reset` removes them")]
    TooMany,
    /// Not the name of an entry point.
    #[error("an entry point begins with `cu` or `nvml` and has at most 63 characters")]
    Name,
}

/// One raised event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XidEvent {
    /// Number of the event since the machine began.
    pub seq: u64,
    /// Card index.
    pub card: usize,
    /// Event type bit of the management library.
    pub kind: u64,
    /// XID or other data.
    pub data: u32,
}

/// Things that management libraries of real machines have been seen to do, as bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Odd(pub u32);

impl Odd {
    /// Every process is listed with pid 0.
    pub const ZERO_PID: Self = Self(1);
    /// Every process is listed with the pid of the machine's first process: a pid that was used again.
    pub const REUSED_PID: Self = Self(2);
    /// Samples have time stamps that go back.
    pub const TIME_BACK: Self = Self(4);

    /// Whether all of `other` is set.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

fn words(name: &str) -> [u64; 8] {
    let mut bytes = [0u8; 64];
    let len = name.len().min(63);
    bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
    std::array::from_fn(|i| {
        let mut word = [0u8; 8];
        word.copy_from_slice(&bytes[i * 8..i * 8 + 8]);
        u64::from_le_bytes(word)
    })
}

impl Machine {
    /// Puts a rule in force.
    ///
    /// # Errors
    /// The table is full or the name does not fit.
    pub fn add_fault(&self, fault: &Fault) -> Result<(), FaultError> {
        let known = fault.name.starts_with("cu") || fault.name.starts_with("nvml");
        if !known || fault.name.len() > 63 {
            return Err(FaultError::Name);
        }
        let state = self.state();
        let rule = state
            .faults
            .iter()
            .find(|r| r.state.compare_exchange(0, 1, SeqCst, SeqCst).is_ok())
            .ok_or(FaultError::TooMany)?;
        rule.code.store(fault.code, SeqCst);
        rule.nth.store(fault.nth.max(1), SeqCst);
        rule.times.store(fault.times, SeqCst);
        rule.calls.store(0, SeqCst);
        rule.delay_us.store(fault.delay_us, SeqCst);
        for (word, value) in rule.name.iter().zip(words(&fault.name)) {
            word.store(value, SeqCst);
        }
        rule.state.store(2, SeqCst);
        state.faults_armed.fetch_add(1, SeqCst);
        Ok(())
    }

    /// Counts a call of an entry point and returns the code it must fail with, if any.
    #[must_use]
    pub fn struck(&self, name: &str) -> Option<i32> {
        let state = self.state();
        if state.faults_armed.load(SeqCst) == 0 {
            return None;
        }
        let wanted = words(name);
        for rule in &state.faults {
            if rule.state.load(SeqCst) != 2 || !rule.name.iter().zip(wanted).all(|(w, v)| w.load(SeqCst) == v) {
                continue;
            }
            let call = rule.calls.fetch_add(1, SeqCst) + 1;
            let first = rule.nth.load(SeqCst);
            if call < first || call - first >= rule.times.load(SeqCst) {
                continue;
            }
            let delay = rule.delay_us.load(SeqCst);
            if delay > 0 {
                std::thread::sleep(Duration::from_micros(delay));
            }
            let code = rule.code.load(SeqCst);
            if code != 0 {
                return Some(code);
            }
        }
        None
    }

    /// How many calls of an entry point the rules for it have seen, over all processes; nothing without such a rule. A
    /// rule with code 0 and no delay only counts.
    #[must_use]
    pub fn calls_seen(&self, name: &str) -> Option<u64> {
        let wanted = words(name);
        self.state()
            .faults
            .iter()
            .filter(|rule| rule.state.load(SeqCst) == 2)
            .find(|rule| rule.name.iter().zip(wanted).all(|(w, v)| w.load(SeqCst) == v))
            .map(|rule| rule.calls.load(SeqCst))
    }

    /// Makes every management call fail with this code; 0 ends it.
    pub fn set_nvml_fault(&self, code: i32) {
        self.state().nvml_fault.store(code, SeqCst);
    }

    /// Makes the management library odd; nothing ends it.
    pub fn set_odd(&self, odd: Odd) {
        self.state().odd.store(odd.0, SeqCst);
    }

    /// How the management library is odd.
    #[must_use]
    pub fn odd(&self) -> Odd {
        Odd(self.state().odd.load(SeqCst))
    }

    pub(crate) fn odd_pid(&self, pid: u32) -> u32 {
        match self.odd() {
            odd if odd.contains(Odd::ZERO_PID) => 0,
            odd if odd.contains(Odd::REUSED_PID) => 1,
            _ => pid,
        }
    }

    /// Takes a card off the bus or puts it back.
    pub fn set_lost(&self, card: usize, lost: bool) {
        self.card_state(card).lost.store(u32::from(lost), SeqCst);
    }

    /// Raises an event for all waiters.
    pub fn raise(&self, card: usize, kind: u64, data: u32) -> u64 {
        let state = self.state();
        let seq = state.event_next.fetch_add(1, SeqCst) + 1;
        #[allow(clippy::cast_possible_truncation, reason = "a remainder of a small number")]
        let word = &state.events[(seq % MAX_EVENTS as u64) as usize];
        word.seq.store(0, SeqCst);
        word.kind.store(kind, SeqCst);
        word.body.store(((card as u64) << 32) | u64::from(data), SeqCst);
        word.seq.store(seq, SeqCst);
        if kind == 8 {
            self.card_state(card).last_xid.store(data, SeqCst);
        }
        state.event_bell.fetch_add(1, SeqCst);
        // SAFETY: the word lies in the mapping, which is never unmapped; waking has no other effect.
        unsafe {
            libc::syscall(libc::SYS_futex, state.event_bell.as_ptr(), libc::FUTEX_WAKE, i32::MAX);
        }
        seq
    }

    /// Number of the newest event.
    #[must_use]
    pub fn event_seq(&self) -> u64 {
        self.state().event_next.load(SeqCst)
    }

    fn event(&self, seq: u64) -> Option<XidEvent> {
        #[allow(clippy::cast_possible_truncation, reason = "a remainder of a small number")]
        let word = &self.state().events[(seq % MAX_EVENTS as u64) as usize];
        if word.seq.load(SeqCst) != seq {
            return None;
        }
        let body = word.body.load(SeqCst);
        let kind = word.kind.load(SeqCst);
        #[allow(clippy::cast_possible_truncation, reason = "the halves of the word")]
        (word.seq.load(SeqCst) == seq).then_some(XidEvent {
            seq,
            card: (body >> 32) as usize,
            kind,
            data: body as u32,
        })
    }

    /// Waits for the first event after `cursor` that `wanted` accepts, and moves the cursor
    /// behind it; nothing when the time is over.
    pub fn next_event(
        &self,
        cursor: &mut u64,
        timeout: Duration,
        wanted: &dyn Fn(&XidEvent) -> bool,
    ) -> Option<XidEvent> {
        let state = self.state();
        let deadline = Instant::now().checked_add(timeout);
        loop {
            let bell = state.event_bell.load(SeqCst);
            let newest = self.event_seq();
            *cursor = (*cursor).max(newest.saturating_sub(MAX_EVENTS as u64 - 1));
            while *cursor < newest {
                let Some(event) = self.event(*cursor + 1) else {
                    // Still being written (its bell comes), or overwritten meanwhile.
                    if newest - *cursor >= MAX_EVENTS as u64 - 1 {
                        *cursor += 1;
                        continue;
                    }
                    break;
                };
                *cursor += 1;
                if wanted(&event) {
                    return Some(event);
                }
            }
            let left = match deadline {
                None => Duration::from_secs(3600),
                Some(at) => at.checked_duration_since(Instant::now())?,
            };
            let wait = libc::timespec {
                tv_sec: libc::time_t::try_from(left.as_secs()).unwrap_or(3600),
                tv_nsec: libc::c_long::from(left.subsec_nanos()),
            };
            // SAFETY: the word lies in the mapping; `wait` outlives the call.
            unsafe {
                libc::syscall(
                    libc::SYS_futex,
                    state.event_bell.as_ptr(),
                    libc::FUTEX_WAIT,
                    bell,
                    &raw const wait,
                );
            }
        }
    }

    /// Ends all faults and puts lost cards back; memory, processes and partitions stay.
    pub fn reset_faults(&self) {
        let state = self.state();
        self.set_nvml_fault(0);
        self.set_odd(Odd::default());
        for rule in &state.faults {
            rule.state.store(0, SeqCst);
        }
        state.faults_armed.store(0, SeqCst);
        for card in 0..self.cards() {
            self.set_lost(card, false);
            self.card_state(card).last_xid.store(0, SeqCst);
        }
    }
}
