//! Operations of the conformance cases that need more than texts.

pub(crate) mod admit;
pub(crate) mod decide;
pub(crate) mod fit;
pub(crate) mod request;
pub(crate) mod serve;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::Arc;

use serde_json::{Value, json};
use tessera_engine::{Defaults, Engine, Vendors, World};
use tessera_testkit::conformance::Case;
use tessera_testkit::conformance::wire_ops::member;
use tessera_types::{CardPolicy, ContainerRole, NodePolicy};
use tessera_vendors::nvidia::Nvidia;
use tessera_wire::{Quantity, config, device_text};

/// Any error as text.
pub(crate) fn text(error: impl Display) -> String {
    error.to_string()
}

/// The NVIDIA section with the case's overrides.
pub(crate) fn settings(case: &Case) -> Result<config::Nvidia, String> {
    Ok(member::<Option<config::Nvidia>>(&case.input, "config")?.unwrap_or_default())
}

/// All classes of the case.
pub(crate) fn vendors(case: &Case) -> Result<Arc<Vendors>, String> {
    Ok(Arc::new(Vendors::new(vec![Arc::new(Nvidia::new(&settings(case)?))])))
}

/// An engine with the case's defaults.
pub(crate) fn engine(case: &Case) -> Result<Engine, String> {
    let policy: Option<String> = member(&case.input, "default_gpu_policy")?;
    let card_policy = policy.map_or_else(CardPolicy::default, |text| CardPolicy::parse(&text).0);
    Ok(Engine::new(
        vendors(case)?,
        Defaults {
            node_policy: NodePolicy::Binpack,
            card_policy: Some(card_policy),
        },
    ))
}

/// Namespace, object name, `spec.hard`.
pub(crate) type QuotaObject = (String, String, BTreeMap<String, Quantity>);

/// Quota objects of a member: namespace, object name (made unique within the case) and `spec.hard`.
pub(crate) fn quotas(input: &Value, name: &str) -> Result<Vec<QuotaObject>, String> {
    let objects: Vec<Value> = member::<Option<_>>(input, name)?.unwrap_or_default();
    let mut seen: BTreeMap<(String, String), usize> = BTreeMap::new();
    objects
        .iter()
        .map(|object| {
            let namespace: String = member(&object["metadata"], "namespace")?;
            let name: String = member(&object["metadata"], "name")?;
            let nth = seen.entry((namespace.clone(), name.clone())).or_default();
            // The cases give two objects of a namespace one name, which no API server would.
            let unique = if *nth == 0 { name } else { format!("{name}-{nth}") };
            *nth += 1;
            Ok((namespace, unique, member(&object["spec"], "hard")?))
        })
        .collect()
}

/// A running pod that holds what an allocation text says: limits are added so that it asks for what it has.
pub(crate) fn holder(mut pod: Value) -> Result<Value, String> {
    let allocated = pod["metadata"]["annotations"]["hami.io/vgpu-devices-allocated"]
        .as_str()
        .unwrap_or_default();
    let containers = device_text::parse(allocated).map_err(text)?;
    let init = pod["spec"]["initContainers"].as_array().map_or(0, Vec::len);
    for (position, shares) in containers.iter().enumerate().filter(|(_, shares)| !shares.is_empty()) {
        let (list, at) = if position < init {
            ("initContainers", position)
        } else {
            ("containers", position - init)
        };
        if pod["spec"][list].get(at).is_none() {
            return Err(format!("container {position} of the allocation is not in the pod"));
        }
        pod["spec"][list][at]["resources"]["limits"]["nvidia.com/gpu"] = json!(shares.len().to_string());
    }
    Ok(pod)
}

/// A world with the case's quotas.
pub(crate) fn world(case: &Case) -> Result<World, String> {
    let mut world = World::new(vendors(case)?);
    for (namespace, name, hard) in quotas(&case.input, "quotas")? {
        world.set_quota(&namespace, &name, &hard);
    }
    Ok(world)
}

/// Roles of so many init containers followed by app containers.
pub(crate) fn roles(init: usize, all: usize) -> Vec<ContainerRole> {
    (0..all)
        .map(|at| {
            if at < init {
                ContainerRole::Init
            } else {
                ContainerRole::App
            }
        })
        .collect()
}
