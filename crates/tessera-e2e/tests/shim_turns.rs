//! Shares of a card's time and priorities, held by real processes on the simulated driver and the agent's turnstiles.
//!
//! Time is the machine's own: it stands while a process computes, so what is measured does not depend on the host. The
//! agent is a process of its own ([`agent`], this very file in another role), as on a node, because the clock looks at
//! processes.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(clippy::print_stdout, reason = "a figure is printed where it was measured")]

mod shim_support;

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use shim_support::{Client, Container, MIB, Machine, can_mount, eventually};
use tessera_agent::turns::Turnstiles;
use tessera_fake_core::{Machine as Driver, Process};
use tessera_region::{
    CardFlags, CardGrant, GATE_CLOSED,
    fs::{GrantDir, read_grant, scan},
    swap_host::monotonic_ns,
    turns_host::{TurnsHost, wait_for_bells},
};

const MS: u64 = 1_000_000;
/// Length of what is not measured at the beginning.
const WARM_UP_NS: u64 = 100 * MS;
/// Longest single wait for the machine's time, so that an earlier time can be set meanwhile.
const SLICE_NS: u64 = 50_000;

const ROLE: &str = "TESSERA_TEST_AGENT_OF";
const SPAN: &str = "TESSERA_TEST_SPAN_NS";
const BUSY: &str = "TESSERA_TEST_BUSY";

/// Rings a bell at a time of the machine, so that the agent can sleep on that and on the bells of containers at once: the
/// machine's time stands from the moment that somebody rings until the agent has answered, however busy the host is.
struct Alarm {
    at_ns: AtomicU64,
    bell: AtomicU32,
}

impl Alarm {
    const NEVER: u64 = u64::MAX;

    const fn new() -> Self {
        Self {
            at_ns: AtomicU64::new(Self::NEVER),
            bell: AtomicU32::new(0),
        }
    }

