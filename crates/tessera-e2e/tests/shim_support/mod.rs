//! A simulated machine and containers on it, as far as the preloaded library is concerned: mounts of the grant, the
//! library in `LD_PRELOAD`, and real child processes.

#![allow(unsafe_code, reason = "mounts are made in the child between fork and exec")]
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::print_stderr, reason = "tests say why they skip")]

use std::{
    ffi::{CStr, CString},
    fmt::Debug,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio},
    ptr,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tessera_region::{CardGrant, Grant, GrantId, GrantState, fs};

pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;

/// Folder of the built files; the library and the simulated driver are built once, by `./check` before all tests.
pub static BUILT: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_BIN_EXE_cuda-client"))
        .parent()
        .unwrap()
        .to_owned();
    if std::env::var_os("TESSERA_PREBUILT").is_some() {
        return folder;
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let packages = [
        "tessera-shim",
        "tessera-fake-core",
        "tessera-fake-cuda",
        "tessera-fake-nvml",
    ];
    let mut build = Command::new(cargo);
    build
        .arg("build")
        .arg("--quiet")
        .args(packages.iter().flat_map(|package| ["-p", package]));
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    build.current_dir(env!("CARGO_MANIFEST_DIR"));
    assert!(
        build.status().unwrap().success(),
        "building the library and the simulated driver"
    );
    folder
});

/// The library under test.
pub fn library() -> PathBuf {
    BUILT.join("libvgpu.so")
}

/// The product's binary, which `./check` builds before the tests.
pub fn tessera() -> PathBuf {
    let binary = BUILT.join("tessera");
    assert!(
        binary.is_file(),
        "{} is missing; run `cargo build --workspace`",
        binary.display()
    );
    binary
}

/// A program of glibc as if it had been linked against musl: it names musl's loader in place of its own.
pub fn on_musl(program: &Path) -> Vec<u8> {
    let mut bytes = std::fs::read(program).unwrap();
    let old = if cfg!(target_arch = "aarch64") {
        "/lib/ld-linux-aarch64.so.1\0"
    } else {
        "/lib64/ld-linux-x86-64.so.2\0"
    };
    let at = bytes
        .windows(old.len())
        .position(|window| window == old.as_bytes())
        .unwrap();
    let new = musl_loader().as_bytes();
    bytes[at..at + old.len()].fill(0);
    bytes[at..at + new.len()].copy_from_slice(new);
    bytes
}

/// Where programs on musl look for their loader.
pub fn musl_loader() -> &'static str {
    tessera_no_musl::Processor::of_this_build().unwrap().loader()
}

/// The file that the node agent keeps for the place of musl's loader.
pub fn put_no_musl(path: &Path) {
    std::fs::write(path, tessera_no_musl::Processor::of_this_build().unwrap().program()).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// The client linked against musl, in an image of its own below `folder`, with the mount that the node agent makes at
/// the place of musl's loader.
pub fn musl_image(folder: &Path) -> Command {
    let refusing = folder.join("no-musl");
    put_no_musl(&refusing);
    let image = folder.join("image");
    let loader = image.join(musl_loader().trim_start_matches('/'));
    std::fs::create_dir_all(loader.parent().unwrap()).unwrap();
    // As a container runtime makes it, where the image has none.
    std::fs::write(&loader, "").unwrap();
    std::fs::write(
        image.join("client"),
        on_musl(Path::new(env!("CARGO_BIN_EXE_cuda-client"))),
    )
    .unwrap();
    std::fs::set_permissions(image.join("client"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let c_string = |path: &Path| CString::new(path.as_os_str().as_bytes()).unwrap();
    let (source, target) = (c_string(&refusing), c_string(&loader));
    let image = c_string(&image);
    let mut command = Command::new("/client");
    // SAFETY: the closure makes system calls only.
    unsafe {
        command.pre_exec(move || {
            check(libc::unshare(libc::CLONE_NEWNS))?;
            let private = libc::MS_REC | libc::MS_PRIVATE;
            check(libc::mount(
                ptr::null(),
                c"/".as_ptr(),
                ptr::null(),
                private,
                ptr::null(),
            ))?;
            bind_read_only(&source, &target)?;
            check(libc::chroot(image.as_ptr()))?;
            check(libc::chdir(c"/".as_ptr()))
        });
    }
    command
}

/// Makes a file appear at another place, where it cannot be written. System calls only.
pub fn bind_read_only(source: &CStr, target: &CStr) -> std::io::Result<()> {
    for flags in [libc::MS_BIND, libc::MS_BIND | libc::MS_REMOUNT | libc::MS_RDONLY] {
        // SAFETY: C strings, and no data.
        check(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), ptr::null(), flags, ptr::null()) })?;
    }
    Ok(())
}

/// Whether this process may mount; says so when it may not.
pub fn can_mount() -> bool {
    // SAFETY: no conditions.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        eprintln!("skipped: needs root for private mounts");
    }
    root
}

/// A machine with so many cards of 16 GiB.
pub struct Machine {
    pub root: TempDir,
    pub uuids: Vec<String>,
}

