//! Instantiated graphs.

use std::collections::{BTreeSet, HashMap};
use std::ffi::{c_char, c_int, c_uint};

use crate::abi::{INVALID_HANDLE, INVALID_VALUE, R, Res, get, put, put_wanted};
use crate::capture;
use crate::copy;
use crate::graph::{self, Graph, Node, NodeKind};
use crate::launch;
use crate::state::{self, Alloc, Driver, Inner, Kind};
use crate::stream;

/// Frees what the last launch left, instead of failing.
const AUTO_FREE: u64 = 1;

/// One executable graph: its own copy of the nodes, in an order that can run.
#[derive(Clone, Debug)]
pub(crate) struct Exec {
    nodes: Vec<Node>,
    flags: u64,
    disabled: BTreeSet<u64>,
}

/// Nodes so that each comes after those that it depends on, children in place.
fn ordered(inner: &Inner, graph: &Graph) -> Res<Vec<Node>> {
    let mut out: Vec<Node> = Vec::new();
    let mut done: BTreeSet<u64> = BTreeSet::new();
    let mut rest: Vec<&Node> = graph.nodes.iter().collect();
    while !rest.is_empty() {
        let before = rest.len();
        let mut later = Vec::new();
        for node in rest {
            if !node.before.iter().all(|b| done.contains(b)) {
                later.push(node);
                continue;
            }
            done.insert(node.handle);
            if let NodeKind::Child { graph } = node.kind {
                let child = inner.graphs.get(&graph).ok_or(INVALID_HANDLE)?;
                let mut inside = ordered(inner, child)?;
                for entry in &mut inside {
                    if entry.before.is_empty() {
                        entry.before.clone_from(&node.before);
                    }
                }
                let ends: Vec<u64> = inside.iter().map(|n| n.handle).collect();
                out.extend(inside);
                let mut end = node.clone();
                end.kind = NodeKind::Empty;
                end.before.extend(ends);
                out.push(end);
                continue;
            }
            out.push(node.clone());
        }
        if later.len() == before {
            return Err(INVALID_VALUE);
        }
        rest = later;
    }
    Ok(out)
}

unsafe fn instantiate(out: *mut u64, graph: u64, flags: u64) -> R {
    let driver = state::driver()?;
    if out.is_null() {
        return Err(INVALID_VALUE);
    }
    let inner = &mut *driver.lock();
    let nodes = ordered(inner, inner.graphs.get(&graph).ok_or(INVALID_HANDLE)?)?;
    let handle = inner.id();
    inner.execs.insert(
        handle,
        Exec {
            nodes,
            flags,
            disabled: BTreeSet::new(),
        },
    );
    // SAFETY: the caller of the entry point vouches for `out`.
    unsafe { put(out, handle) }
}

fn allocate(driver: &Driver, inner: &mut Inner, context: u64, device: usize, size: u64, address: u64) -> R {
    driver.graph_take(inner, device, size)?;
    let id = inner.id();
    inner.allocs.insert(
        address,
        Alloc {
            size,
            device,
            context,
            kind: Kind::Graph,
            id,
        },
    );
    Ok(())
}

