//! The admission decision: what is changed of a new pod, and which pod is refused before it can wait for ever.
//!
//! Changes are a JSON Patch of single members, so nothing that this version does not know is lost, and a pod that is
//! reviewed twice is changed once. Where HAMi refuses, its words come first and ours follow; what HAMi lets pass and
//! then drops or never places is refused here, with the field, what is wrong with it and what to write instead.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use tessera_types::{Ask, CardPolicy, ContainerRole, Demand, MemoryAsk, Mib, NodePolicy};
use tessera_wire::admission::{Answer, PatchOp, pointer};
use tessera_wire::nearest::nearest;
use tessera_wire::{ContainerView, PodView, Quantity, keys};

use crate::node::NodeState;
use crate::resize;
use crate::unified;
use crate::{AdmitSettings, ContainerEdit, Engine, RequestError, Snapshot, Vendor};

/// More memory than any card has, 4 TiB: above it, bytes were written where MiB are counted.
const CARD_MEMORY_MAX: Mib = Mib::new(4 << 20);
/// The scheduler that the API server fills in.
const DEFAULT_SCHEDULER: &str = "default-scheduler";

/// How pods are admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Given to pods that use devices; empty leaves them their own.
    pub scheduler_name: String,
    /// Pods of the default scheduler count as pods without a scheduler.
    pub force_overwrite_default_scheduler: bool,
    /// Environment variables that a container with devices may not set itself, besides those of the classes.
    pub reserved_env: Vec<String>,
    /// Users whose changes to allocation annotations are their business: our own service accounts and foreign
    /// schedulers'.
    pub trusted_users: Vec<String>,
    /// Groups of such users.
    pub trusted_groups: Vec<String>,
    /// Resources of classes that are not switched on, each with the section of the configuration that would. A pod that
    /// asks for one which no node offers either is refused. Empty refuses none.
    pub not_enabled: BTreeMap<String, String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            scheduler_name: "hami-scheduler".to_owned(),
            force_overwrite_default_scheduler: true,
            reserved_env: Vec::new(),
            trusted_users: Vec::new(),
            trusted_groups: vec!["system:masters".to_owned(), "system:nodes".to_owned()],
            not_enabled: BTreeMap::new(),
        }
    }
}

/// What becomes of a pod.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// It goes on.
    Allow {
        /// Changes; empty for none.
        patch: Vec<PatchOp>,
        /// Shown to whoever creates the pod.
        warnings: Vec<String>,
        /// A remark for the log of the API server.
        message: Option<String>,
    },
    /// It is refused.
    Deny {
        /// HTTP-like code: 400 not a pod, 403 not permitted, 422 a field that cannot be served, 500 where HAMi says so.
        code: u16,
        /// Field, fault and next step.
        text: String,
    },
}

impl Verdict {
    fn deny(code: u16, text: impl Into<String>) -> Self {
        Self::Deny {
            code,
            text: text.into(),
        }
    }
}

impl From<Verdict> for Answer {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Deny { code, text } => Answer::deny(code, text),
            Verdict::Allow {
                patch,
                warnings,
                message,
            } => Answer {
                warnings,
                message: message.unwrap_or_default(),
                ..Answer::allow(patch)
            },
        }
    }
}

/// Reviews the creation of `pod` in `namespace`.
#[must_use]
pub fn review(pod: &Value, namespace: &str, settings: &Settings, engine: &Engine, snapshot: &Snapshot) -> Verdict {
    let view = match PodView::from_json(pod) {
        Ok(view) => view,
        Err(error) => return Verdict::deny(400, error.to_string()),
    };
    let translated = match unified::translate(pod, &view, engine, snapshot) {
        Ok(None) => return review_own(pod, view, namespace, settings, engine, snapshot),
        Ok(Some(translated)) => translated,
        Err(error) => return Verdict::deny(422, error.to_string()),
    };
    let view = match PodView::from_json(&translated.pod) {
        Ok(view) => view,
        Err(error) => return Verdict::deny(400, error.to_string()),
    };
    match review_own(&translated.pod, view, namespace, settings, engine, snapshot) {
        // One patch after the other: the second is about the pod that the first makes.
        Verdict::Allow {
            patch,
            warnings,
            message,
        } => Verdict::Allow {
            patch: translated.ops.into_iter().chain(patch).collect(),
            warnings,
            message,
        },
        denied => denied,
    }
}

