//! Which files of the driver a container needs, and where it looks for them.
//!
//! A container finds the driver by name only (`dlopen("libcuda.so.1")`), and an
//! image's loader cache knows nothing of what is mounted later. So each library
//! is mounted in the loader's default folders, once for Debian's layout and
//! once for Red Hat's.

use std::path::{Path, PathBuf};

use tessera_probe::DriverRoot;
use tessera_probe::root::LIBRARY_FOLDERS;

/// Libraries of the compute and utility parts of the driver, by soname.
const LIBRARIES: [&str; 13] = [
    "libcuda.so.1",
    "libnvidia-ml.so.1",
    "libnvidia-ptxjitcompiler.so.1",
    "libnvidia-nvvm.so.4",
    "libcudadebugger.so.1",
    "libnvidia-opencl.so.1",
    "libnvidia-cfg.so.1",
    "libnvidia-allocator.so.1",
    "libnvidia-encode.so.1",
    "libnvidia-opticalflow.so.1",
    "libnvcuvid.so.1",
    "libnvidia-sandboxutils.so.1",
    "libnvidia-pkcs11.so",
];

/// Libraries that are only known by their full version.
const VERSIONED: [&str; 3] = [
    "libnvidia-gpucomp.so.",
    "libnvidia-fatbinaryloader.so.",
    "libnvidia-compiler.so.",
];

/// Second name under which programs open the driver.
const ALIASES: [(&str, &str); 1] = [("libcuda.so.1", "libcuda.so")];

/// Programs of the driver.
const PROGRAMS: [&str; 4] = [
    "nvidia-smi",
    "nvidia-debugdump",
    "nvidia-cuda-mps-control",
    "nvidia-cuda-mps-server",
];

/// Device files that every user of any card needs.
const CONTROL: [&str; 4] = ["nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset"];

/// How a device file is handed in: device files as devices, anything else by
/// binding it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeKind {
    /// A character device.
    Device,
    /// A regular file.
    File,
}

/// One file for the container.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bind {
    /// The host's path.
    pub host: PathBuf,
    /// The container's path.
    pub container: PathBuf,
}

/// One device file for the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceFile {
    /// Where.
    pub bind: Bind,
    /// What.
    pub kind: NodeKind,
}

/// Folders of the container in which libraries are mounted.
#[must_use]
pub fn library_folders() -> [&'static str; 2] {
    if cfg!(target_arch = "aarch64") {
        ["/usr/lib/aarch64-linux-gnu", "/usr/lib64"]
    } else {
        ["/usr/lib/x86_64-linux-gnu", "/usr/lib64"]
    }
}

/// Libraries and programs of the driver, in a stable order.
#[must_use]
pub fn driver_binds(root: &DriverRoot) -> Vec<Bind> {
    let mut binds = Vec::new();
    let mut add = |file: &Path, name: &str| {
        let Some(resolved) = root.resolve(file) else { return };
        for folder in library_folders() {
            binds.push(Bind {
                host: root.to_host(&resolved),
                container: Path::new(folder).join(name),
            });
        }
    };
    for name in LIBRARIES {
        let Some(file) = root.library(name) else { continue };
        add(&file, name);
        for (soname, alias) in ALIASES {
            if soname == name {
                add(&file, alias);
            }
        }
    }
    for file in versioned(root) {
        if let Some(name) = file.file_name().and_then(|name| name.to_str()) {
            add(&file, name);
        }
    }
    for name in PROGRAMS {
        if let Some(file) = root.file(&format!("usr/bin/{name}"))
            && let Some(resolved) = root.resolve(&file)
        {
            binds.push(Bind {
                host: root.to_host(&resolved),
                container: Path::new("/usr/bin").join(name),
            });
        }
    }
    binds.sort();
    binds.dedup_by(|a, b| a.container == b.container);
    binds
}

fn versioned(root: &DriverRoot) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = LIBRARY_FOLDERS
        .iter()
        .filter_map(|folder| std::fs::read_dir(root.here().join(folder)).ok())
        .flat_map(|entries| entries.flatten().map(|entry| entry.path()))
        .filter(|path| {
            path.file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|name| VERSIONED.iter().any(|prefix| name.starts_with(prefix)))
        })
        .collect();
    found.sort();
    // `lib` is often a link to `usr/lib`: one name is enough.
    found.dedup_by(|a, b| a.file_name() == b.file_name());
    found
}

/// Control device files that exist, then those of the cards with these minor
/// numbers. `root` is where we see the driver, `dev_root` the host's root of
/// device files.
#[must_use]
pub fn device_files(root: &DriverRoot, dev_root: &Path, minors: &[u32]) -> Vec<DeviceFile> {
    CONTROL
        .iter()
        .map(|name| (*name).to_owned())
        .chain(minors.iter().map(|minor| format!("nvidia{minor}")))
        .filter_map(|name| {
            let container = Path::new("/dev").join(&name);
            // Below the driver's root, else in our own `/dev`.
            let kind = kind_of(&root.here().join("dev").join(&name)).or_else(|| kind_of(&container))?;
            let host = dev_root.join("dev").join(&name);
            Some(DeviceFile {
                bind: Bind { host, container },
                kind,
            })
        })
        .collect()
}

fn kind_of(path: &Path) -> Option<NodeKind> {
    use std::os::unix::fs::FileTypeExt;
    let kind = std::fs::metadata(path).ok()?.file_type();
    if kind.is_char_device() {
        Some(NodeKind::Device)
    } else if kind.is_file() {
        Some(NodeKind::File)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_under_both_layouts_and_files_are_bound() {
        let folder = tempfile::tempdir().unwrap();
        let here = folder.path();
        std::fs::create_dir_all(here.join("lib64")).unwrap();
        std::fs::create_dir_all(here.join("dev")).unwrap();
        std::fs::write(here.join("lib64/libcuda.so.535.1"), "").unwrap();
        std::os::unix::fs::symlink("libcuda.so.535.1", here.join("lib64/libcuda.so.1")).unwrap();
        std::fs::write(here.join("lib64/libnvidia-gpucomp.so.535.1"), "").unwrap();
        std::fs::write(here.join("dev/nvidiactl"), "").unwrap();
        std::fs::write(here.join("dev/nvidia3"), "").unwrap();
        let root = DriverRoot::new(here, "/host/driver");
        let binds = driver_binds(&root);
        let target = |name: &str| {
            binds
                .iter()
                .find(|bind| bind.container.ends_with(name) && bind.container.starts_with("/usr/lib64"))
                .map(|bind| bind.host.clone())
        };
        assert_eq!(
            target("libcuda.so.1"),
            Some("/host/driver/lib64/libcuda.so.535.1".into())
        );
        assert_eq!(target("libcuda.so"), Some("/host/driver/lib64/libcuda.so.535.1".into()));
        assert!(target("libnvidia-gpucomp.so.535.1").is_some());
        assert_eq!(binds.len(), 6);

        let devices = device_files(&root, Path::new("/host/driver"), &[3, 4]);
        let names: Vec<_> = devices
            .iter()
            .filter(|device| device.kind == NodeKind::File)
            .map(|device| device.bind.container.to_str().unwrap())
            .collect();
        assert_eq!(names, ["/dev/nvidiactl", "/dev/nvidia3"]);
        assert_eq!(devices[0].bind.host, Path::new("/host/driver/dev/nvidiactl"));
    }
}
