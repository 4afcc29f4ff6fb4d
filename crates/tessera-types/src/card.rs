//! A card as its node registers it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{CardId, Cores, Extras, Keyword, Mib};

/// How a card is divided. The text is the vendor's; `hami-core` (a preloaded library holds the limits), `mig`
/// (hardware instances) and `mps` are known to the NVIDIA class.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CardMode(Arc<str>);

impl CardMode {
    /// The mode of this name.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(Arc::from(text))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Shared through the preloaded library.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        matches!(self.as_str(), "hami-core" | "")
    }

    /// Divided into hardware instances.
    #[must_use]
    pub fn is_mig(&self) -> bool {
        self.as_str() == "mig"
    }
}

impl Default for CardMode {
    fn default() -> Self {
        Self(Arc::from("hami-core"))
    }
}

impl fmt::Display for CardMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An interval of memory slices on a card in MIG mode: `start <= slice < start + size`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Placement {
    /// First slice.
    pub start: u32,
    /// Number of slices, at least 1.
    pub size: u32,
}

impl Placement {
    /// Whether the two intervals share a slice.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        u64::from(self.start) < u64::from(other.start) + u64::from(other.size)
            && u64::from(other.start) < u64::from(self.start) + u64::from(self.size)
    }
}

/// A hardware instance that a card can be cut into, as its driver reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigProfile {
    /// Such as `1g.5gb`.
    pub name: String,
    /// Memory of one instance.
    pub memory: Mib,
    /// Compute of one instance in percent of the largest profile.
    pub cores: Cores,
    /// Compute slices of one instance.
    pub slices: u32,
    /// Where an instance may lie.
    pub placements: Vec<Placement>,
}

/// One physical card as registered by its node. Immutable; what is in use of it is kept apart.
#[derive(Debug, Clone, PartialEq)]
pub struct Card {
    /// Stable identifier.
    pub id: CardId,
    /// The device class that serves the card.
    pub class: Keyword,
    /// Position on the node, for people and as the last tie-break.
    pub index: u32,
    /// Into how many slots the card is divided for counting.
    pub slots: u32,
    /// Memory that may be promised.
    pub memory: Mib,
    /// Compute that may be promised; 100 unless oversubscribed.
    pub cores: Cores,
    /// What the class counts besides, in its own positions.
    pub extra: Extras,
    /// Model name.
    pub model: Arc<str>,
    /// NUMA node; -1 if the node does not know.
    pub numa: i32,
    /// How the card is divided.
    pub mode: CardMode,
    /// Whether its node says that it works.
    pub healthy: bool,
    /// Profiles in MIG mode, otherwise empty.
    pub mig_profiles: Vec<MigProfile>,
    /// Link score to peers of the same node; a missing peer is 0.
    pub link_scores: BTreeMap<CardId, i64>,
    /// Name of the piece of hardware, where cards of several classes are views of the same one: while a view of one
    /// class is in use, those of the others are not given.
    pub twin: Option<Arc<str>>,
    /// What a class registers beyond the common members, by name. Only that class's module reads it.
    pub custom: BTreeMap<String, String>,
}
