//! The account: who of a container's processes holds how much of which card.
//!
//! All operations are lock-free and none waits for another process, so a process that is killed or stopped at any
//! instruction delays nobody. The words and their rules:
//!
//! - `total` of a card goes up **before** `held` of a slot and comes down **after** it. So at every instant
//!   `total >= sum of held`, and after a death the difference is at most what the dead process was changing.
//! - `total` is raised by compare-and-swap against the limit, never added and corrected, so it is never above the
//!   limit and a request that fits is never refused because of another one that does not.
//! - An operation is announced in the slot's `ops` word (operations begun, and how many are under way) before its
//!   first step and withdrawn after its last.
//! - A dead process's slot is claimed by one reaper in a single step (its identity replaces the dead one's) and then
//!   emptied: `held` is swapped to 0 and taken off `total`. That is exact without stopping anybody. If the dead
//!   process was inside an operation, or a reaper dies while emptying, some of `total` may have no holder: a *leak* is
//!   noted, and the next recount finds it.
//! - A recount reads all `ops`, the figures, and all `ops` again. If nothing was under way and nothing began in
//!   between, `total - sum of held` is the leak, exactly, and it stays part of `total` whatever happens later until
//!   somebody takes it off. A tag in `total`, changed by that, keeps two recounts from taking it off twice.
//!
//! - Each process knows its limit from the grant. The agent may put a lower one in force for all of them at once, in a
//!   word beside the total: it writes the word and then changes the tag of a total that is within. A request reads the
//!   total before it reads the word, so one that read the old word finds another total and looks again.
//!
//! Slots never move: the index of a live process never changes.

use crate::{
    MAX_CARDS, Owner,
    sync::{AtomicU32, AtomicU64, Ordering, relax},
};

/// First eight bytes of an account: `TSRACCNT`.
pub const ACCOUNT_MAGIC: u64 = u64::from_le_bytes(*b"TSRACCNT");
/// Layout that this crate reads and writes.
pub const ACCOUNT_VERSION: u32 = 1;
/// Most processes of one container that can hold memory at once.
#[cfg(not(loom))]
pub const MAX_SLOTS: usize = 1024;
/// Enough for the model checker's threads.
#[cfg(loom)]
pub const MAX_SLOTS: usize = 3;
/// Size of the file in bytes: [`Account`] rounded up to a page.
#[cfg(not(loom))]
pub const ACCOUNT_SIZE: usize = size_of::<Account>().next_multiple_of(4096);
/// Not a file under the model checker.
#[cfg(loom)]
pub const ACCOUNT_SIZE: usize = 4096;

const BYTES_BITS: u32 = 48;
/// Largest figure of a card, 256 TiB less one byte.
pub(crate) const BYTES_MAX: u64 = (1 << BYTES_BITS) - 1;
const TAG_ONE: u64 = 1 << BYTES_BITS;

const UNDER_WAY: u64 = (1 << 16) - 1;
const OP_BEGIN: u64 = (1 << 16) | 1;

const RECOUNT_TRIES: u32 = if cfg!(loom) { 2 } else { 256 };

/// The page.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Account {
    magic: AtomicU64,
    version: AtomicU32,
    size: AtomicU32,
    /// Deaths inside an operation, ever.
    leaks: AtomicU64,
    /// Slots taken, ever.
    attaches: AtomicU64,
    reserved: [AtomicU64; 4],
    ledgers: [Ledger; MAX_CARDS],
    owners: [AtomicU64; MAX_SLOTS],
    slots: [Slot; MAX_SLOTS],
}

/// One card's sum; a cache line of its own.
#[derive(Debug)]
#[repr(C, align(64))]
struct Ledger {
    /// Bytes held (48 bits) and the recount tag (16 bits).
    total: AtomicU64,
    /// Value of `leaks` up to which this card is repaired.
    repaired: AtomicU64,
    /// Requests refused because of the limit, ever.
    refusals: AtomicU64,
    /// Limit in bytes for all processes, whatever their grant says; 0 is none.
    limit: AtomicU64,
    reserved: [AtomicU64; 4],
}

