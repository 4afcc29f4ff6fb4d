//! Pods that no node can take, and nodes that say something wrong.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::json;
use tessera_engine::{Candidates, Engine, World, text};
use tessera_testkit::build::{PodBuilder, node, pod};
use tessera_wire::node_lock::{self, LockOwner, LockStep};
use tessera_wire::{NodeView, Quantity};

use crate::admission::{cards, engine};
use crate::table::{Part, Row};

const EVENT: &str = "event of the pod";

struct Cluster {
    engine: Engine,
    world: World,
}

impl Cluster {
    fn new(nodes: &[NodeView]) -> Self {
        let engine = engine();
        let mut world = World::new(Arc::clone(engine.vendors()));
        for node in nodes {
            world.set_node(node);
        }
        Self { engine, world }
    }

    /// Two nodes with two cards each, on which other pods hold 12000 MiB and 80 percent.
    fn busy() -> Self {
        let mut cluster = Self::new(&[two("n1"), two("n2")]);
        for node in ["n1", "n2"] {
            for card in 0..2 {
                cluster.hold(node, card, 12000, 80);
            }
        }
        cluster
    }

    fn hold(&mut self, node: &str, card: u32, memory: i64, cores: i64) {
        let text = format!("GPU-{node}-{card},NVIDIA,{memory},{cores}:;");
        let name = format!("other-{node}-{card}");
        let holder = share(
            "other",
            &name,
            &[
                ("nvidia.com/gpu", 1),
                ("nvidia.com/gpumem", memory),
                ("nvidia.com/gpucores", cores),
            ],
        )
        .annotation("hami.io/vgpu-node", node)
        .annotation("hami.io/vgpu-devices-allocated", &text)
        .set("/spec/nodeName", json!(node))
        .set("/status/phase", json!("Running"));
        let change = self.world.set_pod(&holder.view());
        assert!(change.booked, "{:?}", change.problems);
    }

    /// The event of a pod that waits; the pod must wait, and the books must still be right.
    fn event(&self, pod: &PodBuilder) -> String {
        let demand = match self.engine.demand(&pod.view()) {
            Ok(demand) => demand,
            Err(error) => return error.to_string(),
        };
        let snapshot = self.world.snapshot();
        let decision = self.engine.decide(&snapshot, &demand, Candidates::All);
        assert!(decision.winner().is_none(), "it fits on {:?}", decision.winner());
        assert!(self.world.audit().is_empty());
        text::event(&decision, &demand)
    }

    /// The node that a small pod goes to.
    fn place(&self) -> Option<String> {
        let demand = self.engine.demand(&small().view()).unwrap();
        let snapshot = self.world.snapshot();
        let decision = self.engine.decide(&snapshot, &demand, Candidates::All);
        decision.winner().map(|fit| fit.node.to_string())
    }
}

fn two(name: &str) -> NodeView {
    node(name).cards(&cards(name, 2)).view()
}

fn share(namespace: &str, name: &str, limits: &[(&str, i64)]) -> PodBuilder {
    pod(namespace, name).container("main", limits)
}

fn small() -> PodBuilder {
    share("default", "p", &[("nvidia.com/gpu", 1), ("nvidia.com/gpumem", 1000)])
}

