//! What this process allocated: from pointers and handles to what is booked for them.
//!
//! 64 shards, each an open-addressing table with linear probing behind a small lock of its own. A lock is held for a
//! few loads and stores, never over a driver call. All zero is an empty table, which is what a forked child finds.

use core::{
    cell::UnsafeCell,
    sync::atomic::{AtomicU32, Ordering},
};

use crate::os;

const SHARDS: usize = 64;
const FIRST_CAPACITY: usize = 64;

/// What a key is; the same number can be a pointer and a handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Space {
    /// Device memory by address.
    Pointer = 1,
    /// Physical memory by handle.
    Handle,
    /// A mapping of physical memory by address.
    Mapping,
    /// An array.
    Array,
    /// A mipmapped array.
    Mipmap,
    /// A context.
    Context,
    /// Imported external memory.
    External,
    /// A graph with memory nodes.
    Graph,
    /// An executable graph with memory nodes.
    Executable,
    /// Device memory by address that can leave the card.
    Swap,
}

/// What is known about a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Entry {
    /// Booked bytes.
    pub(crate) bytes: u64,
    /// The context that the thing dies with; 0 for none.
    pub(crate) context: u64,
    /// References (handles), or a further key.
    pub(crate) extra: u64,
    /// Index of the card in the account.
    pub(crate) card: u32,
    /// For pointers: booked through a pool, by the pool's place plus one; 0 is booked here.
    pub(crate) pool: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Cell {
    key: u64,
    /// 0: free.
    space: u32,
    entry: Entry,
}

#[repr(C, align(64))]
struct Shard {
    lock: Lock,
    cells: UnsafeCell<Cells>,
}

#[repr(C)]
struct Cells {
    first: *mut Cell,
    /// 0 or a power of two.
    capacity: usize,
    used: usize,
}

/// The whole table.
#[repr(C)]
pub(crate) struct Table {
    shards: [Shard; SHARDS],
}

// SAFETY: the cells are reached only under the shard's lock.
unsafe impl Sync for Shard {}

impl Table {
    /// Enters a key; what was there before, if anything, comes back. Fails when there is no memory for the entry.
    pub(crate) fn insert(&self, space: Space, key: u64, entry: Entry) -> Result<Option<Entry>, ()> {
        self.with(space, key, |cells, hash| {
            if let Some(cell) = cells.find(hash, space, key) {
                return Ok(Some(core::mem::replace(&mut cell.entry, entry)));
            }
            if !cells.make_room() {
                return Err(());
            }
            cells.place(
                hash,
                Cell {
                    key,
                    space: space as u32,
                    entry,
                },
            );
            Ok(None)
        })
    }

    /// Removes a key.
    pub(crate) fn take(&self, space: Space, key: u64) -> Option<Entry> {
        self.take_if(space, key, |_| true)
    }

    /// Changes an entry; removes it if `change` says so. The entry as `change` left it.
    pub(crate) fn take_if(&self, space: Space, key: u64, change: impl FnOnce(&mut Entry) -> bool) -> Option<Entry> {
        self.with(space, key, |cells, hash| {
            let cell = cells.find(hash, space, key)?;
            let remove = change(&mut cell.entry);
            let entry = cell.entry;
            if remove {
                cells.remove(hash, space, key);
            }
            Some(entry)
        })
    }

    /// The entry of a key.
    pub(crate) fn get(&self, space: Space, key: u64) -> Option<Entry> {
        self.with(space, key, |cells, hash| {
            cells.find(hash, space, key).map(|cell| cell.entry)
        })
    }

    /// Some key of a space for which `matches` holds; looks at all of them.
    pub(crate) fn search(&self, space: Space, matches: impl Fn(u64, &Entry) -> bool) -> Option<(u64, Entry)> {
        self.shards.iter().find_map(|shard| {
            let guard = shard.lock.hold();
            // SAFETY: the lock is held; the reference ends before it is let go.
            let cells = unsafe { &*shard.cells.get() };
            let found = cells
                .as_slice()
                .iter()
                .find(|cell| cell.space == space as u32 && matches(cell.key, &cell.entry))
                .map(|cell| (cell.key, cell.entry));
            drop(guard);
            found
        })
    }

