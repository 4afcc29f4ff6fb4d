//! Partitions of a card.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;
use tessera_engine::{
    Admit, AdmitSettings, AnnotationKeys, CardView, ContainerEdit, FitContext, Given, HealthSource, LockKind,
    NodeProblem, RequestError, ResourceNames, Rules, Take, Unified, Vendor, Want, WriteContext, comma_list,
    common_conclusion,
};
use tessera_types::{
    Allocation, Ask, Card, CardId, CardMode, ContainerRole, Cores, Demand, Extras, Keyword, MemoryAsk, Mib, MigProfile,
    Reason, ReasonKind, Selection, Share,
};
use tessera_wire::config::{Enflame, EnflameMemoryUnit};
use tessera_wire::{ContainerView, NodeView, PodView, Quantity, Whole, device_text};

use super::profile::{self, Unit, Wish};
use super::{SLICED, twin};
use crate::{amounts, texts};

/// Node annotation of the vendor's plugin: cards and profiles.
const CAPACITY: &str = "enflame.com/gcu-drs-capacity";
const ALLOCATED: &str = "hami.io/enflame-vgpu-devices-allocated";
const ASSIGNED: &str = "enflame.com/gcu-assigned";
const ASSIGNED_TIME: &str = "enflame.com/gcu-assigned-time";
const ASSIGNED_INDEX: &str = "enflame.com/gcu-assigned-index";
const ASSIGNED_ID: &str = "enflame.com/gcu-assigned-id";
const ASSIGNED_MINOR: &str = "enflame.com/gcu-assigned-minor";
const REQUEST_SIZE: &str = "enflame.com/gcu-request-size";
const CONTAINERS: &str = "assigned-containers";
const USE_ID: &str = "enflame.com/use-gpuuuid";
const NO_USE_ID: &str = "enflame.com/nouse-gpuuuid";

const DEFAULT_NAME: &str = "enflame.com/drs-gcu";
/// More cards than this are no node's.
const CARDS_MAX: usize = 1024;
/// More slices than this are no card's.
const SLICES_MAX: u64 = 100;

/// Entries of [`Ask::extra`].
mod asked {
    /// Slices of exactly this number.
    pub(super) const SLICES: &str = "slices";
    /// Memory whose unit is guessed.
    pub(super) const MEMORY: &str = "memory";
    /// Memory in GiB.
    pub(super) const GIB: &str = "gib";
    /// Memory in MiB.
    pub(super) const MIB: &str = "mib";
    /// At least so many percent of the slices.
    pub(super) const PERCENT: &str = "percent";
    /// Slices of all the pod's containers that run together.
    pub(super) const OF_POD: &str = "slices of the pod";
}

/// The class of partitions.
#[derive(Debug, Clone)]
pub struct EnflameSliced {
    keyword: Keyword,
    names: ResourceNames,
    keys: AnnotationKeys,
    memory: Option<String>,
    cores: Option<String>,
    unit: EnflameMemoryUnit,
}

/// One container's entry of [`CONTAINERS`], in the plugin's order of members.
#[derive(Serialize)]
struct Assigned<'a> {
    allocated: bool,
    request: u32,
    #[serde(rename = "profileID")]
    profile_id: &'a str,
    #[serde(rename = "profileName")]
    profile_name: &'a str,
}

impl EnflameSliced {
    /// With the `enflame` section of the device configuration.
    ///
    /// # Panics
    /// Never: the keyword is a constant without separators.
    #[must_use]
    pub fn new(section: &Enflame) -> Self {
        let slices = [
            section.resource_name_drs_gcu.as_str(),
            &section.resource_name_vgcu,
            DEFAULT_NAME,
        ]
        .into_iter()
        .find(|name| !name.is_empty());
        let memory = amounts::name(&section.resource_name_gcu_memory);
        let cores = amounts::name(&section.resource_name_gcu_core);
        Self {
            keyword: Keyword::new(SLICED).expect("a constant without separators"),
            names: ResourceNames {
                count: slices.map(str::to_owned),
                memory_factor: 1,
                others: memory.iter().chain(&cores).cloned().collect(),
                ..ResourceNames::default()
            },
            keys: AnnotationKeys {
                register: Some(CAPACITY.to_owned()),
                allocated: Some(ALLOCATED.to_owned()),
                extra: [
                    ASSIGNED,
                    ASSIGNED_TIME,
                    ASSIGNED_INDEX,
                    ASSIGNED_ID,
                    ASSIGNED_MINOR,
                    REQUEST_SIZE,
                    CONTAINERS,
                ]
                .map(str::to_owned)
                .to_vec(),
                user: vec![USE_ID.to_owned(), NO_USE_ID.to_owned()],
                ..AnnotationKeys::default()
            },
            memory,
            cores,
            unit: section.memory_unit,
        }
    }

