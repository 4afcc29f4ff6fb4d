//! What admission may change of a container, collected as edits so that nothing else of the pod is touched.

use tessera_wire::{ContainerView, EnvValue, Quantity};

/// Settings of admission that concern every class.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AdmitSettings {}

/// What a class says about a container at admission.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Admit {
    /// The container uses the class.
    pub uses_device: bool,
    /// The runtime class that the pod needs, if the user names none.
    pub runtime_class: Option<String>,
    /// Told to the user, without refusing.
    pub warnings: Vec<String>,
}

/// An environment variable that admission sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvEdit {
    /// Name.
    pub name: String,
    /// Value.
    pub value: String,
    /// Positions in the container's list of entries of the same name that must go, ascending. Empty for a plain append.
    pub replaces: Vec<usize>,
}

/// One container under admission: the view as received and the edits so far. Reading sees the edits.
#[derive(Debug)]
pub struct ContainerEdit<'a> {
    view: &'a ContainerView,
    limits: Vec<(String, i64)>,
    env: Vec<EnvEdit>,
}

impl<'a> ContainerEdit<'a> {
    /// Without edits.
    #[must_use]
    pub fn new(view: &'a ContainerView) -> Self {
        Self {
            view,
            limits: Vec::new(),
            env: Vec::new(),
        }
    }

    /// The container as received.
    #[must_use]
    pub fn view(&self) -> &'a ContainerView {
        self.view
    }

    /// Whether `limits` has the name, edits included.
    #[must_use]
    pub fn has_limit(&self, name: &str) -> bool {
        self.limits.iter().any(|(set, _)| set == name) || self.view.limits.contains_key(name)
    }

    /// Whether `requests` has the name.
    #[must_use]
    pub fn has_request(&self, name: &str) -> bool {
        self.view.requests.contains_key(name)
    }

    /// The quantity as received, in limits, else in requests.
    #[must_use]
    pub fn amount(&self, name: &str) -> Option<&'a Quantity> {
        self.view.limits.get(name).or_else(|| self.view.requests.get(name))
    }

    /// Sets a limit.
    pub fn set_limit(&mut self, name: &str, value: i64) {
        match self.limits.iter_mut().find(|(set, _)| set == name) {
            Some((_, old)) => *old = value,
            None => self.limits.push((name.to_owned(), value)),
        }
    }

    /// Sets an environment variable. Entries of the same name with another value are replaced, since the last one
    /// would win; the same value already there needs no edit, so admission may run twice.
    ///
    /// Returns whether a user's own value was overridden.
    pub fn set_env(&mut self, name: &str, value: &str) -> bool {
        let mine = |entry: &EnvValue| matches!(entry, EnvValue::Text(text) if text == value);
        let found: Vec<(usize, bool)> = self
            .view
            .env
            .iter()
            .enumerate()
            .filter(|(_, (entry, _))| entry == name)
            .map(|(at, (_, entry))| (at, mine(entry)))
            .collect();
        if !found.is_empty() && found.iter().all(|(_, same)| *same) {
            return false;
        }
        self.env.retain(|edit| edit.name != name);
        self.env.push(EnvEdit {
            name: name.to_owned(),
            value: value.to_owned(),
            replaces: found.iter().map(|(at, _)| *at).collect(),
        });
        found.iter().any(|(_, same)| !same)
    }

    /// The limits set, in the order of setting.
    #[must_use]
    pub fn limits(&self) -> &[(String, i64)] {
        &self.limits
    }

    /// The environment variables set, in the order of setting.
    #[must_use]
    pub fn env(&self) -> &[EnvEdit] {
        &self.env
    }

    /// Whether nothing was changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.limits.is_empty() && self.env.is_empty()
    }

    /// The container as it will be. Limits only: the environment plays no part in a decision.
    #[must_use]
    pub fn edited(&self) -> ContainerView {
        let mut view = self.view.clone();
        for (name, value) in &self.limits {
            if let Ok(quantity) = Quantity::parse(&value.to_string()) {
                view.limits.insert(name.clone(), quantity);
            }
        }
        view
    }
}
