//! Hardware partitions: GPU instances and, inside them, compute instances.
//!
//! All GPU instances of a card are one word, and so are the compute instances of one GPU
//! instance. A change is one compare-and-swap, so two administrators cannot both take a slice.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use crate::layout::{MAX_INSTANCES, Pool, ProfileDesc};
use crate::machine::Machine;
use crate::uuid::{format_uuid, name_uuid};

/// Why a change was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MigError {
    /// The model has no partitions, or the mode is off.
    #[error("partitioning is not supported or not on")]
    NotSupported,
    /// Profile or placement that the model does not have.
    #[error("no such profile or placement")]
    Invalid,
    /// No free place.
    #[error("no room for the instance")]
    NoRoom,
    /// Something still uses it.
    #[error("instance or card in use")]
    InUse,
    /// No such instance.
    #[error("no such instance")]
    NotFound,
}

/// One GPU instance.
#[derive(Clone, Copy, Debug)]
pub struct Instance<'a> {
    /// Place in the card's table, also the number of its memory pool.
    pub position: usize,
    /// Instance id as the management library counts.
    pub id: u32,
    /// Its profile.
    pub profile: &'a ProfileDesc,
    /// First memory slice.
    pub start: u32,
}

/// One compute instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compute {
    /// Place in the GPU instance's table, also its id.
    pub id: u32,
    /// Compute slices, as the profile number of the management library (0 is one slice).
    pub number: u32,
    /// First slice.
    pub start: u32,
}

fn lane(word: u64, position: usize) -> (u32, u32) {
    let byte = u32::try_from((word >> (position * 8)) & 0xff).unwrap_or(0);
    (byte >> 3, byte & 7)
}

fn with_lane(word: u64, position: usize, high: u32, start: u32) -> u64 {
    (word & !(0xff << (position * 8))) | (u64::from((high << 3) | (start & 7)) << (position * 8))
}

/// Slices of a compute profile number.
#[must_use]
pub fn slices_of(number: u32) -> Option<u32> {
    Some(match number {
        0 | 7 => 1,
        1 | 8 => 2,
        2 => 3,
        3 => 4,
        4 => 7,
        5 => 8,
        6 => 6,
        _ => return None,
    })
}

/// Instance id the way the real driver numbers: wide profiles first, then by placement.
fn instance_id(profile: &ProfileDesc, start: u32) -> u32 {
    match profile.size {
        8 => 0,
        4 => 1 + start / 4,
        2 => 3 + start / 2,
        _ => 7 + start,
    }
}

/// Whether partitioning is on.
#[must_use]
pub fn is_on(machine: &Machine, card: usize) -> bool {
    machine.card_state(card).mig_on.load(SeqCst) == 1
}

/// The instance at a place of a card's table.
#[must_use]
pub fn instance(machine: &Machine, card: usize, position: usize) -> Option<Instance<'_>> {
    if position >= MAX_INSTANCES {
        return None;
    }
    let word = machine.card_state(card).instances.load(SeqCst);
    let (kind, start) = lane(word, position);
    let profile = machine.card(card).profiles().get(kind.checked_sub(1)? as usize)?;
    Some(Instance {
        position,
        id: instance_id(profile, start),
        profile,
        start,
    })
}

/// All instances of a card.
#[must_use]
pub fn instances(machine: &Machine, card: usize) -> Vec<Instance<'_>> {
    (0..MAX_INSTANCES).filter_map(|p| instance(machine, card, p)).collect()
}

/// Memory slices that the instances of a word cover.
fn covered(profiles: &[ProfileDesc], word: u64) -> u32 {
    (0..MAX_INSTANCES)
        .filter_map(|p| {
            let (kind, start) = lane(word, p);
            let profile = profiles.get(kind.checked_sub(1)? as usize)?;
            Some(((1u32 << profile.size) - 1) << start)
        })
        .fold(0, |a, b| a | b)
}

/// Compute slices in use.
fn slices_used(profiles: &[ProfileDesc], word: u64) -> u32 {
    (0..MAX_INSTANCES)
        .filter_map(|p| {
            let (kind, _) = lane(word, p);
            Some(profiles.get(kind.checked_sub(1)? as usize)?.slices)
        })
        .sum()
}

