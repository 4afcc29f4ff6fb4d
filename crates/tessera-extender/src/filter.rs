//! Filter and prioritize: which nodes can take the pod.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;
use tessera_engine::{Candidates, Decision, text};
use tessera_kube::books::{View, Wanted};
use tessera_kube::writes::patch_pod;
use tessera_types::{Demand, NodePolicy};
use tessera_wire::extender::{FilterArgs, FilterResult, HostPriority};
use tessera_wire::keys::events;
use tessera_wire::{NameList, NodeView, PodView, patch};
use tokio::time::Instant;

use crate::app::{App, Promise, now};
use crate::args::{FilterMode, WriteAt};

/// Decisions tried anew after losing a share to a request that came between. Each loss means that another pod won.
pub(crate) const TRIES: usize = 16;

impl App {
    /// Answers `POST /filter`.
    pub async fn filter(&self, body: &[u8]) -> FilterResult {
        let args = match FilterArgs::read(body) {
            Ok(args) => args,
            Err(error) => return FilterResult::error(error.to_string()),
        };
        let Some(pod) = args.pod else {
            return FilterResult::error("extender args missing pod");
        };
        if let Err(why) = self.gate().await {
            return FilterResult::error(why);
        }
        let demand = match self.engine.demand(&pod) {
            Ok(demand) => demand,
            Err(error) => {
                let text = error.to_string();
                self.tell(&pod.id, true, events::FILTERING_FAILED, &text);
                return FilterResult::error(text);
            }
        };
        if demand.is_empty() {
            let nodes = args.nodes.map(FilterResult::node_list);
            return FilterResult {
                nodes,
                node_names: args.node_names.map(|names| names.iter().map(str::to_owned).collect()),
                ..FilterResult::default()
            };
        }
        match (args.nodes, args.node_names) {
            (Some(nodes), _) => self.simulate(&demand, &nodes),
            (None, Some(names)) => match self.settings.filter_mode {
                FilterMode::One => self.filter_one(&pod, demand, &names).await,
                FilterMode::All => self.filter_all(&pod, &demand, &names).await,
            },
            (None, None) => FilterResult::error("extender args missing node names"),
        }
    }

    /// A caller that sends Node objects asks "what if"; nothing is booked for it.
    fn simulate(&self, demand: &Demand, nodes: &[Value]) -> FilterResult {
        let mut views = Vec::with_capacity(nodes.len());
        let mut objects = BTreeMap::new();
        let mut failed = BTreeMap::new();
        for node in nodes {
            match NodeView::from_json(node) {
                Ok(view) => {
                    objects.insert(view.name.to_string(), node);
                    views.push(view);
                }
                Err(error) => {
                    let name = node
                        .pointer("/metadata/name")
                        .and_then(Value::as_str)
                        .unwrap_or_default();
                    failed.insert(name.to_owned(), error.to_string());
                }
            }
        }
        let decision = self.engine.simulate(&views, demand, None);
        failed.extend(failures(&decision));
        let chosen: Vec<Value> = decision
            .winner()
            .and_then(|fit| objects.get(fit.node.as_str()))
            .map(|node| vec![(*node).clone()])
            .unwrap_or_default();
        FilterResult {
            nodes: Some(FilterResult::node_list(chosen)),
            failed_nodes: Some(failed),
            ..FilterResult::default()
        }
    }

    async fn filter_one(&self, pod: &PodView, demand: Demand, names: &NameList) -> FilterResult {
        let mut lost = None;
        for _ in 0..TRIES {
            let view = self.books.view();
            let Some(fit) = self.engine.choose(&view.snapshot, &demand, Candidates::Listed(names)) else {
                let decision = self.engine.decide(&view.snapshot, &demand, Candidates::Listed(names));
                return self.refuse(pod, demand, &decision, &view).await;
            };
            let at = now();
            let wanted = Wanted {
                pod: pod.id.clone(),
                roles: pod.roles(),
                node: fit.node.clone(),
                allocation: Arc::clone(&fit.allocation),
                priority: pod.priority,
                facts: demand.facts.clone(),
                decided_at: at,
            };
            let gang = pod.pod_group.is_some();
            let lease = self.settings.assume_time;
            match self.books.assume(wanted, lease).await {
                Err(closed) => return FilterResult::error(closed.to_string()),
                // Another request took the share between the decision and now.
                Ok(Err(error)) => lost = Some(error),
                Ok(Ok(())) => {
                    let new = self.written(&view.snapshot, &fit.node, &fit.allocation, &demand, at);
                    let mut promise = Promise {
                        node: fit.node.clone(),
                        allocation: Arc::clone(&fit.allocation),
                        at,
                        stale: self.stale_keys(&pod.annotations, &new),
                        written: false,
                        gang,
                        until: Instant::now() + lease,
                        demand,
                    };
                    if self.settings.write_at == WriteAt::Filter {
                        let patch = with_removed(patch::allocation(&new), &promise.stale);
                        if let Err(error) = patch_pod(&self.cluster.client, &pod.id, patch).await {
                            self.books.forget(pod.id.uid.clone()).await;
                            self.tell(&pod.id, true, events::FILTERING_FAILED, error.to_string());
                            return FilterResult::error(error.to_string());
                        }
                        promise.written = true;
                    }
                    tracing::debug!(pod = %pod.id, uid = %pod.id.uid, node = %fit.node, candidates = names.len(), score = fit.score, terms = fit.terms.map(tracing::field::display), "Chose a node.");
                    let node = promise.node.to_string();
                    self.promise(promise);
                    self.waiting.forget(&pod.id.uid);
                    return FilterResult {
                        node_names: Some(vec![node]),
                        ..FilterResult::default()
                    };
                }
            }
        }
        let why = lost.map_or_else(String::new, |error| format!(": {error}"));
        FilterResult::error(format!(
            "other pods took the cards while this one was being placed{why}"
        ))
    }

