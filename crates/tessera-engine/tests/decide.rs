//! Which cards and nodes a pod gets.

#![allow(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use common::*;
use serde_json::json;
use tessera_engine::{Candidates, World, text};
use tessera_types::{NodeName, NodePolicy, NodeRefusal};
use tessera_wire::{PodView, keys};

fn two_cards() -> World {
    let mut world = World::new(vendors());
    world.set_node(&node("n1", &[card("GPU-a", 0, json!({})), card("GPU-b", 1, json!({}))]));
    world
}

/// The device text that a pod of these containers gets.
fn text_for(world: &World, pod: &PodView) -> Result<String, String> {
    let engine = engine();
    let demand = demand(&engine, pod);
    let decision = engine.decide(&world.snapshot(), &demand, Candidates::All);
    match decision.winner() {
        Some(fit) => {
            Ok(engine.annotations(&fit.allocation, &demand, &at(&fit.node, 5))[keys::NVIDIA_ALLOCATED].clone())
        }
        None => Err(text::hami_node(&decision.refused[0].1)),
    }
}

fn with_init(mut pod: serde_json::Value, init: serde_json::Value) -> PodView {
    pod["spec"]["initContainers"] = init;
    PodView::from_json(&pod).unwrap()
}

#[test]
fn containers_without_devices_keep_their_place_whatever_the_model() {
    let pod = pod("p", &[json!({}), gpu(1, 3000, 0), json!({"cpu": "1"})]);
    assert_eq!(text_for(&two_cards(), &pod).unwrap(), ";GPU-b,NVIDIA,3000,0:;;");
}

#[test]
fn annotations_name_node_time_and_both_texts() {
    let engine = engine();
    let mut world = two_cards();
    let annotations = place(&engine, &mut world, &pod("p", &[gpu(1, 100, 5)]), 77).unwrap();
    let expected = [
        (keys::NVIDIA_ALLOCATED, "GPU-b,NVIDIA,100,5:;"),
        (keys::NVIDIA_TO_ALLOCATE, "GPU-b,NVIDIA,100,5:;"),
        (keys::VGPU_NODE, "n1"),
        (keys::VGPU_TIME, "77"),
    ];
    let got: Vec<(&str, &str)> = annotations.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(got, expected);
}

#[test]
fn init_containers_share_what_apps_use_later_but_sidecars_do_not() {
    let init = json!([{"name": "i", "resources": {"limits": gpu(1, 16000, 0)}}]);
    let app = pod_json("p", &[gpu(1, 16000, 0)]);
    let mut one_card = World::new(vendors());
    one_card.set_node(&node("n1", &[card("GPU-a", 0, json!({}))]));
    assert_eq!(
        text_for(&one_card, &with_init(app.clone(), init)).unwrap(),
        "GPU-a,NVIDIA,16000,0:;GPU-a,NVIDIA,16000,0:;"
    );
    let sidecar = json!([{"name": "s", "restartPolicy": "Always", "resources": {"limits": gpu(1, 9000, 0)}}]);
    assert_eq!(
        text_for(&one_card, &with_init(app, sidecar)).unwrap_err(),
        "1/1 CardInsufficientMemory"
    );
}

#[test]
fn an_init_container_is_tried_beside_the_sidecars_before_it() {
    let mut one_card = World::new(vendors());
    one_card.set_node(&node("n1", &[card("GPU-a", 0, json!({}))]));
    let init = |first: serde_json::Value, second: serde_json::Value| json!([first, second]);
    let sidecar = json!({"name": "s", "restartPolicy": "Always", "resources": {"limits": gpu(1, 9000, 0)}});
    let plain = json!({"name": "i", "resources": {"limits": gpu(1, 9000, 0)}});
    let app = pod_json("p", &[gpu(1, 1000, 0)]);
    assert!(text_for(&one_card, &with_init(app.clone(), init(sidecar.clone(), plain.clone()))).is_err());
    assert!(text_for(&one_card, &with_init(app, init(plain, sidecar))).is_ok());
}

