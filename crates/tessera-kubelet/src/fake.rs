//! A kubelet's device manager in miniature, for tests.
//!
//! It behaves as the real one where plugins can tell: it dials back after a
//! registration, keeps a device table per resource, asks for a preference,
//! allocates one container at a time, records every answer in the checkpoint
//! before the container starts, answers PodResources without init containers,
//! and removes all sockets of the folder when it starts again. Tests may also
//! make it do what a real kubelet does rarely: choose other ids than preferred,
//! swap two containers' records, die before it records an answer, or lose its
//! checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost::Message;
use serde_json::json;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::checkpoint;
use crate::proto::deviceplugin_v1beta1 as wire;
use crate::proto::podresources_v1 as podres;
use crate::socket;
use podres::pod_resources_lister_server::{PodResourcesLister, PodResourcesListerServer};
use wire::device_plugin_client::DevicePluginClient;
use wire::registration_server::{Registration, RegistrationServer};

const DIAL: Duration = Duration::from_secs(5);

/// A container as the device manager sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FakeContainer {
    /// Name.
    pub name: String,
    /// Ordinary init container: not listed by PodResources.
    pub init: bool,
    /// Number of devices asked for.
    pub devices: usize,
}

/// A pod as the device manager sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FakePod {
    /// UID.
    pub uid: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Init containers first.
    pub containers: Vec<FakeContainer>,
}

/// One record: who holds what, and the answer of the plugin.
#[derive(Debug, Clone, PartialEq)]
pub struct FakeRecord {
    /// The pod.
    pub pod: FakePod,
    /// Container name.
    pub container: String,
    /// Resource name.
    pub resource: String,
    /// Ids.
    pub ids: BTreeSet<String>,
    /// The plugin's answer.
    pub response: wire::ContainerAllocateResponse,
}

#[derive(Debug, Default)]
struct Shared {
    plugins: BTreeMap<String, RegisteredPlugin>,
    records: Vec<FakeRecord>,
    /// Pods it was told of and that have not ended, in order.
    pods: Vec<FakePod>,
    registrations: u64,
    mute: bool,
}

#[derive(Debug, Clone)]
struct RegisteredPlugin {
    endpoint: PathBuf,
    devices: Vec<wire::Device>,
    options: wire::DevicePluginOptions,
    connected: bool,
}

/// The fake. Dropping it kills it, as SIGKILL does a kubelet.
#[derive(Debug)]
pub struct FakeKubelet {
    root: PathBuf,
    shared: Arc<Mutex<Shared>>,
    changes: Arc<watch::Sender<u64>>,
    alive: CancellationToken,
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl FakeKubelet {
    /// Starts below `root`, which stands for `/var/lib/kubelet`.
    ///
    /// # Errors
    /// When folders or sockets cannot be made.
    pub fn start(root: &Path) -> std::io::Result<Self> {
        let mut fake = Self {
            root: root.to_owned(),
            shared: Arc::default(),
            changes: Arc::new(watch::channel(0).0),
            alive: CancellationToken::new(),
        };
        fake.serve()?;
        Ok(fake)
    }

    /// The device plugin folder.
    #[must_use]
    pub fn plugin_dir(&self) -> PathBuf {
        self.root.join("device-plugins")
    }

    /// The registration socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.plugin_dir().join("kubelet.sock")
    }

    /// The PodResources socket.
    #[must_use]
    pub fn podresources_socket(&self) -> PathBuf {
        self.root.join(crate::podresources::SOCKET)
    }

    /// Dies without clean-up: sockets stay, streams break.
    pub fn kill(&self) {
        self.alive.cancel();
        let mut shared = lock(&self.shared);
        for plugin in shared.plugins.values_mut() {
            plugin.connected = false;
        }
    }

    /// Lets PodResources answer nothing more, or answer again.
    pub fn mute_podresources(&self, mute: bool) {
        lock(&self.shared).mute = mute;
    }