/// Reviews a pod that names the classes' own resources.
fn review_own(
    pod: &Value,
    view: PodView,
    namespace: &str,
    settings: &Settings,
    engine: &Engine,
    snapshot: &Snapshot,
) -> Verdict {
    if !view
        .containers
        .iter()
        .any(|container| container.role == ContainerRole::App)
    {
        return Verdict::deny(403, "pod has no containers");
    }
    let mut change = Change::new(pod);
    strip_allocation(&view, engine, &mut change);
    if let Some(scheduler) = view.scheduler_name.as_deref() {
        let ours = !settings.scheduler_name.is_empty() && scheduler == settings.scheduler_name;
        let open = scheduler == DEFAULT_SCHEDULER && settings.force_overwrite_default_scheduler;
        if !ours && !open {
            return change.allow(Some("pod already has different scheduler assigned"));
        }
    }

    if let Some(error) = not_enabled(&view, settings, snapshot) {
        return Verdict::deny(422, error.to_string());
    }
    let mut edits: Vec<ContainerEdit<'_>> = view.containers.iter().map(ContainerEdit::new).collect();
    let mut uses_device = vec![false; edits.len()];
    let mut runtime_class = None;
    let mut annotations = BTreeMap::new();
    let known = AdmitSettings {
        card_sizes: snapshot.card_sizes(),
    };
    for (edit, uses) in edits.iter_mut().zip(&mut uses_device) {
        for vendor in engine.vendors().iter() {
            match vendor.admit(edit, &view, &known) {
                Ok(admit) => {
                    *uses |= admit.uses_device;
                    runtime_class = runtime_class.or(admit.runtime_class);
                    annotations.extend(admit.annotations);
                    change.warnings.extend(admit.warnings);
                }
                // HAMi answers what a class refuses with this code; clients of it look at the text.
                Err(error) => return Verdict::deny(500, error.to_string()),
            }
        }
    }
    let any = uses_device.contains(&true);
    warn_zero_counts(&view, engine, &mut change.warnings);
    if any {
        if let Some(container) = view.containers.iter().find(|container| container.privileged) {
            return Verdict::deny(
                403,
                format!(
                    "container {} is privileged: it could reach every card of the node, so no share can be held; \
                 remove securityContext.privileged, or ask for no device",
                    container.name
                ),
            );
        }
        if !settings.scheduler_name.is_empty() {
            change.scheduler(&view, &settings.scheduler_name);
            if let Some(node) = view.node_name.as_deref() {
                return Verdict::deny(
                    403,
                    format!(
                        "pod has node assigned: cards are chosen by the scheduler; remove spec.nodeName and select node \
                     `{node}` with spec.nodeSelector (kubernetes.io/hostname)"
                    ),
                );
            }
        }
        let edited = PodView {
            containers: edits.iter().map(ContainerEdit::edited).collect(),
            annotations: view
                .annotations
                .clone()
                .into_iter()
                .chain(annotations.clone())
                .collect(),
            ..view.clone()
        };
        if let Err(text) = resize::check_wish(&edited) {
            return Verdict::deny(422, text);
        }
        match check_request(&edited, engine, snapshot) {
            Ok(warnings) => change.warnings.extend(warnings),
            Err(error) => return Verdict::deny(422, error.to_string()),
        }
        let namespace = if view.id.namespace.is_empty() {
            namespace
        } else {
            &view.id.namespace
        };
        if let Err(text) = check_quota(&edited, namespace, engine, snapshot) {
            return Verdict::deny(403, text);
        }
        if let Some(class) = runtime_class {
            change.ops.push(PatchOp::Add {
                path: "/spec/runtimeClassName".to_owned(),
                value: json!(class),
            });
        }
    }
    change.annotations(&annotations);
    let reserved: Vec<String> = settings
        .reserved_env
        .iter()
        .map(String::as_str)
        .chain(
            engine
                .vendors()
                .iter()
                .flat_map(|vendor| vendor.reserved_env().iter().copied()),
        )
        .map(str::to_owned)
        .collect();
    let init_count = view
        .containers
        .iter()
        .filter(|container| container.role != ContainerRole::App)
        .count();
    for (position, (edit, uses)) in edits.iter().zip(&uses_device).enumerate() {
        let (list, index) = if position < init_count {
            ("initContainers", position)
        } else {
            ("containers", position - init_count)
        };
        change.container(list, index, edit, if *uses { &reserved } else { &[] });
    }
    warn_unknown_annotations(&view, engine, any, &mut change);
    change.allow(None)
}

