//! Where fuzzing begins: with the texts of the conformance cases, so that no folder of inputs has to be kept.

use std::{collections::BTreeSet, path::Path};

use serde_json::Value;

/// Every text of some length and every object in the case files of a folder, each once, in order.
///
/// # Errors
/// The folder or a file in it cannot be read.
pub fn of_cases(folder: &Path) -> std::io::Result<BTreeSet<Vec<u8>>> {
    let mut seeds = BTreeSet::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|kind| kind == "jsonl") {
            for line in std::fs::read_to_string(path)?.lines() {
                if let Ok(case) = serde_json::from_str::<Value>(line) {
                    collect(&case, &mut seeds);
                }
            }
        }
    }
    Ok(seeds)
}

/// Longer ones say nothing new.
const LONGEST: usize = 8192;

fn collect(value: &Value, seeds: &mut BTreeSet<Vec<u8>>) {
    match value {
        Value::String(text) if text.len() < LONGEST => {
            seeds.insert(text.as_bytes().to_vec());
            // The first byte of an input of `cluster` names the class.
            if text.len() > 16 {
                let class = u8::try_from(text.len() % 32).unwrap_or_default();
                seeds.insert([&[class], text.as_bytes()].concat());
            }
        }
        Value::Array(all) => all.iter().for_each(|value| collect(value, seeds)),
        Value::Object(all) => {
            let text = value.to_string();
            if text.len() < LONGEST {
                seeds.insert(text.into_bytes());
            }
            all.values().for_each(|value| collect(value, seeds));
        }
        _ => {}
    }
}
