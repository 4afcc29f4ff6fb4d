//! Partition sizes of a card, and which one a request means.

use std::fmt;

use tessera_types::{Card, Cores, Mib, MigProfile};

/// How an amount of memory is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// A number small enough to be GiB is GiB, a larger one MiB.
    Guess,
    /// GiB.
    Gib,
    /// MiB.
    Mib,
}

/// What one partition must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// Exactly so many slices.
    Slices(u64),
    /// At least so much memory and so many percent of the slices; 0 is no wish.
    Spec { memory: u64, unit: Unit, percent: u64 },
}

impl fmt::Display for Wish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Slices(slices) => write!(f, "{slices} slices"),
            Self::Spec { memory: 0, percent, .. } => write!(f, "{percent} % compute"),
            Self::Spec { memory, percent: 0, .. } => write!(f, "{memory} of memory"),
            Self::Spec { memory, percent, .. } => write!(f, "{memory} of memory and {percent} % compute"),
        }
    }
}

/// Reads `<slices>g.<GB>gb`.
pub(super) fn parse_name(name: &str) -> Option<(u32, u64)> {
    let (slices, gb) = name.strip_suffix("gb")?.split_once("g.")?;
    let (slices, gb) = (slices.parse().ok()?, gb.parse().ok()?);
    (slices > 0 && gb > 0 && slices <= 100 && gb <= 1 << 20).then_some((slices, gb))
}

/// The percent of `slices` out of `all`, rounded up.
pub(super) fn percent(slices: u32, all: u32) -> Cores {
    Cores::new(slices.saturating_mul(100).div_ceil(all.max(1)))
}

/// The profiles of these names, smallest first. Names of another form are left out.
pub(super) fn profiles<'a>(names: impl Iterator<Item = &'a str>) -> Vec<MigProfile> {
    let mut sizes: Vec<(u32, u64, &str)> = names
        .filter_map(|name| parse_name(name).map(|(slices, gb)| (slices, gb, name)))
        .collect();
    sizes.sort_unstable();
    let all = sizes.iter().map(|(slices, ..)| *slices).max().unwrap_or(1);
    sizes
        .into_iter()
        .map(|(slices, gb, name)| MigProfile {
            name: name.to_owned(),
            memory: Mib::new(gb << 10),
            cores: percent(slices, all),
            slices,
            placements: Vec::new(),
        })
        .collect()
}

/// The smallest profile of the card that is as wished.
pub(super) fn find(card: &Card, wish: Wish) -> Option<&MigProfile> {
    match wish {
        Wish::Slices(slices) => card.mig_profiles.iter().find(|p| u64::from(p.slices) == slices),
        Wish::Spec { memory, unit, percent } => {
            let largest = card.mig_profiles.iter().map(|p| p.memory.get()).max()?;
            let mib = match unit {
                Unit::Mib => memory,
                Unit::Gib => memory.saturating_mul(1024),
                Unit::Guess if memory > (largest >> 10) * 2 => memory,
                Unit::Guess => memory.saturating_mul(1024),
            };
            // Profiles are whole GiB, so comparing in MiB rounds up by itself.
            card.mig_profiles
                .iter()
                .find(|p| p.memory.get() >= mib && u64::from(p.cores.get()) >= percent)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_give_sizes() {
        assert_eq!(parse_name("3g.24gb"), Some((3, 24)));
        for bad in ["whole", "g.gb", "0g.8gb", "1g.8", "-1g.8gb", "1g.0gb", ""] {
            assert_eq!(parse_name(bad), None, "{bad}");
        }
    }

    #[test]
    fn slices_of_a_card_are_worth_the_same_in_any_cut() {
        let all = 6;
        let one = percent(1, all).get();
        for (a, b) in [(1, 5), (2, 4), (3, 3)] {
            assert!(percent(a, all).get() + percent(b, all).get() <= one * all);
        }
        assert!(
            percent(3, all).get() + percent(4, all).get() > one * all,
            "seven of six"
        );
        assert!(percent(6, all).get() + percent(1, all).get() > one * all);
    }
}
