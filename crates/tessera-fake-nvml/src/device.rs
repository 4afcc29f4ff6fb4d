//! Devices and who they are.

use std::ffi::{c_char, c_int, c_uint};
use std::sync::atomic::Ordering::SeqCst;

use tessera_fake_core::{Machine, mig, parse_uuid};

use crate::abi::{
    GPU_IS_LOST, INVALID_ARGUMENT, NOT_FOUND, NOT_SUPPORTED, R, Res, field, put, put_list, put_text, text,
};
use crate::state::{self, Device, card_handle, part_handle};

/// An identifier of either form: 1 text, 2 sixteen bytes.
#[repr(C)]
#[derive(Clone, Copy)]
struct UuidV {
    version: c_uint,
    kind: c_uint,
    value: [u8; 41],
}

fn by_index(index: c_uint) -> Res<u64> {
    let cards = state::cards()?;
    let card = *cards.get(index as usize).ok_or(INVALID_ARGUMENT)?;
    present(state::machine()?, card)
}

fn present(machine: &Machine, card: usize) -> Res<u64> {
    if machine.card_state(card).lost.load(SeqCst) == 1 {
        return Err(GPU_IS_LOST);
    }
    Ok(card_handle(card))
}

fn by_uuid(wanted: &str) -> Res<u64> {
    let machine = state::machine()?;
    let id = parse_uuid(wanted).ok_or(INVALID_ARGUMENT)?;
    for card in state::cards()? {
        if wanted.starts_with("MIG-") {
            for (instance, compute) in mig::devices(machine, card) {
                if mig::device_uuid(machine, card, instance.id, compute.id) == id {
                    return Ok(part_handle(card, instance.position, compute.id));
                }
            }
        } else if machine.card(card).uuid == id {
            return present(machine, card);
        }
    }
    Err(NOT_FOUND)
}

fn by_bus(wanted: &str) -> Res<u64> {
    let parse = |t: &str| -> Option<[u32; 3]> {
        let t = t.split('.').next()?;
        let mut parts: Vec<u32> = t
            .split(':')
            .map(|p| u32::from_str_radix(p, 16).ok())
            .collect::<Option<_>>()?;
        if parts.len() == 2 {
            parts.insert(0, 0);
        }
        parts.try_into().ok()
    };
    let wanted = parse(wanted).ok_or(INVALID_ARGUMENT)?;
    let machine = state::machine()?;
    let card = state::cards()?
        .into_iter()
        .find(|c| {
            let d = machine.card(*c);
            [d.pci_domain, d.pci_bus, d.pci_device] == wanted
        })
        .ok_or(NOT_FOUND)?;
    present(machine, card)
}

/// The bus address of a card, 68 bytes.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Pci {
    legacy: [u8; 16],
    domain: u32,
    bus: u32,
    device: u32,
    device_id: u32,
    subsystem_id: u32,
    id: [u8; 32],
}

impl Pci {
    /// An address.
    pub(crate) fn new(domain: u32, bus: u32, device: u32, device_id: u32, subsystem_id: u32) -> Self {
        Self {
            legacy: field(&format!("{domain:04X}:{bus:02X}:{device:02X}.0")),
            domain,
            bus,
            device,
            device_id,
            subsystem_id,
            id: field(&format!("{domain:08X}:{bus:02X}:{device:02X}.0")),
        }
    }

    /// The address of a card.
    pub(crate) fn of(machine: &Machine, card: usize) -> Self {
        let d = machine.card(card);
        Self::new(
            d.pci_domain,
            d.pci_bus,
            d.pci_device,
            d.pci_device_id,
            d.pci_subsystem_id,
        )
    }
}

/// A processor set: all processors of the card's NUMA node, else all that are online.
fn processors(numa: i32) -> Vec<usize> {
    let read = |path: String| std::fs::read_to_string(path).ok();
    let list = read(format!("/sys/devices/system/node/node{numa}/cpulist"))
        .or_else(|| read("/sys/devices/system/cpu/online".to_owned()))
        .unwrap_or_else(|| "0".to_owned());
    list.trim()
        .split(',')
        .filter_map(|part| {
            let (a, b) = part.split_once('-').unwrap_or((part, part));
            Some(a.parse::<usize>().ok()?..=b.parse::<usize>().ok()?.min(65535))
        })
        .flatten()
        .collect()
}

