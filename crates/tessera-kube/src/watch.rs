//! Following one kind of object without missing a state.
//!
//! List, then watch from the list's version; when the server has forgotten that version, list again. A list
//! after a gap is bracketed by [`Change::Restarted`] and [`Change::Complete`], so that the receiver can tell
//! which objects vanished meanwhile. The channel is bounded: a slow receiver slows the reading, and the server
//! keeps the rest.
//!
//! Every watch is renewed each minute and a silent one is given up soon after, since a connection that died
//! without a word (a machine that vanished) would otherwise leave us with yesterday's world and no error.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::{StreamExt as _, pin_mut};
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::{Api, Client};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::api::{ApiError, timed};
use crate::objects::{Kind, Trimmed};

/// Objects in one page of a list.
const PAGE: u32 = 250;
/// How long the server keeps one watch open, seconds. It sends a bookmark shortly before the end.
const WATCH_SECONDS: u32 = 55;
/// Silence after which a watch is given up.
const SILENCE: Duration = Duration::from_secs(65);
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// What happened to the objects of one kind.
#[derive(Debug)]
pub enum Change<V> {
    /// A list begins; what it does not name is gone.
    Restarted,
    /// An object of the list.
    Listed(Box<Trimmed<V>>),
    /// The list ends.
    Complete,
    /// An object is new or different.
    Applied(Box<Trimmed<V>>),
    /// An object is gone (or left the selection).
    Gone(Box<Trimmed<V>>),
}

/// How old our knowledge of one kind is. All clones are the same.
#[derive(Debug, Clone)]
pub struct Freshness {
    start: Instant,
    /// Milliseconds after `start` at which the server last said anything; `u64::MAX` before.
    last: Arc<AtomicU64>,
    relists: Arc<AtomicU64>,
}

impl Default for Freshness {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            last: Arc::new(AtomicU64::new(u64::MAX)),
            relists: Arc::default(),
        }
    }
}

impl Freshness {
    fn touch(&self) {
        let millis = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        // Relaxed: a single value that is only looked at.
        self.last.store(millis, Ordering::Relaxed);
    }

    /// Time since the server last said anything about this kind; `None` if it never did.
    #[must_use]
    pub fn age(&self) -> Option<Duration> {
        match self.last.load(Ordering::Relaxed) {
            u64::MAX => None,
            millis => Some(self.start.elapsed().saturating_sub(Duration::from_millis(millis))),
        }
    }

    /// How often the whole kind was listed.
    #[must_use]
    pub fn lists(&self) -> u64 {
        self.relists.load(Ordering::Relaxed)
    }
}

