//! The service without sockets and without a server: what it answers, and what it writes in which order.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode, header};
use serde_json::{Value, json};
use tessera_engine::{Defaults, Engine, admission};
use tessera_http::{Health, Peer};
use tessera_kube::books::{self, Books, Input, SteadyClock};
use tessera_kube::events::{About, Note, Recorder};
use tessera_kube::lease::Sighting;
use tessera_kube::objects::{Kind, Trimmed};
use tessera_kube::reach::Reach;
use tessera_kube::script::{self, Log, Reply, Sent};
use tessera_kube::watch::Change;
use tessera_types::NodeName;
use tessera_wire::config::DeviceConfig;
use tessera_wire::keys;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::app::{App, Cluster, Parts, Settings};
use crate::args::{FilterMode, WriteAt};
use crate::routes::{Guard, Routes, router};

struct Fixture {
    app: Arc<App>,
    router: Router,
    inputs: mpsc::Sender<Input>,
    log: Log,
    notes: mpsc::Receiver<Note>,
    books: Books,
    _stop: tokio_util::sync::DropGuard,
    reach: watch::Sender<Reach>,
}

#[derive(Clone, Copy)]
struct Options {
    mode: FilterMode,
    write_at: WriteAt,
    guard: Guard,
    synced: bool,
    /// Several replicas run: the kube-scheduler on the host `here` is ours.
    elected: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            mode: FilterMode::One,
            write_at: WriteAt::Bind,
            guard: Guard::Near,
            synced: true,
            elected: false,
        }
    }
}

impl Fixture {
    async fn new(answer: impl Fn(&Sent) -> Reply + Send + Sync + 'static) -> Self {
        Self::with(Options::default(), answer).await
    }

    async fn with(options: Options, answer: impl Fn(&Sent) -> Reply + Send + Sync + 'static) -> Self {
        let mut config = DeviceConfig::default();
        config.nvidia.get_or_insert_default();
        config.cambricon.get_or_insert_default();
        config.hygon.get_or_insert_default();
        let vendors = tessera_vendors::from_config(&config);
        let stop = CancellationToken::new();
        let (books, inputs, keeper) = books::open(Arc::clone(&vendors), SteadyClock::default(), stop.clone());
        tokio::spawn(keeper);
        let (client, log) = script::client(answer);
        let (recorder, notes) = Recorder::channel(64);
        let (reach_sender, reach) = watch::channel(Reach {
            since: Instant::now(),
            state: Ok(()),
        });
        let app = App::new(
            Parts {
                engine: Engine::new(vendors, Defaults::default()),
                books: books.clone(),
                cluster: Cluster::new(client.clone(), Duration::from_secs(300)),
                recorder,
                health: Health::default(),
                reach,
                sighting: options
                    .elected
                    .then(|| Sighting::new(client, "ns", "kube-scheduler", "here")),
            },
            Settings {
                filter_mode: options.mode,
                write_at: options.write_at,
                assume_time: Duration::from_secs(90),
                sync_wait: Duration::ZERO,
                lock_retry: Duration::ZERO,
                admit: admission::Settings::default(),
            },
        );
        let fixture = Self {
            router: router(&app, Routes::All(options.guard)),
            app,
            inputs,
            log,
            notes,
            books,
            _stop: stop.drop_guard(),
            reach: reach_sender,
        };
        if options.synced {
            fixture.send(Input::Pod(Change::Restarted)).await;
            fixture.send(Input::Pod(Change::Complete)).await;
            fixture.send(Input::Node(Change::Complete)).await;
            fixture.send(Input::Quota(Change::Complete)).await;
            fixture.books.wait_synced().await.unwrap();
        }
        fixture
    }

    async fn send(&self, input: Input) {
        self.inputs.send(input).await.unwrap();
    }

    /// Returns when the node is in the view.
    async fn node(&self, name: &str, cards: u32, memory: u32) {
        let register: Vec<Value> = (0..cards)
            .map(|index| {
                json!({"id": format!("GPU-{name}-{index}"), "index": index, "count": 10, "devmem": memory, "devcore": 100,
                       "type": "NVIDIA A100", "mode": "hami-core", "health": true})
            })
            .collect();
        let node = json!({"metadata": {"name": name, "annotations": {
            "tessera.dev/agent": "test", "hami.io/node-nvidia-register": Value::from(register).to_string()}}});
        self.send(Input::Node(Change::Applied(trimmed(&node)))).await;
        while self.books.view().snapshot.node(name).is_none() {
            tokio::task::yield_now().await;
        }
    }

    async fn post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        self.call("POST", path, body.to_string(), "application/json").await
    }

    async fn call(&self, method: &str, path: &str, body: String, kind: &str) -> (StatusCode, Value) {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, kind);
        let response = self
            .router
            .clone()
            .oneshot(request.body(Body::from(body)).unwrap())
            .await
            .unwrap();
        let status = response.status();
        let bytes = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    async fn filter(&self, pod: &Value, nodes: &[&str]) -> Value {
        self.post("/filter", &json!({"Pod": pod, "Nodes": null, "NodeNames": nodes}))
            .await
            .1
    }

    async fn bind(&self, pod: &str, node: &str) -> String {
        let body = json!({"PodName": pod, "PodNamespace": "ns", "PodUID": format!("uid-{pod}"), "Node": node});
        self.post("/bind", &body).await.1["Error"].as_str().unwrap().to_owned()
    }
}

fn trimmed<V: Kind>(object: &Value) -> Box<Trimmed<V>> {
    Box::new(serde_json::from_value(object.clone()).unwrap())
}

