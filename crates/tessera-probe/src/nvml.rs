//! NVML as a table of function pointers, loaded by path.

#![expect(unsafe_code, reason = "calls into the vendor's C library")]

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fmt;
use std::path::{Path, PathBuf};

use libloading::Library;

use crate::card::{CardFacts, MigMode, MigPlacement, MigProfile};
use crate::root::DriverRoot;
use crate::topology::{self, Ancestor, Links, PairScores};

/// The library's name, which carries its ABI version.
pub const LIBRARY: &str = "libnvidia-ml.so.1";

/// NVLinks of one card that the ABI knows.
const LINKS: u32 = 18;
/// Cards beyond this are a broken answer.
const CARDS_MAX: u32 = 256;
/// GPU instance profile numbers that the ABI knows.
const PROFILES: u32 = 16;
/// Placements of one profile that we read.
const PLACEMENTS_MAX: usize = 64;
const EVENT_XID: u64 = 0x8;
const EVENT_DOUBLE_BIT_ECC: u64 = 0x2;

/// A return code of the library.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Code(pub i32);

impl Code {
    /// A session is needed first.
    pub const UNINITIALIZED: Self = Self(1);
    /// The card or the driver has no such figure.
    pub const NOT_SUPPORTED: Self = Self(3);
    /// The caller may not do it.
    pub const NO_PERMISSION: Self = Self(4);
    /// Nothing of that name, or nothing set.
    pub const NOT_FOUND: Self = Self(6);
    /// The operating system's part is missing.
    pub const OPERATING_SYSTEM: Self = Self(17);
    /// The buffer was too small.
    pub const INSUFFICIENT_SIZE: Self = Self(7);
    /// The kernel module is missing.
    pub const DRIVER_NOT_LOADED: Self = Self(9);
    /// Nothing happened in the time given.
    pub const TIMEOUT: Self = Self(10);
    /// The library lacks the function.
    pub const FUNCTION_NOT_FOUND: Self = Self(13);
    /// The card fell off the bus.
    pub const GPU_IS_LOST: Self = Self(15);
    /// Library and kernel module are of different versions.
    pub const VERSION_MISMATCH: Self = Self(18);

    fn word(self) -> Option<&'static str> {
        Some(match self.0 {
            1 => "library not initialised",
            2 => "invalid argument",
            3 => "not supported",
            4 => "no permission",
            6 => "not found",
            7 => "buffer too small",
            9 => "the kernel module is not loaded",
            10 => "timeout",
            12 => "a needed library is missing",
            13 => "function not found",
            15 => "the card fell off the bus",
            16 => "the card needs a reset",
            18 => "library and kernel module have different versions; reload the module or reboot",
            20 => "memory is short",
            999 => "unknown driver error",
            _ => return None,
        })
    }

    /// Whether the whole driver is gone, not one card.
    #[must_use]
    pub fn is_driver_lost(self) -> bool {
        matches!(
            self,
            Self::UNINITIALIZED | Self::DRIVER_NOT_LOADED | Self::VERSION_MISMATCH
        )
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.word() {
            Some(word) => f.write_str(word),
            None => write!(f, "code {}", self.0),
        }
    }
}

/// Why the driver cannot be asked, or did not answer.
#[derive(Debug, thiserror::Error)]
pub enum NvmlError {
    /// No library below the driver root.
    #[error(
        "no NVIDIA driver: `{LIBRARY}` is not below `{root}`; install the driver, or set --nvidia-driver-root to where it is"
    )]
    Absent {
        /// Our path of the root.
        root: PathBuf,
    },
    /// The file is no library that the loader takes.
    #[error("cannot load `{path}`")]
    Load {
        /// The file.
        path: PathBuf,
        /// The loader's word.
        source: libloading::Error,
    },
    /// The library answered with an error.
    #[error("{call}: {code}")]
    Call {
        /// The function.
        call: &'static str,
        /// Its code.
        code: Code,
    },
    /// Text from the library is not UTF-8.
    #[error("{call}: the text is not UTF-8")]
    Text {
        /// The function.
        call: &'static str,
    },
    /// More cards than there can be.
    #[error("the driver reports {0} cards")]
    TooMany(u32),
}

impl NvmlError {
    /// The function and its code, for counting.
    #[must_use]
    pub fn call(&self) -> Option<(&'static str, Code)> {
        match self {
            Self::Call { call, code } => Some((call, *code)),
            _ => None,
        }
    }

    /// Whether the whole driver is gone, not one card.
    #[must_use]
    pub fn is_driver_lost(&self) -> bool {
        matches!(self, Self::Call { code, .. } if code.is_driver_lost())
    }
}

