//! Every target with every text of the conformance cases, and with changes of them. Not guided; `cargo xtask fuzz` is.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use tessera_fuzz::{TARGETS, Target, seeds};

const PAGES: [&str; 5] = ["account", "grant", "swap", "turns", "verdict"];

fn all_seeds() -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance");
    let seeds: Vec<_> = seeds::of_cases(&folder).unwrap().into_iter().collect();
    assert!(seeds.len() > 1000, "{} seeds only", seeds.len());
    seeds
}

#[track_caller]
fn holds(target: &Target, input: &[u8]) {
    let outcome = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    assert!(
        outcome.is_ok(),
        "{} with {:?} (bytes {input:02x?})",
        target.name,
        String::from_utf8_lossy(input)
    );
}

#[test]
fn every_target_holds_for_the_texts_of_the_cases_and_changes_of_them() {
    let seeds = all_seeds();
    let mut state = 0x5eed_u64;
    let mut random = |end: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % u64::try_from(end.max(1)).unwrap()).unwrap()
    };
    for target in TARGETS {
        holds(target, &[]);
        for (at, seed) in seeds.iter().enumerate() {
            // Pages take longer to make than texts to read.
            if PAGES.contains(&target.name) && at % 16 != 0 {
                continue;
            }
            holds(target, seed);
            let mut changed = seed.clone();
            for _ in 0..=random(3) {
                let at = random(changed.len());
                match random(4) {
                    0 => changed.truncate(at),
                    1 => changed.insert(at, b"0123456789,:;{}[]\"-.\n\0\xff"[random(23)]),
                    2 if !changed.is_empty() => changed[at] ^= 1 << random(8),
                    _ => {
                        let other = &seeds[random(seeds.len())];
                        let from = random(other.len());
                        changed.extend_from_slice(&other[from..]);
                    }
                }
            }
            holds(target, &changed);
        }
    }
}

/// A target without a program would never be run guided.
#[test]
fn every_target_has_its_program() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/fuzz_targets");
    let programs: BTreeSet<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    let listed: BTreeSet<String> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    assert_eq!(programs, listed);
}