/// A name that nobody serves: its class is not switched on, and no node offers it by a plain plugin either. The pod
/// would wait for ever.
fn not_enabled(pod: &PodView, settings: &Settings, snapshot: &Snapshot) -> Option<RequestError> {
    for container in &pod.containers {
        for name in container.limits.keys().chain(container.requests.keys()) {
            let Some(section) = settings.not_enabled.get(name) else {
                continue;
            };
            let nothing = container.amount(name).and_then(Quantity::as_integer) == Some(0);
            if nothing || snapshot.node_count() == 0 || snapshot.offers(name) {
                continue;
            }
            return Some(RequestError::resource(
                &container.name,
                name,
                "cards of this name are not served: no class that is switched on has it, and no node offers it",
                format!(
                    "have it named in section `{section}` of the device configuration, or ask for cards of another maker"
                ),
            ));
        }
    }
    None
}

/// Whether the update of a pod may pass: allocation annotations are written by a scheduler and a node agent, never by
/// the pod's owner, who could book any card with them. Answers the reason against it.
#[must_use]
pub fn refuse_update(
    old: &Value,
    new: &Value,
    user: &str,
    groups: &[String],
    settings: &Settings,
    engine: &Engine,
) -> Option<String> {
    if settings.trusted_users.iter().any(|trusted| trusted == user)
        || groups.iter().any(|group| settings.trusted_groups.contains(group))
    {
        return None;
    }
    let of = |pod: &Value, key: &str| pod["metadata"]["annotations"].get(key).cloned();
    let names = |pod: &Value| -> Vec<String> {
        pod["metadata"]["annotations"]
            .as_object()
            .map(|map| map.keys().cloned().collect())
            .unwrap_or_default()
    };
    names(old)
        .into_iter()
        .chain(names(new))
        .find(|key| is_allocation_key(key, engine) && of(old, key) != of(new, key))
        .map(|key| {
            format!(
                "annotation `{key}` records which cards the pod was given; only the scheduler and the node agent \
                 change it. Delete the pod and create it anew to have other cards"
            )
        })
}

/// Whether what an update wishes of a running pod's shares can be meant. A wish that stays as it was is not looked at.
///
/// # Errors
/// For the user: what is wrong, where, and what to write.
pub fn check_resize(old: &Value, new: &Value) -> Result<(), String> {
    let of = |pod: &Value, key: &str| pod["metadata"]["annotations"].get(key).cloned();
    let changes = |key: &str| of(old, key) != of(new, key);
    if !changes(keys::TESSERA_RESIZE) && !changes(keys::TESSERA_RESIZE_POLICY) {
        return Ok(());
    }
    // What does not read as a pod is the API server's to refuse.
    PodView::from_json(new).map_or(Ok(()), |pod| resize::check_wish(&pod))
}

