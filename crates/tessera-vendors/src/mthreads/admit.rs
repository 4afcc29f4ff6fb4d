//! What admission does to a container that asks for Moore Threads slices.
//!
//! Kubelet calls the vendor's plugin for memory and compute, so both have to be in limits; the vendor's own webhook,
//! which would write them, is off where this scheduler serves.

use std::collections::BTreeSet;

use tessera_engine::{Admit, AdmitSettings, ContainerEdit, RequestError};
use tessera_wire::{ContainerView, PodView};

use super::{COUNT, GROUPS, Mthreads, UNITS_OF_A_CARD, WHOLE_CARDS};
use crate::amounts::has;

/// Sizes of cards, memory units.
struct Sizes {
    /// What a share may have.
    legal: BTreeSet<u64>,
    /// What a whole card has; the smallest kind if there are several, so that it is had on each.
    whole: u64,
}

fn sizes(class: &Mthreads, settings: &AdmitSettings) -> Sizes {
    let registered: BTreeSet<u64> = settings
        .card_sizes
        .get(&class.keyword)
        .into_iter()
        .flatten()
        .map(|size| size.get() / class.names.factor())
        .filter(|units| *units > 0)
        .collect();
    let kinds = match (class.configured.is_empty(), registered.is_empty()) {
        (false, _) => class.configured.clone(),
        (true, false) => registered.clone(),
        (true, true) => BTreeSet::from([UNITS_OF_A_CARD]),
    };
    let present: BTreeSet<u64> = kinds.intersection(&registered).copied().collect();
    let whole = present.first().or(kinds.first()).copied().unwrap_or(UNITS_OF_A_CARD);
    let mut legal = kinds;
    if class.configured.is_empty() {
        legal.insert(UNITS_OF_A_CARD);
    }
    let largest = legal.last().copied().unwrap_or(UNITS_OF_A_CARD);
    legal.extend(
        (1..u64::BITS)
            .map(|power| 1_u64 << power)
            .take_while(|units| *units < largest),
    );
    Sizes { legal, whole }
}

/// Completes count, memory and compute.
///
/// # Errors
/// A count of 0 or less, memory that is no legal size, slices beside the vendor's own whole cards.
pub(super) fn admit(
    class: &Mthreads,
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
    let view = container.view();
    let name = view.name.clone();
    let cards = match view.amount(count) {
        Some(quantity) => match quantity.as_integer() {
            Some(cards) if cards > 0 => cards,
            Some(_) => {
                // HAMi's own words, which tools match on.
                let text = format!(
                    "{count} must be greater than 0: container `{name}` asks for {quantity}; write a number of cards, or \
                     leave the resource away"
                );
                return Err(RequestError::sentence(Some(name), text));
            }
            None => {
                return Err(RequestError::resource(
                    name,
                    count,
                    format!("`{quantity}` is not a number of cards"),
                    "write a whole number, such as 1",
                ));
            }
        },
        None if has(container, Some(memory)) || has(container, Some(cores)) => {
            container.set_limit(count, 1);
            1
        }
        None => return Ok(admit),
    };
    admit.uses_device = true;
    let whole_cards = |other: &ContainerView| other.amount(WHOLE_CARDS).is_some();
    if let Some(other) = pod.containers.iter().find(|other| whole_cards(other)) {
        return Err(RequestError::resource(
            name,
            count,
            format!(
                "container `{}` of the pod asks for `{WHOLE_CARDS}`, which the vendor's plugin gives out of other cards; \
                 one pod cannot name both",
                other.name
            ),
            "keep one of them, or put them into different pods",
        ));
    }

    let sizes = sizes(class, settings);
    let units = |cards: i64| i64::try_from(sizes.whole).unwrap_or(i64::MAX).saturating_mul(cards);
    if cards > 1 {
        let groups = i64::from(GROUPS).saturating_mul(cards);
        for (resource, whole) in [(memory, units(cards)), (cores, groups)] {
            let given = view.amount(resource);
            if given.is_some_and(|given| given.as_integer() != Some(whole)) {
                admit.warnings.push(format!(
                    "container `{name}`: {cards} cards are taken whole, so `{resource}` is set to {whole}; a part can be \
                     had of one card only"
                ));
            }
            if view.limits.get(resource).and_then(|limit| limit.as_integer()) != Some(whole) {
                container.set_limit(resource, whole);
            }
        }
        admit.annotations.insert(COUNT.to_owned(), cards.to_string());
        return Ok(admit);
    }
    let Some(asked) = view.limits.get(memory) else {
        container.set_limit(memory, units(1));
        if !has(container, Some(cores)) {
            container.set_limit(cores, i64::from(GROUPS));
        }
        return Ok(admit);
    };
    let asked_units = asked.as_integer().and_then(|units| u64::try_from(units).ok());
    let Some(asked_units) = asked_units.filter(|units| sizes.legal.contains(units)) else {
        let legal: Vec<String> = sizes.legal.iter().map(u64::to_string).collect();
        let text = format!(
            "sGPU memory request value is invalid, valid values are [{}]: container `{name}` asks for `{memory}: {asked}`, \
             counted in units of {} MiB; write one of them",
            legal.join(", "),
            names.factor()
        );
        return Err(RequestError::sentence(Some(name), text));
    };
    if !has(container, Some(cores)) {
        // In proportion to the memory: without compute the plugin is called for one of its two resources only.
        let groups = (u64::from(GROUPS) * asked_units / sizes.whole).clamp(1, u64::from(GROUPS));
        container.set_limit(cores, i64::try_from(groups).unwrap_or(1));
    }
    Ok(admit)
}
