//! Pods and machines that are shown.

use std::process::Command;
use std::sync::Arc;

use serde_json::Value;
use tessera_e2e::product::{self, Artefacts, Profile};
use tessera_engine::admission::{Settings, Verdict, review};
use tessera_engine::{Defaults, Engine, Vendors, World};
use tessera_testkit::build::{card, node};
use tessera_wire::config::{DeviceConfig, Nvidia};

use crate::markdown::{files, pages, read};
use crate::none;

/// Marks, in the line before a block, a pod that is shown because it is refused.
const REFUSED: &str = "<!-- refused -->";

pub(crate) fn vendors() -> Arc<Vendors> {
    let config = DeviceConfig {
        nvidia: Some(Nvidia::default()),
        ..DeviceConfig::default()
    };
    tessera_vendors::from_config(&config)
}

/// What admission says to a pod, on a cluster with one node of eight large cards.
fn verdict(pod: &Value) -> Verdict {
    let vendors = vendors();
    let mut world = World::new(Arc::clone(&vendors));
    let cards: Vec<_> = (0..8)
        .map(|at| card(&format!("GPU-{at}")).index(at).memory(81920).card())
        .collect();
    world.set_node(&node("n1").cards(&cards).view());
    let engine = Engine::new(vendors, Defaults::default());
    review(pod, "default", &Settings::default(), &engine, &world.snapshot())
}

/// The pod of an object: itself, or its template.
fn pod_of(object: &Value) -> Option<Value> {
    if object["kind"] == "Pod" {
        return Some(object.clone());
    }
    let template = object
        .pointer("/spec/jobTemplate/spec/template")
        .or_else(|| object.pointer("/spec/template"))?;
    template["spec"]["containers"].is_array().then(|| template.clone())
}

pub(crate) fn documents(text: &str) -> Vec<Result<Value, String>> {
    text.split("\n---\n")
        .map(|document| serde_saphyr::from_str::<Value>(document).map_err(|error| error.to_string()))
        .filter(|document| !matches!(document, Ok(Value::Null)))
        .collect()
}

/// `NOTES.txt` as a user of the default values sees its commands.
fn notes() -> String {
    let values: Value = serde_saphyr::from_str(&read("charts/tessera/values.yaml")).unwrap();
    let mut text = read("charts/tessera/templates/NOTES.txt");
    for name in ["resourceName", "resourceMem", "resourceCores"] {
        text = text.replace(&format!("{{{{ .Values.{name} }}}}"), values[name].as_str().unwrap());
    }
    text
}

/// The document that a shell command reads from `<<'END'` to `END`, without its indentation.
fn here_document(text: &str) -> String {
    let inside = text.split("<<'END'\n").nth(1).unwrap().split("END").next().unwrap();
    let indent = inside
        .lines()
        .find(|line| !line.trim().is_empty())
        .map_or(0, |line| line.len() - line.trim_start().len());
    inside
        .lines()
        .map(|line| line.get(indent..).unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn every_pod_that_is_shown_is_admitted_without_a_word() {
    let mut problems = Vec::new();
    let mut seen = 0;
    let mut look = |at: &str, text: &str, refused: bool| {
        for document in documents(text) {
            let object = match document {
                Ok(object) => object,
                Err(error) => {
                    problems.push(format!("{at}: it is no YAML: {error}"));
                    continue;
                }
            };
            let Some(pod) = pod_of(&object) else { continue };
            seen += 1;
            match (verdict(&pod), refused) {
                (Verdict::Allow { warnings, .. }, false) if warnings.is_empty() => {}
                (Verdict::Deny { .. }, true) => {}
                (found, _) => problems.push(format!("{at}: {found:?}")),
            }
        }
    };
    for page in pages() {
        for block in page.blocks().iter().filter(|block| block.kind == "yaml") {
            look(&block.at, &block.text, block.before == REFUSED);
        }
    }
    for name in files("examples", "yaml") {
        look(&name, &read(&name), false);
    }
    look("charts/tessera/templates/NOTES.txt", &here_document(&notes()), false);
    none(&problems);
    assert!(seen >= 10, "only {seen} pods were found");
}

#[test]
fn every_example_machine_can_be_made() {
    let artefacts = Artefacts::find(Profile::Dev).unwrap();
    let mut machines = 0;
    for name in files("examples", "yaml") {
        let object: Result<Value, _> = serde_saphyr::from_str(&read(&name));
        if !object.is_ok_and(|object| object["cards"].is_array()) {
            continue;
        }
        machines += 1;
        // In memory: the state of the machine is a large file with few bytes in it.
        let root = tempfile::tempdir_in("/dev/shm").unwrap();
        let output = Command::new(&artefacts.simdriver)
            .args(["install", "--cards"])
            .arg(product::root().join(&name))
            .arg("--root")
            .arg(root.path().join("driver"))
            .arg("--lib-dir")
            .arg(artefacts.cuda.parent().unwrap())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{name}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    assert!(machines > 0, "no example is a machine");
}
