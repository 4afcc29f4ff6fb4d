//! The node agent: publishes the node's cards, answers the kubelet's device
//! plugin calls, and seals for each container the grant that the enforcement
//! library reads.
//!
//! Everything it knows comes back after a crash: grants and records from disk,
//! holders from the kubelet's checkpoint, pods and the node from the API
//! server, cards from the driver. There is no shutdown logic that matters.
//!
//! [`run`] is the whole; [`serve`] is the same with the API server as an
//! argument. [`front::Front`] is what the kubelet sees when the whole runs as
//! its child, by [`run_behind`].

pub mod answer;
pub mod args;
pub mod book;
pub mod cards;
pub mod cdi;
pub mod chores;
pub mod cluster;
pub mod desk;
pub mod driver_files;
pub mod front;
pub mod kube;
pub mod library;
pub mod metrics;
pub mod records;
pub mod register;
pub mod resizes;
pub mod room;
pub mod rooms;
mod serve;
pub mod settings;
pub mod slot;
pub mod turns;
pub mod turnstile;
pub mod wall;
pub mod web;
pub mod witness;

pub use args::{AgentArgs, LogFormat};
pub use serve::{ApiHealth, Door, serve, serve_at};

use std::time::Duration;

use anyhow::Context;

use tessera_kube::watch::Freshness;
use tessera_kube::{ClientSettings, events};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::info;
use tracing_subscriber::EnvFilter;

/// Changes from the API server that may wait for us.
const CHANGES: usize = 256;

/// How long running calls get after a signal. Nothing is lost after it.
const DRAIN: Duration = Duration::from_secs(5);

/// Sends log lines to stderr as the arguments say. Called once by the program.
pub fn init_logs(args: &AgentArgs) {
    let level = if args.verbosity >= 6 {
        "info,kube_client=off,tessera=trace"
    } else if args.verbosity >= 4 {
        "info,kube_client=off,tessera=debug"
    } else {
        // The client library's own lines are left out: each of its errors is told by us, once.
        "info,kube_client=off"
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // A second call keeps the first subscriber.
    let _already = match args.log_format {
        LogFormat::Text => logs.with_ansi(false).try_init(),
        LogFormat::Json => logs.json().try_init(),
    };
}

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// Settings that are wrong, no API server configured, an address in use. What
/// may get better by itself (API server away, driver missing, kubelet away,
/// disk full) is waited for and told.
pub async fn run(args: AgentArgs) -> anyhow::Result<()> {
    run_at(Door::Kubelet, args).await
}

/// The same as the child of a process that has a [`front::Front`].
///
/// # Errors
/// Those of [`run`], or standard input is not the line that the front makes.
pub async fn run_behind(args: AgentArgs) -> anyhow::Result<()> {
    let line = front::line().context("standard input is not the line to the process in front")?;
    run_at(Door::Front(line), args).await
}

async fn run_at(door: Door, args: AgentArgs) -> anyhow::Result<()> {
    let settings = args.settings()?;
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let client = tessera_kube::connect(&ClientSettings::default()).await?;
    let (recorder, writer) = events::record(client.clone(), "tessera-agent".to_owned(), stop.clone());
    let cluster = kube::KubeCluster::new(client, settings.node.clone(), recorder);
    let (sender, changes) = mpsc::channel(CHANGES);
    let freshness = Freshness::default();
    let follower = {
        let (cluster, freshness, stop) = (cluster.clone(), freshness.clone(), stop.clone());
        async move { cluster.follow(sender, freshness, stop).await }
    };
    let events = tokio::spawn(writer);
    let watches = tokio::spawn(follower);
    let asked = {
        let stop = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            info!("Stopping.");
            stop.cancel();
        })
    };
    let running = serve_at(
        door,
        settings,
        cluster,
        changes,
        std::sync::Arc::new(freshness),
        stop.clone(),
    );
    tokio::pin!(running);
    let ended = tokio::select! {
        ended = &mut running => ended,
        () = stop.cancelled() => tokio::time::timeout(DRAIN, running).await.unwrap_or(Ok(())),
    };
    asked.abort();
    stop.cancel();
    watches.abort();
    events.abort();
    ended
}
