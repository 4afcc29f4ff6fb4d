//! Our own certificate for the webhook: made, kept in a Secret, renewed, and made trusted.
//!
//! The leader does the writing; every replica reads the Secret and serves what it finds. The order matters and is
//! always the same: first the API server's webhook configurations trust the bundle, and only in a later round may
//! the authority change anything (see [`tessera_http::authority`] for why that leaves no gap).

use std::collections::BTreeMap;
use std::time::Duration;

use tessera_http::{Authority, AuthorityError, Certificate, Health, TlsError};
use tessera_kube::lease::Role;
use tessera_kube::webhooks::{SecretStore, Stored, WebhookKind, trust_bundle};
use tessera_kube::{ApiError, ApiErrorKind, Client};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::app::now;

/// The condition of [`Health`] that this keeps.
pub(crate) const CONDITION: &str = "certificate";

const STATE: &str = "authority.json";
const EVERY: Duration = Duration::from_secs(30);
/// While there is no certificate yet, or something failed.
const SOON: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("secret {0} is not ours: it has no `authority.json`; name another with --tls-secret, or delete it")]
    Foreign(String),
}

/// What is to be kept.
pub(crate) struct Keeper {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    pub(crate) secret: String,
    /// DNS names and addresses of the webhook.
    pub(crate) names: Vec<String>,
    pub(crate) configurations: Vec<String>,
    pub(crate) certificate: Certificate,
    pub(crate) health: Health,
    pub(crate) role: watch::Receiver<Role>,
}

impl Keeper {
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let store = SecretStore::new(self.client.clone(), &self.namespace, &self.secret);
        let mut served = String::new();
        let mut told = None;
        loop {
            let leads = self.role.borrow_and_update().leads();
            let pause = match self.round(&store, leads, &mut served).await {
                Ok(()) => {
                    told = None;
                    if self.certificate.is_set() { EVERY } else { SOON }
                }
                Err(error) => {
                    let text = error.to_string();
                    if !self.certificate.is_set() {
                        self.health.set(CONDITION, Err(text.clone()));
                    }
                    if told.as_ref() != Some(&text) {
                        tracing::warn!(error = %text, "The webhook's own certificate is not settled, trying again.");
                        told = Some(text);
                    }
                    SOON
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                // A new leader looks at once.
                changed = self.role.changed() => if changed.is_err() {
                    // Leadership is over with the process.
                    stop.cancelled().await;
                    return;
                }
            }
        }
    }

    async fn round(&self, store: &SecretStore, leads: bool, served: &mut String) -> Result<(), Failure> {
        let stored = store.read().await?;
        // A Secret without any key was made for us by whoever installed us.
        let Some(stored) = stored.as_ref().filter(|stored| !stored.data.is_empty()) else {
            if !leads {
                self.health.set(CONDITION, Err("the leader has not made it yet".to_owned()));
                return Ok(());
            }
            let authority = Authority::create(now(), &self.names)?;
            match store.write(stored.as_ref(), data(&authority)?).await {
                Ok(()) => tracing::info!(secret = %self.secret, "Made a certificate authority for the webhook."),
                Err(error) if matches!(error.kind(), ApiErrorKind::Exists | ApiErrorKind::Conflict) => {}
                Err(error) => return Err(error.into()),
            }
            // The next round reads what is really there.
            return Ok(());
        };
        let authority = self.read(stored)?;
        self.serve(&authority, served)?;
        if !leads {
            return Ok(());
        }
        if self.trust(&authority.bundle()).await? {
            return Ok(());
        }
        if let Some(next) = authority.step(now(), &self.names)? {
            match store.write(Some(stored), data(&next)?).await {
                Ok(()) => {
                    tracing::info!(until = next.serving_until(), "Renewed the webhook's certificates.");
                    self.serve(&next, served)?;
                    self.trust(&next.bundle()).await?;
                }
                Err(error) if error.kind() == ApiErrorKind::Conflict => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn read(&self, stored: &Stored) -> Result<Authority, Failure> {
        let state = stored.data.get(STATE).ok_or_else(|| Failure::Foreign(self.secret.clone()))?;
        Ok(Authority::from_json(state)?)
    }

    fn serve(&self, authority: &Authority, served: &mut String) -> Result<(), Failure> {
        if *served != authority.certificate() {
            self.certificate.set_pem(authority.certificate().as_bytes(), authority.key().as_bytes())?;
            authority.certificate().clone_into(served);
        }
        self.health.set(CONDITION, Ok(()));
        Ok(())
    }

    /// Whether any configuration had to be told.
    async fn trust(&self, bundle: &str) -> Result<bool, Failure> {
        let mut wrote = false;
        for name in &self.configurations {
            let mut found = false;
            for kind in [WebhookKind::Mutating, WebhookKind::Validating] {
                match trust_bundle(&self.client, kind, name, bundle).await {
                    Ok(changed) => {
                        found = true;
                        wrote |= changed;
                    }
                    // A name may stand for one of the two kinds only.
                    Err(error) if error.kind() == ApiErrorKind::NotFound => {}
                    Err(error) => return Err(error.into()),
                }
            }
            if !found {
                return Err(ApiError::refused(
                    format!("making webhook configuration {name} trust our certificate"),
                    "there is no mutating or validating webhook configuration of that name",
                )
                .into());
            }
        }
        if wrote {
            tracing::info!(configurations = ?self.configurations, "The webhook configurations trust our certificate.");
        }
        Ok(wrote)
    }
}

fn data(authority: &Authority) -> Result<BTreeMap<String, Vec<u8>>, AuthorityError> {
    Ok(BTreeMap::from([
        (STATE.to_owned(), authority.to_json()?.into_bytes()),
        ("ca.crt".to_owned(), authority.bundle().into_bytes()),
        ("tls.crt".to_owned(), authority.certificate().as_bytes().to_vec()),
        ("tls.key".to_owned(), authority.key().as_bytes().to_vec()),
    ]))
}
