//! One place that chooses between real atomics and those of the model checker.

#[cfg(not(loom))]
pub(crate) use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU32, Ordering};
#[cfg(loom)]
pub(crate) use model::AtomicU64;

/// Tells the processor (or the model checker) that this loop waits for somebody else.
pub(crate) fn relax() {
    #[cfg(not(loom))]
    core::hint::spin_loop();
    #[cfg(loom)]
    loom::thread::yield_now();
}

#[cfg(loom)]
pub(crate) mod model {
    //! A word under the model checker, which can be read in two ways.
    //!
    //! The checker remembers one last access of each word, so a load hides an earlier one of another thread: after
    //! `load; compare_exchange`, as every loop here does it, it no longer sees that the exchange races with that other
    //! thread's load, and leaves their other order out. Where a load counts as a change, every access races with every
    //! other and none is left out; but then a load never gives an older value. So each model runs both ways.

    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

    use loom::sync::atomic::Ordering;

    static LOADS_ARE_CHANGES: AtomicBool = AtomicBool::new(false);

    /// How words are read from now on. For all threads of the program, so models run one after the other.
    pub(crate) fn loads_are_changes(yes: bool) {
        LOADS_ARE_CHANGES.store(yes, SeqCst);
    }

    #[derive(Debug)]
    #[allow(
        unreachable_pub,
        reason = "as visible as the real one, which stands in public structures"
    )]
    pub struct AtomicU64(loom::sync::atomic::AtomicU64);

    impl AtomicU64 {
        pub(crate) fn new(value: u64) -> Self {
            Self(loom::sync::atomic::AtomicU64::new(value))
        }

        pub(crate) fn load(&self, order: Ordering) -> u64 {
            if LOADS_ARE_CHANGES.load(SeqCst) {
                // An exchange that fails is a change to the checker and none to the word.
                let all = u64::MAX;
                let (Ok(value) | Err(value)) = self.0.compare_exchange(all, all, Ordering::AcqRel, Ordering::Acquire);
                value
            } else {
                self.0.load(order)
            }
        }

        pub(crate) fn store(&self, value: u64, order: Ordering) {
            self.0.store(value, order);
        }

        pub(crate) fn swap(&self, value: u64, order: Ordering) -> u64 {
            self.0.swap(value, order)
        }

        pub(crate) fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
            self.0.fetch_add(value, order)
        }

        pub(crate) fn fetch_sub(&self, value: u64, order: Ordering) -> u64 {
            self.0.fetch_sub(value, order)
        }

        pub(crate) fn fetch_max(&self, value: u64, order: Ordering) -> u64 {
            self.0.fetch_max(value, order)
        }

        pub(crate) fn compare_exchange(
            &self,
            current: u64,
            new: u64,
            success: Ordering,
            failure: Ordering,
        ) -> Result<u64, u64> {
            self.0.compare_exchange(current, new, success, failure)
        }

        pub(crate) fn compare_exchange_weak(
            &self,
            current: u64,
            new: u64,
            success: Ordering,
            failure: Ordering,
        ) -> Result<u64, u64> {
            self.0.compare_exchange_weak(current, new, success, failure)
        }
    }
}
