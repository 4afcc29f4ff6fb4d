//! What nodes say wrongly of their cards, told as an event on the node.
//!
//! The pods that wait for those cards have an event too; this one is for whoever looks after the node.

use std::collections::BTreeMap;
use std::sync::Arc;

use tessera_kube::events::{About, Note};
use tessera_types::NodeName;
use tessera_wire::keys::events;
use tokio_util::sync::CancellationToken;

use crate::app::App;

impl App {
    /// Tells each new trouble of a node once, until `stop`.
    pub(crate) async fn tell_troubles(self: Arc<Self>, stop: CancellationToken) {
        let mut problems = self.books.problems();
        let mut told: BTreeMap<String, String> = BTreeMap::new();
        loop {
            let now = Arc::clone(&problems.borrow_and_update());
            told.retain(|object, _| now.contains_key(object));
            let new: Vec<_> = now
                .iter()
                .filter(|(object, why)| told.get(*object) != Some(why))
                .collect();
            // A follower keeps quiet; should it lead one day, what is still wrong is told then.
            if !new.is_empty() && matches!(self.sighting_is_ours().await, Ok(true)) {
                for (object, why) in new {
                    if let Some(node) = object.strip_prefix("node ").and_then(|name| NodeName::new(name).ok()) {
                        self.recorder.tell(Note {
                            about: About::Node(node),
                            warning: true,
                            reason: events::CARDS_UNUSABLE,
                            message: why.clone(),
                        });
                    }
                    told.insert(object.clone(), why.clone());
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                changed = problems.changed() => if changed.is_err() { return },
            }
        }
    }
}
