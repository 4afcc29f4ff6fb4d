//! The one binary. Composition only: every subcommand is a library of its own.

mod supervise;

use std::future::Future;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tessera_agent::front::Front;

use crate::supervise::Door;

#[derive(Debug, Parser)]
#[command(
    name = "tessera",
    version,
    about = "Shares AI cards between pods, each held to what it asked for"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
#[expect(clippy::large_enum_variant, reason = "made once, at the start")]
enum Command {
    /// Serve kube-scheduler (filter, prioritize, bind, preempt) and the admission webhooks.
    Scheduler(tessera_extender::SchedulerArgs),
    /// Serve the kubelet of this node: publish its cards, seal a grant for each container.
    Agent(tessera_agent::AgentArgs),
    /// Run one command on this machine with a share of its cards, without Kubernetes.
    Run(tessera_terminal::run::RunArgs),
    /// Replay pods on nodes, of a trace or a dump, and compare policies.
    Simulate(tessera_simulator::SimulateArgs),
    /// Write what decisions about cards depend on in this cluster: nodes, cards, pods. No environment, no arguments.
    Dump(tessera_simulator::DumpArgs),
    /// Propose moves that would free cards and nodes. Changes nothing.
    Plan(tessera_simulator::PlanArgs),
    /// Change the share of a `tessera run` that is under way.
    Resize(tessera_terminal::run::ResizeArgs),
    /// Print the version.
    Version,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Scheduler(args) if supervise::is_worker() => {
            tessera_extender::init_logs(&args);
            block_on(2, tessera_extender::run_behind(args))
        }
        Command::Agent(args) if supervise::is_worker() => {
            tessera_agent::init_logs(&args);
            block_on(1, tessera_agent::run_behind(args))
        }
        Command::Scheduler(args) => match supervised("scheduler", async || {
            Ok(Door::Sockets(tessera_extender::keep(&args).await))
        }) {
            Ok(code) => return code,
            Err(error) => Err(error),
        },
        Command::Agent(args) => match supervised("agent", async || {
            tessera_agent::init_logs(&args);
            Ok(Door::Kubelet(Front::start(args.settings()?)))
        }) {
            Ok(code) => return code,
            Err(error) => Err(error),
        },
        Command::Run(args) => match tessera_terminal::run::run(&args) {
            Ok(code) => return code,
            Err(error) => Err(error),
        },
        Command::Simulate(args) => tessera_simulator::simulate(&args),
        Command::Dump(args) => block_on(1, tessera_simulator::dump(args)),
        Command::Plan(args) => block_on(1, tessera_simulator::plan(args)),
        Command::Resize(args) => match tessera_terminal::run::resize(&args) {
            Ok(text) => {
                tell(&mut std::io::stdout(), &text);
                return ExitCode::SUCCESS;
            }
            Err(error) => Err(error),
        },
        Command::Version => {
            tell(
                &mut std::io::stdout(),
                &format!("tessera {}", env!("CARGO_PKG_VERSION")),
            );
            return ExitCode::SUCCESS;
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut last = error.to_string();
            let mut text = format!("error: {last}");
            for cause in error.chain().skip(1).map(ToString::to_string) {
                // Some texts end with their cause already.
                if !last.ends_with(&cause) {
                    text.push_str("\n  because: ");
                    text.push_str(&cause);
                    last = cause;
                }
            }
            tell(&mut std::io::stderr(), &text);
            ExitCode::FAILURE
        }
    }
}

/// Runs a service under a process that starts it again when it is killed, and that keeps its door open meanwhile.
fn supervised(name: &str, door: impl AsyncFnOnce() -> anyhow::Result<Door>) -> anyhow::Result<ExitCode> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(async { supervise::run(name, door().await?).await })
}

/// Runs a service to its end on `workers` threads.
fn block_on(workers: usize, service: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build()?
        .block_on(service)
}

/// One line to a stream whose reader may be gone.
fn tell(stream: &mut dyn std::io::Write, line: &str) {
    drop(writeln!(stream, "{line}"));
}
