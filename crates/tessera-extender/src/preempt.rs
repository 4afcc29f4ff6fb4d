//! Preempt: who must go so that a more important pod gets its cards.

use std::collections::BTreeMap;

use tessera_engine::Preemptor;
use tessera_types::{NodeName, PodUid};
use tessera_wire::extender::{MetaPod, MetaVictims, PreemptArgs, PreemptResult};

use crate::app::App;

impl App {
    /// Answers `POST /preempt`. A node that cannot be freed is left out; one that is named has a victim.
    ///
    /// # Errors
    /// The text of a question that cannot be answered; kube-scheduler then gives up this attempt to preempt.
    pub async fn preempt(&self, body: &[u8]) -> Result<PreemptResult, String> {
        let args = PreemptArgs::read(body).map_err(|error| error.to_string())?;
        let pod = args.pod.ok_or("extender args missing pod")?;
        self.gate().await?;
        let demand = self.engine.demand(&pod).map_err(|error| error.to_string())?;
        let snapshot = &self.books.view().snapshot;
        let preemptor = Preemptor {
            priority: pod.priority,
            never: pod.preemption_policy_never,
        };
        let mut answer: BTreeMap<String, MetaVictims> = BTreeMap::new();
        for (node, victims) in args.victims {
            let uids: Vec<PodUid> = victims
                .pods
                .iter()
                .filter_map(|victim| PodUid::new(&victim.uid).ok())
                .collect();
            let chosen = if demand.is_empty() {
                Some(uids)
            } else {
                let Ok(name) = NodeName::new(&node) else { continue };
                self.engine.preempt(snapshot, &demand, &name, &uids, preemptor)
            };
            let Some(chosen) = chosen.filter(|chosen| !chosen.is_empty()) else {
                continue;
            };
            let pods = chosen.into_iter().map(|uid| MetaPod { uid: uid.to_string() }).collect();
            // Budgets are counted by kube-scheduler for the victims it named; ours are added to none of them.
            answer.insert(
                node,
                MetaVictims {
                    pods,
                    pdb_violations: victims.pdb_violations,
                },
            );
        }
        tracing::debug!(pod = %pod.id, nodes = answer.len(), "Answered a preemption.");
        Ok(PreemptResult { victims: answer })
    }
}