fn fits(profiles: &[ProfileDesc], word: u64, kind: usize, start: u32) -> bool {
    let profile = &profiles[kind];
    let same = (0..MAX_INSTANCES)
        .filter(|p| lane(word, *p).0 as usize == kind + 1)
        .count();
    let media = profile.media > 0
        && (0..MAX_INSTANCES).any(|p| {
            lane(word, p)
                .0
                .checked_sub(1)
                .and_then(|k| profiles.get(k as usize))
                .is_some_and(|other| other.media > 0 && other.size < 8)
        });
    profile.starts & (1 << start) != 0
        && covered(profiles, word) & (((1u32 << profile.size) - 1) << start) == 0
        && slices_used(profiles, word) + profile.slices <= 7
        && same < profile.count as usize
        && !media
}

/// How many more instances of a profile (by position in the card's list) the card can take.
#[must_use]
pub fn remaining(machine: &Machine, card: usize, kind: usize) -> u32 {
    let profiles = machine.card(card).profiles();
    let mut word = machine.card_state(card).instances.load(SeqCst);
    let mut count = 0;
    'more: while kind < profiles.len() {
        for start in 0..8 {
            if fits(profiles, word, kind, start)
                && let Some(free) = (0..MAX_INSTANCES).find(|p| lane(word, *p).0 == 0)
            {
                word = with_lane(word, free, u32::try_from(kind + 1).unwrap_or(0), start);
                count += 1;
                continue 'more;
            }
        }
        break;
    }
    count
}

/// Switches the mode; instances vanish when it goes off.
///
/// # Errors
/// The model has no partitions, or a process uses the card.
pub fn set_mode(machine: &Machine, card: usize, on: bool) -> Result<(), MigError> {
    if machine.card(card).profiles().is_empty() {
        return if on { Err(MigError::NotSupported) } else { Ok(()) };
    }
    if is_on(machine, card) == on {
        return Ok(());
    }
    machine.reap(card);
    if !machine.processes(card).is_empty() {
        return Err(MigError::InUse);
    }
    let state = machine.card_state(card);
    state.instances.store(0, SeqCst);
    for word in &state.compute {
        word.store(0, SeqCst);
    }
    state.mig_on.store(u32::from(on), SeqCst);
    Ok(())
}

/// Creates a GPU instance, at the given first slice or at the first that is free.
///
/// # Errors
/// Mode off, no such profile or placement, no room.
pub fn create(machine: &Machine, card: usize, profile_id: u32, start: Option<u32>) -> Result<Instance<'_>, MigError> {
    let profiles = machine.card(card).profiles();
    if !is_on(machine, card) {
        return Err(MigError::NotSupported);
    }
    let kind = profiles
        .iter()
        .position(|p| p.id == profile_id)
        .ok_or(MigError::Invalid)?;
    if start.is_some_and(|s| s > 7 || profiles[kind].starts & (1 << s) == 0) {
        return Err(MigError::Invalid);
    }
    let state = machine.card_state(card);
    let mut seen = state.instances.load(SeqCst);
    loop {
        // Small instances are placed from the end, as the driver does, so that wide ones still fit.
        let place = match start {
            Some(s) => fits(profiles, seen, kind, s).then_some(s),
            None => (0..8).rev().find(|s| fits(profiles, seen, kind, *s)),
        };
        let free = (0..MAX_INSTANCES).find(|p| lane(seen, *p).0 == 0);
        let (Some(place), Some(free)) = (place, free) else {
            return Err(MigError::NoRoom);
        };
        let next = with_lane(seen, free, u32::try_from(kind + 1).unwrap_or(0), place);
        match state.instances.compare_exchange(seen, next, SeqCst, SeqCst) {
            Ok(_) => return instance(machine, card, free).ok_or(MigError::NotFound),
            Err(now) => seen = now,
        }
    }
}

/// Destroys a GPU instance.
///
/// # Errors
/// It is gone, or compute instances or processes still use it.
pub fn destroy(machine: &Machine, card: usize, position: usize) -> Result<(), MigError> {
    instance(machine, card, position).ok_or(MigError::NotFound)?;
    let state = machine.card_state(card);
    let pool = Pool {
        card,
        instance: Some(position),
    };
    if state.compute[position].load(SeqCst) != 0 || machine.used_bytes(pool) != 0 {
        return Err(MigError::InUse);
    }
    update(&state.instances, |word| Ok(with_lane(word, position, 0, 0)))
}