/// A card as the library names it during one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device(*mut c_void);

// SAFETY: the handle is an opaque name; the library may be called with it from
// any thread.
unsafe impl Send for Device {}

#[repr(C)]
#[derive(Clone, Copy)]
struct PciInfo {
    bus_id_legacy: [c_char; 16],
    domain: c_uint,
    bus: c_uint,
    device: c_uint,
    pci_device_id: c_uint,
    pci_subsystem_id: c_uint,
    bus_id: [c_char; 32],
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Memory {
    total: u64,
    free: u64,
    used: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct MemoryV2 {
    version: c_uint,
    total: u64,
    reserved: u64,
    free: u64,
    used: u64,
}

/// The argument of both calls for limits; setting them does not look at the last word.
#[repr(C)]
#[derive(Clone, Copy)]
struct MemoryLimits {
    group: *const c_char,
    soft: u64,
    hard: u64,
    used: u64,
}

/// What the driver holds one control group to on one card, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupMemory {
    /// Guaranteed before others are.
    pub soft: u64,
    /// Not exceeded; [`NO_LIMIT`] for none.
    pub hard: u64,
    /// In use by the processes of the group.
    pub used: u64,
}

/// Hard limit that means none.
pub const NO_LIMIT: u64 = u64::MAX;

#[repr(C)]
#[derive(Clone, Copy)]
struct EventData {
    device: *mut c_void,
    event_type: u64,
    event_data: u64,
    gpu_instance: c_uint,
    compute_instance: c_uint,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ProfileInfo {
    id: c_uint,
    is_p2p_supported: c_uint,
    slice_count: c_uint,
    instance_count: c_uint,
    multiprocessor_count: c_uint,
    copy_engine_count: c_uint,
    decoder_count: c_uint,
    encoder_count: c_uint,
    jpeg_count: c_uint,
    ofa_count: c_uint,
    memory_mib: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct ProfileInfoV2 {
    version: c_uint,
    id: c_uint,
    is_p2p_supported: c_uint,
    slice_count: c_uint,
    instance_count: c_uint,
    multiprocessor_count: c_uint,
    copy_engine_count: c_uint,
    decoder_count: c_uint,
    encoder_count: c_uint,
    jpeg_count: c_uint,
    ofa_count: c_uint,
    memory_mib: u64,
    name: [c_char; 96],
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Placement {
    start: c_uint,
    size: c_uint,
}

/// A versioned structure begins with its size and its number in one word.
const fn versioned<T>(number: u32) -> c_uint {
    // Structures of this ABI are below 64 KiB.
    #[expect(clippy::cast_possible_truncation, reason = "sizes are below 64 KiB")]
    let size = size_of::<T>() as c_uint;
    size | (number << 24)
}

macro_rules! table {
    ($($field:ident = $symbol:literal ($($argument:ty),* $(,)?);)*) => {
        /// Entry points by symbol; a missing one is `None`.
        struct Table {
            $($field: Option<unsafe extern "C" fn($($argument),*) -> c_int>,)*
        }

        impl Table {
            fn load(library: &Library) -> Self {
                Self {
                    $(
                        // SAFETY: the type is the one that the vendor's header
                        // gives for this symbol, and the pointers are dropped
                        // before the library: both live in `Nvml`.
                        $field: unsafe {
                            library
                                .get::<unsafe extern "C" fn($($argument),*) -> c_int>($symbol)
                                .ok()
                                .map(|symbol| *symbol)
                        },
                    )*
                }
            }
        }
    };
}

type Handle = *mut c_void;

table! {
    init = b"nvmlInit_v2" ();
    shutdown = b"nvmlShutdown" ();
    driver_version = b"nvmlSystemGetDriverVersion" (*mut c_char, c_uint);
    count = b"nvmlDeviceGetCount_v2" (*mut c_uint);
    by_index = b"nvmlDeviceGetHandleByIndex_v2" (c_uint, *mut Handle);
    by_uuid = b"nvmlDeviceGetHandleByUUID" (*const c_char, *mut Handle);
    uuid = b"nvmlDeviceGetUUID" (Handle, *mut c_char, c_uint);
    name = b"nvmlDeviceGetName" (Handle, *mut c_char, c_uint);
    minor = b"nvmlDeviceGetMinorNumber" (Handle, *mut c_uint);
    pci = b"nvmlDeviceGetPciInfo_v3" (Handle, *mut PciInfo);
    memory = b"nvmlDeviceGetMemoryInfo" (Handle, *mut Memory);
    memory_v2 = b"nvmlDeviceGetMemoryInfo_v2" (Handle, *mut MemoryV2);
    capability = b"nvmlDeviceGetCudaComputeCapability" (Handle, *mut c_int, *mut c_int);
    numa = b"nvmlDeviceGetNumaNodeId" (Handle, *mut c_uint);
    ancestor = b"nvmlDeviceGetTopologyCommonAncestor" (Handle, Handle, *mut c_uint);
    link_state = b"nvmlDeviceGetNvLinkState" (Handle, c_uint, *mut c_uint);
    link_remote_type = b"nvmlDeviceGetNvLinkRemoteDeviceType" (Handle, c_uint, *mut c_uint);
    link_remote_pci = b"nvmlDeviceGetNvLinkRemotePciInfo_v2" (Handle, c_uint, *mut PciInfo);
    mig_mode = b"nvmlDeviceGetMigMode" (Handle, *mut c_uint, *mut c_uint);
    profile = b"nvmlDeviceGetGpuInstanceProfileInfo" (Handle, c_uint, *mut ProfileInfo);
    profile_v = b"nvmlDeviceGetGpuInstanceProfileInfoV" (Handle, c_uint, *mut ProfileInfoV2);
    placements = b"nvmlDeviceGetGpuInstancePossiblePlacements_v2" (Handle, c_uint, *mut Placement, *mut c_uint);
    set_create = b"nvmlEventSetCreate" (*mut Handle);
    set_free = b"nvmlEventSetFree" (Handle);
    set_wait = b"nvmlEventSetWait_v2" (Handle, *mut EventData, c_uint);
    supported_events = b"nvmlDeviceGetSupportedEventTypes" (Handle, *mut u64);
    get_limits = b"nvmlDeviceGetMemoryLimits_v1" (Handle, *mut MemoryLimits);
    set_limits = b"nvmlDeviceSetMemoryLimits_v1" (Handle, *mut MemoryLimits);
    register_events = b"nvmlDeviceRegisterEvents" (Handle, u64, Handle);
}

fn status(call: &'static str, code: c_int) -> Result<(), NvmlError> {
    if code == 0 {
        Ok(())
    } else {
        Err(NvmlError::Call { call, code: Code(code) })
    }
}

fn need<F: Copy>(call: &'static str, function: Option<F>) -> Result<F, NvmlError> {
    function.ok_or(NvmlError::Call {
        call,
        code: Code::FUNCTION_NOT_FOUND,
    })
}

/// Calls one table entry; every error names the function.
macro_rules! call {
    ($self:ident . $field:ident ( $($argument:expr),* $(,)? ), $name:literal) => {{
        let function = need($name, $self.table.$field)?;
        // SAFETY: a session is open for as long as `Nvml` lives; handles come
        // from this session; every pointer is to a local of the type and size
        // that the function writes, alive over the call.
        let code = unsafe { function($($argument),*) };
        status($name, code)
    }};
}

/// Turns "this figure does not exist here" into `None`.
fn optional<T>(result: Result<T, NvmlError>) -> Result<Option<T>, NvmlError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) => match error.call() {
            Some((_, code)) if !code.is_driver_lost() && code != Code::GPU_IS_LOST => Ok(None),
            _ => Err(error),
        },
    }
}

/// The argument for a group, and the text that it points to.
fn limits(call: &'static str, folder: &Path) -> Result<(std::ffi::CString, MemoryLimits), NvmlError> {
    use std::os::unix::ffi::OsStrExt as _;
    let name = std::ffi::CString::new(folder.as_os_str().as_bytes()).map_err(|_| NvmlError::Text { call })?;
    let limits = MemoryLimits {
        group: name.as_ptr(),
        soft: 0,
        hard: 0,
        used: 0,
    };
    Ok((name, limits))
}

/// A card with its handle, or why it cannot be named.
pub type OneCard = Result<(Device, CardFacts), NvmlError>;

/// An event of one card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// UUID of the card; `None` when the driver cannot say.
    pub card: Option<String>,
    /// The XID; `None` for an event of another kind.
    pub xid: Option<u64>,
}

