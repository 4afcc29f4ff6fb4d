//! `cargo xtask packing`: the packing experiment on the openb trace, checked against its published decisions.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use tessera_packing::{Cluster, Fragmentation, Models, Node, Policy, Request, WHOLE, Weights, Workload};
use tessera_packing::{openb, replay};

use crate::tool;

mod plot;

/// The traces with published results.
const TRACES: [&str; 17] = [
    "default",
    "cpu050",
    "cpu100",
    "cpu200",
    "cpu250",
    "gpushare40",
    "gpushare60",
    "gpushare80",
    "gpushare100",
    "multigpu20",
    "multigpu30",
    "multigpu40",
    "multigpu50",
    "gpuspec10",
    "gpuspec20",
    "gpuspec25",
    "gpuspec33",
];
/// The traces without published results; arrivals in an order of our own but for `gpuspec05`, which has the requests of
/// `default`.
const UNPUBLISHED: [&str; 6] = ["cpu037", "cpu072", "cpu235", "cpu300", "gpushare20", "gpuspec05"];
/// Seeds that the weights of `tessera` were chosen on.
const TUNING: std::ops::RangeInclusive<u32> = 42..=46;
/// Seeds that results are reported on.
const REPORT: std::ops::RangeInclusive<u32> = 47..=51;
/// Where the data lies, from the root of the repository.
const DATA: &str = "data/openb";

#[derive(Debug, Default, Args)]
pub(crate) struct PackingArgs {
    /// FGD on every trace with one seed: the decisions must equal the published ones. Then `tessera` against its floors.
    #[arg(long)]
    check: bool,
    /// FGD and BestFit on every trace with all ten seeds.
    #[arg(long)]
    all: bool,
    /// `tessera`, FGD, the model of HAMi and the bound for each trace, mean of the seeds 47 to 51.
    #[arg(long)]
    table: bool,
    /// The same as `--table`, on the seeds 42 to 46 that weights are chosen on.
    #[arg(long)]
    tune: bool,
    /// As `--table`, of the variants of the trace that have no published results.
    #[arg(long)]
    others: bool,
    /// Weights of `tessera` for `--tune`, as JSON: fragmentation, stranded, surplus, cpu, cards, price, dearest.
    #[arg(long, requires = "tune")]
    weights: Option<String>,
    /// Decisions a second on one core, mean over the 17 traces.
    #[arg(long)]
    speed: bool,
    /// Draw the allocation curves of one trace to this file.
    #[arg(long, value_name = "FILE")]
    plot: Option<std::path::PathBuf>,
    /// The trace that is drawn.
    #[arg(long, default_value = "default", requires = "plot")]
    trace: String,
    /// Answer as JSON.
    #[arg(long)]
    json: bool,
}

/// A policy by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Name {
    Fgd,
    BestFit,
    Hami,
    Tessera,
}

impl Name {
    /// As `reference/runs.csv` writes it.
    fn published(self) -> &'static str {
        match self {
            Self::Fgd => "FGD",
            Self::BestFit => "BestFit",
            Self::Hami => "HAMi (modelled)",
            Self::Tessera => "tessera",
        }
    }
}

/// One trace, read once.
struct Trace {
    pods: Vec<Request>,
    workload: Workload,
    /// `None`: an order of our own.
    order: Option<Order>,
}

/// Published orders of arrival and ranks of nodes, a column for each seed.
struct Order {
    name: &'static str,
    arrivals: String,
    ranks: String,
}

impl Order {
    fn load(name: &'static str) -> Result<Self> {
        Ok(Self {
            name,
            arrivals: read(&format!("orders/arrivals_{name}.csv"))?,
            ranks: read(&format!("orders/noderank_{name}.csv"))?,
        })
    }
}

struct Data {
    nodes: Vec<Node>,
    models: Models,
    capacity: u32,
    traces: BTreeMap<&'static str, Trace>,
}

/// One replay to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Job {
    trace: &'static str,
    policy: Name,
    seed: u32,
}

/// Weights with the members that `text` has.
fn weights(text: Option<&str>) -> Result<Weights> {
    let given: Value = serde_json::from_str(text.unwrap_or("{}")).context("reading --weights")?;
    let pick = |name: &str, or: f64| given[name].as_f64().unwrap_or(or);
    let or = Weights::default();
    Ok(Weights {
        fragmentation: pick("fragmentation", or.fragmentation),
        stranded: pick("stranded", or.stranded),
        surplus: pick("surplus", or.surplus),
        cpu: pick("cpu", or.cpu),
        cards: pick("cards", or.cards),
        price: pick("price", or.price),
        dearest: pick("dearest", or.dearest),
    })
}

