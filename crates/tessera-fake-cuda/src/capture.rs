//! Stream capture: work of a stream becomes nodes of a graph.

use std::cell::Cell;
use std::ffi::c_uint;

use crate::abi::{
    CAPTURE_INVALIDATED, CAPTURE_UNJOINED, CAPTURE_UNMATCHED, CAPTURE_UNSUPPORTED, ILLEGAL_STATE, INVALID_HANDLE,
    INVALID_VALUE, R, Res, get, list, put, put_wanted,
};
use crate::graph::{self, Graph, NodeKind};
use crate::state::{self, Inner};
use crate::stream;

/// What a capturing stream knows.
#[derive(Clone, Debug)]
pub(crate) struct Capture {
    graph: u64,
    id: u64,
    /// Nodes that the next one depends on.
    tails: Vec<u64>,
    origin: bool,
    /// The graph was given by the client.
    given: bool,
    valid: bool,
}

/// A place in a capture that an event marks.
#[derive(Clone, Debug)]
pub(crate) struct Captured {
    graph: u64,
    id: u64,
    tails: Vec<u64>,
}

thread_local! {
    static MODE: Cell<c_uint> = const { Cell::new(0) };
}

/// Whether the stream captures; fails when its capture is broken.
pub(crate) fn active(inner: &Inner, stream: u64) -> Res<bool> {
    match inner.streams.get(&stream).and_then(|s| s.capture.as_ref()) {
        None => Ok(false),
        Some(capture) if capture.valid => Ok(true),
        Some(_) => Err(CAPTURE_INVALIDATED),
    }
}

/// Breaks the capture that the stream takes part in.
pub(crate) fn spoil(inner: &mut Inner, stream: u64) {
    let Some(id) = inner
        .streams
        .get(&stream)
        .and_then(|s| s.capture.as_ref())
        .map(|c| c.id)
    else {
        return;
    };
    for stream in inner.streams.values_mut() {
        if let Some(capture) = stream.capture.as_mut().filter(|c| c.id == id) {
            capture.valid = false;
        }
    }
}

/// Adds a node behind what the stream has captured.
pub(crate) fn record(inner: &mut Inner, stream: u64, kind: NodeKind) -> Res<u64> {
    let capture = inner
        .streams
        .get(&stream)
        .and_then(|s| s.capture.clone())
        .ok_or(INVALID_HANDLE)?;
    let node = graph::add(inner, capture.graph, kind, &capture.tails)?;
    if let Some(capture) = inner.streams.get_mut(&stream).and_then(|s| s.capture.as_mut()) {
        capture.tails = vec![node];
    }
    Ok(node)
}

/// Where the stream's capture stands.
pub(crate) fn position(inner: &Inner, stream: u64) -> Option<Captured> {
    let capture = inner.streams.get(&stream)?.capture.as_ref()?;
    Some(Captured {
        graph: capture.graph,
        id: capture.id,
        tails: capture.tails.clone(),
    })
}

/// Makes a stream wait for a place of a capture: it joins the capture.
pub(crate) fn join(inner: &mut Inner, stream: u64, at: &Captured) -> R {
    if !inner.graphs.contains_key(&at.graph) {
        return Err(INVALID_HANDLE);
    }
    let entry = inner.streams.get_mut(&stream).ok_or(INVALID_HANDLE)?;
    match entry.capture.as_mut() {
        Some(capture) if capture.id == at.id => {
            for tail in &at.tails {
                if !capture.tails.contains(tail) {
                    capture.tails.push(*tail);
                }
            }
        }
        // Two captures cannot be merged.
        Some(_) => return Err(902),
        None => {
            entry.capture = Some(Capture {
                graph: at.graph,
                id: at.id,
                tails: at.tails.clone(),
                origin: false,
                given: false,
                valid: true,
            });
        }
    }
    Ok(())
}

fn begin(handle: u64, pt: bool, mode: c_uint, given: Option<(u64, Vec<u64>)>) -> R {
    let driver = state::driver()?;
    if mode > 2 {
        return Err(INVALID_VALUE);
    }
    let inner = &mut *driver.lock();
    let stream = stream::resolve(driver, inner, handle, pt)?;
    if handle == 1 || (handle == 0 && !pt) {
        return Err(CAPTURE_UNSUPPORTED);
    }
    if inner.streams[&stream].capture.is_some() {
        return Err(ILLEGAL_STATE);
    }
    let (graph, tails, is_given) = match given {
        Some((graph, tails)) => {
            if !inner.graphs.contains_key(&graph) {
                return Err(INVALID_HANDLE);
            }
            (graph, tails, true)
        }
        None => {
            let graph = inner.id();
            inner.graphs.insert(graph, Graph::default());
            (graph, Vec::new(), false)
        }
    };
    let id = inner.id();
    if let Some(entry) = inner.streams.get_mut(&stream) {
        entry.capture = Some(Capture {
            graph,
            id,
            tails,
            origin: true,
            given: is_given,
            valid: true,
        });
    }
    Ok(())
}

