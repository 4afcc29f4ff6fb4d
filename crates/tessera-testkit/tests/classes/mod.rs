//! Operations on one class, named by the case. A node is built from the cards of the case and pods that hold what the
//! case says is in use, so that all of the way is run: register, request, decision, annotations.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tessera_engine::admission::{Settings, Verdict, review};
use tessera_engine::{
    AdmitSettings, Candidates, ContainerEdit, Defaults, Engine, NodeState, Vendor, World, WriteContext,
    text as engine_text,
};
use tessera_testkit::conformance::wire_ops::{member, refused};
use tessera_testkit::conformance::{Case, Differences, Op, Suite, now};
use tessera_types::{
    Allocation, Ask, Card, CardId, CardUsage, ClassAllocation, Cores, Keyword, MemoryAsk, Mib, NodeName, NodePolicy,
    Share,
};
use tessera_wire::config::DeviceConfig;
use tessera_wire::{NodeView, PodView, Quantity, keys};

/// The operations of this module.
pub(crate) const OPS: &[(&str, Op)] = &[
    ("container-request", container_request),
    ("mutate-container", mutate_container),
    ("node-devices", node_devices),
    ("class-health", class_health),
    ("fit-container", fit_container),
    ("class-node-score", class_node_score),
    ("patch-annotations", patch_annotations),
    ("add-usage", add_usage),
    ("schedule", schedule),
    ("sequence", sequence),
    ("webhook", webhook),
];

/// Runs the cases of `name` and prints what came out; red on anything that is neither as the reference nor listed.
#[expect(clippy::print_stdout, reason = "the table is what a test run shows")]
pub(crate) fn run(name: &str, more: &[(&'static str, Op)]) {
    let suite = Suite::read(name).expect("the cases are readable").with(OPS).with(more);
    let differences = Differences::read_named(&format!("differences-{name}")).expect("the differences are readable");
    let leftovers: Vec<&str> = differences
        .unknown(|id| suite.cases().iter().any(|case| case.id == id))
        .collect();
    assert!(
        leftovers.is_empty(),
        "differences of cases that do not exist: {leftovers:?}"
    );
    let report = suite.run(&differences);
    println!("{report}");
    assert!(report.failures().is_empty(), "see the table above");
}

/// Any error as text.
pub(crate) fn text(error: impl Display) -> String {
    error.to_string()
}

/// The names of the reference's chart, with the case's own settings.
pub(crate) fn engine(case: &Case) -> Result<Engine, String> {
    let mut config = json!({
        "metax": {
            "resourceCountName": "metax-tech.com/gpu", "resourceVCountName": "metax-tech.com/sgpu",
            "resourceVMemoryName": "metax-tech.com/vmemory", "resourceVCoreName": "metax-tech.com/vcore",
        },
        "biren": {"resourceCountName": "birentech.com/gpu"},
        "vastai": {"resourceCountName": "vastaitech.com/va"},
    });
    if let Some(own) = case.input.get("config") {
        json_patch::merge(&mut config, own);
    }
    let config: DeviceConfig = serde_json::from_value(config).map_err(text)?;
    let defaults = Defaults {
        node_policy: NodePolicy::Binpack,
        ..Defaults::default()
    };
    Ok(Engine::new(tessera_vendors::from_config(&config), defaults))
}

fn class<'a>(case: &Case, engine: &'a Engine) -> Result<&'a dyn Vendor, String> {
    let keyword = Keyword::new(member::<String>(&case.input, "class")?).map_err(text)?;
    engine.vendors().get(&keyword).ok_or(format!("no class {keyword}"))
}

/// A Node object, given as such or by its parts.
pub(crate) fn node_object(node: &Value) -> Value {
    if node.get("metadata").is_some() {
        return node.clone();
    }
    json!({
        "metadata": {"name": node["name"], "annotations": node["annotations"], "labels": node["labels"]},
        "status": {"capacity": node["capacity"], "allocatable": node["capacity"]},
    })
}

fn node_view(node: &Value) -> Result<NodeView, String> {
    NodeView::from_json(&node_object(node)).map_err(text)
}

/// `value` with those members that the reference printed.
fn shaped(value: &Value, like: &Value) -> Value {
    let Some(members) = like.as_object() else {
        return value.clone();
    };
    members
        .keys()
        .filter_map(|name| Some((name.clone(), value.get(name)?.clone())))
        .collect::<Map<String, Value>>()
        .into()
}

