//! What admission changes of a container that uses NVIDIA cards, or must not see them.

use tessera_engine::{Admit, ContainerEdit, RequestError, go_bool};
use tessera_wire::config::CorePolicy;
use tessera_wire::{PodView, Quantity, keys};

use super::Nvidia;

/// Defaults for count and compute, environment for the in-container library, the runtime class.
///
/// # Errors
/// The memory percentage is no percentage.
pub(super) fn admit(class: &Nvidia, container: &mut ContainerEdit<'_>, pod: &PodView) -> Result<Admit, RequestError> {
    let names = &class.names;
    let settings = &class.settings;
    let mut admit = Admit::default();
    let name = &container.view().name;

    let percent = names
        .memory_percent
        .as_deref()
        .and_then(|percent| Some((percent, container.amount(percent)?)));
    let percent_value = match percent {
        None => None,
        Some((resource, quantity)) => match quantity.as_integer() {
            Some(value) if (0..=100).contains(&value) => Some(value),
            _ => {
                // HAMi's own words, which tools match on.
                let text = format!(
                    "invalid {resource} value {quantity} in container {name}: must be an integer between 0 and 100; \
                     write the share of each card's memory in percent"
                );
                return Err(RequestError::sentence(Some(name.clone()), text));
            }
        },
    };

    let set_env = |container: &mut ContainerEdit<'_>, admit: &mut Admit, variable: &str, value: &str| {
        if container.set_env(variable, value) {
            admit.warnings.push(format!(
                "container `{name}`: `{variable}` is set by the administrator to `{value}`; your value is replaced"
            ));
        }
    };
    if let Some(priority) = names
        .priority
        .as_deref()
        .and_then(|priority| container.view().limits.get(priority))
    {
        check_priority(
            name,
            names.priority.as_deref().unwrap_or_default(),
            priority,
            &mut admit,
        )?;
        let priority = priority.to_string();
        set_env(container, &mut admit, keys::ENV_TASK_PRIORITY, &priority);
    }
    match settings.gpu_core_policy {
        CorePolicy::Default => {}
        CorePolicy::Force => set_env(container, &mut admit, keys::ENV_CORE_POLICY, "force"),
        CorePolicy::Disable => set_env(container, &mut admit, keys::ENV_CORE_POLICY, "disable"),
    }

    let has_limit = |container: &ContainerEdit<'_>, name: &Option<String>| {
        name.as_deref().is_some_and(|name| container.has_limit(name))
    };
    let has = |container: &ContainerEdit<'_>, name: &Option<String>| {
        name.as_deref()
            .is_some_and(|name| container.has_limit(name) || container.has_request(name))
    };
    if let Some(count) = names.count.as_deref() {
        // A count in requests alone is the pod's own count: a second one in limits would contradict it.
        if container.has_limit(count) || container.has_request(count) {
            admit.uses_device = true;
        } else {
            let part = has_limit(container, &names.cores)
                || has_limit(container, &names.memory)
                || has_limit(container, &names.memory_percent);
            if part && settings.default_gpu_num > 0 {
                container.set_limit(count, i64::from(settings.default_gpu_num));
                admit.uses_device = true;
            }
        }
        if has(container, &names.count)
            && !has(container, &names.cores)
            && let Some(cores) = names.cores.as_deref()
        {
            // Whoever asks for all the memory of a card gets the card alone.
            let whole = match percent_value {
                Some(percent) => percent == 100,
                None => !has(container, &names.memory),
            };
            if whole {
                container.set_limit(cores, 100);
                admit.uses_device = true;
            }
        }
    }
    if admit.uses_device
        && let Some(text) = pod.annotations.get(keys::NUMA_BIND)
        && go_bool(text).is_none()
    {
        admit.warnings.push(format!(
            "annotation `{}`: `{text}` is neither true nor false and counts as false; write \"true\" or \"false\"",
            keys::NUMA_BIND
        ));
    }
    if admit.uses_device && !settings.runtime_class_name.is_empty() && pod.runtime_class.is_none() {
        admit.runtime_class = Some(settings.runtime_class_name.clone());
    }
    if !admit.uses_device && settings.overwrite_env {
        set_env(container, &mut admit, keys::ENV_VISIBLE_DEVICES, "none");
    }
    Ok(admit)
}

/// The library in the container reads 0 and 1. Another whole number is passed on, as in HAMi, with a warning.
fn check_priority(container: &str, resource: &str, priority: &Quantity, admit: &mut Admit) -> Result<(), RequestError> {
    match priority.as_integer() {
        Some(0 | 1) => {}
        Some(2..) => admit.warnings.push(format!(
            "container `{container}`: `{resource}` is {priority}; only 0 (high) and 1 (low) have a meaning"
        )),
        _ => {
            return Err(RequestError::resource(
                container,
                resource,
                format!("`{priority}` is not a priority"),
                "write 0 (high) or 1 (low)",
            ));
        }
    }
    Ok(())
}
