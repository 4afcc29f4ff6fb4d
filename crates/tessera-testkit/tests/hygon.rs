//! Runs the recorded cases of Hygon and prints what came out. Red on anything that is neither as the reference nor
//! listed in `conformance/differences-hygon.toml` with its reason.

mod class_ops;

use tessera_testkit::conformance::{Differences, Suite};

/// Behaviour of the plugin on the node and of the text files that it writes there.
const ELSEWHERE: &[(&str, &str)] = &[
    ("dcu-core-mask", "compute units of a slice are chosen on the node"),
    ("dcu-vdev-conf", "the file of a slice is written on the node"),
    ("dcu-uuid-index", "how the plugin finds a card on the node"),
    ("dcu-encode-register", "what the plugin registers"),
    ("dcu-decode-pod", "how the plugin reads a pod"),
];

#[test]
fn every_case_is_as_the_reference_or_differs_by_design() {
    let suite = Suite::read("hygon")
        .expect("the cases are readable")
        .with(class_ops::OPS)
        .without(ELSEWHERE);
    let differences = Differences::read_named("differences-hygon").expect("the differences are readable");
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
