//! Runs the recorded cases of Huawei Ascend. What only a node's plugin does is counted and printed, not run.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tessera_engine::admission::{Settings, Verdict, review};
use tessera_engine::{
    Candidates, Defaults, Engine, NodeState, TrialCard, Vendor, Vendors, World, WriteContext, text as engine_text,
};
use tessera_testkit::conformance::wire_ops::{member, refused};
use tessera_testkit::conformance::{Case, Differences, Op, Suite, now};
use tessera_types::{
    Allocation, Ask, CardId, CardPolicy, CardUsage, Cores, Demand, Extras, Keyword, MemoryAsk, Mib, NodeName,
    NodePolicy, Selection, Share, Weights,
};
use tessera_vendors::ascend::{Ascend, known_chips};
use tessera_vendors::hygon::Hygon;
use tessera_wire::{EnvValue, NodeView, PodView, Quantity, config, device_text, handshake, keys, patch};

const OPS: &[(&str, Op)] = &[
    ("container-request", container_request),
    ("webhook", webhook),
    ("fit-container", fit_container),
    ("schedule", schedule),
    ("node-devices", node_devices),
    ("class-health", class_health),
    ("class-node-score", class_node_score),
    ("patch-annotations", patch_annotations),
    ("class-names", class_names),
];

/// Of the node's plugin, which runs unchanged; our own node side for this class has no operations yet.
const ELSEWHERE: &[(&str, &str)] = &[
    ("ascend-register", "what the plugin registers"),
    ("ascend-kubelet-devices", "what the plugin tells kubelet"),
    ("ascend-allocate", "what the plugin answers to Allocate"),
    ("ascend-slot-count", "into how many slots the plugin divides an NPU"),
];

#[test]
fn every_case_is_as_the_reference_or_differs_by_design() {
    let suite = Suite::read("ascend")
        .expect("the cases are readable")
        .with(OPS)
        .without(ELSEWHERE);
    let differences = Differences::read_named("differences-ascend").expect("the differences are readable");
    let known = |id: &str| suite.cases().iter().any(|case| case.id == id);
    let leftovers: Vec<&str> = differences.unknown(known).collect();
    assert!(
        leftovers.is_empty(),
        "differences of cases that do not exist: {leftovers:?}"
    );
    let report = suite.run(&differences);
    println!("{report}");
    assert_eq!(report.failures().len(), 0, "see the table above");
}

fn text(error: impl Display) -> String {
    error.to_string()
}

/// The chart's chips with the case's overrides.
fn settings(case: &Case) -> Result<config::Ascend, String> {
    let overrides = &case.input["config"]["vnpus"];
    let configs = known_chips()
        .into_iter()
        .map(|chip| {
            let mut value = serde_json::to_value(&chip).map_err(text)?;
            if let Some(changes) = overrides["chips"].get(&chip.common_word) {
                json_patch::merge(&mut value, changes);
            }
            serde_json::from_value(value).map_err(text)
        })
        .collect::<Result<Vec<config::AscendChip>, String>>()?;
    Ok(config::Ascend {
        hami_vnpu_core: overrides["hamiVnpuCore"].as_bool().unwrap_or(false),
        configs,
    })
}

fn vendors(case: &Case) -> Result<Arc<Vendors>, String> {
    let classes = Ascend::all(&settings(case)?)
        .into_iter()
        .map(|class| Arc::new(class) as Arc<dyn Vendor>)
        .collect();
    Ok(Arc::new(Vendors::new(classes)))
}

fn engine(case: &Case) -> Result<Engine, String> {
    Ok(Engine::new(vendors(case)?, Defaults::default()))
}

fn class(case: &Case) -> Result<(Ascend, Keyword), String> {
    let keyword: Keyword = member(&case.input, "class")?;
    let class = Ascend::all(&settings(case)?)
        .into_iter()
        .find(|class| *class.keyword() == keyword);
    Ok((class.ok_or_else(|| format!("no class {keyword}"))?, keyword))
}

