//! `tessera dump`: writes what decisions about cards depend on, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use serde_json::Value;
use tessera_engine::{Vendors, World};
use tessera_kube::{Client, ClientSettings, list};
use tessera_wire::{NodeView, PodView, keys};

use crate::classes::ClassArgs;
use crate::format::{Dump, DumpContainer, DumpNode, DumpPod, FORMAT, Taint, Toleration};
use crate::mask::Mask;

/// A label that says which machine a node is; a device class reads it.
const INSTANCE_TYPE: &str = "node.kubernetes.io/instance-type";
/// An annotation by which a pod asks to be left where it is.
const SAFE_TO_EVICT: &str = "cluster-autoscaler.kubernetes.io/safe-to-evict";
/// What to look at when the cluster cannot be read.
pub(crate) const UNREAD: &str = "the cluster cannot be read; look at --kubeconfig or $KUBECONFIG, and at the right to list \
                                 nodes and pods";
const MIRROR: &str = "kubernetes.io/config.mirror";

/// Arguments of `tessera dump`.
#[derive(Debug, Clone, clap::Args)]
pub struct DumpArgs {
    /// The cluster; $KUBECONFIG, ~/.kube/config or the pod's own account if not given
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Replace names of nodes, namespaces and pods, and ids of cards; the same name is replaced by the same every time
    #[arg(long)]
    pub mask_names: bool,
    /// Write to this file instead of standard output
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Device classes
    #[command(flatten)]
    pub classes: ClassArgs,
}

/// Runs the command.
///
/// # Errors
/// The API server cannot be reached or refuses, or the file cannot be written.
pub async fn dump(args: DumpArgs) -> Result<()> {
    let vendors = args.classes.load()?;
    let client = client(args.kubeconfig.clone()).await?;
    let (mut dump, unreadable) = collect(&client, &vendors).await.context(UNREAD)?;
    for line in &unreadable {
        drop(writeln!(std::io::stderr(), "left out: {line}"));
    }
    if args.mask_names {
        // The id of a namespace that every cluster has: whoever only has the dump cannot try names out.
        let system = list::get(&client, "/api/v1/namespaces/kube-system").await;
        let system = system.context("reading the cluster's own id, which names are masked with")?;
        let key = system
            .pointer("/metadata/uid")
            .and_then(Value::as_str)
            .unwrap_or_default();
        mask(&mut dump, &vendors, key)?;
    }
    let text = serde_json::to_string_pretty(&dump).context("writing JSON")? + "\n";
    match &args.out {
        Some(path) => std::fs::write(path, text).with_context(|| format!("writing {}", path.display())),
        None => {
            // A reader that went away is no error.
            drop(std::io::stdout().write_all(text.as_bytes()));
            Ok(())
        }
    }
}

pub(crate) async fn client(kubeconfig: Option<PathBuf>) -> Result<Client> {
    let settings = ClientSettings {
        kubeconfig,
        ..ClientSettings::default()
    };
    Ok(tessera_kube::connect(&settings).await?)
}

