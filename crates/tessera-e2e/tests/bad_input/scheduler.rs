//! `tessera scheduler` with settings that cannot work, or without what it needs.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::process::{Running, kubeconfig, refusal, tessera};
use crate::table::{Part, Row, mask};

const ENDS: &str = "standard error; the program ends";

struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    fn scheduler(&self, extra: &[&str]) -> Command {
        let mut command = tessera("scheduler");
        command.arg(format!("--kubeconfig={}", kubeconfig(self.path())));
        command
            .args(["--http_bind=127.0.0.1:0", "--metrics-bind-address=127.0.0.1:0"])
            .args(extra);
        command
    }

    fn refusal(&self, extra: &[&str]) -> String {
        mask(
            &refusal(self.scheduler(extra)),
            &[(&self.path().display().to_string(), "<folder>")],
        )
    }

    fn config(&self, text: &str) -> String {
        let file = self.file("device-config.yaml", text);
        self.refusal(&[&format!("--device-config-file={file}")])
    }
}

fn flag(flag: &str) -> String {
    Place::new().refusal(&[flag])
}

pub(crate) fn part() -> Part {
    let mut rows = settings();
    rows.extend(surroundings());
    Part {
        title: "`tessera scheduler`",
        about: "A setting that cannot work ends the program before it serves anything. What may get better by itself is \
                waited for, and `/readyz` on the metrics port says what it is; `/healthz` stays well. Running pods do \
                not notice.",
        rows,
    }
}

