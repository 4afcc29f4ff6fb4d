//! Stream-ordered memory: what a pool holds is what is booked, whoever uses it at the moment.
//!
//! The driver says what a pool holds (`RESERVED_MEM_CURRENT`). A request that the pool can serve from what it holds
//! takes nothing; one that makes it grow reserves the growth first and settles to the real figure afterwards.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::{Form, card_of, entry, graph, plain::bytes, remember};
use crate::{
    address::{Entry, Space},
    argument::{given, written},
    codes::{INVALID_VALUE, OUT_OF_MEMORY, SUCCESS},
    place::{self, Place, current_context},
    process::{Card, Process, process, started},
    symbol::{
        cuCtxGetDevice, cuDeviceGetCount, cuDeviceGetDefaultMemPool, cuDeviceGetMemPool, cuMemPoolGetAttribute,
        cuStreamIsCapturing, cuStreamIsCapturing_ptsz,
    },
    table::real,
};

const RESERVED_CURRENT: i32 = 5;
const USED_CURRENT: i32 = 7;
const LOCATION_DEVICE: i32 = 1;
const MAX_POOLS: usize = 128;

/// One pool; valid when zero.
#[repr(C)]
pub(crate) struct Pool {
    /// 0: a free place.
    handle: AtomicU64,
    /// Index of the card plus one.
    card: AtomicU32,
    /// 1 after `cuMemPoolDestroy`: what is still in use is given back pointer by pointer.
    destroyed: AtomicU32,
    /// Bytes in the account for this pool.
    booked: AtomicU64,
    /// Bytes reserved by threads that are between their reservation and their settling.
    pending: AtomicU64,
}

/// The pools of this process.
#[repr(C)]
pub(crate) struct Pools {
    pools: [Pool; MAX_POOLS],
    /// Not 0: something was freed into a pool since the last settling.
    freed: AtomicU32,
}

impl Pools {
    fn known(&self, handle: u64) -> Option<(u32, &Pool)> {
        (1_u32..).zip(&self.pools).find(|(_, pool)| {
            pool.handle.load(Ordering::Acquire) == handle && pool.destroyed.load(Ordering::Relaxed) == 0
        })
    }

    /// The pool's place, a new one if it has none; nothing when all places are taken.
    fn enter(&self, handle: u64, card: Card) -> Option<(u32, &Pool)> {
        if let Some(known) = self.known(handle) {
            return Some(known);
        }
        let free = (1_u32..).zip(&self.pools).find(|(_, pool)| {
            pool.handle.load(Ordering::Relaxed) == 0
                && pool
                    .handle
                    .compare_exchange(0, handle, Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok()
        })?;
        free.1
            .card
            .store(u32::try_from(card.0).ok()?.saturating_add(1), Ordering::Release);
        Some(free)
    }

    /// After a pointer from a pool was freed.
    pub(super) fn freed(&self, process: &Process, entry: &Entry) {
        let index = usize::try_from(entry.pool).unwrap_or_default();
        let Some(pool) = index.checked_sub(1).and_then(|index| self.pools.get(index)) else {
            return;
        };
        if pool.destroyed.load(Ordering::Acquire) == 0 {
            self.freed.store(1, Ordering::Release);
            pool.settle(process, 0);
            return;
        }
        let take = |booked: u64| Some(booked.saturating_sub(entry.bytes));
        // The closure never declines.
        let (Ok(old) | Err(old)) = pool.booked.fetch_update(Ordering::AcqRel, Ordering::Acquire, take);
        process.release(card_of(entry), old.min(entry.bytes));
        if old <= entry.bytes {
            pool.leave();
        }
    }

    /// Settles all pools if anything was freed into one.
    pub(crate) fn settle_freed(&self, process: &Process) {
        if self.freed.load(Ordering::Acquire) != 0 && self.freed.swap(0, Ordering::AcqRel) != 0 {
            for pool in &self.pools {
                pool.settle(process, 0);
                if pool.handle.load(Ordering::Relaxed) != 0 && pool.unused() > 0 {
                    // Kept by the pool or not yet reached by its stream: look again next time.
                    self.freed.store(1, Ordering::Release);
                }
            }
        }
    }
}

impl Pool {
    fn card(&self) -> Option<Card> {
        usize::try_from(self.card.load(Ordering::Acquire))
            .ok()?
            .checked_sub(1)
            .map(Card)
    }

    fn attribute(&self, attribute: i32) -> u64 {
        let mut value = 0;
        let handle = self.handle.load(Ordering::Acquire);
        // SAFETY: a pool of the driver and a place for the answer.
        match unsafe { cuMemPoolGetAttribute(handle, attribute, &raw mut value) } {
            SUCCESS => value,
            _ => 0,
        }
    }

    fn unused(&self) -> u64 {
        if self.destroyed.load(Ordering::Relaxed) != 0 {
            return 0;
        }
        self.attribute(RESERVED_CURRENT)
            .saturating_sub(self.attribute(USED_CURRENT))
    }

