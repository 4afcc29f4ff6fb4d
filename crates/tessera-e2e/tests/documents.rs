//! Documents that are run: what the pages show works, what they name exists.
//!
//! Pods in them pass admission without a word, names of annotations, flags, values and metrics are those of the
//! product, console commands are real. Commands that need a cluster are printed by
//! `commands_for_the_cluster`; the cluster suite runs them.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]
#![allow(clippy::print_stdout, reason = "tests say what they leave to others")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use serde_json::{Value, json};
use tessera_e2e::product::{Artefacts, Profile};
use tessera_e2e::{harness, product};
use tessera_engine::admission::{Settings, Verdict, review};
use tessera_engine::{Defaults, Engine, Vendors, World};
use tessera_testkit::build::{card, node};
use tessera_wire::config::{DeviceConfig, NodeConfigFile, Nvidia};
use tessera_wire::keys;

#[path = "documents/markdown.rs"]
mod markdown;

use markdown::{Page, files, pages, read, spans};

/// Marks, in the line before a block, a pod that is shown because it is refused.
const REFUSED: &str = "<!-- refused -->";

/// Fails with all problems at once.
fn none(problems: &[String]) {
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

// ---------------------------------------------------------------------------------------------------- pods

fn vendors() -> Arc<Vendors> {
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

fn documents(text: &str) -> Vec<Result<Value, String>> {
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

// ---------------------------------------------------------------------------------------------------- names

/// What a pod may carry: resources, annotations, labels.
fn pod_names() -> BTreeSet<String> {
    let vendors = vendors();
    let mut names: BTreeSet<String> = keys::USER_KEYS
        .into_iter()
        .chain(keys::ALLOCATION_KEYS)
        .map(str::to_owned)
        .collect();
    for vendor in vendors.iter() {
        names.extend(vendor.names().managed().map(str::to_owned));
        names.extend(vendor.keys().user.iter().cloned());
        names.extend(vendor.keys().allocation().map(str::to_owned));
    }
    names
}

/// What else the pages may name.
fn other_names() -> BTreeSet<String> {
    [
        keys::WEBHOOK_LABEL,
        keys::POD_GROUP_LABEL,
        keys::DEVICE_CORDON,
        keys::NODE_LOCK,
        keys::NVIDIA_REGISTER,
        keys::NVIDIA_SCORE,
        keys::NVIDIA_HANDSHAKE,
        keys::TESSERA_AGENT,
        keys::TESSERA_WAKE,
        // Of NVIDIA's operator.
        "nvidia.com/gpu.deploy.device-plugin",
    ]
    .map(str::to_owned)
    .into()
}

#[test]
fn names_of_resources_and_annotations_are_those_of_the_code() {
    let (mine, others) = (pod_names(), other_names());
    let mut problems = Vec::new();
    let mut in_pods = BTreeSet::new();
    for page in pages() {
        for (at, span) in page.spans() {
            let name = span.split([':', '=', ' ']).next().unwrap_or_default();
            let name = name
                .strip_prefix("limits.")
                .or_else(|| name.strip_prefix("requests."))
                .unwrap_or(name);
            let ours = ["nvidia.com/", "hami.io/", "tessera.dev/", "scheduling.x-k8s.io/"]
                .iter()
                .any(|p| name.starts_with(p));
            // An image of the sample, or a pattern.
            if !ours
                || name.starts_with("tessera.dev/sample")
                || name.contains(['*', '<', '.', ',']) && name.ends_with(['*', '>', '.'])
            {
                continue;
            }
            if page.name == "docs/pods.md" {
                in_pods.insert(name.to_owned());
            }
            if !mine.contains(name) && !others.contains(name) {
                problems.push(format!("{at}: `{name}` is not known to the code"));
            }
        }
    }
    problems.extend(
        mine.difference(&in_pods)
            .map(|name| format!("docs/pods.md does not name `{name}`")),
    );
    none(&problems);
}

/// Chart values: the schema says which exist.
struct Schema(Value);

impl Schema {
    fn new() -> Self {
        Self(serde_json::from_str(&read("charts/tessera/values.schema.json")).unwrap())
    }

    fn is_section(&self, word: &str) -> bool {
        self.0["properties"][word]["type"] == "object"
    }

    fn resolve<'s>(&'s self, node: &'s Value) -> &'s Value {
        match node["$ref"].as_str().and_then(|target| target.strip_prefix('#')) {
            Some(pointer) => self.0.pointer(pointer).unwrap(),
            None => node,
        }
    }

    fn has(&self, path: &str) -> bool {
        let mut node = &self.0;
        for part in path.split('.') {
            let open = node["properties"].is_null() || node["additionalProperties"] != json!(false);
            match node["properties"].get(part) {
                Some(next) => node = self.resolve(next),
                // Free maps, and HAMi's sections that are taken whole.
                None => {
                    let scalar = ["string", "boolean", "integer", "number"]
                        .iter()
                        .any(|kind| node["type"] == *kind);
                    return open && !scalar && node["enum"].is_null() && !std::ptr::eq(node, &raw const self.0);
                }
            }
        }
        true
    }
}

/// The leaves of a values document.
fn leaves(value: &Value, path: &str, out: &mut Vec<String>) {
    match value.as_object() {
        Some(map) if !map.is_empty() => {
            for (key, value) in map {
                leaves(
                    value,
                    &if path.is_empty() {
                        key.clone()
                    } else {
                        format!("{path}.{key}")
                    },
                    out,
                );
            }
        }
        _ => out.push(path.to_owned()),
    }
}

#[test]
fn chart_values_that_are_named_exist() {
    let schema = Schema::new();
    assert!(
        schema.has("scheduler.replicas") && !schema.has("scheduler.replica") && !schema.has("scheduler.replicas.x")
    );
    let mut named: Vec<(String, String)> = Vec::new();
    for page in pages() {
        for (at, span) in page.spans() {
            let path = span
                .split([':', '=', ' '])
                .next()
                .unwrap_or_default()
                .trim_end_matches(".*");
            let root = path.split('.').next().unwrap_or_default();
            if path.contains('.')
                && schema.is_section(root)
                && !path.contains(['<', '*', '/'])
                && !path.ends_with(".yaml")
            {
                named.push((at, path.to_owned()));
            }
        }
        for block in page.blocks() {
            if ["console", "sh"].contains(&block.kind) {
                let mut words = block.text.split_whitespace();
                while let Some(word) = words.next() {
                    if ["--set", "--set-file", "--set-string"].contains(&word)
                        && let Some((path, _)) = words.next().and_then(|word| word.split_once('='))
                        && !block.text.contains("not allowed")
                    {
                        named.push((block.at.clone(), path.to_owned()));
                    }
                }
            }
            if block.kind == "yaml" {
                for document in documents(&block.text)
                    .into_iter()
                    .flatten()
                    .filter(|object| object["kind"].is_null())
                {
                    let mut paths = Vec::new();
                    leaves(&document, "", &mut paths);
                    named.extend(paths.into_iter().map(|path| (block.at.clone(), path)));
                }
            }
        }
    }
    assert!(named.len() > 30, "only {} values were found", named.len());
    let problems: Vec<String> = named
        .iter()
        .filter(|(_, path)| !schema.has(path))
        .map(|(at, path)| format!("{at}: the chart has no value `{path}`"))
        .collect();
    none(&problems);
}

#[test]
fn node_configurations_that_are_shown_load() {
    let mut seen = 0;
    for page in pages() {
        for block in page
            .blocks()
            .iter()
            .filter(|block| block.kind == "json" && block.text.contains("nodeconfig"))
        {
            NodeConfigFile::from_json(&block.text).unwrap_or_else(|error| panic!("{}: {error}", block.at));
            seen += 1;
        }
    }
    assert!(seen > 0, "none is shown");
}

// ---------------------------------------------------------------------------------------------------- flags

/// What a program says about itself.
fn help(program: &Path, words: &[&str]) -> String {
    let output = Command::new(program)
        .args(words)
        .arg("--help")
        .env_clear()
        .output()
        .unwrap();
    assert!(output.status.success(), "{} {words:?} --help", program.display());
    String::from_utf8(output.stdout).unwrap()
}

/// The flags of a help text with their descriptions.
fn flags(help: &str) -> BTreeMap<String, String> {
    let mut flags = BTreeMap::new();
    let mut current: Vec<String> = Vec::new();
    for line in help.lines() {
        let text = line.trim_start();
        if text.starts_with('-') && !text.starts_with("- ") {
            current = text
                .split([' ', ','])
                .map(|word| word.split(['[', '=']).next().unwrap_or_default())
                .filter(|word| word.starts_with('-') && word.len() > 1)
                .map(str::to_owned)
                .collect();
        }
        for flag in &current {
            let about: &mut String = flags.entry(flag.clone()).or_default();
            about.push_str(text);
            about.push('\n');
        }
    }
    flags
}

/// The subcommands of `tessera`, by its own help.
fn subcommands(tessera: &Path) -> Vec<String> {
    let help = help(tessera, &[]);
    let listed = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let words = listed
        .lines()
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    words
        .filter_map(|line| line.split_whitespace().next())
        .filter(|word| *word != "help")
        .map(str::to_owned)
        .collect()
}

/// `./up` and `./check` hand their arguments to this program.
fn xtask() -> PathBuf {
    let path = Artefacts::find(Profile::Dev).unwrap().tessera.with_file_name("xtask");
    assert!(
        path.is_file(),
        "{} is missing; run `cargo build --workspace`",
        path.display()
    );
    path
}

/// All flags of our programs, by program: `tessera scheduler`, `./up`, ...
fn programs() -> BTreeMap<String, BTreeMap<String, String>> {
    let artefacts = Artefacts::find(Profile::Dev).unwrap();
    let mut programs = BTreeMap::new();
    for word in subcommands(&artefacts.tessera) {
        programs.insert(format!("tessera {word}"), flags(&help(&artefacts.tessera, &[&word])));
    }
    for word in ["up", "check"] {
        programs.insert(format!("./{word}"), flags(&help(&xtask(), &[word])));
    }
    programs.insert("tessera-simdriver".to_owned(), simdriver_flags(&artefacts));
    programs
}

fn simdriver_flags(artefacts: &Artefacts) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for word in ["install", "uninstall", "status", "fault"] {
        let output = Command::new(&artefacts.simdriver)
            .args([word, "--help"])
            .output()
            .unwrap();
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        all.extend(flags(&text));
        all.extend(
            text.split_whitespace()
                .filter(|word| word.starts_with("--"))
                .map(|word| (word.to_owned(), String::new())),
        );
    }
    all
}

/// Flags of programs that are not ours.
const FOREIGN: &[&str] = &[
    // helm
    "--set",
    "--set-file",
    "--set-string",
    "--values",
    "-f",
    "-n",
    "--namespace",
    "--create-namespace",
    "--reuse-values",
    "--install",
    "--show-only",
    // kubectl
    "-o",
    "--all",
    "-c",
    "--for",
    "--timeout",
    "-it",
    "-l",
    // cargo
    "--workspace",
    "-p",
    "--test",
    "--release",
    "--all-targets",
    // the shell's tools
    "-rf",
    "-rn",
];

#[test]
fn flags_that_are_named_exist() {
    let programs = programs();
    let known: BTreeSet<&str> = programs.values().flat_map(BTreeMap::keys).map(String::as_str).collect();
    let mut problems = Vec::new();
    let mut seen = 0;
    let mut check = |at: &str, command: &str| {
        // The program that the words belong to, if they name one.
        let words: Vec<&str> = command.split_whitespace().collect();
        let named = programs
            .iter()
            .filter(|(name, _)| command.starts_with(name.as_str()))
            .max_by_key(|(name, _)| name.len());
        for word in &words {
            let flag = word
                .split('=')
                .next()
                .unwrap_or_default()
                .trim_matches(|c| "`\"',;()".contains(c));
            if !flag.starts_with("--") || flag.len() == 2 {
                continue;
            }
            seen += 1;
            let exists = match &named {
                Some((_, flags)) => flags.contains_key(flag),
                None => known.contains(flag) || FOREIGN.contains(&flag),
            };
            if !exists {
                let of = named.as_ref().map_or("no program of ours", |(name, _)| name.as_str());
                problems.push(format!("{at}: {of} has the flag `{flag}`"));
            }
        }
    };
    for page in pages() {
        for (at, span) in page.spans() {
            check(&at, span);
        }
        for block in page
            .blocks()
            .iter()
            .filter(|block| ["console", "sh"].contains(&block.kind))
        {
            for line in block.text.replace("\\\n", " ").lines() {
                check(&block.at, line.trim_start_matches("$ "));
            }
        }
    }
    none(&problems);
    assert!(seen > 60, "only {seen} flags were found");
}

#[test]
fn tables_of_flags_have_the_programs_defaults_and_variables() {
    let programs = programs();
    let page = pages()
        .into_iter()
        .find(|page| page.name == "docs/operations.md")
        .unwrap();
    let mut problems = Vec::new();
    let mut seen = 0;
    for line in page.lines() {
        let Some(flags) = programs.get(line.section).filter(|_| line.text.starts_with("| `-")) else {
            continue;
        };
        let cells: Vec<&str> = line.text.trim_matches('|').split('|').map(str::trim).collect();
        let named: Vec<&str> = spans(cells[0]).filter(|span| span.starts_with("--")).collect();
        for flag in &named {
            seen += 1;
            if !flags.contains_key(*flag) {
                problems.push(format!("{}: {} has no flag `{flag}`", line.at, line.section));
            }
        }
        let about: String = named.iter().filter_map(|flag| flags.get(*flag)).cloned().collect();
        for variable in cells.iter().skip(1).flat_map(|cell| spans(cell)) {
            let is_variable = variable.contains('_')
                && variable
                    .chars()
                    .all(|c| c.is_ascii_uppercase() || "_0123456789".contains(c));
            if is_variable
                && !about.contains(&format!("[env: {variable}="))
                && !about.contains(&format!("{variable}=true"))
            {
                problems.push(format!("{}: `{variable}` does not set {}", line.at, cells[0]));
            }
        }
        // Where the program has one default for one flag, the table's first value must be it.
        let default_cell = if line.section == "tessera agent" {
            cells.get(2)
        } else {
            cells.get(1)
        };
        let told: Vec<&str> = default_cell.map(|cell| spans(cell).collect()).unwrap_or_default();
        if let ([flag], [told]) = (named.as_slice(), told.as_slice())
            && let Some(default) = flags.get(*flag).and_then(|about| about.split("[default: ").nth(1))
            && let Some(default) = default.split(']').next()
            && !told.starts_with('$')
            && default != *told
            && !default.starts_with(&format!("{told} where"))
        {
            problems.push(format!(
                "{}: the default of {flag} is `{default}`, not `{told}`",
                line.at
            ));
        }
    }
    none(&problems);
    assert!(seen > 40, "only {seen} flags were found");
}

// ---------------------------------------------------------------------------------------------------- metrics

/// The product's source, without tests.
fn source() -> String {
    fn walk(folder: &Path, text: &mut String) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, text);
            } else if path.extension().is_some_and(|ending| ending == "rs") && !path.ends_with("tests.rs") {
                text.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }
    let mut text = String::new();
    for name in [
        "tessera-extender",
        "tessera-agent",
        "tessera-http",
        "tessera-kube",
        "tessera-terminal",
    ] {
        let folder = product::root().join("crates").join(name).join("src");
        if folder.is_dir() {
            walk(&folder, &mut text);
        }
    }
    text
}

