//! Pods that are refused or warned about when they are created.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use tessera_engine::admission::{Settings, Verdict, refuse_update, review};
use tessera_engine::{Defaults, Engine, World};
use tessera_testkit::build::{card, node};
use tessera_types::Card;
use tessera_wire::Quantity;
use tessera_wire::config::{DeviceConfig, Nvidia};

use crate::table::{Part, Row};

const REFUSED: &str = "`kubectl` refuses the pod";
const WARNED: &str = "`kubectl` warns; the pod is created";

/// An engine with the NVIDIA class.
pub(crate) fn engine() -> Engine {
    let config = DeviceConfig {
        nvidia: Some(Nvidia::default()),
        ..DeviceConfig::default()
    };
    Engine::new(tessera_vendors::from_config(&config), Defaults::default())
}

/// Cards of 16384 MiB.
pub(crate) fn cards(node: &str, count: u32) -> Vec<Card> {
    (0..count)
        .map(|at| card(&format!("GPU-{node}-{at}")).index(at).memory(16384).card())
        .collect()
}

/// One node with two cards, and a quota in the namespace `small`.
fn cluster() -> (Engine, World) {
    let engine = engine();
    let mut world = World::new(Arc::clone(engine.vendors()));
    world.set_node(&node("n1").cards(&cards("n1", 2)).view());
    let hard = BTreeMap::from([
        ("limits.nvidia.com/gpumem".to_owned(), Quantity::of(1000)),
        ("limits.nvidia.com/gpucores".to_owned(), Quantity::of(50)),
    ]);
    world.set_quota("small", "q", &hard);
    (engine, world)
}

fn pod(limits: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"},
        "spec": {"containers": [{"name": "main", "image": "x", "resources": {"limits": limits}}]},
    })
}

fn with(change: impl FnOnce(&mut Value)) -> Value {
    let mut pod = pod(&json!({"nvidia.com/gpu": 1, "nvidia.com/gpumem": 100}));
    change(&mut pod);
    pod
}

fn annotated(key: &str, value: &str) -> Value {
    with(|pod| pod["metadata"]["annotations"] = json!({key: value}))
}

fn verdict(pod: &Value) -> Verdict {
    let (engine, world) = cluster();
    review(pod, "default", &Settings::default(), &engine, &world.snapshot())
}

fn refused(pod: &Value) -> String {
    match verdict(pod) {
        Verdict::Deny { text, .. } => text,
        allowed @ Verdict::Allow { .. } => format!("not refused: {allowed:?}"),
    }
}

/// The warnings of a pod that is created; the pod as it is created must pass a second review without any.
fn warned(pod: &Value) -> String {
    match verdict(pod) {
        Verdict::Allow { warnings, .. } if warnings.is_empty() => "no warning".to_owned(),
        Verdict::Allow { warnings, .. } => warnings.join("\n"),
        denied @ Verdict::Deny { .. } => format!("refused: {denied:?}"),
    }
}

/// What is added to the limits of a pod that is created without a word.
fn completed(pod: &Value) -> String {
    let Verdict::Allow { patch, warnings, .. } = verdict(pod) else {
        return "refused".to_owned();
    };
    assert!(warnings.is_empty(), "{warnings:?}");
    let patch = serde_json::to_value(patch).unwrap();
    let mut lines = Vec::new();
    for op in patch.as_array().unwrap() {
        let path = op["path"].as_str().unwrap();
        if let Some(name) = path.strip_prefix("/spec/containers/0/resources/limits/") {
            lines.push(format!("limits: {}: {}", name.replace("~1", "/"), op["value"]));
        }
    }
    lines.join("\n")
}

fn gpu(more: Value) -> Value {
    let mut limits = json!({"nvidia.com/gpu": 1});
    for (name, value) in more.as_object().unwrap() {
        limits[name] = value.clone();
    }
    pod(&limits)
}

pub(crate) fn part() -> Part {
    let mut rows = numbers();
    rows.extend(annotations());
    rows.extend(fields());
    Part {
        title: "A pod is created",
        about: "The webhook says it at once. A refused pod does not exist; nothing is booked for it. Pods that ask for \
                no card are not looked at.",
        rows,
    }
}

