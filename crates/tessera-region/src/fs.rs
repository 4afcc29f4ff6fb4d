//! The files of a grant on the host.
//!
//! ```text
//! <root>/<32 hex digits>/ro/grant      replaced by rename, 0444
//!                       /ro/verdict    written in place by the agent, 0644: its owner has no right to pass over modes
//!                       /rw/account    fixed size, 0666: the container's processes may have any user id
//!                       /rw/turns      the same; only with a card whose launches pass a gate
//! ```
//!
//! `ro` and `rw` are what the container sees, at [`CONTAINER_GRANT_DIR`](crate::CONTAINER_GRANT_DIR) and
//! [`CONTAINER_ACCOUNT_DIR`](crate::CONTAINER_ACCOUNT_DIR). The folder appears under its final name only when it is
//! complete; a folder that starts with a dot is one that a crash left, and [`scan`] does not list it.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use crate::{
    ACCOUNT_FILE, ACCOUNT_SIZE, Account, GRANT_FILE, Grant, GrantError, GrantId, GrantState, READ_ONLY_DIR,
    READ_WRITE_DIR, VERDICT_FILE, verdict::Verdict,
};

/// What was being done to a grant's files when it went wrong.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// The operating system said no.
    #[error("{action} {}", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is there, but it is no grant.
    #[error("reading {}", path.display())]
    Grant {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: GrantError,
    },
    /// The new grant does not name the cards of the old one in the same order, so accounts would be mixed up.
    #[error("grant {0} has other cards than before")]
    CardsChanged(GrantId),
}

/// Folder of one grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantDir {
    path: PathBuf,
}

impl GrantDir {
    /// The folder of `id` below `root`, whether it exists or not.
    #[must_use]
    pub fn new(root: &Path, id: GrantId) -> Self {
        Self {
            path: root.join(id.to_string()),
        }
    }

    /// The folder itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Folder to mount read-only at [`CONTAINER_GRANT_DIR`](crate::CONTAINER_GRANT_DIR).
    #[must_use]
    pub fn read_only(&self) -> PathBuf {
        self.path.join(READ_ONLY_DIR)
    }

    /// Folder to mount read-write at [`CONTAINER_ACCOUNT_DIR`](crate::CONTAINER_ACCOUNT_DIR).
    #[must_use]
    pub fn read_write(&self) -> PathBuf {
        self.path.join(READ_WRITE_DIR)
    }

    /// The grant file.
    #[must_use]
    pub fn grant_file(&self) -> PathBuf {
        self.read_only().join(GRANT_FILE)
    }

    /// The verdict file.
    #[must_use]
    pub fn verdict_file(&self) -> PathBuf {
        self.read_only().join(VERDICT_FILE)
    }

    /// The page of orders to move memory; there only with a card whose memory may be moved.
    #[cfg(not(loom))]
    #[must_use]
    pub fn swap_order_file(&self) -> PathBuf {
        self.read_only().join(crate::SWAP_ORDER_FILE)
    }

    /// The page of reports about moved memory.
    #[cfg(not(loom))]
    #[must_use]
    pub fn swap_report_file(&self) -> PathBuf {
        self.read_write().join(crate::SWAP_REPORT_FILE)
    }

    /// The page of reports about work on cards; there only with a card whose launches pass a gate.
    #[cfg(not(loom))]
    #[must_use]
    pub fn turns_file(&self) -> PathBuf {
        self.read_write().join(crate::TURNS_FILE)
    }

    /// The account file.
    #[must_use]
    pub fn account_file(&self) -> PathBuf {
        self.read_write().join(ACCOUNT_FILE)
    }
}

/// Writes the folder of a new grant: grant, fresh verdict, empty account. All or nothing.
///
/// # Errors
/// [`FsError::Io`]; a folder of this id that exists already is one of them.
pub fn create_grant_dir(root: &Path, grant: &Grant) -> Result<GrantDir, FsError> {
    let dir = GrantDir::new(root, grant.id);
    make_dir(root, 0o711)?;
    let staging = GrantDir {
        path: root.join(format!(".{}", grant.id)),
    };
    remove_tree(&staging.path)?;
    let built = build(&staging, grant)
        .and_then(|()| fs::rename(&staging.path, &dir.path).map_err(io_error("creating", &dir.path)));
    if built.is_err() {
        remove_tree(&staging.path)?;
    }
    built.map(|()| dir)
}

