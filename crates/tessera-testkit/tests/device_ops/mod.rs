//! Operations of the suites whose cases give whole Node and Pod objects and name the class: Kunlunxin, Enflame, Neuron.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tessera_engine::{
    AdmitSettings, Candidates, ContainerEdit, Defaults, Engine, TrialCard, Vendor, Vendors, World, WriteContext,
    text as engine_text,
};
use tessera_testkit::build;
use tessera_testkit::conformance::wire_ops::{member, refused};
use tessera_testkit::conformance::{Case, Op, now};
use tessera_types::{
    Allocation, Ask, Card, CardId, CardMode, CardPolicy, CardUsage, Cores, Extras, Keyword, MemoryAsk, Mib, NodeName,
    NodePolicy, Share, effective_usage,
};
use tessera_vendors::from_config;
use tessera_wire::config::DeviceConfig;
use tessera_wire::{ContainerView, NodeView, PodView, keys};

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
];

const KUNLUN: &str = "kunlun";
const XPU: &str = "XPU";
const ENFLAME: &str = "Enflame";
const GCU: &str = "GCU";
const NEURON: &str = "AWSNeuron";
const SLICES: &str = "enflame.com/gcu-drs-capacity";

fn text(error: impl Display) -> String {
    error.to_string()
}

/// The names that the charts render.
fn vendors() -> Result<Arc<Vendors>, String> {
    let sections = json!({
        "kunlun": {
            "resourceCountName": "kunlunxin.com/xpu", "resourceVCountName": "kunlunxin.com/vxpu",
            "resourceVMemoryName": "kunlunxin.com/vxpu-memory",
        },
        "enflame": {
            "resourceNameGCU": "enflame.com/gcu", "resourceNameDRSGCU": "enflame.com/drs-gcu",
            "resourceNameGCUMemory": "enflame.com/gcu-memory", "resourceNameGCUCore": "enflame.com/gcu-core",
        },
        "awsneuron": {
            "resourceCountName": "aws.amazon.com/neuron", "resourceCoreName": "aws.amazon.com/neuroncore",
        },
    });
    let config: DeviceConfig = serde_json::from_value(sections).map_err(text)?;
    Ok(from_config(&config))
}

fn engine(case: &Case) -> Result<Engine, String> {
    let policy: Option<String> = member(&case.input, "default_policy")?;
    let card_policy = policy.map_or_else(CardPolicy::default, |text| CardPolicy::parse(&text).0);
    Ok(Engine::new(
        vendors()?,
        Defaults {
            node_policy: NodePolicy::Binpack,
            card_policy: Some(card_policy),
        },
    ))
}

fn class(case: &Case) -> Result<Keyword, String> {
    Keyword::new(member::<String>(&case.input, "class")?).map_err(text)
}

fn vendor<'a>(vendors: &'a Vendors, class: &Keyword) -> Result<&'a dyn Vendor, String> {
    vendors.get(class).ok_or_else(|| format!("no class {class}"))
}

/// The cards that the case's earlier node has, for an ask whose meaning depends on the node.
fn prior_cards(case: &Case, vendor: &dyn Vendor) -> Result<Vec<Card>, String> {
    let Some(node) = member::<Option<Value>>(&case.input, "prior_node")? else {
        return Ok(Vec::new());
    };
    let node = NodeView::from_json(&node).map_err(text)?;
    vendor.decode_node(&node).map_err(text)
}

/// An ask in the cases' spelling, class by class.
fn spelled(vendor: &dyn Vendor, ask: Option<&Ask>, cards: &[Card]) -> Value {
    let Some(ask) = ask else { return Value::Null };
    let extra = |name: &str| {
        ask.extra
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, amount)| *amount)
    };
    let (mut nums, mut cores) = (ask.count, u64::from(ask.cores.get()));
    let (memory, percent) = match (ask.class.as_str(), ask.memory) {
        (ENFLAME, _) => match extra("slices") {
            Some(slices) => (slices, 0),
            None => {
                cores = extra("percent").unwrap_or(0);
                let memory = extra("memory").or_else(|| extra("gib")).or_else(|| extra("mib"));
                (memory.unwrap_or(0), -1)
            }
        },
        (NEURON, _) => {
            nums = vendor.count_on(ask, cards);
            let all = cards.first().map_or(0, |card| u64::from(card.cores.get()));
            cores = match extra("cores") {
                None => all,
                Some(cores) if cores % u64::from(nums.max(1)) == 0 => cores / u64::from(nums.max(1)),
                // Not on this node; what it means is left to others.
                Some(cores) => {
                    nums = 1;
                    cores
                }
            };
            (0, 0)
        }
        (GCU, _) => (100, 100),
        // A whole virtual card is as much memory as a card has.
        (XPU, MemoryAsk::Whole) => (98_304, 100),
        (_, MemoryAsk::Whole) => (0, 100),
        (_, MemoryAsk::Mib(mib)) => (mib.get(), 0),
        (_, MemoryAsk::Percent(percent)) => (0, i64::from(percent)),
    };
    json!({"type": ask.class, "nums": nums, "memreq": memory, "mempercent": percent, "coresreq": cores})
}

