//! Events.

use std::ffi::{c_int, c_uint};

use crate::abi::{CAPTURE_UNSUPPORTED, INVALID_CONTEXT, INVALID_HANDLE, INVALID_VALUE, NOT_READY, R, put};
use crate::capture::{self, Captured};
use crate::graph::NodeKind;
use crate::state;
use crate::stream::{self, Point};

/// One event.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) context: u64,
    flags: u32,
    /// What its last record waits for; nothing before the first.
    pub(crate) point: Option<Point>,
    /// Set while the last record lies in a capture.
    pub(crate) captured: Option<Captured>,
}

fn record(event: u64, handle: u64, pt: bool, external: bool) -> R {
    let driver = state::driver()?;
    let inner = &mut *driver.lock();
    let stream = stream::resolve(driver, inner, handle, pt)?;
    if !inner.events.contains_key(&event) {
        return Err(INVALID_HANDLE);
    }
    if capture::active(inner, stream)? {
        if external {
            return capture::record(inner, stream, NodeKind::EventRecord { event }).map(|_| ());
        }
        let captured = capture::position(inner, stream);
        if let Some(entry) = inner.events.get_mut(&event) {
            entry.captured = captured;
        }
        return Ok(());
    }
    let mut point = stream::mark(inner, stream);
    point.time = point.time.max(driver.machine.now_ns());
    if let Some(entry) = inner.events.get_mut(&event) {
        entry.point = Some(point);
        entry.captured = None;
    }
    Ok(())
}

fn destroy(event: u64) -> R {
    let driver = state::driver()?;
    driver.lock().events.remove(&event).map(|_| ()).ok_or(INVALID_HANDLE)
}

unsafe fn elapsed(out: *mut f32, start: u64, end: u64) -> R {
    let driver = state::driver()?;
    let inner = driver.lock();
    let (a, b) = (
        inner.events.get(&start).ok_or(INVALID_HANDLE)?,
        inner.events.get(&end).ok_or(INVALID_HANDLE)?,
    );
    // Flag 2 says that the event takes no time.
    let (Some(from), Some(to)) = (&a.point, &b.point) else {
        return Err(INVALID_HANDLE);
    };
    if (a.flags | b.flags) & 2 != 0 {
        return Err(INVALID_HANDLE);
    }
    if !from.reached(driver) || !to.reached(driver) {
        return Err(NOT_READY);
    }
    #[allow(clippy::cast_precision_loss, reason = "the interface gives a float of milliseconds")]
    let millis = (to.time as i64 - from.time as i64) as f32 / 1e6;
    // SAFETY: the caller of the entry point vouches for `out`.
    unsafe { put(out, millis) }
}

api! {
    fn cuEventCreate(out: *mut u64, flags: c_uint) {
        let driver = state::driver()?;
        // Interprocess events must not take time.
        if out.is_null() || flags & !7 != 0 || flags & 6 == 4 {
            return Err(INVALID_VALUE);
        }
        let inner = &mut *driver.lock();
        let context = driver.current(inner)?;
        let handle = inner.id();
        inner.events.insert(handle, Event { context, flags, point: None, captured: None });
        put(out, handle)
    }
    fn cuEventDestroy(event: u64) { destroy(event) }
    fn cuEventDestroy_v2(event: u64) { destroy(event) }
    fn cuEventRecord(event: u64, stream: u64) also cuEventRecord_ptsz { record(event, stream, PT, false) }
    fn cuEventRecordWithFlags(event: u64, stream: u64, flags: c_uint) also cuEventRecordWithFlags_ptsz {
        if flags & !1 != 0 {
            return Err(INVALID_VALUE);
        }
        record(event, stream, PT, flags & 1 == 1)
    }
    fn cuEventQuery(event: u64) {
        let driver = state::driver()?;
        let point = {
            let inner = driver.lock();
            let entry = inner.events.get(&event).ok_or(INVALID_HANDLE)?;
            if entry.captured.is_some() {
                return Err(CAPTURE_UNSUPPORTED);
            }
            entry.point.clone()
        };
        match point {
            Some(point) if !point.reached(driver) => {
                driver.process.polled(point.time);
                Err(NOT_READY)
            }
            _ => Ok(()),
        }
    }
    fn cuEventSynchronize(event: u64) {
        let driver = state::driver()?;
        let point = {
            let inner = driver.lock();
            let entry = inner.events.get(&event).ok_or(INVALID_HANDLE)?;
            if entry.captured.is_some() {
                return Err(CAPTURE_UNSUPPORTED);
            }
            entry.point.clone()
        };
        if let Some(point) = point {
            point.wait(driver);
        }
        driver.settle_pools(&mut driver.lock());
        Ok(())
    }
    fn cuEventElapsedTime(out: *mut f32, start: u64, end: u64) { elapsed(out, start, end) }
    fn cuEventElapsedTime_v2(out: *mut f32, start: u64, end: u64) { elapsed(out, start, end) }
    fn cuCtxRecordEvent(context: u64, event: u64) {
        let driver = state::driver()?;
        let inner = &mut *driver.lock();
        if !inner.contexts.contains_key(&context) {
            return Err(INVALID_CONTEXT);
        }
        let mut point = stream::mark_context(inner, context);
        point.time = point.time.max(driver.machine.now_ns());
        let entry = inner.events.get_mut(&event).ok_or(INVALID_HANDLE)?;
        entry.point = Some(point);
        entry.captured = None;
        Ok(())
    }
    fn cuCtxWaitEvent(context: u64, event: u64) {
        let driver = state::driver()?;
        let inner = &mut *driver.lock();
        if !inner.contexts.contains_key(&context) {
            return Err(INVALID_CONTEXT);
        }
        let time = inner.events.get(&event).ok_or(INVALID_HANDLE)?.point.as_ref().map_or(0, |p| p.time);
        for stream in inner.streams.values_mut().filter(|s| s.context == context) {
            stream.ready = stream.ready.max(time);
        }
        Ok(())
    }
    fn cuDeviceGetFabricClusterUuid(out: *mut [u8; 16], device: c_int) {
        let _ = out;
        state::driver()?.device(device)?;
        Err(crate::abi::NOT_SUPPORTED)
    }
}
