//! What a container is given: environment, mounts, devices.
//!
//! The environment and the library's mounts are those of HAMi's plugin, so that
//! its library and its users' scripts find what they know. Limits do not rest
//! on them: our library reads the sealed grant.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use tessera_kubelet::proto::deviceplugin_v1beta1::{CdiDevice, ContainerAllocateResponse, DeviceSpec, Mount};
use tessera_no_musl::Processor;
use tessera_region::{
    ACCOUNT_FILE, CONTAINER_ACCOUNT_DIR, CONTAINER_GRANT_DIR, SWAP_REPORT_FILE, TURNS_FILE, fs::GrantDir,
};
use tessera_types::CardId;

use crate::book::Record;
use crate::cdi;
use crate::driver_files::{Bind, DeviceFile, NodeKind};

/// Annotation of the container that names its grant; the kubelet records it.
pub const GRANT_ANNOTATION: &str = "tessera.dev/grant";
/// Annotation of the container that names its cards, whatever way they are
/// handed in.
pub const CARDS_ANNOTATION: &str = "tessera.dev/cards";
/// Annotation of a container without the library, and why.
pub const HOOK_ANNOTATION: &str = "tessera.dev/hook";

/// Annotation of a limited container that says for each card who holds it to its memory: `GPU-...=driver`, or `library`.
pub const LEVEL_ANNOTATION: &str = "tessera.dev/memory-level";

/// How containers reach their cards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum DeviceAccess {
    /// `envvar` where NVIDIA's runtime is installed, else `direct`.
    Auto,
    /// Device files and driver libraries in the answer: works with any runtime.
    Direct,
    /// `NVIDIA_VISIBLE_DEVICES`, read by NVIDIA's runtime.
    Envvar,
    /// Mounts named after the cards, read by NVIDIA's runtime.
    VolumeMounts,
    /// CDI names in an annotation.
    CdiAnnotations,
    /// CDI names in the kubelet's own field.
    CdiCri,
}

/// What does not depend on the container.
#[derive(Debug, Clone)]
pub struct Frame {
    /// Folder of the compatible library, without `vgpu`.
    pub hook: PathBuf,
    /// Where grants are.
    pub grants: PathBuf,
    /// Access, in order, without [`DeviceAccess::Auto`].
    pub access: Vec<DeviceAccess>,
    /// Device files one by one under `envvar` and `volume-mounts`.
    pub pass_device_specs: bool,
    /// Annotation prefix of CDI requests.
    pub cdi_annotation_prefix: String,
    /// Log level of the compatible library; empty to say nothing.
    pub log_level: String,
    /// Whether memory is promised more than once.
    pub oversubscribed: bool,
    /// Whether compute limits are off.
    pub disable_core_limit: bool,
    /// Whether the host folders of the compatible library are mounted.
    pub compat_folders: bool,
    /// Variables of further parts of NVIDIA's runtime.
    pub features: Vec<&'static str>,
    /// Driver libraries and programs, for `direct`.
    pub driver: Vec<Bind>,
}

/// What depends on the container.
#[derive(Debug, Clone)]
pub struct Subject<'a> {
    /// Its record.
    pub record: &'a Record,
    /// Device files of the control interface and of its cards.
    pub files: &'a [DeviceFile],
    /// Whether the library is loaded (off when policy lets the pod say so).
    pub preload: bool,
    /// Random text for the compatible cache's name.
    pub cache: &'a str,
}

/// Builds the answer for one container.
#[must_use]
pub fn answer(frame: &Frame, subject: &Subject<'_>) -> ContainerAllocateResponse {
    let mut response = ContainerAllocateResponse::default();
    devices(frame, subject, &mut response);
    response
        .annotations
        .insert(GRANT_ANNOTATION.to_owned(), subject.record.id.clone());
    let cards: Vec<&str> = subject.record.shares.iter().map(|share| share.card.as_str()).collect();
    response
        .annotations
        .insert(CARDS_ANNOTATION.to_owned(), cards.join(","));
    if !subject.record.limited {
        response
            .annotations
            .insert(HOOK_ANNOTATION.to_owned(), "none: whole card".to_owned());
        return response;
    }
    environment(frame, subject, &mut response.envs);
    mounts(frame, subject, &mut response.mounts);
    if !subject.preload {
        response
            .annotations
            .insert(HOOK_ANNOTATION.to_owned(), "none: CUDA_DISABLE_CONTROL".to_owned());
    }
    response
}