fn container(case: &Case) -> Result<(PodView, ContainerView), String> {
    let pod = json!({"spec": {"containers": [member::<Value>(&case.input, "container")?]}});
    let pod = PodView::from_json(&pod).map_err(text)?;
    let container = pod.containers.first().cloned().ok_or("no container")?;
    Ok((pod, container))
}

fn container_request(case: &Case) -> Result<Value, String> {
    let (pod, container) = container(case)?;
    let vendors = vendors()?;
    let vendor = vendor(&vendors, &class(case)?)?;
    let cards = prior_cards(case, vendor)?;
    Ok(vendor.parse(&container, &pod).map_or_else(
        |_| refused(),
        |ask| json!({"request": spelled(vendor, ask.as_ref(), &cards)}),
    ))
}

fn mutate_container(case: &Case) -> Result<Value, String> {
    let (pod, view) = container(case)?;
    let vendors = vendors()?;
    let vendor = vendor(&vendors, &class(case)?)?;
    let mut edit = ContainerEdit::new(&view);
    // Admission refuses what could never be placed, too.
    let outcome = vendor
        .admit(&mut edit, &pod, &AdmitSettings::default())
        .and_then(|admit| {
            let edited = edit.edited();
            let pod = PodView {
                containers: vec![edited.clone()],
                ..pod.clone()
            };
            vendor.parse(&edited, &pod).map(|_| (admit, edited))
        });
    Ok(match outcome {
        Ok((admit, edited)) => {
            let amounts = |map: &BTreeMap<String, tessera_wire::Quantity>| -> Map<String, Value> {
                map.iter()
                    .map(|(name, quantity)| (name.clone(), json!(quantity.to_string())))
                    .collect()
            };
            json!({
                "resource": admit.uses_device, "limits": amounts(&edited.limits), "requests": amounts(&edited.requests),
            })
        }
        Err(error) => {
            // Our texts begin with the reference's words and go on with what to do.
            let told = error.to_string();
            let expected = case.expected["error"].as_str().unwrap_or_default();
            let told = if !expected.is_empty() && told.starts_with(expected) {
                expected
            } else {
                &told
            };
            json!({"resource": false, "error": told})
        }
    })
}

/// A card's compute as the cases write it.
fn devcore(card: &Card) -> u64 {
    let cores = u64::from(card.cores.get());
    if card.class.as_str() == NEURON {
        return (1 << cores) - 1;
    }
    cores
}

fn custom(card: &Card) -> Option<Value> {
    match card.class.as_str() {
        ENFLAME => {
            let profiles: BTreeMap<&str, &str> = card
                .custom
                .iter()
                .filter_map(|(name, id)| Some((name.strip_prefix("profile/")?, id.as_str())))
                .collect();
            let most = card
                .mig_profiles
                .iter()
                .map(|profile| profile.slices)
                .max()
                .unwrap_or(0);
            Some(json!({
                "minor": card.custom.get("minor"), "index": card.custom.get("index"), "profiles": profiles,
                "maxSlice": most,
            }))
        }
        NEURON => Some(json!({"AWSNodeType": card.custom.get("AWSNodeType").cloned().unwrap_or_default()})),
        _ => None,
    }
}

fn node_devices(case: &Case) -> Result<Value, String> {
    let node = NodeView::from_json(&member(&case.input, "node")?).map_err(text)?;
    let vendors = vendors()?;
    let vendor = vendor(&vendors, &class(case)?)?;
    let Ok(cards) = vendor.decode_node(&node) else {
        // The words of the reference's log line are its own.
        return Ok(json!({"error": case.expected["error"].as_str().unwrap_or("refused")}));
    };
    let devices: Vec<Value> = cards
        .iter()
        .map(|card| {
            let mut device = json!({
                "id": card.id, "index": card.index, "count": card.slots, "devmem": card.memory,
                "devcore": devcore(card), "type": &*card.model, "numa": card.numa, "health": card.healthy,
                "devicevendor": card.class,
            });
            if let Some(custom) = custom(card) {
                device["custominfo"] = custom;
            }
            device
        })
        .collect();
    Ok(json!({"devices": devices}))
}

