//! Machines with a clock of their own, a multi-process server, control-group limits, checkpoints
//! and odd management libraries.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::path::{Path, PathBuf};
use std::time::Instant;

use common::{Client, MIB, Root};
use tessera_fake_core::{Flaw, Odd, Pool};

const VIRTUAL: &str = "{clock: {virtual: {launch_ns: 5000}}, granule_kib: 4, \
     cards: [{model: small, memory_mib: 1088, reserved_mib: 64, context_mib: 0, sms: 16}]}";

fn millis(answer: &str) -> f32 {
    answer.split_once(' ').unwrap().1.parse().unwrap()
}

/// State of a process as the system shows it.
fn wait_for_state(pid: u32, wanted: char) {
    loop {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        if text.rsplit(')').next().unwrap().trim_start().starts_with(wanted) {
            return;
        }
        std::thread::yield_now();
    }
}

fn signal(client: &Client, number: i32) {
    // SAFETY: a signal to our own child.
    #[expect(unsafe_code, reason = "a call of the system's")]
    let sent = unsafe { libc::kill(client.child.id().try_into().unwrap(), number) };
    assert_eq!(sent, 0);
}

#[test]
fn virtual_time_is_exact_and_costs_no_real_time() {
    let root = Root::new(VIRTUAL);
    let begun = Instant::now();
    let mut client = root.client().start();
    // A minute of work, and the same figure whatever the host does meanwhile.
    assert!((millis(&client.ask("kernel 60 1000000")) - 60_000.0).abs() < 0.01);
    // And the 5 us of host time of the first launch.
    assert_eq!(client.ask("kernel 1000 10"), "0 10.005");
    assert!(begun.elapsed().as_secs() < 50, "{:?}", begun.elapsed());
}

#[test]
fn two_waiting_processes_move_the_clock_together() {
    let root = Root::new(VIRTUAL);
    let (mut a, mut b) = (root.client().start(), root.client().start());
    let before = root.machine().now_ns();
    a.tell("kernel 400 1000");
    b.tell("kernel 400 1000");
    let longest = millis(&a.hear()).max(millis(&b.hear()));
    let passed = root.machine().now_ns() - before;
    // 800 ms of work on one card: no less, and nothing beside the host time of the launches.
    assert!((800_000_000..805_000_000).contains(&passed), "{passed}");
    assert!((400.0..=805.0).contains(&longest), "{longest}");
}

#[test]
fn the_clock_goes_on_without_the_dead_the_stopped_and_those_that_compute() {
    let root = Root::new(VIRTUAL);
    let mut stopped = root.client().start();
    signal(&stopped, libc::SIGSTOP);
    wait_for_state(stopped.child.id(), 'T');
    let doomed = root.client().start();
    drop(doomed);
    let mut client = root.client().start();
    assert_eq!(client.ask("kernel 100 10000"), "0 1000.005");
    let mut busy = root.client().start();
    assert_eq!(busy.ask("spin"), "spinning");
    assert_eq!(client.ask("kernel 10 1000"), "0 10.005");
    busy.tell("");
    signal(&stopped, libc::SIGCONT);
    assert_eq!(stopped.ask("kernel 1 1000"), "0 1.005");
}

#[test]
fn asking_again_and_again_lets_virtual_time_pass() {
    let root = Root::new(VIRTUAL);
    let mut client = root.client().start();
    // Each question costs the host time of a launch: 20 ms of work are 4000 of 5 us.
    let asked: u64 = client.ask("poll 10 2000").parse().unwrap();
    assert!((3900..=4001).contains(&asked), "{asked}");
}

#[test]
fn a_scaled_clock_runs_faster() {
    let root = Root::new(
        "{clock: {scaled: 100.0}, cards: [{model: small, memory_mib: 1088, reserved_mib: 64, context_mib: 0, sms: 16}]}",
    );
    let mut client = root.client().start();
    let begun = Instant::now();
    let took = millis(&client.ask("kernel 10 1000000"));
    let real = begun.elapsed().as_secs_f32() * 1000.0;
    // At least the work; and a hundredth of it in real time.
    assert!(took >= 10_000.0 && took <= real * 100.0 + 1.0, "{took} ms in {real} ms");
}

