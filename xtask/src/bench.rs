//! `cargo xtask bench`: the figures of docs/benchmarks, measured again on this machine.

use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tessera_e2e::interrupt::{Ended, until_signal};
use tessera_e2e::processes::{self, Used};
use tessera_e2e::product::{self, Artefacts, Profile};
use tessera_e2e::stage::{Plan, Stage};
use tessera_e2e::storm;
use tessera_testcluster::Progress;

use crate::tool;

/// Decisions counted; the difference to a run with fewer is theirs.
const DECISIONS: u64 = 2000;
/// Decisions of which the first of a shape, which ask every node, are part.
const FIRST: u64 = 200;
/// Decisions counted where each one asks every node.
const COLD: u64 = 200;

pub(crate) fn run() -> Result<ExitCode> {
    let artefacts = Artefacts::build(Profile::Release)?;
    tool::say("## Decision: instructions, nodes x 8 cards, 2 pods a node (callgrind)");
    tool::run(
        "building the example",
        tool::cargo().args([
            "build",
            "--release",
            "--quiet",
            "-p",
            "tessera-engine",
            "--example",
            "decide_cost",
        ]),
    )?;
    for nodes in [1000, 10_000] {
        let count = |decisions| instructions(decisions, "warm", nodes, "nvidia");
        let per_call = count(FIRST + DECISIONS)?.saturating_sub(count(FIRST)?) / DECISIONS;
        tool::say(&format!("warm, {nodes} nodes: {per_call} instructions a decision"));
    }
    for classes in ["nvidia", "every"] {
        let warm = |decisions| instructions(decisions, "warm", 1000, classes);
        let cold = |decisions| instructions(decisions, "cold", 1000, classes);
        let warm = warm(FIRST + DECISIONS)?.saturating_sub(warm(FIRST)?) / DECISIONS;
        let cold = cold(COLD)?.saturating_sub(cold(0)?) / COLD;
        tool::say(&format!(
            "1000 nodes, classes served: {classes}: warm {warm}, cold {cold} instructions a decision"
        ));
    }
    tool::say("## Decision: time and memory, eight shapes in turn, one node changed between two");
    for nodes in [5000_u32, 10_000] {
        let mut command = Command::new(product::root().join("target/release/examples/decide_cost"));
        let size = [nodes.to_string(), (nodes * 20).to_string()];
        tool::run("decide_cost", command.args(["2000", "times"]).args(size))?;
    }
    tool::say("## Extender over HTTP on loopback, same size");
    for mode in ["one", "all"] {
        let mut command = Command::new(product::root().join("target/release/scheduler-bench"));
        tool::run(mode, command.args(["--mode", mode]))?;
    }
    tool::say("## Shim: added instructions and nanoseconds a call");
    let mut command = Command::new(product::root().join("target/release/shim-cost"));
    tool::run("shim-cost", command.arg("--library").arg(&artefacts.shim))?;
    tool::say("## Node agent and scheduler on a real node, 8 simulated cards");
    let ended = tokio::runtime::Runtime::new()
        .context("starting the async runtime")?
        .block_on(until_signal(node(&artefacts)))?;
    match ended {
        Ended::Done(figures) => {
            tool::say(&serde_json::to_string_pretty(&figures)?);
            Ok(ExitCode::SUCCESS)
        }
        Ended::Interrupted(code) => Ok(code),
    }
}

fn instructions(decisions: u64, mode: &str, nodes: u32, classes: &str) -> Result<u64> {
    let out = product::root().join("target/callgrind.decide");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", &format!("--callgrind-out-file={}", out.display())])
        .arg(product::root().join("target/release/examples/decide_cost"))
        .args([
            &decisions.to_string(),
            mode,
            &nodes.to_string(),
            &(nodes * 2).to_string(),
            classes,
        ])
        .output()
        .context("starting valgrind (Debian package valgrind)")?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "valgrind: {text}");
    text.lines()
        .find_map(|line| line.split("Collected :").nth(1)?.trim().parse().ok())
        .with_context(|| format!("callgrind printed no count: {text}"))
}

async fn node(artefacts: &Artefacts) -> Result<Value> {
    let plan = Plan {
        cards: Some("cards:\n  - {model: A100-SXM4-40GB, count: 8}\n".to_owned()),
        state: None,
        detached: false,
        values: json!({}),
        max_pods: 110,
    };
    let stage = Stage::start(&plan, artefacts, &Progress::silent()).await?;
    let figures = figures(&stage).await;
    stage.cluster.stop().await.context("stopping the cluster")?;
    figures
}

async fn figures(stage: &Stage) -> Result<Value> {
    for number in 0..8 {
        let ask = json!({ "nvidia.com/gpu": 1, "nvidia.com/gpumem": 1000 });
        stage
            .create(
                "default",
                &storm::probe_pod(&format!("held-{number}"), &[ask], true, &json!({})),
            )
            .await?;
    }
    for number in 0..8 {
        stage.running("default", &format!("held-{number}")).await?;
    }
    let before = (process("agent")?, process("scheduler")?);
    let mark = stage.cluster.audit().mark();
    let idle = Duration::from_secs(60);
    // The quiet itself is what is measured.
    tokio::time::sleep(idle).await;
    let after = (process("agent")?, process("scheduler")?);
    let ours = format!("system:serviceaccount:{}:", product::NAMESPACE);
    let writes = stage.cluster.audit().count_since(mark, |event| {
        event.is_write()
            && event.user.username.starts_with(&ours)
            && event
                .object_ref
                .as_ref()
                .is_none_or(|object| object.resource != "leases")
    })?;
    let figure = |before: &Used, after: &Used| json!({ "rss_mib": after.rss_kib / 1024, "cpu_ms_in_60_s_idle": after.cpu_ms - before.cpu_ms });
    Ok(json!({
        "pods": 8,
        "agent": figure(&before.0, &after.0),
        "scheduler": figure(&before.1, &after.1),
        "api_writes_in_60_s_idle_leases_apart": writes,
    }))
}

/// The processes `tessera <subcommand>` together: the service and the one that starts it again.
fn process(subcommand: &str) -> Result<Used> {
    pids(subcommand)?.into_iter().map(processes::used).sum()
}

fn pids(subcommand: &str) -> Result<Vec<u32>> {
    let is_ours = |command: &[u8]| {
        let mut words = command.split(|byte| *byte == 0);
        words.next().is_some_and(|program| program.ends_with(b"/tessera"))
            && words.next() == Some(subcommand.as_bytes())
    };
    let pids: Vec<u32> = std::fs::read_dir("/proc")
        .context("reading /proc")?
        .flatten()
        .filter(|entry| std::fs::read(entry.path().join("cmdline")).is_ok_and(|command| is_ours(&command)))
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    ensure!(!pids.is_empty(), "no process `tessera {subcommand}`");
    Ok(pids)
}
