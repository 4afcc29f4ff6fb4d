//! Bookings follow the API objects, and nothing else.

#![allow(clippy::unwrap_used, reason = "a test stops where something is missing")]

mod common;

use std::collections::BTreeMap;

use common::*;
use serde_json::json;
use tessera_engine::{AssumeError, Assumption, PodProblem, Preemptor, World};
use tessera_types::{Keyword, NodeName, PodUid};
use tessera_wire::{PodPhase, PodView, keys};

fn one_card() -> World {
    let mut world = World::new(vendors());
    world.set_node(&node("n1", &[card("GPU-a", 0, json!({"devmem": 10_000}))]));
    world
}

fn held(world: &World) -> (u32, u64) {
    assert_eq!(world.audit(), []);
    let usage = usage(&world.snapshot(), "n1")[0];
    (usage.slots, usage.memory.get())
}

/// An allocated pod of 6000 MiB on GPU-a.
fn allocated(name: &str) -> PodView {
    let mut pod = pod(name, &[gpu(1, 6000, 0)]);
    pod.annotations.insert(keys::VGPU_NODE.to_owned(), "n1".to_owned());
    pod.annotations.insert(keys::VGPU_TIME.to_owned(), "1000".to_owned());
    pod.annotations
        .insert(keys::NVIDIA_ALLOCATED.to_owned(), "GPU-a,NVIDIA,6000,0:;".to_owned());
    pod.node_name = Some("n1".to_owned());
    pod.phase = PodPhase::Running;
    pod
}

fn uid(text: &str) -> PodUid {
    PodUid::new(text).unwrap()
}

#[test]
fn a_bound_pod_books_until_it_ends_and_not_a_moment_longer() {
    for end in [PodPhase::Succeeded, PodPhase::Failed] {
        let mut world = one_card();
        let mut pod = allocated("p");
        assert!(world.set_pod(&pod).booked);
        assert_eq!(held(&world), (1, 6000));
        pod.phase = end;
        assert!(world.set_pod(&pod).frees);
        assert_eq!(held(&world), (0, 0));
    }
}

#[test]
fn a_pod_being_deleted_books_until_it_is_gone_also_when_first_seen_so() {
    let mut world = one_card();
    let mut pod = allocated("p");
    pod.deleting = true;
    world.set_pod(&pod);
    assert_eq!(held(&world), (1, 6000));
    assert!(world.remove_pod(&uid("p")));
    assert_eq!(held(&world), (0, 0));
    assert!(!world.remove_pod(&uid("p")));
}

#[test]
fn a_pod_bound_elsewhere_books_nothing_on_the_annotated_node() {
    let mut world = one_card();
    let mut pod = allocated("p");
    pod.node_name = Some("n2".to_owned());
    let change = world.set_pod(&pod);
    assert!(matches!(change.problems[..], [PodProblem::BoundElsewhere { .. }]));
    assert_eq!(held(&world), (0, 0));
}

#[test]
fn a_forged_allocation_books_nothing() {
    let mut world = one_card();
    let mut forged = allocated("p");
    forged.containers[0].limits.clear();
    assert_eq!(world.set_pod(&forged).problems, [PodProblem::Forged]);
    assert_eq!(held(&world), (0, 0));
}

#[test]
fn an_unbound_allocation_ends_when_a_later_attempt_failed() {
    let mut world = one_card();
    let mut pod = allocated("p");
    pod.node_name = None;
    pod.phase = PodPhase::Pending;
    world.set_pod(&pod);
    assert_eq!(held(&world), (1, 6000));
    pod.scheduled_false_since = Some(999);
    world.set_pod(&pod);
    assert_eq!(held(&world), (1, 6000), "an older failure says nothing");
    pod.scheduled_false_since = Some(1001);
    assert!(world.set_pod(&pod).frees);
    assert_eq!(held(&world), (0, 0));
}

#[test]
fn an_unbound_allocation_ends_with_its_lease_and_does_not_come_back_by_an_update() {
    let mut world = one_card();
    world.set_unbound_lease(100);
    let mut pod = allocated("p");
    pod.node_name = None;
    world.set_pod(&pod);
    assert!(world.expire(5000).is_empty());
    assert!(world.expire(5099).is_empty());
    assert_eq!(world.expire(5100), [uid("p")]);
    assert_eq!(held(&world), (0, 0));
    pod.scheduled_false_since = Some(10);
    world.set_pod(&pod);
    assert_eq!(held(&world), (0, 0), "a status update is no new allocation");
    pod.annotations.insert(keys::VGPU_TIME.to_owned(), "6000".to_owned());
    world.set_pod(&pod);
    assert_eq!(held(&world), (1, 6000), "a new attempt is");
    pod.node_name = Some("n1".to_owned());
    world.set_pod(&pod);
    assert!(world.expire(i64::MAX).is_empty());
    assert_eq!(held(&world), (1, 6000), "a bound pod has no lease");
}

