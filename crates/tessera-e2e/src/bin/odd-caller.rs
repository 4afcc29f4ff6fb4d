//! Calls functions of the driver with arguments that no program means to give.
//!
//! Standard input: one function a line, its name and the kinds of its arguments: `p` for an address, `n` for a number or
//! a handle, `x` for either, `d` for a card of NVML. Arguments of the program: a seed and how many calls each function gets on top of
//! those that have one odd argument.
//!
//! The calls run in forked children. A child that dies, hangs, or has done a call that succeeded is followed by a new
//! one, so each call finds a process as good as new. Standard output: one line for each finding, and a last line
//! `done CALLS SUCCEEDED DRIVER`, with the number of faults that were the driver's own.
//!
//! A finding is a fault or an abort anywhere but in the driver, a hang, a code that is no code, or a refused call after
//! which the share is not as it was.

#![allow(
    unsafe_code,
    clippy::undocumented_unsafe_blocks,
    reason = "calls C functions with whatever comes; nothing here can be checked"
)]
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a program for tests")]

use std::{
    ffi::{CString, c_int, c_void},
    io::Read as _,
    ptr,
    sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering},
};

type Function = unsafe extern "C" fn(u64, u64, u64, u64, u64, u64, u64, u64, u64, u64, u64) -> i32;

const PAGE: usize = 4096;
const MIB: u64 = 1 << 20;
/// Ends of a child that are no signal.
const DRIVER: c_int = 41;
const ELSEWHERE: c_int = 42;
const STRAY: c_int = 43;
const CHANGED: c_int = 44;
const NEXT: c_int = 45;
const BROKEN: c_int = 46;

/// Shared with the children.
#[derive(Default)]
struct Progress {
    next: AtomicUsize,
    code: AtomicI32,
    calls: AtomicU64,
    succeeded: AtomicU64,
}

struct Target {
    name: String,
    kinds: Vec<u8>,
    call: Function,
}

struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(end).unwrap()).unwrap()
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<u64>().unwrap());
    let (seed, more) = (arguments.next().unwrap(), arguments.next().unwrap());
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).unwrap();
    let libraries = [c"libcuda.so.1", c"libnvidia-ml.so.1"].map(|name| unsafe {
        let handle = libc::dlopen(name.as_ptr(), libc::RTLD_NOW);
        assert!(!handle.is_null(), "{name:?}");
        handle
    });
    let targets: Vec<Target> = text
        .lines()
        .map(|line| {
            let (name, kinds) = line.split_once(' ').unwrap_or((line, ""));
            let call = function(libraries, name).unwrap_or_else(|| panic!("no {name}"));
            let (name, kinds) = (name.to_owned(), kinds.as_bytes().to_vec());
            Target { name, kinds, call }
        })
        .collect();
    let ground = Ground::new();
    let calls = plan(&targets, seed, usize::try_from(more).unwrap(), &ground);
    let progress: &Progress = unsafe {
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        &*libc::mmap(ptr::null_mut(), PAGE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0).cast()
    };
    let mut driver = 0_u64;
    while progress.next.load(Ordering::SeqCst) < calls.len() {
        let child = unsafe { libc::fork() };
        if child == 0 {
            run(libraries, &targets, &calls, progress);
        }
        let mut status = 0;
        unsafe { libc::waitpid(child, &raw mut status, 0) };
        let at = progress.next.load(Ordering::SeqCst);
        let how = if libc::WIFEXITED(status) {
            match libc::WEXITSTATUS(status) {
                0 => break,
                NEXT => continue,
                DRIVER => {
                    driver += 1;
                    None
                }
                ELSEWHERE => Some("faulted outside the driver".to_owned()),
                STRAY => Some(format!("answered {}", progress.code.load(Ordering::SeqCst))),
                CHANGED => Some("changed the share though it was refused".to_owned()),
                BROKEN => Some("left no normal call possible".to_owned()),
                other => Some(format!("ended the program with {other}")),
            }
        } else {
            match libc::WTERMSIG(status) {
                libc::SIGALRM => Some("did not return".to_owned()),
                signal => Some(format!("raised signal {signal}")),
            }
        };
        if let Some(how) = how {
            let (target, words) = &calls[at];
            let target = &targets[*target];
            let words: Vec<String> = words[..target.kinds.len()]
                .iter()
                .map(|word| format!("{word:#x}"))
                .collect();
            println!("{}({}) {how}", target.name, words.join(", "));
        }
        progress.next.store(at + 1, Ordering::SeqCst);
    }
    println!(
        "done {} {} {driver}",
        progress.calls.load(Ordering::SeqCst),
        progress.succeeded.load(Ordering::SeqCst)
    );
}

