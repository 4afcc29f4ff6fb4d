//! `tessera simulate`: replays arrivals and departures under one policy or several.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tessera_packing::{WHOLE, openb};

use crate::case::Case;
use crate::classes::ClassArgs;
use crate::format::Dump;
use crate::picture;
use crate::replay::{ModelUse, PlainPods, PolicyName, Replayer};

/// In the order `shuffled`, pods are drawn until so much is asked for, in hundredths of all cards.
const ASKED: u64 = 130;
/// Points of a curve over time.
const TIMES: f64 = 100.0;

/// Arguments of `tessera simulate`.
#[derive(Debug, Clone, clap::Args)]
pub struct SimulateArgs {
    /// Node list as CSV: sn, cpu_milli, memory_mib, gpu, model
    #[arg(long, value_name = "FILE", requires = "pods", required_unless_present = "dump")]
    pub nodes: Option<PathBuf>,
    /// Pod list as CSV: name, cpu_milli, memory_mib, num_gpu, gpu_milli, gpu_spec, creation_time, deletion_time
    #[arg(long, value_name = "FILE", requires = "nodes")]
    pub pods: Option<PathBuf>,
    /// A cluster that `tessera dump` wrote, instead of --nodes and --pods
    #[arg(long, value_name = "FILE", conflicts_with_all = ["nodes", "pods"])]
    pub dump: Option<PathBuf>,
    /// The policy
    #[arg(long, value_enum, default_value_t = PolicyName::Tessera)]
    pub policy: PolicyName,
    /// Several policies in one table and one picture, such as tessera,fgd,hami
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "POLICIES",
        conflicts_with = "policy"
    )]
    pub compare: Vec<PolicyName>,
    /// In which order pods come
    #[arg(long, value_enum, default_value_t = Order::Shuffled)]
    pub order: Order,
    /// Seeds of orders and of ties between nodes: 42, or 42..51 with both ends
    #[arg(long, default_value = "42", value_parser = seeds, value_name = "SEEDS")]
    pub seeds: Seeds,
    /// Orders of arrival as CSV, rows of the pod list in a column for each seed, instead of shuffling
    #[arg(long, value_name = "FILE", requires_all = ["pods", "ranks"])]
    pub arrivals: Option<PathBuf>,
    /// Ranks of nodes as CSV, in a column for each seed
    #[arg(long, value_name = "FILE", requires_all = ["pods", "arrivals"])]
    pub ranks: Option<PathBuf>,
    /// Who places pods without cards; in a dump they stay where they are
    #[arg(long, value_enum, default_value_t = PlainPods::Policy)]
    pub plain_pods: PlainPods,
    /// Replays at once; as many as cores if not given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub threads: Option<u16>,
    /// Write points.csv, result.json and curves.svg into this folder
    #[arg(long, value_name = "FOLDER")]
    pub out: Option<PathBuf>,
    /// Device classes of a dump
    #[command(flatten)]
    pub classes: ClassArgs,
}

/// In which order pods come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Shuffled, then drawn again until 130 % of the cards are asked for; nothing leaves
    Shuffled,
    /// When they came and left, by their times
    Timed,
}

/// First and last seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seeds(u32, u32);

fn seeds(text: &str) -> Result<Seeds, String> {
    let number = |part: &str| {
        let read = part.trim().parse::<u32>();
        read.map_err(|_| format!("`{part}` is no whole number; write one seed (42) or a range with both ends (42..51)"))
    };
    let (first, last) = match text.split_once("..") {
        Some((first, last)) => (number(first)?, number(last.trim_start_matches('='))?),
        None => (number(text)?, number(text)?),
    };
    if last < first || last - first >= 1000 {
        return Err(format!("`{text}` is no range of up to 1000 seeds; write it as 42..51"));
    }
    Ok(Seeds(first, last))
}

/// A point of a curve: the mean of the moments that belong to it. All in percent of the cards.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Point {
    /// Asked for so far; under `timed` the part of the time instead.
    pub(crate) at: u32,
    pub(crate) allocated: f64,
    pub(crate) fragmented: f64,
}

/// What one replay gave.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Replay {
    pub(crate) policy: &'static str,
    pub(crate) seed: u32,
    /// Pods that came.
    pub(crate) pods: usize,
    /// Pods that found no place.
    pub(crate) refused: usize,
    /// When as much was asked for as there is, percent of the cards.
    pub(crate) allocated_at_100: Option<f64>,
    pub(crate) allocated_at_end: f64,
    /// Mean over the points of the curve.
    pub(crate) allocated_mean: f64,
    /// Idle cards that a typical pod is expected not to be able to use, percent of all cards.
    pub(crate) fragmented_at_end: f64,
    pub(crate) models: Vec<ModelUse>,
    #[serde(skip)]
    pub(crate) points: Vec<Point>,
}

