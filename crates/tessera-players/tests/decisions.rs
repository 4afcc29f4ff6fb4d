//! What a player writes on a node is read by the vendor's module; what the scheduler decides is what a player gives.

#![expect(clippy::unwrap_used, reason = "the set-up of a test may end it")]

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};
use tessera_engine::{Candidates, Defaults, Engine, NodeState, World, WriteContext};
use tessera_players::answer::{Share, answer};
use tessera_players::play::{self, Choose, Part, PlayError};
use tessera_testkit::build;
use tessera_types::{NodeName, NodePolicy};
use tessera_wire::config::DeviceConfig;

/// The names and sizes of the chart, all classes on.
fn engine() -> Engine {
    let chip = |name: &str, word: &str, memory: u64, core: u32, templates: Value| {
        json!({
            "chipName": name, "commonWord": word, "resourceName": format!("huawei.com/{word}"),
            "resourceMemoryName": format!("huawei.com/{word}-memory"),
            "resourceCoreName": format!("huawei.com/{word}-core"),
            "memoryAllocatable": memory, "memoryCapacity": memory, "memoryFactor": 1, "aiCore": core,
            "templates": templates,
        })
    };
    let large = json!([{"name": "vir05_1c_16g", "memory": 16384, "aiCore": 5}, {"name": "vir10_3c_32g", "memory": 32768, "aiCore": 10}]);
    let iluvatar = |name: &str| {
        json!({
            "chipName": name, "commonWord": name, "resourceCountName": format!("iluvatar.ai/{name}-vgpu"),
            "resourceMemoryName": format!("iluvatar.ai/{name}.vMem"), "resourceCoreName": format!("iluvatar.ai/{name}.vCore"),
        })
    };
    let config = json!({
        "metax": {
            "resourceCountName": "metax-tech.com/gpu", "resourceVCountName": "metax-tech.com/sgpu",
            "resourceVMemoryName": "metax-tech.com/vmemory", "resourceVCoreName": "metax-tech.com/vcore",
        },
        "hygon": {"resourceCountName": "hygon.com/dcunum", "resourceMemoryName": "hygon.com/dcumem", "resourceCoreName": "hygon.com/dcucores"},
        "cambricon": {"resourceCountName": "cambricon.com/vmlu", "resourceMemoryName": "cambricon.com/mlu.smlu.vmemory", "resourceCoreName": "cambricon.com/mlu.smlu.vcore"},
        "mthreads": {"resourceCountName": "mthreads.com/vgpu", "resourceMemoryName": "mthreads.com/sgpu-memory", "resourceCoreName": "mthreads.com/sgpu-core"},
        "enflame": {
            "resourceNameGCU": "enflame.com/gcu", "resourceNameDRSGCU": "enflame.com/drs-gcu",
            "resourceNameGCUMemory": "enflame.com/gcu-memory", "resourceNameGCUCore": "enflame.com/gcu-core",
        },
        "kunlun": {"resourceCountName": "kunlunxin.com/xpu", "resourceVCountName": "kunlunxin.com/vxpu", "resourceVMemoryName": "kunlunxin.com/vxpu-memory"},
        "awsneuron": {"resourceCountName": "aws.amazon.com/neuron", "resourceCoreName": "aws.amazon.com/neuroncore"},
        "amd": {"resourceCountName": "amd.com/gpu", "resourceMemoryName": "amd.com/gpumem", "resourceCoreName": "amd.com/gpucores"},
        "biren": {"resourceCountName": "birentech.com/gpu"},
        "vastai": {"resourceCountName": "vastaitech.com/va"},
        "intel": {
            "resourceCountName": "intel.com/gpu", "resourceMemoryName": "intel.com/gpumem",
            "resourceMemoryPercentageName": "intel.com/gpumem-percentage", "resourceCoreName": "intel.com/gpucores",
        },
        "gaudi": {"resourceCountName": "habana.ai/gaudi"},
        "iluvatars": [iluvatar("MR-V100"), iluvatar("BI-V150")],
        "vnpus": {"configs": [
            chip("910A", "Ascend910A", 32768, 30, json!([{"name": "vir02", "memory": 2184, "aiCore": 2}])),
            chip("910B2", "Ascend910B2", 65536, 24, json!([{"name": "vir03_1c_8g", "memory": 8192, "aiCore": 3}])),
            chip("910B3", "Ascend910B3", 65536, 20, large),
            chip("910B4", "Ascend910B4", 32768, 20, json!([{"name": "vir05_1c_8g", "memory": 8192, "aiCore": 5}])),
            chip("310P3", "Ascend310P", 21527, 8, json!([{"name": "vir01", "memory": 3072, "aiCore": 1}])),
        ]},
    });
    let config: DeviceConfig = serde_json::from_value(config).unwrap();
    let defaults = Defaults {
        node_policy: NodePolicy::Binpack,
        ..Defaults::default()
    };
    Engine::new(tessera_vendors::from_config(&config), defaults)
}

