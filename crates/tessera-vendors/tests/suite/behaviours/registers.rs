//! Nodes that change while pods run on them, and nodes that say what cannot be.

use serde_json::json;
use tessera_engine::{NodeProblem, text};
use tessera_types::NodeRefusal;

use super::super::cluster::{Cluster, NODE, set_amount};
use super::super::nodes;
use super::super::table::Row;
use super::{Behaviour, amount, fill, is, part, placed, refused, some};

pub(super) const ALL: &[Behaviour] = &[
    is(
        "node-gone",
        "a node that goes and comes back has the same bookings",
        node_gone,
    ),
    is(
        "node-over",
        "a node that is gone for good leaves nothing behind once its pods are",
        node_over,
    ),
    is(
        "vanish",
        "a card that vanishes under a pod takes no work, and comes back as booked as it was",
        vanish,
    ),
    is(
        "shrink",
        "a card that becomes smaller under its pods takes no more until there is room",
        shrink,
    ),
    is("recovery", "a card that works again gets work again", recovery),
    is(
        "break-in-use",
        "a card that breaks stays booked until its pod is gone",
        break_in_use,
    ),
    is(
        "closed",
        "a class that is closed on a node takes no new work and keeps what runs",
        closed,
    ),
    is(
        "disagree",
        "a card whose size is not what the class knows of it is closed, and the two numbers are told",
        disagree,
    ),
    is("big-card", "a card of 8 TiB is counted to the last MiB", big_card),
    is(
        "unreadable-node",
        "a register that cannot be read closes the class on that node, with a problem",
        unreadable_node,
    ),
    is(
        "absent",
        "a node without a word of the class has none of its cards, and that is no problem",
        absent,
    ),
];

fn node_gone(row: &'static Row) {
    let mut cluster = Cluster::new(row);
    placed(&mut cluster, "p", some(row));
    let before = cluster.books();
    cluster.world.remove_node(NODE);
    cluster.check();
    refused_without_node(&mut cluster, row);
    cluster.set_node(&(row.node)());
    assert_eq!(cluster.books(), before);
}

fn refused_without_node(cluster: &mut Cluster, row: &'static Row) {
    let no = refused(cluster, "q", some(row)).refusal();
    assert_eq!(no.refusal, NodeRefusal::Unregistered);
}

fn node_over(row: &'static Row) {
    let mut cluster = Cluster::new(row);
    placed(&mut cluster, "p", some(row));
    cluster.world.remove_node(NODE);
    cluster.remove("p");
    assert_eq!(cluster.world.snapshot().booking_count(), 0);
    assert_eq!(cluster.charged(), 0);
    cluster.set_node(&(row.node)());
    assert_eq!(cluster.in_use(), 0);
}

fn vanish(row: &'static Row) {
    let mut cluster = Cluster::new(row);
    fill(&mut cluster, row.whole, row.cards);
    let before = cluster.books();
    cluster.set_node(&nodes::fewer(row));
    assert_eq!(cluster.ids().len(), row.cards - 1);
    refused(&mut cluster, "more", row.whole).refusal();
    assert!((0..row.cards).all(|at| cluster.holds(&format!("fill-{at}"))));
    cluster.set_node(&(row.node)());
    assert_eq!(cluster.books(), before);
    refused(&mut cluster, "more", row.whole).refusal();
    cluster.remove("fill-0");
    placed(&mut cluster, "more", row.whole);
}

fn shrink(row: &'static Row) {
    let part = part(row);
    let mut cluster = Cluster::new(row);
    fill(&mut cluster, part, row.cards * row.parts);
    let before = cluster.books();
    cluster.set_node(&nodes::resized(row, 1, |size| size / 2));
    assert_eq!(cluster.books().len(), before.len());
    let usage = |books: &[tessera_engine::CardUse]| books.iter().map(|card| card.usage).collect::<Vec<_>>();
    assert_eq!(usage(&cluster.books()), usage(&before), "what runs stays booked");
    let first = cluster.ids()[0].clone();
    let on_first = cluster
        .pods
        .keys()
        .find(|name| cluster.cards_of(name).contains(&first))
        .cloned()
        .unwrap();
    cluster.remove(&on_first);
    refused(&mut cluster, "more", part).refusal();
    cluster.set_node(&(row.node)());
    placed(&mut cluster, "more", part);
    assert_eq!(cluster.cards_of("more"), [first]);
}

fn recovery(row: &'static Row) {
    let mut cluster = Cluster::without_node(row);
    cluster.set_node(&nodes::broken(row));
    fill(&mut cluster, row.whole, row.cards - 1);
    refused(&mut cluster, "more", row.whole).refusal();
    let change = cluster.set_node(&(row.node)());
    assert!(change.changed && change.frees);
    placed(&mut cluster, "more", row.whole);
    assert_eq!(cluster.cards_of("more"), cluster.ids()[..1]);
}

