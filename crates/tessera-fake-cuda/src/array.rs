//! Arrays and mipmapped arrays.

use std::ffi::{c_int, c_uint};

use crate::abi::{INVALID_HANDLE, INVALID_VALUE, OUT_OF_MEMORY, R, Res, get, put};
use crate::state::{self, Driver, Inner, Kind};

/// Sizes of arrays are whole multiples of this.
const ALIGNMENT: u64 = 64 << 10;
/// Flags of arrays whose memory is given later by a mapping.
const UNBACKED: u32 = 0x40 | 0x80;

/// One array.
#[derive(Clone, Debug)]
pub(crate) struct Array {
    pub(crate) context: u64,
    /// 0 for an array without memory of its own.
    pub(crate) address: u64,
    pub(crate) bytes: u64,
    /// Bytes of a row.
    pub(crate) row: u64,
    width: u64,
    pub(crate) height: u64,
    depth: u64,
    format: u32,
    channels: u32,
    flags: u32,
    /// A level of a mipmapped array goes with it.
    level: bool,
}

/// One mipmapped array.
#[derive(Clone, Debug)]
pub(crate) struct Mipmap {
    pub(crate) context: u64,
    levels: Vec<u64>,
}

/// Bytes of one element of a format.
pub(crate) fn format_bytes(format: u32) -> Option<u64> {
    Some(match format {
        0x01 | 0x08 | 0xc0 | 0xc6 => 1,
        0x02 | 0x09 | 0x10 | 0xc1 | 0xc3 | 0xc7 | 0xc9 => 2,
        0x03 | 0x0a | 0x20 | 0xc2 | 0xc4 | 0xc8 | 0xca => 4,
        0xc5 | 0xcb => 8,
        // block-compressed: an element is a block
        0x91 | 0x92 | 0x97 | 0x98 => 8,
        0x93..=0x96 | 0x99..=0x9e => 16,
        0xb0 => 1,
        _ => return None,
    })
}

fn shape(width: u64, height: u64, depth: u64, format: u32, channels: u32) -> Res<(u64, u64)> {
    if width == 0 || !matches!(channels, 1..=4) {
        return Err(INVALID_VALUE);
    }
    let element = format_bytes(format).ok_or(INVALID_VALUE)? * u64::from(channels);
    let row = width.checked_mul(element).ok_or(OUT_OF_MEMORY)?;
    let bytes = row
        .checked_mul(height.max(1))
        .and_then(|b| b.checked_mul(depth.max(1)))
        .ok_or(OUT_OF_MEMORY)?;
    Ok((row, bytes))
}

fn create(
    driver: &Driver,
    inner: &mut Inner,
    size: [u64; 3],
    format: u32,
    channels: u32,
    flags: u32,
    level: bool,
) -> Res<u64> {
    let (context, device) = driver.current_device(inner)?;
    let (row, bytes) = shape(size[0], size[1], size[2], format, channels)?;
    let address = if flags & UNBACKED == 0 {
        let charged = bytes.checked_next_multiple_of(ALIGNMENT).ok_or(OUT_OF_MEMORY)?;
        driver.allocate(inner, device, context, charged, Kind::Array)?
    } else {
        0
    };
    let handle = inner.id();
    inner.arrays.insert(
        handle,
        Array {
            context,
            address,
            bytes,
            row,
            width: size[0],
            height: size[1],
            depth: size[2],
            format,
            channels,
            flags,
            level,
        },
    );
    Ok(handle)
}

fn destroy(driver: &Driver, inner: &mut Inner, handle: u64) -> R {
    let array = inner.arrays.remove(&handle).ok_or(INVALID_HANDLE)?;
    if array.address != 0 {
        driver.release(inner, array.address);
    }
    Ok(())
}

