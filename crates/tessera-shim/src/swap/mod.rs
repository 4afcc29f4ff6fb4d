//! Memory that can leave the card while its tenant waits, and comes back at the same address.
//!
//! Only for cards whose grant says so ([`CardFlags::SWAP`](tessera_region::CardFlags::SWAP)); for all others this module
//! costs one load and a branch where it is asked at all. There, an allocation of plain memory is address space of its
//! own with physical memory mapped to it in *chunks* ([`store`]). The node agent orders a process to leave or to return;
//! a thread of this library carries the order out ([`mover`]). Pointers stay what they were.
//!
//! While a chunk is away, calls that could touch it wait at a gate ([`pass`]). The gate is closed before anything moves
//! and after the calls inside it have left, so no command of the process can be queued in between.
//!
//! # What it does not do
//! - Small memory, managed memory, arrays and pools stay where they are and count against the card alone.
//! - Memory that another process or another device may touch (a handle for its address range was given out, or it was
//!   prepared for direct access over a network) is pinned: it never moves again.
//! - It orders nothing by itself, except that it takes free memory of the card when a call waits and no agent is heard.

mod mover;
mod store;

use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use crate::{
    address::Space as Kind,
    argument::{is_writable, put},
    codes::SUCCESS,
    os::{self, KeepErrno},
    place::{Place, current_context},
    process::{self, Process},
    symbol::{cuCtxGetDevice, cuCtxSynchronize, cuStreamSynchronize},
};
use store::Space;

/// Smaller allocations stay with the driver, which packs them; a chunk of their own would waste most of itself.
const LEAST: usize = 1 << 20;

static SPACE: AtomicPtr<Space> = AtomicPtr::new(core::ptr::null_mut());
/// 1 once memory of this process can move: only then is the gate looked at.
static ON: AtomicU32 = AtomicU32::new(0);
pub(crate) fn space() -> Option<&'static Space> {
    let found = SPACE.load(Ordering::Acquire);
    // SAFETY: null, or a mapping that is never given back.
    unsafe { found.as_ref() }
}

/// The space of this process, made at the first allocation that can move.
fn start(process: &'static Process) -> Option<&'static Space> {
    if let Some(space) = space() {
        return space.start(process).then_some(space);
    }
    let (page, _) = os::private_memory(size_of::<Space>(), true);
    if page.is_null() {
        return None;
    }
    let page = page.cast::<Space>();
    let chosen = match SPACE.compare_exchange(core::ptr::null_mut(), page, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => page,
        Err(other) => {
            // SAFETY: mapped above, and nobody else has seen it.
            unsafe { os::unmap(page.cast(), size_of::<Space>()) };
            other
        }
    };
    // SAFETY: zeroed, aligned to a page, valid when zero, never given back.
    let space = unsafe { &*chosen };
    let started = space.start(process);
    if started {
        ON.store(1, Ordering::Release);
        crate::turns::memory_moves();
    }
    started.then_some(space)
}

/// A call that may touch memory of the card; while one is under way nothing moves.
pub(crate) struct Pass(Option<&'static Space>);

impl Drop for Pass {
    #[inline]
    fn drop(&mut self) {
        if let Some(space) = self.0 {
            space.leave();
        }
    }
}

/// Whether no memory of this process can move, so that there is no gate.
#[inline]
pub(crate) fn is_off() -> bool {
    ON.load(Ordering::Relaxed) == 0
}

/// Enters the gate: waits while memory of this process is away.
#[inline]
pub(crate) fn pass() -> Pass {
    if ON.load(Ordering::Relaxed) == 0 {
        return Pass(None);
    }
    Pass(space().inspect(|space| space.enter()))
}

/// Allocates memory that can move; nothing when this allocation is the driver's own to make.
pub(crate) fn allocate(place: Place, size: usize, out: *mut u64) -> Option<i32> {
    let Place::Counted(process, card) = place else {
        return None;
    };
    if size < LEAST || !process.swaps(card) || !is_writable(out, size_of::<u64>()) {
        return None;
    }
    let _errno = KeepErrno::new();
    let mut device = -1;
    // SAFETY: a place for the answer.
    if unsafe { cuCtxGetDevice(&raw mut device) } != SUCCESS {
        return None;
    }
    let space = start(process)?;
    let address = space.allocate(process, card, device, current_context(), u64::try_from(size).ok()?)?;
    // SAFETY: writable, by the kernel's word.
    unsafe { put(out, address) };
    Some(SUCCESS)
}

/// Frees memory that can move; nothing when the address is not of that kind.
pub(crate) fn free(address: u64) -> Option<i32> {
    let (process, space) = (process::started()?, space()?);
    process.table.get(Kind::Swap, address)?;
    let _errno = KeepErrno::new();
    // The driver's own call waits for the card as well before it frees.
    // SAFETY: no arguments.
    unsafe { cuCtxSynchronize() };
    space.free(process, address).then_some(SUCCESS)
}

/// The same in the order of a stream.
pub(crate) fn free_in_stream(address: u64, stream: u64) -> Option<i32> {
    let process = process::started()?;
    process.table.get(Kind::Swap, address).filter(|_| space().is_some())?;
    // SAFETY: the caller's stream.
    let code = unsafe { cuStreamSynchronize(stream) };
    if code == SUCCESS { free(address) } else { Some(code) }
}

/// A context is gone, and with it what was allocated in it.
pub(crate) fn context_gone(context: u64) {
    crate::turns::context_gone();
    if let (Some(process), Some(space)) = (process::started(), space()) {
        space.context_gone(process, context);
    }
}
