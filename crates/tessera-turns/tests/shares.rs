//! Shares on a card in virtual time: kernels one after another, each launched only through an open gate.

use tessera_turns::{Demand, Gate, Share, Turns};

const SECOND: u64 = 1_000_000_000;
/// Idle time of the card between two turns.
const HAND_OVER: u64 = 30_000;
/// Time between two looks at a turn.
const LOOK: u64 = 200_000;

/// Busy time of each tenant, in 1/100 of a percent of `total` nanoseconds. All are always busy.
fn run(shares: &[Share], kernels: &[u64], total: u64, hand_over: u64) -> Vec<u64> {
    let mut turns = Turns::new(10_000_000, 0, shares);
    let mut busy = vec![0; shares.len()];
    let (mut now, mut last) = (0, None);
    let wants = wants(true, false);
    let mut queued = vec![wants; shares.len()];
    while now < total {
        let answer = turns.step(now, &queued);
        queued.fill(wants);
        let who = match answer.gate {
            Gate::Turn(who) => who,
            Gate::Open => 0,
            Gate::Held => {
                now = answer
                    .ask_at_ns
                    .expect("a held gate with nothing in flight opens by time")
                    .max(now + 1);
                continue;
            }
        };
        if last != Some(who) {
            // Looked at meanwhile, as an agent does.
            for look in 1..=hand_over / LOOK {
                let held = turns.step(now + look * LOOK, &queued);
                assert_eq!(held.gate, answer.gate, "a turn ends before it began");
            }
            now += hand_over;
            last = Some(who);
        }
        // The launch is seen in flight before it ends; the gate must not pass anybody else meanwhile.
        let mut flying = queued.clone();
        flying[who].in_flight = true;
        let end = now + kernels[who];
        if answer.gate != Gate::Open && answer.ask_at_ns.is_some_and(|at| at < end) {
            let held = turns.step(end - 1, &flying);
            assert!(
                held.gate == Gate::Held || held.gate == Gate::Turn(who),
                "{held:?} while {who} is in flight"
            );
        }
        busy[who] += kernels[who];
        queued[who].launched = true;
        now = end;
    }
    busy.iter().map(|ns| ns * 10_000 / now).collect()
}

fn check(parts: &[u32], cap: bool, kernels: &[u64], error: u64) {
    let shares: Vec<_> = parts
        .iter()
        .map(|&permille| Share {
            permille,
            cap,
            ..Share::default()
        })
        .collect();
    let got = run(&shares, kernels, 10 * SECOND, HAND_OVER);
    let sum: u64 = got.iter().sum();
    for (part, got) in parts.iter().zip(&got) {
        assert!(
            got.abs_diff(u64::from(*part) * 10) <= error,
            "{parts:?} cap {cap} {kernels:?}: {got:?} {sum}"
        );
    }
}

const US10: u64 = 10_000;
const MS1: u64 = 1_000_000;
const MS50: u64 = 50_000_000;

#[test]
fn busy_tenants_get_their_parts_over_ten_seconds() {
    for cap in [true, false] {
        for kernels in [[US10; 3], [MS1; 3], [US10, MS1, US10]] {
            check(&[300, 700], cap, &kernels, 50);
            check(&[100, 900], cap, &kernels, 50);
            check(&[200, 300, 500], cap, &kernels, 50);
        }
    }
}

/// Largest error of a tenant in 1/100 of a percent of the card over spans of this length, and the least sum of all.
fn worst(parts: &[u32], span: u64) -> (u64, u64) {
    let shares: Vec<_> = parts
        .iter()
        .map(|&permille| Share {
            permille,
            ..Share::default()
        })
        .collect();
    // Kernels of 300 us do not divide a turn.
    let got = run(&shares, &vec![300_000; parts.len()], span, HAND_OVER);
    let off = parts
        .iter()
        .zip(&got)
        .map(|(part, got)| got.abs_diff(u64::from(*part) * 10));
    (off.max().unwrap_or(0), got.iter().sum())
}

#[test]
fn errors_over_one_and_ten_seconds_are_small_and_the_card_is_hardly_idle() {
    for parts in [&[300, 700][..], &[100, 900], &[200, 300, 500]] {
        let (long, whole) = worst(parts, 10 * SECOND);
        let (short, _) = worst(parts, SECOND);
        println!("{parts:?}: off by {long} over 10 s, {short} over 1 s, of 10000; all together {whole}");
        assert!(long <= 50 && short <= 200, "{parts:?}: {long} and {short}");
        assert!(whole >= 9_900, "{parts:?}: {whole}");
    }
}

#[test]
fn shares_hold_where_processes_are_woken_late() {
    // On a busy host it takes a process 1.5 ms to run: half of a turn of 3 ms.
    for (parts, cap) in [([300, 700], false), ([100, 900], false), ([300, 600], true)] {
        let shares = parts.map(|permille| Share {
            permille,
            cap,
            ..Share::default()
        });
        let got = run(&shares, &[MS1; 2], 10 * SECOND, 1_500_000);
        let sum: u64 = got.iter().sum();
        let whole = if cap { 10_000 } else { sum };
        for (part, got) in parts.iter().zip(&got) {
            let wanted = u64::from(*part) * whole / 1000;
            assert!(got.abs_diff(wanted) <= 200, "{parts:?} cap {cap}: {got:?}");
        }
        // Rounds have grown, so that the card is not idle for long.
        assert!(sum >= 8_500, "{parts:?} cap {cap}: {got:?}");
    }
}

