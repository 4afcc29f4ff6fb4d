//! Memory of cards and partitions.

use tessera_fake_core::{Pool, mig};

use crate::abi::{NOT_SUPPORTED, Res, VERSION_MISMATCH, get, put, version};
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
    fn nvmlDeviceGetMemoryLimits_v1(device: u64, limits: *mut u64) {
        let _ = (Device::of(device)?, limits);
        Err(NOT_SUPPORTED)
    }
    fn nvmlDeviceSetMemoryLimits_v1(device: u64, limits: *mut u64) {
        let _ = (Device::of(device)?, limits);
        Err(NOT_SUPPORTED)
    }
}