pub(crate) fn part() -> Part {
    Part {
        title: "A pod waits",
        about: "The pod stays Pending and is tried again by itself whenever cards come free. Other pods go past it. The \
                last sentence is what would help.",
        rows: vec![
            Row {
                id: "memory-short",
                did: "`nvidia.com/gpumem: 8000`, and other pods hold 12000 of the 16384 MiB of each card",
                place: EVENT,
                message: "0/2 nodes can take this pod: n1: 2 of 2 cards short of memory (8000 MiB wanted, at most 4384 MiB free, on GPU-n1-1); n2: 2 of 2 cards short of memory (8000 MiB wanted, at most 4384 MiB free, on GPU-n2-1). Ask for at most 4384 MiB, or free 3616 MiB on GPU-n1-1 of n1.",
                see: || {
                    Cluster::busy().event(&share(
                        "default",
                        "p",
                        &[("nvidia.com/gpu", 1), ("nvidia.com/gpumem", 8000)],
                    ))
                },
            },
            Row {
                id: "cores-short",
                did: "`nvidia.com/gpucores: 50`, and other pods hold 80 percent of each card",
                place: EVENT,
                message: "0/2 nodes can take this pod: n1: 2 of 2 cards short of compute (50 % compute wanted, at most 20 % compute free, on GPU-n1-1); n2: 2 of 2 cards short of compute (50 % compute wanted, at most 20 % compute free, on GPU-n2-1). Ask for at most 20 % compute, or free 30 % compute on GPU-n1-1 of n1.",
                see: || {
                    let limits = [
                        ("nvidia.com/gpu", 1),
                        ("nvidia.com/gpumem", 1000),
                        ("nvidia.com/gpucores", 50),
                    ];
                    Cluster::busy().event(&share("default", "p", &limits))
                },
            },
            Row {
                id: "whole-in-use",
                did: "a whole card, and every card is in use",
                place: EVENT,
                message: "0/2 nodes can take this pod: n1: 2 of 2 cards short of memory (16384 MiB wanted, at most 4384 MiB free, on GPU-n1-1); n2: 2 of 2 cards short of memory (16384 MiB wanted, at most 4384 MiB free, on GPU-n2-1). Ask for at most 4384 MiB, or free 12000 MiB on GPU-n1-1 of n1.",
                see: || {
                    Cluster::busy().event(&share(
                        "default",
                        "p",
                        &[("nvidia.com/gpu", 1), ("nvidia.com/gpucores", 100)],
                    ))
                },
            },
            Row {
                id: "too-many-cards",
                did: "`nvidia.com/gpu: 3`, and the largest node has 2",
                place: EVENT,
                message: "0/1 nodes can take this pod: n1: the node has 2 cards of the 3 wanted. Ask for fewer cards, or add a node with more.",
                see: || {
                    let pod = share("default", "p", &[("nvidia.com/gpu", 3), ("nvidia.com/gpumem", 100)]);
                    Cluster::new(&[two("n1")]).event(&pod)
                },
            },
            Row {
                id: "type-nowhere",
                did: "`nvidia.com/use-gputype: H200`, and no card is one",
                place: EVENT,
                message: "0/1 nodes can take this pod: n1: 2 of 2 cards of a model not accepted. The pod accepts only models H200; change its annotations, or add a node with such a card.",
                see: || Cluster::new(&[two("n1")]).event(&small().annotation("nvidia.com/use-gputype", "H200")),
            },
            Row {
                id: "uuid-nowhere",
                did: "`nvidia.com/use-gpuuuid: GPU-x`, and no card has this id",
                place: EVENT,
                message: "0/1 nodes can take this pod: n1: 2 of 2 cards not among the ids accepted. The pod accepts only ids GPU-x; change its annotations, or add a node with such a card.",
                see: || Cluster::new(&[two("n1")]).event(&small().annotation("nvidia.com/use-gpuuuid", "GPU-x")),
            },
            Row {
                id: "mode-nowhere",
                did: "`nvidia.com/vgpu-mode: hamicore`, and no card is in this mode",
                place: EVENT,
                message: "0/1 nodes can take this pod: n1: 2 of 2 cards in a mode not accepted. The pod accepts only mode hamicore; change its annotations, or add a node with such a card.",
                see: || Cluster::new(&[two("n1")]).event(&small().annotation("nvidia.com/vgpu-mode", "hamicore")),
            },
            Row {
                id: "quota-at-filter",
                did: "`nvidia.com/gpumem-percentage: 50`, in a namespace whose quota leaves 2000 MiB",
                place: EVENT,
                message: "0/1 nodes can take this pod: n1: the namespace's quota leaves 2000 MiB of the 8192 MiB wanted. Raise the namespace's ResourceQuota, or end pods of the namespace.",
                see: || {
                    let mut cluster = Cluster::new(&[two("n1")]);
                    let hard = BTreeMap::from([("limits.nvidia.com/gpumem".to_owned(), Quantity::of(2000))]);
                    cluster.world.set_quota("default", "q", &hard);
                    cluster.event(&share(
                        "default",
                        "p",
                        &[("nvidia.com/gpu", 1), ("nvidia.com/gpumem-percentage", 50)],
                    ))
                },
            },
            Row {
                id: "past-the-webhook",
                did: "`nvidia.com/gpumem: -1` in a pod that the webhook did not see",
                place: EVENT,
                message: "container `main`: `nvidia.com/gpumem`: `-1` is negative; write the amount in MiB",
                see: || {
                    Cluster::new(&[two("n1")]).event(&share(
                        "default",
                        "p",
                        &[("nvidia.com/gpu", 1), ("nvidia.com/gpumem", -1)],
                    ))
                },
            },
            Row {
                id: "no-cards-anywhere",
                did: "asked for a card where no node registers one",
                place: EVENT,
                message: "0/1 nodes can take this pod: n1: no cards are registered. Check that the node agent runs on a node with cards.",
                see: || Cluster::new(&[node("n1").view()]).event(&small()),
            },
            Row {
                id: "agent-gone",
                did: "removed the node agent from the only node",
                place: EVENT,
                message: "0/1 nodes can take this pod: n1: no new NVIDIA work is taken: its plugin is gone: `nvidia.com/gpu` is 0 in the node's allocatable. Look at the node agent's log on these nodes.",
                see: || {
                    Cluster::new(&[node("n1").cards(&cards("n1", 2)).count("nvidia.com/gpu", 0).view()]).event(&small())
                },
            },
            Row {
                id: "all-cordoned",
                did: "cordoned every card with `hami.io/device-cordon`",
                place: EVENT,
                message: "0/1 nodes can take this pod: n1: 2 of 2 cards cordoned. Take a card out of the node's annotation `hami.io/device-cordon`.",
                see: || {
                    let node = node("n1")
                        .cards(&cards("n1", 2))
                        .annotation("hami.io/device-cordon", "GPU-n1-0,GPU-n1-1");
                    Cluster::new(&[node.view()]).event(&small())
                },
            },
        ],
    }
}

