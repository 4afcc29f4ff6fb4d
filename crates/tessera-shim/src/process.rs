//! The state of this process: its grant, its place in the account, what it allocated.
//!
//! One private mapping, valid when zero, that the kernel empties in a forked child. So a child finds the state of a
//! process that has done nothing yet, whatever the parent was doing, and takes a place of its own at its first call.

use core::{
    cell::UnsafeCell,
    ffi::CStr,
    ptr,
    sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, AtomicU64, Ordering},
};

use tessera_region::{
    ACCOUNT_SIZE, Account, CardFlags, GRANT_SIZE, Grant, GrantError, GrantState, MAX_CARDS, Owner, SlotIndex, Text,
    VERDICT_SIZE, Verdict,
};

use crate::{
    address::Table,
    memory::pool::Pools,
    message::say_once,
    os::{self, KeepErrno},
};

const GRANT_PATH: &CStr = c"/run/tessera/grant/grant";
const VERDICT_PATH: &CStr = c"/run/tessera/grant/verdict";
const ACCOUNT_PATH: &CStr = c"/run/tessera/account/account";

/// How long a process waits for a grant to be sealed.
const SEAL_WAIT_MS: u64 = 30_000;
const SEAL_POLL_MS: i64 = 10;
/// How often a replaced grant file is looked for besides the word in the verdict.
const GRANT_CHECK_MS: u64 = 500;
/// How often a view looks for dead processes. Requests that would be refused always look.
const VIEW_REAP_MS: u64 = 100;
/// Most device numbers whose card is remembered.
const MAX_DEVICES: usize = 64;

const FRESH: u32 = 0;
const STARTING: u32 = 1;
const READY: u32 = 2;

/// A card of the grant, by its place in the account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Card(pub(crate) usize);

#[repr(C)]
struct CardState {
    limit: AtomicU64,
    flags: AtomicU32,
    /// Share of the card's time in 1/1000.
    cores: AtomicU32,
    context_bytes: AtomicU64,
    contexts: AtomicU64,
}

/// The state. Every field is valid when zero.
#[repr(C)]
pub(crate) struct Process {
    phase: AtomicU32,
    /// The process that this state belongs to, where a forked child does not find it wiped.
    pid_checked: AtomicU32,
    slot: AtomicU32,
    namespace: AtomicU64,
    account: AtomicPtr<u8>,
    verdict: AtomicPtr<u8>,
    generation: AtomicU64,
    grant_mark: AtomicU64,
    next_check_ms: AtomicU64,
    next_reap_ms: AtomicU64,
    cards: [CardState; MAX_CARDS],
    uuids: UnsafeCell<[Text<64>; MAX_CARDS]>,
    card_count: AtomicU32,
    /// Card of each device number: 0 unknown, 255 not granted, else index + 1.
    devices: [AtomicU8; MAX_DEVICES],
    pub(crate) pools: Pools,
    pub(crate) table: Table,
    /// What each card's store for graphs is booked at.
    pub(crate) graph_booked: [AtomicU64; MAX_CARDS],
}

// SAFETY: the cell is written only while `phase` is STARTING, by the one thread that set it, and read only after
// READY was seen with acquire.
unsafe impl Sync for Process {}

static STATE: AtomicPtr<Process> = AtomicPtr::new(ptr::null_mut());
/// 1 when a forked child does not find the state wiped (Linux before 4.14), so the pid is compared at each call.
static COMPARE_PID: AtomicU32 = AtomicU32::new(0);

/// The device may not be used; the reason was said.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Denied;

/// The state, after the grant was read and a place in the account taken.
#[inline]
pub(crate) fn process() -> Result<&'static Process, Denied> {
    let state = STATE.load(Ordering::Acquire);
    if !state.is_null() && COMPARE_PID.load(Ordering::Relaxed) == 0 {
        // SAFETY: a mapping that is never given back.
        let process = unsafe { &*state };
        if process.phase.load(Ordering::Acquire) == READY {
            return Ok(process);
        }
    }
    start()
}

/// The state if this process has one already; starts nothing.
pub(crate) fn started() -> Option<&'static Process> {
    let state = STATE.load(Ordering::Acquire);
    if state.is_null() {
        return None;
    }
    // SAFETY: a mapping that is never given back.
    let process = unsafe { &*state };
    let ours = COMPARE_PID.load(Ordering::Relaxed) == 0 || process.pid_checked.load(Ordering::Acquire) == os::pid();
    (ours && process.phase.load(Ordering::Acquire) == READY).then_some(process)
}

