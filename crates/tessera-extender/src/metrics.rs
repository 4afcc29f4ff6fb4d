//! The metrics page.
//!
//! HAMi's names and labels are exact, so that its dashboards go on working; ours begin with `tessera_`. What
//! describes live objects is read from the current view at each scrape, so that a pod or a card that is gone
//! leaves no series behind.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tessera_engine::{Booking, BookingState, Decision, NodeState, Snapshot, text};
use tessera_kube::watch::Freshness;
use tessera_types::Mib;
use tessera_wire::resize::State;

use crate::app::App;

/// Which request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct VerbLabel {
    pub(crate) verb: Verb,
}

/// Which request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Verb {
    Filter,
    Prioritize,
    Bind,
    Preempt,
    Admit,
}

impl EncodeLabelValue for Verb {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), fmt::Error> {
        EncodeLabelValue::encode(
            &match self {
                Self::Filter => "filter",
                Self::Prioritize => "prioritize",
                Self::Bind => "bind",
                Self::Preempt => "preempt",
                Self::Admit => "admit",
            },
            encoder,
        )
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ReasonLabel {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct StateLabel {
    state: &'static str,
}

/// Counted as things happen.
#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) seconds: Family<VerbLabel, Histogram>,
    pub(crate) errors: Family<VerbLabel, Counter>,
    pub(crate) refused_nodes: Family<ReasonLabel, Counter>,
    pub(crate) denied: Counter,
    pub(crate) woken: Counter,
    resizes: Family<StateLabel, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        // 100 us to 26 s, each bucket twice the one before.
        let buckets = || Histogram::new((0..18).map(|n| 0.0001 * f64::from(1_u32 << n)));
        Self {
            seconds: Family::new_with_constructor(buckets),
            errors: Family::default(),
            refused_nodes: Family::default(),
            denied: Counter::default(),
            woken: Counter::default(),
            resizes: Family::default(),
        }
    }
}

impl Metrics {
    /// Counts a step of a live resize.
    pub(crate) fn resized(&self, state: State) {
        let state = match state {
            State::Accepted => "accepted",
            State::Waiting => "waiting",
            State::Applied => "applied",
            State::Refused => "refused",
        };
        self.resizes.get_or_create(&StateLabel { state }).inc();
    }

    /// Counts each node of a refused pod under the reason that weighs most there.
    pub(crate) fn refused(&self, decision: &Decision) {
        for (_, refusal) in &decision.refused {
            self.refused_nodes
                .get_or_create(&ReasonLabel {
                    reason: text::label(refusal),
                })
                .inc();
        }
    }
}

/// Renders the page of one service.
#[derive(Debug)]
pub(crate) struct Page {
    registry: Registry,
}

