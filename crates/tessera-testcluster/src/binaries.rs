//! The programs that make up a node, and where they come from.
//!
//! Looked for in this order: the folder that `TESSERA_K8S_BIN` names, `PATH`
//! (Kubernetes 1.30 or newer, etcd 3.5 or newer, containerd 2), the cache, and
//! last a build from pinned sources. Each set is taken from one place, so that
//! a kubelet never meets the API server of another build.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::build;
use crate::error::Error;
use crate::paths::Cache;
use crate::process::{on_path, run};
use crate::progress::Progress;

/// Environment variable that names a folder with binaries of the user's own.
pub const BIN_DIR_VARIABLE: &str = "TESSERA_K8S_BIN";

/// Oldest Kubernetes minor version that the node's configuration is written for.
const KUBERNETES_MINOR_MIN: u32 = 30;

/// Programs that belong together and are taken from one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Set {
    Kubernetes,
    Etcd,
    Containerd,
    Cni,
    Helm,
    Pause,
}

impl Set {
    pub(crate) const ALL: [Self; 6] = [
        Self::Etcd,
        Self::Containerd,
        Self::Cni,
        Self::Pause,
        Self::Helm,
        Self::Kubernetes,
    ];

    pub(crate) const fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Kubernetes => &[
                "kube-apiserver",
                "kube-controller-manager",
                "kube-scheduler",
                "kubelet",
                "kube-proxy",
                "kubectl",
            ],
            Self::Etcd => &["etcd"],
            Self::Containerd => &["containerd", "containerd-shim-runc-v2", "ctr"],
            Self::Cni => &["loopback", "ptp", "host-local"],
            Self::Helm => &["helm"],
            Self::Pause => &["pause"],
        }
    }
}

/// A complete set of programs.
#[derive(Clone, Debug)]
pub struct Binaries {
    programs: BTreeMap<&'static str, PathBuf>,
    kubernetes_minor: u32,
}

impl Binaries {
    /// Finds every program and builds the missing sets, which takes about
    /// twelve minutes on two cores the first time and nothing afterwards.
    /// Blocks; two runs at once build each set once.
    ///
    /// # Errors
    /// When a set is missing and Go is too, when a build fails, or when the
    /// user's own binaries are too old.
    pub fn ensure(progress: &Progress) -> Result<Self, Error> {
        let cache = Cache::from_env();
        Self::collect(&cache, |set| build::ensure(&cache, set, progress).map(Some))?.ok_or_else(|| {
            Error::MissingProgram {
                program: "kubernetes".to_owned(),
                remedy: "remove the cache folder and run again".to_owned(),
            }
        })
    }

    /// The programs that are there already; `None` when one is missing.
    ///
    /// # Errors
    /// When the user's own binaries are too old.
    pub fn find() -> Result<Option<Self>, Error> {
        Self::collect(&Cache::from_env(), |_| Ok(None))
    }

    fn collect(
        cache: &Cache,
        mut missing: impl FnMut(Set) -> Result<Option<PathBuf>, Error>,
    ) -> Result<Option<Self>, Error> {
        let named = std::env::var_os(BIN_DIR_VARIABLE)
            .filter(|d| !d.is_empty())
            .map(PathBuf::from);
        let mut programs = BTreeMap::new();
        for set in Set::ALL {
            let found = match from_named(named.as_deref(), set)? {
                Some(found) => {
                    check(set, &found, true)?;
                    Some(found)
                }
                None => from_path(set)
                    .filter(|found| check(set, found, false).is_ok())
                    .or_else(|| from_folder(Some(&build::folder(cache, set)), set)),
            };
            let found = match found {
                Some(found) => found,
                None => match missing(set)? {
                    Some(dir) => all_in(&dir, set),
                    None => return Ok(None),
                },
            };
            programs.extend(found);
        }
        let kubernetes_minor = programs
            .get("kubelet")
            .and_then(|kubelet| kubernetes_minor(kubelet))
            .unwrap_or(KUBERNETES_MINOR_MIN);
        Ok(Some(Self {
            programs,
            kubernetes_minor,
        }))
    }

    fn program(&self, name: &str) -> &Path {
        // `collect` fills in every name of every set before it makes the value.
        self.programs
            .get(name)
            .map_or(Path::new("/nonexistent"), PathBuf::as_path)
    }

