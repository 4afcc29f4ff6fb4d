//! Death at every instruction of every operation on an account.
//!
//! A child process does one operation while it is stepped instruction by instruction. The page as it is after an
//! instruction is the page that a death there would leave, so each page that differs from the one before is tried: one
//! reap by a survivor must make the total what the living hold, and while the child is only stopped nobody may have to
//! wait for it. At the same places the child is then really killed.

#![cfg(all(target_os = "linux", not(loom)))]
#![allow(unsafe_code, reason = "steps a child process, maps shared memory")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
#![allow(clippy::arithmetic_side_effects, clippy::panic, reason = "tests")]
#![allow(clippy::print_stdout, reason = "tests say what they covered")]

use std::ptr;

use tessera_region::{ACCOUNT_SIZE, Account, MAX_CARDS, MAX_SLOTS, Owner, SlotIndex};

const LIMIT: u64 = 1000;
/// Far more than any operation takes.
const STEPS_MAX: u64 = 20_000_000;

/// An account in memory that a child shares.
struct Page(*mut u8);

impl Page {
    fn new() -> Self {
        // SAFETY: a fresh shared mapping.
        let page = unsafe {
            libc::mmap(
                ptr::null_mut(),
                ACCOUNT_SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert!(page != libc::MAP_FAILED);
        let page = Self(page.cast());
        let head = Account::fresh_head();
        // SAFETY: within the mapping, and nobody else knows it yet.
        unsafe { ptr::copy_nonoverlapping(head.as_ptr(), page.0, head.len()) };
        page
    }

    fn account(&self) -> &Account {
        // SAFETY: mapped with this size for as long as `self` lives, and a page is aligned.
        unsafe { Account::from_ptr(self.0) }.unwrap()
    }

    /// What a death now would leave: the words outside the slots, and the slots below `slots`.
    fn words(&self, slots: usize) -> Vec<u8> {
        let slot = 64 + 64 * MAX_CARDS;
        let length = 64 + 64 * MAX_CARDS + 8 * MAX_SLOTS + slot * slots;
        // SAFETY: within the mapping; the child is stopped.
        unsafe { std::slice::from_raw_parts(self.0, length) }.to_vec()
    }

    fn copy(words: &[u8]) -> Self {
        let page = Self::new();
        // SAFETY: within the fresh mapping.
        unsafe { ptr::copy_nonoverlapping(words.as_ptr(), page.0, words.len()) };
        page
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`; nothing refers to it any more.
        unsafe { libc::munmap(self.0.cast(), ACCOUNT_SIZE) };
    }
}

/// One operation of the child, what happened before it, and what a page after it may look like.
struct Scenario {
    name: &'static str,
    /// Before the child begins: slots of the survivor, the child, and somebody who died earlier.
    prepare: fn(&Account) -> Option<SlotIndex>,
    act: fn(&Account, Option<SlotIndex>),
}

fn owner(pid: u32) -> Owner {
    Owner::new(pid, 1, 1).unwrap()
}

// Pids that are multiples of the number of slots begin their search at the first one.
const STEP: u32 = 1024;

fn survivor() -> Owner {
    owner(STEP)
}

fn child() -> Owner {
    owner(2 * STEP)
}

fn gone() -> Owner {
    owner(3 * STEP)
}

fn attached(account: &Account) -> Option<SlotIndex> {
    account.attach(child())
}

fn holding(account: &Account) -> Option<SlotIndex> {
    let slot = attached(account)?;
    account.reserve(slot, 0, 300, LIMIT).unwrap();
    account.set_contexts(slot, 0, 1);
    Some(slot)
}

const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "attach",
        prepare: |_| None,
        act: |account, _| assert!(attached(account).is_some()),
    },
    Scenario {
        name: "reserve",
        prepare: attached,
        act: |account, slot| account.reserve(slot.unwrap(), 0, 400, LIMIT).unwrap(),
    },
    Scenario {
        name: "reserve more",
        prepare: holding,
        act: |account, slot| account.reserve(slot.unwrap(), 0, 400, LIMIT).unwrap(),
    },
    Scenario {
        name: "refused",
        prepare: holding,
        act: |account, slot| assert!(account.reserve(slot.unwrap(), 0, 800, LIMIT).is_err()),
    },
    Scenario {
        name: "release",
        prepare: holding,
        act: |account, slot| account.release(slot.unwrap(), 0, 200),
    },
    Scenario {
        name: "book",
        prepare: holding,
        act: |account, slot| account.book(slot.unwrap(), 0, 50),
    },
    Scenario {
        name: "adjust",
        prepare: holding,
        act: |account, slot| account.adjust(slot.unwrap(), 0, 300, 250, LIMIT).unwrap(),
    },
    Scenario {
        name: "detach",
        prepare: holding,
        act: |account, slot| assert_eq!(account.detach(slot.unwrap(), child()).bytes, 300),
    },
    Scenario {
        name: "reap",
        prepare: |account| {
            let slot = holding(account);
            let dead = account.attach(gone()).unwrap();
            account.reserve(dead, 0, 120, LIMIT).unwrap();
            slot
        },
        act: |account, slot| {
            let reaped = account.reap(slot.unwrap(), child(), |who| who != gone());
            assert_eq!((reaped.slots, reaped.bytes), (1, 120));
        },
    },
];

/// The slots that scenarios use.
const USED: usize = 4;

/// A stopped child that is about to act.
struct Stepped(libc::pid_t);

impl Stepped {
    fn start(page: &Page, scenario: &Scenario, slot: Option<SlotIndex>) -> Self {
        // SAFETY: the child only acts on the shared page and ends; it takes no lock of this process.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0);
        if pid == 0 {
            // SAFETY: asks the parent to trace this process, and stops.
            unsafe {
                libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
                libc::raise(libc::SIGSTOP);
            }
            (scenario.act)(page.account(), slot);
            // SAFETY: the second stop ends the steps.
            unsafe {
                libc::raise(libc::SIGSTOP);
                libc::_exit(0);
            }
        }
        let child = Self(pid);
        assert_eq!(child.stopped(), Some(libc::SIGSTOP));
        child
    }

    /// The signal that stopped the child; nothing when it ended.
    fn stopped(&self) -> Option<i32> {
        let mut status = 0;
        // SAFETY: a child of this test.
        let found = unsafe { libc::waitpid(self.0, &raw mut status, 0) };
        assert_eq!(found, self.0);
        libc::WIFSTOPPED(status).then(|| libc::WSTOPSIG(status))
    }

    /// One instruction further; false at the end of the act.
    fn step(&self) -> bool {
        // SAFETY: a stopped child of this test.
        let code = unsafe { libc::ptrace(libc::PTRACE_SINGLESTEP, self.0, 0, 0) };
        assert_eq!(code, 0, "{}", std::io::Error::last_os_error());
        match self.stopped() {
            Some(libc::SIGTRAP) => true,
            Some(libc::SIGSTOP) => false,
            other => panic!("the child stopped by {other:?}"),
        }
    }

    fn kill(self) {
        // SAFETY: a child of this test.
        unsafe { libc::kill(self.0, libc::SIGKILL) };
        while self.stopped().is_some() {}
    }
}

/// A fresh account with a survivor that holds 100 in its first slot.
fn prepared(scenario: &Scenario) -> (Page, SlotIndex, Option<SlotIndex>) {
    let page = Page::new();
    let account = page.account();
    let mine = account.attach(survivor()).unwrap();
    account.reserve(mine, 0, 100, LIMIT).unwrap();
    let slot = (scenario.prepare)(account);
    (page, mine, slot)
}

fn held(account: &Account) -> u64 {
    (0..u16::try_from(MAX_SLOTS).unwrap())
        .filter_map(SlotIndex::from_number)
        .filter(|slot| account.owner(*slot).is_some())
        .map(|slot| account.held(slot, 0))
        .sum()
}

fn owners(account: &Account) -> usize {
    (0..u16::try_from(MAX_SLOTS).unwrap())
        .filter_map(SlotIndex::from_number)
        .filter(|slot| account.owner(*slot).is_some())
        .count()
}

/// The child is stopped here and lives: it delays nobody, and nothing is taken from it.
fn check_stopped(page: &Page, mine: SlotIndex, place: &str) {
    let account = page.account();
    let total = account.used(0);
    assert!(held(account) <= total && total <= LIMIT, "{place}: {total}");
    account.reap(mine, survivor(), |who| who != gone());
    assert!(held(account) <= account.used(0), "{place}");
    let rest = LIMIT - account.used(0);
    assert!(
        account.reserve(mine, 0, rest, LIMIT).is_ok(),
        "{place}: what is left fits"
    );
    assert!(
        account.reserve(mine, 0, 1, LIMIT).is_err(),
        "{place}: nothing more does"
    );
    account.release(mine, 0, rest);
}

/// The child died here: after one reap the account is the survivor's alone.
fn check_dead(page: &Page, mine: SlotIndex, place: &str) {
    let account = page.account();
    account.reap(mine, survivor(), |who| who == survivor());
    assert_eq!((account.used(0), account.held(mine, 0)), (100, 100), "{place}");
    assert_eq!(owners(account), 1, "{place}");
    assert_eq!(account.owner(mine), Some(survivor()), "{place}");
    let newcomer = account.attach(owner(4 * STEP)).unwrap();
    assert_eq!(account.held(newcomer, 0), 0, "{place}");
    assert!(account.reserve(newcomer, 0, LIMIT - 100, LIMIT).is_ok(), "{place}");
    account.detach(newcomer, owner(4 * STEP));
    assert_eq!(account.used(0), 100, "{place}");
}

/// Steps the child through its act and calls `at` for every page that differs from the one before, and for the first.
/// The number of instructions, and after which of them the page had changed.
fn step_through(scenario: &Scenario, mut at: impl FnMut(&[u8], SlotIndex, u64)) -> (u64, Vec<u64>) {
    let (page, mine, slot) = prepared(scenario);
    let stepped = Stepped::start(&page, scenario, slot);
    let mut before = page.words(USED);
    at(&before, mine, 0);
    let (mut steps, mut changes) = (0, vec![0]);
    while stepped.step() {
        steps += 1;
        assert!(steps < STEPS_MAX, "{} does not end", scenario.name);
        let words = page.words(USED);
        if words != before {
            at(&words, mine, steps);
            changes.push(steps);
            before = words;
        }
    }
    stepped.kill();
    (steps, changes)
}

#[test]
fn a_death_at_any_instruction_costs_one_reap_and_no_wait() {
    for scenario in SCENARIOS {
        let (steps, changes) = step_through(scenario, |words, mine, step| {
            let place = format!("{} after {step} instructions", scenario.name);
            check_stopped(&Page::copy(words), mine, &place);
            check_dead(&Page::copy(words), mine, &place);
        });
        println!(
            "{}: {steps} instructions, {} different pages",
            scenario.name,
            changes.len()
        );
        assert!(changes.len() > 1, "{} changed nothing", scenario.name);
        // And really, on the page that the child itself has changed.
        for target in changes {
            let (page, mine, slot) = prepared(scenario);
            let stepped = Stepped::start(&page, scenario, slot);
            let mut done = 0;
            while done < target && stepped.step() {
                done += 1;
            }
            stepped.kill();
            check_dead(
                &page,
                mine,
                &format!("{} killed after {target} instructions", scenario.name),
            );
        }
    }
}
