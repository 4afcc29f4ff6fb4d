//! What the Hygon class reads, chooses, writes and refuses.
#![allow(clippy::unwrap_used, reason = "a test stops where something is missing")]

use std::sync::Arc;

use serde_json::{Value, json};
use tessera_engine::admission::{Settings, Verdict, review};
use tessera_engine::{Candidates, Defaults, Engine, NodeProblem, Vendor, Vendors, World, text};
use tessera_vendors::hygon::{ALLOCATED, Hygon, REGISTER};
use tessera_wire::config::CountMemoryCore;
use tessera_wire::{NodeView, PodView};

const CARDS: &str = "DCU-A,4,65520,100,DCU-K100,0,true,0,hami:DCU-B,4,65520,100,DCU-K100_AI,0,true,1,hami:";

fn engine() -> Engine {
    let class = Hygon::new(&CountMemoryCore::default());
    Engine::new(Arc::new(Vendors::new(vec![Arc::new(class)])), Defaults::default())
}

fn world(engine: &Engine, register: &str) -> World {
    let mut world = World::new(Arc::clone(engine.vendors()));
    let node = json!({"metadata": {"name": "n1", "annotations": {REGISTER: register}}});
    world.set_node(&NodeView::from_json(&node).unwrap());
    world
}

fn pod(name: &str, annotations: Value, limits: Value) -> Value {
    json!({"metadata": {"name": name, "namespace": "ns", "uid": name, "annotations": annotations},
        "spec": {"containers": [{"name": "c", "resources": {"limits": limits}}]}})
}

/// The text that a pod would be given on the node, or why not.
fn given(world: &World, engine: &Engine, pod: &Value) -> Result<String, String> {
    let demand = engine
        .demand(&PodView::from_json(pod).unwrap())
        .map_err(|e| e.to_string())?;
    let snapshot = world.snapshot();
    let decision = engine.decide(&snapshot, &demand, Candidates::All);
    match decision.winner() {
        Some(winner) => {
            let shares = winner.allocation.shares();
            let text: Vec<String> = shares
                .map(|(_, share)| format!("{} {} {}", share.card, share.memory.get(), share.cores.get()))
                .collect();
            Ok(text.join("; "))
        }
        None => Err(text::hami_node(&decision.refused[0].1)),
    }
}

fn admitted(world: &World, engine: &Engine, pod: &Value) -> Result<(String, Vec<String>), String> {
    match review(pod, "ns", &Settings::default(), engine, &world.snapshot()) {
        Verdict::Allow { patch, warnings, .. } => Ok((serde_json::to_string(&patch).unwrap(), warnings)),
        Verdict::Deny { text, .. } => Err(text),
    }
}

#[test]
fn a_model_is_found_anywhere_in_the_name_unless_it_is_said_to_be_exact() {
    let engine = engine();
    let world = world(&engine, CARDS);
    let on = |key: &str, list: &str| {
        let limits = json!({"hygon.com/dcunum": "1", "hygon.com/dcumem": "1000", "hygon.com/dcucores": "10"});
        given(&world, &engine, &pod("p", json!({key: list}), limits))
    };
    let use_type = "hygon.com/use-dcutype";
    assert_eq!(
        on(use_type, "dcu-k100").unwrap(),
        "DCU-B 1000 10",
        "both fit, the last comes first"
    );
    assert_eq!(on(use_type, "=dcu-k100").unwrap(), "DCU-A 1000 10");
    assert_eq!(on(use_type, "=K100").unwrap_err(), "2/2 CardTypeMismatch");
    assert_eq!(on(use_type, "=DCU-K100, k100_ai").unwrap(), "DCU-B 1000 10");
    let avoid = "hygon.com/nouse-dcutype";
    assert_eq!(on(avoid, "K100").unwrap_err(), "2/2 CardTypeMismatch");
    assert_eq!(on(avoid, "=DCU-K100_AI").unwrap(), "DCU-A 1000 10");
}

