//! The grant: what one container may use, written by the agent, read-only inside the container.
//!
//! A grant is a small file of fixed size, replaced as a whole by a rename, so a reader never sees half of one. Numbers
//! are little endian. Offsets, in bytes:
//!
//! | at | size | field |
//! | --- | --- | --- |
//! | 0 | 8 | magic |
//! | 8 | 4 | layout version |
//! | 12 | 4 | size of the whole, [`GRANT_SIZE`] |
//! | 16 | 8 | generation, even; rises with every replacement |
//! | 24 | 4 | state: 1 pending, 2 sealed |
//! | 28 | 4 | number of cards |
//! | 36 | 4 | CRC-32 of the whole with this field 0 |
//! | 40 | 16 | grant id |
//! | 64 | 64 | pod uid, text padded with zeros |
//! | 128 | 64 | container name, text padded with zeros |
//! | 256 | 32 x 128 | cards |
//!
//! One card: uuid text (64), memory bytes (8), cores and least cores in 1/1000 of the card (4 and 4), priority (4),
//! flags (4), context bytes (8), zeros (32). All other bytes are zero and are checked to be.

use core::fmt;

use crate::{MAX_CARDS, crc::crc32};

/// First eight bytes of a grant: `TSRGRANT`.
pub const GRANT_MAGIC: u64 = u64::from_le_bytes(*b"TSRGRANT");
/// Layout that this crate reads and writes.
pub const GRANT_VERSION: u32 = 1;
/// Size of a grant file in bytes.
pub const GRANT_SIZE: usize = 256 + WIRE_CARDS * CARD_SIZE;

const WIRE_CARDS: usize = 32;
const CARD_SIZE: usize = 128;
const AT_CRC: usize = 36;

/// Why bytes are no grant, or a grant cannot be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// The file is shorter or longer than a grant.
    #[error("grant has {0} bytes, not {GRANT_SIZE}")]
    Size(usize),
    /// The first bytes are something else.
    #[error("not a grant: magic {0:#018x}")]
    Magic(u64),
    /// Written by another release.
    #[error("grant layout version {0}, this build reads {GRANT_VERSION}")]
    Version(u32),
    /// The checksum does not match.
    #[error("grant is damaged: checksum {found:#010x}, computed {computed:#010x}")]
    Checksum {
        /// As stored.
        found: u32,
        /// As computed from the content.
        computed: u32,
    },
    /// The generation is odd, so the writer was not finished.
    #[error("grant generation {0} is odd: a write in progress")]
    Unstable(u64),
    /// A field holds a value that no writer writes.
    #[error("grant field `{0}` holds a value out of range")]
    Field(&'static str),
    /// Text that does not fit, is not UTF-8 or contains a zero byte.
    #[error("grant field `{0}` is no text of the allowed length")]
    Text(&'static str),
    /// More cards than a grant can name.
    #[error("a grant names at most {MAX_CARDS} cards")]
    TooManyCards,
    /// A card twice in one grant.
    #[error("a card is named twice")]
    RepeatedCard,
}

/// Text of at most `N` bytes without allocation.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Text<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Text<N> {
    /// Text from a string slice. Nothing when it is longer than `N` bytes or contains a zero byte.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let mut bytes = [0; N];
        bytes.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
        (!text.as_bytes().contains(&0)).then_some(Self { bytes, len: text.len() })
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Both constructors take their bytes from a `str`, so the fallback is never used.
        self.bytes
            .get(..self.len)
            .and_then(|bytes| core::str::from_utf8(bytes).ok())
            .unwrap_or_default()
    }

    fn read(field: &'static str, bytes: &[u8]) -> Result<Self, GrantError> {
        let len = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
        let (text, rest) = bytes.split_at_checked(len).ok_or(GrantError::Text(field))?;
        if rest.iter().any(|&b| b != 0) {
            return Err(GrantError::Text(field));
        }
        core::str::from_utf8(text)
            .ok()
            .and_then(Self::new)
            .ok_or(GrantError::Text(field))
    }
}

impl<const N: usize> Default for Text<N> {
    fn default() -> Self {
        Self { bytes: [0; N], len: 0 }
    }
}

impl<const N: usize> fmt::Debug for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

impl<const N: usize> fmt::Display for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Sixteen bytes that name a grant; 32 lower-case hexadecimal digits in a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GrantId([u8; 16]);

