//! Waking pods that wait for cards.
//!
//! kube-scheduler tries a refused pod again when it sees a cluster event, a deletion above all. It may see that
//! event before we do, ask us while our picture still has the old booking, be refused, and then hear nothing more
//! for five minutes. And some things that free cards (a raised quota, a lapsed promise) are no event for it at
//! all. So: whenever capacity comes free, every waiting pod that was last refused on an older picture and fits
//! now is touched with one annotation, which kube-scheduler takes as a reason to try again. A pod that was asked
//! about in the meantime is not touched.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::json;
use tessera_engine::Candidates;
use tessera_kube::ApiErrorKind;
use tessera_kube::writes::patch_pod;
use tessera_types::{Demand, PodUid};
use tessera_wire::keys;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::app::App;

/// Time for kube-scheduler to come by itself.
const GRACE: Duration = Duration::from_millis(150);
/// Pods touched for one release of capacity.
const TOUCHED: usize = 32;
/// Waiting pods looked at in one round.
const LOOKED_AT: usize = 512;
/// Waiting pods remembered. More than this wait for kube-scheduler's own retry.
const REMEMBERED: usize = 10_000;

#[derive(Debug)]
struct Entry {
    demand: Arc<Demand>,
    priority: i32,
    /// The release count of the picture it was refused on, or was touched for.
    freed: u64,
    since: u64,
}

/// Pods that were refused and have not come back.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    inner: Mutex<Inner>,
    /// A pod was refused on a picture that was outdated by then.
    late: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    entries: HashMap<PodUid, Entry>,
    arrivals: u64,
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, demand: Demand, priority: i32, freed: u64) {
        let mut inner = self.lock();
        inner.arrivals += 1;
        let since = inner
            .entries
            .get(&demand.pod.uid)
            .map_or(inner.arrivals, |entry| entry.since);
        if inner.entries.len() < REMEMBERED || inner.entries.contains_key(&demand.pod.uid) {
            let entry = Entry {
                priority,
                freed,
                since,
                demand: Arc::new(demand),
            };
            inner.entries.insert(entry.demand.pod.uid.clone(), entry);
        }
    }

    /// Has the pods looked at once more, since something came free while one was being refused.
    pub(crate) fn look_again(&self) {
        self.late.notify_one();
    }

    pub(crate) fn forget(&self, uid: &PodUid) {
        self.lock().entries.remove(uid);
    }

    pub(crate) fn count(&self) -> usize {
        self.lock().entries.len()
    }

    /// Pods refused on a picture older than `freed`: highest priority first, then who waits longest.
    fn older_than(&self, freed: u64) -> Vec<Arc<Demand>> {
        let inner = self.lock();
        let mut older: Vec<_> = inner.entries.values().filter(|entry| entry.freed < freed).collect();
        older.sort_by_key(|entry| (std::cmp::Reverse(entry.priority), entry.since));
        older
            .into_iter()
            .take(LOOKED_AT)
            .map(|entry| Arc::clone(&entry.demand))
            .collect()
    }

    /// Whether it is still waiting for `freed`; if so it now counts as touched for it.
    fn claim(&self, uid: &PodUid, freed: u64) -> bool {
        match self.lock().entries.get_mut(uid) {
            Some(entry) if entry.freed < freed => {
                entry.freed = freed;
                true
            }
            _ => false,
        }
    }
}

impl App {
    /// Touches waiting pods whenever capacity comes free, until `stop`.
    pub(crate) async fn wake_waiting(self: Arc<Self>, stop: CancellationToken) {
        let mut freed = self.books.freed();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                changed = freed.changed() => if changed.is_err() { return },
                () = self.waiting.late.notified() => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(GRACE) => {}
            }
            freed.mark_unchanged();
            // More than one round: which pods fit is known anew when the first have been placed.
            while self.touch_fitting().await {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(GRACE) => {}
                }
            }
        }
    }

    /// Touches the first waiting pods that fit. Whether there may be more.
    async fn touch_fitting(&self) -> bool {
        if !matches!(self.sighting_is_ours().await, Ok(true)) {
            return false;
        }
        let view = self.books.view();
        let mut touched = 0;
        let older = self.waiting.older_than(view.freed);
        let more = older.len() == LOOKED_AT;
        for demand in older {
            // Requests come first.
            tokio::task::yield_now().await;
            let fits = self.engine.choose(&view.snapshot, &demand, Candidates::All).is_some();
            if !self.waiting.claim(&demand.pod.uid, view.freed) || !fits {
                continue;
            }
            let now = jiff::Timestamp::now().to_string();
            let patch = json!({"metadata": {"annotations": {keys::TESSERA_WAKE: now}}});
            match patch_pod(&self.cluster.client, &demand.pod, patch).await {
                Ok(()) => {
                    self.metrics.woken.inc();
                    tracing::debug!(pod = %demand.pod, "Woke a waiting pod.");
                }
                Err(error) if matches!(error.kind(), ApiErrorKind::NotFound | ApiErrorKind::Conflict) => {
                    self.waiting.forget(&demand.pod.uid);
                    continue;
                }
                Err(error) => {
                    tracing::warn!(pod = %demand.pod, error = %error, "Could not wake a waiting pod.");
                    return false;
                }
            }
            touched += 1;
            if touched == TOUCHED {
                return true;
            }
        }
        more
    }

    /// Only the replica that schedules wakes pods and tells of nodes.
    pub(crate) async fn sighting_is_ours(&self) -> Result<bool, tessera_kube::ApiError> {
        match &self.sighting {
            None => Ok(true),
            Some(sighting) => Ok(!matches!(sighting.look().await?, tessera_kube::lease::Sight::Other(_))),
        }
    }
}
