//! `cargo xtask storm`: many pods, random deletes and kills, round after round on a real cluster.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use serde_json::json;
use tessera_e2e::interrupt::{Ended, until_signal};
use tessera_e2e::mixed;
use tessera_e2e::product::{Artefacts, Profile};
use tessera_e2e::stage::{Plan, Stage};
use tessera_e2e::storm::{self, Round};
use tessera_testcluster::Progress;

use crate::tool;

#[derive(Debug, clap::Args)]
pub(crate) struct StormArgs {
    /// How many rounds.
    #[arg(long, default_value_t = 1)]
    rounds: u32,
    /// Decides sizes, deletes and kills; round n runs with seed + n.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Use the development build, which is there sooner and runs slower.
    #[arg(long)]
    dev: bool,
    /// Kill the agent's whole container at times, which the kubelet starts again only after pauses.
    #[arg(long)]
    kill_containers: bool,
    /// Pods created at once.
    #[arg(long, default_value_t = 200)]
    pods: u32,
    /// Pods of six makers on one node, with players of five makers' plugins that are killed too.
    #[arg(long, conflicts_with = "kill_containers")]
    mixed: bool,
}

const EIGHT: &str = "cards:\n  - {model: A100-SXM4-40GB, count: 8}\n";

pub(crate) fn run(args: &StormArgs) -> Result<ExitCode> {
    let ended = tokio::runtime::Runtime::new()
        .context("starting the async runtime")?
        .block_on(until_signal(rounds(args)))?;
    Ok(match ended {
        Ended::Done(()) => ExitCode::SUCCESS,
        Ended::Interrupted(code) => code,
    })
}

async fn rounds(args: &StormArgs) -> Result<()> {
    let artefacts = Artefacts::build(if args.dev { Profile::Dev } else { Profile::Release })?;
    let plan = Plan {
        cards: Some(if args.mixed { mixed::CARDS } else { EIGHT }.to_owned()),
        state: None,
        detached: false,
        values: json!({}),
        max_pods: 300,
    };
    let progress = Progress::new(|event| tool::say(&format!("  {event}")));
    let stage = Stage::start(&plan, &artefacts, &progress).await?;
    let mut outcome = Ok(());
    for number in 0..args.rounds {
        let seed = args.seed.wrapping_add(u64::from(number));
        let round = async || -> Result<String> {
            if args.mixed {
                return Ok(mixed::storm(&stage, "default", args.pods, seed).await?.to_string());
            }
            let round = Round {
                pods: args.pods,
                seed,
                kill_kubelet: true,
                kill_containers: args.kill_containers,
            };
            Ok(storm::round(&stage, "default", round).await?.to_string())
        };
        match round().await {
            Ok(seen) => tool::say(&format!("round {} seed {seed}: {seen}", number + 1)),
            Err(error) => {
                outcome =
                    Err(error).with_context(|| format!("round {} (--seed {seed} --rounds 1 repeats it)", number + 1));
                break;
            }
        }
    }
    stage.cluster.stop().await.context("stopping the cluster")?;
    outcome
}
