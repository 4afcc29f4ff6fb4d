//! What a node says about its MetaX cards.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use tessera_engine::NodeProblem;
use tessera_types::{Card, CardId, CardMode, Cores, Extras, Keyword, Mib};
use tessera_wire::{NodeView, register::CARDS_MAX};

use super::company::CARD_QOS;

/// Node annotation: the shared cards, JSON.
pub(super) const REGISTER: &str = "metax-tech.com/node-gpu-devices";
/// Of a card's own members: its group of linked cards.
pub(super) const CARD_ZONE: &str = "LinkZone";
/// Of a card's own members: the model's name.
const CARD_MODEL: &str = "Model";
/// What a whole card is taken to have: its plugin says only how many there are. Nothing is shared out of it.
const WHOLE_MEMORY: Mib = Mib::new(65536);

/// Zero values are left out by the writer.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct WireCard {
    uuid: String,
    model: String,
    total_dev_count: i32,
    total_compute: i32,
    #[serde(rename = "totalVRam")]
    total_vram: i32,
    numa: i32,
    healthy: bool,
    qos_policy: String,
    link_zone: i32,
}

/// The shared cards.
///
/// # Errors
/// No annotation, not the expected JSON, no card, an unusable id or a negative size.
pub(super) fn shared(node: &NodeView, class: &Keyword) -> Result<Vec<Card>, NodeProblem> {
    let text = node.annotations.get(REGISTER).ok_or(NodeProblem::Absent)?;
    let key = || REGISTER.to_owned();
    let unreadable = |fault: String| NodeProblem::Unreadable { key: key(), fault };
    let list: Vec<WireCard> = serde_json::from_str(text).map_err(|error| unreadable(error.to_string()))?;
    if list.is_empty() {
        return Err(NodeProblem::Empty { key: key() });
    }
    if list.len() > CARDS_MAX {
        return Err(unreadable(format!("more than {CARDS_MAX} cards")));
    }
    list.into_iter()
        .enumerate()
        .map(|(at, wire)| card(at, wire, class).map_err(unreadable))
        .collect()
}

fn card(at: usize, wire: WireCard, class: &Keyword) -> Result<Card, String> {
    let id = CardId::new(&wire.uuid).map_err(|error| format!("card {at}: {error}"))?;
    let size = |field: &str, value: i32| {
        u32::try_from(value).map_err(|_| format!("card `{id}`: {field} is {value}, less than nothing"))
    };
    Ok(Card {
        class: class.clone(),
        index: u32::try_from(at).unwrap_or(u32::MAX),
        slots: size("totalDevCount", wire.total_dev_count)?,
        memory: Mib::new(u64::from(size("totalVRam", wire.total_vram)?)),
        cores: Cores::new(size("totalCompute", wire.total_compute)?),
        model: Arc::from(class.as_str()),
        numa: wire.numa,
        healthy: wire.healthy,
        custom: BTreeMap::from([
            (CARD_MODEL.to_owned(), wire.model),
            (CARD_QOS.to_owned(), wire.qos_policy),
            (CARD_ZONE.to_owned(), wire.link_zone.max(0).to_string()),
        ]),
        ..blank(id, class)
    })
}

/// The whole cards: as many as the node's capacity says, with names made of the node's.
///
/// # Errors
/// None there, or more than any node has.
pub(super) fn whole(node: &NodeView, resource: &str, class: &Keyword) -> Result<Vec<Card>, NodeProblem> {
    let count = usize::try_from(node.capacity_count(resource)).unwrap_or(0);
    if count == 0 {
        return Err(NodeProblem::Absent);
    }
    let problem = |fault: String| NodeProblem::Capacity {
        resource: resource.to_owned(),
        fault,
    };
    if count > CARDS_MAX {
        return Err(problem(format!("more than {CARDS_MAX} cards")));
    }
    (0..count)
        .map(|at| {
            let id = CardId::new(format!("{}-metax-{at}", node.name)).map_err(|error| problem(error.to_string()))?;
            Ok(Card {
                index: u32::try_from(at).unwrap_or(u32::MAX),
                ..blank(id, class)
            })
        })
        .collect()
}

/// A whole card that works.
fn blank(id: CardId, class: &Keyword) -> Card {
    Card {
        id,
        class: class.clone(),
        index: 0,
        slots: 1,
        memory: WHOLE_MEMORY,
        cores: Cores::new(100),
        model: Arc::from(class.as_str()),
        numa: 0,
        mode: CardMode::new(""),
        healthy: true,
        mig_profiles: Vec::new(),
        link_scores: BTreeMap::new(),
        custom: BTreeMap::new(),
        extra: Extras::NONE,
        twin: None,
    }
}

/// The group of linked cards that a card is in; 0 for none.
pub(super) fn zone(card: &Card) -> u32 {
    card.custom
        .get(CARD_ZONE)
        .and_then(|zone| zone.parse().ok())
        .unwrap_or(0)
}
