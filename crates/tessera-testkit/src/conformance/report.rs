//! What came out of a run.

use std::collections::BTreeMap;
use std::fmt;

use super::Case;

/// What became of one case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// As the reference.
    Passed,
    /// As listed among the differences, for this reason.
    Differs(String),
    /// Neither.
    Failed(String),
    /// Not of this program, for this reason.
    NotRun(String),
}

#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    passed: usize,
    differs: usize,
    failed: usize,
    not_run: usize,
}

/// The counts of a run, by kind, and its failures.
#[derive(Debug, Clone)]
pub struct Report {
    name: String,
    kinds: BTreeMap<String, Counts>,
    failures: Vec<String>,
    strict_differences: usize,
    /// Operation and reason, with how many cases.
    not_run: BTreeMap<String, usize>,
}

impl Report {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            kinds: BTreeMap::new(),
            failures: Vec::new(),
            strict_differences: 0,
            not_run: BTreeMap::new(),
        }
    }

    pub(super) fn add(&mut self, case: &Case, verdict: Verdict) {
        let counts = self.kinds.entry(case.kind.clone()).or_default();
        match verdict {
            Verdict::Passed => counts.passed += 1,
            Verdict::Differs(_) => {
                counts.differs += 1;
                self.strict_differences += usize::from(!case.deviation_ok);
            }
            Verdict::NotRun(reason) => {
                counts.not_run += 1;
                *self.not_run.entry(format!("{}: {reason}", case.op)).or_default() += 1;
            }
            Verdict::Failed(problem) => {
                counts.failed += 1;
                self.failures.push(format!(
                    "{} ({}): {}\n          {problem}",
                    case.id, case.op, case.title
                ));
            }
        }
    }

    /// Cases that are neither as the reference nor as listed.
    #[must_use]
    pub fn failures(&self) -> &[String] {
        &self.failures
    }

    /// Passed, differing by design, failed.
    #[must_use]
    pub fn totals(&self) -> (usize, usize, usize) {
        self.kinds
            .values()
            .fold((0, 0, 0), |(passed, differs, failed), counts| {
                (passed + counts.passed, differs + counts.differs, failed + counts.failed)
            })
    }

    /// Cases that this program does not run.
    #[must_use]
    pub fn not_run(&self) -> usize {
        self.not_run.values().sum()
    }

    /// Differences from outcomes that the reference's users could count on.
    #[must_use]
    pub fn strict_differences(&self) -> usize {
        self.strict_differences
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<24} {:>7} {:>8} {:>7} {:>8}",
            self.name, "passed", "differ", "failed", "not run"
        )?;
        for (kind, counts) in &self.kinds {
            writeln!(
                f,
                "  {kind:<22} {:>7} {:>8} {:>7} {:>8}",
                counts.passed, counts.differs, counts.failed, counts.not_run
            )?;
        }
        for failure in &self.failures {
            writeln!(f, "  FAILED  {failure}")?;
        }
        for (what, count) in &self.not_run {
            writeln!(f, "  not run  {count:>3}  {what}")?;
        }
        let (passed, differs, failed) = self.totals();
        write!(
            f,
            "{passed} passed, {differs} differ by design, {failed} failed, {} not run",
            self.not_run()
        )
    }
}
