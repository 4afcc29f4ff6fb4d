//! Streams: order and time.
//!
//! A stream is the time at which its last work ends. The legacy default stream waits for all
//! blocking streams of its context and they wait for it. Host functions run on a thread of their
//! own in stream order; a synchronisation waits for them too.

use std::collections::VecDeque;
use std::ffi::{c_int, c_uint, c_void};
use std::sync::{Arc, Condvar, Mutex};

use crate::abi::{
    CAPTURE_ISOLATION, CAPTURE_UNSUPPORTED, INVALID_CONTEXT, INVALID_HANDLE, INVALID_VALUE, NOT_READY, NOT_SUPPORTED,
    R, Res, get, put, put_wanted,
};
use crate::capture::{self, Capture};
use crate::graph::NodeKind;
use crate::state::{self, Driver, Inner};
use crate::timing;

/// One host function and the machine's time from which it may run.
type Job = (u64, Box<dyn FnOnce() + Send>);

#[derive(Default)]
struct Jobs {
    waiting: VecDeque<Job>,
    given: u64,
    done: u64,
    running: bool,
}

/// Host functions of a stream. A thread runs them in order; it ends when there are none.
#[derive(Default)]
pub(crate) struct HostQueue {
    jobs: Mutex<Jobs>,
    changed: Condvar,
}

impl std::fmt::Debug for HostQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostQueue").finish_non_exhaustive()
    }
}

impl HostQueue {
    fn jobs(&self) -> std::sync::MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn give(self: &Arc<Self>, driver: &'static Driver, job: Job) -> R {
        let mut jobs = self.jobs();
        if !jobs.running {
            let queue = Arc::clone(self);
            std::thread::Builder::new()
                .name("cuda-callback".into())
                .spawn(move || queue.work(driver))
                .map_err(|_| crate::abi::OPERATING_SYSTEM)?;
            jobs.running = true;
        }
        jobs.given += 1;
        jobs.waiting.push_back(job);
        Ok(())
    }

    fn work(&self, driver: &Driver) {
        loop {
            let mut jobs = self.jobs();
            let Some((start, call)) = jobs.waiting.pop_front() else {
                jobs.running = false;
                return;
            };
            drop(jobs);
            timing::until(driver, start);
            call();
            self.jobs().done += 1;
            self.changed.notify_all();
        }
    }

    fn given(&self) -> u64 {
        self.jobs().given
    }

    fn done(&self) -> u64 {
        self.jobs().done
    }

    fn wait(&self, until: u64) {
        let mut jobs = self.jobs();
        while jobs.done < until {
            jobs = self.changed.wait(jobs).unwrap_or_else(|e| e.into_inner());
        }
    }
}

/// One stream.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) context: u64,
    pub(crate) flags: u32,
    pub(crate) priority: c_int,
    /// End of the last work, in the machine's time.
    pub(crate) ready: u64,
    ends: VecDeque<u64>,
    pub(crate) capture: Option<Capture>,
    host: Arc<HostQueue>,
    legacy: bool,
    implicit: bool,
    id: u64,
}

impl Stream {
    fn new(context: u64, flags: u32, priority: c_int, id: u64) -> Self {
        Self {
            context,
            flags,
            priority,
            ready: 0,
            ends: VecDeque::new(),
            capture: None,
            host: Arc::default(),
            legacy: false,
            implicit: false,
            id,
        }
    }

    fn blocking(&self) -> bool {
        self.flags & 1 == 0
    }
}

/// A point that a thread can wait for without the lock.
#[derive(Clone, Debug)]
pub(crate) struct Point {
    pub(crate) time: u64,
    hosts: Vec<(Arc<HostQueue>, u64)>,
}

impl Point {
    /// Waits until the point is reached.
    pub(crate) fn wait(&self, driver: &Driver) {
        timing::until(driver, self.time);
        for (queue, ticket) in &self.hosts {
            queue.wait(*ticket);
        }
    }

    /// Whether the point is reached.
    pub(crate) fn reached(&self, driver: &Driver) -> bool {
        driver.machine.now_ns() >= self.time && self.hosts.iter().all(|(q, t)| q.done() >= *t)
    }
}

