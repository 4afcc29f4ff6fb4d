//! Slot ids: what the kubelet counts. A slot id is `<card uuid>-<k>` and always
//! names the card that its holder gets.

use tessera_kubelet::{DeviceHealth, PluginDevice};

use crate::cards::Managed;

/// Dashes in `GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx-<k>`.
const DASHES: usize = 6;

/// The card that a slot id names: the text before `::`, else the text before a
/// number that follows the sixth dash, else the whole text.
#[must_use]
pub fn card_of(id: &str) -> &str {
    if let Some((card, _)) = id.split_once("::") {
        return card;
    }
    if id.bytes().filter(|byte| *byte == b'-').count() == DASHES
        && let Some((card, slot)) = id.rsplit_once('-')
        && is_number(slot)
    {
        return card;
    }
    id
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// The id of slot `k` of a card.
#[must_use]
pub fn id(card: &str, k: u32) -> String {
    format!("{card}-{k}")
}

/// All slots of the cards, in card and slot order. `numa` says whether the
/// kubelet shall align to NUMA nodes.
#[must_use]
pub fn devices(cards: &[Managed], numa: bool) -> Vec<PluginDevice> {
    cards
        .iter()
        .flat_map(|card| {
            (0..card.card.slots).map(|k| PluginDevice {
                id: id(card.card.id.as_str(), k),
                health: if card.card.healthy {
                    DeviceHealth::Healthy
                } else {
                    DeviceHealth::Unhealthy
                },
                numa: if numa {
                    u32::try_from(card.numa_known.unwrap_or(-1)).ok()
                } else {
                    None
                },
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_card_of_an_id() {
        let card = "GPU-aaaaaaaa-0000-0000-0000-000000000001";
        let check = |id: &str, expected: &str| assert_eq!(card_of(id), expected, "{id}");
        check(&format!("{card}-0"), card);
        check(&format!("{card}-10"), card);
        check(card, card);
        check(&format!("{card}-x"), &format!("{card}-x"));
        check("GPU-short-1", "GPU-short-1");
        check(
            "MIG-aaaaaaaa-0000-0000-0000-000000000001-3",
            "MIG-aaaaaaaa-0000-0000-0000-000000000001",
        );
        check("GPU-a::2", "GPU-a");
        check(&format!("{card}[0-1]"), &format!("{card}[0-1]"));
        check("", "");
        assert_eq!(card_of(&id(card, 7)), card);
    }
}
