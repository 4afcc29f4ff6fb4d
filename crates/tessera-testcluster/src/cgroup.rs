//! The cluster's own branch of the cgroup tree.
//!
//! Every process of the cluster lives in it: the daemons in `daemons`, the
//! pods in `kubepods`, which the kubelet makes. So the branch says which
//! processes are ours whatever became of their parents, and when it is gone,
//! nothing of the cluster runs any more. Versions 1 and 2 and their mixture
//! are handled alike.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::error::{Error, IoContext};
use crate::mounts;
use crate::process::{poll_until, signal_pid};

const ROOT: &str = "/sys/fs/cgroup";

#[derive(Clone, Debug)]
pub(crate) struct Branch {
    name: String,
}

impl Branch {
    pub(crate) fn new(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }

    /// Value of the kubelet's `cgroupRoot`.
    pub(crate) fn kubelet_root(&self) -> String {
        format!("/{}", self.name)
    }

    /// Mount points of all hierarchies.
    fn hierarchies() -> BTreeSet<PathBuf> {
        mounts::list()
            .into_iter()
            .filter(|m| matches!(m.fs_type.as_str(), "cgroup" | "cgroup2"))
            .map(|m| m.point)
            .filter(|p| p.starts_with(ROOT))
            .collect()
    }

    /// The hierarchy by which daemons are told apart: any single one will do.
    fn marker() -> Option<PathBuf> {
        let all = Self::hierarchies();
        let pids = Path::new(ROOT).join("pids");
        if all.contains(&pids) {
            return Some(pids);
        }
        all.into_iter().next()
    }

    pub(crate) fn dirs(&self) -> Vec<PathBuf> {
        Self::hierarchies()
            .into_iter()
            .map(|h| h.join(&self.name))
            .filter(|d| d.is_dir())
            .collect()
    }

    /// Makes the branch in every hierarchy. Returns the file to which a
    /// daemon writes its pid before anything else.
    pub(crate) fn create(&self) -> Result<PathBuf, Error> {
        for hierarchy in Self::hierarchies() {
            let dir = hierarchy.join(&self.name);
            fs::create_dir_all(&dir).at("create cgroup", &dir)?;
            // Version 1 gives a new cpuset nothing, and no process may enter it so.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let (from, to) = (hierarchy.join(file), dir.join(file));
                if hierarchy.ends_with("cpuset") && from.is_file() {
                    let value = fs::read_to_string(&from).at("read", &from)?;
                    fs::write(&to, value.trim()).at("write", &to)?;
                }
            }
        }
        let dir = self.daemons().ok_or_else(|| Error::StateDir {
            path: ROOT.into(),
            reason: "no cgroup hierarchy is mounted there, and a kubelet needs one".to_owned(),
        })?;
        fs::create_dir_all(&dir).at("create cgroup", &dir)?;
        Ok(dir.join("cgroup.procs"))
    }

    fn daemons(&self) -> Option<PathBuf> {
        Some(Self::marker()?.join(&self.name).join("daemons"))
    }

    pub(crate) fn daemons_file(&self) -> Option<PathBuf> {
        Some(self.daemons()?.join("cgroup.procs"))
    }

    /// Pids of all processes in the branch.
    pub(crate) fn processes(&self) -> BTreeSet<i32> {
        let mut pids = BTreeSet::new();
        for dir in self.dirs() {
            collect(&dir, &mut pids);
        }
        pids
    }

    /// Pids of the pods' processes.
    pub(crate) fn pod_processes(&self) -> BTreeSet<i32> {
        let mut pids = BTreeSet::new();
        for dir in self.dirs() {
            collect(&dir.join("kubepods"), &mut pids);
        }
        pids
    }

    /// Asks the pods to end, and gives them the time.
    pub(crate) fn terminate_pods(&self, grace: Duration) {
        for pid in self.pod_processes() {
            signal_pid(pid, Signal::TERM);
        }
        poll_until(grace, || self.pod_processes().is_empty());
    }

    /// Kills until nothing is left, since a process may fork meanwhile.
    pub(crate) fn kill_all(&self, deadline: Duration) -> bool {
        poll_until(deadline, || {
            let left = self.processes();
            for pid in &left {
                signal_pid(*pid, Signal::KILL);
            }
            left.is_empty()
        })
    }

    /// Removes the branch, leaves first. The kernel needs a moment after the
    /// last process.
    pub(crate) fn remove(&self, deadline: Duration) {
        let until = Instant::now() + deadline;
        for dir in self.dirs() {
            poll_until(until.saturating_duration_since(Instant::now()), || {
                remove_tree(&dir);
                !dir.exists()
            });
        }
    }
}

fn collect(dir: &Path, pids: &mut BTreeSet<i32>) {
    if let Ok(text) = fs::read_to_string(dir.join("cgroup.procs")) {
        // 0 stands for a process that this pid namespace cannot see.
        pids.extend(text.lines().filter_map(|l| l.parse::<i32>().ok()).filter(|p| *p > 0));
    }
    for child in children(dir) {
        collect(&child, pids);
    }
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        .map(|e| e.path())
        .collect()
}

fn remove_tree(dir: &Path) {
    for child in children(dir) {
        remove_tree(&child);
    }
    // Busy now may be free at the next try; the caller looks whether it is gone.
    drop(fs::remove_dir(dir));
}
