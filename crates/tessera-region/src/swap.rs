//! Pages of a container whose memory may be moved out of the card: what the agent orders and what the processes report.
//!
//! They exist only beside a grant with [`CardFlags::SWAP`](crate::CardFlags::SWAP). An order is three words and a bell
//! that is rung after them; a reader takes the words between two equal readings of the bell. A process answers an order
//! by writing the bell's value into its own row, and its figures before that.

use crate::{
    MAX_CARDS, MAX_SLOTS,
    sync::{AtomicU32, AtomicU64, Ordering},
};

/// First eight bytes of the order page: `TSRSWAPO`.
pub const SWAP_ORDER_MAGIC: u64 = u64::from_le_bytes(*b"TSRSWAPO");
/// First eight bytes of the report page: `TSRSWAPR`.
pub const SWAP_REPORT_MAGIC: u64 = u64::from_le_bytes(*b"TSRSWAPR");
/// Layout that this crate reads and writes.
pub const SWAP_VERSION: u32 = 1;
/// Size of the order page in bytes.
pub const SWAP_ORDER_SIZE: usize = size_of::<SwapOrders>().next_multiple_of(4096);
/// Size of the report page in bytes. Sparse: a row is backed by memory once it is written.
pub const SWAP_REPORT_SIZE: usize = size_of::<SwapReports>().next_multiple_of(4096);
/// Name of the order page beside the grant.
pub const SWAP_ORDER_FILE: &str = "swap";
/// Name of the report page beside the account.
pub const SWAP_REPORT_FILE: &str = "swap";

/// What a container shall do with its memory on one card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Nothing was ordered yet, or the order was an unknown one: memory stays as it is.
    Stay,
    /// Have at most so many bytes of movable memory on the card in each process.
    Leave {
        /// The most that stays, in bytes of one process.
        keep_bytes: u64,
    },
    /// Have all of it on the card.
    Return,
}

impl Order {
    fn kind(self) -> u32 {
        match self {
            Self::Stay => 0,
            Self::Leave { .. } => 1,
            Self::Return => 2,
        }
    }
}

/// The order page; written by the agent, read-only in the container.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct SwapOrders {
    magic: AtomicU64,
    version: AtomicU32,
    /// Rises with every order of any card: the word that processes sleep on.
    bell: AtomicU32,
    heartbeat_ns: AtomicU64,
    reserved: [AtomicU64; 5],
    cards: [OrderWords; MAX_CARDS],
}

#[derive(Debug)]
#[repr(C, align(64))]
struct OrderWords {
    bell: AtomicU32,
    kind: AtomicU32,
    keep_bytes: AtomicU64,
    reserved: [AtomicU64; 6],
}

/// The report page; each row is written by one process alone.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct SwapReports {
    magic: AtomicU64,
    version: AtomicU32,
    /// Highest row that was ever used, plus one.
    high: AtomicU32,
    reserved: [AtomicU32; 12],
    rows: [[SwapRow; MAX_CARDS]; MAX_SLOTS],
}

/// What one process says of one card. Any word may hold anything if the tenant wishes so: figures are clamped by
/// [`SwapRow::read`] and concern nobody but the tenant.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct SwapRow {
    answered: AtomicU32,
    wants: AtomicU32,
    resident_bytes: AtomicU64,
    away_bytes: AtomicU64,
    pinned_bytes: AtomicU64,
    moved_bytes: AtomicU64,
    moved_ns: AtomicU64,
    beat_ns: AtomicU64,
    busy: AtomicU64,
}

/// A row as it was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SwapFigures {
    /// Bell of the last order that was carried out, as far as it could be.
    pub answered: u32,
    /// Whether a call waits for memory that is away.
    pub wants: bool,
    /// Movable bytes on the card.
    pub resident_bytes: u64,
    /// Bytes that are away.
    pub away_bytes: u64,
    /// Bytes that cannot be moved because somebody else refers to them.
    pub pinned_bytes: u64,
    /// Bytes moved so far, both ways.
    pub moved_bytes: u64,
    /// Time that this took so far, in nanoseconds.
    pub moved_ns: u64,
    /// When the process last looked at its orders, in nanoseconds of the monotonic clock.
    pub beat_ns: u64,
    /// Whether it is carrying one out.
    pub busy: bool,
}

