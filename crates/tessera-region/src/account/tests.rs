#![allow(
    unsafe_code,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "tests"
)]

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering as O},
    },
};

use proptest::prelude::*;

use super::*;

/// A page in memory of our own.
struct Page(Box<[[u64; 8]]>);

impl Page {
    fn new() -> Self {
        // One block more than needed, to align within.
        let mut page = Self(vec![[0; 8]; ACCOUNT_SIZE / 64 + 1].into_boxed_slice());
        let at = page.place();
        for (n, byte) in Account::fresh_head().into_iter().enumerate() {
            // SAFETY: the head is far shorter than the page.
            unsafe { at.add(n).write(byte) };
        }
        page
    }

    fn place(&mut self) -> *mut u8 {
        let start = self.0.as_mut_ptr().cast::<u8>();
        // SAFETY: less than one block, and there is one more than the page needs.
        unsafe { start.add(start.align_offset(64)) }
    }

    fn account(&mut self) -> &'static Account {
        // SAFETY: aligned and large enough; every test keeps its page until it ends.
        unsafe { Account::from_ptr(self.place()) }.unwrap()
    }
}

fn owner(pid: u32) -> Owner {
    Owner::new(pid, 1, 1).unwrap()
}

fn sum_held(account: &Account, card: usize) -> u64 {
    let mut sum = 0;
    account.holders(card, |_, held| sum += held);
    sum
}

#[test]
fn the_head_is_checked() {
    let mut page = Page::new();
    let at = page.place();
    // SAFETY: within the page.
    unsafe { at.add(8).write(9) };
    // SAFETY: as in `Page::account`.
    let found = unsafe { Account::from_ptr(at) };
    assert!(matches!(found, Err(AccountError::Version { version: 9, .. })));
    // SAFETY: within the page.
    unsafe { at.write(0) };
    // SAFETY: as in `Page::account`.
    assert!(matches!(unsafe { Account::from_ptr(at) }, Err(AccountError::Magic(_))));
}

#[test]
fn the_limit_is_reached_to_the_byte_and_not_passed() {
    let mut page = Page::new();
    let account = page.account();
    let slot = account.attach(owner(7)).unwrap();
    account.reserve(slot, 3, 1000, 1000).unwrap();
    assert_eq!(
        account.reserve(slot, 3, 1, 1000),
        Err(Refused::OverLimit { used: 1000 })
    );
    assert_eq!(
        account.reserve(slot, 3, u64::MAX, 1000),
        Err(Refused::OverLimit { used: 1000 })
    );
    assert_eq!(account.reserve(slot, 3, 0, 1000), Ok(()));
    assert_eq!((account.used(3), account.used(2), account.refusals(3)), (1000, 0, 2));
    assert_eq!(account.reserve(slot, MAX_CARDS, 1, 10), Err(Refused::NoSuchCard));
    account.release(slot, 3, 400);
    account.reserve(slot, 3, 400, 1000).unwrap();
    // A lowered limit refuses and takes nothing away.
    assert_eq!(account.reserve(slot, 3, 0, 10), Err(Refused::OverLimit { used: 1000 }));
    assert_eq!(account.used(3), 1000);
}

#[test]
fn more_than_is_held_cannot_be_given_back() {
    let mut page = Page::new();
    let account = page.account();
    let (a, b) = (account.attach(owner(1)).unwrap(), account.attach(owner(2)).unwrap());
    account.reserve(a, 0, 10, 100).unwrap();
    account.reserve(b, 0, 20, 100).unwrap();
    account.release(a, 0, 15);
    assert_eq!((account.used(0), account.held(a, 0), account.held(b, 0)), (20, 0, 20));
}

#[test]
fn what_is_booked_may_pass_the_limit_and_then_refuses_the_rest() {
    let mut page = Page::new();
    let account = page.account();
    let slot = account.attach(owner(1)).unwrap();
    account.book(slot, 0, 300);
    assert_eq!(account.used(0), 300);
    assert!(account.reserve(slot, 0, 1, 200).is_err());
    account.adjust(slot, 0, 300, 100, 200).unwrap();
    account.adjust(slot, 0, 100, 200, 200).unwrap();
    assert!(account.adjust(slot, 0, 200, 201, 200).is_err());
    assert_eq!(account.used(0), 200);
}