/// The file `result.json`.
#[derive(Debug, Serialize)]
struct Outcome<'a> {
    format: &'static str,
    order: Order,
    nodes: usize,
    cards: u64,
    replays: &'a [Replay],
}

/// One pod comes, or leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Event {
    /// Seconds, or the number of the arrival.
    pub time: u64,
    /// Leaving goes before coming at the same moment.
    pub comes: bool,
    /// Number of the arrival.
    pub arrival: u64,
    /// Row of the pod.
    pub pod: usize,
}

/// What a seed decides.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What happens.
    pub events: Vec<Event>,
    /// Place of each node among equal ones, by row.
    pub ranks: Vec<u32>,
}

/// Runs the command and prints a table.
///
/// # Errors
/// A file cannot be read, is not what it should be, or cannot be written.
pub fn simulate(args: &SimulateArgs) -> Result<()> {
    let case = match (&args.dump, &args.nodes, &args.pods) {
        (Some(dump), ..) => {
            Case::from_dump(&Dump::read(dump)?, &args.classes.load()?).with_context(|| format!("{}", dump.display()))?
        }
        // The pods of a trace ask by NVIDIA's own names.
        (None, Some(nodes), Some(pods)) => Case::openb(nodes, pods, &ClassArgs::default().load()?)?,
        _ => bail!("name what to simulate: --nodes and --pods, or --dump"),
    };
    ensure!(
        args.order != Order::Timed || case.timed,
        "the pod list has no columns `creation_time` and `deletion_time`; add them, or use --order shuffled"
    );
    let policies = if args.compare.is_empty() {
        vec![args.policy]
    } else {
        args.compare.clone()
    };
    let mut plans = Vec::new();
    for seed in args.seeds.0..=args.seeds.1 {
        plans.push((seed, plan(&case, args, seed)?));
    }
    let jobs: Vec<(PolicyName, u32, &Plan)> = policies
        .iter()
        .flat_map(|policy| plans.iter().map(|(seed, plan)| (*policy, *seed, plan)))
        .collect();
    let replays = replay_all(&case, &jobs, args)?;
    if let Some(folder) = &args.out {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("making the folder {}; name a folder with --out", folder.display()))?;
        write(&folder.join("points.csv"), &csv(&replays))?;
        let outcome = Outcome {
            format: "tessera-simulation/1",
            order: args.order,
            nodes: case.nodes.len(),
            cards: cards(&case)?,
            replays: &replays,
        };
        write(
            &folder.join("result.json"),
            &(serde_json::to_string_pretty(&outcome)? + "\n"),
        )?;
        write(
            &folder.join("curves.svg"),
            &picture::svg(&replays, args.order == Order::Timed),
        )?;
    }
    // A reader that went away is no error.
    drop(std::io::stdout().write_all(table(&policies, &replays, args.order).as_bytes()));
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

fn cards(case: &Case) -> Result<u64> {
    let replayer = Replayer::new(case, PolicyName::Binpack, PlainPods::Kube, &[])?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a count of cards"
    )]
    let cards = (replayer.total().all / f64::from(WHOLE)).round() as u64;
    Ok(cards)
}

/// Order of events and ranks of nodes of one seed.
fn plan(case: &Case, args: &SimulateArgs, seed: u32) -> Result<Plan> {
    if let (Some(arrivals), Some(ranks)) = (&args.arrivals, &args.ranks) {
        let column = |path: &Path| -> Result<Vec<u32>> {
            let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
            Ok(openb::seed_column(&path.display().to_string(), &text, seed)?)
        };
        let ranks = column(ranks)?;
        let mut events = Vec::new();
        for (number, row) in (0_u64..).zip(column(arrivals)?) {
            let pod = usize::try_from(row).ok().filter(|row| *row < case.pods.len());
            let pod = pod.with_context(|| {
                format!(
                    "{}, column `{seed}`: it names pod row {row}, and the pod list has {} rows",
                    arrivals.display(),
                    case.pods.len()
                )
            })?;
            events.push(coming(number, number, pod));
        }
        return Ok(Plan { events, ranks });
    }
    Plan::new(case, args.order, u64::from(seed))
}

fn coming(time: u64, arrival: u64, pod: usize) -> Event {
    Event {
        time,
        comes: true,
        arrival,
        pod,
    }
}

