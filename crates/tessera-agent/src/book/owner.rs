//! For which container an anonymous call is.
//!
//! Ids are tokens: they say how many cards are wanted, and hint at which. The
//! kubelet follows the preferred ids when it can; when it cannot (ids of a pod
//! that still dies, NUMA alignment, ids of an init container used again) the
//! container still gets the cards that the scheduler gave it, since nothing
//! else is booked for it.
//!
//! Witnesses, the strongest first: ids that another container of the pod holds;
//! the pods that the kubelet knows and that hold nothing yet, which is one pod
//! at a time, because the kubelet admits them one by one; cards that match; the
//! container for which ids were preferred last; the order in which pods were
//! bound. PreStartContainer proves or corrects what was found.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Book, CardId, Known, Mib, NoOwner, PodId, PodPhase, PodUid, Protocol, Share, Truth, keys};
use crate::slot;
use tessera_kubelet::PreferredRequest;

/// What the kubelet says at one moment.
#[derive(Debug, Clone, Default)]
pub struct KubeletView {
    /// Who holds what by its checkpoint; `None` when there is none to read.
    pub held: Option<Arc<[Truth]>>,
    /// Namespace and name of the pods that it knows; `None` when it was not
    /// asked or did not say.
    pub pods: Option<BTreeSet<(String, String)>>,
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

/// How likely the kubelet asks for a pod now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// It knows the pod and has admitted no part of it.
    Next,
    /// The same, and the pod is being deleted: it admits such pods too.
    Leaving,
    /// The pod was admitted before; a kubelet that lost its record asks again.
    Admitted,
    /// It does not know the pod yet.
    Unheard,
}

/// For whom ids were preferred. The kubelet allocates for that container next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// Its pod.
    pub pod: PodUid,
    /// Its name.
    pub container: String,
    /// Whether no other container can be meant.
    pub sure: bool,
}

/// The container an Allocate call is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The container with its own cards and limits.
    pub candidate: Candidate,
    /// Whether its cards are those of the ids.
    pub cards_match: bool,
    /// Whether waiting for more pods could not change the answer for the better.
    pub at_once: bool,
}

impl Book {
    /// The next waiting container of each pod with its standing, in the order in
    /// which the kubelet is expected to ask. A container waits until the kubelet
    /// has recorded ids for it: an answer that it did not record (it died in
    /// between) is void.
    #[must_use]
    pub fn waiting(&self, view: &KubeletView) -> Vec<(Standing, Candidate)> {
        let mut found: Vec<_> = self
            .pods
            .values()
            .filter(|known| known.waits())
            .filter_map(|known| {
                let candidate = self.next_of(known, view)?;
                let order = (standing(known, view), !self.holds_lock(&known.view.id), known.order);
                Some((order, candidate))
            })
            .collect();
        found.sort_by_key(|(order, _)| *order);
        found
            .into_iter()
            .map(|((standing, ..), candidate)| (standing, candidate))
            .collect()
    }