    fn slices_name(&self) -> &str {
        self.names.count.as_deref().unwrap_or_default()
    }

    /// Slices asked for by number; `None` if not asked for or 0.
    fn slices(&self, container: &ContainerView) -> Result<Option<u64>, RequestError> {
        let name = Some(self.slices_name());
        Ok(amounts::whole(container, name, "a number of slices", 100)?.filter(|slices| *slices > 0))
    }

    /// Memory asked for, with its unit.
    fn memory(&self, container: &ContainerView) -> Result<Option<(&'static str, u64)>, RequestError> {
        let Some(name) = self.memory.as_deref() else {
            return Ok(None);
        };
        let Some(quantity) = container.amount(name) else {
            return Ok(None);
        };
        // With a unit such as `16Gi` nothing is left to guess.
        if let Some(mib) = in_mib(quantity) {
            return Ok(Some((asked::MIB, mib)));
        }
        let number = amounts::whole(container, Some(name), "an amount of memory", amounts::WIRE_MAX)?.unwrap_or(0);
        let unit = match self.unit {
            EnflameMemoryUnit::Auto => asked::MEMORY,
            EnflameMemoryUnit::GiB => asked::GIB,
            EnflameMemoryUnit::MiB => asked::MIB,
        };
        Ok(Some((unit, number)))
    }

    fn percent(&self, container: &ContainerView) -> Result<Option<u64>, RequestError> {
        amounts::whole(container, self.cores.as_deref(), "a percentage of a card", 100)
    }

    /// Slices of the containers of `pod` that run at the same time and ask for a number of them.
    fn slices_of(&self, pod: &PodView) -> u64 {
        let asked = |container: &ContainerView| self.slices(container).ok().flatten().unwrap_or(0);
        pod.containers
            .iter()
            .filter(|container| container.role != ContainerRole::Init)
            .map(asked)
            .fold(0, u64::saturating_add)
    }

    fn is_mine(&self, ctx: &FitContext<'_>, position: usize) -> bool {
        ctx.node
            .cards()
            .get(position)
            .is_some_and(|card| card.class == self.keyword)
    }
}

/// `16Gi` or `20480Mi` in MiB; `None` for a number without a binary unit.
fn in_mib(quantity: &Quantity) -> Option<u64> {
    if !quantity.as_str().ends_with('i') {
        return None;
    }
    match quantity.whole() {
        Whole::Exact(bytes) => Some(u64::try_from(bytes).ok()?.div_ceil(1 << 20)),
        _ => None,
    }
}

fn wish(ask: &Ask) -> Wish {
    let of = |name: &str| {
        ask.extra
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, amount)| *amount)
    };
    if let Some(slices) = of(asked::SLICES) {
        return Wish::Slices(slices);
    }
    let memory = [
        (asked::MEMORY, Unit::Guess),
        (asked::GIB, Unit::Gib),
        (asked::MIB, Unit::Mib),
    ]
    .into_iter()
    .find_map(|(name, unit)| of(name).map(|amount| (amount, unit)));
    let (memory, unit) = memory.unwrap_or((0, Unit::Mib));
    Wish::Spec {
        memory,
        unit,
        percent: of(asked::PERCENT).unwrap_or(0),
    }
}

/// The profile that a share is, which its memory and compute tell.
fn profile_of<'a>(card: &'a Card, share: &Share) -> Option<&'a MigProfile> {
    card.mig_profiles
        .iter()
        .find(|profile| profile.memory == share.memory && profile.cores == share.cores)
}

