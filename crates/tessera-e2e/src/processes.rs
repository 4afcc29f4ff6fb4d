//! What processes use. A service of ours is two of them: the one that serves and the one that starts it again.

use std::path::Path;
use std::process::{Child, Command};

use anyhow::{Context as _, Result};

/// What processes use together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Used {
    /// `VmRSS`.
    pub rss_kib: u64,
    /// User and system time since their start.
    pub cpu_ms: u64,
}

impl std::iter::Sum for Used {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            rss_kib: sum.rss_kib + one.rss_kib,
            cpu_ms: sum.cpu_ms + one.cpu_ms,
        })
    }
}

/// What one process uses.
///
/// # Errors
/// It is gone, or `/proc` has another form than Linux gives it.
pub fn used(pid: u32) -> Result<Used> {
    let read = |name: &str| {
        std::fs::read_to_string(format!("/proc/{pid}/{name}"))
            .with_context(|| format!("reading /proc/{pid}/{name}; the process may have ended"))
    };
    let rss_kib = read("status")?
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok())
        .with_context(|| format!("no VmRSS in /proc/{pid}/status"))?;
    let ticks: u64 = read("stat")?
        .rsplit(')')
        .next()
        .into_iter()
        .flat_map(|rest| rest.split_whitespace().skip(11).take(2))
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    // Linux counts in hundredths of a second on every machine that matters here.
    Ok(Used {
        rss_kib,
        cpu_ms: ticks * 10,
    })
}

/// The process and all that descend from it, itself first.
///
/// # Errors
/// It is gone.
pub fn tree(root: u32) -> Result<Vec<u32>> {
    let mut all = vec![root];
    let mut at = 0;
    while let Some(pid) = all.get(at).copied() {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
        if at == 0 {
            tasks
                .as_ref()
                .map_err(|error| anyhow::anyhow!("process {root}: {error}"))?;
        }
        for task in tasks.into_iter().flatten().flatten() {
            let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            all.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
        at += 1;
    }
    Ok(all)
}

/// What the process and all that descend from it use together.
///
/// # Errors
/// It is gone, or one of the others went while it was asked.
pub fn used_by_tree(root: u32) -> Result<Used> {
    tree(root)?.into_iter().map(used).sum()
}

/// A service of ours that a measurement started. It ends when this value goes.
#[derive(Debug)]
pub struct Service(Child);

impl Service {
    /// Starts `command`, with what it says in the file `log`.
    ///
    /// # Errors
    /// The log cannot be made, or the program cannot be started.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let file = std::fs::File::create(log).with_context(|| format!("creating {}", log.display()))?;
        let errors = file
            .try_clone()
            .with_context(|| format!("opening {} again", log.display()))?;
        let child = command
            .stdout(file)
            .stderr(errors)
            .spawn()
            .with_context(|| format!("starting {:?}", command.get_program()))?;
        Ok(Self(child))
    }

    /// The process that starts the other one.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// The process that serves.
    ///
    /// # Errors
    /// There is none now.
    pub fn worker(&self) -> Result<u32> {
        let tree = tree(self.pid())?;
        tree.get(1).copied().context("the service has no worker now")
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// The system does not say.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.0.try_wait().context("asking whether the service runs")?.is_none())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Its worker ends with it. One that is gone already needs no end.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_of_a_service_is_that_of_its_whole_tree() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 1000 & echo started; wait"]);
        let log = dir.path().join("log");
        let mut service = Service::start(&mut command, &log).unwrap();
        while !std::fs::read_to_string(&log).unwrap().contains("started") {
            std::thread::yield_now();
        }
        let (parent, worker) = (service.pid(), service.worker().unwrap());
        assert_eq!(tree(parent).unwrap(), [parent, worker]);
        let together = used_by_tree(parent).unwrap().rss_kib;
        let alone = used(parent).unwrap().rss_kib;
        assert!(together > alone && alone > 0, "{together} KiB and {alone} KiB");
        assert!(service.is_running().unwrap());
        drop(service);
        assert!(tree(parent).is_err());
        // No parent tells it to end, as the worker of a service is told.
        let orphan = rustix::process::Pid::from_raw(i32::try_from(worker).unwrap()).unwrap();
        rustix::process::kill_process(orphan, rustix::process::Signal::KILL).unwrap();
    }
}
