//! The names of a question's candidates: thousands of short texts that are read once and asked for a few times.

use std::fmt;

use serde::de::{DeserializeSeed, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// Names in the order in which they were given, side by side in one text.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct NameList {
    text: String,
    /// Where each name ends in the text.
    ends: Vec<usize>,
}

impl NameList {
    /// Adds a name.
    pub fn push(&mut self, name: &str) {
        self.text.push_str(name);
        self.ends.push(self.text.len());
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// All names.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        let mut start = 0;
        self.ends.iter().map(move |end| {
            self.text
                .get(std::mem::replace(&mut start, *end)..*end)
                .unwrap_or_default()
        })
    }

    /// Whether the name is among them, by reading them one after the other.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        let text = self.text.as_bytes();
        let name = name.as_bytes();
        // Names of nodes differ at their ends most often; looking there first spares most of the comparing.
        let last = name.last();
        let mut start = 0;
        self.ends.iter().any(|end| {
            let from = std::mem::replace(&mut start, *end);
            end - from == name.len()
                && (name.is_empty() || text.get(end - 1) == last)
                && text.get(from..*end) == Some(name)
        })
    }
}

impl fmt::Debug for NameList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<S: AsRef<str>> FromIterator<S> for NameList {
    fn from_iter<I: IntoIterator<Item = S>>(names: I) -> Self {
        let mut list = Self::default();
        for name in names {
            list.push(name.as_ref());
        }
        list
    }
}

/// Reads one name to the end of a list.
struct Next<'a>(&'a mut NameList);

impl<'de> DeserializeSeed<'de> for Next<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Next<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<(), E> {
        self.0.push(name);
        Ok(())
    }
}

impl<'de> Deserialize<'de> for NameList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;

        impl<'de> Visitor<'de> for All {
            type Value = NameList;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of names")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut names: A) -> Result<NameList, A::Error> {
                let mut list = NameList::default();
                while names.next_element_seed(Next(&mut list))?.is_some() {}
                Ok(list)
            }
        }

        deserializer.deserialize_seq(All)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_in_order_and_asked_by_whole_names() {
        let list: NameList = serde_json::from_str(r#"["node-1", "node-12", "\u006eode-2", "", "ä"]"#).unwrap();
        assert_eq!(
            list.iter().collect::<Vec<_>>(),
            ["node-1", "node-12", "node-2", "", "ä"]
        );
        assert_eq!(list.len(), 5);
        for name in ["node-1", "node-12", "node-2", "", "ä"] {
            assert!(list.contains(name), "{name}");
        }
        for name in ["node-", "ode-1", "node-1node-12", "2", "node-3"] {
            assert!(!list.contains(name), "{name}");
        }
        assert!(!NameList::default().contains(""));
        assert!(serde_json::from_str::<NameList>("[1]").is_err());
        assert!(serde_json::from_str::<NameList>("{}").is_err());
        assert_eq!(list, list.iter().collect());
    }

    #[test]
    fn what_only_looks_like_a_name_is_none() {
        let list: NameList = ["a", "aa", "n-10", "", "n-1", "b"].into_iter().collect();
        for name in ["a", "aa", "n-10", "", "n-1", "b"] {
            assert!(list.contains(name), "{name}");
        }
        for name in ["aaa", "n-", "0n-1", "n-1b", "1", "n-10n-1", "bb"] {
            assert!(!list.contains(name), "{name}");
        }
        let without: NameList = ["a", "b"].into_iter().collect();
        assert!(!without.contains(""));
    }
}
