//! Virtual memory management: address space, physical handles, mappings.
//!
//! A handle's bytes are a range of the process's arena file; mapping it maps that range at the
//! reserved address, so two mappings of one handle show the same bytes. A handle that is exported
//! becomes a small file that names the exporter's arena; the importer maps that through `/proc`,
//! which works between processes that see each other. The memory is counted at the exporter.

use std::ffi::{c_int, c_uint, c_void};
use std::os::fd::RawFd;

use crate::abi::{
    INVALID_DEVICE, INVALID_VALUE, NOT_SUPPORTED, OPERATING_SYSTEM, OUT_OF_MEMORY, R, Res, get, list, put,
};
use crate::arena;
use crate::state::{self, Driver, Inner};

const GRANULARITY: u64 = 2 << 20;
const LOCATION_HOST: u32 = 2;
const TICKET: u64 = u64::from_le_bytes(*b"vmmtickt");

/// A physical allocation.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    pub(crate) size: u64,
    pub(crate) device: usize,
    /// References: creation, retains, imports and mappings.
    references: u32,
    /// Address in the arena, or nothing for an imported one.
    address: u64,
    fd: RawFd,
    offset: u64,
    own: bool,
    /// In the memory of the host: no card is charged.
    host: bool,
    handle_types: u32,
    flags: u64,
}

/// A mapped piece of address space.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mapping {
    pub(crate) size: u64,
    pub(crate) handle: u64,
    pub(crate) device: usize,
    access: u32,
}

fn unreference(driver: &Driver, inner: &mut Inner, handle: u64) {
    let Some(entry) = inner.handles.get_mut(&handle) else {
        return;
    };
    entry.references = entry.references.saturating_sub(1);
    if entry.references > 0 {
        return;
    }
    if let Some(entry) = inner.handles.remove(&handle) {
        if entry.own {
            if !entry.host {
                driver.discharge(entry.device, entry.size);
            }
            if let Some(arena) = inner.arena.as_mut() {
                arena.give(entry.address, entry.size);
            }
        } else {
            // SAFETY: the descriptor was opened by the import and is used by nobody else.
            unsafe { libc::close(entry.fd) };
        }
    }
}

fn unmap_all(driver: &Driver, inner: &mut Inner, address: u64, size: u64) -> R {
    let inside: Vec<u64> = inner
        .mappings
        .range(address..address + size)
        .map(|(at, _)| *at)
        .collect();
    if inside.is_empty() {
        return Err(INVALID_VALUE);
    }
    for at in inside {
        if let Some(mapping) = inner.mappings.remove(&at) {
            arena::unmap(at, mapping.size);
            unreference(driver, inner, mapping.handle);
        }
    }
    Ok(())
}

fn device_of(driver: &Driver, kind: c_int, id: c_int) -> Res<usize> {
    match kind {
        1 => driver.index(id),
        2..=4 => Err(NOT_SUPPORTED),
        _ => Err(INVALID_DEVICE),
    }
}

/// Writes a ticket that another process can turn into the same memory.
fn export(entry: &Handle) -> Res<RawFd> {
    // SAFETY: plain calls on a descriptor that was just made.
    unsafe {
        let fd = libc::memfd_create(c"device-memory-ticket".as_ptr(), libc::MFD_CLOEXEC);
        if fd < 0 {
            return Err(OPERATING_SYSTEM);
        }
        let words: [u64; 6] = [
            TICKET,
            libc::getpid() as u64,
            entry.fd as u64,
            entry.offset,
            entry.size,
            entry.device as u64,
        ];
        let len = std::mem::size_of_val(&words);
        if libc::pwrite(fd, words.as_ptr().cast(), len, 0) != len as isize {
            libc::close(fd);
            return Err(OPERATING_SYSTEM);
        }
        Ok(fd)
    }
}

fn import(driver: &Driver, inner: &mut Inner, fd: RawFd) -> Res<u64> {
    let mut words = [0u64; 6];
    let len = std::mem::size_of_val(&words);
    // SAFETY: reads into a local buffer of that size.
    let got = unsafe { libc::pread(fd, words.as_mut_ptr().cast(), len, 0) };
    if got != len as isize || words[0] != TICKET {
        return Err(INVALID_VALUE);
    }
    let path = format!("/proc/{}/fd/{}\0", words[1], words[2]);
    // SAFETY: the path is zero-terminated.
    let theirs = unsafe { libc::open(path.as_ptr().cast(), libc::O_RDWR | libc::O_CLOEXEC) };
    if theirs < 0 {
        return Err(OPERATING_SYSTEM);
    }
    let device = usize::try_from(words[5]).unwrap_or(0);
    let handle = inner.id();
    inner.handles.insert(
        handle,
        Handle {
            size: words[4],
            device: device.min(driver.devices.len() - 1),
            references: 1,
            address: 0,
            fd: theirs,
            offset: words[3],
            own: false,
            host: false,
            handle_types: 1,
            flags: 0,
        },
    );
    Ok(handle)
}

