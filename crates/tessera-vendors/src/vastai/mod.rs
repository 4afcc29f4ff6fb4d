//! Vastai: units that are cards, or the dies of cards.
//!
//! A node's plugin registers either; each unit says of itself which it is. Dies of one container are taken from as few
//! cards as possible, and from the card that they fill best. A unit is given with all it has, so memory and compute are
//! not counted.

mod dies;

use std::collections::BTreeMap;
use std::sync::Arc;

use tessera_engine::{
    Admit, AdmitSettings, AnnotationKeys, Candidate, CardView, ContainerEdit, FitContext, HealthSource, NodeProblem,
    NodeState, RequestError, ResourceNames, Rules, Take, Vendor, Want,
};
use tessera_types::{
    Ask, Card, CardMode, CardOrder, ClassAllocation, Cores, Keyword, Mib, NodePolicy, Reason, ReasonKind, Selection,
    Share,
};
use tessera_wire::config::{self, DeviceConfig, VastaiPacking};
use tessera_wire::{ContainerView, NodeView, PodView};

use crate::texts::SelectionKeys;
use crate::{Options, amounts, nodes};

const REGISTER: &str = "hami.io/node-va-register";
const HANDSHAKE: &str = "hami.io/node-handshake-va";
const SELECTION: SelectionKeys<'_> = SelectionKeys {
    use_models: "vastaitech.com/use-va",
    avoid_models: "vastaitech.com/nouse-va",
    use_ids: "vastaitech.com/use-gpuuuid",
    avoid_ids: "vastaitech.com/nouse-gpuuuid",
    numa_bind: "",
};
/// Pod annotation: which kind of unit the pod means.
const UNIT: &str = "vastaitech.com/unit";
/// Of a card's own members: `die` for a die.
const STRATEGY: &str = "DeviceStrategy";
/// Of a card's own members: the card that a die is on.
const AIC: &str = "AIC";
const DIE: &str = "die";
const CARD: &str = "card";

/// The Vastai class.
#[derive(Debug, Clone)]
pub struct Vastai {
    keyword: Keyword,
    names: ResourceNames,
    keys: AnnotationKeys,
    packing: VastaiPacking,
}

/// The class, if the section `vastai` names its count resource.
pub(crate) fn classes(config: &DeviceConfig, _: &Options) -> Vec<Arc<dyn Vendor>> {
    let class = |settings| -> Arc<dyn Vendor> { Arc::new(Vastai::new(settings)) };
    let settings = config.vastai.iter();
    settings
        .filter(|settings| !settings.resource_count_name.is_empty())
        .map(class)
        .collect()
}

/// The card that a die is on; `None` for a unit that is a card.
fn aic(card: &Card) -> Option<&str> {
    let die = card.custom.get(STRATEGY).is_some_and(|strategy| strategy == DIE);
    card.custom.get(AIC).filter(|_| die).map(String::as_str)
}

impl Vastai {
    /// With the `vastai` section of the device configuration.
    ///
    /// # Panics
    /// Never: the keyword is a constant without separators.
    #[must_use]
    pub fn new(settings: &config::Vastai) -> Self {
        let keys = AnnotationKeys {
            register: Some(REGISTER.to_owned()),
            handshake: Some(HANDSHAKE.to_owned()),
            to_allocate: Some("hami.io/Vastai-devices-to-allocate".to_owned()),
            allocated: Some("hami.io/Vastai-devices-allocated".to_owned()),
            user: SELECTION.all().chain([UNIT]).map(str::to_owned).collect(),
            ..AnnotationKeys::default()
        };
        Self {
            keyword: Keyword::new("Vastai").expect("a constant without separators"),
            names: ResourceNames {
                count: amounts::name(&settings.resource_count_name),
                ..ResourceNames::default()
            },
            keys,
            packing: settings.packing,
        }
    }
}

