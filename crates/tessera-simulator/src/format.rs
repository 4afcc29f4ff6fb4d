//! The file of a dump: a cluster at one moment, as far as decisions about cards depend on it.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use tessera_types::{ContainerRole, NodeName, PodId, PodUid};
use tessera_wire::{ContainerView, NodeView, PodPhase, PodView, Quantity};

/// The value of `format` in a dump that this version writes and reads.
pub const FORMAT: &str = "tessera-dump/1";

/// A cluster at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dump {
    /// [`FORMAT`].
    pub format: String,
    /// Whether names stand for others.
    #[serde(default)]
    pub masked: bool,
    /// Nodes with cards.
    pub nodes: Vec<DumpNode>,
    /// Pods on these nodes, and pods that wait for cards.
    pub pods: Vec<DumpPod>,
}

/// A node with cards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DumpNode {
    /// Its name.
    pub name: String,
    /// Annotations that tell of cards.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// Labels that a device class reads or a pod selects by.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// `status.allocatable`.
    #[serde(default)]
    pub allocatable: BTreeMap<String, String>,
    /// `status.capacity`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub capacity: BTreeMap<String, String>,
    /// Takes no new pods.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unschedulable: bool,
    /// Taints that keep pods away.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taints: Vec<Taint>,
}

/// A taint of effect `NoSchedule` or `NoExecute`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Taint {
    /// Key.
    pub key: String,
    /// Value; may be empty.
    #[serde(default)]
    pub value: String,
    /// Effect.
    pub effect: String,
}

/// A toleration of a pod, as the API writes it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Toleration {
    /// Key; empty for every key.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub key: String,
    /// `Exists`, or `Equal` if empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub operator: String,
    /// Value under `Equal`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub value: String,
    /// Effect; empty for every effect.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub effect: String,
}

/// A pod that has not ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DumpPod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Tells it apart.
    pub uid: String,
    /// The node that it is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Its priority.
    #[serde(default)]
    pub priority: i32,
    /// When it was made, seconds since 1970.
    #[serde(default)]
    pub created: i64,
    /// It is being deleted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deleting: bool,
    /// Its init containers have ended.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub init_done: bool,
    /// Annotations that say which cards it wants and has.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Labels that a node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that it bears.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
    /// Why it cannot be made again on another node; absent if it can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stays: Option<String>,
    /// Its containers, init containers first.
    pub containers: Vec<DumpContainer>,
}

/// What a container asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DumpContainer {
    /// When it runs.
    pub role: ContainerRole,
    /// `resources.limits`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<String, String>,
    /// `resources.requests`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub requests: BTreeMap<String, String>,
}

impl Dump {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, is no JSON or no dump (with line and column), or is of another format.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("{} is no dump that can be used", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Head {
            format: Option<String>,
        }
        const NEXT: &str = "write one with `tessera dump > FILE`";
        // The format first: what another format holds would read like a mistake.
        let head: Head = serde_json::from_str(text).with_context(|| format!("it is not JSON; {NEXT}"))?;
        match head.format.as_deref() {
            Some(FORMAT) => {}
            Some(other) => bail!("`format` is `{other}`, and this version reads `{FORMAT}`; {NEXT} by this version"),
            None => bail!("`format` is missing; {NEXT}"),
        }
        let dump: Self =
            serde_json::from_str(text).with_context(|| format!("a member is not what it should be; {NEXT}"))?;
        ensure!(!dump.nodes.is_empty(), "`nodes` is empty: no node has cards");
        Ok(dump)
    }
}

fn quantities(of: &str, texts: &BTreeMap<String, String>) -> Result<BTreeMap<String, Quantity>> {
    let read = |(name, text): (&String, &String)| {
        let quantity = Quantity::parse(text)
            .with_context(|| format!("{of}: `{name}`; write it as Kubernetes does, such as `4`, `1500m` or `16Gi`"))?;
        Ok((name.clone(), quantity))
    };
    texts.iter().map(read).collect()
}

impl DumpNode {
    /// As decisions see it.
    ///
    /// # Errors
    /// The name is none, or a quantity is none.
    pub fn view(&self) -> Result<NodeView> {
        let of = format!("node {}", self.name);
        Ok(NodeView {
            name: NodeName::new(&self.name).with_context(|| format!("node `{}`", self.name))?,
            labels: self.labels.clone(),
            annotations: self.annotations.clone(),
            capacity: quantities(&of, &self.capacity)?,
            allocatable: quantities(&of, &self.allocatable)?,
            unschedulable: self.unschedulable,
        })
    }
}

