//! Whether a decision still holds on the current state, card by card.

use std::collections::BTreeMap;

use tessera_types::{CardUsage, Cores, Dimension, Reason, ReasonKind, Share, WHOLE_CARD_CORES};

use crate::booking::{Booking, effects};
use crate::fit::extra_short;
use crate::node::{CardView, NodeState};
use crate::quota::Quotas;
use crate::snapshot::{BookingTable, NodeTable};
use crate::vendor::{Rules, Vendor, Vendors};
use crate::world::{AssumeError, by_class};

/// Checks `booking` against everything booked by other pods.
pub(crate) fn holds(
    vendors: &Vendors,
    nodes: &NodeTable,
    bookings: &BookingTable,
    quotas: &Quotas,
    booking: &Booking,
) -> Result<(), AssumeError> {
    let uid = &booking.pod.uid;
    let gone = || AssumeError::NodeGone(booking.node.clone());
    let node = nodes.get(booking.node.as_str()).ok_or_else(gone)?;
    if node.classes().is_empty() {
        return Err(gone());
    }
    let own = bookings.get(uid);
    if own.is_some_and(|own| own.node == booking.node) {
        on_node(vendors, &node.without(|other| other.pod.uid == *uid), booking)?;
    } else {
        on_node(vendors, node, booking)?;
    }
    for (class, sum) in by_class(booking) {
        // What fitting does not ask for must not undo its decision here: the pod would be tried for ever.
        let Some(vendor) = vendors.get(class).filter(|vendor| vendor.rules().quota) else {
            continue;
        };
        let Some(room) = quotas.room(&booking.pod.namespace, vendor.names()) else {
            continue;
        };
        let mine = own
            .and_then(|own| by_class(own).get(&class).copied())
            .unwrap_or_default();
        over(sum.memory.get(), mine.memory.get(), room.memory, Dimension::MemoryMib)?;
        over(
            u64::from(sum.cores.get()),
            u64::from(mine.cores.get()),
            room.cores,
            Dimension::CoresPercent,
        )?;
    }
    Ok(())
}

fn over(wanted: u64, mine: u64, room: Option<i64>, dimension: Dimension) -> Result<(), AssumeError> {
    let Some(room) = room else { return Ok(()) };
    let free = i128::from(room) + i128::from(mine);
    if i128::from(wanted) <= free {
        return Ok(());
    }
    let free = u64::try_from(free.max(0)).unwrap_or(u64::MAX);
    Err(AssumeError::Taken(Reason::short(
        ReasonKind::QuotaShort,
        None,
        dimension,
        wanted,
        free,
    )))
}

fn on_node(vendors: &Vendors, node: &NodeState, booking: &Booking) -> Result<(), AssumeError> {
    let cards = node.cards();
    for (class, _) in booking.held.cards() {
        let Some(on_node) = node.class(class) else {
            return Err(AssumeError::NodeGone(booking.node.clone()));
        };
        if let Some(cause) = &on_node.closed {
            let (node, class, cause) = (booking.node.clone(), class.clone(), cause.clone());
            return Err(AssumeError::ClassClosed { node, class, cause });
        }
    }
    for (class, id) in booking.held.cards() {
        if !cards.iter().any(|card| card.id == *id && card.class == *class) {
            return Err(AssumeError::CardGone(id.clone()));
        }
    }
    for effect in effects(booking, cards) {
        let at = effect.card;
        let card = &cards[at];
        let taken = |reason: Reason| Err(AssumeError::Taken(reason));
        let id = || Some(card.id.clone());
        if effect.closes || !node.is_healthy(at) {
            return taken(Reason::of(ReasonKind::Unhealthy, id()));
        }
        if node.is_cordoned(at) {
            return taken(Reason::of(ReasonKind::Cordoned, id()));
        }
        let used = &node.usage()[at];
        let sum = used.usage.plus(effect.usage);
        if sum.slots > card.slots {
            let free = card.slots.saturating_sub(used.usage.slots);
            let (wanted, free) = (u64::from(effect.usage.slots), u64::from(free));
            return taken(Reason::short(
                ReasonKind::SlotsExhausted,
                id(),
                Dimension::Slots,
                wanted,
                free,
            ));
        }
        if sum.memory > card.memory {
            let free = card.memory.saturating_sub(used.usage.memory).get();
            let wanted = effect.usage.memory.get();
            return taken(Reason::short(
                ReasonKind::MemoryShort,
                id(),
                Dimension::MemoryMib,
                wanted,
                free,
            ));
        }
        // The compute of instances is rounded up one by one and may add up to a little more than the card.
        if sum.cores > card.cores && !card.mode.is_mig() {
            let free = card.cores.saturating_sub(used.usage.cores).get();
            let (wanted, free) = (u64::from(effect.usage.cores.get()), u64::from(free));
            return taken(Reason::short(
                ReasonKind::CoresShort,
                id(),
                Dimension::CoresPercent,
                wanted,
                free,
            ));
        }
        let vendor = vendors.get(&card.class);
        if let (Some(vendor), Some(short)) = (vendor, sum.extra.exceeds(card.extra)) {
            return taken(extra_short(vendor, card, short, effect.usage.extra, used.usage.extra));
        }
        let of_class = booking.held.shares().filter(|(class, ..)| **class == card.class);
        let mut shares = of_class
            .map(|(_, _, share)| share)
            .filter(|share| share.card == card.id);
        let rules = vendor.map(Vendor::rules).unwrap_or_default();
        if exclusive(rules, used.usage, card.cores, &mut shares) {
            return taken(Reason::of(ReasonKind::ExclusiveConflict, id()));
        }
        let overlaps = effect.instances.iter().any(|mine| {
            used.instances
                .iter()
                .any(|other| mine.placement.overlaps(other.placement))
        });
        if overlaps {
            return taken(Reason::of(ReasonKind::NoPlacement, id()));
        }
        let twin_in_use = card.twin.is_some()
            && cards
                .iter()
                .zip(node.usage())
                .any(|(other, used)| used.usage.slots > 0 && other.class != card.class && other.twin == card.twin);
        if twin_in_use {
            return taken(Reason::of(ReasonKind::ExclusiveConflict, id()));
        }
        if let Some(vendor) = vendor {
            let view = CardView {
                position: at,
                card,
                usage: used.usage,
                instances: &used.instances,
                reusable: &[],
            };
            let none = BTreeMap::new();
            let facts = booking.facts.get(&card.class).unwrap_or(&none);
            if let Err(kind) = vendor.joins(view, effect.usage, facts, node) {
                return taken(Reason::of(kind, id()));
            }
        }
    }
    Ok(())
}

/// A whole card is wanted and others are on it, or others have all its compute and a share without a claim is wanted.
fn exclusive(rules: Rules, used: CardUsage, total: Cores, shares: &mut impl Iterator<Item = Share>) -> bool {
    shares.any(|share| {
        (rules.whole_alone && total == WHOLE_CARD_CORES && share.cores == WHOLE_CARD_CORES && used.slots > 0)
            || (rules.exhausted && share.cores == Cores::ZERO && total != Cores::ZERO && used.cores == total)
    })
}
