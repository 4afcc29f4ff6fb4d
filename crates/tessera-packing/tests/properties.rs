//! What holds under every policy, whatever comes and goes.

use proptest::prelude::*;
use tessera_packing::{
    Cluster, Fragmentation, ModelSet, Models, Node, Placement, Policy, Request, WHOLE, Weights, Workload,
};

const POLICIES: [Policy; 3] = [Policy::Fgd, Policy::BestFit, Policy::Hami];

fn policy(at: usize) -> Policy {
    POLICIES.get(at).copied().unwrap_or(Policy::Tessera(Weights::default()))
}

fn nodes() -> impl Strategy<Value = Vec<Node>> {
    let node = (1_u32..128, 1_u32..64, 0_u8..9, 0_u8..3).prop_map(|(cpu, memory, cards, model)| Node {
        cpu: cpu * 1000,
        memory: memory * 1024,
        cards,
        model,
    });
    prop::collection::vec(node, 1..12)
}

fn requests() -> impl Strategy<Value = Vec<(Request, bool)>> {
    let shape = prop_oneof![
        1 => Just((0_u8, 0_u32)),
        4 => (1_u32..100).prop_map(|part| (1, part * 10)),
        2 => (1_u8..9).prop_map(|count| (count, WHOLE)),
    ];
    let models = prop_oneof![3 => Just(ModelSet::ANY), 1 => (0_u8..3).prop_map(|model| ModelSet::of([model]))];
    let request = (shape, 0_u32..24, 0_u32..32, models).prop_map(|((count, milli), cpu, memory, models)| Request {
        cpu: cpu * 500,
        memory: memory * 512,
        count,
        milli,
        models,
    });
    prop::collection::vec((request, any::<bool>()), 1..80)
}

fn cluster(nodes: &[Node], requests: &[(Request, bool)], rank: &[u32], policy: Policy) -> Cluster {
    let mut workload = Workload::new();
    for (request, _) in requests {
        workload.see(request, "");
    }
    Cluster::new(
        nodes,
        rank,
        Fragmentation::new(workload.typical(&Models::default())),
        policy,
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_booked_twice_and_a_release_undoes_an_allocation(
        nodes in nodes(), requests in requests(), which in 0_usize..4,
    ) {
        let mut cluster = cluster(&nodes, &requests, &[], policy(which));
        let mut held: Vec<(Request, Placement)> = Vec::new();
        for (request, leaves) in &requests {
            cluster.see(request);
            if let Some(placement) = cluster.decide(request) {
                let node = &nodes[placement.node];
                let (cpu, memory, cards) = cluster.left(placement.node).unwrap();
                prop_assert_eq!(placement.cards.count_ones(), u32::from(request.count));
                prop_assert!(cpu >= request.cpu && memory >= request.memory);
                prop_assert!(request.count == 0 || request.models.has(node.model));
                let fits = |card: usize| card < usize::from(node.cards) && cards[card] >= request.milli;
                prop_assert!((0..8).all(|card| !placement.takes(card) || fits(card)));
                let (used, fragmentation) = (cluster.used(), cluster.fragmentation());
                prop_assert!(cluster.take(request, placement));
                prop_assert_eq!(cluster.used(), used + u64::from(request.demand()));
                prop_assert_eq!(cluster.release(request, placement), Ok(()));
                prop_assert_eq!(cluster.left(placement.node), Some((cpu, memory, cards)));
                prop_assert_eq!(cluster.used(), used);
                prop_assert!((cluster.fragmentation() - fragmentation).abs() < 1e-6);
                prop_assert_eq!(cluster.decide(request), Some(placement));
                prop_assert!(cluster.take(request, placement));
                held.push((*request, placement));
            } else {
                let fits = (0..nodes.len()).any(|row| {
                    let (cpu, memory, cards) = cluster.left(row).unwrap();
                    let room = cards.iter().take(usize::from(nodes[row].cards)).filter(|left| **left >= request.milli);
                    cpu >= request.cpu && memory >= request.memory
                        && (request.count == 0 || request.models.has(nodes[row].model))
                        && room.count() >= usize::from(request.count)
                });
                // The model of HAMi also runs out of slots.
                prop_assert!(!fits || which == 2, "refused, and it fits");
            }
            if *leaves && let Some((request, placement)) = held.pop() {
                prop_assert_eq!(cluster.release(&request, placement), Ok(()));
            }
        }
        for (request, placement) in held.into_iter().rev() {
            prop_assert_eq!(cluster.release(&request, placement), Ok(()));
        }
        prop_assert_eq!(cluster.used(), 0);
        for (row, node) in nodes.iter().enumerate() {
            let (cpu, memory, cards) = cluster.left(row).unwrap();
            prop_assert_eq!((cpu, memory), (node.cpu, node.memory));
            let whole = |card: usize| u32::from(card < usize::from(node.cards)) * WHOLE;
            let restored = (0..8).all(|card| cards[card] == whole(card));
            prop_assert!(restored, "cards differ from those of an empty node");
        }
    }

    #[test]
    fn the_order_of_nodes_decides_nothing_but_by_their_rank(
        nodes in nodes(), requests in requests(), which in 0_usize..4,
    ) {
        let count = u32::try_from(nodes.len()).unwrap();
        let ranks: Vec<u32> = (0..count).collect();
        let reversed: Vec<Node> = nodes.iter().rev().cloned().collect();
        let back: Vec<u32> = (0..count).rev().collect();
        let mut one = cluster(&nodes, &requests, &ranks, policy(which));
        let mut other = cluster(&reversed, &requests, &back, policy(which));
        for (request, _) in &requests {
            one.see(request);
            other.see(request);
            let (first, second) = (one.decide(request), other.decide(request));
            let turned = second.map(|placement| Placement { node: nodes.len() - 1 - placement.node, ..placement });
            prop_assert_eq!(first, turned);
            if let (Some(first), Some(second)) = (first, second) {
                prop_assert!(one.take(request, first) && other.take(request, second));
            }
        }
    }
}
