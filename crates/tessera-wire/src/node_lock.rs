//! HAMi's node lock: the annotation that keeps one pod at a time between bind and Allocate on a node.
//!
//! Only needed where a foreign device plugin serves the node. Reading the owner pod is the caller's business, so the
//! decision may come back as a question.

use std::fmt;

use crate::time;

/// The lock's usual life.
pub const DEFAULT_TIMEOUT_S: i64 = 300;

/// The pod that holds a lock.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LockOwner {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for LockOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The content of the annotation: `<RFC 3339 time>,<namespace>,<name>`, or a bare time from older writers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeLock {
    /// When it was taken, Unix seconds.
    pub at: i64,
    /// Who took it; `None` for a bare time.
    pub owner: Option<LockOwner>,
}

/// A text that is no lock.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeLockError {
    /// Neither one nor three parts.
    #[error("the node lock `{0}` is neither `<time>` nor `<time>,<namespace>,<pod>`")]
    Parts(String),
    /// The time does not read.
    #[error("the node lock `{0}` does not start with an RFC 3339 time")]
    Time(String),
}

impl NodeLock {
    /// Reads the annotation.
    ///
    /// # Errors
    /// Neither one nor three comma parts, or the first is not an RFC 3339 time.
    pub fn parse(text: &str) -> Result<Self, NodeLockError> {
        let shown = || text.chars().take(128).collect::<String>();
        let parts: Vec<&str> = text.split(',').collect();
        let (at, owner) = match parts.as_slice() {
            [at] => (*at, None),
            [at, namespace, name] => (
                *at,
                Some(LockOwner {
                    namespace: (*namespace).to_owned(),
                    name: (*name).to_owned(),
                }),
            ),
            _ => return Err(NodeLockError::Parts(shown())),
        };
        let at = time::parse_rfc3339(at).ok_or_else(|| NodeLockError::Time(shown()))?;
        Ok(Self { at, owner })
    }
}

impl fmt::Display for NodeLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&time::print_rfc3339(self.at))?;
        match &self.owner {
            Some(owner) => write!(f, ",{},{}", owner.namespace, owner.name),
            None => Ok(()),
        }
    }
}

/// What is known of the pod that a lock names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnerState {
    /// The API server has it.
    Alive,
    /// The API server does not know it.
    Gone,
}

/// The next step on the way to a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LockStep {
    /// There is no lock: set it.
    Set,
    /// Clear what is there if it has not changed, then set.
    TakeOver(TakeOver),
    /// The pod has it already.
    Mine,
    /// Find out whether this pod exists and ask again.
    AskOwner(LockOwner),
    /// Somebody has it.
    Contended,
}

/// Why a lock may be taken over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TakeOver {
    /// It is older than the timeout.
    #[error("it is older than the timeout")]
    Expired,
    /// Its owner is gone.
    #[error("the pod that holds it is gone")]
    OwnerGone,
    /// It cannot be read, so nobody would ever release it.
    #[error("{0}, so nobody would ever release it")]
    Unreadable(NodeLockError),
}

/// Decides how `me` gets the lock. `owner` is the answer to an earlier [`LockStep::AskOwner`].
#[must_use]
pub fn decide(current: Option<&str>, me: &LockOwner, now: i64, timeout_s: i64, owner: Option<OwnerState>) -> LockStep {
    let Some(text) = current else { return LockStep::Set };
    let lock = match NodeLock::parse(text) {
        Ok(lock) => lock,
        Err(error) => return LockStep::TakeOver(TakeOver::Unreadable(error)),
    };
    if now.saturating_sub(lock.at) > timeout_s {
        return LockStep::TakeOver(TakeOver::Expired);
    }
    match (lock.owner, owner) {
        (None, _) => LockStep::Contended,
        (Some(holder), _) if holder == *me => LockStep::Mine,
        (Some(holder), None) => LockStep::AskOwner(holder),
        (Some(_), Some(OwnerState::Gone)) => LockStep::TakeOver(TakeOver::OwnerGone),
        (Some(_), Some(OwnerState::Alive)) => LockStep::Contended,
    }
}

