//! Shares of a card's time and priorities in pods of a real one-node Kubernetes.
//!
//! The cards' clock is the host's here, as in use. What is judged is the work that pods got done and delays by the
//! driver's events, not how fast the host is.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a test runner")]

use std::future::Future;
use std::pin::Pin;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kube::api::{DeleteParams, ListParams, LogParams};
use serde_json::{Value, json};
use tessera_e2e::product::{self, Artefacts, Profile};
use tessera_e2e::stage::{Plan, Stage, wait_for};
use tessera_e2e::{harness, load};
use tessera_testcluster::{Cluster, Progress};

const CARDS: &str = "cards:\n  - {model: A100-SXM4-40GB, count: 1}\n";
const NS: &str = "default";

/// Length of a kernel of a pod that is always busy, in microseconds. Two are on the card at a time, so a process that is
/// woken late on a busy host loses the same part of a turn with a large share as with a small one.
const KERNEL_US: u64 = 7000;
/// How long work is counted.
const SPAN: Duration = Duration::from_secs(15);

type Boxed<'s> = Pin<Box<dyn Future<Output = Result<()>> + 's>>;

fn main() -> ExitCode {
    if let Err(reason) = tessera_testcluster::available() {
        return harness::skip("shares_cluster", &reason);
    }
    if std::env::var_os("TESSERA_NO_CLUSTER").is_some() {
        return harness::skip("shares_cluster", "left out by --no-cluster");
    }
    let runtime = tokio::runtime::Runtime::new().expect("an async runtime");
    match runtime.block_on(all()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("test shares_cluster ... FAILED\n  {error:#}");
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
        max_pods: 110,
    };
    let progress = Progress::new(|event| println!("  {event}"));
    let stage = Stage::start(&plan, &artefacts, &progress).await?;
    let state = stage.cluster.state_dir().to_path_buf();
    let code = harness::run(
        &stage,
        &[
            ("thirty_and_seventy_get_thirty_and_seventy_of_the_work", |s| {
                weights(s) as Boxed<'_>
            }),
            ("an_important_pod_keeps_its_delay_beside_a_saturating_one", |s| {
                important(s) as Boxed<'_>
            }),
        ],
    )
    .await;
    stage.cluster.stop().await.context("stopping the cluster")?;
    let left = Cluster::leftovers(&state);
    ensure!(left.is_empty(), "the stopped cluster left behind:\n{left}");
    Ok(code)
}

/// A pod with a part of the card that does this work.
fn pod(name: &str, words: &[&str], limits: &[(&str, &str)]) -> Value {
    let mut command = vec!["/opt/sample/share-probe"];
    command.extend(words);
    let mut all = vec![("nvidia.com/gpu", "1"), ("nvidia.com/gpumem", "4000")];
    all.extend(limits);
    let limits: serde_json::Map<String, Value> = all.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
        "spec": {
            "restartPolicy": "Never", "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "main", "image": product::SAMPLE_IMAGE, "imagePullPolicy": "Never",
                "command": command, "resources": { "limits": limits },
            }],
        },
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

/// The objects that a pod printed so far.
async fn said(stage: &Stage, name: &str) -> Result<Vec<Value>> {
    let log = stage.pods(NS).logs(name, &LogParams::default()).await?;
    let lines: Vec<Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    if let Some(error) = lines.iter().find_map(|line| line.get("error")) {
        anyhow::bail!("{name}: {error}");
    }
    Ok(lines)
}

