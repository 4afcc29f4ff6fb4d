//! Placing a MIG instance on a card.

use std::sync::Arc;

use tessera_engine::{CardView, Held, Instance, Take};
use tessera_types::{Dimension, Extras, Mib, MigProfile, Placement, Reason, ReasonKind};

/// The instance for `memory`: the smallest profile that holds it and has a placement free. Compute plays no part; the
/// profile's memory and compute are what is taken.
///
/// # Errors
/// [`ReasonKind::NoPlacement`]. If all profiles are too small, with the largest profile's memory as what is free.
pub fn place(card: CardView<'_>, memory: Mib) -> Result<Take, Reason> {
    let profiles = &card.card.mig_profiles;
    match find(profiles, card.instances, card.reusable, memory) {
        Some((profile, placement)) => Ok(Take {
            memory: profile.memory,
            cores: profile.cores,
            extra: Extras::NONE,
            instance: Some(Instance {
                profile: Arc::from(profile.name.as_str()),
                placement,
            }),
        }),
        None => {
            let id = Some(card.card.id.clone());
            let largest = profiles.iter().map(|profile| profile.memory).max().unwrap_or(Mib::ZERO);
            Err(if largest < memory {
                Reason::short(
                    ReasonKind::NoPlacement,
                    id,
                    Dimension::MemoryMib,
                    memory.get(),
                    largest.get(),
                )
            } else {
                Reason::of(ReasonKind::NoPlacement, id)
            })
        }
    }
}

/// The profile and placement for `memory`, if one is left.
///
/// `taken` may not be overlapped. `reusable` are instances of containers that have ended by then: taking exactly such
/// an instance again is fine, overlapping it otherwise is not.
#[must_use]
pub fn find<'a>(
    profiles: &'a [MigProfile],
    taken: &[Held],
    reusable: &[Held],
    memory: Mib,
) -> Option<(&'a MigProfile, Placement)> {
    let mut fitting: Vec<&MigProfile> = profiles.iter().filter(|profile| profile.memory >= memory).collect();
    fitting.sort_by_key(|profile| (profile.memory, profile.slices));
    fitting.into_iter().find_map(|profile| {
        let mut placements = profile.placements.clone();
        placements.sort_by_key(|placement| placement.start);
        // Small and three-slice instances are packed from the top, so that two- and four-slice ones find room below.
        if profile.name.starts_with("1g.") || profile.name.starts_with("3g.") {
            placements.reverse();
        }
        let free = |placement: &Placement| {
            !taken.iter().any(|held| held.placement.overlaps(*placement))
                && reusable.iter().all(|held| {
                    !held.placement.overlaps(*placement)
                        || (held.placement == *placement && *held.profile == *profile.name)
                })
        };
        placements.into_iter().find(free).map(|placement| (profile, placement))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_types::Cores;

    fn profile(name: &str, memory: u64, cores: u32, slices: u32, starts: &[u32], size: u32) -> MigProfile {
        let placements = starts.iter().map(|start| Placement { start: *start, size }).collect();
        MigProfile {
            name: name.to_owned(),
            memory: Mib::new(memory),
            cores: Cores::new(cores),
            slices,
            placements,
        }
    }

    fn a100() -> Vec<MigProfile> {
        vec![
            profile("1g.5gb", 4864, 15, 1, &[0, 1, 2, 3, 4, 5, 6], 1),
            profile("2g.10gb", 9984, 29, 2, &[0, 2, 4], 2),
            profile("3g.20gb", 20096, 43, 3, &[0, 4], 4),
            profile("7g.40gb", 40448, 100, 7, &[0], 8),
        ]
    }

    fn fill(requests: &[u64]) -> Vec<Option<(String, u32)>> {
        let profiles = a100();
        let mut taken = Vec::new();
        requests
            .iter()
            .map(|memory| {
                let (profile, placement) = find(&profiles, &taken, &[], Mib::new(*memory))?;
                taken.push(Held {
                    profile: Arc::from(profile.name.as_str()),
                    placement,
                });
                Some((profile.name.clone(), placement.start))
            })
            .collect()
    }

    #[test]
    fn three_two_one_one_fill_a_card() {
        let placed = fill(&[20000, 9000, 1000, 1000, 1000]);
        let expected = [("3g.20gb", 4), ("2g.10gb", 0), ("1g.5gb", 3), ("1g.5gb", 2)];
        for (got, (name, start)) in placed.iter().zip(expected) {
            assert_eq!(got.as_ref().map(|(n, s)| (n.as_str(), *s)), Some((name, start)));
        }
        assert_eq!(placed[4], None);
    }

    #[test]
    fn a_full_profile_gives_way_to_the_next_larger() {
        assert_eq!(fill(&[9000, 9000, 9000])[2], Some(("2g.10gb".to_owned(), 4)));
        assert_eq!(
            fill(&[4000, 4000, 4000, 9000, 9000]).last(),
            Some(&Some(("2g.10gb".to_owned(), 2)))
        );
        assert_eq!(fill(&[50000]), [None]);
    }

    #[test]
    fn an_ended_containers_instance_is_taken_whole_or_not_at_all() {
        let profiles = a100();
        let held = Held {
            profile: Arc::from("2g.10gb"),
            placement: Placement { start: 0, size: 2 },
        };
        let again = find(&profiles, &[], std::slice::from_ref(&held), Mib::new(9000));
        assert_eq!(again.map(|(p, at)| (p.name.as_str(), at.start)), Some(("2g.10gb", 0)));
        let other = find(&profiles, &[], &[held], Mib::new(20000));
        assert_eq!(other.map(|(p, at)| (p.name.as_str(), at.start)), Some(("3g.20gb", 4)));
    }
}
