//! Who may launch on one card, from figures alone.
//!
//! Puts [`Turns`] to work on what containers say of themselves ([`TurnFigures`]): who waits, who works, what is still on
//! the card. Those words are the tenants' own, so none of them can hold the card for ever: work that does not get on is
//! not waited for much longer than it was predicted to take, and who waits must say so again and again.
//!
//! A gate is open for the tenant whose turn it is. While nobody else wants the card, that is the one who had it last,
//! for nothing; the others ask first.

use std::collections::BTreeMap;

use tessera_region::{CardGrant, GATE_CLOSED, GATE_RING, MARK_NS, TurnFigures, ring_bit};
use tessera_turns::{Demand, Gate, Share, Turns};

/// Length of a round.
const QUANTUM_NS: u64 = 10_000_000;
/// How long after its last launch a tenant still counts as one that launches.
const GRACE_NS: u64 = 300_000;
/// How long work without a mark is taken to be on the card.
const TAIL_NS: u64 = 2 * MARK_NS;
/// How long work is waited for at least, and how much longer than predicted.
const STUCK_NS: u64 = 200_000_000;
const STUCK_TIMES: u64 = 4;
/// A thread that waits says so more often than this, on the real clock.
const ASKED_NS: u64 = 250_000_000;
/// How long after a change a process is looked at each time.
const LIVELY_NS: u64 = 1_000_000_000;
/// So many looks with a ring for nothing are enough.
const IDLE_RINGS: u32 = 4;
/// How long who rang for nothing is not listened to.
const MUTED_NS: u64 = 10_000_000;
/// Pause between looks while a turn goes on, and while one drains.
const TURN_LOOK_NS: u64 = 200_000;
const DRAIN_LOOK_NS: u64 = 20_000;

/// One container at the card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    /// Name of its grant.
    pub grant: String,
    /// What the grant says of this card.
    pub card: CardGrant,
}

/// What a look at one container is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The gate word.
    pub gate: u32,
    /// Whether it keeps at most two launches on the card.
    pub brief: bool,
    /// Whose rings stop it, one bit for each position among the seats.
    pub heed: u64,
    /// Whether it may ring.
    pub rings: bool,
}

/// What one process said before.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    figures: TurnFigures,
    changed_ns: u64,
}

#[derive(Debug)]
struct Tenant {
    seat: Seat,
    seen: BTreeMap<usize, Seen>,
    active_ns: Option<u64>,
    demand: Demand,
    /// Looks at which it had rung for nothing, since the last at which it wanted the card.
    idle_rings: u32,
    /// Until when its rings do not count.
    muted_ns: u64,
}

/// One card.
#[derive(Debug)]
pub struct Turnstile {
    turns: Turns,
    tenants: Vec<Tenant>,
    /// Whose gate stays open while nobody wants the card.
    last: Option<usize>,
}

fn share_of(card: &CardGrant) -> Share {
    Share {
        permille: if card.limits_cores() { card.cores_permille } else { 1000 },
        cap: card.limits_cores() && card.flags.contains(tessera_region::CardFlags::CORE_CAP),
        priority: card.priority,
        least_permille: card.min_cores_permille,
    }
}

impl Turnstile {
    /// A card that nobody uses yet.
    #[must_use]
    pub fn new(now_ns: u64) -> Self {
        Self {
            turns: Turns::new(QUANTUM_NS, now_ns, &[]),
            tenants: Vec::new(),
            last: None,
        }
    }

    /// The containers at this card, in the order of [`Turnstile::step`]'s answers.
    pub fn seats(&self) -> impl Iterator<Item = &Seat> {
        self.tenants.iter().map(|tenant| &tenant.seat)
    }

    /// Goes on with these containers; the order may be any.
    pub fn set_seats(&mut self, seats: &[Seat]) {
        if self.seats().eq(seats) {
            return;
        }
        let before = |grant: &str| self.tenants.iter().position(|tenant| tenant.seat.grant == grant);
        let shares: Vec<(Share, Option<usize>)> = seats
            .iter()
            .map(|seat| (share_of(&seat.card), before(&seat.grant)))
            .collect();
        self.turns.change(&shares);
        self.last = self
            .last
            .and_then(|last| shares.iter().position(|(_, before)| *before == Some(last)));
        let mut old: BTreeMap<String, Tenant> = std::mem::take(&mut self.tenants)
            .into_iter()
            .map(|tenant| (tenant.seat.grant.clone(), tenant))
            .collect();
        self.tenants = seats
            .iter()
            .map(|seat| {
                let tenant = old.remove(&seat.grant);
                Tenant {
                    seat: seat.clone(),
                    ..tenant.unwrap_or_else(|| Tenant {
                        seat: seat.clone(),
                        seen: BTreeMap::new(),
                        active_ns: None,
                        demand: Demand::default(),
                        idle_rings: 0,
                        muted_ns: 0,
                    })
                }
            })
            .collect();
    }

