//! Sessions, versions, texts of codes.

use std::ffi::{CStr, c_char, c_int, c_uint};

use crate::abi::{INVALID_ARGUMENT, NOT_FOUND, put, put_text};
use crate::state;

fn message(code: c_int) -> &'static CStr {
    match code {
        0 => c"The operation was successful",
        1 => c"Uninitialized",
        2 => c"Invalid Argument",
        3 => c"Not Supported",
        4 => c"Insufficient Permissions",
        5 => c"Already Initialized",
        6 => c"Not Found",
        7 => c"Insufficient Size",
        8 => c"Insufficient External Power",
        9 => c"Driver Not Loaded",
        10 => c"Timeout",
        11 => c"Interrupt Request Issue",
        12 => c"NVML Shared Library Not Found",
        13 => c"Function Not Found",
        14 => c"Corrupted infoROM",
        15 => c"GPU is lost",
        16 => c"GPU requires reset",
        17 => c"GPU access blocked by the operating system",
        18 => c"Driver/library version mismatch",
        19 => c"In use by another client",
        20 => c"Insufficient Memory",
        21 => c"No data",
        22 => c"The requested vgpu operation is not available on target device",
        23 => c"Insufficient Resources",
        24 => c"Frequency not supported",
        25 => c"Argument version mismatch",
        26 => c"Deprecated",
        27 => c"Not Ready",
        28 => c"GPU not found",
        29 => c"Invalid state",
        _ => c"Unknown Error",
    }
}

/// Text of a code; it lives as long as the library.
#[unsafe(no_mangle)]
extern "C" fn nvmlErrorString(code: c_int) -> *const c_char {
    message(code).as_ptr()
}

unsafe fn driver_version(out: *mut c_char, len: c_uint) -> crate::abi::R {
    // SAFETY: arguments of the entry point.
    unsafe { put_text(out, len, state::machine()?.driver_version()) }
}

api! {
    fn nvmlInit() { state::init() }
    fn nvmlInit_v2() { state::init() }
    fn nvmlInitWithFlags(flags: c_uint) { let _ = flags; state::init() }
    fn nvmlShutdown() { state::shutdown() }
    fn nvmlSystemGetDriverVersion(out: *mut c_char, len: c_uint) { driver_version(out, len) }
    fn nvmlSystemGetNVMLVersion(out: *mut c_char, len: c_uint) {
        let machine = state::machine()?;
        let major = machine.cuda_version() / 1000;
        put_text(out, len, &format!("{major}.{}", machine.driver_version()))
    }
    fn nvmlSystemGetCudaDriverVersion(out: *mut c_int) { put(out, state::machine()?.cuda_version() as c_int) }
    fn nvmlSystemGetCudaDriverVersion_v2(out: *mut c_int) { put(out, state::machine()?.cuda_version() as c_int) }
    fn nvmlSystemGetProcessName(pid: c_uint, out: *mut c_char, len: c_uint) {
        state::machine()?;
        if len == 0 {
            return Err(INVALID_ARGUMENT);
        }
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).map_err(|_| NOT_FOUND)?;
        let first = line.split(|b| *b == 0).next().unwrap_or_default();
        let mut name = String::from_utf8_lossy(first).into_owned();
        while name.len() >= len as usize {
            name.pop();
        }
        put_text(out, len, &name)
    }
    fn nvmlUnitGetCount(out: *mut c_uint) { state::machine()?; put(out, 0) }
}
