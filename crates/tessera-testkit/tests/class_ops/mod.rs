//! Operations that are the same for every device class: the case names the class, the registry answers.
//!
//! A case of these files was recorded with the chart's default names of all classes; `config` overrides sections.

#[allow(dead_code, reason = "the parts that other suites use")]
#[path = "../ops/serve.rs"]
pub(crate) mod serve;

pub(crate) mod bind;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tessera_engine::admission::{Settings, Verdict, review};
use tessera_engine::{
    Candidates, Defaults, Earlier, Engine, Take, TrialCard, Vendor, Vendors, World, WriteContext, text as engine_text,
};
use tessera_testkit::build;
use tessera_testkit::conformance::wire_ops::{member, refused};
use tessera_testkit::conformance::{Case, Op, now};
use tessera_types::{
    Allocation, Ask, Card, CardId, CardMode, CardPolicy, CardUsage, ContainerRole, Cores, Keyword, MemoryAsk, Mib,
    NodeName, NodePolicy, Share,
};
use tessera_vendors::from_config;
use tessera_wire::config::DeviceConfig;
use tessera_wire::{EnvValue, NodeView, PodView, keys, patch};

/// The operations.
pub(crate) const OPS: &[(&str, Op)] = &[
    ("container-request", container_request),
    ("node-devices", node_devices),
    ("class-health", class_health),
    ("fit-container", fit_container),
    ("patch-annotations", patch_annotations),
    ("class-node-score", class_node_score),
    ("webhook", webhook),
    ("schedule", schedule),
    ("sequence", sequence),
    ("bind", bind::bind),
];

/// Any error as text.
pub(crate) fn text(error: impl Display) -> String {
    error.to_string()
}

fn vendors(case: &Case) -> Result<Arc<Vendors>, String> {
    let mut sections = json!({"nvidia": {}, "hygon": {}, "cambricon": {}, "mthreads": {}});
    if let Some(Value::Object(overrides)) = case.input.get("config") {
        for (section, settings) in overrides {
            sections[section] = settings.clone();
        }
    }
    let config: DeviceConfig = serde_json::from_value(sections).map_err(text)?;
    Ok(from_config(&config))
}

/// An engine with all classes of the case.
pub(crate) fn engine(case: &Case) -> Result<Engine, String> {
    let defaults = Defaults {
        node_policy: NodePolicy::Binpack,
        card_policy: None,
    };
    Ok(Engine::new(vendors(case)?, defaults))
}

fn class(case: &Case) -> Result<Keyword, String> {
    Keyword::new(member::<String>(&case.input, "class")?).map_err(text)
}

fn vendor<'a>(vendors: &'a Vendors, class: &Keyword) -> Result<&'a dyn Vendor, String> {
    vendors.get(class).ok_or_else(|| format!("no class {class}"))
}

/// Keeps of an outcome's `optional` members those that the case looks at.
fn as_asked(mut outcome: Value, expected: &Value, optional: &[&str]) -> Value {
    if let Some(members) = outcome.as_object_mut() {
        members.retain(|name, _| !optional.contains(&name.as_str()) || expected.get(name).is_some());
    }
    outcome
}

/// An ask in the cases' spelling, where a percentage that is not given is 0.
fn spelled(ask: Option<&Ask>) -> Value {
    let Some(ask) = ask else { return Value::Null };
    let (memory, percent) = match ask.memory {
        MemoryAsk::Mib(mib) => (mib.get(), ask.percent_beside.unwrap_or(0)),
        MemoryAsk::Percent(percent) => (0, percent),
        MemoryAsk::Whole => (0, 100),
    };
    json!({"type": ask.class, "nums": ask.count, "memreq": memory, "mempercent": percent, "coresreq": ask.cores})
}

fn container_request(case: &Case) -> Result<Value, String> {
    let pod = json!({"spec": {"containers": [member::<Value>(&case.input, "container")?]}});
    let pod = PodView::from_json(&pod).map_err(text)?;
    let vendors = vendors(case)?;
    let vendor = vendor(&vendors, &class(case)?)?;
    let container = pod.containers.first().ok_or("no container")?;
    Ok(vendor
        .parse(container, &pod)
        .map_or_else(|_| refused(), |ask| json!({"request": spelled(ask.as_ref())})))
}

/// A node of a case: name, annotations, and a capacity that is also what is allocatable.
pub(crate) fn node_object(node: &Value) -> Value {
    json!({
        "metadata": {"name": node["name"], "annotations": node["annotations"]},
        "status": {"capacity": node["capacity"], "allocatable": node["capacity"]},
    })
}

