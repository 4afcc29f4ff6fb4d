//! Whether the plugins that report through a handshake annotation still do.
//!
//! Such a plugin rewrites its node's annotation every 30 seconds. What counts is when *we* last saw the text change:
//! the times inside are of another machine's clock and zone. Nothing is written: the question that HAMi's scheduler
//! puts into the same annotation costs a write for each node and class, and makes dead nodes come and go.

use std::collections::HashMap;

use tessera_engine::{HealthSource, Vendor, Vendors};
use tessera_types::{Keyword, NodeName};
use tessera_wire::NodeView;

/// Three reports missed.
const SILENT_SECONDS: i64 = 90;

#[derive(Debug)]
struct Beat {
    text: String,
    /// When this text was first seen.
    since: i64,
    /// Devices of the class that the kubelet can allocate: a plugin that it still talks to lives.
    allocatable: i64,
    silent: bool,
}

impl Beat {
    fn is_silent(&self, now: i64) -> bool {
        self.allocatable <= 0 && now.saturating_sub(self.since) >= SILENT_SECONDS
    }
}

/// What the plugins of all nodes said last.
#[derive(Debug, Default)]
pub(crate) struct Heartbeats(HashMap<NodeName, HashMap<Keyword, Beat>>);

/// A class on a node that went silent, or spoke again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Turn {
    pub(crate) node: NodeName,
    pub(crate) class: Keyword,
    /// Why no new work goes there; `None` if it may again.
    pub(crate) cause: Option<String>,
}

impl Heartbeats {
    /// Takes a node as it is now. `own_agent`: our own agent runs there.
    pub(crate) fn see(&mut self, vendors: &Vendors, node: &NodeView, own_agent: bool, now: i64) -> Vec<Turn> {
        let mut turns = Vec::new();
        for vendor in vendors.iter().map(|vendor| &**vendor) {
            let heard = heard(vendor, node).filter(|_| !(own_agent && vendor.own_agent()));
            let class = vendor.keyword();
            let Some((text, allocatable)) = heard else {
                let gone = self.0.get_mut(&node.name).and_then(|beats| beats.remove(class));
                if gone.is_some_and(|beat| beat.silent) {
                    turns.push(turn(&node.name, class, None));
                }
                continue;
            };
            let beats = self.0.entry(node.name.clone()).or_default();
            match beats.get_mut(class) {
                Some(beat) => {
                    beat.allocatable = allocatable;
                    if beat.text != text {
                        text.clone_into(&mut beat.text);
                        beat.since = now;
                    }
                    turns.extend(judge(&node.name, class, beat, now));
                }
                None => {
                    let beat = Beat {
                        text: text.to_owned(),
                        since: now,
                        allocatable,
                        silent: false,
                    };
                    beats.insert(class.clone(), beat);
                }
            }
        }
        turns
    }

    /// The node is gone.
    pub(crate) fn forget(&mut self, node: &NodeName) {
        self.0.remove(node);
    }

    /// Who has been silent for too long by now.
    pub(crate) fn tick(&mut self, now: i64) -> Vec<Turn> {
        let mut turns = Vec::new();
        for (node, beats) in &mut self.0 {
            for (class, beat) in beats.iter_mut() {
                turns.extend(judge(node, class, beat, now));
            }
        }
        turns
    }
}

/// The class's text on the node and the allocatable count, if the class reports this way.
fn heard<'a>(vendor: &dyn Vendor, node: &'a NodeView) -> Option<(&'a str, i64)> {
    match vendor.health() {
        HealthSource::Handshake | HealthSource::HandshakeAndAllocatable => {}
        _ => return None,
    }
    let text = node.annotations.get(vendor.keys().handshake.as_deref()?)?;
    let count = vendor.names().count.as_deref();
    Some((text, count.map_or(0, |count| node.allocatable_count(count))))
}

fn judge(node: &NodeName, class: &Keyword, beat: &mut Beat, now: i64) -> Option<Turn> {
    let silent = beat.is_silent(now);
    if silent == beat.silent {
        return None;
    }
    beat.silent = silent;
    let cause = silent.then(|| {
        format!(
            "its plugin has not reported for {SILENT_SECONDS} seconds and the kubelet can allocate none of its devices"
        )
    });
    Some(turn(node, class, cause))
}

fn turn(node: &NodeName, class: &Keyword, cause: Option<String>) -> Turn {
    Turn {
        node: node.clone(),
        class: class.clone(),
        cause,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tessera_wire::config::DeviceConfig;

    use super::*;

    fn node(text: Option<&str>, allocatable: u32) -> NodeView {
        let mut object = json!({"metadata": {"name": "n", "annotations": {}},
            "status": {"allocatable": {"nvidia.com/gpu": allocatable.to_string()}}});
        if let Some(text) = text {
            object["metadata"]["annotations"]["hami.io/node-handshake"] = json!(text);
        }
        NodeView::from_json(&object).unwrap()
    }

    fn causes(turns: &[Turn]) -> Vec<bool> {
        turns.iter().map(|turn| turn.cause.is_some()).collect()
    }

    #[test]
    fn silence_closes_the_class_and_a_report_opens_it() {
        let vendors = tessera_vendors::from_config(&DeviceConfig::from_yaml("nvidia: {}").unwrap());
        let mut beats = Heartbeats::default();
        assert!(beats.see(&vendors, &node(Some("Reported 1"), 0), false, 100).is_empty());
        assert!(beats.tick(189).is_empty());
        assert_eq!(causes(&beats.tick(190)), [true]);
        assert!(beats.tick(191).is_empty(), "said once");
        assert_eq!(
            causes(&beats.see(&vendors, &node(Some("Reported 2"), 0), false, 195)),
            [false]
        );
        // As long as the kubelet can allocate devices, a plugin serves them.
        beats.see(&vendors, &node(Some("Reported 2"), 4), false, 196);
        assert!(beats.tick(1000).is_empty());
        assert_eq!(
            causes(&beats.see(&vendors, &node(Some("Reported 2"), 0), false, 1001)),
            [true]
        );
        // The annotation is taken away: from then on it says nothing.
        assert_eq!(causes(&beats.see(&vendors, &node(None, 0), false, 1002)), [false]);
    }

    #[test]
    fn our_own_agent_needs_no_handshake() {
        let vendors = tessera_vendors::from_config(&DeviceConfig::from_yaml("nvidia: {}").unwrap());
        let mut beats = Heartbeats::default();
        beats.see(&vendors, &node(Some("Requesting_x"), 0), true, 0);
        assert!(beats.tick(1000).is_empty());
    }
}
