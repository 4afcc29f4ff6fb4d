//! Which cards an allocation is, and what the container gets. Pure: annotations in, annotations out.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::play::{Choose, Part};
use crate::texts::{Card, fill};

/// A part of a card, as promised by the scheduler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// The card's name.
    pub card: String,
    /// MiB; 0 where the text has none.
    pub memory: u64,
    /// In the unit of the text.
    pub cores: u64,
}

/// What one container gets.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Given {
    /// Its shares.
    pub shares: Vec<Share>,
    /// Environment.
    pub env: BTreeMap<String, String>,
    /// Device files.
    pub devices: Vec<String>,
}

/// The outcome of one call of the kubelet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Served {
    /// In the order of the requests.
    pub containers: Vec<Given>,
    /// To be written on the pod.
    pub annotations: BTreeMap<String, String>,
    /// Whether this plugin has nothing more to do for the pod.
    pub done: bool,
}

/// The variable by which a test sees what a container was given: `<vendor>=<card>,<MiB>,<cores>;...`. The one thing that
/// no real plugin sets.
pub const PLAYED: &str = "TESSERA_PLAYED";

/// Answers one call for a pod with these `annotations`. `calls` counts the calls for the pod that were answered before;
/// `requests` are the kubelet's ids by container.
///
/// # Errors
/// What the plugin would say; the pod fails.
pub fn answer(
    part: &Part,
    cards: &[Card],
    annotations: &BTreeMap<String, String>,
    calls: u32,
    requests: &[Vec<String>],
) -> Result<Served, String> {
    let mut served = Served::default();
    match &part.play.choose {
        Choose::Ids => {
            for ids in requests {
                let shares = ids.iter().map(|id| Share {
                    card: id.clone(),
                    memory: 0,
                    cores: 0,
                });
                served.containers.push(give(part, cards, annotations, shares.collect()));
            }
            served.done = true;
        }
        Choose::ToAllocate { key, .. } => {
            let key = part.named(key);
            let text = annotations.get(&key).ok_or(format!("annotation `{key}` is not set"))?;
            let mut entries: Vec<&str> = text.split(';').collect();
            for ids in requests {
                let entry = entries
                    .iter_mut()
                    .find(|entry| !entry.is_empty())
                    .ok_or(format!("annotation `{key}` has no entry left for this container"))?;
                let shares = entry_shares(entry)?;
                if shares.len() != ids.len() {
                    return Err(format!(
                        "device number not matched: annotation has {}, request has {}",
                        shares.len(),
                        ids.len()
                    ));
                }
                *entry = "";
                served.containers.push(give(part, cards, annotations, shares));
            }
            served.done = entries.iter().all(|entry| entry.is_empty());
            served.annotations.insert(key, entries.join(";"));
        }
        Choose::DeviceJson { key, .. } => {
            let text = annotations.get(key).ok_or(format!("annotation `{key}` is not set"))?;
            let all: Vec<Vec<Value>> =
                serde_json::from_str(text).map_err(|error| format!("annotation `{key}`: {error}"))?;
            let skip = usize::try_from(calls).unwrap_or(usize::MAX);
            let mut waiting = all.iter().filter(|container| !container.is_empty()).skip(skip);
            for ids in requests {
                let container = waiting
                    .next()
                    .ok_or(format!("annotation `{key}` has no entry left for this container"))?;
                if container.len() != ids.len() {
                    return Err(format!("{} cards promised, {} asked for", container.len(), ids.len()));
                }
                let number = |entry: &Value, name: &str| entry.get(name).and_then(Value::as_u64).unwrap_or(0);
                let shares = container.iter().map(|entry| Share {
                    card: entry["uuid"].as_str().unwrap_or_default().to_owned(),
                    memory: number(entry, "vRam"),
                    cores: number(entry, "compute"),
                });
                served.containers.push(give(part, cards, annotations, shares.collect()));
            }
            served.done = waiting.next().is_none();
        }
        Choose::Dsmlu { calls: all, unit_mib } => {
            let key = "CAMBRICON_DSMLU_PROFILE";
            let profile = annotations.get(key).ok_or(format!("annotation `{key}` is not set"))?;
            let numbers: Vec<u64> = profile.split('_').filter_map(|field| field.parse().ok()).collect();
            let [index, cores, units] = numbers[..] else {
                return Err(format!(
                    "annotation `{key}` is `{profile}`, not `<card>_<cores>_<memory>`"
                ));
            };
            let card = cards
                .iter()
                .find(|card| u64::from(card.index) == index)
                .ok_or(format!("there is no card {index}"))?;
            let share = Share {
                card: card.id.clone(),
                memory: units * unit_mib,
                cores,
            };
            for _ in requests {
                served
                    .containers
                    .push(give(part, cards, annotations, vec![share.clone()]));
            }
            served.done = calls + 1 >= *all;
            if served.done {
                let instance = format!("1_{}_{index}_1", (1 << 8) | index);
                served
                    .annotations
                    .insert("CAMBRICON_DSMLU_ASSIGHED".into(), "true".into());
                served
                    .annotations
                    .insert("CAMBRICON_DSMLU_PROFILE_INSTANCE".into(), instance);
            }
        }
        Choose::Gcushare { key, .. } => {
            let text = annotations.get(key).ok_or(format!("annotation `{key}` is not set"))?;
            let mut all: BTreeMap<String, Value> =
                serde_json::from_str(text).map_err(|error| format!("annotation `{key}`: {error}"))?;
            let minor: u32 = annotations
                .get("enflame.com/gcu-assigned-minor")
                .and_then(|text| text.parse().ok())
                .ok_or("annotation `enflame.com/gcu-assigned-minor` is not set")?;
            let card = cards
                .iter()
                .find(|card| card.index == minor)
                .ok_or(format!("there is no card {minor}"))?;
            for ids in requests {
                let slices = ids.len() as u64;
                let container = all
                    .values_mut()
                    .find(|container| {
                        container["allocated"] != json!(true) && container["request"].as_u64() == Some(slices)
                    })
                    .ok_or(format!("no container waits for {slices} slices"))?;
                container["allocated"] = json!(true);
                container["instanceUUID"] = json!(format!("{}-{}", card.id, slices));
                let share = Share {
                    card: card.id.clone(),
                    memory: 0,
                    cores: slices,
                };
                served.containers.push(give(part, cards, annotations, vec![share]));
            }
            served.done = all.values().all(|container| container["allocated"] == json!(true));
            served.annotations.insert(key.clone(), json!(all).to_string());
            let done = served.done.to_string();
            served.annotations.insert("enflame.com/gcu-assigned".into(), done);
        }
    }
    Ok(served)
}

