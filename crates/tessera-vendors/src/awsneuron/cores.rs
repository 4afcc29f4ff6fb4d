//! The cores of a device, as a mask on the wire and as amounts of their own in the books.

use tessera_types::{EXTRA_AMOUNTS, Extras};

/// The most cores of a device.
pub(super) const MOST: u32 = 8;

/// What the amounts are called.
pub(super) const NAMES: &[&str] = &[
    "core 0", "core 1", "core 2", "core 3", "core 4", "core 5", "core 6", "core 7",
];

/// Every core of a device, however many it has: what whoever has the device whole holds.
pub(super) fn every() -> Extras {
    of_mask(full_mask(MOST))
}

/// The mask of a device of `cores`.
pub(super) fn full_mask(cores: u32) -> u32 {
    (1 << cores.min(MOST)) - 1
}

/// The bits of a mask, lowest first.
pub(super) fn bits(mask: u32) -> impl Iterator<Item = u32> {
    (0..MOST).filter(move |bit| mask & (1 << bit) != 0)
}

fn position(bit: u32) -> usize {
    usize::try_from(bit).unwrap_or(EXTRA_AMOUNTS)
}

/// A mask as amounts.
pub(super) fn of_mask(mask: u32) -> Extras {
    bits(mask).fold(Extras::NONE, |extra, bit| extra.with(position(bit), 1))
}

/// Amounts as a mask. Whoever has the device whole has its `held` cores.
pub(super) fn mask_of(extra: Extras, held: u32) -> u32 {
    if extra == every() {
        return full_mask(held);
    }
    (0..MOST)
        .filter(|bit| extra.get(position(*bit)) > 0)
        .fold(0, |mask, bit| mask | (1 << bit))
}

fn is_free(used: Extras, core: u32) -> bool {
    used.get(position(core)) == 0
}

/// The lowest run of `wanted` free cores of a device with `all`: one that starts at a multiple of its size, so that
/// runs of one size leave no gaps; else any.
pub(super) fn free_run(used: Extras, all: u32, wanted: u32) -> Option<u32> {
    let all = all.min(MOST);
    if wanted == 0 || wanted > all {
        return None;
    }
    let step = wanted.next_power_of_two();
    let free = |start: &u32| (*start..*start + wanted).all(|core| is_free(used, core));
    let starts = || 0..=all - wanted;
    let start = starts()
        .filter(|start| start % step == 0)
        .find(free)
        .or_else(|| starts().find(free))?;
    Some(full_mask(wanted) << start)
}

/// How many free cores stand in a row at most.
pub(super) fn longest_run(used: Extras, all: u32) -> u32 {
    let (mut longest, mut run) = (0, 0);
    for core in 0..all.min(MOST) {
        run = if is_free(used, core) { run + 1 } else { 0 };
        longest = longest.max(run);
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_and_amounts_are_the_same_thing() {
        for mask in 0..=255 {
            if mask != 255 {
                assert_eq!(mask_of(of_mask(mask), 8), mask);
            }
        }
        assert_eq!(mask_of(every(), 2), 3);
        assert_eq!(mask_of(every(), 8), 255);
    }

    #[test]
    fn runs_are_taken_where_they_leave_no_gaps() {
        assert_eq!(free_run(of_mask(0b1), 2, 1), Some(0b10));
        assert_eq!(free_run(of_mask(0b10), 2, 1), Some(0b1));
        assert_eq!(free_run(of_mask(0b1), 8, 2), Some(0b1100));
        assert_eq!(free_run(of_mask(0b1001), 4, 2), Some(0b110), "no aligned place is left");
        assert_eq!(free_run(of_mask(0b0101), 4, 2), None);
        assert_eq!((longest_run(of_mask(0b0101), 4), longest_run(Extras::NONE, 4)), (1, 4));
        assert_eq!(free_run(Extras::NONE, 2, 3), None);
    }
}
