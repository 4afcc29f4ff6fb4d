//! What several classes read of a node alike: the common register, or a number of cards.

use tessera_engine::NodeProblem;
use tessera_types::{Card, Keyword};
use tessera_wire::register::CARDS_MAX;
use tessera_wire::{NodeView, register};

/// The cards of a JSON register under `key`.
///
/// # Errors
/// The annotation is absent, cannot be read, or lists nothing.
pub(crate) fn registered(node: &NodeView, key: &str, class: &Keyword) -> Result<Vec<Card>, NodeProblem> {
    parsed(node, key, |text| register::parse_json(text, class))
}

/// The cards of the register under `key`, in the form that `parse` reads.
///
/// # Errors
/// As [`registered`].
pub(crate) fn parsed(
    node: &NodeView,
    key: &str,
    parse: impl Fn(&str) -> Result<Vec<Card>, register::RegisterError>,
) -> Result<Vec<Card>, NodeProblem> {
    let text = node.annotations.get(key).ok_or(NodeProblem::Absent)?;
    let cards = parse(text).map_err(|error| NodeProblem::Unreadable {
        key: key.to_owned(),
        fault: error.to_string(),
    })?;
    if cards.is_empty() {
        return Err(NodeProblem::Empty { key: key.to_owned() });
    }
    Ok(cards)
}

/// A quantity of `node` as a number of cards; `None` for none, or more than any node has.
pub(crate) fn capacity(node: &NodeView, name: Option<&str>) -> Option<u32> {
    let count = node.capacity_count(name?);
    let most = u32::try_from(CARDS_MAX).unwrap_or(u32::MAX);
    u32::try_from(count).ok().filter(|count| (1..=most).contains(count))
}

/// A node whose name makes ids that cannot be used.
pub(crate) fn bad_capacity(name: Option<&str>, fault: &impl ToString) -> NodeProblem {
    NodeProblem::Capacity {
        resource: name.unwrap_or_default().to_owned(),
        fault: fault.to_string(),
    }
}
