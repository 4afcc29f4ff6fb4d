//! The agent's side of the pages for moving memory: orders out, reports in.

use core::mem::MaybeUninit;
use std::{
    fs::{File, OpenOptions},
    io,
    os::{fd::AsRawFd as _, unix::fs::FileExt as _},
    path::{Path, PathBuf},
    ptr,
};

use crate::{
    MAX_CARDS, MAX_SLOTS, Order, SWAP_ORDER_SIZE, SWAP_REPORT_MAGIC, SwapFigures, SwapOrders, SwapRow,
    fs::GrantDir,
    swap::{HIGH_AT, ROWS_AT, fresh_head},
};

/// Why the pages of a container are not to be had.
#[derive(Debug, thiserror::Error)]
pub enum SwapHostError {
    /// The operating system said no; not found means that the grant has no card that needs this page.
    #[error("mapping {}", path.display())]
    Io {
        /// The page.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is something else, or of another version.
    #[error("{} is no page of this version", .0.display())]
    NoPage(PathBuf),
}

/// Nanoseconds of the clock that processes report by.
#[must_use]
#[expect(unsafe_code, reason = "reads a clock")]
pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a place for the answer.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    let part = |n: i64| u64::try_from(n).unwrap_or_default();
    part(now.tv_sec)
        .saturating_mul(1_000_000_000)
        .saturating_add(part(now.tv_nsec))
}

/// A whole file, mapped to be read and written.
pub(crate) struct Mapping {
    page: *mut u8,
    size: usize,
}

impl Mapping {
    #[expect(unsafe_code, reason = "maps a file")]
    pub(crate) fn of(path: &Path, size: usize) -> Result<Self, SwapHostError> {
        let failed = |source| SwapHostError::Io {
            path: path.to_path_buf(),
            source,
        };
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        if usize::try_from(length).ok().is_none_or(|length| length < size) {
            return Err(SwapHostError::NoPage(path.to_path_buf()));
        }
        // SAFETY: a new mapping of an open file that is long enough, at a place of the kernel's choice.
        let page = unsafe {
            libc::mmap(
                ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if page == libc::MAP_FAILED {
            return Err(failed(io::Error::last_os_error()));
        }
        Ok(Self {
            page: page.cast(),
            size,
        })
    }
}

impl Mapping {
    pub(crate) fn page(&self) -> *mut u8 {
        self.page
    }
}

impl Drop for Mapping {
    #[expect(unsafe_code, reason = "unmaps what was mapped")]
    fn drop(&mut self) {
        // SAFETY: mapped by `of` and given back once.
        unsafe { libc::munmap(self.page.cast(), self.size) };
    }
}

/// What the processes of one container say of one card, together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SwapContainer {
    /// Processes that are there and have movable memory.
    pub processes: u64,
    /// Whether one of them waits for memory that is away.
    pub wants: bool,
    /// Movable bytes on the card.
    pub resident_bytes: u64,
    /// Bytes that are away.
    pub away_bytes: u64,
    /// Bytes that cannot be moved.
    pub pinned_bytes: u64,
    /// Bytes moved so far, both ways.
    pub moved_bytes: u64,
    /// Time that this took so far, in nanoseconds.
    pub moved_ns: u64,
    /// Number of the last order that all of them have carried out; nothing without a process.
    pub answered: Option<u32>,
}

/// The pages of one container.
///
/// The reports are read as a file: a tenant can cut its own short, and a look at a mapping of what is gone would end the
/// agent.
pub struct SwapHost {
    orders: Mapping,
    reports: File,
}

impl core::fmt::Debug for SwapHost {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("SwapHost").finish_non_exhaustive()
    }
}

// SAFETY: the page is atomics in shared memory, and the mapping is given back once.
#[expect(unsafe_code, reason = "mappings may go from thread to thread")]
unsafe impl Send for SwapHost {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "the page is atomics")]
unsafe impl Sync for SwapHost {}

impl SwapHost {
    /// Opens the pages of a grant.
    ///
    /// # Errors
    /// [`SwapHostError`]: no such pages, or not of this version.
    #[expect(unsafe_code, reason = "looks at a mapping")]
    pub fn open(dir: &GrantDir) -> Result<Self, SwapHostError> {
        let (order, report) = (dir.swap_order_file(), dir.swap_report_file());
        let orders = Mapping::of(&order, SWAP_ORDER_SIZE)?;
        // SAFETY: a fresh mapping of the full size, aligned to a page.
        if unsafe { SwapOrders::from_ptr(orders.page) }.is_none() {
            return Err(SwapHostError::NoPage(order));
        }
        let reports = File::open(&report).map_err(|source| SwapHostError::Io {
            path: report.clone(),
            source,
        })?;
        let known = fresh_head(SWAP_REPORT_MAGIC);
        let mut head = [0; 12];
        if reports.read_exact_at(&mut head, 0).is_err() || head != known {
            return Err(SwapHostError::NoPage(report));
        }
        Ok(Self { orders, reports })
    }

