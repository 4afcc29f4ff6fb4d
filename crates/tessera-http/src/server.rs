//! Accepting connections, and ending well.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::Service as _;

use crate::kept::Inherited;

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody else has the port.
    #[error(
        "the {purpose} cannot listen on `{address}`: the port is in use; stop the other process or choose another \
         address with {flag}"
    )]
    InUse {
        /// What the listener is for.
        purpose: &'static str,
        /// Where.
        address: String,
        /// The flag that changes it.
        flag: &'static str,
    },
    /// Anything else: no such address, no right to a low port.
    #[error("the {purpose} cannot listen on `{address}` ({flag}): {source}")]
    Other {
        /// What the listener is for.
        purpose: &'static str,
        /// Where.
        address: String,
        /// The flag that changes it.
        flag: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

/// A bound address that does not accept yet.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Binds `address` (`host:port`; `:port` means all addresses, port 0 any free port). `purpose` and `flag`
    /// are for the error text.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub async fn bind(address: &str, purpose: &'static str, flag: &'static str) -> Result<Self, ListenError> {
        Self::bind_or_inherit(address, purpose, flag, &mut Inherited::default()).await
    }

    /// As [`Listener::bind`], unless the parent has bound `address` already.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub async fn bind_or_inherit(
        address: &str,
        purpose: &'static str,
        flag: &'static str,
        inherited: &mut Inherited,
    ) -> Result<Self, ListenError> {
        let bound = match inherited.take(address) {
            // Tokio needs sockets that do not block; the parent's is one, as it came from Tokio too.
            Some(socket) => TcpListener::from_std(socket),
            None => bind(address).await,
        };
        let fail = |source: std::io::Error| {
            let address = address.to_owned();
            if source.kind() == std::io::ErrorKind::AddrInUse {
                ListenError::InUse { purpose, address, flag }
            } else {
                ListenError::Other {
                    purpose,
                    address,
                    flag,
                    source,
                }
            }
        };
        let socket = bound.map_err(fail)?;
        let address = socket.local_addr().map_err(fail)?;
        Ok(Self { socket, address })
    }

    #[cfg(test)]
    pub(crate) async fn accept(&self) -> std::io::Result<(TcpStream, SocketAddr)> {
        self.socket.accept().await
    }

    /// Where it listens, with the port that was really taken.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

pub(crate) async fn bind(address: &str) -> std::io::Result<TcpListener> {
    // Go's notation for all addresses.
    let whole = if address.starts_with(':') {
        format!("[::]{address}")
    } else {
        address.to_owned()
    };
    match TcpListener::bind(&whole).await {
        Err(error) if address.starts_with(':') && error.kind() != std::io::ErrorKind::AddrInUse => {
            // A machine without IPv6.
            TcpListener::bind(format!("0.0.0.0{address}")).await
        }
        other => other,
    }
}

/// Who is at the other end; every request carries it as an extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Address of the other end.
    pub address: SocketAddr,
    /// It proved to hold a certificate of the client CA.
    pub has_certificate: bool,
}

impl Peer {
    /// On the same machine (or in the same pod).
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.address.ip().to_canonical().is_loopback()
    }
}

/// What one server takes on.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at a time; more wait.
    pub connections: usize,
    /// For a TLS handshake and for a request's head.
    pub head: Duration,
    /// For requests in flight at the end.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            head: Duration::from_secs(15),
            drain: Duration::from_secs(20),
        }
    }
}

/// Serves `app` until `stop`, then takes no new connections and lets requests in flight finish (at most
/// [`Limits::drain`]).
pub async fn serve(
    listener: Listener,
    tls: Option<Arc<rustls::ServerConfig>>,
    app: Router,
    limits: Limits,
    stop: CancellationToken,
) {
    let acceptor = tls.map(TlsAcceptor::from);
    let room = Arc::new(Semaphore::new(limits.connections));
    let graceful = GracefulShutdown::new();
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let permit = tokio::select! {
            () = stop.cancelled() => break,
            permit = Arc::clone(&room).acquire_owned() => permit,
        };
        let Ok(permit) = permit else { break };
        let (stream, address) = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.socket.accept() => match accepted {
                Ok(pair) => pair,
                Err(error) => {
                    // Out of file descriptors or an aborted connection: the listener itself is fine.
                    tracing::warn!(error = %error, "Could not accept a connection.");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        while connections.try_join_next().is_some() {}
        let (acceptor, app, watcher) = (acceptor.clone(), app.clone(), graceful.watcher());
        connections.spawn(async move {
            connection(stream, address, acceptor, app, limits, watcher).await;
            drop(permit);
        });
    }
    drop(listener);
    if tokio::time::timeout(limits.drain, graceful.shutdown()).await.is_err() {
        tracing::warn!("Ended with requests still in flight.");
    }
}

async fn connection(
    stream: TcpStream,
    address: SocketAddr,
    acceptor: Option<TlsAcceptor>,
    app: Router,
    limits: Limits,
    watcher: hyper_util::server::graceful::Watcher,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(error = %error, "Could not switch off delayed sending.");
    }
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head);
    builder.http2().timer(TokioTimer::new());
    let outcome = match acceptor {
        None => {
            let service = service(
                app,
                Peer {
                    address,
                    has_certificate: false,
                },
            );
            watcher
                .watch(builder.serve_connection(TokioIo::new(stream), service))
                .await
        }
        Some(acceptor) => {
            let stream = match tokio::time::timeout(limits.head, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => {
                    tracing::debug!(peer = %address, error = %error, "TLS handshake did not succeed.");
                    return;
                }
                Err(_) => return,
            };
            let has_certificate = stream
                .get_ref()
                .1
                .peer_certificates()
                .is_some_and(|chain| !chain.is_empty());
            let service = service(
                app,
                Peer {
                    address,
                    has_certificate,
                },
            );
            watcher
                .watch(builder.serve_connection(TokioIo::new(stream), service))
                .await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(peer = %address, error = %error, "A connection broke.");
    }
}