    /// Minor version of the kubelet: 36 for v1.36.3.
    pub fn kubernetes_minor(&self) -> u32 {
        self.kubernetes_minor
    }

    /// `kubectl`.
    pub fn kubectl(&self) -> &Path {
        self.program("kubectl")
    }

    /// `helm`, version 3.
    pub fn helm(&self) -> &Path {
        self.program("helm")
    }

    /// `kube-apiserver`.
    pub fn kube_apiserver(&self) -> &Path {
        self.program("kube-apiserver")
    }

    /// `kube-controller-manager`.
    pub fn kube_controller_manager(&self) -> &Path {
        self.program("kube-controller-manager")
    }

    /// `kube-scheduler`.
    pub fn kube_scheduler(&self) -> &Path {
        self.program("kube-scheduler")
    }

    /// `kubelet`.
    pub fn kubelet(&self) -> &Path {
        self.program("kubelet")
    }

    /// `kube-proxy`.
    pub fn kube_proxy(&self) -> &Path {
        self.program("kube-proxy")
    }

    /// `etcd`.
    pub fn etcd(&self) -> &Path {
        self.program("etcd")
    }

    /// `containerd`.
    pub fn containerd(&self) -> &Path {
        self.program("containerd")
    }

    /// `ctr`, the client that comes with containerd.
    pub fn ctr(&self) -> &Path {
        self.program("ctr")
    }

    /// The process of a pod's sandbox, statically linked.
    pub fn pause(&self) -> &Path {
        self.program("pause")
    }

    /// Folder with the network plugins `loopback`, `ptp` and `host-local`.
    pub fn cni_dir(&self) -> &Path {
        self.program("ptp").parent().unwrap_or(Path::new("/"))
    }
}

/// Whether a test may start a cluster here: as root, and either with all
/// binaries at hand or with `TESSERA_CLUSTER=1`, which allows the build.
///
/// # Errors
/// The reason, for the line `skipped: ...` of the test's output.
pub fn available() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("a real cluster needs root".to_owned());
    }
    if std::env::var_os("TESSERA_CLUSTER").is_some_and(|v| v == "1") {
        return Ok(());
    }
    match Binaries::find() {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err("no Kubernetes binaries; TESSERA_CLUSTER=1 allows to build them".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn all_in(dir: &Path, set: Set) -> BTreeMap<&'static str, PathBuf> {
    set.programs().iter().map(|name| (*name, dir.join(name))).collect()
}

fn from_folder(dir: Option<&Path>, set: Set) -> Option<BTreeMap<&'static str, PathBuf>> {
    let found = all_in(dir?, set);
    found.values().all(|p| p.is_file()).then_some(found)
}

/// What the user named is taken or refused, never passed over in silence:
/// a folder with half of a set is a mistake.
fn from_named(dir: Option<&Path>, set: Set) -> Result<Option<BTreeMap<&'static str, PathBuf>>, Error> {
    let Some(dir) = dir else { return Ok(None) };
    let (there, missing): (Vec<&str>, Vec<&str>) = set.programs().iter().partition(|name| dir.join(name).is_file());
    match (there.first(), missing.is_empty()) {
        (None, _) => Ok(None),
        (Some(_), true) => Ok(Some(all_in(dir, set))),
        (Some(first), false) => Err(Error::UnusableBinary {
            path: dir.join(first),
            reason: format!(
                "{} must be beside it; add them or unset {BIN_DIR_VARIABLE}",
                missing.join(", ")
            ),
        }),
    }
}

fn from_path(set: Set) -> Option<BTreeMap<&'static str, PathBuf>> {
    match set {
        // Network plugins are not looked up by PATH but live in a folder of their own.
        Set::Cni => from_folder(Some(Path::new("/opt/cni/bin")), set)
            .or_else(|| from_folder(Some(Path::new("/usr/lib/cni")), set)),
        // There is no common program of this name.
        Set::Pause => None,
        _ => set
            .programs()
            .iter()
            .map(|name| Some((*name, on_path(name)?)))
            .collect(),
    }
}

