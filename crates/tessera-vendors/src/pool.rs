//! Nodes that tell the sum of their cards, not the cards: two capacities, compute and memory of all cards together.
//!
//! The sums are of equal cards or of nothing that can be told apart, so what does not divide closes the node.

use std::collections::BTreeMap;
use std::sync::Arc;

use tessera_engine::{NodeProblem, ResourceNames};
use tessera_types::{Card, CardId, CardMode, Cores, Keyword, Mib};
use tessera_wire::NodeView;
use tessera_wire::register::CARDS_MAX;

/// How the pools of a class become cards.
pub(crate) struct Pool<'a> {
    pub(crate) class: &'a Keyword,
    pub(crate) names: &'a ResourceNames,
    /// Between the node's name and the card's index in a card's id.
    pub(crate) id_word: &'a str,
    pub(crate) model: &'a Arc<str>,
    /// Units of compute of one card; also what the card registers.
    pub(crate) cores_of_a_card: u64,
    pub(crate) slots: u32,
}

impl Pool<'_> {
    fn fault(resource: &str, fault: String) -> NodeProblem {
        NodeProblem::Capacity {
            resource: resource.to_owned(),
            fault,
        }
    }

    /// Units of compute and of memory.
    ///
    /// # Errors
    /// No compute: [`NodeProblem::Absent`]. Compute without memory is a fault.
    pub(crate) fn read(&self, node: &NodeView) -> Result<(u64, u64), NodeProblem> {
        let (Some(cores), Some(memory)) = (self.names.cores.as_deref(), self.names.memory.as_deref()) else {
            return Err(NodeProblem::Absent);
        };
        let capacity = |name: &str| u64::try_from(node.capacity_count(name)).unwrap_or(0);
        match (capacity(cores), capacity(memory)) {
            (0, _) => Err(NodeProblem::Absent),
            (units, 0) => Err(Self::fault(
                memory,
                format!("is 0, while the node has {units} of {cores}; the device plugin serves no memory"),
            )),
            units => Ok(units),
        }
    }

    /// The cards, all alike. They are broken when nothing of the pool is allocatable any more.
    ///
    /// # Errors
    /// As [`Pool::read`]; units that are not those of whole, equal cards.
    pub(crate) fn cards(&self, node: &NodeView) -> Result<Vec<Card>, NodeProblem> {
        let (cores, memory) = self.read(node)?;
        let cores_name = self.names.cores.as_deref().unwrap_or_default();
        let memory_name = self.names.memory.as_deref().unwrap_or_default();
        if !cores.is_multiple_of(self.cores_of_a_card) {
            return Err(Self::fault(
                cores_name,
                format!(
                    "is {cores}, which is no number of whole cards of {} units",
                    self.cores_of_a_card
                ),
            ));
        }
        let count = cores / self.cores_of_a_card;
        if count > u64::try_from(CARDS_MAX).unwrap_or(u64::MAX) {
            return Err(Self::fault(
                cores_name,
                format!("is {cores}: more cards than any node has"),
            ));
        }
        if !memory.is_multiple_of(count) {
            return Err(Self::fault(
                memory_name,
                format!("is {memory}, which {count} equal cards cannot have; how much each card has cannot be told"),
            ));
        }
        let healthy = !node.allocatable.contains_key(cores_name) || node.allocatable_count(cores_name) > 0;
        let size = Mib::new((memory / count).saturating_mul(self.names.factor()));
        (0..count)
            .map(|index| {
                let id = CardId::new(format!("{}-{}-{index}", node.name, self.id_word))
                    .map_err(|error| Self::fault(cores_name, error.to_string()))?;
                Ok(Card {
                    id,
                    class: self.class.clone(),
                    index: u32::try_from(index).unwrap_or(u32::MAX),
                    slots: self.slots,
                    memory: size,
                    cores: Cores::new(u32::try_from(self.cores_of_a_card).unwrap_or(u32::MAX)),
                    extra: tessera_types::Extras::NONE,
                    model: Arc::clone(self.model),
                    numa: 0,
                    mode: CardMode::new(""),
                    healthy,
                    mig_profiles: Vec::new(),
                    link_scores: BTreeMap::new(),
                    custom: BTreeMap::new(),
                    twin: None,
                })
            })
            .collect()
    }
}

/// The index in a card's id, which is the plugin's own number of the card.
pub(crate) fn index_of(card: &CardId) -> Option<u32> {
    card.as_str().rsplit_once('-')?.1.parse().ok()
}