fn pod(name: &str, memory: u32) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "ns", "uid": format!("uid-{name}")},
        "spec": {"containers": [{"name": "c", "resources": {"limits":
            {"nvidia.com/gpu": "1", "nvidia.com/gpumem": memory.to_string()}}}]},
    })
}

fn ok(_: &Sent) -> Reply {
    Reply::Object(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}}))
}

/// Methods and paths of what was written.
fn lines(log: &Log) -> Vec<String> {
    log.writes()
        .iter()
        .map(|sent| format!("{} {}", sent.method, sent.path))
        .collect()
}

#[tokio::test]
async fn where_a_binding_carries_no_labels_a_pod_costs_one_patch_and_one_binding() {
    let fixture = Fixture::new(ok).await;
    fixture.node("n1", 1, 8000).await;
    let answer = fixture.filter(&pod("a", 3000), &["n1"]).await;
    assert_eq!(answer["NodeNames"], json!(["n1"]), "{answer}");
    assert_eq!(answer["FailedNodes"], Value::Null);
    assert!(fixture.log.sent().is_empty(), "filter writes nothing");
    assert_eq!(fixture.bind("a", "n1").await, "");
    assert_eq!(
        lines(&fixture.log),
        [
            "PATCH /api/v1/namespaces/ns/pods/a",
            "POST /api/v1/namespaces/ns/pods/a/binding"
        ]
    );
    let [patch, binding] = fixture.log.writes().try_into().unwrap();
    let metadata = &patch.body["metadata"];
    assert_eq!(metadata["uid"], "uid-a", "only this very pod may be touched");
    assert_eq!(metadata["labels"]["hami.io/vgpu-node"], "n1");
    let annotations = &metadata["annotations"];
    assert_eq!(
        annotations["hami.io/vgpu-devices-allocated"],
        "GPU-n1-0,NVIDIA,3000,0:;"
    );
    assert_eq!(
        annotations["hami.io/vgpu-devices-to-allocate"],
        "GPU-n1-0,NVIDIA,3000,0:;"
    );
    assert_eq!(annotations["hami.io/vgpu-node"], "n1");
    assert_eq!(annotations["hami.io/bind-phase"], "allocating");
    assert!(annotations["hami.io/bind-time"].is_string() && annotations["hami.io/vgpu-time"].is_string());
    assert_eq!(annotations["tessera.dev/scheduler"], crate::VERSION);
    assert_eq!(binding.body["metadata"]["uid"], "uid-a");
    assert_eq!(binding.body["target"]["name"], "n1");
}

/// An API server of that minor version.
fn of_version(minor: &'static str) -> impl Fn(&Sent) -> Reply + Send + Sync + 'static {
    move |sent| match sent.path.as_str() {
        "/version" => Reply::Object(json!({"major": "1", "minor": minor, "gitVersion": "", "gitCommit": "",
            "gitTreeState": "", "buildDate": "", "goVersion": "", "compiler": "", "platform": ""})),
        _ => ok(sent),
    }
}

#[tokio::test]
async fn a_pod_costs_one_write_where_a_binding_carries_labels() {
    for (minor, writes) in [("36", 1), ("35+", 1), ("34", 2)] {
        let fixture = Fixture::new(of_version(minor)).await;
        fixture.node("n1", 1, 8000).await;
        fixture.filter(&pod("a", 3000), &["n1"]).await;
        assert_eq!(fixture.bind("a", "n1").await, "");
        let lines = lines(&fixture.log);
        assert_eq!(lines.len(), writes, "1.{minor}: {lines:?}");
        assert_eq!(lines.last().unwrap(), "POST /api/v1/namespaces/ns/pods/a/binding");
        let first = &fixture.log.writes()[0].body["metadata"];
        assert_eq!(first["uid"], "uid-a", "only this very pod may be touched");
        assert_eq!(first["labels"]["hami.io/vgpu-node"], "n1");
        let annotations = &first["annotations"];
        let devices = "GPU-n1-0,NVIDIA,3000,0:;";
        assert_eq!(annotations["hami.io/vgpu-devices-allocated"], devices);
        assert_eq!(annotations["hami.io/bind-phase"], "allocating");
        assert_eq!(annotations["hami.io/vgpu-node"], "n1");
    }
}

#[tokio::test]
async fn what_an_earlier_attempt_left_is_taken_off_by_a_write_of_its_own() {
    let fixture = Fixture::new(of_version("36")).await;
    fixture.node("n1", 1, 8000).await;
    let mut again = pod("a", 3000);
    again["metadata"]["annotations"] = json!({"hami.io/cambricon-mlu-devices-allocated": "old"});
    fixture.filter(&again, &["n1"]).await;
    assert_eq!(fixture.bind("a", "n1").await, "");
    let [patch, binding] = fixture.log.writes().try_into().unwrap();
    let annotations = &patch.body["metadata"]["annotations"];
    assert!(annotations.as_object().unwrap()["hami.io/cambricon-mlu-devices-allocated"].is_null());
    assert!(annotations["hami.io/vgpu-devices-allocated"].is_string());
    assert!(binding.path.ends_with("/pods/a/binding"));
}

#[tokio::test]
async fn our_agent_on_a_node_does_not_stand_in_for_another_makers_plugin() {
    let fixture = Fixture::new(|sent| match (sent.method.as_str(), sent.path.as_str()) {
        ("GET", "/api/v1/nodes/n1") => {
            Reply::Object(json!({"metadata": {"name": "n1", "resourceVersion": "7", "annotations": {}}}))
        }
        (_, "/api/v1/nodes/n1") => {
            Reply::Object(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}}))
        }
        _ => ok(sent),
    })
    .await;
    let card =
        json!([{"id": "GPU-a", "count": 10, "devmem": 8000, "devcore": 100, "type": "NVIDIA A100", "health": true}]);
    let pools = json!({"cambricon.com/mlu.smlu.vcore": "100", "cambricon.com/mlu.smlu.vmemory": "90"});
    let node = json!({
        "metadata": {"name": "n1", "annotations": {
            "tessera.dev/agent": "test", "hami.io/node-nvidia-register": card.to_string()}},
        "status": {"capacity": pools, "allocatable": pools},
    });
    fixture.send(Input::Node(Change::Applied(trimmed(&node)))).await;
    while fixture.books.view().snapshot.node("n1").is_none() {
        tokio::task::yield_now().await;
    }
    fixture.filter(&pod("a", 3000), &["n1"]).await;
    assert_eq!(fixture.bind("a", "n1").await, "");
    assert!(
        !lines(&fixture.log).contains(&"PATCH /api/v1/nodes/n1".to_owned()),
        "our agent needs no lock"
    );

    let mut mlu = pod("m", 0);
    mlu["spec"]["containers"][0]["resources"]["limits"] = json!({"cambricon.com/vmlu": "1", "cambricon.com/mlu.smlu.vmemory": "20", "cambricon.com/mlu.smlu.vcore": "10"});
    let answer = fixture.filter(&mlu, &["n1"]).await;
    assert_eq!(answer["NodeNames"], json!(["n1"]), "{answer}");
    assert_eq!(fixture.bind("m", "n1").await, "");
    let writes = fixture.log.writes();
    let [lock, patch, binding] = &writes[writes.len() - 3..] else {
        panic!("{:?}", lines(&fixture.log));
    };
    assert_eq!(
        lock.path, "/api/v1/nodes/n1",
        "the lock comes before what the plugin reads"
    );
    assert_eq!(lock.body["metadata"]["resourceVersion"], "7");
    let value = lock.body["metadata"]["annotations"]["cambricon.com/dsmlu.lock"]
        .as_str()
        .unwrap();
    assert!(!value.contains(','), "a bare moment: {value}");
    let annotations = &patch.body["metadata"]["annotations"];
    assert_eq!(annotations["CAMBRICON_DSMLU_PROFILE"], "0_10_20");
    assert!(binding.path.ends_with("/pods/m/binding"));
}

