//! Classes that give units with all they have: Biren's cards and instances, Vastai's cards and dies.
#![allow(clippy::unwrap_used, reason = "a test stops where something is missing")]

use std::sync::Arc;

use serde_json::{Value, json};
use tessera_engine::admission::{Settings, Verdict, review};
use tessera_engine::{Candidates, Defaults, Engine, World, text};
use tessera_types::NodePolicy;
use tessera_wire::config::DeviceConfig;
use tessera_wire::{NodeView, PodView};

const BIREN: &str = "hami.io/node-biren-register";
const VASTAI: &str = "hami.io/node-va-register";

fn engine(config: Value) -> Engine {
    let config: DeviceConfig = serde_json::from_value(config).unwrap();
    Engine::new(
        tessera_vendors::from_config(&config),
        Defaults {
            node_policy: NodePolicy::Binpack,
            card_policy: None,
        },
    )
}

fn biren() -> Engine {
    engine(json!({"biren": {"resourceCountName": "birentech.com/gpu",
        "instanceResources": ["birentech.com/1-2-gpu", "birentech.com/1-4-gpu"]}}))
}

fn vastai() -> Engine {
    engine(json!({"vastai": {"resourceCountName": "vastaitech.com/va"}}))
}

/// A unit; `more` overrides members.
fn unit(id: &str, more: Value) -> Value {
    let mut unit = json!({"id": id, "count": 1, "devmem": 65536, "type": "X106M", "health": true});
    for (name, value) in more.as_object().unwrap() {
        unit[name] = value.clone();
    }
    unit
}

fn die(id: &str, aic: &str) -> Value {
    unit(id, json!({"custominfo": {"DeviceStrategy": "die", "AIC": aic}}))
}

fn world(engine: &Engine, register: &str, nodes: &[(&str, Vec<Value>)]) -> World {
    let mut world = World::new(Arc::clone(engine.vendors()));
    for (name, units) in nodes {
        let annotations = json!({register: json!(units).to_string()});
        let node = NodeView::from_json(&json!({"metadata": {"name": name, "annotations": annotations}})).unwrap();
        assert_eq!(world.set_node(&node).problems, []);
    }
    world
}

fn pod(annotations: Value, limits: Value) -> Value {
    json!({"metadata": {"name": "p", "namespace": "ns", "uid": "p", "annotations": annotations},
        "spec": {"containers": [{"name": "c1", "resources": {"limits": limits}}]}})
}

/// The node and the cards, or the reason of the first node.
fn place(engine: &Engine, world: &World, pod: &Value) -> Result<(String, Vec<String>), String> {
    let demand = engine.demand(&PodView::from_json(pod).unwrap()).unwrap();
    let decision = engine.decide(&world.snapshot(), &demand, Candidates::All);
    match decision.winner() {
        Some(winner) => Ok((
            winner.node.to_string(),
            winner
                .allocation
                .shares()
                .map(|(_, share)| share.card.to_string())
                .collect(),
        )),
        None => Err(text::hami_node(&decision.refused[0].1)),
    }
}

fn cards(engine: &Engine, world: &World, pod: &Value) -> Result<Vec<String>, String> {
    place(engine, world, pod).map(|(_, cards)| cards)
}

fn refusal(engine: &Engine, world: &World, pod: &Value) -> String {
    match review(pod, "ns", &Settings::default(), engine, &world.snapshot()) {
        Verdict::Deny { text, .. } => text,
        verdict => panic!("{verdict:?}"),
    }
}

#[test]
fn an_instance_and_a_whole_card_are_never_given_for_each_other() {
    let engine = biren();
    let half = |id| unit(id, json!({"custominfo": {"svi": 2}}));
    let world = world(
        &engine,
        BIREN,
        &[("n1", vec![unit("whole", json!({})), half("half-0"), half("half-1")])],
    );
    let of = |name: &str, count: &str| cards(&engine, &world, &pod(json!({}), json!({name: count})));
    assert_eq!(of("birentech.com/gpu", "1").unwrap(), ["whole"]);
    assert_eq!(of("birentech.com/1-2-gpu", "2").unwrap(), ["half-1", "half-0"]);
    assert!(of("birentech.com/gpu", "2").is_err());
    assert!(of("birentech.com/1-4-gpu", "1").is_err());
    let both = pod(
        json!({}),
        json!({"birentech.com/gpu": "1", "birentech.com/1-2-gpu": "1"}),
    );
    assert!(refusal(&engine, &world, &both).contains("keep one of the two"));
}

