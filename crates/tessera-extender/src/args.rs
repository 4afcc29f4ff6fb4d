//! The command line.
//!
//! HAMi's flags keep their exact names, snake and kebab mixed as they are, since its chart and people's values
//! files pass them; ours are kebab. A flag that would do nothing is refused by name with the reason, so that
//! nobody believes in a setting that has no effect. Booleans take Go's forms: `--x`, `--x=true`, `--x=false`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tessera_types::{CardPolicy, NodePolicy};

/// How many nodes filter answers, and when cards are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum FilterMode {
    /// One node, with its cards chosen. What HAMi does.
    #[default]
    One,
    /// Every node that fits; kube-scheduler's score plugins count, and the cards are chosen at bind.
    All,
}

/// When the allocation is written on the pod, in filter mode `one`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum WriteAt {
    /// With the Binding, or just before it where a Binding carries no labels (Kubernetes before 1.35).
    #[default]
    Bind,
    /// At the end of filter, as HAMi does.
    Filter,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// `tessera scheduler`. A flag given twice has its last value, as in Go: charts append to what they render.
#[derive(Debug, Clone, Args)]
#[command(args_override_self = true)]
pub struct SchedulerArgs {
    /// Address of the extender and, unless --webhook-bind is given, of the webhook.
    #[arg(
        long = "http_bind",
        alias = "http-bind",
        default_value = "127.0.0.1:8080",
        value_name = "HOST:PORT"
    )]
    pub http_bind: String,

    /// Address of a listener for the webhook alone, always with TLS.
    #[arg(long = "webhook-bind", value_name = "HOST:PORT")]
    pub webhook_bind: Option<String>,

    /// TLS certificate (PEM); read again when it changes. Without it --webhook-bind makes its own.
    #[arg(long = "cert_file", alias = "cert-file", default_value = "", value_name = "FILE")]
    pub cert_file: String,

    /// Private key of --cert_file (PEM).
    #[arg(long = "key_file", alias = "key-file", default_value = "", value_name = "FILE")]
    pub key_file: String,

    /// CA (PEM) of clients that may use the extender from another machine.
    #[arg(long = "client-ca-file", value_name = "FILE")]
    pub client_ca_file: Option<PathBuf>,

    /// Let everybody who reaches the port use the extender. Whoever can may bind any pod.
    #[arg(long = "extender-allow-remote", num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub extender_allow_remote: bool,

    /// Secret that holds our own certificate authority, in --namespace.
    #[arg(long = "tls-secret", default_value = "tessera-webhook-tls", value_name = "NAME")]
    pub tls_secret: String,

    /// Mutating and validating webhook configurations that are made to trust our own authority.
    #[arg(long = "webhook-configuration", value_name = "NAME")]
    pub webhook_configurations: Vec<String>,

    /// Further names and addresses for our own certificate.
    #[arg(long = "tls-dns-name", value_name = "NAME")]
    pub tls_dns_names: Vec<String>,

    /// Service that leads to the webhook; its names go into our own certificate.
    #[arg(long = "webhook-service", default_value = "tessera-scheduler", value_name = "NAME")]
    pub webhook_service: String,

    /// Namespace of our Secret and Lease.
    #[arg(long = "namespace", env = "POD_NAMESPACE", default_value = "kube-system")]
    pub namespace: String,

    /// Name of the profile of kube-scheduler that uses this extender; pods are sent to it.
    #[arg(long = "scheduler-name", default_value = "")]
    pub scheduler_name: String,

    /// Which node wins: binpack, spread, fgd or tessera.
    #[arg(long = "node-scheduler-policy", default_value = "tessera", value_parser = node_policy)]
    pub node_policy: NodePolicy,

    /// Which cards win: binpack, spread, topology-aware, mutex, numa, or a list of them. Unless it is given, the fullest
    /// under a node policy that packs (fgd, tessera), else the emptiest.
    #[arg(long = "gpu-scheduler-policy", value_parser = card_policy)]
    pub card_policy: Option<CardPolicy>,

    /// How many nodes filter answers.
    #[arg(long = "filter-mode", value_enum, default_value_t)]
    pub filter_mode: FilterMode,

    /// When the allocation is written on the pod.
    #[arg(long = "write-at", value_enum, default_value_t)]
    pub write_at: WriteAt,

    /// How long cards stay promised to a pod between filter and bind. Longer than gangs wait for their last member.
    #[arg(long = "assume-time", default_value = "90s", value_parser = go_duration, value_name = "TIME")]
    pub assume_time: Duration,

    /// Address of the metrics page.
    #[arg(long = "metrics-bind-address", default_value = ":9395", value_name = "HOST:PORT")]
    pub metrics_bind: String,

    /// Also show metrics under HAMi's old names.
    #[arg(long = "legacy-metrics", num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub legacy_metrics: bool,

    /// Only nodes with all these labels take part: key=value,key=value.
    #[arg(long = "node-label-selector", value_parser = label_selector, value_name = "K=V,...")]
    pub node_labels: Option<Labels>,

    /// How to reach the API server; without it $KUBECONFIG, ~/.kube/config and the pod's account are tried.
    #[arg(long = "kubeconfig", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// Requests a second to the API server; without it there is no limit.
    #[arg(long = "kube-qps", value_name = "N")]
    pub kube_qps: Option<f64>,

    /// Requests at once before --kube-qps counts.
    #[arg(long = "kube-burst", default_value_t = 10, value_name = "N")]
    pub kube_burst: u32,

    /// After this long a node lock may be taken over. Only nodes with a device plugin of another maker have one.
    #[arg(long = "node-lock-timeout", default_value = "5m", value_parser = go_duration, value_name = "TIME")]
    pub node_lock_timeout: Duration,

    /// How long a gang member waits for a node lock; 0 for not at all.
    #[arg(long = "node-lock-retry-timeout", default_value = "28s", value_parser = go_duration, value_name = "TIME")]
    pub node_lock_retry: Duration,

    /// Also take pods that name the default scheduler.
    #[arg(long = "force-overwrite-default-scheduler", num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub force_overwrite: bool,

    /// Refuse a pod that asks for cards of a class which is not switched on and of which no node offers any, instead of
    /// letting it wait for ever.
    #[arg(long = "refuse-not-enabled", num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub refuse_not_enabled: bool,

    /// Several replicas run: answer only beside the kube-scheduler that leads, and elect one for shared chores.
    #[arg(long = "leader-elect", num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub leader_elect: bool,

    /// Lease of the kube-scheduler beside us.
    #[arg(long = "leader-elect-resource-name", default_value = "")]
    pub lease_name: String,

    /// Its namespace.
    #[arg(long = "leader-elect-resource-namespace", default_value = "")]
    pub lease_namespace: String,

    /// device-config.yaml: resource names and defaults.
    #[arg(long = "device-config-file", default_value = "", value_name = "FILE")]
    pub device_config: String,

    /// More log: the reasons of every decision.
    #[arg(long = "debug", num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub debug: bool,

    /// Log level in klog's numbers: up to 3 what was done, 4 and 5 why, from 6 on everything.
    #[arg(short = 'v', long = "v", default_value_t = 0, value_name = "N")]
    pub verbosity: u8,

    /// How log lines look.
    #[arg(long = "log-format", value_enum, default_value_t)]
    pub log_format: LogFormat,

    /// Serve the chips of the configuration's `vnpus` section (Huawei Ascend).
    #[arg(long = "enable-ascend", num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub enable_ascend: bool,

    /// Serve the chips of the configuration's `iluvatars` section.
    #[arg(long = "enable-iluvatar", num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub enable_iluvatar: bool,

    #[command(flatten)]
    refused: RefusedArgs,
}

