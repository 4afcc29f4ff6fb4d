//! What the administrator set, checked and in our own words.

use std::path::PathBuf;

use crate::answer::DeviceAccess;

/// How cards are published.
#[derive(Debug, Clone, PartialEq)]
pub struct CardSettings {
    /// Extended resource name for counting, `nvidia.com/gpu`.
    pub resource: String,
    /// Slots of each card, at least 1.
    pub slots: u32,
    /// Promised memory over physical memory, positive.
    pub memory_scaling: f64,
    /// Promised compute over physical compute, positive.
    pub core_scaling: f64,
    /// Memory of cards whose driver does not say.
    pub preconfigured_memory_mib: Option<u64>,
    /// Whether the kubelet aligns to NUMA nodes.
    pub numa: bool,
    /// Published mode.
    pub mode: String,
    /// Log level of the compatible library; empty to say nothing.
    pub log_level: String,
    /// Whether compute limits are off on this node.
    pub disable_core_limit: bool,
    /// Cards that are not offered, by UUID.
    pub hidden_uuids: Vec<String>,
    /// Cards that are not offered, by index.
    pub hidden_indexes: Vec<u32>,
}

impl CardSettings {
    /// Whether a card is kept from everything.
    #[must_use]
    pub fn hides(&self, uuid: &str, index: u32) -> bool {
        self.hidden_uuids.iter().any(|hidden| hidden == uuid) || self.hidden_indexes.contains(&index)
    }
}

/// Where things are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// The kubelet's device plugin folder.
    pub plugin_dir: PathBuf,
    /// The kubelet's registration socket.
    pub kubelet_socket: PathBuf,
    /// The kubelet's PodResources socket.
    pub podresources: PathBuf,
    /// The driver's root as we see it.
    pub driver_root: PathBuf,
    /// The driver's root as the host sees it.
    pub driver_root_host: PathBuf,
    /// Root of device files as the host sees it.
    pub dev_root_host: PathBuf,
    /// The kernel's device tree.
    pub sysfs: PathBuf,
    /// Grants, the same path for us and the host.
    pub grants: PathBuf,
    /// Our own records about grants.
    pub records: PathBuf,
    /// Folder of the compatible library, without `vgpu`.
    pub hook: PathBuf,
    /// The library to install; `None` to search beside the program.
    pub library: Option<PathBuf>,
    /// Where CDI files are written.
    pub cdi: PathBuf,
}

/// What happens when a card is promised more than once and full.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Oversubscription {
    /// The driver's own out-of-memory answer.
    #[default]
    None,
    /// Memory of waiting tenants leaves the card.
    Swap,
}

/// Who may be asked to hold containers to their memory beside the library.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum DriverLimits {
    /// The driver, on cards where it can.
    #[default]
    Auto,
    /// Nobody.
    Off,
}

/// All settings of a running agent.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Name of this node.
    pub node: String,
    /// Cards.
    pub cards: CardSettings,
    /// Places.
    pub paths: Paths,
    /// How containers reach their cards, in order.
    pub access: Vec<DeviceAccess>,
    /// What happens when a card is promised more than once and full.
    pub oversubscription: Oversubscription,
    /// Whether the driver is asked to hold pods to their memory.
    pub driver_limits: DriverLimits,
    /// What a container may use beyond its promise before the driver stops it, in MiB: the driver's own need.
    pub driver_headroom_mib: u64,
    /// Root of the control groups, as we see it; the hierarchy of the driver's limits.
    pub cgroup_root: PathBuf,
    /// Whether device files are also named one by one under `envvar`.
    pub pass_device_specs: bool,
    /// Annotation prefix of CDI requests.
    pub cdi_annotation_prefix: String,
    /// Whether pair scores are published.
    pub publish_scores: bool,
    /// Whether a pod may switch its limits off by itself.
    pub allow_disable_control: bool,
    /// Whether the host folders of the compatible library are mounted.
    pub compat_folders: bool,
    /// Lists of XIDs that do not and do count.
    pub xids_disabled: String,
    /// See above.
    pub xids_enabled: String,
    /// Variables of further parts of NVIDIA's runtime, each set to `enabled`.
    pub features: Vec<&'static str>,
    /// Address of the health and metrics page; empty for none.
    pub listen: String,
}
