//! Eight processes of one container that allocate and free at random, by every kind of allocation, and are killed now
//! and then.
//!
//! Three promises are held at every moment: the container never holds more than its limit, no request is refused that
//! would have fitted, and all views of the memory agree. Ten seconds; `cargo xtask stress memory` runs it for as long
//! as it is told, with `TESSERA_STRESS_SECONDS`, `TESSERA_STRESS_PROCESSES` and, to repeat a run, `TESSERA_STRESS_SEED`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
#![allow(clippy::print_stdout, reason = "tests say what they did")]
#![allow(unsafe_code, reason = "maps the account as the agent does")]

mod shim_support;

use std::{
    collections::BTreeMap,
    os::fd::AsRawFd as _,
    ptr,
    sync::{
        Mutex, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use shim_support::{Client, Container, GIB, MIB, Machine, can_mount};
use tessera_fake_core as sim;
use tessera_region::{ACCOUNT_SIZE, Account};

const LIMIT: u64 = 2 * GIB;
/// The driver takes large requests in units of this size, and so does the account.
const UNIT: u64 = 2 * MIB;

/// A small generator; the run is decided by its seed alone, but for who comes first.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// What may be held, seen from outside: everything that was given and not yet surely taken back, and every request that
/// is under way. No request may be refused if this, with the request, stayed within the limit all the time.
struct Ceiling {
    bytes: u64,
    /// For each process the highest figure since its request began.
    highest: Vec<u64>,
}

impl Ceiling {
    fn raise(&mut self, bytes: u64) {
        self.bytes += bytes;
        for highest in &mut self.highest {
            *highest = (*highest).max(self.bytes);
        }
    }
}

/// One thing that a process holds.
struct Held {
    /// Calls that give it back, in order.
    free: Vec<String>,
    bytes: u64,
}

/// A request: the call that takes memory, what follows when it was given, how it is given back, and what it takes.
struct Request {
    call: String,
    then: Vec<String>,
    free: Vec<String>,
    bytes: u64,
    /// What may be reserved for it while it is under way.
    most: u64,
}

/// The kinds of allocation.
const KINDS: [&str; 8] = [
    "plain", "managed", "pitch", "array", "pool", "own pool", "handle", "mapped",
];

/// One process and what it holds.
struct Worker {
    client: Client,
    held: Vec<Held>,
    names: u64,
}

impl Worker {
    fn start(container: &Container<'_>) -> Self {
        let mut client = container.ready();
        client.expect("nvmlInit_v2", "0");
        // Memory on the first card, by handle and in a pool of the process's own.
        for name in ["prop", "poolprop"] {
            client.expect(&format!("@new {name} 88"), "ok");
            client.expect(&format!("@set {name} 0 4 1"), "ok");
            client.expect(&format!("@set {name} 8 4 1"), "ok");
        }
        client.expect("cuMemPoolCreate &pool *poolprop", "0");
        client.expect("cuDeviceGetDefaultMemPool &default 0", "0");
        client.expect("@new flat 24", "ok");
        // One card may read and write: kind and number of the place, and what it may.
        client.expect("@new access 12", "ok");
        client.expect("@set access 0 4 1", "ok");
        client.expect("@set access 8 4 3", "ok");
        Self {
            client,
            held: Vec::new(),
            names: 0,
        }
    }

    /// Sizes that driver and account count alike: whole units, or less than one, for which the driver takes pages.
    fn request(&mut self, random: &mut Random) -> Request {
        self.names += 1;
        // Variables are used again, or the client would grow without end.
        let name = format!("v{}", self.names % 4096);
        let kind = KINDS[usize::try_from(random.below(KINDS.len() as u64)).unwrap()];
        let size = match random.below(10) {
            0..=2 => (1 + random.below(UNIT / 4096 - 1)) * 4096,
            3..=8 => (1 + random.below(32)) * UNIT,
            _ => (1 + random.below(350)) * UNIT,
        };
        let whole = size.next_multiple_of(UNIT);
        let plain = |call: String| Request {
            call,
            then: vec![],
            free: vec![format!("cuMemFree_v2 ${name}")],
            bytes: size,
            most: size,
        };
        let pooled = |pool: &str| Request {
            free: vec![
                format!("cuMemFreeAsync ${name} null"),
                "cuStreamSynchronize null".to_owned(),
                format!("cuMemPoolTrimTo ${pool} 0"),
            ],
            // What the pool has left over may make its growth no whole unit.
            most: size + UNIT,
            ..plain(match pool {
                "default" => format!("cuMemAllocAsync &{name} {size} null"),
                _ => format!("cuMemAllocFromPoolAsync &{name} {size} ${pool} null"),
            })
        };
        match kind {
            "managed" => plain(format!("cuMemAllocManaged &{name} {size} 1")),
            "pitch" => plain(format!("cuMemAllocPitch_v2 &{name} &pitch 4096 {} 4", size / 4096)),
            "array" => {
                // Four bytes a texel, a page a row; the driver's unit for arrays is 64 KiB.
                let bytes = size.next_multiple_of(64 << 10);
                for (at, size, value) in [(0, 8, 1024), (8, 8, bytes / 4096), (16, 4, 32), (20, 4, 1)] {
                    self.client.expect(&format!("@set flat {at} {size} {value}"), "ok");
                }
                Request {
                    free: vec![format!("cuArrayDestroy ${name}")],
                    bytes,
                    most: bytes,
                    ..plain(format!("cuArrayCreate_v2 &{name} *flat"))
                }
            }
            "pool" => pooled("default"),
            "own pool" => pooled("pool"),
            "handle" => Request {
                free: vec![format!("cuMemRelease ${name}")],
                bytes: whole,
                most: whole,
                ..plain(format!("cuMemCreate &{name} {whole} *prop 0"))
            },
            "mapped" => Request {
                // The handle goes at once; the mapping keeps the memory.
                then: vec![
                    format!("cuMemAddressReserve &a{name} {whole} null null null"),
                    format!("cuMemMap $a{name} {whole} 0 ${name} 0"),
                    format!("cuMemSetAccess $a{name} {whole} *access 1"),
                    format!("cuMemRelease ${name}"),
                ],
                free: vec![
                    format!("cuMemUnmap $a{name} {whole}"),
                    format!("cuMemAddressFree $a{name} {whole}"),
                ],
                bytes: whole,
                most: whole,
                ..plain(format!("cuMemCreate &{name} {whole} *prop 0"))
            },
            _ => plain(format!("cuMemAlloc_v2 &{name} {size}")),
        }
    }

    fn give_back(&mut self, held: &Held) {
        for call in &held.free {
            self.client.expect(call, "0");
        }
    }
}

struct Stress<'a> {
    container: &'a Container<'a>,
    driver: sim::Machine,
    account: &'static Account,
    workers: Vec<Mutex<Worker>>,
    ceiling: Mutex<Ceiling>,
    /// Read by who works, written by who looks at all of them.
    quiet: RwLock<()>,
    stop: AtomicBool,
    given: AtomicU64,
    refused: AtomicU64,
    killed: AtomicU64,
    compared: AtomicU64,
    sampled: AtomicU64,
    highest: AtomicU64,
}

/// Ends the others, also when its own thread fails.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Stress<'_> {
    fn work(&self, index: usize, mut random: Random) {
        let _ending = Ending(&self.stop);
        while !self.stop.load(Ordering::Relaxed) {
            let _quiet = self.quiet.read().unwrap();
            let mut worker = self.workers[index].lock().unwrap();
            if worker.held.is_empty() || random.below(100) < 53 {
                self.take(index, &mut worker, &mut random);
            } else {
                let place = random.below(worker.held.len() as u64);
                let held = worker.held.swap_remove(usize::try_from(place).unwrap());
                worker.give_back(&held);
                self.ceiling.lock().unwrap().bytes -= held.bytes;
            }
        }
    }

    fn take(&self, index: usize, worker: &mut Worker, random: &mut Random) {
        let request = worker.request(random);
        {
            let mut ceiling = self.ceiling.lock().unwrap();
            // From here on the highest is this request's.
            ceiling.highest[index] = 0;
            ceiling.raise(request.most);
        }
        let answer = worker.client.ask(&request.call);
        let highest = {
            let mut ceiling = self.ceiling.lock().unwrap();
            let given = answer.starts_with("0 ");
            ceiling.bytes -= if given {
                request.most - request.bytes
            } else {
                request.most
            };
            ceiling.highest[index] - request.most + request.bytes
        };
        if answer.starts_with("0 ") {
            for call in &request.then {
                worker.client.expect(call, "0");
            }
            self.given.fetch_add(1, Ordering::Relaxed);
            worker.held.push(Held {
                free: request.free,
                bytes: request.bytes,
            });
            return;
        }
        assert!(answer == "2" || answer.starts_with("2 "), "{}: {answer}", request.call);
        self.refused.fetch_add(1, Ordering::Relaxed);
        assert!(
            highest > LIMIT,
            "{} was refused though at most {highest} of {LIMIT} bytes were in use with it",
            request.call,
        );
    }

    /// What the driver says that the processes of the container hold.
    fn driver_says(&self) -> u64 {
        self.driver.used_bytes(sim::Pool::whole(0))
    }

    /// The limit, all the time, by the account and by the driver.
    fn watch(&self) {
        let _ending = Ending(&self.stop);
        while !self.stop.load(Ordering::Relaxed) {
            let (account, driver) = (self.account.used(0), self.driver_says());
            assert!(account <= LIMIT, "{account} bytes in the account, the limit is {LIMIT}");
            // A size below a unit is counted to the byte and taken in pages.
            assert!(
                driver <= LIMIT + UNIT,
                "{driver} bytes on the card, the limit is {LIMIT}"
            );
            self.highest.fetch_max(account.max(driver), Ordering::Relaxed);
            self.sampled.fetch_add(1, Ordering::Relaxed);
            std::thread::park_timeout(Duration::from_micros(200));
        }
    }

    /// All views, while nobody works. Before that one process dies with what it holds, and another one begins.
    fn compare(&self, random: &mut Random) {
        let _quiet = self.quiet.write().unwrap();
        if random.below(3) == 0 {
            let place = random.below(self.workers.len() as u64);
            let mut worker = self.workers[usize::try_from(place).unwrap()].lock().unwrap();
            worker.client.kill();
            self.driver.reap(0);
            let held: u64 = worker.held.iter().map(|held| held.bytes).sum();
            self.ceiling.lock().unwrap().bytes -= held;
            self.killed.fetch_add(1, Ordering::Relaxed);
            *worker = Worker::start(self.container);
        }
        let expected = self.ceiling.lock().unwrap().bytes;
        self.views_are(expected);
    }

    fn views_are(&self, expected: u64) {
        let mut views = BTreeMap::new();
        for (index, worker) in self.workers.iter().enumerate() {
            let mut worker = worker.lock().unwrap();
            let (free, total) = worker.client.memory();
            assert_eq!(total, LIMIT);
            views.insert(format!("cuMemGetInfo of {index}"), total - free);
            let [total, free, used] = worker.client.nvml_memory();
            assert_eq!((total, free + used), (LIMIT, LIMIT));
            views.insert(format!("NVML of {index}"), used);
        }
        views.insert("account".to_owned(), self.account.used(0));
        views.insert("driver".to_owned(), self.driver_says());
        views.insert("what was given and not taken back".to_owned(), expected);
        let (least, most) = (*views.values().min().unwrap(), *views.values().max().unwrap());
        assert!(most - least <= UNIT, "{views:?}");
        self.compared.fetch_add(1, Ordering::Relaxed);
    }
}

