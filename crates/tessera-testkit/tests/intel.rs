//! Runs the recorded cases of Intel GPU and Gaudi and prints what came out. Red on anything that is neither as recorded nor listed in
//! `conformance/differences-intel.toml` with its reason.

mod card_ops;

use tessera_testkit::conformance::{Differences, Suite};

/// What the node agent does for Intel's cards, which it does not serve yet.
const OF_THE_NODE: &[(&str, &str)] = &[
    ("unit-id", "ids are made on the node"),
    ("parse-sysfs", "cards are found on the node"),
    ("allocate", "containers are prepared on the node"),
    ("gaudi-allocate", "containers are prepared on the node"),
    ("dmem-limit", "limits are held on the node"),
    ("sriov-plan", "virtual functions are made on the node"),
    ("health", "cards are watched on the node"),
    ("fdinfo", "usage is measured on the node"),
];

#[test]
fn every_case_is_as_designed_or_differs_with_a_reason() {
    let suite = Suite::read("intel")
        .expect("the cases are readable")
        .with(card_ops::OPS)
        .without(OF_THE_NODE);
    let differences = Differences::read_named("differences-intel").expect("the differences are readable");
    let left: Vec<&str> = differences
        .unknown(|id| suite.cases().iter().any(|case| case.id == id))
        .collect();
    assert!(left.is_empty(), "differences of cases that do not exist: {left:?}");
    let report = suite.run(&differences);
    println!("{report}");
    assert!(report.failures().is_empty(), "see the table above");
}
