//! Cases of the preloaded library: what real processes in a container see, call by call.
//!
//! Their form is their own, since one case is a conversation with several processes, so they have their own reader. How a
//! step is carried out is the business of the program that starts the processes; here is only what the file says and
//! when an answer is the expected one.

use std::{collections::BTreeMap, path::Path};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{ConformanceError, folder};

/// One conversation.
#[derive(Clone, Debug, Deserialize)]
pub struct EnforcementCase {
    /// Its name, for good.
    pub id: String,
    /// What it shows.
    pub title: String,
    /// The group it is counted in.
    pub kind: String,
    /// Variables of every process.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// What is unusual about the machine.
    #[serde(default)]
    pub given: Map<String, Value>,
    /// What the container may use, where the case says so and not the variables.
    pub grant: Option<Map<String, Value>>,
    /// How far a process is before its first step.
    #[serde(default)]
    pub setup: Setup,
    /// What is unusual about single processes.
    #[serde(default)]
    pub procs: BTreeMap<String, Process>,
    /// The steps, in order.
    pub calls: Vec<Step>,
    /// Names that the library exports.
    #[serde(default)]
    pub names: Vec<String>,
    /// A better implementation may differ.
    #[serde(default)]
    pub deviation_ok: bool,
    /// How, in words.
    pub better: Option<String>,
}

/// How far a process is before its first step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Setup {
    /// Initialised, with the primary context of device 0 current.
    #[default]
    Standard,
    /// Initialised.
    Init,
    /// Started.
    None,
}

/// One process's own variables.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Process {
    /// Added to those of the case.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
}

/// One step.
#[derive(Clone, Debug, Deserialize)]
pub struct Step {
    /// Which process takes it.
    #[serde(default = "first")]
    pub proc: String,
    /// An entry of the driver or of NVML, or `@` and what the runner does.
    pub call: String,
    /// The arguments; an object of words is one argument.
    #[serde(deserialize_with = "one_or_many")]
    pub args: Vec<Value>,
    /// The reference's answer, if it matters.
    pub expect: Option<Value>,
    /// How often the call is made.
    pub repeat: Option<u64>,
    /// From how many threads.
    pub threads: Option<u64>,
    /// How many seconds the answer may take before the step counts as stuck.
    pub wait_s: Option<f64>,
    /// With `@start`: instead of the case's.
    pub setup: Option<Setup>,
    /// With `@start`: more variables.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
}

fn one_or_many<'de, D: serde::Deserializer<'de>>(input: D) -> Result<Vec<Value>, D::Error> {
    Ok(match Value::deserialize(input)? {
        Value::Array(list) => list,
        one => vec![one],
    })
}

fn first() -> String {
    "a".to_owned()
}

/// Reads the cases of `<folder>/enforcement-cases.jsonl`; the line that describes the file is left out.
///
/// # Errors
/// The file does not open, a line is no case, or an id stands twice.
pub fn read() -> Result<Vec<EnforcementCase>, ConformanceError> {
    let path = folder().join("enforcement-cases.jsonl");
    let text = std::fs::read_to_string(&path).map_err(|source| ConformanceError::Read {
        path: path.clone(),
        source,
    })?;
    parse(&path, &text)
}

fn parse(path: &Path, text: &str) -> Result<Vec<EnforcementCase>, ConformanceError> {
    let mut cases: Vec<EnforcementCase> = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let problem = |problem: String| ConformanceError::Case {
            path: path.to_owned(),
            line: number + 1,
            problem,
        };
        let case: EnforcementCase = serde_json::from_str(line).map_err(|error| problem(error.to_string()))?;
        if cases.iter().any(|known| known.id == case.id) {
            return Err(problem(format!("the id `{}` stands twice", case.id)));
        }
        if case.kind != "format" {
            cases.push(case);
        }
    }
    Ok(cases)
}

/// The answer in the shape that an expectation has: a bare number is a return code.
#[must_use]
pub fn fields(expected: &Value) -> Map<String, Value> {
    match expected {
        Value::Object(fields) => fields.clone(),
        code => Map::from_iter([("ret".to_owned(), code.clone())]),
    }
}

/// Whether a value is as expected: equal, or what the comparison `{ge, le, gt, lt, ne, in}` asks for. `pid:x` stands for
/// the pid that `pid_of` knows.
#[must_use]
pub fn fits(expected: &Value, got: &Value, pid_of: &impl Fn(&str) -> Option<u64>) -> bool {
    match expected {
        Value::Object(comparison) => comparison.iter().all(|(word, bound)| compares(word, bound, got)),
        Value::String(text) => match text.strip_prefix("pid:") {
            Some(process) => pid_of(process).is_some_and(|pid| got.as_u64() == Some(pid)),
            None => got.as_str() == Some(text),
        },
        _ => super::same(expected, got),
    }
}

fn compares(word: &str, bound: &Value, got: &Value) -> bool {
    if word == "in" {
        return bound
            .as_array()
            .is_some_and(|list| list.iter().any(|one| super::same(one, got)));
    }
    if word == "ne" {
        return !super::same(bound, got);
    }
    let (Some(bound), Some(got)) = (bound.as_f64(), got.as_f64()) else {
        return false;
    };
    match word {
        "ge" => got >= bound,
        "le" => got <= bound,
        "gt" => got > bound,
        "lt" => got < bound,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(expected: Value, got: Value, fitting: bool) {
        let pid_of = |name: &str| (name == "a").then_some(17);
        assert_eq!(fits(&expected, &got, &pid_of), fitting, "{expected} and {got}");
    }

    #[test]
    fn an_answer_is_compared_as_the_expectation_says() {
        check(json!(1), json!(1), true);
        check(json!(1), json!(2), false);
        check(json!("pid:a"), json!(17), true);
        check(json!("pid:b"), json!(17), false);
        check(json!("unwritten"), json!("unwritten"), true);
        check(json!({"ge": 2, "le": 3}), json!(3), true);
        check(json!({"ge": 2, "le": 3}), json!(4), false);
        check(json!({"lt": 0.5}), json!("late"), false);
        check(json!({"in": [1, 2]}), json!(2), true);
        check(json!({"ne": 0}), json!(0), false);
        check(json!({"about": 0}), json!(0), false);
    }

    #[test]
    fn a_number_is_a_return_code() {
        assert_eq!(fields(&json!(2)), fields(&json!({"ret": 2})));
    }

    #[test]
    fn the_file_is_readable_and_has_a_line_for_the_reader() {
        let text = std::fs::read_to_string(folder().join("enforcement-cases.jsonl")).expect("the file is there");
        assert_eq!(read().expect("every line is a case").len() + 1, text.lines().count());
    }
}