/// An open session. Closed when dropped.
pub struct Nvml {
    table: Table,
    events: Option<Handle>,
    sysfs: PathBuf,
    // Last, so that it is unloaded after everything that points into it.
    _library: Library,
}

// SAFETY: the library may be called from any thread; `Nvml` is moved to one
// thread and not shared.
unsafe impl Send for Nvml {}

impl fmt::Debug for Nvml {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nvml").finish_non_exhaustive()
    }
}

impl Nvml {
    /// Finds the library below `root`, else by the loader when the root is `/`,
    /// and opens a session. NUMA nodes are read below `sysfs`, usually `/sys`.
    ///
    /// # Errors
    /// No library, a library that does not load, or a driver that does not
    /// answer.
    pub fn open(root: &DriverRoot, sysfs: &Path) -> Result<Self, NvmlError> {
        let path = match root.library(LIBRARY) {
            Some(path) => path,
            None if root.here() == Path::new("/") => PathBuf::from(LIBRARY),
            None => {
                return Err(NvmlError::Absent {
                    root: root.here().to_owned(),
                });
            }
        };
        // SAFETY: loading runs the constructors of the vendor's library, which
        // is what an administrator asks for by naming the driver root.
        let library = match unsafe { Library::new(&path) } {
            Ok(library) => library,
            Err(_) if !path.is_absolute() => {
                return Err(NvmlError::Absent {
                    root: root.here().to_owned(),
                });
            }
            Err(source) => return Err(NvmlError::Load { path, source }),
        };
        let table = Table::load(&library);
        let init = need("nvmlInit_v2", table.init)?;
        // SAFETY: takes no arguments; may be called at any time.
        status("nvmlInit_v2", unsafe { init() })?;
        Ok(Self {
            table,
            events: None,
            sysfs: sysfs.to_owned(),
            _library: library,
        })
    }

