//! The one list of what this library stands in for.
//!
//! Each line: the library, the class, the name without version and suffix, the first CUDA version whose
//! `cuGetProcAddress` hands this form out, then the exported function and what does its work. The class says what the
//! entry is for: `Counts` takes or gives back memory, `View` shows figures, `Starts` is where a container without a
//! grant is refused, `Finds` looks up other entries. Names that are not here are the driver's alone: launches, copies,
//! events, and the rest.

use core::{
    ffi::{CStr, c_char, c_void},
    ptr,
};

use crate::{
    codes, gates, information, lookup,
    memory::{
        Form,
        array::{self, Descriptor, Descriptor1, Descriptor3d, Descriptor3d1},
        context,
        external::{self, ArrayDescriptor, BufferDescriptor},
        graph::{self, AnyNode, MemoryNode},
        plain,
        pool::{self, PoolProperties},
        virtual_memory::{self as physical, AllocationProperties, MulticastProperties},
    },
    nvml::{self, Device, Memory, Memory2, Running1, Running2},
    symbol::{Library, Symbol},
    turns::hooks as turns,
};

/// What an entry is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Takes or gives back memory.
    Counts,
    /// Shows figures of the share.
    View,
    /// Begins the use of a card.
    Starts,
    /// Finds other entries.
    Finds,
    /// Waits while memory is away from the card, or for the container's turn.
    Gates,
}

/// One entry of the driver that has a stand-in.
#[derive(Debug)]
pub(crate) struct Entry {
    /// The driver's own.
    pub(crate) symbol: &'static Symbol,
    /// What it is for.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "checked against the list of all names by a test")
    )]
    pub(crate) class: Class,
    /// The name that `cuGetProcAddress` is asked for.
    pub(crate) base: &'static CStr,
    /// First version that gets this form.
    pub(crate) since: i32,
    /// The stand-in.
    pub(crate) hook: Hook,
}

/// Address of a stand-in.
#[derive(Debug)]
pub(crate) struct Hook(*const c_void);

// SAFETY: the address of a function, never written through.
unsafe impl Sync for Hook {}

impl Hook {
    pub(crate) const fn new(address: *const c_void) -> Self {
        Self(address)
    }

    pub(crate) fn address(&self) -> *mut c_void {
        self.0.cast_mut()
    }
}

