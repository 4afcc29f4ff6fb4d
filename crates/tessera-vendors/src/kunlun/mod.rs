//! Kunlunxin: whole cards (`kunlun`), and virtual cards that a card is split into (`XPU`).
//!
//! Eight cards make a board of two wings of four. Inside a wing all cards are linked; between the wings some pairs are.
//! Both classes choose cards that are linked with each other ([`links`]), by the card's index.

mod links;
mod virt;
mod whole;

use std::sync::Arc;

use tessera_engine::{Candidate, CardView, Vendor, comma_list};
use tessera_types::{Card, Reason, ReasonKind, Selection};
use tessera_wire::PodView;
use tessera_wire::config::{DeviceConfig, Kunlun, KunlunTopology};

use crate::Options;

pub use virt::KunlunVirtual;
pub use whole::KunlunWhole;

/// The keyword of whole cards.
pub const WHOLE: &str = "kunlun";
/// The keyword of virtual cards.
pub const VIRTUAL: &str = "XPU";

const USE_ID: [&str; 2] = ["baidu.com/use-gpuuuid", "hami.io/use-xpu-uuid"];
const NO_USE_ID: [&str; 2] = ["baidu.com/nouse-gpuuuid", "hami.io/no-use-xpu-uuid"];

/// MiB of a card where the configuration states nothing.
const CARD_MEMORY_MIB: u64 = 98_304;
/// MiB of the shares of such a card.
const SHARES_MIB: [u64; 2] = [24_576, 49_152];

/// Both classes.
pub(crate) fn classes(config: &DeviceConfig, _options: &Options) -> Vec<Arc<dyn Vendor>> {
    config.kunlun.as_ref().map_or_else(Vec::new, |section| {
        vec![
            Arc::new(KunlunWhole::new(section)) as Arc<dyn Vendor>,
            Arc::new(KunlunVirtual::new(section)),
        ]
    })
}

fn card_memory(section: &Kunlun) -> u64 {
    match section.card_memory_mib {
        0 => CARD_MEMORY_MIB,
        mib => u64::from(mib),
    }
}

/// A pod states ids under two names of each kind, and a card must pass all of them.
fn selection(pod: &PodView) -> Selection {
    let lists = |keys: [&str; 2]| {
        let [first, second] = keys.map(|key| comma_list(pod.annotation(key)));
        (first, second)
    };
    let use_ids = match lists(USE_ID) {
        (Some(first), Some(second)) => Some(first.into_iter().filter(|id| second.contains(id)).collect()),
        (first, second) => first.or(second),
    };
    let avoid_ids = match lists(NO_USE_ID) {
        (Some(mut first), Some(second)) => {
            first.extend(second);
            Some(first)
        }
        (first, second) => first.or(second),
    };
    Selection {
        use_ids,
        avoid_ids,
        ..Selection::default()
    }
}

fn user_keys() -> Vec<String> {
    USE_ID.into_iter().chain(NO_USE_ID).map(str::to_owned).collect()
}

/// Whether the pod accepts the card's id. The engine tests ids after the class's own rule and reports a mismatch;
/// the rule must not report another reason first.
fn accepts_id(card: CardView<'_>, selection: &Selection) -> bool {
    let id = card.card.id.as_str();
    let has = |list: &Vec<String>| list.iter().any(|entry| entry == id);
    selection.use_ids.as_ref().is_none_or(has) && !selection.avoid_ids.as_ref().is_some_and(has)
}

/// The name of a physical card, the same for both classes.
fn twin(index: u32) -> Option<Arc<str>> {
    Some(Arc::from(format!("kunlun-{index}")))
}

/// The linked set of the fitting cards.
fn choose(topology: KunlunTopology, fitting: &[Candidate<'_>], count: u32) -> Option<Vec<usize>> {
    let mut places: Vec<(u32, usize)> = fitting
        .iter()
        .enumerate()
        .map(|(at, candidate)| (candidate.card.index, at))
        .collect();
    places.sort_unstable();
    let indexes: Vec<u32> = places.iter().map(|(index, _)| *index).collect();
    let chosen = match topology {
        KunlunTopology::None => {
            let count = usize::try_from(count).ok()?;
            indexes.get(..count)?.to_vec()
        }
        KunlunTopology::Auto | KunlunTopology::P8008 => links::linked_set(&indexes, count)?,
    };
    chosen
        .iter()
        .map(|index| places.iter().find(|(known, _)| known == index).map(|(_, at)| *at))
        .collect()
}

/// The reasons as HAMi counts them: cards refused by id (and, if `exclusive`, those in use that are wanted alone);
/// else one word for the node. The others stay for people, and so do those that HAMi's class does not know.
fn conclude(reasons: &mut Vec<Reason>, exclusive: bool) {
    let counted = |kind: ReasonKind| match kind {
        ReasonKind::IdMismatch | ReasonKind::Cordoned | ReasonKind::QuotaShort => true,
        ReasonKind::ExclusiveConflict => exclusive,
        _ => false,
    };
    for reason in reasons.iter_mut().filter(|reason| !counted(reason.kind)) {
        reason.count = 0;
    }
    if !reasons.iter().any(|reason| counted(reason.kind)) {
        reasons
            .push(Reason::of(ReasonKind::NumaMismatch, None).because("no linked cards are free in the number wanted"));
    }
}

/// Indexes say which cards are linked. A register whose indexes are not all different says nothing by them: then
/// cards are counted in the order in which they stand.
fn number(cards: &mut [Card]) {
    let distinct: std::collections::BTreeSet<u32> = cards.iter().map(|card| card.index).collect();
    let keep = distinct.len() == cards.len();
    for (position, card) in (0_u32..).zip(cards) {
        if !keep {
            card.index = position;
        }
        card.twin = twin(card.index);
    }
}
