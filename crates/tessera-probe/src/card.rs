//! Facts about a card, as the driver states them.

use std::fmt;

/// A possible position of a hardware instance on its card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MigPlacement {
    /// First memory slice.
    pub start: u32,
    /// Number of memory slices.
    pub size: u32,
}

/// A kind of hardware instance that the card can be cut into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigProfile {
    /// The driver's number.
    pub id: u32,
    /// Full name, `1g.10gb`, without the `MIG ` that some drivers put before it.
    pub name: String,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Compute slices.
    pub slice_count: u32,
    /// How many fit on an empty card.
    pub instance_count: u32,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Where it can be placed; empty when the driver does not say.
    pub placements: Vec<MigPlacement>,
}

/// Whether a card is cut into hardware instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MigMode {
    /// The card cannot be cut.
    Unsupported,
    /// It could be and is not.
    Disabled,
    /// It is.
    Enabled,
    /// A change waits for a reset of the card.
    Pending,
}

/// What is known about one card. Figures that the driver does not give are
/// `None`, which is never an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CardFacts {
    /// The driver's index, for people and for order.
    pub index: u32,
    /// `GPU-` and 36 characters.
    pub uuid: String,
    /// Product name as the driver says it.
    pub model: String,
    /// Number of the device file.
    pub minor: Option<u32>,
    /// `00000000:3B:00.0`; empty when unknown.
    pub pci_bus_id: String,
    /// All memory in bytes, the driver's own part included.
    pub memory_total_bytes: Option<u64>,
    /// Memory that the driver keeps for itself, in bytes.
    pub memory_reserved_bytes: Option<u64>,
    /// NUMA node.
    pub numa: Option<u32>,
    /// Major and minor compute capability.
    pub compute_capability: Option<(u32, u32)>,
    /// Hardware instance mode.
    pub mig: MigMode,
    /// Hardware instance profiles; empty when unsupported.
    pub mig_profiles: Vec<MigProfile>,
}

impl CardFacts {
    /// Whole MiB of the card's memory.
    #[must_use]
    pub fn memory_total_mib(&self) -> Option<u64> {
        self.memory_total_bytes.map(|bytes| bytes >> 20)
    }
}

/// A card with its health.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CardStatus {
    /// Facts; refreshed when the driver is opened again.
    pub facts: CardFacts,
    /// Why the card must not be handed out; `None` for a card in health.
    pub sick: Option<Sickness>,
}

/// Why a card is not handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sickness {
    /// A driver event.
    Xid(u64),
    /// The driver does not answer for the card.
    Unreachable {
        /// The failed call and the driver's word.
        error: String,
    },
    /// The driver as a whole is gone.
    DriverLost,
}

impl fmt::Display for Sickness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Xid(xid) => write!(f, "the driver reported XID {xid}"),
            Self::Unreachable { error } => write!(f, "the card does not answer ({error})"),
            Self::DriverLost => f.write_str("the driver does not answer"),
        }
    }
}