fn is_allocation_key(key: &str, engine: &Engine) -> bool {
    keys::records_allocation(key)
        || engine
            .vendors()
            .iter()
            .any(|vendor| vendor.keys().allocation().any(|own| own == key))
}

/// A new pod has been given nothing yet: whatever says otherwise is forged or copied from another pod.
fn strip_allocation(view: &PodView, engine: &Engine, change: &mut Change<'_>) {
    for key in view.annotations.keys().filter(|key| is_allocation_key(key, engine)) {
        change.ops.push(PatchOp::Remove {
            path: pointer(&["metadata", "annotations", key]),
        });
        change.warnings.push(format!(
            "annotation `{key}` is removed: it records an allocation, and a new pod has none"
        ));
    }
    if view.labels.contains_key(keys::VGPU_NODE) {
        change.ops.push(PatchOp::Remove {
            path: pointer(&["metadata", "labels", keys::VGPU_NODE]),
        });
    }
}

/// The request as a whole: everything that would make each scheduling attempt fail, or silently mean something else.
fn check_request(pod: &PodView, engine: &Engine, snapshot: &Snapshot) -> Result<Vec<String>, RequestError> {
    let demand = engine.demand(pod)?;
    if demand.is_empty() {
        return Ok(Vec::new());
    }
    check_policies(pod)?;
    let mut warnings = Vec::new();
    for (container, wanted) in pod.containers.iter().zip(&demand.containers) {
        for ask in &wanted.asks {
            let Some(vendor) = engine.vendors().get(&ask.class) else {
                continue;
            };
            check_memory(container, ask, vendor, snapshot)?;
            warnings.extend(warn_ask(container, ask, vendor, &demand, snapshot));
        }
    }
    Ok(warnings)
}

fn check_policies(pod: &PodView) -> Result<(), RequestError> {
    let refuse = |key: &str, word: &str, known: &[&'static str]| {
        let meant = nearest(word, known.iter().copied());
        let next = match meant {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => format!("write {}", known.join(", ")),
        };
        Err(RequestError::annotation(key, format!("`{word}` is not a policy"), next))
    };
    if let Some(text) = pod.annotation(keys::NODE_POLICY).filter(|text| !text.trim().is_empty())
        && NodePolicy::parse(text).is_none()
    {
        return refuse(keys::NODE_POLICY, text.trim(), &NodePolicy::NAMES);
    }
    if let Some(text) = pod.annotation(keys::GPU_POLICY)
        && let (_, unknown) = CardPolicy::parse(text)
        && let Some(word) = unknown.first()
    {
        return refuse(
            keys::GPU_POLICY,
            word,
            &["binpack", "spread", "topology-aware", "mutex", "numa"],
        );
    }
    Ok(())
}

/// Refuses more memory than any card has: `1Gi` is a number, but not the one that was meant.
fn check_memory(
    container: &ContainerView,
    ask: &Ask,
    vendor: &dyn Vendor,
    snapshot: &Snapshot,
) -> Result<(), RequestError> {
    let MemoryAsk::Mib(memory) = ask.memory else {
        return Ok(());
    };
    if memory <= CARD_MEMORY_MAX {
        return Ok(());
    }
    // A card that is registered proves that there are such cards.
    let cards = snapshot.nodes().flat_map(NodeState::cards);
    if cards
        .filter(|card| card.class == ask.class)
        .any(|card| memory <= card.memory)
    {
        return Ok(());
    }
    let names = vendor.names();
    let field = names.memory.as_deref().unwrap_or("memory");
    let unit = match names.factor() {
        1 => "MiB".to_owned(),
        factor => format!("units of {factor} MiB"),
    };
    let written = container.amount(field);
    let meant = written
        .filter(|_| !names.memory_suffix_is_bytes)
        .filter(|quantity| quantity.as_str().ends_with(|c: char| c.is_ascii_alphabetic()))
        .and_then(Quantity::as_integer)
        .map(|bytes| (bytes >> 20) / i64::try_from(names.factor()).unwrap_or(i64::MAX).max(1))
        .filter(|meant| *meant > 0);
    let next = match meant {
        Some(meant) => format!("write {meant}: `{field}` counts {unit}, not bytes"),
        None => format!("`{field}` counts {unit} of each card; write what one card can give"),
    };
    let written = written.map_or_else(|| memory.get().to_string(), ToString::to_string);
    Err(RequestError::resource(
        &container.name,
        field,
        format!("`{written}` means {memory} of each card, more than any card has"),
        next,
    ))
}

