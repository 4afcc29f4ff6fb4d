//! The health and metrics page.

use std::sync::Arc;

use anyhow::Context;
use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// What the page asks.
pub trait Source: Send + Sync + 'static {
    /// What keeps this node from serving pods; empty when nothing does.
    fn problems(&self) -> Vec<String>;

    /// The metrics page.
    fn metrics(&self) -> String;
}

/// The routes.
pub fn router(source: Arc<dyn Source>) -> Router {
    let ready = Arc::clone(&source);
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route(
            "/readyz",
            get(move || {
                let problems = ready.problems();
                async move {
                    if problems.is_empty() {
                        (StatusCode::OK, "ok\n".to_owned())
                    } else {
                        let mut text = problems.join("\n");
                        text.push('\n');
                        (StatusCode::SERVICE_UNAVAILABLE, text)
                    }
                }
            }),
        )
        .route(
            "/metrics",
            get(move || {
                let page = source.metrics();
                async move {
                    const TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                    ([(header::CONTENT_TYPE, TYPE)], page).into_response()
                }
            }),
        )
}

/// Takes the address, so that a conflict shows before anything else starts.
///
/// # Errors
/// The address is in use or no address; the text names it.
pub async fn bind(address: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on `{address}` for health and metrics; free it, or set --listen"))
}

/// Serves until `stop`.
///
/// # Errors
/// When the listener breaks.
pub async fn serve(listener: TcpListener, source: Arc<dyn Source>, stop: CancellationToken) -> std::io::Result<()> {
    axum::serve(listener, router(source))
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
}
