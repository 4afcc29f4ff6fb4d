//! Numbers in a container's resources: how many cards, how much memory and compute of each.
//!
//! A name is looked up in limits, else in requests. A number that cannot be meant is an error and never "nothing": a
//! pod whose request is dropped would land on any node without a card. An error says what to write.

use tessera_engine::{ContainerEdit, RequestError};
use tessera_types::{Ask, Cores, Keyword, MemoryAsk, Mib};
use tessera_wire::{ContainerView, Quantity, Whole};

/// The largest amount on the wire: registers and device texts carry 32 signed bits.
pub(crate) const WIRE_MAX: i64 = 2_147_483_647;

/// A configured name; an empty one is not served.
pub(crate) fn name(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// The configured name, or the one that the chart gives.
pub(crate) fn name_or(configured: &str, chart: &str) -> Option<String> {
    name(configured).or_else(|| name(chart))
}

/// The configured unit of memory in MiB; 0 and less are the class's own.
pub(crate) fn factor(configured: i32, own: u32) -> u32 {
    u32::try_from(configured)
        .ok()
        .filter(|factor| *factor > 0)
        .unwrap_or(own)
}

/// The amount of this name, with the name.
fn amount<'a>(container: &'a ContainerView, name: Option<&'a str>) -> Option<(&'a str, &'a Quantity)> {
    let name = name?;
    Some((name, container.amount(name)?))
}

fn number(quantity: &Quantity, max: i64) -> Option<u64> {
    match quantity.whole() {
        Whole::Exact(value) if (0..=max).contains(&value) => u64::try_from(value).ok(),
        _ => None,
    }
}

/// A number of cards as written; 0 is no request.
///
/// # Errors
/// Not a whole number of 0 to [`WIRE_MAX`].
pub(crate) fn count_of(container: &str, field: &str, quantity: &Quantity) -> Result<u32, RequestError> {
    let count = number(quantity, WIRE_MAX).and_then(|count| u32::try_from(count).ok());
    count.ok_or_else(|| {
        RequestError::resource(
            container,
            field,
            format!("`{quantity}` is not a number of cards"),
            "write a whole number, such as 1",
        )
    })
}

/// How many cards; `None` without the name, and for 0.
///
/// # Errors
/// As [`count_of`].
pub(crate) fn count(container: &ContainerView, name: Option<&str>) -> Result<Option<u32>, RequestError> {
    let Some((name, quantity)) = amount(container, name) else {
        return Ok(None);
    };
    let count = count_of(&container.name, name, quantity)?;
    Ok((count > 0).then_some(count))
}

/// A whole number of 0 to `max`; `None` without the name. `what` names the number in the error, such as "a number of
/// slices".
///
/// # Errors
/// Anything else.
pub(crate) fn whole(
    container: &ContainerView,
    name: Option<&str>,
    what: &str,
    max: i64,
) -> Result<Option<u64>, RequestError> {
    whole_or(
        container,
        name,
        what,
        max,
        &format!("write a whole number from 0 to {max}"),
    )
}

/// An amount of compute; `None` without the name. `next` says what to write.
///
/// # Errors
/// Not a whole number of 0 to [`WIRE_MAX`].
pub(crate) fn compute(container: &ContainerView, name: Option<&str>, next: &str) -> Result<Option<u32>, RequestError> {
    let value = whole_or(container, name, "an amount of compute", WIRE_MAX, next)?;
    Ok(value.and_then(|value| u32::try_from(value).ok()))
}

fn whole_or(
    container: &ContainerView,
    name: Option<&str>,
    what: &str,
    max: i64,
    next: &str,
) -> Result<Option<u64>, RequestError> {
    let Some((name, quantity)) = amount(container, name) else {
        return Ok(None);
    };
    number(quantity, max)
        .map(Some)
        .ok_or_else(|| RequestError::resource(&container.name, name, format!("`{quantity}` is not {what}"), next))
}

/// An amount of memory in units of `factor` MiB; `None` without the name, zero as it is written.
///
/// # Errors
/// As [`memory_of`].
pub(crate) fn memory(container: &ContainerView, name: Option<&str>, factor: u64) -> Result<Option<Mib>, RequestError> {
    amount(container, name)
        .map(|(name, quantity)| memory_of(&container.name, name, quantity, factor))
        .transpose()
}

/// Memory in units of `factor` MiB.
///
/// # Errors
/// A fraction, a negative number, or more than a device text carries; bytes are told what they are in the unit.
pub(crate) fn memory_of(container: &str, field: &str, quantity: &Quantity, factor: u64) -> Result<Mib, RequestError> {
    let factor = i64::try_from(factor).unwrap_or(i64::MAX).max(1);
    let unit = match factor {
        1 => "MiB".to_owned(),
        factor => format!("units of {factor} MiB"),
    };
    let error = |problem: String, next: String| Err(RequestError::resource(container, field, problem, next));
    let most = WIRE_MAX / factor;
    match quantity.whole() {
        Whole::Exact(value) if (0..=most).contains(&value) => {
            Ok(Mib::new(u64::try_from(value.saturating_mul(factor)).unwrap_or(0)))
        }
        Whole::Exact(value) if value < 0 => error(
            format!("`{quantity}` is negative"),
            format!("write the amount in {unit}"),
        ),
        Whole::Exact(value) => {
            let meant = (value >> 20) / factor;
            let next = if quantity.as_str().ends_with('i') && (1..=most).contains(&meant) {
                format!("write {meant}: `{field}` counts {unit}, not bytes")
            } else {
                format!("`{field}` counts {unit}, not bytes; write at most {most}")
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
            format!("`{field}` counts {unit}, not bytes; write at most {most}"),
        ),
    }
}

/// A percentage of `least` to 100.
///
/// # Errors
/// Anything else.
pub(crate) fn percent_of(container: &str, field: &str, quantity: &Quantity, least: u32) -> Result<u32, RequestError> {
    let percent = number(quantity, 100).and_then(|percent| u32::try_from(percent).ok());
    percent.filter(|percent| *percent >= least).ok_or_else(|| {
        RequestError::resource(
            container,
            field,
            format!("`{quantity}` is not a percentage"),
            format!("write a whole number from {least} to 100"),
        )
    })
}

/// So many units under the resource `field`, each with all it has and no claim on compute.
///
/// # Errors
/// As [`count_of`].
pub(crate) fn units(class: &Keyword, field: &str, container: &ContainerView) -> Result<Option<Ask>, RequestError> {
    Ok(count(container, Some(field))?.map(|count| Ask {
        class: class.clone(),
        count,
        memory: MemoryAsk::Whole,
        percent_beside: None,
        cores: Cores::ZERO,
        extra: Vec::new(),
    }))
}

/// Refuses two names of one class in a container, of which only one could be served.
///
/// # Errors
/// Both are in its limits.
pub(crate) fn one_of(container: &ContainerEdit<'_>, fields: &[&str]) -> Result<(), RequestError> {
    let mut asked = fields.iter().filter(|field| container.has_limit(field));
    match (asked.next(), asked.next()) {
        (Some(one), Some(other)) => Err(RequestError::resource(
            &container.view().name,
            *other,
            format!("`{one}` is asked for in the same container, and a container gets one kind of unit"),
            format!("keep one of the two, or ask for `{other}` in a container of its own"),
        )),
        _ => Ok(()),
    }
}

/// Whether the container under admission names the resource, in limits or in requests.
pub(crate) fn has(container: &ContainerEdit<'_>, name: Option<&str>) -> bool {
    name.is_some_and(|name| container.has_limit(name) || container.has_request(name))
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