fn container_request(case: &Case) -> Result<Value, String> {
    let (class, _) = class(case)?;
    let pod = json!({"spec": {"containers": [member::<Value>(&case.input, "container")?]}});
    let pod = PodView::from_json(&pod).map_err(text)?;
    let container = pod.containers.first().ok_or("no container")?;
    Ok(match class.parse(container, &pod) {
        Err(_) => refused(),
        Ok(None) => json!({"request": null}),
        Ok(Some(ask)) => {
            let (memory, percent) = match ask.memory {
                MemoryAsk::Mib(mib) => (mib.get(), 0),
                MemoryAsk::Percent(percent) => (0, percent),
                MemoryAsk::Whole => (0, 100),
            };
            json!({"request": {"type": ask.class, "nums": ask.count, "memreq": memory, "mempercent": percent,
                "coresreq": ask.cores}})
        }
    })
}

fn quantities(map: &BTreeMap<String, Quantity>) -> Map<String, Value> {
    map.iter()
        .map(|(name, quantity)| {
            let number = quantity
                .as_integer()
                .map_or_else(|| quantity.to_string(), |n| n.to_string());
            (name.clone(), json!(number))
        })
        .collect()
}

fn webhook(case: &Case) -> Result<Value, String> {
    let engine = engine(case)?;
    let mut world = World::new(Arc::clone(engine.vendors()));
    for quota in member::<Option<Vec<Value>>>(&case.input, "quotas")?.unwrap_or_default() {
        let (namespace, name): (String, String) = (
            member(&quota["metadata"], "namespace")?,
            member(&quota["metadata"], "name")?,
        );
        world.set_quota(&namespace, &name, &member(&quota["spec"], "hard")?);
    }
    let mut pod: Value = member(&case.input, "pod")?;
    let patch = match review(&pod, "default", &Settings::default(), &engine, &world.snapshot()) {
        Verdict::Deny { code, text } => {
            // Our texts begin with the reference's words and go on with what to do.
            let expected = case.expected["message"].as_str().unwrap_or_default();
            let message = if !expected.is_empty() && text.starts_with(expected) {
                expected
            } else {
                &text
            };
            return Ok(json!({"allowed": false, "code": code, "message": message}));
        }
        Verdict::Allow { patch, .. } => patch,
    };
    let operations: json_patch::Patch =
        serde_json::from_value(serde_json::to_value(patch).map_err(text)?).map_err(text)?;
    json_patch::patch(&mut pod, &operations).map_err(text)?;
    if let Verdict::Allow { patch, .. } = review(&pod, "default", &Settings::default(), &engine, &world.snapshot())
        && !patch.is_empty()
    {
        return Err(format!("reviewed again, the pod is changed again: {}", json!(patch)));
    }
    let view = PodView::from_json(&pod).map_err(text)?;
    let containers: Map<String, Value> = view
        .containers
        .iter()
        .map(|container| {
            let mut env: Vec<(&String, Option<&String>)> = container
                .env
                .iter()
                .map(|(name, value)| match value {
                    EnvValue::Text(value) => (name, Some(value)),
                    EnvValue::From => (name, None),
                })
                .collect();
            env.sort();
            let mut outcome = json!({"limits": quantities(&container.limits), "env": env});
            if !container.requests.is_empty() {
                outcome["requests"] = Value::Object(quantities(&container.requests));
            }
            (container.name.clone(), outcome)
        })
        .collect();
    Ok(json!({
        "allowed": true,
        "scheduler_name": view.scheduler_name.unwrap_or_default(),
        "runtime_class_name": view.runtime_class.unwrap_or_default(),
        "containers": containers,
    }))
}

#[derive(Deserialize)]
struct Device {
    id: String,
    index: u32,
    count: u32,
    used: u32,
    totalmem: u64,
    usedmem: u64,
    totalcore: u32,
    usedcores: u32,
    #[serde(rename = "type")]
    model: String,
    numa: i32,
    health: bool,
    #[serde(default)]
    custom_info: Option<Value>,
}

impl Device {
    fn registered(&self) -> Value {
        let mut entry = json!({"id": self.id, "index": self.index, "count": self.count, "devmem": self.totalmem,
            "devcore": self.totalcore, "type": self.model, "numa": self.numa, "health": self.health});
        if let Some(custom) = &self.custom_info {
            entry["custominfo"] = custom.clone();
        }
        entry
    }

