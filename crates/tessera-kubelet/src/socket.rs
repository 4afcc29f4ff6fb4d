//! Unix socket files: who is behind a path, and when a path got a new owner.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use notify::{RecursiveMode, Watcher};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;
use tracing::{debug, warn};

/// Longest socket path that the kernel takes (`sun_path` less its final zero).
pub const PATH_BYTES_MAX: usize = 107;

/// Which file a path names right now. Two sockets made one after the other at
/// the same path differ, also where the file system reuses the inode number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketId {
    device: u64,
    inode: u64,
    changed: (i64, i64),
}

impl SocketId {
    /// Identity of the socket at `path`; `None` when there is none.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        let meta = std::fs::symlink_metadata(path).ok()?;
        meta.file_type().is_socket().then(|| Self {
            device: meta.dev(),
            inode: meta.ino(),
            changed: (meta.mtime(), meta.mtime_nsec()),
        })
    }
}

/// What a connection attempt says about a socket path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occupant {
    /// Nothing at the path.
    Absent,
    /// A file that no process listens on.
    Stale,
    /// A process accepts connections.
    Serving,
}

/// Asks whether a process listens at `path`.
pub async fn occupant(path: &Path) -> Occupant {
    match UnixStream::connect(path).await {
        Ok(_) => Occupant::Serving,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Occupant::Absent,
        Err(_) => Occupant::Stale,
    }
}

/// A gRPC channel to the server behind `path`.
///
/// # Errors
/// When nothing accepts the connection within `deadline`.
pub async fn connect(path: &Path, deadline: Duration) -> Result<Channel, tonic::transport::Error> {
    let path = path.to_owned();
    // The address is never dialled; `localhost` becomes the authority.
    Endpoint::from_static("http://localhost")
        .connect_timeout(deadline)
        .connect_with_connector(service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        }))
        .await
}

/// Wakes its owner when something in a folder changed, and at the latest after
/// the poll period: inotify misses changes on some file systems and loses its
/// folder when that is replaced.
#[derive(Debug)]
pub struct FolderWatch {
    events: mpsc::Receiver<()>,
    poll: tokio::time::Interval,
    // Holds the inotify handle open. `None`: polling alone.
    _watcher: Option<notify::RecommendedWatcher>,
}

impl FolderWatch {
    /// Watches `folder`. A folder that cannot be watched is polled.
    #[must_use]
    pub fn new(folder: &Path, poll: Duration) -> Self {
        let (sender, events) = mpsc::channel(1);
        let watcher = notify::recommended_watcher(move |_event| {
            // A full queue already wakes the reader.
            let _full_or_closed = sender.try_send(());
        })
        .and_then(|mut watcher| {
            watcher.watch(folder, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        let watcher = match watcher {
            Ok(watcher) => Some(watcher),
            Err(error) => {
                warn!(folder = %folder.display(), %error, "Cannot watch the folder, polling it.");
                None
            }
        };
        let mut poll = tokio::time::interval(poll);
        poll.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        Self {
            events,
            poll,
            _watcher: watcher,
        }
    }

    /// Returns after a change in the folder or after the poll period.
    pub async fn changed(&mut self) {
        tokio::select! {
            Some(()) = self.events.recv() => {}
            _ = self.poll.tick() => {}
        }
    }
}

/// Removes the sockets in `folder` whose names begin with `prefix`, end in
/// `.sock` and have no listener. Returns the paths that still serve.
pub async fn sweep(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let mut serving = Vec::new();
    let Ok(entries) = std::fs::read_dir(folder) else {
        return serving;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if !(name.starts_with(prefix) && name.ends_with(".sock")) {
            continue;
        }
        let path = entry.path();
        match occupant(&path).await {
            Occupant::Serving => serving.push(path),
            Occupant::Stale => match std::fs::remove_file(&path) {
                Ok(()) => debug!(socket = %path.display(), "Removed a stale socket."),
                Err(error) => warn!(socket = %path.display(), %error, "Cannot remove a stale socket."),
            },
            Occupant::Absent => {}
        }
    }
    serving
}