fn run(exec: &Exec, handle: u64, pt: bool) -> R {
    let driver = state::driver()?;
    let inner = &mut *driver.lock();
    let stream = stream::resolve(driver, inner, handle, pt)?;
    let context = inner.streams[&stream].context;
    let device = inner.contexts[&context].device;
    driver.present(device)?;
    let owned: Vec<u64> = exec
        .nodes
        .iter()
        .filter_map(|n| match n.kind {
            NodeKind::Alloc { address, .. } => Some(address),
            _ => None,
        })
        .collect();
    if owned.iter().any(|a| inner.allocs.contains_key(a)) {
        if exec.flags & AUTO_FREE == 0 {
            return Err(INVALID_VALUE);
        }
        for address in &owned {
            driver.release(inner, *address);
        }
    }
    let start = stream::earliest(inner, stream);
    let mut ends: HashMap<u64, u64> = HashMap::new();
    let mut last = start;
    for node in &exec.nodes {
        let ready = node
            .before
            .iter()
            .filter_map(|b| ends.get(b))
            .fold(start, |a, b| a.max(*b));
        let mut end = ready;
        if !exec.disabled.contains(&node.handle) {
            match &node.kind {
                NodeKind::Kernel { function, shape } => {
                    let place = &driver.devices[device];
                    let (time, sms, blocks) = launch::cost(inner, *function, *shape, place.sms)?;
                    end = driver.process.run(place.card, ready, time, sms, place.sms, blocks);
                }
                NodeKind::Copy { operation, .. } => {
                    operation.check(inner)?;
                    // SAFETY: just checked, and the lock keeps the allocations.
                    unsafe { operation.run() };
                }
                NodeKind::Host { function, data } => {
                    let (function, data) = (*function, *data);
                    stream::advance(inner, stream, ready);
                    stream::host(driver, inner, stream, move || {
                        // SAFETY: the client's own function with the client's own data.
                        unsafe { function(data as *mut _) }
                    })?;
                }
                NodeKind::Alloc { device, size, address } => {
                    allocate(driver, inner, context, *device, *size, *address)?
                }
                NodeKind::Free { address } => {
                    driver.release(inner, *address).ok_or(INVALID_VALUE)?;
                }
                NodeKind::EventRecord { event } => {
                    let mut point = stream::mark(inner, stream);
                    point.time = ready.max(driver.machine.now_ns());
                    if let Some(entry) = inner.events.get_mut(event) {
                        entry.point = Some(point);
                        entry.captured = None;
                    }
                }
                NodeKind::EventWait { event } => {
                    if let Some(time) = inner.events.get(event).and_then(|e| e.point.as_ref()).map(|p| p.time) {
                        end = end.max(time);
                    }
                }
                NodeKind::Write { address, value, wide } => {
                    let (address, value, wide) = (*address, *value, *wide);
                    copy::check(inner, address, if wide { 8 } else { 4 })?;
                    stream::advance(inner, stream, ready);
                    stream::host(driver, inner, stream, move || {
                        stream::store(address, value, wide);
                    })?;
                }
                NodeKind::Child { .. } | NodeKind::Empty => {}
            }
        }
        ends.insert(node.handle, end);
        last = last.max(end);
    }
    stream::advance(inner, stream, last);
    Ok(())
}

fn launch_exec(handle: u64, on: u64, pt: bool) -> R {
    let driver = state::driver()?;
    let exec = {
        let inner = &mut *driver.lock();
        let exec = inner.execs.get(&handle).ok_or(INVALID_HANDLE)?.clone();
        let stream = stream::resolve(driver, inner, on, pt)?;
        if capture::active(inner, stream)? {
            // A launch inside a capture becomes a child: its nodes follow each other.
            for node in &exec.nodes {
                capture::record(inner, stream, node.kind.clone())?;
            }
            return Ok(());
        }
        exec
    };
    run(&exec, on, pt)
}

fn set(exec: u64, node: u64, kind: NodeKind) -> R {
    let driver = state::driver()?;
    let inner = &mut *driver.lock();
    let exec = inner.execs.get_mut(&exec).ok_or(INVALID_HANDLE)?;
    let entry = exec.nodes.iter_mut().find(|n| n.handle == node).ok_or(INVALID_VALUE)?;
    entry.kind = kind;
    Ok(())
}

fn update(exec: u64, graph: u64) -> Res<bool> {
    let driver = state::driver()?;
    let inner = &mut *driver.lock();
    let fresh = ordered(inner, inner.graphs.get(&graph).ok_or(INVALID_HANDLE)?)?;
    let exec = inner.execs.get_mut(&exec).ok_or(INVALID_HANDLE)?;
    let same = fresh.len() == exec.nodes.len()
        && fresh.iter().zip(&exec.nodes).all(|(a, b)| {
            std::mem::discriminant(&a.kind) == std::mem::discriminant(&b.kind) && a.before.len() == b.before.len()
        });
    if same {
        for (old, new) in exec.nodes.iter_mut().zip(fresh) {
            old.kind = new.kind;
        }
    }
    Ok(same)
}

