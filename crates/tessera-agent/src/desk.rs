//! The desk where the kubelet's calls are answered.
//!
//! It joins the [`Book`] (who owns what) with the files that make an answer
//! true. Allocate calls are taken one at a time; neither the API server nor the
//! driver is asked during one.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tessera_kubelet::checkpoint::Checkpoint;
use tessera_kubelet::podresources;
use tessera_kubelet::proto::deviceplugin_v1beta1::ContainerAllocateResponse;
use tessera_kubelet::{Plugin, PluginDevice, PreferredRequest, Refusal};
use tessera_types::PodId;
use tessera_wire::keys;
use tessera_wire::{EnvValue, PodView};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::answer::{self, Frame, Subject, answer};
use crate::book::{Book, Candidate, Choice, NoOwner, Record, Truth};
use crate::cards::Managed;
use crate::cluster::{Cluster, PodNote};
use crate::driver_files::{DeviceFile, device_files};
use crate::library::{self, Installed};
use crate::metrics::{Metrics, Mismatch};
use crate::records::{Extras, Store, StoreError};
use crate::settings::Settings;

/// How long a call waits for the pod it is about to appear in the watch.
const APPEAR: Duration = Duration::from_secs(2);
/// How long only an exact owner counts: the pod may be on its way.
const EXACT_ONLY: Duration = Duration::from_millis(250);
/// How long PreStartContainer tries to confirm an owner; the kubelet allows
/// 30 s and then waits longer each time.
const CONFIRM: Duration = Duration::from_secs(5);
/// Pause between looks at the kubelet's record.
const LOOK: Duration = Duration::from_millis(100);
/// Patience with the kubelet's own API.
const PODRESOURCES: Duration = Duration::from_secs(2);

/// What an answer is built from; replaced as a whole when the driver changes.
#[derive(Debug, Clone)]
pub struct Shelf {
    /// The frame of every answer.
    pub frame: Frame,
    /// The driver's root, for device files.
    pub root: tessera_probe::DriverRoot,
    /// The host's root of device files.
    pub dev_root: PathBuf,
}

