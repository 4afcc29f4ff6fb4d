//! The enforcement library on the host: installed before anything is served,
//! replaced by rename, never written in place under a running process.

use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tessera_no_musl::Processor;

/// File name of the library.
pub const NAME: &str = "libvgpu.so";
/// File that names it for the loader.
pub const PRELOAD: &str = "ld.so.preload";
/// File that takes the place of musl's loader in a container, to refuse its programs with the reason.
pub const NO_MUSL: &str = "no-musl";

/// Places beside the program in which a package puts the library.
const BESIDE: [&str; 3] = [NAME, "../lib/tessera/libvgpu.so", "../lib/libvgpu.so"];
/// Where an image puts it.
const IMAGE: [&str; 3] = [
    "/opt/tessera/lib/libvgpu.so",
    "/usr/lib/tessera/libvgpu.so",
    "/k8s-vgpu/lib/nvidia/libvgpu.so",
];

/// Why the library cannot be installed or used.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// There is none to install and none installed.
    #[error(
        "the enforcement library `{NAME}` was not found beside the program and none is installed in `{folder}`; name it with --library"
    )]
    Missing {
        /// Host folder.
        folder: PathBuf,
    },
    /// The disk is full.
    #[error(
        "no space left for the enforcement library in `{folder}`; free some, it is tried again by itself. The old one stays"
    )]
    DiskFull {
        /// Host folder.
        folder: PathBuf,
    },
    /// The one to install cannot be read.
    #[error("cannot read the enforcement library `{path}`; name an existing one with --library")]
    Source {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// Another failure.
    #[error("cannot install the enforcement library as `{path}`")]
    Install {
        /// Target.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The installed file is not the one we installed.
    #[error("`{path}` was changed or removed by someone else")]
    Changed {
        /// The file.
        path: PathBuf,
    },
}

/// The installed files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// The library.
    pub library: PathBuf,
    /// The loader's file.
    pub preload: PathBuf,
    /// The program that refuses in place of musl's loader; none on a processor that there is none for.
    pub no_musl: Option<PathBuf>,
    /// Each of these files, as it was installed.
    identity: Vec<(PathBuf, Identity)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Identity {
    fn of(path: &Path) -> Option<Self> {
        let meta = std::fs::symlink_metadata(path).ok()?;
        meta.is_file().then(|| Self {
            inode: meta.ino(),
            size: meta.size(),
            changed: (meta.mtime(), meta.mtime_nsec()),
        })
    }
}

impl Installed {
    /// Whether the files are still those that were installed. Cheap: looks at
    /// the files' identity, not at their content.
    ///
    /// # Errors
    /// [`LibraryError::Changed`] naming the file.
    pub fn check(&self) -> Result<(), LibraryError> {
        for (path, identity) in &self.identity {
            if Identity::of(path) != Some(*identity) {
                return Err(LibraryError::Changed { path: path.clone() });
            }
        }
        Ok(())
    }
}

/// Finds the library to install: the named one, else beside the program.
#[must_use]
pub fn source(named: Option<&Path>) -> Option<PathBuf> {
    if let Some(path) = named {
        return Some(path.to_owned());
    }
    let beside = std::env::current_exe()
        .ok()
        .and_then(|exe| exe.parent().map(Path::to_owned));
    beside
        .into_iter()
        .flat_map(|folder| BESIDE.iter().map(move |name| folder.join(name)))
        .chain(IMAGE.iter().map(PathBuf::from))
        .find(|path| path.is_file())
}

/// Installs the library, the loader's file, and the program in place of musl's loader in `<hook>/vgpu`. A file with the
/// wanted content is left alone; without a source an installed library is used
/// as it is.
///
/// # Errors
/// See [`LibraryError`]. The old files stay whatever fails.
pub fn install(source: Option<&Path>, hook: &Path) -> Result<Installed, LibraryError> {
    let folder = hook.join("vgpu");
    let library = folder.join(NAME);
    let preload = folder.join(PRELOAD);
    match source {
        Some(source) => {
            let bytes = std::fs::read(source).map_err(|error| LibraryError::Source {
                path: source.to_owned(),
                source: error,
            })?;
            put(&library, &bytes, 0o755)?;
        }
        None if library.is_file() => {}
        None => return Err(LibraryError::Missing { folder }),
    }
    put(&preload, format!("{}\n", library.display()).as_bytes(), 0o644)?;
    let no_musl = match Processor::of_this_build() {
        Some(processor) => {
            let path = folder.join(NO_MUSL);
            put(&path, &processor.program(), 0o755)?;
            Some(path)
        }
        None => None,
    };
    let mut identity = Vec::new();
    for path in [Some(&library), Some(&preload), no_musl.as_ref()].into_iter().flatten() {
        let found = Identity::of(path).ok_or_else(|| LibraryError::Changed { path: path.clone() })?;
        identity.push((path.clone(), found));
    }
    Ok(Installed {
        library,
        preload,
        no_musl,
        identity,
    })
}

fn put(path: &Path, bytes: &[u8], mode: u32) -> Result<(), LibraryError> {
    if has(path, bytes) {
        return Ok(());
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    replace(path, folder, bytes, mode).map_err(|source| {
        if source.kind() == io::ErrorKind::StorageFull {
            LibraryError::DiskFull {
                folder: folder.to_owned(),
            }
        } else {
            LibraryError::Install {
                path: path.to_owned(),
                source,
            }
        }
    })
}

/// Whether the file exists with these bytes.
fn has(path: &Path, bytes: &[u8]) -> bool {
    let same_size = std::fs::symlink_metadata(path)
        .is_ok_and(|meta| meta.is_file() && usize::try_from(meta.len()).is_ok_and(|size| size == bytes.len()));
    if !same_size {
        return false;
    }
    let mut found = Vec::with_capacity(bytes.len());
    std::fs::File::open(path)
        .and_then(|mut file| file.read_to_end(&mut found))
        .is_ok_and(|_| found == bytes)
}

fn replace(path: &Path, folder: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    // A runtime that mounts a missing file makes a folder in its place.
    if path.is_dir() {
        std::fs::remove_dir(path)?;
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = folder.join(format!(".{name}.{}", std::process::id()));
    let written = write_all(&temporary, bytes, mode).and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        // Half a file helps nobody and takes the space that is short.
        let _removed = std::fs::remove_file(&temporary);
    }
    written
}

fn write_all(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = std::fs::File::create(path)?;
    file.write_all(bytes)?;
    file.set_permissions(std::fs::Permissions::from_mode(mode))?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_library_gets_a_new_inode_and_the_same_one_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("new.so");
        std::fs::write(&source, "one").unwrap();
        let first = install(Some(&source), folder.path()).unwrap();
        assert_eq!(install(Some(&source), folder.path()).unwrap(), first);
        // A process that maps the old file keeps it.
        let mapped = std::fs::File::open(&first.library).unwrap();
        std::fs::write(&source, "two!").unwrap();
        let second = install(Some(&source), folder.path()).unwrap();
        assert_ne!(
            mapped.metadata().unwrap().ino(),
            std::fs::metadata(&second.library).unwrap().ino()
        );
        assert!(first.check().is_err());
        second.check().unwrap();
        let refusing = second.no_musl.as_ref().unwrap();
        assert_eq!(refusing.parent(), second.library.parent());
        let mode = std::fs::metadata(refusing).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755, "the system starts it for any user");
        let text = std::fs::read_to_string(&second.preload).unwrap();
        assert_eq!(text, format!("{}\n", second.library.display()));
    }

    #[test]
    fn a_file_that_somebody_changes_is_noticed_and_put_right() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("new.so");
        std::fs::write(&source, "one").unwrap();
        let first = install(Some(&source), folder.path()).unwrap();
        let files = [
            first.library.clone(),
            first.preload.clone(),
            first.no_musl.clone().unwrap(),
        ];
        for path in files {
            let installed = install(Some(&source), folder.path()).unwrap();
            installed.check().unwrap();
            let before = std::fs::read(&path).unwrap();
            std::fs::remove_file(&path).unwrap();
            let error = installed.check().unwrap_err();
            assert!(error.to_string().contains(&path.display().to_string()), "{error}");
            install(Some(&source), folder.path()).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), before);
        }
    }

    #[test]
    fn a_folder_that_a_runtime_made_in_place_of_the_file_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("vgpu/libvgpu.so")).unwrap();
        let source = folder.path().join("new.so");
        std::fs::write(&source, "one").unwrap();
        install(Some(&source), folder.path()).unwrap().check().unwrap();
    }

    #[test]
    fn without_a_source_an_installed_library_serves_and_none_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let error = install(None, folder.path()).unwrap_err();
        assert!(error.to_string().contains("--library"), "{error}");
        std::fs::create_dir_all(folder.path().join("vgpu")).unwrap();
        std::fs::write(folder.path().join("vgpu/libvgpu.so"), "old").unwrap();
        install(None, folder.path()).unwrap();
    }

    #[test]
    fn a_failed_copy_leaves_the_old_library_and_no_debris() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("new.so");
        std::fs::write(&source, "one").unwrap();
        let installed = install(Some(&source), folder.path()).unwrap();
        let error = install(Some(&folder.path().join("gone.so")), folder.path()).unwrap_err();
        assert!(matches!(error, LibraryError::Source { .. }));
        installed.check().unwrap();
    }
}
