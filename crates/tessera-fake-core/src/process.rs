//! Processes of the machine: who is there, who is dead.
//!
//! A process is alive while it holds a record lock on its own byte of the control file. The
//! system drops the lock with the process, and tells the owner's pid in the asker's own pid
//! namespace, so no daemon is needed and no pid is trusted. The probe asks as an open file
//! description (`F_OFD_GETLK`): asked that way the system also reports the locks of the asking
//! process, which a plain `F_GETLK` leaves out.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use crate::flaw::Flaw;
use crate::layout::{MAX_CARDS, MAX_SLOTS, POOLS_PER_CARD, Pool, State, UNIT};
use crate::ledger::{Full, units};
use crate::machine::Machine;

/// First locked byte; far behind the end of the file so that no data is concerned.
const LOCK_BASE: i64 = 1 << 40;

/// Why a process could not register with the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("all {MAX_SLOTS} process slots are in use")]
pub struct AttachError;

/// What is known of a process that uses a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessView {
    /// Pid in the caller's namespace.
    pub pid: u32,
    /// Bytes it holds of the card, contexts included.
    pub bytes: u64,
    /// Instance it runs on, nothing for the whole card.
    pub instance: Option<usize>,
    /// Kernel time of its life in nanoseconds.
    pub work_ns: u64,
    /// Launches of its life.
    pub launches: u64,
    /// Blocks of those launches.
    pub blocks: u64,
    pub(crate) slot: usize,
}

/// This process's place in the machine.
#[derive(Debug)]
pub struct Process {
    machine: &'static Machine,
    slot: usize,
    /// Times that its threads wait for, where the clock is virtual.
    waits: Mutex<Vec<u64>>,
    /// Its own time, ahead of a virtual clock by the host time of its launches.
    lead_ns: AtomicU64,
    /// Most memory of each card by the multi-process server's variable; 0 for no limit.
    pinned: [AtomicU64; MAX_CARDS],
}

fn record(kind: libc::c_int, slot: usize) -> libc::flock {
    // SAFETY: all fields are plain numbers for which zero is valid.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    #[allow(clippy::cast_possible_truncation, reason = "small constants of the interface")]
    {
        lock.l_type = kind as libc::c_short;
        lock.l_whence = libc::SEEK_SET as libc::c_short;
    }
    lock.l_start = LOCK_BASE + i64::try_from(slot).unwrap_or(0);
    lock.l_len = 1;
    lock
}

impl Machine {
    /// The pid that holds a slot: nothing when it is free, 0 when the owner is outside the
    /// caller's pid namespace.
    pub(crate) fn owner(&self, slot: usize) -> Option<u32> {
        let mut lock = record(libc::F_WRLCK, slot);
        // SAFETY: `fd` stays open for the life of the process; `lock` is a valid record.
        let answer = unsafe { libc::fcntl(self.fd(), libc::F_OFD_GETLK, &raw mut lock) };
        // A failing query counts as alive: memory must not be given back by mistake.
        if answer != 0 {
            return Some(0);
        }
        if libc::c_int::from(lock.l_type) == libc::F_UNLCK {
            None
        } else {
            Some(u32::try_from(lock.l_pid).unwrap_or(0))
        }
    }

    fn take(&self, slot: usize) -> bool {
        let mut lock = record(libc::F_WRLCK, slot);
        // SAFETY: as in `owner`; the call does not wait.
        unsafe { libc::fcntl(self.fd(), libc::F_SETLK, &raw mut lock) == 0 }
    }

    pub(crate) fn slots_high(&self) -> usize {
        (self.state().slots_high.load(SeqCst) as usize).min(MAX_SLOTS)
    }

    /// Frees the slot of a dead process; true when nobody holds it any more.
    fn bury(&self, slot: usize, own_lock: bool) -> bool {
        let state = self.state();
        let seen = state.slots[slot].state.load(SeqCst);
        if seen & 1 == 0 {
            return true;
        }
        let dead = || state.slots[slot].state.load(SeqCst) == seen && (own_lock || self.owner(slot).is_none());
        if !dead() {
            return false;
        }
        for card in 0..self.cards() {
            state.reclaim(slot, card, &dead);
            if dead() {
                state.cancel(slot, card);
            }
        }
        if dead() {
            // Failing means that somebody else freed it.
            state.slots[slot]
                .state
                .compare_exchange(seen, seen & !1, SeqCst, SeqCst)
                .ok();
        }
        true
    }

