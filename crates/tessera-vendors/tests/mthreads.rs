//! What the Moore Threads class reads from the pools of a node, books, writes and refuses.
#![allow(clippy::unwrap_used, reason = "a test stops where something is missing")]

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use tessera_engine::admission::{Settings, Verdict, review};
use tessera_engine::{
    AssumeError, Assumption, Candidates, Defaults, Engine, NodeProblem, Vendors, World, WriteContext, text,
};
use tessera_types::{Allocation, ContainerRole, NodeName, ReasonKind};
use tessera_vendors::mthreads::{ALLOCATED, COUNT as REQUEST_COUNT, INDEX, Mthreads, NODE, TIME};
use tessera_wire::{NodeView, PodView, config};

const COUNT: &str = "mthreads.com/vgpu";
const MEMORY: &str = "mthreads.com/sgpu-memory";
const CORES: &str = "mthreads.com/sgpu-core";

fn engine(memory_per_card: &[i64]) -> Engine {
    let class = Mthreads::new(&config::Mthreads {
        memory_per_card: memory_per_card.to_vec(),
        ..config::Mthreads::default()
    });
    Engine::new(Arc::new(Vendors::new(vec![Arc::new(class)])), Defaults::default())
}

fn node(name: &str, cards: i64, units: i64) -> NodeView {
    let pools = json!({CORES: (16 * cards).to_string(), MEMORY: (units * cards).to_string()});
    let node = json!({"metadata": {"name": name}, "status": {"capacity": pools, "allocatable": pools}});
    NodeView::from_json(&node).unwrap()
}

fn world(engine: &Engine, nodes: &[NodeView]) -> World {
    let mut world = World::new(Arc::clone(engine.vendors()));
    for node in nodes {
        world.set_node(node);
    }
    world
}

fn limits(count: i64, memory: i64, cores: i64) -> Value {
    json!({"limits": {COUNT: count.to_string(), MEMORY: memory.to_string(), CORES: cores.to_string()}})
}

fn pod(name: &str, containers: &[Value], init: &[Value]) -> Value {
    let named = |list: &[Value], letter: char| -> Vec<Value> {
        list.iter()
            .enumerate()
            .map(|(at, resources)| json!({"name": format!("{letter}{at}"), "resources": resources}))
            .collect()
    };
    json!({"metadata": {"name": name, "namespace": "ns", "uid": name, "annotations": {}},
        "spec": {"containers": named(containers, 'c'), "initContainers": named(init, 'i')}})
}

/// The cards given, container by container, or HAMi's reason.
fn given(world: &World, engine: &Engine, pod: &Value) -> Result<Arc<Allocation>, String> {
    let demand = engine
        .demand(&PodView::from_json(pod).unwrap())
        .map_err(|e| e.to_string())?;
    let decision = engine.decide(&world.snapshot(), &demand, Candidates::All);
    match decision.winner() {
        Some(winner) => Ok(Arc::clone(&winner.allocation)),
        None => Err(text::hami_node(&decision.refused[0].1)),
    }
}

struct Admitted {
    limits: BTreeMap<String, String>,
    annotations: Value,
    warnings: Vec<String>,
}

fn admitted(world: &World, engine: &Engine, pod: &Value) -> Result<Admitted, String> {
    match review(pod, "ns", &Settings::default(), engine, &world.snapshot()) {
        Verdict::Allow { patch, warnings, .. } => {
            let mut limits = BTreeMap::new();
            let mut annotations = Value::Null;
            for op in serde_json::to_value(&patch).unwrap().as_array().unwrap() {
                let path = op["path"].as_str().unwrap();
                if let Some((_, name)) = path.split_once("/limits/") {
                    limits.insert(name.replace("~1", "/"), op["value"].as_str().unwrap().to_owned());
                }
                if path.starts_with("/metadata/annotations") {
                    annotations = op.clone();
                }
            }
            Ok(Admitted {
                limits,
                annotations,
                warnings,
            })
        }
        Verdict::Deny { text, .. } => Err(text),
    }
}

