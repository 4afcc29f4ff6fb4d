//! Live resize, the scheduler's part: [`tessera_engine::resize`] says the next step of a pod, this carries it out.
//!
//! Each step is decided on the pod as the server has it and written on that version only. A larger share is booked in
//! memory first, in the one place where shares are booked, so that no pod that is being placed can take the room.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tessera_engine::resize;
use tessera_kube::writes::{patch_pod, read_pod_version};
use tessera_kube::{ApiError, ApiErrorKind};
use tessera_types::PodId;
use tessera_wire::patch;
use tokio_util::sync::CancellationToken;

use crate::app::App;

/// How long a larger share stays booked while the pod does not read so.
const LEASE: Duration = Duration::from_secs(60);
/// Pause before what is left is looked at again.
const RETRY: Duration = Duration::from_secs(1);
/// Tries on newer versions of a pod before others have their turn.
const TRIES: usize = 4;

impl App {
    /// Carries out the steps of all pods, until `stop`.
    pub(crate) async fn resize_pods(self: Arc<Self>, stop: CancellationToken) {
        let mut resizes = self.books.resizes();
        loop {
            let pods = Arc::clone(&resizes.borrow_and_update());
            let ours = !pods.is_empty() && self.books.is_synced() && matches!(self.sighting_is_ours().await, Ok(true));
            if ours {
                for pod in pods.values() {
                    if let Err(error) = self.resize(pod).await {
                        tracing::warn!(%pod, error = %error, "Could not take the next step of a resize, trying again.");
                    }
                }
            }
            // What is left: a step that failed, or one whose echo is on the way. A follower waits to lead.
            let again = async {
                if pods.is_empty() {
                    std::future::pending::<()>().await;
                }
                tokio::time::sleep(RETRY).await;
            };
            tokio::select! {
                () = stop.cancelled() => return,
                changed = resizes.changed() => if changed.is_err() { return },
                () = again => {}
            }
        }
    }

    /// The next steps of one pod, as far as they go now.
    async fn resize(&self, pod: &PodId) -> Result<(), ApiError> {
        let client = &self.cluster.client;
        for _ in 0..TRIES {
            let Some((found, version)) = read_pod_version(client, &pod.namespace, &pod.name).await? else {
                return Ok(());
            };
            if found.id.uid != pod.uid {
                return Ok(());
            }
            let view = self.books.view();
            let own = |node: &_| view.own_agents.contains(node);
            let Some(mut step) = resize::step(self.engine.vendors(), &view.snapshot, &found, own) else {
                return Ok(());
            };
            let mut raised = false;
            if let Some(larger) = step.raises.take() {
                match self.books.raise(larger, LEASE).await {
                    Ok(Ok(())) => raised = true,
                    Ok(Err(reason)) => step = step.refused(&format!("there is no room: {reason}")),
                    // The process is about to end.
                    Err(_closed) => return Ok(()),
                }
            }
            let mut body = patch::annotations(&step.annotations);
            body["metadata"]["resourceVersion"] = json!(version);
            match patch_pod(client, &found.id, body).await {
                Ok(()) => {
                    tracing::info!(%pod, state = ?step.state(), "Took the next step of a resize.");
                    self.metrics.resized(step.state());
                    if let Some(told) = step.told {
                        self.tell(&found.id, told.warning, told.reason, told.message);
                    }
                }
                Err(error) => {
                    // Without an answer it may have been written: the room stays booked until the watch or the lease
                    // tells.
                    if raised && error.kind() != ApiErrorKind::NoAnswer {
                        self.books.forget(found.id.uid.clone()).await;
                    }
                    if error.kind() != ApiErrorKind::Conflict {
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }
}
