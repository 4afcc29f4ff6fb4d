//! Memory of cards and partitions.

use std::ffi::{c_char, c_int};
use std::path::PathBuf;

use tessera_fake_core::{LimitError, Pool, mig};

use crate::abi::{
    INSUFFICIENT_RESOURCES, INVALID_ARGUMENT, NO_PERMISSION, NOT_FOUND, NOT_SUPPORTED, OPERATING_SYSTEM, Res,
    VERSION_MISMATCH, get, put, text, version,
};
use crate::state::Device;

/// Total, reserved, and used by processes, in bytes.
fn figures(device: &Device) -> Res<(u64, u64, u64)> {
    if device.part.is_some() {
        let pool = device.pool();
        return Ok((device.machine.pool_bytes(pool), 0, device.machine.used_bytes(pool)));
    }
    let desc = device.desc();
    let mut used = device.machine.used_bytes(Pool::whole(device.card));
    for instance in mig::instances(device.machine, device.card) {
        used += device.machine.used_bytes(Pool {
            card: device.card,
            instance: Some(instance.position),
        });
    }
    Ok((desc.memory_bytes, desc.reserved_bytes, used))
}

/// A card whose driver holds control groups to limits.
fn limited(handle: u64) -> Res<Device> {
    let device = Device::of(handle)?;
    if device.part.is_some() || device.partitioned() {
        return Err(NOT_SUPPORTED);
    }
    match device.machine.limits_answer() {
        0 => Ok(device),
        code => Err(code),
    }
}

/// The folder that the first word of the argument points to.
///
/// # Safety
/// The word is 0 or points to a zero-terminated string.
unsafe fn folder(word: u64) -> Res<PathBuf> {
    // SAFETY: by the caller's word.
    unsafe { text(word as *const c_char) }.map(PathBuf::from)
}

fn code(error: LimitError) -> c_int {
    match error {
        LimitError::Group => OPERATING_SYSTEM,
        LimitError::Values => INVALID_ARGUMENT,
        LimitError::NotFound => NOT_FOUND,
        LimitError::Full => INSUFFICIENT_RESOURCES,
    }
}

api! {
    fn nvmlDeviceGetMemoryInfo(device: u64, out: *mut [u64; 3]) {
        let (total, reserved, used) = figures(&Device::of(device)?)?;
        // The first form has no word for what the driver keeps: it counts as used.
        put(out, [total, total - reserved - used, reserved + used])
    }
    fn nvmlDeviceGetMemoryInfo_v2(device: u64, out: *mut [u64; 5]) {
        let device = Device::of(device)?;
        let word: u32 = get(out.cast())?;
        if version(word) != (40, 2) {
            return Err(VERSION_MISMATCH);
        }
        let (total, reserved, used) = figures(&device)?;
        put(out, [u64::from(word), total, reserved, total - reserved - used, used])
    }
    fn nvmlDeviceGetBAR1MemoryInfo(device: u64, out: *mut [u64; 3]) {
        let device = Device::whole(device)?;
        let total = if device.desc().profiles().is_empty() { 256 << 20 } else { device.desc().memory_bytes.next_power_of_two() };
        let used = 1 << 20;
        put(out, [total, total - used, used])
    }
    fn nvmlDeviceGetMemoryBusWidth(device: u64, out: *mut u32) {
        put(out, Device::whole(device)?.desc().bus_width)
    }
    fn nvmlDeviceGetMemoryLimits_v1(device: u64, limits: *mut [u64; 4]) {
        let device = limited(device)?;
        let folder = folder(get(limits)?[0])?;
        let found = device.machine.limits(device.card, &folder).map_err(code)?;
        put(limits.cast::<u64>().add(1).cast(), [found.soft, found.hard, found.used])
    }
    fn nvmlDeviceSetMemoryLimits_v1(device: u64, limits: *mut [u64; 3]) {
        let device = limited(device)?;
        let [name, soft, hard] = get(limits)?;
        // SAFETY: no arguments.
        if libc::geteuid() != 0 {
            return Err(NO_PERMISSION);
        }
        device.machine.set_limits(device.card, &folder(name)?, soft, hard).map_err(code)
    }
}
