//! Live resize: the next step for a pod, from its annotations alone.
//!
//! Three texts on the pod and one state machine. Whoever dies between two steps finds the same texts again.
//!
//! 1. The user writes a wish. The scheduler answers with a [`Status`]: *refused*, or *accepted* with a target. In the
//!    same write the booking rises to the larger of what it was and the target, so that it covers both.
//! 2. The node agent carries the target out and reports what it now holds the pod to: *applied*, *refused*, or *waiting*
//!    until the container holds less.
//! 3. The scheduler lets the booking follow the report and says so in the status.
//!
//! So a booking is never below what a container is held to. It falls only by a report about the newest answer, and after
//! such a report the agent changes nothing until there is a newer one. Each write carries the version of the pod that it
//! was decided on, so that no wish is lost: the last one wins.

use std::collections::BTreeMap;

use tessera_types::{ClassAllocation, ContainerRole, NodeName, Share};
use tessera_wire::resize::{self, State, Status, Wish, parse_policy, parse_wish};
use tessera_wire::{PodPhase, PodView, device_text, keys};

use crate::snapshot::Snapshot;
use crate::vendor::{Vendor, Vendors};

/// What is to be told about a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The event's reason.
    pub reason: &'static str,
    /// Whether it is a warning.
    pub warning: bool,
    /// For people.
    pub message: String,
}

/// What is to be written on the pod, conditional on the version that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResizeStep {
    /// Annotations to merge.
    pub annotations: BTreeMap<String, Option<String>>,
    /// The pod as it will read, if the booking rises: to be booked before it is written. If that fails, what is to be
    /// written is [`ResizeStep::refused`].
    pub raises: Option<Box<PodView>>,
    /// To be told once it is written.
    pub told: Option<Told>,
    status: Status,
}

/// Whether there may be something to do for a pod. Cheap, for every event of a pod.
#[must_use]
pub fn pending(pod: &PodView) -> bool {
    let wish = pod.annotation(keys::TESSERA_RESIZE);
    if wish.is_none() && pod.annotation(keys::TESSERA_RESIZE_STATUS).is_none() {
        return false;
    }
    if pod.phase != PodPhase::Running || pod.deleting {
        return false;
    }
    let Some(status) = resize::status(pod) else {
        return wish.is_some();
    };
    match wish {
        Some(wish) => !answers(&status, wish, pod) || reported(pod, &status).is_some(),
        None => !status.request.is_empty(),
    }
}

fn answers(status: &Status, wish: &str, pod: &PodView) -> bool {
    status.request == wish && status.policy.as_deref() == pod.annotation(keys::TESSERA_RESIZE_POLICY)
}

/// A report that the status does not know of yet.
fn reported(pod: &PodView, status: &Status) -> Option<resize::Report> {
    let news = |report: &resize::Report| {
        report.generation == status.generation
            && status.state.is_open()
            && (report.state != status.state || report.message != status.message)
            && report.state != State::Accepted
    };
    resize::report(pod).filter(news)
}

/// Refuses what no pod can mean: the text itself, and containers that the pod does not have. For admission, where the
/// rest is not known.
///
/// # Errors
/// For the user.
pub fn check_wish(pod: &PodView) -> Result<(), String> {
    parse_policy(pod.annotation(keys::TESSERA_RESIZE_POLICY)).map_err(|error| error.to_string())?;
    let Some(text) = pod.annotation(keys::TESSERA_RESIZE) else {
        return Ok(());
    };
    let wish = parse_wish(text).map_err(|error| error.to_string())?;
    wish.keys().try_for_each(|name| find(pod, name).map(drop))
}

fn find(pod: &PodView, name: &str) -> Result<usize, String> {
    pod.containers
        .iter()
        .position(|container| container.name == name)
        .ok_or_else(|| {
            let known: Vec<String> = pod.containers.iter().map(|one| format!("`{}`", one.name)).collect();
            format!(
                "annotation `{}` names container `{}`, which the pod does not have; it has {}",
                keys::TESSERA_RESIZE,
                name.chars().take(63).collect::<String>(),
                known.join(", ")
            )
        })
}

/// The next step for a pod; nothing when there is none. `own_agent` says whether our own agent serves a node.
#[must_use]
pub fn step(
    vendors: &Vendors,
    snapshot: &Snapshot,
    pod: &PodView,
    own_agent: impl Fn(&NodeName) -> bool,
) -> Option<ResizeStep> {
    if !pending(pod) {
        return None;
    }
    let before = resize::status(pod);
    let last = resize::report(pod).map_or(0, |report| report.generation);
    let generation = before
        .as_ref()
        .map_or(0, |status| status.generation)
        .max(last)
        .saturating_add(1);
    let priority = before
        .as_ref()
        .map(|status| status.priority.clone())
        .unwrap_or_default();
    let wish = pod.annotation(keys::TESSERA_RESIZE);
    let fresh = |request: &str| Status {
        generation,
        state: State::Accepted,
        message: String::new(),
        request: request.to_owned(),
        policy: pod.annotation(keys::TESSERA_RESIZE_POLICY).map(str::to_owned),
        target: String::new(),
        priority: priority.clone(),
    };
    match (wish, before) {
        (Some(wish), Some(status)) if answers(&status, wish, pod) => follow(vendors, pod, status),
        (Some(wish), _) => Some(match accept(vendors, snapshot, pod, wish, own_agent) {
            Ok(accepted) => accepted.step(pod, fresh(wish)),
            Err(reason) => refuse(fresh(wish), &reason),
        }),
        // Taken back. What was under way ends where it is; the same wish may be made again.
        (None, Some(status)) if status.state.is_open() => Some(ResizeStep {
            told: None,
            ..refuse(fresh(""), "the annotation was removed")
        }),
        (None, Some(status)) => Some(write(
            Status {
                request: String::new(),
                ..status
            },
            None,
        )),
        (None, None) => None,
    }
}

