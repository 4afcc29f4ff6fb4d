//! What fits on a card, and who says no when it does not.

use tessera_types::{NodeRefusal, ReasonKind};

use super::super::cluster::{Cluster, NODE, Refusal, view};
use super::super::table::{Limits, Row};
use super::{Behaviour, amount, fill, is, must_place, part, placed, refused, some, with_count};

pub(super) const ALL: &[Behaviour] = &[
    is("whole", "whole cards, one a pod, until none is left", whole),
    is("part", "parts of a card fill it, and one more waits", parts),
    is(
        "memory",
        "when the memory is used up, memory is what is said to be short",
        memory,
    ),
    is(
        "compute",
        "when the compute is used up, compute is what is said to be short",
        compute,
    ),
    is("slots", "a card is shared by as many as it has slots for", slots),
    is("percent", "memory in percent of the card", percent),
    is("unit", "nobody is given less than asked for", unit),
    is(
        "alone",
        "who has a whole card shares it with nobody, and waits for an unused one",
        alone,
    ),
    is("pair", "two different cards for one container", pair),
    is("pairs", "two cards a container, until none is left", pairs),
    is(
        "too-many",
        "more cards than any node has are refused with that",
        too_many,
    ),
    is(
        "containers",
        "two containers of a pod do not share what only one fits on",
        containers,
    ),
    is(
        "place",
        "a card stands at the place of its container, whatever the others ask for",
        place,
    ),
    is("init", "an init container's card is free again for the app", init),
    is(
        "init-large",
        "what an init container takes beyond the app stays the pod's",
        init_large,
    ),
    is("sidecar", "a sidecar keeps its card beside the app", sidecar),
    is(
        "reasons",
        "a refusal says why, to people and in HAMi's words, and what to do",
        reasons,
    ),
    is(
        "each-card",
        "each card that is refused has a reason of its own",
        each_card,
    ),
];

fn whole(row: &'static Row) {
    let mut cluster = Cluster::new(row);
    fill(&mut cluster, row.whole, row.cards);
    assert_eq!(cluster.in_use(), row.cards);
    refused(&mut cluster, "more", row.whole).refusal();
}

fn parts(row: &'static Row) {
    let part = part(row);
    let mut cluster = Cluster::new(row);
    fill(&mut cluster, part, row.cards * row.parts);
    assert_eq!(cluster.in_use(), row.cards);
    refused(&mut cluster, "more", part).refusal();
    refused(&mut cluster, "whole", row.whole).refusal();
}

/// Fills all cards with `limits`; the next is refused.
fn used_up(row: &'static Row, limits: Limits, each: usize) -> (Cluster, Refusal) {
    let mut cluster = Cluster::new(row);
    fill(&mut cluster, limits, row.cards * each);
    assert_eq!(cluster.in_use(), row.cards);
    let no = refused(&mut cluster, "more", limits).refusal();
    (cluster, no)
}

fn kinds(refusal: &Refusal) -> Vec<ReasonKind> {
    match &refusal.refusal {
        NodeRefusal::Cards { reasons, .. } => reasons
            .iter()
            .filter(|reason| reason.card.is_some())
            .map(|reason| reason.kind)
            .collect(),
        other => panic!("{other:?}"),
    }
}

/// All of the cards lack the same.
#[track_caller]
fn short_of(row: &Row, refusal: &Refusal, kind: &[ReasonKind]) {
    let kinds = kinds(refusal);
    assert_eq!(kinds.len(), row.cards, "{kinds:?}");
    assert!(
        kinds.iter().all(|of_card| kind.contains(of_card)),
        "{kinds:?}: {}",
        refusal.human
    );
}

fn memory(row: &'static Row) {
    let limits = row.memory.expect("a row with memory");
    let (_, no) = used_up(row, limits, row.memories);
    short_of(row, &no, &[ReasonKind::MemoryShort]);
    assert!(no.human.contains("MiB wanted"), "{}", no.human);
}

fn compute(row: &'static Row) {
    let limits = row.compute.expect("a row with compute");
    let (_, no) = used_up(row, limits, 2);
    short_of(row, &no, &[ReasonKind::CoresShort, ReasonKind::AmountShort]);
    assert!(no.human.contains("wanted"), "{}", no.human);
}

fn slots(row: &'static Row) {
    let (limits, each) = row.least.expect("a row with slots");
    let (_, no) = used_up(row, limits, each);
    short_of(row, &no, &[ReasonKind::SlotsExhausted]);
    assert!(no.human.contains("without a free slot"), "{}", no.human);
}

fn percent(row: &'static Row) {
    let limits = row.percent.expect("a row with percent");
    let (cluster, no) = used_up(row, limits, 2);
    short_of(row, &no, &[ReasonKind::MemoryShort]);
    let snapshot = cluster.world.snapshot();
    let node = snapshot.node(NODE).unwrap();
    for (card, used) in node.cards().iter().zip(node.usage()) {
        assert_eq!(used.usage.memory, card.memory);
    }
}

fn unit(row: &'static Row) {
    let part = part(row);
    let mut cluster = Cluster::new(row);
    placed(&mut cluster, "p", part);
    let names = cluster.class().names();
    let (name, factor) = (names.memory.clone().expect("a memory resource"), names.factor());
    let asked: u64 = amount(part, &name).expect("a part has memory").parse().unwrap();
    let held = cluster.held_by("p").memory.get();
    assert!(held >= asked * factor, "{held} MiB for {asked} units of {factor} MiB");
}

