//! Names of resources and annotations.

use std::collections::BTreeSet;

use tessera_wire::keys;

use crate::markdown::pages;
use crate::none;
use crate::pods::vendors;

/// What a pod may carry: resources, annotations, labels.
fn pod_names() -> BTreeSet<String> {
    let vendors = vendors();
    let mut names: BTreeSet<String> = keys::USER_KEYS
        .into_iter()
        .chain(keys::ALLOCATION_KEYS)
        .chain([keys::TESSERA_GPU, keys::TESSERA_MEMORY, keys::TESSERA_CORES])
        .map(str::to_owned)
        .collect();
    for vendor in vendors.iter() {
        names.extend(vendor.names().managed().map(str::to_owned));
        names.extend(vendor.keys().user.iter().cloned());
        names.extend(vendor.keys().allocation().map(str::to_owned));
    }
    names
}

/// What else the pages may name.
fn other_names() -> BTreeSet<String> {
    [
        keys::WEBHOOK_LABEL,
        keys::POD_GROUP_LABEL,
        keys::DEVICE_CORDON,
        keys::NODE_LOCK,
        keys::NVIDIA_REGISTER,
        keys::NVIDIA_SCORE,
        keys::NVIDIA_HANDSHAKE,
        keys::TESSERA_AGENT,
        keys::TESSERA_WAKE,
        tessera_agent::answer::LEVEL_ANNOTATION,
        // Of NVIDIA's operator.
        "nvidia.com/gpu.deploy.device-plugin",
    ]
    .map(str::to_owned)
    .into()
}

#[test]
fn names_of_resources_and_annotations_are_those_of_the_code() {
    let (mine, others) = (pod_names(), other_names());
    let mut problems = Vec::new();
    let mut in_pods = BTreeSet::new();
    for page in pages() {
        // Made from the classes themselves.
        if page.name == "docs/vendors.md" {
            continue;
        }
        for (at, span) in page.spans() {
            let name = span.split([':', '=', ' ']).next().unwrap_or_default();
            let name = name
                .strip_prefix("limits.")
                .or_else(|| name.strip_prefix("requests."))
                .unwrap_or(name);
            let ours = ["nvidia.com/", "hami.io/", "tessera.dev/", "scheduling.x-k8s.io/"]
                .iter()
                .any(|p| name.starts_with(p));
            // An image of the sample, or a pattern.
            if !ours
                || name.starts_with("tessera.dev/sample")
                || name.contains(['*', '<', '.', ',']) && name.ends_with(['*', '>', '.'])
            {
                continue;
            }
            if page.name == "docs/pods.md" {
                in_pods.insert(name.to_owned());
            }
            if !mine.contains(name) && !others.contains(name) {
                problems.push(format!("{at}: `{name}` is not known to the code"));
            }
        }
    }
    problems.extend(
        mine.difference(&in_pods)
            .map(|name| format!("docs/pods.md does not name `{name}`")),
    );
    none(&problems);
}
