//! The agent's answers against a kubelet's device manager and an API server of
//! one node, both in this process. No driver: the cards are given.

#![expect(clippy::unwrap_used, reason = "the set-up of a test may end it")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tessera_agent::answer::{DeviceAccess, Frame, grant_in};
use tessera_agent::book::Book;
use tessera_agent::cards::{Managed, manage};
use tessera_agent::chores;
use tessera_agent::desk::{Desk, Shelf};
use tessera_agent::metrics::Metrics;
use tessera_agent::records::Store;
use tessera_agent::settings::{CardSettings, Paths, Settings};
use tessera_kubelet::fake::FakeKubelet;
use tessera_kubelet::{ServeConfig, StreamState, serve};
use tessera_probe::{CardFacts, CardStatus, DriverRoot, Inventory, MigMode, PairScores};
use tessera_region::{Grant, GrantId, GrantState, fs};
use tessera_types::Keyword;
use tessera_wire::keys;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

mod kubelet_resize;
mod support;
use support::{A, Api, B, DEADLINE, NODE, Pod, RESOURCE};

/// One agent's life on a node's folders.
struct Agent {
    desk: Arc<Desk<Api>>,
    stop: CancellationToken,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Agent {
    /// Dies without a word.
    fn kill(self) {
        for task in &self.tasks {
            task.abort();
        }
        // The aborted server's socket must not answer any more.
        self.stop.cancel();
    }
}

fn settings(root: &Path) -> Settings {
    let plugin_dir = root.join("kubelet/device-plugins");
    Settings {
        node: NODE.into(),
        cards: CardSettings {
            resource: RESOURCE.into(),
            slots: 10,
            memory_scaling: 1.0,
            core_scaling: 1.0,
            preconfigured_memory_mib: None,
            numa: false,
            mode: "hami-core".into(),
            log_level: "1".into(),
            disable_core_limit: false,
            hidden_uuids: Vec::new(),
            hidden_indexes: Vec::new(),
        },
        paths: Paths {
            kubelet_socket: plugin_dir.join("kubelet.sock"),
            plugin_dir,
            podresources: root.join("kubelet/pod-resources/kubelet.sock"),
            driver_root: root.join("driver"),
            driver_root_host: PathBuf::from("/driver"),
            dev_root_host: PathBuf::from("/driver"),
            sysfs: root.join("sys"),
            grants: root.join("grants"),
            records: root.join("grants/records"),
            hook: root.join("hook"),
            library: Some(root.join("libvgpu.so")),
            cdi: root.join("cdi"),
        },
        access: vec![DeviceAccess::Direct],
        oversubscription: tessera_agent::settings::Oversubscription::None,
        driver_limits: tessera_agent::settings::DriverLimits::Auto,
        driver_headroom_mib: 2048,
        cgroup_root: "/sys/fs/cgroup".into(),
        pass_device_specs: false,
        cdi_annotation_prefix: "cdi.k8s.io/".into(),
        publish_scores: false,
        allow_disable_control: false,
        compat_folders: false,
        xids_disabled: String::new(),
        xids_enabled: String::new(),
        features: Vec::new(),
        listen: String::new(),
    }
}

fn inventory(sick: bool) -> Inventory {
    let card = |uuid: &str, index| CardStatus {
        facts: CardFacts {
            index,
            uuid: uuid.into(),
            model: "NVIDIA A100-SXM4-40GB".into(),
            minor: Some(index),
            pci_bus_id: String::new(),
            memory_total_bytes: Some(40_960 << 20),
            memory_reserved_bytes: None,
            numa: None,
            compute_capability: None,
            mig: MigMode::Unsupported,
            mig_profiles: Vec::new(),
        },
        sick: (sick && index == 1).then_some(tessera_probe::card::Sickness::Xid(79)),
    };
    Inventory {
        driver_version: "1".into(),
        cards: vec![card(A, 0), card(B, 1)],
        scores: PairScores::new(),
    }
}

/// Where programs on musl look for their loader.
fn musl_loader() -> &'static str {
    tessera_no_musl::Processor::of_this_build().unwrap().loader()
}

fn class() -> Keyword {
    Keyword::new("NVIDIA").unwrap()
}

fn cards(settings: &Settings, sick: bool) -> Vec<Managed> {
    manage(&inventory(sick), &settings.cards, &class()).0
}

fn shelf(settings: &Settings) -> Shelf {
    Shelf {
        frame: Frame {
            hook: settings.paths.hook.clone(),
            grants: settings.paths.grants.clone(),
            access: settings.access.clone(),
            pass_device_specs: false,
            cdi_annotation_prefix: "cdi.k8s.io/".into(),
            log_level: "1".into(),
            oversubscribed: false,
            disable_core_limit: false,
            compat_folders: settings.compat_folders,
            features: Vec::new(),
            driver: tessera_agent::driver_files::driver_binds(&root_of(settings)),
        },
        root: root_of(settings),
        dev_root: settings.paths.dev_root_host.clone(),
    }
}

fn root_of(settings: &Settings) -> DriverRoot {
    DriverRoot::new(&settings.paths.driver_root, &settings.paths.driver_root_host)
}