impl ResizeStep {
    /// The step in place of one that raises, where there is no room.
    #[must_use]
    pub fn refused(self, reason: &str) -> Self {
        let status = Status {
            target: String::new(),
            ..self.status
        };
        refuse(status, reason)
    }

    /// How far the wish has come with this step.
    #[must_use]
    pub const fn state(&self) -> State {
        self.status.state
    }
}

fn write(status: Status, told: Option<Told>) -> ResizeStep {
    let annotations = BTreeMap::from([(keys::TESSERA_RESIZE_STATUS.to_owned(), Some(status.print()))]);
    ResizeStep {
        annotations,
        raises: None,
        told,
        status,
    }
}

fn refuse(status: Status, reason: &str) -> ResizeStep {
    let status = Status {
        state: State::Refused,
        message: reason.to_owned(),
        ..status
    };
    let told = Told {
        reason: keys::events::RESIZE_REFUSED,
        warning: true,
        message: format!("the share stays as it is: {reason}"),
    };
    write(status, Some(told))
}

/// The class whose shares can be changed, and what it has on the pod.
struct Held<'a> {
    vendor: &'a dyn Vendor,
    shares: ClassAllocation,
}

fn held<'a>(vendors: &'a Vendors, pod: &PodView) -> Option<Held<'a>> {
    vendors.iter().find_map(|vendor| {
        let shares = vendor.read_allocation(&pod.annotations).ok()??.0;
        (vendor.own_agent() && vendor.keys().allocated.is_some()).then_some(Held {
            vendor: &**vendor,
            shares,
        })
    })
}

/// The annotations of an allocation with other amounts.
fn booked(vendor: &dyn Vendor, pod: &PodView, shares: &ClassAllocation) -> BTreeMap<String, Option<String>> {
    let text = device_text::print(shares);
    let keys = vendor.keys();
    let old = keys.allocated.as_ref().and_then(|key| pod.annotations.get(key));
    // The second is what a node agent hands out; where that was done it is empty, and stays so.
    let second = keys.to_allocate.iter().filter(|key| pod.annotations.get(*key) == old);
    keys.allocated
        .iter()
        .chain(second)
        .map(|key| (key.clone(), Some(text.clone())))
        .collect()
}

struct Accepted {
    target: ClassAllocation,
    priority: BTreeMap<String, u8>,
    /// Annotations of the raised booking; empty where it covers the target already.
    raised: BTreeMap<String, Option<String>>,
}

impl Accepted {
    fn step(self, pod: &PodView, status: Status) -> ResizeStep {
        let mut priority = status.priority.clone();
        priority.extend(self.priority);
        let status = Status {
            target: device_text::print(&self.target),
            priority,
            ..status
        };
        let mut step = write(status, None);
        if !self.raised.is_empty() {
            let mut raised = pod.clone();
            for (key, text) in &self.raised {
                raised.annotations.insert(key.clone(), text.clone().unwrap_or_default());
            }
            step.raises = Some(Box::new(raised));
            step.annotations.extend(self.raised);
        }
        step
    }
}

