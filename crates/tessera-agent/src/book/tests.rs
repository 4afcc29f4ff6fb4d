use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::json;
use tessera_probe::{CardFacts, MigMode};
use tessera_types::{Card, CardMode, Extras};

use super::*;
use crate::slot;
use tessera_kubelet::PreferredRequest;

const A: &str = "GPU-aaaaaaaa-0000-0000-0000-00000000000a";
const B: &str = "GPU-bbbbbbbb-0000-0000-0000-00000000000b";
const C: &str = "GPU-cccccccc-0000-0000-0000-00000000000c";

fn card(uuid: &str, index: u32) -> Managed {
    Managed {
        card: Card {
            id: CardId::new(uuid).unwrap(),
            class: Keyword::new("NVIDIA").unwrap(),
            index,
            slots: 10,
            memory: Mib::new(10_000),
            cores: Cores::new(100),
            extra: Extras::NONE,
            model: Arc::from("NVIDIA A100"),
            numa: 0,
            mode: CardMode::new("hami-core"),
            healthy: true,
            mig_profiles: Vec::new(),
            link_scores: BTreeMap::new(),
            twin: None,
            custom: BTreeMap::new(),
        },
        facts: CardFacts {
            index,
            uuid: uuid.into(),
            model: "A100".into(),
            minor: Some(index),
            pci_bus_id: String::new(),
            memory_total_bytes: Some(10_000 << 20),
            memory_reserved_bytes: None,
            numa: None,
            compute_capability: None,
            mig: MigMode::Unsupported,
            mig_profiles: Vec::new(),
        },
        sick: None,
        numa_known: None,
    }
}

fn book() -> Book {
    let mut book = Book::new(Keyword::new("NVIDIA").unwrap());
    book.set_cards([card(A, 0), card(B, 1)]);
    book
}

struct PodText<'a> {
    name: &'a str,
    init: &'a [&'a str],
    apps: &'a [&'a str],
    text: String,
    own: bool,
    phase: &'a str,
}

fn own<'a>(name: &'a str, apps: &'a [&'a str], text: &str) -> PodText<'a> {
    PodText {
        name,
        init: &[],
        apps,
        text: text.into(),
        own: true,
        phase: "Pending",
    }
}

fn uid(name: &str) -> PodUid {
    PodUid::new(format!("uid-{name}")).unwrap()
}

impl PodText<'_> {
    fn view(&self) -> PodView {
        let containers = |names: &[&str]| names.iter().map(|name| json!({"name": name})).collect::<Vec<_>>();
        let mut annotations = json!({
            "hami.io/vgpu-node": "n1",
            "hami.io/vgpu-devices-allocated": self.text,
            "hami.io/vgpu-devices-to-allocate": self.text,
            "hami.io/bind-phase": "allocating",
            "hami.io/bind-time": "1705054796",
        });
        if self.own {
            annotations["tessera.dev/scheduler"] = json!("1");
        }
        PodView::from_json(&json!({
            "metadata": {
                "namespace": "default",
                "name": self.name,
                "uid": format!("uid-{}", self.name),
                "annotations": annotations,
            },
            "spec": {
                "nodeName": "n1",
                "initContainers": containers(self.init),
                "containers": containers(self.apps),
            },
            "status": {"phase": self.phase},
        }))
        .unwrap()
    }
}

fn ids(list: &[(&str, u32)]) -> Vec<String> {
    list.iter().map(|(card, k)| slot::id(card, *k)).collect()
}

/// Whom the ids are for when the kubelet says nothing else.
fn choose(book: &Book, ids: &[String]) -> Result<Choice, NoOwner> {
    book.choose(ids, &KubeletView::default(), &[])
}

/// Names of the waiting pods, in order.
fn waiting(book: &Book) -> Vec<String> {
    let waiting = book.waiting(&KubeletView::default());
    waiting.into_iter().map(|(_, one)| one.pod.name).collect()
}

/// The kubelet's record, and the pods that it knows.
fn view(held: &[Truth], pods: &[&str]) -> KubeletView {
    KubeletView {
        held: Some(held.into()),
        pods: Some(
            pods.iter()
                .map(|name| ("default".to_owned(), (*name).to_owned()))
                .collect(),
        ),
    }
}

