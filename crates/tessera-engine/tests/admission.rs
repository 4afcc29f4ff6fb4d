//! What happens to a pod at creation: bad requests and their texts, forged annotations, the patch.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use tessera_engine::admission::{Settings, Verdict, refuse_update, review};
use tessera_engine::{Defaults, Engine, Vendors, World};
use tessera_types::NodePolicy;
use tessera_vendors::nvidia::Nvidia;
use tessera_wire::admission::PatchOp;
use tessera_wire::{NodeView, Quantity, config};

struct Cluster {
    engine: Engine,
    world: World,
    settings: Settings,
}

/// One node with two cards of 16 GiB, a quota of 1000 MiB in namespace `small`.
fn cluster() -> Cluster {
    let vendors = Arc::new(Vendors::new(vec![Arc::new(Nvidia::new(&config::Nvidia::default()))]));
    let engine = Engine::new(
        Arc::clone(&vendors),
        Defaults {
            node_policy: NodePolicy::Binpack,
            card_policy: None,
        },
    );
    let mut world = World::new(vendors);
    let register = r#"[{"id":"GPU-a","count":10,"devmem":16384,"devcore":100,"type":"NVIDIA A10","mode":"hami-core","health":true},{"id":"GPU-b","index":1,"count":10,"devmem":16384,"devcore":100,"type":"NVIDIA A10","mode":"hami-core","health":true}]"#;
    let node = json!({"metadata": {"name": "n1", "annotations": {"hami.io/node-nvidia-register": register}}});
    world.set_node(&NodeView::from_json(&node).expect("a readable node"));
    let hard = BTreeMap::from([("limits.nvidia.com/gpumem".to_owned(), Quantity::of(1000))]);
    world.set_quota("small", "q", &hard);
    Cluster {
        engine,
        world,
        settings: Settings::default(),
    }
}

fn pod(limits: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"},
        "spec": {"containers": [{"name": "c", "resources": {"limits": limits}}]},
    })
}

fn apply(pod: &mut Value, patch: Value) {
    let patch: json_patch::Patch = serde_json::from_value(patch).expect("a JSON Patch");
    json_patch::patch(pod, &patch).expect("a patch that applies");
}

impl Cluster {
    fn review(&self, pod: &Value) -> Verdict {
        review(pod, "default", &self.settings, &self.engine, &self.world.snapshot())
    }

    fn refusal(&self, pod: &Value) -> (u16, String) {
        match self.review(pod) {
            Verdict::Deny { code, text } => (code, text),
            allowed => panic!("expected a refusal: {allowed:?}"),
        }
    }

    fn allowed(&self, pod: &Value) -> (Value, Vec<String>) {
        match self.review(pod) {
            Verdict::Allow { patch, warnings, .. } => (serde_json::to_value(patch).expect("a patch prints"), warnings),
            denied => panic!("expected no refusal: {denied:?}"),
        }
    }
}

#[test]
fn a_request_that_cannot_be_meant_is_refused_with_field_fault_and_next_step() {
    let cluster = cluster();
    for (limits, code, parts) in [
        (
            json!({"nvidia.com/gpu": "1", "nvidia.com/gpumem": "3Gi"}),
            422,
            ["`nvidia.com/gpumem`", "3Gi", "write 3072"],
        ),
        (
            json!({"nvidia.com/gpu": "1", "nvidia.com/gpumem": "1Gi"}),
            422,
            ["`nvidia.com/gpumem`", "1Gi", "write 1024"],
        ),
        (
            json!({"nvidia.com/gpu": "1", "nvidia.com/gpumem": "1500m"}),
            422,
            ["`nvidia.com/gpumem`", "1500m", "write"],
        ),
        (
            json!({"nvidia.com/gpu": "1", "nvidia.com/gpumem": "-1"}),
            422,
            ["`nvidia.com/gpumem`", "negative", "write"],
        ),
        (
            json!({"nvidia.com/gpu": "1", "nvidia.com/gpumem": "9E"}),
            422,
            ["`nvidia.com/gpumem`", "9E", "write"],
        ),
        (
            json!({"nvidia.com/gpu": "1", "nvidia.com/gpumem": "100000000"}),
            422,
            ["`nvidia.com/gpumem`", "100000000", "one card"],
        ),
        (
            json!({"nvidia.com/gpu": "500m"}),
            422,
            ["`nvidia.com/gpu`", "500m", "whole number"],
        ),
        (
            json!({"nvidia.com/gpu": "1", "nvidia.com/gpucores": "-5"}),
            422,
            ["`nvidia.com/gpucores`", "-5", "0 to 100"],
        ),
        (
            json!({"nvidia.com/gpu": "1", "nvidia.com/gpumem-percentage": "120"}),
            500,
            ["gpumem-percentage", "120", "between 0 and 100"],
        ),
    ] {
        let (got, text) = cluster.refusal(&pod(limits.clone()));
        assert_eq!(got, code, "{limits}: {text}");
        assert!(text.contains("container"), "{text}");
        for part in parts {
            assert!(text.contains(part), "{limits}: `{part}` is not in: {text}");
        }
    }
}

