//! What processes see of a simulated machine, through the libraries as they are installed.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::{Client, MIB, Root, built};
use tessera_fake_core::{Fault, Pool, format_uuid, install, mig};

const SMALL: &str =
    "{granule_kib: 4, cards: [{model: small, memory_mib: 1088, reserved_mib: 64, context_mib: 0, sms: 16}]}";
const TWO: &str = "cards: [{model: A100-SXM4-40GB, count: 2}]";

#[test]
fn racing_processes_fill_a_card_exactly() {
    let root = Root::new(SMALL);
    let mut all: Vec<Client> = (0..8).map(|_| root.client().start()).collect();
    for client in &mut all {
        client.tell("fill 1048576");
    }
    let mut blocks = 0;
    for client in &mut all {
        let answer = client.hear();
        let (n, code) = answer.split_once(' ').unwrap();
        assert_eq!(code, "2");
        blocks += n.parse::<u64>().unwrap();
    }
    assert_eq!(blocks, 1024, "every MiB of the card, and not one more");
    let machine = root.machine();
    assert_eq!(machine.used_bytes(Pool::whole(0)), 1024 * MIB);
    let sum: u64 = machine.processes(0).iter().map(|p| p.bytes).sum();
    assert_eq!(sum, 1024 * MIB);
}

#[test]
fn a_killed_process_gives_everything_back() {
    let root = Root::new(SMALL);
    let machine = root.machine();
    let mut stays = root.client().start();
    assert_eq!(stays.ask("alloc 10485760"), "0");
    for round in 0..20 {
        let mut pair: Vec<Client> = (0..2).map(|_| root.client().start()).collect();
        for client in &mut pair {
            assert_eq!(client.ask(&format!("churn {round}")), "churning");
        }
        // Dropping kills them in the middle of whatever they are doing.
        drop(pair);
        assert_eq!(machine.used_bytes(Pool::whole(0)), 10 * MIB, "round {round}");
    }
    assert_eq!(machine.live_processes(), 1);
    assert_eq!(stays.ask("fill 1048576"), "1014 2");
}

#[test]
fn both_libraries_show_the_same_memory() {
    let root = Root::new(TWO);
    let mut other = root.client().start();
    assert_eq!(other.ask("alloc 3000000000"), "0");
    let mut client = root.client().start();
    assert_eq!(client.ask("alloc 5000000000"), "0");
    let info = client.numbers("info");
    let watch = client.numbers("watch 0");
    let [_, free, total] = info[..] else { panic!("{info:?}") };
    let [_, all, first_used, reserved, used, listed, own] = watch[..] else {
        panic!("{watch:?}")
    };
    assert_eq!(total, all - reserved);
    assert_eq!(total - free, used);
    assert_eq!(first_used, used + reserved);
    assert_eq!(listed, 2);
    let context = 412 * MIB;
    assert_eq!(own, 5_000_000_000u64.next_multiple_of(2 * MIB) + context);
    assert_eq!(used, own + 3_000_000_000u64.next_multiple_of(2 * MIB) + context);
    let idle = client.numbers("watch 1");
    assert_eq!(idle[4..], [0, 0, 0]);
}

#[test]
fn a_card_is_visible_when_its_file_can_be_opened() {
    let root = Root::new(TWO);
    std::fs::remove_file(root.path().join("dev/nvidia0")).unwrap();
    let mut client = root.client();
    assert_eq!(client.ask("init"), "0");
    assert_eq!(client.ask("count"), "0 1");
    assert_eq!(client.ask("cards"), "0 1");
    std::fs::remove_file(root.path().join("dev/nvidia1")).unwrap();
    assert_eq!(root.client().ask("init"), "100");
    assert_eq!(root.client().ask("cards"), "0 0");
}

#[test]
fn visible_devices_are_chosen_by_number_and_identifier() {
    let root = Root::new(TWO);
    let machine = root.machine();
    let second = format_uuid("GPU-", &machine.card(1).uuid);
    for (value, count) in [
        ("1", "0 1"),
        ("1,0", "0 2"),
        ("0,7,1", "0 1"),
        (second.as_str(), "0 1"),
        (&second[..10], "0 1"),
    ] {
        let mut client = root.client_with(&[("CUDA_VISIBLE_DEVICES", value)]);
        assert_eq!(client.ask("init"), "0", "{value}");
        assert_eq!(client.ask("count"), count, "{value}");
    }
    for value in ["", "-1", "0,0"] {
        let mut client = root.client_with(&[("CUDA_VISIBLE_DEVICES", value)]);
        assert_eq!(client.ask("init"), "100", "{value}");
    }
    let mut client = root.client_with(&[("CUDA_VISIBLE_DEVICES", &second)]).start();
    assert_eq!(client.ask("alloc 1048576"), "0");
    assert_eq!(machine.used_bytes(Pool::whole(0)), 0);
    assert!(machine.used_bytes(Pool::whole(1)) > 0);
}