#[test]
fn all_containers_of_a_pod_are_on_one_card_init_containers_too() {
    let engine = engine(&[]);
    let world = world(&engine, &[node("n1", 2, 96)]);
    let cards = |pod: &Value| -> Result<Vec<String>, String> {
        let allocation = given(&world, &engine, pod)?;
        Ok(allocation.shares().map(|(_, share)| share.card.to_string()).collect())
    };
    let both = pod("p", &[limits(1, 32, 8), limits(1, 32, 8)], &[limits(1, 64, 16)]);
    assert_eq!(cards(&both).unwrap(), ["n1-mthreads-1"; 3]);
    let apart = pod("p", &[limits(1, 64, 8), limits(1, 64, 8)], &[]);
    assert_eq!(
        cards(&apart).unwrap_err(),
        "1/2 CardInsufficientMemory, 1/2 CardNotFoundCustomFilterRule"
    );
    let two = pod("p", &[limits(2, 192, 32)], &[]);
    assert_eq!(cards(&two).unwrap(), ["n1-mthreads-1", "n1-mthreads-0"]);
}

#[test]
fn the_memory_booked_is_the_limit_that_the_runtime_sets() {
    let engine = engine(&[]);
    let world = world(&engine, &[node("n1", 1, 96)]);
    // 20 units are 10 GiB, which the runtime holds to 16 GiB. Admission refuses such a size; a pod may come without it.
    let odd = pod("p", &[limits(1, 20, 4)], &[]);
    let allocation = given(&world, &engine, &odd).unwrap();
    assert_eq!(allocation.shares().next().unwrap().1.memory.get(), 16_384);
    let large = world_with(&engine, 40);
    let most = given(&large, &engine, &pod("p", &[limits(1, 34, 4)], &[])).unwrap();
    assert_eq!(
        most.shares().next().unwrap().1.memory.get(),
        20_480,
        "never more than the card has"
    );
}

fn world_with(engine: &Engine, units: i64) -> World {
    world(engine, &[node("n1", 1, units)])
}

#[test]
fn no_card_is_cut_into_more_slices_than_the_kernel_module_makes() {
    let engine = engine(&[]);
    let mut world = world(&engine, &[node("n1", 1, 96)]);
    let free = pod("free", &[limits(1, 2, 0)], &[]);
    let seventeenth = given(&world, &engine, &free).unwrap();
    for number in 0..16 {
        let mut running = pod(&format!("r{number}"), &[limits(1, 2, 0)], &[]);
        running["metadata"]["annotations"] =
            json!({"hami.io/vgpu-node": "n1", ALLOCATED: "n1-mthreads-0,Mthreads,1024,0:;"});
        running["spec"]["nodeName"] = json!("n1");
        assert!(world.set_pod(&PodView::from_json(&running).unwrap()).booked);
    }
    assert_eq!(
        given(&world, &engine, &free).unwrap_err(),
        "1/1 CardTimeSlicingExhausted"
    );
    // Decided before the others came, booked after them.
    let late = PodView::from_json(&free).unwrap();
    let assumption = Assumption {
        pod: &late.id,
        roles: &[ContainerRole::App],
        node: &NodeName::new("n1").unwrap(),
        allocation: seventeenth,
        priority: 0,
        facts: &BTreeMap::new(),
        now: 0,
        expires_at: 60,
    };
    let Err(AssumeError::Taken(reason)) = world.assume(&assumption) else {
        panic!("a seventeenth slice was booked");
    };
    assert_eq!(reason.kind, ReasonKind::SlotsExhausted);
}

#[test]
fn the_plugin_is_told_card_node_and_a_moment_of_its_own() {
    let engine = engine(&[]);
    let world = world(&engine, &[node("n1", 2, 96)]);
    let written = |name: &str| {
        let pod = pod(name, &[limits(2, 192, 32)], &[]);
        let demand = engine.demand(&PodView::from_json(&pod).unwrap()).unwrap();
        let at = WriteContext {
            node: &NodeName::new("n1").unwrap(),
            now_seconds: 1_764_000_000,
            cards: &[],
        };
        engine.annotations(&given(&world, &engine, &pod).unwrap(), &demand, &at)
    };
    let (one, other) = (written("a"), written("b"));
    assert_eq!((one[INDEX].as_str(), one[NODE].as_str()), ("1,0", "n1"));
    assert!(!one.contains_key("hami.io/mthreads-vgpu-devices-to-allocate"));
    for annotations in [&one, &other] {
        let nanoseconds: i64 = annotations[TIME].parse().unwrap();
        assert_eq!(nanoseconds / 1_000_000_000, 1_764_000_000);
    }
    assert_ne!(one[TIME], other[TIME], "two pods of one second");
}

