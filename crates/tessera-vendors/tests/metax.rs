//! MetaX: who may share a card with whom, which mode a node is in, what admission refuses.
#![allow(clippy::unwrap_used, reason = "a test stops where something is missing")]

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};
use tessera_engine::admission::{Settings, Verdict, review};
use tessera_engine::{AssumeError, Assumption, Booking, Candidates, Decision, Defaults, Engine, World};
use tessera_types::{ContainerRole, Demand, Keyword, ReasonKind};
use tessera_wire::config::DeviceConfig;
use tessera_wire::{NodeView, PodView};

const QOS: &str = "metax-tech.com/sgpu-qos-policy";
const APP: &str = "metax-tech.com/sgpu-app-class";
const REGISTER: &str = "metax-tech.com/node-gpu-devices";

fn engine() -> Engine {
    let config: DeviceConfig = serde_json::from_value(json!({"metax": {
        "resourceCountName": "metax-tech.com/gpu", "resourceVCountName": "metax-tech.com/sgpu",
        "resourceVMemoryName": "metax-tech.com/vmemory", "resourceVCoreName": "metax-tech.com/vcore",
    }}))
    .unwrap();
    Engine::new(tessera_vendors::from_config(&config), Defaults::default())
}

fn card(id: &str) -> Value {
    json!({"uuid": id, "totalDevCount": 16, "totalCompute": 100, "totalVRam": 65536, "healthy": true,
        "qosPolicy": "best-effort"})
}

fn node(annotations: Value, capacity: Value, allocatable: Value) -> NodeView {
    NodeView::from_json(&json!({
        "metadata": {"name": "n1", "annotations": annotations},
        "status": {"capacity": capacity, "allocatable": allocatable},
    }))
    .unwrap()
}

fn shared_node(cards: &[Value]) -> NodeView {
    node(json!({REGISTER: json!(cards).to_string()}), json!({}), json!({}))
}

