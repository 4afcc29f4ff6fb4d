//! Rules that hold for every cluster and every sequence of events.

#![allow(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::collections::BTreeMap;

use common::*;
use proptest::prelude::*;
use serde_json::{Value, json};
use tessera_engine::{Candidates, World};
use tessera_types::{NodePolicy, PodUid};
use tessera_wire::{NodeView, PodPhase, PodView, keys};

#[derive(Debug, Clone)]
enum Step {
    /// Filter the pod and assume the answer.
    Filter(usize),
    /// The pod's filter attempt failed elsewhere.
    Forget(usize),
    /// The decision is written and the pod bound.
    Bind(usize),
    /// The pod's last state is seen once more, after a gap.
    Replay(usize),
    /// Its init containers are done.
    InitDone(usize),
    Finish(usize),
    Deleting(usize),
    Gone(usize),
    /// The node object disappears and comes back.
    NodeFlap(usize),
    /// So many seconds pass.
    Pass(i64),
}

fn nodes() -> Vec<NodeView> {
    let shared = |id: &str, index: u32, numa: u32| card(id, index, json!({"count": 4, "devmem": 10_000, "numa": numa}));
    vec![
        node(
            "n1",
            &[
                shared("GPU-a", 0, 0),
                shared("GPU-b", 1, 0),
                shared("GPU-c", 2, 1),
                shared("GPU-d", 3, 1),
            ],
        ),
        node(
            "n2",
            &[
                shared("GPU-e", 0, 0),
                card("GPU-f", 1, json!({"count": 2, "devmem": 40_000, "devcore": 200})),
            ],
        ),
        node("n3", &[mig_card("GPU-m"), mig_card("GPU-n")]),
    ]
}

fn limits() -> impl Strategy<Value = Value> {
    prop_oneof![
        1 => Just(json!({})),
        6 => (1_u32..4, prop_oneof![Just(0_u64), 1_u64..12_000], prop_oneof![Just(0_u32), Just(100), 1_u32..100])
            .prop_map(|(count, memory, cores)| gpu(count, memory, cores)),
        1 => (1_u32..3, 1_u32..101).prop_map(|(count, percent)| {
            json!({"nvidia.com/gpu": count.to_string(), "nvidia.com/gpumem-percentage": percent.to_string()})
        }),
    ]
}

fn a_pod(number: usize) -> impl Strategy<Value = PodView> {
    let init = prop::collection::vec((limits(), any::<bool>()), 0..3);
    let apps = prop::collection::vec(limits(), 1..3);
    let policy = prop::sample::select(vec!["", "binpack", "spread", "mutex", "topology-aware", "numa,binpack"]);
    (init, apps, policy, any::<bool>()).prop_map(move |(init, apps, policy, numa)| {
        let mut pod = pod_json(&format!("pod-{number}"), &apps);
        let init: Vec<Value> = init
            .into_iter()
            .enumerate()
            .map(|(at, (limits, sidecar))| {
                let mut container = json!({"name": format!("i{at}"), "resources": {"limits": limits}});
                if sidecar {
                    container["restartPolicy"] = json!("Always");
                }
                container
            })
            .collect();
        pod["spec"]["initContainers"] = init.into();
        if !policy.is_empty() {
            pod["metadata"]["annotations"][keys::GPU_POLICY] = json!(policy);
        }
        if numa {
            pod["metadata"]["annotations"][keys::NUMA_BIND] = json!("true");
        }
        PodView::from_json(&pod).unwrap()
    })
}

const PODS: usize = 12;

fn pods() -> impl Strategy<Value = Vec<PodView>> {
    (0..PODS).map(a_pod).collect::<Vec<_>>()
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let pod = || 0..PODS;
    prop::collection::vec(
        prop_oneof![
            6 => pod().prop_map(Step::Filter),
            1 => pod().prop_map(Step::Forget),
            5 => pod().prop_map(Step::Bind),
            2 => pod().prop_map(Step::Replay),
            1 => pod().prop_map(Step::InitDone),
            1 => pod().prop_map(Step::Finish),
            1 => pod().prop_map(Step::Deleting),
            1 => pod().prop_map(Step::Gone),
            1 => (0_usize..3).prop_map(Step::NodeFlap),
            1 => (1_i64..60).prop_map(Step::Pass),
        ],
        1..60,
    )
}