/// Whether the process is known to have only one context. A forked child that has not begun yet has none that is known.
#[inline]
pub(crate) fn has_one_context() -> bool {
    // SAFETY: null, or a mapping that is never given back.
    unsafe { STATE.load(Ordering::Acquire).cast_const().as_ref() }.is_some_and(Process::has_one_context)
}

#[cold]
fn start() -> Result<&'static Process, Denied> {
    let _errno = KeepErrno::new();
    let process = state().ok_or(Denied)?;
    loop {
        match process
            .phase
            .compare_exchange(FRESH, STARTING, Ordering::Acquire, Ordering::Acquire)
        {
            Ok(_) => break,
            Err(READY) => return Ok(process),
            Err(_) => os::sleep_ms(1),
        }
    }
    let started = process.load();
    process
        .phase
        .store(if started.is_ok() { READY } else { FRESH }, Ordering::Release);
    started.map(|()| process)
}

/// The mapping of this process; a new one for a child that did not find it wiped.
fn state() -> Option<&'static Process> {
    let known = STATE.load(Ordering::Acquire);
    let pid = os::pid();
    if !known.is_null() {
        // SAFETY: a mapping that is never given back.
        let process = unsafe { &*known };
        if COMPARE_PID.load(Ordering::Relaxed) == 0 || process.pid_checked.load(Ordering::Acquire) == pid {
            return Some(process);
        }
    }
    let (page, wiped) = os::private_memory(size_of::<Process>(), true);
    if page.is_null() {
        say_once(&["no memory for the state of this process; the GPU is refused"]);
        return None;
    }
    COMPARE_PID.store(u32::from(!wiped), Ordering::Relaxed);
    let page = page.cast::<Process>();
    // SAFETY: zeroed and large enough, and zero is valid; a page is aligned.
    unsafe { &*page }.pid_checked.store(pid, Ordering::Release);
    match STATE.compare_exchange(known, page, Ordering::AcqRel, Ordering::Acquire) {
        // SAFETY: as above.
        Ok(_) => Some(unsafe { &*page }),
        Err(other) => {
            // SAFETY: mapped above, and nobody else has seen it.
            unsafe { os::unmap(page.cast(), size_of::<Process>()) };
            // SAFETY: the other thread's mapping, never given back.
            Some(unsafe { &*other })
        }
    }
}

impl Process {
    fn load(&self) -> Result<(), Denied> {
        let grant = sealed_grant()?;
        self.grant_mark
            .store(os::file_mark(GRANT_PATH).unwrap_or_default(), Ordering::Relaxed);
        let namespace = os::pid_namespace();
        self.namespace.store(namespace, Ordering::Relaxed);
        let limited = grant
            .cards()
            .iter()
            .any(|card| !card.flags.contains(CardFlags::UNLIMITED));
        if limited {
            self.attach(namespace)?;
        }
        if let Ok(page) = os::map_file(VERDICT_PATH, VERDICT_SIZE, false) {
            // SAFETY: a fresh mapping of the size of a verdict, never given back.
            if unsafe { Verdict::from_ptr(page) }.is_some() {
                self.verdict.store(page, Ordering::Release);
            }
        }
        // SAFETY: `phase` is STARTING, set by this thread.
        let uuids = unsafe { &mut *self.uuids.get() };
        for (place, card) in uuids.iter_mut().zip(grant.cards()) {
            *place = card.uuid;
        }
        self.card_count.store(
            u32::try_from(grant.cards().len()).unwrap_or_default(),
            Ordering::Release,
        );
        self.take_over(&grant);
        Ok(())
    }

