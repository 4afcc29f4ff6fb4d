//! What can go wrong, named by what was being done.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::component::Component;
use crate::leftovers::Leftovers;

/// A failure of the cluster, of its binaries or of an image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be read, written or removed.
    #[error("{action} `{}`", path.display())]
    Io {
        /// What was being done, in the imperative: `read`, `create folder`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// The work needs root: mounts, cgroups and network interfaces are made.
    #[error("a real cluster needs root; run the command with sudo")]
    NotRoot,
    /// A program that is needed is not on this machine.
    #[error("`{program}` is missing; {remedy}")]
    MissingProgram {
        /// The program's name.
        program: String,
        /// The next step for the user.
        remedy: String,
    },
    /// A program could not be started at all.
    #[error("start `{program}`")]
    Spawn {
        /// The program as it was named.
        program: String,
        /// The operating system's answer.
        source: io::Error,
    },
    /// A program ran and failed.
    #[error("`{command}` ended with {status}: {output}")]
    Command {
        /// The command line.
        command: String,
        /// Exit status or signal.
        status: std::process::ExitStatus,
        /// The last lines that it wrote.
        output: String,
    },
    /// A binary was found, but not one that can be used.
    #[error("`{}` cannot be used: {reason}", path.display())]
    UnusableBinary {
        /// The binary.
        path: PathBuf,
        /// Why not, with the next step.
        reason: String,
    },
    /// A component ended by itself while it was being started.
    #[error("{component} stopped while it was starting; the end of its log:\n{tail}")]
    Died {
        /// Which one.
        component: Component,
        /// The last lines of its log.
        tail: String,
    },
    /// Something did not come about in time.
    #[error("{what} did not happen within {} s{hint}", deadline.as_secs())]
    Timeout {
        /// What was awaited, as a clause: `node node-1 becoming ready`.
        what: String,
        /// How long it was awaited.
        deadline: Duration,
        /// Empty, or the end of a log that may tell why.
        hint: String,
    },
    /// The API server refused or could not be reached.
    #[error("{action}")]
    Kube {
        /// What was being asked.
        action: String,
        /// The client's error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A key or certificate could not be made.
    #[error("make certificate")]
    Certificate(#[from] rcgen::Error),
    /// The folder belongs to a cluster that is running.
    #[error("a cluster is running in `{}`; attach to it or stop it first", .0.display())]
    AlreadyRunning(PathBuf),
    /// The folder holds something else than a cluster's state.
    #[error("`{}` cannot hold a cluster: {reason}", path.display())]
    StateDir {
        /// The folder.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A value given by the caller does not make sense.
    #[error("{what}: {reason}")]
    Config {
        /// The setting.
        what: &'static str,
        /// Why it was refused.
        reason: String,
    },
    /// No address range is free for one more cluster on this machine.
    #[error("all 200 address ranges for test clusters are in use; stop a cluster first")]
    NoSubnet,
    /// The cluster was stopped, but not everything went away.
    #[error("the cluster left something behind: {0}")]
    Leftovers(Leftovers),
}

/// Adds the action and the path to an [`io::Error`].
pub(crate) trait IoContext<T> {
    fn at(self, action: &'static str, path: impl AsRef<Path>) -> Result<T, Error>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn at(self, action: &'static str, path: impl AsRef<Path>) -> Result<T, Error> {
        self.map_err(|source| Error::Io {
            action,
            path: path.as_ref().to_path_buf(),
            source,
        })
    }
}

/// Adds the action to an error of the Kubernetes client.
pub(crate) trait KubeContext<T> {
    fn asking(self, action: impl Into<String>) -> Result<T, Error>;
}

impl<T, E> KubeContext<T> for Result<T, E>
where
    E: std::error::Error + Send + Sync + 'static,
{
    fn asking(self, action: impl Into<String>) -> Result<T, Error> {
        self.map_err(|source| Error::Kube {
            action: action.into(),
            source: Box::new(source),
        })
    }
}