#[test]
fn annotations_that_would_fail_every_attempt_are_refused() {
    let cluster = cluster();
    for (key, value, parts) in [
        (
            "hami.io/device-scoring-weights",
            "slot=1",
            ["hami.io/device-scoring-weights", "core"],
        ),
        (
            "hami.io/node-scheduler-policy",
            "bin-pack",
            ["hami.io/node-scheduler-policy", "did you mean `binpack`"],
        ),
        (
            "hami.io/gpu-scheduler-policy",
            "spread,banana",
            ["`banana`", "topology-aware"],
        ),
    ] {
        let mut pod = pod(json!({"nvidia.com/gpu": "1", "nvidia.com/gpumem": "100"}));
        pod["metadata"]["annotations"] = json!({key: value});
        let (code, text) = cluster.refusal(&pod);
        assert_eq!(code, 422);
        for part in parts {
            assert!(text.contains(part), "`{part}` is not in: {text}");
        }
        // The same on a pod without devices is nobody's business.
        pod["spec"]["containers"][0]["resources"] = json!({});
        cluster.allowed(&pod);
    }
}

#[test]
fn what_works_otherwise_than_it_looks_is_a_warning() {
    let cluster = cluster();
    let warned = |limits: Value, part: &str| {
        let (_, warnings) = cluster.allowed(&pod(limits));
        assert!(
            warnings.iter().any(|warning| warning.contains(part)),
            "{part}: {warnings:?}"
        );
    };
    warned(
        json!({"nvidia.com/gpu": "1", "nvidia.com/gpumem": "100", "nvidia.com/gpumem-percentage": "50"}),
        "has no effect beside",
    );
    warned(
        json!({"nvidia.com/gpu": "1", "nvidia.com/gpumem": "100", "nvidia.com/gpucores": "150"}),
        "counts as",
    );
    warned(
        json!({"nvidia.com/gpu": "3", "nvidia.com/gpumem": "100"}),
        "no node has more than 2",
    );
    let (_, quiet) = cluster.allowed(&pod(json!({"nvidia.com/gpu": "2", "nvidia.com/gpumem": "100"})));
    assert_eq!(quiet, Vec::<String>::new());
}

#[test]
fn a_mistyped_annotation_names_the_right_one() {
    let cluster = cluster();
    let mut pod = pod(json!({"nvidia.com/gpu": "1", "nvidia.com/gpumem": "100"}));
    pod["metadata"]["annotations"] = json!({
        "nvidia.com/use-gputyp": "A10", "hami.io/anything": "x", "nvidia.com/cuda.version": "12", "other.io/x": "y",
        "nvidia.com/use-gputype": "A10",
    });
    let (_, warnings) = cluster.allowed(&pod);
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(
        warnings
            .iter()
            .any(|warning| warning.contains("did you mean `nvidia.com/use-gputype`"))
    );
    assert!(
        warnings
            .iter()
            .any(|warning| warning.contains("`hami.io/anything` has no effect"))
    );
}

