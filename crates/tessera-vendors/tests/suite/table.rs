//! One row a class: how its nodes look, how its pods ask, and what it cannot do.

use serde_json::{Value, json};

/// Names and amounts of one container.
pub(crate) type Limits = &'static [(&'static str, &'static str)];

/// A class in the suite.
#[derive(Debug)]
pub(crate) struct Row {
    /// Keyword of the class.
    pub(crate) class: &'static str,
    /// For people.
    pub(crate) title: &'static str,
    /// What a node with [`Row::cards`] free cards says: annotations, and the status's amounts.
    pub(crate) node: fn() -> (Value, Value),
    /// How many cards.
    pub(crate) cards: usize,
    /// A whole card.
    pub(crate) whole: Limits,
    /// Half a card: two of them fill one.
    pub(crate) half: Option<Limits>,
    /// Two whole cards.
    pub(crate) pair: Option<Limits>,
    /// Annotations of every pod.
    pub(crate) annotations: Limits,
    /// Annotation keys: only these ids, none of these ids.
    pub(crate) ids: Option<(&'static str, &'static str)>,
    /// Annotation key of accepted models, and a part of the model's name.
    pub(crate) models: Option<(&'static str, &'static str)>,
    /// Replaces in the node's annotation what says that the first card works.
    pub(crate) breaks: Option<(&'static str, &'static str)>,
    /// Behaviours that the class cannot have, with the reason.
    pub(crate) cannot: Limits,
}

/// All classes on, with HAMi's names.
pub(crate) const CONFIG: &str = "
nvidia: {}
metax: {resourceCountName: metax-tech.com/gpu, resourceVCountName: metax-tech.com/sgpu, resourceVMemoryName: metax-tech.com/vmemory, resourceVCoreName: metax-tech.com/vcore}
hygon: {resourceCountName: hygon.com/dcunum, resourceMemoryName: hygon.com/dcumem, resourceCoreName: hygon.com/dcucores}
cambricon: {resourceCountName: cambricon.com/vmlu, resourceMemoryName: cambricon.com/mlu.smlu.vmemory, resourceCoreName: cambricon.com/mlu.smlu.vcore}
mthreads: {resourceCountName: mthreads.com/vgpu, resourceMemoryName: mthreads.com/sgpu-memory, resourceCoreName: mthreads.com/sgpu-core}
iluvatars: [{chipName: BI-V150, commonWord: BI-V150, resourceCountName: iluvatar.ai/BI-V150-vgpu, resourceMemoryName: iluvatar.ai/BI-V150.vMem, resourceCoreName: iluvatar.ai/BI-V150.vCore}]
enflame: {resourceNameGCU: enflame.com/gcu, resourceNameDRSGCU: enflame.com/drs-gcu, resourceNameGCUMemory: enflame.com/gcu-memory, resourceNameGCUCore: enflame.com/gcu-core}
kunlun: {resourceCountName: kunlunxin.com/xpu, resourceVCountName: kunlunxin.com/vxpu, resourceVMemoryName: kunlunxin.com/vxpu-memory}
awsneuron: {resourceCountName: aws.amazon.com/neuron, resourceCoreName: aws.amazon.com/neuroncore}
amd: {resourceCountName: amd.com/gpu, resourceMemoryName: amd.com/gpumem, resourceCoreName: amd.com/gpucores}
vastai: {resourceCountName: vastaitech.com/va}
biren: {resourceCountName: birentech.com/gpu}
intel: {resourceCountName: intel.com/gpu, resourceMemoryName: intel.com/gpumem, resourceMemoryPercentageName: intel.com/gpumem-percentage, resourceCoreName: intel.com/gpucores}
gaudi: {resourceCountName: habana.ai/gaudi}
vnpus:
  hamiVnpuCore: false
  configs:
  - {chipName: 910B3, commonWord: Ascend910B3, resourceName: huawei.com/Ascend910B3, resourceMemoryName: huawei.com/Ascend910B3-memory, resourceCoreName: huawei.com/Ascend910B3-core, memoryAllocatable: 65536, memoryCapacity: 65536, memoryFactor: 1, aiCore: 20, aiCPU: 7, templates: [{name: vir05_1c_16g, memory: 16384, aiCore: 5, aiCPU: 1}, {name: vir10_3c_32g, memory: 32768, aiCore: 10, aiCPU: 3}]}
