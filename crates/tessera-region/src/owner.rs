//! Who holds a process slot, in one word, so that claiming a slot and signing it is a single step.

use core::fmt;

/// Identity of one process: its pid, when it started, and the pid namespace in which the pid means something.
///
/// Packed into 64 bits: pid 24, namespace 16, start 23, and one bit that says the slot is being taken back. Linux
/// pids need 22 bits. The start time (clock ticks since boot, field 22 of `/proc/<pid>/stat`) is kept modulo 2^23,
/// 23 hours at 100 ticks a second: a recycled pid is mistaken for its predecessor only if it started in the same tick
/// of another such period.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Owner(u64);

const PID_BITS: u32 = 24;
const NAMESPACE_BITS: u32 = 16;
const START_BITS: u32 = 23;
const REAPING: u64 = 1 << 63;

const fn mask(bits: u32) -> u64 {
    (1_u64 << bits).wrapping_sub(1)
}

impl Owner {
    /// An owner from its parts. Nothing when the pid is 0 or does not fit.
    #[must_use]
    pub fn new(pid: u32, start_ticks: u64, pid_namespace: u64) -> Option<Self> {
        if pid == 0 || u64::from(pid) > mask(PID_BITS) {
            return None;
        }
        Some(Self(
            u64::from(pid)
                | (pid_namespace & mask(NAMESPACE_BITS)) << PID_BITS
                | (start_ticks & mask(START_BITS)) << (PID_BITS + NAMESPACE_BITS),
        ))
    }

    /// The pid, as the owner's own namespace knows it.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "masked to 24 bits")]
    pub fn pid(self) -> u32 {
        (self.0 & mask(PID_BITS)) as u32
    }

    /// Whether the owner lives in the pid namespace with this inode number.
    #[must_use]
    pub fn in_namespace(self, pid_namespace: u64) -> bool {
        (self.0 >> PID_BITS) & mask(NAMESPACE_BITS) == pid_namespace & mask(NAMESPACE_BITS)
    }

    /// Whether the owner started at this tick.
    #[must_use]
    pub fn started_at(self, start_ticks: u64) -> bool {
        (self.0 >> (PID_BITS + NAMESPACE_BITS)) & mask(START_BITS) == start_ticks & mask(START_BITS)
    }

    pub(crate) fn from_word(word: u64) -> Option<Self> {
        let owner = Self(word & !REAPING);
        (owner.pid() != 0).then_some(owner)
    }

    pub(crate) const fn word(self) -> u64 {
        self.0
    }

    /// The word of a slot that this owner is taking back.
    pub(crate) const fn reaping_word(self) -> u64 {
        self.0 | REAPING
    }

    pub(crate) const fn is_reaping(word: u64) -> bool {
        word & REAPING != 0
    }
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Owner")
            .field("pid", &self.pid())
            .field("word", &self.0)
            .finish()
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::Owner;

    #[test]
    fn parts_come_back() {
        let owner = Owner::new(4_194_303, 1_234_567, 4_026_531_836).unwrap();
        assert_eq!(owner.pid(), 4_194_303);
        assert!(owner.in_namespace(4_026_531_836));
        assert!(!owner.in_namespace(4_026_531_837));
        assert!(owner.started_at(1_234_567));
        assert!(!owner.started_at(1_234_568));
        assert!(Owner::is_reaping(owner.reaping_word()));
        assert_eq!(Owner::from_word(owner.reaping_word()), Some(owner));
    }

    #[test]
    fn nobody_has_pid_zero() {
        assert_eq!(Owner::new(0, 1, 1), None);
        assert_eq!(Owner::new(1 << 24, 1, 1), None);
        assert_eq!(Owner::from_word(0), None);
    }
}
