//! A storm over the cards of several makers: pods of all their names at once, random deletes, kills of scheduler, agent
//! and players.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams};
use serde_json::{Value, json};
use tessera_players::play::{Choose, Part};

use crate::product;
use crate::stage::{Stage, annotation, bound, phase, wait_for};
use crate::storm::{Dice, Whom, booked, failed, kill_ours, nobody_to_ask, probe_pod, ran_well, refusal};

/// The node of this storm, as a file for `./up --cards`.
pub const CARDS: &str = "\
cards:
  - {model: A100-SXM4-40GB, count: 2}
players:
  - {vendor: ascend, model: Ascend910B3, count: 2}
  - {vendor: hygon, model: K100_AI, count: 2}
  - {vendor: metax, model: C500, count: 2}
  - {vendor: cambricon, model: MLU370-X8, count: 2}
  - {vendor: intel, model: Arc-Pro-B60, count: 2}
";

/// What a round saw.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    /// Pods that ran, and were given what their annotation says where the maker's protocol proves the owner.
    pub agreed: u32,
    /// Pods deleted on the way.
    pub deleted: u32,
    /// Kills.
    pub kills: u32,
    /// Pods refused while the program that serves their cards was dead.
    pub unasked: u32,
    /// From the first creation to the end of the last pod.
    pub took: Duration,
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} pods ran with what their annotation says, {} deleted on the way, {} refused while their plugin was dead, {} kills, {:.0} s; bookings equal the API's objects",
            self.agreed,
            self.deleted,
            self.unasked,
            self.kills,
            self.took.as_secs_f32()
        )
    }
}

/// What `pod`'s annotations promise of `part`'s cards, spelled as a player spells what it gives.
#[must_use]
pub fn promised(pod: &Pod, part: &Part) -> Option<String> {
    let node = pod.spec.as_ref()?.node_name.clone()?;
    let cards = part.cards(&node);
    if let Choose::Dsmlu { unit_mib, .. } = &part.play.choose {
        let profile = annotation(pod, "CAMBRICON_DSMLU_PROFILE")?;
        let numbers: Vec<u64> = profile.split('_').filter_map(|number| number.parse().ok()).collect();
        let [index, cores, units] = numbers[..] else { return None };
        let card = cards.iter().find(|card| u64::from(card.index) == index)?;
        return Some(format!("{},{},{cores}", card.id, units * unit_mib));
    }
    let ours = |device: &str| {
        let fields: Vec<&str> = device.split(',').collect();
        match fields[..] {
            [card, _, memory, cores, ..] if cards.iter().any(|own| own.id == card) => {
                Some(format!("{card},{memory},{cores}"))
            }
            _ => None,
        }
    };
    let found: Vec<String> = allocated(pod)
        .flat_map(|text| text.split([';', ':']).filter_map(ours).collect::<Vec<_>>())
        .collect();
    (!found.is_empty()).then(|| found.join(";"))
}

/// The allocation texts of all classes.
fn allocated(pod: &Pod) -> impl Iterator<Item = &str> {
    let annotations = pod.metadata.annotations.iter().flatten();
    annotations
        .filter(|(key, _)| key.starts_with("hami.io/") && key.ends_with("-devices-allocated"))
        .map(|(_, text)| text.as_str())
}

/// MiB by card over live bound pods.
fn held(pods: &[Pod]) -> BTreeMap<String, u64> {
    let mut held = BTreeMap::new();
    for pod in pods
        .iter()
        .filter(|pod| bound(pod) && !matches!(phase(pod), "Succeeded" | "Failed"))
    {
        for device in allocated(pod).flat_map(|text| text.split([';', ':'])) {
            if let [card, _, mib, ..] = device.split(',').collect::<Vec<_>>()[..] {
                *held.entry(card.to_owned()).or_default() += mib.parse::<u64>().unwrap_or(0);
            }
        }
    }
    held
}

/// One round of `count` pods in `namespace`, which must be empty.
///
/// # Errors
/// The first thing that a user would call broken.
pub async fn round(stage: &Stage, namespace: &str, count: u32, seed: u64) -> Result<Seen> {
    weather(stage, namespace, count, seed)
        .await
        .with_context(|| format!("seed {seed}, {count} pods"))
}

