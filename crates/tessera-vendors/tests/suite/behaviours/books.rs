//! What is booked, from the decision until the pod is gone.

use serde_json::{Value, json};
use tessera_engine::{PodProblem, Preemptor};
use tessera_types::NodeName;

use super::super::cluster::{Cluster, NODE, No, uid, view};
use super::super::table::Row;
use super::{Behaviour, amount, fill, is, must_place, part, placed, refused, some};

pub(super) const ALL: &[Behaviour] = &[
    is(
        "read-back",
        "what is written on a pod reads back as what was decided",
        read_back,
    ),
    is("same-answer", "the same question gets the same answer", same_answer),
    is("race", "two decisions of one moment never get the same room", race),
    is("expiry", "a decision that nothing confirms is given back", expiry),
    is(
        "unbound",
        "an allocation written before the pod is bound counts, and lapses if it never is",
        unbound,
    ),
    is("repeat", "an event that comes twice changes nothing", repeat),
    is("release", "what ends, or is deleted, is free at once", release),
    is("deleting", "a pod on its way out keeps its card", deleting),
    is("churn", "after many pods that came and went nothing is in use", churn),
    is(
        "restart",
        "a new process books the same from the objects alone",
        restart,
    ),
    is(
        "elsewhere",
        "a pod that runs on another node than its allocation names books nothing there",
        elsewhere,
    ),
    is(
        "forged-running",
        "a pod that asked for no card books none, whatever its annotations say",
        forged_running,
    ),
    is(
        "unreadable-pod",
        "an allocation that cannot be read closes the cards, and never panics",
        unreadable_pod,
    ),
    is(
        "preemption",
        "a pod of higher priority gets as many victims as it needs, of the lowest priority",
        preemption,
    ),
    is("quota", "a namespace's quota of memory holds", quota),
    is(
        "quota-edge",
        "a quota is used to the last unit, and not beyond",
        quota_edge,
    ),
    is("quota-cores", "a namespace's quota of compute holds", quota_cores),
    is(
        "quota-late",
        "a quota holds for pods that were admitted while there was room",
        quota_late,
    ),
    is("quota-churn", "a quota is at zero after all pods are gone", quota_churn),
];

fn read_back(row: &'static Row) {
    let cluster = Cluster::new(row);
    for limits in [
        Some(row.whole),
        row.part,
        row.memory,
        row.compute,
        row.percent,
        row.pair,
    ]
    .into_iter()
    .flatten()
    {
        let pod = cluster.review(&cluster.pod("p", limits)).unwrap();
        let demand = cluster.demand(&pod);
        let fit = cluster.decide(&demand).unwrap();
        let written = view(&cluster.written(pod, &demand, &fit)).annotations;
        let class = cluster.class();
        let (read, _) = class.read_allocation(&written).unwrap().expect("something is written");
        let decided = &fit.allocation.classes[class.keyword()];
        let essence = |of: &tessera_types::ClassAllocation| -> Vec<_> {
            let shares = of.iter().flatten();
            shares
                .map(|share| (share.card.clone(), share.memory, share.cores))
                .collect()
        };
        assert_eq!(essence(&read), essence(decided), "{written:?}");
        assert_eq!(written["hami.io/vgpu-node"], NODE);
    }
}

fn same_answer(row: &'static Row) {
    let (one, other) = (Cluster::new(row), Cluster::new(row));
    for limits in [Some(row.whole), row.part, row.pair].into_iter().flatten() {
        let pod = one.review(&one.pod("p", limits)).unwrap();
        let fit = |cluster: &Cluster| cluster.decide(&cluster.demand(&pod)).unwrap();
        assert_eq!(fit(&one), fit(&other));
        assert_eq!(fit(&one), fit(&one));
    }
}

