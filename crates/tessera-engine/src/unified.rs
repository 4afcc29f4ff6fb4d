//! One request for every maker's cards: `tessera.dev/gpu` with `tessera.dev/memory` and `tessera.dev/cores`.
//!
//! The kubelet and the makers' plugins know only the makers' own names, and a pod's resources are fixed once it exists.
//! So the request is translated at admission, to the first class that the pod says its image supports and that has room
//! now, else to the first whose cards may come free, else to the first that can express it. What it became is written on
//! the pod.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use tessera_types::{CardRule, ContainerRole, NodeName, NodeRefusal, ReasonKind};
use tessera_wire::admission::{PatchOp, pointer};
use tessera_wire::nearest::nearest;
use tessera_wire::{ContainerView, PodView, keys};

use crate::decide::{Candidates, Decision, Engine};
use crate::error::RequestError;
use crate::node::NodeState;
use crate::snapshot::Snapshot;
use crate::vendor::{Unified, Vendor};

/// A pod in a maker's own words.
pub(crate) struct Translated {
    pub(crate) pod: Value,
    /// From the pod as received to [`Translated::pod`].
    pub(crate) ops: Vec<PatchOp>,
}

/// The pod in the words of one class; `None` if it does not use the common names.
pub(crate) fn translate(
    pod: &Value,
    view: &PodView,
    engine: &Engine,
    snapshot: &Snapshot,
) -> Result<Option<Translated>, RequestError> {
    let mut asked = Vec::new();
    for (at, container) in view.containers.iter().enumerate() {
        if let Some(unified) = read(container)? {
            asked.push((at, unified));
        }
    }
    if asked.is_empty() {
        return Ok(None);
    }
    for (at, _) in &asked {
        let container = &view.containers[*at];
        let names = container.limits.keys().chain(container.requests.keys());
        if let Some(own) = names.into_iter().find(|name| engine.vendors().manages(name)) {
            return Err(RequestError::resource(
                &container.name,
                own,
                format!(
                    "it stands beside `{}`, and a container is asked for in one way",
                    keys::TESSERA_GPU
                ),
                "keep one of the two",
            ));
        }
    }
    if let Some(text) = view.annotation(keys::TESSERA_CARD_RULE) {
        CardRule::parse(text).map_err(|error| RequestError::rule(keys::TESSERA_CARD_RULE, &error))?;
    }
    let (mut first, mut hopeful) = (None, None);
    for vendor in supported(view, engine)? {
        let Some(translated) = in_words_of(vendor, pod, view, &asked) else {
            continue;
        };
        let Ok(view) = PodView::from_json(&translated.pod) else {
            continue;
        };
        let Ok(demand) = engine.demand(&view) else { continue };
        let decision = engine.decide(snapshot, &demand, Candidates::All);
        if decision.best.is_some() {
            return Ok(Some(translated));
        }
        if hopeful.is_none() && may_come_free(&decision, snapshot) {
            hopeful = Some(translated);
        } else {
            first.get_or_insert(translated);
        }
    }
    hopeful.or(first).map(Some).ok_or_else(|| {
        RequestError::annotation(
            keys::TESSERA_VENDORS,
            "none of these classes can give a part of a card by memory and compute",
            format!(
                "leave out `{}` and `{}`, or name another class",
                keys::TESSERA_MEMORY,
                keys::TESSERA_CORES
            ),
        )
    })
}

/// Whether some card stands in the way only by what is in use of it: waiting can help. A card that is too small, or not
/// one of those that the pod accepts, stays so.
fn may_come_free(decision: &Decision, snapshot: &Snapshot) -> bool {
    let of_node = |(name, refusal): &(NodeName, Arc<NodeRefusal>)| match &**refusal {
        NodeRefusal::Cards { reasons, .. } => reasons.iter().any(|reason| match reason.kind {
            ReasonKind::MemoryShort => {
                let cards = snapshot.node(name.as_str()).map(NodeState::cards).unwrap_or_default();
                let card = cards.iter().find(|card| Some(&card.id) == reason.card.as_ref());
                let wanted = reason.wanted.map_or(0, |(_, wanted)| wanted);
                card.is_none_or(|card| wanted <= card.memory.get())
            }
            ReasonKind::CoresShort
            | ReasonKind::AmountShort
            | ReasonKind::SlotsExhausted
            | ReasonKind::ComputeExhausted
            | ReasonKind::ExclusiveConflict
            | ReasonKind::PartitionConflict
            | ReasonKind::NoPlacement
            | ReasonKind::QuotaShort => true,
            _ => false,
        }),
        _ => false,
    };
    decision.refused.iter().any(of_node)
}

