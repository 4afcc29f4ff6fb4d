//! Who may have memory on a card that is promised more than once.
//!
//! [`Keeper`] decides for one card, from figures alone: no clock, no file. A tenant that waits for its memory gets room
//! in the order of asking. Room is free memory first, then what the others hold, the one whose turn is longest ago
//! first. A turn lasts at least ten times what the last exchange took, so moving costs a tenth of the time at most; if
//! it still takes more than a fifth for half a minute, the tenants *thrash*, which is told, and turns become longer.

use std::collections::BTreeMap;

use tessera_region::Order;
use tessera_region::swap_host::SwapContainer;

/// Shortest turn, in nanoseconds.
const TURN_MIN_NS: u64 = 50_000_000;
/// Longest turn.
const TURN_MAX_NS: u64 = 60_000_000_000;
/// A turn is at least so many times as long as the exchange before it.
const TURN_PER_MOVE: u64 = 10;
/// An order that is not answered for so long is given up: the process may be stopped.
const ANSWER_NS: u64 = 30_000_000_000;
/// Seconds that are looked at for thrashing, one bucket each.
const WINDOW: usize = 30;
/// Percent of the window spent in moving from which tenants thrash.
const THRASH_PERCENT: u64 = 20;
const SECOND_NS: u64 = 1_000_000_000;

/// One container on the card, as [`Keeper::step`] is told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// Name of its grant.
    pub grant: String,
    /// What its processes say.
    pub says: SwapContainer,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Give this order to a container; tell its number to [`Keeper::given`].
    Order {
        /// Name of the grant.
        grant: String,
        /// What to do.
        order: Order,
    },
    /// Tell that the tenants of this card spend so much of their time in moving memory.
    Thrash {
        /// Percent of the last half minute.
        percent: u64,
    },
}

#[derive(Debug, Default)]
struct Known {
    waits_since: Option<u64>,
    turn_ended: u64,
    order: Option<(u32, u64)>,
    moved_ns: u64,
}

/// Decides for one card.
#[derive(Debug, Default)]
pub struct Keeper {
    known: BTreeMap<String, Known>,
    /// Who has the turn, and since when.
    turn: Option<(String, u64)>,
    /// What the last exchange took.
    move_ns: u64,
    /// Time spent in moving, by second.
    window: [u64; WINDOW],
    /// Second of the newest bucket, and of the first.
    second: Option<(u64, u64)>,
    told: Option<u64>,
    /// By how much turns are longer because of thrashing.
    stretch: u64,
}

impl Keeper {
    /// Notes the number under which an order was given.
    pub fn given(&mut self, grant: &str, number: u32, now_ns: u64) {
        self.known.entry(grant.to_owned()).or_default().order = Some((number, now_ns));
    }

    /// One look: `free_bytes` is what the driver says is free on the card. Nothing to do is the usual answer.
    pub fn step(&mut self, now_ns: u64, free_bytes: u64, tenants: &[Tenant]) -> Vec<Action> {
        self.take_in(now_ns, tenants);
        let mut actions: Vec<Action> = self.thrash(now_ns).into_iter().collect();
        if tenants.iter().any(|tenant| self.is_moving(tenant, now_ns)) {
            return actions;
        }
        let next = tenants
            .iter()
            .filter_map(|tenant| Some((self.known.get(&tenant.grant)?.waits_since?, tenant)))
            .min_by(|(a, x), (b, y)| (a, &x.grant).cmp(&(b, &y.grant)));
        let Some((_, next)) = next else { return actions };
        let order = |tenant: &Tenant, order| Action::Order {
            grant: tenant.grant.clone(),
            order,
        };
        let missing = next.says.away_bytes.saturating_sub(free_bytes);
        if missing == 0 {
            let before = self.turn.replace((next.grant.clone(), now_ns));
            if let Some(known) = before.and_then(|(grant, _)| self.known.get_mut(&grant)) {
                known.turn_ended = now_ns;
            }
            actions.push(order(next, Order::Return));
            return actions;
        }
        let in_turn = self
            .turn
            .as_ref()
            .filter(|(grant, _)| *grant != next.grant && tenants.iter().any(|tenant| tenant.grant == *grant));
        if let Some((_, since)) = in_turn
            && now_ns.saturating_sub(*since) < self.turn_ns()
        {
            return actions;
        }
        let holder = in_turn.map(|(grant, _)| grant.clone());
        let mut others: Vec<&Tenant> = tenants
            .iter()
            .filter(|tenant| tenant.grant != next.grant && tenant.says.resident_bytes > 0)
            .collect();
        others.sort_by_key(|tenant| {
            let ended = self.known.get(&tenant.grant).map_or(0, |known| known.turn_ended);
            (Some(&tenant.grant) == holder.as_ref(), ended, &tenant.grant)
        });
        let mut left = missing;
        for tenant in others {
            if left == 0 {
                break;
            }
            let keep = tenant.says.resident_bytes.saturating_sub(left);
            left = left.saturating_sub(tenant.says.resident_bytes);
            // Orders are for each process; together they keep no more than this.
            let keep_bytes = keep / tenant.says.processes.max(1);
            actions.push(order(tenant, Order::Leave { keep_bytes }));
        }
        actions
    }