impl GrantId {
    /// An id from its bytes; where they come from (a random source) is the caller's business.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Reads 32 lower-case hexadecimal digits; anything else is nothing.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 16];
        if text.len() != 32 {
            return None;
        }
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            for &digit in pair {
                let value = match digit {
                    b'0'..=b'9' => digit.wrapping_sub(b'0'),
                    b'a'..=b'f' => digit.wrapping_sub(b'a').wrapping_add(10),
                    _ => return None,
                };
                *byte = (*byte << 4) | value;
            }
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for GrantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Whether the owner of a grant is proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrantState {
    /// Written before the container's identity was proven; the container waits.
    Pending,
    /// Proven; the container may start.
    Sealed,
}

/// How one card's share is enforced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CardFlags(u32);

impl CardFlags {
    /// No memory limit: calls on this card go straight to the driver and nothing is counted.
    pub const UNLIMITED: Self = Self(1);
    /// The core share is a cap: it is not exceeded even when the card is otherwise idle.
    pub const CORE_CAP: Self = Self(1 << 1);
    /// What the driver itself needs per process (the context) counts against the memory limit.
    ///
    /// Off by default: the limit is then for what the program asks for, and the context is on top. With it, a context
    /// is booked when it is made, even above the limit (a program cannot do without), and later requests see less.
    pub const COUNT_CONTEXT: Self = Self(1 << 2);
    /// Memory is oversubscribed by moving idle tenants out of the card.
    pub const SWAP: Self = Self(1 << 3);
    /// Memory is oversubscribed by parking idle tenants as a whole.
    pub const PARK: Self = Self(1 << 4);
    /// Count and show, but never refuse.
    pub const OBSERVE: Self = Self(1 << 5);

    /// The driver itself holds the pod to its memory; the library's answer is then only the earlier one.
    pub const DRIVER_HELD: Self = Self(1 << 8);

    const ALL: u32 = ((1 << 6) - 1) | (1 << 8);

    /// No flag.
    #[must_use]
    pub const fn empty() -> Self {
        Self(0)
    }

    /// These and those flags.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether every flag of `other` is set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// One card's share within a grant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CardGrant {
    /// The card's (or instance's) UUID as NVML prints it, `GPU-...` or `MIG-...`.
    pub uuid: Text<64>,
    /// Memory limit in bytes; no meaning with [`CardFlags::UNLIMITED`].
    pub memory_bytes: u64,
    /// Share of the card's time in 1/1000; 1000 is the whole card.
    pub cores_permille: u32,
    /// Share that is kept even while a higher priority runs, in 1/1000.
    pub min_cores_permille: u32,
    /// 0 is the highest, 255 the lowest.
    pub priority: u8,
    /// How the share is enforced.
    pub flags: CardFlags,
    /// With [`CardFlags::COUNT_CONTEXT`]: size of one context in bytes; 0 means measure it.
    pub context_bytes: u64,
}

impl CardGrant {
    /// Whether launches pass a gate: the time on the card is limited, or the container takes part in priorities.
    ///
    /// 0 is no limit, as 1000 is. A container takes part in priorities if something is kept for it while a more
    /// important one runs.
    #[must_use]
    pub const fn is_gated(&self) -> bool {
        !self.flags.contains(CardFlags::UNLIMITED) && (self.limits_cores() || self.min_cores_permille > 0)
    }

    /// Whether the time on the card is limited.
    #[must_use]
    pub const fn limits_cores(&self) -> bool {
        self.cores_permille > 0 && self.cores_permille < 1000
    }

    /// A memory limit in bytes on one card and nothing else.
    ///
    /// # Errors
    /// [`GrantError::Text`] when the UUID is empty or longer than 64 bytes.
    pub fn with_memory(uuid: &str, memory_bytes: u64) -> Result<Self, GrantError> {
        let uuid = Text::new(uuid)
            .filter(|uuid| !uuid.as_str().is_empty())
            .ok_or(GrantError::Text("uuid"))?;
        Ok(Self {
            uuid,
            memory_bytes,
            cores_permille: 1000,
            priority: 1,
            ..Self::default()
        })
    }

