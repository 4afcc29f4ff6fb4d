//! What admission may change of a container, collected as edits so that nothing else of the pod is touched.

use std::collections::{BTreeMap, BTreeSet};

use tessera_types::{Keyword, Mib};
use tessera_wire::{ContainerView, EnvValue, Quantity};

/// What admission knows besides the pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AdmitSettings {
    /// The sizes of the cluster's cards, by class.
    pub card_sizes: BTreeMap<Keyword, BTreeSet<Mib>>,
}

/// What a class says about a container at admission.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Admit {
    /// The container uses the class.
    pub uses_device: bool,
    /// The runtime class that the pod needs, if the user names none.
    pub runtime_class: Option<String>,
    /// Annotations that the pod is given.
    pub annotations: BTreeMap<String, String>,
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
    requests: Vec<(String, i64)>,
    removed: Vec<String>,
    env: Vec<EnvEdit>,
    /// Positions of variables that are as a class wants them already.
    kept: Vec<usize>,
}

impl<'a> ContainerEdit<'a> {
    /// Without edits.
    #[must_use]
    pub fn new(view: &'a ContainerView) -> Self {
        Self {
            view,
            limits: Vec::new(),
            requests: Vec::new(),
            removed: Vec::new(),
            env: Vec::new(),
            kept: Vec::new(),
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
        self.limits.iter().any(|(set, _)| set == name)
            || (self.view.limits.contains_key(name) && !self.is_removed(name))
    }

    /// Whether `requests` has the name.
    #[must_use]
    pub fn has_request(&self, name: &str) -> bool {
        self.requests.iter().any(|(set, _)| set == name)
            || (self.view.requests.contains_key(name) && !self.is_removed(name))
    }

    /// The quantity as received, in limits, else in requests.
    #[must_use]
    pub fn amount(&self, name: &str) -> Option<&'a Quantity> {
        if self.is_removed(name) {
            return None;
        }
        self.view.limits.get(name).or_else(|| self.view.requests.get(name))
    }

    /// Sets a limit.
    pub fn set_limit(&mut self, name: &str, value: i64) {
        match self.limits.iter_mut().find(|(set, _)| set == name) {
            Some((_, old)) => *old = value,
            None => self.limits.push((name.to_owned(), value)),
        }
    }

    /// Sets a request.
    pub fn set_request(&mut self, name: &str, value: i64) {
        match self.requests.iter_mut().find(|(set, _)| set == name) {
            Some((_, old)) => *old = value,
            None => self.requests.push((name.to_owned(), value)),
        }
    }

    /// Takes a resource out of limits and requests, as received and as set so far.
    pub fn remove(&mut self, name: &str) {
        self.limits.retain(|(set, _)| set != name);
        self.requests.retain(|(set, _)| set != name);
        if !self.is_removed(name) {
            self.removed.push(name.to_owned());
        }
    }

    fn is_removed(&self, name: &str) -> bool {
        self.removed.iter().any(|removed| removed == name)
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
            self.kept.extend(found.iter().map(|(at, _)| *at));
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

    /// The requests set, in the order of setting.
    #[must_use]
    pub fn requests(&self) -> &[(String, i64)] {
        &self.requests
    }

    /// The resources taken out, which may have been set again since.
    #[must_use]
    pub fn removed(&self) -> &[String] {
        &self.removed
    }

    /// The environment variables set, in the order of setting.
    #[must_use]
    pub fn env(&self) -> &[EnvEdit] {
        &self.env
    }

    /// Whether the variable at this position was found as a class wants it. It stays, though it may be a reserved one.
    #[must_use]
    pub fn is_kept(&self, position: usize) -> bool {
        self.kept.contains(&position)
    }

    /// Whether nothing was changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.limits.is_empty() && self.requests.is_empty() && self.removed.is_empty() && self.env.is_empty()
    }

    /// The container as it will be. Resources only: the environment plays no part in a decision.
    #[must_use]
    pub fn edited(&self) -> ContainerView {
        let mut view = self.view.clone();
        for name in &self.removed {
            view.limits.remove(name);
            view.requests.remove(name);
        }
        for (set, map) in [(&self.limits, &mut view.limits), (&self.requests, &mut view.requests)] {
            for (name, value) in set {
                if let Ok(quantity) = Quantity::parse(&value.to_string()) {
                    map.insert(name.clone(), quantity);
                }
            }
        }
        view
    }
}