fn start(
    settings: &Settings,
    api: Api,
    changes: tokio::sync::mpsc::Receiver<tessera_agent::cluster::ClusterChange>,
) -> Agent {
    let paths = &settings.paths;
    let store = Store::open(&paths.grants, &paths.records).unwrap();
    let settings_arc = Arc::new(settings.clone());
    let desk = Arc::new(Desk::new(
        settings_arc,
        api,
        store,
        Arc::new(Metrics::default()),
        Book::new(class()),
        shelf(settings),
    ));
    desk.install_library().unwrap();
    desk.set_cards(cards(settings, false), shelf(settings));
    let stop = CancellationToken::new();
    let (node_sender, node) = watch::channel(None);
    let (synced_sender, _synced) = watch::channel(false);
    let (wanted_sender, wanted) = watch::channel(tessera_agent::register::wanted(&cards(settings, false), false, "1"));
    let config = ServeConfig {
        plugin_dir: paths.plugin_dir.clone(),
        kubelet_socket: paths.kubelet_socket.clone(),
        resource: RESOURCE.into(),
        socket_stem: "tessera-gpu".into(),
    };
    let tasks = vec![
        tokio::spawn({
            let (desk, stop) = (Arc::clone(&desk), stop.clone());
            async move { chores::follow(&desk, changes, node_sender, synced_sender, stop).await }
        }),
        tokio::spawn(chores::annotate(Arc::clone(&desk), stop.clone())),
        tokio::spawn(tessera_agent::resizes::keep(Arc::clone(&desk), stop.clone())),
        tokio::spawn(chores::register(Arc::clone(&desk), wanted, node, stop.clone())),
        tokio::spawn({
            let (desk, stop) = (Arc::clone(&desk), stop.clone());
            let state = watch::channel(StreamState::NoKubelet).0;
            async move {
                let _cards_stay_known = wanted_sender;
                serve(config, desk, state, stop).await.unwrap();
            }
        }),
    ];
    Agent { desk, stop, tasks }
}

struct Node {
    root: tempfile::TempDir,
    settings: Settings,
    kubelet: FakeKubelet,
    api: Api,
    agent: Agent,
}

impl Node {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(adjust: impl FnOnce(&mut Settings)) -> Self {
        let root = tempfile::tempdir().unwrap();
        let path = root.path();
        std::fs::write(path.join("libvgpu.so"), "library").unwrap();
        std::fs::create_dir_all(path.join("driver/dev")).unwrap();
        std::fs::create_dir_all(path.join("driver/lib64")).unwrap();
        for file in ["dev/nvidiactl", "dev/nvidia0", "dev/nvidia1", "lib64/libcuda.so.1"] {
            std::fs::write(path.join("driver").join(file), "").unwrap();
        }
        let mut settings = settings(path);
        adjust(&mut settings);
        let kubelet = FakeKubelet::start(&path.join("kubelet")).unwrap();
        let (api, changes) = Api::new();
        let agent = start(&settings, api.clone(), changes);
        kubelet
            .await_devices(RESOURCE, DEADLINE, |list| list.len() == 20)
            .await
            .unwrap();
        Self {
            root,
            settings,
            kubelet,
            api,
            agent,
        }
    }

    /// Kills the agent and starts another on the same folders.
    async fn restart_agent(&mut self) {
        let (api, changes) = self.api.reconnect();
        let next_settings = self.settings.clone();
        let registrations = self.kubelet.registrations();
        let placeholder = Agent {
            desk: Arc::clone(&self.agent.desk),
            stop: CancellationToken::new(),
            tasks: Vec::new(),
        };
        let old = std::mem::replace(&mut self.agent, placeholder);
        old.kill();
        self.kubelet
            .await_devices(RESOURCE, DEADLINE, <[_]>::is_empty)
            .await
            .unwrap();
        self.api = api.clone();
        self.agent = start(&next_settings, api, changes);
        self.kubelet
            .await_devices(RESOURCE, DEADLINE, |list| list.len() == 20)
            .await
            .unwrap();
        assert!(self.kubelet.registrations() > registrations);
    }

    fn grant(&self, pod: &Pod, container: &str) -> Grant {
        let record = self
            .kubelet
            .records()
            .into_iter()
            .find(|record| record.pod.uid == pod.uid() && record.container == container)
            .unwrap();
        let id = GrantId::parse(&grant_in(&record.response).unwrap()).unwrap();
        fs::read_grant(&fs::GrantDir::new(&self.settings.paths.grants, id)).unwrap()
    }

    /// `(uuid, MiB, permille)` of each card, checked to be sealed for the
    /// container.
    fn sealed(&self, pod: &Pod, container: &str) -> support::Shares {
        let grant = self.grant(pod, container);
        assert_eq!(grant.state, GrantState::Sealed, "{} {container}", pod.name);
        assert_eq!(grant.pod_uid.as_str(), pod.uid());
        assert_eq!(grant.container.as_str(), container);
        grant
            .cards()
            .iter()
            .map(|card| {
                (
                    card.uuid.as_str().to_owned(),
                    card.memory_bytes >> 20,
                    card.cores_permille,
                )
            })
            .collect()
    }

    async fn admit(&self, pod: &Pod) {
        self.api.put(pod);
        self.kubelet.admit(RESOURCE, &pod.for_kubelet()).await.unwrap();
    }

    async fn begin(&self, pod: &Pod, container: &str) {
        self.kubelet
            .start_container(RESOURCE, &pod.uid(), container)
            .await
            .unwrap();
    }
}

fn one(card: &str, mib: u64, permille: u32) -> support::Shares {
    vec![(card.to_owned(), mib, permille)]
}

