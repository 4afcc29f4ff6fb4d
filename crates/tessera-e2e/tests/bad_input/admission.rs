//! Pods that are refused or warned about when they are created.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use tessera_engine::admission::{Settings, Verdict, check_resize, refuse_update, review};
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
            "container `main`: `nvidia.com/gpumem`: `3Gi` means 3221225472 MiB, more than any card has; write 3072: `nvidia.com/gpumem` counts MiB, not bytes"
        ),
        row!(
            "memory-suffix-small",
            "`nvidia.com/gpumem: 1Gi`",
            REFUSED,
            refused(&gpu(json!({"nvidia.com/gpumem": "1Gi"}))),
            "container `main`: `nvidia.com/gpumem`: `1Gi` means 1073741824 MiB of each card, more than any card has; write 1024: `nvidia.com/gpumem` counts MiB, not bytes"
        ),
        row!(
            "memory-fraction",
            "`nvidia.com/gpumem: 1500m`",
            REFUSED,
            refused(&gpu(json!({"nvidia.com/gpumem": "1500m"}))),
            "container `main`: `nvidia.com/gpumem`: `1500m` is not a whole number; write a whole number of MiB"
        ),
        row!(
            "memory-negative",
            "`nvidia.com/gpumem: -1`",
            REFUSED,
            refused(&gpu(json!({"nvidia.com/gpumem": "-1"}))),
            "container `main`: `nvidia.com/gpumem`: `-1` is negative; write the amount in MiB"
        ),
        row!(
            "memory-huge",
            "`nvidia.com/gpumem: 9E`",
            REFUSED,
            refused(&gpu(json!({"nvidia.com/gpumem": "9E"}))),
            "container `main`: `nvidia.com/gpumem`: `9E` means 9000000000000000000 MiB, more than any card has; `nvidia.com/gpumem` counts MiB, not bytes; write at most 2147483647"
        ),
        row!(
            "memory-bytes",
            "`nvidia.com/gpumem: 100000000`",
            REFUSED,
            refused(&gpu(json!({"nvidia.com/gpumem": 100_000_000}))),
            "container `main`: `nvidia.com/gpumem`: `100000000` means 100000000 MiB of each card, more than any card has; `nvidia.com/gpumem` counts MiB of each card; write what one card can give"
        ),
        row!(
            "percentage-over",
            "`nvidia.com/gpumem-percentage: 120`",
            REFUSED,
            refused(&gpu(json!({"nvidia.com/gpumem-percentage": 120}))),
            "invalid nvidia.com/gpumem-percentage value 120 in container main: must be an integer between 0 and 100; write the share of each card's memory in percent"
        ),
        row!(
            "percentage-fraction",
            "`nvidia.com/gpumem-percentage: 12.5`",
            REFUSED,
            refused(&gpu(json!({"nvidia.com/gpumem-percentage": "12.5"}))),
            "invalid nvidia.com/gpumem-percentage value 12.5 in container main: must be an integer between 0 and 100; write the share of each card's memory in percent"
        ),
        row!(
            "percentage-negative",
            "`nvidia.com/gpumem-percentage: -5`",
            REFUSED,
            refused(&gpu(json!({"nvidia.com/gpumem-percentage": "-5"}))),
            "invalid nvidia.com/gpumem-percentage value -5 in container main: must be an integer between 0 and 100; write the share of each card's memory in percent"
        ),
        row!(
            "percentage-huge",
            "`nvidia.com/gpumem-percentage: 9E`",
            REFUSED,
            refused(&gpu(json!({"nvidia.com/gpumem-percentage": "9E"}))),
            "invalid nvidia.com/gpumem-percentage value 9E in container main: must be an integer between 0 and 100; write the share of each card's memory in percent"
        ),
        row!(
            "cores-fraction",
            "`nvidia.com/gpucores: 12.5`",
            REFUSED,
            refused(&gpu(json!({"nvidia.com/gpumem": 100, "nvidia.com/gpucores": "12.5"}))),
            "container `main`: `nvidia.com/gpucores`: `12.5` is not a percentage of a card's compute; write a whole number from 0 to 100"
        ),
        row!(
            "cores-negative",
            "`nvidia.com/gpucores: -5`",
            REFUSED,
            refused(&gpu(json!({"nvidia.com/gpumem": 100, "nvidia.com/gpucores": "-5"}))),
            "container `main`: `nvidia.com/gpucores`: `-5` is not a percentage of a card's compute; write a whole number from 0 to 100"
        ),
        row!(
            "cores-huge",
            "`nvidia.com/gpucores: 9E`",
            REFUSED,
            refused(&gpu(json!({"nvidia.com/gpumem": 100, "nvidia.com/gpucores": "9E"}))),
            "container `main`: `nvidia.com/gpucores`: `9E` is not a percentage of a card's compute; write a whole number from 0 to 100"
        ),
        row!(
            "cores-over",
            "`nvidia.com/gpucores: 150`",
            WARNED,
            warned(&gpu(json!({"nvidia.com/gpumem": 100, "nvidia.com/gpucores": 150}))),
            "container `main`: `nvidia.com/gpucores` is 150; one card has 100, so that is what it counts as"
        ),
        row!(
            "count-fraction",
            "`nvidia.com/gpu: 500m`",
            REFUSED,
            refused(&pod(&json!({"nvidia.com/gpu": "500m"}))),
            "container `main`: `nvidia.com/gpu`: `500m` is not a number of cards; write a whole number, such as 1"
        ),
        row!(
            "count-negative",
            "`nvidia.com/gpu: -1`",
            REFUSED,
            refused(&pod(&json!({"nvidia.com/gpu": "-1"}))),
            "container `main`: `nvidia.com/gpu`: `-1` is not a number of cards; write a whole number, such as 1"
        ),
        row!(
            "count-huge",
            "`nvidia.com/gpu: 9E`",
            REFUSED,
            refused(&pod(&json!({"nvidia.com/gpu": "9E"}))),
            "container `main`: `nvidia.com/gpu`: `9E` is not a number of cards; write a whole number, such as 1"
        ),
        row!(
            "count-over",
            "`nvidia.com/gpu: 3`, and no node has more than 2",
            WARNED,
            warned(&gpu(json!({"nvidia.com/gpu": 3, "nvidia.com/gpumem": 100}))),
            "container `main`: `nvidia.com/gpu` is 3, but no node has more than 2 NVIDIA cards; the pod waits for one"
        ),
        row!(
            "priority-fraction",
            "`nvidia.com/priority: 500m`",
            REFUSED,
            refused(&gpu(json!({"nvidia.com/gpumem": 100, "nvidia.com/priority": "500m"}))),
            "container `main`: `nvidia.com/priority`: `500m` is not a priority; write 0 (high) or 1 (low)"
        ),
        row!(
            "priority-negative",
            "`nvidia.com/priority: -1`",
            REFUSED,
            refused(&gpu(json!({"nvidia.com/gpumem": 100, "nvidia.com/priority": "-1"}))),
            "container `main`: `nvidia.com/priority`: `-1` is not a priority; write 0 (high) or 1 (low)"
        ),
        row!(
            "priority-huge",
            "`nvidia.com/priority: 9E`",
            WARNED,
            warned(&gpu(json!({"nvidia.com/gpumem": 100, "nvidia.com/priority": "9E"}))),
            "container `main`: `nvidia.com/priority` is 9E; only 0 (high) and 1 (low) have a meaning"
        ),
        row!(
            "memory-twice",
            "`nvidia.com/gpumem: 100` and `nvidia.com/gpumem-percentage: 50`",
            WARNED,
            warned(&gpu(
                json!({"nvidia.com/gpumem": 100, "nvidia.com/gpumem-percentage": 50})
            )),
            "container `main`: `nvidia.com/gpumem-percentage` has no effect beside `nvidia.com/gpumem`; keep one of them"
        ),
        row!(
            "memory-alone",
            "`nvidia.com/gpumem: 100` without `nvidia.com/gpu`",
            "in the pod: it is allowed and completed",
            completed(&pod(&json!({"nvidia.com/gpumem": 100}))),
            "limits: nvidia.com/gpu: \"1\""
        ),
        row!(
            "count-alone",
            "`nvidia.com/gpu: 1` and no amount: a whole card",
            "in the pod: it is allowed and completed",
            completed(&pod(&json!({"nvidia.com/gpu": 1}))),
            "limits: nvidia.com/gpucores: \"100\""
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
            "annotation `nvidia.com/use-gputyp` has no effect; did you mean `nvidia.com/use-gputype`?"
        ),
        row!(
            "annotation-unknown",
            WARNED,
            warned,
            "hami.io/anything",
            "x",
            "annotation `hami.io/anything` has no effect: no such name is known"
        ),
        row!(
            "annotation-ours",
            WARNED,
            warned,
            "tessera.dev/anything",
            "x",
            "annotation `tessera.dev/anything` has no effect: no such name is known"
        ),
        row!(
            "numa-word",
            WARNED,
            warned,
            "nvidia.com/numa-bind",
            "yes",
            "annotation `nvidia.com/numa-bind`: `yes` is neither true nor false and counts as false; write \"true\" or \"false\""
        ),
        row!(
            "node-policy",
            REFUSED,
            refused,
            "hami.io/node-scheduler-policy",
            "bin-pack",
            "annotation `hami.io/node-scheduler-policy`: `bin-pack` is not a policy; did you mean `binpack`?"
        ),
        row!(
            "card-policy",
            REFUSED,
            refused,
            "hami.io/gpu-scheduler-policy",
            "spread,banana",
            "annotation `hami.io/gpu-scheduler-policy`: `banana` is not a policy; write binpack, spread, topology-aware, mutex, numa"
        ),
        row!(
            "weights-form",
            REFUSED,
            refused,
            "hami.io/device-scoring-weights",
            "slot",
            "annotation `hami.io/device-scoring-weights`: `slot` is not of the form key=value; write slot=1,core=1,memory=1"
        ),
        row!(
            "weights-missing",
            REFUSED,
            refused,
            "hami.io/device-scoring-weights",
            "slot=1",
            "annotation `hami.io/device-scoring-weights`: weight `core` is missing; write all three, as in slot=1,core=1,memory=1"
        ),
        row!(
            "weights-word",
            REFUSED,
            refused,
            "hami.io/device-scoring-weights",
            "slot=1,core=1,mem=1",
            "annotation `hami.io/device-scoring-weights`: unknown weight `mem`; the weights are slot, core and memory"
        ),
        row!(
            "weights-value",
            REFUSED,
            refused,
            "hami.io/device-scoring-weights",
            "slot=1,core=0.5,memory=1",
            "annotation `hami.io/device-scoring-weights`: weight `core` is `0.5`; it must be an integer of 0 or more"
        ),
        row!(
            "weights-zero",
            REFUSED,
            refused,
            "hami.io/device-scoring-weights",
            "slot=0,core=0,memory=0",
            "annotation `hami.io/device-scoring-weights`: all weights are 0; at least one must be positive"
        ),
        row!(
            "card-rule-name",
            REFUSED,
            refused,
            "tessera.dev/card-rule",
            "modle.contains('A100')",
            "annotation `tessera.dev/card-rule`: column 1: `modle` is no attribute of a card; there are vendor, model, id, mode, memory, cores, slots, index, numa, links, custom; did you mean `model`?"
        ),
        row!(
            "card-rule-kind",
            REFUSED,
            refused,
            "tessera.dev/card-rule",
            "memory >= '40Gi'",
            "annotation `tessera.dev/card-rule`: column 11: a number is compared with a text; write the number without quotes; write for example model.contains('A100') && memory >= 40Gi"
        ),
        row!(
            "card-rule-fraction",
            REFUSED,
            refused,
            "tessera.dev/card-rule",
            "memory >= 39.5Gi",
            "annotation `tessera.dev/card-rule`: column 13: a fraction is not read; write it in a smaller unit, as 1536Mi for 1.5Gi; write for example model.contains('A100') && memory >= 40Gi"
        ),
        row!(
            "card-rule-open",
            REFUSED,
            refused,
            "tessera.dev/card-rule",
            "model == 'A100",
            "annotation `tessera.dev/card-rule`: column 10: this text is not closed; write for example model.contains('A100') && memory >= 40Gi"
        ),
        row!(
            "forged",
            WARNED,
            warned,
            "hami.io/vgpu-devices-allocated",
            "GPU-n1-0,NVIDIA,16000,100:;",
            "annotation `hami.io/vgpu-devices-allocated` is removed: it records an allocation, and a new pod has none"
        ),
    ]
}

