//! Devices and what they say of themselves.

use std::ffi::{c_char, c_int, c_uint, c_void};

use tessera_fake_core::mig;

use crate::abi::{INVALID_DEVICE, INVALID_VALUE, NOT_SUPPORTED, Res, get, list, put, put_text, put_wanted, text};
use crate::state::{self, Device, Driver};

/// Whether two devices reach each other's memory: over NVLink or below one bridge.
pub(crate) fn peers(driver: &Driver, a: usize, b: usize) -> bool {
    let (da, db) = (&driver.devices[a], &driver.devices[b]);
    if da.is_partition || db.is_partition || da.card == db.card {
        return false;
    }
    driver.machine.links_between(da.card, db.card) > 0 || driver.machine.topology(da.card, db.card) <= 20
}

fn bytes(driver: &Driver, device: &Device) -> u64 {
    driver.machine.pool_bytes(device.pool)
}

fn attribute(driver: &Driver, device: &Device, number: c_int) -> Res<c_int> {
    let d = driver.machine.card(device.card);
    let modern = d.capability_major >= 8;
    let hopper = d.capability_major >= 9;
    let data_centre = !d.profiles().is_empty() || d.capability_major == 7;
    Ok(match number {
        1..=3 => 1024,
        4 => 64,
        5 => i32::MAX,
        6 | 7 => 65535,
        8 => 49152,
        9 => 65536,
        10 => 32,
        11 => i32::MAX,
        12 | 82 => 65536,
        13 => (d.clock_sm_mhz * 1000) as c_int,
        14 | 30 => 512,
        15 | 19 | 31 | 35 | 41 | 44 | 78 | 79 | 80 | 83 | 89 | 90 | 92 | 93 | 94 | 95 | 98 | 99 | 102 | 103 | 115
        | 122 | 123 | 125 | 129 => c_int::from(number != 35),
        16 => device.sms as c_int,
        17 | 18 | 20 | 84 | 86 | 88 | 91 | 100 | 101 => 0,
        21 => 131_072,
        22 => 131_072,
        23 => 65536,
        24..=26 => 16384,
        27 | 28 => 32768,
        29 => 2048,
        32 => c_int::from(data_centre),
        33 => d.pci_bus as c_int,
        34 => d.pci_device as c_int,
        36 => (d.clock_memory_mhz * 1000) as c_int,
        37 => d.bus_width as c_int,
        38 => d.l2_bytes as c_int,
        39 => match (d.capability_major, d.capability_minor) {
            (7, 5) => 1024,
            (8, 6 | 9) => 1536,
            _ => 2048,
        },
        40 => 3,
        42 => 32768,
        43 => 2048,
        45 | 46 | 52 | 53 | 55..=65 | 67 | 68 | 70..=73 | 74 | 77 => 32768,
        47..=49 => 8192,
        50 => d.pci_domain as c_int,
        51 => 32,
        54 | 66 => 2046,
        69 => 268_435_456,
        75 => d.capability_major as c_int,
        76 => d.capability_minor as c_int,
        81 => match (d.capability_major, d.capability_minor) {
            (7, 5) => 65536,
            (7, _) => 98304,
            (8, 0) => 167_936,
            (8, _) => 102_400,
            _ => 233_472,
        },
        85 => driver
            .machine
            .visible_cards()
            .iter()
            .position(|c| *c == device.card)
            .unwrap_or(0) as c_int,
        87 => {
            if data_centre {
                2
            } else {
                64
            }
        }
        96 => 1,
        97 => match (d.capability_major, d.capability_minor) {
            (7, 5) => 65536,
            (7, _) => 98304,
            (8, 0) => 166_912,
            (8, _) => 101_376,
            _ => 232_448,
        },
        104 | 105 | 135 | 138 => 0,
        106 => {
            if d.capability_minor == 9 || d.capability_minor == 5 {
                if d.capability_minor == 9 { 24 } else { 16 }
            } else {
                32
            }
        }
        107 | 110 | 112 | 113 | 114 | 116 => c_int::from(modern),
        108 | 109 => {
            if modern {
                (d.l2_bytes / 4 * 3) as c_int
            } else {
                0
            }
        }
        111 => 1024,
        117 => 1,
        118 => 100,
        119 => 1,
        120 => c_int::from(hopper),
        121 => 1,
        124 | 126 => c_int::from(modern),
        127 => c_int::from(hopper),
        128 | 130 | 132 => 0,
        131 => -1,
        133 => 0,
        134 => d.numa,
        136 | 137 => 0,
        139 => d.pci_device_id as c_int,
        140 => d.pci_subsystem_id as c_int,
        141..=200 => 0,
        _ => return Err(INVALID_VALUE),
    })
}

