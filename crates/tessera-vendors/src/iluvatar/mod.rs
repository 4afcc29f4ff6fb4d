//! Iluvatar: one class for each chip, registered and written like NVIDIA's shared cards.

use std::sync::Arc;

use tessera_engine::{
    Admit, AdmitSettings, AnnotationKeys, ContainerEdit, HealthSource, NodeProblem, RequestError, ResourceNames, Rules,
    Vendor, comma_list,
};
use tessera_types::{Ask, Card, Cores, Keyword, MemoryAsk, Mib, Selection, WHOLE_CARD_CORES};
use tessera_wire::config::{DeviceConfig, Iluvatar as Section};
use tessera_wire::{ContainerView, NodeView, PodView, register};

use crate::amounts::{self, WIRE_MAX};
use crate::{Options, nodes};

/// MiB of one unit of memory where the configuration states nothing.
const MEMORY_UNIT_MIB: u32 = 256;
/// The name of the container, as the vendor's library in it expects it. The spelling is theirs.
const ENV_CONTAINER: &str = "SOL_CONTINER_NAME";

/// One class for each chip of the configuration.
pub(crate) fn classes(config: &DeviceConfig, options: &Options) -> Vec<Arc<dyn Vendor>> {
    let chips = config.iluvatars.as_deref().unwrap_or_default();
    if !options.iluvatar {
        return Vec::new();
    }
    let words: Arc<[String]> = chips.iter().map(|chip| chip.common_word.clone()).collect();
    chips
        .iter()
        .filter_map(|chip| Some(Arc::new(Iluvatar::new(chip, Arc::clone(&words))?) as Arc<dyn Vendor>))
        .collect()
}

/// The class of one chip.
#[derive(Debug, Clone)]
pub struct Iluvatar {
    keyword: Keyword,
    names: ResourceNames,
    keys: AnnotationKeys,
    /// The words of all configured chips.
    words: Arc<[String]>,
    use_ids: String,
    avoid_ids: String,
}

impl Iluvatar {
    /// With one entry of the `iluvatars` section, and the words of all its entries. `None` if the entry's word cannot
    /// be a keyword.
    #[must_use]
    pub fn new(chip: &Section, words: Arc<[String]>) -> Option<Self> {
        let word = &chip.common_word;
        let use_ids = format!("hami.io/use-{word}-uuid");
        let avoid_ids = format!("hami.io/no-use-{word}-uuid");
        Some(Self {
            keyword: Keyword::new(word).ok()?,
            names: ResourceNames {
                count: amounts::name(&chip.resource_count_name),
                memory: amounts::name(&chip.resource_memory_name),
                cores: amounts::name(&chip.resource_core_name),
                memory_factor: u32::try_from(chip.memory_factor)
                    .ok()
                    .filter(|factor| *factor > 0)
                    .unwrap_or(MEMORY_UNIT_MIB),
                ..ResourceNames::default()
            },
            keys: AnnotationKeys {
                register: Some(format!("hami.io/node-{word}-register")),
                handshake: Some(format!("hami.io/node-handshake-{word}")),
                to_allocate: Some(format!("hami.io/{word}-devices-to-allocate")),
                allocated: Some(format!("hami.io/{word}-devices-allocated")),
                user: vec![use_ids.clone(), avoid_ids.clone()],
                ..AnnotationKeys::default()
            },
            words,
            use_ids,
            avoid_ids,
        })
    }

    fn register(&self) -> &str {
        self.keys.register.as_deref().unwrap_or_default()
    }

    fn count(&self, container: &ContainerView) -> Result<Option<u32>, RequestError> {
        amounts::count(container, self.names.count.as_deref())
    }
}

impl Vendor for Iluvatar {
    fn keyword(&self) -> &Keyword {
        &self.keyword
    }

    fn names(&self) -> &ResourceNames {
        &self.names
    }

    fn keys(&self) -> &AnnotationKeys {
        &self.keys
    }

    fn health(&self) -> HealthSource {
        HealthSource::HandshakeAndAllocatable
    }

    fn rules(&self) -> Rules {
        Rules {
            topology: false,
            numa: false,
            ..Rules::default()
        }
    }

    fn reserved_env(&self) -> &[&str] {
        &["IX_VISIBLE_DEVICES", "IX_REPLICA_DEVICES"]
    }

    /// The register's older string form, which the vendor's component writes, or the JSON form.
    fn decode_node(&self, node: &NodeView) -> Result<Vec<Card>, NodeProblem> {
        let parse = |text: &str| {
            if text.trim_start().starts_with('[') {
                register::parse_json(text, &self.keyword)
            } else {
                register::parse_legacy(text, &self.keyword)
            }
        };
        nodes::parsed(node, self.register(), parse)
    }

