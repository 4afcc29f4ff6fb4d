//! Whether our own node agents are up, as their pods say.
//!
//! When an agent dies, the kubelet lowers the node's allocatable count only seconds later, and a pod that is bound in
//! between fails at its start. The readiness of the agent's pod tells earlier.

use std::collections::{HashMap, HashSet};

use tessera_types::{NodeName, PodUid};
use tessera_wire::{PodView, keys};

/// Why a class that our agent serves takes no new work.
pub(crate) const NOT_READY: &str = "its node agent is not ready";

/// Agent pods by node. A node stays once a pod was seen there: only then does a missing pod mean anything.
#[derive(Debug, Default)]
pub(crate) struct Agents {
    pods: HashMap<NodeName, HashMap<PodUid, bool>>,
    homes: HashMap<PodUid, NodeName>,
    down: HashSet<NodeName>,
}

impl Agents {
    /// Takes a pod as it is now. Answers the node whose agent it is, if it is one.
    pub(crate) fn see(&mut self, pod: &PodView) -> Option<NodeName> {
        if pod.labels.get(keys::TESSERA_COMPONENT).map(String::as_str) != Some(keys::COMPONENT_AGENT) {
            return None;
        }
        let node = NodeName::new(pod.node_name.as_deref()?).ok()?;
        let ready = pod.ready && !pod.deleting && !pod.phase.is_terminal();
        self.homes.insert(pod.id.uid.clone(), node.clone());
        self.pods
            .entry(node.clone())
            .or_default()
            .insert(pod.id.uid.clone(), ready);
        Some(node)
    }

    /// A pod is gone. Answers the node whose agent it was.
    pub(crate) fn drop_pod(&mut self, uid: &PodUid) -> Option<NodeName> {
        let node = self.homes.remove(uid)?;
        self.pods.get_mut(&node)?.remove(uid);
        Some(node)
    }

    /// The node is gone.
    pub(crate) fn drop_node(&mut self, node: &NodeName) {
        self.down.remove(node);
        if self.pods.get(node).is_some_and(HashMap::is_empty) {
            self.pods.remove(node);
        }
    }

    /// Whether the node's agent went down (`Some(true)`) or came up since the last question; `None` if neither.
    /// `serves`: the node says that our agent serves it.
    pub(crate) fn turned(&mut self, node: &NodeName, serves: bool) -> Option<bool> {
        let up = |pods: &HashMap<PodUid, bool>| pods.values().any(|ready| *ready);
        let down = serves && self.pods.get(node).is_some_and(|pods| !up(pods));
        let changed = if down {
            self.down.insert(node.clone())
        } else {
            self.down.remove(node)
        };
        changed.then_some(down)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(uid: &str, ready: bool) -> PodView {
        let ready = if ready { "True" } else { "False" };
        PodView::from_json(&json!({
            "metadata": {"name": uid, "namespace": "t", "uid": uid, "labels": {"tessera.dev/component": "agent"}},
            "spec": {"nodeName": "n", "containers": [{"name": "agent"}]},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}}))
        .unwrap()
    }

    #[test]
    fn a_node_is_down_while_no_agent_pod_on_it_is_ready() {
        let mut agents = Agents::default();
        let node = NodeName::new("n").unwrap();
        assert_eq!(
            agents.turned(&node, true),
            None,
            "no agent pod was ever seen: it may run without the chart"
        );
        assert_eq!(agents.see(&pod("a", true)), Some(node.clone()));
        assert_eq!(agents.turned(&node, true), None);
        agents.see(&pod("a", false));
        assert_eq!(agents.turned(&node, true), Some(true));
        assert_eq!(agents.turned(&node, true), None, "said once");
        // A new version starts before the old one is gone.
        agents.see(&pod("b", true));
        assert_eq!(agents.turned(&node, true), Some(false));
        agents.drop_pod(&PodUid::new("b").unwrap());
        agents.drop_pod(&PodUid::new("a").unwrap());
        assert_eq!(agents.turned(&node, true), Some(true));
        assert_eq!(agents.turned(&node, false), Some(false), "a foreign plugin serves now");
    }

    #[test]
    fn other_pods_and_leaving_ones_say_nothing_good() {
        let mut agents = Agents::default();
        let mut other = pod("x", true);
        other.labels.clear();
        assert_eq!(agents.see(&other), None);
        let mut leaving = pod("a", true);
        leaving.deleting = true;
        let node = agents.see(&leaving).unwrap();
        assert_eq!(agents.turned(&node, true), Some(true));
    }
}
