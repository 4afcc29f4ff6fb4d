//! What an own certificate needs of the API server: a Secret to live in and the webhook configurations that
//! must trust it.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;

use crate::api::{ApiError, REQUEST_TIME, timed};

/// One Secret, read and written whole.
#[derive(Clone)]
pub struct SecretStore {
    api: Api<Secret>,
    name: String,
}

impl std::fmt::Debug for SecretStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecretStore")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// The Secret's content at one version.
#[derive(Clone)]
pub struct Stored {
    /// Key to bytes.
    pub data: BTreeMap<String, Vec<u8>>,
    version: Option<String>,
}

impl std::fmt::Debug for Stored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stored")
            .field("keys", &self.data.keys())
            .field("version", &self.version)
            .finish()
    }
}

impl SecretStore {
    /// The Secret `namespace/name`.
    #[must_use]
    pub fn new(client: Client, namespace: &str, name: impl Into<String>) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.into(),
        }
    }

    /// Its content, `None` if it does not exist.
    ///
    /// # Errors
    /// It may not be read, or the server does not answer.
    pub async fn read(&self) -> Result<Option<Stored>, ApiError> {
        let doing = || format!("reading secret {}", self.name);
        let found = timed(doing, REQUEST_TIME, self.api.get_opt(&self.name)).await?;
        Ok(found.map(|secret| Stored {
            version: secret.metadata.resource_version,
            data: secret
                .data
                .unwrap_or_default()
                .into_iter()
                .map(|(key, ByteString(bytes))| (key, bytes))
                .collect(),
        }))
    }

    /// Writes these keys if the Secret is still `old` (or still absent). Its type, labels and other keys stay.
    ///
    /// # Errors
    /// Somebody else wrote it ([`crate::ApiErrorKind::Conflict`], [`crate::ApiErrorKind::Exists`]), it may not be written, or
    /// the server does not answer.
    pub async fn write(&self, old: Option<&Stored>, data: BTreeMap<String, Vec<u8>>) -> Result<(), ApiError> {
        let doing = || format!("writing secret {}", self.name);
        let data: BTreeMap<String, ByteString> =
            data.into_iter().map(|(key, bytes)| (key, ByteString(bytes))).collect();
        if let Some(old) = old {
            let patch = json!({"metadata": {"resourceVersion": old.version}, "data": data});
            let params = PatchParams::default();
            return timed(
                doing,
                REQUEST_TIME,
                self.api.patch(&self.name, &params, &Patch::Merge(&patch)),
            )
            .await
            .map(drop);
        }
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                labels: Some(BTreeMap::from([(
                    "app.kubernetes.io/managed-by".to_owned(),
                    "tessera".to_owned(),
                )])),
                ..ObjectMeta::default()
            },
            data: Some(data),
            type_: Some("Opaque".to_owned()),
            ..Secret::default()
        };
        let params = PostParams::default();
        timed(doing, REQUEST_TIME, self.api.create(&params, &secret))
            .await
            .map(drop)
    }
}

/// Which configuration of webhooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WebhookKind {
    /// `MutatingWebhookConfiguration`.
    Mutating,
    /// `ValidatingWebhookConfiguration`.
    Validating,
}

/// Makes every webhook of the configuration `name` trust `bundle` (PEM); writes nothing if they do already.
/// Whether it wrote.
///
/// # Errors
/// The configuration does not exist, may not be written, or the server does not answer.
pub async fn trust_bundle(client: &Client, kind: WebhookKind, name: &str, bundle: &str) -> Result<bool, ApiError> {
    let want = ByteString(bundle.as_bytes().to_vec());
    let stale = |found: Vec<(String, Option<ByteString>)>| -> Vec<serde_json::Value> {
        found
            .into_iter()
            .filter(|(_, has)| has.as_ref() != Some(&want))
            .map(|(webhook, _)| json!({"name": webhook, "clientConfig": {"caBundle": want}}))
            .collect()
    };
    let read = || format!("reading webhook configuration {name}");
    let write = || format!("writing the CA bundle of webhook configuration {name}");
    let params = PatchParams::default();
    match kind {
        WebhookKind::Mutating => {
            let api: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
            let found = timed(read, REQUEST_TIME, api.get(name))
                .await?
                .webhooks
                .unwrap_or_default();
            let stale = stale(found.into_iter().map(|w| (w.name, w.client_config.ca_bundle)).collect());
            if stale.is_empty() {
                return Ok(false);
            }
            // Strategic: webhooks are merged by their name.
            let patch = json!({ "webhooks": stale });
            timed(write, REQUEST_TIME, api.patch(name, &params, &Patch::Strategic(&patch))).await?;
        }
        WebhookKind::Validating => {
            let api: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
            let found = timed(read, REQUEST_TIME, api.get(name))
                .await?
                .webhooks
                .unwrap_or_default();
            let stale = stale(found.into_iter().map(|w| (w.name, w.client_config.ca_bundle)).collect());
            if stale.is_empty() {
                return Ok(false);
            }
            let patch = json!({ "webhooks": stale });
            timed(write, REQUEST_TIME, api.patch(name, &params, &Patch::Strategic(&patch))).await?;
        }
    }
    Ok(true)
}
