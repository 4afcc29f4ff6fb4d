//! The client, and its errors in words a person can use.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tokio::time::Instant;

/// How long one request may take if nothing else is said.
pub const REQUEST_TIME: Duration = Duration::from_secs(10);

/// How the API server is talked to.
#[derive(Debug, Clone, Default)]
pub struct ClientSettings {
    /// Instead of looking for a configuration.
    pub kubeconfig: Option<PathBuf>,
    /// Requests a second, `None` for as many as come. The server has its own fair queueing, so no limit is the
    /// better default; 5 a second, the compatible default, would hold up every burst of pods.
    pub requests_per_second: Option<f64>,
    /// Requests that may go at once before the limit counts.
    pub burst: u32,
}

/// No usable configuration for the API server was found.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// A file was named and cannot be used. (The search must not go on and find another cluster.)
    #[error("the kubeconfig `{path}` ({source_name}) cannot be used: {reason}")]
    Kubeconfig {
        /// The path given.
        path: String,
        /// Which setting named it.
        source_name: &'static str,
        /// Why.
        reason: String,
    },
    /// Nothing was found.
    #[error(
        "no API server is configured: $KUBECONFIG is not set, ~/.kube/config is not usable ({file}), and this is no \
         pod with a service account ({cluster}); set $KUBECONFIG, or run it in a pod"
    )]
    Nothing {
        /// Why the file is not usable.
        file: String,
        /// Why the in-cluster account is not usable.
        cluster: String,
    },
    /// The configuration is there but no client can be made of it.
    #[error("the API client cannot be made: {0}")]
    Client(String),
}

/// Makes a client from `$KUBECONFIG`, else `~/.kube/config`, else the in-cluster account. Sends nothing.
///
/// # Errors
/// No configuration is usable.
pub async fn connect(settings: &ClientSettings) -> Result<Client, ConnectError> {
    let mut config = match &settings.kubeconfig {
        Some(path) => from_file(path).await?,
        None => find().await?,
    };
    config.connect_timeout = Some(Duration::from_secs(5));
    // Retrying is this crate's business: a Binding that is sent again must first be looked up.
    config.default_retry = false;
    tracing::info!(server = %config.cluster_url, "Use this API server.");
    let builder = ClientBuilder::try_from(config).map_err(|error| ConnectError::Client(chain(&error)))?;
    Ok(match settings.requests_per_second {
        Some(rate) if rate > 0.0 => {
            let bucket = Arc::new(Bucket::new(rate, settings.burst));
            builder
                .with_layer(&tower::layer::layer_fn(move |inner| Limited {
                    inner,
                    bucket: Arc::clone(&bucket),
                }))
                .build()
        }
        _ => builder.build(),
    })
}

async fn from_file(path: &Path) -> Result<Config, ConnectError> {
    let fail = |error: &dyn std::error::Error| ConnectError::Kubeconfig {
        path: path.display().to_string(),
        source_name: "--kubeconfig",
        reason: chain(error),
    };
    let file = Kubeconfig::read_from(path).map_err(|error| fail(&error))?;
    Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .map_err(|error| fail(&error))
}

async fn find() -> Result<Config, ConnectError> {
    let named = std::env::var("KUBECONFIG").ok().filter(|path| !path.is_empty());
    match Config::from_kubeconfig(&KubeConfigOptions::default()).await {
        Ok(config) => Ok(config),
        Err(error) => match named {
            Some(path) => Err(ConnectError::Kubeconfig {
                path,
                source_name: "$KUBECONFIG",
                reason: chain(&error),
            }),
            None => Config::incluster().map_err(|cluster| ConnectError::Nothing {
                file: chain(&error),
                cluster: chain(&cluster),
            }),
        },
    }
}

/// A token bucket whose tokens may be taken ahead; the taker then waits for its turn.
#[derive(Debug)]
pub(crate) struct Bucket {
    spacing: Duration,
    burst: Duration,
    next: Mutex<Option<Instant>>,
}

impl Bucket {
    pub(crate) fn new(rate: f64, burst: u32) -> Self {
        let spacing = Duration::from_secs_f64(1.0 / rate.clamp(0.001, 1e6));
        Self {
            spacing,
            burst: spacing.saturating_mul(burst.max(1) - 1),
            next: Mutex::new(None),
        }
    }

    /// Takes a token; the time from which it may be used.
    pub(crate) fn take(&self, now: Instant) -> Instant {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let floor = now.checked_sub(self.burst).unwrap_or(now);
        let turn = next.map_or(floor, |next| next.max(floor));
        *next = Some(turn + self.spacing);
        turn.max(now)
    }
}

#[derive(Debug)]
struct Limited<S> {
    inner: S,
    bucket: Arc<Bucket>,
}

impl<S, R> tower::Service<R> for Limited<S>
where
    S: tower::Service<R>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = futures::future::BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let turn = self.bucket.take(Instant::now());
        // Nothing is sent before the future is polled.
        let sending = self.inner.call(request);
        Box::pin(async move {
            tokio::time::sleep_until(turn).await;
            sending.await
        })
    }
}

