//! What is left to do for a live resize of a pod on this node.

use tessera_types::{PodId, PodUid, Share};
use tessera_wire::resize::{self, State, Status};
use tessera_wire::{PodPhase, device_text};

use super::{Book, Known, Protocol, Record};

/// A resize to carry out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResizeWork {
    /// The pod.
    pub pod: PodId,
    /// What the scheduler says.
    pub status: Status,
    /// The records that change, as they are and as they are to be.
    pub changes: Vec<(Record, Record)>,
    /// Why it cannot be carried out, whatever the containers hold.
    pub refused: Option<String>,
}

impl Book {
    /// What is left to do for a pod; nothing when its containers are held to what the scheduler says, or when the
    /// scheduler has yet to read the report.
    #[must_use]
    pub fn resize_work(&self, uid: &PodUid) -> Option<ResizeWork> {
        let known = self.pods.get(uid)?;
        let view = &known.view;
        if !known.live() || known.protocol != Protocol::Own || view.phase != PodPhase::Running {
            return None;
        }
        let status = resize::status(view)?;
        let told = resize::report(view).filter(|report| report.generation >= status.generation);
        if told.is_some_and(|report| matches!(report.state, State::Applied | State::Refused)) && status.state.is_open()
        {
            return None;
        }
        let booked = booked_by_container(known)?;
        let goal = status.goal(&booked)?;
        let mut changes = Vec::new();
        let mut refused = None;
        for ((container, goal), booked) in view.containers.iter().zip(goal).zip(&booked) {
            let Some(record) = self.newest_sealed(uid, &container.name) else {
                // One that starts later is given what is booked then.
                if goal != *booked && status.state.is_open() {
                    refused = Some(format!("container `{}` has not started yet", container.name));
                }
                continue;
            };
            // A version of the pod from before what was carried out already.
            if record.resized > status.generation {
                return None;
            }
            let cards = |shares: &[Share]| -> Vec<_> { shares.iter().map(|share| share.card.clone()).collect() };
            if cards(&record.shares) != cards(&goal) {
                return None;
            }
            let new = Record {
                shares: goal,
                priority: status.priority.get(&container.name).copied().or(record.priority),
                resized: status.generation,
                ..record.clone()
            };
            let differs = new.shares != record.shares || new.priority != record.priority;
            if differs && !record.limited {
                refused = Some(format!(
                    "container `{}` has its cards whole and without the enforcement library, so nothing in it can hold it to a \
                     share; delete the pod and create it anew with one",
                    container.name
                ));
            } else if new != *record {
                changes.push((record.clone(), new));
            }
        }
        (status.state.is_open() || !changes.is_empty()).then(|| ResizeWork {
            pod: view.id.clone(),
            status,
            changes,
            refused,
        })
    }

    /// What the pod's containers are held to: a device text of the whole pod. A container without a grant counts with
    /// what is booked for it.
    #[must_use]
    pub fn held_text(&self, uid: &PodUid) -> Option<String> {
        let known = self.pods.get(uid)?;
        let mut entries = booked_by_container(known)?;
        for (container, entry) in known.view.containers.iter().zip(&mut entries) {
            if let Some(record) = self.newest_sealed(uid, &container.name) {
                entry.clone_from(&record.shares);
            }
        }
        Some(device_text::print(&entries))
    }

    fn newest_sealed(&self, uid: &PodUid, container: &str) -> Option<&Record> {
        self.records
            .values()
            .filter(|record| record.is_of(uid, container) && record.sealed)
            .max_by_key(|record| record.serial)
    }
}

/// The booked shares, one entry for each container.
fn booked_by_container(known: &Known) -> Option<Vec<Vec<Share>>> {
    let mut entries = known.allocated.as_ref()?.as_ref().ok()?.clone();
    entries.resize(known.view.containers.len(), Vec::new());
    Some(entries)
}