fn read(name: &str) -> Result<String> {
    let path = tool::root().join(DATA).join(name);
    std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

impl Data {
    fn load() -> Result<Self> {
        let file = "openb_node_list_gpu_node.csv";
        let (nodes, models) = openb::nodes(file, &read(file)?)?;
        let mut traces = BTreeMap::new();
        for trace in TRACES.into_iter().chain(UNPUBLISHED) {
            let file = format!("openb_pod_list_{trace}.csv");
            let (pods, workload) = openb::pods(&file, &read(&file)?, &models)?;
            let order = match trace {
                _ if trace.starts_with("gpuspec") => Some(Order::load("default")?),
                _ if UNPUBLISHED.contains(&trace) => None,
                _ => Some(Order::load(trace)?),
            };
            traces.insert(trace, Trace { pods, workload, order });
        }
        Ok(Self {
            capacity: nodes.iter().map(|node| u32::from(node.cards) * WHOLE).sum(),
            nodes,
            models,
            traces,
        })
    }

    /// One replay, and the time of its decisions.
    fn replay(&self, job: Job, weights: Weights) -> Result<(replay::Outcome, Duration)> {
        let trace = self
            .traces
            .get(job.trace)
            .ok_or_else(|| anyhow!("no trace {}; there are: {}", job.trace, TRACES.join(", ")))?;
        let (arrivals, rank) = match &trace.order {
            Some(Order { name, arrivals, ranks }) => (
                openb::seed_column(&format!("arrivals_{name}.csv"), arrivals, job.seed)?,
                openb::seed_column(&format!("noderank_{name}.csv"), ranks, job.seed)?,
            ),
            None => (
                openb::own_order(&trace.pods, u64::from(self.capacity) * 13 / 10, u64::from(job.seed)),
                openb::own_ranks(self.nodes.len(), u64::from(job.seed)),
            ),
        };
        let mut sequence = Vec::with_capacity(arrivals.len());
        for row in arrivals {
            let pod = usize::try_from(row).ok().and_then(|row| trace.pods.get(row));
            sequence.push(pod.with_context(|| format!("{}: an arrival names pod row {row}", job.trace))?);
        }
        let policy = match job.policy {
            Name::Fgd => Policy::Fgd,
            Name::BestFit => Policy::BestFit,
            Name::Hami => Policy::Hami,
            Name::Tessera => Policy::Tessera(weights),
        };
        let typical = Fragmentation::new(trace.workload.typical(&self.models));
        let mut cluster = Cluster::new(&self.nodes, &rank, typical, policy);
        let start = Instant::now();
        let outcome = replay::run(&mut cluster, self.capacity, sequence.into_iter());
        Ok((outcome, start.elapsed()))
    }

    /// All replays, on every core.
    fn replay_all(&self, jobs: &[Job], weights: Weights) -> Result<BTreeMap<Job, replay::Outcome>> {
        let next = AtomicUsize::new(0);
        let done = Mutex::new(Ok(BTreeMap::new()));
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            for _ in 0..cores {
                scope.spawn(|| {
                    while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let outcome = self.replay(*job, weights);
                        let Ok(mut done) = done.lock() else { return };
                        match (outcome, done.as_mut()) {
                            (Ok((outcome, _)), Ok(map)) => drop(map.insert(*job, outcome)),
                            (Err(error), Ok(_)) => *done = Err(error),
                            (_, Err(_)) => return,
                        }
                    }
                });
            }
        });
        done.into_inner().map_err(|_| anyhow!("a replay ended early"))?
    }
}

/// What `cargo xtask check` runs: every trace with one seed, against the published decisions and our floors.
pub(crate) fn check() -> Result<()> {
    let args = PackingArgs {
        check: true,
        ..PackingArgs::default()
    };
    let code = run(&args)?;
    anyhow::ensure!(
        code == ExitCode::SUCCESS,
        "see above; `cargo xtask packing --check` repeats it"
    );
    Ok(())
}

