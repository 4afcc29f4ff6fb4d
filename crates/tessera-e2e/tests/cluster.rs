//! The main job on a real one-node Kubernetes: pods share one simulated card, each holds its share.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a test runner")]

use std::future::Future;
use std::pin::Pin;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::stream::{StreamExt as _, TryStreamExt as _};
use kube::api::{DeleteParams, ListParams};
use serde_json::{Value, json};
use tessera_e2e::product::{Artefacts, Profile};
use tessera_e2e::stage::{Plan, Stage, bound, phase, wait_for};
use tessera_e2e::storm::{self, Round};
use tessera_e2e::{harness, product};
use tessera_testcluster::{AuditMark, Cluster, Progress};

/// One card of 40 GiB and seven more for the storm.
const CARDS: &str = "cards:\n  - {model: A100-SXM4-40GB, count: 8}\n";
const NS: &str = "default";

type Boxed<'s> = Pin<Box<dyn Future<Output = Result<()>> + 's>>;

fn main() -> ExitCode {
    if let Err(reason) = tessera_testcluster::available() {
        return harness::skip("cluster", &reason);
    }
    if std::env::var_os("TESSERA_NO_CLUSTER").is_some() {
        return harness::skip("cluster", "left out by --no-cluster");
    }
    let runtime = tokio::runtime::Runtime::new().expect("an async runtime");
    match runtime.block_on(all()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("test cluster ... FAILED\n  {error:#}");
            println!("\ntest result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n");
            ExitCode::FAILURE
        }
    }
}

