//! Links between pages.

use std::collections::BTreeMap;
use std::path::Path;

use tessera_e2e::product;

use crate::markdown::{Page, pages};
use crate::none;

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
