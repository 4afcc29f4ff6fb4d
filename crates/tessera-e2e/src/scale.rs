//! A real etcd, API server and kube-scheduler with the nodes of a large cluster, which nobody runs: how fast pods are
//! placed and bound, by kube-scheduler alone and with our extender, in one run on one machine.
//!
//! Each arm has a cluster of its own, made alike. Figures of different arms are compared as ratios, since most of the
//! time is the API server's and the machine's.

mod arm;
mod objects;
mod watch;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tessera_testcluster::Progress;

pub use arm::run as run_arm;

/// Who places the pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Arm {
    /// kube-scheduler alone: it counts the same resources and knows no cards.
    Plain,
    /// Our extender, asked with the names of nodes (`nodeCacheCapable: true`), as the chart has it.
    Names,
    /// Our extender, asked with whole Node objects (`nodeCacheCapable: false`).
    Objects,
}

impl Arm {
    /// What the arm is called in the record.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Plain => "no extender",
            Self::Names => "Tessera, node names",
            Self::Objects => "Tessera, whole nodes",
        }
    }
}

/// How much is measured.
#[derive(Debug, Clone, clap::Args)]
pub struct ScaleArgs {
    /// Nodes.
    #[arg(long, default_value_t = 200)]
    pub nodes: u32,
    /// Cards of each node, of ten slots each.
    #[arg(long, default_value_t = 8)]
    pub cards: u32,
    /// Pods of each wave, one wave after the other: `1000,5000`.
    #[arg(long, value_delimiter = ',', default_value = "500")]
    pub pods: Vec<u32>,
    /// The most pods of a wave for the arm with whole nodes, which takes long for each.
    #[arg(long, default_value_t = 200)]
    pub whole_pods: u32,
    /// Pods that ask for one and the same node at once.
    #[arg(long, default_value_t = 100)]
    pub burst: u32,
    /// How often the scheduler is killed with SIGKILL; a pod is created at that moment.
    #[arg(long, default_value_t = 5)]
    pub kills: u32,
    /// Who is measured, in this order.
    #[arg(long, value_delimiter = ',', default_values_t = [Arm::Plain, Arm::Names, Arm::Objects], value_enum)]
    pub arms: Vec<Arm>,
    /// How often all arms are measured, one after the other; the ratios are of the medians.
    #[arg(long, default_value_t = 1)]
    pub rounds: u32,
    /// Do not renew the leases of the nodes.
    #[arg(long)]
    pub no_leases: bool,
}

impl std::fmt::Display for Arm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain",
            Self::Names => "names",
            Self::Objects => "objects",
        })
    }
}

/// One wave of pods.
#[derive(Debug, Clone, Default)]
pub struct Wave {
    /// Pods created.
    pub pods: u32,
    /// From the first creation sent to the last pod seen bound.
    pub took: Duration,
    /// From the first creation sent to the last one answered.
    pub creating: Duration,
    /// From the creation sent to the binding seen, ascending.
    pub times: Vec<Duration>,
    /// Writes to the API server for the pods of the wave, by who and what, events apart.
    pub writes: BTreeMap<String, usize>,
    /// Writes of events.
    pub events: usize,
    /// Writes to Node objects by anybody.
    pub node_writes: usize,
    /// Warnings told about the pods, by reason.
    pub warnings: BTreeMap<String, usize>,
    /// CPU time of each process while it lasted, milliseconds.
    pub cpu_ms: BTreeMap<String, u64>,
}

impl Wave {
    /// Pods bound for each second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        f64::from(self.pods) / self.took.as_secs_f64().max(1e-9)
    }

    /// The time that a share of the pods stayed below, milliseconds.
    #[must_use]
    pub fn at(&self, share: f64) -> f64 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a small index"
        )]
        let index = (self.times.len().saturating_sub(1) as f64 * share) as usize;
        self.times.get(index).map_or(0.0, |time| time.as_secs_f64() * 1e3)
    }

    fn json(&self) -> Value {
        json!({
            "pods": self.pods, "seconds": self.took.as_secs_f64(), "creating_seconds": self.creating.as_secs_f64(),
            "pods_per_second": self.rate(), "p50_ms": self.at(0.5), "p99_ms": self.at(0.99), "max_ms": self.at(1.0),
            "writes": self.writes, "events": self.events, "node_writes": self.node_writes, "warnings": self.warnings,
            "cpu_ms": self.cpu_ms,
        })
    }
}

/// What one arm came to.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Who.
    pub arm: Arm,
    /// The waves, in order.
    pub waves: Vec<Wave>,
    /// The pods of one node.
    pub burst: Option<Wave>,
    /// From each kill of the scheduler to the next binding.
    pub restarts: Vec<Duration>,
    /// Memory of the extender at the end, all its processes together.
    pub rss_kib: Option<u64>,
}

impl Outcome {
    fn json(&self) -> Value {
        json!({
            "arm": self.arm.label(), "waves": self.waves.iter().map(Wave::json).collect::<Vec<_>>(),
            "burst": self.burst.as_ref().map(Wave::json),
            "restart_ms": self.restarts.iter().map(|time| time.as_secs_f64() * 1e3).collect::<Vec<_>>(),
            "rss_mib": self.rss_kib.map(|kib| kib / 1024),
        })
    }
}

