//! Cards shared as sGPUs, and cards of one's own from the same pool.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use tessera_engine::{
    Admit, AdmitSettings, AnnotationKeys, Candidate, CardView, ContainerEdit, FitContext, HealthSource, NodeProblem,
    NodeState, RequestError, ResourceNames, Rules, Vendor, Want, WriteContext, comma_list, device_texts, go_bool,
};
use tessera_types::{
    Allocation, Ask, Card, CardUsage, ClassAllocation, Cores, Demand, Keyword, NodePolicy, ReasonKind, Selection,
    Share, WHOLE_CARD_CORES,
};
use tessera_wire::{ContainerView, NodeView, PodView, config};

use super::company::{self, App, Crowd, Newcomer};
use super::register::{self, REGISTER};
use super::{Modes, request, zones};
use crate::amounts;

/// Pod annotation: QoS policy of the pod's shares.
const QOS_KEY: &str = "metax-tech.com/sgpu-qos-policy";
/// Pod annotation: priority class.
const APP_KEY: &str = "metax-tech.com/sgpu-app-class";
/// Pod annotation: whether cards of one's own follow the links.
const TOPOLOGY_KEY: &str = "metax-tech.com/sgpu-topology-aware";
/// Pod annotations: card ids accepted and not accepted.
pub(super) const ID_KEYS: [&str; 2] = ["metax-tech.com/use-gpuuuid", "metax-tech.com/nouse-gpuuuid"];
/// Pod annotation: what the node's plugin is to hand out, JSON.
const DEVICES_KEY: &str = "metax-tech.com/gpu-devices-allocated";
/// Pod annotation: when that was decided, Unix nanoseconds.
const TIME_KEY: &str = "metax-tech.com/predicate-time";

const POLICIES: [&str; 3] = ["best-effort", "fixed-share", "burst-share"];
/// In [`Selection::extra`]: the links decide.
const TOPOLOGY: &str = "topology-aware";

/// MetaX cards given in shares, or alone.
#[derive(Debug, Clone)]
pub struct MetaxSgpu {
    pub(super) keyword: Keyword,
    pub(super) names: ResourceNames,
    keys: AnnotationKeys,
    modes: Modes,
    topology_aware: bool,
}

/// One device as MetaX's plugin reads it; zero members are left out.
#[derive(Serialize)]
struct WireShare<'a> {
    uuid: &'a str,
    #[serde(skip_serializing_if = "is_zero")]
    compute: u64,
    #[serde(rename = "vRam", skip_serializing_if = "is_zero")]
    vram: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn extra<'a>(selection: &'a Selection, name: &str) -> Option<&'a str> {
    let found = selection.extra.iter().find(|(known, _)| known == name);
    found.map(|(_, text)| text.as_str())
}

fn app_of(selection: &Selection) -> Option<App> {
    extra(selection, company::APP).and_then(App::parse)
}

impl MetaxSgpu {
    /// With the `metax` section of the device configuration.
    ///
    /// # Panics
    /// Never: the keyword is a constant without separators.
    #[must_use]
    pub fn new(settings: &config::Metax) -> Self {
        let keys = AnnotationKeys {
            register: Some(REGISTER.to_owned()),
            to_allocate: Some("hami.io/metax-sgpu-devices-to-allocate".to_owned()),
            allocated: Some("hami.io/metax-sgpu-devices-allocated".to_owned()),
            extra: vec![DEVICES_KEY.to_owned(), TIME_KEY.to_owned()],
            user: [QOS_KEY, APP_KEY, TOPOLOGY_KEY]
                .into_iter()
                .chain(ID_KEYS)
                .map(str::to_owned)
                .collect(),
            ..AnnotationKeys::default()
        };
        Self {
            keyword: Keyword::new("Metax-SGPU").expect("a constant without separators"),
            names: ResourceNames {
                count: amounts::name(&settings.resource_vcount_name),
                memory: amounts::name(&settings.resource_vmemory_name),
                cores: amounts::name(&settings.resource_vcore_name),
                memory_factor: u32::try_from(request::GIB).unwrap_or(1),
                memory_suffix_is_bytes: true,
                ..ResourceNames::default()
            },
            keys,
            modes: Modes::new(settings),
            topology_aware: settings.sgpu_topology_aware,
        }
    }

