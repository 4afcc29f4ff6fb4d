//! Kunlunxin, Enflame and AWS Neuron: what their plugins rely on, and that no part of a card is given twice.
#![allow(clippy::unwrap_used, reason = "a test stops where something is missing")]

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use tessera_engine::admission::{Settings, Verdict, review};
use tessera_engine::{Assumption, Candidates, Defaults, Engine, NodeFit, World, WriteContext, text};
use tessera_types::Demand;
use tessera_wire::config::DeviceConfig;
use tessera_wire::{NodeView, PodView};

const CONFIG: &str = "
kunlun: {resourceCountName: kunlunxin.com/xpu, resourceVCountName: kunlunxin.com/vxpu, resourceVMemoryName: kunlunxin.com/vxpu-memory}
enflame: {resourceNameGCU: enflame.com/gcu, resourceNameDRSGCU: enflame.com/drs-gcu, resourceNameGCUMemory: enflame.com/gcu-memory, resourceNameGCUCore: enflame.com/gcu-core}
awsneuron: {resourceCountName: aws.amazon.com/neuron, resourceCoreName: aws.amazon.com/neuroncore}
";
const XPU: &str = "kunlunxin.com/xpu";
const VXPU: &str = "kunlunxin.com/vxpu";
const VXPU_MEMORY: &str = "kunlunxin.com/vxpu-memory";
const SLICES: &str = "enflame.com/drs-gcu";
const DEVICES: &str = "aws.amazon.com/neuron";
const CORES: &str = "aws.amazon.com/neuroncore";

struct Cluster {
    engine: Engine,
    world: World,
}

type Annotations = BTreeMap<String, String>;

impl Cluster {
    fn of(node: &Value) -> Self {
        let vendors = tessera_vendors::from_config(&DeviceConfig::from_yaml(CONFIG).unwrap());
        let mut world = World::new(Arc::clone(&vendors));
        world.set_node(&NodeView::from_json(node).unwrap());
        let engine = Engine::new(vendors, Defaults::default());
        Self { engine, world }
    }

    fn demand(&self, pod: &Value) -> Demand {
        self.engine.demand(&PodView::from_json(pod).unwrap()).unwrap()
    }

    /// What the pod would get, or the sentence for people.
    fn decide(&self, pod: &Value) -> Result<(NodeFit, Demand), String> {
        let demand = self.demand(pod);
        let decision = self.engine.decide(&self.world.snapshot(), &demand, Candidates::All);
        match decision.winner() {
            Some(fit) => Ok((fit.clone(), demand)),
            None => Err(text::node(&decision.refused[0].1)),
        }
    }

    fn assume(&mut self, fit: &NodeFit, demand: &Demand) -> Result<(), String> {
        let roles: Vec<_> = demand.containers.iter().map(|container| container.role).collect();
        let assumption = Assumption {
            pod: &demand.pod,
            roles: &roles,
            node: &fit.node,
            allocation: Arc::clone(&fit.allocation),
            priority: 0,
            now: 0,
            expires_at: 1000,
            facts: &demand.facts,
        };
        self.world.assume(&assumption).map_err(|error| error.to_string())
    }

    /// Decides, books from what is written, and answers what was written.
    fn run(&mut self, pod: &Value) -> Result<Annotations, String> {
        let (fit, demand) = self.decide(pod)?;
        let snapshot = self.world.snapshot();
        let context = WriteContext {
            node: &fit.node,
            now_seconds: 1_700_000_000,
            cards: snapshot.node("n1").unwrap().cards(),
        };
        let annotations = self.engine.annotations(&fit.allocation, &demand, &context);
        let mut bound = pod.clone();
        bound["spec"]["nodeName"] = json!("n1");
        bound["metadata"]["annotations"] = json!(annotations);
        let change = self.world.set_pod(&PodView::from_json(&bound).unwrap());
        assert!(change.booked, "{:?}", change.problems);
        assert!(self.world.audit().is_empty());
        Ok(annotations)
    }

    /// The sentence of a refusal at admission.
    fn denied(&self, pod: &Value) -> String {
        match review(pod, "ns", &Settings::default(), &self.engine, &self.world.snapshot()) {
            Verdict::Deny { text, .. } => text,
            Verdict::Allow { patch, .. } => format!("allowed: {patch:?}"),
        }
    }
}

fn pod(name: &str, containers: Value) -> Value {
    json!({"metadata": {"name": name, "namespace": "ns", "uid": name, "annotations": {}},
        "spec": {"containers": containers}})
}

fn one(name: &str, limits: Value) -> Value {
    pod(name, json!([{"name": "c", "resources": {"limits": limits}}]))
}

fn node(annotations: Value, labels: Value, amounts: Value) -> Value {
    json!({"metadata": {"name": "n1", "annotations": annotations, "labels": labels},
        "status": {"capacity": amounts, "allocatable": amounts}})
}

