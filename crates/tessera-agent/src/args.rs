//! Command line and environment of `tessera agent`: the names of HAMi's device
//! plugin where it has them, ours where it has none.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use tessera_wire::config::{DeviceConfig, NodeConfig, NodeConfigFile, Nvidia};

use crate::answer::DeviceAccess;
use crate::settings::{CardSettings, Paths, Settings};

/// Mode of a node without an entry of its own.
const MODE: &str = "hami-core";
/// Slots of a card that the kubelet's 4 MiB messages allow on any node.
const SLOTS_MAX: u32 = 4096;
/// Scaling beyond this is a slip of the decimal point.
const SCALING_MAX: f64 = 100.0;

/// A word of `--mig-strategy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MigStrategy {
    /// MIG devices are not advertised.
    None,
    /// NVIDIA's `single`.
    Single,
    /// NVIDIA's `mixed`.
    Mixed,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// Runs the node agent: publishes the node's cards and serves the kubelet.
#[derive(Debug, Clone, Args)]
pub struct AgentArgs {
    /// Name of this node.
    #[arg(long = "node-name", env = "NODE_NAME")]
    pub node_name: Option<String>,

    /// Device configuration file, shared with the scheduler.
    #[arg(long = "config-file", env = "CONFIG_FILE")]
    pub config_file: Option<PathBuf>,

