//! Processes in a container whose grant is not what the library needs.

use std::process::Command;

use tessera_region::fs::GrantDir;

use crate::shim_support::{Client, Container, GIB, Machine, library, mounts, musl_image};
use crate::table::{Part, Row};

const PLACE: &str = "the process's standard error; `cuInit` answers 800 and `nvmlInit` 4";

/// What a client says that must be refused by both libraries.
fn refused(command: Command) -> String {
    let mut client = Client::spawn(command);
    client.expect("cuInit 0", "800");
    client.expect("nvmlInit_v2", "4");
    client.said().trim_end().to_owned()
}

fn client(machine: &Machine) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cuda-client"));
    machine.on_machine(&mut command);
    command
}

/// A container after its grant's folder was changed.
fn with(change: impl FnOnce(&GrantDir)) -> String {
    let machine = Machine::new(1);
    let container: Container<'_> = machine.container(&[GIB]);
    change(&container.dir());
    let mut command = client(&machine);
    container.enter(&mut command);
    refused(command)
}

fn rewrite(folder: &GrantDir, change: impl FnOnce(&mut Vec<u8>)) {
    let file = folder.grant_file();
    let mut bytes = std::fs::read(&file).unwrap();
    change(&mut bytes);
    std::fs::remove_file(&file).unwrap();
    std::fs::write(&file, bytes).unwrap();
}

pub(crate) fn part() -> Part {
    Part {
        title: "In the container",
        about: "The library refuses the card rather than let a process use it without a limit. Other containers on the \
                card do not notice. The line appears once a process.",
        rows: vec![
            Row {
                id: "grant-absent",
                did: "loaded the library into a container that asked for no card",
                place: PLACE,
                message: "tessera: /run/tessera/grant/grant: not there; the GPU is refused. Request a GPU for this container, or recreate the pod.",
                see: || {
                    let machine = Machine::new(1);
                    let mut command = client(&machine);
                    command.env("LD_PRELOAD", library());
                    mounts(&mut command, None);
                    refused(command)
                },
            },
            Row {
                id: "grant-damaged",
                did: "the grant was damaged on the node",
                place: PLACE,
                message: "tessera: /run/tessera/grant/grant: the grant is damaged; the GPU is refused. Request a GPU for this container, or recreate the pod.",
                see: || with(|folder| rewrite(folder, |bytes| bytes[200] ^= 1)),
            },
            Row {
                id: "grant-other",
                did: "something else lies where the grant should be",
                place: PLACE,
                message: "tessera: /run/tessera/grant/grant: this is no grant; the GPU is refused. Request a GPU for this container, or recreate the pod.",
                see: || with(|folder| rewrite(folder, |bytes| bytes[0] ^= 1)),
            },
            Row {
                id: "grant-short",
                did: "the grant was cut short",
                place: PLACE,
                message: "tessera: /run/tessera/grant/grant: this is no grant; the GPU is refused. Request a GPU for this container, or recreate the pod.",
                see: || with(|folder| rewrite(folder, |bytes| bytes.truncate(100))),
            },
            Row {
                id: "grant-version",
                did: "agent and library are of different versions",
                place: PLACE,
                message: "tessera: /run/tessera/grant/grant: the grant was written by another version; the GPU is refused. Request a GPU for this container, or recreate the pod.",
                see: || with(|folder| rewrite(folder, |bytes| bytes[8] = 99)),
            },
            Row {
                id: "account-absent",
                did: "the container's account was removed on the node",
                place: PLACE,
                message: "tessera: cannot map the account /run/tessera/account/account (not there); the GPU is refused. Recreate the pod, or look at the node agent's log.",
                see: || with(|folder| std::fs::remove_file(folder.account_file()).unwrap()),
            },
            Row {
                id: "image-musl",
                did: "gave a share to an image built on musl, whose loader would not load the library",
                place: "each program's standard error; it ends with status 127",
                message: "tessera: this image is built on musl, whose loader takes no preloaded library, so this container's share of the card cannot be held. Use an image with glibc, or ask for a whole card.",
                see: || {
                    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
                    let output = musl_image(folder.path()).output().unwrap();
                    assert_eq!(output.status.code(), Some(127));
                    String::from_utf8(output.stderr).unwrap().trim_end().to_owned()
                },
            },
        ],
    }
}
