//! NVML as the container sees it: its share of the memory, its own processes with its own pids, its own cards.

use core::ffi::{CStr, c_char, c_void};

use crate::{
    argument::{given, is_writable, put, written},
    codes::{NVML_INSUFFICIENT_SIZE, NVML_INVALID_ARGUMENT, NVML_NO_PERMISSION, SUCCESS},
    information::share,
    os,
    process::{Card, Process, process},
    symbol::nvmlDeviceGetUUID,
    table::real,
};

/// `nvmlDevice_t`.
pub(crate) type Device = *mut c_void;

/// `nvmlMemory_t`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Memory {
    total: u64,
    free: u64,
    used: u64,
}

/// `nvmlMemory_v2_t`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Memory2 {
    version: u32,
    total: u64,
    reserved: u64,
    free: u64,
    used: u64,
}

/// One entry of a process list, first form.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Running1 {
    pid: u32,
    used: u64,
}

/// One entry of a process list, second and third form.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Running2 {
    pid: u32,
    used: u64,
    gpu_instance: u32,
    compute_instance: u32,
}

const _: () = {
    assert!(size_of::<Memory>() == 24);
    assert!(size_of::<Memory2>() == 40);
    assert!(size_of::<Running1>() == 16);
    assert!(size_of::<Running2>() == 24);
};

