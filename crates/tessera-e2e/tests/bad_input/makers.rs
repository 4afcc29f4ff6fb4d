//! The same mistakes with the names of every maker: what is wrong with a number, a choice, a mixture, a node's text.
//!
//! The table in `makers/table.rs` says how each class is asked and what its node looks like. Every mistake goes through
//! admission and, if it gets past that, through the decision. What is read is in `docs/bad-input.md`; besides being
//! equal to the page it must name the field, and a mistake must not pass as if it had a meaning unless the table says
//! which meaning.

use std::fmt::Write as _;
use std::sync::{Arc, LazyLock};

use serde_json::{Value, json};
use tessera_engine::admission::{Settings, Verdict, review};
use tessera_engine::{Candidates, Decision, Defaults, Engine, Vendors, World, text};
use tessera_types::Demand;
use tessera_wire::config::DeviceConfig;
use tessera_wire::{NodeView, PodView};

#[path = "makers/table.rs"]
mod table;

use table::{MAKERS, Maker};

/// All classes on, with HAMi's names.
const CONFIG: &str = include_str!("../../../tessera-vendors/tests/suite/config.yaml");

/// A mistake that was made.
#[derive(Debug)]
pub(crate) struct Made {
    maker: &'static Maker,
    did: String,
    place: &'static str,
    message: String,
    /// It has a meaning after all: the pod was placed without a word.
    silent: bool,
    /// What the message must name; one of them.
    names: Vec<String>,
}

fn vendors() -> Arc<Vendors> {
    static ALL: LazyLock<Arc<Vendors>> =
        LazyLock::new(|| tessera_vendors::from_config(&DeviceConfig::from_yaml(CONFIG).unwrap()));
    Arc::clone(&ALL)
}

/// A node of `maker`, on which NVIDIA's cards are as well.
fn node(maker: &Maker, register: Option<&str>) -> NodeView {
    let (mut annotations, mut amounts): (Value, Value) = (maker.node)();
    if let (Some(key), Some(text)) = (maker.register, register) {
        annotations[key] = json!(text);
    }
    let nvidia = json!([{"id": "GPU-nv", "count": 10, "devmem": 16384, "devcore": 100, "type": "NVIDIA A10",
        "numa": 0, "mode": "hami-core", "health": true}]);
    annotations["hami.io/node-nvidia-register"] = json!(nvidia.to_string());
    amounts["nvidia.com/gpu"] = json!("10");
    let object = json!({"metadata": {"name": "n1", "annotations": annotations},
        "status": {"capacity": amounts, "allocatable": amounts}});
    NodeView::from_json(&object).unwrap()
}

struct Cluster {
    engine: Engine,
    world: World,
}

impl Cluster {
    fn new(node: &NodeView) -> (Self, String) {
        let engine = Engine::new(vendors(), Defaults::default());
        let mut world = World::new(vendors());
        let problems: Vec<String> = world
            .set_node(node)
            .problems
            .iter()
            .map(|(class, problem)| format!("{class}: {problem}"))
            .collect();
        (Self { engine, world }, problems.join("; "))
    }

    /// The pod as admission leaves it and the warnings, or why it is refused.
    fn admit(&self, pod: &Value) -> Result<(Value, Vec<String>), String> {
        match review(
            pod,
            "default",
            &Settings::default(),
            &self.engine,
            &self.world.snapshot(),
        ) {
            Verdict::Deny { text, .. } => Err(text),
            Verdict::Allow { patch, warnings, .. } => {
                let mut pod = pod.clone();
                let patch: json_patch::Patch = serde_json::from_value(serde_json::to_value(&patch).unwrap()).unwrap();
                json_patch::patch(&mut pod, &patch).unwrap();
                Ok((pod, warnings))
            }
        }
    }

    fn decide(&self, pod: &Value) -> (Demand, Decision) {
        let demand = self.engine.demand(&PodView::from_json(pod).unwrap()).unwrap();
        let decision = self.engine.decide(&self.world.snapshot(), &demand, Candidates::All);
        (demand, decision)
    }

    /// A pod of these limits finds a place.
    fn takes(&self, maker: &Maker, limits: &[(&str, &str)]) -> bool {
        let Ok((pod, _)) = self.admit(&pod(maker, limits)) else {
            return false;
        };
        let (demand, decision) = self.decide(&pod);
        !demand.is_empty() && decision.winner().is_some()
    }
}

