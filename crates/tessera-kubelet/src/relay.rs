//! A plugin whose work is done by another process.
//!
//! The kubelet takes the end of a plugin's stream as the end of its devices:
//! until the plugin is back it refuses, for good, every pod that wants one. So
//! the process that the kubelet sees does nothing that can go wrong. It serves
//! a [`Relay`], which passes each call to a worker over a socket that the two
//! share. When the worker dies the devices stay as they were and calls wait for
//! the next worker, which is given the same calls again; that is sound because
//! an answer that the kubelet did not record is void.
//!
//! The worker serves its end with [`backstage`]. The same protocol is spoken on
//! both sides. In addition the relay says whether the kubelet reads the device
//! list, as metadata of `GetDevicePluginOptions`.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};
use tower::service_fn;
use tracing::{info, warn};

use crate::plugin::{DeviceHealth, Plugin, PluginDevice, PreferredRequest, REFUSED, Refusal, Service, StreamState};
use crate::proto::deviceplugin_v1beta1 as wire;
use wire::device_plugin_client::DevicePluginClient;
use wire::device_plugin_server::{DevicePlugin, DevicePluginServer};

/// Metadata that says how the kubelet's stream is.
const KUBELET: &str = "tessera-kubelet-stream";
/// How long a call waits for a worker that answers. The kubelet sets no limit
/// to an allocation and 30 s to the start of a container.
const ALLOCATE: Duration = Duration::from_secs(60);
const OTHERS: Duration = Duration::from_secs(20);
/// Pause before a call that a worker did not answer is made again, when it is
/// still the same worker.
const AGAIN: Duration = Duration::from_millis(50);
/// How long devices may stay healthy without a worker: longer than one takes to
/// start, shorter than anybody wants to wait for it.
pub const ORPHANED: Duration = Duration::from_secs(30);

/// One worker's end of the line.
#[derive(Debug, Clone)]
struct Line {
    number: u64,
    channel: Channel,
}

/// The plugin that passes its calls on.
#[derive(Debug)]
pub struct Relay {
    line: watch::Sender<Option<Line>>,
    devices: watch::Sender<Arc<[PluginDevice]>>,
    kubelet: watch::Receiver<StreamState>,
    orphaned: Duration,
    count: AtomicU64,
    /// The preference asked for last, and of which worker.
    preferred: Mutex<(u64, Vec<PreferredRequest>)>,
}

impl Relay {
    /// A relay without a worker. `kubelet` is told to each worker; devices stay
    /// healthy for `orphaned` without one (see [`ORPHANED`]).
    #[must_use]
    pub fn new(kubelet: watch::Receiver<StreamState>, orphaned: Duration) -> Arc<Self> {
        Arc::new(Self {
            line: watch::channel(None).0,
            devices: watch::channel(Arc::from([])).0,
            kubelet,
            orphaned,
            count: AtomicU64::new(0),
            preferred: Mutex::default(),
        })
    }

    /// Waits until a worker has told devices. Until then there is nothing to
    /// register.
    pub async fn known(&self) {
        let mut devices = self.devices.subscribe();
        // The sender is ours, so the wait cannot end otherwise.
        drop(devices.wait_for(|devices| !devices.is_empty()).await);
    }

    /// Takes a worker's socket as the line to use, until the worker hangs up or
    /// the next one is attached.
    ///
    /// # Errors
    /// The socket cannot be used.
    pub async fn attach(self: &Arc<Self>, socket: UnixStream) -> Result<(), tonic::transport::Error> {
        let mut socket = Some(socket);
        // Dialled once; a line that breaks is not made again.
        let channel = Endpoint::from_static("http://localhost")
            .connect_with_connector(service_fn(move |_| {
                let socket = socket.take().ok_or(std::io::ErrorKind::NotConnected);
                async move { socket.map(TokioIo::new).map_err(std::io::Error::from) }
            }))
            .await?;
        let number = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        let line = Line { number, channel };
        self.line.send_replace(Some(line.clone()));
        let relay = Arc::clone(self);
        tokio::spawn(async move {
            relay.follow(&line).await;
            relay.hung_up(line.number).await;
        });
        Ok(())
    }

