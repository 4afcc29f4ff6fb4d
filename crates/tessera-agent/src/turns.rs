//! Gives containers their turns on the cards of this node, on a thread of its own.
//!
//! One [`Turnstile`] for each card that a container with a gate uses. The thread sleeps on the bells of those
//! containers; it looks again by time only while somebody wants a card that another one has, and says a few times a
//! second that it is alive. Without a container that needs it, it looks only whether there is one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tessera_region::fs::{GrantDir, read_grant};
use tessera_region::ring_host::{self, RingFile};
use tessera_region::swap_host::monotonic_ns;
use tessera_region::turns_host::{TurnsHost, wait_for_bells};
use tessera_region::{GATE_BRIEF, GATE_CLOSED, Grant, RING_PLACES, RingLook};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::cluster::Cluster;
use crate::desk::Desk;
use crate::turnstile::{Seat, Turnstile};

/// Longest pause: containers take an agent that was silent for a second for dead.
const BEAT_NS: u64 = 300_000_000;
/// How often new containers are looked for, at most.
const INVITE_NS: u64 = 20_000_000;

/// How often all processes of a container are looked at, also those that did nothing lately.
const ROUND_NS: u64 = 100_000_000;

/// The doorbell of a card whose containers are not equally important.
struct Doorbell {
    file: RingFile,
    last: RingLook,
}

/// One container with a gate.
struct Guest {
    dir: GrantDir,
    host: TurnsHost,
    grant: Grant,
    /// Bell and time of the last look at all its processes.
    round: Option<(u32, u64)>,
    /// Processes that have ever said something, if all are to be looked at.
    slots: Option<Vec<usize>>,
}

impl Guest {
    /// Notes whether all processes are to be looked at now.
    fn begin(&mut self, clock_ns: u64) {
        let Some(head) = self.host.head() else {
            self.slots = Some(Vec::new());
            return;
        };
        let due = self
            .round
            .is_none_or(|(bell, at)| bell != head.bell || clock_ns.saturating_sub(at) > ROUND_NS);
        self.slots = due.then(|| {
            self.round = Some((head.bell, clock_ns));
            head.slots().collect()
        });
    }
}

/// All turnstiles of a node.
#[derive(Default)]
pub struct Turnstiles {
    guests: BTreeMap<String, Guest>,
    cards: BTreeMap<String, Turnstile>,
    doorbells: BTreeMap<String, Doorbell>,
    heard_ns: Option<u64>,
    stale: bool,
}

impl std::fmt::Debug for Turnstiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Turnstiles")
            .field("guests", &self.guests.keys())
            .field("cards", &self.cards)
            .finish_non_exhaustive()
    }
}

impl Turnstiles {
    /// Takes a container in, or its changed grant. One without a gate is left out.
    ///
    /// # Errors
    /// [`tessera_region::turns_host::TurnsHostError`]: its pages are missing or of another version.
    pub fn admit(&mut self, dir: &GrantDir, grant: Grant) -> Result<(), tessera_region::turns_host::TurnsHostError> {
        let name = grant.id.to_string();
        if !TurnsHost::wanted(grant.cards()) {
            self.dismiss(&name);
            return Ok(());
        }
        match self.guests.get_mut(&name) {
            Some(guest) => guest.grant = grant,
            None => {
                let host = TurnsHost::open(dir)?;
                let guest = Guest {
                    dir: dir.clone(),
                    host,
                    grant,
                    round: None,
                    slots: None,
                };
                self.guests.insert(name, guest);
            }
        }
        self.stale = true;
        Ok(())
    }

    /// Lets a container go.
    pub fn dismiss(&mut self, name: &str) {
        if self.guests.remove(name).is_some() {
            self.stale = true;
        }
    }

    /// The containers that are in.
    pub fn guests(&self) -> impl Iterator<Item = &str> {
        self.guests.keys().map(String::as_str)
    }

    /// Containers whose grant was replaced since they were taken in.
    #[must_use]
    pub fn replaced(&self) -> Vec<String> {
        let old = |guest: &Guest| guest.host.generation() > guest.grant.generation;
        let found = self.guests.iter().filter(|(_, guest)| old(guest));
        found.map(|(name, _)| name.clone()).collect()
    }

    /// Words that are rung when there is something to see, and their present values: taken before a look and waited on
    /// after it, so that no ring is missed.
    #[must_use]
    pub fn bells(&self) -> Vec<(*const u32, u32)> {
        let bell = |guest: &Guest| Some((guest.host.bell(), guest.host.head()?.bell));
        self.guests.values().filter_map(bell).collect()
    }