const fn c_string(bytes: &'static str) -> &'static CStr {
    match CStr::from_bytes_with_nul(bytes.as_bytes()) {
        Ok(name) => name,
        Err(_) => c"",
    }
}

const fn missing(library: Library) -> i32 {
    match library {
        Library::Cuda => codes::NOT_FOUND,
        Library::Nvml => codes::NVML_FUNCTION_NOT_FOUND,
    }
}

macro_rules! hooks {
    ($($library:ident $class:ident $base:literal $since:literal
        $name:ident($($arg:ident: $type:ty),* $(,)?) => $work:path $([$($more:expr),*])?;)*) => {
        mod symbols {
            use super::*;
            $(
                #[expect(non_upper_case_globals, reason = "the vendor's name")]
                pub(super) static $name: Symbol =
                    Symbol::new(Library::$library, c_string(concat!(stringify!($name), "\0")));
            )*
        }

        /// The driver's own functions behind the stand-ins. A missing one answers that it is not found.
        #[allow(non_snake_case, dead_code, clippy::too_many_arguments, reason = "made for every entry")]
        pub(crate) mod real {
            use super::*;
            $(
                /// # Safety
                /// The vendor's conditions for the arguments.
                pub(crate) unsafe fn $name($($arg: $type),*) -> i32 {
                    type Real = unsafe extern "C" fn($($type),*) -> i32;
                    let Some(address) = symbols::$name.get() else { return missing(Library::$library) };
                    // SAFETY: the vendor's function of this name has this signature.
                    let real = unsafe { core::mem::transmute::<*mut c_void, Real>(address) };
                    // SAFETY: by the caller's promise.
                    unsafe { real($($arg),*) }
                }
            )*
        }

        #[allow(non_snake_case, clippy::too_many_arguments, reason = "the vendor's signatures")]
        mod exported {
            use super::*;
            $(
                #[cfg_attr(not(test), unsafe(no_mangle))]
                pub unsafe extern "C" fn $name($($arg: $type),*) -> i32 {
                    type Real = unsafe extern "C" fn($($type),*) -> i32;
                    let Some(address) = symbols::$name.get() else { return missing(Library::$library) };
                    // SAFETY: the vendor's function of this name has this signature.
                    let real = unsafe { core::mem::transmute::<*mut c_void, Real>(address) };
                    // SAFETY: the caller keeps the vendor's conditions, for the arguments of this very function.
                    unsafe { $work(real, $($arg),* $($(, $more)*)?) }
                }
            )*
        }

        /// All entries, by exported name in byte order.
        pub(crate) static TABLE: &[Entry] = &[$(
            Entry {
                symbol: &symbols::$name,
                class: Class::$class,
                base: c_string(concat!($base, "\0")),
                since: $since,
                hook: Hook(exported::$name as unsafe extern "C" fn($($type),*) -> i32 as *const c_void),
            },
        )*];
    };
}

hooks! {
    Cuda Counts "cuArray3DCreate" 2000 cuArray3DCreate(out: *mut u64, descriptor: *const Descriptor3d1) => array::create_3d_v1;
    Cuda Counts "cuArray3DCreate" 3020 cuArray3DCreate_v2(out: *mut u64, descriptor: *const Descriptor3d) => array::create_3d;
    Cuda Counts "cuArrayCreate" 2000 cuArrayCreate(out: *mut u64, descriptor: *const Descriptor1) => array::create_v1;
    Cuda Counts "cuArrayCreate" 3020 cuArrayCreate_v2(out: *mut u64, descriptor: *const Descriptor) => array::create;
    Cuda Counts "cuArrayDestroy" 2000 cuArrayDestroy(array: u64) => array::destroy;
    Cuda Counts "cuCtxCreate" 2000 cuCtxCreate(out: *mut u64, flags: u32, device: i32) => context::create;
    Cuda Counts "cuCtxCreate" 3020 cuCtxCreate_v2(out: *mut u64, flags: u32, device: i32) => context::create;
    Cuda Counts "cuCtxCreate" 11040 cuCtxCreate_v3(out: *mut u64, affinity: *mut c_void, count: i32, flags: u32, device: i32) => context::create_v3;
    Cuda Counts "cuCtxCreate" 12050 cuCtxCreate_v4(out: *mut u64, parameters: *mut c_void, flags: u32, device: i32) => context::create_v4;
    Cuda Counts "cuCtxDestroy" 2000 cuCtxDestroy(context: u64) => context::destroy;
    Cuda Counts "cuCtxDestroy" 4000 cuCtxDestroy_v2(context: u64) => context::destroy;
    Cuda Counts "cuCtxDetach" 2000 cuCtxDetach(context: u64) => context::detach;
    Cuda Counts "cuCtxSynchronize" 2000 cuCtxSynchronize() => turns::synchronize_context;
    Cuda Counts "cuCtxSynchronize" 13000 cuCtxSynchronize_v2(context: u64) => plain::synchronize;
    Cuda Counts "cuDestroyExternalMemory" 10000 cuDestroyExternalMemory(memory: *mut c_void) => external::destroy;
    Cuda Counts "cuDeviceGraphMemTrim" 11040 cuDeviceGraphMemTrim(device: i32) => graph::trim;
    Cuda Counts "cuDevicePrimaryCtxRelease" 7000 cuDevicePrimaryCtxRelease(device: i32) => context::primary_release;
    Cuda Counts "cuDevicePrimaryCtxRelease" 11000 cuDevicePrimaryCtxRelease_v2(device: i32) => context::primary_release;
    Cuda Counts "cuDevicePrimaryCtxReset" 7000 cuDevicePrimaryCtxReset(device: i32) => context::primary_reset;
    Cuda Counts "cuDevicePrimaryCtxReset" 11000 cuDevicePrimaryCtxReset_v2(device: i32) => context::primary_reset;
    Cuda Counts "cuDevicePrimaryCtxRetain" 7000 cuDevicePrimaryCtxRetain(out: *mut u64, device: i32) => context::primary_retain;
    Cuda View "cuDeviceTotalMem" 2000 cuDeviceTotalMem(total: *mut u32, device: i32) => information::total_v1;
    Cuda View "cuDeviceTotalMem" 3020 cuDeviceTotalMem_v2(total: *mut usize, device: i32) => information::total;
    Cuda Counts "cuExternalMemoryGetMappedBuffer" 10000 cuExternalMemoryGetMappedBuffer(out: *mut u64, memory: u64, descriptor: *const BufferDescriptor) => external::map_buffer;
    Cuda Counts "cuExternalMemoryGetMappedMipmappedArray" 10000 cuExternalMemoryGetMappedMipmappedArray(out: *mut u64, memory: u64, descriptor: *const ArrayDescriptor) => external::map_array;
    Cuda Finds "cuGetProcAddress" 11030 cuGetProcAddress(name: *const c_char, out: *mut *mut c_void, version: i32, flags: u64) => lookup::proc_address;
    Cuda Finds "cuGetProcAddress" 12000 cuGetProcAddress_v2(name: *const c_char, out: *mut *mut c_void, version: i32, flags: u64, status: *mut i32) => lookup::proc_address_v2;
    Cuda Counts "cuGraphAddMemAllocNode" 11040 cuGraphAddMemAllocNode(out: *mut u64, graph: u64, before: *const u64, count: usize, node: *mut MemoryNode) => graph::add_memory_node;
    Cuda Counts "cuGraphAddNode" 12020 cuGraphAddNode(out: *mut u64, graph: u64, before: *const u64, count: usize, node: *mut AnyNode) => graph::add_node;
    Cuda Counts "cuGraphAddNode" 12030 cuGraphAddNode_v2(out: *mut u64, graph: u64, before: *const u64, edges: *const c_void, count: usize, node: *mut AnyNode) => graph::add_node_v2;
    Cuda Counts "cuGraphDestroy" 10000 cuGraphDestroy(graph: u64) => graph::destroy;
    Cuda Counts "cuGraphInstantiate" 10000 cuGraphInstantiate(out: *mut u64, graph: u64, node: *mut u64, log: *mut c_char, size: usize) => graph::instantiate;
    Cuda Counts "cuGraphInstantiateWithFlags" 11040 cuGraphInstantiateWithFlags(out: *mut u64, graph: u64, flags: u64) => graph::instantiate_flags;
    Cuda Counts "cuGraphInstantiateWithParams" 12000 cuGraphInstantiateWithParams(out: *mut u64, graph: u64, parameters: *mut c_void) => graph::instantiate_parameters;
    Cuda Counts "cuGraphInstantiateWithParams" 12000 cuGraphInstantiateWithParams_ptsz(out: *mut u64, graph: u64, parameters: *mut c_void) => graph::instantiate_parameters;
    Cuda Counts "cuGraphInstantiate" 11000 cuGraphInstantiate_v2(out: *mut u64, graph: u64, node: *mut u64, log: *mut c_char, size: usize) => graph::instantiate;
    Cuda Counts "cuGraphLaunch" 10000 cuGraphLaunch(executable: u64, stream: u64) => turns::graph_launch [Form::Legacy];
    Cuda Counts "cuGraphLaunch" 10000 cuGraphLaunch_ptsz(executable: u64, stream: u64) => turns::graph_launch [Form::PerThread];
    Cuda Counts "cuGraphUpload" 11010 cuGraphUpload(executable: u64, stream: u64) => graph::launch;
    Cuda Counts "cuGraphUpload" 11010 cuGraphUpload_ptsz(executable: u64, stream: u64) => graph::launch;
    Cuda Counts "cuGreenCtxCreate" 12040 cuGreenCtxCreate(out: *mut u64, description: *mut c_void, device: i32, flags: u32) => context::create_green;
    Cuda Counts "cuGreenCtxDestroy" 12040 cuGreenCtxDestroy(context: u64) => context::destroy;
    Cuda Starts "cuInit" 2000 cuInit(flags: u32) => information::initialise;
    Cuda Counts "cuMemAlloc" 2000 cuMemAlloc(out: *mut u32, size: u32) => plain::alloc_v1;
    Cuda Counts "cuMemAllocAsync" 11020 cuMemAllocAsync(out: *mut u64, size: usize, stream: u64) => pool::alloc_async [Form::Legacy];
    Cuda Counts "cuMemAllocAsync" 11020 cuMemAllocAsync_ptsz(out: *mut u64, size: usize, stream: u64) => pool::alloc_async [Form::PerThread];
    Cuda Counts "cuMemAllocFromPoolAsync" 11020 cuMemAllocFromPoolAsync(out: *mut u64, size: usize, pool: u64, stream: u64) => pool::alloc_from_pool [Form::Legacy];
    Cuda Counts "cuMemAllocFromPoolAsync" 11020 cuMemAllocFromPoolAsync_ptsz(out: *mut u64, size: usize, pool: u64, stream: u64) => pool::alloc_from_pool [Form::PerThread];
    Cuda Counts "cuMemAllocManaged" 6000 cuMemAllocManaged(out: *mut u64, size: usize, flags: u32) => plain::alloc_managed;
    Cuda Counts "cuMemAllocPitch" 2000 cuMemAllocPitch(out: *mut u32, pitch: *mut u32, width: u32, height: u32, element: u32) => plain::alloc_pitch_v1;
    Cuda Counts "cuMemAllocPitch" 3020 cuMemAllocPitch_v2(out: *mut u64, pitch: *mut usize, width: usize, height: usize, element: u32) => plain::alloc_pitch;
    Cuda Counts "cuMemAlloc" 3020 cuMemAlloc_v2(out: *mut u64, size: usize) => plain::alloc;
    Cuda Counts "cuMemCreate" 10020 cuMemCreate(out: *mut u64, size: usize, properties: *const AllocationProperties, flags: u64) => physical::create;
    Cuda Counts "cuMemFree" 2000 cuMemFree(pointer: u32) => plain::free_v1;
    Cuda Counts "cuMemFreeAsync" 11020 cuMemFreeAsync(pointer: u64, stream: u64) => plain::free_async [Form::Legacy];
    Cuda Counts "cuMemFreeAsync" 11020 cuMemFreeAsync_ptsz(pointer: u64, stream: u64) => plain::free_async [Form::PerThread];
    Cuda Counts "cuMemFree" 3020 cuMemFree_v2(pointer: u64) => plain::free_v2;
    Cuda View "cuMemGetInfo" 2000 cuMemGetInfo(free: *mut u32, total: *mut u32) => information::memory_v1;
    Cuda View "cuMemGetInfo" 3020 cuMemGetInfo_v2(free: *mut usize, total: *mut usize) => information::memory;
    Cuda Counts "cuMemImportFromShareableHandle" 10020 cuMemImportFromShareableHandle(out: *mut u64, handle: *mut c_void, kind: i32) => physical::import;
    Cuda Counts "cuMemMap" 10020 cuMemMap(address: u64, size: usize, offset: usize, handle: u64, flags: u64) => physical::map;
    Cuda Counts "cuMemPoolCreate" 11020 cuMemPoolCreate(out: *mut u64, properties: *const PoolProperties) => pool::create;
    Cuda Counts "cuMemPoolDestroy" 11020 cuMemPoolDestroy(pool: u64) => pool::destroy;
    Cuda Counts "cuMemPoolTrimTo" 11020 cuMemPoolTrimTo(pool: u64, keep: usize) => pool::trim;
    Cuda Counts "cuMemRelease" 10020 cuMemRelease(handle: u64) => physical::release;
    Cuda Counts "cuMemRetainAllocationHandle" 11000 cuMemRetainAllocationHandle(out: *mut u64, address: *mut c_void) => physical::retain;
    Cuda Counts "cuMemUnmap" 10020 cuMemUnmap(address: u64, size: usize) => physical::unmap;
    Cuda Counts "cuMipmappedArrayCreate" 5000 cuMipmappedArrayCreate(out: *mut u64, descriptor: *const Descriptor3d, levels: u32) => array::create_mipmapped;
    Cuda Counts "cuMipmappedArrayDestroy" 5000 cuMipmappedArrayDestroy(array: u64) => array::destroy_mipmapped;
    Cuda Counts "cuMulticastCreate" 12010 cuMulticastCreate(out: *mut u64, properties: *const MulticastProperties) => physical::create_multicast;
    Cuda Counts "cuStreamEndCapture" 10000 cuStreamEndCapture(stream: u64, graph: *mut u64) => turns::end_capture;
    Cuda Counts "cuStreamEndCapture" 10000 cuStreamEndCapture_ptsz(stream: u64, graph: *mut u64) => turns::end_capture;
    Cuda Counts "cuStreamSynchronize" 2000 cuStreamSynchronize(stream: u64) => turns::synchronize [Form::Legacy];
    Cuda Counts "cuStreamSynchronize" 7000 cuStreamSynchronize_ptsz(stream: u64) => turns::synchronize [Form::PerThread];
    Nvml View "nvmlDeviceGetComputeRunningProcesses" 0 nvmlDeviceGetComputeRunningProcesses(device: Device, count: *mut u32, list: *mut Running1) => nvml::compute;
    Nvml View "nvmlDeviceGetComputeRunningProcesses" 0 nvmlDeviceGetComputeRunningProcesses_v2(device: Device, count: *mut u32, list: *mut Running2) => nvml::compute_v2;
    Nvml View "nvmlDeviceGetComputeRunningProcesses" 0 nvmlDeviceGetComputeRunningProcesses_v3(device: Device, count: *mut u32, list: *mut Running2) => nvml::compute_v2;
    Nvml View "nvmlDeviceGetGraphicsRunningProcesses" 0 nvmlDeviceGetGraphicsRunningProcesses(device: Device, count: *mut u32, list: *mut Running1) => nvml::other;
    Nvml View "nvmlDeviceGetGraphicsRunningProcesses" 0 nvmlDeviceGetGraphicsRunningProcesses_v2(device: Device, count: *mut u32, list: *mut Running2) => nvml::other_v2;
    Nvml View "nvmlDeviceGetGraphicsRunningProcesses" 0 nvmlDeviceGetGraphicsRunningProcesses_v3(device: Device, count: *mut u32, list: *mut Running2) => nvml::other_v2;
    Nvml Starts "nvmlDeviceGetHandleByIndex" 0 nvmlDeviceGetHandleByIndex(index: u32, out: *mut Device) => nvml::by_index;
    Nvml Starts "nvmlDeviceGetHandleByIndex" 0 nvmlDeviceGetHandleByIndex_v2(index: u32, out: *mut Device) => nvml::by_index;
    Nvml Starts "nvmlDeviceGetHandleByPciBusId" 0 nvmlDeviceGetHandleByPciBusId(text: *const c_char, out: *mut Device) => nvml::by_text;
    Nvml Starts "nvmlDeviceGetHandleByPciBusId" 0 nvmlDeviceGetHandleByPciBusId_v2(text: *const c_char, out: *mut Device) => nvml::by_text;
    Nvml Starts "nvmlDeviceGetHandleBySerial" 0 nvmlDeviceGetHandleBySerial(text: *const c_char, out: *mut Device) => nvml::by_text;
    Nvml Starts "nvmlDeviceGetHandleByUUID" 0 nvmlDeviceGetHandleByUUID(text: *const c_char, out: *mut Device) => nvml::by_text;
    Nvml Starts "nvmlDeviceGetHandleByUUIDV" 0 nvmlDeviceGetHandleByUUIDV(uuid: *const c_void, out: *mut Device) => nvml::by_uuid;
    Nvml View "nvmlDeviceGetMPSComputeRunningProcesses" 0 nvmlDeviceGetMPSComputeRunningProcesses(device: Device, count: *mut u32, list: *mut Running1) => nvml::other;
    Nvml View "nvmlDeviceGetMPSComputeRunningProcesses" 0 nvmlDeviceGetMPSComputeRunningProcesses_v2(device: Device, count: *mut u32, list: *mut Running2) => nvml::other_v2;
    Nvml View "nvmlDeviceGetMPSComputeRunningProcesses" 0 nvmlDeviceGetMPSComputeRunningProcesses_v3(device: Device, count: *mut u32, list: *mut Running2) => nvml::other_v2;
    Nvml View "nvmlDeviceGetMemoryInfo" 0 nvmlDeviceGetMemoryInfo(device: Device, out: *mut Memory) => nvml::memory;
    Nvml View "nvmlDeviceGetMemoryInfo" 0 nvmlDeviceGetMemoryInfo_v2(device: Device, out: *mut Memory2) => nvml::memory_v2;
    Nvml Starts "nvmlInit" 0 nvmlInit() => nvml::initialise;
    Nvml Starts "nvmlInitWithFlags" 0 nvmlInitWithFlags(flags: u32) => nvml::initialise_flags;
    Nvml Starts "nvmlInit" 0 nvmlInit_v2() => nvml::initialise;
}

/// The entry with this exported name.
pub(crate) fn find(name: &CStr) -> Option<&'static Entry> {
    // Most lookups of a program are not for the driver; two bytes tell.
    if !matches!(name.to_bytes(), [b'c', b'u', ..] | [b'n', b'v', ..]) {
        return None;
    }
    match TABLE.binary_search_by(|entry| entry.symbol.name.cmp(name)) {
        Ok(index) => TABLE.get(index),
        Err(_) => gates::find(name),
    }
}

