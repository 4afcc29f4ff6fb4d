//! Time of the machine.
//!
//! The clock is a word of the shared state so that a test can drive it; by default it is the
//! system's monotonic clock, which all processes of one kernel share.

use std::sync::atomic::Ordering::Acquire;

use crate::layout::State;

/// Length of one utilisation sample: a sixth of a second.
pub const SAMPLE_NS: u64 = 1_000_000_000 / 6;

fn read(clock: libc::clockid_t) -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid place for the result; the call has no other effect.
    unsafe { libc::clock_gettime(clock, &raw mut now) };
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// Wall-clock time in microseconds since 1970, as the management library stamps samples.
#[must_use]
pub fn real_us() -> u64 {
    read(libc::CLOCK_REALTIME) / 1000
}

impl State {
    pub(crate) fn now_ns(&self) -> u64 {
        if self.clock_mode.load(Acquire) == 0 {
            read(libc::CLOCK_MONOTONIC)
        } else {
            self.clock_ns.load(Acquire)
        }
    }
}