    /// Takes in the worker's device list and tells it about the kubelet, until
    /// it hangs up.
    async fn follow(&self, line: &Line) {
        let mut client = DevicePluginClient::new(line.channel.clone());
        let lists = async {
            let mut lists = client.list_and_watch(wire::Empty {}).await?.into_inner();
            // An empty list at first means that the worker knows none yet.
            let mut known = false;
            while let Some(list) = lists.message().await? {
                known |= !list.devices.is_empty();
                if !known {
                    continue;
                }
                if list.devices.is_empty() {
                    self.all_unhealthy();
                } else {
                    self.publish(list.devices.into_iter().map(device).collect());
                }
            }
            Ok::<(), Status>(())
        };
        let mut kubelet = self.kubelet.clone();
        let mut teller = DevicePluginClient::new(line.channel.clone());
        let tell = async {
            loop {
                let word = word(*kubelet.borrow_and_update());
                let mut request = Request::new(wire::Empty {});
                if let Ok(word) = word.parse() {
                    request.metadata_mut().insert(KUBELET, word);
                }
                teller.get_device_plugin_options(request).await?;
                if kubelet.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
            #[expect(unreachable_code, reason = "names the error type of the block")]
            Ok::<(), Status>(())
        };
        // Whichever ends first, the line is of no more use.
        let _why = tokio::select! {
            ended = lists => ended,
            ended = tell => ended,
        };
    }

    async fn hung_up(&self, number: u64) {
        let ended = self.line.send_if_modified(|line| {
            let ours = line.as_ref().is_some_and(|line| line.number == number);
            if ours {
                *line = None;
            }
            ours
        });
        if !ended || self.devices.borrow().is_empty() {
            return;
        }
        info!("The worker is gone; its devices stay as they are while it is started again.");
        let mut line = self.line.subscribe();
        let back = line.wait_for(Option::is_some);
        if tokio::time::timeout(self.orphaned, back).await.is_err() {
            warn!("No worker for {} s; no device is handed out.", self.orphaned.as_secs());
            self.all_unhealthy();
        }
    }

    fn publish(&self, devices: Vec<PluginDevice>) {
        let devices: Arc<[PluginDevice]> = devices.into();
        self.devices.send_if_modified(|old| {
            let differs = *old != devices;
            *old = devices;
            differs
        });
    }

    fn all_unhealthy(&self) {
        let devices = Arc::clone(&self.devices.borrow());
        let unhealthy = devices.iter().map(|device| PluginDevice {
            health: DeviceHealth::Unhealthy,
            ..device.clone()
        });
        self.publish(unhealthy.collect());
    }

    /// Makes a call until a worker answers it, each worker once as long as it
    /// lives.
    async fn ask<T, F, R>(&self, patience: Duration, call: F) -> Result<T, Status>
    where
        F: Fn(Line, DevicePluginClient<Channel>) -> R,
        R: Future<Output = Result<Response<T>, Status>>,
    {
        let until = Instant::now() + patience;
        let mut lines = self.line.subscribe();
        let none = || Status::unavailable("the node agent does not answer; its log says why");
        loop {
            let line = match timeout_at(until, lines.wait_for(Option::is_some)).await {
                Ok(Ok(line)) => line.clone(),
                _ => None,
            };
            let Some(line) = line else { return Err(none()) };
            let client = DevicePluginClient::new(line.channel.clone());
            match timeout_at(until, call(line, client)).await {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) if status.metadata().contains_key(REFUSED) => return Err(status),
                Ok(Err(_)) => {
                    // What woke us is seen at the next look.
                    let _woken = tokio::time::timeout(AGAIN, lines.changed()).await;
                }
                Err(_) => return Err(none()),
            }
        }
    }
}

fn word(state: StreamState) -> &'static str {
    match state {
        StreamState::NoKubelet => "none",
        StreamState::Registering => "registering",
        StreamState::Up => "up",
    }
}

fn state(word: &str) -> Option<StreamState> {
    [StreamState::NoKubelet, StreamState::Registering, StreamState::Up]
        .into_iter()
        .find(|state| self::word(*state) == word)
}

fn device(device: wire::Device) -> PluginDevice {
    PluginDevice {
        health: if device.health == "Healthy" {
            DeviceHealth::Healthy
        } else {
            DeviceHealth::Unhealthy
        },
        numa: device
            .topology
            .and_then(|topology| u32::try_from(topology.nodes.first()?.id).ok()),
        id: device.id,
    }
}

fn refusal(status: &Status) -> Refusal {
    Refusal {
        retryable: status.code() == tonic::Code::Unavailable,
        message: status.message().to_owned(),
    }
}

fn preference(requests: &[PreferredRequest]) -> wire::PreferredAllocationRequest {
    wire::PreferredAllocationRequest {
        container_requests: requests
            .iter()
            .map(|request| wire::ContainerPreferredAllocationRequest {
                available_device_ids: request.available.clone(),
                must_include_device_ids: request.must_include.clone(),
                allocation_size: i32::try_from(request.size).unwrap_or(i32::MAX),
            })
            .collect(),
    }
}

impl Plugin for Relay {
    fn devices(&self) -> watch::Receiver<Arc<[PluginDevice]>> {
        self.devices.subscribe()
    }