#[test]
fn metrics_that_are_named_are_emitted() {
    let source = source();
    let mut problems = Vec::new();
    let mut seen = 0;
    for page in pages() {
        for (at, span) in page.spans() {
            let name = span.split([' ', '{', '[', '(']).next().unwrap_or_default();
            let words = name
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
            if !words || !(name.starts_with("tessera_") || name.starts_with("hami_")) || is_crate(name) {
                continue;
            }
            seen += 1;
            // The library that prints them adds the suffix itself.
            let stem = ["_total", "_bytes", "_seconds", "_ratio"]
                .iter()
                .find_map(|suffix| name.strip_suffix(suffix));
            let defined = std::iter::once(name).chain(stem).any(|name| {
                // The agent's registry puts its prefix before every name.
                let prefixed = source.contains("with_prefix(\"tessera_agent\")");
                let bare = name.strip_prefix("tessera_agent_").filter(|_| prefixed);
                std::iter::once(name)
                    .chain(bare)
                    .any(|name| source.contains(&format!("\"{name}\"")))
            });
            if !defined {
                problems.push(format!("{at}: no program of ours has a series `{name}`"));
            }
        }
    }
    none(&problems);
    assert!(seen > 20, "only {seen} series were found");
}

/// Rust's name of a crate looks like a series.
fn is_crate(name: &str) -> bool {
    product::root().join("crates").join(name.replace('_', "-")).is_dir()
}

