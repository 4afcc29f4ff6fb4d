//! Which of the cards and nodes that fit a pod gets.

use serde_json::json;
use tessera_engine::Candidates;
use tessera_types::{CardUsage, NodeRefusal, ReasonKind};

use super::super::cluster::{Cluster, NODE, annotate, node_object};
use super::super::nodes;
use super::super::rows::ROWS;
use super::super::table::{Limits, Row};
use super::{Behaviour, fill, is, must_place, part, placed, refused, some};

pub(super) const ALL: &[Behaviour] = &[
    is("ids", "only these cards, none of these cards", ids),
    is(
        "unknown-id",
        "a card that does not exist is waited for, and the pod's annotation is named",
        unknown_id,
    ),
    is("models", "only these models, whatever the case", models),
    is("no-models", "none of these models", no_models),
    is(
        "twins",
        "a request takes no card of any other class, also of one whose name contains its own",
        twins,
    ),
    is("health", "a broken card gets no work", health),
    is(
        "cordon",
        "a card that an administrator keeps free stays free, until it is given back",
        cordon,
    ),
    is("mutex", "policy `mutex` takes unused cards only", mutex),
    is(
        "card-binpack",
        "card policy `binpack` fills a card before it takes the next",
        card_binpack,
    ),
    is(
        "card-spread",
        "card policy `spread` takes the emptiest card",
        card_spread,
    ),
    is(
        "node-binpack",
        "node policy `binpack` fills a node before it takes the next",
        node_binpack,
    ),
    is(
        "node-spread",
        "node policy `spread` takes the emptiest node",
        node_spread,
    ),
    is(
        "candidates",
        "only nodes that kube-scheduler left are chosen",
        candidates,
    ),
    is("numa", "the cards of a container on one NUMA node", numa),
    is("links", "two cards that are linked come first", links),
    is(
        "two-makers",
        "cards of two makers in one pod, and in one container",
        two_makers,
    ),
];

fn ids(row: &'static Row) {
    let (only, never) = row.ids.expect("a row with ids");
    let mut cluster = Cluster::new(row);
    for id in cluster.ids() {
        for (key, taken) in [(only, true), (never, false)] {
            let mut pod = cluster.pod("p", some(row));
            annotate(&mut pod, &[(key, &id)]);
            must_place(&mut cluster, &pod);
            assert_eq!(cluster.cards_of("p").contains(&id), taken, "{key}");
            cluster.remove("p");
        }
    }
    let all = cluster.ids().join(",");
    let mut pod = cluster.pod("p", some(row));
    annotate(&mut pod, &[(never, &all)]);
    cluster.place(&pod).expect_err("no card is accepted").refusal();
}

fn unknown_id(row: &'static Row) {
    let (only, _) = row.ids.expect("a row with ids");
    let mut cluster = Cluster::new(row);
    // Also a text that is part of an id, or contains one, is none.
    let first = cluster.ids().remove(0);
    for unknown in ["no-such-card", &first[..first.len() - 1], &format!("{first}0")] {
        let mut pod = cluster.pod("p", some(row));
        annotate(&mut pod, &[(only, unknown)]);
        let no = cluster.place(&pod).expect_err("no such card").refusal();
        assert!(no.event.contains(unknown), "{}", no.event);
    }
}

/// Whether a pod with this annotation finds a card.
fn accepted(row: &'static Row, key: &str, value: &str) -> bool {
    let mut cluster = Cluster::new(row);
    let mut pod = cluster.pod("p", some(row));
    annotate(&mut pod, &[(key, value)]);
    cluster.place(&pod).is_ok()
}

fn models(row: &'static Row) {
    let (key, _, model) = row.models.expect("a row with models");
    assert!(accepted(row, key, model));
    assert!(accepted(row, key, &model.to_lowercase()));
    assert!(accepted(row, key, &format!("Other-Model, {model}")));
    assert!(!accepted(row, key, "Other-Model"));
}

fn no_models(row: &'static Row) {
    let (_, key, model) = row.models.expect("a row with models");
    assert!(!accepted(row, key, model));
    assert!(!accepted(row, key, &format!("Other-Model,{model}")));
    assert!(accepted(row, key, "Other-Model"));
}

