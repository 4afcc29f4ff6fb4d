//! Shared cards of Hygon, MetaX, Cambricon, Moore Threads, Enflame and Kunlunxin.

use serde_json::json;

use super::super::table::*;

pub(super) const HYGON_DCU: Row = Row {
    class: "DCU",
    title: "Hygon DCU",
    node: || {
        let text = "DCU-A,4,65520,100,DCU-K100_AI,0,true,0,hami:DCU-B,4,65520,100,DCU-K100_AI,0,true,1,hami:";
        (json!({"hami.io/node-dcu-register": text}), json!({}))
    },
    whole: &[("hygon.com/dcunum", "1")],
    part: Some(&[
        ("hygon.com/dcunum", "1"),
        ("hygon.com/dcumem", "32760"),
        ("hygon.com/dcucores", "50"),
    ]),
    memory: Some(&[
        ("hygon.com/dcunum", "1"),
        ("hygon.com/dcumem", "32760"),
        ("hygon.com/dcucores", "1"),
    ]),
    compute: Some(&[
        ("hygon.com/dcunum", "1"),
        ("hygon.com/dcumem", "1"),
        ("hygon.com/dcucores", "50"),
    ]),
    least: Some((
        &[
            ("hygon.com/dcunum", "1"),
            ("hygon.com/dcumem", "1"),
            ("hygon.com/dcucores", "1"),
        ],
        4,
    )),
    pair: Some(&[("hygon.com/dcunum", "2")]),
    ids: Some(("hygon.com/use-gpuuuid", "hygon.com/nouse-gpuuuid")),
    models: Some(("hygon.com/use-dcutype", "hygon.com/nouse-dcutype", "K100")),
    breaks: Some((",0,true,0,hami", ",0,false,0,hami")),
    size: Some(Memory::Field),
    cannot: &[
        (&["percent"], NO_PERCENT),
        (&["numa"], NO_NUMA),
        (&["links"], NO_LINKS),
        (&["env"], NO_ENV),
        (&["disagree"], NO_TABLE),
    ],
    ..BASE
};

pub(super) const METAX_SHARES: Row = Row {
    class: "Metax-SGPU",
    title: "MetaX, shares",
    node: || {
        let card = |id: &str| {
            json!({"uuid": id, "totalDevCount": 16, "totalCompute": 100, "totalVRam": 65536, "numa": 0,
                "healthy": true, "qosPolicy": "best-effort"})
        };
        let cards = json!([card("GPU-a"), card("GPU-b")]);
        let amounts = json!({"metax-tech.com/sgpu": "32"});
        (json!({"metax-tech.com/node-gpu-devices": cards.to_string()}), amounts)
    },
    whole: &[("metax-tech.com/sgpu", "1")],
    part: Some(&[
        ("metax-tech.com/sgpu", "1"),
        ("metax-tech.com/vcore", "50"),
        ("metax-tech.com/vmemory", "32"),
    ]),
    memory: Some(&[
        ("metax-tech.com/sgpu", "1"),
        ("metax-tech.com/vcore", "5"),
        ("metax-tech.com/vmemory", "32"),
    ]),
    compute: Some(&[
        ("metax-tech.com/sgpu", "1"),
        ("metax-tech.com/vcore", "50"),
        ("metax-tech.com/vmemory", "1"),
    ]),
    least: Some((
        &[
            ("metax-tech.com/sgpu", "1"),
            ("metax-tech.com/vcore", "5"),
            ("metax-tech.com/vmemory", "1"),
        ],
        16,
    )),
    pair: Some(&[("metax-tech.com/sgpu", "2")]),
    ids: Some(("metax-tech.com/use-gpuuuid", "metax-tech.com/nouse-gpuuuid")),
    breaks: Some(("\"healthy\":true", "\"healthy\":false")),
    links: Some(Links {
        node: || {
            let card = |id: &str, zone: u32| {
                json!({"uuid": id, "totalDevCount": 16, "totalCompute": 100, "totalVRam": 65536,
                    "healthy": true, "linkZone": zone})
            };
            let cards = json!([card("GPU-a", 1), card("GPU-b", 2), card("GPU-c", 1)]);
            (json!({"metax-tech.com/node-gpu-devices": cards.to_string()}), json!({}))
        },
        labels: &[],
        annotations: &[("metax-tech.com/sgpu-topology-aware", "true")],
        pair: &[("metax-tech.com/sgpu", "2")],
        linked: ["GPU-a", "GPU-c"],
    }),
    size: Some(Memory::Member("totalVRam")),
    cannot: &[
        (&["models", "no-models"], "the plugin does not register models"),
        (&["percent"], NO_PERCENT),
        (&["numa"], NO_NUMA),
        (&["disagree"], NO_TABLE),
    ],
    ..BASE
};

