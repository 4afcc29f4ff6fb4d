//! Entry points by name and version.

use std::ffi::{c_char, c_int, c_void};

use crate::abi::{INVALID_VALUE, NOT_FOUND, NOT_SUPPORTED, R, put, put_wanted, text};

/// One exported form of an entry point.
pub(crate) struct Entry {
    symbol: &'static str,
    since: u32,
    per_thread: bool,
    export: &'static str,
    address: unsafe extern "C" fn(),
}

include!(concat!(env!("OUT_DIR"), "/table.rs"));

macro_rules! stub {
    ($name:ident) => {
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $name() -> c_int {
            crate::abi::guard(stringify!($name), || Err(NOT_SUPPORTED))
        }
    };
}
include!(concat!(env!("OUT_DIR"), "/stubs.rs"));

/// What a lookup gives: the function, or how it failed (1 no such name, 2 newer than asked).
fn find(symbol: &str, version: u32, flags: u64) -> Result<*mut c_void, c_int> {
    let first = TABLE.partition_point(|e| e.symbol < symbol);
    let forms: Vec<&Entry> = TABLE[first..]
        .iter()
        .take_while(|e| e.symbol == symbol)
        .filter(|e| !crate::state::machine().is_some_and(|m| m.lacks(e.export)))
        .collect();
    if forms.is_empty() {
        return Err(1);
    }
    let newest = |per_thread: bool| {
        forms
            .iter()
            .filter(|e| e.since <= version && e.per_thread == per_thread)
            .max_by_key(|e| e.since)
    };
    // A per-thread form is taken only when it is as new as the plain one.
    let plain = newest(false);
    let chosen = if flags & 2 != 0 {
        let form = plain.map_or("", |p| p.export);
        newest(true)
            .filter(|e| {
                e.export
                    .strip_suffix("_ptsz")
                    .or_else(|| e.export.strip_suffix("_ptds"))
                    == Some(form)
            })
            .or(plain)
    } else {
        plain
    };
    chosen.map(|e| e.address as usize as *mut c_void).ok_or(2)
}

unsafe fn answer(symbol: *const c_char, pfn: *mut *mut c_void, version: c_int, flags: u64, status: *mut c_int) -> R {
    // SAFETY: the arguments are those of the entry point.
    unsafe {
        if pfn.is_null() || flags > 3 {
            return Err(INVALID_VALUE);
        }
        let name = text(symbol)?;
        put(pfn, std::ptr::null_mut())?;
        let driver = crate::state::machine().map_or(13000, tessera_fake_core::Machine::cuda_version);
        let version = u32::try_from(version).map_err(|_| INVALID_VALUE)?;
        if version > driver {
            return Err(INVALID_VALUE);
        }
        match find(&name, version, flags) {
            Ok(address) => {
                put_wanted(status, 0);
                put(pfn, address)
            }
            Err(why) => {
                put_wanted(status, why);
                Err(NOT_FOUND)
            }
        }
    }
}

api! {
    fn cuGetProcAddress(symbol: *const c_char, pfn: *mut *mut c_void, version: c_int, flags: u64) {
        answer(symbol, pfn, version, flags, std::ptr::null_mut())
    }
    fn cuGetProcAddress_v2(symbol: *const c_char, pfn: *mut *mut c_void, version: c_int, flags: u64, status: *mut c_int) {
        answer(symbol, pfn, version, flags, status)
    }
    // The private tables of the runtime are not simulated: it stops with this code.
    fn cuGetExportTable(table: *mut *const c_void, id: *const c_void) {
        if table.is_null() || id.is_null() {
            return Err(INVALID_VALUE);
        }
        put(table, std::ptr::null())?;
        Err(NOT_SUPPORTED)
    }
}