fn build(dir: &GrantDir, grant: &Grant) -> Result<(), FsError> {
    make_dir(&dir.path, 0o711)?;
    make_dir(&dir.read_only(), 0o755)?;
    make_dir(&dir.read_write(), 0o755)?;
    write_new(&dir.grant_file(), &grant.encode(), 0o444)?;
    write_new(&dir.verdict_file(), &Verdict::fresh(grant.generation), 0o644)?;
    #[cfg(not(loom))]
    if grant
        .cards()
        .iter()
        .any(|card| card.flags.contains(crate::CardFlags::SWAP))
    {
        write_swap_pages(dir)?;
    }
    #[cfg(not(loom))]
    if grant.cards().iter().any(crate::CardGrant::is_gated) {
        write_turns(&dir.turns_file())?;
    }
    write_account(&dir.account_file())
}

#[cfg(not(loom))]
fn write_turns(path: &Path) -> Result<(), FsError> {
    let file = write_new(path, &crate::TurnReports::fresh_head(), 0o666)?;
    let size = u64::try_from(crate::TURNS_SIZE).unwrap_or(u64::MAX);
    file.set_len(size).map_err(io_error("sizing", path))
}

/// The pages of a container whose memory may be moved.
#[cfg(not(loom))]
fn write_swap_pages(dir: &GrantDir) -> Result<(), FsError> {
    let size = |file: File, path: &Path, size: usize| {
        file.set_len(u64::try_from(size).unwrap_or(u64::MAX))
            .map_err(io_error("sizing", path))
    };
    let (order, report) = (dir.swap_order_file(), dir.swap_report_file());
    let file = write_new(&order, &crate::swap::fresh_head(crate::SWAP_ORDER_MAGIC), 0o644)?;
    size(file, &order, crate::SWAP_ORDER_SIZE)?;
    let file = write_new(&report, &crate::swap::fresh_head(crate::SWAP_REPORT_MAGIC), 0o666)?;
    size(file, &report, crate::SWAP_REPORT_SIZE)
}

/// Reads a grant.
///
/// # Errors
/// [`FsError::Io`] when the file cannot be read, [`FsError::Grant`] when it is none.
pub fn read_grant(dir: &GrantDir) -> Result<Grant, FsError> {
    let path = dir.grant_file();
    let bytes = fs::read(&path).map_err(io_error("reading", &path))?;
    Grant::parse(&bytes).map_err(|source| FsError::Grant { path, source })
}

/// Says that the owner of a pending grant is proven. A sealed grant stays as it is.
///
/// # Errors
/// As [`replace`].
pub fn seal(root: &Path, id: GrantId) -> Result<Grant, FsError> {
    let mut grant = read_grant(&GrantDir::new(root, id))?;
    if grant.state == GrantState::Pending {
        grant.state = GrantState::Sealed;
        replace(root, &mut grant)?;
    }
    Ok(grant)
}

/// Puts a changed grant in the place of the old one; running processes take it over within a second.
///
/// The generation is set here, to the next one. While the old grant is sealed its cards must stay the same, in the same
/// order: their positions are their places in the account.
///
/// # Errors
/// [`FsError::Io`], [`FsError::Grant`] when the old file is damaged, [`FsError::CardsChanged`].
pub fn replace(root: &Path, grant: &mut Grant) -> Result<(), FsError> {
    let dir = GrantDir::new(root, grant.id);
    let old = read_grant(&dir)?;
    let same = old
        .cards()
        .iter()
        .map(|card| card.uuid)
        .eq(grant.cards().iter().map(|card| card.uuid));
    if old.state == GrantState::Sealed && !same {
        return Err(FsError::CardsChanged(grant.id));
    }
    grant.generation = (old.generation & !1).wrapping_add(2);
    let path = dir.grant_file();
    let temporary = dir.read_only().join(".grant");
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(io_error("removing", &temporary)(error));
        }
        _ => {}
    }
    write_new(&temporary, &grant.encode(), 0o444)?;
    #[cfg(not(loom))]
    if grant.cards().iter().any(crate::CardGrant::is_gated) && !dir.turns_file().exists() {
        write_turns(&dir.turns_file())?;
    }
    fs::rename(&temporary, &path).map_err(io_error("replacing", &path))?;
    announce(&dir, grant.generation)
}