async fn all() -> Result<ExitCode> {
    let artefacts = Artefacts::find(Profile::Dev)?;
    let plan = Plan {
        cards: Some(CARDS.to_owned()),
        state: None,
        detached: false,
        values: json!({}),
        max_pods: 250,
    };
    let progress = Progress::new(|event| println!("  {event}"));
    let stage = Stage::start(&plan, &artefacts, &progress).await?;
    let state = stage.cluster.state_dir().to_path_buf();
    let code = harness::run(
        &stage,
        &[
            ("two_pods_share_one_card_and_each_sees_its_own_limit", |s| {
                share(s) as Boxed<'_>
            }),
            ("unmodified_tools_inside_a_pod_see_its_share", |s| tools(s) as Boxed<'_>),
            (
                "a_pod_that_does_not_fit_says_why_and_starts_within_a_second_of_the_deletion",
                |s| shortfall(s) as Boxed<'_>,
            ),
            ("one_pod_costs_one_write_and_none_to_the_node", |s| {
                writes(s) as Boxed<'_>
            }),
            ("bad_requests_are_refused_at_the_door", |s| refused(s) as Boxed<'_>),
            ("fifty_pods_to_one_node_bind_within_five_seconds", |s| {
                fifty(s) as Boxed<'_>
            }),
            ("a_storm_loses_and_leaks_nothing", |s| short_storm(s) as Boxed<'_>),
            ("an_idle_node_writes_nothing", |s| idle(s) as Boxed<'_>),
            ("with_all_of_tessera_dead_ordinary_pods_run", |s| dead(s) as Boxed<'_>),
            ("the_chart_uninstalls_and_leaves_no_object", |s| {
                uninstall(s) as Boxed<'_>
            }),
        ],
    )
    .await;
    stage.cluster.stop().await.context("stopping the cluster")?;
    let left = Cluster::leftovers(&state);
    ensure!(left.is_empty(), "the stopped cluster left behind:\n{left}");
    Ok(code)
}

fn share(stage: &Stage) -> Boxed<'_> {
    Box::pin(async move {
        stage.kubectl(&["apply", "-f", "examples/share-one-card.yaml"])?;
        for (name, mib) in [("small", 4000), ("large", 8000)] {
            stage.running(NS, name).await?;
            let seen = stage.printed(NS, name).await?;
            ensure!(seen["nvml_total_mib"] == json!(mib), "{name} sees through NVML: {seen}");
            ensure!(seen["cuda_total_mib"] == json!(mib), "{name} sees through CUDA: {seen}");
            let got = seen["allocated_mib"].as_u64().unwrap_or(0);
            ensure!(
                got <= mib && got + 64 > mib - 64,
                "{name} could allocate {got} of {mib} MiB"
            );
            ensure!(seen["then"] == json!("CUDA_ERROR_OUT_OF_MEMORY"), "{name}: {seen}");
        }
        for name in ["small", "large"] {
            let pod = stage.pods(NS).get(name).await?;
            ensure!(
                phase(&pod) == "Running",
                "{name} no longer runs beside its neighbour: {}",
                phase(&pod)
            );
        }
        Ok(())
    })
}

fn tools(stage: &Stage) -> Boxed<'_> {
    Box::pin(async move {
        let nvitop = stage.kubectl(&["exec", "small", "--", "nvitop", "-1", "--ascii"])?;
        ensure!(
            nvitop.contains("4000MiB") || nvitop.contains("3.91GiB") || nvitop.contains("4000 MiB"),
            "nvitop shows: {nvitop}"
        );
        let core = stage.kubectl(&[
            "exec",
            "small",
            "--",
            "python3",
            "-c",
            "from cuda.core import Device; d = Device(); d.set_current(); b = d.allocate(1 << 20, stream=d.default_stream); print(b.size)",
        ])?;
        ensure!(core.trim() == "1048576", "cuda-core printed: {core}");
        Ok(())
    })
}

fn shortfall(stage: &Stage) -> Boxed<'_> {
    Box::pin(async move {
        // Eight cards: fill them so that only what a deletion frees can serve the next pod.
        for number in 0..8 {
            let ask = json!({ "nvidia.com/gpu": 1, "nvidia.com/gpumem": 26_000 });
            stage
                .create(
                    NS,
                    &storm::probe_pod(&format!("fill-{number}"), &[ask], true, &json!({})),
                )
                .await?;
        }
        for number in 0..8 {
            stage.running(NS, &format!("fill-{number}")).await?;
        }
        let ask = json!({ "nvidia.com/gpu": 1, "nvidia.com/gpumem": 20_000 });
        stage
            .create(NS, &storm::probe_pod("third", &[ask], true, &json!({})))
            .await?;
        let mut text = String::new();
        wait_for("an event that says why", Duration::from_secs(20), async || {
            text = stage
                .events(NS, "third")
                .await?
                .into_iter()
                .map(|(_, note, _)| note)
                .collect::<Vec<_>>()
                .join("\n");
            Ok(text.contains("20000 MiB"))
        })
        .await
        .with_context(|| format!("events of the third pod: {text}"))?;
        ensure!(text.contains("free"), "the event names no remedy: {text}");
        stage.delete(NS, "fill-3").await?;
        wait_for("the first pod to be gone", Duration::from_secs(20), async || {
            Ok(stage.pods(NS).get_opt("fill-3").await?.is_none())
        })
        .await?;
        let gone = Instant::now();
        stage
            .pod_until(NS, "third", "bound", Duration::from_secs(10), bound)
            .await?;
        let took = gone.elapsed();
        ensure!(
            took < Duration::from_secs(1),
            "the waiting pod was bound {took:?} after the deletion"
        );
        stage.running(NS, "third").await?;
        println!("  bound {took:?} after the deletion");
        clear(stage).await
    })
}

fn writes(stage: &Stage) -> Boxed<'_> {
    Box::pin(async move {
        let mark = stage.cluster.audit().mark();
        let ask = json!({ "nvidia.com/gpu": 1, "nvidia.com/gpumem": 1000 });
        stage
            .create(NS, &storm::probe_pod("counted", &[ask], true, &json!({})))
            .await?;
        stage.running(NS, "counted").await?;
        let ours: Vec<String> = our_writes(stage, mark)?;
        let to_pod: Vec<&String> = ours.iter().filter(|line| line.contains("pods")).collect();
        ensure!(
            to_pod.len() == 1,
            "from creation to Running Tessera wrote {}: {to_pod:#?}",
            to_pod.len()
        );
        let to_nodes: Vec<&String> = ours.iter().filter(|line| line.contains(" nodes")).collect();
        ensure!(to_nodes.is_empty(), "Tessera wrote to Node objects: {to_nodes:#?}");
        println!("  {} writes: {to_pod:?}", to_pod.len());
        clear(stage).await
    })
}

/// Writes of Tessera's service accounts since `mark`, events and leases apart.
fn our_writes(stage: &Stage, mark: AuditMark) -> Result<Vec<String>> {
    let ours = format!("system:serviceaccount:{}:", product::NAMESPACE);
    Ok(stage
        .cluster
        .audit()
        .since(mark)?
        .into_iter()
        .filter(|event| event.is_write() && event.user.username.starts_with(&ours))
        .filter(|event| {
            !event
                .object_ref
                .as_ref()
                .is_some_and(|o| matches!(o.resource.as_str(), "events" | "leases"))
        })
        .map(|event| event.what())
        .collect())
}

fn refused(stage: &Stage) -> Boxed<'_> {
    Box::pin(async move {
        let cases: &[(&str, Value, &str)] = &[
            (
                "suffix",
                json!({ "nvidia.com/gpu": 1, "nvidia.com/gpumem": "3Gi" }),
                "3072",
            ),
            (
                "percent",
                json!({ "nvidia.com/gpu": 1, "nvidia.com/gpumem-percentage": 120 }),
                "gpumem-percentage",
            ),
            (
                "negative",
                json!({ "nvidia.com/gpu": 1, "nvidia.com/gpumem": -5 }),
                "gpumem",
            ),
        ];
        for (name, limits, word) in cases {
            let answer = stage
                .create(
                    NS,
                    &storm::probe_pod(name, std::slice::from_ref(limits), true, &json!({})),
                )
                .await;
            let text = answer.err().map(|error| format!("{error:#}")).unwrap_or_default();
            ensure!(
                text.contains(word),
                "{name}: the refusal does not say `{word}`: {text:?}"
            );
        }
        Ok(())
    })
}

