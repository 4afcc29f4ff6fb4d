//! Who leads, and who else does.
//!
//! Two things that must not be mixed up. [`campaign`] competes for a Lease of our own: the leader is the one
//! replica that keeps singletons (certificates, clean-up). [`Sighting`] only looks at the Lease that the
//! kube-scheduler beside us competes for: filter and bind belong to the replica whose kube-scheduler leads.
//!
//! Time is monotonic and local: a lease counts as lapsed when *this* process has seen no change of it for its
//! whole duration. Clocks of other machines are never compared.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::api::{ApiError, ApiErrorKind, timed};

/// How a lease is competed for. The defaults are the ones of Kubernetes' own components.
#[derive(Debug, Clone)]
pub struct LeaseSettings {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Who we are; no two processes may share it.
    pub identity: String,
    /// After this long without a renewal another may take over.
    pub duration: Duration,
    /// A leader that could not renew for this long stops leading. Shorter than `duration`.
    pub give_up: Duration,
    /// Time between attempts.
    pub retry: Duration,
}

impl LeaseSettings {
    /// The usual times: 15 s, 10 s, 2 s.
    #[must_use]
    pub fn new(namespace: impl Into<String>, name: impl Into<String>, identity: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            identity: identity.into(),
            duration: Duration::from_secs(15),
            give_up: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }
}

/// Our part at this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// We lead.
    Leader,
    /// Somebody else does, or nobody.
    Follower {
        /// Who, if known.
        leader: Option<String>,
    },
}

impl Role {
    /// Whether we lead.
    #[must_use]
    pub fn leads(&self) -> bool {
        *self == Self::Leader
    }
}

/// What to do about a lease; the pure half of [`campaign`].
#[derive(Debug, Clone, PartialEq, Eq)]
enum Act {
    Create,
    Take { transitions: i32 },
    Renew { transitions: i32 },
    Wait { holder: String },
}

/// The last state of the lease and when we first saw it.
#[derive(Debug, Default)]
struct Elector {
    seen: Option<(Fingerprint, Instant)>,
}

#[derive(Debug, PartialEq, Eq)]
struct Fingerprint {
    holder: String,
    renewed: Option<Timestamp>,
    version: Option<String>,
}

impl Elector {
    fn plan(&mut self, now: Instant, lease: Option<&Lease>, identity: &str) -> Act {
        let Some(lease) = lease else { return Act::Create };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.unwrap_or_default();
        let transitions = spec.lease_transitions.unwrap_or(0);
        let print = Fingerprint {
            holder: holder.clone(),
            renewed: spec.renew_time.map(|time| time.0),
            version: lease.metadata.resource_version.clone(),
        };
        if self.seen.as_ref().is_none_or(|(seen, _)| *seen != print) {
            self.seen = Some((print, now));
        }
        let since = self.seen.as_ref().map_or(now, |(_, since)| *since);
        let life = Duration::from_secs(
            spec.lease_duration_seconds
                .and_then(|s| u64::try_from(s).ok())
                .unwrap_or(15),
        );
        if holder == identity {
            Act::Renew { transitions }
        } else if holder.is_empty() || now.duration_since(since) >= life {
            Act::Take {
                transitions: transitions.saturating_add(1),
            }
        } else {
            Act::Wait { holder }
        }
    }
}

/// Competes for the lease until `stop`; the future is the work, the receiver the result.
///
/// When the future ends it has given the lease back, so that a successor need not wait.
pub fn campaign(
    client: Client,
    settings: LeaseSettings,
    stop: CancellationToken,
) -> (watch::Receiver<Role>, impl Future<Output = ()> + Send) {
    let (role, receiver) = watch::channel(Role::Follower { leader: None });
    (receiver, run(client, settings, role, stop))
}

