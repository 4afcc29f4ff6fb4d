//! The product as a user gets it: binaries, images, the chart. `./up` and the cluster tests share this, so what
//! the tests prove is what a user runs.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tessera_players::{Machine, Mix, Part};
use tessera_testcluster::image::{self, Content, Image};
use tessera_testcluster::{Binaries, Cluster, Progress};

/// Image of Tessera itself.
pub const TESSERA_IMAGE: &str = "tessera.dev/tessera:up";
/// Image of kube-scheduler, from the binary that the cluster itself runs.
pub const KUBE_SCHEDULER_IMAGE: &str = "tessera.dev/kube-scheduler:up";
/// Image of the sample: Python with unmodified clients.
pub const SAMPLE_IMAGE: &str = "tessera.dev/sample:up";
/// Where the chart is installed.
pub const NAMESPACE: &str = "tessera-system";
/// The release's name.
pub const RELEASE: &str = "tessera";
/// Clients from PyPI that nobody changed.
pub const CLIENTS: &[&str] = &[
    "nvidia-ml-py==13.615.71",
    "cuda-bindings==13.5.0",
    "cuda-core==1.2.2",
    "nvitop==1.7.2",
];

/// Paths that the node agent writes on its node; a test node keeps them apart from the machine's own.
pub const NODE_PATHS: &[&str] = &["/run/tessera", "/run/tessera-sim", "/usr/local/vgpu"];

/// The repository.
#[must_use]
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors()
        .nth(2)
        .map_or_else(|| here.to_path_buf(), Path::to_path_buf)
}

/// Files that make up the product.
#[derive(Debug, Clone)]
pub struct Artefacts {
    /// The binary `tessera`.
    pub tessera: PathBuf,
    /// The tool that makes a simulated machine.
    pub simdriver: PathBuf,
    /// The program that plays other makers' device plugins.
    pub player: PathBuf,
    /// The preloaded library.
    pub shim: PathBuf,
    /// The small client that test pods run.
    pub probe: PathBuf,
    /// Simulated `libcuda.so.1`.
    pub cuda: PathBuf,
    /// Simulated `libnvidia-ml.so.1`.
    pub nvml: PathBuf,
}

/// How the artefacts are compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Fast to build: for tests.
    Dev,
    /// Fast to run: for users.
    Release,
}

impl Artefacts {
    /// Builds them with cargo (nothing is done for what is already built).
    ///
    /// # Errors
    /// A compile error, or an artefact that is not where cargo puts it.
    pub fn build(profile: Profile) -> Result<Self> {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(root()).args(["build", "--quiet", "--locked"]);
        for package in [
            "tessera",
            "tessera-shim",
            "tessera-fake-core",
            "tessera-fake-cuda",
            "tessera-fake-nvml",
            "tessera-players",
            "tessera-e2e",
        ] {
            cargo.args(["-p", package]);
        }
        if profile == Profile::Release {
            cargo.arg("--release");
        }
        let status = cargo.status().context("starting cargo build")?;
        ensure!(status.success(), "building the product: cargo ended with {status}");
        if profile == Profile::Release {
            let script = root().join("crates/tessera-shim/build-dist.sh");
            let status = Command::new(&script)
                .status()
                .with_context(|| format!("starting {}", script.display()))?;
            ensure!(
                status.success(),
                "building libvgpu.so for old images: {} ended with {status}",
                script.display()
            );
        }
        Self::find(profile)
    }

    /// Where [`Self::build`] leaves them.
    ///
    /// # Errors
    /// Names the file that is missing.
    pub fn find(profile: Profile) -> Result<Self> {
        let folder = std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| root().join("target"), PathBuf::from)
            .join(match profile {
                Profile::Dev => "debug",
                Profile::Release => "release",
            });
        let artefacts = Self {
            tessera: folder.join("tessera"),
            simdriver: folder.join("tessera-simdriver"),
            player: folder.join("tessera-player"),
            shim: match profile {
                Profile::Dev => folder.join("libvgpu.so"),
                Profile::Release => root().join("target/dist-shim/libvgpu.so"),
            },
            probe: folder.join("share-probe"),
            cuda: folder.join("libcuda.so"),
            nvml: folder.join("libnvidia_ml.so"),
        };
        for file in [
            &artefacts.tessera,
            &artefacts.simdriver,
            &artefacts.player,
            &artefacts.shim,
            &artefacts.probe,
            &artefacts.cuda,
            &artefacts.nvml,
        ] {
            ensure!(
                file.is_file(),
                "{} is missing; run `cargo build --workspace`",
                file.display()
            );
        }
        Ok(artefacts)
    }
}

