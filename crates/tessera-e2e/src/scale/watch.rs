//! Sees when pods are bound, and says of bound pods that they run, as their kubelets would.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{Api, ListParams, Patch, PatchParams, WatchEvent, WatchParams};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Pods said to run at once.
const MARKS: usize = 8;

/// Watches the pods of one namespace until it is dropped.
#[derive(Debug)]
pub(super) struct Watcher {
    bound: Arc<Mutex<HashMap<String, Instant>>>,
    trouble: Arc<Mutex<Option<String>>>,
    _tasks: JoinSet<()>,
}

impl Watcher {
    /// Watches from now on.
    pub(super) async fn start(client: &Client, namespace: &str) -> Result<Self> {
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
        let version = pods
            .list_metadata(&ListParams::default().limit(1))
            .await?
            .metadata
            .resource_version
            .unwrap_or_default();
        let bound = Arc::new(Mutex::new(HashMap::new()));
        let trouble = Arc::new(Mutex::new(None));
        let (sender, mut marks) = mpsc::channel::<String>(100_000);
        let mut tasks = JoinSet::new();
        let (seen, failed, watched) = (Arc::clone(&bound), Arc::clone(&trouble), pods.clone());
        tasks.spawn(async move {
            if let Err(error) = follow(&watched, version, &seen, &sender).await {
                *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(format!("{error:#}"));
            }
        });
        tasks.spawn(async move {
            let stream = futures::stream::poll_fn(move |cx| marks.poll_recv(cx));
            stream
                .for_each_concurrent(MARKS, |name| {
                    let pods = pods.clone();
                    async move {
                        let status = json!({ "status": { "phase": "Running", "startTime": jiff::Timestamp::now().to_string() } });
                        // A pod that is gone need not run.
                        drop(pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(&status)).await);
                    }
                })
                .await;
        });
        Ok(Self {
            bound,
            trouble,
            _tasks: tasks,
        })
    }

    /// When each pod was first seen bound.
    pub(super) fn bound(&self) -> HashMap<String, Instant> {
        self.bound.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until `count` pods are bound.
    pub(super) async fn wait(&self, count: usize, patience: Duration) -> Result<()> {
        let end = Instant::now() + patience;
        let mut tick = tokio::time::interval(Duration::from_millis(2));
        loop {
            tick.tick().await;
            let seen = self.bound.lock().unwrap_or_else(PoisonError::into_inner).len();
            if seen >= count {
                return Ok(());
            }
            let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone();
            ensure!(trouble.is_none(), "watching pods: {}", trouble.unwrap_or_default());
            ensure!(
                Instant::now() < end,
                "only {seen} of {count} pods were bound in {} s",
                patience.as_secs()
            );
        }
    }
}

async fn follow(
    pods: &Api<Pod>,
    mut version: String,
    bound: &Mutex<HashMap<String, Instant>>,
    marks: &mpsc::Sender<String>,
) -> Result<()> {
    loop {
        let mut stream = pods
            .watch(&WatchParams::default().timeout(280), &version)
            .await?
            .boxed();
        while let Some(event) = stream.next().await {
            let pod = match event? {
                WatchEvent::Added(pod) | WatchEvent::Modified(pod) => pod,
                WatchEvent::Bookmark(mark) => {
                    version = mark.metadata.resource_version;
                    continue;
                }
                WatchEvent::Deleted(_) => continue,
                WatchEvent::Error(status) => anyhow::bail!("{}", status.message),
            };
            version = pod.metadata.resource_version.clone().unwrap_or(version);
            let name = pod.metadata.name.clone().unwrap_or_default();
            if crate::stage::bound(&pod) {
                let is_new = {
                    let mut bound = bound.lock().unwrap_or_else(PoisonError::into_inner);
                    let known = bound.len();
                    bound.entry(name.clone()).or_insert_with(Instant::now);
                    bound.len() > known
                };
                if is_new {
                    marks.send(name).await?;
                }
            }
        }
    }
}