/// The stream of a handle: 0 and 1 are the legacy default stream (0 the thread's own in the
/// per-thread forms), 2 the thread's own.
pub(crate) fn resolve(driver: &Driver, inner: &mut Inner, handle: u64, pt: bool) -> Res<u64> {
    let thread = match handle {
        0 if pt => Some(std::thread::current().id()),
        0 | 1 => None,
        2 => Some(std::thread::current().id()),
        _ => {
            let stream = inner.streams.get(&handle).ok_or(INVALID_HANDLE)?;
            let context = stream.context;
            driver.wake(inner, context)?;
            return Ok(handle);
        }
    };
    let context = driver.current(inner)?;
    if let Some(stream) = inner.implicit.get(&(context, thread)) {
        return Ok(*stream);
    }
    let id = inner.id();
    let mut stream = Stream::new(context, 0, 0, id);
    stream.legacy = thread.is_none();
    stream.implicit = true;
    inner.streams.insert(id, stream);
    inner.implicit.insert((context, thread), id);
    Ok(id)
}

/// When new work of a stream can begin at the earliest.
pub(crate) fn earliest(inner: &Inner, handle: u64) -> u64 {
    let Some(stream) = inner.streams.get(&handle) else {
        return 0;
    };
    if !stream.blocking() {
        return stream.ready;
    }
    inner
        .streams
        .values()
        .filter(|s| s.context == stream.context && s.blocking() && (stream.legacy || s.legacy))
        .map(|s| s.ready)
        .fold(stream.ready, u64::max)
}

/// Notes that work of a stream ends then.
pub(crate) fn advance(inner: &mut Inner, handle: u64, end: u64) {
    if let Some(stream) = inner.streams.get_mut(&handle) {
        stream.ready = stream.ready.max(end);
    }
}

/// Puts one kernel into a stream. Returns the time until which the caller has to wait because
/// too many launches are in flight.
pub(crate) fn kernel(
    driver: &Driver,
    inner: &mut Inner,
    handle: u64,
    duration_ns: u64,
    sms: u32,
    blocks: u64,
) -> Res<Option<u64>> {
    let context = inner.streams.get(&handle).ok_or(INVALID_HANDLE)?.context;
    let Some(device) = inner.contexts.get(&context).map(|c| c.device) else {
        driver.machine.note_flaw(tessera_fake_core::Flaw::LaunchWithoutContext);
        return Err(INVALID_CONTEXT);
    };
    driver.present(device)?;
    let ready = earliest(inner, handle);
    let device = &driver.devices[device];
    let end = driver
        .process
        .run(device.card, ready, duration_ns, sms, device.sms_total, blocks);
    let now = driver.machine.now_ns();
    let most = driver.machine.in_flight_max() as usize;
    let stream = inner.streams.get_mut(&handle).ok_or(INVALID_HANDLE)?;
    stream.ready = stream.ready.max(end);
    while stream.ends.front().is_some_and(|e| *e <= now) {
        stream.ends.pop_front();
    }
    stream.ends.push_back(end);
    let excess = stream.ends.len().saturating_sub(most);
    Ok((excess > 0).then(|| stream.ends[excess - 1]))
}

/// Gives a stream a host function.
pub(crate) fn host(driver: &'static Driver, inner: &mut Inner, handle: u64, call: impl FnOnce() + Send + 'static) -> R {
    let start = earliest(inner, handle);
    let stream = inner.streams.get_mut(&handle).ok_or(INVALID_HANDLE)?;
    let queue = Arc::clone(&stream.host);
    queue.give(driver, (start, Box::new(call)))
}

fn point(inner: &Inner, streams: &[u64]) -> Point {
    let mut time = 0;
    let mut hosts = Vec::new();
    for handle in streams {
        if let Some(stream) = inner.streams.get(handle) {
            time = time.max(earliest(inner, *handle));
            let given = stream.host.given();
            if stream.host.done() < given {
                hosts.push((Arc::clone(&stream.host), given));
            }
        }
    }
    Point { time, hosts }
}

/// What is in the stream now, as a point.
pub(crate) fn mark(inner: &Inner, handle: u64) -> Point {
    point(inner, &[handle])
}

/// What is in all streams of a context now, as a point.
pub(crate) fn mark_context(inner: &Inner, context: u64) -> Point {
    let all: Vec<u64> = inner
        .streams
        .iter()
        .filter(|(_, s)| s.context == context)
        .map(|(h, _)| *h)
        .collect();
    point(inner, &all)
}

/// Waits for all streams of a context.
pub(crate) fn synchronize_context(context: Option<u64>) -> R {
    let driver = state::driver()?;
    let here = {
        let inner = &mut *driver.lock();
        let context = match context {
            Some(context) => {
                driver.wake(inner, context)?;
                context
            }
            None => driver.current(inner)?,
        };
        let all: Vec<u64> = inner
            .streams
            .iter()
            .filter(|(_, s)| s.context == context)
            .map(|(h, _)| *h)
            .collect();
        if all
            .iter()
            .any(|h| inner.streams[h].capture.is_some() && inner.streams[h].blocking())
        {
            return Err(CAPTURE_UNSUPPORTED);
        }
        point(inner, &all)
    };
    here.wait(driver);
    driver.settle_pools(&mut driver.lock());
    Ok(())
}

