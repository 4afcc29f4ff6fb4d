#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "tests")]

use proptest::prelude::*;

use super::*;

fn sample() -> Grant {
    let mut grant = Grant::new(GrantId::from_bytes(*b"0123456789abcdef"), "8f6b-uid", "trainer").unwrap();
    grant.generation = 6;
    grant.state = GrantState::Sealed;
    let mut card = CardGrant::with_memory("GPU-11111111-2222-3333-4444-555555555555", 4 << 30).unwrap();
    card.cores_permille = 300;
    card.min_cores_permille = 10;
    card.priority = 100;
    card.context_bytes = 300 << 20;
    card.flags = CardFlags::CORE_CAP.with(CardFlags::COUNT_CONTEXT);
    grant.push_card(card).unwrap();
    grant.push_card(CardGrant::unlimited("MIG-9d0c").unwrap()).unwrap();
    grant
}

fn rechecked(mut bytes: [u8; GRANT_SIZE]) -> [u8; GRANT_SIZE] {
    bytes[AT_CRC..AT_CRC + 4].fill(0);
    let crc = crc32(&bytes).to_le_bytes();
    bytes[AT_CRC..AT_CRC + 4].copy_from_slice(&crc);
    bytes
}

#[test]
fn what_is_written_is_read() {
    let grant = sample();
    assert_eq!(Grant::parse(&grant.encode()), Ok(grant));
}

#[test]
fn every_damaged_byte_is_noticed() {
    let good = sample().encode();
    for at in 0..GRANT_SIZE {
        let mut bad = good;
        bad[at] ^= 0x10;
        assert!(Grant::parse(&bad).is_err(), "byte {at}");
    }
}

#[test]
fn each_reason_is_named() {
    let good = sample().encode();
    let with = |at: usize, value: u8| {
        let mut bytes = good;
        bytes[at] = value;
        Grant::parse(&rechecked(bytes))
    };
    assert_eq!(Grant::parse(&good[..100]), Err(GrantError::Size(100)));
    assert!(matches!(with(0, 0), Err(GrantError::Magic(_))));
    assert_eq!(with(8, 9), Err(GrantError::Version(9)));
    assert_eq!(with(16, 7), Err(GrantError::Unstable(7)));
    assert_eq!(with(24, 3), Err(GrantError::Field("state")));
    assert_eq!(with(28, 1), Err(GrantError::Field("cards")));
    assert_eq!(with(28, 200), Err(GrantError::Text("uuid")));
    assert_eq!(with(256 + 100, 1), Err(GrantError::Field("card")));
    let mut bytes = good;
    bytes[60] ^= 1;
    assert!(matches!(Grant::parse(&bytes), Err(GrantError::Checksum { .. })));
}

#[test]
fn a_grant_names_a_card_once_and_only_so_many() {
    let mut grant = sample();
    let again = grant.cards()[0];
    assert_eq!(grant.push_card(again), Err(GrantError::RepeatedCard));
    for n in 2..MAX_CARDS {
        grant
            .push_card(CardGrant::with_memory(&format!("GPU-{n}"), 1).unwrap())
            .unwrap();
    }
    let more = CardGrant::with_memory("GPU-more", 1).unwrap();
    assert_eq!(grant.push_card(more), Err(GrantError::TooManyCards));
    assert_eq!(Grant::parse(&grant.encode()).unwrap().cards().len(), MAX_CARDS);
}

#[test]
fn an_id_is_its_digits() {
    let id = GrantId::from_bytes(*b"0123456789abcdef");
    assert_eq!(id.to_string(), "30313233343536373839616263646566");
    assert_eq!(GrantId::parse(&id.to_string()), Some(id));
    assert_eq!(GrantId::parse("30313233343536373839616263646"), None);
    assert_eq!(GrantId::parse("3031323334353637383961626364656G"), None);
    assert_eq!(GrantId::parse("../../../../../../etc/passwd0000"), None);
}

proptest! {
    #[test]
    fn any_bytes_are_judged_without_trouble(mut bytes in proptest::collection::vec(any::<u8>(), 0..GRANT_SIZE + 8), head in any::<bool>()) {
        if head && bytes.len() >= 16 {
            bytes[..8].copy_from_slice(&GRANT_MAGIC.to_le_bytes());
            bytes[8..12].copy_from_slice(&GRANT_VERSION.to_le_bytes());
        }
        prop_assert!(Grant::parse(&bytes).is_err());
    }

    #[test]
    fn shares_survive(memory in 0..1_u64 << 47, cores in 0..=1000_u32, priority in any::<u8>(), uuid in "[A-Za-z0-9/-]{1,64}") {
        let mut grant = Grant::new(GrantId::default(), "", "").unwrap();
        let card = CardGrant { cores_permille: cores, priority, ..CardGrant::with_memory(&uuid, memory).unwrap() };
        grant.push_card(card).unwrap();
        prop_assert_eq!(Grant::parse(&grant.encode()), Ok(grant));
    }
}
