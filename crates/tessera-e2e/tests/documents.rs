//! Documents that are run: what the pages show works, what they name exists.
//!
//! Pods in them pass admission without a word, names of annotations, flags, values and metrics are those of the
//! product, console commands are real. Commands that need a cluster are printed by
//! `commands_for_the_cluster_are_listed`; the cluster suite runs them.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]
#![allow(clippy::print_stdout, reason = "tests say what they leave to others")]

#[path = "documents/commands.rs"]
mod commands;
#[path = "documents/flags.rs"]
mod flags;
#[path = "documents/links.rs"]
mod links;
#[path = "documents/markdown.rs"]
mod markdown;
#[path = "documents/metrics.rs"]
mod metrics;
#[path = "documents/names.rs"]
mod names;
#[path = "documents/pods.rs"]
mod pods;
#[path = "documents/values.rs"]
mod values;

/// Fails with all problems at once.
fn none(problems: &[String]) {
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}