fn number_or_text(text: &str) -> Value {
    text.parse::<i64>().map_or_else(|_| json!(text), |number| json!(number))
}

fn container_request(case: &Case) -> Result<Value, String> {
    let engine = engine(case)?;
    let pod = json!({"spec": {"containers": [case.input["container"]]}});
    let pod = PodView::from_json(&pod).map_err(text)?;
    let container = pod.containers.first().ok_or("no container")?;
    let spelled = |ask: &Ask| {
        let (memory, percent) = match ask.memory {
            MemoryAsk::Mib(mib) => (mib.get(), 0),
            MemoryAsk::Percent(percent) => (0, percent),
            MemoryAsk::Whole => (0, 100),
        };
        json!({"type": ask.class, "nums": ask.count, "memreq": memory, "mempercent": percent, "coresreq": ask.cores})
    };
    Ok(match class(case, &engine)?.parse(container, &pod) {
        Ok(ask) => json!({"request": ask.as_ref().map(spelled)}),
        Err(_) => refused(),
    })
}

fn mutate_container(case: &Case) -> Result<Value, String> {
    let engine = engine(case)?;
    let pod = json!({"spec": {"containers": [case.input["container"]]}});
    let pod = PodView::from_json(&pod).map_err(text)?;
    let mut edit = ContainerEdit::new(pod.containers.first().ok_or("no container")?);
    Ok(
        match class(case, &engine)?.admit(&mut edit, &pod, &AdmitSettings::default()) {
            Ok(admit) => {
                let edited = edit.edited();
                json!({"resource": admit.uses_device, "limits": edited.limits, "requests": edited.requests})
            }
            Err(error) => json!({"resource": false, "error": error.to_string()}),
        },
    )
}

fn node_devices(case: &Case) -> Result<Value, String> {
    let engine = engine(case)?;
    let Ok(cards) = class(case, &engine)?.decode_node(&node_view(&case.input["node"])?) else {
        // That it is refused is compared, not the words.
        return Ok(match case.expected.get("error") {
            Some(_) => case.expected.clone(),
            None => refused(),
        });
    };
    let devices: Vec<Value> = cards
        .iter()
        .enumerate()
        .map(|(at, card)| {
            let custom: Map<String, Value> = card
                .custom
                .iter()
                .map(|(name, text)| (name.clone(), number_or_text(text)))
                .collect();
            let device = json!({
                "id": card.id, "index": card.index, "count": card.slots, "devmem": card.memory, "devcore": card.cores,
                "type": card.model, "numa": card.numa, "health": card.healthy, "vendor": card.class,
                "devicevendor": card.class, "custom": custom, "custominfo": card.custom,
            });
            shaped(&device, &case.expected["devices"][at])
        })
        .collect();
    Ok(json!({"devices": devices}))
}

fn class_health(case: &Case) -> Result<Value, String> {
    let engine = engine(case)?;
    let keyword = class(case, &engine)?.keyword();
    let mut world = World::new(Arc::clone(engine.vendors()));
    let node = node_view(&case.input["node"])?;
    world.set_node(&node);
    let snapshot = world.snapshot();
    let here = snapshot.node(node.name.as_str()).and_then(|node| node.class(keyword));
    let healthy = here.is_some_and(|here| here.closed.is_none() && !here.cards.is_empty());
    // Every change of a node is read, and nothing is written to it for these classes.
    Ok(json!({"healthy": healthy, "refresh": true, "writes": {}}))
}

#[derive(Deserialize, Clone)]
struct Device {
    #[serde(alias = "uuid")]
    id: String,
    #[serde(default, alias = "idx")]
    index: u32,
    #[serde(default)]
    count: u32,
    #[serde(default)]
    used: usize,
    #[serde(default)]
    totalmem: u64,
    #[serde(default)]
    usedmem: u64,
    #[serde(default)]
    totalcore: u32,
    #[serde(default)]
    usedcores: u32,
    #[serde(default, rename = "type")]
    model: String,
    #[serde(default)]
    numa: i32,
    #[serde(default)]
    health: bool,
    #[serde(default)]
    custominfo: BTreeMap<String, String>,
    #[serde(default)]
    qos: String,
    #[serde(default)]
    link_zone: u32,
    #[serde(default)]
    app_classes: Vec<String>,
}

