//! Series on the metrics pages.

use std::path::Path;

use tessera_e2e::product;

use crate::markdown::pages;
use crate::none;

/// The product's source, without tests.
fn source() -> String {
    fn walk(folder: &Path, text: &mut String) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, text);
            } else if path.extension().is_some_and(|ending| ending == "rs") && !path.ends_with("tests.rs") {
                text.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }
    let mut text = String::new();
    for name in [
        "tessera-extender",
        "tessera-agent",
        "tessera-http",
        "tessera-kube",
        "tessera-terminal",
    ] {
        let folder = product::root().join("crates").join(name).join("src");
        if folder.is_dir() {
            walk(&folder, &mut text);
        }
    }
    text
}

#[test]
fn metrics_that_are_named_are_emitted() {
    let source = source();
    let mut problems = Vec::new();
    let mut seen = 0;
    for page in pages() {
        for (at, span) in page.spans() {
            let name = span.split([' ', '{', '[', '(']).next().unwrap_or_default();
            let words = name
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
            if !words || !(name.starts_with("tessera_") || name.starts_with("hami_")) || is_crate(name) {
                continue;
            }
            seen += 1;
            // The library that prints them adds the suffix itself.
            let stem = ["_total", "_bytes", "_seconds", "_ratio"]
                .iter()
                .find_map(|suffix| name.strip_suffix(suffix));
            let defined = std::iter::once(name).chain(stem).any(|name| {
                // The agent's registry puts its prefix before every name.
                let prefixed = source.contains("with_prefix(\"tessera_agent\")");
                let bare = name.strip_prefix("tessera_agent_").filter(|_| prefixed);
                std::iter::once(name)
                    .chain(bare)
                    .any(|name| source.contains(&format!("\"{name}\"")))
            });
            if !defined {
                problems.push(format!("{at}: no program of ours has a series `{name}`"));
            }
        }
    }
    none(&problems);
    assert!(seen > 20, "only {seen} series were found");
}

/// Rust's name of a crate looks like a series.
fn is_crate(name: &str) -> bool {
    product::root().join("crates").join(name.replace('_', "-")).is_dir()
}