impl SwapFigures {
    /// Whether the process is there: it looks several times a second, and moving all memory of a card takes less than a
    /// minute. The figures of one that is not are void; the driver has taken its memory back.
    #[must_use]
    pub fn is_live(&self, now_ns: u64) -> bool {
        let patience = if self.busy { 60_000_000_000 } else { 2_000_000_000 };
        self.beat_ns != 0 && now_ns.saturating_sub(self.beat_ns) < patience
    }
}

/// Places of the words that the agent reads from the file.
pub(crate) const HIGH_AT: u64 = 12;
pub(crate) const ROWS_AT: u64 = 64;

const _: () = {
    assert!(core::mem::offset_of!(SwapReports, high) as u64 == HIGH_AT);
    assert!(core::mem::offset_of!(SwapReports, rows) as u64 == ROWS_AT);
    assert!(core::mem::offset_of!(SwapRow, resident_bytes) == 8 && core::mem::offset_of!(SwapRow, beat_ns) == 48);
    assert!(size_of::<SwapRow>() == 64 && size_of::<OrderWords>() == 64);
    assert!(core::mem::offset_of!(SwapOrders, cards) == 64 && core::mem::offset_of!(SwapReports, rows) == 64);
};

const MOST_BYTES: u64 = 1 << 48;

impl SwapRow {
    /// Replaces the figures, and says last that the order `answered` is carried out.
    pub fn write(&self, figures: &SwapFigures) {
        self.resident_bytes.store(figures.resident_bytes, Ordering::Relaxed);
        self.away_bytes.store(figures.away_bytes, Ordering::Relaxed);
        self.pinned_bytes.store(figures.pinned_bytes, Ordering::Relaxed);
        self.moved_bytes.store(figures.moved_bytes, Ordering::Relaxed);
        self.moved_ns.store(figures.moved_ns, Ordering::Relaxed);
        self.wants.store(u32::from(figures.wants), Ordering::Relaxed);
        self.busy.store(u64::from(figures.busy), Ordering::Relaxed);
        self.beat_ns.store(figures.beat_ns, Ordering::Relaxed);
        self.answered.store(figures.answered, Ordering::Release);
    }

    /// Says that a call waits for memory, or no longer.
    pub fn set_wants(&self, wants: bool) {
        self.wants.store(u32::from(wants), Ordering::Release);
    }

    /// Says that the process is there, and whether it is carrying out an order.
    pub fn beat(&self, now_ns: u64, busy: bool) {
        self.busy.store(u64::from(busy), Ordering::Relaxed);
        self.beat_ns.store(now_ns, Ordering::Release);
    }

    /// The figures, none beyond what a card can have.
    #[must_use]
    pub fn read(&self) -> SwapFigures {
        let answered = self.answered.load(Ordering::Acquire);
        let bytes = |word: &AtomicU64| word.load(Ordering::Relaxed).min(MOST_BYTES);
        SwapFigures {
            answered,
            wants: self.wants.load(Ordering::Acquire) != 0,
            resident_bytes: bytes(&self.resident_bytes),
            away_bytes: bytes(&self.away_bytes),
            pinned_bytes: bytes(&self.pinned_bytes),
            moved_bytes: self.moved_bytes.load(Ordering::Relaxed),
            moved_ns: self.moved_ns.load(Ordering::Relaxed),
            beat_ns: self.beat_ns.load(Ordering::Acquire),
            busy: self.busy.load(Ordering::Relaxed) != 0,
        }
    }
}