fn settings() -> Vec<Row> {
    vec![
        Row {
            id: "config-key",
            did: "an unknown key in the device configuration",
            place: ENDS,
            message: "error: in the device configuration `<folder>/device-config.yaml` (--device-config-file)\n  because: line 3, column 3: unknown key `deviceSplitCuont`; did you mean `deviceSplitCount`?",
            see: || Place::new().config("nvidia:\n  resourceCountName: nvidia.com/gpu\n  deviceSplitCuont: 10\n"),
        },
        Row {
            id: "config-value",
            did: "a word where a number belongs",
            place: ENDS,
            message: "error: in the device configuration `<folder>/device-config.yaml` (--device-config-file)\n  because: line 2, column 18: `defaultMemory: plenty`: a whole number is expected",
            see: || Place::new().config("nvidia:\n  defaultMemory: plenty\n"),
        },
        Row {
            id: "config-range",
            did: "a number out of its range",
            place: ENDS,
            message: "error: in the device configuration `<folder>/device-config.yaml` (--device-config-file)\n  because: line 2, column 3: `memoryFactor` is -1; write a number of 0 to 2147483647",
            see: || Place::new().config("nvidia:\n  memoryFactor: -1\n"),
        },
        Row {
            id: "config-empty",
            did: "an empty device configuration",
            place: ENDS,
            message: "error: in the device configuration `<folder>/device-config.yaml` (--device-config-file)\n  because: the file is empty; it needs at least one section such as `nvidia:`",
            see: || Place::new().config(""),
        },
        Row {
            id: "config-missing",
            did: "`--device-config-file` names a file that is not there",
            place: ENDS,
            message: "error: cannot read the device configuration `/config/device-config.yaml`; mount it there, or leave --device-config-file out for the defaults\n  because: No such file or directory (os error 2)",
            see: || flag("--device-config-file=/config/device-config.yaml"),
        },
        Row {
            id: "certificate-missing",
            did: "`--cert_file` names a file that is not there",
            place: ENDS,
            message: "error: the certificate of --cert_file and --key_file cannot be used; put a certificate and its key there, or leave both out: with --webhook-bind one is made\n  because: cannot read the certificate file `/tls/tls.crt`: No such file or directory (os error 2)",
            see: || Place::new().refusal(&["--cert_file=/tls/tls.crt", "--key_file=/tls/tls.key"]),
        },
        Row {
            id: "certificate-half",
            did: "`--cert_file` without `--key_file`",
            place: ENDS,
            message: "error: --cert_file is given without --key_file; both are needed",
            see: || flag("--cert_file=/tls/tls.crt"),
        },
        Row {
            id: "certificate-damaged",
            did: "`--cert_file` holds no certificate",
            place: ENDS,
            message: "error: the certificate of --cert_file and --key_file cannot be used; put a certificate and its key there, or leave both out: with --webhook-bind one is made\n  because: the certificate is not usable PEM: it holds no certificate",
            see: || {
                let place = Place::new();
                let (cert, key) = (place.file("tls.crt", "nothing"), place.file("tls.key", "nothing"));
                place.refusal(&[&format!("--cert_file={cert}"), &format!("--key_file={key}")])
            },
        },
        Row {
            id: "scheduler-port",
            did: "the port of the metrics page is in use",
            place: ENDS,
            message: "error: the metrics page cannot listen on `127.0.0.1:<port>`: the port is in use; stop the other process or choose another address with --metrics-bind-address",
            see: || {
                let taken = TcpListener::bind("127.0.0.1:0").unwrap();
                let address = taken.local_addr().unwrap().to_string();
                let text = flag(&format!("--metrics-bind-address={address}"));
                mask(&text, &[(&address, "127.0.0.1:<port>")])
            },
        },
        Row {
            id: "flag-without-effect",
            did: "`--profiling`, which HAMi has",
            place: ENDS,
            message: "error: --profiling has no effect here: there is no profiling endpoint; see /metrics on the metrics port",
            see: || flag("--profiling"),
        },
        Row {
            id: "flag-of-another-maker",
            did: "`--dcu-name=other.example/dcu`, which HAMi has",
            place: ENDS,
            message: "error: --dcu-name has no effect here: names of this class come from device-config.yaml (--device-config-file); set it there",
            see: || flag("--dcu-name=other.example/dcu"),
        },
        Row {
            id: "flag-default-mem",
            did: "`--default-mem=3000`, which HAMi has",
            place: ENDS,
            message: "error: --default-mem has no effect here: defaults come from device-config.yaml (defaultMemory, defaultCores, defaultGPUNum)",
            see: || flag("--default-mem=3000"),
        },
        Row {
            id: "flag-vmodule",
            did: "`--vmodule=score=5`, which HAMi has",
            place: ENDS,
            message: "error: --vmodule has no effect here: logs go to standard error; use -v for the level and --log-format for the form",
            see: || flag("--vmodule=score=5"),
        },
        Row {
            id: "flag-misspelt",
            did: "a flag that does not exist",
            place: ENDS,
            message: "error: unexpected argument '--filter-mod' found\n\n  tip: a similar argument exists: '--filter-mode'\n\nUsage: tessera scheduler --kubeconfig <FILE> --http_bind <HOST:PORT> --metrics-bind-address <HOST:PORT> --filter-mode <FILTER_MODE>\n\nFor more information, try '--help'.",
            see: || flag("--filter-mod=all"),
        },
        Row {
            id: "flag-policy",
            did: "`--node-scheduler-policy=bimpack`",
            place: ENDS,
            message: "error: invalid value 'bimpack' for '--node-scheduler-policy <NODE_POLICY>': `bimpack` is no node policy; use binpack, spread, fgd, tessera\n\nFor more information, try '--help'.",
            see: || flag("--node-scheduler-policy=bimpack"),
        },
        Row {
            id: "flags-contradict",
            did: "`--filter-mode=all --write-at=filter`",
            place: ENDS,
            message: "error: --write-at=filter needs --filter-mode=one",
            see: || Place::new().refusal(&["--filter-mode=all", "--write-at=filter"]),
        },
        Row {
            id: "no-kubeconfig",
            did: "started it outside a cluster without a kubeconfig",
            place: ENDS,
            message: "error: no API server is configured: $KUBECONFIG is not set, ~/.kube/config is not usable (failed to read kubeconfig from '\"/nonexistent/.kube/config\"': No such file or directory (os error 2)), and this is no pod with a service account (failed to read an incluster environment variable: environment variable not found); set $KUBECONFIG, or run it in a pod",
            see: || {
                let mut command = tessera("scheduler");
                command.args(["--http_bind=127.0.0.1:0", "--metrics-bind-address=127.0.0.1:0"]);
                refusal(command)
            },
        },
        Row {
            id: "kubeconfig-missing",
            did: "`--kubeconfig` names a file that is not there",
            place: ENDS,
            message: "error: the kubeconfig `/no/kubeconfig` (--kubeconfig) cannot be used: failed to read kubeconfig from '\"/no/kubeconfig\"': No such file or directory (os error 2)",
            see: || flag("--kubeconfig=/no/kubeconfig"),
        },
    ]
}

fn surroundings() -> Vec<Row> {
    vec![
        Row {
            id: "api-down-log",
            did: "the API server does not answer when it starts",
            place: "its log; it goes on and tries again",
            message: "INFO Use this API server. server=http://127.0.0.1:9/\nWARN The API server does not answer. error=asking for its version: the API server did not answer: client error (Connect): tcp connect error: Connection refused (os error 111)",
            see: || {
                let place = Place::new();
                let mut running = Running::start(place.scheduler(&[]));
                let server = running.line("Use this API server");
                let text = running.line("The API server does not answer");
                assert!(running.lives());
                format!("{server}\n{text}")
            },
        },
        Row {
            id: "api-down-ready",
            did: "the same",
            place: "`/readyz` on the metrics port, status 503",
            message: "api-server: asking for its version: the API server did not answer: client error (Connect): tcp connect error: Connection refused (os error 111)\nsynced: pods, nodes and quotas are being read",
            see: || {
                let place = Place::new();
                let mut running = Running::start(place.scheduler(&[]));
                let address = running.address("Serve metrics");
                assert_eq!(running.page(address, "/healthz", "").0, 200);
                let (status, text) = running.page(address, "/readyz", "Connection refused");
                assert_eq!(status, 503);
                text
            },
        },
    ]
}