/// Node `n1` with these cards of the class, in the class's own register.
fn node_of(vendor: &dyn Vendor, devices: &[Device], annotations: &Value) -> Result<NodeView, String> {
    let mut node = json!({"name": "n1", "annotations": annotations});
    if node["annotations"].is_null() {
        node["annotations"] = json!({});
    }
    if vendor.keyword().as_str() == "Metax-GPU" {
        let count = vendor.names().count.clone().ok_or("no count")?;
        node["capacity"] = json!({count: devices.len().to_string()});
    } else if vendor.keyword().as_str() == "Metax-SGPU" {
        let cards: Vec<Value> = devices
            .iter()
            .map(|device| {
                json!({
                    "uuid": device.id, "totalDevCount": device.count, "totalCompute": device.totalcore,
                    "totalVRam": device.totalmem, "numa": device.numa, "healthy": device.health,
                    "qosPolicy": device.qos, "linkZone": device.link_zone,
                })
            })
            .collect();
        node["annotations"]["metax-tech.com/node-gpu-devices"] = json!(json!(cards).to_string());
    } else {
        let cards: Vec<Value> = devices
            .iter()
            .map(|device| {
                json!({
                    "id": device.id, "index": device.index, "count": device.count, "devmem": device.totalmem,
                    "devcore": device.totalcore, "type": device.model, "numa": device.numa, "health": device.health,
                    "custominfo": device.custominfo,
                })
            })
            .collect();
        let register = vendor.keys().register.clone().ok_or("no register")?;
        node["annotations"][register] = json!(json!(cards).to_string());
    }
    node_view(&node)
}

/// Pods that hold what is in use of a card: the last one all of the memory and compute.
fn holders(vendor: &dyn Vendor, device: &Device) -> Result<Vec<PodView>, String> {
    let count = vendor.names().count.clone().ok_or("no count")?;
    let allocated = vendor.keys().allocated.clone().ok_or("no annotation")?;
    (0..device.used)
        .map(|nth| {
            let (memory, cores) = if nth + 1 == device.used {
                (device.usedmem, device.usedcores)
            } else {
                (0, 0)
            };
            let name = format!("{}-{nth}", device.id);
            let mut annotations = json!({
                "hami.io/vgpu-node": "n1",
                allocated.clone(): format!("{},{},{memory},{cores}:;", device.id, vendor.keyword()),
            });
            if !device.qos.is_empty() {
                annotations["metax-tech.com/sgpu-qos-policy"] = json!(device.qos);
            }
            if let Some(app) = device.app_classes.get(nth).filter(|app| !app.is_empty()) {
                annotations["metax-tech.com/sgpu-app-class"] = json!(app);
            }
            let pod = json!({
                "metadata": {"name": name, "namespace": "holders", "uid": name, "annotations": annotations},
                "spec": {"nodeName": "n1", "containers": [{"name": "c", "resources": {"limits": {count.clone(): "1"}}}]},
                "status": {"phase": "Running"},
            });
            PodView::from_json(&pod).map_err(text)
        })
        .collect()
}

fn world_of(engine: &Engine, vendor: &dyn Vendor, devices: &[Device], annotations: &Value) -> Result<World, String> {
    let mut world = World::new(Arc::clone(engine.vendors()));
    let change = world.set_node(&node_of(vendor, devices, annotations)?);
    if !change.problems.is_empty() {
        return Err(format!("{:?}", change.problems));
    }
    for device in devices {
        for holder in holders(vendor, device)? {
            let change = world.set_pod(&holder);
            if !change.problems.is_empty() {
                return Err(format!("{:?}", change.problems));
            }
        }
    }
    Ok(world)
}