/// Flags of the compatible binary that have no effect here. They parse, so that the refusal can say why.
#[derive(Debug, Clone, Default, Args)]
struct RefusedArgs {
    #[arg(long = "profiling", hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    profiling: Option<bool>,
    #[arg(long = "kube-timeout", hide = true)]
    kube_timeout: Option<u64>,
    #[arg(long = "default-mem", hide = true)]
    default_mem: Option<String>,
    #[arg(long = "default-cores", hide = true)]
    default_cores: Option<String>,
    #[arg(long = "default-gpu", hide = true)]
    default_gpu: Option<String>,
    #[arg(long = "logtostderr", hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    logtostderr: Option<bool>,
    #[arg(long = "alsologtostderr", hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    alsologtostderr: Option<bool>,
    #[arg(long = "log_file", alias = "log-file", hide = true)]
    log_file: Option<String>,
    #[arg(long = "log_dir", alias = "log-dir", hide = true)]
    log_dir: Option<String>,
    #[arg(long = "vmodule", hide = true)]
    vmodule: Option<String>,
    #[arg(long = "stderrthreshold", hide = true)]
    stderrthreshold: Option<String>,
    #[arg(long = "cambricon-mlu-name", hide = true)]
    cambricon_mlu_name: Option<String>,
    #[arg(long = "cambricon-mlu-memory", hide = true)]
    cambricon_mlu_memory: Option<String>,
    #[arg(long = "cambricon-mlu-cores", hide = true)]
    cambricon_mlu_cores: Option<String>,
    #[arg(long = "dcu-name", hide = true)]
    dcu_name: Option<String>,
    #[arg(long = "dcu-memory", hide = true)]
    dcu_memory: Option<String>,
    #[arg(long = "dcu-cores", hide = true)]
    dcu_cores: Option<String>,
    #[arg(long = "mthreads-name", hide = true)]
    mthreads_name: Option<String>,
    #[arg(long = "mthreads-memory", hide = true)]
    mthreads_memory: Option<String>,
    #[arg(long = "mthreads-cores", hide = true)]
    mthreads_cores: Option<String>,
    #[arg(long = "metax-name", hide = true)]
    metax_name: Option<String>,
    #[arg(long = "metax-vcount", hide = true)]
    metax_vcount: Option<String>,
    #[arg(long = "metax-vcore", hide = true)]
    metax_vcore: Option<String>,
    #[arg(long = "metax-vmemory", hide = true)]
    metax_vmemory: Option<String>,
    #[arg(long = "kunlun-name", hide = true)]
    kunlun_name: Option<String>,
    #[arg(long = "kunlun-vcount", hide = true)]
    kunlun_vcount: Option<String>,
    #[arg(long = "kunlun-vmemory", hide = true)]
    kunlun_vmemory: Option<String>,
    #[arg(long = "enflame-gcu-resource-name", hide = true)]
    enflame_gcu: Option<String>,
    #[arg(long = "enflame-drs-gcu-resource-name", hide = true)]
    enflame_drs_gcu: Option<String>,
    #[arg(long = "enflame-gcu-memory-resource-name", hide = true)]
    enflame_gcu_memory: Option<String>,
    #[arg(long = "enflame-gcu-core-resource-name", hide = true)]
    enflame_gcu_core: Option<String>,
    #[arg(long = "enflame-vgcu-resource-name", hide = true)]
    enflame_vgcu: Option<String>,
    #[arg(long = "enflame-vgcu-legacy-resource-name", hide = true)]
    enflame_vgcu_legacy: Option<String>,
    #[arg(long = "enflame-vgcu-percentage-resource-name", hide = true)]
    enflame_vgcu_percentage: Option<String>,
}

