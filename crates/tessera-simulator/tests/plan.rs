//! Dumps and proposals, from recorded answers of an API server.

#![allow(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;

use common::*;
use proptest::prelude::*;
use serde_json::{Value, json};
use tessera_engine::{Assumption, World};
use tessera_kube::script::{self, Reply};
use tessera_simulator::format::Dump;
use tessera_simulator::plan::{Proposal, propose};
use tessera_simulator::{PolicyName, collect, mask};
use tessera_types::NodeName;

fn dumped(nodes: Vec<Value>, pods: Vec<Value>, volumes: Vec<Value>) -> Dump {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let _inside = runtime.enter();
    let (client, log) = script::client(move |sent| {
        let items = match sent.path.as_str() {
            "/api/v1/nodes" => nodes.clone(),
            "/api/v1/pods" => pods.clone(),
            "/api/v1/persistentvolumes" => volumes.clone(),
            _ => return Reply::Refuse(404, "NotFound"),
        };
        Reply::Object(json!({"metadata": {}, "items": items}))
    });
    let (dump, unreadable) = runtime.block_on(collect(&client, &vendors())).unwrap();
    assert!(unreadable.is_empty(), "{unreadable:?}");
    assert!(log.writes().is_empty(), "a dump writes nothing");
    dump
}

/// Three nodes of two linked cards each; on the cards of `a` and `b` one small pod each.
fn scattered() -> (Vec<Value>, Vec<Value>) {
    let links = |x: &str, y: &str| json!([{"uuid": x, "score": {y: 200}}, {"uuid": y, "score": {x: 200}}]);
    let nodes = ["a", "b", "c"]
        .map(|name| {
            let (x, y) = (format!("GPU-{name}-first"), format!("GPU-{name}-second"));
            node(&format!("node-{name}"), &[&x, &y], &links(&x, &y))
        })
        .to_vec();
    let pods = vec![
        pod("one", "node-a", &["GPU-a-first"], 4000),
        pod("two", "node-a", &["GPU-a-second"], 4000),
        pod("three", "node-b", &["GPU-b-first"], 4000),
        pod("four", "node-b", &["GPU-b-second"], 4000),
    ];
    (nodes, pods)
}

fn proposal(dump: &Dump, most: usize) -> Proposal {
    propose(dump, &vendors(), PolicyName::Tessera, most).unwrap()
}

/// Carries the moves out one by one on a fresh world; each must be possible when its turn comes.
fn carry_out(dump: &Dump, proposal: &Proposal) -> World {
    let mut world = World::new(vendors());
    for node in &dump.nodes {
        world.set_node(&node.view().unwrap());
    }
    for pod in &dump.pods {
        world.set_pod(&pod.view().unwrap());
    }
    for one in &proposal.moves {
        let pod = dump.pods.iter().find(|pod| pod.uid == one.uid).unwrap();
        let view = pod.view().unwrap();
        let held = world.snapshot().booking(&view.id.uid).unwrap().node.to_string();
        assert_eq!(held, one.from, "{} is where the plan says", one.pod);
        assert_ne!(one.from, one.to);
        // Its controller makes it again once it is gone.
        world.remove_pod(&view.id.uid);
        let node = NodeName::new(&one.to).unwrap();
        world
            .assume(&Assumption {
                pod: &view.id,
                roles: &view.roles(),
                node: &node,
                allocation: Arc::clone(&one.allocation),
                priority: 0,
                facts: &std::collections::BTreeMap::new(),
                now: 1,
                expires_at: 100,
            })
            .unwrap();
    }
    assert!(world.audit().is_empty());
    world
}

fn free_cards(world: &World) -> usize {
    let snapshot = world.snapshot();
    let usage = snapshot.nodes().flat_map(|node| node.usage().to_vec());
    usage.filter(|used| used.usage.slots == 0).count()
}