api! {
    fn cuArrayCreate_v2(out: *mut u64, descriptor: *const [u64; 3]) {
        let driver = state::driver()?;
        let d = get(descriptor)?;
        if out.is_null() {
            return Err(INVALID_VALUE);
        }
        let handle = create(driver, &mut driver.lock(), [d[0], d[1], 0], d[2] as u32, (d[2] >> 32) as u32, 0, false)?;
        put(out, handle)
    }
    fn cuArray3DCreate_v2(out: *mut u64, descriptor: *const [u64; 5]) {
        let driver = state::driver()?;
        let d = get(descriptor)?;
        if out.is_null() {
            return Err(INVALID_VALUE);
        }
        let handle = create(driver, &mut driver.lock(), [d[0], d[1], d[2]], d[3] as u32, (d[3] >> 32) as u32, d[4] as u32, false)?;
        put(out, handle)
    }
    fn cuArrayDestroy(array: u64) {
        let driver = state::driver()?;
        let inner = &mut *driver.lock();
        if inner.arrays.get(&array).ok_or(INVALID_HANDLE)?.level {
            return Err(INVALID_HANDLE);
        }
        destroy(driver, inner, array)
    }
    fn cuArrayGetDescriptor_v2(out: *mut [u64; 3], array: u64) {
        let driver = state::driver()?;
        let inner = driver.lock();
        let a = inner.arrays.get(&array).ok_or(INVALID_HANDLE)?;
        put(out, [a.width, a.height, u64::from(a.format) | (u64::from(a.channels) << 32)])
    }
    fn cuArray3DGetDescriptor_v2(out: *mut [u64; 5], array: u64) {
        let driver = state::driver()?;
        let inner = driver.lock();
        let a = inner.arrays.get(&array).ok_or(INVALID_HANDLE)?;
        put(out, [a.width, a.height, a.depth, u64::from(a.format) | (u64::from(a.channels) << 32), u64::from(a.flags)])
    }
    fn cuArrayGetMemoryRequirements(out: *mut [u64; 4], array: u64, device: c_int) {
        let driver = state::driver()?;
        driver.device(device)?;
        let inner = driver.lock();
        let a = inner.arrays.get(&array).ok_or(INVALID_HANDLE)?;
        if a.flags & 0x80 == 0 {
            return Err(INVALID_VALUE);
        }
        put(out, [a.bytes.next_multiple_of(ALIGNMENT), ALIGNMENT, 0, 0])
    }
    fn cuMipmappedArrayCreate(out: *mut u64, descriptor: *const [u64; 5], levels: c_uint) {
        let driver = state::driver()?;
        let d = get(descriptor)?;
        let largest = d[0].max(d[1]).max(d[2]).max(1);
        if out.is_null() || levels == 0 {
            return Err(INVALID_VALUE);
        }
        let levels = levels.min(largest.ilog2() + 1);
        let inner = &mut *driver.lock();
        let context = driver.current(inner)?;
        let mut made = Vec::new();
        for level in 0..levels {
            let part = |n: u64| if n == 0 { 0 } else { (n >> level).max(1) };
            // Layers keep their number.
            let depth = if d[4] & 1 == 1 { d[2] } else { part(d[2]) };
            match create(driver, inner, [part(d[0]), part(d[1]), depth], d[3] as u32, (d[3] >> 32) as u32, d[4] as u32, true) {
                Ok(handle) => made.push(handle),
                Err(code) => {
                    for handle in made {
                        destroy(driver, inner, handle)?;
                    }
                    return Err(code);
                }
            }
        }
        let handle = inner.id();
        inner.mipmaps.insert(handle, Mipmap { context, levels: made });
        put(out, handle)
    }
    fn cuMipmappedArrayDestroy(mipmap: u64) {
        let driver = state::driver()?;
        let inner = &mut *driver.lock();
        for level in inner.mipmaps.remove(&mipmap).ok_or(INVALID_HANDLE)?.levels {
            destroy(driver, inner, level)?;
        }
        Ok(())
    }
    fn cuMipmappedArrayGetLevel(out: *mut u64, mipmap: u64, level: c_uint) {
        let driver = state::driver()?;
        let inner = driver.lock();
        let levels = &inner.mipmaps.get(&mipmap).ok_or(INVALID_HANDLE)?.levels;
        put(out, *levels.get(level as usize).ok_or(INVALID_VALUE)?)
    }
}
