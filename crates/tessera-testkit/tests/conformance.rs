//! Runs every recorded case and prints what came out. Red on anything that is neither as the reference nor listed in
//! `conformance/differences.toml` with its reason.

mod ops;

use tessera_testkit::conformance::{Differences, Suite, wire_ops};

fn suites() -> Vec<Suite> {
    vec![
        Suite::read("control-plane")
            .expect("the cases are readable")
            .with(wire_ops::OPS)
            .with(ops::request::OPS)
            .with(ops::fit::OPS)
            .with(ops::decide::OPS)
            .with(ops::admit::OPS)
            .with(ops::serve::OPS),
    ]
}

#[test]
fn every_case_is_as_the_reference_or_differs_by_design() {
    let suites = suites();
    let differences = Differences::read().expect("the differences are readable");
    let known = |id: &str| {
        suites
            .iter()
            .any(|suite| suite.cases().iter().any(|case| case.id == id))
    };
    let leftovers: Vec<&str> = differences.unknown(known).collect();
    assert!(
        leftovers.is_empty(),
        "differences of cases that do not exist: {leftovers:?}"
    );

    let mut failures = 0;
    for suite in &suites {
        let report = suite.run(&differences);
        println!("{report}");
        failures += report.failures().len();
    }
    assert_eq!(failures, 0, "see the table above");
}
