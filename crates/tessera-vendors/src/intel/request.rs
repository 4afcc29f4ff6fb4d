//! Reading and admitting containers that ask for Intel GPUs.

use std::collections::BTreeMap;

use tessera_engine::{Admit, ContainerEdit, RequestError, go_bool};
use tessera_types::{Ask, Cores, MemoryAsk, Mib};
use tessera_wire::config::IntelIsolation;
use tessera_wire::{ContainerView, PodView, Quantity};

use super::{GPU_DRIVER, GPU_UNIT, ISOLATION, IntelGpu, NUMA_BIND, XELINK, units};
use crate::amounts;

/// Names of Intel's own plugin for one share of a card, and the kernel driver that each means.
pub(super) const DRIVER_NAMES: [(&str, &str); 2] = [("gpu.intel.com/i915", "i915"), ("gpu.intel.com/xe", "xe")];
/// Names of Intel's own plugin for sight of all cards.
const MONITOR_NAMES: [&str; 3] = [
    "gpu.intel.com/monitoring",
    "gpu.intel.com/i915_monitoring",
    "gpu.intel.com/xe_monitoring",
];

/// The ask of one container; `None` without a count or with count 0.
pub(super) fn parse(class: &IntelGpu, container: &ContainerView) -> Result<Option<Ask>, RequestError> {
    let names = &class.names;
    let amount = |name: &Option<String>| -> Option<(String, Quantity)> {
        let name = name.as_deref()?;
        Some((name.to_owned(), container.amount(name)?.clone()))
    };
    let Some((count_name, count)) = amount(&names.count) else {
        return Ok(None);
    };
    let count = amounts::count_of(&container.name, &count_name, &count)?;
    if count == 0 {
        return Ok(None);
    }
    let memory = match amount(&names.memory) {
        Some((name, quantity)) => amounts::memory_of(&container.name, &name, &quantity, names.factor())?,
        None => Mib::ZERO,
    };
    let percent = match amount(&names.memory_percent) {
        Some((name, quantity)) => Some(amounts::percent_of(&container.name, &name, &quantity, 1)?),
        None => None,
    };
    let cores = match amount(&names.cores) {
        Some((name, quantity)) => amounts::percent_of(&container.name, &name, &quantity, 0)?,
        None => class.settings.default_cores,
    };
    let default_memory = Mib::new(u64::from(class.settings.default_memory));
    let (memory, percent_beside) = match (memory, percent) {
        (Mib::ZERO, Some(percent)) => (MemoryAsk::Percent(percent), None),
        (Mib::ZERO, None) if default_memory > Mib::ZERO => (MemoryAsk::Mib(default_memory), None),
        (Mib::ZERO, None) => (MemoryAsk::Whole, None),
        (amount, beside) => (MemoryAsk::Mib(amount), beside),
    };
    Ok(Some(Ask {
        class: class.keyword.clone(),
        count,
        memory,
        percent_beside,
        cores: Cores::new(cores),
        extra: Vec::new(),
    }))
}

/// The isolation that an annotation demands; `None` without one.
pub(super) fn isolation(pod: &PodView) -> Result<Option<IntelIsolation>, RequestError> {
    match pod.annotation(ISOLATION).map(str::trim) {
        None | Some("") => Ok(None),
        Some("none") => Ok(Some(IntelIsolation::None)),
        Some("soft") => Ok(Some(IntelIsolation::Soft)),
        Some("hard") => Ok(Some(IntelIsolation::Hard)),
        Some(other) => Err(unknown(ISOLATION, other, "none, soft or hard")),
    }
}

/// The entries of a list annotation, each of which must be one of `known`; `None` without one.
pub(super) fn words(
    pod: &PodView,
    key: &str,
    known: &[&str],
    choice: &str,
) -> Result<Option<Vec<String>>, RequestError> {
    let Some(text) = pod.annotation(key).filter(|text| !text.trim().is_empty()) else {
        return Ok(None);
    };
    let list: Vec<String> = text.split(',').map(|word| word.trim().to_owned()).collect();
    match list.iter().find(|word| !known.contains(&word.as_str())) {
        Some(other) => Err(unknown(key, other, choice)),
        None => Ok(Some(list)),
    }
}

fn unknown(key: &str, word: &str, choice: &str) -> RequestError {
    RequestError::sentence(
        None,
        format!("annotation {key} has unknown value {word}; write {choice}"),
    )
}

/// The drivers accepted.
pub(super) fn drivers(pod: &PodView) -> Result<Option<Vec<String>>, RequestError> {
    words(
        pod,
        GPU_DRIVER,
        &["i915", "xe"],
        "i915, xe, or both separated by a comma",
    )
}

/// The kinds of unit accepted.
pub(super) fn kinds(pod: &PodView) -> Result<Option<Vec<String>>, RequestError> {
    words(
        pod,
        GPU_UNIT,
        &[units::CARD, units::TILE, units::VF],
        "card, tile, vf, or several separated by commas",
    )
}

fn stands(container: &ContainerView, name: &str) -> bool {
    container.limits.contains_key(name) || container.requests.contains_key(name)
}