api! {
    fn cuGraphInstantiate(out: *mut u64, graph: u64, error: *mut u64, log: *mut c_char, size: usize) {
        let _ = (log, size);
        put_wanted(error, 0);
        instantiate(out, graph, 0)
    }
    fn cuGraphInstantiate_v2(out: *mut u64, graph: u64, error: *mut u64, log: *mut c_char, size: usize) {
        let _ = (log, size);
        put_wanted(error, 0);
        instantiate(out, graph, 0)
    }
    fn cuGraphInstantiateWithFlags(out: *mut u64, graph: u64, flags: u64) { instantiate(out, graph, flags) }
    fn cuGraphInstantiateWithParams(out: *mut u64, graph: u64, params: *mut [u64; 4]) also cuGraphInstantiateWithParams_ptsz {
        let _ = PT;
        let w = get(params)?;
        instantiate(out, graph, w[0])?;
        put(params.cast::<u64>().add(2), 0)?;
        put(params.cast::<c_int>().add(6), 0)
    }
    fn cuGraphLaunch(exec: u64, stream: u64) also cuGraphLaunch_ptsz { launch_exec(exec, stream, PT) }
    fn cuGraphUpload(exec: u64, stream: u64) also cuGraphUpload_ptsz {
        let driver = state::driver()?;
        let inner = &mut *driver.lock();
        stream::resolve(driver, inner, stream, PT)?;
        inner.execs.get(&exec).map(|_| ()).ok_or(INVALID_HANDLE)
    }
    fn cuGraphExecDestroy(exec: u64) {
        let driver = state::driver()?;
        driver.lock().execs.remove(&exec).map(|_| ()).ok_or(INVALID_VALUE)
    }
    fn cuGraphExecGetFlags(exec: u64, out: *mut u64) {
        let driver = state::driver()?;
        put(out, driver.lock().execs.get(&exec).ok_or(INVALID_HANDLE)?.flags)
    }
    fn cuGraphExecKernelNodeSetParams(exec: u64, node: u64, params: *const [u64; 7]) { set(exec, node, graph::kernel_params(params)?) }
    fn cuGraphExecKernelNodeSetParams_v2(exec: u64, node: u64, params: *const [u64; 9]) { set(exec, node, graph::kernel_params_v2(params)?) }
    fn cuGraphExecMemcpyNodeSetParams(exec: u64, node: u64, params: *const [u64; 25], context: u64) {
        let _ = context;
        let driver = state::driver()?;
        let operation = copy::block(&driver.lock(), &get(params)?)?;
        set(exec, node, NodeKind::Copy { operation })
    }
    fn cuGraphExecMemsetNodeSetParams(exec: u64, node: u64, params: *const [u64; 5], context: u64) {
        let _ = context;
        set(exec, node, NodeKind::Copy { operation: graph::memset_params(params)? })
    }
    fn cuGraphExecUpdate(exec: u64, graph: u64, error: *mut u64, result: *mut c_uint) {
        put_wanted(error, 0);
        let same = update(exec, graph)?;
        // 0 is success, 2 says that the topology changed.
        put_wanted(result, if same { 0 } else { 2 });
        if same { Ok(()) } else { Err(910) }
    }
    fn cuGraphExecUpdate_v2(exec: u64, graph: u64, info: *mut [u64; 3]) {
        let same = update(exec, graph)?;
        put_wanted(info, [if same { 0 } else { 2 }, 0, 0]);
        if same { Ok(()) } else { Err(910) }
    }
    fn cuGraphNodeSetEnabled(exec: u64, node: u64, enabled: c_uint) {
        let driver = state::driver()?;
        let inner = &mut *driver.lock();
        let exec = inner.execs.get_mut(&exec).ok_or(INVALID_HANDLE)?;
        if !exec.nodes.iter().any(|n| n.handle == node) {
            return Err(INVALID_VALUE);
        }
        if enabled == 0 { exec.disabled.insert(node); } else { exec.disabled.remove(&node); }
        Ok(())
    }
    fn cuGraphNodeGetEnabled(exec: u64, node: u64, out: *mut c_uint) {
        let driver = state::driver()?;
        let inner = driver.lock();
        let exec = inner.execs.get(&exec).ok_or(INVALID_HANDLE)?;
        put(out, c_uint::from(!exec.disabled.contains(&node)))
    }
}