#[test]
fn a_failed_attempt_frees_what_the_attempt_before_wrote() {
    let mut world = one_card();
    let mut pod = allocated("p");
    pod.node_name = None;
    world.set_pod(&pod);
    assert!(world.forget(&uid("p")));
    world.set_pod(&pod);
    assert_eq!(held(&world), (0, 0));
}

#[test]
fn an_assumption_holds_until_confirmed_failed_expired_or_gone() {
    let engine = engine();
    let waiting = pod("p", &[gpu(1, 6000, 0)]);
    let assumed = || {
        let mut world = one_card();
        world.set_pod(&waiting);
        let annotations = place(&engine, &mut world, &waiting, 1000).unwrap();
        assert_eq!(held(&world), (1, 6000));
        (world, annotations)
    };
    // Confirmed: the lease no longer matters.
    let (mut world, annotations) = assumed();
    world.set_pod(&bound(&waiting, &annotations));
    assert!(world.expire(i64::MAX).is_empty());
    assert_eq!(held(&world), (1, 6000));
    // A status update without news changes nothing; a newer failure frees at once.
    let (mut world, _) = assumed();
    world.set_pod(&waiting);
    assert_eq!(held(&world), (1, 6000));
    let mut failed = waiting.clone();
    failed.scheduled_false_since = Some(1001);
    assert!(world.set_pod(&failed).frees);
    assert_eq!(held(&world), (0, 0));
    // Bound by someone else, without our allocation.
    let (mut world, _) = assumed();
    let mut elsewhere = waiting.clone();
    elsewhere.node_name = Some("n2".to_owned());
    world.set_pod(&elsewhere);
    assert_eq!(held(&world), (0, 0));
    // Expired; or lengthened.
    let (mut world, _) = assumed();
    assert!(world.expire(1089).is_empty());
    assert!(world.extend(&uid("p"), 2000));
    assert!(world.expire(1999).is_empty());
    assert_eq!(world.expire(2000), [uid("p")]);
    assert_eq!(held(&world), (0, 0));
    // Forgotten, deleted.
    let (mut world, _) = assumed();
    assert!(world.forget(&uid("p")));
    assert_eq!(held(&world), (0, 0));
    let (mut world, _) = assumed();
    assert!(world.remove_pod(&uid("p")));
    assert_eq!(held(&world), (0, 0));
}

#[test]
fn two_decisions_on_one_snapshot_cannot_take_the_same_share() {
    let engine = engine();
    let mut world = one_card();
    let (p, q) = (pod("p", &[gpu(1, 6000, 0)]), pod("q", &[gpu(1, 6000, 0)]));
    let second = decide(&engine, &world, &q);
    place(&engine, &mut world, &p, 1).unwrap();
    let winner = second.winner().unwrap();
    let assumption = Assumption {
        pod: &q.id,
        roles: &q.roles(),
        node: &winner.node,
        allocation: winner.allocation.clone(),
        priority: 0,
        facts: &BTreeMap::new(),
        now: 1,
        expires_at: 91,
    };
    let error = world.assume(&assumption).unwrap_err();
    assert!(matches!(error, AssumeError::Taken(_)));
    assert_eq!(error.to_string(), "card GPU-a has 4000 MiB free of 6000 MiB wanted");
    assert_eq!(held(&world), (1, 6000));
}

#[test]
fn a_pod_filtered_again_does_not_compete_with_itself() {
    let engine = engine();
    let mut world = one_card();
    let pod = pod("p", &[gpu(1, 6000, 0)]);
    place(&engine, &mut world, &pod, 1).unwrap();
    place(&engine, &mut world, &pod, 2).unwrap();
    assert_eq!(held(&world), (1, 6000));
}

#[test]
fn finished_init_containers_give_back_what_only_they_used() {
    let mut world = one_card();
    let mut pod = allocated("p");
    pod.containers.insert(0, pod.containers[0].clone());
    pod.containers[0].role = tessera_types::ContainerRole::Init;
    pod.annotations.insert(
        keys::NVIDIA_ALLOCATED.to_owned(),
        "GPU-a,NVIDIA,6000,0:;GPU-a,NVIDIA,1000,0:;".to_owned(),
    );
    world.set_pod(&pod);
    assert_eq!(held(&world), (1, 6000));
    pod.init_done = true;
    assert!(world.set_pod(&pod).frees);
    assert_eq!(held(&world), (1, 1000));
    assert!(!world.set_pod(&pod).frees);
}

