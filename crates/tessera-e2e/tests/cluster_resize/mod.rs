//! Live resize of a pod that runs: an annotation, and what the program in the pod sees.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use kube::api::{LogParams, Patch, PatchParams};
use serde_json::{Value, json};
use tessera_e2e::product;
use tessera_e2e::stage::{ALLOCATED, Stage, annotation, wait_for};
use tessera_e2e::storm::{Whom, kill_ours};

const NS: &str = "default";
const POD: &str = "grows";
const RESIZE: &str = "tessera.dev/resize";
const POLICY: &str = "tessera.dev/resize-policy";
const STATUS: &str = "tessera.dev/resize-status";

/// Holds 3 GiB and prints whenever one of the two interfaces shows another total; frees it at a signal, and then tries
/// to have 3 GiB again.
const WATCHER: &str = r#"
import ctypes, json, signal, time, pynvml
cuda = ctypes.CDLL("libcuda.so.1")
def call(name, *args):
    code = getattr(cuda, name)(*args)
    assert code == 0, (name, code)
call("cuInit", 0)
context = ctypes.c_void_p()
call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
call("cuCtxSetCurrent", context)
memory = ctypes.c_uint64()
size = ctypes.c_size_t(3 << 30)
call("cuMemAlloc_v2", ctypes.byref(memory), size)
freed = []
signal.signal(signal.SIGUSR1, lambda *_: freed.append(True))
pynvml.nvmlInit()
card = pynvml.nvmlDeviceGetHandleByIndex(0)
seen = None
while True:
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    now = {"nvml": pynvml.nvmlDeviceGetMemoryInfo(card).total >> 20, "cuda": total.value >> 20}
    if now != seen:
        seen = now
        print(json.dumps({**now, "at": time.time()}), flush=True)
    if freed:
        freed.clear()
        call("cuMemFree_v2", memory)
    time.sleep(0.02)
"#;

/// What the pod has printed: one line for each change.
async fn lines(stage: &Stage) -> Result<Vec<Value>> {
    let log = stage.pods(NS).logs(POD, &LogParams::default()).await?;
    Ok(log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// When both interfaces showed this total, in seconds since 1970; waited for.
async fn shows(stage: &Stage, mib: u64) -> Result<f64> {
    let mut found = None;
    wait_for(&format!("{mib} MiB in the pod"), Duration::from_secs(60), async || {
        let last = lines(stage).await?.into_iter().next_back();
        found = last.filter(|line| line["nvml"] == json!(mib) && line["cuda"] == json!(mib));
        Ok(found.is_some())
    })
    .await
    .with_context(|| format!("the pod printed {:?}", found))?;
    found
        .and_then(|line| line["at"].as_f64())
        .context("a line without its time")
}

async fn wish(stage: &Stage, wish: Value, policy: Option<&str>) -> Result<f64> {
    let body = json!({"metadata": {"annotations": {RESIZE: wish.to_string(), POLICY: policy}}});
    stage
        .pods(NS)
        .patch_metadata(POD, &PatchParams::default(), &Patch::Merge(&body))
        .await?;
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64())
}

/// Waits for the last wish to be in this state; the message.
async fn status(stage: &Stage, state: &str, wish: &Value) -> Result<String> {
    let mut last = String::new();
    wait_for(
        &format!("state {state} of {wish}"),
        Duration::from_secs(60),
        async || {
            let pod = stage.pods(NS).get(POD).await?;
            last = annotation(&pod, STATUS).unwrap_or_default().to_owned();
            let status: Value = serde_json::from_str(&last).unwrap_or_default();
            Ok(status["state"] == json!(state) && status["request"] == json!(wish.to_string()))
        },
    )
    .await
    .with_context(|| format!("the status was {last}"))?;
    let status: Value = serde_json::from_str(&last)?;
    Ok(status["message"].as_str().unwrap_or_default().to_owned())
}

async fn booked(stage: &Stage) -> Result<String> {
    let pod = stage.pods(NS).get(POD).await?;
    let text = annotation(&pod, ALLOCATED).unwrap_or_default();
    // Without the card, which the scheduler chose.
    Ok(text.split_once(',').map_or("", |(_, amounts)| amounts).to_owned())
}

async fn told(stage: &Stage, reason: &str, words: &str) -> Result<()> {
    wait_for(
        &format!("event {reason}: {words}"),
        Duration::from_secs(20),
        async || {
            let events = stage.events(NS, POD).await?;
            Ok(events
                .iter()
                .any(|(r, message, _)| r == reason && message.contains(words)))
        },
    )
    .await
}

pub(crate) async fn resize(stage: &Stage) -> Result<()> {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": POD },
        "spec": { "terminationGracePeriodSeconds": 1, "containers": [{
            "name": "main", "image": product::SAMPLE_IMAGE, "imagePullPolicy": "Never",
            "command": ["python3", "-c", WATCHER],
            "resources": { "limits": {
                "nvidia.com/gpu": "1", "nvidia.com/gpumem": "4096", "nvidia.com/gpucores": "30",
            } },
        }] },
    });
    stage.create(NS, &pod).await?;
    stage.running(NS, POD).await?;
    shows(stage, 4096).await?;

    let larger = json!({"main": {"memory": "8Gi", "cores": 40}});
    let asked = wish(stage, larger.clone(), None).await?;
    let took = shows(stage, 8192).await? - asked;
    println!("  8192 MiB were seen in the pod {took:.3} s after the annotation");
    ensure!(
        took < 1.0,
        "the program saw its new share {took} s after the annotation"
    );
    status(stage, "applied", &larger).await?;
    ensure!(
        booked(stage).await? == "NVIDIA,8192,40:;",
        "booked: {}",
        booked(stage).await?
    );
    told(stage, "Resized", "8192 MiB, 40 % of the time").await?;

    let below = json!({"main": {"memory": "2Gi"}});
    wish(stage, below.clone(), None).await?;
    let why = status(stage, "refused", &below).await?;
    ensure!(
        why.contains("holds 3072 MiB") && why.contains(POLICY),
        "refused with: {why}"
    );
    told(stage, "ResizeRefused", "holds 3072 MiB").await?;
    ensure!(
        booked(stage).await? == "NVIDIA,8192,40:;",
        "booked: {}",
        booked(stage).await?
    );

    let typo = wish(stage, json!({"mian": {"memory": "2Gi"}}), None).await;
    let said = typo.err().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(said.contains("container `mian`"), "a wish for no container: {said:?}");

    wish(stage, below.clone(), Some("wait")).await?;
    status(stage, "waiting", &below).await?;
    // Nothing that is under way is lost with either of the two.
    ensure!(
        kill_ours(stage, "scheduler", Whom::Worker).await? > 0,
        "no scheduler to kill"
    );
    ensure!(kill_ours(stage, "agent", Whom::Worker).await? > 0, "no agent to kill");
    stage.kubectl(&["exec", POD, "--", "python3", "-c", "import os; os.kill(1, 10)"])?;
    status(stage, "applied", &below).await?;
    shows(stage, 2048).await?;
    ensure!(
        booked(stage).await? == "NVIDIA,2048,40:;",
        "booked: {}",
        booked(stage).await?
    );

    let again = json!({"main": {"memory": "9Gi", "priority": 0}});
    wish(stage, again.clone(), None).await?;
    kill_ours(stage, "scheduler", Whom::Worker).await?;
    status(stage, "applied", &again).await?;
    shows(stage, 9216).await?;
    ensure!(
        booked(stage).await? == "NVIDIA,9216,40:;",
        "booked: {}",
        booked(stage).await?
    );
    stage.delete(NS, POD).await
}
