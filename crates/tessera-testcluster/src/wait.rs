//! Waiting for the cluster with a deadline, and namespaces of a test's own.

use std::fmt::Debug;
use std::future::Future;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::time::Duration;

use futures::FutureExt;
use k8s_openapi::api::core::v1::{Namespace, Pod, ServiceAccount};
use kube::api::{Api, DeleteParams, PostParams};
use kube::runtime::wait::{Condition, await_condition as kube_await};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;

use crate::error::{Error, KubeContext};

/// Watches one object until `condition` holds for it, and returns it: `None`
/// when it does not exist then, as for a condition that awaits its removal.
/// `what` completes the sentence "... did not happen within 30 s".
///
/// # Errors
/// [`Error::Timeout`] at the deadline, [`Error::Kube`] when the watch breaks
/// for good.
pub async fn await_condition<K>(
    api: &Api<K>,
    name: &str,
    what: &str,
    condition: impl Condition<K>,
    deadline: Duration,
) -> Result<Option<K>, Error>
where
    K: Clone + Debug + Send + DeserializeOwned + Resource + 'static,
{
    match tokio::time::timeout(deadline, kube_await(api.clone(), name, condition)).await {
        Err(_) => Err(Error::Timeout {
            what: what.to_owned(),
            deadline,
            hint: String::new(),
        }),
        Ok(result) => result.asking(format!("wait for {what}")),
    }
}

/// Whether a pod is in this phase: `Running`, `Succeeded`, `Failed` ...
pub fn pod_phase(phase: &str) -> impl Fn(Option<&Pod>) -> bool + use<> {
    let phase = phase.to_owned();
    move |pod| {
        pod.and_then(|p| p.status.as_ref())
            .and_then(|s| s.phase.as_ref())
            .is_some_and(|p| *p == phase)
    }
}

/// Makes a namespace with a random name, waits until pods may be created in
/// it, runs `test` with its name, and deletes it afterwards, also when `test`
/// panics. The deletion is not awaited.
///
/// # Errors
/// When the namespace cannot be made.
pub async fn with_temp_namespace<T, F>(client: &Client, test: impl FnOnce(String) -> F) -> Result<T, Error>
where
    F: Future<Output = T>,
{
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let mut wanted = Namespace::default();
    wanted.metadata.generate_name = Some("tessera-".to_owned());
    let made = namespaces
        .create(&PostParams::default(), &wanted)
        .await
        .asking("create a namespace")?;
    let name = made.metadata.name.unwrap_or_default();
    // Without it the API server refuses pods.
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &name);
    await_condition(
        &accounts,
        "default",
        "the default service account of a new namespace",
        |account: Option<&ServiceAccount>| account.is_some(),
        Duration::from_secs(30),
    )
    .await?;
    let outcome = AssertUnwindSafe(test(name.clone())).catch_unwind().await;
    let deleted = namespaces.delete(&name, &DeleteParams::default()).await;
    if let Err(error) = deleted {
        tracing::warn!(namespace = %name, %error, "Namespace was not deleted.");
    }
    match outcome {
        Ok(value) => Ok(value),
        Err(panic) => resume_unwind(panic),
    }
}
