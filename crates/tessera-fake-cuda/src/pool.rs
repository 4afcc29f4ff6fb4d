//! Stream-ordered memory: pools, and the memory of graphs.

use std::ffi::{c_int, c_uint, c_void};

use crate::abi::{INVALID_HANDLE, INVALID_VALUE, NOT_SUPPORTED, OUT_OF_MEMORY, R, Res, get, list, put};
use crate::capture;
use crate::graph::NodeKind;
use crate::state::{self, Driver, Inner, Kind};
use crate::stream;

/// One pool.
#[derive(Clone, Debug)]
pub(crate) struct MemPool {
    pub(crate) device: usize,
    is_default: bool,
    reserved: u64,
    reserved_high: u64,
    used: u64,
    used_high: u64,
    threshold: u64,
    max: u64,
    reuse: [c_int; 3],
    handle_types: u32,
}

impl MemPool {
    pub(crate) fn new(device: usize, is_default: bool) -> Self {
        Self {
            device,
            is_default,
            reserved: 0,
            reserved_high: 0,
            used: 0,
            used_high: 0,
            threshold: 0,
            max: 0,
            reuse: [1; 3],
            handle_types: 0,
        }
    }
}

/// Memory that the graphs of a device hold.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct GraphMemory {
    used: u64,
    used_high: u64,
    reserved: u64,
    reserved_high: u64,
}

fn rounded(size: u64) -> u64 {
    size.max(1).next_multiple_of(512)
}

impl Driver {
    /// Takes device memory; when the card is full, what pools of this process only keep goes
    /// back first.
    pub(crate) fn grow(&self, inner: &mut Inner, device: usize, bytes: u64) -> R {
        self.charge(device, bytes).or_else(|code| {
            let pools: Vec<u64> = inner.pools.keys().copied().collect();
            for pool in pools {
                self.trim_pool(inner, pool, 0);
            }
            self.trim_graphs(inner, device);
            self.charge(device, bytes).map_err(|_| code)
        })
    }

    fn pool_take(&self, inner: &mut Inner, handle: u64, size: u64) -> R {
        let pool = inner.pools.get(&handle).ok_or(INVALID_HANDLE)?.clone();
        let used = pool.used.checked_add(rounded(size)).ok_or(OUT_OF_MEMORY)?;
        if pool.max > 0 && used > pool.max {
            return Err(OUT_OF_MEMORY);
        }
        let mut reserved = pool.reserved;
        if used > reserved {
            let more = (used - reserved).next_multiple_of(self.machine.granule_bytes());
            self.grow(inner, pool.device, more)?;
            // Growing may have trimmed this pool too.
            reserved = inner.pools.get(&handle).map_or(0, |p| p.reserved) + more;
            if reserved < used {
                let rest = (used - reserved).next_multiple_of(self.machine.granule_bytes());
                if let Err(code) = self.charge(pool.device, rest) {
                    self.discharge(pool.device, more);
                    return Err(code);
                }
                reserved += rest;
            }
        }
        if let Some(pool) = inner.pools.get_mut(&handle) {
            pool.reserved = reserved;
            pool.reserved_high = pool.reserved_high.max(reserved);
            pool.used = used;
            pool.used_high = pool.used_high.max(used);
        }
        Ok(())
    }

    /// Takes an allocation out of a pool's used bytes; its memory stays in the pool.
    pub(crate) fn pool_release(&self, inner: &mut Inner, handle: u64, size: u64) {
        if let Some(pool) = inner.pools.get_mut(&handle) {
            pool.used = pool.used.saturating_sub(rounded(size));
        }
    }

    fn trim_pool(&self, inner: &mut Inner, handle: u64, keep: u64) {
        if let Some(pool) = inner.pools.get_mut(&handle) {
            let target = pool.used.max(keep).next_multiple_of(self.machine.granule_bytes());
            if target < pool.reserved {
                self.discharge(pool.device, pool.reserved - target);
                pool.reserved = target;
            }
        }
    }

