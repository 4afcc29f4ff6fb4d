//! Several processes, deaths, forks, and grants that are missing, damaged, late or changed.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(unsafe_code, reason = "stops a process")]

mod shim_support;

use std::{
    os::unix::fs::{FileExt as _, PermissionsExt as _},
    process::Command,
    time::Duration,
};

use shim_support::{Client, Container, GIB, MIB, Machine, can_mount, eventually, library, mounts};
use tessera_region::{CardGrant, GrantState, MAX_CARDS, MAX_SLOTS};

#[test]
fn the_processes_of_a_container_share_one_limit() {
    if !can_mount() {
        return;
    }
    let machine = Machine::new(1);
    let container = machine.container(&[2 * GIB]);
    let other = machine.container(&[GIB]);
    let mut clients: Vec<Client> = (0..3).map(|_| container.ready()).collect();
    for client in &mut clients {
        client.send("@repeat 4000 cuMemAlloc_v2 &p 1MiB");
    }
    let done: u64 = clients
        .iter_mut()
        .map(|client| client.answer().parse::<u64>().unwrap())
        .sum();
    assert_eq!(done, 2048);
    assert_eq!(clients[0].memory(), (0, 2 * GIB));
    // Another container on the same card has its own.
    let mut stranger = other.ready();
    assert_eq!(stranger.memory(), (GIB, GIB));
    stranger.expect("cuMemAlloc_v2 &p 1GiB", "0");
}

#[test]
fn a_killed_process_leaves_nothing_behind() {
    if !can_mount() {
        return;
    }
    let machine = Machine::new(1);
    let container = machine.container(&[GIB]);
    let mut survivor = container.ready();
    let mut victim = container.ready();
    victim.expect("cuMemAlloc_v2 &p 1GiB", "0");
    survivor.expect("cuMemAlloc_v2 &p 1MiB", "2");
    victim.kill();
    // At once: a request looks for the dead before it is refused.
    survivor.expect("cuMemAlloc_v2 &p 1GiB", "0");
    survivor.expect("cuMemFree_v2 $p", "0");

    let mut victim = container.ready();
    victim.expect("cuMemAlloc_v2 &p 600MiB", "0");
    assert_eq!(survivor.used(), 600 * MIB);
    victim.kill();
    eventually(Duration::from_secs(2), 0, || survivor.used());
}

#[test]
fn killing_and_stopping_at_any_moment_stalls_nobody() {
    if !can_mount() {
        return;
    }
    let machine = Machine::new(1);
    let container = machine.container(&[8 * GIB]);
    let mut survivor = container.ready();
    for round in 0..20_u64 {
        let mut victim = container.ready();
        victim.send("@repeat 1000000 cuMemAlloc_v2 &p 1024");
        // Some way into the loop, a different one each round.
        eventually(Duration::from_secs(5), true, || survivor.used() > round * 40_000);
        let pid = i32::try_from(victim.child.id()).unwrap();
        if round % 2 == 0 {
            // SAFETY: a child of this test.
            unsafe { libc::kill(pid, libc::SIGSTOP) };
            let asked = std::time::Instant::now();
            survivor.expect("cuMemAlloc_v2 &q 1MiB", "0");
            survivor.expect("cuMemFree_v2 $q", "0");
            assert!(
                asked.elapsed() < Duration::from_millis(500),
                "round {round}: {:?}",
                asked.elapsed()
            );
        }
        victim.kill();
    }
    survivor.expect("cuMemAlloc_v2 &q 8GiB", "0");
    assert_eq!(survivor.memory(), (0, 8 * GIB));
}

#[test]
fn a_replaced_image_starts_with_nothing() {
    if !can_mount() {
        return;
    }
    let machine = Machine::new(1);
    let container = machine.container(&[GIB]);
    let mut watcher = container.ready();
    let mut client = container.ready();
    client.expect("cuMemAlloc_v2 &p 400MiB", "0");
    assert_eq!(watcher.used(), 400 * MIB);
    client.expect("@exec", "ok");
    // The new image answers, so it was loaded; it has not touched the driver.
    assert!(!client.ask("@pid").is_empty());
    assert_eq!(watcher.used(), 0);
    client.make_ready(0);
    client.expect("cuMemAlloc_v2 &p 1GiB", "0");
}

#[test]
fn a_forked_child_is_a_process_of_its_own() {
    if !can_mount() {
        return;
    }
    let machine = Machine::new(1);
    let container = machine.container(&[GIB]);
    // Forked before the driver is used, as a pool of workers is.
    let mut client = container.client();
    let answer = client.ask(
        "@fork cuInit 0;cuDevicePrimaryCtxRetain &c 0;cuCtxSetCurrent $c;cuMemAlloc_v2 &p 1025MiB;cuMemGetInfo_v2 &f &t",
    );
    let codes: Vec<&str> = answer.split("; ").map(|part| part.split(' ').next().unwrap()).collect();
    assert_eq!(codes, ["0", "0", "0", "2", "0"], "{answer}");
    assert!(answer.ends_with(&format!("f={GIB} t={GIB}")), "{answer}");

    // Forked while memory is held: what the child frees is not the parent's.
    client.make_ready(0);
    client.expect("cuMemAlloc_v2 &p 700MiB", "0");
    let answer = client.ask("@fork cuMemFree_v2 $p;cuMemAlloc_v2 &q 1MiB");
    assert!(!answer.starts_with("0"), "{answer}");
    assert_eq!(client.used(), 700 * MIB);
    client.expect("cuMemAlloc_v2 &q 400MiB", "2");
    client.expect("cuMemFree_v2 $p", "0");
    assert_eq!(client.used(), 0);
}

