//! Reading a container's Ascend resources, at admission and when scheduling.

use tessera_engine::RequestError;
use tessera_types::{Ask, Cores, MemoryAsk, Mib};
use tessera_wire::{ContainerView, PodView, Quantity, Whole};

use super::chip::{Chip, MODE_KEY, MODE_SOFT, Size};

/// The largest amount on the wire: device texts carry 32 signed bits.
const WIRE_MAX: i64 = 2_147_483_647;

/// Whether the pod asks for soft slices.
pub(super) fn is_soft(pod: &PodView) -> bool {
    pod.annotation(MODE_KEY) == Some(MODE_SOFT)
}

/// What a container writes. Each name is looked up in limits, else in requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Written {
    /// At least 1.
    pub(super) count: u32,
    /// MiB; `None` if it is not written or 0: the whole NPU.
    pub(super) memory: Option<Mib>,
    /// Percent as written.
    pub(super) cores: Cores,
}

/// Reads the amounts. `None` without a count.
///
/// # Errors
/// A number that no NPU can give, or memory or compute without a count.
pub(super) fn written(chip: &Chip, container: &ContainerView) -> Result<Option<Written>, RequestError> {
    let names = &chip.names;
    let amount = |name: &Option<String>| -> Option<(String, Quantity)> {
        let name = name.as_deref()?;
        Some((name.to_owned(), container.amount(name)?.clone()))
    };
    let error =
        |name: String, problem: String, next: &str| Err(RequestError::resource(&container.name, name, problem, next));
    let Some((count_name, count)) = amount(&names.count) else {
        let part = amount(&names.memory).or_else(|| amount(&names.cores));
        return match (part, names.count.as_deref()) {
            (Some((name, _)), Some(count)) => error(
                name,
                format!("is a part of each NPU, but `{count}` is missing"),
                &format!("add `{count}: 1`"),
            ),
            _ => Ok(None),
        };
    };
    let count = match count.whole() {
        Whole::Exact(count) if (0..=WIRE_MAX).contains(&count) => u32::try_from(count).unwrap_or(u32::MAX),
        _ => {
            return error(
                count_name,
                format!("`{count}` is not a number of NPUs"),
                "write a whole number, such as 1",
            );
        }
    };
    if count == 0 {
        return Ok(None);
    }
    let memory = match amount(&names.memory) {
        Some((name, quantity)) => memory(chip, container, &name, &quantity)?,
        None => Mib::ZERO,
    };
    let cores = match amount(&names.cores) {
        None => Cores::ZERO,
        Some((name, quantity)) => match quantity.whole() {
            Whole::Exact(value) if (0..=WIRE_MAX).contains(&value) => {
                Cores::new(u32::try_from(value).unwrap_or(u32::MAX))
            }
            _ => {
                return error(
                    name,
                    format!("`{quantity}` is not a percentage of an NPU's compute"),
                    "write a whole number from 0 to 100",
                );
            }
        },
    };
    Ok(Some(Written {
        count,
        memory: (memory > Mib::ZERO).then_some(memory),
        cores,
    }))
}

fn memory(chip: &Chip, container: &ContainerView, name: &str, quantity: &Quantity) -> Result<Mib, RequestError> {
    let factor = chip.names.factor();
    let unit = match factor {
        1 => "MiB".to_owned(),
        factor => format!("units of {factor} MiB"),
    };
    let factor_signed = i64::try_from(factor).unwrap_or(i64::MAX).max(1);
    let max = WIRE_MAX / factor_signed;
    let next = match quantity.whole() {
        Whole::Exact(value) if (0..=max).contains(&value) => {
            return Ok(Mib::new(u64::try_from(value).unwrap_or(0).saturating_mul(factor)));
        }
        Whole::Exact(value) if value > max && quantity.as_str().ends_with(|c: char| c.is_ascii_alphabetic()) => {
            let meant = (value >> 20) / factor_signed;
            match meant {
                1.. if meant <= max => format!("write {meant}: `{name}` counts {unit} of each NPU, not bytes"),
                _ => format!("`{name}` counts {unit} of each NPU, not bytes"),
            }
        }
        _ => {
            let whole = chip.allocatable.get() / factor;
            format!("write a whole number of {unit}, at most {whole}")
        }
    };
    Err(RequestError::resource(
        &container.name,
        name,
        format!("`{quantity}` is not an amount of memory that an NPU has"),
        next,
    ))
}

/// The refusal of an odd number of NPUs, which a module chip cannot give. HAMi's words come first.
pub(super) fn odd(chip: &Chip, container: &str, count: u32) -> RequestError {
    let text = format!(
        "{} device request must be 1 or 2*n, got {count}; both NPUs of a module go to one container, so write {} or {}",
        chip.keyword,
        count.saturating_sub(1),
        count.saturating_add(1)
    );
    RequestError::sentence(Some(container.to_owned()), text)
}

/// The refusal of several templates in one container. HAMi's words come first.
pub(super) fn several_templates(container: &str) -> RequestError {
    let text = format!(
        "vNPU not supported for multiple devices; container `{container}` can have one part of an NPU, or several \
         whole ones: write a count of 1, or leave the memory out"
    );
    RequestError::sentence(Some(container.to_owned()), text)
}

/// The ask of one container. Memory is not rounded: that is the card's part, so a pod that admission has not seen
/// takes what it takes too.
pub(super) fn parse(chip: &Chip, container: &ContainerView, pod: &PodView) -> Result<Option<Ask>, RequestError> {
    let Some(written) = written(chip, container)? else {
        return Ok(None);
    };
    let soft = is_soft(pod);
    if chip.super_pod && written.count > 1 && written.count % 2 == 1 {
        return Err(odd(chip, &container.name, written.count));
    }
    let part = written
        .memory
        .is_some_and(|memory| matches!(chip.size(memory), Size::Template(_)));
    if !soft && part && written.count > 1 {
        return Err(several_templates(&container.name));
    }
    Ok(Some(Ask {
        class: chip.keyword.clone(),
        count: written.count,
        memory: written.memory.map_or(MemoryAsk::Whole, MemoryAsk::Mib),
        percent_beside: None,
        cores: written.cores,
        extra: Vec::new(),
    }))
}
