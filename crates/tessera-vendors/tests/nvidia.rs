//! What the NVIDIA class reads, writes and changes.
#![allow(clippy::unwrap_used, reason = "a test stops where something is missing")]

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};
use tessera_engine::{AdmitSettings, ContainerEdit, NodeProblem, Vendor, WriteContext};
use tessera_types::{
    Allocation, Ask, CardId, Cores, Demand, Extras, Keyword, MemoryAsk, Mib, MigReservation, NodeName, Placement,
    PodId, PodUid, Share, Weights,
};
use tessera_vendors::nvidia::Nvidia;
use tessera_wire::config::{self, CorePolicy};
use tessera_wire::{NodeView, PodView, keys};

fn class(change: impl FnOnce(&mut config::Nvidia)) -> Nvidia {
    let mut settings = config::Nvidia::default();
    change(&mut settings);
    Nvidia::new(&settings)
}

fn pod(container: Value, annotations: Value) -> PodView {
    let mut container = container;
    container["name"] = json!("c1");
    PodView::from_json(
        &json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u", "annotations": annotations},
        "spec": {"containers": [container]}}),
    )
    .unwrap()
}

fn limits(limits: Value) -> PodView {
    pod(json!({"resources": {"limits": limits}}), json!({}))
}

fn ask(class: &Nvidia, pod: &PodView) -> Result<Option<Ask>, String> {
    class.parse(&pod.containers[0], pod).map_err(|error| error.to_string())
}

#[test]
fn memory_is_what_is_written_or_a_percentage_or_the_default_or_all() {
    let plain = class(|_| {});
    let memory = |class: &Nvidia, text: Value| ask(class, &limits(text)).unwrap().unwrap().memory;
    let gpu = "nvidia.com/gpu";
    assert_eq!(memory(&plain, json!({gpu: "1"})), MemoryAsk::Whole);
    assert_eq!(
        memory(&plain, json!({gpu: "1", "nvidia.com/gpumem": "0"})),
        MemoryAsk::Whole
    );
    assert_eq!(
        memory(&plain, json!({gpu: "1", "nvidia.com/gpumem": "1k"})),
        MemoryAsk::Mib(Mib::new(1000))
    );
    assert_eq!(
        memory(&plain, json!({gpu: "1", "nvidia.com/gpumem-percentage": "30"})),
        MemoryAsk::Percent(30)
    );
    let defaulted = class(|settings| {
        settings.default_memory = 4096;
        settings.memory_factor = 1024;
    });
    assert_eq!(
        memory(&defaulted, json!({gpu: "1"})),
        MemoryAsk::Mib(Mib::new(4096)),
        "the default has no factor"
    );
    assert_eq!(
        memory(&defaulted, json!({gpu: "1", "nvidia.com/gpumem": "10"})),
        MemoryAsk::Mib(Mib::new(10_240))
    );
    let both = limits(json!({gpu: "1", "nvidia.com/gpumem": "2000", "nvidia.com/gpumem-percentage": "40"}));
    let both = ask(&plain, &both).unwrap().unwrap();
    assert_eq!(
        (both.memory, both.percent_beside),
        (MemoryAsk::Mib(Mib::new(2000)), Some(40))
    );
}

#[test]
fn without_a_count_nothing_is_asked_for() {
    let class = class(|_| {});
    for text in [
        json!({"nvidia.com/gpumem": "500"}),
        json!({"nvidia.com/gpu": "0"}),
        json!({"cpu": "1"}),
    ] {
        assert_eq!(ask(&class, &limits(text)), Ok(None));
    }
}

#[test]
fn an_impossible_amount_is_refused_with_what_to_write() {
    let class = class(|_| {});
    let error =
        |name: &str, value: &str| ask(&class, &limits(json!({"nvidia.com/gpu": "1", name: value}))).unwrap_err();
    let text = error("nvidia.com/gpumem", "3Gi");
    assert_eq!(
        text,
        "container `c1`: `nvidia.com/gpumem`: `3Gi` means 3221225472 MiB, more than any card has; write 3072: \
         `nvidia.com/gpumem` counts MiB, not bytes"
    );
    assert!(error("nvidia.com/gpumem", "1500m").contains("whole number"));
    assert!(error("nvidia.com/gpumem", "-1").contains("negative"));
    assert!(error("nvidia.com/gpumem", "99999999999999999999").contains("more than any card"));
    assert!(error("nvidia.com/gpucores", "0.5").contains("from 0 to 100"));
    assert!(error("nvidia.com/gpumem-percentage", "12.5").contains("from 1 to 100"));
}

#[test]
fn a_blank_constraint_is_none_and_a_list_of_blanks_matches_nothing() {
    let class = class(|_| {});
    let selection = |annotations: Value| class.selection(&pod(json!({}), annotations)).unwrap();
    assert_eq!(
        selection(json!({keys::USE_GPU_TYPE: "  ", keys::NUMA_BIND: "yes"})),
        Default::default()
    );
    let chosen = selection(json!({keys::USE_GPU_TYPE: "v100, h100", keys::NOUSE_GPU_UUID: ",", keys::NUMA_BIND: "T"}));
    assert_eq!(chosen.use_models.unwrap(), ["v100", "h100"]);
    assert_eq!(chosen.avoid_ids.unwrap(), ["", ""]);
    assert!(chosen.numa_bind);
}