#[test]
fn three_hundred_processes_start_at_once() {
    if !can_mount() {
        return;
    }
    let machine = Machine::with_context(1, 2);
    let container = machine.container(&[GIB]);
    let mut clients: Vec<Client> = (0..300).map(|_| container.client()).collect();
    for client in &mut clients {
        for command in [
            "cuInit 0",
            "cuDevicePrimaryCtxRetain &c 0",
            "cuCtxSetCurrent $c",
            "cuMemAlloc_v2 &p 4MiB",
        ] {
            client.send(command);
        }
    }
    let mut codes = Vec::new();
    for client in &mut clients {
        for _ in 0..3 {
            let answer = client.answer();
            assert!(answer.starts_with('0'), "{answer}");
        }
        codes.push(client.answer().split(' ').next().unwrap().to_owned());
    }
    assert_eq!(codes.iter().filter(|code| *code == "0").count(), 256);
    assert_eq!(codes.iter().filter(|code| *code == "2").count(), 44);
    assert_eq!(clients[299].memory(), (0, GIB));
}

/// Where the owners of the slots stand in an account.
const OWNERS_AT: u64 = 64 + 64 * MAX_CARDS as u64;

/// Makes every slot of an account belong to one process.
fn fill(container: &Container<'_>, owner: u64) {
    let file = std::fs::File::options()
        .write(true)
        .open(container.dir().account_file())
        .unwrap();
    for slot in 0..MAX_SLOTS as u64 {
        file.write_all_at(&owner.to_le_bytes(), OWNERS_AT + 8 * slot).unwrap();
    }
}

#[test]
fn a_full_account_takes_back_the_dead_and_refuses_the_living() {
    if !can_mount() {
        return;
    }
    let machine = Machine::new(1);
    let container = machine.container(&[GIB]);
    let read_owner = |client: &Client| {
        let bytes = std::fs::read(container.dir().account_file()).unwrap();
        let at = usize::try_from(OWNERS_AT).unwrap();
        let owners = bytes[at..at + 8 * MAX_SLOTS].chunks_exact(8);
        let mut words = owners.map(|word| u64::from_le_bytes(word.try_into().unwrap()));
        // The pid is the lowest 24 bits.
        words
            .find(|word| word & 0xff_ffff == u64::from(client.child.id()))
            .unwrap()
    };
    let mut client = container.ready();
    let owner = read_owner(&client);
    fill(&container, owner);
    let mut late = container.client();
    late.expect("cuInit 0", "800");
    let said = late.said();
    assert!(said.contains("1024 processes"), "{said}");
    client.kill();
    let mut next = container.ready();
    next.expect("cuMemAlloc_v2 &p 1GiB", "0");
}

#[track_caller]
fn refused(mut client: Client, reason: &str) {
    client.expect("cuInit 0", "800");
    client.expect("nvmlInit_v2", "4");
    client.expect("nvmlInitWithFlags 0", "4");
    client.expect("cuInit 0", "800");
    let said = client.said();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains(reason) && said.contains("the GPU is refused"), "{said}");
}

#[test]
fn without_a_grant_nothing_starts() {
    if !can_mount() {
        return;
    }
    let machine = Machine::new(1);
    let mut command = Command::new(env!("CARGO_BIN_EXE_cuda-client"));
    machine.on_machine(&mut command);
    command.env("LD_PRELOAD", library());
    mounts(&mut command, None);
    refused(Client::spawn(command), "not there");
}

#[test]
fn a_damaged_grant_is_no_grant() {
    if !can_mount() {
        return;
    }
    let machine = Machine::new(1);
    let container = machine.container(&[GIB]);
    let file = container.dir().grant_file();
    let good = std::fs::read(&file).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let mut damaged = good.clone();
    damaged[320] ^= 1;
    std::fs::write(&file, &damaged).unwrap();
    refused(container.client(), "damaged");
    std::fs::write(&file, b"unlimited").unwrap();
    refused(container.client(), "no grant");
    std::fs::write(&file, &good).unwrap();
    container.client().expect("cuInit 0", "0");
    // Somebody emptied the account: no account, no GPU.
    std::fs::write(container.dir().account_file(), b"").unwrap();
    refused(container.client(), "too short");
}

#[test]
fn a_pending_grant_is_waited_for() {
    if !can_mount() {
        return;
    }
    let machine = Machine::new(1);
    let mut container = machine.container(&[GIB]);
    container.replace(|grant| grant.state = GrantState::Pending);
    let mut client = container.client();
    client.send("cuInit 0");
    client.send("@pid");
    container.seal();
    assert_eq!(client.answer(), "0");
    client.answer();
    client.make_ready(0);
    client.expect("cuMemAlloc_v2 &p 1025MiB", "2");
}

