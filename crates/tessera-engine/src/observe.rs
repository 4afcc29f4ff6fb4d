//! Reading API objects: what a Pod's annotations book, what a Node registers.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use tessera_types::{Allocation, ContainerRole, Keyword, NodeName};
use tessera_wire::{NodeView, PodView, Quantity, keys};

use crate::booking::{Booking, BookingState, Closure};
use crate::error::NodeProblem;
use crate::holding::Holding;
use crate::node::{ClassOnNode, NodeFacts};
use crate::vendor::{HealthSource, Vendors, comma_list};
use crate::world::PodProblem;

/// What a pod's annotations book.
pub(crate) fn derive(vendors: &Vendors, pod: &PodView) -> (Option<Booking>, Vec<PodProblem>) {
    let mut problems = Vec::new();
    let Some(annotated) = pod.annotations.get(keys::VGPU_NODE) else {
        return (None, problems);
    };
    if pod.phase.is_terminal() || (pod.node_name.is_none() && pod.deleting) {
        return (None, problems);
    }
    let Ok(node) = NodeName::new(annotated) else {
        return (None, problems);
    };
    if let Some(bound) = &pod.node_name {
        if bound.as_str() != annotated {
            problems.push(PodProblem::BoundElsewhere {
                annotated: annotated.clone(),
                bound: bound.to_string(),
            });
            return (None, problems);
        }
    } else {
        let written = pod
            .annotations
            .get(keys::VGPU_TIME)
            .and_then(|text| text.trim().parse::<i64>().ok());
        if let (Some(failed), Some(written)) = (pod.scheduled_false_since, written)
            && failed > written
        {
            // A later attempt failed: what the earlier one wrote is void.
            return (None, problems);
        }
    }
    let mut allocation = Allocation::default();
    let mut closures = Vec::new();
    for vendor in vendors {
        match vendor.read_allocation(&pod.annotations) {
            Ok(None) => {}
            Ok(Some((mut class, mig))) => {
                if class.len() < pod.containers.len() {
                    class.resize(pod.containers.len(), Vec::new());
                }
                if class.iter().any(|shares| !shares.is_empty()) {
                    allocation.classes.insert(vendor.keyword().clone(), class);
                }
                allocation.mig.extend(mig);
            }
            Err(problem) => {
                closures.push(Closure {
                    class: vendor.keyword().clone(),
                    text: problem.text.clone(),
                });
                problems.push(problem.into());
            }
        }
    }
    if allocation.is_empty() && allocation.mig.is_empty() && closures.is_empty() {
        return (None, problems);
    }
    if !asks_devices(vendors, pod) {
        return (None, vec![PodProblem::Forged]);
    }
    let roles: Vec<ContainerRole> = pod.containers.iter().map(|container| container.role).collect();
    let facts = vendors
        .iter()
        .map(|vendor| (vendor.keyword().clone(), vendor.pod_facts(pod)))
        .filter(|(_, facts)| !facts.is_empty())
        .collect();
    let booking = Booking {
        pod: pod.id.clone(),
        node,
        held: Holding::new(&allocation, &roles, pod.init_done),
        state: if pod.node_name.is_some() {
            BookingState::Bound
        } else {
            BookingState::Unbound
        },
        priority: pod.priority,
        since: pod.started_at.or(pod.created_at),
        deleting: pod.deleting,
        closures: closures.into_boxed_slice(),
        facts,
    };
    (Some(booking), problems)
}

/// Whether the pod asks for a device by any name: one of ours, or an extended resource that is not (any more). The
/// second keeps pods booked that were made before a resource was renamed in the configuration.
fn asks_devices(vendors: &Vendors, pod: &PodView) -> bool {
    pod.containers
        .iter()
        .flat_map(|container| container.limits.keys().chain(container.requests.keys()))
        .any(|name| vendors.manages(name) || extended(name))
}

/// Whether it is the name of something that only device plugins and administrators add to a node.
fn extended(name: &str) -> bool {
    name.split_once('/')
        .is_some_and(|(domain, _)| !domain.ends_with("kubernetes.io"))
}

pub(crate) fn no_facts(name: NodeName) -> NodeFacts {
    NodeFacts {
        name,
        cards: Vec::new(),
        served: Vec::new(),
        cordoned: Vec::new(),
        classes: Vec::new(),
        cpu: None,
        others: Vec::new(),
    }
}

pub(crate) fn input_hash(node: &NodeView) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&node.labels, &node.annotations, &node.capacity, &node.allocatable).hash(&mut hasher);
    // 0 stands for "not read".
    hasher.finish() | 1
}

/// Decodes a node by every class.
pub(crate) fn facts(
    vendors: &Vendors,
    node: &NodeView,
    closed: &BTreeMap<Keyword, String>,
) -> (NodeFacts, Vec<(Keyword, NodeProblem)>) {
    let cordon = comma_list(node.annotations.get(keys::DEVICE_CORDON).map(String::as_str)).unwrap_or_default();
    let mut facts = no_facts(node.name.clone());
    facts.cpu = node.allocatable.get("cpu").and_then(Quantity::as_milli);
    facts.others = node
        .allocatable
        .keys()
        .filter(|name| extended(name) && node.allocatable_count(name) > 0 && !vendors.manages(name))
        .map(|name| name.as_str().into())
        .collect();
    let mut problems = Vec::new();
    for vendor in vendors {
        let class = vendor.keyword();
        let first = facts.cards.len();
        let mut cause = None;
        match vendor.decode_node(node) {
            Ok(cards) => {
                for mut card in cards {
                    if facts.cards[first..].iter().any(|other| other.id == card.id) {
                        let key = vendor.keys().register.clone().unwrap_or_default();
                        let fault = format!("card {} is listed twice; the first counts", card.id);
                        problems.push((class.clone(), NodeProblem::Unreadable { key, fault }));
                        continue;
                    }
                    if let Some(fault) = vendor.disagreement(&card) {
                        card.healthy = false;
                        let card = card.id.clone();
                        problems.push((class.clone(), NodeProblem::Disagrees { card, fault }));
                    }
                    facts.served.push(vendor.serves(&card));
                    facts.cordoned.push(cordon.iter().any(|id| id == card.id.as_str()));
                    facts.cards.push(card);
                }
                // A node where the kubelet runs no plugin of the class any more says 0; one that never had it says
                // nothing, which means something only where nothing else tells of the plugin.
                let told = match vendor.health() {
                    HealthSource::HandshakeAndAllocatable => {
                        |node: &NodeView, count: &str| node.allocatable.contains_key(count)
                    }
                    HealthSource::Allocatable => |_: &NodeView, _: &str| true,
                    _ => |_: &NodeView, _: &str| false,
                };
                if let Some(count) = vendor.names().count.as_deref()
                    && told(node, count)
                    && node.allocatable_count(count) <= 0
                {
                    cause = Some(format!("its plugin is gone: `{count}` is 0 in the node's allocatable"));
                }
            }
            Err(NodeProblem::Absent) => continue,
            Err(problem) => {
                cause = Some(problem.to_string());
                problems.push((class.clone(), problem));
            }
        }
        facts.classes.push(ClassOnNode {
            class: class.clone(),
            cards: first..facts.cards.len(),
            closed: closed.get(class).cloned().or_else(|| cause.clone()),
            closed_by_node: cause,
            facts: vendor.node_facts(node),
        });
    }
    (facts, problems)
}