fn function(libraries: [*mut c_void; 2], name: &str) -> Option<Function> {
    let text = CString::new(name).unwrap();
    let address = unsafe { libc::dlsym(libraries[usize::from(name.starts_with("nvml"))], text.as_ptr()) };
    (!address.is_null()).then(|| unsafe { std::mem::transmute::<*mut c_void, Function>(address) })
}

/// Places that arguments can point to.
struct Ground {
    zeros: u64,
    ones: u64,
    closed: u64,
    fixed: u64,
}

impl Ground {
    fn new() -> Self {
        // Two pages each, the second one closed: reading on ends in a fault.
        let pages = |fill: u8, protection| unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let page = libc::mmap(
                ptr::null_mut(),
                2 * PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                -1,
                0,
            );
            assert_ne!(page, libc::MAP_FAILED);
            ptr::write_bytes(page.cast::<u8>(), fill, PAGE);
            assert_eq!(libc::mprotect(page, PAGE, protection), 0);
            assert_eq!(libc::mprotect(page.wrapping_byte_add(PAGE), PAGE, libc::PROT_NONE), 0);
            u64::try_from(page.expose_provenance()).unwrap()
        };
        let open = libc::PROT_READ | libc::PROT_WRITE;
        Self {
            zeros: pages(0, open),
            ones: pages(0xff, open),
            closed: pages(0, libc::PROT_NONE),
            fixed: pages(0, libc::PROT_READ),
        }
    }

    /// Odd addresses: near null, outside of what a program has, closed, not aligned, at the very end, read-only.
    fn addresses(&self) -> Vec<u64> {
        let end = u64::try_from(PAGE).unwrap();
        vec![
            0,
            1,
            8,
            0xfff,
            0xdead_0000_dead_0000,
            u64::MAX,
            u64::MAX - 7,
            self.closed,
            self.closed + end - 4,
            self.zeros + 1,
            self.zeros + end - 4,
            self.zeros + end - 12,
            self.ones,
            self.ones + 3,
            self.ones + end - 8,
            self.fixed,
        ]
    }

    fn good(&self, random: &mut Random) -> u64 {
        self.zeros + u64::try_from(random.below(16)).unwrap() * 128
    }
}

/// Odd sizes, counts, flags and handles.
const NUMBERS: [u64; 22] = [
    0,
    1,
    2,
    3,
    7,
    63,
    64,
    4096,
    2 * MIB,
    2 * MIB + 1,
    1 << 31,
    (1 << 31) - 1,
    1 << 32,
    1 << 40,
    1 << 47,
    1 << 63,
    (1 << 63) - 1,
    u64::MAX,
    u64::MAX - 1,
    u64::MAX - 4095,
    u64::MAX - (2 * MIB) + 1,
    0xffff_ffff,
];

/// Stands for the card of NVML and for the context, which only the child knows.
const CARD: u64 = 0x7e55_e7a0_0000_0001;
const CONTEXT: u64 = 0x7e55_e7a0_0000_0002;

