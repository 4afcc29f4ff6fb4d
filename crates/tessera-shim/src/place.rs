//! Where a call's memory would go: a card that counts, one that does not, or one that is not granted.

use core::sync::atomic::Ordering;

use crate::{
    codes::{NOT_PERMITTED, OUT_OF_MEMORY, SUCCESS},
    memory::pool,
    process::{Card, Process, process},
    symbol::{cuCtxGetCurrent, cuCtxGetDevice, cuDeviceGetUuid, cuDeviceGetUuid_v2},
};

/// What a hook does with a call.
#[derive(Clone, Copy)]
pub(crate) enum Place {
    /// The card's ledger is asked.
    Counted(&'static Process, Card),
    /// The driver is called and nothing else happens.
    Forward,
    /// The caller gets this code.
    Refused(i32),
}

const UNKNOWN: u8 = 0;
const NOT_GRANTED: u8 = u8::MAX;

/// The place of the calling thread's current context.
pub(crate) fn current() -> Place {
    let mut device = -1;
    // SAFETY: a place for the answer.
    if unsafe { cuCtxGetDevice(&raw mut device) } != SUCCESS {
        // No context: the driver has its own code for that, a different one per call.
        return Place::Forward;
    }
    of_device(device)
}

/// The place of a device number.
pub(crate) fn of_device(device: i32) -> Place {
    let Ok(process) = process() else {
        return Place::Refused(NOT_PERMITTED);
    };
    match card_of_device(process, device) {
        Some(Some(card)) if process.is_unlimited(card) => Place::Forward,
        Some(Some(card)) => Place::Counted(process, card),
        Some(None) => Place::Refused(NOT_PERMITTED),
        None => Place::Forward,
    }
}

/// The card of a device number: nothing when the driver has no such device, `Some(None)` when it is not granted.
fn card_of_device(process: &Process, device: i32) -> Option<Option<Card>> {
    let memo = process.device_memo(device);
    match memo.map_or(UNKNOWN, |memo| memo.load(Ordering::Relaxed)) {
        UNKNOWN => {}
        NOT_GRANTED => return Some(None),
        card => return Some(usize::from(card).checked_sub(1).map(Card)),
    }
    let mut uuid = [0; 16];
    // SAFETY: a place for the answer, in both calls. The second form names an instance, the first its card.
    let known = unsafe {
        cuDeviceGetUuid_v2(&raw mut uuid, device) == SUCCESS || cuDeviceGetUuid(&raw mut uuid, device) == SUCCESS
    };
    if !known {
        return None;
    }
    let card = (0..process.card_count())
        .map(Card)
        .find(|card| uuid_bytes(process.uuid(*card)) == Some(uuid));
    if let Some(memo) = memo {
        let value = card
            .and_then(|card| u8::try_from(card.0.saturating_add(1)).ok())
            .unwrap_or(NOT_GRANTED);
        memo.store(value, Ordering::Relaxed);
    }
    Some(card)
}

/// The sixteen bytes of `GPU-` or `MIG-` and 32 hexadecimal digits in groups.
fn uuid_bytes(text: &str) -> Option<[u8; 16]> {
    let digits = text.get(4..)?.bytes().filter(|&byte| byte != b'-');
    let mut bytes = [0; 16];
    let mut count = 0_usize;
    for digit in digits {
        let value = u8::try_from(char::from(digit).to_digit(16)?).ok()?;
        let place = bytes.get_mut(count / 2)?;
        *place = (*place << 4) | value;
        count = count.saturating_add(1);
    }
    (count == 32).then_some(bytes)
}

/// The calling thread's current context; 0 for none.
pub(crate) fn current_context() -> u64 {
    let mut context = 0;
    // SAFETY: a place for the answer.
    unsafe { cuCtxGetCurrent(&raw mut context) };
    context
}

/// The driver grants large requests in units of 2 MiB.
const GRANULE: u64 = 2 << 20;

/// What a request of this size takes: from 2 MiB on, whole units.
pub(crate) fn rounded(bytes: u64) -> Option<u64> {
    if bytes < GRANULE {
        Some(bytes)
    } else {
        bytes.checked_next_multiple_of(GRANULE)
    }
}

impl Process {
    /// Reserves memory for a request; what is booked. On refusal the code for the caller, and nothing is booked.
    ///
    /// A request that fits to the byte but not in whole units is booked to the byte: at most one unit of the card is
    /// then used beyond the limit, and nothing that fits is refused.
    pub(crate) fn reserve(&self, card: Card, bytes: u64) -> Result<u64, i32> {
        self.refresh();
        let Some((account, slot)) = self.account() else {
            return Err(NOT_PERMITTED);
        };
        let whole = rounded(bytes).ok_or(OUT_OF_MEMORY)?;
        let attempt = |bytes| account.reserve(slot, card.0, bytes, self.hard_limit(card)).is_ok();
        if attempt(whole) {
            return Ok(whole);
        }
        // What cannot fit in an empty card needs no search for memory to take back.
        if bytes > self.hard_limit(card) {
            return Err(OUT_OF_MEMORY);
        }
        pool::give_unused_back(self, card);
        if attempt(whole) {
            return Ok(whole);
        }
        self.reap();
        if attempt(whole) {
            Ok(whole)
        } else if attempt(bytes) {
            Ok(bytes)
        } else {
            Err(OUT_OF_MEMORY)
        }
    }

    /// Reserves exactly these bytes without searching for more.
    pub(crate) fn reserve_exactly(&self, card: Card, bytes: u64) -> bool {
        self.account()
            .is_some_and(|(account, slot)| account.reserve(slot, card.0, bytes, self.hard_limit(card)).is_ok())
    }

    /// Books what is held already.
    pub(crate) fn book(&self, card: Card, bytes: u64) {
        if let Some((account, slot)) = self.account() {
            account.book(slot, card.0, bytes);
        }
    }

    /// Gives booked bytes back.
    pub(crate) fn release(&self, card: Card, bytes: u64) {
        if let Some((account, slot)) = self.account().filter(|_| bytes > 0) {
            account.release(slot, card.0, bytes);
        }
    }

    /// Bytes of a card that the container holds.
    pub(crate) fn used(&self, card: Card) -> u64 {
        self.account().map_or(0, |(account, _)| account.used(card.0))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_its_bytes() {
        let bytes = uuid_bytes("GPU-00112233-4455-6677-8899-aabbccddeeff").unwrap();
        assert_eq!(bytes.first(), Some(&0));
        assert_eq!(bytes.last(), Some(&0xff));
        assert_eq!(uuid_bytes("MIG-00112233-4455-6677-8899-aabbccddeeff"), Some(bytes));
        for wrong in [
            "",
            "GPU",
            "GPU-0011",
            "GPU-00112233-4455-6677-8899-aabbccddeeff0",
            "GPU-é0112233-4455",
        ] {
            assert_eq!(uuid_bytes(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn large_requests_take_whole_units() {
        assert_eq!(rounded(1), Some(1));
        assert_eq!(rounded(GRANULE - 1), Some(GRANULE - 1));
        assert_eq!(rounded(GRANULE + 1), Some(2 * GRANULE));
        assert_eq!(rounded(u64::MAX), None);
    }
}
