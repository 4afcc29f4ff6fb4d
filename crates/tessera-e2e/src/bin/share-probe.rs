//! A small client of the driver for pods in tests: says which cards this container sees and how much memory of
//! each, as one JSON line, and compares that with what its pod's annotation promises.
//!
//! `ALLOCATED` holds the annotation's text and `POSITION` this container's place in it (init containers first).
//! Exits 0 if they agree, 3 if not. With `--hold` it stays until told to stop. `busy` and `paced` work on the first card
//! instead ([`Load`]).

#![allow(unsafe_code, reason = "calls a C library by its published signatures")]
#![expect(clippy::print_stdout, reason = "its output is its purpose")]

use std::ffi::{c_char, c_int, c_uint};
use std::process::ExitCode;

use libloading::{Library, Symbol};
use serde_json::json;
use tessera_e2e::load::{self, Load};

/// What the driver shows: UUID and total bytes, by ordinal.
fn cards() -> Result<Vec<(String, u64)>, String> {
    // SAFETY: the library's initialisers are the driver's own.
    let library = unsafe { Library::new("libcuda.so.1") }.map_err(|e| format!("libcuda.so.1: {e}"))?;
    let find = |name: &str| format!("{name}: absent");
    // SAFETY: the signatures of these five calls are fixed by cuda.h.
    unsafe {
        let init: Symbol<'_, unsafe extern "C" fn(c_uint) -> c_int> =
            library.get(b"cuInit\0").map_err(|_| find("cuInit"))?;
        let count: Symbol<'_, unsafe extern "C" fn(*mut c_int) -> c_int> = library
            .get(b"cuDeviceGetCount\0")
            .map_err(|_| find("cuDeviceGetCount"))?;
        let get: Symbol<'_, unsafe extern "C" fn(*mut c_int, c_int) -> c_int> =
            library.get(b"cuDeviceGet\0").map_err(|_| find("cuDeviceGet"))?;
        let uuid: Symbol<'_, unsafe extern "C" fn(*mut c_char, c_int) -> c_int> =
            library.get(b"cuDeviceGetUuid\0").map_err(|_| find("cuDeviceGetUuid"))?;
        let total: Symbol<'_, unsafe extern "C" fn(*mut usize, c_int) -> c_int> = library
            .get(b"cuDeviceTotalMem_v2\0")
            .map_err(|_| find("cuDeviceTotalMem_v2"))?;
        let check = |what: &str, code: c_int| {
            if code == 0 {
                Ok(())
            } else {
                Err(format!("{what}: error {code}"))
            }
        };
        check("cuInit", init(0))?;
        let mut number = 0;
        check("cuDeviceGetCount", count(&raw mut number))?;
        let mut cards = Vec::new();
        for ordinal in 0..number {
            let (mut device, mut raw, mut bytes) = (0, [0_u8; 16], 0_usize);
            check("cuDeviceGet", get(&raw mut device, ordinal))?;
            check("cuDeviceGetUuid", uuid(raw.as_mut_ptr().cast(), device))?;
            check("cuDeviceTotalMem", total(&raw mut bytes, device))?;
            cards.push((format_uuid(raw), bytes as u64));
        }
        Ok(cards)
    }
}

fn format_uuid(raw: [u8; 16]) -> String {
    let hex: String = raw.iter().map(|byte| format!("{byte:02x}")).collect();
    format!(
        "GPU-{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

/// UUID and MiB that the annotation promises the container at `position`.
fn promised(text: &str, position: usize) -> Vec<(String, u64)> {
    let entry = text.split(';').nth(position).unwrap_or_default();
    entry
        .split(':')
        .filter(|device| device.contains(','))
        .map(|device| {
            let mut fields = device.split(',');
            let uuid = fields.next().unwrap_or_default().to_owned();
            let mib = fields.nth(1).and_then(|mib| mib.parse().ok()).unwrap_or(0);
            (uuid, mib)
        })
        .collect()
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let Some(load) = Load::parse(&words) {
        let Err(error) = load::work(load) else {
            return ExitCode::SUCCESS;
        };
        println!("{}", json!({ "error": error }));
        return ExitCode::FAILURE;
    }
    let seen = cards();
    let text = std::env::var("ALLOCATED").unwrap_or_default();
    let position = std::env::var("POSITION").ok().and_then(|p| p.parse().ok()).unwrap_or(0);
    let mut want = promised(&text, position);
    want.sort();
    let mut have: Vec<(String, u64)> = seen
        .iter()
        .flatten()
        .map(|(uuid, bytes)| (uuid.clone(), bytes >> 20))
        .collect();
    have.sort();
    let agrees = seen.is_ok() && have == want;
    println!(
        "{}",
        json!({ "agrees": agrees, "seen": have, "promised": want, "error": seen.err() })
    );
    if !agrees {
        return ExitCode::from(3);
    }
    if std::env::args().any(|arg| arg == "--hold") {
        // SAFETY: pause has no arguments; it returns when a signal handler has run, and none is set here.
        unsafe { libc::pause() };
    }
    ExitCode::SUCCESS
}
