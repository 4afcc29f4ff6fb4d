//! Host pages behind device memory.
//!
//! One anonymous file holds the bytes of all device memory of the process. It is mapped once,
//! so a plain allocation costs no mapping of its own, and a range of it can be mapped again
//! elsewhere (virtual memory management) or by another process (sharing). Nothing is backed by
//! memory until it is touched.

use std::collections::BTreeMap;
use std::os::fd::RawFd;

const LARGE: u64 = 2 << 20;
const SMALL: u64 = 512;

/// The anonymous file, its mapping, and what of it is free.
#[derive(Debug)]
pub(crate) struct Arena {
    fd: RawFd,
    base: u64,
    size: u64,
    free: BTreeMap<u64, u64>,
}

impl Arena {
    /// A fresh arena of `size` bytes, or a smaller one where the address space is short.
    pub(crate) fn new(size: u64) -> Option<Self> {
        // SAFETY: a constant name and a valid flag.
        let fd = unsafe { libc::memfd_create(c"device-memory".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return None;
        }
        let mut size = size.next_multiple_of(LARGE);
        while size >= LARGE * 64 {
            // SAFETY: `fd` is ours; a fresh mapping is asked for.
            let base = unsafe {
                if libc::ftruncate(fd, size as libc::off_t) != 0 {
                    libc::MAP_FAILED
                } else {
                    libc::mmap(
                        std::ptr::null_mut(),
                        size as usize,
                        libc::PROT_READ | libc::PROT_WRITE,
                        libc::MAP_SHARED | libc::MAP_NORESERVE,
                        fd,
                        0,
                    )
                }
            };
            if base != libc::MAP_FAILED {
                let base = base as u64;
                let mut free = BTreeMap::new();
                // Begin at a multiple of the large unit so that offsets and addresses align alike.
                let skip = base.next_multiple_of(LARGE) - base;
                free.insert(skip, size - skip);
                // SAFETY: advice on our own mapping; without it a core dump could be huge.
                unsafe {
                    libc::madvise(base as *mut _, size as usize, libc::MADV_DONTDUMP);
                }
                return Some(Self { fd, base, size, free });
            }
            size = (size / 2).next_multiple_of(LARGE);
        }
        None
    }

    fn unit(size: u64) -> u64 {
        if size < LARGE / 2 { SMALL } else { LARGE }
    }

    /// Takes a range; returns its address.
    pub(crate) fn take(&mut self, size: u64) -> Option<u64> {
        let unit = Self::unit(size);
        let need = size.max(1).checked_next_multiple_of(unit)?;
        let (at, len, start) = self.free.iter().find_map(|(at, len)| {
            let start = (self.base + at).next_multiple_of(unit) - self.base;
            (start + need <= at + len).then_some((*at, *len, start))
        })?;
        self.free.remove(&at);
        if start > at {
            self.free.insert(at, start - at);
        }
        if at + len > start + need {
            self.free.insert(start + need, at + len - start - need);
        }
        Some(self.base + start)
    }

    /// Gives a range back and lets go of its pages.
    pub(crate) fn give(&mut self, address: u64, size: u64) {
        let unit = Self::unit(size);
        let len = size.max(1).next_multiple_of(unit);
        let mut at = address - self.base;
        if len >= 65536 {
            // SAFETY: punches whole pages of our own file; nobody uses the range any more.
            unsafe {
                libc::fallocate(
                    self.fd,
                    libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                    at as libc::off_t,
                    len as libc::off_t,
                );
            }
        }
        let mut len = len;
        if let Some((before, size)) = self.free.range(..at).next_back().map(|(a, l)| (*a, *l))
            && before + size == at
        {
            self.free.remove(&before);
            at = before;
            len += size;
        }
        if let Some(size) = self.free.remove(&(at + len)) {
            len += size;
        }
        self.free.insert(at, len);
    }

    /// Offset of an address in the file.
    pub(crate) fn offset(&self, address: u64) -> u64 {
        address - self.base
    }

    /// Descriptor of the file.
    pub(crate) fn fd(&self) -> RawFd {
        self.fd
    }

    /// Whether the address lies in the arena's own mapping.
    pub(crate) fn contains(&self, address: u64) -> bool {
        (self.base..self.base + self.size).contains(&address)
    }
}

/// Address space without pages.
pub(crate) fn reserve(size: u64, alignment: u64, hint: u64) -> Option<u64> {
    let alignment = alignment.max(LARGE);
    let room = size.checked_add(alignment)?;
    // SAFETY: a fresh mapping without access; the hint is only a wish.
    let base = unsafe {
        libc::mmap(
            hint as *mut _,
            room as usize,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if base == libc::MAP_FAILED {
        return None;
    }
    let base = base as u64;
    let start = base.next_multiple_of(alignment);
    // SAFETY: both ends belong to the mapping just made.
    unsafe {
        if start > base {
            libc::munmap(base as *mut _, (start - base) as usize);
        }
        let end = base + room;
        if end > start + size {
            libc::munmap((start + size) as *mut _, (end - start - size) as usize);
        }
    }
    Some(start)
}

/// Gives reserved address space back.
pub(crate) fn unreserve(address: u64, size: u64) {
    // SAFETY: the caller owns the whole range.
    unsafe {
        libc::munmap(address as *mut _, size as usize);
    }
}

/// Maps a part of a file over reserved address space.
pub(crate) fn map(address: u64, size: u64, fd: RawFd, offset: u64) -> bool {
    // SAFETY: the range is reserved by the caller; replacing its empty mapping is the purpose.
    let got = unsafe {
        libc::mmap(
            address as *mut _,
            size as usize,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE,
            fd,
            offset as libc::off_t,
        )
    };
    got != libc::MAP_FAILED
}

/// Turns a mapped range into reserved address space again.
pub(crate) fn unmap(address: u64, size: u64) {
    // SAFETY: as in `map`.
    unsafe {
        libc::mmap(
            address as *mut _,
            size as usize,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
            -1,
            0,
        );
    }
}
