//! The part of the agent that the kubelet sees, apart from the rest.
//!
//! While nobody serves the kubelet it refuses every pod that wants a card, for
//! good. So the process that serves it does only that: [`Front`] keeps the
//! registration and passes each call on to the agent proper, a child process
//! that may be killed and started again in between (a driver library that
//! crashes takes its process with it). Neither keeps anything that the other
//! would miss.
//!
//! The two talk over a socket pair that the child has as its standard input:
//! no other process can reach it, and it ends with either.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as Line;
use std::sync::Arc;

use anyhow::Context;
use tessera_kubelet::StreamState;
use tessera_kubelet::relay::{ORPHANED, Relay};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::serve::kubelet;
use crate::settings::Settings;

/// Serves the kubelet for the agents that come and go.
#[derive(Debug)]
pub struct Front {
    relay: Arc<Relay>,
    stop: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
}

impl Front {
    /// Begins to serve. Nothing is registered before an agent knows cards.
    #[must_use]
    pub fn start(settings: Settings) -> Self {
        let (stream, state) = watch::channel(StreamState::NoKubelet);
        let relay = Relay::new(state, ORPHANED);
        let stop = CancellationToken::new();
        let serving = tokio::spawn({
            let (relay, stop) = (Arc::clone(&relay), stop.clone());
            async move {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = relay.known() => {}
                }
                kubelet(relay, &settings, stream, stop).await;
            }
        });
        Self { relay, stop, serving }
    }

    /// A line for the next agent: its end, to be its standard input.
    ///
    /// # Errors
    /// The system gives no socket.
    pub async fn line(&self) -> anyhow::Result<OwnedFd> {
        let (near, far) = Line::pair().context("making a line to the agent")?;
        near.set_nonblocking(true).context("making a line to the agent")?;
        let near = UnixStream::from_std(near).context("making a line to the agent")?;
        self.relay.attach(near).await.context("making a line to the agent")?;
        Ok(far.into())
    }

    /// Takes the registration back.
    pub async fn stop(self) {
        self.stop.cancel();
        // A panic in there was told already.
        drop(self.serving.await);
    }
}

/// The line that this process was given as its standard input.
///
/// # Errors
/// Standard input is none.
pub fn line() -> io::Result<UnixStream> {
    let line = Line::from(io::stdin().as_fd().try_clone_to_owned()?);
    line.set_nonblocking(true)?;
    UnixStream::from_std(line)
}