/// What the desk does after a choice.
fn grant(book: &mut Book, choice: &Choice, ids: &[String]) -> Record {
    let candidate = &choice.candidate;
    let serial = book.next_serial();
    let record = Record {
        id: format!("{serial:032x}"),
        ids: ids.iter().cloned().collect(),
        pod: candidate.pod.clone(),
        container: candidate.container.clone(),
        index: candidate.index,
        shares: candidate.shares.clone(),
        limited: book.limits(&candidate.shares),
        sealed: false,
        proven: false,
        serial,
        priority: None,
        resized: 0,
    };
    book.set_record(record.clone());
    record
}

fn truth(record: &Record, pod: &str, container: &str) -> Truth {
    Truth {
        grant: Some(record.id.clone()),
        ids: record.ids.clone(),
        cards: record.shares.iter().map(|share| share.card.clone()).collect(),
        limited: record.limited,
        uid: uid(pod),
        container: container.into(),
    }
}

fn apply(book: &mut Book, settled: Settled) {
    for record in settled.changed {
        book.set_record(record);
    }
}

fn limits(record: &Record) -> Vec<(String, u64)> {
    record
        .shares
        .iter()
        .map(|share| (share.card.to_string(), share.memory.get()))
        .collect()
}

#[test]
fn preference_names_free_ids_of_the_expected_containers_cards() {
    let mut book = book();
    book.set_pod(own("p", &["c"], &format!("{A},NVIDIA,3000,30:;")).view());
    let prefer = |available: Vec<String>, must: Vec<String>, size| {
        let request = PreferredRequest {
            available,
            must_include: must,
            size,
        };
        book.preferred(&[request], &KubeletView::default()).0
    };
    let all = ids(&[(B, 0), (B, 1), (A, 4), (A, 5)]);
    assert_eq!(prefer(all.clone(), vec![], 1), [ids(&[(A, 4)])]);
    // What must be included counts, whatever its card.
    assert_eq!(prefer(all.clone(), ids(&[(A, 5)]), 1), [ids(&[(A, 5)])]);
    assert_eq!(prefer(all.clone(), ids(&[(B, 0)]), 1), [ids(&[(B, 0)])]);
    // Another size is somebody else's request.
    assert!(prefer(all, vec![], 2).is_empty());
    // No free slot of the card: any id stands for it, but none at all does not.
    assert_eq!(prefer(ids(&[(B, 0)]), vec![], 1), [ids(&[(B, 0)])]);
    assert!(prefer(vec![], vec![], 1).is_empty());
}

#[test]
fn a_card_without_free_ids_is_served_by_the_one_with_the_most() {
    let mut book = book();
    book.set_cards([card(A, 0), card(B, 1), card(C, 2)]);
    book.set_pod(own("p", &["c"], &format!("{A},NVIDIA,3000,0:{B},NVIDIA,3000,0:;")).view());
    let request = PreferredRequest {
        available: ids(&[(B, 0), (B, 1), (C, 0), (C, 1), (C, 2)]),
        must_include: Vec::new(),
        size: 2,
    };
    let (answers, _) = book.preferred(&[request], &KubeletView::default());
    assert_eq!(answers[0][0], ids(&[(B, 0)])[0]);
    assert!(answers[0][1].starts_with(C), "{answers:?}");
}

#[test]
fn containers_are_served_in_pod_order_init_first() {
    let mut book = book();
    let text = format!("{A},NVIDIA,1000,0:;;{B},NVIDIA,2000,0:;");
    book.set_pod(
        PodText {
            init: &["init"],
            ..own("p", &["plain", "main"], &text)
        }
        .view(),
    );
    let choice = choose(&book, &ids(&[(A, 0)])).unwrap();
    assert_eq!(
        (choice.candidate.container.as_str(), choice.candidate.index),
        ("init", 0)
    );
    // The next container has to wait for its turn: other ids are for the first.
    let early = choose(&book, &ids(&[(B, 0)])).unwrap();
    assert_eq!((early.candidate.container.as_str(), early.cards_match), ("init", false));
    grant(&mut book, &choice, &ids(&[(A, 0)]));
    let choice = choose(&book, &ids(&[(B, 0)])).unwrap();
    assert_eq!(
        (choice.candidate.container.as_str(), choice.candidate.index),
        ("main", 2)
    );
}

