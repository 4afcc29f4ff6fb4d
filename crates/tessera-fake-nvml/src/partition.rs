//! Hardware partitions (MIG): mode, profiles, instances.

use std::ffi::{c_int, c_uint};

use tessera_fake_core::mig::{self, Compute, Instance, MigError};
use tessera_fake_core::{MAX_INSTANCES, ProfileDesc};

use crate::abi::{
    IN_USE, INSUFFICIENT_RESOURCES, INVALID_ARGUMENT, NO_PERMISSION, NOT_FOUND, NOT_SUPPORTED, R, Res,
    VERSION_MISMATCH, field, get, put, put_list, version,
};
use crate::state::{Device, card_handle, compute_handle, compute_of, instance_handle, instance_of, part_handle};

fn code(error: MigError) -> c_int {
    match error {
        MigError::NotSupported => NOT_SUPPORTED,
        MigError::Invalid => INVALID_ARGUMENT,
        MigError::NoRoom => INSUFFICIENT_RESOURCES,
        MigError::InUse => IN_USE,
        MigError::NotFound => NOT_FOUND,
    }
}

/// Changing partitions needs root, as with the real driver.
fn privileged() -> R {
    // SAFETY: geteuid cannot fail.
    if unsafe { libc::geteuid() } == 0 {
        Ok(())
    } else {
        Err(NO_PERMISSION)
    }
}

fn by_number(device: &Device, number: c_uint) -> Res<&'static ProfileDesc> {
    if number > 20 {
        return Err(INVALID_ARGUMENT);
    }
    device
        .desc()
        .profiles()
        .iter()
        .find(|p| p.number == number)
        .ok_or(NOT_SUPPORTED)
}

fn by_id(device: &Device, id: c_uint) -> Res<&'static ProfileDesc> {
    if device.desc().profiles().is_empty() {
        return Err(NOT_SUPPORTED);
    }
    device
        .desc()
        .profiles()
        .iter()
        .find(|p| p.id == id)
        .ok_or(INVALID_ARGUMENT)
}

