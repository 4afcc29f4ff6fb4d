//! MIG instances that random streams of pods get, by policy.
//!
//! `mig_streams [seeds]`: 32 A100 in MIG mode on 4 nodes; 4,000 pods, each for one instance, one after the other; each
//! stays for a time that is drawn, and one for which there is no room is gone. For three mixes of profiles and three
//! loads: how many pods found room and how many compute slices they got, under first fit (the first free placement of
//! the first card, our own arithmetic), and through the engine under `binpack` with cards spread and under `tessera`.

use std::collections::BTreeMap;
use std::sync::Arc;

use tessera_engine::{Assumption, Candidates, Defaults, Engine, Vendor, Vendors, World};
use tessera_types::NodePolicy;
use tessera_vendors::nvidia::Nvidia;
use tessera_wire::{NodeView, PodView, config};

const NODES: usize = 4;
const CARDS: usize = 8;
const PODS: usize = 4000;

/// Name, memory in MiB, compute in %, compute slices, first slices, memory slices.
type Profile = (&'static str, u64, u32, u32, &'static [u32], u32);

const PROFILES: [Profile; 4] = [
    ("1g.5gb", 4864, 15, 1, &[0, 1, 2, 3, 4, 5, 6], 1),
    ("2g.10gb", 9984, 29, 2, &[0, 2, 4], 2),
    ("3g.20gb", 20096, 43, 3, &[0, 4], 4),
    ("7g.40gb", 40448, 100, 7, &[0], 8),
];

/// Name, and how often each profile is asked for.
const MIXES: [(&str, [u64; 4]); 3] = [("even", [2, 2, 2, 2]), ("small", [8, 4, 2, 1]), ("large", [1, 2, 3, 2])];

/// Slices asked for at one time, of those there are, in %.
const LOADS: [u64; 3] = [90, 110, 150];

/// What a stream asks: the profile, and how many arrivals later the pod goes.
type Stream = Vec<(usize, usize)>;

/// Xorshift: the streams are the same on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

fn stream(mix: [u64; 4], load: u64, seed: u64) -> Stream {
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let all: u64 = mix.iter().sum();
    let slices: u64 = mix
        .iter()
        .zip(PROFILES)
        .map(|(weight, profile)| weight * u64::from(profile.3))
        .sum();
    let mean = load * 7 * (NODES * CARDS) as u64 * all / slices / 100;
    let draw = |_| {
        let mut at = random.below(all);
        let profile = mix.iter().position(|weight| {
            let found = at < *weight;
            at = at.wrapping_sub(*weight);
            found
        });
        // Even between nothing and twice the mean.
        (
            profile.unwrap_or(0),
            1 + usize::try_from(random.below(2 * mean)).unwrap_or(0),
        )
    };
    (0..PODS).map(draw).collect()
}

/// Pods that found room, and the slices they got.
fn replay(stream: &Stream, mut place: impl FnMut(usize, usize) -> bool, mut end: impl FnMut(usize)) -> (u64, u64) {
    let mut going: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    let (mut pods, mut slices) = (0, 0);
    for (at, (profile, stays)) in stream.iter().enumerate() {
        for pod in going.remove(&at).unwrap_or_default() {
            end(pod);
        }
        if place(at, *profile) {
            going.entry(at + stays).or_default().push(at);
            pods += 1;
            slices += u64::from(PROFILES[*profile].3);
        }
    }
    (pods, slices)
}

fn first_fit(stream: &Stream) -> (u64, u64) {
    let cards = std::cell::RefCell::new(vec![0_u32; NODES * CARDS]);
    let held = std::cell::RefCell::new(BTreeMap::new());
    let place = |pod: usize, profile: usize| {
        let (.., starts, size) = PROFILES[profile];
        let mut cards = cards.borrow_mut();
        let found = cards.iter().enumerate().find_map(|(card, used)| {
            let masks = starts.iter().map(|start| ((1 << size) - 1) << start);
            let free: Option<u32> = masks.into_iter().find(|mask| used & mask == 0);
            Some((card, free?))
        });
        if let Some((card, mask)) = found {
            cards[card] |= mask;
            held.borrow_mut().insert(pod, (card, mask));
        }
        found.is_some()
    };
    let end = |pod: usize| {
        if let Some((card, mask)) = held.borrow_mut().remove(&pod) {
            cards.borrow_mut()[card] &= !mask;
        }
    };
    replay(stream, place, end)
}

