//! Cards that are given whole, and devices of cores.

use serde_json::json;

use super::super::table::*;

pub(super) const METAX_WHOLE_CARDS: Row = Row {
    class: "Metax-GPU",
    title: "MetaX, whole cards",
    node: || (json!({}), json!({"metax-tech.com/gpu": "2"})),
    whole: &[("metax-tech.com/gpu", "1")],
    pair: Some(&[("metax-tech.com/gpu", "2")]),
    cannot: &[
        (OF_PARTS, WHOLE_ONLY),
        (OF_SINGLE_CARDS, COUNTED),
        (&["ids", "unknown-id"], COUNTED),
        (&["unreadable-node"], NO_TEXT),
        (&["shrink"], NO_SIZE),
        (&["numa"], NO_NUMA),
        (
            &["links"],
            "the plugin chooses the cards; the node's score comes from its table",
        ),
        (&["env"], NO_ENV),
        (&["disagree"], NO_TABLE),
    ],
    ..BASE
};

pub(super) const INTEL_GAUDI: Row = Row {
    class: "Gaudi",
    title: "Intel Gaudi",
    node: || (json!({}), json!({"habana.ai/gaudi": "2"})),
    whole: &[("habana.ai/gaudi", "1")],
    pair: Some(&[("habana.ai/gaudi", "2")]),
    ids: Some(("gaudi.intel.com/use-uuid", "gaudi.intel.com/nouse-uuid")),
    models: Some(("gaudi.intel.com/use-type", "gaudi.intel.com/nouse-type", "Gaudi")),
    links: Some(Links {
        node: || {
            let (annotations, _) = register_of("hami.io/node-gaudi-register", &["A", "B", "C"], |at| {
                json!({"count": 1, "devmem": 98304, "devcore": 100, "type": "Gaudi2", "numa": 0, "mode": "card",
                    "custominfo": {"module": ([0, 4, 1][at])}})
            });
            (annotations, json!({"habana.ai/gaudi": "3"}))
        },
        labels: &[],
        annotations: &[],
        pair: &[("habana.ai/gaudi", "2")],
        linked: ["A", "C"],
    }),
    cannot: &[
        (OF_PARTS, WHOLE_ONLY),
        (
            &["each-card"],
            "the plugin chooses the cards, and their number is counted",
        ),
        (&["health", "recovery", "break-in-use"], COUNTED),
        (&["unreadable-node"], NO_TEXT),
        (&["shrink"], NO_SIZE),
        (&["numa"], NO_NUMA),
        (&["disagree"], NO_TABLE),
    ],
    ..BASE
};

pub(super) const ENFLAME_WHOLE_CARDS: Row = Row {
    class: "GCU",
    title: "Enflame, whole cards",
    node: || (json!({}), json!({"enflame.com/gcu": "2"})),
    whole: &[("enflame.com/gcu", "1")],
    pair: Some(&[("enflame.com/gcu", "2")]),
    cannot: &[
        (OF_PARTS, WHOLE_ONLY),
        (OF_SINGLE_CARDS, COUNTED),
        (&["ids", "unknown-id"], COUNTED),
        (&["unreadable-node"], NO_TEXT),
        (&["shrink"], NO_SIZE),
        (&["numa"], NO_NUMA),
        (&["links"], NO_LINKS),
        (&["disagree"], NO_TABLE),
    ],
    ..BASE
};

pub(super) const KUNLUNXIN_WHOLE_CARDS: Row = Row {
    class: "kunlun",
    title: "Kunlunxin, whole cards",
    node: || (json!({}), json!({"kunlunxin.com/xpu": "8"})),
    cards: 8,
    whole: &[("kunlunxin.com/xpu", "1")],
    pair: Some(&[("kunlunxin.com/xpu", "2")]),
    ids: Some(("baidu.com/use-gpuuuid", "baidu.com/nouse-gpuuuid")),
    links: Some(Links {
        node: || (json!({}), json!({"kunlunxin.com/xpu": "8"})),
        labels: &[],
        annotations: &[],
        pair: &[("kunlunxin.com/xpu", "2")],
        linked: ["n1-kunlun-0", "n1-kunlun-1"],
    }),
    cannot: &[
        (&["init", "containers", "sidecar"], ONE_CONTAINER),
        (OF_PARTS, WHOLE_ONLY),
        (OF_SINGLE_CARDS, COUNTED),
        (&["unreadable-node"], NO_TEXT),
        (&["shrink"], NO_SIZE),
        (&["numa"], NO_NUMA),
        (&["env"], NO_ENV),
        (&["disagree"], NO_TABLE),
    ],
    ..BASE
};

