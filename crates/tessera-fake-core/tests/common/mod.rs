//! Makes machines and clients of them.
#![allow(dead_code, missing_docs, unreachable_pub, reason = "each test uses a part")]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;

use tessera_fake_core::{Machine, install};

pub const MIB: u64 = 1 << 20;

/// Folder with the freshly built libraries and examples.
pub fn built() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let deps = std::env::current_exe().unwrap();
        let folder = deps.parent().and_then(Path::parent).unwrap().to_path_buf();
        // By `./check`.
        if std::env::var_os("TESSERA_PREBUILT").is_some() {
            return folder;
        }
        // The libraries belong to packages that nothing can depend on, so cargo is asked here.
        let mut cargo = Command::new(env!("CARGO"));
        cargo
            .args(["build", "--quiet", "-p", "tessera-fake-cuda", "-p", "tessera-fake-nvml"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .env_remove("TESSERA_SIM_ROOT");
        if folder.ends_with("release") {
            cargo.arg("--release");
        }
        assert!(cargo.status().unwrap().success());
        folder
    })
}

/// A machine in a folder of its own, gone with the test.
pub struct Root {
    folder: tempfile::TempDir,
}

impl Root {
    pub fn new(text: &str) -> Self {
        let base = if Path::new("/dev/shm").is_dir() {
            "/dev/shm"
        } else {
            "/tmp"
        };
        let folder = tempfile::tempdir_in(base).unwrap();
        install::install(text, folder.path(), Some(built()), false).unwrap();
        Self { folder }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn machine(&self) -> Machine {
        Machine::at(self.path()).unwrap()
    }

    pub fn client(&self) -> Client {
        self.client_with(&[])
    }

    pub fn client_with(&self, variables: &[(&str, &str)]) -> Client {
        let mut command = Command::new(built().join("examples/client"));
        command
            .env("TESSERA_SIM_ROOT", self.path())
            .env("LD_LIBRARY_PATH", self.path().join("lib64"))
            .env_remove("CUDA_VISIBLE_DEVICES")
            .envs(variables.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Client { child, input, output }
    }
}

pub struct Client {
    pub child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Client {
    pub fn tell(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    pub fn hear(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    pub fn ask(&mut self, line: &str) -> String {
        self.tell(line);
        self.hear()
    }

    pub fn numbers(&mut self, line: &str) -> Vec<u64> {
        let answer = self.ask(line);
        answer.split(' ').map(|w| w.parse().unwrap()).collect()
    }

    pub fn start(mut self) -> Self {
        assert_eq!(self.ask("init"), "0");
        assert_eq!(self.ask("context 0"), "0");
        self
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
