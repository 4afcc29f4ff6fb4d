//! Memory by address, for ever until freed: plain, pitched, managed.

use super::{Form, allocate, free};
use crate::{
    address::{Entry, Space},
    argument::written,
    codes::{OUT_OF_MEMORY, SUCCESS},
    place::{self, Place, current_context, rounded},
    process::started,
};

fn pointer(key: u64) -> impl FnOnce(Entry) -> (Space, u64, Entry) {
    move |entry| {
        (
            Space::Pointer,
            key,
            Entry {
                context: current_context(),
                ..entry
            },
        )
    }
}

pub(crate) unsafe fn alloc_v1(real: unsafe extern "C" fn(*mut u32, u32) -> i32, out: *mut u32, size: u32) -> i32 {
    // SAFETY: the caller's arguments.
    let call = || unsafe { real(out, size) };
    if out.is_null() {
        return call();
    }
    // SAFETY: not null, and written by the driver.
    let key = || u64::from(unsafe { written(out) });
    allocate(place::current(), u64::from(size), call, |entry| pointer(key())(entry))
}

pub(crate) unsafe fn alloc(real: unsafe extern "C" fn(*mut u64, usize) -> i32, out: *mut u64, size: usize) -> i32 {
    // SAFETY: the caller's arguments.
    let call = || unsafe { real(out, size) };
    if out.is_null() || size == 0 {
        return call();
    }
    let place = place::current();
    let call = || crate::swap::allocate(place, size, out).unwrap_or_else(call);
    // SAFETY: not null, and written by the driver.
    let key = || unsafe { written(out) };
    allocate(place, bytes(size), call, |entry| pointer(key())(entry))
}

pub(crate) unsafe fn alloc_managed(
    real: unsafe extern "C" fn(*mut u64, usize, u32) -> i32,
    out: *mut u64,
    size: usize,
    flags: u32,
) -> i32 {
    // SAFETY: the caller's arguments.
    let call = || unsafe { real(out, size, flags) };
    if out.is_null() || size == 0 {
        return call();
    }
    // SAFETY: not null, and written by the driver.
    let key = || unsafe { written(out) };
    allocate(place::current(), bytes(size), call, |entry| pointer(key())(entry))
}

pub(crate) unsafe fn alloc_pitch_v1(
    real: unsafe extern "C" fn(*mut u32, *mut u32, u32, u32, u32) -> i32,
    out: *mut u32,
    pitch: *mut u32,
    width: u32,
    height: u32,
    element: u32,
) -> i32 {
    // SAFETY: the caller's arguments.
    let call = || unsafe { real(out, pitch, width, height, element) };
    if out.is_null() || pitch.is_null() {
        return call();
    }
    pitched(
        u64::from(width),
        u64::from(height),
        call,
        // SAFETY: not null, and written by the driver.
        || unsafe { (u64::from(written(out)), u64::from(written(pitch))) },
    )
}

pub(crate) unsafe fn alloc_pitch(
    real: unsafe extern "C" fn(*mut u64, *mut usize, usize, usize, u32) -> i32,
    out: *mut u64,
    pitch: *mut usize,
    width: usize,
    height: usize,
    element: u32,
) -> i32 {
    // SAFETY: the caller's arguments.
    let call = || unsafe { real(out, pitch, width, height, element) };
    if out.is_null() || pitch.is_null() {
        return call();
    }
    // SAFETY: not null, and written by the driver.
    pitched(bytes(width), bytes(height), call, || unsafe {
        (written(out), bytes(written(pitch)))
    })
}

/// Reserves for an estimated row length and settles to the one that the driver chose.
fn pitched(width: u64, height: u64, call: impl FnOnce() -> i32, result: impl FnOnce() -> (u64, u64)) -> i32 {
    // Rows begin at multiples of 512 bytes on the cards of the last ten years.
    let Some(estimate) = width
        .checked_next_multiple_of(512)
        .and_then(|row| row.checked_mul(height))
    else {
        return OUT_OF_MEMORY;
    };
    let place = place::current();
    allocate(place, estimate, call, |entry| {
        let (key, row) = result();
        let mut entry = Entry {
            context: current_context(),
            ..entry
        };
        if let (Place::Counted(process, card), Some(real)) = (place, row.checked_mul(height).and_then(rounded)) {
            if let Some(less) = entry.bytes.checked_sub(real) {
                process.release(card, less);
            } else {
                process.book(card, real.saturating_sub(entry.bytes));
            }
            entry.bytes = real;
        }
        (Space::Pointer, key, entry)
    })
}

pub(crate) unsafe fn free_v1(real: unsafe extern "C" fn(u32) -> i32, pointer: u32) -> i32 {
    // SAFETY: the caller's argument.
    free(started(), Space::Pointer, u64::from(pointer), || unsafe {
        real(pointer)
    })
}

pub(crate) unsafe fn free_v2(real: unsafe extern "C" fn(u64) -> i32, pointer: u64) -> i32 {
    // SAFETY: the caller's argument.
    let call = || crate::swap::free(pointer).unwrap_or_else(|| unsafe { real(pointer) });
    free(started(), Space::Pointer, pointer, call)
}

pub(crate) unsafe fn free_async(
    real: unsafe extern "C" fn(u64, u64) -> i32,
    pointer: u64,
    stream: u64,
    form: Form,
) -> i32 {
    // SAFETY: the caller's arguments.
    let call = || unsafe { real(pointer, stream) };
    if super::pool::capturing(stream, form) {
        // Recorded, not done.
        return call();
    }
    let call = || crate::swap::free_in_stream(pointer, stream).unwrap_or_else(call);
    free(started(), Space::Pointer, pointer, call)
}

/// Sizes in the account's unit.
pub(super) fn bytes(size: usize) -> u64 {
    u64::try_from(size).unwrap_or(u64::MAX)
}

/// A call that makes the driver complete what was queued: pool memory may be gone now.
fn settled(result: i32) -> i32 {
    if result == SUCCESS
        && let Some(process) = started()
    {
        process.pools.settle_freed(process);
    }
    result
}

pub(crate) unsafe fn synchronize_context(real: unsafe extern "C" fn() -> i32) -> i32 {
    // SAFETY: no arguments.
    settled(unsafe { real() })
}

pub(crate) unsafe fn synchronize(real: unsafe extern "C" fn(u64) -> i32, what: u64) -> i32 {
    // SAFETY: the caller's argument.
    settled(unsafe { real(what) })
}