    /// Dies and comes back with its records but without plugins. It is told of
    /// its pods anew; those that it has admitted are taken as told.
    ///
    /// # Errors
    /// When folders or sockets cannot be made.
    pub fn restart(&mut self) -> std::io::Result<()> {
        self.kill();
        {
            let mut shared = lock(&self.shared);
            shared.plugins.clear();
            shared.pods.clear();
            let admitted: Vec<FakePod> = shared.records.iter().map(|record| record.pod.clone()).collect();
            for pod in admitted {
                if !shared.pods.contains(&pod) {
                    shared.pods.push(pod);
                }
            }
        }
        self.alive = CancellationToken::new();
        self.serve()
    }

    /// Number of registrations so far.
    #[must_use]
    pub fn registrations(&self) -> u64 {
        lock(&self.shared).registrations
    }

    fn serve(&mut self) -> std::io::Result<()> {
        let plugin_dir = self.plugin_dir();
        std::fs::create_dir_all(&plugin_dir)?;
        for entry in std::fs::read_dir(&plugin_dir)?.flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "sock") {
                std::fs::remove_file(entry.path())?;
            }
        }
        let listener = UnixListener::bind(self.socket())?;
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(RegistrationServer::new(Registrar {
                    plugin_dir,
                    shared: Arc::clone(&self.shared),
                    changes: Arc::clone(&self.changes),
                    alive: self.alive.clone(),
                }))
                .serve_with_incoming_shutdown(UnixListenerStream::new(listener), self.alive.clone().cancelled_owned()),
        );
        let path = self.podresources_socket();
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let _absent = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path)?;
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(PodResourcesListerServer::new(Lister(Arc::clone(&self.shared))))
                .serve_with_incoming_shutdown(UnixListenerStream::new(listener), self.alive.clone().cancelled_owned()),
        );
        Ok(())
    }

    /// Waits until `wanted` holds for the device list of `resource`; the list
    /// is empty while no plugin is connected.
    ///
    /// # Errors
    /// The last list seen, when `deadline` passes.
    pub async fn await_devices(
        &self,
        resource: &str,
        deadline: Duration,
        mut wanted: impl FnMut(&[wire::Device]) -> bool,
    ) -> Result<Vec<wire::Device>, Vec<wire::Device>> {
        let mut changes = self.changes.subscribe();
        let seen = || {
            lock(&self.shared)
                .plugins
                .get(resource)
                .filter(|plugin| plugin.connected)
                .map(|plugin| plugin.devices.clone())
                .unwrap_or_default()
        };
        let wait = async {
            loop {
                let devices = seen();
                if wanted(&devices) {
                    return devices;
                }
                if changes.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::time::timeout(deadline, wait).await.map_err(|_| seen())
    }

    /// Healthy ids of `resource` that no record holds.
    #[must_use]
    pub fn free_ids(&self, resource: &str) -> Vec<String> {
        let shared = lock(&self.shared);
        let held: BTreeSet<&String> = shared
            .records
            .iter()
            .filter(|record| record.resource == resource)
            .flat_map(|record| &record.ids)
            .collect();
        shared.plugins.get(resource).map_or_else(Vec::new, |plugin| {
            plugin
                .devices
                .iter()
                .filter(|device| device.health == "Healthy" && !held.contains(&device.id))
                .map(|device| device.id.clone())
                .collect()
        })
    }

    async fn client(&self, resource: &str) -> Result<DevicePluginClient<tonic::transport::Channel>, Status> {
        let endpoint = lock(&self.shared)
            .plugins
            .get(resource)
            .map(|plugin| plugin.endpoint.clone())
            .ok_or_else(|| Status::not_found("no plugin registered"))?;
        let channel = socket::connect(&endpoint, DIAL)
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(DevicePluginClient::new(channel))
    }

    /// Asks the plugin which `size` ids it prefers, `held` among them. The
    /// answer is checked as the kubelet does: ids that are neither free nor held
    /// are dropped.
    ///
    /// # Errors
    /// The plugin's status.
    pub async fn prefer(&self, resource: &str, held: &[String], size: usize) -> Result<Vec<String>, Status> {
        let mut available = self.free_ids(resource);
        available.extend(held.iter().cloned());
        let reply = self
            .client(resource)
            .await?
            .get_preferred_allocation(wire::PreferredAllocationRequest {
                container_requests: vec![wire::ContainerPreferredAllocationRequest {
                    available_device_ids: available.clone(),
                    must_include_device_ids: held.to_vec(),
                    allocation_size: i32::try_from(size).unwrap_or(i32::MAX),
                }],
            })
            .await?
            .into_inner();
        let ids = reply.container_responses.into_iter().next().map(|one| one.device_ids);
        Ok(ids
            .unwrap_or_default()
            .into_iter()
            .filter(|id| available.contains(id))
            .collect())
    }

    /// Is told of a pod. It is not admitted yet.
    pub fn hear(&self, pod: &FakePod) {
        let mut shared = lock(&self.shared);
        if !shared.pods.contains(pod) {
            shared.pods.push(pod.clone());
        }
    }

    /// Allocates exactly `ids` for a container and records the answer.
    ///
    /// # Errors
    /// The plugin's status, as it would fail the pod's admission.
    pub async fn allocate(
        &self,
        resource: &str,
        pod: &FakePod,
        container: &str,
        ids: &[String],
    ) -> Result<wire::ContainerAllocateResponse, Status> {
        let response = self.allocate_unrecorded(resource, pod, ids).await?;
        self.record(FakeRecord {
            pod: pod.clone(),
            container: container.to_owned(),
            resource: resource.to_owned(),
            ids: ids.iter().cloned().collect(),
            response: response.clone(),
        });
        Ok(response)
    }

    /// Allocates `ids` and dies before it records the answer.
    ///
    /// # Errors
    /// The plugin's status.
    pub async fn allocate_unrecorded(
        &self,
        resource: &str,
        pod: &FakePod,
        ids: &[String],
    ) -> Result<wire::ContainerAllocateResponse, Status> {
        self.hear(pod);
        let reply = self
            .client(resource)
            .await?
            .allocate(wire::AllocateRequest {
                container_requests: vec![wire::ContainerAllocateRequest {
                    device_ids: ids.to_vec(),
                }],
            })
            .await?
            .into_inner();
        let response = reply
            .container_responses
            .into_iter()
            .next()
            .ok_or_else(|| Status::internal("empty answer"))?;
        Ok(response)
    }

    /// Admits a pod: per container preference, allocation, record. Ids of
    /// ordinary init containers are used again, as the kubelet does.
    ///
    /// # Errors
    /// The plugin's status, as it would fail the pod's admission.
    pub async fn admit(&self, resource: &str, pod: &FakePod) -> Result<(), Status> {
        self.admit_choosing(resource, pod, |_, preferred| preferred).await
    }

    /// The same, with `choose` between the plugin's preference and the
    /// allocation: it gets the free ids and the preferred ones, and says which
    /// are tried first.
    ///
    /// # Errors
    /// The plugin's status, as it would fail the pod's admission.
    pub async fn admit_choosing(
        &self,
        resource: &str,
        pod: &FakePod,
        mut choose: impl FnMut(&[String], Vec<String>) -> Vec<String>,
    ) -> Result<(), Status> {
        self.hear(pod);
        let admitted = self.admit_containers(resource, pod, &mut choose).await;
        if admitted.is_err() {
            // A rejected pod has ended.
            lock(&self.shared).pods.retain(|known| known != pod);
        }
        admitted
    }

    async fn admit_containers(
        &self,
        resource: &str,
        pod: &FakePod,
        choose: &mut impl FnMut(&[String], Vec<String>) -> Vec<String>,
    ) -> Result<(), Status> {
        let mut reusable: Vec<String> = Vec::new();
        for container in &pod.containers {
            if container.devices == 0 {
                continue;
            }
            let mut ids: Vec<String> = reusable.iter().take(container.devices).cloned().collect();
            if ids.len() < container.devices {
                let preferred = self.prefer(resource, &ids, container.devices).await?;
                let free = self.free_ids(resource);
                let more = choose(&free, preferred).into_iter().chain(free);
                for id in more {
                    if ids.len() < container.devices && !ids.contains(&id) {
                        ids.push(id);
                    }
                }
            }
            if ids.len() < container.devices {
                return Err(Status::resource_exhausted("not enough free devices"));
            }
            self.allocate(resource, pod, &container.name, &ids).await?;
            if container.init {
                for id in ids {
                    if !reusable.contains(&id) {
                        reusable.push(id);
                    }
                }
            }
        }
        Ok(())
    }

    /// Calls PreStartContainer for a recorded container.
    ///
    /// # Errors
    /// The plugin's status, with which the container would wait.
    pub async fn start_container(&self, resource: &str, pod_uid: &str, container: &str) -> Result<(), Status> {
        let device_ids = lock(&self.shared)
            .records
            .iter()
            .find(|record| record.resource == resource && record.pod.uid == pod_uid && record.container == container)
            .map(|record| record.ids.iter().cloned().collect())
            .ok_or_else(|| Status::not_found("no record"))?;
        self.client(resource)
            .await?
            .pre_start_container(wire::PreStartContainerRequest { device_ids })
            .await?;
        Ok(())
    }

    /// All records.
    #[must_use]
    pub fn records(&self) -> Vec<FakeRecord> {
        lock(&self.shared).records.clone()
    }

    /// Changes the records behind the plugin's back and writes the checkpoint.
    pub fn edit_records(&self, edit: impl FnOnce(&mut Vec<FakeRecord>)) {
        edit(&mut lock(&self.shared).records);
        self.write_checkpoint();
    }

    /// Forgets a pod, as the kubelet does some time after its end.
    pub fn forget(&self, pod_uid: &str) {
        lock(&self.shared).pods.retain(|pod| pod.uid != pod_uid);
        self.edit_records(|records| records.retain(|record| record.pod.uid != pod_uid));
    }

    /// Removes the checkpoint file; PodResources still answers.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn lose_checkpoint(&self) -> std::io::Result<()> {
        std::fs::remove_file(self.plugin_dir().join(checkpoint::FILE_NAME))
    }

    fn record(&self, record: FakeRecord) {
        lock(&self.shared).records.push(record);
        self.write_checkpoint();
    }

    fn write_checkpoint(&self) {
        write_checkpoint(&lock(&self.shared), &self.plugin_dir());
    }
}

