//! Layout of the shared state file.
//!
//! Descriptions are written once by `install` and never change; everything else is an atomic.
//! Counters that one process writes for itself are plain stores; words that several processes
//! write are compare-and-swap loops.

use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64};

/// First eight bytes of the file.
pub(crate) const MAGIC: u64 = u64::from_le_bytes(*b"TSRASIM\0");
/// Version of this layout; a library refuses a file of another version.
pub const LAYOUT_VERSION: u32 = 2;
/// Most cards of one machine.
pub const MAX_CARDS: usize = 16;
/// Most GPU instances of one card.
pub const MAX_INSTANCES: usize = 7;
/// Most instance profiles of one card.
pub const MAX_PROFILES: usize = 12;
/// Most processes that may use the driver at once.
pub const MAX_SLOTS: usize = 4096;
/// Accounting unit of device memory in bytes.
pub const UNIT: u64 = 4096;
/// Samples of 1/6 s that are kept.
pub(crate) const RING: usize = 64;
/// Memory pools of a card: the whole card and its instances.
pub(crate) const POOLS_PER_CARD: usize = MAX_INSTANCES + 1;
/// Fault rules that may stand at once.
pub(crate) const MAX_FAULTS: usize = 16;
/// Entry points that a driver may lack.
pub(crate) const MAX_WITHOUT: usize = 64;
/// Events that are kept for waiters.
pub(crate) const MAX_EVENTS: usize = 256;

/// Memory limits of control groups that may stand at once.
pub(crate) const MAX_LIMITS: usize = 256;
/// Control groups of one process that are remembered: its own in every hierarchy, and their parents.
pub(crate) const MAX_GROUPS: usize = 24;
/// Kinds of broken rules that the machine counts.
pub(crate) const FLAWS: usize = 4;

/// One pool of device memory: a whole card or one GPU instance of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pool {
    /// Card index in the machine.
    pub card: usize,
    /// Nothing for the whole card, else the instance's position in the card's table.
    pub instance: Option<usize>,
}

impl Pool {
    /// The pool of a card that is not partitioned.
    #[must_use]
    pub fn whole(card: usize) -> Self {
        Self { card, instance: None }
    }

    pub(crate) fn word(self) -> usize {
        self.card * POOLS_PER_CARD + self.instance.map_or(0, |i| i + 1)
    }
}

/// One instance profile of a card model.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ProfileDesc {
    /// Name such as `1g.10gb`, zero-terminated.
    pub name: [u8; 24],
    /// Number by which the management library names the slice count (0 is one slice).
    pub number: u32,
    /// Identifier that creation takes.
    pub id: u32,
    /// Compute slices.
    pub slices: u32,
    /// Memory slices one instance covers.
    pub size: u32,
    /// Bit n set: an instance may start at memory slice n.
    pub starts: u32,
    /// Most instances of it on one card.
    pub count: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Streaming multiprocessors.
    pub sms: u32,
    /// Copy engines.
    pub copy_engines: u32,
    /// Video decoders.
    pub decoders: u32,
    /// Media extensions, 0 or 1.
    pub media: u32,
}

/// What never changes about a card.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CardDesc {
    /// Identifier.
    pub uuid: [u8; 16],
    /// Product name, zero-terminated.
    pub name: [u8; 64],
    /// Serial number in digits, zero-terminated.
    pub serial: [u8; 32],
    /// All memory in bytes.
    pub memory_bytes: u64,
    /// Part of it that the driver keeps.
    pub reserved_bytes: u64,
    /// What one process's context takes.
    pub context_bytes: u64,
    /// Streaming multiprocessors.
    pub sms: u32,
    /// Compute capability, major.
    pub capability_major: u32,
    /// Compute capability, minor.
    pub capability_minor: u32,
    /// NUMA node, -1 when the machine has none.
    pub numa: i32,
    /// Number of the device file.
    pub minor: u32,
    /// PCI domain.
    pub pci_domain: u32,
    /// PCI bus.
    pub pci_bus: u32,
    /// PCI device.
    pub pci_device: u32,
    /// PCI device and vendor id.
    pub pci_device_id: u32,
    /// PCI subsystem id.
    pub pci_subsystem_id: u32,
    /// Architecture number of the management library.
    pub architecture: u32,
    /// Brand number of the management library.
    pub brand: u32,
    /// Power limit in milliwatts.
    pub power_limit_mw: u32,
    /// Largest SM clock in MHz.
    pub clock_sm_mhz: u32,
    /// Memory clock in MHz.
    pub clock_memory_mhz: u32,
    /// Memory bus width in bits.
    pub bus_width: u32,
    /// Level-2 cache in bytes.
    pub l2_bytes: u32,
    /// Number of NVLinks of the model.
    pub links: u32,
    /// For each link: card index at the other end, 254 for a switch, 255 for none.
    pub link_peer: [u8; 20],
    /// Profiles in use of `profiles`; 0 for a model without partitions.
    pub profiles_len: u32,
    /// Instance profiles.
    pub profiles: [ProfileDesc; MAX_PROFILES],
    /// Whether partitioning is on when the machine starts.
    pub mig_at_start: u32,
    /// Keeps the size a multiple of eight.
    pub pad: u32,
}