fn fifty(stage: &Stage) -> Boxed<'_> {
    Box::pin(async move {
        let start = Instant::now();
        futures::stream::iter(0..50)
            .map(|number| async move {
                let ask = json!({ "nvidia.com/gpu": 1, "nvidia.com/gpumem": 500 });
                let pod = storm::probe_pod(&format!("many-{number}"), &[ask], false, &json!({}));
                stage.create(NS, &pod).await
            })
            .buffer_unordered(10)
            .try_collect::<Vec<_>>()
            .await?;
        let created = start.elapsed();
        wait_for("50 pods to be bound", Duration::from_secs(30), async || {
            let pods = stage.pods(NS).list(&ListParams::default()).await?;
            Ok(pods.items.iter().filter(|pod| bound(pod)).count() >= 50)
        })
        .await?;
        let took = start.elapsed();
        println!("  created in {created:?}, all bound after {took:?}");
        wait_for("50 pods to end", Duration::from_secs(180), async || {
            let pods = stage.pods(NS).list(&ListParams::default()).await?;
            for pod in pods.items.iter().filter(|pod| phase(pod) == "Failed") {
                storm::failed(stage, NS, pod).await?;
            }
            Ok(pods.items.iter().all(|pod| phase(pod) == "Succeeded"))
        })
        .await?;
        clear(stage).await?;
        ensure!(took < Duration::from_secs(5), "50 pods took {took:?} to be bound");
        Ok(())
    })
}