pub(super) const CAMBRICON: Row = Row {
    class: "MLU",
    title: "Cambricon",
    node: || {
        let amounts = json!({"cambricon.com/mlu.smlu.vcore": "200", "cambricon.com/mlu.smlu.vmemory": "180"});
        (json!({}), amounts)
    },
    whole: &[
        ("cambricon.com/vmlu", "1"),
        ("cambricon.com/mlu.smlu.vmemory", "90"),
        ("cambricon.com/mlu.smlu.vcore", "100"),
    ],
    part: Some(&[
        ("cambricon.com/vmlu", "1"),
        ("cambricon.com/mlu.smlu.vmemory", "45"),
        ("cambricon.com/mlu.smlu.vcore", "50"),
    ]),
    memory: Some(&[
        ("cambricon.com/vmlu", "1"),
        ("cambricon.com/mlu.smlu.vmemory", "45"),
        ("cambricon.com/mlu.smlu.vcore", "1"),
    ]),
    compute: Some(&[
        ("cambricon.com/vmlu", "1"),
        ("cambricon.com/mlu.smlu.vmemory", "1"),
        ("cambricon.com/mlu.smlu.vcore", "50"),
    ]),
    ids: Some(("cambricon.com/use-gpuuuid", "cambricon.com/nouse-gpuuuid")),
    size: Some(Memory::Amount("cambricon.com/mlu.smlu.vmemory")),
    cannot: &[
        (&["pair", "pairs", "numa", "links"], ONE_CARD),
        (&["init", "init-large", "sidecar", "containers"], ONE_CONTAINER),
        (OF_SINGLE_CARDS, POOLED),
        (&["slots"], SLOTS_LAST),
        (&["percent"], NO_PERCENT),
        (&["unreadable-node"], NO_TEXT),
        (&["disagree"], NO_TABLE),
    ],
    ..BASE
};

pub(super) const MOORE_THREADS: Row = Row {
    class: "Mthreads",
    title: "Moore Threads",
    node: || {
        let amounts = json!({"mthreads.com/sgpu-core": "32", "mthreads.com/sgpu-memory": "192"});
        (json!({}), amounts)
    },
    whole: &[
        ("mthreads.com/vgpu", "1"),
        ("mthreads.com/sgpu-memory", "96"),
        ("mthreads.com/sgpu-core", "16"),
    ],
    part: Some(&[
        ("mthreads.com/vgpu", "1"),
        ("mthreads.com/sgpu-memory", "32"),
        ("mthreads.com/sgpu-core", "8"),
    ]),
    memory: Some(&[
        ("mthreads.com/vgpu", "1"),
        ("mthreads.com/sgpu-memory", "32"),
        ("mthreads.com/sgpu-core", "1"),
    ]),
    memories: 3,
    compute: Some(&[
        ("mthreads.com/vgpu", "1"),
        ("mthreads.com/sgpu-memory", "2"),
        ("mthreads.com/sgpu-core", "8"),
    ]),
    pair: Some(&[
        ("mthreads.com/vgpu", "2"),
        ("mthreads.com/sgpu-memory", "192"),
        ("mthreads.com/sgpu-core", "32"),
    ]),
    ids: Some(("mthreads.ai/use-gpuuuid", "mthreads.ai/nouse-gpuuuid")),
    size: Some(Memory::Amount("mthreads.com/sgpu-memory")),
    cannot: &[
        (OF_SINGLE_CARDS, POOLED),
        (&["containers", "sidecar"], ONE_FOR_ALL),
        (&["slots"], SLOTS_LAST),
        (&["percent"], NO_PERCENT),
        (&["unreadable-node"], NO_TEXT),
        (&["numa"], NO_NUMA),
        (&["links"], NO_LINKS),
        (&["disagree"], NO_TABLE),
    ],
    ..BASE
};

