//! Whose turn it is on a card whose time containers share.
//!
//! While one tenant has its turn nothing else of ours runs, so wall time is device time: shares do not depend on the
//! number of multiprocessors or the size of kernels. Each tenant has a credit in nanoseconds. It grows with the wall
//! clock at the tenant's rate and is charged for the whole of a turn, the drain included, so what a long kernel takes
//! too much is paid back later. Only the time until a tenant that was let in is known to have begun is not charged, up
//! to half of a turn: on a busy host a process is woken late, and that would cost a short turn a larger part than a long
//! one. Where that takes long, rounds grow, so that the card is not idle for a large part of them.
//!
//! More important tenants go first, but only within what they may use: each has an allowance that grows with its share
//! of the wall clock and is kept for a while, and once it is used up the tenant counts among the least important. What is
//! kept for a less important tenant it gets in short turns even so.
//!
//! Nothing here reads a clock, waits, or touches memory that others see: time and demand come in as arguments, the
//! gate goes out.

/// One tenant's part in the card's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Part of the card's time in 1/1000; taken as at least 1 and at most 1000.
    pub permille: u32,
    /// Not exceeded even while the card is otherwise idle. Without it the part is a weight among those that want to run.
    pub cap: bool,
    /// 0 is the most important.
    pub priority: u8,
    /// Part of the card's time in 1/1000 that is kept while a more important tenant wants to run.
    pub least_permille: u32,
}

/// The whole card, at the usual importance.
impl Default for Share {
    fn default() -> Self {
        Self {
            permille: 1000,
            cap: false,
            priority: 1,
            least_permille: 0,
        }
    }
}

/// What one tenant does at this moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// Wants to launch.
    pub queued: bool,
    /// Launched work is not finished.
    pub in_flight: bool,
    /// Something was launched since the demand was last asked.
    pub launched: bool,
}

/// Who may launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// Everybody: at most one tenant wants to, and it has no cap.
    Open,
    /// Only the tenant at this position.
    Turn(usize),
    /// Nobody: a turn is draining, or all who want to have used up their part.
    Held,
}

/// The gate, and when to ask again if no demand changes before; nothing means that only a change matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Who may launch.
    pub gate: Gate,
    /// Time to ask again, on the caller's clock, in nanoseconds.
    pub ask_at_ns: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Tenant {
    share: Share,
    credit_ns: i64,
    /// What it may use ahead of less important ones.
    allowance_ns: i64,
    /// What is kept for it and was not used yet.
    kept_ns: u64,
}

/// Time of the card whose part a tenant may save to go first: an important one that sleeps may work for a while at once.
const ALLOWANCE_NS: u64 = 500_000_000;
/// Length of a turn that a tenant gets although a more important one wants to run.
const KEPT_TURN_NS: u64 = 1_000_000;
/// So many times as long as a tenant takes to begin is a round, at most so many times its usual length.
const LATE_TIMES: u64 = 50;
const LONG_TIMES: u64 = 5;
/// Longest time until a tenant begins that is not charged, and longest part of its turn.
const LATE_MOST_NS: u64 = 2_500_000;

impl Tenant {
    fn new(share: Share) -> Self {
        Self {
            share,
            credit_ns: 0,
            allowance_ns: part_of(ALLOWANCE_NS, share.permille),
            kept_ns: 0,
        }
    }
}

/// So many 1/1000 of a time.
fn part_of(ns: u64, permille: u32) -> i64 {
    let part = u128::from(ns) * u128::from(permille.min(1000)) / 1000;
    i64::try_from(part).unwrap_or(i64::MAX)
}

#[derive(Clone, Copy, Debug)]
enum State {
    Free,
    Running {
        who: usize,
        since_ns: u64,
        until_ns: u64,
        /// Given although somebody more important wants to run.
        kept: bool,
        /// Whether the tenant was seen to work; until then `since_ns` moves along with the looks.
        begun: bool,
    },
    Draining {
        who: usize,
        since_ns: u64,
    },
}

/// The turns on one card.
#[derive(Clone, Debug)]
pub struct Turns {
    quantum_ns: u64,
    longest_ns: u64,
    /// How long tenants lately took to begin, on average.
    late_ns: u64,
    /// When the last turn was given.
    opened_ns: u64,
    now_ns: u64,
    tenants: Vec<Tenant>,
    state: State,
}