fn accept(
    vendors: &Vendors,
    snapshot: &Snapshot,
    pod: &PodView,
    wish: &str,
    own_agent: impl Fn(&NodeName) -> bool,
) -> Result<Accepted, String> {
    parse_policy(pod.annotation(keys::TESSERA_RESIZE_POLICY)).map_err(|error| error.to_string())?;
    let wishes = parse_wish(wish).map_err(|error| error.to_string())?;
    let node = pod.node_name.as_deref().and_then(|name| NodeName::new(name).ok());
    let node = node.ok_or("the pod is bound to no node yet; it can be resized once it runs")?;
    if pod.annotation(keys::TESSERA_SCHEDULER).is_none() {
        return Err(
            "another scheduler placed the pod, which knows nothing of this; delete the pod and create it anew".into(),
        );
    }
    if !own_agent(&node) {
        return Err(format!(
            "the cards of node {node} are not served by Tessera's node agent, and no other plugin can change a share that is \
             in use; delete the pod and create it anew"
        ));
    }
    let of_others = |at: usize| {
        let other = vendors.iter().find(|vendor| {
            let read = vendor.read_allocation(&pod.annotations);
            !vendor.own_agent()
                && read.is_ok_and(|read| {
                    read.is_some_and(|(class, _)| class.get(at).is_some_and(|shares| !shares.is_empty()))
                })
        });
        other.map(|vendor| vendor.keyword().clone())
    };
    let held = held(vendors, pod);
    let mut target = held.as_ref().map(|held| held.shares.clone()).unwrap_or_default();
    let mut priority = BTreeMap::new();
    for (name, wish) in &wishes {
        let at = find(pod, name)?;
        let shares = target.get_mut(at).filter(|shares| !shares.is_empty());
        let Some(shares) = shares else {
            return Err(match of_others(at) {
                Some(class) => format!(
                    "container `{name}` has cards of class {class}, whose shares the maker's own plugin enforces and cannot \
                     change while they are in use; delete the pod and create it anew"
                ),
                None => format!("container `{name}` has no card; name one that has"),
            });
        };
        if pod
            .containers
            .get(at)
            .is_some_and(|container| container.role == ContainerRole::Init)
        {
            return Err(format!("container `{name}` is an init container, which has ended"));
        }
        for share in shares {
            change(share, wish, name, snapshot, &node)?;
        }
        priority.extend(wish.priority.map(|priority| (name.clone(), priority)));
    }
    let Some(held) = held else {
        return Err("the pod has no card".into());
    };
    let raised = larger(&held.shares, &target);
    let raised = if raised == held.shares {
        BTreeMap::new()
    } else {
        booked(held.vendor, pod, &raised)
    };
    Ok(Accepted {
        target,
        priority,
        raised,
    })
}

fn change(share: &mut Share, wish: &Wish, container: &str, snapshot: &Snapshot, node: &NodeName) -> Result<(), String> {
    let card = snapshot
        .node(node.as_str())
        .and_then(|node| node.cards().iter().find(|card| card.id == share.card));
    let Some(card) = card else {
        return Err(format!(
            "card {} of container `{container}` is gone from node {node}",
            share.card
        ));
    };
    if card.mode.is_mig() {
        return Err(format!(
            "container `{container}` has a MIG instance of card {}, whose size is fixed by its profile; delete the pod and \
             create it anew with another request",
            share.card
        ));
    }
    if let Some(memory) = wish.memory {
        if memory > card.memory {
            return Err(format!(
                "container `{container}` is to have {} MiB of card {}, which has {} MiB",
                memory.get(),
                share.card,
                card.memory.get()
            ));
        }
        share.memory = memory;
    }
    if let Some(cores) = wish.cores {
        share.cores = cores;
    }
    Ok(())
}

/// The larger of each amount.
fn larger(one: &ClassAllocation, other: &ClassAllocation) -> ClassAllocation {
    let pair = |(one, other): (&Share, &Share)| Share {
        memory: one.memory.max(other.memory),
        cores: one.cores.max(other.cores),
        ..one.clone()
    };
    let container = |(one, other): (&Vec<Share>, &Vec<Share>)| one.iter().zip(other).map(pair).collect();
    one.iter().zip(other).map(container).collect()
}

/// Lets status and booking follow the agent's report.
fn follow(vendors: &Vendors, pod: &PodView, status: Status) -> Option<ResizeStep> {
    let report = reported(pod, &status)?;
    let new = Status {
        state: report.state,
        message: report.message.clone(),
        ..status
    };
    if report.state == State::Waiting {
        let told = Told {
            reason: keys::events::RESIZE_WAITS,
            warning: false,
            message: format!("the new share waits: {}", report.message),
        };
        return Some(write(new, Some(told)));
    }
    let held = held(vendors, pod)?;
    let holds = match device_text::parse(&report.holds) {
        Ok(mut holds) => {
            holds.resize(held.shares.len(), Vec::new());
            holds
        }
        Err(error) => return Some(refuse(new, &format!("the node agent's report does not read: {error}"))),
    };
    if !resize::within(&holds, &held.shares) {
        let reason = "the node agent reports more than is booked, or other cards; the booking stays as it is";
        return Some(refuse(new, reason));
    }
    let mut step = match report.state {
        State::Refused => refuse(
            Status {
                target: String::new(),
                ..new
            },
            &report.message,
        ),
        _ => {
            let message = format!("the pod now has {}", said(pod, &holds, &new.priority));
            let told = Told {
                reason: keys::events::RESIZED,
                warning: false,
                message,
            };
            write(new, Some(told))
        }
    };
    if holds != held.shares {
        step.annotations.extend(booked(held.vendor, pod, &holds));
    }
    Some(step)
}

/// What a pod has, for people.
fn said(pod: &PodView, holds: &ClassAllocation, priority: &BTreeMap<String, u8>) -> String {
    let one = |(at, shares): (usize, &Vec<Share>)| {
        let first = shares.first()?;
        let name = &pod.containers.get(at)?.name;
        let mut text = format!("`{name}`: {} MiB", first.memory.get());
        if first.cores.get() > 0 {
            text.push_str(&format!(", {} % of the time", first.cores.get()));
        }
        if let Some(priority) = priority.get(name) {
            text.push_str(&format!(", priority {priority}"));
        }
        Some(text)
    };
    let all: Vec<String> = holds.iter().enumerate().filter_map(one).collect();
    all.join("; ")
}