#[test]
fn a_new_pod_holds_nothing_whatever_its_annotations_say() {
    let cluster = cluster();
    let forged = json!({
        "hami.io/vgpu-node": "n1", "hami.io/vgpu-devices-allocated": "GPU-a,NVIDIA,16000,100:;",
        "hami.io/vgpu-devices-to-allocate": "GPU-a,NVIDIA,16000,100:;", "hami.io/bind-phase": "success", "mine": "stays",
    });
    for spec in [json!({}), json!({"nvidia.com/gpu": "1", "nvidia.com/gpumem": "1"})] {
        for scheduler in [Value::Null, json!("volcano")] {
            let mut pod = pod(spec.clone());
            pod["spec"]["schedulerName"] = scheduler;
            pod["metadata"]["annotations"] = forged.clone();
            pod["metadata"]["labels"] = json!({"hami.io/vgpu-node": "n1", "app": "x"});
            let (patch, warnings) = cluster.allowed(&pod);
            apply(&mut pod, patch);
            assert_eq!(pod["metadata"]["annotations"], json!({"mine": "stays"}));
            assert_eq!(pod["metadata"]["labels"], json!({"app": "x"}));
            assert_eq!(warnings.len(), 4);
        }
    }
}

#[test]
fn only_what_changes_is_patched_and_unknown_members_stay() {
    let cluster = cluster();
    let mut pod = pod(json!({"nvidia.com/gpumem": "100", "nvidia.com/priority": "1"}));
    pod["spec"]["futureField"] = json!({"x": [1, 2]});
    pod["spec"]["containers"][0]["future"] = json!(true);
    let before = pod.clone();
    let (patch, _) = cluster.allowed(&pod);
    let paths: Vec<&str> = patch
        .as_array()
        .unwrap()
        .iter()
        .map(|op| op["path"].as_str().unwrap())
        .collect();
    assert_eq!(
        paths,
        [
            "/spec/schedulerName",
            "/spec/containers/0/resources/limits/nvidia.com~1gpu",
            "/spec/containers/0/env"
        ]
    );
    apply(&mut pod, patch);
    assert_eq!(pod["spec"]["futureField"], before["spec"]["futureField"]);
    assert_eq!(pod["spec"]["containers"][0]["future"], json!(true));
    // A second review, as the API server makes after another webhook, changes nothing more.
    assert_eq!(cluster.allowed(&pod).0, json!([]));
}

