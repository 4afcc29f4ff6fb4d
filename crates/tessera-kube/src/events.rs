//! What is told to people, as Kubernetes events on a pod or a node.
//!
//! One event for one object and reason, counted up in place: a pod that waits for a day is one line in `kubectl
//! describe`, not a thousand. Telling is never on the way of a decision: the queue is bounded, writing is rate
//! bounded, repetitions are gathered, and under load events are dropped and counted.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tessera_types::{NodeName, PodId};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::api::{ApiError, ApiErrorKind, Bucket, REQUEST_TIME, timed};

/// Longest message; the API server's own limit for the field.
pub const MESSAGE_MAX: usize = 1024;
/// Pods whose event is remembered; the oldest are forgotten and then begin a new count.
const REMEMBERED: usize = 4096;
/// The same message is written again only after this long.
const REPEAT: Duration = Duration::from_secs(30);
/// A changed message is written at most this often.
const CHANGE: Duration = Duration::from_secs(2);
const TICK: Duration = Duration::from_millis(200);

/// What an event is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum About {
    /// A pod.
    Pod(PodId),
    /// A node.
    Node(NodeName),
}

impl About {
    /// Where the event is kept: events of objects without a namespace are in `default`.
    fn namespace(&self) -> &str {
        match self {
            Self::Pod(pod) => &pod.namespace,
            Self::Node(_) => "default",
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Pod(pod) => &pod.name,
            Self::Node(node) => node.as_str(),
        }
    }

    /// For nodes the name, as the kubelet has it, so that `kubectl describe node` finds the event.
    fn uid(&self) -> &str {
        match self {
            Self::Pod(pod) => pod.uid.as_str(),
            Self::Node(node) => node.as_str(),
        }
    }

    fn reference(&self) -> ObjectReference {
        let (kind, namespace) = match self {
            Self::Pod(pod) => ("Pod", Some(pod.namespace.clone())),
            Self::Node(_) => ("Node", None),
        };
        ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some(kind.to_owned()),
            namespace,
            name: Some(self.name().to_owned()),
            uid: Some(self.uid().to_owned()),
            ..ObjectReference::default()
        }
    }
}

impl std::fmt::Display for About {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pod(pod) => write!(f, "pod {pod}"),
            Self::Node(node) => write!(f, "node {node}"),
        }
    }
}

/// One thing to tell.
#[derive(Debug, Clone)]
pub struct Note {
    /// About what.
    pub about: About,
    /// A warning, or normal.
    pub warning: bool,
    /// `FilteringFailed` and such; part of the event's identity.
    pub reason: &'static str,
    /// Text for people, cut at [`MESSAGE_MAX`] bytes.
    pub message: String,
}

/// Takes notes; never waits.
#[derive(Debug, Clone)]
pub struct Recorder {
    sender: mpsc::Sender<Note>,
    dropped: Arc<AtomicU64>,
}

impl Recorder {
    /// Tells it soon, or drops it if too much is being told.
    pub fn tell(&self, note: Note) {
        if self.sender.try_send(note).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many notes were dropped.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// A recorder and the notes it takes, without a server: for tests of those who tell.
    #[must_use]
    pub fn channel(capacity: usize) -> (Self, mpsc::Receiver<Note>) {
        let (sender, receiver) = mpsc::channel(capacity);
        (
            Self {
                sender,
                dropped: Arc::default(),
            },
            receiver,
        )
    }
}

/// Writes notes as events of the component `source` until `stop`.
pub fn record(client: Client, source: String, stop: CancellationToken) -> (Recorder, impl Future<Output = ()> + Send) {
    let (recorder, mut notes) = Recorder::channel(1024);
    let dropped = Arc::clone(&recorder.dropped);
    let work = async move {
        let mut book = Book::new(client, source, dropped);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                note = notes.recv() => match note {
                    None => break,
                    Some(note) => book.take(note),
                },
                _ = tick.tick() => {}
            }
            while let Ok(note) = notes.try_recv() {
                book.take(note);
            }
            book.write_due(false).await;
        }
        while let Ok(note) = notes.try_recv() {
            book.take(note);
        }
        // What is still to be told when we end is told, but not for long.
        if tokio::time::timeout(Duration::from_secs(2), book.write_due(true))
            .await
            .is_err()
        {
            tracing::debug!("Ended with events untold.");
        }
    };
    (recorder, work)
}

#[derive(Debug)]
struct Entry {
    note: Note,
    count: i32,
    first: Timestamp,
    /// Written so far: the message and when.
    written: Option<(String, Instant)>,
    exists: bool,
    pending: bool,
    used: u64,
}

