//! `tessera simulate`, `tessera dump` and `tessera plan`, as they are typed. The API server is a list of recorded answers.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tessera_e2e::product::{self, Artefacts, Profile};

fn tessera(words: &[&str]) -> Output {
    let program = Artefacts::find(Profile::Dev).unwrap().tessera;
    Command::new(program)
        .current_dir(product::root())
        .args(words)
        .env_clear()
        .env("HOME", "/nonexistent")
        .output()
        .unwrap()
}

/// What it prints; it must say nothing besides.
fn printed(words: &[&str]) -> String {
    let output = tessera(words);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && errors.is_empty(), "{words:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn node(name: &str) -> Value {
    let register: Vec<Value> = (0..2)
        .map(|index| {
            json!({"id": format!("GPU-{name}-{index}"), "index": index, "count": 10, "devmem": 24000, "devcore": 100,
                "type": "NVIDIA-A10", "numa": 0, "mode": "hami-core", "health": true})
        })
        .collect();
    json!({"metadata": {"name": name, "annotations": {"hami.io/node-nvidia-register": Value::from(register).to_string()}},
        "status": {"allocatable": {"cpu": "32", "memory": "128Gi", "nvidia.com/gpu": "20"}}})
}

fn pod(name: &str, node: &str, card: u32) -> Value {
    json!({"metadata": {"name": name, "namespace": "team-blue", "uid": format!("0000-{name}"),
            "creationTimestamp": "2026-11-01T10:00:00Z",
            "ownerReferences": [{"kind": "ReplicaSet", "name": "rs", "controller": true}],
            "annotations": {"hami.io/vgpu-node": node,
                "hami.io/vgpu-devices-allocated": format!("GPU-{node}-{card},NVIDIA,8000,0:;")}},
        "spec": {"nodeName": node, "containers": [{"name": "main", "args": ["--password=hunter2"],
            "env": [{"name": "TOKEN", "value": "hunter2"}],
            "resources": {"limits": {"nvidia.com/gpu": "1", "nvidia.com/gpumem": "8000"}, "requests": {"cpu": "2"}}}]},
        "status": {"phase": "Running"}})
}

/// Answers as an API server would, and writes down what it is asked. Gives its port.
fn server() -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map(Result::unwrap);
            let Some(first) = lines.next() else { continue };
            lines.take_while(|line| !line.is_empty()).for_each(drop);
            let list = |items: Vec<Value>| json!({"kind": "List", "metadata": {}, "items": items});
            let path = first.split([' ', '?']).nth(1).unwrap_or_default();
            let answer = match path {
                "/api/v1/nodes" => list(["alpha-one", "alpha-two"].map(node).to_vec()),
                "/api/v1/pods" => list(vec![
                    pod("left", "alpha-one", 0),
                    pod("right", "alpha-two", 0),
                    pod("other", "alpha-two", 1),
                ]),
                "/api/v1/namespaces/kube-system" => json!({"metadata": {"name": "kube-system", "uid": "a-secret"}}),
                _ => list(Vec::new()),
            };
            log.lock().unwrap().push(first);
            let body = answer.to_string();
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close";
            drop(write!(stream, "{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()));
        }
    });
    (port, asked)
}

fn kubeconfig(folder: &Path, port: u16) -> String {
    let path = folder.join("kubeconfig");
    let text = format!(
        "{{apiVersion: v1, kind: Config, current-context: c, \
         clusters: [{{name: c, cluster: {{server: 'http://127.0.0.1:{port}'}}}}], \
         contexts: [{{name: c, context: {{cluster: c, user: u}}}}], users: [{{name: u, user: {{}}}}]}}"
    );
    std::fs::write(&path, text).unwrap();
    format!("--kubeconfig={}", path.display())
}

#[test]
fn a_cluster_is_dumped_simulated_and_planned_and_nothing_is_written_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let (port, asked) = server();
    let cluster = kubeconfig(folder.path(), port);
    let dump = printed(&["dump", &cluster]);
    assert!(dump.contains("alpha-one") && !dump.contains("hunter2"), "{dump}");
    let masked = printed(&["dump", &cluster, "--mask-names"]);
    assert_eq!(
        masked,
        printed(&["dump", &cluster, "--mask-names"]),
        "the same names every time"
    );
    assert!(!masked.contains("alpha") && !masked.contains("team-blue"), "{masked}");

    let file = folder.path().join("cluster.json");
    let option = format!("--dump={}", file.display());
    for text in [&dump, &masked] {
        std::fs::write(&file, text).unwrap();
        let plan: Value = serde_json::from_str(&printed(&["plan", "--rebalance=1", "--json", &option])).unwrap();
        assert_eq!(
            (&plan["before"]["cards"], &plan["after"]["cards"]),
            (&json!(1), &json!(2)),
            "{plan}"
        );
        assert_eq!(plan["moves"].as_array().unwrap().len(), 1);
        let table = printed(&["simulate", &option, "--compare=tessera,hami", "--order=timed"]);
        assert!(table.contains("tessera") && table.contains("hami"), "{table}");
    }
    let live = printed(&["plan", "--rebalance=5", &cluster]);
    assert!(
        live.contains("team-blue/") && live.contains("Nothing was changed."),
        "{live}"
    );
    let asked = asked.lock().unwrap();
    assert!(
        !asked.is_empty() && asked.iter().all(|line| line.starts_with("GET ")),
        "{asked:?}"
    );
}

#[test]
fn a_simulation_writes_points_results_and_a_picture() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("new/folder");
    let words = [
        "simulate",
        "--nodes=examples/simulate/nodes.csv",
        "--pods=examples/simulate/pods.csv",
        "--compare=tessera,fgd,hami",
        "--seeds=1..3",
        &format!("--out={}", out.display()),
    ];
    let table = printed(&words);
    let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
    let result: Value = serde_json::from_str(&read("result.json")).unwrap();
    assert_eq!((&result["nodes"], &result["cards"]), (&json!(6), &json!(28)));
    let replays = result["replays"].as_array().unwrap();
    assert_eq!(replays.len(), 9);
    for replay in replays {
        let allocated = replay["allocated_at_end"].as_f64().unwrap();
        let lost = replay["fragmented_at_end"].as_f64().unwrap();
        assert!(
            allocated > 50.0 && lost >= 0.0 && allocated + lost <= 100.01,
            "{replay}"
        );
        assert_eq!(replay["models"].as_array().unwrap().len(), 3);
    }
    let points = read("points.csv");
    assert!(points.starts_with("policy,seed,at_percent,allocated_percent,fragmented_percent\n"));
    assert!(points.lines().filter(|line| line.starts_with("fgd,2,")).count() > 20);
    let picture = read("curves.svg");
    assert!(picture.starts_with("<svg ") && picture.ends_with("</svg>\n"));
    for text in ["tessera", "fgd", "hami", "A100", "T4", "P100"] {
        assert!(picture.contains(text), "{text}");
    }
    assert_eq!(table, printed(&words), "the same seeds give the same table");
}