async fn run(client: Client, settings: LeaseSettings, role: watch::Sender<Role>, stop: CancellationToken) {
    let api: Api<Lease> = Api::namespaced(client, &settings.namespace);
    let mut elector = Elector::default();
    // The lease as we last wrote it: renewing it needs no reading.
    let mut held: Option<Lease> = None;
    let mut renewed = Instant::now();
    let mut complained = None;
    loop {
        let started = Instant::now();
        // An attempt must not outlive the time in which we may still believe to lead.
        let mut time = settings.give_up / 2;
        if role.borrow().leads() {
            time = time.min((renewed + settings.give_up).saturating_duration_since(started));
        }
        let outcome = tokio::select! {
            () = stop.cancelled() => break,
            outcome = attempt(&api, &settings, &mut elector, held.take(), time) => outcome,
        };
        match outcome {
            Ok(Attempt::Held(lease)) => {
                held = Some(*lease);
                renewed = started;
                complained = None;
                set(&role, Role::Leader, &settings);
            }
            Ok(Attempt::Other(holder)) => {
                complained = None;
                set(&role, Role::Follower { leader: Some(holder) }, &settings);
            }
            Err(error) => {
                let text = error.to_string();
                if complained.as_ref() != Some(&text) {
                    tracing::warn!(error = %text, "Could not read or renew the lease.");
                    complained = Some(text);
                }
                if role.borrow().leads() && renewed.elapsed() >= settings.give_up {
                    set(&role, Role::Follower { leader: None }, &settings);
                }
            }
        }
        let mut pause = settings.retry;
        if role.borrow().leads() {
            pause = pause.min((renewed + settings.give_up).saturating_duration_since(Instant::now()));
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(pause) => {}
        }
    }
    if role.borrow().leads() {
        set(&role, Role::Follower { leader: None }, &settings);
        release(&api, &settings).await;
    }
}

fn set(role: &watch::Sender<Role>, new: Role, settings: &LeaseSettings) {
    role.send_if_modified(|old| {
        if *old == new {
            return false;
        }
        match &new {
            Role::Leader => tracing::info!(lease = %settings.name, "Took the lead."),
            Role::Follower { leader } if old.leads() => {
                tracing::warn!(lease = %settings.name, leader = ?leader, "Lost the lead.");
            }
            Role::Follower { leader } => tracing::info!(lease = %settings.name, leader = ?leader, "Follow."),
        }
        *old = new;
        true
    });
}

enum Attempt {
    Held(Box<Lease>),
    Other(String),
}

async fn attempt(
    api: &Api<Lease>,
    settings: &LeaseSettings,
    elector: &mut Elector,
    held: Option<Lease>,
    time: Duration,
) -> Result<Attempt, ApiError> {
    let doing = || format!("renewing lease {}/{}", settings.namespace, settings.name);
    let now = Timestamp::now();
    if let Some(mut lease) = held {
        if let Some(spec) = &mut lease.spec {
            spec.renew_time = Some(MicroTime(now));
        }
        match timed(doing, time, api.replace(&settings.name, &PostParams::default(), &lease)).await {
            Ok(lease) => return Ok(Attempt::Held(Box::new(lease))),
            // Somebody wrote it: look again.
            Err(error) if matches!(error.kind(), ApiErrorKind::Conflict | ApiErrorKind::NotFound) => {}
            Err(error) => return Err(error),
        }
    }
    let found = timed(doing, time, api.get_opt(&settings.name)).await?;
    let act = elector.plan(Instant::now(), found.as_ref(), &settings.identity);
    let spec = |transitions| LeaseSpec {
        holder_identity: Some(settings.identity.clone()),
        lease_duration_seconds: Some(i32::try_from(settings.duration.as_secs()).unwrap_or(15)),
        acquire_time: Some(MicroTime(now)),
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(transitions),
        ..LeaseSpec::default()
    };
    let written = match act {
        Act::Wait { holder } => return Ok(Attempt::Other(holder)),
        Act::Create => {
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(settings.name.clone()),
                    ..ObjectMeta::default()
                },
                spec: Some(spec(0)),
            };
            timed(doing, time, api.create(&PostParams::default(), &lease)).await
        }
        Act::Take { transitions } | Act::Renew { transitions } => {
            let mut lease = found.unwrap_or_default();
            let mut new = spec(transitions);
            if let (Act::Renew { .. }, Some(old)) = (&act, &lease.spec) {
                new.acquire_time = old.acquire_time.clone();
            }
            lease.spec = Some(new);
            timed(doing, time, api.replace(&settings.name, &PostParams::default(), &lease)).await
        }
    };
    match written {
        Ok(lease) => Ok(Attempt::Held(Box::new(lease))),
        Err(error) if matches!(error.kind(), ApiErrorKind::Conflict | ApiErrorKind::Exists) => {
            Ok(Attempt::Other("another replica".to_owned()))
        }
        Err(error) => Err(error),
    }
}