/// `<card>,<type>,<MiB>,<cores>:...`
fn entry_shares(entry: &str) -> Result<Vec<Share>, String> {
    entry
        .split(':')
        .filter(|device| !device.is_empty())
        .map(|device| match device.split(',').collect::<Vec<_>>()[..] {
            [card, _, memory, cores, ..] => Ok(Share {
                card: card.to_owned(),
                memory: memory.parse().unwrap_or(0),
                cores: cores.parse().unwrap_or(0),
            }),
            _ => Err(format!("device `{device}` is not `<card>,<type>,<MiB>,<cores>`")),
        })
        .collect()
}

fn give(part: &Part, cards: &[Card], annotations: &BTreeMap<String, String>, mut shares: Vec<Share>) -> Given {
    if part.misbehave.wrong {
        for share in &mut shares {
            let at = cards.iter().position(|card| card.id == share.card).unwrap_or(0);
            if let Some(next) = cards.get((at + 1) % cards.len().max(1)) {
                share.card.clone_from(&next.id);
            }
        }
    }
    let known: Vec<&Card> = shares
        .iter()
        .filter_map(|share| {
            // Kubelet's ids begin with the card's name.
            cards
                .iter()
                .find(|card| card.id == share.card)
                .or_else(|| cards.iter().find(|card| share.card.starts_with(&card.id)))
        })
        .collect();
    let list = |text: &dyn Fn(&Card) -> String| known.iter().map(|card| text(card)).collect::<Vec<_>>().join(",");
    let (names, indexes) = (list(&|card| card.id.clone()), list(&|card| card.index.to_string()));
    let number = |of: &dyn Fn(&Share) -> u64| shares.first().map_or(0, of).to_string();
    let (memory, cores) = (number(&|share| share.memory), number(&|share| share.cores));
    let values = [
        ("cards", names.as_str()),
        ("indexes", &indexes),
        ("memory", &memory),
        ("cores", &cores),
    ];
    let mut env: BTreeMap<String, String> = part
        .play
        .answer
        .env
        .iter()
        .map(|(name, text)| (name.clone(), fill(text, &values)))
        .collect();
    if let Some(from) = &part.play.answer.env_from_device_json {
        let array: Vec<Value> = annotations
            .get(&part.named(&from.key))
            .and_then(|text| serde_json::from_str(text).ok())
            .unwrap_or_default();
        if let Some(text) = array.iter().find_map(|device| device.get(&from.member)?.as_str()) {
            env.insert(from.name.clone(), text.to_owned());
        }
    }
    let spelled: Vec<String> = shares
        .iter()
        .map(|share| format!("{},{},{}", share.card, share.memory, share.cores))
        .collect();
    // A container with cards of two makers gets one variable from each.
    let variable = format!("{PLAYED}_{}", part.vendor.replace('-', "_").to_uppercase());
    env.insert(variable, spelled.join(";"));
    let mut devices: Vec<String> = Vec::new();
    for card in &known {
        for template in &part.play.answer.devices {
            let path = fill(
                template,
                &[
                    ("index", &card.index.to_string()),
                    ("render", &(128 + card.index).to_string()),
                ],
            );
            if !devices.contains(&path) {
                devices.push(path);
            }
        }
    }
    Given { shares, env, devices }
}
