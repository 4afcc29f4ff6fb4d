//! Texts with gaps: `$name` or `${name}` is replaced, `$$` is a dollar.

use std::collections::BTreeMap;

/// What the gaps are filled with.
pub type Words = BTreeMap<String, String>;

/// A gap that nothing is known for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{template}` names `${name}`, which is not one of {known}")]
pub struct UnknownWord {
    /// The whole text.
    pub template: String,
    /// The name in it.
    pub name: String,
    /// The names there are, joined by commas.
    pub known: String,
}

/// Fills the gaps.
///
/// # Errors
/// A name that is not among `words`.
pub fn fill(template: &str, words: &Words) -> Result<String, UnknownWord> {
    let mut text = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(at) = rest.find('$') {
        text.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            text.push('$');
            rest = after;
            continue;
        }
        let (name, after) = match rest.strip_prefix('{').and_then(|inner| inner.split_once('}')) {
            Some(pair) => pair,
            None => {
                let end = rest
                    .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                    .unwrap_or(rest.len());
                rest.split_at(end)
            }
        };
        let word = words.get(name).ok_or_else(|| UnknownWord {
            template: template.to_owned(),
            name: name.to_owned(),
            known: words.keys().cloned().collect::<Vec<_>>().join(", "),
        })?;
        text.push_str(word);
        rest = after;
    }
    text.push_str(rest);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_filled_and_unknown_ones_named() {
        let words = Words::from([("id".into(), "A".into()), ("n".into(), "3".into())]);
        assert_eq!(fill("$id-$n/${id}x$$", &words).unwrap(), "A-3/Ax$");
        let error = fill("$idx", &words).unwrap_err();
        assert_eq!(error.to_string(), "`$idx` names `$idx`, which is not one of id, n");
    }
}
