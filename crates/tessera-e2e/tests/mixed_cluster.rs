//! One node with cards of six makers on a real Kubernetes: ours by the agent, five by players of their plugins.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a test runner")]

use std::future::Future;
use std::pin::Pin;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tessera_e2e::harness;
use tessera_e2e::mixed::{self, CARDS, MAKERS, Maker, agrees, container, gone, pod, printed};
use tessera_e2e::product::{Artefacts, Profile};
use tessera_e2e::stage::{Plan, Stage, annotation, wait_for};
use tessera_testcluster::{Cluster, Progress};

const NS: &str = "default";

type Boxed<'s> = Pin<Box<dyn Future<Output = Result<()>> + 's>>;

fn main() -> ExitCode {
    if let Err(reason) = tessera_testcluster::available() {
        return harness::skip("mixed_cluster", &reason);
    }
    if std::env::var_os("TESSERA_NO_CLUSTER").is_some() {
        return harness::skip("mixed_cluster", "left out by --no-cluster");
    }
    let runtime = tokio::runtime::Runtime::new().expect("an async runtime");
    match runtime.block_on(all()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("test mixed_cluster ... FAILED\n  {error:#}");
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
        values: json!({ "simulate": { "players": { "heartbeatSeconds": 5 } } }),
        max_pods: 250,
    };
    let progress = Progress::new(|event| println!("  {event}"));
    let stage = Stage::start(&plan, &artefacts, &progress).await?;
    let state = stage.cluster.state_dir().to_path_buf();
    let code = harness::run(
        &stage,
        &[
            ("a_pod_of_each_maker_runs_with_the_cards_it_was_promised", |s| {
                each(s) as Boxed<'_>
            }),
            ("two_makers_in_one_pod_are_bound_at_the_first_attempt", |s| {
                two(s) as Boxed<'_>
            }),
            ("two_makers_in_one_container_get_what_each_promised", |s| {
                one_container(s) as Boxed<'_>
            }),
            ("init_and_sidecar_of_another_maker_get_what_each_promised", |s| {
                init(s) as Boxed<'_>
            }),
            ("a_request_for_any_maker_lands_where_there_is_room", |s| {
                unified(s) as Boxed<'_>
            }),
            ("a_storm_over_all_makers_over_books_nothing", |s| {
                weather(s) as Boxed<'_>
            }),
        ],
    )
    .await;
    stage.cluster.stop().await.context("stopping the cluster")?;
    let left = Cluster::leftovers(&state);
    ensure!(left.is_empty(), "the stopped cluster left behind:\n{left}");
    Ok(code)
}

fn maker(name: &str) -> Result<&'static Maker> {
    MAKERS.iter().find(|maker| maker.name == name).context("no such maker")
}

/// Both locks are free, and the pod was bound without a failed attempt.
async fn clean(stage: &Stage, name: &str) -> Result<()> {
    for maker in MAKERS {
        let Some(key) = maker.lock else { continue };
        wait_for(key, Duration::from_secs(10), async || {
            Ok(mixed::lock(stage, key).await?.is_none())
        })
        .await?;
    }
    let events = stage.events(NS, name).await?;
    ensure!(
        !events
            .iter()
            .any(|(reason, ..)| reason == "BindingFailed" || reason == "FilteringFailed"),
        "{name} was not bound at the first attempt: {events:?}"
    );
    Ok(())
}

fn each(stage: &Stage) -> Boxed<'_> {
    Box::pin(async move {
        for maker in MAKERS {
            stage
                .create(
                    NS,
                    &pod(maker.name, &json!({}), &[], &[container("c", maker.ask, true)]),
                )
                .await?;
            let running = stage.running(NS, maker.name).await?;
            let seen = printed(stage, NS, maker.name, "c").await?;
            agrees(stage, maker, &running, 0, &seen).await?;
            clean(stage, maker.name).await?;
        }
        let ask = [("nvidia.com/gpu", "1"), ("nvidia.com/gpumem", "3000")];
        stage
            .create(NS, &pod("nvidia", &json!({}), &[], &[container("c", &ask, true)]))
            .await?;
        stage.running(NS, "nvidia").await?;
        mixed::never_over(stage).await?;
        gone(stage, NS).await
    })
}

