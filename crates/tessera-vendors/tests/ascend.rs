//! Ascend on whole nodes: what the common checks and the class's own rules do together.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers outside test bodies; a wrong index is the test's own fault"
)]

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};
use tessera_engine::{
    Admit, AdmitSettings, Assumption, Candidates, ContainerEdit, Defaults, Engine, RequestError, Vendor, Vendors,
    World, WriteContext, text,
};
use tessera_types::{Allocation, Demand, Keyword, NodeName, PodUid};
use tessera_vendors::ascend::{Ascend, known_chips};
use tessera_wire::{NodeView, PodView, Quantity, config};

const SOFT: (&str, &str) = ("huawei.com/vnpu-mode", "hami-core");

fn settings() -> config::Ascend {
    config::Ascend {
        hami_vnpu_core: false,
        configs: known_chips(),
    }
}

fn vendors() -> Arc<Vendors> {
    let classes = Ascend::all(&settings())
        .into_iter()
        .map(|class| Arc::new(class) as Arc<dyn Vendor>);
    Arc::new(Vendors::new(classes.collect()))
}

/// `rings`: the ring of each NPU.
fn node(name: &str, word: &str, rings: &[i64], soft: bool) -> NodeView {
    let chip = known_chips().into_iter().find(|chip| chip.common_word == word).unwrap();
    let least = chip.templates.iter().map(|template| template.memory).min().unwrap();
    let list: Vec<Value> = rings
        .iter()
        .enumerate()
        .map(|(at, ring)| {
            json!({"id": format!("{name}-{at}"), "index": at, "count": chip.memory_allocatable / least,
                "devmem": chip.memory_allocatable, "devcore": if soft { 100 } else { chip.ai_core }, "type": word,
                "health": true, "custominfo": {"NetworkID": ring}})
        })
        .collect();
    let key = format!("hami.io/node-register-{word}");
    let object = json!({"metadata": {"name": name,
        "annotations": {key: json!(list).to_string(), "hami-vnpu-core": soft.to_string()}}});
    NodeView::from_json(&object).unwrap()
}

/// One container for each (count, memory, cores); 0 leaves the resource out.
fn pod(name: &str, word: &str, containers: &[(i64, i64, i64)], annotations: &[(&str, &str)]) -> PodView {
    let containers: Vec<Value> = containers
        .iter()
        .enumerate()
        .map(|(at, (count, memory, cores))| {
            let mut limits = json!({format!("huawei.com/{word}"): count.to_string()});
            if *memory > 0 {
                limits[format!("huawei.com/{word}-memory")] = json!(memory.to_string());
            }
            if *cores > 0 {
                limits[format!("huawei.com/{word}-core")] = json!(cores.to_string());
            }
            json!({"name": format!("c{at}"), "resources": {"limits": limits}})
        })
        .collect();
    let annotations: BTreeMap<&str, &str> = annotations.iter().copied().collect();
    let object = json!({"metadata": {"name": name, "namespace": "ns", "uid": name, "annotations": annotations},
        "spec": {"containers": containers}});
    PodView::from_json(&object).unwrap()
}

struct Cluster {
    engine: Engine,
    world: World,
}

impl Cluster {
    fn new(nodes: &[NodeView]) -> Self {
        let vendors = vendors();
        let mut world = World::new(Arc::clone(&vendors));
        for node in nodes {
            world.set_node(node);
        }
        Self {
            engine: Engine::new(vendors, Defaults::default()),
            world,
        }
    }

    fn decide(&self, pod: &PodView) -> Result<(NodeName, Arc<Allocation>, Demand), String> {
        let demand = self.engine.demand(pod).map_err(|error| error.to_string())?;
        let decision = self.engine.decide(&self.world.snapshot(), &demand, Candidates::All);
        match decision.winner() {
            Some(fit) => Ok((fit.node.clone(), Arc::clone(&fit.allocation), demand)),
            None => Err(text::event(&decision, &demand)),
        }
    }