impl DumpPod {
    /// As decisions see it.
    ///
    /// # Errors
    /// The uid is empty, or a quantity is none.
    pub fn view(&self) -> Result<PodView> {
        let of = format!("pod {}/{}", self.namespace, self.name);
        let containers = self.containers.iter().enumerate().map(|(at, container)| {
            Ok(ContainerView {
                name: format!("c{at}"),
                role: container.role,
                limits: quantities(&of, &container.limits)?,
                requests: quantities(&of, &container.requests)?,
                env: Vec::new(),
                privileged: false,
            })
        });
        Ok(PodView {
            id: PodId {
                namespace: self.namespace.clone(),
                name: self.name.clone(),
                uid: PodUid::new(&self.uid).with_context(|| format!("{of}: `uid`"))?,
            },
            labels: BTreeMap::new(),
            annotations: self.annotations.clone(),
            scheduler_name: None,
            node_name: self.node.clone(),
            runtime_class: None,
            priority: self.priority,
            preemption_policy_never: false,
            phase: if self.node.is_some() {
                PodPhase::Running
            } else {
                PodPhase::Pending
            },
            deleting: self.deleting,
            created_at: Some(self.created),
            started_at: None,
            pod_group: None,
            nominated_node: None,
            init_done: self.init_done,
            containers: containers.collect::<Result<_>>()?,
            ready: false,
            scheduled_false_since: None,
        })
    }

    /// Whether kube-scheduler would let the pod onto the node: taints, the node's own switch, the pod's node selector.
    /// Room is not looked at.
    #[must_use]
    pub fn may_be_on(&self, node: &DumpNode) -> bool {
        let tolerated = |taint: &Taint| {
            self.tolerations.iter().any(|toleration| {
                (toleration.key.is_empty() || toleration.key == taint.key)
                    && (toleration.operator == "Exists" || toleration.value == taint.value)
                    && (toleration.effect.is_empty() || toleration.effect == taint.effect)
            })
        };
        !node.unschedulable
            && node.taints.iter().all(tolerated)
            && self
                .node_selector
                .iter()
                .all(|(key, value)| node.labels.get(key) == Some(value))
    }
}

/// Memory that the containers of a pod ask for, MiB, as [`PodView::cpu_milli`] counts CPU.
pub(crate) fn memory_mib(pod: &PodView) -> u32 {
    let (mut running, mut peak) = (0_u64, 0_u64);
    for container in &pod.containers {
        let asked = container
            .requests
            .get("memory")
            .or_else(|| container.limits.get("memory"));
        let bytes = asked.map_or(0, mib);
        match container.role {
            ContainerRole::Init => peak = peak.max(running.saturating_add(bytes)),
            ContainerRole::Sidecar | ContainerRole::App => running = running.saturating_add(bytes),
        }
    }
    u32::try_from(running.max(peak)).unwrap_or(u32::MAX)
}

/// A quantity of bytes in MiB, rounded up; 0 for what is none.
fn mib(quantity: &Quantity) -> u64 {
    let bytes = quantity.as_integer().and_then(|bytes| u64::try_from(bytes).ok());
    bytes.unwrap_or(0).div_ceil(1 << 20)
}

/// What a node can give: CPU in milli-cores, memory in MiB. As much as can be where the node does not say.
pub(crate) fn room(node: &NodeView) -> (u32, u32) {
    let cpu = node.allocatable.get("cpu").and_then(Quantity::as_milli);
    let memory = node.allocatable.get("memory").map(|quantity| {
        let bytes = quantity.as_integer().and_then(|bytes| u64::try_from(bytes).ok());
        u32::try_from(bytes.unwrap_or(0) >> 20).unwrap_or(u32::MAX)
    });
    (cpu.unwrap_or(u32::MAX), memory.unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_error(text: &str) -> String {
        format!("{:#}", Dump::parse(text).unwrap_err())
    }

    #[test]
    fn what_is_no_dump_is_told_with_its_place() {
        assert!(parse_error("nodes: []").contains("line 1 column"));
        assert!(parse_error("{}").contains("`format` is missing"));
        assert!(parse_error("{\"format\": \"tessera-dump/9\", \"new\": 1}").contains("`tessera-dump/9`"));
        let text = "{\"format\": \"tessera-dump/1\",\n \"nodes\": [{\"nme\": \"n\"}], \"pods\": []}";
        let error = parse_error(text);
        assert!(
            error.contains("unknown field `nme`") && error.contains("line 2 column"),
            "{error}"
        );
        assert!(
            parse_error("{\"format\": \"tessera-dump/1\", \"nodes\": [], \"pods\": []}").contains("no node has cards")
        );
    }

    #[test]
    fn taints_and_selectors_keep_pods_away() {
        let node = DumpNode {
            name: "n".to_owned(),
            annotations: BTreeMap::new(),
            labels: BTreeMap::from([("pool".to_owned(), "a".to_owned())]),
            allocatable: BTreeMap::new(),
            capacity: BTreeMap::new(),
            unschedulable: false,
            taints: vec![Taint {
                key: "gpu".to_owned(),
                value: "yes".to_owned(),
                effect: "NoSchedule".to_owned(),
            }],
        };
        let mut pod: DumpPod =
            serde_json::from_str("{\"namespace\": \"ns\", \"name\": \"p\", \"uid\": \"u\", \"containers\": []}")
                .unwrap();
        assert!(!pod.may_be_on(&node));
        pod.tolerations.push(Toleration {
            key: "gpu".to_owned(),
            operator: "Exists".to_owned(),
            ..Toleration::default()
        });
        assert!(pod.may_be_on(&node));
        pod.node_selector.insert("pool".to_owned(), "b".to_owned());
        assert!(!pod.may_be_on(&node));
    }
}