/// One process; written by that process alone while it lives.
#[derive(Debug)]
#[repr(C, align(64))]
struct Slot {
    ops: AtomicU64,
    reserved: [AtomicU64; 7],
    cards: [SlotCard; MAX_CARDS],
}

/// What one process holds of one card.
#[derive(Debug)]
#[repr(C, align(64))]
struct SlotCard {
    held: AtomicU64,
    contexts: AtomicU64,
    launched: AtomicU64,
    progress: AtomicU64,
    charged_ns: AtomicU64,
    demand: AtomicU64,
    reserved: [AtomicU64; 2],
}

#[cfg(not(loom))]
const _: () = {
    assert!(size_of::<Ledger>() == 64);
    assert!(size_of::<SlotCard>() == 64);
    assert!(size_of::<Slot>() == 64 + 64 * MAX_CARDS);
    assert!(core::mem::offset_of!(Account, ledgers) == 64);
    assert!(core::mem::offset_of!(Account, owners) == 64 + 64 * MAX_CARDS);
    assert!(core::mem::offset_of!(Account, slots) == 64 + 64 * MAX_CARDS + 8 * MAX_SLOTS);
};

/// Why a mapping is no account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccountError {
    /// The first bytes are something else.
    #[error("not an account: magic {0:#018x}")]
    Magic(u64),
    /// Written by another release.
    #[error("account layout version {version} of {size} bytes, this build reads {ACCOUNT_VERSION} of {ACCOUNT_SIZE}")]
    Version {
        /// As stored.
        version: u32,
        /// As stored.
        size: u32,
    },
}

/// Why bytes were not reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The limit would be passed.
    #[error("over the limit with {used} bytes held")]
    OverLimit {
        /// Held at that moment, in bytes.
        used: u64,
    },
    /// The page has no such card.
    #[error("no such card in the account")]
    NoSuchCard,
}

/// Place of one process in the account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotIndex(u16);

impl SlotIndex {
    /// The place as a number below [`MAX_SLOTS`], to keep it in a word.
    #[must_use]
    pub fn number(self) -> u16 {
        self.0
    }

    /// The place with this number; nothing beyond the last.
    #[must_use]
    pub fn from_number(number: u16) -> Option<Self> {
        (usize::from(number) < MAX_SLOTS).then_some(Self(number))
    }
}

/// What a reaper gave back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reaped {
    /// Slots of dead processes that are free again.
    pub slots: u32,
    /// Bytes taken off the totals of all cards.
    pub bytes: u64,
}

impl Account {
    /// The account in a mapping.
    ///
    /// # Errors
    /// [`AccountError`] when the head is not that of an account of this layout.
    ///
    /// # Safety
    /// - `page` is aligned to 64 and points to [`ACCOUNT_SIZE`] readable and writable bytes that stay mapped for `'a`.
    /// - Other processes change the bytes only by atomic operations.
    #[cfg(not(loom))]
    #[expect(unsafe_code, reason = "turns a mapping into the page that it holds")]
    pub unsafe fn from_ptr<'a>(page: *mut u8) -> Result<&'a Self, AccountError> {
        if page.is_null() {
            return Err(AccountError::Magic(0));
        }
        // SAFETY: aligned, mapped and long enough by the caller's promise; every bit pattern is a valid value.
        let account = unsafe { &*page.cast::<Self>() };
        let magic = account.magic.load(Ordering::Acquire);
        if magic != ACCOUNT_MAGIC {
            return Err(AccountError::Magic(magic));
        }
        let version = account.version.load(Ordering::Relaxed);
        let size = account.size.load(Ordering::Relaxed);
        if version != ACCOUNT_VERSION || usize::try_from(size) != Ok(ACCOUNT_SIZE) {
            return Err(AccountError::Version { version, size });
        }
        Ok(account)
    }

    /// The first bytes of a fresh account; the rest of the file is zero.
    #[must_use]
    pub fn fresh_head() -> [u8; 16] {
        let mut head = [0; 16];
        let size = u32::try_from(ACCOUNT_SIZE).unwrap_or(u32::MAX);
        let bytes = ACCOUNT_MAGIC
            .to_le_bytes()
            .into_iter()
            .chain(ACCOUNT_VERSION.to_le_bytes())
            .chain(size.to_le_bytes());
        head.iter_mut().zip(bytes).for_each(|(place, byte)| *place = byte);
        head
    }