/// A combination of flags that cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArgsError {
    /// The flag has no effect in this program.
    #[error("--{flag} has no effect here: {reason}")]
    NoEffect {
        /// Without the dashes.
        flag: &'static str,
        /// Why, and what to do.
        reason: &'static str,
    },
    /// One of two flags that belong together.
    #[error("--{given} is given without --{missing}; both are needed")]
    Half {
        /// The one there.
        given: &'static str,
        /// The one not there.
        missing: &'static str,
    },
    /// A flag that only means something with another.
    #[error("--{flag} needs {needs}")]
    Needs {
        /// The flag.
        flag: &'static str,
        /// What it needs.
        needs: &'static str,
    },
}

impl SchedulerArgs {
    /// Which classes are on besides what the device configuration says.
    #[must_use]
    pub fn classes(&self) -> tessera_vendors::Options {
        tessera_vendors::Options {
            ascend: self.enable_ascend,
            iluvatar: self.enable_iluvatar,
        }
    }

    /// Refuses what cannot work or would have no effect.
    ///
    /// # Errors
    /// Names the first such flag and says what to do instead.
    pub fn check(&self) -> Result<(), ArgsError> {
        self.refused.check()?;
        match (self.cert_file.is_empty(), self.key_file.is_empty()) {
            (false, true) => {
                return Err(ArgsError::Half {
                    given: "cert_file",
                    missing: "key_file",
                });
            }
            (true, false) => {
                return Err(ArgsError::Half {
                    given: "key_file",
                    missing: "cert_file",
                });
            }
            _ => {}
        }
        if self.client_ca_file.is_some() && self.cert_file.is_empty() {
            return Err(ArgsError::Needs {
                flag: "client-ca-file",
                needs: "--cert_file and --key_file",
            });
        }
        if !self.webhook_configurations.is_empty() && !self.makes_certificate() {
            return Err(ArgsError::Needs {
                flag: "webhook-configuration",
                needs: "an own certificate, that is --webhook-bind without --cert_file",
            });
        }
        if self.filter_mode == FilterMode::All && self.write_at == WriteAt::Filter {
            return Err(ArgsError::Needs {
                flag: "write-at=filter",
                needs: "--filter-mode=one",
            });
        }
        match (self.lease_name.is_empty(), self.lease_namespace.is_empty()) {
            (false, true) => Err(ArgsError::Half {
                given: "leader-elect-resource-name",
                missing: "leader-elect-resource-namespace",
            }),
            (true, false) => Err(ArgsError::Half {
                given: "leader-elect-resource-namespace",
                missing: "leader-elect-resource-name",
            }),
            _ => Ok(()),
        }
    }

