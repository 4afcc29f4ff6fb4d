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
            message: "error: <folder>/pods.csv: no column `gpu_milli` in the first line; found: name,cpu_milli,memory_mib,num_gpu,gpu_spec; see docs/simulate.md for the columns",
            see: || lists(NODES, "name,cpu_milli,memory_mib,num_gpu,gpu_spec\np1,1,1,1,\n", &[]),
        },
        Row {
            id: "simulate-value",
            did: "a word where a number belongs, in a pod list",
            place: ENDS,
            message: "error: <folder>/pods.csv, line 2, column `memory_mib`: `1Gi` is not a whole number in range; see docs/simulate.md for the columns",
            see: || lists(NODES, &PODS.replace("1000,1024", "1000,1Gi"), &[]),
        },
        Row {
            id: "simulate-share",
            did: "a pod with two shares of 500 thousandths",
            place: ENDS,
            message: "error: <folder>/pods.csv, line 2, column `gpu_milli`: `500` is not a share of one card (1 to 999) or 1000 for each of up to 8 cards; see docs/simulate.md for the columns",
            see: || lists(NODES, &PODS.replace("1,500", "2,500"), &[]),
        },
        Row {
            id: "simulate-cards",
            did: "a node with 16 cards",
            place: ENDS,
            message: "error: <folder>/nodes.csv, line 2: cards on one node: 16, and at most 8 are possible; see docs/simulate.md for the columns",
            see: || lists(&NODES.replace(",2,T4", ",16,T4"), PODS, &[]),
        },
        Row {
            id: "simulate-empty",
            did: "a pod list with a first line only",
            place: ENDS,
            message: "error: <folder>/pods.csv: no pod in it; see docs/simulate.md for the columns",
            see: || lists(NODES, "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\n", &[]),
        },
        Row {
            id: "simulate-times",
            did: "`--order=timed` with a pod list without times",
            place: ENDS,
            message: "error: the pod list has no columns `creation_time` and `deletion_time`; add them, or use --order shuffled",
            see: || lists(NODES, PODS, &["--order=timed"]),
        },
        Row {
            id: "simulate-seeds",
            did: "`--seeds=51..42`",
            place: ENDS,
            message: "error: invalid value '51..42' for '--seeds <SEEDS>': `51..42` is no range of up to 1000 seeds; write it as 42..51\n\nFor more information, try '--help'.",
            see: || lists(NODES, PODS, &["--seeds=51..42"]),
        },
        Row {
            id: "simulate-policy",
            did: "`--compare=tessera,bimpack`",
            place: ENDS,
            message: "error: invalid value 'bimpack' for '--compare <POLICIES>'\n  [possible values: tessera, fgd, bestfit, hami, binpack, spread]\n\n  tip: a similar value exists: 'binpack'\n\nFor more information, try '--help'.",
            see: || lists(NODES, PODS, &["--compare=tessera,bimpack"]),
        },
        Row {
            id: "simulate-out",
            did: "`--out` names a file",
            place: ENDS,
            message: "error: making the folder <folder>/taken; name a folder with --out\n  because: File exists (os error 17)",
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
            message: "error: <folder>/cluster.json is no dump that can be used\n  because: it is not JSON; write one with `tessera dump > FILE`\n  because: key must be a string at line 3 column 3",
            see: || plan("{\n  \"format\": \"tessera-dump/1\",\n  nodes: []\n}\n"),
        },
        Row {
            id: "dump-format",
            did: "a dump of a later version",
            place: ENDS,
            message: "error: <folder>/cluster.json is no dump that can be used\n  because: `format` is `tessera-dump/2`, and this version reads `tessera-dump/1`; write one with `tessera dump > FILE` by this version",
            see: || plan("{\"format\": \"tessera-dump/2\", \"machines\": []}\n"),
        },
        Row {
            id: "dump-member",
            did: "a member of a dump misspelt",
            place: ENDS,
            message: "error: <folder>/cluster.json is no dump that can be used\n  because: a member is not what it should be; write one with `tessera dump > FILE`\n  because: unknown field `nmae`, expected one of `name`, `annotations`, `labels`, `allocatable`, `capacity`, `unschedulable`, `taints` at line 3 column 9",
            see: || plan("{\"format\": \"tessera-dump/1\",\n \"nodes\": [\n  {\"nmae\": \"n1\"}],\n \"pods\": []}\n"),
        },
        Row {
            id: "dump-quantity",
            did: "a quantity of a dump that is none",
            place: ENDS,
            message: "error: <folder>/cluster.json\n  because: node n1: `cpu`; write it as Kubernetes does, such as `4`, `1500m` or `16Gi`\n  because: `many` is not a quantity: a number is expected first",
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
            message: "error: <folder>/cluster.json\n  because: pod ns/p: its node `n2` is not among `nodes`; add the node, or take the pod out",
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
            message: "error: invalid value '0' for '--rebalance <N>': 0 is not in 1..=1000\n\nFor more information, try '--help'.",
            see: || dump("plan", "{}", &["--rebalance=0"]),
        },
        Row {
            id: "dump-unreachable",
            did: "`tessera dump` while the API server is away",
            place: ENDS,
            message: "error: the cluster cannot be read; look at --kubeconfig or $KUBECONFIG, and at the right to list nodes and pods\n  because: reading /api/v1/nodes: the API server did not answer: client error (Connect): tcp connect error: Connection refused (os error 111)",
            see: || {
                let place = Place::new();
                let mut command = tessera("dump");
                command.arg(format!("--kubeconfig={}", kubeconfig(place.0.path())));
                place.refused(command)
            },
        },
    ]
}
