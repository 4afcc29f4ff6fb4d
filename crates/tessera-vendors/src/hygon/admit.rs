//! What admission does to a container that asks for DCUs.

use tessera_engine::{Admit, ContainerEdit, RequestError, ResourceNames};

use crate::amounts::has;

/// A count of 1 where only a part is named; refuses what the plugin would hand out without a limit.
///
/// # Errors
/// A part of several cards.
pub(super) fn admit(names: &ResourceNames, container: &mut ContainerEdit<'_>) -> Result<Admit, RequestError> {
    let mut admit = Admit::default();
    let (Some(count), Some(memory), Some(cores)) =
        (names.count.as_deref(), names.memory.as_deref(), names.cores.as_deref())
    else {
        return Ok(admit);
    };
    let (has_memory, has_cores) = (has(container, Some(memory)), has(container, Some(cores)));
    if !has(container, Some(count)) {
        if !has_memory && !has_cores {
            return Ok(admit);
        }
        container.set_limit(count, 1);
    }
    admit.uses_device = true;
    let view = container.view();
    let name = &view.name;
    let cards = view.amount(count).map_or(Some(1), |quantity| quantity.as_integer());
    if cards == Some(0) {
        return Ok(Admit::default());
    }
    let part_of_compute = view
        .amount(cores)
        .and_then(|quantity| quantity.as_integer())
        .is_some_and(|percent| percent < 100);
    if cards.is_some_and(|cards| cards > 1) && part_of_compute {
        return Err(RequestError::resource(
            name,
            cores,
            format!(
                "a part of {} cards is asked for, and the plugin of the node holds a container to its part only if it \
                 has one card",
                cards.unwrap_or_default()
            ),
            format!("leave `{cores}` and `{memory}` away to have the cards whole, or write `{count}: 1`"),
        ));
    }
    if has_memory && !has_cores {
        admit.warnings.push(format!(
            "container `{name}`: without `{cores}` the card is taken whole, whatever `{memory}` says; write both to share it"
        ));
    }
    if has_cores && !has_memory && part_of_compute {
        admit.warnings.push(format!(
            "container `{name}`: without `{memory}` all memory of the card is taken, so nobody can share it; write both"
        ));
    }
    Ok(admit)
}