impl Plan {
    /// The order of a seed; the same on every machine.
    ///
    /// # Errors
    /// A node of the case cannot be read.
    pub fn new(case: &Case, order: Order, seed: u64) -> Result<Self> {
        let ranks = openb::own_ranks(case.nodes.len(), seed);
        let mut events = Vec::new();
        if order == Order::Timed {
            for ((pod, case_pod), arrival) in case.pods.iter().enumerate().zip(0..) {
                let (from, to) = case_pod.stay;
                events.push(coming(from, arrival, pod));
                events.extend(to.filter(|to| *to > from).map(|to| Event {
                    comes: false,
                    ..coming(to, arrival, pod)
                }));
            }
            events.sort();
            return Ok(Self { events, ranks });
        }
        // What stays where it is is there first.
        let (fixed, free): (Vec<usize>, Vec<usize>) =
            (0..case.pods.len()).partition(|pod| case.pods.get(*pod).is_some_and(|pod| pod.here.is_some()));
        let requests: Vec<_> = free
            .iter()
            .filter_map(|pod| case.pods.get(*pod))
            .map(|pod| pod.request)
            .collect();
        let target = cards(case)? * u64::from(WHOLE) * ASKED / 100;
        let drawn = openb::own_order(&requests, target, seed);
        let drawn = drawn
            .into_iter()
            .filter_map(|row| free.get(usize::try_from(row).ok()?).copied());
        events.extend(
            (0..)
                .zip(fixed.iter().copied().chain(drawn))
                .map(|(number, pod)| coming(number, number, pod)),
        );
        Ok(Self { events, ranks })
    }
}

fn replay_all(case: &Case, jobs: &[(PolicyName, u32, &Plan)], args: &SimulateArgs) -> Result<Vec<Replay>> {
    let length: usize = jobs.iter().map(|(_, _, plan)| plan.events.len()).sum();
    // Draws nothing where standard error is no terminal.
    let bar = ProgressBar::new(u64::try_from(length).unwrap_or(0));
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {percent} % of the pods, {eta} left") {
        bar.set_style(style);
    }
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, Result<Replay>)>> = Mutex::new(Vec::new());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = args.threads.map_or(cores, usize::from).min(jobs.len());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some((policy, seed, plan)) = jobs.get(at) else {
                        return;
                    };
                    let replay = replay(case, *policy, *seed, plan, (args.order, args.plain_pods), &|| {
                        bar.inc(1)
                    });
                    if let Ok(mut done) = done.lock() {
                        done.push((at, replay));
                    }
                }
            });
        }
    });
    bar.finish_and_clear();
    let mut done = done.into_inner().map_err(|_| anyhow!("a replay ended early"))?;
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, replay)| replay).collect()
}

/// One replay. `step` is called after every event.
///
/// # Errors
/// The parts of the program disagree about what is free, which must not be.
pub fn replay(
    case: &Case,
    policy: PolicyName,
    seed: u32,
    plan: &Plan,
    (order, plain): (Order, PlainPods),
    step: &dyn Fn(),
) -> Result<Replay> {
    let mut replayer = Replayer::new(case, policy, plain, &plan.ranks)?;
    let of = || format!("replaying {} with seed {seed}", policy.name());
    let (mut pods, mut refused, mut arrived) = (0, 0, 0.0);
    let start = plan.events.first().map_or(0, |event| event.time) as f64;
    let length = plan.events.last().map_or(0, |event| event.time) as f64 - start;
    let mut curve = Curve::default();
    let capacity = replayer.total().all.max(1.0);
    for event in &plan.events {
        if event.comes {
            pods += 1;
            refused += usize::from(!replayer.arrive(event.arrival, event.pod).with_context(of)?);
            arrived += case
                .pods
                .get(event.pod)
                .map_or(0.0, |pod| f64::from(pod.request.demand()));
        } else {
            replayer.leave(event.arrival).with_context(of)?;
        }
        let total = replayer.total();
        let at = match order {
            Order::Shuffled => 100.0 * arrived / capacity,
            Order::Timed => TIMES * (event.time as f64 - start) / length.max(1.0),
        };
        curve.record(at, 100.0 * total.used / capacity, 100.0 * total.lost / capacity);
        step();
    }
    let differences = replayer.world().audit();
    ensure!(
        differences.is_empty(),
        "{}: bookings do not add up: {differences:?}",
        of()
    );
    let total = replayer.total();
    let full = (order == Order::Shuffled).then(|| curve.allocated(100)).flatten();
    let points = curve.points();
    let allocated: f64 = points.iter().map(|point| point.allocated).sum();
    Ok(Replay {
        policy: policy.name(),
        seed,
        pods,
        refused,
        allocated_at_100: full,
        allocated_at_end: 100.0 * total.used / capacity,
        allocated_mean: allocated / (points.len().max(1)) as f64,
        fragmented_at_end: 100.0 * total.lost / capacity,
        models: replayer.models(),
        points,
    })
}

