//! A device plugin that stays registered.
//!
//! [`serve`] owns one resource. A *generation* is one socket file and one gRPC
//! server; a kubelet start removes every socket of the folder, so a new
//! kubelet always means a new generation. Within a generation the plugin
//! registers again whenever the kubelet drops the device stream.
//!
//! Two traps of the kubelet shape this module. The kubelet looks the plugin up
//! by resource name when a stream ends and disconnects whatever it finds, so
//! an old stream must be closed before a new registration. And it asks
//! `GetDevicePluginOptions` after dialling and ignores the options inside the
//! registration request, so both give the same answer.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::{Stream, StreamExt};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};
use tracing::{debug, info, warn};

use crate::proto::deviceplugin_v1beta1 as wire;
use crate::socket::{self, FolderWatch, SocketId};
use wire::device_plugin_server::{DevicePlugin, DevicePluginServer};
use wire::registration_client::RegistrationClient;

/// Protocol version of the registration.
const VERSION: &str = "v1beta1";
/// How long the kubelet may take to answer a registration.
const REGISTER_DEADLINE: Duration = Duration::from_secs(5);
/// How long after a registration the kubelet may take to open the stream; it
/// allows itself 10 s to dial.
const STREAM_DEADLINE: Duration = Duration::from_secs(12);
/// Pauses before the first, second, ... registration after a lost stream.
const PAUSES: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(5),
];
/// A stream that lived this long resets the pauses.
const STABLE: Duration = Duration::from_secs(30);
/// The slow poll beside inotify.
const POLL: Duration = Duration::from_secs(2);
/// How long running calls get when a generation ends.
const DRAIN: Duration = Duration::from_secs(2);

/// Whether the kubelet may hand a device out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceHealth {
    /// It may.
    Healthy,
    /// It must not; containers that hold the device keep it.
    Unhealthy,
}

/// One advertised device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginDevice {
    /// At most 63 characters, the same after every restart.
    pub id: String,
    /// Health.
    pub health: DeviceHealth,
    /// NUMA node, only where the kubelet shall align to it.
    pub numa: Option<u32>,
}

/// The kubelet's wish for one container, before it chooses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreferredRequest {
    /// Free ids.
    pub available: Vec<String>,
    /// Ids that the answer must contain.
    pub must_include: Vec<String>,
    /// Number of ids wanted.
    pub size: usize,
}

/// A "no" to the kubelet. The text ends up in the pod's status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Whether the same call may succeed later.
    pub retryable: bool,
    /// For a person.
    pub message: String,
}

/// Metadata of a status that is an answer, and not the trouble of a connection.
pub(crate) const REFUSED: &str = "tessera-refused";

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let code = if refusal.retryable {
            Code::Unavailable
        } else {
            Code::FailedPrecondition
        };
        let mut status = Self::new(code, refusal.message);
        status
            .metadata_mut()
            .insert(REFUSED, tonic::metadata::MetadataValue::from_static("1"));
        status
    }
}

/// What answers the kubelet's calls for one resource.
pub trait Plugin: Send + Sync + 'static {
    /// The advertised devices, in the order to advertise.
    fn devices(&self) -> watch::Receiver<Arc<[PluginDevice]>>;

    /// Ids the kubelet should choose, per request. An empty answer leaves the
    /// choice to the kubelet; an error would fail the pod's admission, so
    /// there is none.
    fn preferred(&self, requests: Vec<PreferredRequest>) -> impl Future<Output = Vec<Vec<String>>> + Send;

    /// Prepares the ids of each container and says what the container gets.
    /// A refusal fails the pod's admission for good.
    fn allocate(
        &self,
        requests: Vec<Vec<String>>,
    ) -> impl Future<Output = Result<Vec<wire::ContainerAllocateResponse>, Refusal>> + Send;

    /// Called before each start of a container. A refusal delays the start;
    /// the kubelet asks again.
    fn pre_start(&self, ids: Vec<String>) -> impl Future<Output = Result<(), Refusal>> + Send;
}

/// Where and as what to serve.
#[derive(Debug, Clone)]
pub struct ServeConfig {
    /// The kubelet's device plugin folder.
    pub plugin_dir: PathBuf,
    /// The kubelet's registration socket, usually `kubelet.sock` in that folder.
    pub kubelet_socket: PathBuf,
    /// Extended resource name, `domain/name`.
    pub resource: String,
    /// Own socket files are `<stem>-<generation>.sock`.
    pub socket_stem: String,
}

/// Whether the kubelet reads our device list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamState {
    /// The kubelet's socket is absent or refuses.
    NoKubelet,
    /// Registered or registering, no stream yet.
    Registering,
    /// The kubelet reads the device list.
    Up,
}