    #[expect(unsafe_code, reason = "looks at a mapping")]
    fn orders(&self) -> Option<&SwapOrders> {
        // SAFETY: mapped as long as this lives. The head was checked; the agent alone can write it.
        unsafe { SwapOrders::from_ptr(self.orders.page) }
    }

    /// Rows that may be in use: all below this; none when the tenant broke its file.
    fn rows_used(&self) -> usize {
        let mut high = [0; 4];
        if self.reports.read_exact_at(&mut high, HIGH_AT).is_err() {
            return 0;
        }
        usize::try_from(u32::from_le_bytes(high)).map_or(MAX_SLOTS, |high| high.min(MAX_SLOTS))
    }

    /// Gives an order for a card, by its place in the grant, and wakes the processes. Its number; 0 when there is no
    /// such card.
    #[expect(unsafe_code, reason = "wakes waiters")]
    pub fn give(&self, card: usize, order: Order) -> u32 {
        let Some(orders) = self.orders() else { return 0 };
        let number = orders.give(card, order).unwrap_or_default();
        // SAFETY: the word lies in a live mapping; waking has no other effect.
        unsafe { libc::syscall(libc::SYS_futex, orders.bell().as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
        number
    }

    /// Says that the agent is alive.
    pub fn beat(&self, now_ns: u64) {
        if let Some(orders) = self.orders() {
            orders.beat(now_ns);
        }
    }

    /// The sum over the processes of the container that are there, for a card by its place in the grant.
    #[must_use]
    pub fn container(&self, card: usize, now_ns: u64) -> SwapContainer {
        let mut all = SwapContainer::default();
        for figures in (0..self.rows_used()).filter_map(|slot| self.figures(slot, card)) {
            if !figures.is_live(now_ns) {
                continue;
            }
            all.processes = all.processes.saturating_add(1);
            all.wants |= figures.wants;
            all.resident_bytes = all.resident_bytes.saturating_add(figures.resident_bytes);
            all.away_bytes = all.away_bytes.saturating_add(figures.away_bytes);
            all.pinned_bytes = all.pinned_bytes.saturating_add(figures.pinned_bytes);
            all.moved_bytes = all.moved_bytes.saturating_add(figures.moved_bytes);
            all.moved_ns = all.moved_ns.saturating_add(figures.moved_ns);
            all.answered = Some(
                all.answered
                    .map_or(figures.answered, |least| least.min(figures.answered)),
            );
        }
        all
    }

    /// What the process at a place of the account says of a card; nothing where there is no row.
    #[must_use]
    #[expect(unsafe_code, reason = "reads a row as it lies in the file")]
    pub fn figures(&self, slot: usize, card: usize) -> Option<SwapFigures> {
        if slot >= MAX_SLOTS || card >= MAX_CARDS {
            return None;
        }
        let row_at = slot
            .checked_mul(MAX_CARDS)?
            .checked_add(card)?
            .checked_mul(size_of::<SwapRow>())?;
        let at = ROWS_AT.checked_add(u64::try_from(row_at).ok()?)?;
        let mut row = MaybeUninit::<SwapRow>::zeroed();
        // SAFETY: the bytes of the row, all initialised to zero.
        let bytes = unsafe { core::slice::from_raw_parts_mut(row.as_mut_ptr().cast::<u8>(), size_of::<SwapRow>()) };
        self.reports.read_exact_at(bytes, at).ok()?;
        // SAFETY: initialised, and every bit pattern is valid.
        Some(unsafe { row.assume_init_ref() }.read())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::{CardFlags, CardGrant, Grant, GrantId, fs::create_grant_dir};

    #[test]
    fn a_tenant_that_cuts_its_reports_short_is_a_tenant_without_reports() {
        let root = tempfile::tempdir().unwrap();
        let mut card = CardGrant::with_memory("GPU-a", 1 << 30).unwrap();
        card.flags = card.flags.with(CardFlags::SWAP);
        let mut grant = Grant::new(GrantId::from_bytes([7; 16]), "uid", "main").unwrap();
        grant.push_card(card).unwrap();
        let dir = create_grant_dir(root.path(), &grant).unwrap();
        let host = SwapHost::open(&dir).unwrap();
        let file = OpenOptions::new().write(true).open(dir.swap_report_file()).unwrap();
        // Row 2, card 0: a process with 4096 bytes that is there.
        let row = ROWS_AT + 2 * u64::try_from(MAX_CARDS * size_of::<SwapRow>()).unwrap();
        file.write_all_at(&3_u32.to_le_bytes(), HIGH_AT).unwrap();
        file.write_all_at(&4096_u64.to_le_bytes(), row + 8).unwrap();
        file.write_all_at(&monotonic_ns().to_le_bytes(), row + 48).unwrap();
        let said = host.container(0, monotonic_ns());
        assert_eq!((said.processes, said.resident_bytes), (1, 4096));
        for length in [row + 8, 4096, 0] {
            file.set_len(length).unwrap();
            assert_eq!(host.container(0, monotonic_ns()), SwapContainer::default(), "{length}");
        }
        assert_eq!(host.figures(MAX_SLOTS, 0), None);
        assert_eq!(host.figures(0, MAX_CARDS), None);
    }
}
