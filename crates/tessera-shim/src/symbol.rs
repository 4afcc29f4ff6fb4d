//! The driver's own functions, found when they are first needed.

use core::{
    ffi::{CStr, c_char, c_int, c_void},
    ptr,
    sync::atomic::{AtomicPtr, Ordering},
};

use crate::elf;

type Dlsym = unsafe extern "C" fn(*mut c_void, *const c_char) -> *mut c_void;
type Dlvsym = unsafe extern "C" fn(*mut c_void, *const c_char, *const c_char) -> *mut c_void;

/// The next `dlsym` after ours; null until the first lookup.
pub(crate) static REAL_DLSYM: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());
/// The C library's `dlvsym`; null until the first lookup.
pub(crate) static REAL_DLVSYM: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

/// Fills [`REAL_DLSYM`] and [`REAL_DLVSYM`]. Two threads may both do it; they find the same.
///
/// No lock and no `OnceLock`: the standard library itself looks up weak symbols through our `dlsym`, and would come
/// back here in the middle of it.
pub(crate) fn find_lookups() -> bool {
    if !REAL_DLSYM.load(Ordering::Acquire).is_null() && !REAL_DLVSYM.load(Ordering::Acquire).is_null() {
        return true;
    }
    let dlvsym = elf::libc_function(c"dlvsym");
    let mut dlsym: *mut c_void = ptr::null_mut();
    if !dlvsym.is_null() {
        // SAFETY: `dlvsym` of the C library has this signature.
        let real: Dlvsym = unsafe { core::mem::transmute::<*mut c_void, Dlvsym>(dlvsym) };
        for version in [c"GLIBC_2.34", c"GLIBC_2.2.5", c"GLIBC_2.17"] {
            if dlsym.is_null() {
                // The next one after this library, so that another preloaded library behind us keeps its say.
                // SAFETY: three C strings or handles.
                dlsym = unsafe { real(libc::RTLD_NEXT, c"dlsym".as_ptr(), version.as_ptr()) };
            }
        }
    }
    if dlsym.is_null() {
        dlsym = elf::libc_function(c"dlsym");
    }
    REAL_DLVSYM.store(dlvsym, Ordering::Release);
    REAL_DLSYM.store(dlsym, Ordering::Release);
    !dlsym.is_null() && !dlvsym.is_null()
}

/// The lookup of the C library, asked by this library.
///
/// # Safety
/// `handle` is one that `dlopen` gave, or `RTLD_DEFAULT` or `RTLD_NEXT`.
pub(crate) unsafe fn real_dlsym(handle: *mut c_void, name: &CStr) -> *mut c_void {
    if !find_lookups() {
        return ptr::null_mut();
    }
    let found = REAL_DLSYM.load(Ordering::Acquire);
    // SAFETY: `found` is `dlsym`, which has this signature.
    let real: Dlsym = unsafe { core::mem::transmute::<*mut c_void, Dlsym>(found) };
    // SAFETY: by the caller's promise.
    unsafe { real(handle, name.as_ptr()) }
}

/// One of the vendor's libraries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Library {
    Cuda,
    Nvml,
}

static CUDA: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());
static NVML: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

impl Library {
    fn soname(self) -> &'static CStr {
        match self {
            Self::Cuda => c"libcuda.so.1",
            Self::Nvml => c"libnvidia-ml.so.1",
        }
    }

    /// How file names of this library begin, whatever follows (`.1`, `.535.104.05`).
    pub(crate) fn file_prefix(self) -> &'static [u8] {
        match self {
            Self::Cuda => b"libcuda.so",
            Self::Nvml => b"libnvidia-ml.so",
        }
    }

    fn cached(self) -> &'static AtomicPtr<c_void> {
        match self {
            Self::Cuda => &CUDA,
            Self::Nvml => &NVML,
        }
    }

    /// The library's handle if the process has it loaded; loads nothing.
    pub(crate) fn loaded(self) -> Option<*mut c_void> {
        self.open(libc::RTLD_NOW | libc::RTLD_NOLOAD)
    }

    /// The library's handle, loading it the way a program would.
    fn handle(self) -> Option<*mut c_void> {
        self.open(libc::RTLD_NOW)
    }

    fn open(self, flags: c_int) -> Option<*mut c_void> {
        let known = self.cached().load(Ordering::Acquire);
        if !known.is_null() {
            return Some(known);
        }
        // SAFETY: a C string and flags. The handle is never closed, so it stays valid.
        let handle = unsafe { libc::dlopen(self.soname().as_ptr(), flags) };
        if handle.is_null() {
            return None;
        }
        self.cached().store(handle, Ordering::Release);
        Some(handle)
    }
}

/// A function of one of the vendor's libraries by its exported name.
#[derive(Debug)]
pub(crate) struct Symbol {
    pub(crate) library: Library,
    pub(crate) name: &'static CStr,
    address: AtomicPtr<c_void>,
}

/// Marks a name that the library does not have.
const MISSING: *mut c_void = ptr::without_provenance_mut(1);

