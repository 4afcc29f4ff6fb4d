//! `tessera run` alone, for tests: the whole binary takes long to build.

#![allow(clippy::print_stderr, reason = "a command says what is wrong")]

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    run: tessera_terminal::run::RunArgs,
}

fn main() -> ExitCode {
    match tessera_terminal::run::run(&Cli::parse().run) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
