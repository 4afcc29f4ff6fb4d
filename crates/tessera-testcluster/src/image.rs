//! Container images without a registry: a few layers in a tar archive that
//! containerd imports.
//!
//! The slow layers (a Debian root filesystem, Python packages) are made once
//! and kept in the cache, uncompressed, since they only travel on this machine.

mod archive;
mod rootfs;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::binaries::Binaries;
use crate::error::Error;
use crate::host;
use crate::paths::Cache;
use crate::progress::Progress;

/// Name of the image whose process holds a pod's sandbox.
pub(crate) const PAUSE: &str = "tessera.dev/pause:1";

/// An image that can be given to [`crate::Cluster::load_image`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Full name with a tag: `tessera.dev/test:1`.
    pub name: String,
    /// Tar archive in the format of `docker save`.
    pub archive: PathBuf,
}

/// Content of a file in an image.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Content {
    /// Copied from a file of this machine when the image is built.
    Path(PathBuf),
    /// These bytes.
    Bytes(Vec<u8>),
    /// A symbolic link to this target.
    Link(PathBuf),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Base {
    Scratch,
    Debian,
}

/// An image in the making.
#[derive(Clone, Debug)]
pub struct Builder {
    name: String,
    base: Base,
    packages: Vec<String>,
    files: BTreeMap<PathBuf, (u32, Content)>,
    env: Vec<String>,
    entrypoint: Vec<String>,
    command: Vec<String>,
    working_dir: String,
}

impl Builder {
    fn new(name: impl Into<String>, base: Base) -> Self {
        Self {
            name: name.into(),
            base,
            packages: Vec::new(),
            files: BTreeMap::new(),
            env: vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()],
            entrypoint: Vec::new(),
            command: Vec::new(),
            working_dir: "/".to_owned(),
        }
    }

    /// On a minimal Debian 12 with `python3`, `pip`, `venv` and CA
    /// certificates. `name` is the full name with a tag, `tessera.dev/test:1`.
    pub fn debian(name: impl Into<String>) -> Self {
        Self::new(name, Base::Debian)
    }

    /// On nothing: for static binaries.
    pub fn scratch(name: impl Into<String>) -> Self {
        Self::new(name, Base::Scratch)
    }

    /// Installs packages of the Python index, each pinned: `nvitop==1.7.2`.
    /// Only on Debian.
    #[must_use]
    pub fn pip<S: Into<String>>(mut self, packages: impl IntoIterator<Item = S>) -> Self {
        self.packages.extend(packages.into_iter().map(Into::into));
        self
    }

    /// Adds a file, owned by root, at an absolute path. `mode` as in `0o755`;
    /// it is ignored for a link.
    #[must_use]
    pub fn file(mut self, path: impl Into<PathBuf>, mode: u32, content: Content) -> Self {
        self.files.insert(path.into(), (mode, content));
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push(format!("{name}={value}"));
        self
    }

    /// Program and first arguments of a container that names no command.
    #[must_use]
    pub fn entrypoint<S: Into<String>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.entrypoint = words.into_iter().map(Into::into).collect();
        self
    }

    /// Arguments of a container that names none.
    #[must_use]
    pub fn command<S: Into<String>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.command = words.into_iter().map(Into::into).collect();
        self
    }

    /// Folder in which a container starts. Default: `/`.
    #[must_use]
    pub fn working_dir(mut self, dir: impl Into<String>) -> Self {
        self.working_dir = dir.into();
        self
    }

    /// Builds the archive in the cache, in place of an earlier one of the same
    /// name. Blocks; the first image on Debian takes about two minutes.
    ///
    /// # Errors
    /// When a layer cannot be made, a file cannot be read, or the name or a
    /// path does not make sense.
    pub fn build(&self, progress: &Progress) -> Result<Image, Error> {
        self.build_in(&Cache::from_env(), progress)
    }

    fn build_in(&self, cache: &Cache, progress: &Progress) -> Result<Image, Error> {
        self.check()?;
        let mut layers = Vec::new();
        if self.base == Base::Debian {
            host::require_root()?;
            let base = rootfs::debian(cache, progress)?;
            layers.push(base.clone());
            if !self.packages.is_empty() {
                layers.push(rootfs::python_packages(cache, &base, &self.packages, progress)?);
            }
        }
        let images = cache.folder("images")?;
        let file: String = self
            .name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .collect();
        let lock = cache.lock(&format!("image-{file}"), progress)?;
        let archive = images.join(format!("{file}.tar"));
        archive::write(self, &layers, &archive)?;
        drop(lock);
        Ok(Image {
            name: self.name.clone(),
            archive,
        })
    }

    fn check(&self) -> Result<(), Error> {
        let refuse = |reason: String| Err(Error::Config { what: "image", reason });
        // containerd would put a registry in front of a short name, and the
        // kubelet would look for that.
        let (host, rest) = self.name.split_once('/').unwrap_or_default();
        if !host.contains('.') || !rest.contains(':') {
            return refuse(format!("`{}` is no full name like `tessera.dev/test:1`", self.name));
        }
        if let Some(path) = self
            .files
            .keys()
            .find(|p| !p.is_absolute() || p.components().any(|c| c.as_os_str() == ".."))
        {
            return refuse(format!("`{}` is not an absolute path", path.display()));
        }
        if self.base == Base::Scratch && !self.packages.is_empty() {
            return refuse("Python packages need the Debian base".to_owned());
        }
        if let Some(package) = self.packages.iter().find(|p| !p.contains("==")) {
            return refuse(format!(
                "package `{package}` is not pinned; write `{package}==<version>`"
            ));
        }
        Ok(())
    }
}