    /// Rings when its time has come; parked while there is none.
    #[expect(unsafe_code, reason = "wakes who sleeps on the bell")]
    fn run(&self, me: &Process, machine: &Driver) {
        loop {
            let at = self.at_ns.load(Ordering::SeqCst);
            if at == Self::NEVER {
                std::thread::park();
                continue;
            }
            me.sleep_until(at.min(machine.now_ns() + SLICE_NS));
            if machine.now_ns() >= at
                && self
                    .at_ns
                    .compare_exchange(at, Self::NEVER, Ordering::SeqCst, Ordering::SeqCst)
                    .is_ok()
            {
                self.bell.fetch_add(1, Ordering::SeqCst);
                // SAFETY: a word that lives for ever; waking has no other effect.
                unsafe { libc::syscall(libc::SYS_futex, self.bell.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
            }
        }
    }
}

/// The agent of a machine: gives turns to all its containers, and prints `PID NS` of work and `total NS BEGIN` for each
/// span of the machine's time.
#[test]
#[ignore = "no test: the agent's role of the others"]
fn agent() {
    let Some(root) = std::env::var_os(ROLE).map(std::path::PathBuf::from) else {
        return;
    };
    let number = |name: &str| std::env::var(name).unwrap().parse::<u64>().unwrap();
    let (span, busy) = (number(SPAN), usize::try_from(number(BUSY)).unwrap());
    let machine: &'static Driver = Box::leak(Box::new(Driver::at(&root.join("driver")).unwrap()));
    let me = Process::attach(machine).unwrap();
    let mut stiles = Turnstiles::default();
    let grants = root.join("grants");
    for id in scan(&grants).unwrap() {
        let dir = GrantDir::new(&grants, id);
        stiles.admit(&dir, read_grant(&dir).unwrap()).unwrap();
    }
    let work = || -> Vec<(u32, u64)> {
        let all = machine.processes(0);
        all.iter()
            .filter(|p| p.work_ns > 0)
            .map(|p| (p.pid, p.work_ns))
            .collect()
    };
    static ALARM: Alarm = Alarm::new();
    let alarm = std::thread::spawn(move || ALARM.run(&me, machine));
    let mut since: Option<(u64, Vec<(u32, u64)>)> = None;
    println!("ready");
    loop {
        let mut bells = stiles.bells();
        let now = machine.now_ns();
        let next = stiles.look(now, monotonic_ns());
        match &since {
            None if busy > 0 && work().len() >= busy => since = Some((now + WARM_UP_NS, Vec::new())),
            Some((at, before)) if before.is_empty() && now >= *at => since = Some((now, work())),
            Some((at, before)) if !before.is_empty() && now >= *at + span => {
                for (pid, ns) in work() {
                    let old = before.iter().find(|(known, _)| *known == pid).map_or(0, |(_, ns)| *ns);
                    println!("{pid} {}", ns - old);
                }
                println!("total {} {at}", now - at);
                since = Some((now, work()));
            }
            _ => {}
        }
        // A figure is due even where nobody needs the agent.
        let due = since
            .as_ref()
            .map(|(at, before)| if before.is_empty() { *at } else { *at + span });
        if !machine.is_virtual() {
            let pause = next.map_or(20 * MS, |at| at.saturating_sub(machine.now_ns()));
            wait_for_bells(&bells, pause.min(20 * MS));
        } else {
            bells.push((ALARM.bell.as_ptr().cast_const(), ALARM.bell.load(Ordering::SeqCst)));
            let at = next.into_iter().chain(due).min().unwrap_or(Alarm::NEVER);
            ALARM.at_ns.store(at, Ordering::SeqCst);
            alarm.thread().unpark();
            wait_for_bells(&bells, 20 * MS);
        }
    }
}

/// A running agent.
struct Agent {
    child: Child,
    said: BufReader<std::process::ChildStdout>,
}

impl Agent {
    /// Starts the agent of a machine whose containers are all there. It measures spans of the machine's time once so many
    /// processes work.
    fn of(machine: &Machine, busy: usize, span_ns: u64) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "agent", "--ignored", "--nocapture", "--test-threads=1"])
            .env(ROLE, machine.root.path())
            .env(SPAN, span_ns.to_string())
            .env(BUSY, busy.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        let mut agent = Self { child, said };
        while agent.line() != "ready" {}
        agent
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "the agent ended");
        // The first line comes behind the name of the test.
        line.trim_end().rsplit("... ").next().unwrap().to_owned()
    }

    /// Parts of the card's time in 1/10 of a percent over the next span, in the order of the clients.
    fn parts(&mut self, clients: &[Client]) -> Vec<u64> {
        self.parts_of(&clients.iter().map(|client| client.child.id()).collect::<Vec<_>>())
    }

    /// The same of any processes.
    fn parts_of(&mut self, pids: &[u32]) -> Vec<u64> {
        self.parts_from(0, pids)
    }

    /// The same over the first span that does not begin before a point of the machine's time.
    fn parts_from(&mut self, from_ns: u64, pids: &[u32]) -> Vec<u64> {
        let mut work = Vec::new();
        loop {
            let line = self.line();
            let Some((who, ns)) = line.split_once(' ') else {
                continue;
            };
            if who == "total" {
                let (ns, begin) = ns.split_once(' ').unwrap();
                let (ns, begin): (u64, u64) = (ns.parse().unwrap(), begin.parse().unwrap());
                if begin < from_ns {
                    work.clear();
                    continue;
                }
                return pids
                    .iter()
                    .map(|pid| {
                        let of = work.iter().find(|(known, _)| known == pid);
                        (of.map_or(0, |(_, ns)| *ns) * 1000 + ns / 2) / ns
                    })
                    .collect();
            }
            work.push((who.parse::<u32>().unwrap(), ns.parse::<u64>().unwrap()));
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let (Ok(()) | Err(_)) = self.child.kill();
        let (Ok(_) | Err(_)) = self.child.wait();
    }
}

fn virtual_machine(sms: u32) -> Machine {
    let card = format!("memory_mib: 1024, reserved_mib: 0, context_mib: 0, sms: {sms}");
    Machine::with_cards("clock: {virtual: {launch_ns: 2000}}\n", 1, &card)
}

