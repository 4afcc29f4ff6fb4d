//! Keeps a service there.
//!
//! The kubelet starts a container that died again only after a pause that grows to minutes. Meanwhile nothing is
//! scheduled, and while nobody serves the kubelet it refuses every pod that wants a card, for good. So scheduler and
//! agent run as the child of a process that starts them again at once when something kills them. The agent's also
//! keeps the kubelet's connection, whose calls it passes on and holds while there is no agent. A service that ends by
//! itself (wrong settings, asked to stop) is not started again: its exit status is the container's.

use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use tessera_agent::front::Front;
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

/// Runs this program again as the service called `name`, again and again while it is killed; gives back its exit
/// status. Behind a front, the service has the line to it as its standard input.
///
/// # Errors
/// The program cannot be started, or signals cannot be listened for.
pub(crate) async fn run(name: &str, front: Option<Front>) -> Result<ExitCode> {
    let ended = watch(name, front.as_ref()).await;
    if let Some(front) = front {
        front.stop().await;
    }
    ended
}

async fn watch(name: &str, front: Option<&Front>) -> Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    let mut killed: Vec<Instant> = Vec::new();
    loop {
        let line = match front {
            Some(front) => Some(front.line().await?),
            None => None,
        };
        let mut child = start(line)?;
        let ended = loop {
            tokio::select! {
                ended = child.wait() => break ended.with_context(|| format!("waiting for the {name}"))?,
                _ = terminate.recv() => stop(&child),
                _ = interrupt.recv() => stop(&child),
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

fn start(line: Option<OwnedFd>) -> Result<Child> {
    let program = std::env::current_exe().context("finding this program")?;
    let mut command = Command::new(&program);
    command.args(std::env::args_os().skip(1)).env(WORKER, "1");
    if let Some(line) = line {
        command.stdin(line);
    }
    command
        .spawn()
        .with_context(|| format!("starting {}", program.display()))
}

fn stop(child: &Child) {
    let pid = child
        .id()
        .and_then(|pid| i32::try_from(pid).ok())
        .and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // It may have ended in between; then there is nothing to stop.
        let _gone = kill_process(pid, Signal::TERM);
    }
}