fn numbers() -> Vec<Row> {
    macro_rules! row {
        ($id:literal, $did:literal, $place:expr, $see:expr, $message:literal) => {
            Row {
                id: $id,
                did: $did,
                place: $place,
                message: $message,
                see: || $see,
            }
        };
    }
    vec![
        row!(
            "memory-suffix",
            "`nvidia.com/gpumem: 3Gi`",
            REFUSED,
            refused(&gpu(json!({"nvidia.com/gpumem": "3Gi"}))),
            "MSG:memory-suffix"
        ),
        row!(
            "memory-suffix-small",
            "`nvidia.com/gpumem: 1Gi`",
            REFUSED,
            refused(&gpu(json!({"nvidia.com/gpumem": "1Gi"}))),
            "MSG:memory-suffix-small"
        ),
        row!(
            "memory-fraction",
            "`nvidia.com/gpumem: 1500m`",
            REFUSED,
            refused(&gpu(json!({"nvidia.com/gpumem": "1500m"}))),
            "MSG:memory-fraction"
        ),
        row!(
            "memory-negative",
            "`nvidia.com/gpumem: -1`",
            REFUSED,
            refused(&gpu(json!({"nvidia.com/gpumem": "-1"}))),
            "MSG:memory-negative"
        ),
        row!(
            "memory-huge",
            "`nvidia.com/gpumem: 9E`",
            REFUSED,
            refused(&gpu(json!({"nvidia.com/gpumem": "9E"}))),
            "MSG:memory-huge"
        ),
        row!(
            "memory-bytes",
            "`nvidia.com/gpumem: 100000000`",
            REFUSED,
            refused(&gpu(json!({"nvidia.com/gpumem": 100_000_000}))),
            "MSG:memory-bytes"
        ),
        row!(
            "memory-text",
            "`nvidia.com/gpumem: lots`",
            REFUSED,
            refused(&gpu(json!({"nvidia.com/gpumem": "lots"}))),
            "MSG:memory-text"
        ),
        row!(
            "percentage-over",
            "`nvidia.com/gpumem-percentage: 120`",
            REFUSED,
            refused(&gpu(json!({"nvidia.com/gpumem-percentage": 120}))),
            "MSG:percentage-over"
        ),
        row!(
            "percentage-fraction",
            "`nvidia.com/gpumem-percentage: 12.5`",
            REFUSED,
            refused(&gpu(json!({"nvidia.com/gpumem-percentage": "12.5"}))),
            "MSG:percentage-fraction"
        ),
        row!(
            "percentage-negative",
            "`nvidia.com/gpumem-percentage: -5`",
            REFUSED,
            refused(&gpu(json!({"nvidia.com/gpumem-percentage": "-5"}))),
            "MSG:percentage-negative"
        ),
        row!(
            "percentage-huge",
            "`nvidia.com/gpumem-percentage: 9E`",
            REFUSED,
            refused(&gpu(json!({"nvidia.com/gpumem-percentage": "9E"}))),
            "MSG:percentage-huge"
        ),
        row!(
            "cores-fraction",
            "`nvidia.com/gpucores: 12.5`",
            REFUSED,
            refused(&gpu(json!({"nvidia.com/gpumem": 100, "nvidia.com/gpucores": "12.5"}))),
            "MSG:cores-fraction"
        ),
        row!(
            "cores-negative",
            "`nvidia.com/gpucores: -5`",
            REFUSED,
            refused(&gpu(json!({"nvidia.com/gpumem": 100, "nvidia.com/gpucores": "-5"}))),
            "MSG:cores-negative"
        ),
        row!(
            "cores-huge",
            "`nvidia.com/gpucores: 9E`",
            REFUSED,
            refused(&gpu(json!({"nvidia.com/gpumem": 100, "nvidia.com/gpucores": "9E"}))),
            "MSG:cores-huge"
        ),
        row!(
            "cores-over",
            "`nvidia.com/gpucores: 150`",
            WARNED,
            warned(&gpu(json!({"nvidia.com/gpumem": 100, "nvidia.com/gpucores": 150}))),
            "MSG:cores-over"
        ),
        row!(
            "count-fraction",
            "`nvidia.com/gpu: 500m`",
            REFUSED,
            refused(&pod(&json!({"nvidia.com/gpu": "500m"}))),
            "MSG:count-fraction"
        ),
        row!(
            "count-negative",
            "`nvidia.com/gpu: -1`",
            REFUSED,
            refused(&pod(&json!({"nvidia.com/gpu": "-1"}))),
            "MSG:count-negative"
        ),
        row!(
            "count-huge",
            "`nvidia.com/gpu: 9E`",
            REFUSED,
            refused(&pod(&json!({"nvidia.com/gpu": "9E"}))),
            "MSG:count-huge"
        ),
        row!(
            "count-over",
            "`nvidia.com/gpu: 3`, and no node has more than 2",
            WARNED,
            warned(&gpu(json!({"nvidia.com/gpu": 3, "nvidia.com/gpumem": 100}))),
            "MSG:count-over"
        ),
        row!(
            "priority-fraction",
            "`nvidia.com/priority: 500m`",
            REFUSED,
            refused(&gpu(json!({"nvidia.com/gpumem": 100, "nvidia.com/priority": "500m"}))),
            "MSG:priority-fraction"
        ),
        row!(
            "priority-negative",
            "`nvidia.com/priority: -1`",
            REFUSED,
            refused(&gpu(json!({"nvidia.com/gpumem": 100, "nvidia.com/priority": "-1"}))),
            "MSG:priority-negative"
        ),
        row!(
            "priority-huge",
            "`nvidia.com/priority: 9E`",
            WARNED,
            warned(&gpu(json!({"nvidia.com/gpumem": 100, "nvidia.com/priority": "9E"}))),
            "MSG:priority-huge"
        ),
        row!(
            "memory-twice",
            "`nvidia.com/gpumem: 100` and `nvidia.com/gpumem-percentage: 50`",
            WARNED,
            warned(&gpu(
                json!({"nvidia.com/gpumem": 100, "nvidia.com/gpumem-percentage": 50})
            )),
            "MSG:memory-twice"
        ),
        row!(
            "memory-alone",
            "`nvidia.com/gpumem: 100` without `nvidia.com/gpu`",
            "in the pod: it is allowed and completed",
            completed(&pod(&json!({"nvidia.com/gpumem": 100}))),
            "MSG:memory-alone"
        ),
        row!(
            "count-alone",
            "`nvidia.com/gpu: 1` and no amount: a whole card",
            "in the pod: it is allowed and completed",
            completed(&pod(&json!({"nvidia.com/gpu": 1}))),
            "MSG:count-alone"
        ),
    ]
}

