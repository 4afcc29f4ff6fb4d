//! What one plugin does, as data.

use std::collections::BTreeMap;

use serde::Deserialize;

/// A plugin's whole part.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Name in a cards file.
    pub vendor: String,
    /// For people.
    pub title: String,
    /// Value of the chart that switches the scheduler's class on, below `devices`.
    pub class: String,
    /// Models that a cards file may name.
    pub models: Vec<Model>,
    /// A plugin of this maker serves one model a node.
    #[serde(default)]
    pub one_model: bool,
    /// Text of a card's id.
    pub id: String,
    /// What the kubelet is told.
    pub resources: Vec<Resource>,
    /// What the node says of its cards.
    #[serde(default)]
    pub register: Option<Register>,
    /// The heartbeat.
    #[serde(default)]
    pub handshake: Option<Pair>,
    /// Further annotations of the node.
    #[serde(default)]
    pub node_annotations: BTreeMap<String, String>,
    /// Further labels of the node.
    #[serde(default)]
    pub node_labels: BTreeMap<String, String>,
    /// How `Allocate` is answered.
    pub allocate: Allocate,
}

/// One model of card.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Name in a cards file.
    pub model: String,
    /// Memory that the plugin registers.
    pub memory_mib: u64,
    /// Compute that it registers, in the maker's unit.
    pub cores: u64,
    /// Shares of a card.
    pub slots: u32,
    /// More words for the texts.
    #[serde(default)]
    pub words: BTreeMap<String, String>,
}

/// An advertised resource.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resource {
    /// Its name.
    pub name: String,
    /// Text of a device's id; `$slot` counts within the card.
    pub id: String,
    /// Devices of a card: a number after filling in.
    #[serde(default = "slots")]
    pub number: String,
    /// The first `$slot`.
    #[serde(default)]
    pub first: u64,
}

fn slots() -> String {
    "$slots".to_owned()
}

/// A node annotation that lists cards.
#[derive(Debug, Clone, Deserialize)]
pub struct Register {
    /// Its key; cards with different keys are listed apart.
    pub key: String,
    /// How a card is written.
    #[serde(flatten)]
    pub form: Form,
    /// How an older release of the plugin wrote it.
    #[serde(default)]
    pub old: Option<Form>,
}

/// A list of cards as text.
#[derive(Debug, Clone, Deserialize)]
pub struct Form {
    /// Before the first card.
    #[serde(default)]
    pub open: String,
    /// Between two cards.
    #[serde(default)]
    pub between: String,
    /// After the last card.
    #[serde(default)]
    pub close: String,
    /// A card as JSON: member and JSON text, in this order. A member that is zero, empty or false is left out.
    #[serde(default)]
    pub members: Vec<(String, String)>,
    /// Members that are written even so.
    #[serde(default)]
    pub always: Vec<String>,
    /// A card as other text.
    #[serde(default)]
    pub line: Option<String>,
}

/// An annotation.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pair {
    /// Key.
    pub key: String,
    /// Text.
    pub text: String,
}

/// Where the plugin learns what it is to hand out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The device text at [`Allocate::key`], taken entry by entry.
    Text,
    /// The ids that the kubelet chose.
    Ids,
    /// JSON: for each container a list of shares.
    Shares,
    /// A comma list of card numbers.
    Indexes,
    /// A comma list of unit numbers, each container's after the one before.
    Units,
    /// JSON: an object by container name.
    Containers,
    /// One profile `<card>_<compute>_<memory units>` for the pod.
    Profile,
}

/// How `Allocate` is answered.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allocate {
    /// Where the promise is.
    pub from: Source,
    /// Annotation of the pod with the promise.
    #[serde(default)]
    pub key: String,
    /// Variables of the container.
    #[serde(default)]
    pub env: Vec<Variable>,
    /// The node's lock that names the pod, and that is given back.
    #[serde(default)]
    pub lock: Option<String>,
    /// Whether the bind phase is written.
    #[serde(default)]
    pub phase: bool,
    /// Annotation by which the plugin knows pods that still wait for it.
    #[serde(default)]
    pub waiting: Option<Waiting>,
    /// Annotation with the moment of the decision; the oldest pod is served first.
    #[serde(default)]
    pub moment: Option<String>,
    /// What data cannot say.
    #[serde(default)]
    pub quirk: Option<Quirk>,
}

