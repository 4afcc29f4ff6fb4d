//! The driver's own memory limits: built by the agent's code, felt by a program that does not load the library.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(clippy::print_stderr, reason = "tests say why they skip")]
#![allow(unsafe_code, reason = "a child enters its control group between fork and exec")]

mod shim_support;

use std::{
    collections::BTreeMap,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use shim_support::{Client, GIB, MIB, Machine};
use tessera_agent::wall::{Level, Promise, Wall, WallError};
use tessera_probe::DriverRoot;

const UID: &str = "6f1a2b3c-0000-4000-8000-00000000e3e3";
const MACHINE: &str = "TESSERA_SIM_ROOT";

/// A tree of control groups with one pod's, gone with the test.
struct Groups {
    root: PathBuf,
    pod: PathBuf,
}

impl Groups {
    fn new() -> Option<Self> {
        let base = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"]
            .into_iter()
            .map(Path::new)
            .find(|path| path.join("cgroup.procs").exists())?;
        let root = base.join(format!("tessera-wall-{}", std::process::id()));
        let pod = root.join("kubepods/besteffort").join(format!("pod{UID}"));
        std::fs::create_dir_all(&pod).ok()?;
        Some(Self { root, pod })
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        for folder in self.pod.ancestors().take(4) {
            // The system takes the dead out of their group a moment later.
            let removed = (0..100_000).any(|_| {
                std::thread::yield_now();
                std::fs::remove_dir(folder).is_ok()
            });
            if !removed {
                eprintln!("left behind: {}", folder.display());
            }
        }
    }
}

/// The simulated driver finds its machine by a variable, so the test runs itself again with it.
fn machine(test: &str, head: &str) -> Option<(DriverRoot, String)> {
    let name = "TESSERA_TEST_CARD";
    if let Some(root) = std::env::var_os(MACHINE) {
        let root = PathBuf::from(root);
        return Some((DriverRoot::new(&root, &root), std::env::var(name).unwrap()));
    }
    let machine = Machine::described(head, 1, 16384, 300);
    let mut again = Command::new(std::env::current_exe().unwrap());
    again
        .args(["--exact", test, "--nocapture"])
        .env(name, &machine.uuids[0]);
    machine.on_machine(&mut again);
    let output = again.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    None
}

/// A client without the library, in a control group.
fn bare(group: &Path) -> Client {
    let procs = group.join("cgroup.procs");
    let mut command = Command::new(env!("CARGO_BIN_EXE_cuda-client"));
    // SAFETY: one small write; the child has one thread and the parent's memory.
    unsafe { command.pre_exec(move || std::fs::write(&procs, "0")) };
    Client::spawn(command)
}

/// The same with a context.
fn bare_in(group: &Path) -> Client {
    let mut client = bare(group);
    client.make_ready(0);
    client
}

#[test]
fn a_pod_is_held_by_the_driver_before_its_first_process() {
    let Some((root, card)) = machine(
        "a_pod_is_held_by_the_driver_before_its_first_process",
        "driver: \"615.40\"\ncuda: \"13.4\"\n",
    ) else {
        return;
    };
    let Some(groups) = Groups::new() else {
        eprintln!("skipped: no control group can be made here");
        return;
    };
    let wall = Wall::new(root, "/sys".into(), groups.root.clone(), 100 * MIB, true);
    let of = |bytes| BTreeMap::from([(card.clone(), Promise { bytes, containers: 1 })]);
    let promise = of(924 * MIB);
    assert_eq!(
        wall.level(&card),
        Level::Library,
        "nothing is promised before the driver was asked"
    );
    wall.probe(&card).unwrap();
    assert_eq!(wall.level(&card), Level::Driver);
    assert!(matches!(
        wall.build("another-pod", &promise),
        Err(WallError::NoGroup { .. })
    ));
    wall.build(UID, &promise).unwrap();
    let mut client = bare_in(&groups.pod);
    client.expect("cuMemAlloc_v2 &p 700MiB", "0");
    client.expect("cuMemAlloc_v2 &q 100MiB", "2");
    assert_eq!(wall.used(UID, &card).unwrap(), Some(1000 * MIB));
    // A second process of the pod has the same wall; one outside has none.
    let mut second = bare(&groups.pod);
    second.expect("cuInit 0", "0");
    second.expect("cuDevicePrimaryCtxRetain &c 0", "2");
    assert_eq!(wall.used(UID, &card).unwrap(), Some(1000 * MIB));
    let mut free = Client::spawn(Command::new(env!("CARGO_BIN_EXE_cuda-client")));
    free.make_ready(0);
    free.expect("cuMemAlloc_v2 &p 8GiB", "0");
    // A larger promise holds at once.
    wall.build(UID, &of(2 * GIB)).unwrap();
    client.expect("cuMemAlloc_v2 &q 100MiB", "0");
}

#[test]
fn where_the_driver_cannot_the_level_is_the_librarys_and_the_reason_is_told() {
    let Some((root, card)) = machine(
        "where_the_driver_cannot_the_level_is_the_librarys_and_the_reason_is_told",
        "driver: \"580.95.05\"\n",
    ) else {
        return;
    };
    let wall = Wall::new(root, "/sys".into(), "/sys/fs/cgroup".into(), 0, false);
    let reason = wall.probe(&card).unwrap_err();
    assert_eq!(
        reason.call(),
        Some(("nvmlDeviceGetMemoryLimits_v1", tessera_probe::nvml::Code::NOT_SUPPORTED))
    );
    assert_eq!(wall.level(&card), Level::Library);
    // Nothing to build, so nothing is missing either.
    let promise = Promise {
        bytes: GIB,
        containers: 1,
    };
    wall.build(UID, &BTreeMap::from([(card, promise)])).unwrap();
}