fn two(stage: &Stage) -> Boxed<'_> {
    Box::pin(async move {
        let (hygon, mlu) = (maker("hygon")?, maker("cambricon")?);
        let app = [container("a", hygon.ask, true), container("b", mlu.ask, true)];
        stage.create(NS, &pod("two", &json!({}), &[], &app)).await?;
        let running = stage.running(NS, "two").await?;
        agrees(stage, hygon, &running, 0, &printed(stage, NS, "two", "a").await?).await?;
        agrees(stage, mlu, &running, 1, &printed(stage, NS, "two", "b").await?).await?;
        clean(stage, "two").await?;
        gone(stage, NS).await
    })
}

fn one_container(stage: &Stage) -> Boxed<'_> {
    Box::pin(async move {
        let (ascend, intel) = (maker("ascend")?, maker("intel")?);
        let both: Vec<(&str, &str)> = ascend.ask.iter().chain(intel.ask).copied().collect();
        stage
            .create(NS, &pod("both", &json!({}), &[], &[container("c", &both, true)]))
            .await?;
        let running = stage.running(NS, "both").await?;
        let seen = printed(stage, NS, "both", "c").await?;
        agrees(stage, ascend, &running, 0, &seen).await?;
        agrees(stage, intel, &running, 0, &seen).await?;
        clean(stage, "both").await?;
        gone(stage, NS).await
    })
}

fn init(stage: &Stage) -> Boxed<'_> {
    Box::pin(async move {
        let (metax, ascend) = (maker("metax")?, maker("ascend")?);
        let mut sidecar = container("side", metax.ask, true);
        sidecar["restartPolicy"] = json!("Always");
        let init = [container("first", ascend.ask, false), sidecar];
        let nvidia = [("nvidia.com/gpu", "1"), ("nvidia.com/gpumem", "3000")];
        stage
            .create(
                NS,
                &pod("layers", &json!({}), &init, &[container("main", &nvidia, true)]),
            )
            .await?;
        let running = stage.running(NS, "layers").await?;
        agrees(
            stage,
            ascend,
            &running,
            0,
            &printed(stage, NS, "layers", "first").await?,
        )
        .await?;
        agrees(stage, metax, &running, 1, &printed(stage, NS, "layers", "side").await?).await?;
        ensure!(
            annotation(&running, "hami.io/vgpu-devices-allocated").is_some(),
            "no NVIDIA card was promised"
        );
        clean(stage, "layers").await?;
        gone(stage, NS).await
    })
}

fn unified(stage: &Stage) -> Boxed<'_> {
    Box::pin(async move {
        // More memory than any card but Hygon's and MetaX' has, and the image takes Intel and Hygon only.
        let ask = [("tessera.dev/gpu", "1"), ("tessera.dev/memory", "40Gi")];
        let annotations = json!({ "tessera.dev/vendors": "IntelGPU,DCU" });
        stage
            .create(NS, &pod("any", &annotations, &[], &[container("c", &ask, true)]))
            .await?;
        let running = stage.running(NS, "any").await?;
        let hygon = maker("hygon")?;
        agrees(stage, hygon, &running, 0, &printed(stage, NS, "any", "c").await?).await?;
        ensure!(
            annotation(&running, "tessera.dev/translated").is_some(),
            "the pod does not say what its request became"
        );
        gone(stage, NS).await
    })
}

fn weather(stage: &Stage) -> Boxed<'_> {
    Box::pin(async move {
        let seen = mixed::storm(stage, NS, 60, 7).await?;
        println!("  {seen}");
        Ok(())
    })
}
