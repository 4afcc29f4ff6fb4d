//! Rules that no client and no library may break. The machine counts what it sees, so that a test
//! can ask at its end.

use std::sync::atomic::Ordering::SeqCst;

use crate::machine::Machine;

/// A broken rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// More memory of a card in use than it has.
    TooMuchMemory = 0,
    /// A launch into a context that is gone.
    LaunchWithoutContext = 1,
    /// A pointer freed that was not live.
    UnknownPointer = 2,
    /// Work of a process that was taken off the card.
    WorkWhileParked = 3,
}

impl Flaw {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::TooMuchMemory,
        Self::LaunchWithoutContext,
        Self::UnknownPointer,
        Self::WorkWhileParked,
    ];

    /// What happened, for people.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::TooMuchMemory => "more memory in use than the card has",
            Self::LaunchWithoutContext => "launch into a context that is gone",
            Self::UnknownPointer => "free of a pointer that was not live",
            Self::WorkWhileParked => "work of a process that was taken off the card",
        }
    }
}

impl Machine {
    /// Counts a broken rule.
    pub fn note_flaw(&self, flaw: Flaw) {
        self.state().flaws[flaw as usize].fetch_add(1, SeqCst);
    }

    /// How often each rule was broken, without those that never were.
    #[must_use]
    pub fn flaws(&self) -> Vec<(Flaw, u64)> {
        Flaw::ALL
            .into_iter()
            .map(|flaw| (flaw, self.state().flaws[flaw as usize].load(SeqCst)))
            .filter(|(_, count)| *count > 0)
            .collect()
    }
}
