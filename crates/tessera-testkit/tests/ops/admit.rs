//! The admission decision, its patch applied.

use serde_json::{Map, Value, json};
use tessera_engine::admission::{Settings, Verdict, review};
use tessera_testkit::conformance::wire_ops::member;
use tessera_testkit::conformance::{Case, Op};
use tessera_wire::{EnvValue, PodView};

use super::{engine, holder, text, world};

pub(crate) const OPS: &[(&str, Op)] = &[("webhook", webhook)];

fn webhook(case: &Case) -> Result<Value, String> {
    let engine = engine(case)?;
    let mut world = world(case)?;
    let usage: Vec<Value> = member::<Option<_>>(&case.input, "usage")?.unwrap_or_default();
    for (nth, entry) in usage.iter().enumerate() {
        let pod = json!({
            "metadata": {"name": format!("u{nth}"), "namespace": entry["namespace"], "uid": format!("u{nth}"), "annotations": {
                "hami.io/vgpu-node": "n1", "hami.io/vgpu-devices-allocated": entry["allocation"]}},
            "spec": {"nodeName": "n1", "containers": [{"name": "c"}]}, "status": {"phase": "Running"},
        });
        world.set_pod(&PodView::from_json(&holder(pod)?).map_err(text)?);
    }
    let flags: Value = member(&case.input, "flags")?;
    let mut settings = Settings::default();
    if let Some(name) = flags["scheduler_name"].as_str() {
        settings.scheduler_name = name.to_owned();
    }
    if let Some(force) = flags["force_overwrite_default_scheduler"].as_bool() {
        settings.force_overwrite_default_scheduler = force;
    }
    let mut pod: Value = member(&case.input, "pod")?;
    let patch = match review(&pod, "default", &settings, &engine, &world.snapshot()) {
        Verdict::Deny { code, text } => {
            // Our texts begin with the reference's words and go on with what to do.
            let expected = case.expected["message"].as_str().unwrap_or_default();
            let message = if text.starts_with(expected) { expected } else { &text };
            return Ok(json!({"allowed": false, "code": code, "message": message}));
        }
        Verdict::Allow { patch, .. } => patch,
    };
    let operations: json_patch::Patch =
        serde_json::from_value(serde_json::to_value(patch).map_err(text)?).map_err(text)?;
    json_patch::patch(&mut pod, &operations).map_err(text)?;
    if let Verdict::Allow { patch, .. } = review(&pod, "default", &settings, &engine, &world.snapshot())
        && !patch.is_empty()
    {
        return Err(format!("reviewed again, the pod is changed again: {}", json!(patch)));
    }
    let view = PodView::from_json(&pod).map_err(text)?;
    let containers: Map<String, Value> = view
        .containers
        .iter()
        .map(|container| {
            let limits: Map<String, Value> = container
                .limits
                .iter()
                .map(|(name, quantity)| {
                    let number = quantity
                        .as_integer()
                        .map_or_else(|| quantity.to_string(), |number| number.to_string());
                    (name.clone(), json!(number))
                })
                .collect();
            let env: Vec<Value> = container
                .env
                .iter()
                .map(|(name, value)| match value {
                    EnvValue::Text(value) => json!([name, value]),
                    EnvValue::From => json!([name, null]),
                })
                .collect();
            (container.name.clone(), json!({"limits": limits, "env": env}))
        })
        .collect();
    Ok(json!({
        "allowed": true,
        "scheduler_name": view.scheduler_name.unwrap_or_default(),
        "runtime_class_name": view.runtime_class.unwrap_or_default(),
        "containers": containers,
    }))
}
