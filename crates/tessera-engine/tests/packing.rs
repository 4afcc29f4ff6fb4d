//! The node policies that pack a cluster, through the decisions that the scheduler makes.

#![allow(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use common::*;
use serde_json::json;
use tessera_engine::{Candidates, Engine, ScoreTerms, World};
use tessera_types::NodePolicy;
use tessera_wire::{NodeView, PodView, Quantity, keys};

fn a_node(name: &str, model: &str, cards: usize, cpu: i64) -> NodeView {
    let cards: Vec<_> = (0..cards)
        .map(|n| {
            card(
                &format!("{name}-{n}"),
                u32::try_from(n).unwrap(),
                json!({"type": format!("NVIDIA-{model}")}),
            )
        })
        .collect();
    let mut node = node(name, &cards);
    node.allocatable.insert("cpu".to_owned(), Quantity::of(cpu));
    node
}

fn a_pod(name: &str, memory: u64, cpu: i64) -> PodView {
    let mut pod = pod(name, &[gpu(1, memory, 0)]);
    pod.containers[0].requests.insert("cpu".to_owned(), Quantity::of(cpu));
    pod
}

fn winner(engine: &Engine, world: &World, pod: &PodView) -> String {
    let decision = decide(engine, world, pod);
    decision.winner().unwrap().node.to_string()
}

#[test]
fn cpu_that_pods_without_cards_take_counts_until_they_end() {
    let mut world = World::new(vendors());
    world.set_node(&a_node("n1", "T4", 2, 16));
    let left = |world: &World| world.snapshot().node("n1").unwrap().cpu_left();
    assert_eq!(left(&world), Some(16_000));
    let mut plain = pod("plain", &[json!({"cpu": "3500m"})]);
    world.set_pod(&plain);
    assert_eq!(left(&world), Some(16_000), "it is not on the node yet");
    plain.node_name = Some("n1".to_owned());
    world.set_pod(&plain);
    world.set_pod(&plain);
    assert_eq!(left(&world), Some(12_500));
    world.remove_node("n1");
    world.set_node(&a_node("n1", "T4", 2, 16));
    assert_eq!(left(&world), Some(12_500), "a node that comes back still runs its pods");
    world.remove_pod(&plain.id.uid);
    assert_eq!(left(&world), Some(16_000));
}

#[test]
fn cpu_of_a_pod_counts_from_the_decision_on_and_no_longer_once_that_is_dropped() {
    let engine = engine_with(NodePolicy::Tessera, "spread");
    let mut world = World::new(vendors());
    world.set_node(&a_node("n1", "T4", 2, 16));
    let pod = a_pod("p", 4000, 4);
    world.set_pod(&pod);
    let annotations = place(&engine, &mut world, &pod, 1).unwrap();
    assert_eq!(world.snapshot().node("n1").unwrap().cpu_left(), Some(12_000));
    world.set_pod(&bound(&pod, &annotations));
    assert_eq!(world.snapshot().node("n1").unwrap().cpu_left(), Some(12_000));
    let other = a_pod("q", 4000, 4);
    world.set_pod(&other);
    place(&engine, &mut world, &other, 2).unwrap();
    world.forget(&other.id.uid);
    assert_eq!(world.snapshot().node("n1").unwrap().cpu_left(), Some(12_000));
}

#[test]
fn a_model_that_others_ask_for_by_name_is_left_to_them() {
    let engine = engine_with(NodePolicy::Tessera, "spread");
    let mut world = World::new(vendors());
    world.set_node(&a_node("rare", "A100", 2, 64));
    for at in 0..3 {
        world.set_node(&a_node(&format!("common{at}"), "T4", 4, 64));
    }
    let pod = a_pod("p", 8000, 4);
    // The last of names wins a tie neither way: with nothing learned the smaller node leaves less, so it wins.
    assert_eq!(winner(&engine, &world, &pod), "rare");
    for at in 0..40 {
        let mut seen = a_pod(&format!("seen{at}"), 8000, 4);
        if at % 3 == 0 {
            seen.annotations
                .insert(keys::USE_GPU_TYPE.to_owned(), "A100".to_owned());
        }
        world.set_pod(&seen);
    }
    assert!(winner(&engine, &world, &pod).starts_with("common"));
    let mut named = pod.clone();
    named
        .annotations
        .insert(keys::USE_GPU_TYPE.to_owned(), "A100".to_owned());
    assert_eq!(winner(&engine, &world, &named), "rare");
}

#[test]
fn a_pod_that_needs_much_cpu_goes_where_cpu_is() {
    let engine = engine_with(NodePolicy::Tessera, "spread");
    let mut world = World::new(vendors());
    world.set_node(&a_node("poor", "T4", 4, 16));
    world.set_node(&a_node("rich", "T4", 4, 128));
    for at in 0..40 {
        world.set_pod(&a_pod(&format!("seen{at}"), 16384, if at % 2 == 0 { 2 } else { 14 }));
    }
    assert_eq!(winner(&engine, &world, &a_pod("hungry", 16384, 14)), "rich");
    assert_eq!(winner(&engine, &world, &a_pod("modest", 16384, 2)), "poor");
}

#[test]
fn a_score_says_what_it_is_made_of() {
    let mut world = World::new(vendors());
    world.set_node(&a_node("n1", "T4", 2, 16));
    for at in 0..20 {
        world.set_pod(&a_pod(&format!("seen{at}"), 8000, 4));
    }
    for policy in [NodePolicy::Fgd, NodePolicy::Tessera] {
        let engine = engine_with(policy, "spread");
        let decision = decide(&engine, &world, &a_pod("p", 8000, 4));
        let fit = decision.winner().unwrap();
        let terms = fit.terms.unwrap();
        assert_eq!(fit.score, terms.sum());
        assert_eq!(matches!(terms, ScoreTerms::Fgd { .. }), policy == NodePolicy::Fgd);
    }
    let engine = engine_with(NodePolicy::Binpack, "spread");
    assert_eq!(
        decide(&engine, &world, &a_pod("p", 8000, 4)).winner().unwrap().terms,
        None
    );
}

#[test]
fn a_pod_may_name_a_policy_that_packs_and_its_share_goes_to_the_fullest_card_unless_the_operator_says_otherwise() {
    let engine = engine_with(NodePolicy::Binpack, "");
    let spreading = engine_with(NodePolicy::Binpack, "spread");
    let mut world = World::new(vendors());
    world.set_node(&a_node("n1", "T4", 2, 64));
    let first = a_pod("first", 4000, 1);
    place(&engine, &mut world, &first, 1).unwrap();
    for (policy, taken) in [("tessera", true), ("fgd", true), ("spread", false)] {
        let mut second = a_pod("second", 4000, 1);
        second
            .annotations
            .insert(keys::NODE_POLICY.to_owned(), policy.to_owned());
        let snapshot = world.snapshot();
        let booking = snapshot.bookings().next().unwrap();
        let (held, ..) = booking.usage().next().unwrap();
        for (engine, taken) in [(&engine, taken), (&spreading, false)] {
            let demand = engine.demand(&second).unwrap();
            let fit = engine.choose(&snapshot, &demand, Candidates::All).unwrap();
            let chosen = &fit.allocation.classes.values().next().unwrap()[0][0].card;
            assert_eq!(held == chosen, taken, "{policy}");
        }
    }
}