    fn assume(&mut self, pod: &PodView, node: &NodeName, allocation: &Arc<Allocation>) -> Result<(), String> {
        self.world
            .assume(&Assumption {
                pod: &pod.id,
                roles: &pod.roles(),
                node,
                allocation: Arc::clone(allocation),
                priority: 0,
                facts: &BTreeMap::new(),
                now: 0,
                expires_at: 1000,
            })
            .map_err(|error| error.to_string())
    }

    /// Places the pod. Answers `<card>:<MiB>` of each share.
    fn place(&mut self, pod: &PodView) -> Result<Vec<String>, String> {
        let (node, allocation, _) = self.decide(pod)?;
        self.assume(pod, &node, &allocation)?;
        Ok(allocation
            .shares()
            .map(|(_, share)| format!("{}:{}", share.card, share.memory.get()))
            .collect())
    }
}

#[test]
fn vnpus_use_up_ai_cpus_before_memory() {
    let mut cluster = Cluster::new(&[node("n", "Ascend910B2", &[0], false)]);
    for at in 0..6 {
        cluster
            .place(&pod(&format!("p{at}"), "Ascend910B2", &[(1, 8192, 0)], &[]))
            .unwrap();
    }
    let refused = cluster
        .place(&pod("p6", "Ascend910B2", &[(1, 8192, 0)], &[]))
        .unwrap_err();
    assert!(
        refused.contains("1 AI CPUs wanted, at most 0 AI CPUs free"),
        "{refused}"
    );
}

#[test]
fn a_pod_that_admission_has_not_seen_takes_the_template_too() {
    let mut cluster = Cluster::new(&[node("n", "Ascend310P", &[0], false)]);
    assert_eq!(
        cluster.place(&pod("a", "Ascend310P", &[(1, 5000, 0)], &[])).unwrap(),
        ["n-0:6144"]
    );
    // 12288 is the largest template: above it the whole NPU is meant, and that is in use.
    assert!(cluster.place(&pod("b", "Ascend310P", &[(1, 13000, 0)], &[])).is_err());
}

#[test]
fn hardware_vnpus_and_soft_slices_never_share_an_npu() {
    let mut cluster = Cluster::new(&[node("n", "Ascend910B3", &[0], true)]);
    let soft = |name: &str| pod(name, "Ascend910B3", &[(1, 10240, 40)], &[SOFT]);
    let hard = |name: &str| pod(name, "Ascend910B3", &[(1, 16384, 0)], &[]);
    // Both decided on the empty NPU, booked one after the other.
    let (node, first, _) = cluster.decide(&soft("s")).unwrap();
    let (_, second, _) = cluster.decide(&hard("h")).unwrap();
    cluster.assume(&soft("s"), &node, &first).unwrap();
    let refused = cluster.assume(&hard("h"), &node, &second).unwrap_err();
    assert!(refused.contains("mode"), "{refused}");
    assert!(cluster.place(&hard("h")).unwrap_err().contains("mode"));
    assert!(cluster.place(&soft("s2")).is_ok());
    // Idle again, it takes either.
    cluster.world.forget(&PodUid::new("s").unwrap());
    cluster.world.forget(&PodUid::new("s2").unwrap());
    assert!(cluster.place(&hard("h")).is_ok());
    assert!(cluster.place(&soft("s3")).unwrap_err().contains("mode"));
}

#[test]
fn what_is_written_is_read_back_as_it_was_booked() {
    let chips = [
        ("Ascend910B3", vec![(1, 16384, 0)], None),
        ("Ascend910B3", vec![(1, 0, 0)], None),
        ("Ascend910B3", vec![(2, 10240, 40), (1, 10240, 40)], Some(SOFT)),
        ("Ascend310P", vec![(1, 5000, 0), (1, 2000, 0)], None),
        ("Ascend910C", vec![(4, 0, 0)], None),
    ];
    for (word, containers, mode) in chips {
        let mode: Vec<(&str, &str)> = mode.into_iter().collect();
        let rings = [0, 0, 0, 0];
        let cluster = Cluster::new(&[node("n", word, &rings, !mode.is_empty())]);
        let pod = pod("p", word, &containers, &mode);
        let (node, allocation, demand) = cluster.decide(&pod).unwrap();
        let at = WriteContext {
            node: &node,
            now_seconds: 7,
            cards: &[],
        };
        let mut annotations = cluster.engine.annotations(&allocation, &demand, &at);
        assert_eq!(annotations["predicate-time"], "7");
        annotations.extend(pod.annotations.clone());
        let keyword = Keyword::new(word).unwrap();
        let class = cluster.engine.vendors().get(&keyword).unwrap();
        let (read, _) = class.read_allocation(&annotations).unwrap().unwrap();
        assert_eq!(read, allocation.classes[&keyword], "{word} {containers:?}");
    }
}

