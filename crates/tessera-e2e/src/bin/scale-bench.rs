//! The scale harness as a program of its own, since a development build would be slower than what it measures.
//! `cargo xtask scale` builds it and becomes it.

#![expect(clippy::print_stderr, reason = "its progress is for whoever waits")]

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use tessera_e2e::interrupt::{Ended, until_signal};
use tessera_e2e::scale::{self, ScaleArgs};
use tessera_testcluster::Progress;

#[derive(Debug, Parser)]
#[command(about = "How fast pods are placed and bound on a large cluster, with and without the extender")]
struct Cli {
    #[command(flatten)]
    scale: ScaleArgs,
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let args = Cli::parse().scale;
    let progress = Progress::new(|event| eprintln!("  {event}"));
    match until_signal(scale::run(&args, &progress)).await? {
        Ended::Done(()) => Ok(ExitCode::SUCCESS),
        Ended::Interrupted(code) => Ok(code),
    }
}