fn synchronize(handle: u64, pt: bool) -> R {
    let driver = state::driver()?;
    let here = {
        let inner = &mut *driver.lock();
        let stream = resolve(driver, inner, handle, pt)?;
        if capture::active(inner, stream)? {
            capture::spoil(inner, stream);
            return Err(CAPTURE_UNSUPPORTED);
        }
        mark(inner, stream)
    };
    here.wait(driver);
    driver.settle_pools(&mut driver.lock());
    Ok(())
}

unsafe fn create(out: *mut u64, flags: c_uint, priority: c_int) -> R {
    let driver = state::driver()?;
    if out.is_null() || flags & !1 != 0 {
        return Err(INVALID_VALUE);
    }
    let inner = &mut *driver.lock();
    let context = driver.current(inner)?;
    let handle = inner.id();
    inner
        .streams
        .insert(handle, Stream::new(context, flags, priority.clamp(-5, 0), handle));
    // SAFETY: the caller of the entry point vouches for `out`.
    unsafe { put(out, handle) }
}

fn destroy(handle: u64) -> R {
    let driver = state::driver()?;
    let inner = &mut *driver.lock();
    if inner.streams.get(&handle).ok_or(INVALID_HANDLE)?.implicit {
        return Err(INVALID_HANDLE);
    }
    // What it was given still runs: the worker holds the queue.
    inner.streams.remove(&handle);
    Ok(())
}

fn look<T>(handle: u64, pt: bool, see: impl FnOnce(&Stream, &Inner) -> T) -> Res<T> {
    let driver = state::driver()?;
    let inner = &mut *driver.lock();
    let stream = resolve(driver, inner, handle, pt)?;
    Ok(see(&inner.streams[&stream], inner))
}

unsafe fn write(handle: u64, pt: bool, address: u64, value: u64, wide: bool) -> R {
    let driver = state::driver()?;
    let inner = &mut *driver.lock();
    let stream = resolve(driver, inner, handle, pt)?;
    if address == 0 || !address.is_multiple_of(if wide { 8 } else { 4 }) {
        return Err(INVALID_VALUE);
    }
    if capture::active(inner, stream)? {
        return capture::record(inner, stream, NodeKind::Write { address, value, wide }).map(|_| ());
    }
    crate::copy::check(inner, address, if wide { 8 } else { 4 })?;
    if earliest(inner, stream) <= driver.machine.now_ns() && mark(inner, stream).reached(driver) {
        store(address, value, wide);
        return Ok(());
    }
    // The word changes when the stream gets there, like any other work of it.
    host(driver, inner, stream, move || store(address, value, wide))
}

/// Writes a word that another processor may be polling.
pub(crate) fn store(address: u64, value: u64, wide: bool) {
    use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
    // SAFETY: the address is aligned and was checked against the allocations when the write was
    // asked for; the client keeps it until the stream has passed it.
    unsafe {
        if wide {
            (*(address as *const AtomicU64)).store(value, SeqCst);
        } else {
            (*(address as *const AtomicU32)).store(value as u32, SeqCst);
        }
    }
}

fn load(address: u64, wide: bool) -> u64 {
    use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
    // SAFETY: as in `store`.
    unsafe {
        if wide {
            (*(address as *const AtomicU64)).load(SeqCst)
        } else {
            u64::from((*(address as *const AtomicU32)).load(SeqCst))
        }
    }
}

unsafe fn wait_value(handle: u64, pt: bool, address: u64, value: u64, flags: c_uint, wide: bool) -> R {
    let driver = state::driver()?;
    let inner = &mut *driver.lock();
    let stream = resolve(driver, inner, handle, pt)?;
    if address == 0 || !address.is_multiple_of(if wide { 8 } else { 4 }) {
        return Err(INVALID_VALUE);
    }
    if capture::active(inner, stream)? {
        return Err(NOT_SUPPORTED);
    }
    crate::copy::check(inner, address, if wide { 8 } else { 4 })?;
    host(driver, inner, stream, move || {
        let met = |seen: u64| match flags & 3 {
            0 if wide => (seen.wrapping_sub(value) as i64) >= 0,
            0 => (seen as u32).wrapping_sub(value as u32) as i32 >= 0,
            1 => seen == value,
            2 => seen & value != 0,
            _ => !(seen | value) != 0,
        };
        while !met(load(address, wide)) {
            std::thread::sleep(std::time::Duration::from_micros(20));
        }
    })
}