/// What changes about a card.
#[repr(C)]
#[derive(Debug)]
pub struct CardState {
    /// 1 while partitioning is on.
    pub mig_on: AtomicU32,
    /// 0 healthy, 1 lost from the bus.
    pub lost: AtomicU32,
    /// Last XID, 0 for none.
    pub last_xid: AtomicU32,
    pub(crate) persistence: AtomicU32,
    /// GPU instances, eight bits each: profile position + 1 in the high five bits, start in the low three.
    pub(crate) instances: AtomicU64,
    /// For each GPU instance its compute instances, packed like `instances`.
    pub(crate) compute: [AtomicU64; MAX_INSTANCES + 1],
    /// Time in ns up to which the card's work is planned.
    pub(crate) busy_until: AtomicU64,
    /// Work of all time in ns.
    pub(crate) work_ns: AtomicU64,
    pub(crate) ring: [AtomicU64; RING],
}

/// One process's part of one card.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct SlotCard {
    /// Units held (high half) and number of the last operation that counts (low half).
    pub(crate) entry: AtomicU64,
    /// Change (high half, signed) and number (low half) of the operation under way.
    pub(crate) pend: AtomicU64,
    /// Word of the pool that `entry` counts in.
    pub(crate) pool: AtomicU32,
    pub(crate) contexts: AtomicU32,
    pub(crate) context_bytes: AtomicU64,
    pub(crate) work_ns: AtomicU64,
    pub(crate) launches: AtomicU64,
    pub(crate) blocks: AtomicU64,
    /// Units that were taken off the card by a checkpoint, plus one; 0 while there is none.
    pub(crate) parked: AtomicU64,
    pub(crate) ring: [AtomicU64; RING],
}

/// One process.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Slot {
    /// Generation (from bit 1) and bit 0: in use.
    pub(crate) state: AtomicU64,
    /// Pid in the process's own namespace.
    pub(crate) pid: AtomicI32,
    /// State of a checkpoint, as the driver numbers it.
    pub(crate) checkpoint: AtomicU32,
    /// Earliest time that one of its threads waits for; 0 while none waits.
    pub(crate) waits_for: AtomicU64,
    /// Calls of the driver so far, counted while the clock is virtual.
    pub(crate) calls: AtomicU64,
    /// Calls under way.
    pub(crate) inside: AtomicU64,
    /// Control groups that it lives in, 0 for none.
    pub(crate) groups: [AtomicU64; MAX_GROUPS],
    pub(crate) cards: [SlotCard; MAX_CARDS],
}

/// One fault rule.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct FaultRule {
    /// 0 free, 1 being written, 2 in force.
    pub(crate) state: AtomicU32,
    pub(crate) code: AtomicI32,
    /// Call number, counted from 1, at which the rule strikes.
    pub(crate) nth: AtomicU64,
    /// How many calls it strikes, from the n-th on.
    pub(crate) times: AtomicU64,
    pub(crate) calls: AtomicU64,
    pub(crate) delay_us: AtomicU64,
    /// Name of the entry, eight bytes a word, zero-filled.
    pub(crate) name: [AtomicU64; 8],
}

/// A memory limit of one control group on one card.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct LimitRule {
    /// 0 free, 1 being written, 2 in force.
    pub(crate) state: AtomicU32,
    pub(crate) card: AtomicU32,
    /// Identity of the group.
    pub(crate) group: AtomicU64,
    pub(crate) soft: AtomicU64,
    pub(crate) hard: AtomicU64,
    /// Folder of the group as it was named, eight bytes a word, zero-filled.
    pub(crate) path: [AtomicU64; 64],
}

/// One event. A reader takes it when `seq` is the number it looks for before and after.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct EventWord {
    pub(crate) seq: AtomicU64,
    /// Card (high half) and data (low half).
    pub(crate) body: AtomicU64,
    /// Event type bit of the management library.
    pub(crate) kind: AtomicU64,
}

