//! What a caller hands over by reference.
//!
//! A hook may look at an argument before the driver does, and then a null, odd or dangling address must not become a
//! fault of this library. Three cases, one function each: what the driver has just written ([`written`], [`put`]) is
//! there, though maybe not aligned; what only the caller vouches for ([`given`], [`is_writable`]) is tried by the kernel
//! first; and a launch, which has no time for that, asks once for launches in a row ([`given_again`]).

use core::{
    ffi::c_void,
    mem::MaybeUninit,
    sync::atomic::{AtomicUsize, Ordering},
};

use crate::os::KeepErrno;

/// Least size of a page, on every platform.
const PAGE: usize = 4096;

/// Reads what the driver has just written, or has accepted.
///
/// # Safety
/// `place` can be read; any bytes are a value of `T`.
#[inline(always)]
#[expect(clippy::inline_always, reason = "one load; on the way of every allocation")]
pub(crate) unsafe fn written<T: Copy>(place: *const T) -> T {
    // SAFETY: by the caller's promise; no alignment is asked for.
    unsafe { place.read_unaligned() }
}

/// Writes where the driver has just written.
///
/// # Safety
/// `place` can be written.
#[inline(always)]
#[expect(clippy::inline_always, reason = "one store")]
pub(crate) unsafe fn put<T: Copy>(place: *mut T, value: T) {
    // SAFETY: by the caller's promise; no alignment is asked for.
    unsafe { place.write_unaligned(value) }
}

/// Whether an address can be that of anything: not in the pages around null, and with the upper bits of a program's
/// addresses. Says nothing about what is there.
fn plausible(address: usize) -> bool {
    let address = without_tag(address);
    address >= 16 * PAGE && address.leading_zeros() >= 8
}

/// Programs may keep a tag in the upper byte of an address where the processor ignores it.
fn without_tag(address: usize) -> usize {
    if cfg!(target_arch = "aarch64") {
        address & (usize::MAX >> 8)
    } else {
        address
    }
}

/// Reads a structure that nobody has looked at yet; nothing when there is no memory to read.
///
/// # Safety
/// Any bytes are a value of `T`, and no other thread changes them meanwhile.
pub(crate) unsafe fn given<T: Copy>(place: *const T) -> Option<T> {
    let size = size_of::<T>();
    // SAFETY: readable, by the kernel's word.
    is_readable(place.addr(), size).then(|| unsafe { written(place) })
}

/// The same on the way of a launch: structures of launches lie on the stack, so the kernel is asked about a page only
/// when it is not the one of the launch before.
///
/// # Safety
/// As for [`given`]. A page that was closed since the launch before is a fault, as it would be in the driver.
#[inline]
pub(crate) unsafe fn given_again<T: Copy>(place: *const T) -> Option<T> {
    // No address has this page.
    static PAGE_BEFORE: AtomicUsize = AtomicUsize::new(usize::MAX);
    let (first, last) = (place.addr(), place.addr().wrapping_add(size_of::<T>()).wrapping_sub(1));
    let page = first / PAGE;
    let known = page == PAGE_BEFORE.load(Ordering::Relaxed) && last / PAGE == page;
    if !known {
        if !is_readable(first, size_of::<T>()) {
            return None;
        }
        PAGE_BEFORE.store(page, Ordering::Relaxed);
    }
    // SAFETY: readable, by the kernel's word.
    Some(unsafe { written(place) })
}

/// Whether `size` bytes from `address` on can be read. The kernel is asked with a call that reads eight bytes and then
/// refuses its first argument, so nothing changes.
fn is_readable(address: usize, size: usize) -> bool {
    const NO_SUCH_HOW: i32 = -1;
    const WORD: usize = 8;
    let address = without_tag(address);
    let _errno = KeepErrno::new();
    let word = |address: usize| {
        let nowhere = core::ptr::null_mut::<c_void>();
        // SAFETY: the kernel checks the address; the operation does not exist.
        let result = unsafe { libc::syscall(libc::SYS_rt_sigprocmask, NO_SUCH_HOW, address, nowhere, WORD) };
        result == 0 || crate::os::errno() != libc::EFAULT
    };
    plausible(address) && each_page(address, size.max(WORD), WORD, word)
}

