//! How close the cards of a node lie.
//!
//! Today's plugin registers NUMA nodes only. A card may also register `links`, a list of `<id>:<kind>` with kind 2 for
//! a direct link and 1 for one through another card, weighted as the vendor's own choice does.

use std::collections::BTreeMap;

use tessera_types::{Card, CardId};

const LINKS: &str = "links";
/// One step of link weight against lying on one NUMA node: links first.
const STEP: i64 = 16;

/// Weight of a pair without a link, with an indirect one, with a direct one.
fn weight(kind: &str) -> i64 {
    match kind {
        "2" => 9,
        "1" => 4,
        _ => 1,
    }
}

/// Gives each pair of cards its score, where any two pairs differ at all; otherwise cards have none.
pub(super) fn join(cards: &mut [Card]) {
    let one_numa_node = cards.windows(2).all(|pair| pair[0].numa == pair[1].numa);
    if one_numa_node && cards.iter().all(|card| !card.custom.contains_key(LINKS)) {
        return;
    }
    let links: Vec<BTreeMap<String, i64>> = cards.iter().map(registered).collect();
    let places: Vec<(CardId, i32)> = cards.iter().map(|card| (card.id.clone(), card.numa)).collect();
    for (card, own) in cards.iter_mut().zip(&links) {
        for ((id, numa), other) in places.iter().zip(&links) {
            if *id == card.id {
                continue;
            }
            let link = own
                .get(id.as_str())
                .or_else(|| other.get(card.id.as_str()))
                .copied()
                .unwrap_or_else(|| weight("0"));
            let score = link * STEP + i64::from(*numa == card.numa);
            card.link_scores.insert(id.clone(), score);
        }
    }
}

/// Weights by peer. A text that does not read is no link.
fn registered(card: &Card) -> BTreeMap<String, i64> {
    let list: Vec<String> = card
        .custom
        .get(LINKS)
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default();
    list.iter()
        .filter_map(|link| link.rsplit_once(':'))
        .map(|(peer, kind)| (peer.to_owned(), weight(kind)))
        .collect()
}