/// Two makers' plugins share the node's lock, and the first gives it back before the second has been asked.
#[tokio::test]
async fn while_a_pod_of_two_makers_is_half_served_its_node_is_locked_for_nobody_else() {
    #[derive(Default)]
    struct Server {
        lock: Option<String>,
        mixed: Value,
    }
    let server = Arc::new(Mutex::new(Server::default()));
    let answers = Arc::clone(&server);
    let fixture = Fixture::new(move |sent| {
        let mut server = answers.lock().unwrap();
        match (sent.method.as_str(), sent.path.as_str()) {
            ("GET", "/api/v1/nodes/n1") => {
                let annotations = server
                    .lock
                    .as_ref()
                    .map_or(json!({}), |lock| json!({keys::NODE_LOCK: lock}));
                Reply::Object(json!({"metadata": {"name": "n1", "resourceVersion": "7", "annotations": annotations}}))
            }
            (_, "/api/v1/nodes/n1") => {
                let lock = &sent.body["metadata"]["annotations"][keys::NODE_LOCK];
                server.lock = lock.as_str().map(str::to_owned);
                Reply::Object(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}}))
            }
            ("GET", "/api/v1/namespaces/ns/pods/mixed") => Reply::Object(server.mixed.clone()),
            _ => ok(sent),
        }
    })
    .await;
    let reported = format!("Reported {}", jiff::Zoned::now().strftime("%Y.%m.%d %H:%M:%S"));
    let node = json!({"metadata": {"name": "n1", "annotations": {
        "hami.io/node-nvidia-register": json!([{"id": "GPU-a", "count": 10, "devmem": 8000, "devcore": 100,
            "type": "NVIDIA A100", "health": true}]).to_string(),
        "hami.io/node-handshake": reported,
        "hami.io/node-dcu-register": "DCU-a,4,8000,100,DCU-K100,0,true,0,hami:",
        "hami.io/node-handshake-dcu": reported,
    }}});
    fixture.send(Input::Node(Change::Applied(trimmed(&node)))).await;
    while fixture.books.view().snapshot.node("n1").is_none() {
        tokio::task::yield_now().await;
    }
    let limits = json!({"nvidia.com/gpu": "1", "nvidia.com/gpumem": "1000", "hygon.com/dcunum": "1", "hygon.com/dcumem": "1000",
        "hygon.com/dcucores": "10"});
    let mut mixed = pod("mixed", 0);
    mixed["spec"]["containers"][0]["resources"]["limits"] = limits;
    let answer = fixture.filter(&mixed, &["n1"]).await;
    assert_eq!(answer["NodeNames"], json!(["n1"]), "{answer}");
    assert_eq!(fixture.bind("mixed", "n1").await, "");

    // The plugin of NVIDIA has answered and given the lock back; Hygon's has not been asked.
    let bound = |bound_at: i64, status: &Value| {
        let mut pod = mixed.clone();
        pod["metadata"]["annotations"] = json!({keys::BIND_TIME: bound_at.to_string()});
        pod["spec"]["nodeName"] = json!("n1");
        pod["status"] = status.clone();
        pod
    };
    let set = |pod: Value| *server.lock().unwrap() = Server { lock: None, mixed: pod };
    let now = jiff::Timestamp::now().as_second();
    let pending = json!({"phase": "Pending"});
    let next = pod("next", 1000);
    let bind_next = async || {
        let answer = fixture.filter(&next, &["n1"]).await;
        assert_eq!(answer["NodeNames"], json!(["n1"]), "{answer}");
        fixture.bind("next", "n1").await
    };
    set(bound(now, &pending));
    let before = lines(&fixture.log).len();
    assert_eq!(
        bind_next().await,
        "locking node n1: pod ns/mixed has cards of several makers, and not all of their plugins have answered yet"
    );
    assert_eq!(lines(&fixture.log).len(), before, "nothing is written");

    // As soon as the kubelet has admitted the pod, and also if it never does.
    for (bound_at, status) in [
        (now, json!({"phase": "Pending", "startTime": "2026-01-01T00:00:00Z"})),
        (now, json!({"phase": "Failed"})),
        (now - 301, pending),
    ] {
        set(bound(bound_at, &status));
        assert_eq!(bind_next().await, "", "{status}");
        assert!(server.lock().unwrap().lock.as_ref().unwrap().ends_with(",ns,next"));
    }

    // A second one of both makers waits until the first is no longer pending: without a lock a plugin may take the oldest.
    let mut second = pod("second", 0);
    second["spec"]["containers"][0]["resources"]["limits"] =
        mixed["spec"]["containers"][0]["resources"]["limits"].clone();
    for (bound_at, phase, outcome) in [
        (
            now - 301,
            "Pending",
            "locking node n1: pod ns/mixed has not started yet, and a pod with cards of several makers is bound only \
             while nobody else waits for their plugins",
        ),
        (now, "Running", ""),
    ] {
        set(bound(
            bound_at,
            &json!({"phase": phase, "startTime": "2026-01-01T00:00:00Z"}),
        ));
        let answer = fixture.filter(&second, &["n1"]).await;
        assert_eq!(answer["NodeNames"], json!(["n1"]), "{answer}");
        assert_eq!(fixture.bind("second", "n1").await, outcome);
    }
}

