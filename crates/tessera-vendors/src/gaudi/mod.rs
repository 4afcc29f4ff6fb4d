//! Intel Gaudi: whole cards. A second process cannot open one, so there is nothing to share.

use std::collections::BTreeMap;
use std::sync::Arc;

use tessera_engine::{
    Admit, AdmitSettings, AnnotationKeys, Candidate, CardView, ContainerEdit, FitContext, HealthSource, LockKind,
    NodeProblem, RequestError, ResourceNames, Vendor, Want, common_accepts,
};
use tessera_types::{
    Ask, Card, CardId, CardMode, ContainerRole, Cores, Dimension, Extras, Keyword, MemoryAsk, Mib, Reason, ReasonKind,
    Selection, WHOLE_CARD_CORES,
};
use tessera_wire::config::{self, DeviceConfig};
use tessera_wire::{ContainerView, NodeView, PodView, Whole};

use crate::texts::SelectionKeys;
use crate::{Options, amounts, nodes};

/// The class's keyword.
pub const KEYWORD: &str = "Gaudi";
/// Node: the list of cards.
pub const REGISTER: &str = "hami.io/node-gaudi-register";
/// Pod: what is to be handed out.
pub const TO_ALLOCATE: &str = "hami.io/gaudi-devices-to-allocate";
/// Pod: what was given.
pub const ALLOCATED: &str = "hami.io/gaudi-devices-allocated";

const NUMA_BIND: &str = "gaudi.intel.com/numa-bind";
const SELECTION: SelectionKeys<'_> = SelectionKeys {
    use_models: "gaudi.intel.com/use-type",
    avoid_models: "gaudi.intel.com/nouse-type",
    use_ids: "gaudi.intel.com/use-uuid",
    avoid_ids: "gaudi.intel.com/nouse-uuid",
    numa_bind: NUMA_BIND,
};

/// Fact of a node whose cards are counted: how many kubelet may give out.
const ALLOCATABLE: &str = "allocatable";
/// More cards than any node has.
const CARDS_MAX: u32 = 1024;
/// Modules of a server that are joined more closely: 0 to 3, 4 to 7.
const HALF: u32 = 4;

/// The Gaudi class with the cluster's settings.
#[derive(Debug, Clone)]
pub struct Gaudi {
    keyword: Keyword,
    names: ResourceNames,
    keys: AnnotationKeys,
    settings: config::Gaudi,
}

/// The class, if the configuration has its section.
pub(crate) fn classes(config: &DeviceConfig, _options: &Options) -> Vec<Arc<dyn Vendor>> {
    config
        .gaudi
        .iter()
        .filter(|settings| !settings.resource_count_name.is_empty())
        .map(|settings| Arc::new(Gaudi::new(settings)) as Arc<dyn Vendor>)
        .collect()
}

impl Gaudi {
    /// With the `gaudi` section of the device configuration.
    ///
    /// # Panics
    /// Never: the keyword is a constant without separators.
    #[must_use]
    pub fn new(settings: &config::Gaudi) -> Self {
        Self {
            keyword: Keyword::new(KEYWORD).expect("a constant without separators"),
            names: ResourceNames {
                count: amounts::name(&settings.resource_count_name),
                memory_factor: 1,
                ..ResourceNames::default()
            },
            keys: AnnotationKeys {
                register: Some(REGISTER.to_owned()),
                to_allocate: Some(TO_ALLOCATE.to_owned()),
                allocated: Some(ALLOCATED.to_owned()),
                user: SELECTION.all().map(str::to_owned).collect(),
                ..AnnotationKeys::default()
            },
            settings: settings.clone(),
        }
    }

    fn count_name(&self) -> &str {
        self.names.count.as_deref().unwrap_or_default()
    }

