//! `cargo xtask stress`: tests that find more the longer they run, for as long as one likes.

use std::process::ExitCode;

use anyhow::Result;

use crate::tool;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum StressArgs {
    /// Processes of one container that allocate and free at random: never more than the limit, nothing refused that
    /// fits, all views equal.
    Memory(MemoryArgs),
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
    let StressArgs::Memory(args) = args;
    let mut test = tool::cargo();
    test.args([
        "test",
        "--quiet",
        "-p",
        "tessera-e2e",
        "--test",
        "shim_stress",
        "--",
        "--nocapture",
    ])
    .env("TESSERA_STRESS_SECONDS", args.seconds.to_string())
    .env("TESSERA_STRESS_PROCESSES", args.processes.to_string())
    .env("TESSERA_STRESS_SEED", args.seed.to_string());
    tool::run("stress of the memory limit", &mut test)?;
    Ok(ExitCode::SUCCESS)
}