#[repr(C)]
#[derive(Clone, Copy)]
struct ProfileInfo {
    id: u32,
    peer: u32,
    slices: u32,
    count: u32,
    sms: u32,
    copies: u32,
    decoders: u32,
    encoders: u32,
    jpeg: u32,
    optical: u32,
    memory_mib: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct ProfileInfoV2 {
    version: u32,
    id: u32,
    peer: u32,
    slices: u32,
    count: u32,
    sms: u32,
    copies: u32,
    decoders: u32,
    encoders: u32,
    jpeg: u32,
    optical: u32,
    pad: u32,
    memory_mib: u64,
    name: [u8; 96],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct ProfileInfoV3 {
    version: u32,
    id: u32,
    slices: u32,
    count: u32,
    sms: u32,
    copies: u32,
    decoders: u32,
    encoders: u32,
    jpeg: u32,
    optical: u32,
    memory_mib: u64,
    name: [u8; 96],
    capabilities: u32,
    pad: u32,
}

unsafe fn put_profile(p: &ProfileDesc, out: *mut u32) -> R {
    // SAFETY: the caller gives a structure whose version word says which one it is.
    unsafe {
        let word = get(out)?;
        let name = field(&format!("MIG {}", p.name()));
        match version(word) {
            (152, 2) => put(
                out.cast(),
                ProfileInfoV2 {
                    version: word,
                    id: p.id,
                    peer: 0,
                    slices: p.slices,
                    count: p.count,
                    sms: p.sms,
                    copies: p.copy_engines,
                    decoders: p.decoders,
                    encoders: 0,
                    jpeg: p.media,
                    optical: p.media,
                    pad: 0,
                    memory_mib: p.memory_mib,
                    name,
                },
            ),
            (152, 3) => put(
                out.cast(),
                ProfileInfoV3 {
                    version: word,
                    id: p.id,
                    slices: p.slices,
                    count: p.count,
                    sms: p.sms,
                    copies: p.copy_engines,
                    decoders: p.decoders,
                    encoders: 0,
                    jpeg: p.media,
                    optical: p.media,
                    memory_mib: p.memory_mib,
                    name,
                    capabilities: 0,
                    pad: 0,
                },
            ),
            _ => Err(VERSION_MISMATCH),
        }
    }
}

/// Profile numbers of compute instances that fit into a GPU instance.
const COMPUTE_NUMBERS: [u32; 5] = [0, 1, 2, 3, 4];

fn compute_profile(instance: &Instance<'_>, number: c_uint) -> Res<(u32, u32, u32)> {
    if number > 9 {
        return Err(INVALID_ARGUMENT);
    }
    let slices = mig::slices_of(number)
        .filter(|s| *s <= instance.profile.slices && COMPUTE_NUMBERS.contains(&number))
        .ok_or(NOT_SUPPORTED)?;
    let count = instance.profile.slices / slices;
    let sms = instance.profile.sms * slices / instance.profile.slices;
    Ok((slices, count, sms))
}

fn compute_name(instance: &Instance<'_>, slices: u32) -> String {
    let whole = instance.profile.name();
    if slices == instance.profile.slices {
        format!("MIG {whole}")
    } else {
        format!("MIG {slices}c.{whole}")
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct InstanceInfo {
    device: u64,
    id: u32,
    profile: u32,
    start: u32,
    size: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct ComputeInfo {
    device: u64,
    instance: u64,
    id: u32,
    profile: u32,
    start: u32,
    size: u32,
}

fn compute_info(device: &Device, instance: &Instance<'_>, compute: Compute) -> ComputeInfo {
    ComputeInfo {
        device: part_handle(device.card, instance.position, compute.id),
        instance: instance_handle(device.card, instance.position),
        id: compute.id,
        profile: compute.number,
        start: compute.start,
        size: mig::slices_of(compute.number).unwrap_or(0),
    }
}

fn attributes(device: u64) -> Res<[u64; 5]> {
    let device = Device::of(device)?;
    let (instance, compute) = device.part.ok_or(NOT_SUPPORTED)?;
    let p = instance.profile;
    let slices = mig::slices_of(compute.number).unwrap_or(1);
    let pair = |a: u32, b: u32| u64::from(a) | (u64::from(b) << 32);
    Ok([
        pair(p.sms * slices / p.slices, p.copy_engines),
        pair(p.decoders, 0),
        pair(p.media, p.media),
        pair(p.slices, slices),
        p.memory_mib,
    ])
}

unsafe fn placements(device: u64, id: c_uint, out: *mut [u32; 2], count: *mut c_uint) -> R {
    let device = Device::whole(device)?;
    let profile = by_id(&device, id)?;
    let all: Vec<[u32; 2]> = (0..8)
        .filter(|s| profile.starts & (1 << s) != 0)
        .map(|s| [s, profile.size])
        .collect();
    // SAFETY: arguments of the entry point.
    unsafe {
        if out.is_null() {
            return put(count, all.len() as c_uint);
        }
        put_list(out, count, &all)
    }
}

fn create(device: u64, id: c_uint, start: Option<u32>) -> Res<u64> {
    privileged()?;
    let device = Device::whole(device)?;
    let instance = mig::create(device.machine, device.card, id, start).map_err(code)?;
    Ok(instance_handle(device.card, instance.position))
}

fn create_compute(instance: u64, number: c_uint, start: Option<u32>) -> Res<u64> {
    privileged()?;
    let (device, instance) = instance_of(instance)?;
    let made = mig::create_compute(device.machine, device.card, instance.position, number, start).map_err(code)?;
    Ok(compute_handle(device.card, instance.position, made.id))
}

api! {
    fn nvmlDeviceGetMigMode(device: u64, now: *mut c_uint, pending: *mut c_uint) {
        let device = Device::whole(device)?;
        if device.desc().profiles().is_empty() {
            return Err(NOT_SUPPORTED);
        }
        let on = c_uint::from(mig::is_on(device.machine, device.card));
        put(now, on)?;
        put(pending, on)
    }
    fn nvmlDeviceSetMigMode(device: u64, mode: c_uint, status: *mut c_int) {
        privileged()?;
        let device = Device::whole(device)?;
        if mode > 1 {
            return Err(INVALID_ARGUMENT);
        }
        if device.desc().profiles().is_empty() {
            return Err(NOT_SUPPORTED);
        }
        let done = mig::set_mode(device.machine, device.card, mode == 1).map_err(code);
        put(status, done.err().unwrap_or(0))?;
        done
    }
    fn nvmlDeviceGetMaxMigDeviceCount(device: u64, out: *mut c_uint) {
        let device = Device::whole(device)?;
        put(out, if device.desc().profiles().is_empty() { 0 } else { MAX_INSTANCES as c_uint })
    }
    fn nvmlDeviceGetMigDeviceHandleByIndex(device: u64, index: c_uint, out: *mut u64) {
        let device = Device::whole(device)?;
        if index >= MAX_INSTANCES as c_uint {
            return Err(INVALID_ARGUMENT);
        }
        let all = mig::devices(device.machine, device.card);
        let (instance, compute) = all.get(index as usize).ok_or(NOT_FOUND)?;
        put(out, part_handle(device.card, instance.position, compute.id))
    }
    fn nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device: u64, out: *mut u64) {
        let device = Device::of(device)?;
        if device.part.is_none() {
            return Err(INVALID_ARGUMENT);
        }
        put(out, card_handle(device.card))
    }
    fn nvmlDeviceIsMigDeviceHandle(device: u64, out: *mut c_uint) { put(out, c_uint::from(Device::of(device)?.part.is_some())) }
    fn nvmlDeviceGetGpuInstanceId(device: u64, out: *mut c_uint) { put(out, Device::of(device)?.part.ok_or(NOT_SUPPORTED)?.0.id) }
    fn nvmlDeviceGetComputeInstanceId(device: u64, out: *mut c_uint) { put(out, Device::of(device)?.part.ok_or(NOT_SUPPORTED)?.1.id) }
    fn nvmlDeviceGetAttributes(device: u64, out: *mut [u64; 5]) { put(out, attributes(device)?) }
    fn nvmlDeviceGetAttributes_v2(device: u64, out: *mut [u64; 5]) { put(out, attributes(device)?) }
    fn nvmlDeviceGetGpuInstanceProfileInfo(device: u64, number: c_uint, out: *mut ProfileInfo) {
        let p = by_number(&Device::whole(device)?, number)?;
        put(out, ProfileInfo {
            id: p.id, peer: 0, slices: p.slices, count: p.count, sms: p.sms, copies: p.copy_engines,
            decoders: p.decoders, encoders: 0, jpeg: p.media, optical: p.media, memory_mib: p.memory_mib,
        })
    }
    fn nvmlDeviceGetGpuInstanceProfileInfoV(device: u64, number: c_uint, out: *mut u32) {
        put_profile(by_number(&Device::whole(device)?, number)?, out)
    }
    fn nvmlDeviceGetGpuInstanceProfileInfoByIdV(device: u64, id: c_uint, out: *mut u32) {
        put_profile(by_id(&Device::whole(device)?, id)?, out)
    }
    fn nvmlDeviceGetGpuInstancePossiblePlacements(device: u64, id: c_uint, out: *mut [u32; 2], count: *mut c_uint) { placements(device, id, out, count) }
    fn nvmlDeviceGetGpuInstancePossiblePlacements_v2(device: u64, id: c_uint, out: *mut [u32; 2], count: *mut c_uint) { placements(device, id, out, count) }
    fn nvmlDeviceGetGpuInstanceRemainingCapacity(device: u64, id: c_uint, out: *mut c_uint) {
        let device = Device::whole(device)?;
        by_id(&device, id)?;
        if !mig::is_on(device.machine, device.card) {
            return Err(NOT_SUPPORTED);
        }
        let kind = device.desc().profiles().iter().position(|p| p.id == id).ok_or(INVALID_ARGUMENT)?;
        put(out, mig::remaining(device.machine, device.card, kind))
    }
    fn nvmlDeviceCreateGpuInstance(device: u64, id: c_uint, out: *mut u64) { put(out, create(device, id, None)?) }
    fn nvmlDeviceCreateGpuInstanceWithPlacement(device: u64, id: c_uint, placement: *const [u32; 2], out: *mut u64) {
        let [start, size] = get(placement)?;
        if by_id(&Device::whole(device)?, id)?.size != size {
            return Err(INVALID_ARGUMENT);
        }
        put(out, create(device, id, Some(start))?)
    }
    fn nvmlGpuInstanceDestroy(instance: u64) {
        privileged()?;
        let (device, instance) = instance_of(instance)?;
        mig::destroy(device.machine, device.card, instance.position).map_err(code)
    }
    fn nvmlDeviceGetGpuInstances(device: u64, id: c_uint, out: *mut u64, count: *mut c_uint) {
        let device = Device::whole(device)?;
        by_id(&device, id)?;
        let all: Vec<u64> = mig::instances(device.machine, device.card).iter().filter(|i| i.profile.id == id)
            .map(|i| instance_handle(device.card, i.position)).collect();
        // The interface gives no size: the caller has room for as many as the profile allows.
        put(count, all.len() as c_uint)?;
        for (i, handle) in all.into_iter().enumerate() {
            put(out.add(i), handle)?;
        }
        Ok(())
    }
    fn nvmlDeviceGetGpuInstanceById(device: u64, id: c_uint, out: *mut u64) {
        let device = Device::whole(device)?;
        let found = mig::instances(device.machine, device.card).into_iter().find(|i| i.id == id).ok_or(NOT_FOUND)?;
        put(out, instance_handle(device.card, found.position))
    }
    fn nvmlGpuInstanceGetInfo(instance: u64, out: *mut InstanceInfo) {
        let (device, instance) = instance_of(instance)?;
        put(out, InstanceInfo {
            device: card_handle(device.card), id: instance.id, profile: instance.profile.id,
            start: instance.start, size: instance.profile.size,
        })
    }
    fn nvmlGpuInstanceGetComputeInstanceProfileInfo(instance: u64, number: c_uint, engine: c_uint, out: *mut [u32; 9]) {
        let (_, instance) = instance_of(instance)?;
        if engine != 0 {
            return Err(INVALID_ARGUMENT);
        }
        let (slices, count, sms) = compute_profile(&instance, number)?;
        let p = instance.profile;
        put(out, [number, slices, count, sms, p.copy_engines, p.decoders, 0, p.media, p.media])
    }
    fn nvmlGpuInstanceGetComputeInstanceProfileInfoV(instance: u64, number: c_uint, engine: c_uint, out: *mut u32) {
        let (_, instance) = instance_of(instance)?;
        if engine != 0 {
            return Err(INVALID_ARGUMENT);
        }
        let word = get(out)?;
        if !matches!(version(word), (136, 2) | (140, 3)) {
            return Err(VERSION_MISMATCH);
        }
        let (slices, count, sms) = compute_profile(&instance, number)?;
        let p = instance.profile;
        let head = [word, number, slices, count, sms, p.copy_engines, p.decoders, 0, p.media, p.media];
        put(out.cast(), head)?;
        let name: [u8; 96] = field(&compute_name(&instance, slices));
        put(out.add(10).cast(), name)?;
        if word >> 24 == 3 {
            put(out.add(34), 0)?;
        }
        Ok(())
    }
    fn nvmlGpuInstanceGetComputeInstanceRemainingCapacity(instance: u64, number: c_uint, out: *mut c_uint) {
        let (device, instance) = instance_of(instance)?;
        let (slices, _, _) = compute_profile(&instance, number)?;
        put(out, mig::slices_free(device.machine, device.card, instance.position) / slices)
    }
    fn nvmlGpuInstanceGetComputeInstancePossiblePlacements(instance: u64, number: c_uint, out: *mut [u32; 2], count: *mut c_uint) {
        let (_, instance) = instance_of(instance)?;
        let (slices, _, _) = compute_profile(&instance, number)?;
        let all: Vec<[u32; 2]> = (0..=instance.profile.slices - slices).map(|s| [s, slices]).collect();
        if out.is_null() {
            return put(count, all.len() as c_uint);
        }
        put_list(out, count, &all)
    }
    fn nvmlGpuInstanceCreateComputeInstance(instance: u64, number: c_uint, out: *mut u64) { put(out, create_compute(instance, number, None)?) }
    fn nvmlGpuInstanceCreateComputeInstanceWithPlacement(instance: u64, number: c_uint, placement: *const [u32; 2], out: *mut u64) {
        let [start, _] = get(placement)?;
        put(out, create_compute(instance, number, Some(start))?)
    }
    fn nvmlComputeInstanceDestroy(compute: u64) {
        privileged()?;
        let (device, instance, compute) = compute_of(compute)?;
        mig::destroy_compute(device.machine, device.card, instance.position, compute.id).map_err(code)
    }
    fn nvmlGpuInstanceGetComputeInstances(instance: u64, number: c_uint, out: *mut u64, count: *mut c_uint) {
        let (device, instance) = instance_of(instance)?;
        let all: Vec<u64> = mig::computes(device.machine, device.card, instance.position).into_iter()
            .filter(|c| c.number == number)
            .map(|c| compute_handle(device.card, instance.position, c.id)).collect();
        put(count, all.len() as c_uint)?;
        for (i, handle) in all.into_iter().enumerate() {
            put(out.add(i), handle)?;
        }
        Ok(())
    }
    fn nvmlGpuInstanceGetComputeInstanceById(instance: u64, id: c_uint, out: *mut u64) {
        let (device, instance) = instance_of(instance)?;
        let found = mig::computes(device.machine, device.card, instance.position).into_iter().find(|c| c.id == id).ok_or(NOT_FOUND)?;
        put(out, compute_handle(device.card, instance.position, found.id))
    }
    fn nvmlComputeInstanceGetInfo(compute: u64, out: *mut ComputeInfo) {
        let (device, instance, compute) = compute_of(compute)?;
        put(out, compute_info(&device, &instance, compute))
    }
    fn nvmlComputeInstanceGetInfo_v2(compute: u64, out: *mut ComputeInfo) {
        let (device, instance, compute) = compute_of(compute)?;
        put(out, compute_info(&device, &instance, compute))
    }
}