struct Book {
    client: Client,
    source: String,
    bucket: Bucket,
    entries: HashMap<(String, &'static str), Entry>,
    clock: u64,
    may_patch: bool,
    dropped: Arc<AtomicU64>,
}

impl Book {
    fn new(client: Client, source: String, dropped: Arc<AtomicU64>) -> Self {
        Self {
            client,
            source,
            bucket: Bucket::new(20.0, 50),
            entries: HashMap::new(),
            clock: 0,
            may_patch: true,
            dropped,
        }
    }

    fn take(&mut self, mut note: Note) {
        cut(&mut note.message);
        self.clock += 1;
        let used = self.clock;
        let key = (note.about.uid().to_owned(), note.reason);
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.note = note;
            entry.count = entry.count.saturating_add(1);
            entry.pending = true;
            entry.used = used;
            return;
        }
        if self.entries.len() >= REMEMBERED {
            // A tenth at a time, so that the search is paid rarely.
            let mut ages: Vec<u64> = self.entries.values().map(|entry| entry.used).collect();
            ages.sort_unstable();
            let limit = ages.get(REMEMBERED / 10).copied().unwrap_or(u64::MAX);
            self.entries.retain(|_, entry| entry.used > limit);
        }
        let first = Timestamp::now();
        self.entries.insert(
            key,
            Entry {
                note,
                count: 1,
                first,
                written: None,
                exists: false,
                pending: true,
                used,
            },
        );
    }