/// The API server's side, and the world that hears of it.
struct Cluster {
    world: World,
    nodes: Vec<NodeView>,
    pods: Vec<PodView>,
    decided: BTreeMap<usize, BTreeMap<String, String>>,
    gone: Vec<bool>,
    now: i64,
}

impl Cluster {
    fn new(pods: Vec<PodView>) -> Self {
        let mut world = World::new(vendors());
        let nodes = nodes();
        for node in &nodes {
            world.set_node(node);
        }
        let gone = vec![false; pods.len()];
        Self {
            world,
            nodes,
            pods,
            decided: BTreeMap::new(),
            gone,
            now: 1000,
        }
    }

    fn is_live(&self, at: usize) -> bool {
        !self.gone[at] && !self.pods[at].phase.is_terminal() && !self.pods[at].deleting
    }

    /// The winner by the index is the winner of all answers, among all nodes and among named ones, however often the
    /// shape was asked for before.
    fn assert_the_index_agrees(&self, engine: &tessera_engine::Engine, pod: &PodView) {
        let snapshot = self.world.snapshot();
        let demand = engine.demand(pod).unwrap();
        // Names that no node has make the list long enough for the index to be used.
        let unknown = |n: usize| format!("unknown-{n}");
        let lists: [Vec<String>; 3] = [
            ["n1", "n2", "n3"]
                .map(str::to_owned)
                .into_iter()
                .chain((0..20).map(unknown))
                .collect(),
            (0..20).map(unknown).chain(["n3", "n2"].map(str::to_owned)).collect(),
            (0..20).map(unknown).collect(),
        ];
        for _ in 0..2 {
            let plain = engine.decide(&snapshot, &demand, Candidates::All);
            assert_eq!(
                engine.choose(&snapshot, &demand, Candidates::All).as_ref(),
                plain.winner()
            );
            for names in &lists {
                let plain = engine.decide(&snapshot, &demand, Candidates::Names(names));
                assert_eq!(
                    engine.choose(&snapshot, &demand, Candidates::Names(names)).as_ref(),
                    plain.winner()
                );
            }
        }
    }

    fn step(&mut self, step: &Step) {
        let engine = engine_with(NodePolicy::Binpack, "spread");
        match *step {
            Step::Filter(at) if self.is_live(at) && self.pods[at].node_name.is_none() => {
                if engine.demand(&self.pods[at]).unwrap().is_empty() {
                    return;
                }
                self.assert_the_index_agrees(&engine, &self.pods[at]);
                match place(&engine, &mut self.world, &self.pods[at], self.now) {
                    Some(annotations) => self.decided.insert(at, annotations),
                    None => {
                        self.world.forget(&self.pods[at].id.uid);
                        self.decided.remove(&at)
                    }
                };
            }
            Step::Forget(at) if self.pods[at].node_name.is_none() => {
                self.world.forget(&self.pods[at].id.uid);
                self.decided.remove(&at);
            }
            Step::Bind(at) if self.is_live(at) && self.pods[at].node_name.is_none() => {
                if let Some(annotations) = self.decided.remove(&at) {
                    let uid = &self.pods[at].id.uid;
                    // A binder whose lease has ended gives up.
                    if self.world.snapshot().booking(uid).is_none() {
                        return;
                    }
                    self.pods[at] = bound(&self.pods[at], &annotations);
                    self.world.set_pod(&self.pods[at]);
                }
            }
            Step::Replay(at) if !self.gone[at] => {
                self.world.set_pod(&self.pods[at]);
            }
            Step::InitDone(at) if self.is_live(at) && self.pods[at].node_name.is_some() => {
                self.pods[at].init_done = true;
                self.world.set_pod(&self.pods[at]);
            }
            Step::Finish(at) if self.is_live(at) && self.pods[at].node_name.is_some() => {
                self.pods[at].phase = PodPhase::Succeeded;
                self.world.set_pod(&self.pods[at]);
            }
            Step::Deleting(at) if self.is_live(at) => {
                self.pods[at].deleting = true;
                self.world.set_pod(&self.pods[at]);
            }
            Step::Gone(at) => {
                self.gone[at] = true;
                self.world.remove_pod(&self.pods[at].id.uid);
            }
            Step::NodeFlap(at) => {
                let node = &self.nodes[at];
                self.world.remove_node(node.name.as_str());
                self.world.set_node(node);
            }
            Step::Pass(seconds) => {
                self.now += seconds;
                self.world.expire(self.now);
            }
            _ => {}
        }
    }

