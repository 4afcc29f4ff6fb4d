//! Cases that are not run, each with the reason. They are counted and printed.

use tessera_testkit::conformance::enforcement::EnforcementCase;

/// The case needs what this machine lacks.
pub(crate) struct NotHere(pub(crate) &'static str);

const CORES: &str = "decided by turns, and this runner has no agent to give them; the tests of shim_turns have one";
const WORDS: &str = "prose: has no steps; its parts are cases of their own";

/// Cases whose outcome is decided by shares of a card's time, by its gates or by the words that another monitor writes
/// for them.
const OF_CORES: &[&str] = &[
    "core-001",
    "core-002",
    "core-003",
    "core-004",
    "core-005",
    "core-006",
    "core-007a",
    "core-007b",
    "core-007c",
    "core-007d",
    "core-007e",
    "core-007f",
    "core-008",
    "core-009",
    "core-010",
    "core-011",
    "core-012",
    "core-013",
    "core-014",
    "core-015",
    "core-016",
    "core-017",
    "core-018",
    "core-019",
    "core-020",
    "core-021",
    "core-022",
    "core-026",
    "must-047",
    "must-048",
    "must-049",
    "must-050",
    "must-051",
    "must-052",
    "must-053",
    "must-054",
    "prio-002",
    "prio-003",
    "prio-004",
    "prio-005",
    "prio-006",
    "tamper-005",
];

pub(crate) fn reason(case: &EnforcementCase) -> Option<&'static str> {
    if OF_CORES.contains(&case.id.as_str()) {
        return Some(CORES);
    }
    (case.id == "core-007").then_some(WORDS)
}

pub(crate) fn listed() -> impl Iterator<Item = &'static str> {
    OF_CORES.iter().copied()
}