fn by_bus(driver: &Driver, wanted: &str) -> Option<usize> {
    let plain = |t: &str| {
        let t = t.to_ascii_lowercase();
        let (domain, rest) = match t.matches(':').count() {
            2 => t.split_once(':').map(|(a, b)| (a.to_owned(), b.to_owned()))?,
            _ => ("0".to_owned(), t),
        };
        let domain = u32::from_str_radix(&domain, 16).ok()?;
        let rest = rest.strip_suffix(".0").unwrap_or(&rest).to_owned();
        Some((domain, rest))
    };
    let wanted = plain(wanted)?;
    driver
        .devices
        .iter()
        .position(|d| plain(&driver.machine.card(d.card).bus_id()).as_ref() == Some(&wanted))
}

unsafe fn atomics(out: *mut c_uint, operations: *const c_uint, count: c_uint) -> Res<()> {
    // SAFETY: arguments of the entry point.
    unsafe {
        if out.is_null() {
            return Err(INVALID_VALUE);
        }
        for i in 0..list(operations, count as usize)?.len() {
            put(out.add(i), 0)?;
        }
    }
    Ok(())
}

api! {
    fn cuInit(flags: c_uint) {
        if flags != 0 {
            return Err(INVALID_VALUE);
        }
        state::init()
    }
    fn cuDriverGetVersion(out: *mut c_int) {
        let version = state::machine().map_or(13000, tessera_fake_core::Machine::cuda_version);
        put(out, version as c_int)
    }
    fn cuDeviceGet(out: *mut c_int, ordinal: c_int) {
        state::driver()?.device(ordinal)?;
        put(out, ordinal)
    }
    fn cuDeviceGetCount(out: *mut c_int) {
        put(out, state::driver()?.devices.len() as c_int)
    }
    fn cuDeviceGetName(out: *mut c_char, len: c_int, device: c_int) {
        let driver = state::driver()?;
        put_text(out, usize::try_from(len).unwrap_or(0), &driver.device(device)?.name)
    }
    fn cuDeviceGetUuid(out: *mut [u8; 16], device: c_int) {
        let driver = state::driver()?;
        // The first form knows whole cards only.
        put(out, driver.machine.card(driver.device(device)?.card).uuid)
    }
    fn cuDeviceGetUuid_v2(out: *mut [u8; 16], device: c_int) {
        put(out, state::driver()?.device(device)?.uuid)
    }
    fn cuDeviceTotalMem_v2(out: *mut usize, device: c_int) {
        let driver = state::driver()?;
        put(out, bytes(driver, driver.device(device)?) as usize)
    }
    fn cuDeviceGetAttribute(out: *mut c_int, number: c_int, device: c_int) {
        let driver = state::driver()?;
        put(out, attribute(driver, driver.device(device)?, number)?)
    }
    fn cuDeviceComputeCapability(major: *mut c_int, minor: *mut c_int, device: c_int) {
        let driver = state::driver()?;
        let d = driver.machine.card(driver.device(device)?.card);
        put(major, d.capability_major as c_int)?;
        put(minor, d.capability_minor as c_int)
    }
    fn cuDeviceGetProperties(out: *mut [c_int; 14], device: c_int) {
        let driver = state::driver()?;
        let device = driver.device(device)?;
        let a = |n| attribute(driver, device, n);
        put(out, [a(1)?, a(2)?, a(3)?, a(4)?, a(5)?, a(6)?, a(7)?, a(8)?, a(9)?, a(10)?, a(11)?, a(12)?, a(13)?, a(14)?])
    }
    fn cuDeviceGetPCIBusId(out: *mut c_char, len: c_int, device: c_int) {
        let driver = state::driver()?;
        let d = driver.machine.card(driver.device(device)?.card);
        let id = format!("{:04X}:{:02X}:{:02X}.0", d.pci_domain, d.pci_bus, d.pci_device);
        put_text(out, usize::try_from(len).unwrap_or(0), &id)
    }
    fn cuDeviceGetByPCIBusId(out: *mut c_int, id: *const c_char) {
        let driver = state::driver()?;
        let found = by_bus(driver, &text(id)?).ok_or(INVALID_DEVICE)?;
        put(out, found as c_int)
    }
    fn cuDeviceGetLuid(luid: *mut c_char, mask: *mut c_uint, device: c_int) {
        let _ = (luid, mask);
        state::driver()?.device(device)?;
        Err(NOT_SUPPORTED)
    }
    fn cuDeviceCanAccessPeer(out: *mut c_int, a: c_int, b: c_int) {
        let driver = state::driver()?;
        put(out, c_int::from(peers(driver, driver.index(a)?, driver.index(b)?)))
    }
    fn cuDeviceGetP2PAttribute(out: *mut c_int, number: c_uint, a: c_int, b: c_int) {
        let driver = state::driver()?;
        let (a, b) = (driver.index(a)?, driver.index(b)?);
        if a == b {
            return Err(INVALID_DEVICE);
        }
        let can = peers(driver, a, b);
        let linked = driver.machine.links_between(driver.devices[a].card, driver.devices[b].card) > 0;
        let value = match number {
            1 => c_int::from(!linked),             // performance rank
            2 | 4 | 6 => c_int::from(can),         // access, array access, mapped array access
            3 | 5 => c_int::from(can && linked),   // native atomics
            _ => return Err(INVALID_VALUE),
        };
        put(out, value)
    }
    fn cuDeviceGetHostAtomicCapabilities(out: *mut c_uint, operations: *const c_uint, count: c_uint, device: c_int) {
        state::driver()?.device(device)?;
        atomics(out, operations, count)
    }
    fn cuDeviceGetP2PAtomicCapabilities(out: *mut c_uint, operations: *const c_uint, count: c_uint, a: c_int, b: c_int) {
        let driver = state::driver()?;
        driver.device(a)?;
        driver.device(b)?;
        atomics(out, operations, count)
    }
    fn cuDeviceGetTexture1DLinearMaxWidth(out: *mut usize, format: c_uint, channels: c_uint, device: c_int) {
        state::driver()?.device(device)?;
        if !matches!(channels, 1 | 2 | 4) || crate::array::format_bytes(format).is_none() {
            return Err(INVALID_VALUE);
        }
        put(out, 268_435_456)
    }
    fn cuDeviceGetDevResource(device: c_int, resource: *mut [u32; 36], kind: c_uint) {
        let driver = state::driver()?;
        let sms = driver.device(device)?.sms;
        if kind != 1 {
            return Err(NOT_SUPPORTED);
        }
        let _ = get(resource)?;
        let mut words = [0u32; 36];
        words[0] = 1;
        words[24] = sms;
        put(resource, words)
    }
    fn cuDeviceGetNvSciSyncAttributes(attributes: *mut c_void, device: c_int, flags: c_int) {
        let _ = (attributes, flags);
        state::driver()?.device(device)?;
        Err(NOT_SUPPORTED)
    }
    fn cuFlushGPUDirectRDMAWrites(target: c_uint, scope: c_uint) {
        let _ = (target, scope);
        let driver = state::driver()?;
        driver.current(&mut driver.lock())?;
        Ok(())
    }
    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) {
        let driver = state::driver()?;
        let device = driver.current_device(&mut driver.lock())?.1;
        let device = &driver.devices[device];
        let all = bytes(driver, device);
        let used = driver.machine.used_bytes(device.pool);
        put_wanted(free, all.saturating_sub(used) as usize);
        put_wanted(total, all as usize);
        // A card whose partitioning was switched on meanwhile no longer has this pool.
        if device.is_partition && !mig::is_on(driver.machine, device.card) {
            return Err(crate::abi::LAUNCH_FAILED);
        }
        Ok(())
    }
}