impl Page {
    /// `freshness`: how old our knowledge of each kind of object is.
    pub(crate) fn new(app: &Arc<App>, freshness: Vec<(&'static str, Freshness)>, legacy: bool) -> Self {
        let mut registry = Registry::default();
        let metrics = &app.metrics;
        registry.register(
            "tessera_request_seconds",
            "Time to answer a request",
            metrics.seconds.clone(),
        );
        registry.register(
            "tessera_request_errors",
            "Requests answered with an error",
            metrics.errors.clone(),
        );
        registry.register(
            "tessera_refused_nodes",
            "Nodes that could not take a pod, by the reason that weighed most",
            metrics.refused_nodes.clone(),
        );
        registry.register(
            "tessera_admission_denied",
            "Pods denied at admission",
            metrics.denied.clone(),
        );
        registry.register(
            "tessera_pods_woken",
            "Waiting pods moved back into the queue",
            metrics.woken.clone(),
        );
        registry.register(
            "tessera_resizes",
            "Steps of live resizes, by the state that they led to",
            metrics.resizes.clone(),
        );
        registry.register_collector(Box::new(Own {
            app: Arc::clone(app),
            freshness,
        }));
        let zone = registry.sub_registry_with_label((Cow::Borrowed("zone"), Cow::Borrowed("vGPU")));
        zone.register_collector(Box::new(Compatible {
            app: Arc::clone(app),
            legacy,
        }));
        registry.register_collector(Box::new(Build));
        Self { registry }
    }

    pub(crate) fn render(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// The content type of [`Page::render`].
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels<'a> = Vec<(&'static str, Cow<'a, str>)>;

/// One gauge with its series.
fn gauge<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    series: impl Iterator<Item = (Labels<'a>, f64)>,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in series {
        if labels.is_empty() {
            metric.encode_gauge(&value)?;
            continue;
        }
        let labels: &[(&str, Cow<'_, str>)] = &labels;
        metric.encode_family(&labels)?.encode_gauge(&value)?;
    }
    Ok(())
}

#[derive(Debug)]
struct Own {
    app: Arc<App>,
    freshness: Vec<(&'static str, Freshness)>,
}

impl Collector for Own {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let view = self.app.books.view();
        let state = |state: BookingState| view.snapshot.bookings().filter(|b| b.state == state).count();
        let one = |value: f64| std::iter::once((Labels::new(), value));
        #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
        let count = |value: usize| value as f64;
        gauge(
            &mut encoder,
            "tessera_bookings",
            "Pods that hold cards, by what the booking rests on",
            [
                ("assumed", BookingState::Assumed),
                ("unbound", BookingState::Unbound),
                ("bound", BookingState::Bound),
            ]
            .into_iter()
            .map(|(name, kind)| (vec![("state", Cow::Borrowed(name))], count(state(kind)))),
        )?;
        gauge(
            &mut encoder,
            "tessera_nodes",
            "Nodes known",
            one(count(view.snapshot.node_count())),
        )?;
        gauge(
            &mut encoder,
            "tessera_waiting_pods",
            "Refused pods that wait",
            one(count(self.app.waiting.count())),
        )?;
        gauge(
            &mut encoder,
            "tessera_unreadable_objects",
            "Objects that cannot be used as they are",
            one(count(view.problems.len())),
        )?;
        gauge(
            &mut encoder,
            "tessera_booking_differences",
            "What the last comparison of the books with the objects found",
            one(whole(view.differences)),
        )?;
        gauge(
            &mut encoder,
            "tessera_expired_promises",
            "Promises that nothing confirmed, since the start",
            one(whole(view.expired)),
        )?;
        gauge(
            &mut encoder,
            "tessera_dropped_events",
            "Events not told because too much was to be told, since the start",
            one(whole(self.app.recorder.dropped())),
        )?;
        gauge(
            &mut encoder,
            "tessera_watch_age_seconds",
            "Time since the API server last said anything about a kind of object",
            self.freshness.iter().filter_map(|(kind, freshness)| {
                freshness
                    .age()
                    .map(|age| (vec![("kind", Cow::Borrowed(*kind))], age.as_secs_f64()))
            }),
        )?;
        gauge(
            &mut encoder,
            "tessera_lists",
            "How often a kind of object was listed whole, since the start",
            self.freshness
                .iter()
                .map(|(kind, freshness)| (vec![("kind", Cow::Borrowed(*kind))], whole(freshness.lists()))),
        )?;
        gauge(
            &mut encoder,
            "tessera_ready",
            "1 if the service is ready",
            one(if self.app.health.ready().is_ok() { 1.0 } else { 0.0 }),
        )
    }
}

#[derive(Debug)]
struct Build;

impl Collector for Build {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let labels = vec![
            ("version", Cow::Borrowed(crate::VERSION)),
            ("revision", Cow::Borrowed(option_env!("TESSERA_REVISION").unwrap_or(""))),
            (
                "build_date",
                Cow::Borrowed(option_env!("TESSERA_BUILD_DATE").unwrap_or("")),
            ),
            ("go_version", Cow::Borrowed("")),
            ("compiler", Cow::Borrowed("rustc")),
            (
                "platform",
                Cow::Owned(format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH)),
            ),
        ];
        gauge(
            &mut encoder,
            "hami_build_info",
            "The build",
            std::iter::once((labels, 1.0)),
        )
    }
}

/// HAMi's names.
#[derive(Debug)]
struct Compatible {
    app: Arc<App>,
    legacy: bool,
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn whole(value: u64) -> f64 {
    value as f64
}

fn bytes(memory: Mib) -> f64 {
    whole(memory.get()) * 1_048_576.0
}

/// One card and its place on its node.
struct OneCard<'a> {
    node: &'a NodeState,
    at: usize,
    card: &'a tessera_types::Card,
}

impl<'a> OneCard<'a> {
    fn all(snapshot: &'a Snapshot) -> impl Iterator<Item = Self> {
        snapshot.nodes().flat_map(|node| {
            node.cards()
                .iter()
                .enumerate()
                .map(move |(at, card)| OneCard { node, at, card })
        })
    }

    fn used(&self) -> tessera_types::CardUsage {
        self.node
            .usage()
            .get(self.at)
            .map(|used| used.usage)
            .unwrap_or_default()
    }

    fn labels(&self, names: [&'static str; 4]) -> Labels<'a> {
        let [node, uuid, index, model] = names;
        vec![
            (node, Cow::Borrowed(self.node.name().as_str())),
            (uuid, Cow::Borrowed(self.card.id.as_str())),
            (index, Cow::Owned(self.card.index.to_string())),
            (model, Cow::Borrowed(&*self.card.model)),
        ]
    }
}

const CARD: [&str; 4] = ["node", "device_uuid", "device_index", "device_type"];
const LEGACY_CARD: [&str; 4] = ["nodeid", "deviceuuid", "deviceidx", "devicetype"];

impl Collector for Compatible {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let view = self.app.books.view();
        let snapshot = &view.snapshot;
        cards(&mut encoder, snapshot)?;
        instances(&mut encoder, snapshot)?;
        pods(&mut encoder, snapshot)?;
        quotas(&mut encoder, snapshot)?;
        if self.legacy {
            legacy(&mut encoder, snapshot)
        } else {
            Ok(())
        }
    }
}

fn cards(encoder: &mut DescriptorEncoder<'_>, snapshot: &Snapshot) -> fmt::Result {
    let with_cores = |card: &OneCard<'_>| ("device_cores", Cow::Owned(card.card.cores.get().to_string()));
    gauge(
        encoder,
        "hami_gpu_memory_limit_bytes",
        "Registered memory of a card",
        OneCard::all(snapshot).map(|card| (card.labels(CARD), bytes(card.card.memory))),
    )?;
    gauge(
        encoder,
        "hami_gpu_memory_allocated_bytes",
        "Memory of a card that pods hold",
        OneCard::all(snapshot).map(|card| {
            let mut labels = card.labels(CARD);
            labels.insert(3, with_cores(&card));
            (labels, bytes(card.used().memory))
        }),
    )?;
    gauge(
        encoder,
        "hami_gpu_core_limit_ratio",
        "Registered compute of a card, percent",
        OneCard::all(snapshot).map(|card| (card.labels(CARD), f64::from(card.card.cores.get()))),
    )?;
    gauge(
        encoder,
        "hami_gpu_core_allocated_ratio",
        "Compute of a card that pods hold, percent",
        OneCard::all(snapshot).map(|card| (card.labels(CARD), f64::from(card.used().cores.get()))),
    )?;
    gauge(
        encoder,
        "hami_gpu_shared_count",
        "Containers that share a card",
        OneCard::all(snapshot).map(|card| (card.labels(CARD), f64::from(card.used().slots))),
    )?;
    gauge(
        encoder,
        "hami_node_gpu_overview",
        "A card and the memory that pods hold",
        OneCard::all(snapshot).map(|card| {
            let mut labels = card.labels(CARD);
            labels.insert(3, with_cores(&card));
            labels.insert(
                4,
                ("device_memory_limit", Cow::Owned(card.card.memory.get().to_string())),
            );
            (labels, bytes(card.used().memory))
        }),
    )?;
    gauge(
        encoder,
        "hami_node_gpu_memory_allocated_ratio",
        "Part of a card's memory that pods hold",
        OneCard::all(snapshot)
            .filter(|card| card.card.memory > Mib::ZERO)
            .map(|card| {
                (
                    card.labels(CARD),
                    whole(card.used().memory.get()) / whole(card.card.memory.get()),
                )
            }),
    )
}

fn instances(encoder: &mut DescriptorEncoder<'_>, snapshot: &Snapshot) -> fmt::Result {
    let series = snapshot.bookings().flat_map(|booking| {
        booking.mig().iter().filter_map(move |instance| {
            let runtime = instance.runtime.as_ref()?;
            let index = snapshot
                .node(booking.node.as_str())
                .and_then(|node| node.cards().iter().find(|card| card.id == instance.card))
                .map_or_else(String::new, |card| card.index.to_string());
            let labels: Labels<'_> = vec![
                ("node", Cow::Borrowed(booking.node.as_str())),
                ("device_uuid", Cow::Borrowed(instance.card.as_str())),
                ("device_index", Cow::Owned(index)),
                ("mig_uuid", Cow::Borrowed(runtime.mig_uuid.as_str())),
                ("profile", Cow::Borrowed(instance.profile.as_str())),
                ("gpu_instance_id", Cow::Owned(runtime.gpu_instance.to_string())),
                ("compute_instance_id", Cow::Owned(runtime.compute_instance.to_string())),
                ("placement_start", Cow::Owned(instance.placement.start.to_string())),
                ("placement_size", Cow::Owned(instance.placement.size.to_string())),
            ];
            Some((labels, 1.0))
        })
    });
    gauge(
        encoder,
        "hami_node_gpu_mig_instance_info",
        "A hardware instance that a pod holds",
        series,
    )
}

/// What each pod holds of each card. The container index is 0: what counts is the pod's effective usage, which
/// belongs to no single container.
fn shares<'a>(
    snapshot: &'a Snapshot,
    names: [&'static str; 5],
    value: impl Fn(&tessera_types::CardUsage) -> f64 + 'a,
) -> impl Iterator<Item = (Labels<'a>, f64)> {
    let value = move |booking: &'a Booking| -> Vec<(Labels<'a>, f64)> {
        let [namespace, node, pod, container, uuid] = names;
        booking
            .usage()
            .map(|(card, _, usage)| {
                let labels: Labels<'_> = vec![
                    (namespace, Cow::Borrowed(booking.pod.namespace.as_str())),
                    (node, Cow::Borrowed(booking.node.as_str())),
                    (pod, Cow::Borrowed(booking.pod.name.as_str())),
                    (container, Cow::Borrowed("0")),
                    (uuid, Cow::Borrowed(card.as_str())),
                ];
                (labels, value(&usage))
            })
            .collect()
    };
    snapshot.bookings().flat_map(value)
}

