//! `tessera plan --rebalance N`: at most N moves of pods that would free cards, nodes and link groups. On paper only.

mod estate;
mod search;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
pub use estate::{Free, Move};
use serde::Serialize;
use tessera_engine::Vendors;

use crate::classes::ClassArgs;
use crate::dump;
use crate::format::Dump;
use crate::replay::PolicyName;
use estate::Estate;

/// Names listed for one reason in the text; `--json` has all.
const NAMED: usize = 8;

/// Arguments of `tessera plan`.
#[derive(Debug, Clone, clap::Args)]
pub struct PlanArgs {
    /// Propose at most so many moves
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub rebalance: u16,
    /// A cluster that `tessera dump` wrote, instead of the live one
    #[arg(long, value_name = "FILE", conflicts_with = "kubeconfig")]
    pub dump: Option<PathBuf>,
    /// The live cluster; $KUBECONFIG, ~/.kube/config or the pod's own account if not given
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The policy that the scheduler of the cluster runs with
    #[arg(long, value_enum, default_value_t = PolicyName::Tessera)]
    pub policy: PolicyName,
    /// Answer as JSON
    #[arg(long)]
    pub json: bool,
    /// Device classes
    #[command(flatten)]
    pub classes: ClassArgs,
}

/// Moves, and what they free.
#[derive(Debug, Clone, Serialize)]
pub struct Proposal {
    /// `tessera-plan/1`.
    pub format: &'static str,
    /// In the order in which they are possible.
    pub moves: Vec<Move>,
    /// What is free now.
    pub before: Free,
    /// What is free after the last move.
    pub after: Free,
    /// Pods with cards that are left where they are, by reason.
    pub stay: BTreeMap<String, Vec<String>>,
}

/// Runs the command and prints the proposal.
///
/// # Errors
/// The dump cannot be read, or the cluster cannot be asked.
pub async fn plan(args: PlanArgs) -> Result<()> {
    let vendors = args.classes.load()?;
    ensure!(
        args.policy != PolicyName::Bestfit,
        "no scheduler runs with `bestfit`; name the node policy of yours with --policy"
    );
    let dump = match &args.dump {
        Some(path) => Dump::read(path)?,
        None => {
            let client = dump::client(args.kubeconfig.clone()).await?;
            let (dump, unreadable) = dump::collect(&client, &vendors).await.context(dump::UNREAD)?;
            for line in &unreadable {
                drop(writeln!(std::io::stderr(), "left out: {line}"));
            }
            dump
        }
    };
    let proposal = propose(&dump, &vendors, args.policy, usize::from(args.rebalance)).with_context(|| {
        args.dump
            .as_ref()
            .map_or_else(|| "the cluster".to_owned(), |path| path.display().to_string())
    })?;
    let text = if args.json {
        serde_json::to_string_pretty(&proposal)? + "\n"
    } else {
        text(&proposal)
    };
    // A reader that went away is no error.
    drop(std::io::stdout().write_all(text.as_bytes()));
    Ok(())
}

/// Proposes at most `most` moves. The same dump gives the same proposal everywhere.
///
/// # Errors
/// The dump holds a quantity or a name that is none, or a pod on a node that it does not have.
pub fn propose(dump: &Dump, vendors: &Arc<Vendors>, policy: PolicyName, most: usize) -> Result<Proposal> {
    let mut estate = Estate::new(dump, vendors, policy)?;
    let before = estate.free();
    let moves = search::search(&mut estate, most)?;
    Ok(Proposal {
        format: "tessera-plan/1",
        moves,
        before,
        after: estate.free(),
        stay: estate.stay(),
    })
}

fn text(proposal: &Proposal) -> String {
    let Proposal {
        moves, before, after, ..
    } = proposal;
    let mut text = String::new();
    if moves.is_empty() {
        text.push_str("No move of a pod would free a card.\n");
    } else {
        text.push_str("Moves, in this order:\n");
    }
    for (number, one) in moves.iter().enumerate() {
        text.push_str(&format!(
            "{:>3}. {}: from {} ({}) to {} ({}){}\n",
            number + 1,
            one.pod,
            one.from,
            one.from_cards.join(", "),
            one.to,
            one.to_cards.join(", "),
            if one.by_itself { "" } else { " [steer]" }
        ));
    }
    let line = |what: &str, before: String, after: String| format!("{what:<42} {before:>8} {after:>8}\n");
    text.push_str(&format!("\n{}", line("", "now".to_owned(), "then".to_owned())));
    let counts = [
        ("whole cards free", before.cards, after.cards),
        ("link groups free", before.groups, after.groups),
        ("nodes with all cards free", before.nodes, after.nodes),
    ];
    for (what, before, after) in counts {
        text.push_str(&line(what, before.to_string(), after.to_string()));
    }
    text.push_str(&line(
        "idle, of no use to a typical pod, in cards",
        format!("{:.2}", before.fragmented),
        format!("{:.2}", after.fragmented),
    ));
    if !proposal.stay.is_empty() {
        text.push_str("\nPods with cards that stay:\n");
    }
    for (reason, pods) in &proposal.stay {
        let named = pods.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
        let more = pods.len().saturating_sub(NAMED);
        let more = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        text.push_str(&format!("  {reason}: {named}{more}\n"));
    }
    text.push_str("\nNothing was changed.");
    if !moves.is_empty() {
        text.push_str(
            " To move a pod: `kubectl cordon` the node that it leaves, then evict the pod; its controller makes it again. \
             Where it says [steer], the scheduler alone would choose another node.",
        );
    }
    text.push('\n');
    text
}
