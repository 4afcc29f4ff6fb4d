//! How programs find entries: `dlsym`, `dlvsym`, and `cuGetProcAddress`.
//!
//! A lookup is answered with a stand-in only if the name is in the table **and** what the program would have got is
//! the driver's. Everything else is passed on by a jump, so that the C library still sees the program as the caller:
//! `RTLD_NEXT` and `RTLD_DEFAULT` mean something different for every caller.

use core::{
    ffi::{CStr, c_char, c_void},
    ptr,
};

use crate::{
    argument::{put, written},
    codes::SUCCESS,
    os::KeepErrno,
    symbol::{Library, REAL_DLSYM, REAL_DLVSYM, find_lookups, real_dlsym},
    table::{Entry, find, forms},
};

/// Answer of [`decide`]: ask the C library.
const PASS: *mut c_void = ptr::null_mut();
/// Answer of [`decide`]: there is no such symbol.
const NOTHING: *mut c_void = ptr::without_provenance_mut(usize::MAX);

/// What a lookup gets: a stand-in, [`PASS`] or [`NOTHING`].
unsafe extern "C" fn decide(handle: *mut c_void, name: *const c_char) -> *mut c_void {
    if !find_lookups() {
        return NOTHING;
    }
    if name.is_null() {
        return PASS;
    }
    // SAFETY: the caller of `dlsym` gives a C string.
    let name = unsafe { CStr::from_ptr(name) };
    match find(name) {
        Some(entry) => driver_entry(handle, entry),
        None => PASS,
    }
}

#[cold]
fn driver_entry(handle: *mut c_void, entry: &Entry) -> *mut c_void {
    let _errno = KeepErrno::new();
    let name = entry.symbol.name;
    if handle == libc::RTLD_DEFAULT || handle == libc::RTLD_NEXT {
        return in_whole_process(entry);
    }
    // SAFETY: the program's handle.
    let found = unsafe { real_dlsym(handle, name) };
    if found.is_null() {
        return PASS;
    }
    if ptr::eq(found, entry.hook.address()) {
        // A handle whose scope includes this library, as that of the program itself does.
        return in_whole_process(entry);
    }
    if lies_in(found, entry.symbol.library) || entry.is(found) {
        entry.hook.address()
    } else {
        PASS
    }
}

/// This library has the name and comes first in the process, so what counts is whether the driver is there too.
fn in_whole_process(entry: &Entry) -> *mut c_void {
    if entry.symbol.library.loaded().is_some() && entry.symbol.get().is_some() {
        return entry.hook.address();
    }
    // Also leaves the message that `dlerror` gives.
    // SAFETY: a handle for "after this library".
    let other = unsafe { real_dlsym(libc::RTLD_NEXT, entry.symbol.name) };
    if other.is_null() { NOTHING } else { other }
}

/// Whether an address lies in a file of this library, by the file's name: a program may have opened another copy.
fn lies_in(address: *mut c_void, library: Library) -> bool {
    let mut info = libc::Dl_info {
        dli_fname: ptr::null(),
        dli_fbase: ptr::null_mut(),
        dli_sname: ptr::null(),
        dli_saddr: ptr::null_mut(),
    };
    // SAFETY: any address, and a place for the answer.
    if unsafe { libc::dladdr(address, &raw mut info) } == 0 || info.dli_fname.is_null() {
        return false;
    }
    // SAFETY: the loader keeps names as C strings.
    let path = unsafe { CStr::from_ptr(info.dli_fname) }.to_bytes();
    path.rsplit(|&byte| byte == b'/')
        .next()
        .is_some_and(|name| name.starts_with(library.file_prefix()))
}

/// Per-thread default stream, `CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM`.
const PER_THREAD: u64 = 2;

/// Puts a stand-in in the place of what the driver answered, if there is one for it.
///
/// The driver has chosen by version and flags already; its own pointer tells which form that was. A driver that gives
/// a pointer unlike that of any exported name is matched by the versions in the table.
///
/// # Safety
/// `name` is a C string, `out` was written by the driver.
unsafe fn stand_in(name: *const c_char, out: *mut *mut c_void, version: i32, flags: u64) {
    // SAFETY: by the caller's promise.
    let (name, found) = unsafe { (CStr::from_ptr(name), written(out)) };
    if found.is_null() {
        return;
    }
    let exact = forms(name).find(|entry| entry.symbol.get() == Some(found));
    let chosen = exact.or_else(|| {
        let per_thread = flags & PER_THREAD != 0 && forms(name).any(Entry::is_per_thread);
        forms(name)
            .filter(|entry| entry.is_per_thread() == per_thread && entry.since <= version)
            .max_by_key(|entry| entry.since)
    });
    if let Some(entry) = chosen {
        entry.symbol.learn(found);
        // SAFETY: by the caller's promise.
        unsafe { put(out, entry.hook.address()) };
    }
}

