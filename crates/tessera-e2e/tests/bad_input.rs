//! The table of bad input: for each mistake one clear message that names the field, what is wrong with it and the next
//! step, while nothing is lost and nobody else is hurt.
//!
//! Each row makes the mistake and compares what a user reads with the message written in the row. The same rows are
//! `docs/bad-input.md`, which `TESSERA_BLESS=1` writes anew.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]
#![allow(clippy::print_stderr, reason = "tests say why they skip")]

use std::collections::BTreeSet;
use std::path::Path;

#[path = "bad_input/admission.rs"]
mod admission;
#[path = "bad_input/agent.rs"]
mod agent;
#[path = "bad_input/bind.rs"]
mod bind;
#[path = "bad_input/container.rs"]
mod container;
#[path = "bad_input/makers.rs"]
mod makers;
#[path = "bad_input/placing.rs"]
mod placing;
#[path = "bad_input/process.rs"]
mod process;
#[path = "bad_input/scheduler.rs"]
mod scheduler;
mod shim_support;
#[path = "bad_input/simulate.rs"]
mod simulate;
#[path = "bad_input/table.rs"]
mod table;

use table::{Part, check, page};
use tessera_e2e::harness::note_skip;
use tessera_e2e::product;

fn parts() -> Vec<Part> {
    let mut agent = agent::part();
    agent.rows.extend(agent::rows_of_root());
    vec![
        admission::part(),
        placing::part(),
        placing::nodes(),
        bind::part(),
        scheduler::part(),
        agent,
        container::part(),
        simulate::part(),
    ]
}

/// Whether mounts may be made; counts the test as skipped where not.
fn is_root(test: &str) -> bool {
    let root = std::fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0);
    if !root {
        eprintln!("skipped: {test}: needs root for private mounts");
        note_skip(test, "needs root for private mounts");
    }
    root
}

#[test]
fn a_pod_that_cannot_be_meant_is_refused_or_warned_about_when_it_is_created() {
    check(&admission::part().rows);
}

#[test]
fn a_pod_that_waits_has_an_event_that_says_why() {
    check(&placing::part().rows);
}

#[test]
fn what_a_node_says_wrongly_closes_that_node_and_no_other() {
    check(&placing::nodes().rows);
}

#[test]
fn a_bind_that_cannot_be_done_says_why() {
    check(&bind::part().rows);
}

#[test]
fn a_scheduler_that_cannot_start_or_serve_says_why() {
    check(&scheduler::part().rows);
}

#[test]
fn an_agent_that_cannot_start_or_serve_says_why() {
    check(&agent::part().rows);
}

#[test]
fn a_trace_or_dump_that_cannot_be_used_is_told_with_its_place() {
    check(&simulate::part().rows);
}

#[test]
fn a_full_disk_is_told_by_the_agent() {
    if is_root("a full disk is told by the agent") {
        check(&agent::rows_of_root());
    }
}

#[test]
fn a_container_without_a_usable_grant_says_why_and_gets_no_card() {
    if is_root("a container without a usable grant says why") {
        check(&container::part().rows);
    }
}

#[test]
fn the_names_of_every_maker_are_checked_alike() {
    makers::check(&makers::all());
}

#[test]
fn the_page_has_every_row() {
    let parts = parts();
    let mut ids = BTreeSet::new();
    for row in parts.iter().flat_map(|part| &part.rows) {
        assert!(ids.insert(row.id), "`{}` is there twice", row.id);
    }
    let path = product::root().join("docs/bad-input.md");
    let wanted = page(&parts) + &makers::page(&makers::all());
    if std::env::var_os("TESSERA_BLESS").is_some() {
        std::fs::write(&path, &wanted).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == wanted,
        "{} is not what the rows say; write it anew with TESSERA_BLESS=1 cargo test -p tessera-e2e --test bad_input",
        Path::new("docs/bad-input.md").display()
    );
}
