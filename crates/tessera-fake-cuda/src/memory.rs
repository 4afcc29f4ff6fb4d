//! Plain, managed and page-locked memory, and what a pointer is.

use std::ffi::{c_int, c_uint, c_void};

use crate::abi::{
    HOST_ALREADY_REGISTERED, HOST_NOT_REGISTERED, INVALID_VALUE, NOT_SUPPORTED, OUT_OF_MEMORY, R, Res, list, put,
    put_wanted,
};
use crate::state::{self, Alloc, Driver, Inner, Kind};

/// Distance between rows that the driver gives.
const PITCH: usize = 512;

unsafe fn allocate(out: *mut u64, size: usize, kind: Kind) -> R {
    let driver = state::driver()?;
    if out.is_null() || size == 0 {
        return Err(INVALID_VALUE);
    }
    let inner = &mut *driver.lock();
    let (context, device) = driver.current_device(inner)?;
    let address = driver.allocate(inner, device, context, size as u64, kind)?;
    // SAFETY: the caller of the entry point vouches for `out`.
    unsafe { put(out, address) }
}

unsafe fn allocate_host(out: *mut u64, size: usize, flags: c_uint) -> R {
    let driver = state::driver()?;
    if out.is_null() || size == 0 || flags & !7 != 0 {
        return Err(INVALID_VALUE);
    }
    let inner = &mut *driver.lock();
    let (context, device) = driver.current_device(inner)?;
    let address = driver.place(inner, device, context, size as u64, Kind::Host(flags))?;
    // SAFETY: as above.
    unsafe { put(out, address) }
}

/// Frees memory that `cuMemFree` may free.
pub(crate) fn free(driver: &Driver, inner: &mut Inner, address: u64) -> R {
    if address == 0 {
        return Ok(());
    }
    match inner.allocs.get(&address).map(|a| a.kind) {
        Some(Kind::Plain | Kind::Managed | Kind::Pool(_) | Kind::Graph | Kind::External) => {
            driver.release(inner, address);
            Ok(())
        }
        found => {
            if found.is_none() {
                driver.machine.note_flaw(tessera_fake_core::Flaw::UnknownPointer);
            }
            Err(INVALID_VALUE)
        }
    }
}

unsafe fn register(address: u64, size: usize, flags: c_uint) -> R {
    let driver = state::driver()?;
    if address == 0 || size == 0 {
        return Err(INVALID_VALUE);
    }
    let inner = &mut *driver.lock();
    let (context, device) = driver.current_device(inner)?;
    let end = address.checked_add(size as u64).ok_or(INVALID_VALUE)?;
    let overlaps = inner
        .allocs
        .range(..end)
        .next_back()
        .is_some_and(|(at, a)| at + a.size > address);
    if overlaps {
        return Err(HOST_ALREADY_REGISTERED);
    }
    let id = inner.id();
    inner.allocs.insert(
        address,
        Alloc {
            size: size as u64,
            device,
            context,
            kind: Kind::Registered(flags),
            id,
        },
    );
    Ok(())
}

/// What a pointer is, for one attribute: written as the attribute's own type.
unsafe fn attribute(inner: &Inner, address: u64, number: c_int, out: *mut c_void) -> R {
    // SAFETY: the caller of the entry point gives a place for the attribute's type.
    unsafe {
        let mapped = inner
            .mappings
            .range(..=address)
            .next_back()
            .filter(|(at, m)| address < *at + m.size);
        let found = inner.find(address);
        if found.is_none() && mapped.is_none() {
            // A pointer that the driver does not know is host memory without attributes.
            return match number {
                1 | 2 => Err(INVALID_VALUE),
                8 | 13 => put(out.cast::<u32>(), 0),
                9 => put(out.cast::<c_int>(), -2),
                3 | 4 | 11 | 12 | 14 | 17 => put(out.cast::<u64>(), 0),
                6 | 10 | 15 | 16 => put(out.cast::<u32>(), 0),
                7 => put(out.cast::<u64>(), 0),
                _ => Err(INVALID_VALUE),
            };
        }
        let (start, size, device, context, kind, id) = match (found, mapped) {
            (Some((at, a)), _) => (at, a.size, a.device, a.context, a.kind, a.id),
            (None, Some((at, m))) => (*at, m.size, m.device, 0, Kind::Plain, m.handle),
            (None, None) => return Err(INVALID_VALUE),
        };
        let host = matches!(kind, Kind::Host(_) | Kind::Registered(_));
        match number {
            1 => put(out.cast::<u64>(), context),
            2 => put(out.cast::<u32>(), if host { 1 } else { 2 }),
            3 => put(out.cast::<u64>(), address),
            4 => {
                if host || kind == Kind::Managed {
                    put(out.cast::<u64>(), address)
                } else {
                    Err(INVALID_VALUE)
                }
            }
            5 => Err(NOT_SUPPORTED),
            6 => put(out.cast::<u32>(), 0),
            7 => put(out.cast::<u64>(), id),
            8 => put(out.cast::<u32>(), u32::from(kind == Kind::Managed)),
            9 => put(out.cast::<c_int>(), device as c_int),
            10 => put(out.cast::<u32>(), u32::from(kind == Kind::Plain && mapped.is_none())),
            11 | 19 => put(out.cast::<u64>(), start),
            12 | 18 => put(out.cast::<u64>(), size),
            13 => put(out.cast::<u32>(), 1),
            14 => put(out.cast::<u64>(), u64::from(mapped.is_some())),
            15 => put(out.cast::<u32>(), u32::from(!host)),
            16 => put(out.cast::<u32>(), 3),
            17 => match kind {
                Kind::Pool(pool) => put(out.cast::<u64>(), pool),
                _ => put(out.cast::<u64>(), 0),
            },
            20 => put(out.cast::<u64>(), id),
            21 => put(out.cast::<u32>(), 0),
            _ => Err(INVALID_VALUE),
        }
    }
}

