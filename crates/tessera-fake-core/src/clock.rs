//! Time of the machine.
//!
//! By default it is the system's monotonic clock, which all processes of one kernel share, or a
//! multiple of it. A *virtual* clock belongs to the machine: it stands while a process of the
//! machine computes, and jumps to the earliest time that anybody waits for once nobody does.
//! Simulated work then costs no real time, and a busy host does not make it longer.
//!
//! No process is asked to take part. Whoever waits looks whether the others still run, by what
//! the system says of their threads, and moves the clock itself. So a process may die, be
//! stopped, or sleep on something else, and the clock goes on without it; one that computes for
//! [`PATIENCE`] without a call of the driver is not waited for either.

use std::sync::atomic::Ordering::{Acquire, SeqCst};
use std::time::{Duration, Instant};

use crate::layout::State;
use crate::machine::Machine;
use crate::process::Process;

/// Length of one utilisation sample: a sixth of a second.
pub const SAMPLE_NS: u64 = 1_000_000_000 / 6;

/// Real time for which the virtual clock waits for a process that computes and calls nothing.
const PATIENCE: Duration = Duration::from_secs(1);
/// How far the launches of a process may run ahead of the virtual clock.
const AHEAD_NS: u64 = 100_000;

pub(crate) const WALL: u32 = 0;
pub(crate) const DRIVEN: u32 = 1;
pub(crate) const SCALED: u32 = 2;
pub(crate) const VIRTUAL: u32 = 3;

fn read(clock: libc::clockid_t) -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid place for the result; the call has no other effect.
    unsafe { libc::clock_gettime(clock, &raw mut now) };
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// The system's monotonic clock in nanoseconds.
pub(crate) fn monotonic_ns() -> u64 {
    read(libc::CLOCK_MONOTONIC)
}

/// Wall-clock time in microseconds since 1970, as the management library stamps samples.
#[must_use]
pub fn real_us() -> u64 {
    read(libc::CLOCK_REALTIME) / 1000
}

impl State {
    pub(crate) fn now_ns(&self) -> u64 {
        match self.clock_mode.load(Acquire) {
            WALL => monotonic_ns(),
            SCALED => {
                let passed = u128::from(monotonic_ns().saturating_sub(self.clock_base));
                let scaled = passed * u128::from(self.clock_scale.max(1)) / 1000;
                self.clock_base
                    .saturating_add(u64::try_from(scaled).unwrap_or(u64::MAX))
            }
            _ => self.clock_ns.load(Acquire),
        }
    }

    /// Moves a clock of the machine's own forward, never back, and wakes who waits.
    fn move_clock(&self, to: u64) {
        self.clock_ns.fetch_max(to, SeqCst);
        self.clock_bell.fetch_add(1, SeqCst);
        // SAFETY: the word lies in the mapping, which is never unmapped; waking has no other effect.
        unsafe {
            libc::syscall(libc::SYS_futex, self.clock_bell.as_ptr(), libc::FUTEX_WAKE, i32::MAX);
        }
    }

    fn doze(&self, bell: u32, time: Duration) {
        let wait = libc::timespec {
            tv_sec: 0,
            tv_nsec: libc::c_long::from(time.subsec_nanos()),
        };
        // SAFETY: the word lies in the mapping; `wait` outlives the call.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                self.clock_bell.as_ptr(),
                libc::FUTEX_WAIT,
                bell,
                &raw const wait,
            );
        }
    }
}

/// Whether a thread of a process computes; `except` is left out.
fn computes(pid: u32, except: Option<i32>) -> bool {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return false;
    };
    tasks.filter_map(Result::ok).any(|task| {
        if except.is_some_and(|tid| task.file_name().to_str() == Some(tid.to_string().as_str())) {
            return false;
        }
        let text = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        // The state follows the name, which is in brackets and may contain anything.
        let state = text
            .rsplit(')')
            .next()
            .and_then(|rest| rest.trim_start().chars().next());
        matches!(state, Some('R' | 'D'))
    })
}

impl Machine {
    pub(crate) fn start_clock(&self, mode: u32) {
        // A time of its own begins at a second, so that "before" is never below zero.
        self.state().clock_ns.store(1_000_000_000, SeqCst);
        self.state().clock_mode.store(mode, SeqCst);
    }

    /// Puts the clock into the caller's hand: from now on it moves by [`Machine::advance`] alone.
    pub fn drive_clock(&self) {
        self.state().clock_ns.fetch_max(self.now_ns(), SeqCst);
        self.state().clock_mode.store(DRIVEN, SeqCst);
    }

    /// Moves a clock that is driven, or virtual, forward.
    pub fn advance(&self, by_ns: u64) {
        let state = self.state();
        if state.clock_mode.load(SeqCst) == DRIVEN || self.is_virtual() {
            state.move_clock(state.clock_ns.load(SeqCst).saturating_add(by_ns));
        }
    }

    /// Whether time passes by events.
    #[must_use]
    pub fn is_virtual(&self) -> bool {
        self.state().clock_mode.load(Acquire) == VIRTUAL
    }

