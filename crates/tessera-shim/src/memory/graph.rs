//! Memory of graphs. A graph's memory nodes take memory when the graph runs, from a store of the card's own; what that
//! store holds (`CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT`) is what is booked.
//!
//! Graphs without memory nodes are not looked at: until the first node of that kind is made, a launch goes straight
//! to the driver.

use core::{
    ffi::c_void,
    sync::atomic::{AtomicU32, Ordering},
};

use super::plain::bytes;
use crate::{
    address::{Entry, Space},
    argument::written,
    codes::SUCCESS,
    place::{self, Place},
    process::{Card, Process, process, started},
    symbol::{cuCtxGetDevice, cuDeviceGetGraphMemAttribute},
};

const USED_CURRENT: i32 = 0;
const RESERVED_CURRENT: i32 = 2;
const NODE_TYPE_MEMORY: i32 = 10;
/// 1 once a graph with memory was made. Not in the process's state: the first look of every launch is one load.
static SEEN: AtomicU32 = AtomicU32::new(0);

/// Whether no graph of this process is known to have memory of its own.
#[inline]
pub(crate) fn are_without_memory() -> bool {
    SEEN.load(Ordering::Acquire) == 0
}

/// The process, if a graph with memory was ever made.
#[inline]
fn with_memory() -> Option<&'static Process> {
    if SEEN.load(Ordering::Acquire) == 0 {
        None
    } else {
        started()
    }
}

/// A stream that is being recorded stands for the graph that does not exist yet; streams are no graphs.
const RECORDING: u64 = 1 << 63;

/// `CUDA_MEM_ALLOC_NODE_PARAMS`, as far as it matters: the pool's properties take 88 bytes.
#[repr(C)]
pub(crate) struct MemoryNode {
    pool: [u64; 11],
    access: *const c_void,
    access_count: usize,
    size: usize,
}

/// `CUgraphNodeParams`, as far as it matters.
#[repr(C)]
pub(crate) struct AnyNode {
    kind: i32,
    reserved: [i32; 3],
    memory: MemoryNode,
}

/// Notes that a graph takes this much more when it runs.
fn add(process: &Process, space: Space, key: u64, more: u64) {
    if more == 0 {
        return;
    }
    SEEN.store(1, Ordering::Release);
    let known = process.table.take_if(space, key, |entry| {
        entry.extra = entry.extra.saturating_add(more);
        false
    });
    if known.is_none() {
        // Without memory for the entry the launch books what it finds afterwards.
        let (Ok(_) | Err(())) = process.table.insert(
            space,
            key,
            Entry {
                extra: more,
                ..Entry::default()
            },
        );
    }
}

/// A request on a stream that is being recorded: nothing is taken now.
pub(super) fn recorded(process: &Process, stream: u64, size: u64, result: i32) -> i32 {
    if result == SUCCESS {
        add(process, Space::Graph, stream | RECORDING, size);
    }
    result
}

pub(crate) unsafe fn add_memory_node(
    real: unsafe extern "C" fn(*mut u64, u64, *const u64, usize, *mut MemoryNode) -> i32,
    out: *mut u64,
    graph: u64,
    before: *const u64,
    count: usize,
    node: *mut MemoryNode,
) -> i32 {
    // SAFETY: the caller's arguments.
    let result = unsafe { real(out, graph, before, count, node) };
    if result == SUCCESS
        && !node.is_null()
        && let Ok(process) = process()
    {
        // SAFETY: not null, and accepted by the driver.
        add(
            process,
            Space::Graph,
            graph,
            bytes(unsafe { written(&raw const (*node).size) }),
        );
    }
    result
}

/// # Safety
/// `node` is null or points to a structure that the driver has accepted.
unsafe fn added(graph: u64, node: *const AnyNode) {
    if !node.is_null()
        // SAFETY: by the caller's promise; every node begins with its kind.
        && unsafe { written(&raw const (*node).kind) } == NODE_TYPE_MEMORY
        && let Ok(process) = process()
    {
        // SAFETY: a memory node.
        add(
            process,
            Space::Graph,
            graph,
            bytes(unsafe { written(&raw const (*node).memory.size) }),
        );
    }
}

pub(crate) unsafe fn add_node(
    real: unsafe extern "C" fn(*mut u64, u64, *const u64, usize, *mut AnyNode) -> i32,
    out: *mut u64,
    graph: u64,
    before: *const u64,
    count: usize,
    node: *mut AnyNode,
) -> i32 {
    // SAFETY: the caller's arguments.
    let result = unsafe { real(out, graph, before, count, node) };
    if result == SUCCESS {
        // SAFETY: accepted by the driver.
        unsafe { added(graph, node) };
    }
    result
}

pub(crate) unsafe fn add_node_v2(
    real: unsafe extern "C" fn(*mut u64, u64, *const u64, *const c_void, usize, *mut AnyNode) -> i32,
    out: *mut u64,
    graph: u64,
    before: *const u64,
    edges: *const c_void,
    count: usize,
    node: *mut AnyNode,
) -> i32 {
    // SAFETY: the caller's arguments.
    let result = unsafe { real(out, graph, before, edges, count, node) };
    if result == SUCCESS {
        // SAFETY: accepted by the driver.
        unsafe { added(graph, node) };
    }
    result
}