fn world(engine: &Engine, node: &NodeView) -> World {
    let mut world = World::new(Arc::clone(engine.vendors()));
    assert_eq!(world.set_node(node).problems, []);
    world
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

fn share(cores: u32, gib: u32) -> Value {
    json!({"metax-tech.com/sgpu": "1", "metax-tech.com/vcore": cores.to_string(),
        "metax-tech.com/vmemory": gib.to_string()})
}

fn decide(engine: &Engine, world: &World, demand: &Demand) -> Decision {
    engine.decide(&world.snapshot(), demand, Candidates::All)
}

fn assume(world: &mut World, demand: &Demand, decision: &Decision) -> Result<(), AssumeError> {
    let roles: Vec<ContainerRole> = demand.containers.iter().map(|container| container.role).collect();
    let winner = decision.winner().unwrap();
    world.assume(&Assumption {
        pod: &demand.pod,
        roles: &roles,
        node: &winner.node,
        allocation: Arc::clone(&winner.allocation),
        priority: 0,
        facts: &demand.facts,
        now: 0,
        expires_at: 60,
    })
}

/// Decides and books; whether it fits.
fn place(engine: &Engine, world: &mut World, pod: &PodView) -> bool {
    let demand = engine.demand(pod).unwrap();
    let decision = decide(engine, world, &demand);
    decision.best.is_some() && assume(world, &demand, &decision).is_ok()
}

fn closed(engine: &Engine, node: &NodeView, class: &str) -> Option<String> {
    let mut world = World::new(Arc::clone(engine.vendors()));
    world.set_node(node);
    let snapshot = world.snapshot();
    let class = Keyword::new(class).unwrap();
    snapshot.node("n1")?.class(&class)?.closed.clone()
}

#[test]
fn two_policies_never_share_a_card_not_even_when_decided_at_once() {
    let engine = engine();
    let mut world = world(&engine, &shared_node(&[card("GPU-a")]));
    let of = |name: &str, policy: &str| {
        engine
            .demand(&pod(name, json!({QOS: policy}), &[share(10, 1)]))
            .unwrap()
    };
    let (one, other) = (of("one", "fixed-share"), of("other", "burst-share"));
    // Both see an empty card.
    let (first, second) = (decide(&engine, &world, &one), decide(&engine, &world, &other));
    assert_eq!(assume(&mut world, &one, &first), Ok(()));
    match assume(&mut world, &other, &second) {
        Err(AssumeError::Taken(reason)) => assert_eq!(reason.kind, ReasonKind::QosMismatch),
        outcome => panic!("{outcome:?}"),
    }
    // The first is known by its assumption alone, and the same policy may join it.
    assert_eq!(decide(&engine, &world, &of("other", "burst-share")).best, None);
    assert!(decide(&engine, &world, &of("third", "fixed-share")).best.is_some());
    // Once it is given back, the card is free for any policy again.
    assert!(world.forget(&one.pod.uid));
    assert!(decide(&engine, &world, &of("other", "burst-share")).best.is_some());
    assert_eq!(world.audit(), []);
}

#[test]
fn a_restarted_scheduler_knows_the_policy_of_a_card_by_its_pods() {
    let engine = engine();
    let mut first = world(&engine, &shared_node(&[card("GPU-a")]));
    let view = pod("one", json!({QOS: "fixed-share"}), &[share(10, 1)]);
    let demand = engine.demand(&view).unwrap();
    let decision = decide(&engine, &first, &demand);
    assume(&mut first, &demand, &decision).unwrap();
    let winner = decision.winner().unwrap();
    let at = tessera_engine::WriteContext {
        node: &winner.node,
        now_seconds: 1_700_000_000,
        cards: &[],
    };
    let mut written = view.clone();
    written
        .annotations
        .extend(engine.annotations(&winner.allocation, &demand, &at));
    assert_eq!(
        written.annotations["metax-tech.com/predicate-time"],
        "1700000000000000000"
    );

    let mut second = world(&engine, &shared_node(&[card("GPU-a")]));
    assert!(second.set_pod(&written).booked);
    assert!(!place(
        &engine,
        &mut second,
        &pod("a", json!({QOS: "best-effort"}), &[share(10, 1)])
    ));
    assert!(place(
        &engine,
        &mut second,
        &pod("b", json!({QOS: "fixed-share"}), &[share(10, 1)])
    ));
}

#[test]
fn online_pods_claim_no_compute_and_share_with_their_class_only() {
    let engine = engine();
    let mut world = world(&engine, &shared_node(&[card("GPU-a")]));
    let online = |name: &str| {
        pod(
            name,
            json!({APP: "online"}),
            &[json!({"metax-tech.com/sgpu": "1", "metax-tech.com/vmemory": "4"})],
        )
    };
    let offline = json!({APP: "offline", QOS: "best-effort"});
    for (name, cores) in [("batch", 60), ("more", 40)] {
        assert!(place(
            &engine,
            &mut world,
            &pod(name, offline.clone(), &[share(cores, 4)])
        ));
    }
    assert!(place(&engine, &mut world, &online("a")));
    assert!(place(&engine, &mut world, &online("b")));
    assert!(!place(&engine, &mut world, &pod("late", offline, &[share(1, 1)])));
    assert!(!place(
        &engine,
        &mut world,
        &pod("plain", json!({QOS: "best-effort"}), &[share(1, 1)])
    ));
    let usage = world.snapshot().node("n1").unwrap().usage()[0].usage;
    assert_eq!((usage.slots, usage.memory.get(), usage.cores.get()), (4, 16384, 100));
}

#[test]
fn containers_of_a_pod_that_share_a_card_are_not_taken_for_one_that_has_it_alone() {
    let engine = engine();
    let mut world = world(&engine, &shared_node(&[card("GPU-a")]));
    let qos = json!({QOS: "best-effort"});
    // Together all of the compute, in two shares, beside a pod that claims none.
    assert!(place(&engine, &mut world, &pod("idle", qos.clone(), &[share(0, 1)])));
    assert!(place(
        &engine,
        &mut world,
        &pod("two", qos.clone(), &[share(50, 1), share(50, 1)])
    ));
    // Now all compute is promised.
    assert!(!place(&engine, &mut world, &pod("late", qos, &[share(0, 1)])));
}

#[test]
fn a_node_is_in_one_mode_and_what_is_left_of_the_other_gives_no_card() {
    let engine = engine();
    let (whole, shared) = ("metax-tech.com/gpu", "metax-tech.com/sgpu");
    let register = json!({REGISTER: json!([card("GPU-a")]).to_string()});
    let both = |gpu: &str, sgpu: &str| {
        let counts = json!({whole: gpu, shared: sgpu});
        node(register.clone(), counts.clone(), counts)
    };
    assert_eq!(closed(&engine, &both("0", "16"), "Metax-SGPU"), None);
    let text = closed(&engine, &both("1", "0"), "Metax-SGPU").unwrap();
    assert!(text.contains("left over"), "{text}");
    assert_eq!(closed(&engine, &both("1", "0"), "Metax-GPU"), None);
    assert!(closed(&engine, &both("1", "16"), "Metax-GPU").is_some());
    assert_eq!(closed(&engine, &both("1", "16"), "Metax-SGPU"), None);
    // The plugin has gone, its annotation has not.
    assert!(closed(&engine, &both("0", "0"), "Metax-SGPU").is_some());
    let absurd = node(json!({}), json!({whole: "2000000000"}), json!({}));
    assert!(closed(&engine, &absurd, "Metax-GPU").is_some());
}

#[test]
fn no_more_whole_cards_are_given_than_work() {
    let engine = engine();
    let gpu = |count: u32| json!({"metax-tech.com/gpu": count.to_string()});
    let mut world = world(&engine, &node(json!({}), gpu(4), gpu(3)));
    assert!(!place(&engine, &mut world, &pod("four", json!({}), &[gpu(4)])));
    assert!(place(&engine, &mut world, &pod("two", json!({}), &[gpu(1), gpu(1)])));
    assert!(!place(&engine, &mut world, &pod("more", json!({}), &[gpu(1), gpu(1)])));
    assert!(place(&engine, &mut world, &pod("one", json!({}), &[gpu(1)])));
    assert!(!place(&engine, &mut world, &pod("late", json!({}), &[gpu(1)])));
}

#[test]
fn a_broken_register_closes_the_node_for_the_class() {
    let engine = engine();
    let texts = [
        "[{",
        "{}",
        r#"[{"uuid":""}]"#,
        r#"[{"uuid":"GPU-a","totalVRam":-1}]"#,
        r#"[{"uuid":"GPU-a","totalVRam":1e30}]"#,
        "[]",
    ];
    for text in texts {
        let node = node(json!({REGISTER: text}), json!({}), json!({}));
        assert!(closed(&engine, &node, "Metax-SGPU").is_some(), "{text}");
    }
}

#[test]
fn admission_refuses_what_could_never_run_and_says_what_to_write() {
    let engine = engine();
    let snapshot = World::new(Arc::clone(engine.vendors())).snapshot();
    let refused = |annotations: Value, limits: Value| -> String {
        let pod = json!({"metadata": {"name": "p", "namespace": "ns", "annotations": annotations},
            "spec": {"containers": [{"name": "c1", "resources": {"limits": limits}}]}});
        match review(&pod, "ns", &Settings::default(), &engine, &snapshot) {
            Verdict::Deny { text, .. } => text,
            verdict => panic!("{verdict:?}"),
        }
    };
    let with = |memory: &str| json!({"metax-tech.com/sgpu": "1", "metax-tech.com/vmemory": memory});
    for (limits, words) in [
        (with("1k"), "less than 1 MiB"),
        (with("1500m"), "not a whole number"),
        (with("-1"), "negative"),
        (with("10e3"), "more than any card"),
        (with("9223372036854775807"), "more than any card"),
        (json!({"metax-tech.com/sgpu": "1500m"}), "number of cards"),
        (
            json!({"metax-tech.com/sgpu": "1", "metax-tech.com/vcore": "150"}),
            "more than one card",
        ),
        (
            json!({"metax-tech.com/sgpu": "1", "metax-tech.com/vcore": "12.5"}),
            "not a percentage",
        ),
        (json!({"metax-tech.com/gpu": "-1"}), "number of cards"),
        (json!({"metax-tech.com/vmemory": "4"}), "add `metax-tech.com/sgpu: 1`"),
        (
            json!({"metax-tech.com/gpu": "1", "metax-tech.com/sgpu": "1"}),
            "keep one of the two",
        ),
    ] {
        let text = refused(json!({}), limits.clone());
        assert!(text.contains(words), "{limits}: {text}");
        assert!(text.contains("c1"), "{text}");
    }
    let text = refused(json!({QOS: "gold"}), with("4"));
    assert!(text.contains("`gold`") && text.contains("burst-share"), "{text}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whatever is placed and given back: no card over its size, one policy on a card, classes apart, books exact.
    #[test]
    fn no_sequence_breaks_a_card(steps in prop::collection::vec(
        (0_usize..4, 0_usize..5, prop_oneof![Just(0_u32), Just(100), 1_u32..100], 0_u32..=40, 1_usize..=2, 0_u8..4), 1..40,
    )) {
        let engine = engine();
        let cards = ["GPU-a", "GPU-b"].map(card);
        let mut world = world(&engine, &shared_node(&cards));
        let mut here: BTreeMap<String, (PodView, Value)> = BTreeMap::new();
        for (nth, (policy, app, cores, gib, containers, step)) in steps.into_iter().enumerate() {
            if step == 0 && let Some((name, _)) = here.pop_first() {
                world.forget(&tessera_types::PodUid::new(&name).unwrap());
            }
            let qos = ["best-effort", "fixed-share", "burst-share", ""][policy];
            let annotations = match app {
                0 => json!({APP: "online"}),
                1 => json!({APP: "offline", QOS: qos}),
                _ => json!({QOS: qos}),
            };
            let name = format!("p{nth}");
            let view = pod(&name, annotations.clone(), &vec![share(cores, gib); containers]);
            if place(&engine, &mut world, &view) {
                here.insert(name, (view, annotations));
            }
            prop_assert_eq!(world.audit(), vec![]);
            let snapshot = world.snapshot();
            let node = snapshot.node("n1").unwrap();
            for (at, card) in node.cards().iter().enumerate() {
                let used = node.usage()[at].usage;
                prop_assert!(used.slots <= card.slots && used.memory <= card.memory && used.cores <= card.cores);
                let tenants: Vec<&Booking> = node.tenants(at).collect();
                let of = |key: &str| -> Vec<&str> {
                    tenants.iter().map(|tenant| here[tenant.pod.uid.as_str()].1[key].as_str().unwrap_or("")).collect()
                };
                let apps = of(APP);
                prop_assert!(apps.iter().all(|app| app.is_empty()) || !apps.contains(&""), "{:?}", apps);
                let is_alone = |tenant: &&Booking| {
                    let mut shares = tenant.shares();
                    shares.any(|(_, share)| share.card == card.id && share.cores.get() == 100)
                };
                // An online pod goes to a card that an offline pod has alone, too, and suspends that.
                let others = apps.iter().filter(|app| **app != "online").count();
                prop_assert!(!tenants.iter().any(is_alone) || others == 1);
                let mut policies: Vec<&str> = of(QOS).into_iter().filter(|policy| !policy.is_empty()).collect();
                policies.dedup();
                prop_assert!(policies.len() <= 1, "{:?}", policies);
            }
        }
    }
}
