//! Making grants true to the kubelet's record.

use std::collections::{BTreeMap, BTreeSet};

use super::fit::Short;
use super::{Book, Candidate, CardId, Cores, Extras, Mib, NoOwner, PodUid, Record, Settled, Share, Truth};

impl Book {
    /// Makes the grants of `ids` true to the kubelet's record. `truth` is the
    /// whole record of the resource; every unproven grant that it contradicts
    /// is put right in the same step, so that containers whose grants were
    /// exchanged both come out right. A grant that the kubelet remembers and we
    /// do not (the node was restarted) is made again. Returns the changed
    /// records; those for `ids` are sealed, unless the pod's booking has to
    /// follow first. Containers of another plugin's answers need nothing.
    ///
    /// A container that was given the cards of another one keeps them, and its
    /// booking moves there if its limits fit; nothing else would let it start,
    /// since the kubelet never asks twice. Otherwise it waits until they fit.
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
                let moves = !record.proven && !self.is_booked(record);
                if moves {
                    plan.push((record.pod.uid.clone(), record.index, record.shares.clone()));
                }
                if moves || (is_asked && !record.sealed) {
                    let proven = Record {
                        proven: true,
                        ..record.clone()
                    };
                    changed.insert(grant.to_owned(), proven);
                }
                continue;
            }
            if record.sealed || record.proven {
                if is_asked {
                    return Err(NoOwner::SealedForAnother {
                        pod: record.pod.clone(),
                        container: record.container.clone(),
                    });
                }
                continue;
            }
            match self.retarget(record, truth) {
                Ok(corrected) => {
                    plan.push((corrected.pod.uid.clone(), corrected.index, corrected.shares.clone()));
                    let proven = Record {
                        proven: true,
                        ..corrected
                    };
                    changed.insert(grant.to_owned(), proven);
                }
                Err(error) if is_asked => return Err(error),
                // It will be asked about by itself.
                Err(_) => {}
            }
        }
        if self.fits(&plan).is_err() {
            // Without the others it may fit; theirs is put right when asked.
            changed.retain(|id, _| wanted.contains(id.as_str()));
            plan.retain(|(uid, index, _)| {
                changed
                    .values()
                    .any(|record| record.pod.uid == *uid && record.index == *index)
            });
            if let Err(short) = self.fits(&plan) {
                return Err(self.explain(&short, &plan));
            }
        }
        let mut moving = None;
        for (id, record) in &mut changed {
            if !wanted.contains(id.as_str()) {
                continue;
            }
            record.sealed = self.is_booked(record);
            if !record.sealed {
                moving = Some((record.pod.clone(), record.container.clone()));
            }
        }
        // What is as it was needs no writing.
        changed.retain(|id, record| self.records.get(id) != Some(record));
        Ok(Settled {
            changed: changed.into_values().collect(),
            asked: wanted.into_iter().map(str::to_owned).collect(),
            moving,
        })
    }

    /// The cards that a waiting container is given, in its shares: its own,
    /// unless another container was given them by a wrong guess and there is not
    /// room for both. Then it gets what that one left behind.
    pub(super) fn room_for(&self, candidate: &Candidate, held: &[Truth]) -> Vec<Share> {
        let mut plan: Vec<(PodUid, usize, Vec<Share>)> = held
            .iter()
            .filter_map(|truth| {
                let record = self.records.get(truth.grant.as_deref()?)?;
                let meant = match record.is_of(&truth.uid, &truth.container) {
                    true => record.clone(),
                    false => self.retarget(record, truth).ok()?,
                };
                let moves = !record.proven && !self.is_booked(&meant);
                moves.then_some((meant.pod.uid, meant.index, meant.shares))
            })
            .collect();
        let vacated: Vec<Vec<CardId>> = plan
            .iter()
            .filter_map(|(uid, index, _)| self.pods.get(uid)?.booked(*index))
            .filter(|shares| shares.len() == candidate.shares.len())
            .map(|shares| shares.iter().map(|share| share.card.clone()).collect())
            .collect();
        let mut fits = |shares: &[Share]| {
            plan.push((candidate.pod.uid.clone(), candidate.index, shares.to_vec()));
            let fits = self.fits(&plan).is_ok();
            plan.pop();
            fits
        };
        if vacated.is_empty() || fits(&candidate.shares) {
            return candidate.shares.clone();
        }
        vacated
            .into_iter()
            .map(|cards| place_on(&candidate.shares, &cards))
            .find(|shares| fits(shares))
            .unwrap_or_else(|| candidate.shares.clone())
    }

    /// Whether the pod's annotation says what the grant says.
    pub(super) fn is_booked(&self, record: &Record) -> bool {
        self.pods
            .get(&record.pod.uid)
            .and_then(|known| known.booked(record.index))
            .is_none_or(|entry| *entry == record.shares)
    }

    /// A record in place of one that is lost, of nobody yet.
    fn placeholder(&self, grant: &str, truth: &Truth) -> Result<Record, NoOwner> {
        let cards = if truth.cards.is_empty() {
            let ids: Vec<String> = truth.ids.iter().cloned().collect();
            self.cards_of(&ids)?
        } else {
            truth.cards.clone()
        };
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
                    extra: Extras::NONE,
                })
                .collect(),
            limited: truth.limited,
            sealed: false,
            proven: false,
            serial: self.next_serial(),
            priority: None,
            resized: 0,
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

    /// The grant in the hands of whom the kubelet meant. Its cards stay: the
    /// kubelet has recorded the answer that names them.
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
        self.check(&candidate)?;
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