fn every_part(extra: &str) -> Vec<Part> {
    play::vendors()
        .flat_map(|vendor| {
            let models: Vec<String> = play::play(vendor).unwrap().unwrap().models.into_keys().collect();
            models.into_iter().map(move |model| (vendor, model))
        })
        .flat_map(|(vendor, model)| {
            play::parts(&format!("[{{vendor: {vendor}, model: {model}, count: 2{extra}}}]")).unwrap()
        })
        .collect()
}

/// The node as the kubelet and this player make it.
fn node(parts: &[&Part]) -> build::NodeBuilder {
    let now = Timestamp::now();
    let mut node = build::node("n1");
    for part in parts {
        for (key, text) in part.node_annotations("n1", now) {
            node = node.annotation(&key, &text);
        }
        for resource in &part.play.resources {
            let number = part.ids(resource, "n1").len();
            node = node.count(&part.named(&resource.name), i64::try_from(number).unwrap());
        }
    }
    node
}

fn limits(part: &Part) -> Vec<(&str, i64)> {
    part.model
        .example
        .iter()
        .map(|(name, number)| (name.as_str(), i64::try_from(*number).unwrap()))
        .collect()
}

/// Decides for a pod on a node of these players; the annotations that it then carries.
fn decide(engine: &Engine, parts: &[&Part], pod: build::PodBuilder) -> Result<BTreeMap<String, String>, String> {
    let mut world = World::new(Arc::clone(engine.vendors()));
    world.set_node(&node(parts).view());
    let view = pod.view();
    let demand = engine.demand(&view).map_err(|error| error.to_string())?;
    let snapshot = world.snapshot();
    let decision = engine.decide(&snapshot, &demand, Candidates::All);
    assert!(
        !demand.is_empty(),
        "the pod asks for nothing: {limits:?}",
        limits = view.containers
    );
    let Some(winner) = decision.winner() else {
        return Err(format!("{decision:?}"));
    };
    let at = WriteContext {
        node: &NodeName::new("n1").unwrap(),
        now_seconds: 1_790_000_000,
        cards: snapshot.node("n1").map(NodeState::cards).unwrap_or_default(),
    };
    Ok(engine.annotations(&winner.allocation, &demand, &at))
}

#[test]
fn every_player_serves_what_the_scheduler_decided() {
    let engine = engine();
    for part in every_part("") {
        let what = format!("{} {}", part.vendor, part.model_name);
        let pod = build::pod("default", "p").container("c", &limits(&part));
        let annotations = decide(&engine, &[&part], pod).unwrap_or_else(|problem| panic!("{what}: {problem}"));
        let cards = part.cards("n1");
        let resource = &part.play.resources[0];
        let asked = part
            .model
            .example
            .get(&part.named(&resource.name))
            .copied()
            .unwrap_or(1);
        let ids: Vec<String> = part
            .ids(resource, "n1")
            .into_iter()
            .take(usize::try_from(asked).unwrap())
            .collect();
        let served = answer(&part, &cards, &annotations, 1, &[ids.clone()])
            .or_else(|_| answer(&part, &cards, &annotations, 0, &[ids]))
            .unwrap_or_else(|problem| panic!("{what}: {problem}\n{annotations:#?}"));
        assert!(served.done, "{what}: {served:?}");
        assert!(!served.containers[0].shares.is_empty(), "{what}");
        let promised = promised(&annotations);
        let given = &served.containers[0].shares;
        if promised
            .iter()
            .any(|share| cards.iter().any(|card| card.id == share.card))
            && !matches!(part.play.choose, Choose::Ids)
        {
            let names = |shares: &[Share]| shares.iter().map(|share| share.card.clone()).collect::<Vec<_>>();
            assert_eq!(names(given), names(&promised), "{what}: {annotations:#?}");
        }
    }
}