#[test]
fn the_dead_are_emptied_and_the_living_keep_their_place() {
    let mut page = Page::new();
    let account = page.account();
    let slots: Vec<_> = (1..=5).map(|pid| account.attach(owner(pid)).unwrap()).collect();
    for (n, slot) in slots.iter().enumerate() {
        account.reserve(*slot, 0, 10 << n, 1000).unwrap();
        account.reserve(*slot, 1, 1, 1000).unwrap();
    }
    let reaped = account.reap(slots[2], owner(3), |who| who.pid() > 2);
    assert_eq!(
        reaped,
        Reaped {
            slots: 2,
            bytes: 10 + 20 + 2
        }
    );
    assert_eq!((account.used(0), account.used(1)), (40 + 80 + 160, 3));
    assert_eq!(account.owner(slots[2]), Some(owner(3)));
    assert_eq!(account.held(slots[4], 0), 160);
    assert_eq!(account.owner(slots[0]), None);
}

#[test]
fn a_full_account_says_so_until_somebody_leaves() {
    let mut page = Page::new();
    let account = page.account();
    let mut slots = Vec::new();
    for pid in 1..=u32::try_from(MAX_SLOTS).unwrap() {
        slots.push(account.attach(owner(pid)).unwrap());
    }
    assert_eq!(account.attach(owner(5000)), None);
    account.reserve(slots[17], 0, 5, 10).unwrap();
    assert_eq!(account.detach(slots[17], owner(18)), Reaped { slots: 1, bytes: 5 });
    assert_eq!(account.attach(owner(5000)), Some(slots[17]));
    assert_eq!(account.used(0), 0);
}

/// Each instruction at which a process can die inside an operation, as the words then are.
#[test]
fn after_a_death_at_any_step_one_reap_restores_the_sum() {
    for step in 0..=3 {
        for lowering in [false, true] {
            let mut page = Page::new();
            let account = page.account();
            let victim = account.attach(owner(9)).unwrap();
            let live = account.attach(owner(1)).unwrap();
            account.reserve(victim, 0, 100, 1000).unwrap();
            account.reserve(live, 0, 7, 1000).unwrap();
            let (ledger, slot, mine) = account.places(victim, 0).unwrap();
            if step > 0 {
                begin(slot);
            }
            if lowering {
                if step > 1 {
                    mine.held.fetch_sub(40, Ordering::AcqRel);
                }
                if step > 2 {
                    lower(&ledger.total, 40);
                }
            } else {
                if step > 1 {
                    ledger.total.fetch_add(40, Ordering::AcqRel);
                }
                if step > 2 {
                    mine.held.fetch_add(40, Ordering::AcqRel);
                }
            }
            assert!(account.used(0) >= sum_held(account, 0), "step {step}");
            account.reap(live, owner(1), |who| who.pid() == 1);
            assert_eq!(account.used(0), 7, "step {step} lowering {lowering}");
        }
    }
}

#[test]
fn a_reaper_that_dies_is_succeeded() {
    let mut page = Page::new();
    let account = page.account();
    let victim = account.attach(owner(9)).unwrap();
    let reaper = account.attach(owner(8)).unwrap();
    let live = account.attach(owner(1)).unwrap();
    account.reserve(victim, 0, 100, 1000).unwrap();
    account.reserve(live, 0, 7, 1000).unwrap();
    // The reaper claimed the victim, took its bytes and died before it lowered the total.
    account.owners[usize::from(victim.0)].store(owner(8).reaping_word(), Ordering::Release);
    let (_, slot, _) = account.places(reaper, 0).unwrap();
    begin(slot);
    account.places(victim, 0).unwrap().2.held.swap(0, Ordering::AcqRel);
    let reaped = account.reap(live, owner(1), |who| who.pid() == 1);
    assert_eq!(account.used(0), 7);
    assert_eq!(reaped.slots, 2);
    assert_eq!(account.owner(victim), None);
}

