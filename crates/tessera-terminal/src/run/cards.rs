//! The cards of this machine, by NVML.

#![expect(unsafe_code, reason = "calls a vendor's library")]

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use anyhow::{Context as _, Result, ensure};
use libloading::{Library, Symbol};

/// One card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Card {
    /// Number by which NVML lists it.
    pub(super) index: u32,
    /// `GPU-...`.
    pub(super) uuid: String,
    /// Model.
    pub(super) name: String,
    /// Memory in bytes.
    pub(super) total_bytes: u64,
}

type Device = *mut c_void;

#[repr(C)]
struct Memory {
    total: u64,
    free: u64,
    used: u64,
}

struct Nvml(Library);

impl Nvml {
    /// # Safety
    /// `F` is the type of the function of this name.
    unsafe fn find<F>(&self, name: &CStr) -> Result<Symbol<'_, F>> {
        // SAFETY: by the caller's promise.
        unsafe { self.0.get(name.to_bytes_with_nul()) }.with_context(|| format!("the driver has no {name:?}"))
    }

    fn text(&self, name: &CStr, device: Device) -> Result<String> {
        let mut buffer = [0 as c_char; 96];
        let length = c_uint::try_from(buffer.len()).unwrap_or_default();
        // SAFETY: both functions that are asked for have this signature.
        let ask = unsafe { self.find::<unsafe extern "C" fn(Device, *mut c_char, c_uint) -> c_int>(name) }?;
        // SAFETY: a handle of the library, and room of that length.
        check(name, unsafe { ask(device, buffer.as_mut_ptr(), length) })?;
        // SAFETY: the library ends its text within the room.
        Ok(unsafe { CStr::from_ptr(buffer.as_ptr()) }
            .to_string_lossy()
            .into_owned())
    }
}

fn check(what: &CStr, code: c_int) -> Result<()> {
    let hint = match code {
        4 => " (no permission)",
        9 => " (the driver is not loaded)",
        15 => " (a card is lost)",
        18 => " (driver and library have different versions)",
        _ => "",
    };
    ensure!(code == 0, "{} answered {code}{hint}", what.to_string_lossy());
    Ok(())
}

/// All cards that this process may use.
pub(super) fn list() -> Result<Vec<Card>> {
    // SAFETY: loading the vendor's library runs its initialisers, as every program does that uses a card.
    let library = unsafe { Library::new("libnvidia-ml.so.1") }
        .context("the NVIDIA driver's library libnvidia-ml.so.1 is not installed on this machine")?;
    let nvml = Nvml(library);
    // SAFETY: the signatures are those of the vendor's header.
    let (start, count, handle, memory, stop) = unsafe {
        (
            nvml.find::<unsafe extern "C" fn() -> c_int>(c"nvmlInit_v2")?,
            nvml.find::<unsafe extern "C" fn(*mut c_uint) -> c_int>(c"nvmlDeviceGetCount_v2")?,
            nvml.find::<unsafe extern "C" fn(c_uint, *mut Device) -> c_int>(c"nvmlDeviceGetHandleByIndex_v2")?,
            nvml.find::<unsafe extern "C" fn(Device, *mut Memory) -> c_int>(c"nvmlDeviceGetMemoryInfo")?,
            nvml.find::<unsafe extern "C" fn() -> c_int>(c"nvmlShutdown")?,
        )
    };
    // SAFETY: no arguments.
    check(c"nvmlInit_v2", unsafe { start() })?;
    let mut total = 0;
    // SAFETY: a place for the answer.
    check(c"nvmlDeviceGetCount_v2", unsafe { count(&raw mut total) })?;
    let mut cards = Vec::new();
    for index in 0..total {
        let mut device = std::ptr::null_mut();
        // SAFETY: a place for the answer. A card whose device file cannot be opened is counted and not handed out.
        if unsafe { handle(index, &raw mut device) } != 0 {
            continue;
        }
        let mut found = Memory {
            total: 0,
            free: 0,
            used: 0,
        };
        // SAFETY: a handle of the library and a place for the answer.
        check(c"nvmlDeviceGetMemoryInfo", unsafe { memory(device, &raw mut found) })?;
        cards.push(Card {
            index,
            uuid: nvml.text(c"nvmlDeviceGetUUID", device)?,
            name: nvml.text(c"nvmlDeviceGetName", device)?,
            total_bytes: found.total,
        });
    }
    // SAFETY: no arguments.
    check(c"nvmlShutdown", unsafe { stop() })?;
    Ok(cards)
}
