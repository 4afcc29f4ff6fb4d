//! The part of a Node object that Tessera looks at.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use tessera_types::{IdError, NodeName};

use crate::Quantity;
use crate::pod::nullable;

/// A JSON value that is no Node.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A member has another shape than the API gives it.
    #[error("the node does not read: {0}")]
    Shape(#[from] serde_json::Error),
    /// It has no name.
    #[error("the node does not read: {0}")]
    Name(#[from] IdError),
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeView {
    /// `metadata.name`.
    pub name: NodeName,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `metadata.annotations`.
    pub annotations: BTreeMap<String, String>,
    /// `status.capacity`.
    pub capacity: BTreeMap<String, Quantity>,
    /// `status.allocatable`.
    pub allocatable: BTreeMap<String, Quantity>,
    /// `spec.unschedulable`.
    pub unschedulable: bool,
}

impl NodeView {
    /// Reads a Node object.
    ///
    /// # Errors
    /// A member that Tessera reads has another type than the API gives it, or the name is empty.
    pub fn from_json(node: &serde_json::Value) -> Result<Self, NodeError> {
        let raw = Raw::deserialize(node)?;
        Ok(raw.try_into()?)
    }

    /// The allocatable number of a resource, 0 if there is none.
    #[must_use]
    pub fn allocatable_count(&self, resource: &str) -> i64 {
        self.allocatable
            .get(resource)
            .and_then(Quantity::as_integer)
            .unwrap_or(0)
    }

    /// The number of a resource that the node has, 0 if it has none.
    #[must_use]
    pub fn capacity_count(&self, resource: &str) -> i64 {
        self.capacity.get(resource).and_then(Quantity::as_integer).unwrap_or(0)
    }

    /// An annotation's text.
    #[must_use]
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.get(key).map(String::as_str)
    }
}

impl<'de> Deserialize<'de> for NodeView {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Raw::deserialize(deserializer)?
            .try_into()
            .map_err(serde::de::Error::custom)
    }
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default, deserialize_with = "nullable")]
    metadata: RawMeta,
    #[serde(default, deserialize_with = "nullable")]
    spec: RawSpec,
    #[serde(default, deserialize_with = "nullable")]
    status: RawStatus,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawMeta {
    #[serde(deserialize_with = "nullable")]
    name: String,
    #[serde(deserialize_with = "nullable")]
    labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable")]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawSpec {
    #[serde(deserialize_with = "nullable")]
    unschedulable: bool,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawStatus {
    #[serde(deserialize_with = "nullable")]
    capacity: BTreeMap<String, Quantity>,
    #[serde(deserialize_with = "nullable")]
    allocatable: BTreeMap<String, Quantity>,
}

impl TryFrom<Raw> for NodeView {
    type Error = IdError;

    fn try_from(raw: Raw) -> Result<Self, IdError> {
        Ok(Self {
            name: NodeName::new(&raw.metadata.name)?,
            labels: raw.metadata.labels,
            annotations: raw.metadata.annotations,
            capacity: raw.status.capacity,
            allocatable: raw.status.allocatable,
            unschedulable: raw.spec.unschedulable,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn reads_counts_and_needs_a_name() {
        let node = json!({"metadata": {"name": "n", "annotations": null}, "spec": {"unschedulable": true},
            "status": {"capacity": {"nvidia.com/gpu": "8"}, "allocatable": {"nvidia.com/gpu": "7", "cpu": "1500m"}}});
        let view = NodeView::from_json(&node).unwrap();
        assert_eq!(
            (
                view.capacity_count("nvidia.com/gpu"),
                view.allocatable_count("nvidia.com/gpu")
            ),
            (8, 7)
        );
        assert_eq!((view.allocatable_count("cpu"), view.allocatable_count("x")), (0, 0));
        assert!(view.unschedulable);
        assert!(NodeView::from_json(&json!({"metadata": {}})).is_err());
    }
}