#[test]
fn a_container_with_devices_does_not_choose_its_own_cards() {
    let cluster = cluster();
    let mut pod = pod(json!({"nvidia.com/gpu": "1", "nvidia.com/gpumem": "100"}));
    pod["spec"]["containers"][0]["env"] = json!([
        {"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}, {"name": "A", "value": "b"},
        {"name": "CUDA_DISABLE_CONTROL", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "NVIDIA_VISIBLE_DEVICES", "value": "0"},
    ]);
    let (patch, warnings) = cluster.allowed(&pod);
    apply(&mut pod, patch);
    assert_eq!(
        pod["spec"]["containers"][0]["env"],
        json!([{"name": "A", "value": "b"}])
    );
    assert!(
        warnings
            .iter()
            .any(|warning| warning.contains("NVIDIA_VISIBLE_DEVICES")),
        "{warnings:?}"
    );
    // A container without devices keeps its environment.
    pod["spec"]["containers"][0]["resources"] = json!({});
    pod["spec"]["containers"][0]["env"] = json!([{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}]);
    pod["spec"]["schedulerName"] = json!("default-scheduler");
    assert_eq!(cluster.allowed(&pod).0, json!([]));
}

#[test]
fn refusals_say_what_to_do() {
    let cluster = cluster();
    let mut privileged = pod(json!({"nvidia.com/gpu": "1"}));
    privileged["spec"]["containers"][0]["securityContext"] = json!({"privileged": true});
    let (code, text) = cluster.refusal(&privileged);
    assert!(
        code == 403
            && text.starts_with("container c is privileged")
            && text.contains("remove securityContext.privileged"),
        "{text}"
    );

    let mut assigned = pod(json!({"nvidia.com/gpu": "1"}));
    assigned["spec"]["nodeName"] = json!("n1");
    let (code, text) = cluster.refusal(&assigned);
    assert!(
        code == 403 && text.starts_with("pod has node assigned") && text.contains("nodeSelector"),
        "{text}"
    );

    let mut greedy = pod(json!({"nvidia.com/gpu": "2", "nvidia.com/gpumem": "600"}));
    greedy["metadata"]["namespace"] = json!("small");
    let (code, text) = cluster.refusal(&greedy);
    assert!(code == 403 && text.starts_with("exceeding resource quota"), "{text}");
    for part in ["`small`", "limits.nvidia.com/gpumem", "1000", "1200"] {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
    assert_eq!(cluster.refusal(&json!({"spec": {"containers": "x"}})).0, 400);
}

#[test]
fn allocation_annotations_are_changed_by_schedulers_and_agents_only() {
    let Cluster { engine, settings, .. } = cluster();
    let with = |annotations: Value| json!({"metadata": {"annotations": annotations}});
    let old = with(json!({"hami.io/vgpu-devices-allocated": "GPU-a,NVIDIA,100,0:;", "a": "b"}));
    let new = with(json!({"hami.io/vgpu-devices-allocated": "GPU-b,NVIDIA,9000,0:;", "a": "b"}));
    let gone = with(json!({"a": "c"}));
    let judge = |old: &Value, new: &Value, user: &str, group: &str| {
        refuse_update(old, new, user, &[group.to_owned()], &settings, &engine)
    };
    assert!(
        judge(&old, &new, "alice", "system:authenticated")
            .unwrap()
            .contains("hami.io/vgpu-devices-allocated")
    );
    assert!(judge(&old, &gone, "alice", "system:authenticated").is_some());
    assert!(judge(&gone, &old, "alice", "system:authenticated").is_some());
    assert!(judge(&old, &new, "system:node:n1", "system:nodes").is_none());
    let other = with(json!({"hami.io/vgpu-devices-allocated": "GPU-a,NVIDIA,100,0:;", "a": "z"}));
    assert!(judge(&old, &other, "alice", "system:authenticated").is_none());
}

#[test]
fn a_patch_reads_as_rfc_6902() {
    let op = PatchOp::Add {
        path: "/spec/schedulerName".to_owned(),
        value: json!("x"),
    };
    assert_eq!(
        serde_json::to_value(op).unwrap(),
        json!({"op": "add", "path": "/spec/schedulerName", "value": "x"})
    );
}

#[test]
fn a_class_that_is_not_enabled_is_told_unless_a_node_offers_it() {
    let mut cluster = cluster();
    cluster.settings.not_enabled = tessera_vendors::not_enabled(cluster.engine.vendors());
    for (name, section) in [
        ("metax-tech.com/sgpu", "metax"),
        ("huawei.com/Ascend910B3-memory", "vnpus"),
        ("iluvatar.ai/BI-V150.vMem", "iluvatars"),
        ("amd.com/gpu", "amd"),
    ] {
        let (code, text) = cluster.refusal(&pod(json!({name: "1"})));
        assert_eq!(code, 422);
        assert!(text.contains(name) && text.contains(&format!("`{section}`")), "{text}");
        cluster.allowed(&pod(json!({name: "0"})));
    }
    // Beside a class that is on it is a mistake as well; a pod of another scheduler is that scheduler's business.
    cluster.refusal(&pod(json!({"nvidia.com/gpu": "1", "amd.com/gpu": "1"})));
    let mut foreign = pod(json!({"amd.com/gpu": "1"}));
    foreign["spec"]["schedulerName"] = json!("another");
    assert_eq!(cluster.allowed(&foreign).0, json!([]));
    // The maker's plain plugin serves it, without Tessera.
    let mut node = json!({"metadata": {"name": "n2"}, "status": {"allocatable": {"amd.com/gpu": "8"}}});
    cluster.world.set_node(&NodeView::from_json(&node).unwrap());
    assert_eq!(cluster.allowed(&pod(json!({"amd.com/gpu": "1"}))).0, json!([]));
    cluster.refusal(&pod(json!({"amd.com/gpu": "1", "amd.com/gpumem": "100"})));
    node["status"]["allocatable"]["amd.com/gpu"] = json!("0");
    cluster.world.set_node(&NodeView::from_json(&node).unwrap());
    cluster.refusal(&pod(json!({"amd.com/gpu": "1"})));
    // Names that mean nothing to anybody are not touched.
    assert_eq!(cluster.allowed(&pod(json!({"example.com/widget": "1"}))).0, json!([]));
    // Before the nodes are known nothing is refused.
    let empty = World::new(Arc::clone(cluster.engine.vendors()));
    let amd = pod(json!({"amd.com/gpu": "1"}));
    let verdict = review(&amd, "default", &cluster.settings, &cluster.engine, &empty.snapshot());
    assert!(matches!(verdict, Verdict::Allow { .. }));
}
