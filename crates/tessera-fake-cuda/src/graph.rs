//! Graphs: nodes and their order.

use std::collections::{BTreeSet, HashMap};
use std::ffi::{c_char, c_int, c_uint, c_void};

use crate::abi::{
    INVALID_HANDLE, INVALID_VALUE, NOT_SUPPORTED, OUT_OF_MEMORY, R, Res, get, list, put, put_list, put_wanted, text,
};
use crate::copy::{self, Operation};
use crate::launch::Shape;
use crate::state::{self, Driver, Inner};

/// What a node does.
#[derive(Clone, Debug)]
pub(crate) enum NodeKind {
    Kernel {
        function: u64,
        shape: Shape,
    },
    Copy {
        operation: Operation,
    },
    Host {
        function: unsafe extern "C" fn(*mut c_void),
        data: usize,
    },
    Child {
        graph: u64,
    },
    Empty,
    EventWait {
        event: u64,
    },
    EventRecord {
        event: u64,
    },
    Alloc {
        device: usize,
        size: u64,
        address: u64,
    },
    Free {
        address: u64,
    },
    Write {
        address: u64,
        value: u64,
        wide: bool,
    },
}

impl NodeKind {
    fn number(&self) -> c_uint {
        match self {
            Self::Kernel { .. } => 0,
            Self::Copy {
                operation: Operation::Fill { .. },
                ..
            } => 2,
            Self::Copy { .. } => 1,
            Self::Host { .. } => 3,
            Self::Child { .. } => 4,
            Self::Empty => 5,
            Self::EventWait { .. } => 6,
            Self::EventRecord { .. } => 7,
            Self::Alloc { .. } => 10,
            Self::Free { .. } => 11,
            Self::Write { .. } => 12,
        }
    }
}

/// One node.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) handle: u64,
    pub(crate) kind: NodeKind,
    pub(crate) before: Vec<u64>,
    /// Node that it was cloned from.
    origin: u64,
}

/// One graph, its nodes in the order in which they were added.
#[derive(Clone, Debug, Default)]
pub(crate) struct Graph {
    pub(crate) nodes: Vec<Node>,
}

/// Adds a node.
pub(crate) fn add(inner: &mut Inner, graph: u64, kind: NodeKind, before: &[u64]) -> Res<u64> {
    let handle = inner.id();
    let entry = inner.graphs.get_mut(&graph).ok_or(INVALID_HANDLE)?;
    if before.iter().any(|b| !entry.nodes.iter().any(|n| n.handle == *b)) {
        return Err(INVALID_VALUE);
    }
    entry.nodes.push(Node {
        handle,
        kind,
        before: before.to_vec(),
        origin: handle,
    });
    inner.nodes.insert(handle, graph);
    Ok(handle)
}

/// Whether every one of `wanted` lies before (or in) one of `ends`.
pub(crate) fn reaches(inner: &Inner, ends: &[u64], wanted: &[u64]) -> bool {
    let mut seen: BTreeSet<u64> = BTreeSet::new();
    let mut open = ends.to_vec();
    while let Some(node) = open.pop() {
        if seen.insert(node)
            && let Some(graph) = inner.nodes.get(&node).and_then(|g| inner.graphs.get(g))
            && let Some(node) = graph.nodes.iter().find(|n| n.handle == node)
        {
            open.extend(&node.before);
        }
    }
    wanted.iter().all(|w| seen.contains(w))
}

/// Removes a graph with its nodes.
pub(crate) fn destroy(inner: &mut Inner, graph: u64) {
    if let Some(entry) = inner.graphs.remove(&graph) {
        for node in entry.nodes {
            inner.nodes.remove(&node.handle);
            if let NodeKind::Child { graph } = node.kind {
                destroy(inner, graph);
            }
        }
    }
}

