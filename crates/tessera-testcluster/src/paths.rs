//! The cache outside the source tree.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::error::{Error, IoContext};
use crate::progress::{Event, Progress};

/// Folder of things that are slow to make and the same for every run:
/// compiled binaries and image layers. `TESSERA_CACHE`, or `tessera` in the
/// user's cache folder.
#[derive(Clone, Debug)]
pub struct Cache(PathBuf);

impl Cache {
    /// The cache that the environment names. Nothing is created.
    pub fn from_env() -> Self {
        if let Some(dir) = std::env::var_os("TESSERA_CACHE").filter(|d| !d.is_empty()) {
            return Self(dir.into());
        }
        let home = std::env::var_os("HOME").filter(|d| !d.is_empty());
        Self(home.map_or_else(
            || PathBuf::from("/var/cache/tessera"),
            |home| Path::new(&home).join(".cache/tessera"),
        ))
    }

    /// A cache at a folder of the caller's choice.
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        Self(dir.into())
    }

    /// The folder itself.
    pub fn dir(&self) -> &Path {
        &self.0
    }

    /// A folder below it, created when missing.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf, Error> {
        let dir = self.0.join(name);
        fs::create_dir_all(&dir).at("create folder", &dir)?;
        Ok(dir)
    }

    /// Holds the named lock until the file is dropped, also against other processes.
    pub(crate) fn lock(&self, what: &str, progress: &Progress) -> Result<File, Error> {
        let path = self.folder("locks")?.join(what);
        let file = File::create(&path).at("create", &path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                progress.tell(Event::Waiting(what.to_owned()));
                file.lock().at("lock", &path)?;
            }
            Err(fs::TryLockError::Error(source)) => return Err(source).at("lock", &path),
        }
        Ok(file)
    }
}