/// What went wrong, as far as it matters to what happens next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApiErrorKind {
    /// The object does not exist (any more).
    NotFound,
    /// It changed meanwhile, or is another object of the same name.
    Conflict,
    /// It exists already.
    Exists,
    /// The account lacks a right; retrying does not help.
    Forbidden,
    /// The server understood and said no.
    Refused,
    /// The server is overloaded or starting; it did nothing.
    Busy,
    /// No answer: whether it was done is unknown.
    NoAnswer,
}

/// A request to the API server that did not succeed.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {text}")]
pub struct ApiError {
    /// What was attempted.
    doing: String,
    text: String,
    kind: ApiErrorKind,
}

impl ApiError {
    /// Wraps the client's error; `doing` says what was attempted ("patching pod a/b").
    #[must_use]
    pub fn new(doing: impl Into<String>, error: &kube::Error) -> Self {
        let (kind, text) = match error {
            kube::Error::Api(status) => {
                let kind = match (status.code, status.reason.as_str()) {
                    (404, _) => ApiErrorKind::NotFound,
                    (409, "AlreadyExists") => ApiErrorKind::Exists,
                    (409, _) => ApiErrorKind::Conflict,
                    (401 | 403, _) => ApiErrorKind::Forbidden,
                    (429 | 503, _) => ApiErrorKind::Busy,
                    (500..=599, _) => ApiErrorKind::NoAnswer,
                    _ => ApiErrorKind::Refused,
                };
                let text = if status.message.is_empty() {
                    format!("the API server answered {} {}", status.code, status.reason)
                } else {
                    status.message.clone()
                };
                (kind, text)
            }
            kube::Error::Service(cause) => (
                ApiErrorKind::NoAnswer,
                format!("the API server did not answer: {}", chain(&**cause)),
            ),
            other => (
                ApiErrorKind::NoAnswer,
                format!("the API server did not answer: {}", chain(other)),
            ),
        };
        Self {
            doing: doing.into(),
            text,
            kind,
        }
    }

    /// The request took longer than `time`.
    #[must_use]
    pub fn timed_out(doing: impl Into<String>, time: Duration) -> Self {
        let text = format!("the API server did not answer within {} s", time.as_secs());
        Self {
            doing: doing.into(),
            text,
            kind: ApiErrorKind::NoAnswer,
        }
    }

    /// An answer that says no in its own words.
    #[must_use]
    pub fn refused(doing: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            doing: doing.into(),
            text: text.into(),
            kind: ApiErrorKind::Refused,
        }
    }

    /// What kind.
    #[must_use]
    pub fn kind(&self) -> ApiErrorKind {
        self.kind
    }

    /// The same request may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(
            self.kind,
            ApiErrorKind::Busy | ApiErrorKind::NoAnswer | ApiErrorKind::Conflict
        )
    }
}

/// Runs one request with a time limit.
pub(crate) async fn timed<T>(
    doing: impl Fn() -> String,
    time: Duration,
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, ApiError> {
    match tokio::time::timeout(time, request).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(ApiError::new(doing(), &error)),
        Err(_) => Err(ApiError::timed_out(doing(), time)),
    }
}

/// An error and its causes in one line, each said once.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_bucket_lets_a_burst_through_and_then_spaces() {
        let bucket = Bucket::new(10.0, 3);
        let now = Instant::now();
        let waits: Vec<u128> = (0..5).map(|_| (bucket.take(now) - now).as_millis()).collect();
        assert_eq!(waits, [0, 0, 0, 100, 200]);
        // After a rest the burst is there again, but not more than the burst.
        let later = now + Duration::from_secs(100);
        let waits: Vec<u128> = (0..4).map(|_| (bucket.take(later) - later).as_millis()).collect();
        assert_eq!(waits, [0, 0, 0, 100]);
    }

    #[test]
    fn what_the_server_says_decides_what_happens_next() {
        let error = |code, reason: &str| {
            let status = kube::core::Status {
                code,
                reason: reason.to_owned(),
                ..Default::default()
            };
            ApiError::new("binding pod a/b", &kube::Error::Api(Box::new(status)))
        };
        assert_eq!(error(404, "NotFound").kind(), ApiErrorKind::NotFound);
        assert_eq!(error(409, "Conflict").kind(), ApiErrorKind::Conflict);
        assert_eq!(error(409, "AlreadyExists").kind(), ApiErrorKind::Exists);
        assert_eq!(error(504, "Timeout").kind(), ApiErrorKind::NoAnswer);
        assert!(error(429, "TooManyRequests").is_retryable());
        assert!(!error(403, "Forbidden").is_retryable());
        assert_eq!(
            error(422, "Invalid").to_string(),
            "binding pod a/b: the API server answered 422 Invalid"
        );
    }
}
