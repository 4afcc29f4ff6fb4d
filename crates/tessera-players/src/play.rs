//! What a plugin does, as data, and what a user wants played.

use std::collections::BTreeMap;

use serde::Deserialize;

/// One maker's plugin.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Play {
    /// Name of a card; a template.
    pub card: String,
    /// What the kubelet is told.
    pub resources: Vec<Resource>,
    /// What is written on the node; `None` where the kubelet's count is all.
    pub register: Option<Register>,
    /// How the cards of an allocation are found.
    pub choose: Choose,
    /// What a container gets.
    pub answer: Answer,
    /// The cards that can be played.
    pub models: BTreeMap<String, Model>,
}

/// One extended resource.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resource {
    /// Name; a template.
    pub name: String,
    /// Kubelet's device id; a template.
    pub id: String,
    /// Ids of a card; as many as it has slots if neither this nor the next is given.
    pub per_card: Option<u32>,
    /// One id for this many MiB of a card.
    pub per_memory_mib: Option<u64>,
}

/// What is written on the node.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Register {
    /// Annotation; a template.
    pub key: String,
    /// Encoding.
    pub form: Form,
    /// The card's type in it; a template.
    #[serde(rename = "type")]
    pub kind: String,
    /// Heartbeat beside it.
    pub handshake: Option<Handshake>,
    /// More annotations.
    #[serde(default)]
    pub also: BTreeMap<String, String>,
}

/// Encodings of a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// An array of objects, HAMi's present form.
    Json,
    /// Fields with commas, cards with colons: HAMi's first form.
    Legacy,
    /// MetaX's array.
    Metax,
    /// Enflame's slices and profiles.
    Drs,
}

/// A heartbeat annotation.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Handshake {
    /// Annotation; a template.
    pub key: String,
    /// Text; `{dots}` and `{plain}` are two spellings of the time.
    pub text: String,
}

/// How the cards of an allocation are found.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "by", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Choose {
    /// HAMi's protocol: the next entry of the pod's to-allocate text.
    ToAllocate {
        /// Annotation; a template.
        key: String,
        /// Whether the pod is found by the node lock, which is given back.
        lock: bool,
    },
    /// MetaX: an array over containers.
    DeviceJson {
        /// Annotation.
        key: String,
        /// Annotation with the time of the decision.
        since: String,
        /// Whether the node lock is given back.
        lock: bool,
    },
    /// Cambricon: one profile a pod, asked for once for each resource.
    Dsmlu {
        /// Calls of the kubelet for a pod.
        calls: u32,
        /// MiB of one unit.
        unit_mib: u64,
    },
    /// Enflame: an object by container, the oldest pod first.
    Gcushare {
        /// Annotation.
        key: String,
        /// Annotation with the time of the decision.
        since: String,
    },
    /// The kubelet's ids are the cards.
    Ids,
}

/// What a container gets.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Answer {
    /// Environment; templates over all cards of the container.
    pub env: BTreeMap<String, String>,
    /// Device files; templates for each card.
    pub devices: Vec<String>,
    /// A variable from the pod's array of devices.
    pub env_from_device_json: Option<DeviceJsonEnv>,
}

/// See [`Answer::env_from_device_json`].
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceJsonEnv {
    /// Annotation; a template.
    pub key: String,
    /// Member of the first object that has it.
    pub member: String,
    /// Variable.
    pub name: String,
}

/// A card that can be played.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// MiB.
    pub memory_mib: u64,
    /// Cores in the unit of its register.
    pub cores: u32,
    /// Pods at once.
    pub slots: u32,
    /// Networks that the cards of a node are divided into, four each.
    #[serde(default)]
    pub networks: u32,
    /// Hardware profiles by name.
    #[serde(default)]
    pub profiles: BTreeMap<String, String>,
    /// Limits of a container that asks for a part of it.
    pub example: BTreeMap<String, u64>,
}

/// The plays that exist.
const PLAYS: &[(&str, &str)] = &[
    ("amd", include_str!("../plays/amd.yaml")),
    ("ascend", include_str!("../plays/ascend.yaml")),
    ("awsneuron", include_str!("../plays/awsneuron.yaml")),
    ("biren", include_str!("../plays/biren.yaml")),
    ("cambricon", include_str!("../plays/cambricon.yaml")),
    ("enflame", include_str!("../plays/enflame.yaml")),
    ("gaudi", include_str!("../plays/gaudi.yaml")),
    ("hygon", include_str!("../plays/hygon.yaml")),
    ("iluvatar", include_str!("../plays/iluvatar.yaml")),
    ("intel", include_str!("../plays/intel.yaml")),
    ("kunlun", include_str!("../plays/kunlun.yaml")),
    ("metax", include_str!("../plays/metax.yaml")),
    ("metax-whole", include_str!("../plays/metax-whole.yaml")),
    ("mthreads", include_str!("../plays/mthreads.yaml")),
    ("vastai", include_str!("../plays/vastai.yaml")),
];

