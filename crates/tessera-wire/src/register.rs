//! What a node's device plugin publishes about its cards: the JSON register, the older string form, link scores.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tessera_types::{Card, CardId, CardMode, Cores, Extras, IdError, Keyword, Mib, MigProfile, Placement};

/// The most cards read from one node and class.
pub const CARDS_MAX: usize = 1024;
/// The most profiles of a card, and placements of a profile.
pub const PROFILES_MAX: usize = 256;

/// A register that cannot be used. It closes the node for that class and nothing else.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// Not the JSON that was expected.
    #[error("the register is not the expected JSON: {0}")]
    Json(#[source] serde_json::Error),
    /// The scores are not the JSON that was expected.
    #[error("the link scores are not the expected JSON: {0}")]
    Scores(#[source] serde_json::Error),
    /// A card without a usable id.
    #[error("card {at} of the register: {error}")]
    Id {
        /// Position in the list, from 0.
        at: usize,
        /// What is wrong.
        error: IdError,
    },
    /// A number outside its range.
    #[error("card `{card}`: {field} is {value}; it must be 0 to 2147483647")]
    Range {
        /// The card.
        card: String,
        /// The member.
        field: &'static str,
        /// What it is.
        value: i64,
    },
    /// One id twice.
    #[error("card `{0}` is registered twice")]
    Twice(CardId),
    /// More than any node has.
    #[error("more than {limit} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// The string form has no `:`.
    #[error("the register has no `:`, so it ends before its first card does")]
    Unterminated,
    /// A card of the string form with another number of fields.
    #[error("card `{text}` has {found} fields; 7 or 9 are expected")]
    Fields {
        /// The card's text.
        text: String,
        /// How many it has.
        found: usize,
    },
    /// A field of the string form that does not read.
    #[error("card `{card}`: {field} `{value}` does not read as {expected}")]
    Field {
        /// The card.
        card: String,
        /// Which field.
        field: &'static str,
        /// Its text.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
}

#[derive(Serialize, Deserialize)]
struct WirePlacement {
    #[serde(default)]
    start: u32,
    #[serde(default)]
    size: u32,
}

#[derive(Serialize, Deserialize)]
struct WireProfile {
    #[serde(default)]
    name: String,
    #[serde(default, rename = "memoryMB")]
    memory_mb: i64,
    #[serde(default)]
    core: i64,
    #[serde(default, rename = "sliceCount")]
    slice_count: u32,
    #[serde(default)]
    placements: Option<Vec<WirePlacement>>,
}

fn is_zero(number: &i64) -> bool {
    *number == 0
}

#[derive(Serialize, Deserialize, Default)]
struct WireCard {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    id: String,
    #[serde(default, skip_serializing_if = "is_zero")]
    index: i64,
    #[serde(default, skip_serializing_if = "is_zero")]
    count: i64,
    #[serde(default, skip_serializing_if = "is_zero")]
    devmem: i64,
    #[serde(default, skip_serializing_if = "is_zero")]
    devcore: i64,
    #[serde(default, rename = "type", skip_serializing_if = "String::is_empty")]
    model: String,
    #[serde(default, skip_serializing_if = "is_zero")]
    numa: i64,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    mode: String,
    #[serde(default, rename = "migProfiles", skip_serializing_if = "Option::is_none")]
    mig_profiles: Option<Vec<WireProfile>>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    health: bool,
    #[serde(default, rename = "custominfo", skip_serializing)]
    custom_info: Option<BTreeMap<String, Value>>,
}

fn in_range(card: &str, field: &'static str, value: i64) -> Result<u32, RegisterError> {
    i32::try_from(value)
        .ok()
        .and_then(|n| u32::try_from(n).ok())
        .ok_or_else(|| RegisterError::Range {
            card: card.to_owned(),
            field,
            value,
        })
}

fn profile(card: &str, wire: WireProfile) -> Result<MigProfile, RegisterError> {
    let placements = wire.placements.unwrap_or_default();
    if placements.len() > PROFILES_MAX {
        return Err(RegisterError::TooMany {
            what: "placements of a profile",
            limit: PROFILES_MAX,
        });
    }
    Ok(MigProfile {
        memory: Mib::new(u64::from(in_range(card, "memoryMB", wire.memory_mb)?)),
        cores: Cores::new(in_range(card, "core", wire.core)?),
        slices: wire.slice_count,
        placements: placements
            .into_iter()
            .map(|p| Placement {
                start: p.start,
                size: p.size,
            })
            .collect(),
        name: wire.name,
    })
}

fn card(at: usize, wire: WireCard, class: &Keyword) -> Result<Card, RegisterError> {
    let id = CardId::new(&wire.id).map_err(|error| RegisterError::Id { at, error })?;
    let profiles = wire.mig_profiles.unwrap_or_default();
    if profiles.len() > PROFILES_MAX {
        return Err(RegisterError::TooMany {
            what: "profiles of a card",
            limit: PROFILES_MAX,
        });
    }
    let text = wire.id.as_str();
    Ok(Card {
        class: class.clone(),
        index: in_range(text, "index", wire.index)?,
        slots: in_range(text, "count", wire.count)?,
        memory: Mib::new(u64::from(in_range(text, "devmem", wire.devmem)?)),
        cores: Cores::new(in_range(text, "devcore", wire.devcore)?),
        extra: Extras::NONE,
        model: Arc::from(wire.model.as_str()),
        numa: i32::try_from(wire.numa).map_err(|_| RegisterError::Range {
            card: wire.id.clone(),
            field: "numa",
            value: wire.numa,
        })?,
        mode: CardMode::new(&wire.mode),
        healthy: wire.health,
        mig_profiles: profiles
            .into_iter()
            .map(|wire| profile(text, wire))
            .collect::<Result<_, _>>()?,
        link_scores: BTreeMap::new(),
        twin: None,
        custom: wire
            .custom_info
            .unwrap_or_default()
            .into_iter()
            .map(|(name, value)| {
                let text = match value {
                    Value::String(text) => text,
                    other => other.to_string(),
                };
                (name, text)
            })
            .collect(),
        id,
    })
}

fn check_ids(cards: &[Card]) -> Result<(), RegisterError> {
    let mut seen = BTreeSet::new();
    match cards.iter().find(|card| !seen.insert(&card.id)) {
        Some(twice) => Err(RegisterError::Twice(twice.id.clone())),
        None => Ok(()),
    }
}

/// Reads the JSON register. Members left out are zero; an absent `health` is unhealthy. An empty list is no error here.
///
/// # Errors
/// Not JSON, a member of another type, an id that is empty or given twice, a number below 0 or above 2^31.
pub fn parse_json(text: &str, class: &Keyword) -> Result<Vec<Card>, RegisterError> {
    let list: Vec<WireCard> = serde_json::from_str(text).map_err(RegisterError::Json)?;
    if list.len() > CARDS_MAX {
        return Err(RegisterError::TooMany {
            what: "cards",
            limit: CARDS_MAX,
        });
    }
    let cards = list
        .into_iter()
        .enumerate()
        .map(|(at, wire)| card(at, wire, class))
        .collect::<Result<Vec<_>, _>>()?;
    check_ids(&cards)?;
    Ok(share_texts(cards))
}

/// Makes the equal texts of neighbours one: the cards of a node are of one model nearly always.
fn share_texts(mut cards: Vec<Card>) -> Vec<Card> {
    for at in 1..cards.len() {
        let (before, from) = cards.split_at_mut(at);
        if let (Some(known), Some(card)) = (before.last(), from.first_mut()) {
            if card.model == known.model {
                card.model = Arc::clone(&known.model);
            }
            if card.mode == known.mode {
                card.mode = known.mode.clone();
            }
        }
    }
    cards
}

fn clamped(number: u64) -> i64 {
    i64::try_from(number.min(2_147_483_647)).unwrap_or(i64::MAX)
}

/// Prints the JSON register in HAMi's member order, zero values left out. Class members beyond the common ones are not
/// part of it.
#[must_use]
pub fn print_json(cards: &[Card]) -> String {
    let list: Vec<WireCard> = cards
        .iter()
        .map(|card| WireCard {
            id: card.id.to_string(),
            index: i64::from(card.index),
            count: i64::from(card.slots),
            devmem: clamped(card.memory.get()),
            devcore: i64::from(card.cores.get()),
            model: card.model.as_ref().to_owned(),
            numa: i64::from(card.numa),
            mode: card.mode.as_str().to_owned(),
            mig_profiles: (!card.mig_profiles.is_empty()).then(|| {
                card.mig_profiles
                    .iter()
                    .map(|p| WireProfile {
                        name: p.name.clone(),
                        memory_mb: clamped(p.memory.get()),
                        core: i64::from(p.cores.get()),
                        slice_count: p.slices,
                        placements: Some(
                            p.placements
                                .iter()
                                .map(|p| WirePlacement {
                                    start: p.start,
                                    size: p.size,
                                })
                                .collect(),
                        ),
                    })
                    .collect()
            }),
            health: card.healthy,
            custom_info: None,
        })
        .collect();
    // Structs of numbers, texts and lists always serialise.
    serde_json::to_string(&list).unwrap_or_else(|_| "[]".to_owned())
}

/// Reads the older string form: `<id>,<count>,<MiB>,<percent>,<model>,<numa>,<healthy>[,<index>,<mode>]:` repeated.
///
/// # Errors
/// No `:`, another number of fields than 7 or 9, a number or boolean that does not read. One bad card spoils all.
pub fn parse_legacy(text: &str, class: &Keyword) -> Result<Vec<Card>, RegisterError> {
    if !text.contains(':') {
        return Err(RegisterError::Unterminated);
    }
    let mut cards = Vec::new();
    for segment in text.split(':').filter(|segment| !segment.is_empty()) {
        if cards.len() >= CARDS_MAX {
            return Err(RegisterError::TooMany {
                what: "cards",
                limit: CARDS_MAX,
            });
        }
        let fields: Vec<&str> = segment.split(',').collect();
        let (id, count, memory, cores, model, numa, health, index, mode) = match fields.as_slice() {
            [id, count, memory, cores, model, numa, health] => {
                (*id, *count, *memory, *cores, *model, *numa, *health, "0", "hami-core")
            }
            [id, count, memory, cores, model, numa, health, index, mode] => {
                (*id, *count, *memory, *cores, *model, *numa, *health, *index, *mode)
            }
            other => {
                return Err(RegisterError::Fields {
                    text: segment.chars().take(128).collect(),
                    found: other.len(),
                });
            }
        };
        let number = |field: &'static str, value: &str| {
            value.parse::<i64>().map_err(|_| RegisterError::Field {
                card: id.to_owned(),
                field,
                value: value.chars().take(32).collect(),
                expected: "an integer",
            })
        };
        let health = match health {
            "1" | "t" | "T" | "TRUE" | "true" | "True" => true,
            "0" | "f" | "F" | "FALSE" | "false" | "False" => false,
            other => {
                return Err(RegisterError::Field {
                    card: id.to_owned(),
                    field: "health",
                    value: other.chars().take(32).collect(),
                    expected: "true or false",
                });
            }
        };
        let wire = WireCard {
            id: id.to_owned(),
            index: number("index", index)?,
            count: number("count", count)?,
            devmem: number("memory", memory)?,
            devcore: number("compute", cores)?,
            model: model.to_owned(),
            numa: number("numa", numa)?,
            mode: mode.to_owned(),
            mig_profiles: None,
            health,
            custom_info: None,
        };
        cards.push(card(cards.len(), wire, class)?);
    }
    check_ids(&cards)?;
    Ok(cards)
}

/// Prints the older string form, always with nine fields.
#[must_use]
pub fn print_legacy(cards: &[Card]) -> String {
    let mut text = String::new();
    for card in cards {
        // Writing to a String cannot fail.
        let _unfailing = write!(
            text,
            "{},{},{},{},{},{},{},{},{}:",
            card.id,
            card.slots,
            card.memory.get(),
            card.cores.get(),
            card.model,
            card.numa,
            card.healthy,
            card.index,
            card.mode
        );
    }
    text
}

/// Link scores by card and peer.
pub type Scores = BTreeMap<CardId, BTreeMap<CardId, i64>>;

#[derive(Serialize, Deserialize)]
struct WireScore {
    #[serde(default)]
    uuid: String,
    #[serde(default)]
    score: Option<BTreeMap<String, i64>>,
}

/// Reads the link scores: `[{"uuid":"GPU-a","score":{"GPU-b":100}}, ...]`. Names that cannot be a card's are left out.
///
/// # Errors
/// Not the expected JSON, or more cards than any node has.
pub fn parse_scores(text: &str) -> Result<Scores, RegisterError> {
    let list: Vec<WireScore> = serde_json::from_str(text).map_err(RegisterError::Scores)?;
    if list.len() > CARDS_MAX {
        return Err(RegisterError::TooMany {
            what: "cards with link scores",
            limit: CARDS_MAX,
        });
    }
    Ok(list
        .into_iter()
        .filter_map(|entry| {
            let peers = entry
                .score
                .unwrap_or_default()
                .into_iter()
                .filter_map(|(peer, score)| Some((CardId::new(peer).ok()?, score)))
                .collect();
            Some((CardId::new(entry.uuid).ok()?, peers))
        })
        .collect())
}

/// Gives each card its scores; those of unknown cards are ignored.
pub fn join_scores(cards: &mut [Card], scores: &Scores) {
    for card in cards {
        if let Some(peers) = scores.get(&card.id) {
            card.link_scores.clone_from(peers);
        }
    }
}

/// Prints the link scores of cards, one entry per card, in the order given.
#[must_use]
pub fn print_scores(cards: &[Card]) -> String {
    let list: Vec<WireScore> = cards
        .iter()
        .map(|card| WireScore {
            uuid: card.id.to_string(),
            score: Some(
                card.link_scores
                    .iter()
                    .map(|(peer, score)| (peer.to_string(), *score))
                    .collect(),
            ),
        })
        .collect();
    serde_json::to_string(&list).unwrap_or_else(|_| "[]".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn class() -> Keyword {
        Keyword::new("NVIDIA").unwrap()
    }

    fn a_card(model: &'static str) -> impl Strategy<Value = Card> {
        (
            (
                "[A-Za-z0-9_-]{1,40}",
                0u32..64,
                0u32..100,
                0u64..2_147_483_648,
                0u32..400,
                model,
                -1i32..8,
            ),
            (prop_oneof![Just("hami-core"), Just("mig"), Just("mps")], any::<bool>()),
            prop::collection::vec(
                (
                    "[1-7]g\\.[0-9]{1,3}gb",
                    0u64..100_000,
                    0u32..101,
                    0u32..8,
                    0u32..8,
                    1u32..9,
                ),
                0..3,
            ),
        )
            .prop_map(
                |((id, index, slots, memory, cores, model, numa), (mode, healthy), profiles)| Card {
                    id: CardId::new(id).unwrap(),
                    class: class(),
                    index,
                    slots,
                    memory: Mib::new(memory),
                    cores: Cores::new(cores),
                    extra: Extras::NONE,
                    model: Arc::from(model.as_str()),
                    numa,
                    mode: CardMode::new(mode),
                    healthy,
                    mig_profiles: profiles
                        .into_iter()
                        .map(|(name, memory, cores, slices, start, size)| MigProfile {
                            name,
                            memory: Mib::new(memory),
                            cores: Cores::new(cores),
                            slices,
                            placements: vec![Placement { start, size }],
                        })
                        .collect(),
                    link_scores: BTreeMap::new(),
                    twin: None,
                    custom: BTreeMap::new(),
                },
            )
    }

    fn distinct(cards: Vec<Card>) -> Vec<Card> {
        let by_id: BTreeMap<CardId, Card> = cards.into_iter().map(|card| (card.id.clone(), card)).collect();
        by_id.into_values().collect()
    }

    proptest! {
        #[test]
        fn json_print_then_parse_is_identity(cards in prop::collection::vec(a_card(".{0,30}"), 0..5)) {
            let cards = distinct(cards);
            prop_assert_eq!(parse_json(&print_json(&cards), &class()).unwrap(), cards);
        }

        #[test]
        fn legacy_print_then_parse_is_identity(cards in prop::collection::vec(a_card("[A-Za-z0-9 -]{0,30}"), 1..5)) {
            let cards: Vec<Card> =
                distinct(cards).into_iter().map(|card| Card { mig_profiles: Vec::new(), ..card }).collect();
            prop_assert_eq!(parse_legacy(&print_legacy(&cards), &class()).unwrap(), cards);
        }

        #[test]
        fn no_text_panics(text in "[\\[\\]{}\":,a-z0-9-]{0,200}") {
            for cards in [parse_json(&text, &class()), parse_legacy(&text, &class())].into_iter().flatten() {
                prop_assert!(cards.iter().all(|card| !card.id.as_str().is_empty()));
            }
            drop(parse_scores(&text));
        }
    }

    #[test]
    fn scores_survive() {
        let mut cards = parse_json(r#"[{"id":"GPU-a"},{"id":"GPU-b"}]"#, &class()).unwrap();
        join_scores(
            &mut cards,
            &parse_scores(r#"[{"uuid":"GPU-a","score":{"GPU-b":100}},{"uuid":"x"}]"#).unwrap(),
        );
        let printed = print_scores(&cards);
        assert_eq!(
            printed,
            r#"[{"uuid":"GPU-a","score":{"GPU-b":100}},{"uuid":"GPU-b","score":{}}]"#
        );
        let mut again = parse_json(r#"[{"id":"GPU-a"},{"id":"GPU-b"}]"#, &class()).unwrap();
        join_scores(&mut again, &parse_scores(&printed).unwrap());
        assert_eq!(again, cards);
    }

    #[test]
    fn a_card_twice_or_with_less_than_nothing_is_refused() {
        assert!(matches!(
            parse_json(r#"[{"id":"a"},{"id":"a"}]"#, &class()),
            Err(RegisterError::Twice(_))
        ));
        assert!(matches!(
            parse_json(r#"[{"id":"a","devmem":-1}]"#, &class()),
            Err(RegisterError::Range { .. })
        ));
        assert!(matches!(
            parse_json(r#"[{"count":1}]"#, &class()),
            Err(RegisterError::Id { .. })
        ));
        assert!(parse_legacy("a,1,1,100,T,0,true,-1,hami-core:", &class()).is_err());
    }
}
