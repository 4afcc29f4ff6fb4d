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
                self.health
                    .set(CONDITION, Err("the leader has not made it yet".to_owned()));
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
        let state = stored
            .data
            .get(STATE)
            .ok_or_else(|| Failure::Foreign(self.secret.clone()))?;
        Ok(Authority::from_json(state)?)
    }

    fn serve(&self, authority: &Authority, served: &mut String) -> Result<(), Failure> {
        if *served != authority.certificate() {
            self.certificate
                .set_pem(authority.certificate().as_bytes(), authority.key().as_bytes())?;
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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::{Value, json};
    use tessera_kube::script::{self, Log, Reply};

    use super::*;

    const SECRET: &str = "/api/v1/namespaces/ns/secrets/tls";
    const WEBHOOK: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/hook";

    /// The Secret and the webhook configuration of a server.
    type State = Arc<Mutex<(Option<Value>, Value)>>;

    fn server(secret: Option<Value>) -> (Client, Log, State) {
        let webhook = json!({"metadata": {"name": "hook"}, "webhooks": [
            {"name": "a.b.c", "admissionReviewVersions": ["v1"], "sideEffects": "None", "clientConfig": {"url": "https://x"}}]});
        let state = Arc::new(Mutex::new((secret, webhook)));
        let kept = Arc::clone(&state);
        let (client, log) = script::client(move |sent| {
            let mut state = kept.lock().unwrap();
            let (secret, webhook) = &mut *state;
            match (sent.method.as_str(), sent.path.as_str()) {
                ("GET", SECRET) => secret.clone().map_or(Reply::Refuse(404, "NotFound"), Reply::Object),
                ("POST", _) => {
                    *secret = Some(sent.body.clone());
                    Reply::Object(sent.body.clone())
                }
                ("PATCH", SECRET) => {
                    let Some(secret) = secret else {
                        return Reply::Refuse(404, "NotFound");
                    };
                    secret["data"] = sent.body["data"].clone();
                    Reply::Object(secret.clone())
                }
                ("GET", WEBHOOK) => Reply::Object(webhook.clone()),
                ("PATCH", WEBHOOK) => {
                    webhook["webhooks"][0]["clientConfig"] = sent.body["webhooks"][0]["clientConfig"].clone();
                    Reply::Object(webhook.clone())
                }
                _ => Reply::Refuse(404, "NotFound"),
            }
        });
        (client, log, state)
    }

    fn keeper(client: &Client, configuration: &str) -> Keeper {
        let role = watch::channel(Role::Leader).1;
        Keeper {
            client: client.clone(),
            namespace: "ns".to_owned(),
            secret: "tls".to_owned(),
            names: vec!["a.svc".to_owned(), "127.0.0.1".to_owned()],
            configurations: vec![configuration.to_owned()],
            certificate: Certificate::default(),
            health: Health::default(),
            role,
        }
    }

    async fn rounds(keeper: &Keeper, leads: bool, count: usize) -> Result<(), Failure> {
        let store = SecretStore::new(keeper.client.clone(), "ns", "tls");
        let mut served = String::new();
        for _ in 0..count {
            keeper.round(&store, leads, &mut served).await?;
        }
        Ok(())
    }

    #[tokio::test]
    async fn the_leader_makes_it_the_webhook_trusts_it_and_a_follower_serves_it() {
        // As a chart leaves it: made, and empty.
        for secret in [
            None,
            Some(json!({"metadata": {"name": "tls", "resourceVersion": "1"}, "type": "Opaque"})),
        ] {
            let (client, log, state) = server(secret);
            let follower = keeper(&client, "hook");
            rounds(&follower, false, 1).await.unwrap();
            assert!(!follower.certificate.is_set() && log.writes().is_empty());
            let leader = keeper(&client, "hook");
            rounds(&leader, true, 3).await.unwrap();
            assert!(leader.certificate.is_set() && leader.health.is_met(CONDITION));
            rounds(&follower, false, 1).await.unwrap();
            assert!(follower.certificate.is_set());
            let state = state.lock().unwrap();
            let secret = state.0.as_ref().unwrap();
            assert_eq!(
                state.1["webhooks"][0]["clientConfig"]["caBundle"],
                secret["data"]["ca.crt"]
            );
            assert_eq!(log.writes().len(), 2, "once made and trusted, nothing is written");
        }
    }

    #[tokio::test]
    async fn a_secret_of_somebody_else_is_left_alone() {
        let (client, log, _) = server(Some(json!({"metadata": {"name": "tls"}, "data": {"tls.crt": "eA=="}})));
        let error = rounds(&keeper(&client, "hook"), true, 1).await.unwrap_err().to_string();
        assert!(
            error.contains("secret tls is not ours") && error.contains("--tls-secret"),
            "{error}"
        );
        assert!(log.writes().is_empty());
    }

    #[tokio::test]
    async fn a_configuration_that_does_not_exist_is_named_and_the_webhook_serves_all_the_same() {
        let (client, _, _) = server(None);
        let keeper = keeper(&client, "other");
        let error = rounds(&keeper, true, 2).await.unwrap_err().to_string();
        assert!(error.contains("other"), "{error}");
        assert!(keeper.certificate.is_set());
    }
}