    /// Per-node overrides; an absent file means none.
    #[arg(
        long = "node-config-file",
        env = "NODE_CONFIG_FILE",
        default_value = "/config/config.json"
    )]
    pub node_config_file: PathBuf,

    /// Address of the health and metrics page; empty for none.
    #[arg(long = "listen", env = "TESSERA_AGENT_LISTEN", default_value = "0.0.0.0:9394")]
    pub listen: String,

    /// The kubelet's registration socket; its folder is the device plugin folder.
    #[arg(
        long = "kubelet-socket",
        env = "KUBELET_SOCKET",
        default_value = "/var/lib/kubelet/device-plugins/kubelet.sock"
    )]
    pub kubelet_socket: PathBuf,

    /// The kubelet's PodResources socket.
    #[arg(
        long = "pod-resources-socket",
        env = "POD_RESOURCES_SOCKET",
        default_value = "/var/lib/kubelet/pod-resources/kubelet.sock"
    )]
    pub pod_resources_socket: PathBuf,

    /// Folder on the host with the driver's libraries and device files.
    #[arg(long = "nvidia-driver-root", env = "NVIDIA_DRIVER_ROOT", default_value = "/")]
    pub driver_root: PathBuf,

    /// The same folder as this process sees it [default: /driver-root where it
    /// exists, else --nvidia-driver-root].
    #[arg(
        long = "driver-root-ctr-path",
        alias = "container-driver-root",
        env = "DRIVER_ROOT_CTR_PATH"
    )]
    pub driver_root_ctr: Option<PathBuf>,

    /// Root of device files on the host [default: --nvidia-driver-root].
    #[arg(long = "dev-root", alias = "nvidia-dev-root", env = "NVIDIA_DEV_ROOT")]
    pub dev_root: Option<PathBuf>,

    /// The kernel's device tree.
    #[arg(long = "sysfs", default_value = "/sys", hide = true)]
    pub sysfs: PathBuf,

    /// How containers reach their cards.
    #[arg(
        long = "device-list-strategy",
        alias = "device-access",
        env = "DEVICE_LIST_STRATEGY",
        value_enum,
        value_delimiter = ',',
        default_value = "auto"
    )]
    pub device_access: Vec<DeviceAccess>,

    /// Also name the device files one by one.
    #[arg(
        long = "pass-device-specs",
        env = "PASS_DEVICE_SPECS",
        default_value_t = false,
        num_args = 0..=1,
        default_missing_value = "true",
        require_equals = true,
        action = clap::ArgAction::Set
    )]
    pub pass_device_specs: bool,

    /// Prefix of the annotation that asks for CDI devices.
    #[arg(
        long = "cdi-annotation-prefix",
        env = "CDI_ANNOTATION_PREFIX",
        default_value = "cdi.k8s.io/"
    )]
    pub cdi_annotation_prefix: String,

    /// Where CDI files are written.
    #[arg(long = "cdi-dir", env = "CDI_DIR", default_value = "/var/run/cdi")]
    pub cdi_dir: PathBuf,

    /// Folder of the enforcement library on the host, without `vgpu`.
    #[arg(long = "hook-path", env = "HOOK_PATH", default_value = "/usr/local")]
    pub hook_path: PathBuf,

    /// The enforcement library to install [default: beside the program].
    #[arg(long = "library", env = "TESSERA_LIBRARY")]
    pub library: Option<PathBuf>,

    /// Where grants are kept, on a tmpfs.
    #[arg(
        long = "grants-dir",
        env = "TESSERA_GRANTS_DIR",
        default_value = tessera_region::HOST_GRANTS_ROOT
    )]
    pub grants_dir: PathBuf,

    /// Mount the shared host folders that HAMi's own library needs. They are
    /// writable by every container; Tessera's library does without.
    #[arg(
        long = "compat-folders",
        env = "TESSERA_COMPAT_FOLDERS",
        default_value_t = false,
        num_args = 0..=1,
        default_missing_value = "true",
        require_equals = true,
        action = clap::ArgAction::Set
    )]
    pub compat_folders: bool,

    /// Let a pod switch its own limits off with `CUDA_DISABLE_CONTROL=true`.
    #[arg(
        long = "allow-disable-control",
        env = "TESSERA_ALLOW_DISABLE_CONTROL",
        default_value_t = false,
        num_args = 0..=1,
        default_missing_value = "true",
        require_equals = true,
        action = clap::ArgAction::Set
    )]
    pub allow_disable_control: bool,

    /// Publish how well the cards are linked.
    #[arg(
        long = "enable-topology-score",
        env = "ENABLE_TOPOLOGY_SCORE",
        default_value_t = false,
        num_args = 0..=1,
        default_missing_value = "true",
        require_equals = true,
        action = clap::ArgAction::Set
    )]
    pub topology_score: bool,

    /// XIDs that do not make a card unhealthy: numbers, or `all`.
    #[arg(long = "disable-healthchecks", env = "DP_DISABLE_HEALTHCHECKS", default_value = "")]
    pub disable_health_checks: String,

    /// XIDs that do, also where they are disabled or an application's.
    #[arg(long = "enable-healthchecks", env = "DP_ENABLE_HEALTHCHECKS", default_value = "")]
    pub enable_health_checks: String,

    /// NVIDIA's static MIG; only `none` is served.
    #[arg(long = "mig-strategy", env = "MIG_STRATEGY", value_enum, default_value = "none")]
    pub mig_strategy: MigStrategy,

    /// Extended resource name. The configuration file wins.
    #[arg(long = "resource-name")]
    pub resource_name: Option<String>,

    /// Slots of each card. The configuration file wins.
    #[arg(long = "device-split-count", env = "DEVICE_SPLIT_COUNT")]
    pub device_split_count: Option<u32>,

    /// Promised over physical memory. The configuration file wins.
    #[arg(long = "device-memory-scaling", env = "DEVICE_MEMORY_SCALING")]
    pub device_memory_scaling: Option<f64>,

    /// Promised over physical compute. The configuration file wins.
    #[arg(long = "device-cores-scaling", env = "DEVICE_CORES_SCALING")]
    pub device_cores_scaling: Option<f64>,

    /// What happens when memory is promised more than once and a card is full: `none` is the driver's answer, `swap`
    /// moves memory of waiting containers to the host.
    #[arg(
        long = "oversubscription",
        env = "TESSERA_OVERSUBSCRIPTION",
        value_enum,
        default_value = "none"
    )]
    pub oversubscription: crate::settings::Oversubscription,

    /// Whether the driver is asked to hold pods to their memory, where it can.
    #[arg(
        long = "driver-memory-limits",
        env = "TESSERA_DRIVER_MEMORY_LIMITS",
        value_enum,
        default_value = "auto"
    )]
    pub driver_memory_limits: crate::settings::DriverLimits,

    /// What each container may use beyond its promise before the driver stops it, in MiB: the driver's own need for
    /// contexts and code counts for the driver, and not for the library.
    #[arg(
        long = "driver-memory-headroom-mib",
        env = "TESSERA_DRIVER_MEMORY_HEADROOM_MIB",
        default_value_t = 2048,
        value_parser = clap::value_parser!(u64).range(0..=1 << 20)
    )]
    pub driver_memory_headroom_mib: u64,

    /// Root of the control groups that the driver's limits belong to.
    #[arg(long = "cgroup-root", env = "TESSERA_CGROUP_ROOT", default_value = "/sys/fs/cgroup")]
    pub cgroup_root: PathBuf,

    /// How cards are named to containers; only `uuid`.
    #[arg(
        long = "device-id-strategy",
        env = "DEVICE_ID_STRATEGY",
        default_value = "uuid",
        hide = true
    )]
    pub device_id_strategy: String,

    /// How cards are found; `auto` or `nvml`.
    #[arg(
        long = "device-discovery-strategy",
        env = "DEVICE_DISCOVERY_STRATEGY",
        default_value = "auto",
        hide = true
    )]
    pub device_discovery_strategy: String,

    /// Ask NVIDIA's runtime for GDRCopy.
    #[arg(
        long = "gdrcopy-enabled",
        env = "GDRCOPY_ENABLED",
        default_value_t = false,
        num_args = 0..=1,
        default_missing_value = "true",
        require_equals = true,
        action = clap::ArgAction::Set
    )]
    pub gdrcopy: bool,

    /// Ask NVIDIA's runtime for GPUDirect Storage.
    #[arg(
        long = "gds-enabled",
        env = "GDS_ENABLED",
        default_value_t = false,
        num_args = 0..=1,
        default_missing_value = "true",
        require_equals = true,
        action = clap::ArgAction::Set
    )]
    pub gds: bool,

    /// Ask NVIDIA's runtime for the MOFED devices.
    #[arg(
        long = "mofed-enabled",
        env = "MOFED_ENABLED",
        default_value_t = false,
        num_args = 0..=1,
        default_missing_value = "true",
        require_equals = true,
        action = clap::ArgAction::Set
    )]
    pub mofed: bool,

    /// Taken for compatibility: a missing driver is always waited for, while
    /// health and metrics are served.
    #[arg(
        long = "fail-on-init-error",
        env = "FAIL_ON_INIT_ERROR",
        default_value_t = false,
        num_args = 0..=1,
        default_missing_value = "true",
        require_equals = true,
        action = clap::ArgAction::Set,
        hide = true
    )]
    pub fail_on_init_error: bool,

    /// Taken for compatibility: our CDI files need no hooks.
    #[arg(
        long = "nvidia-cdi-hook-path",
        alias = "nvidia-ctk-path",
        env = "NVIDIA_CDI_HOOK_PATH",
        hide = true
    )]
    pub cdi_hook_path: Option<PathBuf>,

    /// IMEX channels; none are served.
    #[arg(
        long = "imex-channel-ids",
        env = "IMEX_CHANNEL_IDS",
        value_delimiter = ',',
        hide = true
    )]
    pub imex_channel_ids: Vec<u32>,

    /// More to log: 4 and above logs decisions. RUST_LOG wins.
    #[arg(short = 'v', long = "v", default_value_t = 0)]
    pub verbosity: u8,

    /// How log lines look.
    #[arg(long = "log-format", value_enum, default_value = "text")]
    pub log_format: LogFormat,

    /// Switch compute limits off on this node.
    #[arg(
        long = "disable-core-limit",
        env = "DISABLE_CORE_LIMIT",
        default_value_t = false,
        num_args = 0..=1,
        default_missing_value = "true",
        require_equals = true,
        action = clap::ArgAction::Set
    )]
    pub disable_core_limit: bool,
}

