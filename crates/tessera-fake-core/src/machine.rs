//! The mapped machine as one process sees it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, IntoRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::SeqCst;

use crate::layout::{CardDesc, CardState, LAYOUT_VERSION, MAGIC, MAX_CARDS, Pool, State, UNIT, name_hash, text};
use crate::mig;

/// Why the machine cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The control file is absent or may not be opened.
    #[error("{path}: {source}")]
    Open {
        /// What was opened.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The control file is a real device, or no state of ours.
    #[error("{0}: not a simulated machine")]
    NotSimulated(PathBuf),
    /// The state was made by another version of the tool.
    #[error("{path}: layout {found}, this library needs {LAYOUT_VERSION}; install the machine again")]
    Version {
        /// What was opened.
        path: PathBuf,
        /// Version in the file.
        found: u32,
    },
}

/// The shared state, mapped for the life of the process.
///
/// The file is opened once and never closed: the system drops all of a process's record locks
/// on a file as soon as the process closes *any* descriptor of it.
#[derive(Debug)]
pub struct Machine {
    state: *const State,
    fd: RawFd,
    root: PathBuf,
}

// SAFETY: the mapping is shared and never unmapped; all that changes in it is atomic.
unsafe impl Send for Machine {}
// SAFETY: as above.
unsafe impl Sync for Machine {}

impl Machine {
    /// Opens the machine of this process: the driver root of [`crate::ROOT_VARIABLE`], else `/`.
    ///
    /// # Errors
    /// As [`Machine::at`].
    pub fn open() -> Result<Self, OpenError> {
        let root = std::env::var_os(crate::ROOT_VARIABLE).unwrap_or_default();
        Self::at(Path::new(&root))
    }

    /// Opens the machine under a driver root; the empty path means `/`.
    ///
    /// # Errors
    /// The control file is absent, not readable and writable, or not one of ours.
    pub fn at(root: &Path) -> Result<Self, OpenError> {
        let path = device_path(root, "nvidiactl");
        let open = |source| OpenError::Open {
            path: path.clone(),
            source,
        };
        let file = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_CLOEXEC | libc::O_NOCTTY)
            .open(&path)
            .map_err(open)?;
        let meta = file.metadata().map_err(open)?;
        let size = std::mem::size_of::<State>();
        if !meta.is_file() || meta.file_type().is_char_device() || meta.size() < 16 {
            return Err(OpenError::NotSimulated(path));
        }
        let mut head = [0u8; 16];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut head, 0).map_err(open)?;
        if head[..8] != MAGIC.to_le_bytes() {
            return Err(OpenError::NotSimulated(path));
        }
        let found = u32::from_le_bytes([head[8], head[9], head[10], head[11]]);
        if found != LAYOUT_VERSION || meta.size() != size as u64 {
            return Err(OpenError::Version { path, found });
        }
        // SAFETY: a fresh shared mapping of a file that has the full size of the state.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(open(io::Error::last_os_error()));
        }
        Ok(Self {
            state: base.cast_const().cast::<State>(),
            fd: file.into_raw_fd(),
            root: root.to_path_buf(),
        })
    }

    pub(crate) fn state(&self) -> &State {
        // SAFETY: mapped in `at`, page-aligned, of the full size, never unmapped.
        unsafe { &*self.state }
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.fd
    }

    /// Driver root that the machine was opened under.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Number of cards of the machine, visible or not.
    #[must_use]
    pub fn cards(&self) -> usize {
        (self.state().cards_len as usize).min(MAX_CARDS)
    }

    /// Description of a card.
    #[must_use]
    pub fn card(&self, card: usize) -> &CardDesc {
        &self.state().descs[card]
    }

    /// Changing state of a card.
    #[must_use]
    pub fn card_state(&self, card: usize) -> &CardState {
        &self.state().cards[card]
    }

    /// Whether this process may open the card's device file, as the real driver decides it.
    #[must_use]
    pub fn visible(&self, card: usize) -> bool {
        let path = device_path(&self.root, &format!("nvidia{}", self.card(card).minor));
        File::options().read(true).write(true).open(path).is_ok()
    }

    /// Cards that this process may open, in bus order.
    #[must_use]
    pub fn visible_cards(&self) -> Vec<usize> {
        (0..self.cards()).filter(|c| self.visible(*c)).collect()
    }

    /// Whether this driver lacks an entry point that the library has.
    #[must_use]
    pub fn lacks(&self, name: &str) -> bool {
        let list = &self.state().without;
        list[0] != 0 && list.contains(&name_hash(name))
    }

    /// Driver version text.
    #[must_use]
    pub fn driver_version(&self) -> &str {
        text(&self.state().driver)
    }

    /// CUDA version of the driver, 1000 * major + 10 * minor.
    #[must_use]
    pub fn cuda_version(&self) -> u32 {
        self.state().cuda_version
    }

    /// Size of the chunks that the driver takes device memory in.
    #[must_use]
    pub fn granule_bytes(&self) -> u64 {
        self.state().granule_bytes.max(UNIT)
    }

    /// Time of a kernel that does not say how long it takes.
    #[must_use]
    pub fn default_kernel_us(&self) -> u64 {
        self.state().kernel_us
    }

    /// Whether a multi-process server runs.
    #[must_use]
    pub fn has_mps(&self) -> bool {
        self.state().mps == 1
    }

    /// Time that the link to the host needs for so many bytes, in nanoseconds.
    #[must_use]
    pub fn link_ns(&self, bytes: u64) -> u64 {
        match self.state().link_bytes_us {
            0 => 0,
            speed => bytes.saturating_mul(1000) / speed,
        }
    }

    /// Launches of one stream that may wait before a launch blocks.
    #[must_use]
    pub fn in_flight_max(&self) -> u64 {
        self.state().in_flight_max.max(1)
    }

    /// Common ancestor of two cards as the management library numbers it.
    #[must_use]
    pub fn topology(&self, a: usize, b: usize) -> u8 {
        self.state().topology[a][b]
    }

    /// NVLinks between two cards; links to a switch reach every card that has such links.
    #[must_use]
    pub fn links_between(&self, a: usize, b: usize) -> usize {
        let (da, db) = (self.card(a), self.card(b));
        let to_b = u8::try_from(b).unwrap_or(255);
        let direct = da.link_peer.iter().filter(|p| **p == to_b).count();
        if direct > 0 {
            return direct;
        }
        let switched = |d: &CardDesc| d.link_peer.iter().filter(|p| **p == 254).count();
        switched(da).min(switched(db))
    }

    /// Bytes that a pool can hold.
    #[must_use]
    pub fn pool_bytes(&self, pool: Pool) -> u64 {
        match pool.instance {
            None => self.card(pool.card).usable_bytes(),
            Some(i) => mig::instance(self, pool.card, i).map_or(0, |inst| inst.profile.memory_mib << 20),
        }
    }

    /// Bytes in use of a pool, after the dead have given back theirs.
    #[must_use]
    pub fn used_bytes(&self, pool: Pool) -> u64 {
        self.reap(pool.card);
        u64::from(self.state().pool_units(pool)) * UNIT
    }

    /// Return code that every management call shall give; 0 for none.
    #[must_use]
    pub fn nvml_fault(&self) -> i32 {
        self.state().nvml_fault.load(SeqCst)
    }
}

/// Path of a device file under a driver root.
pub(crate) fn device_path(root: &Path, name: &str) -> PathBuf {
    let root = if root.as_os_str().is_empty() {
        Path::new("/")
    } else {
        root
    };
    root.join("dev").join(name)
}
