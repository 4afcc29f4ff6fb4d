//! One container on given cards; scores and orders; instances.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};
use tessera_engine::{Held, Quotas, TrialCard, order, text as engine_text};
use tessera_testkit::build;
use tessera_testkit::conformance::wire_ops::{member, nvidia};
use tessera_testkit::conformance::{Case, Op};
use tessera_types::{
    Ask, Card, CardMode, CardPolicy, CardUsage, Cores, MemoryAsk, Mib, MigProfile, NodePolicy, Placement, Weights,
};
use tessera_vendors::nvidia::mig;
use tessera_wire::{PodView, keys, register};

use super::{engine, quotas, text};

pub(crate) const OPS: &[(&str, Op)] = &[
    ("fit-container", fit_container),
    ("device-score", device_score),
    ("node-score", node_score),
    ("device-order", device_order),
    ("rank-nodes", rank_nodes),
    ("mig-place", mig_place),
];

#[derive(Deserialize)]
struct Profile {
    name: String,
    #[serde(rename = "memoryMB")]
    memory: Mib,
    core: Cores,
    #[serde(rename = "sliceCount")]
    slices: u32,
    placements: Vec<Placement>,
}

impl From<Profile> for MigProfile {
    fn from(profile: Profile) -> Self {
        Self {
            name: profile.name,
            memory: profile.memory,
            cores: profile.core,
            slices: profile.slices,
            placements: profile.placements,
        }
    }
}

#[derive(Deserialize)]
struct InUse {
    profile: String,
    placement: Placement,
}

impl From<InUse> for Held {
    fn from(held: InUse) -> Self {
        Self {
            profile: Arc::from(held.profile.as_str()),
            placement: held.placement,
        }
    }
}

#[derive(Deserialize)]
struct Device {
    id: String,
    #[serde(default)]
    index: u32,
    count: u32,
    used: u32,
    totalmem: Mib,
    #[serde(default)]
    usedmem: Mib,
    totalcore: Cores,
    #[serde(default)]
    usedcores: Cores,
    #[serde(default, rename = "type")]
    model: String,
    numa: i32,
    #[serde(default)]
    health: bool,
    #[serde(default)]
    mode: String,
    #[serde(default)]
    mig_profiles: Vec<Profile>,
    #[serde(default)]
    mig_in_use: Vec<InUse>,
    #[serde(default)]
    score: f32,
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

    fn trial(self) -> TrialCard {
        let usage = self.usage();
        let card = Card {
            index: self.index,
            slots: self.count,
            memory: self.totalmem,
            cores: self.totalcore,
            model: Arc::from(self.model.as_str()),
            numa: self.numa,
            mode: CardMode::new(&self.mode),
            healthy: self.health,
            mig_profiles: self.mig_profiles.into_iter().map(Into::into).collect(),
            ..build::card(&self.id).card()
        };
        TrialCard {
            card,
            usage,
            instances: self.mig_in_use.into_iter().map(Into::into).collect(),
            cordoned: false,
        }
    }
}

fn devices(case: &Case) -> Result<Vec<Device>, String> {
    member(&case.input, "devices")
}

#[derive(Deserialize)]
struct Request {
    #[serde(rename = "type")]
    class: String,
    nums: u32,
    memreq: u64,
    mempercent: u32,
    coresreq: u32,
}

impl Request {
    fn ask(self) -> Result<Ask, String> {
        let memory = match (self.memreq, self.mempercent) {
            (0, percent) if percent <= 100 => MemoryAsk::Percent(percent),
            (memory, _) => MemoryAsk::Mib(Mib::new(memory)),
        };
        Ok(Ask {
            class: tessera_types::Keyword::new(&self.class).map_err(text)?,
            count: self.nums,
            percent_beside: (self.memreq > 0 && self.mempercent <= 100).then_some(self.mempercent),
            memory,
            cores: Cores::new(self.coresreq),
            extra: Vec::new(),
        })
    }
}