    /// Version text of the driver, `535.104.05`.
    ///
    /// # Errors
    /// The driver's.
    pub fn driver_version(&self) -> Result<String, NvmlError> {
        let mut text = [0; 96];
        call!(self.driver_version(text.as_mut_ptr(), 96), "nvmlSystemGetDriverVersion")?;
        read_text("nvmlSystemGetDriverVersion", &text)
    }

    /// All cards with their handles, by index. A card that cannot even be
    /// named is an `Err` in its place.
    ///
    /// # Errors
    /// When the cards cannot be counted.
    pub fn cards(&self) -> Result<Vec<OneCard>, NvmlError> {
        let mut count = 0;
        call!(self.count(&raw mut count), "nvmlDeviceGetCount_v2")?;
        if count > CARDS_MAX {
            return Err(NvmlError::TooMany(count));
        }
        Ok((0..count).map(|index| self.card(index)).collect())
    }

    /// Number and UUIDs of the cards: cheap enough to ask again and again.
    ///
    /// # Errors
    /// When the cards cannot be counted.
    pub fn uuids(&self) -> Result<Vec<Option<String>>, NvmlError> {
        let mut count = 0;
        call!(self.count(&raw mut count), "nvmlDeviceGetCount_v2")?;
        if count > CARDS_MAX {
            return Err(NvmlError::TooMany(count));
        }
        Ok((0..count)
            .map(|index| self.device(index).and_then(|device| self.uuid(device)).ok())
            .collect())
    }

    fn device(&self, index: u32) -> Result<Device, NvmlError> {
        let mut handle = std::ptr::null_mut();
        call!(self.by_index(index, &raw mut handle), "nvmlDeviceGetHandleByIndex_v2")?;
        Ok(Device(handle))
    }

    fn uuid(&self, device: Device) -> Result<String, NvmlError> {
        let mut text = [0; 96];
        call!(self.uuid(device.0, text.as_mut_ptr(), 96), "nvmlDeviceGetUUID")?;
        read_text("nvmlDeviceGetUUID", &text)
    }

    fn card(&self, index: u32) -> Result<(Device, CardFacts), NvmlError> {
        let device = self.device(index)?;
        let uuid = self.uuid(device)?;
        let mut text = [0; 96];
        call!(self.name(device.0, text.as_mut_ptr(), 96), "nvmlDeviceGetName")?;
        let model = read_text("nvmlDeviceGetName", &text)?;
        let pci_bus_id = optional(self.pci(device))?.unwrap_or_default();
        let memory = optional(self.memory(device))?;
        let facts = CardFacts {
            index,
            uuid,
            model,
            minor: optional(self.minor(device))?,
            memory_total_bytes: memory.map(|(total, _)| total),
            memory_reserved_bytes: memory.and_then(|(_, reserved)| reserved),
            numa: self.numa(device, &pci_bus_id),
            compute_capability: optional(self.capability(device))?,
            mig: optional(self.mig_mode(device))?.unwrap_or(MigMode::Unsupported),
            mig_profiles: self.mig_profiles(device),
            pci_bus_id,
        };
        Ok((device, facts))
    }

