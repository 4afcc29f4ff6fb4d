//! The checked-in protocol code is what the `.proto` files generate.
//!
//! After a change of a `.proto` file run
//! `UPDATE_PROTO=1 cargo test -p tessera-kubelet --test codegen`.

use std::path::{Path, PathBuf};

const PROTOS: [(&str, &str); 2] = [("deviceplugin_v1beta1", "v1beta1"), ("podresources_v1", "v1")];

fn generate(source: &Path, package: &str) -> String {
    let folder = source.parent().expect("a proto file has a folder");
    let descriptors = protox::compile([source], [folder]).expect("the proto file compiles");
    let out = tempfile::tempdir().expect("a temporary folder");
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        .btree_map(".")
        .out_dir(out.path())
        .compile_fds(descriptors)
        .expect("code is generated");
    std::fs::read_to_string(out.path().join(format!("{package}.rs"))).expect("generated code")
}

#[test]
fn generated_code_is_current() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    for (name, package) in PROTOS {
        let wanted = generate(&root.join(format!("proto/{name}.proto")), package);
        let path = root.join(format!("src/proto/{name}.rs"));
        if std::env::var_os("UPDATE_PROTO").is_some() {
            std::fs::write(&path, &wanted).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            found == wanted,
            "{} is stale, see the head of this test",
            path.display()
        );
    }
}