impl SwapOrders {
    /// The page in a mapping, or nothing when its head is another.
    ///
    /// # Safety
    /// - `page` is null, or aligned to 64 and points to [`SWAP_ORDER_SIZE`] readable bytes that stay mapped for `'a`.
    /// - Other processes change the bytes only by atomic stores.
    #[must_use]
    #[expect(unsafe_code, reason = "turns a mapping into the page that it holds")]
    pub unsafe fn from_ptr<'a>(page: *const u8) -> Option<&'a Self> {
        if page.is_null() {
            return None;
        }
        // SAFETY: by the caller's promise; every bit pattern is a valid value.
        let orders = unsafe { &*page.cast::<Self>() };
        (orders.magic.load(Ordering::Acquire) == SWAP_ORDER_MAGIC
            && orders.version.load(Ordering::Relaxed) == SWAP_VERSION)
            .then_some(orders)
    }

    /// The word that rises with every order.
    #[must_use]
    pub fn bell(&self) -> &AtomicU32 {
        &self.bell
    }

    /// When the agent last looked, in nanoseconds of the monotonic clock; 0 before the first time.
    #[must_use]
    pub fn heartbeat_ns(&self) -> u64 {
        self.heartbeat_ns.load(Ordering::Acquire)
    }

    /// Says that the agent is alive.
    pub fn beat(&self, now_ns: u64) {
        self.heartbeat_ns.store(now_ns, Ordering::Release);
    }

    /// Gives an order for a card and returns its number; wake who sleeps on [`SwapOrders::bell`] afterwards. The
    /// agent alone calls this. Nothing for a card that there is not.
    pub fn give(&self, card: usize, order: Order) -> Option<u32> {
        let words = self.cards.get(card)?;
        let number = words.bell.load(Ordering::Relaxed).wrapping_add(2) & !1;
        // Odd while the words change.
        words.bell.store(number.wrapping_sub(1), Ordering::SeqCst);
        words.kind.store(order.kind(), Ordering::SeqCst);
        if let Order::Leave { keep_bytes } = order {
            words.keep_bytes.store(keep_bytes, Ordering::SeqCst);
        }
        words.bell.store(number, Ordering::SeqCst);
        self.bell.fetch_add(1, Ordering::SeqCst);
        Some(number)
    }

    /// The present order of a card and its number; nothing while it is being changed.
    #[must_use]
    pub fn order(&self, card: usize) -> Option<(u32, Order)> {
        let words = self.cards.get(card)?;
        let number = words.bell.load(Ordering::SeqCst);
        let order = match words.kind.load(Ordering::SeqCst) {
            1 => Order::Leave {
                keep_bytes: words.keep_bytes.load(Ordering::SeqCst),
            },
            2 => Order::Return,
            _ => Order::Stay,
        };
        (number & 1 == 0 && words.bell.load(Ordering::SeqCst) == number).then_some((number, order))
    }
}

impl SwapReports {
    /// The page in a mapping, or nothing when its head is another.
    ///
    /// # Safety
    /// As [`SwapOrders::from_ptr`], with [`SWAP_REPORT_SIZE`] bytes.
    #[must_use]
    #[expect(unsafe_code, reason = "turns a mapping into the page that it holds")]
    pub unsafe fn from_ptr<'a>(page: *const u8) -> Option<&'a Self> {
        if page.is_null() {
            return None;
        }
        // SAFETY: by the caller's promise; every bit pattern is a valid value.
        let reports = unsafe { &*page.cast::<Self>() };
        (reports.magic.load(Ordering::Acquire) == SWAP_REPORT_MAGIC
            && reports.version.load(Ordering::Relaxed) == SWAP_VERSION)
            .then_some(reports)
    }

    /// The row of a process, by its place in the account, and a card.
    #[must_use]
    pub fn row(&self, slot: usize, card: usize) -> Option<&SwapRow> {
        self.rows.get(slot)?.get(card)
    }

    /// Notes that a row is in use, so that a reader need not look at all of them.
    pub fn use_row(&self, slot: usize) {
        let high = u32::try_from(slot.saturating_add(1)).unwrap_or(u32::MAX);
        self.high.fetch_max(high, Ordering::Relaxed);
    }
}