fn fit_container(case: &Case) -> Result<Value, String> {
    let engine = engine(case)?;
    let vendor = class(case, &engine)?;
    let mut devices: Vec<Device> = member(&case.input, "devices")?;
    let names = vendor.names();
    let count = names.count.clone().ok_or("no count")?;
    let mut pod: Value = member(&case.input, "pod")?;
    let mut containers = Vec::new();
    // What earlier containers of the pod have, they get again here.
    let earlier = case.input["allocated"][vendor.keyword().as_str()].as_array();
    for shares in earlier.into_iter().flatten().filter_map(Value::as_array) {
        for share in shares {
            for device in devices.iter_mut().filter(|device| share["uuid"] == device.id.as_str()) {
                (device.used, device.usedmem, device.usedcores) = (0, 0, 0);
            }
        }
        containers.push(json!({count.clone(): shares.len().to_string()}));
    }
    let request: Value = member(&case.input, "request")?;
    let mut limits = json!({count: request["nums"].to_string()});
    if let Some(name) = names.memory.clone().filter(|_| request["memreq"] != 0) {
        limits[name] = json!(format!("{}Mi", request["memreq"]));
    }
    if let Some(name) = names.cores.clone() {
        limits[name] = json!(request["coresreq"].to_string());
    }
    containers.push(limits);
    pod["spec"]["containers"] = containers
        .iter()
        .enumerate()
        .map(|(at, limits)| json!({"name": format!("c{at}"), "resources": {"limits": limits}}))
        .collect();
    let pod = PodView::from_json(&pod).map_err(text)?;

    let world = world_of(&engine, vendor, &devices, &Value::Null)?;
    let snapshot = world.snapshot();
    let demand = engine.demand(&pod).map_err(text)?;
    let node = NodeName::new("n1").map_err(text)?;
    let placed = match engine.place_on(&snapshot, &demand, &node) {
        Ok(placed) => placed,
        Err(refusal) => return Ok(json!({"fit": false, "reason": engine_text::hami_node(&refusal)})),
    };
    let cards = snapshot.node("n1").map(NodeState::cards).unwrap_or_default();
    let shares = placed
        .allocation
        .classes
        .get(vendor.keyword())
        .and_then(|class| class.last());
    let chosen: Vec<Value> = shares
        .into_iter()
        .flatten()
        .enumerate()
        .filter_map(|(at, share)| {
            let card = cards.iter().find(|card| card.id == share.card)?;
            let device = json!({
                "uuid": share.card, "type": share.class, "mem": share.memory, "cores": share.cores, "idx": card.index,
                "custominfo": card.custom,
            });
            let like = case.expected["devices"].get(at);
            Some(shaped(
                &device,
                like.unwrap_or(&json!({"uuid": 0, "type": 0, "mem": 0, "cores": 0})),
            ))
        })
        .collect();
    Ok(json!({"fit": true, "devices": chosen}))
}

fn shares(vendor: &dyn Vendor, containers: &Value) -> Result<ClassAllocation, String> {
    let containers = containers.as_array().ok_or("no containers")?;
    containers
        .iter()
        .map(|devices| {
            devices
                .as_array()
                .into_iter()
                .flatten()
                .map(|device| {
                    Ok(Share {
                        card: CardId::new(member::<String>(device, "uuid")?).map_err(text)?,
                        class: vendor.keyword().clone(),
                        memory: Mib::new(member(device, "mem")?),
                        cores: Cores::new(member(device, "cores")?),
                        extra: tessera_types::Extras::NONE,
                    })
                })
                .collect()
        })
        .collect()
}

fn annotated_pod(annotations: &Value) -> Result<PodView, String> {
    PodView::from_json(&json!({"metadata": {"name": "p", "namespace": "default", "annotations": annotations}}))
        .map_err(text)
}

fn class_node_score(case: &Case) -> Result<Value, String> {
    let engine = engine(case)?;
    let vendor = class(case, &engine)?;
    let chosen = case.input.get("allocation").unwrap_or(&case.input["containers"]);
    let mut devices: Vec<Device> = member(&case.input, "previous")?;
    for device in chosen
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_array)
        .flatten()
    {
        let device: Device = serde_json::from_value(device.clone()).map_err(text)?;
        if !devices.iter().any(|known| known.id == device.id) {
            devices.push(device);
        }
    }
    let world = world_of(&engine, vendor, &devices, &case.input["node_annotations"])?;
    let snapshot = world.snapshot();
    let node = snapshot.node("n1").ok_or("no node")?;
    let pod = annotated_pod(&case.input["pod_annotations"])?;
    let selection = vendor.selection(&pod).map_err(text)?;
    let policy = case.input["policy"].as_str().and_then(NodePolicy::parse);
    let score = vendor.node_score(
        &shares(vendor, chosen)?,
        &selection,
        node,
        policy.unwrap_or(NodePolicy::Binpack),
    );
    Ok(json!({"score": score}))
}

