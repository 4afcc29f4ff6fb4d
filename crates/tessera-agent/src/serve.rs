//! All parts wired together.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tessera_kube::watch::Freshness;
use tessera_kubelet::socket::{Occupant, occupant};
use tessera_kubelet::{Plugin, ServeConfig, StreamState};
use tessera_probe::{DriverRoot, DriverState, Inventory, Monitor, MonitorConfig, XidPolicy};
use tessera_types::Keyword;
use tessera_wire::keys;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::answer::{DeviceAccess, Frame};
use crate::book::Book;
use crate::cards::{LeftOut, Managed, manage};
use crate::cdi::{CardEdits, Spec};
use crate::chores;
use crate::cluster::{Cluster, ClusterChange};
use crate::desk::{Desk, Shelf, chain};
use crate::driver_files::{device_files, driver_binds};
use crate::metrics::{Metrics, Now};
use crate::records::Store;
use crate::register;
use crate::rooms;
use crate::settings::{DriverLimits, Oversubscription, Settings};
use crate::turns;
use crate::wall::{Level, Wall};
use crate::web;

/// Pause between attempts of what can only wait.
const RETRY: Duration = Duration::from_secs(2);
/// Pause between attempts to install the library.
const LIBRARY_RETRY: Duration = Duration::from_secs(30);
/// An API server that was silent for longer is named as a problem.
const API_SILENCE: Duration = Duration::from_secs(120);
/// Programs whose presence means that NVIDIA's runtime reads
/// `NVIDIA_VISIBLE_DEVICES`. `/usrbin` is the host's `/usr/bin` in HAMi's chart.
const RUNTIMES: [&str; 3] = [
    "/usr/bin/nvidia-container-runtime",
    "/usr/local/nvidia/toolkit/nvidia-container-runtime",
    "/usrbin/nvidia-container-runtime",
];

/// How long ago the API server spoke.
pub trait ApiHealth: Send + Sync + 'static {
    /// `None` when it never did.
    fn age(&self) -> Option<Duration>;
}

impl ApiHealth for Freshness {
    fn age(&self) -> Option<Duration> {
        Freshness::age(self)
    }
}

/// Runs every part until `stop`, registered with the kubelet.
///
/// # Errors
/// The health page's address is in use, or the folders for grants cannot be
/// made.
pub async fn serve<C: Cluster>(
    settings: Settings,
    cluster: C,
    changes: mpsc::Receiver<ClusterChange>,
    api: Arc<dyn ApiHealth>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    serve_at(Door::Kubelet, settings, cluster, changes, api, stop).await
}

