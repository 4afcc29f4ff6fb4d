//! The chunks of this process, and the gate.

use core::{
    cell::UnsafeCell,
    sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering},
};

use tessera_region::{MAX_CARDS, SWAP_ORDER_SIZE, SWAP_REPORT_SIZE, SwapFigures, SwapOrders, SwapReports, SwapRow};

use super::mover;
use crate::{
    address::{Entry, Lock, Space as Kind},
    codes::{OUT_OF_MEMORY, SUCCESS},
    message::say_once,
    os,
    process::{Card, Process},
    symbol::{
        cuMemAddressFree, cuMemAddressReserve, cuMemCreate, cuMemFreeHost, cuMemMap, cuMemRelease, cuMemSetAccess,
        cuMemUnmap,
    },
};

/// Unit of physical memory.
const GRANULE: u64 = 2 << 20;
/// Most memory that moves as one: large enough for the full speed of the link, small enough to keep part of a range.
const CHUNK: u64 = 64 << 20;
/// Most chunks of a process; 1 TiB of them.
const MAX_CHUNKS: usize = 1 << 14;

const ORDER_PATH: &core::ffi::CStr = c"/run/tessera/grant/swap";
const REPORT_PATH: &core::ffi::CStr = c"/run/tessera/account/swap";

/// Where a chunk's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum State {
    /// No chunk.
    Free = 0,
    /// On the card.
    Resident,
    /// In host memory.
    Away,
    /// Nowhere: it was allocated when the card was full, and nothing was written yet.
    Empty,
}

/// A piece of an allocation.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Chunk {
    pub(super) address: u64,
    pub(super) size: u64,
    /// Address of the whole allocation.
    pub(super) base: u64,
    pub(super) handle: u64,
    /// Host memory that it left to once; kept for the next time.
    pub(super) host: u64,
    pub(super) context: u64,
    /// Turn in which it was last brought in.
    pub(super) turn: u64,
    pub(super) device: i32,
    pub(super) card: u32,
    pub(super) state: State,
    pub(super) pinned: bool,
}

#[repr(C)]
pub(super) struct Chunks {
    pub(super) turn: u64,
    /// Highest chunk in use, plus one.
    high: usize,
    cells: [Chunk; MAX_CHUNKS],
}

impl Chunks {
    pub(super) fn all(&mut self) -> &mut [Chunk] {
        let high = self.high.min(MAX_CHUNKS);
        self.cells.get_mut(..high).unwrap_or_default()
    }

    fn add(&mut self, chunk: Chunk) -> bool {
        let at = self
            .all()
            .iter()
            .position(|known| known.state == State::Free)
            .unwrap_or(self.high);
        let Some(place) = self.cells.get_mut(at) else {
            return false;
        };
        *place = chunk;
        self.high = self.high.max(at.saturating_add(1));
        true
    }
}

/// What this process knows of its movable memory. Valid when zero.
#[repr(C)]
pub(crate) struct Space {
    /// 0 fresh, 1 being started, 2 started, 3 not to be had.
    phase: AtomicU32,
    /// Memory is away, or is moving: calls wait.
    pub(super) closed: AtomicU32,
    /// Calls under way.
    inside: AtomicU32,
    /// A call waits.
    pub(super) wanted: AtomicU32,
    orders: AtomicPtr<u8>,
    reports: AtomicPtr<u8>,
    pub(super) moved_bytes: AtomicU64,
    pub(super) moved_ns: AtomicU64,
    pub(super) answered: [AtomicU32; MAX_CARDS],
    lock: Lock,
    chunks: UnsafeCell<Chunks>,
}

// SAFETY: the chunks are reached only under the lock; everything else is atomic.
unsafe impl Sync for Space {}

const STARTED: u32 = 2;
const FAILED: u32 = 3;

