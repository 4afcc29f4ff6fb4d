//! Ends a cluster and removes every trace of it.
//!
//! Works from the state folder alone and without the cluster's help, so the
//! same code serves a stopped test, an interrupted `up` and what a killed test
//! left. Every step takes "gone already" for done.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;
use rustix::process::Signal;

use crate::component::Component;
use crate::error::{Error, IoContext};
use crate::leftovers::Leftovers;
use crate::mounts;
use crate::process::ProcessId;
use crate::registry::Registry;
use crate::state::State;

/// Pods get this long to end by themselves before they are killed.
const POD_GRACE: Duration = Duration::from_secs(2);
/// The kernel gets this long to take processes and cgroups away.
const DEADLINE: Duration = Duration::from_secs(20);

/// Stops and removes everything of this cluster.
///
/// # Errors
/// When something could not be removed; it is named in the error.
pub(crate) fn destroy(state: &State) -> Result<(), Error> {
    let branch = state.branch();
    // Those first who would start pods again.
    let restarters = [Component::Kubelet, Component::Scheduler, Component::ControllerManager];
    for component in restarters {
        if let Some(id) = state.alive(component) {
            id.signal(Signal::KILL);
            id.wait_dead(Instant::now() + DEADLINE);
        }
    }
    branch.terminate_pods(POD_GRACE);
    // Everything that is in the branch: containers, their shims, the daemons
    // and the holder of the namespace, with which all of its mounts go.
    branch.kill_all(DEADLINE);
    for component in Component::ALL {
        if let Some(id) = state.alive(component) {
            // It was not in the branch: killed between its start and its first line.
            id.signal(Signal::KILL);
            id.wait_dead(Instant::now() + DEADLINE);
        }
    }
    branch.remove(DEADLINE);
    state.addresses().down(&state.table(), &state.dir, state.kube_proxy);
    for point in mounts::under(&state.dir) {
        if let Err(error) = rustix::mount::unmount(&point, UnmountFlags::DETACH) {
            tracing::warn!(mount = %point.display(), %error, "Mount was not removed.");
        }
    }
    remove_dir(&state.dir)?;
    Registry::open()?.release(&state.dir);
    let left = Leftovers::of(&state.dir);
    if left.is_empty() {
        Ok(())
    } else {
        Err(Error::Leftovers(left))
    }
}

/// Never removes through a mount: a file of the machine may be behind it.
fn remove_dir(dir: &Path) -> Result<(), Error> {
    if !mounts::under(dir).is_empty() {
        return Err(Error::Leftovers(Leftovers::of(dir)));
    }
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).at("remove", dir),
        _ => Ok(()),
    }
}

/// Removes the clusters of tests that were killed before they could.
pub(crate) fn sweep() {
    let abandoned: Vec<_> = match Registry::open() {
        Ok(registry) => registry.entries().into_iter().filter(|e| e.is_abandoned()).collect(),
        Err(error) => {
            tracing::warn!(%error, "Abandoned clusters were not looked for.");
            return;
        }
    };
    for entry in abandoned {
        let done = match State::load(&entry.dir) {
            Ok(Some(state)) => destroy(&state),
            // Nothing is made before the state is written, but the folder.
            Ok(None) => {
                drop(fs::remove_dir(&entry.dir));
                Registry::open().map(|r| r.release(&entry.dir))
            }
            Err(error) => Err(error),
        };
        if let Err(error) = done {
            tracing::warn!(dir = %entry.dir.display(), %error, "Abandoned cluster was not removed.");
        }
    }
}

/// Whether any component of the state still runs.
pub(crate) fn is_running(state: &State) -> bool {
    Component::ALL
        .into_iter()
        .any(|c| state.recorded(c).as_ref().is_some_and(ProcessId::is_alive))
}