#[tokio::test]
async fn a_pod_gets_its_limits_its_devices_and_a_sealed_grant() {
    let node = Node::new().await;
    let pod = Pod::new("p").container("c", &[(B, 3000, 30)]);
    node.admit(&pod).await;
    assert_eq!(node.grant(&pod, "c").state, GrantState::Pending);
    node.begin(&pod, "c").await;
    assert_eq!(node.sealed(&pod, "c"), one(B, 3000, 300));

    let response = node.kubelet.records()[0].response.clone();
    let env: BTreeMap<&str, &str> = response
        .envs
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    assert_eq!(env["NVIDIA_VISIBLE_DEVICES"], B);
    assert_eq!(env["CUDA_DEVICE_MEMORY_LIMIT_0"], "3000m");
    assert_eq!(env["CUDA_DEVICE_SM_LIMIT"], "30");
    assert_eq!(env["LIBCUDA_LOG_LEVEL"], "1");
    let mount = |container: &str| {
        response
            .mounts
            .iter()
            .find(|mount| mount.container_path == container)
            .map(|mount| (mount.host_path.as_str(), mount.read_only))
    };
    assert!(
        mount("/run/tessera/grant").unwrap().1,
        "a tenant cannot write its grant"
    );
    let (account, read_only) = mount("/run/tessera/account/account").unwrap();
    assert!(!read_only && Path::new(account).is_file());
    // A container that makes it longer gains nothing.
    let file = std::fs::OpenOptions::new().write(true).open(account).unwrap();
    let size = file.metadata().unwrap().len();
    file.set_len(size + (1 << 20)).unwrap();
    node.agent.desk.cut_accounts();
    assert_eq!(file.metadata().unwrap().len(), size);
    assert!(mount("/etc/ld.so.preload").unwrap().1);
    // Programs on musl, which load no library, meet a program that says so.
    let (refusing, read_only) = mount(musl_loader()).unwrap();
    assert!(read_only && Path::new(refusing).is_file());
    // Files that stand for devices are bound, only those of the card's own.
    assert_eq!(mount("/dev/nvidiactl"), Some(("/driver/dev/nvidiactl", false)));
    assert_eq!(mount("/dev/nvidia1"), Some(("/driver/dev/nvidia1", false)));
    assert_eq!(mount("/dev/nvidia0"), None);
    assert_eq!(
        mount("/usr/lib64/libcuda.so.1"),
        Some(("/driver/lib64/libcuda.so.1", true))
    );
    // Under our own scheduler nothing is written on the pod.
    assert!(
        node.api.writes().iter().all(|write| write == "node"),
        "{:?}",
        node.api.writes()
    );
}