fn pod(maker: &Maker, limits: &[(&str, &str)]) -> Value {
    let limits: serde_json::Map<String, Value> = limits
        .iter()
        .map(|(name, amount)| ((*name).to_owned(), json!(amount)))
        .collect();
    let annotations: serde_json::Map<String, Value> = maker
        .annotations
        .iter()
        .map(|(key, value)| ((*key).to_owned(), json!(value)))
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "p", "namespace": "default", "uid": "u", "annotations": annotations},
        "spec": {"containers": [{"name": "main", "image": "x", "resources": {"limits": limits, "requests": limits}}]},
    })
}

/// Asks for cards of a class in a cluster where only NVIDIA's class is switched on.
fn not_enabled(maker: &'static Maker) -> Made {
    let engine = Engine::new(
        tessera_vendors::from_config(&DeviceConfig::from_yaml("nvidia: {}").unwrap()),
        Defaults::default(),
    );
    let mut world = World::new(Arc::clone(engine.vendors()));
    world.set_node(&node(&MAKERS[0], None));
    let settings = Settings {
        not_enabled: tessera_vendors::not_enabled(engine.vendors()),
        ..Settings::default()
    };
    let message = match review(
        &pod(maker, maker.good),
        "default",
        &settings,
        &engine,
        &world.snapshot(),
    ) {
        Verdict::Deny { text, .. } => text,
        allowed @ Verdict::Allow { .. } => format!("not refused: {allowed:?}"),
    };
    Made {
        maker,
        did: "the same where the class is not switched on".to_owned(),
        place: REFUSED,
        message,
        silent: false,
        names: vec!["of the device configuration".to_owned()],
    }
}

const REFUSED: &str = "`kubectl` refuses the pod";
const WARNED: &str = "`kubectl` warns; the pod is created";
const EVENT: &str = "event of the pod";
const NOTHING: &str = "nowhere: it has a meaning";

/// What a user reads of a pod with a mistake. Whatever it is, others must go on.
fn see(maker: &'static Maker, did: String, pod: &Value, names: Vec<String>) -> Made {
    let (cluster, problems) = Cluster::new(&node(maker, None));
    assert_eq!(problems, "", "{}", maker.title);
    let (place, message, silent) = match cluster.admit(pod) {
        Err(text) => (REFUSED, text, false),
        Ok((pod, warnings)) => {
            let (demand, decision) = cluster.decide(&pod);
            if demand.is_empty() && warnings.is_empty() {
                (NOTHING, "the container asks for no card".to_owned(), true)
            } else if demand.is_empty() {
                (WARNED, warnings.join("\n"), false)
            } else if decision.winner().is_none() {
                (EVENT, text::event(&decision, &demand), false)
            } else if warnings.is_empty() {
                (NOTHING, given(&decision), true)
            } else {
                (WARNED, warnings.join("\n"), false)
            }
        }
    };
    assert!(cluster.world.audit().is_empty());
    assert!(cluster.takes(maker, maker.good), "{}: a good pod", maker.title);
    Made {
        maker,
        did,
        place,
        message,
        silent,
        names,
    }
}

/// What the pod gets.
fn given(decision: &Decision) -> String {
    let fit = decision.winner().unwrap();
    let shares: Vec<String> = fit
        .allocation
        .classes
        .values()
        .flatten()
        .flatten()
        .map(|share| match (share.memory.get(), share.cores.get()) {
            (0, 0) => format!("{} whole", share.card),
            (memory, 0) => format!("{memory} MiB of {}", share.card),
            (0, cores) => format!("{cores} % compute of {}", share.card),
            (memory, cores) => format!("{memory} MiB and {cores} % compute of {}", share.card),
        })
        .collect();
    format!("the pod gets {}", shares.join(", "))
}

/// The good limits with another amount.
fn but(
    good: &[(&'static str, &'static str)],
    name: &'static str,
    amount: &'static str,
) -> Vec<(&'static str, &'static str)> {
    let mut limits: Vec<_> = good.iter().filter(|(known, _)| *known != name).copied().collect();
    limits.push((name, amount));
    limits
}