/// Moments differ from run to run.
fn without_moments(annotations: BTreeMap<String, String>) -> Map<String, Value> {
    annotations
        .into_iter()
        .filter(|(key, _)| key != keys::VGPU_TIME && !key.starts_with(keys::TESSERA_PREFIX))
        .map(|(key, value)| {
            let nanoseconds = value.len() == 19 && value.bytes().all(|digit| digit.is_ascii_digit());
            (key, json!(if nanoseconds { "{unix-nanoseconds}" } else { &value }))
        })
        .collect()
}

fn patch_annotations(case: &Case) -> Result<Value, String> {
    let engine = engine(case)?;
    let vendor = class(case, &engine)?;
    let pod = match case.input.get("pod") {
        Some(pod) => PodView::from_json(pod).map_err(text)?,
        None => annotated_pod(&case.input["pod_annotations"])?,
    };
    let demand = engine.demand(&pod).map_err(text)?;
    let mut allocation = Allocation::default();
    let shares = shares(vendor, &case.input["containers"])?;
    allocation.classes.insert(vendor.keyword().clone(), shares);
    let node = NodeName::new("n1").map_err(text)?;
    let at = WriteContext {
        node: &node,
        now_seconds: now(),
        cards: &[],
    };
    let annotations = vendor.annotations(&allocation, &demand, &at);
    let (read, _) = vendor
        .read_allocation(&annotations)
        .map_err(text)?
        .ok_or("nothing to read back")?;
    if Some(&read) != allocation.classes.get(vendor.keyword()) {
        return Err(format!("read back as {read:?}"));
    }
    Ok(json!({"annotations": without_moments(annotations)}))
}

fn add_usage(case: &Case) -> Result<Value, String> {
    let engine = engine(case)?;
    let vendor = class(case, &engine)?;
    let device: Device = member(&case.input, "device")?;
    let mut world = world_of(&engine, vendor, std::slice::from_ref(&device), &Value::Null)?;
    let added: Vec<Device> = member::<Vec<Value>>(&case.input, "allocs")?
        .iter()
        .map(|alloc| {
            Ok(Device {
                id: device.id.clone(),
                used: 1,
                usedmem: member(alloc, "mem")?,
                usedcores: member(alloc, "cores")?,
                ..device.clone()
            })
        })
        .collect::<Result<_, String>>()?;
    for (nth, alloc) in added.iter().enumerate() {
        for mut pod in holders(vendor, alloc)? {
            pod.id.uid = tessera_types::PodUid::new(format!("added-{nth}")).map_err(text)?;
            world.set_pod(&pod);
        }
    }
    let snapshot = world.snapshot();
    let usage: CardUsage = snapshot
        .node("n1")
        .and_then(|node| node.usage().first())
        .map(|used| used.usage)
        .ok_or("no card")?;
    Ok(json!({"used": usage.slots, "usedmem": usage.memory, "usedcores": usage.cores}))
}

/// One decision, written on the pod and seen by later ones.
fn filter(
    engine: &Engine,
    world: &mut World,
    pod: &Value,
    candidates: &[String],
    like: &Value,
) -> Result<Value, String> {
    let view = PodView::from_json(pod).map_err(text)?;
    let Ok(demand) = engine.demand(&view) else {
        return Ok(refused());
    };
    let decision = engine.decide(&world.snapshot(), &demand, Candidates::Names(candidates));
    let Some(winner) = decision.winner() else {
        let failed: Map<String, Value> = decision
            .refused
            .iter()
            .map(|(node, refusal)| (node.to_string(), json!(engine_text::hami_node(refusal))))
            .collect();
        return Ok(match like.get("failed") {
            Some(_) => json!({"failed": failed}),
            None => json!({"failed_nodes": failed, "nodes": null}),
        });
    };
    let snapshot = world.snapshot();
    let cards: &[Card] = snapshot
        .node(winner.node.as_str())
        .map(NodeState::cards)
        .unwrap_or_default();
    let at = WriteContext {
        node: &winner.node,
        now_seconds: now(),
        cards,
    };
    let annotations = engine.annotations(&winner.allocation, &demand, &at);
    let mut written = view.clone();
    written.annotations.extend(annotations.clone());
    let change = world.set_pod(&written);
    if !change.booked || !change.problems.is_empty() {
        return Err(format!("what was written is not booked: {:?}", change.problems));
    }
    Ok(json!({"nodes": [winner.node], "annotations": without_moments(annotations)}))
}