/// The forms of a name that `cuGetProcAddress` may be asked for.
pub(crate) fn forms(base: &CStr) -> impl Iterator<Item = &'static Entry> {
    TABLE
        .iter()
        .filter(move |entry| entry.base == base)
        .chain(gates::forms(base))
}

impl Entry {
    /// Whether null streams mean the thread's own.
    pub(crate) fn is_per_thread(&self) -> bool {
        self.symbol.name.to_bytes().ends_with(b"_ptsz")
    }

    /// Whether `address` is the driver's own function of this name, or this library's.
    pub(crate) fn is(&self, address: *mut c_void) -> bool {
        ptr::eq(address, self.hook.address()) || self.symbol.get() == Some(address)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_order_and_every_name_is_found() {
        for pair in TABLE.windows(2) {
            assert!(pair[0].symbol.name < pair[1].symbol.name, "{:?}", pair[1].symbol.name);
        }
        for entry in TABLE {
            assert!(ptr::eq(find(entry.symbol.name).unwrap(), entry));
        }
        assert!(find(c"cuLaunchKernel").is_none());
        assert!(find(c"curl_easy_init").is_none());
        assert!(find(c"").is_none());
    }

    /// `classes.txt` has every name of the vendor's headers with its class; what needs a stand-in has one.
    #[test]
    fn every_name_of_the_headers_has_a_class_and_the_table_agrees() {
        let mut listed = 0;
        for line in include_str!("../classes.txt")
            .lines()
            .filter(|line| !line.starts_with('#'))
        {
            let (class, name) = line.split_once(' ').unwrap();
            let found = TABLE
                .iter()
                .chain(gates::GATES)
                .find(|entry| entry.symbol.name.to_str() == Ok(name));
            let expected = match class {
                "counts" => Some(Class::Counts),
                "view" => Some(Class::View),
                "starts" => Some(Class::Starts),
                "finds" => Some(Class::Finds),
                "gates" => Some(Class::Gates),
                // Runs work, but takes no memory; moves bytes or asks; makes nothing on a card.
                "runs" | "forwards" => None,
                // Takes memory that no figure of the driver tells apart, or that its owner pays for.
                "owner-pays" | "overhead" => None,
                other => panic!("class {other} of {name}"),
            };
            assert_eq!(found.map(|entry| entry.class), expected, "{name}");
            listed += usize::from(expected.is_some());
        }
        let cuda = TABLE
            .iter()
            .chain(gates::GATES)
            .filter(|entry| entry.symbol.library == Library::Cuda)
            .count();
        assert_eq!(listed, cuda, "a stand-in for a name that is not listed");
    }

    #[test]
    fn every_name_of_nvml_has_a_class_and_the_table_agrees() {
        let mut listed = 0;
        for line in include_str!("../nvml-classes.txt")
            .lines()
            .filter(|line| !line.starts_with('#'))
        {
            let (class, name) = line.split_once(' ').unwrap();
            let found = TABLE.iter().find(|entry| entry.symbol.name.to_str() == Ok(name));
            let expected = match class {
                "view" => Some(Class::View),
                "starts" => Some(Class::Starts),
                "card" | "neighbours" | "changes" | "machines" | "library" => None,
                other => panic!("class {other} of {name}"),
            };
            assert_eq!(found.map(|entry| entry.class), expected, "{name}");
            listed += usize::from(expected.is_some());
        }
        let nvml = TABLE
            .iter()
            .filter(|entry| entry.symbol.library == Library::Nvml)
            .count();
        assert_eq!(listed, nvml, "a stand-in for a name that is not listed");
    }

    /// The names of every release whose headers are published, by `cargo xtask names`.
    #[test]
    fn no_name_of_a_published_header_is_without_a_class() {
        let words = |text: &'static str, nth: usize| {
            let lines = text.lines().filter(|line| !line.starts_with('#'));
            lines.map(move |line| line.split(' ').nth(nth).unwrap())
        };
        for (headers, classes) in [
            (include_str!("../data/cuda-names.txt"), include_str!("../classes.txt")),
            (
                include_str!("../data/nvml-names.txt"),
                include_str!("../nvml-classes.txt"),
            ),
        ] {
            let classified: std::collections::BTreeSet<_> = words(classes, 1).collect();
            let unknown: Vec<_> = words(headers, 0).filter(|name| !classified.contains(name)).collect();
            assert!(unknown.is_empty(), "no class for {unknown:?}");
        }
    }

    #[test]
    fn a_form_is_its_base_with_a_suffix() {
        for entry in TABLE {
            let (name, base) = (entry.symbol.name.to_str().unwrap(), entry.base.to_str().unwrap());
            let suffix = name.strip_prefix(base).unwrap();
            assert!(matches!(suffix, "" | "_v2" | "_v3" | "_v4" | "_ptsz"), "{name}");
        }
    }
}