#[test]
fn linked_cards_come_before_cards_of_one_numa_node_and_those_before_others() {
    let engine = biren();
    let numa = |id, numa: i32| unit(id, json!({"numa": numa}));
    let two = pod(json!({}), json!({"birentech.com/gpu": "2"}));
    // Without links: not b and c, the two that are examined first.
    let plain = world(
        &engine,
        BIREN,
        &[("n1", vec![numa("a", 0), numa("b", 0), numa("c", 1)])],
    );
    assert_eq!(cards(&engine, &plain, &two).unwrap(), ["b", "a"]);
    let linked = unit("c", json!({"numa": 1, "custominfo": {"links": ["a:2", "b:1"]}}));
    let linked = world(&engine, BIREN, &[("n1", vec![numa("a", 0), numa("b", 0), linked])]);
    assert_eq!(cards(&engine, &linked, &two).unwrap(), ["c", "a"]);
}

#[test]
fn models_and_ids_are_chosen_by_annotation() {
    let engine = biren();
    let model = |id, model: &str| unit(id, json!({"type": model}));
    let world = world(
        &engine,
        BIREN,
        &[("n1", vec![model("a", "Biren106M"), model("b", "Biren106B")])],
    );
    let of = |annotations: Value| cards(&engine, &world, &pod(annotations, json!({"birentech.com/gpu": "1"})));
    assert_eq!(of(json!({"birentech.com/use-biren": "biren106m"})).unwrap(), ["a"]);
    assert_eq!(of(json!({"birentech.com/nouse-biren": "Biren106B"})).unwrap(), ["a"]);
    assert_eq!(of(json!({"birentech.com/use-gpuuuid": "a"})).unwrap(), ["a"]);
    assert_eq!(
        of(json!({"birentech.com/use-gpuuuid": "c"})).unwrap_err(),
        "2/2 CardUuidMismatch"
    );
}

#[test]
fn a_pod_may_say_whether_it_means_cards_or_dies() {
    let engine = vastai();
    let world = world(
        &engine,
        VASTAI,
        &[("n1", vec![unit("card", json!({})), die("die", "a")])],
    );
    let of = |unit: &str| pod(json!({"vastaitech.com/unit": unit}), json!({"vastaitech.com/va": "1"}));
    assert_eq!(cards(&engine, &world, &of("card")).unwrap(), ["card"]);
    assert_eq!(cards(&engine, &world, &of("die")).unwrap(), ["die"]);
    assert!(cards(&engine, &world, &of("")).is_ok());
    let text = refusal(&engine, &world, &of("chip"));
    assert!(text.contains("`chip`") && text.contains("card or die"), "{text}");
}

#[test]
fn dies_of_one_card_are_preferred_under_either_node_policy() {
    let engine = vastai();
    let apart = vec![die("a0", "a"), die("b0", "b")];
    let together = vec![die("c0", "c"), die("c1", "c")];
    // The lower name would win if all else were equal.
    let world = world(&engine, VASTAI, &[("n1", apart), ("n2", together)]);
    for policy in ["binpack", "spread"] {
        let annotations = json!({"hami.io/node-scheduler-policy": policy});
        let two = pod(annotations, json!({"vastaitech.com/va": "2"}));
        assert_eq!(place(&engine, &world, &two).unwrap().0, "n2", "{policy}");
    }
}

#[test]
fn a_pod_that_is_to_be_alone_gets_no_die_beside_another_pods() {
    let engine = vastai();
    let mut world = world(
        &engine,
        VASTAI,
        &[("n1", vec![die("a0", "a"), die("a1", "a"), die("b0", "b")])],
    );
    let mut other = pod(
        json!({"hami.io/vgpu-node": "n1", "hami.io/Vastai-devices-allocated": "b0,Vastai,0,0:;"}),
        json!({"vastaitech.com/va": "1"}),
    );
    other["metadata"]["uid"] = json!("other");
    assert!(world.set_pod(&PodView::from_json(&other).unwrap()).booked);
    let alone = |count: &str| {
        pod(
            json!({"hami.io/gpu-scheduler-policy": "mutex"}),
            json!({"vastaitech.com/va": count}),
        )
    };
    assert_eq!(cards(&engine, &world, &alone("2")).unwrap(), ["a1", "a0"]);
    other["metadata"]["annotations"]["hami.io/Vastai-devices-allocated"] = json!("a0,Vastai,0,0:;");
    world.set_pod(&PodView::from_json(&other).unwrap());
    assert_eq!(cards(&engine, &world, &alone("1")).unwrap(), ["b0"]);
    assert!(cards(&engine, &world, &alone("2")).is_err());
}