async fn weather(stage: &Stage, namespace: &str, count: u32, seed: u64) -> Result<Seen> {
    let (_, parts, _) = product::simulated(CARDS)?;
    let node = stage.cluster.node_name().to_owned();
    let mut sizes: BTreeMap<String, u64> = BTreeMap::new();
    for part in &parts {
        for card in part.cards(&node) {
            sizes.insert(card.id, part.model.memory_mib);
        }
    }
    let mut dice = Dice::new(seed);
    let mut seen = Seen::default();
    let start = Instant::now();
    let mut away: Vec<(Timestamp, Timestamp)> = Vec::new();
    let mut open: BTreeMap<String, Option<Part>> = BTreeMap::new();
    for number in 0..count {
        let name = format!("mixed-{number}");
        let at = usize::try_from(dice.below(parts.len() as u64 + 1)).unwrap_or(0);
        let part = parts.get(at).cloned();
        let pod = match &part {
            Some(part) => short(&name, part),
            None => probe_pod(
                &name,
                &[json!({ "nvidia.com/gpu": 1, "nvidia.com/gpumem": 2000 })],
                false,
                &json!({}),
            ),
        };
        stage.create(namespace, &pod).await.with_context(|| format!("creating {name}"))?;
        open.insert(name, part);
    }
    let deadline = start + Duration::from_secs(180 + 6 * u64::from(count));
    let mut next_blow = Instant::now() + Duration::from_secs(3);
    while !open.is_empty() {
        let pods = stage.pods(namespace).list(&ListParams::default()).await?.items;
        for (card, mib) in held(&pods) {
            if let Some(size) = sizes.get(&card) {
                ensure!(mib <= *size, "card {card} of {size} MiB is booked with {mib} MiB");
            }
        }
        for pod in &pods {
            let name = pod.metadata.name.clone().unwrap_or_default();
            let Some(part) = open.get(&name) else { continue };
            match phase(pod) {
                "Succeeded" => {
                    if let Some(part) = part {
                        agrees(stage, namespace, pod, part).await?;
                    }
                    seen.agreed += 1;
                    open.remove(&name);
                }
                "Failed" if ran_well(pod) => {
                    seen.unasked += 1;
                    open.remove(&name);
                }
                "Failed" if nobody_to_ask(pod) => {
                    let Some(time) = refusal(stage, namespace, pod).await? else { continue };
                    let excused = away.iter().any(|(from, until)| *from <= time && time <= *until);
                    ensure!(
                        excused,
                        "{name} was refused by the kubelet at {time}, when nothing was dead: {:?}",
                        pod.status.as_ref().and_then(|status| status.message.clone())
                    );
                    seen.unasked += 1;
                    open.remove(&name);
                }
                "Failed" => failed(stage, namespace, pod).await?,
                _ => {}
            }
        }
        ensure!(
            Instant::now() < deadline,
            "{} pods did not end in time: {:?}",
            open.len(),
            pods.iter()
                .find(|pod| phase(pod) == "Pending")
                .map(|pod| (&pod.metadata.name, &pod.metadata.annotations, &pod.status))
        );
        if Instant::now() >= next_blow {
            next_blow = Instant::now() + Duration::from_millis(4000 + dice.below(4000));
            match dice.below(6) {
                0..3 => {
                    let names: Vec<&String> = open.keys().collect();
                    let at = usize::try_from(dice.below(names.len() as u64)).unwrap_or(0);
                    if let Some(name) = names.get(at).map(|name| (*name).clone()) {
                        stage.delete(namespace, &name).await?;
                        open.remove(&name);
                        seen.deleted += 1;
                    }
                }
                3 => seen.kills += kill_ours(stage, "scheduler", Whom::Worker).await?,
                4 => seen.kills += kill_ours(stage, "agent", Whom::Worker).await?,
                _ => {
                    // The kubelet starts the container again after pauses that grow.
                    let from = Timestamp::now() - Duration::from_secs(1);
                    seen.kills += kill_players(stage).await?;
                    away.push((from, from + Duration::from_secs(120)));
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    seen.took = start.elapsed();
    bookings_equal(stage).await?;
    stage
        .pods(namespace)
        .delete_collection(&DeleteParams::default().grace_period(0), &ListParams::default())
        .await?;
    Ok(seen)
}

/// A pod of `part`'s example that tells what it was given, and ends.
fn short(name: &str, part: &Part) -> Value {
    let mut pod = product::player_sample(part);
    pod["metadata"]["name"] = json!(name);
    pod["spec"]["restartPolicy"] = json!("OnFailure");
    pod["spec"]["containers"][0]["command"] = json!(["/bin/sh", "-c", "env | grep ^TESSERA_PLAYED"]);
    pod
}

async fn agrees(stage: &Stage, namespace: &str, pod: &Pod, part: &Part) -> Result<()> {
    // Without a lock the maker's plugin guesses which of several pods is meant.
    if matches!(part.play.choose, Choose::ToAllocate { lock: false, .. }) {
        return Ok(());
    }
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let given = stage.line(namespace, name, "main", "TESSERA_PLAYED").await?;
    let promised = promised(pod, part).unwrap_or_default();
    ensure!(
        given == promised,
        "{name} was given {given}, its annotation says {promised}"
    );
    Ok(())
}

async fn kill_players(stage: &Stage) -> Result<u32> {
    let pods = stage.pods(product::NAMESPACE).list(&ListParams::default()).await?.items;
    let uids: Vec<String> = pods.into_iter().filter_map(|pod| pod.metadata.uid).collect();
    let mut killed = 0;
    for entry in std::fs::read_dir("/proc").context("reading /proc")?.flatten() {
        let pid = entry.file_name();
        let Some(pid) = pid.to_str().filter(|name| name.parse::<i32>().is_ok()) else {
            continue;
        };
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let group = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        let ours = uids.iter().any(|uid| group.contains(uid.as_str()) || group.contains(&uid.replace('-', "_")));
        if ours && command.starts_with(b"/opt/tessera/bin/tessera-player") {
            let status = std::process::Command::new("kill").args(["-9", pid]).status();
            killed += u32::from(status.is_ok_and(|status| status.success()));
        }
    }
    Ok(killed)
}

/// What the scheduler says is booked equals what the API's objects say, for every card of every maker.
///
/// # Errors
/// The cards that differ.
pub async fn bookings_equal(stage: &Stage) -> Result<()> {
    let mut differ = Vec::new();
    wait_for("bookings to equal the API's objects", Duration::from_secs(60), async || {
        let pods: kube::Api<Pod> = kube::Api::all(stage.client.clone());
        let truth = held(&pods.list(&ListParams::default()).await?.items);
        let Some(booked) = booked().await else { return Ok(false) };
        differ = booked
            .iter()
            .filter(|(card, bytes)| truth.get(*card).copied().unwrap_or(0) << 20 != **bytes)
            .map(|(card, bytes)| (card.clone(), *bytes))
            .collect();
        let missing = truth.keys().any(|card| !booked.contains_key(card));
        Ok(differ.is_empty() && !missing && !booked.is_empty())
    })
    .await
    .with_context(|| format!("booked otherwise: {differ:?}"))
}
