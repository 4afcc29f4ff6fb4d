//! Makes the table of entry points from `names.txt`: what the sources define is listed with
//! its version, everything else becomes an export that answers "not supported".

use std::collections::BTreeSet;
use std::path::Path;

fn main() {
    println!("cargo:rerun-if-changed=names.txt");
    println!("cargo:rerun-if-changed=src");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libcuda.so.1");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-Bsymbolic");

    let mut defined = BTreeSet::new();
    let mut sources: Vec<_> = std::fs::read_dir("src")
        .expect("src is beside the build script")
        .filter_map(|e| e.ok().map(|e| e.path()))
        .collect();
    sources.sort();
    for source in sources {
        let text = std::fs::read_to_string(&source).unwrap_or_default();
        for line in text.lines() {
            collect(line, &mut defined);
        }
    }
    let names = std::fs::read_to_string("names.txt").expect("names.txt is beside the build script");
    let mut declared = String::new();
    let mut stubs = String::new();
    let mut rows = Vec::new();
    for line in names.lines() {
        let mut parts = line.split_whitespace();
        let (Some(export), Some(symbol), Some(since), Some(kind)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            panic!("names.txt: four words a line, not `{line}`");
        };
        rows.push((
            symbol.to_owned(),
            since.parse::<u32>().expect("a version is a number"),
            kind != "-",
            export.to_owned(),
        ));
        if !defined.remove(export) {
            stubs.push_str(&format!("stub!({export});\n"));
        }
        declared.push_str(&format!("pub(super) fn {export}();\n"));
    }
    assert!(defined.is_empty(), "defined but not in names.txt: {defined:?}");
    rows.sort();
    let mut table = String::new();
    for (symbol, since, per_thread, export) in rows {
        table.push_str(&format!("Entry {{ symbol: \"{symbol}\", since: {since}, per_thread: {per_thread}, export: \"{export}\", address: declared::{export} }},\n"));
    }
    let out = std::env::var("OUT_DIR").expect("set by cargo");
    let text = format!(
        "mod declared {{ unsafe extern \"C\" {{\n{declared}}} }}\n\
         pub(crate) static TABLE: &[Entry] = &[\n{table}];\n"
    );
    std::fs::write(Path::new(&out).join("table.rs"), text).expect("the output folder is writable");
    std::fs::write(Path::new(&out).join("stubs.rs"), stubs).expect("the output folder is writable");
}

/// Names that a line of the sources defines: `fn cuName(` and `also cuName_ptsz`.
fn collect(line: &str, defined: &mut BTreeSet<String>) {
    for mark in ["fn cu", "also cu"] {
        for (at, _) in line.match_indices(mark) {
            let name: String = line[at + mark.len() - 2..]
                .chars()
                .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
                .collect();
            if name.chars().nth(2).is_some_and(|c| c.is_ascii_uppercase()) {
                defined.insert(name);
            }
        }
    }
}
