//! `tessera agent` with settings that cannot work, or without what it needs.

use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;
use tessera_kubelet::fake::FakeKubelet;

use crate::process::{Running, artefacts, kubeconfig, refusal, tessera};
use crate::table::{Part, Row, mask};

const ENDS: &str = "standard error; the program ends";
const LOG: &str = "its log; it goes on and tries again";
const READY: &str = "`/readyz`, status 503";

/// A node's folders.
struct Node(TempDir);

impl Node {
    fn new() -> Self {
        // In memory, as the simulated machine's state wants it.
        Self(tempfile::tempdir_in("/dev/shm").unwrap())
    }

    fn path(&self, inside: &str) -> PathBuf {
        self.0.path().join(inside)
    }

    fn mask(&self, text: &str) -> String {
        mask(text, &[(&self.0.path().display().to_string(), "<folder>")])
    }

    fn arguments(&self) -> Vec<String> {
        let flag = |name: &str, inside: &str| format!("--{name}={}", self.path(inside).display());
        vec![
            "--node-name=n1".to_owned(),
            "--listen=127.0.0.1:0".to_owned(),
            flag("grants-dir", "grants"),
            flag("hook-path", "hook"),
            flag("nvidia-driver-root", "driver"),
            flag("kubelet-socket", "kubelet/device-plugins/kubelet.sock"),
            flag("pod-resources-socket", "kubelet/pod-resources/kubelet.sock"),
            flag("cdi-dir", "cdi"),
            flag("node-config-file", "config.json"),
            format!("--library={}", artefacts().shim.display()),
        ]
    }

    fn prepare(&self, command: &mut Command) {
        command
            .env("KUBECONFIG", kubeconfig(self.0.path()))
            .env("TESSERA_SIM_ROOT", self.path("driver"));
    }

    fn agent(&self, extra: &[&str]) -> Command {
        let mut command = tessera("agent");
        self.prepare(&mut command);
        command.args(self.arguments()).args(extra);
        command
    }

    fn refusal(&self, extra: &[&str]) -> String {
        self.mask(&refusal(self.agent(extra)))
    }

    fn config(&self, text: &str) -> String {
        let file = self.path("device-config.yaml");
        std::fs::write(&file, text).unwrap();
        self.refusal(&[&format!("--config-file={}", file.display())])
    }

