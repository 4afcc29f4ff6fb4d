//! Shares on a card in virtual time: kernels one after another, each launched only through an open gate.

use tessera_turns::{Demand, Gate, Share, Turns};

const SECOND: u64 = 1_000_000_000;
/// Idle time of the card between two turns.
const HAND_OVER: u64 = 30_000;

/// Busy time of each tenant, in 1/100 of a percent of `total` nanoseconds. All are always busy.
fn run(shares: &[Share], kernels: &[u64], total: u64) -> Vec<u64> {
    let mut turns = Turns::new(10_000_000, 0, shares);
    let mut busy = vec![0; shares.len()];
    let (mut now, mut last) = (0, None);
    let queued = vec![
        Demand {
            queued: true,
            in_flight: false
        };
        shares.len()
    ];
    while now < total {
        let answer = turns.step(now, &queued);
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
            now += HAND_OVER;
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
        now = end;
    }
    busy.iter().map(|ns| ns * 10_000 / now).collect()
}

fn check(parts: &[u32], cap: bool, kernels: &[u64], error: u64) {
    let shares: Vec<_> = parts.iter().map(|&permille| Share { permille, cap }).collect();
    let got = run(&shares, kernels, 10 * SECOND);
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
            cap: false,
        }; 2],
    );
    let only = [
        Demand {
            queued: true,
            in_flight: true,
        },
        Demand::default(),
    ];
    assert_eq!(turns.step(0, &only).gate, Gate::Open);
}