/// Why serving cannot begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Another process answers for this resource.
    #[error(
        "another device plugin already serves `{path}`; stop it first, two plugins on one resource disconnect each other"
    )]
    Occupied {
        /// Its socket.
        path: String,
    },
    /// The own socket cannot be made.
    #[error("cannot listen on `{path}`")]
    Bind {
        /// The socket.
        path: String,
        /// Cause.
        source: std::io::Error,
    },
    /// The kernel takes no such path.
    #[error("the socket path `{path}` is longer than {max} bytes", max = socket::PATH_BYTES_MAX)]
    PathTooLong {
        /// The socket.
        path: String,
    },
}

/// Serves `plugin` until `cancel`. `state` follows the device stream.
///
/// # Errors
/// When another plugin owns the resource. Everything else (kubelet absent,
/// restarted, refusing; plugin folder gone) is waited out.
pub async fn serve<P: Plugin>(
    config: ServeConfig,
    plugin: Arc<P>,
    state: watch::Sender<StreamState>,
    cancel: CancellationToken,
) -> Result<(), ServeError> {
    let prefix = format!("{}-", config.socket_stem);
    if let Some(path) = socket::sweep(&config.plugin_dir, &prefix).await.first() {
        return Err(ServeError::Occupied {
            path: path.display().to_string(),
        });
    }
    let mut folder = FolderWatch::new(&config.plugin_dir, POLL);
    let mut told = false;
    while !cancel.is_cancelled() {
        let Some(kubelet) = SocketId::of(&config.kubelet_socket) else {
            state.send_replace(StreamState::NoKubelet);
            if !told {
                warn!(socket = %config.kubelet_socket.display(), "Waiting for the kubelet's socket; set --kubelet-socket if it is elsewhere.");
                told = true;
            }
            tokio::select! {
                () = folder.changed() => {}
                () = cancel.cancelled() => break,
            }
            continue;
        };
        told = false;
        match Generation::start(&config, &plugin, &cancel) {
            Ok(generation) => {
                generation.run(&config, kubelet, &mut folder, &state, &cancel).await;
            }
            Err(error @ ServeError::PathTooLong { .. }) => return Err(error),
            Err(error) => {
                warn!(%error, "Cannot serve the device plugin, trying again.");
                tokio::select! {
                    () = tokio::time::sleep(POLL) => {}
                    () = cancel.cancelled() => {}
                }
            }
        }
    }
    Ok(())
}

/// One socket file with its server.
struct Generation {
    path: PathBuf,
    identity: Option<SocketId>,
    server: tokio::task::JoinHandle<Result<(), tonic::transport::Error>>,
    streams: watch::Receiver<u64>,
    opened: Arc<AtomicU64>,
    end: CancellationToken,
}

impl Generation {
    fn start<P: Plugin>(config: &ServeConfig, plugin: &Arc<P>, cancel: &CancellationToken) -> Result<Self, ServeError> {
        let name = format!("{}-{:08x}.sock", config.socket_stem, generation_number());
        let path = config.plugin_dir.join(name);
        let text = || path.display().to_string();
        if path.as_os_str().len() > socket::PATH_BYTES_MAX {
            return Err(ServeError::PathTooLong { path: text() });
        }
        let listener = UnixListener::bind(&path).map_err(|source| ServeError::Bind { path: text(), source })?;
        let (count, streams) = watch::channel(0_u64);
        let opened = Arc::new(AtomicU64::new(0));
        let end = cancel.child_token();
        let service = Service {
            plugin: Arc::clone(plugin),
            streams: Arc::new(count),
            opened: Arc::clone(&opened),
            end: end.clone(),
        };
        let stop = end.clone();
        let server = tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(DevicePluginServer::new(service))
                .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop.cancelled_owned()),
        );
        let identity = SocketId::of(&path);
        debug!(socket = %path.display(), "Serving the device plugin.");
        Ok(Self {
            path,
            identity,
            server,
            streams,
            opened,
            end,
        })
    }

    /// Registers and watches until the kubelet or our socket was replaced, the
    /// server died, or `cancel`.
    async fn run(
        mut self,
        config: &ServeConfig,
        kubelet: SocketId,
        folder: &mut FolderWatch,
        state: &watch::Sender<StreamState>,
        cancel: &CancellationToken,
    ) {
        let mut link = Link::new(Instant::now());
        let mut announced = false;
        state.send_replace(StreamState::Registering);
        loop {
            tokio::select! {
                () = cancel.cancelled() => break,
                () = folder.changed() => {
                    if SocketId::of(&config.kubelet_socket) != Some(kubelet) {
                        info!(resource = %config.resource, "The kubelet's socket was replaced.");
                        break;
                    }
                    if SocketId::of(&self.path) != self.identity {
                        info!(socket = %self.path.display(), "Our socket was removed.");
                        break;
                    }
                }
                changed = self.streams.changed() => {
                    if changed.is_err() { break }
                    let open = *self.streams.borrow_and_update() > 0;
                    let total = self.opened.load(Ordering::Acquire);
                    if link.observe(open, total, Instant::now()) {
                        state.send_replace(StreamState::Up);
                        if !announced {
                            announced = true;
                            info!(resource = %config.resource, "The kubelet reads the device list.");
                        }
                    } else {
                        state.send_replace(StreamState::Registering);
                        announced = false;
                        warn!(resource = %config.resource, "The kubelet closed the device stream.");
                    }
                }
                () = sleep_until(link.next_attempt), if !link.up => {
                    let endpoint = self.path.file_name().map(|name| name.to_string_lossy().into_owned());
                    let result = tokio::select! {
                        result = register(config, endpoint.unwrap_or_default()) => result,
                        () = cancel.cancelled() => break,
                    };
                    link.attempted(result.is_ok(), Instant::now());
                    match result {
                        Ok(()) => debug!(resource = %config.resource, "Registered with the kubelet."),
                        Err(error) => {
                            warn!(resource = %config.resource, %error, "The kubelet did not take the registration.");
                            if SocketId::of(&config.kubelet_socket) != Some(kubelet) { break }
                        }
                    }
                }
                result = &mut self.server => {
                    warn!(?result, "The device plugin server ended.");
                    break;
                }
            }
        }
        self.stop().await;
        state.send_replace(StreamState::NoKubelet);
    }

    async fn stop(mut self) {
        self.end.cancel();
        if !self.server.is_finished() && tokio::time::timeout(DRAIN, &mut self.server).await.is_err() {
            self.server.abort();
        }
        if SocketId::of(&self.path) == self.identity {
            // Gone already is as good as removed.
            let _removed = std::fs::remove_file(&self.path);
        }
    }
}

