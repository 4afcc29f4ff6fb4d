//! One case, and the moments in its texts.

use std::path::Path;
use std::sync::OnceLock;
use std::time::SystemTime;

use serde::Deserialize;
use serde_json::Value;
use tessera_wire::time;

use super::ConformanceError;

/// The moment at which all cases of this process are run, Unix seconds: the first time that anybody asked. Cases that
/// go through a service meet its own clock, so it has to be the present.
#[must_use]
pub fn now() -> i64 {
    static NOW: OnceLock<i64> = OnceLock::new();
    *NOW.get_or_init(|| {
        let since = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    })
}

/// One recorded behaviour.
#[derive(Debug, Clone)]
pub struct Case {
    /// Its name, for good.
    pub id: String,
    /// What it shows.
    pub title: String,
    /// The group it is counted in.
    pub kind: String,
    /// Which operation runs it.
    pub op: String,
    /// The operation's input.
    pub input: Value,
    /// The reference's outcome.
    pub expected: Value,
    /// A better implementation may differ.
    pub deviation_ok: bool,
}

#[derive(Deserialize)]
struct Line {
    id: String,
    title: String,
    kind: String,
    input: Value,
    expected: Value,
    #[serde(default)]
    deviation_ok: bool,
}

/// Replaces `{now-20s}` by a local time and `{now-20s:rfc3339}` by an RFC 3339 time, everywhere in a value.
pub fn expand_times(value: &mut Value, now: i64) {
    match value {
        Value::String(text) => {
            while let Some(start) = text.find("{now") {
                let Some(length) = text.get(start..).and_then(|rest| rest.find('}')) else {
                    break;
                };
                let Some(inside) = text.get(start + 4..start + length) else {
                    break;
                };
                let (shift, rfc3339) = match inside.strip_suffix(":rfc3339") {
                    Some(shift) => (shift, true),
                    None => (inside, false),
                };
                let seconds: i64 = match shift.strip_suffix('m') {
                    Some(minutes) => minutes.parse().unwrap_or(0) * 60,
                    None => shift.trim_end_matches('s').parse().unwrap_or(0),
                };
                let printed = if rfc3339 {
                    time::print_rfc3339(now + seconds)
                } else {
                    time::print_local(now + seconds)
                };
                text.replace_range(start..=start + length, &printed);
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|value| expand_times(value, now)),
        Value::Object(map) => map.values_mut().for_each(|value| expand_times(value, now)),
        _ => {}
    }
}

pub(super) fn read(path: &Path) -> Result<Vec<Case>, ConformanceError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConformanceError::Read {
        path: path.to_owned(),
        source,
    })?;
    let mut cases: Vec<Case> = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let problem = |problem: String| ConformanceError::Case {
            path: path.to_owned(),
            line: number + 1,
            problem,
        };
        let line: Line = serde_json::from_str(line).map_err(|error| problem(error.to_string()))?;
        let Some(op) = line.input.get("op").and_then(Value::as_str) else {
            return Err(problem("`input.op` is missing".to_owned()));
        };
        if cases.iter().any(|case| case.id == line.id) {
            return Err(problem(format!("the id `{}` stands twice", line.id)));
        }
        let op = op.to_owned();
        let mut input = line.input;
        expand_times(&mut input, now());
        cases.push(Case {
            id: line.id,
            title: line.title,
            kind: line.kind,
            op,
            input,
            expected: line.expected,
            deviation_ok: line.deviation_ok,
        });
    }
    Ok(cases)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn moments_are_filled_in() {
        let mut value = json!({"a": ["Requesting_{now-20s}", "{now-10s:rfc3339},ns,p", "plain"]});
        expand_times(&mut value, 1_705_054_800);
        assert_eq!(
            value,
            json!({"a": ["Requesting_2024-01-12 10:19:40", "2024-01-12T10:19:50Z,ns,p", "plain"]})
        );
    }
}