    /// A card belongs to the class under whose key it is registered, unless its model names another chip: one that is
    /// configured as a class of its own, or one whose name merely begins with this one's (`BI-V150S`).
    fn serves(&self, card: &Card) -> bool {
        let mine = self.keyword.as_str();
        let model: Vec<&str> = card.model.split_whitespace().collect();
        let is = |word: &str, chip: &str| word.eq_ignore_ascii_case(chip);
        if model.iter().any(|word| is(word, mine)) {
            return true;
        }
        let mine = mine.to_ascii_lowercase();
        !model
            .iter()
            .any(|word| word.to_ascii_lowercase().contains(&mine) || self.words.iter().any(|chip| is(word, chip)))
    }

    fn parse(&self, container: &ContainerView, _pod: &PodView) -> Result<Option<Ask>, RequestError> {
        let Some(count) = self.count(container)? else {
            return Ok(None);
        };
        let factor = self.names.factor();
        let most = WIRE_MAX / i64::try_from(factor).unwrap_or(i64::MAX).max(1);
        let unit = format!("a number of units of {factor} MiB");
        let memory = amounts::whole(container, self.names.memory.as_deref(), &unit, most)?;
        let cores = amounts::whole(
            container,
            self.names.cores.as_deref(),
            "a percentage of a card's compute",
            WIRE_MAX,
        )?;
        let memory_ask = match memory {
            None | Some(0) => MemoryAsk::Whole,
            Some(units) => MemoryAsk::Mib(Mib::new(units.saturating_mul(factor))),
        };
        let cores = match (cores, memory) {
            // Admission writes the sum over all cards; each card gives at most all it has.
            (Some(cores), _) => Cores::new(u32::try_from(cores).unwrap_or(u32::MAX)).min(WHOLE_CARD_CORES),
            // Whoever asks for a card and nothing else gets it alone.
            (None, None) => WHOLE_CARD_CORES,
            (None, Some(_)) => Cores::ZERO,
        };
        Ok(Some(Ask {
            class: self.keyword.clone(),
            count,
            memory: memory_ask,
            percent_beside: None,
            cores,
            extra: Vec::new(),
        }))
    }

    fn selection(&self, pod: &PodView) -> Result<Selection, RequestError> {
        Ok(Selection {
            use_ids: comma_list(pod.annotation(&self.use_ids)),
            avoid_ids: comma_list(pod.annotation(&self.avoid_ids)),
            ..Selection::default()
        })
    }

    fn admit(
        &self,
        container: &mut ContainerEdit<'_>,
        _pod: &PodView,
        _settings: &AdmitSettings,
    ) -> Result<Admit, RequestError> {
        let mut admit = Admit::default();
        let view = container.view();
        let Some(count_name) = self.names.count.as_deref() else {
            return Ok(admit);
        };
        let part = [&self.names.memory, &self.names.cores]
            .into_iter()
            .flatten()
            .any(|name| container.has_limit(name) || container.has_request(name));
        let count = match self.count(view)? {
            Some(count) => count,
            None if part && container.amount(count_name).is_none() => {
                container.set_limit(count_name, 1);
                1
            }
            None => return Ok(admit),
        };
        admit.uses_device = true;
        if count > 1
            && let Some(cores) = self.names.cores.as_deref()
        {
            // Several cards are given whole, and the vendor's component takes the sum.
            let sum = i64::from(count).saturating_mul(100);
            let written = container.amount(cores);
            if let Some(written) = written.filter(|written| written.as_integer() != Some(sum)) {
                admit.warnings.push(format!(
                    "container `{}`: `{cores}` is {written}; {count} cards are given whole, so it becomes {sum}",
                    view.name
                ));
            }
            amounts::set_limit(container, cores, sum);
        }
        if !view.env.iter().any(|(name, _)| name == ENV_CONTAINER) {
            container.set_env(ENV_CONTAINER, &view.name);
        }
        Ok(admit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(word: &str, all: &[&str]) -> Iluvatar {
        let section = Section {
            common_word: word.to_owned(),
            ..Section::default()
        };
        Iluvatar::new(&section, all.iter().map(|word| (*word).to_owned()).collect()).unwrap()
    }

    fn serves(word: &str, model: &str) -> bool {
        let class = class(word, &["BI-V150", "MR-V100"]);
        let text = format!("ix-0,1,1024,100,{model},0,true:");
        let card = register::parse_legacy(&text, class.keyword()).unwrap().remove(0);
        class.serves(&card)
    }

    #[test]
    fn a_chip_is_told_by_whole_words() {
        assert!(serves("BI-V150", "Iluvatar BI-V150"));
        assert!(serves("BI-V150", "bi-v150"));
        assert!(
            serves("BI-V150", "Iluvatar-GPU"),
            "an unknown name under the class's own key"
        );
        assert!(!serves("BI-V150", "BI-V150S"), "another chip with a longer name");
        assert!(!serves("BI-V150", "Iluvatar MR-V100"), "a chip that is another class");
    }
}
