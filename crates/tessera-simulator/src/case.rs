//! What is simulated: nodes and pods, read from openb's CSV or from a dump, as the scheduler would see them.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, ensure};
use tessera_engine::{Defaults, Engine, Vendors, World};
use tessera_packing::openb::{self, Stay};
use tessera_packing::{ModelSet, Models, Node, Request, WHOLE, Workload};
use tessera_types::{
    Ask, Card, CardId, CardMode, ContainerRole, Cores, Demand, Extras, Keyword, MemoryAsk, Mib, NodeName, PodId, PodUid,
};
use tessera_wire::{ContainerView, NodeView, PodPhase, PodView, Quantity, keys, register};

use crate::format::{Dump, DumpNode, DumpPod, memory_mib, room};

/// Memory of a card that stands for one of a trace, MiB: a MiB is a thousandth.
const CARD_MIB: u64 = WHOLE as u64;

/// What the name of a trace's model begins with; the class serves no card of another maker.
const TRACE_MODEL: &str = "NVIDIA-(";

/// Nodes and pods, and what is known of them altogether.
#[derive(Debug)]
pub struct Case {
    pub(crate) nodes: Vec<CaseNode>,
    pub(crate) pods: Vec<CasePod>,
    pub(crate) models: Models,
    pub(crate) workload: Workload,
    pub(crate) vendors: Arc<Vendors>,
    /// Whether it is known when pods came and left.
    pub(crate) timed: bool,
}

/// A node.
#[derive(Debug)]
pub(crate) struct CaseNode {
    /// For people.
    pub(crate) label: String,
    /// CPU that it can give, milli-cores.
    pub(crate) cpu: u32,
    /// Memory that it can give, MiB.
    pub(crate) memory: u32,
    pub(crate) source: Source,
}

/// Where a node is from.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a case has one kind only")]
pub(crate) enum Source {
    /// A trace: cards of one model, with its name.
    Trace(Node, String),
    /// A dump.
    Dump(DumpNode, NodeView),
}

/// A pod.
#[derive(Debug)]
pub(crate) struct CasePod {
    /// Not bound, with nothing allocated.
    pub(crate) view: PodView,
    /// What it asks for, in the words of the measures.
    pub(crate) request: Request,
    pub(crate) stay: Stay,
    /// It runs on this node whatever the policy says: pods without cards of a dump.
    pub(crate) here: Option<usize>,
    pub(crate) dumped: Option<DumpPod>,
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

impl Case {
    /// Reads openb's node list and pod list.
    ///
    /// # Errors
    /// A file cannot be read; a text is not what it should be, with file, line and column.
    pub fn openb(nodes: &Path, pods: &Path, vendors: &Arc<Vendors>) -> Result<Self> {
        let (node_text, pod_text) = (read(nodes)?, read(pods)?);
        Self::from_openb(
            (&nodes.display().to_string(), &node_text),
            (&pods.display().to_string(), &pod_text),
            vendors,
        )
    }

    /// Takes two lists that have been read; each with its name for errors.
    ///
    /// # Errors
    /// A text is not what it should be, with file, line and column.
    pub fn from_openb(nodes: (&str, &str), pods: (&str, &str), vendors: &Arc<Vendors>) -> Result<Self> {
        const NEXT: &str = "see docs/simulate.md for the columns";
        let told = |error: openb::BadTrace| anyhow!("{error}; {NEXT}");
        let (list, models) = openb::nodes(nodes.0, nodes.1).map_err(told)?;
        let (requests, workload) = openb::pods(pods.0, pods.1, &models).map_err(told)?;
        let stays = openb::stays(pods.0, pods.1).map_err(told)?;
        ensure!(!list.is_empty(), "{}: no node in it; {NEXT}", nodes.0);
        ensure!(!requests.is_empty(), "{}: no pod in it; {NEXT}", pods.0);
        let model_of: BTreeMap<u8, &str> = models.iter().map(|(name, index)| (index, name)).collect();
        let case_nodes = list
            .into_iter()
            .zip(first_cells(nodes.1))
            .map(|(node, label)| CaseNode {
                label,
                cpu: node.cpu,
                memory: node.memory,
                source: {
                    let model = model_of.get(&node.model).copied().unwrap_or_default().to_owned();
                    Source::Trace(node, model)
                },
            });
        let specs = column(pods.1, "gpu_spec");
        let case_pods = requests
            .iter()
            .zip(first_cells(pods.1))
            .enumerate()
            .map(|(row, (request, name))| {
                let spec = specs.get(row).map_or("", String::as_str);
                Ok(CasePod {
                    view: trace_pod(&name, request, spec)?,
                    request: *request,
                    stay: stays
                        .as_ref()
                        .and_then(|stays| stays.get(row))
                        .copied()
                        .unwrap_or_default(),
                    here: None,
                    dumped: None,
                })
            });
        Ok(Self {
            nodes: case_nodes.collect(),
            pods: case_pods.collect::<Result<_>>()?,
            timed: stays.is_some(),
            models,
            workload,
            vendors: Arc::clone(vendors),
        })
    }

