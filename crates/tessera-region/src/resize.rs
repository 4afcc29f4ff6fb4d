//! Changing the shares of a container that runs.
//!
//! Raising is easy: the new grant is put in the place of the old one. Lowering memory must not cut below what is held,
//! and what is held changes while one looks. So the lower limit is put into the account first, by
//! [`Account::set_limit`], which holds for all processes at once or changes nothing; the grant follows.
//!
//! A tenant can make the file of its account shorter, and whoever looks at it through a mapping then is ended by the
//! system. So the limit is set by a child process that does nothing else and may end.

use core::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::{
    fs::{File, OpenOptions},
    io,
    os::{fd::AsRawFd as _, unix::fs::FileExt as _},
    path::{Path, PathBuf},
    ptr,
};

use crate::{
    ACCOUNT_SIZE, Account, CardFlags, Grant, GrantState, MAX_CARDS, Refused, account,
    fs::{FsError, GrantDir, read_grant, replace},
};

/// Why the shares of a running container stay as they are.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// More is held than would be allowed.
    #[error("card {card} is to have {wanted_bytes} bytes, and {held_bytes} are held")]
    Held {
        /// UUID of the card.
        card: String,
        /// The limit wanted, in bytes.
        wanted_bytes: u64,
        /// What the container's processes hold, in bytes.
        held_bytes: u64,
    },
    /// The container has the card without limits, so nothing in it would hold it to one.
    #[error("card {card} was given without limits when the container started")]
    Unlimited {
        /// UUID of the card.
        card: String,
    },
    /// The container's time on the card was neither limited nor ranked, so its programs use the driver's own launches.
    #[error("the time on card {card} was not limited when the container started")]
    NoGate {
        /// UUID of the card.
        card: String,
    },
    /// The account is shorter than it was made: the container broke it.
    #[error("the account {} was damaged by its container", .0.display())]
    Broken(PathBuf),
    /// The grant is not sealed: its container does not run yet.
    #[error("the container has not started yet")]
    NotStarted,
    /// A file or a process could not be had.
    #[error("{action} {}", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The grant's files.
    #[error(transparent)]
    Files(#[from] FsError),
}

/// Whether `new` can be put in force while the container of `old` runs, apart from what it holds.
///
/// # Errors
/// [`ResizeError::NotStarted`], [`ResizeError::Unlimited`], [`ResizeError::NoGate`], or other cards than before.
pub fn check(old: &Grant, new: &Grant) -> Result<(), ResizeError> {
    if old.state != GrantState::Sealed {
        return Err(ResizeError::NotStarted);
    }
    let pairs = || old.cards().iter().zip(new.cards());
    if old.cards().len() != new.cards().len() || pairs().any(|(old, new)| old.uuid != new.uuid) {
        return Err(FsError::CardsChanged(old.id).into());
    }
    for (old, new) in pairs() {
        let card = || old.uuid.as_str().to_owned();
        if old.flags.contains(CardFlags::UNLIMITED) != new.flags.contains(CardFlags::UNLIMITED) {
            return Err(ResizeError::Unlimited { card: card() });
        }
        if new.is_gated() && !old.is_gated() {
            return Err(ResizeError::NoGate { card: card() });
        }
    }
    Ok(())
}

/// Puts changed shares of a running container in force: all of them or none. Running programs see them at their next
/// call, half a second later at most. The generation of `new` is set here.
///
/// May be repeated, also after a crash between its steps.
///
/// # Errors
/// [`ResizeError`]; then the container has what it had.
pub fn resize(root: &Path, new: &mut Grant) -> Result<(), ResizeError> {
    let dir = GrantDir::new(root, new.id);
    let old = read_grant(&dir)?;
    check(&old, new)?;
    new.state = old.state;
    let limits = |grant: &Grant| -> Vec<Option<u64>> {
        let limit = |card: &crate::CardGrant| {
            let counted = !card.flags.contains(CardFlags::UNLIMITED) && !card.flags.contains(CardFlags::OBSERVE);
            counted.then_some(card.memory_bytes)
        };
        grant.cards().iter().map(limit).collect()
    };
    set_limits(&dir, &limits(new)).map_err(|error| error.named(new))?;
    match replace(root, new) {
        Ok(()) => Ok(()),
        Err(error) => {
            // The old grant is still there; its limits are what is in force, if they can be had back.
            let (Ok(()) | Err(_)) = set_limits(&dir, &limits(&old));
            Err(error.into())
        }
    }
}

