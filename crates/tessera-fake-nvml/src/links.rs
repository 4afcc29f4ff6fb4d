//! NVLinks and peer access.

use std::ffi::c_uint;

use crate::abi::{INVALID_ARGUMENT, NOT_SUPPORTED, R, Res, put};
use crate::device::Pci;
use crate::state::Device;

const SWITCH: u8 = 254;
const NOBODY: u8 = 255;

fn peer(device: &Device, link: c_uint) -> Res<u8> {
    let d = device.desc();
    if d.links == 0 {
        return Err(NOT_SUPPORTED);
    }
    if link >= d.links {
        return Err(INVALID_ARGUMENT);
    }
    Ok(d.link_peer[link as usize])
}

unsafe fn remote(device: u64, link: c_uint, out: *mut Pci) -> R {
    let device = Device::whole(device)?;
    let pci = match peer(&device, link)? {
        NOBODY => return Err(NOT_SUPPORTED),
        // Switches sit on a bus of their own.
        SWITCH => Pci::new(0, 0xc0 + link % 6, 0, 0x22a3_10de, 0x1796_10de),
        card => Pci::of(device.machine, usize::from(card)),
    };
    // SAFETY: argument of the entry point.
    unsafe { put(out, pci) }
}

api! {
    fn nvmlDeviceGetNvLinkState(device: u64, link: c_uint, out: *mut c_uint) {
        let device = Device::whole(device)?;
        put(out, c_uint::from(peer(&device, link)? != NOBODY))
    }
    fn nvmlDeviceGetNvLinkVersion(device: u64, link: c_uint, out: *mut c_uint) {
        let device = Device::whole(device)?;
        peer(&device, link)?;
        // 2 is NVLink 2.0, 5 is 3.1, 6 is 4.0.
        put(out, match device.desc().architecture { 5 => 2, 7 => 5, _ => 6 })
    }
    fn nvmlDeviceGetNvLinkCapability(device: u64, link: c_uint, capability: c_uint, out: *mut c_uint) {
        let device = Device::whole(device)?;
        peer(&device, link)?;
        if capability > 5 {
            return Err(INVALID_ARGUMENT);
        }
        put(out, c_uint::from(capability != 4 && capability != 5))
    }
    fn nvmlDeviceGetNvLinkRemotePciInfo_v2(device: u64, link: c_uint, out: *mut Pci) { remote(device, link, out) }
    fn nvmlDeviceGetNvLinkRemoteDeviceType(device: u64, link: c_uint, out: *mut c_uint) {
        let device = Device::whole(device)?;
        put(out, match peer(&device, link)? { NOBODY => 255, SWITCH => 2, _ => 0 })
    }
    fn nvmlDeviceGetNvLinkErrorCounter(device: u64, link: c_uint, counter: c_uint, out: *mut u64) {
        let device = Device::whole(device)?;
        peer(&device, link)?;
        if counter > 4 {
            return Err(INVALID_ARGUMENT);
        }
        put(out, 0)
    }
    fn nvmlDeviceGetP2PStatus(a: u64, b: u64, kind: c_uint, out: *mut c_uint) {
        let (a, b) = (Device::whole(a)?, Device::whole(b)?);
        let linked = a.machine.links_between(a.card, b.card) > 0;
        let near = linked || a.machine.topology(a.card, b.card) <= 20;
        let possible = match kind {
            0 | 1 | 4 => near,
            2 | 3 => linked,
            _ => return Err(INVALID_ARGUMENT),
        };
        // 0 is possible, 3 is "not with this topology", 5 is "not supported".
        put(out, if possible { 0 } else if kind == 2 || kind == 3 { 5 } else { 3 })
    }
}
