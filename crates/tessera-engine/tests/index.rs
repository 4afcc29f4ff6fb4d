//! The winner by the index is the winner of all answers, in clusters larger than one chunk of the node table.

#![allow(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use common::*;
use proptest::prelude::*;
use serde_json::json;
use tessera_engine::{Candidates, World};
use tessera_types::NodePolicy;
use tessera_wire::{NodeView, PodView, Quantity, keys};

const NODES: usize = 150;

fn a_node(at: usize) -> NodeView {
    let count = 1 + at % 3;
    let cards: Vec<_> = (0..count)
        .map(|n| {
            card(
                &format!("GPU-{at}-{n}"),
                u32::try_from(n).unwrap(),
                json!({"count": 3, "devmem": 8000 + 4000 * (at % 4), "numa": n % 2}),
            )
        })
        .collect();
    let mut node = node(&name(at), &cards);
    let cpu = Quantity::of(i64::try_from(8 + 8 * (at % 5)).unwrap());
    node.allocatable.insert("cpu".to_owned(), cpu);
    node
}

fn name(at: usize) -> String {
    format!("n{at:03}")
}

#[derive(Debug, Clone)]
enum Step {
    /// A pod of one of few shapes is placed.
    Place(usize),
    /// The nth booking ends.
    End(usize),
    /// These nodes go, in this order, and come back in the other.
    Flap(Vec<usize>),
    /// A node takes no new work, or does again.
    Close(usize, bool),
    /// Room is being made on a node for a pod that no node holds.
    Nominate(usize),
    /// A pod without cards takes CPU of a node, and the one before it ends.
    Plain(usize),
    /// The same pod asks again while it holds something.
    Again,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(
        prop_oneof![
            12 => (0_usize..4).prop_map(Step::Place),
            3 => any::<usize>().prop_map(Step::End),
            2 => prop::collection::vec(0..NODES, 1..4).prop_map(Step::Flap),
            2 => (0..NODES, any::<bool>()).prop_map(|(at, closed)| Step::Close(at, closed)),
            1 => (0..NODES).prop_map(Step::Nominate),
            3 => (0..NODES).prop_map(Step::Plain),
            2 => Just(Step::Again),
        ],
        1..60,
    )
}

fn a_pod(number: usize, shape: usize) -> PodView {
    let limits = match shape {
        0 => gpu(1, 2000, 10),
        1 => gpu(1, 7000, 50),
        2 => gpu(2, 3000, 0),
        _ => gpu(3, 0, 0),
    };
    let mut pod = pod(&format!("pod-{number}"), &[limits]);
    let cpu = Quantity::of(i64::try_from(1 + 3 * shape).unwrap());
    pod.containers[0].requests.insert("cpu".to_owned(), cpu);
    pod
}

/// A pod without cards that runs on a node.
fn plain_pod(number: usize, at: usize) -> PodView {
    let mut pod = pod(&format!("plain-{number}"), &[json!({"cpu": "3"})]);
    pod.node_name = Some(name(at));
    pod
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn the_index_gives_the_winner_of_all_answers(steps in steps(), policy in 0_usize..4, part in 20_usize..NODES) {
        let policies = [NodePolicy::Binpack, NodePolicy::Spread, NodePolicy::Fgd, NodePolicy::Tessera];
        let engine = engine_with(policies[policy], "spread");
        let mut world = World::new(vendors());
        for at in 0..NODES {
            world.set_node(&a_node(at));
        }
        let nvidia = vendors().iter().next().unwrap().keyword().clone();
        let mut held: Vec<PodView> = Vec::new();
        let mut old = world.snapshot();
        for (number, step) in steps.iter().enumerate() {
            match step {
                Step::Place(shape) => {
                    let pod = a_pod(number, *shape);
                    // What packs learns from it.
                    world.set_pod(&pod);
                    if place(&engine, &mut world, &pod, 1).is_some() {
                        held.push(pod);
                    }
                }
                Step::End(at) if !held.is_empty() => {
                    let pod = held.swap_remove(at % held.len());
                    world.forget(&pod.id.uid);
                }
                Step::Flap(nodes) => {
                    nodes.iter().for_each(|at| world.remove_node(&name(*at)));
                    nodes.iter().rev().for_each(|at| drop(world.set_node(&a_node(*at))));
                }
                Step::Close(at, closed) => {
                    world.set_class_closed(&name(*at), &nvidia, closed.then(|| "a reason".to_owned()));
                }
                Step::Nominate(at) => {
                    let mut object = pod_json(&format!("nominee-{number}"), &[gpu(1, 5000, 0)]);
                    object["status"] = json!({"phase": "Pending", "nominatedNodeName": name(*at)});
                    world.set_pod(&PodView::from_json(&object).unwrap());
                }
                Step::Plain(at) => {
                    world.set_pod(&plain_pod(number, *at));
                    world.remove_pod(&plain_pod(number - number.min(1), *at).id.uid);
                }
                Step::End(_) | Step::Again => {}
            }
            let snapshot = world.snapshot();
            let names: Vec<String> = (0..part).rev().map(name).chain(["unknown".to_owned()]).collect();
            let listed = names.iter().collect();
            let asking = (0..4).map(|shape| a_pod(1000 + number, shape)).chain(held.last().cloned());
            for pod in asking {
                let mut pod = pod;
                pod.annotations.insert(keys::GPU_POLICY.to_owned(), "binpack".to_owned());
                let demand = engine.demand(&pod).unwrap();
                // A question about an older picture may come between two about newer ones.
                for picture in [&snapshot, &old, &snapshot] {
                    for (candidates, plain) in [
                        (Candidates::All, Candidates::All),
                        (Candidates::Names(&names), Candidates::Names(&names)),
                        (Candidates::Listed(&listed), Candidates::Names(&names)),
                    ] {
                        let plain = engine.decide(picture, &demand, plain);
                        let chosen = engine.choose(picture, &demand, candidates);
                        prop_assert_eq!(chosen.as_ref(), plain.winner());
                    }
                }
            }
            if number % 3 == 0 {
                old = snapshot;
            }
        }
    }
}
