//! Builds a set of programs from pinned sources with the Go toolchain.
//!
//! The pins are Go modules of a few lines in `tools/` of the source tree, and
//! are compiled in, so that the built binary does not need the tree. A build
//! goes to a temporary folder and is renamed when it is whole.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::binaries::{Set, parse_version};
use crate::error::{Error, IoContext};
use crate::paths::Cache;
use crate::process::{on_path, run};
use crate::progress::{Event, Progress};

const KUBERNETES_VERSION: &str = "v1.36.3";
const KUBERNETES_MINOR: &str = "36";

macro_rules! module {
    ($name:literal) => {
        &[
            ("go.mod", include_str!(concat!("../../../tools/", $name, "/go.mod"))),
            ("go.sum", include_str!(concat!("../../../tools/", $name, "/go.sum"))),
        ]
    };
}

struct Recipe {
    name: &'static str,
    version: &'static str,
    /// Files of the module that pins the sources.
    module: &'static [(&'static str, &'static str)],
    /// Go package of each program, in the order of [`Set::programs`].
    packages: &'static [&'static str],
    tags: &'static str,
    ldflags: String,
    /// On a machine with two cores.
    about: Duration,
}

fn recipe(set: Set) -> Recipe {
    match set {
        Set::Kubernetes => {
            let at = "k8s.io/component-base/version";
            Recipe {
                name: "kubernetes",
                version: KUBERNETES_VERSION,
                module: module!("kubernetes"),
                packages: &[
                    "k8s.io/kubernetes/cmd/kube-apiserver",
                    "k8s.io/kubernetes/cmd/kube-controller-manager",
                    "k8s.io/kubernetes/cmd/kube-scheduler",
                    "k8s.io/kubernetes/cmd/kubelet",
                    "k8s.io/kubernetes/cmd/kube-proxy",
                    "k8s.io/kubernetes/cmd/kubectl",
                ],
                tags: "",
                ldflags: format!(
                    "-X {at}.gitVersion={KUBERNETES_VERSION} -X {at}.gitMajor=1 \
                     -X {at}.gitMinor={KUBERNETES_MINOR} -X {at}.gitTreeState=clean"
                ),
                about: Duration::from_mins(10),
            }
        }
        Set::Etcd => Recipe {
            name: "etcd",
            version: "v3.6.16",
            module: module!("etcd"),
            packages: &["go.etcd.io/etcd/server/v3"],
            tags: "",
            ldflags: String::new(),
            about: Duration::from_mins(1),
        },
        Set::Containerd => Recipe {
            name: "containerd",
            version: "v2.3.7",
            module: module!("containerd"),
            packages: &[
                "github.com/containerd/containerd/v2/cmd/containerd",
                "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
                "github.com/containerd/containerd/v2/cmd/ctr",
            ],
            // The overlay snapshotter is all that a test node needs.
            tags: "no_btrfs,no_devmapper,no_zfs,no_tracing,urfave_cli_no_docs,osusergo,netgo",
            ldflags: "-X github.com/containerd/containerd/v2/version.Version=v2.3.7".to_owned(),
            about: Duration::from_mins(2),
        },
        Set::Cni => Recipe {
            name: "cni",
            version: "v1.9.1",
            module: module!("cni"),
            packages: &[
                "github.com/containernetworking/plugins/plugins/main/loopback",
                "github.com/containernetworking/plugins/plugins/main/ptp",
                "github.com/containernetworking/plugins/plugins/ipam/host-local",
            ],
            tags: "",
            ldflags: String::new(),
            about: Duration::from_mins(1),
        },
        Set::Helm => Recipe {
            name: "helm",
            version: "v3.21.4",
            module: module!("helm"),
            packages: &["helm.sh/helm/v3/cmd/helm"],
            tags: "",
            ldflags: format!(
                "-X helm.sh/helm/v3/internal/version.version=v3.21.4 \
                 -X helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor=1 \
                 -X helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor={KUBERNETES_MINOR}"
            ),
            about: Duration::from_mins(2),
        },
        Set::Pause => Recipe {
            name: "pause",
            version: "1",
            module: &[
                ("go.mod", include_str!("../../../tools/pause/go.mod")),
                ("main.go", include_str!("../../../tools/pause/main.go")),
            ],
            packages: &["."],
            tags: "",
            ldflags: String::new(),
            about: Duration::from_mins(1),
        },
    }
}

/// Where the cache keeps a set, whether or not it is there.
pub(crate) fn folder(cache: &Cache, set: Set) -> PathBuf {
    let Recipe { name, version, .. } = recipe(set);
    cache.dir().join("bin").join(format!("{name}-{version}"))
}

