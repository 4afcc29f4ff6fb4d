//! The merge patches written on pods and nodes.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::keys;

/// The longest value that a label may have.
pub const LABEL_VALUE_CHARS_MAX: usize = 63;

/// Whether a text may be the value of a label: at most 63 characters, letters, digits, `-`, `_`, `.`, with a letter or
/// digit at both ends.
#[must_use]
pub fn is_label_value(text: &str) -> bool {
    let bytes = text.as_bytes();
    let ends = |byte: Option<&u8>| byte.is_none_or(u8::is_ascii_alphanumeric);
    bytes.len() <= LABEL_VALUE_CHARS_MAX
        && ends(bytes.first())
        && ends(bytes.last())
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

/// A patch of annotations; `None` removes one.
#[must_use]
pub fn annotations(values: &BTreeMap<String, Option<String>>) -> Value {
    let map: Map<String, Value> = values
        .iter()
        .map(|(key, value)| (key.clone(), value.clone().map_or(Value::Null, Value::String)))
        .collect();
    json!({"metadata": {"annotations": map}})
}

/// The patch that records an allocation: the annotations, and the node's name as a label too.
///
/// A node whose name cannot be a label value is left out of the labels; nothing of ours reads the label, and the whole
/// patch would be refused with it.
#[must_use]
pub fn allocation(values: &BTreeMap<String, String>) -> Value {
    let mut metadata = Map::new();
    let map: Map<String, Value> = values
        .iter()
        .map(|(key, value)| (key.clone(), Value::String(value.clone())))
        .collect();
    metadata.insert("annotations".to_owned(), Value::Object(map));
    if let Some(node) = values.get(keys::VGPU_NODE).filter(|node| is_label_value(node)) {
        metadata.insert("labels".to_owned(), json!({keys::VGPU_NODE: node}));
    }
    json!({"metadata": metadata})
}

/// The two annotations that bind adds.
#[must_use]
pub fn phase(phase: &str, bind_time: Option<i64>) -> BTreeMap<String, String> {
    let mut values = BTreeMap::from([(keys::BIND_PHASE.to_owned(), phase.to_owned())]);
    if let Some(seconds) = bind_time {
        values.insert(keys::BIND_TIME.to_owned(), seconds.to_string());
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_label_is_left_out_where_it_would_spoil_the_patch() {
        let with = |node: &str| allocation(&BTreeMap::from([(keys::VGPU_NODE.to_owned(), node.to_owned())]));
        assert_eq!(with("n1")["metadata"]["labels"][keys::VGPU_NODE], "n1");
        assert!(with(&"n".repeat(64))["metadata"].get("labels").is_none());
        assert_eq!(
            with(&"n".repeat(64))["metadata"]["annotations"][keys::VGPU_NODE],
            "n".repeat(64)
        );
    }

    #[test]
    fn a_removed_annotation_is_null() {
        let patch = annotations(&BTreeMap::from([
            ("a/b".to_owned(), None),
            ("c".to_owned(), Some("d".to_owned())),
        ]));
        assert_eq!(
            patch.to_string(),
            r#"{"metadata":{"annotations":{"a/b":null,"c":"d"}}}"#
        );
    }
}
