//! Whether a component answers.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::component::Component;
use crate::error::Error;
use crate::process::log_tail;
use crate::state::State;

const PAUSE: Duration = Duration::from_millis(30);
/// One question may hang in a process that is just ending.
const QUESTION: Duration = Duration::from_secs(5);

/// Asks until the component answers that it is ready.
pub(super) async fn wait_ready(
    state: &State,
    component: Component,
    client: Option<&kube::Client>,
    deadline: Duration,
) -> Result<(), Error> {
    let until = Instant::now() + deadline;
    loop {
        if state.alive(component).is_none() {
            return Err(Error::Died {
                component,
                tail: log_tail(&state.log(component)),
            });
        }
        let answer = tokio::time::timeout(QUESTION, is_ready(state, component, client));
        if answer.await.unwrap_or(false) {
            return Ok(());
        }
        if Instant::now() >= until {
            return Err(Error::Timeout {
                what: format!("{component} becoming ready"),
                deadline,
                hint: hint(state, component),
            });
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The end of a log as the last part of an error message.
pub(super) fn hint(state: &State, component: Component) -> String {
    let tail = log_tail(&state.log(component));
    if tail.is_empty() {
        return String::new();
    }
    format!("; the end of {component}'s log:\n{tail}")
}

async fn is_ready(state: &State, component: Component, client: Option<&kube::Client>) -> bool {
    let ports = &state.ports;
    match component {
        Component::Etcd => connects(ports.etcd).await,
        Component::Apiserver => match client {
            Some(client) => says_ok(client).await,
            None => false,
        },
        Component::ControllerManager => connects(ports.controller_manager).await,
        Component::Scheduler => connects(ports.scheduler).await,
        Component::Namespace => true,
        Component::Containerd => UnixStream::connect(state.containerd_socket()).await.is_ok(),
        Component::Kubelet => is_healthy(ports.kubelet_healthz).await,
        Component::KubeProxy => is_healthy(ports.proxy_healthz).await,
    }
}

async fn connects(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).await.is_ok()
}

async fn says_ok(client: &kube::Client) -> bool {
    let Ok(request) = http::Request::get("/readyz").body(Vec::new()) else {
        return false;
    };
    matches!(client.request_text(request).await.as_deref(), Ok("ok"))
}

/// `GET /healthz` without TLS.
async fn is_healthy(port: u16) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream
            .write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .await?;
        let mut head = [0_u8; 12];
        stream.read_exact(&mut head).await?;
        Ok::<bool, std::io::Error>(head.ends_with(b" 200"))
    };
    ask.await.unwrap_or(false)
}
