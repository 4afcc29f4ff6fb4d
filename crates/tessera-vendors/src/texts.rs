//! Annotations that classes read and write alike: the lists with which a pod chooses cards, and moments.

use tessera_engine::{comma_list, go_bool};
use tessera_types::Selection;
use tessera_wire::PodView;

/// A moment in nanoseconds since 1970, as plugins read it.
pub(crate) fn nanoseconds(seconds: i64) -> String {
    seconds.saturating_mul(1_000_000_000).to_string()
}

/// Annotations in which a user states the cards that a pod accepts; an empty key is not used.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SelectionKeys<'a> {
    pub(crate) use_models: &'a str,
    pub(crate) avoid_models: &'a str,
    pub(crate) use_ids: &'a str,
    pub(crate) avoid_ids: &'a str,
    /// All cards of a container on one NUMA node, or in the order of NUMA nodes; as the class's rules say.
    pub(crate) numa_bind: &'a str,
}

impl<'a> SelectionKeys<'a> {
    /// All of them, as names that a user may write.
    pub(crate) fn all(self) -> impl Iterator<Item = &'a str> {
        [
            self.use_models,
            self.avoid_models,
            self.use_ids,
            self.avoid_ids,
            self.numa_bind,
        ]
        .into_iter()
        .filter(|key| !key.is_empty())
    }

    /// What the pod states.
    pub(crate) fn read(self, pod: &PodView) -> Selection {
        let list = |key: &str| comma_list(pod.annotation(key));
        Selection {
            use_models: list(self.use_models),
            avoid_models: list(self.avoid_models),
            use_ids: list(self.use_ids),
            avoid_ids: list(self.avoid_ids),
            numa_bind: pod.annotation(self.numa_bind).and_then(go_bool).unwrap_or(false),
            ..Selection::default()
        }
    }
}