    /// As many cards as the node has, all alike: size, model and place are not known, and nobody needs them for whole
    /// cards. Which of them are broken is not known either; [`Gaudi::refuse_node`] keeps that many free.
    fn counted(&self, node: &NodeView) -> Result<Vec<Card>, NodeProblem> {
        let count = node.capacity_count(self.count_name());
        if count <= 0 {
            return Err(NodeProblem::Absent);
        }
        let problem = |fault: String| NodeProblem::Capacity {
            resource: self.count_name().to_owned(),
            fault,
        };
        let count = u32::try_from(count)
            .ok()
            .filter(|count| *count <= CARDS_MAX)
            .ok_or_else(|| problem(format!("{count} is not a number of cards of one node")))?;
        (0..count)
            .map(|index| {
                let id = format!("{}-gaudi-{index}", node.name);
                Ok(Card {
                    id: CardId::new(id).map_err(|error| problem(error.to_string()))?,
                    class: self.keyword.clone(),
                    index,
                    slots: 1,
                    memory: Mib::ZERO,
                    cores: WHOLE_CARD_CORES,
                    extra: Extras::NONE,
                    model: Arc::from(KEYWORD),
                    numa: -1,
                    mode: CardMode::new("card"),
                    healthy: true,
                    mig_profiles: Vec::new(),
                    link_scores: BTreeMap::new(),
                    twin: None,
                    custom: BTreeMap::new(),
                })
            })
            .collect()
    }
}

/// Which half of its server a card's module is in; `None` if the node does not tell.
fn half(card: &Card) -> Option<u32> {
    card.custom
        .get("module")?
        .parse::<u32>()
        .ok()
        .map(|module| module / HALF)
}