/// Everything that the kubelet's calls and the chores share.
#[derive(Debug)]
pub struct Desk<C> {
    settings: Arc<Settings>,
    cluster: C,
    store: Store,
    metrics: Arc<Metrics>,
    book: Mutex<Book>,
    changed: watch::Sender<u64>,
    devices: watch::Sender<Arc<[PluginDevice]>>,
    shelf: Mutex<Arc<Shelf>>,
    library: Mutex<Result<Installed, String>>,
    turn: tokio::sync::Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<C: Cluster> Desk<C> {
    /// A desk without cards or pods. Grants on disk are taken in.
    #[must_use]
    pub fn new(
        settings: Arc<Settings>,
        cluster: C,
        store: Store,
        metrics: Arc<Metrics>,
        mut book: Book,
        shelf: Shelf,
    ) -> Self {
        for record in store.scan() {
            book.set_record(record);
        }
        Self {
            settings,
            cluster,
            store,
            metrics,
            book: Mutex::new(book),
            changed: watch::channel(0).0,
            devices: watch::channel(Arc::from([])).0,
            shelf: Mutex::new(Arc::new(shelf)),
            library: Mutex::new(Err("the enforcement library was not installed yet".to_owned())),
            turn: tokio::sync::Mutex::new(()),
        }
    }

    /// The settings.
    #[must_use]
    pub fn settings(&self) -> &Arc<Settings> {
        &self.settings
    }

    /// The API server.
    #[must_use]
    pub fn cluster(&self) -> &C {
        &self.cluster
    }

    /// Reads the book.
    pub fn read<T>(&self, look: impl FnOnce(&Book) -> T) -> T {
        look(&lock(&self.book))
    }

    /// Changes the book and wakes whoever waits for it.
    pub fn change<T>(&self, edit: impl FnOnce(&mut Book) -> T) -> T {
        let out = edit(&mut lock(&self.book));
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
        out
    }

    /// Counts changes of the book.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Replaces cards, advertised devices and the shelf.
    pub fn set_cards(&self, cards: Vec<Managed>, shelf: Shelf) {
        let devices: Arc<[PluginDevice]> = crate::slot::devices(&cards, self.settings.cards.numa).into();
        *lock(&self.shelf) = Arc::new(shelf);
        self.change(|book| book.set_cards(cards));
        self.devices.send_if_modified(|old| {
            let differs = *old != devices;
            *old = devices;
            differs
        });
    }

    /// Installs the library, or keeps why it cannot be used.
    ///
    /// # Errors
    /// For a person; an older installed library is used all the same.
    pub fn install_library(&self) -> Result<(), String> {
        let paths = &self.settings.paths;
        let source = library::source(paths.library.as_deref());
        let installed = library::install(source.as_deref(), &paths.hook);
        let (state, told) = match installed {
            Ok(installed) => (Ok(installed), Ok(())),
            Err(error) => {
                let told = chain(&error);
                // The old copy serves as it did before.
                match library::install(None, &paths.hook) {
                    Ok(old) => (Ok(old), Err(told)),
                    Err(_) => (Err(told.clone()), Err(told)),
                }
            }
        };
        *lock(&self.library) = state;
        told
    }

    /// Why limited containers cannot be served; `None` when they can.
    #[must_use]
    pub fn library_problem(&self) -> Option<String> {
        match &*lock(&self.library) {
            Ok(installed) => installed.check().err().map(|error| error.to_string()),
            Err(problem) => Some(problem.clone()),
        }
    }

    /// Removes a grant with its record.
    pub fn drop_grant(&self, record: &Record) {
        self.store.remove(record);
        if self.settings.compat_folders {
            let folder = answer::compat_folder(&self.shelf().frame, record);
            let _absent = std::fs::remove_dir_all(folder);
        }
        self.change(|book| book.remove_record(&record.id));
    }

    /// The kubelet's record of our resource.
    ///
    /// # Errors
    /// When the file cannot be read or does not parse.
    pub fn checkpoint(&self) -> Result<Option<Vec<Truth>>, String> {
        let checkpoint = Checkpoint::read(&self.settings.paths.plugin_dir).map_err(|error| chain(&error))?;
        Ok(checkpoint.map(|checkpoint| {
            checkpoint
                .of_resource(&self.settings.cards.resource)
                .filter_map(|entry| {
                    let response = entry.response.as_ref();
                    Some(Truth {
                        grant: response.and_then(answer::grant_in),
                        ids: entry.device_ids.clone(),
                        limited: response.is_some_and(answer::mounts_grant),
                        uid: tessera_types::PodUid::new(&entry.pod_uid).ok()?,
                        container: entry.container.clone(),
                    })
                })
                .collect()
        }))
    }

    fn shelf(&self) -> Arc<Shelf> {
        Arc::clone(&lock(&self.shelf))
    }

    /// Finds who an Allocate call is for, waiting for the watch if need be.
    async fn owner(&self, ids: &[String]) -> Result<Choice, NoOwner> {
        let start = Instant::now();
        let mut changes = self.changes();
        loop {
            changes.borrow_and_update();
            let others = start.elapsed() >= EXACT_ONLY;
            let error = match self.read(|book| book.choose_exact(ids)) {
                Ok(Choice::Again(candidate)) if !others => NoOwner::Nobody {
                    count: candidate.shares.len(),
                },
                Ok(choice) => return Ok(choice),
                Err(error @ (NoOwner::UnknownId { .. } | NoOwner::SameCardTwice { .. })) => {
                    return Err(error);
                }
                Err(error) if !others => error,
                Err(_) => match self.read(|book| book.choose_moved(ids)) {
                    Ok(choice) => return Ok(choice),
                    Err(error) => error,
                },
            };
            let patience = if others { APPEAR } else { EXACT_ONLY };
            let until = start + patience;
            let woken = tokio::time::timeout_at(until, changes.changed()).await;
            if woken.is_err() && patience == APPEAR {
                return Err(error);
            }
        }
    }

    async fn allocate_one(&self, ids: &[String]) -> Result<ContainerAllocateResponse, Refusal> {
        let choice = match self.owner(ids).await {
            Ok(choice) => choice,
            Err(error) => {
                self.tell_about(&error);
                return Err(refused(&error));
            }
        };
        if let Choice::Moved { candidate, from } = &choice {
            self.metrics.mismatch(Mismatch::Moved);
            info!(pod = %candidate.pod, container = %candidate.container, ?from,
                "The kubelet took other cards than the scheduler chose.");
        }
        let candidate = choice.candidate();
        self.grant(candidate, ids).await.map_err(|problem| {
            self.cluster.tell(PodNote {
                pod: candidate.pod.clone(),
                reason: "AllocateFailed",
                message: problem.clone(),
            });
            Refusal {
                retryable: false,
                message: problem,
            }
        })
    }

    /// Writes record and grant and builds the answer.
    async fn grant(&self, candidate: &Candidate, ids: &[String]) -> Result<ContainerAllocateResponse, String> {
        let (limited, serial, extras, disable, minors) = self.read(|book| {
            let view = book.pod(&candidate.pod.uid);
            let minors: BTreeSet<u32> = candidate
                .shares
                .iter()
                .filter_map(|share| book.card(&share.card)?.facts.minor)
                .collect();
            (
                book.limits(&candidate.shares),
                book.next_serial(),
                view.map_or_else(Extras::default, |view| self.extras(view, candidate.index)),
                view.is_some_and(|view| disables_control(view, candidate.index)),
                minors,
            )
        });
        if limited {
            self.usable_library()?;
        }
        let preload = !(disable && self.settings.allow_disable_control);
        if disable && preload {
            self.cluster.tell(PodNote {
                pod: candidate.pod.clone(),
                reason: "DisableControlRefused",
                message: format!(
                    "container `{}` sets CUDA_DISABLE_CONTROL; limits stay, since this node does not allow it (--allow-disable-control)",
                    candidate.container
                ),
            });
        }
        let record = Record {
            id: Store::new_id().map_err(|error| chain(&error))?.to_string(),
            ids: ids.iter().cloned().collect(),
            pod: candidate.pod.clone(),
            container: candidate.container.clone(),
            index: candidate.index,
            shares: candidate.shares.clone(),
            limited,
            sealed: false,
            serial,
        };
        self.on_disk({
            let record = record.clone();
            move |store| store.create(&record, extras)
        })
        .await?;
        let shelf = self.shelf();
        if self.settings.compat_folders && limited {
            let made = make_compat_folders(&shelf.frame, &record);
            if let Err(error) = made {
                self.store.remove(&record);
                return Err(format!("cannot make the folders of the compatible library: {error}"));
            }
        }
        let minors: Vec<u32> = minors.into_iter().collect();
        let files: Vec<DeviceFile> = device_files(&shelf.root, &shelf.dev_root, &minors);
        let cache = cache_name(&record.id);
        let response = answer(
            &shelf.frame,
            &Subject {
                record: &record,
                files: &files,
                preload,
                cache: &cache,
            },
        );
        info!(pod = %record.pod, container = %record.container, grant = %record.id,
            ids = ?record.ids, limited, "Granted.");
        self.change(|book| book.set_record(record));
        Ok(response)
    }

    fn usable_library(&self) -> Result<(), String> {
        if self.library_problem().is_none() {
            return Ok(());
        }
        // Somebody changed it: put ours back before giving up.
        let _told = self.install_library();
        match self.library_problem() {
            None => Ok(()),
            Some(problem) => Err(problem),
        }
    }

    async fn on_disk(
        &self,
        work: impl FnOnce(&Store) -> Result<(), StoreError> + Send + 'static,
    ) -> Result<(), String> {
        let store = self.store.clone();
        match tokio::task::spawn_blocking(move || work(&store)).await {
            Ok(result) => result.map_err(|error| chain(&error)),
            Err(error) => Err(format!("the grant's writer broke off: {error}")),
        }
    }

    fn extras(&self, view: &PodView, index: usize) -> Extras {
        let env = |name: &str| literal(view, index, name);
        Extras {
            no_core_limit: self.settings.cards.disable_core_limit || env(keys::ENV_CORE_POLICY) == Some("disable"),
            oversubscribed: self.settings.cards.memory_scaling > 1.0,
            core_cap: env(keys::ENV_CORE_POLICY) == Some("force"),
            priority: env(keys::ENV_TASK_PRIORITY)
                .and_then(|text| text.parse().ok())
                .unwrap_or_default(),
        }
    }

    /// Confirms or corrects the grants of these ids by the kubelet's record.
    async fn confirm(&self, ids: &BTreeSet<String>) -> Result<(), NoOwner> {
        let start = Instant::now();
        let mut changes = self.changes();
        loop {
            changes.borrow_and_update();
            let truth = self.truth(ids).await;
            let error = match self.read(|book| book.settle(ids, &truth)) {
                Ok(settled) => match self.settle(settled.changed, &settled.asked).await {
                    Ok(()) => return Ok(()),
                    Err(problem) => {
                        warn!(error = %problem, "Cannot write a confirmed grant.");
                        NoOwner::NoRecord
                    }
                },
                Err(error @ (NoOwner::NoRecord | NoOwner::UnknownPod { .. } | NoOwner::NoEntry { .. })) => error,
                Err(error) => return Err(error),
            };
            if start.elapsed() >= CONFIRM {
                return Err(error);
            }
            // Either of them may bring the answer.
            let _woken = tokio::time::timeout(LOOK, changes.changed()).await;
        }
    }

    /// What the kubelet says about who holds what.
    async fn truth(&self, ids: &BTreeSet<String>) -> Vec<Truth> {
        match self.checkpoint() {
            Ok(Some(truth)) if truth.iter().any(|truth| truth.ids == *ids) => return truth,
            Ok(_) => {}
            Err(error) => warn!(%error, "Cannot use the kubelet's checkpoint."),
        }
        self.truth_from_podresources(ids).await
    }

    /// The second witness: names without uids, no init containers, and not
    /// which grant. The newest grant of these ids is the one being started.
    async fn truth_from_podresources(&self, ids: &BTreeSet<String>) -> Vec<Truth> {
        let paths = &self.settings.paths;
        let resource = &self.settings.cards.resource;
        let holders = match podresources::holders(&paths.podresources, resource, PODRESOURCES).await {
            Ok(holders) => holders,
            Err(error) => {
                warn!(error = %chain(&error), "The kubelet does not say who holds the ids.");
                return Vec::new();
            }
        };
        self.read(|book| {
            let newest = book
                .records()
                .filter(|record| record.ids == *ids)
                .max_by_key(|record| record.serial);
            let holder = holders.iter().find(|holder| holder.device_ids == *ids);
            match (newest, holder) {
                (Some(record), Some(holder)) => book
                    .pod_uids()
                    .into_iter()
                    .find(|uid| {
                        book.is_live(uid)
                            && book
                                .pod(uid)
                                .is_some_and(|view| view.id.namespace == holder.namespace && view.id.name == holder.pod)
                    })
                    .map(|uid| Truth {
                        grant: Some(record.id.clone()),
                        ids: ids.clone(),
                        limited: record.limited,
                        uid,
                        container: holder.container.clone(),
                    })
                    .into_iter()
                    .collect(),
                _ => Vec::new(),
            }
        })
    }

    async fn settle(&self, changed: Vec<Record>, asked: &[String]) -> Result<(), String> {
        let mut retargeted = 0_usize;
        for record in &changed {
            let (before, extras) = self.read(|book| {
                let extras = book
                    .pod(&record.pod.uid)
                    .map_or_else(Extras::default, |view| self.extras(view, record.index));
                (book.record(&record.id).cloned(), extras)
            });
            if before
                .as_ref()
                .is_some_and(|before| before.pod != record.pod || before.container != record.container)
            {
                retargeted += 1;
                info!(grant = %record.id, pod = %record.pod, container = %record.container,
                    "The kubelet meant another container; the grant follows.");
            }
            let made_again = before.is_none();
            self.on_disk({
                let record = record.clone();
                move |store| {
                    if made_again {
                        store.create(&record, extras)?;
                    }
                    store.update(&record, extras)
                }
            })
            .await?;
            self.change(|book| book.set_record(record.clone()));
        }
        match retargeted {
            0 => {}
            1 => self.metrics.mismatch(Mismatch::Retargeted),
            _ => self.metrics.mismatch(Mismatch::Exchanged),
        }
        for id in asked {
            // A grant that was confirmed before is being started again.
            if changed.iter().any(|record| record.id == *id) {
                continue;
            }
            if let Some(record) = self.read(|book| book.record(id).cloned()) {
                self.on_disk(move |store| store.restart(&record)).await?;
            }
        }
        Ok(())
    }

    fn tell_about(&self, error: &NoOwner) {
        if let Some(pod) = concerned(error) {
            self.cluster.tell(PodNote {
                pod: pod.clone(),
                reason: "AllocateFailed",
                message: error.to_string(),
            });
        }
    }
}

impl<C: Cluster> Plugin for Desk<C> {
    fn devices(&self) -> watch::Receiver<Arc<[PluginDevice]>> {
        self.devices.subscribe()
    }

