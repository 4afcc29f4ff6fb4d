//! A kubelet, a relay, and workers that die.

#![expect(clippy::unwrap_used, reason = "the set-up of a test may end it")]

use std::os::unix::net::UnixStream as Line;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tessera_kubelet::fake::{FakeContainer, FakeKubelet, FakePod};
use tessera_kubelet::proto::deviceplugin_v1beta1::ContainerAllocateResponse;
use tessera_kubelet::relay::{ORPHANED, Relay, backstage};
use tessera_kubelet::{DeviceHealth, Plugin, PluginDevice, PreferredRequest, Refusal, ServeConfig, StreamState, serve};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const RESOURCE: &str = "example.com/card";
const DEADLINE: Duration = Duration::from_secs(20);

/// A worker's mind: what it was asked, and whether it ever answers.
struct Mind {
    devices: watch::Sender<Arc<[PluginDevice]>>,
    asked: Mutex<Vec<&'static str>>,
    stuck: watch::Sender<bool>,
}

impl Mind {
    fn new(devices: usize) -> Arc<Self> {
        Arc::new(Self {
            devices: watch::channel(self::devices(devices)).0,
            asked: Mutex::default(),
            stuck: watch::channel(false).0,
        })
    }

    async fn ask(&self, what: &'static str) {
        self.asked.lock().unwrap().push(what);
        let mut stuck = self.stuck.subscribe();
        stuck.wait_for(|stuck| !stuck).await.unwrap();
    }

    fn asked(&self) -> Vec<&'static str> {
        self.asked.lock().unwrap().clone()
    }
}

fn devices(count: usize) -> Arc<[PluginDevice]> {
    (0..count)
        .map(|slot| PluginDevice {
            id: format!("card-{slot}"),
            health: DeviceHealth::Healthy,
            numa: Some(1),
        })
        .collect()
}

impl Plugin for Mind {
    fn devices(&self) -> watch::Receiver<Arc<[PluginDevice]>> {
        self.devices.subscribe()
    }

    async fn preferred(&self, requests: Vec<PreferredRequest>) -> Vec<Vec<String>> {
        self.asked.lock().unwrap().push("preferred");
        requests
            .into_iter()
            .map(|request| request.available.into_iter().rev().take(request.size).collect())
            .collect()
    }

    async fn allocate(&self, requests: Vec<Vec<String>>) -> Result<Vec<ContainerAllocateResponse>, Refusal> {
        self.ask("allocate").await;
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
        self.ask("start").await;
        if ids.contains(&"card-1".to_owned()) {
            return Err(Refusal {
                retryable: true,
                message: "not yet".to_owned(),
            });
        }
        Ok(())
    }
}

/// A worker process in little: it dies when its line is cut.
struct Worker {
    mind: Arc<Mind>,
    line: Line,
    kubelet: watch::Receiver<StreamState>,
}

impl Worker {
    async fn start(relay: &Arc<Relay>, mind: Arc<Mind>) -> Self {
        let (near, far) = Line::pair().unwrap();
        for end in [&near, &far] {
            end.set_nonblocking(true).unwrap();
        }
        let line = far.try_clone().unwrap();
        let (sender, kubelet) = watch::channel(StreamState::NoKubelet);
        let far = UnixStream::from_std(far).unwrap();
        tokio::spawn(backstage(far, Arc::clone(&mind), sender, CancellationToken::new()));
        relay.attach(UnixStream::from_std(near).unwrap()).await.unwrap();
        Self { mind, line, kubelet }
    }

    fn kill(&self) {
        self.line.shutdown(std::net::Shutdown::Both).unwrap();
    }
}

fn start(root: &Path, orphaned: Duration) -> (FakeKubelet, Arc<Relay>) {
    let kubelet = FakeKubelet::start(root).unwrap();
    let (sender, state) = watch::channel(StreamState::NoKubelet);
    let relay = Relay::new(state, orphaned);
    let config = ServeConfig {
        plugin_dir: kubelet.plugin_dir(),
        kubelet_socket: kubelet.socket(),
        resource: RESOURCE.to_owned(),
        socket_stem: "tessera-card".to_owned(),
    };
    tokio::spawn({
        let relay = Arc::clone(&relay);
        async move {
            relay.known().await;
            serve(config, relay, sender, CancellationToken::new()).await.unwrap();
        }
    });
    (kubelet, relay)
}

fn pod(name: &str) -> FakePod {
    FakePod {
        uid: format!("uid-{name}"),
        namespace: "default".to_owned(),
        name: name.to_owned(),
        containers: vec![FakeContainer {
            name: "c".to_owned(),
            init: false,
            devices: 1,
        }],
    }
}

async fn three(kubelet: &FakeKubelet) {
    let all = |list: &[tessera_kubelet::proto::deviceplugin_v1beta1::Device]| {
        list.len() == 3 && list.iter().all(|device| device.health == "Healthy")
    };
    kubelet.await_devices(RESOURCE, DEADLINE, all).await.unwrap();
}

