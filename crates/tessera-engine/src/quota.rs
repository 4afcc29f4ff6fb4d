//! Namespace quotas on memory and compute of a class: `limits.<name>` in any `ResourceQuota`.
//!
//! Of several objects that name the same resource the smallest holds, as Kubernetes itself enforces each. Usage is
//! the effective usage of the namespace's bookings, in MiB and percent, and so never below 0.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use tessera_types::{Cores, Mib};
use tessera_wire::{Quantity, Whole};

use crate::vendor::ResourceNames;

/// The prefix of the quota keys that count device amounts.
const LIMITS: &str = "limits.";

/// What a quota leaves of a class; `None` in a dimension without a limit. Negative if more is used than allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Room {
    /// MiB.
    pub memory: Option<i64>,
    /// Percent of a card.
    pub cores: Option<i64>,
}

/// One resource of one namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct QuotaState {
    /// In use: MiB or percent.
    pub used: u64,
    /// The smallest limit of all objects, in the resource's own unit; `None` without one.
    pub limit: Option<u64>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Entry {
    used: u64,
    /// By name of the object.
    limits: BTreeMap<String, u64>,
}

/// Quotas and their usage, by namespace and resource name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Quotas {
    // Shared values, since a snapshot copies this map with every change.
    namespaces: BTreeMap<Arc<str>, Arc<BTreeMap<String, Entry>>>,
}

impl Quotas {
    /// Takes one object's `spec.hard`. Keys without `limits.` and resources that `managed` denies are not ours.
    /// A fraction is rounded down, a negative limit is 0. Returns whether anything changed.
    pub fn set(
        &mut self,
        namespace: &str,
        object: &str,
        hard: &BTreeMap<String, Quantity>,
        managed: impl Fn(&str) -> bool,
    ) -> bool {
        self.set_counted(namespace, object, hard, |name, quantity| {
            managed(name).then(|| whole(quantity))
        })
    }

    /// [`Quotas::set`] where `counted` says what a resource's limit is in its own unit; `None` if it is not ours.
    pub(crate) fn set_counted(
        &mut self,
        namespace: &str,
        object: &str,
        hard: &BTreeMap<String, Quantity>,
        counted: impl Fn(&str, &Quantity) -> Option<u64>,
    ) -> bool {
        let mut limits = BTreeMap::new();
        for (key, quantity) in hard {
            let Some(name) = key.strip_prefix(LIMITS) else { continue };
            if let Some(limit) = counted(name, quantity) {
                limits.insert(name, limit);
            }
        }
        let entries = self.entries(namespace);
        let mut changed = false;
        for (name, entry) in entries.iter_mut() {
            if !limits.contains_key(name.as_str()) {
                changed |= entry.limits.remove(object).is_some();
            }
        }
        for (name, limit) in limits {
            let old = entries
                .entry(name.to_owned())
                .or_default()
                .limits
                .insert(object.to_owned(), limit);
            changed |= old != Some(limit);
        }
        self.prune(namespace);
        changed
    }

    /// Drops one object's limits. Returns whether it had any.
    pub fn remove(&mut self, namespace: &str, object: &str) -> bool {
        let mut changed = false;
        if let Some(entries) = self.namespaces.get_mut(namespace).map(Arc::make_mut) {
            for entry in entries.values_mut() {
                changed |= entry.limits.remove(object).is_some();
            }
        }
        self.prune(namespace);
        changed
    }

    /// Adds to what a namespace uses of a class.
    pub fn charge(&mut self, namespace: &str, names: &ResourceNames, memory: Mib, cores: Cores) {
        for (name, amount) in amounts(names, memory, cores).filter(|(_, amount)| *amount > 0) {
            let entries = self.entries(namespace);
            match entries.get_mut(name) {
                Some(entry) => entry.used = entry.used.saturating_add(amount),
                None => {
                    entries.insert(
                        name.to_owned(),
                        Entry {
                            used: amount,
                            limits: BTreeMap::new(),
                        },
                    );
                }
            }
        }
    }