";

/// A register in the common JSON form: two cards with these members beside id and index.
fn register(key: &str, ids: [&str; 2], members: &Value) -> (Value, Value) {
    let cards: Vec<Value> = ids
        .iter()
        .enumerate()
        .map(|(index, id)| {
            let mut card = members.clone();
            card["id"] = json!(id);
            card["index"] = json!(index);
            // A broken first card is made by replacing the text of its health.
            card["health"] = json!(true);
            card
        })
        .collect();
    (json!({key: json!(cards).to_string()}), json!({}))
}

const NO_MEMORY: &str = "units of a fixed size: memory and compute have no names";
const WHOLE_ONLY: &str = "the class gives whole cards only";
const COUNTED: &str = "the node states a number of cards, not their ids or models";
const BY_NAME: &str = "the chip is part of the resource's name";
const NO_QUOTA: &str = "what the class books is not in the unit of a quota";
/// What the first card's health looks like in the common register.
const HEALTHY: (&str, &str) = ("\"health\":true", "\"health\":false");

/// Every class.
pub(crate) const ROWS: &[Row] = &[
    Row {
        class: "NVIDIA",
        title: "NVIDIA",
        node: || {
            let card = json!({"count": 10, "devmem": 40000, "devcore": 100, "type": "NVIDIA-A100", "numa": 0, "mode": "hami-core"});
            register("hami.io/node-nvidia-register", ["GPU-a", "GPU-b"], &card)
        },
        cards: 2,
        whole: &[("nvidia.com/gpu", "1")],
        half: Some(&[
            ("nvidia.com/gpu", "1"),
            ("nvidia.com/gpumem", "20000"),
            ("nvidia.com/gpucores", "50"),
        ]),
        pair: Some(&[("nvidia.com/gpu", "2")]),
        annotations: &[],
        ids: Some(("nvidia.com/use-gpuuuid", "nvidia.com/nouse-gpuuuid")),
        models: Some(("nvidia.com/use-gputype", "A100")),
        breaks: Some(HEALTHY),
        cannot: &[],
    },
    Row {
        class: "Ascend910B3",
        title: "Huawei Ascend 910B3, templates",
        node: || {
            let card = json!({"count": 4, "devmem": 65536, "devcore": 20, "type": "Ascend910B3", "custominfo": {"NetworkID": 0}});
            register("hami.io/node-register-Ascend910B3", ["D0", "D1"], &card)
        },
        cards: 2,
        whole: &[("huawei.com/Ascend910B3", "1")],
        half: Some(&[
            ("huawei.com/Ascend910B3", "1"),
            ("huawei.com/Ascend910B3-memory", "32768"),
        ]),
        pair: Some(&[("huawei.com/Ascend910B3", "2")]),
        annotations: &[],
        ids: Some(("hami.io/use-Ascend910B3-uuid", "hami.io/no-use-Ascend910B3-uuid")),
        models: None,
        breaks: Some(HEALTHY),
        cannot: &[("models", BY_NAME)],
    },
    Row {
        class: "Ascend910B3",
        title: "Huawei Ascend 910B3, soft slices",
        node: || {
            let card = json!({"count": 4, "devmem": 65536, "devcore": 100, "type": "Ascend910B3", "custominfo": {"NetworkID": 0}});
            let (mut annotations, status) = register("hami.io/node-register-Ascend910B3", ["D0", "D1"], &card);
            annotations["hami-vnpu-core"] = json!("true");
            (annotations, status)
        },
        cards: 2,
        whole: &[("huawei.com/Ascend910B3", "1")],
        half: Some(&[
            ("huawei.com/Ascend910B3", "1"),
            ("huawei.com/Ascend910B3-memory", "32768"),
            ("huawei.com/Ascend910B3-core", "50"),
        ]),
        pair: Some(&[("huawei.com/Ascend910B3", "2")]),
        annotations: &[("huawei.com/vnpu-mode", "hami-core")],
        ids: Some(("hami.io/use-Ascend910B3-uuid", "hami.io/no-use-Ascend910B3-uuid")),
        models: None,
        breaks: Some(HEALTHY),
        cannot: &[("models", BY_NAME)],
    },
    Row {
        class: "DCU",
        title: "Hygon DCU",
        node: || {
            let text = "DCU-A,4,65520,100,DCU-K100_AI,0,true,0,hami:DCU-B,4,65520,100,DCU-K100_AI,0,true,1,hami:";
            (json!({"hami.io/node-dcu-register": text}), json!({}))
        },
        cards: 2,
        whole: &[("hygon.com/dcunum", "1")],
        half: Some(&[
            ("hygon.com/dcunum", "1"),
            ("hygon.com/dcumem", "32760"),
            ("hygon.com/dcucores", "50"),
        ]),
        pair: Some(&[("hygon.com/dcunum", "2")]),
        annotations: &[],
        ids: Some(("hygon.com/use-gpuuuid", "hygon.com/nouse-gpuuuid")),
        models: Some(("hygon.com/use-dcutype", "K100")),
        breaks: Some((",0,true,0,hami", ",0,false,0,hami")),
        cannot: &[],
    },
    Row {
        class: "Metax-GPU",
        title: "MetaX, whole cards",
        node: || (json!({}), json!({"metax-tech.com/gpu": "2"})),
        cards: 2,
        whole: &[("metax-tech.com/gpu", "1")],
        half: None,
        pair: Some(&[("metax-tech.com/gpu", "2")]),
        annotations: &[],
        ids: None,
        models: None,
        breaks: None,
        cannot: &[("half", WHOLE_ONLY), ("ids", COUNTED), ("models", COUNTED)],
    },
    Row {
        class: "Metax-SGPU",
        title: "MetaX, shares",
        node: || {
            let card = |id: &str| {
                json!({"uuid": id, "totalDevCount": 16, "totalCompute": 100, "totalVRam": 65536, "numa": 0,
                    "healthy": true, "qosPolicy": "best-effort"})
            };
            (
                json!({"metax-tech.com/node-gpu-devices": json!([card("GPU-a"), card("GPU-b")]).to_string()}),
                json!({}),
            )
        },
        cards: 2,
        whole: &[("metax-tech.com/sgpu", "1")],
        half: Some(&[
            ("metax-tech.com/sgpu", "1"),
            ("metax-tech.com/vcore", "50"),
            ("metax-tech.com/vmemory", "32"),
        ]),
        pair: Some(&[("metax-tech.com/sgpu", "2")]),
        annotations: &[],
        ids: Some(("metax-tech.com/use-gpuuuid", "metax-tech.com/nouse-gpuuuid")),
        models: None,
        breaks: Some(("\"healthy\":true", "\"healthy\":false")),
        cannot: &[("models", "the plugin does not register models")],
    },
    Row {
        class: "MLU",
        title: "Cambricon",
        node: || {
            (
                json!({}),
                json!({"cambricon.com/mlu.smlu.vcore": "200", "cambricon.com/mlu.smlu.vmemory": "180"}),
            )
        },
        cards: 2,
        whole: &[
            ("cambricon.com/vmlu", "1"),
            ("cambricon.com/mlu.smlu.vmemory", "90"),
            ("cambricon.com/mlu.smlu.vcore", "100"),
        ],
        half: Some(&[
            ("cambricon.com/vmlu", "1"),
            ("cambricon.com/mlu.smlu.vmemory", "45"),
            ("cambricon.com/mlu.smlu.vcore", "50"),
        ]),
        pair: None,
        annotations: &[],
        ids: None,
        models: None,
        breaks: None,
        cannot: &[
            ("pair", "the plugin serves one card a pod"),
            ("init", "the plugin serves one container a pod"),
            ("sidecar", "the plugin serves one container a pod"),
            ("containers", "the plugin serves one container a pod"),
            ("ids", COUNTED),
            ("models", COUNTED),
        ],
    },
    Row {
        class: "Mthreads",
        title: "Moore Threads",
        node: || {
            (
                json!({}),
                json!({"mthreads.com/sgpu-core": "32", "mthreads.com/sgpu-memory": "192"}),
            )
        },
        cards: 2,
        whole: &[
            ("mthreads.com/vgpu", "1"),
            ("mthreads.com/sgpu-memory", "96"),
            ("mthreads.com/sgpu-core", "16"),
        ],
        half: Some(&[
            ("mthreads.com/vgpu", "1"),
            ("mthreads.com/sgpu-memory", "32"),
            ("mthreads.com/sgpu-core", "8"),
        ]),
        pair: Some(&[
            ("mthreads.com/vgpu", "2"),
            ("mthreads.com/sgpu-memory", "192"),
            ("mthreads.com/sgpu-core", "32"),
        ]),
        annotations: &[],
        ids: None,
        models: None,
        breaks: None,
        cannot: &[("ids", COUNTED), ("models", COUNTED)],
    },
    Row {
        class: "BI-V150",
        title: "Iluvatar BI-V150",
        node: || {
            let text = "ix-0,100,32768,100,BI-V150,0,true,0,hami-core:ix-1,100,32768,100,BI-V150,1,true,1,hami-core:";
            (json!({"hami.io/node-BI-V150-register": text}), json!({}))
        },
        cards: 2,
        whole: &[("iluvatar.ai/BI-V150-vgpu", "1"), ("iluvatar.ai/BI-V150.vCore", "100")],
        half: Some(&[
            ("iluvatar.ai/BI-V150-vgpu", "1"),
            ("iluvatar.ai/BI-V150.vMem", "64"),
            ("iluvatar.ai/BI-V150.vCore", "50"),
        ]),
        pair: Some(&[("iluvatar.ai/BI-V150-vgpu", "2")]),
        annotations: &[],
        ids: Some(("hami.io/use-BI-V150-uuid", "hami.io/no-use-BI-V150-uuid")),
        models: None,
        breaks: Some((",0,true,0,", ",0,false,0,")),
        cannot: &[("models", BY_NAME)],
    },
    Row {
        class: "IntelGPU",
        title: "Intel GPU",
        node: || {
            let card = json!({"count": 10, "devmem": 24480, "devcore": 100, "type": "IntelGPU-Arc-Pro-B60", "numa": 0,
                "mode": "card", "custominfo": {"driver": "xe", "enf": "D"}});
            let (annotations, _) = register("hami.io/node-intel-gpu-register", ["A", "B"], &card);
            (annotations, json!({"intel.com/gpu": "20"}))
        },
        cards: 2,
        whole: &[("intel.com/gpu", "1")],
        half: Some(&[
            ("intel.com/gpu", "1"),
            ("intel.com/gpumem", "12240"),
            ("intel.com/gpucores", "50"),
        ]),
        pair: Some(&[("intel.com/gpu", "2")]),
        annotations: &[],
        ids: Some(("intel.com/use-gpuuuid", "intel.com/nouse-gpuuuid")),
        models: Some(("intel.com/use-gputype", "B60")),
        breaks: Some(HEALTHY),
        cannot: &[],
    },
    Row {
        class: "Gaudi",
        title: "Intel Gaudi",
        node: || (json!({}), json!({"habana.ai/gaudi": "2"})),
        cards: 2,
        whole: &[("habana.ai/gaudi", "1")],
        half: None,
        pair: Some(&[("habana.ai/gaudi", "2")]),
        annotations: &[],
        ids: None,
        models: None,
        breaks: None,
        cannot: &[("half", WHOLE_ONLY), ("ids", COUNTED), ("models", COUNTED)],
    },
    Row {
        class: "AMD",
        title: "AMD",
        node: || {
            let card = json!({"count": 10, "devmem": 196608, "devcore": 304, "type": "AMD Instinct MI300X", "numa": 0, "mode": "hami-core"});
            let (annotations, _) = register("hami.io/node-amd-register", ["A", "B"], &card);
            (annotations, json!({"amd.com/gpu": "20"}))
        },
        cards: 2,
        whole: &[("amd.com/gpu", "1")],
        half: Some(&[
            ("amd.com/gpu", "1"),
            ("amd.com/gpumem", "98304"),
            ("amd.com/gpucores", "50"),
        ]),
        pair: Some(&[("amd.com/gpu", "2")]),
        annotations: &[],
        ids: Some(("amd.com/use-gpu-uuid", "amd.com/nouse-gpu-uuid")),
        models: Some(("amd.com/use-gputype", "MI300X")),
        breaks: Some(HEALTHY),
        cannot: &[
            ("quota", NO_QUOTA),
            (
                "init",
                "the plugin keeps what init containers were given until the pod ends",
            ),
        ],
    },
    Row {
        class: "GCU",
        title: "Enflame, whole cards",
        node: || (json!({}), json!({"enflame.com/gcu": "2"})),
        cards: 2,
        whole: &[("enflame.com/gcu", "1")],
        half: None,
        pair: Some(&[("enflame.com/gcu", "2")]),
        annotations: &[],
        ids: None,
        models: None,
        breaks: None,
        cannot: &[("half", WHOLE_ONLY), ("ids", COUNTED), ("models", COUNTED)],
    },
    Row {
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
        cards: 2,
        whole: &[("enflame.com/drs-gcu", "6")],
        half: Some(&[("enflame.com/drs-gcu", "3")]),
        pair: None,
        annotations: &[],
        ids: None,
        models: None,
        breaks: None,
        cannot: &[
            ("pair", "a container gets one partition of one card"),
            ("unified", "slices are no exact parts of memory and compute"),
            ("ids", COUNTED),
            ("models", COUNTED),
        ],
    },
    Row {
        class: "kunlun",
        title: "Kunlunxin, whole cards",
        node: || (json!({}), json!({"kunlunxin.com/xpu": "8"})),
        cards: 8,
        whole: &[("kunlunxin.com/xpu", "1")],
        half: None,
        pair: Some(&[("kunlunxin.com/xpu", "2")]),
        annotations: &[],
        ids: None,
        models: None,
        breaks: None,
        cannot: &[
            ("init", "the plugin serves one container a pod"),
            ("half", WHOLE_ONLY),
            ("ids", COUNTED),
            ("models", COUNTED),
        ],
    },
    Row {
        class: "XPU",
        title: "Kunlunxin, virtual cards",
        node: || {
            let card = json!({"count": 4, "devmem": 98304, "devcore": 100, "type": "XPU-P800-OAM"});
            register("hami.io/node-register-xpu", ["XPU-0", "XPU-1"], &card)
        },
        cards: 2,
        whole: &[("kunlunxin.com/vxpu", "1"), ("kunlunxin.com/vxpu-memory", "98304")],
        half: Some(&[("kunlunxin.com/vxpu", "1"), ("kunlunxin.com/vxpu-memory", "49152")]),
        pair: Some(&[("kunlunxin.com/vxpu", "2"), ("kunlunxin.com/vxpu-memory", "98304")]),
        annotations: &[],
        ids: Some(("hami.io/use-xpu-uuid", "hami.io/no-use-xpu-uuid")),
        models: None,
        breaks: Some(HEALTHY),
        cannot: &[("models", "one model only")],
    },
    Row {
        class: "AWSNeuron",
        title: "AWS Neuron",
        node: || {
            (
                json!({}),
                json!({"aws.amazon.com/neuron": "2", "aws.amazon.com/neuroncore": "4"}),
            )
        },
        cards: 2,
        whole: &[("aws.amazon.com/neuron", "1")],
        half: Some(&[("aws.amazon.com/neuroncore", "1")]),
        pair: Some(&[("aws.amazon.com/neuron", "2")]),
        annotations: &[],
        ids: None,
        models: None,
        breaks: None,
        cannot: &[("ids", COUNTED), ("models", COUNTED)],
    },
    Row {
        class: "Biren",
        title: "Biren",
        node: || {
            let card = json!({"count": 1, "devmem": 65024, "type": "Biren106M", "numa": 0});
            register("hami.io/node-biren-register", ["card_0", "card_1"], &card)
        },
        cards: 2,
        whole: &[("birentech.com/gpu", "1")],
        half: None,
        pair: Some(&[("birentech.com/gpu", "2")]),
        annotations: &[],
        ids: Some(("birentech.com/use-gpuuuid", "birentech.com/nouse-gpuuuid")),
        models: Some(("birentech.com/use-biren", "106M")),
        breaks: Some(HEALTHY),
        cannot: &[("half", NO_MEMORY)],
    },
    Row {
        class: "Vastai",
        title: "Vastai",
        node: || {
            let card = json!({"count": 1, "devmem": 65536, "devcore": 100, "type": "Vastai-VA16", "numa": 0});
            register("hami.io/node-va-register", ["va-0", "va-1"], &card)
        },
        cards: 2,
        whole: &[("vastaitech.com/va", "1")],
        half: None,
        pair: Some(&[("vastaitech.com/va", "2")]),
        annotations: &[],
        ids: Some(("vastaitech.com/use-gpuuuid", "vastaitech.com/nouse-gpuuuid")),
        models: Some(("vastaitech.com/use-va", "VA16")),
        breaks: Some(HEALTHY),
        cannot: &[("half", NO_MEMORY)],
    },
];