#[test]
fn topology_aware_with_numa_bind_looks_at_every_numa_node() {
    // NUMA 1 is examined last, but its pair is linked better than the pair of NUMA 0.
    let scores = json!([{"uuid": "GPU-a", "score": {"GPU-b": 10, "GPU-c": 500}}, {"uuid": "GPU-b", "score": {"GPU-a": 10}},
        {"uuid": "GPU-c", "score": {"GPU-d": 200, "GPU-a": 500}}, {"uuid": "GPU-d", "score": {"GPU-c": 200}}]);
    for (numa_of_best, numa_of_other) in [(0, 1), (1, 0)] {
        let cards = [
            card("GPU-a", 0, json!({"numa": numa_of_other})),
            card("GPU-b", 1, json!({"numa": numa_of_other})),
            card("GPU-c", 2, json!({"numa": numa_of_best})),
            card("GPU-d", 3, json!({"numa": numa_of_best})),
        ];
        let mut world = World::new(vendors());
        world.set_node(&node_with(
            "n1",
            &cards,
            json!({ keys::NVIDIA_SCORE: scores.to_string() }),
        ));
        let mut object = pod_json("p", &[gpu(2, 100, 0)]);
        object["metadata"]["annotations"] = json!({ keys::GPU_POLICY: "topology-aware", keys::NUMA_BIND: "true" });
        let pod = PodView::from_json(&object).unwrap();
        assert_eq!(
            text_for(&world, &pod).unwrap(),
            "GPU-d,NVIDIA,100,0:GPU-c,NVIDIA,100,0:;"
        );
    }
}

#[test]
fn a_cordon_counts_from_the_event_on_and_can_be_lifted() {
    let mut world = World::new(vendors());
    let cards = [card("GPU-a", 0, json!({}))];
    let pod = pod("p", &[gpu(1, 100, 0)]);
    world.set_node(&node("n1", &cards));
    assert!(text_for(&world, &pod).is_ok());
    world.set_node(&node_with("n1", &cards, json!({ keys::DEVICE_CORDON: " GPU-a ," })));
    assert_eq!(text_for(&world, &pod).unwrap_err(), "1/1 CardCordoned");
    assert!(world.set_node(&node("n1", &cards)).frees);
    assert!(text_for(&world, &pod).is_ok());
}