impl Turns {
    /// No turn yet. `quantum_ns` is the length of a round in which each tenant has one turn.
    #[must_use]
    pub fn new(quantum_ns: u64, now_ns: u64, shares: &[Share]) -> Self {
        let tenants = shares.iter().map(|&share| Tenant::new(share)).collect();
        Self {
            quantum_ns: quantum_ns.max(1000),
            longest_ns: 0,
            late_ns: 0,
            opened_ns: now_ns,
            now_ns,
            tenants,
            state: State::Free,
        }
    }

    /// Goes on with other tenants: each with its share, and the position that it had before if it was there.
    pub fn change(&mut self, shares: &[(Share, Option<usize>)]) {
        let moved = |who: usize| shares.iter().position(|(_, before)| *before == Some(who));
        self.state = match self.state {
            State::Free => State::Free,
            State::Running {
                who,
                since_ns,
                until_ns,
                kept,
                begun,
            } => moved(who).map_or(State::Free, |who| State::Running {
                who,
                since_ns,
                until_ns,
                kept,
                begun,
            }),
            State::Draining { who, since_ns } => {
                moved(who).map_or(State::Free, |who| State::Draining { who, since_ns })
            }
        };
        self.tenants = shares
            .iter()
            .map(|&(share, before)| match before.and_then(|who| self.tenants.get(who)) {
                Some(tenant) => Tenant { share, ..*tenant },
                None => Tenant::new(share),
            })
            .collect();
    }

    /// Whether a tenant may go ahead of less important ones now.
    #[must_use]
    pub fn goes_first(&self, who: usize) -> bool {
        let Some(tenant) = self.tenants.get(who) else {
            return false;
        };
        tenant.allowance_ns > 0
            && self
                .tenants
                .iter()
                .any(|other| other.share.priority > tenant.share.priority)
    }

    /// How important a tenant is now; one that has used up its allowance is among the least.
    fn level(&self, who: usize) -> u8 {
        self.tenants.get(who).map_or(u8::MAX, |tenant| {
            if tenant.allowance_ns > 0 {
                tenant.share.priority
            } else {
                let priorities = self.tenants.iter().map(|other| other.share.priority);
                priorities.max().unwrap_or(u8::MAX)
            }
        })
    }

    /// The best level among those that want to run.
    fn best_level(&self, of: &impl Fn(usize) -> Demand) -> u8 {
        (0..self.tenants.len())
            .filter(|&who| of(who).queued || of(who).in_flight)
            .map(|who| self.level(who))
            .min()
            .unwrap_or(u8::MAX)
    }

    /// Decides. `demand` has one entry for each tenant, in the order of the shares; one that is missing wants nothing.
    /// A time before the last one counts as the last one.
    pub fn step(&mut self, now_ns: u64, demand: &[Demand]) -> Answer {
        let now_ns = now_ns.max(self.now_ns);
        let of = |who: usize| demand.get(who).copied().unwrap_or_default();
        let last_ns = self.now_ns;
        self.accrue(now_ns, &of);
        self.note_begin(last_ns, &of);
        if let State::Running {
            who,
            since_ns,
            until_ns,
            kept,
            ..
        } = self.state
        {
            let outranked = self.best_level(&of) < self.level(who) && !kept;
            if now_ns < until_ns && of(who).queued && !outranked {
                return Answer {
                    gate: Gate::Turn(who),
                    ask_at_ns: Some(until_ns),
                };
            }
            if of(who).queued && !outranked && !kept && self.nobody_else(who, &of) {
                // The next turn would be the same one's; no drain in between.
                self.charge(who, now_ns.saturating_sub(since_ns));
                return self.begin(who, now_ns, false, &of);
            }
            self.state = State::Draining { who, since_ns };
        }
        if let State::Draining { who, since_ns } = self.state {
            if of(who).in_flight {
                return Answer {
                    gate: Gate::Held,
                    ask_at_ns: None,
                };
            }
            self.charge(who, now_ns.saturating_sub(since_ns));
            self.state = State::Free;
        }
        self.choose(now_ns, &of)
    }

