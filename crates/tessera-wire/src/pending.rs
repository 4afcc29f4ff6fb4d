//! Which pod a device plugin is asked about, under a scheduler that is not ours.
//!
//! kubelet does not say for which pod it allocates. HAMi's protocol answers with the node lock, and without one with
//! the pods that are between bind and start on the node.

use crate::node_lock::NodeLock;
use crate::{PodPhase, PodView, keys};

/// The pod that an Allocate on `node` is for: the one that the lock names, else the first in list order that is pending,
/// bound to this node and in the phase `allocating` or `success`. `None` if there is none.
///
/// A lock that cannot be read, or names a pod that is not among `pods`, does not end the search: the pods themselves
/// still tell. `pods` must hold the lock's owner if it exists, and the pods of the node.
#[must_use]
pub fn pick<'a>(node: &str, lock: Option<&str>, pods: &'a [PodView]) -> Option<&'a PodView> {
    let owner = lock
        .and_then(|text| NodeLock::parse(text).ok())
        .and_then(|lock| lock.owner);
    let locked = owner.and_then(|owner| {
        pods.iter()
            .find(|pod| pod.id.namespace == owner.namespace && pod.id.name == owner.name)
    });
    locked.or_else(|| pods.iter().find(|pod| is_between_bind_and_start(pod, node)))
}

/// Whether a pod is pending on `node` with its devices still to be handed out, wholly or in part.
#[must_use]
pub fn is_between_bind_and_start(pod: &PodView, node: &str) -> bool {
    pod.phase == PodPhase::Pending
        && pod.node_name.as_deref() == Some(node)
        && pod.annotation(keys::BIND_TIME).is_some()
        && matches!(
            pod.annotation(keys::BIND_PHASE),
            Some(keys::PHASE_ALLOCATING | keys::PHASE_SUCCESS)
        )
        && pod.annotation(keys::VGPU_NODE) == Some(node)
}
