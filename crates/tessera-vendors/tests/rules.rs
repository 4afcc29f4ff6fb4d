//! The pod's own rule about cards, and the choice between makers by the common names.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use serde_json::{Value, json};
use tessera_engine::admission::{Settings, Verdict, review};
use tessera_engine::{Candidates, Decision, Defaults, Engine, World, text};
use tessera_types::{Demand, ReasonKind};
use tessera_wire::config::DeviceConfig;
use tessera_wire::{NodeView, PodView};

struct Cluster {
    engine: Engine,
    world: World,
}

impl Cluster {
    /// NVIDIA cards of 16 and 80 GiB on `n1`, Hygon cards of 64 GiB on `n2`.
    fn new() -> Self {
        let config = "nvidia: {}\nhygon: {resourceCountName: hygon.com/dcunum, resourceMemoryName: hygon.com/dcumem, \
                      resourceCoreName: hygon.com/dcucores}";
        let vendors = tessera_vendors::from_config(&DeviceConfig::from_yaml(config).unwrap());
        let mut world = World::new(Arc::clone(&vendors));
        let nvidia = json!([
            {"id": "GPU-t4", "index": 0, "count": 10, "devmem": 16384, "devcore": 100, "type": "NVIDIA Tesla T4",
                "numa": 0, "mode": "hami-core", "health": true},
            {"id": "GPU-a100", "index": 1, "count": 10, "devmem": 81920, "devcore": 100, "type": "NVIDIA A100-80GB",
                "numa": 1, "mode": "hami-core", "health": true},
        ]);
        let dcu = "DCU-A,4,65520,100,DCU-K100_AI,0,true,0,hami:DCU-B,4,65520,100,DCU-K100_AI,0,true,1,hami:";
        for (name, key, text) in [
            ("n1", "hami.io/node-nvidia-register", nvidia.to_string()),
            ("n2", "hami.io/node-dcu-register", dcu.to_owned()),
        ] {
            let node = json!({"metadata": {"name": name, "annotations": {key: text}}});
            assert_eq!(world.set_node(&NodeView::from_json(&node).unwrap()).problems, []);
        }
        Self {
            engine: Engine::new(vendors, Defaults::default()),
            world,
        }
    }

    fn review(&self, pod: &Value) -> Result<Value, String> {
        match review(pod, "ns", &Settings::default(), &self.engine, &self.world.snapshot()) {
            Verdict::Deny { text, .. } => Err(text),
            Verdict::Allow { patch, .. } => {
                let mut pod = pod.clone();
                let patch: json_patch::Patch = serde_json::from_value(serde_json::to_value(&patch).unwrap()).unwrap();
                json_patch::patch(&mut pod, &patch).unwrap();
                Ok(pod)
            }
        }
    }

    fn decide(&self, pod: &Value) -> (Demand, Decision) {
        let demand = self.engine.demand(&PodView::from_json(pod).unwrap()).unwrap();
        let decision = self.engine.decide(&self.world.snapshot(), &demand, Candidates::All);
        (demand, decision)
    }

    /// The cards that the pod gets, without booking them.
    fn cards(&self, pod: &Value) -> Vec<String> {
        let (_, decision) = self.decide(&self.review(pod).unwrap());
        let classes = decision
            .winner()
            .map(|fit| fit.allocation.classes.clone())
            .unwrap_or_default();
        classes
            .values()
            .flatten()
            .flatten()
            .map(|share| share.card.to_string())
            .collect()
    }

    /// Another pod takes this much of a card.
    fn hold(&mut self, name: &str, node: &str, text: &str, key: &str, limits: Value) {
        let mut annotations = json!({"hami.io/vgpu-node": node});
        annotations[key] = json!(text);
        let pod = json!({"metadata": {"name": name, "namespace": "other", "uid": name, "annotations": annotations},
            "spec": {"nodeName": node, "containers": [{"name": "c", "resources": {"limits": limits}}]},
            "status": {"phase": "Running"}});
        let change = self.world.set_pod(&PodView::from_json(&pod).unwrap());
        assert!(change.booked, "{:?}", change.problems);
    }

    fn hold_dcu(&mut self) {
        for card in ["DCU-A", "DCU-B"] {
            let limits = json!({"hygon.com/dcunum": "1"});
            self.hold(
                card,
                "n2",
                &format!("{card},DCU,65520,100:;"),
                "hami.io/dcu-devices-allocated",
                limits,
            );
        }
    }
}

fn pod(annotations: Value, limits: Value) -> Value {
    json!({"metadata": {"name": "p", "namespace": "ns", "uid": "p", "annotations": annotations},
        "spec": {"containers": [{"name": "c", "resources": {"limits": limits}}]}})
}

