//! The desk where the kubelet's calls are answered.
//!
//! It joins the [`Book`] (who owns what) with the files that make an answer
//! true. Allocate calls are taken one at a time; the driver is never asked
//! during one, the API server only about a pod that the watch does not tell.
//!
//! A refused Allocate call fails the pod for good, a refused start is tried
//! again. So a pod that was placed here is always answered, unless its
//! annotation says nothing that can be granted; what is missing then (the
//! library, space for the grant) holds up its start.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tessera_kubelet::proto::deviceplugin_v1beta1::ContainerAllocateResponse;
use tessera_kubelet::{Plugin, PluginDevice, PreferredRequest, Refusal};
use tessera_types::{PodId, PodUid};
use tessera_wire::keys;
use tessera_wire::{EnvValue, PodView};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::answer::{self, Frame, Subject, answer};
use crate::book::{Book, Candidate, Choice, Expected, KubeletView, NoOwner, Record, ResizeWork, Truth};
use crate::cards::Managed;
use crate::cluster::{Cluster, PodNote};
use crate::driver_files::{DeviceFile, device_files};
use crate::library::{self, Installed};
use crate::metrics::{Metrics, Mismatch};
use crate::records::{Extras, Store, StoreError};
use crate::resizes::Outcome;
use crate::settings::{Oversubscription, Settings};
use crate::wall::{Level, Promise, Wall};
use crate::witness::Witness;

/// How long a call waits for the pod it is about to appear in the watch.
const APPEAR: Duration = Duration::from_secs(2);
/// How long a call waits for the first list of pods after our start.
const SYNC: Duration = Duration::from_secs(10);
/// How long a guess is held back: a better owner may be on its way.
const GUESS: Duration = Duration::from_millis(250);
/// Patience with the API server's answer to one question.
const ASK: Duration = Duration::from_secs(3);
/// How long PreStartContainer tries to confirm an owner; the kubelet allows
/// 30 s and then waits longer each time.
const CONFIRM: Duration = Duration::from_secs(5);
/// Pause between looks at the kubelet's record.
const LOOK: Duration = Duration::from_millis(100);

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