    async fn filter_all(&self, pod: &PodView, demand: &Demand, names: &NameList) -> FilterResult {
        let view = self.books.view();
        let decision = self.engine.decide(&view.snapshot, demand, Candidates::Listed(names));
        if decision.fits.is_empty() {
            return self.refuse(pod, demand.clone(), &decision, &view).await;
        }
        self.waiting.forget(&pod.id.uid);
        FilterResult {
            node_names: Some(decision.fits.iter().map(|fit| fit.node.to_string()).collect()),
            failed_nodes: Some(failures(&decision)),
            ..FilterResult::default()
        }
    }

    async fn refuse(&self, pod: &PodView, demand: Demand, decision: &Decision, view: &View) -> FilterResult {
        // What an earlier attempt of this pod assumed is of no use any more.
        self.drop_promise(&pod.id.uid).await;
        self.metrics.refused(decision);
        let message = text::event(decision, &demand);
        tracing::debug!(pod = %pod.id, uid = %pod.id.uid, reason = %message, "No node can place the pod.");
        self.tell(&pod.id, true, events::FILTERING_FAILED, message);
        self.waiting.add(demand, pod.priority, view.freed);
        if self.books.view().freed != view.freed {
            self.waiting.look_again();
        }
        FilterResult {
            failed_nodes: Some(failures(decision)),
            ..FilterResult::default()
        }
    }

    /// Answers `POST /prioritize`: 0 for the worst node, 10 for the best, the rest between by their scores.
    ///
    /// # Errors
    /// The text of a question that cannot be answered; kube-scheduler then goes on without our scores.
    pub async fn prioritize(&self, body: &[u8]) -> Result<Vec<HostPriority>, String> {
        let args = FilterArgs::read(body).map_err(|error| error.to_string())?;
        let pod = args.pod.ok_or("extender args missing pod")?;
        let names = args.node_names.unwrap_or_default();
        self.gate().await?;
        let demand = self.engine.demand(&pod).map_err(|error| error.to_string())?;
        if demand.is_empty() {
            let nothing = |host: &str| HostPriority {
                host: host.to_owned(),
                score: 0,
            };
            return Ok(names.iter().map(nothing).collect());
        }
        let view = self.books.view();
        let decision = self.engine.decide(&view.snapshot, &demand, Candidates::Listed(&names));
        let policy = demand.node_policy.unwrap_or(self.engine.defaults().node_policy);
        Ok(scores(&decision, policy, &names))
    }
}

fn scores(decision: &Decision, policy: NodePolicy, names: &NameList) -> Vec<HostPriority> {
    let fullness: BTreeMap<&str, f64> = decision.fits.iter().map(|fit| (fit.node.as_str(), fit.score)).collect();
    let low = fullness.values().copied().fold(f64::INFINITY, f64::min);
    let high = fullness.values().copied().fold(f64::NEG_INFINITY, f64::max);
    names
        .iter()
        .map(|name| {
            let score = fullness.get(name).map_or(0.0, |score| {
                let part = if high > low { (score - low) / (high - low) } else { 1.0 };
                if policy.least_wins() && high > low {
                    1.0 - part
                } else {
                    part
                }
            });
            #[expect(clippy::cast_possible_truncation, reason = "between 0 and 10")]
            HostPriority {
                host: name.to_owned(),
                score: (score * 10.0).round() as i64,
            }
        })
        .collect()
}

/// The compatible text for every node that cannot take the pod.
fn failures(decision: &Decision) -> BTreeMap<String, String> {
    decision
        .refused
        .iter()
        .map(|(node, refusal)| (node.to_string(), text::hami_node(refusal)))
        .collect()
}

/// The patch with these annotations removed as well.
pub(crate) fn with_removed(mut patch: Value, stale: &[String]) -> Value {
    if let Some(annotations) = patch
        .pointer_mut("/metadata/annotations")
        .and_then(Value::as_object_mut)
    {
        for key in stale {
            annotations.entry(key.clone()).or_insert(Value::Null);
        }
    }
    patch
}