#[test]
fn whole_cards_are_as_large_as_the_cluster_has_them() {
    let bare = pod("p", &[json!({"limits": {COUNT: "1"}})], &[]);
    let filled = |memory_per_card: &[i64], sizes: &[i64], pod: &Value| {
        let engine = engine(memory_per_card);
        let nodes: Vec<NodeView> = (0..)
            .zip(sizes)
            .map(|(at, size)| node(&format!("n{at}"), 2, *size))
            .collect();
        admitted(&world(&engine, &nodes), &engine, pod)
    };
    let memory = |configured: &[i64], sizes: &[i64]| filled(configured, sizes, &bare).unwrap().limits[MEMORY].clone();
    assert_eq!(memory(&[], &[]), "96");
    assert_eq!(memory(&[], &[160]), "160");
    assert_eq!(memory(&[], &[160, 96]), "96", "has to be had on either");
    assert_eq!(memory(&[160], &[]), "160");
    let whole = filled(&[], &[160], &pod("p", &[limits(1, 160, 16)], &[])).unwrap();
    assert!(whole.limits.is_empty());
    let error = filled(&[], &[96], &pod("p", &[limits(1, 160, 16)], &[])).err().unwrap();
    assert!(
        error.starts_with("sGPU memory request value is invalid, valid values are [2, 4, 8, 16, 32, 64, 96]"),
        "{error}"
    );
    let two = filled(&[], &[96], &pod("p", &[limits(2, 8, 2)], &[])).unwrap();
    assert_eq!((two.limits[MEMORY].as_str(), two.limits[CORES].as_str()), ("192", "32"));
    assert!(
        two.annotations.to_string().contains(&REQUEST_COUNT.replace('/', "~1"))
            || two.annotations.to_string().contains(REQUEST_COUNT)
    );
    assert!(
        two.warnings.iter().any(|text| text.contains("2 cards are taken whole")),
        "{:?}",
        two.warnings
    );
    let part = filled(
        &[],
        &[96],
        &pod("p", &[json!({"limits": {COUNT: "1", MEMORY: "32"}})], &[]),
    )
    .unwrap();
    assert_eq!(part.limits[CORES], "5", "a third of the memory, a third of the compute");
}

#[test]
fn a_node_whose_cards_the_table_does_not_know_takes_no_work() {
    let engine = engine(&[96]);
    let mut world = World::new(Arc::clone(engine.vendors()));
    let change = world.set_node(&node("n1", 2, 160));
    let problems: Vec<String> = change.problems.iter().map(|(_, problem)| problem.to_string()).collect();
    assert_eq!(problems.len(), 2, "one for each card");
    assert!(matches!(change.problems[0].1, NodeProblem::Disagrees { .. }));
    assert!(
        problems[0].contains("160 memory units") && problems[0].contains("`memoryPerCard`"),
        "{problems:?}"
    );
    assert!(given(&world, &engine, &pod("p", &[limits(1, 32, 8)], &[])).is_err());
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let engine = engine(&[]);
    let world = world(&engine, &[node("n1", 2, 96)]);
    let refused = |containers: &[Value]| {
        let pod = pod("p", containers, &[]);
        admitted(&world, &engine, &pod).err().unwrap_or_default()
    };
    assert!(refused(&[json!({"limits": {COUNT: "0"}})]).starts_with("mthreads.com/vgpu must be greater than 0"));
    assert!(refused(&[json!({"limits": {COUNT: "1500m"}})]).contains("is not a number of cards"));
    let mixed = refused(&[limits(1, 32, 8), json!({"limits": {"mthreads.com/gpu": "1"}})]);
    assert!(
        mixed.contains("container `c1` of the pod asks for `mthreads.com/gpu`"),
        "{mixed}"
    );
    let uneven = given(&world, &engine, &pod("p", &[limits(2, 192, 1)], &[])).unwrap_err();
    assert!(
        uneven.contains("1 core groups cannot be parted between 2 cards"),
        "{uneven}"
    );
}
