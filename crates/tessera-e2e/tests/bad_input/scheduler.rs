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
            message: "MSG:config-key",
            see: || Place::new().config("nvidia:\n  resourceCountName: nvidia.com/gpu\n  deviceSplitCuont: 10\n"),
        },
        Row {
            id: "config-value",
            did: "a word where a number belongs",
            place: ENDS,
            message: "MSG:config-value",
            see: || Place::new().config("nvidia:\n  defaultMemory: plenty\n"),
        },
        Row {
            id: "config-range",
            did: "a number out of its range",
            place: ENDS,
            message: "MSG:config-range",
            see: || Place::new().config("nvidia:\n  memoryFactor: -1\n"),
        },
        Row {
            id: "config-empty",
            did: "an empty device configuration",
            place: ENDS,
            message: "MSG:config-empty",
            see: || Place::new().config(""),
        },
        Row {
            id: "config-missing",
            did: "`--device-config-file` names a file that is not there",
            place: ENDS,
            message: "MSG:config-missing",
            see: || flag("--device-config-file=/config/device-config.yaml"),
        },
        Row {
            id: "certificate-missing",
            did: "`--cert_file` names a file that is not there",
            place: ENDS,
            message: "MSG:certificate-missing",
            see: || Place::new().refusal(&["--cert_file=/tls/tls.crt", "--key_file=/tls/tls.key"]),
        },
        Row {
            id: "certificate-half",
            did: "`--cert_file` without `--key_file`",
            place: ENDS,
            message: "MSG:certificate-half",
            see: || flag("--cert_file=/tls/tls.crt"),
        },
        Row {
            id: "certificate-damaged",
            did: "`--cert_file` holds no certificate",
            place: ENDS,
            message: "MSG:certificate-damaged",
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
            message: "MSG:scheduler-port",
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
            message: "MSG:flag-without-effect",
            see: || flag("--profiling"),
        },
        Row {
            id: "flag-of-another-maker",
            did: "`--dcu-name=other.example/dcu`, which HAMi has",
            place: ENDS,
            message: "MSG:flag-of-another-maker",
            see: || flag("--dcu-name=other.example/dcu"),
        },
        Row {
            id: "flag-default-mem",
            did: "`--default-mem=3000`, which HAMi has",
            place: ENDS,
            message: "MSG:flag-default-mem",
            see: || flag("--default-mem=3000"),
        },
        Row {
            id: "flag-vmodule",
            did: "`--vmodule=score=5`, which HAMi has",
            place: ENDS,
            message: "MSG:flag-vmodule",
            see: || flag("--vmodule=score=5"),
        },
        Row {
            id: "flag-misspelt",
            did: "a flag that does not exist",
            place: ENDS,
            message: "MSG:flag-misspelt",
            see: || flag("--filter-mod=all"),
        },
        Row {
            id: "flag-policy",
            did: "`--node-scheduler-policy=bimpack`",
            place: ENDS,
            message: "MSG:flag-policy",
            see: || flag("--node-scheduler-policy=bimpack"),
        },
        Row {
            id: "flags-contradict",
            did: "`--filter-mode=all --write-at=filter`",
            place: ENDS,
            message: "MSG:flags-contradict",
            see: || Place::new().refusal(&["--filter-mode=all", "--write-at=filter"]),
        },
        Row {
            id: "no-kubeconfig",
            did: "started it outside a cluster without a kubeconfig",
            place: ENDS,
            message: "MSG:no-kubeconfig",
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
            message: "MSG:kubeconfig-missing",
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
            message: "MSG:api-down-log",
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
            message: "MSG:api-down-ready",
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