/// What the scheduler's log says of a node whose register is `register`. The node beside it must go on, and the event
/// of a pod that fits nowhere must name the cause.
fn bad_register(register: &str) -> String {
    let mut cluster = Cluster::new(&[two("n2")]);
    let bad = node("n1")
        .annotation("hami.io/node-nvidia-register", register)
        .count("nvidia.com/gpu", 20)
        .view();
    let problems = cluster.world.set_node(&bad).problems;
    assert_eq!(cluster.place().as_deref(), Some("n2"));
    let event = cluster.event(&share(
        "default",
        "p",
        &[("nvidia.com/gpu", 1), ("nvidia.com/gpumem", 20000)],
    ));
    let texts: Vec<String> = problems
        .iter()
        .map(|(class, problem)| format!("{class}: {problem}"))
        .collect();
    assert!(
        problems.iter().all(|(_, problem)| event.contains(&problem.to_string())),
        "{event}"
    );
    texts.join("; ")
}

pub(crate) fn nodes() -> Part {
    const LOG: &str = "scheduler's log (`An object cannot be used as it is; correct or remove what is named.`), \
                       `tessera_unreadable_objects`, events of the node and of pods that wait";
    Part {
        title: "A node or a running pod carries a wrong text",
        about: "Only the node, or the cards, that the text is about get no new pods; all others go on, and what runs \
                stays booked. As soon as the text is right it is used again.",
        rows: vec![
            Row {
                id: "register-json",
                did: "`hami.io/node-nvidia-register` is no JSON",
                place: LOG,
                message: "NVIDIA: node annotation `hami.io/node-nvidia-register` cannot be read: the register is not the expected JSON: EOF while parsing a value at line 1 column 7",
                see: || bad_register("[{\"id\":"),
            },
            Row {
                id: "register-range",
                did: "`devmem: -1` in `hami.io/node-nvidia-register`",
                place: LOG,
                message: "NVIDIA: node annotation `hami.io/node-nvidia-register` cannot be read: card `GPU-a`: devmem is -1; it must be 0 to 2147483647",
                see: || {
                    bad_register(
                        r#"[{"id":"GPU-a","count":10,"devmem":-1,"devcore":100,"type":"NVIDIA A10","health":true}]"#,
                    )
                },
            },
            Row {
                id: "register-empty",
                did: "`hami.io/node-nvidia-register: \"[]\"`",
                place: LOG,
                message: "NVIDIA: node annotation `hami.io/node-nvidia-register` lists no card",
                see: || bad_register("[]"),
            },
            Row {
                id: "handshake",
                did: "`hami.io/node-handshake: nonsense`",
                place: "nowhere: the node goes on, because its allocatable count says whether it is served",
                message: "no message",
                see: || {
                    let node = node("n1")
                        .cards(&cards("n1", 2))
                        .annotation("hami.io/node-handshake", "nonsense");
                    let mut cluster = Cluster::new(&[]);
                    let problems = cluster.world.set_node(&node.view()).problems;
                    assert_eq!(cluster.place().as_deref(), Some("n1"));
                    if problems.is_empty() {
                        "no message".to_owned()
                    } else {
                        format!("{problems:?}")
                    }
                },
            },
            Row {
                id: "node-lock",
                did: "`hami.io/mutex.lock: nonsense` on a node that HAMi's plugin serves",
                place: "scheduler's log, after `Take over a node lock nobody needs any more.`; the pod is bound",
                message: "the node lock `nonsense` does not start with an RFC 3339 time, so nobody would ever release it",
                see: || {
                    let me = LockOwner {
                        namespace: "default".to_owned(),
                        name: "p".to_owned(),
                    };
                    match node_lock::decide(Some("nonsense"), &me, 0, 300, None) {
                        LockStep::TakeOver(why) => why.to_string(),
                        other => format!("{other:?}"),
                    }
                },
            },
            Row {
                id: "allocation-unreadable",
                did: "`hami.io/vgpu-devices-allocated` of a running pod was damaged past the webhook",
                place: "scheduler's log (as above), `tessera_unreadable_objects`",
                message: "pod annotation `hami.io/vgpu-devices-allocated` cannot be read: device `GPU-n1-0,NVIDIA,much,0`: memory `much` is not an integer of 0 to 2147483647; the cards it might name take no new work",
                see: || {
                    let mut cluster = Cluster::new(&[two("n1"), two("n2")]);
                    let damaged = small()
                        .annotation("hami.io/vgpu-node", "n1")
                        .annotation("hami.io/vgpu-devices-allocated", "GPU-n1-0,NVIDIA,much,0:;")
                        .set("/spec/nodeName", json!("n1"));
                    let problems = cluster.world.set_pod(&damaged.view()).problems;
                    // The card that it might hold takes nothing new; the one beside it does.
                    let card = share("default", "q", &[("nvidia.com/gpu", 1), ("nvidia.com/gpumem", 10)])
                        .annotation("nvidia.com/use-gpuuuid", "GPU-n1-0");
                    cluster.event(&card);
                    assert!(cluster.place().is_some());
                    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
                },
            },
            Row {
                id: "allocation-forged",
                did: "wrote an allocation on a running pod that asks for no card, past the webhook",
                place: "scheduler's log (as above), `tessera_unreadable_objects`",
                message: "the pod asks for no device but carries an allocation; nothing is booked",
                see: || {
                    let mut cluster = Cluster::new(&[two("n1")]);
                    let forged = share("default", "p", &[])
                        .annotation("hami.io/vgpu-node", "n1")
                        .annotation("hami.io/vgpu-devices-allocated", "GPU-n1-0,NVIDIA,16384,100:;")
                        .set("/spec/nodeName", json!("n1"));
                    let change = cluster.world.set_pod(&forged.view());
                    assert!(!change.booked && cluster.world.snapshot().booking_count() == 0);
                    change
                        .problems
                        .iter()
                        .map(ToString::to_string)
                        .collect::<Vec<_>>()
                        .join("; ")
                },
            },
        ],
    }
}