/// Refuses versions that the configuration is not written for. What was named
/// by the user is refused aloud; what merely lies on PATH is passed over.
fn check(set: Set, found: &BTreeMap<&'static str, PathBuf>, named: bool) -> Result<(), Error> {
    let refuse = |name: &str, reason: String| Error::UnusableBinary {
        path: found.get(name).cloned().unwrap_or_default(),
        reason,
    };
    match set {
        Set::Kubernetes => {
            for name in ["kubelet", "kube-apiserver"] {
                let minor = found.get(name).and_then(|p| kubernetes_minor(p));
                if minor.is_none_or(|m| m < KUBERNETES_MINOR_MIN) {
                    return Err(refuse(
                        name,
                        format!(
                            "Kubernetes 1.{KUBERNETES_MINOR_MIN} or newer is needed; {}",
                            if named {
                                "name another folder or unset TESSERA_K8S_BIN"
                            } else {
                                "passed over"
                            }
                        ),
                    ));
                }
            }
        }
        Set::Containerd => {
            let major = version_of(found.get("containerd"), "--version").map(|(major, _)| major);
            if major != Some(2) {
                return Err(refuse("containerd", "containerd 2 is needed".to_owned()));
            }
        }
        Set::Etcd => {
            if version_of(found.get("etcd"), "--version").is_none_or(|v| v < (3, 5)) {
                return Err(refuse("etcd", "etcd 3.5 or newer is needed".to_owned()));
            }
        }
        Set::Helm => {
            if version_of(found.get("helm"), "version").map(|(major, _)| major) != Some(3) {
                return Err(refuse("helm", "helm 3 is needed".to_owned()));
            }
        }
        Set::Cni | Set::Pause => {}
    }
    Ok(())
}

fn kubernetes_minor(program: &Path) -> Option<u32> {
    match version_of(Some(&program.to_path_buf()), "--version") {
        Some((1, minor)) => Some(minor),
        _ => None,
    }
}

fn version_of(program: Option<&PathBuf>, flag: &str) -> Option<(u32, u32)> {
    parse_version(&run(Command::new(program?).arg(flag)).ok()?)
}

/// Major and minor of the first thing in a text that looks like a version.
pub(crate) fn parse_version(text: &str) -> Option<(u32, u32)> {
    text.split(|c: char| c.is_whitespace() || c == '"' || c == ',')
        .find_map(|word| {
            let mut numbers = word.trim_start_matches('v').split('.');
            let major = numbers.next()?.parse().ok()?;
            let minor = numbers.next()?.parse().ok()?;
            Some((major, minor))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_the_programs_print() {
        let check = |text, expected| assert_eq!(parse_version(text), expected, "{text}");
        check("Kubernetes v1.36.3\n", Some((1, 36)));
        check("containerd github.com/containerd/containerd/v2 v2.3.7 \n", Some((2, 3)));
        check("etcd Version: 3.6.16\nGit SHA: x\n", Some((3, 6)));
        check("version.BuildInfo{Version:\"v3.21.4\", GitCommit:\"\"}", Some((3, 21)));
        check("no version here", None);
    }

    #[test]
    fn a_folder_counts_only_when_the_whole_set_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["containerd", "ctr"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        assert!(from_folder(Some(dir.path()), Set::Containerd).is_none());
        let half = from_named(Some(dir.path()), Set::Containerd).unwrap_err();
        assert!(half.to_string().contains("containerd-shim-runc-v2"), "{half}");
        let other = from_named(Some(dir.path()), Set::Etcd).unwrap();
        assert!(other.is_none(), "a folder without etcd leaves it to be found elsewhere");
        std::fs::write(dir.path().join("containerd-shim-runc-v2"), "").unwrap();
        let found = from_folder(Some(dir.path()), Set::Containerd).unwrap();
        assert_eq!(found["ctr"], dir.path().join("ctr"));
    }

    #[test]
    fn an_old_kubelet_that_the_user_named_is_refused_with_the_next_step() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        for name in Set::Kubernetes.programs() {
            let path = dir.path().join(name);
            std::fs::write(&path, "#!/bin/sh\necho Kubernetes v1.29.4\n").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let found = from_folder(Some(dir.path()), Set::Kubernetes).unwrap();
        let text = check(Set::Kubernetes, &found, true).unwrap_err().to_string();
        assert!(text.contains("1.30"), "{text}");
        assert!(text.contains("TESSERA_K8S_BIN"), "{text}");
    }
}