#[test]
fn the_kubelet_s_record_decides_between_equal_cards_with_other_limits() {
    let mut book = book();
    book.set_pod(own("p1", &["c"], &format!("{A},NVIDIA,1000,0:;")).view());
    book.set_pod(own("p2", &["c"], &format!("{A},NVIDIA,3000,0:;")).view());
    let first = ids(&[(A, 0)]);
    let record = choose(&book, &first)
        .map(|choice| grant(&mut book, &choice, &first))
        .unwrap();
    assert_eq!(record.pod.name, "p1");
    // The kubelet meant p2.
    let settled = book.settle(&record.ids, &[truth(&record, "p2", "c")]).unwrap();
    assert_eq!(limits(&settled.changed[0]), [(A.to_owned(), 3000)]);
    assert!(settled.changed[0].sealed);
    apply(&mut book, settled);
    // p1 waits again and gets its own.
    let second = ids(&[(A, 1)]);
    let choice = choose(&book, &second).unwrap();
    assert_eq!(choice.candidate.pod.name, "p1");
    // Nothing has to be moved in the annotations.
    assert_eq!(book.work(&uid("p2")), None);
}

#[test]
fn exchanged_grants_are_put_right_in_one_step_with_their_annotations() {
    let mut book = book();
    book.set_pod(own("p1", &["c"], &format!("{A},NVIDIA,7000,0:;")).view());
    book.set_pod(own("p2", &["c"], &format!("{B},NVIDIA,6000,0:;")).view());
    let on_a = ids(&[(A, 0)]);
    let on_b = ids(&[(B, 0)]);
    let first = choose(&book, &on_a)
        .map(|choice| grant(&mut book, &choice, &on_a))
        .unwrap();
    let second = choose(&book, &on_b)
        .map(|choice| grant(&mut book, &choice, &on_b))
        .unwrap();
    let record = [truth(&first, "p2", "c"), truth(&second, "p1", "c")];
    let settled = book.settle(&first.ids, &record).unwrap();
    assert_eq!(settled.asked, std::slice::from_ref(&first.id));
    apply(&mut book, settled);
    assert_eq!(limits(book.record(&first.id).unwrap()), [(A.to_owned(), 6000)]);
    assert_eq!(limits(book.record(&second.id).unwrap()), [(B.to_owned(), 7000)]);
    assert!(
        !book.record(&second.id).unwrap().sealed,
        "it is sealed before its own start"
    );
    let settled = book.settle(&second.ids, &record).unwrap();
    apply(&mut book, settled);
    let text = |pod: &str| {
        book.work(&uid(pod)).unwrap().annotations[keys::NVIDIA_ALLOCATED]
            .clone()
            .unwrap()
    };
    assert_eq!(text("p1"), format!("{B},NVIDIA,7000,0:;"));
    assert_eq!(text("p2"), format!("{A},NVIDIA,6000,0:;"));
}

#[test]
fn ids_are_tokens_and_the_container_gets_its_own_cards() {
    let mut book = book();
    book.set_pod(own("p", &["c"], &format!("{A},NVIDIA,3000,30:{B},NVIDIA,2000,0:;")).view());
    // Two slots of one card for two cards: both cards' slots are nearly used up.
    let taken = ids(&[(B, 3), (B, 4)]);
    let choice = choose(&book, &taken).unwrap();
    assert!(!choice.cards_match);
    let record = grant(&mut book, &choice, &taken);
    assert_eq!(limits(&record), [(A.to_owned(), 3000), (B.to_owned(), 2000)]);
    let settled = book.settle(&record.ids, &[truth(&record, "p", "c")]).unwrap();
    assert!(settled.changed[0].sealed);
    apply(&mut book, settled);
    assert_eq!(book.work(&uid("p")), None, "the booking is as it was");
}

