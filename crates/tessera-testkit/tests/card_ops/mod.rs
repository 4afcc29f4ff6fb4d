//! Operations of the suites of classes whose nodes register card by card: AMD, Intel GPU, Gaudi.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tessera_engine::admission::{Settings, Verdict, review};
use tessera_engine::{
    AdmitSettings, Candidates, ContainerEdit, Defaults, Engine, TrialCard, Vendor, World, WriteContext,
    text as engine_text,
};
use tessera_testkit::build;
use tessera_testkit::conformance::wire_ops::{member, refused};
use tessera_testkit::conformance::{Case, Op, now};
use tessera_types::{
    Allocation, Ask, Card, CardId, CardMode, CardPolicy, CardUsage, Cores, Extras, Keyword, MemoryAsk, Mib, NodeName,
    NodePolicy, Share,
};
use tessera_vendors::{from_config, intel};
use tessera_wire::config::DeviceConfig;
use tessera_wire::{NodeView, PodView, Quantity, keys};

/// The operations.
pub(crate) const OPS: &[(&str, Op)] = &[
    ("container-request", container_request),
    ("mutate-container", mutate_container),
    ("node-devices", node_devices),
    ("class-health", class_health),
    ("fit-container", fit_container),
    ("patch-annotations", patch_annotations),
    ("class-node-score", class_node_score),
    ("add-usage", add_usage),
    ("schedule", schedule),
    ("webhook", webhook),
    ("select-group", select_group),
];

fn text(error: impl Display) -> String {
    error.to_string()
}

fn engine() -> Result<Engine, String> {
    let sections = json!({"amd": {}, "intel": {}, "gaudi": {}});
    let config: DeviceConfig = serde_json::from_value(sections).map_err(text)?;
    let defaults = Defaults {
        node_policy: NodePolicy::Binpack,
        card_policy: None,
    };
    Ok(Engine::new(from_config(&config), defaults))
}

fn class(case: &Case) -> Result<Keyword, String> {
    Keyword::new(member::<String>(&case.input, "class")?).map_err(text)
}

fn vendor<'a>(engine: &'a Engine, class: &Keyword) -> Result<&'a dyn Vendor, String> {
    engine.vendors().get(class).ok_or_else(|| format!("no class {class}"))
}

/// A pod of the one container that the case gives.
fn pod_of(case: &Case) -> Result<PodView, String> {
    let container: Value = member(&case.input, "container")?;
    PodView::from_json(&json!({"metadata": {"name": "p"}, "spec": {"containers": [container]}})).map_err(text)
}

/// An ask as the case's own class spells it: AMD's has no percentage, elsewhere 101 percent is none.
fn spelled(ask: Option<&Ask>) -> Value {
    let Some(ask) = ask else { return Value::Null };
    let amd = ask.class.as_str() == "AMD";
    let (memory, percent) = match ask.memory {
        MemoryAsk::Mib(mib) => (mib.get(), ask.percent_beside.unwrap_or(if amd { 0 } else { 101 })),
        MemoryAsk::Percent(percent) => (0, percent),
        MemoryAsk::Whole => (0, if amd { 0 } else { 100 }),
    };
    json!({"type": ask.class, "nums": ask.count, "memreq": memory, "mempercent": percent, "coresreq": ask.cores})
}

fn container_request(case: &Case) -> Result<Value, String> {
    let engine = engine()?;
    let pod = pod_of(case)?;
    let container = pod.containers.first().ok_or("no container")?;
    let error = match case.expected.get("error") {
        Some(word) => json!({"error": word}),
        None => refused(),
    };
    Ok(vendor(&engine, &class(case)?)?
        .parse(container, &pod)
        .map_or(error, |ask| json!({"request": spelled(ask.as_ref())})))
}

fn quantities(map: &BTreeMap<String, Quantity>) -> Value {
    let texts: BTreeMap<&str, String> = map
        .iter()
        .map(|(name, quantity)| (name.as_str(), quantity.to_string()))
        .collect();
    json!(texts)
}

/// Our texts begin with the reference's words and go on with what to do.
fn told(ours: &str, expected: &Value) -> String {
    let theirs = expected.as_str().unwrap_or_default();
    let same = !theirs.is_empty() && ours.starts_with(theirs);
    if same { theirs } else { ours }.to_owned()
}