impl Machine {
    pub fn new(cards: usize) -> Self {
        Self::with_context(cards, 300)
    }

    /// Cards on which a context takes so many MiB.
    pub fn with_context(cards: usize, context_mib: u64) -> Self {
        Self::described("", cards, 16384, context_mib)
    }

    /// A machine with more lines of description in front, and cards of so many MiB.
    pub fn described(head: &str, cards: usize, memory_mib: u64, context_mib: u64) -> Self {
        Self::with_cards(
            head,
            cards,
            &format!("memory_mib: {memory_mib}, reserved_mib: 0, context_mib: {context_mib}"),
        )
    }

    /// A machine with more lines of description in front, and cards of this kind.
    pub fn with_cards(head: &str, cards: usize, kind: &str) -> Self {
        // In memory: the state of the machine is a large file with few bytes in it.
        let root = tempfile::tempdir_in("/dev/shm").unwrap();
        let description = root.path().join("cards.yaml");
        let uuids: Vec<String> = (0..cards)
            .map(|n| format!("GPU-5e55e7a0-0000-4000-8000-{n:012x}"))
            .collect();
        let text: String = uuids
            .iter()
            .map(|uuid| format!("  - {{model: V100-PCIE-32GB, uuid: {uuid}, {kind}}}\n"))
            .collect();
        std::fs::write(&description, format!("{head}cards:\n{text}")).unwrap();
        let driver = root.path().join("driver");
        let output = Command::new(BUILT.join("tessera-simdriver"))
            .arg("install")
            .arg("--cards")
            .arg(&description)
            .arg("--root")
            .arg(&driver)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self { root, uuids }
    }

    pub fn driver(&self) -> PathBuf {
        self.root.path().join("driver")
    }

    pub fn grants(&self) -> PathBuf {
        self.root.path().join("grants")
    }

    /// A client on the bare machine.
    pub fn bare(&self) -> Client {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cuda-client"));
        self.on_machine(&mut command);
        Client::spawn(command)
    }

    pub fn on_machine(&self, command: &mut Command) {
        command
            .env("TESSERA_SIM_ROOT", self.driver())
            .env("LD_LIBRARY_PATH", self.driver().join("lib64"));
    }

    /// A container with these limits in bytes on the first cards.
    pub fn container(&self, limits: &[u64]) -> Container<'_> {
        let cards = limits
            .iter()
            .zip(&self.uuids)
            .map(|(limit, uuid)| CardGrant::with_memory(uuid, *limit).unwrap());
        self.container_with(cards)
    }

    pub fn container_with(&self, cards: impl IntoIterator<Item = CardGrant>) -> Container<'_> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let mut id = [0; 16];
        id[..8].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_le_bytes());
        let mut grant = Grant::new(GrantId::from_bytes(id), "pod-uid", "main").unwrap();
        grant.state = GrantState::Sealed;
        for card in cards {
            grant.push_card(card).unwrap();
        }
        fs::create_grant_dir(&self.grants(), &grant).unwrap();
        Container { machine: self, grant }
    }
}

/// A container: its grant, and what every process in it sees.
pub struct Container<'a> {
    pub machine: &'a Machine,
    pub grant: Grant,
}

impl Container<'_> {
    pub fn dir(&self) -> fs::GrantDir {
        fs::GrantDir::new(&self.machine.grants(), self.grant.id)
    }

    /// Puts a changed grant in force.
    pub fn replace(&mut self, change: impl FnOnce(&mut Grant)) {
        change(&mut self.grant);
        fs::replace(&self.machine.grants(), &mut self.grant).unwrap();
    }

    pub fn seal(&self) {
        fs::seal(&self.machine.grants(), self.grant.id).unwrap();
    }

    /// Lets a command run in the container.
    pub fn enter(&self, command: &mut Command) {
        self.machine.on_machine(command);
        command.env("LD_PRELOAD", library());
        mounts(command, Some((self.dir().read_only(), self.dir().read_write())));
    }

    /// A client in the container.
    pub fn client(&self) -> Client {
        self.client_with(|_| {})
    }

    pub fn client_with(&self, change: impl FnOnce(&mut Command)) -> Client {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cuda-client"));
        self.enter(&mut command);
        change(&mut command);
        Client::spawn(command)
    }

    /// A client with a current context on the first card.
    pub fn ready(&self) -> Client {
        let mut client = self.client();
        client.make_ready(0);
        client
    }
}

