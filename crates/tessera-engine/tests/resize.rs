//! Live resize: every refusal has a reason, and no order of steps overbooks a card or takes from a container what it is
//! held to.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test stops where something is missing"
)]

mod common;

use common::*;
use proptest::prelude::*;
use serde_json::json;
use tessera_engine::resize::{ResizeStep, check_wish, pending, step};
use tessera_engine::{AssumeError, World};
use tessera_types::Share;
use tessera_wire::resize::{Report, State, Status, within};
use tessera_wire::{PodPhase, PodView, Quantity, device_text, keys};

const CARD_MIB: u64 = 10_000;

fn world() -> World {
    let mut world = World::new(vendors());
    let card = |id: &str, index| card(id, index, json!({"devmem": CARD_MIB}));
    world.set_node(&node("n1", &[card("GPU-a", 0), card("GPU-b", 1)]));
    world
}

fn running(name: &str, text: &str) -> PodView {
    let mut pod = pod(name, &[gpu(1, 100, 0)]);
    let mut set = |key: &str, text: &str| pod.annotations.insert(key.to_owned(), text.to_owned());
    set(keys::VGPU_NODE, "n1");
    set(keys::TESSERA_SCHEDULER, "0.0.0");
    set(keys::NVIDIA_ALLOCATED, text);
    set(keys::NVIDIA_TO_ALLOCATE, text);
    pod.node_name = Some("n1".to_owned());
    pod.phase = PodPhase::Running;
    pod
}

fn wish(pod: &mut PodView, text: &str) {
    pod.annotations.insert(keys::TESSERA_RESIZE.to_owned(), text.to_owned());
}

fn name(pod: &PodView) -> String {
    pod.containers[0].name.clone()
}

fn next(world: &World, pod: &PodView) -> Option<ResizeStep> {
    step(world.vendors(), &world.snapshot(), pod, |_| true)
}

/// What the server does with a patch.
fn write(pod: &mut PodView, step: &ResizeStep) {
    for (key, text) in &step.annotations {
        match text {
            Some(text) => pod.annotations.insert(key.clone(), text.clone()),
            None => pod.annotations.remove(key),
        };
    }
}

fn status(pod: &PodView) -> Status {
    tessera_wire::resize::status(pod).unwrap()
}

/// What the extender does with the next step; the state that it led to.
fn schedule(world: &mut World, pod: &mut PodView) -> Option<State> {
    let mut step = next(world, pod)?;
    if let Some(raised) = step.raises.take()
        && let Err(reason) = world.raise(&raised, 0, 60)
    {
        step = step.refused(&reason.to_string());
    }
    write(pod, &step);
    world.set_pod(pod);
    Some(step.state())
}

fn report(pod: &mut PodView, state: State, holds: &str) {
    let report = Report {
        generation: status(pod).generation,
        state,
        message: if state == State::Applied {
            String::new()
        } else {
            "it holds more".to_owned()
        },
        holds: holds.to_owned(),
    };
    pod.annotations
        .insert(keys::TESSERA_RESIZE_REPORT.to_owned(), report.print());
}

