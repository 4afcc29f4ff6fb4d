//! Memory that leaves the card and comes back: real processes on the simulated driver, and the agent's keeper.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(clippy::print_stdout, reason = "a figure is printed where it was measured")]

mod shim_support;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use shim_support::{Client, Container, MIB, Machine, can_mount, eventually};
use tessera_agent::room::{Action, Keeper, Tenant};
use tessera_fake_core::{Machine as Driver, Pool};
use tessera_region::{
    CardFlags, CardGrant, Order,
    swap_host::{SwapHost, monotonic_ns},
};

/// A card of 192 MiB and containers that were each promised all of it.
fn containers(machine: &Machine, count: usize, mib: u64) -> Vec<Container<'_>> {
    (0..count)
        .map(|_| {
            let card = CardGrant {
                flags: CardFlags::SWAP,
                ..CardGrant::with_memory(&machine.uuids[0], mib * MIB).unwrap()
            };
            machine.container_with([card])
        })
        .collect()
}

fn now_ns(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap() + 1
}

/// Free bytes of the first card.
fn free(driver: &Driver) -> u64 {
    driver.card(0).usable_bytes() - driver.used_bytes(Pool::whole(0))
}

/// The agent's keeper over some containers, on a thread until dropped.
struct Rooms {
    stop: Arc<AtomicBool>,
    orders: Arc<Mutex<Vec<Order>>>,
    thread: Option<JoinHandle<()>>,
}