#[test]
fn a_changed_limit_holds_within_a_second() {
    if !can_mount() {
        return;
    }
    let machine = Machine::new(1);
    let mut container = machine.container(&[GIB]);
    let mut client = container.ready();
    client.expect("cuMemAlloc_v2 &p 1GiB", "0");
    client.expect("cuMemAlloc_v2 &q 1GiB", "2");
    container.replace(|grant| grant.cards_mut()[0].memory_bytes = 3 * GIB);
    eventually(Duration::from_secs(1), (2 * GIB, 3 * GIB), || client.memory());
    client.expect("cuMemAlloc_v2 &q 2GiB", "0");
    // Lowered below what is held: nothing is taken away, nothing more is given.
    container.replace(|grant| grant.cards_mut()[0].memory_bytes = GIB);
    eventually(Duration::from_secs(1), (0, GIB), || client.memory());
    client.expect("cuMemAlloc_v2 &r 1MiB", "2");
    client.expect("cuMemFree_v2 $q", "0");
    client.expect("cuMemFree_v2 $p", "0");
    client.expect("cuMemAlloc_v2 &r 1GiB", "0");
}

#[test]
fn a_card_that_is_not_granted_is_refused() {
    if !can_mount() {
        return;
    }
    let machine = Machine::new(2);
    let container = machine.container_with([CardGrant::with_memory(&machine.uuids[1], GIB).unwrap()]);
    let mut client = container.client();
    client.expect("cuInit 0", "0");
    client.expect("cuDevicePrimaryCtxRetain &c 0", "800");
    client.expect("cuCtxCreate_v2 &c 0 0", "800");
    client.expect("@new prop 32", "ok");
    client.expect("@set prop 0 4 1", "ok");
    client.expect("@set prop 8 4 1", "ok");
    client.expect("cuMemCreate &h 2MiB *prop 0", "800");
    client.expect("nvmlInit_v2", "0");
    client.expect("nvmlDeviceGetHandleByIndex_v2 0 &d", "4");
    client.expect(&format!("nvmlDeviceGetHandleByUUID \"{} &d", machine.uuids[0]), "4");
    client.expect(&format!("nvmlDeviceGetHandleByUUID \"{} &d", machine.uuids[1]), "0");
    // The same by the form that takes a structure: version, 1 for text, the text.
    for (card, expected) in [(0, "4"), (1, "0")] {
        client.expect("@new uuid 56", "ok");
        client.expect("@set uuid 4 4 1", "ok");
        for (n, part) in machine.uuids[card].as_bytes().chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            let word = u64::from_le_bytes(word);
            client.expect(&format!("@set uuid {} 8 {word}", 8 + n * 8), "ok");
        }
        client.expect("nvmlDeviceGetHandleByUUIDV *uuid &d", expected);
    }
    client.make_ready(1);
    assert_eq!(client.memory(), (GIB, GIB));
}

#[test]
fn cards_are_known_by_uuid_in_whatever_order() {
    if !can_mount() {
        return;
    }
    let machine = Machine::new(2);
    let container = machine.container(&[GIB, 2 * GIB]);
    let mut client = container.client_with(|command| {
        command.env("CUDA_VISIBLE_DEVICES", "1,0");
    });
    client.make_ready(0);
    assert_eq!(client.memory(), (2 * GIB, 2 * GIB));
    client.make_ready(1);
    assert_eq!(client.memory(), (GIB, GIB));
}

#[test]
fn variables_change_nothing() {
    if !can_mount() {
        return;
    }
    let machine = Machine::new(1);
    let container = machine.container(&[GIB]);
    let mut client = container.client_with(|command| {
        for (name, value) in [
            ("CUDA_DEVICE_MEMORY_LIMIT", "12g"),
            ("CUDA_DEVICE_MEMORY_LIMIT_0", "12g"),
            ("CUDA_DISABLE_CONTROL", "true"),
            ("CUDA_REDIRECT", "/nonexistent.so"),
            ("CUDA_DEVICE_MEMORY_SHARED_CACHE", "/tmp/mine.cache"),
            ("NVIDIA_VISIBLE_DEVICES", "all"),
        ] {
            command.env(name, value);
        }
    });
    client.make_ready(0);
    assert_eq!(client.memory(), (GIB, GIB));
    client.expect("cuMemAlloc_v2 &p 1025MiB", "2");
    assert!(!std::path::Path::new("/tmp/mine.cache").exists());
}

#[test]
fn the_program_finds_its_process_as_it_was() {
    if !can_mount() {
        return;
    }
    let machine = Machine::new(1);
    let container = machine.container(&[GIB]);
    let mut bare = machine.bare();
    let mut client = container.ready();
    for question in ["@umask", "@handler 10", "@handler 12", "@handler 17"] {
        assert_eq!(client.ask(question), bare.ask(question), "{question}");
    }
}
