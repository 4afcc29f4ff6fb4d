//! Launches and occupancy.

use std::ffi::{c_int, c_uint, c_void};

use crate::abi::{
    COOPERATIVE_TOO_LARGE, INVALID_HANDLE, INVALID_VALUE, LAUNCH_OUT_OF_RESOURCES, R, Res, get, list, put,
};
use crate::capture;
use crate::graph::NodeKind;
use crate::state::{self, Driver, Inner};
use crate::stream;
use crate::timing;

/// Shape of a launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared: u32,
}

impl Shape {
    pub(crate) fn blocks(self) -> u64 {
        self.grid.iter().map(|n| u64::from(*n)).product()
    }

    pub(crate) fn check(self) -> R {
        let threads: u64 = self.block.iter().map(|n| u64::from(*n)).product();
        if self.blocks() == 0 || threads == 0 || self.grid[1] > 65535 || self.grid[2] > 65535 {
            return Err(INVALID_VALUE);
        }
        if threads > 1024 || self.block[2] > 64 {
            return Err(INVALID_VALUE);
        }
        if self.shared > 232_448 {
            return Err(LAUNCH_OUT_OF_RESOURCES);
        }
        Ok(())
    }
}

/// What one launch costs: nanoseconds, SMs, blocks.
pub(crate) fn cost(inner: &Inner, function: u64, shape: Shape, sms: u32) -> Res<(u64, u32, u64)> {
    let entry = inner.functions.get(&function).ok_or(INVALID_HANDLE)?;
    let blocks = shape.blocks();
    let wanted = if entry.sms > 0 {
        entry.sms
    } else {
        u32::try_from(blocks).unwrap_or(u32::MAX)
    };
    Ok((entry.micros * 1000, wanted.min(sms).max(1), blocks))
}

fn start(driver: &Driver, function: u64, shape: Shape, handle: u64, pt: bool, whole: bool) -> R {
    driver.process.launch_time();
    let wait = {
        let inner = &mut *driver.lock();
        let stream = stream::resolve(driver, inner, handle, pt)?;
        shape.check()?;
        let device = inner.contexts[&inner.streams[&stream].context].device;
        let sms = driver.devices[device].sms;
        let (time, wanted, blocks) = cost(inner, function, shape, sms)?;
        if whole && blocks > u64::from(sms) * 32 {
            return Err(COOPERATIVE_TOO_LARGE);
        }
        if capture::active(inner, stream)? {
            return capture::record(inner, stream, NodeKind::Kernel { function, shape }).map(|_| ());
        }
        stream::kernel(driver, inner, stream, time, wanted, blocks)?
    };
    if let Some(until) = wait {
        timing::until(driver, until);
    }
    Ok(())
}

fn launch(function: u64, grid: [u32; 3], block: [u32; 3], shared: u32, stream: u64, pt: bool, whole: bool) -> R {
    let shape = Shape { grid, block, shared };
    start(state::driver()?, function, shape, stream, pt, whole)
}

fn resident(block: c_int) -> Res<c_int> {
    if block <= 0 {
        return Err(INVALID_VALUE);
    }
    Ok((2048 / block.max(64)).clamp(0, 32))
}

unsafe fn potential(grid: *mut c_int, block: *mut c_int, function: u64, limit: c_int) -> R {
    let driver = state::driver()?;
    let inner = &mut *driver.lock();
    let (_, device) = driver.current_device(inner)?;
    if !inner.functions.contains_key(&function) {
        return Err(INVALID_HANDLE);
    }
    let size = if limit > 0 { limit.min(1024) } else { 1024 };
    // SAFETY: arguments of the entry point.
    unsafe {
        put(grid, driver.devices[device].sms as c_int * resident(size)?)?;
        put(block, size)
    }
}

unsafe fn active(out: *mut c_int, function: u64, block: c_int) -> R {
    let driver = state::driver()?;
    let inner = &mut *driver.lock();
    driver.current(inner)?;
    if !inner.functions.contains_key(&function) {
        return Err(INVALID_HANDLE);
    }
    // SAFETY: arguments of the entry point.
    unsafe { put(out, if block > 1024 { 0 } else { resident(block)? }) }
}

