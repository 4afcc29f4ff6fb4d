//! AWS Neuron: whole devices, or some of a device's cores.
//!
//! Cores are told apart: each is an amount of its own, so that no core is given twice. What a number of cores means
//! depends on the node: four are one device of eight cores, and two devices of two.

mod cores;
mod links;

use std::collections::BTreeMap;
use std::sync::Arc;

use tessera_engine::{
    Admit, AdmitSettings, AllocationProblem, AnnotationKeys, Candidate, CardView, ContainerEdit, FitContext, Given,
    HealthSource, LockKind, NodeProblem, RequestError, ResourceNames, Rules, Take, Vendor, Want, WriteContext,
    comma_list, read_device_text,
};
use tessera_types::{
    Allocation, Ask, Card, CardId, CardMode, CardOrder, ClassAllocation, Cores, Demand, Keyword, MemoryAsk, Mib,
    MigReservation, Reason, ReasonKind, Selection, Share,
};
use tessera_wire::config::{AwsNeuron as Section, DeviceConfig, NeuronTopology};
use tessera_wire::{ContainerView, NodeView, PodView, Whole, device_text};

use crate::Options;
use crate::amounts::{self, WIRE_MAX};
use crate::{nodes, texts};

/// The class's keyword.
pub const KEYWORD: &str = "AWSNeuron";

const ALLOCATED: &str = "hami.io/aws-neuron-devices-allocated";
const IDS: &str = "AWS_NEURON_IDS";
const RESOURCE_TYPE: &str = "NEURON_RESOURCE_TYPE";
const ALLOC_TIME: &str = "NEURON_ALLOC_TIME";
const IS_ALLOCATED: &str = "NEURON_ALLOCATED";
const PREDICATE_NODE: &str = "aws.amazon.com/predicate-node";
const USE_ID: &str = "aws.amazon.com/use-neuron-uuid";
const NO_USE_ID: &str = "aws.amazon.com/nouse-neuron-uuid";
/// The cores that the runtime in a container uses, of the devices it has.
const ENV_CORES: &str = "NEURON_RT_VISIBLE_CORES";
const INSTANCE_TYPE: &str = "node.kubernetes.io/instance-type";

/// Member of [`Card::custom`]: the node's instance type.
const NODE_TYPE: &str = "AWSNodeType";
/// Entry of [`Ask::extra`]: so many cores, instead of whole devices.
const CORES: &str = "cores";

/// The class.
#[derive(Debug, Clone)]
pub struct AwsNeuron {
    keyword: Keyword,
    names: ResourceNames,
    keys: AnnotationKeys,
    topology: NeuronTopology,
}

/// The class, if configured.
pub(crate) fn classes(config: &DeviceConfig, _options: &Options) -> Vec<Arc<dyn Vendor>> {
    config
        .awsneuron
        .iter()
        .map(|section| Arc::new(AwsNeuron::new(section)) as Arc<dyn Vendor>)
        .collect()
}

impl AwsNeuron {
    /// With the `awsneuron` section of the device configuration.
    ///
    /// # Panics
    /// Never: the keyword is a constant without separators.
    #[must_use]
    pub fn new(section: &Section) -> Self {
        Self {
            keyword: Keyword::new(KEYWORD).expect("a constant without separators"),
            names: ResourceNames {
                count: amounts::name(&section.resource_count_name),
                cores: amounts::name(&section.resource_core_name),
                memory_factor: 1,
                ..ResourceNames::default()
            },
            keys: AnnotationKeys {
                allocated: Some(ALLOCATED.to_owned()),
                extra: [IDS, RESOURCE_TYPE, ALLOC_TIME, IS_ALLOCATED, PREDICATE_NODE]
                    .map(str::to_owned)
                    .to_vec(),
                user: vec![USE_ID.to_owned(), NO_USE_ID.to_owned()],
                ..AnnotationKeys::default()
            },
            topology: section.topology,
        }
    }