fn ruled(rule: &str) -> Value {
    pod(
        json!({"tessera.dev/card-rule": rule}),
        json!({"nvidia.com/gpu": "1", "nvidia.com/gpumem": "1000"}),
    )
}

fn either(rule: Option<&str>, vendors: &str, memory: &str) -> Value {
    let mut annotations = json!({"tessera.dev/vendors": vendors});
    if let Some(rule) = rule {
        annotations["tessera.dev/card-rule"] = json!(rule);
    }
    pod(
        annotations,
        json!({"tessera.dev/gpu": "1", "tessera.dev/memory": memory}),
    )
}

#[test]
fn a_rule_restricts_a_request_by_the_classic_names() {
    let cluster = Cluster::new();
    for (rule, card) in [
        ("model.contains('T4')", "GPU-t4"),
        ("memory >= 40Gi", "GPU-a100"),
        ("numa == 0 || memory < 1Gi", "GPU-t4"),
        ("vendor == 'NVIDIA' && index in [1]", "GPU-a100"),
    ] {
        assert_eq!(cluster.cards(&ruled(rule)), [card], "{rule}");
    }
    let (demand, decision) = cluster.decide(&ruled("memory >= 100Gi"));
    assert!(decision.winner().is_none());
    let event = text::event(&decision, &demand);
    assert!(event.contains("2 of 2 cards not accepted by the pod's rule"), "{event}");
    assert!(
        event.contains("`memory >= 100Gi`") && event.contains("`tessera.dev/card-rule`"),
        "{event}"
    );
    let kinds = |reasons: &[tessera_types::Reason]| reasons.iter().all(|r| r.kind == ReasonKind::RuleMismatch);
    assert!(decision.refused.iter().any(|(_, refusal)| matches!(&**refusal,
        tessera_types::NodeRefusal::Cards { reasons, .. } if kinds(reasons))));
}

#[test]
fn a_wrong_rule_is_refused_at_the_door_with_column_and_names() {
    let cluster = Cluster::new();
    for pod in [
        ruled("memroy >= 40Gi"),
        either(Some("memroy >= 40Gi"), "NVIDIA, DCU", "8Gi"),
    ] {
        let text = cluster.review(&pod).unwrap_err();
        for part in [
            "`tessera.dev/card-rule`",
            "column 1",
            "`memroy`",
            "model, id",
            "did you mean `memory`?",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
    assert!(
        cluster
            .review(&ruled("memory >= 40GB"))
            .unwrap_err()
            .contains("column 13")
    );
}

#[test]
fn a_card_is_asked_again_when_its_register_changes() {
    let mut cluster = Cluster::new();
    let pod = ruled("memory >= 100Gi");
    assert!(cluster.decide(&pod).1.winner().is_none());
    let nvidia = json!([{"id": "GPU-h200", "count": 10, "devmem": 144384, "devcore": 100, "type": "NVIDIA H200",
        "numa": 0, "mode": "hami-core", "health": true}]);
    let node = json!({"metadata": {"name": "n1", "annotations": {"hami.io/node-nvidia-register": nvidia.to_string()}}});
    cluster.world.set_node(&NodeView::from_json(&node).unwrap());
    assert_eq!(cluster.cards(&pod), ["GPU-h200"]);
}

#[test]
fn a_common_request_goes_where_the_rule_and_the_room_allow() {
    let mut cluster = Cluster::new();
    assert_eq!(
        cluster
            .cards(&either(Some("vendor != 'NVIDIA'"), "NVIDIA, DCU", "8Gi"))
            .len(),
        1
    );
    let first = |cluster: &Cluster, pod: &Value| {
        cluster.review(pod).unwrap()["metadata"]["annotations"]["tessera.dev/translated"].to_string()
    };
    assert!(first(&cluster, &either(None, "NVIDIA, DCU", "8Gi")).contains("NVIDIA"));
    assert!(first(&cluster, &either(Some("model.contains('K100')"), "NVIDIA, DCU", "8Gi")).contains("DCU"));
    assert!(first(&cluster, &either(None, "DCU, NVIDIA", "70Gi")).contains("NVIDIA"));
    cluster.hold_dcu();
    assert!(first(&cluster, &either(None, "DCU, NVIDIA", "8Gi")).contains("NVIDIA"));
    // Where no card is free the pod waits for one that can come free, not for one that is too small or not meant.
    assert!(first(&cluster, &either(Some("model.contains('K100')"), "NVIDIA, DCU", "8Gi")).contains("DCU"));
    let big = json!({"nvidia.com/gpu": "1", "nvidia.com/gpumem": "81920"});
    cluster.hold(
        "big",
        "n1",
        "GPU-a100,NVIDIA,81920,0:;",
        "hami.io/vgpu-devices-allocated",
        big,
    );
    assert!(first(&cluster, &either(None, "DCU, NVIDIA", "70Gi")).contains("NVIDIA"));
}
