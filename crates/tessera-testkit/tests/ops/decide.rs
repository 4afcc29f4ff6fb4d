//! A whole decision: nodes, pods that hold something, a new pod.

use serde_json::{Map, Value, json};
use tessera_engine::{Candidates, WriteContext, text as engine_text};
use tessera_testkit::conformance::wire_ops::{member, refused};
use tessera_testkit::conformance::{Case, Op, now};
use tessera_wire::{NodeView, PodView, keys, patch};

use super::{engine, holder, text, world};

pub(crate) const OPS: &[(&str, Op)] = &[("schedule", schedule)];

fn schedule(case: &Case) -> Result<Value, String> {
    let engine = engine(case)?;
    let mut world = world(case)?;
    let mut names = Vec::new();
    for node in member::<Vec<Value>>(&case.input, "nodes")? {
        let name: String = member(&node, "name")?;
        let object = json!({"metadata": {"name": name, "annotations": node["annotations"]}});
        world.set_node(&NodeView::from_json(&object).map_err(text)?);
        names.push(name);
    }
    for pod in member::<Option<Vec<Value>>>(&case.input, "existing_pods")?.unwrap_or_default() {
        world.set_pod(&PodView::from_json(&holder(pod)?).map_err(text)?);
    }
    let candidates = member::<Option<Vec<String>>>(&case.input, "candidates")?.unwrap_or(names);
    let pod: PodView = member(&case.input, "pod")?;
    let Ok(demand) = engine.demand(&pod) else {
        return Ok(refused());
    };
    if demand.is_empty() {
        return Ok(json!({"nodes": candidates, "annotations": {}, "labels": null}));
    }
    let decision = engine.decide(&world.snapshot(), &demand, Candidates::Names(&candidates));
    let Some(winner) = decision.winner() else {
        let failed: Map<String, Value> = decision
            .refused
            .iter()
            .map(|(node, refusal)| (node.to_string(), json!(engine_text::hami_node(refusal))))
            .collect();
        return Ok(json!({"failed_nodes": failed}));
    };
    let mut annotations = engine.annotations(
        &winner.allocation,
        &demand,
        &WriteContext {
            node: &winner.node,
            now_seconds: now(),
            cards: &[],
        },
    );
    annotations.retain(|key, _| key != keys::VGPU_TIME && !key.starts_with(keys::TESSERA_PREFIX));
    let labels = patch::allocation(&annotations)["metadata"]["labels"].clone();
    Ok(json!({"nodes": [winner.node], "annotations": annotations, "labels": labels}))
}
