//! What can be wrong with what others wrote: requests, registers, allocation texts.

use tessera_types::{CardId, CardRule, RuleError, WeightsError};
use tessera_wire::nearest::nearest;

/// A request that cannot be served as written. Names the field, what is wrong, and the next step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{problem}{}", self.place(), self.advice())]
pub struct RequestError {
    /// The container, if it is one container's field.
    pub container: Option<String>,
    /// The resource or annotation; empty if `problem` names it.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
    /// What to write instead; may be empty.
    pub next: String,
}

impl RequestError {
    /// About a resource of a container.
    pub fn resource(
        container: impl Into<String>,
        field: impl Into<String>,
        problem: impl Into<String>,
        next: impl Into<String>,
    ) -> Self {
        Self {
            container: Some(container.into()),
            field: field.into(),
            problem: problem.into(),
            next: next.into(),
        }
    }

    /// About an annotation of the pod.
    pub fn annotation(field: impl Into<String>, problem: impl Into<String>, next: impl Into<String>) -> Self {
        Self {
            container: None,
            field: field.into(),
            problem: problem.into(),
            next: next.into(),
        }
    }

    /// A sentence that already says all three.
    pub fn sentence(container: Option<String>, text: impl Into<String>) -> Self {
        Self {
            container,
            field: String::new(),
            problem: text.into(),
            next: String::new(),
        }
    }

    pub(crate) fn weights(key: &str, error: &WeightsError) -> Self {
        Self::annotation(key, error.to_string(), "")
    }

    pub(crate) fn rule(key: &str, error: &RuleError) -> Self {
        let meant = error.unknown.as_deref();
        let meant = meant.and_then(|word| nearest(word, CardRule::ATTRIBUTES));
        let next = match meant {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => "write for example model.contains('A100') && memory >= 40Gi".to_owned(),
        };
        Self::annotation(key, error.to_string(), next)
    }

    fn place(&self) -> String {
        match (&self.container, self.field.as_str()) {
            (_, "") => String::new(),
            (Some(container), field) => format!("container `{container}`: `{field}`: "),
            (None, field) => format!("annotation `{field}`: "),
        }
    }

    fn advice(&self) -> String {
        if self.next.is_empty() {
            String::new()
        } else {
            format!("; {}", self.next)
        }
    }
}

/// Why a node gives a class no cards.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeProblem {
    /// The node says nothing about the class. Not a fault.
    #[error("the node registers no card of the class")]
    Absent,
    /// The text is there and cannot be read.
    #[error("node annotation `{key}` cannot be read: {fault}")]
    Unreadable {
        /// The annotation.
        key: String,
        /// What is wrong.
        fault: String,
    },
    /// A resource of the node's status cannot be read.
    #[error("node resource `{resource}` cannot be read: {fault}")]
    Capacity {
        /// The resource.
        resource: String,
        /// What is wrong.
        fault: String,
    },
    /// What the node says of a card contradicts what the class knows of it; only that card is closed.
    #[error("card {card} takes no new work: {fault}")]
    Disagrees {
        /// The card.
        card: CardId,
        /// The contradiction.
        fault: String,
    },
    /// The text is there and lists nothing.
    #[error("node annotation `{key}` lists no card")]
    Empty {
        /// The annotation.
        key: String,
    },
}

/// An allocation text on a pod that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("pod annotation `{key}` cannot be read: {fault}")]
pub struct AllocationProblem {
    /// The annotation.
    pub key: String,
    /// What is wrong.
    pub fault: String,
    /// The text, so that the cards it might name can be closed.
    pub text: String,
}