/// The shares of the allocated text, whichever class wrote it.
fn promised(annotations: &BTreeMap<String, String>) -> Vec<Share> {
    let text = annotations
        .iter()
        .find(|(key, _)| key.ends_with("-allocated") && key.starts_with("hami.io/"))
        .map(|(_, text)| text.clone())
        .unwrap_or_default();
    text.split([';', ':'])
        .filter_map(|device| match device.split(',').collect::<Vec<_>>()[..] {
            [card, _, memory, cores, ..] => Some(Share {
                card: card.to_owned(),
                memory: memory.parse().ok()?,
                cores: cores.parse().ok()?,
            }),
            _ => None,
        })
        .collect()
}

#[test]
fn old_registers_are_read_as_well() {
    let engine = engine();
    for part in every_part(", misbehave: {old: true}") {
        let pod = build::pod("default", "p").container("c", &limits(&part));
        let decided = decide(&engine, &[&part], pod);
        assert!(decided.is_ok(), "{} {}: {decided:?}", part.vendor, part.model_name);
    }
}

#[test]
fn two_makers_in_one_pod_get_their_own_cards() {
    let engine = engine();
    let parts =
        play::parts("[{vendor: ascend, model: Ascend910B3, count: 2}, {vendor: hygon, model: K100_AI, count: 2}]")
            .unwrap();
    let [npu, dcu] = &parts[..] else { panic!("two parts") };
    let pod = build::pod("default", "p")
        .container("npu", &limits(npu))
        .container("dcu", &limits(dcu));
    let annotations = decide(&engine, &[npu, dcu], pod).unwrap();
    for part in [npu, dcu] {
        let cards = part.cards("n1");
        let served = answer(part, &cards, &annotations, 0, &[vec!["any".to_owned()]]).unwrap();
        assert!(served.done, "{}", part.vendor);
        let share = &served.containers[0].shares[0];
        assert!(
            cards.iter().any(|card| card.id == share.card),
            "{share:?} is a card of {}",
            part.vendor
        );
    }
}

#[test]
fn a_number_of_devices_that_was_not_promised_is_refused() {
    let engine = engine();
    let part = &play::parts("[{vendor: hygon, model: K100_AI, count: 2}]").unwrap()[0];
    let pod = build::pod("default", "p").container("c", &limits(part));
    let annotations = decide(&engine, &[part], pod).unwrap();
    let two = vec!["a".to_owned(), "b".to_owned()];
    let refused = answer(part, &part.cards("n1"), &annotations, 0, &[two]).unwrap_err();
    assert_eq!(refused, "device number not matched: annotation has 1, request has 2");
}

#[test]
fn what_cannot_be_played_is_named_with_what_can() {
    let refused = |list: &str| play::parts(list).unwrap_err().to_string();
    assert!(matches!(play::parts("[{vendor: ascend}]"), Ok(parts) if parts[0].model_name == "Ascend310P"));
    assert!(refused("[{vendor: acme}]").starts_with("players[0].vendor `acme` is not known; one of amd, ascend,"));
    assert!(refused("[{vendor: hygon, model: K9}]").ends_with("`K9` is not a card of hygon; one of K100_AI, Z100L"),);
    assert!(refused("[{vendor: hygon, count: 0}]").contains("players[0].count is 0; a node has 1 to 16"));
    assert!(refused("[{vendor: hygon, cuont: 1}]").contains("cuont"));
    assert!(matches!(play::parts("cards: 1"), Err(PlayError::List(_))));
}