/// Builds a set into the cache unless another run did so meanwhile.
pub(crate) fn ensure(cache: &Cache, set: Set, progress: &Progress) -> Result<PathBuf, Error> {
    let recipe = recipe(set);
    let target = folder(cache, set);
    let _lock = cache.lock(&format!("build-{}", recipe.name), progress)?;
    if set.programs().iter().all(|p| target.join(p).is_file()) {
        return Ok(target);
    }
    let go = go()?;
    progress.tell(Event::Building {
        what: recipe.name.to_owned(),
        version: recipe.version.to_owned(),
        about: recipe.about,
    });
    let begun = Instant::now();

    let bin = cache.folder("bin")?;
    // What an interrupted build left; the lock says that nobody uses it.
    let scratch = bin.join(format!(".{}-{}.tmp", recipe.name, recipe.version));
    remove_all(&scratch)?;
    let module = scratch.join("module");
    let out = scratch.join("out");
    for dir in [&module, &out] {
        fs::create_dir_all(dir).at("create folder", dir)?;
    }
    for (name, text) in recipe.module {
        let path = module.join(name);
        fs::write(&path, text).at("write", &path)?;
    }
    for (program, package) in set.programs().iter().zip(recipe.packages) {
        run(Command::new(&go)
            .current_dir(&module)
            // Static binaries run in any container and on any distribution.
            .env("CGO_ENABLED", "0")
            .env("GOFLAGS", "-buildvcs=false -mod=readonly")
            .env_remove("GOWORK")
            .args(["build", "-trimpath", "-tags", recipe.tags, "-ldflags"])
            .arg(format!("-s -w {}", recipe.ldflags))
            .arg("-o")
            .arg(out.join(program))
            .arg(package))?;
    }
    remove_all(&target)?;
    fs::rename(&out, &target).at("move build to", &target)?;
    remove_all(&scratch)?;
    progress.tell(Event::Built {
        what: recipe.name.to_owned(),
        took: begun.elapsed(),
    });
    Ok(target)
}

/// From this version on, Go fetches the release that a module asks for.
const GO_MIN: (u32, u32) = (1, 21);

fn go() -> Result<PathBuf, Error> {
    let path = on_path("go")
        .or_else(|| Some(PathBuf::from("/usr/local/go/bin/go")).filter(|p| p.is_file()))
        .ok_or_else(|| Error::MissingProgram {
            program: "go".to_owned(),
            remedy: "install Go 1.21 or newer (for example `apt-get install golang`), or name a \
                     folder with ready Kubernetes binaries in TESSERA_K8S_BIN"
                .to_owned(),
        })?;
    // Prints `go1.26.8`.
    let said = run(Command::new(&path).args(["env", "GOVERSION"]))?;
    if parse_version(said.trim().trim_start_matches("go")).is_none_or(|v| v < GO_MIN) {
        return Err(Error::UnusableBinary {
            path,
            reason: format!(
                "it is {}; install Go 1.21 or newer, or name a folder with ready Kubernetes \
                 binaries in TESSERA_K8S_BIN",
                said.trim()
            ),
        });
    }
    Ok(path)
}

fn remove_all(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).at("remove", path),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_has_its_package_and_the_module_pins_the_version() {
        for set in Set::ALL {
            let recipe = recipe(set);
            assert_eq!(recipe.packages.len(), set.programs().len(), "{}", recipe.name);
            if set != Set::Pause {
                let (_, go_mod) = recipe.module[0];
                assert!(
                    go_mod.contains(recipe.version),
                    "{} is not pinned to {}",
                    recipe.name,
                    recipe.version
                );
            }
        }
    }

    #[test]
    fn a_small_set_is_built_once_and_survives_an_interrupted_build() {
        if go().is_err() {
            println!("skipped: no go");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        let half = dir.path().join("bin/.pause-1.tmp/out");
        fs::create_dir_all(&half).unwrap();
        fs::write(half.join("pause"), "half a binary").unwrap();

        let built = ensure(&cache, Set::Pause, &Progress::silent()).unwrap();
        let made = fs::metadata(built.join("pause")).unwrap();
        assert!(made.len() > 100_000, "a real program, not the rest of one");
        assert!(!dir.path().join("bin/.pause-1.tmp").exists());

        let again = ensure(&cache, Set::Pause, &Progress::silent()).unwrap();
        assert_eq!(again, built);
        let kept = fs::metadata(built.join("pause")).unwrap();
        assert_eq!(made.modified().unwrap(), kept.modified().unwrap());
    }
}
