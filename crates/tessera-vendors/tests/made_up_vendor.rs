//! The walk of `docs/adding-a-vendor.md`, taken: a class of a maker that does not exist, written from outside the
//! engine with nothing but the seam, and what the engine then does for it. The pieces of code in the document are
//! pieces of this file.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use tessera_engine::{
    Admit, AdmitSettings, AllocationProblem, AnnotationKeys, AssumeError, Assumption, Candidates, CardView,
    ContainerEdit, Defaults, Engine, FitContext, HealthSource, NodeProblem, NodeState, RequestError, ResourceNames,
    Take, Vendor, Vendors, Want, World, WriteContext, admission, text,
};
use tessera_types::{
    Allocation, Ask, Card, CardUsage, ClassAllocation, Cores, Demand, Extras, Keyword, MemoryAsk, Mib, MigReservation,
    Reason, ReasonKind, Selection,
};
use tessera_wire::{ContainerView, NodeView, PodView, device_text, register};

// ---------------------------------------------------------------- the class

/// Further amounts: the position here is the position in `Extras`.
const LANES: usize = 0;
/// What each card has of them.
const LANES_OF_A_CARD: u64 = 8;

#[derive(Debug)]
struct Aurora {
    keyword: Keyword,
    names: ResourceNames,
    keys: AnnotationKeys,
}

impl Aurora {
    fn new() -> Self {
        Self {
            keyword: Keyword::new("Aurora").unwrap(),
            names: ResourceNames {
                count: Some("example.com/aurora".to_owned()),
                memory: Some("example.com/aurora-memory".to_owned()),
                memory_factor: 1024,
                others: vec!["example.com/aurora-lanes".to_owned()],
                ..ResourceNames::default()
            },
            keys: AnnotationKeys {
                register: Some("example.com/node-aurora".to_owned()),
                to_allocate: Some("example.com/aurora-to-allocate".to_owned()),
                allocated: Some("example.com/aurora-allocated".to_owned()),
                extra: vec!["example.com/aurora-lanes-of-cards".to_owned()],
                user: vec!["example.com/aurora-mode".to_owned()],
                ..AnnotationKeys::default()
            },
        }
    }

    /// A whole number under a resource name; absent is 0.
    fn number(container: &ContainerView, resource: &str) -> Result<u64, RequestError> {
        let Some(quantity) = container.amount(resource) else {
            return Ok(0);
        };
        let number = quantity.as_integer().and_then(|number| u64::try_from(number).ok());
        number.ok_or_else(|| {
            let problem = format!("`{quantity}` is not a whole number");
            RequestError::resource(&container.name, resource, problem, "write a number such as 2")
        })
    }
}

impl Vendor for Aurora {
    fn keyword(&self) -> &Keyword {
        &self.keyword
    }

    fn names(&self) -> &ResourceNames {
        &self.names
    }

    fn keys(&self) -> &AnnotationKeys {
        &self.keys
    }

    fn health(&self) -> HealthSource {
        HealthSource::AnnotationPresent
    }

    fn extra_names(&self) -> &[&str] {
        &["lanes"]
    }

    fn decode_node(&self, node: &NodeView) -> Result<Vec<Card>, NodeProblem> {
        let key = "example.com/node-aurora";
        let text = node.annotation(key).ok_or(NodeProblem::Absent)?;
        let mut cards = register::parse_json(text, &self.keyword).map_err(|error| NodeProblem::Unreadable {
            key: key.to_owned(),
            fault: error.to_string(),
        })?;
        for card in &mut cards {
            card.extra = Extras::NONE.with(LANES, LANES_OF_A_CARD);
        }
        Ok(cards)
    }

    fn parse(&self, container: &ContainerView, _pod: &PodView) -> Result<Option<Ask>, RequestError> {
        let count = Self::number(container, "example.com/aurora")?;
        let gib = Self::number(container, "example.com/aurora-memory")?;
        let lanes = Self::number(container, "example.com/aurora-lanes")?;
        if count == 0 {
            return Ok(None);
        }
        Ok(Some(Ask {
            class: self.keyword.clone(),
            count: u32::try_from(count).unwrap_or(u32::MAX),
            memory: if gib == 0 {
                MemoryAsk::Whole
            } else {
                MemoryAsk::Mib(Mib::new(gib.saturating_mul(1024)))
            },
            percent_beside: None,
            cores: Cores::ZERO,
            extra: vec![("lanes".to_owned(), lanes.max(1))],
        }))
    }