fn mistakes(maker: &'static Maker) -> Vec<Made> {
    let mut made = Vec::new();
    let mut number = |name: &'static str, amounts: &[&'static str]| {
        for amount in amounts {
            let pod = pod(maker, &but(maker.good, name, amount));
            made.push(see(maker, format!("`{name}: {amount}`"), &pod, vec![name.to_owned()]));
        }
    };
    number(maker.good[0].0, &["500m", "-1", "9E", "0"]);
    if let Some(memory) = maker.memory {
        number(memory, &["3Gi", "1500m", "-1", "9E", "0"]);
    }
    if let Some(cores) = maker.cores {
        number(cores, &["12500m", "-5", "9E"]);
    }
    if let Some(percent) = maker.percent {
        let (limits, name): (Vec<_>, _) = (vec![maker.good[0], (percent, "120")], percent.to_owned());
        made.push(see(
            maker,
            format!("`{percent}: 120`"),
            &pod(maker, &limits),
            vec![name],
        ));
    }
    for (limits, names) in maker.odd {
        let did: Vec<String> = limits
            .iter()
            .map(|(name, amount)| format!("`{name}: {amount}`"))
            .collect();
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        made.push(see(maker, did.join(" and "), &pod(maker, limits), names));
    }
    for (key, value, names) in maker.choices {
        let mut pod = pod(maker, maker.good);
        pod["metadata"]["annotations"][*key] = json!(value);
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        made.push(see(maker, format!("annotation `{key}: {value}`"), &pod, names));
    }
    if maker.class != "NVIDIA" {
        made.push(not_enabled(maker));
    }
    if maker.register.is_some() {
        for register in ["nonsense", "[{\"id\":"] {
            made.push(broken_register(maker, register));
        }
    }
    made
}

/// A node whose register of `maker` cannot be read takes no new pod of that maker, and goes on with the others.
fn broken_register(maker: &'static Maker, register: &str) -> Made {
    let key = maker.register.unwrap_or_default();
    let (cluster, problems) = Cluster::new(&node(maker, Some(register)));
    assert!(cluster.takes(maker, &[("nvidia.com/gpu", "1"), ("nvidia.com/gpumem", "100")]) || maker.class == "NVIDIA");
    let (pod, _) = cluster.admit(&pod(maker, maker.good)).unwrap();
    let (demand, decision) = cluster.decide(&pod);
    assert!(decision.winner().is_none(), "{}: {key} is {register}", maker.title);
    let event = text::event(&decision, &demand);
    assert!(event.contains(key), "{}: {event}", maker.title);
    // As soon as the text is right again, so is the node.
    let mut cluster = cluster;
    assert!(cluster.world.set_node(&node(maker, None)).problems.is_empty());
    assert!(cluster.takes(maker, maker.good));
    Made {
        maker,
        did: format!("`{key}` is `{register}`"),
        place: "scheduler's log, `tessera_unreadable_objects`, events of the node and of pods that wait",
        message: problems,
        silent: false,
        names: vec![key.to_owned()],
    }
}

/// Makes every mistake of every maker.
pub(crate) fn all() -> Vec<Made> {
    MAKERS.iter().flat_map(mistakes).collect()
}

/// What every mistake must keep, whatever the words are.
pub(crate) fn check(all: &[Made]) {
    let mut wrong = String::new();
    for made in all {
        let named = made.names.iter().any(|name| made.message.contains(name.as_str()));
        let did = made.did.trim_matches('`');
        let meant = made.maker.meant.contains(&did);
        // No amount at all asks for no card, or for a whole one.
        let may_be = meant || did.ends_with(": 0");
        if made.silent && !may_be || meant && !made.silent {
            let title = made.maker.title;
            writeln!(
                wrong,
                "{title}: {}: meant {meant}, but {}: {}",
                made.did, made.place, made.message
            )
            .unwrap();
        } else if !made.silent && !named {
            let title = made.maker.title;
            writeln!(
                wrong,
                "{title}: {}: names none of {:?}: {}",
                made.did, made.names, made.message
            )
            .unwrap();
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    let classes: Vec<&str> = MAKERS.iter().map(|maker| maker.class).collect();
    for vendor in vendors().iter() {
        let keyword = vendor.keyword().as_str();
        // Chips of one maker share their code; one stands for all.
        let same = |class: &&str| keyword == *class || table::CHIPS.contains(&(class, keyword));
        assert!(classes.iter().any(same), "{keyword} is not in the table");
    }
}

/// The page's sections, one a maker.
pub(crate) fn page(all: &[Made]) -> String {
    let mut text = String::from(
        "\n# The names of every maker\n\nThe same mistakes with the names of each class. An event is that of a cluster of one \
         node.\n",
    );
    let mut title = "";
    for made in all {
        if made.maker.title != title {
            title = made.maker.title;
            write!(text, "\n## {title}\n\n").unwrap();
            text.push_str(crate::table::HEAD);
        }
        text.push_str(&crate::table::line(&made.did, made.place, &made.message));
    }
    text
}