    async fn write_due(&mut self, all: bool) {
        let now = Instant::now();
        let mut due: Vec<(u64, (String, &'static str))> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.pending && (all || entry.is_due(now)))
            .map(|(key, entry)| (entry.used, key.clone()))
            .collect();
        due.sort();
        for (_, key) in due {
            let turn = self.bucket.take(Instant::now());
            if turn > Instant::now() + Duration::from_millis(500) && !all {
                // Too much at once: this tick's rest stays pending.
                break;
            }
            tokio::time::sleep_until(turn).await;
            let may_patch = self.may_patch;
            let Some(entry) = self.entries.get_mut(&key) else {
                continue;
            };
            entry.pending = false;
            match write(&self.client, &self.source, entry, may_patch).await {
                Ok(()) => {
                    entry.exists = true;
                    entry.written = Some((entry.note.message.clone(), Instant::now()));
                }
                Err(error) if error.kind() == ApiErrorKind::Forbidden && entry.exists => {
                    if may_patch {
                        tracing::warn!(error = %error, "May not update events, each one is written once only.");
                    }
                    self.may_patch = false;
                }
                Err(error) => {
                    self.dropped.fetch_add(1, Ordering::Relaxed);
                    entry.written = Some((String::new(), Instant::now()));
                    tracing::debug!(about = %entry.note.about, error = %error, "Could not write an event.");
                }
            }
        }
    }
}

impl Entry {
    fn is_due(&self, now: Instant) -> bool {
        match &self.written {
            None => true,
            Some((message, when)) => {
                let pause = if *message == self.note.message { REPEAT } else { CHANGE };
                now.duration_since(*when) >= pause
            }
        }
    }
}

async fn write(client: &Client, source: &str, entry: &mut Entry, may_patch: bool) -> Result<(), ApiError> {
    let note = &entry.note;
    let api: Api<Event> = Api::namespaced(client.clone(), note.about.namespace());
    let name = event_name(note);
    let doing = || format!("telling {} of {}", note.reason, note.about);
    if entry.exists {
        if !may_patch {
            return Ok(());
        }
        match update(&api, &name, entry, doing).await {
            // It ran out (events live an hour): begin anew.
            Err(error) if error.kind() == ApiErrorKind::NotFound => {}
            other => return other,
        }
    }
    let event = Event {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(note.about.namespace().to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: note.about.reference(),
        reason: Some(note.reason.to_owned()),
        message: Some(note.message.clone()),
        type_: Some(if note.warning { "Warning" } else { "Normal" }.to_owned()),
        source: Some(EventSource {
            component: Some(source.to_owned()),
            ..EventSource::default()
        }),
        count: Some(entry.count),
        first_timestamp: Some(Time(entry.first)),
        last_timestamp: Some(Time(Timestamp::now())),
        reporting_component: Some(source.to_owned()),
        ..Event::default()
    };
    match timed(doing, REQUEST_TIME, api.create(&PostParams::default(), &event)).await {
        Ok(_) => Ok(()),
        // An earlier life of ours wrote it: go on from its count.
        Err(error) if error.kind() == ApiErrorKind::Exists => {
            if let Some(old) = timed(doing, REQUEST_TIME, api.get_opt(&name)).await? {
                entry.count = entry.count.saturating_add(old.count.unwrap_or(0));
            }
            entry.exists = true;
            update(&api, &name, entry, || {
                format!("telling {} of {}", entry.note.reason, entry.note.about)
            })
            .await
        }
        Err(error) => Err(error),
    }
}

async fn update(api: &Api<Event>, name: &str, entry: &Entry, doing: impl Fn() -> String) -> Result<(), ApiError> {
    let patch = json!({
        "count": entry.count,
        "lastTimestamp": Time(Timestamp::now()),
        "message": entry.note.message,
    });
    let params = PatchParams::default();
    timed(doing, REQUEST_TIME, api.patch(name, &params, &Patch::Merge(&patch)))
        .await
        .map(drop)
}

/// Stable for one object and reason, over restarts too.
fn event_name(note: &Note) -> String {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in note.about.uid().bytes().chain(*b"/").chain(note.reason.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    }
    let name: String = note.about.name().chars().take(200).collect();
    format!("{}.{hash:016x}", name.trim_end_matches(['.', '-']))
}

fn cut(message: &mut String) {
    if message.len() > MESSAGE_MAX {
        let mut end = MESSAGE_MAX - '…'.len_utf8();
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
        message.push('…');
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use serde_json::Value;
    use tessera_types::PodUid;

    use super::*;
    use crate::script::{self, Log, Reply};

    fn note(message: &str) -> Note {
        let pod = PodId {
            namespace: "ns".to_owned(),
            name: "p".to_owned(),
            uid: PodUid::new("u").unwrap(),
        };
        Note {
            about: About::Pod(pod),
            warning: true,
            reason: "FilteringFailed",
            message: message.to_owned(),
        }
    }

    /// A server that keeps one event.
    fn server() -> (Client, Log) {
        let kept: Mutex<Option<Value>> = Mutex::default();
        script::client(move |sent| {
            let mut kept = kept.lock().unwrap();
            match (sent.method.as_str(), kept.as_mut()) {
                ("POST", Some(_)) => Reply::Refuse(409, "AlreadyExists"),
                ("POST", None) => Reply::Object(kept.insert(sent.body.clone()).clone()),
                (_, None) => Reply::Refuse(404, "NotFound"),
                ("GET", Some(event)) => Reply::Object(event.clone()),
                (_, Some(event)) => {
                    event["count"] = sent.body["count"].clone();
                    event["message"] = sent.body["message"].clone();
                    Reply::Object(event.clone())
                }
            }
        })
    }

    async fn wait_for(log: &Log, writes: usize) {
        while log.writes().len() < writes {
            tokio::time::sleep(TICK).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn repetitions_are_gathered_into_one_event() {
        let (client, log) = server();
        let stop = CancellationToken::new();
        let (recorder, work) = record(client, "test".to_owned(), stop.clone());
        let work = tokio::spawn(work);
        recorder.tell(note("no room"));
        wait_for(&log, 1).await;
        for _ in 0..20 {
            recorder.tell(note("no room"));
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(log.writes().len(), 1, "the same again is not worth a write yet");
        recorder.tell(note("still no room"));
        wait_for(&log, 2).await;
        let update = &log.writes()[1];
        assert_eq!((update.method.as_str(), &update.body["count"]), ("PATCH", &json!(22)));
        assert_eq!(update.body["message"], "still no room");
        let event = &log.writes()[0].body;
        assert_eq!(event["involvedObject"]["uid"], "u");
        assert_eq!(event["source"]["component"], "test");
        stop.cancel();
        work.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_of_an_earlier_life_is_counted_on() {
        let (client, log) = server();
        for life in 1..=2 {
            let stop = CancellationToken::new();
            let (recorder, work) = record(client.clone(), "test".to_owned(), stop.clone());
            let work = tokio::spawn(work);
            recorder.tell(note("no room"));
            // The second life tries to make it, finds it there, and updates it.
            wait_for(&log, if life == 1 { 1 } else { 3 }).await;
            stop.cancel();
            work.await.unwrap();
        }
        assert_eq!(log.writes()[2].body["count"], 2);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_pending_at_the_end_is_told() {
        let (client, log) = server();
        let stop = CancellationToken::new();
        let (recorder, work) = record(client, "test".to_owned(), stop.clone());
        recorder.tell(note("last words"));
        stop.cancel();
        work.await;
        assert_eq!(log.writes().len(), 1);
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let mut message = "é".repeat(600);
        cut(&mut message);
        assert!(message.len() <= MESSAGE_MAX && message.ends_with('…'));
    }
}
