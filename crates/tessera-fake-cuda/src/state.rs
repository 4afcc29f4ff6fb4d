//! What the driver knows in this process.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, OnceLock};

use tessera_fake_core::{Machine, Pool, Process, mig, parse_uuid};

use crate::abi::{
    INVALID_CONTEXT, INVALID_DEVICE, LAUNCH_FAILED, NO_DEVICE, NOT_INITIALIZED, OPERATING_SYSTEM, OUT_OF_MEMORY, R, Res,
};
use crate::arena::{self, Arena};
use crate::code::{Function, Library, Module};
use crate::event::Event;
use crate::graph::Graph;
use crate::graph_exec::Exec;
use crate::pool::MemPool;
use crate::stream::Stream;
use crate::vmm::{Handle, Mapping};

/// One device as CUDA counts: a card, or a partition of one.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    pub(crate) card: usize,
    pub(crate) pool: Pool,
    pub(crate) uuid: [u8; 16],
    pub(crate) name: String,
    /// SMs that this process may use of it.
    pub(crate) sms: u32,
    /// SMs that it has.
    pub(crate) sms_total: u32,
    pub(crate) is_partition: bool,
}

/// What an allocation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Device memory.
    Plain,
    /// Managed memory.
    Managed,
    /// From a pool (its handle).
    Pool(u64),
    /// Of a graph's allocation node.
    Graph,
    /// A module's variable.
    Global(u64),
    /// Of an array: no address that a client sees.
    Array,
    /// Another process's memory; not counted here.
    Foreign,
    /// Another interface's memory; not counted here.
    External,
    /// Page-locked host memory made by the driver.
    Host(u32),
    /// Host memory of the client's that was registered.
    Registered(u32),
}

/// One allocation.
#[derive(Clone, Debug)]
pub(crate) struct Alloc {
    pub(crate) size: u64,
    pub(crate) device: usize,
    pub(crate) context: u64,
    pub(crate) kind: Kind,
    pub(crate) id: u64,
}

/// One context.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub(crate) device: usize,
    pub(crate) flags: u32,
    pub(crate) primary: bool,
    /// False after a reset, until it is used again; then its own memory is not taken.
    pub(crate) active: bool,
    pub(crate) id: u64,
    pub(crate) peers: Vec<u64>,
    pub(crate) limits: BTreeMap<u32, u64>,
    pub(crate) cache_config: i32,
    pub(crate) shared_config: i32,
    pub(crate) api_version: u32,
}

/// The primary context of a device.
#[derive(Clone, Debug, Default)]
pub(crate) struct Primary {
    pub(crate) context: Option<u64>,
    pub(crate) count: u32,
    pub(crate) flags: u32,
}

/// Small allocations of one device share chunks.
#[derive(Clone, Copy, Debug, Default)]
struct Heap {
    small: u64,
    charged: u64,
}

/// Everything that changes, under one lock of this process.
#[derive(Debug)]
pub(crate) struct Inner {
    next: u64,
    pub(crate) contexts: HashMap<u64, Context>,
    pub(crate) primaries: Vec<Primary>,
    heaps: Vec<Heap>,
    pub(crate) arena: Option<Arena>,
    pub(crate) allocs: BTreeMap<u64, Alloc>,
    pub(crate) reserved: BTreeMap<u64, u64>,
    pub(crate) handles: HashMap<u64, Handle>,
    pub(crate) mappings: BTreeMap<u64, Mapping>,
    pub(crate) pools: HashMap<u64, MemPool>,
    pub(crate) default_pools: Vec<u64>,
    pub(crate) current_pools: Vec<u64>,
    pub(crate) graph_pools: Vec<crate::pool::GraphMemory>,
    pub(crate) streams: HashMap<u64, Stream>,
    /// Streams without a handle: of a context, or of a context and a thread.
    pub(crate) implicit: HashMap<(u64, Option<std::thread::ThreadId>), u64>,
    pub(crate) events: HashMap<u64, Event>,
    pub(crate) modules: HashMap<u64, Module>,
    pub(crate) functions: HashMap<u64, Function>,
    pub(crate) libraries: HashMap<u64, Library>,
    pub(crate) arrays: HashMap<u64, crate::array::Array>,
    pub(crate) mipmaps: HashMap<u64, crate::array::Mipmap>,
    pub(crate) graphs: HashMap<u64, Graph>,
    pub(crate) nodes: HashMap<u64, u64>,
    pub(crate) execs: HashMap<u64, Exec>,
    /// Imported memory of other interfaces: descriptor and size.
    pub(crate) externals: HashMap<u64, (i32, u64)>,
    /// What green contexts are made from: the number of multiprocessors.
    pub(crate) resources: HashMap<u64, u32>,
}

