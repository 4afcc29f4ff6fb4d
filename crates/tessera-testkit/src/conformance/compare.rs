//! When two outcomes are the same.

use serde_json::Value;

/// How far two fractions may lie apart, relative to the larger.
const TOLERANCE: f64 = 1e-4;

/// Equal, with numbers compared by value (1 is 1.0) and fractions within a tolerance. Members are compared whole: an
/// outcome with one more member differs.
#[must_use]
pub fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) => match (x.as_i64(), y.as_i64()) {
            (Some(x), Some(y)) => x == y,
            _ => match (x.as_f64(), y.as_f64()) {
                (Some(x), Some(y)) => (x - y).abs() <= TOLERANCE * x.abs().max(y.abs()),
                _ => x == y,
            },
        },
        (Value::Array(x), Value::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(x, y)| same(x, y)),
        (Value::Object(x), Value::Object(y)) => {
            x.len() == y.len() && x.iter().all(|(key, x)| y.get(key).is_some_and(|y| same(x, y)))
        }
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::same;

    #[test]
    fn numbers_by_value_members_whole() {
        assert!(same(&json!({"a": 1, "b": [0.5]}), &json!({"b": [0.500_01], "a": 1.0})));
        assert!(!same(&json!({"a": 1}), &json!({"a": 1, "b": 2})));
        assert!(!same(&json!([1, 2]), &json!([2, 1])));
        assert!(!same(&json!(null), &json!(0)));
        assert!(!same(&json!(0.5), &json!(0.51)));
    }
}
