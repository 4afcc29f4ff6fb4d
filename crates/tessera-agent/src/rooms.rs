//! Runs a [`Keeper`](crate::room::Keeper) for every card whose memory is promised more than once.
//!
//! It looks every few milliseconds while somebody waits for memory, and a few times a second otherwise. Without a grant
//! that lets memory move it does nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tessera_region::CardFlags;
use tessera_region::fs::{GrantDir, read_grant};
use tessera_region::swap_host::{SwapHost, monotonic_ns};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::book::Record;
use crate::cluster::Cluster;
use crate::desk::Desk;
use crate::room::{Action, Keeper, Tenant};
use crate::wall::Wall;

/// Pause while a tenant waits for its memory.
const BRISK: Duration = Duration::from_millis(2);
/// Pause otherwise: how long a tenant waits until it is seen.
const CALM: Duration = Duration::from_millis(50);

/// One container with movable memory.
struct Guest {
    host: SwapHost,
    /// Cards by their place in the grant.
    cards: Vec<String>,
}

/// What is kept from look to look.
#[derive(Default)]
struct Rooms {
    guests: BTreeMap<String, Guest>,
    keepers: BTreeMap<String, Keeper>,
    started: Option<Instant>,
}

/// Keeps the rooms of this node until `stop`.
pub async fn keep<C: Cluster>(desk: Arc<Desk<C>>, wall: Arc<Wall>, stop: CancellationToken) {
    let mut rooms = Rooms::default();
    loop {
        let records: Vec<Record> =
            desk.read(|book| book.records().filter(|r| r.limited && r.sealed).cloned().collect());
        let (wall, worker) = (Arc::clone(&wall), Arc::clone(&desk));
        // Files and driver calls may block.
        let looked = tokio::task::spawn_blocking(move || {
            let waits = rooms.look(&worker, &wall, &records);
            (rooms, waits)
        })
        .await;
        let waits;
        (rooms, waits) = match looked {
            Ok(looked) => looked,
            Err(error) => {
                warn!(%error, "A look at who may have memory broke off.");
                (Rooms::default(), false)
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(if waits { BRISK } else { CALM }) => {}
        }
    }
}

impl Rooms {
    /// One look; whether somebody waits.
    fn look<C: Cluster>(&mut self, desk: &Desk<C>, wall: &Wall, records: &[Record]) -> bool {
        self.invite(desk, records);
        if self.guests.is_empty() {
            return false;
        }
        let clock = monotonic_ns();
        let started = *self.started.get_or_insert_with(Instant::now);
        let now = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let mut by_card: BTreeMap<&str, Vec<Tenant>> = BTreeMap::new();
        let mut waits = false;
        for (grant, guest) in &self.guests {
            guest.host.beat(clock);
            for (place, card) in guest.cards.iter().enumerate() {
                let says = guest.host.container(place, clock);
                waits |= says.wants;
                by_card.entry(card).or_default().push(Tenant {
                    grant: grant.clone(),
                    says,
                });
            }
        }
        self.keepers.retain(|card, _| by_card.contains_key(card.as_str()));
        for (card, tenants) in by_card {
            let keeper = self.keepers.entry(card.to_owned()).or_default();
            let wanted = tenants.iter().any(|tenant| tenant.says.wants);
            let free = match wanted.then(|| wall.free_bytes(card)).transpose() {
                Ok(free) => free.unwrap_or(0),
                Err(error) => {
                    debug!(%card, %error, "The driver does not say what is free.");
                    continue;
                }
            };
            for action in keeper.step(now, free, &tenants) {
                match action {
                    Action::Order { grant, order } => {
                        let Some(guest) = self.guests.get(&grant) else { continue };
                        let Some(place) = guest.cards.iter().position(|known| known == card) else {
                            continue;
                        };
                        debug!(%grant, %card, ?order, "Moving memory.");
                        keeper.given(&grant, guest.host.give(place, order), now);
                    }
                    Action::Thrash { percent } => {
                        warn!(%card, percent, "Containers spend their time in moving memory; turns are made longer.");
                        for tenant in &tenants {
                            if let Some(record) = records.iter().find(|record| record.id == tenant.grant) {
                                desk.tell_thrashing(&record.pod, card, percent);
                            }
                        }
                    }
                }
            }
        }
        waits
    }

    /// Maps the pages of new grants and lets go of old ones.
    fn invite<C: Cluster>(&mut self, desk: &Desk<C>, records: &[Record]) {
        self.guests
            .retain(|grant, _| records.iter().any(|record| record.id == *grant));
        for record in records {
            let Some(id) = record.grant_id().filter(|_| !self.guests.contains_key(&record.id)) else {
                continue;
            };
            let dir = GrantDir::new(&desk.settings().paths.grants, id);
            if !dir.swap_order_file().exists() {
                continue;
            }
            let Ok(grant) = read_grant(&dir) else { continue };
            if !grant.cards().iter().any(|card| card.flags.contains(CardFlags::SWAP)) {
                continue;
            }
            match SwapHost::open(&dir) {
                Ok(host) => {
                    let cards = grant.cards().iter().map(|card| card.uuid.as_str().to_owned()).collect();
                    self.guests.insert(record.id.clone(), Guest { host, cards });
                }
                Err(error) => warn!(grant = %record.id, %error, "Memory of this container cannot be moved."),
            }
        }
    }
}