fn warn_ask(
    container: &ContainerView,
    ask: &Ask,
    vendor: &dyn Vendor,
    demand: &Demand,
    snapshot: &Snapshot,
) -> Vec<String> {
    let mut warnings = Vec::new();
    let names = vendor.names();
    let name = &container.name;
    if let (Some(_), Some(percent), Some(memory)) = (ask.percent_beside, &names.memory_percent, &names.memory) {
        warnings.push(format!(
            "container `{name}`: `{percent}` has no effect beside `{memory}`; keep one of them"
        ));
    }
    let of_class = || {
        snapshot
            .nodes()
            .flat_map(|node| node.cards())
            .filter(|card| card.class == ask.class)
    };
    if let (Some(cores), Some(card)) = (&names.cores, of_class().next()) {
        let given = vendor.resolve(card, ask).1;
        if given < ask.cores {
            warnings.push(format!(
                "container `{name}`: `{cores}` is {}; one card has {}, so that is what it counts as",
                ask.cores.get(),
                given.get()
            ));
        }
    }
    let most = snapshot.cards_max(&ask.class);
    if usize::try_from(ask.count).unwrap_or(usize::MAX) > most {
        let selection = demand.selection(&ask.class).cloned().unwrap_or_default();
        let count = names.count.as_deref().unwrap_or("the count");
        if most == 0 {
            warnings.push(format!(
                "container `{name}`: no node has {} cards at present; the pod waits for one",
                ask.class
            ));
        } else if !of_class().any(|card| vendor.repeats(card, &selection)) {
            warnings.push(format!(
                "container `{name}`: `{count}` is {}, but no node has more than {most} {} cards; the pod waits for one",
                ask.count, ask.class
            ));
        }
    }
    warnings
}

/// Amounts of no card: the container gets none, which is seldom what they are written for.
fn warn_zero_counts(pod: &PodView, engine: &Engine, warnings: &mut Vec<String>) {
    for container in &pod.containers {
        for vendor in engine.vendors().iter() {
            let names = vendor.names();
            let Some(count) = names.count.as_deref() else { continue };
            let amount = |name: &str| container.amount(name).and_then(Quantity::as_integer);
            if amount(count) != Some(0) {
                continue;
            }
            if let Some(beside) = names
                .managed()
                .find(|name| amount(name).is_some_and(|amount| amount != 0))
            {
                warnings.push(format!(
                    "container `{}`: `{count}` is 0, so `{beside}` has no effect and the container gets no card",
                    container.name
                ));
            }
        }
    }
}

