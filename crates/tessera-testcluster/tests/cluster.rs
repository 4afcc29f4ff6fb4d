//! One whole cluster, from nothing to nothing.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, LogParams, PostParams};
use serde_json::json;
use tessera_testcluster::{Cluster, Component, Progress, available, image, wait};

const DEADLINE: Duration = Duration::from_secs(120);

fn pod(name: &str, image: &str, host_network: bool, script: &str) -> Pod {
    serde_json::from_value(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "hostNetwork": host_network,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "main",
                "image": image,
                "imagePullPolicy": "Never",
                "command": ["python3", "-c", script],
                "volumeMounts": [
                    {"name": "plugins", "mountPath": "/plugins"},
                    {"name": "own", "mountPath": "/own"},
                ],
            }],
            "volumes": [
                {"name": "plugins", "hostPath": {"path": "/var/lib/kubelet/device-plugins"}},
                {"name": "own", "hostPath": {"path": "/run/tessera-own"}},
            ],
        },
    }))
    .expect("the fields are a pod's")
}

/// Prints what the pod sees of the node and of the API server, and waits.
const LOOK: &str = r#"
import os, ssl, time, urllib.request
print("plugins:", sorted(os.listdir("/plugins")), flush=True)
open("/own/was-here", "w").write("yes")
context = ssl.create_default_context(cafile="/var/run/secrets/kubernetes.io/serviceaccount/ca.crt")
token = open("/var/run/secrets/kubernetes.io/serviceaccount/token").read()
url = "https://%s:%s/version" % (os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"])
request = urllib.request.Request(url, headers={"Authorization": "Bearer " + token})
print("api:", urllib.request.urlopen(request, context=context, timeout=20).status, flush=True)
while True:
    time.sleep(1000)
"#;

async fn log_with(pods: &Api<Pod>, name: &str, text: &str) -> String {
    let mut log = String::new();
    let found = tokio::time::timeout(DEADLINE, async {
        loop {
            log = pods.logs(name, &LogParams::default()).await.unwrap_or_default();
            if log.contains(text) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    assert!(found.is_ok(), "`{text}` is not in the log of {name}: {log}");
    log
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_runs_pods_survives_its_kubelet_and_leaves_nothing() {
    if let Err(reason) = available() {
        println!("skipped: {reason}");
        return;
    }
    let begun = Instant::now();
    let progress = Progress::new(move |event| println!("{:5.1} s {event}", begun.elapsed().as_secs_f32()));
    let cluster = Cluster::builder()
        .node_labels([("tessera.dev/test", "yes")])
        .private_path("/run/tessera-own")
        .progress(progress.clone())
        .start()
        .await
        .unwrap();
    let state_dir = cluster.state_dir().to_path_buf();
    let image =
        tokio::task::spawn_blocking(move || image::Builder::debian("tessera.dev/cluster-test:1").build(&progress))
            .await
            .unwrap()
            .unwrap();
    cluster.load_image(&image).await.unwrap();

    let client = cluster.kube().await.unwrap();
    let node: Node = Api::all(client.clone()).get(cluster.node_name()).await.unwrap();
    assert_eq!(node.metadata.labels.unwrap()["tessera.dev/test"], "yes");
    let mark = cluster.audit().mark();

    wait::with_temp_namespace(&client, |namespace| {
        let (client, cluster, image) = (client.clone(), &cluster, &image);
        async move {
            let pods: Api<Pod> = Api::namespaced(client, &namespace);
            for (name, host_network) in [("on-host", true), ("on-pod-network", false)] {
                let pod = pod(name, &image.name, host_network, LOOK);
                pods.create(&PostParams::default(), &pod).await.unwrap();
            }
            for name in ["on-host", "on-pod-network"] {
                let what = format!("pod {name} running");
                wait::await_condition(&pods, name, &what, wait::pod_phase("Running"), DEADLINE)
                    .await
                    .unwrap();
                let log = log_with(&pods, name, "api: 200").await;
                assert!(
                    log.contains("kubelet.sock"),
                    "the kubelet's socket is at the usual path: {log}"
                );
            }
            assert!(
                cluster.private_dir("/run/tessera-own").join("was-here").exists(),
                "the host side of a private path shows what a pod wrote"
            );

            // Containers outlive the kubelet, and a new one takes them over.
            let before = cluster.pid(Component::Kubelet).unwrap();
            cluster.kill(Component::Kubelet).await.unwrap();
            assert_eq!(cluster.dead_components(), [Component::Kubelet]);
            cluster.start_component(Component::Kubelet).await.unwrap();
            assert_ne!(cluster.pid(Component::Kubelet), Some(before));
            let late = pod("late", &image.name, true, "print('done late')");
            pods.create(&PostParams::default(), &late).await.unwrap();
            let done = wait::pod_phase("Succeeded");
            wait::await_condition(&pods, "late", "pod late ending", done, DEADLINE)
                .await
                .unwrap();
            let old = pods.get("on-host").await.unwrap().status.unwrap();
            assert_eq!(old.container_statuses.unwrap()[0].restart_count, 0);
        }
    })
    .await
    .unwrap();

    // The API server ends when asked, and comes back with its data.
    cluster.terminate(Component::Apiserver).await.unwrap();
    assert_eq!(cluster.pid(Component::Apiserver), None);
    cluster.start_component(Component::Apiserver).await.unwrap();
    let again: Api<Node> = Api::all(cluster.kube().await.unwrap());
    again.get(cluster.node_name()).await.unwrap();

    let bound = cluster
        .audit()
        .count_since(mark, |e| {
            e.what() == "create pods/binding" && e.user.username == "system:kube-scheduler"
        })
        .unwrap();
    assert_eq!(bound, 3, "every pod was bound once");

    assert!(!Cluster::leftovers(&state_dir).is_empty(), "it still runs");
    cluster.stop().await.unwrap();
    let left = Cluster::leftovers(&state_dir);
    assert!(left.is_empty(), "{left}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_detached_cluster_is_found_again_repaired_and_destroyed() {
    if let Err(reason) = available() {
        println!("skipped: {reason}");
        return;
    }
    let parent = tempfile::tempdir_in("/var/tmp").unwrap();
    let dir = parent.path().join("up");
    assert!(Cluster::attach(&dir).await.unwrap().is_none());

    let started = Cluster::builder()
        .state_dir(&dir)
        .without_node()
        .detached()
        .start()
        .await
        .unwrap();
    let url = started.api_url();
    drop(started);

    let found = Cluster::attach(&dir).await.unwrap().expect("it outlives the value");
    assert_eq!(found.api_url(), url);
    assert!(found.dead_components().is_empty());
    let second = Cluster::builder().state_dir(&dir).detached().start().await;
    assert!(second.is_err(), "a running cluster is not replaced");

    for component in [Component::Etcd, Component::Scheduler] {
        found.kill(component).await.unwrap();
    }
    assert_eq!(found.dead_components(), [Component::Etcd, Component::Scheduler]);
    found.repair().await.unwrap();
    assert!(found.dead_components().is_empty());

    Cluster::destroy(&dir).await.unwrap();
    let left = Cluster::leftovers(&dir);
    assert!(left.is_empty(), "{left}");
    Cluster::destroy(&dir).await.unwrap();
}

/// Set for the child that the test below starts and kills.
const CHILD: &str = "TESSERA_TESTCLUSTER_CHILD";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_test_leaves_is_removed_by_the_next_one() {
    if std::env::var_os(CHILD).is_some() {
        let cluster = Cluster::builder().start().await.unwrap();
        println!("started={}", cluster.state_dir().display());
        std::future::pending::<()>().await;
    }
    if let Err(reason) = available() {
        println!("skipped: {reason}");
        return;
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture"])
        .arg("what_a_killed_test_leaves_is_removed_by_the_next_one")
        .env(CHILD, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let state_dir = tokio::task::spawn_blocking(move || {
        let dir = BufReader::new(child.stdout.take().unwrap())
            .lines()
            .map(Result::unwrap)
            .find_map(|l| l.strip_prefix("started=").map(PathBuf::from))
            .expect("the child starts its cluster");
        child.kill().unwrap();
        child.wait().unwrap();
        dir
    })
    .await
    .unwrap();

    let next = Cluster::builder().without_node().start().await.unwrap();
    let left = Cluster::leftovers(&state_dir);
    assert!(left.is_empty(), "{left}");
    next.stop().await.unwrap();
}