fn mutate_container(case: &Case) -> Result<Value, String> {
    let engine = engine()?;
    let pod = pod_of(case)?;
    let container = pod.containers.first().ok_or("no container")?;
    let mut edit = ContainerEdit::new(container);
    let admit = vendor(&engine, &class(case)?)?.admit(&mut edit, &pod, &AdmitSettings::default());
    let edited = edit.edited();
    Ok(match admit {
        Err(error) => json!({"resource": false, "error": told(&error.to_string(), &case.expected["error"])}),
        Ok(admit) => json!({
            "resource": admit.uses_device,
            "limits": quantities(&edited.limits),
            "requests": quantities(&edited.requests),
        }),
    })
}

fn node_devices(case: &Case) -> Result<Value, String> {
    let engine = engine()?;
    let node: NodeView = member(&case.input, "node")?;
    let Ok(cards) = vendor(&engine, &class(case)?)?.decode_node(&node) else {
        // Both refuse; what HAMi says of it is for its log.
        return Ok(json!({"error": case.expected.get("error").unwrap_or(&Value::Bool(true))}));
    };
    let devices: Vec<Value> = cards
        .iter()
        .map(|card| {
            json!({
                "id": card.id, "index": card.index, "count": card.slots, "devmem": card.memory, "devcore": card.cores,
                "type": &*card.model, "numa": card.numa, "health": card.healthy, "devicevendor": card.class,
            })
        })
        .collect();
    Ok(json!({"devices": devices}))
}

/// Whether the class takes new work on the node; a register is added, since the case has the counts only.
fn class_health(case: &Case) -> Result<Value, String> {
    let engine = engine()?;
    let class = class(case)?;
    let register = vendor(&engine, &class)?.keys().register.clone().ok_or("no register")?;
    let mut node: NodeView = member(&case.input, "node")?;
    node.annotations
        .insert(register, json!([{"id": "A", "count": 1}]).to_string());
    let mut world = World::new(Arc::clone(engine.vendors()));
    world.set_node(&node);
    let snapshot = world.snapshot();
    let on_node = snapshot.node(node.name.as_str()).and_then(|node| node.class(&class));
    let healthy = on_node.is_some_and(|on_node| on_node.closed.is_none());
    Ok(json!({"healthy": healthy, "refresh": healthy}))
}

#[derive(Deserialize)]
struct Device {
    id: String,
    index: u32,
    count: u32,
    used: u32,
    totalmem: Mib,
    usedmem: Mib,
    totalcore: Cores,
    usedcores: Cores,
    #[serde(rename = "type")]
    model: String,
    numa: i32,
    health: bool,
    #[serde(default)]
    mode: String,
    #[serde(default)]
    custominfo: BTreeMap<String, Value>,
}

impl Device {
    fn usage(&self) -> CardUsage {
        CardUsage {
            slots: self.used,
            memory: self.usedmem,
            cores: self.usedcores,
            ..CardUsage::default()
        }
    }

    fn trial(self, class: &Keyword) -> TrialCard {
        let usage = self.usage();
        let spelled = |value: Value| match value {
            Value::String(text) => text,
            other => other.to_string(),
        };
        let card = Card {
            class: class.clone(),
            index: self.index,
            slots: self.count,
            memory: self.totalmem,
            cores: self.totalcore,
            model: Arc::from(self.model.as_str()),
            numa: self.numa,
            mode: CardMode::new(&self.mode),
            healthy: self.health,
            custom: self
                .custominfo
                .into_iter()
                .map(|(name, value)| (name, spelled(value)))
                .collect(),
            ..build::card(&self.id).card()
        };
        TrialCard {
            card,
            usage,
            instances: Vec::new(),
            cordoned: false,
        }
    }
}

#[derive(Deserialize)]
struct Request {
    nums: u32,
    memreq: u64,
    mempercent: u32,
    coresreq: u32,
}

