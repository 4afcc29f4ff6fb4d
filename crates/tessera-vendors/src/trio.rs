//! What classes of three resources share: a number of cards, and so much memory and compute of each; lists of models
//! and ids; the device text.
//!
//! Each name is looked up in limits, else in requests. A number that cannot be meant is an error and never "nothing":
//! a pod whose request is dropped would land on any node without a card.

use std::collections::BTreeMap;

use tessera_engine::{AllocationProblem, ContainerEdit, RequestError, comma_list, go_bool};
use tessera_types::{ClassAllocation, Mib, Selection};
use tessera_wire::{ContainerView, PodView, Quantity, Whole, device_text, keys};

/// The largest amount on the wire: device texts carry 32 signed bits.
const WIRE_MAX: i64 = 2_147_483_647;

/// The configured name, or the one that the chart gives.
pub(crate) fn name(configured: &str, chart: &str) -> Option<String> {
    Some(if configured.is_empty() { chart } else { configured }.to_owned())
}

/// The configured unit of memory in MiB; 0 and less are the class's own.
pub(crate) fn factor(configured: i32, own: u32) -> u32 {
    u32::try_from(configured)
        .ok()
        .filter(|factor| *factor > 0)
        .unwrap_or(own)
}

fn amount<'a>(container: &'a ContainerView, name: Option<&'a str>) -> Option<(&'a str, &'a Quantity)> {
    let name = name?;
    Some((name, container.amount(name)?))
}

/// How many cards; `None` without the name, and for 0.
///
/// # Errors
/// Not a whole number of 0 to 2^31 - 1.
pub(crate) fn count(container: &ContainerView, name: Option<&str>) -> Result<Option<u32>, RequestError> {
    let Some((name, count)) = amount(container, name) else {
        return Ok(None);
    };
    match count.whole() {
        Whole::Exact(0) => Ok(None),
        Whole::Exact(number) if (1..=WIRE_MAX).contains(&number) => Ok(u32::try_from(number).ok()),
        _ => Err(RequestError::resource(
            &container.name,
            name,
            format!("`{count}` is not a number of cards"),
            "write a whole number, such as 1",
        )),
    }
}

/// An amount of memory in units of `factor` MiB; `None` without the name, zero as it is written.
///
/// # Errors
/// Not a whole number of units, or more than the wire can carry.
pub(crate) fn memory(container: &ContainerView, name: Option<&str>, factor: u64) -> Result<Option<Mib>, RequestError> {
    let Some((name, quantity)) = amount(container, name) else {
        return Ok(None);
    };
    let unit = match factor {
        1 => "MiB".to_owned(),
        factor => format!("units of {factor} MiB"),
    };
    let divisor = i64::try_from(factor).unwrap_or(i64::MAX).max(1);
    let max = WIRE_MAX / divisor;
    let error = |problem: String, next: String| Err(RequestError::resource(&container.name, name, problem, next));
    match quantity.whole() {
        Whole::Exact(value) if (0..=max).contains(&value) => {
            Ok(Some(Mib::new(u64::try_from(value).unwrap_or(0).saturating_mul(factor))))
        }
        Whole::Exact(value) if value < 0 => error(
            format!("`{quantity}` is negative"),
            format!("write the amount in {unit}"),
        ),
        Whole::Exact(value) => {
            let meant = (value >> 20) / divisor;
            let next = if quantity.as_str().ends_with('i') && (1..=max).contains(&meant) {
                format!("write {meant}: `{name}` counts {unit}, not bytes")
            } else {
                format!("`{name}` counts {unit}, not bytes; write at most {max}")
            };
            error(
                format!("`{quantity}` means {value} {unit}, more than any card has"),
                next,
            )
        }
        Whole::Fraction => error(
            format!("`{quantity}` is not a whole number"),
            format!("write a whole number of {unit}"),
        ),
        Whole::TooLarge => error(
            format!("`{quantity}` is more than any card has"),
            format!("`{name}` counts {unit}, not bytes; write at most {max}"),
        ),
    }
}

/// An amount of compute; `None` without the name. `next` says what to write.
///
/// # Errors
/// Not a whole number of 0 to 2^31 - 1.
pub(crate) fn compute(container: &ContainerView, name: Option<&str>, next: &str) -> Result<Option<u32>, RequestError> {
    let Some((name, quantity)) = amount(container, name) else {
        return Ok(None);
    };
    match quantity.whole() {
        Whole::Exact(value) if (0..=WIRE_MAX).contains(&value) => Ok(u32::try_from(value).ok()),
        _ => Err(RequestError::resource(
            &container.name,
            name,
            format!("`{quantity}` is not an amount of compute"),
            next,
        )),
    }
}

/// Whether the container under admission names the resource, in limits or in requests.
pub(crate) fn has(container: &ContainerEdit<'_>, name: Option<&str>) -> bool {
    name.is_some_and(|name| container.has_limit(name) || container.has_request(name))
}

/// Annotations in which a user states the cards that a pod accepts; an empty key is not used.
pub(crate) struct SelectionKeys {
    pub(crate) use_models: &'static str,
    pub(crate) avoid_models: &'static str,
    pub(crate) use_ids: &'static str,
    pub(crate) avoid_ids: &'static str,
}

impl SelectionKeys {
    /// All of them, as names that a user may write.
    pub(crate) fn all(&self) -> Vec<String> {
        [self.use_models, self.avoid_models, self.use_ids, self.avoid_ids]
            .into_iter()
            .filter(|key| !key.is_empty())
            .map(str::to_owned)
            .collect()
    }

    /// What the pod states. The numa-bind switch only orders the cards of classes that do not bind.
    pub(crate) fn read(&self, pod: &PodView) -> Selection {
        let list = |key: &str| comma_list(pod.annotation(key));
        Selection {
            use_models: list(self.use_models),
            avoid_models: list(self.avoid_models),
            use_ids: list(self.use_ids),
            avoid_ids: list(self.avoid_ids),
            numa_bind: pod.annotation(keys::NUMA_BIND).and_then(go_bool).unwrap_or(false),
            ..Selection::default()
        }
    }
}

/// Reads the device text that stays on a pod.
///
/// # Errors
/// The text is none.
pub(crate) fn read_text(
    annotations: &BTreeMap<String, String>,
    key: &str,
) -> Result<Option<ClassAllocation>, AllocationProblem> {
    let Some(text) = annotations.get(key) else {
        return Ok(None);
    };
    device_text::parse(text).map(Some).map_err(|error| AllocationProblem {
        key: key.to_owned(),
        fault: error.to_string(),
        text: text.clone(),
    })
}