    /// Looks at all cards; when to look again on the clock of the turns, nothing if only a bell matters. `now_ns` is
    /// that clock, `clock_ns` the system's monotonic one.
    pub fn look(&mut self, now_ns: u64, clock_ns: u64) -> Option<u64> {
        if self
            .heard_ns
            .is_none_or(|heard| clock_ns.saturating_sub(heard) > BEAT_NS / 3)
            || self.stale
        {
            self.heard_ns = Some(clock_ns);
            for guest in self.guests.values() {
                guest.host.beat(clock_ns);
            }
        }
        if std::mem::take(&mut self.stale) {
            self.seat(now_ns);
        }
        let mut next: Option<u64> = None;
        for guest in self.guests.values_mut() {
            guest.begin(clock_ns);
        }
        for (card, stile) in &mut self.cards {
            // Before the containers are looked at: what rings behind this look is answered by the next one.
            let rung = self.doorbells.get_mut(card).map(|bell| {
                let look = bell.file.look();
                (look.all, look.rang_since(&std::mem::replace(&mut bell.last, look)))
            });
            let places: Vec<(&TurnsHost, usize)> = stile
                .seats()
                .filter_map(|seat| {
                    let guest = self.guests.get(&seat.grant)?;
                    Some((&guest.host, guest.grant.card(card)?.0))
                })
                .collect();
            let slots: Vec<Vec<usize>> = stile
                .seats()
                .enumerate()
                .map(
                    |(seat, of)| match self.guests.get(&of.grant).map(|guest| &guest.slots) {
                        Some(Some(all)) => all.clone(),
                        _ => stile.lively(seat, now_ns).collect(),
                    },
                )
                .collect();
            for (seat, ((host, place), slots)) in places.iter().zip(&slots).enumerate() {
                let figures = slots
                    .iter()
                    .filter_map(|slot| Some((*slot, host.figures(*slot, *place)?)));
                stile.observe(seat, now_ns, clock_ns, figures);
            }
            if let Some((_, rang)) = rung {
                stile.note_rings(now_ns, rang);
            }
            let (verdicts, at) = stile.step(now_ns);
            // Closed ones first: nobody is let in before the others are kept out.
            for open in [false, true] {
                for ((host, place), verdict) in places.iter().zip(&verdicts) {
                    if (verdict.gate & GATE_CLOSED == 0) == open {
                        let brief = if verdict.brief { GATE_BRIEF } else { 0 };
                        host.set_gate(*place, verdict.gate | brief);
                    }
                }
            }
            for (seat, ((host, place), verdict)) in places.iter().zip(&verdicts).enumerate() {
                let Some(words) = host.card(*place) else { continue };
                let (heed, ring) = match rung {
                    Some(_) => (verdict.heed, if verdict.rings { seat + 1 } else { 0 }),
                    None => (0, 0),
                };
                words.heed.store(heed, Ordering::Release);
                words
                    .ring_place
                    .store(u32::try_from(ring).unwrap_or(0), Ordering::Release);
                // The gates say by now what the rings are answered with.
                words.answered.store(rung.map_or(0, |(all, _)| all), Ordering::Release);
            }
            next = match (next, at) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
        }
        next
    }

    /// Puts every container in its place at every card.
    fn seat(&mut self, now_ns: u64) {
        let mut seats: BTreeMap<String, Vec<Seat>> = BTreeMap::new();
        for (name, guest) in &self.guests {
            for card in guest.grant.cards().iter().filter(|card| card.is_gated()) {
                seats.entry(card.uuid.as_str().to_owned()).or_default().push(Seat {
                    grant: name.clone(),
                    card: *card,
                });
            }
        }
        self.cards.retain(|card, _| seats.contains_key(card));
        for (card, seats) in seats {
            let stile = self.cards.entry(card).or_insert_with(|| Turnstile::new(now_ns));
            stile.set_seats(&seats);
        }
        self.hang_doorbells();
    }

