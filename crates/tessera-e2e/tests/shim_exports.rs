//! What the built library exports and needs.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(clippy::print_stderr, reason = "tests say why they skip")]

mod shim_support;

use std::{collections::BTreeSet, path::Path, process::Command};

use shim_support::library;

/// Name, whether it is defined here, and the version that is asked for.
fn symbols(file: &Path) -> Vec<(String, bool, Option<String>)> {
    let output = Command::new("readelf")
        .args(["--dyn-syms", "--wide"])
        .arg(file)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (kind, section, name) = (fields.get(4)?, fields.get(6)?, fields.get(7)?);
            let (name, version) = name.split_once('@').map_or((*name, None), |(n, v)| (n, Some(v)));
            let version = version.map(|v| v.trim_start_matches('@').to_owned());
            matches!(*kind, "GLOBAL" | "WEAK").then(|| (name.to_owned(), *section != "UND", version))
        })
        .collect()
}

#[test]
fn the_exported_names_are_those_of_the_golden_file() {
    let exported: BTreeSet<String> = symbols(&library())
        .into_iter()
        .filter(|(_, defined, _)| *defined)
        .map(|(name, ..)| name)
        .collect();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tessera-shim/exports.txt");
    let expected: BTreeSet<String> = std::fs::read_to_string(&golden)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect();
    let more: Vec<_> = exported.difference(&expected).collect();
    let fewer: Vec<_> = expected.difference(&exported).collect();
    assert!(
        more.is_empty() && fewer.is_empty(),
        "not in {}: {more:?}; missing: {fewer:?}",
        golden.display()
    );
}

#[test]
fn every_name_of_the_driver_has_a_class() {
    for (file, prefix, classes) in [
        ("libcuda.so", "cu", include_str!("../../tessera-shim/classes.txt")),
        (
            "libnvidia_ml.so",
            "nvml",
            include_str!("../../tessera-shim/nvml-classes.txt"),
        ),
    ] {
        let classified: BTreeSet<&str> = classes
            .lines()
            .filter(|l| !l.starts_with('#'))
            .filter_map(|l| l.split(' ').nth(1))
            .collect();
        let exported: Vec<String> = symbols(&shim_support::BUILT.join(file))
            .into_iter()
            .filter(|(name, defined, _)| *defined && name.starts_with(prefix))
            .map(|(name, ..)| name)
            .collect();
        assert!(exported.len() > 400, "{file} exports {} names only", exported.len());
        let unknown: Vec<_> = exported
            .iter()
            .filter(|name| !classified.contains(name.as_str()))
            .collect();
        assert!(unknown.is_empty(), "no class for {unknown:?}");
    }
}

/// The library for images, if it was built: `crates/tessera-shim/build-dist.sh`.
#[test]
fn the_distributed_library_runs_on_old_images() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/dist-shim/libvgpu.so");
    if !file.exists() {
        eprintln!("skipped: {} is not built", file.display());
        return;
    }
    let written = |path: &Path| std::fs::metadata(path).unwrap().modified().unwrap();
    let list = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tessera-shim/exports.txt");
    if written(&file) < written(&list) {
        eprintln!("skipped: {} is older than the list of exports", file.display());
        return;
    }
    for (name, defined, version) in symbols(&file) {
        let Some(version) = version.filter(|_| !defined) else {
            continue;
        };
        let Some(numbers) = version.strip_prefix("GLIBC_") else {
            continue;
        };
        let minor: Vec<u32> = numbers
            .split(' ')
            .next()
            .unwrap()
            .split('.')
            .map(|n| n.parse().unwrap())
            .collect();
        assert!(minor.as_slice() <= [2, 17].as_slice(), "{name} needs {version}");
    }
    let exported: BTreeSet<String> = symbols(&file)
        .into_iter()
        .filter(|(_, defined, _)| *defined)
        .map(|(name, ..)| name)
        .collect();
    let golden = include_str!("../../tessera-shim/exports.txt");
    assert_eq!(exported, golden.lines().map(str::to_owned).collect());
}