// ---------------------------------------------------------------------------------------------------- commands

/// What can be typed, with what is printed below it.
struct Typed {
    at: String,
    command: String,
    prints: String,
}

fn typed() -> Vec<Typed> {
    let mut all: Vec<Typed> = Vec::new();
    for page in pages() {
        for block in page.blocks().iter().filter(|block| block.kind == "console") {
            let mut first = true;
            for line in block.text.replace("\\\n", " ").lines() {
                match (line.strip_prefix("$ "), all.last_mut()) {
                    (Some(command), _) => {
                        all.push(Typed {
                            at: block.at.clone(),
                            command: command.to_owned(),
                            prints: String::new(),
                        });
                        first = false;
                    }
                    (None, Some(last)) if !first => {
                        last.prints.push_str(line);
                        last.prints.push('\n');
                    }
                    (None, _) => panic!("{}: the block does not begin with `$ `", block.at),
                }
            }
        }
    }
    all
}

/// Who runs a command of a page.
#[derive(Debug, PartialEq, Eq)]
enum Runs {
    /// This file.
    Here,
    /// The cluster suite.
    Cluster,
    /// Whoever builds: it is what is running now.
    Builder,
}

fn who_runs(command: &str) -> Option<Runs> {
    let words: Vec<&str> = command.split_whitespace().collect();
    Some(match words.as_slice() {
        ["helm", "template" | "lint" | "show", ..] => Runs::Here,
        [program, rest @ ..] if rest.contains(&"--help") && ["tessera", "./up", "./check"].contains(program) => {
            Runs::Here
        }
        ["./up" | "kubectl" | "helm", ..] | ["tessera", ..] => Runs::Cluster,
        ["./check", ..] | ["cargo", "build" | "test" | "xtask", ..] => Runs::Builder,
        _ => return None,
    })
}