    /// Looks whether the tenant that was let in has begun by now. If it has not, it had not at the last look either, and
    /// its turn begins there at the earliest.
    fn note_begin(&mut self, last_ns: u64, of: &impl Fn(usize) -> Demand) {
        let State::Running {
            who,
            since_ns,
            until_ns,
            kept,
            begun: false,
        } = self.state
        else {
            return;
        };
        let begun = of(who).in_flight || of(who).launched;
        // What was put off so far is what the turn has become shorter than it was: both ends move together.
        let length = until_ns.saturating_sub(since_ns);
        let opened_ns = self.opened_ns.min(since_ns);
        let most_ns = opened_ns.saturating_add(LATE_MOST_NS.min(length / 2));
        let from_ns = last_ns.clamp(since_ns, most_ns.max(since_ns));
        if begun {
            let late = from_ns.saturating_sub(opened_ns);
            self.late_ns = (self.late_ns * 7 + late) / 8;
        }
        self.state = State::Running {
            who,
            since_ns: from_ns,
            until_ns: until_ns.saturating_add(from_ns.saturating_sub(since_ns)),
            kept,
            begun,
        };
    }

    /// Length of a round.
    fn round_ns(&self) -> u64 {
        let long = self.late_ns.saturating_mul(LATE_TIMES);
        long.clamp(self.quantum_ns, self.quantum_ns.saturating_mul(LONG_TIMES))
    }

    /// Whether a tenant has to wait even if it may go first: its turn is draining, or another one's cannot be cut.
    #[must_use]
    pub fn holds_back(&self, who: usize) -> bool {
        match self.state {
            State::Free => false,
            State::Running { who: holder, kept, .. } => kept && holder != who,
            State::Draining { who: holder, .. } => holder == who,
        }
    }

    /// Whether a tenant has the turn that is kept for it beside a more important one.
    #[must_use]
    pub fn is_kept(&self, who: usize) -> bool {
        matches!(self.state, State::Running { who: holder, kept: true, .. } if holder == who)
    }

    /// Whether the next turn is sure to be this tenant's again: it has no cap, and nobody else may be chosen.
    fn nobody_else(&self, who: usize, of: &impl Fn(usize) -> Demand) -> bool {
        let level = self.level(who);
        self.tenants.get(who).is_some_and(|tenant| !tenant.share.cap)
            && !self.tenants.iter().enumerate().any(|(other, tenant)| {
                let wants = of(other).queued || of(other).in_flight;
                let chosen = self.level(other) <= level || tenant.kept_ns >= KEPT_TURN_NS;
                other != who && wants && chosen
            })
    }

    fn rate(tenant: &Tenant) -> u64 {
        u64::from(tenant.share.permille.clamp(1, 1000))
    }

    /// Sum of the weights that a tenant's part is a part of: 1000 for a cap.
    fn whole(&self, who: usize, of: &impl Fn(usize) -> Demand) -> u64 {
        if self.tenants.get(who).is_some_and(|tenant| tenant.share.cap) {
            return 1000;
        }
        let wanting = |&(other, tenant): &(usize, &Tenant)| {
            !tenant.share.cap && (other == who || of(other).queued || of(other).in_flight)
        };
        self.tenants
            .iter()
            .enumerate()
            .filter(wanting)
            .map(|(_, tenant)| Self::rate(tenant))
            .sum::<u64>()
            .max(1)
    }

    fn part(&self, who: usize, ns: u64, of: &impl Fn(usize) -> Demand) -> i64 {
        let rate = self.tenants.get(who).map_or(0, Self::rate);
        let part = u128::from(ns) * u128::from(rate) / u128::from(self.whole(who, of));
        i64::try_from(part).unwrap_or(i64::MAX)
    }

