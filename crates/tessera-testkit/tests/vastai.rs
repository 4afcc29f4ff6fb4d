//! Vastai's recorded cases. `conformance/differences-vastai.toml` lists where Tessera means to differ.

mod classes;

#[test]
fn every_case_is_as_the_reference_or_differs_by_design() {
    classes::run("vastai", &[]);
}