    /// Takes away from what a namespace uses of a class; never below 0.
    pub fn release(&mut self, namespace: &str, names: &ResourceNames, memory: Mib, cores: Cores) {
        if let Some(entries) = self.namespaces.get_mut(namespace).map(Arc::make_mut) {
            for (name, amount) in amounts(names, memory, cores) {
                if let Some(entry) = entries.get_mut(name) {
                    entry.used = entry.used.saturating_sub(amount);
                }
            }
        }
        self.prune(namespace);
    }

    /// What is left of a class for the namespace; `None` if nothing limits it.
    #[must_use]
    pub fn room(&self, namespace: &str, names: &ResourceNames) -> Option<Room> {
        let entries = self.namespaces.get(namespace)?;
        let left = |name: &Option<String>, factor: u64| {
            let entry = entries.get(name.as_deref()?)?;
            let limit = i128::from(*entry.limits.values().min()?) * i128::from(factor);
            let left = limit - i128::from(entry.used);
            Some(i64::try_from(left).unwrap_or(if left < 0 { i64::MIN } else { i64::MAX }))
        };
        let room = Room {
            memory: left(&names.memory, names.factor()),
            cores: if names.cores_by_model {
                None
            } else {
                left(&names.cores, 1)
            },
        };
        (room != Room::default()).then_some(room)
    }

    /// All resources of a namespace that are limited or in use. A resource that is neither is left out.
    #[must_use]
    pub fn state(&self, namespace: &str) -> BTreeMap<String, QuotaState> {
        let entries = self
            .namespaces
            .get(namespace)
            .into_iter()
            .flat_map(|entries| entries.iter());
        entries.map(|(name, entry)| (name.clone(), entry.state())).collect()
    }

    /// All namespaces with their resources.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str, QuotaState)> {
        self.namespaces.iter().flat_map(|(namespace, entries)| {
            entries
                .iter()
                .map(|(name, entry)| (&**namespace, name.as_str(), entry.state()))
        })
    }

    /// The same limits with nothing in use.
    pub(crate) fn limits_only(&self) -> Self {
        let mut copy = self.clone();
        for entry in copy
            .namespaces
            .values_mut()
            .flat_map(|entries| Arc::make_mut(entries).values_mut())
        {
            entry.used = 0;
        }
        let namespaces: Vec<Arc<str>> = copy.namespaces.keys().cloned().collect();
        for namespace in namespaces {
            copy.prune(&namespace);
        }
        copy
    }

    fn entries(&mut self, namespace: &str) -> &mut BTreeMap<String, Entry> {
        Arc::make_mut(self.namespaces.entry(Arc::from(namespace)).or_default())
    }

    fn prune(&mut self, namespace: &str) {
        if let Some(entries) = self.namespaces.get_mut(namespace).map(Arc::make_mut) {
            entries.retain(|_, entry| entry.used > 0 || !entry.limits.is_empty());
            if entries.is_empty() {
                self.namespaces.remove(namespace);
            }
        }
    }
}

impl Entry {
    fn state(&self) -> QuotaState {
        QuotaState {
            used: self.used,
            limit: self.limits.values().min().copied(),
        }
    }
}

fn amounts(names: &ResourceNames, memory: Mib, cores: Cores) -> impl Iterator<Item = (&str, u64)> {
    let memory = names.memory.as_deref().map(|name| (name, memory.get()));
    let counted = names.cores.as_deref().filter(|_| !names.cores_by_model);
    let cores = counted.map(|name| (name, u64::from(cores.get())));
    memory.into_iter().chain(cores)
}

pub(crate) fn whole(quantity: &Quantity) -> u64 {
    match quantity.whole() {
        Whole::Exact(value) => u64::try_from(value).unwrap_or(0),
        Whole::TooLarge => u64::MAX,
        // Kubernetes rounds such a limit up when it prints; for cards the smaller reading is the safe one.
        Whole::Fraction => floor(quantity.as_str()),
    }
}

fn floor(text: &str) -> u64 {
    match text.strip_suffix('m') {
        Some(milli) => milli.parse::<u64>().unwrap_or(0) / 1000,
        None => text.split('.').next().and_then(|whole| whole.parse().ok()).unwrap_or(0),
    }
}
