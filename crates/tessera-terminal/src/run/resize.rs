//! `tessera resize`: another share for a `tessera run` that is under way.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use tessera_region::{
    Grant,
    fs::{self as grants, GrantDir},
    resize::{self, ResizeError},
};

use super::{
    MemoryAsk, ask,
    cards::{self, Card},
    grants_root, wait,
};

/// Pause between two looks at what the command holds.
const LOOK: Duration = Duration::from_millis(100);

/// Arguments of `tessera resize`.
#[derive(Clone, Debug, clap::Args)]
pub struct ResizeArgs {
    /// The run: the process id of its `tessera run`
    #[arg(value_name = "PID")]
    pub job: u32,
    /// Memory of each of its cards from now on: MiB, or with a unit (8Gi, 512Mi), or a part of the card (50%)
    #[arg(long, value_name = "SIZE", value_parser = ask::parse)]
    pub memory: Option<MemoryAsk>,
    /// Share of each card's time in percent from now on; only for a run that was started with one
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub cores: Option<u32>,
    /// Priority from now on, 0 is the highest; only for a run whose time on the card is limited
    #[arg(long, value_name = "0..255")]
    pub priority: Option<u8>,
    /// Wait until the command holds no more than it is to have, in place of refusing
    #[arg(long)]
    pub wait: bool,
}

/// Changes the share of a run; gives back what it has now, in one line.
///
/// # Errors
/// Nothing to change, no such run, more than a card has, less than the command holds, or a limit of the card's time for
/// a run that was started without.
pub fn resize(args: &ResizeArgs) -> Result<String> {
    ensure!(
        args.memory.is_some() || args.cores.is_some() || args.priority.is_some(),
        "nothing to change; give --memory, --cores or --priority"
    );
    let root = grants_root();
    let old = find(&root, args.job)?;
    let cards = cards::list().context("looking for cards")?;
    loop {
        let mut new = changed(args, &old, &cards)?;
        match resize::resize(&root, &mut new) {
            Ok(()) => return Ok(told(args.job, &new)),
            Err(ResizeError::Held { .. }) if args.wait => {
                ensure!(wait::is_alive(old.container.as_str()), "the run has ended");
                std::thread::sleep(LOOK);
            }
            Err(error) => return Err(explained(error, args)),
        }
    }
}

fn find(root: &Path, job: u32) -> Result<Grant> {
    let mut running = Vec::new();
    for id in grants::scan(root)? {
        let Ok(grant) = grants::read_grant(&GrantDir::new(root, id)) else {
            continue;
        };
        if !wait::is_alive(grant.container.as_str()) {
            continue;
        }
        let pid = grant.container.as_str().split('.').next().map(str::to_owned);
        if pid.as_deref() == Some(&job.to_string()) {
            return Ok(grant);
        }
        running.extend(pid);
    }
    running.sort_unstable();
    match running.is_empty() {
        true => bail!("there is no run of process {job}; nothing runs with a share here"),
        false => bail!("there is no run of process {job}; these run: {}", running.join(", ")),
    }
}

fn changed(args: &ResizeArgs, old: &Grant, cards: &[Card]) -> Result<Grant> {
    let mut new = old.clone();
    for share in new.cards_mut() {
        if let Some(memory) = args.memory {
            let card = cards.iter().find(|card| card.uuid == share.uuid.as_str());
            let card = card.with_context(|| format!("card {} is gone from this machine", share.uuid))?;
            let bytes = memory.bytes_of(card.total_bytes);
            ensure!(
                bytes <= card.total_bytes,
                "{} asked, but card {} ({}) has {}",
                ask::size(bytes),
                card.index,
                card.name,
                ask::size(card.total_bytes)
            );
            share.memory_bytes = bytes;
        }
        if let Some(cores) = args.cores {
            share.cores_permille = cores * 10;
        }
        if let Some(priority) = args.priority {
            share.priority = priority;
        }
    }
    Ok(new)
}

fn told(job: u32, grant: &Grant) -> String {
    let card = |card: &tessera_region::CardGrant| {
        format!(
            "{} of {}, {} % of its time",
            ask::size(card.memory_bytes),
            card.uuid,
            card.cores_permille / 10
        )
    };
    let cards: Vec<String> = grant.cards().iter().map(card).collect();
    format!("run {job} has {}", cards.join("; "))
}

fn explained(error: ResizeError, args: &ResizeArgs) -> anyhow::Error {
    match error {
        ResizeError::Held {
            card,
            wanted_bytes,
            held_bytes,
        } => anyhow::anyhow!(
            "{} of card {card} are held and {} would be allowed; let the command free memory, or wait for it with --wait",
            ask::size(held_bytes),
            ask::size(wanted_bytes)
        ),
        ResizeError::NoGate { card } => anyhow::anyhow!(
            "the run was started with all the time of card {card}, and its programs run without a gate; start it with --cores \
             below 100 to change this later"
        ),
        other => anyhow::Error::new(other).context(format!("changing the share of run {}", args.job)),
    }
}