fn kunlun(cards: u32) -> Value {
    let register: Vec<Value> = (0..cards)
        .map(|index| {
            json!({"id": format!("XPU-{index}"), "index": index, "count": 4, "devmem": 98304, "devcore": 100,
                "type": "P800-OAM", "health": true})
        })
        .collect();
    node(
        json!({"hami.io/node-register-xpu": json!(register).to_string()}),
        json!({}),
        json!({XPU: cards.to_string(), VXPU: (4 * cards).to_string()}),
    )
}

fn enflame(cards: &[(&str, &str)]) -> Value {
    let devices: Vec<Value> = cards
        .iter()
        .map(|(index, minor)| json!({"index": index, "minor": minor, "capacity": 6}))
        .collect();
    let register = json!({"devices": devices,
        "profiles": {"1g.8gb": "0", "2g.16gb": "1", "3g.24gb": "2", "6g.48gb": "3"}});
    let amounts = json!({SLICES: "12", "enflame.com/gcu": cards.len().to_string()});
    node(
        json!({"enflame.com/gcu-drs-capacity": register.to_string()}),
        json!({}),
        amounts,
    )
}

fn neuron(kind: &str, devices: u32, cores: u32) -> Value {
    node(
        json!({}),
        json!({"node.kubernetes.io/instance-type": kind}),
        json!({DEVICES: devices.to_string(), CORES: cores.to_string()}),
    )
}

fn quarter() -> Value {
    json!({VXPU: "1", VXPU_MEMORY: "24576"})
}

#[test]
fn a_card_given_whole_is_not_split_and_the_other_way_round() {
    for (whole, part, cluster) in [
        (json!({XPU: "1"}), quarter(), kunlun(1)),
        (
            json!({"enflame.com/gcu": "1"}),
            json!({SLICES: "1"}),
            enflame(&[("0", "0")]),
        ),
    ] {
        let mut first_whole = Cluster::of(&cluster);
        first_whole.run(&one("a", whole.clone())).unwrap();
        first_whole.run(&one("b", part.clone())).unwrap_err();
        let mut first_part = Cluster::of(&cluster);
        first_part.run(&one("a", part.clone())).unwrap();
        first_part.run(&one("b", whole.clone())).unwrap_err();

        let mut at_once = Cluster::of(&cluster);
        let (whole, whole_demand) = at_once.decide(&one("a", whole)).unwrap();
        let (part, part_demand) = at_once.decide(&one("b", part)).unwrap();
        at_once.assume(&whole, &whole_demand).unwrap();
        at_once.assume(&part, &part_demand).unwrap_err();
    }
}

#[test]
fn shares_of_a_card_have_one_size_however_they_come() {
    let mut cluster = Cluster::of(&kunlun(1));
    let half = one("half", json!({VXPU: "1", VXPU_MEMORY: "49152"}));
    let (early, early_demand) = cluster.decide(&half).unwrap();
    cluster.run(&one("a", quarter())).unwrap();
    cluster.assume(&early, &early_demand).unwrap_err();
    cluster.decide(&half).unwrap_err();
    for name in ["b", "c", "d"] {
        cluster.run(&one(name, quarter())).unwrap();
    }
    cluster.run(&one("e", quarter())).unwrap_err();
}

#[test]
fn what_can_never_be_placed_is_refused_with_what_can() {
    let cluster = Cluster::of(&kunlun(8));
    for (pod, words) in [
        (one("p", json!({XPU: "3"})), vec![XPU, "1, 2, 4 or 8"]),
        (one("p", json!({VXPU: "3"})), vec![VXPU, "1, 2, 4 or 8"]),
        (
            one("p", json!({VXPU: "1", VXPU_MEMORY: "200000"})),
            vec![VXPU_MEMORY, "98304"],
        ),
        (
            pod(
                "p",
                json!([{"name": "a", "resources": {"limits": {XPU: "1"}}}, {"name": "b", "resources": {"limits": {XPU: "1"}}}]),
            ),
            vec![XPU, "`b`", "one container"],
        ),
        (one("p", json!({SLICES: "1500m"})), vec![SLICES, "whole number"]),
        (
            one("p", json!({"enflame.com/gcu-core": "0"})),
            vec!["enflame.com/gcu-core must be greater than 0"],
        ),
        (
            one("p", json!({DEVICES: "-1"})),
            vec!["aws.amazon.com/neuron must be greater than 0"],
        ),
        (
            pod(
                "p",
                json!([{"name": "a", "resources": {"limits": {DEVICES: "1"}}}, {"name": "b", "resources": {"limits": {CORES: "1"}}}]),
            ),
            vec!["`b`", "one list"],
        ),
    ] {
        let told = cluster.denied(&pod);
        for word in words {
            assert!(told.contains(word), "{told} lacks {word}");
        }
    }
}