#[test]
fn containers_that_run_together_share_an_npu_only_in_one_size() {
    let two_sizes = pod("p", "Ascend910B3", &[(1, 16384, 0), (1, 32768, 0)], &[]);
    let mut one = Cluster::new(&[node("n", "Ascend910B3", &[0], false)]);
    let refused = one.place(&two_sizes).unwrap_err();
    assert!(refused.contains("another size"), "{refused}");
    assert!(
        one.place(&pod("q", "Ascend910B3", &[(1, 16384, 0), (1, 16384, 0)], &[]))
            .is_ok()
    );
    let mut two = Cluster::new(&[node("n", "Ascend910B3", &[0, 0], false)]);
    assert_eq!(two.place(&two_sizes).unwrap().len(), 2);
}

#[test]
fn an_npu_whose_size_is_not_the_tables_takes_no_work() {
    let register = |memory: u64, ai_cores: u64| {
        json!({"metadata": {"name": "n", "annotations": {"hami.io/node-register-Ascend910B3": json!([
            {"id": "D0", "count": 4, "devmem": memory, "devcore": ai_cores, "type": "Ascend910B3", "health": true},
            {"id": "D1", "count": 4, "devmem": 65536, "devcore": 20, "type": "Ascend910B3", "health": true},
        ]).to_string()}}})
    };
    for (memory, ai_cores, part) in [(32768, 20, "32768 MiB"), (65536, 24, "24 AI cores")] {
        let mut cluster = Cluster::new(&[]);
        let node = NodeView::from_json(&register(memory, ai_cores)).unwrap();
        let problems = cluster.world.set_node(&node).problems;
        assert_eq!(problems.len(), 1);
        let problem = problems[0].1.to_string();
        assert!(problem.contains("D0") && problem.contains(part), "{problem}");
        assert_eq!(
            cluster.place(&pod("a", "Ascend910B3", &[(1, 0, 0)], &[])).unwrap(),
            ["D1:65536"]
        );
        assert!(cluster.place(&pod("b", "Ascend910B3", &[(1, 0, 0)], &[])).is_err());
    }
}

#[test]
fn a_request_takes_the_smallest_ring_that_holds_it() {
    let mut cluster = Cluster::new(&[node("n", "Ascend910B3", &[0, 0, 0, 0, 1, 1, 1, 1], false)]);
    let whole = |name: &str, count: i64| pod(name, "Ascend910B3", &[(count, 0, 0)], &[]);
    cluster.place(&whole("a", 2)).unwrap();
    cluster.place(&whole("b", 2)).unwrap();
    // The first two pods left one ring whole.
    let ring = cluster.place(&whole("c", 4)).unwrap();
    let (low, high) = (["n-3:65536", "n-2:65536"], ["n-7:65536", "n-6:65536"]);
    assert!(ring[..2] == low || ring[..2] == high, "{ring:?}");
}

#[test]
fn modules_are_given_whole_and_singles_break_no_second_module() {
    let mut cluster = Cluster::new(&[node("n", "Ascend910C", &[0; 4], false)]);
    let first = cluster.place(&pod("a", "Ascend910C", &[(1, 16384, 0)], &[])).unwrap();
    let second = cluster.place(&pod("b", "Ascend910C", &[(1, 0, 0)], &[])).unwrap();
    let module = |shares: &[String]| shares[0][2..3].parse::<u32>().unwrap() / 2;
    assert_eq!(module(&first), module(&second));
    let pair = cluster.place(&pod("c", "Ascend910C", &[(2, 0, 0)], &[])).unwrap();
    assert_ne!(module(&pair), module(&first));
    let odd = cluster.place(&pod("d", "Ascend910C", &[(3, 0, 0)], &[])).unwrap_err();
    assert!(odd.contains("write 2 or 4"), "{odd}");
}

