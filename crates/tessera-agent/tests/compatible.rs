//! Answers that HAMi's plugin gives, recorded as data. Ours are the same plus
//! the grant's two mounts and its annotation; the shared host folders and the
//! pod's own off switch only where the administrator asks for them.

#![expect(clippy::unwrap_used, reason = "the set-up of a test may end it")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};
use tessera_agent::answer::{DeviceAccess, Frame};
use tessera_agent::book::Book;
use tessera_agent::cards::manage;
use tessera_agent::desk::{Desk, Shelf};
use tessera_agent::metrics::Metrics;
use tessera_agent::records::Store;
use tessera_agent::settings::{CardSettings, Paths, Settings};
use tessera_kubelet::Plugin;
use tessera_probe::{CardFacts, CardStatus, DriverRoot, Inventory, MigMode, PairScores};
use tessera_types::Keyword;
use tessera_wire::PodView;

mod support;
use support::{A, Api, B, NODE, RESOURCE};

#[derive(Deserialize)]
struct Case {
    id: String,
    config: Config,
    pod: PodText,
    requests: Vec<Vec<String>>,
    calls: Vec<Answer>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Config {
    device_memory_scaling: Option<f64>,
    lib_cuda_log_level: Option<String>,
    disable_core_limit: bool,
    license_file: bool,
    device_list_strategy: Vec<String>,
    #[serde(rename = "GDR")]
    gdr: bool,
    #[serde(rename = "GDS")]
    gds: bool,
    #[serde(rename = "MOFED")]
    mofed: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodText {
    namespace: String,
    name: String,
    uid: String,
    node_name: String,
    annotations: BTreeMap<String, String>,
    init_containers: Vec<ContainerText>,
    containers: Vec<ContainerText>,
}

#[derive(Deserialize)]
struct ContainerText {
    name: String,
    #[serde(default)]
    env: BTreeMap<String, String>,
}

#[derive(Deserialize, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Answer {
    envs: BTreeMap<String, String>,
    mounts: Vec<(String, String, bool)>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    cdi_devices: Vec<String>,
}

impl PodText {
    fn view(&self) -> PodView {
        let containers = |list: &[ContainerText]| -> Vec<Value> {
            list.iter()
                .map(|container| {
                    let env: Vec<Value> = container
                        .env
                        .iter()
                        .map(|(name, value)| json!({"name": name, "value": value}))
                        .collect();
                    json!({"name": container.name, "env": env})
                })
                .collect()
        };
        PodView::from_json(&json!({
            "metadata": {
                "namespace": self.namespace, "name": self.name, "uid": self.uid,
                "annotations": self.annotations,
            },
            "spec": {
                "nodeName": self.node_name,
                "initContainers": containers(&self.init_containers),
                "containers": containers(&self.containers),
            },
            "status": {"phase": "Pending"},
        }))
        .unwrap()
    }
}

fn access(words: &[String]) -> Vec<DeviceAccess> {
    let mut access: Vec<DeviceAccess> = words
        .iter()
        .map(|word| match word.as_str() {
            "envvar" => DeviceAccess::Envvar,
            "volume-mounts" => DeviceAccess::VolumeMounts,
            "cdi-annotations" => DeviceAccess::CdiAnnotations,
            "cdi-cri" => DeviceAccess::CdiCri,
            other => panic!("{other}"),
        })
        .collect();
    access.sort_unstable();
    if access.is_empty() {
        vec![DeviceAccess::Envvar]
    } else {
        access
    }
}

fn desk(root: &Path, config: &Config) -> Desk<Api> {
    let at = |name: &str| root.join(name);
    let scaling = config.device_memory_scaling.unwrap_or(1.0);
    let log_level = config.lib_cuda_log_level.clone().unwrap_or_else(|| "1".into());
    let access = access(&config.device_list_strategy);
    let settings = Settings {
        node: NODE.into(),
        cards: CardSettings {
            resource: RESOURCE.into(),
            slots: 10,
            memory_scaling: scaling,
            core_scaling: 1.0,
            preconfigured_memory_mib: None,
            numa: false,
            mode: "hami-core".into(),
            log_level: log_level.clone(),
            disable_core_limit: config.disable_core_limit,
            hidden_uuids: Vec::new(),
            hidden_indexes: Vec::new(),
        },
        paths: Paths {
            plugin_dir: at("plugins"),
            kubelet_socket: at("plugins/kubelet.sock"),
            podresources: at("podresources.sock"),
            driver_root: at("driver"),
            driver_root_host: at("driver"),
            dev_root_host: at("driver"),
            sysfs: at("sys"),
            grants: at("grants"),
            records: at("grants/records"),
            hook: at("hook"),
            library: Some(at("libvgpu.so")),
            cdi: at("cdi"),
        },
        access: access.clone(),
        oversubscription: tessera_agent::settings::Oversubscription::None,
        driver_limits: tessera_agent::settings::DriverLimits::Auto,
        driver_headroom_mib: 2048,
        cgroup_root: "/sys/fs/cgroup".into(),
        pass_device_specs: false,
        cdi_annotation_prefix: "cdi.k8s.io/".into(),
        publish_scores: false,
        allow_disable_control: true,
        compat_folders: true,
        xids_disabled: String::new(),
        xids_enabled: String::new(),
        features: Vec::new(),
        listen: String::new(),
    };
    let features = [
        ("NVIDIA_GDRCOPY", config.gdr),
        ("NVIDIA_GDS", config.gds),
        ("NVIDIA_MOFED", config.mofed),
    ];
    let shelf = Shelf {
        frame: Frame {
            hook: at("hook"),
            grants: at("grants"),
            access,
            pass_device_specs: false,
            cdi_annotation_prefix: "cdi.k8s.io/".into(),
            log_level,
            oversubscribed: scaling > 1.0,
            disable_core_limit: config.disable_core_limit,
            compat_folders: true,
            features: features
                .into_iter()
                .filter_map(|(name, on)| on.then_some(name))
                .collect(),
            driver: Vec::new(),
        },
        root: DriverRoot::new(at("driver"), at("driver")),
        dev_root: at("driver"),
    };
    let class = Keyword::new("NVIDIA").unwrap();
    let card = |uuid: &str, index| CardStatus {
        facts: CardFacts {
            index,
            uuid: uuid.into(),
            model: "A100".into(),
            minor: Some(index),
            pci_bus_id: String::new(),
            memory_total_bytes: Some(40_960 << 20),
            memory_reserved_bytes: None,
            numa: None,
            compute_capability: None,
            mig: MigMode::Unsupported,
            mig_profiles: Vec::new(),
        },
        sick: None,
    };
    let inventory = Inventory {
        driver_version: String::new(),
        cards: vec![card(A, 0), card(B, 1)],
        scores: PairScores::new(),
    };
    std::fs::write(at("libvgpu.so"), "library").unwrap();
    let store = Store::open(&at("grants"), &at("grants/records")).unwrap();
    let cards = manage(&inventory, &settings.cards, &class).0;
    let desk = Desk::new(
        Arc::new(settings),
        Api::new().0,
        store,
        Arc::new(Metrics::default()),
        Book::new(class),
        shelf.clone(),
    );
    desk.install_library().unwrap();
    if config.license_file {
        std::fs::write(at("hook/vgpu/license"), "").unwrap();
    }
    desk.set_cards(cards, shelf);
    desk
}

/// Our answer in the data's words: paths and random parts masked, what only we
/// give taken out after it was checked.
fn answer(hook: &Path, response: tessera_kubelet::proto::deviceplugin_v1beta1::ContainerAllocateResponse) -> Answer {
    let hook = hook.display().to_string();
    let mask = |text: &str| {
        let text = text.replace(&hook, "{hook}");
        match text
            .strip_prefix("{hook}/vgpu/")
            .and_then(|name| name.strip_suffix(".cache"))
        {
            Some(name) => text.replace(name, "{uuid}"),
            None => text,
        }
    };
    let mut annotations = BTreeMap::new();
    let mut named = false;
    for (key, value) in response.annotations {
        match key.strip_prefix("cdi.k8s.io/nvidia-device-plugin_") {
            Some(_) => {
                annotations.insert("cdi.k8s.io/nvidia-device-plugin_{uuid}".to_owned(), value);
            }
            None => named |= key == "tessera.dev/grant",
        }
    }
    assert!(named, "the kubelet's record must name the grant");
    let loader = tessera_no_musl::Processor::of_this_build().map(tessera_no_musl::Processor::loader);
    let (refusing, mounts): (Vec<_>, Vec<_>) = response
        .mounts
        .into_iter()
        .partition(|mount| Some(mount.container_path.as_str()) == loader);
    // Exactly where the library is named, its absence is refused.
    let preloaded = mounts.iter().any(|mount| mount.container_path == "/etc/ld.so.preload");
    assert_eq!(
        refusing.len(),
        usize::from(preloaded && loader.is_some()),
        "{refusing:?}"
    );
    assert!(refusing.iter().all(|mount| mount.read_only), "{refusing:?}");
    let (own, mounts): (Vec<_>, Vec<_>) = mounts
        .into_iter()
        .partition(|mount| mount.container_path.starts_with("/run/tessera/"));
    // Pages of the container are there only where the grant needs them; one alone is for reading only.
    for mount in &own {
        assert_eq!(
            mount.read_only,
            mount.container_path == "/run/tessera/grant",
            "{mount:?}"
        );
    }
    assert!(own.len() >= 2, "{own:?}");
    Answer {
        envs: response
            .envs
            .into_iter()
            .map(|(key, value)| (key, mask(&value)))
            .collect(),
        mounts: mounts
            .into_iter()
            .map(|mount| (mask(&mount.host_path), mask(&mount.container_path), mount.read_only))
            .collect(),
        annotations,
        cdi_devices: response.cdi_devices.into_iter().map(|device| device.name).collect(),
    }
}

#[tokio::test]
async fn answers_are_those_of_the_compatible_plugin() {
    let data = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/allocate.jsonl");
    let text = std::fs::read_to_string(data).unwrap();
    let mut wrong = Vec::new();
    for line in text.lines() {
        let case: Case = serde_json::from_str(line).unwrap();
        let root = tempfile::tempdir().unwrap();
        let desk = desk(root.path(), &case.config);
        desk.change(|book| book.list_pods(vec![case.pod.view()]));
        let mut found = Vec::new();
        for ids in case.requests {
            let responses = desk.allocate(vec![ids]).await.unwrap();
            found.extend(responses.into_iter().map(|one| answer(&root.path().join("hook"), one)));
        }
        if found != case.calls {
            wrong.push(format!("{}\n  ours {found:?}\n  data {:?}", case.id, case.calls));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
