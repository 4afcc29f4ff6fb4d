//! `./up`: a one-node Kubernetes with Tessera and pods that share a card, on a fresh machine.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tessera_e2e::product::{self, Artefacts, Profile};
use tessera_e2e::stage::{ALLOCATED, Plan, Stage, annotation, merge};
use tessera_testcluster::{Binaries, Cluster, Progress};

use crate::tool;

/// Where a cluster of `./up` lives. Everything but the cache of built programs is below it.
const STATE: &str = "/var/lib/tessera-up";
const SAMPLE: &str = "examples/share-one-card.yaml";

#[derive(Debug, clap::Args)]
pub(crate) struct UpArgs {
    /// Stop everything and unmount everything; only the cache of built programs stays.
    #[arg(long)]
    down: bool,
    /// Install into the cluster of this kubeconfig instead of starting one.
    #[arg(long, value_name = "FILE", conflicts_with = "down")]
    kubeconfig: Option<PathBuf>,
    /// The image of Tessera that the nodes of that cluster pull.
    #[arg(long, value_name = "IMAGE", requires = "kubeconfig")]
    image: Option<String>,
    /// Simulate the cards described in this file, even where a real driver is. Cards may be of any maker, see
    /// docs/simulated-hardware.md.
    #[arg(long, value_name = "FILE", conflicts_with = "down")]
    cards: Option<PathBuf>,
    /// Leave out the sample pods.
    #[arg(long, conflicts_with = "down")]
    no_sample: bool,
    /// Values file for the chart, on top of what `./up` sets.
    #[arg(long, value_name = "FILE", conflicts_with = "down")]
    values: Option<PathBuf>,
}

