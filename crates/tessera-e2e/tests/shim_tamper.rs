//! What a container may try to get out of its limit, with the library named in `/etc/ld.so.preload` by a read-only mount
//! as the node agent makes it, and without `LD_PRELOAD`.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]
#![allow(clippy::print_stdout, reason = "a failing test says how far it came")]
#![allow(unsafe_code, reason = "mounts are made in the child between fork and exec")]

mod shim_support;

use std::{
    ffi::CString,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{FileExt as _, PermissionsExt as _},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::Command,
    ptr,
    time::Duration,
};

use shim_support::{
    Client, Container, GIB, MIB, Machine, bind_read_only, can_mount, eventually, library, mounts, musl_loader, on_musl,
    put_no_musl,
};
use tessera_region::{CardGrant, MAX_CARDS, swap_host::SwapHost, turns_host::TurnsHost};

/// A machine whose files anybody may read, with the client and the library among them.
struct Site {
    machine: Machine,
}

/// What a command finds besides the grant.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Root {
    /// The machine's own files.
    Host,
    /// The same, none of which can be written.
    ReadOnly,
    /// Nothing but the C library, the client, the driver and the library: a program in an image without a distribution.
    Bare,
}

impl Site {
    fn new() -> Self {
        let site = Self {
            machine: Machine::new(1),
        };
        let root = site.machine.root.path();
        std::fs::set_permissions(root, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::create_dir_all(root.join("bin")).unwrap();
        std::fs::copy(env!("CARGO_BIN_EXE_cuda-client"), site.client()).unwrap();
        std::fs::copy(library(), site.library()).unwrap();
        for (name, text) in [
            ("preload", format!("{}\n", site.library().display())),
            ("empty", String::new()),
        ] {
            std::fs::write(root.join(name), text).unwrap();
        }
        for folder in ["upper", "work"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        put_no_musl(&root.join("no-musl"));
        site
    }

    fn client(&self) -> PathBuf {
        self.machine.root.path().join("bin/cuda-client")
    }

    fn library(&self) -> PathBuf {
        self.machine.root.path().join("bin/libvgpu.so")
    }

    /// Where the simulated machine is; these two words say nothing about limits.
    fn words(&self) -> String {
        let driver = self.machine.driver();
        format!(
            "TESSERA_SIM_ROOT={} LD_LIBRARY_PATH={}",
            driver.display(),
            driver.join("lib64").display()
        )
    }

    /// A command in a container, with the mount that the node agent makes.
    fn command(&self, container: &Container<'_>, root: Root, words: &[&str]) -> Command {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).env_remove("LD_PRELOAD");
        self.machine.on_machine(&mut command);
        mounts(
            &mut command,
            Some((container.dir().read_only(), container.dir().read_write())),
        );
        let base = self.machine.root.path().to_owned();
        let c_string = |path: &Path| CString::new(path.as_os_str().as_bytes()).unwrap();
        let overlay = format!(
            "lowerdir=/etc,upperdir={},workdir={}",
            base.join("upper").display(),
            base.join("work").display()
        );
        let (overlay, preload) = (CString::new(overlay).unwrap(), c_string(&base.join("preload")));
        let bare = c_string(&base.join("bare"));
        let refusing = c_string(&base.join("no-musl"));
        let musl = c_string(&base.join("bare").join(musl_loader().trim_start_matches('/')));
        std::fs::write(base.join("upper/ld.so.preload"), "").unwrap();
        // SAFETY: the closure makes system calls only.
        unsafe {
            command.pre_exec(move || {
                let nothing = ptr::null();
                let done = |result: libc::c_int| match result {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                };
                if root == Root::Bare {
                    // Its `/run` and `/etc/ld.so.preload` are files of its own.
                    for (source, target) in [(c"/run", c"run"), (c"/proc", c"proc")] {
                        done(libc::chdir(bare.as_ptr()))?;
                        let flags = libc::MS_BIND | libc::MS_REC;
                        done(libc::mount(
                            source.as_ptr(),
                            target.as_ptr(),
                            nothing,
                            flags,
                            nothing.cast(),
                        ))?;
                    }
                    bind_read_only(&refusing, &musl)?;
                    return done(libc::chroot(bare.as_ptr())).and_then(|()| done(libc::chdir(c"/".as_ptr())));
                }
                let kind = c"overlay".as_ptr();
                done(libc::mount(kind, c"/etc".as_ptr(), kind, 0, overlay.as_ptr().cast()))?;
                let target = c"/etc/ld.so.preload".as_ptr();
                done(libc::mount(
                    preload.as_ptr(),
                    target,
                    nothing,
                    libc::MS_BIND,
                    nothing.cast(),
                ))?;
                let fixed = libc::MS_BIND | libc::MS_REMOUNT | libc::MS_RDONLY;
                done(libc::mount(nothing, target, nothing, fixed, nothing.cast()))?;
                if root == Root::ReadOnly {
                    done(libc::mount(nothing, c"/".as_ptr(), nothing, fixed, nothing.cast()))?;
                }
                Ok(())
            });
        }
        command
    }

    /// The files of an image without a distribution, at the paths that they have on the machine.
    fn make_bare(&self) {
        let bare = self.machine.root.path().join("bare");
        for folder in ["run", "proc", "etc", "dev", "tmp"] {
            std::fs::create_dir_all(bare.join(folder)).unwrap();
        }
        let put = |path: &Path| {
            let target = bare.join(path.strip_prefix("/").unwrap());
            std::fs::create_dir_all(target.parent().unwrap()).unwrap();
            std::fs::copy(path, target).unwrap();
        };
        let listed = Command::new("ldd").arg(self.client()).output().unwrap();
        for word in String::from_utf8(listed.stdout).unwrap().split_whitespace() {
            if word.starts_with('/') {
                put(Path::new(word));
            }
        }
        let wanted = Command::new("ldd")
            .arg(self.machine.driver().join("lib64/libcuda.so.1"))
            .output()
            .unwrap();
        for word in String::from_utf8(wanted.stdout).unwrap().split_whitespace() {
            if word.starts_with('/') {
                put(Path::new(word));
            }
        }
        put(&self.client());
        put(&self.library());
        let client = bare.join(self.client().strip_prefix("/").unwrap());
        std::fs::write(client.with_file_name("on-musl"), on_musl(&client)).unwrap();
        let permissions = std::fs::metadata(&client).unwrap().permissions();
        std::fs::set_permissions(client.with_file_name("on-musl"), permissions).unwrap();
        // As a container runtime makes it, where the image has none.
        let musl = bare.join(musl_loader().trim_start_matches('/'));
        std::fs::create_dir_all(musl.parent().unwrap()).unwrap();
        std::fs::write(musl, "").unwrap();
        std::fs::copy(self.machine.root.path().join("preload"), bare.join("etc/ld.so.preload")).unwrap();
        // The machine is a folder, seen at the same place: a bind would do the same and needs one more mount.
        let inside = bare.join(self.machine.driver().strip_prefix("/").unwrap());
        let copied = Command::new("cp")
            .args(["-a", "--sparse=always"])
            .arg(self.machine.driver())
            .arg(inside.parent().unwrap())
            .status()
            .unwrap();
        assert!(copied.success());
    }
}

/// The client has 1 GiB, whatever came before.
#[track_caller]
fn is_held(mut client: Client, how: &str) {
    client.make_ready(0);
    // The one before may be a grandchild that has not seen the end of its input yet.
    eventually(Duration::from_secs(10), (GIB, GIB), || client.memory());
    println!("{how}");
    client.expect("cuMemAlloc_v2 &p 1025MiB", "2");
    client.expect("cuMemAllocManaged &p 1025MiB 1", "2");
    client.expect("cuMemAlloc_v2 &p 1GiB", "0");
    client.expect("cuMemAlloc_v2 &q 2MiB", "2");
}

#[test]
fn shells_users_and_variables_change_nothing() {
    if !can_mount() {
        return;
    }
    let site = Site::new();
    let container = site.machine.container(&[GIB]);
    let (client, words) = (site.client().display().to_string(), site.words());
    for script in [
        client.clone(),
        format!("exec env -i {words} {client}"),
        format!("unset LD_PRELOAD; exec {client}"),
        format!("exec env LD_PRELOAD= {client}"),
        format!("exec env LD_PRELOAD=/lib64/ld-linux-x86-64.so.2:/nonexistent.so {client}"),
        format!("exec env LD_AUDIT= LD_DEBUG= GLIBC_TUNABLES=glibc.malloc.check=0 {client}"),
        format!("exec bash --login -c 'exec {client}'"),
        format!("exec env -i bash --login -c 'export {words}; exec {client}'"),
        format!("exec su nobody -s /bin/sh -c '{words} exec {client}'"),
        format!("exec su - nobody -s /bin/bash -c '{words} exec {client}'"),
        format!("exec setpriv --reuid 65534 --regid 65534 --clear-groups --no-new-privs {client}"),
        format!("exec setsid --wait env -i {words} sh -c '{client}; true'"),
        // By the loader, as a program that wants no preloading might be started.
        format!("exec /lib64/ld-linux-x86-64.so.2 {client}"),
    ] {
        for root in [Root::Host, Root::ReadOnly] {
            let command = site.command(&container, root, &["/bin/sh", "-c", &script]);
            is_held(Client::spawn(command), &script);
        }
    }
}

#[test]
fn the_file_that_names_the_library_cannot_be_changed() {
    if !can_mount() {
        return;
    }
    let site = Site::new();
    let container = site.machine.container(&[GIB]);
    // As a container runtime leaves it: root without the right to mount.
    let weak = "exec setpriv --bounding-set -sys_admin,-sys_chroot,-mknod --inh-caps -all sh -c";
    for attempt in [
        "echo > /etc/ld.so.preload",
        "rm -f /etc/ld.so.preload",
        "mv /etc/ld.so.preload /etc/other",
        "cp /dev/null /etc/ld.so.preload",
        "truncate -s 0 /etc/ld.so.preload",
        "chmod 666 /etc/ld.so.preload",
        "umount /etc/ld.so.preload",
        "mount -o remount,rw /etc/ld.so.preload",
        "echo > /run/tessera/grant/grant",
        "rm -f /run/tessera/grant/grant",
        "umount /run/tessera/grant",
    ] {
        let script = format!(
            "{weak} '{attempt} 2>/dev/null && echo done; exec {}'",
            site.client().display()
        );
        let command = site.command(&container, Root::Host, &["/bin/sh", "-c", &script]);
        let mut client = Client::spawn(command);
        // Nothing was printed before the answer, so the attempt failed.
        client.expect("cuInit 0", "0");
        is_held(client, attempt);
    }
}

#[test]
fn a_program_with_nothing_but_its_c_library_is_held() {
    if !can_mount() {
        return;
    }
    let site = Site::new();
    site.make_bare();
    let container = site.machine.container(&[GIB]);
    let client = site.client().display().to_string();
    is_held(Client::spawn(site.command(&container, Root::Bare, &[&client])), "bare");
}

#[test]
fn a_program_on_musl_is_refused_with_the_reason_and_one_on_glibc_beside_it_is_held() {
    if !can_mount() {
        return;
    }
    let site = Site::new();
    site.make_bare();
    let container = site.machine.container(&[GIB]);
    let program = site.client().with_file_name("on-musl").display().to_string();
    let client = site.client().display().to_string();
    for words in [
        vec![program.as_str()],
        // By the loader, as somebody may start it who looks for a way around.
        vec![musl_loader(), program.as_str()],
        vec![musl_loader(), "--preload", "/none.so", client.as_str()],
    ] {
        let output = site.command(&container, Root::Bare, &words).output().unwrap();
        assert_eq!(output.status.code(), Some(127), "{words:?}");
        assert_eq!(String::from_utf8(output.stderr).unwrap(), tessera_no_musl::REFUSAL);
        assert!(output.stdout.is_empty(), "{words:?}");
    }
    is_held(Client::spawn(site.command(&container, Root::Bare, &[&client])), "glibc");
}

/// What the container writes over its account, and who is hurt by it.
#[test]
fn a_rewritten_account_hurts_nobody_else() {
    if !can_mount() {
        return;
    }
    let machine = Machine::new(1);
    let container = machine.container(&[GIB]);
    let neighbour = machine.container(&[GIB]);
    let mut other = neighbour.ready();
    other.expect("cuMemAlloc_v2 &p 600MiB", "0");
    let mut client = container.ready();
    client.expect("cuMemAlloc_v2 &p 600MiB", "0");
    let file = std::fs::File::options()
        .write(true)
        .open(container.dir().account_file())
        .unwrap();
    let size = file.metadata().unwrap().len();
    let noise: Vec<u8> = (0..size).map(|n| (n.wrapping_mul(0x9e37_79b9) >> 11) as u8).collect();
    // All but the head, then the head too.
    file.write_all_at(&noise[64..], 64).unwrap();
    for command in ["cuMemAlloc_v2 &q 1MiB", "cuMemFree_v2 $p", "cuMemGetInfo_v2 &f &t"] {
        let answer = client.ask(command);
        assert!(answer.starts_with(['0', '2']), "{command}: {answer}");
    }
    file.write_all_at(&noise, 0).unwrap();
    let mut late = container.client();
    late.expect("cuInit 0", "800");
    assert!(late.said().contains("no account of this version"));
    // The neighbour has what it had.
    assert_eq!(other.used(), 600 * MIB);
    other.expect("cuMemAlloc_v2 &q 500MiB", "2");
    other.expect("cuMemAlloc_v2 &q 400MiB", "0");
}

#[test]
fn files_that_the_container_cuts_short_do_not_end_the_agent() {
    let machine = Machine::new(1);
    let card = CardGrant {
        cores_permille: 500,
        flags: tessera_region::CardFlags::SWAP,
        ..CardGrant::with_memory(&machine.uuids[0], GIB).unwrap()
    };
    let container = machine.container_with([card]);
    let dir = container.dir();
    let (turns, swaps) = (TurnsHost::open(&dir).unwrap(), SwapHost::open(&dir).unwrap());
    for path in [dir.turns_file(), dir.swap_report_file(), dir.account_file()] {
        std::fs::File::options()
            .write(true)
            .open(path)
            .unwrap()
            .set_len(0)
            .unwrap();
    }
    // Each of these reads what a container wrote; a mapping cut short would end this process with a signal.
    assert!(turns.head().is_none());
    tessera_region::turns_host::wait_for_bells(&[(turns.bell(), 0)], 1);
    turns.beat(1);
    swaps.beat(1);
    for slot in [0, 1, 1023] {
        for card in 0..MAX_CARDS {
            assert!(turns.figures(slot, card).is_none());
            assert!(swaps.figures(slot, card).is_none());
        }
    }
    assert!(tessera_region::fs::reset_account(&machine.grants(), container.grant.id).is_ok());
}
