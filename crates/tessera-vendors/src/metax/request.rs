//! Reading a container's MetaX resources.
//!
//! Memory of a share has two spellings: a bare number is GiB, a number with a unit (`4Gi`, `2048Mi`, `100M`) is bytes.
//! Kubernetes may rewrite `1000` as `1k` and `10000` as `10e3`; an exponent is no unit here, so that such a number keeps
//! its meaning, and an amount that comes out as less than 1 MiB is refused instead of meaning the whole card.

use tessera_engine::RequestError;
use tessera_types::{Ask, Cores, MemoryAsk, Mib};
use tessera_wire::{ContainerView, Quantity, Whole};

use super::company::App;
use super::sgpu::MetaxSgpu;
use super::whole::MetaxGpu;
use crate::amounts::{self, WIRE_MAX};

/// The memory unit of a bare number.
pub(super) const GIB: u64 = 1024;

/// Whole cards; limits, else requests.
pub(super) fn whole(class: &MetaxGpu, container: &ContainerView) -> Result<Option<Ask>, RequestError> {
    let Some((name, quantity)) = class
        .names
        .count
        .as_deref()
        .and_then(|name| Some((name, container.amount(name)?)))
    else {
        return Ok(None);
    };
    let count = amounts::count_of(&container.name, name, quantity)?;
    Ok((count > 0).then(|| Ask {
        class: class.keyword.clone(),
        count,
        memory: MemoryAsk::Whole,
        percent_beside: None,
        cores: Cores::new(100),
        extra: Vec::new(),
    }))
}

/// Shares; limits only. A pod of the online class claims no compute.
pub(super) fn shared(
    class: &MetaxSgpu,
    container: &ContainerView,
    app: Option<App>,
) -> Result<Option<Ask>, RequestError> {
    let names = &class.names;
    let limit = |name: &Option<String>| -> Option<(String, Quantity)> {
        let name = name.as_deref()?;
        Some((name.to_owned(), container.limits.get(name)?.clone()))
    };
    let Some((name, quantity)) = limit(&names.count) else {
        return Ok(None);
    };
    let count = amounts::count_of(&container.name, &name, &quantity)?;
    if count == 0 {
        return Ok(None);
    }
    let cores = match limit(&names.cores) {
        None => 100,
        Some((name, quantity)) => cores(&container.name, &name, &quantity)?,
    };
    let memory = match limit(&names.memory) {
        None => MemoryAsk::Whole,
        Some((name, quantity)) => memory(&container.name, &name, &quantity)?,
    };
    Ok(Some(Ask {
        class: class.keyword.clone(),
        count,
        memory,
        percent_beside: None,
        cores: Cores::new(if app == Some(App::Online) { 0 } else { cores }),
        extra: Vec::new(),
    }))
}

fn cores(container: &str, name: &str, quantity: &Quantity) -> Result<u32, RequestError> {
    let problem = match quantity.whole() {
        Whole::Exact(value @ 0..=100) => return Ok(u32::try_from(value).unwrap_or(100)),
        Whole::Exact(101..) | Whole::TooLarge => format!("`{quantity}` percent is more than one card has"),
        _ => format!("`{quantity}` is not a percentage of a card's compute"),
    };
    let next = "write a whole number from 0 to 100; leave it out for a card of your own";
    Err(RequestError::resource(container, name, problem, next))
}

/// Whether the number carries a unit of bytes: a decimal or binary multiple, no exponent and no fraction of one.
fn has_unit(quantity: &Quantity) -> bool {
    quantity.as_str().ends_with(['k', 'M', 'G', 'T', 'P', 'E', 'i'])
}

fn memory(container: &str, name: &str, quantity: &Quantity) -> Result<MemoryAsk, RequestError> {
    let error = |problem: String| {
        RequestError::resource(
            container,
            name,
            problem,
            "write the memory of each card in GiB as a bare number (4), or with a unit (4Gi, 2048Mi)",
        )
    };
    let value = match quantity.whole() {
        Whole::Exact(value) if value >= 0 => u64::try_from(value).unwrap_or(0),
        Whole::Exact(_) => return Err(error(format!("`{quantity}` is negative"))),
        Whole::Fraction => return Err(error(format!("`{quantity}` is not a whole number"))),
        Whole::TooLarge => return Err(error(format!("`{quantity}` is more than any card has"))),
    };
    if value == 0 {
        return Ok(MemoryAsk::Whole);
    }
    let amount = if has_unit(quantity) {
        Some(Mib::from_bytes_floor(value))
    } else {
        Mib::new(value).checked_mul(GIB)
    };
    match amount {
        Some(Mib::ZERO) => Err(error(format!("`{quantity}` is {value} bytes, less than 1 MiB"))),
        Some(amount) if amount.get() <= WIRE_MAX.unsigned_abs() => Ok(MemoryAsk::Mib(amount)),
        _ => Err(error(format!("`{quantity}` is more than any card has"))),
    }
}
