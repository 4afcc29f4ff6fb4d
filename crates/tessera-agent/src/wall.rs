//! Memory limits that the driver itself holds, where it can.
//!
//! From driver branch 615 on the driver can hold a control group to an amount of a card's memory. That wall stands for
//! every program, also one that does not load our library. It is built on the *pod's* control group, which exists before
//! the first process of any of its containers: the kubelet makes it before it asks us. So there is no moment without it.
//! Among the containers of one pod the library divides.
//!
//! The driver counts everything, also what it needs itself for each process (contexts, code), which the library by
//! default leaves to the program on top of its share. So the wall stands a *headroom* behind the promise: the library
//! is exact, the wall stops who goes around it.
//!
//! Where the driver, the system or our rights do not allow it, the level of a card is [`Level::Library`], and the reason
//! is told.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tessera_probe::nvml::NO_LIMIT;
use tessera_probe::{DriverRoot, Nvml, NvmlError};

/// How deep pods' groups lie below the root: `kubepods.slice/kubepods-burstable.slice/<pod>`, and one more for a
/// kubelet with a root of its own.
const DEPTH: usize = 4;
/// Most folders that are looked at for a pod's group.
const FOLDERS: usize = 10_000;

/// Who holds a container to its memory on a card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The preloaded library alone.
    Library,
    /// The driver, by the pod's control group; and the library, whose answers come earlier.
    Driver,
}

impl Level {
    /// As it is written in annotations and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Library => "library",
            Self::Driver => "driver",
        }
    }
}

/// Why no wall was built.
#[derive(Debug, thiserror::Error)]
pub enum WallError {
    /// The driver said no.
    #[error(transparent)]
    Driver(#[from] NvmlError),
    /// The pod has no group below the root.
    #[error("no control group of pod {uid} below {}; --cgroup-root says where groups are", root.display())]
    NoGroup {
        /// The pod.
        uid: String,
        /// Where it was looked for.
        root: PathBuf,
    },
}

/// What the containers of one pod were promised of one card.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Promise {
    /// Together, in bytes.
    pub bytes: u64,
    /// How many they are.
    pub containers: u64,
}