fn devices(frame: &Frame, subject: &Subject<'_>, response: &mut ContainerAllocateResponse) {
    let mut cards: Vec<&str> = Vec::new();
    for share in &subject.record.shares {
        if !cards.contains(&share.card.as_str()) {
            cards.push(share.card.as_str());
        }
    }
    let visible = || "NVIDIA_VISIBLE_DEVICES".to_owned();
    for access in &frame.access {
        match access {
            DeviceAccess::CdiAnnotations => {
                let names: Vec<String> = cards.iter().map(|card| cdi::qualified(card)).collect();
                let prefix = &frame.cdi_annotation_prefix;
                let key = format!("{prefix}nvidia-device-plugin_{}", subject.cache);
                response.annotations.insert(key, names.join(","));
            }
            DeviceAccess::CdiCri => {
                response.cdi_devices = cards
                    .iter()
                    .map(|card| CdiDevice {
                        name: cdi::qualified(card),
                    })
                    .collect();
            }
            DeviceAccess::Envvar | DeviceAccess::Auto => {
                response.envs.insert(visible(), cards.join(","));
            }
            DeviceAccess::VolumeMounts => {
                const FOLDER: &str = "/var/run/nvidia-container-devices";
                response.envs.insert(visible(), FOLDER.to_owned());
                for card in &cards {
                    let name = Path::new(FOLDER).join(card);
                    response.mounts.push(mount(Path::new("/dev/null"), &name, false));
                }
            }
            DeviceAccess::Direct => {
                response.envs.insert(visible(), cards.join(","));
                for bind in &frame.driver {
                    response.mounts.push(mount(&bind.host, &bind.container, true));
                }
            }
        }
    }
    let only_cdi = frame
        .access
        .iter()
        .all(|access| matches!(access, DeviceAccess::CdiAnnotations | DeviceAccess::CdiCri));
    if only_cdi {
        return;
    }
    for name in &frame.features {
        response.envs.insert((*name).to_owned(), "enabled".to_owned());
    }
    if frame.access.contains(&DeviceAccess::Direct) || frame.pass_device_specs {
        for file in subject.files {
            match file.kind {
                NodeKind::Device => response.devices.push(DeviceSpec {
                    container_path: text(&file.bind.container),
                    host_path: text(&file.bind.host),
                    permissions: "rw".to_owned(),
                }),
                NodeKind::File => {
                    response
                        .mounts
                        .push(mount(&file.bind.host, &file.bind.container, false));
                }
            }
        }
    }
}

fn environment(frame: &Frame, subject: &Subject<'_>, envs: &mut BTreeMap<String, String>) {
    let shares = &subject.record.shares;
    for (index, share) in shares.iter().enumerate() {
        envs.insert(
            format!("CUDA_DEVICE_MEMORY_LIMIT_{index}"),
            format!("{}m", share.memory.get()),
        );
    }
    let cores = shares.first().map_or(0, |share| share.cores.get());
    envs.insert("CUDA_DEVICE_SM_LIMIT".to_owned(), cores.to_string());
    envs.insert(
        "CUDA_DEVICE_MEMORY_SHARED_CACHE".to_owned(),
        text(&frame.hook.join("vgpu").join(format!("{}.cache", subject.cache))),
    );
    if frame.oversubscribed {
        envs.insert("CUDA_OVERSUBSCRIBE".to_owned(), "true".to_owned());
    }
    if !frame.log_level.is_empty() {
        envs.insert("LIBCUDA_LOG_LEVEL".to_owned(), frame.log_level.clone());
    }
    if frame.disable_core_limit {
        envs.insert("GPU_CORE_UTILIZATION_POLICY".to_owned(), "disable".to_owned());
    }
}