/// Follows all objects of the kind `V` that match `fields`, until `stop` or until nobody receives any more.
pub async fn follow<V: Kind, I>(
    client: Client,
    fields: Option<&str>,
    labels: Option<&str>,
    out: mpsc::Sender<I>,
    wrap: impl Fn(Change<V>) -> I + Send,
    freshness: Freshness,
    stop: CancellationToken,
) {
    let api: Api<Trimmed<V>> = Api::all(client);
    let work = async {
        let mut trouble = Trouble::default();
        loop {
            let mut version = match list(&api, fields, labels, &out, &wrap, &freshness).await {
                Ok(Some(version)) => version,
                Ok(None) => return,
                Err(error) => {
                    trouble.pause(V::PLURAL, &error.to_string()).await;
                    continue;
                }
            };
            trouble.over(V::PLURAL);
            loop {
                match watch(&api, fields, labels, &mut version, &out, &wrap, &freshness).await {
                    End::Renew => trouble.over(V::PLURAL),
                    End::Forgotten => break,
                    End::Closed => return,
                    End::Broken(why) => trouble.pause(V::PLURAL, &why).await,
                }
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}

/// Tells each trouble once and waits longer each time.
#[derive(Default)]
struct Trouble {
    told: Option<String>,
    times: u32,
}

impl Trouble {
    async fn pause(&mut self, plural: &'static str, why: &str) {
        if self.told.as_deref() != Some(why) {
            tracing::warn!(
                kind = plural,
                error = why,
                "Cannot follow the API server, trying again."
            );
            self.told = Some(why.to_owned());
        }
        let pause = (PAUSE_MIN * 2_u32.saturating_pow(self.times.min(8))).min(PAUSE_MAX);
        self.times += 1;
        tokio::time::sleep(pause).await;
    }

    fn over(&mut self, plural: &'static str) {
        if self.told.take().is_some() {
            tracing::info!(kind = plural, "Follow the API server again.");
        }
        self.times = 0;
    }
}

/// Sends the whole list; the version it is of, `None` if nobody receives.
async fn list<V: Kind, I>(
    api: &Api<Trimmed<V>>,
    fields: Option<&str>,
    labels: Option<&str>,
    out: &mpsc::Sender<I>,
    wrap: &impl Fn(Change<V>) -> I,
    freshness: &Freshness,
) -> Result<Option<String>, ApiError> {
    let mut params = ListParams::default().limit(PAGE);
    params.field_selector = fields.map(str::to_owned);
    params.label_selector = labels.map(str::to_owned);
    let mut begun = false;
    loop {
        let doing = || format!("listing {}", V::PLURAL);
        let page = timed(doing, Duration::from_secs(60), api.list(&params)).await?;
        freshness.touch();
        if !begun {
            begun = true;
            if out.send(wrap(Change::Restarted)).await.is_err() {
                return Ok(None);
            }
        }
        for object in page.items {
            if out.send(wrap(Change::Listed(Box::new(object)))).await.is_err() {
                return Ok(None);
            }
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => {
                freshness.relists.fetch_add(1, Ordering::Relaxed);
                let version = page.metadata.resource_version.unwrap_or_default();
                return Ok(out.send(wrap(Change::Complete)).await.is_ok().then_some(version));
            }
        }
    }
}

enum End {
    Renew,
    Forgotten,
    Closed,
    Broken(String),
}

async fn watch<V: Kind, I>(
    api: &Api<Trimmed<V>>,
    fields: Option<&str>,
    labels: Option<&str>,
    version: &mut String,
    out: &mpsc::Sender<I>,
    wrap: &impl Fn(Change<V>) -> I,
    freshness: &Freshness,
) -> End {
    let mut params = WatchParams::default().timeout(WATCH_SECONDS);
    params.field_selector = fields.map(str::to_owned);
    params.label_selector = labels.map(str::to_owned);
    let doing = || format!("watching {}", V::PLURAL);
    let stream = match timed(doing, Duration::from_secs(30), api.watch(&params, version)).await {
        Ok(stream) => stream,
        // 410: too old a version.
        Err(error) if error.to_string().contains("too old") => return End::Forgotten,
        Err(error) => return End::Broken(error.to_string()),
    };
    freshness.touch();
    pin_mut!(stream);
    loop {
        let item = match tokio::time::timeout(SILENCE, stream.next()).await {
            Err(_) => return End::Broken(format!("watching {}: silence for {} s", V::PLURAL, SILENCE.as_secs())),
            Ok(None) => return End::Renew,
            Ok(Some(Err(error))) => return End::Broken(ApiError::new(doing(), &error).to_string()),
            Ok(Some(Ok(item))) => item,
        };
        freshness.touch();
        let change = match item {
            WatchEvent::Bookmark(bookmark) => {
                *version = bookmark.metadata.resource_version;
                continue;
            }
            WatchEvent::Error(status) if status.code == 410 => return End::Forgotten,
            WatchEvent::Error(status) => return End::Broken(format!("watching {}: {}", V::PLURAL, status.message)),
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                object.version().clone_into(version);
                Change::Applied(Box::new(object))
            }
            WatchEvent::Deleted(object) => {
                object.version().clone_into(version);
                Change::Gone(Box::new(object))
            }
        };
        if out.send(wrap(change)).await.is_err() {
            return End::Closed;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use serde_json::{Value, json};
    use tessera_wire::PodView;

    use super::*;
    use crate::script::{self, Reply};

    fn pod(name: &str, version: &str) -> Value {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "ns", "uid": name, "resourceVersion": version}})
    }

    /// What the server says to one request after the other; then it is silent.
    fn server(answers: Vec<Reply>) -> Client {
        let answers = Mutex::new(answers.into_iter());
        script::client(move |_| answers.lock().unwrap().next().unwrap_or(Reply::Lost)).0
    }

    fn list(version: &str, continues: &str, pods: &[Value]) -> Reply {
        Reply::Object(json!({"apiVersion": "v1", "kind": "PodList",
            "metadata": {"resourceVersion": version, "continue": continues}, "items": pods}))
    }

    fn event(kind: &str, object: Value) -> Reply {
        Reply::Object(json!({"type": kind, "object": object}))
    }

    async fn follow_all(answers: Vec<Reply>, count: usize) -> Vec<String> {
        let (sender, mut receiver) = mpsc::channel(4);
        let stop = CancellationToken::new();
        let work = tokio::spawn(follow::<PodView, _>(
            server(answers),
            None,
            None,
            sender,
            |change| match change {
                Change::Restarted => "restarted".to_owned(),
                Change::Listed(pod) => format!("listed {}", pod.name()),
                Change::Complete => "complete".to_owned(),
                Change::Applied(pod) => format!("applied {}", pod.name()),
                Change::Gone(pod) => format!("gone {}", pod.name()),
            },
            Freshness::default(),
            stop.clone(),
        ));
        let mut seen = Vec::new();
        while seen.len() < count {
            seen.push(receiver.recv().await.unwrap());
        }
        stop.cancel();
        work.await.unwrap();
        seen
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_of_two_pages_and_what_follows() {
        let answers = vec![
            list("1", "more", &[pod("a", "1")]),
            list("1", "", &[pod("b", "1")]),
            event("ADDED", pod("c", "2")),
            event("DELETED", pod("a", "3")),
        ];
        let seen = follow_all(answers, 6).await;
        assert_eq!(
            seen,
            ["restarted", "listed a", "listed b", "complete", "applied c", "gone a"]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_version_the_server_forgot_is_listed_anew() {
        let gone = json!({"kind": "Status", "status": "Failure", "code": 410, "reason": "Expired", "message": "too old resource version"});
        let answers = vec![
            list("1", "", &[pod("a", "1")]),
            event("ERROR", gone),
            list("9", "", &[]),
            Reply::Lost,
            event("ADDED", pod("b", "10")),
        ];
        let seen = follow_all(answers, 6).await;
        assert_eq!(
            seen,
            [
                "restarted",
                "listed a",
                "complete",
                "restarted",
                "complete",
                "applied b"
            ]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_is_not_there_yet_is_asked_again() {
        let seen = follow_all(
            vec![
                Reply::Lost,
                Reply::Refuse(503, "ServiceUnavailable"),
                list("1", "", &[]),
            ],
            2,
        )
        .await;
        assert_eq!(seen, ["restarted", "complete"]);
    }
}
