//! Makes an export that answers "not supported" of every name in `names.txt` that the sources
//! do not define.

use std::collections::BTreeSet;
use std::path::Path;

fn main() {
    println!("cargo:rerun-if-changed=names.txt");
    println!("cargo:rerun-if-changed=src");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libnvidia-ml.so.1");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-Bsymbolic");

    let mut defined = BTreeSet::new();
    for entry in std::fs::read_dir("src").expect("src is beside the build script") {
        let Ok(entry) = entry else { continue };
        let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
        for (at, _) in text.match_indices("fn nvml") {
            let name: String = text[at + 3..]
                .chars()
                .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
                .collect();
            defined.insert(name);
        }
    }
    let names = std::fs::read_to_string("names.txt").expect("names.txt is beside the build script");
    let mut stubs = String::new();
    for name in names.lines().map(str::trim).filter(|n| !n.is_empty()) {
        if !defined.remove(name) {
            stubs.push_str(&format!("stub!({name});\n"));
        }
    }
    assert!(defined.is_empty(), "defined but not in names.txt: {defined:?}");
    let out = std::env::var("OUT_DIR").expect("set by cargo");
    std::fs::write(Path::new(&out).join("stubs.rs"), stubs).expect("the output folder is writable");
}