/// Whether `size` bytes from `place` on can be written; what they hold stays.
pub(crate) fn is_writable<T>(place: *mut T, size: usize) -> bool {
    const WORD: usize = size_of::<u32>();
    let address = place.addr();
    if !is_readable(address, size) {
        return false;
    }
    let _errno = KeepErrno::new();
    each_page(address, size.max(WORD), WORD, |at| {
        let place = place.cast::<u8>().wrapping_add(at.wrapping_sub(address)).cast::<u32>();
        // SAFETY: readable, by the kernel's word.
        let before = unsafe { written(place) };
        let mut other = MaybeUninit::<[u32; 2]>::uninit();
        let others = other.as_mut_ptr().cast::<u32>();
        // Writes four bytes to each of three places, or nothing to a bad one and says so.
        // SAFETY: the kernel checks the first place; the two others are ours.
        let result = unsafe { libc::syscall(libc::SYS_getresuid, place, others, others.wrapping_add(1)) };
        if result != 0 {
            return false;
        }
        // SAFETY: written by the kernel a moment ago.
        unsafe { put(place, before) };
        true
    })
}

/// Asks for a word at the start, in each further page, and at the end of a range.
fn each_page(address: usize, size: usize, word: usize, mut ask: impl FnMut(usize) -> bool) -> bool {
    let Some(last) = address.checked_add(size).and_then(|end| end.checked_sub(word)) else {
        return false;
    };
    let mut at = address;
    while at < last {
        if !ask(at) {
            return false;
        }
        let Some(next) = (at / PAGE).checked_add(1).and_then(|page| page.checked_mul(PAGE)) else {
            return false;
        };
        at = next;
    }
    ask(last)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use core::ptr;

    use super::*;

    /// Two pages of which the second is closed; the address of the second.
    fn edge(protection: i32) -> *mut u8 {
        // SAFETY: a new mapping, never given back.
        unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let page = libc::mmap(
                ptr::null_mut(),
                2 * PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                -1,
                0,
            );
            assert_ne!(page, libc::MAP_FAILED);
            let second = page.cast::<u8>().wrapping_add(PAGE);
            assert_eq!(libc::mprotect(second.cast(), PAGE, protection), 0);
            second
        }
    }

    #[test]
    fn what_cannot_be_read_is_nothing() {
        let closed = edge(libc::PROT_NONE);
        // SAFETY: bytes.
        let read = |place: *mut u8| unsafe { given(place.cast::<[u64; 4]>()) };
        assert_eq!(read(closed.wrapping_sub(32)), Some([0; 4]));
        assert_eq!(read(closed.wrapping_sub(31)), None);
        assert_eq!(read(closed), None);
        for odd in [
            0,
            1,
            8,
            PAGE - 1,
            usize::MAX,
            usize::MAX - 7,
            1 << 63,
            0x0123_4567_89ab_cdef,
        ] {
            assert_eq!(read(ptr::without_provenance_mut(odd)), None, "{odd:#x}");
        }
    }

    #[test]
    fn a_page_that_was_read_before_says_nothing_of_the_next() {
        let closed = edge(libc::PROT_NONE);
        // SAFETY: bytes.
        let read = |place: *mut u8| unsafe { given_again(place.cast::<u64>()) };
        assert_eq!(read(ptr::without_provenance_mut(1)), None);
        for _ in 0..2 {
            assert_eq!(read(closed.wrapping_sub(8)), Some(0));
            assert_eq!(read(closed.wrapping_sub(7)), None);
            assert_eq!(read(closed), None);
            assert_eq!(read(ptr::null_mut()), None);
        }
    }

    #[test]
    fn what_cannot_be_written_is_told_and_what_can_keeps_its_bytes() {
        let fixed = edge(libc::PROT_READ);
        assert!(!is_writable(fixed, 1));
        assert!(!is_writable(fixed.wrapping_sub(4), 8));
        let place = fixed.wrapping_sub(12);
        // SAFETY: before the second page.
        unsafe { put(place.cast::<[u32; 3]>(), [1, 2, 3]) };
        assert!(is_writable(place, 12));
        // SAFETY: as above.
        assert_eq!(unsafe { written(place.cast::<[u32; 3]>()) }, [1, 2, 3]);
        assert!(!is_writable(ptr::null_mut::<u8>(), 4));
    }

    #[test]
    fn errno_stays() {
        // SAFETY: always a valid place.
        unsafe { *libc::__errno_location() = 5 };
        assert!(!is_readable(PAGE * 17, 8));
        assert_eq!(crate::os::errno(), 5);
    }
}