    /// What the cards of a placement are worth to a pod, before any weight; larger is better. `node` is without the
    /// pod.
    ///
    /// For an online pod: the fewer online pods on its cards the better, and a card with offline pods only is the
    /// worst, since they would be suspended. For cards of one's own, where the links are to decide: the linked pairs
    /// gained against those broken. Else 0.
    #[must_use]
    pub fn raw_score(&self, placed: &ClassAllocation, selection: &Selection, node: &NodeState) -> i64 {
        let cards = node.cards();
        let position = |share: &Share| cards.iter().position(|card| card.id == share.card);
        let shares = || placed.iter().flatten();
        if app_of(selection) == Some(App::Online) {
            return shares()
                .filter_map(position)
                .map(|at| {
                    let crowd = Crowd::on(node, at, &self.keyword);
                    let (online, offline) = (i64::from(crowd.online), i64::from(crowd.offline));
                    if crowd.only_offline() {
                        -100 * offline
                    } else {
                        -20 * online - 2 * offline
                    }
                })
                .sum();
        }
        let alone: BTreeSet<usize> = shares()
            .filter(|share| share.cores == WHOLE_CARD_CORES)
            .filter_map(position)
            .collect();
        if alone.is_empty() || extra(selection, TOPOLOGY).is_none() {
            return 0;
        }
        let taken: BTreeSet<usize> = shares().filter_map(position).collect();
        let zone = |at: usize| cards.get(at).map_or(0, register::zone);
        let left: Vec<u32> = self.unused(node).filter(|at| !taken.contains(at)).map(zone).collect();
        let chosen: Vec<u32> = alone.into_iter().map(zone).collect();
        zones::score(&chosen, &left)
    }

    /// Positions of the class's cards that no pod is on.
    fn unused<'a>(&self, node: &'a NodeState) -> impl Iterator<Item = usize> + 'a {
        let cards = node.class(&self.keyword).map(|class| class.cards.clone());
        cards
            .into_iter()
            .flatten()
            .filter(|at| node.usage().get(*at).is_some_and(|used| used.usage.slots == 0))
    }
}

