//! The border to C: how an entry point is declared, and how it reads and writes its arguments.

use std::ffi::{c_char, c_int, c_uint};
use std::panic::{AssertUnwindSafe, catch_unwind};

pub(crate) const UNINITIALIZED: c_int = 1;
pub(crate) const INVALID_ARGUMENT: c_int = 2;
pub(crate) const NOT_SUPPORTED: c_int = 3;
pub(crate) const NO_PERMISSION: c_int = 4;
pub(crate) const NOT_FOUND: c_int = 6;
pub(crate) const INSUFFICIENT_SIZE: c_int = 7;
pub(crate) const DRIVER_NOT_LOADED: c_int = 9;
pub(crate) const TIMEOUT: c_int = 10;
pub(crate) const GPU_IS_LOST: c_int = 15;
pub(crate) const OPERATING_SYSTEM: c_int = 17;
pub(crate) const IN_USE: c_int = 19;
pub(crate) const INSUFFICIENT_RESOURCES: c_int = 23;
pub(crate) const VERSION_MISMATCH: c_int = 25;
pub(crate) const UNKNOWN: c_int = 999;

/// Answer of an entry point: nothing, or the library's code.
pub(crate) type R = Result<(), c_int>;
/// A value, or the library's code.
pub(crate) type Res<T> = Result<T, c_int>;

/// Runs the body of an entry point: an injected fault comes first, a panic becomes a code.
pub(crate) fn guard(name: &'static str, body: impl FnOnce() -> R) -> c_int {
    catch_unwind(AssertUnwindSafe(|| {
        if let Some(code) = crate::state::struck(name) {
            return code;
        }
        body().err().unwrap_or(0)
    }))
    .unwrap_or(UNKNOWN)
}

/// Declares entry points.
macro_rules! api {
    ($( fn $name:ident ($($arg:ident : $type:ty),* $(,)?) $body:block )*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name($($arg: $type),*) -> ::std::ffi::c_int {
            crate::abi::guard(stringify!($name), move || -> crate::abi::R {
                #[allow(unused_unsafe, reason = "not every entry needs it")]
                // SAFETY: the caller keeps the contract of the library: pointers are null or
                // point to what the signature says.
                unsafe { $body }
            })
        }
    )*};
}

macro_rules! stub {
    ($name:ident) => {
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name() -> ::std::ffi::c_int {
            crate::abi::guard(stringify!($name), || {
                crate::state::machine()?;
                Err(crate::abi::NOT_SUPPORTED)
            })
        }
    };
}
include!(concat!(env!("OUT_DIR"), "/stubs.rs"));

/// Writes a result.
///
/// # Safety
/// `place` is null or valid for a write.
pub(crate) unsafe fn put<T>(place: *mut T, value: T) -> R {
    if place.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // SAFETY: not null, and valid by the caller's word; alignment is not assumed.
    unsafe { place.write_unaligned(value) };
    Ok(())
}

/// Reads an argument.
///
/// # Safety
/// `place` is null or valid for a read of a plain value.
pub(crate) unsafe fn get<T: Copy>(place: *const T) -> Res<T> {
    if place.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // SAFETY: not null, and valid by the caller's word.
    Ok(unsafe { place.read_unaligned() })
}

/// Reads a C string.
///
/// # Safety
/// `place` is null or a zero-terminated string.
pub(crate) unsafe fn text(place: *const c_char) -> Res<String> {
    if place.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // SAFETY: zero-terminated by the caller's word.
    Ok(unsafe { std::ffi::CStr::from_ptr(place) }
        .to_string_lossy()
        .into_owned())
}

/// Writes a C string that must fit with its zero.
///
/// # Safety
/// `place` is null or valid for `len` bytes.
pub(crate) unsafe fn put_text(place: *mut c_char, len: c_uint, value: &str) -> R {
    if place.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    if value.len() >= len as usize {
        return Err(INSUFFICIENT_SIZE);
    }
    // SAFETY: the text and its zero are within the buffer.
    unsafe {
        std::ptr::copy_nonoverlapping(value.as_ptr().cast::<c_char>(), place, value.len());
        place.add(value.len()).write(0);
    }
    Ok(())
}

/// Zero-filled field of a structure.
pub(crate) fn field<const N: usize>(value: &str) -> [u8; N] {
    let mut out = [0u8; N];
    let len = value.len().min(N - 1);
    out[..len].copy_from_slice(&value.as_bytes()[..len]);
    out
}

/// Writes an array with the usual protocol: the count says how much room there is and then how
/// many there are; too little room writes nothing.
///
/// # Safety
/// `count` is null or valid; `place` is null or valid for `*count` writes.
pub(crate) unsafe fn put_list<T: Copy>(place: *mut T, count: *mut c_uint, all: &[T]) -> R {
    // SAFETY: by the caller's word.
    unsafe {
        let room = get(count)? as usize;
        put(count, all.len() as c_uint)?;
        if all.is_empty() {
            return Ok(());
        }
        if room < all.len() {
            return Err(INSUFFICIENT_SIZE);
        }
        for (i, value) in all.iter().enumerate() {
            put(place.add(i), *value)?;
        }
    }
    Ok(())
}

/// Splits the version word of a structure: its size and its version.
pub(crate) fn version(word: u32) -> (u32, u32) {
    (word & 0x00ff_ffff, word >> 24)
}
