//! Whose turn it is on a card whose time containers share.
//!
//! While one tenant has its turn nothing else of ours runs, so wall time is device time: shares do not depend on the
//! number of multiprocessors or the size of kernels. Each tenant has a credit in nanoseconds. It grows with the wall
//! clock at the tenant's rate and is charged for the whole of a turn, the drain included, so what a long kernel takes
//! too much is paid back later.
//!
//! Nothing here reads a clock, waits, or touches memory that others see: time and demand come in as arguments, the
//! gate goes out. Priorities are not decided here.

/// One tenant's part in the card's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Part of the card's time in 1/1000; taken as at least 1 and at most 1000.
    pub permille: u32,
    /// Not exceeded even while the card is otherwise idle. Without it the part is a weight among those that want to run.
    pub cap: bool,
}

/// What one tenant does at this moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// Wants to launch.
    pub queued: bool,
    /// Launched work is not finished.
    pub in_flight: bool,
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
}

#[derive(Clone, Copy, Debug)]
enum State {
    Free,
    Running { who: usize, since_ns: u64, until_ns: u64 },
    Draining { who: usize, since_ns: u64 },
}

/// The turns on one card.
#[derive(Clone, Debug)]
pub struct Turns {
    quantum_ns: u64,
    longest_ns: u64,
    now_ns: u64,
    tenants: Vec<Tenant>,
    state: State,
}

impl Turns {
    /// No turn yet. `quantum_ns` is the length of a round in which each tenant has one turn.
    #[must_use]
    pub fn new(quantum_ns: u64, now_ns: u64, shares: &[Share]) -> Self {
        let tenants = shares.iter().map(|&share| Tenant { share, credit_ns: 0 }).collect();
        Self {
            quantum_ns: quantum_ns.max(1000),
            longest_ns: 0,
            now_ns,
            tenants,
            state: State::Free,
        }
    }

    /// Decides. `demand` has one entry for each tenant, in the order of the shares; one that is missing wants nothing.
    /// A time before the last one counts as the last one.
    pub fn step(&mut self, now_ns: u64, demand: &[Demand]) -> Answer {
        let now_ns = now_ns.max(self.now_ns);
        let of = |who: usize| demand.get(who).copied().unwrap_or_default();
        self.accrue(now_ns, &of);
        if let State::Running {
            who,
            since_ns,
            until_ns,
        } = self.state
        {
            if now_ns < until_ns && of(who).queued {
                return Answer {
                    gate: Gate::Turn(who),
                    ask_at_ns: Some(until_ns),
                };
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
        let most_ns = self.longest_ns.saturating_add(self.quantum_ns).saturating_mul(2);
        for who in 0..self.tenants.len() {
            let (more, most) = (self.part(who, passed_ns, of), self.part(who, most_ns, of));
            let wants = of(who).queued || of(who).in_flight;
            if let Some(tenant) = self.tenants.get_mut(who) {
                let credit = tenant.credit_ns.saturating_add(more);
                // Who wants nothing saves nothing; its debts stay until time has paid them.
                tenant.credit_ns = credit.min(if wants { most } else { 0 });
            }
        }
    }

    fn charge(&mut self, who: usize, ns: u64) {
        self.longest_ns = self.longest_ns.max(ns);
        if let Some(tenant) = self.tenants.get_mut(who) {
            tenant.credit_ns = tenant.credit_ns.saturating_sub(i64::try_from(ns).unwrap_or(i64::MAX));
        }
    }

    fn choose(&mut self, now_ns: u64, of: &impl Fn(usize) -> Demand) -> Answer {
        let mut wanting = 0_usize;
        let mut capped = false;
        let mut best: Option<(i128, usize)> = None;
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
            let turn_ns = self.part(who, self.quantum_ns, of);
            if tenant.share.cap && tenant.credit_ns < turn_ns {
                let missing = u64::try_from(turn_ns.saturating_sub(tenant.credit_ns)).unwrap_or(0);
                let wait = (u128::from(missing) * 1000).div_ceil(u128::from(Self::rate(tenant)));
                let at = now_ns.saturating_add(u64::try_from(wait).unwrap_or(u64::MAX));
                next_ns = Some(next_ns.map_or(at, |next| next.min(at)));
                continue;
            }
            let level = i128::from(tenant.credit_ns) * i128::from(self.whole(who, of)) / i128::from(Self::rate(tenant));
            if best.is_none_or(|(most, _)| level > most) {
                best = Some((level, who));
            }
        }
        if wanting <= 1 && !capped {
            return Answer {
                gate: Gate::Open,
                ask_at_ns: None,
            };
        }
        let Some((_, who)) = best else {
            return Answer {
                gate: Gate::Held,
                ask_at_ns: next_ns,
            };
        };
        let length = u64::try_from(self.part(who, self.quantum_ns, of)).unwrap_or(0).max(1);
        let until_ns = now_ns.saturating_add(length);
        self.state = State::Running {
            who,
            since_ns: now_ns,
            until_ns,
        };
        Answer {
            gate: Gate::Turn(who),
            ask_at_ns: Some(until_ns),
        }
    }
}
