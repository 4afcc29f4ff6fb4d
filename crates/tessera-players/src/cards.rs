//! One file that describes all cards of a node.
//!
//! ```yaml
//! cards:
//!   - {model: A100-SXM4-40GB, count: 2}             # NVIDIA, for the simulated driver
//!   - {vendor: ascend, model: 910B3, count: 4}      # another maker's, for a player
//! ```
//!
//! What else the file says (driver version, links) is the simulated driver's, see `tessera-fake-core`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::part::{Part, PartError};

/// The most cards of one maker on a node.
pub const CARDS_MAX: usize = 64;

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CardsError {
    /// Not YAML.
    #[error("the cards file does not read: {0}")]
    Text(String),
    /// No list `cards`.
    #[error("the cards file has no list `cards`; write `cards: [{{model: A100-SXM4-40GB}}]`")]
    NoList,
    /// An entry that is none.
    #[error("cards[{at}]: {fault}")]
    Entry {
        /// Position, from 0.
        at: usize,
        /// What is wrong with it.
        fault: String,
    },
    /// A maker that nobody plays.
    #[error("cards[{at}].vendor: {fault}")]
    Vendor {
        /// Position, from 0.
        at: usize,
        /// Which are known.
        fault: PartError,
    },
    /// A model that the maker's player does not have.
    #[error("cards[{at}].model: `{model}` is no model of {vendor}; known are {known}")]
    Model {
        /// Position, from 0.
        at: usize,
        /// The maker.
        vendor: String,
        /// What was written.
        model: String,
        /// Models there are.
        known: String,
    },
    /// Two models where a plugin serves one.
    #[error("cards[{at}].model: a plugin of {vendor} serves one model a node, and `{first}` stands before `{model}`")]
    TwoModels {
        /// Position, from 0.
        at: usize,
        /// The maker.
        vendor: String,
        /// The model before.
        first: String,
        /// This model.
        model: String,
    },
    /// Too many.
    #[error("cards[{at}]: more than {CARDS_MAX} cards of {vendor}")]
    TooMany {
        /// Position, from 0.
        at: usize,
        /// The maker.
        vendor: String,
    },
    /// Two plugins for the same resources.
    #[error("`{one}` and `{other}` are two ways to serve the same cards; a node has one of them")]
    Twins {
        /// A player.
        one: String,
        /// Another one.
        other: String,
    },
}

/// Cards of another maker.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Name of the player.
    pub vendor: String,
    /// Model.
    pub model: String,
    /// How many.
    #[serde(default = "one")]
    pub count: usize,
    /// Memory, if not the model's.
    #[serde(default)]
    pub memory_mib: Option<u64>,
    /// NUMA node.
    #[serde(default)]
    pub numa: Option<u32>,
}

fn one() -> usize {
    1
}

/// All cards of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mix {
    /// Whether there are NVIDIA cards.
    pub nvidia: bool,
    /// The other cards, by player.
    pub players: BTreeMap<String, Vec<Entry>>,
}

impl Mix {
    /// Reads a cards file. NVIDIA's entries are only counted: the simulated driver checks them.
    ///
    /// # Errors
    /// What cannot be used, and where it stands.
    pub fn parse(text: &str) -> Result<Self, CardsError> {
        let file: Value = serde_saphyr::from_str(text).map_err(|error| CardsError::Text(error.to_string()))?;
        let list = file.get("cards").and_then(Value::as_array).ok_or(CardsError::NoList)?;
        let mut mix = Self {
            nvidia: false,
            players: BTreeMap::new(),
        };
        for (at, entry) in list.iter().enumerate() {
            match entry.get("vendor") {
                None => mix.nvidia = true,
                Some(Value::String(name)) if name == "nvidia" => mix.nvidia = true,
                Some(_) => mix.add(at, entry)?,
            }
        }
        for (one, other) in [("ascend", "ascend-soft")] {
            if mix.players.contains_key(one) && mix.players.contains_key(other) {
                return Err(CardsError::Twins {
                    one: one.to_owned(),
                    other: other.to_owned(),
                });
            }
        }
        Ok(mix)
    }

    fn add(&mut self, at: usize, entry: &Value) -> Result<(), CardsError> {
        let entry: Entry = serde_json::from_value(entry.clone()).map_err(|error| CardsError::Entry {
            at,
            fault: error.to_string(),
        })?;
        let part = Part::find(&entry.vendor).map_err(|fault| CardsError::Vendor { at, fault })?;
        if !part.models.iter().any(|model| model.model == entry.model) {
            let known: Vec<&str> = part.models.iter().map(|model| model.model.as_str()).collect();
            return Err(CardsError::Model {
                at,
                vendor: entry.vendor,
                model: entry.model,
                known: known.join(", "),
            });
        }
        if entry.count == 0 || entry.memory_mib == Some(0) {
            return Err(CardsError::Entry {
                at,
                fault: "`count` and `memory_mib` are at least 1".to_owned(),
            });
        }
        let group = self.players.entry(entry.vendor.clone()).or_default();
        if let Some(first) = group
            .first()
            .filter(|first| part.one_model && first.model != entry.model)
        {
            return Err(CardsError::TwoModels {
                at,
                vendor: entry.vendor,
                first: first.model.clone(),
                model: entry.model,
            });
        }
        let before: usize = group.iter().map(|entry| entry.count).sum();
        if before.saturating_add(entry.count) > CARDS_MAX {
            return Err(CardsError::TooMany {
                at,
                vendor: entry.vendor,
            });
        }
        group.push(entry);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str) -> String {
        Mix::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn one_file_holds_cards_of_any_maker() {
        let mix = Mix::parse(
            "cards:\n- {model: T4}\n- {vendor: ascend, model: 910B3, count: 4}\n- {vendor: hygon, model: K100_AI}\n",
        )
        .unwrap();
        assert!(mix.nvidia);
        assert_eq!(mix.players.keys().collect::<Vec<_>>(), ["ascend", "hygon"]);
        assert_eq!(mix.players["ascend"][0].count, 4);
        assert!(!Mix::parse("cards: [{vendor: biren, model: Biren106M}]").unwrap().nvidia);
    }

    #[test]
    fn what_nobody_plays_is_told_with_what_there_is() {
        assert!(
            fault("cards: [{vendor: acme, model: x}]")
                .starts_with("cards[0].vendor: no player is known for `acme`; known are nvidia")
        );
        assert_eq!(
            fault("cards: [{model: T4}, {vendor: biren, model: x}]"),
            "cards[1].model: `x` is no model of biren; known are Biren106M, Biren106B"
        );
        assert!(fault("cards: [{vendor: ascend, model: 910B3, cont: 2}]").contains("cont"));
        assert!(
            fault("cards: [{vendor: ascend, model: 910B3}, {vendor: ascend, model: 310P3}]")
                .contains("one model a node")
        );
        assert!(
            fault("cards: [{vendor: ascend, model: 910B3}, {vendor: ascend-soft, model: 910B3}]").contains("two ways")
        );
        assert!(fault("cards: [{vendor: hygon, model: K100_AI, count: 65}]").contains("more than 64"));
        assert!(fault("card: []").contains("no list `cards`"));
    }
}
