//! Memory limits of control groups, held by the driver itself.
//!
//! A limit belongs to a card and a group, and counts for every process in the group or below it.
//! Groups are told apart by the identity of their folder, which is the same whoever looks at it
//! and from whichever mount. A limit ends with its group.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::SeqCst;

use crate::layout::{LimitRule, MAX_GROUPS, UNIT};
use crate::machine::Machine;
use crate::process::Process;

/// Hard limit that means none.
pub const UNLIMITED: u64 = u64::MAX;

/// Limits of one group on one card, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// What is guaranteed before other groups are.
    pub soft: u64,
    /// What cannot be exceeded.
    pub hard: u64,
    /// What its processes hold now.
    pub used: u64,
}

/// Why limits were not set or told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// The folder cannot be opened, or is no control group.
    #[error("the control group cannot be opened")]
    Group,
    /// Values that no card can keep.
    #[error("the soft limit is above the hard one, or a limit above the card's memory")]
    Values,
    /// Nothing was set for this group and card.
    #[error("no limits are set")]
    NotFound,
    /// Too many limits stand.
    #[error("no room for another limit")]
    Full,
}

/// Identity of a group's folder, never 0; nothing when it cannot be opened.
fn identity(path: &Path) -> Option<u64> {
    let meta = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_dir)?;
    Some((meta.dev().rotate_left(40) ^ meta.ino()).max(1))
}

/// Whether a folder is a control group, of either version.
fn is_group(path: &Path) -> bool {
    path.join("cgroup.procs").exists()
}

/// The groups that this process lives in, innermost first in every hierarchy, with their parents.
fn own_groups() -> Vec<u64> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let (membership, mounts) = (read("/proc/self/cgroup"), read("/proc/self/mountinfo"));
    let mut out = Vec::new();
    for line in membership.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(number), Some(names), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let Some((root, point)) = mounts.lines().find_map(|mount| hierarchy(mount, number, names)) else {
            continue;
        };
        let inside = path.strip_prefix(root.trim_end_matches('/')).unwrap_or(path);
        let mut folder = point.join(inside.trim_start_matches('/'));
        // A group outside this process's view has no folder here; the mount's own root is the nearest.
        while out.len() < MAX_GROUPS {
            if let Some(id) = identity(&folder) {
                out.push(id);
            }
            if folder == point || !folder.pop() {
                break;
            }
        }
    }
    out
}

/// Root and mount point of the hierarchy that a membership line names.
fn hierarchy(mount: &str, number: &str, names: &str) -> Option<(String, PathBuf)> {
    let (front, back) = mount.split_once(" - ")?;
    let mut back = back.split(' ');
    let (kind, _, options) = (back.next()?, back.next(), back.next().unwrap_or_default());
    let found = match kind {
        "cgroup2" => number == "0",
        "cgroup" => names.split(',').all(|n| options.split(',').any(|o| o == n)) && number != "0",
        _ => false,
    };
    let mut front = front.split(' ').skip(3);
    let (root, point) = (front.next()?, front.next()?);
    found.then(|| (root.to_owned(), PathBuf::from(point)))
}

fn path_words(path: &Path) -> Option<[u64; 64]> {
    let bytes = path.as_os_str().as_bytes();
    let mut buffer = [0u8; 512];
    buffer.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(std::array::from_fn(|i| {
        let mut word = [0u8; 8];
        word.copy_from_slice(&buffer[i * 8..i * 8 + 8]);
        u64::from_le_bytes(word)
    }))
}

fn rule_path(rule: &LimitRule) -> PathBuf {
    let bytes: Vec<u8> = rule.path.iter().flat_map(|w| w.load(SeqCst).to_le_bytes()).collect();
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    PathBuf::from(std::ffi::OsStr::from_bytes(&bytes[..end]))
}

impl Machine {
    /// What a call for memory limits answers before anything is looked at; 0 where the driver has them.
    #[must_use]
    pub fn limits_answer(&self) -> i32 {
        self.state().limits_answer
    }

    fn rule(&self, card: usize, group: u64) -> Option<&LimitRule> {
        let card = u32::try_from(card).ok()?;
        self.state()
            .limits
            .iter()
            .find(|r| r.state.load(SeqCst) == 2 && r.card.load(SeqCst) == card && r.group.load(SeqCst) == group)
    }

    fn drop_rule(&self, rule: &LimitRule) {
        if rule.state.compare_exchange(2, 0, SeqCst, SeqCst).is_ok() {
            self.state().limits_armed.fetch_sub(1, SeqCst);
        }
    }