impl AgentArgs {
    /// Reads the files and checks everything.
    ///
    /// # Errors
    /// A missing node name, a file that does not parse (with line and column),
    /// or a value outside its range. Each names the next step.
    pub fn settings(&self) -> anyhow::Result<Settings> {
        let node = self
            .node_name
            .clone()
            .filter(|name| !name.is_empty())
            .context("the node's name is not known; set NODE_NAME (from spec.nodeName) or --node-name")?;
        ensure!(
            self.mig_strategy == MigStrategy::None,
            "--mig-strategy={} is not served; use `none`",
            self.mig_strategy
                .to_possible_value()
                .map_or_else(String::new, |word| word.get_name().to_owned())
        );
        ensure!(
            self.device_id_strategy == "uuid",
            "--device-id-strategy={} is not served; use `uuid`",
            self.device_id_strategy
        );
        ensure!(
            matches!(self.device_discovery_strategy.as_str(), "auto" | "nvml"),
            "--device-discovery-strategy={} is not served; use `auto`",
            self.device_discovery_strategy
        );
        ensure!(
            self.imex_channel_ids.is_empty(),
            "IMEX channels are not served; remove --imex-channel-ids"
        );
        let device = self.device_config()?;
        let own = self.node_config(&node)?;
        let cards = self.cards(&device.unwrap_or_default(), self.config_file.is_some(), &own)?;
        Ok(Settings {
            paths: self.paths(),
            access: self.access()?,
            oversubscription: self.oversubscription,
            driver_limits: self.driver_memory_limits,
            driver_headroom_mib: self.driver_memory_headroom_mib,
            cgroup_root: self.cgroup_root.clone(),
            pass_device_specs: self.pass_device_specs,
            cdi_annotation_prefix: self.cdi_annotation_prefix.clone(),
            publish_scores: self.topology_score,
            allow_disable_control: self.allow_disable_control,
            compat_folders: self.compat_folders,
            xids_disabled: self.disable_health_checks.clone(),
            xids_enabled: self.enable_health_checks.clone(),
            listen: self.listen.clone(),
            features: [
                ("NVIDIA_GDRCOPY", self.gdrcopy),
                ("NVIDIA_GDS", self.gds),
                ("NVIDIA_MOFED", self.mofed),
            ]
            .into_iter()
            .filter_map(|(name, on)| on.then_some(name))
            .collect(),
            cards,
            node,
        })
    }