    /// Least length of the present turn, in nanoseconds.
    #[must_use]
    pub fn turn_ns(&self) -> u64 {
        (self.move_ns.saturating_mul(TURN_PER_MOVE))
            .max(TURN_MIN_NS)
            .saturating_mul(self.stretch.max(1))
            .min(TURN_MAX_NS)
    }

    fn is_moving(&self, tenant: &Tenant, now_ns: u64) -> bool {
        let order = self.known.get(&tenant.grant).and_then(|known| known.order);
        order.is_some_and(|(number, given)| {
            tenant
                .says
                .answered
                .is_some_and(|answered| answered.wrapping_sub(number).cast_signed() < 0)
                && now_ns.saturating_sub(given) < ANSWER_NS
        })
    }

    fn take_in(&mut self, now_ns: u64, tenants: &[Tenant]) {
        self.known
            .retain(|grant, _| tenants.iter().any(|tenant| tenant.grant == *grant));
        let mut moved = 0_u64;
        for tenant in tenants {
            let known = self.known.entry(tenant.grant.clone()).or_default();
            let waits = tenant.says.wants && tenant.says.away_bytes > 0;
            known.waits_since = waits.then(|| known.waits_since.unwrap_or(now_ns));
            // Lower after the death of a process.
            moved = moved.saturating_add(tenant.says.moved_ns.saturating_sub(known.moved_ns));
            known.moved_ns = tenant.says.moved_ns;
        }
        if moved > 0 {
            self.move_ns = moved;
        }
        let second = now_ns / SECOND_NS;
        let (newest, first) = *self.second.get_or_insert((second, second));
        for passed in (newest + 1..=second).rev().take(WINDOW) {
            self.window[bucket(passed)] = 0;
        }
        self.second = Some((second.max(newest), first));
        self.window[bucket(second)] += moved;
    }

