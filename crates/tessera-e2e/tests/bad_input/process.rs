//! A program of ours as a child: what it says, when it ends, what its health page answers.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use tessera_e2e::product::{Artefacts, Profile};

/// Longest wait for a line, an answer, an end.
const DEADLINE: Duration = Duration::from_secs(30);

/// The built programs.
pub(crate) fn artefacts() -> Artefacts {
    Artefacts::find(Profile::Dev).unwrap()
}

/// `tessera WORD` in an environment without settings.
pub(crate) fn tessera(word: &str) -> Command {
    let mut command = Command::new(artefacts().tessera);
    command
        .arg(word)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", "/nonexistent");
    command
}

/// A kubeconfig for a port where nobody listens.
pub(crate) fn kubeconfig(folder: &Path) -> String {
    let path = folder.join("kubeconfig");
    let text = "{apiVersion: v1, kind: Config, current-context: c, \
                clusters: [{name: c, cluster: {server: 'http://127.0.0.1:9'}}], \
                contexts: [{name: c, context: {cluster: c, user: u}}], users: [{name: u, user: {}}]}";
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// A program that runs until this value is dropped.
pub(crate) struct Running {
    child: Child,
    lines: Receiver<String>,
    said: Vec<String>,
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let errors = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = sync_channel(1024);
        std::thread::spawn(move || {
            for line in errors.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self {
            child,
            lines,
            said: Vec::new(),
        }
    }

    /// The next line that has `part`, without time and module.
    pub(crate) fn line(&mut self, part: &str) -> String {
        let end = Instant::now() + DEADLINE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    self.said.push(line.clone());
                    if line.contains(part) {
                        return plain(&line);
                    }
                }
                Err(why) => panic!("no line with `{part}` ({why}):\n{}", self.said.join("\n")),
            }
        }
    }

    /// The address that a line of the log tells.
    pub(crate) fn address(&mut self, part: &str) -> SocketAddr {
        let line = self.line(part);
        let text = line
            .split("address=")
            .nth(1)
            .unwrap_or_default()
            .split(' ')
            .next()
            .unwrap_or_default();
        text.parse().unwrap_or_else(|_| panic!("no address in: {line}"))
    }

    /// Asks the page until its answer has `part`; the answer's status and body.
    pub(crate) fn page(&mut self, address: SocketAddr, path: &str, part: &str) -> (u16, String) {
        let end = Instant::now() + DEADLINE;
        loop {
            let answer = get(address, path).unwrap_or_default();
            let body = answer
                .split_once("\r\n\r\n")
                .map_or("", |(_, body)| body)
                .trim_end()
                .to_owned();
            if body.contains(part) {
                let status = answer
                    .split(' ')
                    .nth(1)
                    .and_then(|code| code.parse().ok())
                    .unwrap_or_default();
                return (status, body);
            }
            assert!(Instant::now() < end, "{path} does not say `{part}`: {answer}");
            // The page changes when the program has tried something; the log is where it would end.
            if let Ok(line) = self.lines.recv_timeout(Duration::from_millis(50)) {
                self.said.push(line);
            }
        }
    }

    /// Whether it still runs.
    pub(crate) fn lives(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let (Ok(()) | Err(_)) = self.child.kill();
        let (Ok(_) | Err(_)) = self.child.wait();
    }
}

/// What a program says that does not start.
pub(crate) fn refusal(command: Command) -> String {
    let mut running = Running::start(command);
    let end = Instant::now() + DEADLINE;
    loop {
        match running
            .lines
            .recv_timeout(end.saturating_duration_since(Instant::now()))
        {
            Ok(line) => running.said.push(line),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => panic!("it runs:\n{}", running.said.join("\n")),
        }
    }
    let status = running.child.wait().unwrap();
    assert!(!status.success(), "it ended with {status}");
    let errors: Vec<&str> = running
        .said
        .iter()
        .map(String::as_str)
        .skip_while(|line| !line.starts_with("error:"))
        .collect();
    errors.join("\n").trim_end().to_owned()
}

fn get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, DEADLINE)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// `2026-01-01T00:00:00Z  WARN module: Sentence. key=value` as `WARN Sentence. key=value`.
fn plain(line: &str) -> String {
    let Some((level, rest)) = line
        .split_once(' ')
        .map(|(_, rest)| rest.trim_start())
        .and_then(|rest| rest.split_once(' '))
    else {
        return line.to_owned();
    };
    let text = rest.split_once(": ").map_or(rest, |(_, text)| text);
    format!("{level} {}", text.trim_end())
}
