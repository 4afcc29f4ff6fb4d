//! What can be typed.

use std::path::PathBuf;
use std::process::Command;

use tessera_e2e::harness;
use tessera_e2e::product::{self, Artefacts, Profile};

use crate::flags::xtask;
use crate::markdown::pages;
use crate::none;

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
        // On files that are in the repository.
        ["tessera", "simulate" | "plan", rest @ ..] if rest.iter().any(|word| word.starts_with("examples/")) => {
            Runs::Here
        }
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