#[test]
fn compute_left_out_is_the_whole_card() {
    let engine = engine();
    let mut world = world(&engine, CARDS);
    let first = pod(
        "first",
        json!({"hami.io/vgpu-node": "n1", ALLOCATED: "DCU-A,DCU,1000,10:;"}),
        json!({"hygon.com/dcunum": "1"}),
    );
    assert!(world.set_pod(&PodView::from_json(&first).unwrap()).booked);
    let memory_only = json!({"hygon.com/dcunum": "1", "hygon.com/dcumem": "1000"});
    assert_eq!(
        given(&world, &engine, &pod("p", json!({}), memory_only)).unwrap(),
        "DCU-B 1000 100"
    );
    let two = json!({"hygon.com/dcunum": "2"});
    assert_eq!(
        given(&world, &engine, &pod("p", json!({}), two)).unwrap_err(),
        "1/2 AllocatedCardsInsufficientRequest, 1/2 CardInsufficientMemory"
    );
}

#[test]
fn admission_completes_and_warns_and_refuses_parts_of_several_cards() {
    let engine = engine();
    let world = world(&engine, CARDS);
    let ask = |limits: Value| admitted(&world, &engine, &pod("p", json!({}), limits));

    let (patch, warnings) = ask(json!({"hygon.com/dcumem": "2000"})).unwrap();
    assert!(
        patch.contains(r#""path":"/spec/containers/0/resources/limits/hygon.com~1dcunum","value":"1""#),
        "{patch}"
    );
    assert!(
        warnings[0].contains("without `hygon.com/dcucores` the card is taken whole"),
        "{warnings:?}"
    );
    let (_, warnings) = ask(json!({"hygon.com/dcunum": "1", "hygon.com/dcucores": "20"})).unwrap();
    assert!(
        warnings[0].contains("without `hygon.com/dcumem` all memory"),
        "{warnings:?}"
    );
    let share = json!({"hygon.com/dcunum": "1", "hygon.com/dcumem": "2000", "hygon.com/dcucores": "20"});
    assert!(ask(share).unwrap().1.is_empty());

    assert!(ask(json!({"hygon.com/dcunum": "2"})).is_ok(), "several whole cards");
    let error = ask(json!({"hygon.com/dcunum": "2", "hygon.com/dcumem": "9", "hygon.com/dcucores": "20"})).unwrap_err();
    assert!(
        error.contains("container `c`: `hygon.com/dcucores`: a part of 2 cards"),
        "{error}"
    );
    assert!(error.contains("or write `hygon.com/dcunum: 1`"), "{error}");
    let error = ask(json!({"hygon.com/dcunum": "1", "hygon.com/dcumem": "16Gi"})).unwrap_err();
    assert!(
        error.contains("write 16384: `hygon.com/dcumem` counts MiB, not bytes"),
        "{error}"
    );
}

#[test]
fn a_serial_number_twice_or_a_broken_text_closes_the_node_for_this_class() {
    let class = Hygon::new(&CountMemoryCore::default());
    let decode = |register: &str| {
        let node = json!({"metadata": {"name": "n1", "annotations": {REGISTER: register}}});
        class.decode_node(&NodeView::from_json(&node).unwrap())
    };
    let twice = "DCU-N/A,4,65520,100,DCU-K100,0,true,0,hami:DCU-N/A,4,65520,100,DCU-K100,0,true,1,hami:";
    for text in [twice, "[]", "DCU-A,4,65520:"] {
        let Err(NodeProblem::Unreadable { key, .. }) = decode(text) else {
            panic!("{text} was read");
        };
        assert_eq!(key, REGISTER);
    }
    let engine = engine();
    let world = world(&engine, twice);
    let limits = json!({"hygon.com/dcunum": "1"});
    assert!(given(&world, &engine, &pod("p", json!({}), limits)).is_err());
}