#[test]
fn a_node_without_the_annotation_has_no_class_and_a_bad_one_has_a_problem() {
    let class = class(|_| {});
    let decode = |annotations: Value| {
        let node = json!({"metadata": {"name": "n", "annotations": annotations}});
        class.decode_node(&NodeView::from_json(&node).unwrap())
    };
    assert_eq!(decode(json!({})), Err(NodeProblem::Absent));
    assert!(matches!(
        decode(json!({keys::NVIDIA_REGISTER: "[]"})),
        Err(NodeProblem::Empty { .. })
    ));
    assert!(matches!(
        decode(json!({keys::NVIDIA_REGISTER: "[{"})),
        Err(NodeProblem::Unreadable { .. })
    ));
    let legacy = "GPU-a,10,32768,100,NVIDIA-Tesla V100,0,true:";
    assert!(matches!(
        decode(json!({keys::NVIDIA_REGISTER: legacy})),
        Err(NodeProblem::Unreadable { .. })
    ));
}

/// Uses a device, limits set, environment set, warnings.
type Admitted = (bool, Vec<(String, i64)>, Vec<(String, String)>, Vec<String>);

fn admit(class: &Nvidia, pod: &PodView) -> Admitted {
    let mut edit = ContainerEdit::new(&pod.containers[0]);
    let admit = class.admit(&mut edit, pod, &AdmitSettings::default()).unwrap();
    let env = edit
        .env()
        .iter()
        .map(|env| (env.name.clone(), env.value.clone()))
        .collect();
    (admit.uses_device, edit.limits().to_vec(), env, admit.warnings)
}

#[test]
fn admission_defaults_the_count_and_makes_a_whole_card_exclusive() {
    let class = class(|_| {});
    let set = |text: Value| admit(&class, &limits(text)).1;
    let cores = |value: i64| ("nvidia.com/gpucores".to_owned(), value);
    let count = |value: i64| ("nvidia.com/gpu".to_owned(), value);
    assert_eq!(set(json!({"nvidia.com/gpu": "1"})), [cores(100)]);
    assert_eq!(set(json!({"nvidia.com/gpu": "1", "nvidia.com/gpumem": "0"})), []);
    assert_eq!(
        set(json!({"nvidia.com/gpu": "1", "nvidia.com/gpumem-percentage": "100"})),
        [cores(100)]
    );
    assert_eq!(set(json!({"nvidia.com/gpumem": "5"})), [count(1)]);
    assert_eq!(set(json!({"nvidia.com/gpucores": "5"})), [count(1)]);
    assert_eq!(set(json!({"cpu": "5"})), []);
}

#[test]
fn admission_twice_changes_nothing_the_second_time() {
    let class = class(|settings| settings.gpu_core_policy = CorePolicy::Force);
    let env = |value: &str| {
        pod(
            json!({"env": [{"name": keys::ENV_CORE_POLICY, "value": value}],
                "resources": {"limits": {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "1"}}}),
            json!({}),
        )
    };
    assert_eq!(admit(&class, &env("force")), (true, vec![], vec![], vec![]));
    let (_, _, set, warnings) = admit(&class, &env("disable"));
    assert_eq!(set, [(keys::ENV_CORE_POLICY.to_owned(), "force".to_owned())]);
    assert!(warnings[0].contains("your value is replaced"), "{warnings:?}");
}

fn demand() -> Demand {
    let pod = PodId {
        namespace: "ns".to_owned(),
        name: "p".to_owned(),
        uid: PodUid::new("u").unwrap(),
    };
    Demand {
        pod,
        priority: 0,
        containers: vec![],
        selections: vec![],
        facts: BTreeMap::new(),
        rule: None,
        cpu_milli: 0,
        node_policy: None,
        card_policy: None,
        weights: Weights::default(),
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(
        containers in prop::collection::vec(prop::collection::vec((0_u32..8, 0_u64..100_000, 0_u32..101), 0..4), 1..5),
        mig in any::<bool>(),
    ) {
        let class = class(|_| {});
        let id = |card: u32| CardId::new(format!("GPU-{card}")).unwrap();
        let keyword = Keyword::new("NVIDIA").unwrap();
        let mut allocation = Allocation::default();
        let shares: Vec<Vec<Share>> = containers
            .iter()
            .map(|shares| {
                shares
                    .iter()
                    .map(|(card, memory, cores)| Share {
                        card: id(*card),
                        class: keyword.clone(),
                        memory: Mib::new(*memory),
                        cores: Cores::new(*cores),
                        extra: Extras::NONE,
                    })
                    .collect()
            })
            .collect();
        allocation.classes.insert(keyword, shares.clone());
        if mig {
            for (container, shares) in (0..).zip(&shares) {
                for (device, share) in (0..).zip(shares) {
                    allocation.mig.push(MigReservation {
                        container,
                        device,
                        card: share.card.clone(),
                        profile: "1g.5gb".to_owned(),
                        placement: Placement { start: device, size: 1 },
                        runtime: None,
                    });
                }
            }
        }
        let node = NodeName::new("n").unwrap();
        let annotations: BTreeMap<String, String> = class.annotations(&allocation, &demand(), &WriteContext { node: &node, now_seconds: 5, cards: &[] });
        let (read, reservations) = class.read_allocation(&annotations).unwrap().unwrap();
        prop_assert_eq!(read, shares);
        prop_assert_eq!(reservations, allocation.mig);
    }
}

#[test]
fn names_that_say_nothing_are_not_served() {
    let class = class(|settings| settings.resource_priority_name.clear());
    assert_eq!(class.names().priority, None);
    assert_eq!(class.names().managed().count(), 4);
}