#[tokio::test]
async fn written_at_filter_the_annotations_come_first_and_the_phase_at_bind() {
    let fixture = Fixture::with(
        Options {
            write_at: WriteAt::Filter,
            ..Options::default()
        },
        ok,
    )
    .await;
    fixture.node("n1", 1, 8000).await;
    fixture.filter(&pod("a", 3000), &["n1"]).await;
    let patch = &fixture.log.writes()[0].body["metadata"]["annotations"];
    assert_eq!(patch["hami.io/vgpu-node"], "n1");
    assert_eq!(patch["hami.io/bind-phase"], Value::Null);
    assert_eq!(fixture.bind("a", "n1").await, "");
    let patch = &fixture.log.writes()[1].body["metadata"]["annotations"];
    assert_eq!(patch["hami.io/bind-phase"], "allocating");
    assert_eq!(patch["hami.io/vgpu-node"], Value::Null);
    assert_eq!(lines(&fixture.log).len(), 3);
}

#[tokio::test]
async fn a_node_name_that_is_no_label_is_left_out_of_the_labels() {
    let fixture = Fixture::new(ok).await;
    let long = format!("{}.example.com", "n".repeat(60));
    fixture.node(&long, 1, 8000).await;
    fixture.filter(&pod("a", 3000), &[&long]).await;
    assert_eq!(fixture.bind("a", &long).await, "");
    let metadata = &fixture.log.writes()[0].body["metadata"];
    assert_eq!(metadata["annotations"]["hami.io/vgpu-node"], long);
    assert_eq!(metadata["labels"], Value::Null);
}

#[tokio::test]
async fn what_an_earlier_attempt_wrote_is_removed() {
    let fixture = Fixture::new(ok).await;
    fixture.node("n1", 1, 8000).await;
    let mut pod = pod("a", 3000);
    pod["metadata"]["annotations"] = json!({"hami.io/vgpu-mig-allocations": "[]", "team": "x"});
    fixture.filter(&pod, &["n1"]).await;
    assert_eq!(fixture.bind("a", "n1").await, "");
    let annotations = fixture.log.writes()[0].body["metadata"]["annotations"].clone();
    assert_eq!(
        annotations.as_object().unwrap().get("hami.io/vgpu-mig-allocations"),
        Some(&Value::Null)
    );
    assert_eq!(annotations.as_object().unwrap().get("team"), None);
}

#[tokio::test]
async fn shares_promised_to_one_pod_are_not_promised_to_the_next() {
    let mut fixture = Fixture::new(ok).await;
    fixture.node("n1", 1, 8000).await;
    for name in ["a", "b"] {
        assert_eq!(
            fixture.filter(&pod(name, 4000), &["n1"]).await["NodeNames"],
            json!(["n1"])
        );
    }
    let refused = fixture.filter(&pod("c", 3000), &["n1"]).await;
    assert_eq!(refused["NodeNames"], Value::Null);
    assert_eq!(refused["FailedNodes"], json!({"n1": "1/1 CardInsufficientMemory"}));
    assert_eq!(refused["Error"], "");
    let note = fixture.notes.recv().await.unwrap();
    assert_eq!((note.reason, note.warning), ("FilteringFailed", true));
    assert!(note.message.contains("3000 MiB wanted"), "{}", note.message);
    // The same pod asked again keeps its own share.
    assert_eq!(
        fixture.filter(&pod("a", 4000), &["n1"]).await["NodeNames"],
        json!(["n1"])
    );
}

