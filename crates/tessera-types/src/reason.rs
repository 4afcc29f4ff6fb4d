//! Why a card or a node was refused. One value; event text, HTTP text, metric label and advice are renderings.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{CardId, Keyword};

/// What was short or wrong, as a closed set. [`ReasonKind::token`] is HAMi's word for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ReasonKind {
    /// The card does not work.
    Unhealthy,
    /// An administrator keeps new work off the card.
    Cordoned,
    /// The model is not among those asked for.
    ModelMismatch,
    /// The card's mode is not among those asked for, where HAMi has a word of its own for that.
    ModeMismatch,
    /// The card's mode is not among those asked for; HAMi counts it as a wrong model.
    CardMode,
    /// The id is not among those asked for.
    IdMismatch,
    /// The pod's own rule refuses the card.
    RuleMismatch,
    /// All slots are taken.
    SlotsExhausted,
    /// All compute is promised, so not even a task without a claim is admitted.
    ComputeExhausted,
    /// Too little memory is free.
    MemoryShort,
    /// Too little compute is free.
    CoresShort,
    /// The cards do not lie on one NUMA node.
    NumaMismatch,
    /// The card must be unused and is not.
    ExclusiveConflict,
    /// Too little is free of something that only the class counts.
    AmountShort,
    /// A wall between containers is wanted that the card does not have.
    IsolationShort,
    /// Parts of one piece of hardware exclude each other, and the other is in use.
    PartitionConflict,
    /// The card's other users run under another policy of service.
    QosMismatch,
    /// The card's other users are of another class of application.
    AppClassMismatch,
    /// The card does not work, where HAMi has a word of its own for that.
    UnhealthyCard,
    /// A rule of the class refuses the card.
    ClassRule,
    /// No hardware instance of the size can be placed.
    NoPlacement,
    /// The namespace's quota is used up.
    QuotaShort,
    /// Some cards fit, but not enough of them.
    TooFewFit,
    /// The node has fewer cards of the class than asked for.
    TooFewCards,
    /// The node has no card of the class.
    ClassAbsent,
}

impl ReasonKind {
    /// The word that HAMi's users and dashboards know.
    #[must_use]
    pub const fn token(self) -> &'static str {
        match self {
            Self::Unhealthy => "CardNotHealth",
            Self::Cordoned => "CardCordoned",
            Self::ModelMismatch | Self::CardMode => "CardTypeMismatch",
            Self::ModeMismatch => "ModeNotFit",
            Self::IdMismatch => "CardUuidMismatch",
            Self::SlotsExhausted => "CardTimeSlicingExhausted",
            Self::ComputeExhausted => "CardComputeUnitsExhausted",
            Self::MemoryShort => "CardInsufficientMemory",
            Self::CoresShort | Self::AmountShort => "CardInsufficientCore",
            Self::NumaMismatch => "NumaNotFit",
            Self::ExclusiveConflict => "ExclusiveDeviceAllocateConflict",
            Self::IsolationShort => "CardIsolationNotFit",
            Self::PartitionConflict => "CardPartitionConflict",
            Self::QosMismatch => "CardQosPolicyMismatch",
            Self::AppClassMismatch => "CardAppClassMismatch",
            Self::UnhealthyCard => "CardUnhealthy",
            Self::ClassRule | Self::RuleMismatch => "CardNotFoundCustomFilterRule",
            Self::NoPlacement => "CardMigTopologyInfeasible",
            Self::QuotaShort => "ResourceQuotaNotFit",
            Self::TooFewFit => "AllocatedCardsInsufficientRequest",
            Self::TooFewCards => "NodeInsufficientDevice",
            Self::ClassAbsent => "Device type not found",
        }
    }

    /// A short name for metric labels and logs; a closed set.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Unhealthy | Self::UnhealthyCard => "unhealthy",
            Self::Cordoned => "cordoned",
            Self::ModelMismatch => "model-mismatch",
            Self::ModeMismatch | Self::CardMode => "mode-mismatch",
            Self::IdMismatch => "id-mismatch",
            Self::RuleMismatch => "rule-mismatch",
            Self::SlotsExhausted => "slots-exhausted",
            Self::ComputeExhausted => "compute-exhausted",
            Self::MemoryShort => "memory-short",
            Self::CoresShort => "cores-short",
            Self::NumaMismatch => "numa-mismatch",
            Self::ExclusiveConflict => "exclusive-conflict",
            Self::AmountShort => "amount-short",
            Self::IsolationShort => "isolation-short",
            Self::PartitionConflict => "partition-conflict",
            Self::QosMismatch => "qos-mismatch",
            Self::AppClassMismatch => "app-class-mismatch",
            Self::ClassRule => "class-rule",
            Self::NoPlacement => "no-placement",
            Self::QuotaShort => "quota-short",
            Self::TooFewFit => "too-few-fit",
            Self::TooFewCards => "too-few-cards",
            Self::ClassAbsent => "class-absent",
        }
    }
}

/// In what an amount is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dimension {
    /// Memory, MiB.
    MemoryMib,
    /// Compute, percent of a card.
    CoresPercent,
    /// Slots of a card.
    Slots,
    /// Cards.
    Cards,
    /// Something that only the class counts.
    Other,
}

/// Why one card (or all of them together) did not fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// What kind.
    pub kind: ReasonKind,
    /// Which card; `None` if it concerns the node's cards together.
    pub card: Option<CardId>,
    /// How much was wanted, if an amount was short.
    pub wanted: Option<(Dimension, u64)>,
    /// How much was free in the same dimension.
    pub free: Option<u64>,
    /// What [`Dimension::Other`] counts, in words; with no amount, the rule that was broken, as a clause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub what: Option<Arc<str>>,
    /// How many cards HAMi's counted text charges to this reason (1 for a single card).
    pub count: u32,
}

impl Reason {
    /// A reason without an amount.
    #[must_use]
    pub fn of(kind: ReasonKind, card: Option<CardId>) -> Self {
        Self {
            kind,
            card,
            wanted: None,
            free: None,
            what: None,
            count: 1,
        }
    }

    /// An amount that is short.
    #[must_use]
    pub fn short(kind: ReasonKind, card: Option<CardId>, dimension: Dimension, wanted: u64, free: u64) -> Self {
        Self {
            kind,
            card,
            wanted: Some((dimension, wanted)),
            free: Some(free),
            what: None,
            count: 1,
        }
    }

    /// An amount that only the class counts is short; `what` names it ("AI CPUs").
    #[must_use]
    pub fn short_of(kind: ReasonKind, card: Option<CardId>, what: &str, wanted: u64, free: u64) -> Self {
        Self {
            what: Some(Arc::from(what)),
            ..Self::short(kind, card, Dimension::Other, wanted, free)
        }
    }

    /// Says more exactly what is wrong, for people.
    #[must_use]
    pub fn because(mut self, what: &str) -> Self {
        self.what = Some(Arc::from(what));
        self
    }
}

/// Why a node did not fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum NodeRefusal {
    /// The node registers no cards at all, or is unknown.
    Unregistered,
    /// The node has cards of the class, but takes no new work for it.
    ClassClosed {
        /// Which class.
        class: Keyword,
        /// Why, as a clause that can follow "because".
        cause: String,
    },
    /// Its cards were tried; `cards` is how many of the class it has.
    Cards {
        /// Which class was short.
        class: Keyword,
        /// Cards of the class on the node.
        cards: u32,
        /// Which container could not be placed (position in the pod).
        container: u32,
        /// In the order of examination.
        reasons: Vec<Reason>,
    },
}
