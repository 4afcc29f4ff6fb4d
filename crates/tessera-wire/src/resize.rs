//! The three texts of a live resize, each with one writer.
//!
//! | annotation | written by | says |
//! | --- | --- | --- |
//! | `tessera.dev/resize` | the user | what each container is to have: `{"main": {"memory": "8Gi", "cores": 40}}` |
//! | `tessera.dev/resize-status` | the scheduler | what became of it, a [`Status`] |
//! | `tessera.dev/resize-report` | the node agent | what the node holds to, a [`Report`] |

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tessera_types::{Cores, Mib, Share};

use crate::{PodView, Quantity, Whole, device_text, keys, nearest::nearest};

/// The longest wish that is read, in bytes.
pub const WISH_BYTES_MAX: usize = 4096;

/// What one container is to have. What is not set stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wish {
    /// Memory of each of its cards.
    pub memory: Option<Mib>,
    /// Compute of each of its cards, 1 to 100.
    pub cores: Option<Cores>,
    /// Task priority, 0 is the highest.
    pub priority: Option<u8>,
}

/// A wish that cannot be meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WishError {
    /// No JSON object of objects.
    #[error(
        "annotation `{key}` is no JSON object of containers: {fault}; write for example {example}",
        key = keys::TESSERA_RESIZE,
        example = EXAMPLE
    )]
    Shape {
        /// What the reader says.
        fault: String,
    },
    /// Too long to be meant.
    #[error("annotation `{key}` has {0} bytes; the limit is {WISH_BYTES_MAX}", key = keys::TESSERA_RESIZE)]
    TooLong(usize),
    /// A member that means nothing.
    #[error(
        "annotation `{key}`: container `{container}` has the member `{member}`; known are memory, cores and priority{hint}",
        key = keys::TESSERA_RESIZE
    )]
    Member {
        /// The container.
        container: String,
        /// The member.
        member: String,
        /// `, did you mean ...`.
        hint: String,
    },
    /// A value out of range.
    #[error("annotation `{key}`: container `{container}`: {what} `{value}` is not {expected}", key = keys::TESSERA_RESIZE)]
    Value {
        /// The container.
        container: String,
        /// Which member.
        what: &'static str,
        /// As written.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
    /// Nothing is wished.
    #[error(
        "annotation `{key}` changes nothing{of}; name memory, cores or priority of a container, or remove the annotation",
        key = keys::TESSERA_RESIZE
    )]
    Nothing {
        /// ` of container ...`, or empty.
        of: String,
    },
    /// The policy is no word that is known.
    #[error("annotation `{key}` is `{0}`; it is `refuse` or `wait`", key = keys::TESSERA_RESIZE_POLICY)]
    Policy(String),
}

const EXAMPLE: &str = r#"{"main": {"memory": "8Gi", "cores": 40}}"#;

/// What happens when less is wished than a container holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnHeld {
    /// The wish is refused.
    #[default]
    Refuse,
    /// It is carried out once the container holds no more.
    Wait,
}

/// Reads what each container is to have.
///
/// # Errors
/// [`WishError`], with the place and the way out.
pub fn parse_wish(text: &str) -> Result<BTreeMap<String, Wish>, WishError> {
    if text.len() > WISH_BYTES_MAX {
        return Err(WishError::TooLong(text.len()));
    }
    let raw: BTreeMap<String, BTreeMap<String, serde_json::Value>> =
        serde_json::from_str(text).map_err(|error| WishError::Shape {
            fault: error.to_string(),
        })?;
    if raw.is_empty() {
        return Err(WishError::Nothing { of: String::new() });
    }
    raw.into_iter()
        .map(|(container, members)| {
            let wish = one(&container, &members)?;
            Ok((container, wish))
        })
        .collect()
}

