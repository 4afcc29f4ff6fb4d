//! The part of a Pod object that Tessera looks at.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Deserializer};
use tessera_types::{ContainerRole, PodId, PodUid};

use crate::{Quantity, keys, time};

/// The most containers read from one pod, all kinds together.
pub(crate) const CONTAINERS_MAX: usize = 512;

/// A JSON value that is no Pod.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// A member has another shape than the API gives it.
    #[error("the pod does not read: {0}")]
    Shape(#[from] serde_json::Error),
    /// It has more containers than any pod.
    #[error("the pod has more than {CONTAINERS_MAX} containers")]
    TooManyContainers,
}

/// A pod's phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PodPhase {
    /// Not all containers have started.
    #[default]
    Pending,
    /// Bound and started.
    Running,
    /// All containers ended well.
    Succeeded,
    /// All containers ended, one badly.
    Failed,
    /// The node cannot be asked, or a word this version does not know.
    Unknown,
}

impl PodPhase {
    /// The pod's containers have ended and stay ended: it holds nothing.
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

/// The value of an environment variable as the pod states it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnvValue {
    /// A plain text; an absent value is the empty text.
    Text(String),
    /// Read at start from a field, a ConfigMap or a Secret.
    From,
}

/// One container of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerView {
    /// Its name.
    pub name: String,
    /// When it runs.
    pub role: ContainerRole,
    /// `resources.limits`.
    pub limits: BTreeMap<String, Quantity>,
    /// `resources.requests`.
    pub requests: BTreeMap<String, Quantity>,
    /// `env`, in order.
    pub env: Vec<(String, EnvValue)>,
    /// `securityContext.privileged`.
    pub privileged: bool,
}

impl ContainerView {
    /// The quantity of a resource: the limit, or the request where there is no limit.
    #[must_use]
    pub fn amount(&self, resource: &str) -> Option<&Quantity> {
        self.limits.get(resource).or_else(|| self.requests.get(resource))
    }
}

/// One pod. Names are matched exactly as the API writes them; whatever else the object has is not kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodView {
    /// Which. A pod that has no uid yet (at admission) gets `<namespace>/<name>` for one.
    pub id: PodId,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `metadata.annotations`.
    pub annotations: BTreeMap<String, String>,
    /// `spec.schedulerName`.
    pub scheduler_name: Option<String>,
    /// `spec.nodeName`.
    pub node_name: Option<String>,
    /// `spec.runtimeClassName`.
    pub runtime_class: Option<String>,
    /// `spec.priority`.
    pub priority: i32,
    /// `spec.preemptionPolicy` is `Never`.
    pub preemption_policy_never: bool,
    /// `status.phase`.
    pub phase: PodPhase,
    /// `metadata.deletionTimestamp` is set.
    pub deleting: bool,
    /// `metadata.creationTimestamp`, Unix seconds.
    pub created_at: Option<i64>,
    /// `status.startTime`, Unix seconds.
    pub started_at: Option<i64>,
    /// The gang it belongs to, by label or by `spec.schedulingGroup`.
    pub pod_group: Option<String>,
    /// `status.nominatedNodeName`.
    pub nominated_node: Option<String>,
    /// It has init containers, and all that are not sidecars have ended with exit code 0.
    pub init_done: bool,
    /// Its containers in order, init containers (sidecars among them) first.
    pub containers: Vec<ContainerView>,
    /// The condition `Ready` is true.
    pub ready: bool,
    /// When the condition `PodScheduled` last became false, Unix seconds; `None` while it is not false.
    pub scheduled_false_since: Option<i64>,
}

