//! Processes of a card: who, how much memory, how busy.

use std::ffi::c_uint;

use tessera_fake_core::mig;

use crate::abi::{
    INSUFFICIENT_SIZE, INVALID_ARGUMENT, NOT_FOUND, NOT_SUPPORTED, R, Res, VERSION_MISMATCH, get, put, put_list,
    version,
};
use crate::state::Device;

const NONE: u32 = u32::MAX;

/// The first form of a list entry: 16 bytes.
#[repr(C)]
#[derive(Clone, Copy)]
struct EntryV1 {
    pid: u32,
    pad: u32,
    bytes: u64,
}

/// The second and third form: 24 bytes.
#[repr(C)]
#[derive(Clone, Copy)]
struct EntryV2 {
    pid: u32,
    pad: u32,
    bytes: u64,
    instance: u32,
    compute: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct UtilizationSample {
    pid: u32,
    pad: u32,
    stamp: u64,
    sm: u32,
    memory: u32,
    encoder: u32,
    decoder: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct UtilizationInfo {
    stamp: u64,
    pid: u32,
    sm: u32,
    memory: u32,
    encoder: u32,
    decoder: u32,
    jpeg: u32,
    optical: u32,
    pad: u32,
}

/// Which list of a card is asked for: while a multi-process server runs, its clients are in a list of their own.
#[derive(Clone, Copy, PartialEq, Eq)]
enum List {
    Compute,
    Mps,
}

fn entries(device: u64, list: List) -> Res<Vec<EntryV2>> {
    let device = Device::of(device)?;
    if device.machine.has_mps() != (list == List::Mps) {
        return Ok(Vec::new());
    }
    Ok(device
        .machine
        .processes(device.card)
        .into_iter()
        .filter(|p| match device.part {
            None => true,
            Some((instance, _)) => p.instance == Some(instance.position),
        })
        .map(|p| EntryV2 {
            pid: p.pid,
            pad: 0,
            bytes: p.bytes,
            instance: p
                .instance
                .and_then(|i| mig::instance(device.machine, device.card, i))
                .map_or(NONE, |i| i.id),
            compute: if p.instance.is_some() { 0 } else { NONE },
        })
        .collect())
}

unsafe fn first_form(device: u64, count: *mut c_uint, out: *mut EntryV1, list: List) -> R {
    let all: Vec<EntryV1> = entries(device, list)?
        .into_iter()
        .map(|e| EntryV1 {
            pid: e.pid,
            pad: 0,
            bytes: e.bytes,
        })
        .collect();
    // SAFETY: arguments of the entry point.
    unsafe { put_list(out, count, &all) }
}

unsafe fn none<T: Copy>(device: u64, count: *mut c_uint, out: *mut T) -> R {
    Device::of(device)?;
    // SAFETY: arguments of the entry point.
    unsafe { put_list(out, count, &[]) }
}

api! {
    fn nvmlDeviceGetComputeRunningProcesses(device: u64, count: *mut c_uint, out: *mut EntryV1) { first_form(device, count, out, List::Compute) }
    fn nvmlDeviceGetComputeRunningProcesses_v2(device: u64, count: *mut c_uint, out: *mut EntryV2) { put_list(out, count, &entries(device, List::Compute)?) }
    fn nvmlDeviceGetComputeRunningProcesses_v3(device: u64, count: *mut c_uint, out: *mut EntryV2) { put_list(out, count, &entries(device, List::Compute)?) }
    fn nvmlDeviceGetGraphicsRunningProcesses(device: u64, count: *mut c_uint, out: *mut EntryV1) { none(device, count, out) }
    fn nvmlDeviceGetGraphicsRunningProcesses_v2(device: u64, count: *mut c_uint, out: *mut EntryV2) { none(device, count, out) }
    fn nvmlDeviceGetGraphicsRunningProcesses_v3(device: u64, count: *mut c_uint, out: *mut EntryV2) { none(device, count, out) }
    fn nvmlDeviceGetMPSComputeRunningProcesses(device: u64, count: *mut c_uint, out: *mut EntryV1) { first_form(device, count, out, List::Mps) }
    fn nvmlDeviceGetMPSComputeRunningProcesses_v2(device: u64, count: *mut c_uint, out: *mut EntryV2) { put_list(out, count, &entries(device, List::Mps)?) }
    fn nvmlDeviceGetMPSComputeRunningProcesses_v3(device: u64, count: *mut c_uint, out: *mut EntryV2) { put_list(out, count, &entries(device, List::Mps)?) }
    fn nvmlDeviceGetProcessUtilization(device: u64, out: *mut UtilizationSample, count: *mut c_uint, since: u64) {
        let device = Device::whole(device)?;
        if device.partitioned() {
            return Err(NOT_SUPPORTED);
        }
        let all: Vec<UtilizationSample> = device.machine.samples(device.card, since).into_iter().map(|s| UtilizationSample {
            pid: s.pid, pad: 0, stamp: s.stamp_us, sm: s.percent, memory: s.percent / 4, encoder: 0, decoder: 0,
        }).collect();
        if all.is_empty() {
            put(count, 0)?;
            return Err(NOT_FOUND);
        }
        if out.is_null() {
            put(count, all.len() as c_uint)?;
            return Err(INSUFFICIENT_SIZE);
        }
        put_list(out, count, &all)
    }
    fn nvmlDeviceGetProcessesUtilizationInfo(device: u64, info: *mut [u64; 3]) {
        let device = Device::whole(device)?;
        let words: [u32; 2] = get(info.cast())?;
        let [_, since, place] = get(info)?;
        if version(words[0]) != (24, 1) {
            return Err(VERSION_MISMATCH);
        }
        if device.partitioned() {
            return Err(NOT_SUPPORTED);
        }
        let all: Vec<UtilizationInfo> = device.machine.samples(device.card, since).into_iter().map(|s| UtilizationInfo {
            stamp: s.stamp_us, pid: s.pid, sm: s.percent, memory: s.percent / 4, encoder: 0, decoder: 0, jpeg: 0, optical: 0, pad: 0,
        }).collect();
        let count = info.cast::<c_uint>().add(1);
        if all.is_empty() {
            put(count, 0)?;
            return Err(NOT_FOUND);
        }
        if place == 0 {
            put(count, all.len() as c_uint)?;
            return Err(INSUFFICIENT_SIZE);
        }
        put_list(place as *mut UtilizationInfo, count, &all)
    }
    fn nvmlDeviceGetUtilizationRates(device: u64, out: *mut [u32; 2]) {
        let device = Device::of(device)?;
        if device.partitioned() {
            return Err(NOT_SUPPORTED);
        }
        let busy = device.machine.card_percent(device.card);
        put(out, [busy, busy / 4])
    }
    fn nvmlDeviceGetAccountingMode(device: u64, out: *mut c_uint) { Device::of(device)?; put(out, 0) }
    fn nvmlDeviceGetAccountingStats(device: u64, pid: c_uint, out: *mut u64) {
        let _ = pid;
        Device::of(device)?;
        if out.is_null() {
            return Err(INVALID_ARGUMENT);
        }
        Err(NOT_SUPPORTED)
    }
}
