//! What a pod was given.

use serde::{Deserialize, Serialize};

use crate::{CardId, Cores, Extras, Keyword, Mib, Placement, SmallMap};

/// The part of one card that one container holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Share {
    /// Which card.
    pub card: CardId,
    /// Its class.
    pub class: Keyword,
    /// Memory held.
    pub memory: Mib,
    /// Compute held.
    pub cores: Cores,
    /// What the class counts besides.
    #[serde(default, skip_serializing_if = "crate::usage::none")]
    pub extra: Extras,
}

/// The shares of one class, container by container: index = position in the pod, init containers first.
/// An empty entry is a container without devices of this class.
pub type ClassAllocation = Vec<Vec<Share>>;

/// What the driver called a MIG instance when it made it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigRuntime {
    /// The instance's own UUID.
    pub mig_uuid: String,
    /// GPU instance.
    pub gpu_instance: u32,
    /// Compute instance.
    pub compute_instance: u32,
}

/// A hardware instance set aside for one device of one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigReservation {
    /// Container position, init containers first.
    pub container: u32,
    /// Position among that container's devices.
    pub device: u32,
    /// The card.
    pub card: CardId,
    /// The profile's name.
    pub profile: String,
    /// Where on the card.
    pub placement: Placement,
    /// Known once the instance exists.
    pub runtime: Option<MigRuntime>,
}

/// All that a pod was given.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Allocation {
    /// By class, only classes the pod uses.
    pub classes: SmallMap<Keyword, ClassAllocation>,
    /// Hardware instances among them.
    pub mig: Vec<MigReservation>,
}

impl Allocation {
    /// All shares with the position of their container.
    pub fn shares(&self) -> impl Iterator<Item = (usize, &Share)> {
        self.classes.values().flat_map(|class| {
            class
                .iter()
                .enumerate()
                .flat_map(|(at, shares)| shares.iter().map(move |s| (at, s)))
        })
    }

    /// Whether nothing was given.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.shares().next().is_none()
    }
}
