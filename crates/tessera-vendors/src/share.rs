//! Reading amounts of memory and compute from a container, with an answer for whoever wrote them wrong.

use tessera_engine::RequestError;
use tessera_types::Mib;
use tessera_wire::{Quantity, Whole};

use crate::plain::WIRE_MAX;

/// Memory in units of `factor` MiB.
///
/// # Errors
/// A fraction, a negative number, or more than a device text carries; bytes are told what they are in the unit.
pub(crate) fn mib(container: &str, field: &str, quantity: &Quantity, factor: u64) -> Result<Mib, RequestError> {
    let factor = i64::try_from(factor).unwrap_or(i64::MAX).max(1);
    let unit = if factor == 1 {
        "MiB".to_owned()
    } else {
        format!("units of {factor} MiB")
    };
    let error = |problem: String, next: String| RequestError::resource(container, field, problem, next);
    let most = WIRE_MAX / factor;
    match quantity.whole() {
        Whole::Exact(value) if (0..=most).contains(&value) => {
            Ok(Mib::new(u64::try_from(value.saturating_mul(factor)).unwrap_or(0)))
        }
        Whole::Exact(value) if value < 0 => Err(error(
            format!("`{quantity}` is negative"),
            format!("write the amount in {unit}"),
        )),
        Whole::Fraction => Err(error(
            format!("`{quantity}` is not a whole number"),
            format!("write a whole number of {unit}"),
        )),
        Whole::Exact(value) => {
            let meant = (value >> 20) / factor;
            let next = if quantity.as_str().ends_with('i') && (1..=most).contains(&meant) {
                format!("write {meant}: `{field}` counts {unit}, not bytes")
            } else {
                format!("`{field}` counts {unit}, not bytes; write at most {most}")
            };
            Err(error(
                format!("`{quantity}` means {value} {unit}, more than any card has"),
                next,
            ))
        }
        Whole::TooLarge => Err(error(
            format!("`{quantity}` is more than any card has"),
            format!("`{field}` counts {unit}, not bytes; write at most {most}"),
        )),
    }
}

/// A percentage of `least` to 100.
///
/// # Errors
/// Anything else.
pub(crate) fn percent(container: &str, field: &str, quantity: &Quantity, least: u32) -> Result<u32, RequestError> {
    match quantity.whole() {
        Whole::Exact(value) if (i64::from(least)..=100).contains(&value) => Ok(u32::try_from(value).unwrap_or(100)),
        _ => Err(RequestError::resource(
            container,
            field,
            format!("`{quantity}` is not a percentage"),
            format!("write a whole number from {least} to 100"),
        )),
    }
}