/// Reads the cluster. Gives the dump, and what could not be read, a line each.
///
/// # Errors
/// The API server cannot be asked or refuses.
pub async fn collect(client: &Client, vendors: &Arc<Vendors>) -> Result<(Dump, Vec<String>)> {
    let keep = Kept::new(vendors);
    let mut unreadable = Vec::new();
    let mut world = World::new(Arc::clone(vendors));
    let mut nodes = Vec::new();
    list::each(client, "/api/v1/nodes", |object| match NodeView::from_json(object) {
        Ok(view) => {
            world.set_node(&view);
            nodes.push((keep.node(&view, object), view.labels));
        }
        Err(error) => unreadable.push(format!("node {}: {error}", name(object))),
    })
    .await?;
    let snapshot = world.snapshot();
    let with_cards = |name: &str| snapshot.node(name).is_some_and(|node| !node.cards().is_empty());
    nodes.retain(|(node, _)| with_cards(&node.name));
    let local = local_claims(client).await;
    let mut pods = Vec::new();
    list::each(client, "/api/v1/pods", |object| match PodView::from_json(object) {
        Ok(view) => {
            let here = view.node_name.as_deref().is_some_and(with_cards);
            let asks = view.containers.iter().any(|container| {
                let names = || container.limits.keys().chain(container.requests.keys());
                names().any(|name| vendors.manages(name))
            });
            if !view.phase.is_terminal() && (here || (asks && view.node_name.is_none())) {
                pods.push(keep.pod(&view, object, &local));
            }
        }
        Err(error) => unreadable.push(format!("pod {}: {error}", name(object))),
    })
    .await?;
    let selected: BTreeSet<&str> = pods
        .iter()
        .flat_map(|pod: &DumpPod| pod.node_selector.keys())
        .map(String::as_str)
        .collect();
    for (node, labels) in &mut nodes {
        let labels = labels.iter().filter(|(key, _)| selected.contains(key.as_str()));
        node.labels
            .extend(labels.map(|(key, value)| (key.clone(), value.clone())));
    }
    let mut nodes: Vec<DumpNode> = nodes.into_iter().map(|(node, _)| node).collect();
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    pods.sort_by(|a, b| (a.created, &a.namespace, &a.name).cmp(&(b.created, &b.namespace, &b.name)));
    let dump = Dump {
        format: FORMAT.to_owned(),
        masked: false,
        nodes,
        pods,
    };
    Ok((dump, unreadable))
}

fn name(object: &Value) -> String {
    let part = |key: &str| object.pointer(&format!("/metadata/{key}")).and_then(Value::as_str);
    let name = part("name").unwrap_or("without a name");
    part("namespace").map_or_else(|| name.to_owned(), |space| format!("{space}/{name}"))
}

/// Claims whose volume is on one machine, as namespace and name; `None` if volumes may not be read.
async fn local_claims(client: &Client) -> Option<BTreeSet<(String, String)>> {
    let mut local = BTreeSet::new();
    let text = |object: &Value, path: &str| object.pointer(path).and_then(Value::as_str).map(str::to_owned);
    let listed = list::each(client, "/api/v1/persistentvolumes", |volume| {
        let bound_to_node = ["local", "hostPath", "nodeAffinity"]
            .iter()
            .any(|kind| volume.pointer(&format!("/spec/{kind}")).is_some());
        if bound_to_node
            && let Some(namespace) = text(volume, "/spec/claimRef/namespace")
            && let Some(claim) = text(volume, "/spec/claimRef/name")
        {
            local.insert((namespace, claim));
        }
    });
    listed.await.ok()?;
    Some(local)
}

/// What is kept of objects.
struct Kept {
    /// Domains of the names of the device classes, with their slash.
    domains: BTreeSet<String>,
    names: BTreeSet<String>,
}

impl Kept {
    fn new(vendors: &Vendors) -> Self {
        let mut domains: BTreeSet<String> = [keys::HAMI_PREFIX, keys::TESSERA_PREFIX].map(str::to_owned).into();
        let mut names = BTreeSet::new();
        for vendor in vendors {
            let managed = vendor.names().managed().filter_map(|name| name.split_once('/'));
            domains.extend(managed.map(|(domain, _)| format!("{domain}/")));
            let keys = vendor.keys();
            let of_nodes = [&keys.register, &keys.handshake, &keys.scores];
            names.extend(of_nodes.into_iter().flatten().cloned());
            names.extend(keys.allocation().map(str::to_owned));
            names.extend(keys.user.iter().cloned());
        }
        Self { domains, names }
    }

    fn has(&self, key: &str) -> bool {
        key != keys::NODE_LOCK
            && (self.names.contains(key) || self.domains.iter().any(|domain| key.starts_with(domain.as_str())))
    }

