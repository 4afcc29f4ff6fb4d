//! Runs the recorded cases of AMD and prints what came out. Red on anything that is neither as recorded nor listed in
//! `conformance/differences-amd.toml` with its reason.

mod card_ops;

use tessera_testkit::conformance::{Differences, Suite};

#[test]
fn every_case_is_as_the_reference_or_differs_by_design() {
    let suite = Suite::read("amd").expect("the cases are readable").with(card_ops::OPS);
    let differences = Differences::read_named("differences-amd").expect("the differences are readable");
    let left: Vec<&str> = differences
        .unknown(|id| suite.cases().iter().any(|case| case.id == id))
        .collect();
    assert!(left.is_empty(), "differences of cases that do not exist: {left:?}");
    let report = suite.run(&differences);
    println!("{report}");
    assert!(report.failures().is_empty(), "see the table above");
}