    /// The cases give sums; the shares behind them are of one size, and soft slices if any compute is held or the
    /// NPU counts percent.
    fn usage(&self, class: &Ascend) -> CardUsage {
        let soft = self.totalcore == 100 || self.usedcores > 0;
        let each = Mib::new(self.usedmem / u64::from(self.used.max(1)));
        let extra = (0..self.used).fold(Extras::NONE, |sum, _| sum.plus(class.cost(each, soft)));
        CardUsage {
            slots: self.used,
            memory: Mib::new(self.usedmem),
            cores: Cores::new(self.usedcores),
            extra,
        }
    }
}

/// A node with this register and these further annotations.
fn node(class: &Ascend, register: &[Value], annotations: &Value) -> Result<NodeView, String> {
    let key = class.keys().register.clone().ok_or("no register key")?;
    let mut object = json!({"metadata": {"name": "n1", "annotations": {key: json!(register).to_string()}}});
    if let Some(more) = annotations.as_object() {
        for (key, value) in more {
            object["metadata"]["annotations"][key] = value.clone();
        }
    }
    NodeView::from_json(&object).map_err(text)
}

fn fit_container(case: &Case) -> Result<Value, String> {
    let engine = engine(case)?;
    let (class, keyword) = class(case)?;
    let devices: Vec<Device> = member(&case.input, "devices")?;
    let register: Vec<Value> = devices.iter().map(Device::registered).collect();
    let node = node(&class, &register, &case.input["node"]["annotations"])?;
    let cards: Vec<TrialCard> = class
        .decode_node(&node)
        .map_err(text)?
        .into_iter()
        .zip(&devices)
        .map(|(card, device)| TrialCard {
            usage: device.usage(&class),
            card,
            instances: Vec::new(),
            cordoned: false,
        })
        .collect();
    let pod: PodView = member(&case.input, "pod")?;
    let request = &case.input["request"];
    let memory: u64 = member(request, "memreq")?;
    let ask = Ask {
        class: keyword.clone(),
        count: member(request, "nums")?,
        memory: if memory > 0 {
            MemoryAsk::Mib(Mib::new(memory))
        } else {
            MemoryAsk::Whole
        },
        percent_beside: None,
        cores: Cores::new(member(request, "coresreq")?),
        extra: Vec::new(),
    };
    let selection = class.selection(&pod).map_err(text)?;
    let policy = pod
        .annotation(keys::GPU_POLICY)
        .map(|policy| CardPolicy::parse(policy).0);
    // The cases list the cards in sorted order, which is examined from its end.
    let examined: Vec<usize> = (0..cards.len()).rev().collect();
    Ok(
        match engine.fit_cards(&cards, Some(&examined), &ask, &selection, policy.as_ref(), None) {
            Ok(given) => {
                let devices: Vec<Value> = given
                    .iter()
                    .filter_map(|given| {
                        let card = &cards.get(given.position)?.card;
                        Some(json!({"uuid": card.id, "type": keyword, "mem": given.take.memory, "cores": given.take.cores}))
                    })
                    .collect();
                json!({"fit": true, "devices": devices})
            }
            Err(refusal) => json!({"fit": false, "reason": engine_text::hami_node(&refusal)}),
        },
    )
}

/// A running pod that holds what its allocation texts say: limits are added so that it asks for what it has.
fn holder(vendors: &Vendors, mut pod: Value) -> Result<Value, String> {
    for vendor in vendors {
        let (Some(key), Some(count)) = (&vendor.keys().allocated, &vendor.names().count) else {
            continue;
        };
        let Some(allocated) = pod["metadata"]["annotations"][key].as_str().map(ToOwned::to_owned) else {
            continue;
        };
        for (at, shares) in device_text::parse(&allocated).map_err(text)?.iter().enumerate() {
            if !shares.is_empty() {
                pod["spec"]["containers"][at]["resources"]["limits"][count] = json!(shares.len().to_string());
            }
        }
    }
    Ok(pod)
}

