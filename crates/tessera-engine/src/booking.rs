//! A booking: what one pod holds on one node, and what it does to each card there.

use std::collections::BTreeMap;
use std::sync::Arc;

use tessera_types::{Card, CardId, CardUsage, Keyword, MigReservation, NodeName, PodId, Share};

use crate::holding::Holding;
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
    /// What was given, and what counts of it now.
    pub(crate) held: Holding,
    /// On what it rests.
    pub state: BookingState,
    /// The pod's priority, for preemption.
    pub priority: i32,
    /// When the pod started, else when it was made; seconds since 1970.
    pub since: Option<i64>,
    /// The pod is being deleted.
    pub deleting: bool,
    /// Texts that could not be read.
    pub closures: Box<[Closure]>,
    /// What classes want to know of the pod.
    pub facts: BTreeMap<Keyword, BTreeMap<String, String>>,
}

impl Booking {
    /// The shares in the order of classes and containers, each with the position of its container.
    pub fn shares(&self) -> impl Iterator<Item = (usize, Share)> {
        self.held.shares().map(|(_, container, share)| (container, share))
    }

    /// The classes of the shares, a class as often as it has one.
    pub fn classes(&self) -> impl Iterator<Item = &Keyword> {
        self.held.cards().map(|(class, _)| class)
    }

    /// The hardware instances among them.
    #[must_use]
    pub fn mig(&self) -> &[MigReservation] {
        self.held.mig()
    }

    /// What counts now of each card and class, at most one entry for each.
    pub fn usage(&self) -> impl Iterator<Item = (&CardId, &Keyword, CardUsage)> {
        self.held.usage()
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
fn find(cards: &[Card], class: &Keyword, id: &CardId) -> Option<usize> {
    find_where(cards, id, |card| card.class == *class)
}

fn find_where(cards: &[Card], id: &CardId, accept: impl Fn(&Card) -> bool) -> Option<usize> {
    let text = id.as_str();
    let named = |name: &str| cards.iter().position(|card| card.id.as_str() == name && accept(card));
    named(text).or_else(|| named(text.split_once('[')?.0))
}

/// The card of a reserved instance, which does not name its class.
fn find_cut(cards: &[Card], id: &CardId) -> Option<usize> {
    find_where(cards, id, |card| card.mode.is_mig()).or_else(|| find_where(cards, id, |_| true))
}

/// The effects of `booking` on `cards`, at most one a card, in card order.
///
/// A card is closed if what is on it cannot be told: a share of a card in MIG mode without a reserved instance, a
/// reserved instance on a card that is not in MIG mode, an instance on an unknown card (closes all MIG cards of the
/// node), or a text that cannot be read.
pub(crate) fn effects(booking: &Booking, cards: &[Card]) -> Vec<Effect> {
    fn at(effects: &mut Vec<Effect>, card: usize) -> &mut Effect {
        let place = match effects.binary_search_by_key(&card, |effect| effect.card) {
            Ok(place) => place,
            Err(place) => {
                let none = Effect {
                    card,
                    usage: CardUsage::default(),
                    instances: Vec::new(),
                    closes: false,
                };
                effects.insert(place, none);
                place
            }
        };
        &mut effects[place]
    }
    let mut all: Vec<Effect> = Vec::with_capacity(1);
    for (id, class, usage) in booking.usage() {
        if let Some(card) = find(cards, class, id) {
            let effect = at(&mut all, card);
            effect.usage = effect.usage.plus(usage);
        }
    }
    let cuts = !booking.mig().is_empty() || cards.iter().any(|card| card.mode.is_mig());
    if cuts {
        instances(booking, cards, &mut |card, held| {
            let effect = at(&mut all, card);
            match held {
                None => effect.closes = true,
                Some(held) if !effect.instances.contains(&held) => effect.instances.push(held),
                Some(_) => {}
            }
        });
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
            at(&mut all, card).closes = true;
        }
    }
    all
}

/// Tells `put` of each instance held, or with `None` of a card where that cannot be told.
fn instances(booking: &Booking, cards: &[Card], put: &mut impl FnMut(usize, Option<Held>)) {
    let reservations = booking.mig();
    for reservation in reservations {
        match find_cut(cards, &reservation.card) {
            None => {
                for (card, _) in cards.iter().enumerate().filter(|(_, card)| card.mode.is_mig()) {
                    put(card, None);
                }
            }
            Some(card) if cards[card].mode.is_mig() => {
                let profile = Arc::from(reservation.profile.as_str());
                put(
                    card,
                    Some(Held {
                        profile,
                        placement: reservation.placement,
                    }),
                );
            }
            Some(card) => put(card, None),
        }
    }
    for (class, card) in booking.held.cards() {
        let Some(card) = find(cards, class, card).filter(|card| cards[*card].mode.is_mig()) else {
            continue;
        };
        if !reservations
            .iter()
            .any(|reservation| find_cut(cards, &reservation.card) == Some(card))
        {
            put(card, None);
        }
    }
}