/// The same with the kubelet's calls coming in at `door`.
///
/// # Errors
/// Those of [`serve`].
pub async fn serve_at<C: Cluster>(
    door: Door,
    settings: Settings,
    cluster: C,
    changes: mpsc::Receiver<ClusterChange>,
    api: Arc<dyn ApiHealth>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let settings = Arc::new(settings);
    let metrics = Arc::new(Metrics::default());
    let listener = match settings.listen.as_str() {
        "" => None,
        address => {
            let listener = web::bind(address).await?;
            if let Ok(address) = listener.local_addr() {
                info!(%address, "Serve health and metrics.");
            }
            Some(listener)
        }
    };
    let store =
        Store::open(&settings.paths.grants, &settings.paths.records).context("preparing the folders for grants")?;
    let class = Keyword::new(keys::NVIDIA_KEYWORD).context("the vendor's keyword")?;
    let root = DriverRoot::new(&settings.paths.driver_root, &settings.paths.driver_root_host);
    let access = resolve(&settings.access, &root);
    info!(node = %settings.node, resource = %settings.cards.resource, ?access, "Starting the node agent.");
    let desk = Arc::new(Desk::new(
        Arc::clone(&settings),
        cluster,
        store,
        Arc::clone(&metrics),
        Book::new(class.clone()),
        shelf(&settings, &root, &access),
    ));
    if let Err(problem) = desk.install_library() {
        error!(error = %problem, "The enforcement library is not up to date.");
    }
    let wall = Arc::new(Wall::new(
        root.clone(),
        settings.paths.sysfs.clone(),
        settings.cgroup_root.clone(),
        settings.driver_headroom_mib << 20,
        settings.cards.memory_scaling <= 1.0,
    ));
    if settings.driver_limits == DriverLimits::Auto {
        desk.set_wall(Arc::clone(&wall));
    }
    let monitor = Monitor::spawn(MonitorConfig {
        root: root.clone(),
        sysfs: settings.paths.sysfs.clone(),
        xids: XidPolicy::from_lists(&settings.xids_disabled, &settings.xids_enabled),
    })
    .context("starting the driver's thread")?;

    let (node_sender, node) = watch::channel(None);
    let (synced_sender, synced) = watch::channel(false);
    let (wanted_sender, wanted) = watch::channel(std::collections::BTreeMap::new());
    let (known_sender, known) = watch::channel(false);
    let (stream_sender, stream) = watch::channel(StreamState::NoKubelet);

    let status = Arc::new(Status {
        desk: Arc::clone(&desk),
        metrics,
        monitor,
        synced: synced.clone(),
        stream,
        api,
    });
    let mut parts = tokio::task::JoinSet::new();
    if let Some(listener) = listener {
        let source: Arc<dyn web::Source> = Arc::<Status<C>>::clone(&status);
        let stop = stop.clone();
        parts.spawn(async move {
            if let Err(error) = web::serve(listener, source, stop).await {
                error!(%error, "The health page broke off.");
            }
        });
    }
    {
        let (desk, stop) = (Arc::clone(&desk), stop.clone());
        parts.spawn(async move {
            chores::follow(&desk, changes, node_sender, synced_sender, stop).await;
        });
    }
    parts.spawn(chores::annotate(Arc::clone(&desk), stop.clone()));
    parts.spawn(crate::resizes::keep(Arc::clone(&desk), stop.clone()));
    parts.spawn(chores::register(Arc::clone(&desk), wanted, node, stop.clone()));
    parts.spawn(chores::sweep(Arc::clone(&desk), synced, stop.clone()));
    if settings.oversubscription == Oversubscription::Swap {
        parts.spawn(rooms::keep(Arc::clone(&desk), Arc::clone(&wall), stop.clone()));
    }
    let giver = turns::spawn(Arc::clone(&desk), stop.clone()).context("starting the thread that gives turns")?;
    parts.spawn(library(Arc::clone(&desk), stop.clone()));
    parts.spawn(open(door, Arc::clone(&desk), known, stream_sender, stop.clone()));
    let mut states = status.monitor.states();
    let cards = async {
        loop {
            let state = states.borrow_and_update().clone();
            if let DriverState::Ready(inventory) = state {
                let cards = publish(&desk, &inventory, &class, &root, &access);
                probe_walls(&desk, &cards).await;
                wanted_sender.send_replace(register::wanted(
                    &cards,
                    settings.publish_scores,
                    env!("CARGO_PKG_VERSION"),
                ));
                known_sender.send_replace(!cards.is_empty());
            }
            if states.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = cards => {}
    }
    while parts.join_next().await.is_some() {}
    // It looks at `stop` a few times a second.
    let _ended = tokio::task::spawn_blocking(move || giver.join()).await;
    Ok(())
}

/// Asks the driver what it can do for cards that were not asked about yet.
async fn probe_walls<C: Cluster>(desk: &Desk<C>, cards: &[Managed]) {
    let Some(wall) = desk.wall() else { return };
    let known = wall.levels();
    for card in cards {
        let uuid = card.facts.uuid.clone();
        if known.contains_key(&uuid) {
            continue;
        }
        let (wall, name) = (Arc::clone(wall), uuid.clone());
        match tokio::task::spawn_blocking(move || wall.probe(&name)).await {
            Ok(Ok(())) => info!(card = %uuid, level = Level::Driver.as_str(), "The driver can hold pods to memory."),
            Ok(Err(error)) => {
                info!(card = %uuid, level = Level::Library.as_str(), reason = %error, "Only the library holds containers to memory.");
            }
            Err(error) => warn!(card = %uuid, %error, "Asking the driver for limits broke off."),
        }
    }
}

/// Takes a new picture of the cards into the desk; returns the cards.
fn publish<C: Cluster>(
    desk: &Desk<C>,
    inventory: &Inventory,
    class: &Keyword,
    root: &DriverRoot,
    access: &[DeviceAccess],
) -> Vec<Managed> {
    let settings = desk.settings();
    let (cards, left_out) = manage(inventory, &settings.cards, class);
    for LeftOut { card, reason } in left_out {
        warn!(%card, %reason, "A card is not offered.");
    }
    let by_cdi = |word: &DeviceAccess| matches!(word, DeviceAccess::CdiAnnotations | DeviceAccess::CdiCri);
    if access.iter().any(by_cdi)
        && let Err(error) = write_cdi(settings, root, &cards)
    {
        error!(folder = %settings.paths.cdi.display(), %error, "Cannot write the CDI file; containers will not start.");
    }
    desk.set_cards(cards.clone(), shelf(settings, root, access));
    cards
}

fn write_cdi(settings: &Settings, root: &DriverRoot, cards: &[Managed]) -> std::io::Result<()> {
    let dev_root = &settings.paths.dev_root_host;
    let control = device_files(root, dev_root, &[]);
    let edits: Vec<CardEdits> = cards
        .iter()
        .map(|card| {
            let minors: Vec<u32> = card.facts.minor.into_iter().collect();
            let files = device_files(root, dev_root, &minors)
                .into_iter()
                .filter(|file| !control.contains(file))
                .collect();
            CardEdits {
                name: card.facts.uuid.clone(),
                files,
            }
        })
        .collect();
    if let Some(spec) = Spec::new(&edits, &control, &driver_binds(root)) {
        let path = spec.write(&settings.paths.cdi)?;
        info!(file = %path.display(), "Wrote the CDI file.");
    }
    Ok(())
}

fn shelf(settings: &Settings, root: &DriverRoot, access: &[DeviceAccess]) -> Shelf {
    Shelf {
        frame: Frame {
            hook: settings.paths.hook.clone(),
            grants: settings.paths.grants.clone(),
            access: access.to_vec(),
            pass_device_specs: settings.pass_device_specs,
            cdi_annotation_prefix: settings.cdi_annotation_prefix.clone(),
            log_level: settings.cards.log_level.clone(),
            oversubscribed: settings.cards.memory_scaling > 1.0,
            disable_core_limit: settings.cards.disable_core_limit,
            compat_folders: settings.compat_folders,
            features: settings.features.clone(),
            driver: if access.contains(&DeviceAccess::Direct) {
                driver_binds(root)
            } else {
                Vec::new()
            },
        },
        root: root.clone(),
        dev_root: settings.paths.dev_root_host.clone(),
    }
}

fn resolve(access: &[DeviceAccess], root: &DriverRoot) -> Vec<DeviceAccess> {
    if access != [DeviceAccess::Auto] {
        return access.to_vec();
    }
    let inside = RUNTIMES.iter().filter_map(|path| root.file(path));
    let found = inside
        .chain(RUNTIMES.iter().map(PathBuf::from))
        .find(|path| path.exists());
    match found {
        Some(path) => {
            info!(runtime = %path.display(), "NVIDIA's container runtime is installed; it hands the cards in.");
            vec![DeviceAccess::Envvar]
        }
        None => vec![DeviceAccess::Direct],
    }
}

/// Keeps the library installed.
async fn library<C: Cluster>(desk: Arc<Desk<C>>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LIBRARY_RETRY) => {}
        }
        if desk.library_problem().is_some() {
            let desk = Arc::clone(&desk);
            let installed = tokio::task::spawn_blocking(move || desk.install_library()).await;
            match installed {
                Ok(Ok(())) => info!("Installed the enforcement library."),
                Ok(Err(problem)) => error!(error = %problem, "The enforcement library is not up to date."),
                Err(error) => error!(%error, "The library's installer broke off."),
            }
        }
    }
}