fn race(row: &'static Row) {
    let mut cluster = Cluster::new(row);
    fill(&mut cluster, row.whole, row.cards - 1);
    // A whole card for each; and the last part of one.
    for limits in [row.whole, some(row)] {
        if limits != row.whole {
            for at in 1..row.parts {
                placed(&mut cluster, &format!("part-{at}"), limits);
            }
        }
        let pods = ["one", "two"].map(|name| cluster.review(&cluster.pod(name, limits)).unwrap());
        let decided = pods.map(|pod| {
            let demand = cluster.demand(&pod);
            let fit = cluster.decide(&demand).unwrap();
            (pod, demand, fit)
        });
        let outcomes = decided.map(|(pod, demand, fit)| cluster.carry_out(pod, &demand, &fit));
        assert!(outcomes[0].is_ok(), "{outcomes:?}");
        assert!(matches!(outcomes[1], Err(No::Lost(_))), "{outcomes:?}");
        cluster.remove("one");
    }
}

fn expiry(row: &'static Row) {
    let mut cluster = Cluster::new(row);
    let pod = cluster.review(&cluster.pod("p", some(row))).unwrap();
    let demand = cluster.demand(&pod);
    let fit = cluster.decide(&demand).unwrap();
    cluster.assume(&pod, &demand, &fit, 0).unwrap();
    assert!(cluster.in_use() > 0);
    assert_eq!(cluster.world.expire(91), [uid("p")]);
    assert_eq!(cluster.in_use(), 0);
    cluster.check();
}

fn unbound(row: &'static Row) {
    let mut cluster = Cluster::new(row);
    let pod = cluster.review(&cluster.pod("p", some(row))).unwrap();
    let demand = cluster.demand(&pod);
    let fit = cluster.decide(&demand).unwrap();
    let pod = cluster.written(pod, &demand, &fit);
    cluster.set_pod(&pod);
    assert!(cluster.in_use() > 0);
    assert_eq!(cluster.world.expire(1000), []);
    assert_eq!(cluster.world.expire(1119), []);
    assert_eq!(cluster.world.expire(1120), [uid("p")]);
    assert_eq!(cluster.in_use(), 0);
    // Seen again as it was, it does not begin anew.
    cluster.set_pod(&pod);
    assert_eq!(cluster.in_use(), 0);
}

fn repeat(row: &'static Row) {
    let mut cluster = Cluster::new(row);
    placed(&mut cluster, "p", some(row));
    let (before, version) = (cluster.books(), cluster.world.snapshot().version());
    let change = cluster.world.set_pod(&view(&cluster.pods["p"]));
    assert_eq!((change.booked, change.frees), (false, false));
    assert!(!cluster.set_node(&(row.node)()).changed);
    assert_eq!((cluster.books(), cluster.world.snapshot().version()), (before, version));
    cluster.remove("p");
    assert!(!cluster.world.remove_pod(&uid("p")));
    assert_eq!(cluster.in_use(), 0);
}

fn release(row: &'static Row) {
    for phase in ["Succeeded", "Failed"] {
        let mut cluster = Cluster::new(row);
        fill(&mut cluster, row.whole, row.cards);
        let mut ended = cluster.pods["fill-0"].clone();
        ended["status"] = json!({"phase": phase});
        cluster.set_pod(&ended);
        placed(&mut cluster, "next", row.whole);
        cluster.remove("next");
        for at in 1..row.cards {
            cluster.remove(&format!("fill-{at}"));
        }
        assert_eq!(cluster.in_use(), 0);
    }
}

fn deleting(row: &'static Row) {
    let mut cluster = Cluster::new(row);
    fill(&mut cluster, row.whole, row.cards);
    let mut leaving = cluster.pods["fill-0"].clone();
    leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    cluster.set_pod(&leaving);
    refused(&mut cluster, "next", row.whole).refusal();
}

