//! Binding, with the node's locks as they are afterwards.

#[allow(dead_code, reason = "the parts that other suites use")]
#[path = "../ops/serve.rs"]
mod serve;

#[path = "../class_ops/bind.rs"]
mod bind;

use serde_json::{Value, json};
use tessera_testkit::conformance::{Case, now};
use tessera_wire::time;

pub(crate) use crate::classes::{engine, node_object, text};

/// The case states the lock only; a bind here also needs a card to give.
pub(crate) fn bind(case: &Case) -> Result<Value, String> {
    let mut case = case.clone();
    let limits = &case.input["pod"]["spec"]["containers"][0]["resources"]["limits"];
    if let (Some(count), true) = (limits.get("metax-tech.com/gpu"), case.input["capacity"].is_null()) {
        case.input["capacity"] = json!({"metax-tech.com/gpu": count});
    }
    let mut outcome = bind::bind(&case)?;
    for lock in outcome["node_locks"]
        .as_object_mut()
        .into_iter()
        .flat_map(|locks| locks.values_mut())
    {
        // Just taken: the case has no moment for that.
        if let Some((at, owner)) = lock.as_str().and_then(|text| text.split_once(','))
            && time::parse_rfc3339(at).is_some_and(|at| (at - now()).abs() < 600)
        {
            *lock = json!(format!("{{now:rfc3339}},{owner}"));
        }
    }
    Ok(outcome)
}
