//! Which cards a pod accepts, as an expression over what their node registers of them.
//!
//! A rule is read once, with all its types checked, and then answers for a card without failing and in time bounded by
//! its length. It sees only what is registered, never what is in use, so its answer changes only with the register.
//!
//! ```text
//! rule       = all { "||" all }
//! all        = one { "&&" one }
//! one        = "!" one | "(" rule ")" | comparison
//! comparison = value ("==" | "!=" | "<" | "<=" | ">" | ">=") value
//!            | value "in" "[" literal { "," literal } "]"
//!            | text "." ("contains" | "startsWith" | "endsWith") "(" text ")"
//! value      = attribute | literal
//! literal    = 'text' or "text" | number with Ki Mi Gi Ti Pi, k M G T P or no unit
//! attribute  = vendor | model | id | mode | memory | cores | slots | index | numa | links | custom["name"]
//! ```

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::Card;

mod parse;

/// The longest rule, bytes.
pub const RULE_BYTES_MAX: usize = 1024;
/// How deep parentheses and negations may be nested.
pub const RULE_DEPTH_MAX: usize = 32;

/// A rule that was read. Two are equal if their texts are.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CardRule {
    text: Arc<str>,
    root: Arc<Node>,
}

/// Why a text is no rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: {problem}")]
pub struct RuleError {
    /// Where, counted in characters from 1.
    pub column: usize,
    /// What is wrong there.
    pub problem: String,
    /// A name that is no attribute, for finding the one that was meant.
    pub unknown: Option<String>,
}

#[derive(Debug)]
enum Node {
    Any(Vec<Node>),
    All(Vec<Node>),
    Not(Box<Node>),
    Compare(Value, Relation, Value),
    In(Value, Vec<Value>),
    Text(Value, Method, Value),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relation {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    Contains,
    StartsWith,
    EndsWith,
}

/// A side of a comparison. Texts are in lower case: they compare without regard to case, as models always have.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Value {
    Text(String),
    Number(i128),
    TextOf(TextAttribute),
    NumberOf(NumberAttribute),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum TextAttribute {
    Vendor,
    Model,
    Id,
    Mode,
    Custom(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NumberAttribute {
    Memory,
    Cores,
    Slots,
    Index,
    Numa,
    Links,
}

impl Value {
    fn is_text(&self) -> bool {
        matches!(self, Self::Text(_) | Self::TextOf(_))
    }

    fn text(&self, card: &Card) -> String {
        let text = match self {
            Self::Text(text) => return text.clone(),
            Self::TextOf(TextAttribute::Vendor) => card.class.as_str(),
            Self::TextOf(TextAttribute::Model) => &card.model,
            Self::TextOf(TextAttribute::Id) => card.id.as_str(),
            Self::TextOf(TextAttribute::Mode) => card.mode.as_str(),
            Self::TextOf(TextAttribute::Custom(name)) => {
                let mut known = card.custom.iter();
                known
                    .find(|(key, _)| key.to_lowercase() == *name)
                    .map_or("", |(_, text)| text)
            }
            Self::Number(_) | Self::NumberOf(_) => "",
        };
        text.to_lowercase()
    }

    fn number(&self, card: &Card) -> i128 {
        match self {
            Self::Number(number) => *number,
            // Bytes, so that amounts with units mean what they say.
            Self::NumberOf(NumberAttribute::Memory) => i128::from(card.memory.get()) << 20,
            Self::NumberOf(NumberAttribute::Cores) => i128::from(card.cores.get()),
            Self::NumberOf(NumberAttribute::Slots) => i128::from(card.slots),
            Self::NumberOf(NumberAttribute::Index) => i128::from(card.index),
            Self::NumberOf(NumberAttribute::Numa) => i128::from(card.numa),
            Self::NumberOf(NumberAttribute::Links) => {
                i128::try_from(card.link_scores.values().filter(|score| **score > 0).count()).unwrap_or(i128::MAX)
            }
            Self::Text(_) | Self::TextOf(_) => 0,
        }
    }

    fn compare(&self, other: &Self, card: &Card) -> Ordering {
        if self.is_text() {
            self.text(card).cmp(&other.text(card))
        } else {
            self.number(card).cmp(&other.number(card))
        }
    }
}

impl Node {
    fn accepts(&self, card: &Card) -> bool {
        match self {
            Self::Any(parts) => parts.iter().any(|part| part.accepts(card)),
            Self::All(parts) => parts.iter().all(|part| part.accepts(card)),
            Self::Not(part) => !part.accepts(card),
            Self::Compare(left, relation, right) => {
                let order = left.compare(right, card);
                match relation {
                    Relation::Equal => order.is_eq(),
                    Relation::NotEqual => order.is_ne(),
                    Relation::Less => order.is_lt(),
                    Relation::LessOrEqual => order.is_le(),
                    Relation::Greater => order.is_gt(),
                    Relation::GreaterOrEqual => order.is_ge(),
                }
            }
            Self::In(value, list) => list.iter().any(|other| value.compare(other, card).is_eq()),
            Self::Text(value, method, part) => {
                let (text, part) = (value.text(card), part.text(card));
                match method {
                    Method::Contains => text.contains(&part),
                    Method::StartsWith => text.starts_with(&part),
                    Method::EndsWith => text.ends_with(&part),
                }
            }
        }
    }
}

impl CardRule {
    /// The names that a rule may use.
    pub const ATTRIBUTES: [&str; 11] = [
        "vendor", "model", "id", "mode", "memory", "cores", "slots", "index", "numa", "links", "custom",
    ];

    /// Reads a rule.
    ///
    /// # Errors
    /// The text is too long or nested too deep, is no rule, or compares a text with a number.
    pub fn parse(text: &str) -> Result<Self, RuleError> {
        let root = parse::rule(text)?;
        Ok(Self {
            text: Arc::from(text),
            root: Arc::new(root),
        })
    }

    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the card is one of those meant. An attribute that the node does not register is an empty text; an
    /// unknown NUMA node is -1.
    #[must_use]
    pub fn accepts(&self, card: &Card) -> bool {
        self.root.accepts(card)
    }
}

impl PartialEq for CardRule {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for CardRule {}

impl Hash for CardRule {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl fmt::Display for CardRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl TryFrom<String> for CardRule {
    type Error = RuleError;
    fn try_from(text: String) -> Result<Self, RuleError> {
        Self::parse(&text)
    }
}

impl From<CardRule> for String {
    fn from(rule: CardRule) -> Self {
        rule.text.as_ref().to_owned()
    }
}

#[cfg(test)]
mod tests;
