//! Names that stand for others, the same every time.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

/// Names shorter than this are replaced only where they are a whole value: in a text they could be anything.
const SHORT: usize = 6;

/// Makes a name that says nothing of the old one. Whoever does not know the key cannot try names out.
#[derive(Debug)]
pub(crate) struct Mask {
    key: String,
    known: BTreeMap<String, String>,
}

impl Mask {
    pub(crate) fn new(key: &str) -> Self {
        Self {
            key: key.to_owned(),
            known: BTreeMap::new(),
        }
    }

    fn hash(&self, kind: &str, name: &str) -> String {
        let mut hash = Sha256::new();
        for part in [&self.key, kind, name] {
            hash.update(part.len().to_le_bytes());
            hash.update(part);
        }
        hash.finalize()
            .iter()
            .take(6)
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    /// The name for `name`, remembered for [`Mask::text`].
    pub(crate) fn name(&mut self, kind: &str, name: &str) -> String {
        if name.is_empty() {
            return String::new();
        }
        let mask = format!("{kind}-{}", self.hash(kind, name));
        self.known.insert(name.to_owned(), mask.clone());
        mask
    }

    /// The id for a card's id. What tools tell a GPU by stays.
    pub(crate) fn card(&mut self, id: &str) -> String {
        let kind = if id.starts_with("GPU-") { "GPU" } else { "card" };
        self.name(kind, id)
    }

    /// `text` with every name that was seen, and every UUID, replaced.
    pub(crate) fn text(&self, text: &str) -> String {
        if let Some(mask) = self.known.get(text) {
            return mask.clone();
        }
        let mut out = String::with_capacity(text.len());
        let mut word = String::new();
        for letter in text.chars().chain(std::iter::once('\n')) {
            if letter.is_ascii_alphanumeric() || "-_.".contains(letter) {
                word.push(letter);
                continue;
            }
            out.push_str(&self.word(&word));
            word.clear();
            out.push(letter);
        }
        out.pop();
        out
    }

    fn word(&self, word: &str) -> String {
        if word.len() >= SHORT
            && let Some(mask) = self.known.get(word)
        {
            return mask.clone();
        }
        // An id may be a part of a word, as that of an instance is.
        let mut word = word.to_owned();
        for (name, mask) in self.known.iter().filter(|(name, _)| name.len() >= 2 * SHORT) {
            if word.contains(name.as_str()) {
                word = word.replace(name.as_str(), mask);
            }
        }
        while let Some(at) = uuid_in(&word) {
            let hash = self.hash("uuid", &word[at..at + UUID]);
            word.replace_range(at..at + UUID, &hash);
        }
        word
    }
}

const UUID: usize = 36;

/// Where a UUID starts.
fn uuid_in(word: &str) -> Option<usize> {
    let is_uuid = |part: &[u8]| {
        part.iter().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => *byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
    };
    word.as_bytes().windows(UUID).position(is_uuid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_same_under_one_key_and_others_under_another() {
        let (mut one, mut same, mut other) = (Mask::new("a"), Mask::new("a"), Mask::new("b"));
        assert_eq!(one.name("node", "n1"), same.name("node", "n1"));
        assert_ne!(one.name("node", "n1"), other.name("node", "n1"));
        assert_ne!(one.name("node", "n1"), one.name("pod", "n1"));
    }

    #[test]
    fn names_go_from_texts_and_nothing_else_does() {
        let mut mask = Mask::new("k");
        let id = mask.card("GPU-1319fb1a-32c4-53ff-84f2-b2c2563ee3ba");
        assert!(id.starts_with("GPU-") && id.len() == 16);
        let text = "GPU-1319fb1a-32c4-53ff-84f2-b2c2563ee3ba,NVIDIA,3000,30:;";
        assert_eq!(mask.text(text), format!("{id},NVIDIA,3000,30:;"));
        let part = "[GPU-1319fb1a-32c4-53ff-84f2-b2c2563ee3ba_0]";
        assert_eq!(mask.text(part), format!("[{id}_0]"));
        let unknown = mask.text("{\"id\":\"MIG-00000000-0000-0000-0000-000000000000\"}");
        assert!(unknown.starts_with("{\"id\":\"MIG-") && !unknown.contains("00000000-0000"));
        mask.name("node", "n1");
        assert_eq!(mask.text("n1,x"), "n1,x", "a short name in a text could be anything");
        assert!(mask.text("n1").starts_with("node-"));
        mask.name("node", "gpu-node-7");
        assert!(!mask.text("gpu-node-7/3").contains("gpu-node-7"));
    }
}
