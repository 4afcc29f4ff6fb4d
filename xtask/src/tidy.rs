//! Rules of the repository that no compiler knows. `ARCHITECTURE.md` states them; this enforces them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::tool;

/// Which of our crates a crate may depend on (outside its tests). An arrow that is not here is refused.
const ARROWS: &[(&str, &[&str])] = &[
    ("tessera-types", &[]),
    ("tessera-region", &[]),
    ("tessera-turns", &[]),
    ("tessera-no-musl", &[]),
    ("tessera-enforce", &["tessera-region"]),
    ("tessera-wire", &["tessera-types"]),
    ("tessera-engine", &["tessera-types", "tessera-wire", "tessera-packing"]),
    ("tessera-packing", &[]),
    ("tessera-vendors", &["tessera-types", "tessera-wire", "tessera-engine"]),
    ("tessera-kube", &["tessera-types", "tessera-wire", "tessera-engine"]),
    ("tessera-http", &[]),
    ("tessera-kubelet", &[]),
    ("tessera-probe", &["tessera-types"]),
    (
        "tessera-extender",
        &[
            "tessera-types",
            "tessera-wire",
            "tessera-engine",
            "tessera-vendors",
            "tessera-kube",
            "tessera-http",
        ],
    ),
    (
        "tessera-agent",
        &[
            "tessera-types",
            "tessera-wire",
            "tessera-region",
            "tessera-turns",
            "tessera-no-musl",
            "tessera-kubelet",
            "tessera-probe",
            "tessera-kube",
            "tessera-http",
        ],
    ),
    (
        "tessera-terminal",
        &[
            "tessera-types",
            "tessera-wire",
            "tessera-region",
            "tessera-no-musl",
            "tessera-probe",
        ],
    ),
    (
        "tessera-simulator",
        &[
            "tessera-types",
            "tessera-wire",
            "tessera-engine",
            "tessera-packing",
            "tessera-vendors",
            "tessera-kube",
        ],
    ),
    (
        "tessera",
        &[
            "tessera-extender",
            "tessera-agent",
            "tessera-terminal",
            "tessera-simulator",
        ],
    ),
    ("tessera-shim", &["tessera-region", "tessera-enforce"]),
    ("tessera-fake-core", &[]),
    ("tessera-fake-cuda", &["tessera-fake-core"]),
    ("tessera-fake-nvml", &["tessera-fake-core"]),
    (
        "tessera-testkit",
        &[
            "tessera-types",
            "tessera-wire",
            "tessera-engine",
            "tessera-vendors",
            "tessera-kube",
            "tessera-extender",
        ],
    ),
    (
        "tessera-fuzz",
        &[
            "tessera-types",
            "tessera-wire",
            "tessera-engine",
            "tessera-vendors",
            "tessera-region",
        ],
    ),
    ("tessera-players", &["tessera-kubelet"]),
    ("tessera-testcluster", &[]),
    (
        "tessera-e2e",
        &[
            "tessera-types",
            "tessera-wire",
            "tessera-region",
            "tessera-testkit",
            "tessera-testcluster",
            "tessera-players",
            "tessera-probe",
        ],
    ),
    (
        "xtask",
        &[
            "tessera-testcluster",
            "tessera-e2e",
            "tessera-wire",
            "tessera-types",
            "tessera-packing",
            "tessera-fuzz",
        ],
    ),
];

/// Words and decisions: no I/O, no clock, no async. These may not depend on any of [`OUTSIDE`].
const PURE: &[&str] = &[
    "tessera-types",
    "tessera-wire",
    "tessera-engine",
    "tessera-vendors",
    "tessera-enforce",
    "tessera-packing",
];

/// Crates that reach outside of the process.
const OUTSIDE: &[&str] = &[
    "tokio",
    "kube",
    "k8s-openapi",
    "tonic",
    "hyper",
    "axum",
    "reqwest",
    "rustix",
    "libc",
    "notify",
    "rand",
    "tracing-subscriber",
    "jiff",
    "chrono",
    "time",
];

/// Paths in source that pure crates may not name.
const IMPURE_PATHS: &[&str] = &[
    "std::fs",
    "std::env",
    "std::net",
    "std::process",
    "SystemTime",
    "Instant::now",
    "std::thread",
];

