//! Ending by a signal without leaving a cluster behind.
//!
//! The processes of a cluster are in sessions of their own, so that a terminal's Ctrl-C does not reach them: they end
//! when the value that started them is dropped, which a process that is killed by the signal never comes to.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use tokio::signal::unix::{SignalKind, signal};

/// How work ended.
#[derive(Debug)]
pub enum Ended<T> {
    /// By itself.
    Done(T),
    /// By SIGINT or SIGTERM: the work was dropped, and what it held with it.
    Interrupted(ExitCode),
}

/// Runs `work` until it is done, or until SIGINT or SIGTERM; then it is dropped, which stops the clusters and the
/// children that it holds. The exit code is the shell's for the signal: 128 and its number.
///
/// # Errors
/// The error of `work`, or signals cannot be listened for.
pub async fn until_signal<T>(work: impl Future<Output = Result<T>>) -> Result<Ended<T>> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    tokio::select! {
        done = work => done.map(Ended::Done),
        _ = terminate.recv() => Ok(Ended::Interrupted(ExitCode::from(128 + 15))),
        _ = interrupt.recv() => Ok(Ended::Interrupted(ExitCode::from(128 + 2))),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    struct Held(Arc<AtomicBool>);

    impl Drop for Held {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    #[tokio::test]
    async fn a_signal_drops_what_the_work_holds() {
        let dropped = Arc::new(AtomicBool::new(false));
        let held = Held(Arc::clone(&dropped));
        let work = async move {
            let _held = held;
            // The handlers are there before the work is polled.
            let pid = rustix::process::getpid();
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
            std::future::pending::<Result<()>>().await
        };
        let ended = until_signal(work).await.unwrap();
        assert!(matches!(ended, Ended::Interrupted(_)), "{ended:?}");
        assert!(dropped.load(Ordering::SeqCst));
    }
}
