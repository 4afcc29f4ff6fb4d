//! Values of the chart, and numbers for single nodes.

use serde_json::{Value, json};
use tessera_players::{Mix, Part, known};
use tessera_wire::config::NodeConfigFile;

use crate::markdown::{pages, read};
use crate::none;
use crate::pods::documents;

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
                    // A cards file is no values file.
                    .filter(|object| object["kind"].is_null() && object["cards"].is_null())
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
fn cards_that_are_shown_can_be_simulated() {
    let mut seen = 0;
    for page in pages() {
        for block in page.blocks().iter().filter(|block| block.kind == "yaml") {
            for document in documents(&block.text).into_iter().flatten() {
                let cards = [&document["cards"], &document["simulate"]["cards"]];
                for list in cards.into_iter().filter(|list| list.is_array()) {
                    let text = json!({ "cards": list }).to_string();
                    Mix::parse(&text).unwrap_or_else(|error| panic!("{}: {error}", block.at));
                    seen += 1;
                }
            }
        }
    }
    assert!(seen > 1, "only {seen} lists are shown");
}

#[test]
fn models_of_players_are_those_of_the_page() {
    let page = read("docs/simulated-hardware.md");
    for vendor in known() {
        assert!(
            page.contains(&format!("`{vendor}`")),
            "the page does not name `{vendor}`"
        );
        for model in Part::find(vendor).unwrap().models {
            let name = &model.model;
            assert!(
                page.contains(&format!("`{name}`")),
                "the page does not name `{name}` of {vendor}"
            );
        }
    }
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
