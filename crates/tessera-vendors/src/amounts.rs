//! Reading whole numbers from a container's resources, with errors that say what to write.

use std::collections::BTreeMap;

use tessera_engine::{AllocationProblem, ContainerEdit, NodeProblem, RequestError};
use tessera_types::{ClassAllocation, MigReservation};
use tessera_wire::{ContainerView, Quantity, Whole, device_text};

/// The largest amount on the wire: device texts carry 32 signed bits.
pub(crate) const WIRE_MAX: i64 = 2_147_483_647;

/// A resource of the container as a whole number of 0 to `max`; `None` if it is not named.
///
/// `what` names the number in the error, such as "a number of cards".
///
/// # Errors
/// A fraction, a negative number or more than `max`.
pub(crate) fn whole(
    container: &ContainerView,
    name: Option<&str>,
    what: &str,
    max: i64,
) -> Result<Option<u64>, RequestError> {
    let Some((name, quantity)) = name.and_then(|name| Some((name, container.amount(name)?))) else {
        return Ok(None);
    };
    number(quantity, max).map(Some).ok_or_else(|| {
        RequestError::resource(
            &container.name,
            name,
            format!("`{quantity}` is not {what}"),
            format!("write a whole number from 0 to {max}"),
        )
    })
}

fn number(quantity: &Quantity, max: i64) -> Option<u64> {
    match quantity.whole() {
        Whole::Exact(value) if (0..=max).contains(&value) => u64::try_from(value).ok(),
        _ => None,
    }
}

/// How many cards; `None` if the resource is not named or 0.
///
/// # Errors
/// As [`whole`].
pub(crate) fn count(container: &ContainerView, name: Option<&str>) -> Result<Option<u32>, RequestError> {
    let count = whole(container, name, "a number of cards", WIRE_MAX)?;
    Ok(count
        .and_then(|count| u32::try_from(count).ok())
        .filter(|count| *count > 0))
}

/// A configured name; the empty text is none.
pub(crate) fn name(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// A quantity of `node` as a whole number from 1 up; `None` for none or anything else.
pub(crate) fn capacity(node: &tessera_wire::NodeView, name: Option<&str>) -> Option<u32> {
    let count = node.capacity_count(name?);
    u32::try_from(count)
        .ok()
        .filter(|count| (1..=CARDS_MAX).contains(count))
}

/// A node whose name makes ids that cannot be used.
pub(crate) fn bad_capacity(name: Option<&str>, fault: &impl ToString) -> NodeProblem {
    NodeProblem::Capacity {
        resource: name.unwrap_or_default().to_owned(),
        fault: fault.to_string(),
    }
}

/// More cards than this are no node's.
const CARDS_MAX: u32 = 1024;

/// Reads the device text under `key`, as most classes write it.
///
/// # Errors
/// The text cannot be read.
pub(crate) fn read_text(
    annotations: &BTreeMap<String, String>,
    key: &str,
) -> Result<Option<(ClassAllocation, Vec<MigReservation>)>, AllocationProblem> {
    let Some(text) = annotations.get(key) else {
        return Ok(None);
    };
    let class = device_text::parse(text).map_err(|error| AllocationProblem {
        key: key.to_owned(),
        fault: error.to_string(),
        text: text.clone(),
    })?;
    Ok(Some((class, Vec::new())))
}

/// A moment in nanoseconds since 1970, as plugins read it.
pub(crate) fn nanoseconds(seconds: i64) -> String {
    seconds.saturating_mul(1_000_000_000).to_string()
}

/// Sets a limit that is not this number already, so that admission changes nothing the second time.
pub(crate) fn set_limit(container: &mut ContainerEdit<'_>, name: &str, value: i64) {
    let there = container.view().limits.get(name).and_then(Quantity::as_integer);
    if there != Some(value) {
        container.set_limit(name, value);
    }
}

/// Writes the amount to limits and requests, where it does not stand already.
pub(crate) fn set_both(container: &mut ContainerEdit<'_>, name: &str, value: u64) {
    let value = i64::try_from(value).unwrap_or(i64::MAX);
    set_limit(container, name, value);
    let there = container.view().requests.get(name).and_then(Quantity::as_integer);
    if there != Some(value) {
        container.set_request(name, value);
    }
}