    async fn preferred(&self, requests: Vec<PreferredRequest>) -> Vec<Vec<String>> {
        let note = |number| {
            let mut last = self.preferred.lock().unwrap_or_else(PoisonError::into_inner);
            *last = (number, requests.clone());
        };
        let reply = self.ask(OTHERS, |line, mut client| {
            note(line.number);
            let request = preference(&requests);
            async move { client.get_preferred_allocation(request).await }
        });
        // Without an answer the kubelet takes any id; each will do.
        let reply = reply.await.unwrap_or_default();
        reply
            .container_responses
            .into_iter()
            .map(|one| one.device_ids)
            .collect()
    }

    async fn allocate(&self, requests: Vec<Vec<String>>) -> Result<Vec<wire::ContainerAllocateResponse>, Refusal> {
        let request = wire::AllocateRequest {
            container_requests: requests
                .into_iter()
                .map(|device_ids| wire::ContainerAllocateRequest { device_ids })
                .collect(),
        };
        let reply = self.ask(ALLOCATE, |line, mut client| {
            let request = request.clone();
            // A worker that began meanwhile learns first whom it is for, as the
            // one before it did.
            let (of, asked) = self.preferred.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let missed = (of != line.number && of != 0).then(|| preference(&asked));
            async move {
                if let Some(missed) = missed {
                    client.get_preferred_allocation(missed).await?;
                }
                client.allocate(request).await
            }
        });
        let reply = reply.await.map_err(|status| refusal(&status))?;
        Ok(reply.container_responses)
    }

    /// Asks once: the kubelet reads the pod before it calls, so that what it
    /// read may be old by the time another worker answers. It asks again by
    /// itself, after having read the pod again.
    async fn pre_start(&self, ids: Vec<String>) -> Result<(), Refusal> {
        let again = || Refusal {
            retryable: true,
            message: "the node agent was just started again; the kubelet asks it again".to_owned(),
        };
        let line = self.line.borrow().clone().ok_or_else(again)?;
        let mut client = DevicePluginClient::new(line.channel);
        let request = wire::PreStartContainerRequest { device_ids: ids };
        match tokio::time::timeout(OTHERS, client.pre_start_container(request)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(status)) if status.metadata().contains_key(REFUSED) => Err(refusal(&status)),
            _ => Err(again()),
        }
    }
}

/// Serves `plugin` to the relay at the other end of `socket` until that hangs
/// up or `cancel`. `kubelet` follows what the relay says about the kubelet.
///
/// # Errors
/// The connection broke in an unexpected way.
pub async fn backstage<P: Plugin>(
    socket: UnixStream,
    plugin: Arc<P>,
    kubelet: watch::Sender<StreamState>,
    cancel: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let service = Backstage {
        service: Service::alone(plugin, cancel.clone()),
        kubelet,
    };
    // One connection, and no end of them: the server ends when it is told to.
    let incoming = futures::stream::iter([Ok::<_, std::io::Error>(socket)]).chain(futures::stream::pending());
    tonic::transport::Server::builder()
        .add_service(DevicePluginServer::new(service))
        .serve_with_incoming_shutdown(incoming, cancel.cancelled_owned())
        .await
}

struct Backstage<P> {
    service: Service<P>,
    kubelet: watch::Sender<StreamState>,
}

#[tonic::async_trait]
impl<P: Plugin> DevicePlugin for Backstage<P> {
    async fn get_device_plugin_options(
        &self,
        request: Request<wire::Empty>,
    ) -> Result<Response<wire::DevicePluginOptions>, Status> {
        let word = request.metadata().get(KUBELET).and_then(|word| word.to_str().ok());
        if let Some(state) = word.and_then(state) {
            self.kubelet.send_replace(state);
        }
        self.service.get_device_plugin_options(request).await
    }

    type ListAndWatchStream = <Service<P> as DevicePlugin>::ListAndWatchStream;

    async fn list_and_watch(
        &self,
        request: Request<wire::Empty>,
    ) -> Result<Response<Self::ListAndWatchStream>, Status> {
        self.service.list_and_watch(request).await
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<wire::PreferredAllocationRequest>,
    ) -> Result<Response<wire::PreferredAllocationResponse>, Status> {
        self.service.get_preferred_allocation(request).await
    }

    async fn allocate(
        &self,
        request: Request<wire::AllocateRequest>,
    ) -> Result<Response<wire::AllocateResponse>, Status> {
        self.service.allocate(request).await
    }

    async fn pre_start_container(
        &self,
        request: Request<wire::PreStartContainerRequest>,
    ) -> Result<Response<wire::PreStartContainerResponse>, Status> {
        self.service.pre_start_container(request).await
    }
}
