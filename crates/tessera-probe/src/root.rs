//! Where a driver's files are.

use std::path::{Component, Path, PathBuf};

/// Folders below a driver root that hold its libraries, in search order.
pub const LIBRARY_FOLDERS: [&str; 8] = [
    "usr/lib64",
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
    "lib64",
    "lib/x86_64-linux-gnu",
    "lib/aarch64-linux-gnu",
    "usr/lib",
    "lib",
];

/// Symbolic links that are followed for one file.
const LINKS_MAX: usize = 16;

/// A folder with a driver's libraries and device files: `/` on a plain host,
/// `/run/nvidia/driver` under a driver container, any folder elsewhere. The
/// same folder may have one path for us and another for the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriverRoot {
    here: PathBuf,
    host: PathBuf,
}

impl DriverRoot {
    /// A root that this process sees at `here` and the host at `host`.
    #[must_use]
    pub fn new(here: impl Into<PathBuf>, host: impl Into<PathBuf>) -> Self {
        Self {
            here: here.into(),
            host: host.into(),
        }
    }

    /// Our path of the root.
    #[must_use]
    pub fn here(&self) -> &Path {
        &self.here
    }

    /// The host's path of the root.
    #[must_use]
    pub fn host(&self) -> &Path {
        &self.host
    }

    /// Our path of a library, the first folder that has it; links are not
    /// resolved, so that the name stays.
    #[must_use]
    pub fn library(&self, name: &str) -> Option<PathBuf> {
        LIBRARY_FOLDERS
            .iter()
            .map(|folder| self.here.join(folder).join(name))
            .find(|path| self.resolve(path).is_some_and(|file| file.is_file()))
    }

    /// Our path of a file below the root, given by its path inside the root.
    #[must_use]
    pub fn file(&self, inside: &str) -> Option<PathBuf> {
        let path = self.here.join(inside.trim_start_matches('/'));
        path.exists().then_some(path)
    }

    /// Follows symbolic links of the last component with the root as `/`, as
    /// the host's own loader would inside the root.
    #[must_use]
    pub fn resolve(&self, path: &Path) -> Option<PathBuf> {
        let mut path = path.to_owned();
        for _link in 0..LINKS_MAX {
            let meta = std::fs::symlink_metadata(&path).ok()?;
            if !meta.file_type().is_symlink() {
                return Some(path);
            }
            let target = std::fs::read_link(&path).ok()?;
            path = if target.is_absolute() {
                self.here.join(target.strip_prefix("/").ok()?)
            } else {
                normalise(&path.parent()?.join(target))
            };
        }
        None
    }

    /// The host's path of one of our paths below the root.
    #[must_use]
    pub fn to_host(&self, path: &Path) -> PathBuf {
        match path.strip_prefix(&self.here) {
            Ok(inside) => self.host.join(inside),
            Err(_) => path.to_owned(),
        }
    }
}

/// Removes `.` and `..` by text.
fn normalise(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                out.pop();
            }
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_is_found_through_links_inside_the_root() {
        let folder = tempfile::tempdir().unwrap();
        let lib = folder.path().join("usr/lib/x86_64-linux-gnu");
        std::fs::create_dir_all(&lib).unwrap();
        std::fs::write(lib.join("libx.so.535"), "").unwrap();
        // Absolute inside the root, as a driver container makes them.
        std::os::unix::fs::symlink("/usr/lib/x86_64-linux-gnu/libx.so.535", lib.join("libx.so.1")).unwrap();
        std::os::unix::fs::symlink("gone", lib.join("liby.so.1")).unwrap();
        let root = DriverRoot::new(folder.path(), "/run/nvidia/driver");
        let found = root.library("libx.so.1").unwrap();
        assert_eq!(found, lib.join("libx.so.1"));
        assert_eq!(root.resolve(&found).unwrap(), lib.join("libx.so.535"));
        assert_eq!(
            root.to_host(&found),
            Path::new("/run/nvidia/driver/usr/lib/x86_64-linux-gnu/libx.so.1")
        );
        assert_eq!(root.library("liby.so.1"), None);
    }
}