fn one(container: &str, members: &BTreeMap<String, serde_json::Value>) -> Result<Wish, WishError> {
    let mut wish = Wish::default();
    for (member, value) in members {
        let wrong = |what, expected| WishError::Value {
            container: container.to_owned(),
            what,
            value: match value {
                serde_json::Value::String(text) => text.chars().take(64).collect(),
                other => other.to_string().chars().take(64).collect(),
            },
            expected,
        };
        match member.as_str() {
            "memory" => {
                wish.memory =
                    Some(memory(value).ok_or_else(|| wrong("memory", "MiB (8192) or a size (8Gi), at least 1 MiB"))?);
            }
            "cores" => {
                let percent = value.as_u64().filter(|percent| (1..=100).contains(percent));
                let percent = percent.and_then(|percent| u32::try_from(percent).ok());
                wish.cores = Some(Cores::new(
                    percent.ok_or_else(|| wrong("cores", "a percentage of 1 to 100"))?,
                ));
            }
            "priority" => {
                let priority = value.as_u64().and_then(|priority| u8::try_from(priority).ok());
                wish.priority = Some(priority.ok_or_else(|| wrong("priority", "a number of 0 to 255"))?);
            }
            other => {
                let hint = nearest(other, ["memory", "cores", "priority"]);
                return Err(WishError::Member {
                    container: container.to_owned(),
                    member: other.chars().take(64).collect(),
                    hint: hint.map_or_else(String::new, |near| format!("; did you mean `{near}`?")),
                });
            }
        }
    }
    if wish == Wish::default() {
        return Err(WishError::Nothing {
            of: format!(" of container `{container}`"),
        });
    }
    Ok(wish)
}

/// MiB as a number or in digits, anything else as a quantity in bytes, rounded down to MiB.
fn memory(value: &serde_json::Value) -> Option<Mib> {
    let mib = match value {
        serde_json::Value::Number(number) => number.as_u64()?,
        serde_json::Value::String(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok()?,
        serde_json::Value::String(text) => match Quantity::parse(text).ok()?.whole() {
            Whole::Exact(bytes) => u64::try_from(bytes).ok()? >> 20,
            _ => return None,
        },
        _ => return None,
    };
    // What the device text can say.
    (mib > 0 && mib <= u64::from(i32::MAX.unsigned_abs())).then(|| Mib::new(mib))
}

/// Reads the policy of a pod.
///
/// # Errors
/// [`WishError::Policy`].
pub fn parse_policy(text: Option<&str>) -> Result<OnHeld, WishError> {
    match text {
        None | Some("refuse") => Ok(OnHeld::Refuse),
        Some("wait") => Ok(OnHeld::Wait),
        Some(other) => Err(WishError::Policy(other.chars().take(64).collect())),
    }
}

/// How far a wish has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// The booking covers it; the node agent carries it out.
    Accepted,
    /// The container holds more than it is to have; it is carried out once it does not.
    Waiting,
    /// It is in force, and booked.
    Applied,
    /// It is not carried out; the container has what it had.
    Refused,
}

impl State {
    /// Whether the node agent has still to carry it out.
    #[must_use]
    pub const fn is_open(self) -> bool {
        matches!(self, Self::Accepted | Self::Waiting)
    }
}

/// What the scheduler says of a wish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Rises with every wish that is answered.
    pub generation: u64,
    /// How far it has come.
    pub state: State,
    /// For people; empty where there is nothing to say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The wish that is answered, word for word.
    pub request: String,
    /// The policy that it was answered with, word for word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// What the containers are to have: a device text of the whole pod.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub target: String,
    /// Task priorities that were set by this wish and those before, by container.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub priority: BTreeMap<String, u8>,
}

/// What the node agent says of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The [`Status::generation`] that it is about.
    pub generation: u64,
    /// [`State::Waiting`], [`State::Applied`] or [`State::Refused`].
    pub state: State,
    /// Why it waits or was refused.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// What the pod's containers are held to: a device text of the whole pod.
    pub holds: String,
}

macro_rules! json_text {
    ($type:ty) => {
        impl $type {
            /// Reads the annotation's text; nothing when it is none of this form.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                serde_json::from_str(text).ok()
            }

            /// The annotation's text.
            #[must_use]
            pub fn print(&self) -> String {
                // Strings and numbers only: this cannot fail.
                serde_json::to_string(self).unwrap_or_default()
            }
        }
    };
}
json_text!(Status);
json_text!(Report);

/// The status of a pod, if it has one that reads.
#[must_use]
pub fn status(pod: &PodView) -> Option<Status> {
    Status::parse(pod.annotation(keys::TESSERA_RESIZE_STATUS)?)
}

/// The report about a pod, if it has one that reads.
#[must_use]
pub fn report(pod: &PodView) -> Option<Report> {
    Report::parse(pod.annotation(keys::TESSERA_RESIZE_REPORT)?)
}

impl Status {
    /// What happens where less is wished than a container holds.
    #[must_use]
    pub fn on_held(&self) -> OnHeld {
        parse_policy(self.policy.as_deref()).unwrap_or_default()
    }