#[test]
fn the_pod_that_the_kubelet_knows_is_meant_whatever_the_ids_and_the_order() {
    let mut book = book();
    for (name, card, mib) in [("p1", A, 1000), ("p2", B, 2000), ("p3", B, 3000)] {
        book.set_pod(own(name, &["c"], &format!("{card},NVIDIA,{mib},0:;")).view());
    }
    let known = view(&[], &["p2", "elsewhere"]);
    let request = PreferredRequest {
        available: ids(&[(A, 0), (B, 0)]),
        must_include: Vec::new(),
        size: 1,
    };
    let (answers, expected) = book.preferred(&[request], &known);
    assert_eq!(answers, [ids(&[(B, 0)])]);
    assert!(expected[0].sure);
    for taken in [ids(&[(B, 0)]), ids(&[(A, 0)])] {
        let choice = book.choose(&taken, &known, &expected).unwrap();
        assert_eq!(choice.candidate.pod.name, "p2");
        assert!(choice.at_once);
    }
    // Without that knowledge the preference still counts where cards say nothing.
    let taken = ids(&[(C, 0)]);
    let quiet = KubeletView::default();
    let guess = Expected {
        sure: false,
        ..expected[0].clone()
    };
    assert_eq!(
        book.choose(&taken, &quiet, &[guess]).map(|one| one.candidate.pod.name),
        Ok("p2".into())
    );
    assert_eq!(
        book.choose(&taken, &quiet, &[]).map(|one| one.candidate.pod.name),
        Ok("p1".into())
    );
}

#[test]
fn an_answer_that_the_kubelet_did_not_record_is_void() {
    let mut book = book();
    book.set_pod(own("p", &["c"], &format!("{A},NVIDIA,1000,0:;")).view());
    let first = ids(&[(A, 0)]);
    let choice = choose(&book, &first).unwrap();
    let void = grant(&mut book, &choice, &first);
    // The kubelet was killed and asks again, for other ids.
    let again = ids(&[(A, 7)]);
    let choice = book.choose(&again, &view(&[], &["p"]), &[]).unwrap();
    let record = grant(&mut book, &choice, &again);
    assert_eq!((record.container.as_str(), &record.shares), ("c", &void.shares));
    // Once it has recorded one, the container waits no more.
    let held = [truth(&record, "p", "c")];
    assert!(book.waiting(&view(&held, &["p"])).is_empty());
    let settled = book.settle(&record.ids, &held).unwrap();
    assert_eq!(settled.asked, [record.id]);
}

#[test]
fn a_running_container_whose_record_was_lost_is_answered_again_after_pods_that_are_new() {
    let mut book = book();
    let text = format!("{A},NVIDIA,1000,0:;");
    book.set_pod(
        PodText {
            phase: "Running",
            ..own("old", &["c"], &text)
        }
        .view(),
    );
    let first = ids(&[(A, 0)]);
    let choice = choose(&book, &first).unwrap();
    let record = grant(&mut book, &choice, &first);
    let settled = book.settle(&record.ids, &[truth(&record, "old", "c")]).unwrap();
    apply(&mut book, settled);
    let lost = view(&[], &["old", "new"]);
    let choice = book.choose(&ids(&[(B, 4)]), &lost, &[]).unwrap();
    assert_eq!(choice.candidate.shares, record.shares);
    book.set_pod(own("new", &["c"], &format!("{A},NVIDIA,2000,0:;")).view());
    let choice = book.choose(&ids(&[(B, 4)]), &lost, &[]).unwrap();
    assert_eq!(choice.candidate.pod.name, "new");
}

#[test]
fn a_wrong_guess_does_not_leave_the_other_pod_without_an_answer() {
    let mut book = book();
    book.set_pod(own("p1", &["c"], &format!("{A},NVIDIA,1000,0:;")).view());
    book.set_pod(own("p2", &["c"], &format!("{A},NVIDIA,1000,0:;")).view());
    let first = ids(&[(A, 0)]);
    let choice = choose(&book, &first).unwrap();
    let record = grant(&mut book, &choice, &first);
    assert_eq!(record.pod.name, "p1");
    let held = [truth(&record, "p2", "c")];
    // p1 was thought to be served.
    let choice = book.choose(&ids(&[(A, 1)]), &view(&held, &["p1", "p2"]), &[]).unwrap();
    assert_eq!(choice.candidate.pod.name, "p1");
}