    /// Takes a slot for a process; nothing when all are taken.
    ///
    /// The identity is the claim, so a death right after it leaves a slot that a reaper recognises.
    #[must_use]
    pub fn attach(&self, me: Owner) -> Option<SlotIndex> {
        // Starting at the pid spreads processes that start together over different words.
        let first = usize::try_from(me.pid()).unwrap_or_default() % MAX_SLOTS;
        let (before, after) = self.owners.split_at_checked(first)?;
        let numbered = || (first..MAX_SLOTS).zip(after).chain((0..first).zip(before));
        let (index, _) = numbered().find(|(_, owner)| {
            owner.load(Ordering::Relaxed) == 0
                // Acquire: what the last holder's reaper wrote is seen. Release: whoever reads the owner sees a claim.
                && owner.compare_exchange(0, me.word(), Ordering::AcqRel, Ordering::Relaxed).is_ok()
        })?;
        // A recount that saw the slot free must notice that it no longer is.
        self.attaches.fetch_add(1, Ordering::AcqRel);
        u16::try_from(index).ok().map(SlotIndex)
    }

    /// Gives back everything that the process holds, and its slot.
    pub fn detach(&self, slot: SlotIndex, me: Owner) -> Reaped {
        let mut reaped = Reaped::default();
        let Some(place) = self.owners.get(usize::from(slot.0)) else {
            return reaped;
        };
        if place
            .compare_exchange(me.word(), me.reaping_word(), Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
        {
            reaped.slots = 1;
            reaped.bytes = self.empty(slot, slot);
            place.store(0, Ordering::Release);
        }
        reaped
    }

    /// Who holds a slot; nothing when it is free.
    #[must_use]
    pub fn owner(&self, slot: SlotIndex) -> Option<Owner> {
        self.owners
            .get(usize::from(slot.0))
            .and_then(|w| Owner::from_word(w.load(Ordering::Acquire)))
    }

    /// Reserves bytes of a card for a process, if the card's total stays within `limit`, and within the limit of
    /// [`Account::set_limit`] unless `limit` is [`u64::MAX`]: what is never refused has none.
    ///
    /// # Errors
    /// [`Refused`]; then nothing has changed.
    pub fn reserve(&self, slot: SlotIndex, card: usize, bytes: u64, limit: u64) -> Result<(), Refused> {
        let (ledger, place, mine) = self.places(slot, card).ok_or(Refused::NoSuchCard)?;
        begin(place);
        let raised = update(&ledger.total, |total| {
            // Read after the total, see the module.
            let limit = ledger.within(limit);
            let new = (total & BYTES_MAX).checked_add(bytes)?;
            (new <= limit).then_some((total & !BYTES_MAX) | new)
        });
        if raised.is_ok() {
            mine.held.fetch_add(bytes, Ordering::AcqRel);
        }
        end(place);
        raised.map(drop).map_err(|total| {
            ledger.refusals.fetch_add(1, Ordering::Relaxed);
            Refused::OverLimit {
                used: total & BYTES_MAX,
            }
        })
    }

    /// Puts a limit of a card in force for all processes at once: none gets beyond it from the moment of the return,
    /// however old its copy of the grant is. Only for the agent; one call at a time for a card.
    ///
    /// A limit is at least one byte. While a limit is tried that is refused in the end, a request that would pass it
    /// may be refused too; what is held already is looked at first, so that this is rare.
    ///
    /// # Errors
    /// [`Refused::OverLimit`] when more is held; the limit before stays then.
    pub fn set_limit(&self, card: usize, bytes: u64) -> Result<(), Refused> {
        let ledger = self.ledgers.get(card).ok_or(Refused::NoSuchCard)?;
        let bytes = bytes.clamp(1, BYTES_MAX);
        let over = |total: u64| (total & BYTES_MAX > bytes).then_some(total & BYTES_MAX);
        if let Some(used) = over(ledger.total.load(Ordering::Acquire)) {
            return Err(Refused::OverLimit { used });
        }
        let before = ledger.limit.swap(bytes, Ordering::AcqRel);
        let settled = update(&ledger.total, |total| {
            over(total).is_none().then(|| total.wrapping_add(TAG_ONE))
        });
        settled.map(drop).map_err(|total| {
            ledger.limit.store(before, Ordering::Release);
            Refused::OverLimit {
                used: total & BYTES_MAX,
            }
        })
    }

    /// The limit of a card that [`Account::set_limit`] put in force, in bytes.
    #[must_use]
    pub fn limit(&self, card: usize) -> Option<u64> {
        let limit = self.ledgers.get(card)?.limit.load(Ordering::Acquire);
        (limit != 0).then_some(limit)
    }

    /// Puts back what [`Account::limit`] said before a [`Account::set_limit`]. Only for the agent.
    #[cfg(all(feature = "fs", not(loom)))]
    pub(crate) fn restore_limit(&self, card: usize, before: Option<u64>) {
        if let Some(ledger) = self.ledgers.get(card) {
            ledger.limit.store(before.unwrap_or(0), Ordering::Release);
        }
    }

    /// Books bytes that the process holds already, whatever the limit.
    pub fn book(&self, slot: SlotIndex, card: usize, bytes: u64) {
        let Some((ledger, place, mine)) = self.places(slot, card) else {
            return;
        };
        begin(place);
        let raised = update(&ledger.total, |total| {
            let new = (total & BYTES_MAX).checked_add(bytes)?;
            (new <= BYTES_MAX).then_some((total & !BYTES_MAX) | new)
        });
        if raised.is_ok() {
            mine.held.fetch_add(bytes, Ordering::AcqRel);
        }
        end(place);
    }

    /// Gives back bytes that the process holds; never more than it holds.
    pub fn release(&self, slot: SlotIndex, card: usize, bytes: u64) {
        let Some((ledger, place, mine)) = self.places(slot, card) else {
            return;
        };
        begin(place);
        if let Ok(held) = update(&mine.held, |held| Some(held.saturating_sub(bytes))) {
            lower(&ledger.total, held.min(bytes));
        }
        end(place);
    }

    /// Changes what one allocation is booked at, from `old` to `new` bytes.
    ///
    /// # Errors
    /// [`Refused`] when it grows and the limit would be passed; then nothing has changed.
    pub fn adjust(&self, slot: SlotIndex, card: usize, old: u64, new: u64, limit: u64) -> Result<(), Refused> {
        match new.checked_sub(old) {
            Some(0) => Ok(()),
            Some(more) => self.reserve(slot, card, more, limit),
            None => {
                self.release(slot, card, old.saturating_sub(new));
                Ok(())
            }
        }
    }

    /// Bytes of a card that the whole container holds.
    #[must_use]
    pub fn used(&self, card: usize) -> u64 {
        self.ledgers
            .get(card)
            .map_or(0, |ledger| ledger.total.load(Ordering::Acquire) & BYTES_MAX)
    }

    /// Requests for a card refused because of the limit, ever.
    #[must_use]
    pub fn refusals(&self, card: usize) -> u64 {
        self.ledgers
            .get(card)
            .map_or(0, |ledger| ledger.refusals.load(Ordering::Relaxed))
    }

    /// Bytes of a card that one process holds.
    #[must_use]
    pub fn held(&self, slot: SlotIndex, card: usize) -> u64 {
        self.places(slot, card)
            .map_or(0, |(_, _, mine)| mine.held.load(Ordering::Acquire) & BYTES_MAX)
    }

    /// Notes how many contexts the process has on a card.
    pub fn set_contexts(&self, slot: SlotIndex, card: usize, contexts: u64) {
        if let Some((_, _, mine)) = self.places(slot, card) {
            mine.contexts.store(contexts, Ordering::Release);
        }
    }

    /// Calls `each` with the processes that hold memory or a context on a card: owner and bytes held.
    pub fn holders(&self, card: usize, mut each: impl FnMut(Owner, u64)) {
        for (word, slot) in self.owners.iter().zip(&self.slots) {
            let word = word.load(Ordering::Acquire);
            let Some(owner) = Owner::from_word(word).filter(|_| !Owner::is_reaping(word)) else {
                continue;
            };
            let Some(mine) = slot.cards.get(card) else { continue };
            let held = mine.held.load(Ordering::Acquire) & BYTES_MAX;
            if held > 0 || mine.contexts.load(Ordering::Acquire) > 0 {
                each(owner, held);
            }
        }
    }

    /// Whether any slot but `except` is held by an owner for which `matches` holds.
    #[must_use]
    pub fn any_owner(&self, except: Option<SlotIndex>, matches: impl Fn(Owner) -> bool) -> bool {
        self.owners.iter().enumerate().any(|(index, word)| {
            let word = word.load(Ordering::Acquire);
            word != 0
                && except.is_none_or(|slot| usize::from(slot.0) != index)
                && Owner::from_word(word).is_some_and(&matches)
        })
    }

    /// Takes back what dead processes hold, in the name of the live process in `slot`.
    ///
    /// `alive` is asked once for each other slot; when in doubt it answers true. If a death left bytes without a
    /// holder, they are found by a recount, unless other processes are busy through all its tries; the next call
    /// tries again.
    pub fn reap(&self, slot: SlotIndex, me: Owner, alive: impl Fn(Owner) -> bool) -> Reaped {
        let mut reaped = Reaped::default();
        for (index, place) in self.owners.iter().enumerate() {
            let word = place.load(Ordering::Acquire);
            let Some(owner) = Owner::from_word(word) else { continue };
            let Some(dead) = u16::try_from(index).ok().map(SlotIndex) else {
                continue;
            };
            if dead == slot || alive(owner) {
                continue;
            }
            // One reaper wins; a reaper that died is itself an owner here, and is succeeded in the same way.
            if place
                .compare_exchange(word, me.reaping_word(), Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
            {
                reaped.bytes = reaped.bytes.saturating_add(self.empty(dead, slot));
                reaped.slots = reaped.slots.saturating_add(1);
                place.store(0, Ordering::Release);
            }
        }
        for card in 0..MAX_CARDS {
            reaped.bytes = reaped.bytes.saturating_add(self.recount(card).unwrap_or_default());
        }
        reaped
    }

    /// Empties a slot that the caller has claimed. All steps may be repeated by a successor.
    fn empty(&self, dead: SlotIndex, by: SlotIndex) -> u64 {
        let (Some(slot), Some(mine)) = (self.slots.get(usize::from(dead.0)), self.slots.get(usize::from(by.0))) else {
            return 0;
        };
        let mut bytes = 0_u64;
        if slot.ops.load(Ordering::Acquire) & UNDER_WAY != 0 {
            self.leaks.fetch_add(1, Ordering::AcqRel);
        }
        begin(mine);
        for (place, ledger) in slot.cards.iter().zip(&self.ledgers) {
            // Pages of cards that were never used stay unwritten.
            if place.held.load(Ordering::Acquire) != 0 {
                let held = place.held.swap(0, Ordering::AcqRel) & BYTES_MAX;
                lower(&ledger.total, held);
                bytes = bytes.saturating_add(held);
            }
            if place.contexts.load(Ordering::Relaxed) != 0 {
                place.contexts.store(0, Ordering::Relaxed);
            }
        }
        end(mine);
        if dead != by {
            // The next holder begins with nothing under way, and a recount sees that the word moved.
            let ops = slot.ops.load(Ordering::Acquire);
            slot.ops.store(
                (ops & !UNDER_WAY).wrapping_add(UNDER_WAY).wrapping_add(1),
                Ordering::Release,
            );
        }
        bytes
    }

    /// Finds bytes of a card without a holder and takes them off. Nothing when there is no reason to look, or when
    /// other processes were busy at each try.
    fn recount(&self, card: usize) -> Option<u64> {
        let ledger = self.ledgers.get(card)?;
        let leaks = self.leaks.load(Ordering::Acquire);
        if ledger.repaired.load(Ordering::Acquire) == leaks {
            return None;
        }
        for _ in 0..RECOUNT_TRIES {
            let Some((total, held)) = self.quiet_figures(card, ledger) else {
                relax();
                continue;
            };
            let leak = (total & BYTES_MAX).saturating_sub(held);
            // Whatever ran since, the leak is still part of the total, unless the tag says that it was taken off.
            let settled = update(&ledger.total, |now| {
                (now & !BYTES_MAX == total & !BYTES_MAX).then(|| {
                    let bytes = (now & BYTES_MAX).saturating_sub(leak);
                    (now & !BYTES_MAX).wrapping_add(TAG_ONE) | bytes
                })
            });
            if settled.is_ok() {
                ledger.repaired.fetch_max(leaks, Ordering::AcqRel);
                return Some(leak);
            }
            return None;
        }
        None
    }

    /// The total word and the sum of all held bytes of a card, if no operation touched either while they were read.
    fn quiet_figures(&self, card: usize, ledger: &Ledger) -> Option<(u64, u64)> {
        let before = self.activity()?;
        let total = ledger.total.load(Ordering::Acquire);
        let mut held = 0_u64;
        for (owner, slot) in self.owners.iter().zip(&self.slots) {
            if owner.load(Ordering::Acquire) != 0 {
                let mine = slot.cards.get(card)?.held.load(Ordering::Acquire);
                held = held.saturating_add(mine & BYTES_MAX);
            }
        }
        (self.activity()? == before).then_some((total, held))
    }

    /// A figure that moves with every operation and attach; nothing while an operation is under way.
    ///
    /// Each `ops` word only grows, so equal sums mean equal words. Slots that come or go are seen by `attaches`.
    fn activity(&self) -> Option<u64> {
        let mut sum = self.attaches.load(Ordering::Acquire);
        for (owner, slot) in self.owners.iter().zip(&self.slots) {
            if owner.load(Ordering::Acquire) != 0 {
                let ops = slot.ops.load(Ordering::Acquire);
                if ops & UNDER_WAY != 0 {
                    return None;
                }
                sum = sum.wrapping_add(ops).wrapping_add(1);
            }
        }
        Some(sum)
    }

    fn places(&self, slot: SlotIndex, card: usize) -> Option<(&Ledger, &Slot, &SlotCard)> {
        let place = self.slots.get(usize::from(slot.0))?;
        Some((self.ledgers.get(card)?, place, place.cards.get(card)?))
    }
}

impl Ledger {
    /// The limit of a request whose process knows `limit`, in bytes.
    fn within(&self, limit: u64) -> u64 {
        let most = match self.limit.load(Ordering::Acquire) {
            own if own != 0 && limit != u64::MAX => limit.min(own),
            _ => limit,
        };
        most.min(BYTES_MAX)
    }
}

/// Byte offset of the total of a card.
#[cfg(all(feature = "fs", not(loom)))]
pub(crate) const fn total_at(card: usize) -> usize {
    core::mem::offset_of!(Account, ledgers).saturating_add(size_of::<Ledger>().saturating_mul(card))
}

/// Byte offset of the limit of a card.
#[cfg(all(feature = "fs", not(loom)))]
pub(crate) const fn limit_at(card: usize) -> usize {
    total_at(card).saturating_add(core::mem::offset_of!(Ledger, limit))
}

/// Announces an operation: whoever sees one of its steps sees this too.
fn begin(slot: &Slot) {
    slot.ops.fetch_add(OP_BEGIN, Ordering::AcqRel);
}

/// Withdraws it: whoever sees this sees all its steps.
fn end(slot: &Slot) {
    slot.ops.fetch_sub(1, Ordering::AcqRel);
}

/// Takes bytes off a total, keeping its tag.
fn lower(total: &AtomicU64, bytes: u64) {
    let lowered = update(total, |now| {
        Some((now & !BYTES_MAX) | (now & BYTES_MAX).saturating_sub(bytes))
    });
    // The closure never declines.
    let (Ok(_) | Err(_)) = lowered;
}

/// Compare-and-swap until it succeeds or `change` declines; the old value either way.
fn update(word: &AtomicU64, change: impl Fn(u64) -> Option<u64>) -> Result<u64, u64> {
    let mut now = word.load(Ordering::Acquire);
    loop {
        let Some(new) = change(now) else { return Err(now) };
        match word.compare_exchange_weak(now, new, Ordering::AcqRel, Ordering::Acquire) {
            Ok(old) => return Ok(old),
            Err(seen) => now = seen,
        }
    }
}

#[cfg(test)]
#[cfg(loom)]
mod model;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;