/// The driver of this process after `cuInit`.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) machine: &'static Machine,
    pub(crate) process: Process,
    pub(crate) devices: Vec<Device>,
    inner: Mutex<Inner>,
}

static MACHINE: Mutex<Option<&'static Machine>> = Mutex::new(None);
static DRIVER: OnceLock<Driver> = OnceLock::new();
static FORKED: AtomicBool = AtomicBool::new(false);

thread_local! {
    static CURRENT: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// The machine, opened at the first call that needs it; nothing where there is none.
pub(crate) fn machine() -> Option<&'static Machine> {
    if let Some(driver) = DRIVER.get() {
        return Some(driver.machine);
    }
    let mut slot = MACHINE.lock().unwrap_or_else(|e| e.into_inner());
    if slot.is_none() {
        *slot = Machine::open().ok().map(|m| &*Box::leak(Box::new(m)));
    }
    *slot
}

/// The code that an injected fault gives this call.
pub(crate) fn struck(name: &str) -> Option<c_int> {
    if FORKED.load(SeqCst) {
        return None;
    }
    machine()?.struck(name)
}

/// Begins a call, which waits while the process is locked for a checkpoint. The calls that lock
/// and unlock are left out: a process may ask them of itself.
pub(crate) fn enter(name: &str) -> Option<tessera_fake_core::Call<'static>> {
    if FORKED.load(SeqCst) || name.starts_with("cuCheckpoint") {
        return None;
    }
    let driver = DRIVER.get()?;
    if driver.machine.is_virtual() {
        driver.process.tick();
    }
    Some(driver.process.enter())
}

extern "C" fn after_fork_in_child() {
    // A child of an initialised process has no driver, as with the real one. It also does not
    // own the record lock: that stays the parent's.
    if DRIVER.get().is_some() {
        FORKED.store(true, SeqCst);
    }
}

/// `cuInit`.
pub(crate) fn init() -> R {
    static STARTING: Mutex<bool> = Mutex::new(false);
    if FORKED.load(SeqCst) {
        return Err(NOT_INITIALIZED);
    }
    let mut handler = STARTING.lock().unwrap_or_else(|e| e.into_inner());
    if DRIVER.get().is_some() {
        return Ok(());
    }
    let machine = machine().ok_or(NO_DEVICE)?;
    let mut devices = devices(machine);
    if devices.is_empty() {
        return Err(NO_DEVICE);
    }
    let process = Process::attach(machine).map_err(|_| OPERATING_SYSTEM)?;
    if !*handler {
        // SAFETY: the handler only stores an atomic.
        unsafe { libc::pthread_atfork(None, None, Some(after_fork_in_child)) };
        *handler = true;
    }
    for device in &devices {
        process.choose_pool(device.pool);
    }
    if machine.has_mps() {
        crate::mps::limit(&mut devices, &process);
    }
    let mut inner = Inner::new(devices.len());
    for device in 0..devices.len() {
        let pool = inner.id();
        inner.pools.insert(pool, MemPool::new(device, true));
        inner.default_pools.push(pool);
        inner.current_pools.push(pool);
    }
    let driver = Driver {
        machine,
        process,
        devices,
        inner: Mutex::new(inner),
    };
    DRIVER.set(driver).map_err(|_| OPERATING_SYSTEM)
}

/// The initialised driver.
pub(crate) fn driver() -> Res<&'static Driver> {
    if FORKED.load(SeqCst) {
        return Err(NOT_INITIALIZED);
    }
    DRIVER.get().ok_or(NOT_INITIALIZED)
}

