//! What the machine itself must offer: root and a few packages.

use std::process::Command;

use crate::error::Error;
use crate::process::{on_path, run};
use crate::progress::{Event, Progress};

/// A program and the Debian package that brings it.
pub(crate) struct Tool {
    program: &'static str,
    package: &'static str,
}

/// Needed to run a node.
pub(crate) const NODE_TOOLS: &[Tool] = &[
    Tool {
        program: "runc",
        package: "runc",
    },
    Tool {
        program: "ip",
        package: "iproute2",
    },
    Tool {
        program: "nft",
        package: "nftables",
    },
    Tool {
        program: "mount",
        package: "mount",
    },
    Tool {
        program: "setsid",
        package: "util-linux",
    },
    Tool {
        program: "nsenter",
        package: "util-linux",
    },
    Tool {
        program: "unshare",
        package: "util-linux",
    },
];

/// Needed to make a root filesystem.
pub(crate) const IMAGE_TOOLS: &[Tool] = &[
    Tool {
        program: "debootstrap",
        package: "debootstrap",
    },
    Tool {
        program: "tar",
        package: "tar",
    },
];

pub(crate) fn require_root() -> Result<(), Error> {
    if rustix::process::geteuid().is_root() {
        Ok(())
    } else {
        Err(Error::NotRoot)
    }
}

/// Installs the packages of missing programs with `apt-get`.
///
/// # Errors
/// When a program is missing and cannot be installed: the error names the
/// packages, so that the user can bring them in another way.
pub(crate) fn ensure(tools: &[Tool], progress: &Progress) -> Result<(), Error> {
    let missing: Vec<&Tool> = tools.iter().filter(|t| on_path(t.program).is_none()).collect();
    let Some(first) = missing.first() else {
        return Ok(());
    };
    let mut packages: Vec<String> = missing.iter().map(|t| t.package.to_owned()).collect();
    packages.sort();
    packages.dedup();
    let by_hand = |why: String| Error::MissingProgram {
        program: first.program.to_owned(),
        remedy: format!("install the packages {} ({why})", packages.join(", ")),
    };
    let apt = on_path("apt-get").ok_or_else(|| by_hand("there is no apt-get here".to_owned()))?;
    progress.tell(Event::Installing(packages.clone()));
    let install = || {
        run(Command::new(&apt)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "-y", "--no-install-recommends"])
            .args(&packages))
    };
    if install().is_err() {
        // Package lists are often empty in a fresh container.
        run(Command::new(&apt).arg("update"))
            .and_then(|_| install())
            .map_err(|e| by_hand(format!("apt-get could not: {e}")))?;
    }
    match missing.iter().find(|t| on_path(t.program).is_none()) {
        None => Ok(()),
        Some(tool) => Err(Error::MissingProgram {
            program: tool.program.to_owned(),
            remedy: format!("the package {} did not bring it", tool.package),
        }),
    }
}