/// The image of Tessera: the binary, the library, the simulated drivers.
///
/// # Errors
/// What [`image::Builder::build`] says.
pub fn tessera_image(artefacts: &Artefacts, progress: &Progress) -> Result<Image> {
    Ok(image::Builder::debian(TESSERA_IMAGE)
        .file(
            "/opt/tessera/bin/tessera",
            0o755,
            Content::Path(artefacts.tessera.clone()),
        )
        .file(
            "/opt/tessera/bin/tessera-simdriver",
            0o755,
            Content::Path(artefacts.simdriver.clone()),
        )
        .file(
            "/opt/tessera/bin/tessera-player",
            0o755,
            Content::Path(artefacts.player.clone()),
        )
        .file(
            "/opt/tessera/lib/libvgpu.so",
            0o755,
            Content::Path(artefacts.shim.clone()),
        )
        .file(
            "/opt/tessera/sim/lib64/libcuda.so.1",
            0o755,
            Content::Path(artefacts.cuda.clone()),
        )
        .file(
            "/opt/tessera/sim/lib64/libnvidia-ml.so.1",
            0o755,
            Content::Path(artefacts.nvml.clone()),
        )
        .env("PATH", "/opt/tessera/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
        .entrypoint(["/opt/tessera/bin/tessera"])
        .build(progress)?)
}

/// The image of kube-scheduler.
///
/// # Errors
/// What [`image::Builder::build`] says.
pub fn kube_scheduler_image(binaries: &Binaries, progress: &Progress) -> Result<Image> {
    Ok(image::Builder::scratch(KUBE_SCHEDULER_IMAGE)
        .file(
            "/usr/local/bin/kube-scheduler",
            0o755,
            Content::Path(binaries.kube_scheduler().to_path_buf()),
        )
        .env("PATH", "/usr/local/bin")
        .entrypoint(["/usr/local/bin/kube-scheduler"])
        .build(progress)?)
}

/// The image of the sample pods.
///
/// # Errors
/// What [`image::Builder::build`] says.
pub fn sample_image(probe: &Path, progress: &Progress) -> Result<Image> {
    Ok(image::Builder::debian(SAMPLE_IMAGE)
        .pip(CLIENTS.iter().copied())
        .file(
            "/opt/sample/hold.py",
            0o644,
            Content::Path(root().join("examples/sample/hold.py")),
        )
        .file("/opt/sample/share-probe", 0o755, Content::Path(probe.to_path_buf()))
        .build(progress)?)
}

/// An image reference as the chart writes it.
#[must_use]
pub fn image_value(image: &str) -> Value {
    let (name, tag) = image.rsplit_once(':').unwrap_or((image, "latest"));
    let (registry, repository) = name.split_once('/').unwrap_or(("", name));
    json!({ "registry": registry, "repository": repository, "tag": tag, "pullPolicy": "IfNotPresent" })
}

/// Values of the chart for a one-node cluster of ours; `cards` describes what to simulate, of any makers.
///
/// # Errors
/// Cards that nobody simulates; the text names those there are.
pub fn values(cards: Option<&str>) -> Result<Value> {
    let mut values = json!({
        "scheduler": {
            "extender": { "image": image_value(TESSERA_IMAGE) },
            "kubeScheduler": { "image": image_value(KUBE_SCHEDULER_IMAGE) },
            "hostNetwork": true,
            "admissionWebhook": {
                "customURL": { "enabled": true, "host": "127.0.0.1", "port": 9443, "path": "/webhook" },
            },
        },
        "devicePlugin": { "image": image_value(TESSERA_IMAGE), "hostNetwork": true },
    });
    if let Some(cards) = cards {
        values["simulate"] = json!({ "cards": cards });
        let mix = Mix::parse(cards)?;
        if !mix.nvidia {
            values["devicePlugin"]["enabled"] = json!(false);
        }
        for vendor in mix.players.keys() {
            values["simulate"]["players"] = json!({ "enabled": true });
            values["devices"][Part::find(vendor)?.class] = json!({ "enabled": true });
        }
    }
    Ok(values)
}

/// Whether our agent serves the node: always, but for cards of other makers alone.
///
/// # Errors
/// Cards that nobody simulates.
pub fn agent_serves(cards: Option<&str>) -> Result<bool> {
    Ok(cards.map(Mix::parse).transpose()?.is_none_or(|mix| mix.nvidia))
}

/// Resources that the players of a cards file advertise on a node, with the number of devices; by maker.
///
/// # Errors
/// Cards that nobody simulates.
pub fn played(cards: &str, node: &str) -> Result<Vec<(String, String, usize)>> {
    let mut list = Vec::new();
    for (vendor, entries) in Mix::parse(cards)?.players {
        let machine = Machine::new(Part::find(&vendor)?, node, &entries)?;
        for (resource, devices) in machine.devices()? {
            list.push((vendor.clone(), resource, devices.len()));
        }
    }
    Ok(list)
}

/// Runs helm against `kubeconfig`.
///
/// # Errors
/// Helm's own words.
pub fn helm(helm: &Path, kubeconfig: &Path, args: &[&str]) -> Result<String> {
    let output = Command::new(helm)
        .env("KUBECONFIG", kubeconfig)
        .current_dir(root())
        .args(args)
        .output()
        .with_context(|| format!("starting {}", helm.display()))?;
    if !output.status.success() {
        bail!(
            "helm {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Installs or updates the chart, with `values` on top of its own.
///
/// # Errors
/// Helm's own words.
pub fn install_chart(helm_binary: &Path, kubeconfig: &Path, values: &Path) -> Result<()> {
    let values = values.to_str().context("the path of the values file is not UTF-8")?;
    helm(
        helm_binary,
        kubeconfig,
        &[
            "upgrade",
            "--install",
            RELEASE,
            "charts/tessera",
            "--namespace",
            NAMESPACE,
            "--create-namespace",
            "--values",
            values,
        ],
    )?;
    Ok(())
}

/// Loads the images that the chart and the sample name into the cluster's node.
///
/// # Errors
/// An image that cannot be built or imported.
pub async fn load_images(cluster: &Cluster, artefacts: &Artefacts, progress: &Progress) -> Result<()> {
    let binaries = cluster.binaries().clone();
    let (artefacts, progress) = (artefacts.clone(), progress.clone());
    let images = tokio::task::spawn_blocking(move || -> Result<[Image; 3]> {
        Ok([
            tessera_image(&artefacts, &progress)?,
            kube_scheduler_image(&binaries, &progress)?,
            sample_image(&artefacts.probe, &progress)?,
        ])
    })
    .await
    .context("building images")??;
    for image in &images {
        cluster
            .load_image(image)
            .await
            .with_context(|| format!("loading {}", image.name))?;
    }
    Ok(())
}
