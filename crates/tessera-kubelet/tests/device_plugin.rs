//! The device plugin server against a kubelet's device manager in miniature.

use std::sync::Arc;
use std::time::Duration;

use tessera_kubelet::fake::{FakeContainer, FakeKubelet, FakePod};
use tessera_kubelet::proto::deviceplugin_v1beta1::ContainerAllocateResponse;
use tessera_kubelet::{
    DeviceHealth, Plugin, PluginDevice, PreferredRequest, Refusal, ServeConfig, ServeError, StreamState, podresources,
    serve,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const RESOURCE: &str = "example.com/card";
const DEADLINE: Duration = Duration::from_secs(20);

struct Cards(watch::Sender<Arc<[PluginDevice]>>);

fn devices(health: DeviceHealth) -> Arc<[PluginDevice]> {
    (0..3)
        .map(|slot| PluginDevice {
            id: format!("card-{slot}"),
            health,
            numa: Some(slot),
        })
        .collect()
}

impl Plugin for Cards {
    fn devices(&self) -> watch::Receiver<Arc<[PluginDevice]>> {
        self.0.subscribe()
    }

    async fn preferred(&self, requests: Vec<PreferredRequest>) -> Vec<Vec<String>> {
        requests
            .into_iter()
            .map(|request| request.available.into_iter().rev().take(request.size).collect())
            .collect()
    }

    async fn allocate(&self, requests: Vec<Vec<String>>) -> Result<Vec<ContainerAllocateResponse>, Refusal> {
        requests
            .into_iter()
            .map(|ids| {
                if ids.iter().any(|id| id == "card-0") {
                    return Err(Refusal {
                        retryable: false,
                        message: "card-0 is taken".to_owned(),
                    });
                }
                Ok(ContainerAllocateResponse {
                    envs: [("IDS".to_owned(), ids.join(","))].into(),
                    ..ContainerAllocateResponse::default()
                })
            })
            .collect()
    }

    async fn pre_start(&self, ids: Vec<String>) -> Result<(), Refusal> {
        if ids.contains(&"card-1".to_owned()) {
            return Err(Refusal {
                retryable: true,
                message: "not yet".to_owned(),
            });
        }
        Ok(())
    }
}

struct Served {
    plugin: Arc<Cards>,
    state: watch::Receiver<StreamState>,
    cancel: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), ServeError>>,
}

fn start(root: &std::path::Path) -> Served {
    let plugin = Arc::new(Cards(watch::channel(devices(DeviceHealth::Healthy)).0));
    let (sender, state) = watch::channel(StreamState::NoKubelet);
    let cancel = CancellationToken::new();
    let plugin_dir = root.join("device-plugins");
    let config = ServeConfig {
        kubelet_socket: plugin_dir.join("kubelet.sock"),
        plugin_dir,
        resource: RESOURCE.to_owned(),
        socket_stem: "tessera-card".to_owned(),
    };
    let task = tokio::spawn(serve(config, Arc::clone(&plugin), sender, cancel.clone()));
    Served {
        plugin,
        state,
        cancel,
        task,
    }
}

fn pod(name: &str, containers: &[(&str, bool, usize)]) -> FakePod {
    FakePod {
        uid: format!("uid-{name}"),
        namespace: "default".to_owned(),
        name: name.to_owned(),
        containers: containers
            .iter()
            .map(|(name, init, devices)| FakeContainer {
                name: (*name).to_owned(),
                init: *init,
                devices: *devices,
            })
            .collect(),
    }
}

