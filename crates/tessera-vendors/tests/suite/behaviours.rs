//! What every class does alike. Each behaviour is run for each row of the table, unless the row says why its class
//! cannot have it.

use serde_json::{Value, json};
use tessera_wire::{NodeView, PodView};

use super::cluster::{Cluster, NODE, No, node_object};
use super::table::{Limits, Row};

/// Name in the table, what it shows, and the proof. The proof answers why it does not apply, if the row's data say so.
pub(crate) type Behaviour = (&'static str, &'static str, fn(&'static Row) -> Option<&'static str>);

pub(crate) const ALL: &[Behaviour] = &[
    ("whole", "whole cards, one a pod, until none is left", whole),
    ("half", "two halves fill a card, a third waits", half),
    ("pair", "two different cards for one container", pair),
    ("reasons", "a refusal says why, to people and in HAMi's words", reasons),
    (
        "too-many",
        "more cards than any node has are refused with that",
        too_many,
    ),
    (
        "containers",
        "two containers of a pod do not share what only one fits on",
        containers,
    ),
    ("init", "an init container's card is free again for the app", init),
    ("sidecar", "a sidecar keeps its card beside the app", sidecar),
    ("ids", "only these ids, none of these ids", ids),
    ("models", "only these models", models),
    ("health", "a broken card gets no work", health),
    (
        "unreadable-node",
        "a register that cannot be read closes the class on that node, with a problem",
        unreadable_node,
    ),
    (
        "unreadable-pod",
        "an allocation that cannot be read closes the cards, and never panics",
        unreadable_pod,
    ),
    ("fraction", "a fraction is refused by its name", fraction),
    ("negative", "a negative number is refused by its name", negative),
    (
        "overflow",
        "a number beyond all bounds is refused or never fits",
        overflow,
    ),
    ("zero", "zero asks for nothing", zero),
    (
        "exact-name",
        "a name that only begins like the class's is none of its",
        exact_name,
    ),
    ("forged", "an allocation on a new pod is taken off", forged),
    ("twice", "a pod that is reviewed twice is changed once", twice),
    ("release", "what ends, or is deleted, is free at once", release),
    ("deleting", "a pod on its way out keeps its card", deleting),
    (
        "restart",
        "a new process books the same from the objects alone",
        restart,
    ),
    ("expiry", "a decision that nothing confirms is given back", expiry),
    ("race", "two decisions of one moment never get the same room", race),
    ("same-answer", "the same question gets the same answer", same_answer),
    (
        "quota",
        "a namespace's quota holds, and is at zero after all is gone",
        quota,
    ),
    ("cordon", "a card that an administrator keeps free stays free", cordon),
    (
        "node-gone",
        "a node that goes and comes back has the same bookings",
        node_gone,
    ),
    ("unified", "`tessera.dev/gpu` is translated to its names", unified),
    (
        "privileged",
        "a privileged container with a card is refused",
        privileged,
    ),
];

fn placed(cluster: &mut Cluster, name: &str, limits: Limits) {
    let pod = cluster.pod(name, limits);
    if let Err(no) = cluster.place(&pod) {
        panic!("{name}: {no:?}");
    }
}

fn refused(cluster: &mut Cluster, name: &str, limits: Limits) -> No {
    let pod = cluster.pod(name, limits);
    cluster.place(&pod).expect_err("it was placed")
}

fn fill(cluster: &mut Cluster, limits: Limits, count: usize) {
    for at in 0..count {
        placed(cluster, &format!("fill-{at}"), limits);
    }
}

fn whole(row: &'static Row) -> Option<&'static str> {
    let mut cluster = Cluster::new(row);
    fill(&mut cluster, row.whole, row.cards);
    assert_eq!(cluster.in_use(), row.cards);
    assert!(matches!(refused(&mut cluster, "more", row.whole), No::Refused { .. }));
    None
}

fn half(row: &'static Row) -> Option<&'static str> {
    let Some(half) = row.half else {
        return Some("the class divides no card");
    };
    let mut cluster = Cluster::new(row);
    fill(&mut cluster, half, row.cards * 2);
    assert!(matches!(refused(&mut cluster, "more", half), No::Refused { .. }));
    assert!(matches!(refused(&mut cluster, "whole", row.whole), No::Refused { .. }));
    None
}

fn pair(row: &'static Row) -> Option<&'static str> {
    let Some(pair) = row.pair else {
        return Some("the class gives one card a container");
    };
    let mut cluster = Cluster::new(row);
    placed(&mut cluster, "pair", pair);
    assert_eq!(cluster.cards_of("pair").len(), 2);
    None
}

fn reasons(row: &'static Row) -> Option<&'static str> {
    let mut cluster = Cluster::new(row);
    fill(&mut cluster, row.whole, row.cards);
    let No::Refused { human, hami } = refused(&mut cluster, "more", row.whole) else {
        panic!("not by the decision");
    };
    assert!(human.len() > 10 && !human.contains("usable"), "{human}");
    assert!(
        hami.contains(&format!("/{}", row.cards)) || hami == "NodeInsufficientDevice",
        "{hami}"
    );
    None
}

/// The row's count resource is the first name.
fn with_count(cluster: &Cluster, row: &Row, count: &str) -> Value {
    let mut pod = cluster.pod("p", row.whole);
    let name = row.whole[0].0;
    for member in ["limits", "requests"] {
        pod["spec"]["containers"][0]["resources"][member][name] = json!(count);
    }
    pod
}

fn too_many(row: &'static Row) -> Option<&'static str> {
    let mut cluster = Cluster::new(row);
    let pod = with_count(&cluster, row, "64");
    let no = cluster.place(&pod).expect_err("there are not so many");
    assert!(!no.text().is_empty());
    assert_eq!(cluster.in_use(), 0);
    None
}

fn containers(row: &'static Row) -> Option<&'static str> {
    let mut cluster = Cluster::new(row);
    let pod = cluster.pod_of("two", &[], &[row.whole, row.whole]);
    match cluster.place(&pod) {
        Ok(()) => assert_eq!(cluster.cards_of("two").len(), 2),
        // A plugin that serves one card a pod.
        Err(no) => assert!(!no.text().is_empty()),
    }
    None
}

fn init(row: &'static Row) -> Option<&'static str> {
    let mut cluster = Cluster::new(row);
    fill(&mut cluster, row.whole, row.cards - 1);
    let pod = cluster.pod_of("init", &[(row.whole, false)], &[row.whole]);
    if let Err(no) = cluster.place(&pod) {
        panic!("{no:?}");
    }
    assert_eq!(cluster.cards_of("init").len(), 1);
    None
}

fn sidecar(row: &'static Row) -> Option<&'static str> {
    let mut cluster = Cluster::new(row);
    fill(&mut cluster, row.whole, row.cards - 1);
    let pod = cluster.pod_of("sidecar", &[(row.whole, true)], &[row.whole]);
    assert!(
        cluster.place(&pod).is_err(),
        "there is one card for two that run together"
    );
    None
}

fn ids(row: &'static Row) -> Option<&'static str> {
    let Some((only, never)) = row.ids else {
        return Some("cards have no ids that a pod could name");
    };
    let mut cluster = Cluster::new(row);
    for id in cluster.ids() {
        let mut pod = cluster.pod("p", row.whole);
        pod["metadata"]["annotations"][only] = json!(id);
        cluster.place(&pod).unwrap_or_else(|no| panic!("{no:?}"));
        assert_eq!(cluster.cards_of("p"), std::slice::from_ref(&id));
        cluster.remove("p");
        let mut pod = cluster.pod("p", row.whole);
        pod["metadata"]["annotations"][never] = json!(id);
        cluster.place(&pod).unwrap_or_else(|no| panic!("{no:?}"));
        assert!(!cluster.cards_of("p").contains(&id));
        cluster.remove("p");
    }
    let mut pod = cluster.pod("p", row.whole);
    pod["metadata"]["annotations"][only] = json!("no-such-card");
    assert!(cluster.place(&pod).is_err());
    None
}

fn models(row: &'static Row) -> Option<&'static str> {
    let Some((key, model)) = row.models else {
        return Some("cards have no models that a pod could name");
    };
    let mut cluster = Cluster::new(row);
    for (wanted, fits) in [(model, true), ("Some-Other-Model", false)] {
        let mut pod = cluster.pod("p", row.whole);
        pod["metadata"]["annotations"][key] = json!(wanted);
        assert_eq!(cluster.place(&pod).is_ok(), fits, "{wanted}");
        cluster.remove("p");
    }
    None
}

fn health(row: &'static Row) -> Option<&'static str> {
    let Some((works, broken)) = row.breaks else {
        return Some("the node tells of no single card's health");
    };
    let mut cluster = Cluster::without_node(row);
    let text = (row.node)().0.to_string().replace("\\\"", "\u{1}");
    let (works, broken) = (works.replace('"', "\u{1}"), broken.replace('"', "\u{1}"));
    assert!(text.contains(&works), "{text}");
    let text = text.replacen(&works, &broken, 1).replace('\u{1}', "\\\"");
    cluster.set_node(&serde_json::from_str(&text).unwrap());
    let snapshot = cluster.world.snapshot();
    let node = snapshot.node(NODE).unwrap();
    assert!(!node.is_healthy(0) && node.is_healthy(1));
    fill(&mut cluster, row.whole, row.cards - 1);
    assert!(matches!(refused(&mut cluster, "more", row.whole), No::Refused { .. }));
    assert!(!cluster.cards_of("fill-0").contains(&cluster.ids()[0]));
    None
}

fn register_key(row: &Row) -> Option<String> {
    (row.node)()
        .0
        .as_object()
        .and_then(|map| map.keys().next_back().cloned())
}

fn unreadable_node(row: &'static Row) -> Option<&'static str> {
    let Some(key) = register_key(row) else {
        return Some("the node states amounts, not a text");
    };
    for text in ["[{", "", "\u{0}", "null", "{\"a\": [1e999]}"] {
        let mut cluster = Cluster::without_node(row);
        let change = cluster.set_node(&json!({key.clone(): text}));
        assert!(!change.problems.is_empty(), "{text:?} is no problem");
        assert!(refused(&mut cluster, "p", row.whole).text().len() > 5);
    }
    None
}

fn unreadable_pod(row: &'static Row) -> Option<&'static str> {
    let mut cluster = Cluster::new(row);
    placed(&mut cluster, "p", row.whole);
    let class = tessera_types::Keyword::new(row.class).unwrap();
    let key = cluster.engine.vendors().get(&class).unwrap().keys().allocated.clone();
    let Some(key) = key else {
        return Some("the class writes no allocation text");
    };
    for text in [",", "a,b", "x,y,99999999999999999999,0:;"] {
        let mut pod = cluster.pods["p"].clone();
        pod["metadata"]["annotations"][&key] = json!(text);
        let change = cluster.world.set_pod(&PodView::from_json(&pod).unwrap());
        assert!(!change.problems.is_empty(), "{text:?} is no problem");
        assert!(
            refused(&mut cluster, "q", row.whole).text().len() > 5,
            "a card that nothing is known of was given"
        );
    }
    None
}

fn denied(row: &'static Row, count: &str) {
    let mut cluster = Cluster::new(row);
    let pod = with_count(&cluster, row, count);
    let Err(No::Denied(text)) = cluster.place(&pod) else {
        panic!("{count} was admitted");
    };
    assert!(text.contains(row.whole[0].0), "the name is missing: {text}");
}

fn fraction(row: &'static Row) -> Option<&'static str> {
    denied(row, "1500m");
    None
}

fn negative(row: &'static Row) -> Option<&'static str> {
    denied(row, "-1");
    None
}

fn overflow(row: &'static Row) -> Option<&'static str> {
    let mut cluster = Cluster::new(row);
    let half = row.half.unwrap_or(row.whole);
    for (name, _) in half {
        for amount in ["9223372036854775807", "99999999999999999999", "4294967297"] {
            let mut pod = cluster.pod("p", half);
            for member in ["limits", "requests"] {
                pod["spec"]["containers"][0]["resources"][member][*name] = json!(amount);
            }
            // Compute beyond a whole card may count as a whole one.
            match cluster.place(&pod) {
                Err(no) => assert!(!no.text().is_empty()),
                Ok(()) => cluster.remove("p"),
            }
        }
    }
    assert_eq!(cluster.in_use(), 0);
    None
}

fn zero(row: &'static Row) -> Option<&'static str> {
    let cluster = Cluster::new(row);
    let mut pod = cluster.pod("p", &[]);
    pod["spec"]["containers"][0]["resources"]["limits"][row.whole[0].0] = json!("0");
    if let Ok(pod) = cluster.review(&pod) {
        assert!(cluster.demand(&pod).is_empty());
    }
    None
}

fn exact_name(row: &'static Row) -> Option<&'static str> {
    let cluster = Cluster::new(row);
    let mut pod = cluster.pod("p", &[]);
    pod["spec"]["containers"][0]["resources"]["limits"][format!("{}x", row.whole[0].0)] = json!("1");
    let reviewed = cluster.review(&pod).unwrap();
    assert!(cluster.demand(&reviewed).is_empty());
    assert!(reviewed["spec"]["schedulerName"].is_null());
    None
}

fn forged(row: &'static Row) -> Option<&'static str> {
    let mut cluster = Cluster::new(row);
    placed(&mut cluster, "p", row.whole);
    let written = cluster.pods["p"]["metadata"]["annotations"].clone();
    let mut copy = cluster.pod("copy", row.whole);
    copy["metadata"]["annotations"] = written.clone();
    let reviewed = cluster.review(&copy).unwrap();
    let class = tessera_types::Keyword::new(row.class).unwrap();
    let vendors = cluster.engine.vendors();
    for key in vendors.get(&class).unwrap().keys().allocation() {
        assert!(reviewed["metadata"]["annotations"][key].is_null(), "{key} stays");
    }
    None
}

fn twice(row: &'static Row) -> Option<&'static str> {
    let cluster = Cluster::new(row);
    for limits in [Some(row.whole), row.half, row.pair].into_iter().flatten() {
        let once = cluster.review(&cluster.pod("p", limits)).unwrap();
        assert_eq!(cluster.review(&once).unwrap(), once);
    }
    None
}

fn release(row: &'static Row) -> Option<&'static str> {
    let mut cluster = Cluster::new(row);
    fill(&mut cluster, row.whole, row.cards);
    let mut ended = cluster.pods["fill-0"].clone();
    ended["status"] = json!({"phase": "Succeeded"});
    cluster.set_pod(&ended);
    placed(&mut cluster, "next", row.whole);
    cluster.remove("next");
    for at in 1..row.cards {
        cluster.remove(&format!("fill-{at}"));
    }
    assert_eq!(cluster.in_use(), 0);
    None
}

fn deleting(row: &'static Row) -> Option<&'static str> {
    let mut cluster = Cluster::new(row);
    fill(&mut cluster, row.whole, row.cards);
    let mut leaving = cluster.pods["fill-0"].clone();
    leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    cluster.set_pod(&leaving);
    refused(&mut cluster, "next", row.whole);
    None
}

fn restart(row: &'static Row) -> Option<&'static str> {
    let mut cluster = Cluster::new(row);
    placed(&mut cluster, "one", row.half.unwrap_or(row.whole));
    placed(&mut cluster, "two", row.half.unwrap_or(row.whole));
    let mut after = Cluster::new(row);
    // Pods may be seen in any order, and before their node.
    for pod in cluster.pods.values().rev() {
        after.set_pod(pod);
    }
    let usage = |cluster: &Cluster| cluster.world.snapshot().node(NODE).unwrap().usage().to_vec();
    assert_eq!(usage(&cluster), usage(&after));
    None
}

fn expiry(row: &'static Row) -> Option<&'static str> {
    let mut cluster = Cluster::new(row);
    let pod = cluster.review(&cluster.pod("p", row.whole)).unwrap();
    let demand = cluster.demand(&pod);
    let fit = cluster.decide(&demand).unwrap();
    let view = PodView::from_json(&pod).unwrap();
    let assumption = tessera_engine::Assumption {
        pod: &view.id,
        roles: &view.roles(),
        node: &fit.node,
        allocation: fit.allocation,
        priority: 0,
        facts: &demand.facts,
        now: 0,
        expires_at: 90,
    };
    cluster.world.assume(&assumption).unwrap();
    assert!(cluster.in_use() > 0);
    assert_eq!(cluster.world.expire(91).len(), 1);
    assert_eq!(cluster.in_use(), 0);
    cluster.check();
    None
}

fn race(row: &'static Row) -> Option<&'static str> {
    let mut cluster = Cluster::new(row);
    fill(&mut cluster, row.whole, row.cards - 1);
    let pods = ["one", "two"].map(|name| cluster.review(&cluster.pod(name, row.whole)).unwrap());
    let decided = pods.map(|pod| {
        let demand = cluster.demand(&pod);
        let fit = cluster.decide(&demand).unwrap();
        (pod, demand, fit)
    });
    let outcomes = decided.map(|(pod, demand, fit)| cluster.carry_out(pod, &demand, &fit));
    assert!(outcomes[0].is_ok(), "{outcomes:?}");
    assert!(matches!(outcomes[1], Err(No::Lost(_))), "{outcomes:?}");
    None
}

fn same_answer(row: &'static Row) -> Option<&'static str> {
    let (one, other) = (Cluster::new(row), Cluster::new(row));
    for limits in [Some(row.whole), row.half, row.pair].into_iter().flatten() {
        let pod = one.review(&one.pod("p", limits)).unwrap();
        let fit = |cluster: &Cluster| cluster.decide(&cluster.demand(&pod)).unwrap();
        assert_eq!(fit(&one), fit(&other));
        assert_eq!(fit(&one), fit(&one));
    }
    None
}

fn quota(row: &'static Row) -> Option<&'static str> {
    let class = tessera_types::Keyword::new(row.class).unwrap();
    let mut cluster = Cluster::new(row);
    let vendor = cluster.engine.vendors().get(&class).unwrap();
    let names = vendor.names();
    if !vendor.rules().quota {
        return Some("no quota counts the class's amounts");
    }
    let Some(memory) = names.memory.clone() else {
        return Some("the class has no memory resource that a quota could limit");
    };
    let half = row.half?;
    let amount = half
        .iter()
        .find(|(name, _)| *name == memory)
        .map_or("1", |(_, amount)| amount);
    cluster.set_quota(&[(memory, amount.to_owned())]);
    placed(&mut cluster, "within", half);
    assert!(cluster.place(&cluster.pod("beyond", half)).is_err(), "beyond the quota");
    cluster.remove("within");
    let snapshot = cluster.world.snapshot();
    assert!(snapshot.quotas().iter().all(|(_, _, state)| state.used == 0));
    placed(&mut cluster, "again", half);
    None
}

fn cordon(row: &'static Row) -> Option<&'static str> {
    let class = tessera_types::Keyword::new(row.class).unwrap();
    let mut cluster = Cluster::new(row);
    if !cluster.engine.vendors().get(&class).unwrap().rules().cordon {
        return Some("the class does not know the cordon");
    }
    let id = cluster.ids()[0].clone();
    let mut annotations = (row.node)().0;
    annotations["hami.io/device-cordon"] = json!(id);
    cluster.set_node(&annotations);
    if cluster
        .world
        .snapshot()
        .node(NODE)
        .is_none_or(|node| !node.is_cordoned(0))
    {
        panic!("the cordon was not read");
    }
    fill(&mut cluster, row.whole, row.cards - 1);
    refused(&mut cluster, "more", row.whole);
    None
}

fn node_gone(row: &'static Row) -> Option<&'static str> {
    let mut cluster = Cluster::new(row);
    placed(&mut cluster, "p", row.whole);
    let usage = |cluster: &Cluster| cluster.world.snapshot().node(NODE).unwrap().usage().to_vec();
    let before = usage(&cluster);
    cluster.world.remove_node(NODE);
    cluster.check();
    let node = node_object(row, &(row.node)().0);
    cluster.world.set_node(&NodeView::from_json(&node).unwrap());
    assert_eq!(usage(&cluster), before);
    None
}

fn unified(row: &'static Row) -> Option<&'static str> {
    let mut cluster = Cluster::new(row);
    let ask = |cluster: &Cluster, name: &str| {
        let mut pod = cluster.pod(name, &[("tessera.dev/gpu", "1")]);
        pod["metadata"]["annotations"]["tessera.dev/vendors"] = json!(row.class);
        pod
    };
    let reviewed = cluster
        .review(&ask(&cluster, "p"))
        .unwrap_or_else(|no| panic!("{no:?}"));
    let limits = &reviewed["spec"]["containers"][0]["resources"]["limits"];
    assert!(limits["tessera.dev/gpu"].is_null(), "{limits}");
    let translated = &reviewed["metadata"]["annotations"]["tessera.dev/translated"];
    assert!(
        translated.as_str().is_some_and(|text| text.contains(row.class)),
        "{translated}"
    );
    for at in 0..row.cards {
        let pod = ask(&cluster, &format!("p{at}"));
        cluster.place(&pod).unwrap_or_else(|no| panic!("{no:?}"));
    }
    assert!(cluster.place(&ask(&cluster, "more")).is_err());
    None
}

fn privileged(row: &'static Row) -> Option<&'static str> {
    let mut cluster = Cluster::new(row);
    let mut pod = cluster.pod("p", row.whole);
    pod["spec"]["containers"][0]["securityContext"] = json!({"privileged": true});
    assert!(matches!(cluster.place(&pod), Err(No::Denied(_))));
    None
}