    /// Makes the booking what the pool holds. `ahead` bytes were reserved by the caller and are used up or given back.
    /// False when the pool has grown beyond the limit; then the growth is booked all the same, since it is there.
    fn settle(&self, process: &Process, ahead: u64) -> bool {
        let Some(card) = self.card() else { return true };
        if self.handle.load(Ordering::Acquire) == 0 || self.destroyed.load(Ordering::Acquire) != 0 {
            return true;
        }
        self.pending.fetch_sub(ahead, Ordering::AcqRel);
        loop {
            let old = self.booked.load(Ordering::Acquire);
            // What other threads have reserved and not yet settled is in the account already.
            let now = self
                .attribute(RESERVED_CURRENT)
                .saturating_sub(self.pending.load(Ordering::Acquire));
            if self
                .booked
                .compare_exchange(old, now, Ordering::AcqRel, Ordering::Acquire)
                .is_err()
            {
                continue;
            }
            let target = now.saturating_sub(old);
            if target <= ahead {
                process.release(
                    card,
                    ahead.saturating_sub(target).saturating_add(old.saturating_sub(now)),
                );
                return true;
            }
            let more = target.saturating_sub(ahead);
            let fits = process.reserve_exactly(card, more);
            if !fits {
                process.book(card, more);
            }
            return fits;
        }
    }

    fn leave(&self) {
        self.card.store(0, Ordering::Relaxed);
        self.destroyed.store(0, Ordering::Relaxed);
        self.handle.store(0, Ordering::Release);
    }
}

/// Whether work on this stream is being recorded, not done.
pub(crate) fn capturing(stream: u64, form: Form) -> bool {
    let mut status = 0;
    // SAFETY: the caller's stream and a place for the answer.
    let code = unsafe {
        match form {
            Form::Legacy => cuStreamIsCapturing(stream, &raw mut status),
            Form::PerThread => cuStreamIsCapturing_ptsz(stream, &raw mut status),
        }
    };
    code == SUCCESS && status != 0
}

/// Trims the pools of a card and takes what that gives off the account.
pub(crate) fn give_unused_back(process: &Process, card: Card) {
    for pool in &process.pools.pools {
        if pool.card() == Some(card) && pool.destroyed.load(Ordering::Acquire) == 0 {
            if pool.unused() > 0 {
                // SAFETY: a pool of the driver.
                unsafe { real::cuMemPoolTrimTo(pool.handle.load(Ordering::Acquire), 0) };
            }
            pool.settle(process, 0);
        }
    }
}

pub(crate) unsafe fn alloc_async(
    real: unsafe extern "C" fn(*mut u64, usize, u64) -> i32,
    out: *mut u64,
    size: usize,
    stream: u64,
    form: Form,
) -> i32 {
    // SAFETY: the caller's arguments.
    let call = || unsafe { real(out, size, stream) };
    if out.is_null() || size == 0 {
        return call();
    }
    let (process, card) = match place::current() {
        Place::Counted(process, card) => (process, card),
        Place::Forward => return call(),
        Place::Refused(code) => return code,
    };
    if capturing(stream, form) {
        return graph::recorded(process, stream, bytes(size), call());
    }
    let (mut device, mut handle) = (-1, 0);
    // SAFETY: places for the answers.
    let found =
        unsafe { cuCtxGetDevice(&raw mut device) == SUCCESS && cuDeviceGetMemPool(&raw mut handle, device) == SUCCESS };
    let pool = if found { process.pools.enter(handle, card) } else { None };
    // SAFETY: not null, and written by the driver.
    from_pool(process, card, pool, bytes(size), stream, form, call, || unsafe {
        written(out)
    })
}

pub(crate) unsafe fn alloc_from_pool(
    real: unsafe extern "C" fn(*mut u64, usize, u64, u64) -> i32,
    out: *mut u64,
    size: usize,
    handle: u64,
    stream: u64,
    form: Form,
) -> i32 {
    // SAFETY: the caller's arguments.
    let call = || unsafe { real(out, size, handle, stream) };
    if out.is_null() || size == 0 {
        return call();
    }
    let Ok(process) = process() else {
        return crate::codes::NOT_PERMITTED;
    };
    // A pool that is neither made here nor a card's default one was imported; its owner pays.
    let Some((index, pool, card)) = counted_pool(process, handle) else {
        return call();
    };
    if capturing(stream, form) {
        return graph::recorded(process, stream, bytes(size), call());
    }
    // SAFETY: not null, and written by the driver.
    from_pool(
        process,
        card,
        Some((index, pool)),
        bytes(size),
        stream,
        form,
        call,
        || unsafe { written(out) },
    )
}

fn counted_pool(process: &'static Process, handle: u64) -> Option<(u32, &'static Pool, Card)> {
    if let Some((index, pool)) = process.pools.known(handle) {
        return Some((index, pool, pool.card()?));
    }
    let mut count = 0;
    // SAFETY: a place for the answer.
    unsafe { cuDeviceGetCount(&raw mut count) };
    for device in 0..count {
        let mut default = 0;
        // SAFETY: a place for the answer.
        let code = unsafe { cuDeviceGetDefaultMemPool(&raw mut default, device) };
        if code == SUCCESS && default == handle {
            let Place::Counted(process, card) = place::of_device(device) else {
                return None;
            };
            let (index, pool) = process.pools.enter(handle, card)?;
            return Some((index, pool, card));
        }
    }
    None
}

#[expect(clippy::too_many_arguments, reason = "one place for both calls")]
fn from_pool(
    process: &Process,
    card: Card,
    pool: Option<(u32, &Pool)>,
    bytes: u64,
    stream: u64,
    form: Form,
    call: impl FnOnce() -> i32,
    pointer: impl FnOnce() -> u64,
) -> i32 {
    let growth = pool.map_or(bytes, |(_, pool)| bytes.saturating_sub(pool.unused()));
    let ahead = match process.reserve(card, growth) {
        Ok(ahead) => ahead,
        Err(code) => return code,
    };
    if let Some((_, pool)) = pool {
        pool.pending.fetch_add(ahead, Ordering::AcqRel);
    }
    let result = call();
    if result != SUCCESS {
        if let Some((_, pool)) = pool {
            pool.pending.fetch_sub(ahead, Ordering::AcqRel);
        }
        process.release(card, ahead);
        return result;
    }
    let key = pointer();
    let Some((index, pool)) = pool else {
        // Without a known pool the request itself is what is booked.
        remember(
            process,
            Space::Pointer,
            key,
            Entry {
                context: current_context(),
                ..entry(card, ahead)
            },
        );
        return SUCCESS;
    };
    if pool.settle(process, ahead) {
        let entry = Entry {
            context: current_context(),
            pool: index,
            ..entry(card, bytes)
        };
        remember(process, Space::Pointer, key, entry);
        return SUCCESS;
    }
    // The pool grew by more than was asked for, beyond the limit: the request is undone.
    // SAFETY: the pointer that the driver just gave, in the same stream.
    unsafe {
        match form {
            Form::Legacy => real::cuMemFreeAsync(key, stream),
            Form::PerThread => real::cuMemFreeAsync_ptsz(key, stream),
        }
    };
    process.pools.freed.store(1, Ordering::Release);
    give_unused_back(process, card);
    OUT_OF_MEMORY
}

/// Properties of a new pool, as far as they matter.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct PoolProperties {
    allocation_type: i32,
    handle_types: i32,
    location_type: i32,
    location_id: i32,
}