fn twins(row: &'static Row) {
    // All other classes' cards, none of its own.
    let mut cluster = Cluster::without_node(row);
    let mut all = (json!({}), json!({}));
    let mut seen = vec![row.class];
    for other in ROWS {
        if !seen.contains(&other.class) {
            seen.push(other.class);
            let (annotations, amounts) = (other.node)();
            all = (joined(&all.0, &annotations), joined(&all.1, &amounts));
        }
    }
    assert!(
        !cluster
            .set_node(&all)
            .problems
            .iter()
            .any(|(class, _)| class.as_str() == row.class)
    );
    let no = refused(&mut cluster, "p", some(row)).refusal();
    assert_eq!(no.hami, "NodeInsufficientDevice");
    // Beside all of them it takes its own. One maker's plugin may serve one class at a time.
    for other in ROWS
        .iter()
        .filter(|other| other.maker() == row.maker() && other.class != row.class)
    {
        let (annotations, amounts) = (other.node)();
        for (of, names) in [(&mut all.0, &annotations), (&mut all.1, &amounts)] {
            for name in names.as_object().unwrap().keys() {
                of.as_object_mut().unwrap().remove(name);
            }
        }
    }
    let own = (row.node)();
    cluster.set_node(&(joined(&all.0, &own.0), joined(&all.1, &own.1)));
    placed(&mut cluster, "p", some(row));
    let snapshot = cluster.world.snapshot();
    let (node, id) = (snapshot.node(NODE).unwrap(), &cluster.cards_of("p")[0]);
    let class = cluster.class().keyword();
    assert!(
        node.cards()
            .iter()
            .any(|card| card.id.as_str() == id && card.class == *class)
    );
}

/// Members of both.
pub(super) fn joined(one: &serde_json::Value, other: &serde_json::Value) -> serde_json::Value {
    let mut both = one.clone();
    for (key, value) in other.as_object().unwrap() {
        both[key] = value.clone();
    }
    both
}

fn health(row: &'static Row) {
    let mut cluster = Cluster::without_node(row);
    cluster.set_node(&nodes::broken(row));
    let snapshot = cluster.world.snapshot();
    let node = snapshot.node(NODE).unwrap();
    assert!(!node.is_healthy(0) && node.is_healthy(1));
    fill(&mut cluster, row.whole, row.cards - 1);
    let no = refused(&mut cluster, "more", row.whole).refusal();
    assert!(no.human.contains("not working"), "{}", no.human);
    assert!(!cluster.cards_of("fill-0").contains(&cluster.ids()[0]));
}

fn cordon(row: &'static Row) {
    let mut cluster = Cluster::new(row);
    let id = cluster.ids()[0].clone();
    let (mut annotations, amounts) = (row.node)();
    annotations["hami.io/device-cordon"] = json!(id);
    cluster.set_node(&(annotations, amounts));
    assert!(cluster.world.snapshot().node(NODE).unwrap().is_cordoned(0));
    fill(&mut cluster, row.whole, row.cards - 1);
    let no = refused(&mut cluster, "more", row.whole).refusal();
    assert!(no.human.contains("cordoned"), "{}", no.human);
    cluster.set_node(&(row.node)());
    placed(&mut cluster, "more", row.whole);
    assert_eq!(cluster.cards_of("more"), [id]);
}

const CARD_POLICY: &str = "hami.io/gpu-scheduler-policy";
const NODE_POLICY: &str = "hami.io/node-scheduler-policy";

fn with_policy(cluster: &mut Cluster, name: &str, limits: Limits, (key, policy): (&str, &str)) {
    let mut pod = cluster.pod(name, limits);
    annotate(&mut pod, &[(key, policy)]);
    must_place(cluster, &pod);
}

fn mutex(row: &'static Row) {
    let mut cluster = Cluster::new(row);
    placed(&mut cluster, "one", part(row));
    for at in 1..row.cards {
        with_policy(&mut cluster, &format!("p{at}"), part(row), (CARD_POLICY, "mutex"));
    }
    assert_eq!(cluster.in_use(), row.cards);
    let mut pod = cluster.pod("more", part(row));
    annotate(&mut pod, &[(CARD_POLICY, "mutex")]);
    let no = cluster.place(&pod).expect_err("all cards are in use").refusal();
    let NodeRefusal::Cards { reasons, .. } = &no.refusal else {
        panic!("{no:?}");
    };
    assert!(
        reasons
            .iter()
            .all(|reason| reason.kind == ReasonKind::ExclusiveConflict),
        "{reasons:?}"
    );
}

fn card_binpack(row: &'static Row) {
    let mut cluster = Cluster::new(row);
    for at in 0..row.parts {
        with_policy(&mut cluster, &format!("p{at}"), part(row), (CARD_POLICY, "binpack"));
        assert_eq!(cluster.in_use(), 1);
    }
}

