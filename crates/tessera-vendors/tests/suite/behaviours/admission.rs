//! What is refused, changed or left when a pod is created.

use serde_json::{Value, json};
use tessera_engine::admission;

use super::super::cluster::{Cluster, No, annotate, set_amount};
use super::super::table::{Limits, Row};
use super::{Behaviour, amount, is, part, placed, some, with_count};

pub(super) const ALL: &[Behaviour] = &[
    is("fraction", "a fraction of a card is refused by its name", fraction),
    is(
        "negative",
        "a negative number of cards is refused by its name",
        negative,
    ),
    is(
        "part-fraction",
        "a fraction of a unit of memory or compute is refused by its name",
        part_fraction,
    ),
    is(
        "part-negative",
        "negative memory or compute is refused by its name",
        part_negative,
    ),
    is(
        "overflow",
        "a number beyond all bounds is refused or never fits, and never wraps round",
        overflow,
    ),
    is(
        "suffix",
        "memory with a unit means as much, or is refused with what to write",
        suffix,
    ),
    is("zero", "zero cards ask for nothing", zero),
    is(
        "zero-memory",
        "memory of zero is refused or a whole card, never a share without a limit",
        zero_memory,
    ),
    is(
        "exact-name",
        "a name that only begins like the class's is none of its",
        exact_name,
    ),
    is("scheduler", "the pod is sent to this scheduler", scheduler),
    is(
        "other-scheduler",
        "a pod of another scheduler is left to it",
        other_scheduler,
    ),
    is("node-name", "a pod that is bound by its owner is refused", node_name),
    is("forged", "an allocation on a new pod is taken off", forged),
    is(
        "tampered",
        "a user's change of an allocation is refused, a node's is not",
        tampered,
    ),
    is("twice", "a pod that is reviewed twice is changed once", twice),
    is(
        "env",
        "environment variables that would widen a share are taken off",
        env,
    ),
    is(
        "privileged",
        "a privileged container with a card is refused",
        privileged,
    ),
    is(
        "policy-typo",
        "a policy that does not exist is refused with those that do",
        policy_typo,
    ),
    is("unified", "`tessera.dev/gpu` is translated to its names", unified),
];

/// Refused by admission; the text names the resource.
#[track_caller]
fn denied(cluster: &mut Cluster, pod: &Value, name: &str) -> String {
    match cluster.place(pod) {
        Err(No::Denied(text)) => {
            assert!(text.contains(name), "{name} is missing: {text}");
            text
        }
        other => panic!("{name}: {other:?}"),
    }
}

fn count_denied(row: &'static Row, count: &str) {
    let mut cluster = Cluster::new(row);
    for limits in [row.whole, some(row)] {
        let pod = with_count(&cluster, "p", limits, count);
        denied(&mut cluster, &pod, limits[0].0);
    }
}

fn fraction(row: &'static Row) {
    count_denied(row, "1500m");
}

fn negative(row: &'static Row) {
    count_denied(row, "-1");
}

