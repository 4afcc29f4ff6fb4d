//! The protocols under the model checker: every interleaving of two or three threads.
//!
//! `cargo xtask models` runs them. Each says which promise it is about:
//!
//! - the total is never below what is held, never above the limit, and a refusal changes nothing;
//! - after a death at any step one reap makes the total what the living hold, and a reaper's death is no exception;
//! - nobody waits for anybody, and the place of a live process is its own until it ends.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use loom::{sync::Arc, thread};

use super::*;
use crate::sync::model::loads_are_changes;

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
            limit: word(),
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

/// Tries a model in every order, with both ways of reading a word.
fn explore(model: impl Fn() + Sync + Send + 'static) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let model = std::sync::Arc::new(model);
    for changes in [true, false] {
        loads_are_changes(changes);
        let runs = std::sync::Arc::new(AtomicUsize::new(0));
        let (one, count) = (std::sync::Arc::clone(&model), std::sync::Arc::clone(&runs));
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.max_branches = 20_000;
        builder.check(move || {
            count.fetch_add(1, SeqCst);
            one();
        });
        // One order is no model.
        assert!(runs.load(SeqCst) > 1 || !changes);
    }
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
        assert_eq!((account.used(0), account.held(slot, 0)), (100, 100));
    });
}

#[test]
fn a_lower_limit_holds_at_once_or_not_at_all() {
    explore(|| {
        let account = Arc::new(account());
        let slot = account.attach(owner(1)).unwrap();
        let other = Arc::clone(&account);
        let program = thread::spawn(move || other.reserve(slot, 0, 60, 100).is_ok());
        let lowered = account.set_limit(0, 50).is_ok();
        let used = account.used(0);
        assert!(!lowered || used <= 50, "{used} are held");
        let held = program.join().unwrap();
        assert_eq!(account.used(0), if held { 60 } else { 0 });
        assert!(!(lowered && held));
        assert_eq!(account.limit(0), lowered.then_some(50));
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

#[test]
fn a_total_is_never_below_what_is_held() {
    explore(|| {
        let account = Arc::new(account());
        let slot = account.attach(owner(1)).unwrap();
        let other = Arc::clone(&account);
        let worker = thread::spawn(move || other.reserve(slot, 0, 60, 100).is_ok());
        // Held first: what it shows was in the total before.
        let held = account.held(slot, 0);
        assert!(account.used(0) >= held);
        assert!(worker.join().unwrap());
        let other = Arc::clone(&account);
        let worker = thread::spawn(move || other.release(slot, 0, 60));
        // Total first: what is still held was in it then.
        let total = account.used(0);
        assert!(total >= account.held(slot, 0));
        worker.join().unwrap();
        assert_eq!((account.used(0), account.held(slot, 0)), (0, 0));
    });
}

#[test]
fn newcomers_share_no_slot_and_keep_theirs() {
    explore(|| {
        let account = Arc::new(account());
        let first = account.attach(owner(1)).unwrap();
        // All begin their search at the same place.
        let threads: Vec<_> = [4, 7]
            .map(|pid| {
                let account = Arc::clone(&account);
                thread::spawn(move || (pid, account.attach(owner(pid)).unwrap()))
            })
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect();
        for (pid, slot) in &threads {
            assert_eq!(account.owner(*slot), Some(owner(*pid)));
        }
        assert_ne!(threads[0].1, threads[1].1);
        assert_eq!(account.owner(first), Some(owner(1)));
        assert!(account.attach(owner(9)).is_none(), "there are three places");
    });
}

#[test]
fn the_last_place_goes_to_one_of_two() {
    explore(|| {
        let account = Arc::new(account());
        account.attach(owner(1)).unwrap();
        account.attach(owner(2)).unwrap();
        let other = Arc::clone(&account);
        let rival = thread::spawn(move || other.attach(owner(3)).is_some());
        let here = account.attach(owner(6)).is_some();
        assert!(here ^ rival.join().unwrap());
    });
}

#[test]
fn a_reaper_that_died_is_succeeded() {
    explore(|| {
        let account = Arc::new(account());
        let dead = account.attach(owner(9)).unwrap();
        account.reserve(dead, 0, 40, 100).unwrap();
        // As the death of a reaper leaves it, between taking the bytes from their holder and from the total: its own
        // place shows an operation under way, and the place that it claimed bears its name.
        let reaper = account.attach(owner(8)).unwrap();
        account.owners[usize::from(dead.number())].store(owner(8).reaping_word(), Ordering::Release);
        begin(&account.slots[usize::from(reaper.number())]);
        account.slots[usize::from(dead.number())].cards[0]
            .held
            .store(0, Ordering::Release);
        let slot = account.attach(owner(1)).unwrap();
        let other = Arc::clone(&account);
        let worker = thread::spawn(move || other.reserve(slot, 0, 10, 100).unwrap());
        let alive = |who: Owner| who.pid() == 1;
        account.reap(slot, owner(1), alive);
        worker.join().unwrap();
        // The worker may have been busy through all tries of the first.
        account.reap(slot, owner(1), alive);
        assert_eq!((account.used(0), account.held(slot, 0)), (10, 10));
        assert_eq!(account.owner(dead), None);
        assert_eq!(account.owner(reaper), None);
    });
}

#[test]
fn an_operation_that_never_ends_stops_nobody() {
    explore(|| {
        let account = Arc::new(account());
        let stopped = account.attach(owner(9)).unwrap();
        // Stopped, not dead, in the middle of a reservation.
        begin(&account.slots[usize::from(stopped.number())]);
        account.ledgers[0].total.fetch_add(33, Ordering::AcqRel);
        let other = Arc::clone(&account);
        let worker = thread::spawn(move || {
            let slot = other.attach(owner(1)).unwrap();
            let fits = other.reserve(slot, 0, 60, 100).is_ok();
            let refused = other.reserve(slot, 0, 60, 100).is_err();
            other.release(slot, 0, 60);
            fits && refused
        });
        let slot = account.attach(owner(2)).unwrap();
        // Nothing is taken from the living.
        assert_eq!(account.reap(slot, owner(2), |_| true), Reaped::default());
        assert!(worker.join().unwrap());
        assert_eq!(account.used(0), 33);
    });
}

#[test]
fn a_process_that_leaves_while_it_is_reaped_is_given_back_once() {
    explore(|| {
        let account = Arc::new(account());
        let leaving = account.attach(owner(9)).unwrap();
        account.reserve(leaving, 0, 40, 100).unwrap();
        let live = account.attach(owner(1)).unwrap();
        let other = Arc::clone(&account);
        let exit = thread::spawn(move || other.detach(leaving, owner(9)).bytes);
        let reaped = account.reap(live, owner(1), |who| who.pid() != 9).bytes;
        let own = exit.join().unwrap();
        assert!(own == 40 || reaped == 40, "{own} and {reaped}");
        account.reap(live, owner(1), |who| who.pid() != 9);
        assert_eq!(account.used(0), 0);
    });
}

#[test]
fn a_newcomer_is_not_thrown_out_by_a_second_reaper() {
    explore(|| {
        let account = Arc::new(account());
        let first = account.attach(owner(1)).unwrap();
        let second = account.attach(owner(2)).unwrap();
        let dead = account.attach(owner(9)).unwrap();
        let threads: Vec<_> = [(first, owner(1)), (second, owner(2))]
            .map(|(slot, me)| {
                let account = Arc::clone(&account);
                thread::spawn(move || {
                    account.reap(slot, me, |who| who.pid() != 9);
                    // Whoever finds the place free takes it.
                    account.attach(owner(me.pid() + 3))
                })
            })
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect();
        let taken: Vec<SlotIndex> = threads.into_iter().flatten().collect();
        assert_eq!(taken, [dead]);
        assert!(matches!(account.owner(dead), Some(who) if who == owner(4) || who == owner(5)));
    });
}