/// The devices of this process: the cards whose device file it may open, ordered and chosen by
/// `CUDA_DEVICE_ORDER` and `CUDA_VISIBLE_DEVICES`.
fn devices(machine: &'static Machine) -> Vec<Device> {
    let mut cards = machine.visible_cards();
    if std::env::var("CUDA_DEVICE_ORDER").as_deref() != Ok("PCI_BUS_ID") {
        // Fastest first, as the driver does without the variable; equal cards keep bus order.
        let speed = |c: &usize| {
            let d = machine.card(*c);
            u64::from(d.sms) * u64::from(d.clock_sm_mhz)
        };
        cards.sort_by_key(|c| std::cmp::Reverse(speed(c)));
    }
    let whole = |card: usize| {
        let d = machine.card(card);
        Device {
            card,
            pool: Pool::whole(card),
            uuid: d.uuid,
            name: d.name().to_owned(),
            sms: d.sms,
            sms_total: d.sms,
            is_partition: false,
        }
    };
    let parts = |card: usize| -> Vec<Device> {
        mig::devices(machine, card)
            .into_iter()
            .map(|(instance, compute)| {
                let slices = mig::slices_of(compute.number).unwrap_or(1);
                let sms = (instance.profile.sms * slices / instance.profile.slices.max(1)).max(1);
                Device {
                    card,
                    pool: Pool {
                        card,
                        instance: Some(instance.position),
                    },
                    uuid: mig::device_uuid(machine, card, instance.id, compute.id),
                    name: format!("{} MIG {}", machine.card(card).name(), instance.profile.name()),
                    sms,
                    sms_total: sms,
                    is_partition: true,
                }
            })
            .collect()
    };
    let Ok(wanted) = std::env::var("CUDA_VISIBLE_DEVICES") else {
        // A program sees all whole cards, or the first partition when there is no whole card.
        let free: Vec<_> = cards
            .iter()
            .filter(|c| !mig::is_on(machine, **c))
            .map(|c| whole(*c))
            .collect();
        if !free.is_empty() {
            return free;
        }
        return cards.iter().flat_map(|c| parts(*c)).take(1).collect();
    };
    let mut out: Vec<Device> = Vec::new();
    for word in wanted.split(',') {
        let word = word.trim();
        let found = if let Some(text) = word.strip_prefix("MIG-") {
            let id = parse_uuid(text);
            cards.iter().flat_map(|c| parts(*c)).find(|d| Some(d.uuid) == id)
        } else if word.starts_with("GPU-") {
            // A unique beginning is enough.
            let mut fit = cards
                .iter()
                .filter(|c| tessera_fake_core::format_uuid("GPU-", &machine.card(**c).uuid).starts_with(word));
            match (fit.next(), fit.next()) {
                (Some(card), None) => Some(*card),
                _ => None,
            }
            .map(&whole)
        } else {
            word.parse::<usize>().ok().and_then(|i| cards.get(i)).map(|c| whole(*c))
        };
        // The list ends at the first word that names no device.
        let Some(device) = found else { break };
        if !device.is_partition && mig::is_on(machine, device.card) {
            match parts(device.card).into_iter().next() {
                Some(part) => out.push(part),
                None => break,
            }
            continue;
        }
        if out.iter().any(|d| d.uuid == device.uuid) {
            return Vec::new();
        }
        out.push(device);
    }
    // One program runs on one partition at most.
    if let Some(part) = out.iter().find(|d| d.is_partition) {
        return vec![part.clone()];
    }
    out
}

impl Driver {
    /// The process's state.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// A device by number.
    pub(crate) fn device(&self, device: c_int) -> Res<&Device> {
        usize::try_from(device)
            .ok()
            .and_then(|d| self.devices.get(d))
            .ok_or(INVALID_DEVICE)
    }

    /// Index of a device by number.
    pub(crate) fn index(&self, device: c_int) -> Res<usize> {
        self.device(device)?;
        usize::try_from(device).map_err(|_| INVALID_DEVICE)
    }

    /// Fails when the device's card has left the bus.
    pub(crate) fn present(&self, device: usize) -> R {
        if self.machine.card_state(self.devices[device].card).lost.load(SeqCst) == 1 {
            return Err(LAUNCH_FAILED);
        }
        Ok(())
    }

    /// Takes device memory outside of any heap.
    pub(crate) fn charge(&self, device: usize, bytes: u64) -> R {
        self.process
            .charge(self.devices[device].pool, bytes)
            .map_err(|_| OUT_OF_MEMORY)
    }

    /// Gives device memory back.
    pub(crate) fn discharge(&self, device: usize, bytes: u64) {
        self.process.discharge(self.devices[device].pool, bytes);
    }

    /// Takes device memory for one allocation: large ones in whole chunks, small ones from
    /// chunks that they share.
    pub(crate) fn charge_alloc(&self, inner: &mut Inner, device: usize, size: u64) -> R {
        let granule = self.machine.granule_bytes();
        if size >= granule {
            let size = size.checked_next_multiple_of(granule).ok_or(OUT_OF_MEMORY)?;
            return self.grow(inner, device, size);
        }
        let heap = inner.heaps[device];
        let small = heap.small + size.max(1).next_multiple_of(512);
        let need = small.next_multiple_of(granule);
        if need > heap.charged {
            self.grow(inner, device, need - heap.charged)?;
            inner.heaps[device].charged = need;
        }
        inner.heaps[device].small = small;
        Ok(())
    }

