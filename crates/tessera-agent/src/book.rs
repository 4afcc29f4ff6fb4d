//! Who owns what: pods of this node, the grants made, and the rules that tie
//! an anonymous kubelet call to one container.
//!
//! The kubelet names ids, never a pod. Ids name cards; pods waiting for cards
//! are known from the API server, in the order in which they were bound, which
//! is the order in which the kubelet admits them. That gives a *provisional*
//! owner. Before the container starts the kubelet has recorded whom it meant,
//! and [`Book::settle`] makes the grant true to that record or refuses.
//!
//! Pure: no files, no clock, no server.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tessera_kubelet::PreferredRequest;
use tessera_region::GrantId;
use tessera_types::{Allocation, CardId, ClassAllocation, Cores, Keyword, Mib, PodId, PodUid, Share, effective_usage};
use tessera_wire::{PodPhase, PodView, device_text, keys};

use crate::cards::Managed;
use crate::slot;

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
    pub sealed: bool,
    /// Counts containers of one record: later grants have higher numbers.
    pub serial: u64,
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

/// A container that waits for its cards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its pod.
    pub pod: PodId,
    /// Its name.
    pub container: String,
    /// Its position.
    pub index: usize,
    /// Its entry.
    pub shares: Vec<Share>,
}

/// How an Allocate call found its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// A waiting container whose entry names these cards.
    Exact(Candidate),
    /// The kubelet forgot its record and asks again for the same ids.
    Again(Candidate),
    /// A waiting container of other cards whose limits fit these.
    Moved {
        /// With its shares already on the new cards.
        candidate: Candidate,
        /// The cards that its entry names.
        from: Vec<CardId>,
    },
}