#[test]
fn two_moves_free_a_node_with_its_linked_cards() {
    let (nodes, pods) = scattered();
    let dump = dumped(nodes, pods, vec![]);
    let found = proposal(&dump, 2);
    assert_eq!(found.moves.len(), 2, "{found:?}");
    assert_eq!((found.before.cards, found.before.groups, found.before.nodes), (2, 1, 1));
    assert_eq!((found.after.cards, found.after.groups, found.after.nodes), (4, 2, 2));
    let from: BTreeSet<&str> = found.moves.iter().map(|one| one.from.as_str()).collect();
    assert_eq!(from.len(), 1, "both leave the same node");
    assert_eq!(free_cards(&carry_out(&dump, &found)), 4);
}

#[test]
fn no_more_moves_than_asked_for_and_none_that_free_nothing() {
    let (nodes, pods) = scattered();
    let dump = dumped(nodes, pods, vec![]);
    let one = proposal(&dump, 1);
    assert_eq!((one.moves.len(), one.after.cards), (1, 3));
    let many = proposal(&dump, 100);
    assert_eq!(free_cards(&carry_out(&dump, &many)), many.after.cards);
    let mut done = dump.clone();
    for pod in &mut done.pods {
        pod.stays = Some("it must not".to_owned());
    }
    let none = proposal(&done, 100);
    assert!(none.moves.is_empty());
    assert_eq!(none.stay["it must not"].len(), 4);
}

#[test]
fn pods_that_belong_to_their_node_stay_and_it_is_said_why() {
    let (nodes, mut pods) = scattered();
    pods[0]["metadata"]["ownerReferences"] = json!([{"kind": "DaemonSet", "name": "d", "controller": true}]);
    pods[1]["metadata"]["annotations"]["cluster-autoscaler.kubernetes.io/safe-to-evict"] = json!("false");
    pods[2]["spec"]["volumes"] = json!([{"persistentVolumeClaim": {"claimName": "scratch"}}]);
    pods[3]["metadata"]["ownerReferences"] = json!([]);
    let volume = json!({"spec": {"local": {"path": "/x"}, "claimRef": {"namespace": "team-blue", "name": "scratch"}}});
    let dump = dumped(nodes.clone(), pods.clone(), vec![volume]);
    let found = proposal(&dump, 10);
    assert!(found.moves.is_empty());
    let said: Vec<(&str, &str)> = found
        .stay
        .iter()
        .map(|(reason, pods)| (reason.as_str(), pods[0].as_str()))
        .collect();
    assert_eq!(
        said,
        [
            ("a DaemonSet runs it on this node", "team-blue/one"),
            ("it has a volume claim that is local to this node", "team-blue/three"),
            (
                "its annotation `cluster-autoscaler.kubernetes.io/safe-to-evict` is `false`",
                "team-blue/two"
            ),
            ("no controller would make it again", "team-blue/four"),
        ]
    );
    // The claim of a volume that any node can mount keeps nobody.
    let elsewhere = json!({"spec": {"nfs": {}, "claimRef": {"namespace": "team-blue", "name": "scratch"}}});
    let dump = dumped(nodes, pods, vec![elsewhere]);
    assert!(
        !proposal(&dump, 10)
            .stay
            .contains_key("it has a volume claim that is local to this node")
    );
}

#[test]
fn nodes_that_take_no_pods_get_none() {
    let (mut nodes, pods) = scattered();
    nodes[1]["spec"] = json!({"unschedulable": true});
    nodes[2]["spec"] = json!({"taints": [{"key": "reserved", "effect": "NoSchedule"}]});
    let dump = dumped(nodes, pods, vec![]);
    for one in &proposal(&dump, 10).moves {
        assert_eq!((one.from.as_str(), one.to.as_str()), ("node-b", "node-a"));
    }
}

