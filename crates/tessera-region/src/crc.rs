//! CRC-32 (IEEE 802.3, reflected), the checksum of a grant. Damage, not tampering, is what it finds.

/// What each value of a byte does to the checksum: every process that joins a container reads a grant, so it is looked up.
static STEPS: [u32; 256] = steps();

#[expect(
    clippy::indexing_slicing,
    reason = "made by the compiler; the index is below the length"
)]
const fn steps() -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte = 0_usize;
    let mut value = 0_u32;
    while byte < table.len() {
        let (mut crc, mut bit) = (value, 0_u32);
        while bit < 8 {
            let mask = (crc & 1).wrapping_neg();
            crc = (crc >> 1) ^ (0xedb8_8320 & mask);
            bit = bit.wrapping_add(1);
        }
        table[byte] = crc;
        byte = byte.wrapping_add(1);
        value = value.wrapping_add(1);
    }
    table
}

/// Checksum of `bytes`, as `cksum -o 3`, zlib and gzip compute it.
#[must_use]
pub fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in bytes {
        let [low, ..] = (crc ^ u32::from(byte)).to_le_bytes();
        // Every byte has its step.
        let step = STEPS.get(usize::from(low)).copied().unwrap_or_default();
        crc = (crc >> 8) ^ step;
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::crc32;

    #[test]
    fn agrees_with_the_published_check_value() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(crc32(b""), 0);
    }
}
