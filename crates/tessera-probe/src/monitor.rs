//! The one thread that talks to the driver.
//!
//! It opens the driver when it appears, reads the cards, listens for events,
//! probes, and publishes a picture whenever that changed. A driver that is
//! missing or vanishes is waited for; the last picture stays, marked sick.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::{debug, info, warn};

use crate::card::{CardFacts, CardStatus, MigMode, Sickness};
use crate::health::{CardHealth, XidClass, XidPolicy};
use crate::nvml::{Code, Device, Nvml, NvmlError};
use crate::root::DriverRoot;
use crate::topology::PairScores;

/// Length of one wait for events, and so the period of all else.
const SLICE: Duration = Duration::from_millis(500);
/// How often each card is asked whether it answers.
const PROBE: Duration = Duration::from_secs(1);
/// How often the list of cards is read again.
const RESCAN: Duration = Duration::from_secs(30);
/// First and longest pause between attempts to open the driver.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// How long a vanished driver may come back before its cards count as sick:
/// what is unknown is not unhealthy.
const GRACE: Duration = Duration::from_secs(5);

/// Where to find the driver and what to make of its events.
#[derive(Debug, Clone)]
pub struct MonitorConfig {
    /// The driver's root.
    pub root: DriverRoot,
    /// The kernel's device tree, usually `/sys`.
    pub sysfs: PathBuf,
    /// Which XIDs count.
    pub xids: XidPolicy,
}

/// The cards of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inventory {
    /// Version text of the driver; empty when unknown.
    pub driver_version: String,
    /// Cards by index.
    pub cards: Vec<CardStatus>,
    /// Pair scores.
    pub scores: PairScores,
}

/// What is known of the driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DriverState {
    /// No cards have been seen yet.
    Waiting {
        /// Why, for a person.
        reason: String,
    },
    /// Cards are known. They may all be sick, when the driver vanished.
    Ready(Arc<Inventory>),
}

/// Counts of driver trouble, for metrics.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// Failed calls by function and code.
    pub errors: BTreeMap<(&'static str, i32), u64>,
    /// Events by XID.
    pub xids: BTreeMap<u64, u64>,
}

/// The running thread. Dropping it stops the thread after its current call.
#[derive(Debug)]
pub struct Monitor {
    states: watch::Receiver<DriverState>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    gate: Mutex<()>,
    wake: Condvar,
    counters: Mutex<Counters>,
}

impl Shared {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Sleeps until `pause` has passed or a stop is asked for.
    fn rest(&self, pause: Duration) {
        let gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        let _guard = self
            .wake
            .wait_timeout_while(gate, pause, |()| !self.stopped())
            .unwrap_or_else(PoisonError::into_inner);
    }

    fn count_error(&self, error: &NvmlError) {
        if let Some((call, Code(code))) = error.call() {
            let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
            *counters.errors.entry((call, code)).or_default() += 1;
        }
    }

    fn count_xid(&self, xid: u64) {
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        // A driver that invents numbers must not grow the table.
        if counters.xids.len() < 256 || counters.xids.contains_key(&xid) {
            *counters.xids.entry(xid).or_default() += 1;
        }
    }
}

impl Monitor {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn spawn(config: MonitorConfig) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (sender, states) = watch::channel(DriverState::Waiting {
            reason: "the driver was not asked yet".into(),
        });
        let worker = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("tessera-nvml".into())
            .spawn(move || run(&config, &worker, &sender))?;
        Ok(Self {
            states,
            shared,
            thread: Some(thread),
        })
    }

    /// The picture, now and whenever it changes.
    #[must_use]
    pub fn states(&self) -> watch::Receiver<DriverState> {
        self.states.clone()
    }

    /// Trouble so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.shared
            .counters
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.wake.notify_all();
        // A driver call that hangs must not hang us: only a thread that is
        // already done is joined.
        if let Some(thread) = self.thread.take()
            && thread.is_finished()
        {
            let _panicked = thread.join();
        }
    }
}

fn run(config: &MonitorConfig, shared: &Shared, states: &watch::Sender<DriverState>) {
    let mut pause = RETRY.0;
    let mut told = String::new();
    // By UUID, so that a card keeps its history over a lost session.
    let mut health: BTreeMap<String, CardHealth> = BTreeMap::new();
    let mut lost_at: Option<Instant> = None;
    while !shared.stopped() {
        let ended = match Session::open(config, shared, &mut health) {
            Ok(mut session) => {
                pause = RETRY.0;
                lost_at = None;
                told.clear();
                info!(
                    cards = session.cards.len(),
                    driver = %session.driver_version,
                    "Opened the NVIDIA driver."
                );
                session.follow(config, shared, &mut health, states)
            }
            Err(error) => Some(error),
        };
        let Some(error) = ended else { continue };
        shared.count_error(&error);
        let reason = describe(&error);
        if told != reason {
            warn!(%reason, "Waiting for the NVIDIA driver.");
            told.clone_from(&reason);
        }
        let since = *lost_at.get_or_insert_with(Instant::now);
        states.send_if_modified(|state| {
            let next = after_loss(state, &reason, since.elapsed() >= GRACE);
            let changed = *state != next;
            *state = next;
            changed
        });
        shared.rest(pause);
        pause = (pause * 2).min(RETRY.1);
    }
}