/// Work of pods that are always busy, in 1/10 of a percent of the card's time, over [`SPAN`] in which all of them ran.
async fn parts(stage: &Stage, names: &[&str]) -> Result<Vec<f64>> {
    let mut from = 0;
    let begin = Instant::now();
    loop {
        ensure!(
            begin.elapsed() < SPAN + Duration::from_secs(90),
            "pods told nothing of their work for too long"
        );
        let mut all = Vec::new();
        for name in names {
            let counts: Vec<(u64, u64)> = said(stage, name).await?.iter().filter_map(load::count).collect();
            all.push(counts);
        }
        if from == 0 {
            // A second behind the first word of the last of them.
            let first: Option<Vec<u64>> = all.iter().map(|c| c.first().map(|(at, _)| *at)).collect();
            from = first
                .and_then(|first| first.into_iter().max())
                .map_or(0, |at| at + 1_000_000_000);
        }
        let until = from + u64::try_from(SPAN.as_nanos())?;
        let done = from != 0 && all.iter().all(|c| c.last().is_some_and(|(at, _)| *at > until));
        if done {
            return all
                .iter()
                .map(|counts| load::part(counts, from, until).context("no figures in the span"))
                .collect();
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

fn weights(stage: &Stage) -> Boxed<'_> {
    Box::pin(async move {
        let kernel = KERNEL_US.to_string();
        for (name, cores) in [("thirty", "30"), ("seventy", "70")] {
            let limits = [("nvidia.com/gpucores", cores)];
            stage.create(NS, &pod(name, &["busy", &kernel], &limits)).await?;
        }
        for name in ["thirty", "seventy"] {
            stage.running(NS, name).await?;
        }
        let got = parts(stage, &["thirty", "seventy"]).await?;
        let total: f64 = got.iter().sum();
        let share: Vec<f64> = got.iter().map(|part| part / total * 100.0).collect();
        println!(
            "  of the work: {:.1} and {:.1} percent; the card was busy {total:.1} percent of the time",
            share[0], share[1]
        );
        clear(stage).await?;
        ensure!((share[0] - 30.0).abs() <= 3.0, "30 and 70 got {share:?}");
        Ok(())
    })
}

/// The next line of delays that begins after now.
async fn delays(stage: &Stage, name: &str) -> Result<Value> {
    let before = said(stage, name).await?.len();
    let mut found = None;
    wait_for("two more lines of delays", Duration::from_secs(90), async || {
        // The first of them began before.
        found = said(stage, name).await?.get(before + 1).cloned();
        Ok(found.is_some())
    })
    .await?;
    found.context("no line")
}

fn important(stage: &Stage) -> Boxed<'_> {
    Box::pin(async move {
        // Two kernels of 2 ms, a tenth of the time; beside it, kernels of 100 us without a pause.
        let words = ["paced", "2000", "36000", "100"];
        stage
            .create(NS, &pod("important", &words, &[("nvidia.com/priority", "0")]))
            .await?;
        stage.running(NS, "important").await?;
        let alone = delays(stage, "important").await?;
        let effort = pod("effort", &["busy", "100"], &[("nvidia.com/priority", "1")]);
        stage.create(NS, &effort).await?;
        stage.running(NS, "effort").await?;
        wait_for("work of the other", Duration::from_secs(30), async || {
            Ok(!said(stage, "effort").await?.is_empty())
        })
        .await?;
        let beside = delays(stage, "important").await?;
        let part = parts(stage, &["effort"]).await?;
        clear(stage).await?;
        let kernel = 2000.0;
        let ratio = |name: &str| {
            let of = |line: &Value| line["ahead"][name].as_f64().unwrap_or(f64::NAN) + kernel;
            of(&beside) / of(&alone)
        };
        let (middle, most) = (ratio("p50_us"), ratio("p90_us"));
        println!("  alone {alone}\n  beside {beside}");
        println!(
            "  delay of a kernel of 2 ms grew {middle:.2} times in the middle, {most:.2} at nine of ten; best effort got \
             {:.1} percent of the card",
            part[0]
        );
        // Without priorities it would wait for turns of 5 ms.
        ensure!(middle <= 1.5, "half of the delays grew {middle:.2} times");
        ensure!(part[0] >= 5.0, "best effort got {part:?}");
        Ok(())
    })
}
