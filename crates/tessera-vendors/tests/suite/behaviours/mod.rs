//! What every class does alike. Each behaviour is run for each row of the table, unless the row says why its class
//! cannot have it; then it is run all the same and must fail, so that no excuse outlives its reason.

mod admission;
mod books;
mod choice;
mod registers;
mod room;

use serde_json::Value;

use super::cluster::{Cluster, No, set_amount};
use super::table::{Limits, Row};

/// One behaviour.
#[derive(Debug)]
pub(crate) struct Behaviour {
    /// Name in the table.
    pub(crate) name: &'static str,
    /// What it shows.
    pub(crate) title: &'static str,
    /// Panics where the class does not have it.
    pub(crate) proof: fn(&'static Row),
}

/// Behaviours about one thing.
#[derive(Debug)]
pub(crate) struct Section {
    pub(crate) title: &'static str,
    pub(crate) behaviours: &'static [Behaviour],
}

const fn is(name: &'static str, title: &'static str, proof: fn(&'static Row)) -> Behaviour {
    Behaviour { name, title, proof }
}

pub(crate) const ALL: &[Section] = &[
    Section {
        title: "Room on cards",
        behaviours: room::ALL,
    },
    Section {
        title: "Which card, which node",
        behaviours: choice::ALL,
    },
    Section {
        title: "Admission",
        behaviours: admission::ALL,
    },
    Section {
        title: "Bookings",
        behaviours: books::ALL,
    },
    Section {
        title: "Nodes that change",
        behaviours: registers::ALL,
    },
];

/// Every behaviour.
pub(crate) fn all() -> impl Iterator<Item = &'static Behaviour> {
    ALL.iter().flat_map(|section| section.behaviours)
}

#[track_caller]
fn must_place(cluster: &mut Cluster, pod: &Value) {
    if let Err(no) = cluster.place(pod) {
        panic!("{}: {no:?}", pod["metadata"]["name"]);
    }
}

#[track_caller]
fn placed(cluster: &mut Cluster, name: &str, limits: Limits) {
    let pod = cluster.pod(name, limits);
    must_place(cluster, &pod);
}

#[track_caller]
fn refused(cluster: &mut Cluster, name: &str, limits: Limits) -> No {
    let pod = cluster.pod(name, limits);
    match cluster.place(&pod) {
        Ok(()) => panic!("{name} was placed on {:?}", cluster.cards_of(name)),
        Err(no) => no,
    }
}

#[track_caller]
fn fill(cluster: &mut Cluster, limits: Limits, count: usize) {
    for at in 0..count {
        placed(cluster, &format!("fill-{at}"), limits);
    }
}

fn part(row: &Row) -> Limits {
    row.part.expect("the row says what a part is")
}

/// A part, or a whole card of a class that has none.
fn some(row: &Row) -> Limits {
    row.part.unwrap_or(row.whole)
}

/// A pod with another count.
fn with_count(cluster: &Cluster, name: &str, limits: Limits, count: &str) -> Value {
    let mut pod = cluster.pod(name, limits);
    set_amount(&mut pod, limits[0].0, count);
    pod
}

/// What `limits` say of `name`.
fn amount(limits: Limits, name: &str) -> Option<&'static str> {
    limits
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, amount)| *amount)
}