/// The picture while the driver does not answer.
fn after_loss(state: &DriverState, reason: &str, grace_over: bool) -> DriverState {
    match state {
        DriverState::Waiting { .. } => DriverState::Waiting {
            reason: reason.to_owned(),
        },
        DriverState::Ready(inventory) if grace_over => {
            let mut inventory = Inventory::clone(inventory);
            for card in &mut inventory.cards {
                card.sick.get_or_insert(Sickness::DriverLost);
            }
            DriverState::Ready(Arc::new(inventory))
        }
        DriverState::Ready(inventory) => DriverState::Ready(Arc::clone(inventory)),
    }
}

/// An error with its causes in one line.
fn describe(error: &NvmlError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// One open session with what was read in it.
struct Session {
    nvml: Nvml,
    driver_version: String,
    cards: Vec<(Device, CardFacts)>,
    scores: PairScores,
    listening: bool,
    probed: Instant,
    scanned: Instant,
}

impl Session {
    fn open(
        config: &MonitorConfig,
        shared: &Shared,
        health: &mut BTreeMap<String, CardHealth>,
    ) -> Result<Self, NvmlError> {
        let mut nvml = Nvml::open(&config.root, &config.sysfs)?;
        let driver_version = nvml.driver_version().unwrap_or_default();
        let mut cards = Vec::new();
        for card in nvml.cards()? {
            match card {
                Ok(card) => cards.push(card),
                Err(error) if error.is_driver_lost() => return Err(error),
                Err(error) => {
                    shared.count_error(&error);
                    warn!(%error, "A card does not answer, going on without it.");
                }
            }
        }
        let pairs: Vec<_> = cards.iter().map(|(device, facts)| (*device, facts)).collect();
        let scores = nvml.topology(&pairs);
        let mut listening = false;
        if !config.xids.is_off() {
            let names: Vec<_> = cards
                .iter()
                .map(|(device, facts)| (*device, facts.uuid.as_str()))
                .collect();
            match nvml.listen(&names) {
                Ok(failed) => {
                    listening = true;
                    for (uuid, error) in failed {
                        shared.count_error(&error);
                        warn!(card = %uuid, %error, "Cannot listen for the card's events.");
                        health
                            .entry(uuid)
                            .or_default()
                            .probe(Err(error.to_string()), Instant::now());
                    }
                }
                Err(error) => {
                    shared.count_error(&error);
                    warn!(%error, "The driver gives no events; cards are only probed.");
                }
            }
        }
        let now = Instant::now();
        Ok(Self {
            nvml,
            driver_version,
            cards,
            scores,
            listening,
            probed: now,
            scanned: now,
        })
    }

    /// Publishes and follows until the session breaks (`Some`), or the list of
    /// cards changed or a stop is asked for (`None`).
    fn follow(
        &mut self,
        config: &MonitorConfig,
        shared: &Shared,
        health: &mut BTreeMap<String, CardHealth>,
        states: &watch::Sender<DriverState>,
    ) -> Option<NvmlError> {
        self.publish(health, states);
        while !shared.stopped() {
            if let Err(error) = self.wait(config, shared, health) {
                return Some(error);
            }
            if self.probed.elapsed() >= PROBE {
                self.probed = Instant::now();
                if let Some(error) = self.probe(shared, health) {
                    return Some(error);
                }
            }
            self.publish(health, states);
            if self.scanned.elapsed() >= RESCAN {
                self.scanned = Instant::now();
                match self.changed() {
                    Ok(false) => {}
                    Ok(true) => {
                        info!("The list of cards changed.");
                        return None;
                    }
                    Err(error) if error.is_driver_lost() => return Some(error),
                    Err(error) => shared.count_error(&error),
                }
            }
        }
        None
    }

    /// Waits one slice for events.
    fn wait(
        &mut self,
        config: &MonitorConfig,
        shared: &Shared,
        health: &mut BTreeMap<String, CardHealth>,
    ) -> Result<(), NvmlError> {
        if !self.listening {
            shared.rest(SLICE);
            return Ok(());
        }
        let milliseconds = u32::try_from(SLICE.as_millis()).unwrap_or(u32::MAX);
        match self.nvml.wait(milliseconds) {
            Ok(None) => Ok(()),
            Ok(Some(event)) => {
                let Some(xid) = event.xid else { return Ok(()) };
                shared.count_xid(xid);
                if config.xids.class(xid) == XidClass::Ignored {
                    debug!(xid, card = ?event.card, "An application's fault.");
                    return Ok(());
                }
                match event.card {
                    Some(uuid) => {
                        warn!(card = %uuid, xid, "The driver reports a fault of the card.");
                        health.entry(uuid).or_default().event(xid, Instant::now());
                    }
                    // Which card is unknown, and unknown is not unhealthy: the
                    // probes decide.
                    None => warn!(xid, "The driver reports a fault and cannot say of which card."),
                }
                Ok(())
            }
            Err(error) if error.is_driver_lost() => Err(error),
            Err(error) => {
                shared.count_error(&error);
                debug!(%error, "Waiting for driver events failed.");
                // A call that fails at once must not become a busy loop.
                shared.rest(SLICE);
                Ok(())
            }
        }
    }

    /// Asks each card; `Some` when the driver as a whole is gone.
    fn probe(&self, shared: &Shared, health: &mut BTreeMap<String, CardHealth>) -> Option<NvmlError> {
        for (device, facts) in &self.cards {
            let answer = self.nvml.probe(*device);
            if let Err(error) = &answer {
                shared.count_error(error);
            }
            match answer {
                Err(error) if error.is_driver_lost() => return Some(error),
                answer => {
                    let card = health.entry(facts.uuid.clone()).or_default();
                    let before = card.sick().is_some();
                    card.probe(answer.map_err(|error| error.to_string()), Instant::now());
                    match (before, card.sick()) {
                        (false, Some(cause)) => {
                            warn!(card = %facts.uuid, reason = %cause, "The card fell sick.");
                        }
                        (true, None) => info!(card = %facts.uuid, "The card is healthy again."),
                        _ => {}
                    }
                }
            }
        }
        None
    }

    /// Whether the driver lists other cards, or another mode, than were read.
    fn changed(&self) -> Result<bool, NvmlError> {
        let listed: Vec<String> = self.nvml.uuids()?.into_iter().flatten().collect();
        let known: Vec<&String> = self.cards.iter().map(|(_, facts)| &facts.uuid).collect();
        if listed.iter().ne(known.iter().copied()) {
            // A card that went missing keeps its place as a sick one.
            return Ok(listed.iter().any(|uuid| !known.contains(&uuid)));
        }
        let now = self.nvml.cards()?;
        let modes: Vec<MigMode> = now.iter().flatten().map(|(_, facts)| facts.mig).collect();
        Ok(modes.iter().ne(self.cards.iter().map(|(_, facts)| &facts.mig)))
    }

    fn publish(&self, health: &BTreeMap<String, CardHealth>, states: &watch::Sender<DriverState>) {
        let cards: Vec<CardStatus> = self
            .cards
            .iter()
            .map(|(_, facts)| CardStatus {
                facts: facts.clone(),
                sick: health.get(&facts.uuid).and_then(CardHealth::sick).cloned(),
            })
            .collect();
        states.send_if_modified(|state| {
            if let DriverState::Ready(old) = state
                && old.cards == cards
                && old.scores == self.scores
                && old.driver_version == self.driver_version
            {
                return false;
            }
            *state = DriverState::Ready(Arc::new(Inventory {
                driver_version: self.driver_version.clone(),
                cards,
                scores: self.scores.clone(),
            }));
            true
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_driver_is_waited_for_with_its_reason() {
        let folder = tempfile::tempdir().unwrap();
        let monitor = Monitor::spawn(MonitorConfig {
            root: DriverRoot::new(folder.path(), folder.path()),
            sysfs: folder.path().to_owned(),
            xids: XidPolicy::default(),
        })
        .unwrap();
        let mut states = monitor.states();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let state = runtime.block_on(async {
            tokio::time::timeout(
                Duration::from_secs(10),
                states.wait_for(
                    |state| matches!(state, DriverState::Waiting { reason } if reason.contains("libnvidia-ml")),
                ),
            )
            .await
            .map(|state| state.is_ok())
        });
        assert_eq!(state, Ok(true));
    }

    #[test]
    fn a_vanished_driver_keeps_its_cards_and_marks_them_after_the_grace_time() {
        let facts = CardFacts {
            index: 0,
            uuid: "GPU-a".into(),
            model: "A100".into(),
            minor: Some(0),
            pci_bus_id: String::new(),
            memory_total_bytes: Some(1 << 30),
            memory_reserved_bytes: None,
            numa: None,
            compute_capability: None,
            mig: MigMode::Unsupported,
            mig_profiles: Vec::new(),
        };
        let ready = DriverState::Ready(Arc::new(Inventory {
            driver_version: String::new(),
            cards: vec![CardStatus { facts, sick: None }],
            scores: PairScores::new(),
        }));
        assert_eq!(after_loss(&ready, "gone", false), ready);
        let DriverState::Ready(inventory) = after_loss(&ready, "gone", true) else {
            panic!("the cards must stay")
        };
        assert_eq!(inventory.cards[0].sick, Some(Sickness::DriverLost));
    }
}
