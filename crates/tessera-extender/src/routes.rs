//! Paths, methods, bodies: the HTTP side of the service.
//!
//! Two groups of routes that must not be mixed up. The extender's (`/filter`, `/bind` and so on) act with all our
//! rights, so they answer kube-scheduler in the same pod (loopback), a client with a certificate of the client CA,
//! and nobody else unless told so. The webhook's (`/webhook`, `/validate`) only judge what they are shown and
//! answer everybody, as the API server may come from anywhere.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Router, middleware};
use serde::Serialize;
use tessera_http::{BodyError, Peer, read_body};
use tessera_wire::extender::{BindResult, FilterResult};
use tokio::time::Instant;

use crate::app::App;
use crate::args::FilterMode;
use crate::metrics::{CONTENT_TYPE, Page, Verb, VerbLabel};

/// Largest body of an extender call: whole Node objects of a large cluster.
const EXTENDER_BODY: usize = 64 << 20;
/// Largest body of an admission review; the API server itself sends no more.
const WEBHOOK_BODY: usize = 7 << 20;
/// Time for a body to arrive.
const BODY_TIME: Duration = Duration::from_secs(60);

/// Who may use the extender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// Loopback peers and clients with a certificate.
    Near,
    /// Everybody who reaches the port.
    Everybody,
}

/// Which routes a listener has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Routes {
    /// Extender and webhook on one listener, as HAMi has it.
    All(Guard),
    /// The webhook alone.
    Webhook,
    /// Health alone.
    Health,
}

/// The service behind one listener.
pub fn router(app: &Arc<App>, routes: Routes) -> Router {
    let health = Router::new()
        .route("/healthz", get(healthz))
        .route("/livez", get(healthz))
        .route("/readyz", get(readyz));
    let webhook = || {
        Router::new()
            .route("/webhook", post(webhook))
            .route("/validate", post(validate))
    };
    let router = match routes {
        Routes::All(guard) => {
            let mut extender = Router::new()
                .route("/filter", post(filter))
                .route("/bind", post(bind))
                .route("/preempt", post(preempt));
            if app.settings.filter_mode == FilterMode::All {
                extender = extender.route("/prioritize", post(prioritize));
            }
            let extender = extender.route_layer(middleware::from_fn_with_state(guard, near));
            health.merge(extender).merge(webhook())
        }
        Routes::Webhook => health.merge(webhook()),
        Routes::Health => health,
    };
    router.fallback(fallback).with_state(Arc::clone(app))
}

/// The metrics page behind one listener.
pub(crate) fn metrics_router(page: Arc<Page>) -> Router {
    Router::new().route(
        "/metrics",
        get(move || {
            let page = Arc::clone(&page);
            async move {
                match page.render() {
                    Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
                    Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
                }
            }
        }),
    )
}

/// A path with a slash too many is shown the right one; the method and the body stay.
async fn fallback(method: Method, uri: Uri) -> Response {
    let path = uri.path();
    let trimmed = path.trim_end_matches('/');
    let known = [
        "/filter",
        "/bind",
        "/preempt",
        "/prioritize",
        "/webhook",
        "/validate",
        "/healthz",
        "/livez",
        "/readyz",
        "/metrics",
    ];
    if path.len() > trimmed.len()
        && known.contains(&trimmed)
        && let Ok(location) = HeaderValue::from_str(trimmed)
    {
        let status = if method == Method::GET {
            StatusCode::MOVED_PERMANENTLY
        } else {
            StatusCode::TEMPORARY_REDIRECT
        };
        return (status, [(header::LOCATION, location)]).into_response();
    }
    (StatusCode::NOT_FOUND, "404 page not found\n").into_response()
}

async fn near(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    let allowed = match (guard, request.extensions().get::<Peer>()) {
        (Guard::Everybody, _) => true,
        (Guard::Near, Some(peer)) => peer.is_local() || peer.has_certificate,
        // No socket: the router is called in this process.
        (Guard::Near, None) => true,
    };
    if allowed {
        return next.run(request).await;
    }
    let text = "the extender answers kube-scheduler on this machine, or a client with a certificate \
                (--client-ca-file); --extender-allow-remote opens it to everybody\n";
    (StatusCode::FORBIDDEN, text).into_response()
}

