//! Physical memory by handle, and its mappings.
//!
//! A handle counts as long as anything refers to it: the creation, a retained or imported reference, a mapping. The
//! driver frees it with the last of these, and so does the account. A further handle value for the same memory is
//! entered as an alias of the first.

use super::{allocate, card_of, entry, plain::bytes, remember};
use crate::{
    address::{Entry, Space},
    argument::{given, written},
    codes::{INVALID_VALUE, SUCCESS},
    place,
    process::{Process, started},
};

const LOCATION_DEVICE: i32 = 1;

/// Properties of physical memory, as far as they matter.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct AllocationProperties {
    kind: i32,
    handle_types: i32,
    location_type: i32,
    location_id: i32,
}

pub(crate) unsafe fn create(
    real: unsafe extern "C" fn(*mut u64, usize, *const AllocationProperties, u64) -> i32,
    out: *mut u64,
    size: usize,
    properties: *const AllocationProperties,
    flags: u64,
) -> i32 {
    // SAFETY: the caller's arguments.
    let call = || unsafe { real(out, size, properties, flags) };
    if out.is_null() || properties.is_null() || size == 0 {
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
    allocate(place::of_device(device), bytes(size), call, |entry| {
        // SAFETY: not null, and written by the driver.
        (Space::Handle, unsafe { written(out) }, Entry { extra: 1, ..entry })
    })
}

/// Properties of a multicast object, as far as they matter.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct MulticastProperties {
    devices: u32,
    size: usize,
}

pub(crate) unsafe fn create_multicast(
    real: unsafe extern "C" fn(*mut u64, *const MulticastProperties) -> i32,
    out: *mut u64,
    properties: *const MulticastProperties,
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
    allocate(place::current(), bytes(properties.size), call, |entry| {
        // SAFETY: not null, and written by the driver.
        (Space::Handle, unsafe { written(out) }, Entry { extra: 1, ..entry })
    })
}

/// The first handle of the memory that a handle names; nothing for memory that is not counted.
fn root(process: &Process, handle: u64) -> Option<u64> {
    let entry = process.table.get(Space::Handle, handle)?;
    Some(if entry.context == 0 { handle } else { entry.context })
}

fn add_reference(process: &Process, root: u64) {
    process.table.take_if(Space::Handle, root, |entry| {
        entry.extra = entry.extra.saturating_add(1);
        false
    });
}

/// Takes a reference off; the entry if it was the last.
fn drop_reference(process: &Process, root: u64) -> Option<Entry> {
    process
        .table
        .take_if(Space::Handle, root, |entry| {
            entry.extra = entry.extra.saturating_sub(1);
            entry.extra == 0
        })
        .filter(|entry| entry.extra == 0)
}

pub(crate) unsafe fn release(real: unsafe extern "C" fn(u64) -> i32, handle: u64) -> i32 {
    // SAFETY: the caller's argument.
    let call = || unsafe { real(handle) };
    let Some((process, root)) = started().and_then(|process| root(process, handle).map(|root| (process, root))) else {
        return call();
    };
    let last = drop_reference(process, root);
    let result = call();
    match (result, last) {
        (SUCCESS, Some(entry)) => {
            if root != handle {
                process.table.take(Space::Handle, handle);
            }
            process.release(card_of(&entry), entry.bytes);
        }
        (SUCCESS, None) => {}
        (_, Some(entry)) => remember(process, Space::Handle, root, Entry { extra: 1, ..entry }),
        (_, None) => add_reference(process, root),
    }
    result
}

pub(crate) unsafe fn map(
    real: unsafe extern "C" fn(u64, usize, usize, u64, u64) -> i32,
    address: u64,
    size: usize,
    offset: usize,
    handle: u64,
    flags: u64,
) -> i32 {
    // SAFETY: the caller's arguments.
    let result = unsafe { real(address, size, offset, handle, flags) };
    if result == SUCCESS
        && let Some(process) = started()
        && let Some(root) = root(process, handle)
    {
        add_reference(process, root);
        let mapping = Entry {
            bytes: bytes(size),
            extra: root,
            ..Entry::default()
        };
        // A mapping that is there already was removed in a way that no hook saw.
        if let Ok(Some(old)) = process.table.insert(Space::Mapping, address, mapping) {
            unmapped(process, &old);
        }
    }
    result
}

pub(crate) unsafe fn unmap(real: unsafe extern "C" fn(u64, usize) -> i32, address: u64, size: usize) -> i32 {
    // SAFETY: the caller's arguments.
    let result = unsafe { real(address, size) };
    if result != SUCCESS {
        return result;
    }
    let Some(process) = started() else { return result };
    let exact = process
        .table
        .take_if(Space::Mapping, address, |mapping| mapping.bytes == bytes(size));
    match exact {
        Some(mapping) if mapping.bytes == bytes(size) => unmapped(process, &mapping),
        _ => {
            let end = address.saturating_add(bytes(size));
            let within = |start: u64, mapping: &Entry| start >= address && start.saturating_add(mapping.bytes) <= end;
            process
                .table
                .drain(Space::Mapping, within, |_, mapping| unmapped(process, &mapping));
        }
    }
    result
}

fn unmapped(process: &Process, mapping: &Entry) {
    if let Some(last) = drop_reference(process, mapping.extra) {
        process.release(card_of(&last), last.bytes);
    }
}

pub(crate) unsafe fn retain(
    real: unsafe extern "C" fn(*mut u64, *mut core::ffi::c_void) -> i32,
    out: *mut u64,
    address: *mut core::ffi::c_void,
) -> i32 {
    // SAFETY: the caller's arguments.
    let result = unsafe { real(out, address) };
    if result != SUCCESS || out.is_null() {
        return result;
    }
    let Some(process) = started() else { return result };
    // SAFETY: not null, and written by the driver.
    let handle = unsafe { written(out) };
    let address = u64::try_from(address.addr()).unwrap_or_default();
    if let Some(root) = root(process, handle) {
        add_reference(process, root);
    } else if let Some(root) = mapped_at(process, address) {
        add_reference(process, root);
        let alias = Entry {
            context: root,
            ..entry_of(process, root)
        };
        remember(
            process,
            Space::Handle,
            handle,
            Entry {
                bytes: 0,
                extra: 0,
                ..alias
            },
        );
    }
    result
}

fn entry_of(process: &Process, root: u64) -> Entry {
    process
        .table
        .get(Space::Handle, root)
        .unwrap_or_else(|| entry(crate::process::Card(0), 0))
}

fn mapped_at(process: &Process, address: u64) -> Option<u64> {
    let exact = process.table.get(Space::Mapping, address);
    let contains = |start: u64, mapping: &Entry| start <= address && address < start.saturating_add(mapping.bytes);
    exact
        .or_else(|| {
            process
                .table
                .search(Space::Mapping, contains)
                .map(|(_, mapping)| mapping)
        })
        .map(|mapping| mapping.extra)
}

pub(crate) unsafe fn import(
    real: unsafe extern "C" fn(*mut u64, *mut core::ffi::c_void, i32) -> i32,
    out: *mut u64,
    handle: *mut core::ffi::c_void,
    kind: i32,
) -> i32 {
    // SAFETY: the caller's arguments.
    let result = unsafe { real(out, handle, kind) };
    // Memory of another process is paid for there; memory of this one has one more reference.
    if result == SUCCESS
        && !out.is_null()
        && let Some(process) = started()
        // SAFETY: not null, and written by the driver.
        && let Some(root) = root(process, unsafe { written(out) })
    {
        add_reference(process, root);
    }
    result
}
