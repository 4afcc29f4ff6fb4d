//! Reading a container's NVIDIA resources.
//!
//! Each name is looked up in limits, else in requests. What HAMi would drop without a word (a fraction, a negative or
//! an impossible number) is an error here: a pod whose request is dropped would land on any node without a card.

use tessera_engine::RequestError;
use tessera_types::{Ask, Cores, MemoryAsk, Mib};
use tessera_wire::{ContainerView, Quantity, Whole};

use super::Nvidia;

/// The largest amount on the wire: device texts carry 32 signed bits.
const WIRE_MAX: i64 = 2_147_483_647;

/// The ask of one container; `None` without a count or with count 0.
pub(super) fn parse(class: &Nvidia, container: &ContainerView) -> Result<Option<Ask>, RequestError> {
    let names = &class.names;
    let amount = |name: &Option<String>| -> Option<(String, Quantity)> {
        let name = name.as_deref()?;
        Some((name.to_owned(), container.amount(name)?.clone()))
    };
    let Some((count_name, count)) = amount(&names.count) else {
        return Ok(None);
    };
    let count = match count.whole() {
        Whole::Exact(count) if (0..=WIRE_MAX).contains(&count) => u32::try_from(count).unwrap_or(u32::MAX),
        _ => {
            let problem = format!("`{count}` is not a number of cards");
            return Err(RequestError::resource(
                &container.name,
                count_name,
                problem,
                "write a whole number, such as 1",
            ));
        }
    };
    if count == 0 {
        return Ok(None);
    }

    let memory = match amount(&names.memory) {
        Some((name, quantity)) => mib(&container.name, &name, &quantity, names.factor())?,
        None => Mib::ZERO,
    };
    let percent = match amount(&names.memory_percent) {
        Some((name, quantity)) => percentage(&container.name, &name, &quantity)?,
        None => None,
    };
    let cores = match amount(&names.cores) {
        Some((name, quantity)) => cores(&container.name, &name, &quantity)?,
        None => Cores::new(u32::try_from(class.settings.default_cores).unwrap_or(0)),
    };
    let default_memory = u64::try_from(class.settings.default_memory).unwrap_or(0);
    let (memory, percent_beside) = match (memory, percent) {
        (Mib::ZERO, Some(percent)) => (MemoryAsk::Percent(percent), None),
        (Mib::ZERO, None) if default_memory > 0 => (MemoryAsk::Mib(Mib::new(default_memory)), None),
        (Mib::ZERO, None) => (MemoryAsk::Whole, None),
        (amount, beside) => (MemoryAsk::Mib(amount), beside),
    };
    Ok(Some(Ask {
        class: class.keyword.clone(),
        count,
        memory,
        percent_beside,
        cores,
        extra: Vec::new(),
    }))
}

/// Memory in units of `factor` MiB.
fn mib(container: &str, name: &str, quantity: &Quantity, factor: u64) -> Result<Mib, RequestError> {
    let unit = if factor == 1 {
        "MiB".to_owned()
    } else {
        format!("units of {factor} MiB")
    };
    let error = |problem: String, next: String| RequestError::resource(container, name, problem, next);
    let max = WIRE_MAX / i64::try_from(factor).unwrap_or(i64::MAX).max(1);
    match quantity.whole() {
        Whole::Exact(value) if (0..=max).contains(&value) => {
            Ok(Mib::new(u64::try_from(value).unwrap_or(0).saturating_mul(factor)))
        }
        Whole::Exact(value) if value < 0 => Err(error(
            format!("`{quantity}` is negative"),
            format!("write the amount in {unit}"),
        )),
        Whole::Exact(value) => {
            let in_unit = value >> 20;
            let as_bytes = in_unit / i64::try_from(factor).unwrap_or(i64::MAX).max(1);
            let next = if quantity.as_str().ends_with('i') && as_bytes > 0 && as_bytes <= max {
                format!("write {as_bytes}: `{name}` counts {unit}, not bytes")
            } else {
                format!("`{name}` counts {unit}, not bytes; write at most {max}")
            };
            Err(error(
                format!("`{quantity}` means {value} {unit}, more than any card has"),
                next,
            ))
        }
        Whole::Fraction => Err(error(
            format!("`{quantity}` is not a whole number"),
            format!("write a whole number of {unit}"),
        )),
        Whole::TooLarge => Err(error(
            format!("`{quantity}` is more than any card has"),
            format!("`{name}` counts {unit}, not bytes; write at most {max}"),
        )),
    }
}

/// 1 to 100; above is 100, as HAMi reads it (admission refuses it); 0 is as if not given.
fn percentage(container: &str, name: &str, quantity: &Quantity) -> Result<Option<u32>, RequestError> {
    match quantity.whole() {
        Whole::Exact(0) => Ok(None),
        Whole::Exact(value) if value > 0 => Ok(Some(u32::try_from(value.min(100)).unwrap_or(100))),
        _ => Err(RequestError::resource(
            container,
            name,
            format!("`{quantity}` is not a percentage"),
            "write a whole number from 1 to 100",
        )),
    }
}

/// Any whole number; more than 100 is a whole card when it comes to fitting.
fn cores(container: &str, name: &str, quantity: &Quantity) -> Result<Cores, RequestError> {
    match quantity.whole() {
        Whole::Exact(value) if (0..=WIRE_MAX).contains(&value) => {
            Ok(Cores::new(u32::try_from(value).unwrap_or(u32::MAX)))
        }
        _ => Err(RequestError::resource(
            container,
            name,
            format!("`{quantity}` is not a percentage of a card's compute"),
            "write a whole number from 0 to 100",
        )),
    }
}
