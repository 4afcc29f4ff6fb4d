//! Operations that concern texts only, answered by `tessera-wire` and `tessera-types`.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tessera_types::{Card, CardId, Cores, Extras, Keyword, Mib, MigReservation, Placement, Share, Weights};
use tessera_wire::handshake::{self, NvidiaBook};
use tessera_wire::mig::{self, MigAllow};
use tessera_wire::node_lock::{self, LockOwner, LockStep, NodeLock, OwnerState, Release};
use tessera_wire::{PodView, device_text, failure, keys, pending, register};

use super::{Case, Op, now};

/// The operations of this module.
pub const OPS: &[(&str, Op)] = &[
    ("scoring-weights", scoring_weights),
    ("encode-node-json", encode_node_json),
    ("encode-node-legacy", encode_node_legacy),
    ("encode-pod-devices", encode_pod_devices),
    ("encode-mig-allocations", encode_mig_allocations),
    ("encode-failure-reason", encode_failure_reason),
    ("decode-node-json", decode_node_json),
    ("decode-node-legacy", decode_node_legacy),
    ("decode-pod-devices", decode_pod_devices),
    ("decode-mig-allocations", decode_mig_allocations),
    ("decode-node-lock", decode_node_lock),
    ("decode-failure-reason", decode_failure_reason),
    ("handshake", handshake_op),
    ("pick-pending-pod", pick_pending_pod),
    ("node-lock", node_lock_op),
    ("node-unlock", node_unlock),
    ("mig-allowlist", mig_allowlist),
];

/// The outcome of a text that is refused.
#[must_use]
pub fn refused() -> Value {
    json!({"error": true})
}

/// A typed member of the input.
///
/// # Errors
/// It is absent or of another type.
pub fn member<T: DeserializeOwned>(input: &Value, name: &str) -> Result<T, String> {
    let value = input.get(name).cloned().unwrap_or(Value::Null);
    serde_json::from_value(value).map_err(|error| format!("input member `{name}`: {error}"))
}

