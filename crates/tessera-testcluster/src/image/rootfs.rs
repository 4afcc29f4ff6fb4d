//! The slow layers: a Debian root filesystem, and Python packages for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use super::{Layer, archive};
use crate::error::{Error, IoContext};
use crate::host;
use crate::paths::Cache;
use crate::process::{on_path, run, write_atomic};
use crate::progress::Progress;

const SUITE: &str = "bookworm";
/// Raised when the content below changes.
const REVISION: &str = "1";
const INCLUDE: &str = "ca-certificates,python3,python3-pip,python3-venv";
/// What no container of a test looks at: half of the size.
const EXCLUDE: [&str; 8] = [
    "./dev/*",
    "./var/cache/apt/*",
    "./var/lib/apt/lists/*",
    "./var/log/*",
    "./usr/share/doc/*",
    "./usr/share/man/*",
    "./usr/share/locale/*",
    "./usr/share/info/*",
];

/// Environment variable that names the package mirror for `debootstrap`.
const MIRROR_VARIABLE: &str = "TESSERA_DEBIAN_MIRROR";

/// The root filesystem, from the cache when it is there.
pub(super) fn debian(cache: &Cache, progress: &Progress) -> Result<Layer, Error> {
    let name = format!("debian-{SUITE}-python-{REVISION}");
    cached(cache, &name, progress, |scratch, tar_path| {
        host::ensure(host::IMAGE_TOOLS, progress)?;
        progress.step("Making a Debian root filesystem, about 2 min (only the first time)");
        let root = scratch.join("root");
        let mut command = Command::new(tool("debootstrap"));
        command
            .args(["--variant=minbase", &format!("--include={INCLUDE}"), SUITE])
            .arg(&root);
        if let Some(mirror) = mirror() {
            command.arg(mirror);
        }
        run(&mut command)?;
        pack(&root, tar_path, &EXCLUDE)
    })
}

/// A layer with Python packages, installed by the root filesystem's own pip.
pub(super) fn python_packages(
    cache: &Cache,
    base: &Layer,
    packages: &[String],
    progress: &Progress,
) -> Result<Layer, Error> {
    let mut hash = Sha256::new();
    hash.update(&base.digest);
    for package in packages {
        hash.update(package);
        hash.update(b"\n");
    }
    let key = crate::hex(hash.finalize().get(..8).unwrap_or_default());
    cached(cache, &format!("python-{key}"), progress, |scratch, tar_path| {
        progress.step(format!("Installing {}", packages.join(", ")));
        let root = scratch.join("root");
        fs::create_dir(&root).at("create folder", &root)?;
        run(Command::new("tar").arg("-xpf").arg(&base.path).arg("-C").arg(&root))?;
        lend_host_files(&root)?;
        run(Command::new(tool("chroot"))
            .arg(&root)
            .args(["python3", "-m", "pip", "install", "--no-cache-dir", "--root", "/out"])
            .args([
                "--ignore-installed",
                "--break-system-packages",
                "--no-warn-script-location",
            ])
            .args(packages))?;
        pack(&root.join("out"), tar_path, &["*/__pycache__/*"])
    })
}

/// Name resolution, certificates and pip's own settings of the machine, for
/// the time of the installation.
fn lend_host_files(root: &Path) -> Result<(), Error> {
    let mut files = vec![
        PathBuf::from("/etc/resolv.conf"),
        PathBuf::from("/etc/hosts"),
        PathBuf::from("/etc/pip.conf"),
        PathBuf::from("/etc/ssl/certs/ca-certificates.crt"),
    ];
    for name in ["PIP_CERT", "PIP_CONFIG_FILE", "SSL_CERT_FILE"] {
        files.extend(std::env::var_os(name).map(PathBuf::from));
    }
    for from in files.iter().filter(|f| f.is_file()) {
        let to = root.join(from.strip_prefix("/").unwrap_or(from));
        if let Some(dir) = to.parent() {
            fs::create_dir_all(dir).at("create folder", dir)?;
        }
        // A link would lead out of the root filesystem.
        drop(fs::remove_file(&to));
        fs::copy(from, &to).at("write", &to)?;
    }
    let null = root.join("dev/null");
    if !null.exists() {
        fs::create_dir_all(root.join("dev")).at("create folder", &null)?;
        run(Command::new("mknod")
            .args(["-m", "666"])
            .arg(&null)
            .args(["c", "1", "3"]))?;
    }
    Ok(())
}

/// Makes a layer unless the cache has it. `make` gets a scratch folder and the
/// path at which to put the tar file; nothing half-made is ever kept.
fn cached(
    cache: &Cache,
    name: &str,
    progress: &Progress,
    make: impl FnOnce(&Path, &Path) -> Result<(), Error>,
) -> Result<Layer, Error> {
    let layers = cache.folder("layers")?;
    let path = layers.join(format!("{name}.tar"));
    let digest_file = Layer::digest_file(&path);
    let _lock = cache.lock(&format!("layer-{name}"), progress)?;
    if path.is_file()
        && let Ok(digest) = fs::read_to_string(&digest_file)
    {
        return Ok(Layer { path, digest });
    }
    let scratch = tempfile::Builder::new()
        .prefix(".tmp-")
        .tempdir_in(&layers)
        .at("create folder in", &layers)?;
    let made = scratch.path().join("layer.tar");
    make(scratch.path(), &made)?;
    let digest = archive::digest(&made)?;
    fs::rename(&made, &path).at("write", &path)?;
    // The digest comes last: with it, the layer counts.
    write_atomic(&digest_file, digest.as_bytes(), 0o644)?;
    Ok(Layer { path, digest })
}

/// The system's tar keeps hard links.
fn pack(root: &Path, tar_path: &Path, exclude: &[&str]) -> Result<(), Error> {
    let mut command = Command::new("tar");
    command.arg("-C").arg(root);
    command.args(["--numeric-owner", "--sort=name", "--format=gnu"]);
    command.args(exclude.iter().map(|e| format!("--exclude={e}")));
    run(command.arg("-cf").arg(tar_path).arg(".")).map(drop)
}

/// The mirror that the user names, or the machine's own if it is a Debian too.
fn mirror() -> Option<String> {
    if let Ok(mirror) = std::env::var(MIRROR_VARIABLE)
        && !mirror.is_empty()
    {
        return Some(mirror);
    }
    let release = fs::read_to_string("/etc/os-release").ok()?;
    if !release.lines().any(|l| l == "ID=debian") {
        return None;
    }
    run(Command::new("apt-get").args(["indextargets", "--format", "$(REPO_URI)"]))
        .ok()?
        .lines()
        .find(|uri| uri.starts_with("http") && uri.trim_end_matches('/').ends_with("/debian"))
        .map(str::to_owned)
}

fn tool(name: &str) -> PathBuf {
    on_path(name).unwrap_or_else(|| name.into())
}