/// Rewrites the names of Intel's own plugin, checks amounts and words, fills in count and compute.
pub(super) fn admit(class: &IntelGpu, container: &mut ContainerEdit<'_>, pod: &PodView) -> Result<Admit, RequestError> {
    let names = &class.names;
    let name = container.view().name.clone();
    let mut admit = Admit::default();
    let Some(count) = names.count.as_deref() else {
        return Ok(admit);
    };
    if class.settings.aliases {
        rewrite(class, count, container)?;
    }
    check_amounts(class, container, &name)?;

    let present = |container: &ContainerEdit<'_>, name: &Option<String>| {
        name.as_deref()
            .is_some_and(|name| container.has_limit(name) || container.has_request(name))
    };
    let limited = |container: &ContainerEdit<'_>, name: &Option<String>| {
        name.as_deref().is_some_and(|name| container.has_limit(name))
    };
    if present(container, &names.count) {
        admit.uses_device = true;
    } else {
        let part = limited(container, &names.memory)
            || limited(container, &names.memory_percent)
            || limited(container, &names.cores);
        if part && class.settings.default_gpu_num > 0 {
            container.set_limit(count, i64::from(class.settings.default_gpu_num));
            admit.uses_device = true;
        }
    }
    if !admit.uses_device {
        return Ok(admit);
    }
    if !present(container, &names.cores)
        && let Some(cores) = names.cores.as_deref()
    {
        // Whoever takes all the memory of a unit has it alone.
        let percent = names
            .memory_percent
            .as_deref()
            .and_then(|percent| container.amount(percent))
            .and_then(Quantity::as_integer);
        let whole = match percent {
            Some(percent) => percent == 100,
            None => !present(container, &names.memory),
        };
        if whole {
            container.set_limit(cores, 100);
        }
    }
    isolation(pod)?;
    kinds(pod)?;
    let accepted = drivers(pod)?;
    for key in [NUMA_BIND, XELINK] {
        if let Some(text) = pod.annotation(key).filter(|text| go_bool(text).is_none()) {
            admit.warnings.push(format!(
                "annotation `{key}`: `{text}` is neither true nor false and counts as false; write \"true\" or \"false\""
            ));
        }
    }
    if class.settings.aliases {
        admit.annotations = driver_annotation(count, pod, accepted.unwrap_or_default());
    }
    Ok(admit)
}

/// Turns the names of Intel's own plugin into ours.
fn rewrite(class: &IntelGpu, count: &str, container: &mut ContainerEdit<'_>) -> Result<(), RequestError> {
    let view = container.view();
    let name = &view.name;
    if !stands(view, count) {
        let [(i915, _), (xe, _)] = DRIVER_NAMES;
        if stands(view, i915) && stands(view, xe) {
            let text = format!(
                "container {name} requests both {i915} and {xe}; ask for {count} and accept both drivers with the \
                 annotation {GPU_DRIVER}"
            );
            return Err(RequestError::sentence(Some(name.clone()), text));
        }
        for (alias, _) in DRIVER_NAMES {
            if let Some(quantity) = view.amount(alias) {
                let number = amounts::count_of(name, alias, quantity)?;
                container.set_limit(count, i64::from(number));
                container.remove(alias);
            }
        }
    }
    let monitor = class.settings.resource_monitor_name.as_str();
    if class.settings.monitoring && !monitor.is_empty() && !stands(view, monitor) {
        for alias in MONITOR_NAMES {
            if let Some(quantity) = view.amount(alias) {
                let number = amounts::count_of(name, alias, quantity)?;
                container.set_limit(monitor, i64::from(number));
                container.remove(alias);
            }
        }
    }
    Ok(())
}

/// The drivers that the pod's containers name by their resources, added to those it accepts already. Looks at the whole
/// pod, so the order of containers plays no part.
fn driver_annotation(count: &str, pod: &PodView, mut accepted: Vec<String>) -> BTreeMap<String, String> {
    let before = accepted.len();
    for (alias, driver) in DRIVER_NAMES {
        let named = pod
            .containers
            .iter()
            .any(|container| !stands(container, count) && stands(container, alias));
        if named && !accepted.iter().any(|known| known == driver) {
            accepted.push(driver.to_owned());
        }
    }
    if accepted.len() == before {
        return BTreeMap::new();
    }
    BTreeMap::from([(GPU_DRIVER.to_owned(), accepted.join(","))])
}

fn check_amounts(class: &IntelGpu, container: &ContainerEdit<'_>, name: &str) -> Result<(), RequestError> {
    let names = &class.names;
    let given = |resource: &Option<String>| {
        let resource = resource.as_deref()?;
        Some((resource.to_owned(), container.amount(resource)?.clone()))
    };
    let invalid = |resource: &str, quantity: &Quantity, must: &str| {
        let text = format!("invalid {resource} value {quantity} in container {name}: must be {must}");
        Err(RequestError::sentence(Some(name.to_owned()), text))
    };
    if let Some((resource, quantity)) = given(&names.memory_percent)
        && amounts::percent_of(name, &resource, &quantity, 1).is_err()
    {
        return invalid(
            &resource,
            &quantity,
            "an integer between 1 and 100; write the share of each unit's memory in percent",
        );
    }
    if let Some((resource, quantity)) = given(&names.memory)
        && let Err(error) = amounts::memory_of(name, &resource, &quantity, names.factor())
    {
        return invalid(
            &resource,
            &quantity,
            &format!("an integer number of MiB; {}", error.next),
        );
    }
    if let Some((resource, quantity)) = given(&names.cores)
        && amounts::percent_of(name, &resource, &quantity, 0).is_err()
    {
        return invalid(
            &resource,
            &quantity,
            "an integer between 0 and 100; write the share of each unit's compute in percent",
        );
    }
    Ok(())
}