impl Vendor for MetaxSgpu {
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
        HealthSource::AnnotationPresent
    }

    fn rules(&self) -> Rules {
        Rules {
            topology: false,
            numa: false,
            // Not for online pods: see `joins`.
            exhausted: false,
            unhealthy: ReasonKind::UnhealthyCard,
            ..Rules::default()
        }
    }

    fn reserved_env(&self) -> &[&str] {
        &["METAX_SGPUS"]
    }

    fn decode_node(&self, node: &NodeView) -> Result<Vec<Card>, NodeProblem> {
        let cards = register::shared(node, &self.keyword)?;
        if let (Some(whole), Some(shared)) = (&self.modes.whole, &self.modes.shared)
            && node.capacity_count(whole) > 0
            && node.capacity_count(shared) == 0
        {
            return Err(NodeProblem::Unreadable {
                key: REGISTER.to_owned(),
                fault: format!("it is left over: the node gives whole cards (`{whole}`) and no shares (`{shared}`)"),
            });
        }
        if let Some(shared) = &self.modes.shared
            && node.allocatable.contains_key(shared)
            && node.allocatable_count(shared) <= 0
        {
            return Err(NodeProblem::Capacity {
                resource: shared.clone(),
                fault: "0 are allocatable, so its plugin is gone and only its annotation is left".to_owned(),
            });
        }
        Ok(cards)
    }

    fn parse(&self, container: &ContainerView, pod: &PodView) -> Result<Option<Ask>, RequestError> {
        let app = pod.annotation(APP_KEY).and_then(App::parse);
        request::shared(self, container, app)
    }

    fn selection(&self, pod: &PodView) -> Result<Selection, RequestError> {
        let [accepted, refused] = ID_KEYS;
        let mut extra: Vec<(String, String)> = self.pod_facts(pod).into_iter().collect();
        let topology = pod.annotation(TOPOLOGY_KEY).and_then(go_bool);
        if topology.unwrap_or(self.topology_aware) {
            extra.push((TOPOLOGY.to_owned(), String::new()));
        }
        Ok(Selection {
            use_ids: comma_list(pod.annotation(accepted)),
            avoid_ids: comma_list(pod.annotation(refused)),
            extra,
            ..Selection::default()
        })
    }

    fn accepts(&self, card: CardView<'_>, want: &Want<'_>, ctx: &FitContext<'_>) -> Result<(), ReasonKind> {
        Newcomer::new(|name| extra(want.selection, name), want.cores).may_join(ctx.node, card.position, &self.keyword)
    }

    fn joins(
        &self,
        card: CardView<'_>,
        added: CardUsage,
        facts: &BTreeMap<String, String>,
        node: &NodeState,
    ) -> Result<(), ReasonKind> {
        // Several shares may add up to a whole card's compute; only one share of it is a card of one's own.
        let cores = if added.slots > 1 {
            added.cores.min(Cores::new(99))
        } else {
            added.cores
        };
        let newcomer = Newcomer::new(|name| facts.get(name).map(String::as_str), cores);
        newcomer.may_join(node, card.position, &self.keyword)?;
        let full = card.card.cores != Cores::ZERO && card.usage.cores == card.card.cores;
        if full && cores == Cores::ZERO && newcomer.app != Some(App::Online) {
            return Err(ReasonKind::ComputeExhausted);
        }
        Ok(())
    }

    fn gathers(&self, want: &Want<'_>, _ctx: &FitContext<'_>) -> bool {
        match app_of(want.selection) {
            Some(App::Online) => true,
            Some(App::Offline) => false,
            None => want.cores == WHOLE_CARD_CORES,
        }
    }

    fn choose(&self, fitting: &[Candidate<'_>], want: &Want<'_>, ctx: &FitContext<'_>) -> Option<Vec<usize>> {
        let count = usize::try_from(want.count).unwrap_or(usize::MAX);
        if fitting.len() <= count || !self.gathers(want, ctx) {
            return (fitting.len() >= count).then(|| (0..count).collect());
        }
        if app_of(want.selection) == Some(App::Online) {
            let mut order: Vec<usize> = (0..fitting.len()).collect();
            order.sort_by_key(|at| {
                let position = fitting.get(*at).map_or(usize::MAX, |candidate| candidate.position);
                let crowd = Crowd::on(ctx.node, position, &self.keyword);
                (crowd.only_offline(), crowd.online, crowd.offline)
            });
            order.truncate(count);
            return Some(order);
        }
        let linked: Vec<u32> = fitting.iter().map(|candidate| register::zone(candidate.card)).collect();
        if extra(want.selection, TOPOLOGY).is_none() {
            return Some(zones::smallest_first(&linked, count));
        }
        let mut unused: BTreeMap<u32, usize> = BTreeMap::new();
        for at in self.unused(ctx.node) {
            let earlier = ctx.earlier.iter().any(|earlier| earlier.position == at);
            if let Some(card) = ctx.node.cards().get(at).filter(|_| !earlier) {
                *unused.entry(register::zone(card)).or_default() += 1;
            }
        }
        Some(zones::best(&linked, &unused, count))
    }

    /// Not multiplied: a wrong zone weighs more than a node's fill, but does not drown it.
    fn node_score(&self, placed: &ClassAllocation, selection: &Selection, node: &NodeState, policy: NodePolicy) -> f64 {
        // At most some thousand: pairs of the cards of one node.
        let score = i32::try_from(self.raw_score(placed, selection, node)).map_or(0.0, f64::from);
        match policy {
            NodePolicy::Binpack | NodePolicy::Fgd | NodePolicy::Tessera => score,
            // The smallest sum wins there.
            NodePolicy::Spread => -score,
        }
    }

    fn annotations(
        &self,
        allocation: &Allocation,
        _demand: &Demand,
        at: &WriteContext<'_>,
    ) -> BTreeMap<String, String> {
        let mut annotations = device_texts(&self.keyword, &self.keys, allocation);
        let Some(class) = allocation.classes.get(&self.keyword) else {
            return annotations;
        };
        let containers: Vec<Vec<WireShare<'_>>> = class
            .iter()
            .map(|shares| {
                shares
                    .iter()
                    .map(|share| WireShare {
                        uuid: share.card.as_str(),
                        compute: u64::from(share.cores.get()),
                        vram: share.memory.get(),
                    })
                    .collect()
            })
            .collect();
        // Lists of texts and numbers always serialise.
        let text = serde_json::to_string(&containers).unwrap_or_default();
        annotations.insert(DEVICES_KEY.to_owned(), text);
        annotations.insert(
            TIME_KEY.to_owned(),
            at.now_seconds.saturating_mul(1_000_000_000).to_string(),
        );
        annotations
    }

    fn pod_facts(&self, pod: &PodView) -> BTreeMap<String, String> {
        company::facts(pod.annotation(QOS_KEY), pod.annotation(APP_KEY))
    }

    fn admit(
        &self,
        container: &mut ContainerEdit<'_>,
        pod: &PodView,
        _settings: &AdmitSettings,
    ) -> Result<Admit, RequestError> {
        let mut admit = Admit::default();
        let names = &self.names;
        let Some(count) = names.count.as_deref() else {
            return Ok(admit);
        };
        let name = &container.view().name;
        if !container.has_limit(count) {
            let part = [&names.memory, &names.cores]
                .into_iter()
                .flatten()
                .find(|part| container.has_limit(part));
            return match part {
                None => Ok(admit),
                Some(part) => Err(RequestError::resource(
                    name,
                    part,
                    format!("`{count}` is missing, so it is a part of no card"),
                    format!("add `{count}: 1`"),
                )),
            };
        }
        admit.uses_device = true;
        let refuse = |text: String| Err(RequestError::sentence(None, text));
        let app = match pod.annotation(APP_KEY) {
            None => None,
            Some(text) => match App::parse(text) {
                None => {
                    return refuse(format!(
                        "{APP_KEY} must be set one of [online, offline]; it is `{text}`"
                    ));
                }
                app => app,
            },
        };
        if app.is_some() && container.amount(count).and_then(tessera_wire::Quantity::as_integer) != Some(1) {
            return refuse(format!(
                "app-class pod must request single device; container `{name}`: write `{count}: 1`, or remove the \
                 annotation {APP_KEY}"
            ));
        }
        if app != Some(App::Online) {
            match pod.annotation(QOS_KEY) {
                None => {
                    admit.annotations.insert(QOS_KEY.to_owned(), POLICIES[0].to_owned());
                }
                Some(policy) if POLICIES.contains(&policy) => {}
                Some(policy) => {
                    return refuse(format!(
                        "{QOS_KEY} must be set one of [{}]; it is `{policy}`",
                        POLICIES.join(", ")
                    ));
                }
            }
        }
        if let Some(text) = pod.annotation(TOPOLOGY_KEY)
            && go_bool(text).is_none()
        {
            admit.warnings.push(format!(
                "annotation `{TOPOLOGY_KEY}`: `{text}` is neither true nor false and has no effect; write \"true\" or \
                 \"false\""
            ));
        }
        Ok(admit)
    }
}
