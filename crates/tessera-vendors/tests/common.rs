//! The behaviours that all classes share, run for every class from one table; the property that no sequence of pods
//! overbooks a card in any dimension; and the matrix in `docs/vendors.md`, which is made of the table.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

#[path = "suite/behaviours.rs"]
mod behaviours;
#[path = "suite/cluster.rs"]
mod cluster;
#[path = "suite/table.rs"]
mod table;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use cluster::Cluster;
use proptest::prelude::*;
use serde_json::{Value, json};
use table::{ROWS, Row};
use tessera_types::Keyword;
use tessera_wire::NodeView;

/// Why the class cannot have the behaviour; `None` if it has it.
fn outcome(row: &'static Row, (name, _, proof): &behaviours::Behaviour) -> Result<Option<&'static str>, String> {
    if let Some((_, why)) = row.cannot.iter().find(|(cannot, _)| cannot == name) {
        return Ok(Some(why));
    }
    catch_unwind(AssertUnwindSafe(|| proof(row))).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        format!("{} / {name}: {}", row.title, text.unwrap_or_default())
    })
}

#[test]
fn every_class_has_the_common_behaviours_or_says_why_not() {
    let mut failures = Vec::new();
    let mut matrix = String::from(MATRIX_HEAD);
    let mut notes: Vec<&str> = Vec::new();
    write!(matrix, "\n| |").unwrap();
    for at in 1..=ROWS.len() {
        write!(matrix, " {at} |").unwrap();
    }
    write!(matrix, "\n| --- |{}", " --- |".repeat(ROWS.len())).unwrap();
    for behaviour in behaviours::ALL {
        write!(matrix, "\n| {} |", behaviour.1).unwrap();
        for row in ROWS {
            match outcome(row, behaviour) {
                Ok(None) => matrix.push_str(" yes |"),
                Ok(Some(why)) => {
                    let note = notes.iter().position(|known| *known == why).unwrap_or_else(|| {
                        notes.push(why);
                        notes.len() - 1
                    });
                    write!(matrix, " {} |", letter(note)).unwrap();
                }
                Err(failure) => failures.push(failure),
            }
        }
    }
    assert!(
        failures.is_empty(),
        "{} failed:\n{}",
        failures.len(),
        failures.join("\n")
    );
    matrix.push_str("\n\nThe columns:\n\n");
    for (at, row) in ROWS.iter().enumerate() {
        let names: Vec<String> = row.whole.iter().map(|(name, _)| format!("`{name}`")).collect();
        writeln!(matrix, "{}. {}: {}", at + 1, row.title, names.join(", ")).unwrap();
    }
    matrix.push_str("\nWhy not:\n\n");
    for (at, note) in notes.iter().enumerate() {
        writeln!(matrix, "- {}: {note}", letter(at)).unwrap();
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/vendors.md");
    if std::env::var_os("TESSERA_BLESS").is_some() {
        std::fs::write(&path, &matrix).unwrap();
    }
    assert!(
        std::fs::read_to_string(&path).unwrap_or_default() == matrix,
        "docs/vendors.md is not what the suite says; TESSERA_BLESS=1 cargo test -p tessera-vendors --test common"
    );
}

const MATRIX_HEAD: &str = "# Vendors

Which device classes are scheduled, and what holds for all of them. Each maker's own device plugin serves its cards
unchanged; NVIDIA's are served by Tessera's agent or by HAMi's plugin. Names are HAMi's defaults.

This page is written by a test that proves every `yes`: `cargo test -p tessera-vendors --test common`.
";

fn letter(at: usize) -> char {
    char::from(b'a' + u8::try_from(at).unwrap())
}

#[test]
fn every_class_that_can_be_switched_on_is_in_the_table() {
    let tested: BTreeSet<&str> = ROWS.iter().map(|row| row.class).collect();
    let on = cluster::vendors();
    let on: BTreeSet<&str> = on.iter().map(|vendor| vendor.keyword().as_str()).collect();
    assert_eq!(tested, on);
}

#[test]
fn no_two_classes_have_a_name_in_common() {
    let mut seen = BTreeSet::new();
    for vendor in &*cluster::vendors() {
        let own: BTreeSet<&str> = vendor.names().managed().chain(vendor.keys().allocation()).collect();
        for name in own {
            assert!(seen.insert(name.to_owned()), "{name} is also another class's");
        }
    }
}

#[test]
fn the_common_request_lands_where_there_is_room() {
    let nvidia = &ROWS[0];
    let hygon = ROWS.iter().find(|row| row.class == "DCU").unwrap();
    let mut cluster = Cluster::without_node(nvidia);
    let annotations = joined(&(nvidia.node)().0, &(hygon.node)().0);
    cluster.set_node(&annotations);
    let ask = |cluster: &Cluster, name: &str, vendors: &str| {
        let limits = &[
            ("tessera.dev/gpu", "1"),
            ("tessera.dev/memory", "16Gi"),
            ("tessera.dev/cores", "60"),
        ];
        let mut pod = cluster.pod(name, limits);
        pod["metadata"]["annotations"]["tessera.dev/vendors"] = json!(vendors);
        pod
    };
    // 60 percent of two cards, then of the other maker's two.
    for (name, class) in [("a", "NVIDIA"), ("b", "NVIDIA"), ("c", "DCU"), ("d", "DCU")] {
        let pod = ask(&cluster, name, "nvidia, DCU");
        cluster.place(&pod).unwrap_or_else(|no| panic!("{name}: {no:?}"));
        let text = cluster.pods[name]["metadata"]["annotations"]["tessera.dev/translated"].clone();
        let said = format!("\"class\":\"{class}\"");
        assert!(text.as_str().unwrap().contains(&said), "{name}: {text}");
    }
    let full = cluster.place(&ask(&cluster, "e", "NVIDIA,DCU")).unwrap_err();
    assert!(full.text().contains("short of compute"), "{full:?}");
    let unknown = cluster.place(&ask(&cluster, "f", "DCUU")).unwrap_err();
    assert!(unknown.text().contains("did you mean `DCU`"), "{unknown:?}");
    let mut unsaid = ask(&cluster, "g", "");
    unsaid["metadata"]["annotations"] = json!({});
    let unsaid = cluster.place(&unsaid).unwrap_err();
    assert!(unsaid.text().contains("tessera.dev/vendors"), "{unsaid:?}");
    let mut small = ask(&cluster, "h", "NVIDIA");
    for member in ["limits", "requests"] {
        small["spec"]["containers"][0]["resources"][member]["tessera.dev/memory"] = json!("8000");
    }
    let small = cluster.place(&small).unwrap_err();
    assert!(small.text().contains("such as 8Gi"), "{small:?}");
}

/// Annotations or amounts of both.
fn joined(one: &Value, other: &Value) -> Value {
    let mut both = one.clone();
    for (key, value) in other.as_object().unwrap() {
        both[key] = value.clone();
    }
    both
}

#[test]
fn two_makers_in_one_pod_are_placed_at_the_first_attempt() {
    for (at, one) in ROWS.iter().enumerate() {
        // Two views of the same cards are not two makers.
        let maker = |row: &Row| row.title.split(',').next();
        for other in ROWS[at + 1..].iter().filter(|other| maker(other) != maker(one)) {
            let title = format!("{} with {}", one.title, other.title);
            let (a, b) = ((one.node)(), (other.node)());
            let amounts = joined(&a.1, &b.1);
            let mut cluster = Cluster::without_node(one);
            let node = json!({"metadata": {"name": cluster::NODE, "annotations": joined(&a.0, &b.0)},
                "status": {"capacity": amounts, "allocatable": amounts}});
            let change = cluster.world.set_node(&NodeView::from_json(&node).unwrap());
            assert_eq!(change.problems, [], "{title}");
            let annotate = |mut pod: Value| {
                for (key, value) in other.annotations {
                    pod["metadata"]["annotations"][*key] = json!(value);
                }
                pod
            };
            let beside = annotate(cluster.pod_of("beside", &[], &[one.whole, other.whole]));
            let all: Vec<(&str, &str)> = one.whole.iter().chain(other.whole).copied().collect();
            let together = annotate(cluster.pod_of("together", &[], &[all.leak()]));
            for (name, pod) in [("beside", beside), ("together", together)] {
                cluster
                    .place(&pod)
                    .unwrap_or_else(|no| panic!("{title}, {name}: {no:?}"));
                let annotations = &cluster.pods[name]["metadata"]["annotations"];
                for row in [one, other] {
                    let class = Keyword::new(row.class).unwrap();
                    let vendors = cluster.engine.vendors();
                    let key = vendors.get(&class).unwrap().keys().allocated.clone().unwrap();
                    assert!(annotations[&key].is_string(), "{title}, {name}: {key}");
                }
                assert_eq!(cluster.cards_of(name).len(), 2, "{title}, {name}");
                cluster.remove(name);
            }
            assert_eq!(cluster.in_use(), 0, "{title}");
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// One of the row's asks.
    Place(usize),
    /// Decided on the picture of before the previous step.
    PlaceLate(usize),
    Remove(usize),
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => (0_usize..5).prop_map(Step::Place),
        2 => (0_usize..5).prop_map(Step::PlaceLate),
        3 => (0_usize..8).prop_map(Step::Remove),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..24)
}

fn asked(cluster: &Cluster, row: &'static Row, which: usize, name: &str) -> Value {
    let half = row.half.unwrap_or(row.whole);
    match which {
        0 => cluster.pod(name, row.whole),
        1 => cluster.pod(name, half),
        2 => cluster.pod(name, row.pair.unwrap_or(half)),
        3 => cluster.pod_of(name, &[(row.whole, false)], &[half]),
        _ => cluster.pod_of(name, &[(half, true)], &[half, half]),
    }
}

/// `Cluster` checks after every step that the books add up and that no card is over its size.
fn play(row: &'static Row, steps: &[Step]) {
    let mut cluster = Cluster::new(row);
    for (at, step) in steps.iter().enumerate() {
        let name = format!("p{at}");
        match step {
            Step::Place(which) => {
                let pod = asked(&cluster, row, *which, &name);
                drop(cluster.place(&pod));
            }
            Step::PlaceLate(which) => {
                let pod = asked(&cluster, row, *which, &name);
                let Ok(pod) = cluster.review(&pod) else { continue };
                let demand = cluster.demand(&pod);
                let Ok(fit) = cluster.decide(&demand) else { continue };
                let between = asked(&cluster, row, (which + 1) % 5, &format!("{name}-between"));
                drop(cluster.place(&between));
                drop(cluster.carry_out(pod, &demand, &fit));
            }
            Step::Remove(nth) => {
                let name = cluster.pods.keys().nth(*nth).cloned();
                if let Some(name) = name {
                    cluster.remove(&name);
                }
            }
            Step::Restart => {
                let pods = std::mem::take(&mut cluster.pods);
                let usage = |cluster: &Cluster| cluster.world.snapshot().node(cluster::NODE).unwrap().usage().to_vec();
                let before = usage(&cluster);
                cluster = Cluster::new(row);
                for pod in pods.values() {
                    cluster.set_pod(pod);
                }
                cluster.pods = pods;
                assert_eq!(usage(&cluster), before, "{}", row.title);
            }
        }
    }
    for name in cluster.pods.keys().cloned().collect::<Vec<_>>() {
        cluster.remove(&name);
    }
    assert_eq!(cluster.in_use(), 0, "{}", row.title);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_overbooks_a_card_of_any_class(steps in steps()) {
        for row in ROWS {
            play(row, &steps);
        }
    }
}