    /// Undoes [`Driver::charge_alloc`].
    pub(crate) fn discharge_alloc(&self, inner: &mut Inner, device: usize, size: u64) {
        let granule = self.machine.granule_bytes();
        if size >= granule {
            self.discharge(device, size.next_multiple_of(granule));
            return;
        }
        let heap = &mut inner.heaps[device];
        heap.small = heap.small.saturating_sub(size.max(1).next_multiple_of(512));
        let need = heap.small.next_multiple_of(granule);
        if need < heap.charged {
            self.discharge(device, heap.charged - need);
            heap.charged = need;
        }
    }

    /// Tells the machine how many contexts this process has on a device's card.
    fn note_contexts(&self, inner: &Inner, device: usize) {
        let card = self.devices[device].card;
        let count = inner
            .contexts
            .values()
            .filter(|c| c.active && self.devices[c.device].card == card)
            .count() as u32;
        let bytes = u64::from(count) * self.machine.card(card).context_bytes;
        self.process.note_contexts(card, count, bytes);
    }

    /// Makes a context and takes its memory.
    pub(crate) fn create_context(
        &self,
        inner: &mut Inner,
        device: usize,
        flags: u32,
        primary: bool,
        api_version: u32,
    ) -> Res<u64> {
        self.present(device)?;
        let card = self.devices[device].card;
        self.grow(inner, device, self.machine.card(card).context_bytes)?;
        let handle = inner.id();
        inner.contexts.insert(
            handle,
            Context {
                device,
                flags,
                primary,
                active: true,
                id: handle,
                peers: Vec::new(),
                limits: BTreeMap::new(),
                cache_config: 0,
                shared_config: 0,
                api_version,
            },
        );
        self.note_contexts(inner, device);
        Ok(handle)
    }

    /// Frees all that belongs to a context, and its own memory.
    pub(crate) fn empty_context(&self, inner: &mut Inner, handle: u64) {
        let Some(context) = inner.contexts.get(&handle).cloned() else {
            return;
        };
        let modules: Vec<u64> = keys(&inner.modules, |m| m.context == handle);
        for module in modules {
            inner.modules.remove(&module);
            inner.functions.retain(|_, f| f.owner != module);
        }
        let arrays: Vec<u64> = keys(&inner.arrays, |a| a.context == handle);
        for array in arrays {
            inner.arrays.remove(&array);
        }
        inner.mipmaps.retain(|_, m| m.context != handle);
        let streams: Vec<u64> = keys(&inner.streams, |s| s.context == handle);
        for stream in streams {
            inner.streams.remove(&stream);
        }
        inner.implicit.retain(|(context, _), _| *context != handle);
        inner.events.retain(|_, e| e.context != handle);
        let mine: Vec<u64> = inner
            .allocs
            .iter()
            .filter(|(_, a)| a.context == handle)
            .map(|(at, _)| *at)
            .collect();
        for address in mine {
            self.release(inner, address);
        }
        if context.active {
            let card = self.devices[context.device].card;
            self.discharge(context.device, self.machine.card(card).context_bytes);
            if let Some(context) = inner.contexts.get_mut(&handle) {
                context.active = false;
            }
            self.note_contexts(inner, context.device);
        }
        if !inner.contexts.values().any(|c| c.active && c.device == context.device) {
            self.drop_pools(inner, context.device);
        }
    }

    /// The calling thread's context; one that was reset comes back to life.
    pub(crate) fn current(&self, inner: &mut Inner) -> Res<u64> {
        let handle = top().ok_or(INVALID_CONTEXT)?;
        self.wake(inner, handle)?;
        Ok(handle)
    }

    /// Makes sure that a context exists and has its memory.
    pub(crate) fn wake(&self, inner: &mut Inner, handle: u64) -> R {
        let context = inner.contexts.get(&handle).ok_or(INVALID_CONTEXT)?;
        let (device, active) = (context.device, context.active);
        if !active {
            let card = self.devices[device].card;
            self.grow(inner, device, self.machine.card(card).context_bytes)?;
            if let Some(context) = inner.contexts.get_mut(&handle) {
                context.active = true;
            }
            self.note_contexts(inner, device);
        }
        self.present(device)
    }

    /// The calling thread's context and its device.
    pub(crate) fn current_device(&self, inner: &mut Inner) -> Res<(u64, usize)> {
        let handle = self.current(inner)?;
        Ok((handle, inner.contexts[&handle].device))
    }