    /// Gives back what dead processes hold of a card.
    pub fn reap(&self, card: usize) {
        for slot in 0..self.slots_high() {
            if self.state().slots[slot].state.load(SeqCst) & 1 == 1
                && self.state().slot_units(slot, card) > 0
                && self.owner(slot).is_none()
            {
                self.bury(slot, false);
            }
        }
    }

    /// Gives back what dead processes hold of the whole machine.
    pub fn reap_all(&self) {
        for slot in 0..self.slots_high() {
            if self.state().slots[slot].state.load(SeqCst) & 1 == 1 && self.owner(slot).is_none() {
                self.bury(slot, false);
            }
        }
    }

    /// Live processes with a context or memory on a card, in slot order. A process outside the
    /// caller's pid namespace is left out: it has no pid there.
    #[must_use]
    pub fn processes(&self, card: usize) -> Vec<ProcessView> {
        let mut out = Vec::new();
        for slot in 0..self.slots_high() {
            let entry = &self.state().slots[slot];
            if entry.state.load(SeqCst) & 1 == 0 {
                continue;
            }
            let part = &entry.cards[card];
            let held = self.state().slot_units(slot, card);
            if held == 0 && part.contexts.load(SeqCst) == 0 {
                continue;
            }
            match self.owner(slot) {
                None => {
                    self.bury(slot, false);
                }
                Some(0) => {}
                Some(pid) => out.push(ProcessView {
                    pid: self.odd_pid(pid),
                    bytes: u64::from(held) * UNIT,
                    instance: (part.pool.load(SeqCst) as usize % POOLS_PER_CARD).checked_sub(1),
                    work_ns: part.work_ns.load(SeqCst),
                    launches: part.launches.load(SeqCst),
                    blocks: part.blocks.load(SeqCst),
                    slot,
                }),
            }
        }
        out
    }

    /// Number of registered processes that are alive.
    #[must_use]
    pub fn live_processes(&self) -> usize {
        (0..self.slots_high())
            .filter(|s| self.state().slots[*s].state.load(SeqCst) & 1 == 1)
            .filter(|s| self.owner(*s).is_some())
            .count()
    }
}

impl Process {
    /// Registers this process with the driver.
    ///
    /// # Errors
    /// Every slot is held by a live process.
    pub fn attach(machine: &'static Machine) -> Result<Self, AttachError> {
        let state = machine.state();
        // A newcomer must not queue behind the dead.
        machine.reap_all();
        for reuse in [false, true] {
            for slot in 0..MAX_SLOTS {
                let word = &state.slots[slot].state;
                if (word.load(SeqCst) & 1 == 1) != reuse || machine.owner(slot).is_some() || !machine.take(slot) {
                    continue;
                }
                // From here on the slot is ours: everybody else sees the lock.
                if !machine.bury(slot, true) {
                    continue;
                }
                clear(state, slot, machine.cards());
                let high = u32::try_from(slot + 1).unwrap_or(0);
                state.slots_high.fetch_max(high, SeqCst);
                let seen = word.load(SeqCst);
                // The next generation, in use.
                word.store((seen | 1) + 2, SeqCst);
                return Ok(Self {
                    machine,
                    slot,
                    waits: Mutex::default(),
                    lead_ns: AtomicU64::new(0),
                    pinned: Default::default(),
                });
            }
        }
        Err(AttachError)
    }

    pub(crate) fn slot(&self) -> usize {
        self.slot
    }

    pub(crate) fn waits(&self) -> &Mutex<Vec<u64>> {
        &self.waits
    }

    pub(crate) fn lead(&self) -> &AtomicU64 {
        &self.lead_ns
    }