const SHARE: [&str; 5] = ["namespace", "node", "pod", "container_index", "device_uuid"];
const LEGACY_SHARE: [&str; 5] = ["podnamespace", "nodename", "podname", "containeridx", "deviceuuid"];

fn pods(encoder: &mut DescriptorEncoder<'_>, snapshot: &Snapshot) -> fmt::Result {
    gauge(
        encoder,
        "hami_vgpu_memory_allocated_bytes",
        "Memory of a card that a pod holds",
        shares(snapshot, SHARE, |usage| bytes(usage.memory)),
    )?;
    gauge(
        encoder,
        "hami_vgpu_core_allocated_ratio",
        "Compute of a card that a pod holds, percent",
        shares(snapshot, SHARE, |usage| f64::from(usage.cores.get())),
    )
}

fn quotas(encoder: &mut DescriptorEncoder<'_>, snapshot: &Snapshot) -> fmt::Result {
    gauge(
        encoder,
        "hami_resource_quota_used",
        "What a namespace uses of a limited resource",
        snapshot.quotas().iter().map(|(namespace, name, state)| {
            let limit = state.limit.map_or_else(String::new, |limit| limit.to_string());
            let labels: Labels<'_> = vec![
                ("namespace", Cow::Borrowed(namespace)),
                ("quota_name", Cow::Borrowed(name)),
                ("limit", Cow::Owned(limit)),
            ];
            (labels, whole(state.used))
        }),
    )?;
    gauge(
        encoder,
        "hami_resource_quota_limit",
        "What a namespace may use of a resource",
        snapshot.quotas().iter().filter_map(|(namespace, name, state)| {
            let labels: Labels<'_> = vec![
                ("namespace", Cow::Borrowed(namespace)),
                ("quota_name", Cow::Borrowed(name)),
            ];
            Some((labels, whole(state.limit?)))
        }),
    )
}

