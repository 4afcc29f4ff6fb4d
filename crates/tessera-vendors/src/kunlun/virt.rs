//! Virtual cards: hardware functions of a card, all of one size on a card.

use std::collections::BTreeMap;

use tessera_engine::{
    Admit, AdmitSettings, AnnotationKeys, Candidate, CardView, ContainerEdit, FitContext, Given, HealthSource,
    NodeProblem, NodeState, RequestError, ResourceNames, Rules, Vendor, Want,
};
use tessera_types::{
    Ask, Card, CardUsage, Cores, Keyword, MemoryAsk, Mib, Reason, ReasonKind, Selection, WHOLE_CARD_CORES,
};
use tessera_wire::config::{Kunlun, KunlunTopology};
use tessera_wire::{ContainerView, NodeView, PodView};

use super::{SHARES_MIB, VIRTUAL};
use crate::amounts::{self, WIRE_MAX};
use crate::nodes;

const REGISTER: &str = "hami.io/node-register-xpu";
const HANDSHAKE: &str = "hami.io/node-handshake-xpu";
const TO_ALLOCATE: &str = "hami.io/xpu-devices-to-allocate";
const ALLOCATED: &str = "hami.io/xpu-devices-allocated";

/// The class of virtual cards.
#[derive(Debug, Clone)]
pub struct KunlunVirtual {
    keyword: Keyword,
    names: ResourceNames,
    keys: AnnotationKeys,
    memory: u64,
    /// MiB, ascending, smaller than a card.
    shares: Vec<u64>,
    topology: KunlunTopology,
}

impl KunlunVirtual {
    /// With the `kunlun` section of the device configuration.
    ///
    /// # Panics
    /// Never: the keyword is a constant without separators.
    #[must_use]
    pub fn new(section: &Kunlun) -> Self {
        let memory = super::card_memory(section);
        let mut shares: Vec<u64> = section.shares.iter().map(|mib| u64::from(*mib)).collect();
        if shares.is_empty() {
            shares = SHARES_MIB.to_vec();
        }
        shares.retain(|mib| (1..memory).contains(mib));
        shares.sort_unstable();
        Self {
            keyword: Keyword::new(VIRTUAL).expect("a constant without separators"),
            names: ResourceNames {
                count: amounts::name(&section.resource_vcount_name),
                memory: amounts::name(&section.resource_vmemory_name),
                memory_factor: 1,
                ..ResourceNames::default()
            },
            keys: AnnotationKeys {
                register: Some(REGISTER.to_owned()),
                handshake: Some(HANDSHAKE.to_owned()),
                to_allocate: Some(TO_ALLOCATE.to_owned()),
                allocated: Some(ALLOCATED.to_owned()),
                user: super::user_keys(),
                ..AnnotationKeys::default()
            },
            memory,
            shares,
            topology: section.topology,
        }
    }

    /// What the memory resource means: `None` if absent or 0, which is a whole card; else the share that holds it.
    fn share(&self, container: &ContainerView) -> Result<Option<u64>, RequestError> {
        let name = self.names.memory.as_deref();
        let Some(asked) = amounts::whole(container, name, "a number of MiB", WIRE_MAX)?.filter(|mib| *mib > 0) else {
            return Ok(None);
        };
        if asked > self.memory {
            return Err(RequestError::resource(
                &container.name,
                name.unwrap_or_default(),
                format!("{asked} MiB are more than a card has"),
                format!("write at most {}", self.memory),
            ));
        }
        let fitting = self.shares.iter().copied().find(|mib| *mib >= asked);
        Ok(Some(fitting.unwrap_or(self.memory)))
    }

    fn percent(&self, mib: u64) -> u32 {
        u32::try_from(mib.saturating_mul(100) / self.memory.max(1))
            .unwrap_or(100)
            .min(100)
    }
}

impl Vendor for KunlunVirtual {
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

    fn decode_node(&self, node: &NodeView) -> Result<Vec<Card>, NodeProblem> {
        let mut cards = nodes::registered(node, REGISTER, &self.keyword)?;
        super::number(&mut cards);
        Ok(cards)
    }

    /// The shares are parts of a card of one size; on another card they would not be what the hardware makes.
    fn disagreement(&self, card: &Card) -> Option<String> {
        let registered = card.memory.get();
        (registered != self.memory).then(|| {
            format!(
                "the node registers {registered} MiB and the configuration says {} MiB; set kunlun.cardMemoryMiB and \
                 kunlun.shares to what the card has",
                self.memory
            )
        })
    }

    fn parse(&self, container: &ContainerView, _pod: &PodView) -> Result<Option<Ask>, RequestError> {
        let Some(count) = amounts::count(container, self.names.count.as_deref())? else {
            return Ok(None);
        };
        if self.topology != KunlunTopology::None && !super::links::COUNTS.contains(&count) {
            return Err(RequestError::resource(
                &container.name,
                self.names.count.as_deref().unwrap_or_default(),
                format!("{count} cards are never linked with each other"),
                "ask for shares of 1, 2, 4 or 8 cards",
            ));
        }
        let share = self.share(container)?;
        Ok(Some(Ask {
            class: self.keyword.clone(),
            count,
            memory: share.map_or(MemoryAsk::Whole, |mib| MemoryAsk::Mib(Mib::new(mib))),
            percent_beside: None,
            cores: share.map_or(WHOLE_CARD_CORES, |mib| Cores::new(self.percent(mib))),
            extra: Vec::new(),
        }))
    }

    fn selection(&self, pod: &PodView) -> Result<Selection, RequestError> {
        Ok(super::selection(pod))
    }

    fn gathers(&self, _want: &Want<'_>, _ctx: &FitContext<'_>) -> bool {
        true
    }

    fn choose(&self, fitting: &[Candidate<'_>], want: &Want<'_>, _ctx: &FitContext<'_>) -> Option<Vec<usize>> {
        super::choose(self.topology, fitting, want.ask.count)
    }

    /// All shares of a card have one size.
    fn joins(
        &self,
        card: CardView<'_>,
        added: CardUsage,
        _facts: &BTreeMap<String, String>,
        _node: &NodeState,
    ) -> Result<(), ReasonKind> {
        let size = |usage: CardUsage| usage.memory.get().checked_div(u64::from(usage.slots));
        match (size(card.usage), size(added)) {
            (Some(there), Some(new)) if there != new => Err(ReasonKind::ClassRule),
            _ => Ok(()),
        }
    }

    fn conclude(
        &self,
        _found: &[Given],
        _gathered: bool,
        _want: &Want<'_>,
        ctx: &FitContext<'_>,
        reasons: &mut Vec<Reason>,
    ) {
        super::conclude(reasons, ctx.policy.has(tessera_types::CardOrder::Mutex));
    }

    fn admit(
        &self,
        container: &mut ContainerEdit<'_>,
        _pod: &PodView,
        _settings: &AdmitSettings,
    ) -> Result<Admit, RequestError> {
        let uses_device = amounts::count(container.view(), self.names.count.as_deref())?.is_some();
        // What is really taken stands in the pod, so that quotas and people see it.
        if let Some(name) = self.names.memory.as_deref().filter(|_| uses_device)
            && container.amount(name).is_some()
        {
            let share = self.share(container.view())?.unwrap_or(self.memory);
            amounts::set_both(container, name, share);
        }
        Ok(Admit {
            uses_device,
            ..Admit::default()
        })
    }
}