fn node(at: usize) -> NodeView {
    let profiles: Vec<serde_json::Value> = PROFILES
        .iter()
        .map(|(name, memory, cores, slices, starts, size)| {
            let placements: Vec<_> = starts.iter().map(|start| serde_json::json!({"start": start, "size": size})).collect();
            serde_json::json!({"name": name, "memoryMB": memory, "core": cores, "sliceCount": slices, "placements": placements})
        })
        .collect();
    let cards: Vec<serde_json::Value> = (0..CARDS)
        .map(|card| {
            serde_json::json!({"id": format!("GPU-{at}-{card}"), "index": card, "count": 7, "devmem": 40960,
                "devcore": 100, "type": "NVIDIA-A100", "numa": 0, "mode": "mig", "health": true,
                "migProfiles": profiles})
        })
        .collect();
    let object = serde_json::json!({"metadata": {"name": format!("node-{at}"),
        "annotations": {"hami.io/node-nvidia-register": serde_json::Value::from(cards).to_string()}}});
    NodeView::from_json(&object).expect("a node")
}

fn pod(at: usize, profile: usize) -> PodView {
    let limits = serde_json::json!({"nvidia.com/gpu": "1", "nvidia.com/gpumem": PROFILES[profile].1.to_string()});
    let object = serde_json::json!({"metadata": {"name": format!("p{at}"), "namespace": "ns", "uid": format!("p{at}")},
        "spec": {"containers": [{"name": "c", "resources": {"limits": limits}}]}, "status": {"phase": "Pending"}});
    PodView::from_json(&object).expect("a pod")
}

fn through_engine(stream: &Stream, policy: NodePolicy) -> (u64, u64) {
    let nvidia = Nvidia::new(&config::Nvidia::default());
    let vendors = Arc::new(Vendors::new(vec![Arc::new(nvidia) as Arc<dyn Vendor>]));
    let defaults = Defaults {
        node_policy: policy,
        card_policy: None,
    };
    let engine = Engine::new(Arc::clone(&vendors), defaults);
    let mut world = World::new(vendors);
    (0..NODES).for_each(|at| {
        world.set_node(&node(at));
    });
    let world = std::cell::RefCell::new(world);
    let place = |at: usize, profile: usize| {
        let mut world = world.borrow_mut();
        let pod = pod(at, profile);
        world.set_pod(&pod);
        let demand = engine.demand(&pod).expect("a demand");
        let Some(winner) = engine.choose(&world.snapshot(), &demand, Candidates::All) else {
            world.remove_pod(&pod.id.uid);
            return false;
        };
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
        true
    };
    let end = |at: usize| {
        world.borrow_mut().remove_pod(&pod(at, 0).id.uid);
    };
    replay(stream, place, end)
}

#[expect(clippy::print_stdout, reason = "its output is its purpose")]
fn main() {
    let seeds: u64 = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(3);
    println!("| mix | load | first fit: pods, slices | binpack, cards spread | tessera |");
    println!("| --- | --- | --- | --- | --- |");
    for (name, mix) in MIXES {
        for load in LOADS {
            let mut sums = [(0, 0); 3];
            for seed in 1..=seeds {
                let stream = stream(mix, load, seed);
                let results = [
                    first_fit(&stream),
                    through_engine(&stream, NodePolicy::Binpack),
                    through_engine(&stream, NodePolicy::Tessera),
                ];
                for (sum, result) in sums.iter_mut().zip(results) {
                    *sum = (sum.0 + result.0, sum.1 + result.1);
                }
            }
            let [base, others @ ..] = sums;
            let more = |new: u64, old: u64| 100.0 * new as f64 / old as f64 - 100.0;
            let cells =
                others.map(|(pods, slices)| format!("{:+.1} %, {:+.1} %", more(pods, base.0), more(slices, base.1)));
            println!("| {name} | {load} % | {}, {} | {} |", base.0, base.1, cells.join(" | "));
        }
    }
}
