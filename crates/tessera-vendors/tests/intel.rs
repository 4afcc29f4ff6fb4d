//! Intel GPUs and Gaudi through the whole engine: what two pods may share, what one pod is given.
#![allow(clippy::unwrap_used, reason = "a test stops where something is missing")]

use std::sync::Arc;

use serde_json::{Value, json};
use tessera_engine::{AssumeError, Assumption, Candidates, Decision, Defaults, Engine, World, WriteContext, text};
use tessera_types::{Demand, ReasonKind};
use tessera_vendors::from_config;
use tessera_wire::config::DeviceConfig;
use tessera_wire::{NodeView, PodView};

const GPU: &str = "hami.io/node-intel-gpu-register";
const GAUDI: &str = "hami.io/node-gaudi-register";

fn engine() -> Engine {
    let config: DeviceConfig = serde_json::from_value(json!({"intel": {}, "gaudi": {}})).unwrap();
    Engine::new(from_config(&config), Defaults::default())
}

fn world(engine: &Engine, nodes: &[(&str, &str, Value)]) -> World {
    let mut world = World::new(Arc::clone(engine.vendors()));
    for (name, key, cards) in nodes {
        world.set_node(&node(name, key, cards));
    }
    world
}

fn node(name: &str, key: &str, cards: &Value) -> NodeView {
    let name_of_count = if key == GPU { "intel.com/gpu" } else { "habana.ai/gaudi" };
    let counts = json!({name_of_count: "100"});
    NodeView::from_json(&json!({
        "metadata": {"name": name, "annotations": {key: cards.to_string()}},
        "status": {"capacity": counts, "allocatable": counts},
    }))
    .unwrap()
}

fn unit(id: &str, mode: &str, memory: u64, custom: Value) -> Value {
    let count = if mode == "vf" { 1 } else { 10 };
    json!({"id": id, "count": count, "devmem": memory, "devcore": 100, "type": "IntelGPU-Max-1550", "mode": mode,
        "health": true, "custominfo": custom})
}

fn gaudi(id: usize, numa: usize) -> Value {
    // A node may claim what it likes: a Gaudi is given once.
    json!({"id": format!("S{id}"), "index": id, "count": 10, "devmem": 98304, "devcore": 100, "type": "Gaudi2",
        "numa": numa, "mode": "card", "health": true, "custominfo": {"module": id}})
}

fn pod(name: &str, annotations: Value, containers: &[Value]) -> PodView {
    let containers: Vec<Value> = containers
        .iter()
        .enumerate()
        .map(|(at, limits)| json!({"name": format!("c{at}"), "resources": {"limits": limits}}))
        .collect();
    PodView::from_json(&json!({
        "metadata": {"name": name, "namespace": "ns", "uid": name, "annotations": annotations},
        "spec": {"containers": containers},
    }))
    .unwrap()
}

fn decide(engine: &Engine, world: &World, pod: &PodView) -> (Demand, Decision) {
    let demand = engine.demand(pod).unwrap();
    let decision = engine.decide(&world.snapshot(), &demand, Candidates::All);
    (demand, decision)
}

fn ids(decision: &Decision) -> Vec<String> {
    let fit = decision.winner().unwrap();
    fit.allocation
        .shares()
        .map(|(_, share)| share.card.to_string())
        .collect()
}

fn refusal(decision: &Decision) -> String {
    text::hami_node(&decision.refused.first().unwrap().1)
}

fn assume(engine: &Engine, world: &mut World, pod: &PodView) -> Result<(), AssumeError> {
    let (demand, decision) = decide(engine, world, pod);
    assume_as(world, &demand, &decision)
}

fn assume_as(world: &mut World, demand: &Demand, decision: &Decision) -> Result<(), AssumeError> {
    let fit = decision.winner().unwrap();
    let roles: Vec<_> = demand.containers.iter().map(|container| container.role).collect();
    world.assume(&Assumption {
        pod: &demand.pod,
        node: &fit.node,
        allocation: Arc::clone(&fit.allocation),
        roles: &roles,
        priority: 0,
        facts: &demand.facts,
        now: 0,
        expires_at: 60,
    })
}