/// What a handle stands for.
enum Seen {
    Counted(&'static Process, Card),
    Unlimited,
    Foreign,
    /// The library did not say, so its own answer stands.
    Unknown,
}

fn seen(device: Device) -> Seen {
    let Ok(process) = process() else { return Seen::Foreign };
    let mut text = [0_u8; 96];
    let length = u32::try_from(text.len()).unwrap_or_default();
    // SAFETY: the caller's handle, and a place of that length.
    if unsafe { nvmlDeviceGetUUID(device, text.as_mut_ptr().cast::<c_char>(), length) } != SUCCESS {
        return Seen::Unknown;
    }
    let Ok(uuid) = CStr::from_bytes_until_nul(&text) else {
        return Seen::Unknown;
    };
    match process.card_by_uuid(uuid.to_bytes()) {
        Some(card) if process.is_unlimited(card) => Seen::Unlimited,
        Some(card) => Seen::Counted(process, card),
        None => Seen::Foreign,
    }
}

pub(crate) unsafe fn initialise(real: unsafe extern "C" fn() -> i32) -> i32 {
    if process().is_err() {
        return NVML_NO_PERMISSION;
    }
    // SAFETY: no arguments.
    unsafe { real() }
}

pub(crate) unsafe fn initialise_flags(real: unsafe extern "C" fn(u32) -> i32, flags: u32) -> i32 {
    if process().is_err() {
        return NVML_NO_PERMISSION;
    }
    // SAFETY: the caller's argument.
    unsafe { real(flags) }
}

pub(crate) unsafe fn memory(
    real: unsafe extern "C" fn(Device, *mut Memory) -> i32,
    device: Device,
    out: *mut Memory,
) -> i32 {
    if out.is_null() {
        return NVML_INVALID_ARGUMENT;
    }
    // SAFETY: the caller's arguments.
    let result = unsafe { real(device, out) };
    if result == SUCCESS
        && let Seen::Counted(process, card) = seen(device)
    {
        // SAFETY: not null, and filled by the library.
        let memory = unsafe { written(out) };
        let (total, free) = share(process, card, memory.total, memory.free);
        let seen = Memory {
            total,
            free,
            used: used(process, card, total),
        };
        // SAFETY: as above.
        unsafe { put(out, seen) };
    }
    result
}

pub(crate) unsafe fn memory_v2(
    real: unsafe extern "C" fn(Device, *mut Memory2) -> i32,
    device: Device,
    out: *mut Memory2,
) -> i32 {
    if out.is_null() {
        return NVML_INVALID_ARGUMENT;
    }
    // SAFETY: the caller's arguments.
    let result = unsafe { real(device, out) };
    if result == SUCCESS
        && let Seen::Counted(process, card) = seen(device)
    {
        // SAFETY: not null, and filled by the library.
        let memory = unsafe { written(out) };
        // What the driver keeps for itself is no part of a share.
        let (total, free) = share(process, card, memory.total.saturating_sub(memory.reserved), memory.free);
        let seen = Memory2 {
            total,
            free,
            used: used(process, card, total),
            reserved: 0,
            ..memory
        };
        // SAFETY: as above.
        unsafe { put(out, seen) };
    }
    result
}

fn used(process: &Process, card: Card, total: u64) -> u64 {
    process.used(card).min(total)
}

/// The processes of this container on a card, in place of the library's list, whose pids are the host's.
///
/// # Safety
/// `list` is null or has room for the entries that `count` says.
unsafe fn running<T: Copy>(
    real: unsafe extern "C" fn(Device, *mut u32, *mut T) -> i32,
    device: Device,
    count: *mut u32,
    list: *mut T,
    entry: impl Fn(u32, u64) -> T,
    with_memory: bool,
) -> i32 {
    // SAFETY: the caller's arguments.
    let call = || unsafe { real(device, count, list) };
    if count.is_null() {
        return call();
    }
    let (process, card) = match seen(device) {
        Seen::Counted(process, card) => (process, card),
        Seen::Foreign => return NVML_NO_PERMISSION,
        Seen::Unlimited | Seen::Unknown => return call(),
    };
    let Some((account, _)) = process.account() else {
        return call();
    };
    // SAFETY: an integer.
    let Some(room) = (unsafe { given(count) }) else {
        return NVML_INVALID_ARGUMENT;
    };
    if !is_writable(count, size_of::<u32>()) {
        return NVML_INVALID_ARGUMENT;
    }
    process.reap_sometimes();
    let mut bad = false;
    let mut found = 0_u32;
    if with_memory {
        account.holders(card.0, |owner, held| {
            if found < room && !list.is_null() {
                let place = list.wrapping_add(usize::try_from(found).unwrap_or_default());
                if !is_writable(place, size_of::<T>()) {
                    bad = true;
                    return;
                }
                // SAFETY: below the number of entries that the caller has room for, and writable.
                unsafe { put(place, entry(owner.pid(), held)) };
            }
            found = found.saturating_add(1);
        });
    }
    if bad {
        return NVML_INVALID_ARGUMENT;
    }
    // SAFETY: writable, by the kernel's word.
    unsafe { put(count, found) };
    if found > room || (found > 0 && list.is_null()) {
        NVML_INSUFFICIENT_SIZE
    } else {
        SUCCESS
    }
}

fn running1(pid: u32, used: u64) -> Running1 {
    Running1 { pid, used }
}

fn running2(pid: u32, used: u64) -> Running2 {
    Running2 {
        pid,
        used,
        gpu_instance: u32::MAX,
        compute_instance: u32::MAX,
    }
}

pub(crate) unsafe fn compute(
    real: unsafe extern "C" fn(Device, *mut u32, *mut Running1) -> i32,
    device: Device,
    count: *mut u32,
    list: *mut Running1,
) -> i32 {
    // SAFETY: the caller's arguments.
    unsafe { running(real, device, count, list, running1, true) }
}

pub(crate) unsafe fn compute_v2(
    real: unsafe extern "C" fn(Device, *mut u32, *mut Running2) -> i32,
    device: Device,
    count: *mut u32,
    list: *mut Running2,
) -> i32 {
    // SAFETY: the caller's arguments.
    unsafe { running(real, device, count, list, running2, true) }
}

pub(crate) unsafe fn other(
    real: unsafe extern "C" fn(Device, *mut u32, *mut Running1) -> i32,
    device: Device,
    count: *mut u32,
    list: *mut Running1,
) -> i32 {
    // SAFETY: the caller's arguments.
    unsafe { running(real, device, count, list, running1, false) }
}

pub(crate) unsafe fn other_v2(
    real: unsafe extern "C" fn(Device, *mut u32, *mut Running2) -> i32,
    device: Device,
    count: *mut u32,
    list: *mut Running2,
) -> i32 {
    // SAFETY: the caller's arguments.
    unsafe { running(real, device, count, list, running2, false) }
}

/// A handle of a card that is not granted is not handed out; the library does the same for a card whose device file
/// cannot be opened.
///
/// # Safety
/// `out` is null or was written by the library when `result` is success.
unsafe fn handed_out(result: i32, out: *mut Device) -> i32 {
    // SAFETY: by the caller's promise.
    if result == SUCCESS && !out.is_null() && matches!(seen(unsafe { written(out) }), Seen::Foreign) {
        return NVML_NO_PERMISSION;
    }
    result
}

pub(crate) unsafe fn by_index(
    real: unsafe extern "C" fn(u32, *mut Device) -> i32,
    index: u32,
    out: *mut Device,
) -> i32 {
    // SAFETY: the caller's arguments; written by the library on success.
    unsafe { handed_out(real(index, out), out) }
}

pub(crate) unsafe fn by_text(
    real: unsafe extern "C" fn(*const c_char, *mut Device) -> i32,
    text: *const c_char,
    out: *mut Device,
) -> i32 {
    // SAFETY: the caller's arguments; written by the library on success.
    unsafe { handed_out(real(text, out), out) }
}

pub(crate) unsafe fn by_uuid(
    real: unsafe extern "C" fn(*const c_void, *mut Device) -> i32,
    uuid: *const c_void,
    out: *mut Device,
) -> i32 {
    // SAFETY: the caller's arguments; written by the library on success.
    unsafe { handed_out(real(uuid, out), out) }
}

/// What the driver holds for this process on a card beyond what is booked for it, by the driver's own list. Nothing
/// when the list does not show this process, as on a host that hides its pids.
pub(crate) fn unbooked(process: &Process, card: Card) -> Option<u64> {
    let mut uuid = [0_u8; 96];
    let text = process.uuid(card).bytes();
    // The last place stays zero.
    uuid.iter_mut()
        .take(95)
        .zip(text)
        .for_each(|(place, byte)| *place = byte);
    let mut device = core::ptr::null_mut();
    // SAFETY: no arguments. Never shut down by us: initialising is counted, and ours stays.
    if unsafe { real::nvmlInit_v2() } != SUCCESS {
        return None;
    }
    // SAFETY: a C string and a place for the answer.
    if unsafe { real::nvmlDeviceGetHandleByUUID(uuid.as_ptr().cast(), &raw mut device) } != SUCCESS {
        return None;
    }
    const ROOM: usize = 256;
    let mut list = [const {
        Running2 {
            pid: 0,
            used: 0,
            gpu_instance: 0,
            compute_instance: 0,
        }
    }; ROOM];
    let mut count = u32::try_from(ROOM).unwrap_or_default();
    // SAFETY: a handle of the library, and room for as many entries as the count says.
    let code = unsafe { real::nvmlDeviceGetComputeRunningProcesses_v3(device, &raw mut count, list.as_mut_ptr()) };
    let pid = os::pid();
    let found = list
        .iter()
        .take(usize::try_from(count).unwrap_or(0))
        .find(|entry| entry.pid == pid);
    let (account, slot) = process.account()?;
    found
        .filter(|_| code == SUCCESS)
        .map(|entry| entry.used.saturating_sub(account.held(slot, card.0)))
}