/// A container with a share of the card's time in percent.
fn container(machine: &Machine, percent: u32, cap: bool) -> Container<'_> {
    let mut card = CardGrant::with_memory(&machine.uuids[0], 64 * MIB).unwrap();
    card.cores_permille = percent * 10;
    if cap {
        card.flags = card.flags.with(CardFlags::CORE_CAP);
    }
    machine.container_with([card])
}

/// What a client keeps launching.
#[derive(Clone, Copy)]
enum Work {
    Kernels,
    PerThread,
    Cooperative,
    Extended,
    Graphs,
}

impl Client {
    /// A block with this text in it.
    fn text(&mut self, name: &str, text: &str) {
        self.expect(&format!("@new {name} {}", text.len() + 1), "ok");
        for (at, bytes) in text.as_bytes().chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            let value = u64::from_le_bytes(word);
            self.expect(&format!("@set {name} {} {} {value}", at * 8, bytes.len()), "ok");
        }
    }

    /// Has a function `$f` that takes the whole card for so many microseconds, in a stream `$s`.
    fn load(&mut self, kernel_us: u64) {
        self.text("image", &format!("kernel k {kernel_us}\n"));
        self.expect("cuModuleLoadData &m *image", "0");
        self.expect("cuModuleGetFunction &f $m \"k", "0");
        self.expect("cuStreamCreate &s 1", "0");
    }

    /// Launches for ever; nothing is to be asked afterwards.
    fn start(&mut self, work: Work, kernel_us: u64) {
        self.load(kernel_us);
        let shape = "65535 1 1 32 1 1 0";
        let call = match work {
            Work::Kernels => format!("cuLaunchKernel $f {shape} $s null null"),
            Work::PerThread => format!("cuLaunchKernel_ptsz $f {shape} null null null"),
            Work::Cooperative => "cuLaunchCooperativeKernel $f 376 1 1 32 1 1 0 $s null".to_owned(),
            Work::Extended => {
                // Grid, block, shared memory, stream, attributes.
                self.expect("@new c 56", "ok");
                for (at, value) in [(0, 65535), (4, 1), (8, 1), (12, 32), (16, 1), (20, 1)] {
                    self.expect(&format!("@set c {at} 4 {value}"), "ok");
                }
                self.expect("@set c 32 8 $s", "ok");
                "cuLaunchKernelEx *c $f null null".to_owned()
            }
            Work::Graphs => {
                self.expect("cuStreamBeginCapture_v2 $s 0", "0");
                self.expect(&format!("@repeat 4 cuLaunchKernel $f {shape} $s null null"), "4");
                self.expect("cuStreamEndCapture $s &g", "0");
                self.expect("cuGraphInstantiateWithFlags &x $g 0", "0");
                "cuGraphLaunch $x $s".to_owned()
            }
        };
        self.send(&format!("@repeat 1000000000 {call}"));
    }
}

/// Parts in 1/10 of a percent of containers of these percentages, each with one busy process with kernels of so many
/// microseconds, over a span of the machine's time.
fn measure(percents: &[(u32, u64)], cap: bool, work: Work, sms: u32, span_ns: u64) -> Vec<u64> {
    let machine = virtual_machine(sms);
    let containers: Vec<Container> = percents.iter().map(|(p, _)| container(&machine, *p, cap)).collect();
    let mut agent = Agent::of(&machine, percents.len(), span_ns);
    let mut clients: Vec<Client> = containers.iter().map(Container::ready).collect();
    for (client, (_, us)) in clients.iter_mut().zip(percents) {
        client.start(work, *us);
    }
    agent.parts(&clients)
}

#[track_caller]
fn check(percents: &[(u32, u64)], cap: bool, work: Work, sms: u32, points: u64) {
    check_over(500 * MS, percents, cap, work, sms, points);
}

#[track_caller]
fn check_over(span_ns: u64, percents: &[(u32, u64)], cap: bool, work: Work, sms: u32, points: u64) {
    if !can_mount() {
        return;
    }
    let got = measure(percents, cap, work, sms, span_ns);
    println!("{percents:?} cap {cap}, {sms} SMs: {got:?}");
    for ((wanted, _), got) in percents.iter().zip(&got) {
        let off = got.abs_diff(u64::from(*wanted) * 10);
        assert!(off <= points * 10, "{percents:?}: got {got:?} tenths of a percent");
    }
}