#[test]
fn a_card_and_its_tiles_are_one_budget_even_for_decisions_made_at_once() {
    let engine = engine();
    let cards = json!([
        unit("X", "card", 131_072, json!({"bdf": "0000:03:00.0"})),
        unit("X/t0", "tile", 65_536, json!({"card": "X", "tile": 0})),
        unit("X/t1", "tile", 65_536, json!({"card": "X", "tile": 1})),
    ]);
    let mut world = world(&engine, &[("n1", GPU, cards)]);
    let tile = pod(
        "tile",
        json!({"intel.com/gpu-unit": "tile"}),
        &[json!({"intel.com/gpu": 1})],
    );
    let whole = pod(
        "whole",
        json!({"intel.com/gpu-unit": "card"}),
        &[json!({"intel.com/gpu": 1})],
    );
    let (demand, decision) = decide(&engine, &world, &whole);
    assert_eq!(ids(&decision), ["X"]);
    assume(&engine, &mut world, &tile).unwrap();
    // Decided before the tile was given away.
    let Err(AssumeError::Taken(reason)) = assume_as(&mut world, &demand, &decision) else {
        panic!("a card was booked over its tile");
    };
    assert_eq!(reason.kind, ReasonKind::PartitionConflict);
    assert!(refusal(&decide(&engine, &world, &whole).1).contains("1/3 CardPartitionConflict"));
    // The other tile is free.
    let other = pod(
        "other",
        json!({"intel.com/gpu-unit": "tile"}),
        &[json!({"intel.com/gpu": 1})],
    );
    assume(&engine, &mut world, &other).unwrap();
    // One pod cannot take the card for one container and a tile for the next either.
    let engine_world = self::world(
        &engine,
        &[(
            "n1",
            GPU,
            json!([
                unit("Y", "card", 4096, json!({})),
                unit("Y/t0", "tile", 2048, json!({"card": "Y"}))
            ]),
        )],
    );
    let both = pod(
        "both",
        json!({}),
        &[json!({"intel.com/gpu": 1}), json!({"intel.com/gpu": 1})],
    );
    assert!(decide(&engine, &engine_world, &both).1.winner().is_none());
}

#[test]
fn a_card_given_whole_stays_given_when_its_node_begins_to_register_tiles() {
    let engine = engine();
    let mut world = world(&engine, &[("n1", GPU, json!([unit("X", "card", 131_072, json!({}))]))]);
    assume(
        &engine,
        &mut world,
        &pod("p", json!({}), &[json!({"intel.com/gpu": 1})]),
    )
    .unwrap();
    world.set_node(&node(
        "n1",
        GPU,
        &json!([unit("X/t0", "tile", 65_536, json!({"card": "X"}))]),
    ));
    let next = pod("q", json!({}), &[json!({"intel.com/gpu": 1})]);
    assert_eq!(refusal(&decide(&engine, &world, &next).1), "1/1 CardPartitionConflict");
}

#[test]
fn virtual_functions_are_held_whole_and_the_smallest_goes_first() {
    let engine = engine();
    let cards = json!([
        unit("V16", "vf", 16_384, json!({"pf": "0000:03:00.0"})),
        unit("V8", "vf", 8192, json!({"pf": "0000:03:00.0"})),
        unit("C", "card", 24_480, json!({"bdf": "0000:83:00.0"})),
    ]);
    let mut world = world(&engine, &[("n1", GPU, cards)]);
    let small = |name: &str| {
        pod(
            name,
            json!({}),
            &[json!({"intel.com/gpu": 1, "intel.com/gpumem": 4000})],
        )
    };
    for (name, expected) in [("a", "V8"), ("b", "V16"), ("c", "C")] {
        let (demand, decision) = decide(&engine, &world, &small(name));
        assert_eq!(ids(&decision), [expected]);
        assume_as(&mut world, &demand, &decision).unwrap();
    }
    let snapshot = world.snapshot();
    let node = snapshot.node("n1").unwrap();
    let held: Vec<u64> = node.usage().iter().map(|used| used.usage.memory.get()).collect();
    assert_eq!(held, [16_384, 8192, 4000]);
}

#[test]
fn units_of_one_request_are_of_one_kind_and_linked_if_that_is_demanded() {
    let engine = engine();
    let linked = |id: &str, peer: &str| unit(id, "card", 65_536, json!({"links": {peer: 8}}));
    let cards = json!([
        linked("A", "C"),
        unit("B", "card", 65_536, json!({})),
        linked("C", "A"),
        unit("V", "vf", 65_536, json!({}))
    ]);
    let world = world(&engine, &[("n1", GPU, cards)]);
    let pair = |annotations: Value| {
        pod(
            "p",
            annotations,
            &[json!({"intel.com/gpu": 2, "intel.com/gpumem": 1000})],
        )
    };
    let (_, decision) = decide(&engine, &world, &pair(json!({"intel.com/xelink": "true"})));
    let mut chosen = ids(&decision);
    chosen.sort();
    assert_eq!(chosen, ["A", "C"]);
    let four = pod("q", json!({}), &[json!({"intel.com/gpu": 4, "intel.com/gpumem": 1000})]);
    assert_eq!(
        refusal(&decide(&engine, &world, &four).1),
        "1/4 ModeNotFit, 3/4 AllocatedCardsInsufficientRequest"
    );
}

