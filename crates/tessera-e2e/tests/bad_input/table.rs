//! The form of the table: rows, how they are checked, how they become a page.

use std::fmt::Write as _;

/// One mistake.
pub(crate) struct Row {
    /// Name of the row.
    pub(crate) id: &'static str,
    /// What the user did.
    pub(crate) did: &'static str,
    /// Where he sees it.
    pub(crate) place: &'static str,
    /// What he reads. Parts that vary are masked: `<folder>`, `<port>`.
    pub(crate) message: &'static str,
    /// Makes the mistake and gives what is read, masked.
    pub(crate) see: fn() -> String,
}

/// Rows that belong together.
pub(crate) struct Part {
    pub(crate) title: &'static str,
    /// What holds for all of them.
    pub(crate) about: &'static str,
    pub(crate) rows: Vec<Row>,
}

/// Makes every mistake of the rows and compares; names all rows that differ.
pub(crate) fn check(rows: &[Row]) {
    assert!(!rows.is_empty(), "no rows");
    let mut different = String::new();
    for row in rows {
        let found = (row.see)();
        if found != row.message {
            writeln!(
                different,
                "{}:\n  expected {:?}\n  found    {:?}",
                row.id, row.message, found
            )
            .unwrap();
        }
    }
    assert!(
        different.is_empty(),
        "these messages are not what the table says:\n{different}"
    );
}

/// Replaces parts that vary.
pub(crate) fn mask(text: &str, parts: &[(&str, &str)]) -> String {
    parts
        .iter()
        .fold(text.to_owned(), |text, (part, name)| text.replace(part, name))
}

/// The page.
pub(crate) fn page(parts: &[Part]) -> String {
    let mut text = String::from(
        "<!-- Written by crates/tessera-e2e/tests/bad_input.rs; TESSERA_BLESS=1 writes it anew. -->\n\n\
         # Bad input\n\n\
         Every mistake below is made by a test, which compares what is read with the text here. `<folder>`, `<port>` and\n\
         the like stand for what differs from place to place.\n",
    );
    for part in parts {
        write!(text, "\n## {}\n\n{}\n\n", part.title, part.about).unwrap();
        text.push_str(HEAD);
        for row in &part.rows {
            text.push_str(&line(row.did, row.place, row.message));
        }
    }
    text
}

/// Over the rows of a part.
pub(crate) const HEAD: &str = "| what you did | where you see it | message |\n| --- | --- | --- |\n";

/// One row of the page.
pub(crate) fn line(did: &str, place: &str, message: &str) -> String {
    let lines: Vec<String> = message
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(code)
        .collect();
    format!("| {} | {place} | {} |\n", cell(did), lines.join("<br>"))
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

/// A code span that may hold backticks.
fn code(line: &str) -> String {
    let line = cell(line.trim_end());
    let indent = line.len() - line.trim_start().len();
    let line = line.trim_start();
    let shown = if line.contains('`') {
        format!("`` {line} ``")
    } else {
        format!("`{line}`")
    };
    format!("{}{shown}", "&nbsp;".repeat(indent))
}