/// An annotation that turns from one value to another when a pod has been served.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Waiting {
    /// Its key.
    pub key: String,
    /// Value while the pod waits.
    pub from: String,
    /// Value afterwards.
    pub to: String,
}

/// Code of one maker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Quirk {
    /// Template names and soft slices, read from the pod's own annotation.
    Ascend,
    /// Sets of compute units, written on the pod.
    Amd,
}

/// A variable of the container.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Text for each card handed out.
    #[serde(default)]
    pub each: Option<String>,
    /// Between two of them.
    #[serde(default)]
    pub join: String,
    /// Text for the first card only.
    #[serde(default)]
    pub first: Option<String>,
    /// Only in answers for this resource.
    #[serde(default)]
    pub resource: Option<String>,
}

/// The parts that are built in, by name.
const PARTS: &[(&str, &str)] = &[
    ("amd", include_str!("../data/amd.yaml")),
    ("ascend", include_str!("../data/ascend.yaml")),
    ("ascend-soft", include_str!("../data/ascend-soft.yaml")),
    ("awsneuron", include_str!("../data/awsneuron.yaml")),
    ("biren", include_str!("../data/biren.yaml")),
    ("cambricon", include_str!("../data/cambricon.yaml")),
    ("enflame", include_str!("../data/enflame.yaml")),
    ("enflame-whole", include_str!("../data/enflame-whole.yaml")),
    ("gaudi", include_str!("../data/gaudi.yaml")),
    ("hygon", include_str!("../data/hygon.yaml")),
    ("iluvatar", include_str!("../data/iluvatar.yaml")),
    ("intel", include_str!("../data/intel.yaml")),
    ("kunlun", include_str!("../data/kunlun.yaml")),
    ("kunlun-whole", include_str!("../data/kunlun-whole.yaml")),
    ("metax", include_str!("../data/metax.yaml")),
    ("metax-whole", include_str!("../data/metax-whole.yaml")),
    ("mthreads", include_str!("../data/mthreads.yaml")),
    ("vastai", include_str!("../data/vastai.yaml")),
];

/// A part that does not read, or that nobody has.
#[derive(Debug, thiserror::Error)]
pub enum PartError {
    /// No such part.
    #[error("no player is known for `{name}`; known are nvidia (by the simulated driver), {}", known().join(", "))]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// A built-in file is broken.
    #[error("the built-in data of `{name}` does not read: {fault}")]
    Broken {
        /// Which one.
        name: String,
        /// The reader's words.
        fault: String,
    },
}

/// Names of the built-in parts.
#[must_use]
pub fn known() -> Vec<&'static str> {
    PARTS.iter().map(|(name, _)| *name).collect()
}

impl Part {
    /// The built-in part of that name.
    ///
    /// # Errors
    /// There is none; the error lists those there are.
    pub fn find(name: &str) -> Result<Self, PartError> {
        let text = PARTS
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, text)| *text)
            .ok_or_else(|| PartError::Unknown { name: name.to_owned() })?;
        serde_saphyr::from_str(text).map_err(|fault| PartError::Broken {
            name: name.to_owned(),
            fault: fault.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_reads_and_bears_its_name() {
        for name in known() {
            let part = Part::find(name).unwrap();
            assert_eq!(part.vendor, name);
            assert!(!part.models.is_empty() && !part.resources.is_empty(), "{name}");
        }
        let error = Part::find("acme").unwrap_err().to_string();
        assert!(
            error.contains("`acme`") && error.contains("ascend, ascend-soft"),
            "{error}"
        );
    }
}
