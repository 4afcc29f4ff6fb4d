//! What the preloaded library costs a call, in instructions and nanoseconds, as the difference with and without it
//! over a driver that returns at once.
//!
//! ```text
//! cargo build --release -p tessera-shim && cargo run --release -p tessera-e2e --bin shim-cost
//! ```
//!
//! `--library FILE` measures another build. Needs root (private mounts), a C compiler and valgrind; without valgrind
//! only times are shown.

#![allow(
    unsafe_code,
    clippy::undocumented_unsafe_blocks,
    reason = "calls a driver of its own by name"
)]
#![allow(clippy::print_stdout, reason = "the answer goes to standard output")]

use std::{
    ffi::{CString, OsString, c_void},
    os::unix::{ffi::OsStrExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
    ptr,
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};
use tessera_region::{CardGrant, Grant, GrantId, GrantState, fs, turns_host::TurnsHost};

/// What is called, and by a container with which grant.
const CALLS: [(&str, Kind); 7] = [
    ("alloc-free", Kind::Memory),
    ("launch", Kind::Memory),
    ("graph-launch", Kind::Memory),
    ("memory-info", Kind::Memory),
    ("launch", Kind::Cores),
    ("stream-launch", Kind::Cores),
    ("graph-launch", Kind::Cores),
];

/// What the grant limits.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Memory alone.
    Memory,
    /// The time on the card too; the gate is open, and kernels take 10 us.
    Cores,
}
const UUID: &str = "GPU-11111111-1111-1111-1111-111111111111";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["--loop", call, times] => run_loop(call, times.parse()?),
        [] => report(&Path::new(&std::env::current_exe()?).with_file_name("libvgpu.so")),
        ["--library", file] => report(Path::new(file)),
        _ => bail!("usage: shim-cost [--library FILE]"),
    }
}

/// The measured program: looks the calls up and makes them.
fn run_loop(call: &str, times: u64) -> Result<()> {
    type One = unsafe extern "C" fn(u64) -> i32;
    type Two = unsafe extern "C" fn(*mut u64, u64) -> i32;
    type Launch = unsafe extern "C" fn(u64, u32, u32, u32, u32, u32, u32, u32, u64, *mut c_void, *mut c_void) -> i32;
    let driver = unsafe { libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW) };
    ensure!(!driver.is_null(), "no libcuda.so.1");
    let find = |name: &str| -> Result<*mut c_void> {
        let found = unsafe { libc::dlsym(driver, CString::new(name)?.as_ptr()) };
        ensure!(!found.is_null(), "no {name}");
        Ok(found)
    };
    let one = |name: &str| find(name).map(|p| unsafe { std::mem::transmute::<*mut c_void, One>(p) });
    let two = |name: &str| find(name).map(|p| unsafe { std::mem::transmute::<*mut c_void, Two>(p) });
    let launch = unsafe { std::mem::transmute::<*mut c_void, Launch>(find("cuLaunchKernel")?) };
    let (alloc, free, graph) = (two("cuMemAlloc_v2")?, one("cuMemFree_v2")?, two("cuGraphLaunch")?);
    let info = two("cuMemGetInfo_v2")?;
    let (mut context, mut pointer, mut total) = (0, 0, 0);
    ensure!(unsafe { one("cuInit")?(0) } == 0, "cuInit");
    ensure!(
        unsafe { two("cuDevicePrimaryCtxRetain")?(&raw mut context, 0) } == 0,
        "context"
    );
    ensure!(unsafe { one("cuCtxSetCurrent")?(context) } == 0, "context");
    let mut stream = 0_u64;
    let none = ptr::null_mut();
    if call == "stream-launch" {
        ensure!(unsafe { two("cuStreamCreate")?(&raw mut stream, 0) } == 0, "stream");
    }
    let total_address = u64::try_from((&raw mut total).expose_provenance())?;
    let start = Instant::now();
    for _ in 0..times {
        let code = match call {
            "alloc-free" => unsafe { alloc(&raw mut pointer, 4096) | free(pointer) },
            "launch" | "stream-launch" => unsafe { launch(1, 1, 1, 1, 1, 1, 1, 0, stream, none, none) },
            "graph-launch" => unsafe { graph(ptr::without_provenance_mut(1), 0) },
            "memory-info" => unsafe { info(&raw mut pointer, total_address) },
            other => bail!("no call {other}"),
        };
        ensure!(code == 0, "{call}: {code}");
    }
    println!("{}", start.elapsed().as_nanos());
    std::hint::black_box(total);
    Ok(())
}

