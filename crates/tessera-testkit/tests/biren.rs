//! Biren's recorded cases. `conformance/differences-biren.toml` lists where Tessera means to differ.

mod classes;

#[test]
fn every_case_is_as_the_reference_or_differs_by_design() {
    classes::run("biren", &[]);
}