/// A number out of the environment, for another storm than the usual one.
fn number_from(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn short_storm(stage: &Stage) -> Boxed<'_> {
    Box::pin(async move {
        let round = Round {
            pods: number_from("TESSERA_STORM_PODS")
                .and_then(|pods| pods.try_into().ok())
                .unwrap_or(60),
            seed: number_from("TESSERA_STORM_SEED").unwrap_or(5),
            kill_kubelet: true,
            kill_containers: false,
        };
        let outcome = storm::round(stage, NS, round).await;
        clear(stage).await?;
        let seen = outcome?;
        println!("  {seen}");
        ensure!(seen.agreed > 0, "no pod ran");
        Ok(())
    })
}

fn idle(stage: &Stage) -> Boxed<'_> {
    Box::pin(async move {
        let mark = stage.cluster.audit().mark();
        // The quiet itself is what is observed, so time must pass.
        tokio::time::sleep(Duration::from_secs(10)).await;
        let ours = our_writes(stage, mark)?;
        ensure!(ours.is_empty(), "nothing happened, and Tessera wrote: {ours:#?}");
        Ok(())
    })
}

fn dead(stage: &Stage) -> Boxed<'_> {
    Box::pin(async move {
        stage.kubectl(&["-n", product::NAMESPACE, "scale", "deployment", "--all", "--replicas=0"])?;
        stage.kubectl(&["-n", product::NAMESPACE, "delete", "daemonset", "--all", "--wait=true"])?;
        wait_for("Tessera to be gone", Duration::from_secs(60), async || {
            Ok(stage
                .pods(product::NAMESPACE)
                .list(&ListParams::default())
                .await?
                .items
                .is_empty())
        })
        .await?;
        let start = Instant::now();
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "ordinary" },
            "spec": { "containers": [{
                "name": "main", "image": product::SAMPLE_IMAGE, "imagePullPolicy": "Never",
                "command": ["sleep", "1000"],
            }] },
        });
        stage.create(NS, &pod).await?;
        stage
            .pod_until(NS, "ordinary", "bound", Duration::from_secs(10), bound)
            .await?;
        let took = start.elapsed();
        ensure!(
            took < Duration::from_secs(2),
            "an ordinary pod took {took:?} to be bound while Tessera was dead"
        );
        stage.running(NS, "ordinary").await?;
        clear(stage).await
    })
}

fn uninstall(stage: &Stage) -> Boxed<'_> {
    Box::pin(async move {
        product::helm(
            stage.cluster.binaries().helm(),
            &stage.cluster.kubeconfig(),
            &[
                "uninstall",
                product::RELEASE,
                "--namespace",
                product::NAMESPACE,
                "--wait",
            ],
        )?;
        let kinds = "deployments,daemonsets,services,configmaps,secrets,leases,serviceaccounts,roles,rolebindings";
        let namespaced = stage.kubectl(&["-n", product::NAMESPACE, "get", kinds, "-o", "name"])?;
        let left: Vec<&str> = namespaced
            .lines()
            .filter(|name| !matches!(*name, "configmap/kube-root-ca.crt" | "serviceaccount/default"))
            .collect();
        ensure!(left.is_empty(), "left in {}: {left:?}", product::NAMESPACE);
        let wide = "clusterroles,clusterrolebindings,mutatingwebhookconfigurations,validatingwebhookconfigurations,\
                    validatingadmissionpolicies,validatingadmissionpolicybindings,runtimeclasses";
        let wide = stage.kubectl(&["get", wide, "-o", "name"])?;
        let left: Vec<&str> = wide.lines().filter(|name| name.contains("tessera")).collect();
        ensure!(left.is_empty(), "left in the cluster: {left:?}");
        Ok(())
    })
}

async fn clear(stage: &Stage) -> Result<()> {
    let pods = stage.pods(NS);
    pods.delete_collection(&DeleteParams::default().grace_period(0), &ListParams::default())
        .await?;
    wait_for("the namespace to be empty", Duration::from_secs(60), async || {
        Ok(pods.list(&ListParams::default()).await?.items.is_empty())
    })
    .await
}