fn break_in_use(row: &'static Row) {
    let mut cluster = Cluster::new(row);
    fill(&mut cluster, row.whole, row.cards);
    let before = cluster.books();
    cluster.set_node(&nodes::broken(row));
    assert_eq!(cluster.books(), before);
    let first = cluster.ids()[0].clone();
    let on_first = cluster
        .pods
        .keys()
        .find(|name| cluster.cards_of(name).contains(&first))
        .cloned()
        .unwrap();
    cluster.remove(&on_first);
    assert_eq!(cluster.in_use(), row.cards - 1);
    refused(&mut cluster, "more", row.whole).refusal();
}

fn closed(row: &'static Row) {
    let mut cluster = Cluster::new(row);
    placed(&mut cluster, "p", some(row));
    let before = cluster.books();
    let class = cluster.class().keyword().clone();
    assert!(
        cluster
            .world
            .set_class_closed(NODE, &class, Some("the plugin is silent".to_owned()))
    );
    cluster.check();
    assert_eq!(cluster.books(), before);
    let no = refused(&mut cluster, "q", some(row)).refusal();
    assert!(no.human.contains("the plugin is silent"), "{}", no.human);
    assert!(cluster.world.set_class_closed(NODE, &class, None));
    placed(&mut cluster, "q", some(row));
}

fn disagree(row: &'static Row) {
    let edit = row.disagrees.expect("a row with a table");
    let mut cluster = Cluster::without_node(row);
    let change = cluster.set_node(&nodes::edited(row, edit));
    let told = |number: &str| {
        change.problems.iter().any(|(class, problem)| {
            class.as_str() == row.class && problem.to_string().contains(number.rsplit(':').next().unwrap())
        })
    };
    assert!(told(edit.0) && told(edit.1), "{:?}", change.problems);
    assert!(cluster.books().is_empty() || !cluster.world.snapshot().node(NODE).unwrap().is_healthy(0));
    fill(&mut cluster, row.whole, row.cards - 1);
    refused(&mut cluster, "more", row.whole).refusal();
}

fn big_card(row: &'static Row) {
    let part = part(row);
    let mut cluster = Cluster::without_node(row);
    let name = cluster.class().names().memory.clone().expect("a memory resource");
    let factor = cluster.class().names().factor();
    let old: u64 = amount(part, &name).expect("a part has memory").parse().unwrap();
    // So many times as large that a part is 4 TiB.
    let half = 4 * 1024 * 1024 / factor;
    let ratio = half.div_ceil(old);
    let change = cluster.set_node(&nodes::resized(row, row.cards, |size| size * ratio));
    assert_eq!(change.problems, []);
    for at in 0..row.cards * row.parts {
        let mut pod = cluster.pod(&format!("p{at}"), part);
        set_amount(&mut pod, &name, &(old * ratio).to_string());
        super::must_place(&mut cluster, &pod);
    }
    let snapshot = cluster.world.snapshot();
    let node = snapshot.node(NODE).unwrap();
    for (card, used) in node.cards().iter().zip(node.usage()) {
        assert!(card.memory.get() >= 8 * 1024 * 1024, "{}", card.memory);
        let given = old * ratio * factor * u64::try_from(row.parts).unwrap();
        assert_eq!(used.usage.memory.get(), given);
    }
}

fn unreadable_node(row: &'static Row) {
    let key = nodes::register_key(row).expect("a register");
    for bad in ["[{", "", "\u{0}", "null", "{\"a\": [1e999]}", "[]", "a,b,c:"] {
        let mut cluster = Cluster::without_node(row);
        let change = cluster.set_node(&(json!({key.clone(): bad}), (row.node)().1));
        assert!(!change.problems.is_empty(), "{bad:?} is no problem");
        assert!(change.problems.iter().all(|(class, _)| class.as_str() == row.class));
        assert!(refused(&mut cluster, "p", some(row)).text().len() > 5);
        // What is mended is open at once.
        cluster.set_node(&(row.node)());
        placed(&mut cluster, "p", some(row));
    }
}

fn absent(row: &'static Row) {
    let mut cluster = Cluster::without_node(row);
    let change = cluster.set_node(&(json!({}), json!({"cpu": "8"})));
    let no_problem: [(tessera_types::Keyword, NodeProblem); 0] = [];
    assert_eq!(change.problems, no_problem);
    let no = refused(&mut cluster, "p", some(row)).refusal();
    assert_eq!(text::hami_node(&no.refusal), "node unregistered");
}