fn churn(row: &'static Row) {
    let mut cluster = Cluster::new(row);
    let shapes: Vec<_> = [
        Some(row.whole),
        row.part,
        row.memory,
        row.compute,
        row.percent,
        row.pair,
    ]
    .into_iter()
    .flatten()
    .collect();
    for round in 0..40_usize {
        let pod = cluster.pod(&format!("p{round}"), shapes[round % shapes.len()]);
        drop(cluster.place(&pod));
        if round % 3 == 2 {
            let oldest = cluster.pods.keys().next().cloned().unwrap();
            cluster.remove(&oldest);
        }
    }
    for name in cluster.pods.keys().cloned().collect::<Vec<_>>() {
        cluster.remove(&name);
    }
    let empty = Cluster::new(row);
    assert_eq!((cluster.books(), cluster.charged()), (empty.books(), 0));
    assert_eq!(cluster.world.snapshot().booking_count(), 0);
}

fn restart(row: &'static Row) {
    let mut cluster = Cluster::new(row);
    placed(&mut cluster, "one", some(row));
    placed(&mut cluster, "two", some(row));
    let after = cluster.restarted(&(row.node)());
    assert_eq!(cluster.books(), after.books());
    assert_eq!(cluster.charged(), after.charged());
}

fn elsewhere(row: &'static Row) {
    let mut cluster = Cluster::new(row);
    cluster.add_node("n2");
    placed(&mut cluster, "p", some(row));
    let mut pod = cluster.pods["p"].clone();
    let other = if pod["spec"]["nodeName"] == NODE { "n2" } else { NODE };
    pod["spec"]["nodeName"] = json!(other);
    let change = cluster.world.set_pod(&view(&pod));
    assert!(
        matches!(&change.problems[..], [PodProblem::BoundElsewhere { .. }]),
        "{:?}",
        change.problems
    );
    assert!(!cluster.holds("p"));
    cluster.check();
}

fn forged_running(row: &'static Row) {
    let mut cluster = Cluster::new(row);
    placed(&mut cluster, "p", some(row));
    let mut forged = cluster.pods["p"].clone();
    cluster.remove("p");
    forged["spec"]["containers"][0]["resources"] = json!({"limits": {"cpu": "1"}});
    let change = cluster.world.set_pod(&view(&forged));
    assert_eq!(change.problems, [PodProblem::Forged]);
    assert_eq!(cluster.in_use(), 0);
}

fn unreadable_pod(row: &'static Row) {
    for text in [",", "a,b", "x,y,99999999999999999999,0:;", "a,b,-5,1:;"] {
        let mut cluster = Cluster::new(row);
        placed(&mut cluster, "p", some(row));
        let key = cluster.class().keys().allocated.clone().expect("a text that stays");
        let mut pod = cluster.pods["p"].clone();
        pod["metadata"]["annotations"][&key] = json!(text);
        let change = cluster.world.set_pod(&view(&pod));
        assert!(!change.problems.is_empty(), "{text:?} is no problem");
        let no = refused(&mut cluster, "q", some(row));
        assert!(no.text().len() > 5, "a card that nothing is known of was given");
        cluster.remove("p");
        placed(&mut cluster, "q", some(row));
    }
}

fn with_priority(mut pod: Value, priority: i32) -> Value {
    pod["spec"]["priority"] = json!(priority);
    pod
}

fn preemption(row: &'static Row) {
    let mut cluster = Cluster::new(row);
    for at in 0..row.cards {
        let priority = 10 + i32::try_from(at).unwrap();
        let pod = with_priority(cluster.pod(&format!("p{at}"), row.whole), priority);
        must_place(&mut cluster, &pod);
    }
    let node = NodeName::new(NODE).unwrap();
    let victims = |cluster: &Cluster, priority: i32, never: bool| {
        let pod = cluster
            .review(&with_priority(cluster.pod("more", row.whole), priority))
            .unwrap();
        let demand = cluster.demand(&pod);
        let preemptor = Preemptor { priority, never };
        cluster
            .engine
            .preempt(&cluster.world.snapshot(), &demand, &node, &[], preemptor)
    };
    assert_eq!(victims(&cluster, 100, false), Some(vec![uid("p0")]));
    assert_eq!(victims(&cluster, 100, true), None);
    assert_eq!(victims(&cluster, 10, false), None);
    cluster.remove("p0");
    placed(&mut cluster, "more", row.whole);
}