fn class_health(case: &Case) -> Result<Value, String> {
    let class = class(case)?;
    let mut world = World::new(vendors()?);
    world.set_node(&NodeView::from_json(&member(&case.input, "node")?).map_err(text)?);
    let snapshot = world.snapshot();
    let healthy = snapshot
        .nodes()
        .any(|node| node.class(&class).is_some_and(|on_node| on_node.closed.is_none()));
    // A node is read again whenever it changes.
    Ok(json!({"healthy": healthy, "refresh": true}))
}

#[derive(Deserialize)]
struct Device {
    id: String,
    index: u32,
    count: u32,
    used: u32,
    totalmem: Mib,
    usedmem: Mib,
    totalcore: u32,
    usedcores: u32,
    #[serde(rename = "type")]
    model: String,
    numa: i32,
    health: bool,
    #[serde(default)]
    custominfo: Option<Value>,
}

/// The positions of the bits of a mask of Neuron cores, each an amount of its own.
fn bits(mask: u32) -> Extras {
    (0..8)
        .filter(|bit| mask & (1 << bit) != 0)
        .fold(Extras::NONE, |extra, bit| extra.with(bit, 1))
}

fn mask(extra: Extras, cores: u32) -> u32 {
    (0..8)
        .take(usize::try_from(cores).unwrap_or(0))
        .filter(|bit| extra.get(*bit) > 0)
        .map(|bit| 1 << bit)
        .sum()
}

impl Device {
    fn usage(&self, class: &Keyword) -> CardUsage {
        let neuron = class.as_str() == NEURON;
        CardUsage {
            slots: self.used,
            memory: self.usedmem,
            cores: Cores::new(if neuron {
                self.usedcores.count_ones()
            } else {
                self.usedcores
            }),
            extra: if neuron { bits(self.usedcores) } else { Extras::NONE },
        }
    }

    fn trial(self, vendor: &dyn Vendor) -> Result<TrialCard, String> {
        let class = vendor.keyword();
        let usage = self.usage(class);
        let base = match (class.as_str(), &self.custominfo) {
            (ENFLAME, Some(custom)) => {
                let register = json!({
                    "devices": [{"index": custom["index"], "minor": custom["minor"], "capacity": self.count}],
                    "profiles": custom["profiles"],
                });
                let node = json!({"metadata": {"name": "n1", "annotations": {SLICES: register.to_string()}}});
                let mut cards = vendor
                    .decode_node(&NodeView::from_json(&node).map_err(text)?)
                    .map_err(text)?;
                cards.pop().ok_or("no card")?
            }
            _ => build::card(&self.id).card(),
        };
        let mut card = Card {
            id: CardId::new(&self.id).map_err(text)?,
            class: class.clone(),
            index: self.index,
            slots: self.count,
            memory: self.totalmem,
            model: Arc::from(self.model.as_str()),
            numa: self.numa,
            mode: CardMode::new(""),
            healthy: self.health,
            ..base
        };
        match class.as_str() {
            ENFLAME => {}
            NEURON => {
                card.cores = Cores::new(self.totalcore.count_ones());
                card.extra = bits(255);
                if let Some(kind) = self
                    .custominfo
                    .as_ref()
                    .and_then(|custom| custom["AWSNodeType"].as_str())
                {
                    card.custom.insert("AWSNodeType".to_owned(), kind.to_owned());
                }
            }
            _ => card.cores = Cores::new(self.totalcore),
        }
        Ok(TrialCard {
            card,
            usage,
            instances: Vec::new(),
            cordoned: false,
        })
    }
}

#[derive(Deserialize)]
struct Request {
    nums: u32,
    memreq: u64,
    mempercent: i64,
    coresreq: u32,
}