    /// Whether we are our own certificate authority.
    #[must_use]
    pub fn makes_certificate(&self) -> bool {
        self.webhook_bind.is_some() && self.cert_file.is_empty()
    }

    /// The log filter that `-v` and `--debug` ask for, in `tracing`'s notation. The client library's own lines are left
    /// out: each of its errors is ours to tell, once and with what was attempted.
    #[must_use]
    pub fn log_filter(&self) -> &'static str {
        match (self.verbosity, self.debug) {
            (6.., _) => "info,kube_client=off,tessera=trace",
            (4 | 5, _) | (_, true) => "info,kube_client=off,tessera=debug",
            _ => "info,kube_client=off",
        }
    }
}

impl RefusedArgs {
    fn check(&self) -> Result<(), ArgsError> {
        const VENDOR: &str = "names of this class come from device-config.yaml (--device-config-file); set it there";
        const LOG: &str = "logs go to standard error; use -v for the level and --log-format for the form";
        const DEFAULTS: &str = "defaults come from device-config.yaml (defaultMemory, defaultCores, defaultGPUNum)";
        let wanted = [
            (
                "profiling",
                self.profiling == Some(true),
                "there is no profiling endpoint; see /metrics on the metrics port",
            ),
            (
                "kube-timeout",
                self.kube_timeout.is_some_and(|seconds| seconds > 0),
                "every request to the API server has a limit of its own, at most 10 s",
            ),
            ("default-mem", self.default_mem.is_some(), DEFAULTS),
            ("default-cores", self.default_cores.is_some(), DEFAULTS),
            ("default-gpu", self.default_gpu.is_some(), DEFAULTS),
            // Standard error is where logs go: asking for it is fine, asking for something else is not.
            ("logtostderr=false", self.logtostderr == Some(false), LOG),
            (
                "log_file",
                self.log_file.as_ref().is_some_and(|file| !file.is_empty()),
                LOG,
            ),
            ("log_dir", self.log_dir.as_ref().is_some_and(|dir| !dir.is_empty()), LOG),
            (
                "vmodule",
                self.vmodule.as_ref().is_some_and(|modules| !modules.is_empty()),
                LOG,
            ),
            ("alsologtostderr=false", self.alsologtostderr == Some(false), LOG),
            ("stderrthreshold", self.stderrthreshold.is_some(), LOG),
        ];
        if let Some((flag, _, reason)) = wanted.into_iter().find(|(_, set, _)| *set) {
            return Err(ArgsError::NoEffect { flag, reason });
        }
        // A name that is the built-in one changes nothing and is let through: charts render them all.
        let named = [
            ("cambricon-mlu-name", &self.cambricon_mlu_name, "cambricon.com/vmlu"),
            (
                "cambricon-mlu-memory",
                &self.cambricon_mlu_memory,
                "cambricon.com/mlu.smlu.vmemory",
            ),
            (
                "cambricon-mlu-cores",
                &self.cambricon_mlu_cores,
                "cambricon.com/mlu.smlu.vcore",
            ),
            ("dcu-name", &self.dcu_name, "hygon.com/dcunum"),
            ("dcu-memory", &self.dcu_memory, "hygon.com/dcumem"),
            ("dcu-cores", &self.dcu_cores, "hygon.com/dcucores"),
            ("mthreads-name", &self.mthreads_name, "mthreads.com/vgpu"),
            ("mthreads-memory", &self.mthreads_memory, "mthreads.com/sgpu-memory"),
            ("mthreads-cores", &self.mthreads_cores, "mthreads.com/sgpu-core"),
            ("metax-name", &self.metax_name, "metax-tech.com/gpu"),
            ("metax-vcount", &self.metax_vcount, "metax-tech.com/sgpu"),
            ("metax-vcore", &self.metax_vcore, "metax-tech.com/vcore"),
            ("metax-vmemory", &self.metax_vmemory, "metax-tech.com/vmemory"),
            ("kunlun-name", &self.kunlun_name, "kunlunxin.com/xpu"),
            ("kunlun-vcount", &self.kunlun_vcount, "kunlunxin.com/vxpu"),
            ("kunlun-vmemory", &self.kunlun_vmemory, "kunlunxin.com/vxpu-memory"),
            ("enflame-gcu-resource-name", &self.enflame_gcu, "enflame.com/gcu"),
            (
                "enflame-drs-gcu-resource-name",
                &self.enflame_drs_gcu,
                "enflame.com/drs-gcu",
            ),
            (
                "enflame-gcu-memory-resource-name",
                &self.enflame_gcu_memory,
                "enflame.com/gcu-memory",
            ),
            (
                "enflame-gcu-core-resource-name",
                &self.enflame_gcu_core,
                "enflame.com/gcu-core",
            ),
            ("enflame-vgcu-resource-name", &self.enflame_vgcu, "enflame.com/vgcu"),
            (
                "enflame-vgcu-legacy-resource-name",
                &self.enflame_vgcu_legacy,
                "enflame.com/vgcu",
            ),
            (
                "enflame-vgcu-percentage-resource-name",
                &self.enflame_vgcu_percentage,
                "enflame.com/vgcu-percentage",
            ),
        ];
        match named
            .into_iter()
            .find(|(_, given, built_in)| given.as_ref().is_some_and(|name| name != built_in))
        {
            Some((flag, _, _)) => Err(ArgsError::NoEffect { flag, reason: VENDOR }),
            None => Ok(()),
        }
    }
}