#[test]
fn thirty_and_seventy_get_thirty_and_seventy() {
    check(&[(30, 1000), (70, 1000)], false, Work::Kernels, 132, 2);
}

#[test]
fn caps_of_ten_and_ninety_hold() {
    check(&[(10, 1000), (90, 1000)], true, Work::Kernels, 132, 3);
}

#[test]
fn three_tenants_with_kernels_of_different_length_get_their_parts() {
    check(&[(20, 100), (30, 1000), (50, 100)], false, Work::Kernels, 132, 3);
}

#[test]
fn a_cap_of_fifty_holds_a_tenant_that_is_alone_however_it_launches() {
    for (work, sms) in [
        (Work::Kernels, 16),
        (Work::PerThread, 132),
        (Work::Cooperative, 188),
        (Work::Extended, 132),
        (Work::Graphs, 132),
    ] {
        check(&[(50, 1000)], true, work, sms, 2);
    }
}

#[test]
fn a_cap_of_fifty_holds_for_short_and_long_kernels() {
    check(&[(50, 10)], true, Work::Kernels, 132, 2);
    // One kernel is 10 points of half a second, so it takes longer to see a share.
    check_over(4000 * MS, &[(50, 50_000)], true, Work::Kernels, 132, 3);
}

#[test]
fn a_holder_that_is_killed_leaves_the_card_to_the_other() {
    if !can_mount() {
        return;
    }
    let machine = virtual_machine(132);
    let both = [container(&machine, 30, false), container(&machine, 70, false)];
    let mut agent = Agent::of(&machine, 2, 500 * MS);
    let mut clients: Vec<Client> = both.iter().map(Container::ready).collect();
    for client in &mut clients {
        client.start(Work::Kernels, 1000);
    }
    let shared = agent.parts(&clients);
    assert!(shared.iter().all(|part| *part > 200), "{shared:?}");
    clients[1].kill();
    // What the dead one had on the card is waited for a while. The machine's time may have gone on by any number of
    // spans until the process was dead, and spans before that say nothing.
    let death = Driver::at(&machine.driver()).unwrap().now_ns();
    let alone = agent.parts_from(death + 300 * MS, &[clients[0].child.id()]);
    assert!(alone[0] >= 970, "{alone:?}");
}

/// A container that takes part in priorities.
fn ranked(machine: &Machine, priority: u8) -> Container<'_> {
    let mut card = CardGrant::with_memory(&machine.uuids[0], 64 * MIB).unwrap();
    card.priority = priority;
    card.min_cores_permille = 10;
    machine.container_with([card])
}

#[test]
fn best_effort_gets_what_is_kept_for_it_beside_a_busy_important_tenant() {
    if !can_mount() {
        return;
    }
    let machine = virtual_machine(132);
    let both = [ranked(&machine, 0), ranked(&machine, 1)];
    let mut agent = Agent::of(&machine, 2, 1000 * MS);
    let mut clients: Vec<Client> = both.iter().map(Container::ready).collect();
    for client in &mut clients {
        client.start(Work::Kernels, 100);
    }
    let got = agent.parts(&clients);
    println!("important and best effort: {got:?}");
    assert!(got[0] >= 950, "{got:?}");
    assert!((5..=20).contains(&got[1]), "{got:?}");
}

/// A program that launches two kernels of so many microseconds now and then, and tells how long they waited.
struct Paced {
    child: Child,
    said: BufReader<std::process::ChildStdout>,
}

impl Paced {
    fn of(container: &Container<'_>, kernel_us: u64, pause_us: u64, count: usize) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_share-probe"));
        container.enter(&mut command);
        command
            .arg("paced")
            .args([kernel_us, pause_us].map(|n| n.to_string()))
            .arg(count.to_string());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        Self { child, said }
    }