#[test]
fn nobody_waits_for_a_process_that_stopped_inside_an_operation() {
    let mut page = Page::new();
    let account = page.account();
    let stopped = account.attach(owner(9)).unwrap();
    let live = account.attach(owner(1)).unwrap();
    account.reserve(stopped, 0, 100, 1000).unwrap();
    begin(account.places(stopped, 0).unwrap().1);
    account.leaks.fetch_add(1, Ordering::AcqRel);
    account.reserve(live, 0, 900, 1000).unwrap();
    assert!(account.reserve(live, 0, 1, 1000).is_err());
    account.reap(live, owner(1), |_| true);
    assert_eq!(account.used(0), 1000);
}

#[test]
fn racing_threads_fill_the_limit_exactly() {
    let mut page = Page::new();
    let account = page.account();
    let limit = 10_000;
    let stop = Arc::new(AtomicBool::new(false));
    std::thread::scope(|scope| {
        let watcher = Arc::clone(&stop);
        scope.spawn(move || {
            while !watcher.load(O::Relaxed) {
                assert!(account.used(0) <= limit);
            }
        });
        let workers: Vec<_> = (1..=4)
            .map(|pid| {
                scope.spawn(move || {
                    let slot = account.attach(owner(pid)).unwrap();
                    for n in 0..20_000_u64 {
                        let bytes = n % 37 + 1;
                        if account.reserve(slot, 0, bytes, limit).is_ok() && n % 3 != 0 {
                            account.release(slot, 0, bytes);
                        }
                    }
                    while account.reserve(slot, 0, 1, limit).is_ok() {}
                })
            })
            .collect();
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        stop.store(true, O::Relaxed);
    });
    assert_eq!((account.used(0), sum_held(account, 0)), (limit, limit));
}

#[derive(Clone, Debug)]
enum Step {
    Attach(u32),
    Reserve(u32, u64),
    Book(u32, u64),
    Release(u32, u64),
    Die(u32, u64),
    Detach(u32),
    Reap,
}