#[tokio::test]
async fn concurrent_filters_never_overbook() {
    let fixture = Fixture::new(ok).await;
    fixture.node("n1", 2, 8000).await;
    let pods: Vec<Value> = (0..12).map(|n| pod(&format!("p{n}"), 3000)).collect();
    let answers = futures::future::join_all(pods.iter().map(|pod| fixture.filter(pod, &["n1"]))).await;
    let placed = answers
        .iter()
        .filter(|answer| answer["NodeNames"] == json!(["n1"]))
        .count();
    assert_eq!(placed, 4, "{answers:?}");
    assert!(answers.iter().all(|answer| answer["Error"] == ""));
}

#[tokio::test]
async fn a_refused_write_gives_the_share_back() {
    let fixture = Fixture::new(|sent| {
        if sent.method == "PATCH" {
            Reply::Refuse(403, "Forbidden")
        } else {
            ok(sent)
        }
    })
    .await;
    fixture.node("n1", 1, 8000).await;
    fixture.filter(&pod("a", 8000), &["n1"]).await;
    let error = fixture.bind("a", "n1").await;
    assert!(error.contains("annotating pod ns/a"), "{error}");
    assert_eq!(
        fixture.filter(&pod("b", 8000), &["n1"]).await["NodeNames"],
        json!(["n1"]),
        "the share is free again"
    );
}

#[tokio::test]
async fn a_binding_whose_answer_is_lost_is_looked_up() {
    let fixture = Fixture::new(|sent| match sent.method.as_str() {
        "POST" => Reply::Lost,
        "GET" => {
            let mut bound = pod("a", 8000);
            bound["spec"]["nodeName"] = json!("n1");
            Reply::Object(bound)
        }
        _ => ok(sent),
    })
    .await;
    fixture.node("n1", 1, 8000).await;
    fixture.filter(&pod("a", 8000), &["n1"]).await;
    assert_eq!(fixture.bind("a", "n1").await, "", "it was bound all the same");
}

#[tokio::test]
async fn without_any_answer_the_share_stays_promised() {
    let fixture = Fixture::new(|sent| if sent.method == "PATCH" { ok(sent) } else { Reply::Lost }).await;
    fixture.node("n1", 1, 8000).await;
    fixture.filter(&pod("a", 8000), &["n1"]).await;
    let error = fixture.bind("a", "n1").await;
    assert!(error.contains("did not answer"), "{error}");
    let other = fixture.filter(&pod("b", 8000), &["n1"]).await;
    assert_eq!(other["NodeNames"], Value::Null, "the pod may be bound: {other}");
}

#[tokio::test]
async fn bind_without_filter_chooses_by_itself() {
    let fixture = Fixture::new(|sent| {
        if sent.method == "GET" {
            Reply::Object(pod("a", 3000))
        } else {
            ok(sent)
        }
    })
    .await;
    fixture.node("n1", 1, 8000).await;
    assert_eq!(fixture.bind("a", "n1").await, "");
    let annotations = &fixture.log.writes()[0].body["metadata"]["annotations"];
    assert_eq!(
        annotations["hami.io/vgpu-devices-allocated"],
        "GPU-n1-0,NVIDIA,3000,0:;"
    );
}

#[tokio::test]
async fn bind_refuses_a_node_that_cannot_take_the_pod() {
    let fixture = Fixture::new(|sent| {
        if sent.method == "GET" {
            Reply::Object(pod("a", 9000))
        } else {
            ok(sent)
        }
    })
    .await;
    fixture.node("n1", 1, 8000).await;
    let error = fixture.bind("a", "n1").await;
    assert!(error.contains("n1") && error.contains("9000 MiB"), "{error}");
    assert!(fixture.log.writes().is_empty());
}

#[tokio::test]
async fn a_pod_bound_already_is_not_written_again() {
    let fixture = Fixture::new(|_| {
        let mut bound = pod("a", 3000);
        bound["spec"]["nodeName"] = json!("n1");
        Reply::Object(bound)
    })
    .await;
    fixture.node("n1", 1, 8000).await;
    assert_eq!(fixture.bind("a", "n1").await, "");
    assert!(fixture.bind("a", "n2").await.contains("already bound to node n1"));
    assert!(fixture.log.writes().is_empty());
}

#[tokio::test]
async fn a_pod_replaced_by_another_of_its_name_is_not_bound() {
    let fixture = Fixture::new(|_| {
        let mut other = pod("a", 3000);
        other["metadata"]["uid"] = json!("another");
        Reply::Object(other)
    })
    .await;
    fixture.node("n1", 1, 8000).await;
    assert!(fixture.bind("a", "n1").await.contains("was replaced"));
    assert!(fixture.log.writes().is_empty());
}

#[tokio::test]
async fn in_mode_all_filter_promises_nothing_and_bind_chooses() {
    let options = Options {
        mode: FilterMode::All,
        ..Options::default()
    };
    let fixture = Fixture::with(options, |sent| {
        if sent.method == "GET" {
            Reply::Object(pod("a", 3000))
        } else {
            ok(sent)
        }
    })
    .await;
    fixture.node("n1", 1, 8000).await;
    fixture.node("n2", 2, 8000).await;
    fixture.node("n3", 1, 1000).await;
    let answer = fixture.filter(&pod("a", 3000), &["n1", "n2", "n3"]).await;
    assert_eq!(answer["NodeNames"], json!(["n1", "n2"]));
    assert_eq!(answer["FailedNodes"], json!({"n3": "1/1 CardInsufficientMemory"}));
    let scores = fixture
        .post(
            "/prioritize",
            &json!({"Pod": pod("a", 3000), "NodeNames": ["n1", "n2"]}),
        )
        .await
        .1;
    assert_eq!(
        scores,
        json!([{"Host": "n1", "Score": 10}, {"Host": "n2", "Score": 10}])
    );
    assert_eq!(fixture.bind("a", "n2").await, "");
    assert_eq!(lines(&fixture.log).len(), 2);
}