async fn release(api: &Api<Lease>, settings: &LeaseSettings) {
    let time = Duration::from_secs(2);
    let doing = || format!("giving back lease {}/{}", settings.namespace, settings.name);
    let outcome = async {
        let Some(mut lease) = timed(doing, time, api.get_opt(&settings.name)).await? else {
            return Ok(());
        };
        let Some(spec) = &mut lease.spec else { return Ok(()) };
        if spec.holder_identity.as_deref() != Some(&settings.identity) {
            return Ok(());
        }
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        timed(doing, time, api.replace(&settings.name, &PostParams::default(), &lease))
            .await
            .map(drop)
    };
    if let Err(error) = outcome.await {
        tracing::warn!(error = %error, "The lease runs out by itself.");
    }
}

/// Whose kube-scheduler leads, seen from beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sight {
    /// The lease does not exist or has lapsed: nobody else can be scheduling, so we may.
    Nobody,
    /// The one on this host.
    Ours,
    /// Another one.
    Other(String),
}

/// Looks at the Lease of the kube-scheduler beside us.
///
/// Its identity is `<host name>_<uuid>`; the whole host name is compared, so `x-1` is not `x-10`.
#[derive(Debug)]
pub struct Sighting {
    api: Api<Lease>,
    name: String,
    host: String,
    state: tokio::sync::Mutex<(Elector, Option<(Sight, Instant)>)>,
}

impl Sighting {
    /// How long one look is believed. The lease itself lives 15 s, so this is well inside it.
    const BELIEVED: Duration = Duration::from_secs(3);

    /// For the lease `namespace/name` and a kube-scheduler on `host`.
    #[must_use]
    pub fn new(client: Client, namespace: &str, name: impl Into<String>, host: impl Into<String>) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.into(),
            host: host.into(),
            state: tokio::sync::Mutex::default(),
        }
    }

    /// Who leads now. An answer that says "ours" may be up to three seconds old; one that says "other" is
    /// always fresh, so that a take-over is not answered with yesterday's leader.
    ///
    /// # Errors
    /// The lease cannot be read and the last look is too old.
    pub async fn look(&self) -> Result<Sight, ApiError> {
        let mut state = self.state.lock().await;
        if let (_, Some((sight, when))) = &*state
            && when.elapsed() < Self::BELIEVED
            && !matches!(sight, Sight::Other(_))
        {
            return Ok(sight.clone());
        }
        let doing = || format!("reading the scheduler's lease {}", self.name);
        let lease = timed(doing, Duration::from_secs(2), self.api.get_opt(&self.name)).await?;
        let now = Instant::now();
        let sight = match state.0.plan(now, lease.as_ref(), "") {
            Act::Wait { holder } if host_of(&holder) == self.host => Sight::Ours,
            Act::Wait { holder } => Sight::Other(holder),
            Act::Create | Act::Take { .. } | Act::Renew { .. } => Sight::Nobody,
        };
        state.1 = Some((sight.clone(), now));
        Ok(sight)
    }
}

