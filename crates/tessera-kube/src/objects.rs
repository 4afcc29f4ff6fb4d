//! What is kept of a watched object.
//!
//! A pod is ten kilobytes, of which a decision needs a few hundred bytes. Objects are trimmed while they are
//! being received, so that memory follows the cards and bookings, not the size of manifests.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::core::{ClusterResourceScope, NamespaceResourceScope};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use tessera_wire::{NodeView, PodView, Quantity};

/// The object as it was trimmed, with just enough metadata to follow it.
#[derive(Clone)]
pub struct Trimmed<V> {
    meta: ObjectMeta,
    /// The trimmed object, or why it cannot be read. An unreadable object must not stop the others.
    pub view: Result<V, String>,
}

impl<V> fmt::Debug for Trimmed<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trimmed")
            .field("name", &self.meta.name)
            .field("readable", &self.view.is_ok())
            .finish()
    }
}

impl<V> Trimmed<V> {
    /// `namespace/name`, or the name alone.
    #[must_use]
    pub fn display_name(&self) -> String {
        let name = self.meta.name.as_deref().unwrap_or_default();
        match &self.meta.namespace {
            Some(namespace) => format!("{namespace}/{name}"),
            None => name.to_owned(),
        }
    }

    /// Name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.meta.name.as_deref().unwrap_or_default()
    }

    /// Uid.
    #[must_use]
    pub fn uid(&self) -> &str {
        self.meta.uid.as_deref().unwrap_or_default()
    }

    /// The server's version of the object.
    #[must_use]
    pub fn version(&self) -> &str {
        self.meta.resource_version.as_deref().unwrap_or_default()
    }
}

/// What tells one kind from another: how it is asked for and how it is trimmed.
pub trait Kind: Clone + Send + Sync + Sized + 'static {
    /// Namespaced or not.
    type Scope: 'static;
    /// `Pod`.
    const KIND: &'static str;
    /// `pods`.
    const PLURAL: &'static str;

    /// The trimmed object.
    ///
    /// # Errors
    /// Why the object cannot be read.
    fn trim(object: &Value) -> Result<Self, String>;
}

impl Kind for PodView {
    type Scope = NamespaceResourceScope;
    const KIND: &'static str = "Pod";
    const PLURAL: &'static str = "pods";

    fn trim(object: &Value) -> Result<Self, String> {
        Self::from_json(object).map_err(|error| error.to_string())
    }
}

impl Kind for NodeView {
    type Scope = ClusterResourceScope;
    const KIND: &'static str = "Node";
    const PLURAL: &'static str = "nodes";

    fn trim(object: &Value) -> Result<Self, String> {
        Self::from_json(object).map_err(|error| error.to_string())
    }
}

/// A ResourceQuota: its hard limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuotaView {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// `spec.hard` as written: `limits.nvidia.com/gpumem` and others.
    pub hard: BTreeMap<String, Quantity>,
}

impl Kind for QuotaView {
    type Scope = NamespaceResourceScope;
    const KIND: &'static str = "ResourceQuota";
    const PLURAL: &'static str = "resourcequotas";

    fn trim(object: &Value) -> Result<Self, String> {
        let text = |pointer: &str| {
            object
                .pointer(pointer)
                .and_then(Value::as_str)
                .map(str::to_owned)
                .ok_or(format!("{pointer} is missing"))
        };
        let hard = match object.pointer("/spec/hard") {
            None => BTreeMap::new(),
            Some(hard) => BTreeMap::deserialize(hard).map_err(|error| format!("spec.hard: {error}"))?,
        };
        Ok(Self {
            namespace: text("/metadata/namespace")?,
            name: text("/metadata/name")?,
            hard,
        })
    }
}

impl<'de, V: Kind> Deserialize<'de> for Trimmed<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let object = Value::deserialize(deserializer)?;
        let text = |name: &str| {
            object
                .get("metadata")
                .and_then(|m| m.get(name))
                .and_then(Value::as_str)
                .map(str::to_owned)
        };
        let meta = ObjectMeta {
            name: text("name"),
            namespace: text("namespace"),
            uid: text("uid"),
            resource_version: text("resourceVersion"),
            ..ObjectMeta::default()
        };
        Ok(Self {
            meta,
            view: V::trim(&object),
        })
    }
}

impl<V: Kind> Resource for Trimmed<V> {
    type DynamicType = ();
    type Scope = V::Scope;

    fn kind(_: &()) -> Cow<'_, str> {
        V::KIND.into()
    }
    fn group(_: &()) -> Cow<'_, str> {
        "".into()
    }
    fn version(_: &()) -> Cow<'_, str> {
        "v1".into()
    }
    fn plural(_: &()) -> Cow<'_, str> {
        V::PLURAL.into()
    }
    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}