/// The account of a container, as the agent maps it.
fn map_account(container: &Container<'_>) -> &'static Account {
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(container.dir().account_file())
        .unwrap();
    // SAFETY: a new mapping of an open file of that size, never given back.
    unsafe {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let page = libc::mmap(
            ptr::null_mut(),
            ACCOUNT_SIZE,
            protection,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        );
        assert_ne!(page, libc::MAP_FAILED);
        Account::from_ptr(page.cast()).unwrap()
    }
}

#[test]
fn processes_at_random_never_pass_the_limit_and_are_never_refused_what_fits() {
    if !can_mount() {
        return;
    }
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seconds = number("TESSERA_STRESS_SECONDS").unwrap_or(10);
    let seed = number("TESSERA_STRESS_SEED").unwrap_or(0x5eed);
    let processes = usize::try_from(number("TESSERA_STRESS_PROCESSES").unwrap_or(8)).unwrap();
    // The smallest unit and contexts that take nothing, so that the driver's figure is that of the requests.
    let machine = Machine::described("granule_kib: 4\n", 1, 16384, 0);
    let container = machine.container(&[LIMIT]);
    let stress = Stress {
        driver: sim::Machine::at(&machine.driver()).unwrap(),
        account: map_account(&container),
        workers: (0..processes).map(|_| Mutex::new(Worker::start(&container))).collect(),
        container: &container,
        ceiling: Mutex::new(Ceiling {
            bytes: 0,
            highest: vec![0; processes],
        }),
        quiet: RwLock::default(),
        stop: AtomicBool::new(false),
        given: AtomicU64::new(0),
        refused: AtomicU64::new(0),
        killed: AtomicU64::new(0),
        compared: AtomicU64::new(0),
        sampled: AtomicU64::new(0),
        highest: AtomicU64::new(0),
    };
    let mut choices = Random(seed | 1);
    let end = Instant::now() + Duration::from_secs(seconds);
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        std::thread::scope(|scope| {
            for index in 0..processes {
                let random = Random(seed ^ (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
                let stress = &stress;
                scope.spawn(move || stress.work(index, random));
            }
            scope.spawn(|| stress.watch());
            let _ending = Ending(&stress.stop);
            while Instant::now() < end && !stress.stop.load(Ordering::Relaxed) {
                std::thread::park_timeout(Duration::from_millis(200));
                stress.compare(&mut choices);
            }
        });
    }));
    let count = |word: &AtomicU64| word.load(Ordering::Relaxed);
    println!(
        "seed {seed}, {seconds} s, {processes} processes: {} requests given, {} refused, {} processes killed; {} samples \
         of account and driver, highest {} of {LIMIT} bytes; {} comparisons of {} views",
        count(&stress.given),
        count(&stress.refused),
        count(&stress.killed),
        count(&stress.sampled),
        count(&stress.highest),
        count(&stress.compared),
        2 * processes + 3,
    );
    assert!(outcome.is_ok(), "a promise was broken, see above; seed {seed}");
    assert!(count(&stress.given) > 0 && count(&stress.refused) > 0 && count(&stress.compared) > 0);
    // All of it can be given back, and then nothing is left anywhere.
    for worker in &stress.workers {
        let mut worker = worker.lock().unwrap();
        for held in std::mem::take(&mut worker.held) {
            worker.give_back(&held);
        }
    }
    stress.views_are(0);
    assert!(stress.driver.flaws().is_empty(), "{:?}", stress.driver.flaws());
}
