//! Pages that a container can write, or that a file may hold in place of ours.

#![expect(unsafe_code, reason = "looks at bytes as the pages that they would be in a mapping")]

use std::hint::black_box;

use tessera_region::{
    ACCOUNT_SIZE, Account, GRANT_SIZE, Grant, MAX_CARDS, MAX_SLOTS, Owner, SWAP_ORDER_SIZE, SWAP_REPORT_SIZE,
    SlotIndex, SwapOrders, SwapReports, TURNS_SIZE, TurnReports, VERDICT_SIZE, Verdict, crc32,
};

/// Where the checksum of a grant stands.
const GRANT_CRC_AT: usize = 36;

/// A grant is refused, or it is byte for byte what is written for what was read.
pub fn grant(data: &[u8]) {
    let check = |bytes: &[u8]| {
        if let Ok(read) = Grant::parse(bytes) {
            assert_eq!(read.encode().as_slice(), bytes, "a grant that is written otherwise");
            let cards = read.cards();
            assert!(cards.len() <= MAX_CARDS);
            for card in cards {
                assert!(read.card(card.uuid.as_str()).is_some());
            }
        }
    };
    check(data);
    // The same with a size and a checksum that are right, or nothing behind them would ever be read.
    let mut bytes = [0; GRANT_SIZE];
    bytes.iter_mut().zip(data).for_each(|(place, byte)| *place = *byte);
    for (place, byte) in bytes.iter_mut().zip(head(
        tessera_region::GRANT_MAGIC,
        tessera_region::GRANT_VERSION,
        GRANT_SIZE,
    )) {
        *place = byte;
    }
    put(&mut bytes, GRANT_CRC_AT, &[0; 4]);
    let crc = crc32(&bytes);
    put(&mut bytes, GRANT_CRC_AT, &crc.to_le_bytes());
    check(&bytes);
}

fn head(magic: u64, version: u32, size: usize) -> Vec<u8> {
    let size = u32::try_from(size).unwrap_or(u32::MAX);
    let words = magic.to_le_bytes().into_iter().chain(version.to_le_bytes());
    words.chain(size.to_le_bytes()).collect()
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at.saturating_add(value.len())) {
        place.copy_from_slice(value);
    }
}

/// Memory as a mapping gives it: aligned, of a fixed size.
struct Page(Vec<Frame>);

#[repr(C, align(4096))]
#[derive(Clone, Copy)]
struct Frame([u8; 4096]);

impl Page {
    /// A page that begins with `head` and goes on with `data`; a four-byte place in `data` in front of each sixteen bytes
    /// says where they go, so that few bytes reach all of a large page.
    fn new(size: usize, head: &[u8], data: &[u8]) -> Self {
        let mut page = Self(vec![Frame([0; 4096]); size.div_ceil(4096)]);
        let bytes = page.bytes();
        for piece in data.chunks(20) {
            let Some((at, words)) = piece.split_at_checked(4) else {
                continue;
            };
            let at = at.iter().rev().fold(0_usize, |sum, byte| sum << 8 | usize::from(*byte));
            put(bytes, at % size.max(1) / 8 * 8, words);
        }
        // What the data says of the head stands only if it asks for that.
        if data.first() != Some(&0xff) {
            put(bytes, 0, head);
        }
        page
    }

    fn bytes(&mut self) -> &mut [u8] {
        let length = self.0.len().saturating_mul(4096);
        // SAFETY: frames are 4096 bytes without padding.
        unsafe { core::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), length) }
    }

    fn pointer(&mut self) -> *mut u8 {
        self.0.as_mut_ptr().cast()
    }
}

