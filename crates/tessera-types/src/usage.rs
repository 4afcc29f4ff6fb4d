//! What a pod occupies of each card while it lives.
//!
//! Kubernetes runs init containers one after the other, sidecars beside everything that follows them, and app
//! containers together. So a pod occupies, per card: the sum of its sidecars, plus the larger of its app
//! containers' sum and its greediest init container (which runs beside the sidecars started before it).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Allocation, CardId, ContainerRole, Cores, Extras, Keyword, Mib, Share};

/// An amount of each of a card's common dimensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct CardUsage {
    /// Slots.
    pub slots: u32,
    /// Memory.
    pub memory: Mib,
    /// Compute.
    pub cores: Cores,
    /// What the class counts besides.
    #[serde(default, skip_serializing_if = "none")]
    pub extra: Extras,
}

pub(crate) fn none(extra: &Extras) -> bool {
    extra.is_none()
}

impl CardUsage {
    /// What one share holds: one slot and its amounts.
    #[must_use]
    #[inline]
    pub fn of(share: &Share) -> Self {
        Self {
            slots: 1,
            memory: share.memory,
            cores: share.cores,
            extra: share.extra,
        }
    }

    /// Both together.
    #[must_use]
    #[inline]
    pub fn plus(self, other: Self) -> Self {
        Self {
            slots: self.slots.saturating_add(other.slots),
            memory: self.memory.saturating_add(other.memory),
            cores: self.cores.saturating_add(other.cores),
            extra: self.extra.plus(other.extra),
        }
    }

    /// This without `other`, never below zero.
    #[must_use]
    #[inline]
    pub fn minus(self, other: Self) -> Self {
        Self {
            slots: self.slots.saturating_sub(other.slots),
            memory: self.memory.saturating_sub(other.memory),
            cores: self.cores.saturating_sub(other.cores),
            extra: self.extra.minus(other.extra),
        }
    }

    /// The larger of each dimension.
    #[must_use]
    #[inline]
    pub fn max(self, other: Self) -> Self {
        Self {
            slots: self.slots.max(other.slots),
            memory: self.memory.max(other.memory),
            cores: self.cores.max(other.cores),
            extra: self.extra.max(other.extra),
        }
    }
}

/// What one pod occupies, card by card, in the order of ids. The class belongs to the card's name: cards of two makers
/// may have the same id.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PodUsage(pub Vec<(CardId, (Keyword, CardUsage))>);

/// The usage of `allocation` for a pod whose containers have these `roles` (position by position).
///
/// `init_done`: all init containers that are not sidecars have ended well, so only what still runs counts.
/// Positions beyond `roles` count as app containers, which is the larger reading.
#[must_use]
pub fn effective_usage(allocation: &Allocation, roles: &[ContainerRole], init_done: bool) -> PodUsage {
    #[derive(Default, Clone, Copy)]
    struct Sums {
        sidecars: CardUsage,
        init_peak: CardUsage,
        apps: CardUsage,
    }
    let mut by_card: BTreeMap<(CardId, Keyword), Sums> = BTreeMap::new();
    for (class, containers) in &allocation.classes {
        for (position, shares) in containers.iter().enumerate() {
            let role = roles.get(position).copied().unwrap_or(ContainerRole::App);
            let mut here: BTreeMap<&CardId, CardUsage> = BTreeMap::new();
            for share in shares {
                let sum = here.entry(&share.card).or_default();
                *sum = sum.plus(CardUsage::of(share));
            }
            for (card, amount) in here {
                let sums = by_card.entry((card.clone(), class.clone())).or_default();
                match role {
                    ContainerRole::Sidecar => sums.sidecars = sums.sidecars.plus(amount),
                    ContainerRole::Init if init_done => {}
                    ContainerRole::Init => sums.init_peak = sums.init_peak.max(sums.sidecars.plus(amount)),
                    ContainerRole::App => sums.apps = sums.apps.plus(amount),
                }
            }
        }
    }
    PodUsage(
        by_card
            .into_iter()
            .map(|((card, class), sums)| (card, (class, sums.init_peak.max(sums.sidecars.plus(sums.apps)))))
            .filter(|(_, (_, usage))| *usage != CardUsage::default())
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Share;

    fn share(card: &str, memory: u64, cores: u32) -> Share {
        Share {
            card: CardId::new(card).unwrap(),
            class: Keyword::new("NVIDIA").unwrap(),
            memory: Mib::new(memory),
            cores: Cores::new(cores),
            extra: Extras::NONE,
        }
    }

    fn usage(containers: Vec<Vec<Share>>, roles: &[ContainerRole], init_done: bool) -> Vec<(String, u32, u64, u32)> {
        let mut allocation = Allocation::default();
        allocation.classes.insert(Keyword::new("NVIDIA").unwrap(), containers);
        effective_usage(&allocation, roles, init_done)
            .0
            .into_iter()
            .map(|(card, (_, u))| (card.to_string(), u.slots, u.memory.get(), u.cores.get()))
            .collect()
    }

    use ContainerRole::{App, Init, Sidecar};

    #[test]
    fn init_containers_count_their_peak_and_apps_their_sum() {
        let containers = vec![
            vec![share("a", 6000, 10)],
            vec![share("a", 2000, 50)],
            vec![share("a", 3000, 10)],
            vec![share("a", 2000, 10)],
        ];
        assert_eq!(
            usage(containers.clone(), &[Init, Init, App, App], false),
            [("a".to_owned(), 2, 6000, 50)]
        );
        assert_eq!(
            usage(containers, &[Init, Init, App, App], true),
            [("a".to_owned(), 2, 5000, 20)]
        );
    }

    #[test]
    fn a_sidecar_runs_beside_what_follows_it() {
        let containers = vec![vec![share("a", 6000, 0)], vec![share("a", 6000, 0)]];
        assert_eq!(
            usage(containers.clone(), &[Sidecar, App], false),
            [("a".to_owned(), 2, 12_000, 0)]
        );
        assert_eq!(
            usage(containers.clone(), &[Sidecar, Init], false),
            [("a".to_owned(), 2, 12_000, 0)]
        );
        // An init container before the sidecar never meets it.
        assert_eq!(
            usage(containers, &[Init, Sidecar], false),
            [("a".to_owned(), 1, 6000, 0)]
        );
    }
}