fn json(value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => (
            [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))],
            body,
        )
            .into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Counts and times one request.
struct Timer<'a> {
    app: &'a App,
    verb: VerbLabel,
    start: Instant,
}

impl<'a> Timer<'a> {
    fn start(app: &'a App, verb: Verb) -> Self {
        Self {
            app,
            verb: VerbLabel { verb },
            start: Instant::now(),
        }
    }

    fn end(self, failed: bool) {
        let seconds = self.start.elapsed().as_secs_f64();
        self.app.metrics.seconds.get_or_create(&self.verb).observe(seconds);
        if failed {
            self.app.metrics.errors.get_or_create(&self.verb).inc();
        }
    }
}

async fn extender_body(body: Body) -> Result<Bytes, BodyError> {
    read_body(body, EXTENDER_BODY, BODY_TIME).await
}

async fn filter(State(app): State<Arc<App>>, body: Body) -> Response {
    let timer = Timer::start(&app, Verb::Filter);
    let result = match extender_body(body).await {
        Ok(body) => app.filter(&body).await,
        Err(error) => FilterResult::error(error.to_string()),
    };
    timer.end(!result.error.is_empty());
    json(&result)
}

async fn bind(State(app): State<Arc<App>>, body: Body) -> Response {
    let timer = Timer::start(&app, Verb::Bind);
    let result = match extender_body(body).await {
        // A bind that was begun is finished, whether or not the caller waits for the answer.
        Ok(body) => {
            let app = Arc::clone(&app);
            match tokio::spawn(async move { app.bind(&body).await }).await {
                Ok(result) => result,
                Err(error) => BindResult {
                    error: error.to_string(),
                },
            }
        }
        Err(error) => BindResult {
            error: error.to_string(),
        },
    };
    timer.end(!result.error.is_empty());
    json(&result)
}

async fn prioritize(State(app): State<Arc<App>>, body: Body) -> Response {
    let timer = Timer::start(&app, Verb::Prioritize);
    let result = match extender_body(body).await {
        Ok(body) => app.prioritize(&body).await,
        Err(error) => Err(error.to_string()),
    };
    timer.end(result.is_err());
    match result {
        Ok(scores) => json(&scores),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error).into_response(),
    }
}

async fn preempt(State(app): State<Arc<App>>, body: Body) -> Response {
    let timer = Timer::start(&app, Verb::Preempt);
    let result = match extender_body(body).await {
        Ok(body) => app.preempt(&body).await,
        Err(error) => Err(error.to_string()),
    };
    timer.end(result.is_err());
    match result {
        Ok(answer) => json(&answer),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error).into_response(),
    }
}

async fn webhook(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Response {
    admission(&app, &headers, body, App::mutate).await
}

async fn validate(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Response {
    admission(&app, &headers, body, App::validate).await
}

async fn admission(
    app: &App,
    headers: &HeaderMap,
    body: Body,
    judge: fn(&App, bool, Result<&[u8], BodyError>) -> serde_json::Value,
) -> Response {
    let timer = Timer::start(app, Verb::Admit);
    let is_json = headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind == "application/json");
    let body = read_body(body, WEBHOOK_BODY, BODY_TIME).await;
    let answer = judge(app, is_json, body.as_deref().map_err(|error| *error));
    timer.end(false);
    json(&answer)
}

async fn healthz(State(app): State<Arc<App>>) -> Response {
    match app.health.alive() {
        Ok(()) => StatusCode::OK.into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, why + "\n").into_response(),
    }
}

async fn readyz(State(app): State<Arc<App>>) -> Response {
    match app.health.ready() {
        Ok(()) => StatusCode::OK.into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, why + "\n").into_response(),
    }
}
