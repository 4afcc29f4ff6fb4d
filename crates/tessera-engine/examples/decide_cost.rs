//! The cost of one decision, for an instruction counter and for the clock.
//!
//! `decide_cost [decisions] [warm|cold|times|alone] [nodes] [pods] [nvidia|every] [policy]`: over 1,000 nodes of 8 cards with 2,000
//! pods unless said otherwise. Every decision is followed by booking its winner and by the watch event that confirms it,
//! so one node changes between two decisions, as in a
//! wave of like pods. With `cold` every decision has a new shape, so that nothing remembered helps. With `times` pods of
//! eight shapes take turns, and one JSON object with the times of the decisions and the process's memory is printed;
//! otherwise nothing is. `alone` does not book: the decision by itself. With `every` the scheduler serves all classes and
//! not NVIDIA's alone; the nodes and pods are the same. The node policy is spread unless another is named.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tessera_engine::{Assumption, Candidates, Defaults, Engine, Vendor, Vendors, World, WriteContext};
use tessera_types::NodePolicy;
use tessera_vendors::nvidia::Nvidia;
use tessera_wire::config::DeviceConfig;
use tessera_wire::{NameList, NodeView, PodView, config};

const CARDS: usize = 8;

fn node(at: usize) -> NodeView {
    let cards: Vec<serde_json::Value> = (0..CARDS)
        .map(|card| {
            serde_json::json!({"id": format!("GPU-{at:05}-{card}"), "index": card, "count": 10, "devmem": 81920,
                "devcore": 100, "type": "NVIDIA-H100", "numa": card / 4, "mode": "hami-core", "health": true})
        })
        .collect();
    let register = serde_json::Value::from(cards).to_string();
    let object = serde_json::json!({"metadata": {"name": format!("node-{at:05}"),
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
    let number = |text: Option<String>, otherwise: usize| text.and_then(|text| text.parse().ok()).unwrap_or(otherwise);
    let decisions = number(arguments.next(), 100);
    let mode = arguments.next().unwrap_or_else(|| "warm".to_owned());
    let nodes = number(arguments.next(), 1000);
    let pods = number(arguments.next(), 2000);

    let vendors = if arguments.next().as_deref() == Some("every") {
        let every = include_str!("../../tessera-vendors/tests/suite/config.yaml");
        tessera_vendors::from_config(&DeviceConfig::from_yaml(every).expect("a configuration"))
    } else {
        let nvidia = Nvidia::new(&config::Nvidia::default());
        Arc::new(Vendors::new(vec![Arc::new(nvidia) as Arc<dyn Vendor>]))
    };
    let defaults = Defaults {
        node_policy: arguments.next().map_or(NodePolicy::Spread, |name| {
            NodePolicy::parse(&name).expect("a node policy")
        }),
        card_policy: None,
    };
    let engine = Engine::new(Arc::clone(&vendors), defaults);
    let mut world = World::new(vendors);
    let names: Vec<String> = (0..nodes).map(|at| format!("node-{at:05}")).collect();
    let list = |names: &[String]| {
        let mut list = NameList::default();
        names.iter().for_each(|name| list.push(name));
        list
    };
    let all = list(&names);
    for at in 0..nodes {
        world.set_node(&node(at));
    }
    let place = |world: &mut World, mut pod: PodView, names: &NameList, book: bool| {
        let begun = Instant::now();
        let snapshot = world.snapshot();
        let demand = engine.demand(&pod).expect("a demand");
        let winner = engine
            .choose(&snapshot, &demand, Candidates::Listed(names))
            .expect("room");
        let took = begun.elapsed();
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
        if book {
            world.assume(&assumption).expect("room");
            let cards = snapshot.node(winner.node.as_str()).expect("a node").cards();
            let context = WriteContext {
                node: &winner.node,
                now_seconds: 0,
                cards,
            };
            pod.annotations = engine.annotations(&winner.allocation, &demand, &context);
            pod.node_name = Some(winner.node.to_string());
            // The watch event of the bound pod, whose texts are its own.
            world.set_pod(&pod);
        }
        took
    };
    for at in 0..pods {
        let home = list(&names[at % nodes..=at % nodes]);
        place(&mut world, pod(&format!("old-{at}"), 1000 + at % 7), &home, true);
    }
    world.expire(100);
    let mut times = Vec::with_capacity(decisions);
    for at in 0..decisions {
        let memory = match mode.as_str() {
            "cold" => 2000 + at,
            "times" => 2000 + 100 * (at % 8),
            _ => 2000,
        };
        let pod = pod(&format!("new-{at}"), memory);
        times.push(place(&mut world, pod, &all, mode != "alone"));
    }
    if mode == "times" {
        print(nodes, pods, times);
    }
}

#[expect(clippy::print_stdout, reason = "its output is its purpose")]
fn print(nodes: usize, pods: usize, mut times: Vec<Duration>) {
    times.sort();
    let at = |percent: usize| {
        times
            .get((times.len() - 1) * percent / 100)
            .map_or(0, Duration::as_micros)
    };
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let memory = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    let figures = serde_json::json!({"nodes": nodes, "cards": nodes * CARDS, "pods": pods, "decisions": times.len(),
        "p50_us": at(50), "p99_us": at(99), "max_us": at(100), "rss_mib": memory.map(|kib| kib / 1024)});
    println!("{figures}");
}