    fn next_of(&self, known: &Known, view: &KubeletView) -> Option<Candidate> {
        known.view.containers.iter().enumerate().find_map(|(index, container)| {
            let uid = &known.view.id.uid;
            let answered = self.granted(uid, &container.name);
            let shares = match known.entry(index) {
                // HAMi's text is emptied once all is answered.
                None if answered => known.booked(index)?,
                entry => entry?,
            };
            if self.holds(uid, &container.name, view) {
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

    /// Whether the kubelet has recorded ids for the container. Without its
    /// record an answer counts as recorded.
    fn holds(&self, uid: &PodUid, container: &str, view: &KubeletView) -> bool {
        match &view.held {
            Some(held) => held.iter().any(|one| one.uid == *uid && one.container == container),
            None => self.granted(uid, container),
        }
    }

    /// Answers the kubelet's wish: for each request ids of the cards of the
    /// expected container, as far as they are free, and whom that is. A request
    /// that nobody waits for ends the list.
    #[must_use]
    pub fn preferred(&self, requests: &[PreferredRequest], view: &KubeletView) -> (Vec<Vec<String>>, Vec<Expected>) {
        let mut waiting = self.waiting(view);
        let (mut answers, mut expected) = (Vec::new(), Vec::new());
        for request in requests {
            let size = |(_, candidate): &(Standing, Candidate)| candidate.shares.len() == request.size;
            let reused = self.reusing(&request.must_include, view).and_then(|uid| {
                waiting
                    .iter()
                    .position(|one| one.1.pod.uid == uid && one.1.shares.len() == request.size)
            });
            let Some(at) = reused.or_else(|| waiting.iter().position(size)) else {
                break;
            };
            let sure = reused.is_some() || alone(&waiting, view);
            let (_, candidate) = waiting.remove(at);
            let Some(ids) = prefer(&candidate.shares, request) else {
                break;
            };
            answers.push(ids);
            expected.push(Expected {
                pod: candidate.pod.uid,
                container: candidate.container,
                sure,
            });
        }
        (answers, expected)
    }

    /// Whether the container of a request of this size is there already.
    #[must_use]
    pub fn expects(&self, size: usize, view: &KubeletView) -> bool {
        self.waiting(view)
            .iter()
            .any(|(standing, candidate)| *standing != Standing::Unheard && candidate.shares.len() == size)
    }

    /// The pod one of whose containers holds some of these ids and that still
    /// waits for more: only ids of ordinary init containers are used twice, and
    /// only within their pod.
    fn reusing(&self, ids: &[String], view: &KubeletView) -> Option<PodUid> {
        let held = view.held.as_ref()?;
        held.iter()
            .filter(|one| ids.iter().any(|id| one.ids.contains(id)))
            .map(|one| &one.uid)
            .find(|uid| {
                let known = self.pods.get(*uid);
                known.is_some_and(|known| known.waits() && self.next_of(known, view).is_some())
            })
            .cloned()
    }

    /// The container that an Allocate call is for. It gets the cards and limits
    /// of its own entry, whatever cards the ids name (see `room_for` for
    /// the one exception).
    ///
    /// # Errors
    /// Nobody waits for this number of cards, or what the container was given
    /// cannot be granted.
    pub fn choose(&self, ids: &[String], view: &KubeletView, expected: &[Expected]) -> Result<Choice, NoOwner> {
        let mut waiting = self.waiting(view);
        let size = |(_, candidate): &(Standing, Candidate)| candidate.shares.len() == ids.len();
        let lone = alone(&waiting, view) && waiting.first().is_some_and(size);
        waiting.retain(size);
        let cards = self.cards_of(ids);
        let matches = |candidate: &Candidate| cards.as_ref().is_ok_and(|cards| same_cards(&candidate.shares, cards));
        let reused = self.reusing(ids, view);
        let is_expected = |one: &Expected, candidate: &Candidate| {
            one.pod == candidate.pod.uid && one.container == candidate.container
        };
        let find = |wanted: &dyn Fn(&Candidate) -> bool| {
            waiting
                .iter()
                .map(|(_, candidate)| candidate)
                .find(|candidate| wanted(candidate))
        };
        let proof = find(&|candidate| reused.as_ref() == Some(&candidate.pod.uid))
            .or_else(|| find(&|candidate| expected.iter().any(|one| one.sure && is_expected(one, candidate))));
        let certain = proof.or_else(|| lone.then(|| find(&|_| true)).flatten());
        let (candidate, at_once) = match certain.or_else(|| find(&matches)) {
            Some(candidate) => (candidate, true),
            None => match find(&|candidate| expected.iter().any(|one| is_expected(one, candidate))) {
                Some(candidate) => (candidate, false),
                None => match find(&|_| true) {
                    Some(candidate) => (candidate, false),
                    None => return self.again(ids, view).ok_or_else(|| self.nobody(ids)),
                },
            },
        };
        self.check(candidate)?;
        let shares = self.room_for(candidate, view.held.as_deref().unwrap_or_default());
        let candidate = Candidate {
            shares,
            ..candidate.clone()
        };
        Ok(Choice {
            cards_match: matches(&candidate),
            candidate,
            at_once,
        })
    }

    /// Without the kubelet's record, the container that was answered with these
    /// very ids may be asked for again.
    fn again(&self, ids: &[String], view: &KubeletView) -> Option<Choice> {
        let ids: BTreeSet<String> = ids.iter().cloned().collect();
        let record = self
            .records
            .values()
            .filter(|record| view.held.is_none() && record.ids == ids && self.is_live(&record.pod.uid))
            .max_by_key(|record| record.serial)?;
        Some(Choice {
            candidate: Candidate {
                pod: record.pod.clone(),
                container: record.container.clone(),
                index: record.index,
                shares: record.shares.clone(),
            },
            cards_match: true,
            at_once: false,
        })
    }

    /// Why nobody waits for these ids.
    fn nobody(&self, ids: &[String]) -> NoOwner {
        if let Err(unknown) = self.cards_of(ids) {
            return unknown;
        }
        let unreadable = self.pods.values().find_map(|known| {
            let text = known.allocated.as_ref().or(known.to_allocate.as_ref())?;
            let error = text.as_ref().err()?;
            known.waits().then(|| NoOwner::Unreadable {
                pod: known.view.id.clone(),
                error: error.clone(),
            })
        });
        unreadable.unwrap_or(NoOwner::Nobody { count: ids.len() })
    }

    /// Cards of the ids, in their order.
    ///
    /// # Errors
    /// An id of no card of this node.
    pub(super) fn cards_of(&self, ids: &[String]) -> Result<Vec<CardId>, NoOwner> {
        ids.iter()
            .map(|id| {
                CardId::new(slot::card_of(id))
                    .ok()
                    .filter(|card| self.cards.contains_key(card))
                    .ok_or_else(|| NoOwner::UnknownId { id: id.clone() })
            })
            .collect()
    }

    /// Whether what the entry promises can be granted here.
    pub(super) fn check(&self, candidate: &Candidate) -> Result<(), NoOwner> {
        for share in &candidate.shares {
            let at = || (candidate.pod.clone(), candidate.container.clone(), share.card.clone());
            if share.memory == Mib::ZERO {
                let (pod, container, card) = at();
                return Err(NoOwner::NoMemory { pod, container, card });
            }
            if !self.cards.contains_key(&share.card) {
                let (pod, container, card) = at();
                return Err(NoOwner::NoCard { pod, container, card });
            }
        }
        Ok(())
    }
}

impl Known {
    /// Whether the kubelet may ask for this pod. Pods being deleted count: the
    /// kubelet admits them like others.
    fn waits(&self) -> bool {
        if !self.live() {
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
}

fn standing(known: &Known, view: &KubeletView) -> Standing {
    let id = &known.view.id;
    let heard = view
        .pods
        .as_ref()
        .is_none_or(|pods| pods.contains(&(id.namespace.clone(), id.name.clone())));
    match (heard, known.view.phase, known.view.deleting) {
        (false, ..) => Standing::Unheard,
        (true, PodPhase::Pending, false) => Standing::Next,
        (true, PodPhase::Pending, true) => Standing::Leaving,
        (true, ..) => Standing::Admitted,
    }
}

/// Whether the kubelet said which pods it knows, and exactly one of them is
/// next.
fn alone(waiting: &[(Standing, Candidate)], view: &KubeletView) -> bool {
    view.pods.is_some() && {
        let best = waiting.first().map(|(standing, _)| *standing);
        best.is_some_and(|best| best != Standing::Unheard)
            && waiting.iter().filter(|(standing, _)| Some(*standing) == best).count() == 1
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

/// Ids for one request: what must be included counts, then the first free id of
/// each card. A card without a free id is served by one of the card with the
/// most free ids, so that no other card runs out soon. `None` when too few ids
/// are free.
fn prefer(shares: &[Share], request: &PreferredRequest) -> Option<Vec<String>> {
    let mut out = request.must_include.clone();
    let mut counted = vec![false; request.must_include.len()];
    let mut short = 0_usize;
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
            .find(|id| slot::card_of(id) == share.card.as_str() && !out.contains(id));
        match id {
            Some(id) => out.push(id.clone()),
            None => short += 1,
        }
    }
    // Included ids of other cards stand for some of the cards that are short.
    let spare = request.size.saturating_sub(out.len()).min(short);
    for _ in 0..spare {
        let free: Vec<&String> = request.available.iter().filter(|id| !out.contains(id)).collect();
        let most = free.iter().max_by_key(|id| {
            let card = slot::card_of(id);
            free.iter().filter(|other| slot::card_of(other) == card).count()
        })?;
        out.push((**most).clone());
    }
    out.truncate(request.size.max(request.must_include.len()));
    (out.len() == request.size).then_some(out)
}