#[test]
fn a_forked_child_has_no_driver_and_takes_nothing_from_its_parent() {
    let root = Root::new(TWO);
    let mut client = root.client().start();
    assert_eq!(client.ask("alloc 1073741824"), "0");
    assert_eq!(client.ask("fork"), "0");
    let machine = root.machine();
    assert_eq!(machine.used_bytes(Pool::whole(0)), (1024 + 412) * MIB);
    assert_eq!(machine.live_processes(), 1);
    assert_eq!(client.ask("alloc 1073741824"), "0");
}

#[test]
fn lookups_answer_by_version_and_flags() {
    let root = Root::new("{cuda: \"12.8\", cards: [{model: T4}]}");
    let mut client = root.client();
    for (question, answer) in [
        ("cuMemAlloc 2000 0", "0 0 cuMemAlloc"),
        ("cuMemAlloc 3020 0", "0 0 cuMemAlloc_v2"),
        ("cuCtxCreate 3020 0", "0 0 cuCtxCreate_v2"),
        ("cuCtxCreate 11040 0", "0 0 cuCtxCreate_v3"),
        ("cuCtxCreate 12050 0", "0 0 cuCtxCreate_v4"),
        ("cuMemPrefetchAsync 8000 0", "0 0 cuMemPrefetchAsync"),
        ("cuMemPrefetchAsync 12020 0", "0 0 cuMemPrefetchAsync_v2"),
        ("cuMemPrefetchAsync 12020 2", "0 0 cuMemPrefetchAsync_v2_ptsz"),
        ("cuLaunchKernel 7000 1", "0 0 cuLaunchKernel"),
        ("cuLaunchKernel 7000 2", "0 0 cuLaunchKernel_ptsz"),
        ("cuLaunchKernel 4000 2", "0 0 cuLaunchKernel"),
        ("cuMemcpyHtoD 7000 2", "0 0 cuMemcpyHtoD_v2_ptds"),
        ("cuInit 12080 2", "0 0 cuInit"),
        ("cuGetProcAddress 11030 0", "0 0 cuGetProcAddress"),
        ("cuGetProcAddress 12000 0", "0 0 cuGetProcAddress_v2"),
        ("cuMemAllocAsync 10000 0", "500 2 null"),
        ("cuNoSuchThing 12000 0", "500 1 null"),
        ("cuMemAlloc_v2 12000 0", "500 1 null"),
        ("cuMemAlloc 13000 0", "1 -1 null"),
    ] {
        assert_eq!(client.ask(&format!("lookup {question}")), answer, "{question}");
    }
}

#[test]
fn an_injected_fault_strikes_the_call_it_names() {
    let root = Root::new(TWO);
    let machine = root.machine();
    let mut client = root.client().start();
    machine
        .add_fault(&Fault {
            name: "cuMemAlloc_v2".into(),
            nth: 2,
            times: 2,
            code: 719,
            delay_us: 0,
        })
        .unwrap();
    let codes: Vec<String> = (0..4).map(|_| client.ask("alloc 4096")).collect();
    assert_eq!(codes, ["0", "719", "719", "0"]);
    machine.set_nvml_fault(9);
    assert_eq!(client.ask("cards"), "9 0");
    machine.reset_faults();
    assert_eq!(client.ask("alloc 4096"), "0");
    machine.set_lost(0, true);
    assert_eq!(client.ask("alloc 4096"), "719");
    assert_eq!(root.client().ask("watch 0").split(' ').next(), Some("15"));
}

#[test]
fn an_xid_wakes_a_waiter_of_its_card_only() {
    let root = Root::new(TWO);
    let machine = root.machine();
    machine.raise(0, 8, 13);
    let mut client = root.client();
    assert_eq!(client.ask("xid 20000"), "ready");
    machine.raise(1, 8, 31);
    machine.raise(0, 8, 79);
    assert_eq!(client.hear(), "0 8 79", "neither the old one nor the other card's");
    assert_eq!(client.ask("xid 1"), "ready");
    assert_eq!(client.hear(), "10 0 0");
}

#[test]
fn a_partition_is_a_device_with_its_own_memory() {
    let root = Root::new("cards: [{model: A100-SXM4-40GB, mig: on}, {model: A100-SXM4-40GB}]");
    let machine = root.machine();
    let made = mig::create(&machine, 0, 9, Some(4)).unwrap();
    let (position, id) = (made.position, made.id);
    assert!(mig::create(&machine, 0, 0, None).is_err(), "the whole no longer fits");
    mig::create_compute(&machine, 0, position, 2, None).unwrap();
    let uuid = format_uuid("MIG-", &mig::device_uuid(&machine, 0, id, 0));
    // Without a choice the whole card is what a program gets.
    let mut plain = root.client().start();
    assert_eq!(plain.ask("count"), "0 1");
    let mut client = root.client_with(&[("CUDA_VISIBLE_DEVICES", &uuid)]).start();
    assert_eq!(client.numbers("info")[2], 20096 * MIB);
    assert_eq!(client.ask("alloc 21474836480"), "2");
    assert_eq!(client.ask("alloc 10737418240"), "0");
    let pool = Pool {
        card: 0,
        instance: Some(position),
    };
    assert_eq!(machine.used_bytes(pool), (10240 + 412) * MIB);
    assert_eq!(
        mig::destroy_compute(&machine, 0, position, 0),
        Err(mig::MigError::InUse)
    );
    drop(client);
    mig::destroy_compute(&machine, 0, position, 0).unwrap();
    mig::destroy(&machine, 0, position).unwrap();
    assert!(mig::create(&machine, 0, 0, None).is_ok());
}