fn plan(targets: &[Target], seed: u64, more: usize, ground: &Ground) -> Vec<(usize, [u64; 11])> {
    let mut random = Random(seed | 1);
    let mut calls = Vec::new();
    let odd: Vec<u64> = ground.addresses();
    let strange = |random: &mut Random| {
        let any = random.below(odd.len() + NUMBERS.len());
        odd.get(any)
            .or_else(|| NUMBERS.get(any - odd.len()))
            .copied()
            .unwrap_or_default()
    };
    for (index, target) in targets.iter().enumerate() {
        let good = |kind: u8, random: &mut Random| match kind {
            b'p' => ground.good(random),
            b'd' => CARD,
            b'x' if random.below(2) == 0 => ground.good(random),
            _ => [0, 1, 1, 4096, 2 * MIB, CONTEXT][random.below(6)],
        };
        let row = |random: &mut Random, pick: &mut dyn FnMut(u8, usize, &mut Random) -> u64| {
            let mut words = [0; 11];
            for (place, kind) in target.kinds.iter().enumerate() {
                words[place] = pick(*kind, place, random);
            }
            (index, words)
        };
        for same in [0, u64::MAX, 1, 1 << 32] {
            calls.push(row(&mut random, &mut |_, _, _| same));
        }
        // One odd argument among good ones.
        for (place, kind) in target.kinds.iter().enumerate() {
            let strange: Vec<u64> = match kind {
                b'n' => NUMBERS.to_vec(),
                b'x' => (0..8).map(|_| strange(&mut random)).collect(),
                _ => odd.clone(),
            };
            for value in &strange {
                calls.push(row(&mut random, &mut |kind, at, random| {
                    if at == place { *value } else { good(kind, random) }
                }));
            }
        }
        for _ in 0..more {
            calls.push(row(&mut random, &mut |kind, _, random| match random.below(3) {
                0 => good(kind, random),
                1 if kind != b'n' => odd[random.below(odd.len())],
                _ => strange(random),
            }));
        }
    }
    calls
}

/// A child: a process with a context, and then one call after the other.
fn run(libraries: [*mut c_void; 2], targets: &[Target], calls: &[(usize, [u64; 11])], progress: &Progress) -> ! {
    watch_faults();
    let get = |name: &str| function(libraries, name).unwrap();
    let call = |f: Function, a: u64, b: u64| unsafe { f(a, b, 0, 0, 0, 0, 0, 0, 0, 0, 0) };
    let place = |word: &mut u64| u64::try_from(ptr::from_mut(word).expose_provenance()).unwrap();
    let (mut context, mut card, mut free, mut total, mut pointer) = (0, 0, 0, 0, 0);
    let begun = call(get("cuInit"), 0, 0) == 0
        && call(get("cuDevicePrimaryCtxRetain"), place(&mut context), 0) == 0
        && call(get("nvmlInit_v2"), 0, 0) == 0
        && call(get("nvmlDeviceGetHandleByIndex_v2"), 0, place(&mut card)) == 0;
    let (current, memory) = (get("cuCtxSetCurrent"), get("cuMemGetInfo_v2"));
    let (take, give) = (get("cuMemAlloc_v2"), get("cuMemFree_v2"));
    let mut share = || {
        let code = call(current, context, 0) | call(memory, place(&mut free), place(&mut total));
        if code == 0 { Some((free, total)) } else { None }
    };
    let mut before = share();
    if !begun || before.is_none() {
        unsafe { libc::_exit(BROKEN) };
    }
    loop {
        let at = progress.next.load(Ordering::SeqCst);
        let Some((target, words)) = calls.get(at) else {
            unsafe { libc::_exit(0) }
        };
        let target = &targets[*target];
        let w = words.map(|word| match word {
            CARD => card,
            CONTEXT => context,
            other => other,
        });
        unsafe { libc::alarm(10) };
        let code = unsafe { (target.call)(w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8], w[9], w[10]) };
        progress.calls.fetch_add(1, Ordering::SeqCst);
        progress.code.store(code, Ordering::SeqCst);
        if !(0..=999).contains(&code) {
            unsafe { libc::_exit(STRAY) };
        }
        if code == 0 {
            progress.succeeded.fetch_add(1, Ordering::SeqCst);
            progress.next.store(at + 1, Ordering::SeqCst);
            unsafe { libc::_exit(NEXT) };
        }
        let after = share();
        if after != before {
            unsafe { libc::_exit(CHANGED) };
        }
        before = after;
        // Now and then, and after the last call of each function: memory can be had and given back.
        let last = calls.get(at + 1).is_none_or(|next| next.0 != calls[at].0);
        if (last || at.is_multiple_of(16)) && (call(take, place(&mut pointer), MIB) != 0 || call(give, pointer, 0) != 0)
        {
            unsafe { libc::_exit(BROKEN) };
        }
        progress.next.store(at + 1, Ordering::SeqCst);
    }
}