    fn thrash(&mut self, now_ns: u64) -> Option<Action> {
        let (newest, first) = self.second?;
        if newest.saturating_sub(first) < WINDOW as u64 {
            return None;
        }
        let percent = self.window.iter().sum::<u64>().saturating_mul(100) / (WINDOW as u64 * SECOND_NS);
        if percent <= THRASH_PERCENT {
            if percent * 4 < THRASH_PERCENT {
                self.stretch = self.stretch.max(1) / 2;
            }
            return None;
        }
        // Told, and turns lengthened, once for each window.
        if self
            .told
            .is_some_and(|at| now_ns.saturating_sub(at) < WINDOW as u64 * SECOND_NS)
        {
            return None;
        }
        self.told = Some(now_ns);
        self.stretch = self.stretch.max(1).saturating_mul(2).min(64);
        Some(Action::Thrash { percent })
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a remainder of a small number")]
fn bucket(second: u64) -> usize {
    (second % WINDOW as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;
    const MS: u64 = 1_000_000;

    fn tenant(grant: &str, wants: bool, resident: u64, away: u64) -> Tenant {
        Tenant {
            grant: grant.to_owned(),
            says: SwapContainer {
                processes: 1,
                wants,
                resident_bytes: resident,
                away_bytes: away,
                answered: Some(0),
                ..SwapContainer::default()
            },
        }
    }

    fn order(grant: &str, order: Order) -> Action {
        Action::Order {
            grant: grant.to_owned(),
            order,
        }
    }

    #[test]
    fn free_memory_comes_first_and_nobody_is_disturbed() {
        let mut keeper = Keeper::default();
        let tenants = [tenant("a", false, 6 * GIB, 0), tenant("b", true, 0, 4 * GIB)];
        assert_eq!(keeper.step(1, 4 * GIB, &tenants), [order("b", Order::Return)]);
    }

    #[test]
    fn others_leave_just_as_much_as_is_missing_the_longest_idle_first() {
        let mut keeper = Keeper::default();
        let mut tenants = [
            tenant("a", false, 5 * GIB, 0),
            tenant("b", false, 5 * GIB, 0),
            tenant("c", true, 0, 7 * GIB),
        ];
        assert_eq!(
            keeper.step(1, GIB, &tenants),
            [
                order("a", Order::Leave { keep_bytes: 0 }),
                order("b", Order::Leave { keep_bytes: 4 * GIB })
            ]
        );
        keeper.given("a", 2, 1);
        keeper.given("b", 2, 1);
        assert_eq!(keeper.step(2, GIB, &tenants), [], "the answers are awaited");
        for (at, resident, away) in [(0, 0, 5 * GIB), (1, 4 * GIB, GIB)] {
            tenants[at].says.answered = Some(2);
            tenants[at].says.resident_bytes = resident;
            tenants[at].says.away_bytes = away;
        }
        assert_eq!(keeper.step(3, 7 * GIB, &tenants), [order("c", Order::Return)]);
    }

    #[test]
    fn several_processes_share_what_may_stay() {
        let mut keeper = Keeper::default();
        let mut tenants = [tenant("a", false, 6 * GIB, 0), tenant("b", true, 0, 4 * GIB)];
        tenants[0].says.processes = 3;
        assert_eq!(
            keeper.step(1, GIB, &tenants),
            [order("a", Order::Leave { keep_bytes: GIB })]
        );
    }

    #[test]
    fn a_turn_lasts_ten_times_what_the_exchange_took() {
        let mut keeper = Keeper::default();
        let first = [tenant("a", true, 0, 8 * GIB), tenant("b", false, 0, 8 * GIB)];
        assert_eq!(keeper.step(MS, 8 * GIB, &first), [order("a", Order::Return)]);
        let mut both = [tenant("a", false, 8 * GIB, 0), tenant("b", true, 0, 8 * GIB)];
        both[0].says.moved_ns = 20 * MS;
        for now in [30, 100, 200] {
            assert_eq!(keeper.step(now * MS, 0, &both), [], "{now} ms");
        }
        assert_eq!(
            keeper.step(201 * MS, 0, &both),
            [order("a", Order::Leave { keep_bytes: 0 })]
        );
    }

    #[test]
    fn who_asked_first_comes_first() {
        let mut keeper = Keeper::default();
        keeper.step(1, 0, &[tenant("b", true, 0, GIB), tenant("a", false, 0, GIB)]);
        let both = [tenant("a", true, 0, GIB), tenant("b", true, 0, GIB)];
        keeper.step(2, 0, &both);
        assert_eq!(keeper.step(3, 5 * GIB, &both), [order("b", Order::Return)]);
    }

    #[test]
    fn an_order_that_nobody_answers_does_not_hold_the_others_for_ever() {
        let mut keeper = Keeper::default();
        let tenants = [tenant("a", false, 4 * GIB, 0), tenant("b", true, 0, GIB)];
        assert_eq!(keeper.step(1, 0, &tenants).len(), 1);
        keeper.given("a", 2, 1);
        assert_eq!(keeper.step(2, 0, &tenants), []);
        assert_eq!(keeper.step(2 + ANSWER_NS, 0, &tenants).len(), 1);
        // One that ended says nothing, and is not waited for.
        let mut gone = tenants;
        gone[0].says = SwapContainer::default();
        keeper.given("a", 4, 3 + ANSWER_NS);
        assert_eq!(keeper.step(4 + ANSWER_NS, GIB, &gone), [order("b", Order::Return)]);
    }

    #[test]
    fn thrashing_is_told_once_and_lengthens_turns() {
        let mut keeper = Keeper::default();
        let mut told = Vec::new();
        let mut tenants = [tenant("a", false, GIB, 0)];
        for second in 0..62 {
            // A quarter of each second.
            tenants[0].says.moved_ns += SECOND_NS / 4;
            told.extend(
                keeper
                    .step(second * SECOND_NS, GIB, &tenants)
                    .into_iter()
                    .map(|a| (second, a)),
            );
        }
        assert_eq!(
            told,
            [
                (30, Action::Thrash { percent: 25 }),
                (60, Action::Thrash { percent: 25 })
            ]
        );
        assert_eq!(keeper.turn_ns(), 4 * 10 * SECOND_NS / 4);
    }

    #[test]
    fn moving_less_than_a_fifth_is_no_thrashing() {
        let mut keeper = Keeper::default();
        let mut tenants = [tenant("a", false, GIB, 0)];
        for second in 0..90 {
            tenants[0].says.moved_ns += SECOND_NS / 10;
            assert_eq!(keeper.step(second * SECOND_NS, GIB, &tenants), [], "{second}");
        }
    }
}