/// Names of the vendors that can be played.
pub fn vendors() -> impl Iterator<Item = &'static str> {
    PLAYS.iter().map(|(name, _)| *name)
}

/// Why something cannot be played.
#[derive(Debug, thiserror::Error)]
pub enum PlayError {
    /// The list of players is not one; the message has line and column.
    #[error("the players are not a list of `{{vendor, model, count}}`: {0}")]
    List(String),
    /// No such vendor.
    #[error("players[{at}].vendor `{vendor}` is not known; one of {}", .known.join(", "))]
    Vendor {
        /// Place in the list.
        at: usize,
        /// As written.
        vendor: String,
        /// Those that are.
        known: Vec<&'static str>,
    },
    /// No such model.
    #[error("players[{at}].model `{model}` is not a card of {vendor}; one of {}", .known.join(", "))]
    Model {
        /// Place in the list.
        at: usize,
        /// Vendor.
        vendor: String,
        /// As written.
        model: String,
        /// Those that are.
        known: Vec<String>,
    },
    /// An amount that no node has.
    #[error("players[{at}].count is {count}; a node has 1 to {MAX_CARDS} cards of a model")]
    Count {
        /// Place in the list.
        at: usize,
        /// As written.
        count: u32,
    },
    /// A play of our own does not parse.
    #[error("the play of {vendor}: {problem}")]
    Play {
        /// Vendor.
        vendor: &'static str,
        /// Why.
        problem: String,
    },
}

/// Cards of one model on a node.
pub const MAX_CARDS: u32 = 16;

/// What a user wants played, as written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    vendor: String,
    model: Option<String>,
    #[serde(default = "one")]
    count: u32,
    #[serde(default)]
    misbehave: Misbehaviour,
}

fn one() -> u32 {
    1
}

/// Ways in which a plugin fails people.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Misbehaviour {
    /// Seconds before it answers the kubelet.
    pub late_s: u64,
    /// Seconds after which its heart stops and it answers no more; 0 is never.
    pub dead_after_s: u64,
    /// Writes and registers everything twice.
    pub twice: bool,
    /// Writes the register as old releases did (7 fields instead of 9).
    pub old: bool,
    /// Hands out the next card instead of the promised one.
    pub wrong: bool,
}

/// One plugin on a node, ready to be played.
#[derive(Debug, Clone)]
pub struct Part {
    /// Vendor.
    pub vendor: String,
    /// What it does.
    pub play: Play,
    /// Name of its cards' model.
    pub model_name: String,
    /// Its cards' model.
    pub model: Model,
    /// How many cards.
    pub count: u32,
    /// How it fails.
    pub misbehave: Misbehaviour,
}

/// Reads one play.
///
/// # Errors
/// It does not exist, or does not parse.
pub fn play(vendor: &str) -> Result<Option<Play>, PlayError> {
    let Some((name, text)) = PLAYS.iter().find(|(name, _)| *name == vendor) else {
        return Ok(None);
    };
    match serde_saphyr::from_str(text) {
        Ok(play) => Ok(Some(play)),
        Err(error) => Err(PlayError::Play {
            vendor: name,
            problem: error.to_string(),
        }),
    }
}

/// Reads a list such as `[{vendor: ascend, model: Ascend910B3, count: 4}]`. Without a model it is the vendor's first.
///
/// # Errors
/// Names the entry, what is wrong, and what would be right.
pub fn parts(list: &str) -> Result<Vec<Part>, PlayError> {
    let entries: Vec<Entry> = serde_saphyr::from_str(list).map_err(|error| PlayError::List(error.to_string()))?;
    let mut parts = Vec::new();
    for (at, entry) in entries.into_iter().enumerate() {
        let Some(play) = play(&entry.vendor)? else {
            return Err(PlayError::Vendor {
                at,
                vendor: entry.vendor,
                known: vendors().collect(),
            });
        };
        let known: Vec<String> = play.models.keys().cloned().collect();
        let name = entry.model.or_else(|| known.first().cloned()).unwrap_or_default();
        let Some(model) = play.models.get(&name).cloned() else {
            return Err(PlayError::Model {
                at,
                vendor: entry.vendor,
                model: name,
                known,
            });
        };
        if !(1..=MAX_CARDS).contains(&entry.count) {
            return Err(PlayError::Count { at, count: entry.count });
        }
        parts.push(Part {
            vendor: entry.vendor,
            play,
            model_name: name,
            model,
            count: entry.count,
            misbehave: entry.misbehave,
        });
    }
    Ok(parts)
}
