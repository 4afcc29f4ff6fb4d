//! The choice of linked cards on the shapes of real machines, against trying all sets.
//!
//! `data/shapes.json` has for each pair of cards what `nvidia-smi topo -m` calls their way over PCIe and, behind a `+`,
//! the number of NVLinks between them. From both the score is made as the node agent makes it.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use tessera_engine::{Candidate, Take, topology};
use tessera_types::{Card, CardId, CardMode, Cores, Extras, Keyword, Mib};

#[derive(Deserialize)]
struct Shape {
    name: String,
    numa: Vec<i32>,
    links: Vec<String>,
}

fn shapes() -> Vec<Shape> {
    serde_json::from_str(include_str!("data/shapes.json")).unwrap()
}

fn score(label: &str) -> i64 {
    let (way, links) = label.split_once("+NV").unwrap_or((label, "0"));
    let way = match way {
        "SYS" => 10,
        "NODE" => 20,
        "PHB" => 30,
        "PXB" => 40,
        "PIX" => 50,
        "BOARD" => 60,
        other => panic!("{other}: not a way over PCIe"),
    };
    way + 100 * links.parse::<i64>().unwrap()
}

fn id(at: usize) -> CardId {
    CardId::new(format!("GPU-{at}")).unwrap()
}

fn cards(shape: &Shape) -> Vec<Card> {
    let row = |at: usize| shape.links[at].split(' ').enumerate();
    (0..shape.numa.len())
        .map(|at| Card {
            id: id(at),
            class: Keyword::new("NVIDIA").unwrap(),
            index: u32::try_from(at).unwrap(),
            slots: 10,
            memory: Mib::new(1000),
            cores: Cores::new(100),
            extra: Extras::NONE,
            model: "NVIDIA".into(),
            numa: shape.numa[at],
            mode: CardMode::default(),
            healthy: true,
            mig_profiles: Vec::new(),
            link_scores: row(at)
                .filter(|(peer, _)| *peer != at)
                .map(|(peer, label)| (id(peer), score(label)))
                .collect(),
            twin: None,
            custom: BTreeMap::new(),
        })
        .collect()
}

/// The cards of the mask, in order.
fn candidates(cards: &[Card], mask: u32) -> Vec<Candidate<'_>> {
    let take = Take {
        memory: Mib::new(1),
        ..Take::default()
    };
    let free = cards.iter().enumerate().filter(|(at, _)| mask & (1 << at) != 0);
    free.map(|(position, card)| Candidate {
        position,
        card,
        take: take.clone(),
    })
    .collect()
}

