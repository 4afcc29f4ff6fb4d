//! The border to C: how an entry point is declared, and how it reads and writes its arguments.

use std::ffi::{c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};

pub(crate) const INVALID_VALUE: c_int = 1;
pub(crate) const OUT_OF_MEMORY: c_int = 2;
pub(crate) const NOT_INITIALIZED: c_int = 3;
pub(crate) const NO_DEVICE: c_int = 100;
pub(crate) const INVALID_DEVICE: c_int = 101;
pub(crate) const INVALID_IMAGE: c_int = 200;
pub(crate) const INVALID_CONTEXT: c_int = 201;
pub(crate) const UNSUPPORTED_LIMIT: c_int = 215;
pub(crate) const PEER_UNSUPPORTED: c_int = 217;
pub(crate) const FILE_NOT_FOUND: c_int = 301;
pub(crate) const OPERATING_SYSTEM: c_int = 304;
pub(crate) const INVALID_HANDLE: c_int = 400;
pub(crate) const ILLEGAL_STATE: c_int = 401;
pub(crate) const NOT_FOUND: c_int = 500;
pub(crate) const NOT_READY: c_int = 600;
pub(crate) const LAUNCH_OUT_OF_RESOURCES: c_int = 701;
pub(crate) const PEER_ALREADY: c_int = 704;
pub(crate) const PEER_NOT_ENABLED: c_int = 705;
pub(crate) const HOST_ALREADY_REGISTERED: c_int = 712;
pub(crate) const HOST_NOT_REGISTERED: c_int = 713;
pub(crate) const LAUNCH_FAILED: c_int = 719;
pub(crate) const COOPERATIVE_TOO_LARGE: c_int = 720;
pub(crate) const NOT_SUPPORTED: c_int = 801;
pub(crate) const CAPTURE_UNSUPPORTED: c_int = 900;
pub(crate) const CAPTURE_INVALIDATED: c_int = 901;
pub(crate) const CAPTURE_UNMATCHED: c_int = 903;
pub(crate) const CAPTURE_UNJOINED: c_int = 904;
pub(crate) const CAPTURE_ISOLATION: c_int = 905;
pub(crate) const UNKNOWN: c_int = 999;

/// Answer of an entry point: nothing, or the driver's code.
pub(crate) type R = Result<(), c_int>;
/// A value, or the driver's code.
pub(crate) type Res<T> = Result<T, c_int>;

/// Runs the body of an entry point: an injected fault comes first, a panic becomes a code.
pub(crate) fn guard(name: &'static str, body: impl FnOnce() -> R) -> c_int {
    catch_unwind(AssertUnwindSafe(|| {
        if let Some(code) = crate::state::struck(name) {
            return code;
        }
        let _call = crate::state::enter(name);
        body().err().unwrap_or(0)
    }))
    .unwrap_or(UNKNOWN)
}

/// Declares entry points. `also` names the per-thread-stream form of the same function, in
/// which `PT` is true.
macro_rules! api {
    ($( fn $name:ident $args:tt $(also $alias:ident)? $body:block )*) => {$(
        entry_point!($name $args $body false);
        $( entry_point!($alias $args $body true); )?
    )*};
}

macro_rules! entry_point {
    ($name:ident ($($arg:ident : $type:ty),* $(,)?) $body:block $pt:literal) => {
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name($($arg: $type),*) -> ::std::ffi::c_int {
            #[allow(dead_code, reason = "not every entry asks which form it is")]
            const PT: bool = $pt;
            crate::abi::guard(stringify!($name), move || -> crate::abi::R {
                #[allow(unused_unsafe, reason = "not every entry needs it")]
                // SAFETY: the caller keeps the contract of the driver interface: pointers are
                // null or point to what the signature says.
                unsafe { $body }
            })
        }
    };
}

/// Writes a result.
///
/// # Safety
/// `place` is null or valid for a write.
pub(crate) unsafe fn put<T>(place: *mut T, value: T) -> R {
    if place.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: not null, and valid by the caller's word; alignment is not assumed.
    unsafe { place.write_unaligned(value) };
    Ok(())
}

/// Writes a result that the caller need not want.
///
/// # Safety
/// `place` is null or valid for a write.
pub(crate) unsafe fn put_wanted<T>(place: *mut T, value: T) {
    if !place.is_null() {
        // SAFETY: as in `put`.
        unsafe { place.write_unaligned(value) };
    }
}

/// Reads an argument structure.
///
/// # Safety
/// `place` is null or valid for a read of a plain structure.
pub(crate) unsafe fn get<T: Copy>(place: *const T) -> Res<T> {
    if place.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: not null, and valid by the caller's word.
    Ok(unsafe { place.read_unaligned() })
}

/// Reads an array argument; empty when its length is 0.
///
/// # Safety
/// `place` is valid for `len` reads unless `len` is 0.
pub(crate) unsafe fn list<T: Copy>(place: *const T, len: usize) -> Res<Vec<T>> {
    if len == 0 {
        return Ok(Vec::new());
    }
    if place.is_null() || len > 1 << 24 {
        return Err(INVALID_VALUE);
    }
    // SAFETY: valid by the caller's word.
    Ok((0..len).map(|i| unsafe { place.add(i).read_unaligned() }).collect())
}

/// Reads a C string.
///
/// # Safety
/// `place` is null or a zero-terminated string.
pub(crate) unsafe fn text(place: *const c_char) -> Res<String> {
    if place.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: zero-terminated by the caller's word.
    Ok(unsafe { std::ffi::CStr::from_ptr(place) }
        .to_string_lossy()
        .into_owned())
}

/// Writes a C string into a buffer, cut where it does not fit.
///
/// # Safety
/// `place` is null or valid for `len` bytes.
pub(crate) unsafe fn put_text(place: *mut c_char, len: usize, value: &str) -> R {
    if place.is_null() || len == 0 {
        return Err(INVALID_VALUE);
    }
    let count = value.len().min(len - 1);
    // SAFETY: `count` + 1 bytes are within the buffer.
    unsafe {
        std::ptr::copy_nonoverlapping(value.as_ptr().cast::<c_char>(), place, count);
        place.add(count).write(0);
    }
    Ok(())
}

/// Writes an array with the usual protocol: without a buffer the length is told, with one at
/// most its length is filled and the rest set to zero.
///
/// # Safety
/// `len` is valid; `place` is null or valid for `*len` writes.
pub(crate) unsafe fn put_list<T: Copy + Default>(place: *mut T, len: *mut usize, all: &[T]) -> R {
    // SAFETY: by the caller's word.
    let room = unsafe { get(len) }?;
    if place.is_null() {
        // SAFETY: as above.
        return unsafe { put(len, all.len()) };
    }
    for i in 0..room {
        // SAFETY: within the caller's buffer.
        unsafe { place.add(i).write_unaligned(all.get(i).copied().unwrap_or_default()) };
    }
    // SAFETY: as above.
    unsafe { put(len, all.len().min(room)) }
}
