//! The node's cards as they are published: the driver's facts under the
//! administrator's settings.

use std::collections::BTreeMap;
use std::sync::Arc;

use tessera_probe::{CardFacts, Inventory};
use tessera_types::{Card, CardId, CardMode, Cores, Extras, Keyword, Mib};

use crate::settings::CardSettings;

/// Cores of one whole card, percent.
const WHOLE: f64 = 100.0;

/// One card that this node offers.
#[derive(Debug, Clone, PartialEq)]
pub struct Managed {
    /// As published.
    pub card: Card,
    /// The driver's facts.
    pub facts: CardFacts,
    /// Why it is not handed out, for people.
    pub sick: Option<String>,
    /// NUMA node where the driver or kernel names one.
    pub numa_known: Option<i32>,
}

impl Managed {
    /// Whether an amount is the whole card, so that nothing has to be limited.
    /// Never so where memory is promised more than once or held back.
    #[must_use]
    pub fn is_whole(&self, memory: Mib, cores: Cores) -> bool {
        let physical = self.facts.memory_total_mib();
        physical == Some(self.card.memory.get())
            && memory >= self.card.memory
            && (cores == Cores::ZERO || cores.get() >= 100)
    }
}

/// A card that is left out, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// Card UUID.
    pub card: String,
    /// For a person.
    pub reason: String,
}

/// Applies the settings to what the driver reports. Cards are in index order.
#[must_use]
pub fn manage(inventory: &Inventory, settings: &CardSettings, class: &Keyword) -> (Vec<Managed>, Vec<LeftOut>) {
    let mut cards = Vec::new();
    let mut left_out = Vec::new();
    for status in &inventory.cards {
        let facts = &status.facts;
        if settings.hides(&facts.uuid, facts.index) {
            continue;
        }
        let mut out = |reason: String| {
            left_out.push(LeftOut {
                card: facts.uuid.clone(),
                reason,
            });
        };
        let Ok(id) = CardId::new(&facts.uuid) else {
            out("its UUID cannot be written in an annotation".to_owned());
            continue;
        };
        let Some(physical) = facts.memory_total_mib().or(settings.preconfigured_memory_mib) else {
            out("the driver does not say how much memory it has; set `preConfiguredDeviceMemory`".to_owned());
            continue;
        };
        let link_scores = inventory
            .scores
            .get(&facts.uuid)
            .map(|row| {
                row.iter()
                    .filter_map(|(peer, score)| Some((CardId::new(peer).ok()?, i64::from(*score))))
                    .collect::<BTreeMap<_, _>>()
            })
            .unwrap_or_default();
        let numa_known = facts.numa.and_then(|node| i32::try_from(node).ok());
        cards.push(Managed {
            card: Card {
                id,
                class: class.clone(),
                index: facts.index,
                slots: settings.slots,
                memory: Mib::new(scale(physical, settings.memory_scaling)),
                cores: Cores::new(scaled_cores(settings.core_scaling)),
                extra: Extras::NONE,
                model: Arc::from(model(&facts.model).as_str()),
                numa: numa_known.unwrap_or(0),
                mode: CardMode::new(&settings.mode),
                healthy: status.sick.is_none(),
                mig_profiles: Vec::new(),
                link_scores,
                twin: None,
                custom: BTreeMap::new(),
            },
            facts: facts.clone(),
            sick: status.sick.as_ref().map(ToString::to_string),
            numa_known,
        });
    }
    cards.sort_by(|a, b| (a.card.index, &a.card.id).cmp(&(b.card.index, &b.card.id)));
    (cards, left_out)
}

/// The product name with the maker's name in front, which the scheduler needs
/// to tell the class.
fn model(driver: &str) -> String {
    if driver.starts_with("NVIDIA") {
        driver.to_owned()
    } else {
        format!("NVIDIA-{driver}")
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "settings are checked to be positive and small; card memory is far below 2^53 MiB"
)]
fn scale(mib: u64, factor: f64) -> u64 {
    (mib as f64 * factor).floor() as u64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "settings are checked to be positive and small"
)]
fn scaled_cores(factor: f64) -> u32 {
    (WHOLE * factor).trunc() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_names_carry_the_makers_name_once() {
        let check = |driver, expected| assert_eq!(model(driver), expected);
        check("Tesla T4", "NVIDIA-Tesla T4");
        check("NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-40GB");
        check("GRID V100", "NVIDIA-GRID V100");
        check("nvidia x", "NVIDIA-nvidia x");
    }

    #[test]
    fn memory_is_floored_to_mib_and_again_after_scaling() {
        let check = |bytes: u64, factor, expected| assert_eq!(scale(bytes >> 20, factor), expected);
        check(42_949_672_960, 1.0, 40_960);
        check(17_066_557_440, 1.8, 29_295);
        check(85_899_345_919, 0.5, 40_959);
    }
}
