//! Clocks, power, temperature, health. The figures follow from how busy the card is.

use std::ffi::{c_char, c_int, c_uint};

use crate::abi::{INVALID_ARGUMENT, NOT_SUPPORTED, R, Res, VERSION_MISMATCH, get, put, put_text, version};
use crate::state::Device;

fn busy(device: &Device) -> u32 {
    device.machine.card_percent(device.card)
}

fn power_mw(device: &Device) -> u32 {
    let limit = device.desc().power_limit_mw;
    limit / 8 + limit / 100 * busy(device) * 3 / 4
}

fn celsius(device: &Device) -> u32 {
    30 + busy(device) * 2 / 5
}

fn clock(device: &Device, kind: c_uint, now: bool) -> Res<u32> {
    let d = device.desc();
    Ok(match kind {
        0 | 1 | 3 if now && busy(device) == 0 => 210,
        0 | 1 | 3 => d.clock_sm_mhz,
        2 => d.clock_memory_mhz,
        _ => return Err(INVALID_ARGUMENT),
    })
}

unsafe fn put_one(device: u64, out: *mut c_uint, value: impl FnOnce(&Device) -> Res<u32>) -> R {
    let device = Device::whole(device)?;
    // SAFETY: argument of the entry point.
    unsafe { put(out, value(&device)?) }
}

/// Data-centre cards have error correction; the others do not.
fn corrected(device: &Device) -> bool {
    let d = device.desc();
    !d.profiles().is_empty() || matches!(d.brand, 2 | 14)
}

unsafe fn fields(device: u64, count: c_int, values: *mut [u64; 5]) -> R {
    let device = Device::of(device)?;
    for i in 0..usize::try_from(count).map_err(|_| INVALID_ARGUMENT)? {
        // SAFETY: the caller of the entry point gives `count` values of 40 bytes: field and scope,
        // time stamp, latency, value type and code, value.
        unsafe {
            let place = values.add(i);
            let mut w = get(place)?;
            let value = match w[0] as u32 {
                // number of NVLinks
                91 => Some(u64::from(device.desc().links)),
                // memory temperature
                82 => Some(u64::from(celsius(&device))),
                // total energy in millijoules
                83 => Some(0),
                // power, now and average
                185 | 186 => Some(u64::from(power_mw(&device))),
                _ => None,
            };
            w[1] = tessera_fake_core::real_us();
            w[2] = 0;
            w[3] = if value.is_some() {
                1
            } else {
                (NOT_SUPPORTED as u64) << 32
            };
            w[4] = value.unwrap_or(0);
            put(place, w)?;
        }
    }
    Ok(())
}

