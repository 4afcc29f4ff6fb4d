//! What a program is told about a limited card: its share, as if that were the card. And `cuInit`, which is where a
//! container without a grant is turned away.

use crate::{
    argument::{put, written},
    codes::{INVALID_VALUE, NOT_PERMITTED, SUCCESS},
    place::{self, Place},
    process::{Card, Process, process, started},
};

pub(crate) unsafe fn initialise(real: unsafe extern "C" fn(u32) -> i32, flags: u32) -> i32 {
    if process().is_err() {
        return NOT_PERMITTED;
    }
    // SAFETY: the caller's argument.
    unsafe { real(flags) }
}

/// Total and free bytes of a card as the container sees it, from those of the whole card.
///
/// Total is the limit, but never more than the card; free is what is left of it, but never more than the card has left.
pub(crate) fn share(process: &Process, card: Card, total: u64, free: u64) -> (u64, u64) {
    process.refresh();
    process.reap_sometimes();
    process.pools.settle_freed(process);
    let total = total.min(process.limit(card));
    let left = total.saturating_sub(process.used(card));
    // Where memory can leave the card, what is in use of it now says nothing about what can be had.
    (total, if process.swaps(card) { left } else { left.min(free) })
}

pub(crate) unsafe fn memory(
    real: unsafe extern "C" fn(*mut usize, *mut usize) -> i32,
    free: *mut usize,
    total: *mut usize,
) -> i32 {
    if free.is_null() || total.is_null() {
        return INVALID_VALUE;
    }
    // SAFETY: the caller's arguments.
    let result = unsafe { real(free, total) };
    if result == SUCCESS
        && let Place::Counted(process, card) = place::current()
    {
        let word = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        // SAFETY: not null, and written by the driver.
        let (all, left) = unsafe { share(process, card, word(written(total)), word(written(free))) };
        // SAFETY: as above.
        unsafe {
            put(total, usize::try_from(all).unwrap_or(usize::MAX));
            put(free, usize::try_from(left).unwrap_or(usize::MAX));
        }
    }
    result
}

pub(crate) unsafe fn memory_v1(
    real: unsafe extern "C" fn(*mut u32, *mut u32) -> i32,
    free: *mut u32,
    total: *mut u32,
) -> i32 {
    if free.is_null() || total.is_null() {
        return INVALID_VALUE;
    }
    // SAFETY: the caller's arguments.
    let result = unsafe { real(free, total) };
    if result == SUCCESS
        && let Place::Counted(process, card) = place::current()
    {
        // SAFETY: not null, and written by the driver.
        let (all, left) = unsafe { share(process, card, u64::from(written(total)), u64::from(written(free))) };
        // SAFETY: as above.
        unsafe {
            put(total, u32::try_from(all).unwrap_or(u32::MAX));
            put(free, u32::try_from(left).unwrap_or(u32::MAX));
        }
    }
    result
}

fn total_of(device: i32, card_total: u64) -> u64 {
    // A program may ask before `cuInit`; the driver has its own answer for that.
    match started().map(|_| place::of_device(device)) {
        Some(Place::Counted(process, card)) => {
            process.refresh();
            card_total.min(process.limit(card))
        }
        _ => card_total,
    }
}

pub(crate) unsafe fn total(real: unsafe extern "C" fn(*mut usize, i32) -> i32, total: *mut usize, device: i32) -> i32 {
    if total.is_null() {
        return INVALID_VALUE;
    }
    // SAFETY: the caller's arguments.
    let result = unsafe { real(total, device) };
    if result == SUCCESS {
        // SAFETY: not null, and written by the driver.
        let card_total = unsafe { written(total) };
        let seen = total_of(device, u64::try_from(card_total).unwrap_or(u64::MAX));
        // SAFETY: not null.
        unsafe { put(total, usize::try_from(seen).unwrap_or(usize::MAX)) };
    }
    result
}

pub(crate) unsafe fn total_v1(real: unsafe extern "C" fn(*mut u32, i32) -> i32, total: *mut u32, device: i32) -> i32 {
    if total.is_null() {
        return INVALID_VALUE;
    }
    // SAFETY: the caller's arguments.
    let result = unsafe { real(total, device) };
    if result == SUCCESS {
        // SAFETY: not null, and written by the driver.
        let card_total = unsafe { written(total) };
        let seen = total_of(device, u64::from(card_total));
        // SAFETY: not null.
        unsafe { put(total, u32::try_from(seen).unwrap_or(u32::MAX)) };
    }
    result
}