impl Space {
    /// Maps the pages and starts the thread that moves; once.
    pub(super) fn start(&'static self, process: &'static Process) -> bool {
        loop {
            match self.phase.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => break,
                Err(1) => os::sleep_ms(1),
                Err(phase) => return phase == STARTED,
            }
        }
        let mapped = match (
            os::map_file(ORDER_PATH, SWAP_ORDER_SIZE, false),
            os::map_file(REPORT_PATH, SWAP_REPORT_SIZE, true),
        ) {
            (Ok(orders), Ok(reports)) => {
                // SAFETY: fresh mappings of the full size, never given back.
                let good =
                    unsafe { SwapOrders::from_ptr(orders).is_some() && SwapReports::from_ptr(reports).is_some() };
                self.orders.store(orders, Ordering::Release);
                self.reports.store(reports, Ordering::Release);
                good
            }
            _ => false,
        };
        if mapped {
            self.claim_rows(process);
        }
        let ready = mapped && mover::spawn(self, process);
        if !ready {
            say_once(&[
                "the pages for moving memory out of the card are not to be had; memory of this process stays on the ",
                "card. Recreate the pod after the node agent and the library have the same version.",
            ]);
        }
        self.phase
            .store(if ready { STARTED } else { FAILED }, Ordering::Release);
        ready
    }

    pub(super) fn orders(&self) -> Option<&SwapOrders> {
        // SAFETY: null or mapped for ever with the full size.
        unsafe { SwapOrders::from_ptr(self.orders.load(Ordering::Acquire)) }
    }

    fn row(&self, process: &Process, card: usize) -> Option<&SwapRow> {
        let (_, slot) = process.account()?;
        // SAFETY: null or mapped for ever with the full size.
        let reports = unsafe { SwapReports::from_ptr(self.reports.load(Ordering::Acquire)) }?;
        reports.row(usize::from(slot.number()), card)
    }

    /// Tells the agent that this process is there.
    pub(super) fn beat(&self, process: &Process, card: usize, busy: bool) {
        if let Some(row) = self.row(process, card) {
            row.beat(os::now_ns(), busy);
        }
    }

    /// Begins the rows of this process anew: a dead process may have had them before.
    pub(super) fn claim_rows(&self, process: &Process) {
        // SAFETY: null or mapped for ever with the full size.
        let reports = unsafe { SwapReports::from_ptr(self.reports.load(Ordering::Acquire)) };
        if let (Some(reports), Some((_, slot))) = (reports, process.account()) {
            reports.use_row(usize::from(slot.number()));
        }
        for card in 0..process.card_count() {
            self.with(|chunks| self.publish(process, card, chunks));
        }
    }

    /// Runs `work` on the chunks. Never called inside the gate: the thread that moves holds the lock while it waits
    /// for the card.
    pub(super) fn with<R>(&self, work: impl FnOnce(&mut Chunks) -> R) -> R {
        let guard = self.lock.hold();
        // SAFETY: the lock is held until after the last use.
        let result = work(unsafe { &mut *self.chunks.get() });
        drop(guard);
        result
    }

    #[inline(never)]
    pub(super) fn enter(&self) {
        let mut waited = false;
        loop {
            self.inside.fetch_add(1, Ordering::SeqCst);
            let closed = self.closed.load(Ordering::SeqCst);
            if closed == 0 {
                if waited {
                    // It may have been said after the figures that went with the opening.
                    self.say_wants(false);
                }
                return;
            }
            self.leave();
            waited = true;
            self.wanted.store(1, Ordering::SeqCst);
            self.say_wants(true);
            os::futex_wait_for(&self.closed, closed, 20);
        }
    }

    fn say_wants(&self, wants: bool) {
        let Some(process) = crate::process::started() else {
            return;
        };
        for card in 0..process.card_count() {
            if process.swaps(Card(card))
                && let Some(row) = self.row(process, card)
            {
                row.set_wants(wants);
            }
        }
    }

    #[inline(never)]
    pub(super) fn leave(&self) {
        self.inside.fetch_sub(1, Ordering::SeqCst);
    }

    /// Closes the gate and waits until nobody is inside; false, and open as before, when that takes too long.
    pub(super) fn close(&self) -> bool {
        let before = self.closed.swap(1, Ordering::SeqCst);
        for _ in 0..CLOSE_TRIES {
            if self.inside.load(Ordering::SeqCst) == 0 {
                return true;
            }
            os::sleep_us(100);
        }
        if before == 0 {
            self.open();
        }
        false
    }

    pub(super) fn open(&self) {
        self.wanted.store(0, Ordering::SeqCst);
        self.closed.store(0, Ordering::SeqCst);
        os::futex_wake_all(&self.closed);
    }

    /// Writes the figures of a card for the agent.
    pub(super) fn publish(&self, process: &Process, card: usize, chunks: &mut Chunks) {
        let Some(row) = self.row(process, card) else { return };
        let mut figures = SwapFigures {
            answered: self.answered.get(card).map_or(0, |word| word.load(Ordering::Relaxed)),
            wants: self.wanted.load(Ordering::SeqCst) != 0,
            moved_bytes: self.moved_bytes.load(Ordering::Relaxed),
            moved_ns: self.moved_ns.load(Ordering::Relaxed),
            beat_ns: os::now_ns(),
            ..SwapFigures::default()
        };
        for chunk in chunks.all() {
            if usize::try_from(chunk.card) != Ok(card) {
                continue;
            }
            let place = match chunk.state {
                State::Free => continue,
                State::Resident if chunk.pinned => &mut figures.pinned_bytes,
                State::Resident => &mut figures.resident_bytes,
                State::Away | State::Empty => &mut figures.away_bytes,
            };
            *place = place.saturating_add(chunk.size);
        }
        row.write(&figures);
    }

    /// Allocates; nothing when the driver cannot do it this way, and then nothing has changed.
    pub(super) fn allocate(
        &self,
        process: &'static Process,
        card: Card,
        device: i32,
        context: u64,
        bytes: u64,
    ) -> Option<u64> {
        let size = bytes.checked_next_multiple_of(GRANULE)?;
        let mut base = 0;
        let length = usize::try_from(size).ok()?;
        // SAFETY: a place for the answer.
        if unsafe { cuMemAddressReserve(&raw mut base, length, 0, 0, 0) } != SUCCESS {
            return None;
        }
        let number = u32::try_from(card.0).ok()?;
        let (made, full) = self.with(|chunks| {
            let turn = chunks.turn;
            let (mut done, mut full) = (0, false);
            while done < size {
                let mut chunk = Chunk {
                    address: base.saturating_add(done),
                    size: size.saturating_sub(done).min(CHUNK),
                    base,
                    handle: 0,
                    host: 0,
                    context,
                    turn,
                    device,
                    card: number,
                    state: State::Empty,
                    pinned: false,
                };
                match bring(&mut chunk) {
                    SUCCESS => chunk.state = State::Resident,
                    OUT_OF_MEMORY => full = true,
                    _ => {
                        self.drop_range(chunks, base);
                        return (false, false);
                    }
                }
                if !chunks.add(chunk) {
                    take_off(&mut chunk);
                    self.drop_range(chunks, base);
                    return (false, false);
                }
                done = done.saturating_add(chunk.size);
            }
            self.publish(process, card.0, chunks);
            (true, full)
        });
        let entry = Entry {
            bytes: size,
            card: number,
            ..Entry::default()
        };
        if !made || process.table.insert(Kind::Swap, base, entry).is_err() {
            self.with(|chunks| self.drop_range(chunks, base));
            // SAFETY: reserved above, and nothing is mapped there.
            unsafe { cuMemAddressFree(base, length) };
            return None;
        }
        if full {
            // Part of it is not there: whoever touches it waits until the agent has made room.
            self.closed.store(1, Ordering::SeqCst);
        }
        Some(base)
    }

    /// Gives up the chunks of a range; the address space stays.
    fn drop_range(&self, chunks: &mut Chunks, base: u64) {
        for chunk in chunks.all().iter_mut().filter(|chunk| chunk.state != State::Free) {
            if chunk.base == base {
                take_off(chunk);
                if chunk.host != 0 {
                    // SAFETY: given by the driver and freed once.
                    unsafe { cuMemFreeHost(chunk.host) };
                    chunk.host = 0;
                }
                chunk.state = State::Free;
            }
        }
    }

    /// Frees a whole allocation.
    pub(super) fn free(&self, process: &Process, base: u64) -> bool {
        let Some(entry) = process.table.take(Kind::Swap, base) else {
            return false;
        };
        self.with(|chunks| {
            self.drop_range(chunks, base);
            self.publish(process, usize::try_from(entry.card).unwrap_or(usize::MAX), chunks);
            self.open_if_whole(chunks);
        });
        if let Ok(length) = usize::try_from(entry.bytes) {
            // SAFETY: reserved by `allocate`, and nothing is mapped there any more.
            unsafe { cuMemAddressFree(base, length) };
        }
        true
    }

    /// Whether nothing is away.
    pub(super) fn is_whole(&self, chunks: &mut Chunks) -> bool {
        !chunks
            .all()
            .iter()
            .any(|chunk| matches!(chunk.state, State::Away | State::Empty))
    }

    /// Opens the gate when nothing is away.
    pub(super) fn open_if_whole(&self, chunks: &mut Chunks) {
        if self.is_whole(chunks) && self.closed.load(Ordering::SeqCst) != 0 {
            self.open();
        }
    }

    pub(super) fn context_gone(&self, process: &Process, context: u64) {
        loop {
            let found = self.with(|chunks| {
                chunks
                    .all()
                    .iter()
                    .find(|chunk| chunk.state != State::Free && chunk.context == context)
                    .map(|chunk| chunk.base)
            });
            let Some(base) = found else { return };
            if !self.free(process, base) {
                // Freed by another thread meanwhile, down to its last chunk; nothing more to do for it.
                self.with(|chunks| self.drop_range(chunks, base));
            }
        }
    }

    /// Size of the allocation that an address lies in, and where it begins.
    pub(crate) fn range(&self, process: &Process, address: u64) -> Option<(u64, u64)> {
        let base = self.with(|chunks| {
            chunks
                .all()
                .iter()
                .find(|c| c.state != State::Free && c.address <= address && address.wrapping_sub(c.address) < c.size)
                .map(|chunk| chunk.base)
        })?;
        Some((base, process.table.get(Kind::Swap, base)?.bytes))
    }

    /// Keeps a range on the card for ever, or brings it back for that.
    pub(crate) fn pin(&self, process: &Process, address: u64, bytes: u64) {
        let end = address.saturating_add(bytes.max(1));
        self.with(|chunks| {
            let mut cards = 0_u32;
            for chunk in chunks.all().iter_mut().filter(|chunk| chunk.state != State::Free) {
                if chunk.address < end && address < chunk.address.saturating_add(chunk.size) {
                    chunk.pinned = true;
                    cards |= 1_u32.wrapping_shl(chunk.card);
                }
            }
            for card in 0..MAX_CARDS {
                if cards & 1_u32.wrapping_shl(u32::try_from(card).unwrap_or_default()) != 0 {
                    self.publish(process, card, chunks);
                }
            }
        });
    }
}

