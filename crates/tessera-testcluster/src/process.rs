//! Processes that are known by more than their number.
//!
//! A pid is reused, and a state folder outlives a reboot. So a process is
//! recorded with its start time and the boot in which it runs, and nothing is
//! signalled before all three agree.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};

use crate::error::{Error, IoContext};

/// Identity of one process, across pid reuse and reboots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    pub(crate) pid: i32,
    /// Clock ticks from boot to the start of the process.
    start_ticks: u64,
    boot: String,
}

struct Stat {
    state: char,
    start_ticks: u64,
}

fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold blanks and parentheses; the fields start after the last one.
    let mut fields = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    // Field 22 of the line; `state` was field 3.
    let start_ticks = fields.nth(18)?.parse().ok()?;
    Some(Stat { state, start_ticks })
}

fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|s| s.trim().to_owned())
        .unwrap_or_default()
}

impl ProcessId {
    /// Identity of the process that has this pid now; `None` when there is none.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        Some(Self {
            pid,
            start_ticks: stat(pid)?.start_ticks,
            boot: boot(),
        })
    }

    pub(crate) fn current() -> Option<Self> {
        Self::of(i32::try_from(std::process::id()).ok()?)
    }

    /// Whether this very process still runs. A zombie does not.
    pub(crate) fn is_alive(&self) -> bool {
        self.stat().is_some_and(|s| !matches!(s.state, 'Z' | 'X'))
    }

    /// The entry of the process table, if it is still this process's.
    fn stat(&self) -> Option<Stat> {
        if self.boot != boot() {
            return None;
        }
        stat(self.pid).filter(|s| s.start_ticks == self.start_ticks)
    }

    /// Sends a signal if the process still runs.
    pub(crate) fn signal(&self, signal: Signal) {
        if self.is_alive() {
            signal_pid(self.pid, signal);
        }
    }

    /// Waits until all threads of the process are gone, and with them its
    /// sockets; false when some still run at `until`.
    pub(crate) fn wait_dead(&self, until: Instant) -> bool {
        let Some(pid) = Pid::from_raw(self.pid) else {
            return true;
        };
        let Ok(fd) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else {
            return self.stat().is_none();
        };
        // Looked at after the descriptor was opened, so that both are of one
        // process. The state does not count here: the first thread may be a
        // zombie while others still hold a socket open.
        if self.stat().is_none() {
            return true;
        }
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let mut fds = [PollFd::new(&fd, PollFlags::IN)];
            let timeout = Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            };
            match rustix::event::poll(&mut fds, Some(&timeout)) {
                Ok(0) if left.is_zero() => return false,
                Ok(ready) if ready > 0 => return true,
                // Woken early or interrupted.
                _ => {}
            }
        }
    }
}

/// Sends a signal; a process that is gone already is no error.
pub(crate) fn signal_pid(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid)
        && let Err(error) = rustix::process::kill_process(pid, signal)
        && error != rustix::io::Errno::SRCH
    {
        tracing::warn!(pid = pid.as_raw_nonzero(), %error, "Signal was not delivered.");
    }
}

/// Calls `done` until it says yes; false when it has not by the deadline.
/// For conditions that the kernel offers no event for.
pub(crate) fn poll_until(deadline: Duration, mut done: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + deadline;
    loop {
        if done() {
            return true;
        }
        if Instant::now() >= until {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Runs a program to its end and returns what it wrote to stdout.
pub(crate) fn run(command: &mut Command) -> Result<String, Error> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().map_err(|source| Error::Spawn {
        program: program.clone(),
        source,
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let mut said = String::from_utf8_lossy(&output.stderr).into_owned();
    if said.trim().is_empty() {
        said = String::from_utf8_lossy(&output.stdout).into_owned();
    }
    let mut line = vec![program];
    line.extend(command.get_args().map(|a| a.to_string_lossy().into_owned()));
    Err(Error::Command {
        command: line.join(" "),
        status: output.status,
        output: last_lines(&said, 20),
    })
}

/// A program found on `PATH` by its name.
pub(crate) fn on_path(name: &str) -> Option<std::path::PathBuf> {
    // The administrators' folders are often missing from a user's PATH.
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(name))
        .find(|p| p.is_file())
}

pub(crate) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines
        .get(lines.len().saturating_sub(count)..)
        .unwrap_or_default()
        .join("\n")
}

/// The end of a log file; empty when it cannot be read.
pub(crate) fn log_tail(path: &Path) -> String {
    fs::read(path)
        .map(|bytes| last_lines(&String::from_utf8_lossy(&bytes), 15))
        .unwrap_or_default()
}

/// Writes the whole file or nothing: a reader never sees half of it.
pub(crate) fn write_atomic(path: &Path, content: &[u8], mode: u32) -> Result<(), Error> {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;
    let dir = path.parent().unwrap_or(Path::new("/"));
    let mut file = tempfile::NamedTempFile::new_in(dir).at("create file in", dir)?;
    file.write_all(content).at("write", path)?;
    file.as_file()
        .set_permissions(fs::Permissions::from_mode(mode))
        .at("set permissions of", path)?;
    file.persist(path).map_err(|e| e.error).at("write", path).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_alive_until_it_is_killed_and_its_successor_is_another() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let id = ProcessId::of(child.id().try_into().unwrap()).unwrap();
        assert!(id.is_alive());
        assert!(!id.wait_dead(Instant::now()));
        id.signal(Signal::KILL);
        assert!(id.wait_dead(Instant::now() + Duration::from_secs(10)));
        assert!(!id.is_alive(), "a zombie counts as dead");
        child.wait().unwrap();

        let myself = ProcessId::current().unwrap();
        let impostor = ProcessId {
            start_ticks: myself.start_ticks + 1,
            ..myself.clone()
        };
        assert!(myself.is_alive());
        assert!(!impostor.is_alive(), "a reused pid is not the same process");
        let before_reboot = ProcessId {
            boot: "another".to_owned(),
            ..myself
        };
        assert!(!before_reboot.is_alive());
    }

    #[test]
    fn a_failing_command_tells_its_line_status_and_words() {
        let error = run(Command::new("sh").args(["-c", "echo because >&2; exit 3"])).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("sh -c"), "{text}");
        assert!(text.contains("exit status: 3"), "{text}");
        assert!(text.contains("because"), "{text}");
    }
}