/// Texts that belong to one machine and never to the product.
const FOREIGN: &[&str] = &["/work/main", "/work/shared", "/tmp/h/", "/root/"];

pub(crate) fn run() -> Result<ExitCode> {
    let problems = problems()?;
    for problem in &problems {
        tool::say(&format!("tidy: {problem}"));
    }
    if problems.is_empty() {
        tool::say("tidy: all rules hold");
        return Ok(ExitCode::SUCCESS);
    }
    tool::say(&format!(
        "tidy: {} rule(s) broken; ARCHITECTURE.md says why each exists",
        problems.len()
    ));
    Ok(ExitCode::FAILURE)
}

/// Every broken rule, as one line each.
pub(crate) fn problems() -> Result<Vec<String>> {
    let metadata = metadata()?;
    let mut problems = Vec::new();
    let allowed: BTreeMap<&str, BTreeSet<&str>> = ARROWS
        .iter()
        .map(|(name, to)| (*name, to.iter().copied().collect()))
        .collect();
    for package in metadata["packages"]
        .as_array()
        .context("cargo metadata has no packages")?
    {
        let name = package["name"].as_str().unwrap_or_default();
        let manifest = package["manifest_path"].as_str().unwrap_or_default();
        let folder = Path::new(manifest)
            .parent()
            .and_then(Path::file_name)
            .and_then(|f| f.to_str())
            .unwrap_or_default();
        if folder != name {
            problems.push(format!(
                "{manifest}: crate `{name}` lies in folder `{folder}`; folder and crate have one name"
            ));
        }
        if package["publish"] != Value::Array(Vec::new()) {
            problems.push(format!("{manifest}: add `publish.workspace = true`"));
        }
        let Some(arrows) = allowed.get(name) else {
            problems.push(format!("{manifest}: crate `{name}` is not in the picture; add it to ARROWS in xtask/src/tidy.rs and to ARCHITECTURE.md"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let target = dependency["name"].as_str().unwrap_or_default();
            if !dependency["kind"].is_null() {
                continue;
            }
            if (target.starts_with("tessera") || target == "xtask") && !arrows.contains(target) {
                problems.push(format!("{manifest}: `{name}` may not depend on `{target}`; move what both need down, or argue the arrow in ARCHITECTURE.md"));
            }
            if PURE.contains(&name) && OUTSIDE.contains(&target) {
                problems.push(format!(
                    "{manifest}: `{name}` decides and may not reach outside; `{target}` does"
                ));
            }
        }
        let text = std::fs::read_to_string(manifest).with_context(|| format!("reading {manifest}"))?;
        if !text.contains("[lints]\nworkspace = true") {
            problems.push(format!("{manifest}: add `[lints]` with `workspace = true`"));
        }
    }
    source_rules(&mut problems)?;
    Ok(problems)
}

fn metadata() -> Result<Value> {
    let output = tool::cargo()
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .output()
        .context("running cargo metadata")?;
    serde_json::from_slice(&output.stdout).context("reading cargo metadata")
}

fn source_rules(problems: &mut Vec<String>) -> Result<()> {
    let root = tool::root();
    let listed = Command::new("git")
        .current_dir(&root)
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .output()
        .context("asking git for the files")?;
    for file in String::from_utf8_lossy(&listed.stdout).lines() {
        let path = root.join(file);
        let Ok(text) = std::fs::read_to_string(&path) else {
            continue;
        };
        if file != "xtask/src/tidy.rs" {
            for foreign in FOREIGN {
                if text.contains(foreign) {
                    problems.push(format!("{file}: names `{foreign}`, a place on one machine"));
                }
            }
        }
        let pure = PURE.iter().any(|name| file.starts_with(&format!("crates/{name}/src/")));
        if pure && Path::new(file).extension().is_some_and(|e| e == "rs") {
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            for (number, line) in code.lines().enumerate() {
                let line = line.split("//").next().unwrap_or_default();
                for path in IMPURE_PATHS {
                    if line.contains(path) {
                        problems.push(format!(
                            "{file}:{}: a decision crate uses `{path}`; take it as an argument",
                            number + 1
                        ));
                    }
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_repository_is_tidy() {
        let problems = super::problems().unwrap();
        assert!(problems.is_empty(), "{}", problems.join("\n"));
    }
}