    fn selection(&self, _pod: &PodView) -> Result<Selection, RequestError> {
        Ok(Selection::default())
    }

    /// Lanes are wired in pairs: one lane occupies two.
    fn check(&self, _card: CardView<'_>, want: &Want<'_>, _ctx: &FitContext<'_>) -> Result<Take, Reason> {
        let lanes = want.extra.get(LANES).next_multiple_of(2);
        Ok(Take {
            extra: want.extra.with(LANES, lanes),
            ..Take::as_wanted(want)
        })
    }

    fn pod_facts(&self, pod: &PodView) -> BTreeMap<String, String> {
        let mode = pod.annotation("example.com/aurora-mode").unwrap_or("batch");
        BTreeMap::from([("mode".to_owned(), mode.to_owned())])
    }

    /// A card runs one mode at a time.
    fn joins(
        &self,
        card: CardView<'_>,
        _added: CardUsage,
        facts: &BTreeMap<String, String>,
        node: &NodeState,
    ) -> Result<(), ReasonKind> {
        let same = |other: &BTreeMap<String, String>| other.get("mode") == facts.get("mode");
        let mut others = node.tenants(card.position);
        if others.all(|tenant| tenant.facts.get(&self.keyword).is_none_or(same)) {
            Ok(())
        } else {
            Err(ReasonKind::ModeMismatch)
        }
    }

    fn annotations(&self, allocation: &Allocation, _: &Demand, _: &WriteContext<'_>) -> BTreeMap<String, String> {
        let Some(shares) = allocation.classes.get(&self.keyword) else {
            return BTreeMap::new();
        };
        let text = device_text::print(shares);
        let lanes: Vec<Vec<u64>> = shares
            .iter()
            .map(|of_container| of_container.iter().map(|share| share.extra.get(LANES)).collect())
            .collect();
        BTreeMap::from([
            ("example.com/aurora-to-allocate".to_owned(), text.clone()),
            ("example.com/aurora-allocated".to_owned(), text),
            ("example.com/aurora-lanes-of-cards".to_owned(), json!(lanes).to_string()),
        ])
    }

    fn read_allocation(
        &self,
        annotations: &BTreeMap<String, String>,
    ) -> Result<Option<(ClassAllocation, Vec<MigReservation>)>, AllocationProblem> {
        let key = "example.com/aurora-allocated";
        let Some(text) = annotations.get(key) else {
            return Ok(None);
        };
        let problem = |fault: String| AllocationProblem {
            key: key.to_owned(),
            fault,
            text: text.clone(),
        };
        let mut shares = device_text::parse(text).map_err(|error| problem(error.to_string()))?;
        let lanes: Vec<Vec<u64>> = annotations
            .get("example.com/aurora-lanes-of-cards")
            .and_then(|text| serde_json::from_str(text).ok())
            .ok_or_else(|| problem("the lanes beside it cannot be read".to_owned()))?;
        for (shares, lanes) in shares.iter_mut().zip(lanes) {
            for (share, lanes) in shares.iter_mut().zip(lanes) {
                share.extra = Extras::NONE.with(LANES, lanes);
            }
        }
        Ok(Some((shares, Vec::new())))
    }

    fn admit(
        &self,
        container: &mut ContainerEdit<'_>,
        _pod: &PodView,
        _settings: &AdmitSettings,
    ) -> Result<Admit, RequestError> {
        let part = container.has_limit("example.com/aurora-memory") || container.has_limit("example.com/aurora-lanes");
        if part && !container.has_limit("example.com/aurora") {
            container.set_limit("example.com/aurora", 1);
        }
        Ok(Admit {
            uses_device: container.has_limit("example.com/aurora"),
            ..Admit::default()
        })
    }
}

// ---------------------------------------------------------------- what the engine does for it