    /// Puts a simulated card into it.
    fn install_driver(&self) {
        let artefacts = artefacts();
        let cards = self.path("cards.yaml");
        std::fs::write(&cards, "cards:\n  - {model: A100-SXM4-40GB}\n").unwrap();
        let output = Command::new(&artefacts.simdriver)
            .args(["install", "--cards"])
            .arg(&cards)
            .arg("--root")
            .arg(self.path("driver"))
            .arg("--lib-dir")
            .arg(artefacts.cuda.parent().unwrap())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

fn flag(flag: &str) -> String {
    Node::new().refusal(&[flag])
}

pub(crate) fn part() -> Part {
    let mut rows = settings();
    rows.extend(surroundings());
    rows.extend(kubelet());
    Part {
        title: "`tessera agent`",
        about: "As with the scheduler: what cannot work ends it, what may get better is waited for. Containers that run \
                keep their cards and their limits without it.",
        rows,
    }
}

fn settings() -> Vec<Row> {
    vec![
        Row {
            id: "agent-node-name",
            did: "no `NODE_NAME` and no `--node-name`",
            place: ENDS,
            message: "error: the node's name is not known; set NODE_NAME (from spec.nodeName) or --node-name",
            see: || refusal(tessera("agent")),
        },
        Row {
            id: "agent-config-key",
            did: "an unknown key in the device configuration",
            place: ENDS,
            message: "error: in the device configuration `<folder>/device-config.yaml`\n  because: line 2, column 3: unknown key `deviceSplitCuont`; did you mean `deviceSplitCount`?",
            see: || Node::new().config("nvidia:\n  deviceSplitCuont: 10\n"),
        },
        Row {
            id: "agent-config-range",
            did: "`deviceSplitCount: 0`",
            place: ENDS,
            message: "error: in the device configuration `<folder>/device-config.yaml`\n  because: line 2, column 3: `deviceSplitCount` is 0; write a number of 1 to 10000",
            see: || Node::new().config("nvidia:\n  deviceSplitCount: 0\n"),
        },
        Row {
            id: "agent-config-missing",
            did: "`--config-file` names a file that is not there",
            place: ENDS,
            message: "error: cannot read the device configuration `/config/device-config.yaml`; mount it there, or leave --config-file out for the defaults\n  because: No such file or directory (os error 2)",
            see: || flag("--config-file=/config/device-config.yaml"),
        },
        Row {
            id: "agent-node-config",
            did: "the file with numbers for single nodes is no JSON",
            place: ENDS,
            message: "error: in the node configuration `<folder>/config.json`\n  because: line 1, column 16: unclosed bracket '['",
            see: || {
                let node = Node::new();
                std::fs::write(node.path("config.json"), "{\"nodeconfig\": [").unwrap();
                node.refusal(&[])
            },
        },
        Row {
            id: "agent-node-config-key",
            did: "an unknown key in it",
            place: ENDS,
            message: "error: in the node configuration `<folder>/config.json`\n  because: line 1, column 32: unknown key `devicesplitcuont`; did you mean `devicesplitcount`?",
            see: || {
                let node = Node::new();
                let text = "{\"nodeconfig\": [{\"name\": \"n1\", \"devicesplitcuont\": 20}]}";
                std::fs::write(node.path("config.json"), text).unwrap();
                node.refusal(&[])
            },
        },
        Row {
            id: "agent-mig",
            did: "`operatingmode: mig` for this node",
            place: ENDS,
            message: "error: operatingmode `mig` is not available on this node agent; set it to `hami-core`, or remove the node's entry",
            see: || {
                let node = Node::new();
                let text = "{\"nodeconfig\": [{\"name\": \"n1\", \"operatingmode\": \"mig\"}]}";
                std::fs::write(node.path("config.json"), text).unwrap();
                node.refusal(&[])
            },
        },
        Row {
            id: "agent-flag-mig",
            did: "`--mig-strategy=mixed`, which HAMi has",
            place: ENDS,
            message: "error: --mig-strategy=mixed is not served; use `none`",
            see: || flag("--mig-strategy=mixed"),
        },
        Row {
            id: "agent-flag-imex",
            did: "`--imex-channel-ids=0`, which HAMi has",
            place: ENDS,
            message: "error: IMEX channels are not served; remove --imex-channel-ids",
            see: || flag("--imex-channel-ids=0"),
        },
        Row {
            id: "agent-flag-strategy",
            did: "`--device-list-strategy=env`",
            place: ENDS,
            message: "error: invalid value 'env' for '--device-list-strategy <DEVICE_ACCESS>'\n  [possible values: auto, direct, envvar, volume-mounts, cdi-annotations, cdi-cri]\n\n  tip: a similar value exists: 'envvar'\n\nFor more information, try '--help'.",
            see: || flag("--device-list-strategy=env"),
        },
        Row {
            id: "agent-port",
            did: "the port of the health page is in use",
            place: ENDS,
            message: "error: cannot listen on `127.0.0.1:<port>` for health and metrics; free it, or set --listen\n  because: Address already in use (os error 98)",
            see: || {
                let taken = TcpListener::bind("127.0.0.1:0").unwrap();
                let address = taken.local_addr().unwrap().to_string();
                let node = Node::new();
                let mut arguments = node.arguments();
                arguments.retain(|argument| !argument.starts_with("--listen"));
                let mut command = tessera("agent");
                node.prepare(&mut command);
                command.args(arguments).arg(format!("--listen={address}"));
                mask(&refusal(command), &[(&address, "127.0.0.1:<port>")])
            },
        },
    ]
}

fn surroundings() -> Vec<Row> {
    vec![
        Row {
            id: "driver-absent",
            did: "no driver on the node",
            place: LOG,
            message: "WARN Waiting for the NVIDIA driver. reason=no NVIDIA driver: `libnvidia-ml.so.1` is not below `<folder>/driver`; install the driver, or set --nvidia-driver-root to where it is",
            see: || {
                let node = Node::new();
                let mut running = Running::start(node.agent(&[]));
                let text = running.line("Waiting for the NVIDIA driver");
                assert!(running.lives());
                node.mask(&text)
            },
        },
        Row {
            id: "driver-absent-ready",
            did: "no driver, no kubelet and no API server",
            place: READY,
            message: "driver: no NVIDIA driver: `libnvidia-ml.so.1` is not below `<folder>/driver`; install the driver, or set --nvidia-driver-root to where it is\nkubelet: not registered, because no cards are known\nAPI server: this node's pods are not known yet; the log says why",
            see: || {
                let node = Node::new();
                let mut running = Running::start(node.agent(&[]));
                let address = running.address("Serve health and metrics");
                let (status, text) = running.page(address, "/readyz", "no NVIDIA driver");
                assert_eq!(status, 503);
                assert_eq!(running.page(address, "/healthz", "").0, 200);
                node.mask(&text)
            },
        },
        Row {
            id: "agent-api-down",
            did: "the API server does not answer when it starts",
            place: LOG,
            message: "WARN Cannot follow the API server, trying again. kind=\"pods\" error=\"listing pods: the API server did not answer: client error (Connect): tcp connect error: Connection refused (os error 111)\"",
            see: || {
                let node = Node::new();
                let mut running = Running::start(node.agent(&[]));
                running.line("listing pods")
            },
        },
        Row {
            id: "library-missing",
            did: "`--library` names a file that is not there",
            place: LOG,
            message: "ERROR The enforcement library is not up to date. error=cannot read the enforcement library `/opt/libvgpu.so`; name an existing one with --library: No such file or directory (os error 2)",
            see: || {
                let node = Node::new();
                let mut arguments = node.arguments();
                arguments.retain(|argument| !argument.starts_with("--library"));
                let mut command = tessera("agent");
                node.prepare(&mut command);
                command.args(arguments).arg("--library=/opt/libvgpu.so");
                let mut running = Running::start(command);
                node.mask(&running.line("The enforcement library"))
            },
        },
    ]
}

fn kubelet() -> Vec<Row> {
    vec![
        Row {
            id: "kubelet-absent",
            did: "the kubelet's socket is not where it should be",
            place: LOG,
            message: "WARN Waiting for the kubelet's socket; set --kubelet-socket if it is elsewhere. socket=<folder>/kubelet/device-plugins/kubelet.sock",
            see: || {
                let node = Node::new();
                node.install_driver();
                let mut running = Running::start(node.agent(&[]));
                let text = running.line("Waiting for the kubelet's socket");
                assert!(running.lives());
                node.mask(&text)
            },
        },
        Row {
            id: "kubelet-replaced",
            did: "restarted the kubelet, so its socket is a new one",
            place: "its log; it registers again and the slots are back",
            message: "INFO The kubelet's socket was replaced. resource=nvidia.com/gpu\nINFO The kubelet reads the device list. resource=nvidia.com/gpu",
            see: || {
                let node = Node::new();
                node.install_driver();
                let runtime = tokio::runtime::Runtime::new().unwrap();
                let mut kubelet = runtime
                    .block_on(async { FakeKubelet::start(&node.path("kubelet")) })
                    .unwrap();
                let mut running = Running::start(node.agent(&[]));
                running.line("The kubelet reads the device list");
                runtime.block_on(async { kubelet.restart() }).unwrap();
                let text = running.line("socket was replaced");
                let again = running.line("The kubelet reads the device list");
                node.mask(&format!("{text}\n{again}"))
            },
        },
        Row {
            id: "plugin-beside",
            did: "another device plugin serves `nvidia.com/gpu` on the node",
            place: LOG,
            message: "ERROR Not serving the kubelet, trying again. error=another device plugin already serves `nvidia.com/gpu` at `<folder>/kubelet/device-plugins/nvidia-gpu.sock`; remove it from this node, two plugins on one resource disconnect each other",
            see: || {
                let node = Node::new();
                node.install_driver();
                std::fs::create_dir_all(node.path("kubelet/device-plugins")).unwrap();
                let _other = UnixListener::bind(node.path("kubelet/device-plugins/nvidia-gpu.sock")).unwrap();
                let mut running = Running::start(node.agent(&[]));
                node.mask(&running.line("Not serving the kubelet"))
            },
        },
    ]
}

/// What only root can arrange.
pub(crate) fn rows_of_root() -> Vec<Row> {
    /// An agent whose library folder is on a full disk.
    fn on_full_disk(node: &Node) -> Running {
        std::fs::create_dir_all(node.path("hook/vgpu")).unwrap();
        let mut command = Command::new("unshare");
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        node.prepare(&mut command);
        command.args([
            "--mount",
            "sh",
            "-c",
            "mount -t tmpfs -o size=64k none \"$0\" && exec \"$@\"",
        ]);
        command
            .arg(node.path("hook/vgpu"))
            .arg(artefacts().tessera)
            .arg("agent")
            .args(node.arguments());
        Running::start(command)
    }
    vec![
        Row {
            id: "disk-full",
            did: "the disk is full where the library is installed",
            place: LOG,
            message: "ERROR The enforcement library is not up to date. error=no space left for the enforcement library in `<folder>/hook/vgpu`; free some, it is tried again by itself. The old one stays",
            see: || {
                let node = Node::new();
                let mut running = on_full_disk(&node);
                let text = running.line("The enforcement library");
                assert!(running.lives());
                node.mask(&text)
            },
        },
        Row {
            id: "disk-full-ready",
            did: "the same, with a driver but without kubelet and API server",
            place: READY,
            message: "kubelet: not registered at `<folder>/kubelet/device-plugins/kubelet.sock`; --kubelet-socket says where its socket is, the log says what is wrong\nAPI server: this node's pods are not known yet; the log says why\nlibrary: no space left for the enforcement library in `<folder>/hook/vgpu`; free some, it is tried again by itself. The old one stays",
            see: || {
                let node = Node::new();
                node.install_driver();
                let mut running = on_full_disk(&node);
                let address = running.address("Serve health and metrics");
                running.line("Waiting for the kubelet's socket");
                let (status, text) = running.page(address, "/readyz", "library");
                assert_eq!(status, 503);
                node.mask(&text)
            },
        },
    ]
}
