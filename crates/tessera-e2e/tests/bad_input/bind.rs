//! Requests of kube-scheduler that cannot be served.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tessera_engine::{Defaults, Engine, admission};
use tessera_extender::{App, Cluster, FilterMode, Parts, Settings, WriteAt};
use tessera_http::Health;
use tessera_kube::books::{self, Input, SteadyClock};
use tessera_kube::events::Recorder;
use tessera_kube::reach::Reach;
use tessera_kube::watch::Change;
use tessera_kube::{ClientSettings, connect};
use tessera_wire::config::{DeviceConfig, Nvidia};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::process::kubeconfig;
use crate::table::{Part, Row};

const EVENT: &str = "event of the pod, and kube-scheduler's log";

/// The service with an API server that is not there, for so long.
async fn app(synced: bool, lost: Duration) -> Arc<App> {
    let folder = tempfile::tempdir().unwrap();
    let settings = ClientSettings {
        kubeconfig: Some(kubeconfig(folder.path()).into()),
        ..ClientSettings::default()
    };
    let client = connect(&settings).await.unwrap();
    let config = DeviceConfig {
        nvidia: Some(Nvidia::default()),
        ..DeviceConfig::default()
    };
    let vendors = tessera_vendors::from_config(&config);
    let (books, inputs, keeper) = books::open(Arc::clone(&vendors), SteadyClock::default(), CancellationToken::new());
    tokio::spawn(keeper);
    if synced {
        inputs.send(Input::Pod(Change::Complete)).await.unwrap();
        inputs.send(Input::Node(Change::Complete)).await.unwrap();
        inputs.send(Input::Quota(Change::Complete)).await.unwrap();
        books.wait_synced().await.unwrap();
    }
    // The books end with their input.
    std::mem::forget(inputs);
    let since = Instant::now().checked_sub(lost).unwrap();
    let (sender, reach) = watch::channel(Reach {
        since,
        state: Err("no answer".to_owned()),
    });
    drop(sender);
    App::new(
        Parts {
            engine: Engine::new(vendors, Defaults::default()),
            books,
            cluster: Cluster::new(client, Duration::from_secs(300)),
            recorder: Recorder::channel(16).0,
            health: Health::default(),
            reach,
            sighting: None,
        },
        Settings {
            filter_mode: FilterMode::One,
            write_at: WriteAt::Bind,
            assume_time: Duration::from_secs(90),
            sync_wait: Duration::ZERO,
            lock_retry: Duration::ZERO,
            admit: admission::Settings::default(),
        },
    )
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
        .block_on(work)
}

fn bind(lost: Duration) -> String {
    run(async {
        let body = json!({"PodName": "p", "PodNamespace": "default", "PodUID": "u", "Node": "n1"}).to_string();
        app(true, lost).await.bind(body.as_bytes()).await.error
    })
}

pub(crate) fn part() -> Part {
    Part {
        title: "A pod is bound",
        about: "What was promised to the pod is kept for it or given back; kube-scheduler tries again.",
        rows: vec![
            Row {
                id: "api-lost",
                did: "the API server went away a moment ago",
                place: EVENT,
                message: "reading pod default/p: the API server did not answer: client error (Connect): tcp connect error: Connection refused (os error 111); kube-scheduler tries again by itself",
                see: || bind(Duration::ZERO),
            },
            Row {
                id: "api-lost-a-minute",
                did: "the API server has been away for more than a minute",
                place: EVENT,
                message: "the API server has not answered for <n> s, so nothing can be bound; kube-scheduler tries again by itself",
                see: || crate::table::mask(&bind(Duration::from_secs(75)), &[("75 s", "<n> s")]),
            },
            Row {
                id: "not-synced",
                did: "the scheduler has just started and the API server is away",
                place: "kube-scheduler's log, event of the pod",
                message: "the scheduler has not yet read pods, nodes and quotas from the API server; see /readyz on its metrics port",
                see: || {
                    run(async {
                        let pod = json!({"metadata": {"name": "p", "namespace": "default", "uid": "u"}, "spec": {"containers": []}});
                        let body = json!({"Pod": pod, "NodeNames": ["n1"]}).to_string();
                        app(false, Duration::ZERO).await.filter(body.as_bytes()).await.error
                    })
                },
            },
        ],
    }
}