fn schedule(case: &Case) -> Result<Value, String> {
    let engine = engine(case)?;
    let mut world = World::new(Arc::clone(engine.vendors()));
    let mut names = Vec::new();
    for node in member::<Vec<Value>>(&case.input, "nodes")? {
        let name: String = member(&node, "name")?;
        let object = json!({"metadata": {"name": name, "annotations": node["annotations"]}});
        world.set_node(&NodeView::from_json(&object).map_err(text)?);
        names.push(name);
    }
    for pod in member::<Option<Vec<Value>>>(&case.input, "existing_pods")?.unwrap_or_default() {
        let change = world.set_pod(&PodView::from_json(&holder(engine.vendors(), pod)?).map_err(text)?);
        if !change.booked {
            return Err(format!("an existing pod is not booked: {:?}", change.problems));
        }
    }
    let pod: PodView = member(&case.input, "pod")?;
    let Ok(demand) = engine.demand(&pod) else {
        return Ok(refused());
    };
    let decision = engine.decide(&world.snapshot(), &demand, Candidates::Names(&names));
    let Some(winner) = decision.winner() else {
        let failed: Map<String, Value> = decision
            .refused
            .iter()
            .map(|(node, refusal)| (node.to_string(), json!(engine_text::hami_node(refusal))))
            .collect();
        return Ok(json!({"failed_nodes": failed}));
    };
    let mut annotations = world_annotations(&engine, &world, &winner.node, &winner.allocation, &demand);
    annotations.retain(|key, _| key != "predicate-time");
    let labels = patch::allocation(&annotations)["metadata"]["labels"].clone();
    Ok(json!({"nodes": [winner.node], "annotations": annotations, "labels": labels}))
}

/// What is written on the pod, without the common time.
fn world_annotations(
    engine: &Engine,
    world: &World,
    node: &NodeName,
    allocation: &Allocation,
    demand: &Demand,
) -> BTreeMap<String, String> {
    let snapshot = world.snapshot();
    let at = WriteContext {
        node,
        now_seconds: now(),
        cards: snapshot.node(node.as_str()).map(NodeState::cards).unwrap_or_default(),
    };
    let mut annotations = engine.annotations(allocation, demand, &at);
    annotations.retain(|key, _| key != keys::VGPU_TIME && !key.starts_with(keys::TESSERA_PREFIX));
    annotations
}

fn node_devices(case: &Case) -> Result<Value, String> {
    let (class, _) = class(case)?;
    let node = node(&class, &[], &case.input["node"]["annotations"])?;
    let own = class.keys().register.as_deref().unwrap_or_default();
    if case.input["node"]["annotations"].get(own).is_none() {
        return Ok(refused());
    }
    let Ok(cards) = class.decode_node(&node) else {
        return Ok(refused());
    };
    let devices: Vec<Value> = cards
        .iter()
        .map(|card| {
            let custom: Map<String, Value> = card
                .custom
                .iter()
                .map(|(name, value)| {
                    (
                        name.clone(),
                        serde_json::from_str(value).unwrap_or_else(|_| json!(value)),
                    )
                })
                .collect();
            json!({"id": card.id, "index": card.index, "count": card.slots, "devmem": card.memory,
                "devcore": card.extra.get(0), "type": card.model, "numa": card.numa, "mode": card.mode,
                "health": card.healthy, "vendor": card.class, "custom_info": custom})
        })
        .collect();
    Ok(json!({"devices": devices}))
}

fn class_health(case: &Case) -> Result<Value, String> {
    let (class, _) = class(case)?;
    let object = json!({"metadata": {"name": "n1", "annotations": case.input["node"]["annotations"]},
        "status": {"allocatable": case.input["node"]["capacity"]}});
    let node = NodeView::from_json(&object).map_err(text)?;
    let key = class.keys().handshake.clone().ok_or("no handshake key")?;
    let count = class.names().count.clone().ok_or("no count name")?;
    let assessed = handshake::assess(node.annotation(&key), now(), node.allocatable_count(&count));
    let writes = if assessed.write_requesting {
        json!({key: "Requesting_{now}"})
    } else {
        json!({})
    };
    Ok(json!({"healthy": assessed.healthy, "refresh": assessed.refresh, "writes": writes}))
}