#[test]
fn mig_instances_are_booked_with_their_profile_and_never_overlap() {
    let engine = engine();
    let mut world = World::new(vendors());
    world.set_node(&node("n1", &[mig_card("GPU-m")]));
    let mut got = Vec::new();
    for name in ["p1", "p2", "p3", "p4"] {
        if let Some(annotations) = place(&engine, &mut world, &pod(name, &[gpu(1, 8000, 0)]), 1) {
            got.push((
                annotations[keys::NVIDIA_ALLOCATED].clone(),
                annotations[keys::MIG_ALLOCATIONS].clone(),
            ));
        }
    }
    assert_eq!(got.len(), 3, "three 2g instances fit a card");
    assert!(got.iter().all(|(text, _)| text == "GPU-m,NVIDIA,9984,29:;"));
    assert!(got[0].1.contains(r#""placement":{"start":0,"size":2}"#), "{}", got[0].1);
    assert_within_capacity(&world.snapshot());
}

#[test]
fn an_init_containers_instance_is_reused_by_the_app_or_left_alone() {
    let engine = engine();
    let mut world = World::new(vendors());
    world.set_node(&node("n1", &[mig_card("GPU-m")]));
    let init = json!([{"name": "i", "resources": {"limits": gpu(1, 9000, 0)}}]);
    let same = with_init(pod_json("same", &[gpu(1, 9000, 0)]), init.clone());
    let text = place(&engine, &mut world, &same, 1).unwrap()[keys::MIG_ALLOCATIONS].clone();
    assert_eq!(text.matches(r#""start":0,"size":2"#).count(), 2, "{text}");
    let larger = with_init(pod_json("larger", &[gpu(1, 20000, 0)]), init);
    let text = place(&engine, &mut world, &larger, 1).unwrap()[keys::MIG_ALLOCATIONS].clone();
    assert!(
        text.contains(r#""start":2,"size":2"#) && text.contains(r#""start":4,"size":4"#),
        "{text}"
    );
}

#[test]
fn nodes_are_compared_by_fill_then_by_fill_with_the_pod_then_by_name() {
    let big = card("GPU-big", 0, json!({"devmem": 80000}));
    let small = card("GPU-small", 0, json!({"devmem": 20000}));
    let winner = |policy: NodePolicy, first: &serde_json::Value, second: &serde_json::Value| {
        let mut world = World::new(vendors());
        world.set_node(&node("n1", std::slice::from_ref(first)));
        world.set_node(&node("n2", std::slice::from_ref(second)));
        let engine = engine_with(policy, "spread");
        let decision = decide(&engine, &world, &pod("p", &[gpu(1, 10000, 0)]));
        decision.winner().unwrap().node.to_string()
    };
    // Both nodes are empty, so the fill alone would leave the choice to chance.
    assert_eq!(winner(NodePolicy::Binpack, &big, &small), "n2");
    assert_eq!(winner(NodePolicy::Binpack, &small, &big), "n1");
    assert_eq!(winner(NodePolicy::Spread, &big, &small), "n1");
    assert_eq!(winner(NodePolicy::Spread, &big, &big), "n1");
    assert_eq!(winner(NodePolicy::Binpack, &big, &big), "n1");
}

#[test]
fn quota_counts_init_sidecars_and_apps_as_they_run() {
    let engine = engine();
    let mut world = two_cards();
    let limit = |world: &mut World, mib: &str| {
        let hard = [(
            "limits.nvidia.com/gpumem".to_owned(),
            tessera_wire::Quantity::parse(mib).unwrap(),
        )];
        world.set_quota("ns", "q", &hard.into());
    };
    let init = json!([{"name": "i", "resources": {"limits": gpu(1, 900, 0)}}]);
    let pod = with_init(pod_json("p", &[gpu(1, 500, 0), gpu(1, 500, 0)]), init);
    let used = |world: &World| world.snapshot().quotas().state("ns")["nvidia.com/gpumem"].used;
    limit(&mut world, "999");
    let refused = decide(&engine, &world, &pod);
    assert!(text::hami_node(&refused.refused[0].1).contains("ResourceQuotaNotFit"));
    // Both apps where the init container was: max(900, 500 + 500).
    limit(&mut world, "1399");
    place(&engine, &mut world, &pod, 1).unwrap();
    assert_eq!(used(&world), 1000);
    // Spread puts them on two cards if the quota has room: max(900, 500) + 500.
    limit(&mut world, "1400");
    place(&engine, &mut world, &pod, 1).unwrap();
    assert_eq!(used(&world), 1400);
}

#[test]
fn the_smallest_of_several_quota_objects_holds_until_it_is_deleted() {
    let engine = engine();
    let mut world = two_cards();
    for (object, mib) in [("wide", "9000"), ("narrow", "1000")] {
        let hard = [(
            "limits.nvidia.com/gpumem".to_owned(),
            tessera_wire::Quantity::parse(mib).unwrap(),
        )];
        world.set_quota("ns", object, &hard.into());
    }
    let pod = pod("p", &[gpu(1, 5000, 0)]);
    assert!(decide(&engine, &world, &pod).winner().is_none());
    world.remove_quota("ns", "narrow");
    assert!(decide(&engine, &world, &pod).winner().is_some());
    world.remove_quota("ns", "wide");
    assert!(world.snapshot().quotas().state("ns").is_empty());
}

#[test]
fn a_request_that_means_nothing_is_refused_with_the_next_step() {
    let engine = engine();
    let error = |limits: serde_json::Value| engine.demand(&pod("p", &[limits])).unwrap_err().to_string();
    let text = error(json!({"nvidia.com/gpu": "1", "nvidia.com/gpumem": "3Gi"}));
    assert!(
        text.contains("`nvidia.com/gpumem`") && text.contains("write 3072"),
        "{text}"
    );
    assert!(error(json!({"nvidia.com/gpu": "500m"})).contains("whole number"));
    assert!(error(json!({"nvidia.com/gpu": "1", "nvidia.com/gpucores": "-1"})).contains("0 to 100"));
    assert!(error(json!({"nvidia.com/gpu": "1", "nvidia.com/gpumem": "-5"})).contains("negative"));
}

#[test]
fn a_node_is_named_by_what_is_wrong_with_it() {
    let engine = engine();
    let mut world = two_cards();
    let mut broken = node("n2", &[card("GPU-c", 0, json!({}))]);
    broken
        .annotations
        .insert(keys::NVIDIA_REGISTER.to_owned(), "[{".to_owned());
    let change = world.set_node(&broken);
    assert_eq!(change.problems.len(), 1);
    let pod = pod("p", &[gpu(1, 100, 0)]);
    let demand = demand(&engine, &pod);
    let names = ["n1".to_owned(), "n2".to_owned(), "n3".to_owned()];
    let decision = engine.decide(&world.snapshot(), &demand, Candidates::Names(&names));
    assert_eq!(decision.winner().unwrap().node.as_str(), "n1");
    assert!(
        matches!(&*decision.refused[0].1, NodeRefusal::ClassClosed { cause, .. } if cause.contains("cannot be read"))
    );
    assert_eq!(*decision.refused[1].1, NodeRefusal::Unregistered);
}

#[test]
fn an_event_says_what_is_short_and_what_to_do() {
    let engine = engine();
    let mut world = two_cards();
    for (name, memory) in [("u1", 10_000), ("u2", 8000)] {
        place(&engine, &mut world, &pod(name, &[gpu(1, memory, 0)]), 1).unwrap();
    }
    let event = |limits: serde_json::Value| {
        let pod = pod("p", &[limits]);
        text::event(&decide(&engine, &world, &pod), &demand(&engine, &pod))
    };
    let one = event(gpu(1, 12_000, 0));
    assert_eq!(
        one,
        "0/1 nodes can take this pod: n1: 2 of 2 cards short of memory (12000 MiB wanted, at most 8384 MiB free, on \
         GPU-a). Ask for at most 8384 MiB, or free 3616 MiB on GPU-a of n1."
    );
    // Two cards are wanted: what both have counts, not what the emptier has.
    let two = event(gpu(2, 12_000, 0));
    assert!(
        two.ends_with("Ask for at most 6384 MiB, or free 5616 MiB on GPU-b of n1."),
        "{two}"
    );
    assert!(event(gpu(3, 1, 0)).ends_with("Ask for fewer cards, or add a node with more."));
}

#[test]
fn an_event_stays_short_and_keeps_its_advice() {
    let engine = engine();
    let mut world = World::new(vendors());
    for at in 0..200 {
        world.set_node(&node(
            &format!("a-node-with-quite-a-long-name-{at:03}"),
            &[card("GPU-a", 0, json!({}))],
        ));
    }
    let pod = pod("p", &[gpu(1, 20_000, 0)]);
    let text = text::event(&decide(&engine, &world, &pod), &demand(&engine, &pod));
    assert!(text.len() <= text::EVENT_BYTES_MAX, "{}", text.len());
    assert!(
        text.contains("and 196 more (196 memory-short)") && text.contains("Ask for at most 16384 MiB"),
        "{text}"
    );
}

#[test]
fn simulation_counts_live_pods_only_when_told_to() {
    let engine = engine();
    let mut world = two_cards();
    let nodes = [node("n1", &[card("GPU-a", 0, json!({}))])];
    world.set_node(&nodes[0]);
    place(&engine, &mut world, &pod("u", &[gpu(1, 10_000, 0)]), 1).unwrap();
    let asked = demand(&engine, &pod("p", &[gpu(1, 10_000, 0)]));
    assert!(engine.simulate(&nodes, &asked, None).winner().is_some());
    assert!(
        engine
            .simulate(&nodes, &asked, Some(&world.snapshot()))
            .winner()
            .is_none()
    );
}

#[test]
fn place_on_gives_the_same_answer_as_deciding_over_all() {
    let engine = engine();
    let world = two_cards();
    let pod = pod("p", &[gpu(1, 100, 0)]);
    let demand = demand(&engine, &pod);
    let placed = engine
        .place_on(&world.snapshot(), &demand, &NodeName::new("n1").unwrap())
        .unwrap();
    assert_eq!(
        placed.allocation,
        decide(&engine, &world, &pod).winner().unwrap().allocation
    );
    assert!(
        engine
            .place_on(&world.snapshot(), &demand, &NodeName::new("n9").unwrap())
            .is_err()
    );
}