/// A process that keeps a call inside for longer than this is not moved: 10 s of steps of 100 us.
const CLOSE_TRIES: u32 = 100_000;

/// Gives a chunk physical memory at its address. The driver's code; on failure nothing has changed.
pub(super) fn bring(chunk: &mut Chunk) -> i32 {
    let Ok(size) = usize::try_from(chunk.size) else {
        return OUT_OF_MEMORY;
    };
    let device = chunk.device.cast_unsigned();
    // Pinned memory, no handle types, on the device; the rest is zero.
    let properties = [1_u32, 0, 1, device, 0, 0, 0, 0];
    let access = [1_i32, chunk.device, 3];
    let mut handle = 0;
    // SAFETY: places and structures as the vendor lays them out; the address was reserved with this size or more.
    unsafe {
        let code = cuMemCreate(&raw mut handle, size, properties.as_ptr(), 0);
        if code != SUCCESS {
            return code;
        }
        let mut code = cuMemMap(chunk.address, size, 0, handle, 0);
        if code == SUCCESS {
            code = cuMemSetAccess(chunk.address, size, access.as_ptr(), 1);
            if code != SUCCESS {
                cuMemUnmap(chunk.address, size);
            }
        }
        if code == SUCCESS {
            chunk.handle = handle;
        } else {
            cuMemRelease(handle);
        }
        code
    }
}

/// Takes a chunk's physical memory away; its bytes are lost unless they were copied.
pub(super) fn take_off(chunk: &mut Chunk) {
    if chunk.handle == 0 {
        return;
    }
    if let Ok(size) = usize::try_from(chunk.size) {
        // SAFETY: mapped by `bring`; nothing uses it, by the gate or by the caller's free.
        unsafe {
            cuMemUnmap(chunk.address, size);
            cuMemRelease(chunk.handle);
        }
    }
    chunk.handle = 0;
}