    fn minor(&self, device: Device) -> Result<u32, NvmlError> {
        let mut minor = 0;
        call!(self.minor(device.0, &raw mut minor), "nvmlDeviceGetMinorNumber")?;
        Ok(minor)
    }

    fn capability(&self, device: Device) -> Result<(u32, u32), NvmlError> {
        const CALL: &str = "nvmlDeviceGetCudaComputeCapability";
        let (mut major, mut minor) = (0, 0);
        call!(
            self.capability(device.0, &raw mut major, &raw mut minor),
            "nvmlDeviceGetCudaComputeCapability"
        )?;
        let word = |value| {
            u32::try_from(value).map_err(|_| NvmlError::Call {
                call: CALL,
                code: Code::NOT_SUPPORTED,
            })
        };
        Ok((word(major)?, word(minor)?))
    }

    fn pci(&self, device: Device) -> Result<String, NvmlError> {
        let mut info = PciInfo::empty();
        call!(self.pci(device.0, &raw mut info), "nvmlDeviceGetPciInfo_v3")?;
        read_text("nvmlDeviceGetPciInfo_v3", &info.bus_id)
    }

    /// Total bytes, and the driver's part where the driver says it.
    fn memory(&self, device: Device) -> Result<(u64, Option<u64>), NvmlError> {
        let mut second = MemoryV2 {
            version: versioned::<MemoryV2>(2),
            ..MemoryV2::default()
        };
        let detailed = call!(self.memory_v2(device.0, &raw mut second), "nvmlDeviceGetMemoryInfo_v2");
        if let Ok(()) = detailed {
            return Ok((second.total, Some(second.reserved)));
        }
        let mut first = Memory::default();
        call!(self.memory(device.0, &raw mut first), "nvmlDeviceGetMemoryInfo")?;
        Ok((first.total, None))
    }

    fn numa(&self, device: Device, pci_bus_id: &str) -> Option<u32> {
        if let Some(node) = sysfs_numa(&self.sysfs, pci_bus_id) {
            return node;
        }
        let node = self.numa_by_driver(device).ok()?;
        // The driver's "none" is all ones.
        (node != u32::MAX).then_some(node)
    }

    fn numa_by_driver(&self, device: Device) -> Result<u32, NvmlError> {
        let mut node = 0;
        call!(self.numa(device.0, &raw mut node), "nvmlDeviceGetNumaNodeId")?;
        Ok(node)
    }

    fn mig_mode(&self, device: Device) -> Result<MigMode, NvmlError> {
        let (mut current, mut pending) = (0, 0);
        call!(
            self.mig_mode(device.0, &raw mut current, &raw mut pending),
            "nvmlDeviceGetMigMode"
        )?;
        Ok(match (current, pending) {
            (0, 0) => MigMode::Disabled,
            (1, 1) => MigMode::Enabled,
            _ => MigMode::Pending,
        })
    }

    fn mig_profiles(&self, device: Device) -> Vec<MigProfile> {
        (0..PROFILES)
            .filter_map(|number| self.mig_profile(device, number).ok())
            .collect()
    }

    fn mig_profile(&self, device: Device, number: u32) -> Result<MigProfile, NvmlError> {
        let mut second = ProfileInfoV2::empty();
        let named = call!(
            self.profile_v(device.0, number, &raw mut second),
            "nvmlDeviceGetGpuInstanceProfileInfoV"
        );
        let mut profile = if named.is_ok() {
            let name = read_text("nvmlDeviceGetGpuInstanceProfileInfoV", &second.name)?;
            MigProfile {
                id: second.id,
                name: name.trim_start_matches("MIG ").to_owned(),
                memory_mib: second.memory_mib,
                slice_count: second.slice_count,
                instance_count: second.instance_count,
                multiprocessors: second.multiprocessor_count,
                placements: Vec::new(),
            }
        } else {
            let mut first = ProfileInfo::default();
            call!(
                self.profile(device.0, number, &raw mut first),
                "nvmlDeviceGetGpuInstanceProfileInfo"
            )?;
            MigProfile {
                id: first.id,
                // The vendor rounds to whole GiB in its names.
                name: format!("{}g.{}gb", first.slice_count, (first.memory_mib + 512) / 1024),
                memory_mib: first.memory_mib,
                slice_count: first.slice_count,
                instance_count: first.instance_count,
                multiprocessors: first.multiprocessor_count,
                placements: Vec::new(),
            }
        };
        profile.placements = self.mig_placements(device, profile.id).unwrap_or_default();
        Ok(profile)
    }