    /// Microseconds that the first kernel waited, and the second, at most places of ten and at most.
    fn line(&mut self) -> serde_json::Value {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"))
    }
}

impl Drop for Paced {
    fn drop(&mut self) {
        let (Ok(()) | Err(_)) = self.child.kill();
        let (Ok(_) | Err(_)) = self.child.wait();
    }
}

/// A figure in microseconds of a line of [`Paced`].
fn figure(line: &serde_json::Value, of: &str, which: &str) -> u64 {
    line[of][which].as_u64().unwrap()
}

#[test]
fn an_important_launch_waits_for_two_commands_and_stops_the_others_at_once() {
    if !can_mount() {
        return;
    }
    for effort_us in [100, 1000] {
        let machine = virtual_machine(132);
        let both = [ranked(&machine, 0), ranked(&machine, 1)];
        let mut agent = Agent::of(&machine, 2, 500 * MS);
        let mut effort = both[1].ready();
        let mut important = Paced::of(&both[0], 1000, 2000, 60);
        let alone = important.line();
        effort.start(Work::Kernels, effort_us);
        // The first line of both has what came before the neighbour.
        important.line();
        let beside = important.line();
        let got = agent.parts_of(&[important.child.id(), effort.child.id()]);
        println!("kernels of {effort_us} us: alone {alone}\n beside {beside}; parts of the card {got:?}");
        // A launch takes 2 us of the machine's time.
        let ahead = figure(&beside, "ahead", "most_us");
        assert!(
            ahead <= 2 * effort_us + 4,
            "{ahead} us of work ahead, kernels of {effort_us} us"
        );
        let between = figure(&beside, "between", "p90_us");
        assert!(
            // One that had passed the look. Now and then a busy host keeps the agent from answering for 50 ms of its own
            // time; after that nobody stands back any longer.
            between <= effort_us,
            "{between} us of work behind the ring, kernels of {effort_us} us"
        );
        // What the important one leaves.
        let idle = 1000 - got[0].min(1000);
        assert!(got[1] * 2 >= idle, "of {idle} best effort got {}", got[1]);
    }
}

#[test]
fn with_the_agent_dead_nobody_hangs_and_the_share_is_still_held() {
    if !can_mount() {
        return;
    }
    let machine = Machine::described("", 1, 1024, 0);
    let one = container(&machine, 50, true);
    let agent = Agent::of(&machine, 0, 1000 * MS);
    let mut client = one.ready();
    client.load(1000);
    client.expect("@repeat 20 cuLaunchKernel $f 65535 1 1 32 1 1 0 $s null null", "20");
    drop(agent);
    // The gate was closed when the agent died.
    let host = TurnsHost::open(&one.dir()).unwrap();
    host.set_gate(0, GATE_CLOSED);
    let start = Instant::now();
    client.expect("@repeat 400 cuLaunchKernel $f 65535 1 1 32 1 1 0 $s null null", "400");
    client.expect("cuStreamSynchronize $s", "0");
    // 400 ms of work at half of the card; only too fast is wrong on a busy host.
    assert!(start.elapsed() > Duration::from_millis(650), "{:?}", start.elapsed());
}