fn node() -> NodeView {
    let card =
        |id: &str| json!({"id": id, "count": 4, "devmem": 16384, "devcore": 100, "type": "Aurora", "health": true});
    let register = json!([card("A"), card("B")]).to_string();
    NodeView::from_json(&json!({"metadata": {"name": "n", "annotations": {"example.com/node-aurora": register}}}))
        .unwrap()
}

fn pod(name: &str, limits: Value) -> Value {
    json!({"metadata": {"name": name, "namespace": "ns", "uid": name, "annotations": {}},
        "spec": {"containers": [{"name": "main", "resources": {"limits": limits}}]}})
}

fn lanes(name: &str, gib: u32, lanes: u32) -> Value {
    pod(
        name,
        json!({"example.com/aurora": "1", "example.com/aurora-memory": gib.to_string(), "example.com/aurora-lanes": lanes.to_string()}),
    )
}

struct Cluster {
    engine: Engine,
    world: World,
}

impl Cluster {
    fn new() -> Self {
        let vendors = Arc::new(Vendors::new(vec![Arc::new(Aurora::new()) as Arc<dyn Vendor>]));
        let mut world = World::new(Arc::clone(&vendors));
        assert!(world.set_node(&node()).problems.is_empty());
        Self {
            engine: Engine::new(vendors, Defaults::default()),
            world,
        }
    }

    /// Decides, books, and answers what is written on the pod; else the reason as people read it.
    fn place(&mut self, pod: &Value) -> Result<BTreeMap<String, String>, String> {
        let pod = PodView::from_json(pod).unwrap();
        let demand = self.engine.demand(&pod).map_err(|error| error.to_string())?;
        let decision = self.engine.decide(&self.world.snapshot(), &demand, Candidates::All);
        let Some(winner) = decision.winner() else {
            return Err(text::node(&decision.refused[0].1));
        };
        self.assume(&pod, &demand, &winner.allocation)
            .map_err(|error| error.to_string())?;
        let at = WriteContext {
            node: &winner.node,
            now_seconds: 5,
            cards: &[],
        };
        Ok(self.engine.annotations(&winner.allocation, &demand, &at))
    }

    fn assume(&mut self, pod: &PodView, demand: &Demand, allocation: &Arc<Allocation>) -> Result<(), AssumeError> {
        let outcome = self.world.assume(&Assumption {
            pod: &pod.id,
            roles: &pod.roles(),
            node: &node().name,
            allocation: Arc::clone(allocation),
            priority: 0,
            facts: &demand.facts,
            now: 0,
            expires_at: 90,
        });
        assert_eq!(self.world.audit(), []);
        outcome
    }
}

#[test]
fn amounts_that_only_the_class_counts_are_never_overbooked() {
    let mut cluster = Cluster::new();
    // Three lanes are two pairs: two such pods fill a card's lanes while most of its memory is free.
    for name in ["a", "b", "c", "d"] {
        cluster.place(&lanes(name, 1, 3)).unwrap();
    }
    let refused = cluster.place(&lanes("e", 1, 1)).unwrap_err();
    assert!(
        refused.contains("2 lanes wanted") || refused.contains("1 lanes wanted"),
        "{refused}"
    );
    assert!(refused.contains("0 lanes free"), "{refused}");
}

#[test]
fn two_decisions_of_one_moment_do_not_take_the_same_lanes() {
    let mut cluster = Cluster::new();
    let wide = |name: &str| {
        PodView::from_json(&pod(
            name,
            json!({"example.com/aurora": "2", "example.com/aurora-memory": "1", "example.com/aurora-lanes": "6"}),
        ))
        .unwrap()
    };
    let (one, two) = (wide("one"), wide("two"));
    let demands = [
        cluster.engine.demand(&one).unwrap(),
        cluster.engine.demand(&two).unwrap(),
    ];
    let snapshot = cluster.world.snapshot();
    let allocation = |demand: &Demand| {
        let decision = cluster.engine.decide(&snapshot, demand, Candidates::All);
        Arc::clone(&decision.winner().unwrap().allocation)
    };
    let allocations = [allocation(&demands[0]), allocation(&demands[1])];
    cluster.assume(&one, &demands[0], &allocations[0]).unwrap();
    let error = cluster.assume(&two, &demands[1], &allocations[1]).unwrap_err();
    assert!(error.to_string().contains("2 lanes free of 6 lanes wanted"), "{error}");
}