fn alone(row: &'static Row) {
    let mut cluster = Cluster::new(row);
    fill(&mut cluster, row.whole, row.cards - 1);
    placed(&mut cluster, "some", some(row));
    refused(&mut cluster, "whole", row.whole).refusal();
    cluster.remove("some");
    placed(&mut cluster, "whole", row.whole);
    refused(&mut cluster, "some", some(row)).refusal();
}

fn pair(row: &'static Row) {
    let mut cluster = Cluster::new(row);
    placed(&mut cluster, "pair", row.pair.expect("a row with two cards"));
    assert_eq!(cluster.cards_of("pair").len(), 2);
}

fn pairs(row: &'static Row) {
    let pair = row.pair.expect("a row with two cards");
    let mut cluster = Cluster::new(row);
    fill(&mut cluster, pair, row.cards / 2);
    assert_eq!(cluster.in_use(), row.cards);
    refused(&mut cluster, "more", pair).refusal();
}

fn too_many(row: &'static Row) {
    let mut cluster = Cluster::new(row);
    let pod = with_count(&cluster, "p", row.whole, "64");
    let no = cluster.place(&pod).expect_err("there are not so many");
    assert!(no.text().contains("64") || no.text().contains("cards"), "{no:?}");
    assert_eq!(cluster.in_use(), 0);
}

fn containers(row: &'static Row) {
    let mut cluster = Cluster::new(row);
    fill(&mut cluster, row.whole, row.cards - 2);
    let pod = cluster.pod_of("two", &[], &[row.whole, row.whole]);
    must_place(&mut cluster, &pod);
    assert_eq!(cluster.cards_of("two").len(), 2);
    cluster.remove("two");
    placed(&mut cluster, "one", row.whole);
    let pod = cluster.pod_of("two", &[], &[row.whole, row.whole]);
    cluster.place(&pod).expect_err("one card is left for two");
}

fn place(row: &'static Row) {
    let mut cluster = Cluster::new(row);
    let pod = cluster.pod_of("p", &[], &[&[], some(row), &[]]);
    must_place(&mut cluster, &pod);
    let annotations = view(&cluster.pods["p"]).annotations;
    let (class, _) = cluster
        .class()
        .read_allocation(&annotations)
        .unwrap()
        .expect("something is written");
    let counts: Vec<usize> = class.iter().map(Vec::len).collect();
    // Containers without cards at the end may be left out.
    assert_eq!(counts.get(..2), Some(&[0, 1][..]), "{counts:?}");
    assert!(counts.iter().skip(2).all(|count| *count == 0), "{counts:?}");
}

fn init(row: &'static Row) {
    let mut cluster = Cluster::new(row);
    fill(&mut cluster, row.whole, row.cards - 1);
    let pod = cluster.pod_of("init", &[(row.whole, false)], &[row.whole]);
    must_place(&mut cluster, &pod);
    assert_eq!(cluster.cards_of("init").len(), 1);
}

fn init_large(row: &'static Row) {
    let part = part(row);
    let mut cluster = Cluster::new(row);
    fill(&mut cluster, row.whole, row.cards - 1);
    let pod = cluster.pod_of("p", &[(row.whole, false)], &[part]);
    must_place(&mut cluster, &pod);
    refused(&mut cluster, "beside", part).refusal();
    cluster.remove("p");
    placed(&mut cluster, "beside", row.whole);
}

fn sidecar(row: &'static Row) {
    let mut cluster = Cluster::new(row);
    fill(&mut cluster, row.whole, row.cards - 2);
    let pod = |cluster: &Cluster, name: &str| cluster.pod_of(name, &[(row.whole, true)], &[row.whole]);
    let both = pod(&cluster, "both");
    must_place(&mut cluster, &both);
    assert_eq!(cluster.cards_of("both").len(), 2);
    cluster.remove("both");
    placed(&mut cluster, "one", row.whole);
    let both = pod(&cluster, "both");
    cluster
        .place(&both)
        .expect_err("there is one card for two that run together");
}

fn reasons(row: &'static Row) {
    let mut cluster = Cluster::new(row);
    fill(&mut cluster, row.whole, row.cards);
    let no = refused(&mut cluster, "more", row.whole).refusal();
    assert!(no.human.len() > 10 && !no.human.contains("usable"), "{}", no.human);
    let counted = no.hami.contains(&format!("/{}", row.cards)) || no.hami == "NodeInsufficientDevice";
    assert!(counted, "{}", no.hami);
    let remedies = ["Wait for", "Ask for", "Raise", "free "];
    assert!(
        remedies.iter().any(|word| no.event.contains(word)),
        "the event names nothing to do: {}",
        no.event
    );
    assert!(no.event.len() <= tessera_engine::text::EVENT_BYTES_MAX);
}

fn each_card(row: &'static Row) {
    let mut cluster = Cluster::new(row);
    fill(&mut cluster, row.whole, row.cards);
    let no = refused(&mut cluster, "more", row.whole).refusal();
    let NodeRefusal::Cards {
        cards, reasons, class, ..
    } = &no.refusal
    else {
        panic!("{no:?}");
    };
    assert_eq!(
        (usize::try_from(*cards).unwrap(), class.as_str()),
        (row.cards, row.class)
    );
    let mut named: Vec<String> = reasons
        .iter()
        .filter_map(|reason| Some(reason.card.as_ref()?.to_string()))
        .collect();
    named.sort();
    let mut ids = cluster.ids();
    ids.sort();
    assert_eq!(named, ids, "{reasons:?}");
    for reason in reasons.iter().filter(|reason| reason.card.is_some()) {
        let text = tessera_engine::text::reason(reason);
        assert!(text.contains(reason.card.as_ref().unwrap().as_str()), "{text}");
        assert!(!text.ends_with("does not fit"), "{text}");
    }
}