/// The driver's limits on this node.
#[derive(Debug)]
pub struct Wall {
    root: DriverRoot,
    sysfs: PathBuf,
    groups: PathBuf,
    /// Bytes of each container that the driver may need for itself.
    headroom: u64,
    /// Whether promises are guaranteed, which needs that they fit the card together.
    guarantee: bool,
    session: Mutex<Option<Nvml>>,
    levels: Mutex<BTreeMap<String, Level>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Wall {
    /// A wall for the driver below `root`; groups lie below `groups`, and each container gets `headroom` bytes on top of
    /// its promise, which is guaranteed if `guarantee` says so. Nothing is opened yet.
    #[must_use]
    pub fn new(root: DriverRoot, sysfs: PathBuf, groups: PathBuf, headroom: u64, guarantee: bool) -> Self {
        Self {
            root,
            sysfs,
            groups,
            headroom,
            guarantee,
            session: Mutex::new(None),
            levels: Mutex::default(),
        }
    }

    /// Calls the driver in a session of its own, opened anew after a loss.
    fn with<T>(&self, call: impl FnOnce(&Nvml) -> Result<T, NvmlError>) -> Result<T, NvmlError> {
        let mut session = lock(&self.session);
        let nvml = match session.take() {
            Some(nvml) => nvml,
            None => Nvml::open(&self.root, &self.sysfs)?,
        };
        let result = call(&nvml);
        if !result.as_ref().is_err_and(NvmlError::is_driver_lost) {
            *session = Some(nvml);
        }
        result
    }

    /// Asks the driver what it can do for a card, and remembers it. May block as long as the driver does.
    ///
    /// # Errors
    /// Why the level is [`Level::Library`].
    pub fn probe(&self, card: &str) -> Result<(), NvmlError> {
        let answer = self.with(|nvml| {
            let device = nvml.device_by_uuid(card)?;
            if nvml.group_memory(device, &self.groups)?.is_none() {
                // No limit is set on the root: ending it changes nothing, and tells whether we may set any.
                nvml.hold_group(device, &self.groups, 0, NO_LIMIT)?;
            }
            Ok(())
        });
        let level = if answer.is_ok() { Level::Driver } else { Level::Library };
        lock(&self.levels).insert(card.to_owned(), level);
        answer
    }

    /// The level of a card; the library's until it was probed.
    #[must_use]
    pub fn level(&self, card: &str) -> Level {
        lock(&self.levels).get(card).copied().unwrap_or(Level::Library)
    }

    /// The levels of all cards that were probed.
    #[must_use]
    pub fn levels(&self) -> BTreeMap<String, Level> {
        lock(&self.levels).clone()
    }

    /// Holds a pod to what its containers were promised of each card, and their headroom; cards whose level is the
    /// library's are left out.
    ///
    /// # Errors
    /// No group of that pod, or the driver's word.
    pub fn build(&self, uid: &str, cards: &BTreeMap<String, Promise>) -> Result<(), WallError> {
        let held: Vec<_> = cards
            .iter()
            .filter(|(card, _)| self.level(card) == Level::Driver)
            .collect();
        if held.is_empty() {
            return Ok(());
        }
        let folder = pod_group(&self.groups, uid).ok_or_else(|| WallError::NoGroup {
            uid: uid.to_owned(),
            root: self.groups.clone(),
        })?;
        for (card, promise) in held {
            self.with(|nvml| {
                let device = nvml.device_by_uuid(card)?;
                let all = nvml.total_bytes(device)?;
                let headroom = self.headroom.saturating_mul(promise.containers);
                let hard = promise.bytes.saturating_add(headroom).min(all);
                let soft = if self.guarantee { promise.bytes.min(hard) } else { 0 };
                nvml.hold_group(device, &folder, soft, hard)
            })?;
        }
        Ok(())
    }

    /// Bytes of a card that nobody uses, by the driver.
    ///
    /// # Errors
    /// The driver's word.
    pub fn free_bytes(&self, card: &str) -> Result<u64, NvmlError> {
        self.with(|nvml| nvml.free_bytes(nvml.device_by_uuid(card)?))
    }

    /// What the driver says a pod uses of a card; nothing where no wall stands.
    ///
    /// # Errors
    /// As [`Wall::build`].
    pub fn used(&self, uid: &str, card: &str) -> Result<Option<u64>, WallError> {
        let folder = pod_group(&self.groups, uid).ok_or_else(|| WallError::NoGroup {
            uid: uid.to_owned(),
            root: self.groups.clone(),
        })?;
        Ok(self
            .with(|nvml| nvml.group_memory(nvml.device_by_uuid(card)?, &folder))?
            .map(|memory| memory.used))
    }
}

/// The control group of a pod, as either of the kubelet's drivers names it: `pod<uid>`, or `...-pod<uid with _>.slice`.
#[must_use]
pub fn pod_group(root: &Path, uid: &str) -> Option<PathBuf> {
    let plain = format!("pod{uid}");
    let slice = format!("-pod{}.slice", uid.replace('-', "_"));
    let mut level = vec![root.to_owned()];
    let mut seen = 0;
    for _ in 0..DEPTH {
        let mut next = Vec::new();
        for folder in level {
            let Ok(entries) = std::fs::read_dir(&folder) else {
                continue;
            };
            for entry in entries.filter_map(Result::ok) {
                seen += 1;
                if seen > FOLDERS {
                    return None;
                }
                let name = entry.file_name();
                let is = |name: &str| name == plain || name.ends_with(&slice);
                if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    continue;
                }
                if name.to_str().is_some_and(is) {
                    return Some(entry.path());
                }
                next.push(entry.path());
            }
        }
        // Pods' groups lie below `kubepods`: those first, so that the limit is reached elsewhere.
        next.sort_by_key(|path| (!path.to_string_lossy().contains("kubepods"), path.clone()));
        level = next;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_group_is_found_under_either_name_and_nothing_else_is() {
        let root = tempfile::tempdir().unwrap();
        let uid = "0b2f4c7e-1111-2222-3333-444455556666";
        let make = |path: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(&path).unwrap();
            path
        };
        make("system.slice/x-pod0b2f4c7e_1111_2222_3333_444455556666.slice.d");
        make("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podffff.slice");
        assert_eq!(pod_group(root.path(), uid), None);
        let slice = make(
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0b2f4c7e_1111_2222_3333_444455556666.slice",
        );
        assert_eq!(pod_group(root.path(), uid), Some(slice.clone()));
        std::fs::remove_dir(slice).unwrap();
        let plain = make(&format!("tessera/kubepods/besteffort/pod{uid}"));
        assert_eq!(pod_group(root.path(), uid), Some(plain));
        assert_eq!(pod_group(Path::new("/nowhere"), uid), None);
    }
}