#[test]
fn ids_of_an_init_container_prove_the_pod_whatever_its_cards() {
    let mut book = book();
    book.set_pod(own("other", &["c"], &format!("{A},NVIDIA,500,0:;")).view());
    let text = format!("{A},NVIDIA,1000,0:;{B},NVIDIA,4000,0:;");
    book.set_pod(
        PodText {
            init: &["init"],
            ..own("p", &["main"], &text)
        }
        .view(),
    );
    let taken = ids(&[(A, 3)]);
    let init = Record {
        pod: book.pod(&uid("p")).unwrap().id.clone(),
        container: "init".into(),
        ..choose(&book, &taken)
            .map(|choice| grant(&mut book, &choice, &taken))
            .unwrap()
    };
    book.set_record(init.clone());
    let held = [truth(&init, "p", "init")];
    let quiet = KubeletView {
        pods: None,
        ..view(&held, &[])
    };
    let choice = book.choose(&taken, &quiet, &[]).unwrap();
    assert_eq!(
        (choice.candidate.pod.name.as_str(), choice.candidate.container.as_str()),
        ("p", "main")
    );
    assert!(choice.at_once);
    assert_eq!(choice.candidate.shares[0].card.as_str(), B);
}

#[test]
fn pods_being_deleted_are_answered_last() {
    let mut book = book();
    let mut leaving = own("p1", &["c"], &format!("{A},NVIDIA,1000,0:;")).view();
    leaving.deleting = true;
    book.set_pod(leaving);
    assert_eq!(
        choose(&book, &ids(&[(A, 0)])).map(|one| one.candidate.pod.name),
        Ok("p1".into())
    );
    book.set_pod(own("p2", &["c"], &format!("{A},NVIDIA,2000,0:;")).view());
    assert_eq!(
        choose(&book, &ids(&[(A, 0)])).map(|one| one.candidate.pod.name),
        Ok("p2".into())
    );
}

#[test]
fn a_container_given_other_cards_moves_there_if_it_fits_and_its_booking_goes_first() {
    let mut book = book();
    book.set_pod(own("p1", &["c"], &format!("{A},NVIDIA,7000,0:;")).view());
    book.set_pod(own("p2", &["c"], &format!("{B},NVIDIA,3000,30:;")).view());
    let on_a = ids(&[(A, 0)]);
    let record = choose(&book, &on_a)
        .map(|choice| grant(&mut book, &choice, &on_a))
        .unwrap();
    // It was p2 that the kubelet meant, which now has p1's card.
    let settled = book.settle(&record.ids, &[truth(&record, "p2", "c")]).unwrap();
    assert_eq!(settled.moving.as_ref().map(|(pod, _)| pod.name.as_str()), Some("p2"));
    assert!(!settled.changed[0].sealed);
    apply(&mut book, settled);
    let moved = format!("{A},NVIDIA,3000,30:;");
    let work = book.work(&uid("p2")).unwrap();
    assert_eq!(
        work.annotations[keys::NVIDIA_ALLOCATED].as_deref(),
        Some(moved.as_str())
    );
    book.set_pod(own("p2", &["c"], &moved).view());
    let settled = book.settle(&record.ids, &[truth(&record, "p2", "c")]).unwrap();
    assert_eq!(settled.moving, None);
    assert!(settled.changed[0].sealed);
}

#[test]
fn a_container_given_a_card_without_room_for_it_waits_with_amounts() {
    let mut book = book();
    book.set_pod(
        PodText {
            phase: "Running",
            ..own("old", &["c"], &format!("{A},NVIDIA,9000,0:;"))
        }
        .view(),
    );
    let old = ids(&[(A, 0)]);
    let choice = choose(&book, &old).unwrap();
    grant(&mut book, &choice, &old);
    book.set_pod(own("p1", &["c"], &format!("{A},NVIDIA,500,0:;")).view());
    book.set_pod(own("p2", &["c"], &format!("{B},NVIDIA,3000,30:;")).view());
    let taken = ids(&[(A, 1)]);
    let choice = choose(&book, &taken).unwrap();
    let record = grant(&mut book, &choice, &taken);
    assert_eq!(record.pod.name, "p1");
    let error = book.settle(&record.ids, &[truth(&record, "p2", "c")]).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("3000 MiB wanted, 500 MiB free"), "{text}");
    assert!(
        text.contains(A) && text.contains(B) && text.contains("default/p2"),
        "{text}"
    );
}