    /// What the others keep the virtual clock from: nothing, or the reason to look again. The
    /// answer is the earliest time that a live process waits for.
    fn earliest_wait(&self, own: usize) -> Result<u64, Busy> {
        let state = self.state();
        let now = state.clock_ns.load(SeqCst);
        let mut earliest = u64::MAX;
        // SAFETY: gettid cannot fail.
        let me = i32::try_from(unsafe { libc::syscall(libc::SYS_gettid) }).unwrap_or(0);
        for slot in 0..self.slots_high() {
            let entry = &state.slots[slot];
            if entry.state.load(SeqCst) & 1 == 0 {
                continue;
            }
            let pid = if slot == own {
                std::process::id()
            } else {
                match self.owner(slot) {
                    None => continue,
                    Some(pid) => pid,
                }
            };
            let calls = entry.calls.load(SeqCst);
            let waits = entry.waits_for.load(SeqCst);
            // One whose time has come is about to run; one of another pid namespace cannot be looked at.
            let woken = waits != 0 && waits <= now && slot != own;
            if woken || (pid != 0 && computes(pid, (slot == own).then_some(me))) || (pid == 0 && waits == 0) {
                return Err(Busy { slot, calls });
            }
            if waits != 0 {
                earliest = earliest.min(waits);
            }
        }
        Ok(earliest)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Busy {
    slot: usize,
    calls: u64,
}

impl Process {
    /// Waits until a point of the machine's time. The caller holds no lock that another thread needs.
    pub fn sleep_until(&self, at_ns: u64) {
        let machine = self.machine();
        if machine.is_virtual() {
            self.sleep_virtually(at_ns);
            return;
        }
        loop {
            let state = machine.state();
            let bell = state.clock_bell.load(SeqCst);
            let now = machine.now_ns();
            if now >= at_ns {
                return;
            }
            let left = at_ns - now;
            match state.clock_mode.load(Acquire) {
                DRIVEN => state.doze(bell, Duration::from_millis(5)),
                // The rest is spun: a sleep ends late by about the timer slack.
                WALL if left > 60_000 => std::thread::sleep(Duration::from_nanos((left - 50_000).min(5_000_000))),
                SCALED if left > 60_000 => {
                    let real = u128::from(left - 50_000) * 1000 / u128::from(state.clock_scale.max(1));
                    let real = u64::try_from(real).unwrap_or(u64::MAX);
                    std::thread::sleep(Duration::from_nanos(real.min(5_000_000)));
                }
                _ => std::hint::spin_loop(),
            }
        }
    }

    fn sleep_virtually(&self, at_ns: u64) {
        let machine = self.machine();
        let state = machine.state();
        if state.now_ns() >= at_ns {
            return;
        }
        self.wait_list(|list| list.push(at_ns));
        let mut blocked: Option<(Busy, Instant)> = None;
        loop {
            let bell = state.clock_bell.load(SeqCst);
            if state.now_ns() >= at_ns {
                break;
            }
            match machine.earliest_wait(self.slot()) {
                // Looked at one after the other, so a process may have begun to run behind the look;
                // a second look that finds the same is taken.
                Ok(first) if machine.earliest_wait(self.slot()).is_ok_and(|again| again == first) => {
                    state.move_clock(first.min(at_ns));
                }
                Ok(_) => {}
                Err(busy) => match blocked {
                    Some((before, since)) if before == busy => {
                        if since.elapsed() >= PATIENCE {
                            state.move_clock(at_ns.min(state.now_ns().saturating_add(1_000_000)));
                            continue;
                        }
                        state.doze(bell, Duration::from_micros(100));
                    }
                    _ => {
                        blocked = Some((busy, Instant::now()));
                        state.doze(bell, Duration::from_micros(50));
                    }
                },
            }
        }
        self.wait_list(|list| {
            if let Some(at) = list.iter().position(|t| *t == at_ns) {
                list.swap_remove(at);
            }
        });
    }

    fn wait_list(&self, change: impl FnOnce(&mut Vec<u64>)) {
        let mut list = self.waits().lock().unwrap_or_else(|e| e.into_inner());
        change(&mut list);
        let first = list.iter().min().copied().unwrap_or(0);
        self.machine().state().slots[self.slot()].waits_for.store(first, SeqCst);
    }

    /// Counts a call of the driver, so that others see that this process goes on.
    pub fn tick(&self) {
        self.machine().state().slots[self.slot()].calls.fetch_add(1, SeqCst);
    }

    /// What a question costs that was answered "not yet": a program that asks again and again
    /// would otherwise keep a virtual clock from ever reaching what it asks for.
    pub fn polled(&self, at_ns: u64) {
        let machine = self.machine();
        if machine.is_virtual() {
            let step = machine.state().launch_ns.max(1000);
            self.sleep_until((machine.now_ns() + step).min(at_ns.max(machine.now_ns() + 1)));
        }
    }

    /// Charges the host time of one launch where the clock is virtual, and holds a process back
    /// that is too far ahead of it. Returns the process's own time, which is never behind the clock.
    pub fn launch_time(&self) -> u64 {
        let machine = self.machine();
        let now = machine.now_ns();
        if !machine.is_virtual() {
            return now;
        }
        let cost = machine.state().launch_ns;
        let own = self.lead().fetch_max(now, SeqCst).max(now) + cost;
        self.lead().fetch_max(own, SeqCst);
        if own > now + AHEAD_NS {
            self.sleep_until(own - AHEAD_NS / 2);
        }
        own
    }
}
