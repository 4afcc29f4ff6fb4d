//! Taking a whole process off its cards and putting it back, as the driver's checkpoint does.
//!
//! The states are the driver's: running, locked (calls of the process wait), checkpointed (its
//! memory is in host memory and off the cards). The bytes stay where they always are in this
//! simulation, in the process's own pages; what moves is the account of the card.

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use crate::layout::{Pool, UNIT};
use crate::machine::Machine;
use crate::process::Process;

/// State of a process, numbered as the driver numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckpointState {
    /// As usual.
    Running = 0,
    /// Its calls wait.
    Locked = 1,
    /// Its memory is off the cards.
    Checkpointed = 2,
    /// It could not be put back.
    Failed = 3,
}

/// Why a step was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// No process of the machine has this pid.
    #[error("no such process uses the driver")]
    NoProcess,
    /// The step does not follow from the present state.
    #[error("the process is in another state")]
    State,
    /// Its calls did not end in time.
    #[error("the process did not come to rest in time")]
    Timeout,
    /// The cards have no room for it now.
    #[error("the card has no room")]
    Full,
}

impl CheckpointState {
    fn of(word: u32) -> Self {
        match word {
            0 => Self::Running,
            1 => Self::Locked,
            2 => Self::Checkpointed,
            _ => Self::Failed,
        }
    }
}

impl Machine {
    fn slot_of(&self, pid: u32) -> Result<usize, CheckpointError> {
        (0..self.slots_high())
            .find(|slot| self.state().slots[*slot].state.load(SeqCst) & 1 == 1 && (self.owner(*slot) == Some(pid)))
            .ok_or(CheckpointError::NoProcess)
    }

    fn step(&self, slot: usize, from: CheckpointState, to: CheckpointState) -> Result<(), CheckpointError> {
        self.state().slots[slot]
            .checkpoint
            .compare_exchange(from as u32, to as u32, SeqCst, SeqCst)
            .map(|_| ())
            .map_err(|_| CheckpointError::State)
    }

    /// State of a process.
    ///
    /// # Errors
    /// No process with this pid uses the driver.
    pub fn checkpoint_state(&self, pid: u32) -> Result<CheckpointState, CheckpointError> {
        let slot = self.slot_of(pid)?;
        Ok(CheckpointState::of(self.state().slots[slot].checkpoint.load(SeqCst)))
    }

    /// Makes the calls of a process wait, after those under way have ended.
    ///
    /// # Errors
    /// Not running, or its calls did not end within `timeout` (nothing: for ever).
    pub fn checkpoint_lock(&self, pid: u32, timeout: Option<Duration>) -> Result<(), CheckpointError> {
        let slot = self.slot_of(pid)?;
        self.step(slot, CheckpointState::Running, CheckpointState::Locked)?;
        let begun = Instant::now();
        while self.state().slots[slot].inside.load(SeqCst) > 0 && self.owner(slot).is_some() {
            if timeout.is_some_and(|most| begun.elapsed() >= most) {
                // Failing means that somebody else unlocked it.
                self.step(slot, CheckpointState::Locked, CheckpointState::Running).ok();
                return Err(CheckpointError::Timeout);
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        Ok(())
    }

    /// Takes the memory of a locked process off its cards.
    ///
    /// # Errors
    /// Not locked.
    pub fn checkpoint(&self, pid: u32) -> Result<(), CheckpointError> {
        let slot = self.slot_of(pid)?;
        self.step(slot, CheckpointState::Locked, CheckpointState::Checkpointed)?;
        for card in 0..self.cards() {
            let units = self.state().slot_units(slot, card);
            self.state().slots[slot].cards[card]
                .parked
                .store(u64::from(units) + 1, SeqCst);
            // The owner rests, so this is the only change of its entry besides the settling of others.
            self.state().discharge(slot, self.slot_pool(slot, card), units);
        }
        Ok(())
    }

    fn slot_pool(&self, slot: usize, card: usize) -> Pool {
        let word = self.state().slots[slot].cards[card].pool.load(SeqCst) as usize;
        Pool {
            card,
            instance: (word % crate::layout::POOLS_PER_CARD).checked_sub(1),
        }
    }

    /// Puts the memory of a checkpointed process back; it stays locked.
    ///
    /// # Errors
    /// Not checkpointed, or a card has no room: then nothing has changed.
    pub fn checkpoint_restore(&self, pid: u32) -> Result<(), CheckpointError> {
        let slot = self.slot_of(pid)?;
        if self.checkpoint_state(pid)? != CheckpointState::Checkpointed {
            return Err(CheckpointError::State);
        }
        let parked = |card: usize| &self.state().slots[slot].cards[card].parked;
        let mut done = Vec::new();
        for card in 0..self.cards() {
            let units = parked(card).load(SeqCst).saturating_sub(1);
            let units = u32::try_from(units).unwrap_or(0);
            let pool = self.slot_pool(slot, card);
            let capacity = u32::try_from(self.pool_bytes(pool) / UNIT).unwrap_or(0);
            let take = || units == 0 || self.state().charge(slot, pool, units, capacity).is_ok();
            let taken = take() || {
                self.reap(card);
                take()
            };
            if !taken {
                for (pool, units) in done {
                    self.state().discharge(slot, pool, units);
                }
                return Err(CheckpointError::Full);
            }
            done.push((pool, units));
        }
        for card in 0..self.cards() {
            parked(card).store(0, SeqCst);
        }
        self.step(slot, CheckpointState::Checkpointed, CheckpointState::Locked)
    }

    /// Lets the calls of a locked process go on.
    ///
    /// # Errors
    /// Not locked.
    pub fn checkpoint_unlock(&self, pid: u32) -> Result<(), CheckpointError> {
        let slot = self.slot_of(pid)?;
        self.step(slot, CheckpointState::Locked, CheckpointState::Running)
    }
}

/// One call of the driver; ends when dropped.
#[derive(Debug)]
pub struct Call<'a>(&'a Process);

impl Process {
    /// Begins a call: waits while the process is locked or off its cards.
    #[must_use]
    pub fn enter(&self) -> Call<'_> {
        let slot = &self.machine().state().slots[self.slot()];
        loop {
            slot.inside.fetch_add(1, SeqCst);
            if matches!(
                CheckpointState::of(slot.checkpoint.load(SeqCst)),
                CheckpointState::Running
            ) {
                return Call(self);
            }
            slot.inside.fetch_sub(1, SeqCst);
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.0.machine().state().slots[self.0.slot()]
            .inside
            .fetch_sub(1, SeqCst);
    }
}
