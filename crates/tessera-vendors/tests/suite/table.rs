//! One row a class: how its nodes look, how its pods ask, and what it cannot do.

use serde_json::{Value, json};

/// Names and amounts of one container.
pub(crate) type Limits = &'static [(&'static str, &'static str)];

/// A node: annotations, and the status's amounts.
pub(crate) type Picture = (Value, Value);

/// Where a node says how much memory a card has.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Memory {
    /// In this member of each card of a JSON register.
    Member(&'static str),
    /// In the third field of each card of the older string register.
    Field,
    /// In this amount of the status, all cards together.
    Amount(&'static str),
}

/// Cards of which some are linked.
#[derive(Debug)]
pub(crate) struct Links {
    /// The node.
    pub(crate) node: fn() -> Picture,
    /// Its labels.
    pub(crate) labels: Limits,
    /// Annotations with which the pod asks for links.
    pub(crate) annotations: Limits,
    /// Two cards.
    pub(crate) pair: Limits,
    /// The two that are linked; without links two others would be taken.
    pub(crate) linked: [&'static str; 2],
}

/// A class in the suite. What is `None` belongs to behaviours that [`Row::cannot`] excuses.
#[derive(Debug)]
pub(crate) struct Row {
    /// Keyword of the class.
    pub(crate) class: &'static str,
    /// For people: maker, then which of its cards.
    pub(crate) title: &'static str,
    /// A node with [`Row::cards`] free cards. The class's register is the last of its annotations by name.
    pub(crate) node: fn() -> Picture,
    /// How many cards.
    pub(crate) cards: usize,
    /// A whole card; the count's name is the first.
    pub(crate) whole: Limits,
    /// A share of which [`Row::parts`] fill a card and more than one of which fits.
    pub(crate) part: Option<Limits>,
    /// How many of [`Row::part`] fill a card.
    pub(crate) parts: usize,
    /// Much of the memory and little compute; [`Row::memories`] of them use up the memory.
    pub(crate) memory: Option<Limits>,
    /// How many of [`Row::memory`] fill a card.
    pub(crate) memories: usize,
    /// Half of the compute and little memory.
    pub(crate) compute: Option<Limits>,
    /// The least of a card, and how many of these use up its slots.
    pub(crate) least: Option<(Limits, usize)>,
    /// Half of the memory, in percent.
    pub(crate) percent: Option<Limits>,
    /// Two whole cards.
    pub(crate) pair: Option<Limits>,
    /// Annotations of every pod.
    pub(crate) annotations: Limits,
    /// Annotation keys: only these ids, none of these ids.
    pub(crate) ids: Option<(&'static str, &'static str)>,
    /// Annotation keys: only these models, none of these models; and a part of the model's name.
    pub(crate) models: Option<(&'static str, &'static str, &'static str)>,
    /// Replaces in the node's annotation what says that the first card works.
    pub(crate) breaks: Option<(&'static str, &'static str)>,
    /// Replaces in the node's annotation what the class knows better than the node (size, model).
    pub(crate) disagrees: Option<(&'static str, &'static str)>,
    /// Annotation key: all cards of a container on one NUMA node.
    pub(crate) numa: Option<&'static str>,
    /// Links between cards.
    pub(crate) links: Option<Links>,
    /// How much memory a card has.
    pub(crate) size: Option<Memory>,
    /// Behaviours that the class cannot have, with the reason.
    pub(crate) cannot: &'static [(&'static [&'static str], &'static str)],
}

impl Row {
    /// Who makes the cards.
    pub(crate) fn maker(&self) -> &'static str {
        self.title.split([',', ' ']).next().unwrap_or_default()
    }
}

/// All classes on, with HAMi's names.
pub(crate) const CONFIG: &str = include_str!("config.yaml");

/// A register in the common JSON form: cards with these members beside id, index and health.
pub(super) fn register_of(key: &str, ids: &[&str], members: impl Fn(usize) -> Value) -> Picture {
    let cards: Vec<Value> = ids
        .iter()
        .enumerate()
        .map(|(index, id)| {
            let mut card = members(index);
            card["id"] = json!(id);
            if card["index"].is_null() {
                card["index"] = json!(index);
            }
            // A broken first card is made by replacing the text of its health.
            card["health"] = json!(true);
            card
        })
        .collect();
    (json!({key: json!(cards).to_string()}), json!({}))
}

/// Two cards, all alike.
pub(super) fn register(key: &str, ids: [&str; 2], members: &Value) -> Picture {
    register_of(key, &ids, |_| members.clone())
}

pub(super) const ONE_CARD: &str = "the plugin serves one card a pod";
pub(super) const ONE_FOR_ALL: &str = "all containers of a pod are on one card";
pub(super) const ONE_CONTAINER: &str = "the plugin serves one container a pod";
pub(super) const WHOLE_ONLY: &str = "the class gives whole cards only";
pub(super) const NO_AMOUNTS: &str = "memory and compute of a part are fixed by its size";
pub(super) const COUNTED: &str = "the node states a number of cards, without models and health";
pub(super) const POOLED: &str = "the node states the sum of its cards, without models and health";
pub(super) const BY_NAME: &str = "the chip is part of the resource's name";
pub(super) const NO_TEXT: &str = "the node states amounts, not a text";
pub(super) const NO_PERCENT: &str = "no resource states memory in percent";
pub(super) const NO_NUMA: &str = "the class has no switch for NUMA nodes";
pub(super) const NO_LINKS: &str = "the node tells of no links between its cards";
pub(super) const NO_ENV: &str = "device files, not environment variables, say what a container gets";
pub(super) const NO_MEMORY_QUOTA: &str = "the class has no memory resource that a quota could limit";
pub(super) const NO_CORES_QUOTA: &str = "the class has no compute resource that a quota could limit";
pub(super) const NO_CORES_UNIT: &str = "compute is booked in units of which each model has another number";
pub(super) const NO_TABLE: &str = "the node's word is all that is known of a card";
pub(super) const FIXED_SIZE: &str = "the size of a card is configured, not registered";
pub(super) const NO_SIZE: &str = "the node states no memory";
pub(super) const BY_TEMPLATE: &str = "a template fixes compute with the memory";
pub(super) const SLOTS_LAST: &str = "memory or compute is used up before the slots";
/// What the first card's health looks like in the common register.
pub(super) const HEALTHY: (&str, &str) = ("\"health\":true", "\"health\":false");

/// Behaviours that need a card's parts.
pub(super) const OF_PARTS: &[&str] = &[
    "part",
    "memory",
    "compute",
    "slots",
    "percent",
    "init-large",
    "card-binpack",
    "card-spread",
    "mutex",
    "part-fraction",
    "part-negative",
    "zero-memory",
    "unit",
    "big-card",
    "quota",
    "quota-edge",
    "quota-cores",
    "quota-late",
    "quota-churn",
];
/// Behaviours that need a node that tells its cards one by one.
pub(super) const OF_SINGLE_CARDS: &[&str] = &["models", "no-models", "health", "recovery", "break-in-use"];

/// What most classes have not.
pub(super) const BASE: Row = Row {
    class: "",
    title: "",
    node: || (json!({}), json!({})),
    cards: 2,
    whole: &[],
    part: None,
    parts: 2,
    memory: None,
    memories: 2,
    compute: None,
    least: None,
    percent: None,
    pair: None,
    annotations: &[],
    ids: None,
    models: None,
    breaks: None,
    disagrees: None,
    numa: None,
    links: None,
    size: None,
    cannot: &[],
};
