//! What a stopped cluster may have left on the machine.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::mounts;
use crate::network;
use crate::state::{branch_of, unit_name};

/// Everything on this machine that still belongs to the cluster of a state folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Processes by pid, with their command lines.
    pub processes: BTreeMap<i32, String>,
    /// Mount points in or below the state folder.
    pub mounts: Vec<PathBuf>,
    /// Folders of the cgroup hierarchies.
    pub cgroups: Vec<PathBuf>,
    /// Network interfaces and network tables.
    pub network: Vec<String>,
    /// The state folder itself, when it still exists.
    pub state: Option<PathBuf>,
}

/// Programs that a node runs. Others that name the state folder, such as a
/// pager on a log file, are not ours.
const PROGRAMS: [&str; 11] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "containerd",
    "containerd-shim-runc-v2",
    "runc",
    "ctr",
    "pause",
];

impl Leftovers {
    /// Looks at the machine. Needs no running cluster.
    pub fn of(state_dir: &Path) -> Self {
        let branch = branch_of(state_dir);
        let mut processes = BTreeMap::new();
        for pid in branch.processes() {
            processes.insert(pid, command_line(pid).join(" "));
        }
        for pid in all_pids() {
            let line = command_line(pid);
            let program = line.first().and_then(|p| Path::new(p).file_name());
            let ours = program.and_then(|p| p.to_str()).is_some_and(|p| PROGRAMS.contains(&p));
            let dir = state_dir.to_string_lossy();
            if ours && line.iter().any(|a| mentions(a, &dir)) {
                processes.insert(pid, line.join(" "));
            }
        }
        let mut net = network::interfaces_of(state_dir);
        let table = unit_name(state_dir);
        if network::table_exists("ip", &table) {
            net.push(format!("nft table ip {table}"));
        }
        Self {
            processes,
            mounts: mounts::under(state_dir),
            cgroups: branch.dirs(),
            network: net,
            state: state_dir.exists().then(|| state_dir.to_path_buf()),
        }
    }

    /// Whether nothing is left at all.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Whether an argument names the folder or something in it, and not merely a
/// folder whose name goes on.
fn mentions(argument: &str, dir: &str) -> bool {
    argument.match_indices(dir).any(|(at, _)| {
        argument
            .get(at + dir.len()..)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', ',', ':', ' ']))
    })
}

fn all_pids() -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .collect()
}

fn command_line(pid: i32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    bytes
        .split(|b| *b == 0)
        .filter(|a| !a.is_empty())
        .map(|a| String::from_utf8_lossy(a).into_owned())
        .collect()
}

impl fmt::Display for Leftovers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        parts.extend(
            self.processes
                .iter()
                .map(|(pid, line)| format!("process {pid} ({line})")),
        );
        parts.extend(self.mounts.iter().map(|p| format!("mount {}", p.display())));
        parts.extend(self.cgroups.iter().map(|p| format!("cgroup {}", p.display())));
        parts.extend(self.network.iter().map(|n| format!("network {n}")));
        parts.extend(self.state.iter().map(|p| format!("folder {}", p.display())));
        if parts.is_empty() {
            return f.write_str("nothing");
        }
        f.write_str(&parts.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_not_taken_for_one_whose_name_begins_alike() {
        assert!(mentions("--config=/var/lib/t/c-1/x.yaml", "/var/lib/t/c-1"));
        assert!(mentions("/var/lib/t/c-1", "/var/lib/t/c-1"));
        assert!(!mentions("--config=/var/lib/t/c-12/x", "/var/lib/t/c-1"));
    }

    #[test]
    fn a_folder_is_left_over_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_path_buf();
        assert_eq!(Leftovers::of(&path).state, Some(path.clone()));
        drop(dir);
        let left = Leftovers::of(&path);
        assert!(left.is_empty(), "{left}");
    }
}