/// What a container asks for by the common names.
fn read(container: &ContainerView) -> Result<Option<Unified>, RequestError> {
    let error =
        |field: &str, problem: String, next: &str| Err(RequestError::resource(&container.name, field, problem, next));
    let number = |field: &'static str, most: i64, next: &'static str| match container.amount(field) {
        None => Ok(None),
        Some(quantity) => match quantity.as_integer() {
            Some(number) if (0..=most).contains(&number) => Ok(Some(number)),
            _ => Err(RequestError::resource(
                &container.name,
                field,
                format!("`{quantity}` is no such number"),
                next,
            )),
        },
    };
    let count = number(
        keys::TESSERA_GPU,
        i64::from(u16::MAX),
        "write a whole number of cards, such as 1",
    )?;
    let cores = number(
        keys::TESSERA_CORES,
        100,
        "write the percent of a card's compute, 1 to 100",
    )?;
    let memory = number(
        keys::TESSERA_MEMORY,
        i64::MAX,
        "write an amount with its unit, such as 8Gi",
    )?;
    if count.is_none() && cores.is_none() && memory.is_none() || count == Some(0) {
        return Ok(None);
    }
    if let Some(bytes) = memory
        && bytes < 1 << 20
    {
        return error(
            keys::TESSERA_MEMORY,
            format!("{bytes} bytes is less than 1 MiB"),
            "write an amount with its unit, such as 8Gi",
        );
    }
    Ok(Some(Unified {
        count: count.unwrap_or(1).unsigned_abs(),
        memory_mib: memory.map(|bytes| bytes.unsigned_abs().div_ceil(1 << 20)),
        cores: cores.filter(|cores| *cores > 0).map(i64::unsigned_abs),
    }))
}

/// The classes that the pod names, in its order.
fn supported<'a>(view: &PodView, engine: &'a Engine) -> Result<Vec<&'a dyn Vendor>, RequestError> {
    let known = || engine.vendors().iter().map(|vendor| vendor.keyword().as_str());
    let all = || known().collect::<Vec<_>>().join(", ");
    let words: Vec<&str> = view
        .annotation(keys::TESSERA_VENDORS)
        .unwrap_or_default()
        .split(',')
        .map(str::trim)
        .filter(|word| !word.is_empty())
        .collect();
    if words.is_empty() {
        return Err(RequestError::annotation(
            keys::TESSERA_VENDORS,
            format!("it is missing beside `{}`", keys::TESSERA_GPU),
            format!(
                "name the classes that the image supports, the preferred first; here are {}",
                all()
            ),
        ));
    }
    words
        .into_iter()
        .map(|word| {
            let same = |vendor: &&std::sync::Arc<dyn Vendor>| vendor.keyword().as_str().eq_ignore_ascii_case(word);
            let found = engine.vendors().iter().find(same);
            found.map(|vendor| &**vendor).ok_or_else(|| {
                let next = match nearest(word, known()) {
                    Some(meant) => format!("did you mean `{meant}`?"),
                    None => format!("here are {}", all()),
                };
                RequestError::annotation(keys::TESSERA_VENDORS, format!("no class `{word}` is served here"), next)
            })
        })
        .collect()
}

fn in_words_of(vendor: &dyn Vendor, pod: &Value, view: &PodView, asked: &[(usize, Unified)]) -> Option<Translated> {
    let init = view
        .containers
        .iter()
        .filter(|container| container.role != ContainerRole::App)
        .count();
    let mut translated = pod.clone();
    let mut ops = Vec::new();
    let mut said = Map::new();
    for (at, unified) in asked {
        let (list, index) = if *at < init {
            ("initContainers", *at)
        } else {
            ("containers", at - init)
        };
        let own = vendor.translate(unified)?;
        let old = &pod["spec"][list][index]["resources"];
        // Kubernetes wants requests of such resources to equal the limits; with limits alone it copies them.
        let mut resources = old.as_object().cloned().unwrap_or_default();
        for member in ["limits", "requests"] {
            if let Some(amounts) = resources.get_mut(member).and_then(Value::as_object_mut) {
                amounts.retain(|name, _| !COMMON.contains(&name.as_str()));
            }
        }
        let words: Map<String, Value> = own
            .iter()
            .map(|(name, amount)| (name.clone(), json!(amount.to_string())))
            .collect();
        let limits = resources.entry("limits").or_insert_with(|| json!({}));
        limits.as_object_mut()?.extend(words.clone());
        said.insert(view.containers[*at].name.clone(), Value::Object(words));
        let resources = Value::Object(resources);
        translated["spec"][list][index]["resources"] = resources.clone();
        ops.push(PatchOp::Add {
            path: pointer(&["spec", list, &index.to_string(), "resources"]),
            value: resources,
        });
    }
    let text = json!({"class": vendor.keyword().as_str(), "containers": said}).to_string();
    if !pod["metadata"]["annotations"].is_object() {
        // `translate` has read an annotation, so the member is there; a pod without metadata has none to keep.
        return None;
    }
    translated["metadata"]["annotations"][keys::TESSERA_TRANSLATED] = json!(text);
    ops.push(PatchOp::Add {
        path: pointer(&["metadata", "annotations", keys::TESSERA_TRANSLATED]),
        value: json!(text),
    });
    Some(Translated { pod: translated, ops })
}

const COMMON: [&str; 3] = [keys::TESSERA_GPU, keys::TESSERA_MEMORY, keys::TESSERA_CORES];