#[test]
fn raising_books_first_and_lowering_last() {
    let mut world = world();
    let mut pod = running("p", "GPU-a,NVIDIA,4000,30:;");
    world.set_pod(&pod);
    let name = name(&pod);
    wish(
        &mut pod,
        &format!(r#"{{"{name}":{{"memory":8000,"cores":20,"priority":0}}}}"#),
    );
    assert!(pending(&pod));
    let accepted = next(&world, &pod).unwrap();
    assert_eq!(accepted.state(), State::Accepted);
    // Of each amount the larger, in both texts, in the write that accepts.
    for key in [keys::NVIDIA_ALLOCATED, keys::NVIDIA_TO_ALLOCATE] {
        assert_eq!(accepted.annotations[key].as_deref(), Some("GPU-a,NVIDIA,8000,30:;"));
    }
    let raised = accepted.raises.clone().unwrap();
    world.raise(&raised, 0, 60).unwrap();
    assert_eq!(usage(&world.snapshot(), "n1")[0].memory.get(), 8000);
    // An event from before the write takes nothing back.
    world.set_pod(&pod);
    assert_eq!(usage(&world.snapshot(), "n1")[0].memory.get(), 8000);
    write(&mut pod, &accepted);
    world.set_pod(&pod);
    assert!(!pending(&pod), "the agent is to act");
    assert_eq!(status(&pod).target, "GPU-a,NVIDIA,8000,20:;");
    assert_eq!(status(&pod).priority[&name], 0);
    assert_eq!(world.audit(), []);

    report(&mut pod, State::Applied, "GPU-a,NVIDIA,8000,20:;");
    assert!(pending(&pod));
    let applied = next(&world, &pod).unwrap();
    let told = applied.told.clone().unwrap();
    assert_eq!((told.reason, told.warning), ("Resized", false));
    assert!(
        told.message.contains("8000 MiB, 20 % of the time, priority 0"),
        "{}",
        told.message
    );
    write(&mut pod, &applied);
    world.set_pod(&pod);
    assert_eq!(pod.annotations[keys::NVIDIA_ALLOCATED], "GPU-a,NVIDIA,8000,20:;");
    assert_eq!(usage(&world.snapshot(), "n1")[0].cores.get(), 20);
    assert_eq!((status(&pod).state, pending(&pod)), (State::Applied, false));
    assert_eq!(world.audit(), []);
}

#[test]
fn a_waiting_wish_keeps_its_booking_and_can_be_taken_back() {
    let mut world = world();
    let mut pod = running("p", "GPU-a,NVIDIA,4000,0:;");
    let name = name(&pod);
    wish(&mut pod, &format!(r#"{{"{name}":{{"memory":1000}}}}"#));
    pod.annotations
        .insert(keys::TESSERA_RESIZE_POLICY.to_owned(), "wait".to_owned());
    world.set_pod(&pod);
    assert_eq!(schedule(&mut world, &mut pod), Some(State::Accepted));
    report(&mut pod, State::Waiting, "GPU-a,NVIDIA,4000,0:;");
    assert_eq!(schedule(&mut world, &mut pod), Some(State::Waiting));
    assert_eq!(schedule(&mut world, &mut pod), None);
    assert_eq!(usage(&world.snapshot(), "n1")[0].memory.get(), 4000);

    pod.annotations.remove(keys::TESSERA_RESIZE);
    assert_eq!(schedule(&mut world, &mut pod), Some(State::Refused));
    assert_eq!(schedule(&mut world, &mut pod), None);
    // The same wish once more is a new one.
    wish(&mut pod, &format!(r#"{{"{name}":{{"memory":1000}}}}"#));
    assert_eq!(schedule(&mut world, &mut pod), Some(State::Accepted));
    assert_eq!(status(&pod).generation, 3);
    // The last wish wins, also while one is under way.
    wish(&mut pod, &format!(r#"{{"{name}":{{"memory":6000}}}}"#));
    assert_eq!(schedule(&mut world, &mut pod), Some(State::Accepted));
    assert_eq!(status(&pod).target, "GPU-a,NVIDIA,6000,0:;");
    report(&mut pod, State::Applied, "GPU-a,NVIDIA,6000,0:;");
    assert_eq!(schedule(&mut world, &mut pod), Some(State::Applied));
    pod.annotations.remove(keys::TESSERA_RESIZE);
    assert_eq!(schedule(&mut world, &mut pod), Some(State::Applied));
    assert_eq!((status(&pod).request.as_str(), pending(&pod)), ("", false));
}

#[test]
fn every_refusal_says_what_and_why() {
    let mut world = world();
    world.set_pod(&running("other", "GPU-a,NVIDIA,5000,60:;"));
    let plain = running("p", "GPU-a,NVIDIA,4000,30:;");
    world.set_pod(&plain);
    let name = name(&plain);
    let mut refused = |change: &dyn Fn(&mut PodView), text: &str| {
        let mut pod = plain.clone();
        wish(&mut pod, text);
        change(&mut pod);
        world.set_pod(&pod);
        assert_eq!(schedule(&mut world, &mut pod), Some(State::Refused), "{text}");
        assert_eq!(
            pod.annotations[keys::NVIDIA_ALLOCATED],
            plain.annotations[keys::NVIDIA_ALLOCATED]
        );
        assert!(!pending(&pod));
        assert_eq!(world.audit(), []);
        status(&pod).message
    };
    let same = |_: &mut PodView| {};
    let of = |amounts: &str| format!(r#"{{"{name}":{{{amounts}}}}}"#);
    for (text, said) in [
        ("nonsense".to_owned(), "no JSON object"),
        (
            r#"{"nobody":{"memory":1}}"#.to_owned(),
            "container `nobody`, which the pod does not have; it has `",
        ),
        (
            of(r#""memory":20000"#),
            "is to have 20000 MiB of card GPU-a, which has 10000 MiB",
        ),
        (of(r#""memory":5001"#), "card GPU-a"),
        (of(r#""cores":50"#), "card GPU-a"),
    ] {
        let message = refused(&same, &text);
        assert!(message.contains(said), "{text}: {message}");
    }
    let message = refused(
        &|pod| drop(pod.annotations.remove(keys::TESSERA_SCHEDULER)),
        &of(r#""memory":4500"#),
    );
    assert!(message.contains("another scheduler placed the pod"), "{message}");
    let policy = |pod: &mut PodView| {
        drop(
            pod.annotations
                .insert(keys::TESSERA_RESIZE_POLICY.to_owned(), "maybe".to_owned()),
        )
    };
    let message = refused(&policy, &of(r#""memory":4500"#));
    assert!(message.contains("`refuse` or `wait`"), "{message}");
    let mut pod = plain.clone();
    wish(&mut pod, &of(r#""memory":4500"#));
    let step = step(world.vendors(), &world.snapshot(), &pod, |_| false).unwrap();
    assert!(
        step.told
            .unwrap()
            .message
            .contains("not served by Tessera's node agent")
    );

    // A quota counts what is raised.
    world.set_quota(
        "ns",
        "q",
        &[("limits.nvidia.com/gpumem".to_owned(), Quantity::of(9200))].into(),
    );
    assert_eq!(schedule(&mut world, &mut pod), Some(State::Refused));
    assert!(status(&pod).message.contains("quota"), "{}", status(&pod).message);
    // What fits is accepted all the same.
    wish(&mut pod, &of(r#""memory":4200"#));
    assert_eq!(schedule(&mut world, &mut pod), Some(State::Accepted));
}

#[test]
fn other_makers_and_instances_are_refused() {
    let mut world = World::new(vendors());
    world.set_node(&node("n1", &[mig_card("GPU-m")]));
    let mut pod = running("p", "GPU-m,NVIDIA,4000,10:;");
    world.set_pod(&pod);
    let name = name(&pod);
    wish(&mut pod, &format!(r#"{{"{name}":{{"memory":4500}}}}"#));
    assert_eq!(schedule(&mut world, &mut pod), Some(State::Refused));
    assert!(
        status(&pod).message.contains("MIG instance"),
        "{}",
        status(&pod).message
    );
    let mut pod = running("q", "GPU-gone,NVIDIA,4000,10:;");
    wish(&mut pod, &format!(r#"{{"{name}":{{"memory":4500}}}}"#));
    assert_eq!(schedule(&mut world, &mut pod), Some(State::Refused));
    assert!(
        status(&pod).message.contains("gone from node"),
        "{}",
        status(&pod).message
    );
    pod.annotations.remove(keys::NVIDIA_ALLOCATED);
    wish(&mut pod, &format!(r#"{{"{name}":{{"memory":4000}}}}"#));
    assert_eq!(schedule(&mut world, &mut pod), Some(State::Refused));
    assert!(status(&pod).message.contains("has no card"), "{}", status(&pod).message);
}

#[test]
fn a_raise_that_is_never_written_ends_with_its_lease_or_when_it_is_given_up() {
    let mut world = world();
    let mut pod = running("p", "GPU-a,NVIDIA,4000,0:;");
    assert_eq!(world.raise(&pod, 0, 60), Err(AssumeError::NotBound));
    world.set_pod(&pod);
    let raised = running("p", "GPU-a,NVIDIA,9000,0:;");
    let memory = |world: &World| usage(&world.snapshot(), "n1")[0].memory.get();
    world.raise(&raised, 0, 60).unwrap();
    assert_eq!(memory(&world), 9000);
    assert_eq!(world.expire(59), []);
    assert_eq!(world.expire(60).len(), 1);
    assert_eq!(memory(&world), 4000);
    world.raise(&raised, 0, 90).unwrap();
    assert!(world.forget(&pod.id.uid));
    assert_eq!(memory(&world), 4000);
    world.raise(&raised, 0, 90).unwrap();
    pod.phase = PodPhase::Succeeded;
    world.set_pod(&pod);
    assert_eq!(memory(&world), 0);
    assert_eq!(world.audit(), []);
}

#[test]
fn admission_refuses_what_no_pod_can_mean() {
    let mut pod = running("p", "GPU-a,NVIDIA,4000,30:;");
    assert_eq!(check_wish(&pod), Ok(()));
    wish(&mut pod, r#"{"typo":{"memory":1}}"#);
    assert!(check_wish(&pod).unwrap_err().contains("container `typo`"));
    let name = name(&pod);
    wish(&mut pod, &format!(r#"{{"{name}":{{"memory":"8Gi"}}}}"#));
    assert_eq!(check_wish(&pod), Ok(()));
}

/// One thing that happens.
#[derive(Debug, Clone)]
enum Act {
    /// A user wishes: pod, MiB, percent, wait.
    Wish(usize, u64, u32, bool),
    Withdraw(usize),
    /// The scheduler takes a step; it may die after it booked and before it wrote, or write and die before it hears.
    Schedule(usize, Fate),
    /// The node agent looks at a version of the pod that may be old, and reports or dies before it does.
    Agent(usize, usize, bool),
    /// The programs of the pod hold so much.
    Hold(usize, u64),
    /// A pod comes, where there is room.
    Come(u64, u32),
    Go(usize),
    Pass,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Fine,
    /// Everything in memory is lost right before the write.
    DiesBefore,
    /// The write happens, its event is late.
    Late,
}

struct Node {
    world: World,
    pods: Vec<Option<OnNode>>,
    now: i64,
}

struct OnNode {
    /// The server's versions, the newest last.
    versions: Vec<PodView>,
    /// What the agent holds the pod to, and the number of the last answer in force.
    grant: Vec<Vec<Share>>,
    resized: u64,
    held_mib: u64,
    /// The scheduler has seen so many versions.
    seen: usize,
}

impl OnNode {
    fn newest(&self) -> &PodView {
        self.versions.last().unwrap()
    }

    fn change(&mut self, change: impl FnOnce(&mut PodView)) {
        let mut pod = self.newest().clone();
        change(&mut pod);
        self.versions.push(pod);
    }
}

fn entries(pod: &PodView) -> Vec<Vec<Share>> {
    device_text::parse(&pod.annotations[keys::NVIDIA_ALLOCATED]).unwrap()
}

impl Node {
    /// What a restarted scheduler reads.
    fn restart(&mut self) {
        self.world = world();
        for pod in self.pods.iter_mut().flatten() {
            pod.seen = pod.versions.len();
            self.world.set_pod(pod.versions.last().unwrap());
        }
    }

    fn hear(&mut self, at: usize) {
        if let Some(pod) = self.pods.get_mut(at).and_then(Option::as_mut) {
            for version in &pod.versions[pod.seen..] {
                self.world.set_pod(version);
            }
            pod.seen = pod.versions.len();
        }
    }

    fn act(&mut self, act: &Act) {
        let at = |n: usize, node: &Self| n % node.pods.len().max(1);
        match *act {
            Act::Wish(n, mib, cores, wait) => {
                let n = at(n, self);
                let Some(Some(pod)) = self.pods.get_mut(n) else { return };
                pod.change(|pod| {
                    let name = name(pod);
                    wish(pod, &format!(r#"{{"{name}":{{"memory":{mib},"cores":{cores}}}}}"#));
                    let policy = if wait { "wait" } else { "refuse" };
                    pod.annotations
                        .insert(keys::TESSERA_RESIZE_POLICY.to_owned(), policy.to_owned());
                });
            }
            Act::Withdraw(n) => {
                let n = at(n, self);
                let Some(Some(pod)) = self.pods.get_mut(n) else { return };
                pod.change(|pod| drop(pod.annotations.remove(keys::TESSERA_RESIZE)));
            }
            Act::Schedule(n, fate) => {
                let n = at(n, self);
                let Some(Some(pod)) = self.pods.get_mut(n) else { return };
                // Decided on the server's version, with books that may not have heard of it yet.
                let found = pod.newest().clone();
                let Some(mut step) = step(self.world.vendors(), &self.world.snapshot(), &found, |_| true) else {
                    return;
                };
                if let Some(raised) = step.raises.take()
                    && let Err(reason) = self.world.raise(&raised, self.now, self.now + 60)
                {
                    step = step.refused(&reason.to_string());
                }
                if fate == Fate::DiesBefore {
                    return self.restart();
                }
                pod.change(|pod| write(pod, &step));
                if fate == Fate::Fine {
                    self.hear(n);
                }
            }
            Act::Agent(n, back, dies) => {
                let n = at(n, self);
                let Some(Some(pod)) = self.pods.get_mut(n) else { return };
                let last = pod.versions.len() - 1;
                let seen = pod.versions[last.saturating_sub(back)].clone();
                let Some(status) = tessera_wire::resize::status(&seen) else {
                    return;
                };
                let told = tessera_wire::resize::report(&seen).filter(|report| report.generation >= status.generation);
                if pod.resized > status.generation
                    || (status.state.is_open() && told.is_some_and(|report| report.state != State::Waiting))
                {
                    return;
                }
                let Some(goal) = status.goal(&entries(&seen)) else {
                    return;
                };
                let fits = goal[0][0].memory.get() >= pod.held_mib;
                if fits {
                    pod.grant.clone_from(&goal);
                    pod.resized = status.generation;
                }
                if dies || !status.state.is_open() {
                    return;
                }
                let waits = status.on_held() == tessera_wire::resize::OnHeld::Wait;
                let state = match (fits, waits) {
                    (true, _) => State::Applied,
                    (false, true) => State::Waiting,
                    (false, false) => State::Refused,
                };
                let holds = device_text::print(&pod.grant);
                let generation = status.generation;
                // A merge without a condition, on whatever the pod has become.
                pod.change(|pod| {
                    let report = Report {
                        generation,
                        state,
                        message: if fits { String::new() } else { "held".to_owned() },
                        holds,
                    };
                    pod.annotations
                        .insert(keys::TESSERA_RESIZE_REPORT.to_owned(), report.print());
                });
            }
            Act::Hold(n, mib) => {
                let n = at(n, self);
                let Some(Some(pod)) = self.pods.get_mut(n) else { return };
                pod.held_mib = mib.min(pod.grant[0][0].memory.get());
            }
            Act::Come(mib, cores) => {
                if self.pods.len() >= 6 {
                    return;
                }
                // All that was written is heard before a pod is bound; what was booked meanwhile counts anyway.
                let engine = engine();
                let name = format!("p{}", self.pods.len());
                let asked = pod(&name, &[gpu(1, mib, cores)]);
                let Some(annotations) = place(&engine, &mut self.world, &asked, self.now) else {
                    return;
                };
                let mut pod = bound(&asked, &annotations);
                pod.phase = PodPhase::Running;
                pod.annotations
                    .insert(keys::TESSERA_SCHEDULER.to_owned(), "0.0.0".to_owned());
                self.world.set_pod(&pod);
                self.pods.push(Some(OnNode {
                    grant: entries(&pod),
                    versions: vec![pod],
                    resized: 0,
                    held_mib: 0,
                    seen: 1,
                }));
            }
            Act::Go(n) => {
                let n = at(n, self);
                if let Some(pod) = self.pods.get_mut(n).and_then(Option::take) {
                    self.world.remove_pod(&pod.newest().id.uid);
                }
            }
            Act::Pass => {
                for at in 0..self.pods.len() {
                    self.hear(at);
                }
                self.now += 61;
                self.world.expire(self.now);
            }
        }
    }

    fn assert_sound(&self) {
        let mut memory = std::collections::BTreeMap::new();
        for pod in self.pods.iter().flatten() {
            let booked = entries(pod.newest());
            assert!(
                within(&pod.grant, &booked),
                "held to {:?} and booked {booked:?}",
                pod.grant
            );
            assert!(pod.held_mib <= pod.grant[0][0].memory.get());
            let (mib, cores) = memory.entry(booked[0][0].card.clone()).or_insert((0, 0));
            *mib += booked[0][0].memory.get();
            *cores += booked[0][0].cores.get();
        }
        for (card, (mib, cores)) in memory {
            assert!(
                mib <= CARD_MIB && cores <= 100,
                "{card}: {mib} MiB and {cores} % are booked"
            );
        }
        assert_within_capacity(&self.world.snapshot());
        assert_eq!(self.world.audit(), []);
    }
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let fate = prop_oneof![4 => Just(Fate::Fine), 1 => Just(Fate::DiesBefore), 2 => Just(Fate::Late)];
    let pod = || 0..6_usize;
    prop::collection::vec(
        prop_oneof![
            4 => (pod(), 1..CARD_MIB + 500, 1..=100_u32, any::<bool>()).prop_map(|(n, mib, cores, wait)| Act::Wish(n, mib, cores, wait)),
            1 => pod().prop_map(Act::Withdraw),
            8 => (pod(), fate).prop_map(|(n, fate)| Act::Schedule(n, fate)),
            6 => (pod(), 0..4_usize, any::<bool>()).prop_map(|(n, back, dies)| Act::Agent(n, back, dies)),
            2 => (pod(), 0..CARD_MIB).prop_map(|(n, mib)| Act::Hold(n, mib)),
            3 => (1..6000_u64, 0..60_u32).prop_map(|(mib, cores)| Act::Come(mib, cores)),
            1 => pod().prop_map(Act::Go),
            1 => Just(Act::Pass),
        ],
        1..80,
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn no_order_of_steps_overbooks_or_takes_what_a_container_is_held_to(acts in acts()) {
        let mut node = Node { world: world(), pods: Vec::new(), now: 1000 };
        for act in &acts {
            node.act(act);
            node.assert_sound();
        }
        // Left alone with a living scheduler and agent, all of it comes to an end.
        for round in 0..20 {
            for at in 0..node.pods.len() {
                node.hear(at);
                node.act(&Act::Schedule(at, Fate::Fine));
                node.act(&Act::Agent(at, 0, false));
                node.assert_sound();
            }
            node.hear(0);
            let quiet = node.pods.iter().flatten().all(|pod| {
                let newest = pod.newest();
                let waits = tessera_wire::resize::status(newest).is_some_and(|status| status.state == State::Waiting);
                !pending(newest) && (waits || pod.grant == entries(newest))
            });
            prop_assert!(quiet || round < 19, "never quiet");
        }
    }
}
