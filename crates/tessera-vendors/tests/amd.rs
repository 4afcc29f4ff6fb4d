//! AMD through the whole engine, as HAMi's plugin on the node needs it.
#![allow(clippy::unwrap_used, reason = "a test stops where something is missing")]

use std::sync::Arc;

use serde_json::{Value, json};
use tessera_engine::{Candidates, Defaults, Engine, World, WriteContext, text};
use tessera_vendors::from_config;
use tessera_wire::config::DeviceConfig;
use tessera_wire::{NodeView, PodView};

const TO_ALLOCATE: &str = "hami.io/amd-devices-to-allocate";
const ALLOCATED: &str = "hami.io/amd-devices-allocated";

fn engine() -> Engine {
    let config: DeviceConfig = serde_json::from_value(json!({"amd": {}})).unwrap();
    Engine::new(from_config(&config), Defaults::default())
}

fn node(cards: &Value) -> NodeView {
    let annotations = json!({"hami.io/node-amd-register": cards.to_string()});
    let counts = json!({"amd.com/gpu": "20"});
    NodeView::from_json(&json!({
        "metadata": {"name": "n1", "annotations": annotations},
        "status": {"capacity": counts, "allocatable": counts},
    }))
    .unwrap()
}

fn card(id: &str, model: &str, units: u32) -> Value {
    json!({"id": id, "count": 10, "devmem": 196_608, "devcore": units, "type": model, "health": true})
}

fn limits(memory: u32, cores: Option<u32>) -> Value {
    let mut limits = json!({"amd.com/gpu": "1", "amd.com/gpumem": memory.to_string()});
    if let Some(cores) = cores {
        limits["amd.com/gpucores"] = json!(cores.to_string());
    }
    json!({"limits": limits})
}

/// Places the pod and books it: what is written on it, or why no node takes it.
fn place(engine: &Engine, world: &mut World, name: &str, spec: Value) -> Result<Value, String> {
    let mut pod = json!({"metadata": {"name": name, "namespace": "ns", "uid": name}, "spec": spec});
    let demand = engine.demand(&PodView::from_json(&pod).unwrap()).unwrap();
    let snapshot = world.snapshot();
    let decision = engine.decide(&snapshot, &demand, Candidates::All);
    let Some(fit) = decision.winner() else {
        return Err(text::hami_node(&decision.refused.first().unwrap().1));
    };
    let at = WriteContext {
        node: &fit.node,
        now_seconds: 1_700_000_000,
        cards: snapshot.node("n1").unwrap().cards(),
    };
    pod["metadata"]["annotations"] = json!(engine.annotations(&fit.allocation, &demand, &at));
    let change = world.set_pod(&PodView::from_json(&pod).unwrap());
    assert!(change.booked, "{:?}", change.problems);
    Ok(pod["metadata"]["annotations"].clone())
}

fn one(memory: u32, cores: Option<u32>) -> Value {
    json!({"containers": [{"name": "c", "resources": limits(memory, cores)}]})
}

#[test]
fn without_a_claim_pods_share_a_card_but_not_with_those_whose_units_are_masked() {
    let engine = engine();
    let cards = json!([card("A", "AMD Instinct MI300X", 304)]);
    let mut world = World::new(Arc::clone(engine.vendors()));
    world.set_node(&node(&cards));
    assert_eq!(
        place(&engine, &mut world, "a", one(1000, None)).unwrap()[ALLOCATED],
        "A,AMD Instinct MI300X,1000,0:;"
    );
    place(&engine, &mut world, "b", one(1000, None)).unwrap();
    place(&engine, &mut world, "c", one(1000, Some(25))).unwrap();
    // HAMi's plugin would fail to give it all units.
    assert_eq!(
        place(&engine, &mut world, "d", one(1000, None)),
        Err("1/1 CardInsufficientCore".to_owned())
    );
}

#[test]
fn units_are_booked_as_they_are_masked() {
    let engine = engine();
    let mut world = World::new(Arc::clone(engine.vendors()));
    // Pairs on this chip: 1 % of 60 is a pair, and 29 pairs are left.
    world.set_node(&node(&json!([card("A", "AMD Radeon RX 7900", 60)])));
    assert_eq!(
        place(&engine, &mut world, "a", one(1000, Some(1))).unwrap()[ALLOCATED],
        "A,AMD Radeon RX 7900,1000,2:;"
    );
    assert_eq!(
        place(&engine, &mut world, "b", one(1000, Some(99))),
        Err("1/1 CardInsufficientCore".to_owned())
    );
    place(&engine, &mut world, "c", one(1000, Some(96))).unwrap();
    let snapshot = world.snapshot();
    assert_eq!(snapshot.node("n1").unwrap().usage()[0].usage.cores.get(), 60);
}

#[test]
fn the_plugin_finds_its_container_behind_init_containers() {
    let engine = engine();
    let mut world = World::new(Arc::clone(engine.vendors()));
    world.set_node(&node(&json!([card("A", "AMD Instinct MI300X", 304)])));
    let device = "A,AMD Instinct MI300X,1000,76:";
    let init =
        json!({"initContainers": [{"name": "i"}], "containers": [{"name": "c", "resources": limits(1000, Some(25))}]});
    let written = place(&engine, &mut world, "a", init).unwrap();
    assert_eq!(written[ALLOCATED], format!(";{device};"));
    // The plugin counts app containers, and there is one.
    assert_eq!(written[TO_ALLOCATE], format!("{device};"));
    let plain = json!({"containers": [{"name": "p"}, {"name": "c", "resources": limits(1000, Some(25))}]});
    let written = place(&engine, &mut world, "b", plain).unwrap();
    assert_eq!(written[TO_ALLOCATE], format!(";{device};"));
    assert_eq!(written[TO_ALLOCATE], written[ALLOCATED]);
}

#[test]
fn units_of_init_containers_are_kept_as_the_plugin_keeps_them() {
    let engine = engine();
    let spec = json!({"initContainers": [{"name": "i", "resources": limits(1000, Some(60))}],
        "containers": [{"name": "c", "resources": limits(1000, Some(60))}]});
    let mut world = World::new(Arc::clone(engine.vendors()));
    world.set_node(&node(&json!([card("A", "AMD Instinct MI300X", 304)])));
    assert_eq!(
        place(&engine, &mut world, "a", spec.clone()),
        Err("1/1 CardInsufficientCore".to_owned())
    );
    world.set_node(&node(&json!([
        card("A", "AMD Instinct MI300X", 304),
        card("B", "AMD Instinct MI300X", 304)
    ])));
    let written = place(&engine, &mut world, "a", spec).unwrap();
    let text = written[ALLOCATED].as_str().unwrap();
    assert!(text.contains("A,") && text.contains("B,"), "{text}");
}