pub(super) const ENFLAME_SLICES: Row = Row {
    class: "Enflame",
    title: "Enflame, slices",
    node: || {
        let text = json!({"devices": [{"index": "0", "minor": "0", "capacity": 6}, {"index": "1", "minor": "3", "capacity": 6}],
            "profiles": {"1g.8gb": "0", "2g.16gb": "1", "3g.24gb": "2", "6g.48gb": "3"}});
        (
            json!({"enflame.com/gcu-drs-capacity": text.to_string()}),
            json!({"enflame.com/drs-gcu": "12"}),
        )
    },
    whole: &[("enflame.com/drs-gcu", "6")],
    part: Some(&[("enflame.com/drs-gcu", "3")]),
    memory: Some(&[("enflame.com/gcu-memory", "24")]),
    compute: Some(&[("enflame.com/gcu-core", "50")]),
    least: Some((&[("enflame.com/drs-gcu", "1")], 6)),
    ids: Some(("enflame.com/use-gpuuuid", "enflame.com/nouse-gpuuuid")),
    cannot: &[
        (
            &["pair", "pairs", "numa", "links"],
            "a container gets one partition of one card",
        ),
        (&["unified"], "slices are no exact parts of memory and compute"),
        (
            OF_SINGLE_CARDS,
            "the node states the slices of its cards, without models and health",
        ),
        (&["percent"], NO_PERCENT),
        (&["quota", "quota-edge", "quota-late", "quota-churn"], NO_MEMORY_QUOTA),
        (&["quota-cores"], NO_CORES_QUOTA),
        (&["big-card", "shrink"], NO_SIZE),
        (
            &["compute", "unit", "zero-memory"],
            "slices are what is counted, and memory and compute go with them",
        ),
        (&["containers", "sidecar"], ONE_FOR_ALL),
        (&["disagree"], NO_TABLE),
    ],
    ..BASE
};

pub(super) const KUNLUNXIN_VIRTUAL_CARDS: Row = Row {
    class: "XPU",
    title: "Kunlunxin, virtual cards",
    node: || {
        let card = json!({"count": 4, "devmem": 98304, "devcore": 100, "type": "XPU-P800-OAM"});
        register("hami.io/node-register-xpu", ["XPU-0", "XPU-1"], &card)
    },
    whole: &[("kunlunxin.com/vxpu", "1"), ("kunlunxin.com/vxpu-memory", "98304")],
    part: Some(&[("kunlunxin.com/vxpu", "1"), ("kunlunxin.com/vxpu-memory", "49152")]),
    memory: Some(&[("kunlunxin.com/vxpu", "1"), ("kunlunxin.com/vxpu-memory", "49152")]),
    least: Some((
        &[("kunlunxin.com/vxpu", "1"), ("kunlunxin.com/vxpu-memory", "24576")],
        4,
    )),
    pair: Some(&[("kunlunxin.com/vxpu", "2"), ("kunlunxin.com/vxpu-memory", "98304")]),
    ids: Some(("hami.io/use-xpu-uuid", "hami.io/no-use-xpu-uuid")),
    breaks: Some(HEALTHY),
    disagrees: Some(("\"devmem\":98304", "\"devmem\":32768")),
    links: Some(Links {
        node: || {
            register_of(
                "hami.io/node-register-xpu",
                &["XPU-0", "XPU-1", "XPU-2"],
                |at| json!({"count": 4, "devmem": 98304, "devcore": 100, "type": "XPU-P800-OAM", "index": ([5, 3, 6][at])}),
            )
        },
        labels: &[],
        annotations: &[],
        pair: &[("kunlunxin.com/vxpu", "2"), ("kunlunxin.com/vxpu-memory", "98304")],
        linked: ["XPU-0", "XPU-2"],
    }),
    size: Some(Memory::Member("devmem")),
    cannot: &[
        (&["models", "no-models"], "one model only"),
        (&["compute", "quota-cores"], "a share's compute goes with its memory"),
        (&["card-spread"], "cards are chosen by their links, whatever the policy"),
        (&["percent"], NO_PERCENT),
        (&["numa"], NO_NUMA),
        (&["big-card"], FIXED_SIZE),
        (&["env"], NO_ENV),
    ],
    ..BASE
};