pub(crate) unsafe fn create(
    real: unsafe extern "C" fn(*mut u64, *const PoolProperties) -> i32,
    out: *mut u64,
    properties: *const PoolProperties,
) -> i32 {
    // SAFETY: the caller's arguments.
    let call = || unsafe { real(out, properties) };
    if out.is_null() || properties.is_null() {
        return call();
    }
    // SAFETY: integers only.
    let Some(properties) = (unsafe { given(properties) }) else {
        return INVALID_VALUE;
    };
    let device = properties.location_id;
    if properties.location_type != LOCATION_DEVICE {
        return call();
    }
    match place::of_device(device) {
        Place::Refused(code) => code,
        Place::Forward => call(),
        Place::Counted(process, card) => {
            let result = call();
            if result == SUCCESS {
                // SAFETY: not null, and written by the driver.
                process.pools.enter(unsafe { written(out) }, card);
            }
            result
        }
    }
}

pub(crate) unsafe fn trim(real: unsafe extern "C" fn(u64, usize) -> i32, handle: u64, keep: usize) -> i32 {
    // SAFETY: the caller's arguments.
    let result = unsafe { real(handle, keep) };
    if let Some(process) = started()
        && let Some((_, pool)) = process.pools.known(handle)
    {
        pool.settle(process, 0);
    }
    result
}

pub(crate) unsafe fn destroy(real: unsafe extern "C" fn(u64) -> i32, handle: u64) -> i32 {
    // SAFETY: the caller's argument.
    let call = || unsafe { real(handle) };
    let Some((process, (_, pool))) =
        started().and_then(|process| process.pools.known(handle).map(|known| (process, known)))
    else {
        return call();
    };
    let used = pool.attribute(USED_CURRENT);
    let result = call();
    if result == SUCCESS
        && let Some(card) = pool.card()
    {
        // What is in use lives on until it is freed.
        pool.destroyed.store(1, Ordering::Release);
        let old = pool.booked.swap(used, Ordering::AcqRel);
        process.release(card, old.saturating_sub(used));
        if used == 0 {
            pool.leave();
        }
    }
    result
}