#[test]
fn a_multi_process_server_limits_its_clients_by_their_variables() {
    let root = Root::new(
        "{mps: true, granule_kib: 4, cards: [{model: small, memory_mib: 1088, reserved_mib: 64, context_mib: 0, sms: 16}]}",
    );
    let mut client = root
        .client_with(&[
            ("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "25"),
            ("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT", "0=64M"),
        ])
        .start();
    assert_eq!(client.ask("sms"), "4");
    assert_eq!(client.ask("fill 1048576"), "64 2");
    let pid = client.child.id();
    assert_eq!(client.ask("lists"), format!("0 1 {pid}"));
    let mut free = root.client().start();
    assert_eq!(free.ask("sms"), "16");
    assert_eq!(free.ask("fill 1048576"), "960 2");

    let root = Root::new("cards: [{model: T4}]");
    let mut client = root
        .client_with(&[("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT", "0=64M")])
        .start();
    assert_eq!(
        client.ask("alloc 134217728"),
        "0",
        "without a server the variable says nothing"
    );
    assert_eq!(client.ask("lists"), format!("1 0 {}", client.child.id()));
}

/// A control group of its own, gone with the test; nothing where none can be made.
struct Group(PathBuf);

impl Group {
    fn new(name: &str) -> Option<Self> {
        let base = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"]
            .into_iter()
            .map(Path::new)
            .find(|p| p.join("cgroup.procs").exists())?;
        let folder = base.join(format!("tessera-test-{}-{name}", std::process::id()));
        std::fs::create_dir(&folder).ok()?;
        Some(Self(folder))
    }

    fn take(&self, client: &Client) {
        std::fs::write(self.0.join("cgroup.procs"), client.child.id().to_string()).unwrap();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Its processes are dead, but the system may not have taken them out yet.
        for _ in 0..10_000 {
            if std::fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::yield_now();
        }
    }
}

const LIMITED: &str = "{driver: \"615.40\", cuda: \"13.4\", granule_kib: 4, \
     cards: [{model: small, memory_mib: 1088, reserved_mib: 64, context_mib: 0, sms: 16}]}";

#[test]
fn the_driver_holds_a_control_group_to_its_memory() {
    let Some(group) = Group::new("hold") else {
        println!("skipped: no control group can be made here");
        return;
    };
    let root = Root::new(LIMITED);
    let mut agent = root.client();
    let folder = group.0.display().to_string();
    let (all, hard) = (1088 * MIB, 100 * MIB);
    assert_eq!(agent.ask(&format!("limits {folder}")).split(' ').next(), Some("6"));
    assert_eq!(
        agent.ask(&format!("limits {folder} {hard} {hard}")),
        format!("0 {hard} {hard} 0")
    );
    assert_eq!(agent.ask(&format!("limits {folder} 2 1")).split(' ').next(), Some("2"));
    assert_eq!(
        agent.ask(&format!("limits {folder} 0 {}", all + 1)).split(' ').next(),
        Some("2")
    );
    assert_eq!(agent.ask("limits /nowhere 0 1").split(' ').next(), Some("17"));

    // Two processes in the group share its limit; one outside has none.
    let (mut a, mut b, mut free) = (root.client(), root.client(), root.client().start());
    group.take(&a);
    group.take(&b);
    (a, b) = (a.start(), b.start());
    assert_eq!(a.ask("alloc 62914560"), "0");
    assert_eq!(b.ask("fill 1048576"), "40 2");
    assert_eq!(
        agent.ask(&format!("limits {folder}")),
        format!("0 {hard} {hard} {hard}")
    );
    assert_eq!(free.ask("alloc 524288000"), "0");
    // What the dead held is there for the living.
    drop(a);
    assert_eq!(b.ask("fill 1048576"), "60 2");
    // Cleared: only the card is the limit.
    assert_eq!(
        agent.ask(&format!("limits {folder} 0 {}", u64::MAX)).split(' ').next(),
        Some("0")
    );
    assert_eq!(b.ask("alloc 209715200"), "0");
    assert_eq!(agent.ask(&format!("limits {folder}")).split(' ').next(), Some("6"));
    assert_eq!(root.machine().flaws(), []);
}

#[test]
fn an_older_driver_has_no_limits_and_a_machine_can_say_why() {
    for (machine, code) in [
        ("cards: [{model: T4}]", "3"),
        ("{memory_limits: no_permission, cards: [{model: T4}]}", "4"),
        ("{memory_limits: operating_system, cards: [{model: T4}]}", "17"),
        ("{driver: \"615.1\", cards: [{model: A100-SXM4-40GB, mig: on}]}", "3"),
    ] {
        let root = Root::new(machine);
        let answer = root.client().ask("limits /sys/fs/cgroup 0 1048576");
        assert_eq!(answer.split(' ').next(), Some(code), "{machine}");
    }
}

#[test]
fn a_checkpoint_takes_a_process_off_the_card_and_puts_it_back() {
    let root = Root::new(LIMITED);
    let machine = root.machine();
    let (mut tenant, mut other) = (root.client().start(), root.client().start());
    let pid = tenant.child.id();
    assert_eq!(tenant.ask("alloc 629145600"), "0");
    assert_eq!(tenant.ask("write 77"), "0");
    let mut agent = root.client();
    let step = |agent: &mut Client, step: &str| agent.ask(&format!("checkpoint {step} {pid}"));
    assert_eq!(step(&mut agent, "take"), "401", "not locked");
    assert_eq!(step(&mut agent, "lock"), "0");
    assert_eq!(step(&mut agent, "take"), "0");
    assert_eq!(step(&mut agent, "state"), "0 2");
    assert_eq!(machine.used_bytes(Pool::whole(0)), 0);
    assert_eq!(other.ask("alloc 629145600"), "0");
    // No room: it stays away, and its calls wait.
    assert_eq!(step(&mut agent, "restore"), "2");
    tenant.tell("read");
    assert_eq!(step(&mut agent, "state"), "0 2");
    assert_eq!(other.ask("free"), "0");
    assert_eq!(step(&mut agent, "restore"), "0");
    assert_eq!(step(&mut agent, "unlock"), "0");
    assert_eq!(tenant.hear(), "0 77");
    assert_eq!(machine.used_bytes(Pool::whole(0)), 600 * MIB);
    assert_eq!(agent.ask("checkpoint lock 1"), "1", "no such process");
    assert_eq!(machine.flaws(), []);
    // One that dies off the card leaves nothing behind.
    for what in ["lock", "take"] {
        assert_eq!(step(&mut agent, what), "0");
    }
    drop(tenant);
    assert_eq!(machine.used_bytes(Pool::whole(0)), 0);
    assert_eq!(other.ask("alloc 943718400"), "0");
}

#[test]
fn an_odd_management_library_lies_about_pids() {
    let root = Root::new("cards: [{model: T4}]");
    let mut client = root.client().start();
    root.machine().set_odd(Odd::ZERO_PID);
    assert_eq!(client.ask("lists"), "1 0 0");
    root.machine().set_odd(Odd::REUSED_PID);
    assert_eq!(client.ask("lists"), "1 0 1");
    root.machine().reset_faults();
    assert_eq!(client.ask("lists"), format!("1 0 {}", client.child.id()));
}

#[test]
fn the_machine_notes_a_pointer_that_was_not_live() {
    let root = Root::new("cards: [{model: T4}]");
    let mut client = root.client().start();
    assert_eq!(client.ask("alloc 4096"), "0");
    assert_eq!(client.ask("free-twice"), "0 1");
    assert_eq!(root.machine().flaws(), [(Flaw::UnknownPointer, 1)]);
}