fn mounts(frame: &Frame, subject: &Subject<'_>, mounts: &mut Vec<Mount>) {
    let vgpu = frame.hook.join("vgpu");
    let library = vgpu.join(crate::library::NAME);
    mounts.push(mount(&library, &library, true));
    if frame.compat_folders {
        mounts.push(mount(&compat_folder(frame, subject.record), &vgpu, false));
        mounts.push(mount(Path::new(COMPAT_LOCKS), Path::new(COMPAT_LOCKS), false));
    }
    if subject.preload {
        mounts.push(mount(
            &vgpu.join(crate::library::PRELOAD),
            Path::new(tessera_region::PRELOAD_PATH),
            true,
        ));
        // Programs that would not load the library say so and end, in place of running without a limit.
        if let Some(processor) = Processor::of_this_build() {
            let loader = Path::new(processor.loader());
            mounts.push(mount(&vgpu.join(crate::library::NO_MUSL), loader, true));
        }
    }
    if let Some(id) = subject.record.grant_id() {
        let grant = GrantDir::new(&frame.grants, id);
        mounts.push(mount(&grant.read_only(), Path::new(CONTAINER_GRANT_DIR), true));
        // The file alone: in a writable folder a container could make others.
        let account = Path::new(CONTAINER_ACCOUNT_DIR).join(ACCOUNT_FILE);
        mounts.push(mount(&grant.account_file(), &account, false));
        // Only some containers have them.
        for (host, name) in [
            (grant.turns_file(), TURNS_FILE),
            (grant.swap_report_file(), SWAP_REPORT_FILE),
        ] {
            if host.is_file() {
                mounts.push(mount(&host, &Path::new(CONTAINER_ACCOUNT_DIR).join(name), false));
            }
        }
    }
    let license = vgpu.join("license");
    if license.is_file() {
        mounts.push(mount(&license, Path::new("/tmp/license"), true));
        mounts.push(mount(
            &vgpu.join("vgpuvalidator"),
            Path::new("/usr/bin/vgpuvalidator"),
            true,
        ));
    }
}

/// Folder of lock files of the compatible library.
pub const COMPAT_LOCKS: &str = "/tmp/vgpulock";

/// The compatible library's own folder for a container.
#[must_use]
pub fn compat_folder(frame: &Frame, record: &Record) -> PathBuf {
    frame
        .hook
        .join("vgpu/containers")
        .join(format!("{}_{}", record.pod.uid, record.container))
}

/// Whether a recorded answer mounts a grant.
#[must_use]
pub fn mounts_grant(response: &ContainerAllocateResponse) -> bool {
    response
        .mounts
        .iter()
        .any(|mount| mount.container_path == CONTAINER_GRANT_DIR)
}

/// The grant that a recorded answer names.
#[must_use]
pub fn grant_in(response: &ContainerAllocateResponse) -> Option<String> {
    response.annotations.get(GRANT_ANNOTATION).cloned().or_else(|| {
        let mount = response
            .mounts
            .iter()
            .find(|mount| mount.container_path == CONTAINER_GRANT_DIR)?;
        let folder = Path::new(&mount.host_path).parent()?.file_name()?;
        Some(folder.to_string_lossy().into_owned())
    })
}

/// The cards that a recorded answer hands in; none when it does not say.
#[must_use]
pub fn cards_in(response: &ContainerAllocateResponse) -> Vec<CardId> {
    let text = response.annotations.get(CARDS_ANNOTATION);
    text.into_iter()
        .flat_map(|text| text.split(','))
        .filter_map(|card| CardId::new(card).ok())
        .collect()
}

fn mount(host: &Path, container: &Path, read_only: bool) -> Mount {
    Mount {
        container_path: text(container),
        host_path: text(host),
        read_only,
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
