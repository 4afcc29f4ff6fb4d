//! One node with the cards of six makers: NVIDIA's served by our agent, the others by programs that behave as their
//! makers' device plugins. One scheduler for all.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a test runner")]

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::Api;
use serde_json::{Value, json};
use tessera_e2e::mixed_storm;
use tessera_e2e::product::{self, Artefacts, Profile};
use tessera_e2e::stage::{Plan, Stage, annotation, wait_for};
use tessera_e2e::harness;
use tessera_players::play::{self, Part};
use tessera_testcluster::{Cluster, Progress};

const NS: &str = "default";

type Boxed<'s> = Pin<Box<dyn Future<Output = Result<()>> + 's>>;

fn main() -> ExitCode {
    if let Err(reason) = tessera_testcluster::available() {
        return harness::skip("mixed", &reason);
    }
    if std::env::var_os("TESSERA_NO_CLUSTER").is_some() {
        return harness::skip("mixed", "left out by --no-cluster");
    }
    let runtime = tokio::runtime::Runtime::new().expect("an async runtime");
    match runtime.block_on(all()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("test mixed ... FAILED\n  {error:#}");
            println!("\ntest result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n");
            ExitCode::FAILURE
        }
    }
}

async fn all() -> Result<ExitCode> {
    let artefacts = Artefacts::find(Profile::Dev)?;
    let (cards, _, values) = product::simulated(mixed_storm::CARDS)?;
    let plan = Plan {
        cards,
        state: None,
        detached: false,
        values,
        max_pods: 250,
    };
    let progress = Progress::new(|event| println!("  {event}"));
    let stage = Stage::start(&plan, &artefacts, &progress).await?;
    let state = stage.cluster.state_dir().to_path_buf();
    let code = harness::run(
        &stage,
        &[
            ("a_pod_of_each_maker_gets_what_its_annotation_says", |s| {
                each(s) as Boxed<'_>
            }),
            ("containers_of_four_makers_in_one_pod_bind_at_the_first_attempt", |s| {
                mixed_pod(s) as Boxed<'_>
            }),
            ("two_makers_in_one_container_bind_at_the_first_attempt", |s| {
                mixed_container(s) as Boxed<'_>
            }),
            ("a_request_without_a_maker_lands_where_there_is_room", |s| {
                unified(s) as Boxed<'_>
            }),
            ("a_storm_over_all_makers_loses_and_leaks_nothing", |s| {
                storm(s) as Boxed<'_>
            }),
        ],
    )
    .await;
    stage.cluster.stop().await.context("stopping the cluster")?;
    let left = Cluster::leftovers(&state);
    ensure!(left.is_empty(), "the stopped cluster left behind:\n{left}");
    Ok(code)
}

fn parts() -> Result<Vec<Part>> {
    Ok(product::simulated(mixed_storm::CARDS)?.1)
}

/// Waits until neither lock is on the node: each plugin gave its own back.
async fn unlocked(stage: &Stage) -> Result<()> {
    let nodes: Api<Node> = Api::all(stage.client.clone());
    wait_for("the node locks to be given back", Duration::from_secs(20), async || {
        let node = nodes.get(stage.cluster.node_name()).await?;
        let annotations = node.metadata.annotations.unwrap_or_default();
        Ok(["hami.io/mutex.lock", "cambricon.com/dsmlu.lock"]
            .iter()
            .all(|lock| !annotations.contains_key(*lock)))
    })
    .await
}

fn each(stage: &Stage) -> Boxed<'_> {
    Box::pin(async move {
        for part in parts()? {
            let pod = product::player_sample(&part);
            let name = format!("sample-{}", part.vendor);
            stage.create(NS, &pod).await?;
            stage.running(NS, &name).await?;
            let given = stage.line(NS, &name, "main", "TESSERA_PLAYED").await?;
            let pod = stage.pods(NS).get(&name).await?;
            let promised = mixed_storm::promised(&pod, &part).with_context(|| format!("{name} has no allocation"))?;
            ensure!(
                given == promised,
                "{name} was given {given}, its annotation says {promised}"
            );
            unlocked(stage).await.with_context(|| format!("after {name}"))?;
            stage.delete(NS, &name).await?;
        }
        Ok(())
    })
}

/// Limits of `vendor`'s example.
fn limits(vendor: &str) -> Result<Value> {
    let part = parts()?
        .into_iter()
        .find(|part| part.vendor == vendor)
        .with_context(|| format!("{vendor} is not on the node"))?;
    let limits: BTreeMap<String, String> = part
        .model
        .example
        .into_iter()
        .map(|(name, number)| (name, number.to_string()))
        .collect();
    Ok(json!(limits))
}

fn container(name: &str, command: &str, limits: &Value) -> Value {
    json!({
        "name": name,
        "image": product::SAMPLE_IMAGE,
        "imagePullPolicy": "Never",
        "command": ["/bin/sh", "-c", command],
        "resources": { "limits": limits },
    })
}

const TELL_AND_STAY: &str = "env | grep -E '^(TESSERA_PLAYED|CUDA_DEVICE_MEMORY_LIMIT)'; exec sleep infinity";
const TELL: &str = "env | grep ^TESSERA_PLAYED";

