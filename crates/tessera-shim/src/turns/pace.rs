//! Pacing without an agent: predicted work is spread over time by the share.

use core::sync::atomic::{AtomicU64, Ordering};

/// Time that was not used and may be caught up, in nanoseconds.
const CATCH_UP_NS: u64 = 20_000_000;

/// When the next work of one card may begin. Valid when zero.
#[repr(transparent)]
pub(super) struct Pace(AtomicU64);

impl Pace {
    /// Asks to begin work of a predicted length now, at a share in 1/1000 of the card. When it may begin, the time that
    /// was booked for it, in nanoseconds. Otherwise microseconds to wait before asking again, at most 100,000.
    pub(super) fn wait_us(&self, now_ns: u64, work_ns: u64, permille: u32) -> Result<u64, u64> {
        let mut next = self.0.load(Ordering::Acquire);
        loop {
            if next > now_ns {
                return Err((next.saturating_sub(now_ns) / 1000).clamp(1, 100_000));
            }
            let from = next.max(now_ns.saturating_sub(CATCH_UP_NS));
            let whole = u128::from(work_ns)
                .saturating_mul(1000)
                .div_ceil(u128::from(permille.clamp(1, 1000)));
            let booked = u64::try_from(whole).unwrap_or(u64::MAX);
            let until = from.saturating_add(booked);
            match self
                .0
                .compare_exchange_weak(next, until, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => return Ok(booked),
                Err(seen) => next = seen,
            }
        }
    }

    /// Gives back what was booked for work that did not begin after all, in nanoseconds.
    pub(super) fn give_back(&self, booked_ns: u64) {
        if booked_ns == 0 {
            return;
        }
        let mut next = self.0.load(Ordering::Acquire);
        while let Err(seen) = self.0.compare_exchange_weak(
            next,
            next.saturating_sub(booked_ns),
            Ordering::AcqRel,
            Ordering::Acquire,
        ) {
            next = seen;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_takes_its_share_of_the_time() {
        for (work, permille) in [(100_000, 300), (50_000_000, 500), (100_000, 10)] {
            let pace = Pace(AtomicU64::new(0));
            let (mut now, mut done) = (1_000_000_000_u64, 0_u64);
            let start = now;
            while done < 2_000_000_000 {
                match pace.wait_us(now, work, permille) {
                    Err(us) => now += us * 1000,
                    Ok(_) => done += work,
                }
            }
            let got = done * 1000 / (now - start);
            assert!(
                got.abs_diff(u64::from(permille)) <= u64::from(permille) / 20 + 1,
                "{got} of {permille}"
            );
        }
    }

    #[test]
    fn what_was_not_used_long_ago_is_lost() {
        let pace = Pace(AtomicU64::new(0));
        let mut begun = 0;
        while pace.wait_us(3_600_000_000_000, 1_000_000, 500).is_ok() {
            begun += 1;
        }
        assert!(begun <= 11, "{begun} ms at once");
    }

    #[test]
    fn work_that_was_refused_takes_no_time_from_the_next() {
        let now = 3_600_000_000_000;
        let pace = Pace(AtomicU64::new(0));
        for _ in 0..1000 {
            let booked = pace.wait_us(now, 50_000_000, 500).unwrap_or_default();
            assert_eq!(booked, 100_000_000);
            pace.give_back(booked);
        }
        assert!(pace.wait_us(now, 50_000_000, 500).is_ok());
        assert!(pace.wait_us(now, 50_000_000, 500).is_err(), "what began is booked");
    }
}
