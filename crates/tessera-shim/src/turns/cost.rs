//! How long work takes: a small table by function (or executable graph), learned from now and then a pair of events.
//!
//! Used only to bound what is on the card at a time, and for pacing without an agent. Turns themselves are measured by
//! the wall clock.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::{
    codes::SUCCESS,
    memory::Form,
    place::current_context,
    symbol::{cuEventCreate, cuEventDestroy_v2, cuEventElapsedTime, cuEventQuery, cuEventRecord, cuEventRecord_ptsz},
};

/// What unknown work is taken for.
pub(super) const UNKNOWN_NS: u64 = 50_000;
const BITS: u32 = 12;
const LEAST_NS: u64 = 1_000;
const MOST_NS: u64 = 10_000_000_000;
/// One in so many marks is measured once the function is known.
const ONE_IN: u32 = 16;

#[repr(C)]
struct Cost {
    function: AtomicU64,
    ns: AtomicU64,
}

/// The table. Valid when zero. A function that falls on another's place takes it over and is learned anew.
#[repr(C)]
pub(super) struct Costs {
    places: [Cost; 1 << BITS],
    sample: Sample,
    marks: AtomicU32,
}

/// The one measurement that is under way.
#[repr(C)]
struct Sample {
    phase: AtomicU32,
    function: AtomicU64,
    context: AtomicU64,
    start: AtomicU64,
    end: AtomicU64,
}

const IDLE: u32 = 0;
const TAKEN: u32 = 1;
const FLYING: u32 = 2;

impl Costs {
    fn place(&self, function: u64) -> Option<&Cost> {
        let hash = function
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .wrapping_shr(u64::BITS - BITS);
        self.places.get(usize::try_from(hash).ok()?)
    }

    /// Predicted time of a function in nanoseconds; 0 when nothing is known.
    #[inline]
    pub(super) fn of(&self, function: u64) -> u64 {
        match self.place(function) {
            Some(place) if place.function.load(Ordering::Relaxed) == function => place.ns.load(Ordering::Relaxed),
            _ => 0,
        }
    }

    /// Takes a measured time into account.
    fn learn(&self, function: u64, measured_ns: u64) {
        let Some(place) = self.place(function) else { return };
        let measured = measured_ns.clamp(LEAST_NS, MOST_NS);
        let old = self.of(function);
        place.function.store(function, Ordering::Relaxed);
        place.ns.store(average(old, measured), Ordering::Relaxed);
    }

    /// Begins to measure a launch if it is its turn; the stream is not capturing. The answer is whether
    /// [`Costs::end`] is to be called behind the launch.
    #[cold]
    pub(super) fn begin(&self, function: u64, stream: u64, form: Form) -> bool {
        let marks = self.marks.fetch_add(1, Ordering::Relaxed);
        if self.of(function) != 0 && !marks.is_multiple_of(ONE_IN) {
            return false;
        }
        let sample = &self.sample;
        if sample
            .phase
            .compare_exchange(IDLE, TAKEN, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            return false;
        }
        sample.function.store(function, Ordering::Relaxed);
        if sample.ready(current_context()) && record(sample.start.load(Ordering::Relaxed), stream, form) {
            return true;
        }
        sample.phase.store(IDLE, Ordering::Release);
        false
    }

    /// Ends what [`Costs::begin`] began.
    pub(super) fn end(&self, launched: bool, stream: u64, form: Form) {
        let sample = &self.sample;
        let flies = launched && record(sample.end.load(Ordering::Relaxed), stream, form);
        sample.phase.store(if flies { FLYING } else { IDLE }, Ordering::Release);
    }