    /// Places in the account of those processes that are worth a look: they want something or work, or did lately.
    pub fn lively(&self, seat: usize, now_ns: u64) -> impl Iterator<Item = usize> + '_ {
        let seen = self.tenants.get(seat).map(|tenant| &tenant.seen);
        seen.into_iter().flatten().filter_map(move |(slot, seen)| {
            let recent = now_ns.saturating_sub(seen.changed_ns) < LIVELY_NS;
            (recent || seen.figures.asked_ns != 0 || seen.figures.pending_ns > 0).then_some(*slot)
        })
    }

    /// Takes in what processes of one container say, by their place in the account; the others do nothing. `now_ns` is
    /// the clock of the turns, `clock_ns` the one that waiting threads tell their time by.
    pub fn observe(
        &mut self,
        seat: usize,
        now_ns: u64,
        clock_ns: u64,
        figures: impl Iterator<Item = (usize, TurnFigures)>,
    ) {
        let Some(tenant) = self.tenants.get_mut(seat) else {
            return;
        };
        let mut demand = Demand::default();
        for (slot, figures) in figures {
            let before = tenant.seen.get(&slot).copied();
            let mut entry = before.unwrap_or_default();
            if figures.launched_ns != entry.figures.launched_ns {
                tenant.active_ns = Some(now_ns);
                demand.launched = true;
            }
            let work = |figures: TurnFigures| (figures.launched_ns, figures.pending_ns, figures.marked_ns);
            if before.is_none() || work(figures) != work(entry.figures) {
                entry.changed_ns = now_ns;
            }
            entry.figures = figures;
            let still_ns = now_ns.saturating_sub(entry.changed_ns);
            let asks = figures.asked_ns != 0 && clock_ns.saturating_sub(figures.asked_ns) < ASKED_NS;
            let patience_ns = if figures.marked_ns == 0 {
                TAIL_NS
            } else {
                figures.marked_ns.saturating_mul(STUCK_TIMES).saturating_add(STUCK_NS)
            };
            demand.queued |= asks;
            demand.in_flight |= figures.pending_ns > 0 && still_ns < patience_ns;
            tenant.seen.insert(slot, entry);
        }
        let launches = tenant
            .active_ns
            .is_some_and(|active| now_ns.saturating_sub(active) < GRACE_NS);
        demand.queued |= launches;
        tenant.demand = demand;
    }

    /// Takes in who rang since the last look, one bit for each position among the seats. Who rings and does not want the
    /// card is not listened to for a while: it would hold up others and pay nothing for it.
    pub fn note_rings(&mut self, now_ns: u64, rang: u64) {
        for (who, tenant) in self.tenants.iter_mut().enumerate() {
            let idle = !tenant.demand.queued && !tenant.demand.in_flight;
            if !idle {
                tenant.idle_rings = 0;
            } else if rang & ring_bit(who) != 0 {
                tenant.idle_rings += 1;
            }
            if tenant.idle_rings >= IDLE_RINGS {
                tenant.idle_rings = 0;
                tenant.muted_ns = now_ns.saturating_add(MUTED_NS);
            }
        }
    }

    /// Whose rings stop a tenant now.
    fn heed(&self, who: usize, now_ns: u64) -> u64 {
        let Some(own) = self.tenants.get(who).map(|tenant| tenant.seat.card.priority) else {
            return 0;
        };
        if self.turns.is_kept(who) {
            return 0;
        }
        let counts = |&(other, tenant): &(usize, &Tenant)| {
            tenant.seat.card.priority < own && tenant.muted_ns <= now_ns && self.goes_first(other)
        };
        let all = self.tenants.iter().enumerate().filter(counts);
        all.fold(0, |bits, (other, _)| bits | ring_bit(other))
    }

    /// Whether somebody is on the way to launch or has work on the card.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.tenants.iter().any(|t| t.demand.queued || t.demand.in_flight)
    }

    /// Decides after all containers were observed: a verdict for each, and when to look again if nobody rings before.
    pub fn step(&mut self, now_ns: u64) -> (Vec<Verdict>, Option<u64>) {
        let demand: Vec<Demand> = self
            .tenants
            .iter()
            .enumerate()
            .map(|(who, tenant)| Demand {
                // Its gate stands open, so its work is not announced by waiting.
                queued: tenant.demand.queued || (tenant.demand.in_flight && self.goes_first(who)),
                ..tenant.demand
            })
            .collect();
        let answer = self.turns.step(now_ns, &demand);
        let wants = |who: usize| demand.get(who).is_some_and(|d| d.queued || d.in_flight);
        match answer.gate {
            Gate::Turn(who) => self.last = Some(who),
            Gate::Open => self.last = (0..demand.len()).find(|&who| wants(who)).or(self.last),
            Gate::Held => {}
        }
        let alone = self.tenants.len() == 1;
        let verdicts = (0..self.tenants.len())
            .map(|who| {
                let capped = self.tenants.get(who).is_some_and(|t| share_of(&t.seat.card).cap);
                let open = match answer.gate {
                    Gate::Turn(turn) => turn == who,
                    Gate::Open => !capped && (alone || self.last == Some(who)),
                    Gate::Held => false,
                };
                let first = !capped && self.goes_first(who) && !self.turns.holds_back(who);
                Verdict {
                    gate: match (open, first) {
                        (_, true) => GATE_RING,
                        (true, false) => 0,
                        (false, false) => GATE_CLOSED,
                    },
                    brief: self.may_be_outranked(who),
                    heed: self.heed(who, now_ns),
                    rings: self.may_outrank(who),
                }
            })
            .collect();
        let busy = demand.iter().any(|d| d.queued || d.in_flight);
        let contended = (0..demand.len()).filter(|&who| wants(who)).count() > 1;
        let first_works = (0..demand.len()).any(|who| wants(who) && self.goes_first(who));
        let next = match answer.gate {
            _ if !busy => None,
            // The end of a more important tenant's work is not announced, but only matters to somebody who waits.
            Gate::Open if !contended && !first_works => None,
            Gate::Open => Some(now_ns.saturating_add(TURN_LOOK_NS)),
            Gate::Held if answer.ask_at_ns.is_none() => Some(now_ns.saturating_add(DRAIN_LOOK_NS)),
            Gate::Held => answer.ask_at_ns,
            Gate::Turn(_) => {
                let look = now_ns.saturating_add(TURN_LOOK_NS);
                Some(answer.ask_at_ns.map_or(look, |at| at.min(look)))
            }
        };
        (verdicts, next)
    }

    fn goes_first(&self, who: usize) -> bool {
        self.turns.goes_first(who)
    }

    /// Whether a tenant has less important neighbours.
    pub fn may_outrank(&self, who: usize) -> bool {
        let of = |who: usize| self.tenants.get(who).map_or(0, |t| t.seat.card.priority);
        (0..self.tenants.len()).any(|other| of(other) > of(who))
    }

    /// Whether a tenant has more important neighbours.
    pub fn may_be_outranked(&self, who: usize) -> bool {
        let of = |who: usize| self.tenants.get(who).map_or(u8::MAX, |t| t.seat.card.priority);
        (0..self.tenants.len()).any(|other| of(other) < of(who))
    }
}