/// The candidates for `count` cards that lie together, as indices: in one NUMA node and one half of the server, else
/// in one of the two. Of several such places the one with the fewest free cards, then the first examined.
fn together(fitting: &[Candidate<'_>], count: usize) -> Option<Vec<usize>> {
    type Place = (Option<i32>, Option<u32>);
    let places: [fn(&Card) -> Place; 3] = [
        |card| (Some(card.numa), half(card)),
        |card| (Some(card.numa), None),
        |card| (None, half(card)),
    ];
    places.into_iter().find_map(|place| {
        let mut groups: Vec<(Place, Vec<usize>)> = Vec::new();
        for (at, candidate) in fitting.iter().enumerate() {
            let here = place(candidate.card);
            match groups.iter_mut().find(|(known, _)| *known == here) {
                Some((_, members)) => members.push(at),
                None => groups.push((here, vec![at])),
            }
        }
        groups.retain(|(place, members)| *place != (None, None) && members.len() >= count);
        // `min_by_key` keeps the first of equal ones.
        let (_, mut members) = groups.into_iter().min_by_key(|(_, members)| members.len())?;
        members.truncate(count);
        Some(members)
    })
}

impl Vendor for Gaudi {
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

    /// The node agent tells containers apart by the ids that kubelet hands out.
    fn node_lock(&self) -> LockKind {
        LockKind::None
    }

    /// Whatever a node registers, a card is given once. A node with Habana's plugin alone registers nothing; its cards
    /// are counted, and the plugin chooses which they are.
    fn decode_node(&self, node: &NodeView) -> Result<Vec<Card>, NodeProblem> {
        let mut cards = match nodes::registered(node, REGISTER, &self.keyword) {
            Err(NodeProblem::Absent) => return self.counted(node),
            cards => cards?,
        };
        for card in &mut cards {
            card.slots = card.slots.min(1);
        }
        Ok(cards)
    }

    fn node_facts(&self, node: &NodeView) -> BTreeMap<String, String> {
        if node.annotation(REGISTER).is_some() {
            return BTreeMap::new();
        }
        let count = node.allocatable_count(self.count_name());
        BTreeMap::from([(ALLOCATABLE.to_owned(), count.to_string())])
    }

    /// Of counted cards no more are given than kubelet has working ones.
    fn refuse_node(&self, want: &Want<'_>, ctx: &FitContext<'_>) -> Option<Reason> {
        let on_node = ctx.node.class(&self.keyword)?;
        let working = on_node.facts.get(ALLOCATABLE)?.parse::<u64>().ok()?;
        let others = ctx.node.usage().get(on_node.cards.clone())?;
        let others: u64 = others.iter().map(|used| u64::from(used.usage.slots)).sum();
        let earlier = ctx
            .earlier
            .iter()
            .filter(|earlier| earlier.role != ContainerRole::Init && on_node.cards.contains(&earlier.position));
        let used = others.saturating_add(u64::try_from(earlier.count()).unwrap_or(u64::MAX));
        let (wanted, free) = (u64::from(want.count), working.saturating_sub(used));
        (wanted > free).then(|| Reason::short(ReasonKind::TooFewCards, None, Dimension::Cards, wanted, free))
    }

    /// Habana's runtime gives a container the cards that this names.
    fn reserved_env(&self) -> &[&str] {
        &["HABANA_VISIBLE_DEVICES"]
    }

    fn parse(&self, container: &ContainerView, _pod: &PodView) -> Result<Option<Ask>, RequestError> {
        let Some(quantity) = container.amount(self.count_name()) else {
            return Ok(None);
        };
        let count = amounts::count_of(&container.name, self.count_name(), quantity)?;
        Ok((count > 0).then(|| Ask {
            class: self.keyword.clone(),
            count,
            memory: MemoryAsk::Whole,
            percent_beside: None,
            cores: WHOLE_CARD_CORES,
            extra: Vec::new(),
        }))
    }

    fn selection(&self, pod: &PodView) -> Result<Selection, RequestError> {
        Ok(SELECTION.read(pod))
    }

    /// Models are generations, and `Gaudi` is one of them: a name is the whole name, in any case.
    fn accepts(&self, card: CardView<'_>, want: &Want<'_>, _ctx: &FitContext<'_>) -> Result<(), ReasonKind> {
        let is = |list: &[String]| list.iter().any(|entry| entry.eq_ignore_ascii_case(&card.card.model));
        let selection = want.selection;
        if selection.use_models.as_deref().is_some_and(|list| !is(list))
            || selection.avoid_models.as_deref().is_some_and(is)
        {
            return Err(ReasonKind::ModelMismatch);
        }
        common_accepts(
            card.card,
            &Selection {
                use_models: None,
                avoid_models: None,
                ..selection.clone()
            },
        )?;
        if card.usage.slots > 0 {
            return Err(ReasonKind::ExclusiveConflict);
        }
        Ok(())
    }

    fn resolve(&self, card: &Card, _ask: &Ask) -> (Mib, Cores) {
        (card.memory, card.cores)
    }

    fn gathers(&self, want: &Want<'_>, _ctx: &FitContext<'_>) -> bool {
        want.ask.count > 1
    }

    fn choose(&self, fitting: &[Candidate<'_>], want: &Want<'_>, _ctx: &FitContext<'_>) -> Option<Vec<usize>> {
        let count = usize::try_from(want.ask.count).unwrap_or(usize::MAX);
        if fitting.len() < count {
            return None;
        }
        if let Some(members) = together(fitting, count) {
            let one_node = |members: &[usize]| {
                let mut numas = members.iter().map(|at| fitting[*at].card.numa);
                let first = numas.next();
                numas.all(|numa| Some(numa) == first)
            };
            if !want.selection.numa_bind || one_node(&members) {
                return Some(members);
            }
        }
        // All the cards of a server are joined, whatever their number.
        let all = want_all(fitting, count);
        let refuse = want.selection.numa_bind || (self.settings.strict_topology && !all);
        (!refuse).then(|| (0..count).collect())
    }

    fn admit(
        &self,
        container: &mut ContainerEdit<'_>,
        _pod: &PodView,
        _settings: &AdmitSettings,
    ) -> Result<Admit, RequestError> {
        let view = container.view();
        let mut admit = Admit::default();
        let count = self.count_name();
        let Some(quantity) = view.amount(count) else {
            return Ok(admit);
        };
        if !matches!(quantity.whole(), Whole::Exact(1..=amounts::WIRE_MAX)) {
            return Err(RequestError::resource(
                &view.name,
                count,
                format!("`{quantity}` is not a number of cards"),
                "write a whole number, such as 1",
            ));
        }
        // Names of the same vendor in the same container: parts of a card, which do not exist.
        let prefix = count.split_once('/').map_or("", |(prefix, _)| prefix);
        let part = view.limits.keys().find(|name| {
            *name != count && !prefix.is_empty() && name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'))
        });
        if let Some(part) = part {
            let text = format!(
                "container {}: a Gaudi card cannot be shared; remove `{part}` and ask for whole cards with `{count}`",
                view.name
            );
            return Err(RequestError::sentence(Some(view.name.clone()), text));
        }
        admit.uses_device = true;
        Ok(admit)
    }
}

/// Whether the candidates are exactly as many as wanted, and a whole server of two halves.
fn want_all(fitting: &[Candidate<'_>], count: usize) -> bool {
    let halves = usize::try_from(2 * HALF).unwrap_or(usize::MAX);
    count == halves && fitting.len() == count
}