#[test]
fn a_rule_about_neighbours_holds_when_two_decide_at_once() {
    let mut cluster = Cluster::new();
    let mut online = lanes("online", 1, 2);
    online["metadata"]["annotations"]["example.com/aurora-mode"] = json!("online");
    let (batch, online) = (
        PodView::from_json(&lanes("batch", 1, 2)).unwrap(),
        PodView::from_json(&online).unwrap(),
    );
    let demands = [
        cluster.engine.demand(&batch).unwrap(),
        cluster.engine.demand(&online).unwrap(),
    ];
    let snapshot = cluster.world.snapshot();
    let decisions = demands
        .clone()
        .map(|demand| cluster.engine.decide(&snapshot, &demand, Candidates::All));
    let [one, two] = decisions.map(|decision| Arc::clone(&decision.winner().unwrap().allocation));
    assert_eq!(one, two, "both chose the same free card");
    cluster.assume(&batch, &demands[0], &one).unwrap();
    assert!(matches!(
        cluster.assume(&online, &demands[1], &two),
        Err(AssumeError::Taken(Reason {
            kind: ReasonKind::ModeMismatch,
            ..
        }))
    ));
    // Decided anew, it takes the other card.
    let decision = cluster
        .engine
        .decide(&cluster.world.snapshot(), &demands[1], Candidates::All);
    assert_ne!(decision.winner().unwrap().allocation, one);
}

#[test]
fn what_is_written_books_the_same_again() {
    let mut cluster = Cluster::new();
    let mut object = lanes("a", 2, 3);
    let written = cluster.place(&object).unwrap();
    assert_eq!(written["example.com/aurora-lanes-of-cards"], "[[4]]");
    let before = cluster.world.snapshot();
    object["metadata"]["annotations"] = json!(written);
    object["spec"]["nodeName"] = json!("n");
    cluster.world.set_pod(&PodView::from_json(&object).unwrap());
    let after = cluster.world.snapshot();
    assert_eq!(before.node("n").unwrap().usage(), after.node("n").unwrap().usage());
    assert_eq!(cluster.world.audit(), []);
}

#[test]
fn admission_completes_and_refuses_by_field() {
    let cluster = Cluster::new();
    let review = |limits: Value| {
        let settings = admission::Settings::default();
        admission::review(
            &pod("p", limits),
            "ns",
            &settings,
            &cluster.engine,
            &cluster.world.snapshot(),
        )
    };
    let admission::Verdict::Allow { patch, .. } = review(json!({"example.com/aurora-memory": "2"})) else {
        panic!("refused");
    };
    let patch = serde_json::to_string(&patch).unwrap();
    assert!(patch.contains("example.com~1aurora\""), "{patch}");
    let admission::Verdict::Deny { text, .. } = review(json!({"example.com/aurora": "1500m"})) else {
        panic!("admitted");
    };
    assert!(
        text.contains("`example.com/aurora`") && text.contains("write a number"),
        "{text}"
    );
}

#[test]
fn a_register_that_cannot_be_read_closes_the_class_on_that_node_only() {
    let mut cluster = Cluster::new();
    let broken = json!({"metadata": {"name": "broken", "annotations": {"example.com/node-aurora": "[{"}}});
    let change = cluster.world.set_node(&NodeView::from_json(&broken).unwrap());
    assert_eq!(change.problems.len(), 1);
    cluster.place(&lanes("a", 1, 1)).unwrap();
}

// ---------------------------------------------------------------- the document

#[test]
fn the_document_shows_this_file() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = std::fs::read_to_string(root.join("../../docs/adding-a-vendor.md")).unwrap();
    let squeeze = |text: &str| text.split_whitespace().collect::<String>();
    let source = squeeze(include_str!("made_up_vendor.rs"));
    let blocks: Vec<&str> = document
        .split("```rust\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .collect();
    assert!(blocks.len() >= 5, "the walk has lost its code");
    for block in blocks {
        assert!(source.contains(&squeeze(block)), "not in this file:\n{block}");
    }
}