    /// A world that starts now and hears of everything in another order.
    fn restarted(&self, backwards: bool) -> World {
        let mut world = World::new(vendors());
        let mut pods: Vec<&PodView> = self
            .pods
            .iter()
            .zip(&self.gone)
            .filter(|(_, gone)| !**gone)
            .map(|(pod, _)| pod)
            .collect();
        let mut nodes: Vec<&NodeView> = self.nodes.iter().collect();
        if backwards {
            pods.reverse();
            nodes.reverse();
            pods.iter().for_each(|pod| drop(world.set_pod(pod)));
            nodes.iter().for_each(|node| drop(world.set_node(node)));
        } else {
            nodes.iter().for_each(|node| drop(world.set_node(node)));
            pods.iter().for_each(|pod| drop(world.set_pod(pod)));
        }
        world
    }
}

fn all_usage(world: &World) -> BTreeMap<String, Vec<tessera_types::CardUsage>> {
    let snapshot = world.snapshot();
    snapshot
        .nodes()
        .map(|node| (node.name().to_string(), usage(&snapshot, node.name().as_str())))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_of_events_overbooks_or_leaks(pods in pods(), steps in steps(), quota in any::<bool>()) {
        let mut cluster = Cluster::new(pods);
        if quota {
            let quantity = |text: &str| tessera_wire::Quantity::parse(text).unwrap();
            let hard = BTreeMap::from([
                ("limits.nvidia.com/gpumem".to_owned(), quantity("30000")),
                ("limits.nvidia.com/gpucores".to_owned(), quantity("250")),
            ]);
            cluster.world.set_quota("ns", "q", &hard);
        }
        for step in &steps {
            cluster.step(step);
            assert_within_capacity(&cluster.world.snapshot());
            for state in cluster.world.snapshot().quotas().state("ns").values() {
                prop_assert!(state.limit.is_none_or(|limit| state.used <= limit), "quota: {:?}", state);
            }
            prop_assert_eq!(cluster.world.audit(), vec![]);
        }
        // When all assumptions have ended, a restart sees the same, in whatever order it hears of things.
        cluster.world.expire(i64::MAX);
        let expected = all_usage(&cluster.world);
        for backwards in [false, true] {
            let restarted = cluster.restarted(backwards);
            prop_assert_eq!(restarted.audit(), vec![]);
            prop_assert_eq!(all_usage(&restarted), expected.clone());
        }
        // When all pods are gone, nothing is left.
        for pod in &cluster.pods {
            cluster.world.remove_pod(&pod.id.uid);
        }
        prop_assert_eq!(cluster.world.snapshot().booking_count(), 0);
        prop_assert!(all_usage(&cluster.world).values().flatten().all(|used| *used == Default::default()));
        prop_assert_eq!(cluster.world.audit(), vec![]);
    }

    #[test]
    fn the_order_of_candidates_and_what_is_remembered_do_not_matter(pods in pods(), seed in any::<u64>()) {
        let engine = engine_with(if seed % 2 == 0 { NodePolicy::Binpack } else { NodePolicy::Spread }, "spread");
        let mut world = World::new(vendors());
        for node in nodes() {
            world.set_node(&node);
        }
        for pod in &pods {
            let demand = engine.demand(pod).unwrap();
            if demand.is_empty() {
                continue;
            }
            let snapshot = world.snapshot();
            let mut names: Vec<String> = ["n1", "n2", "n3"].map(str::to_owned).to_vec();
            names.rotate_left(usize::try_from(seed % 3).unwrap());
            let one = engine.decide(&snapshot, &demand, Candidates::All);
            let again = engine.decide(&snapshot, &demand, Candidates::Names(&names));
            prop_assert_eq!(one.winner(), again.winner());
            // The same cluster built anew remembers nothing.
            let fresh = engine.decide(&Cluster::new(vec![]).world.snapshot(), &demand, Candidates::All);
            if snapshot.booking_count() == 0 {
                prop_assert_eq!(one.winner(), fresh.winner());
            }
            place(&engine, &mut world, pod, 1);
            assert_within_capacity(&world.snapshot());
        }
    }

    #[test]
    fn giving_back_undoes_taking(pods in pods(), order in Just((0..PODS).collect::<Vec<_>>()).prop_shuffle()) {
        let engine = engine_with(NodePolicy::Spread, "binpack");
        let mut cluster = Cluster::new(pods);
        let mut taken: Vec<PodUid> = Vec::new();
        let mut before = Vec::new();
        for at in order {
            let pod = cluster.pods[at].clone();
            if engine.demand(&pod).unwrap().is_empty() {
                continue;
            }
            let usage = all_usage(&cluster.world);
            if place(&engine, &mut cluster.world, &pod, 1).is_some() {
                taken.push(pod.id.uid);
                before.push(usage);
            }
        }
        while let (Some(uid), Some(usage)) = (taken.pop(), before.pop()) {
            cluster.world.forget(&uid);
            prop_assert_eq!(all_usage(&cluster.world), usage);
        }
    }
}

