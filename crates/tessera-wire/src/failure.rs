//! The counted failure text of one node: `1/8 CardInsufficientMemory, 2/8 CardTypeMismatch`.

use std::collections::BTreeMap;

/// Prints the counts in the order of their reason, each as `<count>/<total> <reason>`.
#[must_use]
pub fn print_counts(counts: &BTreeMap<String, u32>, total: u32) -> String {
    let mut parts: Vec<String> = counts
        .iter()
        .map(|(reason, count)| format!("{count}/{total} {reason}"))
        .collect();
    parts.sort();
    parts.join(", ")
}

/// Reads the counts back. Parts without a count (`NodeInsufficientDevice`) are left out, as HAMi's reader does.
#[must_use]
pub fn parse_counts(text: &str) -> BTreeMap<String, u32> {
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for part in text.split(',') {
        let Some((fraction, reason)) = part.trim().split_once(' ') else {
            continue;
        };
        let Some((count, total)) = fraction.split_once('/') else {
            continue;
        };
        let (Ok(count), Ok(_)) = (count.parse::<u32>(), total.parse::<u32>()) else {
            continue;
        };
        let reason = reason.trim();
        if !reason.is_empty() {
            let sum = counts.entry(reason.to_owned()).or_default();
            *sum = sum.saturating_add(count);
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn print_then_parse_is_identity(counts in proptest::collection::btree_map("[A-Z][A-Za-z]{1,20}", 1u32..1000, 0..6), total in 1u32..1000) {
            prop_assert_eq!(parse_counts(&print_counts(&counts, total)), counts);
        }
    }
}