fn update(word: &AtomicU64, change: impl Fn(u64) -> Result<u64, MigError>) -> Result<(), MigError> {
    let mut seen = word.load(SeqCst);
    loop {
        match word.compare_exchange(seen, change(seen)?, SeqCst, SeqCst) {
            Ok(_) => return Ok(()),
            Err(now) => seen = now,
        }
    }
}

fn compute_lane(word: u64, id: u32) -> Option<Compute> {
    let (kind, start) = lane(word, id as usize);
    Some(Compute {
        id,
        number: kind.checked_sub(1)?,
        start,
    })
}

/// Compute instances of a GPU instance.
#[must_use]
pub fn computes(machine: &Machine, card: usize, position: usize) -> Vec<Compute> {
    let word = machine.card_state(card).compute[position.min(MAX_INSTANCES)].load(SeqCst);
    (0..8).filter_map(|id| compute_lane(word, id)).collect()
}

/// Compute slices of a GPU instance that no compute instance has.
#[must_use]
pub fn slices_free(machine: &Machine, card: usize, position: usize) -> u32 {
    let used: u32 = computes(machine, card, position)
        .iter()
        .filter_map(|c| slices_of(c.number))
        .sum();
    instance(machine, card, position).map_or(0, |i| i.profile.slices.saturating_sub(used))
}

/// Creates a compute instance of a profile number.
///
/// # Errors
/// The GPU instance is gone, the number names nothing, or the slices are taken.
pub fn create_compute(
    machine: &Machine,
    card: usize,
    position: usize,
    number: u32,
    start: Option<u32>,
) -> Result<Compute, MigError> {
    let parent = instance(machine, card, position).ok_or(MigError::NotFound)?;
    let wanted = slices_of(number).ok_or(MigError::Invalid)?;
    if wanted > parent.profile.slices {
        return Err(MigError::Invalid);
    }
    let word = &machine.card_state(card).compute[position];
    let mut seen = word.load(SeqCst);
    loop {
        let taken = (0..8)
            .filter_map(|id| compute_lane(seen, id))
            .filter_map(|c| Some(((1u32 << slices_of(c.number)?) - 1) << c.start))
            .fold(0, |a, b| a | b);
        let free = |s: u32| s + wanted <= parent.profile.slices && taken & (((1u32 << wanted) - 1) << s) == 0;
        let place = match start {
            Some(s) => free(s).then_some(s),
            None => (0..8).find(|s| free(*s)),
        };
        let id = (0..8u32).find(|id| compute_lane(seen, *id).is_none());
        let (Some(place), Some(id)) = (place, id) else {
            return Err(MigError::NoRoom);
        };
        let next = with_lane(seen, id as usize, number + 1, place);
        match word.compare_exchange(seen, next, SeqCst, SeqCst) {
            Ok(_) => {
                return Ok(Compute {
                    id,
                    number,
                    start: place,
                });
            }
            Err(now) => seen = now,
        }
    }
}

/// Destroys a compute instance.
///
/// # Errors
/// It is gone, or a process runs on the GPU instance.
pub fn destroy_compute(machine: &Machine, card: usize, position: usize, id: u32) -> Result<(), MigError> {
    let pool = Pool {
        card,
        instance: Some(position),
    };
    if machine.used_bytes(pool) != 0 {
        return Err(MigError::InUse);
    }
    update(&machine.card_state(card).compute[position.min(MAX_INSTANCES)], |word| {
        compute_lane(word, id).ok_or(MigError::NotFound)?;
        Ok(with_lane(word, id as usize, 0, 0))
    })
}

/// Compute instances of the whole card: the partitions that a program can run on, in order.
#[must_use]
pub fn devices(machine: &Machine, card: usize) -> Vec<(Instance<'_>, Compute)> {
    if !is_on(machine, card) {
        return Vec::new();
    }
    let mut all: Vec<_> = instances(machine, card)
        .into_iter()
        .flat_map(|i| computes(machine, card, i.position).into_iter().map(move |c| (i, c)))
        .collect();
    all.sort_by_key(|(i, c)| (i.id, c.id));
    all
}

/// Identifier of a partition, made from its card and ids, so that it comes back with them.
#[must_use]
pub fn device_uuid(machine: &Machine, card: usize, instance_id: u32, compute_id: u32) -> [u8; 16] {
    let card = format_uuid("GPU-", &machine.card(card).uuid);
    name_uuid(&format!("{card}/{instance_id}/{compute_id}"))
}