/// When to register next. Pure, so that the pauses are tested without waiting.
#[derive(Debug)]
struct Link {
    up: bool,
    seen: u64,
    since: Instant,
    attempts: usize,
    next_attempt: Instant,
}

impl Link {
    fn new(now: Instant) -> Self {
        Self {
            up: false,
            seen: 0,
            since: now,
            attempts: 0,
            next_attempt: now,
        }
    }

    /// Takes in the stream count; says whether the kubelet reads now.
    fn observe(&mut self, open: bool, opened_total: u64, now: Instant) -> bool {
        if open {
            if !self.up {
                self.since = now;
            }
            self.up = true;
        } else if self.up || opened_total != self.seen {
            if self.up && now.duration_since(self.since) >= STABLE {
                self.attempts = 0;
            }
            self.up = false;
            self.next_attempt = now + self.pause();
        }
        self.seen = opened_total;
        self.up
    }

    fn attempted(&mut self, accepted: bool, now: Instant) {
        self.attempts = self.attempts.saturating_add(1);
        self.next_attempt = now + if accepted { STREAM_DEADLINE } else { self.pause() };
    }

    fn pause(&self) -> Duration {
        PAUSES[self.attempts.min(PAUSES.len() - 1)]
    }
}

async fn register(config: &ServeConfig, endpoint: String) -> Result<(), String> {
    let attempt = async {
        let channel = socket::connect(&config.kubelet_socket, REGISTER_DEADLINE)
            .await
            .map_err(|error| error.to_string())?;
        RegistrationClient::new(channel)
            .register(wire::RegisterRequest {
                version: VERSION.to_owned(),
                endpoint,
                resource_name: config.resource.clone(),
                options: Some(OPTIONS),
            })
            .await
            .map_err(|status| status.to_string())?;
        Ok(())
    };
    tokio::time::timeout(REGISTER_DEADLINE, attempt)
        .await
        .unwrap_or_else(|_| Err("no answer".to_owned()))
}

const OPTIONS: wire::DevicePluginOptions = wire::DevicePluginOptions {
    pre_start_required: true,
    get_preferred_allocation_available: true,
};

/// A number that no other generation of any process uses soon.
fn generation_number() -> u32 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let count = NEXT.fetch_add(1, Ordering::Relaxed);
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos());
    let mixed = now ^ (u128::from(std::process::id()) << 40) ^ (u128::from(count) << 72);
    // Any 32 bits that differ will do: fold, then cut.
    u32::try_from((mixed ^ (mixed >> 32) ^ (mixed >> 64)) & u128::from(u32::MAX)).unwrap_or(0)
}

pub(crate) struct Service<P> {
    plugin: Arc<P>,
    streams: Arc<watch::Sender<u64>>,
    opened: Arc<AtomicU64>,
    end: CancellationToken,
}

impl<P> Service<P> {
    /// A server whose streams nobody counts.
    pub(crate) fn alone(plugin: Arc<P>, end: CancellationToken) -> Self {
        Self {
            plugin,
            streams: Arc::new(watch::channel(0).0),
            opened: Arc::default(),
            end,
        }
    }
}

