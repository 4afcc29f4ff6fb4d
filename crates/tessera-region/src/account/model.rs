//! The protocols under the model checker: every interleaving of two or three threads.

use loom::{sync::Arc, thread};

use super::*;

fn word() -> AtomicU64 {
    AtomicU64::new(0)
}

fn words<const N: usize>() -> [AtomicU64; N] {
    core::array::from_fn(|_| word())
}

fn account() -> Account {
    Account {
        magic: word(),
        version: AtomicU32::new(0),
        size: AtomicU32::new(0),
        leaks: word(),
        attaches: word(),
        reserved: words(),
        ledgers: core::array::from_fn(|_| Ledger {
            total: word(),
            repaired: word(),
            refusals: word(),
            reserved: words(),
        }),
        owners: words(),
        slots: core::array::from_fn(|_| Slot {
            ops: word(),
            reserved: words(),
            cards: core::array::from_fn(|_| SlotCard {
                held: word(),
                contexts: word(),
                launched: word(),
                progress: word(),
                charged_ns: word(),
                demand: word(),
                reserved: words(),
            }),
        }),
    }
}

fn owner(pid: u32) -> Owner {
    Owner::new(pid, 1, 1).unwrap()
}

fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

#[test]
fn two_requests_never_pass_the_limit_together_and_one_of_them_fits() {
    explore(|| {
        let account = Arc::new(account());
        let threads: Vec<_> = [1, 2]
            .map(|pid| {
                let account = Arc::clone(&account);
                thread::spawn(move || {
                    let slot = account.attach(owner(pid)).unwrap();
                    account.reserve(slot, 0, 60, 100).is_ok()
                })
            })
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect();
        assert_eq!(threads.iter().filter(|ok| **ok).count(), 1);
        assert_eq!(account.used(0), 60);
    });
}

#[test]
fn a_request_that_fits_is_not_refused_because_of_one_that_does_not() {
    explore(|| {
        let account = Arc::new(account());
        let slot = account.attach(owner(1)).unwrap();
        let other = Arc::clone(&account);
        let greedy = thread::spawn(move || other.reserve(slot, 0, 500, 100).is_ok());
        assert!(account.reserve(slot, 0, 100, 100).is_ok());
        assert!(!greedy.join().unwrap());
        assert_eq!(account.used(0), 100);
    });
}

#[test]
fn two_reapers_take_back_a_dead_process_once() {
    explore(|| {
        let account = Arc::new(account());
        let dead = account.attach(owner(9)).unwrap();
        account.reserve(dead, 0, 40, 100).unwrap();
        let live = account.attach(owner(1)).unwrap();
        account.reserve(live, 0, 10, 100).unwrap();
        let other = Arc::clone(&account);
        let reaper = thread::spawn(move || {
            let slot = other.attach(owner(2)).unwrap();
            other.reap(slot, owner(2), |who| who.pid() != 9).bytes
        });
        let here = account.reap(live, owner(1), |who| who.pid() != 9).bytes;
        assert_eq!(here + reaper.join().unwrap(), 40);
        assert_eq!(account.used(0), 10);
    });
}

#[test]
fn a_slot_given_back_is_taken_empty_by_a_newcomer() {
    explore(|| {
        let account = Arc::new(account());
        let live = account.attach(owner(1)).unwrap();
        let dead = account.attach(owner(9)).unwrap();
        let third = account.attach(owner(2)).unwrap();
        account.reserve(dead, 0, 40, 100).unwrap();
        let other = Arc::clone(&account);
        let newcomer = thread::spawn(move || {
            let slot = other.attach(owner(3))?;
            assert_eq!(other.held(slot, 0), 0);
            other.reserve(slot, 0, 7, 100).unwrap();
            Some(slot)
        });
        account.reap(live, owner(1), |who| who.pid() != 9);
        let expected = if newcomer.join().unwrap().is_some() { 7 } else { 0 };
        assert_eq!(account.used(0), expected);
        let _ = third;
    });
}

#[test]
fn a_recount_beside_running_operations_takes_off_the_leak_and_nothing_else() {
    explore(|| {
        let account = Arc::new(account());
        let live = account.attach(owner(1)).unwrap();
        let busy = account.attach(owner(2)).unwrap();
        account.reserve(busy, 0, 10, 100).unwrap();
        // As a death between the two steps of a reservation leaves it.
        account.ledgers[0].total.fetch_add(33, Ordering::AcqRel);
        account.leaks.fetch_add(1, Ordering::AcqRel);
        let other = Arc::clone(&account);
        let worker = thread::spawn(move || {
            other.reserve(busy, 0, 5, 100).unwrap();
            other.release(busy, 0, 10);
        });
        let found = account.recount(0);
        worker.join().unwrap();
        assert!(matches!(found, None | Some(33)), "{found:?}");
        let again = account.recount(0);
        assert_eq!(found.or(again), Some(33));
        assert_eq!(account.used(0), 5);
        let _ = live;
    });
}

#[test]
fn two_recounts_take_a_leak_off_once() {
    explore(|| {
        let account = Arc::new(account());
        let live = account.attach(owner(1)).unwrap();
        account.reserve(live, 0, 10, 100).unwrap();
        account.ledgers[0].total.fetch_add(33, Ordering::AcqRel);
        account.leaks.fetch_add(1, Ordering::AcqRel);
        let other = Arc::clone(&account);
        let second = thread::spawn(move || other.recount(0));
        let first = account.recount(0);
        let second = second.join().unwrap();
        assert_eq!(first.unwrap_or(0) + second.unwrap_or(0), 33);
        assert_eq!(account.used(0), 10);
    });
}
