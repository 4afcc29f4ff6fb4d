//! Work that follows the answers: annotations, events of the watch, grants of
//! pods that are gone. All of it is derived from what is on disk and at the API
//! server, so a crash at any point loses nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tessera_types::PodUid;
use tessera_wire::{keys, node_lock::NodeLock};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::book::PodWork;
use crate::cluster::{Cluster, ClusterChange};
use crate::desk::Desk;
use crate::register;

/// How long a grant outlives its pod.
const LINGER: Duration = Duration::from_secs(60);
/// How often grants of gone pods are looked for.
const SWEEP: Duration = Duration::from_secs(5);
/// First and longest pause after a failed write.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// A write that was done is not repeated while its echo is on the way.
const ECHO: Duration = Duration::from_secs(10);

/// Applies what the API server tells to the book until the channel closes or
/// `stop`. The node's annotations go to `node`; `synced` turns true after the
/// first list of pods.
pub async fn follow<C: Cluster>(
    desk: &Desk<C>,
    mut changes: mpsc::Receiver<ClusterChange>,
    node: watch::Sender<Option<BTreeMap<String, String>>>,
    synced: watch::Sender<bool>,
    stop: CancellationToken,
) {
    loop {
        let change = tokio::select! {
            () = stop.cancelled() => return,
            change = changes.recv() => change,
        };
        match change {
            None => return,
            Some(ClusterChange::Pods(pods)) => {
                desk.change(|book| book.list_pods(pods));
                synced.send_replace(true);
            }
            Some(ClusterChange::Pod(pod)) => desk.change(|book| book.set_pod(*pod)),
            Some(ClusterChange::PodGone(uid)) => {
                desk.change(|book| book.remove_pod(&uid));
            }
            Some(ClusterChange::Node(annotations)) => {
                let owner = annotations
                    .get(keys::NODE_LOCK)
                    .and_then(|text| NodeLock::parse(text).ok())
                    .and_then(|lock| lock.owner)
                    .map(|owner| (owner.namespace, owner.name));
                desk.change(|book| book.set_lock_owner(owner));
                node.send_replace(Some(annotations));
            }
        }
    }
}

/// Writes what the book says is left to write about pods, until `stop`.
pub async fn annotate<C: Cluster>(desk: Arc<Desk<C>>, stop: CancellationToken) {
    let mut changes = desk.changes();
    let mut done: BTreeMap<PodUid, (PodWork, Instant)> = BTreeMap::new();
    let mut pause = RETRY.0;
    loop {
        changes.borrow_and_update();
        done.retain(|_, (_, at)| at.elapsed() < ECHO);
        let work: Vec<PodWork> = desk.read(|book| {
            book.pod_uids()
                .into_iter()
                .filter_map(|uid| book.work(&uid))
                .filter(|work| done.get(&work.pod.uid).is_none_or(|(old, _)| old != work))
                .collect()
        });
        let mut failed = false;
        for work in work {
            match perform(&desk, &work).await {
                Ok(()) => {
                    done.insert(work.pod.uid.clone(), (work, Instant::now()));
                }
                Err(message) => {
                    failed = true;
                    warn!(pod = %work.pod, error = %message, "Cannot bring the pod's annotations up to date, trying again.");
                }
            }
        }
        let wait = if failed {
            Some(pause)
        } else if done.is_empty() {
            None
        } else {
            Some(ECHO)
        };
        pause = if failed { (pause * 2).min(RETRY.1) } else { RETRY.0 };
        tokio::select! {
            () = stop.cancelled() => return,
            changed = changes.changed(), if !failed => {
                if changed.is_err() { return }
            }
            () = sleep(wait) => {}
        }
    }
}