    /// Removes every entry of a space for which `matches` holds and gives it to `each`, with no lock held.
    pub(crate) fn drain(&self, space: Space, matches: impl Fn(u64, &Entry) -> bool, mut each: impl FnMut(u64, Entry)) {
        for shard in &self.shards {
            loop {
                let guard = shard.lock.hold();
                // SAFETY: the lock is held; the reference ends before it is let go.
                let cells = unsafe { &mut *shard.cells.get() };
                let found = cells
                    .as_slice()
                    .iter()
                    .find(|cell| cell.space == space as u32 && matches(cell.key, &cell.entry))
                    .copied();
                if let Some(cell) = found {
                    cells.remove(hash_of(space as u32, cell.key), space, cell.key);
                }
                drop(guard);
                match found {
                    Some(cell) => each(cell.key, cell.entry),
                    None => break,
                }
            }
        }
    }

    fn with<R>(&self, space: Space, key: u64, work: impl FnOnce(&mut Cells, u64) -> R) -> R {
        let hash = hash_of(space as u32, key);
        let index = usize::try_from(hash >> 58).unwrap_or_default();
        // The top six bits number the 64 shards, so the fallback is never taken.
        let [first, ..] = &self.shards;
        let shard = self.shards.get(index).unwrap_or(first);
        let guard = shard.lock.hold();
        // SAFETY: the lock is held until after the last use.
        let result = work(unsafe { &mut *shard.cells.get() }, hash);
        drop(guard);
        result
    }
}

/// Multiplicative hashing: the high bits choose the shard, lower ones the cell.
fn hash_of(space: u32, key: u64) -> u64 {
    let mixed = (key ^ (u64::from(space) << 56)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ (mixed >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93)
}

impl Cells {
    fn as_slice(&self) -> &[Cell] {
        if self.first.is_null() {
            return &[];
        }
        // SAFETY: a mapping of `capacity` cells, each valid when zero, owned by this table.
        unsafe { core::slice::from_raw_parts(self.first, self.capacity) }
    }

    fn as_mut_slice(&mut self) -> &mut [Cell] {
        if self.first.is_null() {
            return &mut [];
        }
        // SAFETY: as in `as_slice`, and the table is borrowed mutably.
        unsafe { core::slice::from_raw_parts_mut(self.first, self.capacity) }
    }

    fn mask(&self) -> usize {
        self.capacity.wrapping_sub(1)
    }

    fn index_of(&self, hash: u64, space: Space, key: u64) -> Option<usize> {
        let cells = self.as_slice();
        if cells.is_empty() {
            return None;
        }
        let mut index = self.home(hash);
        // There is always a free cell, so the walk ends.
        loop {
            let cell = cells.get(index)?;
            if cell.space == 0 {
                return None;
            }
            if cell.key == key && cell.space == space as u32 {
                return Some(index);
            }
            index = index.wrapping_add(1) & self.mask();
        }
    }

    fn find(&mut self, hash: u64, space: Space, key: u64) -> Option<&mut Cell> {
        let index = self.index_of(hash, space, key)?;
        self.as_mut_slice().get_mut(index)
    }

    #[expect(clippy::cast_possible_truncation, reason = "only the low bits are wanted")]
    fn home(&self, hash: u64) -> usize {
        hash as usize & self.mask()
    }

    /// Puts a cell that is not there yet.
    fn place(&mut self, hash: u64, cell: Cell) {
        let mask = self.mask();
        let mut index = self.home(hash);
        let cells = self.as_mut_slice();
        while let Some(place) = cells.get_mut(index) {
            if place.space == 0 {
                *place = cell;
                self.used = self.used.saturating_add(1);
                return;
            }
            index = index.wrapping_add(1) & mask;
        }
    }

    /// Removes a cell and moves later ones of its run back, so that no walk is cut.
    fn remove(&mut self, hash: u64, space: Space, key: u64) {
        let Some(mut hole) = self.index_of(hash, space, key) else {
            return;
        };
        let mask = self.mask();
        let mut index = hole;
        loop {
            index = index.wrapping_add(1) & mask;
            let Some(cell) = self.as_slice().get(index).copied() else {
                break;
            };
            if cell.space == 0 {
                break;
            }
            let home = self.home(hash_of(cell.space, cell.key));
            // The cell may move into the hole if its home is not between the hole and itself.
            if index.wrapping_sub(home) & mask >= index.wrapping_sub(hole) & mask {
                if let Some(place) = self.as_mut_slice().get_mut(hole) {
                    *place = cell;
                }
                hole = index;
            }
        }
        if let Some(place) = self.as_mut_slice().get_mut(hole) {
            place.space = 0;
        }
        self.used = self.used.saturating_sub(1);
    }

    /// Keeps a quarter of the cells free.
    fn make_room(&mut self) -> bool {
        let limit = self.capacity.saturating_sub(self.capacity / 4);
        if self.used.saturating_add(1) < limit {
            return true;
        }
        let capacity = self.capacity.saturating_mul(2).max(FIRST_CAPACITY);
        let size = capacity.saturating_mul(size_of::<Cell>());
        let (page, _) = os::private_memory(size, false);
        if page.is_null() {
            return false;
        }
        let mut larger = Self {
            first: page.cast(),
            capacity,
            used: 0,
        };
        for cell in self.as_slice().iter().filter(|cell| cell.space != 0) {
            larger.place(hash_of(cell.space, cell.key), *cell);
        }
        if !self.first.is_null() {
            let old = self.capacity.saturating_mul(size_of::<Cell>());
            // SAFETY: mapped by this function, and replaced right below.
            unsafe { os::unmap(self.first.cast(), old) };
        }
        *self = larger;
        true
    }
}

/// A lock for a few instructions: spin, then sleep. Private to the process, so it dies with its holder.
#[repr(transparent)]
pub(crate) struct Lock(AtomicU32);

const FREE: u32 = 0;
const HELD: u32 = 1;
const WAITED_FOR: u32 = 2;

pub(crate) struct Guard<'a>(&'a Lock);