#[tokio::test]
async fn a_pod_without_devices_goes_everywhere() {
    let fixture = Fixture::new(ok).await;
    let plain =
        json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": {"containers": [{"name": "c"}]}});
    assert_eq!(
        fixture.filter(&plain, &["x", "y"]).await["NodeNames"],
        json!(["x", "y"])
    );
}

#[tokio::test]
async fn whole_nodes_are_a_simulation_that_books_nothing() {
    let fixture = Fixture::new(ok).await;
    let register =
        json!([{"id": "GPU-s", "count": 10, "devmem": 4000, "devcore": 100, "type": "NVIDIA A", "health": true}]);
    let node =
        json!({"metadata": {"name": "s", "annotations": {"hami.io/node-nvidia-register": register.to_string()}}});
    for _ in 0..3 {
        let body = json!({"Pod": pod("a", 3000), "Nodes": {"items": [node]}, "NodeNames": null});
        let answer = fixture.post("/filter", &body).await.1;
        assert_eq!(answer["Nodes"]["items"][0]["metadata"]["name"], "s", "{answer}");
    }
    assert_eq!(fixture.books.view().snapshot.booking_count(), 0);
}

#[tokio::test]
async fn a_watch_event_frees_and_wakes() {
    let fixture = Fixture::new(ok).await;
    fixture.node("n1", 1, 8000).await;
    let mut holder = pod("holder", 8000);
    holder["spec"]["nodeName"] = json!("n1");
    holder["metadata"]["annotations"] =
        json!({"hami.io/vgpu-node": "n1", "hami.io/vgpu-devices-allocated": "GPU-n1-0,NVIDIA,8000,0:;"});
    fixture.send(Input::Pod(Change::Applied(trimmed(&holder)))).await;
    while fixture.books.view().snapshot.booking_count() == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(fixture.filter(&pod("a", 3000), &["n1"]).await["NodeNames"], Value::Null);
    let stop = CancellationToken::new();
    let waking = tokio::spawn(Arc::clone(&fixture.app).wake_waiting(stop.clone()));
    fixture.send(Input::Pod(Change::Gone(trimmed(&holder)))).await;
    let woken = tokio::time::timeout(Duration::from_secs(5), async {
        while fixture.log.writes().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    woken.await.expect("the waiting pod is touched");
    let touch = &fixture.log.writes()[0];
    assert_eq!(touch.path, "/api/v1/namespaces/ns/pods/a");
    assert!(touch.body["metadata"]["annotations"]["tessera.dev/wake"].is_string());
    stop.cancel();
    waking.await.unwrap();
}

#[tokio::test]
async fn a_register_that_cannot_be_read_is_told_on_its_node_once() {
    let mut fixture = Fixture::new(ok).await;
    let stop = CancellationToken::new();
    let telling = tokio::spawn(Arc::clone(&fixture.app).tell_troubles(stop.clone()));
    let node = |register: &str, beat: u32| {
        json!({"metadata": {"name": "n1", "annotations": {
            "hami.io/node-dcu-register": register, "example.com/beat": beat.to_string()}}})
    };
    for beat in 0..3 {
        fixture
            .send(Input::Node(Change::Applied(trimmed(&node("nonsense", beat)))))
            .await;
    }
    let first = fixture.notes.recv().await.unwrap();
    assert_eq!(first.about, About::Node(NodeName::new("n1").unwrap()));
    assert_eq!((first.warning, first.reason), (true, "CardsUnusable"));
    assert!(
        first
            .message
            .starts_with("DCU: node annotation `hami.io/node-dcu-register` cannot be read"),
        "{}",
        first.message
    );
    // Mended, and broken in another way.
    fixture
        .send(Input::Node(Change::Applied(trimmed(&node(
            "DCU-a,4,8000,100,DCU-K100,0,true,0,hami:",
            3,
        )))))
        .await;
    fixture
        .send(Input::Node(Change::Applied(trimmed(&node("[{:", 4)))))
        .await;
    let second = fixture.notes.recv().await.unwrap();
    assert_ne!(second.message, first.message, "the repetitions are not told");
    stop.cancel();
    telling.await.unwrap();
}

#[tokio::test]
async fn transport_is_what_compatible_callers_expect() {
    let fixture = Fixture::with(
        Options {
            synced: false,
            ..Options::default()
        },
        ok,
    )
    .await;
    let keys = |value: &Value| value.as_object().map_or(0, serde_json::Map::len);
    for (body, error) in [
        ("{not-json", ""),
        ("", "EOF"),
        (r#"{"NodeNames":["n1"]}"#, "extender args missing pod"),
        (
            r#"{"pod":{"metadata":{"name":"p"}},"nodenames":["n1"]}"#,
            "the scheduler has not yet read",
        ),
    ] {
        let (status, answer) = fixture
            .call("POST", "/filter", body.to_owned(), "application/json")
            .await;
        assert_eq!((status, keys(&answer)), (StatusCode::OK, 5), "{body}");
        let text = answer["Error"].as_str().unwrap();
        assert!(!text.is_empty() && text.starts_with(error), "{body}: {text}");
    }
    let (status, answer) = fixture
        .call("POST", "/bind", "{not-json".to_owned(), "application/json")
        .await;
    assert_eq!((status, keys(&answer)), (StatusCode::OK, 1));
    for (method, path, status) in [
        ("GET", "/filter", StatusCode::METHOD_NOT_ALLOWED),
        ("POST", "/prioritize", StatusCode::NOT_FOUND),
        ("POST", "/nothing", StatusCode::NOT_FOUND),
        ("POST", "/filter/", StatusCode::TEMPORARY_REDIRECT),
        ("GET", "/healthz", StatusCode::OK),
    ] {
        assert_eq!(
            fixture.call(method, path, "{}".to_owned(), "application/json").await.0,
            status,
            "{method} {path}"
        );
    }
}

#[tokio::test]
async fn reviews_are_answered_in_their_own_version() {
    let fixture = Fixture::new(ok).await;
    let review = |version: &str, pod: Value| {
        json!({"apiVersion": version, "kind": "AdmissionReview", "request": {"uid": "abc", "operation": "CREATE",
            "kind": {"group": "", "version": "v1", "kind": "Pod"}, "namespace": "default", "object": pod}})
    };
    let asking = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "resources": {"limits": {"nvidia.com/gpu": "1"}}}]}});
    for version in ["admission.k8s.io/v1", "admission.k8s.io/v1beta1"] {
        let (status, answer) = fixture.post("/webhook", &review(version, asking.clone())).await;
        assert_eq!((status, &answer["apiVersion"]), (StatusCode::OK, &json!(version)));
        assert_eq!(answer["response"]["allowed"], true, "{answer}");
        assert_eq!(answer["response"]["patchType"], "JSONPatch");
    }
    let body = review("admission.k8s.io/v1", asking).to_string();
    let (status, answer) = fixture.call("POST", "/webhook", body, "text/plain").await;
    assert_eq!(
        (status, &answer["response"]["status"]["code"]),
        (StatusCode::OK, &json!(400))
    );
    let (_, answer) = fixture
        .post(
            "/webhook",
            &review("admission.k8s.io/v1", json!({"spec": {"containers": "x"}})),
        )
        .await;
    assert_eq!(
        (&answer["response"]["uid"], &answer["response"]["status"]["code"]),
        (&json!("abc"), &json!(400))
    );
}