pub(crate) unsafe fn proc_address(
    real: unsafe extern "C" fn(*const c_char, *mut *mut c_void, i32, u64) -> i32,
    name: *const c_char,
    out: *mut *mut c_void,
    version: i32,
    flags: u64,
) -> i32 {
    // SAFETY: the caller's arguments.
    let result = unsafe { real(name, out, version, flags) };
    if result == SUCCESS && !name.is_null() && !out.is_null() {
        // SAFETY: not null, and accepted by the driver.
        unsafe { stand_in(name, out, version, flags) };
    }
    result
}

pub(crate) unsafe fn proc_address_v2(
    real: unsafe extern "C" fn(*const c_char, *mut *mut c_void, i32, u64, *mut i32) -> i32,
    name: *const c_char,
    out: *mut *mut c_void,
    version: i32,
    flags: u64,
    status: *mut i32,
) -> i32 {
    // SAFETY: the caller's arguments.
    let result = unsafe { real(name, out, version, flags, status) };
    if result == SUCCESS && !name.is_null() && !out.is_null() {
        // SAFETY: not null, and accepted by the driver.
        unsafe { stand_in(name, out, version, flags) };
    }
    result
}

/// A lookup function: asks [`decide`] with the caller's first two arguments, and either returns its answer or jumps
/// to the real one with all arguments as they came.
#[cfg(not(test))]
macro_rules! lookup {
    ($name:ident($($arg:ident: $type:ty),*), $real:ident) => {
        /// In place of the C library's function of this name.
        ///
        /// # Safety
        /// As for the C library's.
        #[cfg(target_arch = "x86_64")]
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name($($arg: $type),*) -> *mut c_void {
            core::arch::naked_asm!(
                "endbr64",
                "push rdi",
                "push rsi",
                "push rdx",
                "call {decide}",
                "pop rdx",
                "pop rsi",
                "pop rdi",
                "test rax, rax",
                "jz 2f",
                "cmp rax, -1",
                "je 3f",
                "ret",
                "2:",
                "jmp qword ptr [rip + {real}]",
                "3:",
                "xor eax, eax",
                "ret",
                decide = sym decide,
                real = sym $real,
            )
        }

        /// In place of the C library's function of this name.
        ///
        /// # Safety
        /// As for the C library's.
        #[cfg(target_arch = "aarch64")]
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name($($arg: $type),*) -> *mut c_void {
            core::arch::naked_asm!(
                "stp x29, x30, [sp, #-48]!",
                "mov x29, sp",
                "stp x0, x1, [sp, #16]",
                "str x2, [sp, #32]",
                "bl {decide}",
                "mov x9, x0",
                "ldp x0, x1, [sp, #16]",
                "ldr x2, [sp, #32]",
                "ldp x29, x30, [sp], #48",
                "cbz x9, 2f",
                "cmn x9, #1",
                "csel x0, xzr, x9, eq",
                "ret",
                "2:",
                "adrp x16, {real}",
                "ldr x16, [x16, :lo12:{real}]",
                "br x16",
                decide = sym decide,
                real = sym $real,
            )
        }
    };
}

#[cfg(not(test))]
lookup!(dlsym(handle: *mut c_void, name: *const c_char), REAL_DLSYM);
#[cfg(not(test))]
lookup!(dlvsym(handle: *mut c_void, name: *const c_char, version: *const c_char), REAL_DLVSYM);

#[cfg(test)]
const _: (
    unsafe extern "C" fn(*mut c_void, *const c_char) -> *mut c_void,
    *mut c_void,
) = (decide, PASS);
#[cfg(test)]
const _: (
    &core::sync::atomic::AtomicPtr<c_void>,
    &core::sync::atomic::AtomicPtr<c_void>,
) = (&REAL_DLSYM, &REAL_DLVSYM);
