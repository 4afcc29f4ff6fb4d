//! Plays other makers' device plugins on a node.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser;
use tessera_players::play;
use tessera_players::stage::{self, Place};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[derive(Debug, Parser)]
#[command(
    name = "tessera-player",
    version,
    about = "Plays other makers' device plugins: hardware that does not exist"
)]
struct Args {
    /// File with a list such as `[{vendor: ascend, model: Ascend910B3, count: 4}]`.
    #[arg(long, value_name = "FILE")]
    players: PathBuf,
    /// The node's name.
    #[arg(long, env = "NODE_NAME")]
    node: String,
    /// The kubelet's device plugin folder.
    #[arg(long, default_value = "/var/lib/kubelet/device-plugins")]
    plugin_dir: PathBuf,
}

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the async runtime")
        .and_then(|runtime| runtime.block_on(run(Args::parse())));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<()> {
    let list = std::fs::read_to_string(&args.players).with_context(|| format!("reading {}", args.players.display()))?;
    let parts = play::parts(&list).with_context(|| format!("{}", args.players.display()))?;
    let client = kube::Client::try_default()
        .await
        .context("connecting to the API server")?;
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut players = tokio::task::JoinSet::new();
    for part in parts {
        tracing::info!(
            vendor = part.vendor,
            model = part.model_name,
            cards = part.count,
            "Playing."
        );
        let place = Place {
            node: args.node.clone(),
            plugin_dir: args.plugin_dir.clone(),
            client: client.clone(),
        };
        players.spawn(stage::run(part, place, stop.clone()));
    }
    loop {
        tokio::select! {
            _ = terminate.recv() => stop.cancel(),
            ended = players.join_next() => match ended {
                Some(ended) => ended.context("a player panicked")??,
                // A dead player stays dead; the container does not start it again.
                None if stop.is_cancelled() => return Ok(()),
                None => {
                    terminate.recv().await;
                    return Ok(());
                }
            },
        }
    }
}