fn fields() -> Vec<Row> {
    vec![
        Row {
            id: "privileged",
            did: "`securityContext.privileged: true` and a card",
            place: REFUSED,
            message: "container main is privileged: it could reach every card of the node, so no share can be held; remove securityContext.privileged, or ask for no device",
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
            message: "pod has node assigned: cards are chosen by the scheduler; remove spec.nodeName and select node `n1` with spec.nodeSelector (kubernetes.io/hostname)",
            see: || refused(&with(|pod| pod["spec"]["nodeName"] = json!("n1"))),
        },
        Row {
            id: "env-control",
            did: "environment `CUDA_DISABLE_CONTROL: \"true\"` and a card",
            place: WARNED,
            message: "container `main`: environment variable `CUDA_DISABLE_CONTROL` is removed: what a container gets of a card is stated by its resources",
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
            message: "container `main`: environment variable `NVIDIA_VISIBLE_DEVICES` is removed: what a container gets of a card is stated by its resources",
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
            message: "exceeding resource quota: namespace `small` may use 1000 of limits.nvidia.com/gpumem, 0 are in use and the pod asks for 1200; ask for at most 1000, or have the quota raised",
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
            message: "exceeding resource quota: namespace `small` may use 50 of limits.nvidia.com/gpucores, 0 are in use and the pod asks for 60; ask for at most 50, or have the quota raised",
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
            message: "annotation `hami.io/vgpu-devices-allocated` records which cards the pod was given; only the scheduler and the node agent change it. Delete the pod and create it anew to have other cards",
            see: || {
                let with = |text: &str| json!({"metadata": {"annotations": {"hami.io/vgpu-devices-allocated": text}}});
                let (old, new) = (with("GPU-a,NVIDIA,100,0:;"), with("GPU-b,NVIDIA,9000,0:;"));
                let groups = ["system:authenticated".to_owned()];
                refuse_update(&old, &new, "alice", &groups, &Settings::default(), &engine()).unwrap_or_default()
            },
        },
        Row {
            id: "resize-container",
            did: r#"annotated a running pod with `tessera.dev/resize: {"mian": {"memory": "8Gi"}}`"#,
            place: "`kubectl` refuses the change; the pod stays as it was",
            message: "annotation `tessera.dev/resize` names container `mian`, which the pod does not have; it has `main`",
            see: || resized("tessera.dev/resize", r#"{"mian": {"memory": "8Gi"}}"#),
        },
        Row {
            id: "resize-shape",
            did: r#"annotated a running pod with `tessera.dev/resize: 8Gi`"#,
            place: "`kubectl` refuses the change; the pod stays as it was",
            message: "annotation `tessera.dev/resize` is no JSON object of containers: invalid type: integer `8`, expected a map at line 1 column 1; write for example {\"main\": {\"memory\": \"8Gi\", \"cores\": 40}}",
            see: || resized("tessera.dev/resize", r#"8Gi"#),
        },
        Row {
            id: "resize-member",
            did: r#"annotated a running pod with `tessera.dev/resize: {"main": {"memori": "8Gi"}}`"#,
            place: "`kubectl` refuses the change; the pod stays as it was",
            message: "annotation `tessera.dev/resize`: container `main` has the member `memori`; known are memory, cores and priority; did you mean `memory`?",
            see: || resized("tessera.dev/resize", r#"{"main": {"memori": "8Gi"}}"#),
        },
        Row {
            id: "resize-memory",
            did: r#"annotated a running pod with `tessera.dev/resize: {"main": {"memory": "0"}}`"#,
            place: "`kubectl` refuses the change; the pod stays as it was",
            message: "annotation `tessera.dev/resize`: container `main`: memory `0` is not MiB (8192) or a size (8Gi), at least 1 MiB",
            see: || resized("tessera.dev/resize", r#"{"main": {"memory": "0"}}"#),
        },
        Row {
            id: "resize-cores",
            did: r#"annotated a running pod with `tessera.dev/resize: {"main": {"cores": 0}}`"#,
            place: "`kubectl` refuses the change; the pod stays as it was",
            message: "annotation `tessera.dev/resize`: container `main`: cores `0` is not a percentage of 1 to 100",
            see: || resized("tessera.dev/resize", r#"{"main": {"cores": 0}}"#),
        },
        Row {
            id: "resize-policy",
            did: r#"annotated a running pod with `tessera.dev/resize-policy: later`"#,
            place: "`kubectl` refuses the change; the pod stays as it was",
            message: "annotation `tessera.dev/resize-policy` is `later`; it is `refuse` or `wait`",
            see: || resized("tessera.dev/resize-policy", r#"later"#),
        },
    ]
}

/// What the webhook says of an annotation put on a running pod.
fn resized(key: &str, text: &str) -> String {
    let old = gpu(json!({"nvidia.com/gpumem": 100}));
    let mut new = old.clone();
    new["metadata"]["annotations"][key] = json!(text);
    check_resize(&old, &new).err().unwrap_or_default()
}
