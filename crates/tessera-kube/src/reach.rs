//! Whether the API server answers.

use std::time::Duration;

use kube::Client;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::api::timed;

const EVERY: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(3);

/// What we know about the API server.
#[derive(Debug, Clone)]
pub struct Reach {
    /// Since when it is as it is.
    pub since: Instant,
    /// `Err` says what it does instead of answering.
    pub state: Result<(), String>,
}

impl Reach {
    /// How long it has not answered; `None` while it does.
    #[must_use]
    pub fn lost_for(&self) -> Option<Duration> {
        self.state.is_err().then(|| self.since.elapsed())
    }
}

/// Asks the API server for its version every five seconds until `stop`.
pub fn probe(client: Client, stop: CancellationToken) -> (watch::Receiver<Reach>, impl Future<Output = ()> + Send) {
    let (sender, receiver) = watch::channel(Reach {
        since: Instant::now(),
        state: Err("not asked yet".to_owned()),
    });
    let work = async move {
        let mut tick = tokio::time::interval(EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = tick.tick() => {}
            }
            let answer = timed(
                || "asking for its version".to_owned(),
                PATIENCE,
                client.apiserver_version(),
            )
            .await;
            let state = answer.map(drop).map_err(|error| error.to_string());
            sender.send_if_modified(|reach| {
                if reach.state == state {
                    return false;
                }
                match &state {
                    Ok(()) => tracing::info!("The API server answers."),
                    Err(error) => tracing::warn!(error = %error, "The API server does not answer."),
                }
                // Only a change between answering and not answering starts the time anew.
                let since = if reach.state.is_ok() == state.is_ok() {
                    reach.since
                } else {
                    Instant::now()
                };
                *reach = Reach { since, state };
                true
            });
        }
    };
    (receiver, work)
}