fn schedule(case: &Case) -> Result<Value, String> {
    let engine = engine(case)?;
    let mut world = World::new(Arc::clone(engine.vendors()));
    let mut candidates = Vec::new();
    for node in member::<Vec<Value>>(&case.input, "nodes")? {
        let node = node_view(&node)?;
        world.set_node(&node);
        candidates.push(node.name.to_string());
    }
    for pod in member::<Option<Vec<Value>>>(&case.input, "existing_pods")?.unwrap_or_default() {
        world.set_pod(&PodView::from_json(&pod).map_err(text)?);
    }
    if let Some(pod) = case.input.get("pod") {
        return filter(&engine, &mut world, pod, &candidates, &case.expected);
    }
    let results: Vec<Value> = member::<Vec<Value>>(&case.input, "pods")?
        .iter()
        .enumerate()
        .map(|(at, pod)| filter(&engine, &mut world, pod, &candidates, &case.expected["results"][at]))
        .collect::<Result<_, _>>()?;
    Ok(json!({"results": results}))
}

fn sequence(case: &Case) -> Result<Value, String> {
    let engine = engine(case)?;
    let mut world = World::new(Arc::clone(engine.vendors()));
    let mut candidates: Vec<String> = Vec::new();
    let mut results = Vec::new();
    for (at, step) in member::<Vec<Value>>(&case.input, "steps")?.iter().enumerate() {
        let result = match step["do"].as_str().unwrap_or_default() {
            "register" => {
                for node in step["nodes"].as_array().into_iter().flatten() {
                    let node = node_view(node)?;
                    world.set_node(&node);
                    if !candidates.contains(&node.name.to_string()) {
                        candidates.push(node.name.to_string());
                    }
                }
                Value::Null
            }
            "delete-pod" => {
                let pod = PodView::from_json(&step["pod"]).map_err(text)?;
                world.remove_pod(&pod.id.uid);
                Value::Null
            }
            "filter" => filter(
                &engine,
                &mut world,
                &step["pod"],
                &candidates,
                &case.expected["results"][at],
            )?,
            other => return Err(format!("no step `{other}`")),
        };
        results.push(result);
    }
    Ok(json!({"results": results}))
}

fn webhook(case: &Case) -> Result<Value, String> {
    let engine = engine(case)?;
    let mut world = World::new(Arc::clone(engine.vendors()));
    for quota in member::<Option<Vec<Value>>>(&case.input, "quotas")?.unwrap_or_default() {
        let (namespace, name): (String, String) = (
            member(&quota["metadata"], "namespace")?,
            member(&quota["metadata"], "name")?,
        );
        world.set_quota(
            &namespace,
            &name,
            &member::<BTreeMap<String, Quantity>>(&quota["spec"], "hard")?,
        );
    }
    let snapshot = world.snapshot();
    let mut pod: Value = member(&case.input, "pod")?;
    let patch = match review(&pod, "default", &Settings::default(), &engine, &snapshot) {
        Verdict::Deny { code, text } => {
            // Our texts begin with the reference's words and go on with what to do.
            let expected = case.expected["message"].as_str().unwrap_or_default();
            let message = if text.starts_with(expected) && !expected.is_empty() {
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
    if let Verdict::Allow { patch, .. } = review(&pod, "default", &Settings::default(), &engine, &snapshot)
        && !patch.is_empty()
    {
        return Err(format!("reviewed again, the pod is changed again: {}", json!(patch)));
    }
    let view = PodView::from_json(&pod).map_err(text)?;
    let containers: Map<String, Value> = view
        .containers
        .iter()
        .map(|container| {
            let limits: Map<String, Value> = container
                .limits
                .iter()
                .map(|(name, quantity)| {
                    // The reference prints the shortest spelling of the same number.
                    let like = case.expected["containers"][&container.name]["limits"][name].as_str();
                    let same = like
                        .and_then(|like| Quantity::parse(like).ok())
                        .filter(|like| like.as_integer() == quantity.as_integer());
                    (name.clone(), json!(same.as_ref().unwrap_or(quantity).as_str()))
                })
                .collect();
            (container.name.clone(), json!({"limits": limits, "env": []}))
        })
        .collect();
    Ok(json!({
        "allowed": true, "scheduler_name": view.scheduler_name.unwrap_or_default(), "annotations": view.annotations,
        "containers": containers,
    }))
}