unsafe fn put_set(out: *mut u64, words: c_uint, members: impl IntoIterator<Item = usize>) -> R {
    if words == 0 || words > 4096 {
        return Err(INVALID_ARGUMENT);
    }
    let mut set = vec![0u64; words as usize];
    for member in members {
        if let Some(word) = set.get_mut(member / 64) {
            *word |= 1 << (member % 64);
        }
    }
    for (i, word) in set.into_iter().enumerate() {
        // SAFETY: the caller of the entry point gives `words` words.
        unsafe { put(out.add(i), word) }?;
    }
    Ok(())
}

unsafe fn memory_affinity(device: u64, words: c_uint, out: *mut u64) -> R {
    let device = Device::whole(device)?;
    let node = usize::try_from(device.desc().numa).map_err(|_| NOT_SUPPORTED)?;
    // SAFETY: arguments of the entry point.
    unsafe { put_set(out, words, [node]) }
}

unsafe fn cpu_affinity(device: u64, words: c_uint, out: *mut u64) -> R {
    let device = Device::whole(device)?;
    // SAFETY: arguments of the entry point.
    unsafe { put_set(out, words, processors(device.desc().numa)) }
}

unsafe fn old_pci(device: u64, out: *mut [u8; 36]) -> R {
    let device = Device::of(device)?;
    let pci = Pci::of(device.machine, device.card);
    // SAFETY: `Pci` begins with these 36 bytes; the older structures end there or later.
    unsafe { put(out, *std::ptr::from_ref(&pci).cast::<[u8; 36]>()) }
}