#[test]
fn nodes_with_walls_are_kept_for_pods_that_demand_one() {
    let engine = engine();
    let card = |id: &str, wall: &str| {
        json!([unit(
            id,
            "card",
            24_480,
            json!({"driver": "xe", "bdf": "b", "enf": wall})
        )])
    };
    let world = world(
        &engine,
        &[("a-walled", GPU, card("A", "D")), ("b-plain", GPU, card("B", "O"))],
    );
    let limits = json!({"intel.com/gpu": 1, "intel.com/gpumem": 4000});
    for policy in ["binpack", "spread"] {
        let any = json!({"hami.io/node-scheduler-policy": policy});
        assert_eq!(
            ids(&decide(&engine, &world, &pod("p", any, std::slice::from_ref(&limits))).1),
            ["B"]
        );
    }
    let hard = pod("q", json!({"intel.com/isolation": "hard"}), &[limits]);
    let (demand, decision) = decide(&engine, &world, &hard);
    assert_eq!(ids(&decision), ["A"]);
    let fit = decision.winner().unwrap();
    let snapshot = world.snapshot();
    let at = WriteContext {
        node: &fit.node,
        now_seconds: 0,
        cards: snapshot.node("a-walled").unwrap().cards(),
    };
    let written = engine.annotations(&fit.allocation, &demand, &at);
    assert_eq!(written["hami.io/intel-gpu-devices-allocated"], "A,IntelGPU,4000,0:;");
    let placement: Value = serde_json::from_str(&written["hami.io/intel-gpu-placement"]).unwrap();
    assert_eq!(
        placement,
        json!([{"containerIndex": 0, "deviceIndex": 0, "uuid": "A", "unit": "card", "driver": "xe", "bdf": "b", "level": "D"}])
    );
}

#[test]
fn gaudi_cards_are_given_once_and_in_halves_of_a_server() {
    let engine = engine();
    let cards: Vec<Value> = (0..8).map(|id| gaudi(id, id / 4)).collect();
    let mut world = world(&engine, &[("n1", GAUDI, json!(cards))]);
    let some = |name: &str, count: u32| pod(name, json!({}), &[json!({"habana.ai/gaudi": count})]);
    let half = |decision: &Decision| -> Vec<usize> {
        let mut halves: Vec<usize> = ids(decision)
            .iter()
            .map(|id| id[1..].parse::<usize>().unwrap() / 4)
            .collect();
        halves.sort_unstable();
        halves.dedup();
        halves
    };
    let (demand, decision) = decide(&engine, &world, &some("two", 2));
    let first = half(&decision);
    assert_eq!(first.len(), 1);
    assume_as(&mut world, &demand, &decision).unwrap();
    // Four fit in the other half only; two more complete the half that is begun.
    let (_, four) = decide(&engine, &world, &some("four", 4));
    assert_eq!(half(&four).len(), 1);
    assert_ne!(half(&four), first);
    assert_eq!(half(&decide(&engine, &world, &some("two-more", 2)).1), first);
    // Never refused for the wiring.
    let (demand, six) = decide(&engine, &world, &some("six", 6));
    assert_eq!(ids(&six).len(), 6);
    assume_as(&mut world, &demand, &six).unwrap();
    assert_eq!(
        refusal(&decide(&engine, &world, &some("late", 1)).1),
        "8/8 ExclusiveDeviceAllocateConflict"
    );
    // `Gaudi` is a generation, not a part of the name of all of them.
    let engine_world = self::world(&engine, &[("n1", GAUDI, json!([gaudi(0, 0)]))]);
    let other = pod(
        "p",
        json!({"gaudi.intel.com/use-type": "Gaudi"}),
        &[json!({"habana.ai/gaudi": 1})],
    );
    assert_eq!(
        refusal(&decide(&engine, &engine_world, &other).1),
        "1/1 CardTypeMismatch"
    );
}

#[test]
fn cards_of_habanas_own_plugin_are_counted() {
    let engine = engine();
    let mut world = World::new(Arc::clone(engine.vendors()));
    let counted = |allocatable: u32| {
        NodeView::from_json(&json!({"metadata": {"name": "n1"}, "status": {
            "capacity": {"habana.ai/gaudi": "4"}, "allocatable": {"habana.ai/gaudi": allocatable.to_string()}}}))
        .unwrap()
    };
    world.set_node(&counted(4));
    let three = pod("p", json!({}), &[json!({"habana.ai/gaudi": 3})]);
    assume(&engine, &mut world, &three).unwrap();
    let two = pod("q", json!({}), &[json!({"habana.ai/gaudi": 2})]);
    assert_eq!(refusal(&decide(&engine, &world, &two).1), "NodeInsufficientDevice");
    // A broken card is not given out any more.
    world.set_node(&counted(3));
    let one = pod("r", json!({}), &[json!({"habana.ai/gaudi": 1})]);
    assert!(decide(&engine, &world, &one).1.winner().is_none());
}