#[tokio::test]
async fn the_node_is_published_once_and_put_right_when_someone_removes_it() {
    let node = Node::new().await;
    node.api
        .until("registered", |api| api.node().contains_key(keys::NVIDIA_REGISTER))
        .await;
    let text = node.api.node()[keys::NVIDIA_REGISTER].clone();
    assert!(
        text.starts_with(&format!(r#"[{{"id":"{A}","count":10,"devmem":40960,"devcore":100"#)),
        "{text}"
    );
    assert!(node.api.node().contains_key(keys::TESSERA_AGENT));
    assert_eq!(node.api.writes(), ["node"]);
    // Its own echo and other people's changes cost nothing.
    node.api.set_node("other", Some("1"));
    node.api.set_node(keys::NVIDIA_REGISTER, None);
    node.api
        .until("restored", |api| api.node().get(keys::NVIDIA_REGISTER) == Some(&text))
        .await;
    assert_eq!(node.api.writes(), ["node", "node"]);
}

#[tokio::test]
async fn a_failed_registration_is_repeated() {
    let node = Node::new().await;
    node.api
        .until("registered", |api| api.node().contains_key(keys::NVIDIA_REGISTER))
        .await;
    node.api.fail(2);
    node.api.set_node(keys::NVIDIA_REGISTER, None);
    node.api
        .until("restored", |api| api.node().contains_key(keys::NVIDIA_REGISTER))
        .await;
}

#[tokio::test]
async fn a_whole_card_has_no_library() {
    let node = Node::new().await;
    let pod = Pod::new("p").container("c", &[(A, 40_960, 100)]);
    node.admit(&pod).await;
    node.begin(&pod, "c").await;
    let response = node.kubelet.records()[0].response.clone();
    assert!(
        response
            .mounts
            .iter()
            .all(|mount| mount.container_path != "/etc/ld.so.preload" && mount.container_path != musl_loader())
    );
    assert!(!response.envs.contains_key("CUDA_DEVICE_MEMORY_LIMIT_0"));
    assert_eq!(response.annotations["tessera.dev/hook"], "none: whole card");
}

#[tokio::test]
async fn swapped_owners_are_put_right_before_they_start() {
    let node = Node::new().await;
    let first = Pod::new("p1").container("c", &[(A, 1000, 10)]);
    let second = Pod::new("p2").container("c", &[(A, 9000, 90)]);
    node.api.put(&first);
    node.api.put(&second);
    // The kubelet admits the second first.
    node.kubelet.admit(RESOURCE, &second.for_kubelet()).await.unwrap();
    node.kubelet.admit(RESOURCE, &first.for_kubelet()).await.unwrap();
    node.begin(&first, "c").await;
    node.begin(&second, "c").await;
    assert_eq!(node.sealed(&first, "c"), one(A, 1000, 100));
    assert_eq!(node.sealed(&second, "c"), one(A, 9000, 900));
}

#[tokio::test]
async fn the_kubelet_s_own_order_is_followed_when_it_says_which_pods_it_knows() {
    let node = Node::new().await;
    let first = Pod::new("p1").container("c", &[(A, 1000, 10)]);
    let second = Pod::new("p2").container("c", &[(B, 9000, 90)]);
    node.api.put(&first);
    node.api.put(&second);
    node.kubelet.admit(RESOURCE, &second.for_kubelet()).await.unwrap();
    node.kubelet.admit(RESOURCE, &first.for_kubelet()).await.unwrap();
    node.begin(&second, "c").await;
    node.begin(&first, "c").await;
    assert_eq!(node.sealed(&first, "c"), one(A, 1000, 100));
    assert_eq!(node.sealed(&second, "c"), one(B, 9000, 900));
    assert!(node.api.writes().iter().all(|write| write == "node"));
}

#[tokio::test]
async fn a_container_given_another_one_s_cards_starts_once_it_is_booked_there() {
    let node = Node::new().await;
    node.kubelet.mute_podresources(true);
    let first = Pod::new("p1").container("c", &[(A, 1000, 10)]);
    let second = Pod::new("p2").container("c", &[(B, 9000, 90)]);
    node.api.put(&first);
    node.api.put(&second);
    // The kubelet admits the second first and does not say so.
    node.kubelet.admit(RESOURCE, &second.for_kubelet()).await.unwrap();
    node.kubelet.admit(RESOURCE, &first.for_kubelet()).await.unwrap();
    let wait = node.kubelet.start_container(RESOURCE, &second.uid(), "c").await;
    assert!(
        wait.unwrap_err()
            .message()
            .contains("starts once its booking has moved")
    );
    let text = format!("{A},NVIDIA,9000,90:;");
    node.api
        .until("p2 moved", |api| {
            api.annotations(&second)[keys::NVIDIA_ALLOCATED] == text
        })
        .await;
    node.begin(&second, "c").await;
    node.begin(&first, "c").await;
    assert_eq!(node.sealed(&first, "c"), one(A, 1000, 100));
    assert_eq!(node.sealed(&second, "c"), one(A, 9000, 900));
}

#[tokio::test]
async fn ids_of_other_cards_are_answered_with_the_pod_s_own_cards_and_limits() {
    let node = Node::new().await;
    let big = Pod::new("big").container("c", &[(B, 40_000, 0)]);
    node.admit(&big).await;
    node.begin(&big, "c").await;
    // Two slots of one card, and one that has no room: neither is what is given.
    let pod = Pod::new("p").container("c", &[(A, 9000, 50), (B, 900, 0)]);
    node.api.put(&pod);
    node.kubelet
        .admit_choosing(RESOURCE, &pod.for_kubelet(), |_, _| {
            vec![format!("{B}-7"), format!("{B}-8")]
        })
        .await
        .unwrap();
    node.begin(&pod, "c").await;
    assert_eq!(
        node.sealed(&pod, "c"),
        [(A.to_owned(), 9000, 500), (B.to_owned(), 900, 0)]
    );
    let record = node.kubelet.records().pop().unwrap();
    assert_eq!(record.response.envs["NVIDIA_VISIBLE_DEVICES"], format!("{A},{B}"));
    assert!(node.api.writes().iter().all(|write| write == "node"));
}

#[tokio::test]
async fn with_all_slots_taken_by_a_dying_pod_the_next_one_takes_any_ids() {
    let node = Node::new().await;
    // Ten slots of A are held by pods that are gone for everybody but the kubelet.
    let dying: Vec<Pod> = (0..10)
        .map(|number| Pod::new(&format!("old{number}")).container("c", &[(A, 1000, 0)]))
        .collect();
    for pod in &dying {
        node.admit(pod).await;
        node.begin(pod, "c").await;
        node.api.delete(pod);
    }
    let pod = Pod::new("p").container("c", &[(A, 3000, 0)]);
    node.admit(&pod).await;
    let record = node.kubelet.records().pop().unwrap();
    assert!(record.ids.iter().all(|id| id.starts_with(B)), "{:?}", record.ids);
    node.begin(&pod, "c").await;
    assert_eq!(node.sealed(&pod, "c"), one(A, 3000, 0));
}

#[tokio::test]
async fn a_kubelet_killed_before_it_recorded_the_answer_may_ask_again() {
    let mut node = Node::new().await;
    let pod = Pod::new("p").container("c", &[(A, 1000, 0), (B, 2000, 0)]);
    let other = Pod::new("other").container("c", &[(A, 500, 0), (B, 600, 0)]);
    node.api.put(&pod);
    node.api.put(&other);
    let ids = [format!("{A}-0"), format!("{B}-0")];
    for _ in 0..3 {
        node.kubelet
            .allocate_unrecorded(RESOURCE, &pod.for_kubelet(), &ids)
            .await
            .unwrap();
        node.kubelet.restart().unwrap();
        node.kubelet
            .await_devices(RESOURCE, DEADLINE, |list| list.len() == 20)
            .await
            .unwrap();
    }
    // Other ids, and after another pod.
    node.kubelet.admit(RESOURCE, &other.for_kubelet()).await.unwrap();
    node.kubelet
        .admit_choosing(RESOURCE, &pod.for_kubelet(), |free, _| {
            free.iter().rev().take(2).cloned().collect()
        })
        .await
        .unwrap();
    node.begin(&pod, "c").await;
    node.begin(&other, "c").await;
    assert_eq!(
        node.sealed(&pod, "c"),
        [(A.to_owned(), 1000, 0), (B.to_owned(), 2000, 0)]
    );
    assert_eq!(
        node.sealed(&other, "c"),
        [(A.to_owned(), 500, 0), (B.to_owned(), 600, 0)]
    );
}

#[tokio::test]
async fn a_running_container_that_the_kubelet_forgot_gets_the_same_again() {
    let mut node = Node::new().await;
    let pod = Pod::new("p").container("c", &[(A, 1000, 40)]);
    node.admit(&pod).await;
    node.begin(&pod, "c").await;
    node.api.set_phase(&pod, "Running");
    let before = node.grant(&pod, "c");
    node.kubelet.edit_records(Vec::clear);
    node.kubelet.restart().unwrap();
    node.kubelet
        .await_devices(RESOURCE, DEADLINE, |list| list.len() == 20)
        .await
        .unwrap();
    let ids = [format!("{B}-5")];
    node.kubelet
        .allocate(RESOURCE, &pod.for_kubelet(), "c", &ids)
        .await
        .unwrap();
    // Until it is started anew the running one needs its own grant.
    let mut gone = BTreeMap::new();
    let now = tokio::time::Instant::now();
    chores::sweep_once(&node.agent.desk, &mut gone, now);
    chores::sweep_once(&node.agent.desk, &mut gone, now + std::time::Duration::from_secs(61));
    let running = fs::GrantDir::new(&node.settings.paths.grants, before.id);
    assert_eq!(fs::read_grant(&running).unwrap().cards(), before.cards());
    node.begin(&pod, "c").await;
    assert_eq!(node.sealed(&pod, "c"), one(A, 1000, 400));
    assert_ne!(node.grant(&pod, "c").id, before.id);
}

#[tokio::test]
async fn a_pod_deleted_before_the_kubelet_saw_it_is_admitted_all_the_same() {
    let node = Node::new().await;
    let pod = Pod::new("p").container("c", &[(A, 1000, 0)]);
    node.api.put(&pod);
    node.api.begin_deletion(&pod);
    node.kubelet.admit(RESOURCE, &pod.for_kubelet()).await.unwrap();
}

#[tokio::test]
async fn a_pod_that_the_watch_never_tells_is_asked_for() {
    let node = Node::new().await;
    node.api.silence(true);
    let pod = Pod::new("p").container("c", &[(A, 1000, 0)]);
    node.admit(&pod).await;
    assert_eq!(node.api.lists(), 1);
    node.begin(&pod, "c").await;
    assert_eq!(node.sealed(&pod, "c"), one(A, 1000, 0));
}

#[tokio::test]
async fn right_after_its_start_the_agent_waits_for_the_list_of_pods() {
    let mut node = Node::new().await;
    let pod = Pod::new("p").container("c", &[(A, 1000, 0)]);
    node.api.silence(true);
    node.api.put(&pod);
    node.restart_agent().await;
    let fake = pod.for_kubelet();
    let api = node.api.clone();
    let admitted = node.kubelet.admit(RESOURCE, &fake);
    let later = async {
        // Longer than a single pod is waited for.
        tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
        api.silence(false);
        api.relist();
    };
    let (admitted, ()) = tokio::join!(admitted, later);
    admitted.unwrap();
    assert_eq!(node.api.lists(), 0);
}

#[tokio::test]
async fn containers_that_start_at_the_same_time_do_not_undo_each_other() {
    let node = Node::new().await;
    node.kubelet.mute_podresources(true);
    let pods: Vec<Pod> = (0..8)
        .map(|number| Pod::new(&format!("p{number}")).container("c", &[(A, 1000 + number, 0)]))
        .collect();
    for pod in &pods {
        node.api.put(pod);
    }
    // Every guess is wrong.
    for pod in pods.iter().rev() {
        node.kubelet.admit(RESOURCE, &pod.for_kubelet()).await.unwrap();
    }
    let starts = pods.iter().map(|pod| async {
        node.begin(pod, "c").await;
    });
    futures::future::join_all(starts).await;
    for (number, pod) in (0..).zip(&pods) {
        assert_eq!(node.sealed(pod, "c"), one(A, 1000 + number, 0));
    }
    let store = Store::open(&node.settings.paths.grants, &node.settings.paths.records).unwrap();
    assert!(store.scan().iter().all(|record| record.sealed && record.proven));
}

#[tokio::test]
async fn without_space_for_the_grant_the_pod_is_admitted_and_waits() {
    let node = Node::new().await;
    let grants = &node.settings.paths.grants;
    let aside = node.root.path().join("aside");
    std::fs::rename(grants, &aside).unwrap();
    std::fs::write(grants, "in the way").unwrap();
    let pod = Pod::new("p").container("c", &[(A, 1000, 0)]);
    node.admit(&pod).await;
    let wait = node.kubelet.start_container(RESOURCE, &pod.uid(), "c").await;
    assert_eq!(
        wait.unwrap_err().code() as i32,
        14,
        "unavailable: the kubelet asks again"
    );
    assert_eq!(node.api.notes()[0].pod.name, "p");
    std::fs::remove_file(grants).unwrap();
    std::fs::rename(&aside, grants).unwrap();
    node.begin(&pod, "c").await;
    assert_eq!(node.sealed(&pod, "c"), one(A, 1000, 0));
}

#[tokio::test]
async fn equal_limits_are_sealed_for_whom_the_kubelet_meant() {
    let node = Node::new().await;
    let pods: Vec<Pod> = (0..5)
        .map(|number| Pod::new(&format!("p{number}")).container("c", &[(A, 1000, 0)]))
        .collect();
    for pod in &pods {
        node.api.put(pod);
    }
    for pod in pods.iter().rev() {
        node.kubelet.admit(RESOURCE, &pod.for_kubelet()).await.unwrap();
    }
    for pod in &pods {
        node.begin(pod, "c").await;
        assert_eq!(node.sealed(pod, "c"), one(A, 1000, 0));
    }
}

#[tokio::test]
async fn init_containers_and_app_containers_have_their_own_grants() {
    let node = Node::new().await;
    let pod = Pod::new("p")
        .init("load", &[(A, 500, 0)])
        .container("plain", &[])
        .container("main", &[(A, 4000, 0), (B, 2000, 0)]);
    node.admit(&pod).await;
    node.begin(&pod, "load").await;
    node.begin(&pod, "main").await;
    assert_eq!(node.sealed(&pod, "load"), one(A, 500, 0));
    assert_eq!(
        node.sealed(&pod, "main"),
        [(A.to_owned(), 4000, 0), (B.to_owned(), 2000, 0)]
    );
    let load = node.kubelet.records()[0].ids.clone();
    assert!(
        node.kubelet.records()[1].ids.is_superset(&load),
        "the kubelet uses init ids again"
    );
}

#[tokio::test]
async fn a_pod_that_the_watch_tells_late_is_waited_for() {
    let node = Node::new().await;
    let pod = Pod::new("p").container("c", &[(A, 1000, 0)]);
    let ids = [format!("{A}-0")];
    let fake = pod.for_kubelet();
    let allocate = node.kubelet.allocate(RESOURCE, &fake, "c", &ids);
    let api = node.api.clone();
    let later = async {
        tokio::task::yield_now().await;
        api.put(&pod);
    };
    let (answer, ()) = tokio::join!(allocate, later);
    answer.unwrap();
    node.begin(&pod, "c").await;
    assert_eq!(node.sealed(&pod, "c"), one(A, 1000, 0));
}

#[tokio::test]
async fn strangers_are_refused_and_nobody_else_is_touched() {
    let node = Node::new().await;
    let finished = Pod::new("done").hami().container("c", &[(A, 1000, 0)]);
    node.admit(&finished).await;
    node.api
        .until("done", |api| api.annotations(&finished)[keys::BIND_PHASE] == "success")
        .await;
    let before = node.api.annotations(&finished);
    let stranger = Pod::new("stranger").container("c", &[(B, 1, 0)]);
    let ids = [format!("{B}-0")];
    let refused = node
        .kubelet
        .allocate(RESOURCE, &stranger.for_kubelet(), "c", &ids)
        .await
        .unwrap_err();
    assert!(
        refused.message().contains("no container on this node waits"),
        "{}",
        refused.message()
    );
    let unknown = ["GPU-nonsense-3".to_owned()];
    let refused = node
        .kubelet
        .allocate(RESOURCE, &stranger.for_kubelet(), "c", &unknown)
        .await
        .unwrap_err();
    assert!(
        refused.message().contains("`GPU-nonsense-3` is not an id"),
        "{}",
        refused.message()
    );
    assert_eq!(node.api.annotations(&finished), before);
}

#[tokio::test]
async fn hami_s_scheduler_gets_its_erase_phase_and_lock_once() {
    let node = Node::new().await;
    node.api
        .set_node(keys::NODE_LOCK, Some("2026-08-21T06:20:39Z,default,p"));
    let pod = Pod::new("p").hami().container("c", &[(A, 3000, 30)]);
    node.admit(&pod).await;
    node.api
        .until("unlocked", |api| !api.node().contains_key(keys::NODE_LOCK))
        .await;
    let annotations = node.api.annotations(&pod);
    assert_eq!(annotations[keys::BIND_PHASE], "success");
    assert_eq!(annotations[keys::NVIDIA_TO_ALLOCATE], ";;");
    assert_eq!(annotations[keys::NVIDIA_ALLOCATED], format!("{A},NVIDIA,3000,30:;"));
    let writes = node.api.writes();
    assert_eq!(
        writes.iter().filter(|write| *write == "pod default/p").count(),
        1,
        "{writes:?}"
    );
}

#[tokio::test]
async fn hami_s_part_is_finished_by_the_next_agent() {
    let mut node = Node::new().await;
    node.api
        .until("registered", |api| api.node().contains_key(keys::NVIDIA_REGISTER))
        .await;
    node.api
        .set_node(keys::NODE_LOCK, Some("2026-08-21T06:20:39Z,default,p"));
    // The server is away when the answer is given; then the agent dies.
    node.api.fail(u32::MAX);
    let pod = Pod::new("p").hami().container("c", &[(A, 3000, 30)]);
    node.admit(&pod).await;
    assert_eq!(node.api.annotations(&pod)[keys::BIND_PHASE], "allocating");
    node.api.fail(0);
    node.restart_agent().await;
    node.api
        .until("finished", |api| !api.node().contains_key(keys::NODE_LOCK))
        .await;
    assert_eq!(node.api.annotations(&pod)[keys::BIND_PHASE], "success");
    node.begin(&pod, "c").await;
    assert_eq!(node.sealed(&pod, "c"), one(A, 3000, 300));
}

#[tokio::test]
async fn an_agent_killed_between_answer_and_start_seals_afterwards() {
    let mut node = Node::new().await;
    let first = Pod::new("p1").container("c", &[(A, 1000, 0)]);
    let second = Pod::new("p2").container("c", &[(A, 2000, 0)]);
    node.api.put(&first);
    node.api.put(&second);
    node.kubelet.admit(RESOURCE, &second.for_kubelet()).await.unwrap();
    node.restart_agent().await;
    node.kubelet.admit(RESOURCE, &first.for_kubelet()).await.unwrap();
    node.begin(&second, "c").await;
    node.begin(&first, "c").await;
    assert_eq!(node.sealed(&first, "c"), one(A, 1000, 0));
    assert_eq!(node.sealed(&second, "c"), one(A, 2000, 0));
    // A container restart needs no new answer.
    node.begin(&first, "c").await;
}

#[tokio::test]
async fn grants_lost_with_the_node_s_memory_are_made_again() {
    let mut node = Node::new().await;
    let pod = Pod::new("p").container("c", &[(A, 1000, 40)]);
    node.admit(&pod).await;
    node.begin(&pod, "c").await;
    // A reboot empties the tmpfs; the kubelet's record is on disk.
    std::fs::remove_dir_all(&node.settings.paths.grants).unwrap();
    node.restart_agent().await;
    node.begin(&pod, "c").await;
    assert_eq!(node.sealed(&pod, "c"), one(A, 1000, 400));
}

#[tokio::test]
async fn a_restarted_kubelet_finds_the_same_ids_and_its_pods_start() {
    let mut node = Node::new().await;
    let pod = Pod::new("p").container("c", &[(A, 1000, 0)]);
    node.admit(&pod).await;
    node.kubelet.restart().unwrap();
    let list = node
        .kubelet
        .await_devices(RESOURCE, DEADLINE, |list| list.len() == 20)
        .await
        .unwrap();
    assert_eq!(list[0].id, format!("{A}-0"));
    assert_eq!(list[19].id, format!("{B}-9"));
    node.begin(&pod, "c").await;
    assert_eq!(node.sealed(&pod, "c"), one(A, 1000, 0));
}

#[tokio::test]
async fn podresources_proves_the_owner_when_the_checkpoint_is_lost() {
    let node = Node::new().await;
    let first = Pod::new("p1").container("c", &[(A, 1000, 0)]);
    let second = Pod::new("p2").container("c", &[(A, 2000, 0)]);
    node.api.put(&first);
    node.api.put(&second);
    node.kubelet.admit(RESOURCE, &second.for_kubelet()).await.unwrap();
    node.kubelet.lose_checkpoint().unwrap();
    node.begin(&second, "c").await;
    assert_eq!(node.sealed(&second, "c"), one(A, 2000, 0));
}

#[tokio::test]
async fn a_container_whose_owner_nobody_knows_waits_and_is_not_failed() {
    let node = Node::new().await;
    let pod = Pod::new("p").container("c", &[(A, 1000, 0)]);
    node.admit(&pod).await;
    let records = node.kubelet.records();
    node.kubelet
        .edit_records(|records| records[0].pod.uid = "uid-unknown".into());
    let refused = node
        .kubelet
        .start_container(RESOURCE, "uid-unknown", "c")
        .await
        .unwrap_err();
    assert_eq!(refused.code() as i32, 14, "unavailable: the kubelet asks again");
    assert_eq!(node.grant(&Pod::new("unknown"), "c").state, GrantState::Pending);
    node.kubelet.edit_records(|found| *found = records);
    node.begin(&pod, "c").await;
    assert_eq!(node.sealed(&pod, "c"), one(A, 1000, 0));
}

#[tokio::test]
async fn grants_go_some_time_after_their_pod() {
    let node = Node::new().await;
    let kept = Pod::new("kept").container("c", &[(A, 1000, 0)]);
    let ended = Pod::new("ended").container("c", &[(A, 1000, 0)]);
    for pod in [&kept, &ended] {
        node.admit(pod).await;
        node.begin(pod, "c").await;
    }
    let mut changes = node.agent.desk.changes();
    node.api.delete(&ended);
    node.api.set_phase(&kept, "Running");
    let mut gone = BTreeMap::new();
    let uid = tessera_types::PodUid::new(ended.uid()).unwrap();
    while node.agent.desk.read(|book| book.is_live(&uid)) {
        changes.changed().await.unwrap();
    }
    let now = tokio::time::Instant::now();
    chores::sweep_once(&node.agent.desk, &mut gone, now);
    let store = Store::open(&node.settings.paths.grants, &node.settings.paths.records).unwrap();
    assert_eq!(store.scan().len(), 2, "a pod's last processes may still run");
    chores::sweep_once(&node.agent.desk, &mut gone, now + std::time::Duration::from_secs(61));
    let left = store.scan();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].pod.name, "kept");
    assert_eq!(fs::scan(&node.settings.paths.grants).unwrap().len(), 1);
}