/// Private mounts for a command: an empty `/run`, and the grant's two folders if there are any.
pub fn mounts(command: &mut Command, folders: Option<(PathBuf, PathBuf)>) {
    let c_string = |path: &Path| CString::new(path.as_os_str().as_bytes()).unwrap();
    let folders = folders.map(|(ro, rw)| (c_string(&ro), c_string(&rw)));
    // SAFETY: the closure makes system calls only.
    unsafe {
        command.pre_exec(move || {
            check(libc::unshare(libc::CLONE_NEWNS))?;
            let nothing = ptr::null();
            let private = libc::MS_REC | libc::MS_PRIVATE;
            check(libc::mount(nothing, c"/".as_ptr(), nothing, private, nothing.cast()))?;
            check(libc::mount(
                c"tmpfs".as_ptr(),
                c"/run".as_ptr(),
                c"tmpfs".as_ptr(),
                0,
                nothing.cast(),
            ))?;
            let Some((ro, rw)) = &folders else { return Ok(()) };
            for (source, target, flags) in [
                (ro, c"/run/tessera/grant", libc::MS_RDONLY),
                (rw, c"/run/tessera/account", 0),
            ] {
                libc::mkdir(c"/run/tessera".as_ptr(), 0o755);
                check(libc::mkdir(target.as_ptr(), 0o755))?;
                check(libc::mount(
                    source.as_ptr(),
                    target.as_ptr(),
                    nothing,
                    libc::MS_BIND,
                    nothing.cast(),
                ))?;
                let again = libc::MS_BIND | libc::MS_REMOUNT | flags;
                check(libc::mount(nothing, target.as_ptr(), nothing, again, nothing.cast()))?;
            }
            Ok(())
        });
    }
}

fn check(result: libc::c_int) -> std::io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// A running `cuda-client`.
pub struct Client {
    pub child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    errors: Option<ChildStderr>,
}

impl Client {
    pub fn spawn(mut command: Command) -> Self {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        Self {
            input: child.stdin.take().unwrap(),
            output: BufReader::new(child.stdout.take().unwrap()),
            errors: child.stderr.take(),
            child,
        }
    }

    /// Sends a command without waiting for the answer.
    pub fn send(&mut self, command: &str) {
        writeln!(self.input, "{command}").unwrap();
        self.input.flush().unwrap();
    }

    /// The next answer.
    pub fn answer(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "the client ended: {}", self.said());
        line.trim_end().to_owned()
    }

    pub fn ask(&mut self, command: &str) -> String {
        self.send(command);
        self.answer()
    }

    /// Asks, and the answer begins with this code (and ends there, or a blank follows).
    #[track_caller]
    pub fn expect(&mut self, command: &str, expected: &str) -> String {
        let answer = self.ask(command);
        let fits = answer == expected || answer.starts_with(&format!("{expected} "));
        assert!(fits, "{command}: {answer}, expected {expected}");
        answer
    }

    /// Asks, expects success, and gives a variable.
    #[track_caller]
    pub fn value(&mut self, command: &str, variable: &str) -> u64 {
        let answer = self.expect(command, "0");
        let key = format!("{variable}=");
        let found = answer.split(' ').find_map(|part| part.strip_prefix(&key));
        found.unwrap_or_else(|| panic!("{command}: {answer}")).parse().unwrap()
    }

    /// Initialises the driver and makes the primary context of a device current.
    #[track_caller]
    pub fn make_ready(&mut self, device: u32) {
        self.expect("cuInit 0", "0");
        self.expect(&format!("cuDevicePrimaryCtxRetain &ctx{device} {device}"), "0");
        self.expect(&format!("cuCtxSetCurrent $ctx{device}"), "0");
    }

    /// Free and total bytes by `cuMemGetInfo`.
    #[track_caller]
    pub fn memory(&mut self) -> (u64, u64) {
        let answer = self.expect("cuMemGetInfo_v2 &f &t", "0");
        let number = |key: &str| {
            answer
                .split(' ')
                .find_map(|p| p.strip_prefix(key))
                .unwrap()
                .parse()
                .unwrap()
        };
        (number("f="), number("t="))
    }

    /// Bytes that the container uses, by `cuMemGetInfo`.
    #[track_caller]
    pub fn used(&mut self) -> u64 {
        let (free, total) = self.memory();
        total - free
    }

    /// Total, free and used by NVML, after `nvmlInit_v2`.
    #[track_caller]
    pub fn nvml_memory(&mut self) -> [u64; 3] {
        self.expect("nvmlDeviceGetHandleByIndex_v2 0 &d", "0");
        self.expect("@new m 24", "ok");
        self.expect("nvmlDeviceGetMemoryInfo $d *m", "0");
        [0, 8, 16].map(|at| self.ask(&format!("@get m {at} 8")).parse().unwrap())
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// What the client wrote on standard error; ends it.
    pub fn said(&mut self) -> String {
        let mut text = String::new();
        if let Some(mut errors) = self.errors.take() {
            let (Ok(()) | Err(_)) = self.child.kill();
            let (Ok(_) | Err(_)) = errors.read_to_string(&mut text);
        }
        text
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let (Ok(()) | Err(_)) = self.child.kill();
        let (Ok(_) | Err(_)) = self.child.wait();
    }
}

/// Asks again until the answer is as expected, up to a deadline.
#[track_caller]
pub fn eventually<T: PartialEq + Debug>(within: Duration, expected: T, mut ask: impl FnMut() -> T) {
    let end = Instant::now() + within;
    loop {
        let found = ask();
        if found == expected {
            return;
        }
        assert!(
            Instant::now() < end,
            "still {found:?} after {within:?}, expected {expected:?}"
        );
        std::thread::yield_now();
    }
}
