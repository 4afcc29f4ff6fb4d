//! Who owns what: pods of this node, the grants made, and the rules that tie
//! an anonymous kubelet call to one container.
//!
//! The kubelet names ids, never a pod. [`owner`] finds the container that most
//! likely is meant, a *provisional* owner, who is given the cards and limits of
//! its own entry. Before the container starts the kubelet has recorded whom it
//! meant, and [`settle`] makes the grant true to that record or refuses.
//!
//! Pure: no files, no clock, no server.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tessera_region::GrantId;
use tessera_types::{
    Allocation, CardId, ClassAllocation, Cores, Extras, Keyword, Mib, PodId, PodUid, Share, effective_usage,
};
use tessera_wire::{PodPhase, PodView, device_text, keys};

use crate::cards::Managed;

mod fit;
pub mod owner;
mod resize;
pub mod settle;

pub use owner::{Candidate, Choice, Expected, KubeletView, Standing};
pub use resize::ResizeWork;

/// Which scheduler bound the pod, and so what it expects of us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// Ours: nothing is written.
    Own,
    /// HAMi's: erase, phase, node lock.
    Hami,
}

/// What is remembered about one grant, on disk and in memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// 32 hexadecimal digits, the grant's folder.
    pub id: String,
    /// Slot ids as the kubelet allocated them.
    pub ids: BTreeSet<String>,
    /// Owner.
    pub pod: PodId,
    /// Container name.
    pub container: String,
    /// Position among the pod's containers, init containers first.
    pub index: usize,
    /// What the container gets, in the order of its entry.
    pub shares: Vec<Share>,
    /// Whether limits are enforced; a whole card needs none.
    pub limited: bool,
    /// Whether the kubelet's record has confirmed the owner.
    #[serde(default)]
    pub proven: bool,
    /// Whether the grant is sealed: the owner is proven and booked on these
    /// cards.
    pub sealed: bool,
    /// Counts containers of one record: later grants have higher numbers.
    pub serial: u64,
    /// Task priority that a live resize set, in place of the container's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u8>,
    /// Number of the scheduler's last answer to a live resize that is in force here; 0 for none.
    #[serde(default)]
    pub resized: u64,
}

impl Record {
    /// The grant's id.
    #[must_use]
    pub fn grant_id(&self) -> Option<GrantId> {
        GrantId::parse(&self.id)
    }

    fn is_of(&self, uid: &PodUid, container: &str) -> bool {
        self.pod.uid == *uid && self.container == container
    }
}

/// Why an owner cannot be found or confirmed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoOwner {
    /// An id that was never advertised.
    #[error("`{id}` is not an id of this node")]
    UnknownId {
        /// The id.
        id: String,
    },
    /// No container waits at all, or none for this number of cards.
    #[error("no container on this node waits for {count} card(s); was the pod placed by the extender?")]
    Nobody {
        /// Number of ids.
        count: usize,
    },
    /// A container waits, its limits do not fit the cards the kubelet took.
    #[error(transparent)]
    DoesNotFit(#[from] Box<Shortfall>),
    /// The kubelet's record does not name the ids.
    #[error("the kubelet has no record of who holds these ids yet")]
    NoRecord,
    /// The pod that the kubelet names is not known.
    #[error("pod with uid `{uid}` is not known on this node yet")]
    UnknownPod {
        /// Uid.
        uid: String,
    },
    /// The pod has no allocation for the container.
    #[error("pod `{pod}` has no allocation for container `{container}` in its annotations")]
    NoEntry {
        /// The pod.
        pod: PodId,
        /// The container.
        container: String,
    },
    /// The booking has to follow the grant before the container starts.
    #[error(
        "container `{container}` of pod `{pod}` was given other cards than it is booked on; it starts once its booking has moved there"
    )]
    Moving {
        /// The pod.
        pod: PodId,
        /// The container.
        container: String,
    },
    /// The record was sealed for another container.
    #[error("the grant belongs to container `{container}` of pod `{pod}`")]
    SealedForAnother {
        /// Its owner.
        pod: PodId,
        /// Its container.
        container: String,
    },
    /// The answer was made for a whole card and cannot be limited any more.
    #[error(
        "container `{container}` of pod `{pod}` has limits, but was given an answer without the enforcement library; delete the pod"
    )]
    NoLibrary {
        /// The pod.
        pod: PodId,
        /// The container.
        container: String,
    },
    /// The pod's annotation cannot be read.
    #[error(
        "the allocation in the annotations of pod `{pod}` cannot be read: {error}; delete the pod and create it anew"
    )]
    Unreadable {
        /// The pod.
        pod: PodId,
        /// Why.
        error: String,
    },
    /// The entry names a card that is not here.
    #[error(
        "card `{card}` of container `{container}` of pod `{pod}` is not on this node any more; delete the pod and create it anew"
    )]
    NoCard {
        /// The pod.
        pod: PodId,
        /// The container.
        container: String,
        /// The card.
        card: CardId,
    },
    /// The pod's annotation has amounts that mean nothing.
    #[error("the allocation of container `{container}` of pod `{pod}` gives no memory on card `{card}`")]
    NoMemory {
        /// The pod.
        pod: PodId,
        /// The container.
        container: String,
        /// The card.
        card: CardId,
    },
}

