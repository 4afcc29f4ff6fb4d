//! `tessera run` on the simulated machine.

#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(clippy::print_stdout, reason = "a figure is printed where it was measured")]
#![allow(unsafe_code, reason = "signals, and another user id")]

mod shim_support;

use std::{
    io::BufRead as _,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::Path,
    process::Command,
};

use shim_support::{Client, GIB, Machine, can_mount, library, musl_loader, on_musl, tessera};
use tessera_e2e::load;
use tessera_region::fs;

fn run(machine: &Machine, options: &[&str]) -> Command {
    let mut command = Command::new(tessera());
    command
        .arg("run")
        .args(options)
        .arg("--library")
        .arg(library())
        .arg("--");
    machine.on_machine(&mut command);
    command
}

#[test]
fn a_command_gets_its_share_and_no_more() {
    if !can_mount() {
        return;
    }
    let machine = Machine::new(2);
    let mut command = run(&machine, &["--memory", "4Gi", "--card", "1"]);
    command.arg(env!("CARGO_BIN_EXE_cuda-client"));
    let mut client = Client::spawn(command);
    client.expect("cuInit 0", "0");
    client.expect("cuDevicePrimaryCtxRetain &c 0", "800");
    client.make_ready(1);
    assert_eq!(client.memory(), (4 * GIB, 4 * GIB));
    client.expect("cuMemAlloc_v2 &p 4097MiB", "2");
    client.expect("cuMemAlloc_v2 &p 4GiB", "0");
    // Two at once do not share: each run is a container of its own.
    let mut command = run(&machine, &["--memory", "50%", "--card", &machine.uuids[1]]);
    command.arg(env!("CARGO_BIN_EXE_cuda-client"));
    let mut other = Client::spawn(command);
    other.make_ready(1);
    assert_eq!(other.memory(), (8 * GIB, 8 * GIB));
}

#[test]
fn the_exit_status_is_the_commands() {
    if !can_mount() {
        return;
    }
    let machine = Machine::new(1);
    let code = |words: &[&str]| run(&machine, &[]).args(words).status().unwrap().code();
    assert_eq!(code(&["true"]), Some(0));
    assert_eq!(code(&["sh", "-c", "exit 7"]), Some(7));
    assert_eq!(code(&["sh", "-c", "kill -9 $$"]), Some(137));
}

/// Whether a run of this pid has a grant; those of root's runs are in one folder.
fn has_grant(pid: u32) -> bool {
    let root = Path::new("/run/tessera/runs");
    fs::scan(root).unwrap().into_iter().any(|id| {
        let grant = fs::read_grant(&fs::GrantDir::new(root, id));
        grant.is_ok_and(|grant| grant.container.as_str().starts_with(&format!("{pid}.")))
    })
}

#[test]
fn a_signal_reaches_the_command_and_the_grant_goes() {
    if !can_mount() {
        return;
    }
    let machine = Machine::new(1);
    let mut command = run(&machine, &[]);
    command.args([
        "sh",
        "-c",
        "sleep 1000 >/dev/null 2>&1 & trap \"kill $!; echo caught; exit 3\" TERM; echo ready; wait",
    ]);
    let mut running = Client::spawn(command);
    assert_eq!(running.answer(), "ready");
    assert!(has_grant(running.child.id()));
    let pid = i32::try_from(running.child.id()).unwrap();
    // SAFETY: a child of this test.
    unsafe { libc::kill(pid, libc::SIGTERM) };
    assert_eq!(running.answer(), "caught");
    assert_eq!(running.child.wait().unwrap().code(), Some(3));
    assert!(!has_grant(running.child.id()));
}

