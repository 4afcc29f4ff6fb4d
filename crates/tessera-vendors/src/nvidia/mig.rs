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
/// Of the placements, the one that keeps the most [`room`] on the card. `taken` may not be overlapped. `reusable` are instances of containers that have ended by then: taking exactly such
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
    let used = taken.iter().chain(reusable);
    let used = used.fold(0, |used, held| used | slices_of(held.placement));
    fitting.into_iter().find_map(|profile| {
        let mut placements = profile.placements.clone();
        placements.sort_by_key(|placement| placement.start);
        // Among equals, small and three-slice instances are packed from the top, so that two- and four-slice ones find
        // room below.
        if profile.name.starts_with("1g.") || profile.name.starts_with("3g.") {
            placements.reverse();
        }
        let again = |placement: &Placement| {
            let same = |held: &Held| held.placement == *placement && *held.profile == *profile.name;
            reusable.iter().any(same)
        };
        placements.retain(|placement| {
            !taken.iter().any(|held| held.placement.overlaps(*placement))
                && (again(placement) || !reusable.iter().any(|held| held.placement.overlaps(*placement)))
        });
        // The first of the best: the iterator is turned round because of equals the last wins.
        let best = placements
            .into_iter()
            .rev()
            .max_by_key(|placement| room(profiles, used | slices_of(*placement)))?;
        Some((profile, best))
    })
}

/// A bit for each memory slice that a placement covers.
fn slices_of(placement: Placement) -> u64 {
    let bits = |count: u32| 1_u64.checked_shl(count).map_or(u64::MAX, |bit| bit - 1);
    let end = placement.start.saturating_add(placement.size);
    bits(end) & !bits(placement.start)
}

/// How much can still be made of a card whose slices `used` are taken: for each profile, the compute slices of as many
/// instances of it as fit, added up.
#[must_use]
pub fn room(profiles: &[MigProfile], used: u64) -> u32 {
    let of = |profile: &MigProfile| {
        let mut left = used;
        let mut count = 0;
        // Of intervals, taking the one that ends first never costs another.
        let free = |left: u64| {
            let masks = profile.placements.iter().map(|at| slices_of(*at));
            masks.filter(|mask| left & mask == 0).min()
        };
        while let Some(mask) = free(left).filter(|mask| *mask != 0) {
            left |= mask;
            count += 1;
        }
        count * profile.slices
    };
    profiles.iter().map(of).sum()
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

    /// Every set of slices that instances of these profiles can take.
    fn reachable(profiles: &[MigProfile]) -> Vec<Vec<(String, Placement)>> {
        let mut seen = std::collections::BTreeMap::from([(0_u64, Vec::new())]);
        let mut next = vec![0_u64];
        while let Some(used) = next.pop() {
            for profile in profiles {
                for placement in &profile.placements {
                    let mask = slices_of(*placement);
                    if used & mask == 0 && !seen.contains_key(&(used | mask)) {
                        let mut held = seen[&used].clone();
                        held.push((profile.name.clone(), *placement));
                        seen.insert(used | mask, held);
                        next.push(used | mask);
                    }
                }
            }
        }
        seen.into_values().collect()
    }

    /// The largest number of instances of one profile beside `used`, by trying all sets.
    fn most(placements: &[Placement], used: u64) -> u32 {
        let Some((first, rest)) = placements.split_first() else {
            return 0;
        };
        let mask = slices_of(*first);
        let without = most(rest, used);
        if used & mask == 0 {
            without.max(1 + most(rest, used | mask))
        } else {
            without
        }
    }

    #[test]
    fn no_other_placement_keeps_more_room_whatever_is_on_the_card() {
        let a30 = vec![
            profile("1g.6gb", 5952, 25, 1, &[0, 1, 2, 3], 1),
            profile("2g.12gb", 11968, 50, 2, &[0, 2], 2),
            profile("4g.24gb", 24064, 100, 4, &[0], 4),
        ];
        for profiles in [a100(), a30] {
            let states = reachable(&profiles);
            assert!(states.len() > 15);
            for state in states {
                let taken: Vec<Held> = state
                    .iter()
                    .map(|(name, placement)| Held {
                        profile: Arc::from(name.as_str()),
                        placement: *placement,
                    })
                    .collect();
                let used = state.iter().fold(0, |used, (_, at)| used | slices_of(*at));
                let room = |used: u64| -> u32 {
                    profiles
                        .iter()
                        .map(|profile| most(&profile.placements, used) * profile.slices)
                        .sum()
                };
                for asked in &profiles {
                    let Some((profile, placement)) = find(&profiles, &taken, &[], asked.memory) else {
                        continue;
                    };
                    let free = profile.placements.iter().filter(|at| used & slices_of(**at) == 0);
                    let best = free.map(|at| room(used | slices_of(*at))).max();
                    assert_eq!(Some(room(used | slices_of(placement))), best, "{state:?} {asked:?}");
                }
            }
        }
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
