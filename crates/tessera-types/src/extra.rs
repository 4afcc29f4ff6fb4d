//! Amounts of a card beyond slots, memory and compute.

use serde::{Deserialize, Serialize};

/// How many further amounts a class can count.
pub const EXTRA_AMOUNTS: usize = 8;

/// Further amounts of one card, by position: AI CPUs, dies, cores that are told apart. What a position means, and how
/// it is called, is the class's own table; the common arithmetic adds and compares all of them alike.
///
/// An amount stops at [`Extras::MOST`], and a sum that reached it fits no card, whatever the card's total.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Extras([u16; EXTRA_AMOUNTS]);

impl Extras {
    /// Nothing of anything.
    pub const NONE: Self = Self([0; EXTRA_AMOUNTS]);

    /// The largest amount.
    pub const MOST: u64 = u16::MAX as u64;

    /// This with `amount` at `position`, stopping at the largest amount. A position that does not exist is ignored.
    #[must_use]
    #[inline]
    pub fn with(mut self, position: usize, amount: u64) -> Self {
        if let Some(at) = self.0.get_mut(position) {
            *at = u16::try_from(amount).unwrap_or(u16::MAX);
        }
        self
    }

    /// The amount at `position`; 0 beyond the last.
    #[must_use]
    #[inline]
    pub fn get(self, position: usize) -> u64 {
        self.0.get(position).copied().map_or(0, u64::from)
    }

    /// Whether all amounts are 0.
    #[must_use]
    #[inline]
    pub fn is_none(self) -> bool {
        self == Self::NONE
    }

    /// Both together, each stopping at the largest amount.
    #[must_use]
    #[inline]
    pub fn plus(self, other: Self) -> Self {
        self.each(other, u16::saturating_add)
    }

    /// This without `other`, never below 0.
    #[must_use]
    #[inline]
    pub fn minus(self, other: Self) -> Self {
        self.each(other, u16::saturating_sub)
    }

    /// The larger of each.
    #[must_use]
    #[inline]
    pub fn max(self, other: Self) -> Self {
        self.each(other, u16::max)
    }

    /// The first position at which this is more than `total` holds.
    #[must_use]
    #[inline]
    pub fn exceeds(self, total: Self) -> Option<usize> {
        if self.is_none() {
            return None;
        }
        self.0
            .iter()
            .zip(total.0)
            .position(|(wanted, total)| *wanted == u16::MAX || *wanted > total)
    }

    #[inline]
    fn each(self, other: Self, op: impl Fn(u16, u16) -> u16) -> Self {
        Self(std::array::from_fn(|at| op(self.0[at], other.0[at])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_add_up_by_position_and_are_compared_by_position() {
        let total = Extras::NONE.with(0, 7).with(7, 1);
        let held = Extras::NONE.with(0, 4);
        assert_eq!(held.plus(Extras::NONE.with(0, 3)).exceeds(total), None);
        assert_eq!(held.plus(Extras::NONE.with(0, 4)).exceeds(total), Some(0));
        assert_eq!(Extras::NONE.with(7, 2).exceeds(total), Some(7));
        assert_eq!(Extras::NONE.with(3, 1).exceeds(total), Some(3));
        assert_eq!(held.minus(total), Extras::NONE);
        assert_eq!(held.max(total).get(0), 7);
        assert_eq!(total.with(EXTRA_AMOUNTS, 9), total);
    }

    #[test]
    fn an_amount_too_large_for_the_type_fits_nothing() {
        let total = Extras::NONE.with(0, u64::MAX);
        assert_eq!(total.get(0), Extras::MOST);
        assert_eq!(Extras::NONE.with(0, Extras::MOST + 1).exceeds(total), Some(0));
        assert_eq!(total.plus(Extras::NONE.with(0, 1)).exceeds(total), Some(0));
        assert_eq!(Extras::NONE.with(0, Extras::MOST - 1).exceeds(total), None);
    }
}