#[test]
fn who_never_begins_gains_little_by_it() {
    let shares = [Share::default(); 2];
    let mut turns = Turns::new(10_000_000, 0, &shares);
    let (idler, worker) = (wants(true, false), wants(true, true));
    let (mut now, mut held, mut given) = (0, 0, [0_u64; 2]);
    while now < 10 * SECOND {
        let answer = turns.step(now, &[idler, if held == 1 { worker } else { idler }]);
        now += LOOK;
        if let Gate::Turn(who) = answer.gate {
            held = who;
            given[who] += LOOK;
        } else {
            held = 0;
        }
    }
    assert!(given[0] <= given[1] * 8 / 5, "{given:?}");
}

#[test]
fn a_cap_holds_alone_whatever_the_size_of_kernels() {
    for kernel in [US10, MS1, MS50] {
        check(&[500], true, &[kernel], 100);
    }
}

#[test]
fn a_weight_alone_has_the_card_without_turns() {
    let mut turns = Turns::new(
        10_000_000,
        0,
        &[Share {
            permille: 300,
            ..Share::default()
        }; 2],
    );
    let only = [wants(true, true), Demand::default()];
    assert_eq!(turns.step(0, &only).gate, Gate::Open);
}

fn wants(queued: bool, in_flight: bool) -> Demand {
    Demand {
        queued,
        in_flight,
        launched: false,
    }
}

fn high_and_low(permille: u32) -> [Share; 2] {
    [
        Share {
            permille,
            priority: 0,
            ..Share::default()
        },
        Share {
            least_permille: 10,
            ..Share::default()
        },
    ]
}

#[test]
fn a_more_important_tenant_ends_a_turn_at_once_and_goes_next() {
    let mut turns = Turns::new(10_000_000, 0, &high_and_low(1000));
    let low = [wants(false, false), wants(true, true)];
    assert_eq!(turns.step(0, &low).gate, Gate::Open);
    let both = [wants(true, false), wants(true, true)];
    assert_eq!(
        turns.step(1_000, &both).gate,
        Gate::Turn(0),
        "nothing was given away before"
    );
    turns.step(10_000, &low);
    assert_eq!(
        turns.step(20_000, &[wants(false, false), wants(true, false)]).gate,
        Gate::Open
    );
    let mut turns = Turns::new(
        10_000_000,
        0,
        &[Share::default(), Share::default(), high_and_low(1000)[0]],
    );
    let two = [wants(true, false), wants(true, false), wants(false, false)];
    let Gate::Turn(who) = turns.step(0, &two).gate else {
        panic!("two want to run");
    };
    let mut three = two;
    three[2].queued = true;
    three[who].in_flight = true;
    assert_eq!(turns.step(100_000, &three).gate, Gate::Held, "the turn ends and drains");
    three[who].in_flight = false;
    assert_eq!(turns.step(200_000, &three).gate, Gate::Turn(2));
}

/// Parts in 1/1000 of two tenants that always want to run, over some seconds.
fn parts(shares: &[Share]) -> Vec<u64> {
    let (mut turns, mut now) = (Turns::new(10_000_000, 0, shares), 0);
    let mut busy = vec![0; shares.len()];
    let all = vec![wants(true, false); shares.len()];
    while now < 20 * SECOND {
        let answer = turns.step(now, &all);
        let Gate::Turn(who) = answer.gate else {
            panic!("{answer:?}");
        };
        let until = answer.ask_at_ns.expect("a turn ends").max(now + 1);
        busy[who] += until - now;
        now = until;
    }
    busy.iter().map(|ns| ns * 1000 / now).collect()
}

#[test]
fn what_is_kept_for_the_less_important_is_given() {
    let got = parts(&high_and_low(1000));
    assert!(got[1].abs_diff(10) <= 1, "{got:?}");
}

#[test]
fn who_wants_to_go_first_for_ever_uses_up_its_own_share() {
    let got = parts(&high_and_low(300));
    // 300 of 1000 and an equal weight in what is left; never all of it.
    assert!(got[1] > 400, "{got:?}");
    assert!(got[0] >= 230, "{got:?}");
}

#[test]
fn debts_and_the_present_turn_survive_a_change_of_tenants() {
    let half = Share {
        permille: 500,
        ..Share::default()
    };
    let mut turns = Turns::new(10_000_000, 0, &[half, half]);
    let both = [wants(true, false); 2];
    let Gate::Turn(first) = turns.step(0, &both).gate else {
        panic!("two want to run");
    };
    turns.change(&[(half, None), (half, Some(first)), (half, Some(1 - first))]);
    let three = [wants(false, false), wants(true, false), wants(true, false)];
    assert_eq!(turns.step(1_000_000, &three).gate, Gate::Turn(1), "its turn goes on");
    assert_eq!(
        turns.step(100_000_000, &three).gate,
        Gate::Turn(2),
        "what it took too much is owed"
    );
}
