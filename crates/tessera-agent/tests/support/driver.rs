//! A simulated machine for a test. Its driver finds it by an environment
//! variable, so the test runs itself again as a child with that variable set.

use std::path::{Path, PathBuf};
use std::process::Command;

const ROOT: &str = "TESSERA_SIM_ROOT";

const CARDS: &str = "
cards:
  - model: A100-SXM4-40GB
    count: 2
";

fn target() -> PathBuf {
    let test = std::env::current_exe().expect("the test's own path");
    test.parent()
        .and_then(Path::parent)
        .expect("target/<profile>/deps")
        .to_owned()
}

/// The driver's program, built when it is missing.
fn simdriver() -> PathBuf {
    let complete = ["tessera-simdriver", "libcuda.so", "libnvidia_ml.so"]
        .iter()
        .all(|name| target().join(name).is_file());
    if !complete {
        let built = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
            .args(["build", "-p", "tessera-fake-core", "-p", "tessera-fake-cuda"])
            .args(["-p", "tessera-fake-nvml"])
            .status()
            .expect("cargo runs");
        assert!(built.success());
    }
    target().join("tessera-simdriver")
}

/// Does something to the machine.
pub(crate) fn drive(root: &Path, verb: &str, arguments: &[&str]) {
    let mut command = Command::new(simdriver());
    command.arg(verb).arg("--root").arg(root).args(arguments);
    let out = command.output().expect("the driver's program runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

/// In the parent: makes a machine of two cards and runs the test again. In the
/// child: returns the machine.
pub(crate) fn machine(test: &str) -> Option<PathBuf> {
    if let Some(root) = std::env::var_os(ROOT) {
        return Some(root.into());
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cards = folder.path().join("cards.yaml");
    std::fs::write(&cards, CARDS).expect("the description is written");
    let root = folder.path().join("root");
    drive(&root, "install", &["--cards", &cards.display().to_string()]);
    let out = Command::new(std::env::current_exe().expect("the test's own path"))
        .args(["--exact", test, "--nocapture"])
        .env(ROOT, &root)
        .output()
        .expect("the test runs again");
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(
        out.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&out.stderr)
    );
    None
}

/// The enforcement library, built when it is missing.
#[allow(dead_code, reason = "each test file uses its part")]
pub(crate) fn library() -> PathBuf {
    let path = target().join("libvgpu.so");
    if !path.is_file() {
        let built = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
            .args(["build", "-p", "tessera-shim"])
            .status()
            .expect("cargo runs");
        assert!(built.success());
    }
    path
}