/// What the pod would take out of a quota: sidecars, and the larger of its app containers and its greediest init
/// container. Memory in percent is not known before a card is chosen and counts 0.
fn check_quota(pod: &PodView, namespace: &str, engine: &Engine, snapshot: &Snapshot) -> Result<(), String> {
    #[derive(Default)]
    struct Sums {
        sidecars: u64,
        init_peak: u64,
        apps: u64,
    }
    impl Sums {
        fn add(&mut self, role: ContainerRole, amount: u64) {
            match role {
                ContainerRole::Sidecar => self.sidecars = self.sidecars.saturating_add(amount),
                ContainerRole::Init => self.init_peak = self.init_peak.max(self.sidecars.saturating_add(amount)),
                ContainerRole::App => self.apps = self.apps.saturating_add(amount),
            }
        }
        fn wanted(&self) -> u64 {
            self.init_peak.max(self.sidecars.saturating_add(self.apps))
        }
    }
    for vendor in engine.vendors().iter().filter(|vendor| vendor.rules().quota) {
        let Some(room) = snapshot.room(namespace, vendor.keyword()) else {
            continue;
        };
        let (mut memory, mut cores) = (Sums::default(), Sums::default());
        for container in &pod.containers {
            let Ok(Some(ask)) = vendor.parse(container, pod) else {
                continue;
            };
            let count = u64::from(ask.count);
            if let MemoryAsk::Mib(mib) = ask.memory {
                memory.add(container.role, mib.get().saturating_mul(count));
            }
            cores.add(container.role, u64::from(ask.cores.get()).saturating_mul(count));
        }
        let names = vendor.names();
        for (name, sums, left, factor) in [
            (&names.memory, memory, room.memory, names.factor()),
            (&names.cores, cores, room.cores, 1),
        ] {
            let (Some(name), Some(left)) = (name.as_deref(), left) else {
                continue;
            };
            let wanted = sums.wanted();
            if i128::from(wanted) <= i128::from(left) || wanted == 0 {
                continue;
            }
            let state = snapshot
                .quotas()
                .state(namespace)
                .get(name)
                .copied()
                .unwrap_or_default();
            let limit = state.limit.unwrap_or_default().saturating_mul(factor);
            return Err(format!(
                "exceeding resource quota: namespace `{namespace}` may use {limit} of limits.{name}, {} are in use and \
                 the pod asks for {wanted}; ask for at most {}, or have the quota raised",
                state.used,
                left.max(0)
            ));
        }
    }
    Ok(())
}

/// A key under a prefix that only schedulers read, and that none reads, is a spelling mistake that changes nothing.
fn warn_unknown_annotations(view: &PodView, engine: &Engine, uses_device: bool, change: &mut Change<'_>) {
    if !uses_device {
        return;
    }
    let known: BTreeSet<&str> = keys::USER_KEYS
        .into_iter()
        .chain(
            engine
                .vendors()
                .iter()
                .flat_map(|vendor| vendor.keys().user.iter().map(String::as_str)),
        )
        .collect();
    let prefixes: BTreeSet<&str> = known
        .iter()
        .filter_map(|key| key.split_once('/').map(|(prefix, _)| prefix))
        .collect();
    for key in view.annotations.keys() {
        let Some((prefix, name)) = key.split_once('/') else {
            continue;
        };
        if known.contains(key.as_str()) || is_allocation_key(key, engine) || *key == keys::TESSERA_WAKE {
            continue;
        }
        let ours = key.starts_with(keys::HAMI_PREFIX) || key.starts_with(keys::TESSERA_PREFIX);
        // By what follows the prefix, which all of them have: with it every short name would be near.
        let names = known
            .iter()
            .filter_map(|key| key.strip_prefix(prefix)?.strip_prefix('/'));
        let meant = if ours || prefixes.contains(prefix) {
            nearest(name, names).map(|name| format!("{prefix}/{name}"))
        } else {
            None
        };
        match meant {
            Some(meant) => change
                .warnings
                .push(format!("annotation `{key}` has no effect; did you mean `{meant}`?")),
            None if ours => change
                .warnings
                .push(format!("annotation `{key}` has no effect: no such name is known")),
            None => {}
        }
    }
}

/// Patch and warnings under way.
struct Change<'a> {
    pod: &'a Value,
    ops: Vec<PatchOp>,
    warnings: Vec<String>,
}

impl<'a> Change<'a> {
    fn new(pod: &'a Value) -> Self {
        Self {
            pod,
            ops: Vec::new(),
            warnings: Vec::new(),
        }
    }

