//! The node's register annotation.

use std::collections::BTreeMap;

use tessera_types::Card;
use tessera_wire::{keys, register};

use crate::cards::Managed;

/// Annotations that the node should have.
#[must_use]
pub fn wanted(cards: &[Managed], scores: bool, version: &str) -> BTreeMap<String, String> {
    let cards: Vec<Card> = cards.iter().map(|managed| managed.card.clone()).collect();
    let mut out = BTreeMap::new();
    if cards.is_empty() {
        return out;
    }
    out.insert(keys::NVIDIA_REGISTER.to_owned(), register::print_json(&cards));
    if scores {
        out.insert(keys::NVIDIA_SCORE.to_owned(), register::print_scores(&cards));
    }
    // Tells the scheduler that this node needs no lock.
    out.insert(keys::TESSERA_AGENT.to_owned(), version.to_owned());
    out
}

/// What has to be written so that the node has what it should; empty when it
/// has. Compared with the server's own text, so that a removed or foreign value
/// is put right and an equal one costs nothing.
#[must_use]
pub fn missing(wanted: &BTreeMap<String, String>, live: &BTreeMap<String, String>) -> BTreeMap<String, Option<String>> {
    wanted
        .iter()
        .filter(|(key, text)| live.get(*key) != Some(*text))
        .map(|(key, text)| (key.clone(), Some(text.clone())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_written() {
        let wanted: BTreeMap<_, _> = [("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())].into();
        let live: BTreeMap<_, _> = [("a".to_owned(), "1".to_owned()), ("c".to_owned(), "3".to_owned())].into();
        assert_eq!(missing(&wanted, &live), [("b".to_owned(), Some("2".to_owned()))].into());
        assert!(missing(&wanted, &wanted).is_empty());
    }
}