/// Labels a node must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels(BTreeMap<String, String>);

impl Labels {
    /// In the API's notation.
    #[must_use]
    pub fn selector(&self) -> String {
        self.0
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect::<Vec<_>>()
            .join(",")
    }
}

fn label_selector(text: &str) -> Result<Labels, String> {
    let mut labels = BTreeMap::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (key, value) = part
            .split_once('=')
            .filter(|(key, _)| !key.is_empty())
            .ok_or_else(|| format!("`{part}` is not of the form key=value"))?;
        labels.insert(key.to_owned(), value.to_owned());
    }
    if labels.is_empty() {
        Err("it names no label; leave the flag out for all nodes".to_owned())
    } else {
        Ok(Labels(labels))
    }
}

fn node_policy(text: &str) -> Result<NodePolicy, String> {
    NodePolicy::parse(text).ok_or_else(|| format!("`{text}` is no node policy; use {}", NodePolicy::NAMES.join(", ")))
}

fn card_policy(text: &str) -> Result<CardPolicy, String> {
    let (policy, unknown) = CardPolicy::parse(text);
    if unknown.is_empty() && !policy.keys().is_empty() {
        Ok(policy)
    } else {
        Err(format!(
            "`{text}` is no card policy; use binpack, spread, topology-aware, mutex, numa or a list of them"
        ))
    }
}

