//! The handshake between scheduler and device plugin, as a pure function of one annotation and the time.
//!
//! The stamp is `YYYY-MM-DD hh:mm:ss` in the zone of its writer; so `now` has to be counted in the scheduler's own
//! zone too (see [`crate::time::parse_local`]).

use crate::time;

/// How long a request may stay unanswered before only the allocatable count speaks for the node.
pub const ANSWER_WITHIN_S: i64 = 60;

const REQUESTING: &str = "Requesting";

/// What the annotation says about a class on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handshake {
    /// The class is served on the node.
    pub healthy: bool,
    /// Its cards should be read again.
    pub refresh: bool,
    /// `Requesting_<now>` ([`requesting`]) is to be written.
    pub write_requesting: bool,
}

/// The text that asks the plugin for a sign of life.
#[must_use]
pub fn requesting(now_local: i64) -> String {
    format!("{REQUESTING}_{}", time::print_local(now_local))
}

/// Judges the current value. `allocatable` is the node's allocatable number of the count resource.
#[must_use]
pub fn assess(current: Option<&str>, now_local: i64, allocatable: i64) -> Handshake {
    let Some(text) = current.filter(|text| text.contains(REQUESTING)) else {
        return Handshake {
            healthy: true,
            refresh: true,
            write_requesting: true,
        };
    };
    let asked_at = text.split('_').nth(1).and_then(time::parse_local);
    let healthy = match asked_at {
        None => true,
        Some(asked) => now_local < asked.saturating_add(ANSWER_WITHIN_S) || allocatable > 0,
    };
    Handshake {
        healthy,
        refresh: false,
        write_requesting: false,
    }
}

/// What the NVIDIA class remembers of a node between two looks at it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NvidiaBook {
    /// The allocatable count last seen, 0 at first.
    pub reported: i64,
    /// The register annotation last seen.
    pub register: Option<String>,
}

impl NvidiaBook {
    /// Refines `handshake` by what changed since the last look, and remembers the new state.
    pub fn observe(&mut self, handshake: Handshake, allocatable: i64, register: Option<&str>) -> Handshake {
        if allocatable == 0 && self.reported == 0 {
            return handshake;
        }
        if allocatable == 0 {
            self.reported = 0;
            return Handshake {
                healthy: false,
                ..handshake
            };
        }
        if allocatable != self.reported {
            self.reported = allocatable;
            return Handshake {
                healthy: true,
                refresh: true,
                ..handshake
            };
        }
        if register != self.register.as_deref() {
            self.register = register.map(ToOwned::to_owned);
            return Handshake {
                refresh: true,
                ..handshake
            };
        }
        handshake
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_705_053_600;

    #[test]
    fn a_request_lapses_after_a_minute_unless_devices_are_allocatable() {
        let asked = requesting(NOW - 59);
        assert!(assess(Some(&asked), NOW, 0).healthy);
        let asked = requesting(NOW - 60);
        assert!(!assess(Some(&asked), NOW, 0).healthy);
        assert!(assess(Some(&asked), NOW, 3).healthy);
    }

    #[test]
    fn a_node_without_devices_is_given_up_at_once_and_taken_back_with_them() {
        let asked = requesting(NOW - 20);
        let mut book = NvidiaBook {
            reported: 10,
            register: Some("[]".to_owned()),
        };
        assert!(!book.observe(assess(Some(&asked), NOW, 0), 0, Some("[]")).healthy);
        let back = book.observe(assess(Some(&asked), NOW, 4), 4, Some("[]"));
        assert!(back.healthy && back.refresh);
        assert!(!book.observe(assess(Some(&asked), NOW, 4), 4, Some("[]")).refresh);
    }
}
