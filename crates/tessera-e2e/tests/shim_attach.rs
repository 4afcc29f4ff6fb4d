//! What joining a limited container costs a process: measurements for `docs/benchmarks/enforcement.md`.

#![allow(clippy::unwrap_used, clippy::panic, clippy::cast_precision_loss, reason = "tests")]
#![allow(clippy::print_stdout, reason = "the figures go to standard output")]

mod shim_support;

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use shim_support::{Client, Container, GIB, Machine, can_mount, library};

/// The library as it is distributed, if it was built.
fn released() -> PathBuf {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/release/libvgpu.so");
    if file.exists() { file } else { library() }
}

/// Times of `cuInit` in processes that all begin it together, sorted, in nanoseconds.
fn together(mut clients: Vec<Client>) -> Vec<u64> {
    for client in &mut clients {
        // The program is loaded and has opened the driver.
        client.expect("cuDriverGetVersion &v", "0");
    }
    for client in &mut clients {
        client.send("@ns cuInit 0");
    }
    let mut times: Vec<u64> = clients
        .iter_mut()
        .map(|client| {
            let answer = client.answer();
            answer.strip_prefix("0 ").unwrap().parse().unwrap()
        })
        .collect();
    times.sort_unstable();
    times
}

fn percentile(times: &[u64], percent: usize) -> f64 {
    times[(times.len() * percent / 100).min(times.len() - 1)] as f64 / 1e6
}

#[test]
#[ignore = "a measurement, for docs/benchmarks/enforcement.md: cargo test -p tessera-e2e --test shim_attach -- --ignored --nocapture"]
fn three_hundred_at_once() {
    if !can_mount() {
        return;
    }
    let machine = Machine::with_context(1, 2);
    let container = machine.container(&[GIB]);
    let limited = |count: usize| -> Vec<Client> {
        let change = |command: &mut Command| {
            command.env("LD_PRELOAD", released());
        };
        (0..count).map(|_| container.client_with(change)).collect()
    };
    for count in [1, 300] {
        for round in 0..3 {
            let with = together(limited(count));
            let bare = together((0..count).map(|_| machine.bare()).collect());
            println!(
                "{count} processes, round {round}: cuInit p50 {:.2} ms, p99 {:.2} ms; without the library {:.2}, {:.2}",
                percentile(&with, 50),
                percentile(&with, 99),
                percentile(&bare, 50),
                percentile(&bare, 99)
            );
        }
    }
}

/// Instructions of a process that does `work` and ends.
fn instructions(container: &Container<'_>, with: bool, work: &str) -> f64 {
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    command.arg(env!("CARGO_BIN_EXE_cuda-client"));
    container.enter(&mut command);
    // Valgrind itself is started with what it is to preload.
    match with {
        true => command.env("LD_PRELOAD", released()),
        false => command.env_remove("LD_PRELOAD"),
    };
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(work.as_bytes()).unwrap();
    let said = String::from_utf8(child.wait_with_output().unwrap().stderr).unwrap();
    let count = said.lines().find_map(|line| line.split("Collected :").nth(1));
    count.unwrap_or_else(|| panic!("{said}")).trim().parse().unwrap()
}

#[test]
#[ignore = "a measurement, for docs/benchmarks/enforcement.md: cargo test -p tessera-e2e --test shim_attach -- --ignored --nocapture"]
fn instructions_of_joining() {
    if !can_mount() {
        return;
    }
    let machine = Machine::with_context(1, 2);
    let container = machine.container(&[GIB]);
    let added = |work: &str| instructions(&container, true, work) - instructions(&container, false, work);
    let (nothing, opened) = (added(""), added("cuDriverGetVersion &v\n"));
    let joined = added("cuDriverGetVersion &v\ncuInit 0\n");
    println!(
        "added instructions: {nothing} to be loaded, {} for the first lookup, {} to join",
        opened - nothing,
        joined - opened
    );
}
