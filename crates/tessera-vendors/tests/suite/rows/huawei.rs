//! Huawei Ascend: templates and soft slices.

use serde_json::json;

use super::super::table::*;

/// NPUs of one chip, by keyword, memory and AI cores.
fn npus(word: &str, memory: u32, cores: u32) -> Picture {
    let card = json!({"count": 4, "devmem": memory, "devcore": cores, "type": word, "custominfo": {"NetworkID": 0}});
    register(&format!("hami.io/node-register-{word}"), ["D0", "D1"], &card)
}

/// Four NPUs in two rings: the first examined is alone in its ring.
fn rings(word: &str, memory: u32, cores: u32) -> Picture {
    register_of(&format!("hami.io/node-register-{word}"), &["D0", "D1", "D2"], |at| {
        json!({"count": 4, "devmem": memory, "devcore": cores, "type": word,
            "custominfo": {"NetworkID": i32::from(at == 1)}})
    })
}

/// One Ascend chip in template mode, with two NPUs.
macro_rules! npu {
    ($word:literal, $title:literal, $size:literal, $cores:literal, $part:literal, $parts:literal, $links:expr, $cannot:expr) => {
        Row {
            class: $word,
            title: $title,
            node: || npus($word, $size, $cores),
            whole: &[(concat!("huawei.com/", $word), "1")],
            part: Some(&[
                (concat!("huawei.com/", $word), "1"),
                (concat!("huawei.com/", $word, "-memory"), $part),
            ]),
            parts: $parts,
            memories: $parts,
            memory: Some(&[
                (concat!("huawei.com/", $word), "1"),
                (concat!("huawei.com/", $word, "-memory"), $part),
            ]),
            pair: Some(&[(concat!("huawei.com/", $word), "2")]),
            ids: Some((
                concat!("hami.io/use-", $word, "-uuid"),
                concat!("hami.io/no-use-", $word, "-uuid"),
            )),
            breaks: Some(HEALTHY),
            disagrees: Some((concat!("\"devmem\":", $size), "\"devmem\":8000")),
            links: $links,
            size: Some(Memory::Member("devmem")),
            cannot: $cannot,
            ..BASE
        }
    };
}

/// The two NPUs of one ring or module, beside one that is alone.
macro_rules! npu_links {
    ($word:literal, $size:literal, $cores:literal, $linked:expr) => {
        Some(Links {
            node: || rings($word, $size, $cores),
            labels: &[],
            annotations: &[],
            pair: &[(concat!("huawei.com/", $word), "2")],
            linked: $linked,
        })
    };
}

/// What no chip has in template mode.
macro_rules! npu_cannot {
    ($($more:expr),*) => {
        &[
            (&["models", "no-models"], BY_NAME),
            (&["compute", "quota-cores"], BY_TEMPLATE),
            (&["percent"], NO_PERCENT),
            (&["numa"], NO_NUMA),
            (&["big-card"], "the chip's table fixes the size of a card"),
            $($more),*
        ]
    };
}

pub(super) const HUAWEI_ASCEND_910B3_TEMPLATES: Row = npu!(
    "Ascend910B3",
    "Huawei Ascend 910B3, templates",
    65536,
    20,
    "32768",
    2,
    npu_links!("Ascend910B3", 65536, 20, ["D0", "D2"]),
    npu_cannot!((&["slots"], SLOTS_LAST))
);

pub(super) const HUAWEI_ASCEND_910B3_SOFT_SLICES: Row = Row {
    class: "Ascend910B3",
    title: "Huawei Ascend 910B3, soft slices",
    node: || {
        let (mut annotations, amounts) = npus("Ascend910B3", 65536, 100);
        annotations["hami-vnpu-core"] = json!("true");
        (annotations, amounts)
    },
    whole: &[("huawei.com/Ascend910B3", "1")],
    part: Some(&[
        ("huawei.com/Ascend910B3", "1"),
        ("huawei.com/Ascend910B3-memory", "32768"),
        ("huawei.com/Ascend910B3-core", "50"),
    ]),
    memory: Some(&[
        ("huawei.com/Ascend910B3", "1"),
        ("huawei.com/Ascend910B3-memory", "32768"),
        ("huawei.com/Ascend910B3-core", "1"),
    ]),
    compute: Some(&[
        ("huawei.com/Ascend910B3", "1"),
        ("huawei.com/Ascend910B3-memory", "1024"),
        ("huawei.com/Ascend910B3-core", "50"),
    ]),
    least: Some((
        &[
            ("huawei.com/Ascend910B3", "1"),
            ("huawei.com/Ascend910B3-memory", "1024"),
            ("huawei.com/Ascend910B3-core", "1"),
        ],
        4,
    )),
    pair: Some(&[("huawei.com/Ascend910B3", "2")]),
    annotations: &[("huawei.com/vnpu-mode", "hami-core")],
    ids: Some(("hami.io/use-Ascend910B3-uuid", "hami.io/no-use-Ascend910B3-uuid")),
    breaks: Some(HEALTHY),
    disagrees: Some(("\"devmem\":65536", "\"devmem\":8000")),
    links: npu_links!("Ascend910B3", 65536, 20, ["D0", "D2"]),
    size: Some(Memory::Member("devmem")),
    cannot: &[
        (&["models", "no-models"], BY_NAME),
        (&["percent"], NO_PERCENT),
        (&["numa"], NO_NUMA),
        (&["big-card"], "the chip's table fixes the size of a card"),
        (&["links"], "slices of several NPUs come from any"),
    ],
    ..BASE
};

pub(super) const HUAWEI_ASCEND_910B4: Row = npu!(
    "Ascend910B4",
    "Huawei Ascend 910B4",
    32768,
    20,
    "16384",
    2,
    npu_links!("Ascend910B4", 32768, 20, ["D0", "D2"]),
    npu_cannot!((&["slots"], SLOTS_LAST))
);

pub(super) const HUAWEI_ASCEND_910B4_1: Row = npu!(
    "Ascend910B4-1",
    "Huawei Ascend 910B4-1",
    65536,
    20,
    "32768",
    2,
    npu_links!("Ascend910B4-1", 65536, 20, ["D0", "D2"]),
    npu_cannot!((&["slots"], SLOTS_LAST))
);

pub(super) const HUAWEI_ASCEND_910C_TWO_A_MODULE: Row = npu!(
    "Ascend910C",
    "Huawei Ascend 910C, two a module",
    65536,
    20,
    "32768",
    2,
    npu_links!("Ascend910C", 65536, 20, ["D0", "D1"]),
    npu_cannot!((&["slots"], SLOTS_LAST))
);

pub(super) const HUAWEI_ASCEND_310P: Row = npu!(
    "Ascend310P",
    "Huawei Ascend 310P",
    21527,
    8,
    "6144",
    3,
    None,
    npu_cannot!(
        (&["slots"], SLOTS_LAST),
        (&["links"], "the chip's NPUs lie in no rings")
    )
);