/// What a release by one pod does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// There is no lock.
    Nothing,
    /// It is another pod's, or unreadable: leave it.
    NotMine,
    /// Remove it, if it has not changed.
    Remove,
}

/// Decides what `me` does to release the lock. A bare time belongs to whoever releases it.
#[must_use]
pub fn release(current: Option<&str>, me: &LockOwner) -> Release {
    let Some(text) = current else { return Release::Nothing };
    match NodeLock::parse(text) {
        Ok(NodeLock { owner: None, .. }) => Release::Remove,
        Ok(NodeLock { owner: Some(owner), .. }) if owner == *me => Release::Remove,
        Ok(_) | Err(_) => Release::NotMine,
    }
}

/// What may be done about a lock that is a bare moment and names no owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TimedStep {
    /// There is no lock: set it.
    Set,
    /// It has lapsed, or nobody can say when it will.
    TakeOver(TakeOver),
    /// Somebody has it.
    Held,
}

/// Decides about a lock that lapses `lapses_s` seconds after the moment it states. A moment that lies further ahead than
/// that was written by a clock that is wrong and counts as lapsed.
#[must_use]
pub fn decide_timed(current: Option<&str>, now: i64, lapses_s: i64) -> TimedStep {
    let Some(text) = current else { return TimedStep::Set };
    match NodeLock::parse(text) {
        Err(error) => TimedStep::TakeOver(TakeOver::Unreadable(error)),
        Ok(lock) if now.saturating_sub(lock.at).saturating_abs() > lapses_s => TimedStep::TakeOver(TakeOver::Expired),
        Ok(_) => TimedStep::Held,
    }
}

/// The error text of [`TimedStep::Held`].
#[must_use]
pub fn held_text(node: &str, lapses_s: i64) -> String {
    if lapses_s % 60 == 0 {
        format!("node {node} has been locked within {} minutes", lapses_s / 60)
    } else {
        format!("node {node} has been locked within {lapses_s} seconds")
    }
}

/// A duration as Go prints it: `5m0s`, `1h0m0s`, `28s`.
fn go_duration(seconds: i64) -> String {
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, _) => format!("{minutes}m{rest}s"),
        _ => format!("{hours}h{minutes}m{rest}s"),
    }
}

/// The error text of [`LockStep::Contended`].
#[must_use]
pub fn contention_text(node: &str, timeout_s: i64) -> String {
    format!(
        "node {node} has been locked within {}: node lock contention",
        go_duration(timeout_s)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_lock_without_an_owner_ends_by_time_alone() {
        let at = |age: i64| {
            let lock = NodeLock {
                at: 1_000_000 - age,
                owner: None,
            }
            .to_string();
            decide_timed(Some(&lock), 1_000_000, 120)
        };
        assert_eq!(decide_timed(None, 1_000_000, 120), TimedStep::Set);
        assert_eq!(
            (at(0), at(120), at(-120)),
            (TimedStep::Held, TimedStep::Held, TimedStep::Held)
        );
        assert_eq!(at(121), TimedStep::TakeOver(TakeOver::Expired));
        assert_eq!(at(-121), TimedStep::TakeOver(TakeOver::Expired));
        let garbage = decide_timed(Some("garbage"), 1_000_000, 120);
        assert!(matches!(garbage, TimedStep::TakeOver(TakeOver::Unreadable(_))));
        assert_eq!(held_text("n1", 120), "node n1 has been locked within 2 minutes");
    }

    #[test]
    fn durations_read_as_in_go() {
        for (seconds, text) in [(28, "28s"), (300, "5m0s"), (3661, "1h1m1s")] {
            assert!(
                contention_text("n1", seconds).contains(&format!("within {text}:")),
                "{seconds}"
            );
        }
    }

    proptest! {
        #[test]
        fn print_then_parse_is_identity(at in 0i64..4_000_000_000, owner in proptest::option::of(("[a-z0-9-]{1,20}", "[a-z0-9.-]{1,40}"))) {
            let lock = NodeLock { at, owner: owner.map(|(namespace, name)| LockOwner { namespace, name }) };
            prop_assert_eq!(NodeLock::parse(&lock.to_string()), Ok(lock));
        }
    }
}