fn write_checkpoint(shared: &Shared, folder: &Path) {
    let entries: Vec<_> = shared
        .records
        .iter()
        .map(|record| {
            json!({
                "PodUID": record.pod.uid,
                "ContainerName": record.container,
                "ResourceName": record.resource,
                "DeviceIDs": {"-1": record.ids},
                "AllocResp": STANDARD.encode(record.response.encode_to_vec()),
            })
        })
        .collect();
    let registered: BTreeMap<_, Vec<_>> = shared
        .plugins
        .iter()
        .map(|(resource, plugin)| {
            (
                resource.clone(),
                plugin.devices.iter().map(|device| device.id.clone()).collect(),
            )
        })
        .collect();
    let text = json!({
        "Data": {"PodDeviceEntries": entries, "RegisteredDevices": registered},
        "Checksum": 0,
    })
    .to_string();
    let temporary = folder.join(".checkpoint-tmp");
    let written =
        std::fs::write(&temporary, text).and_then(|()| std::fs::rename(&temporary, folder.join(checkpoint::FILE_NAME)));
    // The test sees the missing file; a panic here would hide why.
    if let Err(error) = written {
        tracing::error!(%error, "The fake kubelet cannot write its checkpoint.");
    }
}

impl Drop for FakeKubelet {
    fn drop(&mut self) {
        self.alive.cancel();
    }
}