impl Symbol {
    pub(crate) const fn new(library: Library, name: &'static CStr) -> Self {
        Self {
            library,
            name,
            address: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// The driver's function; nothing when this driver has none of that name.
    #[inline]
    pub(crate) fn get(&self) -> Option<*mut c_void> {
        let address = self.address.load(Ordering::Acquire);
        if address.addr() > MISSING.addr() {
            Some(address)
        } else {
            self.find(address == MISSING)
        }
    }

    /// The driver's function if it was found before.
    #[inline]
    pub(crate) fn known(&self) -> Option<*mut c_void> {
        let address = self.address.load(Ordering::Acquire);
        (address.addr() > MISSING.addr()).then_some(address)
    }

    #[cold]
    fn find(&self, known_missing: bool) -> Option<*mut c_void> {
        if known_missing {
            return None;
        }
        let handle = self.library.handle()?;
        // SAFETY: a handle of `dlopen`.
        let found = unsafe { real_dlsym(handle, self.name) };
        let place = if found.is_null() { MISSING } else { found };
        self.address.store(place, Ordering::Release);
        (!found.is_null()).then_some(found)
    }

    /// Takes an address that the driver itself gave for this name, when lookup by name finds none.
    pub(crate) fn learn(&self, address: *mut c_void) {
        let old = self.address.load(Ordering::Acquire);
        if old.addr() <= MISSING.addr() {
            // Lost to another thread that found one: the same.
            let (Ok(_) | Err(_)) = self
                .address
                .compare_exchange(old, address, Ordering::AcqRel, Ordering::Acquire);
        }
    }
}

/// Declares functions of the driver that hooks call and nobody replaces. A missing one answers `NOT_FOUND`.
macro_rules! driver_functions {
    ($($library:ident $name:ident($($arg:ident: $type:ty),* $(,)?);)*) => {$(
        /// The vendor's function of this name.
        ///
        /// # Safety
        /// The vendor's conditions for the arguments.
        #[expect(non_snake_case, reason = "the vendor's name")]
        #[expect(clippy::allow_attributes, reason = "not every function is needed in every build")]
        #[allow(clippy::too_many_arguments, reason = "the vendor's signature")]
        pub(crate) unsafe fn $name($($arg: $type),*) -> i32 {
            static SYMBOL: Symbol = Symbol::new(
                Library::$library,
                match core::ffi::CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                    Ok(name) => name,
                    Err(_) => c"",
                },
            );
            let Some(address) = SYMBOL.get() else { return crate::codes::NOT_FOUND };
            type Real = unsafe extern "C" fn($($type),*) -> i32;
            // SAFETY: the vendor's function of this name has this signature.
            let real = unsafe { core::mem::transmute::<*mut c_void, Real>(address) };
            // SAFETY: by the caller's promise.
            unsafe { real($($arg),*) }
        }
    )*};
}

driver_functions! {
    Cuda cuCtxGetDevice(device: *mut i32);
    Cuda cuCtxGetCurrent(context: *mut u64);
    Cuda cuDeviceGetCount(count: *mut i32);
    Cuda cuDeviceGetUuid(uuid: *mut [u8; 16], device: i32);
    Cuda cuDeviceGetUuid_v2(uuid: *mut [u8; 16], device: i32);
    Cuda cuDevicePrimaryCtxGetState(device: i32, flags: *mut u32, active: *mut i32);
    Cuda cuDeviceGetMemPool(pool: *mut u64, device: i32);
    Cuda cuDeviceGetDefaultMemPool(pool: *mut u64, device: i32);
    Cuda cuMemPoolGetAttribute(pool: u64, attribute: i32, value: *mut u64);
    Cuda cuStreamIsCapturing(stream: u64, status: *mut i32);
    Cuda cuStreamIsCapturing_ptsz(stream: u64, status: *mut i32);
    Cuda cuDeviceGetGraphMemAttribute(device: i32, attribute: i32, value: *mut u64);
    Cuda cuCtxSetCurrent(context: u64);
    Cuda cuCtxSynchronize();
    Cuda cuStreamCreate(stream: *mut u64, flags: u32);
    Cuda cuStreamDestroy_v2(stream: u64);
    Cuda cuStreamSynchronize(stream: u64);
    Cuda cuMemAddressReserve(address: *mut u64, size: usize, alignment: usize, hint: u64, flags: u64);
    Cuda cuMemAddressFree(address: u64, size: usize);
    Cuda cuMemCreate(handle: *mut u64, size: usize, properties: *const u32, flags: u64);
    Cuda cuMemRelease(handle: u64);
    Cuda cuMemMap(address: u64, size: usize, offset: usize, handle: u64, flags: u64);
    Cuda cuMemUnmap(address: u64, size: usize);
    Cuda cuMemSetAccess(address: u64, size: usize, access: *const i32, count: usize);
    Cuda cuMemHostAlloc(host: *mut u64, size: usize, flags: u32);
    Cuda cuMemFreeHost(host: u64);
    Cuda cuMemcpyDtoHAsync_v2(host: u64, device: u64, size: usize, stream: u64);
    Cuda cuMemcpyHtoDAsync_v2(device: u64, host: u64, size: usize, stream: u64);
    Cuda cuEventCreate(event: *mut u64, flags: u32);
    Cuda cuEventDestroy_v2(event: u64);
    Cuda cuEventRecord(event: u64, stream: u64);
    Cuda cuEventRecord_ptsz(event: u64, stream: u64);
    Cuda cuEventQuery(event: u64);
    Cuda cuEventElapsedTime(ms: *mut f32, start: u64, end: u64);
    Cuda cuMemHostRegister_v2(host: u64, size: usize, flags: u32);
    Cuda cuMemHostGetDevicePointer_v2(device: *mut u64, host: u64, flags: u32);
    Cuda cuStreamSynchronize_ptsz(stream: u64);
    Cuda cuStreamWriteValue64(stream: u64, address: u64, value: u64, flags: u32);
    Cuda cuStreamWriteValue64_ptsz(stream: u64, address: u64, value: u64, flags: u32);
    Cuda cuStreamWriteValue64_v2(stream: u64, address: u64, value: u64, flags: u32);
    Cuda cuStreamWriteValue64_v2_ptsz(stream: u64, address: u64, value: u64, flags: u32);
    Nvml nvmlDeviceGetUUID(device: *mut c_void, uuid: *mut c_char, length: u32);
}