fn host_of(identity: &str) -> &str {
    identity.rsplit_once('_').map_or(identity, |(host, _)| host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: &str, renewed: i64, version: &str) -> Lease {
        Lease {
            metadata: ObjectMeta {
                resource_version: Some(version.to_owned()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(holder.to_owned()),
                lease_duration_seconds: Some(15),
                renew_time: Some(MicroTime(Timestamp::from_second(renewed).unwrap())),
                lease_transitions: Some(4),
                ..LeaseSpec::default()
            }),
        }
    }

    /// The clock of the holder's machine is hours off and it does not matter.
    #[test]
    fn a_lease_lapses_by_our_clock_alone() {
        let mut elector = Elector::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let other = |version| lease("b", 1_000_000, version);
        assert_eq!(
            elector.plan(start, Some(&other("1")), "a"),
            Act::Wait { holder: "b".to_owned() }
        );
        assert_eq!(
            elector.plan(at(14), Some(&other("1")), "a"),
            Act::Wait { holder: "b".to_owned() }
        );
        // A renewal starts the time anew.
        assert_eq!(
            elector.plan(at(14), Some(&other("2")), "a"),
            Act::Wait { holder: "b".to_owned() }
        );
        assert_eq!(
            elector.plan(at(28), Some(&other("2")), "a"),
            Act::Wait { holder: "b".to_owned() }
        );
        assert_eq!(
            elector.plan(at(29), Some(&other("2")), "a"),
            Act::Take { transitions: 5 }
        );
    }

    #[test]
    fn a_lease_given_back_is_taken_at_once() {
        let mut elector = Elector::default();
        assert_eq!(
            elector.plan(Instant::now(), Some(&lease("", 0, "1")), "a"),
            Act::Take { transitions: 5 }
        );
        assert_eq!(elector.plan(Instant::now(), None, "a"), Act::Create);
        assert_eq!(
            elector.plan(Instant::now(), Some(&lease("a", 0, "1")), "a"),
            Act::Renew { transitions: 4 }
        );
    }

    #[test]
    fn a_host_is_compared_whole() {
        assert_eq!(host_of("x-1_0b7a"), "x-1");
        assert_eq!(host_of("x-10_0b7a"), "x-10");
        assert_eq!(host_of("plain"), "plain");
    }
}

