//! The device text of a pod: which card, and how much of it, each container has.
//!
//! One device is `<card>,<class keyword>,<MiB>,<percent>:`, a container is its devices and `;`, a pod is its
//! containers in order, init containers first. A container without devices of the class is an empty entry: the
//! position is the container.

use std::fmt::Write as _;

use tessera_types::{CardId, Cores, Extras, IdError, Keyword, Mib, Share};

/// The most containers read from one text.
pub const CONTAINERS_MAX: usize = 512;
/// The most devices read from one container.
pub const DEVICES_MAX: usize = 1024;

/// A text that is no device text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceTextError {
    /// A device with fewer than four fields.
    #[error("device `{0}` has fewer than the four fields card, class, MiB and percent")]
    TooFewFields(String),
    /// The card or the class is not usable as a name.
    #[error("device `{device}`: {error}")]
    Name {
        /// The device's text.
        device: String,
        /// What is wrong.
        error: IdError,
    },
    /// Memory or compute is not a number of 0 to 2147483647.
    #[error("device `{device}`: {field} `{value}` is not an integer of 0 to 2147483647")]
    Number {
        /// The device's text.
        device: String,
        /// Which field.
        field: &'static str,
        /// Its text.
        value: String,
    },
    /// More entries than any pod has.
    #[error("more than {limit} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
}

/// Prints the shares of one class, container by container.
#[must_use]
pub fn print(containers: &[Vec<Share>]) -> String {
    let mut text = String::with_capacity(containers.len() + containers.iter().map(Vec::len).sum::<usize>() * 64);
    for shares in containers {
        for share in shares {
            // Writing to a String cannot fail.
            let _unfailing = write!(
                text,
                "{},{},{},{}:",
                share.card,
                share.class,
                share.memory.get(),
                share.cores.get()
            );
        }
        text.push(';');
    }
    text
}

fn number(device: &str, field: &'static str, value: &str) -> Result<u32, DeviceTextError> {
    value
        .parse::<i32>()
        .ok()
        .and_then(|n| u32::try_from(n).ok())
        .ok_or_else(|| DeviceTextError::Number {
            device: device.chars().take(128).collect(),
            field,
            value: value.chars().take(32).collect(),
        })
}

fn device(text: &str) -> Result<Share, DeviceTextError> {
    let shown = || text.chars().take(128).collect::<String>();
    let mut fields = text.split(',');
    let (Some(card), Some(class), Some(memory), Some(cores)) =
        (fields.next(), fields.next(), fields.next(), fields.next())
    else {
        return Err(DeviceTextError::TooFewFields(shown()));
    };
    let name = |error| DeviceTextError::Name { device: shown(), error };
    Ok(Share {
        card: CardId::new(card).map_err(name)?,
        class: Keyword::new(class).map_err(name)?,
        memory: Mib::new(u64::from(number(text, "memory", memory)?)),
        cores: Cores::new(number(text, "compute", cores)?),
        extra: Extras::NONE,
    })
}

/// Reads a text entry by entry, the way HAMi's reader counts them: the last `;` is followed by one more, empty entry.
///
/// # Errors
/// Any device that does not read spoils the whole text, so that no container gets another's cards.
pub fn parse_entries(text: &str) -> Result<Vec<Vec<Share>>, DeviceTextError> {
    let mut containers = Vec::new();
    for entry in text.split(';') {
        if containers.len() > CONTAINERS_MAX {
            return Err(DeviceTextError::TooMany {
                what: "containers",
                limit: CONTAINERS_MAX,
            });
        }
        let mut shares = Vec::new();
        for part in entry.split(':').filter(|part| part.contains(',')) {
            if shares.len() >= DEVICES_MAX {
                return Err(DeviceTextError::TooMany {
                    what: "devices of a container",
                    limit: DEVICES_MAX,
                });
            }
            shares.push(device(part)?);
        }
        containers.push(shares);
    }
    Ok(containers)
}

/// Reads a text: one entry per container, so the inverse of [`print`].
///
/// # Errors
/// As [`parse_entries`].
pub fn parse(text: &str) -> Result<Vec<Vec<Share>>, DeviceTextError> {
    let mut containers = parse_entries(text)?;
    if containers.last().is_some_and(Vec::is_empty) {
        containers.pop();
    }
    Ok(containers)
}

/// Takes the first container that still has devices out of a to-allocate text, leaving its place empty. Answers its
/// position and shares; `None` when all are handed out. (The part of the protocol that a node agent plays under a
/// scheduler that is not ours.)
pub fn take_first(containers: &mut [Vec<Share>]) -> Option<(usize, Vec<Share>)> {
    containers
        .iter_mut()
        .enumerate()
        .find(|(_, shares)| !shares.is_empty())
        .map(|(position, shares)| (position, std::mem::take(shares)))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    fn share() -> impl Strategy<Value = Share> {
        (
            "[A-Za-z0-9\\[\\]_-]{1,40}",
            "[A-Za-z0-9-]{1,12}",
            0u64..2_147_483_648,
            0u32..1000,
        )
            .prop_map(|(card, class, memory, cores)| Share {
                card: CardId::new(card).unwrap(),
                class: Keyword::new(class).unwrap(),
                memory: Mib::new(memory),
                cores: Cores::new(cores),
                extra: Extras::NONE,
            })
    }

    proptest! {
        #[test]
        fn print_then_parse_is_identity(containers in prop::collection::vec(prop::collection::vec(share(), 0..4), 0..6)) {
            prop_assert_eq!(parse(&print(&containers)).unwrap(), containers);
        }

        #[test]
        fn what_reads_reads_again(text in "[A-Z,:;0-9-]{0,200}") {
            if let Ok(containers) = parse(&text) {
                prop_assert_eq!(parse(&print(&containers)).unwrap(), containers);
            }
        }
    }

    #[test]
    fn a_negative_amount_gives_nothing_back() {
        assert!(parse("GPU-x,NVIDIA,-3000,0:;").is_err());
        assert!(parse("GPU-x,NVIDIA,3000,-1:;").is_err());
        assert!(parse(",NVIDIA,3000,0:;").is_err());
        assert!(parse("GPU-x,NVIDIA,3000000000,0:;").is_err());
    }

    #[test]
    fn containers_are_handed_out_in_order() {
        let mut text = parse(";GPU-x,NVIDIA,1,2:;GPU-y,NVIDIA,3,4:;").unwrap();
        assert_eq!(take_first(&mut text).unwrap().0, 1);
        assert_eq!(print(&text), ";;GPU-y,NVIDIA,3,4:;");
        assert_eq!(take_first(&mut text).unwrap().0, 2);
        assert_eq!(print(&text), ";;;");
        assert!(take_first(&mut text).is_none());
    }
}