    /// Limits what this process takes of a card, as the multi-process server does by its variable.
    pub fn limit_pinned(&self, card: usize, bytes: u64) {
        if let Some(place) = self.pinned.get(card) {
            place.store(bytes.max(1), SeqCst);
        }
    }

    /// The machine that the process is registered with.
    #[must_use]
    pub fn machine(&self) -> &'static Machine {
        self.machine
    }

    /// Names the pool that this process uses of a card. Has an effect only while it holds nothing there.
    pub fn choose_pool(&self, pool: Pool) {
        let part = &self.machine.state().slots[self.slot].cards[pool.card];
        if self.machine.state().slot_units(self.slot, pool.card) == 0 {
            part.pool.store(u32::try_from(pool.word()).unwrap_or(0), SeqCst);
        }
    }

    /// Takes bytes of a pool, in whole units. When it is full, the memory of dead processes is
    /// given back first and the request is tried again.
    ///
    /// # Errors
    /// The live processes leave too little.
    pub fn charge(&self, pool: Pool, bytes: u64) -> Result<(), Full> {
        let add = units(bytes).ok_or(Full)?;
        let capacity = u32::try_from(self.machine.pool_bytes(pool) / UNIT).map_err(|_| Full)?;
        self.choose_pool(pool);
        let state = self.machine.state();
        let pinned = self.pinned[pool.card].load(SeqCst);
        if pinned != 0 && (u64::from(state.slot_units(self.slot, pool.card)) + u64::from(add)) * UNIT > pinned {
            return Err(Full);
        }
        state.charge(self.slot, pool, add, capacity).or_else(|Full| {
            self.machine.reap(pool.card);
            state.charge(self.slot, pool, add, capacity)
        })?;
        if state.pool_units(pool) > capacity {
            self.machine.note_flaw(Flaw::TooMuchMemory);
        }
        if self.over_a_limit(pool.card) {
            state.discharge(self.slot, pool, add);
            return Err(Full);
        }
        Ok(())
    }

    /// Gives bytes back.
    pub fn discharge(&self, pool: Pool, bytes: u64) {
        if let Some(take) = units(bytes) {
            self.machine.state().discharge(self.slot, pool, take);
        }
    }

    /// Notes how many contexts this process has on a card, and their bytes, for the views of others.
    pub fn note_contexts(&self, card: usize, contexts: u32, bytes: u64) {
        let part = &self.machine.state().slots[self.slot].cards[card];
        part.contexts.store(contexts, SeqCst);
        part.context_bytes.store(bytes, SeqCst);
    }

    /// Bytes that this process holds of a card.
    #[must_use]
    pub fn held_bytes(&self, card: usize) -> u64 {
        u64::from(self.machine.state().slot_units(self.slot, card)) * UNIT
    }

    /// Launches and blocks of this process on a card.
    #[must_use]
    pub fn launches(&self, card: usize) -> (u64, u64) {
        let part = &self.machine.state().slots[self.slot].cards[card];
        (part.launches.load(SeqCst), part.blocks.load(SeqCst))
    }
}

/// Wipes what the last owner left; operation numbers stay, they must keep rising.
fn clear(state: &State, slot: usize, cards: usize) {
    let entry = &state.slots[slot];
    // SAFETY: getpid cannot fail.
    entry.pid.store(unsafe { libc::getpid() }, SeqCst);
    entry.checkpoint.store(0, SeqCst);
    entry.waits_for.store(0, SeqCst);
    entry.calls.store(0, SeqCst);
    entry.inside.store(0, SeqCst);
    for group in &entry.groups {
        group.store(0, SeqCst);
    }
    for (card, part) in entry.cards.iter().enumerate().take(cards) {
        part.pool
            .store(u32::try_from(card * POOLS_PER_CARD).unwrap_or(0), SeqCst);
        part.contexts.store(0, SeqCst);
        part.context_bytes.store(0, SeqCst);
        part.work_ns.store(0, SeqCst);
        part.launches.store(0, SeqCst);
        part.blocks.store(0, SeqCst);
        part.parked.store(0, SeqCst);
        for word in &part.ring {
            if word.load(SeqCst) != 0 {
                word.store(0, SeqCst);
            }
        }
    }
}
