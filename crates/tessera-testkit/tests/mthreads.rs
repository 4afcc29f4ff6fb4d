//! Runs the recorded cases of Moore Threads and prints what came out. Red on anything that is neither as the reference nor
//! listed in `conformance/differences-mthreads.toml` with its reason.

mod class_ops;

use tessera_testkit::conformance::{Differences, Suite};

#[test]
fn every_case_is_as_the_reference_or_differs_by_design() {
    let suite = Suite::read("mthreads")
        .expect("the cases are readable")
        .with(class_ops::OPS);
    let differences = Differences::read_named("differences-mthreads").expect("the differences are readable");
    let leftovers: Vec<&str> = differences
        .unknown(|id| suite.cases().iter().any(|case| case.id == id))
        .collect();
    assert!(
        leftovers.is_empty(),
        "differences of cases that do not exist: {leftovers:?}"
    );
    let report = suite.run(&differences);
    println!("{report}");
    assert!(report.failures().is_empty(), "see the table above");
}
