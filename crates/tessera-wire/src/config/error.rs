//! An error with its place in the file and the key that was probably meant.

use std::fmt;

use crate::nearest::nearest;

/// A configuration file that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// Line from 1, if the place is known.
    pub line: Option<u64>,
    /// Column from 1, if the place is known.
    pub column: Option<u64>,
    /// What is wrong and what to write instead.
    pub text: String,
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.line, self.column) {
            (Some(line), Some(column)) => write!(f, "line {line}, column {column}: {}", self.text),
            _ => f.write_str(&self.text),
        }
    }
}

impl ConfigError {
    /// An error without a place.
    pub(super) fn of(text: impl Into<String>) -> Self {
        Self {
            line: None,
            column: None,
            text: text.into(),
        }
    }

    /// What `serde_json` says, with its place.
    pub(super) fn json(error: &serde_json::Error) -> Self {
        let place = |n: usize| u64::try_from(n).ok().filter(|n| *n > 0);
        let text = error.to_string();
        let text = text
            .rsplit_once(" at line ")
            .map_or(text.as_str(), |(text, _)| text)
            .to_owned();
        Self {
            line: place(error.line()),
            column: place(error.column()),
            text,
        }
    }

    /// An error at the first line under `section` (from the start for `None`) that sets `key`.
    pub(super) fn at_key(file: &str, section: Option<&str>, key: &str, text: impl Into<String>) -> Self {
        let sets = |line: &str, key: &str| {
            let start = line.trim_start().trim_start_matches("- ").trim_start();
            start
                .trim_start_matches('"')
                .strip_prefix(key)
                .is_some_and(|rest| rest.trim_start_matches('"').trim_start().starts_with(':'))
        };
        let mut inside = section.is_none();
        for (number, line) in file.lines().enumerate() {
            if !inside {
                inside = section.is_some_and(|section| sets(line, section));
                continue;
            }
            if sets(line, key) {
                let column = line.find(key).unwrap_or(0);
                return Self {
                    line: u64::try_from(number).ok().map(|n| n + 1),
                    column: u64::try_from(column).ok().map(|n| n + 1),
                    text: text.into(),
                };
            }
        }
        Self::of(text)
    }
}

impl ConfigError {
    /// Says which line of `file` has a value of the wrong type: the parser names only its own word for the type.
    pub(super) fn with_line_of(mut self, file: &str) -> Self {
        let Some(wanted) = self.text.strip_prefix("invalid ").and_then(plain_type) else {
            return self;
        };
        let line = self
            .line
            .and_then(|line| usize::try_from(line).ok())
            .and_then(|line| file.lines().nth(line.checked_sub(1)?));
        if let Some(line) = line {
            let shown: String = line.trim().chars().take(80).collect();
            self.text = format!("`{shown}`: {wanted} is expected");
        }
        self
    }
}

/// A type of the language in plain words.
fn plain_type(word: &str) -> Option<&'static str> {
    match word.split_whitespace().next()? {
        "i8" | "i16" | "i32" | "i64" | "u8" | "u16" | "u32" | "u64" => Some("a whole number"),
        "f32" | "f64" | "float" => Some("a number"),
        "bool" | "boolean" => Some("true or false"),
        _ => None,
    }
}

fn unknown_key(key: &str, known: &[&'static str]) -> String {
    match nearest(key, known.iter().copied()) {
        Some(meant) => format!("unknown key `{key}`; did you mean `{meant}`?"),
        None => format!("unknown key `{key}`; the keys here are {}", known.join(", ")),
    }
}

impl From<serde_saphyr::Error> for ConfigError {
    fn from(error: serde_saphyr::Error) -> Self {
        use serde_saphyr::Error;
        let place = error.location();
        let text = match error.without_snippet() {
            Error::SerdeUnknownField { field, expected, .. } => unknown_key(field, expected),
            Error::SerdeUnknownVariant { variant, expected, .. } => match nearest(variant, expected.iter().copied()) {
                Some(meant) => format!("unknown value `{variant}`; did you mean `{meant}`?"),
                None => format!("unknown value `{variant}`; the values here are {}", expected.join(", ")),
            },
            Error::SerdeInvalidType {
                unexpected, expected, ..
            }
            | Error::SerdeInvalidValue {
                unexpected, expected, ..
            } => {
                format!("{unexpected} stands here, {expected} is expected")
            }
            Error::SerdeMissingField { field, .. } => format!("the key `{field}` is missing"),
            Error::DuplicateMappingKey { key, .. } => match key {
                Some(key) => format!("the key `{key}` stands twice; keep one of them"),
                None => "a key stands twice; keep one of them".to_owned(),
            },
            Error::Message { msg, .. } => msg.clone(),
            other => first_line(&other.to_string()),
        };
        Self {
            line: place.map(|p| p.line()),
            column: place.map(|p| p.column()),
            text,
        }
    }
}

/// The first line of a rendered error, without its leading word.
fn first_line(text: &str) -> String {
    let line = text
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty())
        .unwrap_or_default();
    let line = line.strip_prefix("error: ").unwrap_or(line);
    // The place is told before the text.
    line.rsplit_once(" at line ").map_or(line, |(text, _)| text).to_owned()
}