impl Request {
    fn ask(&self, class: &Keyword) -> Ask {
        let mut ask = Ask {
            class: class.clone(),
            count: self.nums,
            memory: MemoryAsk::Whole,
            percent_beside: None,
            cores: Cores::new(self.coresreq),
            extra: Vec::new(),
        };
        let extra = |name: &str, amount: u64| (name.to_owned(), amount);
        match class.as_str() {
            ENFLAME if self.mempercent == 0 => ask.extra.push(extra("slices", self.memreq)),
            ENFLAME => {
                ask.extra.push(extra("memory", self.memreq));
                ask.extra.push(extra("percent", u64::from(self.coresreq)));
            }
            NEURON if self.nums == 1 && self.coresreq > 0 => ask.extra.push(extra("cores", self.coresreq.into())),
            XPU => ask.memory = MemoryAsk::Mib(Mib::new(self.memreq)),
            _ => {}
        }
        if matches!(class.as_str(), ENFLAME | NEURON) {
            ask.memory = MemoryAsk::Mib(Mib::ZERO);
        }
        ask
    }
}

/// What the cases tell of a choice beyond memory and compute.
fn chosen_custom(card: &Card, memory: Mib, cores: Cores, request: &Request, mask: u32) -> Option<Value> {
    match card.class.as_str() {
        ENFLAME => {
            let profile = card
                .mig_profiles
                .iter()
                .find(|profile| profile.memory == memory && profile.cores == cores)?;
            // The reference notes down the wish in GB.
            let largest = card.mig_profiles.iter().map(|p| p.memory.get()).max()? / 1024;
            let (wish, percent) = match request.mempercent {
                0 => (0, 0),
                _ if request.memreq > 2 * largest => (request.memreq.div_ceil(1024), request.coresreq),
                _ => (request.memreq, request.coresreq),
            };
            Some(json!({
                "drsSlice": profile.slices, "index": card.custom.get("index"), "minor": card.custom.get("minor"),
                "profileID": card.custom.get(&format!("profile/{}", profile.name)), "profileName": profile.name,
                "requestCore": percent, "requestMem": wish,
            }))
        }
        NEURON => Some(json!({"awsusageinfo": mask})),
        _ => None,
    }
}