/// Sums of the moments that belong to each point.
#[derive(Debug, Default)]
struct Curve(std::collections::BTreeMap<u32, (f64, f64, f64)>);

impl Curve {
    fn record(&mut self, at: f64, allocated: f64, fragmented: f64) {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a percentage")]
        let sums = self.0.entry(at.max(0.0).round_ties_even() as u32).or_default();
        *sums = (sums.0 + allocated, sums.1 + fragmented, sums.2 + 1.0);
    }

    /// Allocation at a point, or around it where nothing happened at the point itself; on a small cluster the last one
    /// before it.
    fn allocated(&self, at: u32) -> Option<f64> {
        let around = |range| {
            let sums = self
                .0
                .range::<u32, std::ops::RangeInclusive<u32>>(range)
                .map(|(_, sums)| *sums);
            let (sum, count) = sums.fold((0.0, 0.0), |sum, next| (sum.0 + next.0, sum.1 + next.2));
            (count > 0.0).then(|| sum / count)
        };
        let before = || {
            self.0.range(at..).next()?;
            self.0.range(..at).next_back().map(|(_, sums)| sums.0 / sums.2)
        };
        around(at..=at)
            .or_else(|| around(at.saturating_sub(1)..=at + 1))
            .or_else(before)
    }

    fn points(&self) -> Vec<Point> {
        let point = |(at, (allocated, fragmented, count)): (&u32, &(f64, f64, f64))| Point {
            at: *at,
            allocated: allocated / count,
            fragmented: fragmented / count,
        };
        self.0.iter().map(point).collect()
    }
}

fn csv(replays: &[Replay]) -> String {
    let mut text = String::from("policy,seed,at_percent,allocated_percent,fragmented_percent\n");
    for replay in replays {
        for point in &replay.points {
            let (policy, seed) = (replay.policy, replay.seed);
            let Point {
                at,
                allocated,
                fragmented,
            } = *point;
            text.push_str(&format!("{policy},{seed},{at},{allocated:.3},{fragmented:.3}\n"));
        }
    }
    text
}

fn table(policies: &[PolicyName], replays: &[Replay], order: Order) -> String {
    let first = match order {
        Order::Shuffled => "allocated at 100",
        Order::Timed => "allocated, mean",
    };
    let mut text = format!(
        "{:<8} {:>6} {:>9} {:>9} {:>17} {:>17} {:>17}\n",
        "policy", "seeds", "pods", "refused", first, "allocated at end", "fragmented at end"
    );
    for policy in policies {
        let of: Vec<&Replay> = replays.iter().filter(|replay| replay.policy == policy.name()).collect();
        let count = of.len().max(1) as f64;
        let mean = |value: &dyn Fn(&Replay) -> f64| of.iter().map(|replay| value(replay)).sum::<f64>() / count;
        let full = match order {
            Order::Timed => format!("{:.2} %", mean(&|replay| replay.allocated_mean)),
            Order::Shuffled if of.iter().all(|replay| replay.allocated_at_100.is_some()) => {
                format!("{:.2} %", mean(&|replay| replay.allocated_at_100.unwrap_or(0.0)))
            }
            Order::Shuffled => "-".to_owned(),
        };
        text.push_str(&format!(
            "{:<8} {:>6} {:>9.1} {:>9.1} {full:>17} {:>17} {:>17}\n",
            policy.name(),
            of.len(),
            mean(&|replay| replay.pods as f64),
            mean(&|replay| replay.refused as f64),
            format!("{:.2} %", mean(&|replay| replay.allocated_at_end)),
            format!("{:.2} %", mean(&|replay| replay.fragmented_at_end)),
        ));
    }
    let when = match order {
        Order::Shuffled => "at 100: when as much had been asked for as there is",
        Order::Timed => "pods that fit nowhere when they come do not wait",
    };
    text.push_str(&format!("Means over seeds, in percent of all cards; {when}.\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_one_or_a_range_with_both_ends() {
        assert_eq!(seeds("42"), Ok(Seeds(42, 42)));
        assert_eq!(seeds("42..51"), Ok(Seeds(42, 51)));
        for text in ["", "x", "5..3", "1..", "0..100000", "-1"] {
            let error = seeds(text).unwrap_err();
            assert!(error.contains("42..51"), "{error}");
        }
    }
}
