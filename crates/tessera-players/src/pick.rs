//! Which pod an `Allocate` is for. The kubelet does not say; each maker finds out in its own way.

use k8s_openapi::api::core::v1::{Container, Pod};

/// An annotation of the pod.
#[must_use]
pub fn annotation<'p>(pod: &'p Pod, key: &str) -> Option<&'p str> {
    pod.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// Namespace and name of the pod that a lock's text names.
#[must_use]
pub fn owner(lock: &str) -> Option<(&str, &str)> {
    let mut fields = lock.split(',').skip(1);
    Some((fields.next()?, fields.next()?))
}

/// The pod's containers in the kubelet's order of admission: init containers first.
pub fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = pod.spec.as_ref();
    let init = spec
        .and_then(|spec| spec.init_containers.as_ref())
        .into_iter()
        .flatten();
    init.chain(spec.map(|spec| &spec.containers).into_iter().flatten())
}

/// How much of a resource a container asks for.
#[must_use]
pub fn asks(container: &Container, resource: &str) -> u64 {
    let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref());
    limits
        .and_then(|limits| limits.get(resource))
        .and_then(|quantity| quantity.0.parse().ok())
        .unwrap_or(0)
}

/// Whether HAMi's protocol takes the pod for one that waits on `node`, if no lock names a pod.
#[must_use]
pub fn between_bind_and_start(pod: &Pod, node: &str) -> bool {
    annotation(pod, "hami.io/bind-time").is_some()
        && matches!(annotation(pod, "hami.io/bind-phase"), Some("allocating" | "success"))
        && annotation(pod, "hami.io/vgpu-node") == Some(node)
}

/// Sorts by a moment on the pod, the oldest first; pods of the same moment by creation and name.
pub fn oldest_first(pods: &mut [Pod], moment: &str) {
    pods.sort_by_cached_key(|pod| {
        let at: u128 = annotation(pod, moment)
            .and_then(|text| text.parse().ok())
            .unwrap_or(u128::MAX);
        let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (at, created, pod.metadata.name.clone())
    });
}
