//! The agent's side of doorbells: one file for each card, with a name in every container that rings or listens.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use crate::{
    fs::GrantDir,
    ring::{RING_FILE, RING_LOOK_SIZE, RING_SIZE, RingLook},
};

/// Folder of the files below the grants' root.
const RINGS_DIR: &str = "rings";

/// The doorbell of one card.
#[derive(Debug)]
pub struct RingFile {
    file: File,
    path: PathBuf,
}

fn ring_size() -> u64 {
    u64::try_from(RING_SIZE).unwrap_or(u64::MAX)
}

impl RingFile {
    /// Makes the file of a card, silent, or opens the one there is.
    ///
    /// # Errors
    /// The system's.
    pub fn open(root: &Path, card: &str) -> io::Result<Self> {
        let folder = root.join(RINGS_DIR);
        fs::create_dir_all(&folder)?;
        fs::set_permissions(&folder, Permissions::from_mode(0o700))?;
        // A card's name is letters, digits and dashes; anything else must not lead out of the folder.
        let name: String = card
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .collect();
        let path = folder.join(name);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)?;
        // The containers' processes may have any user id.
        file.set_permissions(Permissions::from_mode(0o666))?;
        if file.metadata()?.len() != ring_size() {
            file.set_len(ring_size())?;
        }
        Ok(Self { file, path })
    }

    /// What it says now; makes it as long as it was when a tenant made it shorter.
    #[must_use]
    pub fn look(&self) -> RingLook {
        let mut bytes = [0; RING_LOOK_SIZE];
        if self.file.read_exact_at(&mut bytes, 0).is_err() {
            let (Ok(()) | Err(_)) = self.file.set_len(ring_size());
            bytes.fill(0);
        }
        RingLook::from_bytes(&bytes)
    }

    /// Gives a container the page at the card with this position in its grant: to ring, to listen, both or neither.
    ///
    /// # Errors
    /// The system's.
    pub fn offer(&self, dir: &GrantDir, position: usize, rings: bool, listens: bool) -> io::Result<()> {
        let name = format!("{RING_FILE}{position}");
        for (folder, wanted) in [(dir.read_write(), rings), (dir.read_only(), listens)] {
            self.link(&folder.join(&name), wanted)?;
        }
        Ok(())
    }

    fn link(&self, path: &Path, wanted: bool) -> io::Result<()> {
        let ours = self.file.metadata()?.ino();
        match fs::symlink_metadata(path) {
            Ok(found) if wanted && found.ino() == ours => return Ok(()),
            // Whatever a tenant put there.
            Ok(found) if found.is_dir() => fs::remove_dir_all(path)?,
            Ok(_) => fs::remove_file(path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        if wanted {
            fs::hard_link(&self.path, path)
        } else {
            Ok(())
        }
    }
}

/// Removes the files of all cards but these.
///
/// # Errors
/// The system's.
pub fn keep_only(root: &Path, cards: &BTreeSet<PathBuf>) -> io::Result<()> {
    let entries = match fs::read_dir(root.join(RINGS_DIR)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let path = entry?.path();
        if !cards.contains(&path) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

impl RingFile {
    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}
