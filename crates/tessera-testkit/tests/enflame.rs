//! Runs the recorded cases of Enflame and prints what came out. Red on anything that is neither as the reference nor
//! listed in `conformance/differences-enflame.toml` with its reason.

mod device_ops;

#[test]
fn every_case_is_as_the_reference_or_differs_by_design() {
    device_ops::run_suite("enflame", device_ops::OPS, &[]);
}
