//! `docs/vendors.md`: what holds for which class, made of the table.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use tessera_engine::LockKind;
use tessera_types::Keyword;

use super::behaviours::{self, Behaviour};
use super::cluster::vendors;
use super::rows::ROWS;
use super::table::Row;

const HEAD: &str = "# Vendors

Which device classes are scheduled, and what holds for each. Each maker's own device plugin serves its cards
unchanged; NVIDIA's are served by Tessera's agent or by HAMi's plugin. Names are HAMi's defaults.

This page is written by a test that proves every `yes`, and that every exception is still one:
`cargo test -p tessera-vendors --test common`.

## Classes

The first name is the number of cards (or of slices). The lock is the annotation that keeps other pods off the node
between bind and the start of the containers; it is written only on nodes that another maker's plugin serves.

| | class | names | unit of memory | node's register | lock |
| --- | --- | --- | --- | --- | --- |
";

/// Why the row's class does not have the behaviour.
pub(crate) fn excuse(row: &Row, behaviour: &Behaviour) -> Option<&'static str> {
    let named = |names: &&[&str]| names.contains(&behaviour.name);
    row.cannot.iter().find(|(names, _)| named(names)).map(|(_, why)| *why)
}

/// The page.
pub(crate) fn render() -> String {
    let mut page = String::from(HEAD);
    for (at, row) in ROWS.iter().enumerate() {
        page.push_str(&class(at, row));
    }
    page.push_str("\n## Behaviours\n\nThe columns are the numbers of the classes. A letter stands for a reason, told at the end.\n");
    let mut reasons: Vec<(&'static str, Vec<usize>)> = Vec::new();
    for section in behaviours::ALL {
        write!(page, "\n### {}\n\n| |", section.title).unwrap();
        for at in 1..=ROWS.len() {
            write!(page, " {at} |").unwrap();
        }
        write!(page, "\n| --- |{}", " --- |".repeat(ROWS.len())).unwrap();
        for behaviour in section.behaviours {
            write!(page, "\n| {} |", behaviour.title).unwrap();
            for (column, row) in ROWS.iter().enumerate() {
                match excuse(row, behaviour) {
                    None => page.push_str(" yes |"),
                    Some(why) => write!(page, " {} |", letter(told(&mut reasons, why, column + 1))).unwrap(),
                }
            }
        }
        page.push('\n');
    }
    page.push_str("\n### Why not\n\n");
    for (at, (why, columns)) in reasons.iter().enumerate() {
        let columns: Vec<String> = columns.iter().map(ToString::to_string).collect();
        writeln!(page, "- {}: {why} ({})", letter(at), columns.join(", ")).unwrap();
    }
    let yes = ROWS.len() * behaviours::all().count() - excused();
    writeln!(
        page,
        "\n{} behaviours for {} classes: {yes} proofs, {} exceptions.",
        behaviours::all().count(),
        ROWS.len(),
        excused()
    )
    .unwrap();
    page
}

fn excused() -> usize {
    let of = |row: &Row| {
        behaviours::all()
            .filter(|behaviour| excuse(row, behaviour).is_some())
            .count()
    };
    ROWS.iter().map(of).sum()
}

fn class(at: usize, row: &Row) -> String {
    let all = vendors();
    let keyword = Keyword::new(row.class).unwrap();
    let vendor = all.get(&keyword).unwrap();
    let names: Vec<String> = vendor.names().managed().map(|name| format!("`{name}`")).collect();
    let unit = match (&vendor.names().memory, vendor.names().factor()) {
        (None, _) => "-".to_owned(),
        (Some(_), 1) => "1 MiB".to_owned(),
        (Some(_), factor) => format!("{factor} MiB"),
    };
    let code = |text: &str| format!("`{text}`");
    let register = vendor
        .keys()
        .register
        .as_deref()
        .map_or_else(|| "amounts of the status".to_owned(), code);
    let lock = match vendor.node_lock() {
        LockKind::None => "-".to_owned(),
        LockKind::Shared => code(tessera_wire::keys::NODE_LOCK),
        LockKind::Own(key) | LockKind::Timed { key, .. } => code(&key),
    };
    format!(
        "| {} | {}: `{}` | {} | {unit} | {register} | {lock} |\n",
        at + 1,
        row.title,
        row.class,
        names.join(" ")
    )
}

/// Where the reason stands in the list, with one more class that it is said of.
fn told(reasons: &mut Vec<(&'static str, Vec<usize>)>, why: &'static str, column: usize) -> usize {
    let at = reasons
        .iter()
        .position(|(known, _)| *known == why)
        .unwrap_or(reasons.len());
    if at == reasons.len() {
        reasons.push((why, Vec::new()));
    }
    let columns = &mut reasons[at].1;
    if !columns.contains(&column) {
        columns.push(column);
        columns.sort_unstable();
    }
    at
}

/// `a` to `z`, then `aa` and on.
fn letter(at: usize) -> String {
    let low = char::from(b'a' + u8::try_from(at % 26).unwrap());
    match at / 26 {
        0 => low.to_string(),
        more => letter(more - 1) + &low.to_string(),
    }
}

/// Names in a row's `cannot` that are no behaviour, or stand there twice.
pub(crate) fn misnamed(row: &Row) -> Vec<&'static str> {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let names = || row.cannot.iter().flat_map(|(names, _)| names.iter().copied());
    for name in names() {
        *seen.entry(name).or_default() += 1;
    }
    names()
        .filter(|name| seen[name] > 1 || behaviours::all().all(|known| known.name != *name))
        .collect()
}