/// Every amount that the row's shapes name, without the count.
fn amounts(row: &Row) -> Vec<(Limits, &'static str)> {
    let shapes = [Some(part(row)), row.memory, row.compute, row.percent];
    let mut amounts: Vec<(Limits, &'static str)> = Vec::new();
    for limits in shapes.into_iter().flatten() {
        for (name, _) in limits.iter().filter(|(name, _)| *name != row.whole[0].0) {
            if amounts.iter().all(|(_, known)| known != name) {
                amounts.push((limits, name));
            }
        }
    }
    assert!(!amounts.is_empty(), "no amount beside the count");
    amounts
}

fn part_denied(row: &'static Row, amount: &str) {
    let mut cluster = Cluster::new(row);
    for (limits, name) in amounts(row) {
        let mut pod = cluster.pod("p", limits);
        set_amount(&mut pod, name, amount);
        denied(&mut cluster, &pod, name);
    }
}

fn part_fraction(row: &'static Row) {
    part_denied(row, "1500m");
}

fn part_negative(row: &'static Row) {
    part_denied(row, "-1");
}

fn overflow(row: &'static Row) {
    let mut cluster = Cluster::new(row);
    let shapes = [
        Some(row.whole),
        row.part,
        row.memory,
        row.compute,
        row.percent,
        row.pair,
    ];
    for limits in shapes.into_iter().flatten() {
        for (name, _) in limits {
            for huge in [
                "2147483648",
                "4294967297",
                "9223372036854775807",
                "99999999999999999999",
                "1e30",
            ] {
                let mut pod = cluster.pod("p", limits);
                set_amount(&mut pod, name, huge);
                // Compute beyond a whole card may count as a whole one; anything else is not taken for less.
                if let Err(no) = cluster.place(&pod) {
                    assert!(!no.text().is_empty());
                    continue;
                }
                let is_compute = row.compute.is_some_and(|compute| amount(compute, name).is_some());
                assert!(is_compute && *name != row.whole[0].0, "{name}: {huge} was placed");
                cluster.remove("p");
            }
        }
    }
    assert_eq!(cluster.in_use(), 0);
}

fn suffix(row: &'static Row) {
    let Some(name) = Cluster::without_node(row).class().names().memory.clone() else {
        // Without a memory resource a count is what can have a unit.
        let mut cluster = Cluster::new(row);
        let pod = with_count(&cluster, "p", row.whole, "1Ki");
        cluster.place(&pod).expect_err("there are no 1024 cards");
        return;
    };
    let mut cluster = Cluster::new(row);
    let mut pod = cluster.pod("p", part(row));
    set_amount(&mut pod, &name, "4Gi");
    match cluster.place(&pod) {
        Ok(()) => assert!(cluster.held_by("p").memory.get() >= 4096),
        Err(No::Denied(text)) => assert!(text.contains(&name) && text.contains("write"), "{text}"),
        Err(other) => panic!("{other:?}"),
    }
}

fn zero(row: &'static Row) {
    let cluster = Cluster::new(row);
    let mut pod = cluster.pod("p", &[]);
    set_amount(&mut pod, row.whole[0].0, "0");
    if let Ok(pod) = cluster.review(&pod) {
        assert!(cluster.demand(&pod).is_empty());
    }
}

fn zero_memory(row: &'static Row) {
    let mut cluster = Cluster::new(row);
    let name = cluster.class().names().memory.clone().expect("a memory resource");
    let mut pod = cluster.pod("p", part(row));
    set_amount(&mut pod, &name, "0");
    let Err(no) = cluster.place(&pod) else {
        let held = cluster.held_by("p").memory;
        let snapshot = cluster.world.snapshot();
        let card = &snapshot.node(super::super::cluster::NODE).unwrap().cards()[0];
        assert_eq!(held, card.memory);
        return;
    };
    assert!(matches!(&no, No::Denied(text) if text.contains(&name)), "{no:?}");
}

fn exact_name(row: &'static Row) {
    let cluster = Cluster::new(row);
    for name in [format!("{}x", row.whole[0].0), format!("x{}", row.whole[0].0)] {
        let mut pod = cluster.pod("p", &[]);
        set_amount(&mut pod, &name, "1");
        let reviewed = cluster.review(&pod).unwrap();
        assert!(cluster.demand(&reviewed).is_empty());
        assert!(reviewed["spec"]["schedulerName"].is_null());
    }
}

fn scheduler(row: &'static Row) {
    let cluster = Cluster::new(row);
    for known in [Value::Null, json!("default-scheduler")] {
        let mut pod = cluster.pod("p", some(row));
        pod["spec"]["schedulerName"] = known;
        assert_eq!(cluster.review(&pod).unwrap()["spec"]["schedulerName"], "hami-scheduler");
    }
}

fn other_scheduler(row: &'static Row) {
    let cluster = Cluster::new(row);
    let mut pod = cluster.pod("p", some(row));
    pod["spec"]["schedulerName"] = json!("another");
    assert_eq!(cluster.review(&pod).unwrap(), pod);
}

fn node_name(row: &'static Row) {
    let mut cluster = Cluster::new(row);
    let mut pod = cluster.pod("p", some(row));
    pod["spec"]["nodeName"] = json!("n1");
    denied(&mut cluster, &pod, "spec.nodeName");
}

fn forged(row: &'static Row) {
    let mut cluster = Cluster::new(row);
    placed(&mut cluster, "p", some(row));
    let mut copy = cluster.pods["p"].clone();
    copy["metadata"]["name"] = json!("copy");
    copy["metadata"]["uid"] = json!("uid-copy");
    copy["spec"]["nodeName"] = Value::Null;
    // Where every other class writes is not for this pod to say either.
    let keys: Vec<String> = cluster
        .engine
        .vendors()
        .iter()
        .flat_map(|vendor| vendor.keys().allocation().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    for key in &keys {
        if copy["metadata"]["annotations"][key].is_null() {
            annotate(&mut copy, &[(key, "forged,X,1,1:;")]);
        }
    }
    let reviewed = cluster.review(&copy).unwrap();
    for key in keys
        .iter()
        .map(String::as_str)
        .chain(["hami.io/vgpu-node", "hami.io/bind-phase"])
    {
        assert!(reviewed["metadata"]["annotations"][key].is_null(), "{key} stays");
    }
}

fn tampered(row: &'static Row) {
    let mut cluster = Cluster::new(row);
    placed(&mut cluster, "p", some(row));
    let old = &cluster.pods["p"];
    let settings = admission::Settings::default();
    let refused = |new: &Value, user: &str, groups: &[&str]| {
        let groups: Vec<String> = groups.iter().map(|group| (*group).to_owned()).collect();
        admission::refuse_update(old, new, user, &groups, &settings, &cluster.engine)
    };
    let mut labelled = old.clone();
    labelled["metadata"]["labels"]["app"] = json!("web");
    assert_eq!(refused(&labelled, "jane", &[]), None);
    for key in cluster.class().keys().allocation() {
        let mut new = old.clone();
        annotate(&mut new, &[(key, "other,X,1,1:;")]);
        let text = refused(&new, "jane", &["system:authenticated"]).unwrap_or_else(|| panic!("{key} may change"));
        assert!(text.contains(key), "{text}");
        assert_eq!(refused(&new, "system:node:n1", &["system:nodes"]), None);
    }
}

fn twice(row: &'static Row) {
    let cluster = Cluster::new(row);
    let shapes = [
        Some(row.whole),
        row.part,
        row.memory,
        row.compute,
        row.percent,
        row.pair,
    ];
    for limits in shapes.into_iter().flatten() {
        let once = cluster.review(&cluster.pod("p", limits)).unwrap();
        assert_eq!(cluster.review(&once).unwrap(), once);
    }
}

fn env(row: &'static Row) {
    let cluster = Cluster::new(row);
    let names = cluster.class().reserved_env();
    assert!(!names.is_empty(), "no variable is the class's own");
    for name in names {
        let mut pod = cluster.pod("p", some(row));
        pod["spec"]["containers"][0]["env"] =
            json!([{"name": "MINE", "value": "1"}, {"name": name, "value": "forged"}]);
        let reviewed = cluster.review(&pod).unwrap();
        let env = reviewed["spec"]["containers"][0]["env"].as_array().unwrap();
        assert!(env.iter().any(|set| set["name"] == "MINE"));
        assert!(env.iter().all(|set| set["value"] != "forged"), "{name} stays: {env:?}");
    }
}

fn privileged(row: &'static Row) {
    let mut cluster = Cluster::new(row);
    let mut pod = cluster.pod("p", some(row));
    pod["spec"]["containers"][0]["securityContext"] = json!({"privileged": true});
    denied(&mut cluster, &pod, "privileged");
}

fn policy_typo(row: &'static Row) {
    let mut cluster = Cluster::new(row);
    for key in ["hami.io/gpu-scheduler-policy", "hami.io/node-scheduler-policy"] {
        let mut pod = cluster.pod("p", some(row));
        annotate(&mut pod, &[(key, "binpakc")]);
        assert!(denied(&mut cluster, &pod, key).contains("binpack"));
    }
}

fn unified(row: &'static Row) {
    let mut cluster = Cluster::new(row);
    let ask = |cluster: &Cluster, name: &str| {
        let mut pod = cluster.pod(name, &[("tessera.dev/gpu", "1")]);
        annotate(&mut pod, &[("tessera.dev/vendors", row.class)]);
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
    cluster.place(&ask(&cluster, "more")).expect_err("all cards are given");
}