#[cfg(test)]
mod tests {
    use tessera_region::CardFlags;

    use super::*;

    const MS: u64 = 1_000_000;

    fn seat(name: &str, permille: u32, cap: bool) -> Seat {
        let mut card = CardGrant::with_memory("GPU-a", 1 << 30).unwrap();
        card.cores_permille = permille;
        if cap {
            card.flags = card.flags.with(CardFlags::CORE_CAP);
        }
        Seat {
            grant: name.to_owned(),
            card,
        }
    }

    fn important(name: &str) -> Seat {
        let mut seat = seat(name, 1000, false);
        seat.card.priority = 0;
        seat
    }

    fn figures(launched: u64, pending: u64, asked: u64) -> TurnFigures {
        TurnFigures {
            launched_ns: launched,
            pending_ns: pending,
            marked_ns: pending,
            asked_ns: asked,
        }
    }

    fn look(stile: &mut Turnstile, now: u64, all: &[Option<TurnFigures>]) -> (Vec<u32>, Option<u64>) {
        for (seat, figures) in all.iter().enumerate() {
            stile.observe(seat, now, now, figures.iter().map(|f| (3, *f)));
        }
        let (verdicts, next) = stile.step(now);
        (verdicts.iter().map(|v| v.gate).collect(), next)
    }