/// Nobody waits for work that the driver did not take, however it was launched: what the process tells is what it told
/// before, and the card goes on writing how far it is.
#[test]
fn a_refused_launch_takes_nothing_from_the_next() {
    if !can_mount() {
        return;
    }
    let machine = Machine::described("", 1, 1024, 0);
    let one = container(&machine, 50, true);
    let mut client = one.ready();
    client.load(1000);
    client.expect("cuStreamCreate &dead 1", "0");
    client.expect("cuStreamDestroy_v2 $dead", "0");
    client.expect("cuStreamBeginCapture_v2 $s 0", "0");
    client.expect("cuLaunchKernel $f 1 1 1 32 1 1 0 $s null null", "0");
    client.expect("cuStreamEndCapture $s &g", "0");
    client.expect("cuGraphInstantiateWithFlags &x $g 0", "0");
    client.expect("@new c 56", "ok");
    for (at, value) in [(0, 0), (4, 1), (8, 1), (12, 32), (16, 1), (20, 1)] {
        client.expect(&format!("@set c {at} 4 {value}"), "ok");
    }
    client.expect("@set c 32 8 $s", "ok");
    client.expect("@new list 56", "ok");
    client.expect("@set list 0 8 $f", "ok");
    client.expect("@set list 40 8 $s", "ok");
    let host = TurnsHost::open(&one.dir()).unwrap();
    let good = "cuLaunchKernel $f 65535 1 1 32 1 1 0 $s null null";
    // Once while the length of the kernel is not known, then while it is.
    for known in [false, true] {
        if known {
            // Each is marked, so one in sixteen is measured.
            client.expect(&format!("@repeat 20 {good}"), "20");
            client.expect("cuLaunchKernel_ptsz $f 1 1 1 32 1 1 0 null null null", "0");
            client.expect("cuCtxSynchronize", "0");
        }
        let told = || {
            let slots = host.head().unwrap();
            slots
                .slots()
                .map(|slot| host.figures(slot, 0).unwrap())
                .collect::<Vec<_>>()
        };
        let mut before = told();
        for call in [
            "cuLaunchKernel $f 0 1 1 32 1 1 0 $s null null",
            "cuLaunchKernel $f 1 1 1 32 1 1 0 $dead null null",
            "cuLaunchKernel 4096 1 1 1 32 1 1 0 $s null null",
            "cuLaunchKernel_ptsz $f 0 1 1 32 1 1 0 null null null",
            "cuLaunchKernel_ptsz 4096 1 1 1 32 1 1 0 $dead null null",
            "cuLaunchCooperativeKernel $f 0 1 1 32 1 1 0 $s null",
            "cuLaunchCooperativeKernel_ptsz $f 1 1 1 32 1 1 0 $dead null",
            "cuLaunchCooperativeKernelMultiDevice *list 1 0",
            "cuLaunchKernelEx *c $f null null",
            "cuLaunchKernelEx_ptsz *c $f null null",
            "cuLaunch 4096",
            "cuLaunchGrid $f 0 1",
            "cuLaunchGridAsync $f 1 1 $dead",
            "cuGraphLaunch $x $dead",
            "cuGraphLaunch 4096 $s",
            "cuGraphLaunch_ptsz 4096 $s",
        ] {
            for _ in 0..3 {
                let code = client.ask(call);
                assert_ne!(code, "0", "{call}");
                assert!(code.parse::<i32>().is_ok(), "{call}: {code}");
                let after = told();
                if before.is_empty() {
                    // The first launch of the process began its row.
                    assert_eq!((after[0].launched_ns, after[0].pending_ns), (0, 0), "{call}");
                    before = after;
                } else {
                    assert_eq!(after, before, "{call}, known: {known}");
                }
            }
        }
        client.expect(good, "0");
        let launched = told()[0].launched_ns - before[0].launched_ns;
        assert!((1..4 * MS).contains(&launched), "{launched} ns for one kernel");
        assert!(told()[0].marked_ns <= launched, "{:?}", told());
        eventually(Duration::from_secs(60), 0, || told()[0].pending_ns);
    }
}

#[test]
fn only_a_container_with_a_gate_is_led_to_one() {
    if !can_mount() {
        return;
    }
    let machine = virtual_machine(132);
    let plain = machine.container(&[64 * MIB]);
    let gated = container(&machine, 30, false);
    let whole = container(&machine, 100, true);
    for (name, of, place) in [
        ("cuLaunchKernel", &plain, "libcuda"),
        ("cuLaunchKernel", &whole, "libcuda"),
        ("cuLaunchKernel", &gated, "libvgpu"),
        ("cuLaunchKernelEx_ptsz", &gated, "libvgpu"),
        ("cuMemcpyDtoH_v2", &gated, "libcuda"),
        ("cuLaunchHostFunc", &gated, "libcuda"),
    ] {
        let mut client = of.ready();
        let found = client.ask(&format!("@dlsym libcuda {name}"));
        assert!(found.contains(place), "{name}: {found}");
    }
}
