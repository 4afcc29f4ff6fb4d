//! The recorded cases of enforcement, on real processes: `conformance/enforcement-cases.jsonl`.
//!
//! Each case starts its processes on a simulated machine, with the library preloaded and a sealed grant. The grant says
//! what the variables of the case say to the reference; for the library under test the variables decide nothing, and
//! they are set all the same. An answer is as recorded, or as `conformance/differences-enforcement.toml` says, with the
//! reason. A listed difference that does not differ is red.
//!
//! `TESSERA_CASE=mem-001` runs one case and prints every step.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]
#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "tests say why they skip, and the table is for people"
)]

#[path = "enforcement/actor.rs"]
mod actor;
#[path = "enforcement/arguments.rs"]
mod arguments;
#[path = "enforcement/outside.rs"]
mod outside;
#[path = "enforcement/pages.rs"]
mod pages;
#[path = "enforcement/share.rs"]
mod share;
mod shim_support;
#[path = "enforcement/stage.rs"]
mod stage;

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use serde_json::Value;
use tessera_testkit::conformance::{
    Differences,
    enforcement::{EnforcementCase, read},
    same,
};

/// What became of a case.
enum Verdict {
    Passed,
    Differs,
    NotRun(&'static str),
    Failed(String),
}

#[test]
fn every_case_is_as_recorded_or_differs_by_design() {
    if !shim_support::can_mount() {
        return;
    }
    let only = std::env::var("TESSERA_CASE").ok();
    let cases = read().unwrap();
    let differences = Differences::read_named("differences-enforcement").unwrap();
    let known = |id: &str| cases.iter().any(|case| case.id == id);
    let leftovers: Vec<&str> = differences.unknown(known).collect();
    assert!(
        leftovers.is_empty(),
        "differences of cases that do not exist: {leftovers:?}"
    );
    let leftovers: Vec<&str> = outside::listed().filter(|id| !known(id)).collect();
    assert!(leftovers.is_empty(), "left out, but do not exist: {leftovers:?}");

    let chosen: Vec<&EnforcementCase> = cases
        .iter()
        .filter(|case| only.as_ref().is_none_or(|id| *id == case.id))
        .collect();
    let next = AtomicUsize::new(0);
    let verdicts = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        // Most of a case is waiting for processes.
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(case) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let verdict = judge(case, &differences, only.is_some());
                    verdicts.lock().unwrap().insert(case.id.clone(), (*case, verdict));
                }
            });
        }
    });
    let verdicts = verdicts.into_inner().unwrap();
    assert_eq!(report(&verdicts), 0, "see the table above");
}

fn judge(case: &EnforcementCase, differences: &Differences, aloud: bool) -> Verdict {
    if let Some(reason) = outside::reason(case) {
        return Verdict::NotRun(reason);
    }
    let outcome = match catch_unwind(AssertUnwindSafe(|| stage::play(case, aloud))) {
        Ok(Ok(outcome)) => Value::Object(outcome),
        Ok(Err(outside::NotHere(reason))) => return Verdict::NotRun(reason),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            return Verdict::Failed(text.unwrap_or_else(|| "the runner gave up".to_owned()));
        }
    };
    let as_recorded = outcome.as_object().is_some_and(serde_json::Map::is_empty);
    match differences.of(&case.id) {
        None if as_recorded => Verdict::Passed,
        None => Verdict::Failed(format!("differs: {outcome}")),
        Some(_) if as_recorded => Verdict::Failed("is listed as a difference and does not differ any more".to_owned()),
        Some(listed) if same(&listed.ours, &outcome) => Verdict::Differs,
        Some(listed) => Verdict::Failed(format!(
            "differs otherwise than listed\n          listed   {}\n          got      {outcome}",
            listed.ours
        )),
    }
}

/// Prints the table; how many failed.
fn report(verdicts: &BTreeMap<String, (&EnforcementCase, Verdict)>) -> usize {
    let mut kinds: BTreeMap<&str, [usize; 4]> = BTreeMap::new();
    let mut not_run: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (id, (case, verdict)) in verdicts {
        let counts = kinds.entry(&case.kind).or_default();
        match verdict {
            Verdict::Passed => counts[0] += 1,
            Verdict::Differs => counts[1] += 1,
            Verdict::Failed(_) => counts[2] += 1,
            Verdict::NotRun(reason) => {
                counts[3] += 1;
                not_run.entry(reason).or_default().push(id);
            }
        }
    }
    println!(
        "{:<24} {:>7} {:>8} {:>7} {:>8}",
        "enforcement", "passed", "differ", "failed", "not run"
    );
    let mut sum = [0; 4];
    for (kind, counts) in &kinds {
        let [passed, differ, failed, left] = counts;
        println!("  {kind:<22} {passed:>7} {differ:>8} {failed:>7} {left:>8}");
        sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
    }
    for (id, (case, verdict)) in verdicts {
        if let Verdict::Failed(problem) = verdict {
            println!("  FAILED  {id}: {}\n          {problem}", case.title);
        }
    }
    for (reason, ids) in &not_run {
        println!("  not run {:>3}  {reason}: {}", ids.len(), ids.join(" "));
    }
    let [passed, differ, failed, left] = sum;
    println!("{passed} passed, {differ} differ by design, {failed} failed, {left} not run");
    failed
}