/// A container whose limits do not fit the card that the kubelet took.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "container `{container}` of pod `{pod}` does not fit card `{card}`: {wanted} wanted, {free} free; \
     the kubelet took this card in place of `{instead_of}`"
)]
pub struct Shortfall {
    /// The pod.
    pub pod: PodId,
    /// The container.
    pub container: String,
    /// The card that is short.
    pub card: CardId,
    /// Amount wanted, with its unit.
    pub wanted: String,
    /// Amount free, with its unit.
    pub free: String,
    /// The cards that the scheduler chose.
    pub instead_of: String,
}

/// What the kubelet recorded about one grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Truth {
    /// Grant id out of the recorded answer; `None` when another plugin gave it.
    pub grant: Option<String>,
    /// Ids by the kubelet.
    pub ids: BTreeSet<String>,
    /// Cards that the recorded answer hands in; empty when it does not say.
    pub cards: Vec<CardId>,
    /// Whether the recorded answer mounts a grant.
    pub limited: bool,
    /// Owner by the kubelet.
    pub uid: PodUid,
    /// Container by the kubelet.
    pub container: String,
}

/// The outcome of [`Book::settle`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// Records that differ from the book's; to be stored and set.
    pub changed: Vec<Record>,
    /// Ids of the grants that the kubelet asked about.
    pub asked: Vec<String>,
    /// A container asked about whose booking has to move before its grant is
    /// sealed.
    pub moving: Option<(PodId, String)>,
}

/// One pod with what we derived.
#[derive(Debug, Clone)]
struct Known {
    view: PodView,
    protocol: Protocol,
    /// Entries that the scheduler wrote; `Err` when they do not parse.
    allocated: Option<Result<ClassAllocation, String>>,
    to_allocate: Option<Result<ClassAllocation, String>>,
    order: Order,
    /// The number of the change of booking that was this pod's last; 0 for none.
    moved: u64,
}

/// When the kubelet is expected to ask for a pod. Pods that were there before
/// us come in no order that means anything; their bind time is the witness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Order {
    Listed { bound: i64, created: i64, arrival: u64 },
    Watched { arrival: u64 },
}

impl Known {
    fn live(&self) -> bool {
        !self.view.phase.is_terminal()
    }

    /// What the scheduler gave to the container at `index`.
    fn entry(&self, index: usize) -> Option<&Vec<Share>> {
        let text = match self.protocol {
            Protocol::Own => self.allocated.as_ref().or(self.to_allocate.as_ref()),
            // The text to allocate is erased as it is served; what it still
            // names is what waits.
            Protocol::Hami => self.to_allocate.as_ref(),
        };
        text?.as_ref().ok()?.get(index).filter(|shares| !shares.is_empty())
    }

    /// The same from the text that is never erased.
    fn booked(&self, index: usize) -> Option<&Vec<Share>> {
        let text = self.allocated.as_ref().or(self.to_allocate.as_ref());
        text?.as_ref().ok()?.get(index).filter(|shares| !shares.is_empty())
    }
}

/// An annotation change that brings a pod in line with its grants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodWork {
    /// The pod.
    pub pod: PodId,
    /// Annotations to merge; empty when only the lock is left.
    pub annotations: BTreeMap<String, Option<String>>,
    /// Whether to release the node lock if this pod holds it.
    pub release_lock: bool,
}

/// The state.
#[derive(Debug, Default)]
pub struct Book {
    class: Option<Keyword>,
    cards: BTreeMap<CardId, Managed>,
    pods: BTreeMap<PodUid, Known>,
    records: BTreeMap<String, Record>,
    lock_owner: Option<(String, String)>,
    arrivals: u64,
    moves: u64,
    synced: bool,
}

impl Book {
    /// A book for one device class, whose entries in the annotations it reads.
    #[must_use]
    pub fn new(class: Keyword) -> Self {
        Self {
            class: Some(class),
            ..Self::default()
        }
    }

    /// Replaces the cards.
    pub fn set_cards(&mut self, cards: impl IntoIterator<Item = Managed>) {
        self.cards = cards.into_iter().map(|card| (card.card.id.clone(), card)).collect();
    }