    /// The whole card, nothing counted and nothing refused.
    ///
    /// # Errors
    /// [`GrantError::Text`] when the UUID is empty or longer than 64 bytes.
    pub fn unlimited(uuid: &str) -> Result<Self, GrantError> {
        Ok(Self {
            flags: CardFlags::UNLIMITED,
            ..Self::with_memory(uuid, 0)?
        })
    }
}

/// What one container may use. A card that is not named is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Name of the grant, also the name of its folder.
    pub id: GrantId,
    /// Even; rises by 2 with each replacement.
    pub generation: u64,
    /// Whether the owner is proven.
    pub state: GrantState,
    /// Uid of the pod; empty outside Kubernetes.
    pub pod_uid: Text<64>,
    /// Name of the container; empty outside Kubernetes.
    pub container: Text<64>,
    cards: [CardGrant; MAX_CARDS],
    card_count: usize,
}

impl Grant {
    /// A pending grant without cards, generation 2.
    ///
    /// # Errors
    /// [`GrantError::Text`] when the uid or the name is longer than 64 bytes.
    pub fn new(id: GrantId, pod_uid: &str, container: &str) -> Result<Self, GrantError> {
        Ok(Self {
            id,
            generation: 2,
            state: GrantState::Pending,
            pod_uid: Text::new(pod_uid).ok_or(GrantError::Text("pod_uid"))?,
            container: Text::new(container).ok_or(GrantError::Text("container"))?,
            cards: [CardGrant::default(); MAX_CARDS],
            card_count: 0,
        })
    }

    /// Adds a card; its position is its index in the [`Account`](crate::Account).
    ///
    /// # Errors
    /// [`GrantError::TooManyCards`], [`GrantError::RepeatedCard`], or [`GrantError::Field`] for a share out of range.
    pub fn push_card(&mut self, card: CardGrant) -> Result<(), GrantError> {
        card.check()?;
        if self.cards().iter().any(|known| known.uuid == card.uuid) {
            return Err(GrantError::RepeatedCard);
        }
        *self.cards.get_mut(self.card_count).ok_or(GrantError::TooManyCards)? = card;
        self.card_count = self.card_count.saturating_add(1);
        Ok(())
    }

    /// The cards in order.
    #[must_use]
    pub fn cards(&self) -> &[CardGrant] {
        self.cards.get(..self.card_count).unwrap_or_default()
    }

    /// The cards in order, to change their shares.
    #[must_use]
    pub fn cards_mut(&mut self) -> &mut [CardGrant] {
        self.cards.get_mut(..self.card_count).unwrap_or_default()
    }

    /// Index and share of the card with this UUID; nothing when it is not granted.
    #[must_use]
    pub fn card(&self, uuid: &str) -> Option<(usize, &CardGrant)> {
        self.cards()
            .iter()
            .enumerate()
            .find(|(_, card)| card.uuid.as_str() == uuid)
    }

    /// The bytes of the file.
    #[must_use]
    pub fn encode(&self) -> [u8; GRANT_SIZE] {
        let mut out = [0; GRANT_SIZE];
        let mut writer = Writer { rest: &mut out };
        writer.put(&GRANT_MAGIC.to_le_bytes());
        writer.put(&GRANT_VERSION.to_le_bytes());
        writer.put(&(u32::try_from(GRANT_SIZE).unwrap_or(u32::MAX)).to_le_bytes());
        writer.put(&self.generation.to_le_bytes());
        writer.put(
            &match self.state {
                GrantState::Pending => 1_u32,
                GrantState::Sealed => 2,
            }
            .to_le_bytes(),
        );
        writer.put(&u32::try_from(self.card_count).unwrap_or(u32::MAX).to_le_bytes());
        writer.put(&[0; 8]);
        writer.put(self.id.as_bytes());
        writer.put(&[0; 8]);
        writer.put(&self.pod_uid.bytes);
        writer.put(&self.container.bytes);
        writer.put(&[0; 64]);
        for card in self.cards() {
            writer.put(&card.uuid.bytes);
            writer.put(&card.memory_bytes.to_le_bytes());
            writer.put(&card.cores_permille.to_le_bytes());
            writer.put(&card.min_cores_permille.to_le_bytes());
            writer.put(&u32::from(card.priority).to_le_bytes());
            writer.put(&card.flags.0.to_le_bytes());
            writer.put(&card.context_bytes.to_le_bytes());
            writer.put(&[0; 32]);
        }
        let crc = crc32(&out).to_le_bytes();
        if let Some(place) = out.get_mut(AT_CRC..).and_then(|rest| rest.first_chunk_mut::<4>()) {
            *place = crc;
        }
        out
    }