    /// Host pages for device memory.
    pub(crate) fn arena<'a>(&self, inner: &'a mut Inner) -> Res<&'a mut Arena> {
        if inner.arena.is_none() {
            let all: u64 = self
                .devices
                .iter()
                .map(|d| self.machine.card(d.card).memory_bytes)
                .sum();
            inner.arena = Arena::new(all * 2);
        }
        inner.arena.as_mut().ok_or(OPERATING_SYSTEM)
    }

    /// Gives an address range to an allocation that has been charged for (or need not be).
    pub(crate) fn place(&self, inner: &mut Inner, device: usize, context: u64, size: u64, kind: Kind) -> Res<u64> {
        let address = self.arena(inner)?.take(size).ok_or(OUT_OF_MEMORY)?;
        let id = inner.id();
        inner.allocs.insert(
            address,
            Alloc {
                size,
                device,
                context,
                kind,
                id,
            },
        );
        Ok(address)
    }

    /// Charges and places one allocation.
    pub(crate) fn allocate(&self, inner: &mut Inner, device: usize, context: u64, size: u64, kind: Kind) -> Res<u64> {
        self.charge_alloc(inner, device, size)?;
        self.place(inner, device, context, size, kind)
            .inspect_err(|_| self.discharge_alloc(inner, device, size))
    }

    /// Removes an allocation, gives its memory back and returns what it was.
    pub(crate) fn release(&self, inner: &mut Inner, address: u64) -> Option<Alloc> {
        let alloc = inner.allocs.remove(&address)?;
        match alloc.kind {
            Kind::Plain | Kind::Managed | Kind::Global(_) | Kind::Array => {
                self.discharge_alloc(inner, alloc.device, alloc.size);
            }
            Kind::Pool(pool) => self.pool_release(inner, pool, alloc.size),
            Kind::Graph => {
                // The address stays with the graph, which may be launched again.
                self.graph_release(inner, alloc.device, alloc.size);
                return Some(alloc);
            }
            Kind::Foreign | Kind::External => {
                let skip = address % 4096;
                arena::unreserve(address - skip, (alloc.size + skip).next_multiple_of(4096));
                return Some(alloc);
            }
            Kind::Registered(_) => return Some(alloc),
            Kind::Host(_) => {}
        }
        if let Some(arena) = inner.arena.as_mut()
            && arena.contains(address)
        {
            arena.give(address, alloc.size);
        }
        Some(alloc)
    }
}

fn keys<V>(map: &HashMap<u64, V>, wanted: impl Fn(&V) -> bool) -> Vec<u64> {
    map.iter().filter(|(_, v)| wanted(v)).map(|(k, _)| *k).collect()
}

impl Inner {
    fn new(devices: usize) -> Self {
        Self {
            next: 0,
            contexts: HashMap::new(),
            primaries: vec![Primary::default(); devices],
            heaps: vec![Heap::default(); devices],
            arena: None,
            allocs: BTreeMap::new(),
            reserved: BTreeMap::new(),
            handles: HashMap::new(),
            mappings: BTreeMap::new(),
            pools: HashMap::new(),
            default_pools: Vec::new(),
            current_pools: Vec::new(),
            graph_pools: vec![crate::pool::GraphMemory::default(); devices],
            streams: HashMap::new(),
            implicit: HashMap::new(),
            events: HashMap::new(),
            modules: HashMap::new(),
            functions: HashMap::new(),
            libraries: HashMap::new(),
            arrays: HashMap::new(),
            mipmaps: HashMap::new(),
            graphs: HashMap::new(),
            nodes: HashMap::new(),
            execs: HashMap::new(),
            externals: HashMap::new(),
            resources: HashMap::new(),
        }
    }

    /// A fresh handle: looks like an aligned address, is none.
    pub(crate) fn id(&mut self) -> u64 {
        self.next += 1;
        0x5_5500_0000_0000 + self.next * 64
    }

    /// The allocation that an address lies in.
    pub(crate) fn find(&self, address: u64) -> Option<(u64, &Alloc)> {
        let (at, alloc) = self.allocs.range(..=address).next_back()?;
        (address < at + alloc.size.max(1)).then_some((*at, alloc))
    }
}

/// The calling thread's context.
pub(crate) fn top() -> Option<u64> {
    CURRENT.with(|c| c.borrow().last().copied())
}

/// Makes a context current on the calling thread, above the one before.
pub(crate) fn push(context: u64) {
    CURRENT.with(|c| c.borrow_mut().push(context));
}

/// Takes the current context of the calling thread away.
pub(crate) fn pop() -> Option<u64> {
    CURRENT.with(|c| c.borrow_mut().pop())
}

/// Replaces the current context of the calling thread.
pub(crate) fn replace(context: u64) {
    CURRENT.with(|c| {
        let mut stack = c.borrow_mut();
        stack.pop();
        if context != 0 {
            stack.push(context);
        }
    });
}
