//! One process of a case: a `cuda-client` that is asked line by line, with a limit on every wait.

#![allow(unsafe_code, reason = "signals to processes that it started")]

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// What came of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Line(String),
    /// Nothing within the time; the answer may still come.
    Late,
    Ended,
}

pub(crate) struct Actor {
    child: Option<Child>,
    /// As this machine knows it.
    pub(crate) pid: i32,
    /// As the process knows it.
    pub(crate) own_pid: u64,
    input: Box<dyn Write + Send>,
    lines: Receiver<String>,
    /// Answers that were not waited for.
    owed: usize,
    pub(crate) errors: PathBuf,
    /// Whether it can use the kernel `$fn`.
    pub(crate) has_kernel: bool,
    pub(crate) has_stream: bool,
    /// In which of the case's containers it runs.
    pub(crate) container: String,
    blocks: usize,
}

fn reader(source: impl Read + Send + 'static) -> Receiver<String> {
    let (send, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(source).lines() {
            let Ok(line) = line else { return };
            if send.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

impl Actor {
    pub(crate) fn start(mut command: Command, errors: PathBuf, container: &str) -> Self {
        let file = File::create(&errors).unwrap();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(file);
        let mut child = command.spawn().unwrap();
        let mut actor = Self {
            pid: i32::try_from(child.id()).unwrap(),
            own_pid: 0,
            input: Box::new(child.stdin.take().unwrap()),
            lines: reader(child.stdout.take().unwrap()),
            child: Some(child),
            owed: 0,
            errors,
            has_kernel: false,
            has_stream: false,
            container: container.to_owned(),
            blocks: 0,
        };
        if let Reply::Line(pid) = actor.ask("@pid", Duration::from_secs(20)) {
            actor.own_pid = pid.parse().unwrap_or(0);
        }
        actor
    }

    /// A forked child of this process, reached by pipes in `folder`.
    pub(crate) fn fork(&mut self, folder: &Path, name: &str) -> Self {
        let ends = ["in", "out"].map(|end| folder.join(format!("{name}.{end}")));
        for end in &ends {
            let made = Command::new("mkfifo").arg(end).status().unwrap();
            assert!(made.success(), "mkfifo {}", end.display());
        }
        let [input, output] = &ends;
        let command = format!("@child {} {}", input.display(), output.display());
        let Reply::Line(pid) = self.ask(&command, Duration::from_secs(10)) else {
            panic!("no answer to a fork");
        };
        // In the order in which the child opens them.
        let input = File::options().write(true).open(input).unwrap();
        let lines = reader(File::open(output).unwrap());
        let pid: i32 = pid.parse().unwrap_or_else(|_| panic!("fork: {pid}"));
        let mut child = Self {
            child: None,
            pid,
            own_pid: u64::try_from(pid).unwrap(),
            input: Box::new(input),
            lines,
            owed: 1,
            errors: self.errors.clone(),
            has_kernel: false,
            has_stream: false,
            container: self.container.clone(),
            blocks: self.blocks,
        };
        child.ask("@pid", Duration::from_secs(10));
        child
    }

    pub(crate) fn ask(&mut self, command: &str, wait: Duration) -> Reply {
        if writeln!(self.input, "{command}")
            .and_then(|()| self.input.flush())
            .is_err()
        {
            return Reply::Ended;
        }
        let end = Instant::now() + wait;
        self.owed += 1;
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.owed -= 1;
                    if self.owed == 0 {
                        return Reply::Line(line);
                    }
                }
                Err(RecvTimeoutError::Timeout) => return Reply::Late,
                Err(RecvTimeoutError::Disconnected) => return Reply::Ended,
            }
        }
    }

    /// Asks what can only go well.
    pub(crate) fn tell(&mut self, command: &str) -> Option<String> {
        match self.ask(command, Duration::from_secs(20)) {
            Reply::Line(line) => Some(line),
            Reply::Late | Reply::Ended => None,
        }
    }

    /// A name for a new block.
    pub(crate) fn block(&mut self, bytes: usize) -> String {
        self.blocks += 1;
        let name = format!("b{}", self.blocks);
        self.tell(&format!("@new {name} {bytes}"));
        name
    }

    pub(crate) fn signal(&mut self, signal: i32) {
        // SAFETY: a process that this runner started.
        unsafe { libc::kill(self.pid, signal) };
        if signal == libc::SIGKILL {
            self.end();
        }
    }

    /// How the process ended; waits for it.
    pub(crate) fn end(&mut self) -> Value {
        use std::os::unix::process::ExitStatusExt as _;
        let Some(child) = &mut self.child else {
            // A grandchild: gone when its pipe is.
            while self.lines.recv_timeout(Duration::from_secs(10)).is_ok() {}
            return json!({"exits": 0});
        };
        let status = child.wait().unwrap();
        match status.signal() {
            Some(signal) => json!({"dies": signal_name(signal)}),
            None => json!({"exits": status.code()}),
        }
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        // SAFETY: a process that this runner started, or its child, which nobody has waited for.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
        if let Some(child) = &mut self.child {
            let (Ok(_) | Err(_)) = child.wait();
        }
    }
}

const SIGNALS: [(&str, i32); 7] = [
    ("SIGKILL", libc::SIGKILL),
    ("SIGSTOP", libc::SIGSTOP),
    ("SIGUSR1", libc::SIGUSR1),
    ("SIGUSR2", libc::SIGUSR2),
    ("SIGSEGV", libc::SIGSEGV),
    ("SIGFPE", libc::SIGFPE),
    ("SIGABRT", libc::SIGABRT),
];

pub(crate) fn signal_number(name: &str) -> i32 {
    let found = SIGNALS.iter().find(|(known, _)| *known == name);
    found.unwrap_or_else(|| panic!("signal {name}")).1
}

fn signal_name(number: i32) -> String {
    let found = SIGNALS.iter().find(|(_, known)| *known == number);
    found.map_or_else(|| number.to_string(), |(name, _)| (*name).to_owned())
}