#[test]
fn a_name_that_contains_another_is_another_class() {
    let mut cluster = Cluster::new(&[node("n", "Ascend910B4-1", &[0, 0, 0], false)]);
    assert!(cluster.place(&pod("a", "Ascend910B4", &[(1, 8192, 0)], &[])).is_err());
    assert!(cluster.place(&pod("b", "Ascend910B4-1", &[(1, 8192, 0)], &[])).is_ok());
}

fn admit(
    word: &str,
    chip: impl Fn(&mut config::AscendChip),
    pod: &PodView,
) -> Result<(Admit, Vec<(String, i64)>), RequestError> {
    let mut settings = settings();
    for settings in settings.configs.iter_mut().filter(|chip| chip.common_word == word) {
        chip(settings);
    }
    let class = Ascend::all(&settings)
        .into_iter()
        .find(|class| class.keyword().as_str() == word)
        .unwrap();
    let mut edit = ContainerEdit::new(&pod.containers[0]);
    let admit = class.admit(&mut edit, pod, &AdmitSettings::default())?;
    let limits = edit.edited().limits;
    let number = |(name, quantity): (String, Quantity)| (name, quantity.as_integer().unwrap());
    Ok((admit, limits.into_iter().map(number).collect()))
}

#[test]
fn memory_in_larger_units_is_rounded_in_mib_and_written_in_units() {
    let gib = |chip: &mut config::AscendChip| chip.memory_factor = 1024;
    let written = |memory: i64| {
        let pod = pod("p", "Ascend310P", &[(1, memory, 0)], &[]);
        let (_, limits) = admit("Ascend310P", gib, &pod).unwrap();
        limits.iter().find(|(name, _)| name.ends_with("memory")).unwrap().1
    };
    // Templates of 3, 6 and 12 GiB; a whole NPU has 21527 MiB, which is 21 units and a bit.
    assert_eq!([1, 3, 5, 12, 13, 24, 0].map(written), [3, 3, 6, 12, 21, 21, 21]);
    let pod = pod("p", "Ascend310P", &[(1, 25, 0)], &[]);
    let refused = admit("Ascend310P", gib, &pod).unwrap_err().to_string();
    assert_eq!(
        refused,
        "huawei.com/Ascend310P-memory 25 is invalid; a whole Ascend310P offers 21527 MiB, so ask for at most 21"
    );
}

#[test]
fn requests_that_mean_nothing_are_refused_with_the_next_step() {
    let cases = [
        (
            "Ascend310P",
            "1",
            Some("16Gi"),
            "write 16384: `huawei.com/Ascend310P-memory` counts MiB",
        ),
        (
            "Ascend310P",
            "1",
            Some("1500m"),
            "write a whole number of MiB, at most 21527",
        ),
        ("Ascend310P", "1", Some("-1"), "write a whole number of MiB"),
        ("Ascend310P", "-1", None, "write a whole number, such as 1"),
        ("Ascend310P", "500m", None, "write a whole number, such as 1"),
        ("Ascend910C", "5", None, "write 4 or 6"),
        ("Ascend310P", "", Some("2000"), "add `huawei.com/Ascend310P: 1`"),
    ];
    for (word, count, memory, next) in cases {
        let mut limits = json!({});
        if !count.is_empty() {
            limits[format!("huawei.com/{word}")] = json!(count);
        }
        if let Some(memory) = memory {
            limits[format!("huawei.com/{word}-memory")] = json!(memory);
        }
        let object = json!({"metadata": {"name": "p"},
            "spec": {"containers": [{"name": "c", "resources": {"limits": limits}}]}});
        let refused = admit(word, |_| {}, &PodView::from_json(&object).unwrap())
            .unwrap_err()
            .to_string();
        assert!(refused.contains(next), "{refused}");
    }
}

