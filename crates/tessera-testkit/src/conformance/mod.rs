//! Runs recorded cases against our crates.
//!
//! A suite is a file of cases, one JSON object a line, and a table of operations. A case names its operation, gives the
//! input and the outcome of the reference implementation. Where we mean to differ, `differences.toml` holds our own
//! outcome and the reason; a difference that is not listed fails, and so does a listed one that no longer exists.

mod case;
mod compare;
mod differences;
pub mod enforcement;
mod report;
pub mod wire_ops;

use std::path::{Path, PathBuf};

pub use case::{Case, expand_times, now};
pub use compare::same;
pub use differences::{Difference, Differences};
pub use report::{Report, Verdict};

/// A suite or a list of differences that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ConformanceError {
    /// The file does not open.
    #[error("cannot read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line is no case.
    #[error("{path}, line {line}: {problem}")]
    Case {
        /// Which file.
        path: PathBuf,
        /// Line from 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// The list of differences is not as expected.
    #[error("{path}: {problem}")]
    Differences {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// One operation: from the case to our outcome in the shape of the case's own, or why it cannot be run.
pub type Op = fn(&Case) -> Result<serde_json::Value, String>;

/// A file of cases and the operations that they name.
#[derive(Debug, Clone)]
pub struct Suite {
    name: String,
    cases: Vec<Case>,
    ops: Vec<(&'static str, Op)>,
    /// Operations that this program does not run, with the reason.
    elsewhere: Vec<(&'static str, &'static str)>,
}

/// The folder with the case files.
#[must_use]
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance")
}

impl Suite {
    /// Reads the cases of `<folder>/<name>-cases.jsonl`.
    ///
    /// # Errors
    /// The file does not open, or a line is no case.
    pub fn read(name: &str) -> Result<Self, ConformanceError> {
        Ok(Self {
            name: name.to_owned(),
            cases: case::read(&folder().join(format!("{name}-cases.jsonl")))?,
            ops: Vec::new(),
            elsewhere: Vec::new(),
        })
    }

    /// Adds operations; a later one of the same name wins.
    #[must_use]
    pub fn with(mut self, ops: &[(&'static str, Op)]) -> Self {
        self.ops.extend_from_slice(ops);
        self
    }

    /// Leaves out the cases of these operations, each with the reason. They are counted and printed as not run.
    #[must_use]
    pub fn without(mut self, ops: &[(&'static str, &'static str)]) -> Self {
        self.elsewhere.extend_from_slice(ops);
        self
    }

    /// The suite's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The cases.
    #[must_use]
    pub fn cases(&self) -> &[Case] {
        &self.cases
    }

    /// Runs all cases.
    #[must_use]
    pub fn run(&self, differences: &Differences) -> Report {
        let mut report = Report::new(&self.name);
        for case in &self.cases {
            if let Some((_, reason)) = self.elsewhere.iter().find(|(name, _)| *name == case.op) {
                report.add(case, Verdict::NotRun((*reason).to_owned()));
                continue;
            }
            let op = self.ops.iter().rev().find(|(name, _)| *name == case.op);
            let outcome = match op {
                Some((_, op)) => op(case),
                None => Err(format!("no operation `{}`", case.op)),
            };
            report.add(case, judge(case, outcome, differences.of(&case.id)));
        }
        report
    }
}

fn judge(case: &Case, outcome: Result<serde_json::Value, String>, difference: Option<&Difference>) -> Verdict {
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(problem) => return Verdict::Failed(problem),
    };
    match difference {
        None if same(&case.expected, &outcome) => Verdict::Passed,
        None => Verdict::Failed(format!("expected {}\n          got      {outcome}", case.expected)),
        Some(_) if same(&case.expected, &outcome) => {
            Verdict::Failed("is listed as a difference and does not differ any more: take it off the list".to_owned())
        }
        Some(difference) if same(&difference.ours, &outcome) => Verdict::Differs(difference.reason.clone()),
        Some(difference) => Verdict::Failed(format!(
            "differs otherwise than listed\n          listed   {}\n          got      {outcome}",
            difference.ours
        )),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn case(expected: Value) -> Case {
        Case {
            id: "x-001".to_owned(),
            title: String::new(),
            kind: "x".to_owned(),
            op: "x".to_owned(),
            input: Value::Null,
            expected,
            deviation_ok: false,
        }
    }

    fn listed(ours: Value) -> Difference {
        Difference {
            ours,
            reason: "because".to_owned(),
        }
    }

    #[test]
    fn a_difference_passes_only_as_it_is_listed() {
        let case = case(json!(1));
        let differs = |verdict: Verdict| verdict == Verdict::Differs("because".to_owned());
        assert_eq!(judge(&case, Ok(json!(1)), None), Verdict::Passed);
        assert!(matches!(judge(&case, Ok(json!(2)), None), Verdict::Failed(_)));
        assert!(differs(judge(&case, Ok(json!(2)), Some(&listed(json!(2))))));
        assert!(matches!(
            judge(&case, Ok(json!(3)), Some(&listed(json!(2)))),
            Verdict::Failed(_)
        ));
        assert!(matches!(
            judge(&case, Ok(json!(1)), Some(&listed(json!(2)))),
            Verdict::Failed(_)
        ));
        assert!(matches!(
            judge(&case, Err("broken".to_owned()), Some(&listed(json!(2)))),
            Verdict::Failed(_)
        ));
    }

    #[test]
    fn a_case_without_its_operation_fails() {
        let suite = Suite {
            name: "x".to_owned(),
            cases: vec![case(json!(1))],
            ops: Vec::new(),
            elsewhere: Vec::new(),
        };
        assert_eq!(suite.run(&Differences::default()).totals(), (0, 0, 1));
        let elsewhere = suite
            .clone()
            .without(&[("x", "of the node")])
            .run(&Differences::default());
        assert_eq!((elsewhere.totals(), elsewhere.not_run()), ((0, 0, 0), 1));
        assert_eq!(
            suite
                .with(&[("x", |_| Ok(json!(1)))])
                .run(&Differences::default())
                .totals(),
            (1, 0, 0)
        );
    }
}