mod topology {
    use super::*;
    use std::sync::Arc;
    use tessera_engine::{Candidate, Take, topology};
    use tessera_types::{Card, CardId, CardMode, Cores, Extras, Keyword, Mib};

    fn cards(scores: &[i64], n: usize) -> Vec<Card> {
        let id = |at: usize| CardId::new(format!("GPU-{at:02}")).unwrap();
        (0..n)
            .map(|at| Card {
                id: id(at),
                class: Keyword::new("NVIDIA").unwrap(),
                index: 0,
                slots: 1,
                memory: Mib::new(1),
                cores: Cores::new(100),
                extra: Extras::NONE,
                model: Arc::from("NVIDIA"),
                numa: i32::try_from(at % 2).unwrap(),
                mode: CardMode::default(),
                healthy: true,
                mig_profiles: Vec::new(),
                link_scores: (0..n)
                    .filter(|peer| *peer != at)
                    .map(|peer| (id(peer), scores[(at.min(peer) * n + at.max(peer)) % scores.len()]))
                    .collect(),
                twin: None,
                custom: BTreeMap::new(),
            })
            .collect()
    }

    fn candidates(cards: &[Card]) -> Vec<Candidate<'_>> {
        let take = Take {
            memory: Mib::new(1),
            ..Take::default()
        };
        cards
            .iter()
            .enumerate()
            .map(|(position, card)| Candidate {
                position,
                card,
                take: take.clone(),
            })
            .collect()
    }

    /// All sets of `count`, in lexicographic order; the first of the best.
    fn brute_force(cards: &[Card], count: usize) -> Vec<usize> {
        let mut best: Option<(i64, Vec<usize>)> = None;
        let mut sets: Vec<Vec<usize>> = vec![vec![]];
        for _ in 0..count {
            sets = sets
                .into_iter()
                .flat_map(|set| {
                    let from = set.last().map_or(0, |last| last + 1);
                    (from..cards.len()).map(move |next| [set.clone(), vec![next]].concat())
                })
                .collect();
        }
        for set in sets {
            let value: i64 = set
                .iter()
                .enumerate()
                .flat_map(|(at, one)| set[at + 1..].iter().map(move |other| (*one, *other)))
                .map(|(one, other)| cards[one].link_scores[&cards[other].id])
                .sum();
            if best.as_ref().is_none_or(|(most, _)| value > *most) {
                best = Some((value, set));
            }
        }
        best.unwrap().1
    }

    proptest! {
        #[test]
        fn the_search_finds_what_trying_all_sets_finds(
            scores in prop::collection::vec(prop::sample::select(vec![-5_i64, 0, 10, 20, 20, 40, 140, 340, 1840]), 1..60),
            n in 3_usize..9,
            count in 2_usize..6,
        ) {
            let cards = cards(&scores, n);
            prop_assume!(count <= n);
            let found = topology::best_set(&candidates(&cards), count).unwrap();
            prop_assert_eq!(found.members, brute_force(&cards, count));
        }
    }

    #[test]
    fn a_large_uniform_machine_takes_no_time() {
        let cards = cards(&[40], 64);
        let found = topology::best_set(&candidates(&cards), 32).unwrap();
        assert_eq!(found.members, (0..32).collect::<Vec<_>>());
    }
}