#[cfg(test)]
mod campaign_tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, Mutex};

    use serde_json::{Value, json};

    use super::*;
    use crate::script::{self, Reply};

    /// A server with one Lease, which can be switched off.
    #[derive(Clone, Default)]
    struct Server {
        lease: Arc<Mutex<Option<Value>>>,
        silent: Arc<AtomicBool>,
    }

    impl Server {
        fn client(&self) -> Client {
            let server = self.clone();
            script::client(move |sent| {
                if server.silent.load(Ordering::SeqCst) {
                    return Reply::Lost;
                }
                let mut lease = server.lease.lock().unwrap();
                let version = |lease: &Value| lease["metadata"]["resourceVersion"].clone();
                match (sent.method.as_str(), lease.as_ref()) {
                    ("GET", None) => Reply::Refuse(404, "NotFound"),
                    ("GET", Some(found)) => Reply::Object(found.clone()),
                    ("POST", Some(_)) => Reply::Refuse(409, "AlreadyExists"),
                    ("PUT", Some(found)) if version(found) != version(&sent.body) => Reply::Refuse(409, "Conflict"),
                    _ => {
                        let next = lease
                            .as_ref()
                            .and_then(|l| version(l).as_str()?.parse::<u64>().ok())
                            .unwrap_or(0)
                            + 1;
                        let mut new = sent.body.clone();
                        new["metadata"]["resourceVersion"] = json!(next.to_string());
                        *lease = Some(new.clone());
                        Reply::Object(new)
                    }
                }
            })
            .0
        }

        fn holder(&self) -> String {
            let lease = self.lease.lock().unwrap();
            lease
                .as_ref()
                .and_then(|l| l["spec"]["holderIdentity"].as_str())
                .unwrap_or_default()
                .to_owned()
        }
    }

    struct Candidate {
        role: watch::Receiver<Role>,
        stop: CancellationToken,
        work: tokio::task::JoinHandle<()>,
    }

    fn candidate(server: &Server, name: &str) -> Candidate {
        let stop = CancellationToken::new();
        let (role, work) = campaign(server.client(), LeaseSettings::new("ns", "lease", name), stop.clone());
        Candidate {
            role,
            stop,
            work: tokio::spawn(work),
        }
    }

    async fn leads(candidate: &mut Candidate, wanted: bool) -> Duration {
        let start = Instant::now();
        candidate.role.wait_for(|role| role.leads() == wanted).await.unwrap();
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn one_leads_and_hands_over_when_it_stops() {
        let server = Server::default();
        let mut a = candidate(&server, "a");
        leads(&mut a, true).await;
        let mut b = candidate(&server, "b");
        b.role
            .wait_for(|role| {
                *role
                    == Role::Follower {
                        leader: Some("a".to_owned()),
                    }
            })
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert!(a.role.borrow().leads() && !b.role.borrow().leads());
        a.stop.cancel();
        a.work.await.unwrap();
        let waited = leads(&mut b, true).await;
        assert!(waited <= Duration::from_secs(2), "{waited:?}");
        assert_eq!(server.holder(), "b");
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_killed_without_a_word_is_followed_within_its_lease() {
        let server = Server::default();
        let mut a = candidate(&server, "a");
        leads(&mut a, true).await;
        let mut b = candidate(&server, "b");
        tokio::time::sleep(Duration::from_secs(10)).await;
        a.work.abort();
        let waited = leads(&mut b, true).await;
        assert!(waited <= Duration::from_secs(18), "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_cannot_renew_stops_before_another_can_begin() {
        let server = Server::default();
        let mut a = candidate(&server, "a");
        leads(&mut a, true).await;
        tokio::time::sleep(Duration::from_secs(20)).await;
        server.silent.store(true, Ordering::SeqCst);
        let until = leads(&mut a, false).await;
        assert!(until <= Duration::from_secs(13), "{until:?}");
        server.silent.store(false, Ordering::SeqCst);
        leads(&mut a, true).await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_empty_lease_is_free() {
        let server = Server::default();
        *server.lease.lock().unwrap() =
            Some(json!({"metadata": {"name": "lease", "namespace": "ns", "resourceVersion": "7"}}));
        let mut a = candidate(&server, "a");
        leads(&mut a, true).await;
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_kube_scheduler_on_this_host_counts_as_ours() {
        let server = Server::default();
        let sighting = Sighting::new(server.client(), "ns", "lease", "x-1");
        assert_eq!(sighting.look().await.unwrap(), Sight::Nobody);
        let hold = |holder: &str, renewed: &str| {
            *server.lease.lock().unwrap() = Some(json!({"metadata": {"name": "lease"}, "spec":
                {"holderIdentity": holder, "leaseDurationSeconds": 15, "renewTime": renewed}}));
        };
        tokio::time::advance(Duration::from_secs(4)).await;
        hold("x-10_abc", "2026-01-01T00:00:00.000000Z");
        assert_eq!(sighting.look().await.unwrap(), Sight::Other("x-10_abc".to_owned()));
        // A take-over is seen at once.
        hold("x-1_abc", "2026-01-01T00:00:10.000000Z");
        assert_eq!(sighting.look().await.unwrap(), Sight::Ours);
        tokio::time::advance(Duration::from_secs(16)).await;
        assert_eq!(sighting.look().await.unwrap(), Sight::Nobody, "it lapsed");
    }
}