impl Rooms {
    fn over(machine: &Machine, containers: &[Container<'_>]) -> Self {
        let hosts: Vec<(String, SwapHost)> = containers
            .iter()
            .map(|one| (one.grant.id.to_string(), SwapHost::open(&one.dir()).unwrap()))
            .collect();
        let driver = Driver::at(&machine.driver()).unwrap();
        let (stop, orders) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (flag, list) = (Arc::clone(&stop), Arc::clone(&orders));
        let thread = std::thread::spawn(move || {
            let (start, mut keeper) = (Instant::now(), Keeper::default());
            while !flag.load(Ordering::SeqCst) {
                let clock = monotonic_ns();
                let tenants: Vec<Tenant> = hosts
                    .iter()
                    .map(|(grant, host)| {
                        host.beat(clock);
                        Tenant {
                            grant: grant.clone(),
                            says: host.container(0, clock),
                        }
                    })
                    .collect();
                for action in keeper.step(now_ns(start), free(&driver), &tenants) {
                    if let Action::Order { grant, order } = action {
                        let (_, host) = hosts.iter().find(|(name, _)| *name == grant).unwrap();
                        // Before it is given: a client may answer the test as soon as it is.
                        list.lock().unwrap().push(order);
                        keeper.given(&grant, host.give(0, order), now_ns(start));
                    }
                }
                std::thread::sleep(Duration::from_micros(500));
            }
        });
        Self {
            stop,
            orders,
            thread: Some(thread),
        }
    }

    fn orders(&self) -> Vec<Order> {
        self.orders.lock().unwrap().clone()
    }
}

impl Drop for Rooms {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// The word at an offset of a client's memory.
fn word(client: &mut Client, variable: &str, at: u64) -> u64 {
    client.expect("@new w 8", "ok");
    client.expect(&format!("cuMemcpyDtoH_v2 *w ${variable}+{at} 4"), "0");
    client.ask("@get w 0 4").parse().unwrap()
}

const SMALL: u64 = 192;

#[test]
fn two_tenants_with_twice_the_card_keep_their_data_over_many_turns() {
    if !can_mount() {
        return;
    }
    let card = 96;
    let machine = Machine::described("", 1, card, 0);
    let both = containers(&machine, 2, card);
    let rooms = Rooms::over(&machine, &both);
    let mut clients: Vec<Client> = both.iter().map(Container::ready).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        // All of the promise, in two pieces of which one has two chunks; the second tenant finds the card full.
        client.expect("cuMemAlloc_v2 &p 72MiB", "0");
        client.expect("cuMemAlloc_v2 &q 24MiB", "0");
        client.expect("cuMemAlloc_v2 &r 2MiB", "2");
        // The simulated driver writes at most 64 MiB a call.
        for place in ["p", "p+24MiB", "p+48MiB", "q"] {
            client.expect(&format!("cuMemsetD32_v2 ${place} {} {}", 100 + n, 6 * MIB), "0");
        }
    }
    for round in 0..2_u64 {
        for (n, client) in clients.iter_mut().enumerate() {
            let expected = 100 + u64::try_from(n).unwrap();
            for (variable, at) in [("p", 0), ("p", 60 * MIB), ("p", 72 * MIB - 4), ("q", 10 * MIB)] {
                let expected = if round > 0 && at == 60 * MIB {
                    1000 * round + expected
                } else {
                    expected
                };
                assert_eq!(
                    word(client, variable, at),
                    expected,
                    "round {round} of {n}: {variable}+{at}"
                );
            }
            let changed = 1000 * (round + 1) + expected;
            client.expect(&format!("cuMemsetD32_v2 $p+{} {changed} 1", 60 * MIB), "0");
        }
    }
    let leaves = rooms
        .orders()
        .iter()
        .filter(|o| matches!(o, Order::Leave { .. }))
        .count();
    assert!(leaves >= 3, "{leaves} exchanges");
    for client in &mut clients {
        // The view is the promise, wherever the memory is.
        assert_eq!(client.memory(), (0, card * MIB));
        client.expect("cuMemGetAddressRange_v2 &b &s $p+65MiB", "0");
        let size = client.value("cuMemGetAddressRange_v2 &b &s $p", "s");
        assert_eq!(size, 72 * MIB);
        client.expect("cuMemFree_v2 $p", "0");
        client.expect("cuMemFree_v2 $q", "0");
        assert_eq!(client.memory(), (card * MIB, card * MIB));
    }
    let driver = Driver::at(&machine.driver()).unwrap();
    assert_eq!(driver.used_bytes(Pool::whole(0)), 0);
    assert_eq!(driver.flaws(), []);
}

#[test]
fn a_tenant_that_is_away_takes_only_what_is_missing() {
    if !can_mount() {
        return;
    }
    let machine = Machine::described("", 1, 512, 0);
    let both = containers(&machine, 2, 512);
    let rooms = Rooms::over(&machine, &both);
    let (mut a, mut b) = (both[0].ready(), both[1].ready());
    a.expect("cuMemAlloc_v2 &p 448MiB", "0");
    a.expect("cuMemsetD8_v2 $p 1 4", "0");
    b.expect("cuMemAlloc_v2 &p 128MiB", "0");
    b.expect("cuMemsetD8_v2 $p 2 4", "0");
    assert_eq!(
        rooms.orders(),
        [Order::Leave { keep_bytes: 384 * MIB }, Order::Return],
        "64 MiB were free"
    );
    let host = SwapHost::open(&both[0].dir()).unwrap();
    let says = host.container(0, monotonic_ns());
    assert_eq!((says.resident_bytes, says.away_bytes), (384 * MIB, 64 * MIB));
    assert_eq!(word(&mut b, "p", 0), 0x0202_0202);
}

#[test]
fn a_killed_tenant_leaves_its_room_to_the_other() {
    if !can_mount() {
        return;
    }
    let machine = Machine::described("", 1, SMALL, 0);
    let both = containers(&machine, 2, SMALL);
    let _rooms = Rooms::over(&machine, &both);
    let (mut a, mut b) = (both[0].ready(), both[1].ready());
    a.expect("cuMemAlloc_v2 &p 192MiB", "0");
    b.expect("cuMemAlloc_v2 &p 192MiB", "0");
    b.expect("cuMemsetD32_v2 $p 9 1024", "0");
    // Away and waiting, and killed there.
    a.send("cuMemsetD32_v2 $p 7 1024");
    a.kill();
    assert_eq!(word(&mut b, "p", 4092), 9);
    let mut next = both[0].ready();
    next.expect("cuMemAlloc_v2 &p 192MiB", "0");
    next.expect("cuMemsetD32_v2 $p 5 1024", "0");
    assert_eq!(word(&mut next, "p", 0), 5);
    assert_eq!(word(&mut b, "p", 0), 9);
}

#[test]
fn without_an_agent_free_memory_is_taken_as_soon_as_it_is_free() {
    if !can_mount() {
        return;
    }
    let machine = Machine::described("", 1, SMALL, 0);
    let both = containers(&machine, 2, SMALL);
    let (mut a, mut b) = (both[0].ready(), both[1].ready());
    a.expect("cuMemAlloc_v2 &p 192MiB", "0");
    b.expect("cuMemAlloc_v2 &p 128MiB", "0");
    b.send("cuMemsetD32_v2 $p 7 1024");
    let host = SwapHost::open(&both[1].dir()).unwrap();
    eventually(Duration::from_secs(20), true, || {
        host.container(0, monotonic_ns()).wants
    });
    a.expect("cuMemFree_v2 $p", "0");
    assert_eq!(b.answer(), "0");
    assert_eq!(word(&mut b, "p", 0), 7);
}

#[test]
fn memory_that_somebody_else_may_reach_stays() {
    if !can_mount() {
        return;
    }
    let machine = Machine::described("", 1, SMALL, 0);
    let one = &containers(&machine, 1, SMALL)[0];
    let mut client = one.ready();
    client.expect("cuMemAlloc_v2 &p 64MiB", "0");
    client.expect("cuMemAlloc_v2 &q 64MiB", "0");
    client.expect("cuMemAlloc_v2 &r 512KiB", "0");
    client.expect("@new one 8", "ok");
    client.expect("@set one 0 4 1", "ok");
    client.expect("cuPointerSetAttribute *one 6 $p", "0");
    let host = SwapHost::open(&one.dir()).unwrap();
    let says = || {
        let says = host.container(0, monotonic_ns());
        (
            says.pinned_bytes / MIB,
            says.resident_bytes / MIB,
            says.away_bytes / MIB,
        )
    };
    assert_eq!(says(), (64, 64, 0));
    let number = host.give(0, Order::Leave { keep_bytes: 0 });
    eventually(Duration::from_secs(20), Some(number), || {
        host.container(0, monotonic_ns()).answered
    });
    assert_eq!(says(), (64, 0, 64), "small memory is not counted here, it cannot move");
    host.give(0, Order::Return);
    assert_eq!(word(&mut client, "q", 0), 0);
    assert_eq!(says(), (64, 64, 0));
}

#[test]
fn a_grant_without_the_flag_keeps_the_drivers_own_memory_and_pointers() {
    if !can_mount() {
        return;
    }
    let machine = Machine::described("", 1, SMALL, 0);
    let plain = machine.container(&[SMALL * MIB]);
    assert!(SwapHost::open(&plain.dir()).is_err());
    let mut client = plain.ready();
    client.expect("cuMemAlloc_v2 &p 64MiB", "0");
    // Memory by mapping has no range of this kind.
    let kind = client.ask("@dlsym libcuda cuMemcpyDtoH_v2");
    assert!(kind.contains("libcuda"), "{kind}");
    let swapping = &containers(&machine, 1, SMALL)[0];
    let mut client = swapping.ready();
    let kind = client.ask("@dlsym libcuda cuMemcpyDtoH_v2");
    assert!(kind.contains("libvgpu"), "{kind}");
}

/// Device time that all processes of the card used, in milliseconds.
fn work_ms(driver: &Driver) -> u64 {
    driver.processes(0).iter().map(|p| p.work_ns).sum::<u64>() / 1_000_000
}

/// Keeps a client's card busy with kernels of 1 ms until told to stop.
fn busy(mut client: Client, stop: Arc<AtomicBool>) -> JoinHandle<Client> {
    std::thread::spawn(move || {
        // An image of no known kind has every function, each of the machine's default time.
        client.expect("@new image 64", "ok");
        client.expect("@set image 0 4 1179403647", "ok");
        client.expect("cuModuleLoadData &m *image", "0");
        client.expect("cuModuleGetFunction &f $m \"k", "0");
        while !stop.load(Ordering::SeqCst) {
            client.ask("@repeat 20 cuLaunchKernel $f 65535 1 1 32 1 1 0 null null null");
            client.expect("cuCtxSynchronize", "0");
        }
        client
    })
}

/// Percent of the card's time that was work, with so many busy tenants of so many, each promised the whole card.
fn measured_percent(tenants: usize, working: usize) -> u64 {
    let machine = Machine::described("link_gb_s: 25\nkernel_us: 1000\n", 1, SMALL, 0);
    let all = containers(&machine, tenants, SMALL);
    let _rooms = Rooms::over(&machine, &all);
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients: Vec<Client> = all.iter().map(Container::ready).collect();
    for client in &mut clients {
        client.expect("cuMemAlloc_v2 &p 192MiB", "0");
        client.expect("cuMemsetD8_v2 $p 1 64", "0");
    }
    let idle = clients.split_off(working);
    let running: Vec<_> = clients
        .into_iter()
        .map(|client| busy(client, Arc::clone(&stop)))
        .collect();
    let driver = Driver::at(&machine.driver()).unwrap();
    let span = Duration::from_secs(2);
    std::thread::sleep(span);
    let (before, start) = (work_ms(&driver), Instant::now());
    std::thread::sleep(span * 4);
    let percent = (work_ms(&driver) - before) * 100 / u64::try_from(start.elapsed().as_millis()).unwrap();
    stop.store(true, Ordering::SeqCst);
    for thread in running {
        thread.join().unwrap();
    }
    drop(idle);
    percent
}

#[test]
#[ignore = "a measurement, for docs/benchmarks/oversubscription.md: cargo test -p tessera-e2e --test shim_swap -- --ignored --nocapture"]
fn work_done_with_twice_the_card() {
    if can_mount() {
        let native = measured_percent(1, 1);
        for (tenants, working) in [(2, 1), (2, 2), (3, 3)] {
            let percent = measured_percent(tenants, working);
            println!("{tenants} tenants, {working} busy: {percent} % of the card's time, alone {native} %");
        }
    }
}
