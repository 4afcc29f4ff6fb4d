//! Amounts: memory in MiB, compute in percent of one card.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The compute of one whole card that is not oversubscribed.
pub const WHOLE_CARD_CORES: Cores = Cores(100);

/// Memory in MiB (2^20 bytes). 64 bits everywhere; the wire's 32-bit limits are the codec's business.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mib(u64);

impl Mib {
    /// No memory.
    pub const ZERO: Self = Self(0);

    /// `mib` MiB.
    #[must_use]
    pub const fn new(mib: u64) -> Self {
        Self(mib)
    }

    /// The whole MiB in `bytes`, rounded down.
    #[must_use]
    pub const fn from_bytes_floor(bytes: u64) -> Self {
        Self(bytes >> 20)
    }

    /// The number of MiB.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The number of bytes; `None` above 2^64.
    #[must_use]
    pub const fn bytes(self) -> Option<u64> {
        self.0.checked_mul(1 << 20)
    }

    /// Sum; `None` on overflow.
    #[must_use]
    pub const fn checked_add(self, other: Self) -> Option<Self> {
        match self.0.checked_add(other.0) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// Sum, stopping at the largest amount. Use it where "too much" is all that matters.
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// Difference, zero if `other` is larger.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// `percent` hundredths of this amount, rounded down.
    #[must_use]
    pub fn percent(self, percent: u32) -> Self {
        let part = u128::from(self.0) * u128::from(percent) / 100;
        Self(u64::try_from(part).unwrap_or(u64::MAX))
    }

    /// This amount `factor` times; `None` on overflow.
    #[must_use]
    pub const fn checked_mul(self, factor: u64) -> Option<Self> {
        match self.0.checked_mul(factor) {
            Some(product) => Some(Self(product)),
            None => None,
        }
    }
}

impl fmt::Display for Mib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0)
    }
}

/// Compute in percent of one card. A card whose compute is oversubscribed has more than 100.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Cores(u32);

impl Cores {
    /// No claim on compute.
    pub const ZERO: Self = Self(0);

    /// `percent` percent of one card.
    #[must_use]
    pub const fn new(percent: u32) -> Self {
        Self(percent)
    }

    /// The number of percent.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Sum, stopping at the largest amount.
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// Difference, zero if `other` is larger.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl fmt::Display for Cores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} %", self.0)
    }
}