    fn attach(&self, namespace: u64) -> Result<(), Denied> {
        let page = os::map_file(ACCOUNT_PATH, ACCOUNT_SIZE, true).map_err(|error| {
            say_once(&[
                "cannot map the account /run/tessera/account/account (",
                os_error(error),
                "); the GPU is refused. Recreate the pod, or look at the node agent's log.",
            ]);
            Denied
        })?;
        // SAFETY: a fresh writable mapping of the size of an account, never given back while it is used.
        let Ok(account) = (unsafe { Account::from_ptr(page) }) else {
            // SAFETY: mapped above; nothing refers to it.
            unsafe { os::unmap(page, ACCOUNT_SIZE) };
            say_once(&[
                "/run/tessera/account/account is no account of this version; the GPU is refused. ",
                "Recreate the pod after the node agent and the library have the same version.",
            ]);
            return Err(Denied);
        };
        let Some(me) = os::myself(namespace) else {
            return Err(Denied);
        };
        let slot = account.attach(me).or_else(|| reap_full(account, me, namespace));
        let Some(slot) = slot else {
            say_once(&["1024 processes of this container use the GPU already; this one is refused."]);
            return Err(Denied);
        };
        // A former image of this very process (exec keeps the pid) is gone, and so is what it held.
        let mine = |who: Owner| who.pid() == me.pid() && who.in_namespace(namespace);
        if account.any_owner(Some(slot), mine) {
            account.reap(slot, me, |who| !mine(who));
        }
        self.slot.store(u32::from(slot.number()), Ordering::Relaxed);
        self.account.store(page, Ordering::Release);
        Ok(())
    }

    /// Puts the figures of a grant in force.
    fn take_over(&self, grant: &Grant) {
        for (place, card) in self.cards.iter().zip(grant.cards()) {
            let flags = u32::from(card.flags.contains(CardFlags::UNLIMITED))
                | u32::from(card.flags.contains(CardFlags::COUNT_CONTEXT)) << 1
                | u32::from(card.flags.contains(CardFlags::OBSERVE)) << 2
                | u32::from(card.flags.contains(CardFlags::SWAP)) << 3
                | u32::from(card.is_gated()) << 4;
            if card.is_gated() {
                crate::turns::switch_on();
            }
            place.cores.store(card.cores_permille, Ordering::Relaxed);
            place.limit.store(card.memory_bytes, Ordering::Relaxed);
            place.context_bytes.store(card.context_bytes, Ordering::Relaxed);
            place.flags.store(flags, Ordering::Release);
        }
        self.generation.store(grant.generation, Ordering::Release);
    }

    /// Takes over a replaced grant. Cheap when there is none: one load, and a clock read without a system call.
    #[inline]
    pub(crate) fn refresh(&self) {
        let announced = self.verdict().map_or(0, Verdict::grant_generation);
        let known = self.generation.load(Ordering::Relaxed);
        let now = os::now_ms();
        if announced > known || now >= self.next_check_ms.load(Ordering::Relaxed) {
            self.look_again(announced > known, now);
        }
    }

    #[cold]
    fn look_again(&self, announced: bool, now: u64) {
        let _errno = KeepErrno::new();
        self.next_check_ms
            .store(now.saturating_add(GRANT_CHECK_MS), Ordering::Relaxed);
        let Some(mark) = os::file_mark(GRANT_PATH) else { return };
        if self.grant_mark.swap(mark, Ordering::AcqRel) == mark && !announced {
            return;
        }
        // A file that is damaged, older, pending or for other cards changes nothing: what was granted stays in force.
        let mut bytes = [0; GRANT_SIZE + 1];
        let Ok(grant) = read_grant(&mut bytes) else { return };
        let same = grant.cards().len() == self.card_count()
            && grant
                .cards()
                .iter()
                .enumerate()
                .all(|(n, card)| self.uuid(Card(n)) == card.uuid.as_str());
        if same && grant.state == GrantState::Sealed && grant.generation > self.generation.load(Ordering::Acquire) {
            self.take_over(&grant);
        }
    }

    pub(crate) fn verdict(&self) -> Option<&Verdict> {
        let page = self.verdict.load(Ordering::Acquire);
        if page.is_null() {
            return None;
        }
        // SAFETY: checked when it was mapped, never given back.
        unsafe { Verdict::from_ptr(page) }
    }

    /// The account and this process's place in it; nothing when no card is limited.
    pub(crate) fn account(&self) -> Option<(&Account, SlotIndex)> {
        let page = self.account.load(Ordering::Acquire);
        if page.is_null() {
            return None;
        }
        // SAFETY: mapped with the size of an account, aligned to a page, checked when it was mapped, never given back.
        let account = unsafe { &*page.cast::<Account>() };
        let slot = SlotIndex::from_number(u16::try_from(self.slot.load(Ordering::Relaxed)).ok()?)?;
        Some((account, slot))
    }