fn report(library: &Path) -> Result<()> {
    ensure!(
        library.exists(),
        "{} is not built: cargo build --release -p tessera-shim",
        library.display()
    );
    let work = tempfile::tempdir_in("/dev/shm")?;
    let driver = work.path().join("libcuda.so.1");
    let source = work.path().join("driver.c");
    std::fs::write(&source, include_str!("stub-driver.c"))?;
    let mut compiler = Command::new("cc");
    compiler.args([
        "-O2",
        "-w",
        "-shared",
        "-fPIC",
        "-fvisibility=hidden",
        "-Wl,-soname,libcuda.so.1",
        "-Wl,-Bsymbolic",
    ]);
    compiler.arg("-o").arg(&driver).arg(&source);
    ensure!(
        compiler.status().context("running cc")?.success(),
        "compiling the driver"
    );

    let grant = |number: u8, kind: Kind| -> Result<fs::GrantDir> {
        let mut grant = Grant::new(GrantId::from_bytes([number; 16]), "", "")?;
        grant.state = GrantState::Sealed;
        let mut card = CardGrant::with_memory(UUID, 8 << 30)?;
        if kind == Kind::Cores {
            card.cores_permille = 300;
        }
        grant.push_card(card)?;
        let dir = fs::create_grant_dir(&work.path().join("grants"), &grant)?;
        if kind == Kind::Cores {
            // As if an agent were heard all the time.
            TurnsHost::open(&dir)?.beat(u64::MAX);
        }
        Ok(dir)
    };
    let (memory, cores) = (grant(1, Kind::Memory)?, grant(2, Kind::Cores)?);

    let valgrind = Command::new("valgrind").arg("--version").output().is_ok();
    println!(
        "{:<22} {:>16} {:>16} {:>10} {:>12}",
        "call", "instructions", "with library", "added", "added ns"
    );
    for (call, kind) in CALLS {
        let (dir, name) = match kind {
            Kind::Memory => (&memory, call.to_owned()),
            Kind::Cores => (&cores, format!("{call}, cores")),
        };
        let measure = |with: bool| Setup {
            work: work.path(),
            dir,
            library: with.then_some(library),
            call,
        };
        let (bare, shim) = (measure(false), measure(true));
        let (without, with) = match valgrind {
            true => (bare.instructions()?, shim.instructions()?),
            false => (f64::NAN, f64::NAN),
        };
        let added = shim.nanoseconds()? - bare.nanoseconds()?;
        println!(
            "{name:<22} {without:>16.1} {with:>16.1} {:>10.1} {added:>12.1}",
            with - without
        );
    }
    Ok(())
}

struct Setup<'a> {
    work: &'a Path,
    dir: &'a fs::GrantDir,
    library: Option<&'a Path>,
    call: &'a str,
}

impl Setup<'_> {
    /// Per iteration: the difference between two lengths of the loop, so that the start cancels out.
    fn instructions(&self) -> Result<f64> {
        let count = |times: u64| -> Result<f64> {
            let tool: [OsString; 3] = [
                "valgrind".into(),
                "--tool=callgrind".into(),
                "--callgrind-out-file=/dev/null".into(),
            ];
            let (_, said) = self.run(&tool, times)?;
            let line = said.lines().find_map(|line| line.split("Collected :").nth(1));
            Ok(line.context("valgrind gave no count")?.trim().parse()?)
        };
        Ok((count(20_000)? - count(10_000)?) / 10_000.0)
    }

    /// The best of several runs.
    fn nanoseconds(&self) -> Result<f64> {
        let times = 1_000_000;
        let mut best = f64::INFINITY;
        for _ in 0..7 {
            let (text, _) = self.run(&[], times)?;
            best = best.min(text.trim().parse::<f64>()? / 1_000_000.0);
        }
        Ok(best)
    }

    fn run(&self, tool: &[OsString], times: u64) -> Result<(String, String)> {
        let mut words = tool.to_vec();
        words.push(std::env::current_exe()?.into());
        let mut words = words.into_iter();
        let mut command = Command::new(words.next().context("a program")?);
        command.args(words).args(["--loop", self.call, &times.to_string()]);
        command.env("LD_LIBRARY_PATH", self.work);
        if let Some(library) = self.library {
            command.env("LD_PRELOAD", library);
        }
        mounts(&mut command, self.dir.read_only(), self.dir.read_write())?;
        let output = command.output().context("starting the measured program")?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "the measured program failed: {said}");
        Ok((String::from_utf8(output.stdout)?, said))
    }
}

/// The grant where the library looks for it, for this command alone.
fn mounts(command: &mut Command, ro: PathBuf, rw: PathBuf) -> Result<()> {
    let c_string = |path: PathBuf| CString::new(path.as_os_str().as_bytes());
    let (ro, rw) = (c_string(ro)?, c_string(rw)?);
    let check = |result: i32| {
        if result == 0 {
            Ok(())
        } else {
            Err(std::io::Error::last_os_error())
        }
    };
    unsafe {
        command.pre_exec(move || {
            let none = ptr::null();
            check(libc::unshare(libc::CLONE_NEWNS))?;
            check(libc::mount(
                none,
                c"/".as_ptr(),
                none,
                libc::MS_REC | libc::MS_PRIVATE,
                none.cast(),
            ))?;
            check(libc::mount(
                c"tmpfs".as_ptr(),
                c"/run".as_ptr(),
                c"tmpfs".as_ptr(),
                0,
                none.cast(),
            ))?;
            libc::mkdir(c"/run/tessera".as_ptr(), 0o755);
            for (source, target) in [(&ro, c"/run/tessera/grant"), (&rw, c"/run/tessera/account")] {
                check(libc::mkdir(target.as_ptr(), 0o755))?;
                check(libc::mount(
                    source.as_ptr(),
                    target.as_ptr(),
                    none,
                    libc::MS_BIND,
                    none.cast(),
                ))?;
            }
            Ok(())
        });
    }
    Ok(())
}
