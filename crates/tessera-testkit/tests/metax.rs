//! MetaX's recorded cases. `conformance/differences-metax.toml` lists where Tessera means to differ.

mod classes;
#[path = "classes/locks.rs"]
mod locks;

#[test]
fn every_case_is_as_the_reference_or_differs_by_design() {
    classes::run("metax", &[("bind", locks::bind)]);
}
