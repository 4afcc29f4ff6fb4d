//! How much memory a person asks for.

/// A part of a card's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryAsk {
    /// So many bytes.
    Bytes(u64),
    /// So many percent of the card, 1 to 100.
    Percent(u8),
}

impl MemoryAsk {
    /// All of the card.
    pub const WHOLE: Self = Self::Percent(100);

    /// Bytes of a card with so many bytes; may be more than the card has. Percent are rounded down to MiB.
    #[must_use]
    pub fn bytes_of(self, card_bytes: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(100) => card_bytes,
            Self::Percent(percent) => {
                let exact = u128::from(card_bytes) * u128::from(percent) / 100;
                u64::try_from(exact).unwrap_or(u64::MAX) & !((1 << 20) - 1)
            }
        }
    }
}

/// Reads `4096` (MiB), `4Gi`, `512Mi`, `4G`, `50%`.
pub(super) fn parse(text: &str) -> Result<MemoryAsk, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number
        .parse()
        .map_err(|_| format!("`{text}` is no size; write MiB (4096), a unit (4Gi), or a part of the card (50%)"))?;
    if number == 0 {
        return Err("a share of nothing; ask for at least 1 MiB".into());
    }
    let unit: u64 = match unit {
        "%" => {
            let percent = u8::try_from(number).ok().filter(|percent| *percent <= 100);
            return percent
                .map(MemoryAsk::Percent)
                .ok_or_else(|| format!("`{text}` is more than the card; percent go from 1 to 100"));
        }
        "" | "Mi" => 1 << 20,
        "Ki" => 1 << 10,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        other => return Err(format!("`{other}` is no unit; use Mi, Gi, Ti, M, G, T or %")),
    };
    number
        .checked_mul(unit)
        .map(MemoryAsk::Bytes)
        .ok_or_else(|| format!("`{text}` is more than any card has"))
}

/// A size for a person: whole GiB where it is one, else MiB.
pub(super) fn size(bytes: u64) -> String {
    match bytes >> 20 {
        mib if mib > 0 && mib % 1024 == 0 => format!("{} GiB", mib / 1024),
        mib => format!("{mib} MiB"),
    }
}
