//! Doorbells: how a more important container stops the launches of others on a card without waiting for the agent.
//!
//! One page for each card with containers of different priority. Who may ring has it among its writable files, who is to
//! listen among its read-only ones; it is one file under several names. A ring says only "look": whether it counts is
//! the agent's word in the verdict ([`VerdictCard::heed`](crate::VerdictCard::heed)), and so is when it is over
//! ([`VerdictCard::answered`](crate::VerdictCard::answered)): once the agent has looked, its gates say the rest.
//!
//! A tenant that may write the file can also make it shorter, and a load from a mapping would then end the process that
//! listens. So nobody loads from a mapping: the system compares and changes the words, and a look is a read of the file.

use crate::sync::{AtomicU32, Ordering};

/// Name of the page beside the account or beside the verdict, before the card's position in the grant.
pub const RING_FILE: &str = "ring.";
/// Containers that may ring at one card.
pub const RING_PLACES: usize = 63;
/// Size of the file in bytes.
pub const RING_SIZE: usize = 4096;
/// A ring that the agent does not answer is over after so long, in nanoseconds.
pub const RING_MOST_NS: u64 = 50_000_000;

/// The words. Every one may hold anything; only a change means something.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct RingPage {
    /// Rises with each ring of anybody.
    pub all: AtomicU32,
    /// Rises with each ring of one container, by its place.
    pub rings: [AtomicU32; RING_PLACES],
}

/// What a page said at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingLook {
    /// Rings of anybody.
    pub all: u32,
    rings: [u32; RING_PLACES],
}

/// Bytes that a look reads.
pub const RING_LOOK_SIZE: usize = size_of::<u32>() * (RING_PLACES + 1);

impl Default for RingLook {
    fn default() -> Self {
        Self {
            all: 0,
            rings: [0; RING_PLACES],
        }
    }
}

impl RingLook {
    /// A look at the first bytes of the file; what is missing counts as 0.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut look = Self::default();
        let words = bytes
            .chunks_exact(4)
            .filter_map(|word| Some(u32::from_le_bytes(*word.first_chunk()?)));
        for (at, word) in words.take(RING_PLACES.saturating_add(1)).enumerate() {
            match at.checked_sub(1) {
                None => look.all = word,
                Some(place) => {
                    if let Some(ring) = look.rings.get_mut(place) {
                        *ring = word;
                    }
                }
            }
        }
        look
    }

    /// Places that rang since an earlier look, one bit each.
    #[must_use]
    pub fn rang_since(&self, before: &Self) -> u64 {
        self.rings
            .iter()
            .zip(&before.rings)
            .enumerate()
            .filter(|(_, (now, then))| now != then)
            .fold(0, |bits, (place, _)| bits | ring_bit(place))
    }
}

/// The bit of a place; nothing beyond the last.
#[must_use]
pub fn ring_bit(place: usize) -> u64 {
    match u32::try_from(place) {
        Ok(place) if usize::try_from(place).is_ok_and(|place| place < RING_PLACES) => 1_u64.wrapping_shl(place),
        _ => 0,
    }
}

impl RingPage {
    /// What a page of the process's own says. Not for a mapping of the file.
    #[must_use]
    pub fn look(&self) -> RingLook {
        let mut look = RingLook {
            all: self.all.load(Ordering::Acquire),
            ..RingLook::default()
        };
        for (to, from) in look.rings.iter_mut().zip(&self.rings) {
            *to = from.load(Ordering::Acquire);
        }
        look
    }

    /// Keeps a look in a page of the process's own.
    pub fn keep(&self, look: &RingLook) {
        for (to, from) in self.rings.iter().zip(look.rings) {
            to.store(from, Ordering::Release);
        }
        self.all.store(look.all, Ordering::Release);
    }
}

#[cfg(not(loom))]
const _: () = {
    assert!(size_of::<RingPage>() == RING_LOOK_SIZE);
    assert!(RING_LOOK_SIZE <= RING_SIZE);
};

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_look_tells_who_rang() {
        let mut bytes = [0; RING_LOOK_SIZE];
        let before = RingLook::from_bytes(&bytes);
        bytes[0] = 2;
        bytes[4 * 3] = 1;
        bytes[4 * 63] = 9;
        let now = RingLook::from_bytes(&bytes);
        assert_eq!((now.all, before.all), (2, 0));
        assert_eq!(now.rang_since(&before), ring_bit(2) | ring_bit(62));
        assert_eq!(now.rang_since(&now), 0);
    }

    #[test]
    fn a_shorter_file_is_a_silent_one() {
        let look = RingLook::from_bytes(&[1, 0, 0]);
        assert_eq!(look, RingLook::default());
        assert_eq!((ring_bit(RING_PLACES), ring_bit(usize::MAX)), (0, 0));
    }
}