/// An account that the container wrote over: nothing panics, no sum wraps, a request beyond the limit is refused, and
/// what is refused changes nothing.
pub fn account(data: &[u8]) {
    let mut page = Page::new(ACCOUNT_SIZE, &Account::fresh_head(), data);
    // SAFETY: aligned, of the size, alive until the end of this function, and nobody else has it.
    let Ok(account) = (unsafe { Account::from_ptr(page.pointer()) }) else {
        return;
    };
    let Some(me) = Owner::new(4242, 1, 1) else { return };
    let byte = |at: usize| data.get(at).copied().unwrap_or_default();
    let card = usize::from(byte(0)) % (MAX_CARDS + 1);
    for number in 0..u16::try_from(MAX_SLOTS).unwrap_or(u16::MAX).saturating_add(2) {
        if let Some(slot) = SlotIndex::from_number(number) {
            black_box(account.owner(slot));
            black_box(account.held(slot, card));
        }
    }
    account.holders(card, |_, _| {});
    black_box(account.refusals(card));
    if let Some(slot) = account.attach(me) {
        let limit = 1_u64 << (byte(1) % 64);
        let size = u64::from(byte(2)) << (byte(3) % 57);
        let before = (account.used(card), account.held(slot, card));
        match account.reserve(slot, card, size, limit) {
            Ok(()) => {
                let after = account.used(card);
                assert!(size == 0 || after <= limit, "{after} bytes in use of {limit}");
                account.release(slot, card, size);
            }
            Err(_) => assert_eq!((account.used(card), account.held(slot, card)), before),
        }
        account.book(slot, card, size);
        account.release(slot, card, u64::MAX);
        account.set_contexts(slot, card, u64::MAX);
        account.reap(slot, me, |owner| owner.pid() % 2 == 0);
        account.detach(slot, me);
    }
    black_box(account.any_owner(None, |owner| owner == me));
}

/// The page that a container reads of the agent.
pub fn verdict(data: &[u8]) {
    let head = head(
        tessera_region::VERDICT_MAGIC,
        tessera_region::VERDICT_VERSION,
        VERDICT_SIZE,
    );
    let mut page = Page::new(VERDICT_SIZE, &head, data);
    // SAFETY: as for the account.
    let Some(verdict) = (unsafe { Verdict::from_ptr(page.pointer()) }) else {
        return;
    };
    black_box(verdict.grant_generation());
    for now in [0, verdict.heartbeat_ns(), u64::MAX] {
        black_box(verdict.is_heard(now));
    }
    for card in 0..=MAX_CARDS {
        assert_eq!(verdict.card(card).is_some(), card < MAX_CARDS);
    }
}

/// What processes say of their work on cards; the agent adds these figures up.
pub fn turns(data: &[u8]) {
    let mut page = Page::new(TURNS_SIZE, &TurnReports::fresh_head(), data);
    // SAFETY: as for the account.
    let Some(reports) = (unsafe { TurnReports::from_ptr(page.pointer()) }) else {
        return;
    };
    for slot in [0, 1, MAX_SLOTS - 1, MAX_SLOTS] {
        let Some(row) = reports.use_row(slot) else { continue };
        for lane in row.lanes() {
            black_box(lane.read());
            black_box(lane.marked_pending_ns());
        }
        for card in 0..=MAX_CARDS {
            black_box(row.read(card));
        }
    }
}

/// Orders to move memory, and what processes say of it.
pub fn swap(data: &[u8]) {
    let orders = head(
        tessera_region::SWAP_ORDER_MAGIC,
        tessera_region::SWAP_VERSION,
        SWAP_ORDER_SIZE,
    );
    let mut page = Page::new(SWAP_ORDER_SIZE, &orders, data);
    // SAFETY: as for the account.
    if let Some(orders) = unsafe { SwapOrders::from_ptr(page.pointer()) } {
        black_box(orders.heartbeat_ns());
        for card in 0..=MAX_CARDS {
            if let Some((_, order)) = orders.order(card) {
                orders.give(card, order);
            }
        }
    }
    let reports = head(
        tessera_region::SWAP_REPORT_MAGIC,
        tessera_region::SWAP_VERSION,
        SWAP_REPORT_SIZE,
    );
    let mut page = Page::new(SWAP_REPORT_SIZE, &reports, data);
    // SAFETY: as for the account.
    let Some(reports) = (unsafe { SwapReports::from_ptr(page.pointer()) }) else {
        return;
    };
    for slot in [0, 1, MAX_SLOTS - 1, MAX_SLOTS] {
        for card in 0..=MAX_CARDS {
            if let Some(row) = reports.row(slot, card) {
                let figures = row.read();
                black_box(figures.is_live(0));
                black_box(figures.is_live(u64::MAX));
            }
        }
    }
}