struct Registrar {
    plugin_dir: PathBuf,
    shared: Arc<Mutex<Shared>>,
    changes: Arc<watch::Sender<u64>>,
    alive: CancellationToken,
}

#[tonic::async_trait]
impl Registration for Registrar {
    async fn register(&self, request: Request<wire::RegisterRequest>) -> Result<Response<wire::Empty>, Status> {
        let request = request.into_inner();
        if request.version != "v1beta1" {
            return Err(Status::invalid_argument("unsupported version"));
        }
        let endpoint = self.plugin_dir.join(&request.endpoint);
        lock(&self.shared).registrations += 1;
        let shared = Arc::clone(&self.shared);
        let changes = Arc::clone(&self.changes);
        let alive = self.alive.clone();
        tokio::spawn(async move {
            let follow = follow(&shared, &changes, &request.resource_name, &endpoint);
            tokio::select! {
                result = follow => {
                    if let Err(status) = result {
                        tracing::debug!(%status, "The device stream ended.");
                    }
                }
                () = alive.cancelled() => {}
            }
            // By name, not by connection: the real one has the same flaw.
            if let Some(plugin) = lock(&shared).plugins.get_mut(&request.resource_name) {
                plugin.connected = false;
            }
            changes.send_modify(|count| *count += 1);
        });
        Ok(Response::new(wire::Empty {}))
    }
}