fn annotations() -> Vec<Row> {
    macro_rules! row {
        ($id:literal, $place:expr, $see:ident, $key:literal, $value:literal, $message:literal) => {
            Row {
                id: $id,
                did: concat!("annotation `", $key, ": ", $value, "`"),
                place: $place,
                message: $message,
                see: || $see(&annotated($key, $value)),
            }
        };
    }
    vec![
        row!(
            "annotation-misspelt",
            WARNED,
            warned,
            "nvidia.com/use-gputyp",
            "A10",
            "MSG:annotation-misspelt"
        ),
        row!(
            "annotation-unknown",
            WARNED,
            warned,
            "hami.io/anything",
            "x",
            "MSG:annotation-unknown"
        ),
        row!(
            "annotation-ours",
            WARNED,
            warned,
            "tessera.dev/anything",
            "x",
            "MSG:annotation-ours"
        ),
        row!(
            "numa-word",
            WARNED,
            warned,
            "nvidia.com/numa-bind",
            "yes",
            "MSG:numa-word"
        ),
        row!(
            "node-policy",
            REFUSED,
            refused,
            "hami.io/node-scheduler-policy",
            "bin-pack",
            "MSG:node-policy"
        ),
        row!(
            "card-policy",
            REFUSED,
            refused,
            "hami.io/gpu-scheduler-policy",
            "spread,banana",
            "MSG:card-policy"
        ),
        row!(
            "weights-form",
            REFUSED,
            refused,
            "hami.io/device-scoring-weights",
            "slot",
            "MSG:weights-form"
        ),
        row!(
            "weights-missing",
            REFUSED,
            refused,
            "hami.io/device-scoring-weights",
            "slot=1",
            "MSG:weights-missing"
        ),
        row!(
            "weights-word",
            REFUSED,
            refused,
            "hami.io/device-scoring-weights",
            "slot=1,core=1,mem=1",
            "MSG:weights-word"
        ),
        row!(
            "weights-value",
            REFUSED,
            refused,
            "hami.io/device-scoring-weights",
            "slot=1,core=0.5,memory=1",
            "MSG:weights-value"
        ),
        row!(
            "weights-zero",
            REFUSED,
            refused,
            "hami.io/device-scoring-weights",
            "slot=0,core=0,memory=0",
            "MSG:weights-zero"
        ),
        row!(
            "forged",
            WARNED,
            warned,
            "hami.io/vgpu-devices-allocated",
            "GPU-n1-0,NVIDIA,16000,100:;",
            "MSG:forged"
        ),
    ]
}