    fn mig_placements(&self, device: Device, profile: u32) -> Result<Vec<MigPlacement>, NvmlError> {
        const CALL: &str = "nvmlDeviceGetGpuInstancePossiblePlacements_v2";
        let mut count = 0;
        call!(
            self.placements(device.0, profile, std::ptr::null_mut(), &raw mut count),
            "nvmlDeviceGetGpuInstancePossiblePlacements_v2"
        )?;
        let mut places = [Placement::default(); PLACEMENTS_MAX];
        let fits = usize::try_from(count).is_ok_and(|count| count <= PLACEMENTS_MAX);
        if !fits {
            return Err(NvmlError::Call {
                call: CALL,
                code: Code::INSUFFICIENT_SIZE,
            });
        }
        call!(
            self.placements(device.0, profile, places.as_mut_ptr(), &raw mut count),
            "nvmlDeviceGetGpuInstancePossiblePlacements_v2"
        )?;
        let count = usize::try_from(count).unwrap_or(0).min(PLACEMENTS_MAX);
        let mut out: Vec<_> = places
            .iter()
            .take(count)
            .map(|place| MigPlacement {
                start: place.start,
                size: place.size,
            })
            .collect();
        out.sort_unstable();
        Ok(out)
    }

    /// Whether the card answers. The cheapest call that reaches the card.
    ///
    /// # Errors
    /// The driver's word. A figure that does not exist here is an answer.
    pub fn probe(&self, device: Device) -> Result<(), NvmlError> {
        optional(self.memory(device))?;
        Ok(())
    }

    /// The card's handle, asked afresh.
    ///
    /// # Errors
    /// When the card is gone.
    pub fn device_by_uuid(&self, uuid: &str) -> Result<Device, NvmlError> {
        let text = std::ffi::CString::new(uuid).map_err(|_| NvmlError::Text {
            call: "nvmlDeviceGetHandleByUUID",
        })?;
        let mut handle = std::ptr::null_mut();
        call!(
            self.by_uuid(text.as_ptr(), &raw mut handle),
            "nvmlDeviceGetHandleByUUID"
        )?;
        Ok(Device(handle))
    }

    /// Bytes of a card that nobody uses.
    ///
    /// # Errors
    /// The driver's word.
    pub fn free_bytes(&self, device: Device) -> Result<u64, NvmlError> {
        let mut memory = Memory::default();
        call!(self.memory(device.0, &raw mut memory), "nvmlDeviceGetMemoryInfo")?;
        Ok(memory.free)
    }

    /// All memory of a card in bytes.
    ///
    /// # Errors
    /// The driver's word.
    pub fn total_bytes(&self, device: Device) -> Result<u64, NvmlError> {
        let mut memory = Memory::default();
        call!(self.memory(device.0, &raw mut memory), "nvmlDeviceGetMemoryInfo")?;
        Ok(memory.total)
    }