unsafe fn batch(handle: u64, pt: bool, count: c_uint, operations: *const [u64; 6]) -> R {
    // SAFETY: the caller of the entry point gives `count` operations.
    unsafe {
        for operation in crate::abi::list(operations, count as usize)? {
            // Type, address, value, flags: the common beginning of the variants.
            let (kind, address, value, flags) = (operation[0] as u32, operation[1], operation[2], operation[3] as u32);
            match kind {
                1 => wait_value(handle, pt, address, value & 0xffff_ffff, flags, false)?,
                4 => wait_value(handle, pt, address, value, flags, true)?,
                2 => write(handle, pt, address, value & 0xffff_ffff, false)?,
                5 => write(handle, pt, address, value, true)?,
                3 | 6 => {}
                _ => return Err(INVALID_VALUE),
            }
        }
        Ok(())
    }
}

api! {
    fn cuStreamCreate(out: *mut u64, flags: c_uint) { create(out, flags, 0) }
    fn cuStreamCreateWithPriority(out: *mut u64, flags: c_uint, priority: c_int) { create(out, flags, priority) }
    fn cuStreamDestroy(handle: u64) { destroy(handle) }
    fn cuStreamDestroy_v2(handle: u64) { destroy(handle) }
    fn cuStreamSynchronize(handle: u64) also cuStreamSynchronize_ptsz { synchronize(handle, PT) }
    fn cuStreamQuery(handle: u64) also cuStreamQuery_ptsz {
        let driver = state::driver()?;
        let here = {
            let inner = &mut *driver.lock();
            let stream = resolve(driver, inner, handle, PT)?;
            if capture::active(inner, stream)? {
                capture::spoil(inner, stream);
                return Err(CAPTURE_UNSUPPORTED);
            }
            mark(inner, stream)
        };
        if here.reached(driver) {
            return Ok(());
        }
        driver.process.polled(here.time);
        Err(NOT_READY)
    }
    fn cuStreamGetFlags(handle: u64, out: *mut c_uint) also cuStreamGetFlags_ptsz {
        put(out, look(handle, PT, |s, _| s.flags)?)
    }
    fn cuStreamGetPriority(handle: u64, out: *mut c_int) also cuStreamGetPriority_ptsz {
        put(out, look(handle, PT, |s, _| s.priority)?)
    }
    fn cuStreamGetId(handle: u64, out: *mut u64) also cuStreamGetId_ptsz {
        put(out, look(handle, PT, |s, _| s.id)?)
    }
    fn cuStreamGetCtx(handle: u64, out: *mut u64) also cuStreamGetCtx_ptsz {
        put(out, look(handle, PT, |s, _| s.context)?)
    }
    fn cuStreamGetCtx_v2(handle: u64, out: *mut u64, green: *mut u64) also cuStreamGetCtx_v2_ptsz {
        put_wanted(green, 0);
        put(out, look(handle, PT, |s, _| s.context)?)
    }
    fn cuStreamGetDevice(handle: u64, out: *mut c_int) also cuStreamGetDevice_ptsz {
        put(out, look(handle, PT, |s, inner| inner.contexts[&s.context].device as c_int)?)
    }
    fn cuStreamGetAttribute(handle: u64, number: c_uint, out: *mut [u64; 8]) also cuStreamGetAttribute_ptsz {
        let _ = number;
        look(handle, PT, |_, _| ())?;
        put(out, [0; 8])
    }
    fn cuStreamSetAttribute(handle: u64, number: c_uint, value: *const [u64; 8]) also cuStreamSetAttribute_ptsz {
        let _ = number;
        let _ = get(value)?;
        look(handle, PT, |_, _| ())
    }
    fn cuStreamCopyAttributes(to: u64, from: u64) also cuStreamCopyAttributes_ptsz {
        look(to, PT, |_, _| ())?;
        look(from, PT, |_, _| ())
    }
    fn cuStreamWaitEvent(handle: u64, event: u64, flags: c_uint) also cuStreamWaitEvent_ptsz {
        let driver = state::driver()?;
        let inner = &mut *driver.lock();
        let stream = resolve(driver, inner, handle, PT)?;
        if flags & !1 != 0 {
            return Err(INVALID_VALUE);
        }
        let entry = inner.events.get(&event).ok_or(INVALID_HANDLE)?.clone();
        if let Some(captured) = entry.captured {
            return capture::join(inner, stream, &captured);
        }
        if capture::active(inner, stream)? {
            // Work outside the capture cannot be waited for inside it.
            if entry.point.is_some() && flags & 1 == 0 {
                return Err(CAPTURE_ISOLATION);
            }
            return capture::record(inner, stream, NodeKind::EventWait { event }).map(|_| ());
        }
        if let Some(point) = entry.point {
            advance(inner, stream, point.time);
        }
        Ok(())
    }
    fn cuStreamAddCallback(handle: u64, function: Option<unsafe extern "C" fn(u64, c_int, *mut c_void)>, data: usize, flags: c_uint) also cuStreamAddCallback_ptsz {
        let driver = state::driver()?;
        let function = function.ok_or(INVALID_VALUE)?;
        if flags != 0 {
            return Err(INVALID_VALUE);
        }
        let inner = &mut *driver.lock();
        let stream = resolve(driver, inner, handle, PT)?;
        if capture::active(inner, stream)? {
            return Err(CAPTURE_UNSUPPORTED);
        }
        host(driver, inner, stream, move || {
            // SAFETY: the client's own function with the client's own data.
            unsafe { function(handle, 0, data as *mut c_void) }
        })
    }
    fn cuLaunchHostFunc(handle: u64, function: Option<unsafe extern "C" fn(*mut c_void)>, data: usize) also cuLaunchHostFunc_ptsz {
        let driver = state::driver()?;
        let function = function.ok_or(INVALID_VALUE)?;
        let inner = &mut *driver.lock();
        let stream = resolve(driver, inner, handle, PT)?;
        if capture::active(inner, stream)? {
            return capture::record(inner, stream, NodeKind::Host { function, data }).map(|_| ());
        }
        host(driver, inner, stream, move || {
            // SAFETY: the client's own function with the client's own data.
            unsafe { function(data as *mut c_void) }
        })
    }
    fn cuStreamAttachMemAsync(handle: u64, address: u64, length: usize, flags: c_uint) also cuStreamAttachMemAsync_ptsz {
        let _ = (length, flags);
        let driver = state::driver()?;
        let inner = &mut *driver.lock();
        resolve(driver, inner, handle, PT)?;
        inner.find(address).map(|_| ()).ok_or(INVALID_VALUE)
    }
    fn cuStreamWriteValue32(handle: u64, address: u64, value: u32, flags: c_uint) also cuStreamWriteValue32_ptsz {
        let _ = flags;
        write(handle, PT, address, u64::from(value), false)
    }
    fn cuStreamWriteValue32_v2(handle: u64, address: u64, value: u32, flags: c_uint) also cuStreamWriteValue32_v2_ptsz {
        let _ = flags;
        write(handle, PT, address, u64::from(value), false)
    }
    fn cuStreamWriteValue64(handle: u64, address: u64, value: u64, flags: c_uint) also cuStreamWriteValue64_ptsz {
        let _ = flags;
        write(handle, PT, address, value, true)
    }
    fn cuStreamWriteValue64_v2(handle: u64, address: u64, value: u64, flags: c_uint) also cuStreamWriteValue64_v2_ptsz {
        let _ = flags;
        write(handle, PT, address, value, true)
    }
    fn cuStreamWaitValue32(handle: u64, address: u64, value: u32, flags: c_uint) also cuStreamWaitValue32_ptsz {
        wait_value(handle, PT, address, u64::from(value), flags, false)
    }
    fn cuStreamWaitValue32_v2(handle: u64, address: u64, value: u32, flags: c_uint) also cuStreamWaitValue32_v2_ptsz {
        wait_value(handle, PT, address, u64::from(value), flags, false)
    }
    fn cuStreamWaitValue64(handle: u64, address: u64, value: u64, flags: c_uint) also cuStreamWaitValue64_ptsz {
        wait_value(handle, PT, address, value, flags, true)
    }
    fn cuStreamWaitValue64_v2(handle: u64, address: u64, value: u64, flags: c_uint) also cuStreamWaitValue64_v2_ptsz {
        wait_value(handle, PT, address, value, flags, true)
    }
    fn cuStreamBatchMemOp(handle: u64, count: c_uint, operations: *const [u64; 6], flags: c_uint) also cuStreamBatchMemOp_ptsz {
        let _ = flags;
        batch(handle, PT, count, operations)
    }
    fn cuStreamBatchMemOp_v2(handle: u64, count: c_uint, operations: *const [u64; 6], flags: c_uint) also cuStreamBatchMemOp_v2_ptsz {
        let _ = flags;
        batch(handle, PT, count, operations)
    }
}