fn node_devices(case: &Case) -> Result<Value, String> {
    let node = NodeView::from_json(&node_object(&member(&case.input, "node")?)).map_err(text)?;
    let vendors = vendors(case)?;
    let vendor = vendor(&vendors, &class(case)?)?;
    let Ok(cards) = vendor.decode_node(&node) else {
        return Ok(refused());
    };
    let devices: Vec<Value> = cards
        .iter()
        .map(|card| {
            let mut device = json!({
                "id": card.id, "index": card.index, "count": card.slots, "devmem": card.memory, "devcore": card.cores,
                "type": &*card.model, "numa": card.numa, "health": card.healthy, "vendor": card.class,
            });
            if !card.mode.as_str().is_empty() {
                device["mode"] = json!(card.mode);
            }
            device
        })
        .collect();
    Ok(json!({"devices": devices}))
}

/// What one look at the node says: a class that the node does not close is healthy, every event is read anew, and
/// nothing is ever written back.
fn class_health(case: &Case) -> Result<Value, String> {
    let node = NodeView::from_json(&node_object(&member(&case.input, "node")?)).map_err(text)?;
    let mut world = World::new(vendors(case)?);
    world.set_node(&node);
    let snapshot = world.snapshot();
    let class = class(case)?;
    let state = snapshot.node(node.name.as_str()).ok_or("no node")?;
    let healthy = state.class(&class).is_none_or(|on_node| on_node.closed.is_none());
    Ok(json!({"healthy": healthy, "refresh": true, "writes": {}}))
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
}

