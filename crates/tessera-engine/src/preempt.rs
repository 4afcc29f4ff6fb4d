//! Which pods must go so that a more important one fits on a node.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use tessera_types::{Demand, NodeName, PodUid};

use crate::booking::{Booking, BookingState};
use crate::decide::{Engine, Question};
use crate::node::NodeState;
use crate::snapshot::Snapshot;

/// The pod that wants in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preemptor {
    /// Its priority; only pods of lower priority are victims.
    pub priority: i32,
    /// It has `preemptionPolicy: Never`.
    pub never: bool,
}

impl Engine {
    /// The victims on `node`: those of `victims` (named by the scheduler) that are needed, and more of lower priority
    /// if those do not suffice: lowest priority first, youngest first. Never empty.
    ///
    /// Taken as free: what the victims hold, what pods being deleted hold, and nothing else. A named victim without a
    /// booking here is kept, since it was named for something that is not counted here. `None`: the pod would not fit
    /// whatever went, or nothing would have to go.
    #[must_use]
    pub fn preempt(
        &self,
        snapshot: &Snapshot,
        demand: &Demand,
        node: &NodeName,
        victims: &[PodUid],
        preemptor: Preemptor,
    ) -> Option<Vec<PodUid>> {
        if preemptor.never {
            return None;
        }
        let state = snapshot.node(node.as_str())?;
        let classes = demand.classes();
        let concerns = |booking: &Booking| {
            booking.pod.uid != demand.pod.uid && booking.usage().any(|(_, class, _)| classes.contains(class))
        };
        let mut question = Question::new(self, snapshot, demand);
        let mut fits = |gone: &BTreeSet<&PodUid>| {
            let left: NodeState = state.without(|booking| {
                booking.deleting || booking.pod.uid == demand.pod.uid || gone.contains(&booking.pod.uid)
            });
            question.fit(&left).is_ok()
        };

        let mut gone: BTreeSet<&PodUid> = victims.iter().collect();
        let mut more: Vec<&Booking> = state
            .bookings()
            .iter()
            .map(|booking| &**booking)
            .filter(|booking| {
                concerns(booking)
                    && booking.state == BookingState::Bound
                    && !booking.deleting
                    && booking.priority < preemptor.priority
                    && !gone.contains(&booking.pod.uid)
            })
            .collect();
        more.sort_by_key(|booking| (booking.priority, Reverse(booking.since), &booking.pod.uid));
        let mut more = more.into_iter();
        while !fits(&gone) {
            gone.insert(&more.next()?.pod.uid);
        }

        // Spare what is not needed: the most important first, of equal ones the oldest.
        let mut sparable: Vec<&Booking> = state
            .bookings()
            .iter()
            .map(|booking| &**booking)
            .filter(|booking| gone.contains(&booking.pod.uid) && concerns(booking))
            .collect();
        sparable.sort_by_key(|booking| (Reverse(booking.priority), booking.since, &booking.pod.uid));
        for booking in &sparable {
            gone.remove(&booking.pod.uid);
            if !fits(&gone) {
                gone.insert(&booking.pod.uid);
            }
        }
        if gone.is_empty() {
            // All that is needed is on its way out already; the scheduler wants a name nevertheless.
            let leaving = || {
                state
                    .bookings()
                    .iter()
                    .map(|booking| &**booking)
                    .find(|b| b.deleting && concerns(b))
            };
            let named = sparable.last().copied().or_else(leaving)?;
            return Some(vec![named.pod.uid.clone()]);
        }
        let named = victims.iter().filter(|uid| gone.contains(uid));
        let added = gone.iter().copied().filter(|uid| !victims.contains(uid));
        Some(named.chain(added).cloned().collect())
    }
}