fn profile_id<'a>(card: &'a Card, profile: &str) -> &'a str {
    card.custom
        .get(&format!("profile/{profile}"))
        .map_or("", String::as_str)
}

/// A number that the plugin writes as a number or as a text.
fn number(value: &Value) -> Option<u64> {
    value
        .as_u64()
        .or_else(|| value.as_str().and_then(|text| text.trim().parse().ok()))
}

fn label(value: &Value) -> Option<String> {
    match value {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

impl Vendor for EnflameSliced {
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
        HealthSource::Allocatable
    }

    fn node_lock(&self) -> LockKind {
        LockKind::None
    }

    /// A partition with all slices is a whole card by itself.
    fn rules(&self) -> Rules {
        Rules {
            topology: false,
            numa: false,
            whole_alone: false,
            exhausted: false,
            ..Rules::default()
        }
    }

    fn reserved_env(&self) -> &[&str] {
        &super::RESERVED_ENV
    }

    /// Cards whose entry does not read are left out; the others stay.
    fn decode_node(&self, node: &NodeView) -> Result<Vec<Card>, NodeProblem> {
        let text = node.annotation(CAPACITY).ok_or(NodeProblem::Absent)?;
        let unreadable = |fault: String| NodeProblem::Unreadable {
            key: CAPACITY.to_owned(),
            fault,
        };
        let register: Value = serde_json::from_str(text).map_err(|error| unreadable(error.to_string()))?;
        let devices = register["devices"].as_array().map(Vec::as_slice).unwrap_or_default();
        if devices.len() > CARDS_MAX {
            return Err(unreadable(format!("more than {CARDS_MAX} cards")));
        }
        let empty = serde_json::Map::new();
        let names = register["profiles"].as_object().unwrap_or(&empty);
        let profiles = profile::profiles(names.keys().map(String::as_str));
        let slices = profiles.iter().map(|profile| profile.slices).max();
        let memory = profiles.iter().map(|profile| profile.memory).max();
        let (Some(slices), Some(memory)) = (slices, memory) else {
            return Err(unreadable("no profile is of the form `3g.24gb`".to_owned()));
        };
        let mut cards = Vec::new();
        for (position, device) in devices.iter().enumerate() {
            let Some(capacity) = number(&device["capacity"]).filter(|slots| (1..=SLICES_MAX).contains(slots)) else {
                continue;
            };
            let capacity = u32::try_from(capacity).unwrap_or(1);
            let index = number(&device["index"])
                .and_then(|index| u32::try_from(index).ok())
                .unwrap_or_else(|| u32::try_from(position).unwrap_or(u32::MAX));
            let minor = label(&device["minor"]).unwrap_or_else(|| index.to_string());
            let mut custom: BTreeMap<String, String> = names
                .iter()
                .map(|(name, id)| (format!("profile/{name}"), label(id).unwrap_or_default()))
                .collect();
            custom.insert("index".to_owned(), index.to_string());
            custom.insert("minor".to_owned(), minor);
            let id = CardId::new(format!("{}-enflame-drs-{index}", node.name));
            cards.push(Card {
                id: id.map_err(|error| unreadable(error.to_string()))?,
                class: self.keyword.clone(),
                index,
                slots: capacity,
                memory,
                // So that slices, whose percent is rounded up, fill the card exactly.
                cores: Cores::new(profile::percent(1, slices).get() * capacity.min(slices)),
                model: Arc::from(SLICED),
                numa: 0,
                mode: CardMode::new(""),
                healthy: true,
                mig_profiles: profiles.clone(),
                link_scores: BTreeMap::new(),
                custom,
                extra: Extras::NONE,
                twin: twin(index),
            });
        }
        if cards.is_empty() {
            return Err(NodeProblem::Empty {
                key: CAPACITY.to_owned(),
            });
        }
        Ok(cards)
    }

    fn parse(&self, container: &ContainerView, pod: &PodView) -> Result<Option<Ask>, RequestError> {
        let mut extra: Vec<(String, u64)> = Vec::new();
        if let Some(slices) = self.slices(container)? {
            extra.push((asked::SLICES.to_owned(), slices));
            extra.push((asked::OF_POD.to_owned(), self.slices_of(pod).max(slices)));
        } else {
            let memory = self.memory(container)?;
            let percent = self.percent(container)?;
            for (name, amount) in [
                (self.memory.as_deref(), memory.map(|(_, amount)| amount)),
                (self.cores.as_deref(), percent),
            ] {
                if let (Some(name), Some(0)) = (name, amount) {
                    return Err(not_positive(&container.name, name));
                }
            }
            extra.extend(memory.map(|(unit, amount)| (unit.to_owned(), amount)));
            extra.extend(percent.map(|percent| (asked::PERCENT.to_owned(), percent)));
        }
        if extra.is_empty() {
            return Ok(None);
        }
        Ok(Some(Ask {
            class: self.keyword.clone(),
            count: 1,
            memory: MemoryAsk::Mib(Mib::ZERO),
            percent_beside: None,
            cores: Cores::ZERO,
            extra,
        }))
    }

    fn selection(&self, pod: &PodView) -> Result<Selection, RequestError> {
        Ok(Selection {
            use_ids: comma_list(pod.annotation(USE_ID)),
            avoid_ids: comma_list(pod.annotation(NO_USE_ID)),
            ..Selection::default()
        })
    }

    /// Says of the cards without a profile as wished which sizes they have.
    fn conclude(
        &self,
        found: &[Given],
        _gathered: bool,
        want: &Want<'_>,
        ctx: &FitContext<'_>,
        reasons: &mut Vec<Reason>,
    ) {
        for reason in reasons
            .iter_mut()
            .filter(|reason| reason.kind == ReasonKind::ModeMismatch)
        {
            let card = ctx
                .node
                .cards()
                .iter()
                .find(|card| Some(&card.id) == reason.card.as_ref());
            let Some(card) = card else { continue };
            let sizes: Vec<&str> = card.mig_profiles.iter().map(|profile| profile.name.as_str()).collect();
            reason.what = Some(Arc::from(format!(
                "without a partition of {} (there are {})",
                wish(want.ask),
                sizes.join(", ")
            )));
        }
        common_conclusion(found.len(), false, want.count, reasons);
    }

    /// The card has a profile as wished. The plugin reads one card from the pod, so all partitions of a pod lie on one.
    fn accepts(&self, card: CardView<'_>, want: &Want<'_>, ctx: &FitContext<'_>) -> Result<(), ReasonKind> {
        if profile::find(card.card, wish(want.ask)).is_none() {
            return Err(ReasonKind::ModeMismatch);
        }
        let mut mine = ctx.earlier.iter().filter(|earlier| self.is_mine(ctx, earlier.position));
        if mine.any(|earlier| earlier.position != card.position) {
            return Err(ReasonKind::ClassRule);
        }
        Ok(())
    }

    fn resolve(&self, card: &Card, ask: &Ask) -> (Mib, Cores) {
        profile::find(card, wish(ask)).map_or((Mib::ZERO, Cores::ZERO), |profile| (profile.memory, profile.cores))
    }

    /// The first container's card must have room for the pod's other containers too.
    fn check(&self, card: CardView<'_>, want: &Want<'_>, ctx: &FitContext<'_>) -> Result<Take, Reason> {
        let all = want.ask.extra.iter().find(|(name, _)| name == asked::OF_POD);
        let first = !ctx.earlier.iter().any(|earlier| self.is_mine(ctx, earlier.position));
        let slices = card.card.mig_profiles.iter().map(|profile| profile.slices).max();
        if let (Some((_, all)), Some(slices), true) = (all, slices, first) {
            let one = u64::from(profile::percent(1, slices).get().max(1));
            let free = u64::from(card.card.cores.saturating_sub(card.usage.cores).get()) / one;
            if *all > free {
                let id = Some(card.card.id.clone());
                return Err(Reason::short_of(ReasonKind::CoresShort, id, "slices", *all, free));
            }
        }
        Ok(Take::as_wanted(want))
    }

    /// Slices are no parts that memory and compute could name exactly; whole cards are the other class's.
    fn translate(&self, _request: &Unified) -> Option<Vec<(String, u64)>> {
        None
    }

    fn annotations(&self, allocation: &Allocation, demand: &Demand, at: &WriteContext<'_>) -> BTreeMap<String, String> {
        let mut annotations = BTreeMap::new();
        let Some(class) = allocation.classes.get(&self.keyword) else {
            return annotations;
        };
        let mut put = |key: &str, value: String| {
            annotations.insert(key.to_owned(), value);
        };
        put(ALLOCATED, device_text::print(class));
        let mut assigned: BTreeMap<&str, Assigned<'_>> = BTreeMap::new();
        for (container, shares) in demand.containers.iter().zip(class) {
            let Some(share) = shares.first() else { continue };
            let Some((card, profile)) = at
                .card(&share.card)
                .and_then(|card| Some((card, profile_of(card, share)?)))
            else {
                continue;
            };
            if assigned.is_empty() {
                let of = |name: &str| card.custom.get(name).cloned().unwrap_or_default();
                put(ASSIGNED_INDEX, of("index"));
                put(ASSIGNED_ID, of("index"));
                put(ASSIGNED_MINOR, of("minor"));
                put(REQUEST_SIZE, profile.slices.to_string());
            }
            let entry = Assigned {
                allocated: false,
                request: profile.slices,
                profile_id: profile_id(card, &profile.name),
                profile_name: &profile.name,
            };
            assigned.insert(&container.name, entry);
        }
        if let Ok(text) = serde_json::to_string(&assigned) {
            put(CONTAINERS, text);
        }
        put(ASSIGNED, "false".to_owned());
        put(ASSIGNED_TIME, texts::nanoseconds(at.now_seconds));
        annotations
    }

    fn admit(
        &self,
        container: &mut ContainerEdit<'_>,
        _pod: &PodView,
        _settings: &AdmitSettings,
    ) -> Result<Admit, RequestError> {
        let mut admit = Admit::default();
        let view = container.view();
        let name = self.slices_name();
        if container.amount(name).is_some() {
            let Some(slices) = self.slices(view)? else {
                return Err(not_positive(&view.name, name));
            };
            amounts::set_both(container, name, slices);
            admit.uses_device = true;
            return Ok(admit);
        }
        for (resource, is_percent) in [(&self.memory, false), (&self.cores, true)] {
            let Some(resource) = resource.as_deref() else { continue };
            let Some(quantity) = container.amount(resource) else {
                continue;
            };
            match quantity.whole() {
                Whole::Exact(value) if value <= 0 => return Err(not_positive(&view.name, resource)),
                Whole::Exact(value) if is_percent && value > 100 => {
                    let text = format!(
                        "{resource} must be in range (0,100], got {value} in container {}; write the percent of a card",
                        view.name
                    );
                    return Err(RequestError::sentence(Some(view.name.clone()), text));
                }
                // A unit would be lost; the API server asks for both entries only if they differ.
                Whole::Exact(_) if in_mib(quantity).is_some() => {}
                Whole::Exact(value) => amounts::set_both(container, resource, u64::try_from(value).unwrap_or(0)),
                _ => {
                    return Err(RequestError::resource(
                        &view.name,
                        resource,
                        format!("`{quantity}` is not a whole number"),
                        "write a whole number of 1 or more",
                    ));
                }
            }
            admit.uses_device = true;
        }
        if admit.uses_device {
            admit.warnings.push(format!(
                "container `{}`: the vendor's plugin hands out partitions by `{name}` only; with memory and compute \
                 alone the partition is chosen, but the container starts without it unless the node has another \
                 component for that. Write `{name}` with the number of slices",
                view.name
            ));
        }
        Ok(admit)
    }
}

/// HAMi's own words first, which tools match on.
fn not_positive(container: &str, name: &str) -> RequestError {
    RequestError::sentence(
        Some(container.to_owned()),
        format!("{name} must be greater than 0 in container {container}; leave it out to ask for nothing"),
    )
}