    fn count_name(&self) -> Option<&str> {
        self.names.count.as_deref()
    }

    fn core_name(&self) -> Option<&str> {
        self.names.cores.as_deref()
    }

    fn devices(&self, container: &ContainerView) -> Result<Option<u32>, RequestError> {
        amounts::count(container, self.count_name())
    }

    fn cores(&self, container: &ContainerView) -> Result<Option<u64>, RequestError> {
        let cores = amounts::whole(container, self.core_name(), "a number of cores", WIRE_MAX)?;
        Ok(cores.filter(|cores| *cores > 0))
    }

    /// Cores of each device: from the node's two resources, else from its instance type; 0 if neither tells.
    fn cores_per_device(&self, node: &NodeView, devices: u32) -> Result<u32, NodeProblem> {
        let kind = node.labels.get(INSTANCE_TYPE).map_or("", String::as_str);
        let Some(name) = self.core_name().filter(|name| node.capacity.contains_key(*name)) else {
            return Ok(links::cores_of(kind));
        };
        let all = node.capacity_count(name);
        let problem = |fault: String| NodeProblem::Capacity {
            resource: name.to_owned(),
            fault,
        };
        let devices = i64::from(devices);
        if all < 0 || all % devices != 0 {
            return Err(problem(format!(
                "{all} cores cannot be shared evenly by {devices} devices"
            )));
        }
        u32::try_from(all / devices)
            .ok()
            .filter(|cores| *cores <= cores::MOST)
            .ok_or_else(|| {
                problem(format!(
                    "{all} cores on {devices} devices are more than {} each",
                    cores::MOST
                ))
            })
    }
}

/// How many cores are asked for; `None` for whole devices.
fn cores_asked(ask: &Ask) -> Option<u64> {
    ask.extra
        .iter()
        .find(|(name, _)| name == CORES)
        .map(|(_, cores)| *cores)
}

/// The index of a device from its id, `<node>-AWSNeuron-<index>`.
fn index_of(id: &CardId) -> Option<u32> {
    let (_, index) = id.as_str().rsplit_once("-AWSNeuron-")?;
    index.parse().ok()
}

impl Vendor for AwsNeuron {
    fn keyword(&self) -> &Keyword {
        &self.keyword
    }

    fn names(&self) -> &ResourceNames {
        &self.names
    }

    fn keys(&self) -> &AnnotationKeys {
        &self.keys
    }

    fn extra_names(&self) -> &[&str] {
        cores::NAMES
    }

    fn health(&self) -> HealthSource {
        HealthSource::Allocatable
    }

    fn node_lock(&self) -> LockKind {
        LockKind::None
    }