/// Copies a graph, children too.
pub(crate) fn duplicate(inner: &mut Inner, graph: u64) -> Res<u64> {
    let source = inner.graphs.get(&graph).ok_or(INVALID_HANDLE)?.clone();
    let copy = inner.id();
    let mut names: HashMap<u64, u64> = HashMap::new();
    let mut nodes = Vec::new();
    for mut node in source.nodes {
        let handle = inner.id();
        names.insert(node.handle, handle);
        node.origin = node.handle;
        node.handle = handle;
        if let NodeKind::Child { graph } = node.kind {
            node.kind = NodeKind::Child {
                graph: duplicate(inner, graph)?,
            };
        }
        inner.nodes.insert(handle, copy);
        nodes.push(node);
    }
    for node in &mut nodes {
        for before in &mut node.before {
            if let Some(name) = names.get(before) {
                *before = *name;
            }
        }
    }
    inner.graphs.insert(copy, Graph { nodes });
    Ok(copy)
}

/// Finds a node.
pub(crate) fn node(inner: &Inner, handle: u64) -> Res<&Node> {
    inner
        .nodes
        .get(&handle)
        .and_then(|g| inner.graphs.get(g))
        .and_then(|g| g.nodes.iter().find(|n| n.handle == handle))
        .ok_or(INVALID_HANDLE)
}

fn node_mut(inner: &mut Inner, handle: u64) -> Res<&mut Node> {
    let graph = *inner.nodes.get(&handle).ok_or(INVALID_HANDLE)?;
    inner
        .graphs
        .get_mut(&graph)
        .and_then(|g| g.nodes.iter_mut().find(|n| n.handle == handle))
        .ok_or(INVALID_HANDLE)
}

unsafe fn append(
    out: *mut u64,
    graph: u64,
    before: *const u64,
    count: usize,
    kind: impl FnOnce(&Driver, &mut Inner) -> Res<NodeKind>,
) -> R {
    let driver = state::driver()?;
    // SAFETY: arguments of the entry point.
    unsafe {
        let before = list(before, count)?;
        if out.is_null() {
            return Err(INVALID_VALUE);
        }
        let inner = &mut *driver.lock();
        let kind = kind(driver, inner)?;
        let node = add(inner, graph, kind, &before)?;
        put(out, node)
    }
}

/// Function and shape at the beginning of both forms of a kernel node's parameters.
pub(crate) unsafe fn kernel_params(params: *const [u64; 7]) -> Res<NodeKind> {
    // SAFETY: the caller of the entry point gives the parameters.
    let (w, head): ([u64; 7], [u32; 9]) = unsafe { (get(params)?, get(params.cast())?) };
    let shape = Shape {
        grid: [head[2], head[3], head[4]],
        block: [head[5], head[6], head[7]],
        shared: head[8],
    };
    shape.check()?;
    Ok(NodeKind::Kernel { function: w[0], shape })
}

/// The second form may name a kernel of a library instead of a function.
pub(crate) unsafe fn kernel_params_v2(params: *const [u64; 9]) -> Res<NodeKind> {
    // SAFETY: as above.
    unsafe {
        let w = get(params)?;
        let mut kind = kernel_params(params.cast())?;
        if let NodeKind::Kernel { function, .. } = &mut kind
            && *function == 0
        {
            *function = w[7];
        }
        Ok(kind)
    }
}

unsafe fn put_kernel(out: *mut u64, kind: &NodeKind, words: usize) -> R {
    let NodeKind::Kernel { function, shape } = kind else {
        return Err(INVALID_VALUE);
    };
    if out.is_null() {
        return Err(INVALID_VALUE);
    }
    let pair = |a: u32, b: u32| u64::from(a) | (u64::from(b) << 32);
    let all = [
        *function,
        pair(shape.grid[0], shape.grid[1]),
        pair(shape.grid[2], shape.block[0]),
        pair(shape.block[1], shape.block[2]),
        u64::from(shape.shared),
        0,
        0,
        0,
        0,
    ];
    for (i, word) in all.iter().take(words).enumerate() {
        // SAFETY: the caller gives a place of `words` words.
        unsafe { put(out.add(i), *word) }?;
    }
    Ok(())
}

pub(crate) unsafe fn memset_params(params: *const [u64; 5]) -> Res<Operation> {
    // SAFETY: the caller of the entry point gives the parameters.
    let w = unsafe { get(params) }?;
    let element = (w[2] >> 32) as u32;
    if !matches!(element, 1 | 2 | 4) {
        return Err(INVALID_VALUE);
    }
    Ok(Operation::Fill {
        to: w[0],
        pitch: w[1],
        value: w[2] as u32,
        element,
        width: w[3],
        height: w[4],
    })
}