async fn sleep(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

async fn perform<C: Cluster>(desk: &Desk<C>, work: &PodWork) -> Result<(), String> {
    if !work.annotations.is_empty() {
        match desk.cluster().annotate_pod(&work.pod, &work.annotations).await {
            Ok(()) => debug!(pod = %work.pod, annotations = ?work.annotations.keys(), "Annotated the pod."),
            // The watch will say so as well.
            Err(error) if error.gone => debug!(pod = %work.pod, "The pod is gone."),
            Err(error) => return Err(error.message),
        }
    }
    if work.release_lock {
        desk.cluster()
            .release_lock(&work.pod)
            .await
            .map_err(|error| error.message)?;
        debug!(pod = %work.pod, "Released the node lock.");
    }
    Ok(())
}

/// Keeps the node's annotations as `wanted` says, until `stop`.
pub async fn register<C: Cluster>(
    desk: Arc<Desk<C>>,
    mut wanted: watch::Receiver<BTreeMap<String, String>>,
    mut node: watch::Receiver<Option<BTreeMap<String, String>>>,
    stop: CancellationToken,
) {
    let mut pause = RETRY.0;
    let mut sent: Option<(BTreeMap<String, Option<String>>, Instant)> = None;
    loop {
        let text = wanted.borrow_and_update().clone();
        let live = node.borrow_and_update().clone();
        let missing = live.map(|live| register::missing(&text, &live)).unwrap_or_default();
        let echo = sent
            .as_ref()
            .is_some_and(|(old, at)| *old == missing && at.elapsed() < ECHO);
        let mut wait = if missing.is_empty() { None } else { Some(ECHO) };
        if !missing.is_empty() && !echo {
            match desk.cluster().annotate_node(&missing).await {
                Ok(()) => {
                    pause = RETRY.0;
                    info!(annotations = ?missing.keys(), "Published the node's cards.");
                    sent = Some((missing, Instant::now()));
                }
                Err(error) => {
                    warn!(error = %error.message, "Cannot publish the node's cards, trying again.");
                    wait = Some(pause);
                    pause = (pause * 2).min(RETRY.1);
                }
            }
        } else if missing.is_empty() {
            // A value removed right after it was written is written again.
            sent = None;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = wanted.changed() => if changed.is_err() { return },
            changed = node.changed() => if changed.is_err() { return },
            () = sleep(wait) => {}
        }
    }
}

/// Removes grants some time after their pods ended, until `stop`.
pub async fn sweep<C: Cluster>(desk: Arc<Desk<C>>, mut synced: watch::Receiver<bool>, stop: CancellationToken) {
    // Without the list of pods every grant would look like an orphan.
    tokio::select! {
        () = stop.cancelled() => return,
        known = synced.wait_for(|synced| *synced) => if known.is_err() { return },
    }
    let mut gone: BTreeMap<String, Instant> = BTreeMap::new();
    let mut tick = tokio::time::interval(SWEEP);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        sweep_once(&desk, &mut gone, Instant::now());
        desk.cut_accounts();
    }
}

/// One pass: notes newly useless grants in `gone`, removes those noted long
/// enough ago.
pub fn sweep_once<C: Cluster>(desk: &Desk<C>, gone: &mut BTreeMap<String, Instant>, now: Instant) {
    let named: Option<BTreeSet<String>> = match desk.witness().checkpoint() {
        Ok(truth) => truth.map(|truth| truth.iter().filter_map(|one| one.grant.clone()).collect()),
        Err(_) => None,
    };
    let useless = desk.read(|book| {
        book.records()
            .filter(|record| {
                let superseded = book.records().any(|other| {
                    other.pod.uid == record.pod.uid
                        && other.container == record.container
                        && other.serial > record.serial
                        // A running container keeps its grant until the next
                        // one took its place.
                        && (other.sealed || !record.sealed)
                });
                let named = named.as_ref().is_none_or(|named| named.contains(&record.id));
                !book.is_live(&record.pod.uid) || (superseded && !named)
            })
            .cloned()
            .collect::<Vec<_>>()
    });
    gone.retain(|id, _| useless.iter().any(|record| record.id == *id));
    for record in useless {
        let since = *gone.entry(record.id.clone()).or_insert(now);
        if now.duration_since(since) >= LINGER {
            info!(grant = %record.id, pod = %record.pod, container = %record.container,
                "Removed the grant of a pod that ended.");
            desk.drop_grant(&record);
            gone.remove(&record.id);
        }
    }
}
