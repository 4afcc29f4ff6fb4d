//! Reading our Markdown: fenced blocks, code spans, sections, links. As much as our own pages use.

use std::path::Path;

use tessera_e2e::product;

/// A page.
pub(crate) struct Page {
    /// Path inside the repository.
    pub(crate) name: String,
    pub(crate) text: String,
}

/// A fenced block.
pub(crate) struct Block<'p> {
    /// Page and line, for messages.
    pub(crate) at: String,
    /// The word after the fence.
    pub(crate) kind: &'p str,
    pub(crate) text: String,
    /// The last line before it that is not blank.
    pub(crate) before: &'p str,
}

/// A line of text outside blocks, with the headings it is under.
pub(crate) struct Line<'p> {
    pub(crate) at: String,
    pub(crate) section: &'p str,
    pub(crate) text: &'p str,
}

/// All pages but the generated one, which its own test proves.
pub(crate) fn pages() -> Vec<Page> {
    let mut names: Vec<String> = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"]
        .map(str::to_owned)
        .to_vec();
    for folder in ["docs", "docs/adr"] {
        names.extend(files(folder, "md"));
    }
    names.retain(|name| name != "docs/bad-input.md");
    names
        .into_iter()
        .map(|name| Page {
            text: read(&name),
            name,
        })
        .collect()
}

/// The files of a folder with an ending, as paths inside the repository, sorted.
pub(crate) fn files(folder: &str, ending: &str) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(product::root().join(folder))
        .unwrap_or_else(|error| panic!("{folder}: {error}"))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|found| found == ending))
        .map(|path| format!("{folder}/{}", path.file_name().unwrap().to_string_lossy()))
        .collect();
    names.sort();
    names
}

pub(crate) fn read(name: impl AsRef<Path>) -> String {
    let path = product::root().join(&name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

impl Page {
    pub(crate) fn blocks(&self) -> Vec<Block<'_>> {
        let mut blocks: Vec<Block<'_>> = Vec::new();
        let mut open = false;
        let mut before = "";
        for (number, line) in self.text.lines().enumerate() {
            if let Some(kind) = line.trim_start().strip_prefix("```") {
                open = !open;
                if open {
                    blocks.push(Block {
                        at: format!("{}:{}", self.name, number + 1),
                        kind,
                        text: String::new(),
                        before,
                    });
                }
                continue;
            }
            match blocks.last_mut().filter(|_| open) {
                Some(block) => {
                    block.text.push_str(line);
                    block.text.push('\n');
                }
                None if !line.trim().is_empty() => before = line.trim(),
                None => {}
            }
        }
        assert!(!open, "{}: a block is not closed", self.name);
        blocks
    }

    pub(crate) fn lines(&self) -> Vec<Line<'_>> {
        let (mut lines, mut open, mut section) = (Vec::new(), false, "");
        for (number, text) in self.text.lines().enumerate() {
            if text.trim_start().starts_with("```") {
                open = !open;
            } else if !open {
                if let Some(heading) = text.strip_prefix('#') {
                    section = heading.trim_start_matches('#').trim();
                }
                lines.push(Line {
                    at: format!("{}:{}", self.name, number + 1),
                    section,
                    text,
                });
            }
        }
        lines
    }

    /// The code spans outside blocks, with where they are.
    pub(crate) fn spans(&self) -> Vec<(String, &str)> {
        self.lines()
            .into_iter()
            .flat_map(|line| spans(line.text).map(move |span| (line.at.clone(), span)))
            .collect()
    }

    /// The names by which headings are linked to.
    pub(crate) fn anchors(&self) -> Vec<String> {
        let headings = self.lines().into_iter().filter_map(|line| line.text.strip_prefix('#'));
        headings
            .map(|heading| {
                let heading = heading.trim_start_matches('#').trim().to_lowercase();
                heading
                    .chars()
                    .filter(|c| c.is_alphanumeric() || "- _".contains(*c))
                    .collect::<String>()
                    .replace(' ', "-")
            })
            .collect()
    }

    /// The targets of links.
    pub(crate) fn links(&self) -> Vec<(String, &str)> {
        let mut links = Vec::new();
        for line in self.lines() {
            for part in line.text.split("](").skip(1) {
                if let Some((target, _)) = part.split_once(')') {
                    links.push((line.at.clone(), target));
                }
            }
        }
        links
    }
}

/// The code spans of a line; those in double backticks too.
pub(crate) fn spans(line: &str) -> impl Iterator<Item = &str> {
    let mut rest = line;
    std::iter::from_fn(move || {
        let start = rest.find('`')?;
        let fence = rest[start..].bytes().take_while(|byte| *byte == b'`').count();
        let inside = &rest[start + fence..];
        let end = inside.find(&"`".repeat(fence))?;
        rest = &inside[end + fence..];
        Some(inside[..end].trim())
    })
}