    fn annotations(&self, all: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        let kept = all.iter().filter(|(key, _)| self.has(key));
        kept.map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    fn node(&self, view: &NodeView, object: &Value) -> DumpNode {
        let amounts = |of: &BTreeMap<String, tessera_wire::Quantity>| {
            let kept = of.iter().filter(|(name, _)| is_kept_amount(name));
            kept.map(|(name, amount)| (name.clone(), amount.as_str().to_owned()))
                .collect()
        };
        let labels = view
            .labels
            .iter()
            .filter(|(key, _)| *key == INSTANCE_TYPE || self.has(key));
        let taints = object
            .pointer("/spec/taints")
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        let text = |taint: &Value, key: &str| taint.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let taints = taints.map(|taint| Taint {
            key: text(taint, "key"),
            value: text(taint, "value"),
            effect: text(taint, "effect"),
        });
        DumpNode {
            name: view.name.to_string(),
            annotations: self.annotations(&view.annotations),
            labels: labels.map(|(key, value)| (key.clone(), value.clone())).collect(),
            allocatable: amounts(&view.allocatable),
            capacity: amounts(&view.capacity),
            unschedulable: view.unschedulable,
            taints: taints.filter(|taint| taint.effect != "PreferNoSchedule").collect(),
        }
    }

    fn pod(&self, view: &PodView, object: &Value, local: &Option<BTreeSet<(String, String)>>) -> DumpPod {
        let amounts = |of: &BTreeMap<String, tessera_wire::Quantity>| {
            let kept = of.iter().filter(|(name, _)| is_kept_amount(name));
            kept.map(|(name, amount)| (name.clone(), amount.as_str().to_owned()))
                .collect()
        };
        let list = |path: &str| object.pointer(path).and_then(Value::as_array).into_iter().flatten();
        let selector = object
            .pointer("/spec/nodeSelector")
            .and_then(Value::as_object)
            .into_iter()
            .flatten();
        let selector = selector.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned()));
        let text = |of: &Value, key: &str| of.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let tolerations = list("/spec/tolerations").map(|of| Toleration {
            key: text(of, "key"),
            operator: text(of, "operator"),
            value: text(of, "value"),
            effect: text(of, "effect"),
        });
        DumpPod {
            namespace: view.id.namespace.clone(),
            name: view.id.name.clone(),
            uid: view.id.uid.to_string(),
            node: view.node_name.clone(),
            priority: view.priority,
            created: view.created_at.unwrap_or(0),
            deleting: view.deleting,
            init_done: view.init_done,
            annotations: self.annotations(&view.annotations),
            node_selector: selector.collect(),
            tolerations: tolerations.collect(),
            stays: stays(view, object, local),
            containers: view
                .containers
                .iter()
                .map(|container| DumpContainer {
                    role: container.role,
                    limits: amounts(&container.limits),
                    requests: amounts(&container.requests),
                })
                .collect(),
        }
    }
}

/// CPU, memory, and whatever a device plugin could give.
fn is_kept_amount(name: &str) -> bool {
    matches!(name, "cpu" | "memory" | "pods") || name.contains('/')
}