    fn accrue(&mut self, now_ns: u64, of: &impl Fn(usize) -> Demand) {
        let passed_ns = now_ns.saturating_sub(self.now_ns);
        self.now_ns = now_ns;
        // What is saved is bounded, but never below what accrues in the longest turn of another.
        let most_ns = self.longest_ns.saturating_add(self.round_ns()).saturating_mul(2);
        for who in 0..self.tenants.len() {
            let (more, most) = (self.part(who, passed_ns, of), self.part(who, most_ns, of));
            let wants = of(who).queued || of(who).in_flight;
            if let Some(tenant) = self.tenants.get_mut(who) {
                let credit = tenant.credit_ns.saturating_add(more);
                // Who wants nothing saves nothing; its debts stay until time has paid them.
                tenant.credit_ns = credit.min(if wants { most } else { 0 });
                let rate = tenant.share.permille;
                tenant.allowance_ns = tenant
                    .allowance_ns
                    .saturating_add(part_of(passed_ns, rate))
                    .min(part_of(ALLOWANCE_NS, rate));
                let kept = u64::try_from(part_of(passed_ns, tenant.share.least_permille)).unwrap_or(0);
                tenant.kept_ns = if wants {
                    tenant.kept_ns.saturating_add(kept).min(2 * KEPT_TURN_NS)
                } else {
                    0
                };
            }
        }
    }

    fn charge(&mut self, who: usize, ns: u64) {
        self.longest_ns = self.longest_ns.max(ns);
        if let Some(tenant) = self.tenants.get_mut(who) {
            let used = i64::try_from(ns).unwrap_or(i64::MAX);
            tenant.credit_ns = tenant.credit_ns.saturating_sub(used);
            tenant.allowance_ns = tenant
                .allowance_ns
                .saturating_sub(used)
                .max(-part_of(ALLOWANCE_NS, 1000));
            tenant.kept_ns = tenant.kept_ns.saturating_sub(ns);
        }
    }

    fn choose(&mut self, now_ns: u64, of: &impl Fn(usize) -> Demand) -> Answer {
        let mut wanting = 0_usize;
        let mut capped = false;
        let top = self.best_level(of);
        let mut best: Option<(bool, i128, usize)> = None;
        let mut next_ns: Option<u64> = None;
        for (who, tenant) in self
            .tenants
            .iter()
            .enumerate()
            .filter(|&(who, _)| of(who).queued || of(who).in_flight)
        {
            wanting += 1;
            capped |= tenant.share.cap;
            if !of(who).queued {
                continue;
            }
            let outranked = self.level(who) > top;
            let kept = outranked && tenant.kept_ns >= KEPT_TURN_NS;
            if outranked && !kept {
                continue;
            }
            let turn_ns = self.part(who, self.round_ns(), of);
            if tenant.share.cap && tenant.credit_ns < turn_ns {
                let missing = u64::try_from(turn_ns.saturating_sub(tenant.credit_ns)).unwrap_or(0);
                let wait = (u128::from(missing) * 1000).div_ceil(u128::from(Self::rate(tenant)));
                let at = now_ns.saturating_add(u64::try_from(wait).unwrap_or(u64::MAX));
                next_ns = Some(next_ns.map_or(at, |next| next.min(at)));
                continue;
            }
            let level = i128::from(tenant.credit_ns) * i128::from(self.whole(who, of)) / i128::from(Self::rate(tenant));
            if best.is_none_or(|(short, most, _)| (kept, level) > (short, most)) {
                best = Some((kept, level, who));
            }
        }
        if wanting <= 1 && !capped {
            return Answer {
                gate: Gate::Open,
                ask_at_ns: None,
            };
        }
        let Some((kept, _, who)) = best else {
            return Answer {
                gate: Gate::Held,
                ask_at_ns: next_ns,
            };
        };
        self.begin(who, now_ns, kept, of)
    }

    fn begin(&mut self, who: usize, now_ns: u64, kept: bool, of: &impl Fn(usize) -> Demand) -> Answer {
        let length = if kept {
            KEPT_TURN_NS
        } else {
            u64::try_from(self.part(who, self.round_ns(), of)).unwrap_or(0).max(1)
        };
        let until_ns = now_ns.saturating_add(length);
        self.opened_ns = now_ns;
        self.state = State::Running {
            who,
            since_ns: now_ns,
            until_ns,
            kept,
            // Work that is under way already needs nobody to be woken.
            begun: of(who).in_flight,
        };
        Answer {
            gate: Gate::Turn(who),
            ask_at_ns: Some(until_ns),
        }
    }
}
