//! Live resize, the node's part: carries out what the scheduler accepted, and reports.
//!
//! What is to be done is derived from the pod's annotations and the records on disk each time, so a crash at any point
//! loses nothing: a step that was cut off is done again, and doing one again changes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tessera_region::resize::ResizeError;
use tessera_types::PodUid;
use tessera_wire::keys;
use tessera_wire::resize::{OnHeld, Report, State};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::book::ResizeWork;
use crate::cluster::Cluster;
use crate::desk::{Desk, chain};
use crate::records::StoreError;

/// Pause between looks at what a container holds, and after a write that failed.
const LOOK: Duration = Duration::from_millis(250);

/// How a resize went.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It is in force.
    Applied,
    /// The container holds too much for now.
    Waits(String),
    /// It cannot be; nothing was changed.
    Refused(String),
    /// It went wrong, and may be tried again.
    Failed(String),
}

impl Outcome {
    /// From what the store says of `work`.
    pub(crate) fn of(result: Result<(), StoreError>, work: &ResizeWork) -> Self {
        let (container, error) = match result {
            Ok(()) => return Self::Applied,
            Err(StoreError::Resize { container, source }) => (container, source),
            Err(error) => return Self::Failed(chain(&error)),
        };
        match error {
            ResizeError::Held {
                card,
                wanted_bytes,
                held_bytes,
            } => {
                let text = format!(
                    "container `{container}` holds {} MiB of card {card}, and is to have {} MiB",
                    held_bytes.div_ceil(1 << 20),
                    wanted_bytes >> 20
                );
                match work.status.on_held() {
                    OnHeld::Wait => Self::Waits(text),
                    OnHeld::Refuse => Self::Refused(format!(
                        "{text}; let it free memory first, or set annotation `{}` to `wait`",
                        keys::TESSERA_RESIZE_POLICY
                    )),
                }
            }
            ResizeError::NoGate { card } => Self::Refused(format!(
                "container `{container}` was started without a limit of its time on card {card} and without a priority, so its \
                 programs launch past any; delete the pod and create it anew with one"
            )),
            ResizeError::Unlimited { .. } | ResizeError::Broken(_) | ResizeError::NotStarted => Self::Refused(format!(
                "container `{container}`: {error}; delete the pod and create it anew"
            )),
            ResizeError::Io { .. } | ResizeError::Files(_) => {
                Self::Failed(format!("container `{container}`: {}", chain(&error)))
            }
        }
    }

    fn report(&self) -> Option<(State, &str)> {
        match self {
            Self::Applied => Some((State::Applied, "")),
            Self::Waits(text) => Some((State::Waiting, text)),
            Self::Refused(text) => Some((State::Refused, text)),
            Self::Failed(_) => None,
        }
    }
}

/// Carries out resizes, until `stop`.
pub async fn keep<C: Cluster>(desk: Arc<Desk<C>>, stop: CancellationToken) {
    let mut changes = desk.changes();
    let mut sent: BTreeMap<PodUid, Report> = BTreeMap::new();
    let mut aligned = false;
    loop {
        changes.borrow_and_update();
        if !aligned && desk.read(crate::book::Book::is_synced) {
            desk.align_grants().await;
            aligned = true;
        }
        let again = aligned && round(&desk, &mut sent).await;
        let pause = async {
            if again {
                tokio::time::sleep(LOOK).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
            () = pause => {}
        }
    }
}

/// One look at all pods; whether to look again soon.
async fn round<C: Cluster>(desk: &Desk<C>, sent: &mut BTreeMap<PodUid, Report>) -> bool {
    let pods: Vec<PodUid> = desk.read(|book| {
        sent.retain(|uid, _| book.is_live(uid));
        book.pod_uids()
            .into_iter()
            .filter(|uid| book.resize_work(uid).is_some())
            .collect()
    });
    let mut again = false;
    for uid in pods {
        let final_of = |report: &Report| (report.state != State::Waiting).then_some(report.generation);
        let done = sent.get(&uid).and_then(final_of);
        let Some((work, outcome, holds)) = desk.resize(&uid, done).await else {
            continue;
        };
        match &outcome {
            Outcome::Failed(error) => {
                warn!(pod = %work.pod, %error, "Cannot change a running pod's share, trying again.");
                again = true;
                continue;
            }
            Outcome::Waits(_) => again = true,
            Outcome::Applied | Outcome::Refused(_) => {}
        }
        // An answer that is not open has been reported about.
        let Some((state, message)) = outcome.report().filter(|_| work.status.state.is_open()) else {
            continue;
        };
        let report = Report {
            generation: work.status.generation,
            state,
            message: message.to_owned(),
            holds,
        };
        let known = desk.read(|book| book.pod(&uid).and_then(tessera_wire::resize::report));
        if known.as_ref() == Some(&report) || sent.get(&uid) == Some(&report) {
            continue;
        }
        let annotations = BTreeMap::from([(keys::TESSERA_RESIZE_REPORT.to_owned(), Some(report.print()))]);
        match desk.cluster().annotate_pod(&work.pod, &annotations).await {
            Ok(()) => {
                info!(pod = %work.pod, state = ?report.state, reason = %report.message, holds = %report.holds, "Reported a resize.");
                sent.insert(uid, report);
            }
            Err(error) if error.gone => {}
            Err(error) => {
                warn!(pod = %work.pod, error = %error.message, "Cannot report a resize, trying again.");
                again = true;
            }
        }
    }
    again
}