async fn follow(
    shared: &Mutex<Shared>,
    changes: &watch::Sender<u64>,
    resource: &str,
    endpoint: &Path,
) -> Result<(), Status> {
    let channel = socket::connect(endpoint, DIAL)
        .await
        .map_err(|error| Status::unavailable(error.to_string()))?;
    let mut client = DevicePluginClient::new(channel);
    let options = client.get_device_plugin_options(wire::Empty {}).await?.into_inner();
    let mut lists = client.list_and_watch(wire::Empty {}).await?.into_inner();
    while let Some(list) = lists.message().await? {
        lock(shared).plugins.insert(
            resource.to_owned(),
            RegisteredPlugin {
                endpoint: endpoint.to_owned(),
                devices: list.devices,
                options,
                connected: true,
            },
        );
        if let Some(folder) = endpoint.parent() {
            write_checkpoint(&lock(shared), folder);
        }
        changes.send_modify(|count| *count += 1);
    }
    Ok(())
}

impl FakeKubelet {
    /// The options of the plugin behind `resource`: PreStartContainer wanted,
    /// preference offered.
    #[must_use]
    pub fn options(&self, resource: &str) -> Option<(bool, bool)> {
        lock(&self.shared).plugins.get(resource).map(|plugin| {
            (
                plugin.options.pre_start_required,
                plugin.options.get_preferred_allocation_available,
            )
        })
    }
}

struct Lister(Arc<Mutex<Shared>>);

#[tonic::async_trait]
impl PodResourcesLister for Lister {
    async fn list(
        &self,
        _request: Request<podres::ListPodResourcesRequest>,
    ) -> Result<Response<podres::ListPodResourcesResponse>, Status> {
        let shared = lock(&self.0);
        if shared.mute {
            return Err(Status::resource_exhausted("rejected by rate limit"));
        }
        let mut pods = shared.pods.clone();
        for record in &shared.records {
            if !pods.contains(&record.pod) {
                pods.push(record.pod.clone());
            }
        }
        let containers = |pod: &FakePod| {
            pod.containers
                .iter()
                .filter(|container| !container.init)
                .map(|container| podres::ContainerResources {
                    name: container.name.clone(),
                    devices: shared
                        .records
                        .iter()
                        .filter(|record| record.pod.uid == pod.uid && record.container == container.name)
                        .map(|record| podres::ContainerDevices {
                            resource_name: record.resource.clone(),
                            device_ids: record.ids.iter().cloned().collect(),
                        })
                        .collect(),
                })
                .collect()
        };
        let pod_resources = pods
            .iter()
            .map(|pod| podres::PodResources {
                name: pod.name.clone(),
                namespace: pod.namespace.clone(),
                containers: containers(pod),
            })
            .collect();
        Ok(Response::new(podres::ListPodResourcesResponse { pod_resources }))
    }
}