    /// What a node agent is to hold the pod's containers to, given what is booked; nothing while the two do not go
    /// together, which a later version of the pod puts right.
    #[must_use]
    pub fn goal(&self, booked: &[Vec<Share>]) -> Option<Vec<Vec<Share>>> {
        if self.state == State::Refused {
            return Some(booked.to_vec());
        }
        let mut target = device_text::parse(&self.target).ok()?;
        target.resize(booked.len(), Vec::new());
        within(&target, booked).then_some(target)
    }
}

/// Whether every amount of `one` is within that of `other`, on the same cards.
#[must_use]
pub fn within(one: &[Vec<Share>], other: &[Vec<Share>]) -> bool {
    let share = |(one, other): (&Share, &Share)| {
        one.card == other.card && one.class == other.class && one.memory <= other.memory && one.cores <= other.cores
    };
    one.len() == other.len()
        && one
            .iter()
            .zip(other)
            .all(|(one, other)| one.len() == other.len() && one.iter().zip(other).all(share))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_the_units_of_requests() {
        let wish = parse_wish(r#"{"main":{"memory":"8Gi","cores":40,"priority":0},"b":{"memory":4096}}"#).unwrap();
        let main = Wish {
            memory: Some(Mib::new(8192)),
            cores: Some(Cores::new(40)),
            priority: Some(0),
        };
        assert_eq!(wish["main"], main);
        assert_eq!(wish["b"].memory, Some(Mib::new(4096)));
        assert_eq!(wish["b"].cores, None);
        for (text, mib) in [("\"4096\"", 4096), ("\"512Mi\"", 512), ("\"1G\"", 953)] {
            let wish = parse_wish(&format!(r#"{{"c":{{"memory":{text}}}}}"#)).unwrap();
            assert_eq!(wish["c"].memory, Some(Mib::new(mib)), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_named() {
        for (text, said) in [
            ("8Gi", "no JSON object"),
            ("{}", "changes nothing;"),
            (r#"{"a":{}}"#, "nothing of container `a`"),
            (r#"{"a":{"mem":"8Gi"}}"#, "`mem`"),
            (r#"{"a":{"memori":"8Gi"}}"#, "did you mean `memory`?"),
            (r#"{"a":{"memory":"0"}}"#, "memory `0`"),
            (r#"{"a":{"memory":"-4Gi"}}"#, "memory `-4Gi`"),
            (r#"{"a":{"memory":"1Ki"}}"#, "at least 1 MiB"),
            (r#"{"a":{"memory":"99999999Ti"}}"#, "memory `99999999Ti`"),
            (r#"{"a":{"cores":0}}"#, "a percentage of 1 to 100"),
            (r#"{"a":{"cores":"40"}}"#, "cores `40`"),
            (r#"{"a":{"priority":256}}"#, "0 to 255"),
        ] {
            let error = parse_wish(text).unwrap_err().to_string();
            assert!(
                error.contains(said) && error.contains("tessera.dev/resize"),
                "{text}: {error}"
            );
        }
        assert_eq!(parse_wish(&" ".repeat(5000)), Err(WishError::TooLong(5000)));
        assert_eq!(parse_policy(None), Ok(OnHeld::Refuse));
        assert_eq!(parse_policy(Some("wait")), Ok(OnHeld::Wait));
        assert!(
            parse_policy(Some("Wait"))
                .unwrap_err()
                .to_string()
                .contains("`refuse` or `wait`")
        );
    }

    #[test]
    fn status_and_report_read_as_they_were_printed() {
        let status = Status {
            generation: 3,
            state: State::Waiting,
            message: "holds 5 \"GiB\"".to_owned(),
            request: r#"{"a":{"memory":1}}"#.to_owned(),
            policy: Some("wait".to_owned()),
            target: "GPU-a,NVIDIA,1,0:;".to_owned(),
            priority: BTreeMap::from([("a".to_owned(), 7)]),
        };
        assert_eq!(Status::parse(&status.print()), Some(status));
        let report = Report {
            generation: 3,
            state: State::Applied,
            message: String::new(),
            holds: ";".to_owned(),
        };
        assert_eq!(report.print(), r#"{"generation":3,"state":"applied","holds":";"}"#);
        assert_eq!(Report::parse(&report.print()), Some(report));
        assert_eq!(Status::parse("{}"), None);
    }
}