#[test]
fn ids_without_a_record_or_a_known_pod_wait() {
    let mut book = book();
    book.set_pod(own("p", &["c"], &format!("{A},NVIDIA,3000,30:;")).view());
    let on_a = ids(&[(A, 0)]);
    let record = choose(&book, &on_a)
        .map(|choice| grant(&mut book, &choice, &on_a))
        .unwrap();
    assert_eq!(book.settle(&record.ids, &[]), Err(NoOwner::NoRecord));
    assert!(matches!(
        book.settle(&record.ids, &[truth(&record, "stranger", "c")]),
        Err(NoOwner::UnknownPod { .. })
    ));
    assert!(matches!(
        book.settle(&record.ids, &[truth(&record, "p", "other")]),
        Err(NoOwner::NoEntry { .. })
    ));
    assert!(matches!(
        book.cards_of(&["GPU-x-0".into()]),
        Err(NoOwner::UnknownId { .. })
    ));
}

#[test]
fn ids_of_an_init_container_serve_an_app_container_after_it() {
    let mut book = book();
    let text = format!("{A},NVIDIA,1000,0:;{A},NVIDIA,4000,0:;");
    book.set_pod(
        PodText {
            init: &["init"],
            ..own("p", &["main"], &text)
        }
        .view(),
    );
    let on_a = ids(&[(A, 0)]);
    let init = choose(&book, &on_a)
        .map(|choice| grant(&mut book, &choice, &on_a))
        .unwrap();
    let main = choose(&book, &on_a)
        .map(|choice| grant(&mut book, &choice, &on_a))
        .unwrap();
    assert_eq!((init.container.as_str(), main.container.as_str()), ("init", "main"));
    let settled = book
        .settle(&init.ids, &[truth(&init, "p", "init"), truth(&main, "p", "main")])
        .unwrap();
    assert_eq!(settled.changed.len(), 2);
    apply(&mut book, settled);
    assert_eq!(limits(book.record(&init.id).unwrap()), [(A.to_owned(), 1000)]);
    assert_eq!(limits(book.record(&main.id).unwrap()), [(A.to_owned(), 4000)]);
}

#[test]
fn ids_of_an_ended_pod_serve_the_next_one() {
    let mut book = book();
    let text = format!("{A},NVIDIA,1000,0:;");
    book.set_pod(own("old", &["c"], &text).view());
    let on_a = ids(&[(A, 0)]);
    let old = choose(&book, &on_a)
        .map(|choice| grant(&mut book, &choice, &on_a))
        .unwrap();
    let settled = book.settle(&old.ids, &[truth(&old, "old", "c")]).unwrap();
    apply(&mut book, settled);
    book.set_pod(
        PodText {
            phase: "Succeeded",
            ..own("old", &["c"], &text)
        }
        .view(),
    );
    book.set_pod(own("new", &["c"], &format!("{A},NVIDIA,2000,0:;")).view());
    let new = choose(&book, &on_a)
        .map(|choice| grant(&mut book, &choice, &on_a))
        .unwrap();
    assert_eq!(new.pod.name, "new");
    // The kubelet may still list the old pod.
    let settled = book
        .settle(&new.ids, &[truth(&old, "old", "c"), truth(&new, "new", "c")])
        .unwrap();
    assert_eq!(settled.asked, [new.id]);
}

#[test]
fn the_kubelet_may_ask_again_for_a_running_container() {
    let mut book = book();
    let pod = own("p", &["c"], &format!("{A},NVIDIA,1000,0:;"));
    book.set_pod(pod.view());
    let on_a = ids(&[(A, 0)]);
    let choice = choose(&book, &on_a).unwrap();
    grant(&mut book, &choice, &on_a);
    let again = choose(&book, &on_a).unwrap();
    assert_eq!(again.candidate.pod.name, "p");
}

#[test]
fn a_grant_that_only_the_kubelet_remembers_is_made_again() {
    let mut book = book();
    book.set_pod(own("p", &["c"], &format!("{A},NVIDIA,1000,20:;")).view());
    let on_a = ids(&[(A, 0)]);
    let record = choose(&book, &on_a)
        .map(|choice| grant(&mut book, &choice, &on_a))
        .unwrap();
    let remembered = [truth(&record, "p", "c")];
    book.remove_record(&record.id);
    let settled = book.settle(&record.ids, &remembered).unwrap();
    assert_eq!(settled.changed.len(), 1);
    let again = &settled.changed[0];
    assert_eq!((again.id.as_str(), again.sealed), (record.id.as_str(), true));
    assert_eq!(again.shares, record.shares);
    assert_eq!(again.container, "c");
}