pub(crate) fn run(args: &PackingArgs) -> Result<ExitCode> {
    let data = Data::load()?;
    let weights = weights(args.weights.as_deref())?;
    if let Some(file) = &args.plot {
        return draw(&data, &args.trace, file, weights);
    }
    if args.speed {
        return speed(&data, weights);
    }
    let mut answer = json!({});
    let mut passed = true;
    if args.check || args.all {
        passed &= published(&data, args.all, weights, &mut answer)?;
    }
    if args.others {
        others(&data, weights, &mut answer)?;
    }
    if args.check || args.table || args.tune {
        passed &= points(&data, args, weights, &mut answer)?;
    }
    if answer == json!({}) {
        bail!("nothing to do; add --check, --all, --table, --others, --tune, --speed or --plot FILE");
    }
    if args.json {
        tool::say(&serde_json::to_string_pretty(&answer)?);
    }
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn jobs(traces: &[&'static str], policies: &[Name], seeds: std::ops::RangeInclusive<u32>) -> Vec<Job> {
    let mut jobs = Vec::new();
    for trace in traces {
        for policy in policies {
            jobs.extend(seeds.clone().map(|seed| Job {
                trace,
                policy: *policy,
                seed,
            }));
        }
    }
    jobs
}

/// Decision hashes against `reference/runs.csv`.
fn published(data: &Data, all: bool, weights: Weights, answer: &mut Value) -> Result<bool> {
    let wanted = if all {
        jobs(&TRACES, &[Name::Fgd, Name::BestFit], 42..=51)
    } else {
        jobs(&TRACES, &[Name::Fgd], 42..=42)
    };
    let outcomes = data.replay_all(&wanted, weights)?;
    let runs = read("reference/runs.csv")?;
    let mut differing = Vec::new();
    for (job, outcome) in &outcomes {
        let start = format!("{},{},{},", job.trace, job.policy.published(), job.seed);
        let line = runs
            .lines()
            .find(|line| line.starts_with(&start))
            .with_context(|| format!("reference/runs.csv has no line {start}"))?;
        let ours = format!(
            "{start}{},{},{},{},{:.3},{:016x}",
            outcome.arrivals, outcome.failed, outcome.arrived, outcome.used, outcome.fragmentation, outcome.hash
        );
        if ours != line {
            differing.push(json!({"ours": ours, "published": line}));
        }
    }
    tool::say(&format!(
        "{} of {} runs decide as published, bit for bit",
        outcomes.len() - differing.len(),
        outcomes.len()
    ));
    for pair in &differing {
        tool::say(&format!(
            "  published {}\n  ours      {}",
            pair["published"], pair["ours"]
        ));
    }
    let passed = differing.is_empty();
    answer["published"] = json!({"runs": outcomes.len(), "differing": differing});
    Ok(passed)
}

/// Mean allocation over seeds.
fn mean(
    outcomes: &BTreeMap<Job, replay::Outcome>,
    seeds: &std::ops::RangeInclusive<u32>,
    trace: &'static str,
    policy: Name,
    at: usize,
) -> Result<f64> {
    let mut sum = 0.0;
    for seed in seeds.clone() {
        let outcome = outcomes.get(&Job { trace, policy, seed });
        sum += outcome
            .and_then(|outcome| outcome.allocation_at(at))
            .with_context(|| format!("{trace}, seed {seed}: no point at {at} %"))?;
    }
    Ok(sum / seeds.clone().count() as f64)
}

/// The traces without published results: ours, FGD as we replay it, and the model of HAMi.
fn others(data: &Data, weights: Weights, answer: &mut Value) -> Result<()> {
    let policies = [Name::Tessera, Name::Fgd, Name::Hami];
    let outcomes = data.replay_all(&jobs(&UNPUBLISHED, &policies, REPORT), weights)?;
    tool::say("| trace | tessera at 100 % | FGD | HAMi, modelled | tessera at 130 % | FGD | HAMi, modelled |");
    tool::say("|---|---|---|---|---|---|---|");
    let mut rows = Vec::new();
    for trace in UNPUBLISHED {
        let mut cells = Vec::new();
        for at in [100, 130] {
            for policy in policies {
                cells.push(mean(&outcomes, &REPORT, trace, policy, at)?);
            }
        }
        let text: Vec<String> = cells.iter().map(|value| format!("{value:.2}")).collect();
        tool::say(&format!("| {trace} | {} |", text.join(" | ")));
        rows.push(json!({"trace": trace, "points": cells}));
    }
    answer["others"] = json!(rows);
    Ok(())
}

/// `tessera` beside FGD and the bound; with `--check`, against the floors.
fn points(data: &Data, args: &PackingArgs, weights: Weights, answer: &mut Value) -> Result<bool> {
    let seeds = match (args.tune, args.table) {
        (true, _) => TUNING,
        (_, true) => REPORT,
        _ => 47..=47,
    };
    let outcomes = data.replay_all(
        &jobs(&TRACES, &[Name::Fgd, Name::Hami, Name::Tessera], seeds.clone()),
        weights,
    )?;
    let bounds: Value = serde_json::from_str(&read("reference.json")?).context("reading reference.json")?;
    let floors: Value =
        serde_json::from_str(&read("../packing-floors.json")?).context("reading packing-floors.json")?;
    let say = |text: &str| {
        if !args.json {
            tool::say(text);
        }
    };
    let mean = |trace, policy, at| mean(&outcomes, &seeds, trace, policy, at);
    say(
        "| trace | tessera at 100 % | FGD | HAMi, modelled | bound | gap closed | tessera at 130 % | FGD | HAMi, modelled |",
    );
    say("|---|---|---|---|---|---|---|---|---|");
    let (mut passed, mut closed_sum, mut rows) = (true, 0.0, Vec::new());
    for trace in TRACES {
        let [ours, fgd] = [mean(trace, Name::Tessera, 100)?, mean(trace, Name::Fgd, 100)?];
        let [hami, hami_end] = [mean(trace, Name::Hami, 100)?, mean(trace, Name::Hami, 130)?];
        let [ours_end, fgd_end] = [mean(trace, Name::Tessera, 130)?, mean(trace, Name::Fgd, 130)?];
        let bound = bounds["bounds"]["alloc"][trace]["at_100"]
            .as_f64()
            .with_context(|| format!("reference.json has no bound for {trace}"))?;
        let closed = (ours - fgd) / (bound - fgd);
        closed_sum += closed;
        say(&format!(
            "| {trace} | {ours:.2} | {fgd:.2} | {hami:.2} | {bound:.2} | {:.0} % | {ours_end:.2} | {fgd_end:.2} | {hami_end:.2} |",
            100.0 * closed
        ));
        rows.push(
            json!({"trace": trace, "tessera_100": ours, "fgd_100": fgd, "bound_100": bound,
            "hami_modelled_100": hami, "hami_modelled_130": hami_end, "closed": closed, "tessera_130": ours_end, "fgd_130": fgd_end}),
        );
        if args.check {
            let floor = floors[trace]
                .as_f64()
                .with_context(|| format!("packing-floors.json has no floor for {trace}"))?;
            if ours + 0.005 < floor {
                say(&format!("  {trace}: {ours:.2} is below its floor {floor:.2}"));
                passed = false;
            }
        }
    }
    say(&format!(
        "gap closed on average: {:.1} %",
        100.0 * closed_sum / TRACES.len() as f64
    ));
    answer["points"] = json!({"seeds": seeds.collect::<Vec<_>>(), "traces": rows});
    Ok(passed)
}

/// Decisions a second, one after another on one core.
fn speed(data: &Data, weights: Weights) -> Result<ExitCode> {
    for policy in [Name::Fgd, Name::BestFit, Name::Hami, Name::Tessera] {
        let (mut decisions, mut time) = (0_u32, Duration::ZERO);
        for job in jobs(&TRACES, &[policy], 42..=42) {
            let (outcome, took) = data.replay(job, weights)?;
            decisions += outcome.arrivals;
            time += took;
        }
        tool::say(&format!(
            "{}: {decisions} decisions in {:.2} s: {:.0} a second, {:.1} us each",
            policy.published(),
            time.as_secs_f64(),
            f64::from(decisions) / time.as_secs_f64(),
            1e6 * time.as_secs_f64() / f64::from(decisions)
        ));
    }
    Ok(ExitCode::SUCCESS)
}

fn draw(data: &Data, trace: &str, file: &std::path::Path, weights: Weights) -> Result<ExitCode> {
    let trace = TRACES
        .into_iter()
        .find(|known| *known == trace)
        .with_context(|| format!("no trace {trace}; there are: {}", TRACES.join(", ")))?;
    let mut curves = Vec::new();
    for policy in [Name::Tessera, Name::Fgd, Name::Hami] {
        let seed = *REPORT.start();
        let (outcome, _) = data.replay(Job { trace, policy, seed }, weights)?;
        curves.push((policy.published(), outcome.allocation));
    }
    std::fs::write(file, plot::svg(trace, &curves)).with_context(|| format!("writing {}", file.display()))?;
    tool::say(&format!("wrote {}", file.display()));
    Ok(ExitCode::SUCCESS)
}
