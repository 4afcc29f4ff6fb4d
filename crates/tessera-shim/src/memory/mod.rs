//! Hooks of the calls that take or give back device memory.
//!
//! One pattern: reserve in the account, call the driver, and either remember what was booked or give it back. No lock
//! is held meanwhile, so two threads may be anywhere in it at once.

pub(crate) mod array;
pub(crate) mod context;
pub(crate) mod external;
pub(crate) mod graph;
pub(crate) mod plain;
pub(crate) mod pool;
pub(crate) mod virtual_memory;

use crate::{
    address::{Entry, Space},
    codes::SUCCESS,
    place::Place,
    process::{Card, Process},
};

/// Which of the two default streams a null stream means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// The legacy stream: names without a suffix.
    Legacy,
    /// The thread's own: names that end in `_ptsz`.
    PerThread,
}

/// Books `bytes`, calls the driver, and remembers the result under the key that it gave.
fn allocate(
    place: Place,
    bytes: u64,
    call: impl FnOnce() -> i32,
    made: impl FnOnce(Entry) -> (Space, u64, Entry),
) -> i32 {
    let (process, card) = match place {
        Place::Counted(process, card) => (process, card),
        Place::Forward => return call(),
        Place::Refused(code) => return code,
    };
    let booked = match process.reserve(card, bytes) {
        Ok(booked) => booked,
        Err(code) => return code,
    };
    let result = call();
    if result == SUCCESS {
        let (space, key, entry) = made(entry(card, booked));
        remember(process, space, key, entry);
    } else {
        process.release(card, booked);
    }
    result
}

fn entry(card: Card, bytes: u64) -> Entry {
    Entry {
        bytes,
        card: u32::try_from(card.0).unwrap_or(u32::MAX),
        ..Entry::default()
    }
}

fn card_of(entry: &Entry) -> Card {
    Card(usize::try_from(entry.card).unwrap_or(usize::MAX))
}

/// Enters what was allocated. A key that is there already was freed in a way that no hook saw.
fn remember(process: &Process, space: Space, key: u64, entry: Entry) {
    if let Ok(Some(old)) = process.table.insert(space, key, entry) {
        forget(process, &old);
    }
    // Without memory for the entry the bytes stay booked until the process ends.
}

/// Gives back what an entry is booked at.
fn forget(process: &Process, old: &Entry) {
    if old.pool == 0 {
        process.release(card_of(old), old.bytes);
    } else {
        process.pools.freed(process, old);
    }
}

/// Frees: the entry is taken out first, since another thread may get the same key as soon as the driver has freed it.
fn free(process: Option<&Process>, space: Space, key: u64, call: impl FnOnce() -> i32) -> i32 {
    let Some((process, entry)) =
        process.and_then(|process| process.table.take(space, key).map(|entry| (process, entry)))
    else {
        return call();
    };
    let result = call();
    if result == SUCCESS {
        forget(process, &entry);
    } else {
        remember(process, space, key, entry);
    }
    result
}
