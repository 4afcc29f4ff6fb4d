//! Changing the share of programs that run, on the simulated machine.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(unsafe_code, reason = "the common part makes mounts")]

mod shim_support;

use std::{
    process::{Command, Output},
    time::Duration,
};

use shim_support::{Client, Container, GIB, MIB, Machine, can_mount, eventually, library, tessera};
use tessera_region::{
    Grant,
    resize::{ResizeError, resize},
};

const SOON: Duration = Duration::from_secs(1);

fn set(container: &mut Container<'_>, bytes: u64) -> Result<(), ResizeError> {
    let mut new: Grant = container.grant.clone();
    new.cards_mut()[0].memory_bytes = bytes;
    resize(&container.machine.grants(), &mut new)?;
    container.grant = new;
    Ok(())
}

#[test]
fn a_raised_share_is_seen_by_both_interfaces_and_can_be_used() {
    if !can_mount() {
        return;
    }
    let machine = Machine::new(1);
    let mut container = machine.container(&[4 * GIB]);
    let mut client = container.ready();
    client.expect("nvmlInit_v2", "0");
    client.expect("cuMemAlloc_v2 &p 4GiB", "0");
    client.expect("cuMemAlloc_v2 &q 2MiB", "2");
    set(&mut container, 8 * GIB).unwrap();
    eventually(SOON, 8 * GIB, || client.nvml_memory()[0]);
    eventually(SOON, (4 * GIB, 8 * GIB), || client.memory());
    client.expect("cuMemAlloc_v2 &q 4GiB", "0");
    client.expect("cuMemAlloc_v2 &r 2MiB", "2");
    // A program that starts later finds the same.
    assert_eq!(container.ready().memory(), (0, 8 * GIB));
}

#[test]
fn a_lowered_share_holds_at_once_and_never_below_what_is_held() {
    if !can_mount() {
        return;
    }
    let machine = Machine::new(1);
    let mut container = machine.container(&[8 * GIB]);
    let mut client = container.ready();
    let mut second = container.ready();
    client.expect("nvmlInit_v2", "0");
    client.expect("cuMemAlloc_v2 &p 4GiB", "0");
    second.expect("cuMemAlloc_v2 &p 1GiB", "0");
    let refused = set(&mut container, 4 * GIB).unwrap_err();
    let held = match refused {
        ResizeError::Held { held_bytes, .. } => held_bytes,
        other => panic!("{other}"),
    };
    assert_eq!(held, 5 * GIB);
    assert_eq!(client.memory(), (3 * GIB, 8 * GIB));
    second.expect("cuMemFree_v2 $p", "0");
    set(&mut container, 4 * GIB + MIB).unwrap();
    // From this moment on, however long a program has not looked at its grant.
    second.expect("cuMemAlloc_v2 &p 2MiB", "2");
    client.expect("cuMemAlloc_v2 &q 2MiB", "2");
    eventually(SOON, 4 * GIB + MIB, || client.nvml_memory()[0]);
    client.expect("cuMemFree_v2 $p", "0");
    client.expect("cuMemAlloc_v2 &p 4GiB", "0");
}

/// Programs that allocate and free while their limit goes up and down never hold more than it.
#[test]
fn programs_that_allocate_meanwhile_do_not_slip_through() {
    if !can_mount() {
        return;
    }
    let machine = Machine::new(1);
    let mut container = machine.container(&[GIB]);
    let mut clients: Vec<Client> = (0..3).map(|_| container.ready()).collect();
    let mut held = vec![false; clients.len()];
    let mut lowered = 0;
    for round in 0..60_usize {
        for client in &mut clients {
            client.send("cuMemAlloc_v2 &p 256MiB");
        }
        let limit = [GIB, 512 * MIB, 256 * MIB][round % 3];
        let set = set(&mut container, limit);
        for (client, held) in clients.iter_mut().zip(&mut held) {
            *held = client.answer().starts_with('0');
        }
        let holds = held.iter().filter(|held| **held).count() as u64 * 256 * MIB;
        match set {
            Ok(()) => {
                lowered += u64::from(limit < GIB);
                assert!(holds <= limit, "{holds} held with a limit of {limit}");
            }
            Err(ResizeError::Held { held_bytes, .. }) => assert!(held_bytes > limit),
            Err(other) => panic!("{other}"),
        }
        for (client, held) in clients.iter_mut().zip(&held) {
            if *held {
                client.expect("cuMemFree_v2 $p", "0");
            }
        }
    }
    assert!(lowered > 0, "no limit was ever lowered");
}

fn tell(machine: &Machine, words: &[&str]) -> Output {
    let mut command = Command::new(tessera());
    command.arg("resize").args(words);
    machine.on_machine(&mut command);
    command.output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_share_of_a_run_is_changed_by_a_command() {
    if !can_mount() {
        return;
    }
    let machine = Machine::new(1);
    let mut command = Command::new(tessera());
    command.args(["run", "--memory", "4Gi", "--cores", "30", "--library"]);
    command.arg(library()).arg("--").arg(env!("CARGO_BIN_EXE_cuda-client"));
    machine.on_machine(&mut command);
    let mut client = Client::spawn(command);
    client.make_ready(0);
    client.expect("nvmlInit_v2", "0");
    client.expect("cuMemAlloc_v2 &p 3GiB", "0");
    let job = client.child.id().to_string();

    let output = tell(&machine, &[&job, "--memory", "8Gi", "--cores", "60"]);
    assert!(output.status.success(), "{}", said(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("8 GiB") && text.contains("60 %"), "{text}");
    eventually(SOON, 8 * GIB, || client.nvml_memory()[0]);
    assert_eq!(client.memory(), (5 * GIB, 8 * GIB));

    for (words, reason) in [
        (&[job.as_str(), "--memory", "2Gi"][..], "3 GiB of card"),
        (&[&job, "--memory", "17Gi"], "has 16 GiB"),
        (&[&job], "nothing to change"),
        (&["1", "--memory", "1Gi"], "no run of process 1"),
    ] {
        let output = tell(&machine, words);
        assert_eq!(output.status.code(), Some(1), "{words:?}");
        assert!(said(&output).contains(reason), "{words:?}: {}", said(&output));
    }
    assert_eq!(client.memory(), (5 * GIB, 8 * GIB));

    let mut patient = Command::new(tessera());
    patient.args(["resize", &job, "--memory", "2Gi", "--wait"]);
    machine.on_machine(&mut patient);
    let mut patient = patient.spawn().unwrap();
    client.expect("cuMemFree_v2 $p", "0");
    assert!(patient.wait().unwrap().success());
    eventually(SOON, (2 * GIB, 2 * GIB), || client.memory());
    client.expect("cuMemAlloc_v2 &p 3GiB", "2");
}
