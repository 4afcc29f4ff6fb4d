//! One entry a class: how its node looks, how it is asked, and what can be wrong.

use serde_json::{Value, json};

/// Names and amounts of one container.
type Limits = &'static [(&'static str, &'static str)];

/// A class and its mistakes. The common ones (fractions, signs, sizes) are made of `good`, `memory`, `cores` and
/// `percent`.
#[derive(Debug)]
pub(crate) struct Maker {
    /// Heading of the page.
    pub(crate) title: &'static str,
    /// Keyword of the class.
    pub(crate) class: &'static str,
    /// Annotations and amounts of a free node.
    pub(crate) node: fn() -> (Value, Value),
    /// The annotation in which the node tells its cards, if it is one.
    pub(crate) register: Option<&'static str>,
    /// Annotations of every pod.
    pub(crate) annotations: Limits,
    /// What fits; the count is the first.
    pub(crate) good: Limits,
    /// Names of amounts.
    pub(crate) memory: Option<&'static str>,
    pub(crate) cores: Option<&'static str>,
    pub(crate) percent: Option<&'static str>,
    /// Numbers and mixtures that the class cannot give; one of the words is in the message.
    pub(crate) odd: &'static [(Limits, &'static [&'static str])],
    /// Annotations: key, value, and words of which one is in the message.
    pub(crate) choices: &'static [(&'static str, &'static str, &'static [&'static str])],
    /// What looks like a mistake and has a meaning.
    pub(crate) meant: &'static [&'static str],
}

const NONE: Maker = Maker {
    title: "",
    class: "",
    node: || (json!({}), json!({})),
    register: None,
    annotations: &[],
    good: &[],
    memory: None,
    cores: None,
    percent: None,
    odd: &[],
    choices: &[],
    meant: &[],
};

/// Chips that share the code of another: (the one in the table, the other).
pub(crate) const CHIPS: &[(&str, &str)] = &[
    ("Ascend910B3", "Ascend910B4"),
    ("Ascend910B3", "Ascend910B4-1"),
    ("BI-V150", "BI-V150S"),
    ("BI-V150", "MR-V100"),
];

/// A JSON register of two cards.
fn register(key: &str, ids: [&str; 2], members: &Value) -> (Value, Value) {
    let cards: Vec<Value> = ids
        .iter()
        .enumerate()
        .map(|(index, id)| {
            let mut card = members.clone();
            card["id"] = json!(id);
            card["index"] = json!(index);
            card["health"] = json!(true);
            card
        })
        .collect();
    (json!({key: json!(cards).to_string()}), json!({}))
}

fn npus(word: &str, memory: u32, cores: u32) -> (Value, Value) {
    let card = json!({"count": 4, "devmem": memory, "devcore": cores, "type": word, "custominfo": {"NetworkID": 0}});
    register(&format!("hami.io/node-register-{word}"), ["D0", "D1"], &card)
}

const ID: &[&str] = &["no-such-id"];
const MODEL: &[&str] = &["no-such-model"];

pub(crate) const MAKERS: &[Maker] = &[
    Maker {
        title: "NVIDIA",
        class: "NVIDIA",
        node: || (json!({}), json!({})),
        good: &[
            ("nvidia.com/gpu", "1"),
            ("nvidia.com/gpumem", "1000"),
            ("nvidia.com/gpucores", "10"),
        ],
        memory: Some("nvidia.com/gpumem"),
        cores: Some("nvidia.com/gpucores"),
        percent: Some("nvidia.com/gpumem-percentage"),
        choices: &[
            ("nvidia.com/use-gpuuuid", "no-such-id", ID),
            ("nvidia.com/use-gputype", "no-such-model", MODEL),
        ],
        ..NONE
    },
    Maker {
        title: "Huawei Ascend, templates",
        class: "Ascend910B3",
        node: || npus("Ascend910B3", 65536, 20),
        register: Some("hami.io/node-register-Ascend910B3"),
        good: &[
            ("huawei.com/Ascend910B3", "1"),
            ("huawei.com/Ascend910B3-memory", "16384"),
        ],
        memory: Some("huawei.com/Ascend910B3-memory"),
        cores: Some("huawei.com/Ascend910B3-core"),
        odd: &[
            (&[("huawei.com/Ascend910B3", "3")], &["3 wanted"]),
            (
                &[
                    ("huawei.com/Ascend910B3", "2"),
                    ("huawei.com/Ascend910B3-memory", "16384"),
                ],
                &["leave the memory out"],
            ),
            (
                &[
                    ("huawei.com/Ascend910B3", "1"),
                    ("huawei.com/Ascend910B3-memory", "70000"),
                ],
                &["huawei.com/Ascend910B3-memory", "70000"],
            ),
            (
                &[("huawei.com/Ascend910B3-memory", "16384")],
                &["huawei.com/Ascend910B3"],
            ),
        ],
        choices: &[
            ("hami.io/use-Ascend910B3-uuid", "no-such-id", ID),
            ("huawei.com/vnpu-mode", "no-such-mode", &["no-such-mode"]),
        ],
        ..NONE
    },
    Maker {
        title: "Huawei Ascend 910C",
        class: "Ascend910C",
        node: || npus("Ascend910C", 65536, 20),
        register: Some("hami.io/node-register-Ascend910C"),
        good: &[("huawei.com/Ascend910C", "2")],
        odd: &[(
            &[
                ("huawei.com/Ascend910C", "1"),
                ("huawei.com/Ascend910C-memory", "100000"),
            ],
            &["huawei.com/Ascend910C"],
        )],
        choices: &[("hami.io/use-Ascend910C-uuid", "no-such-id", ID)],
        ..NONE
    },
    Maker {
        title: "Huawei Ascend 310P",
        class: "Ascend310P",
        node: || npus("Ascend310P", 21527, 8),
        register: Some("hami.io/node-register-Ascend310P"),
        good: &[("huawei.com/Ascend310P", "1"), ("huawei.com/Ascend310P-memory", "3072")],
        memory: Some("huawei.com/Ascend310P-memory"),
        odd: &[(
            &[("huawei.com/Ascend310P", "3")],
            &["huawei.com/Ascend310P", "3 wanted"],
        )],
        choices: &[("hami.io/use-Ascend310P-uuid", "no-such-id", ID)],
        ..NONE
    },
    Maker {
        title: "Hygon DCU",
        class: "DCU",
        node: || {
            let text = "DCU-A,4,65520,100,DCU-K100_AI,0,true,0,hami:DCU-B,4,65520,100,DCU-K100_AI,0,true,1,hami:";
            (json!({"hami.io/node-dcu-register": text}), json!({}))
        },
        register: Some("hami.io/node-dcu-register"),
        good: &[
            ("hygon.com/dcunum", "1"),
            ("hygon.com/dcumem", "1000"),
            ("hygon.com/dcucores", "10"),
        ],
        memory: Some("hygon.com/dcumem"),
        cores: Some("hygon.com/dcucores"),
        choices: &[
            ("hygon.com/use-gpuuuid", "no-such-id", ID),
            ("hygon.com/use-dcutype", "no-such-model", MODEL),
        ],
        ..NONE
    },
    Maker {
        title: "MetaX, whole cards",
        class: "Metax-GPU",
        node: || (json!({}), json!({"metax-tech.com/gpu": "2"})),
        good: &[("metax-tech.com/gpu", "1")],
        odd: &[
            (&[("metax-tech.com/gpu", "3")], &["3 wanted", "metax-tech.com/gpu"]),
            (
                &[
                    ("metax-tech.com/gpu", "1"),
                    ("metax-tech.com/sgpu", "1"),
                    ("metax-tech.com/vcore", "10"),
                ],
                &["metax-tech.com/sgpu"],
            ),
        ],
        ..NONE
    },
    Maker {
        title: "MetaX, shares",
        class: "Metax-SGPU",
        node: || {
            let card = |id: &str| {
                json!({"uuid": id, "totalDevCount": 16, "totalCompute": 100, "totalVRam": 65536, "numa": 0,
                    "healthy": true, "qosPolicy": "best-effort"})
            };
            let cards = json!([card("GPU-a"), card("GPU-b")]);
            (
                json!({"metax-tech.com/node-gpu-devices": cards.to_string()}),
                json!({"metax-tech.com/sgpu": "32"}),
            )
        },
        register: Some("metax-tech.com/node-gpu-devices"),
        good: &[
            ("metax-tech.com/sgpu", "1"),
            ("metax-tech.com/vcore", "10"),
            ("metax-tech.com/vmemory", "4"),
        ],
        memory: Some("metax-tech.com/vmemory"),
        cores: Some("metax-tech.com/vcore"),
        odd: &[(&[("metax-tech.com/vmemory", "4")], &["metax-tech.com/vmemory"])],
        meant: &["metax-tech.com/vmemory: 3Gi"],
        choices: &[
            ("metax-tech.com/use-gpuuuid", "no-such-id", ID),
            ("metax-tech.com/sgpu-qos-policy", "no-such-policy", &["no-such-policy"]),
        ],
        ..NONE
    },
    Maker {
        title: "Cambricon",
        class: "MLU",
        node: || {
            let amounts = json!({"cambricon.com/mlu.smlu.vcore": "200", "cambricon.com/mlu.smlu.vmemory": "180"});
            (json!({}), amounts)
        },
        good: &[
            ("cambricon.com/vmlu", "1"),
            ("cambricon.com/mlu.smlu.vmemory", "10"),
            ("cambricon.com/mlu.smlu.vcore", "10"),
        ],
        memory: Some("cambricon.com/mlu.smlu.vmemory"),
        cores: Some("cambricon.com/mlu.smlu.vcore"),
        odd: &[(
            &[("cambricon.com/vmlu", "2"), ("cambricon.com/mlu.smlu.vmemory", "10")],
            &["cambricon.com/vmlu"],
        )],
        choices: &[("cambricon.com/use-gpuuuid", "no-such-id", ID)],
        ..NONE
    },
    Maker {
        title: "Moore Threads",
        class: "Mthreads",
        node: || {
            (
                json!({}),
                json!({"mthreads.com/sgpu-core": "32", "mthreads.com/sgpu-memory": "192"}),
            )
        },
        good: &[
            ("mthreads.com/vgpu", "1"),
            ("mthreads.com/sgpu-memory", "32"),
            ("mthreads.com/sgpu-core", "8"),
        ],
        memory: Some("mthreads.com/sgpu-memory"),
        cores: Some("mthreads.com/sgpu-core"),
        odd: &[(
            &[
                ("mthreads.com/vgpu", "2"),
                ("mthreads.com/sgpu-memory", "192"),
                ("mthreads.com/sgpu-core", "31"),
            ],
            &["mthreads.com/"],
        )],
        choices: &[("mthreads.ai/use-gpuuuid", "no-such-id", ID)],
        ..NONE
    },
    Maker {
        title: "Iluvatar",
        class: "BI-V150",
        node: || {
            let text = "ix-0,8,32768,100,BI-V150,0,true,0,hami-core:ix-1,8,32768,100,BI-V150,0,true,1,hami-core:";
            (json!({"hami.io/node-BI-V150-register": text}), json!({}))
        },
        register: Some("hami.io/node-BI-V150-register"),
        good: &[
            ("iluvatar.ai/BI-V150-vgpu", "1"),
            ("iluvatar.ai/BI-V150.vMem", "8"),
            ("iluvatar.ai/BI-V150.vCore", "10"),
        ],
        memory: Some("iluvatar.ai/BI-V150.vMem"),
        cores: Some("iluvatar.ai/BI-V150.vCore"),
        choices: &[("hami.io/use-BI-V150-uuid", "no-such-id", ID)],
        ..NONE
    },
    Maker {
        title: "Intel GPU",
        class: "IntelGPU",
        node: || {
            let card = json!({"count": 10, "devmem": 24480, "devcore": 100, "type": "IntelGPU-Arc-Pro-B60", "numa": 0,
                "mode": "card", "custominfo": {"driver": "xe", "enf": "D"}});
            let (annotations, _) = register("hami.io/node-intel-gpu-register", ["I-a", "I-b"], &card);
            (annotations, json!({"intel.com/gpu": "20"}))
        },
        register: Some("hami.io/node-intel-gpu-register"),
        good: &[
            ("intel.com/gpu", "1"),
            ("intel.com/gpumem", "1000"),
            ("intel.com/gpucores", "10"),
        ],
        memory: Some("intel.com/gpumem"),
        cores: Some("intel.com/gpucores"),
        percent: Some("intel.com/gpumem-percentage"),
        choices: &[
            ("intel.com/use-gpuuuid", "no-such-id", ID),
            ("intel.com/use-gputype", "no-such-model", MODEL),
        ],
        ..NONE
    },
    Maker {
        title: "Intel Gaudi",
        class: "Gaudi",
        node: || (json!({}), json!({"habana.ai/gaudi": "2"})),
        good: &[("habana.ai/gaudi", "1")],
        choices: &[
            ("gaudi.intel.com/use-uuid", "no-such-id", ID),
            ("gaudi.intel.com/use-type", "no-such-model", MODEL),
        ],
        ..NONE
    },
    Maker {
        title: "AMD",
        class: "AMD",
        node: || {
            let card = json!({"count": 10, "devmem": 196608, "devcore": 304, "type": "AMD Instinct MI300X", "numa": 0,
                "mode": "hami-core"});
            let (annotations, _) = register("hami.io/node-amd-register", ["A-1", "A-2"], &card);
            (annotations, json!({"amd.com/gpu": "20"}))
        },
        register: Some("hami.io/node-amd-register"),
        good: &[
            ("amd.com/gpu", "1"),
            ("amd.com/gpumem", "1000"),
            ("amd.com/gpucores", "10"),
        ],
        memory: Some("amd.com/gpumem"),
        cores: Some("amd.com/gpucores"),
        choices: &[
            ("amd.com/use-gpu-uuid", "no-such-id", ID),
            ("amd.com/use-gputype", "no-such-model", MODEL),
        ],
        ..NONE
    },
    Maker {
        title: "Enflame, whole cards",
        class: "GCU",
        node: || (json!({}), json!({"enflame.com/gcu": "2"})),
        good: &[("enflame.com/gcu", "1")],
        odd: &[(&[("enflame.com/gcu", "3")], &["3 wanted", "enflame.com/gcu"])],
        ..NONE
    },
    Maker {
        title: "Enflame, slices",
        class: "Enflame",
        node: || {
            let text = json!({"devices": [{"index": "0", "minor": "0", "capacity": 6},
                {"index": "1", "minor": "3", "capacity": 6}],
                "profiles": {"1g.8gb": "0", "2g.16gb": "1", "3g.24gb": "2", "6g.48gb": "3"}});
            (
                json!({"enflame.com/gcu-drs-capacity": text.to_string()}),
                json!({"enflame.com/drs-gcu": "12"}),
            )
        },
        register: Some("enflame.com/gcu-drs-capacity"),
        good: &[("enflame.com/drs-gcu", "1")],
        odd: &[
            (&[("enflame.com/drs-gcu", "7")], &["7 slices"]),
            (
                &[("enflame.com/gcu", "1"), ("enflame.com/drs-gcu", "1")],
                &["no GCU card"],
            ),
            (&[("enflame.com/gcu-core", "0")], &["enflame.com/gcu-core"]),
            (&[("enflame.com/gcu-memory", "-1")], &["enflame.com/gcu-memory"]),
            (&[("enflame.com/gcu-memory", "1500m")], &["enflame.com/gcu-memory"]),
        ],
        choices: &[("enflame.com/use-gpuuuid", "no-such-id", ID)],
        ..NONE
    },
    Maker {
        title: "Kunlunxin, whole cards",
        class: "kunlun",
        node: || (json!({}), json!({"kunlunxin.com/xpu": "8"})),
        good: &[("kunlunxin.com/xpu", "1")],
        odd: &[
            (&[("kunlunxin.com/xpu", "3")], &["kunlunxin.com/xpu", "3"]),
            (
                &[("kunlunxin.com/xpu", "1"), ("kunlunxin.com/vxpu", "1")],
                &["no XPU card"],
            ),
        ],
        choices: &[("baidu.com/use-gpuuuid", "no-such-id", ID)],
        ..NONE
    },
    Maker {
        title: "Kunlunxin, virtual cards",
        class: "XPU",
        node: || {
            let card = json!({"count": 4, "devmem": 98304, "devcore": 100, "type": "XPU-P800-OAM"});
            register("hami.io/node-register-xpu", ["XPU-0", "XPU-1"], &card)
        },
        register: Some("hami.io/node-register-xpu"),
        good: &[("kunlunxin.com/vxpu", "1"), ("kunlunxin.com/vxpu-memory", "24576")],
        memory: Some("kunlunxin.com/vxpu-memory"),
        odd: &[(
            &[("kunlunxin.com/vxpu", "1"), ("kunlunxin.com/vxpu-memory", "200000")],
            &["kunlunxin.com/vxpu-memory", "200000"],
        )],
        choices: &[("hami.io/use-xpu-uuid", "no-such-id", ID)],
        ..NONE
    },
    Maker {
        title: "AWS Neuron",
        class: "AWSNeuron",
        node: || {
            (
                json!({}),
                json!({"aws.amazon.com/neuron": "2", "aws.amazon.com/neuroncore": "4"}),
            )
        },
        good: &[("aws.amazon.com/neuron", "1")],
        odd: &[
            (
                &[("aws.amazon.com/neuroncore", "3")],
                &["aws.amazon.com/neuroncore", "3"],
            ),
            (&[("aws.amazon.com/neuroncore", "-1")], &["aws.amazon.com/neuroncore"]),
            (&[("aws.amazon.com/neuroncore", "500m")], &["aws.amazon.com/neuroncore"]),
            (
                &[("aws.amazon.com/neuron", "1"), ("aws.amazon.com/neuroncore", "1")],
                &["aws.amazon.com/neuroncore"],
            ),
        ],
        choices: &[("aws.amazon.com/use-neuron-uuid", "no-such-id", ID)],
        ..NONE
    },
    Maker {
        title: "Biren",
        class: "Biren",
        node: || {
            let card = json!({"count": 1, "devmem": 65024, "type": "Biren106M", "numa": 0});
            register("hami.io/node-biren-register", ["card_0", "card_1"], &card)
        },
        register: Some("hami.io/node-biren-register"),
        good: &[("birentech.com/gpu", "1")],
        choices: &[
            ("birentech.com/use-gpuuuid", "no-such-id", ID),
            ("birentech.com/use-biren", "no-such-model", MODEL),
        ],
        ..NONE
    },
    Maker {
        title: "Vastai",
        class: "Vastai",
        node: || {
            let card = json!({"count": 1, "devmem": 65536, "devcore": 100, "type": "Vastai-VA16", "numa": 0});
            register("hami.io/node-va-register", ["va-0", "va-1"], &card)
        },
        register: Some("hami.io/node-va-register"),
        good: &[("vastaitech.com/va", "1")],
        odd: &[(&[("vastaitech.com/va", "3")], &["vastaitech.com/va", "3 wanted"])],
        choices: &[
            ("vastaitech.com/use-gpuuuid", "no-such-id", ID),
            ("vastaitech.com/use-va", "no-such-model", MODEL),
        ],
        ..NONE
    },
];
