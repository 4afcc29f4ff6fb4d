//! What several classes do alike: counting cards, the common register, the pair of device texts.

use std::collections::BTreeMap;

use tessera_engine::{AllocationProblem, AnnotationKeys, ContainerEdit, NodeProblem, RequestError};
use tessera_types::{Allocation, Ask, Card, ClassAllocation, Cores, Keyword, MemoryAsk, MigReservation};
use tessera_wire::{ContainerView, NodeView, Quantity, Whole, device_text, register};

/// The largest number on the wire: registers and device texts carry 32 signed bits.
pub(crate) const WIRE_MAX: i64 = 2_147_483_647;

/// A configured name; an empty one is not served.
pub(crate) fn name(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// A number of cards; 0 is no request.
///
/// # Errors
/// A fraction, a negative number or one that no node could have.
pub(crate) fn count(container: &str, field: &str, quantity: &Quantity) -> Result<u32, RequestError> {
    match quantity.whole() {
        Whole::Exact(count) if (0..=WIRE_MAX).contains(&count) => Ok(u32::try_from(count).unwrap_or(u32::MAX)),
        _ => Err(RequestError::resource(
            container,
            field,
            format!("`{quantity}` is not a number of cards"),
            "write a whole number, such as 1",
        )),
    }
}

/// So many units under the resource `field`, each with all it has and no claim on compute; limits, else requests.
///
/// # Errors
/// As [`count`].
pub(crate) fn units(class: &Keyword, field: &str, container: &ContainerView) -> Result<Option<Ask>, RequestError> {
    let Some(quantity) = container.amount(field) else {
        return Ok(None);
    };
    let count = count(&container.name, field, quantity)?;
    Ok((count > 0).then(|| Ask {
        class: class.clone(),
        count,
        memory: MemoryAsk::Whole,
        percent_beside: None,
        cores: Cores::ZERO,
        extra: Vec::new(),
    }))
}

/// Refuses two names of one class in a container, of which only one could be served.
///
/// # Errors
/// Both are in its limits.
pub(crate) fn one_of(container: &ContainerEdit<'_>, fields: &[&str]) -> Result<(), RequestError> {
    let mut asked = fields.iter().filter(|field| container.has_limit(field));
    match (asked.next(), asked.next()) {
        (Some(one), Some(other)) => Err(RequestError::resource(
            &container.view().name,
            *other,
            format!("`{one}` is asked for in the same container, and a container gets one kind of unit"),
            format!("keep one of the two, or ask for `{other}` in a container of its own"),
        )),
        _ => Ok(()),
    }
}

/// The cards of a JSON register under `key`.
///
/// # Errors
/// The annotation is absent, cannot be read, or lists nothing.
pub(crate) fn registered(node: &NodeView, key: &str, class: &Keyword) -> Result<Vec<Card>, NodeProblem> {
    let text = node.annotations.get(key).ok_or(NodeProblem::Absent)?;
    let cards = register::parse_json(text, class).map_err(|error| NodeProblem::Unreadable {
        key: key.to_owned(),
        fault: error.to_string(),
    })?;
    if cards.is_empty() {
        return Err(NodeProblem::Empty { key: key.to_owned() });
    }
    Ok(cards)
}

/// The device text under both keys of the class.
pub(crate) fn texts(class: &Keyword, keys: &AnnotationKeys, allocation: &Allocation) -> BTreeMap<String, String> {
    let Some(shares) = allocation.classes.get(class) else {
        return BTreeMap::new();
    };
    let text = device_text::print(shares);
    [&keys.to_allocate, &keys.allocated]
        .into_iter()
        .flatten()
        .map(|key| (key.clone(), text.clone()))
        .collect()
}

/// What the device text that stays says.
///
/// # Errors
/// The text cannot be read.
pub(crate) fn read_texts(
    keys: &AnnotationKeys,
    annotations: &BTreeMap<String, String>,
) -> Result<Option<(ClassAllocation, Vec<MigReservation>)>, AllocationProblem> {
    let Some((key, text)) = keys
        .allocated
        .as_ref()
        .and_then(|key| annotations.get(key).map(|text| (key, text)))
    else {
        return Ok(None);
    };
    match device_text::parse(text) {
        Ok(class) => Ok(Some((class, Vec::new()))),
        Err(error) => Err(AllocationProblem {
            key: key.clone(),
            fault: error.to_string(),
            text: text.clone(),
        }),
    }
}