#[test]
fn an_unreadable_allocation_closes_the_card_it_names() {
    let engine = engine();
    let mut world = World::new(vendors());
    world.set_node(&node("n1", &[card("GPU-a", 0, json!({})), card("GPU-b", 1, json!({}))]));
    let mut broken = allocated("broken");
    broken
        .annotations
        .insert(keys::NVIDIA_ALLOCATED.to_owned(), "GPU-b,NVIDIA,lots,0:;".to_owned());
    let change = world.set_pod(&broken);
    assert!(matches!(change.problems[..], [PodProblem::Unreadable(_)]));
    let decision = decide(&engine, &world, &pod("p", &[gpu(2, 1, 0)]));
    assert_eq!(
        tessera_engine::text::hami_node(&decision.refused[0].1),
        "1/2 AllocatedCardsInsufficientRequest, 1/2 CardNotHealth"
    );
    world.remove_pod(&uid("broken"));
    assert!(decide(&engine, &world, &pod("p", &[gpu(2, 1, 0)])).winner().is_some());
    assert_eq!(world.audit(), []);
}

#[test]
fn what_is_on_a_mig_card_must_be_known() {
    let engine = engine();
    let mut world = World::new(vendors());
    world.set_node(&node("n1", &[mig_card("GPU-a")]));
    let want = pod("p", &[gpu(1, 4000, 0)]);
    let mut tenant = allocated("old");
    world.set_pod(&tenant);
    assert!(
        decide(&engine, &world, &want).winner().is_none(),
        "a share without an instance"
    );
    tenant.annotations.insert(
        keys::NVIDIA_ALLOCATED.to_owned(),
        "GPU-a[1-0],NVIDIA,6000,0:;".to_owned(),
    );
    world.set_pod(&tenant);
    assert!(
        decide(&engine, &world, &want).winner().is_none(),
        "an instance of the old protocol"
    );
    tenant
        .annotations
        .insert(keys::NVIDIA_ALLOCATED.to_owned(), "GPU-a,NVIDIA,4864,15:;".to_owned());
    let reservation = r#"[{"containerIndex":0,"deviceIndex":0,"gpuUUID":"GPU-a","profile":"1g.5gb","placement":{"start":6,"size":1}}]"#;
    tenant
        .annotations
        .insert(keys::MIG_ALLOCATIONS.to_owned(), reservation.to_owned());
    world.set_pod(&tenant);
    let decision = decide(&engine, &world, &want);
    assert_eq!(decision.winner().unwrap().allocation.mig[0].placement.start, 5);
    // The card leaves MIG mode under the pod.
    world.set_node(&node("n1", &[card("GPU-a", 0, json!({}))]));
    assert!(decide(&engine, &world, &want).winner().is_none());
    assert_eq!(world.audit(), []);
}

#[test]
fn bookings_survive_their_node() {
    let mut world = one_card();
    world.set_pod(&allocated("p"));
    world.remove_node("n1");
    assert_eq!(world.audit(), []);
    world.set_node(&node("n1", &[card("GPU-a", 0, json!({"devmem": 10_000}))]));
    assert_eq!(held(&world), (1, 6000));
    world.remove_pod(&uid("p"));
    world.remove_node("n1");
    assert_eq!(world.snapshot().node_count(), 0);
    // A pod may come before its node.
    world.set_pod(&allocated("q"));
    world.set_node(&node("n1", &[card("GPU-a", 0, json!({"devmem": 10_000}))]));
    assert_eq!(held(&world), (1, 6000));
}

#[test]
fn a_class_is_closed_when_its_plugin_is_gone_and_opens_again() {
    let engine = engine();
    let mut world = one_card();
    let class = Keyword::new("NVIDIA").unwrap();
    let want = pod("p", &[gpu(1, 100, 0)]);
    world.set_pod(&allocated("tenant"));
    assert!(world.set_class_closed("n1", &class, Some("the node agent is silent for 20 s".to_owned())));
    assert!(decide(&engine, &world, &want).winner().is_none());
    assert_eq!(held(&world), (1, 6000), "what runs stays booked");
    assert!(world.set_class_closed("n1", &class, None));
    assert!(decide(&engine, &world, &want).winner().is_some());
    let mut gone = node("n1", &[card("GPU-a", 0, json!({"devmem": 10_000}))]);
    gone.allocatable
        .insert("nvidia.com/gpu".to_owned(), tessera_wire::Quantity::parse("0").unwrap());
    world.set_node(&gone);
    assert!(decide(&engine, &world, &want).winner().is_none());
}

#[test]
fn an_unchanged_object_changes_nothing() {
    let mut world = one_card();
    world.set_pod(&allocated("p"));
    let before = world.snapshot().version();
    let again = node("n1", &[card("GPU-a", 0, json!({"devmem": 10_000}))]);
    assert!(!world.set_node(&again).changed);
    assert_eq!(
        world.set_pod(&allocated("p")),
        tessera_engine::PodChange {
            booked: false,
            ..Default::default()
        }
    );
    assert_eq!(world.snapshot().version(), before);
}