fn pairs(candidates: &[Candidate<'_>], set: u32) -> i64 {
    let members: Vec<&Candidate<'_>> = (0..candidates.len())
        .filter(|at| set & (1 << at) != 0)
        .map(|at| &candidates[at])
        .collect();
    let later = |at: usize| members[at + 1..].iter();
    let score = |one: &Candidate<'_>, other: &Candidate<'_>| one.card.link_scores[&other.card.id];
    (0..members.len())
        .flat_map(|at| later(at).map(move |other| (at, other)))
        .map(|(at, other)| score(members[at], other))
        .sum()
}

/// Of all sets of `count` that `accept` takes the best, and of equal ones the lexicographically first.
fn by_force(candidates: &[Candidate<'_>], count: u32, accept: impl Fn(&[usize]) -> bool) -> Option<Vec<usize>> {
    let members = |set: u32| -> Vec<usize> { (0..candidates.len()).filter(|at| set & (1 << at) != 0).collect() };
    let end = 1_u32 << candidates.len();
    (0..end)
        .filter(|set| set.count_ones() == count)
        .map(|set| (set, members(set)))
        .filter(|(_, members)| accept(members))
        .map(|(set, members)| (std::cmp::Reverse(pairs(candidates, set)), members))
        .min()
        .map(|(_, members)| members)
}

/// Sets of free cards: all of a small machine, every so many of a large one.
fn masks(cards: usize) -> impl Iterator<Item = u32> {
    let end = 1_u32 << cards;
    // An odd step, so that every card is free in some and taken in others.
    let step = if cards > 10 { 8191 } else { 1 + end / 256 };
    (1..end).rev().step_by(usize::try_from(step | 1).unwrap())
}

#[test]
fn the_best_set_is_that_of_trying_all_whatever_is_free() {
    for shape in shapes() {
        let cards = cards(&shape);
        for mask in masks(cards.len()) {
            let free = candidates(&cards, mask);
            for count in 2..=free.len() {
                let found = topology::best_set(&free, count).map(|best| best.members);
                let forced = by_force(&free, u32::try_from(count).unwrap(), |_| true);
                assert_eq!(found, forced, "{}: {count} of {mask:b}", shape.name);
            }
            assert_eq!(topology::best_set(&free, free.len() + 1), None);
        }
    }
}

#[test]
fn on_one_numa_node_the_best_set_is_that_of_trying_all() {
    for shape in shapes().into_iter().filter(|shape| shape.numa.len() <= 10) {
        let cards = cards(&shape);
        for mask in masks(cards.len()) {
            let free = candidates(&cards, mask);
            let together = |set: &[usize]| {
                set.windows(2)
                    .all(|pair| free[pair[0]].card.numa == free[pair[1]].card.numa)
            };
            for count in 2..=free.len() {
                let found = topology::best_set_on_one_numa_node(&free, count);
                let forced = by_force(&free, u32::try_from(count).unwrap(), together);
                let worth = |set: &Option<Vec<usize>>| {
                    let bits = set.as_ref().map(|set| set.iter().fold(0, |bits, at| bits | 1 << at));
                    bits.map(|bits| pairs(&free, bits))
                };
                assert_eq!(worth(&found), worth(&forced), "{}: {count} of {mask:b}", shape.name);
                assert!(found.is_none_or(|set| together(&set)), "{}", shape.name);
            }
        }
    }
}

/// Places `shares` single shares, each small enough for any card, and gives the cards in use.
fn after_singles(cards: &[Card], shares: usize) -> Vec<usize> {
    let all = candidates(cards, (1 << cards.len()) - 1);
    let mut in_use = vec![false; cards.len()];
    for _ in 0..shares {
        // Unused cards are examined first, as the policy `spread` has it.
        let mut order: Vec<usize> = (0..cards.len()).collect();
        order.sort_by_key(|at| in_use[*at]);
        let examined: Vec<Candidate<'_>> = order.iter().map(|at| all[*at].clone()).collect();
        let chosen = topology::best_single(&examined, |position| in_use[position]).unwrap();
        in_use[examined[chosen].position] = true;
    }
    (0..cards.len()).filter(|at| in_use[*at]).collect()
}

#[test]
fn single_shares_break_as_few_pairs_as_they_can() {
    let pairs = shapes().into_iter().find(|shape| shape.name.contains("NVL")).unwrap();
    let cards = cards(&pairs);
    for shares in 1..=8 {
        let used = after_singles(&cards, shares);
        let broken = (0..4).filter(|pair| used.iter().any(|at| at / 2 == *pair)).count();
        assert_eq!(
            broken,
            used.len().div_ceil(2),
            "after {shares} shares {used:?} are in use"
        );
    }
}

#[test]
fn a_single_share_goes_to_the_card_with_the_weakest_links() {
    for shape in shapes() {
        let cards = cards(&shape);
        let all = candidates(&cards, (1 << cards.len()) - 1);
        let chosen = topology::best_single(&all, |_| false).unwrap();
        let links = |at: usize| cards[at].link_scores.values().sum::<i64>();
        let weakest = (0..cards.len()).map(links).min().unwrap();
        assert_eq!(links(chosen), weakest, "{}", shape.name);
        let first = topology::best_set(&all, 1).unwrap().members[0];
        assert_eq!(
            chosen, first,
            "with nothing in use it is the first of the weakest: {}",
            shape.name
        );
    }
    assert_eq!(topology::best_single(&[], |_| false), None);
}

#[test]
fn a_set_of_a_large_fabric_is_found_without_listing_all() {
    // 64 cards in 8 boxes: the sets of 16 are 5e14.
    let numa: Vec<i32> = (0..64).map(|at| at / 8).collect();
    let label = |one: usize, other: usize| match (one == other, one / 8 == other / 8) {
        (true, _) => "X",
        (_, true) => "NODE+NV18",
        (_, false) => "SYS",
    };
    let row = |one: usize| (0..64).map(|other| label(one, other)).collect::<Vec<_>>().join(" ");
    let shape = Shape {
        name: "8 boxes".to_owned(),
        numa,
        links: (0..64).map(row).collect(),
    };
    let cards: Arc<[Card]> = cards(&shape).into();
    let take = Take::default();
    // One card of each of the first six boxes is in use, so that the whole boxes are the last two.
    let free: Vec<Candidate<'_>> = cards
        .iter()
        .enumerate()
        .filter(|(at, _)| at % 8 != 0 || *at >= 48)
        .map(|(position, card)| Candidate {
            position,
            card,
            take: take.clone(),
        })
        .collect();
    let found = topology::best_set(&free, 8).unwrap();
    let boxes: Vec<usize> = found.members.iter().map(|at| free[*at].position / 8).collect();
    assert_eq!(boxes, [6; 8], "a whole box, and the first of the two");
}