#[tokio::test]
async fn an_allocation_is_changed_by_nobody_else() {
    let fixture = Fixture::new(ok).await;
    let update = |user: &str, groups: Value| {
        let pod = |node: &str| json!({"metadata": {"annotations": {"hami.io/vgpu-node": node}}});
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {"uid": "u", "operation": "UPDATE",
            "kind": {"group": "", "version": "v1", "kind": "Pod"}, "namespace": "default",
            "userInfo": {"username": user, "groups": groups}, "oldObject": pod("a"), "object": pod("b")}})
    };
    let (_, answer) = fixture
        .post("/validate", &update("alice", json!(["system:authenticated"])))
        .await;
    assert_eq!(answer["response"]["allowed"], false);
    assert!(
        answer["response"]["status"]["message"]
            .as_str()
            .unwrap()
            .contains("hami.io/vgpu-node")
    );
    let (_, answer) = fixture
        .post("/validate", &update("system:node:n1", json!(["system:nodes"])))
        .await;
    assert_eq!(answer["response"]["allowed"], true);
}

#[tokio::test]
async fn strangers_may_not_use_the_extender_but_the_webhook() {
    let fixture = Fixture::new(ok).await;
    let ask = |path: &'static str, peer: Peer| {
        let router = fixture.router.clone();
        async move {
            let request = Request::builder()
                .method("POST")
                .uri(path)
                .extension(peer)
                .body(Body::from("{}"))
                .unwrap();
            router.oneshot(request).await.unwrap().status()
        }
    };
    let far = Peer {
        address: "10.0.0.7:5000".parse().unwrap(),
        has_certificate: false,
    };
    for path in ["/filter", "/bind", "/preempt"] {
        assert_eq!(ask(path, far).await, StatusCode::FORBIDDEN, "{path}");
        assert_ne!(
            ask(
                path,
                Peer {
                    has_certificate: true,
                    ..far
                }
            )
            .await,
            StatusCode::FORBIDDEN,
            "{path}"
        );
        assert_ne!(
            ask(
                path,
                Peer {
                    address: "127.0.0.1:5000".parse().unwrap(),
                    ..far
                }
            )
            .await,
            StatusCode::FORBIDDEN,
            "{path}"
        );
    }
    assert_eq!(ask("/webhook", far).await, StatusCode::OK);
    let open = Fixture::with(
        Options {
            guard: Guard::Everybody,
            ..Options::default()
        },
        ok,
    )
    .await;
    let request = Request::builder()
        .method("POST")
        .uri("/filter")
        .extension(far)
        .body(Body::from("{}"))
        .unwrap();
    assert_eq!(
        open.router.clone().oneshot(request).await.unwrap().status(),
        StatusCode::OK
    );
}