/// First bytes of a fresh page of either kind; the rest is zero.
#[cfg(feature = "fs")]
pub(crate) fn fresh_head(magic: u64) -> [u8; 12] {
    let mut head = [0; 12];
    for (place, byte) in head
        .iter_mut()
        .zip(magic.to_le_bytes().into_iter().chain(SWAP_VERSION.to_le_bytes()))
    {
        *place = byte;
    }
    head
}

#[cfg(test)]
#[allow(clippy::unwrap_used, unsafe_code, reason = "tests")]
mod tests {
    use super::*;

    #[repr(C, align(64))]
    struct Page([u8; SWAP_ORDER_SIZE]);

    fn orders(page: &mut Page) -> &SwapOrders {
        let head: std::vec::Vec<u8> = [SWAP_ORDER_MAGIC.to_le_bytes().as_slice(), &SWAP_VERSION.to_le_bytes()].concat();
        page.0.get_mut(..12).unwrap().copy_from_slice(&head);
        // SAFETY: aligned, long enough, and nobody else has it.
        unsafe { SwapOrders::from_ptr(page.0.as_ptr()) }.unwrap()
    }

    #[test]
    fn an_order_is_read_as_it_was_given_and_its_number_rises() {
        let mut page = std::boxed::Box::new(Page([0; SWAP_ORDER_SIZE]));
        let orders = orders(&mut page);
        assert_eq!(orders.order(0), Some((0, Order::Stay)));
        assert_eq!(orders.give(0, Order::Leave { keep_bytes: 5 }), Some(2));
        assert_eq!(orders.give(1, Order::Return), Some(2));
        assert_eq!(orders.give(0, Order::Return), Some(4));
        assert_eq!(orders.order(0), Some((4, Order::Return)));
        assert_eq!(orders.order(1), Some((2, Order::Return)));
        assert_eq!(orders.bell().load(Ordering::Relaxed), 3);
        assert_eq!(orders.give(MAX_CARDS, Order::Return), None);
        assert_eq!(orders.order(MAX_CARDS), None);
    }

    #[test]
    fn an_order_under_way_or_of_an_unknown_kind_moves_nothing() {
        let mut page = std::boxed::Box::new(Page([0; SWAP_ORDER_SIZE]));
        let orders = orders(&mut page);
        let words = orders.cards.first().unwrap();
        words.bell.store(3, Ordering::Relaxed);
        assert_eq!(orders.order(0), None);
        words.bell.store(4, Ordering::Relaxed);
        words.kind.store(77, Ordering::Relaxed);
        assert_eq!(orders.order(0), Some((4, Order::Stay)));
    }

    #[test]
    fn a_page_of_another_kind_is_refused() {
        let page = std::boxed::Box::new(Page([0; SWAP_ORDER_SIZE]));
        // SAFETY: aligned and long enough; null is allowed.
        unsafe {
            assert!(SwapOrders::from_ptr(page.0.as_ptr()).is_none());
            assert!(SwapReports::from_ptr(core::ptr::null()).is_none());
        }
    }

    #[test]
    fn figures_of_a_tenant_are_clamped() {
        let row = SwapRow {
            answered: AtomicU32::new(9),
            wants: AtomicU32::new(77),
            resident_bytes: AtomicU64::new(u64::MAX),
            away_bytes: AtomicU64::new(1),
            pinned_bytes: AtomicU64::new(0),
            moved_bytes: AtomicU64::new(3),
            moved_ns: AtomicU64::new(4),
            beat_ns: AtomicU64::new(5),
            busy: AtomicU64::new(2),
        };
        let read = row.read();
        assert_eq!(
            (read.resident_bytes, read.away_bytes, read.wants),
            (MOST_BYTES, 1, true)
        );
        row.write(&SwapFigures::default());
        assert_eq!(row.read(), SwapFigures::default());
    }
}