#[derive(Deserialize)]
struct Placed {
    uuid: CardId,
    mem: Mib,
    cores: Cores,
    #[serde(default)]
    custom_info: Option<Value>,
}

impl Placed {
    fn share(&self, class: &Keyword) -> Share {
        Share {
            card: self.uuid.clone(),
            class: class.clone(),
            memory: self.mem,
            cores: self.cores,
            extra: Extras::NONE,
        }
    }
}

fn shares(containers: &[Vec<Placed>], class: &Keyword) -> Vec<Vec<Share>> {
    containers
        .iter()
        .map(|container| container.iter().map(|placed| placed.share(class)).collect())
        .collect()
}

fn class_node_score(case: &Case) -> Result<Value, String> {
    let (class, keyword) = class(case)?;
    let containers: Vec<Vec<Placed>> = member(&case.input, "allocation")?;
    let mut seen = BTreeSet::new();
    let register: Vec<Value> = containers
        .iter()
        .flatten()
        .filter(|placed| seen.insert(&placed.uuid))
        .map(|placed| {
            let mut entry = json!({"id": placed.uuid, "count": 4, "devmem": placed.mem, "devcore": 20,
                "type": keyword, "health": true});
            if let Some(custom) = &placed.custom_info {
                entry["custominfo"] = custom.clone();
            }
            entry
        })
        .collect();
    let mut world = World::new(vendors(case)?);
    world.set_node(&node(&class, &register, &Value::Null)?);
    let snapshot = world.snapshot();
    let state = snapshot.node("n1").ok_or("no node")?;
    let placed = shares(&containers, &keyword);
    let score = class.node_score(&placed, &Selection::default(), state, NodePolicy::Binpack);
    Ok(json!({"score": score}))
}

fn patch_annotations(case: &Case) -> Result<Value, String> {
    let engine = engine(case)?;
    let (class, keyword) = class(case)?;
    let containers: Vec<Vec<Placed>> = member(&case.input, "containers")?;
    let mut allocation = Allocation::default();
    if !containers.is_empty() {
        allocation
            .classes
            .insert(keyword.clone(), shares(&containers, &keyword));
    }
    let pod = json!({"metadata": {"name": "p", "annotations": case.input["pod_annotations"]},
        "spec": {"containers": [{"name": "c"}]}});
    let pod = PodView::from_json(&pod).map_err(text)?;
    let demand = Demand {
        selections: vec![(keyword, class.selection(&pod).map_err(text)?)],
        weights: Weights::default(),
        ..engine.demand(&pod).map_err(text)?
    };
    let world = World::new(vendors(case)?);
    let node = NodeName::new("n1").map_err(text)?;
    let mut annotations = world_annotations(&engine, &world, &node, &allocation, &demand);
    annotations.remove(keys::VGPU_NODE);
    if let Some(time) = annotations.get_mut("predicate-time")
        && *time == now().to_string()
    {
        *time = "{unix-seconds}".to_owned();
    }
    Ok(json!({"annotations": annotations}))
}

fn class_names(case: &Case) -> Result<Value, String> {
    let settings = settings(case)?;
    let mut names = Map::new();
    for class in Ascend::all(&settings) {
        let word = class.keyword().as_str();
        let factor = settings
            .configs
            .iter()
            .find(|chip| chip.common_word == word)
            .map(|chip| chip.memory_factor);
        names.insert(
            word.to_owned(),
            json!({
                "count": class.names().count, "memory": class.names().memory, "core": class.names().cores,
                "factor": factor, "to_allocate": class.keys().to_allocate, "allocated": class.keys().allocated,
            }),
        );
    }
    // The case lists Hygon's class too.
    let hygon = Hygon::new(&config::CountMemoryCore::default());
    names.insert(
        hygon.keyword().to_string(),
        json!({
            "count": hygon.names().count, "memory": hygon.names().memory, "core": hygon.names().cores,
            "factor": hygon.names().factor(), "to_allocate": hygon.keys().to_allocate,
            "allocated": hygon.keys().allocated,
        }),
    );
    Ok(Value::Object(names))
}