    /// Reads the measurement that is under way, if it is complete.
    #[cold]
    pub(super) fn collect(&self) {
        let sample = &self.sample;
        if sample.phase.load(Ordering::Relaxed) != FLYING {
            return;
        }
        if sample
            .phase
            .compare_exchange(FLYING, TAKEN, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            return;
        }
        let (start, end) = (sample.start.load(Ordering::Relaxed), sample.end.load(Ordering::Relaxed));
        let mut ms = 0.0_f32;
        // SAFETY: events made by `ready`, a place for the answer.
        let code = unsafe {
            match cuEventQuery(end) {
                SUCCESS => cuEventElapsedTime(&raw mut ms, start, end),
                other => other,
            }
        };
        const NOT_READY: i32 = 600;
        if code == SUCCESS && ms.is_finite() && ms >= 0.0 {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "not negative, and it saturates"
            )]
            let ns = (f64::from(ms) * 1e6) as u64;
            self.learn(sample.function.load(Ordering::Relaxed), ns);
        }
        if code != SUCCESS && code != NOT_READY {
            // The context is gone, perhaps; the next measurement makes new events.
            sample.context.store(0, Ordering::Relaxed);
        }
        sample
            .phase
            .store(if code == NOT_READY { FLYING } else { IDLE }, Ordering::Release);
    }
}

fn average(old: u64, measured: u64) -> u64 {
    if old == 0 {
        measured
    } else {
        // A quarter of the way.
        old.wrapping_sub(old / 4).wrapping_add(measured / 4).max(1)
    }
}

fn record(event: u64, stream: u64, form: Form) -> bool {
    // SAFETY: an event of this module, the caller's stream.
    let code = unsafe {
        match form {
            Form::Legacy => cuEventRecord(event, stream),
            Form::PerThread => cuEventRecord_ptsz(event, stream),
        }
    };
    code == SUCCESS
}

impl Sample {
    /// Has events of this context; the caller has the sample.
    fn ready(&self, context: u64) -> bool {
        if context != 0 && self.context.load(Ordering::Relaxed) == context {
            return true;
        }
        let (mut start, mut end) = (0, 0);
        // SAFETY: places for the answers; events that were made here and are given up once. Those of a context that is
        // gone are refused by the driver.
        unsafe {
            for old in [&self.start, &self.end] {
                let event = old.swap(0, Ordering::Relaxed);
                if event != 0 && self.context.load(Ordering::Relaxed) != 0 {
                    cuEventDestroy_v2(event);
                }
            }
            if cuEventCreate(&raw mut start, 0) != SUCCESS {
                return false;
            }
            if cuEventCreate(&raw mut end, 0) != SUCCESS {
                cuEventDestroy_v2(start);
                return false;
            }
        }
        self.start.store(start, Ordering::Relaxed);
        self.end.store(end, Ordering::Relaxed);
        self.context.store(context, Ordering::Relaxed);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh() -> &'static Costs {
        let (page, _) = crate::os::private_memory(size_of::<Costs>(), false);
        // SAFETY: zeroed memory of the size, never given back; zero is valid.
        unsafe { &*page.cast::<Costs>() }
    }

    #[test]
    fn times_are_learned_by_function_and_follow_changes_slowly() {
        let costs = fresh();
        assert_eq!(costs.of(7), 0);
        costs.learn(7, 1_000_000);
        assert_eq!((costs.of(7), costs.of(8)), (1_000_000, 0));
        costs.learn(7, 2_000_000);
        assert_eq!(costs.of(7), 1_250_000);
        for _ in 0..40 {
            costs.learn(7, 2_000_000);
        }
        assert!(costs.of(7).abs_diff(2_000_000) < 10_000, "{}", costs.of(7));
        costs.learn(7, u64::MAX);
        assert!(costs.of(7) <= MOST_NS);
    }

    #[test]
    fn a_function_on_anothers_place_is_unknown_until_it_is_measured() {
        let costs = fresh();
        let hash = |f: u64| f.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - BITS);
        let other = (4..u64::MAX).find(|other| hash(*other) == hash(3)).unwrap_or_default();
        costs.learn(3, 5_000);
        assert_eq!(costs.of(other), 0);
        costs.learn(other, 9_000);
        assert_eq!((costs.of(3), costs.of(other)), (0, 9_000));
    }
}