/// The words of a command that are files of the repository.
fn files_in(command: &str) -> Vec<&str> {
    let words = command
        .split_whitespace()
        .map(|word| word.rsplit('=').next().unwrap_or(word));
    words
        .filter(|word| !word.starts_with('-') && !word.contains(['<', '$', '\'', ':', '{']))
        .filter(|word| {
            word.ends_with(".yaml")
                || word.starts_with("charts/")
                || word.starts_with("examples/")
                || word.starts_with("./")
        })
        .collect()
}

#[test]
fn console_commands_are_real() {
    let mut problems = Vec::new();
    let all = typed();
    for Typed { at, command, .. } in &all {
        if who_runs(command).is_none() {
            problems.push(format!(
                "{at}: `{command}` is not one of the commands that are run; add who runs it"
            ));
        }
        for file in files_in(command) {
            if !product::root().join(file).exists() {
                problems.push(format!("{at}: `{file}` is not there"));
            }
        }
        if let Some(package) = command
            .split_once(" -p ")
            .and_then(|(_, rest)| rest.split_whitespace().next())
            && !product::root().join("crates").join(package).is_dir()
        {
            problems.push(format!("{at}: there is no crate `{package}`"));
        }
    }
    none(&problems);
    assert!(all.len() > 5, "only {} commands were found", all.len());
}