api! {
    fn nvmlDeviceGetTemperature(device: u64, sensor: c_uint, out: *mut c_uint) {
        if sensor != 0 {
            return Err(INVALID_ARGUMENT);
        }
        put_one(device, out, |d| Ok(celsius(d)))
    }
    fn nvmlDeviceGetTemperatureV(device: u64, out: *mut [u32; 3]) {
        let device = Device::whole(device)?;
        let [word, sensor, _] = get(out)?;
        if version(word) != (12, 1) {
            return Err(VERSION_MISMATCH);
        }
        put(out, [word, sensor, celsius(&device)])
    }
    fn nvmlDeviceGetTemperatureThreshold(device: u64, kind: c_uint, out: *mut c_uint) {
        put_one(device, out, |_| match kind {
            0 => Ok(92),
            1 => Ok(89),
            2 => Ok(95),
            3 => Ok(87),
            _ => Err(NOT_SUPPORTED),
        })
    }
    fn nvmlDeviceGetPowerUsage(device: u64, out: *mut c_uint) { put_one(device, out, |d| Ok(power_mw(d))) }
    fn nvmlDeviceGetPowerManagementLimit(device: u64, out: *mut c_uint) { put_one(device, out, |d| Ok(d.desc().power_limit_mw)) }
    fn nvmlDeviceGetPowerManagementDefaultLimit(device: u64, out: *mut c_uint) { put_one(device, out, |d| Ok(d.desc().power_limit_mw)) }
    fn nvmlDeviceGetEnforcedPowerLimit(device: u64, out: *mut c_uint) { put_one(device, out, |d| Ok(d.desc().power_limit_mw)) }
    fn nvmlDeviceGetPowerManagementLimitConstraints(device: u64, least: *mut c_uint, most: *mut c_uint) {
        let limit = Device::whole(device)?.desc().power_limit_mw;
        put(least, limit / 2)?;
        put(most, limit)
    }
    fn nvmlDeviceGetPowerManagementMode(device: u64, out: *mut c_uint) { put_one(device, out, |_| Ok(1)) }
    fn nvmlDeviceGetPowerState(device: u64, out: *mut c_uint) { put_one(device, out, |_| Ok(0)) }
    fn nvmlDeviceGetPerformanceState(device: u64, out: *mut c_uint) { put_one(device, out, |_| Ok(0)) }
    fn nvmlDeviceGetClockInfo(device: u64, kind: c_uint, out: *mut c_uint) { put_one(device, out, |d| clock(d, kind, true)) }
    fn nvmlDeviceGetClock(device: u64, kind: c_uint, id: c_uint, out: *mut c_uint) { put_one(device, out, |d| clock(d, kind, id == 0)) }
    fn nvmlDeviceGetMaxClockInfo(device: u64, kind: c_uint, out: *mut c_uint) { put_one(device, out, |d| clock(d, kind, false)) }
    fn nvmlDeviceGetApplicationsClock(device: u64, kind: c_uint, out: *mut c_uint) { put_one(device, out, |d| clock(d, kind, false)) }
    fn nvmlDeviceGetDefaultApplicationsClock(device: u64, kind: c_uint, out: *mut c_uint) { put_one(device, out, |d| clock(d, kind, false)) }
    fn nvmlDeviceGetCurrentClocksThrottleReasons(device: u64, out: *mut u64) { Device::whole(device)?; put(out, 0) }
    fn nvmlDeviceGetCurrentClocksEventReasons(device: u64, out: *mut u64) { Device::whole(device)?; put(out, 0) }
    fn nvmlDeviceGetComputeMode(device: u64, out: *mut c_uint) { put_one(device, out, |_| Ok(0)) }
    fn nvmlDeviceGetPersistenceMode(device: u64, out: *mut c_uint) { put_one(device, out, |_| Ok(1)) }
    fn nvmlDeviceGetDisplayActive(device: u64, out: *mut c_uint) { put_one(device, out, |_| Ok(0)) }
    fn nvmlDeviceGetDisplayMode(device: u64, out: *mut c_uint) { put_one(device, out, |_| Ok(0)) }
    fn nvmlDeviceGetEccMode(device: u64, now: *mut c_uint, pending: *mut c_uint) {
        let device = Device::whole(device)?;
        if !corrected(&device) {
            return Err(NOT_SUPPORTED);
        }
        put(now, 1)?;
        put(pending, 1)
    }
    fn nvmlDeviceGetTotalEccErrors(device: u64, kind: c_uint, counter: c_uint, out: *mut u64) {
        let device = Device::whole(device)?;
        if kind > 1 || counter > 1 {
            return Err(INVALID_ARGUMENT);
        }
        if !corrected(&device) {
            return Err(NOT_SUPPORTED);
        }
        put(out, 0)
    }
    fn nvmlDeviceGetRemappedRows(device: u64, corrected_: *mut c_uint, uncorrected: *mut c_uint, pending: *mut c_uint, failure: *mut c_uint) {
        let device = Device::whole(device)?;
        if device.desc().architecture < 7 {
            return Err(NOT_SUPPORTED);
        }
        put(corrected_, 0)?;
        put(uncorrected, 0)?;
        put(pending, 0)?;
        put(failure, 0)
    }
    fn nvmlDeviceGetEncoderUtilization(device: u64, out: *mut c_uint, period: *mut c_uint) {
        Device::whole(device)?;
        put(period, 166_666)?;
        put(out, 0)
    }
    fn nvmlDeviceGetDecoderUtilization(device: u64, out: *mut c_uint, period: *mut c_uint) {
        Device::whole(device)?;
        put(period, 166_666)?;
        put(out, 0)
    }
    fn nvmlDeviceGetMaxPcieLinkGeneration(device: u64, out: *mut c_uint) {
        put_one(device, out, |d| Ok(match d.desc().architecture { 0..=6 => 3, 7 | 8 => 4, _ => 5 }))
    }
    fn nvmlDeviceGetCurrPcieLinkGeneration(device: u64, out: *mut c_uint) {
        put_one(device, out, |d| Ok(match d.desc().architecture { 0..=6 => 3, 7 | 8 => 4, _ => 5 }))
    }
    fn nvmlDeviceGetMaxPcieLinkWidth(device: u64, out: *mut c_uint) { put_one(device, out, |_| Ok(16)) }
    fn nvmlDeviceGetCurrPcieLinkWidth(device: u64, out: *mut c_uint) { put_one(device, out, |_| Ok(16)) }
    fn nvmlDeviceGetPcieThroughput(device: u64, counter: c_uint, out: *mut c_uint) {
        if counter > 1 {
            return Err(INVALID_ARGUMENT);
        }
        put_one(device, out, |_| Ok(0))
    }
    fn nvmlDeviceGetPcieReplayCounter(device: u64, out: *mut c_uint) { put_one(device, out, |_| Ok(0)) }
    fn nvmlDeviceGetInforomImageVersion(device: u64, out: *mut c_char, len: c_uint) {
        Device::whole(device)?;
        put_text(out, len, "G500.0000.00.00")
    }
    fn nvmlDeviceGetFieldValues(device: u64, count: c_int, values: *mut [u64; 5]) { fields(device, count, values) }
}