impl PodView {
    /// CPU that it asks for, milli-cores: what its app containers and sidecars ask for together, or its largest init
    /// container with the sidecars before it.
    #[must_use]
    pub fn cpu_milli(&self) -> u32 {
        let (mut running, mut peak) = (0_u32, 0_u32);
        for container in &self.containers {
            let asked = container.requests.get("cpu").or_else(|| container.limits.get("cpu"));
            let cpu = asked.and_then(Quantity::as_milli).unwrap_or(0);
            match container.role {
                ContainerRole::Init => peak = peak.max(running.saturating_add(cpu)),
                ContainerRole::Sidecar | ContainerRole::App => running = running.saturating_add(cpu),
            }
        }
        running.max(peak)
    }

    /// Reads a Pod object.
    ///
    /// # Errors
    /// A member that Tessera reads has another type than the API gives it, or a quantity is none.
    pub fn from_json(pod: &serde_json::Value) -> Result<Self, PodError> {
        Raw::deserialize(pod)?.try_into()
    }

    /// The roles of its containers, in order.
    #[must_use]
    pub fn roles(&self) -> Vec<ContainerRole> {
        self.containers.iter().map(|container| container.role).collect()
    }

    /// An annotation's text.
    #[must_use]
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.get(key).map(String::as_str)
    }
}

impl fmt::Display for PodView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.id.fmt(f)
    }
}

impl<'de> Deserialize<'de> for PodView {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Raw::deserialize(deserializer)?
            .try_into()
            .map_err(serde::de::Error::custom)
    }
}

