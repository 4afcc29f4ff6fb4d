//! Contexts.

use std::ffi::{c_int, c_uint, c_void};

use crate::abi::{
    INVALID_CONTEXT, INVALID_VALUE, NOT_SUPPORTED, PEER_ALREADY, PEER_NOT_ENABLED, PEER_UNSUPPORTED, Res,
    UNSUPPORTED_LIMIT, get, put, put_wanted,
};
use crate::state::{self, Driver, Inner};

fn retained(driver: &Driver, inner: &mut Inner, device: usize) -> Res<u64> {
    let primary = inner.primaries[device].clone();
    let handle = match primary.context {
        Some(handle) => {
            driver.wake(inner, handle)?;
            handle
        }
        None => driver.create_context(inner, device, primary.flags, true, 3020)?,
    };
    let primary = &mut inner.primaries[device];
    primary.context = Some(handle);
    primary.count += 1;
    Ok(handle)
}

fn release_primary(device: c_int) -> Res<()> {
    let driver = state::driver()?;
    let device = driver.index(device)?;
    let inner = &mut *driver.lock();
    let primary = &mut inner.primaries[device];
    if primary.count == 0 {
        return Err(INVALID_CONTEXT);
    }
    primary.count -= 1;
    if primary.count == 0
        && let Some(handle) = primary.context.take()
    {
        driver.empty_context(inner, handle);
        inner.contexts.remove(&handle);
    }
    Ok(())
}

fn reset_primary(device: c_int) -> Res<()> {
    let driver = state::driver()?;
    let device = driver.index(device)?;
    let inner = &mut *driver.lock();
    if let Some(handle) = inner.primaries[device].context {
        driver.empty_context(inner, handle);
    }
    Ok(())
}

fn set_primary_flags(device: c_int, flags: c_uint) -> Res<()> {
    let driver = state::driver()?;
    let device = driver.index(device)?;
    let inner = &mut *driver.lock();
    inner.primaries[device].flags = flags;
    if let Some(handle) = inner.primaries[device].context
        && let Some(context) = inner.contexts.get_mut(&handle)
    {
        context.flags = flags;
    }
    Ok(())
}

unsafe fn create(out: *mut u64, flags: c_uint, device: c_int, api: u32) -> Res<()> {
    let driver = state::driver()?;
    let device = driver.index(device)?;
    if out.is_null() || flags & !0xff != 0 {
        return Err(INVALID_VALUE);
    }
    let inner = &mut *driver.lock();
    let handle = driver.create_context(inner, device, flags, false, api)?;
    state::push(handle);
    // SAFETY: the caller of the entry point vouches for `out`.
    unsafe { put(out, handle) }
}

fn destroy(handle: u64) -> Res<()> {
    let driver = state::driver()?;
    let inner = &mut *driver.lock();
    let context = inner.contexts.get(&handle).ok_or(INVALID_CONTEXT)?;
    if context.primary {
        return Err(INVALID_CONTEXT);
    }
    driver.empty_context(inner, handle);
    inner.contexts.remove(&handle);
    if state::top() == Some(handle) {
        state::pop();
    }
    Ok(())
}

fn push(context: u64) -> Res<()> {
    let driver = state::driver()?;
    if !driver.lock().contexts.contains_key(&context) {
        return Err(INVALID_CONTEXT);
    }
    state::push(context);
    Ok(())
}

unsafe fn pop(out: *mut u64) -> Res<()> {
    state::driver()?;
    let handle = state::pop().ok_or(INVALID_CONTEXT)?;
    // SAFETY: the caller of the entry point vouches for `out`.
    unsafe { put_wanted(out, handle) };
    Ok(())
}

fn default_limit(limit: c_uint) -> Res<u64> {
    Ok(match limit {
        0 => 1024,    // stack
        1 => 1 << 20, // printf buffer
        2 => 8 << 20, // heap
        3 => 2,       // sync depth
        4 => 2048,    // pending launches
        5 => 64,      // L2 fetch
        6..=9 => 0,
        _ => return Err(UNSUPPORTED_LIMIT),
    })
}