    /// What a synchronisation does: pools fall to their threshold.
    pub(crate) fn settle_pools(&self, inner: &mut Inner) {
        let pools: Vec<(u64, u64)> = inner.pools.iter().map(|(h, p)| (*h, p.threshold)).collect();
        for (pool, threshold) in pools {
            self.trim_pool(inner, pool, threshold.min(1 << 50));
        }
    }

    /// Gives back all pool memory of a device whose last context is gone.
    pub(crate) fn drop_pools(&self, inner: &mut Inner, device: usize) {
        let gone: Vec<u64> = inner
            .allocs
            .iter()
            .filter(|(_, a)| a.device == device && matches!(a.kind, Kind::Pool(_) | Kind::Graph))
            .map(|(at, _)| *at)
            .collect();
        for address in gone {
            self.release(inner, address);
        }
        let pools: Vec<u64> = inner
            .pools
            .iter()
            .filter(|(_, p)| p.device == device)
            .map(|(h, _)| *h)
            .collect();
        for pool in pools {
            self.trim_pool(inner, pool, 0);
        }
        self.trim_graphs(inner, device);
    }

    /// Takes memory for a graph's allocation.
    pub(crate) fn graph_take(&self, inner: &mut Inner, device: usize, size: u64) -> R {
        let memory = inner.graph_pools[device];
        let used = memory.used + rounded(size);
        let mut reserved = memory.reserved;
        if used > reserved {
            let more = (used - reserved).next_multiple_of(self.machine.granule_bytes());
            self.charge(device, more)?;
            reserved += more;
        }
        let memory = &mut inner.graph_pools[device];
        memory.used = used;
        memory.reserved = reserved;
        memory.used_high = memory.used_high.max(used);
        memory.reserved_high = memory.reserved_high.max(reserved);
        Ok(())
    }

    /// Takes an allocation out of the graphs' used bytes.
    pub(crate) fn graph_release(&self, inner: &mut Inner, device: usize, size: u64) {
        let memory = &mut inner.graph_pools[device];
        memory.used = memory.used.saturating_sub(rounded(size));
    }

    fn trim_graphs(&self, inner: &mut Inner, device: usize) {
        let memory = &mut inner.graph_pools[device];
        let target = memory.used.next_multiple_of(self.machine.granule_bytes());
        if target < memory.reserved {
            self.discharge(device, memory.reserved - target);
            memory.reserved = target;
        }
    }
}

unsafe fn allocate(out: *mut u64, size: usize, pool: Option<u64>, handle: u64, pt: bool) -> R {
    let driver = state::driver()?;
    if out.is_null() || size == 0 {
        return Err(INVALID_VALUE);
    }
    let inner = &mut *driver.lock();
    let stream = stream::resolve(driver, inner, handle, pt)?;
    let context = inner.streams[&stream].context;
    let device = inner.contexts[&context].device;
    let pool = pool.unwrap_or(inner.current_pools[device]);
    let place = inner.pools.get(&pool).ok_or(INVALID_VALUE)?.device;
    if capture::active(inner, stream)? {
        let address = driver.arena(inner)?.take(size as u64).ok_or(OUT_OF_MEMORY)?;
        let kind = NodeKind::Alloc {
            device: place,
            size: size as u64,
            address,
        };
        capture::record(inner, stream, kind)?;
        // SAFETY: the caller of the entry point vouches for `out`.
        return unsafe { put(out, address) };
    }
    driver.pool_take(inner, pool, size as u64)?;
    let address = driver
        .place(inner, place, context, size as u64, Kind::Pool(pool))
        .inspect_err(|_| driver.pool_release(inner, pool, size as u64))?;
    // SAFETY: as above.
    unsafe { put(out, address) }
}

fn free(address: u64, handle: u64, pt: bool) -> R {
    let driver = state::driver()?;
    let inner = &mut *driver.lock();
    let stream = stream::resolve(driver, inner, handle, pt)?;
    if capture::active(inner, stream)? {
        return capture::record(inner, stream, NodeKind::Free { address }).map(|_| ());
    }
    crate::memory::free(driver, inner, address)
}

