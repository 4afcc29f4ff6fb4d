//! Runs `clients.py`: unmodified Python clients on the installed libraries.
//!
//! The interpreter is `TESSERA_CLIENTS_PYTHON`, else the one of the cached environment that
//! `clients.sh` makes. Without one the test says so and passes.

use std::path::{Path, PathBuf};
use std::process::Command;

fn interpreter() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("TESSERA_CLIENTS_PYTHON") {
        return Some(path.into());
    }
    let cache = std::env::var_os("TESSERA_CACHE").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/tessera"),
        PathBuf::from,
    );
    Some(cache.join("venv-clients/bin/python")).filter(|p| p.exists())
}

#[test]
fn unmodified_clients_work() {
    let Some(python) = interpreter() else {
        println!("skipped: no interpreter with the clients; run tests/clients.sh to make one");
        return;
    };
    let exe = std::env::current_exe().unwrap();
    let folder = exe.parent().and_then(Path::parent).unwrap();
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .args([
            "build",
            "--quiet",
            "-p",
            "tessera-fake-core",
            "-p",
            "tessera-fake-cuda",
            "-p",
            "tessera-fake-nvml",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    if folder.ends_with("release") {
        cargo.arg("--release");
    }
    assert!(cargo.status().unwrap().success());

    let base = if Path::new("/dev/shm").is_dir() {
        "/dev/shm"
    } else {
        "/tmp"
    };
    let root = tempfile::tempdir_in(base).unwrap();
    let machine = root.path().join("cards.yaml");
    std::fs::write(&machine, "cards: [{model: A100-SXM4-40GB, count: 2}]\n").unwrap();
    let install = Command::new(folder.join("tessera-simdriver"))
        .args(["install", "--cards"])
        .arg(&machine)
        .arg("--root")
        .arg(root.path())
        .status()
        .unwrap();
    assert!(install.success());
    let status = Command::new(python)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients.py"))
        .env("TESSERA_SIM_ROOT", root.path())
        .env("LD_LIBRARY_PATH", root.path().join("lib64"))
        .env_remove("CUDA_VISIBLE_DEVICES")
        .status()
        .unwrap();
    assert!(status.success());
}
