//! What a case calls the region: here two pages, the grant that only the agent writes and the account.
//!
//! A word for which neither page has a counterpart (locks, the switch and the marks of another monitor) does not exist.

#![allow(unsafe_code, reason = "maps an account as a process in the container may")]

use std::{
    fs::File,
    os::{fd::AsRawFd as _, unix::fs::FileExt as _},
    ptr,
};

use serde_json::Value;
use tessera_region::{ACCOUNT_SIZE, Account, CardFlags, MAX_CARDS, MAX_SLOTS, SlotIndex, fs};

use crate::shim_support::Container;

const OWNERS_AT: u64 = 64 + 64 * MAX_CARDS as u64;
const SLOTS_AT: u64 = OWNERS_AT + 8 * MAX_SLOTS as u64;
const SLOT_SIZE: u64 = 64 + 64 * MAX_CARDS as u64;
/// What a context takes on the machines of the cases.
pub(crate) const CONTEXT: u64 = 300 << 20;

/// `procs[1].used[0].total` in parts.
struct Word<'a> {
    name: &'a str,
    index: usize,
    rest: &'a str,
}

fn word(text: &str) -> Word<'_> {
    let Some((name, rest)) = text.split_once('[') else {
        return Word {
            name: text,
            index: 0,
            rest: "",
        };
    };
    let (index, rest) = rest.split_once(']').expect("a bracket");
    Word {
        name,
        index: index.parse().expect("an index"),
        rest: rest.trim_start_matches('.'),
    }
}

/// Whether a word is about a card that the machine has not. The reference fills all 16 places.
pub(crate) fn of_no_card(text: &str, cards: usize) -> bool {
    let word = word(text);
    matches!(word.name, "limit" | "sm_limit" | "uuids") && word.index >= cards
}

/// The account, mapped for a look.
struct Mapped(*mut libc::c_void);

impl Mapped {
    fn of(container: &Container<'_>) -> Self {
        let file = File::options()
            .read(true)
            .write(true)
            .open(container.dir().account_file())
            .unwrap();
        // SAFETY: a fresh shared mapping of a file of this size.
        let page = unsafe {
            libc::mmap(
                ptr::null_mut(),
                ACCOUNT_SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        assert!(page != libc::MAP_FAILED);
        Self(page)
    }

    fn account(&self) -> &Account {
        // SAFETY: mapped above with this size, and a page is aligned.
        unsafe { Account::from_ptr(self.0.cast()) }.unwrap()
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: mapped by `of`; the reference lives as long as `self`.
        unsafe { libc::munmap(self.0, ACCOUNT_SIZE) };
    }
}

fn slots() -> impl Iterator<Item = SlotIndex> {
    (0..u16::try_from(MAX_SLOTS).unwrap()).filter_map(SlotIndex::from_number)
}

fn slot_of(account: &Account, pid: u64) -> Option<SlotIndex> {
    slots().find(|slot| account.owner(*slot).is_some_and(|owner| u64::from(owner.pid()) == pid))
}

/// A word, by the pids of the case's processes in the order of their starts; null for one that does not exist.
pub(crate) fn read(container: &Container<'_>, pids: &[u64], text: &str) -> Value {
    let Ok(grant) = fs::read_grant(&container.dir()) else {
        return Value::Null;
    };
    let Word { name, index, rest } = word(text);
    let card = grant.cards().get(index);
    match name {
        "limit" => card.map_or(Value::Null, |card| {
            let unlimited = card.flags.contains(CardFlags::UNLIMITED);
            Value::from(if unlimited { 0 } else { card.memory_bytes })
        }),
        "sm_limit" => card.map_or(Value::Null, |card| Value::from(card.cores_permille / 10)),
        "uuids" => Value::from(card.map_or("", |card| card.uuid.as_str())),
        "priority" => grant
            .cards()
            .first()
            .map_or(Value::Null, |card| Value::from(card.priority)),
        "device_num" => Value::from(grant.cards().len()),
        "proc_num" => {
            let mapped = Mapped::of(container);
            let account = mapped.account();
            Value::from(slots().filter(|slot| account.owner(*slot).is_some()).count())
        }
        "procs" => process(container, pids.get(index).copied(), rest),
        _ => Value::Null,
    }
}

fn process(container: &Container<'_>, pid: Option<u64>, field: &str) -> Value {
    let mapped = Mapped::of(container);
    let account = mapped.account();
    let slot = pid.and_then(|pid| slot_of(account, pid));
    let Word { name, index, rest } = word(field);
    match name {
        "pid" => Value::from(slot.and(pid).unwrap_or(0)),
        "status" => Value::from(u32::from(slot.is_some())),
        "used" => {
            let held = slot.map_or(0, |slot| account.held(slot, index));
            let file = File::open(container.dir().account_file()).unwrap();
            let contexts = slot.map_or(0, |slot| word_at(&file, held_at(slot, index) + 8));
            let context = contexts * CONTEXT;
            match rest {
                "total" => Value::from(held),
                "context_size" => Value::from(context),
                "data_size" => Value::from(held.saturating_sub(context)),
                _ => Value::Null,
            }
        }
        _ => Value::Null,
    }
}

fn slot_at(slot: SlotIndex) -> u64 {
    SLOTS_AT + SLOT_SIZE * u64::from(slot.number())
}

fn held_at(slot: SlotIndex, card: usize) -> u64 {
    slot_at(slot) + 64 + 64 * u64::try_from(card).unwrap()
}

fn word_at(file: &File, at: u64) -> u64 {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, at).unwrap();
    u64::from_le_bytes(bytes)
}

/// Writes a word as a tenant can: into the account, past all rules. Words of the grant cannot be written, and words that
/// do not exist are left.
pub(crate) fn write(container: &Container<'_>, pids: &[u64], text: &str, value: u64) {
    let Word { name, index, rest } = word(text);
    if name != "procs" {
        return;
    }
    let mapped = Mapped::of(container);
    let Some(slot) = pids.get(index).and_then(|pid| slot_of(mapped.account(), *pid)) else {
        return;
    };
    let file = File::options()
        .read(true)
        .write(true)
        .open(container.dir().account_file())
        .unwrap();
    let put = |at: u64, value: u64| file.write_all_at(&value.to_le_bytes(), at).unwrap();
    let part = word(rest);
    match part.name {
        // The identity of the holder: the pid is its lowest 24 bits.
        "pid" => {
            let at = OWNERS_AT + 8 * u64::from(slot.number());
            put(at, word_at(&file, at) & !0xff_ffff | value);
        }
        // An operation under way, as long as the count is odd.
        "seqlock" => put(slot_at(slot), value),
        "used" => put(held_at(slot, part.index), value),
        _ => {}
    }
}