    /// What the driver holds the control group at `folder` to; nothing when no limit is set there.
    ///
    /// # Errors
    /// The driver's word: drivers before branch 615 and some systems have no such limits.
    pub fn group_memory(&self, device: Device, folder: &Path) -> Result<Option<GroupMemory>, NvmlError> {
        const CALL: &str = "nvmlDeviceGetMemoryLimits_v1";
        let (_name, mut limits) = limits(CALL, folder)?;
        match call!(
            self.get_limits(device.0, &raw mut limits),
            "nvmlDeviceGetMemoryLimits_v1"
        ) {
            Ok(()) => Ok(Some(GroupMemory {
                soft: limits.soft,
                hard: limits.hard,
                used: limits.used,
            })),
            Err(error) if error.call().is_some_and(|(_, code)| code == Code::NOT_FOUND) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Holds the control group at `folder` to `hard` bytes of a card, of which `soft` are guaranteed; soft 0 and hard
    /// [`NO_LIMIT`] end it.
    ///
    /// # Errors
    /// The driver's word.
    pub fn hold_group(&self, device: Device, folder: &Path, soft: u64, hard: u64) -> Result<(), NvmlError> {
        let (_name, mut limits) = limits("nvmlDeviceSetMemoryLimits_v1", folder)?;
        (limits.soft, limits.hard) = (soft, hard);
        call!(
            self.set_limits(device.0, &raw mut limits),
            "nvmlDeviceSetMemoryLimits_v1"
        )
    }

    /// Pair scores of the cards.
    #[must_use]
    pub fn topology(&self, cards: &[(Device, &CardFacts)]) -> PairScores {
        let nodes: Vec<_> = cards
            .iter()
            .map(|(device, facts)| topology::Node {
                uuid: facts.uuid.clone(),
                pci: facts.pci_bus_id.to_ascii_lowercase(),
                links: self.links(*device),
            })
            .collect();
        topology::scores(&nodes, |i, j| {
            let (a, b) = (cards.get(i)?.0, cards.get(j)?.0);
            self.ancestor(a, b).ok().and_then(Ancestor::from_driver)
        })
    }

    fn ancestor(&self, a: Device, b: Device) -> Result<u32, NvmlError> {
        let mut level = 0;
        call!(
            self.ancestor(a.0, b.0, &raw mut level),
            "nvmlDeviceGetTopologyCommonAncestor"
        )?;
        Ok(level)
    }

    fn links(&self, device: Device) -> Links {
        const SWITCH: u32 = 2;
        let mut links = Links {
            direct: BTreeMap::new(),
            switch: 0,
        };
        for link in 0..LINKS {
            match self.link(device, link) {
                Ok(Some((SWITCH, _))) => links.switch += 1,
                Ok(Some((_, pci))) => *links.direct.entry(pci).or_default() += 1,
                Ok(None) | Err(_) => {}
            }
        }
        links
    }

    /// Kind and PCI id of the other end of an active link.
    fn link(&self, device: Device, link: u32) -> Result<Option<(u32, String)>, NvmlError> {
        let mut active = 0;
        call!(
            self.link_state(device.0, link, &raw mut active),
            "nvmlDeviceGetNvLinkState"
        )?;
        if active == 0 {
            return Ok(None);
        }
        let mut kind = 0;
        let typed = call!(
            self.link_remote_type(device.0, link, &raw mut kind),
            "nvmlDeviceGetNvLinkRemoteDeviceType"
        );
        let mut info = PciInfo::empty();
        call!(
            self.link_remote_pci(device.0, link, &raw mut info),
            "nvmlDeviceGetNvLinkRemotePciInfo_v2"
        )?;
        let pci = read_text("nvmlDeviceGetNvLinkRemotePciInfo_v2", &info.bus_id)?;
        Ok(Some((if typed.is_ok() { kind } else { 0 }, pci.to_ascii_lowercase())))
    }

    /// Listens for events of `cards`. A card that cannot be listened to is
    /// named in the answer with the reason; a card that has no events is not.
    ///
    /// # Errors
    /// When there can be no listening at all.
    pub fn listen(&mut self, cards: &[(Device, &str)]) -> Result<Vec<(String, NvmlError)>, NvmlError> {
        let mut set = std::ptr::null_mut();
        call!(self.set_create(&raw mut set), "nvmlEventSetCreate")?;
        self.close_events();
        self.events = Some(set);
        let mut failed = Vec::new();
        for (device, uuid) in cards {
            if let Err(error) = self.listen_to(*device, set) {
                let nothing = error
                    .call()
                    .is_some_and(|(_, code)| code == Code::NOT_SUPPORTED || code == Code::FUNCTION_NOT_FOUND);
                if !nothing {
                    failed.push(((*uuid).to_owned(), error));
                }
            }
        }
        Ok(failed)
    }

    fn listen_to(&self, device: Device, set: Handle) -> Result<(), NvmlError> {
        let mut supported = 0;
        call!(
            self.supported_events(device.0, &raw mut supported),
            "nvmlDeviceGetSupportedEventTypes"
        )?;
        let wanted = (EVENT_XID | EVENT_DOUBLE_BIT_ECC) & supported;
        call!(self.register_events(device.0, wanted, set), "nvmlDeviceRegisterEvents")
    }

    /// Waits up to `milliseconds` for an event; `None` when there was none.
    ///
    /// # Errors
    /// The driver's; without [`Self::listen`] before, "not initialised".
    pub fn wait(&self, milliseconds: u32) -> Result<Option<Event>, NvmlError> {
        const CALL: &str = "nvmlEventSetWait_v2";
        let Some(set) = self.events else {
            return Err(NvmlError::Call {
                call: CALL,
                code: Code::UNINITIALIZED,
            });
        };
        let mut data = EventData {
            device: std::ptr::null_mut(),
            event_type: 0,
            event_data: 0,
            gpu_instance: 0,
            compute_instance: 0,
        };
        match call!(self.set_wait(set, &raw mut data, milliseconds), "nvmlEventSetWait_v2") {
            Ok(()) => {}
            Err(NvmlError::Call {
                code: Code::TIMEOUT, ..
            }) => return Ok(None),
            Err(error) => return Err(error),
        }
        let card = if data.device.is_null() {
            None
        } else {
            self.uuid(Device(data.device)).ok()
        };
        let xid = (data.event_type == EVENT_XID).then_some(data.event_data);
        Ok(Some(Event { card, xid }))
    }

    fn close_events(&mut self) {
        if let (Some(set), Some(free)) = (self.events.take(), self.table.set_free) {
            // SAFETY: the set was made by this session and is not used again.
            let _code = unsafe { free(set) };
        }
    }
}

impl Drop for Nvml {
    fn drop(&mut self) {
        self.close_events();
        if let Some(shutdown) = self.table.shutdown {
            // SAFETY: closes the session that `open` opened; no handle is used
            // afterwards.
            let _code = unsafe { shutdown() };
        }
    }
}

impl PciInfo {
    fn empty() -> Self {
        Self {
            bus_id_legacy: [0; 16],
            domain: 0,
            bus: 0,
            device: 0,
            pci_device_id: 0,
            pci_subsystem_id: 0,
            bus_id: [0; 32],
        }
    }
}

impl ProfileInfoV2 {
    fn empty() -> Self {
        Self {
            version: versioned::<Self>(2),
            id: 0,
            is_p2p_supported: 0,
            slice_count: 0,
            instance_count: 0,
            multiprocessor_count: 0,
            copy_engine_count: 0,
            decoder_count: 0,
            encoder_count: 0,
            jpeg_count: 0,
            ofa_count: 0,
            memory_mib: 0,
            name: [0; 96],
        }
    }
}

/// Text up to its zero; a text without one fills the buffer.
fn read_text(call: &'static str, buffer: &[c_char]) -> Result<String, NvmlError> {
    // SAFETY: `c_char` and `u8` have one layout; length and lifetime are kept.
    let bytes = unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), buffer.len()) };
    let text = match CStr::from_bytes_until_nul(bytes) {
        Ok(text) => text.to_bytes(),
        Err(_) => bytes,
    };
    std::str::from_utf8(text)
        .map(str::to_owned)
        .map_err(|_| NvmlError::Text { call })
}