/// Makes the account's limits those of the grant, where a crash left a resize half done. Whether anything was to do.
///
/// # Errors
/// [`ResizeError`].
pub fn finish(root: &Path, id: crate::GrantId) -> Result<bool, ResizeError> {
    let dir = GrantDir::new(root, id);
    let grant = read_grant(&dir)?;
    let path = dir.account_file();
    let file = File::open(&path).map_err(io_error("opening", &path))?;
    let mut differs = false;
    for (place, card) in grant.cards().iter().enumerate() {
        let found = read_word(&file, account::limit_at(place)).map_err(io_error("reading", &path))?;
        differs |= found != 0 && found != card.memory_bytes;
    }
    if differs {
        let limits: Vec<Option<u64>> = grant.cards().iter().map(|card| Some(card.memory_bytes)).collect();
        set_limits(&dir, &limits).map_err(|error| error.named(&grant))?;
    }
    Ok(differs)
}

/// Bytes of a card that the container's processes hold, as the account says; `card` is its place in the grant.
///
/// # Errors
/// The account cannot be read.
pub fn held_bytes(dir: &GrantDir, card: usize) -> io::Result<u64> {
    let file = File::open(dir.account_file())?;
    Ok(read_word(&file, account::total_at(card))? & account::BYTES_MAX)
}

fn read_word(file: &File, at: usize) -> io::Result<u64> {
    let mut word = [0; 8];
    file.read_exact_at(&mut word, u64::try_from(at).unwrap_or(u64::MAX))?;
    Ok(u64::from_le_bytes(word))
}

/// What the child tells.
#[repr(C)]
struct Told {
    /// 0: nothing yet; 1: done; 2: more is held; 3: no account.
    outcome: AtomicI32,
    card: AtomicU64,
    wanted: AtomicU64,
    held: AtomicU64,
}

enum SetError {
    Held { place: usize, wanted: u64, held: u64 },
    Other(ResizeError),
}

impl SetError {
    fn named(self, grant: &Grant) -> ResizeError {
        match self {
            Self::Held { place, wanted, held } => ResizeError::Held {
                card: grant
                    .cards()
                    .get(place)
                    .map_or_else(String::new, |card| card.uuid.to_string()),
                wanted_bytes: wanted,
                held_bytes: held,
            },
            Self::Other(error) => error,
        }
    }
}

/// Puts limits in force, by place of the card: all or none. `None` leaves a card alone.
#[expect(unsafe_code, reason = "a child process with a shared page")]
fn set_limits(dir: &GrantDir, limits: &[Option<u64>]) -> Result<(), SetError> {
    let path = dir.account_file();
    let io = |action, source| {
        SetError::Other(ResizeError::Io {
            action,
            path: path.clone(),
            source,
        })
    };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .map_err(|error| io("opening", error))?;
    let length = file.metadata().map_err(|error| io("measuring", error))?.len();
    if usize::try_from(length).ok().is_none_or(|length| length < ACCOUNT_SIZE) {
        return Err(SetError::Other(ResizeError::Broken(path)));
    }
    let shared = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping at a place of the kernel's choice.
    let page = unsafe { map(size_of::<Told>(), shared, -1) }.map_err(|error| io("making room to look at", error))?;
    // SAFETY: zeroed, large enough, aligned to a page, valid when zero, given back below.
    let told = unsafe { &*page.cast::<Told>() };
    // SAFETY: the child makes system calls and atomic operations only, and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        child_sets(&file, limits, told);
    }
    let waited = if child < 0 {
        Err(io::Error::last_os_error())
    } else {
        wait(child)
    };
    let word = |word: &AtomicU64| word.load(Ordering::Acquire);
    let outcome = match (waited, told.outcome.load(Ordering::Acquire)) {
        (Err(error), _) => Err(io("starting a process for", error)),
        (Ok(()), 1) => Ok(()),
        (Ok(()), 2) => Err(SetError::Held {
            place: usize::try_from(word(&told.card)).unwrap_or(MAX_CARDS),
            wanted: word(&told.wanted),
            held: word(&told.held),
        }),
        (Ok(()), _) => Err(SetError::Other(ResizeError::Broken(path.clone()))),
    };
    // SAFETY: mapped above; `told` is not used any more.
    unsafe { libc::munmap(page, size_of::<Told>()) };
    outcome
}

