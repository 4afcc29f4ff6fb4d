//! Event sets.

use std::collections::HashMap;
use std::ffi::c_uint;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::abi::{INVALID_ARGUMENT, R, Res, TIMEOUT, put};
use crate::state::{self, Device, card_handle};

/// Single and double bit errors, performance state, XID, clock.
const SUPPORTED: u64 = 1 | 2 | 4 | 8 | 16;

#[derive(Default)]
struct EventSet {
    /// Number of the last event that was looked at.
    cursor: u64,
    cards: Vec<(usize, u64)>,
}

#[derive(Default)]
struct Sets {
    next: u64,
    open: Option<HashMap<u64, Arc<Mutex<EventSet>>>>,
}

static SETS: Mutex<Sets> = Mutex::new(Sets { next: 0, open: None });

fn find(handle: u64) -> Res<Arc<Mutex<EventSet>>> {
    let sets = SETS.lock().unwrap_or_else(|e| e.into_inner());
    sets.open
        .as_ref()
        .and_then(|o| o.get(&handle))
        .cloned()
        .ok_or(INVALID_ARGUMENT)
}

/// What a waiter gets; the first form ends before the instance.
#[repr(C)]
#[derive(Clone, Copy)]
struct EventData {
    device: u64,
    kind: u64,
    data: u64,
    instance: u32,
    compute: u32,
}

fn wait(handle: u64, timeout_ms: c_uint) -> Res<EventData> {
    let machine = state::machine()?;
    let set = find(handle)?;
    let mut cursor = set.lock().unwrap_or_else(|e| e.into_inner()).cursor;
    let timeout = if timeout_ms == c_uint::MAX {
        Duration::MAX
    } else {
        Duration::from_millis(u64::from(timeout_ms))
    };
    let event = machine.next_event(&mut cursor, timeout, &|event| {
        let set = set.lock().unwrap_or_else(|e| e.into_inner());
        set.cards
            .iter()
            .any(|(card, kinds)| *card == event.card && kinds & event.kind != 0)
    });
    let mut set = set.lock().unwrap_or_else(|e| e.into_inner());
    set.cursor = set.cursor.max(cursor);
    let event = event.ok_or(TIMEOUT)?;
    Ok(EventData {
        device: card_handle(event.card),
        kind: event.kind,
        data: u64::from(event.data),
        instance: u32::MAX,
        compute: u32::MAX,
    })
}

fn register(device: u64, kinds: u64, handle: u64) -> R {
    let device = Device::whole(device)?;
    let set = find(handle)?;
    if kinds & !SUPPORTED != 0 {
        return Err(crate::abi::NOT_SUPPORTED);
    }
    let mut set = set.lock().unwrap_or_else(|e| e.into_inner());
    if set.cards.is_empty() {
        // Events of before the registration are not delivered.
        set.cursor = device.machine.event_seq();
    }
    set.cards.push((device.card, kinds));
    Ok(())
}

api! {
    fn nvmlEventSetCreate(out: *mut u64) {
        state::machine()?;
        if out.is_null() {
            return Err(INVALID_ARGUMENT);
        }
        let mut sets = SETS.lock().unwrap_or_else(|e| e.into_inner());
        sets.next += 1;
        let handle = 0x4e45_0000_0000 + sets.next * 16;
        sets.open.get_or_insert_default().insert(handle, Arc::default());
        put(out, handle)
    }
    fn nvmlEventSetFree(set: u64) {
        let mut sets = SETS.lock().unwrap_or_else(|e| e.into_inner());
        sets.open.as_mut().and_then(|o| o.remove(&set)).map(|_| ()).ok_or(INVALID_ARGUMENT)
    }
    fn nvmlDeviceGetSupportedEventTypes(device: u64, out: *mut u64) {
        Device::whole(device)?;
        put(out, SUPPORTED)
    }
    fn nvmlDeviceRegisterEvents(device: u64, kinds: u64, set: u64) { register(device, kinds, set) }
    fn nvmlEventSetWait(set: u64, out: *mut [u64; 3], timeout_ms: c_uint) {
        if out.is_null() {
            return Err(INVALID_ARGUMENT);
        }
        let event = wait(set, timeout_ms)?;
        put(out, [event.device, event.kind, event.data])
    }
    fn nvmlEventSetWait_v2(set: u64, out: *mut EventData, timeout_ms: c_uint) {
        if out.is_null() {
            return Err(INVALID_ARGUMENT);
        }
        put(out, wait(set, timeout_ms)?)
    }
}
