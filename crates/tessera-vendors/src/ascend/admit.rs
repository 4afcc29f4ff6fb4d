//! What admission changes of a container that uses NPUs, or must not see them.

use std::collections::BTreeMap;

use tessera_engine::{Admit, ContainerEdit, RequestError};
use tessera_types::{Cores, Mib};
use tessera_wire::{PodView, Quantity};

use super::chip::{Chip, MODE_KEY, MODE_SOFT, Size};
use super::request::{self, Written, is_soft};

/// Environment: which NPUs the container runtime makes visible.
pub(super) const ENV_VISIBLE: &str = "ASCEND_VISIBLE_DEVICES";

/// Rounds memory to what an NPU can be cut into and counts to whole modules, and names the runtime class.
///
/// # Errors
/// The container asks for what no NPU can give.
pub(super) fn admit(chip: &Chip, container: &mut ContainerEdit<'_>, pod: &PodView) -> Result<Admit, RequestError> {
    let mut admit = Admit::default();
    let Some(written) = request::written(chip, container.view())? else {
        // A container may use another chip, whose list must not be emptied.
        let uses_any = chip
            .all_counts
            .iter()
            .any(|name| container.has_limit(name) || container.has_request(name));
        if chip.hides && !uses_any && container.set_env(ENV_VISIBLE, "") {
            admit.warnings.push(format!(
                "container `{}`: `{ENV_VISIBLE}` is emptied, since it asks for no NPU; your value is replaced",
                container.view().name
            ));
        }
        return Ok(admit);
    };
    admit.uses_device = true;
    if let Some(mode) = pod.annotation(MODE_KEY).filter(|mode| *mode != MODE_SOFT) {
        admit.warnings.push(format!(
            "annotation `{MODE_KEY}`: `{mode}` is no mode and has no effect; write \"{MODE_SOFT}\" for soft slices"
        ));
    }
    let soft = is_soft(pod);
    let name = container.view().name.clone();
    let count = modules(chip, &name, &written, soft)?;
    if count != written.count {
        admit.warnings.push(format!(
            "container `{name}`: `{}` is {}; both NPUs of a module go to one container, so it gets {count}",
            chip.names.count.as_deref().unwrap_or("the count"),
            written.count
        ));
    }
    if !soft && written.cores > Cores::ZERO {
        let field = chip.names.cores.as_deref().unwrap_or("cores");
        let text = format!(
            "{field} is only supported in hami-core (soft split) mode; leave it out of container `{name}`, or annotate \
             the pod with {MODE_KEY}: {MODE_SOFT}"
        );
        return Err(RequestError::sentence(Some(name), text));
    }
    let units = memory(chip, container, &written, soft, &mut admit)?;
    // Both maps, since the API server has filled requests from the limits as they were, and the two must be equal.
    if let (Some(resource), Some(units)) = (chip.names.memory.as_deref(), units) {
        set(container, resource, units, true);
    }
    if let Some(resource) = chip.names.count.as_deref() {
        let requested = container.has_request(resource);
        set(container, resource, i64::from(count), requested);
    }
    if pod.runtime_class.is_none() {
        admit.runtime_class.clone_from(&chip.runtime_class);
    }
    Ok(admit)
}

/// Makes limits (and requests) say `value`, without an edit where they do.
fn set(container: &mut ContainerEdit<'_>, resource: &str, value: i64, requests: bool) {
    let view = container.view();
    let says = |map: &BTreeMap<String, Quantity>| map.get(resource).and_then(Quantity::as_integer) == Some(value);
    if !says(&view.limits) {
        container.set_limit(resource, value);
    }
    if requests && !says(&view.requests) {
        container.set_request(resource, value);
    }
}

/// The count, rounded to whole modules where a container must have both NPUs of one.
fn modules(chip: &Chip, name: &str, written: &Written, soft: bool) -> Result<u32, RequestError> {
    let count = written.count;
    if !chip.super_pod {
        return Ok(count);
    }
    match count {
        // A vNPU is a part of one NPU; two of them could not be given to one container.
        1 if !soft && written.memory.is_some_and(|memory| chip.size(memory) != Size::Whole) => Ok(1),
        1 => Ok(2),
        count if count % 2 == 1 => Err(request::odd(chip, name, count)),
        count => Ok(count),
    }
}

/// The memory to write, in the unit of its resource; `None` leaves what is written.
fn memory(
    chip: &Chip,
    container: &ContainerEdit<'_>,
    written: &Written,
    soft: bool,
    admit: &mut Admit,
) -> Result<Option<i64>, RequestError> {
    let name = &container.view().name;
    let field = chip.names.memory.as_deref().unwrap_or("memory");
    let text = container.amount(field).map(ToString::to_string).unwrap_or_default();
    let whole = chip.allocatable;
    let too_much = |most: Mib| {
        // HAMi's own words, which tools match on.
        let text = format!(
            "{field} {text} is invalid; a whole {} offers {most}, so ask for at most {}",
            chip.keyword,
            most.get() / chip.names.factor()
        );
        RequestError::sentence(Some(name.clone()), text)
    };
    let Some(asked) = written.memory else {
        return Ok(chip.in_units(Size::Whole));
    };
    if soft {
        if asked > whole {
            return Err(too_much(whole));
        }
        return Ok(i64::try_from(asked.get() / chip.names.factor()).ok());
    }
    let size = chip.size(asked);
    if size == Size::Whole {
        if asked > chip.capacity {
            return Err(too_much(whole));
        }
        if asked > whole {
            admit.warnings.push(format!(
                "container `{name}`: `{field}` is {text}; a whole {} offers {whole}, so that is what it gets",
                chip.keyword
            ));
        }
    } else if written.count > 1 {
        return Err(request::several_templates(name));
    }
    Ok(chip.in_units(size))
}