fn known(inner: &Inner, address: u64, size: usize) -> R {
    let (at, alloc) = inner.find(address).ok_or(INVALID_VALUE)?;
    if address + size as u64 <= at + alloc.size && size > 0 {
        Ok(())
    } else {
        Err(INVALID_VALUE)
    }
}

fn managed(address: u64, size: usize) -> R {
    let driver = state::driver()?;
    let inner = &mut *driver.lock();
    driver.current(inner)?;
    known(inner, address, size)
}

unsafe fn range_attribute(data: *mut c_void, size: usize, attribute: c_uint) -> Res<()> {
    // SAFETY: the caller of the entry point gives `size` bytes.
    unsafe {
        match attribute {
            // read mostly, preferred location, last prefetch, and their ids: none set
            1 => put(data.cast::<c_int>(), 0),
            2 | 4 | 5 | 6 | 7 | 8 if size >= 4 => {
                put(data.cast::<c_int>(), if matches!(attribute, 5 | 7) { 0 } else { -2 })
            }
            3 => {
                for i in 0..size / 4 {
                    put(data.cast::<c_int>().add(i), -2)?;
                }
                Ok(())
            }
            _ => Err(INVALID_VALUE),
        }
    }
}

api! {
    fn cuMemAlloc_v2(out: *mut u64, size: usize) { allocate(out, size, Kind::Plain) }
    fn cuMemAllocManaged(out: *mut u64, size: usize, flags: c_uint) {
        if !matches!(flags, 1 | 2) {
            return Err(INVALID_VALUE);
        }
        allocate(out, size, Kind::Managed)
    }
    fn cuMemAllocPitch_v2(out: *mut u64, pitch: *mut usize, width: usize, height: usize, element: c_uint) {
        if pitch.is_null() || width == 0 || height == 0 || !matches!(element, 4 | 8 | 16) {
            return Err(INVALID_VALUE);
        }
        let row = width.checked_next_multiple_of(PITCH).ok_or(OUT_OF_MEMORY)?;
        allocate(out, row.checked_mul(height).ok_or(OUT_OF_MEMORY)?, Kind::Plain)?;
        put(pitch, row)
    }
    fn cuMemFree_v2(address: u64) {
        let driver = state::driver()?;
        let inner = &mut *driver.lock();
        driver.current(inner)?;
        free(driver, inner, address)
    }
    fn cuMemGetAddressRange_v2(base: *mut u64, size: *mut usize, address: u64) {
        let driver = state::driver()?;
        let inner = &mut *driver.lock();
        driver.current(inner)?;
        if let Some((at, alloc)) = inner.find(address) {
            put_wanted(base, at);
            put_wanted(size, alloc.size as usize);
            return Ok(());
        }
        let (at, mapping) = inner.mappings.range(..=address).next_back().ok_or(crate::abi::NOT_FOUND)?;
        if address >= at + mapping.size {
            return Err(crate::abi::NOT_FOUND);
        }
        put_wanted(base, *at);
        put_wanted(size, mapping.size as usize);
        Ok(())
    }
    fn cuMemAllocHost_v2(out: *mut u64, size: usize) { allocate_host(out, size, 0) }
    fn cuMemHostAlloc(out: *mut u64, size: usize, flags: c_uint) { allocate_host(out, size, flags) }
    fn cuMemFreeHost(address: u64) {
        let driver = state::driver()?;
        let inner = &mut *driver.lock();
        match inner.allocs.get(&address).map(|a| a.kind) {
            Some(Kind::Host(_)) => { driver.release(inner, address); Ok(()) }
            _ if address == 0 => Ok(()),
            _ => Err(INVALID_VALUE),
        }
    }
    fn cuMemHostGetDevicePointer_v2(out: *mut u64, address: u64, flags: c_uint) {
        let driver = state::driver()?;
        if flags != 0 {
            return Err(INVALID_VALUE);
        }
        let inner = driver.lock();
        match inner.find(address).map(|(_, a)| a.kind) {
            Some(Kind::Host(_) | Kind::Registered(_)) => put(out, address),
            _ => Err(INVALID_VALUE),
        }
    }
    fn cuMemHostGetFlags(out: *mut c_uint, address: u64) {
        let driver = state::driver()?;
        let inner = driver.lock();
        match inner.find(address).map(|(_, a)| a.kind) {
            Some(Kind::Host(flags) | Kind::Registered(flags)) => put(out, flags | 2),
            _ => Err(INVALID_VALUE),
        }
    }
    fn cuMemHostRegister_v2(address: u64, size: usize, flags: c_uint) { register(address, size, flags) }
    fn cuMemHostUnregister(address: u64) {
        let driver = state::driver()?;
        let inner = &mut *driver.lock();
        match inner.allocs.get(&address).map(|a| a.kind) {
            Some(Kind::Registered(_)) => { driver.release(inner, address); Ok(()) }
            _ => Err(HOST_NOT_REGISTERED),
        }
    }
    fn cuPointerGetAttribute(out: *mut c_void, number: c_int, address: u64) {
        let driver = state::driver()?;
        attribute(&driver.lock(), address, number, out)
    }
    fn cuPointerGetAttributes(count: c_uint, numbers: *const c_int, out: *const *mut c_void, address: u64) {
        let driver = state::driver()?;
        let inner = driver.lock();
        let places = list(out, count as usize)?;
        for (number, place) in list(numbers, count as usize)?.into_iter().zip(places) {
            // In the plural form an attribute that the pointer does not have is left at zero.
            if attribute(&inner, address, number, place).is_err() {
                let wide = matches!(number, 1 | 3 | 4 | 7 | 11 | 12 | 14 | 17..=20);
                if wide { put_wanted(place.cast::<u64>(), 0) } else { put_wanted(place.cast::<u32>(), 0) }
            }
        }
        Ok(())
    }
    fn cuPointerSetAttribute(value: *const c_void, number: c_int, address: u64) {
        let driver = state::driver()?;
        let inner = driver.lock();
        let mapped = || inner.mappings.range(..=address).next_back().is_some_and(|(at, m)| address < at + m.size);
        if value.is_null() || number != 6 || (inner.find(address).is_none() && !mapped()) {
            return Err(INVALID_VALUE);
        }
        Ok(())
    }
    fn cuMemAdvise(address: u64, size: usize, advice: c_uint, device: c_int) {
        let _ = (advice, device);
        managed(address, size)
    }
    fn cuMemAdvise_v2(address: u64, size: usize, advice: c_uint, location: u64) {
        let _ = (advice, location);
        managed(address, size)
    }
    fn cuMemPrefetchAsync(address: u64, size: usize, device: c_int, stream: u64) also cuMemPrefetchAsync_ptsz {
        let _ = (device, stream, PT);
        managed(address, size)
    }
    fn cuMemPrefetchAsync_v2(address: u64, size: usize, location: u64, flags: c_uint, stream: u64) also cuMemPrefetchAsync_v2_ptsz {
        let _ = (location, stream, PT);
        if flags != 0 {
            return Err(INVALID_VALUE);
        }
        managed(address, size)
    }
    fn cuMemRangeGetAttribute(data: *mut c_void, size: usize, attribute: c_uint, address: u64, count: usize) {
        let driver = state::driver()?;
        known(&driver.lock(), address, count)?;
        range_attribute(data, size, attribute)
    }
    fn cuMemRangeGetAttributes(data: *const *mut c_void, sizes: *const usize, attributes: *const c_uint, n: usize, address: u64, count: usize) {
        let driver = state::driver()?;
        known(&driver.lock(), address, count)?;
        let (data, sizes) = (list(data, n)?, list(sizes, n)?);
        for (i, number) in list(attributes, n)?.into_iter().enumerate() {
            range_attribute(data[i], sizes[i], number)?;
        }
        Ok(())
    }
}