    pub(crate) fn card_count(&self) -> usize {
        usize::try_from(self.card_count.load(Ordering::Acquire)).unwrap_or_default()
    }

    /// UUID of a card as the grant has it.
    pub(crate) fn uuid(&self, card: Card) -> &str {
        // SAFETY: written before READY, which was seen.
        let uuids = unsafe { &*self.uuids.get() };
        uuids.get(card.0).map_or("", Text::as_str)
    }

    /// The granted card with this UUID.
    pub(crate) fn card_by_uuid(&self, uuid: &[u8]) -> Option<Card> {
        (0..self.card_count())
            .map(Card)
            .find(|card| self.uuid(*card).as_bytes() == uuid)
    }

    fn flag(&self, card: Card, bit: u32) -> bool {
        self.cards
            .get(card.0)
            .is_some_and(|state| state.flags.load(Ordering::Acquire) & bit != 0)
    }

    pub(crate) fn is_unlimited(&self, card: Card) -> bool {
        self.flag(card, 1)
    }

    pub(crate) fn counts_context(&self, card: Card) -> bool {
        self.flag(card, 2)
    }

    /// Whether memory of this card may leave it.
    pub(crate) fn swaps(&self, card: Card) -> bool {
        self.flag(card, 8) && !self.is_unlimited(card)
    }

    /// Whether launches on this card pass a gate.
    pub(crate) fn is_gated(&self, card: Card) -> bool {
        self.flag(card, 16)
    }

    /// Share of the card's time in 1/1000.
    pub(crate) fn cores_permille(&self, card: Card) -> u32 {
        self.cards
            .get(card.0)
            .map_or(0, |state| state.cores.load(Ordering::Relaxed))
    }

    /// Whether the agent was heard within the last second.
    pub(crate) fn agent_is_heard(&self) -> bool {
        self.verdict()
            .is_some_and(|verdict| verdict.is_heard(os::now_ms().saturating_mul(1_000_000)))
    }

    /// Whether this process is sure to have one context at most: then nobody needs to ask which is current.
    pub(crate) fn has_one_context(&self) -> bool {
        match self.cards.first() {
            Some(only) if self.card_count() == 1 => only.contexts.load(Ordering::Relaxed) <= 1,
            _ => false,
        }
    }

    /// Whether no context of this process is left.
    pub(crate) fn has_no_context(&self) -> bool {
        self.cards.iter().all(|card| card.contexts.load(Ordering::Relaxed) == 0)
    }

    /// Memory limit in bytes; no limit when the grant says observe.
    pub(crate) fn limit(&self, card: Card) -> u64 {
        self.cards
            .get(card.0)
            .map_or(0, |state| state.limit.load(Ordering::Relaxed))
    }

    /// What is refused beyond: the limit, or nothing at all.
    pub(crate) fn hard_limit(&self, card: Card) -> u64 {
        if self.flag(card, 4) { u64::MAX } else { self.limit(card) }
    }

    /// Size of one context in bytes if the grant states it.
    pub(crate) fn context_bytes(&self, card: Card) -> u64 {
        self.cards
            .get(card.0)
            .map_or(0, |state| state.context_bytes.load(Ordering::Relaxed))
    }

    /// Notes one context more or less of this process on a card.
    pub(crate) fn count_context(&self, card: Card, more: bool) {
        let (Some(state), Some((account, slot))) = (self.cards.get(card.0), self.account()) else {
            return;
        };
        let change = |count: u64| {
            Some(if more {
                count.saturating_add(1)
            } else {
                count.saturating_sub(1)
            })
        };
        // The closure never declines.
        let (Ok(old) | Err(old)) = state.contexts.fetch_update(Ordering::AcqRel, Ordering::Acquire, change);
        account.set_contexts(slot, card.0, change(old).unwrap_or_default());
    }

    /// What is remembered about a device number.
    pub(crate) fn device_memo(&self, device: i32) -> Option<&AtomicU8> {
        self.devices.get(usize::try_from(device).ok()?)
    }

    /// Takes back what dead processes of this container hold.
    #[cold]
    pub(crate) fn reap(&self) {
        let Some((account, slot)) = self.account() else { return };
        let Some(owner) = account.owner(slot) else { return };
        let _errno = KeepErrno::new();
        let namespace = self.namespace.load(Ordering::Relaxed);
        account.reap(slot, owner, |who| os::alive(who, namespace));
    }