fn card_spread(row: &'static Row) {
    let mut cluster = Cluster::new(row);
    for at in 0..row.cards {
        with_policy(&mut cluster, &format!("p{at}"), part(row), (CARD_POLICY, "spread"));
        assert_eq!(cluster.in_use(), at + 1);
    }
}

fn nodes_of(row: &'static Row, policy: &str) -> [usize; 2] {
    let mut cluster = Cluster::new(row);
    cluster.add_node("n2");
    for name in ["a", "b"] {
        with_policy(&mut cluster, name, row.whole, (NODE_POLICY, policy));
    }
    let snapshot = cluster.world.snapshot();
    [NODE, "n2"].map(|name| {
        let usage = snapshot.node(name).unwrap().usage();
        usage.iter().filter(|used| used.usage != CardUsage::default()).count()
    })
}

fn node_binpack(row: &'static Row) {
    let mut on = nodes_of(row, "binpack");
    on.sort_unstable();
    assert_eq!(on, [0, 2]);
}

fn node_spread(row: &'static Row) {
    assert_eq!(nodes_of(row, "spread"), [1, 1]);
}

fn candidates(row: &'static Row) {
    let mut cluster = Cluster::new(row);
    cluster.add_node("n2");
    let pod = cluster.review(&cluster.pod("p", row.whole)).unwrap();
    let demand = cluster.demand(&pod);
    for name in [NODE, "n2"] {
        let left = [name.to_owned(), "unknown".to_owned()];
        let decision = cluster.decision(&demand, Candidates::Names(&left));
        assert_eq!(decision.winner().unwrap().node.as_str(), name);
        assert_eq!(decision.refused.len(), 1);
    }
}

fn numa(row: &'static Row) {
    let key = row.numa.expect("a row with NUMA nodes");
    let pair = row.pair.expect("a row with two cards");
    let bound = |cluster: &Cluster| {
        let mut pod = cluster.pod("p", pair);
        annotate(&mut pod, &[(key, "true")]);
        pod
    };
    let mut together = Cluster::new(row);
    let pod = bound(&together);
    must_place(&mut together, &pod);
    let mut apart = Cluster::without_node(row);
    apart.set_node(&nodes::apart(row));
    let no = apart.place(&bound(&apart)).expect_err("the cards lie apart").refusal();
    assert!(no.human.contains("NUMA"), "{}", no.human);
    placed(&mut apart, "free", pair);
}

fn links(row: &'static Row) {
    let links = row.links.as_ref().expect("a row with links");
    let mut cluster = Cluster::without_node(row);
    let mut node = node_object(NODE, &(links.node)());
    for (key, value) in links.labels {
        node["metadata"]["labels"][*key] = json!(value);
    }
    assert_eq!(cluster.set_object(&node).problems, []);
    let mut pod = cluster.pod("p", links.pair);
    annotate(&mut pod, links.annotations);
    must_place(&mut cluster, &pod);
    let mut given = cluster.cards_of("p");
    given.sort();
    assert_eq!(given, links.linked);
}

fn two_makers(row: &'static Row) {
    let other = ROWS
        .iter()
        .find(|other| other.maker() != row.maker() && other.annotations.is_empty())
        .unwrap();
    let mut cluster = Cluster::without_node(row);
    let (own, others) = ((row.node)(), (other.node)());
    cluster.set_node(&(joined(&own.0, &others.0), joined(&own.1, &others.1)));
    let both: Vec<(&str, &str)> = some(row).iter().chain(some(other)).copied().collect();
    let beside = cluster.pod_of("beside", &[], &[some(row), some(other)]);
    let together = cluster.pod_of("together", &[], &[both.leak()]);
    for (name, pod) in [("beside", beside), ("together", together)] {
        must_place(&mut cluster, &pod);
        assert_eq!(cluster.cards_of(name).len(), 2);
        for of in [row, other] {
            let class = tessera_types::Keyword::new(of.class).unwrap();
            let key = cluster
                .engine
                .vendors()
                .get(&class)
                .unwrap()
                .keys()
                .allocated
                .clone()
                .unwrap();
            assert!(
                cluster.pods[name]["metadata"]["annotations"][&key].is_string(),
                "{name}: {key}"
            );
        }
        cluster.remove(name);
    }
    assert_eq!(cluster.in_use(), 0);
}