pub(crate) unsafe fn destroy(real: unsafe extern "C" fn(u64) -> i32, graph: u64) -> i32 {
    // First, since another graph may get the handle as soon as this one is gone.
    let known = with_memory();
    let entry = known.and_then(|process| process.table.take(Space::Graph, graph).map(|entry| (process, entry)));
    // SAFETY: the caller's argument.
    let result = unsafe { real(graph) };
    if let Some((process, entry)) = entry.filter(|_| result != SUCCESS) {
        add(process, Space::Graph, graph, entry.extra);
    }
    result
}

pub(crate) unsafe fn end_capture(
    real: unsafe extern "C" fn(u64, *mut u64) -> i32,
    stream: u64,
    graph: *mut u64,
) -> i32 {
    // SAFETY: the caller's arguments.
    let result = unsafe { real(stream, graph) };
    if let Some(process) = with_memory()
        && let Some(entry) = process.table.take(Space::Graph, stream | RECORDING)
        && result == SUCCESS
        && !graph.is_null()
    {
        // SAFETY: not null, and written by the driver.
        add(process, Space::Graph, unsafe { written(graph) }, entry.extra);
    }
    result
}

/// After a graph was made executable.
///
/// # Safety
/// `executable` is null or was written by the driver.
unsafe fn instantiated(result: i32, executable: *const u64, graph: u64) -> i32 {
    if result == SUCCESS
        && !executable.is_null()
        && let Some(process) = with_memory()
    {
        // SAFETY: by the caller's promise.
        let key = unsafe { written(executable) };
        process.table.take(Space::Executable, key);
        let size = process.table.get(Space::Graph, graph).map_or(0, |entry| entry.extra);
        add(process, Space::Executable, key, size);
    }
    result
}

pub(crate) unsafe fn instantiate(
    real: unsafe extern "C" fn(*mut u64, u64, *mut u64, *mut core::ffi::c_char, usize) -> i32,
    out: *mut u64,
    graph: u64,
    node: *mut u64,
    log: *mut core::ffi::c_char,
    size: usize,
) -> i32 {
    // SAFETY: the caller's arguments; written by the driver on success.
    unsafe { instantiated(real(out, graph, node, log, size), out, graph) }
}

pub(crate) unsafe fn instantiate_flags(
    real: unsafe extern "C" fn(*mut u64, u64, u64) -> i32,
    out: *mut u64,
    graph: u64,
    flags: u64,
) -> i32 {
    // SAFETY: the caller's arguments; written by the driver on success.
    unsafe { instantiated(real(out, graph, flags), out, graph) }
}

pub(crate) unsafe fn instantiate_parameters(
    real: unsafe extern "C" fn(*mut u64, u64, *mut c_void) -> i32,
    out: *mut u64,
    graph: u64,
    parameters: *mut c_void,
) -> i32 {
    // SAFETY: the caller's arguments; written by the driver on success.
    unsafe { instantiated(real(out, graph, parameters), out, graph) }
}

pub(crate) unsafe fn launch(real: unsafe extern "C" fn(u64, u64) -> i32, executable: u64, stream: u64) -> i32 {
    let _pass = crate::swap::pass();
    // SAFETY: the caller's arguments.
    let call = || unsafe { real(executable, stream) };
    let Some(process) = with_memory() else {
        return call();
    };
    let size = process
        .table
        .get(Space::Executable, executable)
        .map_or(0, |entry| entry.extra);
    if size == 0 {
        return call();
    }
    let (card, device) = match current_device() {
        Some((Place::Counted(_, card), device)) => (card, device),
        Some((Place::Refused(code), _)) => return code,
        _ => return call(),
    };
    let unused = attribute(device, RESERVED_CURRENT).saturating_sub(attribute(device, USED_CURRENT));
    let ahead = match process.reserve(card, size.saturating_sub(unused)) {
        Ok(ahead) => ahead,
        Err(code) => return code,
    };
    let result = call();
    settle(process, card, device);
    process.release(card, ahead);
    result
}

pub(crate) unsafe fn trim(real: unsafe extern "C" fn(i32) -> i32, device: i32) -> i32 {
    // SAFETY: the caller's argument.
    let result = unsafe { real(device) };
    if let Some(process) = with_memory()
        && let Place::Counted(_, card) = place::of_device(device)
    {
        settle(process, card, device);
    }
    result
}

fn current_device() -> Option<(Place, i32)> {
    let mut device = -1;
    // SAFETY: a place for the answer.
    let code = unsafe { cuCtxGetDevice(&raw mut device) };
    (code == SUCCESS).then(|| (place::of_device(device), device))
}

fn attribute(device: i32, attribute: i32) -> u64 {
    let mut value = 0;
    // SAFETY: a place for the answer, eight bytes for these attributes.
    match unsafe { cuDeviceGetGraphMemAttribute(device, attribute, &raw mut value) } {
        SUCCESS => value,
        _ => 0,
    }
}

/// Makes the booking what the card's store for graphs holds.
fn settle(process: &Process, card: Card, device: i32) {
    let Some(booked) = process.graph_booked.get(card.0) else {
        return;
    };
    let now = attribute(device, RESERVED_CURRENT);
    let old = booked.swap(now, Ordering::AcqRel);
    process.book(card, now.saturating_sub(old));
    process.release(card, old.saturating_sub(now));
}