/// The kernel's word on a card's NUMA node: `None` when it has no such card,
/// `Some(None)` when the card has no node.
#[expect(clippy::option_option, reason = "absent and none are different answers")]
fn sysfs_numa(sysfs: &Path, pci_bus_id: &str) -> Option<Option<u32>> {
    // The library writes an eight-digit domain, the kernel a four-digit one.
    let id = pci_bus_id.to_ascii_lowercase();
    let id = match id.split_once(':') {
        Some((domain, rest)) if domain.len() > 4 => {
            format!("{}:{rest}", &domain[domain.len() - 4..])
        }
        _ => id,
    };
    if id.is_empty() || id.contains('/') {
        return None;
    }
    let path = sysfs.join("bus/pci/devices").join(id).join("numa_node");
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.trim().parse::<u32>().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_sizes_of_the_vendors_header() {
        assert_eq!(size_of::<PciInfo>(), 68);
        assert_eq!(size_of::<Memory>(), 24);
        assert_eq!(size_of::<MemoryV2>(), 40);
        assert_eq!(size_of::<EventData>(), 32);
        assert_eq!(size_of::<ProfileInfo>(), 48);
        assert_eq!(size_of::<ProfileInfoV2>(), 152);
        assert_eq!(versioned::<MemoryV2>(2), 0x0200_0028);
    }

    #[test]
    fn numa_is_read_with_the_kernels_form_of_the_id() {
        let folder = tempfile::tempdir().unwrap();
        let card = folder.path().join("bus/pci/devices/0000:3b:00.0");
        std::fs::create_dir_all(&card).unwrap();
        std::fs::write(card.join("numa_node"), "1\n").unwrap();
        assert_eq!(sysfs_numa(folder.path(), "00000000:3B:00.0"), Some(Some(1)));
        std::fs::write(card.join("numa_node"), "-1\n").unwrap();
        assert_eq!(sysfs_numa(folder.path(), "00000000:3B:00.0"), Some(None));
        assert_eq!(sysfs_numa(folder.path(), "00000000:3C:00.0"), None);
        assert_eq!(sysfs_numa(folder.path(), ""), None);
    }

    #[test]
    fn a_root_without_the_library_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let root = DriverRoot::new(folder.path(), folder.path());
        let error = Nvml::open(&root, Path::new("/sys")).unwrap_err();
        assert!(error.to_string().contains("install the driver"), "{error}");
    }
}