    /// A card of this node.
    #[must_use]
    pub fn card(&self, id: &CardId) -> Option<&Managed> {
        self.cards.get(id)
    }

    /// Whether these shares have to be enforced: not so when each is a whole
    /// card.
    #[must_use]
    pub fn limits(&self, shares: &[Share]) -> bool {
        !shares.iter().all(|share| {
            self.cards
                .get(&share.card)
                .is_some_and(|card| card.is_whole(share.memory, share.cores))
        })
    }

    /// Names the pod that holds the node lock, if any: it is served first.
    pub fn set_lock_owner(&mut self, owner: Option<(String, String)>) {
        self.lock_owner = owner;
    }

    /// Whether the pods of this node were told once.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// Takes in the list of all pods of this node; others are gone.
    pub fn list_pods(&mut self, pods: Vec<PodView>) {
        self.synced = true;
        let listed: BTreeSet<PodUid> = pods.iter().map(|pod| pod.id.uid.clone()).collect();
        self.pods.retain(|uid, _| listed.contains(uid));
        for pod in pods {
            self.put_pod(pod, true);
        }
    }

    /// Takes in a pod of this node, new or changed.
    pub fn set_pod(&mut self, view: PodView) {
        self.put_pod(view, false);
    }

    fn put_pod(&mut self, view: PodView, listed: bool) {
        let class = self.class.clone();
        let parse = |key: &str| {
            view.annotation(key).map(|text| {
                device_text::parse_entries(text)
                    .map(|entries| only_class(entries, class.as_ref()))
                    .map_err(|error| error.to_string())
            })
        };
        let allocated = parse(keys::NVIDIA_ALLOCATED);
        let to_allocate = parse(keys::NVIDIA_TO_ALLOCATE);
        let protocol = if view.annotation(keys::TESSERA_SCHEDULER).is_some() {
            Protocol::Own
        } else {
            Protocol::Hami
        };
        let moved = match self.pods.get(&view.id.uid) {
            Some(known) if known.allocated == allocated => known.moved,
            Some(_) => {
                self.moves += 1;
                self.moves
            }
            None => 0,
        };
        let order = match self.pods.get(&view.id.uid) {
            Some(known) => known.order,
            None => {
                self.arrivals += 1;
                let arrival = self.arrivals;
                if listed {
                    let bound = view
                        .annotation(keys::BIND_TIME)
                        .and_then(|text| text.parse().ok())
                        .unwrap_or(i64::MAX);
                    Order::Listed {
                        bound,
                        created: view.created_at.unwrap_or(i64::MAX),
                        arrival,
                    }
                } else {
                    Order::Watched { arrival }
                }
            }
        };
        let uid = view.id.uid.clone();
        self.pods.insert(
            uid,
            Known {
                view,
                protocol,
                allocated,
                to_allocate,
                order,
                moved,
            },
        );
    }

    /// How many bookings of known pods changed so far: a mark for
    /// [`moved_since`](Self::moved_since).
    #[must_use]
    pub fn moves(&self) -> u64 {
        self.moves
    }

    /// Whether the booking of the pod that one of these grants is for changed
    /// after the mark was taken.
    #[must_use]
    pub fn moved_since(&self, mark: u64, grants: &[String]) -> bool {
        let records = grants.iter().filter_map(|id| self.records.get(id));
        let mut pods = records.filter_map(|record| self.pods.get(&record.pod.uid));
        pods.any(|known| known.moved > mark)
    }

    /// Takes in that a pod is gone. Its grants stay until they are removed.
    pub fn remove_pod(&mut self, uid: &PodUid) -> Option<PodView> {
        self.pods.remove(uid).map(|known| known.view)
    }

    /// Uids of the pods known.
    #[must_use]
    pub fn pod_uids(&self) -> BTreeSet<PodUid> {
        self.pods.keys().cloned().collect()
    }

    /// A pod by uid.
    #[must_use]
    pub fn pod(&self, uid: &PodUid) -> Option<&PodView> {
        self.pods.get(uid).map(|known| &known.view)
    }

    /// Whether the pod is known and not at its end.
    #[must_use]
    pub fn is_live(&self, uid: &PodUid) -> bool {
        self.pods.get(uid).is_some_and(Known::live)
    }