fn legacy(encoder: &mut DescriptorEncoder<'_>, snapshot: &Snapshot) -> fmt::Result {
    let all = || OneCard::all(snapshot);
    let cores = |card: &OneCard<'_>| ("devicecores", Cow::Owned(card.card.cores.get().to_string()));
    gauge(
        encoder,
        "GPUDeviceMemoryLimit",
        "Registered memory of a card, bytes",
        all().map(|card| (card.labels(LEGACY_CARD), bytes(card.card.memory))),
    )?;
    gauge(
        encoder,
        "GPUDeviceCoreLimit",
        "Registered compute of a card, percent",
        all().map(|card| (card.labels(LEGACY_CARD), f64::from(card.card.cores.get()))),
    )?;
    gauge(
        encoder,
        "GPUDeviceSharedNum",
        "Containers that share a card",
        all().map(|card| (card.labels(LEGACY_CARD), f64::from(card.used().slots))),
    )?;
    gauge(
        encoder,
        "GPUDeviceCoreAllocated",
        "Compute of a card that pods hold, percent",
        all().map(|card| (card.labels(LEGACY_CARD), f64::from(card.used().cores.get()))),
    )?;
    gauge(
        encoder,
        "GPUDeviceMemoryAllocated",
        "Memory of a card that pods hold, bytes",
        all().map(|card| {
            let mut labels = card.labels(LEGACY_CARD);
            labels.insert(3, cores(&card));
            (labels, bytes(card.used().memory))
        }),
    )?;
    gauge(
        encoder,
        "nodeGPUOverview",
        "A card and the memory that pods hold, bytes",
        all().map(|card| {
            let mut labels = card.labels(LEGACY_CARD);
            labels.insert(3, cores(&card));
            labels.insert(4, ("devicememorylimit", Cow::Owned(card.card.memory.get().to_string())));
            (labels, bytes(card.used().memory))
        }),
    )?;
    gauge(
        encoder,
        "nodeGPUMemoryPercentage",
        "Part of a card's memory that pods hold",
        all().filter(|card| card.card.memory > Mib::ZERO).map(|card| {
            let mut labels = card.labels(LEGACY_CARD);
            labels.pop();
            (labels, whole(card.used().memory.get()) / whole(card.card.memory.get()))
        }),
    )?;
    gauge(
        encoder,
        "nodeGPUMigInstance",
        "A hardware instance that a pod holds",
        snapshot.bookings().flat_map(|booking| {
            booking.mig().iter().filter_map(move |instance| {
                let runtime = instance.runtime.as_ref()?;
                let card = snapshot
                    .node(booking.node.as_str())?
                    .cards()
                    .iter()
                    .find(|card| card.id == instance.card)?;
                let labels: Labels<'_> = vec![
                    ("nodeid", Cow::Borrowed(booking.node.as_str())),
                    ("deviceuuid", Cow::Borrowed(instance.card.as_str())),
                    ("deviceidx", Cow::Owned(card.index.to_string())),
                    (
                        "migname",
                        Cow::Owned(format!("{}-{}", instance.profile, runtime.gpu_instance)),
                    ),
                ];
                Some((labels, 1.0))
            })
        }),
    )?;
    gauge(
        encoder,
        "QuotaUsed",
        "What a namespace uses of a limited resource",
        snapshot.quotas().iter().map(|(namespace, name, state)| {
            let limit = state.limit.map_or_else(String::new, |limit| limit.to_string());
            let labels: Labels<'_> = vec![
                ("quotanamespace", Cow::Borrowed(namespace)),
                ("quotaName", Cow::Borrowed(name)),
                ("limit", Cow::Owned(limit)),
            ];
            (labels, whole(state.used))
        }),
    )?;
    gauge(
        encoder,
        "vGPUMemoryAllocated",
        "Memory of a card that a pod holds, bytes",
        shares(snapshot, LEGACY_SHARE, |usage| bytes(usage.memory)),
    )?;
    gauge(
        encoder,
        "vGPUCoreAllocated",
        "Compute of a card that a pod holds, percent",
        shares(snapshot, LEGACY_SHARE, |usage| f64::from(usage.cores.get())),
    )
}