/// The whole file.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) magic: u64,
    pub(crate) version: u32,
    pub(crate) cards_len: u32,
    pub(crate) size: u64,
    /// 1000 * major + 10 * minor.
    pub(crate) cuda_version: u32,
    pub(crate) pad: u32,
    pub(crate) granule_bytes: u64,
    pub(crate) slice_us: u64,
    pub(crate) kernel_us: u64,
    pub(crate) in_flight_max: u64,
    pub(crate) driver: [u8; 32],
    /// Hashes of the entry points that this driver lacks, zero-filled.
    pub(crate) without: [u64; MAX_WITHOUT],
    pub(crate) descs: [CardDesc; MAX_CARDS],
    /// Common ancestor of two cards: 0, 10, 20, 30, 40, 50 as the management library counts.
    pub(crate) topology: [[u8; MAX_CARDS]; MAX_CARDS],
    /// Real time in ns at which a scaled clock started.
    pub(crate) clock_base: u64,
    /// Speed of a scaled clock in thousandths.
    pub(crate) clock_scale: u64,
    /// Host time of one launch in ns, where the clock is virtual.
    pub(crate) launch_ns: u64,
    /// Bytes that the link to the host moves in a microsecond; 0 when copies take no time.
    pub(crate) link_bytes_us: u64,
    /// 1 while a multi-process server runs.
    pub(crate) mps: u32,
    /// What a call for memory limits answers; 0 where the driver has them.
    pub(crate) limits_answer: i32,

    /// 0: wall clock; 1: `clock_ns` is the time; 2: scaled wall clock; 3: virtual.
    pub(crate) clock_mode: AtomicU32,
    /// Highest slot ever used, plus one.
    pub(crate) slots_high: AtomicU32,
    pub(crate) clock_ns: AtomicU64,
    /// Return code of every management call, 0 for none.
    pub(crate) nvml_fault: AtomicI32,
    pub(crate) faults_armed: AtomicU32,
    pub(crate) event_next: AtomicU64,
    /// Word that waiters of events sleep on.
    pub(crate) event_bell: AtomicU32,
    /// Oddities of the management library: see `Odd`.
    pub(crate) odd: AtomicU32,
    /// Limits in force.
    pub(crate) limits_armed: AtomicU32,
    /// Word that waiters of the virtual clock sleep on.
    pub(crate) clock_bell: AtomicU32,
    /// Broken rules by kind.
    pub(crate) flaws: [AtomicU64; FLAWS],
    pub(crate) limits: [LimitRule; MAX_LIMITS],
    pub(crate) faults: [FaultRule; MAX_FAULTS],
    pub(crate) events: [EventWord; MAX_EVENTS],
    /// Units in use (high 32), slot of the last change (12), number of it (20).
    pub(crate) pools: [AtomicU64; MAX_CARDS * POOLS_PER_CARD],
    pub(crate) cards: [CardState; MAX_CARDS],
    pub(crate) slots: [Slot; MAX_SLOTS],
}

/// Hash of an entry point's name (FNV-1a), never zero.
pub(crate) fn name_hash(name: &str) -> u64 {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash.max(1)
}

/// Text of a zero-terminated field.
pub(crate) fn text(bytes: &[u8]) -> &str {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    std::str::from_utf8(&bytes[..end]).unwrap_or("?")
}

/// Zero-filled field of a text, cut where it does not fit.
pub(crate) fn field<const N: usize>(text: &str) -> [u8; N] {
    let mut out = [0u8; N];
    let len = text.len().min(N - 1);
    out[..len].copy_from_slice(&text.as_bytes()[..len]);
    out
}

impl CardDesc {
    /// Product name.
    #[must_use]
    pub fn name(&self) -> &str {
        text(&self.name)
    }

    /// Serial number.
    #[must_use]
    pub fn serial(&self) -> &str {
        text(&self.serial)
    }

    /// Bytes that processes can allocate.
    #[must_use]
    pub fn usable_bytes(&self) -> u64 {
        self.memory_bytes - self.reserved_bytes
    }

    /// Instance profiles of the model, none when it cannot be partitioned.
    #[must_use]
    pub fn profiles(&self) -> &[ProfileDesc] {
        &self.profiles[..(self.profiles_len as usize).min(MAX_PROFILES)]
    }

    /// Bus address as the driver prints it, `00000000:3B:00.0`.
    #[must_use]
    pub fn bus_id(&self) -> String {
        format!("{:08X}:{:02X}:{:02X}.0", self.pci_domain, self.pci_bus, self.pci_device)
    }
}

impl ProfileDesc {
    /// Name of the profile, such as `3g.20gb`.
    #[must_use]
    pub fn name(&self) -> &str {
        text(&self.name)
    }
}