/// Where the kubelet's calls come in.
#[derive(Debug)]
pub enum Door {
    /// The kubelet's own: we register with it.
    Kubelet,
    /// The line to a [`Front`](crate::front::Front) that did.
    Front(UnixStream),
}

/// Serves the kubelet once cards are known: a resource without known cards is
/// not registered, since that would take its capacity away.
async fn open<C: Cluster>(
    door: Door,
    desk: Arc<Desk<C>>,
    mut known: watch::Receiver<bool>,
    stream: watch::Sender<StreamState>,
    stop: CancellationToken,
) {
    match door {
        Door::Kubelet => {
            let ready = async { known.wait_for(|known| *known).await.is_ok() };
            tokio::select! {
                () = stop.cancelled() => return,
                ready = ready => if !ready { return },
            }
            let settings = Arc::clone(desk.settings());
            kubelet(desk, &settings, stream, stop).await;
        }
        Door::Front(line) => {
            if let Err(error) = tessera_kubelet::relay::backstage(line, desk, stream, stop).await {
                error!(error = %chain(&error), "The line to the front broke off.");
            }
        }
    }
}

/// Registers `plugin` and keeps it registered until `stop`.
pub(crate) async fn kubelet<P: Plugin>(
    plugin: Arc<P>,
    settings: &Settings,
    stream: watch::Sender<StreamState>,
    stop: CancellationToken,
) {
    let paths = &settings.paths;
    let resource = &settings.cards.resource;
    let mut told = false;
    while !stop.is_cancelled() {
        let config = ServeConfig {
            plugin_dir: paths.plugin_dir.clone(),
            kubelet_socket: paths.kubelet_socket.clone(),
            resource: resource.clone(),
            socket_stem: format!("tessera-{}", file_word(resource)),
        };
        let trouble = match foreign(&paths.plugin_dir, resource).await {
            Some(path) => format!(
                "another device plugin already serves `{}` at `{}`; remove it from this node, two plugins on one resource disconnect each other",
                resource,
                path.display()
            ),
            None => {
                let served = tessera_kubelet::serve(config, Arc::clone(&plugin), stream.clone(), stop.clone()).await;
                match served {
                    Ok(()) => return,
                    Err(error) => chain(&error),
                }
            }
        };
        if !told {
            error!(error = %trouble, "Not serving the kubelet, trying again.");
            told = true;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

/// HAMi's or NVIDIA's plugin, if it answers for the same resource.
async fn foreign(plugin_dir: &Path, resource: &str) -> Option<PathBuf> {
    let path = plugin_dir.join(format!("nvidia-{}.sock", file_word(resource)));
    (occupant(&path).await == Occupant::Serving).then_some(path)
}

/// The part of a resource name after the slash.
fn file_word(resource: &str) -> &str {
    resource.rsplit_once('/').map_or(resource, |(_, name)| name)
}

/// What the health page sees.
struct Status<C> {
    desk: Arc<Desk<C>>,
    metrics: Arc<Metrics>,
    monitor: Monitor,
    synced: watch::Receiver<bool>,
    stream: watch::Receiver<StreamState>,
    api: Arc<dyn ApiHealth>,
}

impl<C: Cluster> web::Source for Status<C> {
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        match &*self.monitor.states().borrow() {
            DriverState::Waiting { reason } => problems.push(format!("driver: {reason}")),
            DriverState::Ready(inventory) if inventory.cards.is_empty() => {
                problems.push("driver: it reports no cards".to_owned());
            }
            DriverState::Ready(_) => {}
        }
        match *self.stream.borrow() {
            StreamState::Up => {}
            StreamState::NoKubelet if !problems.is_empty() => {
                problems.push("kubelet: not registered, because no cards are known".to_owned());
            }
            StreamState::NoKubelet => problems.push(format!(
                "kubelet: not registered at `{}`; --kubelet-socket says where its socket is, the log says what is wrong",
                self.desk.settings().paths.kubelet_socket.display()
            )),
            StreamState::Registering => {
                problems.push("kubelet: registered, it does not read the device list yet".to_owned());
            }
        }
        if !*self.synced.borrow() {
            problems.push("API server: this node's pods are not known yet; the log says why".to_owned());
        } else if self.api.age().is_none_or(|age| age > API_SILENCE) {
            problems.push("API server: it does not answer".to_owned());
        }
        if let Some(problem) = self.desk.library_problem() {
            problems.push(format!("library: {problem}"));
        }
        problems
    }

    fn metrics(&self) -> String {
        let cards = match &*self.monitor.states().borrow() {
            DriverState::Waiting { .. } => Vec::new(),
            DriverState::Ready(inventory) => inventory
                .cards
                .iter()
                .map(|card| (card.facts.uuid.clone(), card.sick.is_none()))
                .collect(),
        };
        let grants = self.desk.read(|book| {
            let sealed = book.records().filter(|record| record.sealed).count();
            (book.records().count() - sealed, sealed)
        });
        self.metrics
            .page(&Now {
                cards,
                levels: self.desk.wall().map_or_else(Vec::new, |wall| {
                    let levels = wall.levels().into_iter();
                    levels.map(|(card, level)| (card, level.as_str())).collect()
                }),
                grants,
                stream_up: *self.stream.borrow() == StreamState::Up,
                api_age_seconds: self.api.age().map(|age| age.as_secs_f64()),
                driver: self.monitor.counters(),
            })
            .unwrap_or_default()
    }
}
