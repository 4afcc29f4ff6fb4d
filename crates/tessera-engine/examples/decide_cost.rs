//! The cost of one decision over 1,000 nodes of 8 cards with 2,000 pods, for an instruction counter.
//!
//! `decide_cost [decisions] [cold]`: by default every decision is followed by booking its winner, so one node changes
//! between two decisions, as in a wave of like pods. With `cold` every decision has a new shape, so that nothing
//! remembered helps. Prints nothing.

use std::sync::Arc;

use tessera_engine::{Assumption, Candidates, Defaults, Engine, Vendor, Vendors, World};
use tessera_types::{CardPolicy, NodePolicy};
use tessera_vendors::nvidia::Nvidia;
use tessera_wire::{NodeView, PodView, config};

const NODES: usize = 1000;
const CARDS: usize = 8;
const PODS: usize = 2000;

fn node(at: usize) -> NodeView {
    let cards: Vec<serde_json::Value> = (0..CARDS)
        .map(|card| {
            serde_json::json!({"id": format!("GPU-{at:04}-{card}"), "index": card, "count": 10, "devmem": 81920,
                "devcore": 100, "type": "NVIDIA-H100", "numa": card / 4, "mode": "hami-core", "health": true})
        })
        .collect();
    let register = serde_json::Value::from(cards).to_string();
    let object = serde_json::json!({"metadata": {"name": format!("node-{at:04}"),
        "annotations": {"hami.io/node-nvidia-register": register}}});
    NodeView::from_json(&object).expect("a node")
}

fn pod(name: &str, memory: usize) -> PodView {
    let limits = serde_json::json!({"nvidia.com/gpu": "1", "nvidia.com/gpumem": memory.to_string(),
        "nvidia.com/gpucores": "10"});
    let object = serde_json::json!({"metadata": {"name": name, "namespace": "ns", "uid": name},
        "spec": {"containers": [{"name": "c", "resources": {"limits": limits}}]}, "status": {"phase": "Pending"}});
    PodView::from_json(&object).expect("a pod")
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let decisions: usize = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(100);
    let cold = arguments.next().is_some_and(|text| text == "cold");

    let nvidia = Nvidia::new(&config::Nvidia::default());
    let vendors = Arc::new(Vendors::new(vec![Arc::new(nvidia) as Arc<dyn Vendor>]));
    let defaults = Defaults {
        node_policy: NodePolicy::Spread,
        card_policy: CardPolicy::default(),
    };
    let engine = Engine::new(Arc::clone(&vendors), defaults);
    let mut world = World::new(vendors);
    let names: Vec<String> = (0..NODES).map(|at| format!("node-{at:04}")).collect();
    for at in 0..NODES {
        world.set_node(&node(at));
    }
    let place = |world: &mut World, pod: &PodView, names: &[String]| {
        let demand = engine.demand(pod).expect("a demand");
        let decision = engine.decide(&world.snapshot(), &demand, Candidates::Names(names));
        let winner = decision.winner().expect("room");
        let assumption = Assumption {
            pod: &pod.id,
            roles: &pod.roles(),
            node: &winner.node,
            allocation: Arc::clone(&winner.allocation),
            priority: 0,
            facts: &demand.facts,
            now: 0,
            expires_at: 90,
        };
        world.assume(&assumption).expect("room");
    };
    for at in 0..PODS {
        let home = [names[at % NODES].clone()];
        place(&mut world, &pod(&format!("old-{at}"), 1000 + at % 7), &home);
    }
    for at in 0..decisions {
        let memory = if cold { 2000 + at } else { 2000 };
        place(&mut world, &pod(&format!("new-{at}"), memory), &names);
    }
}