#[test]
fn cards_of_another_size_than_configured_take_no_work() {
    let mut object = kunlun(1);
    let register = &mut object["metadata"]["annotations"]["hami.io/node-register-xpu"];
    *register = json!(register.as_str().unwrap().replace("98304", "65536"));
    let vendors = tessera_vendors::from_config(&DeviceConfig::from_yaml(CONFIG).unwrap());
    let mut world = World::new(vendors);
    let change = world.set_node(&NodeView::from_json(&object).unwrap());
    let (_, problem) = &change.problems[0];
    let told = problem.to_string();
    assert!(told.contains("65536") && told.contains("cardMemoryMiB"), "{told}");
    Cluster::of(&object).run(&one("p", quarter())).unwrap_err();
}

#[test]
fn a_register_without_indexes_still_has_wings() {
    let mut object = kunlun(8);
    let register = &mut object["metadata"]["annotations"]["hami.io/node-register-xpu"];
    let mut cards: Vec<Value> = serde_json::from_str(register.as_str().unwrap()).unwrap();
    for card in &mut cards {
        card.as_object_mut().unwrap().remove("index");
    }
    *register = json!(json!(cards).to_string());
    let written = Cluster::of(&object)
        .run(&one("p", json!({VXPU: "4", VXPU_MEMORY: "98304"})))
        .unwrap();
    let ids: Vec<&str> = written["hami.io/xpu-devices-allocated"]
        .split(':')
        .filter_map(|device| device.split(',').next())
        .filter(|id| id.starts_with("XPU"))
        .collect();
    assert_eq!(ids, ["XPU-0", "XPU-1", "XPU-2", "XPU-3"]);
}

#[test]
fn all_partitions_of_a_pod_lie_on_the_card_that_the_plugin_is_told() {
    let mut cluster = Cluster::of(&enflame(&[("0", "0"), ("1", "3")]));
    cluster.run(&one("a", json!({SLICES: "3"}))).unwrap();
    let both = pod(
        "b",
        json!([{"name": "x", "resources": {"limits": {SLICES: "2"}}}, {"name": "y", "resources": {"limits": {SLICES: "3"}}}]),
    );
    let written = cluster.run(&both).unwrap();
    let text = &written["hami.io/enflame-vgpu-devices-allocated"];
    let (used, minor) = if text.contains("drs-0") {
        ("drs-0", "0")
    } else {
        ("drs-1", "3")
    };
    assert_eq!(text.matches(used).count(), 2, "{text}");
    assert_eq!(written["enflame.com/gcu-assigned-minor"], minor);
    assert_eq!(written["enflame.com/gcu-assigned-time"], "1700000000000000000");
    let assigned: Value = serde_json::from_str(&written["assigned-containers"]).unwrap();
    assert_eq!(
        (&assigned["x"]["request"], &assigned["y"]["request"]),
        (&json!(2), &json!(3))
    );
    assert_eq!(assigned["y"]["profileName"], "3g.24gb");
}

#[test]
fn every_slice_of_a_card_can_be_given_and_none_twice() {
    for sizes in [vec![1; 6], vec![2, 2, 2], vec![3, 3], vec![2, 1, 3], vec![6]] {
        let mut cluster = Cluster::of(&enflame(&[("0", "0")]));
        for (at, slices) in sizes.iter().enumerate() {
            let pod = one(&format!("p{at}"), json!({SLICES: slices.to_string()}));
            cluster.run(&pod).unwrap_or_else(|told| panic!("{sizes:?}: {told}"));
        }
        cluster.run(&one("more", json!({SLICES: "1"}))).unwrap_err();
    }
}

#[test]
fn the_cores_of_a_device_are_told_apart() {
    let mut cluster = Cluster::of(&neuron("trn2.3xlarge", 1, 8));
    let two = json!({CORES: "2"});
    let (early, early_demand) = cluster.decide(&one("early", two.clone())).unwrap();
    let ids = |written: &Annotations| written["AWS_NEURON_IDS"].clone();
    assert_eq!(ids(&cluster.run(&one("a", two.clone())).unwrap()), "0,1");
    cluster
        .assume(&early, &early_demand)
        .expect_err("the same two cores, decided on an older picture");
    assert_eq!(ids(&cluster.run(&one("b", json!({CORES: "3"}))).unwrap()), "4,5,6");
    assert_eq!(ids(&cluster.run(&one("c", two.clone())).unwrap()), "2,3");
    let told = cluster.run(&one("d", two)).unwrap_err();
    assert!(told.contains("cores in a row"), "{told}");
    assert_eq!(ids(&cluster.run(&one("e", json!({CORES: "1"}))).unwrap()), "7");
    cluster.run(&one("f", json!({DEVICES: "1"}))).unwrap_err();
}