#[test]
fn two_runs_with_thirty_and_seventy_percent_do_thirty_and_seventy_of_the_work() {
    if !can_mount() {
        return;
    }
    let machine = Machine::new(1);
    // Without an agent each paces itself, so these are caps. The card's clock is the host's.
    let mut runs: Vec<_> = ["30", "70"]
        .iter()
        .map(|cores| {
            let mut command = run(&machine, &["--memory", "1Gi", "--cores", cores]);
            command.arg(env!("CARGO_BIN_EXE_share-probe")).args(["busy", "2000"]);
            command.stdout(std::process::Stdio::piped()).spawn().unwrap()
        })
        .collect();
    let mut said: Vec<_> = runs
        .iter_mut()
        .map(|child| std::io::BufReader::new(child.stdout.take().unwrap()).lines())
        .collect();
    let mut next = |run: usize| {
        let line = said[run].next().unwrap().unwrap();
        load::count(&serde_json::from_str(&line).unwrap()).unwrap()
    };
    let (mut all, mut from) = ([vec![next(0)], vec![next(1)]], 0);
    for (run, counts) in all.iter_mut().enumerate() {
        from = from.max(counts[0].0);
        while counts.last().unwrap().0 < from + 6_000_000_000 {
            counts.push(next(run));
        }
    }
    for child in &mut runs {
        // Handed on to the command.
        // SAFETY: no conditions.
        unsafe { libc::kill(child.id().cast_signed(), libc::SIGTERM) };
        child.wait().unwrap();
    }
    let got = all.map(|counts| load::part(&counts, from + 1_000_000_000, from + 5_000_000_000).unwrap());
    println!("runs with 30 and 70 percent got {got:.1?} percent of the card");
    assert!(got[0] <= 33.0 && got[1] <= 73.0, "{got:?}");
    // A busy host makes both do less.
    let part = got[0] / (got[0] + got[1]) * 100.0;
    assert!((25.0..=35.0).contains(&part), "{got:?}");
}

#[test]
fn an_ordinary_user_can_run_with_a_share() {
    if !can_mount() {
        return;
    }
    let machine = Machine::new(1);
    let open = Command::new("chmod")
        .arg("-R")
        .arg("a+rwX")
        .arg(machine.root.path())
        .status()
        .unwrap();
    assert!(open.success());
    let folder = machine.root.path().join("bin");
    std::fs::create_dir(&folder).unwrap();
    // Where another user can reach them.
    for (from, to) in [
        (tessera(), "tessera"),
        (env!("CARGO_BIN_EXE_cuda-client").into(), "cuda-client"),
        (library(), "libvgpu.so"),
    ] {
        std::fs::copy(from, folder.join(to)).unwrap();
    }
    let mut command = Command::new(folder.join("tessera"));
    command
        .args(["run", "--memory", "1Gi", "--"])
        .arg(folder.join("cuda-client"));
    machine.on_machine(&mut command);
    command.env("TMPDIR", "/dev/shm").env_remove("XDG_RUNTIME_DIR");
    command.uid(65534).gid(65534);
    let mut client = Client::spawn(command);
    client.make_ready(0);
    assert_eq!(client.memory(), (GIB, GIB));
    client.expect("cuMemAlloc_v2 &p 1025MiB", "2");
}

#[test]
fn a_command_on_musl_is_refused_before_anything_is_started() {
    if !can_mount() {
        return;
    }
    let machine = Machine::new(1);
    let program = machine.root.path().join("tool");
    std::fs::write(&program, on_musl(Path::new(env!("CARGO_BIN_EXE_cuda-client")))).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let output = run(&machine, &["--memory", "1Gi"]).arg(&program).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        format!(
            "error: `{}` is built on musl, whose loader takes no preloaded library, so its share of the card cannot be \
             held (it is started by {}). Use a build of it for glibc, or run it without a share\n",
            program.display(),
            musl_loader()
        )
    );
}

#[test]
fn what_cannot_be_is_said_in_one_line() {
    if !can_mount() {
        return;
    }
    let machine = Machine::new(1);
    let said = |options: &[&str], words: &[&str]| {
        let output = run(&machine, options).args(words).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    assert_eq!(
        said(&["--memory", "17Gi"], &["true"]),
        "error: 17 GiB asked, but card 0 (Tesla V100-PCIE-32GB) has 16 GiB\n"
    );
    assert!(said(&["--card", "3"], &["true"]).starts_with("error: there is no card `3`; this machine has 0 (GPU-"));
    assert_eq!(
        said(&[], &["no-such-command"]),
        "error: there is no command `no-such-command`\n"
    );
    let mut without_driver = run(&machine, &[]);
    without_driver.env("LD_LIBRARY_PATH", "/nonexistent").arg("true");
    let text = String::from_utf8(without_driver.output().unwrap().stderr).unwrap();
    assert!(text.contains("libnvidia-ml.so.1 is not installed"), "{text}");
}
