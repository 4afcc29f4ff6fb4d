//! What one maker does and data cannot say.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use serde::Deserialize;

use crate::machine::Card;
use crate::part::Quirk;
use crate::pick::annotation;
use crate::promise::Share;

/// Variables and pod annotations that a quirk adds to an answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct More {
    pub(crate) env: Vec<(String, String)>,
    pub(crate) annotations: BTreeMap<String, String>,
}

/// One entry of Ascend's own annotation.
#[derive(Deserialize)]
struct Chip {
    #[serde(rename = "UUID")]
    uuid: String,
    #[serde(default)]
    temp: String,
    #[serde(default)]
    memory: u64,
    #[serde(default)]
    core: u64,
}

/// Ascend: the plugin refuses a pod without its annotation, names the template, and prepares soft slices.
fn ascend(pod: &Pod, held: &[(&Card, Share)]) -> Result<More, String> {
    let word = held.first().and_then(|(card, _)| card.words.get("word"));
    let key = format!("huawei.com/{}", word.map_or("", String::as_str));
    let text = annotation(pod, &key).ok_or_else(|| format!("the pod has no annotation {key}"))?;
    let chips: Vec<Chip> = serde_json::from_str(text).map_err(|error| format!("{key}: {error}"))?;
    let mut by_id = BTreeMap::new();
    for chip in &chips {
        by_id.insert(chip.uuid.as_str(), chip);
    }
    let chosen: Vec<&&Chip> = held
        .iter()
        .filter_map(|(card, _)| by_id.get(card.id.as_str()))
        .collect();
    if chosen.len() != held.len() {
        return Err(format!("{key} does not name every card of the container"));
    }
    let mut more = More::default();
    let mut set = |name: &str, value: String| more.env.push((name.to_owned(), value));
    if annotation(pod, "huawei.com/vnpu-mode") == Some("hami-core") {
        if let Some(chip) = chosen.first() {
            set("NPU_MEM_QUOTA", chip.memory.to_string());
            if chip.core > 0 {
                set("NPU_PRIORITY", chip.core.to_string());
            }
        }
        if let Some((card, _)) = held.first() {
            set(
                "NPU_GLOBAL_SHM_PATH",
                format!("/hami-shared-region/{}_global_registry", card.index),
            );
        }
        set("NPU_LOCAL_SHM_PATH", "/hami-vnpu-shmem/vnpu_local_shmem".to_owned());
    } else if let Some(chip) = chosen.iter().find(|chip| !chip.temp.is_empty()) {
        set("ASCEND_VNPU_SPECS", chip.temp.clone());
    }
    Ok(more)
}

const AMD_UNITS: &str = "hami.io/amd-cu-allocated";

/// Ranges such as `0-75,152-227`.
fn ranges(text: &str) -> Result<Vec<bool>, String> {
    let mut set = Vec::new();
    for range in text.split(',').filter(|range| !range.is_empty()) {
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        let number = |text: &str| text.parse::<usize>().ok().filter(|n| *n < 4096);
        let (Some(from), Some(to)) = (number(from), number(to)) else {
            return Err(format!("`{range}` is no range of units"));
        };
        if set.len() <= to {
            set.resize(to + 1, false);
        }
        for unit in set.iter_mut().take(to + 1).skip(from) {
            *unit = true;
        }
    }
    Ok(set)
}

fn print_ranges(units: &[usize]) -> String {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for unit in units {
        match parts.last_mut() {
            Some((_, end)) if *end + 1 == *unit => *end = *unit,
            _ => parts.push((*unit, *unit)),
        }
    }
    let text = |(from, to): (usize, usize)| {
        if from == to {
            from.to_string()
        } else {
            format!("{from}-{to}")
        }
    };
    parts.into_iter().map(text).collect::<Vec<_>>().join(",")
}

/// AMD: takes the lowest free compute units of each card, as the annotations of the node's other pods say.
fn amd(pod: &Pod, held: &[(&Card, Share)], others: &[Pod]) -> Result<More, String> {
    let mut taken: BTreeMap<String, Vec<bool>> = BTreeMap::new();
    for other in others {
        let phase = other.status.as_ref().and_then(|status| status.phase.as_deref());
        if matches!(phase, Some("Succeeded" | "Failed")) {
            continue;
        }
        let Some(text) = annotation(other, AMD_UNITS) else {
            continue;
        };
        let sets: BTreeMap<String, String> = serde_json::from_str(text).map_err(|error| error.to_string())?;
        for (card, text) in sets {
            let set = ranges(&text)?;
            let sum = taken.entry(card).or_default();
            sum.resize(sum.len().max(set.len()), false);
            for (at, used) in set.into_iter().enumerate() {
                sum[at] |= used;
            }
        }
    }
    let mut mine: BTreeMap<String, String> = annotation(pod, AMD_UNITS)
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default();
    let mut masks = Vec::new();
    for (position, (card, share)) in held.iter().enumerate() {
        let total: usize = card.words.get("cores").and_then(|text| text.parse().ok()).unwrap_or(0);
        let wanted = usize::try_from(share.percent).unwrap_or(usize::MAX);
        let used = taken.entry(card.id.clone()).or_default();
        let free: Vec<usize> = (0..total)
            .filter(|unit| !used.get(*unit).copied().unwrap_or(false))
            .take(wanted)
            .collect();
        if free.len() < wanted {
            return Err(format!(
                "card {} has {} free units, {wanted} are asked for",
                card.id,
                free.len()
            ));
        }
        let text = print_ranges(&free);
        masks.push(format!("{position}:{text}"));
        mine.entry(card.id.clone())
            .and_modify(|before| *before = format!("{before},{text}"))
            .or_insert(text);
    }
    let text = serde_json::to_string(&mine).map_err(|error| error.to_string())?;
    Ok(More {
        env: vec![("HSA_CU_MASK".to_owned(), masks.join(";"))],
        annotations: BTreeMap::from([(AMD_UNITS.to_owned(), text)]),
    })
}

/// What the quirk adds for a container that gets `held`. `others`: the pods of the node.
///
/// # Errors
/// Why the plugin refuses.
pub(crate) fn more(quirk: Quirk, pod: &Pod, held: &[(&Card, Share)], others: &[Pod]) -> Result<More, String> {
    match quirk {
        Quirk::Ascend => ascend(pod, held),
        Quirk::Amd => amd(pod, held, others),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_units_print_as_they_read() {
        assert_eq!(print_ranges(&[0, 1, 2, 5, 7, 8]), "0-2,5,7-8");
        let set = ranges("0-2,5,7-8").unwrap();
        assert_eq!(set.iter().filter(|used| **used).count(), 6);
        assert!(ranges("1-x").is_err() && ranges("0-9999999").is_err());
    }
}