/// Ranges of code: of the driver's libraries first, then of the library under test.
static RANGES: [[AtomicU64; 2]; 8] = [const { [const { AtomicU64::new(0) }; 2] }; 8];
const OURS: usize = 4;

/// Makes a fault end the child with the place where it came from.
fn watch_faults() {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let (mut driver, mut ours) = (0, OURS);
    for line in maps.lines().filter(|line| line.contains(" r-xp ")) {
        let place = if line.contains("vgpu") {
            &mut ours
        } else if line.contains("libcuda") || line.contains("nvidia-ml") || line.contains("libnvidia_ml") {
            &mut driver
        } else {
            continue;
        };
        let (start, rest) = line.split_once('-').unwrap();
        let end = rest.split(' ').next().unwrap();
        for (word, text) in RANGES[*place].iter().zip([start, end]) {
            word.store(u64::from_str_radix(text, 16).unwrap(), Ordering::Relaxed);
        }
        *place += 1;
    }
    unsafe {
        // A stack of its own, since a fault may be that of the stack.
        let stack = libc::stack_t {
            ss_sp: libc::mmap(
                ptr::null_mut(),
                16 * PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            ),
            ss_flags: 0,
            ss_size: 16 * PAGE,
        };
        libc::sigaltstack(&raw const stack, ptr::null_mut());
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction =
            (faulted as extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void)) as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT] {
            libc::sigaction(signal, &raw const action, ptr::null_mut());
        }
    }
}

/// Where a fault came from: the innermost code on the stack that is the driver's or ours.
extern "C" fn faulted(_signal: c_int, _info: *mut libc::siginfo_t, context: *mut c_void) {
    let owner = |address: u64| {
        let range = RANGES.iter().position(|range| {
            let [start, end] = [0, 1].map(|n| range[n].load(Ordering::Relaxed));
            (start..end).contains(&address)
        })?;
        Some(if range < OURS { DRIVER } else { ELSEWHERE })
    };
    let (code, stack) = registers(context.cast());
    let found = owner(code).or_else(|| {
        (0..4096).find_map(|n| owner(unsafe { ptr::with_exposed_provenance::<u64>(stack + 8 * n).read() }))
    });
    unsafe { libc::_exit(found.unwrap_or(ELSEWHERE)) };
}

#[cfg(target_arch = "x86_64")]
fn registers(context: *const libc::ucontext_t) -> (u64, usize) {
    let registers = unsafe { &(*context).uc_mcontext.gregs };
    let word = |name: c_int| registers[usize::try_from(name).unwrap()].cast_unsigned();
    (word(libc::REG_RIP), usize::try_from(word(libc::REG_RSP)).unwrap())
}

#[cfg(target_arch = "aarch64")]
fn registers(context: *const libc::ucontext_t) -> (u64, usize) {
    let context = unsafe { &(*context).uc_mcontext };
    (context.pc, usize::try_from(context.sp).unwrap())
}