/// What was learnt as a preference was answered; the kubelet allocates for the
/// same container next.
#[derive(Debug, Default)]
struct Expectation {
    of: Vec<Expected>,
    pods: Option<BTreeSet<(String, String)>>,
    /// Whether everything was tried and nobody found.
    in_vain: bool,
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
    witness: Witness,
    wall: OnceLock<Arc<Wall>>,
    expectation: Mutex<Expectation>,
    turn: tokio::sync::Mutex<()>,
    settling: tokio::sync::Mutex<()>,
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
        let paths = &settings.paths;
        let witness = Witness::new(
            paths.plugin_dir.clone(),
            paths.podresources.clone(),
            settings.cards.resource.clone(),
        );
        Self {
            witness,
            wall: OnceLock::new(),
            expectation: Mutex::default(),
            settling: tokio::sync::Mutex::new(()),
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

    /// Gives it the driver's limits. Only the first call counts.
    pub fn set_wall(&self, wall: Arc<Wall>) {
        let _first = self.wall.set(wall);
    }

    /// The driver's limits, where they are asked for.
    #[must_use]
    pub fn wall(&self) -> Option<&Arc<Wall>> {
        self.wall.get()
    }

    /// Lets the driver hold the pods of these ids to their memory. What does not work is told, and the library's limit
    /// stands alone.
    async fn build_walls(&self, ids: &BTreeSet<String>) {
        let Some(wall) = self.wall.get() else { return };
        let pods: Vec<(PodId, BTreeMap<String, Promise>)> = self.read(|book| {
            let pods: BTreeSet<PodId> = book
                .records()
                .filter(|record| record.ids == *ids)
                .map(|record| record.pod.clone())
                .collect();
            pods.into_iter()
                .map(|pod| {
                    let cards = pod_memory(book.records().filter(|record| record.pod.uid == pod.uid));
                    (pod, cards)
                })
                .collect()
        });
        for (pod, cards) in pods {
            let (wall, uid) = (Arc::clone(wall), pod.uid.as_str().to_owned());
            let built = tokio::task::spawn_blocking(move || wall.build(&uid, &cards)).await;
            let problem = match built {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => chain(&error),
                Err(error) => error.to_string(),
            };
            warn!(%pod, error = %problem, "The driver does not hold the pod to its memory; the library does.");
            self.cluster.tell(PodNote {
                pod,
                reason: "NoDriverMemoryLimit",
                message: format!("the driver does not hold this pod to its memory, the library alone does: {problem}"),
            });
        }
    }

    /// Tells a pod that its card's tenants spend their time in moving memory.
    pub fn tell_thrashing(&self, pod: &PodId, card: &str, percent: u64) {
        self.cluster.tell(PodNote {
            pod: pod.clone(),
            reason: "MemoryThrashing",
            message: format!(
                "containers on {card} spent {percent} % of the last half minute in moving memory to and from the card; run fewer of them on it"
            ),
        });
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

    /// Cuts accounts that containers made longer than they are.
    pub fn cut_accounts(&self) {
        let records: Vec<Record> = self.read(|book| book.records().cloned().collect());
        for record in self.store.cut_accounts(&records) {
            warn!(pod = %record.pod, container = %record.container, grant = %record.id,
                "A container wrote past the end of its account; the rest was cut off.");
        }
    }

    /// What the kubelet says.
    #[must_use]
    pub fn witness(&self) -> &Witness {
        &self.witness
    }

    fn shelf(&self) -> Arc<Shelf> {
        Arc::clone(&lock(&self.shelf))
    }

    /// Waits until the pods of this node were told once. Without an API server
    /// the wait ends by itself.
    async fn synced(&self) {
        let mut changes = self.changes();
        let told = async {
            loop {
                changes.borrow_and_update();
                if self.read(Book::is_synced) || changes.changed().await.is_err() {
                    return;
                }
            }
        };
        if tokio::time::timeout(SYNC, told).await.is_err() {
            warn!("This node's pods are not known, and the kubelet asks for one.");
        }
    }

    /// Asks the API server for the pods of this node, past the watch.
    async fn ask_for_pods(&self) {
        match tokio::time::timeout(ASK, self.cluster.list_pods()).await {
            Ok(Ok(pods)) => self.change(|book| pods.into_iter().for_each(|pod| book.set_pod(pod))),
            Ok(Err(error)) => warn!(%error, "Cannot look for the pod that the kubelet asks for."),
            Err(_) => warn!("The API server does not answer about the pod that the kubelet asks for."),
        }
    }

    /// Looks until `look` is content: at each change of the book, for
    /// [`APPEAR`], then once more after asking the API server. `look` gets the
    /// time waited and says how long to wait at most with what it has, or
    /// breaks off.
    async fn look_for<T>(&self, mut look: impl FnMut(Duration) -> ControlFlow<T, (T, Duration)>, ask: bool) -> T {
        let start = Instant::now();
        let mut changes = self.changes();
        let mut asked = !ask;
        loop {
            changes.borrow_and_update();
            let waited = start.elapsed();
            let (found, patience) = match look(waited) {
                ControlFlow::Break(found) => return found,
                ControlFlow::Continue(more) => more,
            };
            if waited < patience {
                // What woke us is seen at the next look.
                let _woken = tokio::time::timeout_at(start + patience, changes.changed()).await;
            } else if asked {
                return found;
            } else {
                asked = true;
                self.ask_for_pods().await;
            }
        }
    }

    /// Finds who an Allocate call is for, waiting for the watch if need be.
    async fn owner(&self, ids: &[String]) -> Result<Choice, NoOwner> {
        let Expectation { of, pods, in_vain } = std::mem::take(&mut *lock(&self.expectation));
        self.synced().await;
        let view = KubeletView {
            held: self.witness.held(),
            pods,
        };
        let appear = if in_vain { Duration::ZERO } else { APPEAR };
        let look = |waited| match self.read(|book| book.choose(ids, &view, &of)) {
            Ok(choice) if choice.at_once || waited >= GUESS => ControlFlow::Break(Ok(choice)),
            Ok(choice) => ControlFlow::Continue((Ok(choice), GUESS)),
            Err(error @ NoOwner::NoMemory { .. }) => ControlFlow::Break(Err(error)),
            Err(error) => ControlFlow::Continue((Err(error), appear)),
        };
        self.look_for(look, !in_vain).await
    }

    async fn allocate_one(&self, ids: &[String]) -> Result<ContainerAllocateResponse, Refusal> {
        let choice = match self.owner(ids).await {
            Ok(choice) => choice,
            Err(error) => {
                self.tell_about(&error);
                return Err(refused(&error));
            }
        };
        let candidate = &choice.candidate;
        if !choice.cards_match {
            self.metrics.mismatch(Mismatch::OtherIds);
            info!(pod = %candidate.pod, container = %candidate.container, ?ids,
                "The kubelet took ids of other cards; the container gets the cards that it was given.");
        }
        self.grant(candidate, ids).await.map_err(|problem| {
            self.tell(&candidate.pod, problem.clone());
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
            proven: false,
            serial,
            priority: None,
            resized: 0,
        };
        let stored = self
            .on_disk({
                let record = record.clone();
                move |store| store.create(&record, extras)
            })
            .await;
        let shelf = self.shelf();
        let compat = if self.settings.compat_folders && limited {
            make_compat_folders(&shelf.frame, &record).map_err(|error| compat_trouble(&error))
        } else {
            Ok(())
        };
        if let Err(problem) = stored.and(compat) {
            // Both are made again before the container starts.
            warn!(pod = %record.pod, container = %record.container, error = %problem,
                "The container is answered, and waits.");
            self.tell(&record.pod, problem);
        }
        let minors: Vec<u32> = minors.into_iter().collect();
        let files: Vec<DeviceFile> = device_files(&shelf.root, &shelf.dev_root, &minors);
        let cache = cache_name(&record.id);
        let mut response = answer(
            &shelf.frame,
            &Subject {
                record: &record,
                files: &files,
                preload,
                cache: &cache,
            },
        );
        if let Some(wall) = self.wall.get().filter(|_| record.limited) {
            let level = |card: &str| format!("{card}={}", wall.level(card).as_str());
            let levels: Vec<String> = record.shares.iter().map(|share| level(share.card.as_str())).collect();
            response
                .annotations
                .insert(answer::LEVEL_ANNOTATION.to_owned(), levels.join(","));
        }
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
            swap: self.settings.cards.memory_scaling > 1.0 && self.settings.oversubscription == Oversubscription::Swap,
            driver_held: self.wall.get().is_some_and(|wall| {
                let levels = wall.levels();
                !levels.is_empty() && levels.values().all(|level| *level == Level::Driver)
            }),
            core_cap: env(keys::ENV_CORE_POLICY) == Some("force"),
            priority: env(keys::ENV_TASK_PRIORITY).and_then(|text| text.parse().ok()),
        }
    }

    /// The same for a grant that is there, with what a live resize set.
    fn extras_of(&self, book: &Book, record: &Record) -> Extras {
        let view = book.pod(&record.pod.uid);
        let extras = view.map_or_else(Extras::default, |view| self.extras(view, record.index));
        Extras {
            priority: record.priority.or(extras.priority),
            ..extras
        }
    }

    /// Carries out what is left of a pod's live resize, but not the one numbered `done`: what was done, how it went, and
    /// what the pod's containers are held to now.
    pub(crate) async fn resize(&self, uid: &PodUid, done: Option<u64>) -> Option<(ResizeWork, Outcome, String)> {
        let _one_at_a_time = self.settling.lock().await;
        let (work, extras) = self.read(|book| {
            let work = book.resize_work(uid)?;
            let extras: Vec<Extras> = work.changes.iter().map(|(_, new)| self.extras_of(book, new)).collect();
            Some((work, extras))
        })?;
        if work.status.state.is_open() && done.is_some_and(|done| done >= work.status.generation) {
            return None;
        }
        let outcome = match &work.refused {
            Some(reason) => Outcome::Refused(reason.clone()),
            None => {
                let store = self.store.clone();
                let steps = work.changes.iter().map(|(_, new)| new.clone()).zip(extras);
                let steps: Vec<(Record, Extras)> = steps.collect();
                match tokio::task::spawn_blocking(move || store.resize(&steps)).await {
                    Ok(result) => Outcome::of(result, &work),
                    Err(error) => Outcome::Failed(format!("the grant's writer broke off: {error}")),
                }
            }
        };
        if matches!(outcome, Outcome::Applied) {
            self.change(|book| {
                for (_, new) in &work.changes {
                    book.set_record(new.clone());
                }
            });
            for (old, new) in work.changes.iter().filter(|(old, new)| old.shares != new.shares) {
                info!(pod = %new.pod, container = %new.container, grant = %new.id, before = ?old.shares, now = ?new.shares,
                    "Changed the share of a running container.");
                self.build_walls(&new.ids).await;
            }
        }
        let holds = self.read(|book| book.held_text(uid))?;
        Some((work, outcome, holds))
    }

    /// Makes the grants of running containers what their records say, where a crash left a resize half done.
    pub(crate) async fn align_grants(&self) {
        let _one_at_a_time = self.settling.lock().await;
        let sealed: Vec<(Record, Extras)> = self.read(|book| {
            let sealed = book.records().filter(|record| record.sealed && record.limited);
            let live = sealed.filter(|record| book.is_live(&record.pod.uid));
            live.map(|record| (record.clone(), self.extras_of(book, record)))
                .collect()
        });
        for (record, extras) in sealed {
            let (pod, container) = (record.pod.clone(), record.container.clone());
            if let Err(error) = self.on_disk(move |store| store.align(&record, extras)).await {
                warn!(%pod, %container, %error, "A running container's grant is not what its record says.");
            }
        }
    }

    /// Confirms or corrects the grants of these ids by the kubelet's record.
    /// One call at a time: each looks at all grants.
    async fn confirm(&self, ids: &BTreeSet<String>) -> Result<(), NoStart> {
        let start = Instant::now();
        let mut changes = self.changes();
        let mark = self.read(Book::moves);
        loop {
            changes.borrow_and_update();
            let truth = self.truth(ids).await;
            let error = {
                let _one_at_a_time = self.settling.lock().await;
                match self.read(|book| book.settle(ids, &truth)) {
                    Ok(settled) => {
                        let told = self.settle(settled.changed, &settled.asked).await;
                        let moved = self.read(|book| book.moved_since(mark, &settled.asked));
                        // The kubelet reads the annotation before it calls us:
                        // a container started now would see the old one. It
                        // asks again, whoever's call it was that moved it.
                        let old = settled.moving.or_else(|| {
                            let id = settled.asked.first().filter(|_| moved)?;
                            self.read(|book| {
                                let record = book.record(id)?;
                                Some((record.pod.clone(), record.container.clone()))
                            })
                        });
                        match (told, old) {
                            (Ok(()), None) => return Ok(()),
                            (Ok(()), Some((pod, container))) => {
                                self.metrics.mismatch(Mismatch::Moved);
                                return Err(NoOwner::Moving { pod, container }.into());
                            }
                            (Err(problem), _) => NoStart::Problem(problem),
                        }
                    }
                    Err(error @ (NoOwner::NoRecord | NoOwner::UnknownPod { .. } | NoOwner::NoEntry { .. })) => {
                        error.into()
                    }
                    Err(error) => return Err(error.into()),
                }
            };
            if start.elapsed() >= CONFIRM {
                return Err(error);
            }
            // Either of them may bring the answer.
            let _woken = tokio::time::timeout(LOOK, changes.changed()).await;
        }
    }

    /// What the kubelet says about who holds what.
    async fn truth(&self, ids: &BTreeSet<String>) -> Arc<[Truth]> {
        match self.witness.held() {
            Some(truth) if truth.iter().any(|truth| truth.ids == *ids) => truth,
            _ => self.truth_from_podresources(ids).await,
        }
    }

    /// The second witness: names without uids, no init containers, and not
    /// which grant. The newest grant of these ids is the one being started.
    async fn truth_from_podresources(&self, ids: &BTreeSet<String>) -> Arc<[Truth]> {
        let holder = self.witness.holder(ids).await;
        self.read(|book| {
            let newest = book
                .records()
                .filter(|record| record.ids == *ids)
                .max_by_key(|record| record.serial);
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
                        cards: Vec::new(),
                        limited: record.limited,
                        uid,
                        container: holder.container.clone(),
                    })
                    .into_iter()
                    .collect(),
                _ => Arc::from([]),
            }
        })
    }

    async fn settle(&self, changed: Vec<Record>, asked: &[String]) -> Result<(), String> {
        let mut retargeted = 0_usize;
        for record in &changed {
            let (before, extras) = self.read(|book| {
                let extras = self.extras_of(book, record);
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
            self.on_disk({
                let record = record.clone();
                move |store| store.update(&record, extras)
            })
            .await?;
            self.change(|book| book.set_record(record.clone()));
        }
        match retargeted {
            0 => {}
            1 => self.metrics.mismatch(Mismatch::Retargeted),
            _ => self.metrics.mismatch(Mismatch::Exchanged),
        }
        // The same ids in the hands of two pods (the kubelet may hand them out
        // twice) leave open which of them starts.
        let pods: BTreeSet<PodUid> = self.read(|book| {
            let records = asked.iter().filter_map(|id| book.record(id));
            records.map(|record| record.pod.uid.clone()).collect()
        });
        for id in asked {
            // A grant that was confirmed before is being started again.
            if pods.len() > 1 || changed.iter().any(|record| record.id == *id) {
                continue;
            }
            let known = self.read(|book| {
                let record = book.record(id)?;
                Some((record.clone(), self.extras_of(book, record)))
            });
            if let Some((record, extras)) = known {
                self.on_disk(move |store| {
                    store.update(&record, extras)?;
                    store.restart(&record)
                })
                .await?;
            }
        }
        Ok(())
    }

    /// What a container of these ids needs besides its grant.
    fn equipped(&self, ids: &BTreeSet<String>) -> Result<(), NoStart> {
        let records: Vec<Record> = self.read(|book| {
            book.records()
                .filter(|record| record.limited && record.ids == *ids && book.is_live(&record.pod.uid))
                .cloned()
                .collect()
        });
        if records.is_empty() {
            return Ok(());
        }
        self.usable_library().map_err(NoStart::Problem)?;
        if self.settings.compat_folders {
            let shelf = self.shelf();
            for record in &records {
                if !answer::compat_folder(&shelf.frame, record).is_dir() {
                    make_compat_folders(&shelf.frame, record)
                        .map_err(|error| NoStart::Problem(compat_trouble(&error)))?;
                }
            }
        }
        Ok(())
    }

    fn tell(&self, pod: &PodId, message: String) {
        self.cluster.tell(PodNote {
            pod: pod.clone(),
            reason: "AllocateFailed",
            message,
        });
    }

    fn tell_about(&self, error: &NoOwner) {
        if let Some(pod) = concerned(error) {
            self.tell(pod, error.to_string());
        }
    }

    /// Tells the pods of these ids why they do not start.
    fn tell_holders(&self, ids: &BTreeSet<String>, message: &str) {
        let pods: BTreeSet<PodId> = self.read(|book| {
            book.records()
                .filter(|record| record.ids == *ids && book.is_live(&record.pod.uid))
                .map(|record| record.pod.clone())
                .collect()
        });
        for pod in pods {
            self.tell(&pod, message.to_owned());
        }
    }
}

/// Why a container may not start yet.
#[derive(Debug, thiserror::Error)]
enum NoStart {
    /// Its owner is not proven, or has no room.
    #[error(transparent)]
    Owner(#[from] NoOwner),
    /// Something of ours is missing.
    #[error("{0}")]
    Problem(String),
}

fn compat_trouble(error: &std::io::Error) -> String {
    format!("cannot make the folders of the compatible library: {error}")
}

impl<C: Cluster> Plugin for Desk<C> {
    fn devices(&self) -> watch::Receiver<Arc<[PluginDevice]>> {
        self.devices.subscribe()
    }

    async fn preferred(&self, requests: Vec<PreferredRequest>) -> Vec<Vec<String>> {
        self.synced().await;
        // Nothing is allocated meanwhile, so one look at the kubelet is enough.
        let view = self.witness.view().await;
        let look = |_| {
            let there = self.read(|book| requests.iter().all(|request| book.expects(request.size, &view)));
            if there {
                ControlFlow::Break(true)
            } else {
                ControlFlow::Continue((false, APPEAR))
            }
        };
        let there = self.look_for(look, true).await;
        let (answers, of) = self.read(|book| book.preferred(&requests, &view));
        let in_vain = !there && of.is_empty();
        *lock(&self.expectation) = Expectation {
            of,
            pods: view.pods,
            in_vain,
        };
        answers
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
        let started = match self.equipped(&ids) {
            Ok(()) => self.confirm(&ids).await,
            Err(problem) => Err(problem),
        };
        match started {
            Ok(()) => {
                self.build_walls(&ids).await;
                Ok(())
            }
            Err(error) => {
                self.metrics.mismatch(Mismatch::Refused);
                warn!(?ids, %error, "A container may not start yet.");
                match &error {
                    NoStart::Owner(error) => self.tell_about(error),
                    NoStart::Problem(problem) => self.tell_holders(&ids, problem),
                }
                Err(Refusal {
                    retryable: true,
                    message: error.to_string(),
                })
            }
        }
    }
}

/// What the containers of one pod were promised of each card. A card that one of them has without a limit is left out.
fn pod_memory<'a>(records: impl Iterator<Item = &'a Record>) -> BTreeMap<String, Promise> {
    let mut cards: BTreeMap<String, Option<Promise>> = BTreeMap::new();
    // A container that was started again has several records; the newest is the one that counts.
    let mut newest: BTreeMap<&str, &Record> = BTreeMap::new();
    for record in records {
        let known = newest.entry(record.container.as_str()).or_insert(record);
        if record.serial > known.serial {
            *known = record;
        }
    }
    for record in newest.values() {
        for share in &record.shares {
            let sum = cards
                .entry(share.card.as_str().to_owned())
                .or_insert(Some(Promise::default()));
            *sum = match (*sum, share.memory.bytes()) {
                (Some(sum), Some(bytes)) if record.limited => Some(Promise {
                    bytes: sum.bytes.saturating_add(bytes),
                    containers: sum.containers.saturating_add(1),
                }),
                _ => None,
            };
        }
    }
    cards
        .into_iter()
        .filter_map(|(card, promise)| Some((card, promise?)))
        .collect()
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
        | NoOwner::NoCard { pod, .. }
        | NoOwner::Unreadable { pod, .. }
        | NoOwner::NoMemory { pod, .. } => Some(pod),
        NoOwner::UnknownId { .. }
        | NoOwner::Moving { .. }
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