    fn stile(seats: &[Seat]) -> Turnstile {
        let mut stile = Turnstile::new(0);
        stile.set_seats(seats);
        stile
    }

    #[test]
    fn a_tenant_alone_is_never_held_and_nobody_looks() {
        let mut stile = stile(&[seat("a", 300, false)]);
        assert_eq!(look(&mut stile, 1, &[None]), (vec![0], None));
        assert_eq!(look(&mut stile, 2, &[Some(figures(5, 5, 0))]), (vec![0], None));
    }

    #[test]
    fn the_last_tenant_keeps_its_gate_until_another_asks() {
        let mut stile = stile(&[seat("a", 300, false), seat("b", 700, false)]);
        let closed = GATE_CLOSED;
        assert_eq!(look(&mut stile, MS, &[None, None]), (vec![closed, closed], None));
        let (gates, next) = look(&mut stile, 2 * MS, &[Some(figures(0, 0, 2 * MS)), None]);
        assert_eq!((gates, next), (vec![0, closed], None));
        let gone = 100 * MS;
        assert_eq!(look(&mut stile, gone, &[Some(figures(9, 0, 0)), None]).0, [0, closed]);
        let (gates, next) = look(
            &mut stile,
            2 * gone,
            &[Some(figures(9, 0, 0)), Some(figures(0, 0, 2 * gone))],
        );
        assert_eq!((gates, next), (vec![closed, 0], None));
    }

    #[test]
    fn a_turn_drains_before_the_next_begins() {
        let mut stile = stile(&[seat("a", 500, false), seat("b", 500, false)]);
        let closed = GATE_CLOSED;
        let both = |now| [Some(figures(0, 0, now)), Some(figures(0, 0, now))];
        let (gates, _) = look(&mut stile, MS, &both(MS));
        let who = gates.iter().position(|gate| *gate == 0).unwrap();
        let mut all = both(20 * MS);
        all[who] = Some(figures(5 * MS, MS, 0));
        let (gates, next) = look(&mut stile, 20 * MS, &all);
        assert_eq!((gates, next), (vec![closed; 2], Some(20 * MS + DRAIN_LOOK_NS)));
        let mut all = both(21 * MS);
        all[who] = Some(figures(5 * MS, 0, 21 * MS));
        let (gates, _) = look(&mut stile, 21 * MS, &all);
        assert_eq!(gates[1 - who], 0);
        assert_eq!(gates[who], closed);
    }

    #[test]
    fn work_that_never_ends_and_a_dead_waiter_hold_nobody_for_ever() {
        let mut stile = stile(&[seat("a", 500, false), seat("b", 500, false)]);
        let b = |now| Some(figures(0, 0, now));
        look(&mut stile, MS, &[Some(figures(0, 0, MS)), None]);
        // It launches 2 ms of work and is killed; then nothing of it changes any more, not even that it waits.
        let dead = Some(figures(2 * MS, 2 * MS, MS));
        look(&mut stile, 2 * MS, &[dead, b(2 * MS)]);
        let mut now = 2 * MS;
        let mut served = 0;
        while now < 1000 * MS {
            let (gates, next) = look(&mut stile, now, &[dead, b(now)]);
            let step = next.map_or(MS, |at| at.saturating_sub(now).max(1000));
            if gates[1] == 0 {
                served += step;
            }
            now += step;
        }
        assert!(served > 700 * MS, "{served}");
    }

    #[test]
    fn a_tail_without_a_mark_is_not_waited_for() {
        let mut stile = stile(&[seat("a", 500, false), seat("b", 500, false)]);
        let tail = Some(TurnFigures {
            marked_ns: 0,
            ..figures(MS, MARK_NS, 0)
        });
        look(&mut stile, MS, &[tail, None]);
        let later = MS + GRACE_NS + TAIL_NS;
        let (gates, _) = look(&mut stile, later, &[tail, Some(figures(0, 0, later))]);
        assert_eq!(gates, [GATE_CLOSED, 0]);
    }