pub(super) const AWS_NEURON: Row = Row {
    class: "AWSNeuron",
    title: "AWS Neuron",
    node: || {
        let amounts = json!({"aws.amazon.com/neuron": "2", "aws.amazon.com/neuroncore": "4"});
        (json!({}), amounts)
    },
    whole: &[("aws.amazon.com/neuron", "1")],
    part: Some(&[("aws.amazon.com/neuroncore", "1")]),
    pair: Some(&[("aws.amazon.com/neuron", "2")]),
    ids: Some(("aws.amazon.com/use-neuron-uuid", "aws.amazon.com/nouse-neuron-uuid")),
    links: Some(Links {
        node: || {
            let amounts = json!({"aws.amazon.com/neuron": "3", "aws.amazon.com/neuroncore": "6"});
            (json!({}), amounts)
        },
        labels: &[("node.kubernetes.io/instance-type", "inf2.24xlarge")],
        annotations: &[],
        pair: &[("aws.amazon.com/neuron", "2")],
        linked: ["n1-AWSNeuron-0", "n1-AWSNeuron-1"],
    }),
    cannot: &[
        (
            &["memory", "zero-memory", "unit", "big-card", "percent"],
            "the class counts cores, not memory",
        ),
        (&["compute", "slots"], "cores are the slots: one container holds each"),
        (&["quota", "quota-edge", "quota-late", "quota-churn"], NO_MEMORY_QUOTA),
        (
            &["init-large"],
            "a pod asks for devices or for cores, and the plugin reads one list",
        ),
        (OF_SINGLE_CARDS, COUNTED),
        (&["unreadable-node"], NO_TEXT),
        (&["shrink"], NO_SIZE),
        (&["numa"], NO_NUMA),
        (&["disagree"], NO_TABLE),
    ],
    ..BASE
};

pub(super) const BIREN: Row = Row {
    class: "Biren",
    title: "Biren",
    node: || {
        let card = json!({"count": 1, "devmem": 65024, "type": "Biren106M", "numa": 0});
        register("hami.io/node-biren-register", ["card_0", "card_1"], &card)
    },
    whole: &[("birentech.com/gpu", "1")],
    pair: Some(&[("birentech.com/gpu", "2")]),
    ids: Some(("birentech.com/use-gpuuuid", "birentech.com/nouse-gpuuuid")),
    models: Some(("birentech.com/use-biren", "birentech.com/nouse-biren", "106M")),
    breaks: Some(HEALTHY),
    links: Some(Links {
        node: || {
            register_of("hami.io/node-biren-register", &["card_0", "card_1", "card_2"], |at| {
                let links = [json!(["card_2:2"]), json!([]), json!(["card_0:2"])];
                json!({"count": 1, "devmem": 65024, "type": "Biren106M", "numa": 0, "custominfo": {"links": links[at]}})
            })
        },
        labels: &[],
        annotations: &[],
        pair: &[("birentech.com/gpu", "2")],
        linked: ["card_0", "card_2"],
    }),
    cannot: &[
        (OF_PARTS, NO_AMOUNTS),
        (&["shrink"], NO_AMOUNTS),
        (&["numa"], "cards of one NUMA node are preferred, not demanded"),
        (&["env"], NO_ENV),
        (&["disagree"], NO_TABLE),
    ],
    ..BASE
};

pub(super) const VASTAI: Row = Row {
    class: "Vastai",
    title: "Vastai",
    node: || {
        let card = json!({"count": 1, "devmem": 65536, "devcore": 100, "type": "Vastai-VA16", "numa": 0});
        register("hami.io/node-va-register", ["va-0", "va-1"], &card)
    },
    whole: &[("vastaitech.com/va", "1")],
    pair: Some(&[("vastaitech.com/va", "2")]),
    ids: Some(("vastaitech.com/use-gpuuuid", "vastaitech.com/nouse-gpuuuid")),
    models: Some(("vastaitech.com/use-va", "vastaitech.com/nouse-va", "VA16")),
    breaks: Some(HEALTHY),
    links: Some(Links {
        node: || {
            register_of("hami.io/node-va-register", &["va-0", "va-1", "va-2"], |at| {
                json!({"count": 1, "devmem": 65536, "devcore": 100, "type": "Vastai-VA16", "numa": 0,
                    "custominfo": {"AIC": (["a", "b", "a"][at]), "DeviceStrategy": "die"}})
            })
        },
        labels: &[],
        annotations: &[],
        pair: &[("vastaitech.com/va", "2")],
        linked: ["va-0", "va-2"],
    }),
    cannot: &[
        (OF_PARTS, NO_AMOUNTS),
        (&["shrink"], NO_AMOUNTS),
        (&["numa"], NO_NUMA),
        (&["env"], NO_ENV),
        (&["disagree"], NO_TABLE),
    ],
    ..BASE
};