#[tokio::test]
async fn a_sick_card_is_withdrawn_and_comes_back() {
    let node = Node::new().await;
    let healthy = |count: usize| {
        move |list: &[tessera_kubelet::proto::deviceplugin_v1beta1::Device]| {
            list.len() == 20 && list.iter().filter(|device| device.health == "Healthy").count() == count
        }
    };
    node.agent
        .desk
        .set_cards(cards(&node.settings, true), shelf(&node.settings));
    node.kubelet
        .await_devices(RESOURCE, DEADLINE, healthy(10))
        .await
        .unwrap();
    node.agent
        .desk
        .set_cards(cards(&node.settings, false), shelf(&node.settings));
    node.kubelet
        .await_devices(RESOURCE, DEADLINE, healthy(20))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_pod_cannot_switch_its_limits_off_unless_the_node_allows_it() {
    let node = Node::new().await;
    let pod = Pod::new("p")
        .container("c", &[(A, 1000, 0)])
        .env("CUDA_DISABLE_CONTROL", "true");
    node.admit(&pod).await;
    let preload = |node: &Node| {
        let response = &node.kubelet.records()[0].response;
        let has = |path: &str| response.mounts.iter().any(|mount| mount.container_path == path);
        assert_eq!(has("/etc/ld.so.preload"), has(musl_loader()));
        has("/etc/ld.so.preload")
    };
    assert!(preload(&node));
    assert_eq!(node.api.notes()[0].reason, "DisableControlRefused");
    let node = Node::with(|settings| settings.allow_disable_control = true).await;
    node.admit(&pod).await;
    assert!(!preload(&node));
}

#[tokio::test]
async fn without_the_library_limited_pods_wait_and_whole_cards_are_served() {
    let node = Node::new().await;
    let library = node.root.path().join("libvgpu.so");
    std::fs::remove_file(&library).unwrap();
    std::fs::remove_dir_all(&node.settings.paths.hook).unwrap();
    let limited = Pod::new("limited").container("c", &[(A, 1000, 0)]);
    node.admit(&limited).await;
    let wait = node.kubelet.start_container(RESOURCE, &limited.uid(), "c").await;
    let wait = wait.unwrap_err();
    assert!(wait.message().contains("libvgpu.so"), "{}", wait.message());
    assert_eq!(wait.code() as i32, 14, "unavailable: the kubelet asks again");
    let note = node.api.notes().pop().unwrap();
    assert_eq!(note.pod.name, "limited");
    assert!(note.message.contains("libvgpu.so"), "{}", note.message);
    let whole = Pod::new("whole").container("c", &[(B, 40_960, 0)]);
    node.admit(&whole).await;
    node.begin(&whole, "c").await;
    std::fs::write(&library, "library").unwrap();
    node.begin(&limited, "c").await;
    assert_eq!(node.sealed(&limited, "c"), one(A, 1000, 0));
}

/// Numbers that look random and are the same for a seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % sides
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            let other = self.roll(at + 1);
            items.swap(at, other);
        }
    }
}