unsafe fn attribute(pool: &MemPool, number: c_int, out: *mut c_void) -> R {
    // SAFETY: the caller of the entry point gives a place for the attribute's type.
    unsafe {
        match number {
            1..=3 => put(out.cast::<c_int>(), pool.reuse[number as usize - 1]),
            4 => put(out.cast::<u64>(), pool.threshold),
            5 => put(out.cast::<u64>(), pool.reserved),
            6 => put(out.cast::<u64>(), pool.reserved_high),
            7 => put(out.cast::<u64>(), pool.used),
            8 => put(out.cast::<u64>(), pool.used_high),
            9 => put(out.cast::<c_int>(), 1),
            10 => put(out.cast::<c_int>(), pool.handle_types as c_int),
            11 => put(out.cast::<c_int>(), pool.device as c_int),
            12 => put(out.cast::<c_int>(), 1),
            13 => put(out.cast::<u64>(), pool.max),
            14 => put(out.cast::<c_int>(), 0),
            _ => Err(INVALID_VALUE),
        }
    }
}

fn located(driver: &Driver, location: [c_int; 2]) -> Res<usize> {
    if location[0] != 1 {
        return Err(NOT_SUPPORTED);
    }
    driver.index(location[1])
}

api! {
    fn cuMemAllocAsync(out: *mut u64, size: usize, stream: u64) also cuMemAllocAsync_ptsz {
        allocate(out, size, None, stream, PT)
    }
    fn cuMemAllocFromPoolAsync(out: *mut u64, size: usize, pool: u64, stream: u64) also cuMemAllocFromPoolAsync_ptsz {
        allocate(out, size, Some(pool), stream, PT)
    }
    fn cuMemFreeAsync(address: u64, stream: u64) also cuMemFreeAsync_ptsz { free(address, stream, PT) }
    fn cuMemPoolCreate(out: *mut u64, properties: *const [u32; 22]) {
        let driver = state::driver()?;
        let p = get(properties)?;
        // Allocation type pinned (1), handle types, location (type, id), then the largest size.
        if p[0] != 1 || p[1] & !0xf != 0 {
            return Err(INVALID_VALUE);
        }
        let device = located(driver, [p[2] as c_int, p[3] as c_int])?;
        let mut pool = MemPool::new(device, false);
        pool.handle_types = p[1];
        pool.max = u64::from(p[6]) | (u64::from(p[7]) << 32);
        let inner = &mut *driver.lock();
        let handle = inner.id();
        inner.pools.insert(handle, pool);
        put(out, handle)
    }
    fn cuMemPoolDestroy(handle: u64) {
        let driver = state::driver()?;
        let inner = &mut *driver.lock();
        if inner.pools.get(&handle).ok_or(INVALID_VALUE)?.is_default {
            return Err(INVALID_VALUE);
        }
        // Memory still in use stays until it is freed; here it goes with the pool.
        let gone: Vec<u64> = inner.allocs.iter().filter(|(_, a)| a.kind == Kind::Pool(handle)).map(|(at, _)| *at).collect();
        for address in gone {
            driver.release(inner, address);
        }
        driver.trim_pool(inner, handle, 0);
        if let Some(pool) = inner.pools.remove(&handle)
            && inner.current_pools[pool.device] == handle
        {
            inner.current_pools[pool.device] = inner.default_pools[pool.device];
        }
        Ok(())
    }
    fn cuMemPoolTrimTo(handle: u64, keep: usize) {
        let driver = state::driver()?;
        let inner = &mut *driver.lock();
        inner.pools.get(&handle).ok_or(INVALID_VALUE)?;
        driver.trim_pool(inner, handle, keep as u64);
        Ok(())
    }
    fn cuMemPoolGetAttribute(handle: u64, number: c_int, out: *mut c_void) {
        let driver = state::driver()?;
        let inner = driver.lock();
        attribute(inner.pools.get(&handle).ok_or(INVALID_VALUE)?, number, out)
    }
    fn cuMemPoolSetAttribute(handle: u64, number: c_int, value: *const c_void) {
        let driver = state::driver()?;
        let inner = &mut *driver.lock();
        let pool = inner.pools.get_mut(&handle).ok_or(INVALID_VALUE)?;
        match number {
            1..=3 => pool.reuse[number as usize - 1] = get(value.cast::<c_int>())?,
            4 => pool.threshold = get(value.cast::<u64>())?,
            // The high-water marks can only be put back to what is current.
            6 if get(value.cast::<u64>())? == 0 => pool.reserved_high = pool.reserved,
            8 if get(value.cast::<u64>())? == 0 => pool.used_high = pool.used,
            _ => return Err(INVALID_VALUE),
        }
        Ok(())
    }
    fn cuMemPoolSetAccess(handle: u64, map: *const [c_int; 3], count: usize) {
        let driver = state::driver()?;
        for access in list(map, count)? {
            located(driver, [access[0], access[1]])?;
        }
        driver.lock().pools.get(&handle).map(|_| ()).ok_or(INVALID_VALUE)
    }
    fn cuMemPoolGetAccess(out: *mut c_uint, handle: u64, location: *const [c_int; 2]) {
        let driver = state::driver()?;
        let device = located(driver, get(location)?)?;
        let inner = driver.lock();
        let own = inner.pools.get(&handle).ok_or(INVALID_VALUE)?.device == device;
        put(out, if own { 3 } else { 0 })
    }
    fn cuDeviceGetDefaultMemPool(out: *mut u64, device: c_int) {
        let driver = state::driver()?;
        put(out, driver.lock().default_pools[driver.index(device)?])
    }
    fn cuDeviceGetMemPool(out: *mut u64, device: c_int) {
        let driver = state::driver()?;
        put(out, driver.lock().current_pools[driver.index(device)?])
    }
    fn cuDeviceSetMemPool(device: c_int, handle: u64) {
        let driver = state::driver()?;
        let device = driver.index(device)?;
        let inner = &mut *driver.lock();
        if inner.pools.get(&handle).ok_or(INVALID_VALUE)?.device != device {
            return Err(INVALID_VALUE);
        }
        inner.current_pools[device] = handle;
        Ok(())
    }
    fn cuMemGetDefaultMemPool(out: *mut u64, location: *const [c_int; 2], kind: c_uint) {
        let driver = state::driver()?;
        if kind != 1 {
            return Err(NOT_SUPPORTED);
        }
        put(out, driver.lock().default_pools[located(driver, get(location)?)?])
    }
    fn cuMemGetMemPool(out: *mut u64, location: *const [c_int; 2], kind: c_uint) {
        let driver = state::driver()?;
        if kind != 1 {
            return Err(NOT_SUPPORTED);
        }
        put(out, driver.lock().current_pools[located(driver, get(location)?)?])
    }
    fn cuMemSetMemPool(location: *const [c_int; 2], kind: c_uint, handle: u64) {
        let driver = state::driver()?;
        if kind != 1 {
            return Err(NOT_SUPPORTED);
        }
        let device = located(driver, get(location)?)?;
        let inner = &mut *driver.lock();
        if inner.pools.get(&handle).ok_or(INVALID_VALUE)?.device != device {
            return Err(INVALID_VALUE);
        }
        inner.current_pools[device] = handle;
        Ok(())
    }
    fn cuDeviceGetGraphMemAttribute(device: c_int, number: c_uint, out: *mut u64) {
        let driver = state::driver()?;
        let memory = driver.lock().graph_pools[driver.index(device)?];
        put(out, match number {
            0 => memory.used,
            1 => memory.used_high,
            2 => memory.reserved,
            3 => memory.reserved_high,
            _ => return Err(INVALID_VALUE),
        })
    }
    fn cuDeviceSetGraphMemAttribute(device: c_int, number: c_uint, value: *const u64) {
        let driver = state::driver()?;
        let device = driver.index(device)?;
        if get(value)? != 0 {
            return Err(INVALID_VALUE);
        }
        let memory = &mut driver.lock().graph_pools[device];
        match number {
            1 => memory.used_high = memory.used,
            3 => memory.reserved_high = memory.reserved,
            _ => return Err(INVALID_VALUE),
        }
        Ok(())
    }
    fn cuDeviceGraphMemTrim(device: c_int) {
        let driver = state::driver()?;
        let device = driver.index(device)?;
        driver.trim_graphs(&mut driver.lock(), device);
        Ok(())
    }
}