/// Versions of the packages that tests know by name, so that every run has the same.
const PINS: [(&str, &str); 4] = [
    ("nvidia-ml-py", "13.615.71"),
    ("cuda-bindings", "13.5.0"),
    ("cuda-core", "1.2.2"),
    ("nvitop", "1.7.2"),
];

/// A Debian image with packages of the Python index. A name without a version
/// gets the one that this project is tested with.
///
/// # Errors
/// As for [`Builder::build`]; also for an unpinned name that is not known.
pub fn python_image(name: &str, packages: &[&str], progress: &Progress) -> Result<Image, Error> {
    Builder::debian(name)
        .pip(packages.iter().map(|p| pinned(p)))
        .build(progress)
}

fn pinned(package: &str) -> String {
    PINS.iter()
        .find(|(name, _)| *name == package)
        .map_or_else(|| package.to_owned(), |(name, version)| format!("{name}=={version}"))
}

/// The image of the sandbox process.
pub(crate) fn pause(binaries: &Binaries, progress: &Progress) -> Result<Image, Error> {
    Builder::scratch(PAUSE)
        .file("/pause", 0o755, Content::Path(binaries.pause().to_path_buf()))
        .entrypoint(["/pause"])
        .build(progress)
}

/// One layer: an uncompressed tar file.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    pub(crate) path: PathBuf,
    /// SHA-256 of the file, in hexadecimal digits.
    pub(crate) digest: String,
}

impl Layer {
    fn digest_file(path: &Path) -> PathBuf {
        path.with_extension("sha256")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(builder: Builder) -> String {
        let dir = tempfile::tempdir().unwrap();
        builder
            .build_in(&Cache::at(dir.path()), &Progress::silent())
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn what_the_node_could_not_find_or_repeat_is_refused() {
        assert!(refused(Builder::scratch("test")).contains("full name"));
        assert!(refused(Builder::scratch("tessera.dev/test")).contains("full name"));
        let relative = Builder::scratch("tessera.dev/t:1").file("a", 0o644, Content::Bytes(vec![]));
        assert!(refused(relative).contains("absolute"));
        assert!(refused(Builder::debian("tessera.dev/t:1").pip(["nvitop"])).contains("pinned"));
    }

    #[test]
    fn the_archive_has_its_files_and_names_every_layer_by_its_content() {
        let dir = tempfile::tempdir().unwrap();
        let image = Builder::scratch("tessera.dev/t:1")
            .file("/opt/a/run", 0o755, Content::Bytes(b"hello".to_vec()))
            .file("/opt/link", 0, Content::Link("a/run".into()))
            .entrypoint(["/opt/a/run"])
            .build_in(&Cache::at(dir.path()), &Progress::silent())
            .unwrap();
        let entries = |bytes: &[u8]| -> BTreeMap<String, (u32, Vec<u8>)> {
            use std::io::Read;
            tar::Archive::new(bytes)
                .entries()
                .unwrap()
                .map(|e| {
                    let mut e = e.unwrap();
                    let name = e.path().unwrap().display().to_string();
                    let mode = e.header().mode().unwrap();
                    let mut content = Vec::new();
                    e.read_to_end(&mut content).unwrap();
                    (name, (mode, content))
                })
                .collect()
        };
        let outer = entries(&std::fs::read(&image.archive).unwrap());
        let manifest: serde_json::Value = serde_json::from_slice(&outer["manifest.json"].1).unwrap();
        assert_eq!(manifest[0]["RepoTags"][0], "tessera.dev/t:1");
        let config: serde_json::Value =
            serde_json::from_slice(&outer[manifest[0]["Config"].as_str().unwrap()].1).unwrap();
        assert_eq!(config["config"]["Entrypoint"][0], "/opt/a/run");
        let layer = &outer[manifest[0]["Layers"][0].as_str().unwrap()].1;
        let digest = {
            use sha2::{Digest, Sha256};
            crate::hex(&Sha256::digest(layer))
        };
        assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{digest}"));
        let files = entries(layer);
        assert_eq!(files["opt/a/run"], (0o755, b"hello".to_vec()));
        assert!(files.contains_key("opt/link"));
        assert!(files.contains_key("opt/a/"), "folders exist: {files:?}");
    }
}