#[tokio::test]
async fn calls_pass_and_the_worker_hears_of_the_kubelet() {
    let root = tempfile::tempdir().unwrap();
    let (kubelet, relay) = start(root.path(), ORPHANED);
    let mut worker = Worker::start(&relay, Mind::new(3)).await;
    three(&kubelet).await;
    let up = worker.kubelet.wait_for(|state| *state == StreamState::Up);
    tokio::time::timeout(DEADLINE, up).await.unwrap().unwrap();
    kubelet.admit(RESOURCE, &pod("p")).await.unwrap();
    let record = kubelet.records().pop().unwrap();
    assert_eq!(record.response.envs["IDS"], "card-2");
    kubelet.start_container(RESOURCE, "uid-p", "c").await.unwrap();
    assert_eq!(worker.mind.asked(), ["preferred", "allocate", "start"]);
}

#[tokio::test]
async fn a_worker_s_no_is_passed_on_and_not_asked_for_twice() {
    let root = tempfile::tempdir().unwrap();
    let (kubelet, relay) = start(root.path(), ORPHANED);
    let worker = Worker::start(&relay, Mind::new(3)).await;
    three(&kubelet).await;
    let never = kubelet.allocate(RESOURCE, &pod("p"), "c", &["card-0".to_owned()]).await;
    let never = never.unwrap_err();
    assert_eq!((never.code() as i32, never.message()), (9, "card-0 is taken"));
    kubelet
        .allocate(RESOURCE, &pod("q"), "c", &["card-1".to_owned()])
        .await
        .unwrap();
    let later = kubelet.start_container(RESOURCE, "uid-q", "c").await.unwrap_err();
    assert_eq!((later.code() as i32, later.message()), (14, "not yet"));
    assert_eq!(worker.mind.asked(), ["allocate", "allocate", "start"]);
}

#[tokio::test]
async fn a_worker_killed_while_it_is_asked_fails_no_pod() {
    let root = tempfile::tempdir().unwrap();
    let (kubelet, relay) = start(root.path(), ORPHANED);
    let first = Worker::start(&relay, Mind::new(3)).await;
    three(&kubelet).await;
    first.mind.stuck.send_replace(true);
    let p = pod("p");
    let admitted = kubelet.admit(RESOURCE, &p);
    let change_of_worker = async {
        while first.mind.asked() != ["preferred", "allocate"] {
            tokio::task::yield_now().await;
        }
        first.kill();
        // The next one knows no cards yet as it begins.
        let mind = Mind::new(0);
        let second = Worker::start(&relay, Arc::clone(&mind)).await;
        mind.devices.send_replace(devices(3));
        second
    };
    let (admitted, second) = tokio::join!(admitted, change_of_worker);
    admitted.unwrap();
    // It was told first what the dead one had been told.
    assert_eq!(second.mind.asked(), ["preferred", "allocate"]);
    assert_eq!(kubelet.registrations(), 1, "the kubelet noticed nothing");
    three(&kubelet).await;
}

#[tokio::test]
async fn a_container_start_that_a_worker_did_not_answer_is_asked_for_again_by_the_kubelet() {
    let root = tempfile::tempdir().unwrap();
    let (kubelet, relay) = start(root.path(), ORPHANED);
    let first = Worker::start(&relay, Mind::new(3)).await;
    three(&kubelet).await;
    kubelet.admit(RESOURCE, &pod("p")).await.unwrap();
    first.mind.stuck.send_replace(true);
    let started = kubelet.start_container(RESOURCE, "uid-p", "c");
    let death = async {
        while first.mind.asked() != ["preferred", "allocate", "start"] {
            tokio::task::yield_now().await;
        }
        first.kill();
        Worker::start(&relay, Mind::new(3)).await
    };
    let (started, second) = tokio::join!(started, death);
    assert_eq!(started.unwrap_err().code() as i32, 14, "to be asked again");
    assert_eq!(second.mind.asked(), [""; 0], "what the kubelet read is old");
    kubelet.start_container(RESOURCE, "uid-p", "c").await.unwrap();
    assert_eq!(kubelet.registrations(), 1);
}

#[tokio::test]
async fn without_a_worker_for_long_no_device_is_handed_out() {
    let root = tempfile::tempdir().unwrap();
    let (kubelet, relay) = start(root.path(), Duration::from_millis(20));
    let worker = Worker::start(&relay, Mind::new(3)).await;
    three(&kubelet).await;
    worker.kill();
    kubelet
        .await_devices(RESOURCE, DEADLINE, |list| {
            list.len() == 3 && list.iter().all(|device| device.health == "Unhealthy")
        })
        .await
        .unwrap();
    let _next = Worker::start(&relay, Mind::new(3)).await;
    three(&kubelet).await;
    assert_eq!(kubelet.registrations(), 1);
}

#[tokio::test]
async fn a_worker_that_loses_all_cards_withdraws_them() {
    let root = tempfile::tempdir().unwrap();
    let (kubelet, relay) = start(root.path(), ORPHANED);
    let worker = Worker::start(&relay, Mind::new(3)).await;
    three(&kubelet).await;
    worker.mind.devices.send_replace(devices(0));
    kubelet
        .await_devices(RESOURCE, DEADLINE, |list| {
            list.iter().all(|device| device.health == "Unhealthy")
        })
        .await
        .unwrap();
}
