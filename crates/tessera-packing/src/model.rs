//! Nodes, requests and placements.

use std::collections::BTreeMap;

/// One whole card, in milli.
pub const WHOLE: u32 = 1000;

/// The most cards that a node may have here.
pub const MAX_CARDS: usize = 8;

/// What is left of each card of a node, in milli. Places past the node's cards hold 0.
pub type Cards = [u32; MAX_CARDS];

/// The set of card models that a request may use; one bit for each model of [`Models`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelSet(u32);

impl ModelSet {
    /// The models with these indices.
    #[must_use]
    pub fn of(models: impl IntoIterator<Item = u8>) -> Self {
        let bit = |model: u8| 1_u32.checked_shl(u32::from(model)).unwrap_or(0);
        Self(models.into_iter().fold(0, |bits, model| bits | bit(model)))
    }

    /// Every model, also those that are not known yet.
    pub const ANY: Self = Self(u32::MAX);

    /// Whether the model with this index is in the set.
    #[must_use]
    pub fn has(self, model: u8) -> bool {
        self.0 & 1_u32.checked_shl(u32::from(model)).unwrap_or(0) != 0
    }
}

/// The names of card models, each with a small index.
#[derive(Debug, Clone, Default)]
pub struct Models {
    names: BTreeMap<String, u8>,
}

/// More different models, or more cards on one node, than this crate counts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {found}, and at most {most} are possible")]
pub struct TooMany {
    /// What there are too many of.
    pub what: &'static str,
    /// How many were found.
    pub found: usize,
    /// The limit.
    pub most: usize,
}

impl Models {
    /// The most models that can be told apart.
    pub const MOST: usize = 32;

    /// The index of `name`; a new name gets the next one.
    ///
    /// # Errors
    /// [`TooMany`] for the 33rd name.
    pub fn intern(&mut self, name: &str) -> Result<u8, TooMany> {
        if let Some(index) = self.names.get(name) {
            return Ok(*index);
        }
        let found = self.names.len() + 1;
        match u8::try_from(self.names.len()) {
            Ok(index) if found <= Self::MOST => {
                self.names.insert(name.to_owned(), index);
                Ok(index)
            }
            _ => Err(TooMany {
                what: "card models",
                found,
                most: Self::MOST,
            }),
        }
    }

    /// The set that `spec` names, models joined by `|`. An empty text is every model; a name that no node has adds
    /// nothing.
    #[must_use]
    pub fn set(&self, spec: &str) -> ModelSet {
        if spec.is_empty() {
            return ModelSet::ANY;
        }
        let known = spec.split('|').filter_map(|name| self.names.get(name));
        ModelSet(known.fold(0, |bits, index| bits | (1 << u32::from(*index))))
    }

    /// Names with their indices, in order of names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u8)> {
        self.names.iter().map(|(name, index)| (name.as_str(), *index))
    }
}

/// A node as it is when nothing runs on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Allocatable CPU, milli-cores.
    pub cpu: u32,
    /// Allocatable memory, MiB.
    pub memory: u32,
    /// Number of cards, at most [`MAX_CARDS`].
    pub cards: u8,
    /// Index of the cards' model in [`Models`].
    pub model: u8,
}

/// What a pod asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Request {
    /// CPU, milli-cores.
    pub cpu: u32,
    /// Memory, MiB.
    pub memory: u32,
    /// How many cards of one node; 0 for a pod without cards.
    pub count: u8,
    /// Milli of each card: below [`WHOLE`] a share, else whole cards.
    pub milli: u32,
    /// Models that will do.
    pub models: ModelSet,
}

impl Request {
    /// Milli of all cards together.
    #[must_use]
    pub fn demand(&self) -> u32 {
        u32::from(self.count) * self.milli
    }

    /// Whether it is a part of one card.
    #[must_use]
    pub fn is_share(&self) -> bool {
        self.count == 1 && self.milli < WHOLE
    }
}

/// Where a request went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// Index of the node in the list that the cluster was made from.
    pub node: usize,
    /// One bit for each card taken; bit 0 is card 0.
    pub cards: u8,
}

impl Placement {
    /// Whether card `index` is taken.
    #[must_use]
    pub fn takes(&self, index: usize) -> bool {
        index < MAX_CARDS && self.cards >> index & 1 == 1
    }
}
