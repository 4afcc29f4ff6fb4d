//! What admission does to a container that asks for MLUs.
//!
//! The vendor's plugin is called only for compute and memory, and serves one container of one pod with one card. What it
//! cannot serve is refused here instead of failing on the node.

use tessera_engine::{Admit, AdmitSettings, ContainerEdit, RequestError};
use tessera_types::ContainerRole;
use tessera_wire::{ContainerView, PodView};

use super::Cambricon;
use crate::amounts::has;

/// Completes count, compute and memory; refuses several cards, several containers and init containers.
///
/// # Errors
/// The plugin of the node could not serve the request.
pub(super) fn admit(
    class: &Cambricon,
    container: &mut ContainerEdit<'_>,
    pod: &PodView,
    settings: &AdmitSettings,
) -> Result<Admit, RequestError> {
    let mut admit = Admit::default();
    let names = &class.names;
    let (Some(count), Some(memory), Some(cores)) =
        (names.count.as_deref(), names.memory.as_deref(), names.cores.as_deref())
    else {
        return Ok(admit);
    };
    let asks = |view: &ContainerView| {
        let wanted = |name: &str| view.amount(name).is_some_and(|amount| amount.as_integer() != Some(0));
        match view.amount(count) {
            Some(_) => wanted(count),
            None => wanted(memory) || wanted(cores),
        }
    };
    let view = container.view();
    if !asks(view) {
        return Ok(admit);
    }
    admit.uses_device = true;
    let name = &view.name;
    let refuse = |field: &str, problem: String, next: String| Err(RequestError::resource(name, field, problem, next));
    if view.role != ContainerRole::App {
        return refuse(
            count,
            "the device plugin of Cambricon hands no card to an init container".to_owned(),
            "ask for it in an app container".to_owned(),
        );
    }
    if let Some(other) = pod.containers.iter().find(|other| other.name != *name && asks(other)) {
        return refuse(
            count,
            format!(
                "container `{}` asks for a card too, and the device plugin of Cambricon serves one container of a pod",
                other.name
            ),
            "put the other container into a pod of its own".to_owned(),
        );
    }
    if let Some(cards) = view
        .amount(count)
        .and_then(|amount| amount.as_integer())
        .filter(|cards| *cards > 1)
    {
        return refuse(
            count,
            format!("{cards} cards are asked for, and the device plugin of Cambricon hands out one a pod"),
            format!("write `{count}: 1`"),
        );
    }
    if view.amount(cores).is_some_and(|amount| amount.as_integer() == Some(0)) {
        return refuse(
            cores,
            "with 0 percent the device plugin is never asked for the card".to_owned(),
            "write a percentage of 1 to 100".to_owned(),
        );
    }
    let known = &*class.model != super::KEYWORD;
    for key in [super::SELECTION.use_models, super::SELECTION.avoid_models] {
        if !known && pod.annotations.contains_key(key) {
            admit.warnings.push(format!(
                "annotation `{key}` has no effect: the device plugin of Cambricon does not tell the models of cards"
            ));
        }
    }
    if view.amount(count).is_none() {
        container.set_limit(count, 1);
    }
    let has_memory = view.amount(memory).is_some_and(|amount| amount.as_integer() != Some(0));
    if !has_memory {
        let sizes = settings.card_sizes.get(&class.keyword);
        let only = sizes.filter(|sizes| sizes.len() == 1).and_then(|sizes| sizes.first());
        match only.and_then(|size| i64::try_from(size.get() / names.factor()).ok()) {
            Some(units) => container.set_limit(memory, units),
            None => {
                // Which size the card will have is not known, and one of the two names alone is not served.
                admit.warnings.push(format!(
                    "container `{name}`: the device plugin of Cambricon hands out a card only if `{memory}` is asked \
                     for; write the card's memory in units of {} MiB",
                    names.factor()
                ));
                return Ok(admit);
            }
        }
    }
    if !has(container, Some(cores)) {
        container.set_limit(cores, 100);
    }
    Ok(admit)
}
