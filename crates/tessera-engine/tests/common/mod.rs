//! Nodes and pods for tests, in the shape the API server gives them.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use tessera_engine::{
    Assumption, Candidates, Decision, Defaults, Engine, Snapshot, Vendor, Vendors, World, WriteContext,
};
use tessera_types::{CardPolicy, CardUsage, Demand, NodeName, NodePolicy};
use tessera_vendors::nvidia::Nvidia;
use tessera_wire::{NodeView, PodView, config, keys};

pub fn vendors() -> Arc<Vendors> {
    Arc::new(Vendors::new(vec![
        Arc::new(Nvidia::new(&config::Nvidia::default())) as Arc<dyn Vendor>
    ]))
}

pub fn engine() -> Engine {
    Engine::new(vendors(), Defaults::default())
}

pub fn engine_with(node_policy: NodePolicy, card_policy: &str) -> Engine {
    Engine::new(
        vendors(),
        Defaults {
            node_policy,
            card_policy: (!card_policy.is_empty()).then(|| CardPolicy::parse(card_policy).0),
        },
    )
}

/// A registered card; `extra` overrides members.
pub fn card(id: &str, index: u32, extra: Value) -> Value {
    let mut card = json!({"id": id, "index": index, "count": 10, "devmem": 16384, "devcore": 100,
        "type": "NVIDIA-Tesla V100", "numa": 0, "mode": "hami-core", "health": true});
    for (key, value) in extra.as_object().unwrap() {
        card[key] = value.clone();
    }
    card
}

pub fn a100_profiles() -> Value {
    let starts = |starts: &[u32], size: u32| -> Value {
        starts
            .iter()
            .map(|start| json!({"start": start, "size": size}))
            .collect::<Vec<_>>()
            .into()
    };
    json!([
        {"name": "1g.5gb", "memoryMB": 4864, "core": 15, "sliceCount": 1, "placements": starts(&[0, 1, 2, 3, 4, 5, 6], 1)},
        {"name": "2g.10gb", "memoryMB": 9984, "core": 29, "sliceCount": 2, "placements": starts(&[0, 2, 4], 2)},
        {"name": "3g.20gb", "memoryMB": 20096, "core": 43, "sliceCount": 3, "placements": starts(&[0, 4], 4)},
        {"name": "7g.40gb", "memoryMB": 40448, "core": 100, "sliceCount": 7, "placements": starts(&[0], 8)},
    ])
}

pub fn mig_card(id: &str) -> Value {
    card(
        id,
        0,
        json!({"count": 7, "devmem": 40960, "mode": "mig", "type": "NVIDIA A100-SXM4-40GB",
        "migProfiles": a100_profiles()}),
    )
}

pub fn node_with(name: &str, cards: &[Value], annotations: Value) -> NodeView {
    let mut all = json!({ keys::NVIDIA_REGISTER: Value::from(cards.to_vec()).to_string() });
    for (key, value) in annotations.as_object().unwrap() {
        all[key] = value.clone();
    }
    NodeView::from_json(&json!({"metadata": {"name": name, "annotations": all}})).unwrap()
}

pub fn node(name: &str, cards: &[Value]) -> NodeView {
    node_with(name, cards, json!({}))
}

/// A pod as JSON; `limits` of its containers, all of role app.
pub fn pod_json(name: &str, limits: &[Value]) -> Value {
    let containers: Vec<Value> = limits
        .iter()
        .enumerate()
        .map(|(at, limits)| json!({"name": format!("c{at}"), "resources": {"limits": limits}}))
        .collect();
    json!({"metadata": {"name": name, "namespace": "ns", "uid": name, "annotations": {}},
        "spec": {"containers": containers}, "status": {"phase": "Pending"}})
}

pub fn pod(name: &str, limits: &[Value]) -> PodView {
    PodView::from_json(&pod_json(name, limits)).unwrap()
}

pub fn gpu(count: u32, memory: u64, cores: u32) -> Value {
    json!({"nvidia.com/gpu": count.to_string(), "nvidia.com/gpumem": memory.to_string(),
        "nvidia.com/gpucores": cores.to_string()})
}

pub fn demand(engine: &Engine, pod: &PodView) -> Demand {
    engine.demand(pod).unwrap()
}

pub fn decide(engine: &Engine, world: &World, pod: &PodView) -> Decision {
    engine.decide(&world.snapshot(), &demand(engine, pod), Candidates::All)
}

pub fn at(node: &NodeName, now_seconds: i64) -> WriteContext<'_> {
    WriteContext {
        node,
        now_seconds,
        cards: &[],
    }
}

/// Decides, assumes, and returns the annotations; `None` if nothing fits.
pub fn place(engine: &Engine, world: &mut World, pod: &PodView, now: i64) -> Option<BTreeMap<String, String>> {
    let demand = demand(engine, pod);
    let decision = engine.decide(&world.snapshot(), &demand, Candidates::All);
    let winner = decision.winner()?;
    world
        .assume(&Assumption {
            pod: &pod.id,
            roles: &pod.roles(),
            node: &winner.node,
            allocation: Arc::clone(&winner.allocation),
            priority: pod.priority,
            facts: &demand.facts,
            now,
            expires_at: now + 90,
        })
        .unwrap();
    Some(engine.annotations(&winner.allocation, &demand, &at(&winner.node, now)))
}

/// The pod as it is once bound.
pub fn bound(pod: &PodView, annotations: &BTreeMap<String, String>) -> PodView {
    let mut pod = pod.clone();
    pod.annotations.extend(annotations.clone());
    pod.node_name = Some(annotations[keys::VGPU_NODE].clone());
    pod
}

pub fn usage(snapshot: &Snapshot, node: &str) -> Vec<CardUsage> {
    snapshot
        .node(node)
        .unwrap()
        .usage()
        .iter()
        .map(|used| used.usage)
        .collect()
}

/// Cards in use nowhere exceed what is registered, and instances never overlap.
pub fn assert_within_capacity(snapshot: &Snapshot) {
    for node in snapshot.nodes() {
        for (card, used) in node.cards().iter().zip(node.usage()) {
            assert!(used.usage.slots <= card.slots, "{}: slots", card.id);
            assert!(used.usage.memory <= card.memory, "{}: memory", card.id);
            if !card.mode.is_mig() {
                assert!(used.usage.cores <= card.cores, "{}: cores", card.id);
            }
        }
        for card in node.cards() {
            let held: Vec<_> = node
                .bookings()
                .iter()
                .flat_map(|booking| booking.mig().iter().map(move |held| (booking.pod.uid.clone(), held)))
                .filter(|(_, held)| held.card == card.id)
                .collect();
            for (at, (uid, one)) in held.iter().enumerate() {
                for (other_uid, other) in &held[at + 1..] {
                    if uid != other_uid {
                        assert!(
                            !one.placement.overlaps(other.placement),
                            "{}: instances overlap",
                            card.id
                        );
                    }
                }
            }
        }
    }
}