/// Starts a container as the kubelet does: again after each refusal.
async fn insist(node: &Node, pod: &Pod) {
    let insisting = async { while node.kubelet.start_container(RESOURCE, &pod.uid(), "c").await.is_err() {} };
    assert!(
        tokio::time::timeout(DEADLINE, insisting).await.is_ok(),
        "{} never starts",
        pod.name
    );
}

#[tokio::test]
async fn in_a_storm_every_container_gets_what_its_annotation_says() {
    for seed in 1..=8 {
        // A kubelet that tells its pods leaves no guess; one that does not may
        // make bookings move.
        let quiet = seed % 2 == 0;
        println!("seed {seed}, quiet {quiet}");
        let mut dice = Dice(seed);
        let mut node = Node::new().await;
        node.kubelet.mute_podresources(quiet);
        // Any placement of these fits, so nothing may be refused.
        let mut pods: Vec<Pod> = (0..20)
            .map(|number| {
                let card = if dice.roll(2) == 0 && number >= 10 || number < 5 {
                    A
                } else {
                    B
                };
                let mib = 100 + 100 * u64::try_from(dice.roll(19)).unwrap();
                Pod::new(&format!("p{number}")).container("c", &[(card, mib, 0)])
            })
            .collect();
        for pod in &pods {
            node.api.put(pod);
        }
        dice.shuffle(&mut pods);
        for pod in &pods {
            match dice.roll(8) {
                0 => node.restart_agent().await,
                1 => {
                    let free = node.kubelet.free_ids(RESOURCE);
                    let ids = [free[dice.roll(free.len())].clone()];
                    // Killed between answer and record.
                    node.kubelet
                        .allocate_unrecorded(RESOURCE, &pod.for_kubelet(), &ids)
                        .await
                        .unwrap();
                    node.kubelet.restart().unwrap();
                    node.kubelet
                        .await_devices(RESOURCE, DEADLINE, |list| list.len() == 20)
                        .await
                        .unwrap();
                }
                _ => {}
            }
            let stubborn = dice.roll(4) == 0;
            let pick = dice.roll(20);
            let choose = |free: &[String], preferred: Vec<String>| {
                if stubborn {
                    vec![free[pick % free.len()].clone()]
                } else {
                    preferred
                }
            };
            node.kubelet
                .admit_choosing(RESOURCE, &pod.for_kubelet(), choose)
                .await
                .unwrap();
        }
        dice.shuffle(&mut pods);
        for pod in &pods {
            if dice.roll(10) == 0 {
                node.restart_agent().await;
            }
            insist(&node, pod).await;
        }
        for pod in &pods {
            let text = node.api.annotations(pod)[keys::NVIDIA_ALLOCATED].clone();
            let mib = pod.containers[0].2[0].1;
            let sealed = node.sealed(pod, "c");
            assert_eq!(
                text,
                format!("{},NVIDIA,{mib},0:;", sealed[0].0),
                "seed {seed}, {}",
                pod.name
            );
            assert_eq!(sealed[0].1, mib);
            let record = node
                .kubelet
                .records()
                .into_iter()
                .find(|record| record.pod.uid == pod.uid());
            assert_eq!(record.unwrap().response.envs["NVIDIA_VISIBLE_DEVICES"], sealed[0].0);
            if !quiet {
                assert_eq!(sealed[0].0, pod.containers[0].2[0].0, "seed {seed}, {}", pod.name);
            }
        }
    }
}