#[test]
fn containers_that_another_plugin_served_start_as_they_are() {
    let mut book = book();
    book.set_pod(own("p", &["c"], &format!("{A},NVIDIA,1000,20:;")).view());
    let foreign = Truth {
        grant: None,
        ids: ids(&[(A, 0)]).into_iter().collect(),
        cards: Vec::new(),
        limited: false,
        uid: uid("p"),
        container: "c".into(),
    };
    let settled = book.settle(&foreign.ids.clone(), &[foreign]).unwrap();
    assert_eq!(
        settled,
        Settled {
            changed: Vec::new(),
            asked: Vec::new(),
            moving: None,
        }
    );
}

#[test]
fn pods_listed_at_the_start_are_ordered_by_bind_time_and_come_before_later_ones() {
    let mut book = book();
    let at = |name: &'static str, time: &str| {
        let mut view = own(name, &["c"], &format!("{A},NVIDIA,1,0:;")).view();
        view.annotations.insert(keys::BIND_TIME.to_owned(), time.to_owned());
        view
    };
    book.list_pods(vec![at("b", "20"), at("a", "10")]);
    book.set_pod(at("z", "5"));
    let mut running = at("running", "1");
    running.phase = PodPhase::Running;
    book.set_pod(running);
    let order = waiting(&book);
    assert_eq!(order, ["a", "b", "z", "running"]);
}

#[test]
fn whole_cards_need_no_limit() {
    let book = book();
    let share = |memory, cores| Share {
        card: CardId::new(A).unwrap(),
        class: Keyword::new("NVIDIA").unwrap(),
        memory: Mib::new(memory),
        cores: Cores::new(cores),
        extra: Extras::NONE,
    };
    assert!(!book.limits(&[share(10_000, 0)]));
    assert!(!book.limits(&[share(10_000, 100)]));
    assert!(book.limits(&[share(10_000, 50)]));
    assert!(book.limits(&[share(10_000, 0), share(5_000, 0)]));
}

#[test]
fn a_grant_for_a_whole_card_is_never_given_to_a_limited_container() {
    let mut book = book();
    book.set_pod(own("whole", &["c"], &format!("{A},NVIDIA,10000,0:;")).view());
    book.set_pod(own("part", &["c"], &format!("{A},NVIDIA,100,0:;")).view());
    let on_a = ids(&[(A, 0)]);
    let record = choose(&book, &on_a)
        .map(|choice| grant(&mut book, &choice, &on_a))
        .unwrap();
    assert!(!record.limited);
    assert!(matches!(
        book.settle(&record.ids, &[truth(&record, "part", "c")]),
        Err(NoOwner::NoLibrary { .. })
    ));
}

#[test]
fn our_own_scheduler_s_pods_are_never_written() {
    let mut book = book();
    book.set_pod(own("p", &["c"], &format!("{A},NVIDIA,1000,0:;")).view());
    let on_a = ids(&[(A, 0)]);
    let record = choose(&book, &on_a)
        .map(|choice| grant(&mut book, &choice, &on_a))
        .unwrap();
    assert_eq!(book.work(&uid("p")), None);
    let settled = book.settle(&record.ids, &[truth(&record, "p", "c")]).unwrap();
    apply(&mut book, settled);
    assert_eq!(book.work(&uid("p")), None);
}

fn hami<'a>(name: &'a str, apps: &'a [&'a str], text: &str) -> PodText<'a> {
    PodText {
        own: false,
        ..own(name, apps, text)
    }
}

