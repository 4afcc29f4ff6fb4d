//! What the Cambricon class reads from the pools of a node, writes for the vendor's plugin, and refuses.
#![allow(clippy::unwrap_used, reason = "a test stops where something is missing")]

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use tessera_engine::admission::{Settings, Verdict, review};
use tessera_engine::{Candidates, Defaults, Engine, LockKind, NodeProblem, Vendor, Vendors, World, WriteContext, text};
use tessera_vendors::cambricon::{ASSIGNED, ASSIGNED_HAMI, Cambricon, PROFILE};
use tessera_wire::config::CountMemoryCore;
use tessera_wire::{NodeView, PodView};

const COUNT: &str = "cambricon.com/vmlu";
const MEMORY: &str = "cambricon.com/mlu.smlu.vmemory";
const CORES: &str = "cambricon.com/mlu.smlu.vcore";

fn engine(settings: &CountMemoryCore) -> Engine {
    let class = Cambricon::new(settings);
    Engine::new(Arc::new(Vendors::new(vec![Arc::new(class)])), Defaults::default())
}

fn node(name: &str, cores: i64, memory: i64) -> NodeView {
    let pools = json!({CORES: cores.to_string(), MEMORY: memory.to_string()});
    let node = json!({"metadata": {"name": name}, "status": {"capacity": pools, "allocatable": pools}});
    NodeView::from_json(&node).unwrap()
}

fn world(engine: &Engine, nodes: &[NodeView]) -> World {
    let mut world = World::new(Arc::clone(engine.vendors()));
    for node in nodes {
        world.set_node(node);
    }
    world
}

fn pod(containers: Value) -> Value {
    json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u", "annotations": {}}, "spec": {"containers": containers}})
}

fn one(limits: Value) -> Value {
    pod(json!([{"name": "c", "resources": {"limits": limits}}]))
}

/// The limits of the first container after admission, with the warnings.
fn admitted(world: &World, engine: &Engine, pod: &Value) -> Result<(BTreeMap<String, String>, Vec<String>), String> {
    match review(pod, "ns", &Settings::default(), engine, &world.snapshot()) {
        Verdict::Allow { patch, warnings, .. } => {
            let limits = serde_json::to_value(&patch)
                .unwrap()
                .as_array()
                .unwrap()
                .iter()
                .filter_map(|op| {
                    let (_, name) = op["path"].as_str()?.split_once("/limits/")?;
                    Some((name.replace("~1", "/"), op["value"].as_str()?.to_owned()))
                })
                .collect();
            Ok((limits, warnings))
        }
        Verdict::Deny { text, .. } => Err(text),
    }
}

#[test]
fn pools_that_are_not_of_whole_equal_cards_close_the_node() {
    let class = Cambricon::new(&CountMemoryCore::default());
    assert_eq!(class.decode_node(&node("n", 200, 180)).unwrap().len(), 2);
    assert!(matches!(
        class.decode_node(&node("n", 0, 180)),
        Err(NodeProblem::Absent)
    ));
    for (cores, memory, resource, words) in [
        (250, 100, CORES, "no number of whole cards"),
        (200, 181, MEMORY, "equal cards cannot have"),
        (100, 0, MEMORY, "serves no memory"),
        (200, 200, MEMORY, "--min-dsmlu-unit=256"),
        (1_000_000, 1_000_000_000, CORES, "more cards than any node has"),
    ] {
        let Err(NodeProblem::Capacity { resource: named, fault }) = class.decode_node(&node("n", cores, memory)) else {
            panic!("{cores} and {memory} were read");
        };
        assert_eq!(named, resource);
        assert!(fault.contains(words), "{fault}");
    }
    let engine = engine(&CountMemoryCore::default());
    let world = world(&engine, &[node("n", 250, 100)]);
    let demand = engine
        .demand(&PodView::from_json(&one(json!({COUNT: "1"}))).unwrap())
        .unwrap();
    let decision = engine.decide(&world.snapshot(), &demand, Candidates::All);
    assert!(decision.winner().is_none());
    let why = text::node(&decision.refused[0].1);
    assert!(why.contains("250"), "{why}");
}

#[test]
fn nothing_allocatable_any_more_means_broken_cards() {
    let class = Cambricon::new(&CountMemoryCore::default());
    let mut gone = node("n", 200, 180);
    gone.allocatable.insert(CORES.to_owned(), tessera_wire::Quantity::of(0));
    assert!(class.decode_node(&gone).unwrap().iter().all(|card| !card.healthy));
}

