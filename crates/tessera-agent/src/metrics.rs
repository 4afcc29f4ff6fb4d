//! The agent's own figures.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tessera_probe::Counters;

/// How a grant that did not match the kubelet's record ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Mismatch {
    /// The ids named other cards than the container has.
    OtherIds,
    /// The booking went to other cards.
    Moved,
    /// The grant was given to the true owner.
    Retargeted,
    /// Two or more grants were exchanged.
    Exchanged,
    /// The container has to wait.
    Refused,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: Mismatch,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Success {
    success: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct State {
    state: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CardLabel {
    card: String,
    state: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LevelLabel {
    card: String,
    level: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    call: String,
    code: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Xid {
    xid: u64,
}

/// Counters that are kept as things happen.
#[derive(Debug)]
pub struct Metrics {
    allocate: Family<Success, Histogram, fn() -> Histogram>,
    mismatches: Family<Outcome, Counter>,
}

fn allocate_histogram() -> Histogram {
    Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5])
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            allocate: Family::new_with_constructor(allocate_histogram),
            mismatches: Family::default(),
        }
    }
}

/// What is true at the moment of a scrape.
#[derive(Debug, Clone, Default)]
pub struct Now {
    /// Cards with "healthy" or "unhealthy".
    pub cards: Vec<(String, bool)>,
    /// Cards with who holds containers to memory on them: `library` or `driver`.
    pub levels: Vec<(String, &'static str)>,
    /// Grants: pending, sealed.
    pub grants: (usize, usize),
    /// Whether the kubelet reads our list.
    pub stream_up: bool,
    /// Seconds since the API server last spoke.
    pub api_age_seconds: Option<f64>,
    /// Driver trouble.
    pub driver: Counters,
}

impl Metrics {
    /// Takes in an Allocate call.
    pub fn allocated(&self, took: Duration, success: bool) {
        self.allocate
            .get_or_create(&Success { success })
            .observe(took.as_secs_f64());
    }

    /// Takes in a grant that did not match.
    pub fn mismatch(&self, outcome: Mismatch) {
        self.mismatches.get_or_create(&Outcome { outcome }).inc();
    }

    /// The page.
    ///
    /// # Errors
    /// When the text cannot be formatted.
    pub fn page(&self, now: &Now) -> Result<String, std::fmt::Error> {
        let mut registry = Registry::with_prefix("tessera_agent");
        registry.register(
            "allocate_seconds",
            "Time to answer an Allocate call of the kubelet",
            self.allocate.clone(),
        );
        registry.register(
            "owner_mismatch",
            "Grants whose provisional owner was not the kubelet's, by how it ended",
            self.mismatches.clone(),
        );
        let grants = Family::<State, Gauge>::default();
        for (state, count) in [("pending", now.grants.0), ("sealed", now.grants.1)] {
            let gauge = grants.get_or_create_owned(&State {
                state: state.to_owned(),
            });
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        registry.register("grant_state", "Grants by state", grants);
        let cards = Family::<CardLabel, Gauge>::default();
        for (card, healthy) in &now.cards {
            for (state, is) in [("healthy", *healthy), ("unhealthy", !*healthy)] {
                cards
                    .get_or_create_owned(&CardLabel {
                        card: card.clone(),
                        state: state.to_owned(),
                    })
                    .set(i64::from(is));
            }
        }
        registry.register("card_state", "1 for the state that the card is in", cards);
        let levels = Family::<LevelLabel, Gauge>::default();
        for (card, level) in &now.levels {
            levels
                .get_or_create_owned(&LevelLabel {
                    card: card.clone(),
                    level,
                })
                .set(1);
        }
        registry.register(
            "memory_level",
            "1 for who holds containers to their memory on the card",
            levels,
        );
        let errors = Family::<Call, Counter<u64, AtomicU64>>::default();
        for ((call, code), count) in &now.driver.errors {
            errors
                .get_or_create_owned(&Call {
                    call: (*call).to_owned(),
                    code: i64::from(*code),
                })
                .inc_by(*count);
        }
        registry.register("nvml_errors", "Failed driver calls", errors);
        let xids = Family::<Xid, Counter<u64, AtomicU64>>::default();
        for (xid, count) in &now.driver.xids {
            xids.get_or_create_owned(&Xid { xid: *xid }).inc_by(*count);
        }
        registry.register("xid", "Driver events by XID", xids);
        let stream = Gauge::<i64>::default();
        stream.set(i64::from(now.stream_up));
        registry.register("kubelet_stream_up", "Whether the kubelet reads the device list", stream);
        if let Some(age) = now.api_age_seconds {
            let gauge = Gauge::<f64, AtomicU64>::default();
            gauge.set(age);
            registry.register("api_age_seconds", "Time since the API server last answered", gauge);
        }
        if let Some(rss) = resident_bytes() {
            let gauge = Gauge::<i64>::default();
            gauge.set(i64::try_from(rss).unwrap_or(i64::MAX));
            registry.register("rss_bytes", "Resident memory of this process", gauge);
        }
        let mut page = String::new();
        text::encode(&mut page, &registry)?;
        Ok(page)
    }
}

/// Resident memory of this process.
fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kib: u64 = line.split_ascii_whitespace().nth(1)?.parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_what_is_true_now() {
        let metrics = Metrics::default();
        metrics.allocated(Duration::from_millis(2), true);
        metrics.mismatch(Mismatch::Retargeted);
        let mut driver = Counters::default();
        driver.xids.insert(79, 2);
        driver.errors.insert(("nvmlInit_v2", 9), 4);
        let page = metrics
            .page(&Now {
                cards: vec![("GPU-a".into(), false)],
                levels: vec![("GPU-a".into(), "driver")],
                grants: (1, 2),
                stream_up: true,
                api_age_seconds: Some(1.5),
                driver,
            })
            .unwrap();
        for line in [
            "tessera_agent_allocate_seconds_bucket{le=\"0.0025\",success=\"true\"} 1",
            "tessera_agent_owner_mismatch_total{outcome=\"Retargeted\"} 1",
            "tessera_agent_grant_state{state=\"sealed\"} 2",
            "tessera_agent_card_state{card=\"GPU-a\",state=\"unhealthy\"} 1",
            "tessera_agent_memory_level{card=\"GPU-a\",level=\"driver\"} 1",
            "tessera_agent_nvml_errors_total{call=\"nvmlInit_v2\",code=\"9\"} 4",
            "tessera_agent_xid_total{xid=\"79\"} 2",
            "tessera_agent_kubelet_stream_up 1",
            "tessera_agent_api_age_seconds 1.5",
        ] {
            assert!(page.contains(line), "{line}\n{page}");
        }
    }
}