    fn device_config(&self) -> anyhow::Result<Option<Nvidia>> {
        let Some(path) = &self.config_file else { return Ok(None) };
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the device configuration `{}`; mount it there, or leave --config-file out for the defaults", path.display()))?;
        let config = DeviceConfig::from_yaml(&text)
            .with_context(|| format!("in the device configuration `{}`", path.display()))?;
        for warning in &config.warnings {
            tracing::warn!(file = %path.display(), %warning, "The device configuration has a key without effect.");
        }
        Ok(Some(config.nvidia.unwrap_or_default()))
    }

    fn node_config(&self, node: &str) -> anyhow::Result<NodeConfig> {
        let path = &self.node_config_file;
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(NodeConfig::default());
            }
            Err(error) => {
                return Err(error).with_context(|| format!("reading the node configuration `{}`", path.display()));
            }
        };
        // Going on without it would publish cards in a mode nobody asked for.
        let file = NodeConfigFile::from_json(&text)
            .with_context(|| format!("in the node configuration `{}`", path.display()))?;
        Ok(file.for_node(node))
    }

    fn cards(&self, device: &Nvidia, from_file: bool, own: &NodeConfig) -> anyhow::Result<CardSettings> {
        let flag = |given: Option<f64>, file: f64| if from_file { file } else { given.unwrap_or(file) };
        let slots = if from_file {
            device.device_split_count
        } else {
            self.device_split_count.unwrap_or(device.device_split_count)
        };
        let slots = own.device_split_count.unwrap_or(slots);
        ensure!(
            (1..=SLOTS_MAX).contains(&slots),
            "deviceSplitCount is {slots}; it must be 1 to {SLOTS_MAX}"
        );
        let memory_scaling = own
            .device_memory_scaling
            .unwrap_or_else(|| flag(self.device_memory_scaling, device.device_memory_scaling));
        let core_scaling = own
            .device_core_scaling
            .unwrap_or_else(|| flag(self.device_cores_scaling, device.device_core_scaling));
        for (name, value) in [
            ("deviceMemoryScaling", memory_scaling),
            ("deviceCoreScaling", core_scaling),
        ] {
            ensure!(
                value > 0.0 && value <= SCALING_MAX,
                "{name} is {value}; it must be above 0 and at most {SCALING_MAX}"
            );
        }
        let resource = if from_file || self.resource_name.is_none() {
            device.resource_count_name.clone()
        } else {
            self.resource_name.clone().unwrap_or_default()
        };
        check_resource(&resource)?;
        let mode = own.operating_mode.clone().unwrap_or_else(|| MODE.to_owned());
        if mode == "mig" {
            bail!(
                "operatingmode `mig` is not available on this node agent; set it to `{MODE}`, or remove the node's entry"
            );
        }
        let preconfigured = own
            .pre_configured_device_memory
            .unwrap_or(device.pre_configured_device_memory);
        Ok(CardSettings {
            resource,
            slots,
            memory_scaling,
            core_scaling,
            preconfigured_memory_mib: u64::try_from(preconfigured).ok().filter(|mib| *mib > 0),
            numa: own.enable_numa_topology || device.enable_numa_topology,
            mode,
            log_level: own
                .lib_cuda_log_level
                .clone()
                .unwrap_or_else(|| device.lib_cuda_log_level.clone()),
            disable_core_limit: device.disable_core_limit || self.disable_core_limit,
            hidden_uuids: own.filter_uuids.clone(),
            hidden_indexes: own.filter_indexes.clone(),
        })
    }

    fn paths(&self) -> Paths {
        let plugin_dir = self
            .kubelet_socket
            .parent()
            .map_or_else(|| PathBuf::from("/"), Path::to_owned);
        let mounted = PathBuf::from("/driver-root");
        let driver_root = self.driver_root_ctr.clone().unwrap_or_else(|| {
            if mounted.is_dir() {
                mounted
            } else {
                self.driver_root.clone()
            }
        });
        Paths {
            plugin_dir,
            kubelet_socket: self.kubelet_socket.clone(),
            podresources: self.pod_resources_socket.clone(),
            driver_root,
            driver_root_host: self.driver_root.clone(),
            dev_root_host: self.dev_root.clone().unwrap_or_else(|| self.driver_root.clone()),
            sysfs: self.sysfs.clone(),
            records: self.grants_dir.join("records"),
            grants: self.grants_dir.clone(),
            hook: self.hook_path.clone(),
            library: self.library.clone(),
            cdi: self.cdi_dir.clone(),
        }
    }

    /// HAMi takes any set of words, and so do we; `auto` and `direct` stand
    /// alone.
    fn access(&self) -> anyhow::Result<Vec<DeviceAccess>> {
        let mut access = self.device_access.clone();
        access.sort_unstable();
        access.dedup();
        let alone = |word: &DeviceAccess| matches!(word, DeviceAccess::Auto | DeviceAccess::Direct);
        ensure!(
            access.len() <= 1 || !access.iter().any(alone),
            "--device-list-strategy: `auto` and `direct` cannot be combined with other words"
        );
        if access.is_empty() {
            access.push(DeviceAccess::Auto);
        }
        Ok(access)
    }
}