    /// The grants.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.values()
    }

    /// One grant.
    #[must_use]
    pub fn record(&self, id: &str) -> Option<&Record> {
        self.records.get(id)
    }

    /// Adds or replaces a grant.
    pub fn set_record(&mut self, record: Record) {
        self.records.insert(record.id.clone(), record);
    }

    /// Forgets a grant.
    pub fn remove_record(&mut self, id: &str) -> Option<Record> {
        self.records.remove(id)
    }

    /// A number above those of all grants.
    #[must_use]
    pub fn next_serial(&self) -> u64 {
        self.records
            .values()
            .map(|record| record.serial)
            .max()
            .unwrap_or(0)
            .saturating_add(1)
    }

    fn granted(&self, uid: &PodUid, container: &str) -> bool {
        self.records.values().any(|record| record.is_of(uid, container))
    }

    fn holds_lock(&self, pod: &PodId) -> bool {
        self.lock_owner
            .as_ref()
            .is_some_and(|(namespace, name)| *namespace == pod.namespace && *name == pod.name)
    }

    /// What is left to write about a pod; `None` when nothing is.
    #[must_use]
    pub fn work(&self, uid: &PodUid) -> Option<PodWork> {
        let known = self.pods.get(uid)?;
        let mut annotations = BTreeMap::new();
        if known.live()
            && let Some(text) = self.moved_text(known)
        {
            annotations.insert(keys::NVIDIA_ALLOCATED.to_owned(), Some(text));
        }
        let mut release_lock = false;
        if known.protocol == Protocol::Hami && known.view.annotation(keys::VGPU_NODE).is_some() {
            let phase = known.view.annotation(keys::BIND_PHASE);
            if known.view.phase.is_terminal() {
                if phase == Some(keys::PHASE_ALLOCATING) && !known.waits_for_nothing() {
                    annotations.insert(keys::BIND_PHASE.to_owned(), Some(keys::PHASE_FAILED.to_owned()));
                }
                release_lock = true;
            } else if self.all_granted(known) {
                if !known.waits_for_nothing() {
                    let empty = vec![Vec::new(); known.view.containers.len() + 1];
                    annotations.insert(keys::NVIDIA_TO_ALLOCATE.to_owned(), Some(device_text::print(&empty)));
                }
                if phase == Some(keys::PHASE_ALLOCATING) {
                    annotations.insert(keys::BIND_PHASE.to_owned(), Some(keys::PHASE_SUCCESS.to_owned()));
                }
                release_lock = true;
            }
        }
        release_lock = release_lock && self.holds_lock(&known.view.id);
        (release_lock || !annotations.is_empty()).then(|| PodWork {
            pod: known.view.id.clone(),
            annotations,
            release_lock,
        })
    }

    fn all_granted(&self, known: &Known) -> bool {
        let mut any = false;
        for (index, container) in known.view.containers.iter().enumerate() {
            if known.booked(index).is_none() {
                continue;
            }
            any = true;
            let waits = known.entry(index).is_some();
            if waits && !self.granted(&known.view.id.uid, &container.name) {
                return false;
            }
        }
        any
    }

    /// The allocated text with the grants that the kubelet put elsewhere.
    fn moved_text(&self, known: &Known) -> Option<String> {
        let Some(Ok(entries)) = &known.allocated else {
            return None;
        };
        let mut moved = false;
        let now: ClassAllocation = entries
            .iter()
            .enumerate()
            .map(|(index, entry)| {
                let grant = known.view.containers.get(index).and_then(|container| {
                    self.records
                        .values()
                        .filter(|record| record.is_of(&known.view.id.uid, &container.name))
                        .filter(|record| record.proven)
                        .max_by_key(|record| record.serial)
                });
                match grant {
                    // Cards are the kubelet's doing, amounts the scheduler's.
                    Some(record)
                        if !entry.is_empty()
                            && record.shares.len() == entry.len()
                            && record
                                .shares
                                .iter()
                                .zip(entry)
                                .any(|(given, booked)| given.card != booked.card) =>
                    {
                        moved = true;
                        let on_card = |(given, booked): (&Share, &Share)| Share {
                            card: given.card.clone(),
                            ..booked.clone()
                        };
                        record.shares.iter().zip(entry).map(on_card).collect()
                    }
                    _ => entry.clone(),
                }
            })
            .collect();
        // Readers find one entry more than there are containers, by the final
        // separator; it is not printed again.
        let count = now.len().min(known.view.containers.len().max(1));
        moved.then(|| device_text::print(now.get(..count).unwrap_or(&now)))
    }
}

impl Known {
    fn waits_for_nothing(&self) -> bool {
        match &self.to_allocate {
            Some(Ok(entries)) => entries.iter().all(Vec::is_empty),
            Some(Err(_)) => false,
            None => true,
        }
    }
}

fn only_class(entries: Vec<Vec<Share>>, class: Option<&Keyword>) -> ClassAllocation {
    entries
        .into_iter()
        .map(|entry| {
            entry
                .into_iter()
                .filter(|share| class.is_none_or(|class| share.class == *class))
                .collect()
        })
        .collect()
}

#[cfg(test)]
mod tests;