    fn allow(self, message: Option<&str>) -> Verdict {
        let Self { ops, mut warnings, .. } = self;
        let mut seen = BTreeSet::new();
        warnings.retain(|warning| seen.insert(warning.clone()));
        Verdict::Allow {
            patch: ops,
            warnings,
            message: message.map(ToOwned::to_owned),
        }
    }

    fn scheduler(&mut self, view: &PodView, name: &str) {
        if view.scheduler_name.as_deref() != Some(name) {
            self.ops.push(PatchOp::Add {
                path: "/spec/schedulerName".to_owned(),
                value: json!(name),
            });
        }
    }

    fn annotations(&mut self, set: &BTreeMap<String, String>) {
        let metadata = &self.pod["metadata"];
        let old = |key: &str| metadata["annotations"][key].as_str();
        let new: BTreeMap<&String, &String> = set.iter().filter(|(key, value)| old(key) != Some(value)).collect();
        if new.is_empty() {
            return;
        }
        if !metadata["annotations"].is_object() {
            self.ops.push(PatchOp::Add {
                path: pointer(&["metadata", "annotations"]),
                value: json!({}),
            });
        }
        for (key, value) in new {
            self.ops.push(PatchOp::Add {
                path: pointer(&["metadata", "annotations", key]),
                value: json!(value),
            });
        }
    }

    /// The edits of one container, as patches of the members that differ.
    fn container(&mut self, list: &str, index: usize, edit: &ContainerEdit<'_>, reserved: &[String]) {
        let raw = &self.pod["spec"][list][index];
        let at = index.to_string();
        let path = |parts: &[&str]| {
            let mut all = vec!["spec", list, at.as_str()];
            all.extend_from_slice(parts);
            pointer(&all)
        };
        for (member, held) in [("limits", &edit.view().limits), ("requests", &edit.view().requests)] {
            for name in edit.removed().iter().filter(|name| held.contains_key(*name)) {
                self.ops.push(PatchOp::Remove {
                    path: path(&["resources", member, name]),
                });
            }
        }
        // What a patch before made counts for the one after.
        let mut has_resources = raw["resources"].is_object();
        for (member, set) in [("limits", edit.limits()), ("requests", edit.requests())] {
            if set.is_empty() {
                continue;
            }
            let amounts: Map<String, Value> = set
                .iter()
                .map(|(name, value)| (name.clone(), json!(value.to_string())))
                .collect();
            if raw["resources"][member].is_object() {
                for (name, value) in amounts {
                    self.ops.push(PatchOp::Add {
                        path: path(&["resources", member, &name]),
                        value,
                    });
                }
            } else if has_resources {
                self.ops.push(PatchOp::Add {
                    path: path(&["resources", member]),
                    value: Value::Object(amounts),
                });
            } else {
                has_resources = true;
                self.ops.push(PatchOp::Add {
                    path: path(&["resources"]),
                    value: json!({member: amounts}),
                });
            }
        }

        let mut gone: BTreeSet<usize> = edit.env().iter().flat_map(|env| env.replaces.iter().copied()).collect();
        for (position, (name, _)) in edit.view().env.iter().enumerate() {
            if reserved.contains(name) && !edit.is_kept(position) && gone.insert(position) {
                self.warnings.push(format!(
                    "container `{}`: environment variable `{name}` is removed: what a container gets of a card is \
                     stated by its resources",
                    edit.view().name
                ));
            }
        }
        for position in gone.iter().rev() {
            self.ops.push(PatchOp::Remove {
                path: path(&["env", &position.to_string()]),
            });
        }
        let added: Vec<Value> = edit
            .env()
            .iter()
            .map(|env| json!({"name": env.name, "value": env.value}))
            .collect();
        if added.is_empty() {
            return;
        }
        if raw["env"].is_array() {
            for value in added {
                self.ops.push(PatchOp::Add {
                    path: path(&["env", "-"]),
                    value,
                });
            }
        } else {
            self.ops.push(PatchOp::Add {
                path: path(&["env"]),
                value: Value::Array(added),
            });
        }
    }
}