    #[test]
    fn a_more_important_tenant_finds_its_gate_open_and_closes_the_others() {
        let mut low = seat("b", 1000, false);
        low.card.min_cores_permille = 10;
        let mut stile = stile(&[important("a"), low]);
        let (gates, _) = look(&mut stile, MS, &[None, Some(figures(0, 0, MS))]);
        assert_eq!(gates, [GATE_RING, 0]);
        let working = Some(figures(MS, MS, 0));
        let (gates, next) = look(&mut stile, 2 * MS, &[working, working]);
        assert_eq!(gates, [GATE_RING, GATE_CLOSED]);
        assert!(next.is_some());
        let mut verdicts = stile.step(3 * MS).0;
        assert!(!verdicts.remove(0).brief && verdicts.remove(0).brief);
        // Done: the other one goes on.
        let idle = Some(figures(MS, 0, 0));
        look(&mut stile, 4 * MS, &[idle, Some(figures(MS, 0, 4 * MS))]);
        let (gates, _) = look(&mut stile, 5 * MS, &[idle, Some(figures(MS, 0, 5 * MS))]);
        assert_eq!(gates, [GATE_RING, 0]);
    }

    #[test]
    fn rings_count_downwards_and_not_for_who_rings_for_nothing() {
        let mut low = seat("b", 1000, false);
        low.card.min_cores_permille = 10;
        let mut stile = stile(&[important("a"), low]);
        let heed =
            |stile: &mut Turnstile, now| -> Vec<u64> { stile.step(now).0.iter().map(|verdict| verdict.heed).collect() };
        assert_eq!(heed(&mut stile, MS), [0, ring_bit(0)]);
        let rings: Vec<bool> = stile.step(MS).0.iter().map(|verdict| verdict.rings).collect();
        assert_eq!(rings, [true, false]);
        // It works when it rings: it is listened to.
        for look in 2..20 {
            stile.observe(0, look * MS, look * MS, std::iter::once((3, figures(look, MS, 0))));
            stile.note_rings(look * MS, ring_bit(0));
            assert_eq!(heed(&mut stile, look * MS)[1], ring_bit(0));
        }
        // It only rings.
        for look in 0..u64::from(IDLE_RINGS) {
            stile.observe(0, (100 + look) * MS, 0, std::iter::empty());
            stile.note_rings((100 + look) * MS, ring_bit(0));
        }
        assert_eq!(heed(&mut stile, 104 * MS), [0, 0]);
        assert_eq!(heed(&mut stile, 120 * MS), [0, ring_bit(0)]);
    }

    #[test]
    fn what_is_kept_for_the_less_important_is_not_rung_away() {
        let mut low = seat("b", 1000, false);
        low.card.min_cores_permille = 100;
        let mut stile = stile(&[important("a"), low]);
        let (mut kept, mut now) = (false, MS);
        while now < 100 * MS && !kept {
            let busy = Some(figures(now, 0, now));
            for (seat, figures) in [busy, busy].iter().enumerate() {
                stile.observe(seat, now, now, figures.iter().map(|f| (3, *f)));
            }
            let verdicts = stile.step(now).0;
            kept = verdicts[1].gate == 0;
            assert_eq!(verdicts[1].heed == 0, kept, "at {now}");
            now += MS / 5;
        }
        assert!(kept, "no turn was kept");
    }

    #[test]
    fn a_cap_holds_a_tenant_that_is_alone() {
        let mut stile = stile(&[seat("a", 500, true)]);
        assert_eq!(look(&mut stile, MS, &[None]).0, [GATE_CLOSED]);
        let (mut now, mut open) = (MS, 0);
        while now < 1000 * MS {
            let (gates, next) = look(&mut stile, now, &[Some(figures(open, 0, now))]);
            let step = next.unwrap() - now;
            if gates[0] == 0 {
                open += step;
            }
            now += step;
        }
        assert!(open.abs_diff(500 * MS) < 10 * MS, "{open}");
    }

    #[test]
    fn seats_may_change_in_the_middle_of_a_turn() {
        let mut stile = stile(&[seat("a", 500, false), seat("b", 500, false)]);
        let asks = |now| Some(figures(0, 0, now));
        let (gates, _) = look(&mut stile, MS, &[asks(MS), asks(MS)]);
        let who = gates.iter().position(|gate| *gate == 0).unwrap();
        let name = ["a", "b"][who];
        stile.set_seats(&[seat("c", 500, false), seat(name, 500, false)]);
        assert_eq!(look(&mut stile, 2 * MS, &[None, asks(2 * MS)]).0, [GATE_CLOSED, 0]);
        stile.set_seats(&[]);
        assert_eq!(stile.step(3 * MS), (vec![], None));
    }
}