#[tokio::test]
async fn preemption_names_a_victim_or_leaves_the_node_out() {
    let fixture = Fixture::new(ok).await;
    fixture.node("n1", 1, 8000).await;
    let mut holder = pod("holder", 6000);
    holder["spec"]["nodeName"] = json!("n1");
    holder["spec"]["priority"] = json!(1);
    holder["metadata"]["annotations"] =
        json!({"hami.io/vgpu-node": "n1", "hami.io/vgpu-devices-allocated": "GPU-n1-0,NVIDIA,6000,0:;"});
    fixture.send(Input::Pod(Change::Applied(trimmed(&holder)))).await;
    while fixture.books.view().snapshot.booking_count() == 0 {
        tokio::task::yield_now().await;
    }
    let ask = |priority: i32| {
        let mut pod = pod("vip", 4000);
        pod["spec"]["priority"] = json!(priority);
        json!({"Pod": pod, "NodeNameToMetaVictims": {"n1": {"Pods": [], "NumPDBViolations": 0}}})
    };
    let (_, answer) = fixture.post("/preempt", &ask(10)).await;
    assert_eq!(
        answer,
        json!({"NodeNameToMetaVictims": {"n1": {"Pods": [{"UID": "uid-holder"}], "NumPDBViolations": 0}}})
    );
    let (_, answer) = fixture.post("/preempt", &ask(0)).await;
    assert_eq!(answer, json!({"NodeNameToMetaVictims": {}}));
}

#[tokio::test(start_paused = true)]
async fn with_the_api_server_lost_for_a_minute_filter_answers_and_bind_says_why() {
    let fixture = Fixture::new(ok).await;
    fixture.node("n1", 1, 8000).await;
    fixture.reach.send_replace(Reach {
        since: Instant::now(),
        state: Err("no answer".to_owned()),
    });
    tokio::time::advance(Duration::from_secs(61)).await;
    assert_eq!(
        fixture.filter(&pod("a", 3000), &["n1"]).await["NodeNames"],
        json!(["n1"])
    );
    let error = fixture.bind("a", "n1").await;
    assert!(error.contains("API server has not answered for 61 s"), "{error}");
    assert!(fixture.log.sent().is_empty());
}

#[tokio::test]
async fn the_metrics_page_has_the_compatible_names() {
    let fixture = Fixture::new(ok).await;
    fixture.node("n1", 1, 8000).await;
    fixture.filter(&pod("a", 2000), &["n1"]).await;
    fixture.filter(&pod("b", 9000), &["n1"]).await;
    let page = crate::metrics::Page::new(&fixture.app, Vec::new(), true)
        .render()
        .unwrap();
    let card = r#"zone="vGPU",node="n1",device_uuid="GPU-n1-0",device_index="0""#;
    let share = r#"zone="vGPU",namespace="ns",node="n1",pod="a",container_index="0",device_uuid="GPU-n1-0""#;
    let model = r#"device_type="NVIDIA A100""#;
    for line in [
        format!("hami_gpu_memory_limit_bytes{{{card},{model}}} 8388608000.0"),
        format!(r#"hami_gpu_memory_allocated_bytes{{{card},device_cores="100",{model}}} 2097152000.0"#),
        format!("hami_gpu_core_limit_ratio{{{card},{model}}} 100.0"),
        format!("hami_gpu_core_allocated_ratio{{{card},{model}}} 0.0"),
        format!("hami_gpu_shared_count{{{card},{model}}} 1.0"),
        format!(
            r#"hami_node_gpu_overview{{{card},device_cores="100",device_memory_limit="8000",{model}}} 2097152000.0"#
        ),
        format!("hami_node_gpu_memory_allocated_ratio{{{card},{model}}} 0.25"),
        format!("hami_vgpu_memory_allocated_bytes{{{share}}} 2097152000.0"),
        format!("hami_vgpu_core_allocated_ratio{{{share}}} 0.0"),
        r#"GPUDeviceMemoryLimit{zone="vGPU",nodeid="n1",deviceuuid="GPU-n1-0",deviceidx="0",devicetype="NVIDIA A100"} 8388608000.0"#.to_owned(),
        r#"vGPUMemoryAllocated{zone="vGPU",podnamespace="ns",nodename="n1",podname="a",containeridx="0",deviceuuid="GPU-n1-0"} 2097152000.0"#.to_owned(),
        r#"tessera_bookings{state="assumed"} 1.0"#.to_owned(),
        r#"tessera_refused_nodes_total{reason="memory-short"} 1"#.to_owned(),
        "tessera_waiting_pods 1.0".to_owned(),
        r#"tessera_request_seconds_count{verb="filter"} 2"#.to_owned(),
    ] {
        assert!(page.lines().any(|found| found == line), "{line}\nis not in\n{page}");
    }
    assert!(page.contains("hami_build_info{version="), "{page}");
    assert!(page.ends_with("# EOF\n"));
}

#[tokio::test]
async fn only_the_replica_beside_the_leading_kube_scheduler_answers() {
    for (holder, answers) in [("here_1f", true), ("here-2_1f", false), ("", true)] {
        let options = Options {
            elected: true,
            ..Options::default()
        };
        let fixture = Fixture::with(options, move |sent| {
            if sent.path.ends_with("/leases/kube-scheduler") {
                Reply::Object(json!({"metadata": {"name": "kube-scheduler"}, "spec":
                    {"holderIdentity": holder, "leaseDurationSeconds": 15, "renewTime": "2026-01-01T00:00:00.000000Z"}}))
            } else {
                ok(sent)
            }
        })
        .await;
        fixture.node("n1", 1, 8000).await;
        let answer = fixture.filter(&pod("a", 3000), &["n1"]).await;
        assert_eq!(answer["NodeNames"] == json!(["n1"]), answers, "{holder}: {answer}");
        assert_eq!(fixture.bind("a", "n1").await.is_empty(), answers, "{holder}");
        assert_eq!(fixture.log.writes().is_empty(), !answers);
    }
}