/// Go's notation: `5m`, `28s`, `1h30m`, `1.5s`, `0`.
pub(crate) fn go_duration(text: &str) -> Result<Duration, String> {
    let fail = || format!("`{text}` is no duration; write it like 90s, 5m or 1h30m");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let (mut rest, mut total) = (text, 0.0);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(fail)?;
        let number: f64 = rest.get(..digits).and_then(|n| n.parse().ok()).ok_or_else(fail)?;
        let tail = rest.get(digits..).unwrap_or_default();
        let (factor, length) = [
            ("ms", 0.001),
            ("us", 1e-6),
            ("ns", 1e-9),
            ("h", 3600.0),
            ("m", 60.0),
            ("s", 1.0),
        ]
        .into_iter()
        .find(|(unit, _)| tail.starts_with(unit))
        .map(|(unit, factor)| (factor, unit.len()))
        .ok_or_else(fail)?;
        total += number * factor;
        rest = tail.get(length..).unwrap_or_default();
    }
    if text.is_empty() {
        Err(fail())
    } else {
        Duration::try_from_secs_f64(total).map_err(|_| fail())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: SchedulerArgs,
    }

    fn parse(args: &[&str]) -> Result<SchedulerArgs, String> {
        let cli = Cli::try_parse_from(std::iter::once("scheduler").chain(args.iter().copied()));
        let args = cli.map_err(|error| error.to_string())?.args;
        args.check().map_err(|error| error.to_string())?;
        Ok(args)
    }

    /// What the compatible chart passes by default, in its own spelling.
    #[test]
    fn the_compatible_chart_can_start_it() {
        let args = parse(&[
            "--http_bind=0.0.0.0:443",
            "--cert_file=/tls/tls.crt",
            "--key_file=/tls/tls.key",
            "--scheduler-name=hami-scheduler",
            "--metrics-bind-address=:9395",
            "--node-scheduler-policy=binpack",
            "--gpu-scheduler-policy=topology-aware",
            "--force-overwrite-default-scheduler=true",
            "--device-config-file=/device-config.yaml",
            "--leader-elect=true",
            "--leader-elect-resource-name=hami-scheduler",
            "--leader-elect-resource-namespace=kube-system",
            "--node-lock-timeout=5m0s",
            "--enable-ascend=false",
            "--enable-iluvatar=false",
            "--profiling=false",
            "--dcu-name=hygon.com/dcunum",
            "--debug",
            "-v=2",
            "-v=4",
            "--logtostderr=true",
        ])
        .unwrap();
        assert_eq!(args.http_bind, "0.0.0.0:443");
        assert!(args.leader_elect && args.debug);
        assert_eq!(args.node_lock_timeout, Duration::from_secs(300));
        assert_eq!(args.log_filter(), "info,kube_client=off,tessera=debug");
    }

    #[test]
    fn defaults_are_the_compatible_ones_but_for_the_policy() {
        let args = parse(&[]).unwrap();
        assert_eq!(args.http_bind, "127.0.0.1:8080");
        assert_eq!(args.metrics_bind, ":9395");
        assert_eq!((args.node_policy, args.card_policy), (NodePolicy::Tessera, None));
        assert!(args.force_overwrite && !args.leader_elect);
        assert_eq!(args.node_lock_retry, Duration::from_secs(28));
        assert_eq!((args.filter_mode, args.write_at), (FilterMode::One, WriteAt::Bind));
    }

    #[test]
    fn a_flag_without_effect_is_refused_by_name() {
        for (flag, name) in [
            ("--profiling", "--profiling"),
            ("--default-mem=3000", "--default-mem"),
            ("--dcu-name=other.com/x", "--dcu-name"),
            ("--vmodule=score=5", "--vmodule"),
        ] {
            let error = parse(&[flag]).unwrap_err();
            assert!(error.contains(name) && error.contains("no effect"), "{error}");
        }
    }

    #[test]
    fn halves_and_contradictions_are_named() {
        for (args, part) in [
            (&["--cert_file=a"][..], "--key_file"),
            (&["--leader-elect-resource-name=a"], "--leader-elect-resource-namespace"),
            (&["--filter-mode=all", "--write-at=filter"], "--filter-mode=one"),
            (&["--webhook-configuration=x"], "--webhook-bind"),
            (&["--node-scheduler-policy=bimpack"], "bimpack"),
            (&["--gpu-scheduler-policy=spread,nearest"], "topology-aware"),
            (&["--node-label-selector=gpu"], "key=value"),
            (&["--node-lock-timeout=5"], "90s"),
        ] {
            let error = parse(args).unwrap_err();
            assert!(error.contains(part), "{args:?}: {error}");
        }
    }

    #[test]
    fn go_durations() {
        for (text, seconds) in [
            ("5m0s", 300.0),
            ("28s", 28.0),
            ("1h30m", 5400.0),
            ("0", 0.0),
            ("1.5s", 1.5),
            ("200ms", 0.2),
        ] {
            assert_eq!(go_duration(text).unwrap(), Duration::from_secs_f64(seconds), "{text}");
        }
        for text in ["", "5", "m", "5x", "-3s"] {
            assert!(go_duration(text).is_err(), "{text}");
        }
    }
}