api! {
    fn cuDevicePrimaryCtxRetain(out: *mut u64, device: c_int) {
        let driver = state::driver()?;
        let device = driver.index(device)?;
        if out.is_null() {
            return Err(INVALID_VALUE);
        }
        let handle = retained(driver, &mut driver.lock(), device)?;
        put(out, handle)
    }
    fn cuDevicePrimaryCtxRelease(device: c_int) { release_primary(device) }
    fn cuDevicePrimaryCtxRelease_v2(device: c_int) { release_primary(device) }
    fn cuDevicePrimaryCtxReset(device: c_int) { reset_primary(device) }
    fn cuDevicePrimaryCtxReset_v2(device: c_int) { reset_primary(device) }
    fn cuDevicePrimaryCtxSetFlags(device: c_int, flags: c_uint) { set_primary_flags(device, flags) }
    fn cuDevicePrimaryCtxSetFlags_v2(device: c_int, flags: c_uint) { set_primary_flags(device, flags) }
    fn cuDevicePrimaryCtxGetState(device: c_int, flags: *mut c_uint, active: *mut c_int) {
        let driver = state::driver()?;
        let device = driver.index(device)?;
        let inner = driver.lock();
        let primary = &inner.primaries[device];
        let live = primary
            .context
            .and_then(|h| inner.contexts.get(&h))
            .is_some_and(|c| c.active);
        put_wanted(flags, primary.flags);
        put_wanted(active, c_int::from(live));
        Ok(())
    }
    fn cuCtxCreate_v2(out: *mut u64, flags: c_uint, device: c_int) { create(out, flags, device, 3020) }
    fn cuCtxCreate_v3(out: *mut u64, affinity: *const c_void, count: c_int, flags: c_uint, device: c_int) {
        if count != 0 && affinity.is_null() {
            return Err(INVALID_VALUE);
        }
        create(out, flags, device, 3020)
    }
    fn cuCtxCreate_v4(out: *mut u64, params: *const c_void, flags: c_uint, device: c_int) {
        let _ = params;
        create(out, flags, device, 3020)
    }
    fn cuCtxDestroy(context: u64) { destroy(context) }
    fn cuCtxDestroy_v2(context: u64) { destroy(context) }
    fn cuCtxAttach(out: *mut u64, flags: c_uint) {
        let driver = state::driver()?;
        if flags != 0 {
            return Err(INVALID_VALUE);
        }
        let handle = driver.current(&mut driver.lock())?;
        put(out, handle)
    }
    fn cuCtxPushCurrent(context: u64) { push(context) }
    fn cuCtxPushCurrent_v2(context: u64) { push(context) }
    fn cuCtxPopCurrent(out: *mut u64) { pop(out) }
    fn cuCtxPopCurrent_v2(out: *mut u64) { pop(out) }
    fn cuCtxSetCurrent(context: u64) {
        let driver = state::driver()?;
        if context != 0 && !driver.lock().contexts.contains_key(&context) {
            return Err(INVALID_CONTEXT);
        }
        state::replace(context);
        Ok(())
    }
    fn cuCtxGetCurrent(out: *mut u64) {
        state::driver()?;
        put(out, state::top().unwrap_or(0))
    }
    fn cuCtxGetDevice(out: *mut c_int) {
        let driver = state::driver()?;
        let handle = state::top().ok_or(INVALID_CONTEXT)?;
        let inner = driver.lock();
        let context = inner.contexts.get(&handle).ok_or(INVALID_CONTEXT)?;
        put(out, context.device as c_int)
    }
    fn cuCtxGetDevice_v2(out: *mut c_int, context: u64) {
        let driver = state::driver()?;
        let handle = if context == 0 { state::top().ok_or(INVALID_CONTEXT)? } else { context };
        let inner = driver.lock();
        let context = inner.contexts.get(&handle).ok_or(INVALID_CONTEXT)?;
        put(out, context.device as c_int)
    }
    fn cuCtxGetFlags(out: *mut c_uint) {
        let driver = state::driver()?;
        let inner = &mut *driver.lock();
        let handle = driver.current(inner)?;
        put(out, inner.contexts[&handle].flags)
    }
    fn cuCtxSetFlags(flags: c_uint) {
        let driver = state::driver()?;
        let inner = &mut *driver.lock();
        let handle = driver.current(inner)?;
        if let Some(context) = inner.contexts.get_mut(&handle) {
            context.flags = flags;
        }
        Ok(())
    }
    fn cuCtxGetId(context: u64, out: *mut u64) {
        let driver = state::driver()?;
        let inner = &mut *driver.lock();
        let handle = if context == 0 { driver.current(inner)? } else { context };
        put(out, inner.contexts.get(&handle).ok_or(INVALID_CONTEXT)?.id)
    }
    fn cuCtxGetApiVersion(context: u64, out: *mut c_uint) {
        let driver = state::driver()?;
        let inner = &mut *driver.lock();
        let handle = if context == 0 { driver.current(inner)? } else { context };
        put(out, inner.contexts.get(&handle).ok_or(INVALID_CONTEXT)?.api_version)
    }
    fn cuCtxSynchronize() { crate::stream::synchronize_context(None) }
    fn cuCtxSynchronize_v2(context: u64) {
        crate::stream::synchronize_context((context != 0).then_some(context))
    }
    fn cuCtxGetLimit(out: *mut usize, limit: c_uint) {
        let driver = state::driver()?;
        let inner = &mut *driver.lock();
        let handle = driver.current(inner)?;
        let preset = default_limit(limit)?;
        let value = inner.contexts[&handle].limits.get(&limit).copied().unwrap_or(preset);
        put(out, value as usize)
    }
    fn cuCtxSetLimit(limit: c_uint, value: usize) {
        let driver = state::driver()?;
        let inner = &mut *driver.lock();
        let handle = driver.current(inner)?;
        default_limit(limit)?;
        if let Some(context) = inner.contexts.get_mut(&handle) {
            context.limits.insert(limit, value as u64);
        }
        Ok(())
    }
    fn cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) {
        let driver = state::driver()?;
        driver.current(&mut driver.lock())?;
        put_wanted(least, 0);
        put_wanted(greatest, -5);
        Ok(())
    }
    fn cuCtxGetCacheConfig(out: *mut c_int) {
        let driver = state::driver()?;
        let inner = &mut *driver.lock();
        let handle = driver.current(inner)?;
        put(out, inner.contexts[&handle].cache_config)
    }
    fn cuCtxSetCacheConfig(config: c_int) {
        let driver = state::driver()?;
        let inner = &mut *driver.lock();
        let handle = driver.current(inner)?;
        if let Some(context) = inner.contexts.get_mut(&handle) {
            context.cache_config = config;
        }
        Ok(())
    }
    fn cuCtxGetSharedMemConfig(out: *mut c_int) {
        let driver = state::driver()?;
        let inner = &mut *driver.lock();
        let handle = driver.current(inner)?;
        put(out, inner.contexts[&handle].shared_config)
    }
    fn cuCtxSetSharedMemConfig(config: c_int) {
        let driver = state::driver()?;
        let inner = &mut *driver.lock();
        let handle = driver.current(inner)?;
        if let Some(context) = inner.contexts.get_mut(&handle) {
            context.shared_config = config;
        }
        Ok(())
    }
    fn cuCtxResetPersistingL2Cache() {
        let driver = state::driver()?;
        driver.current(&mut driver.lock())?;
        Ok(())
    }
    fn cuCtxGetExecAffinity(out: *mut [u32; 2], kind: c_uint) {
        let driver = state::driver()?;
        let inner = &mut *driver.lock();
        let (_, device) = driver.current_device(inner)?;
        if kind != 0 {
            return Err(NOT_SUPPORTED);
        }
        put(out, [0, driver.devices[device].sms])
    }
    fn cuCtxEnablePeerAccess(peer: u64, flags: c_uint) {
        let driver = state::driver()?;
        let inner = &mut *driver.lock();
        let (handle, device) = driver.current_device(inner)?;
        if flags != 0 {
            return Err(INVALID_VALUE);
        }
        let other = inner.contexts.get(&peer).ok_or(INVALID_CONTEXT)?.device;
        if other == device || !crate::device::peers(driver, device, other) {
            return Err(PEER_UNSUPPORTED);
        }
        let context = inner.contexts.get_mut(&handle).ok_or(INVALID_CONTEXT)?;
        if context.peers.contains(&peer) {
            return Err(PEER_ALREADY);
        }
        context.peers.push(peer);
        Ok(())
    }
    fn cuCtxDisablePeerAccess(peer: u64) {
        let driver = state::driver()?;
        let inner = &mut *driver.lock();
        let handle = driver.current(inner)?;
        let context = inner.contexts.get_mut(&handle).ok_or(INVALID_CONTEXT)?;
        let before = context.peers.len();
        context.peers.retain(|p| *p != peer);
        if context.peers.len() == before { Err(PEER_NOT_ENABLED) } else { Ok(()) }
    }
    fn cuCtxDetach(context: u64) {
        let driver = state::driver()?;
        let primary = driver.lock().contexts.get(&context).ok_or(INVALID_CONTEXT)?.primary;
        if primary { Ok(()) } else { destroy(context) }
    }
    fn cuDeviceGetExecAffinitySupport(out: *mut c_int, kind: c_uint, device: c_int) {
        state::driver()?.device(device)?;
        put(out, c_int::from(kind == 0))
    }
    fn cuProfilerStart() { let d = state::driver()?; d.current(&mut d.lock())?; Ok(()) }
    fn cuProfilerStop() { let d = state::driver()?; d.current(&mut d.lock())?; Ok(()) }
    fn cuCtxGetDevResource(context: u64, resource: *mut [u32; 36], kind: c_uint) {
        let driver = state::driver()?;
        let inner = &mut *driver.lock();
        let handle = if context == 0 { driver.current(inner)? } else { context };
        let device = inner.contexts.get(&handle).ok_or(INVALID_CONTEXT)?.device;
        if kind != 1 {
            return Err(crate::abi::NOT_SUPPORTED);
        }
        let _ = get(resource)?;
        let mut words = [0u32; 36];
        words[0] = 1;
        words[24] = driver.devices[device].sms;
        put(resource, words)
    }
    fn cuDevResourceGenerateDesc(out: *mut u64, resources: *const [u32; 36], count: c_uint) {
        let driver = state::driver()?;
        if out.is_null() || count != 1 {
            return Err(INVALID_VALUE);
        }
        let words = get(resources)?;
        if words[0] != 1 || words[24] == 0 {
            return Err(INVALID_VALUE);
        }
        let inner = &mut *driver.lock();
        let handle = inner.id();
        inner.resources.insert(handle, words[24]);
        put(out, handle)
    }
    // A context of its own on part of the card; what it takes of memory is what any context takes.
    fn cuGreenCtxCreate(out: *mut u64, description: u64, device: c_int, flags: c_uint) {
        let driver = state::driver()?;
        let device = driver.index(device)?;
        let inner = &mut *driver.lock();
        let sms = *inner.resources.get(&description).ok_or(INVALID_VALUE)?;
        if out.is_null() || flags != 1 || sms > driver.devices[device].sms {
            return Err(INVALID_VALUE);
        }
        let handle = driver.create_context(inner, device, 0, false, 12040)?;
        put(out, handle)
    }
    fn cuGreenCtxDestroy(context: u64) { destroy(context) }
    fn cuCtxFromGreenCtx(out: *mut u64, context: u64) {
        let driver = state::driver()?;
        if !driver.lock().contexts.contains_key(&context) {
            return Err(INVALID_CONTEXT);
        }
        put(out, context)
    }
}
