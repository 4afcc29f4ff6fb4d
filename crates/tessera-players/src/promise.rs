//! What the scheduler promised, in each maker's form.

use serde::Deserialize;
use serde_json::{Map, Value};

/// A card, and how much of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// The card's id.
    pub card: String,
    /// Memory as promised, MiB.
    pub mib: u64,
    /// Compute as promised, in the maker's unit.
    pub percent: u64,
}

/// A promise that does not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not what the plugin expects: {fault}")]
pub struct PromiseError {
    /// The annotation.
    pub text: String,
    /// What is wrong.
    pub fault: String,
}

fn wrong(text: &str, fault: impl Into<String>) -> PromiseError {
    PromiseError {
        text: text.to_owned(),
        fault: fault.into(),
    }
}

/// The container entries of a device text. As in HAMi's reader the last `;` is followed by one more, empty entry.
///
/// # Errors
/// A device with fewer than four fields, or a size that is no number.
pub fn entries(text: &str) -> Result<Vec<Vec<Share>>, PromiseError> {
    let number = |field: &str| {
        field
            .parse::<u64>()
            .map_err(|_| wrong(text, format!("`{field}` is no number")))
    };
    text.split(';')
        .map(|entry| {
            entry
                .split(':')
                .filter(|device| device.contains(','))
                .map(|device| match device.split(',').collect::<Vec<_>>()[..] {
                    [card, _, mib, percent, ..] => Ok(Share {
                        card: card.to_owned(),
                        mib: number(mib)?,
                        percent: number(percent)?,
                    }),
                    _ => Err(wrong(text, format!("`{device}` has fewer than four fields"))),
                })
                .collect()
        })
        .collect()
}

/// The text without its first container that has devices. Every entry gets its `;`, so the text grows by one.
#[must_use]
pub fn without_first(text: &str) -> String {
    let mut taken = false;
    text.split(';').fold(String::new(), |mut rest, entry| {
        if entry.contains(',') && !taken {
            taken = true;
        } else {
            rest.push_str(entry);
        }
        rest.push(';');
        rest
    })
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct WireShare {
    uuid: String,
    compute: u64,
    #[serde(rename = "vRam")]
    vram: u64,
}

/// MetaX's form: a list of shares for each container.
///
/// # Errors
/// Not such a list.
pub fn shares(text: &str) -> Result<Vec<Vec<Share>>, PromiseError> {
    let list: Vec<Vec<WireShare>> = serde_json::from_str(text).map_err(|error| wrong(text, error.to_string()))?;
    let share = |wire: WireShare| Share {
        card: wire.uuid,
        mib: wire.vram,
        percent: wire.compute,
    };
    Ok(list
        .into_iter()
        .map(|container| container.into_iter().map(share).collect())
        .collect())
}

/// Numbers joined by commas.
///
/// # Errors
/// Something else between the commas.
pub fn numbers(text: &str) -> Result<Vec<u64>, PromiseError> {
    text.split(',')
        .map(|field| {
            field
                .trim()
                .parse()
                .map_err(|_| wrong(text, format!("`{field}` is no number")))
        })
        .collect()
}

/// Cambricon's form: card number, compute, units of 256 MiB.
///
/// # Errors
/// Not three numbers.
pub fn profile(text: &str) -> Result<(u64, u64, u64), PromiseError> {
    let fields: Result<Vec<u64>, _> = text.split('_').map(str::parse).collect();
    match fields.as_deref() {
        Ok([card, compute, units]) => Ok((*card, *compute, *units)),
        _ => Err(wrong(text, "three numbers joined by `_` are expected")),
    }
}

/// Enflame's form: by container name, whether it has been served, and how many slices it asks for.
///
/// # Errors
/// Not such an object.
pub fn containers(text: &str) -> Result<Map<String, Value>, PromiseError> {
    serde_json::from_str(text).map_err(|error| wrong(text, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_text_is_handed_out_container_by_container() {
        let text = ";A,DCU,2000,60:;B,DCU,1,2:C,DCU,3,4:;";
        let all = entries(text).unwrap();
        assert_eq!(all.iter().map(Vec::len).collect::<Vec<_>>(), [0, 1, 2, 0]);
        let rest = without_first(text);
        assert_eq!(rest, ";;B,DCU,1,2:C,DCU,3,4:;;");
        assert_eq!(without_first(&rest), ";;;;;");
        assert!(entries("A,DCU,2:;").is_err() && entries("A,DCU,x,1:;").is_err());
    }

    #[test]
    fn other_forms_read() {
        let all = shares(r#"[[],[{"uuid":"G","compute":50,"vRam":32768}]]"#).unwrap();
        assert_eq!((all[0].len(), all[1][0].percent, all[1][0].mib), (0, 50, 32768));
        assert_eq!(profile("1_10_20"), Ok((1, 10, 20)));
        assert!(profile("1_10").is_err());
        assert_eq!(numbers("1,0"), Ok(vec![1, 0]));
    }
}