fn fit_container(case: &Case) -> Result<Value, String> {
    let engine = engine()?;
    let class = class(case)?;
    let vendor = vendor(&engine, &class)?;
    let pod: PodView = member(&case.input, "pod")?;
    let cards: Vec<TrialCard> = member::<Vec<Device>>(&case.input, "devices")?
        .into_iter()
        .map(|device| device.trial(&class))
        .collect();
    let request: Request = member(&case.input, "request")?;
    let ask = Ask {
        class,
        count: request.nums,
        memory: match (request.memreq, request.mempercent) {
            (0, 0) => MemoryAsk::Whole,
            (0, percent) => MemoryAsk::Percent(percent),
            (memory, _) => MemoryAsk::Mib(Mib::new(memory)),
        },
        percent_beside: None,
        cores: Cores::new(request.coresreq),
        extra: Vec::new(),
    };
    let selection = vendor.selection(&pod).map_err(text)?;
    let policy = pod
        .annotation(keys::GPU_POLICY)
        .map(|policy| CardPolicy::parse(policy).0);
    // The cases list the cards in sorted order, which is examined from its end.
    let examined: Vec<usize> = (0..cards.len()).rev().collect();
    let outcome = engine.fit_cards(&cards, Some(&examined), &ask, &selection, policy.as_ref(), None);
    let with_index = !case.expected["devices"][0]["idx"].is_null();
    Ok(match outcome {
        Ok(given) => {
            let devices: Vec<Value> = given
                .iter()
                .filter_map(|given| {
                    let card = &cards.get(given.position)?.card;
                    let word = vendor.written_as(card);
                    let mut device =
                        json!({"uuid": card.id, "type": word, "mem": given.take.memory, "cores": given.take.cores});
                    if with_index {
                        device["idx"] = json!(card.index);
                    }
                    Some(device)
                })
                .collect();
            json!({"fit": true, "devices": devices})
        }
        Err(refusal) => json!({"fit": false, "reason": engine_text::hami_node(&refusal)}),
    })
}

/// A device as the cases write it into an allocation.
#[derive(Deserialize)]
struct Given {
    uuid: String,
    #[serde(rename = "type")]
    word: String,
    mem: Mib,
    cores: Cores,
}

fn shares(case: &Case) -> Result<Vec<Vec<Share>>, String> {
    let share = |given: Given| {
        Ok(Share {
            card: CardId::new(given.uuid).map_err(text)?,
            class: Keyword::new(given.word).map_err(text)?,
            memory: given.mem,
            cores: given.cores,
            extra: Extras::NONE,
        })
    };
    member::<Vec<Vec<Given>>>(&case.input, "containers")?
        .into_iter()
        .map(|shares| shares.into_iter().map(share).collect())
        .collect()
}

fn patch_annotations(case: &Case) -> Result<Value, String> {
    let engine = engine()?;
    let class = class(case)?;
    let containers = shares(case)?;
    // As many containers as the allocation has: the case names one only.
    let listed: Vec<Value> = (0..containers.len())
        .map(|at| json!({"name": format!("c{at}")}))
        .collect();
    let pod = json!({"metadata": case.input["pod"]["metadata"], "spec": {"containers": listed}});
    let demand = engine.demand(&PodView::from_json(&pod).map_err(text)?).map_err(text)?;
    let mut allocation = Allocation::default();
    allocation.classes.insert(class, containers);
    let node = NodeName::new("n1").map_err(text)?;
    let context = WriteContext {
        node: &node,
        now_seconds: now(),
        cards: &[],
    };
    let mut annotations = engine.annotations(&allocation, &demand, &context);
    annotations.retain(|key, _| key != keys::VGPU_NODE && key != keys::VGPU_TIME);
    Ok(json!({"annotations": annotations}))
}

fn class_node_score(case: &Case) -> Result<Value, String> {
    let engine = engine()?;
    let class = class(case)?;
    let mut world = World::new(Arc::clone(engine.vendors()));
    world.set_node(&build::node("n1").view());
    let snapshot = world.snapshot();
    let node = snapshot.node("n1").ok_or("no node")?;
    let score = vendor(&engine, &class)?.node_score(&shares(case)?, &Default::default(), node, NodePolicy::Binpack);
    Ok(json!({"score": score}))
}

fn add_usage(case: &Case) -> Result<Value, String> {
    let device: Device = member(&case.input, "device")?;
    let mut used = device.usage();
    for given in member::<Vec<Value>>(&case.input, "allocs")? {
        used = used.plus(CardUsage {
            slots: 1,
            memory: member(&given, "mem")?,
            cores: member(&given, "cores")?,
            ..CardUsage::default()
        });
    }
    Ok(json!({"used": used.slots, "usedmem": used.memory, "usedcores": used.cores}))
}

