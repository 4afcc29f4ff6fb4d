#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    reason = "tests"
)]

use super::*;
use crate::{CardGrant, GrantId, Owner, fs::create_grant_dir, swap_host::Mapping};

const MIB: u64 = 1 << 20;

struct Place {
    root: tempfile::TempDir,
    grant: Grant,
}

impl Place {
    fn new(cards: impl IntoIterator<Item = CardGrant>) -> Self {
        let root = tempfile::tempdir().unwrap();
        let mut grant = Grant::new(GrantId::from_bytes([7; 16]), "uid", "main").unwrap();
        grant.state = GrantState::Sealed;
        for card in cards {
            grant.push_card(card).unwrap();
        }
        create_grant_dir(root.path(), &grant).unwrap();
        Self { root, grant }
    }

    fn dir(&self) -> GrantDir {
        GrantDir::new(self.root.path(), self.grant.id)
    }

    fn resize(&self, change: impl FnOnce(&mut [CardGrant])) -> Result<Grant, ResizeError> {
        let mut new = read_grant(&self.dir()).unwrap();
        change(new.cards_mut());
        resize(self.root.path(), &mut new).map(|()| new)
    }

    /// Lets a program of the container hold so many bytes of a card.
    fn hold(&self, card: usize, bytes: u64) {
        self.with_account(|account| {
            let slot = account.attach(Owner::new(1, 1, 1).unwrap()).unwrap();
            account.reserve(slot, card, bytes, bytes).unwrap();
        });
    }

    #[allow(unsafe_code, reason = "looks at a mapping")]
    fn with_account<T>(&self, look: impl FnOnce(&Account) -> T) -> T {
        let mapping = Mapping::of(&self.dir().account_file(), ACCOUNT_SIZE).unwrap();
        // SAFETY: a fresh mapping of the full size.
        look(unsafe { Account::from_ptr(mapping.page()) }.unwrap())
    }

    fn limits(&self) -> [Option<u64>; 2] {
        self.with_account(|account| [account.limit(0), account.limit(1)])
    }
}

fn memory(card: &str, mib: u64) -> CardGrant {
    CardGrant::with_memory(card, mib * MIB).unwrap()
}

#[test]
fn a_share_is_raised_and_lowered_to_what_is_held() {
    let place = Place::new([memory("a", 100)]);
    place.hold(0, 60 * MIB);
    let raised = place.resize(|cards| cards[0].memory_bytes = 200 * MIB).unwrap();
    assert_eq!(raised.generation, 4);
    assert_eq!(place.limits()[0], Some(200 * MIB));
    let lowered = place.resize(|cards| cards[0].memory_bytes = 60 * MIB).unwrap();
    assert_eq!((lowered.generation, place.limits()[0]), (6, Some(60 * MIB)));
    assert_eq!(read_grant(&place.dir()).unwrap(), lowered);
    assert_eq!(held_bytes(&place.dir(), 0).unwrap(), 60 * MIB);
}

#[test]
fn below_what_is_held_nothing_changes_on_any_card() {
    let place = Place::new([memory("a", 100), memory("b", 100)]);
    place.hold(1, 60 * MIB);
    let before = read_grant(&place.dir()).unwrap();
    let error = place
        .resize(|cards| cards.iter_mut().for_each(|card| card.memory_bytes = 50 * MIB))
        .unwrap_err();
    let ResizeError::Held {
        card,
        wanted_bytes,
        held_bytes,
    } = error
    else {
        panic!("{error}")
    };
    assert_eq!((card.as_str(), wanted_bytes, held_bytes), ("b", 50 * MIB, 60 * MIB));
    assert_eq!(read_grant(&place.dir()).unwrap(), before);
    assert_eq!(place.limits(), [None, None]);
}

#[test]
fn what_cannot_be_held_to_is_refused() {
    let place = Place::new([memory("a", 100)]);
    let error = place.resize(|cards| cards[0].cores_permille = 300).unwrap_err();
    assert!(matches!(error, ResizeError::NoGate { .. }), "{error}");
    let gated = Place::new([CardGrant {
        cores_permille: 500,
        ..memory("a", 100)
    }]);
    assert_eq!(
        gated.resize(|cards| cards[0].cores_permille = 300).unwrap().cards()[0].cores_permille,
        300
    );
    let unlimited = Place::new([CardGrant::unlimited("a").unwrap()]);
    let error = unlimited.resize(|cards| cards[0] = memory("a", 10)).unwrap_err();
    assert!(matches!(error, ResizeError::Unlimited { .. }), "{error}");
    let error = place.resize(|cards| cards[0] = memory("other", 10)).unwrap_err();
    assert!(matches!(error, ResizeError::Files(FsError::CardsChanged(_))), "{error}");
}

#[test]
fn a_container_that_broke_its_account_keeps_what_it_has() {
    let place = Place::new([memory("a", 100)]);
    let before = read_grant(&place.dir()).unwrap();
    let file = OpenOptions::new().write(true).open(place.dir().account_file()).unwrap();
    file.set_len(0).unwrap();
    let error = place.resize(|cards| cards[0].memory_bytes = MIB).unwrap_err();
    assert!(matches!(error, ResizeError::Broken(_)), "{error}");
    // Long enough, and nothing in it.
    file.set_len(u64::try_from(ACCOUNT_SIZE).unwrap()).unwrap();
    let error = place.resize(|cards| cards[0].memory_bytes = MIB).unwrap_err();
    assert!(matches!(error, ResizeError::Broken(_)), "{error}");
    assert_eq!(read_grant(&place.dir()).unwrap(), before);
}

#[test]
fn a_resize_that_a_crash_cut_off_is_undone_at_the_next_start() {
    let place = Place::new([memory("a", 100)]);
    assert!(!finish(place.root.path(), place.grant.id).unwrap());
    place.with_account(|account| account.set_limit(0, 50 * MIB).unwrap());
    assert!(finish(place.root.path(), place.grant.id).unwrap());
    assert_eq!(place.limits()[0], Some(100 * MIB));
    assert!(!finish(place.root.path(), place.grant.id).unwrap());
}
