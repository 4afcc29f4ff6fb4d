//! Memory of other processes, and of other interfaces that comes as a file descriptor.

use std::ffi::c_uint;

use crate::abi::{
    INVALID_HANDLE, INVALID_VALUE, NOT_FOUND, NOT_SUPPORTED, OPERATING_SYSTEM, OUT_OF_MEMORY, R, get, put,
};
use crate::arena;
use crate::state::{self, Alloc, Kind};

const MAGIC: u64 = u64::from_le_bytes(*b"ipcmemhd");
const PAGE: u64 = 4096;

/// The driver's 64-byte handle, which is passed by value.
#[repr(C)]
#[derive(Clone, Copy)]
struct MemoryHandle([u64; 8]);

unsafe fn open(out: *mut u64, handle: MemoryHandle, flags: c_uint) -> R {
    let handle = handle.0;
    let driver = state::driver()?;
    if out.is_null() || flags & !1 != 0 || handle[0] != MAGIC {
        return Err(INVALID_VALUE);
    }
    // A process cannot open its own handle.
    // SAFETY: getpid cannot fail.
    if handle[1] == unsafe { libc::getpid() } as u64 {
        return Err(crate::abi::INVALID_HANDLE);
    }
    let (offset, size) = (handle[3], handle[4]);
    let skip = offset % PAGE;
    let span = (size + skip).next_multiple_of(PAGE);
    let path = format!("/proc/{}/fd/{}\0", handle[1], handle[2]);
    // SAFETY: the path is zero-terminated.
    let fd = unsafe { libc::open(path.as_ptr().cast(), libc::O_RDWR | libc::O_CLOEXEC) };
    if fd < 0 {
        return Err(OPERATING_SYSTEM);
    }
    let base = arena::reserve(span, PAGE, 0);
    let mapped = base.is_some_and(|b| arena::map(b, span, fd, offset - skip));
    // SAFETY: opened above; the mapping keeps the file.
    unsafe { libc::close(fd) };
    let base = base.filter(|_| mapped).ok_or(OUT_OF_MEMORY)?;
    let inner = &mut *driver.lock();
    let (context, device) = driver.current_device(inner)?;
    let id = inner.id();
    inner.allocs.insert(
        base + skip,
        Alloc {
            size,
            device,
            context,
            kind: Kind::Foreign,
            id,
        },
    );
    // SAFETY: the caller of the entry point vouches for `out`.
    unsafe { put(out, base + skip) }
}

/// Kind of an imported descriptor: a file.
const OPAQUE_FD: u32 = 1;

unsafe fn map_external(out: *mut u64, external: u64, offset: u64, size: u64) -> R {
    let driver = state::driver()?;
    let inner = &mut *driver.lock();
    let (context, device) = driver.current_device(inner)?;
    let (fd, whole) = *inner.externals.get(&external).ok_or(INVALID_HANDLE)?;
    let end = offset.checked_add(size).ok_or(INVALID_VALUE)?;
    if out.is_null() || size == 0 || end > whole || !offset.is_multiple_of(PAGE) {
        return Err(INVALID_VALUE);
    }
    let span = size.next_multiple_of(PAGE);
    let base = arena::reserve(span, PAGE, 0).filter(|base| arena::map(*base, span, fd, offset));
    let base = base.ok_or(OUT_OF_MEMORY)?;
    let id = inner.id();
    inner.allocs.insert(
        base,
        Alloc {
            size,
            device,
            context,
            kind: Kind::External,
            id,
        },
    );
    // SAFETY: the caller of the entry point vouches for `out`.
    unsafe { put(out, base) }
}

api! {
    fn cuImportExternalMemory(out: *mut u64, description: *const [u64; 13]) {
        let words = get(description)?;
        // Kind, then a union of which the descriptor is the first word, then the size.
        let (kind, fd, size) = (words[0] as u32, words[1] as i32, words[3]);
        let driver = state::driver()?;
        if kind != OPAQUE_FD {
            return Err(NOT_SUPPORTED);
        }
        if out.is_null() || size == 0 || fd < 0 {
            return Err(INVALID_VALUE);
        }
        let inner = &mut *driver.lock();
        driver.current_device(inner)?;
        let handle = inner.id();
        inner.externals.insert(handle, (fd, size));
        put(out, handle)
    }
    fn cuExternalMemoryGetMappedBuffer(out: *mut u64, external: u64, description: *const [u64; 2]) {
        let [offset, size] = get(description)?;
        map_external(out, external, offset, size)
    }
    fn cuDestroyExternalMemory(external: u64) {
        let driver = state::driver()?;
        let (fd, _) = driver.lock().externals.remove(&external).ok_or(INVALID_HANDLE)?;
        // The import has taken the descriptor over.
        libc::close(fd);
        Ok(())
    }
    fn cuIpcGetMemHandle(out: *mut [u64; 8], address: u64) {
        let driver = state::driver()?;
        let inner = driver.lock();
        let (at, alloc) = inner.find(address).ok_or(INVALID_VALUE)?;
        // Memory of pools, graphs and managed memory have other ways.
        if alloc.kind != Kind::Plain {
            return Err(INVALID_VALUE);
        }
        let arena = inner.arena.as_ref().ok_or(INVALID_VALUE)?;
        put(out, [MAGIC, libc::getpid() as u64, arena.fd() as u64, arena.offset(at), alloc.size, alloc.device as u64, 0, 0])
    }
    fn cuIpcOpenMemHandle(out: *mut u64, handle: MemoryHandle, flags: c_uint) { open(out, handle, flags) }
    fn cuIpcOpenMemHandle_v2(out: *mut u64, handle: MemoryHandle, flags: c_uint) { open(out, handle, flags) }
    fn cuIpcCloseMemHandle(address: u64) {
        let driver = state::driver()?;
        let inner = &mut *driver.lock();
        match inner.allocs.get(&address).map(|a| a.kind) {
            Some(Kind::Foreign) => { driver.release(inner, address); Ok(()) }
            Some(_) => Err(INVALID_VALUE),
            None => Err(NOT_FOUND),
        }
    }
}
