//! `tessera-player`: plays the device plugins of the makers that a cards file names.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use tessera_players::api::Server;
use tessera_players::player::play;
use tessera_players::{Machine, Mischief, Mix, Part, Player, Setting};
use tokio_util::sync::CancellationToken;

/// Plays other makers' device plugins on a node, with cards that do not exist.
#[derive(Debug, Clone, Parser)]
#[command(version)]
struct Args {
    /// The cards of the node: the file that `./up --cards` takes.
    #[arg(long, value_name = "FILE")]
    cards: PathBuf,
    /// Play only this maker. Without it, one process is started for each maker in the file, and again when it ends.
    #[arg(long, value_name = "NAME")]
    vendor: Option<String>,
    /// The node's name.
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    node_name: String,
    /// The kubelet's device plugin folder.
    #[arg(long, default_value = "/var/lib/kubelet/device-plugins", value_name = "FOLDER")]
    plugin_dir: PathBuf,
    /// Seconds between two heartbeats.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600), value_name = "SECONDS")]
    heartbeat: u64,
    /// What a maker's player does wrong: `NAME=late:SECONDS`, `NAME=twice`, `NAME=dead:SECONDS`, `NAME=old` or
    /// `NAME=wrong`; may be given several times.
    #[arg(
        long,
        value_name = "NAME=WHAT",
        env = "TESSERA_PLAYER_MISCHIEF",
        value_delimiter = ' '
    )]
    mischief: Vec<String>,
}

/// The mischief of one player.
fn mischief(all: &[String], vendor: &str) -> Result<Mischief> {
    let mut wanted = Mischief::default();
    for text in all.iter().filter(|text| !text.is_empty()) {
        let (name, what) = text
            .split_once('=')
            .with_context(|| format!("--mischief `{text}`: write NAME=WHAT, for example hygon=late:5"))?;
        Part::find(name).with_context(|| format!("--mischief `{text}`"))?;
        let (what, number) = what.split_once(':').unwrap_or((what, ""));
        let seconds = || {
            number
                .parse()
                .map(Duration::from_secs)
                .with_context(|| format!("--mischief `{text}`: `{number}` is no number of seconds"))
        };
        let mut one = wanted.clone();
        match what {
            "late" => one.late = Some(seconds()?),
            "dead" => one.dead_after = Some(seconds()?),
            "twice" => one.twice = true,
            "old" => one.old = true,
            "wrong" => one.wrong = true,
            _ => bail!("--mischief `{text}`: known are late:SECONDS, twice, dead:SECONDS, old and wrong"),
        }
        if name == vendor {
            wanted = one;
        }
    }
    Ok(wanted)
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")),
        )
        .with_writer(std::io::stderr)
        .init();
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the async runtime")
        .and_then(|runtime| runtime.block_on(run(Args::parse())));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "Ends.");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<()> {
    let text = std::fs::read_to_string(&args.cards)
        .with_context(|| format!("reading the cards from {}", args.cards.display()))?;
    let mix = Mix::parse(&text).with_context(|| args.cards.display().to_string())?;
    let cancel = CancellationToken::new();
    stop_on_signal(cancel.clone())?;
    match &args.vendor {
        Some(vendor) => one(&args, &mix, vendor, cancel).await,
        None => all(&args, &mix, cancel).await,
    }
}

fn stop_on_signal(cancel: CancellationToken) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("waiting for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("waiting for signals")?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        cancel.cancel();
    });
    Ok(())
}

async fn one(args: &Args, mix: &Mix, vendor: &str, cancel: CancellationToken) -> Result<()> {
    let entries = mix
        .players
        .get(vendor)
        .with_context(|| format!("{} names no cards of `{vendor}`", args.cards.display()))?;
    let machine = Machine::new(Part::find(vendor)?, &args.node_name, entries)?;
    let setting = Setting {
        plugin_dir: args.plugin_dir.clone(),
        beat: Duration::from_secs(args.heartbeat),
        mischief: mischief(&args.mischief, vendor)?,
    };
    let client = kube::Client::try_default().await.context("finding the API server")?;
    tracing::info!(%vendor, cards = machine.cards.len(), node = %args.node_name, mischief = ?setting.mischief, "Plays.");
    let player = Player::new(machine, Server::new(client, &args.node_name), setting.mischief.clone());
    Ok(play(Arc::new(player), &setting, cancel).await?)
}

/// A child for each maker, so that one can die without the others.
async fn all(args: &Args, mix: &Mix, cancel: CancellationToken) -> Result<()> {
    let program = std::env::current_exe().context("finding this program")?;
    for vendor in mix.players.keys() {
        // Told at once, not by a child that ends again and again.
        mischief(&args.mischief, vendor)?;
    }
    let mut children = tokio::task::JoinSet::new();
    let spawn = |vendor: &str| {
        tokio::process::Command::new(&program)
            .arg("--cards")
            .arg(&args.cards)
            .args(["--vendor", vendor, "--node-name", &args.node_name, "--plugin-dir"])
            .arg(&args.plugin_dir)
            .args(["--heartbeat", &args.heartbeat.to_string()])
            .args(args.mischief.iter().flat_map(|text| ["--mischief", text]))
            .env_remove("TESSERA_PLAYER_MISCHIEF")
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting the player of {vendor}"))
    };
    let mut pauses: BTreeMap<String, Duration> = BTreeMap::new();
    let watch = |mut child: tokio::process::Child, vendor: String, pause: Duration, cancel: CancellationToken| async move {
        let begun = tokio::time::Instant::now();
        tokio::select! {
            status = child.wait() => tracing::warn!(%vendor, ?status, "A player ended, it is started again."),
            () = cancel.cancelled() => {
                if let Some(pid) = child.id() {
                    let _gone = tokio::process::Command::new("kill").arg(pid.to_string()).status().await;
                }
                let _status = child.wait().await;
                return (vendor, Duration::ZERO);
            }
        }
        // At once after a kill; slower and slower when it cannot start at all.
        let pause = if begun.elapsed() > Duration::from_secs(2) {
            Duration::ZERO
        } else {
            pause
        };
        tokio::time::sleep(pause).await;
        (
            vendor,
            (pause * 2).clamp(Duration::from_millis(100), Duration::from_secs(10)),
        )
    };
    for vendor in mix.players.keys() {
        children.spawn(watch(spawn(vendor)?, vendor.clone(), Duration::ZERO, cancel.clone()));
    }
    if children.is_empty() {
        tracing::info!("The file names no cards of other makers; nothing to play.");
        cancel.cancelled().await;
    }
    while let Some(ended) = children.join_next().await {
        let Ok((vendor, pause)) = ended else { continue };
        if cancel.is_cancelled() {
            continue;
        }
        pauses.insert(vendor.clone(), pause);
        children.spawn(watch(spawn(&vendor)?, vendor, pause, cancel.clone()));
    }
    Ok(())
}