impl Device {
    fn trial(self, class: &Keyword) -> TrialCard {
        let usage = CardUsage {
            slots: self.used,
            memory: self.usedmem,
            cores: self.usedcores,
            ..CardUsage::default()
        };
        let card = Card {
            class: class.clone(),
            index: self.index,
            slots: self.count,
            memory: self.totalmem,
            cores: self.totalcore,
            model: Arc::from(self.model.as_str()),
            numa: self.numa,
            mode: CardMode::new(""),
            healthy: self.health,
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

/// A device as the cases write it into an allocation.
#[derive(Deserialize)]
struct Given {
    uuid: String,
    mem: Mib,
    cores: Cores,
}

fn fit_container(case: &Case) -> Result<Value, String> {
    let engine = engine(case)?;
    let class = class(case)?;
    let vendor = vendor(engine.vendors(), &class)?;
    let pod: PodView = member(&case.input, "pod")?;
    let cards: Vec<TrialCard> = member::<Vec<Device>>(&case.input, "devices")?
        .into_iter()
        .map(|device| device.trial(&class))
        .collect();
    let mut world = World::new(Arc::clone(engine.vendors()));
    set_quotas(case, &mut world)?;
    let request: Request = member(&case.input, "request")?;
    let ask = Ask {
        class: class.clone(),
        count: request.nums,
        memory: match (request.memreq, request.mempercent) {
            (0, percent) => MemoryAsk::Percent(percent),
            (memory, _) => MemoryAsk::Mib(Mib::new(memory)),
        },
        percent_beside: None,
        cores: Cores::new(request.coresreq),
        extra: Vec::new(),
    };
    let mut earlier = Vec::new();
    if let Some(containers) = case.input["allocated"].get(class.as_str()) {
        let containers: Vec<Vec<Given>> = serde_json::from_value(containers.clone()).map_err(text)?;
        for (container, given) in (0_u32..).zip(&containers) {
            for given in given {
                let position = cards.iter().position(|trial| trial.card.id.as_str() == given.uuid);
                earlier.push(Earlier {
                    container,
                    role: ContainerRole::App,
                    position: position.ok_or("an earlier card that is not there")?,
                    take: Take {
                        memory: given.mem,
                        cores: given.cores,
                        ..Take::default()
                    },
                });
            }
        }
    }
    let selection = vendor.selection(&pod).map_err(text)?;
    let policy = pod
        .annotation(keys::GPU_POLICY)
        .map(|policy| CardPolicy::parse(policy).0);
    // The cases list the cards in sorted order, which is examined from its end.
    let examined: Vec<usize> = (0..cards.len()).rev().collect();
    let room = world.snapshot().room(&pod.id.namespace, &class);
    let outcome = engine.fit_cards_after(
        &cards,
        Some(&examined),
        &ask,
        &selection,
        policy.as_ref(),
        room,
        &earlier,
    );
    Ok(match outcome {
        Ok(given) => {
            let devices: Vec<Value> = given
                .iter()
                .filter_map(|given| {
                    let card = &cards.get(given.position)?.card;
                    Some(json!({"uuid": card.id, "type": class, "mem": given.take.memory, "cores": given.take.cores}))
                })
                .collect();
            json!({"fit": true, "devices": devices})
        }
        Err(refusal) => json!({"fit": false, "reason": engine_text::hami_node(&refusal)}),
    })
}

/// What is written on a pod, without what the engine adds for every class and with moments as the cases spell them.
fn written(mut annotations: BTreeMap<String, String>) -> BTreeMap<String, String> {
    annotations.retain(|key, _| key != keys::VGPU_TIME && !key.starts_with(keys::TESSERA_PREFIX));
    for value in annotations.values_mut() {
        if value.len() == 19 && value.bytes().all(|byte| byte.is_ascii_digit()) {
            *value = "{unix-nanoseconds}".to_owned();
        }
    }
    annotations
}

fn shares(class: &Keyword, value: Value) -> Result<Vec<Vec<Share>>, String> {
    let containers: Vec<Vec<Given>> = serde_json::from_value(value).map_err(text)?;
    let share = |given: Given| {
        Ok(Share {
            card: CardId::new(given.uuid).map_err(text)?,
            class: class.clone(),
            memory: given.mem,
            cores: given.cores,
            extra: tessera_types::Extras::NONE,
        })
    };
    containers
        .into_iter()
        .map(|shares| shares.into_iter().map(share).collect())
        .collect()
}

fn patch_annotations(case: &Case) -> Result<Value, String> {
    let engine = engine(case)?;
    let class = class(case)?;
    let pod = json!({
        "metadata": {"name": "p", "namespace": "ns", "uid": "uid-p", "annotations": case.input["pod_annotations"]},
        "spec": {"containers": [{"name": "c"}]},
    });
    let demand = engine.demand(&PodView::from_json(&pod).map_err(text)?).map_err(text)?;
    let given = shares(&class, member(&case.input, "containers")?)?;
    let mut allocation = Allocation::default();
    if given.iter().any(|shares| !shares.is_empty()) {
        allocation.classes.insert(class, given);
    }
    let node = NodeName::new("n1").map_err(text)?;
    let context = WriteContext {
        node: &node,
        now_seconds: now(),
        cards: &[],
    };
    let mut annotations = written(engine.annotations(&allocation, &demand, &context));
    annotations.remove(keys::VGPU_NODE);
    Ok(json!({"annotations": annotations}))
}

fn class_node_score(case: &Case) -> Result<Value, String> {
    let vendors = vendors(case)?;
    let class = class(case)?;
    let allocation = shares(&class, member(&case.input, "allocation")?)?;
    let mut world = World::new(Arc::clone(&vendors));
    let node = json!({"name": "n1", "annotations": case.input["node_annotations"]});
    world.set_node(&NodeView::from_json(&node_object(&node)).map_err(text)?);
    let snapshot = world.snapshot();
    let node = snapshot.node("n1").ok_or("no node")?;
    let score = vendor(&vendors, &class)?.node_score(&allocation, &Default::default(), node, NodePolicy::Binpack);
    Ok(json!({"score": score}))
}

fn set_quotas(case: &Case, world: &mut World) -> Result<(), String> {
    for quota in member::<Option<Vec<Value>>>(&case.input, "quotas")?.unwrap_or_default() {
        let of = |name: &str| member::<String>(&quota["metadata"], name);
        world.set_quota(&of("namespace")?, &of("name")?, &member(&quota["spec"], "hard")?);
    }
    Ok(())
}

fn webhook(case: &Case) -> Result<Value, String> {
    let engine = engine(case)?;
    let mut world = World::new(Arc::clone(engine.vendors()));
    set_quotas(case, &mut world)?;
    let mut pod: Value = member(&case.input, "pod")?;
    let settings = Settings::default();
    let patch = match review(&pod, "default", &settings, &engine, &world.snapshot()) {
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
    match review(&pod, "default", &settings, &engine, &world.snapshot()) {
        Verdict::Allow { patch, .. } if patch.is_empty() => {}
        again => return Err(format!("reviewed again, the answer is another: {again:?}")),
    }
    let view = PodView::from_json(&pod).map_err(text)?;
    let containers: Map<String, Value> = view
        .containers
        .iter()
        .map(|container| {
            let limits: BTreeMap<&str, String> = container
                .limits
                .iter()
                .map(|(name, quantity)| (name.as_str(), quantity.to_string()))
                .collect();
            let env: Vec<Value> = container
                .env
                .iter()
                .map(|(name, value)| match value {
                    EnvValue::Text(value) => json!([name, value]),
                    EnvValue::From => json!([name, null]),
                })
                .collect();
            (container.name.clone(), json!({"limits": limits, "env": env}))
        })
        .collect();
    let outcome = json!({
        "allowed": true,
        "annotations": view.annotations,
        "scheduler_name": view.scheduler_name.clone().unwrap_or_default(),
        "runtime_class_name": view.runtime_class.clone().unwrap_or_default(),
        "containers": containers,
    });
    let silent: &[&str] = if view.runtime_class.is_none() {
        &["annotations", "runtime_class_name"]
    } else {
        &["annotations"]
    };
    Ok(as_asked(outcome, &case.expected, silent))
}

/// A running pod that holds what its allocation texts say: limits are added so that it asks for what it has.
pub(crate) fn holder(vendors: &Vendors, mut pod: Value) -> Result<Value, String> {
    let annotations = PodView::from_json(&pod).map_err(text)?.annotations;
    for vendor in vendors {
        let Some((class, _)) = vendor.read_allocation(&annotations).map_err(text)? else {
            continue;
        };
        let count = vendor.names().count.as_deref().ok_or("a class without a count")?;
        for (position, shares) in class.iter().enumerate().filter(|(_, shares)| !shares.is_empty()) {
            let container = pod["spec"]["containers"].get_mut(position);
            let container = container.ok_or("a container of the allocation is not in the pod")?;
            container["resources"]["limits"][count] = json!(shares.len().to_string());
        }
    }
    Ok(pod)
}

fn schedule(case: &Case) -> Result<Value, String> {
    let engine = engine(case)?;
    let mut world = World::new(Arc::clone(engine.vendors()));
    set_quotas(case, &mut world)?;
    let mut names = Vec::new();
    for node in member::<Vec<Value>>(&case.input, "nodes")? {
        world.set_node(&NodeView::from_json(&node_object(&node)).map_err(text)?);
        names.push(member::<String>(&node, "name")?);
    }
    for pod in member::<Option<Vec<Value>>>(&case.input, "existing_pods")?.unwrap_or_default() {
        let change = world.set_pod(&PodView::from_json(&holder(engine.vendors(), pod)?).map_err(text)?);
        if !change.booked {
            return Err(format!("an existing pod books nothing: {:?}", change.problems));
        }
    }
    let pod: PodView = member(&case.input, "pod")?;
    let demand = engine.demand(&pod).map_err(text)?;
    let snapshot = world.snapshot();
    let decision = engine.decide(&snapshot, &demand, Candidates::Names(&names));
    let Some(winner) = decision.winner() else {
        let failed: Map<String, Value> = decision
            .refused
            .iter()
            .map(|(node, refusal)| (node.to_string(), json!(engine_text::hami_node(refusal))))
            .collect();
        return Ok(as_asked(
            json!({"failed_nodes": failed, "nodes": null}),
            &case.expected,
            &["nodes"],
        ));
    };
    let context = WriteContext {
        node: &winner.node,
        now_seconds: now(),
        cards: snapshot.node(winner.node.as_str()).map_or(&[], |node| node.cards()),
    };
    let annotations = written(engine.annotations(&winner.allocation, &demand, &context));
    let labels = patch::allocation(&annotations)["metadata"]["labels"].clone();
    Ok(as_asked(
        json!({"nodes": [winner.node], "annotations": annotations, "labels": labels}),
        &case.expected,
        &["labels"],
    ))
}

/// Steps on one scheduler: nodes as they are now, and the cards that it knows.
fn sequence(case: &Case) -> Result<Value, String> {
    let mut world = World::new(vendors(case)?);
    let mut results = Vec::new();
    for step in member::<Vec<Value>>(&case.input, "steps")? {
        match member::<String>(&step, "do")?.as_str() {
            "register" => {
                for node in member::<Vec<Value>>(&step, "nodes")? {
                    world.set_node(&NodeView::from_json(&node_object(&node)).map_err(text)?);
                }
                results.push(Value::Null);
            }
            "cards" => {
                let snapshot = world.snapshot();
                let cards: Map<String, Value> = snapshot
                    .nodes()
                    .map(|node| {
                        let ids: Vec<&CardId> = node.cards().iter().map(|card| &card.id).collect();
                        (node.name().to_string(), json!(ids))
                    })
                    .collect();
                results.push(Value::Object(cards));
            }
            other => return Err(format!("no step `{other}`")),
        }
    }
    Ok(json!({"results": results}))
}