    /// The same for a view, now and then.
    pub(crate) fn reap_sometimes(&self) {
        let now = os::now_ms();
        let next = self.next_reap_ms.load(Ordering::Relaxed);
        if now >= next {
            self.next_reap_ms
                .store(now.saturating_add(VIEW_REAP_MS), Ordering::Relaxed);
            self.reap();
        }
    }
}

fn reap_full(account: &Account, me: Owner, namespace: u64) -> Option<SlotIndex> {
    // Without a place of its own this process cannot take back; it borrows the identity of a slot that is dead for
    // sure by detaching it whole.
    for number in 0..u16::MAX {
        let slot = SlotIndex::from_number(number)?;
        let Some(owner) = account.owner(slot) else { continue };
        if !os::alive(owner, namespace) && account.detach(slot, owner).slots == 1 {
            return account.attach(me);
        }
    }
    None
}

/// The grant once it is sealed; waits for that.
fn sealed_grant() -> Result<Grant, Denied> {
    let deadline = os::now_ms().saturating_add(SEAL_WAIT_MS);
    loop {
        let mut bytes = [0; GRANT_SIZE + 1];
        match read_grant(&mut bytes) {
            Ok(grant) if grant.state == GrantState::Sealed => return Ok(grant),
            Ok(_) if os::now_ms() < deadline => os::sleep_ms(SEAL_POLL_MS),
            Ok(_) => {
                say_once(&[
                    "the grant of this container was not confirmed within 30 s; the GPU is refused. ",
                    "Recreate the pod, or look at the node agent's log.",
                ]);
                return Err(Denied);
            }
            Err(reason) => {
                say_once(&[
                    "/run/tessera/grant/grant: ",
                    reason,
                    "; the GPU is refused. Request a GPU for this container, or recreate the pod.",
                ]);
                return Err(Denied);
            }
        }
    }
}

/// The grant as it is now, sealed or not; nothing when it cannot be read.
pub(crate) fn peek_grant() -> Option<Grant> {
    read_grant(&mut [0; GRANT_SIZE + 1]).ok()
}

fn read_grant(bytes: &mut [u8]) -> Result<Grant, &'static str> {
    let length = os::read_file(GRANT_PATH, bytes).map_err(os_error)?;
    Grant::parse(bytes.get(..length).unwrap_or_default()).map_err(|error| match error {
        GrantError::Size(_) | GrantError::Magic(_) => "this is no grant",
        GrantError::Version(_) => "the grant was written by another version",
        GrantError::Checksum { .. } | GrantError::Unstable(_) => "the grant is damaged",
        _ => "the grant holds values out of range",
    })
}

fn os_error(number: i32) -> &'static str {
    match number {
        libc::ENOENT | libc::ENOTDIR => "not there",
        libc::EACCES | libc::EPERM => "no permission",
        libc::EMFILE | libc::ENFILE => "too many open files",
        libc::ENOMEM => "no memory",
        libc::EINVAL => "too short",
        _ => "not readable",
    }
}

/// At load: if a former image of this process (exec keeps the pid) left bytes in the account, they are given back now,
/// not when the new image first uses a card, which may be never.
extern "C" fn forget_former_image() {
    let _errno = KeepErrno::new();
    let Ok(page) = os::map_file(ACCOUNT_PATH, ACCOUNT_SIZE, true) else {
        return;
    };
    // SAFETY: a fresh writable mapping of the size of an account, given back below.
    if let Ok(account) = unsafe { Account::from_ptr(page) } {
        let pid = os::pid();
        if account.any_owner(None, |who| who.pid() == pid) {
            let namespace = os::pid_namespace();
            let former = |who: Owner| who.pid() == pid && who.in_namespace(namespace);
            if let Some(me) = os::myself(namespace)
                && account.any_owner(None, former)
                && let Some(slot) = account.attach(me)
            {
                account.reap(slot, me, |who| !former(who));
                account.detach(slot, me);
            }
        }
    }
    // SAFETY: mapped above; the reference has ended.
    unsafe { os::unmap(page, ACCOUNT_SIZE) };
}

#[cfg(not(test))]
#[used]
#[unsafe(link_section = ".init_array")]
static AT_LOAD: extern "C" fn() = forget_former_image;
#[cfg(test)]
const _: extern "C" fn() = forget_former_image;