fn fields() -> Vec<Row> {
    vec![
        Row {
            id: "privileged",
            did: "`securityContext.privileged: true` and a card",
            place: REFUSED,
            message: "MSG:privileged",
            see: || {
                refused(&with(|pod| {
                    pod["spec"]["containers"][0]["securityContext"] = json!({"privileged": true})
                }))
            },
        },
        Row {
            id: "node-name",
            did: "`nodeName: n1` and a card",
            place: REFUSED,
            message: "MSG:node-name",
            see: || refused(&with(|pod| pod["spec"]["nodeName"] = json!("n1"))),
        },
        Row {
            id: "env-control",
            did: "environment `CUDA_DISABLE_CONTROL: \"true\"` and a card",
            place: WARNED,
            message: "MSG:env-control",
            see: || {
                warned(&with(|pod| {
                    pod["spec"]["containers"][0]["env"] = json!([{"name": "CUDA_DISABLE_CONTROL", "value": "true"}]);
                }))
            },
        },
        Row {
            id: "env-visible",
            did: "environment `NVIDIA_VISIBLE_DEVICES: all` and a card",
            place: WARNED,
            message: "MSG:env-visible",
            see: || {
                warned(&with(|pod| {
                    pod["spec"]["containers"][0]["env"] = json!([{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}]);
                }))
            },
        },
        Row {
            id: "quota-memory",
            did: "2 cards with 600 MiB each, in a namespace whose quota is 1000 MiB",
            place: REFUSED,
            message: "MSG:quota-memory",
            see: || {
                let mut pod = pod(&json!({"nvidia.com/gpu": 2, "nvidia.com/gpumem": 600}));
                pod["metadata"]["namespace"] = json!("small");
                refused(&pod)
            },
        },
        Row {
            id: "quota-cores",
            did: "`nvidia.com/gpucores: 60`, in a namespace whose quota is 50 percent",
            place: REFUSED,
            message: "MSG:quota-cores",
            see: || {
                let mut pod = gpu(json!({"nvidia.com/gpumem": 100, "nvidia.com/gpucores": 60}));
                pod["metadata"]["namespace"] = json!("small");
                refused(&pod)
            },
        },
        Row {
            id: "allocation-changed",
            did: "changed `hami.io/vgpu-devices-allocated` of a running pod by hand",
            place: "`kubectl` refuses the change; the pod stays as it was",
            message: "MSG:allocation-changed",
            see: || {
                let with = |text: &str| json!({"metadata": {"annotations": {"hami.io/vgpu-devices-allocated": text}}});
                let (old, new) = (with("GPU-a,NVIDIA,100,0:;"), with("GPU-b,NVIDIA,9000,0:;"));
                let groups = ["system:authenticated".to_owned()];
                refuse_update(&old, &new, "alice", &groups, &Settings::default(), &engine()).unwrap_or_default()
            },
        },
    ]
}
