//! Container Device Interface files: types for what we write, and a writer
//! that a runtime never sees half done.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::driver_files::{Bind, DeviceFile, NodeKind};

/// Vendor and class of the cards, as NVIDIA's and HAMi's plugins name them.
pub const KIND: &str = "k8s.device-plugin.nvidia.com/gpu";

/// Lowest version that has mount types and device names that begin with a
/// digit.
const VERSION: &str = "0.5.0";

/// One file.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    cdi_version: &'static str,
    kind: &'static str,
    devices: Vec<Device>,
    container_edits: Edits,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Device {
    name: String,
    container_edits: Edits,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Edits {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    device_nodes: Vec<DeviceNode>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    mounts: Vec<Mount>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct DeviceNode {
    path: PathBuf,
    host_path: PathBuf,
    permissions: &'static str,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Mount {
    host_path: PathBuf,
    container_path: PathBuf,
    options: Vec<&'static str>,
}

/// What a runtime must know about one card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CardEdits {
    /// Device name, the card's UUID.
    pub name: String,
    /// Its own device files.
    pub files: Vec<DeviceFile>,
}

/// Full name of a card for a container.
#[must_use]
pub fn qualified(card: &str) -> String {
    format!("{KIND}={card}")
}

impl Spec {
    /// A file for these cards. `control` and `driver` go to every container
    /// that has any of them. `None` when there are no cards: a file without
    /// devices is invalid.
    #[must_use]
    pub fn new(cards: &[CardEdits], control: &[DeviceFile], driver: &[Bind]) -> Option<Self> {
        let mut common = Edits::of_files(control);
        common
            .mounts
            .extend(driver.iter().map(|bind| Mount::new(bind, &["ro"])));
        let devices: Vec<Device> = cards
            .iter()
            // A device with nothing to add is invalid.
            .filter(|card| !card.files.is_empty())
            .map(|card| Device {
                name: card.name.clone(),
                container_edits: Edits::of_files(&card.files),
            })
            .collect();
        (!devices.is_empty()).then_some(Self {
            cdi_version: VERSION,
            kind: KIND,
            devices,
            container_edits: common,
        })
    }

    /// Writes the file into `folder` unless it is there with this content.
    /// Returns its path.
    ///
    /// # Errors
    /// When the folder or the file cannot be written.
    pub fn write(&self, folder: &Path) -> std::io::Result<PathBuf> {
        let path = folder.join(format!("{}.json", KIND.replace('/', "-")));
        let text = serde_json::to_string_pretty(self)?;
        if std::fs::read_to_string(&path).is_ok_and(|found| found == text) {
            return Ok(path);
        }
        std::fs::create_dir_all(folder)?;
        // Runtimes read every `.json` of the folder, so not under that name.
        let temporary = path.with_extension("tmp");
        let mut file = std::fs::File::create(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, &path)?;
        Ok(path)
    }
}

impl Edits {
    fn of_files(files: &[DeviceFile]) -> Self {
        let mut edits = Self::default();
        for file in files {
            match file.kind {
                NodeKind::Device => edits.device_nodes.push(DeviceNode {
                    path: file.bind.container.clone(),
                    host_path: file.bind.host.clone(),
                    permissions: "rw",
                }),
                NodeKind::File => edits.mounts.push(Mount::new(&file.bind, &["rw"])),
            }
        }
        edits
    }
}

impl Mount {
    fn new(bind: &Bind, access: &[&'static str]) -> Self {
        let mut options = access.to_vec();
        options.extend(["nosuid", "nodev", "rbind", "rprivate"]);
        Self {
            host_path: bind.host.clone(),
            container_path: bind.container.clone(),
            options,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, kind: NodeKind) -> DeviceFile {
        DeviceFile {
            bind: Bind {
                host: format!("/h/dev/{name}").into(),
                container: format!("/dev/{name}").into(),
            },
            kind,
        }
    }

    #[test]
    fn devices_are_nodes_and_files_are_mounts() {
        let card = CardEdits {
            name: "GPU-a".into(),
            files: vec![file("nvidia0", NodeKind::Device)],
        };
        let driver = Bind {
            host: "/h/l".into(),
            container: "/usr/lib64/l".into(),
        };
        let spec = Spec::new(&[card], &[file("nvidiactl", NodeKind::File)], &[driver]).unwrap();
        let value = serde_json::to_value(&spec).unwrap();
        assert_eq!(
            value["devices"][0]["containerEdits"]["deviceNodes"][0]["hostPath"],
            "/h/dev/nvidia0"
        );
        assert_eq!(value["containerEdits"]["mounts"][0]["containerPath"], "/dev/nvidiactl");
        assert_eq!(value["containerEdits"]["mounts"][1]["options"][0], "ro");
        assert_eq!(value["kind"], "k8s.device-plugin.nvidia.com/gpu");
        assert_eq!(qualified("GPU-a"), "k8s.device-plugin.nvidia.com/gpu=GPU-a");
    }

    #[test]
    fn an_unchanged_file_is_left_alone_and_nothing_else_stays_behind() {
        let folder = tempfile::tempdir().unwrap();
        let card = CardEdits {
            name: "GPU-a".into(),
            files: vec![file("nvidia0", NodeKind::Device)],
        };
        let spec = Spec::new(std::slice::from_ref(&card), &[], &[]).unwrap();
        let path = spec.write(folder.path()).unwrap();
        let before = std::fs::metadata(&path).unwrap().modified().unwrap();
        spec.write(folder.path()).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().modified().unwrap(), before);
        let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(names.len(), 1);
        assert!(Spec::new(&[], &[], &[]).is_none());
    }
}