    /// Reads the bytes of a file.
    ///
    /// # Errors
    /// Everything that is not exactly what [`Grant::encode`] writes, with the reason.
    pub fn parse(bytes: &[u8]) -> Result<Self, GrantError> {
        let bytes: &[u8; GRANT_SIZE] = bytes.try_into().map_err(|_| GrantError::Size(bytes.len()))?;
        let mut reader = Reader { rest: bytes };
        let magic = reader.u64();
        if magic != GRANT_MAGIC {
            return Err(GrantError::Magic(magic));
        }
        let version = reader.u32();
        if version != GRANT_VERSION {
            return Err(GrantError::Version(version));
        }
        let size = reader.u32();
        let generation = reader.u64();
        let state = reader.u32();
        let card_count = reader.u32();
        let reserved = reader.u32();
        let found = reader.u32();
        let mut plain = *bytes;
        if let Some(place) = plain.get_mut(AT_CRC..).and_then(|rest| rest.first_chunk_mut::<4>()) {
            *place = [0; 4];
        }
        let computed = crc32(&plain);
        if found != computed {
            return Err(GrantError::Checksum { found, computed });
        }
        if usize::try_from(size) != Ok(GRANT_SIZE) || reserved != 0 {
            return Err(GrantError::Field("size"));
        }
        if !generation.is_multiple_of(2) {
            return Err(GrantError::Unstable(generation));
        }
        let state = match state {
            1 => GrantState::Pending,
            2 => GrantState::Sealed,
            _ => return Err(GrantError::Field("state")),
        };
        let id = GrantId(reader.array());
        reader.zeros::<8>("header")?;
        let mut grant = Self {
            id,
            generation,
            state,
            pod_uid: Text::read("pod_uid", &reader.array::<64>())?,
            container: Text::read("container", &reader.array::<64>())?,
            cards: [CardGrant::default(); MAX_CARDS],
            card_count: 0,
        };
        reader.zeros::<64>("header")?;
        for _ in 0..card_count {
            if grant.card_count == MAX_CARDS {
                return Err(GrantError::TooManyCards);
            }
            let card = CardGrant {
                uuid: Text::read("uuid", &reader.array::<64>())?,
                memory_bytes: reader.u64(),
                cores_permille: reader.u32(),
                min_cores_permille: reader.u32(),
                priority: u8::try_from(reader.u32()).map_err(|_| GrantError::Field("priority"))?,
                flags: CardFlags(reader.u32()),
                context_bytes: reader.u64(),
            };
            reader.zeros::<32>("card")?;
            grant.push_card(card)?;
        }
        if reader.rest.iter().any(|&b| b != 0) {
            return Err(GrantError::Field("cards"));
        }
        Ok(grant)
    }
}

impl CardGrant {
    fn check(&self) -> Result<(), GrantError> {
        if self.uuid.as_str().is_empty() {
            return Err(GrantError::Text("uuid"));
        }
        if self.cores_permille > 1000 || self.min_cores_permille > 1000 {
            return Err(GrantError::Field("cores"));
        }
        if self.memory_bytes > crate::account::BYTES_MAX {
            return Err(GrantError::Field("memory"));
        }
        if self.flags.0 & !CardFlags::ALL != 0 {
            return Err(GrantError::Field("flags"));
        }
        Ok(())
    }
}

struct Writer<'a> {
    rest: &'a mut [u8],
}

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) {
        // The fields' sizes add up to the buffer's; a test reads back every field.
        if let Some((head, tail)) = core::mem::take(&mut self.rest).split_at_mut_checked(bytes.len()) {
            head.copy_from_slice(bytes);
            self.rest = tail;
        }
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> [u8; N] {
        match self.rest.split_first_chunk::<N>() {
            Some((head, tail)) => {
                self.rest = tail;
                *head
            }
            None => [0; N],
        }
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    fn zeros<const N: usize>(&mut self, field: &'static str) -> Result<(), GrantError> {
        if self.array::<N>().iter().any(|&b| b != 0) {
            Err(GrantError::Field(field))
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests;