api! {
    fn cuMemGetAllocationGranularity(out: *mut usize, properties: *const [u32; 8], option: c_uint) {
        let driver = state::driver()?;
        let p = get(properties)?;
        if option > 1 || p[0] != 1 {
            return Err(INVALID_VALUE);
        }
        device_of(driver, p[2] as c_int, p[3] as c_int)?;
        put(out, GRANULARITY as usize)
    }
    fn cuMemAddressReserve(out: *mut u64, size: usize, alignment: usize, hint: u64, flags: u64) {
        let driver = state::driver()?;
        let size = size as u64;
        if out.is_null() || size == 0 || !size.is_multiple_of(GRANULARITY) || flags != 0
            || (alignment != 0 && !alignment.is_power_of_two())
        {
            return Err(INVALID_VALUE);
        }
        let address = arena::reserve(size, alignment as u64, hint).ok_or(OUT_OF_MEMORY)?;
        driver.lock().reserved.insert(address, size);
        put(out, address)
    }
    fn cuMemAddressFree(address: u64, size: usize) {
        let driver = state::driver()?;
        let inner = &mut *driver.lock();
        if inner.reserved.get(&address) != Some(&(size as u64))
            || inner.mappings.range(address..address + size as u64).next().is_some()
        {
            return Err(INVALID_VALUE);
        }
        inner.reserved.remove(&address);
        arena::unreserve(address, size as u64);
        Ok(())
    }
    fn cuMemCreate(out: *mut u64, size: usize, properties: *const [u32; 8], flags: u64) {
        let driver = state::driver()?;
        let p = get(properties)?;
        let size = size as u64;
        if out.is_null() || size == 0 || !size.is_multiple_of(GRANULARITY) || flags != 0 || p[0] != 1 {
            return Err(INVALID_VALUE);
        }
        let host = p[2] == LOCATION_HOST;
        let device = if host { 0 } else { device_of(driver, p[2] as c_int, p[3] as c_int)? };
        driver.present(device)?;
        let inner = &mut *driver.lock();
        if !host {
            driver.grow(inner, device, size)?;
        }
        let Some(address) = driver.arena(inner)?.take(size) else {
            if !host {
                driver.discharge(device, size);
            }
            return Err(OUT_OF_MEMORY);
        };
        let arena = driver.arena(inner)?;
        let (fd, offset) = (arena.fd(), arena.offset(address));
        let handle = inner.id();
        inner.handles.insert(handle, Handle {
            size, device, references: 1, address, fd, offset, own: true, host,
            handle_types: p[1],
            flags: u64::from(p[6]) | (u64::from(p[7]) << 32),
        });
        put(out, handle)
    }
    fn cuMemRelease(handle: u64) {
        let driver = state::driver()?;
        let inner = &mut *driver.lock();
        inner.handles.get(&handle).ok_or(INVALID_VALUE)?;
        unreference(driver, inner, handle);
        Ok(())
    }
    fn cuMemMap(address: u64, size: usize, offset: usize, handle: u64, flags: u64) {
        let driver = state::driver()?;
        let inner = &mut *driver.lock();
        let size = size as u64;
        let entry = inner.handles.get(&handle).ok_or(INVALID_VALUE)?.clone();
        let (start, room) = inner.reserved.range(..=address).next_back().map(|(a, s)| (*a, *s)).ok_or(INVALID_VALUE)?;
        let taken = inner.mappings.range(..address + size).next_back().is_some_and(|(at, m)| at + m.size > address);
        if flags != 0 || offset != 0 || size == 0 || size > entry.size || !size.is_multiple_of(GRANULARITY)
            || address + size > start + room || taken
        {
            return Err(INVALID_VALUE);
        }
        if !arena::map(address, size, entry.fd, entry.offset) {
            return Err(OPERATING_SYSTEM);
        }
        if let Some(entry) = inner.handles.get_mut(&handle) {
            entry.references += 1;
        }
        inner.mappings.insert(address, Mapping { size, handle, device: entry.device, access: 0 });
        Ok(())
    }
    fn cuMemUnmap(address: u64, size: usize) {
        let driver = state::driver()?;
        unmap_all(driver, &mut driver.lock(), address, size as u64)
    }
    fn cuMemSetAccess(address: u64, size: usize, access: *const [c_int; 3], count: usize) {
        let driver = state::driver()?;
        let inner = &mut *driver.lock();
        let mut flags = 0;
        for entry in list(access, count)? {
            device_of(driver, entry[0], entry[1])?;
            if !matches!(entry[2], 0 | 1 | 3) {
                return Err(INVALID_VALUE);
            }
            flags = entry[2] as u32;
        }
        let mut any = false;
        for (_, mapping) in inner.mappings.range_mut(address..address + size as u64) {
            mapping.access = flags;
            any = true;
        }
        if any { Ok(()) } else { Err(INVALID_VALUE) }
    }
    fn cuMemGetAccess(out: *mut u64, location: *const [c_int; 2], address: u64) {
        let driver = state::driver()?;
        let location = get(location)?;
        let device = device_of(driver, location[0], location[1])?;
        let inner = driver.lock();
        let (at, mapping) = inner.mappings.range(..=address).next_back().ok_or(INVALID_VALUE)?;
        if address >= at + mapping.size {
            return Err(INVALID_VALUE);
        }
        put(out, if mapping.device == device { u64::from(mapping.access) } else { 0 })
    }
    fn cuMemRetainAllocationHandle(out: *mut u64, address: *mut c_void) {
        let driver = state::driver()?;
        let inner = &mut *driver.lock();
        let address = address as u64;
        let (at, mapping) = inner.mappings.range(..=address).next_back().map(|(a, m)| (*a, *m)).ok_or(INVALID_VALUE)?;
        if address >= at + mapping.size {
            return Err(INVALID_VALUE);
        }
        inner.handles.get_mut(&mapping.handle).ok_or(INVALID_VALUE)?.references += 1;
        put(out, mapping.handle)
    }
    fn cuMemGetAllocationPropertiesFromHandle(out: *mut [u32; 8], handle: u64) {
        let driver = state::driver()?;
        let inner = driver.lock();
        let entry = inner.handles.get(&handle).ok_or(INVALID_VALUE)?;
        put(out, [1, entry.handle_types, 1, entry.device as u32, 0, 0, entry.flags as u32, (entry.flags >> 32) as u32])
    }
    fn cuMemExportToShareableHandle(out: *mut c_void, handle: u64, kind: c_uint, flags: u64) {
        let driver = state::driver()?;
        let inner = driver.lock();
        let entry = inner.handles.get(&handle).ok_or(INVALID_VALUE)?;
        if flags != 0 || out.is_null() {
            return Err(INVALID_VALUE);
        }
        if kind != 1 {
            return Err(NOT_SUPPORTED);
        }
        if entry.handle_types & 1 == 0 || !entry.own {
            return Err(INVALID_VALUE);
        }
        put(out.cast::<c_int>(), export(entry)?)
    }
    fn cuMemImportFromShareableHandle(out: *mut u64, shared: *mut c_void, kind: c_uint) {
        let driver = state::driver()?;
        if kind != 1 {
            return Err(NOT_SUPPORTED);
        }
        let inner = &mut *driver.lock();
        let handle = import(driver, inner, shared as usize as RawFd)?;
        put(out, handle)
    }
    // An object that several cards write through. It takes room on the card on which it is made.
    fn cuMulticastCreate(out: *mut u64, properties: *const [u64; 4]) {
        let driver = state::driver()?;
        let words = get(properties)?;
        let (devices, size) = (words[0] as u32, words[1]);
        if out.is_null() || devices == 0 || size == 0 || !size.is_multiple_of(GRANULARITY) || words[3] != 0 {
            return Err(INVALID_VALUE);
        }
        let inner = &mut *driver.lock();
        let (_, device) = driver.current_device(inner)?;
        driver.grow(inner, device, size)?;
        let Some(address) = driver.arena(inner)?.take(size) else {
            driver.discharge(device, size);
            return Err(OUT_OF_MEMORY);
        };
        let arena = driver.arena(inner)?;
        let (fd, offset) = (arena.fd(), arena.offset(address));
        let handle = inner.id();
        inner.handles.insert(handle, Handle {
            size, device, references: 1, address, fd, offset, own: true, host: false,
            handle_types: 0,
            flags: 0,
        });
        put(out, handle)
    }
}