/// One pod after the other; each that is placed is there for the next.
fn schedule(case: &Case) -> Result<Value, String> {
    let engine = engine()?;
    let mut world = World::new(Arc::clone(engine.vendors()));
    for node in member::<Vec<NodeView>>(&case.input, "nodes")? {
        world.set_node(&node);
    }
    for pod in member::<Option<Vec<PodView>>>(&case.input, "existing_pods")?.unwrap_or_default() {
        let change = world.set_pod(&pod);
        if !change.booked {
            return Err(format!("an existing pod books nothing: {:?}", change.problems));
        }
    }
    let several: Option<Vec<Value>> = member(&case.input, "pods")?;
    let alone = several.is_none();
    let pods = match several {
        Some(pods) => pods,
        None => vec![member(&case.input, "pod")?],
    };
    let mut results = Vec::new();
    for mut pod in pods {
        let demand = engine.demand(&PodView::from_json(&pod).map_err(text)?).map_err(text)?;
        let snapshot = world.snapshot();
        let decision = engine.decide(&snapshot, &demand, Candidates::All);
        let Some(winner) = decision.winner() else {
            let failed: Map<String, Value> = decision
                .refused
                .iter()
                .map(|(node, refusal)| (node.to_string(), json!(engine_text::hami_node(refusal))))
                .collect();
            results.push(json!({"failed": failed}));
            continue;
        };
        let context = WriteContext {
            node: &winner.node,
            now_seconds: now(),
            cards: snapshot.node(winner.node.as_str()).map_or(&[], |node| node.cards()),
        };
        let mut annotations = engine.annotations(&winner.allocation, &demand, &context);
        for (key, value) in &annotations {
            pod["metadata"]["annotations"][key] = json!(value);
        }
        world.set_pod(&PodView::from_json(&pod).map_err(text)?);
        annotations.retain(|key, _| key != keys::VGPU_TIME && !key.starts_with(keys::TESSERA_PREFIX));
        results.push(json!({"nodes": [winner.node], "annotations": annotations}));
    }
    Ok(match results.pop() {
        Some(only) if alone => only,
        last => {
            results.extend(last);
            json!({"results": results})
        }
    })
}

fn webhook(case: &Case) -> Result<Value, String> {
    let engine = engine()?;
    let world = World::new(Arc::clone(engine.vendors()));
    let mut pod: Value = member(&case.input, "pod")?;
    let settings = Settings::default();
    let patch = match review(&pod, "default", &settings, &engine, &world.snapshot()) {
        Verdict::Deny { text, .. } => {
            return Ok(json!({"allowed": false, "message": told(&text, &case.expected["message"])}));
        }
        Verdict::Allow { patch, .. } => patch,
    };
    let operations: json_patch::Patch =
        serde_json::from_value(serde_json::to_value(patch).map_err(text)?).map_err(text)?;
    json_patch::patch(&mut pod, &operations).map_err(text)?;
    match review(&pod, "default", &settings, &engine, &world.snapshot()) {
        Verdict::Allow { patch, .. } if patch.is_empty() => {}
        again => return Err(format!("reviewed again, the answer is another: {again:?}")),
    }
    let view = PodView::from_json(&pod).map_err(text)?;
    let containers: Map<String, Value> = view
        .containers
        .iter()
        .map(|container| {
            let limits = quantities(&container.limits);
            (container.name.clone(), json!({"limits": limits}))
        })
        .collect();
    Ok(json!({
        "allowed": true,
        "annotations": view.annotations,
        "scheduler_name": view.scheduler_name.unwrap_or_default(),
        "containers": containers,
    }))
}

fn select_group(case: &Case) -> Result<Value, String> {
    let cards = member::<Vec<Value>>(&case.input, "units")?
        .iter()
        .map(|unit| {
            let mut card = build::card(&member::<String>(unit, "id")?).card();
            card.link_scores = member::<BTreeMap<CardId, i64>>(unit, "links")?;
            Ok(card)
        })
        .collect::<Result<Vec<Card>, String>>()?;
    let cards: Vec<&Card> = cards.iter().collect();
    let links = intel::units::links(&cards);
    let set = intel::units::best_linked(&links, member(&case.input, "number")?, member(&case.input, "xelink")?);
    Ok(match set {
        None => json!({"error": "NumaNotFit"}),
        Some(set) => {
            let ids: Vec<&CardId> = set.members.iter().filter_map(|at| Some(&cards.get(*at)?.id)).collect();
            json!({"ids": ids})
        }
    })
}