#[test]
fn console_commands_that_need_no_cluster_print_what_is_shown() {
    let artefacts = Artefacts::find(Profile::Dev).unwrap();
    for Typed { at, command, prints } in typed()
        .iter()
        .filter(|typed| who_runs(&typed.command) == Some(Runs::Here))
    {
        let words: Vec<&str> = command.split_whitespace().collect();
        let (program, before): (PathBuf, &[&str]) = match words[0] {
            "helm" => match helm() {
                Some(helm) => (helm, &[]),
                None => {
                    println!("skipped: `{command}`: no helm found");
                    harness::note_skip("documents", "no helm found");
                    continue;
                }
            },
            "tessera" => (artefacts.tessera.clone(), &[]),
            "./up" => (xtask(), &["up"]),
            _ => (xtask(), &["check"]),
        };
        let output = Command::new(program)
            .current_dir(product::root())
            .args(before)
            .args(&words[1..])
            .output()
            .unwrap();
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(
            output.status.success(),
            !prints.starts_with("Error"),
            "{at}: {command}:\n{text}"
        );
        for line in prints
            .lines()
            .filter(|line| !line.trim().is_empty() && line.trim() != "...")
        {
            assert!(
                text.contains(line.trim_end()),
                "{at}: {command} does not print `{line}` but:\n{text}"
            );
        }
    }
}

