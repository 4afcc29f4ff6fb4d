//! Shared GPUs of NVIDIA, AMD and Intel.

use serde_json::json;

use super::super::table::*;

pub(super) const NVIDIA: Row = Row {
    class: "NVIDIA",
    title: "NVIDIA",
    node: || {
        let card = json!({"count": 10, "devmem": 40000, "devcore": 100, "type": "NVIDIA-A100", "numa": 0, "mode": "hami-core"});
        register("hami.io/node-nvidia-register", ["GPU-a", "GPU-b"], &card)
    },
    whole: &[("nvidia.com/gpu", "1")],
    part: Some(&[
        ("nvidia.com/gpu", "1"),
        ("nvidia.com/gpumem", "20000"),
        ("nvidia.com/gpucores", "50"),
    ]),
    memory: Some(&[("nvidia.com/gpu", "1"), ("nvidia.com/gpumem", "20000")]),
    compute: Some(&[
        ("nvidia.com/gpu", "1"),
        ("nvidia.com/gpumem", "1"),
        ("nvidia.com/gpucores", "50"),
    ]),
    least: Some((&[("nvidia.com/gpu", "1"), ("nvidia.com/gpumem", "1")], 10)),
    percent: Some(&[("nvidia.com/gpu", "1"), ("nvidia.com/gpumem-percentage", "50")]),
    pair: Some(&[("nvidia.com/gpu", "2")]),
    ids: Some(("nvidia.com/use-gpuuuid", "nvidia.com/nouse-gpuuuid")),
    models: Some(("nvidia.com/use-gputype", "nvidia.com/nouse-gputype", "A100")),
    breaks: Some(HEALTHY),
    numa: Some("nvidia.com/numa-bind"),
    links: Some(Links {
        node: || {
            let card =
                json!({"count": 10, "devmem": 40000, "devcore": 100, "type": "NVIDIA-A100", "mode": "hami-core"});
            let (mut annotations, amounts) =
                register_of("hami.io/node-nvidia-register", &["GPU-a", "GPU-b", "GPU-c"], |_| {
                    card.clone()
                });
            annotations["hami.io/node-nvidia-score"] = json!(
                json!([{"uuid": "GPU-a", "score": {"GPU-b": 10, "GPU-c": 100}},
                    {"uuid": "GPU-b", "score": {"GPU-a": 10, "GPU-c": 10}},
                    {"uuid": "GPU-c", "score": {"GPU-a": 100, "GPU-b": 10}}])
                .to_string()
            );
            (annotations, amounts)
        },
        labels: &[],
        annotations: &[("hami.io/gpu-scheduler-policy", "topology-aware")],
        pair: &[("nvidia.com/gpu", "2")],
        linked: ["GPU-a", "GPU-c"],
    }),
    size: Some(Memory::Member("devmem")),
    cannot: &[(&["disagree"], NO_TABLE)],
    ..BASE
};

pub(super) const INTEL_GPU: Row = Row {
    class: "IntelGPU",
    title: "Intel GPU",
    node: || {
        let card = json!({"count": 10, "devmem": 24480, "devcore": 100, "type": "IntelGPU-Arc-Pro-B60", "numa": 0,
            "mode": "card", "custominfo": {"driver": "xe", "enf": "D"}});
        let (annotations, _) = register("hami.io/node-intel-gpu-register", ["I-a", "I-b"], &card);
        (annotations, json!({"intel.com/gpu": "20"}))
    },
    whole: &[("intel.com/gpu", "1")],
    part: Some(&[
        ("intel.com/gpu", "1"),
        ("intel.com/gpumem", "12240"),
        ("intel.com/gpucores", "50"),
    ]),
    memory: Some(&[("intel.com/gpu", "1"), ("intel.com/gpumem", "12240")]),
    compute: Some(&[
        ("intel.com/gpu", "1"),
        ("intel.com/gpumem", "1"),
        ("intel.com/gpucores", "50"),
    ]),
    least: Some((&[("intel.com/gpu", "1"), ("intel.com/gpumem", "1")], 10)),
    percent: Some(&[("intel.com/gpu", "1"), ("intel.com/gpumem-percentage", "50")]),
    pair: Some(&[("intel.com/gpu", "2")]),
    ids: Some(("intel.com/use-gpuuuid", "intel.com/nouse-gpuuuid")),
    models: Some(("intel.com/use-gputype", "intel.com/nouse-gputype", "B60")),
    breaks: Some(HEALTHY),
    numa: Some("intel.com/numa-bind"),
    links: Some(Links {
        node: || {
            let (annotations, _) = register_of("hami.io/node-intel-gpu-register", &["I-a", "I-b", "I-c"], |at| {
                let links = [json!({"I-c": 8}), json!({}), json!({"I-a": 8})];
                json!({"count": 10, "devmem": 65536, "devcore": 100, "type": "IntelGPU-Max-1550", "numa": 0,
                    "mode": "card", "custominfo": {"driver": "xe", "enf": "D", "links": links[at]}})
            });
            (annotations, json!({"intel.com/gpu": "30"}))
        },
        labels: &[],
        annotations: &[("intel.com/xelink", "true")],
        pair: &[("intel.com/gpu", "2")],
        linked: ["I-a", "I-c"],
    }),
    size: Some(Memory::Member("devmem")),
    cannot: &[(&["env"], NO_ENV), (&["disagree"], NO_TABLE)],
    ..BASE
};

pub(super) const AMD: Row = Row {
    class: "AMD",
    title: "AMD",
    node: || {
        let card = json!({"count": 10, "devmem": 196608, "devcore": 304, "type": "AMD Instinct MI300X", "numa": 0, "mode": "hami-core"});
        let (annotations, _) = register("hami.io/node-amd-register", ["A-1", "A-2"], &card);
        (annotations, json!({"amd.com/gpu": "20"}))
    },
    whole: &[("amd.com/gpu", "1")],
    part: Some(&[
        ("amd.com/gpu", "1"),
        ("amd.com/gpumem", "98304"),
        ("amd.com/gpucores", "50"),
    ]),
    memory: Some(&[
        ("amd.com/gpu", "1"),
        ("amd.com/gpumem", "98304"),
        ("amd.com/gpucores", "1"),
    ]),
    compute: Some(&[
        ("amd.com/gpu", "1"),
        ("amd.com/gpumem", "1"),
        ("amd.com/gpucores", "50"),
    ]),
    least: Some((
        &[("amd.com/gpu", "1"), ("amd.com/gpumem", "1"), ("amd.com/gpucores", "1")],
        10,
    )),
    pair: Some(&[("amd.com/gpu", "2")]),
    ids: Some(("amd.com/use-gpu-uuid", "amd.com/nouse-gpu-uuid")),
    models: Some(("amd.com/use-gputype", "amd.com/nouse-gputype", "MI300X")),
    breaks: Some(HEALTHY),
    numa: Some("amd.com/numa-bind"),
    size: Some(Memory::Member("devmem")),
    cannot: &[
        (&["quota-cores"], NO_CORES_UNIT),
        (
            &["init", "init-large"],
            "the plugin keeps what init containers were given until the pod ends",
        ),
        (&["percent"], NO_PERCENT),
        (&["links"], NO_LINKS),
        (&["disagree"], NO_TABLE),
    ],
    ..BASE
};
