//! Doorbells: see [`tessera_region::RingPage`]. A more important process rings before its first launch; a less important
//! one that launches looks first, and waits until the agent has answered.

use core::{
    ffi::CStr,
    sync::atomic::{AtomicPtr, AtomicU64, Ordering},
};

use tessera_region::{RING_LOOK_SIZE, RING_MOST_NS, RING_SIZE, RingLook, RingPage, VerdictCard};

use crate::{address::Lock, os};

const RINGS: &CStr = c"/run/tessera/account/ring.";
const LISTENS: &CStr = c"/run/tessera/grant/ring.";
/// Time between two attempts to find a page that is not there.
const AGAIN_MS: u64 = 20;

/// The doorbell of one card. Valid when zero.
#[repr(C)]
pub(super) struct Bell {
    rings: Mapped,
    listens: Mapped,
    /// The last look.
    last: RingPage,
    /// When a ring is over that the agent does not answer.
    until_ns: AtomicU64,
    lock: Lock,
}

/// A mapping that is made when it is first wanted.
#[repr(C)]
struct Mapped {
    page: AtomicPtr<RingPage>,
    again_ms: AtomicU64,
}

/// Path of a page, for the system.
fn path(front: &CStr, card: usize) -> [u8; 48] {
    let mut path = [0; 48];
    let digits = [card.wrapping_div(10), card.wrapping_rem(10)];
    let digits = digits
        .iter()
        .skip(usize::from(card < 10))
        .map(|digit| b'0'.wrapping_add(u8::try_from(*digit).unwrap_or_default()));
    let bytes = front.to_bytes().iter().copied().chain(digits);
    // One byte stays zero.
    path.iter_mut()
        .take(47)
        .zip(bytes)
        .for_each(|(place, byte)| *place = byte);
    path
}

impl Mapped {
    /// The page. Its words are for the system alone: the file may have become shorter.
    fn page(&self, front: &CStr, card: usize, writable: bool) -> Option<&'static RingPage> {
        let known = self.page.load(Ordering::Acquire);
        if !known.is_null() {
            // SAFETY: a mapping of the full size that is never given back.
            return unsafe { known.cast_const().as_ref() };
        }
        let now = os::now_ms();
        if now < self.again_ms.load(Ordering::Relaxed) {
            return None;
        }
        self.again_ms.store(now.saturating_add(AGAIN_MS), Ordering::Relaxed);
        let path = path(front, card);
        let page = os::map_file(CStr::from_bytes_until_nul(&path).ok()?, RING_SIZE, writable).ok()?;
        if self
            .page
            .compare_exchange(core::ptr::null_mut(), page.cast(), Ordering::AcqRel, Ordering::Acquire)
            .is_err()
        {
            // SAFETY: mapped above, and nobody else has seen it.
            unsafe { os::unmap(page, RING_SIZE) };
        }
        // SAFETY: as above; set by now.
        unsafe { self.page.load(Ordering::Acquire).cast_const().as_ref() }
    }
}

impl Bell {
    /// Stops the less important ones on a card, if the agent gave this container a place.
    pub(super) fn ring(&self, card: usize, words: &VerdictCard) {
        let place = words.ring_place.load(Ordering::Acquire).checked_sub(1);
        let Some(place) = place.and_then(|place| usize::try_from(place).ok()) else {
            return;
        };
        if let Some(page) = self.rings.page(RINGS, card, true)
            && let Some(ring) = page.rings.get(place)
        {
            os::add_one(ring);
            os::add_one(&page.all);
        }
    }

    /// Whether somebody more important rang, and the agent has not answered.
    pub(super) fn is_rung(&self, card: usize, words: &VerdictCard) -> bool {
        let heed = words.heed.load(Ordering::Acquire);
        if heed == 0 {
            return false;
        }
        let Some(page) = self.listens.page(LISTENS, card, false) else {
            return false;
        };
        if !os::word_is(&page.all, self.last.all.load(Ordering::Acquire)) {
            self.look(card, heed);
        }
        self.is_unanswered(words)
    }

    #[cold]
    fn look(&self, card: usize, heed: u64) {
        let _guard = self.lock.hold();
        let mut bytes = [0; RING_LOOK_SIZE];
        let path = path(LISTENS, card);
        let read = CStr::from_bytes_until_nul(&path).map(|path| os::read_file(path, &mut bytes));
        if !matches!(read, Ok(Ok(RING_LOOK_SIZE))) {
            return;
        }
        let now = RingLook::from_bytes(&bytes);
        if now.rang_since(&self.last.look()) & heed != 0 {
            let until = os::now_ns().saturating_add(RING_MOST_NS);
            self.until_ns.store(until, Ordering::Release);
        }
        self.last.keep(&now);
    }

    /// Whether the last ring is still to be answered by the agent.
    pub(super) fn is_unanswered(&self, words: &VerdictCard) -> bool {
        let until = self.until_ns.load(Ordering::Acquire);
        if until == 0 {
            return false;
        }
        let answered = words.answered.load(Ordering::Acquire);
        let ahead = self.last.all.load(Ordering::Acquire).wrapping_sub(answered);
        // Half of the range is behind.
        let waits = ahead != 0 && ahead < u32::MAX / 2 && os::now_ns() < until;
        if !waits {
            self.until_ns.store(0, Ordering::Release);
        }
        waits
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn pages_are_found_by_position() {
        let text = |card| CStr::from_bytes_until_nul(&path(LISTENS, card)).unwrap().to_owned();
        assert_eq!(text(0).as_c_str(), c"/run/tessera/grant/ring.0");
        assert_eq!(text(15).as_c_str(), c"/run/tessera/grant/ring.15");
    }

    #[test]
    fn the_system_compares_and_adds_without_a_load_of_ours() {
        let word = core::sync::atomic::AtomicU32::new(7);
        assert!(os::word_is(&word, 7) && !os::word_is(&word, 8));
        os::add_one(&word);
        assert_eq!(word.load(Ordering::Relaxed), 8);
        // A file that became shorter than its mapping: no answer but no death either.
        let gone: *mut u8 = {
            // SAFETY: a file of nothing, mapped for a page.
            unsafe {
                let file = libc::memfd_create(c"ring".as_ptr(), 0);
                libc::ftruncate(file, 4096);
                let page = libc::mmap(
                    core::ptr::null_mut(),
                    4096,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_SHARED,
                    file,
                    0,
                );
                libc::ftruncate(file, 0);
                page.cast()
            }
        };
        // SAFETY: aligned, and nobody loads from it.
        let word = unsafe { &*gone.cast::<core::sync::atomic::AtomicU32>() };
        os::add_one(word);
        assert!(os::word_is(word, 5), "what cannot be read has not changed");
    }
}