/// The NVIDIA class.
///
/// # Errors
/// Never, in practice.
pub fn nvidia() -> Result<Keyword, String> {
    Keyword::new(keys::NVIDIA_KEYWORD).map_err(|error| error.to_string())
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn scoring_weights(case: &Case) -> Result<Value, String> {
    let annotation: Option<String> = member(&case.input, "annotation")?;
    let weights = annotation.as_deref().map_or(Ok(Weights::default()), Weights::parse);
    Ok(weights.map_or_else(
        |_| refused(),
        |w| json!({"slot": w.slot, "core": w.core, "memory": w.memory}),
    ))
}

fn cards(case: &Case) -> Result<Vec<Card>, String> {
    let devices: Value = member(&case.input, "devices")?;
    register::parse_json(&devices.to_string(), &nvidia()?).map_err(text)
}

fn encode_node_json(case: &Case) -> Result<Value, String> {
    Ok(json!({"text": register::print_json(&cards(case)?)}))
}

fn encode_node_legacy(case: &Case) -> Result<Value, String> {
    Ok(json!({"text": register::print_legacy(&cards(case)?)}))
}

fn share(device: &Value) -> Result<Share, String> {
    Ok(Share {
        card: CardId::new(member::<String>(device, "uuid")?).map_err(text)?,
        class: Keyword::new(member::<String>(device, "type")?).map_err(text)?,
        memory: Mib::new(member(device, "mem")?),
        cores: Cores::new(member(device, "cores")?),
        extra: Extras::NONE,
    })
}

fn encode_pod_devices(case: &Case) -> Result<Value, String> {
    let containers: Vec<Vec<Value>> = member(&case.input, "containers")?;
    let shares = containers
        .iter()
        .map(|devices| devices.iter().map(share).collect::<Result<Vec<_>, _>>())
        .collect::<Result<Vec<_>, _>>()?;
    Ok(json!({"text": device_text::print(&shares)}))
}

fn encode_mig_allocations(case: &Case) -> Result<Value, String> {
    let containers: Vec<Vec<Value>> = member(&case.input, "containers")?;
    let mut reservations = Vec::new();
    for (container, devices) in containers.iter().enumerate() {
        for (device, entry) in devices.iter().enumerate() {
            let Some(profile) = member::<Option<String>>(entry, "profile")? else {
                continue;
            };
            let placement: Placement = member(entry, "placement")?;
            reservations.push(MigReservation {
                container: u32::try_from(container).map_err(text)?,
                device: u32::try_from(device).map_err(text)?,
                card: CardId::new(member::<String>(entry, "uuid")?).map_err(text)?,
                profile,
                placement,
                runtime: None,
            });
        }
    }
    Ok(json!({"text": mig::print_reservations(&reservations)}))
}

fn encode_failure_reason(case: &Case) -> Result<Value, String> {
    let counts: BTreeMap<String, u32> = member(&case.input, "counts")?;
    Ok(json!({"text": failure::print_counts(&counts, member(&case.input, "total")?)}))
}

fn decode_failure_reason(case: &Case) -> Result<Value, String> {
    Ok(json!({"counts": failure::parse_counts(&member::<String>(&case.input, "text")?)}))
}

fn registered(cards: Result<Vec<Card>, register::RegisterError>) -> Value {
    let Ok(cards) = cards else { return refused() };
    let devices: Vec<Value> = cards
        .iter()
        .map(|card| {
            json!({
                "id": card.id, "index": card.index, "count": card.slots, "devmem": card.memory, "devcore": card.cores,
                "type": &*card.model, "numa": card.numa, "mode": card.mode, "health": card.healthy,
                "mig_profiles": card.mig_profiles.len(),
            })
        })
        .collect();
    json!({"devices": devices})
}

fn decode_node_json(case: &Case) -> Result<Value, String> {
    Ok(registered(register::parse_json(
        &member::<String>(&case.input, "text")?,
        &nvidia()?,
    )))
}

fn decode_node_legacy(case: &Case) -> Result<Value, String> {
    Ok(registered(register::parse_legacy(
        &member::<String>(&case.input, "text")?,
        &nvidia()?,
    )))
}

/// Shares in the cases' spelling.
#[must_use]
pub fn devices(shares: &[Share]) -> Value {
    shares
        .iter()
        .map(|share| json!({"uuid": share.card, "type": share.class, "mem": share.memory, "cores": share.cores}))
        .collect()
}

fn decode_pod_devices(case: &Case) -> Result<Value, String> {
    let entries = device_text::parse_entries(&member::<String>(&case.input, "text")?);
    Ok(entries.map_or_else(
        |_| refused(),
        |entries| json!({"containers": entries.iter().map(|shares| devices(shares)).collect::<Vec<_>>()}),
    ))
}

fn decode_mig_allocations(case: &Case) -> Result<Value, String> {
    let Ok(reservations) = mig::parse_reservations(&member::<String>(&case.input, "text")?) else {
        return Ok(refused());
    };
    let printed = mig::print_reservations(&reservations).unwrap_or_else(|| "[]".to_owned());
    let allocations: Value = serde_json::from_str(&printed).map_err(text)?;
    Ok(json!({"count": reservations.len(), "allocations": allocations}))
}

fn decode_node_lock(case: &Case) -> Result<Value, String> {
    Ok(NodeLock::parse(&member::<String>(&case.input, "text")?).map_or_else(
        |_| refused(),
        |lock| {
            let (namespace, name) = lock
                .owner
                .map(|owner| (owner.namespace, owner.name))
                .unwrap_or_default();
            json!({"time_unix": lock.at, "namespace": namespace, "name": name})
        },
    ))
}

fn handshake_op(case: &Case) -> Result<Value, String> {
    let node: Value = member(&case.input, "node")?;
    let annotations: BTreeMap<String, String> = member(&node, "annotations")?;
    let allocatable: i64 = member::<Option<String>>(&node, "allocatable_gpu")?
        .map_or(Ok(0), |count| count.parse())
        .map_err(|error| format!("allocatable_gpu: {error}"))?;
    let previous: Option<Value> = member(&case.input, "previous")?;
    let mut book = match previous {
        None => NvidiaBook::default(),
        Some(previous) => NvidiaBook {
            reported: member(&previous, "reported_count")?,
            register: member(&previous, "reported_register")?,
        },
    };
    let current = annotations.get(keys::NVIDIA_HANDSHAKE).map(String::as_str);
    let register = annotations.get(keys::NVIDIA_REGISTER).map(String::as_str);
    let health = book.observe(handshake::assess(current, now(), allocatable), allocatable, register);
    Ok(json!({"healthy": health.healthy, "refresh": health.refresh, "writes_requesting": health.write_requesting}))
}

fn pick_pending_pod(case: &Case) -> Result<Value, String> {
    let annotations: BTreeMap<String, String> = member(&case.input, "node_annotations")?;
    let pods: Vec<PodView> = member(&case.input, "pods")?;
    let lock = annotations.get(keys::NODE_LOCK).map(String::as_str);
    let picked = pending::pick(&member::<String>(&case.input, "node")?, lock, &pods);
    Ok(picked.map_or_else(refused, |pod| json!({"pod": pod.id.to_string()})))
}

/// The pod of a lock case.
fn owner(value: &Value) -> Result<LockOwner, String> {
    Ok(LockOwner {
        namespace: member(value, "namespace")?,
        name: member(value, "name")?,
    })
}

/// The owner of a lock as the cases spell it; `/` if there is none or it does not read.
#[must_use]
pub fn holder(lock: Option<&str>) -> String {
    lock.and_then(|text| NodeLock::parse(text).ok())
        .and_then(|lock| lock.owner)
        .map_or_else(|| "/".to_owned(), |owner| owner.to_string())
}

/// Takes the lock as a caller does: asks about the owner when told to. Answers the step that ended it.
#[must_use]
pub fn take_lock(current: Option<&str>, me: &LockOwner, alive: impl Fn(&LockOwner) -> bool) -> LockStep {
    match node_lock::decide(current, me, now(), node_lock::DEFAULT_TIMEOUT_S, None) {
        LockStep::AskOwner(owner) => {
            let state = if alive(&owner) {
                OwnerState::Alive
            } else {
                OwnerState::Gone
            };
            node_lock::decide(current, me, now(), node_lock::DEFAULT_TIMEOUT_S, Some(state))
        }
        step => step,
    }
}

fn node_lock_op(case: &Case) -> Result<Value, String> {
    let me = owner(&member(&case.input, "pod")?)?;
    let current: Option<String> = member(&case.input, "node_lock")?;
    let existing = member::<Vec<Value>>(&case.input, "existing_pods")?
        .iter()
        .map(owner)
        .collect::<Result<Vec<_>, _>>()?;
    let step = take_lock(current.as_deref(), &me, |owner| existing.contains(owner));
    let acquired = matches!(step, LockStep::Set | LockStep::TakeOver(_) | LockStep::Mine);
    let holder = if acquired {
        me.to_string()
    } else {
        holder(current.as_deref())
    };
    Ok(json!({"acquired": acquired, "contention": step == LockStep::Contended, "holder": holder}))
}

fn node_unlock(case: &Case) -> Result<Value, String> {
    let me = owner(&member(&case.input, "pod")?)?;
    let current: Option<String> = member(&case.input, "node_lock")?;
    let released = node_lock::release(current.as_deref(), &me) == Release::Remove;
    Ok(json!({"error": false, "released": released}))
}

fn mig_allowlist(case: &Case) -> Result<Value, String> {
    let list: Vec<MigAllow> = member(&case.input, "allowlist")?;
    Ok(json!({"valid": mig::check_allowlist(&list).is_ok()}))
}