/// An extended resource name: a domain, a slash, a name.
fn check_resource(name: &str) -> anyhow::Result<()> {
    let good = name.split_once('/').is_some_and(|(domain, rest)| {
        !domain.is_empty()
            && !rest.is_empty()
            && !rest.contains('/')
            && !domain.ends_with("kubernetes.io")
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-._/".contains(&byte))
    });
    ensure!(
        good,
        "resourceCountName `{name}` is no extended resource name; write it as `nvidia.com/gpu`"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        agent: AgentArgs,
    }

    fn parse(arguments: &[&str]) -> AgentArgs {
        let mut all = vec!["agent", "--node-name=n1", "--node-config-file=/nonexistent"];
        all.extend(arguments);
        Command::try_parse_from(all).unwrap().agent
    }

    #[test]
    fn defaults_are_those_of_the_compatible_chart() {
        let settings = parse(&[]).settings().unwrap();
        assert_eq!(settings.cards.resource, "nvidia.com/gpu");
        assert_eq!(settings.cards.slots, 10);
        assert_eq!(settings.cards.mode, "hami-core");
        assert_eq!(settings.access, [DeviceAccess::Auto]);
        assert_eq!(settings.paths.plugin_dir, Path::new("/var/lib/kubelet/device-plugins"));
        assert_eq!(settings.paths.records, Path::new("/run/tessera/grants/records"));
    }

    #[test]
    fn flags_count_without_a_file_and_the_file_wins() {
        let flags = ["--device-split-count=4", "--device-memory-scaling=1.5"];
        let settings = parse(&flags).settings().unwrap();
        assert_eq!((settings.cards.slots, settings.cards.memory_scaling), (4, 1.5));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("device-config.yaml");
        std::fs::write(
            &file,
            "nvidia:\n  resourceCountName: example.com/card\n  deviceSplitCount: 7\n",
        )
        .unwrap();
        let name = format!("--config-file={}", file.display());
        let settings = parse(&[&name, flags[0], flags[1]]).settings().unwrap();
        assert_eq!(settings.cards.slots, 7);
        assert_eq!(settings.cards.memory_scaling, 1.0);
        assert_eq!(settings.cards.resource, "example.com/card");
    }

    #[test]
    fn a_broken_file_is_refused_with_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("device-config.yaml");
        std::fs::write(&file, "nvidia:\n  deviceSplitCuont: 7\n").unwrap();
        let name = format!("--config-file={}", file.display());
        let error = format!("{:#}", parse(&[&name]).settings().unwrap_err());
        assert!(error.contains("line 2"), "{error}");
        assert!(error.contains("deviceSplitCount"), "{error}");

        let own = folder.path().join("config.json");
        std::fs::write(&own, "{").unwrap();
        let name = format!("--node-config-file={}", own.display());
        let error = Command::try_parse_from(["agent", "--node-name=n1", &name])
            .unwrap()
            .agent
            .settings()
            .unwrap_err();
        assert!(format!("{error:#}").contains("config.json"), "{error:#}");
    }

    #[test]
    fn values_outside_their_range_are_refused() {
        for bad in [
            "--device-split-count=0",
            "--device-memory-scaling=-1",
            "--device-memory-scaling=nan",
            "--resource-name=gpu",
            "--mig-strategy=mixed",
            "--device-list-strategy=auto,envvar",
        ] {
            assert!(parse(&[bad]).settings().is_err(), "{bad}");
        }
        let unknown = Command::try_parse_from(["agent", "--device-list-strategy=env"]);
        assert!(unknown.unwrap_err().to_string().contains("envvar"));
    }
}
