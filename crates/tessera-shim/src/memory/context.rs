//! Contexts: refused on cards that are not granted, counted where the grant says so, and the end of what was made in
//! them.

use core::ffi::c_void;

use super::{card_of, entry, forget};
use crate::{
    address::{Entry, Space},
    argument::written,
    codes::SUCCESS,
    nvml,
    place::{self, Place},
    process::{Card, Process, started},
    symbol::cuDevicePrimaryCtxGetState,
};

/// Marks a primary context in [`Entry::extra`].
const PRIMARY: u64 = 1;

/// Makes a context on a device, by whichever call.
fn make(device: i32, kind: u64, call: impl FnOnce() -> i32, context: impl FnOnce() -> u64) -> i32 {
    match place::of_device(device) {
        Place::Refused(code) => code,
        Place::Forward => call(),
        Place::Counted(process, card) => {
            let result = call();
            if result == SUCCESS {
                made(process, card, kind, context());
            }
            result
        }
    }
}

/// Books a new context. It is there already, so it is booked whatever the limit.
fn made(process: &Process, card: Card, kind: u64, context: u64) {
    if process.table.get(Space::Context, context).is_some() {
        return;
    }
    let bytes = if process.counts_context(card) {
        match process.context_bytes(card) {
            0 => nvml::unbooked(process, card).unwrap_or(0),
            stated => stated,
        }
    } else {
        0
    };
    process.book(card, bytes);
    let new = Entry {
        extra: kind,
        ..entry(card, bytes)
    };
    match process.table.insert(Space::Context, context, new) {
        // Another thread retained the same primary context at the same time.
        Ok(Some(old)) => process.release(card, old.bytes),
        Ok(None) | Err(()) => process.count_context(card, true),
    }
}

/// A context is gone, and all that was made in it.
fn gone(process: &Process, context: u64) {
    if let Some(entry) = process.table.take(Space::Context, context) {
        process.release(card_of(&entry), entry.bytes);
        process.count_context(card_of(&entry), false);
    }
    purge(process, context);
}

fn purge(process: &Process, context: u64) {
    crate::swap::context_gone(context);
    for space in [Space::Pointer, Space::Array, Space::Mipmap, Space::External] {
        process.table.drain(
            space,
            |_, entry| context != 0 && entry.context == context,
            |_, entry| forget(process, &entry),
        );
    }
    process.pools.settle_freed(process);
}

fn is_active(device: i32) -> bool {
    let (mut flags, mut active) = (0, 0);
    // SAFETY: places for the answers.
    let code = unsafe { cuDevicePrimaryCtxGetState(device, &raw mut flags, &raw mut active) };
    code == SUCCESS && active != 0
}

fn primary(process: &Process, device: i32) -> Option<u64> {
    let Place::Counted(_, card) = place::of_device(device) else {
        return None;
    };
    process
        .table
        .search(Space::Context, |_, entry| {
            entry.extra == PRIMARY && card_of(entry) == card
        })
        .map(|(context, _)| context)
}

pub(crate) unsafe fn primary_retain(
    real: unsafe extern "C" fn(*mut u64, i32) -> i32,
    out: *mut u64,
    device: i32,
) -> i32 {
    // SAFETY: the caller's arguments.
    let call = || unsafe { real(out, device) };
    if out.is_null() {
        return call();
    }
    // SAFETY: not null, and written by the driver.
    make(device, PRIMARY, call, || unsafe { written(out) })
}

pub(crate) unsafe fn primary_release(real: unsafe extern "C" fn(i32) -> i32, device: i32) -> i32 {
    // SAFETY: the caller's argument.
    let result = unsafe { real(device) };
    if result == SUCCESS
        && let Some(process) = started()
        && let Some(context) = primary(process, device)
        && !is_active(device)
    {
        gone(process, context);
    }
    result
}

pub(crate) unsafe fn primary_reset(real: unsafe extern "C" fn(i32) -> i32, device: i32) -> i32 {
    // SAFETY: the caller's argument.
    let result = unsafe { real(device) };
    if result == SUCCESS
        && let Some(process) = started()
        && let Some(context) = primary(process, device)
    {
        // The context itself stays booked: who retained it still has it, and its next use brings its memory back
        // without a call that is seen here.
        purge(process, context);
    }
    result
}

pub(crate) unsafe fn create(
    real: unsafe extern "C" fn(*mut u64, u32, i32) -> i32,
    out: *mut u64,
    flags: u32,
    device: i32,
) -> i32 {
    // SAFETY: the caller's arguments.
    let call = || unsafe { real(out, flags, device) };
    if out.is_null() {
        return call();
    }
    // SAFETY: not null, and written by the driver.
    make(device, 0, call, || unsafe { written(out) })
}

pub(crate) unsafe fn create_v3(
    real: unsafe extern "C" fn(*mut u64, *mut c_void, i32, u32, i32) -> i32,
    out: *mut u64,
    affinity: *mut c_void,
    count: i32,
    flags: u32,
    device: i32,
) -> i32 {
    // SAFETY: the caller's arguments.
    let call = || unsafe { real(out, affinity, count, flags, device) };
    if out.is_null() {
        return call();
    }
    // SAFETY: not null, and written by the driver.
    make(device, 0, call, || unsafe { written(out) })
}

pub(crate) unsafe fn create_v4(
    real: unsafe extern "C" fn(*mut u64, *mut c_void, u32, i32) -> i32,
    out: *mut u64,
    parameters: *mut c_void,
    flags: u32,
    device: i32,
) -> i32 {
    // SAFETY: the caller's arguments.
    let call = || unsafe { real(out, parameters, flags, device) };
    if out.is_null() {
        return call();
    }
    // SAFETY: not null, and written by the driver.
    make(device, 0, call, || unsafe { written(out) })
}

pub(crate) unsafe fn create_green(
    real: unsafe extern "C" fn(*mut u64, *mut c_void, i32, u32) -> i32,
    out: *mut u64,
    description: *mut c_void,
    device: i32,
    flags: u32,
) -> i32 {
    // SAFETY: the caller's arguments.
    let call = || unsafe { real(out, description, device, flags) };
    if out.is_null() {
        return call();
    }
    // SAFETY: not null, and written by the driver.
    make(device, 0, call, || unsafe { written(out) })
}

pub(crate) unsafe fn destroy(real: unsafe extern "C" fn(u64) -> i32, context: u64) -> i32 {
    // SAFETY: the caller's argument.
    let result = unsafe { real(context) };
    if result == SUCCESS
        && let Some(process) = started()
    {
        gone(process, context);
    }
    result
}

/// The forerunner of destroying: takes one use off the context and destroys it with the last.
pub(crate) unsafe fn detach(real: unsafe extern "C" fn(u64) -> i32, context: u64) -> i32 {
    // A context that was made here and never attached again has one use, so this is its end.
    // SAFETY: the caller's argument.
    unsafe { destroy(real, context) }
}
