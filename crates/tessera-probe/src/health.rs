//! Which driver events make a card sick, and the way back.
//!
//! A card is `Healthy`, `Sick` after an event or while it does not answer, and
//! `Probing` while it answers again but has not been quiet for long enough. A
//! card that falls sick again soon has to be quiet for longer each time. What
//! is unknown (an event of no class, a figure that the driver does not give)
//! never makes a card sick.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::card::Sickness;

/// XIDs that an application causes by itself; the card is fine.
const APPLICATION: [u64; 6] = [13, 31, 43, 45, 68, 109];

/// Shortest time of passing probes before a card counts as healthy again.
const QUIET_MIN: Duration = Duration::from_secs(3);
/// Longest such time, for a card that keeps failing.
const QUIET_MAX: Duration = Duration::from_secs(600);
/// Faults older than this do not lengthen the quiet time.
const MEMORY: Duration = Duration::from_secs(3600);

/// What an event says about the card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XidClass {
    /// Caused by an application, or switched off: no consequence.
    Ignored,
    /// The card must not be handed out until it proves itself.
    Sick,
}

/// Which XIDs count. Compatible with the two lists of NVIDIA's device plugin.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct XidPolicy {
    enabled: Words,
    disabled: Words,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Words {
    all: bool,
    xids: BTreeSet<u64>,
}

impl Words {
    fn parse(text: &str) -> Self {
        let mut words = Self::default();
        for word in text.split(',') {
            match word.trim().to_ascii_lowercase().as_str() {
                "all" | "xids" | "0" => words.all = true,
                word => words.xids.extend(word.parse::<u64>()),
            }
        }
        words
    }
}

impl XidPolicy {
    /// Reads two comma lists of XID numbers: `all`, `xids` and `0` mean every
    /// XID; words that are no number are skipped.
    #[must_use]
    pub fn from_lists(disabled: &str, enabled: &str) -> Self {
        Self {
            enabled: Words::parse(enabled),
            disabled: Words::parse(disabled),
        }
    }

    /// Whether no event counts, so that there is nothing to listen to.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.disabled.all && !self.enabled.all
    }

    /// What the XID means under this policy.
    #[must_use]
    pub fn class(&self, xid: u64) -> XidClass {
        let counts = if self.enabled.all || self.enabled.xids.contains(&xid) {
            true
        } else if self.disabled.xids.contains(&xid) || APPLICATION.contains(&xid) {
            false
        } else {
            !self.disabled.all
        };
        if counts { XidClass::Sick } else { XidClass::Ignored }
    }
}

/// The health of one card over time.
#[derive(Debug, Clone)]
pub struct CardHealth {
    state: State,
    faults: Vec<Instant>,
}

#[derive(Debug, Clone)]
enum State {
    Healthy,
    Sick(Sickness),
    Probing { cause: Sickness, since: Instant },
}

impl Default for CardHealth {
    fn default() -> Self {
        Self {
            state: State::Healthy,
            faults: Vec::new(),
        }
    }
}

impl CardHealth {
    /// Why the card must not be handed out; `None` when it may.
    #[must_use]
    pub fn sick(&self) -> Option<&Sickness> {
        match &self.state {
            State::Healthy => None,
            State::Sick(cause) | State::Probing { cause, .. } => Some(cause),
        }
    }

    /// Takes in a driver event that counts.
    pub fn event(&mut self, xid: u64, now: Instant) {
        self.fall(Sickness::Xid(xid), now);
    }

    /// Takes in a probe of the card: `Err` with the driver's word when it does
    /// not answer.
    pub fn probe(&mut self, answer: Result<(), String>, now: Instant) {
        match (answer, &self.state) {
            (Ok(()), State::Healthy) => {}
            (Ok(()), State::Sick(cause)) => {
                self.state = State::Probing {
                    cause: cause.clone(),
                    since: now,
                };
            }
            (Ok(()), State::Probing { since, .. }) => {
                if now.duration_since(*since) >= self.quiet(now) {
                    self.state = State::Healthy;
                }
            }
            (Err(error), State::Healthy | State::Probing { .. }) => {
                self.fall(Sickness::Unreachable { error }, now);
            }
            (Err(_), State::Sick(_)) => {}
        }
    }