    /// Takes a dump. Its pods with cards come again; those without stay where they are.
    ///
    /// # Errors
    /// More card models than can be told apart; a pod on a node that is not in the dump; a quantity that is none.
    pub fn from_dump(dump: &Dump, vendors: &Arc<Vendors>) -> Result<Self> {
        let mut world = World::new(Arc::clone(vendors));
        let mut nodes = Vec::new();
        for node in &dump.nodes {
            let view = node.view()?;
            world.set_node(&view);
            let (cpu, memory) = room(&view);
            nodes.push(CaseNode {
                label: node.name.clone(),
                cpu,
                memory,
                source: Source::Dump(node.clone(), view),
            });
        }
        let mut models = Models::default();
        let mut sizes: HashMap<Keyword, Mib> = HashMap::new();
        let snapshot = world.snapshot();
        for card in snapshot.nodes().flat_map(tessera_engine::NodeState::cards) {
            models.intern(model_name(card)).context("in the dump")?;
            sizes.entry(card.class.clone()).or_insert(card.memory);
        }
        let mut case = Self {
            nodes,
            pods: Vec::new(),
            models,
            workload: Workload::new(),
            vendors: Arc::clone(vendors),
            timed: true,
        };
        let engine = Engine::new(Arc::clone(vendors), Defaults::default());
        for pod in &dump.pods {
            case.add(pod, &engine, &sizes)?;
        }
        Ok(case)
    }