/// Measures all arms, and prints each as it comes and the ratios at the end.
///
/// # Errors
/// The first arm that could not be measured. The clusters are gone in any case.
#[expect(clippy::print_stdout, reason = "its output is its purpose")]
pub async fn run(args: &ScaleArgs, progress: &Progress) -> Result<()> {
    let own = std::env::current_exe().context("finding this program")?;
    let tessera = own.with_file_name("tessera");
    ensure!(
        tessera.is_file(),
        "{} is missing; `cargo xtask scale` builds it",
        tessera.display()
    );
    let mut outcomes: Vec<Outcome> = Vec::new();
    for _ in 0..args.rounds.max(1) {
        for arm in &args.arms {
            let outcome = run_arm(*arm, args, &tessera, progress).await?;
            println!("{}", outcome.json());
            outcomes.push(outcome);
        }
    }
    println!("{}", table(args, &outcomes));
    Ok(())
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// The record: a Markdown table, a line for each arm and wave.
fn table(args: &ScaleArgs, outcomes: &[Outcome]) -> String {
    let mut lines = vec![
        "| arm | pods | pods/s | ratio | p50 ms | p99 ms | writes a pod | to nodes | MiB |".to_owned(),
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |".to_owned(),
    ];
    let of = |arm: Arm| outcomes.iter().filter(move |outcome| outcome.arm == arm);
    let rate = |arm: Arm, at: usize| median(of(arm).filter_map(|o| Some(o.waves.get(at)?.rate())).collect());
    for arm in &args.arms {
        let mib = of(*arm).filter_map(|o| o.rss_kib).max().map(|kib| kib / 1024);
        for at in 0..args.pods.len() {
            let waves: Vec<&Wave> = of(*arm).filter_map(|o| o.waves.get(at)).collect();
            let Some(first) = waves.first() else { continue };
            let middle = |of: fn(&Wave) -> f64| median(waves.iter().map(|wave| of(wave)).collect()).unwrap_or(0.0);
            // Of waves of unlike size no ratio is told.
            let alike = of(Arm::Plain)
                .filter_map(|o| o.waves.get(at))
                .all(|wave| wave.pods == first.pods);
            let ratio = rate(*arm, at).zip(rate(Arm::Plain, at)).filter(|_| alike);
            lines.push(format!(
                "| {} | {} | {:.0} | {} | {:.0} | {:.0} | {:.2} | {} | {} |",
                arm.label(),
                first.pods,
                middle(Wave::rate),
                ratio.map_or("-".to_owned(), |(ours, plain)| format!("{:.2}", ours / plain)),
                middle(|wave| wave.at(0.5)),
                middle(|wave| wave.at(0.99)),
                middle(writes_a_pod),
                waves.iter().map(|wave| wave.node_writes).max().unwrap_or(0),
                mib.map_or("-".to_owned(), |mib| mib.to_string()),
            ));
        }
    }
    for outcome in outcomes {
        if let Some(burst) = &outcome.burst {
            let warnings: usize = burst.warnings.values().sum();
            lines.push(format!(
                "{}: {} pods to one node in {:.2} s, {warnings} warnings",
                outcome.arm.label(),
                burst.pods,
                burst.took.as_secs_f64()
            ));
        }
        if !outcome.restarts.is_empty() {
            let times: Vec<String> = outcome
                .restarts
                .iter()
                .map(|time| format!("{:.2}", time.as_secs_f64()))
                .collect();
            lines.push(format!(
                "{}: kill -9 to the next bind: {} s",
                outcome.arm.label(),
                times.join(", ")
            ));
        }
    }
    lines.join("\n")
}

/// Writes a pod that its scheduling costs: neither its creation nor its kubelet's.
fn writes_a_pod(wave: &Wave) -> f64 {
    let all: usize = wave.writes.values().sum();
    #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
    let all = all as f64;
    all / f64::from(wave.pods.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(pods: u32, seconds: u64) -> Wave {
        Wave {
            pods,
            took: Duration::from_secs(seconds),
            times: (1..=100).map(Duration::from_millis).collect(),
            writes: BTreeMap::from([("tessera patch pods".to_owned(), pods as usize)]),
            ..Wave::default()
        }
    }

    #[test]
    fn ratios_are_of_medians_and_only_of_waves_of_one_size() {
        let outcome = |arm, wave| Outcome {
            arm,
            waves: vec![wave],
            burst: None,
            restarts: Vec::new(),
            rss_kib: None,
        };
        let args = <clap::Command as Into<clap::Command>>::into(<ScaleArgs as clap::Args>::augment_args(
            clap::Command::new("scale"),
        ))
        .get_matches_from(["scale"]);
        let args = <ScaleArgs as clap::FromArgMatches>::from_arg_matches(&args).unwrap();
        let text = table(
            &args,
            &[
                outcome(Arm::Plain, wave(100, 1)),
                outcome(Arm::Plain, wave(100, 2)),
                outcome(Arm::Plain, wave(100, 4)),
                outcome(Arm::Names, wave(100, 1)),
                outcome(Arm::Objects, wave(10, 1)),
            ],
        );
        assert!(
            text.contains("| no extender | 100 | 50 | 1.00 | 50 | 99 | 1.00 |"),
            "{text}"
        );
        assert!(text.contains("| Tessera, node names | 100 | 100 | 2.00 |"), "{text}");
        assert!(text.contains("| Tessera, whole nodes | 10 | 10 | - |"), "{text}");
    }
}
