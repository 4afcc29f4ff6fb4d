//! `cargo xtask scale`: pods a second on a large cluster, with and without the extender.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};
use tessera_e2e::product;
use tessera_e2e::scale::ScaleArgs;

use crate::tool;

/// Builds what is measured and what measures, and becomes the latter: a signal to this chore is then one to it.
///
/// # Errors
/// A compile error, or the program cannot be started.
pub(crate) fn run(_checked: &ScaleArgs) -> Result<ExitCode> {
    tool::run(
        "building (release)",
        tool::cargo().args([
            "build",
            "--release",
            "--quiet",
            "-p",
            "tessera",
            "-p",
            "tessera-e2e",
            "--bins",
        ]),
    )?;
    let program = product::root().join("target/release/scale-bench");
    let arguments = std::env::args_os().skip_while(|word| word != "scale").skip(1);
    tool::say(&format!("== {}", program.display()));
    let error = Command::new(&program).args(arguments).exec();
    Err(error).with_context(|| format!("starting {}", program.display()))
}