fn helm() -> Option<PathBuf> {
    if let Some(given) = std::env::var_os("TESSERA_HELM") {
        return Some(given.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    if let Some(found) = std::env::split_paths(&path)
        .map(|folder| folder.join("helm"))
        .find(|file| file.is_file())
    {
        return Some(found);
    }
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let cache = std::env::var_os("TESSERA_CACHE").map_or_else(|| home.join(".cache/tessera"), PathBuf::from);
    let folders = std::fs::read_dir(cache.join("bin")).ok()?.filter_map(Result::ok);
    folders
        .filter(|folder| folder.file_name().to_string_lossy().starts_with("helm-"))
        .map(|folder| folder.path().join("helm"))
        .find(|file| file.is_file())
}

#[test]
fn commands_for_the_cluster_are_listed() {
    let all = typed();
    let mut commands: Vec<&str> = all
        .iter()
        .filter(|typed| who_runs(&typed.command) == Some(Runs::Cluster))
        .map(|typed| typed.command.as_str())
        .collect();
    commands.sort_unstable();
    commands.dedup();
    for command in &commands {
        println!("cluster: {command}");
    }
    assert!(
        commands.contains(&"./up") && commands.contains(&"./up --down"),
        "{commands:?}"
    );
}

// ---------------------------------------------------------------------------------------------------- links

#[test]
fn links_lead_somewhere() {
    let all: BTreeMap<String, Page> = pages().into_iter().map(|page| (page.name.clone(), page)).collect();
    let mut problems = Vec::new();
    for page in all.values() {
        for (at, target) in page.links() {
            if target.contains("://") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let folder = Path::new(&page.name).parent().unwrap_or(Path::new(""));
            let name = if file.is_empty() {
                page.name.clone()
            } else {
                normal(&folder.join(file))
            };
            if !product::root().join(&name).exists() {
                problems.push(format!("{at}: `{target}` is not there"));
            } else if !anchor.is_empty()
                && all
                    .get(&name)
                    .is_some_and(|page| !page.anchors().contains(&anchor.to_owned()))
            {
                problems.push(format!("{at}: `{name}` has no heading `#{anchor}`"));
            }
        }
    }
    none(&problems);
}

/// Without `..`.
fn normal(path: &Path) -> String {
    let mut parts: Vec<String> = Vec::new();
    for part in path.components() {
        match part.as_os_str().to_string_lossy().as_ref() {
            ".." => drop(parts.pop()),
            "." => {}
            part => parts.push(part.to_owned()),
        }
    }
    parts.join("/")
}
