//! The monitor against a driver library: found, read, listened to, lost.
//!
//! The simulated driver finds its machine by an environment variable, so each
//! test runs itself again as a child with that variable set.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use tessera_probe::card::Sickness;
use tessera_probe::{DriverRoot, DriverState, Inventory, Monitor, MonitorConfig, XidPolicy};

const ROOT: &str = "TESSERA_SIM_ROOT";
const DEADLINE: Duration = Duration::from_secs(30);

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
    let program = target().join("tessera-simdriver");
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
    program
}

fn drive(root: &Path, verb: &str, arguments: &[&str]) {
    let mut command = Command::new(simdriver());
    command.arg(verb).arg("--root").arg(root).args(arguments);
    let out = command.output().expect("the driver's program runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

/// In the parent: makes a machine and runs the test again. In the child:
/// returns the machine.
fn machine(test: &str) -> Option<PathBuf> {
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

fn monitor(root: &Path) -> Monitor {
    Monitor::spawn(MonitorConfig {
        root: DriverRoot::new(root, root),
        sysfs: root.join("sys"),
        xids: XidPolicy::default(),
    })
    .expect("a thread")
}

fn wait(monitor: &Monitor, what: &str, wanted: impl Fn(&DriverState) -> bool) -> DriverState {
    let mut states = monitor.states();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        match tokio::time::timeout(DEADLINE, states.wait_for(|state| wanted(state))).await {
            Ok(state) => state.expect("the monitor lives").clone(),
            Err(_) => panic!("never: {what}, last {:?}", *monitor.states().borrow()),
        }
    })
}

fn until(monitor: &Monitor, what: &str, wanted: impl Fn(&Inventory) -> bool) -> Arc<Inventory> {
    let state = wait(
        monitor,
        what,
        |state| matches!(state, DriverState::Ready(found) if wanted(found)),
    );
    match state {
        DriverState::Ready(inventory) => inventory,
        DriverState::Waiting { reason } => panic!("{reason}"),
    }
}

fn all_well(found: &Inventory) -> bool {
    found.cards.iter().all(|card| card.sick.is_none())
}

#[test]
fn cards_are_read_with_their_facts() {
    let Some(root) = machine("cards_are_read_with_their_facts") else {
        return;
    };
    let monitor = monitor(&root);
    let inventory = until(&monitor, "two cards", |found| found.cards.len() == 2);
    assert!(!inventory.driver_version.is_empty());
    for (index, card) in (0..).zip(&inventory.cards) {
        let facts = &card.facts;
        assert_eq!(facts.index, index);
        assert_eq!(facts.minor, Some(index));
        assert!(
            facts.uuid.starts_with("GPU-") && facts.uuid.len() == 40,
            "{}",
            facts.uuid
        );
        assert_eq!(facts.model, "NVIDIA A100-SXM4-40GB");
        assert_eq!(facts.memory_total_mib(), Some(40_960));
        assert_eq!(facts.compute_capability, Some((8, 0)));
        assert!(!facts.pci_bus_id.is_empty());
        let profile = facts.mig_profiles.iter().find(|profile| profile.name == "1g.5gb");
        let profile = profile.expect("an A100 can be cut");
        assert_eq!(profile.instance_count, 7);
        assert_eq!(profile.placements.len(), 7);
    }
    let [a, b] = [&inventory.cards[0].facts.uuid, &inventory.cards[1].facts.uuid];
    assert_eq!(inventory.scores[a][b], inventory.scores[b][a]);
    assert!(inventory.scores[a][b] >= 10);
}

#[test]
fn an_event_makes_one_card_sick_and_probes_make_it_well() {
    let Some(root) = machine("an_event_makes_one_card_sick_and_probes_make_it_well") else {
        return;
    };
    let monitor = monitor(&root);
    until(&monitor, "two cards", |found| found.cards.len() == 2);
    // An application's fault has no consequence; the next one has.
    drive(&root, "fault", &["xid", "1", "31"]);
    drive(&root, "fault", &["xid", "1", "48"]);
    let inventory = until(&monitor, "sick", |found| found.cards[1].sick.is_some());
    assert_eq!(inventory.cards[1].sick, Some(Sickness::Xid(48)));
    assert_eq!(inventory.cards[0].sick, None);
    until(&monitor, "well", all_well);
    assert_eq!(monitor.counters().xids[&31], 1);
}

#[test]
fn a_card_off_the_bus_is_sick_and_the_other_stays() {
    let Some(root) = machine("a_card_off_the_bus_is_sick_and_the_other_stays") else {
        return;
    };
    let monitor = monitor(&root);
    until(&monitor, "two cards", |found| found.cards.len() == 2);
    drive(&root, "fault", &["lost", "0"]);
    let inventory = until(&monitor, "sick", |found| found.cards[0].sick.is_some());
    assert_eq!(inventory.cards.len(), 2, "its ids stay");
    assert_eq!(inventory.cards[1].sick, None);
    drive(&root, "reset", &[]);
    until(&monitor, "well", all_well);
}

#[test]
fn a_driver_that_fails_keeps_its_cards_as_sick_ones_until_it_is_back() {
    let name = "a_driver_that_fails_keeps_its_cards_as_sick_ones_until_it_is_back";
    let Some(root) = machine(name) else { return };
    let monitor = monitor(&root);
    until(&monitor, "two cards", |found| found.cards.len() == 2);
    drive(&root, "fault", &["nvml"]);
    let inventory = until(&monitor, "sick", |found| {
        found.cards.iter().all(|card| card.sick.is_some())
    });
    assert_eq!(inventory.cards.len(), 2);
    assert!(!monitor.counters().errors.is_empty());
    drive(&root, "reset", &[]);
    until(&monitor, "well", all_well);
}

#[test]
fn a_driver_that_is_installed_later_is_found() {
    let Some(root) = machine("a_driver_that_is_installed_later_is_found") else {
        return;
    };
    let hidden = root.with_file_name("hidden");
    std::fs::rename(root.join("lib64"), &hidden).expect("the libraries are moved");
    let monitor = monitor(&root);
    wait(
        &monitor,
        "waiting",
        |state| matches!(state, DriverState::Waiting { reason } if reason.contains("install the driver")),
    );
    std::fs::rename(&hidden, root.join("lib64")).expect("the libraries are moved back");
    until(&monitor, "two cards", |found| found.cards.len() == 2);
}
