//! Each maker's player against our own scheduling side: what it registers is what we read, and what we promise is what
//! it hands out.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod support;

use support::{Limits, Stage};
use tessera_players::template::fill;
use tessera_players::{Mischief, known};

struct Row {
    vendor: &'static str,
    entries: &'static str,
    cards: usize,
    annotations: Limits,
    /// Containers of a first pod and of a second one.
    pods: [&'static [Limits]; 2],
    /// A variable of the answer, and its text for each promised card; `None` where the plugin chooses by itself.
    shows: (&'static str, Option<&'static str>),
    /// A pod annotation after the last container.
    done: Option<(&'static str, &'static str)>,
}

const PHASE: Option<(&str, &str)> = Some(("hami.io/bind-phase", "success"));

const ROWS: &[Row] = &[
    Row {
        vendor: "ascend",
        entries: "{vendor: ascend, model: 910B3, count: 2}",
        cards: 2,
        annotations: &[],
        pods: [
            &[
                &[
                    ("huawei.com/Ascend910B3", "1"),
                    ("huawei.com/Ascend910B3-memory", "16000"),
                ],
                &[],
                &[("huawei.com/Ascend910B3", "1")],
            ],
            &[&[
                ("huawei.com/Ascend910B3", "1"),
                ("huawei.com/Ascend910B3-memory", "30000"),
            ]],
        ],
        shows: ("ASCEND_VISIBLE_DEVICES", Some("$index")),
        done: PHASE,
    },
    Row {
        vendor: "ascend-soft",
        entries: "{vendor: ascend-soft, model: 910B3, count: 2}",
        cards: 2,
        annotations: &[("huawei.com/vnpu-mode", "hami-core")],
        pods: [
            &[&[
                ("huawei.com/Ascend910B3", "1"),
                ("huawei.com/Ascend910B3-memory", "10240"),
                ("huawei.com/Ascend910B3-core", "40"),
            ]],
            &[&[
                ("huawei.com/Ascend910B3", "1"),
                ("huawei.com/Ascend910B3-memory", "20480"),
                ("huawei.com/Ascend910B3-core", "20"),
            ]],
        ],
        shows: ("ASCEND_VISIBLE_DEVICES", Some("$index")),
        done: PHASE,
    },
    Row {
        vendor: "hygon",
        entries: "{vendor: hygon, model: K100_AI, count: 2}",
        cards: 2,
        annotations: &[],
        pods: [
            &[
                &[],
                &[
                    ("hygon.com/dcunum", "1"),
                    ("hygon.com/dcumem", "2000"),
                    ("hygon.com/dcucores", "60"),
                ],
            ],
            &[&[
                ("hygon.com/dcunum", "1"),
                ("hygon.com/dcumem", "1000"),
                ("hygon.com/dcucores", "10"),
            ]],
        ],
        shows: ("SIMULATED_CARDS", Some("$id")),
        done: PHASE,
    },
    Row {
        vendor: "metax",
        entries: "{vendor: metax, model: MXC500, count: 3}",
        cards: 3,
        annotations: &[],
        pods: [
            &[
                &[
                    ("metax-tech.com/sgpu", "1"),
                    ("metax-tech.com/vcore", "50"),
                    ("metax-tech.com/vmemory", "16"),
                ],
                &[],
                &[
                    ("metax-tech.com/sgpu", "1"),
                    ("metax-tech.com/vcore", "20"),
                    ("metax-tech.com/vmemory", "8"),
                ],
            ],
            &[&[("metax-tech.com/sgpu", "1")]],
        ],
        shows: ("SIMULATED_CARDS", Some("$id")),
        done: PHASE,
    },
    Row {
        vendor: "metax-whole",
        entries: "{vendor: metax-whole, model: MXC500, count: 3}",
        cards: 3,
        annotations: &[],
        pods: [&[&[("metax-tech.com/gpu", "2")]], &[&[("metax-tech.com/gpu", "1")]]],
        shows: ("SIMULATED_CARDS", None),
        done: None,
    },
    Row {
        vendor: "intel",
        entries: "{vendor: intel, model: Arc-Pro-B60, count: 2}",
        cards: 2,
        annotations: &[],
        pods: [
            &[
                &[
                    ("intel.com/gpu", "1"),
                    ("intel.com/gpumem", "12000"),
                    ("intel.com/gpucores", "50"),
                ],
                &[("intel.com/gpu", "1"), ("intel.com/gpumem", "4000")],
            ],
            &[&[("intel.com/gpu", "2"), ("intel.com/gpumem", "1000")]],
        ],
        shows: ("SIMULATED_CARDS", Some("$id")),
        done: None,
    },
    Row {
        vendor: "gaudi",
        entries: "{vendor: gaudi, model: Gaudi3, count: 4}",
        cards: 4,
        annotations: &[],
        pods: [&[&[("habana.ai/gaudi", "2")]], &[&[("habana.ai/gaudi", "1")]]],
        shows: ("HL_VISIBLE_DEVICES_UUID", None),
        done: None,
    },
    Row {
        vendor: "cambricon",
        entries: "{vendor: cambricon, model: MLU370-X8, count: 2}",
        cards: 2,
        annotations: &[],
        pods: [
            &[&[
                ("cambricon.com/vmlu", "1"),
                ("cambricon.com/mlu.smlu.vmemory", "20"),
                ("cambricon.com/mlu.smlu.vcore", "10"),
            ]],
            &[&[
                ("cambricon.com/vmlu", "1"),
                ("cambricon.com/mlu.smlu.vmemory", "80"),
                ("cambricon.com/mlu.smlu.vcore", "95"),
            ]],
        ],
        shows: ("SIMULATED_CARDS", Some("$id")),
        done: Some(("CAMBRICON_DSMLU_ASSIGHED", "true")),
    },
    Row {
        vendor: "mthreads",
        entries: "{vendor: mthreads, model: S4000, count: 2}",
        cards: 2,
        annotations: &[],
        pods: [
            &[&[
                ("mthreads.com/vgpu", "1"),
                ("mthreads.com/sgpu-memory", "32"),
                ("mthreads.com/sgpu-core", "8"),
            ]],
            &[&[
                ("mthreads.com/vgpu", "1"),
                ("mthreads.com/sgpu-memory", "96"),
                ("mthreads.com/sgpu-core", "16"),
            ]],
        ],
        shows: ("MTHREADS_VISIBLE_DEVICES", Some("$index")),
        done: None,
    },
    Row {
        vendor: "iluvatar",
        entries: "{vendor: iluvatar, model: BI-V150, count: 2}",
        cards: 2,
        annotations: &[],
        pods: [
            &[
                &[],
                &[
                    ("iluvatar.ai/BI-V150-vgpu", "1"),
                    ("iluvatar.ai/BI-V150.vMem", "64"),
                    ("iluvatar.ai/BI-V150.vCore", "50"),
                ],
            ],
            &[&[
                ("iluvatar.ai/BI-V150-vgpu", "1"),
                ("iluvatar.ai/BI-V150.vMem", "32"),
                ("iluvatar.ai/BI-V150.vCore", "20"),
            ]],
        ],
        shows: ("IX_VISIBLE_DEVICES", Some("$id")),
        done: PHASE,
    },
    Row {
        vendor: "amd",
        entries: "{vendor: amd, model: MI300X, count: 2}",
        cards: 2,
        annotations: &[],
        pods: [
            &[&[
                ("amd.com/gpu", "1"),
                ("amd.com/gpumem", "49152"),
                ("amd.com/gpucores", "25"),
            ]],
            &[&[
                ("amd.com/gpu", "2"),
                ("amd.com/gpumem", "1000"),
                ("amd.com/gpucores", "10"),
            ]],
        ],
        shows: ("SIMULATED_CARDS", Some("$id")),
        done: PHASE,
    },
    Row {
        vendor: "enflame",
        entries: "{vendor: enflame, model: S60, count: 2}",
        cards: 2,
        annotations: &[],
        pods: [&[&[("enflame.com/drs-gcu", "3")]], &[&[("enflame.com/drs-gcu", "6")]]],
        shows: ("ENFLAME_VISIBLE_DEVICES", Some("$index")),
        done: Some(("enflame.com/gcu-assigned", "true")),
    },
    Row {
        vendor: "enflame-whole",
        entries: "{vendor: enflame-whole, model: S60, count: 3}",
        cards: 3,
        annotations: &[],
        pods: [&[&[("enflame.com/gcu", "2")]], &[&[("enflame.com/gcu", "1")]]],
        shows: ("ENFLAME_VISIBLE_DEVICES", None),
        done: None,
    },
    Row {
        vendor: "kunlun",
        entries: "{vendor: kunlun, model: P800-OAM, count: 2}",
        cards: 2,
        annotations: &[],
        pods: [
            &[&[("kunlunxin.com/vxpu", "1"), ("kunlunxin.com/vxpu-memory", "24576")]],
            &[&[("kunlunxin.com/vxpu", "1"), ("kunlunxin.com/vxpu-memory", "49152")]],
        ],
        shows: ("SIMULATED_CARDS", Some("$id")),
        done: PHASE,
    },
    Row {
        vendor: "kunlun-whole",
        entries: "{vendor: kunlun-whole, model: P800-OAM, count: 8}",
        cards: 8,
        annotations: &[],
        pods: [&[&[("kunlunxin.com/xpu", "2")]], &[&[("kunlunxin.com/xpu", "4")]]],
        shows: ("XPU_VISIBLE_DEVICES", Some("$index")),
        done: None,
    },
    Row {
        vendor: "awsneuron",
        entries: "{vendor: awsneuron, model: inf2, count: 4}",
        cards: 4,
        annotations: &[],
        pods: [
            &[&[("aws.amazon.com/neuroncore", "1")]],
            &[&[("aws.amazon.com/neuron", "2")]],
        ],
        shows: ("AWS_NEURON_VISIBLE_DEVICES", Some("$index")),
        done: Some(("NEURON_ALLOCATED", "true")),
    },
    Row {
        vendor: "biren",
        entries: "{vendor: biren, model: Biren106M, count: 3}",
        cards: 3,
        annotations: &[],
        pods: [&[&[("birentech.com/gpu", "2")]], &[&[("birentech.com/gpu", "1")]]],
        shows: ("BR_PHY_CARDS", Some("$id")),
        done: Some(("hami.io/bind-phase", "allocating")),
    },
    Row {
        vendor: "vastai",
        entries: "{vendor: vastai, model: VA16, count: 3}",
        cards: 3,
        annotations: &[],
        pods: [&[&[], &[("vastaitech.com/va", "1")]], &[&[("vastaitech.com/va", "2")]]],
        shows: ("VASTAI_VISIBLE_DEVICES", Some("$id")),
        done: PHASE,
    },
];

fn row(vendor: &str) -> &'static Row {
    ROWS.iter().find(|row| row.vendor == vendor).unwrap()
}