    async fn preferred(&self, requests: Vec<PreferredRequest>) -> Vec<Vec<String>> {
        let mut changes = self.changes();
        let expected = async {
            loop {
                changes.borrow_and_update();
                let ready = self.read(|book| requests.iter().all(|request| book.expects(request.size)));
                if ready || changes.changed().await.is_err() {
                    return;
                }
            }
        };
        // An empty answer lets the kubelet take any card: worth a short wait.
        let _in_time = tokio::time::timeout(APPEAR, expected).await;
        self.read(|book| book.preferred(&requests))
    }

    async fn allocate(&self, requests: Vec<Vec<String>>) -> Result<Vec<ContainerAllocateResponse>, Refusal> {
        let _turn = self.turn.lock().await;
        let start = Instant::now();
        let mut responses = Vec::with_capacity(requests.len());
        for ids in &requests {
            match self.allocate_one(ids).await {
                Ok(response) => responses.push(response),
                Err(refusal) => {
                    warn!(?ids, error = %refusal, "Refused an allocation.");
                    self.metrics.allocated(start.elapsed(), false);
                    return Err(refusal);
                }
            }
        }
        self.metrics.allocated(start.elapsed(), true);
        Ok(responses)
    }

    async fn pre_start(&self, ids: Vec<String>) -> Result<(), Refusal> {
        let ids: BTreeSet<String> = ids.into_iter().collect();
        match self.confirm(&ids).await {
            Ok(()) => Ok(()),
            Err(error) => {
                self.metrics.mismatch(Mismatch::Refused);
                warn!(?ids, %error, "A container may not start yet.");
                self.tell_about(&error);
                Err(Refusal {
                    retryable: true,
                    message: error.to_string(),
                })
            }
        }
    }
}

fn refused(error: &NoOwner) -> Refusal {
    Refusal {
        retryable: false,
        message: error.to_string(),
    }
}

/// The pod that an error is about.
fn concerned(error: &NoOwner) -> Option<&PodId> {
    match error {
        NoOwner::DoesNotFit(short) => Some(&short.pod),
        NoOwner::NoEntry { pod, .. }
        | NoOwner::SealedForAnother { pod, .. }
        | NoOwner::NoLibrary { pod, .. }
        | NoOwner::NoMemory { pod, .. } => Some(pod),
        NoOwner::UnknownId { .. }
        | NoOwner::SameCardTwice { .. }
        | NoOwner::Nobody { .. }
        | NoOwner::NoRecord
        | NoOwner::UnknownPod { .. } => None,
    }
}

/// A literal environment value of a container.
fn literal<'a>(view: &'a PodView, index: usize, name: &str) -> Option<&'a str> {
    view.containers
        .get(index)?
        .env
        .iter()
        .rev()
        .find_map(|(key, value)| match value {
            EnvValue::Text(text) if key == name => Some(text.as_str()),
            _ => None,
        })
}

fn disables_control(view: &PodView, index: usize) -> bool {
    literal(view, index, keys::ENV_DISABLE_CONTROL)
        .is_some_and(|text| matches!(text, "1" | "t" | "T" | "TRUE" | "true" | "True"))
}

/// A cache name in the form of a random UUID, as HAMi's plugin makes them.
fn cache_name(grant: &str) -> String {
    let part = |from: usize, to: usize| grant.get(from..to).unwrap_or_default();
    format!(
        "{}-{}-{}-{}-{}",
        part(0, 8),
        part(8, 12),
        part(12, 16),
        part(16, 20),
        part(20, 32)
    )
}

fn make_compat_folders(frame: &Frame, record: &Record) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let folder = answer::compat_folder(frame, record);
    match std::fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    for folder in [folder.as_path(), std::path::Path::new(answer::COMPAT_LOCKS)] {
        std::fs::create_dir_all(folder)?;
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o777))?;
    }
    Ok(())
}

/// An error with its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