/// Why the pod cannot be made again on another node, as a clause; `None` if it can.
fn stays(view: &PodView, object: &Value, local: &Option<BTreeSet<(String, String)>>) -> Option<String> {
    let has = |path: &str| object.pointer(path).is_some_and(|value| !value.is_null());
    let list = |path: &str| object.pointer(path).and_then(Value::as_array).into_iter().flatten();
    let reason = |text: &str| Some(text.to_owned());
    if view.deleting {
        return reason("it is being deleted");
    }
    let owner = list("/metadata/ownerReferences").find(|owner| owner.get("controller") == Some(&Value::Bool(true)));
    let owner = owner.and_then(|owner| owner.get("kind")).and_then(Value::as_str);
    if view.annotations.contains_key(MIRROR) || owner == Some("Node") {
        return reason("the kubelet runs it from a file of its node");
    }
    match owner {
        Some("DaemonSet") => return reason("a DaemonSet runs it on this node"),
        Some(_) => {}
        None => return reason("no controller would make it again"),
    }
    if view
        .annotations
        .get(SAFE_TO_EVICT)
        .is_some_and(|value| value == "false")
    {
        return reason("its annotation `cluster-autoscaler.kubernetes.io/safe-to-evict` is `false`");
    }
    if view.pod_group.is_some() {
        return reason("it is part of a gang, which would stop as a whole");
    }
    if list("/spec/resourceClaims").next().is_some() {
        return reason("it has resource claims, which may belong to this node");
    }
    for volume in list("/spec/volumes") {
        if volume.get("hostPath").is_some() {
            return reason("it mounts a folder of this node");
        }
        let Some(claim) = volume
            .pointer("/persistentVolumeClaim/claimName")
            .and_then(Value::as_str)
        else {
            continue;
        };
        let key = (view.id.namespace.clone(), claim.to_owned());
        match local {
            None => return reason("it has volume claims, and whether they are local may not be read"),
            Some(local) if local.contains(&key) => return reason("it has a volume claim that is local to this node"),
            Some(_) => {}
        }
    }
    const ON_NODES: &str = "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution";
    const ON_PODS: &str = "/spec/affinity/podAffinity/requiredDuringSchedulingIgnoredDuringExecution";
    const OFF_PODS: &str = "/spec/affinity/podAntiAffinity/requiredDuringSchedulingIgnoredDuringExecution";
    let hard_spread = list("/spec/topologySpreadConstraints")
        .any(|rule| rule.get("whenUnsatisfiable").and_then(Value::as_str) == Some("DoNotSchedule"));
    if has(ON_NODES) || has(ON_PODS) || has(OFF_PODS) || hard_spread {
        return reason("it has affinity or spread rules, which only kube-scheduler can judge");
    }
    let ports = list("/spec/containers").flat_map(|container| container.get("ports").and_then(Value::as_array));
    if ports.flatten().any(|port| port.get("hostPort").is_some()) {
        return reason("it uses a port of this node");
    }
    None
}

/// Replaces names. The order of nodes by name, which decides between equal scores, becomes another one.
///
/// # Errors
/// A quantity or a name in the dump is none.
pub fn mask(dump: &mut Dump, vendors: &Arc<Vendors>, key: &str) -> Result<()> {
    let mut mask = Mask::new(key);
    let mut world = World::new(Arc::clone(vendors));
    for node in &dump.nodes {
        world.set_node(&node.view()?);
    }
    for pod in &dump.pods {
        world.set_pod(&pod.view()?);
    }
    let snapshot = world.snapshot();
    for card in snapshot.nodes().flat_map(tessera_engine::NodeState::cards) {
        mask.card(card.id.as_str());
    }
    for booking in snapshot.bookings() {
        for (card, ..) in booking.usage() {
            mask.card(card.as_str());
        }
    }
    for node in &mut dump.nodes {
        node.name = mask.name("node", &node.name);
    }
    for pod in &mut dump.pods {
        pod.node = pod.node.as_deref().map(|node| mask.name("node", node));
        pod.namespace = mask.name("ns", &pod.namespace);
        pod.name = mask.name("pod", &pod.name);
        pod.uid = mask.name("uid", &pod.uid);
    }
    for node in &mut dump.nodes {
        let ids = |key: &str| key == keys::DEVICE_CORDON;
        mask_annotations(&mut node.annotations, &mut mask, ids);
        let texts = node
            .labels
            .values_mut()
            .chain(node.taints.iter_mut().map(|taint| &mut taint.value));
        texts.for_each(|text| *text = mask.text(text));
    }
    for pod in &mut dump.pods {
        mask_annotations(&mut pod.annotations, &mut mask, |key| key.ends_with("uuid"));
        let texts = pod.node_selector.values_mut();
        let texts = texts.chain(pod.tolerations.iter_mut().map(|toleration| &mut toleration.value));
        texts.for_each(|text| *text = mask.text(text));
    }
    dump.masked = true;
    Ok(())
}

/// `ids`: whether a key's value is a list of ids, of cards that may be gone.
fn mask_annotations(annotations: &mut BTreeMap<String, String>, mask: &mut Mask, ids: impl Fn(&str) -> bool) {
    for (key, value) in annotations {
        *value = if ids(key) {
            let masked = value.split(',').map(|id| mask.card(id.trim()));
            masked.collect::<Vec<_>>().join(",")
        } else {
            mask.text(value)
        };
    }
}
