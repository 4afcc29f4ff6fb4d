//! What a pod was given, and what of it counts, in the room of its shares.
//!
//! A large cluster has hundreds of thousands of bookings, nearly all of one share. So the shares of all classes stand in
//! one block, and what most shares do not have is kept apart.

use tessera_types::{
    Allocation, Card, CardId, CardUsage, ContainerRole, Cores, Extras, Keyword, Mib, MigReservation, PodUsage, Share,
    effective_usage,
};

/// One share and its container.
#[derive(Debug, Clone, PartialEq, Eq)]
struct HeldShare {
    card: CardId,
    /// The class that the pod asked.
    class: Keyword,
    memory: Mib,
    cores: Cores,
    container: u16,
    more: Option<Box<More>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct More {
    /// Under which name the share is written, where that is not its class's.
    written_as: Keyword,
    extra: Extras,
}

impl HeldShare {
    fn new(class: &Keyword, container: usize, share: &Share) -> Self {
        let plain = share.class == *class && share.extra.is_none();
        Self {
            card: share.card.clone(),
            class: class.clone(),
            memory: share.memory,
            cores: share.cores,
            container: u16::try_from(container).unwrap_or(u16::MAX),
            more: (!plain).then(|| {
                Box::new(More {
                    written_as: share.class.clone(),
                    extra: share.extra,
                })
            }),
        }
    }

    fn extra(&self) -> Extras {
        self.more.as_ref().map_or(Extras::NONE, |more| more.extra)
    }

    fn usage(&self) -> CardUsage {
        CardUsage {
            slots: 1,
            memory: self.memory,
            cores: self.cores,
            extra: self.extra(),
        }
    }

    fn share(&self) -> Share {
        Share {
            card: self.card.clone(),
            class: self.more.as_ref().map_or(&self.class, |more| &more.written_as).clone(),
            memory: self.memory,
            cores: self.cores,
            extra: self.extra(),
        }
    }
}

/// What a pod was given and what of it counts now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Holding {
    /// By class, then by container.
    shares: Box<[HeldShare]>,
    mig: Box<[MigReservation]>,
    /// In the order of card ids. `None`: the shares are of different cards in that order, and count as they are.
    usage: Option<Box<PodUsage>>,
}

impl Holding {
    /// See [`effective_usage`] for the roles and `init_done`.
    pub(crate) fn new(allocation: &Allocation, roles: &[ContainerRole], init_done: bool) -> Self {
        let shares: Box<[HeldShare]> = allocation
            .classes
            .iter()
            .flat_map(|(class, containers)| {
                let numbered = containers.iter().enumerate();
                numbered.flat_map(move |(at, shares)| shares.iter().map(move |share| HeldShare::new(class, at, share)))
            })
            .collect();
        let effective = effective_usage(allocation, roles, init_done);
        let plain = shares.len() == effective.0.len()
            && shares.iter().zip(&effective.0).all(|(held, (card, (class, usage)))| {
                held.card == *card && held.class == *class && held.usage() == *usage
            });
        Self {
            shares,
            mig: allocation.mig.clone().into_boxed_slice(),
            usage: (!plain).then(|| Box::new(effective)),
        }
    }

    /// The shares in the order of classes and containers, each with its class and the position of its container.
    pub(crate) fn shares(&self) -> impl Iterator<Item = (&Keyword, usize, Share)> {
        self.shares
            .iter()
            .map(|held| (&held.class, usize::from(held.container), held.share()))
    }

    /// The classes of the shares and the cards, in the order of [`Holding::shares`].
    pub(crate) fn cards(&self) -> impl Iterator<Item = (&Keyword, &CardId)> {
        self.shares.iter().map(|held| (&held.class, &held.card))
    }

    pub(crate) fn mig(&self) -> &[MigReservation] {
        &self.mig
    }

    /// What counts of each card.
    pub(crate) fn usage(&self) -> impl Iterator<Item = (&CardId, &Keyword, CardUsage)> {
        let plain = self.shares.iter().filter(|_| self.usage.is_none());
        let plain = plain.map(|held| (&held.card, &held.class, held.usage()));
        let told = self.usage.iter().flat_map(|usage| &usage.0);
        plain.chain(told.map(|(card, (class, usage))| (card, class, *usage)))
    }

    /// Makes equal ids one text with those of the node's cards.
    pub(crate) fn share_ids(&mut self, cards: &[Card]) {
        for held in &mut self.shares {
            if let Some(card) = cards.iter().find(|card| card.id == held.card) {
                held.card = card.id.clone();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(card: &str, class: &str, memory: u64, extra: u64) -> Share {
        Share {
            card: CardId::new(card).unwrap(),
            class: Keyword::new(class).unwrap(),
            memory: Mib::new(memory),
            cores: Cores::new(10),
            extra: Extras::NONE.with(0, extra),
        }
    }

    #[test]
    fn shares_and_usage_are_those_of_the_allocation() {
        use ContainerRole::{App, Init};
        let cases: [(Vec<Vec<Share>>, &[ContainerRole]); 4] = [
            (vec![vec![share("a", "X", 100, 0)]], &[App]),
            (
                vec![vec![], vec![share("b", "X", 1, 0), share("a", "X", 2, 3)]],
                &[App, App],
            ),
            (
                vec![vec![share("a", "X", 5, 0)], vec![share("a", "X", 4, 0)]],
                &[Init, App],
            ),
            (vec![vec![share("a", "X-written", 7, 0)]], &[App]),
        ];
        for (containers, roles) in cases {
            let mut allocation = Allocation::default();
            allocation.classes.insert(Keyword::new("X").unwrap(), containers);
            for init_done in [false, true] {
                let holding = Holding::new(&allocation, roles, init_done);
                let held: Vec<(usize, Share)> = holding.shares().map(|(_, at, share)| (at, share)).collect();
                let given: Vec<(usize, Share)> = allocation.shares().map(|(at, share)| (at, share.clone())).collect();
                assert_eq!(held, given);
                let counted = PodUsage(
                    holding
                        .usage()
                        .map(|(card, class, usage)| (card.clone(), (class.clone(), usage)))
                        .collect(),
                );
                assert_eq!(counted, effective_usage(&allocation, roles, init_done));
            }
        }
    }

    #[test]
    fn the_common_share_is_as_small_as_it_looks() {
        assert_eq!(size_of::<HeldShare>(), 56);
    }
}
