//! `cargo xtask check`: everything that must pass, in the order in which it fails fastest.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::{models, packing, tidy, tool};

#[derive(Debug, clap::Args)]
pub(crate) struct CheckArgs {
    /// Leave out the suites that start a Kubernetes cluster (they count as skipped).
    #[arg(long)]
    no_cluster: bool,
}

#[derive(Debug, Default)]
struct Tally {
    passed: u64,
    failed: u64,
    skipped: u64,
    broken: Vec<String>,
}

impl Tally {
    /// A step that has no tests of its own counts as one.
    fn step(&mut self, what: &str, outcome: Result<()>) {
        match outcome {
            Ok(()) => self.passed += 1,
            Err(error) => {
                tool::say(&format!("FAILED {what}: {error:#}"));
                self.failed += 1;
                self.broken.push(what.to_owned());
            }
        }
    }
}

pub(crate) fn run(args: &CheckArgs) -> Result<ExitCode> {
    let start = Instant::now();
    let mut tally = Tally::default();
    tally.step(
        "format",
        tool::run("format", tool::cargo().args(["fmt", "--all", "--check"])),
    );
    tally.step("rules", tidy_step());
    tally.step(
        "lints",
        tool::run(
            "lints (clippy, every warning is an error; about 4 min when nothing is built yet)",
            tool::cargo().args([
                "clippy",
                "--workspace",
                "--all-targets",
                "--locked",
                "--quiet",
                "--",
                "-D",
                "warnings",
            ]),
        ),
    );
    tally.step(
        "artefacts",
        tool::run(
            "artefacts that tests run: binary, shim, simulated drivers",
            tool::cargo().args(["build", "--workspace", "--locked", "--quiet"]),
        ),
    );
    tally.step("packing", packing::check());
    let skips = tool::root().join("target/skipped.txt");
    if let Some(folder) = skips.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    std::fs::write(&skips, "").with_context(|| format!("emptying {}", skips.display()))?;
    suites(&mut tally, &skips, args)?;
    tool::say("== models of the shared pages (cargo xtask models)");
    stream(&mut tally, "models", models::command().stdout(Stdio::piped()))?;
    let skipped = std::fs::read_to_string(&skips).unwrap_or_default();
    for line in skipped.lines() {
        tool::say(&format!("skipped: {line}"));
        tally.skipped += 1;
        tally.passed = tally.passed.saturating_sub(1);
    }
    tool::say(&format!("== all: {:.0} s", start.elapsed().as_secs_f32()));
    for what in &tally.broken {
        tool::say(&format!("broken: {what}"));
    }
    tool::say(&format!(
        "{} passed, {} failed, {} skipped",
        tally.passed, tally.failed, tally.skipped
    ));
    Ok(if tally.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn tidy_step() -> Result<()> {
    let problems = tidy::problems()?;
    anyhow::ensure!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(())
}

/// Runs every test of the workspace and adds up what libtest says.
fn suites(tally: &mut Tally, skips: &Path, args: &CheckArgs) -> Result<()> {
    tool::say("== tests");
    let mut command = tool::cargo();
    command
        .args(["test", "--workspace", "--locked", "--no-fail-fast"])
        .env("TESSERA_SKIPPED", skips)
        // All that tests run is built: a test that had cargo build it again could take it away from another one.
        .env("TESSERA_PREBUILT", "1")
        .env("INSTA_UPDATE", "no")
        .stdout(Stdio::piped());
    if args.no_cluster {
        command.env("TESSERA_NO_CLUSTER", "1");
    }
    stream(tally, "tests", &mut command)
}

fn stream(tally: &mut Tally, what: &str, command: &mut Command) -> Result<()> {
    let mut child = command.spawn().context("starting cargo test")?;
    let stdout = child.stdout.take().context("cargo test has no output")?;
    let failed_before = tally.failed;
    for line in BufReader::new(stdout).lines() {
        let line = line.context("reading the output of cargo test")?;
        if let Some((passed, failed, ignored)) = libtest_counts(&line) {
            tally.passed += passed;
            tally.failed += failed;
            tally.skipped += ignored;
        }
        tool::say(&line);
    }
    let status = child.wait().context("waiting for cargo test")?;
    if !status.success() {
        if tally.failed == failed_before {
            tally.failed += 1;
        }
        tally.broken.push(what.to_owned());
    }
    Ok(())
}

/// `test result: ok. 3 passed; 0 failed; 1 ignored; ...` as (3, 0, 1).
fn libtest_counts(line: &str) -> Option<(u64, u64, u64)> {
    let counts = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let mut numbers = counts
        .split(';')
        .map(|part| part.trim().split(' ').next().and_then(|n| n.parse().ok()));
    Some((numbers.next()??, numbers.next()??, numbers.next()??))
}

#[cfg(test)]
mod tests {
    use super::libtest_counts;

    #[test]
    fn counts_are_read_from_the_closing_line() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        assert_eq!(libtest_counts(line), Some((12, 3, 1)));
        assert_eq!(libtest_counts("running 3 tests"), None);
    }
}