    /// Sets the limits of a group on a card; soft 0 with hard [`UNLIMITED`] ends them.
    ///
    /// # Errors
    /// [`LimitError`], by cause.
    pub fn set_limits(&self, card: usize, folder: &Path, soft: u64, hard: u64) -> Result<(), LimitError> {
        let group = identity(folder).filter(|_| is_group(folder)).ok_or(LimitError::Group)?;
        let all = self.card(card).memory_bytes;
        if soft == 0 && hard == UNLIMITED {
            if let Some(rule) = self.rule(card, group) {
                self.drop_rule(rule);
            }
            return Ok(());
        }
        if soft > hard || soft > all || (hard > all && hard != UNLIMITED) {
            return Err(LimitError::Values);
        }
        if let Some(rule) = self.rule(card, group) {
            rule.soft.store(soft, SeqCst);
            rule.hard.store(hard, SeqCst);
            return Ok(());
        }
        let words = path_words(folder).ok_or(LimitError::Group)?;
        self.forget_removed_groups();
        let state = self.state();
        let rule = state
            .limits
            .iter()
            .find(|r| r.state.compare_exchange(0, 1, SeqCst, SeqCst).is_ok())
            .ok_or(LimitError::Full)?;
        rule.card.store(u32::try_from(card).unwrap_or(0), SeqCst);
        rule.group.store(group, SeqCst);
        rule.soft.store(soft, SeqCst);
        rule.hard.store(hard, SeqCst);
        for (word, value) in rule.path.iter().zip(words) {
            word.store(value, SeqCst);
        }
        rule.state.store(2, SeqCst);
        state.limits_armed.fetch_add(1, SeqCst);
        Ok(())
    }

    /// The limits of a group on a card, and what it uses.
    ///
    /// # Errors
    /// [`LimitError::Group`] or [`LimitError::NotFound`].
    pub fn limits(&self, card: usize, folder: &Path) -> Result<Limits, LimitError> {
        let group = identity(folder).filter(|_| is_group(folder)).ok_or(LimitError::Group)?;
        let rule = self.rule(card, group).ok_or(LimitError::NotFound)?;
        self.reap(card);
        Ok(Limits {
            soft: rule.soft.load(SeqCst),
            hard: rule.hard.load(SeqCst),
            used: self.group_units(card, group) * UNIT,
        })
    }

    fn group_units(&self, card: usize, group: u64) -> u64 {
        (0..self.slots_high())
            .filter(|slot| {
                let entry = &self.state().slots[*slot];
                entry.state.load(SeqCst) & 1 == 1 && entry.groups.iter().any(|g| g.load(SeqCst) == group)
            })
            .map(|slot| u64::from(self.state().slot_units(slot, card)))
            .sum()
    }

    /// Ends the limits of groups that were removed.
    fn forget_removed_groups(&self) {
        for rule in &self.state().limits {
            if rule.state.load(SeqCst) == 2 && identity(&rule_path(rule)) != Some(rule.group.load(SeqCst)) {
                self.drop_rule(rule);
            }
        }
    }
}

impl Process {
    /// Whether a limit of one of this process's groups is passed on a card. Asked after the
    /// memory was taken, so two processes at once are never both let through.
    pub(crate) fn over_a_limit(&self, card: usize) -> bool {
        let machine = self.machine();
        let state = machine.state();
        if state.limits_armed.load(SeqCst) == 0 {
            return false;
        }
        // A process may have been moved since it came.
        let own = own_groups();
        let slot = &state.slots[self.slot()];
        for (place, group) in slot.groups.iter().zip(own.iter().copied().chain(std::iter::repeat(0))) {
            place.store(group, SeqCst);
        }
        let passed = || {
            own.iter().any(|group| {
                machine
                    .rule(card, *group)
                    .is_some_and(|rule| machine.group_units(card, *group) * UNIT > rule.hard.load(SeqCst))
            })
        };
        passed() && {
            machine.reap(card);
            passed()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_membership_line_finds_its_mount() {
        let v1 = "34 28 0:30 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory";
        let v2 = "42 28 0:38 /pods /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw";
        let named = "43 28 0:39 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd";
        let point = |text: &str| PathBuf::from(text);
        assert_eq!(
            hierarchy(v1, "4", "memory"),
            Some(("/".into(), point("/sys/fs/cgroup/memory")))
        );
        assert_eq!(hierarchy(v2, "0", ""), Some(("/pods".into(), point("/sys/fs/cgroup"))));
        assert_eq!(
            hierarchy(named, "1", "name=systemd"),
            Some(("/".into(), point("/sys/fs/cgroup/systemd")))
        );
        assert_eq!(hierarchy(v1, "0", ""), None);
        assert_eq!(hierarchy(v1, "5", "pids"), None);
        assert_eq!(hierarchy("nonsense", "5", "pids"), None);
    }
}