api! {
    fn nvmlDeviceGetCount(out: *mut c_uint) { put(out, state::cards()?.len() as c_uint) }
    fn nvmlDeviceGetCount_v2(out: *mut c_uint) { put(out, state::cards()?.len() as c_uint) }
    fn nvmlDeviceGetHandleByIndex(index: c_uint, out: *mut u64) { put(out, by_index(index)?) }
    fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, out: *mut u64) { put(out, by_index(index)?) }
    fn nvmlDeviceGetHandleByUUIDV(uuid: *const UuidV, out: *mut u64) {
        if uuid.is_null() {
            return Err(INVALID_ARGUMENT);
        }
        let wanted = uuid.read_unaligned();
        let value = wanted.value;
        let handle = match wanted.kind {
            1 => {
                let length = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
                by_uuid(&String::from_utf8_lossy(&value[..length]))?
            }
            2 => {
                let mut bytes = [0; 16];
                bytes.copy_from_slice(&value[..16]);
                by_uuid(&tessera_fake_core::format_uuid("GPU-", &bytes))?
            }
            _ => return Err(INVALID_ARGUMENT),
        };
        put(out, handle)
    }
    fn nvmlDeviceGetHandleByUUID(id: *const c_char, out: *mut u64) { put(out, by_uuid(&text(id)?)?) }
    fn nvmlDeviceGetHandleBySerial(serial: *const c_char, out: *mut u64) {
        let wanted = text(serial)?;
        let machine = state::machine()?;
        let card = state::cards()?.into_iter().find(|c| machine.card(*c).serial() == wanted).ok_or(NOT_FOUND)?;
        put(out, present(machine, card)?)
    }
    fn nvmlDeviceGetHandleByPciBusId(id: *const c_char, out: *mut u64) { put(out, by_bus(&text(id)?)?) }
    fn nvmlDeviceGetHandleByPciBusId_v2(id: *const c_char, out: *mut u64) { put(out, by_bus(&text(id)?)?) }
    fn nvmlDeviceGetName(device: u64, out: *mut c_char, len: c_uint) { put_text(out, len, &Device::of(device)?.name()) }
    fn nvmlDeviceGetUUID(device: u64, out: *mut c_char, len: c_uint) { put_text(out, len, &Device::of(device)?.uuid()) }
    fn nvmlDeviceGetSerial(device: u64, out: *mut c_char, len: c_uint) { put_text(out, len, Device::whole(device)?.desc().serial()) }
    fn nvmlDeviceGetBoardPartNumber(device: u64, out: *mut c_char, len: c_uint) {
        let d = Device::whole(device)?.desc();
        put_text(out, len, &format!("900-{:05X}-0000-000", d.pci_device_id >> 16))
    }
    fn nvmlDeviceGetIndex(device: u64, out: *mut c_uint) {
        let device = Device::of(device)?;
        let index = match device.part {
            None => state::cards()?.iter().position(|c| *c == device.card),
            Some((i, c)) => mig::devices(device.machine, device.card).iter().position(|(a, b)| a.id == i.id && b.id == c.id),
        };
        put(out, index.ok_or(NOT_FOUND)? as c_uint)
    }
    fn nvmlDeviceGetMinorNumber(device: u64, out: *mut c_uint) { put(out, Device::whole(device)?.desc().minor) }
    fn nvmlDeviceGetModuleId(device: u64, out: *mut c_uint) { put(out, Device::whole(device)?.card as c_uint + 1) }
    fn nvmlDeviceGetBrand(device: u64, out: *mut c_uint) { put(out, Device::of(device)?.desc().brand) }
    fn nvmlDeviceGetArchitecture(device: u64, out: *mut c_uint) { put(out, Device::of(device)?.desc().architecture) }
    fn nvmlDeviceGetBusType(device: u64, out: *mut c_uint) { Device::whole(device)?; put(out, 2) }
    fn nvmlDeviceGetCudaComputeCapability(device: u64, major: *mut c_int, minor: *mut c_int) {
        let d = Device::of(device)?.desc();
        put(major, d.capability_major as c_int)?;
        put(minor, d.capability_minor as c_int)
    }
    fn nvmlDeviceGetNumGpuCores(device: u64, out: *mut c_uint) {
        let d = Device::whole(device)?.desc();
        let per_sm = if (d.capability_major, d.capability_minor) == (8, 0) || d.capability_major == 7 { 64 } else { 128 };
        put(out, d.sms * per_sm)
    }
    fn nvmlDeviceGetPciInfo(device: u64, out: *mut [u8; 36]) { old_pci(device, out) }
    fn nvmlDeviceGetPciInfo_v2(device: u64, out: *mut [u8; 36]) { old_pci(device, out) }
    fn nvmlDeviceGetPciInfo_v3(device: u64, out: *mut Pci) {
        let device = Device::of(device)?;
        put(out, Pci::of(device.machine, device.card))
    }
    fn nvmlDeviceGetBoardId(device: u64, out: *mut c_uint) {
        let d = Device::whole(device)?.desc();
        put(out, d.pci_domain << 16 | d.pci_bus << 8)
    }
    fn nvmlDeviceGetMultiGpuBoard(device: u64, out: *mut c_uint) { Device::whole(device)?; put(out, 0) }
    fn nvmlDeviceOnSameBoard(a: u64, b: u64, out: *mut c_int) {
        put(out, c_int::from(Device::whole(a)?.card == Device::whole(b)?.card))
    }
    fn nvmlDeviceGetVbiosVersion(device: u64, out: *mut c_char, len: c_uint) {
        Device::of(device)?;
        put_text(out, len, "96.00.5E.00.01")
    }
    fn nvmlDeviceGetNumaNodeId(device: u64, out: *mut c_uint) {
        put(out, c_uint::try_from(Device::whole(device)?.desc().numa).map_err(|_| NOT_SUPPORTED)?)
    }
    fn nvmlDeviceGetMemoryAffinity(device: u64, words: c_uint, out: *mut u64, scope: c_uint) {
        let _ = scope;
        memory_affinity(device, words, out)
    }
    fn nvmlDeviceGetCpuAffinity(device: u64, words: c_uint, out: *mut u64) { cpu_affinity(device, words, out) }
    fn nvmlDeviceGetCpuAffinityWithinScope(device: u64, words: c_uint, out: *mut u64, scope: c_uint) {
        let _ = scope;
        cpu_affinity(device, words, out)
    }
    fn nvmlDeviceGetTopologyCommonAncestor(a: u64, b: u64, out: *mut c_uint) {
        let (a, b) = (Device::whole(a)?, Device::whole(b)?);
        put(out, c_uint::from(a.machine.topology(a.card, b.card)))
    }
    fn nvmlDeviceGetTopologyNearestGpus(device: u64, level: c_uint, count: *mut c_uint, out: *mut u64) {
        let device = Device::whole(device)?;
        let near: Vec<u64> = state::cards()?.into_iter()
            .filter(|c| *c != device.card && c_uint::from(device.machine.topology(device.card, *c)) == level)
            .map(card_handle).collect();
        if out.is_null() {
            return put(count, near.len() as c_uint);
        }
        put_list(out, count, &near)
    }
    fn nvmlDeviceGetVirtualizationMode(device: u64, out: *mut c_uint) { Device::of(device)?; put(out, 0) }
}
