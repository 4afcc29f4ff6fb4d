//! How nodes and cards are ordered.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Which node wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NodePolicy {
    /// The fullest node.
    #[default]
    Binpack,
    /// The emptiest node.
    Spread,
    /// The node where the pod leaves the least idle cards that a typical pod cannot use.
    Fgd,
    /// As [`NodePolicy::Fgd`], with the balance of CPU and cards, tight packing, and prices for scarce models.
    Tessera,
}

impl NodePolicy {
    /// `None` for a text that names no policy.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text.trim() {
            "binpack" => Some(Self::Binpack),
            "spread" => Some(Self::Spread),
            "fgd" => Some(Self::Fgd),
            "tessera" => Some(Self::Tessera),
            _ => None,
        }
    }

    /// All names.
    pub const NAMES: [&'static str; 4] = ["binpack", "spread", "fgd", "tessera"];

    /// Whether nodes are scored by what the whole cluster loses, not by how full they are.
    #[must_use]
    pub const fn packs(self) -> bool {
        matches!(self, Self::Fgd | Self::Tessera)
    }

    /// Whether the node with the least score wins.
    #[must_use]
    pub const fn least_wins(self) -> bool {
        matches!(self, Self::Spread)
    }
}

impl fmt::Display for NodePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Binpack => "binpack",
            Self::Spread => "spread",
            Self::Fgd => "fgd",
            Self::Tessera => "tessera",
        })
    }
}

/// One key of a card order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CardOrder {
    /// Highest score first.
    Binpack,
    /// Lowest score first.
    Spread,
    /// Fewest used slots first; as a filter: only unused cards.
    Mutex,
    /// Highest NUMA node first.
    Numa,
    /// Best linked cards; ordered as spread.
    TopologyAware,
}

impl CardOrder {
    /// `None` for a text that names no order.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text.trim() {
            "binpack" => Some(Self::Binpack),
            "spread" => Some(Self::Spread),
            "mutex" => Some(Self::Mutex),
            "numa" => Some(Self::Numa),
            "topology-aware" => Some(Self::TopologyAware),
            _ => None,
        }
    }

    /// The name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Binpack => "binpack",
            Self::Spread => "spread",
            Self::Mutex => "mutex",
            Self::Numa => "numa",
            Self::TopologyAware => "topology-aware",
        }
    }
}

/// The card policy of one pod: the written keys in order, and whether they were written as a list.
///
/// A single key and a list of one key differ in their tie-breaks, so the form is kept.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CardPolicy {
    keys: Vec<CardOrder>,
    list: bool,
}

impl CardPolicy {
    /// Reads a policy text. Unknown words are returned beside the policy, which then is what the rest says
    /// (`spread` if nothing is left), so that the caller can refuse or warn.
    #[must_use]
    pub fn parse(text: &str) -> (Self, Vec<String>) {
        let mut keys = Vec::new();
        let mut unknown = Vec::new();
        for word in text.split(',') {
            match CardOrder::parse(word) {
                Some(key) if keys.contains(&key) => {}
                Some(key) => keys.push(key),
                None if word.trim().is_empty() => {}
                None => unknown.push(word.trim().to_owned()),
            }
        }
        (
            Self {
                keys,
                list: text.contains(',') || text.trim() == "numa",
            },
            unknown,
        )
    }

    /// The policy of one key.
    #[must_use]
    pub fn single(key: CardOrder) -> Self {
        Self {
            keys: vec![key],
            list: key == CardOrder::Numa,
        }
    }

    /// The keys in written order, without duplicates.
    #[must_use]
    pub fn keys(&self) -> &[CardOrder] {
        &self.keys
    }

    /// Written as a list (or as `numa`), so ordered key by key.
    #[must_use]
    pub fn is_chain(&self) -> bool {
        self.list
    }

    /// Whether `key` stands anywhere in it.
    #[must_use]
    pub fn has(&self, key: CardOrder) -> bool {
        self.keys.contains(&key)
    }
}

impl Default for CardPolicy {
    fn default() -> Self {
        Self::single(CardOrder::Spread)
    }
}

impl fmt::Display for CardPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, key) in self.keys.iter().enumerate() {
            if n > 0 {
                f.write_str(",")?;
            }
            f.write_str(key.name())?;
        }
        Ok(())
    }
}

/// Weights of the three terms of a card's score.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Weights {
    /// Of used slots.
    pub slot: u32,
    /// Of used compute.
    pub core: u32,
    /// Of used memory.
    pub memory: u32,
}

impl Default for Weights {
    fn default() -> Self {
        Self {
            slot: 1,
            core: 1,
            memory: 1,
        }
    }
}

/// A weights text that says something else than `slot=<n>,core=<n>,memory=<n>`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WeightsError {
    /// A part is not `key=value`.
    #[error("`{0}` is not of the form key=value; write slot=1,core=1,memory=1")]
    NotAPair(String),
    /// The key is unknown.
    #[error("unknown weight `{0}`; the weights are slot, core and memory")]
    UnknownKey(String),
    /// The key stands twice.
    #[error("weight `{0}` is given twice; give it once")]
    Twice(String),
    /// The value is no integer of 0 or more.
    #[error("weight `{key}` is `{value}`; it must be an integer of 0 or more")]
    BadValue {
        /// Which weight.
        key: String,
        /// The text found.
        value: String,
    },
    /// A weight is not given.
    #[error("weight `{0}` is missing; write all three, as in slot=1,core=1,memory=1")]
    Missing(&'static str),
    /// All three are 0.
    #[error("all weights are 0; at least one must be positive")]
    AllZero,
}

impl Weights {
    /// Reads `slot=<n>,core=<n>,memory=<n>`: all three once, in any order, blanks allowed, not all 0.
    ///
    /// # Errors
    /// Names the first part that is wrong.
    pub fn parse(text: &str) -> Result<Self, WeightsError> {
        let (mut slot, mut core, mut memory) = (None, None, None);
        for part in text.split(',') {
            let (key, value) = part
                .split_once('=')
                .ok_or_else(|| WeightsError::NotAPair(part.trim().to_owned()))?;
            let (key, value) = (key.trim(), value.trim());
            let place = match key {
                "slot" => &mut slot,
                "core" => &mut core,
                "memory" => &mut memory,
                other => return Err(WeightsError::UnknownKey(other.to_owned())),
            };
            if place.is_some() {
                return Err(WeightsError::Twice(key.to_owned()));
            }
            let number = value
                .parse::<i32>()
                .ok()
                .and_then(|n| u32::try_from(n).ok())
                .ok_or_else(|| WeightsError::BadValue {
                    key: key.to_owned(),
                    value: value.to_owned(),
                })?;
            *place = Some(number);
        }
        let weights = Self {
            slot: slot.ok_or(WeightsError::Missing("slot"))?,
            core: core.ok_or(WeightsError::Missing("core"))?,
            memory: memory.ok_or(WeightsError::Missing("memory"))?,
        };
        if weights
            == (Self {
                slot: 0,
                core: 0,
                memory: 0,
            })
        {
            return Err(WeightsError::AllZero);
        }
        Ok(weights)
    }
}