    /// Compute is a number of cores here, so the rules about percent do not apply.
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
        &["AWS_NEURON_VISIBLE_DEVICES"]
    }

    fn decode_node(&self, node: &NodeView) -> Result<Vec<Card>, NodeProblem> {
        let devices = nodes::capacity(node, self.count_name()).ok_or(NodeProblem::Absent)?;
        let cores = self.cores_per_device(node, devices)?;
        let kind = node.labels.get(INSTANCE_TYPE);
        (0..devices)
            .map(|index| {
                let id = format!("{}-{KEYWORD}-{index}", node.name);
                Ok(Card {
                    id: CardId::new(id).map_err(|error| nodes::bad_capacity(self.count_name(), &error))?,
                    class: self.keyword.clone(),
                    index,
                    slots: cores,
                    memory: Mib::ZERO,
                    cores: Cores::new(cores),
                    model: Arc::from(KEYWORD),
                    numa: 0,
                    mode: CardMode::new(""),
                    healthy: true,
                    mig_profiles: Vec::new(),
                    link_scores: BTreeMap::new(),
                    custom: kind
                        .map(|kind| (NODE_TYPE.to_owned(), kind.clone()))
                        .into_iter()
                        .collect(),
                    extra: cores::every(),
                    twin: None,
                })
            })
            .collect()
    }

    fn parse(&self, container: &ContainerView, pod: &PodView) -> Result<Option<Ask>, RequestError> {
        let (count, extra) = match (self.devices(container)?, self.cores(container)?) {
            (Some(devices), _) => (devices, Vec::new()),
            (None, Some(cores)) => (1, vec![(CORES.to_owned(), cores)]),
            (None, None) => return Ok(None),
        };
        // The plugin reads one list for the pod: indexes of devices, or of cores.
        let by_cores = !extra.is_empty();
        let differs = |other: &&ContainerView| match (self.devices(other), self.cores(other)) {
            (Ok(Some(_)), _) => by_cores,
            (Ok(None), Ok(Some(_))) => !by_cores,
            _ => false,
        };
        if let Some(other) = pod.containers.iter().find(differs) {
            let name = if by_cores { self.core_name() } else { self.count_name() };
            return Err(RequestError::resource(
                &container.name,
                name.unwrap_or_default(),
                format!(
                    "container `{}` asks by the other resource, and the plugin reads one list of either for the pod",
                    other.name
                ),
                "ask for devices, or for cores, in all containers of the pod",
            ));
        }
        Ok(Some(Ask {
            class: self.keyword.clone(),
            count,
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

    fn count_on(&self, ask: &Ask, cards: &[Card]) -> u32 {
        let per_device = cards.first().map_or(0, |card| u64::from(card.cores.get()));
        match cores_asked(ask) {
            Some(cores) if per_device > 0 => u32::try_from(cores.div_ceil(per_device)).unwrap_or(u32::MAX),
            _ => ask.count,
        }
    }

    /// Cores beyond one device must be whole devices.
    fn refuse_node(&self, want: &Want<'_>, ctx: &FitContext<'_>) -> Option<Reason> {
        let cores = cores_asked(want.ask)?;
        let on_node = ctx.node.class(&self.keyword)?;
        let per_device = ctx.node.cards().get(on_node.cards.start)?.cores.get();
        let uneven = u64::from(per_device) < cores && per_device > 0 && cores % u64::from(per_device) != 0;
        uneven.then(|| Reason {
            count: u32::try_from(on_node.cards.len()).unwrap_or(u32::MAX),
            ..Reason::of(ReasonKind::ClassRule, None).because(&format!(
                "of {per_device} cores each, of which {cores} cores are no whole number"
            ))
        })
    }

    /// Cores are compared one by one in [`Vendor::check`], not by number.
    fn resolve(&self, _card: &Card, _ask: &Ask) -> (Mib, Cores) {
        (Mib::ZERO, Cores::ZERO)
    }

    fn check(&self, card: CardView<'_>, want: &Want<'_>, _ctx: &FitContext<'_>) -> Result<Take, Reason> {
        let all = card.card.cores.get();
        let asked = cores_asked(want.ask).map_or(all, |cores| u32::try_from(cores).unwrap_or(all).min(all));
        let short = |free: u32| {
            let id = Some(card.card.id.clone());
            let (wanted, free) = (u64::from(asked), u64::from(free));
            Err(Reason::short_of(
                ReasonKind::CoresShort,
                id,
                "cores in a row",
                wanted,
                free,
            ))
        };
        let used = card.usage.extra;
        if asked == all {
            if card.usage.slots > 0 {
                return short(cores::longest_run(used, all).min(all.saturating_sub(1)));
            }
            return Ok(Take {
                cores: Cores::new(all),
                extra: if cores_asked(want.ask).is_some() {
                    cores::of_mask(cores::full_mask(all))
                } else {
                    cores::every()
                },
                ..Take::default()
            });
        }
        match cores::free_run(used, all, asked) {
            Some(mask) => Ok(Take {
                cores: Cores::new(asked),
                extra: cores::of_mask(mask),
                ..Take::default()
            }),
            None => short(cores::longest_run(used, all)),
        }
    }

    fn gathers(&self, want: &Want<'_>, _ctx: &FitContext<'_>) -> bool {
        want.count > 1
    }

    fn choose(&self, fitting: &[Candidate<'_>], want: &Want<'_>, ctx: &FitContext<'_>) -> Option<Vec<usize>> {
        let count = usize::try_from(want.count).ok()?;
        if !self.gathers(want, ctx) {
            return (fitting.len() >= count).then(|| (0..count).collect());
        }
        let mut places: Vec<(u32, usize)> = fitting
            .iter()
            .enumerate()
            .map(|(at, candidate)| (candidate.card.index, at))
            .collect();
        places.sort_unstable();
        let free: Vec<u32> = places.iter().map(|(index, _)| *index).collect();
        let all = ctx.node.class(&self.keyword).map_or(0, |on_node| on_node.cards.len());
        let kind = fitting
            .first()
            .and_then(|candidate| candidate.card.custom.get(NODE_TYPE))
            .filter(|_| self.topology == NeuronTopology::Auto);
        let chosen = links::group(kind.map(String::as_str), all, &free, count)?;
        chosen
            .iter()
            .map(|index| places.iter().find(|(known, _)| known == index).map(|(_, at)| *at))
            .collect()
    }

    /// Of several devices, HAMi counts one word for the node.
    fn conclude(
        &self,
        found: &[Given],
        gathered: bool,
        want: &Want<'_>,
        ctx: &FitContext<'_>,
        reasons: &mut Vec<Reason>,
    ) {
        if !gathered {
            return;
        }
        let mutex = ctx.policy.has(CardOrder::Mutex);
        let counted = |kind: ReasonKind| {
            matches!(
                kind,
                ReasonKind::IdMismatch | ReasonKind::Cordoned | ReasonKind::QuotaShort
            ) || (mutex && kind == ReasonKind::ExclusiveConflict)
        };
        for reason in reasons.iter_mut().filter(|reason| !counted(reason.kind)) {
            reason.count = 0;
        }
        if !reasons.iter().any(|reason| counted(reason.kind)) {
            let rule = found
                .first()
                .and_then(|given| ctx.node.cards().get(given.position))
                .and_then(|card| links::rule(card.custom.get(NODE_TYPE)?, want.count));
            let rule = rule
                .as_deref()
                .unwrap_or("no linked devices are free in the number wanted");
            reasons.push(Reason::of(ReasonKind::NumaMismatch, None).because(rule));
        }
    }

    fn annotations(&self, allocation: &Allocation, demand: &Demand, at: &WriteContext<'_>) -> BTreeMap<String, String> {
        let mut annotations = BTreeMap::new();
        let Some(class) = allocation.classes.get(&self.keyword) else {
            return annotations;
        };
        let mask = |share: &Share| cores::mask_of(share.extra, share.cores.get());
        // On the wire, compute of this class is a mask.
        let masks: ClassAllocation = class
            .iter()
            .map(|shares| {
                let masked = |share: &Share| Share {
                    cores: Cores::new(mask(share)),
                    ..share.clone()
                };
                shares.iter().map(masked).collect()
            })
            .collect();
        let mut ids: Vec<String> = Vec::new();
        let mut by_cores = false;
        for (position, shares) in class.iter().enumerate() {
            let ask = demand.containers.get(position).and_then(|container| {
                let mut asks = container.asks.iter();
                asks.find(|ask| ask.class == self.keyword)
            });
            let of_cores = ask.is_some_and(|ask| cores_asked(ask).is_some());
            by_cores |= of_cores && !shares.is_empty();
            for share in shares {
                let card = at.card(&share.card);
                let Some(index) = card.map(|card| card.index).or_else(|| index_of(&share.card)) else {
                    continue;
                };
                if of_cores {
                    let per_device = card.map_or(share.cores, |card| card.cores).get();
                    ids.extend(cores::bits(mask(share)).map(|bit| {
                        let core = u64::from(per_device) * u64::from(index) + u64::from(bit);
                        core.to_string()
                    }));
                } else {
                    ids.push(index.to_string());
                }
            }
        }
        let mut put = |key: &str, value: String| {
            annotations.insert(key.to_owned(), value);
        };
        put(ALLOCATED, device_text::print(&masks));
        put(IDS, ids.join(","));
        if let (true, Some(name)) = (by_cores, self.core_name()) {
            put(RESOURCE_TYPE, name.to_owned());
        }
        put(ALLOC_TIME, texts::nanoseconds(at.now_seconds));
        put(IS_ALLOCATED, "false".to_owned());
        put(PREDICATE_NODE, at.node.to_string());
        annotations
    }

    /// A pod without a resource type has whole devices, whatever part of a large one HAMi's mask shows.
    fn read_allocation(
        &self,
        annotations: &BTreeMap<String, String>,
    ) -> Result<Option<(ClassAllocation, Vec<MigReservation>)>, AllocationProblem> {
        let Some((mut class, instances)) = read_device_text(&self.keys, annotations)? else {
            return Ok(None);
        };
        let by_cores = annotations.contains_key(RESOURCE_TYPE);
        for share in class.iter_mut().flatten() {
            let mask = share.cores.get();
            if mask > cores::full_mask(cores::MOST) {
                return Err(AllocationProblem {
                    key: ALLOCATED.to_owned(),
                    fault: format!("{mask} is no mask of at most {} cores", cores::MOST),
                    text: annotations.get(ALLOCATED).cloned().unwrap_or_default(),
                });
            }
            let whole = !by_cores && (mask + 1).is_power_of_two();
            share.cores = Cores::new(mask.count_ones());
            share.extra = if whole { cores::every() } else { cores::of_mask(mask) };
        }
        Ok(Some((class, instances)))
    }

    fn admit(
        &self,
        container: &mut ContainerEdit<'_>,
        _pod: &PodView,
        _settings: &AdmitSettings,
    ) -> Result<Admit, RequestError> {
        let named = |name: Option<&str>| {
            let name = name?;
            Some((name.to_owned(), container.amount(name)?))
        };
        let Some((name, quantity)) = named(self.count_name()).or_else(|| named(self.core_name())) else {
            return Ok(Admit::default());
        };
        let owner = &container.view().name;
        // HAMi's own words first, which tools match on.
        let refuse = |problem: String| {
            let text = format!("{name} {problem} (container {owner}, {quantity}); write a whole number of 1 or more");
            Err(RequestError::sentence(Some(owner.clone()), text))
        };
        let by_cores = Some(name.as_str()) == self.core_name();
        if by_cores && container.view().env.iter().any(|(variable, _)| variable == ENV_CORES) {
            let text = format!(
                "container {owner} asks for cores and sets {ENV_CORES}: its value would win over the plugin's and name \
                 cores of other containers; leave the variable out"
            );
            return Err(RequestError::sentence(Some(owner.clone()), text));
        }
        match quantity.whole() {
            Whole::Exact(value) if value <= 0 => refuse("must be greater than 0".to_owned()),
            Whole::Exact(value) if value <= WIRE_MAX => {
                let beside = self
                    .core_name()
                    .filter(|cores| !by_cores && container.amount(cores).is_some());
                let warn =
                    |cores| format!("container `{owner}`: `{cores}` has no effect beside `{name}`; keep one of them");
                Ok(Admit {
                    uses_device: true,
                    warnings: beside.map(warn).into_iter().collect(),
                    ..Admit::default()
                })
            }
            Whole::Exact(_) | Whole::TooLarge => refuse(format!("must not exceed {WIRE_MAX}")),
            Whole::Fraction => refuse("must be an integer".to_owned()),
        }
    }
}