#[test]
fn every_player_has_a_row() {
    let rows: Vec<&str> = ROWS.iter().map(|row| row.vendor).collect();
    assert_eq!(rows.len(), known().len());
    assert!(known().iter().all(|vendor| rows.contains(vendor)));
}

/// The scheduler decides, the player hands out, twice in a row on one node.
async fn plays(row: &Row) {
    let mut stage = Stage::start(row.entries, Mischief::default()).await;
    assert_eq!(stage.cards().len(), row.cards, "{}", row.vendor);
    for (name, containers) in ["first", "second"].into_iter().zip(row.pods) {
        let vendor = row.vendor;
        let promised = stage
            .schedule(name, row.annotations, containers)
            .unwrap_or_else(|no| panic!("{vendor} {name}: {no}"));
        let got = stage
            .admit(name)
            .await
            .unwrap_or_else(|no| panic!("{vendor} {name}: {no}"));
        let mut seen = 0;
        for (shares, answers) in promised.iter().zip(&got) {
            if shares.is_empty() {
                assert!(answers.is_empty(), "{vendor} {name}: {answers:?}");
                continue;
            }
            for (resource, answer) in answers {
                seen += 1;
                let (variable, template) = row.shows;
                let shown = answer
                    .envs
                    .get(variable)
                    .unwrap_or_else(|| panic!("{vendor}: {answer:?}"));
                match template {
                    Some(template) => {
                        let cards = shares.iter().map(|share| {
                            let card = stage
                                .machine
                                .card(share.card.as_str())
                                .unwrap_or_else(|| panic!("{vendor}: {} is no card of the player", share.card));
                            fill(template, &card.words).unwrap()
                        });
                        let mut cards: Vec<String> = cards.collect();
                        let mut shown: Vec<String> = shown.split(',').map(str::to_owned).collect();
                        cards.sort();
                        shown.sort();
                        assert_eq!(shown, cards, "{vendor} {name} {resource}");
                    }
                    None => assert_eq!(shown.split(',').count(), shares.len(), "{vendor} {name} {resource}"),
                }
            }
        }
        assert!(seen > 0, "{vendor} {name}: the player was not asked");
        assert_eq!(stage.lock(), None, "{vendor} {name}: the lock is still held");
        if let Some((key, value)) = row.done {
            assert_eq!(
                stage.pod(name)["metadata"]["annotations"][key],
                value,
                "{vendor} {name}"
            );
        }
        // The pod runs from now on, so that no plugin takes it for one that waits.
        stage.runs(name);
    }
}

