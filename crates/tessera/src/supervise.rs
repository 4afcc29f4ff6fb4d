//! Keeps a service there.
//!
//! The kubelet starts a container that died again only after a pause that grows to minutes. Meanwhile nothing is
//! scheduled, and while nobody serves the kubelet it refuses every pod that wants a card, for good. So scheduler and
//! agent run as the child of a process that starts them again at once when something kills them, and that keeps their
//! door open: the scheduler's keeps its listening sockets, so that kube-scheduler and the API server wait for the next
//! one instead of being refused; the agent's keeps the kubelet's connection, whose calls it passes on and holds. A service that ends by
//! itself (wrong settings, asked to stop) is not started again: its exit status is the container's.

use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use tessera_agent::front::Front;
use tessera_extender::Kept;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

/// Tells the child that it is the service itself.
const WORKER: &str = "TESSERA_WORKER";
/// Killed this often ...
const OFTEN: usize = 10;
/// ... within this time, something is wrong that a restart does not cure, and the kubelet's pauses are right.
const LATELY: Duration = Duration::from_secs(60);

/// Whether this process is the service itself. It then ends with its parent, so that there are never two.
pub(crate) fn is_worker() -> bool {
    let worker = std::env::var_os(WORKER).is_some();
    // Without it an orphan could go on beside the next one, which takes over its sockets.
    worker && set_parent_process_death_signal(Some(Signal::KILL)).is_ok()
}

/// What is kept while a service is started again.
#[derive(Debug)]
pub(crate) enum Door {
    /// What it listens on.
    Sockets(Kept),
    /// The kubelet's connection.
    Kubelet(Front),
}

impl Door {
    /// A standard input for the next child.
    async fn line(&self) -> Result<OwnedFd> {
        match self {
            Self::Sockets(kept) => kept.line().context("making a line to the scheduler"),
            Self::Kubelet(front) => front.line().await,
        }
    }

    /// The service was asked to end: nobody is to wait for a next one.
    fn close(&mut self) {
        if let Self::Sockets(kept) = self {
            *kept = Kept::default();
        }
    }
}

/// Runs this program again as the service called `name`, again and again while it is killed; gives back its exit
/// status. The service has the line to its door as its standard input.
///
/// # Errors
/// The program cannot be started, or signals cannot be listened for.
pub(crate) async fn run(name: &str, mut door: Door) -> Result<ExitCode> {
    let ended = watch(name, &mut door).await;
    if let Door::Kubelet(front) = door {
        front.stop().await;
    }
    ended
}

async fn watch(name: &str, door: &mut Door) -> Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    let mut killed: Vec<Instant> = Vec::new();
    loop {
        let mut child = start(door.line().await?)?;
        let ended = loop {
            tokio::select! {
                ended = child.wait() => break ended.with_context(|| format!("waiting for the {name}"))?,
                _ = terminate.recv() => stop(&child, door),
                _ = interrupt.recv() => stop(&child, door),
            }
        };
        if let Some(code) = ended.code() {
            return Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)));
        }
        let now = Instant::now();
        killed.retain(|then| now.duration_since(*then) < LATELY);
        killed.push(now);
        if killed.len() > OFTEN {
            anyhow::bail!(
                "the {name} was killed {OFTEN} times within {} s ({ended}); `dmesg` tells whether memory was short",
                LATELY.as_secs()
            );
        }
        crate::tell(
            &mut std::io::stderr(),
            &format!("The {name} was killed ({ended}); starting it again."),
        );
    }
}

fn start(line: OwnedFd) -> Result<Child> {
    let program = std::env::current_exe().context("finding this program")?;
    let mut command = Command::new(&program);
    command
        .args(std::env::args_os().skip(1))
        .env(WORKER, "1")
        .stdin(line)
        .spawn()
        .with_context(|| format!("starting {}", program.display()))
}

fn stop(child: &Child, door: &mut Door) {
    door.close();
    let pid = child
        .id()
        .and_then(|pid| i32::try_from(pid).ok())
        .and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // It may have ended in between; then there is nothing to stop.
        let _gone = kill_process(pid, Signal::TERM);
    }
}