fn service(
    app: Router,
    peer: Peer,
) -> impl hyper::service::Service<
    http::Request<hyper::body::Incoming>,
    Response = http::Response<Body>,
    Error = std::convert::Infallible,
    Future: Send,
> {
    hyper::service::service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(peer);
        app.clone().call(request)
    })
}

/// A body that was not received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// Longer than allowed.
    #[error("the body is longer than {0} bytes")]
    TooLarge(usize),
    /// It did not arrive in time.
    #[error("the body did not arrive within {0} seconds")]
    Slow(u64),
    /// The connection broke.
    #[error("the body did not arrive whole")]
    Broken,
}

/// Receives a body of at most `limit` bytes within `time`.
///
/// # Errors
/// It is too long, too slow, or breaks off.
pub async fn read_body(body: Body, limit: usize, time: Duration) -> Result<Bytes, BodyError> {
    match tokio::time::timeout(time, axum::body::to_bytes(body, limit)).await {
        Err(_) => Err(BodyError::Slow(time.as_secs())),
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => {
            // The limit's own error is buried under axum's.
            let mut cause: Option<&dyn std::error::Error> = Some(&error);
            while let Some(inner) = cause {
                if inner.to_string() == "length limit exceeded" {
                    return Err(BodyError::TooLarge(limit));
                }
                cause = inner.source();
            }
            Err(BodyError::Broken)
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::Notify;

    use super::*;

    async fn ask(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn a_port_in_use_is_named_with_the_flag() {
        let first = Listener::bind("127.0.0.1:0", "metrics page", "--metrics")
            .await
            .unwrap();
        let text = first.address().to_string();
        let error = Listener::bind(&text, "metrics page", "--metrics")
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(&text) && error.contains("--metrics") && error.contains("in use"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn go_notation_means_all_addresses() {
        let listener = Listener::bind(":0", "metrics page", "--metrics").await.unwrap();
        assert!(listener.address().ip().is_unspecified());
    }

    #[tokio::test]
    async fn a_request_in_flight_is_answered_after_the_stop() {
        let (entered, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (entered2, go2) = (Arc::clone(&entered), Arc::clone(&go));
        let app = Router::new().route(
            "/slow",
            get(move || async move {
                entered2.notify_one();
                go2.notified().await;
                "done"
            }),
        );
        let listener = Listener::bind("127.0.0.1:0", "test", "--test").await.unwrap();
        let (address, stop) = (listener.address(), CancellationToken::new());
        let server = tokio::spawn(serve(listener, None, app, Limits::default(), stop.clone()));
        let request = tokio::spawn(async move { ask(address, "/slow").await });
        entered.notified().await;
        stop.cancel();
        go.notify_one();
        assert!(request.await.unwrap().ends_with("done"));
        server.await.unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test]
    async fn handlers_learn_who_asks() {
        let app = Router::new().route(
            "/",
            get(|axum::Extension(peer): axum::Extension<Peer>| async move {
                format!("{} {}", peer.is_local(), peer.has_certificate)
            }),
        );
        let listener = Listener::bind("127.0.0.1:0", "test", "--test").await.unwrap();
        let (address, stop) = (listener.address(), CancellationToken::new());
        let server = tokio::spawn(serve(listener, None, app, Limits::default(), stop.clone()));
        assert!(ask(address, "/").await.ends_with("true false"));
        stop.cancel();
        server.await.unwrap();
    }

    #[tokio::test]
    async fn a_long_body_is_told_from_a_broken_one() {
        let long = read_body(Body::from(vec![0; 11]), 10, Duration::from_secs(5)).await;
        assert_eq!(long, Err(BodyError::TooLarge(10)));
        let fits = read_body(Body::from("0123456789"), 10, Duration::from_secs(5))
            .await
            .unwrap();
        assert_eq!(fits, "0123456789");
    }
}