/// A member that is absent, `null` or a value.
pub(crate) fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default, deserialize_with = "nullable")]
    metadata: RawMeta,
    #[serde(default, deserialize_with = "nullable")]
    spec: RawSpec,
    #[serde(default, deserialize_with = "nullable")]
    status: RawStatus,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawMeta {
    #[serde(deserialize_with = "nullable")]
    name: String,
    #[serde(deserialize_with = "nullable")]
    generate_name: String,
    #[serde(deserialize_with = "nullable")]
    namespace: String,
    #[serde(deserialize_with = "nullable")]
    uid: String,
    #[serde(deserialize_with = "nullable")]
    labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable")]
    annotations: BTreeMap<String, String>,
    deletion_timestamp: Option<String>,
    creation_timestamp: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawSpec {
    #[serde(deserialize_with = "nullable")]
    init_containers: Vec<RawContainer>,
    #[serde(deserialize_with = "nullable")]
    containers: Vec<RawContainer>,
    scheduler_name: Option<String>,
    node_name: Option<String>,
    runtime_class_name: Option<String>,
    priority: Option<i32>,
    preemption_policy: Option<String>,
    scheduling_group: Option<RawGroup>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawGroup {
    pod_group_name: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawContainer {
    #[serde(deserialize_with = "nullable")]
    name: String,
    restart_policy: Option<String>,
    #[serde(deserialize_with = "nullable")]
    resources: RawResources,
    #[serde(deserialize_with = "nullable")]
    env: Vec<RawEnv>,
    #[serde(deserialize_with = "nullable")]
    security_context: RawSecurity,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawResources {
    #[serde(deserialize_with = "nullable")]
    limits: BTreeMap<String, Quantity>,
    #[serde(deserialize_with = "nullable")]
    requests: BTreeMap<String, Quantity>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawEnv {
    #[serde(deserialize_with = "nullable")]
    name: String,
    value: Option<String>,
    value_from: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawSecurity {
    #[serde(deserialize_with = "nullable")]
    privileged: bool,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawStatus {
    phase: Option<String>,
    start_time: Option<String>,
    nominated_node_name: Option<String>,
    #[serde(deserialize_with = "nullable")]
    init_container_statuses: Vec<RawContainerStatus>,
    #[serde(deserialize_with = "nullable")]
    conditions: Vec<RawCondition>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawContainerStatus {
    #[serde(deserialize_with = "nullable")]
    name: String,
    #[serde(deserialize_with = "nullable")]
    state: RawState,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawState {
    terminated: Option<RawTerminated>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawTerminated {
    #[serde(deserialize_with = "nullable")]
    exit_code: i64,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct RawCondition {
    #[serde(rename = "type", deserialize_with = "nullable")]
    kind: String,
    #[serde(deserialize_with = "nullable")]
    status: String,
    last_transition_time: Option<String>,
}

fn filled(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

fn container(raw: RawContainer, role: ContainerRole) -> ContainerView {
    ContainerView {
        name: raw.name,
        role,
        limits: raw.resources.limits,
        requests: raw.resources.requests,
        env: raw
            .env
            .into_iter()
            .map(|env| {
                let value = match env.value_from {
                    Some(_) => EnvValue::From,
                    None => EnvValue::Text(env.value.unwrap_or_default()),
                };
                (env.name, value)
            })
            .collect(),
        privileged: raw.security_context.privileged,
    }
}

impl TryFrom<Raw> for PodView {
    type Error = PodError;

    fn try_from(raw: Raw) -> Result<Self, PodError> {
        let Raw { metadata, spec, status } = raw;
        let name = if metadata.name.is_empty() {
            metadata.generate_name
        } else {
            metadata.name
        };
        let uid = PodUid::new(&metadata.uid)
            .or_else(|_| PodUid::new(format!("{}/{name}", metadata.namespace)))
            .expect("`<namespace>/<name>` has at least its slash");
        let containers: Vec<ContainerView> = spec
            .init_containers
            .into_iter()
            .map(|raw| {
                let sidecar = raw.restart_policy.as_deref() == Some("Always");
                container(
                    raw,
                    if sidecar {
                        ContainerRole::Sidecar
                    } else {
                        ContainerRole::Init
                    },
                )
            })
            .chain(
                spec.containers
                    .into_iter()
                    .map(|raw| container(raw, ContainerRole::App)),
            )
            .collect();
        if containers.len() > CONTAINERS_MAX {
            return Err(PodError::TooManyContainers);
        }
        let mut init = containers
            .iter()
            .filter(|container| container.role == ContainerRole::Init)
            .peekable();
        let init_done = init.peek().is_some()
            && init.all(|container| {
                status
                    .init_container_statuses
                    .iter()
                    .filter(|status| status.name == container.name)
                    .any(|status| {
                        status
                            .state
                            .terminated
                            .as_ref()
                            .is_some_and(|ended| ended.exit_code == 0)
                    })
            });
        let pod_group = filled(metadata.labels.get(keys::POD_GROUP_LABEL).cloned())
            .or_else(|| filled(spec.scheduling_group.and_then(|group| group.pod_group_name)));
        let ready = status
            .conditions
            .iter()
            .any(|condition| condition.kind == "Ready" && condition.status == "True");
        let seconds = |text: Option<String>| text.as_deref().and_then(time::parse_rfc3339);
        Ok(Self {
            id: PodId {
                namespace: metadata.namespace,
                name,
                uid,
            },
            labels: metadata.labels,
            annotations: metadata.annotations,
            scheduler_name: filled(spec.scheduler_name),
            node_name: filled(spec.node_name),
            ready,
            runtime_class: filled(spec.runtime_class_name),
            priority: spec.priority.unwrap_or(0),
            preemption_policy_never: spec.preemption_policy.as_deref() == Some("Never"),
            phase: match status.phase.as_deref() {
                None | Some("" | "Pending") => PodPhase::Pending,
                Some("Running") => PodPhase::Running,
                Some("Succeeded") => PodPhase::Succeeded,
                Some("Failed") => PodPhase::Failed,
                Some(_) => PodPhase::Unknown,
            },
            deleting: metadata.deletion_timestamp.is_some(),
            created_at: seconds(metadata.creation_timestamp),
            started_at: seconds(status.start_time),
            pod_group,
            nominated_node: filled(status.nominated_node_name),
            init_done,
            containers,
            scheduled_false_since: status
                .conditions
                .into_iter()
                .find(|condition| condition.kind == "PodScheduled" && condition.status == "False")
                .and_then(|condition| seconds(condition.last_transition_time)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn reads_what_matters_and_tolerates_the_rest() {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "namespace": "ns", "uid": "u", "labels": null, "deletionTimestamp": "2024-01-01T00:00:00Z",
                "annotations": {"a": "b"}, "creationTimestamp": "2024-01-12T10:00:00Z", "future": {"x": 1}},
            "spec": {"schedulerName": "hami-scheduler", "priority": 7, "preemptionPolicy": "Never",
                "initContainers": [
                    {"name": "s", "restartPolicy": "Always", "resources": {"limits": {"nvidia.com/gpu": 1}}},
                    {"name": "i", "resources": {}}],
                "containers": [{"name": "c", "resources": {"requests": {"cpu": "100m"}},
                    "env": [{"name": "A", "value": "b"}, {"name": "B", "valueFrom": {"fieldRef": {}}}, {"name": "C"}],
                    "securityContext": {"privileged": true}}]},
            "status": {"phase": "Running",
                "initContainerStatuses": [{"name": "s", "state": {"running": {}}}, {"name": "i", "state": {"terminated": {"exitCode": 0}}}],
                "conditions": [{"type": "PodScheduled", "status": "False", "lastTransitionTime": "2024-01-12T10:00:00Z"}]}
        });
        let view = PodView::from_json(&pod).unwrap();
        assert_eq!(
            view.roles(),
            [ContainerRole::Sidecar, ContainerRole::Init, ContainerRole::App]
        );
        assert!(view.init_done && view.deleting && view.preemption_policy_never);
        assert_eq!(view.scheduled_false_since, Some(1_705_053_600));
        assert_eq!(
            view.containers[0].amount("nvidia.com/gpu").unwrap().as_integer(),
            Some(1)
        );
        assert_eq!(view.containers[2].env[1], ("B".to_owned(), EnvValue::From));
        assert_eq!(
            view.containers[2].env[2],
            ("C".to_owned(), EnvValue::Text(String::new()))
        );
        assert!(view.containers[2].privileged);
    }

    #[test]
    fn an_init_container_that_failed_or_runs_is_not_done() {
        for state in [
            json!({"terminated": {"exitCode": 1}}),
            json!({"running": {}}),
            json!({}),
        ] {
            let pod = json!({"spec": {"initContainers": [{"name": "i"}]}, "status": {"initContainerStatuses": [{"name": "i", "state": state}]}});
            assert!(!PodView::from_json(&pod).unwrap().init_done);
        }
    }

    #[test]
    fn member_names_are_exact_and_shapes_are_checked() {
        let pod = json!({"metadata": {"Name": "p"}, "spec": {}});
        assert_eq!(PodView::from_json(&pod).unwrap().id.name, "");
        assert!(PodView::from_json(&json!({"spec": {"containers": "x"}})).is_err());
        assert!(
            PodView::from_json(&json!({"spec": {"containers": [{"resources": {"limits": {"cpu": "lots"}}}]}})).is_err()
        );
    }

    #[test]
    fn cpu_is_what_the_pod_needs_at_its_widest_moment() {
        let cpu = |init: serde_json::Value, apps: serde_json::Value| {
            let pod = json!({"spec": {"initContainers": init, "containers": apps}});
            PodView::from_json(&pod).unwrap().cpu_milli()
        };
        let container = |cpu: &str| json!({"name": "c", "resources": {"requests": {"cpu": cpu}}});
        assert_eq!(cpu(json!([]), json!([container("500m"), container("2")])), 2500);
        assert_eq!(cpu(json!([container("4")]), json!([container("500m")])), 4000);
        let mut sidecar = container("1");
        sidecar["restartPolicy"] = json!("Always");
        assert_eq!(cpu(json!([sidecar, container("4")]), json!([container("500m")])), 5000);
        assert_eq!(
            cpu(json!([]), json!([{"name": "c", "resources": {"limits": {"cpu": "3"}}}])),
            3000
        );
        assert_eq!(cpu(json!([]), json!([{"name": "c"}])), 0);
    }
}