#[test]
fn a_snapshot_does_not_move() {
    let engine = engine();
    let mut world = one_card();
    let before = world.snapshot();
    place(&engine, &mut world, &pod("p", &[gpu(1, 6000, 0)]), 1).unwrap();
    assert_eq!(usage(&before, "n1")[0].slots, 0);
    assert_eq!(usage(&world.snapshot(), "n1")[0].slots, 1);
}

mod preemption {
    use super::*;

    fn tenant(name: &str, memory: u64, priority: i32, started: i64) -> PodView {
        let mut pod = allocated(name);
        pod.annotations
            .insert(keys::NVIDIA_ALLOCATED.to_owned(), format!("GPU-a,NVIDIA,{memory},0:;"));
        pod.priority = priority;
        pod.started_at = Some(started);
        pod
    }

    fn victims(tenants: &[PodView], memory: u64, priority: i32, named: &[&str]) -> Option<Vec<String>> {
        let engine = engine();
        let mut world = one_card();
        for tenant in tenants {
            world.set_pod(tenant);
        }
        let demand = demand(&engine, &pod("p", &[gpu(1, memory, 0)]));
        let named: Vec<PodUid> = named.iter().map(|name| uid(name)).collect();
        let preemptor = Preemptor { priority, never: false };
        engine
            .preempt(
                &world.snapshot(),
                &demand,
                &NodeName::new("n1").unwrap(),
                &named,
                preemptor,
            )
            .map(|victims| victims.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn the_youngest_of_the_lowest_priority_goes() {
        let tenants = [tenant("u1", 4000, 10, 1), tenant("u2", 4000, 10, 2)];
        assert_eq!(victims(&tenants, 6000, 100, &[]).unwrap(), ["u2"]);
        assert_eq!(victims(&tenants, 9000, 100, &[]).unwrap(), ["u1", "u2"]);
        assert_eq!(victims(&tenants, 11_000, 100, &[]), None);
    }

    #[test]
    fn equal_priority_is_never_a_victim() {
        assert_eq!(victims(&[tenant("u1", 8000, 10, 1)], 6000, 10, &[]), None);
    }

    #[test]
    fn a_named_victim_that_is_not_needed_is_spared() {
        let tenants = [tenant("u1", 4000, 10, 1), tenant("u2", 4000, 20, 2)];
        assert_eq!(victims(&tenants, 3000, 100, &["u1", "u2"]).unwrap(), ["u1"]);
        assert_eq!(
            victims(&tenants, 3000, 100, &["cpu-hog", "u1"]).unwrap(),
            ["cpu-hog", "u1"]
        );
    }

    #[test]
    fn a_share_on_its_way_out_is_free_but_still_named() {
        let mut leaving = tenant("u1", 9000, 10, 1);
        leaving.deleting = true;
        assert_eq!(
            victims(std::slice::from_ref(&leaving), 3000, 100, &["u1"]).unwrap(),
            ["u1"]
        );
        assert_eq!(victims(&[leaving], 3000, 100, &[]).unwrap(), ["u1"]);
    }

    #[test]
    fn room_made_for_a_pod_is_kept_for_it_for_a_minute() {
        let engine = engine();
        let mut world = one_card();
        let mut leaving = tenant("u1", 8000, 10, 1);
        leaving.deleting = true;
        world.set_pod(&leaving);
        let mut important = pod("p", &[gpu(1, 6000, 0)]);
        important.priority = 100;
        important.nominated_node = Some("n1".to_owned());
        world.set_pod(&important);
        let fits = |world: &World, memory: u64, priority: i32| {
            let mut other = pod("q", &[gpu(1, memory, 0)]);
            other.priority = priority;
            decide(&engine, world, &other).winner().is_some()
        };
        assert!(!fits(&world, 1000, 50), "what is free now is part of the room");
        world.remove_pod(&uid("u1"));
        assert!(fits(&world, 4000, 50));
        assert!(!fits(&world, 4001, 50));
        assert!(fits(&world, 10_000, 101), "a more important pod does not wait");
        assert!(decide(&engine, &world, &important).winner().is_some());
        world.expire(1000);
        world.set_pod(&important);
        assert!(!fits(&world, 4001, 50));
        world.expire(1060);
        world.set_pod(&important);
        assert!(fits(&world, 4001, 50), "the minute is over");
        place(&engine, &mut world, &important, 1061).unwrap();
        assert!(
            fits(&world, 4000, 50) && !fits(&world, 4001, 50),
            "booked once, not twice"
        );
    }

    #[test]
    fn a_pod_that_fits_already_has_no_victim() {
        assert_eq!(victims(&[tenant("u1", 1000, 10, 1)], 3000, 100, &[]), None);
    }
}
