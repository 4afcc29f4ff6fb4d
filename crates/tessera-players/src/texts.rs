//! Texts of a part: names of cards, what is written on the node, what the kubelet is told.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::play::{Form, Part, Resource};

/// One card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// Its name in registers and allocations.
    pub id: String,
    /// Its position.
    pub index: u32,
}

/// Puts `values` in the place of `{name}`. What has no value stays.
#[must_use]
pub fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let mut text = template.to_owned();
    for (name, value) in values {
        text = text.replace(&format!("{{{name}}}"), value);
    }
    text
}

impl Part {
    /// A name from a template that knows the model.
    #[must_use]
    pub fn named(&self, template: &str) -> String {
        fill(template, &[("model", &self.model_name)])
    }

    /// The cards of this part on `node`.
    #[must_use]
    pub fn cards(&self, node: &str) -> Vec<Card> {
        (0..self.count)
            .map(|index| Card {
                id: fill(
                    &self.named(&self.play.card),
                    &[
                        ("node", node),
                        ("index", &index.to_string()),
                        // One digit, so that a name keeps its length.
                        ("unit", &format!("{index:X}")),
                    ],
                ),
                index,
            })
            .collect()
    }

    /// Ids of `resource`, all cards'.
    #[must_use]
    pub fn ids(&self, resource: &Resource, node: &str) -> Vec<String> {
        let number = match (resource.per_card, resource.per_memory_mib) {
            (Some(number), _) => number,
            (None, Some(mib)) => u32::try_from(self.model.memory_mib / mib.max(1)).unwrap_or(u32::MAX),
            (None, None) => self.model.slots,
        };
        let cards = self.cards(node);
        let ids = cards.iter().flat_map(|card| {
            (0..number).map(|slot| {
                fill(
                    &self.named(&resource.id),
                    &[
                        ("card", &card.id),
                        ("index", &card.index.to_string()),
                        ("slot", &slot.to_string()),
                        ("slot1", &(slot + 1).to_string()),
                    ],
                )
            })
        });
        ids.collect()
    }

    /// Annotations of the node at `now`.
    #[must_use]
    pub fn node_annotations(&self, node: &str, now: Timestamp) -> BTreeMap<String, String> {
        let mut annotations = BTreeMap::new();
        let Some(register) = &self.play.register else {
            return annotations;
        };
        let kind = self.named(&register.kind);
        let text = match register.form {
            Form::Json => self.json(node, &kind),
            Form::Legacy => self.legacy(node, &kind),
            Form::Metax => self.metax(node, &kind),
            Form::Drs => self.drs(node),
        };
        annotations.insert(self.named(&register.key), text);
        for (key, text) in &register.also {
            annotations.insert(self.named(key), text.clone());
        }
        if let Some(handshake) = &register.handshake {
            let text = fill(
                &handshake.text,
                &[
                    ("dots", &now.strftime("%Y.%m.%d %H:%M:%S").to_string()),
                    ("plain", &now.strftime("%Y-%m-%d %H:%M:%S +0000 UTC").to_string()),
                ],
            );
            annotations.insert(self.named(&handshake.key), text);
        }
        annotations
    }

    fn json(&self, node: &str, kind: &str) -> String {
        let cards: Vec<Value> = self
            .cards(node)
            .into_iter()
            .map(|card| {
                let mut entry = Map::new();
                entry.insert("id".into(), json!(card.id));
                let mut put = |name: &str, number: u64| {
                    // The writers leave zeros out.
                    if number > 0 {
                        entry.insert(name.into(), json!(number));
                    }
                };
                put("index", u64::from(card.index));
                put("count", u64::from(self.model.slots));
                put("devmem", self.model.memory_mib);
                put("devcore", u64::from(self.model.cores));
                entry.insert("type".into(), json!(kind));
                entry.insert("health".into(), json!(true));
                if self.model.networks > 0 {
                    let network = (card.index / 4).min(self.model.networks - 1);
                    entry.insert("custominfo".into(), json!({ "NetworkID": network }));
                }
                Value::Object(entry)
            })
            .collect();
        Value::Array(cards).to_string()
    }

    fn legacy(&self, node: &str, kind: &str) -> String {
        let cards = self.cards(node).into_iter().map(|card| {
            let common = format!(
                "{},{},{},{},{kind},0,true",
                card.id, self.model.slots, self.model.memory_mib, self.model.cores
            );
            match self.misbehave.old {
                true => format!("{common}:"),
                false => format!("{common},{},hami:", card.index),
            }
        });
        cards.collect()
    }

    fn metax(&self, node: &str, kind: &str) -> String {
        let cards: Vec<Value> = self
            .cards(node)
            .into_iter()
            .map(|card| {
                json!({
                    "uuid": card.id,
                    "bdf": format!("0000:{:02x}:00.0", card.index + 8),
                    "model": kind,
                    "totalDevCount": self.model.slots,
                    "totalCompute": self.model.cores,
                    "totalVRam": self.model.memory_mib,
                    "availableDevCount": self.model.slots,
                    "availableCompute": self.model.cores,
                    "availableVRam": self.model.memory_mib,
                    "healthy": true,
                    "linkZone": card.index / 2 + 1,
                })
            })
            .collect();
        Value::Array(cards).to_string()
    }

    fn drs(&self, node: &str) -> String {
        let devices: Vec<Value> = self
            .cards(node)
            .into_iter()
            .map(|card| {
                let index = card.index.to_string();
                json!({ "index": index, "minor": index, "capacity": self.model.slots })
            })
            .collect();
        json!({ "devices": devices, "profiles": self.model.profiles }).to_string()
    }
}
