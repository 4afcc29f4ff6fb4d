//! What a person watching `up` is told while long steps run.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// One step worth telling. Its `Display` is a sentence without a full stop.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A binary set is being compiled.
    Building {
        /// For example `kubernetes`.
        what: String,
        /// For example `v1.36.3`.
        version: String,
        /// Rough time on a machine with two cores.
        about: Duration,
    },
    /// A binary set has been compiled.
    Built {
        /// For example `kubernetes`.
        what: String,
        /// Time that it took.
        took: Duration,
    },
    /// Packages of the distribution are being installed.
    Installing(Vec<String>),
    /// Another process is doing the same work; this one waits for it.
    Waiting(String),
    /// Any other step, as a sentence.
    Step(String),
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Building { what, version, about } => write!(
                f,
                "Building {what} {version}, about {} min (only the first time)",
                about.as_secs().div_ceil(60)
            ),
            Self::Built { what, took } => write!(f, "Built {what} in {} s", took.as_secs()),
            Self::Installing(packages) => write!(f, "Installing {}", packages.join(", ")),
            Self::Waiting(what) => write!(f, "Waiting for another run that does: {what}"),
            Self::Step(text) => f.write_str(text),
        }
    }
}

/// Where events go. Cheap to clone.
#[derive(Clone)]
pub struct Progress(Arc<dyn Fn(&Event) + Send + Sync>);

impl Progress {
    /// Calls `sink` for every event, on whichever thread does the work.
    pub fn new(sink: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        Self(Arc::new(sink))
    }

    /// Tells nobody.
    pub fn silent() -> Self {
        Self::new(|_| {})
    }

    pub(crate) fn tell(&self, event: Event) {
        tracing::debug!(%event, "Cluster step.");
        (self.0)(&event);
    }

    /// Tells one more step, as a sentence without a full stop.
    pub fn step(&self, text: impl Into<String>) {
        self.tell(Event::Step(text.into()));
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::silent()
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Progress")
    }
}