fn fit_container(case: &Case) -> Result<Value, String> {
    let engine = engine(case)?;
    let class = class(case)?;
    let vendor = vendor(engine.vendors(), &class)?;
    let pod: PodView = member(&case.input, "pod")?;
    let cards = member::<Vec<Device>>(&case.input, "devices")?
        .into_iter()
        .map(|device| device.trial(vendor))
        .collect::<Result<Vec<_>, _>>()?;
    let request: Request = member(&case.input, "request")?;
    let selection = vendor.selection(&pod).map_err(text)?;
    let policy = pod
        .annotation(keys::GPU_POLICY)
        .map(|policy| CardPolicy::parse(policy).0);
    // The cases list the cards in sorted order, which is examined from its end.
    let examined: Vec<usize> = (0..cards.len()).rev().collect();
    let ask = request.ask(&class);
    let outcome = engine.fit_cards(&cards, Some(&examined), &ask, &selection, policy.as_ref(), None);
    Ok(match outcome {
        Ok(given) => {
            let devices: Vec<Value> = given
                .iter()
                .filter_map(|given| {
                    let card = &cards.get(given.position)?.card;
                    let mask = mask(given.take.extra, card.cores.get());
                    let cores = if class.as_str() == NEURON {
                        mask
                    } else {
                        given.take.cores.get()
                    };
                    let mut device = json!({
                        "idx": card.index, "uuid": card.id, "type": class, "mem": given.take.memory, "cores": cores,
                    });
                    if let Some(custom) = chosen_custom(card, given.take.memory, given.take.cores, &request, mask) {
                        device["custominfo"] = custom;
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
    #[serde(default)]
    idx: u32,
    uuid: String,
    mem: Mib,
    cores: u32,
    #[serde(default)]
    custominfo: Option<Value>,
}

impl Given {
    fn share(&self, class: &Keyword) -> Result<Share, String> {
        let neuron = class.as_str() == NEURON;
        Ok(Share {
            card: CardId::new(&self.uuid).map_err(text)?,
            class: class.clone(),
            memory: self.mem,
            cores: Cores::new(if neuron { self.cores.count_ones() } else { self.cores }),
            extra: if neuron { bits(self.cores) } else { Extras::NONE },
        })
    }

    /// The card that the device is a part of, as far as the case tells.
    fn card(&self, vendor: &dyn Vendor, prior: &[Card]) -> Result<Option<Card>, String> {
        if let Some(card) = prior.iter().find(|card| card.id.as_str() == self.uuid) {
            return Ok(Some(card.clone()));
        }
        let Some(custom) = &self.custominfo else {
            return Ok(None);
        };
        let register = json!({
            "devices": [{"index": custom["index"], "minor": custom["minor"], "capacity": 6}],
            "profiles": {"1g.8gb": "0", "2g.16gb": "1", "3g.24gb": "2", "6g.48gb": "3"},
        });
        let node = json!({"metadata": {"name": "n1", "annotations": {SLICES: register.to_string()}}});
        let cards = vendor
            .decode_node(&NodeView::from_json(&node).map_err(text)?)
            .map_err(text)?;
        Ok(cards.into_iter().next().map(|card| Card {
            id: CardId::new(&self.uuid).unwrap_or_else(|_| card.id.clone()),
            ..card
        }))
    }
}

/// What is written on a pod, without what the engine adds for every class and with moments as the cases spell them.
fn written(mut annotations: BTreeMap<String, String>) -> BTreeMap<String, String> {
    annotations.retain(|key, _| key != keys::VGPU_TIME && !key.starts_with(keys::TESSERA_PREFIX));
    for value in annotations.values_mut() {
        if value.len() == 19 && value.bytes().all(|byte| byte.is_ascii_digit()) {
            *value = "<time>".to_owned();
        }
    }
    annotations
}

fn patch_annotations(case: &Case) -> Result<Value, String> {
    let engine = engine(case)?;
    let class = class(case)?;
    let vendor = vendor(engine.vendors(), &class)?;
    let mut pod = PodView::from_json(&member(&case.input, "pod")?).map_err(text)?;
    let given: Vec<Vec<Given>> = member(&case.input, "containers")?;
    // A pod that could not be asked for is written all the same, container by container.
    let mut demand = engine
        .demand(&PodView {
            containers: Vec::new(),
            ..pod.clone()
        })
        .map_err(text)?;
    for container in std::mem::take(&mut pod.containers) {
        let alone = PodView {
            containers: vec![container],
            ..pod.clone()
        };
        demand
            .containers
            .extend(engine.demand(&alone).map_err(text)?.containers);
    }
    let shares = given
        .iter()
        .map(|container| container.iter().map(|given| given.share(&class)).collect())
        .collect::<Result<Vec<_>, String>>()?;
    let prior = prior_cards(case, vendor)?;
    let mut cards = Vec::new();
    for given in given.iter().flatten() {
        cards.extend(given.card(vendor, &prior)?);
    }
    let mut allocation = Allocation::default();
    allocation.classes.insert(class, shares);
    let node = NodeName::new("n1").map_err(text)?;
    let context = WriteContext {
        node: &node,
        now_seconds: now(),
        cards: &cards,
    };
    let mut annotations = written(engine.annotations(&allocation, &demand, &context));
    annotations.remove(keys::VGPU_NODE);
    Ok(json!({"annotations": annotations}))
}

/// Only the class of whole Kunlunxin cards scores nodes.
fn class_node_score(case: &Case) -> Result<Value, String> {
    let vendors = vendors()?;
    let class = class(case)?;
    let vendor = vendor(&vendors, &class)?;
    let previous: Vec<Device> = member(&case.input, "previous")?;
    let mine: Vec<&Device> = previous.iter().filter(|device| device.model == KUNLUN).collect();
    let count = mine.len().to_string();
    let mut world = World::new(Arc::clone(&vendors));
    let node = json!({"metadata": {"name": "n1"}, "status": {
        "capacity": {"kunlunxin.com/xpu": count}, "allocatable": {"kunlunxin.com/xpu": count}}});
    world.set_node(&NodeView::from_json(&node).map_err(text)?);
    for device in mine.iter().filter(|device| device.used > 0) {
        let pod = json!({
            "metadata": {"name": device.id, "namespace": "ns", "uid": device.id, "annotations": {
                "hami.io/vgpu-node": "n1", "hami.io/kunlun-allocated": format!("{},{KUNLUN},98304,100:;", device.id)}},
            "spec": {"nodeName": "n1", "containers": [{"name": "c", "resources": {"limits": {"kunlunxin.com/xpu": "1"}}}]},
            "status": {"phase": "Running"},
        });
        world.set_pod(&PodView::from_json(&pod).map_err(text)?);
    }
    let placed = member::<Vec<Vec<Given>>>(&case.input, "containers")?
        .iter()
        .map(|container| {
            container
                .iter()
                .map(|given| {
                    Ok(Share {
                        card: CardId::new(format!("n1-{KUNLUN}-{}", given.idx)).map_err(text)?,
                        ..given.share(&class)?
                    })
                })
                .collect()
        })
        .collect::<Result<Vec<_>, String>>()?;
    let snapshot = world.snapshot();
    let node = snapshot.node("n1").ok_or("no node")?;
    let score = vendor.node_score(&placed, &Default::default(), node, NodePolicy::Binpack);
    Ok(json!({"score": score}))
}

fn add_usage(case: &Case) -> Result<Value, String> {
    let class = class(case)?;
    let device: Device = member(&case.input, "device")?;
    let shares = member::<Vec<Given>>(&case.input, "allocs")?
        .iter()
        .map(|given| given.share(&class))
        .collect::<Result<Vec<_>, _>>()?;
    let mut allocation = Allocation::default();
    allocation.classes.insert(class.clone(), vec![shares]);
    let added = effective_usage(&allocation, &[], false)
        .0
        .into_iter()
        .fold(CardUsage::default(), |sum, (_, (_, usage))| sum.plus(usage));
    let sum = device.usage(&class).plus(added);
    let cores = if class.as_str() == NEURON {
        mask(sum.extra, 8)
    } else {
        sum.cores.get()
    };
    Ok(json!({"used": sum.slots, "usedmem": sum.memory, "usedcores": cores}))
}

fn schedule(case: &Case) -> Result<Value, String> {
    let engine = engine(case)?;
    let mut world = World::new(Arc::clone(engine.vendors()));
    let mut names = Vec::new();
    for node in member::<Vec<Value>>(&case.input, "nodes")? {
        let node = NodeView::from_json(&node).map_err(text)?;
        names.push(node.name.to_string());
        world.set_node(&node);
    }
    for pod in member::<Option<Vec<Value>>>(&case.input, "existing_pods")?.unwrap_or_default() {
        let change = world.set_pod(&PodView::from_json(&pod).map_err(text)?);
        if !change.booked {
            return Err(format!("an existing pod books nothing: {:?}", change.problems));
        }
    }
    if let Some(pods) = member::<Option<Vec<Value>>>(&case.input, "pods")? {
        let results = pods
            .into_iter()
            .map(|pod| place(&engine, &mut world, &names, pod))
            .collect::<Result<Vec<_>, _>>()?;
        return Ok(json!({"results": results}));
    }
    let pod = member(&case.input, "pod")?;
    place(&engine, &mut world, &names, pod)
}

/// Decides for one pod and binds it.
fn place(engine: &Engine, world: &mut World, names: &[String], mut pod: Value) -> Result<Value, String> {
    let demand = engine.demand(&PodView::from_json(&pod).map_err(text)?).map_err(text)?;
    let snapshot = world.snapshot();
    let decision = engine.decide(&snapshot, &demand, Candidates::Names(names));
    let Some(winner) = decision.winner() else {
        let failed: Map<String, Value> = decision
            .refused
            .iter()
            .map(|(node, refusal)| (node.to_string(), json!(engine_text::hami_node(refusal))))
            .collect();
        return Ok(json!({"failed": failed}));
    };
    let context = WriteContext {
        node: &winner.node,
        now_seconds: now(),
        cards: snapshot.node(winner.node.as_str()).map_or(&[], |node| node.cards()),
    };
    let annotations = engine.annotations(&winner.allocation, &demand, &context);
    for (key, value) in &annotations {
        pod["metadata"]["annotations"][key] = json!(value);
    }
    pod["spec"]["nodeName"] = json!(winner.node);
    let change = world.set_pod(&PodView::from_json(&pod).map_err(text)?);
    if !change.booked || !world.audit().is_empty() {
        return Err(format!(
            "the books are wrong: {:?} {:?}",
            change.problems,
            world.audit()
        ));
    }
    Ok(json!({"nodes": [winner.node], "annotations": written(annotations)}))
}

/// Runs a suite, prints the table and fails on anything that is neither as the reference nor listed.
#[expect(clippy::panic, clippy::print_stdout, reason = "a test's own end")]
pub(crate) fn run_suite(name: &str, ops: &[(&'static str, Op)], elsewhere: &[(&'static str, &'static str)]) {
    use tessera_testkit::conformance::{Differences, Suite};
    let read = || -> Result<_, tessera_testkit::conformance::ConformanceError> {
        let suite = Suite::read(name)?.with(ops).without(elsewhere);
        Ok((suite, Differences::read_named(&format!("differences-{name}"))?))
    };
    let (suite, differences) = match read() {
        Ok(read) => read,
        Err(error) => panic!("{error}"),
    };
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