/// A quota in the class's own words: the name of memory, and what a part takes of it.
fn memory_quota(row: &'static Row) -> (String, u64) {
    let cluster = Cluster::without_node(row);
    let name = cluster.class().names().memory.clone().expect("a memory resource");
    let amount = amount(part(row), &name).expect("a part has memory").parse().unwrap();
    (name, amount)
}

fn quota(row: &'static Row) {
    let (memory, amount) = memory_quota(row);
    let mut cluster = Cluster::new(row);
    cluster.set_quota(&[(memory.clone(), amount.to_string())]);
    placed(&mut cluster, "within", part(row));
    let no = refused(&mut cluster, "beyond", part(row));
    assert!(no.text().contains("quota"), "{no:?}");
    // Whole cards count with what they have, also where the pod does not name it.
    cluster.remove("within");
    let no = refused(&mut cluster, "whole", row.whole);
    assert!(no.text().contains("quota"), "{no:?}");
    let other = cluster.pod("other", part(row));
    cluster.world.remove_quota("ns", "quota");
    must_place(&mut cluster, &other);
}

fn quota_edge(row: &'static Row) {
    let (memory, amount) = memory_quota(row);
    let mut cluster = Cluster::new(row);
    cluster.set_quota(&[(memory.clone(), (2 * amount).to_string())]);
    placed(&mut cluster, "one", part(row));
    placed(&mut cluster, "two", part(row));
    cluster.remove("two");
    cluster.set_quota(&[(memory.clone(), (2 * amount - 1).to_string())]);
    refused(&mut cluster, "two", part(row));
    // Less than is in use: nothing new, and nothing is taken away.
    cluster.set_quota(&[(memory, "0".to_owned())]);
    refused(&mut cluster, "two", part(row));
    assert!(cluster.holds("one"));
}

fn quota_cores(row: &'static Row) {
    let mut cluster = Cluster::new(row);
    let name = cluster.class().names().cores.clone().expect("a compute resource");
    let amount: u64 = amount(part(row), &name).expect("a part has compute").parse().unwrap();
    cluster.set_quota(&[(name.clone(), (2 * amount).to_string())]);
    placed(&mut cluster, "one", part(row));
    placed(&mut cluster, "two", part(row));
    cluster.remove("two");
    cluster.set_quota(&[(name, (2 * amount - 1).to_string())]);
    let no = refused(&mut cluster, "two", part(row));
    assert!(no.text().contains("quota"), "{no:?}");
}

/// Admitted while there was room, decided when there is none.
fn quota_late(row: &'static Row) {
    let (memory, amount) = memory_quota(row);
    let mut cluster = Cluster::new(row);
    cluster.set_quota(&[(memory, amount.to_string())]);
    let pods = ["one", "two"].map(|name| cluster.review(&cluster.pod(name, part(row))).unwrap());
    let [one, two] = pods.map(|pod| {
        let demand = cluster.demand(&pod);
        (pod, demand)
    });
    let fit = cluster.decide(&one.1).unwrap();
    let late = cluster.decide(&two.1).unwrap();
    cluster.carry_out(one.0, &one.1, &fit).unwrap();
    assert!(matches!(cluster.decide(&two.1), Err(No::Refused(_))));
    assert!(matches!(cluster.carry_out(two.0, &two.1, &late), Err(No::Lost(_))));
}

fn quota_churn(row: &'static Row) {
    let (memory, amount) = memory_quota(row);
    let mut cluster = Cluster::new(row);
    cluster.set_quota(&[(memory, (2 * amount).to_string())]);
    for round in 0..20 {
        placed(&mut cluster, "a", part(row));
        if round % 2 == 0 {
            placed(&mut cluster, "b", part(row));
            refused(&mut cluster, "c", part(row));
            cluster.remove("b");
        }
        assert!(cluster.charged() > 0);
        cluster.remove("a");
        assert_eq!(cluster.charged(), 0);
    }
}
