//! Null, odd and dangling arguments in every call that the library stands in for: never a fault of the library, always
//! a code, and the share is what it was.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(clippy::print_stdout, reason = "tests say what they did")]

mod shim_support;

use std::{
    collections::BTreeMap,
    io::Write as _,
    process::{Command, Stdio},
};

use shim_support::{Container, GIB, Machine, can_mount};
use tessera_region::{CardFlags, CardGrant};

/// Every stand-in with the kinds of its arguments, from the two tables of the library.
fn signatures() -> BTreeMap<String, String> {
    let tables = [
        include_str!("../../tessera-shim/src/table.rs"),
        include_str!("../../tessera-shim/src/gates.rs"),
    ];
    let lines = tables.iter().flat_map(|text| text.lines());
    let entries = lines.filter(|line| line.starts_with("    ") && line.ends_with(';') && line.contains(") => "));
    entries
        .filter_map(|line| {
            let (head, rest) = line.split_once('(')?;
            let name = head.rsplit(' ').next()?;
            let arguments = rest.split_once(") => ")?.0;
            let kinds = arguments.split(", ").filter(|part| !part.is_empty()).map(|part| {
                let kind = part.split_once(": ").unwrap().1;
                match kind {
                    "Device" => 'd',
                    _ if kind.starts_with('*') => 'p',
                    _ => 'n',
                }
            });
            (name.starts_with("cu") || name.starts_with("nvml")).then(|| (name.to_owned(), kinds.collect()))
        })
        .collect()
}

/// What gates say of their arguments is their number alone, so each of these may be an address.
fn lines() -> String {
    let lines = signatures().into_iter().map(|(name, kinds)| {
        if kinds.contains(['p', 'd']) {
            format!("{name} {kinds}\n")
        } else {
            format!("{name} {}\n", kinds.replace('n', "x"))
        }
    });
    lines.collect()
}

/// What `cargo xtask stress arguments` says, or what is said here.
fn told(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap())
}

fn call_oddly(container: &Container<'_>, seed: u64, more: u64, text: &str) {
    let (seed, more) = (told("TESSERA_ODD_SEED", seed), told("TESSERA_ODD_MORE", more));
    let mut command = Command::new(env!("CARGO_BIN_EXE_odd-caller"));
    container.enter(&mut command);
    let mut child = command
        .args([seed.to_string(), more.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let (findings, done): (Vec<&str>, Vec<&str>) = said.lines().partition(|line| !line.starts_with("done "));
    assert!(
        output.status.success() && done.len() == 1,
        "{:?}: {said}",
        output.status
    );
    println!(
        "seed {seed}: {} (calls, succeeded, faults of the driver itself)",
        done[0]
    );
    assert!(
        findings.is_empty(),
        "{} findings:\n{}",
        findings.len(),
        findings.join("\n")
    );
    // And nothing is left of it all.
    let mut client = container.ready();
    client.expect("cuMemAlloc_v2 &p 1GiB", "0");
    client.expect("cuMemFree_v2 $p", "0");
    assert_eq!(client.memory(), (GIB, GIB));
}

#[test]
fn every_exported_call_is_in_the_list_of_signatures() {
    let exported = include_str!("../../tessera-shim/exports.txt").lines();
    let called: Vec<&str> = exported.filter(|name| !matches!(*name, "dlsym" | "dlvsym")).collect();
    let listed: Vec<String> = signatures().into_keys().collect();
    assert_eq!(listed, called);
}

#[test]
fn odd_arguments_of_a_limited_container_are_answered_with_codes() {
    if can_mount() {
        let machine = Machine::with_context(1, 0);
        call_oddly(&machine.container(&[GIB]), 1, 16, &lines());
    }
}

/// With a gate for turns and one for memory that moves, every entry does all of its work.
#[test]
fn odd_arguments_where_everything_waits_at_gates_are_answered_with_codes() {
    if can_mount() {
        let machine = Machine::with_context(1, 0);
        let card = CardGrant {
            flags: CardFlags::SWAP,
            // Gated, but without a cap: nobody plays the agent, and a launch would be paced.
            min_cores_permille: 10,
            ..CardGrant::with_memory(&machine.uuids[0], GIB).unwrap()
        };
        call_oddly(&machine.container_with([card]), 2, 0, &lines());
    }
}