impl Choice {
    /// The container, with the shares it gets.
    #[must_use]
    pub fn candidate(&self) -> &Candidate {
        match self {
            Self::Exact(candidate) | Self::Again(candidate) | Self::Moved { candidate, .. } => candidate,
        }
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
    /// Two ids of one card for one container.
    #[error("the kubelet took two slots of card `{card}` for one container, which holds a card once; delete the pod")]
    SameCardTwice {
        /// The card.
        card: CardId,
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

    fn waits(&self) -> bool {
        if !self.live() || self.view.deleting {
            return false;
        }
        match self.protocol {
            Protocol::Own => true,
            Protocol::Hami => {
                let phase = self.view.annotation(keys::BIND_PHASE);
                self.view.annotation(keys::BIND_TIME).is_some()
                    && matches!(phase, Some(keys::PHASE_ALLOCATING | keys::PHASE_SUCCESS))
            }
        }
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

    /// Takes in the list of all pods of this node; others are gone.
    pub fn list_pods(&mut self, pods: Vec<PodView>) {
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
            },
        );
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

    /// The next waiting container of each pod, in the order in which the
    /// kubelet is expected to ask.
    #[must_use]
    pub fn candidates(&self) -> Vec<Candidate> {
        let mut pods: Vec<&Known> = self.pods.values().filter(|known| known.waits()).collect();
        // A running pod is admitted; only a kubelet that lost its record asks
        // for it again.
        pods.sort_by_key(|known| {
            let pending = known.view.phase == PodPhase::Pending;
            (!pending, !self.holds_lock(&known.view.id), known.order)
        });
        pods.into_iter().filter_map(|known| self.next_of(known)).collect()
    }

    fn holds_lock(&self, pod: &PodId) -> bool {
        self.lock_owner
            .as_ref()
            .is_some_and(|(namespace, name)| *namespace == pod.namespace && *name == pod.name)
    }

    fn next_of(&self, known: &Known) -> Option<Candidate> {
        known.view.containers.iter().enumerate().find_map(|(index, container)| {
            let shares = known.entry(index)?;
            if self.granted(&known.view.id.uid, &container.name) {
                return None;
            }
            Some(Candidate {
                pod: known.view.id.clone(),
                container: container.name.clone(),
                index,
                shares: shares.clone(),
            })
        })
    }

    /// Answers the kubelet's wish: ids of the cards of the expected container.
    /// A request that cannot be served has no element.
    #[must_use]
    pub fn preferred(&self, requests: &[PreferredRequest]) -> Vec<Vec<String>> {
        let candidates = self.candidates();
        let mut waiting: Vec<&Candidate> = candidates.iter().collect();
        requests
            .iter()
            .filter_map(|request| {
                let at = waiting
                    .iter()
                    .position(|candidate| candidate.shares.len() == request.size)?;
                prefer(&waiting.remove(at).shares, request)
            })
            .collect()
    }

    /// Whether a request of this size has an expected container.
    #[must_use]
    pub fn expects(&self, size: usize) -> bool {
        self.candidates().iter().any(|candidate| candidate.shares.len() == size)
    }

    /// Cards of the ids, each known and named once.
    ///
    /// # Errors
    /// An id of no card of this node, or two of one card.
    pub fn cards_of(&self, ids: &[String]) -> Result<Vec<CardId>, NoOwner> {
        let mut cards = Vec::with_capacity(ids.len());
        for id in ids {
            let card = CardId::new(slot::card_of(id))
                .ok()
                .filter(|card| self.cards.contains_key(card))
                .ok_or_else(|| NoOwner::UnknownId { id: id.clone() })?;
            if cards.contains(&card) {
                return Err(NoOwner::SameCardTwice { card });
            }
            cards.push(card);
        }
        Ok(cards)
    }

    /// The owner of an Allocate call whose entry names the cards of `ids`, or
    /// who holds exactly these ids already.
    ///
    /// # Errors
    /// Nobody, or an unknown id.
    pub fn choose_exact(&self, ids: &[String]) -> Result<Choice, NoOwner> {
        let cards = self.cards_of(ids)?;
        let exact = self
            .candidates()
            .into_iter()
            .find(|candidate| same_cards(&candidate.shares, &cards));
        if let Some(candidate) = exact {
            check_amounts(&candidate)?;
            return Ok(Choice::Exact(candidate));
        }
        let ids: BTreeSet<&String> = ids.iter().collect();
        self.records
            .values()
            .filter(|record| record.ids.iter().collect::<BTreeSet<_>>() == ids)
            .filter(|record| self.is_live(&record.pod.uid))
            .max_by_key(|record| record.serial)
            .map(|record| {
                Choice::Again(Candidate {
                    pod: record.pod.clone(),
                    container: record.container.clone(),
                    index: record.index,
                    shares: record.shares.clone(),
                })
            })
            .ok_or(NoOwner::Nobody { count: cards.len() })
    }

    /// The owner of an Allocate call whose cards nobody waits for: the first
    /// waiting container of that number whose limits fit them.
    ///
    /// # Errors
    /// Nobody, an unknown id, or no fit (named for the first candidate).
    pub fn choose_moved(&self, ids: &[String]) -> Result<Choice, NoOwner> {
        let cards = self.cards_of(ids)?;
        let mut first_error = None;
        for candidate in self.candidates() {
            if candidate.shares.len() != cards.len() {
                continue;
            }
            check_amounts(&candidate)?;
            let from: Vec<CardId> = candidate.shares.iter().map(|share| share.card.clone()).collect();
            let mut moved = candidate.clone();
            moved.shares = place_on(&candidate.shares, &cards);
            let plan = [(moved.pod.uid.clone(), moved.index, moved.shares.clone())];
            match self.fits(&plan) {
                Ok(()) => return Ok(Choice::Moved { candidate: moved, from }),
                Err(short) => {
                    first_error.get_or_insert_with(|| short.explain(&moved, &candidate.shares));
                }
            }
        }
        Err(first_error.unwrap_or(NoOwner::Nobody { count: cards.len() }))
    }

    /// Makes the grants of `ids` true to the kubelet's record. `truth` is the
    /// whole record of the resource; every unsealed grant that it contradicts
    /// is put right in the same step, so that containers whose grants were
    /// exchanged both come out right. A grant that the kubelet remembers and we
    /// do not (the node was restarted) is made again. Returns the changed
    /// records; those for `ids` are sealed. Containers of another plugin's
    /// answers need nothing.
    ///
    /// # Errors
    /// The record does not name the ids, names an unknown pod, or the true
    /// owner's limits do not fit. Nothing is changed then.
    pub fn settle(&self, ids: &BTreeSet<String>, truth: &[Truth]) -> Result<Settled, NoOwner> {
        let asked: Vec<&Truth> = truth
            .iter()
            .filter(|truth| truth.ids == *ids && !self.ended(&truth.uid))
            .collect();
        if asked.is_empty() {
            return Err(NoOwner::NoRecord);
        }
        let wanted: BTreeSet<&str> = asked.iter().filter_map(|truth| truth.grant.as_deref()).collect();
        let mut changed: BTreeMap<String, Record> = BTreeMap::new();
        let mut plan = Vec::new();
        for truth in truth {
            let Some(grant) = truth.grant.as_deref() else { continue };
            let is_asked = wanted.contains(grant);
            let forgotten;
            let record = match self.records.get(grant) {
                Some(record) => record,
                None if is_asked => {
                    forgotten = self.placeholder(grant, truth)?;
                    &forgotten
                }
                None => continue,
            };
            if record.is_of(&truth.uid, &truth.container) {
                if is_asked && !record.sealed {
                    changed.insert(
                        grant.to_owned(),
                        Record {
                            sealed: true,
                            ..record.clone()
                        },
                    );
                }
                continue;
            }
            if record.sealed {
                if is_asked {
                    return Err(NoOwner::SealedForAnother {
                        pod: record.pod.clone(),
                        container: record.container.clone(),
                    });
                }
                continue;
            }
            match self.retarget(record, truth) {
                Ok(mut corrected) => {
                    plan.push((corrected.pod.uid.clone(), corrected.index, corrected.shares.clone()));
                    corrected.sealed = is_asked;
                    changed.insert(grant.to_owned(), corrected);
                }
                Err(error) if is_asked => return Err(error),
                // It will be asked about by itself.
                Err(_) => {}
            }
        }
        if self.fits(&plan).is_err() {
            // Without the others it may fit; theirs is put right when asked.
            changed.retain(|_, record| record.sealed);
            plan.retain(|(uid, index, _)| {
                changed
                    .values()
                    .any(|record| record.pod.uid == *uid && record.index == *index)
            });
            if let Err(short) = self.fits(&plan) {
                return Err(self.explain(&short, &plan));
            }
        }
        let asked = wanted.into_iter().map(str::to_owned).collect();
        Ok(Settled {
            changed: changed.into_values().collect(),
            asked,
        })
    }

    /// A record in place of one that is lost, of nobody yet.
    fn placeholder(&self, grant: &str, truth: &Truth) -> Result<Record, NoOwner> {
        let ids: Vec<String> = truth.ids.iter().cloned().collect();
        let cards = self.cards_of(&ids)?;
        let class = self.class.clone().ok_or(NoOwner::NoRecord)?;
        let pod = self.pods.get(&truth.uid).map(|known| known.view.id.clone());
        Ok(Record {
            id: grant.to_owned(),
            ids: truth.ids.clone(),
            pod: pod.ok_or_else(|| NoOwner::UnknownPod {
                uid: truth.uid.to_string(),
            })?,
            // No container has this name.
            container: String::new(),
            index: usize::MAX,
            shares: cards
                .into_iter()
                .map(|card| Share {
                    card,
                    class: class.clone(),
                    memory: Mib::ZERO,
                    cores: Cores::ZERO,
                })
                .collect(),
            limited: truth.limited,
            sealed: false,
            serial: self.next_serial(),
        })
    }

    fn explain(&self, short: &Short, plan: &[(PodUid, usize, Vec<Share>)]) -> NoOwner {
        let about = plan.iter().find_map(|(uid, index, shares)| {
            let known = self.pods.get(uid)?;
            let candidate = Candidate {
                pod: known.view.id.clone(),
                container: known.view.containers.get(*index)?.name.clone(),
                index: *index,
                shares: shares.clone(),
            };
            Some(short.explain(&candidate, known.booked(*index)?))
        });
        about.unwrap_or(NoOwner::NoRecord)
    }

    fn ended(&self, uid: &PodUid) -> bool {
        self.pods.get(uid).is_some_and(|known| !known.live())
    }

    fn retarget(&self, record: &Record, truth: &Truth) -> Result<Record, NoOwner> {
        let known = self.pods.get(&truth.uid).ok_or_else(|| NoOwner::UnknownPod {
            uid: truth.uid.to_string(),
        })?;
        let no_entry = || NoOwner::NoEntry {
            pod: known.view.id.clone(),
            container: truth.container.clone(),
        };
        let index = known
            .view
            .containers
            .iter()
            .position(|container| container.name == truth.container)
            .ok_or_else(no_entry)?;
        let shares = known.booked(index).ok_or_else(no_entry)?;
        let cards: Vec<CardId> = record.shares.iter().map(|share| share.card.clone()).collect();
        if shares.len() != cards.len() {
            return Err(no_entry());
        }
        let candidate = Candidate {
            pod: known.view.id.clone(),
            container: truth.container.clone(),
            index,
            shares: place_on(shares, &cards),
        };
        check_amounts(&candidate)?;
        if !record.limited && self.limits(&candidate.shares) {
            return Err(NoOwner::NoLibrary {
                pod: candidate.pod,
                container: candidate.container,
            });
        }
        Ok(Record {
            pod: candidate.pod,
            container: candidate.container,
            index,
            shares: candidate.shares,
            ..record.clone()
        })
    }

    /// Whether all bookings fit when the containers in `plan` get these shares.
    fn fits(&self, plan: &[(PodUid, usize, Vec<Share>)]) -> Result<(), Short> {
        let before = self.usage(&[]);
        let after = self.usage(plan);
        for (card, (slots, memory, cores)) in &after {
            let Some(capacity) = self.cards.get(card) else { continue };
            let (slots_before, memory_before, cores_before) =
                before.get(card).copied().unwrap_or((0, Mib::ZERO, Cores::ZERO));
            let capacity = &capacity.card;
            let short = |what, wanted: u64, free: u64| Short {
                card: card.clone(),
                wanted: format!("{wanted} {what}"),
                free: format!("{free} {what}"),
            };
            // A card that was over-booked before is not made our problem.
            if *memory > capacity.memory && *memory > memory_before {
                return Err(short(
                    "MiB",
                    memory.saturating_sub(memory_before).get(),
                    capacity.memory.saturating_sub(memory_before).get(),
                ));
            }
            if *cores > capacity.cores && *cores > cores_before {
                return Err(short(
                    "% of the cores",
                    u64::from(cores.saturating_sub(cores_before).get()),
                    u64::from(capacity.cores.saturating_sub(cores_before).get()),
                ));
            }
            if *slots > capacity.slots && *slots > slots_before {
                return Err(short(
                    "slots",
                    u64::from(*slots - slots_before),
                    u64::from(capacity.slots.saturating_sub(slots_before)),
                ));
            }
        }
        Ok(())
    }

    /// What live pods occupy of each card, with `plan` in place of their own
    /// entries and grants.
    fn usage(&self, plan: &[(PodUid, usize, Vec<Share>)]) -> BTreeMap<CardId, (u32, Mib, Cores)> {
        let mut total: BTreeMap<CardId, (u32, Mib, Cores)> = BTreeMap::new();
        let Some(class) = &self.class else { return total };
        for known in self.pods.values().filter(|known| known.live()) {
            let entries: ClassAllocation = known
                .view
                .containers
                .iter()
                .enumerate()
                .map(|(index, container)| {
                    let uid = &known.view.id.uid;
                    plan.iter()
                        .find(|(other, at, _)| other == uid && *at == index)
                        .map(|(_, _, shares)| shares)
                        .or_else(|| {
                            self.records
                                .values()
                                .filter(|record| record.is_of(uid, &container.name))
                                .filter(|record| record.sealed)
                                .max_by_key(|record| record.serial)
                                .map(|record| &record.shares)
                        })
                        .or_else(|| known.booked(index))
                        .cloned()
                        .unwrap_or_default()
                })
                .collect();
            let allocation = Allocation {
                classes: [(class.clone(), entries)].into(),
                mig: Vec::new(),
            };
            let usage = effective_usage(&allocation, &known.view.roles(), known.view.init_done);
            for (card, (_, usage)) in usage.0 {
                let sum = total.entry(card).or_insert((0, Mib::ZERO, Cores::ZERO));
                sum.0 = sum.0.saturating_add(usage.slots);
                sum.1 = sum.1.saturating_add(usage.memory);
                sum.2 = sum.2.saturating_add(usage.cores);
            }
        }
        total
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
                        .filter(|record| record.sealed)
                        .max_by_key(|record| record.serial)
                });
                match grant {
                    Some(record) if !entry.is_empty() && record.shares != *entry => {
                        moved = true;
                        record.shares.clone()
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

/// Which card has too little of what.
#[derive(Debug)]
struct Short {
    card: CardId,
    wanted: String,
    free: String,
}

impl Short {
    fn explain(&self, candidate: &Candidate, entry: &[Share]) -> NoOwner {
        NoOwner::DoesNotFit(Box::new(Shortfall {
            pod: candidate.pod.clone(),
            container: candidate.container.clone(),
            card: self.card.clone(),
            wanted: self.wanted.clone(),
            free: self.free.clone(),
            instead_of: entry
                .iter()
                .map(|share| share.card.to_string())
                .collect::<Vec<_>>()
                .join(", "),
        }))
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

fn check_amounts(candidate: &Candidate) -> Result<(), NoOwner> {
    match candidate.shares.iter().find(|share| share.memory == Mib::ZERO) {
        None => Ok(()),
        Some(share) => Err(NoOwner::NoMemory {
            pod: candidate.pod.clone(),
            container: candidate.container.clone(),
            card: share.card.clone(),
        }),
    }
}

/// Whether the shares are on exactly these cards, each as often.
fn same_cards(shares: &[Share], cards: &[CardId]) -> bool {
    let mut left: Vec<&CardId> = shares.iter().map(|share| &share.card).collect();
    left.len() == cards.len()
        && cards
            .iter()
            .all(|card| match left.iter().position(|other| *other == card) {
                Some(at) => {
                    left.swap_remove(at);
                    true
                }
                None => false,
            })
}

/// The shares on these cards: a share whose card is among them stays there,
/// the others take the rest in order.
fn place_on(shares: &[Share], cards: &[CardId]) -> Vec<Share> {
    let mut rest: Vec<&CardId> = cards.iter().collect();
    let mut kept = vec![false; shares.len()];
    for (share, kept) in shares.iter().zip(&mut kept) {
        if let Some(at) = rest.iter().position(|card| **card == share.card) {
            rest.remove(at);
            *kept = true;
        }
    }
    let mut rest = rest.into_iter();
    shares
        .iter()
        .zip(kept)
        .map(|(share, kept)| {
            let card = if kept { None } else { rest.next() };
            Share {
                card: card.unwrap_or(&share.card).clone(),
                ..share.clone()
            }
        })
        .collect()
}

/// Ids for one request: what must be included counts, the rest is the first
/// free id of each card.
fn prefer(shares: &[Share], request: &PreferredRequest) -> Option<Vec<String>> {
    let mut out = request.must_include.clone();
    let mut counted = vec![false; request.must_include.len()];
    for share in shares.iter().take(request.size) {
        let included = request
            .must_include
            .iter()
            .zip(&mut counted)
            .find(|(id, counted)| !**counted && slot::card_of(id) == share.card.as_str());
        if let Some((_, counted)) = included {
            *counted = true;
            continue;
        }
        let id = request
            .available
            .iter()
            .find(|id| slot::card_of(id) == share.card.as_str() && !out.contains(id))?;
        out.push(id.clone());
    }
    (out.len() == request.size).then_some(out)
}

#[cfg(test)]
mod tests;