#[test]
fn a_dump_holds_what_decisions_need_and_nothing_secret() {
    let (nodes, mut pods) = scattered();
    pods[0]["spec"]["nodeSelector"] = json!({"pool": "a"});
    pods.push(
        json!({"metadata": {"name": "elsewhere", "namespace": "x", "uid": "e"}, "spec": {"nodeName": "plain",
        "containers": []}}),
    );
    // It asks for cards, and its node tells of none any more.
    pods.push(pod("lost", "plain", &["GPU-gone-first"], 1000));
    pods.push({
        let mut ended = pod("ended", "node-a", &["GPU-a-first"], 1000);
        ended["status"]["phase"] = json!("Succeeded");
        ended
    });
    let mut all = nodes;
    all.push(json!({"metadata": {"name": "plain"}}));
    let dump = dumped(all, pods, vec![]);
    let text = serde_json::to_string(&dump).unwrap();
    assert!(!text.contains("hunter2") && !text.contains("somebody"), "{text}");
    assert_eq!((dump.nodes.len(), dump.pods.len()), (3, 4));
    assert_eq!(dump.nodes[0].labels["pool"], "a", "a pod selects by it");
    let again: Dump = serde_json::from_str(&text).unwrap();
    assert_eq!(again, dump);
}

#[test]
fn masked_names_say_nothing_and_decisions_stay_the_same() {
    let (nodes, pods) = scattered();
    let plain = dumped(nodes, pods, vec![]);
    let mut masked = plain.clone();
    mask(&mut masked, &vendors(), "key").unwrap();
    let mut again = plain.clone();
    mask(&mut again, &vendors(), "key").unwrap();
    assert_eq!(masked, again);
    let text = serde_json::to_string(&masked).unwrap();
    for name in ["node-a", "node-b", "team-blue", "GPU-a-", "GPU-b-", "three", "uid-one"] {
        assert!(!text.contains(name), "{name} is in {text}");
    }
    let (open, hidden) = (proposal(&plain, 2), proposal(&masked, 2));
    assert_eq!((open.before, open.after), (hidden.before, hidden.after));
    carry_out(&masked, &hidden);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    /// On random clusters every move is possible when its turn comes, nothing is promised twice, and what is said to be
    /// free afterwards is free.
    #[test]
    fn moves_are_possible_in_their_order(
        holds in prop::collection::vec((0_usize..6, 1_u32..16, any::<bool>()), 1..24),
        most in 1_usize..8,
    ) {
        let (nodes, _) = scattered();
        let cards = ["a-first", "a-second", "b-first", "b-second", "c-first", "c-second"];
        let mut used = [0; 6];
        let mut pods = Vec::new();
        for (number, (at, thousand, fixed)) in holds.into_iter().enumerate() {
            if used[at] + thousand <= 16 {
                used[at] += thousand;
                let node = format!("node-{}", &cards[at][..1]);
                let card = format!("GPU-{}", cards[at]);
                let mut pod = pod(&format!("p{number:02}"), &node, &[&card], thousand * 1000);
                if fixed && number % 4 == 0 {
                    pod["metadata"]["ownerReferences"] = json!([]);
                }
                pods.push(pod);
            }
        }
        let dump = dumped(nodes, pods, vec![]);
        let found = proposal(&dump, most);
        prop_assert!(found.moves.len() <= most);
        prop_assert!(found.after.cards >= found.before.cards && found.after.nodes >= found.before.nodes);
        let world = carry_out(&dump, &found);
        prop_assert_eq!(free_cards(&world), found.after.cards);
        let snapshot = world.snapshot();
        for node in snapshot.nodes() {
            for (card, used) in node.cards().iter().zip(node.usage()) {
                prop_assert!(used.usage.memory <= card.memory && used.usage.slots <= card.slots);
            }
        }
        for one in &found.moves {
            let pod = dump.pods.iter().find(|pod| pod.uid == one.uid).unwrap();
            prop_assert!(pod.stays.is_none());
        }
    }
}