/// Events that say that an attempt went wrong.
async fn failures(stage: &Stage, name: &str) -> Result<Vec<String>> {
    let events = stage.events(NS, name).await?;
    Ok(events
        .into_iter()
        .filter(|(reason, _, _)| reason.contains("Fail"))
        .map(|(reason, message, _)| format!("{reason}: {message}"))
        .collect())
}

fn mixed_pod(stage: &Stage) -> Boxed<'_> {
    Box::pin(async move {
        let nvidia = json!({ "nvidia.com/gpu": "1", "nvidia.com/gpumem": "2000" });
        let mut sidecar = container("sidecar", TELL_AND_STAY, &limits("metax")?);
        sidecar["restartPolicy"] = json!("Always");
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": "mixed" },
            "spec": {
                "terminationGracePeriodSeconds": 1,
                "initContainers": [container("init", TELL, &limits("hygon")?), sidecar],
                "containers": [
                    container("gpu", TELL_AND_STAY, &nvidia),
                    container("npu", TELL_AND_STAY, &limits("ascend")?),
                ],
            },
        });
        stage.create(NS, &pod).await?;
        let pod = stage.running(NS, "mixed").await?;
        ensure!(failures(stage, "mixed").await?.is_empty(), "{:?}", failures(stage, "mixed").await?);
        for (name, vendor) in [("init", "hygon"), ("sidecar", "metax"), ("npu", "ascend")] {
            let given = stage.line(NS, "mixed", name, "TESSERA_PLAYED").await?;
            let part = play_part(vendor)?;
            let promised = mixed_storm::promised(&pod, &part).unwrap_or_default();
            ensure!(
                !given.is_empty() && promised.contains(&given),
                "container {name} was given {given}, the annotation says {promised}"
            );
        }
        let limit = stage.line(NS, "mixed", "gpu", "CUDA_DEVICE_MEMORY_LIMIT_0").await?;
        ensure!(limit.starts_with("2000"), "container gpu was given {limit}");
        unlocked(stage).await?;
        stage.delete(NS, "mixed").await
    })
}

fn play_part(vendor: &str) -> Result<Part> {
    parts()?
        .into_iter()
        .find(|part| part.vendor == vendor)
        .with_context(|| format!("{vendor} is one of {:?}", play::vendors().collect::<Vec<_>>()))
}

fn mixed_container(stage: &Stage) -> Boxed<'_> {
    Box::pin(async move {
        let mut both = limits("hygon")?;
        both["nvidia.com/gpu"] = json!("1");
        both["nvidia.com/gpumem"] = json!("1500");
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": "both" },
            "spec": { "terminationGracePeriodSeconds": 1, "containers": [container("c", TELL_AND_STAY, &both)] },
        });
        stage.create(NS, &pod).await?;
        let pod = stage.running(NS, "both").await?;
        ensure!(failures(stage, "both").await?.is_empty(), "{:?}", failures(stage, "both").await?);
        let given = stage.line(NS, "both", "c", "TESSERA_PLAYED").await?;
        let promised = mixed_storm::promised(&pod, &play_part("hygon")?).unwrap_or_default();
        ensure!(given == promised, "was given {given}, the annotation says {promised}");
        let limit = stage.line(NS, "both", "c", "CUDA_DEVICE_MEMORY_LIMIT_0").await?;
        ensure!(limit.starts_with("1500"), "was given {limit}");
        stage.delete(NS, "both").await
    })
}

fn unified(stage: &Stage) -> Boxed<'_> {
    Box::pin(async move {
        // Larger than any simulated NVIDIA or Hygon card here: only one maker has room.
        for (name, memory, class) in [("any-small", "2Gi", None), ("any-large", "64Gi", Some("hami.io/metax-sgpu-devices-allocated"))] {
            let limits = json!({ "tessera.dev/gpu": "1", "tessera.dev/memory": memory });
            let pod = json!({
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": { "name": name, "annotations": { "tessera.dev/vendors": "nvidia,metax" } },
                "spec": { "terminationGracePeriodSeconds": 1, "containers": [container("c", "exec sleep infinity", &limits)] },
            });
            stage.create(NS, &pod).await?;
            let pod: Pod = stage.running(NS, name).await?;
            ensure!(annotation(&pod, "tessera.dev/translated").is_some(), "{name} does not show its translation");
            if let Some(class) = class {
                ensure!(annotation(&pod, class).is_some(), "{name} is not where there is room: {:?}", pod.metadata.annotations);
            }
            stage.delete(NS, name).await?;
        }
        Ok(())
    })
}

fn storm(stage: &Stage) -> Boxed<'_> {
    Box::pin(async move {
        let seed = std::env::var("TESSERA_STORM_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
        let pods = std::env::var("TESSERA_STORM_PODS").ok().and_then(|text| text.parse().ok()).unwrap_or(40);
        let seen = mixed_storm::round(stage, NS, pods, seed).await?;
        println!("  {seen}");
        Ok(())
    })
}
