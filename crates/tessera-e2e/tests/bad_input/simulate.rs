//! `tessera simulate` and `tessera plan` with files that are not what they should be.

use std::process::Command;

use tempfile::TempDir;

use crate::process::{kubeconfig, refusal, tessera};
use crate::table::{Part, Row, mask};

const ENDS: &str = "standard error; the program ends";
const NODES: &str = "sn,cpu_milli,memory_mib,gpu,model\nn1,8000,65536,2,T4\n";
const PODS: &str = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\np1,1000,1024,1,500,\n";

struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    fn refused(&self, command: Command) -> String {
        mask(&refusal(command), &[(&self.0.path().display().to_string(), "<folder>")])
    }
}

fn lists(nodes: &str, pods: &str, extra: &[&str]) -> String {
    let place = Place::new();
    let mut command = tessera("simulate");
    command.arg("--nodes").arg(place.file("nodes.csv", nodes));
    command.arg("--pods").arg(place.file("pods.csv", pods)).args(extra);
    place.refused(command)
}

fn dump(word: &str, text: &str, extra: &[&str]) -> String {
    let place = Place::new();
    let mut command = tessera(word);
    command.arg("--dump").arg(place.file("cluster.json", text)).args(extra);
    place.refused(command)
}

fn plan(text: &str) -> String {
    dump("plan", text, &["--rebalance=3"])
}

pub(crate) fn part() -> Part {
    let mut rows = csv();
    rows.extend(json());
    Part {
        title: "`tessera simulate`, `tessera plan`, `tessera dump`",
        about: "Nothing is simulated in part: the first mistake ends the command, with its place. No file is written.",
        rows,
    }
}

fn csv() -> Vec<Row> {
    vec![
        Row {
            id: "simulate-column",
            did: "a pod list without the column `gpu_milli`",
            place: ENDS,
            message: "",
            see: || lists(NODES, "name,cpu_milli,memory_mib,num_gpu,gpu_spec\np1,1,1,1,\n", &[]),
        },
        Row {
            id: "simulate-value",
            did: "a word where a number belongs, in a pod list",
            place: ENDS,
            message: "",
            see: || lists(NODES, &PODS.replace("1000,1024", "1000,1Gi"), &[]),
        },
        Row {
            id: "simulate-share",
            did: "a pod with two shares of 500 thousandths",
            place: ENDS,
            message: "",
            see: || lists(NODES, &PODS.replace("1,500", "2,500"), &[]),
        },
        Row {
            id: "simulate-cards",
            did: "a node with 16 cards",
            place: ENDS,
            message: "",
            see: || lists(&NODES.replace(",2,T4", ",16,T4"), PODS, &[]),
        },
        Row {
            id: "simulate-empty",
            did: "a pod list with a first line only",
            place: ENDS,
            message: "",
            see: || lists(NODES, "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\n", &[]),
        },
        Row {
            id: "simulate-times",
            did: "`--order=timed` with a pod list without times",
            place: ENDS,
            message: "",
            see: || lists(NODES, PODS, &["--order=timed"]),
        },
        Row {
            id: "simulate-seeds",
            did: "`--seeds=51..42`",
            place: ENDS,
            message: "",
            see: || lists(NODES, PODS, &["--seeds=51..42"]),
        },
        Row {
            id: "simulate-policy",
            did: "`--compare=tessera,bimpack`",
            place: ENDS,
            message: "",
            see: || lists(NODES, PODS, &["--compare=tessera,bimpack"]),
        },
        Row {
            id: "simulate-out",
            did: "`--out` names a file",
            place: ENDS,
            message: "",
            see: || {
                let place = Place::new();
                let mut command = tessera("simulate");
                command.arg("--nodes").arg(place.file("nodes.csv", NODES));
                command.arg("--pods").arg(place.file("pods.csv", PODS));
                command.arg("--out").arg(place.file("taken", ""));
                place.refused(command)
            },
        },
    ]
}

fn json() -> Vec<Row> {
    vec![
        Row {
            id: "dump-no-json",
            did: "`tessera plan` with a file that is no JSON",
            place: ENDS,
            message: "",
            see: || plan("{\n  \"format\": \"tessera-dump/1\",\n  nodes: []\n}\n"),
        },
        Row {
            id: "dump-format",
            did: "a dump of a later version",
            place: ENDS,
            message: "",
            see: || plan("{\"format\": \"tessera-dump/2\", \"machines\": []}\n"),
        },
        Row {
            id: "dump-member",
            did: "a member of a dump misspelt",
            place: ENDS,
            message: "",
            see: || plan("{\"format\": \"tessera-dump/1\",\n \"nodes\": [\n  {\"nmae\": \"n1\"}],\n \"pods\": []}\n"),
        },
        Row {
            id: "dump-quantity",
            did: "a quantity of a dump that is none",
            place: ENDS,
            message: "",
            see: || {
                let text = "{\"format\": \"tessera-dump/1\", \"nodes\": [{\"name\": \"n1\", \"allocatable\": {\"cpu\": \"many\"}}], \
                            \"pods\": []}\n";
                plan(text)
            },
        },
        Row {
            id: "dump-node",
            did: "a pod of a dump on a node that is not there",
            place: ENDS,
            message: "",
            see: || {
                let text = "{\"format\": \"tessera-dump/1\", \"nodes\": [{\"name\": \"n1\"}], \"pods\": [{\"namespace\": \"ns\", \
                            \"name\": \"p\", \"uid\": \"u\", \"node\": \"n2\", \"containers\": []}]}\n";
                dump("simulate", text, &[])
            },
        },
        Row {
            id: "plan-none",
            did: "`tessera plan --rebalance=0`",
            place: ENDS,
            message: "",
            see: || dump("plan", "{}", &["--rebalance=0"]),
        },
        Row {
            id: "dump-unreachable",
            did: "`tessera dump` while the API server is away",
            place: ENDS,
            message: "",
            see: || {
                let place = Place::new();
                let mut command = tessera("dump");
                command.arg(format!("--kubeconfig={}", kubeconfig(place.0.path())));
                place.refused(command)
            },
        },
    ]
}