/// Counts one open device stream for as long as it lives.
struct OpenStream(Arc<watch::Sender<u64>>);

impl OpenStream {
    fn new(count: &Arc<watch::Sender<u64>>) -> Self {
        count.send_modify(|open| *open = open.saturating_add(1));
        Self(Arc::clone(count))
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open = open.saturating_sub(1));
    }
}

fn wire_device(device: &PluginDevice) -> wire::Device {
    wire::Device {
        id: device.id.clone(),
        health: match device.health {
            DeviceHealth::Healthy => "Healthy",
            DeviceHealth::Unhealthy => "Unhealthy",
        }
        .to_owned(),
        topology: device.numa.map(|node| wire::TopologyInfo {
            nodes: vec![wire::NumaNode { id: i64::from(node) }],
        }),
    }
}

#[tonic::async_trait]
impl<P: Plugin> DevicePlugin for Service<P> {
    async fn get_device_plugin_options(
        &self,
        _request: Request<wire::Empty>,
    ) -> Result<Response<wire::DevicePluginOptions>, Status> {
        Ok(Response::new(OPTIONS))
    }

    type ListAndWatchStream = Pin<Box<dyn Stream<Item = Result<wire::ListAndWatchResponse, Status>> + Send>>;

    async fn list_and_watch(
        &self,
        _request: Request<wire::Empty>,
    ) -> Result<Response<Self::ListAndWatchStream>, Status> {
        self.opened.fetch_add(1, Ordering::AcqRel);
        let guard = OpenStream::new(&self.streams);
        let lists = WatchStream::new(self.plugin.devices()).map(move |devices| {
            let _held_open = &guard;
            Ok(wire::ListAndWatchResponse {
                devices: devices.iter().map(wire_device).collect(),
            })
        });
        Ok(Response::new(Box::pin(
            lists.take_until(self.end.clone().cancelled_owned()),
        )))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<wire::PreferredAllocationRequest>,
    ) -> Result<Response<wire::PreferredAllocationResponse>, Status> {
        let requests = request
            .into_inner()
            .container_requests
            .into_iter()
            .map(|request| PreferredRequest {
                available: request.available_device_ids,
                must_include: request.must_include_device_ids,
                size: usize::try_from(request.allocation_size).unwrap_or(0),
            })
            .collect();
        let container_responses = self
            .plugin
            .preferred(requests)
            .await
            .into_iter()
            .map(|device_ids| wire::ContainerPreferredAllocationResponse { device_ids })
            .collect();
        Ok(Response::new(wire::PreferredAllocationResponse { container_responses }))
    }

    async fn allocate(
        &self,
        request: Request<wire::AllocateRequest>,
    ) -> Result<Response<wire::AllocateResponse>, Status> {
        let requests = request
            .into_inner()
            .container_requests
            .into_iter()
            .map(|request| request.device_ids)
            .collect();
        let container_responses = self.plugin.allocate(requests).await?;
        Ok(Response::new(wire::AllocateResponse { container_responses }))
    }

    async fn pre_start_container(
        &self,
        request: Request<wire::PreStartContainerRequest>,
    ) -> Result<Response<wire::PreStartContainerResponse>, Status> {
        self.plugin.pre_start(request.into_inner().device_ids).await?;
        Ok(Response::new(wire::PreStartContainerResponse {}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_stream_is_answered_at_once_and_flapping_slows_down() {
        let start = Instant::now();
        let mut link = Link::new(start);
        assert_eq!(link.next_attempt, start);
        link.attempted(true, start);
        assert_eq!(link.next_attempt, start + STREAM_DEADLINE);
        assert!(link.observe(true, 1, start));
        // Lost after a stable time: no pause.
        let lost = start + STABLE;
        assert!(!link.observe(false, 1, lost));
        assert_eq!(link.next_attempt, lost);
        // Flapping: 50 ms, 200 ms, 1 s, 5 s, 5 s.
        let mut pauses = Vec::new();
        for total in 2..7 {
            link.attempted(true, lost);
            link.observe(true, total, lost);
            link.observe(false, total, lost);
            pauses.push((link.next_attempt - lost).as_millis());
        }
        assert_eq!(pauses, [50, 200, 1000, 5000, 5000]);
    }

    #[test]
    fn a_stream_that_opened_and_closed_between_two_looks_counts_as_lost() {
        let start = Instant::now();
        let mut link = Link::new(start);
        link.attempted(true, start);
        assert!(!link.observe(false, 1, start));
        assert_eq!(link.next_attempt, start + PAUSES[1]);
    }

    #[test]
    fn a_refused_registration_is_retried_with_pauses() {
        let start = Instant::now();
        let mut link = Link::new(start);
        link.attempted(false, start);
        assert_eq!(link.next_attempt, start + PAUSES[1]);
    }
}
