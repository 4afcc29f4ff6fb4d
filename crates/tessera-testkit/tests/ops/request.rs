//! Reading requests, registers and allocations.

use serde_json::{Value, json};
use tessera_engine::Quotas;
use tessera_testkit::conformance::wire_ops::{member, nvidia, refused};
use tessera_testkit::conformance::{Case, Op};
use tessera_types::{Allocation, Ask, CardUsage, Cores, MemoryAsk, Mib, effective_usage};
use tessera_wire::{NodeView, PodView, device_text};

use super::{quotas, roles, text, vendors};

pub(crate) const OPS: &[(&str, Op)] = &[
    ("container-request", container_request),
    ("pod-requests", pod_requests),
    ("node-devices", node_devices),
    ("effective-usage", |case| usage(case, false)),
    ("app-only-usage", |case| usage(case, true)),
    ("quota-check", quota_check),
];

/// An ask in the cases' spelling, where 101 percent means "not given".
fn spelled(ask: Option<&Ask>) -> Value {
    let Some(ask) = ask else { return Value::Null };
    let (memory, percent) = match ask.memory {
        MemoryAsk::Mib(mib) => (mib.get(), ask.percent_beside.unwrap_or(101)),
        MemoryAsk::Percent(percent) => (0, percent),
        MemoryAsk::Whole => (0, 100),
    };
    json!({"type": ask.class, "nums": ask.count, "memreq": memory, "mempercent": percent, "coresreq": ask.cores})
}

fn requests(case: &Case, pod: &Value) -> Result<Option<Vec<Value>>, String> {
    let vendors = vendors(case)?;
    let vendor = vendors.get(&nvidia()?).ok_or("no NVIDIA class")?;
    let pod = PodView::from_json(pod).map_err(text)?;
    let asks: Result<Vec<_>, _> = pod
        .containers
        .iter()
        .map(|container| vendor.parse(container, &pod))
        .collect();
    Ok(asks
        .ok()
        .map(|asks| asks.iter().map(|ask| spelled(ask.as_ref())).collect()))
}

fn container_request(case: &Case) -> Result<Value, String> {
    let pod = json!({"spec": {"containers": [member::<Value>(&case.input, "container")?]}});
    Ok(match requests(case, &pod)? {
        Some(mut asks) => json!({"request": asks.pop()}),
        None => refused(),
    })
}

fn pod_requests(case: &Case) -> Result<Value, String> {
    let asks = requests(case, &member(&case.input, "pod")?)?;
    Ok(asks.map_or_else(refused, |asks| json!({"requests": asks})))
}

fn node_devices(case: &Case) -> Result<Value, String> {
    let annotations: Value = member(&case.input, "annotations")?;
    let node = NodeView::from_json(&json!({"metadata": {"name": "n1", "annotations": annotations}})).map_err(text)?;
    let vendors = vendors(case)?;
    let vendor = vendors.get(&nvidia()?).ok_or("no NVIDIA class")?;
    Ok(vendor.decode_node(&node).map_or_else(
        |_| refused(),
        |cards| {
            let devices: Vec<Value> = cards
                .iter()
                .map(|card| json!({"id": card.id, "vendor": card.class, "pair_scores": card.link_scores}))
                .collect();
            json!({"devices": devices})
        },
    ))
}

/// Reads an allocation text of the NVIDIA class.
pub(crate) fn allocation(written: &str) -> Result<Allocation, String> {
    let mut allocation = Allocation::default();
    allocation
        .classes
        .insert(nvidia()?, device_text::parse(written).map_err(text)?);
    Ok(allocation)
}

fn usage(case: &Case, init_done: bool) -> Result<Value, String> {
    let allocation = allocation(&member::<String>(&case.input, "allocation")?)?;
    let init: usize = member(&case.input, "init_containers")?;
    let all = allocation.classes.values().map(Vec::len).max().unwrap_or(0);
    let devices: Vec<Value> = effective_usage(&allocation, &roles(init, all), init_done)
        .0
        .iter()
        .map(
            |(card, (_, usage))| json!({"uuid": card, "mem": usage.memory, "cores": usage.cores, "slots": usage.slots}),
        )
        .collect();
    Ok(json!({"devices": devices}))
}

fn quota_check(case: &Case) -> Result<Value, String> {
    let vendors = vendors(case)?;
    let vendor = vendors.get(&nvidia()?).ok_or("no NVIDIA class")?;
    let names = vendor.names();
    let managed = |name: &str| {
        [&names.memory, &names.cores]
            .into_iter()
            .flatten()
            .any(|known| known == name)
    };
    let mut books = Quotas::default();
    for (namespace, name, hard) in quotas(&case.input, "quotas")? {
        books.set(&namespace, &name, &hard, managed);
    }
    for entry in member::<Vec<Value>>(&case.input, "usage")? {
        let namespace: String = member(&entry, "namespace")?;
        let held = effective_usage(&allocation(&member::<String>(&entry, "allocation")?)?, &[], false);
        let sum = held
            .0
            .iter()
            .fold(CardUsage::default(), |sum, (_, (_, usage))| sum.plus(*usage));
        let (memory, cores): (Mib, Cores) = (sum.memory, sum.cores);
        if member::<Option<bool>>(&entry, "remove")?.unwrap_or(false) {
            books.release(&namespace, names, memory, cores);
        } else {
            books.charge(&namespace, names, memory, cores);
        }
    }
    for (namespace, name, _) in quotas(&case.input, "deleted_quotas")? {
        books.remove(&namespace, &name);
    }
    let check: Value = member(&case.input, "check")?;
    let namespace: String = member(&check, "namespace")?;
    let room = books.room(&namespace, names).unwrap_or_default();
    let (memory, cores): (i64, i64) = (member(&check, "memory")?, member(&check, "cores")?);
    let fits = room.memory.is_none_or(|left| memory <= left) && room.cores.is_none_or(|left| cores <= left);
    // A resource that is neither used nor limited is in our books as little as any other: asked for, it is all zero.
    let mut state = books.state(&namespace);
    if let Some(asked) = case.expected["state"].as_object() {
        for name in asked.keys() {
            state.entry(name.clone()).or_default();
        }
    }
    let state: serde_json::Map<String, Value> = state
        .into_iter()
        .map(|(name, state)| {
            let limit = state.limit;
            (
                name,
                json!({"used": state.used, "limit": limit.unwrap_or(0), "limit_set": limit.is_some()}),
            )
        })
        .collect();
    Ok(json!({"fits": fits, "state": state}))
}
