//! `cargo xtask fuzz` and `cargo xtask asan`: what a nightly compiler can find that tests cannot.

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result};

use crate::tool;

#[derive(Debug, clap::Args)]
pub(crate) struct FuzzArgs {
    /// How long each target runs.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Run these targets only.
    #[arg(long)]
    target: Vec<String>,
}

/// What `cargo-fuzz` gives the compiler: counters on every edge, comparisons seen, and AddressSanitizer.
const GUIDED: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Zsanitizer=address -Cforce-frame-pointers=yes -Ccodegen-units=1";

/// The triple of this machine, if a nightly compiler with AddressSanitizer is here; else why not.
fn nightly() -> Result<String, String> {
    let output = Command::new("rustc")
        .args(["+nightly", "--version", "--verbose"])
        .output()
        .map_err(|error| format!("rustc does not start: {error}"))?;
    if !output.status.success() {
        return Err("there is no nightly compiler; `rustup toolchain install nightly` gets one".to_owned());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.ok_or("the nightly compiler does not name its host")?.to_owned();
    let folder = Command::new("rustc")
        .args(["+nightly", "--print", "target-libdir"])
        .output()
        .map_err(|error| format!("rustc does not start: {error}"))?;
    let folder = PathBuf::from(String::from_utf8_lossy(&folder.stdout).trim());
    let runtime = std::fs::read_dir(&folder).is_ok_and(|mut files| {
        files.any(|file| file.is_ok_and(|file| file.file_name().to_string_lossy().contains("asan")))
    });
    if runtime {
        Ok(host)
    } else {
        Err(format!(
            "the nightly compiler for {host} comes without AddressSanitizer"
        ))
    }
}

fn skipped(what: &str, why: &str) -> ExitCode {
    tool::say(&format!("skipped: {what}: {why}"));
    ExitCode::SUCCESS
}

/// Programs are for this machine; naming it keeps the flags away from build scripts.
fn built(flags: &str, folder: &Path) -> Command {
    let mut command = Command::new("cargo");
    command
        .arg("+nightly")
        .env("RUSTFLAGS", flags)
        .env_remove("RUSTUP_TOOLCHAIN")
        .env("CARGO_TARGET_DIR", folder);
    command
}

pub(crate) fn run(args: &FuzzArgs) -> Result<ExitCode> {
    let host = match nightly() {
        Ok(host) => host,
        Err(why) => return Ok(skipped("fuzzing", &why)),
    };
    let folder = tool::root().join("target/fuzz");
    let mut build = built(GUIDED, &folder);
    build
        .current_dir(tool::root().join("fuzz"))
        .args(["build", "--release", "--quiet", "--target", &host]);
    tool::run("fuzz targets (nightly, AddressSanitizer)", &mut build)?;
    let seeds = write_seeds(&folder.join("seeds"))?;
    let mut broken = 0;
    for target in tessera_fuzz::TARGETS {
        if !args.target.is_empty() && !args.target.iter().any(|name| name == target.name) {
            continue;
        }
        let program = folder.join(&host).join("release").join(target.name);
        broken += u32::from(!fuzz(target.name, &program, &folder, &seeds, args.seconds)?);
    }
    Ok(if broken == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The texts of the conformance cases, a file each.
fn write_seeds(folder: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let cases = tessera_fuzz::seeds::of_cases(&tool::root().join("conformance")).context("reading the cases")?;
    for (number, seed) in cases.iter().enumerate() {
        let path = folder.join(format!("{number:05}"));
        std::fs::write(&path, seed).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(folder.to_path_buf())
}

/// Runs one target; whether nothing was found.
fn fuzz(name: &str, program: &Path, folder: &Path, seeds: &Path, seconds: u64) -> Result<bool> {
    let corpus = folder.join("corpus").join(name);
    let artifacts = folder.join("artifacts").join(name);
    for made in [&corpus, &artifacts] {
        std::fs::create_dir_all(made).with_context(|| format!("making {}", made.display()))?;
    }
    let mut command = Command::new(program);
    command.arg(&corpus);
    // Texts say nothing about pages.
    if !["account", "grant", "swap", "turns", "verdict"].contains(&name) {
        command.arg(seeds);
    }
    let output = command
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg(format!("-max_total_time={seconds}"))
        .args([
            "-print_final_stats=1",
            "-timeout=10",
            "-max_len=8192",
            "-rss_limit_mb=2048",
            "-verbosity=1",
        ])
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("running {}", program.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let stat = |key: &str| {
        let line = said.lines().rev().find_map(|line| line.trim().strip_prefix(key));
        line.unwrap_or("?").trim().to_owned()
    };
    let reached = said
        .lines()
        .rev()
        .find_map(|line| line.split(" cov: ").nth(1)?.split(' ').next());
    tool::say(&format!(
        "{name}: {} runs, {} edges reached{}",
        stat("stat::number_of_executed_units:"),
        reached.unwrap_or("?"),
        if output.status.success() { "" } else { ", FOUND" }
    ));
    if !output.status.success() {
        for line in said.lines().rev().take(60).collect::<Vec<_>>().into_iter().rev() {
            tool::say(line);
        }
        tool::say(&format!(
            "again: {} FILE, with a file of {}",
            program.display(),
            artifacts.display()
        ));
    }
    Ok(output.status.success())
}

/// The library's own tests and the pages' with AddressSanitizer. The fuzz targets have it in [`run`].
pub(crate) fn asan() -> Result<ExitCode> {
    let host = match nightly() {
        Ok(host) => host,
        Err(why) => return Ok(skipped("AddressSanitizer", &why)),
    };
    let folder = tool::root().join("target/asan");
    let mut tests = built("-Zsanitizer=address -Cforce-frame-pointers=yes", &folder);
    tests
        .current_dir(tool::root())
        // Mappings that stay for the life of a process are meant to.
        .env("ASAN_OPTIONS", "detect_leaks=0")
        .args(["test", "--locked", "--quiet", "--target", &host])
        .args(["-p", "tessera-shim", "-p", "tessera-region"]);
    tool::run(
        "tests of the library and of its pages with AddressSanitizer",
        &mut tests,
    )?;
    Ok(ExitCode::SUCCESS)
}