fn fit_container(case: &Case) -> Result<Value, String> {
    let engine = engine(case)?;
    let class = nvidia()?;
    let vendor = engine.vendors().get(&class).ok_or("no NVIDIA class")?;
    let pod: PodView = member(&case.input, "pod")?;
    let node: BTreeMap<String, String> = member::<Option<_>>(&case.input, "node_annotations")?.unwrap_or_default();
    let cordoned: Vec<&str> = node
        .get(keys::DEVICE_CORDON)
        .map(|list| list.split(',').map(str::trim).collect())
        .unwrap_or_default();
    let scores: Option<Value> = member(&case.input, "pair_scores")?;
    let scores = scores
        .map_or(Ok(BTreeMap::new()), |scores| {
            register::parse_scores(&scores.to_string())
        })
        .map_err(text)?;
    let mut cards: Vec<TrialCard> = devices(case)?.into_iter().map(Device::trial).collect();
    for trial in &mut cards {
        trial.cordoned = cordoned.contains(&trial.card.id.as_str());
        register::join_scores(std::slice::from_mut(&mut trial.card), &scores);
    }
    let mut books = Quotas::default();
    for (namespace, name, hard) in quotas(&case.input, "quotas")? {
        books.set(&namespace, &name, &hard, |_| true);
    }
    let policy = pod
        .annotation(keys::GPU_POLICY)
        .map(|policy| CardPolicy::parse(policy).0);
    let ask = member::<Request>(&case.input, "request")?.ask()?;
    let selection = vendor.selection(&pod).map_err(text)?;
    // The cases list the cards in sorted order, which is examined from its end.
    let examined: Vec<usize> = (0..cards.len()).rev().collect();
    let room = books.room(&pod.id.namespace, vendor.names());
    Ok(
        match engine.fit_cards(&cards, Some(&examined), &ask, &selection, policy.as_ref(), room) {
            Ok(given) => {
                let devices: Vec<Value> = given
                .iter()
                .filter_map(|given| {
                    let card = &cards.get(given.position)?.card;
                    Some(json!({"uuid": card.id, "type": class, "mem": given.asked_memory, "cores": given.asked_cores}))
                })
                .collect();
                json!({"fit": true, "devices": devices})
            }
            Err(refusal) => json!({"fit": false, "reason": engine_text::hami_node(&refusal)}),
        },
    )
}

fn device_score(case: &Case) -> Result<Value, String> {
    let trial = member::<Device>(&case.input, "device")?.trial();
    let asks = member::<Vec<Request>>(&case.input, "requests")?
        .into_iter()
        .map(Request::ask)
        .collect::<Result<Vec<_>, _>>()?;
    let weights = match member::<Option<Value>>(&case.input, "weights")? {
        None => Weights::default(),
        Some(weights) => Weights {
            slot: member(&weights, "slot")?,
            core: member(&weights, "core")?,
            memory: member(&weights, "memory")?,
        },
    };
    Ok(json!({"score": order::card_score(&trial.card, trial.usage, &asks, weights)}))
}

fn node_score(case: &Case) -> Result<Value, String> {
    let cards: Vec<TrialCard> = devices(case)?.into_iter().map(Device::trial).collect();
    let score = order::node_score(
        cards.iter().map(|trial| (&trial.card, trial.usage)),
        CardUsage::default(),
    );
    Ok(json!({"score": score}))
}

fn device_order(case: &Case) -> Result<Value, String> {
    let devices = devices(case)?;
    let mut ranks: Vec<order::Rank> = devices
        .iter()
        .enumerate()
        .map(|(position, device)| order::Rank {
            score: device.score,
            numa: device.numa,
            slots_used: device.used,
            index: device.index,
            position,
        })
        .collect();
    let (policy, _) = CardPolicy::parse(&member::<String>(&case.input, "policy")?);
    order::sort(&mut ranks, &policy, member(&case.input, "numa_bind")?);
    let examined: Vec<&str> = ranks
        .iter()
        .filter_map(|rank| devices.get(rank.position))
        .map(|device| device.id.as_str())
        .collect();
    Ok(json!({"examined": examined}))
}

fn rank_nodes(case: &Case) -> Result<Value, String> {
    let scores: BTreeMap<String, f64> = member(&case.input, "scores")?;
    let policy = NodePolicy::parse(&member::<String>(&case.input, "policy")?).unwrap_or_default();
    let winner = order::best_node(policy, scores.iter().map(|(name, score)| (name.as_str(), *score)));
    Ok(json!({"winner": winner}))
}

fn mig_place(case: &Case) -> Result<Value, String> {
    let profiles: Vec<MigProfile> = member::<Vec<Profile>>(&case.input, "profiles")?
        .into_iter()
        .map(Into::into)
        .collect();
    let mut taken: Vec<Held> = member::<Vec<InUse>>(&case.input, "in_use")?
        .into_iter()
        .map(Into::into)
        .collect();
    let mut placements = Vec::new();
    for memory in member::<Vec<u64>>(&case.input, "memory_requests")? {
        let Some((profile, placement)) = mig::find(&profiles, &taken, &[], Mib::new(memory)) else {
            placements.push(Value::Null);
            continue;
        };
        taken.push(Held {
            profile: Arc::from(profile.name.as_str()),
            placement,
        });
        placements.push(json!({
            "profile": profile.name, "placement": placement, "mem": profile.memory, "cores": profile.cores,
        }));
    }
    Ok(json!({"placements": placements}))
}