    fn add(&mut self, pod: &DumpPod, engine: &Engine, sizes: &HashMap<Keyword, Mib>) -> Result<()> {
        let of = || format!("pod {}/{}", pod.namespace, pod.name);
        let mut view = pod.view()?;
        let demand = engine.demand(&view).with_context(of)?;
        let row = match &pod.node {
            None => None,
            Some(name) => {
                let row = self.nodes.iter().position(|node| node.label == *name);
                Some(row.with_context(|| {
                    format!(
                        "{}: its node `{name}` is not among `nodes`; add the node, or take the pod out",
                        of()
                    )
                })?)
            }
        };
        let (request, spec) = request_of(&demand, &view, &self.models, sizes);
        if !demand.is_empty() {
            self.workload.see(&request, &spec);
        }
        view.annotations.retain(|key, _| !is_allocation(&self.vendors, key));
        view.node_name = None;
        view.phase = PodPhase::Pending;
        self.pods.push(CasePod {
            view,
            request,
            stay: (u64::try_from(pod.created).unwrap_or(0), None),
            here: row.filter(|_| demand.is_empty()),
            dumped: Some(pod.clone()),
        });
        Ok(())
    }
}

/// Whether the annotation says what a pod was given.
pub(crate) fn is_allocation(vendors: &Vendors, key: &str) -> bool {
    keys::records_allocation(key)
        || vendors
            .iter()
            .any(|vendor| vendor.keys().allocation().any(|own| own == key))
}

/// A model's name without what keeps it from being a part of another one.
pub(crate) fn model_name(card: &Card) -> &str {
    let of_trace = card.model.strip_prefix(TRACE_MODEL);
    of_trace
        .and_then(|model| model.strip_suffix(')'))
        .unwrap_or(&card.model)
}

impl CaseNode {
    /// The node under another name. `slots`: of each card of a trace.
    pub(crate) fn view(&self, name: &str, slots: u32) -> Result<NodeView> {
        let name = NodeName::new(name).context("naming a node")?;
        match &self.source {
            Source::Dump(_, view) => Ok(NodeView { name, ..view.clone() }),
            Source::Trace(node, model) => {
                let cards = (0..u32::from(node.cards)).map(|index| trace_card(name.as_str(), index, model, slots));
                let cards = cards.collect::<Result<Vec<_>>>()?;
                let amounts = BTreeMap::from([
                    ("cpu".to_owned(), Quantity::parse(&format!("{}m", node.cpu))?),
                    (
                        "nvidia.com/gpu".to_owned(),
                        Quantity::of(i64::from(slots) * i64::from(node.cards)),
                    ),
                ]);
                Ok(NodeView {
                    name,
                    labels: BTreeMap::new(),
                    annotations: BTreeMap::from([(keys::NVIDIA_REGISTER.to_owned(), register::print_json(&cards))]),
                    capacity: amounts.clone(),
                    allocatable: amounts,
                    unschedulable: false,
                })
            }
        }
    }
}

fn trace_card(node: &str, index: u32, model: &str, slots: u32) -> Result<Card> {
    Ok(Card {
        id: CardId::new(format!("{node}.{index}"))?,
        class: Keyword::new(keys::NVIDIA_KEYWORD)?,
        index,
        slots,
        memory: Mib::new(CARD_MIB),
        cores: Cores::new(100),
        extra: Extras::NONE,
        // Models are found by a part of their name, and one may be a part of another.
        model: format!("{TRACE_MODEL}{model})").into(),
        numa: 0,
        mode: CardMode::new("hami-core"),
        healthy: true,
        mig_profiles: Vec::new(),
        link_scores: BTreeMap::new(),
        twin: None,
        custom: BTreeMap::new(),
    })
}

/// A pod of a trace as the API server would have it: memory in thousandths of a card, compute in percent.
fn trace_pod(name: &str, request: &Request, spec: &str) -> Result<PodView> {
    let mut limits = BTreeMap::new();
    let mut annotations = BTreeMap::new();
    if request.count > 0 {
        limits.insert("nvidia.com/gpu".to_owned(), Quantity::of(i64::from(request.count)));
        limits.insert("nvidia.com/gpumem".to_owned(), Quantity::of(i64::from(request.milli)));
        limits.insert(
            "nvidia.com/gpucores".to_owned(),
            Quantity::of(i64::from(request.milli.div_ceil(10))),
        );
        if !spec.is_empty() {
            let models = spec.split('|').map(|model| format!("({model})"));
            annotations.insert(keys::USE_GPU_TYPE.to_owned(), models.collect::<Vec<_>>().join(","));
        }
    }
    let amounts = [
        ("cpu", format!("{}m", request.cpu)),
        ("memory", format!("{}Mi", request.memory)),
    ];
    let mut requests = BTreeMap::new();
    for (resource, amount) in amounts {
        requests.insert(resource.to_owned(), Quantity::parse(&amount)?);
    }
    Ok(PodView {
        id: PodId {
            namespace: "trace".to_owned(),
            name: name.to_owned(),
            uid: PodUid::new(format!("trace/{name}"))?,
        },
        labels: BTreeMap::new(),
        annotations,
        scheduler_name: None,
        node_name: None,
        runtime_class: None,
        priority: 0,
        preemption_policy_never: false,
        phase: PodPhase::Pending,
        deleting: false,
        created_at: None,
        started_at: None,
        pod_group: None,
        nominated_node: None,
        init_done: false,
        containers: vec![ContainerView {
            name: "main".to_owned(),
            role: ContainerRole::App,
            limits,
            requests,
            env: Vec::new(),
            privileged: false,
        }],
        ready: false,
        scheduled_false_since: None,
    })
}

/// What a demand is in the words of the measures: how many cards, the largest part of one, which models. And the models
/// as a text.
fn request_of(demand: &Demand, view: &PodView, models: &Models, sizes: &HashMap<Keyword, Mib>) -> (Request, String) {
    let asks = || demand.containers.iter().flat_map(|container| &container.asks);
    let part = |ask: &Ask| {
        let size = sizes.get(&ask.class).copied().unwrap_or(Mib::ZERO).get();
        let memory = match ask.memory {
            MemoryAsk::Whole => WHOLE,
            MemoryAsk::Percent(percent) => percent.saturating_mul(WHOLE / 100),
            MemoryAsk::Mib(_) if size == 0 => 0,
            MemoryAsk::Mib(amount) => {
                u32::try_from(amount.get().saturating_mul(u64::from(WHOLE)) / size).unwrap_or(WHOLE)
            }
        };
        memory.max(ask.cores.get().saturating_mul(WHOLE / 100)).clamp(1, WHOLE)
    };
    let count: u32 = asks().map(|ask| ask.count).sum();
    let mut milli = asks().map(part).max().unwrap_or(0);
    if count > 1 {
        // The measures know no pod with several shares.
        milli = WHOLE;
    }
    let mut allowed: Vec<&str> = Vec::new();
    for (_, selection) in &demand.selections {
        let named = |name: &str, list: &[String]| {
            let name = name.to_lowercase();
            list.iter()
                .any(|entry| !entry.is_empty() && name.contains(&entry.to_lowercase()))
        };
        if selection.use_models.is_some() || selection.avoid_models.is_some() {
            let fits = models.iter().map(|(name, _)| name).filter(|name| {
                selection.use_models.as_deref().is_none_or(|list| named(name, list))
                    && !selection.avoid_models.as_deref().is_some_and(|list| named(name, list))
            });
            allowed.extend(fits);
        }
    }
    let spec = allowed.join("|");
    let request = Request {
        cpu: view.cpu_milli(),
        memory: memory_mib(view),
        count: u8::try_from(count).unwrap_or(u8::MAX),
        milli,
        models: if spec.is_empty() {
            ModelSet::ANY
        } else {
            models.set(&spec)
        },
    };
    (request, spec)
}

fn first_cells(text: &str) -> Vec<String> {
    let lines = text.lines().skip(1).filter(|line| !line.trim().is_empty());
    lines
        .map(|line| line.split(',').next().unwrap_or_default().trim().to_owned())
        .collect()
}

fn column(text: &str, name: &str) -> Vec<String> {
    let mut lines = text.lines();
    let header = lines.next().unwrap_or_default();
    let Some(at) = header.split(',').position(|column| column.trim() == name) else {
        return Vec::new();
    };
    let cells = lines.filter(|line| !line.trim().is_empty());
    cells
        .map(|line| line.split(',').nth(at).unwrap_or_default().trim().to_owned())
        .collect()
}