api! {
    fn cuLaunchKernel(function: u64, gx: c_uint, gy: c_uint, gz: c_uint, bx: c_uint, by: c_uint, bz: c_uint, shared: c_uint, stream: u64, params: *mut *mut c_void, extra: *mut *mut c_void) also cuLaunchKernel_ptsz {
        let _ = (params, extra);
        launch(function, [gx, gy, gz], [bx, by, bz], shared, stream, PT, false)
    }
    fn cuLaunchKernelEx(config: *const [u64; 7], function: u64, params: *mut *mut c_void, extra: *mut *mut c_void) also cuLaunchKernelEx_ptsz {
        let _ = (params, extra);
        // Grid, block and shared memory are seven 32-bit numbers, then the stream at byte 32.
        let words: [u32; 14] = get(config.cast())?;
        let stream = get(config)?[4];
        launch(function, [words[0], words[1], words[2]], [words[3], words[4], words[5]], words[6], stream, PT, false)
    }
    fn cuLaunchCooperativeKernel(function: u64, gx: c_uint, gy: c_uint, gz: c_uint, bx: c_uint, by: c_uint, bz: c_uint, shared: c_uint, stream: u64, params: *mut *mut c_void) also cuLaunchCooperativeKernel_ptsz {
        let _ = params;
        launch(function, [gx, gy, gz], [bx, by, bz], shared, stream, PT, true)
    }
    fn cuLaunchCooperativeKernelMultiDevice(all: *const [u64; 7], count: c_uint, flags: c_uint) {
        let _ = flags;
        for one in list(all, count as usize)? {
            let half = |i: usize| [one[i] as u32, (one[i] >> 32) as u32];
            let ([gx, gy], [gz, bx], [by, bz]) = (half(1), half(2), half(3));
            launch(one[0], [gx, gy, gz], [bx, by, bz], one[4] as u32, one[5], false, true)?;
        }
        Ok(())
    }
    fn cuLaunch(function: u64) { launch(function, [1; 3], [1; 3], 0, 0, false, false) }
    fn cuLaunchGrid(function: u64, width: c_int, height: c_int) {
        launch(function, [width as u32, height as u32, 1], [1; 3], 0, 0, false, false)
    }
    fn cuLaunchGridAsync(function: u64, width: c_int, height: c_int, stream: u64) {
        launch(function, [width as u32, height as u32, 1], [1; 3], 0, stream, false, false)
    }
    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(out: *mut c_int, function: u64, block: c_int, shared: usize) {
        let _ = shared;
        active(out, function, block)
    }
    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(out: *mut c_int, function: u64, block: c_int, shared: usize, flags: c_uint) {
        let _ = (shared, flags);
        active(out, function, block)
    }
    fn cuOccupancyMaxPotentialBlockSize(grid: *mut c_int, block: *mut c_int, function: u64, shared_of: *const c_void, shared: usize, limit: c_int) {
        let _ = (shared_of, shared);
        potential(grid, block, function, limit)
    }
    fn cuOccupancyMaxPotentialBlockSizeWithFlags(grid: *mut c_int, block: *mut c_int, function: u64, shared_of: *const c_void, shared: usize, limit: c_int, flags: c_uint) {
        let _ = (shared_of, shared, flags);
        potential(grid, block, function, limit)
    }
    fn cuOccupancyAvailableDynamicSMemPerBlock(out: *mut usize, function: u64, blocks: c_int, block: c_int) {
        let _ = block;
        let driver = state::driver()?;
        if blocks <= 0 {
            return Err(INVALID_VALUE);
        }
        driver.lock().functions.get(&function).ok_or(INVALID_HANDLE)?;
        put(out, 98304 / blocks as usize)
    }
    fn cuOccupancyMaxActiveClusters(out: *mut c_int, function: u64, config: *const [u64; 7]) {
        let _ = get(config)?;
        let driver = state::driver()?;
        driver.lock().functions.get(&function).ok_or(INVALID_HANDLE)?;
        put(out, 16)
    }
    fn cuOccupancyMaxPotentialClusterSize(out: *mut c_int, function: u64, config: *const [u64; 7]) {
        let _ = get(config)?;
        let driver = state::driver()?;
        driver.lock().functions.get(&function).ok_or(INVALID_HANDLE)?;
        put(out, 8)
    }
}
