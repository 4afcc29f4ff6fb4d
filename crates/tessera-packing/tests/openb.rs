//! Decisions on the openb trace equal the published ones, bit for bit.

#![expect(clippy::unwrap_used, reason = "the set-up of a test may end it")]

use std::path::Path;

use tessera_packing::{Cluster, Fragmentation, Policy, WHOLE, openb, replay};

fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../data/openb")
        .join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Arrivals, failures, used milli and hash of one run, as the lines of `runs.csv` have them.
fn replayed(trace: &str, policy: Policy, seed: u32) -> String {
    let name = match policy {
        Policy::Fgd => "FGD",
        _ => "BestFit",
    };
    let order = if trace.starts_with("gpuspec") { "default" } else { trace };
    let (nodes, models) = openb::nodes("nodes", &read("openb_node_list_gpu_node.csv")).unwrap();
    let (pods, workload) = openb::pods(trace, &read(&format!("openb_pod_list_{trace}.csv")), &models).unwrap();
    let arrivals = openb::seed_column(order, &read(&format!("orders/arrivals_{order}.csv")), seed).unwrap();
    let rank = openb::seed_column(order, &read(&format!("orders/noderank_{order}.csv")), seed).unwrap();
    let capacity = nodes.iter().map(|node| u32::from(node.cards) * WHOLE).sum();
    let mut cluster = Cluster::new(&nodes, &rank, Fragmentation::new(workload.typical(&models)), policy);
    let outcome = replay::run(&mut cluster, capacity, arrivals.iter().map(|row| &pods[*row as usize]));
    format!(
        "{trace},{name},{seed},{},{},{},{},{:.3},{:016x}",
        outcome.arrivals, outcome.failed, outcome.arrived, outcome.used, outcome.fragmentation, outcome.hash
    )
}

fn published(trace: &str, policy: &str, seed: u32) -> String {
    let runs = read("reference/runs.csv");
    let start = format!("{trace},{policy},{seed},");
    runs.lines().find(|line| line.starts_with(&start)).unwrap().to_owned()
}

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
const SEEDS: [u32; 10] = [42, 43, 44, 45, 46, 47, 48, 49, 50, 51];

#[test]
fn each_trace_is_decided_as_published() {
    for (trace, seed) in TRACES.into_iter().zip(SEEDS.into_iter().cycle()) {
        assert_eq!(replayed(trace, Policy::Fgd, seed), published(trace, "FGD", seed));
        assert_eq!(
            replayed(trace, Policy::BestFit, seed),
            published(trace, "BestFit", seed)
        );
    }
}

/// `cargo test -p tessera-packing -- --ignored`: all 340 runs of the two policies.
#[test]
#[ignore = "the same on more seeds; takes longer"]
fn each_trace_and_seed_is_decided_as_published() {
    for trace in TRACES {
        for seed in SEEDS {
            assert_eq!(replayed(trace, Policy::Fgd, seed), published(trace, "FGD", seed));
            assert_eq!(
                replayed(trace, Policy::BestFit, seed),
                published(trace, "BestFit", seed)
            );
        }
    }
}
