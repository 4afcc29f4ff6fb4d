//! A booking: what one pod holds on one node, and what it does to each card there.

use std::collections::BTreeMap;
use std::sync::Arc;

use tessera_types::{
    Allocation, Card, CardId, CardUsage, ContainerRole, Keyword, NodeName, PodId, PodUsage, effective_usage,
};

use crate::node::Held;

/// On what a booking rests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BookingState {
    /// Decided by this process and not yet seen bound; void when its lease ends.
    Assumed,
    /// Read from the annotations of a pod that is not bound yet; void when its lease ends.
    Unbound,
    /// Read from the annotations of a pod bound to the node.
    Bound,
}

/// Cards that a text which cannot be read might name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closure {
    /// The class of the text.
    pub class: Keyword,
    /// The text. Cards whose id occurs in it are closed; if none does, all of the class are.
    pub text: String,
}

/// What one pod holds on one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Booking {
    /// Whose.
    pub pod: PodId,
    /// Where.
    pub node: NodeName,
    /// What was given, container by container.
    pub allocation: Arc<Allocation>,
    /// What counts of it now.
    pub usage: PodUsage,
    /// On what it rests.
    pub state: BookingState,
    /// The pod's priority, for preemption.
    pub priority: i32,
    /// When the pod started, else when it was made; seconds since 1970.
    pub since: Option<i64>,
    /// The pod is being deleted.
    pub deleting: bool,
    /// Texts that could not be read.
    pub closures: Vec<Closure>,
    /// What classes want to know of the pod.
    pub facts: BTreeMap<Keyword, BTreeMap<String, String>>,
}

impl Booking {
    pub(crate) fn usage_of(allocation: &Allocation, roles: &[ContainerRole], init_done: bool) -> PodUsage {
        effective_usage(allocation, roles, init_done)
    }
}

/// What a booking does to one card of its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Effect {
    pub(crate) card: usize,
    pub(crate) usage: CardUsage,
    pub(crate) instances: Vec<Held>,
    pub(crate) closes: bool,
}

/// Finds a card by id; HAMi 2.9 wrote instances as `<id>[<template>-<slot>]`, which means the card before the bracket.
fn find(cards: &[Card], id: &CardId) -> Option<usize> {
    let text = id.as_str();
    cards.iter().position(|card| card.id == *id).or_else(|| {
        let (base, _) = text.split_once('[')?;
        cards.iter().position(|card| card.id.as_str() == base)
    })
}

/// The effects of `booking` on `cards`, at most one a card, in card order.
///
/// A card is closed if what is on it cannot be told: a share of a card in MIG mode without a reserved instance, a
/// reserved instance on a card that is not in MIG mode, an instance on an unknown card (closes all MIG cards of the
/// node), or a text that cannot be read.
pub(crate) fn effects(booking: &Booking, cards: &[Card]) -> Vec<Effect> {
    let mut by_card: BTreeMap<usize, Effect> = BTreeMap::new();
    fn at(map: &mut BTreeMap<usize, Effect>, card: usize) -> &mut Effect {
        map.entry(card).or_insert_with(|| Effect {
            card,
            usage: CardUsage::default(),
            instances: Vec::new(),
            closes: false,
        })
    }
    for (id, (_, usage)) in &booking.usage.0 {
        if let Some(card) = find(cards, id) {
            let effect = at(&mut by_card, card);
            effect.usage = effect.usage.plus(*usage);
        }
    }
    let mut lost_instance = false;
    for reservation in &booking.allocation.mig {
        match find(cards, &reservation.card) {
            None => lost_instance = true,
            Some(card) => {
                let effect = at(&mut by_card, card);
                if cards[card].mode.is_mig() {
                    let held = Held {
                        profile: Arc::from(reservation.profile.as_str()),
                        placement: reservation.placement,
                    };
                    if !effect.instances.contains(&held) {
                        effect.instances.push(held);
                    }
                } else {
                    effect.closes = true;
                }
            }
        }
    }
    if lost_instance {
        for (card, _) in cards.iter().enumerate().filter(|(_, card)| card.mode.is_mig()) {
            at(&mut by_card, card).closes = true;
        }
    }
    for (_, share) in booking.allocation.shares() {
        let Some(card) = find(cards, &share.card) else { continue };
        let reserved = booking
            .allocation
            .mig
            .iter()
            .any(|r| find(cards, &r.card) == Some(card));
        if cards[card].mode.is_mig() && !reserved {
            at(&mut by_card, card).closes = true;
        }
    }
    for closure in &booking.closures {
        let of_class = || cards.iter().enumerate().filter(|(_, card)| card.class == closure.class);
        let named: Vec<usize> = of_class()
            .filter(|(_, card)| closure.text.contains(card.id.as_str()))
            .map(|(at, _)| at)
            .collect();
        let closed = if named.is_empty() {
            of_class().map(|(at, _)| at).collect()
        } else {
            named
        };
        for card in closed {
            at(&mut by_card, card).closes = true;
        }
    }
    by_card.into_values().collect()
}
