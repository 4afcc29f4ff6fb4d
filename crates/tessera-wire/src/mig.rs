//! Hardware instances on the wire: the reservation annotation of a pod and the allow-list of profiles.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use tessera_types::{CardId, IdError, MigReservation, MigRuntime, Placement};

/// The most reservations read from one pod.
pub const RESERVATIONS_MAX: usize = 1024;

/// A reservation annotation or an allow-list that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MigError {
    /// Not the JSON that was expected.
    #[error("the reservation is not the expected JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// A card or profile has no name.
    #[error("reservation {at}: {problem}")]
    Entry {
        /// Position in the list, from 0.
        at: usize,
        /// What is wrong.
        problem: &'static str,
    },
    /// The card's id cannot be one.
    #[error("reservation {at}: {error}")]
    Card {
        /// Position in the list, from 0.
        at: usize,
        /// What is wrong.
        error: IdError,
    },
    /// Two entries for one device.
    #[error("container {container} device {device} is reserved twice")]
    Twice {
        /// Container position.
        container: u32,
        /// Device position.
        device: u32,
    },
    /// More entries than any pod has.
    #[error("more than {RESERVATIONS_MAX} reservations")]
    TooMany,
    /// An entry of the allow-list lists nothing.
    #[error("migProfileAllowlist entry {at}: {what} must not be empty")]
    AllowEmpty {
        /// Position in the list, from 0.
        at: usize,
        /// `models` or `profiles`.
        what: &'static str,
    },
    /// A profile name that no card has.
    #[error("migProfileAllowlist entry {at}: `{profile}` is not a profile name such as 1g.5gb")]
    AllowProfile {
        /// Position in the list, from 0.
        at: usize,
        /// The name found.
        profile: String,
    },
}

#[derive(Serialize, Deserialize)]
struct WirePlacement {
    #[serde(default)]
    start: u32,
    #[serde(default)]
    size: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    #[serde(default)]
    container_index: u32,
    #[serde(default)]
    device_index: u32,
    #[serde(default, rename = "gpuUUID")]
    gpu_uuid: String,
    #[serde(default)]
    profile: String,
    placement: WirePlacement,
    #[serde(default, rename = "migUUID", skip_serializing_if = "Option::is_none")]
    mig_uuid: Option<String>,
    #[serde(default, rename = "gpuInstanceID", skip_serializing_if = "Option::is_none")]
    gpu_instance_id: Option<u32>,
    #[serde(default, rename = "computeInstanceID", skip_serializing_if = "Option::is_none")]
    compute_instance_id: Option<u32>,
}

/// Prints the reservations of a pod; `None` if it has none, so that no annotation is written.
#[must_use]
pub fn print_reservations(reservations: &[MigReservation]) -> Option<String> {
    if reservations.is_empty() {
        return None;
    }
    let list: Vec<Wire> = reservations
        .iter()
        .map(|r| Wire {
            container_index: r.container,
            device_index: r.device,
            gpu_uuid: r.card.to_string(),
            profile: r.profile.clone(),
            placement: WirePlacement {
                start: r.placement.start,
                size: r.placement.size,
            },
            mig_uuid: r.runtime.as_ref().map(|runtime| runtime.mig_uuid.clone()),
            gpu_instance_id: r.runtime.as_ref().map(|runtime| runtime.gpu_instance),
            compute_instance_id: r.runtime.as_ref().map(|runtime| runtime.compute_instance),
        })
        .collect();
    serde_json::to_string(&list).ok()
}

