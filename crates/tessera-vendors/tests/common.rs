//! The behaviours that all classes share, run for every class from one table; the property that no sequence of pods
//! overbooks a card in any dimension; and the matrix in `docs/vendors.md`, which is made of the table.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

#[path = "suite/behaviours/mod.rs"]
mod behaviours;
#[path = "suite/cluster.rs"]
mod cluster;
#[path = "suite/nodes.rs"]
mod nodes;
#[path = "suite/page.rs"]
mod page;
#[path = "suite/rows/mod.rs"]
mod rows;
#[path = "suite/table.rs"]
mod table;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use cluster::Cluster;
use proptest::prelude::*;
use rows::ROWS;
use serde_json::{Value, json};
use table::Row;
use tessera_types::Keyword;

thread_local! {
    /// A proof runs whose failure is told in one line: an excused one is bound to fail.
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// What the proof says against the class; `None` if it has the behaviour.
fn failure(row: &'static Row, behaviour: &behaviours::Behaviour) -> Option<String> {
    QUIET.set(true);
    let outcome = catch_unwind(AssertUnwindSafe(|| (behaviour.proof)(row)));
    QUIET.set(false);
    let panic = outcome.err()?;
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    Some(text.unwrap_or_default())
}

#[test]
fn every_class_has_the_common_behaviours_or_says_why_not() {
    let loud = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !QUIET.get() {
            loud(info);
        }
    }));
    let mut wrong = Vec::new();
    for row in ROWS {
        let misnamed = page::misnamed(row);
        if !misnamed.is_empty() {
            wrong.push(format!("{}: no behaviour, or excused twice: {misnamed:?}", row.title));
        }
        for behaviour in behaviours::all() {
            let title = format!("{} / {}", row.title, behaviour.name);
            match (page::excuse(row, behaviour), failure(row, behaviour)) {
                (None, Some(failure)) => wrong.push(format!("{title}: {failure}")),
                (Some(why), None) => wrong.push(format!("{title}: it has it, but is excused: {why}")),
                _ => {}
            }
        }
    }
    assert!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n"));
    let page = page::render();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/vendors.md");
    if std::env::var_os("TESSERA_BLESS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    assert!(
        std::fs::read_to_string(&path).unwrap_or_default() == page,
        "docs/vendors.md is not what the suite says; TESSERA_BLESS=1 cargo test -p tessera-vendors --test common"
    );
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
    let mut seen: BTreeMap<String, &str> = BTreeMap::new();
    for vendor in &*cluster::vendors() {
        let maker = ROWS
            .iter()
            .find(|row| row.class == vendor.keyword().as_str())
            .unwrap()
            .maker();
        let resources: BTreeSet<&str> = vendor.names().managed().collect();
        let keys: BTreeSet<&str> = vendor.keys().allocation().collect();
        // The annotation that a plugin reads may have the resource's name.
        for name in resources.union(&keys) {
            let other = seen.insert((*name).to_owned(), maker);
            // One maker's chips may share an annotation, no two classes share a resource.
            let shared = other.is_some_and(|other| other != maker || resources.contains(name));
            assert!(!shared, "{name} is also another class's");
        }
    }
}

#[test]
fn the_common_request_lands_where_there_is_room() {
    let nvidia = &ROWS[0];
    let hygon = ROWS.iter().find(|row| row.class == "DCU").unwrap();
    let mut cluster = Cluster::without_node(nvidia);
    let annotations = joined(&(nvidia.node)().0, &(hygon.node)().0);
    cluster.set_node(&(annotations, (hygon.node)().1));
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
        for other in ROWS[at + 1..].iter().filter(|other| other.maker() != one.maker()) {
            let title = format!("{} with {}", one.title, other.title);
            let (a, b) = ((one.node)(), (other.node)());
            let amounts = joined(&a.1, &b.1);
            let mut cluster = Cluster::without_node(one);
            let change = cluster.set_node(&(joined(&a.0, &b.0), amounts));
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
    /// One of the row's pictures of its node.
    Node(usize),
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0_usize..9).prop_map(Step::Place),
        2 => (0_usize..9).prop_map(Step::PlaceLate),
        3 => (0_usize..8).prop_map(Step::Remove),
        2 => (0_usize..6).prop_map(Step::Node),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..32)
}

fn asked(cluster: &Cluster, row: &'static Row, which: usize, name: &str) -> Value {
    let part = row.part.unwrap_or(row.whole);
    match which {
        0 => cluster.pod(name, row.whole),
        1 => cluster.pod(name, part),
        2 => cluster.pod(name, row.pair.unwrap_or(part)),
        3 => cluster.pod_of(name, &[(row.whole, false)], &[part]),
        4 => cluster.pod_of(name, &[(part, true)], &[part, part]),
        5 => cluster.pod(name, row.memory.unwrap_or(part)),
        6 => cluster.pod(name, row.compute.unwrap_or(part)),
        7 => cluster.pod(name, row.percent.unwrap_or(part)),
        _ => cluster.pod(name, row.least.map_or(part, |(least, _)| least)),
    }
}

/// The node as it was, with a card less, a broken card, or less memory; in part what the row has.
fn picture(row: &'static Row, which: usize) -> table::Picture {
    match which {
        1 => nodes::fewer(row),
        2 if row.breaks.is_some() => nodes::broken(row),
        3 if row.size.is_some() => nodes::resized(row, 1, |size| size / 2),
        4 if row.size.is_some() => nodes::resized(row, row.cards, |size| size / 4 * 3),
        5 => (json!({}), json!({})),
        _ => (row.node)(),
    }
}

/// `Cluster` checks after every step that the books add up, and that nothing is added to a card beyond its size.
fn play(row: &'static Row, steps: &[Step]) {
    let mut cluster = Cluster::new(row);
    let mut node = (row.node)();
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
                // Another pod, or another node, comes between.
                if at % 3 == 0 {
                    node = picture(row, at % 6);
                    cluster.set_node(&node);
                } else {
                    let between = asked(&cluster, row, (which + 1) % 9, &format!("{name}-between"));
                    drop(cluster.place(&between));
                }
                drop(cluster.carry_out(pod, &demand, &fit));
            }
            Step::Remove(nth) => {
                let name = cluster.pods.keys().nth(*nth).cloned();
                if let Some(name) = name {
                    cluster.remove(&name);
                }
            }
            Step::Node(which) => {
                node = picture(row, *which);
                cluster.set_node(&node);
            }
            Step::Restart => {
                let before = cluster.books();
                cluster = cluster.restarted(&node);
                assert_eq!(cluster.books(), before, "{}", row.title);
            }
        }
    }
    for name in cluster.pods.keys().cloned().collect::<Vec<_>>() {
        cluster.remove(&name);
    }
    cluster.set_node(&(row.node)());
    assert_eq!((cluster.in_use(), cluster.charged()), (0, 0), "{}", row.title);
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
