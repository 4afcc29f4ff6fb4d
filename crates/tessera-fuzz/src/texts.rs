//! Texts from annotations, request bodies, and files.

use std::{
    hint::black_box,
    sync::{Arc, LazyLock},
};

use serde_json::{Map, Value, json};
use tessera_engine::{Defaults, Engine, Vendor, Vendors};
use tessera_types::{CardPolicy, CardRule, Keyword, NodePolicy, Weights};
use tessera_wire::{
    NodeView, PodView, Quantity,
    admission::Review,
    config::{DeviceConfig, NodeConfigFile},
    device_text as devices,
    extender::{BindArgs, FilterArgs, PreemptArgs},
    failure, handshake, mig,
    node_lock::{LockOwner, NodeLock, decide, decide_timed, release},
    register as registers, time,
};

/// Every class, as the suite of all makers configures them.
const EVERY_CLASS: &str = include_str!("../../tessera-vendors/tests/suite/config.yaml");

static VENDORS: LazyLock<Option<Arc<Vendors>>> = LazyLock::new(|| {
    let config = DeviceConfig::from_yaml(EVERY_CLASS).ok()?;
    Some(tessera_vendors::from_config(&config))
});

/// Text where there is any.
fn text(data: &[u8]) -> Option<&str> {
    std::str::from_utf8(data).ok()
}

fn keyword() -> Option<Keyword> {
    Keyword::new("NVIDIA").ok()
}

/// A quantity keeps its text, and is the same when it is read again.
pub fn quantity(data: &[u8]) {
    let Some(text) = text(data) else { return };
    if let Ok(read) = Quantity::parse(text) {
        let again = Quantity::parse(read.as_str());
        assert_eq!(
            again.ok().as_ref().map(Quantity::as_integer),
            Some(read.as_integer()),
            "{text:?}"
        );
    }
}

/// Lists of cards: what is printed for a list that was read is read as that list.
pub fn register(data: &[u8]) {
    let (Some(text), Some(class)) = (text(data), keyword()) else {
        return;
    };
    if let Ok(mut cards) = registers::parse_json(text, &class) {
        // What a class says beyond the common members is read and not printed.
        cards.iter_mut().for_each(|card| card.custom.clear());
        let printed = registers::print_json(&cards);
        assert_eq!(registers::parse_json(&printed, &class).ok(), Some(cards), "{printed}");
    }
    if let Ok(cards) = registers::parse_legacy(text, &class) {
        let (Ok(_) | Err(_)) = registers::parse_legacy(&registers::print_legacy(&cards), &class);
    }
    let (Ok(_) | Err(_)) = registers::parse_scores(text);
}

/// Shares of a pod.
pub fn device_text(data: &[u8]) {
    let Some(text) = text(data) else { return };
    if let Ok(shares) = devices::parse(text) {
        let printed = devices::print(&shares);
        assert_eq!(devices::parse(&printed).ok(), Some(shares), "{printed}");
    }
    let (Ok(_) | Err(_)) = devices::parse_entries(text);
}

/// Bodies that kube-scheduler posts.
pub fn extender(data: &[u8]) {
    let (Ok(_) | Err(_)) = FilterArgs::read(data);
    let (Ok(_) | Err(_)) = BindArgs::read(data);
    let (Ok(_) | Err(_)) = PreemptArgs::read(data);
}

/// Bodies that the API server posts.
pub fn admission(data: &[u8]) {
    let (Ok(_) | Err(_)) = Review::read(data);
}

/// Files of an operator.
pub fn config(data: &[u8]) {
    let Some(text) = text(data) else { return };
    if let Ok(config) = DeviceConfig::from_yaml(text) {
        black_box(tessera_vendors::from_config(&config));
    }
    let (Ok(_) | Err(_)) = NodeConfigFile::from_json(text);
}

/// Rules for cards, and policies.
pub fn rules(data: &[u8]) {
    let Some(text) = text(data) else { return };
    if let Ok(rule) = CardRule::parse(text) {
        assert_eq!(CardRule::parse(rule.as_str()).ok(), Some(rule), "{text:?}");
    }
    black_box(NodePolicy::parse(text));
    black_box(CardPolicy::parse(text));
    let (Ok(_) | Err(_)) = Weights::parse(text);
}