impl Lock {
    pub(crate) fn hold(&self) -> Guard<'_> {
        for _ in 0..64 {
            if self.0.load(Ordering::Relaxed) == FREE
                && self
                    .0
                    .compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok()
            {
                return Guard(self);
            }
            core::hint::spin_loop();
        }
        while self.0.swap(WAITED_FOR, Ordering::Acquire) != FREE {
            os::futex_wait(&self.0, WAITED_FOR);
        }
        Guard(self)
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if self.0.0.swap(FREE, Ordering::Release) == WAITED_FOR {
            os::futex_wake(&self.0.0);
        }
    }
}

/// Zeroed memory for a value that is valid when zero, for tests.
#[cfg(test)]
fn fresh() -> &'static Table {
    let (page, _) = os::private_memory(size_of::<Table>(), false);
    assert!(!page.is_null());
    // SAFETY: zeroed, aligned to a page, never given back.
    unsafe { &*page.cast::<Table>() }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "tests"
)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn entry(bytes: u64) -> Entry {
        Entry {
            bytes,
            ..Entry::default()
        }
    }

    #[test]
    fn a_table_behaves_like_a_map() {
        let table = fresh();
        let mut model = HashMap::new();
        let mut x = 88_172_645_463_325_252_u64;
        for n in 0..200_000_u64 {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            // Addresses as a driver gives them: multiples of a granule.
            let key = (x % 5000) << 21;
            let space = if x & (1 << 40) == 0 {
                Space::Pointer
            } else {
                Space::Mapping
            };
            if x & (1 << 41) == 0 {
                let old = table.insert(space, key, entry(n)).unwrap();
                assert_eq!(old.map(|e| e.bytes), model.insert((space as u32, key), n));
            } else {
                let old = table.take(space, key);
                assert_eq!(old.map(|e| e.bytes), model.remove(&(space as u32, key)));
            }
        }
        for ((space, key), bytes) in &model {
            let space = if *space == Space::Pointer as u32 {
                Space::Pointer
            } else {
                Space::Mapping
            };
            assert_eq!(table.get(space, *key), Some(entry(*bytes)));
        }
        let mut drained = 0;
        table.drain(Space::Pointer, |key, _| key % (2 << 21) == 0, |_, _| drained += 1);
        let expected = model.keys().filter(|(s, k)| *s == 1 && k % (2 << 21) == 0).count();
        assert_eq!(drained, expected);
    }

    #[test]
    fn threads_find_their_own() {
        let table = fresh();
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                scope.spawn(move || {
                    for n in 0..50_000 {
                        let key = thread << 40 | n << 8;
                        table.insert(Space::Pointer, key, entry(n)).unwrap();
                        if n % 2 == 0 {
                            assert_eq!(table.take(Space::Pointer, key), Some(entry(n)));
                        }
                    }
                });
            }
        });
        let mut left = 0;
        table.drain(Space::Pointer, |_, _| true, |_, _| left += 1);
        assert_eq!(left, 100_000);
    }
}