macro_rules! makers {
    ($($test:ident: $vendor:literal,)*) => {
        $(#[tokio::test]
        async fn $test() {
            plays(row($vendor)).await;
        })*
    };
}

makers! {
    ascend_gets_what_it_was_promised: "ascend",
    ascend_soft_slices_get_what_they_were_promised: "ascend-soft",
    hygon_gets_what_it_was_promised: "hygon",
    metax_gets_what_it_was_promised: "metax",
    metax_whole_cards_get_as_many_as_promised: "metax-whole",
    intel_gets_what_it_was_promised: "intel",
    gaudi_gets_as_many_as_promised: "gaudi",
    cambricon_gets_what_it_was_promised: "cambricon",
    mthreads_gets_what_it_was_promised: "mthreads",
    iluvatar_gets_what_it_was_promised: "iluvatar",
    amd_gets_what_it_was_promised: "amd",
    enflame_slices_get_what_they_were_promised: "enflame",
    enflame_whole_cards_get_as_many_as_promised: "enflame-whole",
    kunlun_virtual_cards_get_what_they_were_promised: "kunlun",
    kunlun_whole_cards_get_what_they_were_promised: "kunlun-whole",
    awsneuron_gets_what_it_was_promised: "awsneuron",
    biren_gets_what_it_was_promised: "biren",
    vastai_gets_what_it_was_promised: "vastai",
}