fn step() -> impl Strategy<Value = Step> {
    let pid = 1..6_u32;
    prop_oneof![
        pid.clone().prop_map(Step::Attach),
        (pid.clone(), 0..600_u64).prop_map(|(p, n)| Step::Reserve(p, n)),
        (pid.clone(), 0..50_u64).prop_map(|(p, n)| Step::Book(p, n)),
        (pid.clone(), 0..600_u64).prop_map(|(p, n)| Step::Release(p, n)),
        (pid.clone(), 0..100_u64).prop_map(|(p, n)| Step::Die(p, n)),
        pid.prop_map(Step::Detach),
        Just(Step::Reap),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// The account against plain arithmetic.
    #[test]
    fn the_account_is_a_sum(steps in proptest::collection::vec(step(), 1..80)) {
        const LIMIT: u64 = 1000;
        let mut page = Page::new();
        let account = page.account();
        let me = owner(100);
        let mine = account.attach(me).unwrap();
        // Model pid to real identity, slot and bytes; a process that comes again is another process.
        let mut live = BTreeMap::<u32, (Owner, SlotIndex, u64)>::new();
        let mut lost = 0;
        for (n, step) in (0_u64..).zip(steps) {
            match step {
                Step::Attach(pid) => {
                    live.entry(pid).or_insert_with(|| {
                        let who = Owner::new(pid, n, 1).unwrap();
                        (who, account.attach(who).unwrap(), 0)
                    });
                }
                Step::Reserve(pid, bytes) => {
                    let before = account.used(0);
                    if let Some((_, slot, held)) = live.get_mut(&pid) {
                        match account.reserve(*slot, 0, bytes, LIMIT) {
                            Ok(()) => { *held += bytes; prop_assert!(account.used(0) <= LIMIT); }
                            Err(_) => { prop_assert!(before + bytes > LIMIT); prop_assert_eq!(account.used(0), before); }
                        }
                    }
                }
                Step::Book(pid, bytes) => if let Some((_, slot, held)) = live.get_mut(&pid) {
                    account.book(*slot, 0, bytes);
                    *held += bytes;
                },
                Step::Release(pid, bytes) => if let Some((_, slot, held)) = live.get_mut(&pid) {
                    account.release(*slot, 0, bytes);
                    *held = held.saturating_sub(bytes);
                },
                Step::Die(pid, bytes) => if let Some((_, slot, held)) = live.remove(&pid) {
                    // Killed after raising the total.
                    let (ledger, place, _) = account.places(slot, 0).unwrap();
                    begin(place);
                    ledger.total.fetch_add(bytes, Ordering::AcqRel);
                    lost += held + bytes;
                },
                Step::Detach(pid) => if let Some((who, slot, held)) = live.remove(&pid) {
                    prop_assert_eq!(account.detach(slot, who), Reaped { slots: 1, bytes: held });
                },
                Step::Reap => {
                    let reaped = account.reap(mine, me, |who| live.values().any(|(live, ..)| *live == who));
                    prop_assert_eq!(reaped.bytes, lost);
                    lost = 0;
                }
            }
            let sum: u64 = live.values().map(|(_, _, held)| held).sum();
            prop_assert_eq!(account.used(0), sum + lost);
            for (who, slot, held) in live.values() {
                prop_assert_eq!(account.owner(*slot), Some(*who));
                prop_assert_eq!(account.held(*slot, 0), *held);
            }
        }
    }

    /// A tenant may write anything into its page: nothing here may panic, loop or show more than a card can have.
    #[test]
    fn garbage_in_the_page_is_survived(seed in any::<u64>()) {
        let mut page = Page::new();
        let at = page.place().cast::<u64>();
        let mut x = seed | 1;
        for n in 2..ACCOUNT_SIZE / 8 {
            x ^= x << 13; x ^= x >> 7; x ^= x << 17;
            // SAFETY: within the page.
            unsafe { at.add(n).write(x) };
        }
        let account = page.account();
        prop_assert_eq!(account.attach(owner(1)), None);
        let slot = SlotIndex::from_number(3).unwrap();
        prop_assert!(account.used(0) <= BYTES_MAX);
        let reserved = account.reserve(slot, 0, 100, 1 << 40);
        prop_assert!(reserved.is_ok() || account.used(0) <= BYTES_MAX);
        account.book(slot, 0, u64::MAX);
        account.release(slot, 0, u64::MAX);
        account.holders(0, |_, held| assert!(held <= BYTES_MAX));
        account.reap(slot, owner(1), |_| false);
        prop_assert!(account.used(0) <= BYTES_MAX);
    }
}

#[test]
fn a_limit_of_the_account_holds_for_old_copies_of_the_grant() {
    let mut page = Page::new();
    let account = page.account();
    let slot = account.attach(owner(1)).unwrap();
    account.reserve(slot, 0, 60, 100).unwrap();
    assert_eq!(account.set_limit(0, 50), Err(Refused::OverLimit { used: 60 }));
    assert_eq!(account.limit(0), None);
    account.reserve(slot, 0, 40, 100).unwrap();
    account.release(slot, 0, 70);
    account.set_limit(0, 50).unwrap();
    assert_eq!(account.reserve(slot, 0, 21, 100), Err(Refused::OverLimit { used: 30 }));
    account.reserve(slot, 0, 20, 100).unwrap();
    // What is never refused has no limit.
    account.reserve(slot, 0, 1000, u64::MAX).unwrap();
    assert_eq!(account.set_limit(0, 200), Err(Refused::OverLimit { used: 1050 }));
    assert_eq!(account.limit(0), Some(50));
    account.release(slot, 0, 1000);
    account.set_limit(0, 200).unwrap();
    account.reserve(slot, 0, 100, 150).unwrap();
    assert_eq!(account.reserve(slot, 0, 1, 150), Err(Refused::OverLimit { used: 150 }));
}