#[test]
fn kernels_take_their_time_and_keep_the_card_busy() {
    let root = Root::new(SMALL);
    let machine = root.machine();
    let mut client = root.client().start();
    let answer = client.ask("kernel 20 5000");
    let (code, millis) = answer.split_once(' ').unwrap();
    assert_eq!(code, "0");
    let millis: f32 = millis.parse().unwrap();
    assert!((100.0..150.0).contains(&millis), "{millis}");
    let view = machine.processes(0);
    assert_eq!(view[0].launches, 20);
    assert_eq!(view[0].work_ns, 100_000_000);
    assert_eq!(view[0].blocks, 20 * 4096);
}

#[test]
fn two_processes_share_the_time_of_one_card() {
    let root = Root::new(SMALL);
    let mut a = root.client().start();
    let mut b = root.client().start();
    a.tell("kernel 40 2000");
    b.tell("kernel 40 2000");
    let time = |answer: String| answer.split_once(' ').unwrap().1.parse::<f32>().unwrap();
    let longest = time(a.hear()).max(time(b.hear()));
    // Each needs 80 ms; the card cannot do 160 ms of work in less.
    assert!(longest >= 120.0, "{longest}");
}

#[test]
fn the_queue_of_a_killed_process_dies_with_it() {
    let root = Root::new(SMALL);
    let machine = root.machine();
    let mut doomed = root.client().start();
    // Five seconds of work, which its own event would take as long to reach.
    doomed.tell("kernel 50 100000");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while machine.processes(0)[0].launches < 50 {
        assert!(std::time::Instant::now() < deadline);
        std::thread::yield_now();
    }
    drop(doomed);
    let mut next = root.client().start();
    let answer = next.ask("kernel 1 1000");
    let millis: f32 = answer.split_once(' ').unwrap().1.parse().unwrap();
    assert!(millis < 1000.0, "{millis}");
}

#[test]
fn three_hundred_processes_at_once() {
    let root = Root::new(SMALL);
    let mut all: Vec<Client> = (0..300).map(|_| root.client()).collect();
    for client in &mut all {
        client.tell("init");
        client.tell("context 0");
        client.tell("alloc 1048576");
    }
    for client in &mut all {
        assert_eq!([client.hear(), client.hear(), client.hear()], ["0", "0", "0"]);
    }
    let machine = root.machine();
    assert_eq!(machine.live_processes(), 300);
    assert_eq!(machine.processes(0).len(), 300);
    assert_eq!(machine.used_bytes(Pool::whole(0)), 300 * MIB);
    drop(all);
    assert_eq!(machine.used_bytes(Pool::whole(0)), 0);
}

#[test]
fn a_name_that_the_machine_lacks_is_absent() {
    let root = Root::new(
        "{without: [cuMemAllocAsync, cuMemAllocAsync_ptsz, nvmlDeviceGetMemoryInfo_v2], cards: [{model: T4}]}",
    );
    let mut client = root.client();
    assert_eq!(client.ask("has cuMemAllocAsync"), "false");
    assert_eq!(client.ask("lookup cuMemAllocAsync 11020 0"), "500 1 null");
    assert_eq!(client.ask("lookup cuMemAllocAsync 11020 2"), "500 1 null");
    assert_eq!(client.ask("has cuMemAlloc_v2"), "true");
    assert_eq!(client.ask("has cuMemAllocFromPoolAsync_ptsz"), "true");
    assert_eq!(client.ask("has cuNoSuchThing"), "false");
    assert_eq!(client.ask("has nvmlDeviceGetMemoryInfo_v2"), "false");
    assert_eq!(client.ask("has nvmlDeviceGetMemoryInfo"), "true");
}

#[test]
fn a_root_in_use_or_of_somebody_else_is_left_alone() {
    let root = Root::new(TWO);
    let client = root.client().start();
    let again = install::install(TWO, root.path(), Some(built()), false);
    assert!(matches!(again, Err(install::InstallError::InUse(1))), "{again:?}");
    drop(client);
    install::install(TWO, root.path(), Some(built()), false).unwrap();
    install::uninstall(root.path(), false).unwrap();
    assert!(!root.path().join("dev").exists());

    let foreign = tempfile::tempdir().unwrap();
    std::fs::create_dir(foreign.path().join("dev")).unwrap();
    std::fs::write(foreign.path().join("dev/nvidiactl"), "a real one").unwrap();
    assert!(install::uninstall(foreign.path(), true).is_err());
    assert!(install::install(TWO, foreign.path(), Some(built()), true).is_err());
    assert!(foreign.path().join("dev/nvidiactl").exists());
}