/// Writes the generation into the verdict, the word that running processes watch.
fn announce(dir: &GrantDir, generation: u64) -> Result<(), FsError> {
    let path = dir.verdict_file();
    let file = OpenOptions::new()
        .write(true)
        .open(&path)
        .map_err(io_error("opening", &path))?;
    // Eight aligned bytes: the kernel copies them as one word.
    file.write_all_at(&generation.to_le_bytes(), Verdict::GRANT_GENERATION_AT)
        .map_err(io_error("writing", &path))
}

/// Puts a fresh, empty account in the place of the old one. For a container that starts anew with the same grant: no
/// process of its former life exists, and their pids belonged to a pid namespace that is gone.
///
/// # Errors
/// [`FsError::Io`].
pub fn reset_account(root: &Path, id: GrantId) -> Result<(), FsError> {
    let dir = GrantDir::new(root, id);
    let path = dir.account_file();
    let temporary = dir.read_write().join(".account");
    remove_tree(&temporary)?;
    write_account(&temporary)?;
    fs::rename(&temporary, &path).map_err(io_error("replacing", &path))?;
    // What the processes of the former life said of their work ended with them too.
    #[cfg(not(loom))]
    {
        let path = dir.turns_file();
        match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => crate::turns_host::clear(&file).map_err(io_error("clearing", &path))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io_error("opening", &path)(error)),
        }
    }
    Ok(())
}

/// Removes a grant. One that is not there is fine.
///
/// # Errors
/// [`FsError::Io`].
pub fn remove(root: &Path, id: GrantId) -> Result<(), FsError> {
    let dir = GrantDir::new(root, id);
    let gone = root.join(format!(".{id}"));
    remove_tree(&gone)?;
    match fs::rename(&dir.path, &gone) {
        Ok(()) => remove_tree(&gone),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io_error("removing", &dir.path)(error)),
    }
}

/// Ids of all complete grants below `root`, sorted; none when `root` does not exist. Other names are left alone.
///
/// # Errors
/// [`FsError::Io`].
pub fn scan(root: &Path) -> Result<Vec<GrantId>, FsError> {
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io_error("listing", root)(error)),
    };
    let mut ids = Vec::new();
    for entry in entries {
        let name = entry.map_err(io_error("listing", root))?.file_name();
        ids.extend(name.to_str().and_then(GrantId::parse));
    }
    ids.sort_unstable();
    Ok(ids)
}

fn write_account(path: &Path) -> Result<(), FsError> {
    let file = write_new(path, &Account::fresh_head(), 0o666)?;
    let size = u64::try_from(ACCOUNT_SIZE).unwrap_or(u64::MAX);
    file.set_len(size).map_err(io_error("sizing", path))
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<File, FsError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(io_error("creating", path))?;
    file.write_all(bytes).map_err(io_error("writing", path))?;
    // Not by the mode of open, which the umask cuts.
    file.set_permissions(Permissions::from_mode(mode))
        .map_err(io_error("setting the mode of", path))?;
    Ok(file)
}

fn make_dir(path: &Path, mode: u32) -> Result<(), FsError> {
    fs::create_dir_all(path).map_err(io_error("creating", path))?;
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(io_error("setting the mode of", path))
}

fn remove_tree(path: &Path) -> Result<(), FsError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("removing", path)(error)),
        _ => Ok(()),
    }
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FsError + use<> {
    let path = path.to_path_buf();
    move |source| FsError::Io { action, path, source }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests;
