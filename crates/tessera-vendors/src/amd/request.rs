//! Reading and admitting containers that ask for AMD cards.

use tessera_engine::{Admit, ContainerEdit, RequestError, go_bool};
use tessera_types::{Ask, Cores, MemoryAsk, Mib};
use tessera_wire::{ContainerView, PodView, Quantity};

use super::{Amd, NUMA_BIND};
use crate::amounts;

/// The ask of one container; `None` without a count or with count 0. Only limits are looked at, as HAMi does.
///
/// What HAMi drops without a word, and then places like a pod without cards, is an error.
pub(super) fn parse(class: &Amd, container: &ContainerView) -> Result<Option<Ask>, RequestError> {
    let names = &class.names;
    let limit = |name: &Option<String>| -> Option<(String, Quantity)> {
        let name = name.as_deref()?;
        Some((name.to_owned(), container.limits.get(name)?.clone()))
    };
    let Some((count_name, count)) = limit(&names.count) else {
        return Ok(None);
    };
    let count = amounts::count_of(&container.name, &count_name, &count)?;
    if count == 0 {
        return Ok(None);
    }
    let memory = match limit(&names.memory) {
        Some((name, quantity)) => amounts::memory_of(&container.name, &name, &quantity, names.factor())?,
        None => Mib::ZERO,
    };
    let memory = match (memory, Mib::new(u64::from(class.settings.default_memory))) {
        (Mib::ZERO, Mib::ZERO) => MemoryAsk::Whole,
        (Mib::ZERO, default) => MemoryAsk::Mib(default),
        (memory, _) => MemoryAsk::Mib(memory),
    };
    let cores = match (limit(&names.cores), memory) {
        (Some((name, quantity)), _) => amounts::percent_of(&container.name, &name, &quantity, 1)?,
        (None, MemoryAsk::Whole) => 100,
        // Whoever asks for a part of the memory has claimed no compute.
        (None, _) => class.settings.default_cores,
    };
    Ok(Some(Ask {
        class: class.keyword.clone(),
        count,
        memory,
        percent_beside: None,
        cores: Cores::new(cores),
        extra: Vec::new(),
    }))
}

/// Checks what is written, and adds the count that memory or compute alone leave out.
pub(super) fn admit<'a>(
    class: &'a Amd,
    container: &mut ContainerEdit<'_>,
    pod: &PodView,
) -> Result<Admit, RequestError> {
    let names = &class.names;
    let view = container.view();
    let mut admit = Admit::default();
    let limit = |name: Option<&'a str>| Some((name?, view.limits.get(name?)?));
    let (memory, cores) = (limit(names.memory.as_deref()), limit(names.cores.as_deref()));
    if let Some((name, quantity)) = cores
        && amounts::percent_of(&view.name, name, quantity, 1).is_err()
    {
        // HAMi's own words, which tools match on.
        let text = format!(
            "{name} must be an integer percentage between 1 and 100; container {} has {quantity}",
            view.name
        );
        return Err(RequestError::sentence(Some(view.name.clone()), text));
    }
    if let Some((name, quantity)) = memory {
        amounts::memory_of(&view.name, name, quantity, names.factor())?;
    }
    let Some(count) = names.count.as_deref() else {
        return Ok(admit);
    };
    if container.has_limit(count) {
        admit.uses_device = true;
    } else if let Some((part, _)) = memory.or(cores) {
        let number = class.settings.default_gpu_num;
        if number == 0 {
            return Err(RequestError::resource(
                &view.name,
                part,
                "says how much of each card, and no number of cards is named",
                format!("add `{count}`"),
            ));
        }
        container.set_limit(count, i64::from(number));
        admit.uses_device = true;
    }
    if admit.uses_device
        && let Some(text) = pod.annotation(NUMA_BIND).filter(|text| go_bool(text).is_none())
    {
        admit.warnings.push(format!(
            "annotation `{NUMA_BIND}`: `{text}` is neither true nor false and counts as false; write \"true\" or \"false\""
        ));
    }
    Ok(admit)
}
