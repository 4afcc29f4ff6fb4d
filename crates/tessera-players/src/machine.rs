//! The cards that a player shows, and the texts that say so.

use std::collections::BTreeMap;

use tessera_kubelet::{DeviceHealth, PluginDevice};

use crate::cards::Entry;
use crate::part::{Form, Part, Register};
use crate::template::{UnknownWord, Words, fill};

/// One card.
#[derive(Debug, Clone)]
pub struct Card {
    /// The id that the plugin registers, and that the scheduler promises.
    pub id: String,
    /// Position on the node.
    pub index: usize,
    /// What texts about it may say.
    pub words: Words,
}

/// All cards of one maker on one node.
#[derive(Debug, Clone)]
pub struct Machine {
    /// What the plugin does.
    pub part: Part,
    /// The node's name.
    pub node: String,
    /// The cards, by index.
    pub cards: Vec<Card>,
}

/// A number made of a text: the same on every machine.
fn hash(text: &str) -> u64 {
    let start = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let mixed = (start ^ (start >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed ^ (mixed >> 31)
}

impl Machine {
    /// The cards of `entries` on `node`.
    ///
    /// # Errors
    /// A text of the part names a word that it does not have.
    pub fn new(part: Part, node: &str, entries: &[Entry]) -> Result<Self, UnknownWord> {
        let total: usize = entries.iter().map(|entry| entry.count).sum();
        let mut cards = Vec::with_capacity(total);
        for entry in entries {
            let Some(model) = part.models.iter().find(|model| model.model == entry.model) else {
                continue;
            };
            for _ in 0..entry.count {
                let index = cards.len();
                let mut words: Words = model.words.clone();
                let memory = entry.memory_mib.unwrap_or(model.memory_mib);
                let numbers = [
                    ("index", index as u64),
                    ("memory_mib", memory),
                    ("cores", model.cores),
                    ("slots", u64::from(model.slots)),
                    ("numa", u64::from(entry.numa.unwrap_or(0))),
                    ("units256", memory / 256),
                    ("units512", memory / 512),
                    // Positions 0 to 3 are one group, the others the next.
                    ("ring", u64::from(index > 3)),
                    ("half", u64::from(index * 2 >= total && total > 1)),
                    ("bus", 0x10 + index as u64),
                    ("render", 128 + index as u64),
                ];
                words.extend(numbers.map(|(name, number)| (name.to_owned(), number.to_string())));
                words.insert("bdf".to_owned(), format!("0000:{:02x}:00.0", 0x10 + index));
                words.insert("model".to_owned(), model.model.clone());
                words.insert("node".to_owned(), node.to_owned());
                for at in 0..5 {
                    let number = hash(&format!("{node}/{}/{}/{index}/{at}", part.vendor, entry.model)) >> 32;
                    words.insert(format!("x{at}"), format!("{number:08x}"));
                    words.insert(format!("X{at}"), format!("{number:08X}"));
                }
                let id = fill(&part.id, &words)?;
                words.insert("id".to_owned(), id.clone());
                cards.push(Card { id, index, words });
            }
        }
        let machine = Self {
            part,
            node: node.to_owned(),
            cards,
        };
        // Every text is tried once, so that a gap is found at the start.
        machine.node_annotations(false, "", "", "")?;
        machine.devices()?;
        Ok(machine)
    }

    /// A card by its id.
    #[must_use]
    pub fn card(&self, id: &str) -> Option<&Card> {
        self.cards.iter().find(|card| card.id == id)
    }

    /// What the kubelet is told: device lists by resource, in the order of the part.
    ///
    /// # Errors
    /// A text names a word that the card does not have.
    pub fn devices(&self) -> Result<Vec<(String, Vec<PluginDevice>)>, UnknownWord> {
        let mut lists: Vec<(String, Vec<PluginDevice>)> = Vec::new();
        for resource in &self.part.resources {
            for card in &self.cards {
                let name = fill(&resource.name, &card.words)?;
                let number: u64 = fill(&resource.number, &card.words)?.parse().unwrap_or(0);
                let mut words = card.words.clone();
                let mut devices = Vec::new();
                for slot in resource.first..resource.first.saturating_add(number) {
                    words.insert("slot".to_owned(), slot.to_string());
                    devices.push(PluginDevice {
                        id: fill(&resource.id, &words)?,
                        health: DeviceHealth::Healthy,
                        numa: None,
                    });
                }
                match lists.iter_mut().find(|(known, _)| *known == name) {
                    Some((_, list)) => list.extend(devices),
                    None => lists.push((name, devices)),
                }
            }
        }
        Ok(lists)
    }

    /// The card that a device id of the kubelet belongs to.
    #[must_use]
    pub fn card_of_device(&self, resource: &str, device: &str) -> Option<&Card> {
        self.cards.iter().find(|card| {
            self.part.resources.iter().any(|known| {
                let number: u64 = fill(&known.number, &card.words)
                    .ok()
                    .and_then(|text| text.parse().ok())
                    .unwrap_or(0);
                fill(&known.name, &card.words).is_ok_and(|name| name == resource)
                    && (known.first..known.first.saturating_add(number)).any(|slot| {
                        let mut words = card.words.clone();
                        words.insert("slot".to_owned(), slot.to_string());
                        fill(&known.id, &words).is_ok_and(|id| id == device)
                    })
            })
        })
    }

    /// What the plugin writes on the node: register, heartbeat, the rest. `old`: as an older release did.
    ///
    /// # Errors
    /// A text names a word that the card does not have.
    pub fn node_annotations(
        &self,
        old: bool,
        dots: &str,
        dashes: &str,
        go: &str,
    ) -> Result<BTreeMap<String, String>, UnknownWord> {
        let mut annotations = BTreeMap::new();
        if let Some(register) = &self.part.register {
            annotations.extend(self.register(register, old)?);
        }
        for card in &self.cards {
            let mut words = card.words.clone();
            for (name, text) in [("dots", dots), ("dashes", dashes), ("go", go)] {
                words.insert(name.to_owned(), text.to_owned());
            }
            let beat = self.part.handshake.iter().map(|pair| (&pair.key, &pair.text));
            for (key, text) in beat.chain(&self.part.node_annotations) {
                annotations.insert(fill(key, &words)?, fill(text, &words)?);
            }
        }
        Ok(annotations)
    }

    fn register(&self, register: &Register, old: bool) -> Result<BTreeMap<String, String>, UnknownWord> {
        let form = register.old.as_ref().filter(|_| old).unwrap_or(&register.form);
        let mut by_key: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for card in &self.cards {
            let key = fill(&register.key, &card.words)?;
            by_key.entry(key).or_default().push(print(form, &card.words)?);
        }
        Ok(by_key
            .into_iter()
            .map(|(key, cards)| {
                let text = format!("{}{}{}", form.open, cards.join(&form.between), form.close);
                (key, text)
            })
            .collect())
    }
}

fn print(form: &Form, words: &Words) -> Result<String, UnknownWord> {
    if let Some(line) = &form.line {
        return fill(line, words);
    }
    let mut members = Vec::new();
    for (name, template) in &form.members {
        let text = fill(template, words)?;
        let zero = matches!(text.as_str(), "0" | "\"\"" | "false" | "{}");
        if !zero || form.always.contains(name) {
            members.push(format!("\"{name}\":{text}"));
        }
    }
    Ok(format!("{{{}}}", members.join(",")))
}