#[test]
fn a_number_of_cores_is_what_the_node_makes_of_it() {
    let devices = |node: &Value| {
        let written = Cluster::of(node).run(&one("p", json!({CORES: "4"})))?;
        Ok::<_, String>(written["hami.io/aws-neuron-devices-allocated"].matches(':').count())
    };
    assert_eq!(devices(&neuron("trn2.48xlarge", 16, 128)), Ok(1));
    assert_eq!(devices(&neuron("inf2.24xlarge", 6, 12)), Ok(2));
    let told = Cluster::of(&neuron("inf2.24xlarge", 6, 12))
        .run(&one("p", json!({CORES: "3"})))
        .unwrap_err();
    assert!(told.contains("2 cores each"), "{told}");
    let told = Cluster::of(&neuron("trn1.32xlarge", 16, 32))
        .run(&one("p", json!({DEVICES: "2"})))
        .unwrap_err();
    assert!(!told.is_empty());
}

#[test]
fn an_ended_init_container_gives_its_cores_back_but_counts_while_it_runs() {
    let mut cluster = Cluster::of(&neuron("trn1.2xlarge", 1, 2));
    let mut both = one("p", json!({CORES: "1"}));
    both["spec"]["initContainers"] = json!([{"name": "i", "resources": {"limits": {CORES: "2"}}}]);
    cluster.run(&both).unwrap();
    cluster
        .run(&one("q", json!({CORES: "1"})))
        .expect_err("the init container holds both cores");
}

#[test]
fn hamis_mask_of_a_whole_large_device_holds_the_device() {
    let mut cluster = Cluster::of(&neuron("trn2.3xlarge", 1, 8));
    let mut old = one("old", json!({DEVICES: "1"}));
    old["spec"]["nodeName"] = json!("n1");
    old["metadata"]["annotations"] = json!({"hami.io/vgpu-node": "n1",
        "hami.io/aws-neuron-devices-allocated": "n1-AWSNeuron-0,AWSNeuron,0,3:;"});
    assert!(cluster.world.set_pod(&PodView::from_json(&old).unwrap()).booked);
    cluster.run(&one("p", json!({CORES: "1"}))).unwrap_err();
}

#[test]
fn capacities_that_do_not_divide_close_the_node() {
    let vendors = tessera_vendors::from_config(&DeviceConfig::from_yaml(CONFIG).unwrap());
    let mut world = World::new(vendors);
    let change = world.set_node(&NodeView::from_json(&neuron("trn1.32xlarge", 3, 7)).unwrap());
    assert!(
        change.problems[0].1.to_string().contains(CORES),
        "{:?}",
        change.problems
    );
}

#[test]
fn memory_with_a_unit_means_what_it_says() {
    for (written, profile) in [
        ("16Gi", "2g.16gb"),
        ("20480Mi", "3g.24gb"),
        ("16", "2g.16gb"),
        ("20480", "3g.24gb"),
    ] {
        let mut cluster = Cluster::of(&enflame(&[("0", "0")]));
        let mut wanted = one("p", json!({"enflame.com/gcu-memory": written}));
        let Verdict::Allow { patch, warnings, .. } = review(
            &wanted,
            "ns",
            &Settings::default(),
            &cluster.engine,
            &cluster.world.snapshot(),
        ) else {
            panic!("{written} is refused");
        };
        assert!(
            warnings.iter().any(|warning| warning.contains(SLICES)),
            "the plugin hands out by slices: {warnings:?}"
        );
        // As the API server then stores it.
        for op in serde_json::to_value(&patch).unwrap().as_array().unwrap() {
            if op["path"].as_str().unwrap().contains("gcu-memory") {
                wanted["spec"]["containers"][0]["resources"]["limits"]["enflame.com/gcu-memory"] = op["value"].clone();
            }
        }
        let annotations = cluster.run(&wanted).unwrap();
        let assigned: Value = serde_json::from_str(&annotations["assigned-containers"]).unwrap();
        assert_eq!(assigned["c"]["profileName"], profile, "{written}");
    }
}

#[test]
fn without_links_any_cards_will_do() {
    let config = CONFIG.replace("kunlun: {", "kunlun: {topology: none, ");
    let vendors = tessera_vendors::from_config(&DeviceConfig::from_yaml(&config).unwrap());
    let mut world = World::new(Arc::clone(&vendors));
    world.set_node(&NodeView::from_json(&kunlun(8)).unwrap());
    let engine = Engine::new(vendors, Defaults::default());
    let mut cluster = Cluster { engine, world };
    let written = cluster.run(&one("p", json!({XPU: "3"}))).unwrap();
    assert_eq!(written["BAIDU_COM_DEVICE_IDX"], "0,1,2");
    assert!(
        Cluster::of(&kunlun(8))
            .denied(&one("p", json!({XPU: "3"})))
            .contains("linked")
    );
}