/// Small marks in annotations: times, locks, handshakes, reservations, counts of reasons.
pub fn marks(data: &[u8]) {
    let Some(text) = text(data) else { return };
    if let Some(seconds) = time::parse_rfc3339(text) {
        assert_eq!(
            time::parse_rfc3339(&time::print_rfc3339(seconds)),
            Some(seconds),
            "{text:?}"
        );
    }
    if let Some(seconds) = time::parse_local(text) {
        assert_eq!(
            time::parse_local(&time::print_local(seconds)),
            Some(seconds),
            "{text:?}"
        );
    }
    if let Ok(lock) = NodeLock::parse(text) {
        let printed = lock.to_string();
        assert_eq!(
            NodeLock::parse(&printed).ok().map(|lock| lock.to_string()),
            Some(printed)
        );
    }
    let me = LockOwner {
        namespace: "ns".to_owned(),
        name: "pod".to_owned(),
    };
    for now in [0, i64::MAX, i64::MIN] {
        black_box(decide(Some(text), &me, now, 300, None));
        black_box(decide_timed(Some(text), now, 300));
        black_box(handshake::assess(Some(text), now, 1));
    }
    black_box(release(Some(text), &me));
    if let Ok(reservations) = mig::parse_reservations(text)
        && let Some(printed) = mig::print_reservations(&reservations)
    {
        assert_eq!(mig::parse_reservations(&printed).ok(), Some(reservations), "{printed}");
    }
    black_box(mig::is_profile_name(text));
    black_box(failure::parse_counts(text));
}

/// Objects of the API.
pub fn objects(data: &[u8]) {
    let Ok(value) = serde_json::from_slice::<Value>(data) else {
        return;
    };
    let (Ok(_) | Err(_)) = NodeView::from_json(&value);
    if let (Ok(pod), Some(vendors)) = (PodView::from_json(&value), VENDORS.as_ref()) {
        let (Ok(_) | Err(_)) = engine(vendors).demand(&pod);
    }
}

fn engine(vendors: &Arc<Vendors>) -> Engine {
    Engine::new(Arc::clone(vendors), Defaults::default())
}

/// A node and a pod of one class, all of whose texts are the input's: the first byte names the class, lines are the
/// annotations of the node, amounts of the node, annotations of the pod, and amounts that it asks for.
pub fn cluster(data: &[u8]) {
    let (Some((first, rest)), Some(vendors)) = (data.split_first(), VENDORS.as_ref()) else {
        return;
    };
    let Some(text) = text(rest) else { return };
    let all: Vec<&Arc<dyn Vendor>> = vendors.iter().collect();
    let Some(vendor) = usize::from(*first).checked_rem(all.len()).and_then(|at| all.get(at)) else {
        return;
    };
    let (keys, names) = (vendor.keys(), vendor.names());
    let mut lines = text.split('\n');
    let mut next = || lines.next().unwrap_or_default();
    let mut node_texts = Map::new();
    for key in [&keys.register, &keys.handshake, &keys.scores].into_iter().flatten() {
        node_texts.insert(key.clone(), next().into());
    }
    let mut amounts = Map::new();
    let mut limits = Map::new();
    for name in names.managed() {
        amounts.insert(name.to_owned(), next().into());
        let asked = next();
        if !asked.is_empty() {
            limits.insert(name.to_owned(), asked.into());
        }
    }
    let mut pod_texts = Map::new();
    for key in keys.allocation().map(str::to_owned).chain(keys.user.iter().cloned()) {
        let value = next();
        if !value.is_empty() {
            pod_texts.insert(key, value.into());
        }
    }
    let node = json!({"metadata": {"name": "n1", "annotations": node_texts},
        "status": {"allocatable": amounts, "capacity": amounts}});
    if let Ok(node) = NodeView::from_json(&node) {
        let (Ok(_) | Err(_)) = vendor.decode_node(&node);
        black_box(vendor.node_facts(&node));
    }
    let pod = json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u", "annotations": pod_texts},
        "spec": {"containers": [{"name": "c", "resources": {"limits": limits}}]}});
    if let Ok(pod) = PodView::from_json(&pod) {
        let (Ok(_) | Err(_)) = engine(vendors).demand(&pod);
        let (Ok(_) | Err(_)) = vendor.selection(&pod);
        for container in &pod.containers {
            let (Ok(_) | Err(_)) = vendor.parse(container, &pod);
        }
    }
}