    /// Gives each card whose containers are not equally important its doorbell. Without it the agent alone closes gates.
    fn hang_doorbells(&mut self) {
        let mut kept = BTreeSet::new();
        let mut root = None;
        let mut bells = BTreeMap::new();
        for (card, stile) in &self.cards {
            let count = stile.seats().count();
            if count > RING_PLACES || !(0..count).any(|seat| stile.may_outrank(seat)) {
                continue;
            }
            let guests: Vec<Option<&Guest>> = stile.seats().map(|seat| self.guests.get(&seat.grant)).collect();
            let Some(folder) = guests.iter().flatten().find_map(|guest| guest.dir.path().parent()) else {
                continue;
            };
            root = Some(folder.to_path_buf());
            let hung = RingFile::open(folder, card).and_then(|file| {
                for (seat, guest) in guests.iter().enumerate() {
                    let Some((guest, (position, _))) = guest.and_then(|g| Some((g, g.grant.card(card)?))) else {
                        continue;
                    };
                    let (rings, listens) = (stile.may_outrank(seat), stile.may_be_outranked(seat));
                    file.offer(&guest.dir, position, rings, listens)?;
                }
                Ok(file)
            });
            match hung {
                Ok(file) => {
                    kept.insert(file.path().to_path_buf());
                    let last = file.look();
                    bells.insert(card.clone(), Doorbell { file, last });
                }
                Err(error) => warn!(%card, %error, "This card has no doorbell: priority takes effect a little later."),
            }
        }
        self.doorbells = bells;
        if let Some(root) = root
            && let Err(error) = ring_host::keep_only(&root, &kept)
        {
            warn!(%error, "A doorbell that nobody uses stays.");
        }
    }

    /// Takes in who is new, lets go who is gone, and reads replaced grants again.
    fn invite<C: Cluster>(&mut self, desk: &Desk<C>, root: &Path, told: &mut BTreeSet<String>) {
        let wanted: Vec<(String, tessera_region::GrantId)> = desk.read(|book| {
            book.records()
                .filter(|record| record.limited && record.sealed)
                .filter_map(|record| Some((record.id.clone(), record.grant_id()?)))
                .collect()
        });
        let gone: Vec<String> = self
            .guests()
            .filter(|guest| !wanted.iter().any(|(name, _)| name == guest))
            .map(str::to_owned)
            .collect();
        for name in gone {
            self.dismiss(&name);
        }
        told.retain(|name| wanted.iter().any(|(known, _)| known == name));
        let replaced = self.replaced();
        for (name, id) in wanted {
            let known = self.guests.contains_key(&name) || told.contains(&name);
            if known && !replaced.contains(&name) {
                continue;
            }
            let dir = GrantDir::new(root, id);
            let Ok(grant) = read_grant(&dir) else { continue };
            // A container without a gate is not read again until its grant is replaced, and then it gets none: its
            // programs have found the driver's own launches.
            if !TurnsHost::wanted(grant.cards()) {
                told.insert(name.clone());
            }
            if let Err(error) = self.admit(&dir, grant) {
                warn!(grant = %name, %error, "This container paces itself: it gets no turns.");
                told.insert(name);
            }
        }
    }
}

/// Starts the thread; it ends soon after `stop`.
///
/// # Errors
/// When there is no thread to be had.
pub fn spawn<C: Cluster>(desk: Arc<Desk<C>>, stop: CancellationToken) -> std::io::Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new().name("turns".into()).spawn(move || {
        let root = desk.settings().paths.grants.clone();
        loop {
            let looped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&desk, &root, &stop)));
            match looped {
                Ok(()) => return,
                Err(_) => error!("The thread that gives turns broke off, and begins again."),
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    })
}

fn run<C: Cluster>(desk: &Arc<Desk<C>>, root: &Path, stop: &CancellationToken) {
    let mut stiles = Turnstiles::default();
    let mut changes = desk.changes();
    let mut told = BTreeSet::new();
    let mut invited_ns = 0;
    let mut first = true;
    while !stop.is_cancelled() {
        let clock_ns = monotonic_ns();
        let due = clock_ns.saturating_sub(invited_ns) > INVITE_NS;
        if due && (first || changes.has_changed().unwrap_or(false) || !stiles.replaced().is_empty()) {
            changes.borrow_and_update();
            invited_ns = clock_ns;
            stiles.invite(desk, root, &mut told);
            debug!(guests = stiles.guests.len(), "Containers with turns.");
            first = false;
        }
        let bells = stiles.bells();
        let next = stiles.look(clock_ns, clock_ns);
        let now = monotonic_ns();
        let pause = next.map_or(BEAT_NS, |at| at.saturating_sub(now).min(BEAT_NS));
        if pause > 0 {
            wait_for_bells(&bells, pause);
        }
    }
}
