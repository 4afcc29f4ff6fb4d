//! Health that tells the truth.
//!
//! Two questions: does the process live (have all its tasks survived), and is it ready (are all conditions
//! met). Both answers name what is wrong, one line each, so that a failing probe explains itself.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The named conditions of one process. Cheap to clone, all clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Health {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    conditions: BTreeMap<&'static str, Result<(), String>>,
    dead: Vec<String>,
}

impl Health {
    /// A process with these conditions, none of them met yet.
    #[must_use]
    pub fn expecting(conditions: &[&'static str]) -> Self {
        let health = Self::default();
        for name in conditions {
            health.set(name, Err("not yet known".to_owned()));
        }
        health
    }

    /// States whether the condition `name` is met; `Err` says what is missing.
    pub fn set(&self, name: &'static str, state: Result<(), String>) {
        self.lock().conditions.insert(name, state);
    }

    /// Records that the task `name` ended although the process goes on. This cannot be taken back.
    pub fn task_died(&self, name: &str, why: &str) {
        self.lock().dead.push(format!("task {name} ended: {why}"));
    }

    /// `Err` with one line per dead task.
    ///
    /// # Errors
    /// A task that must run for ever has ended.
    pub fn alive(&self) -> Result<(), String> {
        let inner = self.lock();
        if inner.dead.is_empty() {
            Ok(())
        } else {
            Err(inner.dead.join("\n"))
        }
    }

    /// `Err` with one line per condition that is not met.
    ///
    /// # Errors
    /// A condition is not met, or a task has ended.
    pub fn ready(&self) -> Result<(), String> {
        let inner = self.lock();
        let mut text = inner.dead.join("\n");
        for (name, state) in &inner.conditions {
            if let Err(why) = state {
                if !text.is_empty() {
                    text.push('\n');
                }
                text.push_str(&format!("{name}: {why}"));
            }
        }
        if text.is_empty() { Ok(()) } else { Err(text) }
    }

    /// Whether the condition `name` is met; a name nobody has set is not.
    #[must_use]
    pub fn is_met(&self, name: &str) -> bool {
        matches!(self.lock().conditions.get(name), Some(Ok(())))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_names_every_unmet_condition() {
        let health = Health::expecting(&["synced", "certificate"]);
        health.set("synced", Ok(()));
        assert_eq!(health.ready(), Err("certificate: not yet known".to_owned()));
        health.set("certificate", Ok(()));
        assert_eq!(health.ready(), Ok(()));
    }

    #[test]
    fn a_dead_task_makes_the_process_neither_alive_nor_ready() {
        let health = Health::default();
        assert_eq!(health.alive(), Ok(()));
        health.task_died("pods", "panicked");
        assert_eq!(health.alive(), Err("task pods ended: panicked".to_owned()));
        assert!(health.ready().is_err());
    }
}
