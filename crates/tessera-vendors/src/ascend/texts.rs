//! What is written on a pod and read back.

use std::collections::BTreeMap;

use serde::Serialize;
use tessera_engine::AllocationProblem;
use tessera_types::{ClassAllocation, Cores, Share};
use tessera_wire::device_text;

use super::chip::{Chip, MODE_KEY, MODE_SOFT, Size, TIME_KEY, soft_cost};

/// One NPU of the list that the plugin reads.
#[derive(Serialize)]
struct Npu<'a> {
    #[serde(rename = "UUID")]
    id: &'a str,
    #[serde(rename = "temp", skip_serializing_if = "Option::is_none")]
    template: Option<&'a str>,
    #[serde(skip_serializing_if = "is_zero")]
    memory: u64,
    #[serde(skip_serializing_if = "is_zero")]
    core: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The annotations of a pod with these shares.
pub(super) fn print(chip: &Chip, class: &ClassAllocation, soft: bool, now: i64) -> BTreeMap<String, String> {
    let mut annotations = BTreeMap::new();
    if class.is_empty() {
        return annotations;
    }
    let list: Vec<Npu<'_>> = class
        .iter()
        .flatten()
        .map(|share| Npu {
            id: share.card.as_str(),
            template: match chip.size(share.memory) {
                Size::Template(template) if !soft => Some(template.name.as_str()),
                _ => None,
            },
            memory: share.memory.get(),
            core: u64::from(share.cores.get()),
        })
        .collect();
    let text = device_text::print(class);
    for key in [&chip.keys.to_allocate, &chip.keys.allocated].into_iter().flatten() {
        annotations.insert(key.clone(), text.clone());
    }
    // A list of texts and numbers always serialises.
    let list = serde_json::to_string(&list).unwrap_or_else(|_| "[]".to_owned());
    annotations.insert(chip.list_key.clone(), list);
    annotations.insert(TIME_KEY.to_owned(), now.to_string());
    annotations
}

/// What the annotations say was given. A share without a soft slice's mark is the template that its plugin cuts, which
/// may be larger than what a foreign scheduler wrote.
pub(super) fn read(
    chip: &Chip,
    annotations: &BTreeMap<String, String>,
) -> Result<Option<ClassAllocation>, AllocationProblem> {
    let Some(key) = chip.keys.allocated.as_ref() else {
        return Ok(None);
    };
    let Some(text) = annotations.get(key) else {
        return Ok(None);
    };
    let mut class = device_text::parse(text).map_err(|error| AllocationProblem {
        key: key.clone(),
        fault: error.to_string(),
        text: text.clone(),
    })?;
    let soft = annotations.get(MODE_KEY).is_some_and(|mode| mode == MODE_SOFT);
    for share in class.iter_mut().flatten() {
        hold(chip, share, soft);
    }
    Ok(Some(class))
}

/// Fills in what the share really holds.
fn hold(chip: &Chip, share: &mut Share, soft: bool) {
    if soft {
        share.extra = soft_cost();
        return;
    }
    let size = chip.size(share.memory);
    share.memory = share.memory.max(chip.memory(size));
    share.cores = Cores::ZERO;
    share.extra = chip.cost(size);
}