    /// How long the card has to answer without a new fault.
    fn quiet(&self, now: Instant) -> Duration {
        let recent = self
            .faults
            .iter()
            .filter(|at| now.duration_since(**at) < MEMORY)
            .count();
        let doublings = u32::try_from(recent.saturating_sub(1)).unwrap_or(u32::MAX).min(16);
        QUIET_MIN.saturating_mul(1 << doublings).min(QUIET_MAX)
    }

    fn fall(&mut self, cause: Sickness, now: Instant) {
        self.faults.retain(|at| now.duration_since(*at) < MEMORY);
        // Sixteen doublings pass the longest quiet time many times over.
        if self.faults.len() < 16 {
            self.faults.push(now);
        }
        self.state = State::Sick(cause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTED: [u64; 14] = [13, 31, 43, 45, 48, 63, 64, 68, 74, 79, 94, 95, 109, 119];

    #[track_caller]
    fn check(disabled: &str, enabled: &str, off: bool, counted: &[u64]) {
        let policy = XidPolicy::from_lists(disabled, enabled);
        let found: Vec<u64> = LISTED
            .into_iter()
            .filter(|xid| policy.class(*xid) == XidClass::Sick)
            .collect();
        assert_eq!((policy.is_off(), found.as_slice()), (off, counted));
    }

    #[test]
    fn lists_follow_the_compatible_rules() {
        let defaults = [48, 63, 64, 74, 79, 94, 95, 119];
        check("", "", false, &defaults);
        check("79", "", false, &[48, 63, 64, 74, 94, 95, 119]);
        check("all", "", true, &[]);
        check("48,ALL", "", true, &[]);
        check("0", "", true, &[]);
        check("all", "79", true, &[79]);
        check("", "31", false, &[31, 48, 63, 64, 74, 79, 94, 95, 119]);
        check("", "all", false, &LISTED);
        check("all", "all", false, &LISTED);
        check("48", "48", false, &defaults);
        check(" 48 , x,-1, 79 ", "", false, &[63, 64, 74, 94, 95, 119]);
        check("48", "0", false, &LISTED);
    }

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn a_card_that_answers_again_is_healthy_within_ten_seconds() {
        let start = Instant::now();
        let mut card = CardHealth::default();
        card.event(79, start);
        assert_eq!(card.sick(), Some(&Sickness::Xid(79)));
        for second in 1..=4 {
            card.probe(Ok(()), at(start, second));
        }
        assert_eq!(card.sick(), None);
    }

    #[test]
    fn a_card_that_does_not_answer_stays_sick_and_names_the_first_cause() {
        let start = Instant::now();
        let mut card = CardHealth::default();
        card.probe(Err("GPU is lost".into()), start);
        for second in 1..60 {
            card.probe(Err("other".into()), at(start, second));
        }
        assert_eq!(
            card.sick(),
            Some(&Sickness::Unreachable {
                error: "GPU is lost".into()
            })
        );
        // One failure during the quiet time begins it again.
        card.probe(Ok(()), at(start, 60));
        card.probe(Err("again".into()), at(start, 62));
        card.probe(Ok(()), at(start, 63));
        card.probe(Ok(()), at(start, 66));
        assert!(card.sick().is_some());
    }

    #[test]
    fn each_fault_of_the_last_hour_doubles_the_quiet_time() {
        let mut now = Instant::now();
        let mut card = CardHealth::default();
        let mut waits = Vec::new();
        for _fault in 0..10 {
            card.event(48, now);
            let fallen = now;
            while card.sick().is_some() {
                now += Duration::from_secs(1);
                card.probe(Ok(()), now);
            }
            waits.push((now - fallen).as_secs());
        }
        assert_eq!(waits, [4, 7, 13, 25, 49, 97, 193, 385, 601, 601]);
        // An hour later the past is forgotten.
        now += MEMORY;
        card.event(48, now);
        let fallen = now;
        while card.sick().is_some() {
            now += Duration::from_secs(1);
            card.probe(Ok(()), now);
        }
        assert_eq!((now - fallen).as_secs(), 4);
    }
}