#[tokio::test]
async fn a_pod_is_served_from_registration_to_start() {
    let root = tempfile::tempdir().unwrap();
    let kubelet = FakeKubelet::start(root.path()).unwrap();
    let mut served = start(root.path());

    let list = kubelet
        .await_devices(RESOURCE, DEADLINE, |list| !list.is_empty())
        .await
        .unwrap();
    assert_eq!(
        list.iter().map(|device| device.id.as_str()).collect::<Vec<_>>(),
        ["card-0", "card-1", "card-2"]
    );
    assert_eq!(list[2].topology.as_ref().unwrap().nodes[0].id, 2);
    assert_eq!(kubelet.options(RESOURCE), Some((true, true)));
    served.state.wait_for(|state| *state == StreamState::Up).await.unwrap();

    kubelet.admit(RESOURCE, &pod("a", &[("main", false, 1)])).await.unwrap();
    let record = &kubelet.records()[0];
    assert_eq!(record.response.envs["IDS"], "card-2");
    kubelet.start_container(RESOURCE, "uid-a", "main").await.unwrap();

    let holders = podresources::holders(&kubelet.podresources_socket(), RESOURCE, DEADLINE)
        .await
        .unwrap();
    assert_eq!((holders[0].pod.as_str(), holders[0].container.as_str()), ("a", "main"));

    // Refusals keep their text and their kind.
    let refused = kubelet
        .allocate(RESOURCE, &pod("b", &[]), "main", &["card-0".to_owned()])
        .await
        .unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    assert_eq!(refused.message(), "card-0 is taken");
    kubelet.admit(RESOURCE, &pod("c", &[("main", false, 1)])).await.unwrap();
    let waits = kubelet.start_container(RESOURCE, "uid-c", "main").await.unwrap_err();
    assert_eq!(waits.code(), tonic::Code::Unavailable);
}

#[tokio::test]
async fn health_reaches_the_kubelet_without_a_new_registration() {
    let root = tempfile::tempdir().unwrap();
    let kubelet = FakeKubelet::start(root.path()).unwrap();
    let served = start(root.path());
    kubelet
        .await_devices(RESOURCE, DEADLINE, |list| list.len() == 3)
        .await
        .unwrap();
    served.plugin.0.send_replace(devices(DeviceHealth::Unhealthy));
    kubelet
        .await_devices(RESOURCE, DEADLINE, |list| {
            list.iter().all(|one| one.health == "Unhealthy")
        })
        .await
        .unwrap();
    assert_eq!(kubelet.registrations(), 1);
}

#[tokio::test]
async fn a_restarted_kubelet_sees_the_same_ids_again() {
    let root = tempfile::tempdir().unwrap();
    let mut kubelet = FakeKubelet::start(root.path()).unwrap();
    let _served = start(root.path());
    let before = kubelet
        .await_devices(RESOURCE, DEADLINE, |list| list.len() == 3)
        .await
        .unwrap();
    for _round in 0..3 {
        kubelet.restart().unwrap();
        let after = kubelet
            .await_devices(RESOURCE, DEADLINE, |list| list.len() == 3)
            .await
            .unwrap();
        assert_eq!(before, after);
        let sockets = std::fs::read_dir(kubelet.plugin_dir())
            .unwrap()
            .filter(|entry| {
                entry
                    .as_ref()
                    .unwrap()
                    .file_name()
                    .to_string_lossy()
                    .starts_with("tessera-card-")
            })
            .count();
        assert_eq!(sockets, 1, "one socket a generation, old ones removed");
    }
}

#[tokio::test]
async fn the_plugin_waits_for_a_kubelet_that_starts_later() {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(root.path().join("device-plugins")).unwrap();
    let served = start(root.path());
    assert_eq!(*served.state.borrow(), StreamState::NoKubelet);
    let kubelet = FakeKubelet::start(root.path()).unwrap();
    kubelet
        .await_devices(RESOURCE, DEADLINE, |list| list.len() == 3)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_second_plugin_on_the_resource_is_refused_and_a_stale_socket_is_not() {
    let root = tempfile::tempdir().unwrap();
    let kubelet = FakeKubelet::start(root.path()).unwrap();
    // A socket whose process died.
    drop(std::os::unix::net::UnixListener::bind(
        kubelet.plugin_dir().join("tessera-card-00000000.sock"),
    ));
    let first = start(root.path());
    kubelet
        .await_devices(RESOURCE, DEADLINE, |list| list.len() == 3)
        .await
        .unwrap();
    let second = start(root.path());
    let error = second.task.await.unwrap().unwrap_err();
    assert!(matches!(error, ServeError::Occupied { .. }), "{error}");

    first.cancel.cancel();
    first.task.await.unwrap().unwrap();
    kubelet
        .await_devices(RESOURCE, DEADLINE, <[_]>::is_empty)
        .await
        .unwrap();
    let left: Vec<_> = std::fs::read_dir(kubelet.plugin_dir())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name.to_string_lossy().contains("card"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
