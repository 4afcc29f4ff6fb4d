//! Every chore of the repository: `cargo xtask <command>`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod check;
mod fuzz;
mod models;
mod names;
mod packing;
mod scale;
mod storm;
mod stress;
mod tidy;
mod tool;
mod up;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Every chore of the repository")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Pass the tests: format, lints, rules, every suite, the real cluster. Last line: `N passed, N failed, N skipped`.
    Check(check::CheckArgs),
    /// Start a one-node Kubernetes with Tessera and a sample of pods that share one card.
    Up(up::UpArgs),
    /// Measure the figures of docs/benchmarks again.
    Bench,
    /// Replay the published packing experiment: decisions bit for bit, and the points of our policy.
    Packing(packing::PackingArgs),
    /// Storm a real cluster: many pods at once, random deletes, kills of scheduler, agent and kubelet.
    Storm(storm::StormArgs),
    /// Run a test that finds more the longer it runs.
    #[command(subcommand)]
    Stress(stress::StressArgs),
    /// Try every interleaving of the protocols of the shared pages.
    Models,
    /// Run every fuzz target for so long, guided by coverage, with AddressSanitizer. Needs a nightly compiler.
    Fuzz(fuzz::FuzzArgs),
    /// Run the tests of the library and of its pages with AddressSanitizer. Needs a nightly compiler.
    Asan,
    /// List the names of the vendor's headers anew, for every release whose headers are published as packages.
    Names,
    /// Measure pods a second on a large cluster of real Kubernetes with nodes that nobody runs.
    Scale(tessera_e2e::scale::ScaleArgs),
    /// Check the rules of the repository that no compiler knows.
    Tidy,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Check(args) => check::run(&args),
        Command::Up(args) => up::run(&args),
        Command::Bench => bench::run(),
        Command::Packing(args) => packing::run(&args),
        Command::Storm(args) => storm::run(&args),
        Command::Stress(args) => stress::run(&args),
        Command::Models => models::run(),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Asan => fuzz::asan(),
        Command::Names => names::run(),
        Command::Scale(args) => scale::run(&args),
        Command::Tidy => tidy::run(),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            tool::say(&format!("error: {error}"));
            for cause in error.chain().skip(1) {
                tool::say(&format!("  because: {cause}"));
            }
            ExitCode::FAILURE
        }
    }
}
