//! Card and instance identifiers: 16 bytes, printed the way the driver prints them.

use sha2::{Digest, Sha256};

/// A stable identifier made from a text, with the version and variant bits of a name UUID.
#[must_use]
pub fn name_uuid(text: &str) -> [u8; 16] {
    let digest = Sha256::digest(text.as_bytes());
    let mut bytes = [0u8; 16];
    bytes.copy_from_slice(&digest[..16]);
    bytes[6] = (bytes[6] & 0x0f) | 0x50;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    bytes
}

/// `prefix` followed by the 36-character form.
#[must_use]
pub fn format_uuid(prefix: &str, bytes: &[u8; 16]) -> String {
    let mut text = String::with_capacity(prefix.len() + 36);
    text.push_str(prefix);
    for (i, byte) in bytes.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// Reads `GPU-...`, `MIG-...` or a bare 36-character form; nothing when it is not one.
#[must_use]
pub fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let body = text
        .strip_prefix("GPU-")
        .or_else(|| text.strip_prefix("MIG-"))
        .unwrap_or(text);
    if body.len() != 36 {
        return None;
    }
    let mut bytes = [0u8; 16];
    let mut digits = 0usize;
    for (i, c) in body.chars().enumerate() {
        if matches!(i, 8 | 13 | 18 | 23) {
            if c != '-' {
                return None;
            }
            continue;
        }
        let value = u8::try_from(c.to_digit(16)?).ok()?;
        bytes[digits / 2] = (bytes[digits / 2] << 4) | value;
        digits += 1;
    }
    (digits == 32).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printed_form_reads_back() {
        let id = name_uuid("node/0");
        let text = format_uuid("GPU-", &id);
        assert_eq!(text.len(), 40);
        assert_eq!(parse_uuid(&text), Some(id));
        assert_eq!(parse_uuid("GPU-short"), None);
        assert_eq!(parse_uuid(&text.replace('-', "_")), None);
    }
}
