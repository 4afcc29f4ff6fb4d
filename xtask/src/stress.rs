//! `cargo xtask stress`: tests that find more the longer they run, for as long as one likes.

use std::process::ExitCode;

use anyhow::Result;

use crate::tool;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum StressArgs {
    /// Processes of one container that allocate and free at random: never more than the limit, nothing refused that
    /// fits, all views equal.
    Memory(MemoryArgs),
    /// Every exported call of the library with odd arguments: a code comes back, no fault, and the share stays.
    Arguments(ArgumentsArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct ArgumentsArgs {
    /// How many calls each function gets with all arguments odd, on top of those with one.
    #[arg(long, default_value_t = 500)]
    calls: u64,
    /// What decides the arguments.
    #[arg(long, default_value_t = 0x5eed)]
    seed: u64,
}

#[derive(Debug, clap::Args)]
pub(crate) struct MemoryArgs {
    /// How long.
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// How many processes.
    #[arg(long, default_value_t = 8)]
    processes: u64,
    /// What decides the requests of each process; printed by every run, to run it again.
    #[arg(long, default_value_t = 0x5eed)]
    seed: u64,
}

pub(crate) fn run(args: &StressArgs) -> Result<ExitCode> {
    match args {
        StressArgs::Memory(args) => tool::run(
            "stress of the memory limit",
            test("shim_stress")
                .env("TESSERA_STRESS_SECONDS", args.seconds.to_string())
                .env("TESSERA_STRESS_PROCESSES", args.processes.to_string())
                .env("TESSERA_STRESS_SEED", args.seed.to_string()),
        )?,
        StressArgs::Arguments(args) => tool::run(
            "odd arguments in a limited container",
            // The other test of that file waits in real time at gates.
            test("shim_odd")
                .arg("limited")
                .env("TESSERA_ODD_MORE", args.calls.to_string())
                .env("TESSERA_ODD_SEED", args.seed.to_string()),
        )?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A test of real processes, with what it prints.
fn test(name: &str) -> std::process::Command {
    let mut command = tool::cargo();
    command.args([
        "test",
        "--quiet",
        "-p",
        "tessera-e2e",
        "--test",
        name,
        "--",
        "--nocapture",
    ]);
    command
}