/// The child: no allocation, no lock, no return.
#[expect(unsafe_code, reason = "runs between fork and the end of the process")]
fn child_sets(file: &File, limits: &[Option<u64>], told: &Told) -> ! {
    // SAFETY: an open file; its size was looked at, and if it shrinks meanwhile this process ends.
    if let Ok(page) = unsafe { map(ACCOUNT_SIZE, libc::MAP_SHARED, file.as_raw_fd()) }
        // SAFETY: a fresh writable mapping of the size of an account, kept to the end of the process.
        && let Ok(account) = unsafe { Account::from_ptr(page.cast()) }
    {
        let outcome = account.set_limits(limits);
        if let Err((place, wanted, held)) = outcome {
            told.card
                .store(u64::try_from(place).unwrap_or(u64::MAX), Ordering::Release);
            told.wanted.store(wanted, Ordering::Release);
            told.held.store(held, Ordering::Release);
        }
        told.outcome
            .store(if outcome.is_ok() { 1 } else { 2 }, Ordering::Release);
    } else {
        told.outcome.store(3, Ordering::Release);
    }
    // SAFETY: ends this process without running anything of the parent's.
    unsafe { libc::_exit(0) }
}

impl Account {
    /// [`Account::set_limit`] for several cards, all or none. The error: place of the card, limit wanted, bytes held.
    fn set_limits(&self, limits: &[Option<u64>]) -> Result<(), (usize, u64, u64)> {
        let before: [Option<u64>; MAX_CARDS] = core::array::from_fn(|place| self.limit(place));
        let mut set = limits
            .iter()
            .enumerate()
            .filter_map(|(place, limit)| Some((place, (*limit)?)));
        let failed = set.find_map(|(place, limit)| match self.set_limit(place, limit) {
            Ok(()) => None,
            Err(Refused::OverLimit { used }) => Some((place, limit, used)),
            Err(Refused::NoSuchCard) => Some((place, limit, 0)),
        });
        if let Some((place, limit, used)) = failed {
            for (place, before) in before.iter().enumerate().take(place) {
                if limits.get(place).is_some_and(Option::is_some) {
                    self.restore_limit(place, *before);
                }
            }
            return Err((place, limit, used));
        }
        Ok(())
    }
}

#[expect(unsafe_code, reason = "maps memory")]
unsafe fn map(size: usize, flags: libc::c_int, file: libc::c_int) -> io::Result<*mut libc::c_void> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at a place of the kernel's choice.
    let page = unsafe { libc::mmap(ptr::null_mut(), size, access, flags, file, 0) };
    if page == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(page)
}

#[expect(unsafe_code, reason = "waits for a child")]
fn wait(child: libc::pid_t) -> io::Result<()> {
    loop {
        // SAFETY: a child of this process that nobody else waits for; its status is not asked for.
        if unsafe { libc::waitpid(child, ptr::null_mut(), 0) } == child {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ResizeError + use<> {
    let path = path.to_path_buf();
    move |source| ResizeError::Io { action, path, source }
}

#[cfg(test)]
mod tests;