#[test]
fn the_plugin_finds_its_profile_and_both_spellings_of_the_mark() {
    let engine = engine(&CountMemoryCore::default());
    let world = world(&engine, &[node("n1", 200, 180)]);
    let pod = one(json!({COUNT: "1", MEMORY: "20", CORES: "10"}));
    let demand = engine.demand(&PodView::from_json(&pod).unwrap()).unwrap();
    let snapshot = world.snapshot();
    let decision = engine.decide(&snapshot, &demand, Candidates::All);
    let winner = decision.winner().unwrap();
    let at = WriteContext {
        node: &winner.node,
        now_seconds: 1,
        cards: &[],
    };
    let written = engine.annotations(&winner.allocation, &demand, &at);
    assert_eq!(written[PROFILE], "1_10_20");
    assert_eq!((&*written[ASSIGNED], &*written[ASSIGNED_HAMI]), ("false", "false"));
    assert_eq!(ASSIGNED, "CAMBRICON_DSMLU_ASSIGHED", "the plugin's own spelling");
    let class = Cambricon::new(&CountMemoryCore::default());
    let lock = LockKind::Timed {
        key: "cambricon.com/dsmlu.lock".to_owned(),
        lapses_seconds: 120,
    };
    assert_eq!(class.node_lock(), lock);
    for key in [PROFILE, ASSIGNED, ASSIGNED_HAMI, "CAMBRICON_DSMLU_PROFILE_INSTANCE"] {
        assert!(class.keys().allocation().any(|own| own == key), "{key} may be forged");
    }
}

#[test]
fn a_whole_card_is_written_out_when_the_cluster_has_one_size() {
    let engine = engine(&CountMemoryCore::default());
    let bare = one(json!({COUNT: "1"}));
    let same = world(&engine, &[node("n1", 200, 180), node("n2", 100, 90)]);
    let (limits, _) = admitted(&same, &engine, &bare).unwrap();
    let expected = BTreeMap::from([
        (MEMORY.to_owned(), "90".to_owned()),
        (CORES.to_owned(), "100".to_owned()),
    ]);
    assert_eq!(limits, expected);
    let (limits, _) = admitted(&same, &engine, &one(json!({MEMORY: "10"}))).unwrap();
    assert_eq!(
        (limits[COUNT].as_str(), limits[CORES].as_str(), limits.len()),
        ("1", "100", 2)
    );

    let mixed = world(&engine, &[node("n1", 200, 180), node("n2", 100, 192)]);
    let (limits, warnings) = admitted(&mixed, &engine, &bare).unwrap();
    assert!(limits.is_empty());
    assert!(
        warnings
            .iter()
            .any(|text| text.contains("write the card's memory in units of 256 MiB")),
        "{warnings:?}"
    );
}

#[test]
fn what_the_plugin_cannot_serve_is_refused() {
    let engine = engine(&CountMemoryCore::default());
    let world = world(&engine, &[node("n1", 200, 180)]);
    let share = json!({"limits": {COUNT: "1", MEMORY: "4", CORES: "10"}});
    let refused = |pod: &Value| admitted(&world, &engine, pod).unwrap_err();
    let several = refused(&one(json!({COUNT: "2", MEMORY: "4", CORES: "10"})));
    assert!(
        several.contains("2 cards are asked for") && several.contains("write `cambricon.com/vmlu: 1`"),
        "{several}"
    );
    let two = refused(&pod(
        json!([{"name": "a", "resources": share}, {"name": "b", "resources": share}]),
    ));
    assert!(two.contains("container `b` asks for a card too"), "{two}");
    let mut init = pod(json!([{"name": "a"}]));
    init["spec"]["initContainers"] = json!([{"name": "i", "resources": share}]);
    assert!(refused(&init).contains("no card to an init container"));
    assert!(refused(&one(json!({COUNT: "1", MEMORY: "4", CORES: "0"}))).contains("write a percentage of 1 to 100"));
    assert!(refused(&one(json!({COUNT: "1", MEMORY: "4Gi"}))).contains("write 16: "));
    let sidecar = pod(json!([{"name": "a", "resources": share}, {"name": "b", "resources": {"limits": {"cpu": "1"}}}]));
    assert!(admitted(&world, &engine, &sidecar).is_ok());
}

#[test]
fn models_count_where_the_plugin_names_them() {
    let named = CountMemoryCore {
        resource_memory_name: "cambricon.com/mlu370.smlu.vmemory".to_owned(),
        resource_core_name: "cambricon.com/mlu370.smlu.vcore".to_owned(),
        ..CountMemoryCore::default()
    };
    let fits = |settings: &CountMemoryCore, pools: Value| {
        let engine = engine(settings);
        let node = json!({"metadata": {"name": "n1"}, "status": {"capacity": pools}});
        let world = world(&engine, &[NodeView::from_json(&node).unwrap()]);
        let mut pod = one(json!({COUNT: "1"}));
        pod["metadata"]["annotations"] = json!({"cambricon.com/use-mlutype": "MLU590"});
        let demand = engine.demand(&PodView::from_json(&pod).unwrap()).unwrap();
        engine
            .decide(&world.snapshot(), &demand, Candidates::All)
            .winner()
            .is_some()
    };
    assert!(fits(&CountMemoryCore::default(), json!({CORES: "100", MEMORY: "90"})));
    let pools = json!({"cambricon.com/mlu370.smlu.vcore": "100", "cambricon.com/mlu370.smlu.vmemory": "90"});
    assert!(!fits(&named, pools));
}
