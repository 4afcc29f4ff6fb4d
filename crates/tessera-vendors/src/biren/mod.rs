//! Biren: whole cards, and hardware instances (a half or a quarter of a card) under names of their own.
//!
//! A unit is given with all it has, so memory and compute are not counted. Several units of one container are taken
//! from one NUMA node where possible, and those with direct links before others.

mod links;

use std::sync::Arc;

use tessera_engine::{
    Admit, AdmitSettings, AnnotationKeys, CardView, ContainerEdit, FitContext, HealthSource, NodeProblem, RequestError,
    ResourceNames, Rules, Vendor, Want, common_accepts,
};
use tessera_types::{Ask, Card, Cores, Keyword, Mib, ReasonKind, Selection};
use tessera_wire::config::{self, DeviceConfig};
use tessera_wire::{ContainerView, NodeView, PodView};

use crate::texts::SelectionKeys;
use crate::{Options, amounts, nodes};

const REGISTER: &str = "hami.io/node-biren-register";
const HANDSHAKE: &str = "hami.io/node-handshake-biren";
const SELECTION: SelectionKeys<'_> = SelectionKeys {
    use_models: "birentech.com/use-biren",
    avoid_models: "birentech.com/nouse-biren",
    use_ids: "birentech.com/use-gpuuuid",
    avoid_ids: "birentech.com/nouse-gpuuuid",
    numa_bind: "",
};
/// Of an ask, and of a card's own members: into how many parts the card is cut. 1, or absent, is a whole card.
const PARTS: &str = "svi";

/// The Biren class.
#[derive(Debug, Clone)]
pub struct Biren {
    keyword: Keyword,
    names: ResourceNames,
    keys: AnnotationKeys,
    /// Resource names, and into how many parts the card of such a unit is cut.
    units: Vec<(String, u64)>,
}

/// The class, if the section `biren` names its count resource.
pub(crate) fn classes(config: &DeviceConfig, _: &Options) -> Vec<Arc<dyn Vendor>> {
    let class = |settings| -> Arc<dyn Vendor> { Arc::new(Biren::new(settings)) };
    let settings = config.biren.iter();
    settings
        .filter(|settings| !settings.resource_count_name.is_empty())
        .map(class)
        .collect()
}

/// The part of a card that an instance resource names: `.../1-<parts>-gpu`.
fn parts_of(resource: &str) -> Option<u64> {
    let (_, name) = resource.split_once('/')?;
    let parts = name.strip_prefix("1-")?.split('-').next()?;
    parts.parse().ok().filter(|parts| *parts > 1)
}

impl Biren {
    /// With the `biren` section of the device configuration. An instance resource whose name does not say which part
    /// of a card it is, is not served.
    ///
    /// # Panics
    /// Never: the keyword is a constant without separators.
    #[must_use]
    pub fn new(settings: &config::Biren) -> Self {
        let whole = amounts::name(&settings.resource_count_name);
        let instances = settings
            .instance_resources
            .iter()
            .filter_map(|name| Some((name.clone(), parts_of(name)?)));
        let keys = AnnotationKeys {
            register: Some(REGISTER.to_owned()),
            handshake: Some(HANDSHAKE.to_owned()),
            to_allocate: Some("hami.io/Biren-devices-to-allocate".to_owned()),
            allocated: Some("hami.io/Biren-devices-allocated".to_owned()),
            user: SELECTION.all().map(str::to_owned).collect(),
            ..AnnotationKeys::default()
        };
        Self {
            keyword: Keyword::new("Biren").expect("a constant without separators"),
            names: ResourceNames {
                others: instances.clone().map(|(name, _)| name).collect(),
                count: whole.clone(),
                ..ResourceNames::default()
            },
            keys,
            units: whole.into_iter().map(|name| (name, 1)).chain(instances).collect(),
        }
    }
}

impl Vendor for Biren {
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
        HealthSource::Handshake
    }

    fn rules(&self) -> Rules {
        Rules {
            topology: false,
            numa: false,
            quota: false,
            ..Rules::default()
        }
    }

    fn decode_node(&self, node: &NodeView) -> Result<Vec<Card>, NodeProblem> {
        let mut cards = nodes::registered(node, REGISTER, &self.keyword)?;
        for card in &mut cards {
            // The plugin registers none; it is for the order of cards only.
            card.cores = Cores::new(100);
        }
        links::join(&mut cards);
        Ok(cards)
    }

    fn parse(&self, container: &ContainerView, _pod: &PodView) -> Result<Option<Ask>, RequestError> {
        for (name, parts) in &self.units {
            if let Some(mut ask) = amounts::units(&self.keyword, name, container)? {
                if *parts > 1 {
                    ask.extra = vec![(PARTS.to_owned(), *parts)];
                }
                return Ok(Some(ask));
            }
        }
        Ok(None)
    }

    fn selection(&self, pod: &PodView) -> Result<Selection, RequestError> {
        Ok(SELECTION.read(pod))
    }

    fn accepts(&self, card: CardView<'_>, want: &Want<'_>, _ctx: &FitContext<'_>) -> Result<(), ReasonKind> {
        let wanted = want.ask.extra.iter().find(|(name, _)| name == PARTS);
        let parts = card.card.custom.get(PARTS).and_then(|parts| parts.parse().ok());
        if wanted.map_or(1, |(_, parts)| *parts) != parts.unwrap_or(1).max(1) {
            return Err(ReasonKind::CardMode);
        }
        common_accepts(card.card, want.selection)
    }

    fn resolve(&self, _card: &Card, _ask: &Ask) -> (Mib, Cores) {
        (Mib::ZERO, Cores::ZERO)
    }

    fn gathers(&self, want: &Want<'_>, ctx: &FitContext<'_>) -> bool {
        let cards = ctx.node.class(&self.keyword).map(|class| class.cards.clone());
        want.count > 1
            && cards
                .and_then(|cards| ctx.node.cards().get(cards))
                .is_some_and(|cards| cards.iter().any(|card| !card.link_scores.is_empty()))
    }

    fn admit(
        &self,
        container: &mut ContainerEdit<'_>,
        _pod: &PodView,
        _settings: &AdmitSettings,
    ) -> Result<Admit, RequestError> {
        let names: Vec<&str> = self.units.iter().map(|(name, _)| name.as_str()).collect();
        amounts::one_of(container, &names)?;
        Ok(Admit {
            uses_device: names.iter().any(|name| container.has_limit(name)),
            ..Admit::default()
        })
    }
}