#[test]
fn hami_s_part_is_played_once_all_containers_are_granted() {
    let mut book = book();
    let text = format!("{A},NVIDIA,1000,0:;{B},NVIDIA,1000,0:;");
    book.set_pod(hami("p", &["c", "d"], &text).view());
    book.set_lock_owner(Some(("default".into(), "p".into())));
    let on_a = ids(&[(A, 0)]);
    let choice = choose(&book, &on_a).unwrap();
    grant(&mut book, &choice, &on_a);
    assert_eq!(book.work(&uid("p")), None);
    let on_b = ids(&[(B, 0)]);
    let choice = choose(&book, &on_b).unwrap();
    grant(&mut book, &choice, &on_b);
    let work = book.work(&uid("p")).unwrap();
    assert!(work.release_lock);
    assert_eq!(work.annotations[keys::BIND_PHASE].as_deref(), Some("success"));
    let emptied = work.annotations[keys::NVIDIA_TO_ALLOCATE].as_deref().unwrap();
    assert!(emptied.bytes().all(|byte| byte == b';'), "{emptied}");
    // Its echo leaves nothing to do, and a finished pod is no candidate.
    let mut view = hami("p", &["c", "d"], &text).view();
    for (key, value) in work.annotations {
        view.annotations.insert(key, value.unwrap());
    }
    book.set_pod(view);
    book.set_lock_owner(None);
    assert_eq!(book.work(&uid("p")), None);
    assert!(waiting(&book).is_empty());
}

#[test]
fn a_pod_of_hami_s_that_failed_lets_go_of_the_lock_and_only_its_own() {
    let mut book = book();
    let text = format!("{A},NVIDIA,1000,0:;");
    book.set_pod(
        PodText {
            phase: "Failed",
            ..hami("p", &["c"], &text)
        }
        .view(),
    );
    book.set_lock_owner(Some(("default".into(), "p".into())));
    let work = book.work(&uid("p")).unwrap();
    assert!(work.release_lock);
    assert_eq!(work.annotations[keys::BIND_PHASE].as_deref(), Some("failed"));
    book.set_lock_owner(Some(("default".into(), "other".into())));
    assert!(!book.work(&uid("p")).unwrap().release_lock);
}

#[test]
fn the_lock_owner_comes_first_and_does_not_take_other_cards() {
    let mut book = book();
    book.set_pod(hami("p1", &["c"], &format!("{A},NVIDIA,1000,0:;")).view());
    book.set_pod(hami("p9", &["c"], &format!("{A},NVIDIA,2000,0:;")).view());
    book.set_lock_owner(Some(("default".into(), "p9".into())));
    assert_eq!(waiting(&book)[0], "p9");
    book.set_pod(hami("p9", &["c"], &format!("{B},NVIDIA,2000,0:;")).view());
    let choice = choose(&book, &ids(&[(A, 0)])).unwrap();
    assert_eq!(choice.candidate.pod.name, "p1");
}

#[test]
fn amounts_that_mean_nothing_are_refused() {
    let mut book = book();
    book.set_pod(own("p", &["c"], &format!("{A},NVIDIA,0,0:;")).view());
    assert!(matches!(choose(&book, &ids(&[(A, 0)])), Err(NoOwner::NoMemory { .. })));
    book.set_pod(own("p", &["c"], &format!("{A},NVIDIA,-1,0:;")).view());
    assert!(waiting(&book).is_empty());
}

#[test]
fn several_cards_match_in_any_order() {
    let mut book = book();
    book.set_pod(own("p", &["c"], &format!("{A},NVIDIA,1000,0:{B},NVIDIA,2000,0:;")).view());
    let both = ids(&[(B, 1), (A, 1)]);
    let choice = choose(&book, &both).unwrap();
    let record = grant(&mut book, &choice, &both);
    assert_eq!(limits(&record), [(A.to_owned(), 1000), (B.to_owned(), 2000)]);
}

#[test]
fn a_booking_that_moved_after_a_mark_is_told_from_one_that_was_there() {
    let mut book = book();
    let pod = |card: &str| own("p1", &["c"], &format!("{card},NVIDIA,3000,30:;")).view();
    book.set_pod(pod(A));
    let on_a = ids(&[(A, 0)]);
    let record = choose(&book, &on_a)
        .map(|choice| grant(&mut book, &choice, &on_a))
        .unwrap();
    let grants = [record.id];
    let mark = book.moves();
    book.set_pod(pod(A));
    assert!(!book.moved_since(mark, &grants), "nothing moved");
    book.set_pod(pod(B));
    assert!(book.moved_since(mark, &grants));
    assert!(
        !book.moved_since(book.moves(), &grants),
        "a later call read the new one"
    );
}