impl Vendor for Vastai {
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
            // For the order of cards only.
            card.cores = Cores::new(100);
            let unit = if aic(card).is_some() { DIE } else { CARD };
            card.mode = CardMode::new(unit);
        }
        Ok(cards)
    }

    fn parse(&self, container: &ContainerView, _pod: &PodView) -> Result<Option<Ask>, RequestError> {
        match &self.names.count {
            Some(count) => amounts::units(&self.keyword, count, container),
            None => Ok(None),
        }
    }

    fn selection(&self, pod: &PodView) -> Result<Selection, RequestError> {
        let modes = match pod.annotation(UNIT).map(str::trim) {
            None | Some("") => None,
            Some(unit @ (CARD | DIE)) => Some(unit.to_owned()),
            Some(other) => {
                return Err(RequestError::annotation(
                    UNIT,
                    format!("`{other}` is no kind of unit"),
                    format!("write {CARD} or {DIE}, or leave it out to take either"),
                ));
            }
        };
        Ok(Selection {
            modes,
            ..SELECTION.read(pod)
        })
    }

    fn resolve(&self, _card: &Card, _ask: &Ask) -> (Mib, Cores) {
        (Mib::ZERO, Cores::ZERO)
    }

    /// A pod that wants to be alone is not put beside another on one card's dies either.
    fn check(&self, card: CardView<'_>, want: &Want<'_>, ctx: &FitContext<'_>) -> Result<Take, Reason> {
        if ctx.policy.has(CardOrder::Mutex)
            && let Some(aic_of_die) = aic(card.card)
        {
            let used = |at: usize| {
                ctx.node.usage().get(at).is_some_and(|used| used.usage.slots > 0)
                    || ctx.earlier.iter().any(|earlier| earlier.position == at)
            };
            let siblings = ctx.node.cards().iter().enumerate();
            let taken = siblings
                .filter(|(_, other)| other.class == self.keyword && aic(other) == Some(aic_of_die))
                .any(|(at, _)| used(at));
            if taken {
                return Err(Reason::of(ReasonKind::ExclusiveConflict, Some(card.card.id.clone())));
            }
        }
        Ok(Take::as_wanted(want))
    }

    fn gathers(&self, _want: &Want<'_>, ctx: &FitContext<'_>) -> bool {
        let cards = ctx.node.class(&self.keyword).map(|class| class.cards.clone());
        cards
            .and_then(|cards| ctx.node.cards().get(cards))
            .is_some_and(|cards| cards.iter().any(|card| aic(card).is_some()))
    }

    fn choose(&self, fitting: &[Candidate<'_>], want: &Want<'_>, _ctx: &FitContext<'_>) -> Option<Vec<usize>> {
        let count = usize::try_from(want.count).unwrap_or(usize::MAX);
        let cards: Vec<Option<&str>> = fitting.iter().map(|candidate| aic(candidate.card)).collect();
        (fitting.len() >= count).then(|| dies::choose(&cards, count, self.packing))
    }

    /// How much together the dies of each container lie: 1 for a container on one card. 0 if any unit is a card.
    fn node_score(&self, placed: &ClassAllocation, _: &Selection, node: &NodeState, policy: NodePolicy) -> f64 {
        let cards = node.cards();
        let mut score = 0.0;
        for shares in placed.iter().filter(|shares| !shares.is_empty()) {
            let mut by_card: BTreeMap<&str, u32> = BTreeMap::new();
            let unit = |share: &Share| cards.iter().find(|card| card.id == share.card).and_then(aic);
            for share in shares {
                let Some(aic) = unit(share) else { return 0.0 };
                *by_card.entry(aic).or_default() += 1;
            }
            let most = by_card.into_values().max().unwrap_or(0);
            score += f64::from(most) / f64::from(u32::try_from(shares.len()).unwrap_or(u32::MAX));
        }
        match policy {
            NodePolicy::Binpack | NodePolicy::Fgd | NodePolicy::Tessera => score,
            // The smallest sum wins there.
            NodePolicy::Spread => -score,
        }
    }

    fn admit(
        &self,
        container: &mut ContainerEdit<'_>,
        _pod: &PodView,
        _settings: &AdmitSettings,
    ) -> Result<Admit, RequestError> {
        let count = self.names.count.as_deref();
        Ok(Admit {
            uses_device: count.is_some_and(|count| container.has_limit(count)),
            ..Admit::default()
        })
    }
}