pub(crate) fn run(args: &UpArgs) -> Result<ExitCode> {
    let runtime = tokio::runtime::Runtime::new().context("starting the async runtime")?;
    runtime.block_on(async {
        if args.down {
            down().await
        } else if let Some(kubeconfig) = &args.kubeconfig {
            existing(kubeconfig, args)
        } else {
            up(args).await
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

fn progress() -> Progress {
    let start = Instant::now();
    Progress::new(move |event| tool::say(&format!("[{:>4.0} s] {event}", start.elapsed().as_secs_f32())))
}

fn ensure_root() -> Result<()> {
    let status = std::fs::read_to_string("/proc/self/status").context("reading /proc/self/status")?;
    let euid = status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))
        .and_then(|ids| ids.split_whitespace().nth(1).and_then(|id| id.parse::<u32>().ok()));
    ensure!(
        euid == Some(0),
        "a one-node cluster mounts and makes cgroups, which takes root: run `sudo ./up`, or install into a cluster you have with `./up --kubeconfig FILE`"
    );
    Ok(())
}

async fn down() -> Result<()> {
    ensure_root()?;
    Cluster::destroy(STATE).await.context("stopping the cluster")?;
    let left = Cluster::leftovers(Path::new(STATE));
    ensure!(left.is_empty(), "still there:\n{left}");
    tool::say("Everything is stopped and unmounted. What was built stays in the cache for the next ./up.");
    Ok(())
}

/// The description of the cards to simulate: the user's, or one card where no driver is.
fn simulated_cards(args: &UpArgs) -> Result<Option<String>> {
    let file = match &args.cards {
        Some(file) => file.clone(),
        None if Path::new("/dev/nvidiactl").exists() => return Ok(None),
        None => tool::root().join("examples/one-simulated-card.yaml"),
    };
    let text = std::fs::read_to_string(&file)
        .with_context(|| format!("reading the cards to simulate from {}", file.display()))?;
    // Before anything is built or started.
    product::values(Some(&text)).with_context(|| file.display().to_string())?;
    Ok(Some(text))
}

/// The values file that the user named.
fn own_values(args: &UpArgs) -> Result<Value> {
    let Some(file) = &args.values else {
        return Ok(Value::Null);
    };
    let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    serde_saphyr::from_str(&text).with_context(|| format!("{} is not YAML", file.display()))
}

fn existing(kubeconfig: &Path, args: &UpArgs) -> Result<()> {
    ensure!(
        kubeconfig.is_file(),
        "there is no kubeconfig at {}",
        kubeconfig.display()
    );
    let image = args.image.as_deref().context(
        "the nodes of an existing cluster pull Tessera's image: push one they can reach, then add `--image REPOSITORY:TAG` (docs/install.md shows how to build it)",
    )?;
    let helm = Binaries::ensure(&progress()).context("getting helm")?;
    let mut values = json!({
        "scheduler": { "extender": { "image": product::image_value(image) } },
        "devicePlugin": { "image": product::image_value(image) },
    });
    if args.cards.is_some() {
        let cards = simulated_cards(args)?;
        let simulated = product::values(cards.as_deref())?;
        let of = |name: &str| simulated.get(name).cloned().unwrap_or(Value::Null);
        merge(
            &mut values,
            &json!({ "simulate": of("simulate"), "devices": of("devices") }),
        );
        merge(
            &mut values["devicePlugin"],
            &json!({ "enabled": simulated["devicePlugin"]["enabled"] }),
        );
    }
    merge(&mut values, &own_values(args)?);
    let file = tool::root().join("target/up-values.json");
    std::fs::write(&file, serde_json::to_vec_pretty(&values)?)
        .with_context(|| format!("writing {}", file.display()))?;
    product::install_chart(helm.helm(), kubeconfig, &file)?;
    tool::say("Tessera is installed. A first pod: examples/share-one-card.yaml (give it an image of yours).");
    Ok(())
}

async fn up(args: &UpArgs) -> Result<()> {
    ensure_root()?;
    let start = Instant::now();
    let progress = progress();
    let plan = Plan {
        cards: simulated_cards(args)?,
        state: Some(PathBuf::from(STATE)),
        detached: true,
        values: own_values(args)?,
        max_pods: 110,
    };
    let running = Cluster::attach(STATE).await.context("looking for a running cluster")?;
    progress.step("Building Tessera, about 6 min the first time");
    let artefacts = tokio::task::spawn_blocking(|| Artefacts::build(Profile::Release))
        .await
        .context("building Tessera")??;
    let stage = match running {
        Some(cluster) => {
            progress.step("The cluster is running already; bringing Tessera up to date");
            let client = cluster.kube().await.context("connecting to the cluster")?;
            let stage = Stage { cluster, client };
            stage.install(&plan, &artefacts, &progress).await?;
            stage
        }
        None => {
            Cluster::destroy(STATE)
                .await
                .context("clearing what an earlier run left")?;
            Stage::start(&plan, &artefacts, &progress).await?
        }
    };
    if let Some(cards) = &plan.cards {
        players(&stage, cards).await?;
    }
    if !args.no_sample && product::agent_serves(plan.cards.as_deref())? {
        progress.step(format!("Starting the sample {SAMPLE}"));
        sample(&stage).await?;
    }
    tool::say(&format!(
        "\nUp in {:.0} s. Next:\n  export KUBECONFIG={}\n  {} get pods -A\n  ./up --down   stops and removes it all",
        start.elapsed().as_secs_f32(),
        stage.cluster.kubeconfig().display(),
        stage.cluster.binaries().kubectl().display(),
    ));
    Ok(())
}

/// Says what the players of other makers show, and how much of it is held.
async fn players(stage: &Stage, cards: &str) -> Result<()> {
    let rows = product::played(cards, "any")?;
    if rows.is_empty() {
        return Ok(());
    }
    let held = stage.held().await?;
    tool::say("\nPlayed by stand-ins for other makers' device plugins:");
    for (vendor, resource, devices) in rows {
        let held = held.get(&resource).copied().unwrap_or(0);
        tool::say(&format!(
            "  {vendor:<14} {resource:<36} {devices:>5} devices, {held} asked for by pods"
        ));
    }
    tool::say("  A pod asks for them as on real hardware: docs/vendors.md has the names of every maker.");
    Ok(())
}

async fn sample(stage: &Stage) -> Result<()> {
    stage.kubectl(&["apply", "-f", SAMPLE])?;
    let mut rows = vec![["POD", "CARD", "MEMORY", "CORES", "NVML SEES", "CUDA GAVE", "THEN"].map(str::to_owned)];
    for name in ["small", "large"] {
        let pod = stage.running("default", name).await?;
        let seen = stage.printed("default", name).await?;
        let held = annotation(&pod, ALLOCATED).unwrap_or_default();
        let fields: Vec<&str> = held.trim_matches(&[';', ':'][..]).split(',').collect();
        let at = |n: usize| fields.get(n).copied().unwrap_or("?");
        rows.push([
            name.to_owned(),
            at(0).to_owned(),
            format!("{} MiB", at(2)),
            format!("{} %", at(3)),
            format!("{} MiB", seen["nvml_total_mib"]),
            format!("{} MiB", seen["allocated_mib"]),
            seen["then"].as_str().unwrap_or("?").to_owned(),
        ]);
    }
    tool::say("\nWho holds what:");
    print_table(&rows);
    Ok(())
}

fn print_table(rows: &[[String; 7]]) {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..7).map(width).collect();
    for row in rows {
        let line: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        tool::say(line.join("  ").trim_end());
    }
}