#[test]
fn a_request_that_shrinks_is_told() {
    let pod = pod("p", "Ascend310P", &[(1, 24000, 0)], &[]);
    let (admit, limits) = admit("Ascend310P", |_| {}, &pod).unwrap();
    assert!(limits.contains(&("huawei.com/Ascend310P-memory".to_owned(), 21527)));
    assert!(admit.warnings[0].contains("offers 21527 MiB"), "{:?}", admit.warnings);
}

#[derive(Debug, Clone)]
struct Place {
    word: usize,
    count: i64,
    memory: i64,
    cores: i64,
    soft: bool,
    containers: usize,
    /// Booked only after the next one, which is decided without knowing of it.
    late: bool,
}

#[derive(Debug, Clone)]
enum Step {
    Place(Place),
    End(usize),
}

const WORDS: [&str; 3] = ["Ascend910B2", "Ascend310P", "Ascend910C"];

fn step() -> impl Strategy<Value = Step> {
    // Mostly small, so that many meet on one NPU.
    let memory = prop_oneof![1 => Just(0_i64), 4 => 1_i64..12_000, 1 => 1_i64..70_000];
    let place = (
        0..WORDS.len(),
        prop_oneof![3 => Just(1_i64), 1 => 2_i64..4],
        memory,
        prop_oneof![Just(0_i64), 1_i64..110],
        any::<bool>(),
        1_usize..3,
        any::<bool>(),
    );
    let place = place.prop_map(|(word, count, memory, cores, soft, containers, late)| {
        Step::Place(Place {
            word,
            count,
            memory,
            cores,
            soft,
            containers,
            late,
        })
    });
    prop_oneof![4 => place, 1 => (0_usize..20).prop_map(Step::End)]
}

/// What no NPU may be, counted by hand where the engine's own comparison could be what is wrong.
fn overbooked(world: &World) -> Option<String> {
    let snapshot = world.snapshot();
    for node in snapshot.nodes() {
        for (card, used) in node.cards().iter().zip(node.usage()) {
            let used = used.usage;
            let (hardware, soft) = (used.extra.get(2), used.extra.get(3));
            let fine = used.memory <= card.memory
                && used.slots <= card.slots
                && used.cores <= card.cores
                && (0..4).all(|at| used.extra.get(at) <= card.extra.get(at))
                && (hardware == 0 || soft == 0)
                && u64::from(used.slots) == hardware + soft;
            if !fine {
                return Some(format!("{card:?}: {used:?}"));
            }
        }
    }
    None
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]
    #[test]
    fn no_sequence_takes_more_of_an_npu_than_it_has(
        steps in prop::collection::vec(step(), 1..40),
        soft_nodes in any::<bool>(),
    ) {
        let nodes: Vec<NodeView> = WORDS.iter().map(|word| node(word, word, &[0, 1], soft_nodes)).collect();
        let mut cluster = Cluster::new(&nodes);
        let mut late = Vec::new();
        for (at, step) in steps.iter().enumerate() {
            match step {
                Step::End(nth) => {
                    cluster.world.forget(&PodUid::new(format!("p{nth}")).unwrap());
                }
                Step::Place(place) => {
                    let mode: &[(&str, &str)] = if place.soft { &[SOFT] } else { &[] };
                    let containers = vec![(place.count, place.memory, place.cores); place.containers];
                    let pod = pod(&format!("p{at}"), WORDS[place.word], &containers, mode);
                    // A refusal is fine; what is booked must hold.
                    let decided = cluster.decide(&pod).ok().map(|(node, allocation, _)| (pod, node, allocation));
                    if place.late {
                        late.extend(decided);
                    } else {
                        for (pod, node, allocation) in decided.into_iter().chain(late.drain(..)) {
                            drop(cluster.assume(&pod, &node, &allocation));
                        }
                    }
                }
            }
            prop_assert_eq!(overbooked(&cluster.world), None);
            prop_assert!(cluster.world.audit().is_empty());
        }
    }
}
