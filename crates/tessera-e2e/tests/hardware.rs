//! `hardware/run` on a simulated card: the script works on the day a real one is there.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(clippy::print_stderr, reason = "tests say why they skip")]

mod shim_support;

use std::{path::PathBuf, process::Command};

use shim_support::{BUILT, can_mount};

fn interpreter() -> Option<PathBuf> {
    let named = std::env::var_os("TESSERA_CLIENTS_PYTHON").map(PathBuf::from);
    let cached = || {
        let cache = std::env::var_os("TESSERA_CACHE").map(PathBuf::from);
        let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/tessera");
        Some(cache.unwrap_or_else(home).join("venv-clients/bin/python")).filter(|path| path.exists())
    };
    named.or_else(cached)
}

#[test]
fn the_hardware_suite_writes_its_record_on_a_simulated_card() {
    let Some(python) = interpreter() else {
        eprintln!("skipped: no interpreter with cuda-bindings");
        return;
    };
    if !can_mount() {
        return;
    }
    shim_support::tessera();
    let out = tempfile::tempdir().unwrap();
    let output = Command::new(&python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../../hardware/run"))
        .args(["--simulated", "--seconds", "0.1", "--binaries"])
        .arg(&*BUILT)
        .arg("--out")
        .arg(out.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let page = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
    let text = std::fs::read_to_string(&page).unwrap();
    assert!(text.contains("**A simulated card.**"), "{text}");
    let record: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(page.with_extension("json")).unwrap()).unwrap();
    // Half of 4032 MiB, shown and to be had to the last piece.
    assert_eq!(record["accuracy"]["asked_mib"], 2016);
    assert_eq!(record["accuracy"]["shown_mib"], 2016);
    assert_eq!(record["accuracy"]["had_mib"], 2016);
    for name in ["launch_us", "allocate_free_us"] {
        assert!(
            record["cost"][name]["ratio"].as_f64().is_some_and(|ratio| ratio > 0.0),
            "{record}"
        );
    }
    assert_eq!(record["shares"][0]["asked"], serde_json::json!([30, 70]));
    assert!(record["latency"]["ratio"].as_f64().is_some(), "{record}");
}