#[tokio::test]
async fn ascend_containers_learn_their_template_or_their_slice() {
    let mut stage = Stage::start(row("ascend").entries, Mischief::default()).await;
    let limits: Limits = &[
        ("huawei.com/Ascend910B3", "1"),
        ("huawei.com/Ascend910B3-memory", "16000"),
    ];
    stage.schedule("slice", &[], &[limits]).unwrap();
    let got = stage.admit("slice").await.unwrap();
    assert_eq!(
        got[0]["huawei.com/Ascend910B3"].envs["ASCEND_VNPU_SPECS"],
        "vir05_1c_16g"
    );

    let row = row("ascend-soft");
    let mut stage = Stage::start(row.entries, Mischief::default()).await;
    stage.schedule("soft", row.annotations, row.pods[0]).unwrap();
    let got = stage.admit("soft").await.unwrap();
    let envs = &got[0]["huawei.com/Ascend910B3"].envs;
    assert_eq!(
        (envs["NPU_MEM_QUOTA"].as_str(), envs["NPU_PRIORITY"].as_str()),
        ("10240", "40")
    );
    assert!(!envs.contains_key("ASCEND_VNPU_SPECS"));
}

#[tokio::test]
async fn amd_pods_get_compute_units_of_their_own() {
    let row = row("amd");
    let mut stage = Stage::start("{vendor: amd, model: MI300X}", Mischief::default()).await;
    let mut masks = Vec::new();
    for name in ["a", "b"] {
        stage.schedule(name, &[], row.pods[0]).unwrap();
        let got = stage.admit(name).await.unwrap();
        masks.push(got[0]["amd.com/gpu"].envs["HSA_CU_MASK"].clone());
        stage.runs(name);
    }
    assert_eq!(masks, ["0:0-75", "0:76-151"]);
}

#[tokio::test]
async fn the_registers_are_the_makers_own_texts() {
    let stage = Stage::start("{vendor: hygon, model: K100_AI, count: 2}", Mischief::default()).await;
    let annotations = stage.node()["metadata"]["annotations"].clone();
    let ids = stage.cards();
    let expected = format!(
        "{},4,65520,100,DCU-K100_AI,0,true,0,hami:{},4,65520,100,DCU-K100_AI,0,true,1,hami:",
        ids[0], ids[1]
    );
    assert_eq!(annotations["hami.io/node-dcu-register"], expected);
    assert!(
        annotations["hami.io/node-handshake-dcu"]
            .as_str()
            .unwrap()
            .starts_with("Reported 2")
    );

    let stage = Stage::start("{vendor: ascend, model: 310P3}", Mischief::default()).await;
    let id = &stage.machine.cards[0].id;
    assert_eq!(
        stage.node()["metadata"]["annotations"]["hami.io/node-register-Ascend310P"],
        format!(
            "[{{\"id\":\"{id}\",\"count\":7,\"devmem\":21527,\"devcore\":8,\"type\":\"Ascend310P\",\"health\":true,\"custominfo\":{{\"NetworkID\":0}}}}]"
        )
    );
    assert_eq!(id.len(), 5 * 8 + 4);
}

