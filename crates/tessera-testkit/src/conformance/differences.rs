//! Where we mean to differ from the reference, and why.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use toml_edit::DocumentMut;

use super::{ConformanceError, folder};

/// One intended difference.
#[derive(Debug, Clone)]
pub struct Difference {
    /// Our outcome, in the shape of the case's.
    pub ours: Value,
    /// Why, for a user of the reference.
    pub reason: String,
}

/// All intended differences, by case id.
#[derive(Debug, Clone, Default)]
pub struct Differences(BTreeMap<String, Difference>);

impl Differences {
    /// Reads `<folder>/differences.toml`: `[[difference]]` tables of `id`, `ours` (JSON) and `reason`.
    ///
    /// # Errors
    /// The file does not open or is not of this form, or an id stands twice.
    pub fn read() -> Result<Self, ConformanceError> {
        Self::read_named("differences")
    }

    /// Reads `<folder>/<name>.toml`, of the same form.
    ///
    /// # Errors
    /// As [`Differences::read`].
    pub fn read_named(name: &str) -> Result<Self, ConformanceError> {
        let path = folder().join(format!("{name}.toml"));
        let text = std::fs::read_to_string(&path).map_err(|source| ConformanceError::Read {
            path: path.clone(),
            source,
        })?;
        Self::parse(&path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ConformanceError> {
        let problem = |problem: String| ConformanceError::Differences {
            path: path.to_owned(),
            problem,
        };
        let document: DocumentMut = text.parse().map_err(|error| problem(format!("{error}")))?;
        let mut differences = BTreeMap::new();
        let tables = document.get("difference").and_then(|item| item.as_array_of_tables());
        for table in tables.into_iter().flatten() {
            let field = |name: &str| {
                table
                    .get(name)
                    .and_then(|item| item.as_str())
                    .filter(|text| !text.trim().is_empty())
                    .ok_or_else(|| problem(format!("a [[difference]] has no text `{name}`")))
            };
            let id = field("id")?.to_owned();
            let ours = serde_json::from_str(field("ours")?)
                .map_err(|error| problem(format!("`ours` of {id} is not JSON: {error}")))?;
            let reason = field("reason")?.trim().to_owned();
            if differences.insert(id.clone(), Difference { ours, reason }).is_some() {
                return Err(problem(format!("{id} stands twice")));
            }
        }
        Ok(Self(differences))
    }

    /// The difference of one case.
    #[must_use]
    pub fn of(&self, id: &str) -> Option<&Difference> {
        self.0.get(id)
    }

    /// Ids that no case of `known` has: leftovers, which are an error.
    pub fn unknown(&self, known: impl Fn(&str) -> bool) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str).filter(move |id| !known(id))
    }
}
