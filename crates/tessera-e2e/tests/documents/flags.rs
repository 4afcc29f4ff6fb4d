//! Flags of our programs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use tessera_e2e::product::{Artefacts, Profile};

use crate::markdown::{pages, spans};
use crate::none;

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

/// The subcommands of a program, by its own help.
fn subcommands(program: &Path) -> Vec<String> {
    listed(&help(program, &[]))
}

/// The subcommands that a help text lists.
fn listed(help: &str) -> Vec<String> {
    let Some(rest) = help.split("Commands:\n").nth(1) else {
        return Vec::new();
    };
    let words = rest
        .lines()
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    words
        .filter_map(|line| line.split_whitespace().next())
        .filter(|word| *word != "help")
        .map(str::to_owned)
        .collect()
}

/// `./up` and `./check` hand their arguments to this program.
pub(crate) fn xtask() -> PathBuf {
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
    let xtask = xtask();
    for word in subcommands(&xtask) {
        let program = match word.as_str() {
            "up" | "check" => format!("./{word}"),
            _ => format!("cargo xtask {word}"),
        };
        let text = help(&xtask, &[&word]);
        for inner in listed(&text) {
            let flags = flags(&help(&xtask, &[&word, &inner]));
            programs.insert(format!("{program} {inner}"), flags);
        }
        programs.insert(program, flags(&text));
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
    "--overwrite",
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