unsafe fn alloc_params(driver: &Driver, inner: &mut Inner, params: *mut [u64; 15]) -> Res<NodeKind> {
    // SAFETY: the caller of the entry point gives the parameters.
    unsafe {
        let w = get(params)?;
        // Pool properties: allocation type, handle types, location type and id; then, behind the
        // access list, the size, and the place for the address.
        if w[0] as u32 != 1 || w[1] as u32 != 1 || w[13] == 0 {
            return Err(INVALID_VALUE);
        }
        let device = driver.index((w[1] >> 32) as c_int)?;
        let address = driver.arena(inner)?.take(w[13]).ok_or(OUT_OF_MEMORY)?;
        put(params.cast::<u64>().add(14), address)?;
        Ok(NodeKind::Alloc {
            device,
            size: w[13],
            address,
        })
    }
}

unsafe fn any_params(driver: &Driver, inner: &mut Inner, params: *mut [u64; 32]) -> Res<NodeKind> {
    // SAFETY: the caller of the entry point gives the parameters.
    unsafe {
        let w = get(params)?;
        let body = params.cast::<u64>().add(2);
        Ok(match w[0] as u32 {
            0 => kernel_params_v2(body.cast())?,
            1 => {
                let words: [u64; 25] = get(body.add(2).cast())?;
                NodeKind::Copy {
                    operation: copy::block(inner, &words)?,
                }
            }
            2 => NodeKind::Copy {
                operation: memset_params(body.cast())?,
            },
            3 => host_params(body.cast())?,
            4 => NodeKind::Child {
                graph: duplicate(inner, w[2])?,
            },
            5 => NodeKind::Empty,
            6 => NodeKind::EventWait { event: w[2] },
            7 => NodeKind::EventRecord { event: w[2] },
            10 => alloc_params(driver, inner, body.cast())?,
            11 => NodeKind::Free { address: w[2] },
            _ => return Err(NOT_SUPPORTED),
        })
    }
}

type HostFunction = Option<unsafe extern "C" fn(*mut c_void)>;

unsafe fn host_params(params: *const (HostFunction, usize)) -> Res<NodeKind> {
    // SAFETY: the caller of the entry point gives the parameters.
    let (function, data) = unsafe { get(params) }?;
    Ok(NodeKind::Host {
        function: function.ok_or(INVALID_VALUE)?,
        data,
    })
}

fn edges(graph: &Graph) -> (Vec<u64>, Vec<u64>) {
    graph
        .nodes
        .iter()
        .flat_map(|n| n.before.iter().map(|b| (*b, n.handle)))
        .unzip()
}

unsafe fn put_edges(graph: u64, from: *mut u64, to: *mut u64, data: *mut u64, count: *mut usize) -> R {
    let driver = state::driver()?;
    let inner = driver.lock();
    let (a, b) = edges(inner.graphs.get(&graph).ok_or(INVALID_HANDLE)?);
    // SAFETY: arguments of the entry point.
    unsafe {
        if from.is_null() || to.is_null() {
            return put(count, a.len());
        }
        let mut room = get(count)?;
        if !data.is_null() {
            put_list(data, &raw mut room, &vec![0u64; a.len()])?;
        }
        let mut room = get(count)?;
        put_list(from, &raw mut room, &a)?;
        put_list(to, count, &b)
    }
}

unsafe fn connect(graph: u64, from: *const u64, to: *const u64, count: usize, insert: bool) -> R {
    let driver = state::driver()?;
    // SAFETY: arguments of the entry point.
    let (from, to) = unsafe { (list(from, count)?, list(to, count)?) };
    let inner = &mut *driver.lock();
    for (a, b) in from.into_iter().zip(to) {
        if inner.nodes.get(&a) != Some(&graph) || inner.nodes.get(&b) != Some(&graph) {
            return Err(INVALID_VALUE);
        }
        // A circle cannot run.
        if insert && reaches(inner, &[a], &[b]) {
            return Err(INVALID_VALUE);
        }
        let before = &mut node_mut(inner, b)?.before;
        let known = before.contains(&a);
        if known == insert {
            return Err(INVALID_VALUE);
        }
        if insert {
            before.push(a);
        } else {
            before.retain(|n| *n != a);
        }
    }
    Ok(())
}