#[tokio::test]
async fn an_old_register_is_read_as_the_new_one() {
    for vendor in ["ascend", "hygon", "iluvatar"] {
        let row = row(vendor);
        let old = Mischief {
            old: true,
            ..Mischief::default()
        };
        let mut stage = Stage::start(row.entries, old).await;
        assert_eq!(stage.cards().len(), row.cards, "{vendor}");
        stage.schedule("first", row.annotations, row.pods[0]).unwrap();
        stage.admit("first").await.unwrap();
        assert_eq!(stage.lock(), None, "{vendor}");
    }
}

#[tokio::test]
async fn a_plugin_that_handles_a_call_twice_books_nothing_twice() {
    for vendor in ["ascend", "hygon", "cambricon"] {
        let twice = Mischief {
            twice: true,
            ..Mischief::default()
        };
        let row = row(vendor);
        let mut stage = Stage::start(row.entries, twice).await;
        let promised = stage.schedule("first", row.annotations, row.pods[1]).unwrap();
        let before = stage.booked();
        stage.admit("first").await.unwrap();
        stage.sees("first");
        assert_eq!(stage.booked(), before, "{vendor}: {promised:?}");
        assert_eq!(stage.lock(), None, "{vendor}");
    }
}

#[tokio::test]
async fn a_plugin_that_hands_out_another_card_does_not_move_the_booking() {
    let wrong = Mischief {
        wrong: true,
        ..Mischief::default()
    };
    let mut stage = Stage::start("{vendor: hygon, model: K100_AI, count: 2}", wrong).await;
    let limits: Limits = &[("hygon.com/dcunum", "1"), ("hygon.com/dcumem", "40000")];
    let promised = stage.schedule("first", &[], &[limits]).unwrap();
    let got = stage.admit("first").await.unwrap();
    assert_ne!(
        got[0]["hygon.com/dcunum"].envs["SIMULATED_CARDS"],
        promised[0][0].card.to_string()
    );
    stage.sees("first");
    // One more fits by the books, a third does not.
    stage.runs("first");
    stage.schedule("second", &[], &[limits]).unwrap();
    let no = stage.schedule("third", &[], &[limits]).unwrap_err();
    assert!(no.contains("memory"), "{no}");
}

#[tokio::test]
async fn a_late_plugin_keeps_the_lock_until_it_has_answered() {
    let late = Mischief {
        late: Some(std::time::Duration::from_millis(200)),
        ..Mischief::default()
    };
    let row = row("hygon");
    let mut stage = Stage::start(row.entries, late).await;
    stage.schedule("first", &[], row.pods[1]).unwrap();
    let held = stage.lock();
    let (got, during) = tokio::join!(stage.admit("first"), async { stage.lock() });
    assert_eq!(during, held);
    got.unwrap();
    assert_eq!(stage.lock(), None);
}

#[tokio::test]
async fn a_dead_plugin_leaves_no_device_and_its_node_takes_nothing_new() {
    let dead = Mischief {
        dead_after: Some(std::time::Duration::from_millis(300)),
        ..Mischief::default()
    };
    let mut stage = Stage::start("{vendor: intel, model: Arc-Pro-B60}", dead).await;
    let gone = stage
        .kubelet
        .await_devices("intel.com/gpu", std::time::Duration::from_secs(20), <[_]>::is_empty)
        .await;
    assert_eq!(gone.unwrap().len(), 0);
    stage.set_allocatable("intel.com/gpu", "0");
    let no = stage.schedule("first", &[], &[&[("intel.com/gpu", "1")]]).unwrap_err();
    assert!(
        no.contains("plugin") || no.contains("health") || no.contains("serve"),
        "{no}"
    );
}

#[tokio::test]
async fn a_refusal_writes_the_phase_and_gives_the_lock_back() {
    let mut stage = Stage::start("{vendor: hygon, model: K100_AI, count: 2}", Mischief::default()).await;
    stage.schedule("first", &[], &[&[("hygon.com/dcunum", "1")]]).unwrap();
    stage.annotate("first", "hami.io/dcu-devices-to-allocate", "DCU-nobody,DCU,1,1:;");
    let no = stage.admit("first").await.unwrap_err();
    assert!(no.contains("unknown uuid: DCU-nobody"), "{no}");
    assert_eq!(
        stage.pod("first")["metadata"]["annotations"]["hami.io/bind-phase"],
        "failed"
    );
    assert_eq!(stage.lock(), None);
}
