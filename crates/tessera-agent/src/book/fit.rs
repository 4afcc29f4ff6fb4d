//! What live pods occupy of each card, and whether a change fits.

use std::collections::BTreeMap;

use super::{
    Allocation, Book, Candidate, CardId, ClassAllocation, Cores, Mib, NoOwner, PodUid, Share, Shortfall,
    effective_usage,
};

impl Book {
    /// Whether all bookings fit when the containers in `plan` get these shares.
    pub(super) fn fits(&self, plan: &[(PodUid, usize, Vec<Share>)]) -> Result<(), Short> {
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
                                .filter(|record| record.proven)
                                .max_by_key(|record| record.serial)
                                .map(|record| &record.shares)
                        })
                        .or_else(|| known.booked(index))
                        .cloned()
                        .unwrap_or_default()
                })
                .collect();
            let allocation = Allocation {
                classes: [(class.clone(), entries)].into_iter().collect(),
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
}

/// Which card has too little of what.
#[derive(Debug)]
pub(super) struct Short {
    card: CardId,
    wanted: String,
    free: String,
}

impl Short {
    pub(super) fn explain(&self, candidate: &Candidate, entry: &[Share]) -> NoOwner {
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