unsafe fn end(handle: u64, pt: bool, out: *mut u64) -> R {
    let driver = state::driver()?;
    let inner = &mut *driver.lock();
    let stream = stream::resolve(driver, inner, handle, pt)?;
    let capture = inner.streams[&stream].capture.clone().ok_or(ILLEGAL_STATE)?;
    // SAFETY: the caller of the entry point vouches for `out`.
    unsafe { put(out, 0) }?;
    if !capture.origin {
        spoil(inner, stream);
        return Err(CAPTURE_UNMATCHED);
    }
    let mut others = Vec::new();
    for entry in inner.streams.values_mut() {
        if entry.capture.as_ref().is_some_and(|c| c.id == capture.id)
            && let Some(part) = entry.capture.take()
            && !part.origin
        {
            others.extend(part.tails);
        }
    }
    let joined = graph::reaches(inner, &capture.tails, &others);
    if !capture.valid || !joined {
        if !capture.given {
            graph::destroy(inner, capture.graph);
        }
        return Err(if capture.valid {
            CAPTURE_UNJOINED
        } else {
            CAPTURE_INVALIDATED
        });
    }
    // SAFETY: as above.
    unsafe { put(out, capture.graph) }
}

unsafe fn info(
    handle: u64,
    pt: bool,
    status: *mut c_uint,
    id: *mut u64,
    graph: *mut u64,
    nodes: *mut *const u64,
    edges: *mut *const u64,
    count: *mut usize,
) -> R {
    let driver = state::driver()?;
    let inner = &mut *driver.lock();
    let stream = stream::resolve(driver, inner, handle, pt)?;
    // SAFETY: arguments of the entry point. The node list stays where it is until the stream's
    // next captured call, as the interface promises.
    unsafe {
        put_wanted(edges, std::ptr::null());
        match &inner.streams[&stream].capture {
            None => {
                put(status, 0)?;
                put_wanted(id, 0);
                put_wanted(graph, 0);
                put_wanted(nodes, std::ptr::null());
                put_wanted(count, 0);
            }
            Some(capture) if !capture.valid => put(status, 2)?,
            Some(capture) => {
                put(status, 1)?;
                put_wanted(id, capture.id);
                put_wanted(graph, capture.graph);
                put_wanted(nodes, capture.tails.as_ptr());
                put_wanted(count, capture.tails.len());
            }
        }
    }
    Ok(())
}

fn update(handle: u64, pt: bool, nodes: Vec<u64>, flags: c_uint) -> R {
    let driver = state::driver()?;
    let inner = &mut *driver.lock();
    let stream = stream::resolve(driver, inner, handle, pt)?;
    if !active(inner, stream)? {
        return Err(ILLEGAL_STATE);
    }
    let graph = inner.streams[&stream].capture.as_ref().map(|c| c.graph);
    if flags > 1 || nodes.iter().any(|n| inner.nodes.get(n) != graph.as_ref()) {
        return Err(INVALID_VALUE);
    }
    if let Some(capture) = inner.streams.get_mut(&stream).and_then(|s| s.capture.as_mut()) {
        if flags == 1 {
            capture.tails.clear();
        }
        for node in nodes {
            if !capture.tails.contains(&node) {
                capture.tails.push(node);
            }
        }
    }
    Ok(())
}

api! {
    fn cuStreamBeginCapture(handle: u64) also cuStreamBeginCapture_ptsz { begin(handle, PT, 0, None) }
    fn cuStreamBeginCapture_v2(handle: u64, mode: c_uint) also cuStreamBeginCapture_v2_ptsz { begin(handle, PT, mode, None) }
    fn cuStreamBeginCaptureToGraph(handle: u64, graph: u64, nodes: *const u64, edges: *const u64, count: usize, mode: c_uint) also cuStreamBeginCaptureToGraph_ptsz {
        let _ = edges;
        begin(handle, PT, mode, Some((graph, list(nodes, count)?)))
    }
    fn cuStreamEndCapture(handle: u64, out: *mut u64) also cuStreamEndCapture_ptsz { end(handle, PT, out) }
    fn cuStreamIsCapturing(handle: u64, out: *mut c_uint) also cuStreamIsCapturing_ptsz {
        let none = std::ptr::null_mut();
        info(handle, PT, out, none, none, std::ptr::null_mut(), std::ptr::null_mut(), std::ptr::null_mut())
    }
    fn cuStreamGetCaptureInfo(handle: u64, status: *mut c_uint, id: *mut u64) also cuStreamGetCaptureInfo_ptsz {
        info(handle, PT, status, id, std::ptr::null_mut(), std::ptr::null_mut(), std::ptr::null_mut(), std::ptr::null_mut())
    }
    fn cuStreamGetCaptureInfo_v2(handle: u64, status: *mut c_uint, id: *mut u64, graph: *mut u64, nodes: *mut *const u64, count: *mut usize) also cuStreamGetCaptureInfo_v2_ptsz {
        info(handle, PT, status, id, graph, nodes, std::ptr::null_mut(), count)
    }
    fn cuStreamGetCaptureInfo_v3(handle: u64, status: *mut c_uint, id: *mut u64, graph: *mut u64, nodes: *mut *const u64, edges: *mut *const u64, count: *mut usize) also cuStreamGetCaptureInfo_v3_ptsz {
        info(handle, PT, status, id, graph, nodes, edges, count)
    }
    fn cuStreamUpdateCaptureDependencies(handle: u64, nodes: *const u64, count: usize, flags: c_uint) also cuStreamUpdateCaptureDependencies_ptsz {
        update(handle, PT, list(nodes, count)?, flags)
    }
    fn cuStreamUpdateCaptureDependencies_v2(handle: u64, nodes: *const u64, edges: *const u64, count: usize, flags: c_uint) also cuStreamUpdateCaptureDependencies_v2_ptsz {
        let _ = edges;
        update(handle, PT, list(nodes, count)?, flags)
    }
    fn cuThreadExchangeStreamCaptureMode(mode: *mut c_uint) {
        state::driver()?;
        let next = get(mode)?;
        if next > 2 {
            return Err(INVALID_VALUE);
        }
        put(mode, MODE.with(|m| m.replace(next)))
    }
}
