//! `cargo xtask models`: the protocols of the shared pages under the model checker.
//!
//! The checker replaces the atomics of `tessera-region` and tries every interleaving, so the crate is built apart from
//! all others, in a folder of its own.

use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::tool;

pub(crate) fn run() -> Result<ExitCode> {
    tool::run("models of tessera-region", &mut command())?;
    Ok(ExitCode::SUCCESS)
}

/// The test run, as `cargo xtask check` counts it too.
pub(crate) fn command() -> Command {
    let mut command = tool::cargo();
    command
        .args(["test", "--locked", "--quiet", "-p", "tessera-region", "--lib", "model"])
        .arg("--target-dir")
        .arg(tool::root().join("target/loom"))
        .env("RUSTFLAGS", "--cfg loom");
    command
}
