//! Which clusters exist on this machine, under one lock.
//!
//! It gives each cluster a number of its own (its addresses derive from it),
//! finds clusters whose owner died, and knows which empty folders were made
//! on the machine as mount points, so that the last cluster removes them.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, IoContext};
use crate::network::{Addresses, NUMBERS};
use crate::process::{ProcessId, write_atomic};

const DIR: &str = "/run/tessera-testcluster";

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) number: u8,
    pub(crate) dir: PathBuf,
    pub(crate) detached: bool,
    pub(crate) owner: Option<ProcessId>,
}

impl Entry {
    /// A test's cluster whose test is gone, or one of `up` that was
    /// interrupted before it wrote anything down.
    pub(crate) fn is_abandoned(&self) -> bool {
        let owner_lives = self.owner.as_ref().is_some_and(ProcessId::is_alive);
        let of_up = self.detached && self.dir.join("cluster.json").exists();
        !owner_lives && !of_up
    }
}

/// The registry, locked against other processes while this value lives.
pub(crate) struct Registry {
    dir: PathBuf,
    _lock: File,
}

impl Registry {
    pub(crate) fn open() -> Result<Self, Error> {
        Self::open_at(DIR.into())
    }

    fn open_at(dir: PathBuf) -> Result<Self, Error> {
        let path = dir.join("lock");
        loop {
            fs::create_dir_all(&dir).at("create folder", &dir)?;
            let lock = match File::create(&path) {
                // The last cluster removed the folder in between.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                other => other.at("create", &path)?,
            };
            lock.lock().at("lock", &path)?;
            let held = lock.metadata().at("read", &path)?.ino();
            // Whoever held it before may have removed it; only the file that is there now counts.
            if fs::metadata(&path).is_ok_and(|now| now.ino() == held) {
                return Ok(Self { dir, _lock: lock });
            }
        }
    }

    fn file(&self, number: u8) -> PathBuf {
        self.dir.join(format!("{number}.json"))
    }

    pub(crate) fn entries(&self) -> Vec<Entry> {
        (0..NUMBERS)
            .filter_map(|n| serde_json::from_slice(&fs::read(self.file(n)).ok()?).ok())
            .collect()
    }

    /// Takes the first number whose addresses are free.
    pub(crate) fn claim(&self, dir: &Path, detached: bool) -> Result<u8, Error> {
        let used: BTreeSet<u8> = self.entries().iter().map(|e| e.number).collect();
        let number = (0..NUMBERS)
            .find(|n| !used.contains(n) && !Addresses { number: *n }.are_taken())
            .ok_or(Error::NoSubnet)?;
        let entry = Entry {
            number,
            dir: dir.to_path_buf(),
            detached,
            owner: ProcessId::current(),
        };
        let text = serde_json::to_vec(&entry).unwrap_or_default();
        write_atomic(&self.file(number), &text, 0o600)?;
        Ok(number)
    }

    pub(crate) fn release(&self, dir: &Path) {
        for entry in self.entries().iter().filter(|e| e.dir == dir) {
            drop(fs::remove_file(self.file(entry.number)));
        }
        if self.entries().is_empty() {
            self.remove_mount_points();
            // Nothing stays of an empty registry. A folder with something else in it is not ours alone.
            drop(fs::remove_file(self.dir.join("lock")));
            drop(fs::remove_dir(&self.dir));
        }
    }

    fn mount_points_file(&self) -> PathBuf {
        self.dir.join("mount-points.json")
    }

    fn mount_points(&self) -> Vec<PathBuf> {
        fs::read(self.mount_points_file())
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default()
    }

    /// Makes a folder to mount on where there is none, and remembers it.
    pub(crate) fn ensure_mount_point(&self, path: &Path) -> Result<(), Error> {
        let mut made = self.mount_points();
        let missing: Vec<PathBuf> = path
            .ancestors()
            .take_while(|p| !p.exists())
            .map(Path::to_path_buf)
            .collect();
        // Written first: an interruption must not leave a folder unknown.
        made.extend(missing.into_iter().rev());
        let text = serde_json::to_vec(&made).unwrap_or_default();
        write_atomic(&self.mount_points_file(), &text, 0o600)?;
        fs::create_dir_all(path).at("create folder", path)
    }

    /// A folder that got content meanwhile stays: only empty ones can be removed.
    fn remove_mount_points(&self) {
        for path in self.mount_points().iter().rev() {
            drop(fs::remove_dir(path));
        }
        drop(fs::remove_file(self.mount_points_file()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_cluster_removes_the_empty_folders_that_were_made_to_mount_on() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("host");
        fs::create_dir(&base).unwrap();
        let registry = Registry::open_at(dir.path().join("registry")).unwrap();
        let (one, two) = (Path::new("/state/one"), Path::new("/state/two"));
        let first = registry.claim(one, false).unwrap();
        let second = registry.claim(two, true).unwrap();
        assert_ne!(first, second);

        registry.ensure_mount_point(&base.join("a/b")).unwrap();
        registry.ensure_mount_point(&base.join("used")).unwrap();
        fs::write(base.join("used/file"), "").unwrap();

        registry.release(one);
        assert!(base.join("a/b").is_dir(), "the second cluster mounts on it");
        registry.release(two);
        assert!(!base.join("a").exists());
        assert!(base.join("used/file").exists(), "content is never removed");
        assert!(registry.entries().is_empty());
    }

    #[test]
    fn only_a_test_cluster_without_its_owner_is_abandoned() {
        let dir = tempfile::tempdir().unwrap();
        let entry = |detached, owner| Entry {
            number: 0,
            dir: dir.path().to_path_buf(),
            detached,
            owner,
        };
        assert!(entry(true, None).is_abandoned(), "nothing was started yet");
        fs::write(dir.path().join("cluster.json"), "{}").unwrap();
        assert!(entry(false, None).is_abandoned());
        assert!(!entry(false, ProcessId::current()).is_abandoned());
        assert!(!entry(true, None).is_abandoned(), "`up` outlives its command");
    }
}