/// Reads the reservations of a pod. An empty text is none.
///
/// # Errors
/// Any bad entry spoils the whole annotation: half a picture of what is in use would be worse than none.
pub fn parse_reservations(text: &str) -> Result<Vec<MigReservation>, MigError> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let list: Vec<Wire> = serde_json::from_str(text)?;
    if list.len() > RESERVATIONS_MAX {
        return Err(MigError::TooMany);
    }
    let mut seen = BTreeSet::new();
    let mut reservations = Vec::with_capacity(list.len());
    for (at, entry) in list.into_iter().enumerate() {
        if entry.profile.is_empty() {
            return Err(MigError::Entry {
                at,
                problem: "the profile is empty",
            });
        }
        if entry.placement.size == 0 {
            return Err(MigError::Entry {
                at,
                problem: "the placement has size 0",
            });
        }
        let runtime = match (entry.mig_uuid, entry.gpu_instance_id, entry.compute_instance_id) {
            (None, None, None) => None,
            (Some(mig_uuid), Some(gpu_instance), Some(compute_instance)) if !mig_uuid.is_empty() => Some(MigRuntime {
                mig_uuid,
                gpu_instance,
                compute_instance,
            }),
            _ => {
                return Err(MigError::Entry {
                    at,
                    problem: "of migUUID, gpuInstanceID and computeInstanceID either all or none must be given",
                });
            }
        };
        if !seen.insert((entry.container_index, entry.device_index)) {
            return Err(MigError::Twice {
                container: entry.container_index,
                device: entry.device_index,
            });
        }
        reservations.push(MigReservation {
            container: entry.container_index,
            device: entry.device_index,
            card: CardId::new(&entry.gpu_uuid).map_err(|error| MigError::Card { at, error })?,
            profile: entry.profile,
            placement: Placement {
                start: entry.placement.start,
                size: entry.placement.size,
            },
            runtime,
        });
    }
    Ok(reservations)
}

/// Which profiles may be made on cards whose model contains one of the names.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MigAllow {
    /// Parts of model names.
    #[serde(default)]
    pub models: Vec<String>,
    /// Profile names.
    #[serde(default)]
    pub profiles: Vec<String>,
}

/// Whether a text is a profile name: `<number>g.<something>`.
#[must_use]
pub fn is_profile_name(name: &str) -> bool {
    name.split_once("g.").is_some_and(|(slices, size)| {
        !slices.is_empty() && slices.bytes().all(|byte| byte.is_ascii_digit()) && !size.is_empty()
    })
}

/// Checks an allow-list.
///
/// # Errors
/// An entry without models or profiles, or with a name that is no profile's.
pub fn check_allowlist(list: &[MigAllow]) -> Result<(), MigError> {
    for (at, entry) in list.iter().enumerate() {
        if entry.models.is_empty() {
            return Err(MigError::AllowEmpty { at, what: "models" });
        }
        if entry.profiles.is_empty() {
            return Err(MigError::AllowEmpty { at, what: "profiles" });
        }
        if let Some(profile) = entry.profiles.iter().find(|name| !is_profile_name(name)) {
            return Err(MigError::AllowProfile {
                at,
                profile: profile.clone(),
            });
        }
    }
    Ok(())
}

/// The profiles allowed on a card of this model: those of the first entry that names part of it; `None` if no entry does.
#[must_use]
pub fn allowed_profiles<'a>(list: &'a [MigAllow], model: &str) -> Option<&'a [String]> {
    list.iter()
        .find(|entry| entry.models.iter().any(|part| model.contains(part.as_str())))
        .map(|entry| entry.profiles.as_slice())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reservation() -> impl Strategy<Value = MigReservation> {
        (
            "[A-Za-z0-9-]{1,20}",
            "[1-7]g\\.[0-9]{1,3}gb",
            0u32..8,
            1u32..8,
            proptest::option::of((0u32..20, 0u32..8)),
        )
            .prop_map(|(card, profile, start, size, runtime)| MigReservation {
                container: 0,
                device: 0,
                card: CardId::new(card).unwrap(),
                profile,
                placement: Placement { start, size },
                runtime: runtime.map(|(gpu_instance, compute_instance)| MigRuntime {
                    mig_uuid: "MIG-a".to_owned(),
                    gpu_instance,
                    compute_instance,
                }),
            })
    }

    proptest! {
        #[test]
        fn print_then_parse_is_identity(list in prop::collection::vec(reservation(), 1..5)) {
            let list: Vec<MigReservation> = list
                .into_iter()
                .enumerate()
                .map(|(at, r)| MigReservation { device: u32::try_from(at).unwrap(), ..r })
                .collect();
            let text = print_reservations(&list).unwrap();
            prop_assert_eq!(parse_reservations(&text).unwrap(), list);
        }
    }

    #[test]
    fn an_index_cannot_be_negative() {
        let text = r#"[{"containerIndex":-1,"deviceIndex":0,"gpuUUID":"GPU-a","profile":"1g.5gb","placement":{"start":0,"size":1}}]"#;
        assert!(matches!(parse_reservations(text), Err(MigError::Json(_))));
    }
}