unsafe fn put_nodes(out: *mut u64, data: *mut u64, count: *mut usize, all: &[u64]) -> R {
    // SAFETY: arguments of the entry point.
    unsafe {
        if !data.is_null() && !out.is_null() {
            let mut room = get(count)?;
            put_list(data, &raw mut room, &vec![0u64; all.len()])?;
        }
        put_list(out, count, all)
    }
}

fn after(inner: &Inner, handle: u64) -> Res<Vec<u64>> {
    let graph = inner.nodes.get(&handle).ok_or(INVALID_HANDLE)?;
    Ok(inner.graphs[graph]
        .nodes
        .iter()
        .filter(|n| n.before.contains(&handle))
        .map(|n| n.handle)
        .collect())
}

fn replace_kind(handle: u64, same: impl Fn(&NodeKind) -> bool, kind: NodeKind) -> R {
    let driver = state::driver()?;
    let inner = &mut *driver.lock();
    let node = node_mut(inner, handle)?;
    if !same(&node.kind) {
        return Err(INVALID_VALUE);
    }
    node.kind = kind;
    Ok(())
}

api! {
    fn cuGraphCreate(out: *mut u64, flags: c_uint) {
        let driver = state::driver()?;
        if flags != 0 || out.is_null() {
            return Err(INVALID_VALUE);
        }
        let inner = &mut *driver.lock();
        let handle = inner.id();
        inner.graphs.insert(handle, Graph::default());
        put(out, handle)
    }
    fn cuGraphDestroy(graph: u64) {
        let driver = state::driver()?;
        let inner = &mut *driver.lock();
        if !inner.graphs.contains_key(&graph) {
            return Err(INVALID_VALUE);
        }
        destroy(inner, graph);
        Ok(())
    }
    fn cuGraphClone(out: *mut u64, graph: u64) {
        let driver = state::driver()?;
        let copy = duplicate(&mut driver.lock(), graph)?;
        put(out, copy)
    }
    fn cuGraphAddKernelNode(out: *mut u64, graph: u64, before: *const u64, count: usize, params: *const [u64; 7]) {
        append(out, graph, before, count, |_, _| kernel_params(params))
    }
    fn cuGraphAddKernelNode_v2(out: *mut u64, graph: u64, before: *const u64, count: usize, params: *const [u64; 9]) {
        append(out, graph, before, count, |_, _| kernel_params_v2(params))
    }
    fn cuGraphKernelNodeGetParams(node_: u64, out: *mut u64) {
        let driver = state::driver()?;
        put_kernel(out, &node(&driver.lock(), node_)?.kind, 7)
    }
    fn cuGraphKernelNodeGetParams_v2(node_: u64, out: *mut u64) {
        let driver = state::driver()?;
        put_kernel(out, &node(&driver.lock(), node_)?.kind, 9)
    }
    fn cuGraphKernelNodeSetParams(node_: u64, params: *const [u64; 7]) {
        replace_kind(node_, |k| matches!(k, NodeKind::Kernel { .. }), kernel_params(params)?)
    }
    fn cuGraphKernelNodeSetParams_v2(node_: u64, params: *const [u64; 9]) {
        replace_kind(node_, |k| matches!(k, NodeKind::Kernel { .. }), kernel_params_v2(params)?)
    }
    fn cuGraphKernelNodeCopyAttributes(to: u64, from: u64) {
        let driver = state::driver()?;
        let inner = driver.lock();
        node(&inner, to)?;
        node(&inner, from).map(|_| ())
    }
    fn cuGraphKernelNodeGetAttribute(node_: u64, number: c_uint, out: *mut [u64; 8]) {
        let _ = number;
        let driver = state::driver()?;
        node(&driver.lock(), node_)?;
        put(out, [0; 8])
    }
    fn cuGraphKernelNodeSetAttribute(node_: u64, number: c_uint, value: *const [u64; 8]) {
        let _ = (number, get(value)?);
        let driver = state::driver()?;
        node(&driver.lock(), node_).map(|_| ())
    }
    fn cuGraphAddMemcpyNode(out: *mut u64, graph: u64, before: *const u64, count: usize, params: *const [u64; 25], context: u64) {
        let _ = context;
        let words = get(params)?;
        append(out, graph, before, count, |_, inner| {
            Ok(NodeKind::Copy { operation: copy::block(inner, &words)? })
        })
    }
    fn cuGraphMemcpyNodeSetParams(node_: u64, params: *const [u64; 25]) {
        let driver = state::driver()?;
        let operation = copy::block(&driver.lock(), &get(params)?)?;
        replace_kind(node_, |k| k.number() == 1, NodeKind::Copy { operation })
    }
    fn cuGraphAddMemsetNode(out: *mut u64, graph: u64, before: *const u64, count: usize, params: *const [u64; 5], context: u64) {
        let _ = context;
        append(out, graph, before, count, |_, _| {
            Ok(NodeKind::Copy { operation: memset_params(params)? })
        })
    }
    fn cuGraphMemsetNodeGetParams(node_: u64, out: *mut [u64; 5]) {
        let driver = state::driver()?;
        match node(&driver.lock(), node_)?.kind {
            NodeKind::Copy { operation: Operation::Fill { to, pitch, value, element, width, height }, .. } => {
                put(out, [to, pitch, u64::from(value) | (u64::from(element) << 32), width, height])
            }
            _ => Err(INVALID_VALUE),
        }
    }
    fn cuGraphMemsetNodeSetParams(node_: u64, params: *const [u64; 5]) {
        replace_kind(node_, |k| k.number() == 2, NodeKind::Copy { operation: memset_params(params)? })
    }
    fn cuGraphAddHostNode(out: *mut u64, graph: u64, before: *const u64, count: usize, params: *const (HostFunction, usize)) {
        append(out, graph, before, count, |_, _| host_params(params))
    }
    fn cuGraphHostNodeGetParams(node_: u64, out: *mut (HostFunction, usize)) {
        let driver = state::driver()?;
        match node(&driver.lock(), node_)?.kind {
            NodeKind::Host { function, data } => put(out, (Some(function), data)),
            _ => Err(INVALID_VALUE),
        }
    }
    fn cuGraphHostNodeSetParams(node_: u64, params: *const (HostFunction, usize)) {
        replace_kind(node_, |k| k.number() == 3, host_params(params)?)
    }
    fn cuGraphAddChildGraphNode(out: *mut u64, graph: u64, before: *const u64, count: usize, child: u64) {
        append(out, graph, before, count, |_, inner| Ok(NodeKind::Child { graph: duplicate(inner, child)? }))
    }
    fn cuGraphChildGraphNodeGetGraph(node_: u64, out: *mut u64) {
        let driver = state::driver()?;
        match node(&driver.lock(), node_)?.kind {
            NodeKind::Child { graph } => put(out, graph),
            _ => Err(INVALID_VALUE),
        }
    }
    fn cuGraphAddEmptyNode(out: *mut u64, graph: u64, before: *const u64, count: usize) {
        append(out, graph, before, count, |_, _| Ok(NodeKind::Empty))
    }
    fn cuGraphAddEventRecordNode(out: *mut u64, graph: u64, before: *const u64, count: usize, event: u64) {
        append(out, graph, before, count, |_, _| Ok(NodeKind::EventRecord { event }))
    }
    fn cuGraphAddEventWaitNode(out: *mut u64, graph: u64, before: *const u64, count: usize, event: u64) {
        append(out, graph, before, count, |_, _| Ok(NodeKind::EventWait { event }))
    }
    fn cuGraphEventRecordNodeGetEvent(node_: u64, out: *mut u64) {
        let driver = state::driver()?;
        match node(&driver.lock(), node_)?.kind {
            NodeKind::EventRecord { event } => put(out, event),
            _ => Err(INVALID_VALUE),
        }
    }
    fn cuGraphEventWaitNodeGetEvent(node_: u64, out: *mut u64) {
        let driver = state::driver()?;
        match node(&driver.lock(), node_)?.kind {
            NodeKind::EventWait { event } => put(out, event),
            _ => Err(INVALID_VALUE),
        }
    }
    fn cuGraphAddMemAllocNode(out: *mut u64, graph: u64, before: *const u64, count: usize, params: *mut [u64; 15]) {
        append(out, graph, before, count, |driver, inner| alloc_params(driver, inner, params))
    }
    fn cuGraphMemAllocNodeGetParams(node_: u64, out: *mut [u64; 15]) {
        let driver = state::driver()?;
        match node(&driver.lock(), node_)?.kind {
            NodeKind::Alloc { device, size, address } => {
                let mut w = [0u64; 15];
                w[0] = 1;
                w[1] = 1 | ((device as u64) << 32);
                w[13] = size;
                w[14] = address;
                put(out, w)
            }
            _ => Err(INVALID_VALUE),
        }
    }
    fn cuGraphAddMemFreeNode(out: *mut u64, graph: u64, before: *const u64, count: usize, address: u64) {
        append(out, graph, before, count, |_, _| Ok(NodeKind::Free { address }))
    }
    fn cuGraphMemFreeNodeGetParams(node_: u64, out: *mut u64) {
        let driver = state::driver()?;
        match node(&driver.lock(), node_)?.kind {
            NodeKind::Free { address } => put(out, address),
            _ => Err(INVALID_VALUE),
        }
    }
    fn cuGraphAddNode(out: *mut u64, graph: u64, before: *const u64, count: usize, params: *mut [u64; 32]) {
        append(out, graph, before, count, |driver, inner| any_params(driver, inner, params))
    }
    fn cuGraphAddNode_v2(out: *mut u64, graph: u64, before: *const u64, data: *const u64, count: usize, params: *mut [u64; 32]) {
        let _ = data;
        append(out, graph, before, count, |driver, inner| any_params(driver, inner, params))
    }
    fn cuGraphGetNodes(graph: u64, out: *mut u64, count: *mut usize) {
        let driver = state::driver()?;
        let inner = driver.lock();
        let all: Vec<u64> = inner.graphs.get(&graph).ok_or(INVALID_HANDLE)?.nodes.iter().map(|n| n.handle).collect();
        put_list(out, count, &all)
    }
    fn cuGraphGetRootNodes(graph: u64, out: *mut u64, count: *mut usize) {
        let driver = state::driver()?;
        let inner = driver.lock();
        let all: Vec<u64> = inner.graphs.get(&graph).ok_or(INVALID_HANDLE)?.nodes.iter().filter(|n| n.before.is_empty()).map(|n| n.handle).collect();
        put_list(out, count, &all)
    }
    fn cuGraphGetEdges(graph: u64, from: *mut u64, to: *mut u64, count: *mut usize) {
        put_edges(graph, from, to, std::ptr::null_mut(), count)
    }
    fn cuGraphGetEdges_v2(graph: u64, from: *mut u64, to: *mut u64, data: *mut u64, count: *mut usize) {
        put_edges(graph, from, to, data, count)
    }
    fn cuGraphNodeGetDependencies(node_: u64, out: *mut u64, count: *mut usize) {
        let driver = state::driver()?;
        put_list(out, count, &node(&driver.lock(), node_)?.before)
    }
    fn cuGraphNodeGetDependencies_v2(node_: u64, out: *mut u64, data: *mut u64, count: *mut usize) {
        let driver = state::driver()?;
        put_nodes(out, data, count, &node(&driver.lock(), node_)?.before)
    }
    fn cuGraphNodeGetDependentNodes(node_: u64, out: *mut u64, count: *mut usize) {
        let driver = state::driver()?;
        put_list(out, count, &after(&driver.lock(), node_)?)
    }
    fn cuGraphNodeGetDependentNodes_v2(node_: u64, out: *mut u64, data: *mut u64, count: *mut usize) {
        let driver = state::driver()?;
        put_nodes(out, data, count, &after(&driver.lock(), node_)?)
    }
    fn cuGraphNodeGetType(node_: u64, out: *mut c_uint) {
        let driver = state::driver()?;
        put(out, node(&driver.lock(), node_)?.kind.number())
    }
    fn cuGraphAddDependencies(graph: u64, from: *const u64, to: *const u64, count: usize) { connect(graph, from, to, count, true) }
    fn cuGraphAddDependencies_v2(graph: u64, from: *const u64, to: *const u64, data: *const u64, count: usize) {
        let _ = data;
        connect(graph, from, to, count, true)
    }
    fn cuGraphRemoveDependencies(graph: u64, from: *const u64, to: *const u64, count: usize) { connect(graph, from, to, count, false) }
    fn cuGraphRemoveDependencies_v2(graph: u64, from: *const u64, to: *const u64, data: *const u64, count: usize) {
        let _ = data;
        connect(graph, from, to, count, false)
    }
    fn cuGraphDestroyNode(node_: u64) {
        let driver = state::driver()?;
        let inner = &mut *driver.lock();
        let graph = inner.nodes.remove(&node_).ok_or(INVALID_HANDLE)?;
        if let Some(graph) = inner.graphs.get_mut(&graph) {
            graph.nodes.retain(|n| n.handle != node_);
            for node in &mut graph.nodes {
                node.before.retain(|b| *b != node_);
            }
        }
        Ok(())
    }
    fn cuGraphNodeFindInClone(out: *mut u64, original: u64, clone: u64) {
        let driver = state::driver()?;
        let inner = driver.lock();
        let graph = inner.graphs.get(&clone).ok_or(INVALID_HANDLE)?;
        let found = graph.nodes.iter().find(|n| n.origin == original).ok_or(INVALID_VALUE)?;
        put(out, found.handle)
    }
    fn cuGraphDebugDotPrint(graph: u64, path: *const c_char, flags: c_uint) {
        let _ = flags;
        let driver = state::driver()?;
        let inner = driver.lock();
        let entry = inner.graphs.get(&graph).ok_or(INVALID_HANDLE)?;
        let mut dot = String::from("digraph {\n");
        for node in &entry.nodes {
            dot.push_str(&format!("  n{} [label=\"{}\"];\n", node.handle, node.kind.number()));
        }
        let (from, to) = edges(entry);
        for (a, b) in from.iter().zip(&to) {
            dot.push_str(&format!("  n{a} -> n{b};\n"));
        }
        dot.push_str("}\n");
        std::fs::write(text(path)?, dot).map_err(|_| crate::abi::OPERATING_SYSTEM)
    }
    fn cuUserObjectCreate(out: *mut u64, pointer: usize, destroy_: Option<unsafe extern "C" fn(*mut c_void)>, count: c_uint, flags: c_uint) {
        let _ = (pointer, destroy_, count, flags);
        let driver = state::driver()?;
        // The object lives as long as the process: its destructor is never due.
        let handle = driver.lock().id();
        put(out, handle)
    }
    fn cuUserObjectRetain(object: u64, count: c_uint) { let _ = (object, count); state::driver().map(|_| ()) }
    fn cuUserObjectRelease(object: u64, count: c_uint) { let _ = (object, count); state::driver().map(|_| ()) }
    fn cuGraphRetainUserObject(graph: u64, object: u64, count: c_uint, flags: c_uint) {
        let _ = (object, count, flags);
        let driver = state::driver()?;
        driver.lock().graphs.get(&graph).map(|_| ()).ok_or(INVALID_HANDLE)
    }
    fn cuGraphReleaseUserObject(graph: u64, object: u64, count: c_uint) {
        let _ = (object, count);
        let driver = state::driver()?;
        driver.lock().graphs.get(&graph).map(|_| ()).ok_or(INVALID_HANDLE)
    }
    fn cuGraphMemcpyNodeGetParams(node_: u64, out: *mut [u64; 25]) {
        let driver = state::driver()?;
        put_wanted(out, [0; 25]);
        node(&driver.lock(), node_)?;
        Err(NOT_SUPPORTED)
    }
}
